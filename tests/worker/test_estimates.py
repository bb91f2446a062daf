"""Corrected metrics from checkpoint to checkpoint, over real rankings of made-up scores."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from dr_validate.estimator.evidence import RankEvidence
from dr_validate.ledger.reports import revised
from dr_validate.metrics.ranx import RanxMetrics
from dr_validate.values import Checkpoint, Float32, Int64, Qrels, Ranking, Report, Sample, TestSet
from dr_validate.worker.estimates import Corrected, Estimates, load, save
from dr_validate.worker.samples import Baselines
from tests.estimator.synthetic import collection, history_of, pool_and_rest, training

NUM_DOCUMENTS, NUM_QUERIES, NUM_POOL, NUM_DRAWN, TOP_K = 4000, 80, 240, 200, 100
NAMES = ("mrr@10", "recall@100")


class Documents:
    """A corpus of ids alone: nothing here reads a text."""

    def __len__(self) -> int:
        return NUM_DOCUMENTS

    def ids(self, ordinals: Int64) -> list[str]:
        return [f"d{ordinal}" for ordinal in ordinals]

    def texts(self, ordinals: Int64) -> list[str] | list[list[int]]:
        return self.ids(ordinals)

    def find(self, ids: Sequence[str]) -> Int64:
        return np.array([int(name[1:]) for name in ids])

    @property
    def tie_rank(self) -> Int64:
        return np.arange(NUM_DOCUMENTS)

    @property
    def id_hash(self) -> NDArray[np.uint64]:
        return np.random.default_rng(1).integers(0, 2**63, NUM_DOCUMENTS).astype(np.uint64)


@pytest.fixture(scope="module")
def test_set() -> TestSet:
    relevant = np.random.default_rng(2).choice(NUM_DOCUMENTS, NUM_QUERIES, replace=False)
    qrels = Qrels(offsets=np.arange(NUM_QUERIES + 1), documents=relevant, gains=np.ones(NUM_QUERIES, dtype=np.int64))
    ids = tuple(f"q{row}" for row in range(NUM_QUERIES))
    own = np.full(NUM_QUERIES, -1)
    return TestSet(
        name="made", corpus=Documents(), query_ids=ids, query_texts=ids, qrels=qrels, own_documents=own, fingerprint="made"
    )


def scores_of(test_set: TestSet, quality: float, seed: int) -> Float32:
    """(num_queries, num_documents): what all retrievers share, and noise of this one's own."""
    scores = np.random.default_rng(3).normal(size=(NUM_QUERIES, NUM_DOCUMENTS))
    scores[np.arange(NUM_QUERIES), test_set.qrels.documents] += 3.2
    noise = np.random.default_rng([4, seed]).normal(size=scores.shape)
    mixed: Float32 = (quality * scores + (1 - quality**2) ** 0.5 * noise).astype(np.float32)
    return mixed


@pytest.fixture(scope="module")
def sample(test_set: TestSet) -> Sample:
    inclusion = np.zeros(NUM_DOCUMENTS)
    other = scores_of(test_set, 0.6, 99)
    inclusion[np.argsort(-other.max(axis=0))[:NUM_POOL]] = 1
    inclusion[test_set.qrels.documents] = 1
    rest = np.flatnonzero(inclusion == 0)
    inclusion[np.random.default_rng(5).choice(rest, NUM_DRAWN, replace=False)] = NUM_DRAWN / len(rest)
    chosen = np.flatnonzero(inclusion)
    return Sample(ordinals=chosen, inclusion=inclusion[chosen], num_documents=NUM_DOCUMENTS, fingerprint="drawn")


def ranking_of(scores: Float32, ordinals: Int64) -> Ranking:
    part = scores[:, ordinals]
    order = np.argsort(-part, axis=1, kind="stable")[:, :TOP_K]
    return Ranking(documents=ordinals[order], scores=np.take_along_axis(part, order, axis=1))


