"""MS MARCO's, Tevatron's and Asyncval's files."""

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
