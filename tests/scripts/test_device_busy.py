"""`scripts/research/device_busy.py`, on a corpus that takes no time."""

from pathlib import Path

import pytest

from scripts.research.device_busy import PASSAGES_A_SECOND, main


def test_each_checkpoint_keeps_the_device_at_work_for_as_long_as_its_passages_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--slices", "3", "--slice", "400", "--checkpoints", "2", "--state", str(tmp_path / "state")]
    monkeypatch.setattr("sys.argv", ["device_busy.py", *asked])
    main()
    head, _, *rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert head == ["checkpoint", "wall s", "device s", "ranking", "checkpoint"] and len(rows) == 2
    for row in rows:
        assert float(row[2]) + 0.05 > 1200 / PASSAGES_A_SECOND and 0 < int(row[4].rstrip("%")) <= int(row[3].rstrip("%")) <= 100
    assert not (tmp_path / "state").exists()
