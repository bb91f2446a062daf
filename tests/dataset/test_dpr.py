"""DPR's files: passages with titles, questions with answers, and which passages hold an answer."""

import gzip
import json
import logging
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import regex
from pydantic import ValidationError

from dr_validate.dataset.dpr import DprDataset, match_answers
from dr_validate.errors import DatasetError
from dr_validate.metrics.ranx import RanxMetrics
from dr_validate.values import Ranking, TestSet

# As DPR's data/wikipedia_split/psgs_w100.tsv and nq-test.qa.csv are written.
PASSAGES = '''id\ttext\ttitle
1\t"Aaron Aaron ( or ; ""Ahärôn"") is a prophet, high priest, and the brother of Moses"\tAaron
2\t"the shrine. Wilhelm Conrad Röntgen was born in 1845; ""X-rays"" followed"\t"Röntgen, ""Wilhelm"""
3\tThe U.S. Senate met on 14 December 1972, UTC\tMoses
'''
QUESTIONS = """who is the brother of aaron\t['Moses']
who got the first nobel prize in physics\t"['Wilhelm Conrad Rontgen', 'wilhelm conrad Röntgen', 'The ""Röntgen""']"
when did it meet\t['14 December 1972 UTC', 'U.S. Senate']
who was never there\t['Nobody At All']
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "psgs_w100.tsv.gz").write_bytes(gzip.compress(PASSAGES.encode()))
    (tmp_path / "nq-test.qa.csv").write_text(QUESTIONS)
    return tmp_path


def judged(test_set: TestSet) -> dict[str, list[str]]:
    rows = [test_set.qrels.row(row)[0] for row in range(len(test_set.query_ids))]
    return {query: test_set.corpus.ids(row) for query, row in zip(test_set.query_ids, rows, strict=True)}


def test_passages_that_hold_an_answer_are_relevant_whatever_their_title(
    folder: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    test_set = DprDataset(path=folder).open(cache)
    assert test_set.name == "nq-test"
    assert test_set.query_texts[1] == "who got the first nobel prize in physics"
    assert str(test_set.corpus.texts(np.arange(2))[1]).startswith('Röntgen, "Wilhelm" the shrine.')
    assert judged(test_set) == {"q1": ["1"], "q2": ["2"], "q3": ["3"], "q4": []}
    assert "1 of 4 questions have no answer in any passage: they count as 0, as in DPR" in caplog.text
    caplog.clear()
    again = DprDataset(path=folder).open(cache)
    assert (judged(again), again.fingerprint) == (judged(test_set), test_set.fingerprint)
    assert "looking for the answers" not in caplog.text  # kept


@pytest.mark.parametrize("cells", [1 << 23, 2])
def test_top_k_accuracy_counts_questions_that_nothing_answers(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, cells: int
) -> None:
    monkeypatch.setattr("dr_validate.metrics.ranx.MOST_CELLS", cells)  # all at once, or few questions at a time
    test_set = DprDataset(path=folder).open(cache)
    documents = np.array([[2, 0], [1, 2], [0, 1], [0, 2]])
    ranking = Ranking(documents=documents, scores=np.array([[2, 1]] * 4, dtype=np.float32))
    scores = RanxMetrics(names=("hit_rate@1", "hit_rate@2", "recall@2", "ndcg@2")).score(ranking, test_set.qrels)
    assert scores.per_query["hit_rate@1"].tolist() == [0, 1, 0, 0]
    assert scores.per_query["hit_rate@2"].tolist() == [1, 1, 0, 0]
    assert scores.per_query["recall@2"].tolist() == [1, 1, 0, 0]
    assert np.isfinite(scores.per_query["ndcg@2"]).all()


def test_questions_whose_answers_are_everywhere_are_left_out_where_that_is_asked_for(
    folder: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "nq-test.qa.csv").write_text(QUESTIONS + "what is it\t['the']\n")
    everything = DprDataset(path=folder).open(cache)
    assert judged(everything)["q5"] == ["1", "2", "3"]
    most = DprDataset(path=folder, max_matches=2).open(cache)
    assert judged(most) == {"q1": ["1"], "q2": ["2"], "q3": ["3"], "q4": []}
    assert "dataset.max_matches=2 leaves out 1 of 5 questions" in caplog.text
    assert most.fingerprint != everything.fingerprint


def test_xor_tydi_is_read_by_language(folder: Path, cache: Path) -> None:
    rows = [
        {"id": "7", "question": "アロンの兄弟は誰ですか", "answers": ["Moses"], "lang": "ja", "split": "dev"},
        {"id": "8", "question": "누가", "answers": ["Röntgen"], "lang": "ko", "split": "dev"},
    ]
    file = folder / "xor_dev_retrieve_eng_span_v1_1.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert judged(DprDataset(path=folder, queries=file, language="ko").open(cache)) == {"8": ["2"]}
    assert judged(DprDataset(path=folder, queries=file).open(cache)) == {"7": ["1"], "8": ["2"]}
    with pytest.raises(DatasetError, match=r"no questions in the language 'de'"):
        DprDataset(path=folder, queries=file, language="de").open(cache)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("who\tMoses", "nq-test.qa.csv:1: answers: got 'Moses', expected a list such as ['one', 'two']"),
        ("who\t[]", "nq-test.qa.csv:1: answers: got '[]', expected a list of at least one text"),
        ("who\t['Moses', ' ']", "nq-test.qa.csv:1: answer ' ': holds no word, so that DPR finds it in every passage"),
        ("who\t__import__('os').getcwd()", "expected a list such as"),
        ("who is that", "nq-test.qa.csv:1: got 1 columns"),
    ],
)
def test_questions_that_are_not_understood_are_named(folder: Path, cache: Path, line: str, said: str) -> None:
    (folder / "nq-test.qa.csv").write_text(f"{line}\n")
    with pytest.raises(DatasetError) as caught:
        DprDataset(path=folder).open(cache)
    assert said in str(caught.value)


def test_several_files_of_questions_are_not_chosen_from(folder: Path) -> None:
    (folder / "trivia-test.qa.csv").write_text(QUESTIONS)
    with pytest.raises(
        DatasetError, match=r"holds nq-test\.qa\.csv, trivia-test\.qa\.csv; set dataset\.queries to one of them"
    ):
        DprDataset(path=folder).check()
    with pytest.raises(DatasetError, match=r"dataset\.language: got 'ja', but .*nq-test\.qa\.csv has no languages"):
        DprDataset(path=folder, queries=folder / "nq-test.qa.csv", language="ja").open(folder / "cache")
    with pytest.raises(ValidationError, match=r"set dataset\.path to the folder of psgs_w100\.tsv"):
        DprDataset(queries=folder / "nq-test.qa.csv")


def test_answers_that_are_regular_expressions_are_refused(folder: Path, cache: Path) -> None:
    (folder / "nq-test.qa.csv").rename(folder / "curatedtrec-test.qa.csv")
    with pytest.raises(DatasetError, match="its answers are regular expressions"):
        DprDataset(path=folder).open(cache)


def of_dpr(text: str) -> list[str]:
    """Tokens by DPR's own steps, one match at a time."""
    pattern = regex.compile(r"([\p{L}\p{N}\p{M}]+)|([^\p{Z}\p{C}])", flags=regex.IGNORECASE + regex.UNICODE + regex.MULTILINE)
    return [found.group().lower() for found in pattern.finditer(unicodedata.normalize("NFD", text))]


