"""Collections of the package ir_datasets, by its ids: TREC tracks, MS MARCO, BEIR, Vaswani and some hundred more."""

import importlib.util
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from dr_validate.component import component, fingerprint
from dr_validate.dataset.build import open_test_set
from dr_validate.dataset.locate import Common, folder_name
from dr_validate.dataset.records import DOCUMENT, QUERY, entry_part, judgement_part
from dr_validate.dataset.storage import made_once
from dr_validate.errors import DatasetError
from dr_validate.files import write_atomically
from dr_validate.values import TestSet

log = logging.getLogger(__name__)

RULES_VERSION = 1
CORPUS = "corpus.jsonl"


@component
class IrDatasetsDataset(Common):
    """Documents, queries and judgements of `id` (`vaswani`, `msmarco-passage/dev/small`), as `default_text()` of that package.

    The package downloads what it does not have. Documents are written once, as JSON lines, beside their Arrow file.
    """

    id: str = Field(min_length=1)

    def check(self) -> None:
        """See `Dataset.check`."""
        if importlib.util.find_spec("ir_datasets") is None:
            raise DatasetError("dataset=ir_datasets: the package ir_datasets is not installed; pip install ir_datasets")

    def open(self, cache: Path) -> TestSet:
        self.check()
        try:
            found = self._load()
            documents = self._documents(found, cache)
            asked = ({"_id": query.query_id, "text": query.default_text()} for query in found.queries_iter())
            judged = ({"query_id": q.query_id, "doc_id": q.doc_id, "score": q.relevance} for q in found.qrels_iter())
            queries, qrels = "".join(_lines(asked)), "".join(_lines(judged))
        except (OSError, RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            raise DatasetError(
                f"dataset.id: ir_datasets cannot give {self.id!r} "
                f"({type(error).__name__}: {error}); check the network and that this collection needs no agreement"
            ) from error
        name = self.name or folder_name(Path(self.id.replace("/", "-")))
        asked_in, judged_in = _kept(queries, "queries", cache), _kept(qrels, "qrels", cache)
        parts = entry_part([documents], DOCUMENT), entry_part([asked_in], QUERY), judgement_part([judged_in])
        return open_test_set(self.collected(name, *parts), cache)

    def _load(self) -> Any:
        import ir_datasets

        try:
            found: Any = ir_datasets.load(self.id)
        except KeyError as error:
            raise DatasetError(f"dataset.id: ir_datasets has no {self.id!r}; `ir_datasets list` lists its ids") from error
        if lacking := [part for part in ("docs", "queries", "qrels") if not getattr(found, f"has_{part}")()]:
            inside = sorted(name for name in ir_datasets.registry if name.startswith(f"{self.id}/"))
            among = f"; part of it are {', '.join(inside[:5])}" if inside else ""
            raise DatasetError(f"dataset.id: {self.id} of ir_datasets has no {' and no '.join(lacking)}{among}")
        return found

    def _documents(self, found: Any, cache: Path) -> Path:
        import ir_datasets

        parent = ir_datasets.docs_parent_id(self.id)  # subsets of one corpus share its files
        known = {"id": parent, "package": ir_datasets.__version__, "files": _state(found), "rules": RULES_VERSION}
        folder = cache / f"ir_datasets-{fingerprint(known)}"

        def write(fresh: Path) -> None:
            log.info("reading the documents of %s (once)", parent)
            with (fresh / CORPUS).open("w", encoding="utf-8") as stream:
                for line in _lines({"_id": doc.doc_id, "text": doc.default_text().strip()} for doc in found.docs_iter()):
                    stream.write(line)

        made_once(folder, RULES_VERSION, write)
        return folder / CORPUS


def _lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=True) + "\n" for row in rows)


def _kept(content: str, part: str, cache: Path) -> Path:
    """A small part, read anew each time, in a file named by what is in it."""
    file = cache / f"ir_datasets-{part}-{fingerprint({'content': content})}.jsonl"
    if not file.exists():
        write_atomically(file, content)
    return file


def _state(found: Any) -> list[list[Any]]:
    """Of the file of the documents, where the package says which it is: one's own collection may be written anew."""
    try:
        places = found.docs_path(force=False)
        files = [Path(place) for place in (places if isinstance(places, list | tuple) else [places])]
        stats = [file.stat() for file in files]
    except (AttributeError, NotImplementedError, TypeError, OSError):
        return []
    return [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in zip(files, stats, strict=True)]
