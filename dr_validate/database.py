"""Open a SQLite file that is ours, safely: known schema, write-ahead log, nothing created by who only reads."""

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from dr_validate.errors import SetupError
from dr_validate.files import locked

APPLICATION_ID = 0x64725661  # "drVa": tells our files from other people's
BUSY_TIMEOUT_S = 60.0  # transactions take milliseconds; a slow disk may take longer


def open_database(path: Path, migrations: Sequence[str]) -> sqlite3.Connection:
    """Open for writing, creating it or bringing it to the newest schema. Raises SetupError where that cannot be done."""
    _make_folder(path.parent)
    # Switching a new file to WAL does not wait for its turn, so two processes that begin at once take turns here.
    with locked(path.with_suffix(".lock")):
        existed = path.exists() and path.stat().st_size > 0
        connection = _connect(path, f"file:{quote(str(path.absolute()))}")
        try:
            if existed:
                _check(connection, path, len(migrations))
            _migrate(connection, path, migrations)
        except BaseException:
            connection.close()
            raise
    return connection


def open_read_only(path: Path, migrations: Sequence[str]) -> sqlite3.Connection:
    """Open an existing file for reading; creates nothing, not even beside it. Raises SetupError where that cannot be done."""
    if not path.is_file():
        raise SetupError(f"{path}: no such ledger; is state_dir right? `task=validate` makes one")
    # Where no log is left nobody has it open, and an immutable connection leaves no files of its own behind.
    log = path.with_name(f"{path.name}-wal")
    mode = "mode=ro" if log.exists() else "mode=ro&immutable=1"
    connection = _connect(path, f"file:{quote(str(path.absolute()))}?{mode}")
    try:
        _check(connection, path, len(migrations), exactly=True)
    except BaseException:
        connection.close()
        raise
    return connection


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


def _check(connection: sqlite3.Connection, path: Path, known: int, *, exactly: bool = False) -> None:
    way_out = "move it away (its results go with it) or set another state_dir"
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        healthy = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if _may_pass(error):
            raise
        raise SetupError(f"{path}: not a readable ledger ({error}); {way_out}") from error
    if application != APPLICATION_ID and tables > 0:  # without tables: its maker was killed before the first one
        raise SetupError(f"{path}: a database, but not a ledger of dr_validate; {way_out}")
    if healthy != "ok":
        raise SetupError(f"{path}: the ledger is damaged ({healthy}); {way_out}")
    if version > known:
        newest = f"this one knows up to {known}"
        raise SetupError(f"{path}: written by a newer dr_validate (schema {version}, {newest}); update, or {way_out}")
    if exactly and version < known:
        raise SetupError(f"{path}: written by an older dr_validate (schema {version} of {known}); `task=validate` brings it up")


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        for number, script in enumerate(migrations[version:], version + 1):
            marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
            connection.executescript(f"BEGIN IMMEDIATE; {script}; {marks} COMMIT;")
    except sqlite3.OperationalError as error:
        if _may_pass(error):
            raise
        raise SetupError(f"{path}: {error}; state_dir must be writable and on a local disk") from error


def _may_pass(error: sqlite3.DatabaseError) -> bool:
    """Whether waiting or freeing space helps: not a fault of the file."""
    return "full" in str(error) or "busy" in str(error) or "database is locked" in str(error)
