import gzip
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dr_validate.dataset.beir import BeirDataset
from dr_validate.dataset.corpus import BATCH_ROWS
from dr_validate.dataset.storage import digests_of
from dr_validate.errors import DatasetError

Write = Callable[..., Path]
EVERYTHING = np.arange(3)


def test_vaswani_has_its_published_counts(vaswani: Path, cache: Path) -> None:
    test_set = BeirDataset(path=vaswani).open(cache)
    assert (len(test_set.corpus), len(test_set.query_ids), len(test_set.qrels.gains)) == (11_429, 93, 2_083)
    assert test_set.name == "vaswani"
    assert test_set.corpus.ids(np.array([0, 11_428])) == ["1", "11429"]
    documents, _ = test_set.qrels.row(0)
    assert {"1239", "1502"} <= set(test_set.corpus.ids(documents))


def test_titles_are_joined_gains_stay_graded_and_unjudged_queries_are_left_out(write: Write, cache: Path) -> None:
    test_set = BeirDataset(path=write()).open(cache)
    assert test_set.corpus.texts(EVERYTHING) == ["Sockets open a connection", "parse a decimal", "read an archive"]
    assert (test_set.query_ids, test_set.query_texts) == (("q1", "q2"), ("how to connect", "decimal numbers"))
    assert [row.tolist() for row in test_set.qrels.row(0)] == [[0, 2], [2, 0]]
    assert [row.tolist() for row in test_set.qrels.row(1)] == [[1], [1]]
    assert test_set.own_documents.tolist() == [-1, -1]


def test_a_query_that_is_a_document_is_known_when_asked_for(write: Write, cache: Path) -> None:
    queries = '{"_id": "d2", "text": "is a document"}\n{"_id": "q2", "text": "is none"}\n'
    folder = write(queries=queries, qrels="d2 d1 1\nq2 d2 1\n")
    plain = BeirDataset(path=folder).open(cache)
    test_set = BeirDataset(path=folder, ignore_identical_ids=True).open(cache)
    assert test_set.own_documents.tolist() == [1, -1]
    assert test_set.fingerprint != plain.fingerprint


def test_ignoring_identical_ids_without_any_is_an_error(write: Write, cache: Path) -> None:
    with pytest.raises(DatasetError, match="ignore_identical_ids: got true, but no query id is a document id"):
        BeirDataset(path=write(), ignore_identical_ids=True).open(cache)


def test_gzipped_files_are_the_same_collection(write: Write, cache: Path) -> None:
    plain = BeirDataset(path=write()).open(cache)
    folder = write()
    for file in (folder / "corpus.jsonl", folder / "queries.jsonl", folder / "qrels/test.tsv"):
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    zipped = BeirDataset(path=folder).open(cache)
    assert zipped.corpus.texts(EVERYTHING) == plain.corpus.texts(EVERYTHING)
    assert (zipped.query_ids, zipped.qrels.documents.tolist()) == (plain.query_ids, plain.qrels.documents.tolist())


@pytest.mark.parametrize(
    "qrels",
    [
        "q1\t0\td1\t2\nq1\t0\td3\t0\nq2\t0\td2\t1\n",
        "q1 0 d1   2\nq1 0  d3 0\n\nq2 0 d2 1.0\n",
        "\ufeffq1 d1 2\r\nq1 d3 0\r\nq2 d2 1",
    ],
    ids=["trec-tabs", "trec-spaces", "no-header-windows"],
)
def test_judgements_are_read_in_every_usual_form(write: Write, cache: Path, qrels: str) -> None:
    test_set = BeirDataset(path=write(qrels=qrels)).open(cache)
    assert test_set.qrels.gains.tolist() == [2, 0, 1]
    assert test_set.corpus.ids(test_set.qrels.documents) == ["d1", "d3", "d2"]


def test_negative_gains_are_kept_and_the_same_judgement_counts_once(write: Write, cache: Path) -> None:
    test_set = BeirDataset(path=write(qrels="q1 d1 -1\nq1 d1 -1\nq2 d2 3\n")).open(cache)
    assert test_set.qrels.gains.tolist() == [-1, 3]


def test_another_split_is_another_test_set_over_the_same_corpus(write: Write, cache: Path) -> None:
    folder = write()
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq3\td1\t1\n")
    test, dev = BeirDataset(path=folder).open(cache), BeirDataset(path=folder, split="dev").open(cache)
    assert dev.query_ids == ("q3",)
    assert test.fingerprint != dev.fingerprint
    assert len([place for place in cache.iterdir() if place.is_dir()]) == 1


def test_own_files_take_the_place_of_the_folders(write: Write, cache: Path, tmp_path: Path) -> None:
    own = tmp_path / "judged.txt"
    own.write_text("q3 0 d2 1\n")
    test_set = BeirDataset(path=write(), qrels=own, name="mine").open(cache)
    assert (test_set.name, test_set.query_ids) == ("mine", ("q3",))


