"""Crossings against plain loops over the ranking, and what of a file may be trusted."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from dr_validate.metrics.crossings import EVERY, NUM_FOLDS, SHALLOW, TAIL, Crossings, can_be_estimated, crossings
from dr_validate.values import Float64, Qrels, Ranking, Sample
from tests.metrics.synthetic import collection, history_of, pool_and_rest, ranked, sample_of, training

ODDS = (0.125, 0.5)  # of two strata
NUM_DOCUMENTS, NUM_QUERIES, TOP_K = 160, 5, 110


@dataclass(frozen=True, kw_only=True)
class Example:
    inclusion: dict[int, float]
    fold: dict[int, int]
    gain: dict[tuple[int, int], int]
    ranking: Ranking
    qrels: Qrels
    sample: Sample
    found: Crossings


def example(seed: int) -> Example:
    """Few distinct scores, graded and negative judgements, a short ranking and an empty one."""
    rng = np.random.default_rng(seed)
    inclusion = rng.choice([0.0, *ODDS, 1.0], NUM_DOCUMENTS, p=[0.1, 0.35, 0.35, 0.2])
    judged = [rng.choice(NUM_DOCUMENTS, 4, replace=False) for _ in range(NUM_QUERIES)]
    qrels = Qrels(
        offsets=np.arange(0, 4 * NUM_QUERIES + 1, 4),
        documents=np.concatenate(judged),
        gains=rng.integers(-1, 4, 4 * NUM_QUERIES),
    )
    inclusion[qrels.documents] = 1
    sample, id_hash = sample_of(inclusion), rng.integers(0, 2**63, NUM_DOCUMENTS).astype(np.uint64)
    scores = rng.integers(0, 60, (NUM_QUERIES, NUM_DOCUMENTS)).astype(np.float32)
    whole = ranked(scores, sample, id_hash, TOP_K)
    documents, best = whole.documents.copy(), whole.scores.copy()
    for row, kept in ((3, 17), (4, 0)):
        documents[row, kept:], best[row, kept:] = -1, -np.inf
    ranking = Ranking(documents=documents, scores=best)
    rows = np.repeat(np.arange(NUM_QUERIES), 4)
    return Example(
        inclusion=dict(enumerate(inclusion.tolist())),
        fold={document: int(number) % NUM_FOLDS for document, number in enumerate(id_hash)},
        gain={(int(q), int(d)): int(g) for q, d, g in zip(rows, qrels.documents, qrels.gains, strict=True) if g >= 1},
        ranking=ranking,
        qrels=qrels,
        sample=sample,
        found=crossings(ranking, qrels, sample, id_hash[sample.ordinals]),
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_thresholds_ranks_gains_and_crossed_documents_are_those_that_a_plain_loop_counts(seed: int) -> None:
    given = example(seed)
    rows = []
    for query, documents in enumerate(given.ranking.documents.tolist()):
        for rank, document in enumerate(documents):
            if document < 0 or given.inclusion[document] < 1:
                continue
            gain = given.gain.get((query, document), 0)
            if gain or rank < SHALLOW or (query + rank) % EVERY == 0:
                above = [(given.inclusion[other], given.fold[other]) for other in documents[:rank]]
                counts = [[above.count((odds, fold)) for fold in range(NUM_FOLDS)] for odds in ODDS]
                rows.append((query, rank, gain, counts))
    found = given.found
    assert_array_equal(found.odds, ODDS)
    assert_array_equal(found.query, [query for query, *_ in rows])
    assert_array_equal(found.rank, [rank for _, rank, *_ in rows])
    assert_array_equal(found.gain, [gain for *_, gain, _ in rows])
    assert_array_equal(found.crossed, np.moveaxis(np.array([counts for *_, counts in rows]), 0, -1))
    assert len(np.unique(found.gain)) >= 3
    assert found.crossed.max() >= 3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_expected_number_is_counted_beyond_the_tail_and_less_within_it(seed: int) -> None:
    given = example(seed)
    counted = 0
    for row, (query, rank) in enumerate(zip(given.found.query, given.found.rank, strict=True)):
        documents, scores = given.ranking.documents[query].tolist(), given.ranking.scores[query]
        for number, odds in enumerate(ODDS):
            for fold in range(NUM_FOLDS):
                places = [p for p, d in enumerate(documents) if d >= 0 and given.inclusion[d] == odds and given.fold[d] != fold]
                if len(places) < TAIL:
                    continue
                expected, share = float(given.found.expected[number, fold, row]), odds * (1 - 1 / NUM_FOLDS)
                if scores[rank] <= scores[places[TAIL - 1]]:
                    above = sum(place < rank for place in places)
                    assert expected == pytest.approx(math.log(max(above, 1e-4) / share), abs=1e-6)
                    counted += 1
                else:
                    assert expected < math.log(TAIL / share)
    assert counted > 50


def test_a_fold_is_judged_by_documents_of_other_folds_alone() -> None:
    given, fold = collection(0, num_documents=600, num_queries=20), 2
    sample = pool_and_rest(given, 300, seed=0)
    chance = np.zeros(given.num_documents, dtype=np.bool_)
    chance[sample.ordinals[sample.inclusion < 1]] = True
    (scores,) = training(given, 1)
    lowered = scores.copy()
    lowered[:, chance & (given.id_hash % NUM_FOLDS == fold)] = -100
    before, after = history_of(given, [scores, lowered], sample)
    rows, same_rows = np.flatnonzero(before.gain > 0), np.flatnonzero(after.gain > 0)  # in the same order, at other ranks
    assert before.crossed[0, fold, rows].sum() > 20
    assert after.crossed[0, fold].max() == 0
    assert_array_equal(after.crossed[0, :fold, same_rows], before.crossed[0, :fold, rows])
    assert_array_equal(after.expected[0, fold, same_rows], before.expected[0, fold, rows])
    assert not np.array_equal(after.expected[0, 0, same_rows], before.expected[0, 0, rows])


def some_crossings() -> Crossings:
    given = collection(0, num_documents=600, num_queries=20)
    return history_of(given, training(given, 1), pool_and_rest(given, 300, seed=0))[0]


def assert_same(one: Crossings, other: Crossings) -> None:
    for field in dataclasses.fields(Crossings):
        first, second = np.asarray(getattr(one, field.name)), np.asarray(getattr(other, field.name))
        assert first.dtype == second.dtype, field.name
        assert_array_equal(first, second, err_msg=field.name)


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    one = some_crossings()
    one.save(tmp_path / "kept" / "one.npz")
    found = Crossings.load(tmp_path / "kept" / "one.npz")
    assert_same(one, found)
    assert type(found.quality) is float
    assert 0 < found.quality < 1
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["one.npz"]


def test_a_damaged_file_is_an_os_error_or_a_value_error_wherever_the_damage_is(tmp_path: Path) -> None:
    file, damaged, one = tmp_path / "one.npz", tmp_path / "damaged.npz", some_crossings()
    one.save(file)
    content = file.read_bytes()
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        damaged.write_bytes(content[:length])
        with pytest.raises((OSError, ValueError)):
            Crossings.load(damaged)
    refused = 0
    for place in [
        *range(0, len(content), len(content) // 100),
        *range(len(content) - 700, len(content), 2),
    ]:  # the directory, too
        flipped = bytearray(content)
        flipped[place] ^= 0xFF
        damaged.write_bytes(flipped)
        try:
            assert_same(one, Crossings.load(damaged))  # what nobody reads, such as the time of an entry
        except (OSError, ValueError):
            refused += 1
    assert refused > 250


def test_a_file_that_is_no_crossings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Crossings.load(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("query rank gain")
    np.savez(tmp_path / "less.npz", query=np.arange(3))
    np.save(tmp_path / "objects.npy", np.array([{"query": 1}], dtype=object), allow_pickle=True)
    for name in ("text.npz", "less.npz", "objects.npy"):
        with pytest.raises(ValueError, match=name):
            Crossings.load(tmp_path / name)


@pytest.mark.parametrize(
    ("counts", "possible"),
    [
        ({1.0: 500}, False),
        ({1.0: 500, 0.1: 39}, False),
        ({1.0: 1, 0.1: 40}, True),
        ({0.1: 40}, True),
        ({1.0: 500, 0.1: 400, 1 / 3: 39}, False),
        ({1.0: 500, 0.1: 40, 1 / 3: 40}, True),
    ],
)
def test_a_sample_can_be_estimated_with_forty_documents_behind_every_odds_under_one(
    counts: dict[float, int], possible: bool
) -> None:
    inclusion: Float64 = np.repeat(list(counts), list(counts.values()))
    assert can_be_estimated(sample_of(np.random.default_rng(0).permutation(inclusion))) is possible
