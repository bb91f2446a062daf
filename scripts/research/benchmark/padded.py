"""How Asyncval and Tevatron work, re-created in a few lines each: transformers' model as it is, batches of 64 in corpus order.

What they cost beside that is left out, in their favour: Asyncval's ten seconds of sleep in a cycle, Tevatron's three processes
and its files between them. Mean pooling and unit vectors, because that is what the checkpoints compared here want.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytrec_eval
import torch
from transformers import AutoModel, AutoTokenizer

from scripts.research.benchmark.job import TOP_K, Job, read_qrels, read_texts
from scripts.research.benchmark.meter import Meter

BATCH = 64


class PlainModel:
    """transformers' model, every text of a batch padded to the same length."""

    def __init__(self, folder: Path, device: str, meter: Meter) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        model: Any = AutoModel.from_pretrained(str(folder), local_files_only=True)
        self._model = model.eval().to(device)
        self._device, self._meter = device, meter

    @torch.no_grad()
    def encode(self, texts: Sequence[Sequence[int]], length: int) -> torch.Tensor:
        """(len(texts), dim) on the processor; `length` is what they are padded to."""
        ids = np.full((len(texts), length), self.tokenizer.pad_token_id)
        mask = np.zeros((len(texts), length), dtype=np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)], mask[row, : len(text)] = text, 1
        self._meter.count([len(text) for text in texts], ids.size)
        inputs, inside = torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device)
        hidden = self._model(input_ids=inputs, attention_mask=inside).last_hidden_state
        weights = inside[:, :, None].to(hidden.dtype)
        means = (hidden * weights).sum(1) / weights.sum(1)
        vectors: torch.Tensor = torch.nn.functional.normalize(means, dim=1).cpu()
        self._meter.mark("first batch")
        return vectors


def asyncval(job: Job, meter: Meter) -> float:
    """Token ids ready on disk; each text padded to the maximum length. nDCG@10 of the last checkpoint."""
    qrels = read_qrels(job.collection)
    for folder in job.checkpoints:
        with meter.phase("load"):
            model = PlainModel(folder, job.device, meter)
        found = {}
        for name, length in job.sides:
            ids, vectors = [], []
            for rows in _batches(_ready(job.ready / f"{name}.jsonl")):
                with meter.phase("encode"):
                    vectors.append(model.encode([row["text"] for row in rows], length))
                ids += [row["text_id"] for row in rows]
            found[name] = ids, torch.cat(vectors).numpy()
        score = _judge(found, qrels, meter)
    return score


def tevatron(job: Job, meter: Meter) -> float:
    """Texts tokenized a batch at a time; padded to the longest of an unsorted batch. nDCG@10 of the last checkpoint."""
    qrels = read_qrels(job.collection)
    for folder in job.checkpoints:
        with meter.phase("load"):
            model = PlainModel(folder, job.device, meter)
        found = {}
        for name, length in job.sides:
            texts = read_texts(job.collection / f"{name}.jsonl")
            vectors = []
            for rows in _batches(texts.values()):
                with meter.phase("tokenize"):
                    batch = model.tokenizer(rows, truncation=True, max_length=length)["input_ids"]
                with meter.phase("encode"):
                    vectors.append(model.encode(batch, max(map(len, batch))))
            found[name] = list(texts), torch.cat(vectors).numpy()
        score = _judge(found, qrels, meter)
    return score


def _batches(rows: Any) -> Iterator[list[Any]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, BATCH)):
        yield batch


def _ready(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as stream:
        yield from map(json.loads, stream)


def _judge(found: Mapping[str, Any], qrels: Mapping[str, Mapping[str, int]], meter: Meter) -> float:
    """nDCG@10: one flat index, queries in batches, a dictionary of strings for trec_eval."""
    query_ids, queries = found["queries"]
    document_ids, documents = found["corpus"]
    with meter.phase("search"):
        index = faiss.IndexFlatIP(documents.shape[1])
        index.add(documents)
        parts = [index.search(queries[n : n + BATCH], TOP_K) for n in range(0, len(queries), BATCH)]
    with meter.phase("score"):
        rows = zip(query_ids, *(np.concatenate(arrays) for arrays in zip(*parts, strict=True)), strict=True)
        run = {
            query: {document_ids[n]: float(score) for score, n in zip(scores, places, strict=True) if n >= 0}
            for query, scores, places in rows
        }
        values = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10"}).evaluate(run)
    return float(np.mean([value["ndcg_cut_10"] for value in values.values()]))
