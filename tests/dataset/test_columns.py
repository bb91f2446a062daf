"""Columns of tables are taken by the names in a header, never by their place; a header that is not understood is refused."""

import gzip
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dr_validate.dataset.beir import BeirDataset
from dr_validate.dataset.hub import HubDataset
from dr_validate.dataset.msmarco import MsmarcoDataset
from dr_validate.dataset.tevatron import TevatronDataset
from dr_validate.errors import DatasetError
from dr_validate.values import TestSet

Write = Callable[..., Path]
# Ids are numbers, so that a column read for another one is an id, or a gain, as well.
DOCUMENTS = "".join(json.dumps({"_id": str(n), "text": f"text {n}"}) + "\n" for n in range(1, 10))
QUERIES = "".join(json.dumps({"_id": str(n), "text": f"query {n}"}) + "\n" for n in range(1, 4))
JUDGED = [("1", "7", 2), ("2", "3", 1)]


def judged(test_set: TestSet) -> list[tuple[str, str, int]]:
    documents = test_set.corpus.ids(test_set.qrels.documents)
    rows = np.repeat(np.arange(len(test_set.query_ids)), np.diff(test_set.qrels.offsets))
    queries = [test_set.query_ids[row] for row in rows]
    return list(zip(queries, documents, test_set.qrels.gains.tolist(), strict=True))


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("query-id\tcorpus-id\tscore", "{q}\t{d}\t{g}"),
        ("query-id\tcorpus-id\tscore\tannotator", "{q}\t{d}\t{g}\t7"),
        ("query-id\tscore\tcorpus-id", "{q}\t{g}\t{d}"),
        ("score\tcorpus-id\tquery-id", "{g}\t{d}\t{q}"),
        ("Query_ID\tCorpus_ID\tScore", "{q}\t{d}\t{g}"),
        ("topic iteration docno rel", "{q} 0 {d} {g}"),
        ("annotator\tqid\tpid\trelevance\tcomment", "7\t{q}\t{d}\t{g}\tso it is"),
        ('"query-id"\t"corpus-id"\t"score"', '"{q}"\t"{d}"\t{g}'),
        ("\ufeffquery-id\tcorpus-id\tscore\r", "{q}\t{d}\t{g}\r"),
    ],
)
def test_qrels_are_read_by_the_names_of_their_header(write: Write, cache: Path, header: str, row: str) -> None:
    qrels = "\n".join([header, *(row.format(q=query, d=document, g=gain) for query, document, gain in JUDGED)])
    assert judged(BeirDataset(path=write(DOCUMENTS, QUERIES, qrels)).open(cache)) == JUDGED


@pytest.mark.parametrize(
    ("qrels", "said"),
    [
        ("query-id\tpassage\tscore\n1\t7\t1\n", "test.tsv:1: this looks like a header, ['query-id', 'passage', 'score'], but "),
        ("name\tdocument\tgrade\n1\t7\t1\n", "names no query id and no document id"),
        ("who\twhich\thow\n1\t7\t1\n", "test.tsv:1: this looks like a header, ['who', 'which', 'how'], but "),
        ("query-id\tquery_id\tscore\tdocid\n1\t7\t1\t3\n", "names 'query-id' twice; keep one of them"),
        ("query-id\tcorpus-id\tscore\n1\t7\n", "test.tsv:2: got 2 columns in '1\\t7', but the header has 3"),
        ("query-id\tcorpus-id\tlevel\n1\t7\t0\n", "no gain: got the fields ['corpus-id', 'level', 'query-id']"),
        (
            "query-id\tcorpus-id\tscore\tlabel\n1\t7\t0\t1\n",
            "got the fields ['score', 'label'], each of which could be the gain",
        ),
        ("query-id,corpus-id,score\n1,7,1\n", "test.tsv:1: got 1 columns in 'query-id,corpus-id,score'"),
        ("1\t7\n2\t3\n", "test.tsv:1: got 2 columns in '1\\t7'"),
    ],
)
def test_qrels_that_are_not_understood_are_refused(write: Write, cache: Path, qrels: str, said: str) -> None:
    with pytest.raises(DatasetError) as caught:
        BeirDataset(path=write(DOCUMENTS, QUERIES, qrels)).open(cache)
    assert said in str(caught.value)


