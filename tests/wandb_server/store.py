"""The server's memory: records and lines in SQLite, contents as files; a killed server loses nothing it has answered for."""

import contextlib
import json
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from tests.wandb_server.records import Record

R = TypeVar("R", bound=Record)
SCHEMA = """
create table if not exists records (
    number integer primary key autoincrement, kind text not null, key text not null, body text not null, unique (kind, key)
);
create table if not exists lines (
    run text not null, stream text not null, position integer not null, client text not null, sent integer not null,
    body text not null, primary key (run, stream, position)
);
"""


class Store:
    """Records by kind and key, lines by run and stream, blobs by name, under `folder`.

    Other processes may read the same folder at any time; only the server writes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._database = sqlite3.connect(folder / "state.db", isolation_level=None, check_same_thread=False, timeout=30)
        self._database.execute("pragma journal_mode = wal")
        self._database.execute("pragma synchronous = normal")
        self._database.executescript(SCHEMA)

    def close(self) -> None:
        self._database.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """One at a time; what the block wrote is kept only if it ends without an error."""
        with self._lock:
            self._database.execute("begin immediate")
            try:
                yield
            except BaseException:
                self._database.execute("rollback")
                raise
            self._database.execute("commit")

    def put(self, record: R) -> R:
        """Insert or replace; a new record gets its number."""
        values = asdict(record)
        values.pop("number")
        kind = type(record).__name__
        with self._lock:
            row = self._database.execute(
                "insert into records (kind, key, body) values (?, ?, ?)"
                " on conflict (kind, key) do update set body = excluded.body returning number",
                (kind, record.key, json.dumps(values)),
            ).fetchone()
        record.number = row[0]
        return record

    def get(self, kind: type[R], key: str | None) -> R | None:
        return next(iter(self._select(kind, "key = ?", key)), None)

    def by_id(self, kind: type[R], opaque: str | None) -> R | None:
        """The record that clients call `opaque`."""
        return next((record for record in self.all(kind) if record.id == opaque), None)

    def all(self, kind: type[R]) -> list[R]:
        """In the order in which they were first put."""
        return self._select(kind, "1 = ?", 1)

    def delete(self, record: Record) -> None:
        with self._lock:
            self._database.execute("delete from records where kind = ? and key = ?", (type(record).__name__, record.key))

    def _select(self, kind: type[R], where: str, value: object) -> list[R]:
        names = {part.name for part in fields(kind)}
        with self._lock:
            rows = self._database.execute(
                f"select number, body from records where kind = ? and {where} order by number", (kind.__name__, value)
            ).fetchall()
        loaded = [(number, json.loads(body)) for number, body in rows]
        return [kind(**{k: v for k, v in body.items() if k in names}, number=number) for number, body in loaded]

    def write_lines(self, stream: tuple[str, str], offset: int, lines: list[str], client: str = "") -> None:
        """Lay `lines` down from `offset` on, over what is there; those of a `client` in shared mode come after all others."""
        for sent, body in enumerate(lines, start=offset):
            position = self._position(stream, sent, client) if client else sent
            self._database.execute(
                "insert or replace into lines values (?, ?, ?, ?, ?, ?)", (*stream, position, client, sent, body)
            )

    def _position(self, stream: tuple[str, str], sent: int, client: str) -> int:
        known = self._database.execute(
            "select position from lines where run = ? and stream = ? and client = ? and sent = ?", (*stream, client, sent)
        ).fetchone()
        return int(known[0]) if known else self.count_lines(stream)

    def lines(self, stream: tuple[str, str]) -> list[tuple[int, str, str]]:
        """(position, client, body) in order."""
        with self._lock:
            return self._database.execute(
                "select position, client, body from lines where run = ? and stream = ? order by position", stream
            ).fetchall()

    def count_lines(self, stream: tuple[str, str]) -> int:
        with self._lock:
            row = self._database.execute("select max(position) from lines where run = ? and stream = ?", stream).fetchone()
        return 0 if row[0] is None else int(row[0]) + 1

    def delete_lines(self, run: str) -> None:
        self._database.execute("delete from lines where run = ?", (run,))

    def blob(self, name: str) -> Path:
        """Where the content called `name` lies; it need not exist."""
        path = (self.folder / "blobs" / name).resolve()
        assert path.is_relative_to((self.folder / "blobs").resolve()), name
        return path

    def write_blob(self, name: str, content: bytes) -> None:
        path = self.blob(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        Path(temporary).replace(path)


def json_text(value: Any) -> str:
    """Compact JSON, as GraphQL's JSONString fields carry it."""
    return json.dumps(value, separators=(",", ":"))
