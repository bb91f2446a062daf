"""`task=dashboard`: the saved view as the server received it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dr_validate.ledger.ledger import Ledger
from dr_validate.report.verdict import findings
from dr_validate.tracker.rows import STEP, revised_curves, row
from dr_validate.values import Agreement, Estimate, Report
from tests.factories import CommandLine
from tests.factories import report as made
from tests.wandb_server.fixture import ServerHandle

pytestmark = pytest.mark.slow
NAMES = {"full_spec": "full", "documents": 100, "queries": 10, "encoded": 10}
AGREEMENT = Agreement(metric="mrr@10", checkpoints=2, kendall_tau=1.0, rmse=0.1, bias=0.0, regret=0.0)
PROJECT = ["task=dashboard", "state_dir=state", "tracker.project=retrieval"]


def report(dataset: str, spec: str, *metrics: str, step: int = 500) -> Report:
    estimates = {name: Estimate(value=0.5, low=0.4, high=0.6, naive=0.7) for name in metrics}
    known: dict[str, Any] = {"seconds": {"encode": 1.0, "total": 2.0}, "corpus": {"encoded": 10}, "agreement": AGREEMENT}
    return replace(made(step, spec=spec), dataset=dataset, metrics=estimates, **known)


REPORTS = [report("vaswani", "s1", "mrr@10", "recall@100"), report("nq", "s2", "mrr@10")]


def validated(folder: Path, *reports: Report) -> None:
    with Ledger(folder / "state" / "ledger.db") as ledger:
        for one in reports:
            ledger.register_spec(one.spec, {**NAMES, "dataset": one.dataset, "sampler": "random", "spec": one.spec}, one.at)
            ledger.finish(one)


@pytest.fixture
def command(dr_validate: CommandLine, server: ServerHandle) -> Iterator[CommandLine]:
    dr_validate.environment.update(server.environment())
    yield dr_validate


def groups(server: ServerHandle) -> Mapping[str, list[Mapping[str, Any]]]:
    """Panels by group, of the only view."""
    (view,) = server.views()
    bank = json.loads(view.spec)["section"]["panelBankConfig"]
    return {section["name"]: section["panels"] for section in bank["sections"]}


def lines(panels: list[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What each line plot draws, by its title."""
    return {p["config"]["chartTitle"]: p["config"]["metrics"] for p in panels if p["viewType"] == "Run History Line Plot"}


def text(panel: Mapping[str, Any]) -> str:
    return json.dumps(panel)


def test_each_collection_has_a_group_with_its_curves_intervals_and_fidelity(command: CommandLine, server: ServerHandle) -> None:
    validated(command.folder, *REPORTS)
    done = command(*PROJECT)
    assert done.returncode == 0, done.stderr
    (view,) = server.views()
    assert (view.entity, view.project, view.type, view.display_name) == (
        *("tester", "retrieval", "project-view", "Validation of checkpoints"),
    )
    assert f"dashboard: {server.url}/tester/retrieval?nw={view.name.removeprefix('nw-').removesuffix('-v')}" in done.stderr
    found = groups(server)
    assert list(found) == ["vaswani", "nq", "Lag and cost", "Tables"]
    assert lines(found["vaswani"])["mrr@10, as reported"] == [
        *("val/vaswani/mrr@10", "val/vaswani/mrr@10/low", "val/vaswani/mrr@10/high", "full/vaswani/mrr@10"),
    ]
    for panel in (panel for panels in found.values() for panel in panels if panel["viewType"] == "Run History Line Plot"):
        assert panel["config"]["xAxis"] == STEP
    section = json.loads(view.spec)["section"]
    assert '"jobType"' in json.dumps(section["runSets"][0]["filters"]) and '"validate"' in json.dumps(section["runSets"])
    assert "summary:verdict" in section["runSets"][0]["runFeed"]["columnPinned"]


