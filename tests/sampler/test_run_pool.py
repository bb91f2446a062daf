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
from dr_validate.sampler.runs import NamedRun, candidates
from dr_validate.sampler.stratified import StratifiedSampler
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


# The same ranking of three documents, d103 first, in every form that says so.
@pytest.mark.parametrize(
    "lines",
    [
        ["q0\td103\t1", "q0\td101\t2", "q0\td100\t3"],
        ["q0\td100\t3", "q0\td103\t1", "q0\td101\t2"],
        ["q0\td103\t0", "q0\td101\t1", "q0\td100\t2"],
        ["q0\td103\t1.0", "q0\td101\t2.0", "q0\td100\t3.0"],
        ["q0\td103\t17", "q0\td101\t40", "q0\td100\t1000"],
        ["q0\td103\t12.5", "q0\td101\t2.5", "q0\td100\t2.25"],
        ["q0\td103\t-1.5", "q0\td101\t-2", "q0\td100\t-30"],
        ["q0\td103\t-1", "q0\td101\t-2", "q0\td100\t-3"],
        ["q0\td103\t9", "q0\td101\t8", "q0\td100\t8"],
        ["q1\td103\t7.5", "q0\td103\t3.5", "q1\td101\t1.5", "q0\td101\t2.5", "q0\td100\t1.5", "q1\td100\t1e-3"],
        ["q0 Q0 d100 1 1.5 t", "q0 Q0 d101 2 2.5 t", "q0 Q0 d103 3 3.5 t"],
        ["score\tqid\tdocid", "1.5\tq0\td100", "2.5\tq0\td101", "3.5\tq0\td103"],
        ["Query-ID\tRank\tDocID", "q0\t2\td101", "q0\t1\td103", "q0\t3\td100"],
        ["qid pid rank score", "q0 d100 1 1.5", "q0 d101 2 2.5", "q0 d103 3 3.5"],
        ["\ufeffq0\td103\t3.5", "q0\td101\t2.5", "q0\td100\t1.5"],
    ],
)
def test_three_columns_are_ranks_or_falling_scores_and_a_header_names_them(
    small: TestSet, tmp_path: Path, write_run: WriteRun, lines: list[str]
) -> None:
    path = write_run("run", "\n".join(lines))
    first, second = (extra(small, RunPoolSampler(run=str(path), depth=depth).draw(small, 13, tmp_path)) for depth in (1, 2))
    assert (first, second) == ({"d103"}, {"d103", "d101"})


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ["q0\td1\t1", "q0\td2\t1"],
            "run:2: 1 is no rank (a whole number, once a query), nor are these scores (all are equal)",
        ),
        (["q0\td1\t1", "q0\td2\t2", "q0\td3\t2", "q0\td4\t4"], "run:3: 2 is no rank"),
        (
            ["q0\td1\t0.5", "q0\td2\t0.7"],
            "run:1: 0.5 is no rank (a whole number, once a query), nor are these scores (which fall ",
        ),
        (["q0\td1\t5.5", "q1\td2\t9", "q0\td2\t7.5"], "line 3 does not"),
        (["q0\td1\t-2", "q0\td2\t-1"], "run:1: -2 is no rank"),
        (["q0\td1\tinf", "q0\td2\t-1", "q0\td2\t0"], "run:1: inf is no rank"),
        (["q0\td1\t3", "q0\td2\t2", "q0\td3\t1"], "could be ranks, the last first, or scores, the best first"),
        (["q0\t1\t17", "q0\t2\t4", "q1\t1\t8"], "the second column counts 1, 2 ... for each query, which are ranks"),
        (["0.5\tq0\td1", "0.4\tq0\td2"], "third column is not a number (got 'd1')"),
        (["qid\tdocid\tsimilarity", "q0\td1\t3"], "names no score and no rank; rename one of ['similarity']"),
        (["qid\tthing\trank", "q0\td1\t3"], "this looks like a header, ['qid', 'thing', 'rank'], but names no document id"),
        (["qid\tpid\trank", "q0\td1\t1.5"], "run:2: 1.5 is no rank (a whole number, once a query); give 6 (query Q0"),
        (["q0,d1,1", "q0,d2,2"], "run:1: got 1 columns, expected 6 (query Q0 document rank score tag) or 3"),
        (["q0\t0\td1\t1", "q0\t0\td2\t1"], "run:1: got 4 columns"),
    ],
)
def test_what_is_neither_ranks_nor_scores_is_refused_with_the_way_out(
    small: TestSet, tmp_path: Path, write_run: WriteRun, lines: list[str], said: str
) -> None:
    with pytest.raises(SetupError) as caught:
        RunPoolSampler(run=str(write_run("run", "\n".join(lines)))).draw(small, 13, tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize("value", ["1", "17", "12.5", "-3"])
def test_one_hit_a_query_needs_no_order(small: TestSet, tmp_path: Path, write_run: WriteRun, value: str) -> None:
    path = write_run("run", f"q0\td103\t{value}\nq1\td150\t{value}\n")
    assert extra(small, RunPoolSampler(run=str(path), depth=1).draw(small, 13, tmp_path)) == {"d103", "d150"}


@pytest.mark.parametrize("header", ["", "qid\tpid\tquery\tpassage\n"])
def test_hits_of_top1000_dev_have_no_order(
    small: TestSet, tmp_path: Path, write_run: WriteRun, caplog: pytest.LogCaptureFixture, header: str
) -> None:
    hits = [("q0", document) for document in range(50, 90)] + [("q1", document) for document in range(60, 100)]
    rows = "".join(f"{query}\td{document}\tthe words of {query}\tsome passage {document}\n" for query, document in hits)
    path = str(write_run("top1000.dev.tsv", header + rows))
    assert len(extra(small, RunPoolSampler(run=path, depth=100).draw(small, 13, tmp_path))) == 50
    assert "has neither ranks nor scores: all hits of a query count equally" in caplog.text
    assert extra(small, RunPoolSampler(run=path, depth=2).draw(small, 13, tmp_path)) == {"d89", "d88", "d99", "d98"}
    by_seed = [extra(small, RunPoolSampler(run=path, fraction=0.2).draw(small, seed, tmp_path)) for seed in (1, 2)]
    assert [len(ids) for ids in by_seed] == [27, 27]
    assert by_seed[0] != by_seed[1]  # any of the 50, none before the others


def test_a_run_without_an_order_leaves_that_of_another_as_it_is(small: TestSet, tmp_path: Path, write_run: WriteRun) -> None:
    unordered = "".join(f"q0\td{n}\tsome query\tsome passage {n}\n" for n in range(110, 160))
    ordered = "".join(f"q0 Q0 d{n} 1 {999 - n} t\n" for n in range(110, 160))
    named = [NamedRun(name=str(write_run(*run)), key="pool") for run in (("top1000.tsv", unordered), ("run.trec", ordered))]
    found = candidates([run.read(small, tmp_path) for run in named], small)
    best = found.best(50, small.corpus.id_hash[found.documents])
    assert small.corpus.ids(best) == [f"d{n}" for n in range(110, 160)]


def test_the_default_pool_needs_nothing_but_takes_a_fraction(small: TestSet, tmp_path: Path) -> None:
    assert len(RunPoolSampler(fraction=0.1).draw(small, 13, tmp_path).ordinals) == 20
    assert RunPoolSampler().fingerprint()["run"] == RunPoolSampler(run="bm25").fingerprint()["run"]


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


@pytest.mark.parametrize(("queries", "is_said"), [(1, True), (2, True), (3, False), (6, False)])
@pytest.mark.parametrize("name", ["shipped", "own"])
def test_a_run_for_few_of_the_queries_is_said_so_at_each_start(
    small: TestSet,
    tmp_path: Path,
    write_run: WriteRun,
    caplog: pytest.LogCaptureFixture,
    queries: int,
    is_said: bool,
    name: str,
) -> None:
    path = write_run("run", "".join(f"q{row} Q0 d{n} 1 {9 - n / 100} t\n" for row in range(queries) for n in range(40, 90)))
    named = NamedRun(name="shipped" if name == "shipped" else str(path), key="sampler.pool")
    for _ in range(2):  # made, and kept
        caplog.clear()
        named.read(replace(small, shipped_run=path), tmp_path / "cache")
        assert (f"sampler.pool: run {path} has hits for {queries} of the 6 queries" in caplog.text) is is_said


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
        ("q0\td1\tnan\n", r"run:1: third column is not a number \(got 'nan'\)"),
        ("q0\td1\t1\nq0\td2\tx\n", r"run:2: third column is not a number \(got 'x'\)"),
        ("", "run: is empty"),
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
        with pytest.raises(
            SetupError, match=r"absent\.trec', which is no file; give the path of a run, ranxhub:ID, shipped, baseline or bm25"
        ):
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


def test_a_run_is_made_once_and_read_back_the_same(small: TestSet, tmp_path: Path) -> None:
    first = NamedRun(name="bm25", key="pool").read(small, tmp_path)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    again = NamedRun(name="bm25", key="pool").read(small, tmp_path)
    assert path.stat().st_mtime_ns == written
    for name in ("rows", "documents", "ranks"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    NamedRun(name="bm25", key="pool").read(replace(small, fingerprint="another"), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "another file", "one bit"])
def test_a_kept_run_that_is_damaged_is_made_again(
    small: TestSet, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = NamedRun(name="bm25", key="pool").read(small, tmp_path)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    place = good.index(b"documents.npy") + 300
    flipped = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
    path.write_bytes({"truncated": good[:-30], "empty": b"", "another file": b"q0 d1 1\n", "one bit": flipped}[damage])
    again = NamedRun(name="bm25", key="pool").read(small, tmp_path)
    np.testing.assert_array_equal(again.documents, first.documents)
    assert f"{path} is damaged" in caplog.text
    np.testing.assert_array_equal(NamedRun(name="bm25", key="pool").read(small, tmp_path).documents, first.documents)


def test_shipped_is_the_run_of_the_collection_and_bm25_where_there_is_none(small: TestSet, tmp_path: Path) -> None:
    path = tmp_path / "top1000.dev.tsv"
    rows = [
        f"{query}\t{document}\twhat is this\tit is that, says 1 of 2"
        for query in small.query_ids
        for document in small.corpus.ids(np.arange(30, 90))
    ]
    path.write_text("\n".join(rows) + "\n")
    with_run = replace(small, shipped_run=path)

    def run_pool(run: str, test_set: TestSet) -> str:
        return RunPoolSampler(run=run, fraction=0.8).draw(test_set, 3, tmp_path / "cache").fingerprint

    def stratified(run: str, test_set: TestSet) -> str:
        return StratifiedSampler(pool=(run,), fraction=0.8).draw(test_set, 3, tmp_path / "cache").fingerprint

    for drawn in (run_pool, stratified):
        assert len({drawn("shipped", with_run), drawn(str(path), small), drawn("bm25", small)}) == 3
        assert drawn("shipped", small) == drawn("bm25", small)
    both = StratifiedSampler(fraction=0.8, pool=("shipped", "bm25")).draw(small, 3, tmp_path / "cache")
    assert both.fingerprint == stratified("bm25", small)


def test_a_shipped_run_without_an_order_is_ranked_by_bm25(small: TestSet, tmp_path: Path) -> None:
    bm25 = NamedRun(name="bm25", key="pool").read(small, tmp_path / "cache")
    path = tmp_path / "top1000.dev.tsv"
    hits = zip([small.query_ids[row] for row in bm25.rows], small.corpus.ids(bm25.documents), strict=True)
    path.write_text("".join(f"{query}\t{document}\twhat is 1\tthat is 2\n" for query, document in sorted(hits)))
    found = NamedRun(name="shipped", key="pool").read(replace(small, shipped_run=path), tmp_path / "cache")
    for name in ("rows", "documents", "ranks"):
        np.testing.assert_array_equal(getattr(found, name), getattr(bm25, name))
