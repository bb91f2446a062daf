"""The table at the end of a sweep as a W&B Table of one summary run: what each strategy was worth, and what it cost."""

import dataclasses
import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from dr_validate.errors import Outage, SetupError
from dr_validate.files import write_atomically
from dr_validate.ledger.strategies import Strategy, Sweep
from dr_validate.tracker.run_target import wandb_mode
from dr_validate.tracker.session import abandon, api, failures, opened, require_key, settings

if TYPE_CHECKING:
    import wandb

TABLE = "tables/strategies"
KEY = "_table"  # beside the table: names its content, so that a repeated sweep does not log the same again
log = logging.getLogger(__name__)


class SummaryRun:
    """The one run of a sweep. `entity`, `project`, `group` and `folder` as WandbTracker has them."""

    def __init__(self, sweep: Sweep, place: Mapping[str, Any], *, offline: bool, timeout_s: float) -> None:
        self._sweep, self._place, self._offline, self._timeout_s = sweep, place, offline, timeout_s
        self._marker = sweep.state_dir / "sweeps" / f"{sweep.run_id}.json"
        self._problem: Exception | None = None
        self._said = ""

    def log(self) -> str:
        """Log the table unless it is there; what to tell the user. Takes about twice `timeout_s` at most.

        Raises Outage or SetupError where it has not arrived.
        """
        thread = threading.Thread(target=self._log, name="wandb-sweep", daemon=True)
        thread.start()
        thread.join(2 * self._timeout_s)
        if thread.is_alive() or self._problem is not None:
            abandon()  # its hook at the end of this process would wait, too
        if thread.is_alive():
            raise Outage(f"W&B took longer than {2 * self._timeout_s:g} s")
        if isinstance(self._problem, SetupError):
            raise self._problem
        if self._problem is not None:
            raise Outage(f"{type(self._problem).__name__}: {self._problem}") from self._problem
        return self._said

    def _log(self) -> None:
        try:
            self._said = self._log_offline() if self._offline else self._log_online()
        except failures() as error:
            self._problem = error

    def _log_online(self) -> str:
        require_key()
        run = opened(self._init)
        if not self._is_there(run):
            self._log_table(run)
        run.finish()
        return str(run.url)

    def _log_offline(self) -> str:
        """What is handed over counts as logged: another folder with the same table would double it."""
        if self._marker.is_file() and json.loads(self._marker.read_bytes())["key"] == self._sweep.key:
            return "handed over before"
        run = opened(self._init)
        self._log_table(run)
        run.finish()
        write_atomically(self._marker, json.dumps({"key": self._sweep.key}))
        return f"offline, to upload: wandb sync {quote(str(run.settings.sync_dir))}"

    def _is_there(self, run: "wandb.Run") -> bool:
        if not run.starting_step:
            return False
        rows = api(self._timeout_s).run(run.path).scan_history(use_cache=False)
        keys = [row[KEY] for row in rows if KEY in row]
        return bool(keys) and keys[-1] == self._sweep.key

    def _log_table(self, run: "wandb.Run") -> None:
        import wandb

        columns: list[str | int] = [part.name for part in dataclasses.fields(Strategy)]
        rows = [list(dataclasses.asdict(one).values()) for one in self._sweep.strategies]
        run.log({TABLE: wandb.Table(columns=columns, data=rows, allow_mixed_types=True), KEY: self._sweep.key})

    def _init(self) -> "wandb.Run":
        import wandb

        sweep, folder = self._sweep, self._place["folder"]
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
        return wandb.init(
            entity=self._place["entity"],
            project=self._place["project"],
            mode=wandb_mode(offline=self._offline),
            dir=folder,
            id=sweep.run_id,
            resume=None if self._offline else "allow",
            name=f"{sweep.training_run} {sweep.dataset}: {len(sweep.strategies)} strategies",
            group=self._place["group"] or sweep.group or sweep.training_run,
            job_type="validate-sweep",
            tags=[sweep.dataset[:64]] if sweep.dataset else None,
            config={"dataset": sweep.dataset, "specs": sorted(set(sweep.specs))},
            reinit="create_new",
            settings=settings(self._timeout_s, finish_timeout_raises=True),
        )