def test_reopening_reads_no_document_again(write: Write, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = write()
    first = BeirDataset(path=folder).open(cache)
    assert "converting" in caplog.text
    caplog.clear()
    corpus = folder / "corpus.jsonl"
    before = corpus.stat()
    # Same size, time and inode but other content: only a reader of the content could tell.
    with corpus.open("r+b") as stream:
        stream.write(b"#" * 20)
    os.utime(corpus, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = BeirDataset(path=folder).open(cache)
    assert again.fingerprint == first.fingerprint
    assert again.corpus.texts(EVERYTHING) == first.corpus.texts(EVERYTHING)
    assert "converting" not in caplog.text


@pytest.mark.parametrize("part", ["corpus", "queries", "qrels"])
def test_a_changed_file_is_another_test_set(write: Write, cache: Path, part: str) -> None:
    before = BeirDataset(path=write()).open(cache)
    changed = {
        "corpus": '{"_id": "d1", "text": "new"}\n{"_id": "d2", "text": "b"}\n{"_id": "d3", "text": "c"}\n',
        "queries": '{"_id": "q1", "text": "new"}\n{"_id": "q2", "text": "b"}\n',
        "qrels": "q1 d1 1\n",
    }[part]
    after = BeirDataset(path=write(**{part: changed})).open(cache)
    assert after.fingerprint != before.fingerprint


def test_the_same_content_elsewhere_is_the_same_test_set(write: Write, cache: Path, tmp_path: Path) -> None:
    first = BeirDataset(path=write()).open(cache)
    moved = (tmp_path / "tiny").rename(tmp_path / "moved here")
    second = BeirDataset(path=moved).open(tmp_path / "another-cache")
    assert second.fingerprint == first.fingerprint
    assert second.name == "moved-here"


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def _blank_the_end(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8] + bytes(8))


def _blank_the_footer(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-60] + bytes(44) + content[-16:])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("documents.arrow", _cut),
        ("documents.arrow", _blank_the_end),
        ("documents.arrow", _blank_the_footer),
        ("tie_rank.npy", _cut),
        ("id_hash.npy", Path.unlink),
        ("manifest.json", Path.unlink),
        ("manifest.json", _cut),
    ],
)
def test_a_damaged_cache_is_rebuilt(
    write: Write, cache: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    folder = write()
    first = BeirDataset(path=folder).open(cache)
    texts = first.corpus.texts(EVERYTHING)
    ranks = first.corpus.tie_rank.tolist()
    del first
    damage(next(cache.glob(f"*/{name}")))
    again = BeirDataset(path=folder).open(cache)
    assert "damaged: making it again" in caplog.text
    assert (again.corpus.texts(EVERYTHING), again.corpus.tie_rank.tolist()) == (texts, ranks)


def test_a_damaged_memory_of_digests_is_made_again(write: Write, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = BeirDataset(path=write()).open(cache)
    (cache / "digests.json").write_text("{")
    assert BeirDataset(path=write()).open(cache).fingerprint == first.fingerprint
    assert "digests.json is damaged" in caplog.text
    assert json.loads((cache / "digests.json").read_text())


def test_what_a_killed_conversion_left_is_removed(write: Write, cache: Path) -> None:
    folder = write()
    BeirDataset(path=folder).open(cache)
    made = next(place for place in cache.iterdir() if place.is_dir())
    left_over = made.rename(made.with_name(f".{made.name}.k1ll3d"))
    BeirDataset(path=folder).open(cache)
    assert made.is_dir()
    assert not left_over.exists()


def test_a_corpus_with_problems_leaves_nothing_behind(write: Write, cache: Path) -> None:
    with pytest.raises(DatasetError):
        BeirDataset(path=write(corpus="{")).open(cache)
    assert not [place for place in cache.iterdir() if place.is_dir()]


def test_many_batches_and_long_documents_keep_their_order(write: Write, cache: Path) -> None:
    number = BATCH_ROWS * 2 + 17
    rows = (json.dumps({"_id": f"d{n}", "text": f"text {n}"}) for n in range(number))
    corpus = BeirDataset(path=write(corpus="\n".join(rows))).open(cache).corpus
    ordinals = np.array([number - 1, 0, BATCH_ROWS, BATCH_ROWS - 1, 5, 5, number - 2])
    assert corpus.texts(ordinals) == [f"text {n}" for n in ordinals]
    assert corpus.ids(np.sort(ordinals)) == [f"d{n}" for n in np.sort(ordinals)]
    assert corpus.find([f"d{n}" for n in ordinals] + ["absent"]).tolist() == [*ordinals.tolist(), -1]
    assert len(corpus) == number


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.jsonl: cannot be read"):
        digests_of([tmp_path / "gone.jsonl"], tmp_path)