def estimates_in(folder: Path, test_set: TestSet, sample: Sample) -> Estimates:
    return Estimates(folder, test_set, sample, TOP_K, Baselines(folder / "baselines"))


def outcome(estimates: Estimates, test_set: TestSet, sample: Sample, number: int) -> Corrected:
    """Of checkpoint `number`; the later, the better."""
    ranking = ranking_of(scores_of(test_set, 0.5 + 0.05 * number, number), sample.ordinals)
    return estimates.of(f"sha256:{number:04}", ranking, RanxMetrics(names=NAMES).score(ranking, test_set.qrels))


def test_each_checkpoint_is_corrected_by_all_before_it(test_set: TestSet, sample: Sample, tmp_path: Path) -> None:
    estimates = estimates_in(tmp_path, test_set, sample)
    outcomes = [outcome(estimates, test_set, sample, number) for number in range(6)]
    errors, naive_errors = [], []
    for number, made in enumerate(outcomes):
        full = ranking_of(scores_of(test_set, 0.5 + 0.05 * number, number), np.arange(NUM_DOCUMENTS))
        truth = RanxMetrics(names=NAMES).score(full, test_set.qrels)
        for name, estimate in made.metrics.items():
            assert 0 <= estimate.low <= estimate.value <= estimate.high <= estimate.naive
            assert np.nanmean(made.per_query[name]) == pytest.approx(estimate.value, abs=1e-9)
            assert truth.mean(name) <= estimate.naive + 1e-12
            errors.append(estimate.value - truth.mean(name))
            naive_errors.append(estimate.naive - truth.mean(name))
        assert made.notes["estimate"]["checkpoints"] == number + 1
        assert list(made.notes["estimate"]["differences"]) == [f"sha256:{earlier:04}" for earlier in range(number)]
        for difference in made.notes["estimate"]["differences"].values():
            assert difference["low"] <= difference["value"] <= difference["high"]
            assert difference["population"][0] <= difference["low"]
            assert 0 <= difference["p"] <= 1
    assert abs(np.mean(errors)) < np.mean(naive_errors) / 3


def test_a_restart_goes_on_with_what_was_kept(test_set: TestSet, sample: Sample, tmp_path: Path) -> None:
    one = estimates_in(tmp_path / "one", test_set, sample)
    for number in range(3):
        outcome(one, test_set, sample, number)
    before = outcome(one, test_set, sample, 3)
    again = outcome(estimates_in(tmp_path / "one", test_set, sample), test_set, sample, 3)
    assert again.metrics == before.metrics
    told = [{**made.notes["estimate"], "as_of": None} for made in (again, before)]
    assert told[0] == told[1]
    assert again.notes["estimate"]["as_of"] >= before.notes["estimate"]["as_of"]


