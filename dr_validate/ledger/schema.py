"""Tables of the ledger, one script per schema version, and what a row of `states` means."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from dr_validate.values import Estimate

StateName = Literal["running", "waiting", "done", "failed", "skipped"]
SETTLED = ("done", "failed")
MIGRATIONS = (
    """
    CREATE TABLE specs (spec TEXT PRIMARY KEY, description TEXT NOT NULL, at TEXT NOT NULL);
    CREATE TABLE states (
        spec TEXT NOT NULL, digest TEXT NOT NULL, name TEXT NOT NULL, step INTEGER NOT NULL,
        state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, interruptions INTEGER NOT NULL DEFAULT 0,
        error TEXT, at TEXT NOT NULL, PRIMARY KEY (spec, digest));
    CREATE TABLE reports (
        id INTEGER PRIMARY KEY AUTOINCREMENT, spec TEXT NOT NULL, digest TEXT NOT NULL, name TEXT NOT NULL,
        step INTEGER NOT NULL, status TEXT NOT NULL, error TEXT, report TEXT NOT NULL, forgotten INTEGER NOT NULL DEFAULT 0);
    CREATE INDEX reports_of_spec ON reports (spec, step, name);
    CREATE UNIQUE INDEX settled_once ON reports (spec, digest) WHERE status IN ('done', 'failed') AND forgotten = 0;
    CREATE TABLE deliveries (
        report INTEGER NOT NULL REFERENCES reports (id), tracker TEXT NOT NULL, at TEXT NOT NULL,
        PRIMARY KEY (report, tracker))
    """,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where one checkpoint stands under one spec; `metrics` is empty until it is done."""

    spec: str
    digest: str
    name: str
    step: int
    state: StateName
    attempts: int
    interruptions: int
    error: str | None
    at: str
    metrics: Mapping[str, Estimate]

    @property
    def detail(self) -> str:
        """The metrics, or why there are none, in words for a table."""
        if self.metrics:
            return ", ".join(f"{name} {estimate.value:.4f}" for name, estimate in self.metrics.items())
        died = f"; interrupted {self.interruptions} times" if self.interruptions else ""
        return (self.error or (f"since {self.at}" if self.state == "running" else "")) + died


def state_of(row: Mapping[str, Any], metrics: Mapping[str, Estimate]) -> State:
    """A row of the table as a value."""
    state = cast(StateName, row["state"])
    return State(
        **{key: row[key] for key in ("spec", "digest", "name", "step", "interruptions", "error", "at")},
        state=state,
        attempts=row["attempts"] + (state == "running"),
        metrics=metrics,
    )
