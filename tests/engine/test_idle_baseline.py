"""Baselines beside a running training, through the command line: they give way at once, and lose nothing by it."""

import functools
import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.research.sharing import kept
from tests.processes import LIMIT_S, wait_for

NUM_DOCUMENTS, FRACTION, SLICE = 900, 0.05, 4


def write_collection(folder: Path) -> Path:
    chance = random.Random(1)
    (folder / "qrels").mkdir(parents=True)
    words = ["compiler", "socket", "thread", "matrix", "parser", *map(str, range(99))]
    lines = [json.dumps({"_id": f"d{n}", "text": " ".join(chance.choices(words, k=6))}) for n in range(NUM_DOCUMENTS)]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    lines = [json.dumps({"_id": f"q{n}", "text": " ".join(chance.choices(words, k=3))}) for n in range(5)]
    (folder / "queries.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\td{n}\t1\n" for n in range(5)))
    return folder


def has_baselines(state_dir: Path, sample: int, number: int) -> bool:
    """Whether so many checkpoints have more documents than the sample: their baselines have at least begun."""
    return sum(len(ordinals) > sample for ordinals in kept(state_dir).values()) >= number


@pytest.mark.parametrize("at_once", [1, 2])
def test_three_checkpoints_come_during_a_baseline_and_are_validated_first(
    dr_validate: Any, tmp_path: Path, write_checkpoint: Callable[..., Path], at_once: int
) -> None:
    source, sample = tmp_path / "checkpoints", int(NUM_DOCUMENTS * FRACTION)
    for number in range(1, 5):
        write_checkpoint(tmp_path / "ready" / f"checkpoint-{number}", seed=number, step=number)
    source.mkdir()
    state_dir = dr_validate.folder / ".dr_validate"
    process = dr_validate.start(
        *(f"source.path={source}", "dataset=beir", f"dataset.path={write_collection(tmp_path / 'collection')}"),
        *("tracker=none", "encoder.pooling=mean", "encoder.normalize=true", "watch.mode=follow", "watch.poll_s=0.05"),
        *("sampler=random", f"sampler.fraction={FRACTION}", f"watch.at_once={at_once}", f"engine.slice_documents={SLICE}"),
    )
    try:
        for number in range(1, 5):
            shutil.move(tmp_path / "ready" / f"checkpoint-{number}", source / f"checkpoint-{number}")
            wait_for(functools.partial(has_baselines, state_dir, sample, number))
        wait_for(lambda: len(dr_validate.reports()) == 8)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.communicate()
    reports = dr_validate.reports()
    assert [(r["checkpoint"]["step"], r["sampler"]) for r in reports[:4]] == [(n, "random") for n in range(1, 5)]
    assert {r["checkpoint"]["step"] for r in reports[4:] if r["sampler"] == "full"} == {1, 2, 3, 4}
    assert err.count("is preempted by a new checkpoint") == 3
    assert [r["corpus"]["encoded_now"] for r in reports[:4]] == [sample] * 4
    for ordinals in kept(state_dir).values():
        assert sorted(ordinals) == list(range(NUM_DOCUMENTS))  # each document once: nothing lost, nothing made twice
    last = {r["checkpoint"]["step"]: r["corpus"]["encoded_now"] for r in reports[4:]}
    assert last[4] == NUM_DOCUMENTS - sample
    assert all(last[number] < NUM_DOCUMENTS - sample for number in (1, 2, 3))  # the rest was done before it gave way
