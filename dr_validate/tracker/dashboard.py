"""`task=dashboard`: a saved W&B view of a project's validation runs, a panel group for each collection in the ledger.

`wandb-workspaces`, of the people who make W&B, writes it. The view is made once for a state_dir and a project; from then on its
panels are written anew, and what else was changed in it (runs, colours, settings) stays.
"""

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dr_validate.config import MEAN
from dr_validate.errors import WANDB_LOG_IN, SetupError
from dr_validate.files import read_note, write_atomically
from dr_validate.ledger.ledger import Ledger
from dr_validate.tracker.rows import BASELINE, SAMPLED, STEP
from dr_validate.tracker.session import failures, is_offline, require_key
from dr_validate.tracker.wandb import WandbTracker

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

NAME = "Validation of checkpoints"
TABLES = ("checkpoints", "sampled_against_full", "error_and_cost", "fidelity", "queries")
KEPT = "dashboard.json"  # in state_dir: the address of the view by project
log = logging.getLogger(__name__)


def save_dashboard(state_dir: Path, tracker: Any) -> str:
    """Make the view, or write its panels anew; its address. Raises SetupError where that cannot be."""
    if not isinstance(tracker, WandbTracker):
        chosen = type(tracker).__module__.rpartition(".")[2]
        raise SetupError(f"tracker: task=dashboard makes a view of W&B, got {chosen!r}; set tracker=wandb")
    if is_offline(tracker.mode):
        raise SetupError("tracker.mode: task=dashboard makes a view on the server, got offline; set tracker.mode=online")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise SetupError("task=dashboard needs wandb-workspaces: pip install 'dr_validate[dashboard]'")
    with Ledger(state_dir / "ledger.db", read_only=True) as ledger:
        collections = collections_of(ledger)
    if not collections:
        raise SetupError(f"{state_dir}: nothing has been validated yet, so there is nothing to have a view of")
    require_key(WANDB_LOG_IN)
    try:
        url = _save(state_dir / KEPT, tracker, collections)
    except SetupError:
        raise
    except failures() as error:
        raise SetupError(f"tracker: W&B does not save the view ({type(error).__name__}: {error}); {WANDB_LOG_IN}") from error
    log.info("dashboard: %s", url)
    return url


def collections_of(ledger: Ledger) -> dict[str, list[str]]:
    """Metrics by collection, in the order in which they came; as the Reports name them, which is as their rows do."""
    found: dict[str, dict[str, None]] = {}
    for spec in ledger.specs():
        for report in ledger.reports(spec, ["done"]):
            found.setdefault(report.dataset, {}).update(dict.fromkeys(report.metrics))
    return {dataset: list(metrics) for dataset, metrics in found.items()}


def _save(kept: Path, tracker: WandbTracker, collections: Mapping[str, Sequence[str]]) -> str:
    import wandb

    said = wandb.setup().settings
    entity = tracker.entity or said.entity or wandb.Api().default_entity
    project = tracker.project or said.project
    if not project:
        raise SetupError("tracker.project: the view is of one project; set it, or WANDB_PROJECT")
    urls: dict[str, str] = read_note(kept, lambda found: {str(place): str(url) for place, url in found.items()}, {})
    view = _known(urls.get(f"{entity}/{project}")) or _new(str(entity), project)
    view.sections = sections(collections)
    view.save()
    write_atomically(kept, json.dumps({**urls, f"{entity}/{project}": view.url}, indent=1))
    return str(view.url)


def _known(url: str | None) -> "Workspace | None":
    """The view as it is now; None where there is none any more, or not in a form that can be read. Raises SetupError for a form
    of another version, which writing it anew would undo."""
    from wandb_workspaces.workspaces import Workspace
    from wandb_workspaces.workspaces.errors import SpecVersionError

    if url is None:
        return None
    try:
        return Workspace.from_url(url)
    except SpecVersionError as error:
        raise SetupError(f"dashboard: {url} is of another version ({error})") from error
    except ValueError as error:
        log.warning("dashboard: %s cannot be read (%s); making another one", url, error)
        return None


def _new(entity: str, project: str) -> "Workspace":
    from wandb_workspaces import expr
    from wandb_workspaces.workspaces import RunsetSettings, Workspace, WorkspaceSettings

    runs = RunsetSettings(filters=[expr.Metric("JobType") == "validate"], pinned_columns=["summary:verdict"])
    return Workspace(
        entity=entity, project=project, name=NAME, settings=WorkspaceSettings(x_axis=STEP, max_runs=20), runset_settings=runs
    )


def sections(collections: Mapping[str, Sequence[str]]) -> "list[Section]":
    """A panel group for each collection, of a suite only that of the mean unfolded; then lag and cost, then the tables."""
    from wandb_workspaces.reports.v2 import WeavePanelSummaryTable
    from wandb_workspaces.workspaces import Section

    shown = [MEAN] if MEAN in collections else list(collections)
    groups = [
        Section(name=dataset, panels=[*_curves(dataset, metrics), *_fidelity(dataset)], is_open=dataset in shown)
        for dataset, metrics in collections.items()
    ]
    late = [
        _lines("lag behind the training (steps)", "lag/steps"),
        _lines("lag behind the checkpoint (s)", "lag/seconds"),
        _lines("a checkpoint (s)", "cost/total_s", "cost/encode_s"),
        _lines("a full-corpus baseline (s)", "cost/full_total_s", "cost/full_encode_s"),
        _lines("documents encoded", "cost/documents", "cost/full_documents"),
        _lines("without a value", "status/failed", "status/skipped"),
    ]
    of_suite = [f"queries/{dataset}" for dataset in collections if MEAN in collections and dataset != MEAN]
    tables = [WeavePanelSummaryTable(table_name=f"tables/{name}") for name in (*TABLES, *of_suite)]
    return [*groups, Section(name="Lag and cost", panels=late), Section(name="Tables", panels=tables)]


def _curves(dataset: str, metrics: Sequence[str]) -> list[Any]:
    """Of each metric what is now known, and what was known when each Report came, both with the interval."""
    from wandb_workspaces.reports.v2 import CustomChart

    fields = {name: name for name in ("step", "lineKey", "lineVal")}  # as `wandb.plot.line_series` has them
    panels = []
    interval = ", interval for any queries" if dataset == MEAN else ""
    for metric in metrics:
        key = f"{SAMPLED}/{dataset}/{metric}"
        chart = f"charts/{dataset}/{metric}"
        panels += [
            CustomChart(
                query={"summaryTable": {"tableKey": f"{chart}_table"}},
                chart_name="wandb/lineseries/v0",
                chart_fields=fields,
                chart_strings={"title": f"{metric}, as now known{interval}", "xname": STEP},
            ),
            _lines(f"{metric}, as reported{interval}", key, f"{key}/low", f"{key}/high", f"{BASELINE}/{dataset}/{metric}"),
        ]
    return panels


def _fidelity(dataset: str) -> list[Any]:
    """Nothing is drawn before two checkpoints have a baseline."""
    key = f"fidelity/{dataset}"
    return [
        _lines("sampled against full: Kendall's tau", f"{key}/kendall_tau"),
        _lines("sampled against full: bias and RMSE", f"{key}/bias", f"{key}/rmse"),
        _lines("sampled against full: regret", f"{key}/regret"),
    ]


def _lines(title: str, *keys: str) -> Any:
    from wandb_workspaces.reports.v2 import LinePlot

    return LinePlot(title=title, x=STEP, y=list(keys), title_x="training step")
