from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dr_validate.errors import ConfigError, SetupError, Stopped
from dr_validate.report_json import report_to_json
from tests.small_run import Unhurried, blur, checkpoint_of, open_pipeline, validated, write_collection

STRATIFIED = ["sampler=stratified", "sampler.fraction=0.5"]  # of 1,500 documents: levels of 188, 375 and 750
GOOD, MIDDLING, BAD = 0, 1, 2  # mrr@10 on the full corpus: 0.71, 0.31, 0.08


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("early") / "collection")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, write_checkpoint: Callable[..., Path]) -> Sequence[Path]:
    """Checkpoints of which each knows less of the words."""
    root = tmp_path_factory.mktemp("checkpoints")
    return [blur(write_checkpoint(root / f"c{step}", seed=3), share) for step, share in enumerate([0, 0.5, 0.8])]


def test_one_that_never_ends_early_is_reported_as_without_early_decisions(
    collection: Path, folders: Sequence[Path], tmp_path: Path
) -> None:
    off = open_pipeline(collection, tmp_path / "off", *STRATIFIED)
    on = open_pipeline(collection, tmp_path / "on", *STRATIFIED, "sampler.precision=1e-9")
    for step in (GOOD, MIDDLING):
        plain, early = (report_to_json(validated(pipeline, folders[step], step)) for pipeline in (off, on))
        assert early["notes"].pop("early") == {"level": 3, "fraction": 0.5, "reason": "end of the sample"}
        assert plain.pop("spec") != early.pop("spec")
        del plain["seconds"], early["seconds"]
        sample, seen = plain["notes"]["estimate"]["sample"], early["notes"]["estimate"]["earlier"]
        assert len(seen) == 3  # a level each: who ended there is seen anew by whoever passes
        early["notes"]["estimate"]["earlier"] = {sample: seen[sample]}
        assert plain == early  # encoded_now as well: the levels lie within each other, and nothing is encoded twice
    assert not [path for path in (tmp_path / "off" / "estimates").rglob("*") if "level" in path.name]


def test_a_narrow_interval_ends_the_encoding_and_a_wide_one_does_not(
    collection: Path, folders: Sequence[Path], tmp_path: Path
) -> None:
    pipeline = open_pipeline(collection, tmp_path, *STRATIFIED, "sampler.precision=0.06")
    bad, good = (validated(pipeline, folders[step], step) for step in (BAD, GOOD))
    assert bad.notes["early"] == {"level": 1, "fraction": pytest.approx(188 / 1500), "reason": "precision"}
    assert (bad.corpus["encoded"], bad.corpus["encoded_now"]) == (188, 188)
    assert bad.metrics["mrr@10"].high - bad.metrics["mrr@10"].low <= 0.12
    assert good.notes["early"]["level"] > 1
    assert good.corpus["encoded"] == {2: 375, 3: 750}[good.notes["early"]["level"]]


def test_one_that_is_surely_worse_than_the_best_ends_early_and_a_better_one_never(
    collection: Path, folders: Sequence[Path], tmp_path: Path
) -> None:
    pipeline = open_pipeline(collection, tmp_path, *STRATIFIED, "sampler.decide=best")
    reports = [validated(pipeline, folders[step], step) for step in (MIDDLING, GOOD, BAD)]
    early = [(report.notes["early"]["level"], report.notes["early"]["reason"]) for report in reports]
    assert early == [(3, "end of the sample"), (3, "end of the sample"), (1, "worse than the best")]
    assert [report.corpus["encoded"] for report in reports] == [750, 750, 188]
    assert set(reports[2].notes["estimate"]["differences"]) == {"sha256:0000", "sha256:0001"}
    kept = tmp_path / "estimates" / reports[0].spec  # only like is compared with like
    assert {folder.name: len(list(folder.iterdir())) for folder in kept.iterdir()} == {"level-1": 3, "level-2": 2, "level-3": 2}


def test_what_is_not_kept_is_encoded_at_each_level(collection: Path, folders: Sequence[Path], tmp_path: Path) -> None:
    pipeline = open_pipeline(collection, tmp_path, *STRATIFIED, "sampler.precision=1e-9", "store.embeddings_max_gib=0")
    report = validated(pipeline, folders[GOOD], GOOD)
    assert (report.corpus["encoded"], report.corpus["encoded_now"]) == (750, 188 + 375 + 750)


class StopsAfter(Unhurried):
    """Asks to stop as soon as so many documents are ranked."""

    def __init__(self, documents: int) -> None:
        self._documents, self._is_time = documents, False

    def check(self) -> None:
        if self._is_time:
            raise Stopped

    def progress(self, phase: str, done: int, total: int) -> None:
        self._is_time = self._is_time or done == self._documents


def test_one_that_was_stopped_between_two_levels_goes_on(collection: Path, folders: Sequence[Path], tmp_path: Path) -> None:
    pipeline = open_pipeline(collection, tmp_path, *STRATIFIED, "sampler.precision=1e-9")
    with pytest.raises(Stopped):
        pipeline.validate(checkpoint_of(GOOD), folders[GOOD], full=False, control=StopsAfter(375))
    report = validated(pipeline, folders[GOOD], GOOD)
    assert (report.corpus["encoded"], report.corpus["encoded_now"]) == (750, 375)
    assert report.notes["estimate"]["checkpoints"] == 1


def test_a_level_that_is_too_small_is_left_out(collection: Path, folders: Sequence[Path], tmp_path: Path) -> None:
    pipeline = open_pipeline(collection, tmp_path, "sampler=random", "sampler.fraction=0.12", "sampler.precision=0.99")
    report = validated(pipeline, folders[GOOD], GOOD)
    # A quarter would be 45 documents, of which 40 are judged.
    assert pipeline.plans.levels(0)[0].level == report.notes["early"]["level"] == 2


def test_a_sample_without_a_part_that_says_anything_is_refused(collection: Path, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"sampler\.precision, sampler\.decide: half of the 150 documents are too few"):
        open_pipeline(collection, tmp_path, "sampler=random", "sampler.fraction=0.1", "sampler.decide=best")


@pytest.mark.parametrize("sampler", ["full", "run_pool"])
@pytest.mark.parametrize("rule", ["precision=0.01", "decide=best"])
def test_a_sampler_without_odds_knows_no_early_decisions(collection: Path, tmp_path: Path, sampler: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=f"sampler.{rule.partition('=')[0]}: Unexpected keyword argument"):
        open_pipeline(collection, tmp_path, f"sampler={sampler}", f"+sampler.{rule}")
