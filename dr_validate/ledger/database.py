"""Open the SQLite file of the ledger, safely: known schema, write-ahead log, nothing created by who only reads.

Python must not open the file itself: closing it would drop the locks that SQLite has on it in this process.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import quote

from dr_validate.errors import DrValidateError, LedgerLost, SetupError
from dr_validate.files import disk_words, is_disk_full, is_read_only, locked
from dr_validate.values import Estimate

APPLICATION_ID = 0x64725661  # "drVa": tells our files from other people's
BUSY_TIMEOUT_S = 1.0  # for each try: whoever keeps it locked for longer is waited for by the ledger, which says so
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
WAY_OUT = "move it away (its results go with it) or set another state_dir"
Files = tuple[tuple[int, int] | None, ...]
OURS = ("checkpoints", "estimates", "queries", "samples", "top")  # folders beside it that nobody makes before it
StateName = Literal["running", "waiting", "done", "failed", "skipped"]
SETTLED = ("done", "failed")
NAMES = ("dataset", "sampler", "full_spec")  # without which nothing right can be said of a spec
DESCRIBED: Mapping[str, type] = {  # what is read of its description
    **dict.fromkeys((*NAMES, "command"), str),
    **dict.fromkeys(("documents", "queries", "encoded"), int),
    **dict.fromkeys(("members", "made"), dict),
    "baseline": bool,
}
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


def open_database(path: Path) -> sqlite3.Connection:
    """Open for writing, creating it or bringing it to the newest schema. Raises SetupError where that cannot be done."""
    _make_folder(path.parent)
    # Switching a new file to WAL does not wait for its turn, so two processes that begin at once take turns here.
    with _room_for(path), locked(path.with_suffix(".lock")):
        existed = path.exists() and path.stat().st_size > 0
        refuse_lost(path)
        connection = _connect(path, f"file:{quote(str(path.absolute()))}")
        try:
            if existed:
                _check(connection, path)
            _migrate(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def open_read_only(path: Path) -> sqlite3.Connection:
    """Open an existing file for reading; creates nothing, not even beside it. Raises SetupError where that cannot be done."""
    if not path.is_file():
        raise SetupError(f"{path}: no such ledger; is state_dir right? `task=validate` makes one")
    refuse_lost(path)
    # Where no log is left nobody has it open, and an immutable connection leaves no files of its own behind.
    log = path.with_name(f"{path.name}-wal")
    mode = "mode=ro" if log.exists() else "mode=ro&immutable=1"
    connection = _connect(path, f"file:{quote(str(path.absolute()))}?{mode}")
    try:
        _check(connection, path, exactly=True)
    except BaseException:
        connection.close()
        raise
    return connection


def is_made(path: Path) -> bool:
    """Whether there is a ledger: a file of 0 bytes is none yet. Raises SetupError where there was one."""
    refuse_lost(path)
    return path.exists() and path.stat().st_size > 0


def refuse_lost(path: Path) -> None:
    """Raise SetupError where there is no ledger, or one of 0 bytes, though what is beside it tells that there was one: made
    anew it would have everything validated, and told, a second time."""
    if path.exists() and path.stat().st_size > 0:
        return
    told = _last_told(path.with_name("reports.jsonl"))
    beside = [name for name in OURS if path.with_name(name).exists()] if path.exists() else []
    if not told and not beside:
        return
    is_what = "has 0 bytes" if path.exists() else "is not there"
    raise SetupError(
        f"{path}: the ledger {is_what}, but there was one: beside it {'is ' + told if told else 'are ' + ', '.join(beside)}; "
        f"put a copy of it back, or move {path.parent} away, or set another state_dir: then everything is validated anew"
    )


def ledger_files(path: Path) -> Files:
    """Which files the ledger and its write-ahead log are now; None for one that is not there."""
    found: list[tuple[int, int] | None] = []
    for file in (path, path.with_name(f"{path.name}-wal")):
        try:
            status = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino))
    return tuple(found)


def check_same(path: Path, before: Files) -> None:
    """Raise LedgerLost where `ledger_files` are not those of `before` any more: what is written to them now is lost."""
    if (now := ledger_files(path)) == before:
        return
    happened = "is gone" if now[0] is None else "is another file now" if now[0] != before[0] else "has lost its -wal file"
    raise LedgerLost(
        f"{path}: the ledger {happened}: state_dir was removed, moved or replaced while this run had it open, so nothing "
        "more is done in it; put it back as it was, or move away what is left of it (then everything is validated anew), and "
        "start again"
    )


def check_whole(path: Path) -> None:
    """Look through the file afresh, past what open connections keep of it. Raises SetupError where it is damaged."""
    if path.stat().st_size == 0:  # which SQLite would take for new
        raise SetupError(f"{path}: the ledger was cut to 0 bytes while this run had it open; {WAY_OUT}")
    connection = _connect(path, f"file:{quote(str(path.absolute()))}?mode=ro")
    try:
        _check(connection, path, exactly=True)
    finally:
        connection.close()


def is_locked(error: sqlite3.Error) -> bool:
    """Whether another process has the file to itself now."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


