"""The truth: every attempt, Report and delivery in one SQLite file. What it says is done is never done again.

An attempt is recorded before it begins. A process that dies in the middle leaves a `running` row behind, which the next
`begin` counts as an interruption, not as a failure of the checkpoint.
"""

import contextlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from dr_validate.errors import Stopped
from dr_validate.ledger.database import (
    SETTLED,
    State,
    check_same,
    check_whole,
    content_in_words,
    damage_in_words,
    description_of,
    is_locked,
    ledger_files,
    open_database,
    open_read_only,
    state_of,
)
from dr_validate.ledger.reports import report_from_json, report_to_json, revised
from dr_validate.values import Checkpoint, Report, Status

ALL: tuple[Status, ...] = get_args(Status)
T = TypeVar("T")

MOST_AT_ONCE = 500  # values of one query
BETWEEN_TRIES_S = 0.2  # while another process has it locked
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The number of this attempt (failed ones before it, plus one), and how often the process died in one."""

    attempts: int
    interruptions: int


class Ledger:
    """`with Ledger(path) as ledger`; safe from several threads and processes. `read_only` creates and changes nothing.

    Whoever has it locked is waited for as long as `may_wait` says, then Stopped is raised. A file that is removed, replaced or
    damaged while it is open is a SetupError at the next use: what is written to it would be lost.
    """

    def __init__(self, path: Path, *, read_only: bool = False, may_wait: Callable[[], bool] = lambda: True) -> None:
        self.path, self.read_only, self._may_wait = path, read_only, may_wait
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.RLock()
        self._parsed: dict[int, Report] = {}  # by id
        self._counting, self._num_waiting = threading.Lock(), 0

    def __enter__(self) -> "Ledger":
        return self.open()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def open(self) -> "Ledger":
        """Raises SetupError for a file that is missing (read only), foreign, damaged, or of a newer version."""
        assert self._connection is None, f"{self.path} is open already"
        open_file = open_read_only if self.read_only else open_database
        self._connection = self._patiently(lambda: open_file(self.path))
        self._files, self._whole = ledger_files(self.path), self._stamp()
        return self

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def begin(self, checkpoint: Checkpoint, spec: str, at: str) -> Attempt:
        """Record that an attempt begins. Raises AssertionError for what is settled, SetupError for a damaged file."""
        self._check_whole()
        with self._transaction():
            row = self._state_row(checkpoint.digest, spec)
            assert row is None or row["state"] not in SETTLED, f"{checkpoint.name} is {row and row['state']} under {spec}"
            attempts = row["attempts"] if row else 0
            interruptions = (row["interruptions"] + (row["state"] == "running")) if row else 0
            error = row["error"] if row and row["state"] != "skipped" else None
            self._set_state(checkpoint, spec, "running", attempts=attempts, interruptions=interruptions, error=error, at=at)
            return Attempt(attempts=attempts + 1, interruptions=interruptions)

    def release(self, digest: str, spec: str) -> None:
        """The attempt was stopped on purpose: it does not count."""
        self._end_attempt(
            "UPDATE states SET state = 'waiting' WHERE spec = ? AND digest = ? AND state = 'running'", spec, digest
        )

    def retry_later(self, digest: str, spec: str, error: str, at: str) -> None:
        """The attempt failed, and may be repeated."""
        change = "UPDATE states SET state = 'waiting', attempts = attempts + 1, error = ?, at = ?"
        self._end_attempt(f"{change} WHERE spec = ? AND digest = ? AND state = 'running'", error, at, spec, digest)

    def finish(self, report: Report) -> int:
        """Record a final Report and the state it leads to, in one transaction; returns the Report's id.

        A second `done` or `failed` is an AssertionError; a skip that is known already gives the id that it has.
        """
        checkpoint, spec = report.checkpoint, report.spec
        with self._transaction():
            row = self._state_row(checkpoint.digest, spec)
            known = None
            if report.status == "skipped":
                known = self._known_skip(report)
                # The same weights under another name do not change what became of the first.
                moves = row is None or (row["name"] == checkpoint.name and row["state"] in ("waiting", "skipped"))
            else:
                assert not self._is_settled(checkpoint.digest, spec), f"{checkpoint.name} has its Report under {spec}"
                moves = True
            if moves:
                attempts = report.attempts if report.status in SETTLED else row["attempts"] if row else 0
                died = row["interruptions"] if row else 0
                error, at = report.error, report.at
                self._set_state(checkpoint, spec, report.status, attempts=attempts, interruptions=died, error=error, at=at)
            return self._insert_report(report) if known is None else known

    def settled(self, spec: str) -> dict[str, Status]:
        """Digest -> `done` or `failed`: what needs no further attempt."""
        rows = self._rows("SELECT digest, state FROM states WHERE spec = ? AND state IN ('done', 'failed')", spec)
        return {row["digest"]: row["state"] for row in rows}

    def reported_as(self, digest: str, spec: str) -> Checkpoint:
        """The checkpoint that the Report of settled weights is of."""
        settled = "status IN ('done', 'failed') AND forgotten = 0"  # as the index has it
        rows = self._rows(f"SELECT id FROM reports WHERE spec = ? AND digest = ? AND {settled}", spec, digest)
        return self._read([row["id"] for row in rows])[0].checkpoint

    def settled_names(self, spec: str) -> set[str]:
        """Names of what is done or failed."""
        rows = self._rows("SELECT name FROM states WHERE spec = ? AND state IN ('done', 'failed')", spec)
        return {row["name"] for row in rows}

    def reported_labels(self, spec: str) -> dict[str, int]:
        """Label (see `Checkpoint.label`) -> training step of whatever has a Report, skipped ones included."""
        version = "json_extract(report, '$.checkpoint.version')"
        rows = self._rows(f"SELECT name, step, {version} AS version FROM reports WHERE spec = ?", spec)
        return {
            row["name"] if row["version"] == row["name"] else f"{row['name']}:{row['version']}": row["step"] for row in rows
        }

    def end_interrupted(self, spec: str) -> None:
        """Note that no attempt is running: to be called by the holder of the claim on `spec`, who runs none."""
        with self._transaction() as connection:
            change = "UPDATE states SET state = 'waiting', interruptions = interruptions + 1"
            connection.execute(f"{change} WHERE spec = ? AND state = 'running'", (spec,))

    def skips(self, spec: str) -> dict[str, str]:
        """Digest -> the last reason for which it was skipped."""
        rows = self._rows("SELECT digest, error FROM reports WHERE spec = ? AND status = 'skipped' ORDER BY id", spec)
        return {row["digest"]: row["error"] for row in rows}

    def reports(self, spec: str, statuses: Collection[Status] = ALL) -> list[Report]:
        """Reports by ascending training step; those that `retry` withdrew are left out."""
        order = "ORDER BY step, name, id"
        rows = self._rows(f"SELECT id, status FROM reports WHERE spec = ? AND forgotten = 0 {order}", spec)
        return self._read([row["id"] for row in rows if row["status"] in statuses])

    def _read(self, ids: Sequence[int]) -> list[Report]:
        """Each is parsed once: it never changes, and the later ones speak of all before them."""
        new = [number for number in ids if number not in self._parsed]
        for start in range(0, len(new), MOST_AT_ONCE):
            some = new[start : start + MOST_AT_ONCE]
            marks = ", ".join("?" for _ in some)
            for row in self._rows(f"SELECT id, report FROM reports WHERE id IN ({marks})", *some):
                with content_in_words(self.path, f"Report {row['id']}"):
                    self._parsed[row["id"]] = report_from_json(json.loads(row["report"]))
        return [self._parsed[number] for number in ids]

    def undelivered(self, tracker: str, specs: Sequence[str]) -> list[tuple[int, Report]]:
        """Ids and Reports that `tracker` has not seen, oldest first."""
        ids = self._ids("NOT EXISTS", tracker, specs)
        return list(zip(ids, self._read(ids), strict=True))

    def delivered_to(self, tracker: str, specs: Sequence[str]) -> list[Report]:
        """Reports that `tracker` has, oldest first."""
        return self._read(self._ids("EXISTS", tracker, specs))

    def _ids(self, delivered: str, tracker: str, specs: Sequence[str]) -> list[int]:
        marks = ", ".join("?" for _ in specs)
        receipt = f"{delivered} (SELECT 1 FROM deliveries WHERE deliveries.report = reports.id AND tracker = ?)"
        query = f"SELECT id FROM reports WHERE spec IN ({marks}) AND {receipt} ORDER BY id"
        return [row["id"] for row in self._rows(query, *specs, tracker)]

    def delivered(self, report_id: int, tracker: str, at: str) -> None:
        """`tracker` has it; saying so twice changes nothing."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO deliveries VALUES (?, ?, ?)", (report_id, tracker, at))

    def register_spec(self, spec: str, description: Mapping[str, Any], at: str) -> None:
        """Note in words (JSON values) what a spec stands for; the latest description counts, the first time stays."""
        text = json.dumps(description, ensure_ascii=False, allow_nan=False)
        with self._transaction() as connection:
            insert = "INSERT INTO specs VALUES (?, ?, ?) ON CONFLICT (spec) DO UPDATE SET description = excluded.description"
            connection.execute(insert, (spec, text, at))

    def specs(self) -> dict[str, Mapping[str, Any]]:
        """Spec -> description, in the order in which they came. Only a reader refuses one that is damaged: the next start of
        its run writes it anew."""
        found: dict[str, Mapping[str, Any]] = {}
        for row in self._rows("SELECT * FROM specs ORDER BY at, rowid"):
            mended, spec = "start its run again, which writes it anew", str(row["spec"])
            with content_in_words(self.path, f"the description of spec {spec}", mended):
                found[spec] = description_of(row["description"], lenient=not self.read_only)
        return found

    def revised(self, spec: str) -> list[Report]:
        """`reports`, with the values that later Reports and full-corpus baselines give to earlier ones."""
        full_spec = str(self.specs().get(spec, {}).get("full_spec", spec))
        return revised(self.reports(spec), self.reports(full_spec) if full_spec != spec else ())

    def states(self, spec: str) -> list[State]:
        """Where each checkpoint stands, by ascending training step."""
        done = {report.checkpoint.digest: report.metrics for report in self.revised(spec) if report.status == "done"}
        rows = self._rows("SELECT * FROM states WHERE spec = ? ORDER BY step, name", spec)
        return [state_of(row, done.get(row["digest"], {})) for row in rows]

    def retry(self, digest: str, spec: str) -> None:
        """Forget that a checkpoint failed for good: its attempts start again at one, its Report stays for the record."""
        with self._transaction() as connection:
            key = (spec, digest)
            connection.execute("UPDATE reports SET forgotten = 1 WHERE spec = ? AND digest = ? AND status = 'failed'", key)
            connection.execute("DELETE FROM states WHERE spec = ? AND digest = ? AND state = 'failed'", key)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with damage_in_words(self.path, self.read_only):
            connection = self._patiently(self._begin_transaction)
            try:
                yield connection
                self._patiently(lambda: connection.execute("COMMIT"))
            except BaseException:
                if connection.in_transaction:  # a full disk may have rolled it back already
                    connection.execute("ROLLBACK")
                raise
            finally:
                self._lock.release()

    def _begin_transaction(self) -> sqlite3.Connection:
        """Returns with the lock held: between two tries other threads may read."""
        self._lock.acquire()
        try:
            connection = self._open_connection()
            connection.execute("BEGIN IMMEDIATE")
        except BaseException:
            self._lock.release()
            raise
        return connection

    def _open_connection(self) -> sqlite3.Connection:
        assert self._connection is not None, f"{self.path} is not open"
        if not self.read_only:
            check_same(self.path, self._files)
        return self._connection

    def _check_whole(self) -> None:
        if self._stamp() != self._whole:
            with damage_in_words(self.path, self.read_only):
                self._open_connection()
                stamp = self._stamp()
                self._patiently(lambda: check_whole(self.path))
                self._whole = stamp

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def _patiently(self, act: Callable[[], T]) -> T:
        """What `act` returns, as soon as nobody else has the file locked. Raises Stopped when that is not to be waited for."""
        is_waiting = False
        try:
            while True:
                try:
                    return act()
                except sqlite3.OperationalError as error:
                    if not is_locked(error):
                        raise
                    if not is_waiting:
                        is_waiting = True
                        self._count_waiting(1, "%s is locked by another process: waiting until it is free")
                    if not self._may_wait():
                        raise Stopped(f"{self.path} is still locked by another process") from error
                    time.sleep(BETWEEN_TRIES_S)
        finally:
            if is_waiting:
                self._count_waiting(-1, "%s: the wait for it has ended")

    def _count_waiting(self, change: int, words: str) -> None:
        """One line when the first thread begins to wait, one when the last has ended."""
        with self._counting:
            self._num_waiting += change
            if self._num_waiting == max(0, change):
                log.warning(words, self.path)

    def _rows(self, query: str, *values: Any) -> list[Mapping[str, Any]]:
        def read() -> list[Mapping[str, Any]]:
            with self._lock:
                cursor = self._open_connection().execute(query, values)
                names = [column[0] for column in cursor.description]
                return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

        with damage_in_words(self.path, self.read_only):
            return self._patiently(read)

    def _state_row(self, digest: str, spec: str) -> Mapping[str, Any] | None:
        return next(iter(self._rows("SELECT * FROM states WHERE spec = ? AND digest = ?", spec, digest)), None)

    def _is_settled(self, digest: str, spec: str) -> bool:
        query = "SELECT 1 FROM reports WHERE spec = ? AND digest = ? AND status IN ('done', 'failed') AND forgotten = 0"
        return bool(self._rows(query, spec, digest))

    def _known_skip(self, report: Report) -> int | None:
        # Versions of one artifact share its name, and may share their weights; so do the first checkpoints of two trainings.
        # The step is there for the index: without it each skip of thousands would look through all of them.
        version, run = (f"json_extract(report, '$.checkpoint.{key}')" for key in ("version", "training_run"))
        same = f"spec = ? AND step = ? AND name = ? AND digest = ? AND error = ? AND {version} = ? AND {run} = ?"
        made = report.checkpoint
        values = (report.spec, made.step, made.name, made.digest, report.error, made.version, made.training_run)
        rows = self._rows(f"SELECT id FROM reports WHERE status = 'skipped' AND {same}", *values)
        return int(rows[0]["id"]) if rows else None

    def _end_attempt(self, change: str, *values: Any) -> None:
        with self._transaction() as connection:
            changed = connection.execute(change, values).rowcount
            assert changed == 1, f"no attempt is running: {values}"

    def _set_state(self, checkpoint: Checkpoint, spec: str, state: str, **values: Any) -> None:
        identity = {"spec": spec, "digest": checkpoint.digest, "name": checkpoint.name, "step": checkpoint.step}
        row = {**identity, "state": state, **values}
        columns, marks = ", ".join(row), ", ".join("?" for _ in row)
        self._open_connection().execute(f"REPLACE INTO states ({columns}) VALUES ({marks})", tuple(row.values()))

    def _insert_report(self, report: Report) -> int:
        checkpoint = report.checkpoint
        text = json.dumps(report_to_json(report), ensure_ascii=False, allow_nan=False)
        values = (report.spec, checkpoint.digest, checkpoint.name, checkpoint.step, report.status, report.error, text)
        insert = "INSERT INTO reports (spec, digest, name, step, status, error, report) VALUES (?, ?, ?, ?, ?, ?, ?)"
        report_id = self._open_connection().execute(insert, values).lastrowid
        assert report_id is not None
        return report_id
