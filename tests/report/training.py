"""A training as the ledger knows it: Reports written through the real Ledger, values per query as the pipeline leaves them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from dr_validate.ledger.ledger import Ledger
from dr_validate.report.gather import Section, gather
from dr_validate.values import Checkpoint, Estimate, Report, Status

FULL, SAMPLE = "f" * 16, "a" * 16
DOCUMENTS = 10_000


def exact(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value, naive=value)


def bound(value: float) -> Estimate:
    """What a sample without an estimator gives."""
    return Estimate(value=value, low=0.0, high=value, naive=value)


def within(value: float, reach: float) -> Estimate:
    return Estimate(value=value, low=value - reach, high=value + reach, naive=value + 2 * reach)


class Training:
    """`done`, `ended` and `queries` write; `sections` reads back what the page is made of."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.ledger = Ledger(state_dir / "ledger.db")

    def strategy(self, spec: str = SAMPLE, sampler: str = "random", encoded: int = 500, **changes: Any) -> None:
        names = {"dataset": "vaswani", "documents": DOCUMENTS, "queries": 93, "full_spec": FULL, **changes}
        self.ledger.register_spec(spec, {**names, "sampler": sampler, "encoded": encoded, "spec": spec}, "2026-11-21T03:00:00Z")

    def done(
        self, step: int, estimates: Mapping[str, Estimate] | Estimate, spec: str = SAMPLE, run: str = "", **changes: Any
    ) -> Report:
        metrics = {"mrr@10": estimates} if isinstance(estimates, Estimate) else estimates
        encoded = DOCUMENTS if spec == FULL else 500
        corpus = {"documents": DOCUMENTS, "encoded": encoded, "encoded_now": encoded, "fraction": encoded / DOCUMENTS}
        seconds = {"encode": 18.5, "total": 40.0 if spec == FULL else 2.0}
        known = {"metrics": metrics, "corpus": corpus, "seconds": seconds, **changes}
        return self._finish(step, "done", spec, run, **known)

    def ended(self, step: int, status: Status, why: str, spec: str = SAMPLE, **changes: Any) -> Report:
        return self._finish(step, status, spec, "", error=why, **changes)

    def full(self, *values: float) -> None:
        """Full-corpus values of steps 100, 200 ..."""
        self.strategy(FULL, "full")
        for number, value in enumerate(values, 1):
            self.done(100 * number, exact(value), FULL)

    def sample(self, *estimates: Estimate) -> None:
        """Sampled values of steps 100, 200 ..."""
        self.strategy()
        for number, estimate in enumerate(estimates, 1):
            self.done(100 * number, estimate)

    def queries(self, report: Report, values: Mapping[str, Sequence[float | None]]) -> Path:
        path = self.state_dir / "queries" / report.spec / f"{report.checkpoint.digest.replace(':', '-')}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [(f"q{n}", metric, value) for metric, column in values.items() for n, value in enumerate(column)]
        ids, names, numbers = (list(column) for column in zip(*rows, strict=True))
        table = pyarrow.table({"query_id": ids, "metric": names, "value": numbers, "naive": numbers})
        pyarrow.parquet.write_table(table, path)
        return path

    def table(self, path: Path, **columns: Any) -> None:
        """One more file beside the ledger; a value that is no list is a column of one row."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lists = {name: column if isinstance(column, list) else [column] for name, column in columns.items()}
        pyarrow.parquet.write_table(pyarrow.table(lists), path)

    def sections(self) -> list[Section]:
        return gather(self.ledger)

    def section(self) -> Section:
        (only,) = self.sections()
        return only

    def _finish(self, step: int, status: Status, spec: str, run: str, **known: Any) -> Report:
        name, folder = known.pop("name", f"checkpoint-{step}"), known.pop("folder", f"runs/{run}")
        checkpoint = Checkpoint(
            name=name,
            version=name,
            digest=f"sha256:{step:04x}{run.encode().hex()}{folder.encode().hex() if folder.startswith('/') else ''}",
            step=step,
            step_from="folder name",
            created_at="2026-11-21T03:12:00Z",
            uri=f"{folder}/{step}",
            training_run=run,
        )
        at = known.pop("at", "2026-11-21T03:15:00Z")
        report = Report(checkpoint=checkpoint, dataset="vaswani", sampler="random", spec=spec, status=status, at=at, **known)
        self.ledger.finish(report)
        return report
