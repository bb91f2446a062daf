"""`task=status`: what is done, pending and failed in a state_dir, and why. Reads the ledger; starts nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dr_validate.config import source_if_any, state_dir_of, store_if_any
from dr_validate.errors import DrValidateError
from dr_validate.ledger.database import State, refuse_lost
from dr_validate.ledger.ledger import Ledger
from dr_validate.process import new_console
from dr_validate.values import Checkpoint, Listing
from dr_validate.watcher import schedule
from dr_validate.watcher.lock import holder
from dr_validate.watcher.polling import source_key


def is_at_work(state_dir: Path) -> bool:
    """Whether a watcher works on any spec in `state_dir`."""
    path = state_dir / "ledger.db"
    if not path.is_file():
        return False
    with Ledger(path, read_only=True) as ledger:
        return any(holder(state_dir, spec) is not None for spec in ledger.specs())


def show_status(config: Mapping[str, Any]) -> int:
    """Print a table per spec. Returns the exit code: 0."""
    state_dir = state_dir_of(config)
    console = new_console()
    path = state_dir / "ledger.db"
    listing = _what_exists(config, state_dir, console)
    if not path.exists():
        refuse_lost(path)
        _say_nothing_is_done(console, f"{state_dir} yet (no ledger.db)", listing)
        return 0
    with Ledger(path, read_only=True) as ledger:
        if not ledger.specs():  # a run may be getting ready: a large corpus is read for an hour
            _say_nothing_is_done(console, f"{state_dir} yet (no test set has been opened, or one is being read now)", listing)
        for spec, description in ledger.specs().items():
            watcher = holder(state_dir, spec)
            title = _title(spec, description)
            pending = () if description["baseline"] else listing.checkpoints
            console.print(_table(title, ledger.states(spec), _trainings(ledger, spec, listing), pending, watcher is not None))
            console.print(_watcher_words(watcher, description["baseline"]), highlight=False, soft_wrap=True)
            console.print()
    for part in listing.incomplete:
        console.print(f"incomplete: {part.name}: {part.lacks}", soft_wrap=True)
    if (store := store_if_any(config)) is not None:
        console.print(f"kept vectors: {store.describe_vectors(state_dir)}", soft_wrap=True)
    return 0


def _table(
    title: str, states: Sequence[State], trainings: Mapping[str, str], listed: Sequence[Checkpoint], is_watched: bool
) -> Any:
    """Rows of the ledger, then what it does not know yet; with a column for the training where there are several."""
    from rich.table import Table

    known = {state.digest for state in states}
    rows = [(state.digest, state.step, state.name, _state(state, is_watched), state.attempts, state.detail) for state in states]
    rows += [(one.digest, one.step, one.label, "pending", 0, "") for one in listed if one.digest not in known]
    has_several = len({trainings.get(digest, "") for digest, *_ in rows}) > 1
    table = Table(title=title, title_justify="left", show_edge=False)
    for name in (*(["training"] if has_several else []), "step", "checkpoint", "state", "attempts", "result"):
        table.add_column(name, overflow="fold")
    for digest, *cells in rows:
        table.add_row(*([trainings.get(digest, "")] if has_several else []), *map(str, cells))
    return table


def _state(state: State, is_watched: bool) -> str:
    return "interrupted" if state.state == "running" and not is_watched else state.state


def _trainings(ledger: Ledger, spec: str, listing: Listing) -> dict[str, str]:
    """Digest -> name of the training run that wrote the checkpoint."""
    checkpoints = [*(report.checkpoint for report in ledger.reports(spec)), *listing.checkpoints]
    return {checkpoint.digest: checkpoint.training_run for checkpoint in checkpoints}


def _say_nothing_is_done(console: Any, where: str, listing: Listing) -> None:
    console.print(f"Nothing has been validated in {where}.", soft_wrap=True)
    for checkpoint in listing.checkpoints:
        console.print(f"pending: {checkpoint.label} (step {checkpoint.step})", soft_wrap=True)


def _what_exists(config: Mapping[str, Any], state_dir: Path, console: Any) -> Listing:
    """As the watcher sees it: what the source lists, and what there are copies of."""
    source, store = source_if_any(config), store_if_any(config)
    listing = Listing()
    try:
        listing = source.list(state_dir) if source is not None else listing
    except (DrValidateError, OSError) as error:  # what is known without it is worth showing
        console.print(f"the source does not say what exists: {error}", soft_wrap=True)
    if source is None or store is None:
        return listing
    return schedule.union(listing, store.taken(source_key(source), state_dir))


def _watcher_words(watcher: Mapping[str, Any] | None, is_baseline: bool) -> str:
    if watcher is None:
        return "no baseline is being computed now" if is_baseline else "no watcher is running"
    who = f"process {watcher['pid']} on {watcher['host']} since {watcher['since']}"
    return f"baseline: {who}" if is_baseline else f"watcher: {who}; {watcher['doing']} (at {watcher['at']})"


def _title(spec: str, description: Mapping[str, Any]) -> str:
    return f"{description['dataset']}, sampler {description['sampler']} (spec {spec})"
