"""Metrics of other packages: the grades that they are given, and answers that are refused."""

from types import SimpleNamespace

import numpy as np
import pytest

from dr_validate.errors import SetupError
from dr_validate.metrics.ranx import gains_by_rank, own_values
from dr_validate.values import Qrels, Ranking
from tests.metrics.peer import qrels_of, ranking_of

QRELS = Qrels(offsets=np.array([0, 2, 2, 3]), documents=np.array([7, 3, 5]), gains=np.array([1, 2, 3]))
RANKING = Ranking(
    documents=np.array([[3, 9, 7], [7, -1, -1], [4, 3, -1]]),
    scores=np.array([[3, 2, 1], [1, -np.inf, -np.inf], [2, 1, -np.inf]], dtype=np.float32),
)


def answers(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    monkeypatch.setitem(__import__("sys").modules, "a_package", SimpleNamespace(metric=lambda gains, qrels: answer, text="x"))


def test_each_document_has_the_grade_that_its_query_gives_it() -> None:
    assert gains_by_rank(RANKING, QRELS).tolist() == [[2, 0, 1], [0, 0, 0], [0, 0, 0]]
    qrels, ranking = qrels_of(1), ranking_of(1)
    expected = [[dict(zip(*qrels.row(row), strict=True)).get(d, 0) for d in ranking.documents[row]] for row in range(60)]
    assert gains_by_rank(ranking, qrels).tolist() == expected
    nothing = Qrels(offsets=np.zeros(4, dtype=int), documents=np.zeros(0, dtype=int), gains=np.zeros(0, dtype=int))
    assert not gains_by_rank(RANKING, nothing).any()


def test_an_answer_counts_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, [0.5, float("nan"), 1])
    np.testing.assert_array_equal(own_values("a_package.metric@2", RANKING, QRELS), [0.5, np.nan, 1])


@pytest.mark.parametrize("answer", [[0.5, 0.5], 0.5, [0.5, 1.5, 0], [-0.1, 0, 0]])
def test_an_answer_of_another_shape_or_beyond_0_to_1_is_refused(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    answers(monkeypatch, answer)
    with pytest.raises(SetupError, match=r"a_package.metric@2 gave .* expected \(3,\), a number from 0 to 1 for each query"):
        own_values("a_package.metric@2", RANKING, QRELS)


@pytest.mark.parametrize("name", ["a_package.no_metric@2", "a_package.text@2", "no_package_at_all.metric@2"])
def test_what_is_no_function_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    answers(monkeypatch, None)
    with pytest.raises(SetupError, match=f"metrics: got '{name}', which (cannot be imported|is no function)"):
        own_values(name, RANKING, QRELS)
