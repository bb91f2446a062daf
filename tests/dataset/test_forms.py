"""Files of the forms that collections are distributed in: MS MARCO's, TREC's, Tevatron's, Asyncval's, MIRACL's."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from dr_validate.dataset.msmarco import MsmarcoDataset
from dr_validate.dataset.tevatron import TevatronDataset
from dr_validate.errors import DatasetError


def json_lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def msmarco(tmp_path: Path) -> Path:
    folder = tmp_path / "marco"
    folder.mkdir()
    (folder / "collection.tsv.gz").write_bytes(gzip.compress("0\ta passage\n1\tein Stück\n2\tlast\n".encode()))
    (folder / "queries.dev.tsv").write_text("7\tfirst query\n8\tsecond query\n9\tnot judged\n")
    (folder / "qrels.dev.small.tsv").write_text("7\t0\t1\t1\n8 0   0  1\n")
    return folder


def test_msmarcos_own_files_are_read_and_only_judged_queries_used(msmarco: Path, cache: Path) -> None:
    test_set = MsmarcoDataset(path=msmarco).open(cache)
    assert (test_set.name, test_set.query_ids, test_set.query_texts) == ("msmarco", ("7", "8"), ("first query", "second query"))
    assert test_set.corpus.texts(np.arange(3)) == ["a passage", "ein Stück", "last"]
    assert test_set.corpus.ids(test_set.qrels.documents) == ["1", "0"]


def test_the_small_files_are_preferred(msmarco: Path, cache: Path) -> None:
    (msmarco / "queries.dev.small.tsv").write_text("7\tsmall\n8\tsmaller\n")
    assert MsmarcoDataset(path=msmarco).open(cache).query_texts == ("small", "smaller")


def test_a_run_beside_the_files_is_the_collections_own_for_its_own_queries(msmarco: Path, cache: Path) -> None:
    assert MsmarcoDataset(path=msmarco).open(cache).shipped_run is None
    zipped(run := msmarco / "top1000.dev.tsv.gz", "7\t1\tfirst query\tein Stück\n")
    assert MsmarcoDataset(path=msmarco).open(cache).shipped_run == run
    assert MsmarcoDataset(path=msmarco, queries=msmarco / "queries.dev.tsv").open(cache).shipped_run is None


def test_a_passage_without_a_tab_is_named(msmarco: Path, cache: Path) -> None:
    own = msmarco / "own.tsv"
    own.write_text("0\ta\n1 b\n")
    with pytest.raises(DatasetError, match=r"own\.tsv:2: no tab in '1 b', expected id<TAB>text"):
        MsmarcoDataset(path=msmarco, corpus=own).open(cache)


def test_without_a_place_the_keys_to_set_are_named(cache: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset\.path=FOLDER .* dataset\.hub=BeIR/msmarco"):
        MsmarcoDataset().open(cache)


@pytest.mark.parametrize("values", [{"hub": "BeIR/msmarco", "path": "x"}, {"revision": "main"}])
def test_settings_without_effect_are_refused(values: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="no effect"):
        MsmarcoDataset(**values)  # type: ignore[arg-type]  # values as YAML gives them


def test_own_files_alone_are_enough(msmarco: Path, cache: Path) -> None:
    corpus, queries, qrels = msmarco / "collection.tsv.gz", msmarco / "queries.dev.tsv", msmarco / "qrels.dev.small.tsv"
    assert len(MsmarcoDataset(corpus=corpus, queries=queries, qrels=qrels).open(cache).query_ids) == 2
    tevatron = TevatronDataset(corpus=corpus, queries=queries, qrels=qrels, name="t")
    assert tevatron.open(cache).query_ids == ("7", "8")


def test_tevatrons_columns_are_read_from_a_folder_of_shards(tmp_path: Path, cache: Path) -> None:
    json_lines(tmp_path / "corpus" / "01.jsonl", [{"docid": 2, "title": "B", "text": "two"}])
    table = pa.table({"docid": ["1"], "title": ["A"], "text": ["one"], "extra": [None]})
    pq.write_table(table, tmp_path / "corpus" / "00.parquet")
    json_lines(tmp_path / "queries.jsonl", [{"query_id": "q", "query": "ask", "positive_passages": []}])
    json_lines(tmp_path / "qrels.jsonl", [{"query_id": "q", "docid": 2, "score": 3.0}])
    test_set = TevatronDataset(path=tmp_path, name="shards").open(cache)
    assert test_set.corpus.ids(np.arange(2)) == ["1", "2"]
    assert test_set.corpus.texts(np.arange(2)) == ["A one", "B two"]
    assert (test_set.query_texts, test_set.qrels.gains.tolist()) == (("ask",), [3])


def test_asyncvals_token_ids_pass_through(tmp_path: Path, cache: Path) -> None:
    json_lines(tmp_path / "corpus.jsonl", [{"text_id": "1", "text": [5, 6]}, {"text_id": "2", "text": [7]}])
    json_lines(tmp_path / "queries.jsonl", [{"text_id": "q", "text": [8]}])
    (tmp_path / "qrels.txt").write_text("q 0 2 1\n")
    test_set = TevatronDataset(path=tmp_path).open(cache)
    assert test_set.corpus.texts(np.arange(2)) == [[5, 6], [7]]
    assert test_set.query_texts == ([8],)


def test_token_ids_are_read_from_parquet(tmp_path: Path, cache: Path) -> None:
    pq.write_table(pa.table({"text_id": [1, 2], "text": [[5, 6], []]}), tmp_path / "corpus.parquet")
    pq.write_table(pa.table({"text_id": ["q"], "text": [[8]]}), tmp_path / "queries.parquet")
    pq.write_table(pa.table({"qid": ["q"], "pid": [1], "relevance": [1]}), tmp_path / "qrels.parquet")
    test_set = TevatronDataset(path=tmp_path).open(cache)
    assert test_set.corpus.texts(np.arange(2)) == [[5, 6], []]
    assert test_set.corpus.ids(test_set.qrels.documents) == ["1"]


def test_a_parquet_file_without_the_columns_is_named(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"a": [1]}), file)
    queries = json_lines(tmp_path / "queries.jsonl", [{"query_id": "q", "query": "ask"}])
    qrels = tmp_path / "qrels.tsv"
    qrels.write_text("q d 1\n")
    dataset = TevatronDataset(corpus=file, queries=queries, qrels=qrels)
    with pytest.raises(
        DatasetError, match=r"corpus\.parquet: got the columns \['a'\], expected some of \['_id', 'pid', 'docid'"
    ):
        dataset.open(cache)
    pq.write_table(pa.table({"docid": ["d", None], "text": ["x", "y"]}), file)
    with pytest.raises(DatasetError, match=r"corpus\.parquet, row 2: document id: got 'null'"):
        dataset.open(cache)
    file.write_bytes(b"no parquet")
    with pytest.raises(DatasetError, match=r"corpus\.parquet: not a readable Parquet file"):
        dataset.open(cache)


def test_a_folder_without_shards_is_named(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "corpus").mkdir()
    json_lines(tmp_path / "queries.jsonl", [])
    (tmp_path / "qrels.tsv").touch()
    with pytest.raises(DatasetError, match="holds no file ending in one of .jsonl"):
        TevatronDataset(path=tmp_path).open(cache)


def test_tevatron_must_be_told_where() -> None:
    with pytest.raises(ValidationError, match="got neither path nor queries, qrels"):
        TevatronDataset(corpus=Path("corpus.jsonl"))


def zipped(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(text.encode()))
    return file


def test_documents_of_ms_marco_v1_are_title_and_body_and_never_their_url(tmp_path: Path, cache: Path) -> None:
    rows = [
        'D1555982\thttps://answers.yahoo.com/question/index?qid=1\tThe hot "stars"\tScience & Mathematics Physics',
        "D301595\thttp://childparenting.about.com/od/a.htm\t\tOne hundred child development milestones",
    ]
    zipped(tmp_path / "msmarco-docs.tsv.gz", "\n".join(rows) + "\n")
    (tmp_path / "msmarco-docdev-queries.tsv").write_text("2\tandroid studio\n1215\tchild milestones\n")
    zipped(tmp_path / "msmarco-docdev-qrels.tsv.gz", "1215 0 D301595 1\n")
    test_set = MsmarcoDataset(path=tmp_path).open(cache)
    assert test_set.corpus.texts(np.arange(2)) == ['The hot "stars" Science & Mathematics Physics', rows[1].split("\t")[3]]
    assert (test_set.query_ids, test_set.corpus.ids(test_set.qrels.documents)) == (("1215",), ["D301595"])
    (tmp_path / "msmarco-docs.tsv.gz").write_bytes(gzip.compress((rows[0] + "\tmore\n").encode()))
    with pytest.raises(DatasetError, match=r"msmarco-docs\.tsv\.gz:1: got 5 columns .* expected MS MARCO's docid<TAB>url"):
        MsmarcoDataset(path=tmp_path).open(cache)


@pytest.mark.parametrize(
    ("part", "queries", "row", "text"),
    [
        (
            "passage",
            "passv2",
            {"pid": "p", "passage": "of the sun", "spans": "(0,9)", "docid": "msmarco_doc_00_0"},
            "of the sun",
        ),
        ("doc", "docv2", {"url": "http://x", "title": "A", "headings": "B", "body": "C", "docid": "p"}, "A C"),
    ],
)
def test_ms_marco_v2_is_read_from_the_folder_of_its_shards(
    tmp_path: Path, cache: Path, part: str, queries: str, row: dict[str, str], text: str
) -> None:
    zipped(tmp_path / f"msmarco_v2_{part}" / f"msmarco_{part}_00.gz", json.dumps(row) + "\n")
    (tmp_path / f"{queries}_dev_queries.tsv").write_text("419507\thow far away\n")
    (tmp_path / f"{queries}_dev_qrels.tsv").write_text("419507\t0\tp\t1\n")
    test_set = MsmarcoDataset(path=tmp_path).open(cache)
    assert (test_set.corpus.ids(np.arange(1)), test_set.corpus.texts(np.arange(1))) == (["p"], [text])
    assert test_set.query_texts == ("how far away",)


TOPICS = """<top>