@pytest.mark.parametrize("form", ["tsv", "jsonl", "parquet", "hub"])
def test_judgements_without_a_column_of_gains_have_gain_1_which_is_said_once(
    write: Write, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    caplog.set_level(logging.INFO)
    queries, documents = [query for query, _, _ in JUDGED], [document for _, document, _ in JUDGED]
    table = pa.table({"query-id": queries, "corpus-id": documents})
    dataset: BeirDataset | HubDataset
    if form == "hub":
        for name, part in (
            ("corpus", {"_id": ["7", "3"], "text": ["a", "b"]}),
            ("queries", {"_id": queries, "text": ["c", "d"]}),
        ):
            (tmp_path / "nano" / name).mkdir(parents=True)
            pq.write_table(pa.table(part), tmp_path / "nano" / name / "train-00000-of-00001.parquet")
        (tmp_path / "nano" / "qrels").mkdir()
        pq.write_table(table, tmp_path / "nano" / "qrels" / "train-00000-of-00001.parquet")
        names = ("corpus", "qrels", "queries")
        lines = [f"- config_name: {n}\n  data_files:\n  - split: train\n    path: {n}/train-*\n" for n in names]
        (tmp_path / "nano" / "README.md").write_text(f"---\nconfigs:\n{''.join(lines)}---\n")
        dataset = HubDataset(id=str(tmp_path / "nano"), qrels_split="train")
    else:
        own = tmp_path / f"judged.{form}"
        if form == "parquet":
            pq.write_table(table, own)
        elif form == "jsonl":
            own.write_text("".join(json.dumps({"qid": q, "docid": d}) + "\n" for q, d in zip(queries, documents, strict=True)))
        else:
            own.write_text("query-id\tcorpus-id\n" + "".join(f"{q}\t{d}\n" for q, d in zip(queries, documents, strict=True)))
        dataset = BeirDataset(path=write(DOCUMENTS, QUERIES), qrels=own)
    assert judged(dataset.open(cache)) == [("1", "7", 1), ("2", "3", 1)]
    assert caplog.text.count("has no column of gains: each judgement has gain 1") == 1


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"qid": "1", "docid": "7"}, {"qid": "2", "docid": "3", "score": 0}], "judged.jsonl:2: got the fields"),
        ([{"qid": "1", "docid": "7", "score": 1}, {"qid": "2", "docid": "3"}], "judged.jsonl:2: no gain: got the fields"),
    ],
)
def test_gains_are_given_to_all_judgements_or_to_none(
    write: Write, cache: Path, tmp_path: Path, rows: list[dict[str, str | int]], said: str
) -> None:
    own = tmp_path / "judged.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DatasetError) as caught:
        BeirDataset(path=write(DOCUMENTS, QUERIES), qrels=own).open(cache)
    assert said in str(caught.value)


def test_a_parquet_file_whose_gain_has_another_name_is_not_taken_for_one_without(
    write: Write, cache: Path, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"query-id": ["1"], "corpus-id": ["7"], "level": [0]}), tmp_path / "judged.parquet")
    with pytest.raises(DatasetError, match=r"no gain: got the fields \['corpus-id', 'level', 'query-id'\], expected one of"):
        BeirDataset(path=write(DOCUMENTS, QUERIES), qrels=tmp_path / "judged.parquet").open(cache)


def of_tables(folder: Path, corpus: str, queries: str = "1\tone\n2\ttwo\n", cache: Path | None = None) -> TestSet:
    """A test set of tables with judgements for queries 1 and 2 and documents 7 and 3."""
    for name, content in (("corpus.tsv", corpus), ("queries.tsv", queries), ("qrels.txt", "1 0 7 2\n2 0 3 1\n")):
        (folder / name).write_text(content)
    return TevatronDataset(path=folder, name="tables").open(cache or folder / "cache")


def test_psgs_w100_is_read_by_its_header_and_its_quotes(tmp_path: Path) -> None:
    corpus = 'id\ttext\ttitle\n7\t"says ""so"", and a\ttab"\tSeven\n3\tsays "so"\t"Three"\n9\t"open\tNine\n'
    test_set = of_tables(tmp_path, corpus)
    assert test_set.corpus.ids(np.arange(3)) == ["7", "3", "9"]
    assert test_set.corpus.texts(np.arange(3)) == ['Seven says "so", and a\ttab', 'Three says "so"', 'Nine "open']


def test_without_a_header_quotes_are_part_of_the_text(tmp_path: Path) -> None:
    assert of_tables(tmp_path, '7\t"seven" ""\n3\t"three"\n').corpus.texts(np.arange(2)) == ['"seven" ""', '"three"']


