import gzip
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dr_validate.errors import SetupError
from dr_validate.sampler.run_pool import RunPoolSampler
from dr_validate.values import Sample, TestSet

WriteRun = Callable[[str, str], Path]

# Ranks by score, the ids d50 > d150 > d100 by bytes where scores tie; d0 is judged.
TREC = """q0 Q0 d100 1 3.5 tag
q0 Q0 d101 9 9.5 tag
q0 Q0 d0 3 2.5 tag
q0 Q0 d103 4 1.5 tag
q1 Q0 d150 1 2 tag
q1 Q0 d50 2 2 tag
q1 Q0 d100 3 2 tag
"""


def extra(test_set: TestSet, sample: Sample) -> set[str]:
    """Ids in the sample beyond the judged documents."""
    assert np.all(np.isin(test_set.judged, sample.ordinals))
    assert np.all(sample.inclusion == 1)
    return set(test_set.corpus.ids(np.setdiff1d(sample.ordinals, test_set.judged)))


@pytest.mark.parametrize(("depth", "expected"), [(1, "d101 d50"), (2, "d101 d50 d100 d150"), (9, "d101 d50 d100 d150 d103")])
def test_the_pool_is_the_top_of_each_query_by_score(
    small: TestSet, tmp_path: Path, write_run: WriteRun, depth: int, expected: str
) -> None:
    sampler = RunPoolSampler(run=str(write_run("run.trec", TREC)), depth=depth)
    assert extra(small, sampler.draw(small, 13, tmp_path)) == set(expected.split())


@pytest.mark.parametrize("name", ["run.txt", "run.tsv.gz"])
@pytest.mark.parametrize("separator", ["\t", " "])
def test_three_columns_are_an_ms_marco_run_ordered_by_rank(
    small: TestSet, tmp_path: Path, write_run: WriteRun, name: str, separator: str
) -> None:
    lines = ["q0 d103 3", "q0 d100 1", "q0 d102 10", "q0 d101 2", "q1 d150 1"]
    path = write_run(name, "\n".join(line.replace(" ", separator) for line in lines))
    sample = RunPoolSampler(run=str(path), depth=3).draw(small, 13, tmp_path)
    assert extra(small, sample) == {"d100", "d101", "d103", "d150"}


def test_a_fraction_is_filled_exactly_and_its_samples_nest(small: TestSet, tmp_path: Path) -> None:
    whole = extra(small, RunPoolSampler(run="bm25").draw(small, 13, tmp_path))
    samples = {n: RunPoolSampler(run="bm25", fraction=n / 200).draw(small, 13, tmp_path) for n in (13, 14, 20, 31, 50)}
    assert [len(sample.ordinals) for sample in samples.values()] == [13, 14, 20, 31, 50]
    drawn = [extra(small, sample) for sample in samples.values()]
    assert all(less < more for less, more in zip(drawn, drawn[1:], strict=False))
    assert drawn[-1] < whole


def test_a_fraction_goes_as_deep_as_it_can(small: TestSet, tmp_path: Path) -> None:
    by_depth = [extra(small, RunPoolSampler(run="bm25", depth=depth).draw(small, 13, tmp_path)) for depth in range(1, 8)]
    drawn = extra(small, RunPoolSampler(run="bm25", fraction=30 / 200).draw(small, 13, tmp_path))
    fitting = [pool for pool in by_depth if len(pool) <= 17]
    assert len(fitting) < len(by_depth)
    assert fitting[-1] <= drawn <= by_depth[len(fitting)]


def test_a_run_that_ends_before_the_budget_is_said_so(
    small: TestSet, tmp_path: Path, write_run: WriteRun, caplog: pytest.LogCaptureFixture
) -> None:
    sample = RunPoolSampler(run=str(write_run("run", TREC)), fraction=0.5).draw(small, 13, tmp_path)
    assert len(sample.ordinals) == 13 + 5
    assert "ends before the budget: 82 documents fewer" in caplog.text