<num> Number: 301
<title> International Organized Crime

<desc> Description:
Identify organizations that participate in
international criminal activity.

<narr> Narrative:
A relevant document must
</top>

<top>
<num>302</num>
<title>Topic: Poliomyelitis
 and Post-Polio</title>
</top>
"""


def test_queries_are_the_titles_of_trecs_topics(msmarco: Path, cache: Path) -> None:
    (msmarco / "topics.txt").write_text(TOPICS)
    (msmarco / "qrels.txt").write_text("301 0 1 1\n302 0 2 1\n")
    test_set = MsmarcoDataset(path=msmarco, queries=msmarco / "topics.txt", qrels=msmarco / "qrels.txt").open(cache)
    texts = ("International Organized Crime", "Poliomyelitis and Post-Polio")
    assert (test_set.query_ids, test_set.query_texts) == (("301", "302"), texts)


@pytest.mark.parametrize(
    ("topics", "said"),
    [
        (TOPICS.replace("<num>302</num>", ""), "topics.txt:14: this topic has no <num>"),
        (TOPICS.replace("<title> International Organized Crime", ""), "topics.txt:1: this topic has no <title>"),
        (TOPICS.removesuffix("</top>\n"), "topics.txt:14: this <top> has no </top>"),
        ('<topics><topic number="1">\n', "topics.txt:1: got '<topics><topic number=\"1\">', expected TREC's topics (<top>"),
    ],
)
def test_topics_that_are_not_understood_are_named(msmarco: Path, cache: Path, topics: str, said: str) -> None:
    (msmarco / "topics.txt").write_text(topics)
    with pytest.raises(DatasetError) as caught:
        MsmarcoDataset(path=msmarco, queries=msmarco / "topics.txt").open(cache)
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_positive_passages_of_tevatron_are_judgements(tmp_path: Path, cache: Path, kind: str) -> None:
    json_lines(tmp_path / "corpus.jsonl", [{"docid": str(n), "title": "T", "text": f"text {n}"} for n in range(4)])
    passages = [[{"docid": "2", "title": "T", "text": "text 2"}, {"docid": "0", "title": "", "text": "x"}], []]
    rows: list[dict[str, Any]] = [
        {"query_id": f"q{n}", "query": f"ask {n}", "positive_passages": found, "negative_passages": [{"docid": "1"}]}
        for n, found in enumerate(passages)
    ]
    if kind == "jsonl":
        json_lines(tmp_path / "queries.jsonl", rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "queries.parquet")
    own = TevatronDataset(corpus=tmp_path / "corpus.jsonl", queries=tmp_path / f"queries.{kind}", name="t")
    for dataset in (TevatronDataset(path=tmp_path, name="t"), own):
        test_set = dataset.open(cache)
        assert (test_set.query_ids, test_set.query_texts) == (("q0",), ("ask 0",))  # the other one has no positive
        assert test_set.corpus.ids(test_set.qrels.documents) == ["2", "0"]
        assert test_set.qrels.gains.tolist() == [1, 1]
    (tmp_path / "qrels.tsv").write_text("q1\t3\t2\n")  # where there are qrels, they count
    assert TevatronDataset(path=tmp_path).open(cache).qrels.gains.tolist() == [2]


def test_queries_without_qrels_and_positives_name_the_key(tmp_path: Path) -> None:
    corpus = json_lines(tmp_path / "corpus.jsonl", [{"docid": "1", "text": "x"}])
    queries = json_lines(tmp_path / "queries.jsonl", [{"query_id": "q", "query": "ask"}])
    with pytest.raises(DatasetError, match=r"dataset\.qrels: not set, and the queries have no positive_passages"):
        TevatronDataset(corpus=corpus, queries=queries).check()


def test_miracl_and_mmarco_are_read_by_language_from_their_own_files(tmp_path: Path, cache: Path) -> None:
    rows = [{"docid": f"26569#{n}", "title": "Akiolojia", "text": f"Elimu {n}"} for n in range(2)]
    for number, row in enumerate(rows):
        zipped(tmp_path / "miracl-corpus-v1.0-sw" / f"docs-{number}.jsonl.gz", json.dumps(row) + "\n")
    (tmp_path / "topics.miracl-v1.0-sw-dev.tsv").write_text("0\tElimu ni nini?\n")
    (tmp_path / "qrels.miracl-v1.0-sw-dev.tsv").write_text("0\tQ0\t26569#1\t1\n0\tQ0\t26569#0\t0\n")
    places = [
        tmp_path / name for name in ("miracl-corpus-v1.0-sw", *(f"{p}.miracl-v1.0-sw-dev.tsv" for p in ("topics", "qrels")))
    ]
    miracl = TevatronDataset(corpus=places[0], queries=places[1], qrels=places[2]).open(cache)
    assert (miracl.query_texts, miracl.corpus.ids(miracl.qrels.documents)) == (("Elimu ni nini?",), ["26569#1", "26569#0"])
    (tmp_path / "german_collection.tsv").write_text("0\tDie Anwesenheit\n1\tDas Manhattan-Projekt\n")
    (tmp_path / "german_queries.dev.small.tsv").write_text("1\twas ist es\n")
    (tmp_path / "qrels.dev.small.tsv").write_text("1\t0\t1\t1\n")
    names = ("german_collection.tsv", "german_queries.dev.small.tsv", "qrels.dev.small.tsv")
    corpus, queries, qrels = (tmp_path / name for name in names)
    german = MsmarcoDataset(corpus=corpus, queries=queries, qrels=qrels, name="mmarco-de").open(cache)
    assert (german.name, german.corpus.texts(german.qrels.documents)) == ("mmarco-de", ["Das Manhattan-Projekt"])
