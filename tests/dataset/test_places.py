"""Parts named by a pattern or a URL: the same test set as from files, read as a stream, and errors that say which key."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from dr_validate.dataset.beir import BeirDataset
from dr_validate.dataset.msmarco import MsmarcoDataset
from dr_validate.dataset.storage import RemoteFile
from dr_validate.dataset.tevatron import TevatronDataset
from dr_validate.errors import DatasetError
from dr_validate.files import sha256_of_file
from tests.factories import composed

TEXTS = ["Sockets open", "parse a decimal", "read", "an archive"]
ROWS = [{"docid": f"d{n}", "text": text} for n, text in enumerate(TEXTS)]
QUERIES = [{"query_id": "q1", "query": "how to connect", "positive_passages": [{"docid": "d3"}]}]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four documents in three shards of three kinds, and queries."""
    folder = tmp_path / "data" / "wiki.v1"
    (folder / "shards").mkdir(parents=True)
    (folder / "shards" / "0.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    (folder / "shards" / "1.jsonl.gz").write_bytes(gzip.compress((json.dumps(ROWS[1]) + "\n").encode()))
    pq.write_table(pa.Table.from_pylist(ROWS[2:]), folder / "shards" / "2.parquet")
    (folder / "shards" / "notes.md").write_text("not a shard")
    (folder / "shards" / ".3.jsonl").write_text("being written")
    (folder / "queries.jsonl").write_text(json.dumps(QUERIES[0]) + "\n")
    return folder


@pytest.fixture
def bucket(data: Path) -> Iterator[str]:
    """The same at a URL."""
    system = fsspec.filesystem("memory")
    for file in data.rglob("*.*"):
        if file.is_file():
            system.pipe(f"/bucket/wiki.v1/{file.relative_to(data)}", file.read_bytes())
    yield "memory://bucket/wiki.v1"
    system.rm("/bucket", recursive=True)


def opened(cache: Path, corpus: Any, queries: Any) -> Any:
    return TevatronDataset(corpus=corpus, queries=queries).open(cache)


def test_a_pattern_a_folder_and_a_url_of_either_are_the_same_test_set(
    data: Path, bucket: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = opened(cache, data / "shards", data / "queries.jsonl")
    assert expected.corpus.texts(np.arange(4)) == TEXTS
    assert expected.corpus.ids(expected.qrels.documents) == ["d3"]
    monkeypatch.chdir(tmp_path)
    places: list[tuple[Any, Any]] = [
        (data / "shards" / "*[0-9].*[tlz]", data / "quer*.jsonl"),
        (Path("data/**/?.*[tlz]"), Path("data/wiki.v1/queries.jsonl")),
        (f"file://{data}/shards/?.*", f"file://{data}/queries.jsonl"),
        (f"{bucket}/shards/?.*", f"{bucket}/queries.jsonl"),
        (f"{bucket}/shards", f"{bucket}/*.jsonl"),
        (f"{bucket}/shards/", data / "queries.jsonl"),
    ]
    for number, (corpus, queries) in enumerate(places):
        found = opened(tmp_path / f"cache-{number}", corpus, queries)
        assert found.fingerprint == expected.fingerprint, (corpus, queries)
        assert found.corpus.texts(np.arange(4)) == TEXTS


def test_a_collection_is_named_after_the_folder_of_a_pattern(data: Path, bucket: str, cache: Path) -> None:
    for place in (data / "*" / "*.jsonl", f"{bucket}/*/*.jsonl", f"{bucket}/shards/0.jsonl"):
        queries = data / "positives.jsonl"
        queries.write_text(json.dumps({**QUERIES[0], "positive_passages": [{"docid": "d0"}]}) + "\n")
        name = opened(cache, place, queries).name
        assert name == ("0.jsonl" if str(place).endswith("0.jsonl") else "wiki.v1")


def test_of_many_shards_a_message_names_the_first(data: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    for n in range(40):
        (data / "shards" / f"{n + 10}.jsonl").write_text(json.dumps({"docid": f"e{n}", "text": "more"}) + "\n")
    with caplog.at_level("INFO", "dr_validate"):
        opened(cache, data / "shards", data / "queries.jsonl")
    (said,) = [message for message in caplog.messages if message.startswith("converting ")]
    assert said.endswith("10.jsonl and 40 more (once)"), said


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(data: Path, cache: Path) -> None:
    odd = (data / "shards" / "2.parquet").rename(data / "part[0].parquet")
    assert len(opened(cache, odd, data / "queries.jsonl").corpus) == 2


def test_remote_content_is_hashed_once_and_again_when_it_changed(
    data: Path, bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def hashed(file: RemoteFile) -> str:
        read.append(str(file))
        return sha256_of_file(file)

    monkeypatch.setattr("dr_validate.dataset.storage.sha256_of_file", hashed)
    url = f"file://{data}/shards"
    first = opened(cache, url, data / "queries.jsonl")
    assert len(read) == 4
    assert opened(cache, url, data / "queries.jsonl").fingerprint == first.fingerprint
    assert len(read) == 4
    (data / "shards" / "0.jsonl").write_text(json.dumps({**ROWS[0], "text": "Sockets close"}) + "\n")
    changed = opened(cache, url, data / "queries.jsonl")
    assert read[4:] == [f"file://{data}/shards/0.jsonl"]
    assert changed.fingerprint != first.fingerprint
    assert changed.corpus.texts(np.arange(1)) == ["Sockets close"]
    # A storage that says nothing of when a file changed is read at each start.
    before = len(read)
    for _ in range(2):
        opened(cache, f"{bucket}/shards", data / "queries.jsonl")
    assert len(read) == before + 6


@pytest.mark.parametrize("place", ["{data}/shards/*.tsv", "file://{data}/nothing/*.parquet", "memory://no/such.jsonl"])
def test_what_matches_nothing_is_named_with_its_key(data: Path, cache: Path, place: str) -> None:
    given = place.format(data=data)
    with pytest.raises(DatasetError) as caught:
        BeirDataset(path=data, corpus=given if "://" in given else Path(given)).check()
    assert f"dataset.corpus: no file matches {given}; set dataset.corpus to where it is" in str(caught.value)
    assert "dataset.queries" not in str(caught.value) and "dataset.qrels: found none of test.tsv" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nope://bucket/x.jsonl", r"dataset\.corpus: nope://bucket/x\.jsonl cannot be read \(ValueError: Protocol not known"),
        ("dask://bucket/x.jsonl", r"dataset\.corpus: dask:// needs a package that is not installed \(.*; install it with pip"),
    ],
)
def test_a_url_that_nobody_can_read_is_named_with_its_key(data: Path, url: str, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        MsmarcoDataset(corpus=url, queries=data / "queries.jsonl", qrels=data / "queries.jsonl").check()


def test_what_fails_while_it_is_read_names_the_file(
    data: Path, bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fails(Exception):
        """Of a library that we know nothing of."""

    class Stream:
        def read(self, size: int = -1) -> bytes:
            raise Fails("the line went dead")

        def seekable(self) -> bool:
            return True

        def close(self) -> None:
            pass

    memory = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(memory, "open", lambda self, path, mode: Stream())
    with pytest.raises(DatasetError, match=r"^memory://.*queries\.jsonl: cannot be read \(Fails: the line went dead\)"):
        opened(cache, f"{bucket}/shards", f"{bucket}/queries.jsonl")


@pytest.mark.parametrize("url", ["https://me:word@host/x.jsonl", "s3://key:secret@bucket/x", "https://host/x?Signature=1"])
def test_a_url_with_a_key_in_it_is_refused(data: Path, url: str) -> None:
    with pytest.raises(ValidationError, match="a URL with a login or a key in it"):
        BeirDataset(path=data, corpus=url)


def test_only_what_is_all_on_this_machine_is_said_to_be_here(data: Path) -> None:
    assert BeirDataset(path=data, corpus=data / "*.jsonl").is_here
    assert not BeirDataset(path=data, corpus="s3://bucket/*.parquet").is_here
    assert not MsmarcoDataset(path=data, qrels="s3://bucket/qrels.tsv").is_here


def test_the_command_line_takes_patterns_and_urls_as_they_are() -> None:
    given = composed("dataset=tevatron", "dataset.corpus=s3://bucket/shards/*.parquet", "dataset.queries=/data/q-??.jsonl")
    assert given["dataset"]["corpus"] == "s3://bucket/shards/*.parquet"
    assert given["dataset"]["queries"] == "/data/q-??.jsonl"
