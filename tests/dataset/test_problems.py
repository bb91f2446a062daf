"""Each way in which a collection can be wrong: the message names the place, the value and the way out."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dr_validate.dataset.beir import BeirDataset
from dr_validate.errors import DatasetError

Write = Callable[..., Path]
DOCUMENT = '{"_id": "d1", "text": "a"}\n{"_id": "d2", "text": "b"}\n{"_id": "d3", "text": "c"}\n'
QUERY = '{"_id": "q1", "text": "a"}\n{"_id": "q2", "text": "b"}\n'


def message(folder: Path, cache: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        BeirDataset(path=folder).open(cache)
    return str(caught.value)


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        (DOCUMENT + '{"_id": "d1", "text": ""}\n', ["corpus.jsonl:4: document id 'd1' again, first at ", "corpus.jsonl:1;"]),
        (DOCUMENT + '{"_id": "d4", "te', ["corpus.jsonl:4: not JSON (Unterminated string", "expected one object per line"]),
        (DOCUMENT + "[1]\n", ["corpus.jsonl:4: got '[1]', expected a JSON object"]),
        (DOCUMENT + '{"key": "d4", "text": ""}\n', ["corpus.jsonl:4: no document id: got the fields ['key', 'text']", "'_id'"]),
        (DOCUMENT + '{"_id": "", "text": "x"}\n', ["corpus.jsonl:4: document id: got '', expected a non-empty string"]),
        (DOCUMENT + '{"_id": 1.5, "text": "x"}\n', ["document id: got '1.5'"]),
        (DOCUMENT + '{"_id": "\\ud800", "text": "x"}\n', ["corpus.jsonl:4: document id: got '\\ud800'"]),
        (DOCUMENT + '{"_id": "d4", "note": "x"}\n', ["corpus.jsonl:4: no document text: got the fields ['_id', 'note']"]),
        (DOCUMENT + '{"_id": "d4", "text": null}\n', ["document text: got 'null', expected a string or a list of token ids"]),
        (DOCUMENT + '{"_id": "d4", "text": "\\udfff"}\n', ["corpus.jsonl:4: document text: got '\\udfff'", "surrogate"]),
        (DOCUMENT + '{"_id": "d4", "text": [1, -1]}\n', ["got '[1, -1]', expected token ids"]),
        (DOCUMENT + '{"_id": "d4", "text": ["a"]}\n', ["expected token ids"]),
        (DOCUMENT + '{"_id":"d4","text":' + "[" * 100_000 + "\n", ["corpus.jsonl:4: not JSON (maximum", "got '{"]),
        (DOCUMENT + '{"_id":"d4","text":' + "[" * 500 + "]" * 500 + "}\n", ["corpus.jsonl:4: document text: got ", "token"]),
        (DOCUMENT + '{"_id": "d4", "text": [1]}\n', ["corpus.jsonl:4: text: got '[1]', but the first document has a string"]),
        (DOCUMENT + '{"_id": "d4", "title": 4, "text": "x"}\n', ["corpus.jsonl:4: title: got '4'"]),
        (DOCUMENT.encode() + b'{"_id": "d4", "text": "\xff"}\n', ["corpus.jsonl:4: byte 23 of the line (0xff) is not UTF-8"]),
        ("", ["corpus.jsonl: no documents: the corpus is empty"]),
        (gzip.compress(DOCUMENT.encode() * 50)[:-10], ["corpus.jsonl: the gzip data is broken or cut short"]),
    ],
    ids=[
        "twice", "cut", "list", "no-id", "empty-id", "float-id", "surrogate-id", "no-text", "null-text", "surrogate-text",
        "negative-token", "word-as-token", "deep", "less-deep", "mixed", "title", "latin-1", "empty", "gzip",
    ],
)  # fmt: skip
def test_wrong_documents_are_named(write: Write, cache: Path, corpus: str | bytes, said: list[str]) -> None:
    text = message(write(corpus=corpus), cache)
    for part in said:
        assert part in text


@pytest.mark.parametrize(
    ("queries", "qrels", "said"),
    [
        (QUERY + '{"_id": "q1", "text": "z"}\n', "q1 d1 1", "queries.jsonl:3: query id 'q1' again, first at "),
        (QUERY, "q1 d1 1\nq9 d1 1\n", "test.tsv:2: 1 of 2 judged queries are not in "),
        (QUERY, "q1 d1 1\nq1 d1 2\n", "test.tsv:2: query 'q1' and document 'd1' have gain 2 here but 1 at "),
        (QUERY, "q1 d1 1\nq1 d2 high\n", "test.tsv:2: gain: got 'high', expected an integer"),
        (QUERY, "q1 d1 0.5\n", "test.tsv:1: gain: got '0.5', expected an integer"),
        (QUERY, "q1 d1 1_0\n", "gain: got '1_0'"),
        (QUERY, "q1 d1\n", "test.tsv:1: got 2 columns in 'q1 d1', expected query-id, corpus-id, score or the four columns"),
        (QUERY, "query-id\tcorpus-id\tscore\n", "test.tsv: no judgements; check dataset.qrels"),
        (
            QUERY,
            "q1 d1 1\nq2 d8 1\nq2 d9 1\n",
            "test.tsv:2: 2 of 3 judgements are of 2 documents that are not in the corpus: 'd8', 'd9'",
        ),
        ('{"_id": "q1", "text": [1, 2]}\n', "q1 d1 1", "queries.jsonl:1: the query is token ids, but the corpus is text"),
    ],
)
def test_wrong_queries_and_judgements_are_named(write: Write, cache: Path, queries: str, qrels: str, said: str) -> None:
    assert said in message(write(corpus=DOCUMENT, queries=queries, qrels=qrels), cache)


def test_several_problems_come_in_one_message(write: Write, cache: Path) -> None:
    text = message(write(corpus=DOCUMENT + "{\n", queries=QUERY + "[]\n", qrels="q1 d1 x\n"), cache)
    assert text.startswith("3 problems in the data set tiny:\n")
    assert [line.strip().split(": ")[0].rpartition("/")[2] for line in text.splitlines()[1:]] == [
        "test.tsv:1",
        "queries.jsonl:3",
        "corpus.jsonl:4",
    ]


@pytest.mark.parametrize("part", ["corpus", "queries", "qrels"])
def test_a_problem_with_an_id_of_megabytes_is_short_and_names_its_line(write: Write, cache: Path, part: str) -> None:
    name = "z" * 3_000_000
    row = json.dumps({"_id": name, "text": "x"}) + "\n"
    wrong = {"corpus": DOCUMENT + row * 2, "queries": QUERY + row * 2, "qrels": f"q1 d1 1\nq1 {name} 1\n"}
    text = message(write(**{"corpus": DOCUMENT, "queries": QUERY, "qrels": "q1 d1 1\n", part: wrong[part]}), cache)
    assert len(text) < 3_000
    assert {"corpus": "corpus.jsonl:5: ", "queries": "queries.jsonl:4: ", "qrels": "test.tsv:2: "}[part] in text


def test_a_thousand_problems_end_after_ten(write: Write, cache: Path) -> None:
    text = message(write(corpus="broken\n" * 1000), cache)
    assert text.startswith("10 problems (there may be more) in the data set tiny:")
    assert len(text.splitlines()) == 11


def test_every_missing_file_is_named_with_what_was_looked_for(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "dev.tsv").write_text("")
    text = message(tmp_path, cache)
    assert text.startswith("3 problems")
    assert (
        f"dataset.corpus: found none of corpus.jsonl, corpus.jsonl.gz in {tmp_path}; set dataset.corpus to where it is" in text
    )
    assert "dataset.qrels: found none of test.tsv, test.tsv.gz" in text
    assert "(there are dev.tsv)" in text


def test_a_missing_folder_and_a_missing_own_file_are_named(write: Write, cache: Path, tmp_path: Path) -> None:
    assert f"dataset.path: {tmp_path / 'gone'} does not exist" in message(tmp_path / "gone", cache)
    with pytest.raises(DatasetError, match=r"dataset\.corpus: no such file or folder: .*gone\.jsonl"):
        BeirDataset(path=write(), corpus=tmp_path / "gone.jsonl").open(cache)


def test_an_unknown_kind_of_file_is_refused(write: Write, cache: Path, tmp_path: Path) -> None:
    own = tmp_path / "corpus.csv"
    own.write_text("d1,a\n")
    with pytest.raises(DatasetError, match=r"corpus\.csv: got the suffix '\.csv', expected one of \.jsonl"):
        BeirDataset(path=write(), corpus=own).open(cache)


def test_dropping_missing_judged_documents_warns_and_goes_on(
    write: Write, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(corpus=DOCUMENT, queries=QUERY, qrels="q1 d9 1\nq2 d9 1\nq2 d2 1\n")
    test_set = BeirDataset(path=folder, missing_judged="drop").open(cache)
    assert test_set.query_ids == ("q2",)
    assert test_set.corpus.ids(test_set.qrels.documents) == ["d2"]
    assert "2 of 3 judgements are of 1 documents that are not in the corpus: 'd9'; dropped" in caplog.text
    assert "1 queries have no judged document that exists" in caplog.text


def test_a_collection_without_any_judged_query_left_is_refused(write: Write, cache: Path) -> None:
    with pytest.raises(DatasetError, match="no query with a judged document that exists is left"):
        BeirDataset(path=write(qrels="q1 d9 1\n"), missing_judged="drop").open(cache)


def test_empty_texts_are_warned_of_once(write: Write, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = DOCUMENT + '{"_id": "d4", "text": " "}\n{"_id": "d5", "text": ""}\n'
    BeirDataset(path=write(corpus=corpus)).open(cache)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert warnings[0].startswith("2 documents have an empty text, the first is 'd4' at ")


def test_integer_ids_are_read_as_strings_and_said_so(write: Write, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    corpus = "".join(json.dumps({"_id": n, "text": "a"}) + "\n" for n in range(3))
    test_set = BeirDataset(path=write(corpus=corpus, qrels="q1 0 1\nq2 2 1\n")).open(cache)
    assert test_set.corpus.ids(test_set.qrels.documents) == ["0", "2"]
    assert "3 document ids are integers and were read as strings" in caplog.text
