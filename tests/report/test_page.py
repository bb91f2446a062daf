"""The whole page, from a real ledger."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dr_validate.config import ReportSettings
from dr_validate.errors import SetupError
from dr_validate.report import markup, words
from dr_validate.report.page import write_report
from dr_validate.values import Estimate
from tests.report.training import DOCUMENTS, FULL, SAMPLE, Training, bound, exact, within

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '"><script>alert(1)</script>&amp;<b>'


def written(training: Training) -> str:
    return write_report(training.state_dir, ReportSettings()).read_text(encoding="utf-8")


def parsed(page: str) -> ElementTree.Element:
    return ElementTree.fromstring(page)


def shown(page: str) -> str:
    """All text of the body, without the script."""
    body = parsed(page).find("body")
    assert body is not None
    main = body.find("main")
    assert main is not None
    return " ".join(main.itertext())


@pytest.fixture
def rich(training: Training) -> Training:
    """Two strategies and full values of eight checkpoints on two metrics, one failed, values per query of the last two."""
    rng_values = [0.111, 0.152, 0.203, 0.257, 0.241, 0.289, 0.303, 0.299]
    training.strategy()
    training.strategy("b" * 16, "run_pool", encoded=2_000)
    training.strategy(FULL, "full")
    for number, value in enumerate(rng_values, 1):
        step = 1000 * number
        estimates = {"mrr@10": within(value + 0.0012, 0.0234), "recall@100": within(value + 0.3, 0.0111)}
        training.done(
            step, estimates, notes={"estimate": {"outranking": {"mrr@10": 12.3}, "population": {"mrr@10": [0.0123, 0.7654]}}}
        )
        training.done(step, {"mrr@10": bound(value + 0.1), "recall@100": bound(value + 0.4)}, "b" * 16)
        report = training.done(step, {"mrr@10": exact(value), "recall@100": exact(value + 0.31)}, FULL)
        training.queries(report, {"mrr@10": [value + 0.01 * ((n * number) % 7) for n in range(30)]})
    training.ended(9000, "failed", "encoder.pooling: not stated")
    return training


def test_the_uncorrected_value_has_one_name_and_the_key_of_files_is_said_once(rich: Training) -> None:
    page = written(rich)
    assert re.findall(r"[^ ]* ?\bnaive\b[^;:]*", shown(page)) == ["(naive in files and in W&B)"]
    assert "uncorrected, an upper bound" in shown(page)
    assert ", uncorrected 0." in page  # at each point


def test_the_page_is_one_file_of_well_formed_markup_that_asks_for_nothing_else(rich: Training) -> None:
    page = written(rich)
    tree = parsed(page)
    assert tree.tag == "html"
    assert not [element.tag for element in tree.iter() if element.tag in ("link", "img", "iframe") or element.get("src")]
    addresses = set(re.findall(r"\w+://[^\s\"')]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert "url(" not in page and "@import" not in page
    links = {element.get("href", "") for element in tree.iter("a")}
    assert all(link.startswith("#") for link in links)


def test_queries_that_no_mean_counts_are_told_beside_their_number(training: Training) -> None:
    training.strategy()
    training.done(100, within(0.2, 0.01))
    assert "93 queries, 5 of them" not in shown(written(training))
    training.done(200, within(0.3, 0.01), notes={"queries_without_relevant_documents": 5})
    assert "93 queries, 5 of them without a relevant document and left out" in shown(written(training))


def test_every_number_of_the_ledger_is_in_the_page(rich: Training) -> None:
    text = shown(written(rich))
    for spec in (SAMPLE, "b" * 16, FULL):
        for report in rich.ledger.reports(spec):
            assert f"{report.checkpoint.step:,}" in text
            assert report.status in text and (report.error or "") in text
            for estimate in report.metrics.values():
                assert words.number(estimate.value) in text
                assert words.number(estimate.naive) in text
                assert not estimate.has_interval or words.interval(estimate.low, estimate.high) in text
            if report.status == "done":
                assert f"{report.corpus['encoded']:,.0f}" in text
                assert f"{report.seconds['total']:,.1f}" in text
    assert words.interval(0.0123, 0.7654) in text
    assert "12.3" in text


def test_every_question_has_its_place_in_the_given_order(rich: Training) -> None:
    headings = [heading.text or "" for heading in parsed(written(rich)).iter() if heading.tag in ("h1", "h2", "h3")]
    assert headings == [
        "Validation of checkpoints",
        "vaswani",
        "Over the training",
        "Sampled against full corpus",
        "Error and cost of the strategies",
        "Queries that moved from step 7,000 to 8,000",
        "All checkpoints",
        "How this was made",
    ]


def test_every_chart_has_axes_with_ticks_and_every_mark_says_what_it_is(rich: Training) -> None:
    figures = list(parsed(written(rich)).iter("figure"))
    assert len(figures) == 4 + 4 + 2 + 1  # two strategies by two metrics, twice; cost; queries
    for figure in figures:
        svg = figure.find(f"{SVG}svg")
        assert svg is not None and svg.get("aria-label")
        kinds = [str(text.get("class")) for text in svg.iter(f"{SVG}text")]
        assert kinds.count("tick end") >= 2 and kinds.count("tick middle") >= 1 and "axis-name middle" in kinds
        titles = [title.text for title in svg.iter(f"{SVG}title")]
        assert titles and all(titles)
        _, _, width, height = map(float, str(svg.get("viewBox")).split())
        for circle in svg.iter(f"{SVG}circle"):
            assert 0 <= float(str(circle.get("cx"))) <= width and 0 <= float(str(circle.get("cy"))) <= height


def test_a_point_stands_where_its_value_is(training: Training) -> None:
    training.strategy()
    for step, value in ((100, 0.2), (200, 0.3), (300, 0.4)):
        training.done(step, bound(value))
    svg = next(svg for svg in parsed(written(training)).iter(f"{SVG}svg") if svg.get("role"))  # without it: the legend's
    points = [group.find(f"{SVG}circle") for group in svg.iter(f"{SVG}g") if group.get("class") == "sampled point"]
    places = [(float(str(p.get("cx"))), float(str(p.get("cy")))) for p in points if p is not None]
    assert len(places) == 3
    (x1, y1), (x2, y2), (x3, y3) = places
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.05) and y1 - y2 == pytest.approx(y2 - y3, abs=0.05)
    assert x1 < x2 and y1 > y2  # a higher value is further up


def test_hostile_text_is_shown_and_not_obeyed_wherever_it_comes_from(training: Training) -> None:
    def hostile(place: str) -> str:
        return f"{HOSTILE}{place}"

    made = {"dataset": {"choice": "beir", "path": hostile("path")}, "sampler": {hostile("key"): [hostile("value")]}}
    training.strategy(
        *(SAMPLE, hostile("sampler")),
        dataset=hostile("dataset"),
        made=made,
        command=hostile("command"),
        dataset_fingerprint="1",
    )
    tower = {"architecture": hostile("model"), "prefix": hostile("prefix")}
    notes = {"encoder": {"query": tower, "document": tower}, "versions": {hostile("package"): "1"}, "device": hostile("device")}
    for step in (100, 200):
        name = hostile(f"name{step}")
        report = training.done(step, bound(0.001 * step), run=hostile("run"), name=name, notes=notes)
        path = training.queries(report, {"mrr@10": [0.5, 0.001 * step]})
        query, document = "q1", hostile("document")
        training.table(
            path.parents[2] / "top" / path.parent.name / path.name, query_id=query, rank=1, document_id=document, gain=1
        )
    training.table(training.state_dir / "queries" / "texts-1.parquet", query_id="q1", text=hostile("query"))
    training.ended(300, "failed", f"{hostile('error')}\x00\x1b[31m")
    page = written(training)
    tree = parsed(page)
    assert len(list(tree.iter("script"))) == 1
    assert not list(tree.iter("b"))
    text = shown(page)
    places = ("sampler", "dataset", "run", "name100", "error", "command", "path", "key", "value", "model", "prefix", "package")
    for place in (*places, "device", "document", "query"):
        assert hostile(place) in text, place
    assert f"{hostile('error')}\ufffd\ufffd[31m" in text


def rings(page: str) -> list[tuple[float, float]]:
    """Places of the circles around a checkpoint, one for each chart over the training; without that of the legend."""
    charts = [svg for svg in parsed(page).iter(f"{SVG}svg") if svg.get("role")]
    groups = [group for svg in charts for group in svg.iter(f"{SVG}g") if group.get("class") == "ring"]
    circles = [circle for group in groups for circle in group.iter(f"{SVG}circle")]
    return [(float(str(circle.get("cx"))), float(str(circle.get("cy")))) for circle in circles]


def test_the_circle_is_around_the_checkpoint_of_the_headline_and_at_its_value(training: Training) -> None:
    training.sample(within(0.2, 0.01), within(0.5, 0.01), within(0.4, 0.01))  # the sample prefers step 200
    training.strategy("b" * 16, "run_pool")
    for step, value in ((100, 0.6), (200, 0.5), (300, 0.4)):  # and this one step 100
        training.done(step, bound(value), "b" * 16)
    training.full(0.1, 0.3, 0.35)
    page = written(training)
    assert "Best of 3 checkpoints: step 300 (mrr@10 0.350 on the full corpus)." in shown(page)
    legends = [" ".join(item.itertext()) for item in parsed(page).iter("li")]
    assert legends.count("the best, step 300") == 2  # one for each strategy
    charts = [svg for svg in parsed(page).iter(f"{SVG}svg") if "by training step" in str(svg.get("aria-label"))]
    assert len(charts) == len(rings(page)) == 2
    for svg, (x, y) in zip(charts, rings(page), strict=True):
        diamonds = [group for group in svg.iter(f"{SVG}g") if group.get("class") == "full point"]
        last = diamonds[-1].find(f"{SVG}path")
        assert last is not None
        left, top = map(float, re.findall(r"[\d.]+", str(last.get("d")))[:2])  # of a diamond: its upper corner
        assert x == pytest.approx(left, abs=0.1) and 0 < y - top < 8


def test_without_a_full_corpus_the_circle_is_on_the_sampled_curve_of_every_metric(training: Training) -> None:
    training.strategy()
    for step, first, second in ((100, 0.4, 0.1), (200, 0.3, 0.2), (300, 0.2, 0.3)):  # the second metric prefers another
        training.done(step, {"mrr@10": within(first, 0.01), "recall@100": within(second, 0.01)})
    found = rings(written(training))
    assert len(found) == 2 and found[0][0] == found[1][0]


def test_what_was_skipped_for_a_good_reason_has_no_cross(training: Training) -> None:
    def crosses() -> int:
        figure = next(parsed(written(training)).iter("figure"))
        return sum(group.get("class") == "missing" for group in figure.iter(f"{SVG}g"))

    training.sample(bound(0.3), bound(0.4))
    training.ended(300, "skipped", "same weights as checkpoint-100")
    training.ended(400, "skipped", "stale: overtaken by checkpoint-500 at step 500")
    assert crosses() == 0
    assert "same weights as checkpoint-100" in shown(written(training))  # in the table
    training.ended(500, "skipped", "deleted after it was listed")
    training.ended(600, "failed", "weights are not finite")
    assert crosses() == 2


@pytest.mark.parametrize(
    "estimates",
    [
        [Estimate(value=0.01, low=-0.05, high=0.07, naive=0.08), exact(0.0)],
        [Estimate(value=0.98, low=0.93, high=1.04, naive=1.05), exact(1.0)],
        [exact(0.4), exact(3.5)],  # hits@10 counts
    ],
)
def test_every_point_and_every_end_of_an_interval_is_inside_its_axes(training: Training, estimates: list[Estimate]) -> None:
    training.strategy()
    training.strategy(FULL, "full")
    training.strategy("b" * 16, "run_pool")
    for step, estimate in enumerate(estimates, 1):
        training.done(step, {"hits@10": estimate})
        training.done(step, {"hits@10": bound(estimate.naive)}, "b" * 16)
        training.done(step, {"hits@10": exact(estimate.value / 2 + 0.4)}, FULL)
    training.done(50, {"hits@10": exact(0.9)}, FULL)  # a baseline alone
    figures = list(parsed(written(training)).iter("figure"))
    assert len(figures) >= 5
    for figure in figures:
        svg = figure.find(f"{SVG}svg")
        assert svg is not None
        (x1, x2), (y1, y2) = plot_area(svg)
        for x, y in marks(svg):
            assert x1 - 0.1 <= x <= x2 + 0.1 and y1 - 0.1 <= y <= y2 + 0.1, (figure.find("figcaption"), x, y)


def plot_area(svg: ElementTree.Element) -> tuple[tuple[float, float], tuple[float, float]]:
    """Left and right, top and bottom of what the axes enclose."""
    _, _, width, height = map(float, str(svg.get("viewBox")).split())
    return (markup.LEFT, width - markup.RIGHT), (markup.TOP, height - markup.BOTTOM)


def marks(svg: ElementTree.Element) -> list[tuple[float, float]]:
    """Centres of circles and ends of bars, bands and lines."""
    found = [(float(str(c.get("cx"))), float(str(c.get("cy")))) for c in svg.iter(f"{SVG}circle")]
    for path in svg.iter(f"{SVG}path"):
        if path.get("class") in ("bar", "band", "naive", "sampled line"):
            pairs = re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", str(path.get("d")))
            found += [(float(x), float(y)) for x, y in pairs]
    return found


def test_no_sentence_stands_twice_on_a_page(rich: Training) -> None:
    rich.strategy("c" * 16, dataset="nq", full_spec="e" * 16)  # another collection, with the same notes
    rich.done(100, within(0.4, 0.1), "c" * 16, notes={"estimate": {"baselines": 1}})
    rich.done(200, within(0.5, 0.1), "c" * 16, corpus={"documents": 100, "encoded": 7, "fraction": 0.07})
    page = written(rich)
    blocks = [" ".join(block.itertext()) for block in parsed(page).iter() if block.tag in ("p", "li", "caption", "summary")]
    sentences = [one for block in blocks for one in re.split(r"(?<=[.;:]) ", block) if len(one.split()) > 4]
    assert len(sentences) > 20
    assert {one for one in sentences if sentences.count(one) > 1} == set()
    assert shown(page).count("95% interval: where") == 1


def test_the_same_ledger_gives_the_same_page(rich: Training) -> None:
    assert written(rich) == written(rich)


def test_a_ledger_without_a_checkpoint_says_what_to_run(training: Training) -> None:
    text = shown(written(training))
    assert "Nothing has been validated yet." in text
    assert f"python -m dr_validate task=report state_dir={training.state_dir}" in text


def test_one_checkpoint_makes_a_page_without_empty_charts(training: Training) -> None:
    training.sample(bound(0.3))
    tree = parsed(written(training))
    assert [heading.text for heading in tree.iter("h3")] == [
        "Over the training",
        "Error and cost of the strategies",
        "All checkpoints",
        "How this was made",
    ]
    assert len(list(tree.iter("figure"))) == 1


def test_failures_alone_make_a_page_that_shows_their_reasons(training: Training) -> None:
    training.strategy()
    training.ended(100, "failed", "weights are not finite")
    page = written(training)
    assert "weights are not finite" in shown(page) and "No checkpoint is validated yet." in shown(page)
    assert not list(parsed(page).iter("figure"))


def test_a_checkpoint_between_two_attempts_is_shown_with_its_last_error(training: Training) -> None:
    training.sample(bound(0.3))
    waiting = training.ledger.reports(SAMPLE)[0].checkpoint
    training.strategy("b" * 16, "run_pool")
    training.ledger.begin(waiting, "b" * 16, "2026-11-21T05:00:00Z")
    training.ledger.retry_later(waiting.digest, "b" * 16, "out of memory", "2026-11-21T05:01:00Z")
    text = shown(written(training))
    assert "waiting" in text and "out of memory" in text
    assert "1 not finished" in text


def test_several_collections_have_a_list_of_contents(training: Training) -> None:
    training.sample(bound(0.3))
    training.strategy("b" * 16, dataset="nq", full_spec="e" * 16)
    training.done(100, bound(0.4), "b" * 16)
    tree = parsed(written(training))
    targets = [str(link.get("href")) for nav in tree.iter("nav") for link in nav.iter("a")]
    assert targets == ["#part-1", "#part-2"]
    assert {f"#{section.get('id')}" for section in tree.iter("section")} == set(targets)


def test_a_hundred_checkpoints_stay_one_light_page(training: Training) -> None:
    training.strategy()
    for number in range(1, 101):
        value = 0.3 - 0.2 / number
        training.done(
            500 * number, {m: Estimate(value=value, low=value - 0.01, high=value + 0.01, naive=value + 0.02) for m in "ab"}
        )
    page = written(training)
    assert len(page) < 300_000
    assert page.count("<tr>") >= 200  # a row for each in both tables


def test_the_page_goes_where_it_is_asked_to_and_nowhere_if_that_cannot_be(rich: Training, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "page.html"
    assert write_report(rich.state_dir, ReportSettings(out=out)) == out
    assert out.read_text().startswith("<!DOCTYPE html>")
    assert not (rich.state_dir / "report.html").exists()
    with pytest.raises(SetupError, match=r"report\.out: .* cannot be written .*; set report\.out to a file elsewhere"):
        write_report(rich.state_dir, ReportSettings(out=tmp_path))
    with pytest.raises(SetupError, match="no such ledger"):
        write_report(tmp_path / "nowhere", ReportSettings())
    assert not (tmp_path / "nowhere").exists()


def test_the_corpus_size_is_told(rich: Training) -> None:
    assert f"{DOCUMENTS:,} documents, 93 queries" in shown(written(rich))


def test_what_values_were_learnt_from_is_said(training: Training) -> None:
    training.strategy()
    training.done(100, within(0.3, 0.1), notes={"estimate": {"sample": "s", "baselines": 0}})
    assert "own baseline" not in shown(written(training))
    training.done(200, within(0.4, 0.1), notes={"estimate": {"sample": "s", "baselines": 1}})
    assert "never with the checkpoint\u2019s own baseline" in shown(written(training))


def test_the_strategies_are_compared_by_documents_and_not_by_seconds(rich: Training) -> None:
    page = written(rich)
    titles = [caption.text for caption in parsed(page).iter("figcaption")]
    assert "Error by documents" in titles and "Error by time" not in titles
    table = next(t for t in parsed(page).iter("table") if (t.findtext("caption") or "").startswith("Strategies"))
    assert "seconds" not in " ".join(table.itertext())


def test_a_moved_query_shows_what_both_checkpoints_found_first(rich: Training) -> None:
    rich.strategy(FULL, "full", dataset_fingerprint="1")
    folder = rich.state_dir / "top" / FULL
    ids = {report.checkpoint.step: report.checkpoint.digest.replace(":", "-") for report in rich.ledger.reports(FULL)}
    rows = {"query_id": ["q6"] * 3, "rank": [2, 1, 3]}
    rich.table(folder / f"{ids[7000]}.parquet", **rows, document_id=["d2", "d1", "d3"], gain=[0, 2, None])
    rich.table(folder / f"{ids[8000]}.parquet", **rows, document_id=["d5", "d4", "d1"], gain=[None, None, 2])
    rich.table(rich.state_dir / "queries" / "texts-1.parquet", query_id=[f"q{n}" for n in range(30)], text=["how long"] * 30)
    page = written(rich)
    cells = [cell for cell in parsed(page).iter("td") if cell.find("details") is not None]
    (cell,) = cells
    words_of = " ".join(" ".join(cell.itertext()).split())
    assert words_of == (
        "how long q6 first documents step 7,000 d1 grade 2, relevant d2 judged not relevant d3 "
        "step 8,000 d4 d5 d1 grade 2, relevant"
    )
    (folder / f"{ids[7000]}.parquet").write_bytes(b"no parquet")
    assert "d4" in shown(written(rich))  # what cannot be read costs no more than itself


def test_a_mean_stands_first_with_the_values_of_its_collections_beside_it(training: Training) -> None:
    specs = {"nq": "1" * 16, "fiqa": "2" * 16}
    training.strategy(FULL, "full", dataset="mean", members=specs)
    for name, spec in specs.items():
        training.strategy(spec, "full", dataset=name, full_spec=spec)
    for step in range(100, 1_200, 100):
        training.done(step, exact(0.25 + step / 10_000), specs["nq"])
        if step != 700:
            training.done(step, exact(0.5), specs["fiqa"])
            estimate = Estimate(value=0.375, low=0.3, high=0.45, naive=0.375) if step != 200 else exact(0.75)
            told = {"population": {"mrr@10": [estimate.low, estimate.high]}}
            training.done(step, estimate, FULL, notes={"collections": specs, "estimate": told})
    page = written(training)
    headings = [heading.text for heading in parsed(page).iter("h2")]
    assert headings == ["mean of 2 collections", "nq", "fiqa"]
    text = " ".join(shown(page).split())
    assert "Its collections (nq and fiqa) count the same" in text
    (found,) = [one for one in parsed(page).iter("table") if "by collection" in (one.findtext("caption") or "")]
    rows = [[cell.text for cell in row] for row in found.iter("tr")]
    steps = [200, 400, 500, 600, 700, 800, 900, 1000, 1100]  # the last eight, and the best
    assert rows[0] == ["collection", *(f"step {step:,}" for step in steps)]
    assert rows[1] == ["nq", *(f"{0.25 + step / 10_000:.4f}" for step in steps)]
    assert rows[2] == ["fiqa", *("0.5000" if step != 700 else None for step in steps)]
    assert rows[3] == ["mean", "0.7500", *("0.3750" if step != 700 else None for step in steps[1:])]
    # Its interval is for other queries, and nowhere called as those for these queries are.
    (section,) = [one for one in parsed(page).iter("section") if one.findtext("h2") == headings[0]]
    heads = [head.text for head in section.iter("th")]
    assert "any queries" in heads and "95% interval" not in heads
    legend = [text for text in section.itertext() if "95% interval" in text]
    assert set(map(str.strip, legend)) == {"95% interval, any queries"}