@pytest.mark.parametrize(
    ("queries", "texts"),
    [
        ("qid\turl\tquery\n1\thttp://x\tone\n2\thttp://y\ttwo\n", ("one", "two")),
        ("text\tquery_id\none\t1\ntwo\t2\n", ("one", "two")),
        ("ID\tText\n1\tone\n2\ttwo\n", ("one", "two")),
    ],
)
def test_queries_are_read_by_the_names_of_their_header(tmp_path: Path, queries: str, texts: tuple[str, ...]) -> None:
    assert of_tables(tmp_path, "7\tseven\n3\tthree\n", queries).query_texts == texts


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        (
            "D7\thttp://x\tStars\tthe sun\nD3\thttp://y\t\tx\n",
            "corpus.tsv:1: got 4 columns in 'D7\\thttp://x\\tStars\\tthe sun'",
        ),
        ("7\thttp://x\tseven\n", "corpus.tsv:1: got 3 columns"),
        ("7\tseven\n3\tthree\twith a tab\n", "corpus.tsv:2: got 3 columns"),
        ("docno\tcontent\n7\tseven\n3\tthree\n", "corpus.tsv:1: this looks like a header, ['docno', 'content'], but names no"),
        ("nummer\tInhalt\n7\tseven\n3\tthree\n", "corpus.tsv:1: this looks like a header, ['nummer', 'Inhalt'], but names no"),
        ("id\tabstract\n7\tseven\n", "names no document text (expected for the document text: one of ['text', "),
        ("id\ttext\n7\tseven\textra\n", "corpus.tsv:2: got 3 columns in '7\\tseven\\textra', but the header has 2"),
        ("id,text\n7,seven\n", "corpus.tsv:1: no tab in 'id,text'"),
    ],
)
def test_tables_of_texts_that_are_not_understood_are_refused(tmp_path: Path, corpus: str, said: str) -> None:
    with pytest.raises(DatasetError) as caught:
        of_tables(tmp_path, corpus)
    assert said in str(caught.value)


def test_a_first_text_that_is_one_word_is_no_header(tmp_path: Path) -> None:
    assert of_tables(tmp_path, "7\ttext\n3\tquery\n").corpus.texts(np.arange(2)) == ["text", "query"]


@pytest.mark.parametrize("name", ["msmarco_passage_00.gz", "msmarco_passage_00.jsonl.gz"])
def test_passages_of_ms_marco_v2_have_their_pid_not_the_document_that_they_are_from(
    tmp_path: Path, cache: Path, name: str
) -> None:
    rows = [{"pid": f"p_{n}", "passage": f"text {n}", "spans": "(0,9)", "docid": "msmarco_doc_00_0"} for n in range(3)]
    (tmp_path / "passages").mkdir()
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "passages" / name).write_bytes(gzip.compress(content))
    (tmp_path / "queries.tsv").write_text("1\tone\n")
    (tmp_path / "qrels.tsv").write_text("1\t0\tp_2\t1\n")
    own = MsmarcoDataset(corpus=tmp_path / "passages", queries=tmp_path / "queries.tsv", qrels=tmp_path / "qrels.tsv")
    assert own.open(cache).corpus.ids(np.arange(3)) == ["p_0", "p_1", "p_2"]


def test_qrels_edited_in_place_at_the_same_size_are_read_again(write: Write, cache: Path) -> None:
    folder = write(DOCUMENTS, QUERIES, "1 7 2\n2 3 1\n")
    before, file = BeirDataset(path=folder).open(cache), folder / "qrels" / "test.tsv"
    stat = file.stat()
    with file.open("r+b") as stream:  # the same inode
        stream.write(b"1 8 2\n")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))  # as an editor that took a second
    after = BeirDataset(path=folder).open(cache)
    assert (file.stat().st_size, file.stat().st_ino) == (stat.st_size, stat.st_ino)
    assert judged(after) == [("1", "8", 2), ("2", "3", 1)]
    assert after.fingerprint != before.fingerprint


def identical(write: Write, qrels: str = "1 3 1\n2 4 1\n") -> Path:
    """Two queries that are documents, title aside, and one that has but the id of one."""
    titled = '{"_id": "1", "title": "First", "text": "a  document of three"}\n{"_id": "2", "text": "another one"}\n'
    others = '{"_id": "3", "text": "for one"}\n{"_id": "4", "text": "for two"}\n'
    queries = '{"_id": "1", "text": "a document of three"}\n{"_id": "2", "text": "another one"}\n{"_id": "3", "text": "no"}\n'
    return write(titled + others, queries, qrels)


def test_queries_that_are_documents_are_said_to_be(write: Write, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    test_set = BeirDataset(path=identical(write, "1 3 1\n2 4 1\n3 4 1\n")).open(cache)
    assert "of 3 queries, 3 have the id of a document and 2 of them its text, too (as in ArguAna and Quora)" in caplog.text
    assert "identical" in caplog.text and "dataset.ignore_identical_ids=true" in caplog.text
    assert test_set.own_documents.tolist() == [-1, -1, -1]  # said, not done


@pytest.mark.parametrize(
    ("ignored", "qrels"),
    [
        (True, "1 3 1\n2 4 1\n"),  # done already
        (False, "3 4 1\n"),  # numbers that meet by chance
        (False, "1 1 1\n2 2 1\n"),  # the document itself is to be found
    ],
)
def test_nothing_is_said_of_queries_that_are_no_trivial_hits(
    write: Write, cache: Path, caplog: pytest.LogCaptureFixture, ignored: bool, qrels: str
) -> None:
    BeirDataset(path=identical(write, qrels), ignore_identical_ids=ignored).open(cache)
    assert "identical" not in caplog.text
