import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dr_validate.errors import SetupError
from dr_validate.pipeline import Pipeline
from dr_validate.sampler.stratified import StratifiedSampler
from dr_validate.values import Report
from tests.small_run import blur, open_pipeline, validated, write_collection

DRIFTING = ["sampler=stratified", "sampler.fraction=0.2", "sampler.epochs=drift", "sampler.drift=0.1"]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("epochs") / "collection")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, write_checkpoint: Callable[..., Path]) -> Sequence[Path]:
    """Checkpoints that get better, one a step."""
    root = tmp_path_factory.mktemp("checkpoints")
    return [blur(write_checkpoint(root / f"c{step}", seed=3), share) for step, share in enumerate([0.8, 0.7, 0.5, 0.2, 0])]


class Story:
    """Checkpoints of steps 1 and 2, a baseline of 2 that lies far from the pool, then 3, a restart, and 4."""

    def __init__(self, collection: Path, state_dir: Path, folders: Sequence[Path]) -> None:
        self.collection, self.state_dir, self.folders = collection, state_dir, folders
        self.pipeline = self.start()
        self.reports = [validated(self.pipeline, folders[step - 1], step) for step in (1, 2)]
        self.baseline = validated(self.pipeline, folders[1], 2, full=True)
        self.reports.append(validated(self.pipeline, folders[2], 3))
        self.written = {path.name: path.read_bytes() for path in self.epochs.iterdir()}
        self.pipeline = self.start()
        self.reports.append(validated(self.pipeline, folders[3], 4))

    def start(self, *overrides: str) -> Pipeline:
        return open_pipeline(self.collection, self.state_dir, *DRIFTING, *overrides)

    @property
    def epochs(self) -> Path:
        return self.state_dir / "epochs"


