"""Checkpoints to vectors of everything, through the project's own encoder and index."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dr_validate.encoder.auto import AutoEncoder
from dr_validate.files import atomic_file
from dr_validate.index.torch import TorchIndex
from dr_validate.stages import Model
from dr_validate.values import Float32, Side, TokenBlock, TopK
from scripts.research.series.docstrings import Collection
from scripts.research.study.collection import MemoryCorpus

BLOCK = 4096  # documents between two looks


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """One checkpoint's, rounded to float16 as they are stored."""

    queries: Float32  # (num_queries, dim)
    documents: Float32  # (num_documents, dim)


class Everything:
    """A collection to encode, with its tokens: checkpoints that share a tokenizer share them."""

    def __init__(self, collection: Collection, encoder: AutoEncoder) -> None:
        self._encoder = encoder
        self._texts: Mapping[Side, Sequence[str]] = {
            "query": [query for query, _ in collection.test],
            "document": collection.documents,
        }
        self._tokens: dict[tuple[Side, str], TokenBlock] = {}
        self._gold = np.array([document for _, document in collection.test], dtype=np.int64)
        self._tie_rank = MemoryCorpus(collection.documents).tie_rank

    def encode(self, checkpoint: Path) -> Vectors:
        """Raises CheckpointError for a folder that the encoder refuses."""
        loaded: AbstractContextManager[Model] = self._encoder.load(checkpoint, "cpu")
        with loaded as model:
            queries, documents = (self._side(model, side) for side in ("query", "document"))
        return Vectors(queries=queries, documents=documents)

    def search(self, vectors: Vectors, depth: int) -> TopK:
        """Exact, over all documents; ties as in the study."""
        search = TorchIndex().open(vectors.queries, depth, self._tie_rank, "cpu")
        for first in range(0, len(vectors.documents), BLOCK):
            block = vectors.documents[first : first + BLOCK]
            search.add(block, np.arange(first, first + len(block), dtype=np.int64))
        return search.top()

    def mrr_at_10(self, found: TopK) -> float:
        """Of all queries, each with its one relevant document."""
        hits = found.documents[:, :10] == self._gold[:, None]
        return float((hits / np.arange(1, hits.shape[1] + 1)).sum(1).mean())

    def _side(self, model: Model, side: Side) -> Float32:
        tokenizer = model.tokenizer(side)
        if (side, tokenizer.key) not in self._tokens:
            self._tokens[side, tokenizer.key] = tokenizer.tokenize(self._texts[side])
        return np.asarray(model.encode(self._tokens[side, tokenizer.key], side)).astype(np.float16).astype(np.float32)


def write_vectors(vectors: Vectors, folder: Path, name: str) -> None:
    """`NAME.d.npy` and `NAME.q.npy`, as `scripts/research/fidelity_study.py --vectors` reads them."""
    for letter, array in (("d", vectors.documents), ("q", vectors.queries)):
        with atomic_file(folder / f"{name}.{letter}.npy") as stream:
            np.save(stream, array.astype(np.float16))


def write_run(found: TopK, file: Path) -> None:
    """As a TREC run, which a pool may be made of: ids are ordinals."""
    with atomic_file(file) as stream:
        for query, (documents, scores) in enumerate(zip(found.documents.tolist(), found.scores.tolist(), strict=True)):
            rows = zip(documents, scores, strict=True)
            lines = [f"{query} Q0 {document} {rank} {score:.6f} strong\n" for rank, (document, score) in enumerate(rows, 1)]
            stream.write("".join(lines).encode())
