"""reports.jsonl: whole lines, each Report once, whoever writes and whoever dies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dr_validate.ledger.reports import report_from_json, report_to_json
from dr_validate.tracker.local import JsonlFile
from dr_validate.values import Report
from tests import warm
from tests.factories import told as report
from tests.processes import LIMIT_S


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "reports.jsonl"


def lines(path: Path) -> list[Report]:
    return [report_from_json(json.loads(line)) for line in path.read_text().splitlines()]


def test_reports_are_appended_and_read_back(path: Path) -> None:
    tracker = JsonlFile(path=path)
    for step in (500, 100):
        tracker.deliver(report(step), [])
    tracker.close(1)
    assert lines(path) == [report(500), report(100)]


def test_the_same_report_is_written_once_and_another_of_its_kind_is_not_lost(path: Path) -> None:
    different = [
        report(),
        report(spec="s2"),
        report(at="2026-11-21T04:00:00Z"),
        report(error="same weights as checkpoint-1", name="best"),
        report(error="same weights as checkpoint-1", name="last"),
        report(error="stale: overtaken", name="last"),
    ]
    for _ in range(2):
        for one in different:
            JsonlFile(path=path).deliver(one, [])
    assert lines(path) == different


@pytest.mark.parametrize("kept_bytes", [1, 40, -2])
def test_a_torn_last_line_is_cut_off(path: Path, kept_bytes: int) -> None:
    tracker = JsonlFile(path=path)
    tracker.deliver(report(100), [])
    whole = path.stat().st_size
    tracker.deliver(report(200), [])
    os.truncate(path, whole + kept_bytes if kept_bytes > 0 else path.stat().st_size + kept_bytes)
    tracker.deliver(report(200), [])
    tracker.deliver(report(300), [])
    assert [one.checkpoint.step for one in lines(path)] == [100, 200, 300]


def test_a_whole_line_without_its_end_is_kept(path: Path) -> None:
    tracker = JsonlFile(path=path)
    path.parent.mkdir()
    path.write_text(json.dumps(report_to_json(report(100))))
    tracker.deliver(report(200), [])
    tracker.deliver(report(100), [])
    assert [one.checkpoint.step for one in lines(path)] == [100, 200]


def test_lines_that_others_wrote_are_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('not json\n["sha256:01f4"]\n{"checkpoint": {"digest": "sha256:01f4"}, "mood": 1}\n')
    JsonlFile(path=path).deliver(report(), [])
    assert len(path.read_text().splitlines()) == 4


def test_several_processes_share_the_file(path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.factories import told as report
from dr_validate.tracker.local import JsonlFile
for step in range(30):
    JsonlFile(path=Path(sys.argv[1])).deliver(report(step, spec=sys.argv[2]), [])
    JsonlFile(path=Path(sys.argv[1])).deliver(report(step, spec="both"), [])
"""
    both = [warm.popen([sys.executable, "-c", code, str(path), spec]) for spec in ("s1", "s2")]
    assert [process.wait(LIMIT_S) for process in both] == [0, 0]
    found = [(one.spec, one.checkpoint.step) for one in lines(path)]
    assert len(found) == len(set(found)) == 90


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        tracker = JsonlFile(path=disk / "reports.jsonl")
        with pytest.raises(OSError, match="No space"):
            for step in range(1000):
                tracker.deliver(report(step), [])
        kept = lines(disk / "reports.jsonl")
        assert [one.checkpoint.step for one in kept] == list(range(len(kept)))
        assert len(kept) > 10
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("kept", [[], [0, 2], [0, 1, 2]])
def test_what_somebody_cut_out_is_there_again_at_the_next_start(
    path: Path, kept: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    reports = [report(step) for step in (100, 200, 300)]
    for one in reports:
        JsonlFile(path=path).deliver(one, [])
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[place] for place in kept))
    JsonlFile(path=path).restore(reports)
    assert sorted(path.read_text().splitlines(keepends=True)) == sorted(whole)
    assert (f"lacked {3 - len(kept)} of the 3 Reports" in caplog.text) is (len(kept) < 3)


def test_a_file_that_was_removed_is_written_again(path: Path) -> None:
    JsonlFile(path=path).restore([report(100), report(200)])
    assert lines(path) == [report(100), report(200)]


@pytest.mark.parametrize(
    "garbage", [b"not json\n", b"\xff\xfe\x00\n", b"\n", b"[1]\n", b'{"checkpoint": []}\n', b'{"half": \n']
)
def test_what_is_no_report_is_moved_beside_the_file_at_the_next_start(
    path: Path, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    reports = [report(step) for step in (100, 200, 300)]
    for one in [*reports, report(100, spec="another")]:
        JsonlFile(path=path).deliver(one, [])
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(whole[0] + garbage + garbage + whole[2] + whole[3] + garbage)  # in the place of a Report, too
    for _ in range(2):
        JsonlFile(path=path).restore(reports)
        assert path.read_bytes() == whole[0] + whole[2] + whole[3] + whole[1]
    assert (path.parent / "reports.removed").read_bytes() == garbage * 3
    assert caplog.text.count("moved 3 lines that are no Report") == 1 and "the first was line 2" in caplog.text


def test_a_start_without_reports_makes_no_file(path: Path) -> None:
    JsonlFile(path=path).restore([])
    assert not path.exists()


def test_a_report_costs_what_came_since_the_last_one_and_not_the_whole_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = JsonlFile(path=path), JsonlFile(path=path)  # two watchers of one state_dir
    parsed: list[bytes] = []
    loads = json.loads

    def counted(line: bytes) -> object:
        parsed.append(line)
        return loads(line)

    monkeypatch.setattr("dr_validate.tracker.local.json.loads", counted)
    for step in range(40):
        (first if step % 3 else second).deliver(report(step), [])
        (second if step % 2 else first).deliver(report(step), [])
    assert len(parsed) <= 40 * 2
    assert [one.checkpoint.step for one in lines(path)] == list(range(40))
    path.unlink()
    first.deliver(report(7), [])  # of another file: nothing of the old one is known
    path.write_text("")
    first.deliver(report(7), [])
    assert [one.checkpoint.step for one in lines(path)] == [7]