@pytest.fixture(scope="module")
def story(collection: Path, folders: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Story:
    return Story(collection, tmp_path_factory.mktemp("story") / "state", folders)


def told(report: Report) -> Mapping[str, Any]:
    found: Mapping[str, Any] = report.notes["estimate"]
    return found


def test_a_baseline_far_from_the_pool_opens_an_epoch_with_the_next_checkpoint(story: Story) -> None:
    assert [told(report)["epoch"] for report in story.reports] == [0, 0, 1, 1]
    assert len({report.spec for report in story.reports}) == 1  # the curve goes on
    first, redrawn = story.reports[1], story.reports[2]
    assert first.corpus["encoded"] == redrawn.corpus["encoded"] == 300
    assert told(first)["sample"] != told(redrawn)["sample"]
    assert {path.stem for path in (story.state_dir / "samples").iterdir()} == {told(r)["sample"] for r in (first, redrawn)}
    assert "estimate" not in story.baseline.notes


def test_a_restart_goes_on_in_the_same_epoch(story: Story) -> None:
    before, after = story.reports[2:]
    assert told(before)["sample"] == told(after)["sample"]
    assert {path.name: path.read_bytes() for path in story.epochs.iterdir()} == story.written
    (entry,) = json.loads((story.epochs / f"{before.spec}.json").read_text())
    assert {**entry, "drift": None} == {"number": 1, "anchor": "sha256:0002", "anchor_step": 2, "drift": None}
    assert entry["drift"] > 0.1


def test_checkpoints_of_one_epoch_compare_directly_and_others_through_the_anchor(story: Story) -> None:
    old, new, restarted = story.reports[1:]
    through = {report.checkpoint.step: _through(report) for report in story.reports}
    assert through == {
        1: {},
        2: {"sha256:0001": None},
        3: {"sha256:0002": None, "sha256:0001": "sha256:0002"},
        4: {"sha256:0002": None, "sha256:0003": None, "sha256:0001": "sha256:0002"},
    }
    there, anchor = told(old)["differences"]["sha256:0001"], told(new)["differences"]["sha256:0002"]
    both = told(new)["differences"]["sha256:0001"]  # (3 - 2) in the new epoch, (2 - 1) in the old one
    # Nearly: the old epoch is seen with the baseline that has come since, which corrects 1 and not the 2 that it is of.
    assert both["value"] == pytest.approx(anchor["value"] + there["value"], abs=0.01)
    assert both["high"] - both["value"] == pytest.approx(
        math.hypot(anchor["high"] - anchor["value"], there["high"] - there["value"]), rel=0.6
    )
    assert told(restarted)["anchor"] == "sha256:0002"
    assert told(restarted)["checkpoints"] == 3  # learnt from: those of this epoch, the anchor among them


def _through(report: Report) -> dict[str, str | None]:
    return {digest: found.get("through") for digest, found in told(report)["differences"].items()}


def test_no_baseline_of_an_earlier_or_unknown_checkpoint_opens_an_epoch(story: Story) -> None:
    pipeline = story.start()
    for_step_0 = validated(pipeline, story.folders[4], 0)
    for step in (0, 9):  # one from before the anchor, one never validated on a sample: nothing would compare with it
        validated(pipeline, story.folders[4], step, full=True)
    sampler, sample = pipeline.run.sampler, pipeline.plans.levels(1)[-1].sample
    assert isinstance(sampler, StratifiedSampler)
    for digest in ("sha256:0000", "sha256:0009"):
        assert sampler.drifted(sample, pipeline.plans.baselines.ranking(digest))  # that is not what is missing
    after = validated(pipeline, story.folders[4], 5)
    assert told(for_step_0)["epoch"] == told(after)["epoch"] == 1


def test_what_an_epoch_was_drawn_by_is_not_done_without(story: Story) -> None:
    path = next((story.state_dir / "baselines").rglob("sha256-0002.npz"))
    content = path.read_bytes()
    try:
        path.write_bytes(content[:100])
        with pytest.raises(
            SetupError, match=r"ranking of sha256:0002, by which the sample of epoch 1 is drawn, cannot be read"
        ):
            validated(story.start(), story.folders[4], 5)
    finally:
        path.write_bytes(content)


def test_an_anchor_whose_vectors_are_not_kept_is_left_out_and_that_is_said(
    collection: Path, folders: Sequence[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = open_pipeline(collection, tmp_path, *DRIFTING, "store.embeddings_max_gib=0")
    validated(pipeline, folders[0], 0)
    validated(pipeline, folders[0], 0, full=True)
    with caplog.at_level(logging.WARNING):
        report = validated(pipeline, folders[1], 1)
    assert (told(report)["epoch"], told(report)["anchor"], told(report)["differences"]) == (1, None, {})
    assert "vectors of sha256:0000 are not kept" in caplog.text


def test_levels_go_on_in_a_new_epoch_and_epochs_through_two_anchors(
    collection: Path, folders: Sequence[Path], tmp_path: Path
) -> None:
    early = ["sampler.fraction=0.5", "sampler.precision=1e-9", "sampler.drift=0"]
    pipeline = open_pipeline(collection, tmp_path, *DRIFTING, *early)
    reports = [validated(pipeline, folders[step], step) for step in (0, 1)]
    for step in (2, 3):
        validated(pipeline, folders[step - 1], step - 1, full=True)
        reports.append(validated(pipeline, folders[step], step))
    assert [(told(report)["epoch"], report.notes["early"]["level"]) for report in reports] == [(0, 3), (0, 3), (1, 3), (2, 3)]
    assert _through(reports[3]) == {"sha256:0002": None, "sha256:0001": "sha256:0002", "sha256:0000": "sha256:0002"}
    last, one_before, first = (told(report)["differences"] for report in (reports[3], reports[2], reports[1]))
    steps = [last["sha256:0002"], one_before["sha256:0001"], first["sha256:0000"]]
    assert last["sha256:0000"]["value"] == pytest.approx(sum(each["value"] for each in steps), abs=0.01)
    kept = tmp_path / "estimates" / reports[0].spec
    assert sorted(str(path.relative_to(kept)) for path in kept.rglob("level-1/*")) == [
        "epoch-1/level-1/sha256-0001.npz",
        "epoch-1/level-1/sha256-0002.npz",
        "epoch-2/level-1/sha256-0002.npz",
        "epoch-2/level-1/sha256-0003.npz",
        "level-1/sha256-0000.npz",
        "level-1/sha256-0001.npz",
    ]


def test_without_epochs_a_baseline_changes_nothing(collection: Path, folders: Sequence[Path], tmp_path: Path) -> None:
    pipeline = open_pipeline(collection, tmp_path, "sampler=stratified", "sampler.fraction=0.2")
    for step in (0, 1):
        report = validated(pipeline, folders[step], step)
        validated(pipeline, folders[step], step, full=True)
    assert not {"epoch", "anchor"} & set(told(report))
    assert not (tmp_path / "epochs").exists()
