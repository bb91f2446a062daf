import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_validate.sampler.strata import LEAST_REST, Population, Shares, Strata, divide

DEFAULT = Shares(pool=0.7, ring=0.1, ring_inclusion=1 / 3)


@st.composite
def populations(draw: st.DrawFn) -> Population:
    others = draw(st.integers(0, 3000))
    return Population(judged=draw(st.integers(1, 50)), others=others, candidates=draw(st.integers(0, others)))


@st.composite
def all_shares(draw: st.DrawFn) -> Shares:
    pool = draw(st.floats(0.01, 0.97))
    return Shares(pool=pool, ring=draw(st.floats(0, 0.98 - pool)), ring_inclusion=draw(st.floats(0.05, 0.95)))


def test_the_default_shares_are_those_of_the_design() -> None:
    strata = divide(1100, Population(judged=100, others=100_000, candidates=50_000), DEFAULT)
    assert strata == Strata(pool=700, ring=300, ring_drawn=100, rest=99_000, rest_drawn=200)
    assert strata.odds == (1.0, 100 / 300, 200 / 99_000)


@settings(max_examples=200)
@given(populations(), all_shares(), st.data())
def test_the_budget_is_used_up_and_every_document_has_odds_of_its_stratum_alone(
    population: Population, shares: Shares, data: st.DataObject
) -> None:
    budget = data.draw(st.integers(1, population.judged + population.others))
    strata = divide(budget, population, shares)
    if strata is None:
        assert budget < population.judged + population.others
        return
    assert population.judged + strata.pool + strata.ring_drawn + strata.rest_drawn == budget
    assert strata.pool + strata.ring + strata.rest == population.others
    assert strata.pool + strata.ring <= population.candidates
    assert strata.rest_drawn >= min(LEAST_REST, strata.rest)
    _, ring, rest = strata.odds
    assert (0 < rest < ring <= 1) if strata.ring else (0 < rest <= 1 and strata.ring_drawn == 0)


@settings(max_examples=300)
@given(populations(), all_shares(), st.data())
def test_no_stratum_gives_anything_back_as_the_budget_grows(
    population: Population, shares: Shares, data: st.DataObject
) -> None:
    total = population.judged + population.others
    low = data.draw(st.integers(1, total))
    less, more = divide(low, population, shares), divide(data.draw(st.integers(low, min(total, low + 5))), population, shares)
    if less is None or more is None or bool(less.ring) != bool(more.ring):
        return
    assert less.pool <= more.pool
    assert less.pool + less.ring <= more.pool + more.ring
    assert less.rest_drawn <= more.rest_drawn


def test_what_the_runs_cannot_fill_goes_to_the_rest() -> None:
    in_the_pool = divide(1000, Population(judged=0, others=9000, candidates=500), DEFAULT)
    assert in_the_pool == Strata(pool=500, ring=0, ring_drawn=0, rest=8500, rest_drawn=500)
    in_the_ring = divide(1000, Population(judged=0, others=9000, candidates=760), DEFAULT)
    assert in_the_ring == Strata(pool=700, ring=60, ring_drawn=20, rest=8240, rest_drawn=280)


def test_a_ring_with_odds_no_better_than_the_rest_is_merged_with_it() -> None:
    # 300 of 1,000: pool 210, ring 90 at a third; of the other 700, 60. At 700 of 1,000 the rest would be complete.
    apart = divide(300, Population(judged=0, others=1000, candidates=1000), DEFAULT)
    assert apart == Strata(pool=210, ring=90, ring_drawn=30, rest=700, rest_drawn=60)
    merged = divide(700, Population(judged=0, others=1000, candidates=1000), DEFAULT)
    assert merged == Strata(pool=490, ring=0, ring_drawn=0, rest=510, rest_drawn=210)
    shares = Shares(pool=0.6, ring=0.2, ring_inclusion=0.2)  # 120, a ring of 200 with 40 drawn, 40 of the rest
    by_accident = divide(200, Population(judged=0, others=520, candidates=520), shares)
    assert by_accident == Strata(pool=120, ring=0, ring_drawn=0, rest=400, rest_drawn=80)
    nearly = divide(200, Population(judged=0, others=521, candidates=521), shares)
    assert nearly == Strata(pool=120, ring=200, ring_drawn=40, rest=201, rest_drawn=40)


@pytest.mark.parametrize("budget", [99, 100, 295])
def test_fewer_than_forty_of_an_incomplete_rest_are_no_design(budget: int) -> None:
    population = Population(judged=100, others=1000, candidates=1000)
    assert divide(budget, population, DEFAULT) is None
    least = divide(296, population, DEFAULT)
    assert least is not None
    assert least.rest_drawn == LEAST_REST


@pytest.mark.parametrize(("others", "candidates"), [(0, 0), (1, 0), (1, 1), (20, 20), (300, 7), (300, 300)])
def test_a_budget_of_everything_takes_everything(others: int, candidates: int) -> None:
    strata = divide(5 + others, Population(judged=5, others=others, candidates=candidates), DEFAULT)
    assert strata is not None
    assert strata.pool + strata.rest_drawn == others
    assert strata.odds == (1.0, 1.0, 1.0)
