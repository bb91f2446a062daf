"""A watcher without its encoding, in a process of its own: a Report per line of stdin goes into the ledger and to the tracker.

Started as `python driver.py '{"state_dir": ..., "tracker": {...}, "exit_timeout_s": ...}'`; answers each line with how long
`deliver` kept it waiting, in seconds, and the end of stdin with how long the end took.
"""

import json
import logging
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dr_validate.component import component
from dr_validate.config import Run, Settings, Watch
from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.reports import report_from_json
from dr_validate.tracker import validation_run
from dr_validate.tracker.wandb import WandbTracker
from dr_validate.watcher.delivery import Delivery

NAMES = {
    "training_run": "tas-b",
    "spec": "s1",
    "full_spec": "full",
    "dataset": "vaswani",
    "dataset_fingerprint": "d1",
    "documents": 11429,
    "queries": 93,
    "sampler": "random",
    "sample_fingerprint": "f1",
    "encoded": 1143,
    "device": "cpu",
}


@component
class Nothing:
    """Stands where delivery never looks."""


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    given: dict[str, Any] = json.loads(sys.argv[1])
    state_dir = Path(given["state_dir"])
    for name, seconds in given.get("arrivals", {}).items():
        setattr(validation_run, name, seconds)
    other: Any = Nothing()
    run = Run(
        settings=Settings(state_dir=state_dir, metrics=("mrr@10",)),
        watch=Watch(exit_timeout_s=given.get("exit_timeout_s", 20)),
        tracker=WandbTracker(project="retrieval", **given["tracker"]),
        **dict.fromkeys(("source", "store", "dataset", "encoder", "sampler", "engine", "index", "fidelity"), other),
        raw={},
    )
    names = {**NAMES, "spec": given.get("spec", NAMES["spec"])}
    with Ledger(state_dir / "ledger.db") as ledger:
        for sampler, spec in ((names["sampler"], names["spec"]), ("full", names["full_spec"])):
            ledger.register_spec(spec, {**names, "spec": spec, "sampler": sampler}, datetime.now(UTC).isoformat())
        with Delivery(run, ledger, names, lambda: datetime.now(UTC).isoformat()) as delivery:
            for line in sys.stdin:
                if line.strip():
                    ledger.finish(report_from_json(json.loads(line)))
                started = time.monotonic()
                delivery.deliver()
                say(time.monotonic() - started)
            started = time.monotonic()
        say(time.monotonic() - started)


def say(seconds: float) -> None:
    sys.stdout.write(f"{seconds}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