def test_a_damaged_file_is_left_out_and_named(
    test_set: TestSet, sample: Sample, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    estimates = estimates_in(tmp_path, test_set, sample)
    outcome(estimates, test_set, sample, 0)
    (tmp_path / "sha256-0000.npz").write_bytes(b"PK\x03\x04 and no more")
    made = outcome(estimates, test_set, sample, 1)
    assert made.notes["estimate"]["checkpoints"] == 1
    assert "sha256-0000.npz is damaged" in caplog.text


def test_a_pool_alone_gives_an_upper_bound(test_set: TestSet, sample: Sample, tmp_path: Path) -> None:
    certain = sample.ordinals[sample.inclusion == 1]
    pool = Sample(ordinals=certain, inclusion=np.ones(len(certain)), num_documents=NUM_DOCUMENTS, fingerprint="pool")
    made = outcome(estimates_in(tmp_path, test_set, pool), test_set, pool, 2)
    assert all(each.low == 0 and each.value == each.high == each.naive for each in made.metrics.values())
    assert not made.notes
    assert not list(tmp_path.iterdir())


def checkpoint(number: int) -> Checkpoint:
    at = f"2026-01-01T00:0{number}:00+00:00"
    return Checkpoint(
        name=f"step-{number}",
        version=f"v{number}",
        digest=f"sha256:{number:04}",
        step=number,
        step_from="name",
        created_at=at,
        uri="",
    )


def full_ranking(test_set: TestSet, number: int) -> Ranking:
    return ranking_of(scores_of(test_set, 0.5 + 0.05 * number, number), np.arange(NUM_DOCUMENTS))


def test_baselines_of_other_checkpoints_are_learnt_from(test_set: TestSet, sample: Sample, tmp_path: Path) -> None:
    estimates, baselines = estimates_in(tmp_path, test_set, sample), Baselines(tmp_path / "baselines")
    before = [outcome(estimates, test_set, sample, number) for number in range(6)][-1]
    assert before.notes["estimate"]["baselines"] == 0
    baselines.keep(checkpoint(5), full_ranking(test_set, 5))
    assert outcome(estimates, test_set, sample, 5).metrics == before.metrics  # its own says nothing of it
    baselines.keep(checkpoint(4), full_ranking(test_set, 4))
    after = outcome(estimates, test_set, sample, 5)
    assert after.notes["estimate"]["baselines"] == 1
    truth = RanxMetrics(names=NAMES).score(full_ranking(test_set, 5), test_set.qrels)
    for name in NAMES:
        new, old = after.metrics[name], before.metrics[name]
        assert new.value != old.value
        assert new.high - new.low < old.high - old.low
        assert new.low <= truth.mean(name) <= new.high
        assert abs(new.value - truth.mean(name)) < abs(old.value - truth.mean(name)) + 0.01


def test_a_damaged_baseline_is_named_and_changes_nothing(
    test_set: TestSet, sample: Sample, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    estimates = estimates_in(tmp_path, test_set, sample)
    before = [outcome(estimates, test_set, sample, number) for number in range(2)][-1]
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "sha256-0000.npz").write_bytes(b"PK and no more")
    assert outcome(estimates, test_set, sample, 1).metrics == before.metrics
    assert "sha256-0000.npz is damaged" in caplog.text


def test_a_baseline_of_another_depth_changes_nothing(
    test_set: TestSet, sample: Sample, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    estimates = estimates_in(tmp_path, test_set, sample)
    before = [outcome(estimates, test_set, sample, number) for number in range(2)][-1]
    full = full_ranking(test_set, 0)
    Baselines(tmp_path / "baselines").keep(checkpoint(0), Ranking(documents=full.documents[:, :5], scores=full.scores[:, :5]))
    assert outcome(estimates, test_set, sample, 1).metrics == before.metrics
    assert "expected (80, 100)" in caplog.text


def test_evidence_of_another_format_is_left_out_and_named(
    test_set: TestSet, sample: Sample, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    estimates = estimates_in(tmp_path, test_set, sample)
    outcome(estimates, test_set, sample, 0)
    path = tmp_path / "sha256-0000.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "format"}
    np.savez(path, format=np.array(1), **arrays)
    assert outcome(estimates, test_set, sample, 1).notes["estimate"]["checkpoints"] == 1
    assert "sha256-0000.npz" in caplog.text and "format 1, expected 2" in caplog.text


def test_a_baseline_is_not_forgotten_when_many_checkpoints_have_come(
    test_set: TestSet, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dr_validate.worker.estimates.MOST_CHECKPOINTS", 3)
    estimates = estimates_in(tmp_path, test_set, sample)
    Baselines(tmp_path / "baselines").keep(checkpoint(1), full_ranking(test_set, 1))
    told = [outcome(estimates, test_set, sample, number).notes["estimate"] for number in range(6)]
    assert [each["baselines"] for each in told] == [0, 0, 1, 1, 1, 1]
    assert [each["checkpoints"] for each in told] == [1, 2, 3, 3, 4, 4]


def report_of(number: int, made: Corrected) -> Report:
    one = checkpoint(number)
    return Report(
        checkpoint=one,
        dataset="made",
        sampler="stratified",
        spec="spec",
        status="done",
        at=one.created_at,
        metrics=made.metrics,
        notes=made.notes,
    )


def test_values_before_are_read_as_the_latest_report_sees_them(test_set: TestSet, sample: Sample, tmp_path: Path) -> None:
    estimates, baselines = estimates_in(tmp_path, test_set, sample), Baselines(tmp_path / "baselines")
    reports = []
    for number in range(4):
        reports.append(report_of(number, outcome(estimates, test_set, sample, number)))
        baselines.keep(checkpoint(number), full_ranking(test_set, number))
    now = revised(reports)
    assert now[-1] == reports[-1]
    again = report_of(0, outcome(estimates, test_set, sample, 0))  # with baselines of the three others, as in the latest
    for name in NAMES:
        assert now[0].metrics[name] != reports[0].metrics[name]
        assert now[0].metrics[name].value == pytest.approx(again.metrics[name].value, abs=0.02)
        assert now[0].metrics[name].naive == reports[0].metrics[name].naive
    differences = now[-1].notes["estimate"]["differences"]
    for number in range(3):
        gap = now[-1].metrics["mrr@10"].value - now[number].metrics["mrr@10"].value
        assert differences[f"sha256:{number:04}"]["value"] == pytest.approx(gap, abs=1e-6)
    other = [replace_sample(report, "another") for report in reports[:1]]
    assert revised([*other, *reports[1:]])[0] == other[0]  # another sample: its values are not theirs


def replace_sample(report: Report, name: str) -> Report:
    estimate = {**report.notes["estimate"], "sample": name}
    return dataclasses.replace(report, notes={**report.notes, "estimate": estimate})


def some_evidence() -> RankEvidence:
    given = collection(0, num_documents=600, num_queries=20)
    return history_of(given, training(given, 1), pool_and_rest(given, 300, seed=0))[0]


def assert_same(one: RankEvidence, other: RankEvidence) -> None:
    for field in dataclasses.fields(RankEvidence):
        first, second = np.asarray(getattr(one, field.name)), np.asarray(getattr(other, field.name))
        assert first.dtype == second.dtype, field.name
        assert_array_equal(first, second, err_msg=field.name)


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    one = some_evidence()
    save(one, tmp_path / "kept" / "one.npz")
    found = load(tmp_path / "kept" / "one.npz")
    assert_same(one, found)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["one.npz"]


def test_a_damaged_file_is_an_os_error_or_a_value_error_wherever_the_damage_is(tmp_path: Path) -> None:
    file, damaged, one = tmp_path / "one.npz", tmp_path / "damaged.npz", some_evidence()
    save(one, file)
    content = file.read_bytes()
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        damaged.write_bytes(content[:length])
        with pytest.raises((OSError, ValueError)):
            load(damaged)
    refused = 0
    for place in [
        *range(0, len(content), len(content) // 100),
        *range(len(content) - 700, len(content), 2),
    ]:  # the directory, too
        flipped = bytearray(content)
        flipped[place] ^= 0xFF
        damaged.write_bytes(flipped)
        try:
            assert_same(one, load(damaged))  # what nobody reads, such as the time of an entry
        except (OSError, ValueError):
            refused += 1
    assert refused > 250


def test_a_file_that_is_no_evidence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("query rank gain")
    np.savez(tmp_path / "less.npz", query=np.arange(3))
    one = some_evidence()
    arrays: Any = {field.name: np.asarray(getattr(one, field.name)) for field in dataclasses.fields(RankEvidence)}
    np.savez(tmp_path / "earlier.npz", **arrays)  # before formats were numbered
    np.savez(tmp_path / "other.npz", format=np.array(1), **arrays)
    np.save(tmp_path / "objects.npy", np.array([{"query": 1}], dtype=object), allow_pickle=True)
    for name in ("text.npz", "less.npz", "objects.npy", "earlier.npz", "other.npz"):
        with pytest.raises(ValueError, match=name):
            load(tmp_path / name)
