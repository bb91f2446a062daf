"""The ledger against processes that die, that run at once, and disks that fill up."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dr_validate.cli.status import show_status
from dr_validate.errors import SetupError, Stopped
from dr_validate.ledger.ledger import Attempt, Ledger
from dr_validate.process import until_stopped
from dr_validate.values import Status
from tests import warm
from tests.factories import AT, checkpoint, report
from tests.processes import LIMIT_S, wait_for


@pytest.fixture
def tries_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a lock tries every hundredth of a second, not every second."""
    monkeypatch.setattr("dr_validate.ledger.database.BUSY_TIMEOUT_S", 0.01)
    monkeypatch.setattr("dr_validate.ledger.ledger.BETWEEN_TRIES_S", 0.01)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "state" / "ledger.db") as opened:
        yield opened


def run_python(code: str, *arguments: object, **options: Any) -> "subprocess.Popen[str]":
    return warm.popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, **options)


def test_a_ledger_is_made_by_opening_it_and_not_by_its_constructor(tmp_path: Path) -> None:
    unopened = Ledger(tmp_path / "state" / "ledger.db")
    assert not list(tmp_path.iterdir())
    with unopened:
        assert (tmp_path / "state" / "ledger.db").is_file()


def test_failed_tries_count_and_clean_stops_do_not(ledger: Ledger) -> None:
    one = checkpoint()
    assert ledger.begin(one, "s1", AT) == Attempt(attempts=1, interruptions=0)
    ledger.release(one.digest, "s1")
    assert ledger.begin(one, "s1", AT) == Attempt(attempts=1, interruptions=0)
    ledger.retry_later(one.digest, "s1", "no route to host", AT)
    assert ledger.begin(one, "s1", AT) == Attempt(attempts=2, interruptions=0)
    assert ledger.begin(one, "s2", AT) == Attempt(attempts=1, interruptions=0)  # another spec counts for itself
    (state,) = ledger.states("s1")
    assert (state.state, state.attempts, state.error) == ("running", 2, "no route to host")


