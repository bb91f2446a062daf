"""What tests of the W&B tracker share: Reports, a watcher without its encoding, and what the server holds of them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dr_validate.component import fingerprint
from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.reports import report_to_json
from dr_validate.values import Checkpoint, Estimate, Report
from tests import warm
from tests.processes import LIMIT_S, wait_for
from tests.wandb_server.fixture import ServerHandle

DRIVER = Path(__file__).with_name("driver.py")
QUICK = {
    f"WANDB_X_{part}_RETRY_WAIT_{end}_SECONDS": "1"
    for part in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER")
    for end in ("MIN", "MAX")
}
QUICK["WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL"] = "1"
TIMEOUT_S = 600.0  # for what the tracker waits for, where a test does not want it to run out
ONLY_HERE = ("_runtime", "_timestamp")
RUN = fingerprint({"training_run": "tas-b", "spec": "s1"})


def report(step: int, value: float = 0.5, *, second: int = 0, training_run: str = "", uri: str = "somewhere") -> Report:
    """One that is done, as a watcher leaves it."""
    return Report(
        checkpoint=Checkpoint(
            name=f"checkpoint-{step}",
            version="v3",
            digest=f"sha256:{training_run}{step:04x}",
            step=step,
            step_from="folder name",
            created_at="2026-11-21T03:12:00Z",
            uri=uri,
            training_run=training_run,
            group="sweep-7" if training_run else "",
        ),
        dataset="vaswani",
        sampler="random",
        spec="s1",
        status="done",
        at=f"2026-11-21T03:{15 + second // 60:02}:{second % 60:02}Z",
        metrics={"mrr@10": Estimate(value=value, low=0.0, high=value, naive=0.9)},
        corpus={"documents": 11429, "encoded": 1143, "encoded_now": 1143, "fraction": 0.1},
        seconds={"load": 1.0, "encode": 20.5, "total": 22.0},
    )


REPORTS = [
    report(500, 0.25, second=1),
    report(1500, 0.5, second=2),
    report(1000, 0.375, second=3),
    replace(report(2000, second=4), status="failed", metrics={}, error="NaN in the weights"),
    replace(report(500, 0.125, second=5), spec="full", sampler="full"),
    report(2500, 0.75, second=6),
]


class Watcher:
    """A driver process: Reports in, until it is closed or killed."""

    def __init__(self, server: ServerHandle, state_dir: Path, environment: Mapping[str, str], **tracker: Any) -> None:
        self._server = server
        others = {"exit_timeout_s": tracker.pop("exit_timeout_s", TIMEOUT_S), "spec": tracker.pop("spec", "s1")}
        others["arrivals"] = tracker.pop("arrivals", {})
        settings = {"state_dir": str(state_dir), "tracker": {"timeout_s": TIMEOUT_S, **tracker}, **others}
        given = {**server.environment(**QUICK), **environment}
        self._log_file = Path(given["WANDB_DIR"]) / "watcher.log"
        with self._log_file.open("w") as log:
            streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
            command = [sys.executable, str(DRIVER), json.dumps(settings)]
            self.process = warm.popen(command, env=given, cwd=given["WANDB_DIR"], **streams)

    @property
    def said(self) -> str:
        """Its log so far."""
        return self._log_file.read_text()

    def send(self, *reports: Report) -> float:
        """The longest wait for a delivery, in seconds."""
        return max((self._say(json.dumps(report_to_json(one))) for one in reports), default=0.0)

    def poll(self) -> None:
        """What a look at the source does: deliver what is left."""
        self._say("")

    def close(self) -> str:
        """End it as a stop would; its log."""
        self.process.communicate(timeout=LIMIT_S)
        assert self.process.returncode == 0, self.said
        assert "Traceback" not in self.said, self.said
        return self.said

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=LIMIT_S)

    def _say(self, line: str) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, self.said
        return float(answer)


Start = Callable[..., Watcher]


def rows(server: ServerHandle, run: str = RUN) -> list[dict[str, Any]]:
    """What the server holds of Reports, by Report, without the times and places that any two runs differ in."""
    history = [row for view in server.runs() if view.id == run for row in view.history() if "_report" in row]
    plain = [{key: value for key, value in row.items() if key not in (*ONLY_HERE, "_step")} for row in history]
    return sorted(plain, key=lambda row: str(row["_report"]))


def wait_for_rows(server: ServerHandle, num_rows: int, run: str = RUN) -> None:
    wait_for(lambda: len(rows(server, run)) >= num_rows)


def undelivered(state_dir: Path) -> int:
    with Ledger(state_dir / "ledger.db") as ledger:
        return len(ledger.undelivered("wandb:s1", ["s1", "full"]))


def steps(server: ServerHandle, run: str = RUN) -> list[int]:
    return [row["train/global_step"] for row in server.run(run).history("_report", "train/global_step")]


def table(server: ServerHandle, name: str) -> list[dict[str, Any]]:
    """The rows of the last table of this name."""
    found = [artifact for artifact in server.artifacts(type="run_table") if name in artifact.collection]
    (path,) = [path for path in found[-1].files if path.endswith(".table.json")]
    content = json.loads(found[-1].bytes(path))
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def versions(values: Sequence[float], training_run: str = "t1") -> list[Report]:
    """Reports on the versions that TRAIN logs."""
    uri = f"wandb-artifact://tester/retrieval/model-{training_run}:v"
    return [report(n * 100, v, second=n, training_run=training_run, uri=f"{uri}{n}") for n, v in enumerate(values)]
