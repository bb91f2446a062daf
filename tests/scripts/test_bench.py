"""scripts/bench.py: every contender does the same work, and what is said of it is counted right."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.research.benchmark.idle import idle_and_whole
from scripts.research.benchmark.job import Job, read_job, read_rows, write_checkpoints, write_part, write_ready
from scripts.research.benchmark.meter import Meter
from scripts.research.benchmark.table import Measured, Setting, gflop, phases, whole

LENGTH = 24  # of documents, and with special tokens more than any has


@pytest.fixture
def job(tmp_path: Path, collection: Path, write_checkpoint: Callable[..., Path]) -> Job:
    """One tiny checkpoint on 48 documents, written and read again as the processes of the script do."""
    corpus = collection / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("number 47", "number 47 " * 9))  # one text is longer than the others
    checkpoints = write_checkpoints(write_checkpoint(tmp_path / "model"), tmp_path / "checkpoints", 1)
    made = Job(
        collection=collection, ready=tmp_path / "ready", checkpoints=checkpoints, query_length=16, document_length=LENGTH
    )
    write_ready(made)
    made.save(tmp_path / "job.json")
    return read_job(tmp_path / "job.json")


def test_every_contender_gets_the_same_metric_from_the_same_real_tokens(job: Job) -> None:
    from scripts.research.benchmark.padded import asyncval, tevatron
    from scripts.research.benchmark.phases import pipeline

    stated = ["encoder.pooling=mean", "encoder.normalize=true", "tracker=none", "watch.mode=once"]
    stated += [f"source.path={job.checkpoints[0].parent}", "dataset=beir", f"dataset.path={job.collection}"]
    meters = [Meter(), Meter(), Meter()]
    values = [asyncval(job, meters[0]), tevatron(job, meters[1]), pipeline(job, meters[2], stated)]
    assert 0 < values[0] < 1
    assert values == pytest.approx([values[0]] * 3, abs=1e-6)
    real, computed = ([meter.tokens[name] for meter in meters] for name in ("real", "computed"))
    assert len(set(real)) == 1
    assert computed[0] == 48 * LENGTH + 12 * 16
    assert computed[0] > computed[1] > computed[2] == real[0]
    assert all(meter.cpu["encode"] > 0 and meter.cpu["load"] > 0 for meter in meters)


def test_a_part_keeps_every_judged_document_and_is_the_same_for_the_same_seed(wide_collection: Path, tmp_path: Path) -> None:
    sizes = [write_part(wide_collection, tmp_path / str(n), 30, seed) for n, seed in enumerate((1, 1, 2))]
    assert sizes == [(30, 12)] * 3
    kept = [[row["_id"] for row in read_rows(tmp_path / str(n) / "corpus.jsonl")] for n in range(3)]
    assert kept[0] == kept[1] != kept[2]
    assert all({f"d{n}" for n in range(12)} <= set(ids) for ids in kept)
    assert write_part(wide_collection, tmp_path / "all", 0, 1) == (200, 12)


def test_copies_of_a_checkpoint_have_weights_of_their_own(tmp_path: Path, write_checkpoint: Callable[..., Path]) -> None:
    copies = write_checkpoints(write_checkpoint(tmp_path / "model"), tmp_path / "copies", 3)
    assert [copy.name for copy in copies] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert len({(copy / "model.safetensors").read_bytes() for copy in copies}) == 3


def test_the_work_of_a_text_is_what_torch_counts() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import BertConfig, BertModel

    config = BertConfig(
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=2,
        vocab_size=50,
    )
    config._attn_implementation = "eager"  # the counter does not know the fused one
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        BertModel(config, add_pooling_layer=False).eval()(input_ids=torch.ones(1, 7, dtype=torch.int64))
    numbers = {"layers": 2, "width": 32, "inner": 48}
    assert gflop({"real": 7, "squares": 49}, numbers) * 1e9 == pytest.approx(counter.get_total_flops())


def test_a_second_counts_in_the_innermost_phase_alone() -> None:
    meter = Meter()
    with meter.phase("outer"), meter.phase("inner"):
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
    assert meter.cpu["inner"] >= 0.05 > 10 * meter.cpu["outer"]


def test_the_table_compares_with_the_peers_and_with_the_fastest_product() -> None:
    cpu = {"start": 1.0, "load": 0.5, "encode": 4.0, "total": 6.0}
    meter = {"cpu": cpu, "device": {}, "tokens": {"real": 1_000_000, "squares": 0, "computed": 1_500_000}}
    rows = [
        Measured(label="peer", documents=100, cpu_s=20.0, wall_s=12.0, peak_mib=20.0, ndcg=0.5),
        Measured(label="ours", documents=100, cpu_s=5.0, wall_s=4.0, peak_mib=10.0, ndcg=0.5, meter=meter),
    ]
    products = {"float32, torch": {"cpu": 30.0, "wall": 60.0}, "float32, oneDNN": {"cpu": 50.0, "wall": 90.0}}
    numbers = {"layers": 1, "width": 100, "inner": 50}
    setting = Setting(bases=("peer",), products=products, numbers=numbers)
    assert "| ours | 100 | 5.0 | 4.0 | 20 | 25 | 4.0x, 3.0x | 10 | 0.500000 |" in whole(rows, setting)
    # 1e6 tokens of 100,000 operations each are 100 GFLOP in 4 CPU seconds: 25 of the 50 that the product makes.
    line = phases(rows, setting).splitlines()[-1]
    assert line == "| ours | 1.00 | 0.50 | 0.00 | 4.00 | 0.00 | 0.00 | 0.50 | 1.50 | 25 | 50% |"


def test_idle_is_what_is_neither_encoding_nor_searching_from_one_checkpoint_to_the_next() -> None:
    log = (
        "2026-11-21 23:59:50,000 INFO    validated checkpoint-1: mrr@10 0.1 (9 documents, 12.0 s)\n"
        "2026-11-21 23:59:50,100 INFO    linear layers of 9x9: oneDNN is 1.1 times as fast here\n"
        "2026-11-22 00:00:01,500 INFO    validated checkpoint-2: mrr@10 0.2 (9 documents, 11.0 s)\n"
        "2026-11-22 00:00:12,000 INFO    validated checkpoint-3: mrr@10 0.3 (9 documents, 10.0 s)\n"
    )
    encode = {"checkpoint-1": 8.0, "checkpoint-2": 9.5, "checkpoint-3": 8.0}
    reports = [{"checkpoint": {"name": name}, "seconds": {"encode": s, "search": 0.5}} for name, s in encode.items()]
    idle = idle_and_whole(log, reports)
    assert idle == pytest.approx(((1.5 + 2.0) / 2, 11.0))
    assert idle_and_whole(log.splitlines()[0], reports[:1]) is None
    rows = [Measured(label=label, documents=9, cpu_s=9.0, wall_s=9.0, peak_mib=9.0, ndcg=0.5) for label in ("peer", "ours")]
    text = whole([rows[0], dataclasses.replace(rows[1], idle=idle)], Setting(bases=(), products={}, numbers=None))
    assert [line.split("|")[-2].strip() for line in text.splitlines()] == [
        "idle between two checkpoints",
        "---",
        "-",
        "1.8 s, 16%",
    ]