def test_unknown_ids_are_counted_and_equal_hits_taken_once(
    small: TestSet, tmp_path: Path, write_run: WriteRun, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    text = "q0 Q0 d100 1 5 t\nq0 Q0 d100 2 4 t\nq0 Q0 d101 3 3 t\nq9 Q0 d102 1 5 t\nq0 Q0 nowhere 1 1 t\n"
    sample = RunPoolSampler(run=str(write_run("run", text)), depth=2).draw(small, 13, tmp_path)
    assert extra(small, sample) == {"d100", "d101"}
    assert "hits for 1 of 6 queries; of 5 lines, 1 name an unknown query and 1 an unknown document" in caplog.text


def test_the_document_that_is_the_query_takes_no_place(small: TestSet, tmp_path: Path, write_run: WriteRun) -> None:
    own = np.array([101, -1, -1, -1, -1, -1])
    sample = RunPoolSampler(run=str(write_run("run", TREC)), depth=1).draw(replace(small, own_documents=own), 13, tmp_path)
    assert extra(small, sample) == {"d100", "d50"}


def test_a_run_over_another_collection_is_refused(small: TestSet, tmp_path: Path, write_run: WriteRun) -> None:
    sampler = RunPoolSampler(run=str(write_run("run", "x Q0 d1 1 2 t\nq0 Q0 y 1 2 t\n")))
    with pytest.raises(SetupError, match=r"2 lines, and none of them names both a query and a document of small"):
        sampler.draw(small, 13, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q0 Q0 d1 1 2 t\nq0 d1 1\n", r"run:2: got 3 columns, expected 6 .* or 3"),
        ("q0 0 d1 1\n", "run:1: got 4 columns"),
        ("q0 Q0 d1 1 high t\n", "run:1: score is not a number"),
        ("q0\td1\tnan\n", "run:1: rank is not a number"),
    ],
)
def test_a_broken_line_is_an_error_that_names_it(
    small: TestSet, tmp_path: Path, write_run: WriteRun, text: str, message: str
) -> None:
    with pytest.raises(SetupError, match=message):
        RunPoolSampler(run=str(write_run("run", text))).draw(small, 13, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("short.gz", gzip.compress(TREC.encode() * 100)[:60], "cannot be read (Compressed file ended"),
        ("plain.gz", TREC.encode(), "cannot be read (Not a gzipped file"),
        ("damaged.gz", gzip.compress(TREC.encode())[:12] + b"xxxxxxxxxxxxxxxx", "cannot be read ("),
        ("latin-1", "q0 Q0 d\xfc 1 2 t\n".encode("latin-1"), "is not UTF-8 text ("),
    ],
    ids=["short", "plain", "damaged", "latin-1"],
)
def test_a_run_that_cannot_be_read_is_named(small: TestSet, tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SetupError, match=re.escape(f"{path}: {said}")):
        RunPoolSampler(run=str(path)).draw(small, 13, tmp_path)


def test_a_missing_run_is_an_error_that_names_the_choices(small: TestSet, tmp_path: Path) -> None:
    sampler = RunPoolSampler(run=str(tmp_path / "absent.trec"))
    for call in (sampler.fingerprint, lambda: sampler.draw(small, 13, tmp_path)):
        with pytest.raises(SetupError, match=r"absent\.trec', which is no file; give the path of a run, ranxhub:ID or bm25"):
            call()


def test_the_fingerprint_follows_the_content_of_a_run_not_its_path(write_run: WriteRun) -> None:
    first, moved, other = (
        RunPoolSampler(run=str(write_run(name, text))).fingerprint()
        for name, text in [("a", TREC), ("b", TREC), ("c", TREC + "q1 Q0 d7 4 1 tag\n")]
    )
    assert first == moved != other
    assert first["depth"] == 100


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 10, "fraction": 0.1}, "depth and fraction: got 10 and 0.1, set one"),
        ({"depth": 2_000}, "bm25_depth is 1000; raise bm25_depth"),
        ({"run": "file.trec", "bm25_depth": 10}, "no effect on run 'file.trec'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunPoolSampler(**{"run": "bm25", **values})


@pytest.mark.slow
def test_a_ranxhub_run_without_a_network_is_an_error_that_names_the_way_out(
    small: TestSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where ranx keeps what it downloads
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    sampler = RunPoolSampler(run="ranxhub:msmarco-passage/bm25")
    with pytest.raises(SetupError, match="sampler.run: ranxhub:msmarco-passage/bm25 cannot be loaded .* give its path instead"):
        sampler.draw(small, 13, tmp_path)
    assert sampler.fingerprint()["run"] == "ranxhub:msmarco-passage/bm25"
