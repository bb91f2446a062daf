"""`task=status`: what is done, pending and failed in a state_dir, and why. Reads the ledger; starts nothing."""

from collections.abc import Mapping
from typing import Any

from dr_validate.config import source_if_any, state_dir_of, store_if_any
from dr_validate.ledger import Ledger
from dr_validate.logs import new_console
from dr_validate.values import Listing


def show_status(config: Mapping[str, Any]) -> int:
    """Print a table per spec. Returns the exit code: 0."""
    from rich.table import Table

    state_dir = state_dir_of(config)
    console = new_console()
    path = state_dir / "ledger.db"
    if not path.exists():
        console.print(f"Nothing has been validated in {state_dir} yet (no ledger.db).", soft_wrap=True)
        return 0
    source = source_if_any(config)
    listing = source.list(state_dir) if source is not None else Listing()
    with Ledger(path, read_only=True) as ledger:
        for spec, description in ledger.specs().items():
            states = ledger.states(spec)
            known = {state.digest for state in states}
            table = Table(title=_title(spec, description), title_justify="left", show_edge=False)
            for name in ("step", "checkpoint", "state", "attempts", "result"):
                table.add_column(name, overflow="fold")
            for state in states:
                table.add_row(str(state.step), state.name, state.state, str(state.attempts), state.detail)
            for checkpoint in listing.checkpoints:
                if checkpoint.digest not in known and not description["baseline"]:
                    table.add_row(str(checkpoint.step), checkpoint.label, "pending", "0", "")
            console.print(table)
            console.print()
    for part in listing.incomplete:
        console.print(f"incomplete: {part.name}: {part.lacks}", soft_wrap=True)
    if (store := store_if_any(config)) is not None:
        console.print(f"kept vectors: {store.describe_vectors(state_dir)}", soft_wrap=True)
    return 0


def _title(spec: str, description: Mapping[str, Any]) -> str:
    return f"{description['dataset']}, sampler {description['sampler']} (spec {spec})"