def test_every_key_and_table_of_the_view_is_one_that_is_logged(command: CommandLine, server: ServerHandle) -> None:
    validated(command.folder, *REPORTS, report("vaswani", "s1", "mrr@10", "recall@100", step=1000))
    assert command(*PROJECT).returncode == 0
    found = groups(server)
    logged = {f"status/{status}" for status in ("failed", "skipped")}
    for one in REPORTS:
        logged |= {key for is_baseline in (True, False) for key in row(one, [one], is_baseline=is_baseline)}
    drawn = {key for panels in found.values() for keys in lines(panels).values() for key in keys}
    assert drawn <= logged and len(drawn) > 20
    charts = {f"{chart}_table" for chart in revised_curves(REPORTS, [])}
    custom = [text(panel) for panels in found.values() for panel in panels if panel["viewType"] == "Vega2"]
    assert len(custom) == len(charts) and all(any(f'"{chart}"' in panel for panel in custom) for chart in charts)
    with Ledger(command.folder / "state" / "ledger.db", read_only=True) as ledger:
        known = findings(ledger, {"spec": "s1", "full_spec": "full", "training_run": ""}, "").tables
    tables = [f"tables/{name}" for name in ("checkpoints", "queries", *known)]
    assert len(found["Tables"]) == len(tables)
    assert all(any(f'"{table}"' in text(panel) for panel in found["Tables"]) for table in tables)


def test_the_same_view_is_written_anew_and_keeps_what_was_changed_beside_its_panels(
    command: CommandLine, server: ServerHandle
) -> None:
    validated(command.folder, REPORTS[0])
    assert command(*PROJECT).returncode == 0
    (before,) = server.views()
    spec = json.loads(before.spec)
    assert list(groups(server)) == ["vaswani", "Lag and cost", "Tables"]
    server.edit_view(before, before.spec.replace('"maxRuns":20', '"maxRuns":7'))
    validated(command.folder, REPORTS[1], report("mean", "s3", "mrr@10"))
    assert command(*PROJECT).returncode == 0
    found = groups(server)
    assert list(found) == ["vaswani", "nq", "mean", "Lag and cost", "Tables"]
    assert "mrr@10, as reported, interval for any queries" in lines(found["mean"])
    (after,) = server.views()
    sections = json.loads(after.spec)["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections if section["isOpen"]] == ["mean"]  # of a suite
    assert after.id == before.id and json.loads(after.spec)["section"]["settings"]["maxRuns"] == 7
    assert spec["section"]["settings"]["maxRuns"] == 20


def test_a_view_that_was_deleted_is_made_again(command: CommandLine, server: ServerHandle) -> None:
    validated(command.folder, REPORTS[0])
    assert command(*PROJECT).returncode == 0
    (before,) = server.views()
    server.edit_view(before, None)
    assert not server.views()
    again = command(*PROJECT)
    assert again.returncode == 0 and "making another one" in again.stderr
    assert len(server.views()) == 1


def test_a_view_of_another_version_is_left_as_it_is(command: CommandLine, server: ServerHandle) -> None:
    validated(command.folder, REPORTS[0])
    assert command(*PROJECT).returncode == 0
    (before,) = server.views()
    newer = json.dumps({**json.loads(before.spec), "version": 9})
    server.edit_view(before, newer)
    again = command(*PROJECT)
    assert (again.returncode, "Traceback" in again.stderr) == (2, False), again.stderr
    assert "is of another version" in again.stderr and "upgrade" in again.stderr
    assert [view.spec for view in server.views()] == [newer]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tracker=none"], "got 'none'; set tracker=wandb"),
        (["tracker.mode=offline"], "tracker.mode: task=dashboard makes a view on the server"),
        (["state_dir=elsewhere"], "elsewhere"),
        ([], "nothing has been validated yet"),
        (["tracker.project=null"], "tracker.project: the view is of one project"),
    ],
)
def test_what_there_can_be_no_view_of_is_refused_in_words(
    command: CommandLine, server: ServerHandle, arguments: list[str], said: str
) -> None:
    validated(command.folder, *(REPORTS if arguments else []))
    project = [] if "tracker=none" in arguments else ["tracker.project=retrieval"]
    done = command("task=dashboard", "state_dir=state", *project, *arguments)
    assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr
    assert "does not save the view" not in done.stderr and not server.views()


def test_a_key_that_is_refused_is_told_without_a_traceback(command: CommandLine, server: ServerHandle) -> None:
    validated(command.folder, *REPORTS)
    server.reject_key()
    done = command(*PROJECT)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "W&B does not save the view" in done.stderr and "wandb login" in done.stderr


def test_without_a_key_the_way_out_is_one_that_a_view_can_be_made_by(command: CommandLine, server: ServerHandle) -> None:
    validated(command.folder, *REPORTS)
    command.environment.update(WANDB_API_KEY="", HOME=str(command.folder), NETRC=str(command.folder / "none"))
    done = command(*PROJECT)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "no W&B key" in done.stderr and "wandb login" in done.stderr
    assert "offline" not in done.stderr and "tracker=none" not in done.stderr