def test_a_killed_process_costs_an_interruption_and_not_an_attempt(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    code = """
import sys, time
from pathlib import Path
from dr_validate.ledger.ledger import Ledger
from dr_validate.values import Checkpoint
one = Checkpoint(name="c", version="c", digest="sha256:01f4", step=500, step_from="x", created_at="x", uri="x")
with Ledger(Path(sys.argv[1])) as ledger:
    print(ledger.begin(one, "s1", "now").interruptions, flush=True)
    time.sleep(600)
"""
    for died_before in range(2):
        process = run_python(code, path)
        assert process.stdout is not None
        assert process.stdout.readline() == f"{died_before}\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with Ledger(path) as ledger:
        assert ledger.begin(checkpoint(500), "s1", AT) == Attempt(attempts=1, interruptions=2)
        ledger.finish(report(500))
        assert ledger.settled("s1") == {checkpoint(500).digest: "done"}


def test_two_processes_finish_reports_of_two_specs_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.factories import AT, checkpoint, report
from dr_validate.ledger.ledger import Ledger
with Ledger(Path(sys.argv[1])) as ledger:
    for step in range(40):
        ledger.begin(checkpoint(step), sys.argv[2], AT)
        ledger.finish(report(step, spec=sys.argv[2]))
"""
    both = [run_python(code, path, spec) for spec in ("s1", "s2")]
    assert [process.communicate(timeout=LIMIT_S) and process.returncode for process in both] == [0, 0]
    with Ledger(path) as ledger:
        ids = [report_id for report_id, _ in ledger.undelivered("jsonl", ["s1", "s2"])]
        assert len(set(ids)) == 80
        for spec in ("s1", "s2"):
            assert [one.checkpoint.step for one in ledger.reports(spec)] == list(range(40))


def test_threads_share_one_ledger(ledger: Ledger) -> None:
    def work(offset: int) -> None:
        for step in range(offset, offset + 20):
            ledger.begin(checkpoint(step), "s1", AT)
            ledger.finish(report(step))

    threads = [threading.Thread(target=work, args=(offset,)) for offset in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.settled("s1")) == 60


@pytest.mark.parametrize("second", ["done", "failed"])
@pytest.mark.parametrize("first", ["done", "failed"])
def test_a_final_report_is_written_once(ledger: Ledger, first: Status, second: Status) -> None:
    ledger.begin(checkpoint(), "s1", AT)
    ledger.finish(report(status=first))
    with pytest.raises(AssertionError, match="has its Report"):
        ledger.finish(report(status=second))
    with pytest.raises(AssertionError, match=f"is {first}"):
        ledger.begin(checkpoint(), "s1", AT)
    assert [one.status for one in ledger.reports("s1")] == [first]


def test_what_was_skipped_can_be_done_later_and_the_same_skip_is_told_once(ledger: Ledger) -> None:
    first = ledger.finish(report(status="skipped", error="stale: overtaken"))
    assert ledger.finish(report(status="skipped", error="stale: overtaken")) == first
    assert ledger.skips("s1") == {checkpoint().digest: "stale: overtaken"}
    assert ledger.settled("s1") == {}
    ledger.begin(checkpoint(), "s1", AT)
    ledger.finish(report())
    assert [one.status for one in ledger.reports("s1")] == ["skipped", "done"]
    assert [one.status for one in ledger.reports("s1", ["done"])] == ["done"]
    assert ledger.finish(report(status="skipped", error="stale: overtaken")) == first
    assert ledger.settled("s1") == {checkpoint().digest: "done"}


def test_equal_weights_under_two_more_names_are_two_skips_and_leave_the_first_alone(ledger: Ledger) -> None:
    ledger.begin(checkpoint(), "s1", AT)
    ids = {
        ledger.finish(report(status="skipped", error="same weights as checkpoint-500", name=name)) for name in ("best", "last")
    }
    assert len(ids) == 2
    assert [(state.name, state.state) for state in ledger.states("s1")] == [("checkpoint-500", "running")]


def test_equal_weights_in_two_versions_of_one_name_are_two_skips(ledger: Ledger) -> None:
    one = report(status="skipped", error="same weights as v3")
    versions = [dataclasses.replace(one, checkpoint=dataclasses.replace(one.checkpoint, version=v)) for v in ("v4", "v5", "v4")]
    ids = [ledger.finish(version) for version in versions]
    assert ids[0] == ids[2] != ids[1]


def test_a_skip_that_is_known_still_ends_an_attempt(ledger: Ledger) -> None:
    for _ in range(2):
        ledger.begin(checkpoint(), "s1", AT)
        ledger.release(checkpoint().digest, "s1")
        ledger.finish(report(status="skipped", error="it was deleted"))
        assert [state.state for state in ledger.states("s1")] == ["skipped"]
    assert len(ledger.reports("s1")) == 1


def test_reports_come_by_step_and_deliveries_in_the_order_of_the_reports(ledger: Ledger) -> None:
    written = [ledger.finish(report(step, spec=spec)) for step, spec in ((300, "s1"), (100, "s1"), (200, "s2"), (200, "s3"))]
    assert [one.checkpoint.step for one in ledger.reports("s1")] == [100, 300]
    assert [report_id for report_id, _ in ledger.undelivered("jsonl", ["s1", "s2"])] == written[:3]
    ledger.delivered(written[0], "jsonl", AT)
    ledger.delivered(written[0], "jsonl", AT)
    assert [one.checkpoint.step for _, one in ledger.undelivered("jsonl", ["s1", "s2"])] == [100, 200]
    assert len(ledger.undelivered("wandb:s1", ["s1", "s2"])) == 3


def test_a_failed_checkpoint_can_be_given_another_chance(ledger: Ledger) -> None:
    ledger.begin(checkpoint(), "s1", AT)
    ledger.finish(report(status="failed"))
    ledger.retry(checkpoint().digest, "s1")
    assert ledger.settled("s1") == {}
    assert ledger.begin(checkpoint(), "s1", AT).attempts == 1
    ledger.finish(report())
    assert [one.status for one in ledger.reports("s1")] == ["done"]
    assert len(ledger.undelivered("jsonl", ["s1"])) == 2  # what happened is still told


def test_status_can_be_read_while_it_is_written(ledger: Ledger) -> None:
    vaswani, nq = (
        {"dataset": "vaswani", "sampler": "random", "full_spec": "s0"},
        {"dataset": "nq", "sampler": "full", "full_spec": "s0"},
    )
    ledger.register_spec("s1", {**vaswani, "encoded": 1}, AT)
    ledger.register_spec("s0", nq, "2026-11-22T00:00:00Z")
    ledger.register_spec("s1", {**vaswani, "encoded": 2}, "2026-11-23T00:00:00Z")
    ledger.begin(checkpoint(100), "s1", AT)
    ledger.finish(report(100))
    ledger.begin(checkpoint(200), "s1", AT)
    ledger.retry_later(checkpoint(200).digest, "s1", "no route to host", AT)
    ledger.begin(checkpoint(300), "s1", AT)
    with Ledger(ledger.path, read_only=True) as reader:
        assert list(reader.specs().items()) == [("s1", {**vaswani, "encoded": 2}), ("s0", nq)]
        rows = [(state.step, state.state, state.attempts, state.detail) for state in reader.states("s1")]
    assert rows == [
        (100, "done", 1, "mrr@10 0.1000"),
        (200, "waiting", 1, "no route to host"),
        (300, "running", 1, f"since {AT}"),
    ]


def test_reading_creates_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        ledger.finish(report())
    before = {entry.name: entry.stat().st_mtime_ns for entry in tmp_path.iterdir()}
    with Ledger(path, read_only=True) as reader:
        assert len(reader.reports("s1")) == 1
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.finish(report(600))
    assert {entry.name: entry.stat().st_mtime_ns for entry in tmp_path.iterdir()} == before
    with pytest.raises(SetupError, match=r"nowhere.db: no such ledger; is state_dir right"):
        Ledger(tmp_path / "nowhere.db", read_only=True).open()
    assert {entry.name for entry in tmp_path.iterdir()} == set(before)


def test_files_that_are_not_our_ledger_are_refused_and_left_alone(tmp_path: Path) -> None:
    text, foreign, newer = tmp_path / "text.db", tmp_path / "foreign.db", tmp_path / "newer.db"
    text.write_text("not a database, but long enough to look at " * 40)
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE t (a)")
    connection.close()
    with Ledger(newer):
        pass
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    (tmp_path / "folder.db").mkdir()
    contents = {path: path.read_bytes() for path in (text, foreign, newer)}
    for path, said in ((text, "not a readable ledger"), (foreign, "not a ledger of dr_validate"), (newer, "schema 99")):
        for read_only in (False, True):
            with pytest.raises(SetupError, match=said) as caught:
                Ledger(path, read_only=read_only).open()
            assert str(path) in str(caught.value)
            assert "another state_dir" in str(caught.value)
    with pytest.raises(SetupError, match=r"folder\.db"):
        Ledger(tmp_path / "folder.db").open()
    assert {path: path.read_bytes() for path in contents} == contents


@pytest.mark.parametrize("place", ["file/ledger.db", "file/below/ledger.db"])
def test_a_state_dir_that_cannot_be_made_is_refused_in_words(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=r"^state_dir: got '.*', which cannot be made \(a file is in the way\); set another"):
        Ledger(tmp_path / place).open()


def test_a_damaged_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        for step in range(60):
            ledger.finish(report(step))
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * 4096 * 4 + content[4096 * 5 :])
    with pytest.raises(SetupError, match="ledger"):
        Ledger(path).open()


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ("UPDATE reports SET report = 'null'", "Report 1 is"),
        ("UPDATE reports SET report = '{\"checkpoint\": '", "Report 1 is"),
        ("UPDATE reports SET report = x'00ff'", "Report 1 is"),
        (f"UPDATE reports SET report = '{'[' * 100_000}'", "Report 1 is"),
        ("UPDATE reports SET report = json_set(report, '$.notes', json('[[]]'))", "Report 1 is"),
        ("UPDATE reports SET report = json_remove(report, '$.metrics')", "Report 1 is"),
        ("UPDATE reports SET report = json_set(report, '$.checkpoint.step', 'x')", "Report 1 is"),
        ("UPDATE specs SET description = 'null'", "the description of spec s1 is"),
        ("UPDATE specs SET description = '{'", "the description of spec s1 is"),
        ("UPDATE specs SET description = json_remove(description, '$.full_spec')", "TypeError: its full_spec is null"),
        ("UPDATE specs SET description = json_set(description, '$.encoded', 'few')", 'TypeError: its encoded is "few"'),
        ("DROP TABLE reports", "no such table"),
    ],
)
def test_a_row_that_nobody_of_us_wrote_is_named_with_the_way_out(tmp_path: Path, change: str, row: str) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        ledger.register_spec("s1", {"dataset": "d", "sampler": "full", "full_spec": "s1"}, "at")
        ledger.finish(report())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(change)
        connection.commit()
    with Ledger(path, read_only=True) as ledger, pytest.raises(SetupError, match=r"ledger\.db") as caught:
        ledger.specs()
        ledger.reports("s1")
    assert row in str(caught.value) and "move it away (its results go with it) or set another state_dir" in str(caught.value)


def test_a_ledger_whose_maker_died_at_once_is_finished(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA user_version = 0")
    connection.close()
    assert path.stat().st_size > 0
    with Ledger(path) as ledger:
        ledger.finish(report())
        assert ledger.settled("s1")


def test_a_full_disk_raises_and_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        with Ledger(disk / "ledger.db") as ledger:
            ledger.finish(report(1))
            filler = os.open(disk / "filler", os.O_CREAT | os.O_WRONLY)
            with pytest.raises(OSError, match="No space"):
                while os.write(filler, b"x" * 4096):
                    pass
            os.close(filler)
            with pytest.raises(sqlite3.OperationalError, match="full"):
                for step in range(2, 2000):
                    ledger.finish(report(step))
            kept = [one.checkpoint.step for one in ledger.reports("s1")]
            (disk / "filler").unlink()
            ledger.finish(report(kept[-1] + 1))
            assert len(ledger.reports("s1")) == len(kept) + 1
        with Ledger(disk / "ledger.db", read_only=True) as reader:
            assert len(reader.reports("s1")) == len(reader.settled("s1")) == len(kept) + 1
    finally:
        subprocess.run(["umount", disk], check=True)


@contextlib.contextmanager
def locked_by_another(path: Path) -> Iterator[None]:
    other = sqlite3.connect(path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")
    finally:
        other.close()


@pytest.mark.usefixtures("tries_often")
def test_whoever_has_it_locked_is_waited_for_and_that_is_said_once(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    ledger.finish(report(1))
    writers = [threading.Thread(target=ledger.finish, args=(report(step),)) for step in (2, 3)]
    with locked_by_another(ledger.path):
        for writer in writers:
            writer.start()
        wait_for(lambda: bool(caplog.messages))
        assert ledger.settled("s1") == {checkpoint(1).digest: "done"}  # read meanwhile
        assert all(writer.is_alive() for writer in writers)
    for writer in writers:
        writer.join(LIMIT_S)
    assert len(ledger.reports("s1")) == 3
    assert caplog.messages[0] == f"{ledger.path} is locked by another process: waiting until it is free"
    assert caplog.messages[-1] == f"{ledger.path}: the wait for it has ended"
    assert len(caplog.messages) == 2 or len(caplog.messages) == 4  # the second writer may begin to wait after the first


@pytest.mark.usefixtures("tries_often")
def test_a_lock_is_not_waited_for_when_the_run_is_to_stop(tmp_path: Path) -> None:
    may_wait = [True, True, False]
    with Ledger(tmp_path / "ledger.db", may_wait=lambda: may_wait.pop(0)) as ledger:
        with locked_by_another(ledger.path), pytest.raises(Stopped, match=r"ledger\.db is still locked by another process"):
            ledger.finish(report(1))
        ledger.finish(report(1))
        assert may_wait == [] and len(ledger.reports("s1")) == 1


def test_what_is_waited_for_after_a_stop_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, stop = [100.0], threading.Event()
    monkeypatch.setattr("dr_validate.process.time.monotonic", lambda: now[0])
    may_go_on = until_stopped(stop, 10.0)
    now[0] = 500.0
    assert may_go_on()
    stop.set()
    assert may_go_on()
    now[0] = 509.0
    assert may_go_on()
    now[0] = 510.0
    assert not may_go_on()


def remove_state_dir(path: Path) -> None:
    shutil.rmtree(path.parent)


def put_another_there(path: Path) -> None:
    with Ledger(path.with_name("other.db")):
        pass
    path.with_name("other.db").replace(path)


def lose_the_log(path: Path) -> None:
    path.with_name("ledger.db-wal").unlink()


@pytest.mark.parametrize(
    ("happens", "said"),
    [(remove_state_dir, "is gone"), (put_another_there, "is another file now"), (lose_the_log, "has lost its -wal file")],
)
def test_a_ledger_that_is_not_there_any_more_is_noticed_at_the_next_use(
    tmp_path: Path, happens: Callable[[Path], None], said: str
) -> None:
    with Ledger(tmp_path / "state" / "ledger.db") as ledger:
        ledger.finish(report(1))
        ledger.begin(checkpoint(2), "s1", "at")
        happens(ledger.path)
        left = sorted(tmp_path.rglob("*"))
        in_words = f"the ledger {said}: state_dir was removed, moved or replaced"
        with pytest.raises(SetupError, match=in_words):
            ledger.begin(checkpoint(3), "s1", "at")
        with pytest.raises(SetupError, match=in_words):
            ledger.finish(report(2))
        with pytest.raises(SetupError, match=in_words):
            ledger.settled("s1")
        assert sorted(tmp_path.rglob("*")) == left


@pytest.mark.parametrize("kept", [0, 5000, 4096 * 6])
@pytest.mark.parametrize("filler", [b"", b"\xff" * 4096 * 40], ids=["cut", "overwritten"])
def test_a_ledger_that_is_damaged_while_it_is_open_is_noticed_before_the_next_attempt(
    tmp_path: Path, kept: int, filler: bytes
) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        for step in range(60):
            ledger.finish(report(step))
    with Ledger(path) as ledger:
        ledger.begin(checkpoint(100), "s1", "at")
        ledger.release(checkpoint(100).digest, "s1")
        os.truncate(path, kept)
        with path.open("ab") as stream:
            stream.write(filler)
        with pytest.raises(SetupError, match=r"ledger\.db") as caught:
            ledger.begin(checkpoint(100), "s1", "at")
        assert "move it away (its results go with it) or set another state_dir" in str(caught.value)


LINE = json.dumps({"checkpoint": {"name": "checkpoint-7"}, "at": "2026-11-21T03:15:10Z"}) + "\n"


@pytest.mark.parametrize("is_there", [True, False], ids=["0-bytes", "not-there"])
@pytest.mark.parametrize(("beside", "content"), [("reports.jsonl", LINE), ("checkpoints", None), ("estimates", None)])
def test_a_lost_ledger_is_not_taken_for_a_new_one(tmp_path: Path, beside: str, content: str | None, is_there: bool) -> None:
    path = tmp_path / "ledger.db"
    (tmp_path / beside).mkdir() if content is None else (tmp_path / beside).write_text(content)
    if is_there:
        path.touch()
    elif content is None:  # copies alone tell of nothing that would be doubled
        with Ledger(path) as ledger:
            assert ledger.reports("s1") == []
        return
    said = "reports.jsonl with 1 lines, the last one checkpoint-7 at 2026-11-21T03:15:10Z" if content else beside
    for _ in range(2):
        with pytest.raises(SetupError, match="there was one: beside it") as caught:
            Ledger(path).open()
        assert said in str(caught.value) and "set another state_dir" in str(caught.value)
    assert path.exists() == is_there and (not is_there or path.stat().st_size == 0)


def test_status_does_not_say_that_nothing_was_done_where_the_ledger_is_lost(tmp_path: Path) -> None:
    (tmp_path / "reports.jsonl").write_text(LINE)
    with pytest.raises(SetupError, match="the ledger is not there, but there was one"):
        show_status({"state_dir": str(tmp_path)})


def test_a_ledger_of_0_bytes_with_nothing_beside_it_is_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").touch()
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.finish(report(1))


@pytest.mark.parametrize(
    ("options", "said"), [("size=4m,nr_inodes=6", "no inodes left on the disk of"), ("size=8k", "no space left on the disk of")]
)
def test_a_start_without_room_for_the_ledger_says_what_is_missing(tmp_path: Path, options: str, said: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        with contextlib.suppress(OSError):
            for number in range(10):
                (disk / str(number)).write_bytes(b"x" * (8192 if "8k" in options else 0))
        with pytest.raises(SetupError, match=f"the ledger cannot be opened: {said} {disk}"):
            Ledger(disk / "ledger.db").open()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_what_is_in_the_file_is_public_json(ledger: Ledger) -> None:
    ledger.finish(report())
    with sqlite3.connect(ledger.path) as connection:
        (text,) = connection.execute("SELECT report FROM reports").fetchone()
    connection.close()
    assert json.loads(text)["checkpoint"]["name"] == "checkpoint-500"


def test_status_tells_the_trainings_of_one_state_dir_apart(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    ledger.register_spec("s1", {"dataset": "vaswani", "sampler": "random", "full_spec": "s0", "baseline": False}, AT)
    for step, training in ((100, "warm"), (200, "cold")):
        found = report(step)
        ledger.finish(dataclasses.replace(found, checkpoint=dataclasses.replace(found.checkpoint, training_run=training)))
    assert show_status({"state_dir": str(ledger.path.parent)}) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "training" in lines[1]
    assert [line.split()[0] for line in lines[3:5]] == ["warm", "cold"]


def test_a_description_that_is_damaged_is_written_anew_by_the_next_start_of_its_run(ledger: Ledger) -> None:
    described = {"dataset": "vaswani", "sampler": "random", "full_spec": "s0", "baseline": False}
    for damaged in ("{", "[]", "{}", '{"dataset": 3}'):
        with contextlib.closing(sqlite3.connect(ledger.path)) as connection:
            connection.execute("REPLACE INTO specs VALUES ('s1', ?, 'at')", (damaged,))
            connection.commit()
        with (
            Ledger(ledger.path, read_only=True) as reader,
            pytest.raises(SetupError, match="start its run again, which writes"),
        ):
            reader.specs()
        assert ledger.specs().keys() == {"s1"}
        ledger.register_spec("s1", described, AT)
        assert ledger.specs() == {"s1": described}


def test_status_says_in_a_line_that_there_is_no_baseline_yet(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    described = {"dataset": "vaswani", "full_spec": "s0"}
    for spec, sampler in (("s1", "random"), ("s0", "full")):
        ledger.register_spec(spec, {**described, "sampler": sampler, "baseline": spec == "s0"}, AT)
    ledger.finish(report())
    assert show_status({"state_dir": str(ledger.path.parent)}) == 0
    table, said = capsys.readouterr().out.split("vaswani, sampler full (spec s0)")
    assert "checkpoint-500" in table
    assert said.startswith(": no baseline yet") and "attempts" not in said
    ledger.finish(report(spec="s0"))
    assert show_status({"state_dir": str(ledger.path.parent)}) == 0
    assert capsys.readouterr().out.count("attempts") == 2


def test_a_skip_is_recorded_without_looking_through_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect, steps = sqlite3.connect, [0]

    def counting(*arguments: Any, **options: Any) -> sqlite3.Connection:
        def count() -> int:
            steps[0] += 1
            return 0

        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_progress_handler(count, 10)  # instructions of SQLite's machine
        return connection

    monkeypatch.setattr("dr_validate.ledger.database.sqlite3.connect", counting)
    taken = []
    with Ledger(tmp_path / "ledger.db") as ledger:
        for step in range(300):
            before = steps[0]
            ledger.finish(report(step, "skipped"))
            taken.append(steps[0] - before)
        assert ledger.finish(report(7, "skipped")) == 8  # known
    assert sum(taken[-50:]) < 1.5 * sum(taken[50:100])
