"""Vectors of the whole corpus by every checkpoint: from a folder of arrays, or from where dr_validate has kept them."""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dr_validate.component import fingerprint
from dr_validate.config import Run, build, conf_dir
from dr_validate.errors import SetupError
from dr_validate.files import name_of_digest
from dr_validate.ledger.ledger import Ledger
from dr_validate.store.embeddings import FORMAT
from dr_validate.store.leased_cache import LeasedCache
from dr_validate.store.vector_file import VectorFile
from dr_validate.values import Checkpoint, Float32, Int64, TestSet
from dr_validate.worker.encoding import remembered_encoder, vectors_key


class Encoded(Protocol):
    """One checkpoint's vectors."""

    @property
    def name(self) -> str: ...

    @property
    def queries(self) -> Float32:
        """(num_queries, dim)."""
        ...

    def documents(self, ordinals: Int64) -> Float32:
        """(len(ordinals), dim); ordinals ascend."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The `Encoded` protocol over `NAME.d.npy` and `NAME.q.npy`, float16 or float32; documents stay on disk."""

    name: str
    queries: Float32
    array: NDArray[Any]  # (num_documents, dim)

    def documents(self, ordinals: Int64) -> Float32:
        return np.asarray(self.array[ordinals], dtype=np.float32)


def in_folder(folder: Path, suffix: str) -> list[str]:
    """Names that have vectors of both sides, in natural order: checkpoint-90 before checkpoint-100."""
    names = [path.name.removesuffix(f".{suffix}d.npy") for path in folder.glob(f"*.{suffix}d.npy")]
    found = [name for name in names if "." not in name and (folder / f"{name}.{suffix}q.npy").is_file()]
    return sorted(found, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def read_stored(folder: Path, name: str, suffix: str, test_set: TestSet) -> Stored:
    """Raises SetupError where the arrays are not as long as the collection; it may have fewer queries: the first ones."""
    documents = np.load(folder / f"{name}.{suffix}d.npy", mmap_mode="r")
    queries = np.load(folder / f"{name}.{suffix}q.npy")[: len(test_set.query_ids)].astype(np.float32)
    if (len(documents), len(queries)) != (len(test_set.corpus), len(test_set.query_ids)):
        raise SetupError(
            f"{folder / name}: got vectors of {len(documents)} documents and {len(queries)} queries, but {test_set.name} has "
            f"{len(test_set.corpus)} and {len(test_set.query_ids)}; is it of another collection (--collection, --suffix)?"
        )
    return Stored(name=name, queries=queries, array=documents)


def chosen(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Those that match a pattern (`c*`), in their own order. Raises SetupError for a pattern that matches none."""
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise SetupError(f"--checkpoints: {pattern!r} matches none of {list(names)}")
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def configured(state_dir: Path, overrides: Sequence[str]) -> Run:
    """What `python -m dr_validate state_dir=... OVERRIDES` would run. Raises SetupError in the words of that command."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from dr_validate.cli.grammar import NOT_COMPOSED, explain_grammar
    from dr_validate.cli.overrides import explain

    needed = [f"state_dir={state_dir}", "source=folder", "source.path=.", "tracker=none"]
    if mistake := explain_grammar(overrides):
        raise SetupError(mistake)
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            plain = OmegaConf.to_container(compose("config", [*needed, *overrides]), resolve=True)
    except NOT_COMPOSED as error:
        raise SetupError(explain(error, [*needed, *overrides])) from error
    assert isinstance(plain, dict)
    return build({str(key): value for key, value in plain.items()})


def encoded_in_full(state_dir: Path, test_set: TestSet) -> list[Checkpoint]:
    """Checkpoints that were validated on all documents of the test set, by ascending step. Raises SetupError if none was."""
    with Ledger(state_dir / "ledger.db", read_only=True) as ledger:
        specs = [spec for spec, what in ledger.specs().items() if what.get("dataset_fingerprint") == test_set.fingerprint]
        reports = [report for spec in specs for report in ledger.reports(spec, ["done"])]
    found = {r.checkpoint.digest: r.checkpoint for r in reports if r.corpus["encoded"] == r.corpus["documents"]}
    if not found:
        raise SetupError(
            f"{state_dir}: no checkpoint was encoded in full over {test_set.name}; run `python -m dr_validate ... sampler=full "
            f"watch.mode=once state_dir={state_dir}` first"
        )
    return sorted(found.values(), key=lambda checkpoint: (checkpoint.step, checkpoint.label))


class Kept:
    """The `Encoded` protocol over one checkpoint's folder of the store; nothing in it is changed."""

    def __init__(self, name: str, files: Mapping[str, VectorFile], num_queries: int) -> None:
        self.name, self._documents = name, files["document"]
        self.queries = self._all(files["query"], np.arange(num_queries), "queries")

    def documents(self, ordinals: Int64) -> Float32:
        return self._all(self._documents, ordinals, "documents")

    def _all(self, file: VectorFile, ordinals: Int64, what: str) -> Float32:
        found = file.read(ordinals)
        if not found.mask.all():
            raise SetupError(
                f"{self.name}: vectors of {int((~found.mask).sum())} of {len(ordinals)} {what} are not kept; raise "
                "store.embeddings_max_gib and run it with sampler=full again, or leave it out (--checkpoints)"
            )
        return found.vectors


@contextmanager
def kept_vectors(run: Run, test_set: TestSet, checkpoints: Sequence[Checkpoint], num_queries: int) -> Iterator[list[Encoded]]:
    """Of the first `num_queries` queries and all documents; nobody removes them within the block. Raises SetupError where
    there are none under these encoder settings."""
    # The store itself would make room, make folders and write: a study only reads.
    cache = LeasedCache(run.settings.state_dir / "embeddings")
    counts = {"query": len(test_set.query_ids), "document": len(test_set.corpus)}
    with ExitStack() as stack:
        found: list[Encoded] = []
        for checkpoint in checkpoints:
            read = remembered_encoder(run, checkpoint.digest)
            key = {"format": FORMAT, **vectors_key(read, test_set)} if read else {}
            folder = stack.enter_context(cache.lease(f"{name_of_digest(checkpoint.digest)}-{fingerprint(key)}"))
            if not read or not folder.is_dir():
                raise SetupError(
                    f"{cache.root}: no vectors of {checkpoint.label} under these encoder settings; state the encoder.* keys "
                    "that the full run had, or leave it out (--checkpoints)"
                )
            files = {
                side: stack.enter_context(closing(VectorFile(folder / side, count, "float32")))
                for side, count in counts.items()
            }
            found.append(Kept(checkpoint.label, files, num_queries))
        yield found
