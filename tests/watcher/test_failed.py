"""What failed for good before: named at the next start, tried again where that is asked for."""

from pathlib import Path

import pytest

from dr_validate.ledger.ledger import Ledger
from dr_validate.watcher.attempts import retry_or_name
from tests.factories import AT, checkpoint, report


def test_failed_checkpoints_are_named_until_they_are_to_be_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dr_validate")
    with Ledger(tmp_path / "ledger.db") as ledger:
        for each in (report(100), report(200, "failed"), report(300, "failed", "other")):
            ledger.begin(each.checkpoint, each.spec, AT)
            ledger.finish(each)
        retry_or_name(ledger, {"s1", "full"}, retry=False)
        assert ledger.settled("s1") == {checkpoint(100).digest: "done", checkpoint(200).digest: "failed"}
        retry_or_name(ledger, {"s1", "full"}, retry=True)
        assert ledger.settled("s1") == {checkpoint(100).digest: "done"}
        assert ledger.settled("other") == {checkpoint(300).digest: "failed"}
        retry_or_name(ledger, {"s1", "full"}, retry=True)
    assert caplog.messages == [
        "failed for good before, and not tried again: checkpoint-200 (watch.retry_failed=true tries them)",
        "tried again, though failed for good before: checkpoint-200",
    ]
