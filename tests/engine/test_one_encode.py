"""One encode serves every strategy: whole pipelines on a shared state_dir, with a real encoder."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from dr_validate.errors import Preempted
from dr_validate.values import Checkpoint, Report
from dr_validate.worker.pipeline import Pipeline
from tests.engine.controls import GivesWay, Unhurried

OpenPipeline = Callable[..., Pipeline]
Checkpoints = Callable[[int], Sequence[tuple[Checkpoint, Path]]]
NUM_DOCUMENTS = 200
STRATEGIES = [
    ["sampler=random", "sampler.fraction=0.1"],
    ["sampler=random", "sampler.fraction=0.3"],
    ["sampler=random", "sampler.fraction=0.2", "seed=5"],
    ["sampler=random", "sampler.fraction=0.2", "seed=6", "index=torch"],
    ["sampler=run_pool", "sampler.depth=5"],
    ["sampler=random", "sampler.fraction=0.1", "top_k=120"],  # another spec, the documents of the first
]


def validated(pipeline: Pipeline, one: tuple[Checkpoint, Path], *, full: bool = False) -> Report:
    return pipeline.validate(*one, full=full, control=Unhurried())


def num_kept(state_dir: Path) -> int:
    """Documents that were ever encoded and kept: each took 8 bytes of a records file, after a header of 16."""
    return sum((path.stat().st_size - 16) // 8 for path in state_dir.rglob("document.records"))


def test_six_strategies_over_three_checkpoints_encode_the_union_of_their_samples_once(
    open_pipeline: OpenPipeline, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    known, reports, samples = checkpoints(3), [], []
    for strategy in STRATEGIES:
        pipeline = open_pipeline(*strategy)
        reports.append([validated(pipeline, one) for one in known])
        samples.append(pipeline.samples.sampled.sample.ordinals)
    union = np.unique(np.concatenate(samples))
    assert sum(map(len, samples)) > 1.5 * len(union)
    assert sum(report.corpus["encoded_now"] for job in reports for report in job) == 3 * len(union)
    assert num_kept(tmp_path / "state") == 3 * len(union)
    for job, sample in zip(reports, samples, strict=True):
        assert [report.corpus["encoded"] for report in job] == [len(sample)] * 3
    for last, first in zip(reports[-1], reports[0], strict=True):
        assert last.seconds["load"] == last.seconds["tokenize"] == last.seconds["encode"] == 0
        assert (last.metrics, last.notes) == (first.metrics, first.notes)
    assert len({tuple(e.value for e in report.metrics.values()) for report in reports[1]}) > 1  # the checkpoints differ


def test_kept_vectors_do_not_change_a_report_and_the_weights_are_not_even_there(
    open_pipeline: OpenPipeline, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    strategy = ["sampler=random", "sampler.fraction=0.3", "write_ranking=true"]
    (one,) = checkpoints(1)
    rankings = []
    for more in (["store.embeddings_max_gib=0"], [], ["index=torch"]):  # the same spec: exact indexes rank alike
        folder = tmp_path / "nothing here" if more == ["index=torch"] else one[1]
        report = validated(open_pipeline(*strategy, *more), (one[0], folder))
        (path,) = (tmp_path / "state" / "rankings").rglob("*.trec")
        estimate = {name: value for name, value in report.notes["estimate"].items() if name != "as_of"}  # a moment
        notes = {**report.notes, "estimate": estimate}
        rankings.append((path.read_text(), report.metrics, notes, report.corpus["encoded"]))
        path.unlink()
    assert report.corpus["encoded_now"] == 0
    assert rankings[0] == rankings[1] == rankings[2]


@pytest.mark.parametrize("max_gib", [20, 0])
def test_a_baseline_builds_on_the_sample_gives_way_and_goes_on_without_encoding_anything_again(
    open_pipeline: OpenPipeline, checkpoints: Checkpoints, tmp_path: Path, max_gib: float
) -> None:
    strategy = ["sampler=random", "sampler.fraction=0.3", "engine.slice_documents=16", "block_documents=64"]
    first, *others = checkpoints(4)
    pipeline = open_pipeline(*strategy, f"store.embeddings_max_gib={max_gib}")
    assert validated(pipeline, first).corpus["encoded_now"] == 60
    done = 0
    for turn, other in enumerate(others):
        control = GivesWay(slices=turn + 1)
        with pytest.raises(Preempted):
            pipeline.validate(*first, full=True, control=control)
        assert control.seen[0][1] == done + 16  # it goes on where it was, and stops at the next slice
        done = control.seen[-1][1]
        assert len(control.seen) == turn + 1
        assert validated(pipeline, other).corpus["encoded_now"] == 60
    baseline = validated(pipeline, first, full=True)
    undisturbed = open_pipeline(*strategy, f"state_dir={tmp_path / 'other'}")
    expected = validated(undisturbed, first, full=True)
    in_sample = int((pipeline.samples.sampled.sample.ordinals >= done).sum())
    assert baseline.corpus["encoded_now"] == NUM_DOCUMENTS - done - (in_sample if max_gib else 0)
    assert expected.corpus["encoded_now"] == NUM_DOCUMENTS
    assert baseline.metrics == expected.metrics
    if max_gib:
        assert num_kept(tmp_path / "state") == NUM_DOCUMENTS + 3 * 60  # nothing was encoded twice, and nothing lost


def test_another_collection_of_the_same_ids_and_size_is_encoded_anew(
    open_pipeline: OpenPipeline, checkpoints: Checkpoints, wide_collection: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(wide_collection, other)
    lines = (other / "corpus.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    turned = [{**row, "text": text["text"]} for row, text in zip(rows, reversed(rows), strict=True)]
    (other / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turned))
    (one,) = checkpoints(1)
    strategy = ["sampler=random", "sampler.fraction=0.3"]
    first = validated(open_pipeline(*strategy), one)
    second = validated(open_pipeline(*strategy, f"dataset.path={other}"), one)
    alone = validated(open_pipeline(*strategy, f"dataset.path={other}", f"state_dir={tmp_path / 'fresh'}"), one)
    assert [report.corpus["encoded_now"] for report in (first, second, alone)] == [60, 60, 60]
    assert second.metrics == alone.metrics != first.metrics
    assert second.spec == alone.spec != first.spec


def test_another_setting_encodes_anew_and_another_way_to_state_the_same_does_not(
    open_pipeline: OpenPipeline, checkpoints: Checkpoints
) -> None:
    (one,) = checkpoints(1)
    first = validated(open_pipeline(), one)
    assert first.corpus["encoded_now"] == NUM_DOCUMENTS
    for other in ("encoder.pooling=cls", "encoder.normalize=false", "encoder.document_max_length=4", "encoder.query_prefix=a"):
        report = validated(open_pipeline(other), one)
        assert report.corpus["encoded_now"] == NUM_DOCUMENTS, other
        assert report.spec != first.spec
    # the tokenizer says 32 by itself, and has no prefix
    same = validated(open_pipeline("encoder.document_max_length=32", "encoder.query_prefix=''"), one)
    assert same.corpus["encoded_now"] == 0
    assert same.metrics == first.metrics and same.spec != first.spec
    assert same.notes["encoder"]["document"]["max_length_from"] == "encoder.document_max_length"


def test_a_warning_of_the_encoder_is_in_the_report_when_all_vectors_are_kept(
    open_pipeline: OpenPipeline, checkpoints: Checkpoints
) -> None:
    (one,) = checkpoints(1)
    for _ in range(2):
        report = validated(open_pipeline("encoder.document_max_length=64"), one)
        (said,) = report.notes["encoder"]["warnings"]
        assert said.startswith("encoder.document_max_length=64 is used, though the checkpoint says 32")
    assert report.corpus["encoded_now"] == 0
    assert "warnings" not in validated(open_pipeline(), one).notes["encoder"]
