"""How a budget is divided."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_validate.sampler.design import LEAST_REST, Population, Strata, divide

shares = st.floats(0.01, 0.97)


@st.composite
def populations(draw: st.DrawFn) -> Population:
    others = draw(st.integers(0, 3000))
    return Population(judged=draw(st.integers(1, 50)), others=others, candidates=draw(st.integers(0, others)))


def test_the_pool_gets_its_share_of_what_the_judged_documents_leave() -> None:
    strata = divide(1100, Population(judged=100, others=100_000, candidates=50_000), 0.7)
    assert strata == Strata(pool=700, rest=99_300, rest_drawn=300)
    assert strata.rest_inclusion == 300 / 99_300


@settings(max_examples=200)
@given(populations(), shares, st.data())
def test_the_budget_is_used_up_and_no_document_is_left_without_a_chance(
    population: Population, share: float, data: st.DataObject
) -> None:
    budget = data.draw(st.integers(1, population.judged + population.others))
    strata = divide(budget, population, share)
    if strata is None:
        assert budget < population.judged + population.others
        return
    assert population.judged + strata.pool + strata.rest_drawn == budget
    assert strata.pool + strata.rest == population.others
    assert strata.pool <= population.candidates
    assert strata.rest_drawn >= min(LEAST_REST, strata.rest)
    assert 0 < strata.rest_inclusion <= 1


@settings(max_examples=300)
@given(populations(), shares, st.data())
def test_no_stratum_gives_anything_back_as_the_budget_grows(population: Population, share: float, data: st.DataObject) -> None:
    total = population.judged + population.others
    low = data.draw(st.integers(1, total))
    less, more = divide(low, population, share), divide(data.draw(st.integers(low, min(total, low + 5))), population, share)
    if less is None or more is None:
        return
    assert less.pool <= more.pool
    assert less.rest_drawn <= more.rest_drawn


def test_what_the_runs_cannot_fill_goes_to_the_rest() -> None:
    found = divide(1000, Population(judged=0, others=9000, candidates=500), 0.7)
    assert found == Strata(pool=500, rest=8500, rest_drawn=500)


@pytest.mark.parametrize("budget", [99, 100, 230])
def test_fewer_than_forty_of_an_incomplete_rest_are_no_design(budget: int) -> None:
    population = Population(judged=100, others=1000, candidates=1000)
    assert divide(budget, population, 0.7) is None
    least = divide(231, population, 0.7)
    assert least is not None
    assert least.rest_drawn == LEAST_REST


@pytest.mark.parametrize(("others", "candidates"), [(0, 0), (1, 0), (1, 1), (20, 20), (300, 7), (300, 300)])
def test_a_budget_of_everything_takes_everything(others: int, candidates: int) -> None:
    strata = divide(5 + others, Population(judged=5, others=others, candidates=candidates), 0.7)
    assert strata is not None
    assert strata.pool + strata.rest_drawn == others
    assert strata.rest_inclusion == 1.0