@contextlib.contextmanager
def damage_in_words(path: Path, read_only: bool) -> Iterator[None]:
    """SetupError for what waiting does not mend: a file that is damaged, or that may not be written to any more. `read_only`:
    it was never meant to be."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if _code(error) in DAMAGED or str(error).startswith(("no such table", "no such column")):
            raise SetupError(f"{path}: not a readable ledger any more ({error}); {WAY_OUT}") from error
        if is_read_only(error) and not read_only:
            raise SetupError(f"{path}: {error}; make it writable (is the disk mounted read-only?) and start again") from error
        raise


@contextlib.contextmanager
def content_in_words(path: Path, row: str, way_out: str = "") -> Iterator[None]:
    """SetupError for a row that the database holds well, but nobody of us wrote: bits of it are others, or it was edited.
    `way_out`: one that loses nothing, where there is one."""
    try:
        yield
    except DrValidateError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, RecursionError) as error:
        said = f"{type(error).__name__}: {str(error)[:200]}"
        ways = f"{way_out}; or {WAY_OUT}" if way_out else WAY_OUT
        raise SetupError(f"{path}: the ledger is damaged ({row} is not as it was written: {said}); {ways}") from error


@contextlib.contextmanager
def _room_for(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if not is_disk_full(error):
            raise
        raise SetupError(f"{path}: the ledger cannot be opened: {disk_words(error, path.parent)}") from error


def _last_told(reports: Path) -> str:
    """What `reports` has last, in words; empty where it has nothing."""
    try:
        lines = reports.read_bytes().splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            last = json.loads(line)
            return f"{reports.name} with {len(lines)} lines, the last one {last['checkpoint']['name']} at {last['at']}"
    return f"{reports.name} with {len(lines)} lines" if lines else ""


def _code(error: sqlite3.Error) -> int:
    """The primary result code of SQLite; -1 where the error is Python's."""
    code = getattr(error, "sqlite_errorcode", None)
    return -1 if code is None else code & 0xFF


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in the way" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise SetupError(f"state_dir: got {str(folder)!r}, which cannot be made ({reason}); set another state_dir") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SetupError(f"state_dir: got {str(folder)!r}, which is not writable; set another state_dir, or its permissions")


def _connect(path: Path, uri: str) -> sqlite3.Connection:
    try:
        # One connection serves all threads of a process; its owner holds a lock around each use.
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S)
    except sqlite3.OperationalError as error:
        raise SetupError(f"{path}: {error}; check that it is a file, and its permissions") from error


def _check(connection: sqlite3.Connection, path: Path, *, exactly: bool = False) -> None:
    known = len(MIGRATIONS)
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        healthy = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if _may_pass(error):
            raise
        raise SetupError(f"{path}: not a readable ledger ({error}); {WAY_OUT}") from error
    if application != APPLICATION_ID and tables > 0:  # without tables: its maker was killed before the first one
        raise SetupError(f"{path}: a database, but not a ledger of dr_validate; {WAY_OUT}")
    if healthy != "ok":
        raise SetupError(f"{path}: the ledger is damaged ({healthy}); {WAY_OUT}")
    if version > known:
        newest = f"this one knows up to {known}"
        raise SetupError(f"{path}: written by a newer dr_validate (schema {version}, {newest}); update, or {WAY_OUT}")
    if exactly and version < known:
        raise SetupError(f"{path}: written by an older dr_validate (schema {version} of {known}); `task=validate` brings it up")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
            connection.executescript(f"BEGIN IMMEDIATE; {script}; {marks} COMMIT;")
    except sqlite3.OperationalError as error:
        if _may_pass(error):
            raise
        raise SetupError(f"{path}: {error}; state_dir must be writable and on a local disk") from error


def _may_pass(error: sqlite3.DatabaseError) -> bool:
    """Whether waiting or freeing space helps: not a fault of the file."""
    return is_locked(error) or is_disk_full(error)


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


def description_of(text: str, *, lenient: bool = False) -> dict[str, Any]:
    """What a spec was registered as; `lenient`: what is left of it. Raises ValueError, TypeError or AttributeError for what
    nobody of us wrote."""
    try:
        found = dict(json.loads(text).items())
    except (ValueError, AttributeError):
        if lenient:
            return {}
        raise
    for key, kind in DESCRIBED.items():
        value = found.get(key)
        if not (lenient or isinstance(value, kind) or (value is None and key not in NAMES)):
            raise TypeError(f"its {key} is {json.dumps(value)}")
    return found


def state_of(row: Mapping[str, Any], metrics: Mapping[str, Estimate]) -> State:
    """A row of the table as a value."""
    state = cast(StateName, row["state"])
    return State(
        **{key: row[key] for key in ("spec", "digest", "name", "step", "interruptions", "error", "at")},
        state=state,
        attempts=row["attempts"] + (state == "running"),
        metrics=metrics,
    )