def is_answered(answers: list[str], text: str) -> bool:
    """By trying every place for every answer."""
    words = of_dpr(text)
    for answer in map(of_dpr, answers):
        if any(answer == words[place : place + len(answer)] for place in range(len(words) - len(answer) + 1)):
            return True
    return False


PIECES = [
    *(
        "U.S.",
        "R\u00f6ntgen",
        "Ro\u0308ntgen",
        "\u0130stanbul",
        "ΟΔΟΣ",
        "οδος",
        "Σ'α",
        "straße",
        "STRASSE",
        "\ufb01n",
        "東京",
        "न्यू",
    ),
    *(
        "no-one",
        "it's",
        "1,845",
        "½",
        "²",
        "a\u200bb",
        "\u00a0",
        "\u00ad",
        "_x_",
        "caf\u00e9",
        "CAFE",
        "—",
        '"',
        "\t",
        "\U0001d400",
    ),
    *("the", "of", "The", "and", "A", "2", "3", "x"),
]


@pytest.mark.parametrize("processes", [1, 2])
def test_matches_are_those_of_dprs_own_function(processes: int) -> None:
    draw = random.Random(5)
    texts = [
        "".join(draw.choice(PIECES) + draw.choice(["", " ", " ", " "]) for _ in range(draw.randint(0, 12))) for _ in range(120)
    ]
    answers = [[" ".join(draw.choices(PIECES, k=draw.randint(1, 2))) for _ in range(2)] for _ in range(60)]
    answers = [[answer for answer in several if of_dpr(answer)] or ["the"] for several in answers]
    expected = [(row, place) for row in range(60) for place in range(120) if is_answered(answers[row], texts[place])]
    counts, places = match_answers(iter(texts), answers, processes)
    assert list(zip(np.repeat(np.arange(60), counts).tolist(), places.tolist(), strict=True)) == expected
    assert 100 < len(expected) < 5000
