"""The file by which an interrupted ranking goes on: the running top-k and how many documents are in it."""

import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dr_validate.files import atomic_file
from dr_validate.values import TopK

log = logging.getLogger(__name__)


def save(path: Path, key: Mapping[str, Any], done: int, top: TopK) -> None:
    """Write atomically; `key` (JSON values) says which work this is, `done` how many documents of it are finished."""
    with atomic_file(path) as stream:
        # Arrays and one JSON string: numpy needs no pickles for either.
        np.savez(stream, key=np.array(_canonical(key)), done=np.int64(done), documents=top.documents, scores=top.scores)


def load(path: Path, key: Mapping[str, Any]) -> tuple[int, TopK] | None:
    """(documents done, top-k) of this very work; None where there is no file, or a damaged or foreign one, which is logged."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            found = str(file["key"])
            done, top = int(file["done"]), TopK(documents=file["documents"], scores=file["scores"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, AssertionError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged (%s: %s): encoding starts from the first document", path, type(error).__name__, error)
        return None
    if found != _canonical(key):
        log.warning("%s belongs to other work: encoding starts from the first document", path)
        return None
    return done, top


def _canonical(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
