"""The reference training on hand-made data: its batches, its loss, and a few steps of it."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dr_validate.source.folder import FolderSource
from scripts.train_reference import TasBatches, TasLoss, mined, pairs, read


@pytest.fixture
def tevatron(tmp_path: Path) -> Path:
    """Two queries in Tevatron's training format; the second has no negatives."""
    passage = {"docid": "1", "title": "A", "text": "b"}
    other = {"docid": "2", "title": "", "text": "c"}
    rows = [
        {"query_id": "q1", "query": "one", "positive_passages": [passage], "negative_passages": [other]},
        {"query_id": "q2", "query": "two", "positive_passages": [other], "negative_passages": []},
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_tevatrons_format_is_read_and_queries_without_negatives_get_the_teachers_top(tevatron: Path) -> None:
    queries, texts, positives, negatives = read(str(tevatron), 0)
    assert (queries, texts, positives, negatives) == (["one", "two"], ["A b", "c"], [[0], [1]], [[1], []])
    vectors = {"q": np.eye(2, dtype=np.float32), "d": np.eye(2, dtype=np.float32)}
    assert mined(vectors, positives, negatives, 1) == [[1], [0]]


def test_queries_with_fewer_than_two_pairs_are_dropped() -> None:
    vectors = {"q": np.ones((2, 1), np.float32), "d": np.array([[3], [1], [0]], np.float32)}
    assert pairs(vectors, [[0], [0]], [[1], [1, 2]]) == [(1, 0, 1, 2.0), (1, 0, 2, 3.0)]


def test_a_batch_is_of_one_topic_filled_up_from_others_and_has_a_query_once() -> None:
    rows = [(query, 0, n, float(n)) for query in range(20) for n in range(3)]
    clusters = [0] * 3 + [1] * 17
    batches = TasBatches(rows, 8, True, rows=rows, clusters=clusters, seed=1)
    seen: Counter[str] = Counter()
    for epoch in range(200):
        batches.set_epoch(epoch)
        for batch in batches:
            queries = [rows[place][0] for place in batch]
            assert len(set(queries)) == 8
            of_small = sum(clusters[query] == 0 for query in queries)
            assert of_small in (0, 3)
            seen["small" if of_small else "large"] += 1
    assert 0.4 < seen["small"] / seen.total() < 0.6  # clusters are drawn, not queries


def test_margins_are_drawn_by_bins_of_equal_width_and_equal_ones_do_no_harm() -> None:
    rows = [(0, 0, n, 0.001 * n) for n in range(99)] + [(0, 0, 99, 10.0)] + [(1, 0, n, 5.0) for n in range(3)]
    batches = TasBatches(rows, 2, True, rows=rows, clusters=[0, 0], seed=1)
    drawn: Counter[int] = Counter()
    for epoch in range(400):
        batches.set_epoch(epoch)
        drawn.update(place for batch in batches for place in batch)
    assert 150 < drawn[99] < 250  # one of two bins, though one of a hundred pairs
    assert sum(drawn[place] for place in (100, 101, 102)) == 400


def test_the_loss_is_margin_mse_and_half_of_the_same_over_the_texts_of_other_queries() -> None:
    chance = random.Random(0)
    q, p, n = ([[chance.random() for _ in range(4)] for _ in range(3)] for _ in range(3))
    vectors = {
        "q": np.array([[1.0], [2.0], [3.0]], np.float32),
        "d": np.array([[chance.random()] for _ in range(6)], np.float32),
    }
    labels = torch.tensor([[0.5, 0, 0, 3], [0.1, 1, 1, 4], [0.7, 2, 2, 5]], dtype=torch.float64)

    def dot(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    pairwise = sum((dot(q[i], p[i]) - dot(q[i], n[i]) - float(labels[i, 0])) ** 2 for i in range(3)) / 3
    in_batch = 0.0
    for mine, first in ((p, 0), (n, 3)):
        for i in range(3):
            for j in set(range(3)) - {i}:
                expected = (vectors["q"][i] * (vectors["d"][i] - vectors["d"][first + j]))[0]
                in_batch += (dot(q[i], p[i]) - dot(q[i], mine[j]) - float(expected)) ** 2 / 6
    loss = TasLoss(lambda one: {"sentence_embedding": one}, vectors, 0.75)
    found = loss([torch.tensor(side) for side in (q, p, n)], labels)
    assert float(found) == pytest.approx(pairwise + 0.75 * 0.5 * in_batch, rel=1e-5)


def test_gradient_caching_gives_the_gradients_of_the_whole_batch() -> None:
    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(9, 4)

        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            sizes.append(len(features["input_ids"]))
            return {"sentence_embedding": self.words(features["input_ids"]).tanh().sum(1)}

    chance = np.random.default_rng(0)
    vectors = {"q": chance.random((5, 3), np.float32), "d": chance.random((10, 3), np.float32)}
    labels = torch.tensor([[0.1 * n, n, n, 5 + n] for n in range(5)], dtype=torch.float64)
    sides = [torch.from_numpy(chance.integers(0, 9, (5, 6))) for _ in range(3)]
    found: list[tuple[float, torch.Tensor]] = []
    for mini_batch in (0, 2):
        torch.manual_seed(1)
        model, sizes = Encoder(), list[int]()
        features = [{"input_ids": side, "attention_mask": torch.ones_like(side)} for side in sides]
        loss = TasLoss(model, vectors, 0.75, mini_batch)(features, labels)
        (3 * loss).backward()  # as a scaler does it
        assert max(sizes) == (mini_batch or 5)
        gradients = model.words.weight.grad
        assert gradients is not None
        found.append((float(loss.detach()), gradients))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5, rtol=1e-5)
    assert float(found[0][1].abs().max()) > 0.1


@pytest.mark.parametrize("loss", ["tas", "contrastive"])
def test_a_few_steps_of_it_leave_checkpoints(tmp_path: Path, write_checkpoint: Callable[..., Path], loss: str) -> None:
    from hydra import compose, initialize_config_dir
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    from scripts import train_reference

    base = write_checkpoint(tmp_path / "base")
    transformer = Transformer(str(base))
    SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu").save_pretrained(str(tmp_path / "teacher"))
    words = ["compiler", "socket", "thread", "matrix", "parser", "decimal"]
    rows: list[dict[str, Any]] = [
        {"query": word, "positive_passages": [{"text": f"{word} {n}"} for n in range(2)], "negative_passages": []}
        for word in words
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = [
        f"data={tmp_path / 'train.jsonl'}",
        f"student={base}",
        f"teacher={tmp_path / 'teacher'}",
        f"out={tmp_path / 'out'}",
    ]
    given = [f"loss={loss}", "clusters=2", "mine=2", "batch_size=4", "mini_batch=3", "steps=2", "save_steps=1"]
    given += ["max_length=16", "student_layers=1"]
    with initialize_config_dir(version_base="1.3", config_dir=str(Path(train_reference.__file__).parent / "conf")):
        config = compose("train_reference", [*places, *given])
    train_reference.train(config)
    listing = FolderSource(path=tmp_path / "out").list(tmp_path / "state")
    assert [one.step for one in listing.checkpoints][:2] == [1, 2]
    assert json.loads((tmp_path / "out" / "checkpoint-2" / "config.json").read_text())["num_hidden_layers"] == 1
