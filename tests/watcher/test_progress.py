"""What is said of long work while it goes on."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from dr_validate.process import ProgressBar
from tests.small_run import NUM_DOCUMENTS, Unhurried, checkpoint_of, open_pipeline, write_collection


def test_long_work_is_heard_of_before_its_first_documents(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr("dr_validate.process.time.monotonic", lambda: now[0])
    shown = ProgressBar()
    with caplog.at_level(logging.INFO):
        shown.show(None)  # nothing has begun
        shown.begin("checkpoint-50")
        for seconds, news in (
            (131.0, None),
            (140.0, {"phase": "encoding", "done": 10, "total": 40}),  # soon after the last line
            (162.0, None),
            (170.0, {"phase": "encoding", "done": 20, "total": 40}),
            (193.0, {"phase": "encoding", "done": 3_000, "total": 4_000}),
            (200.0, {"phase": "scoring", "done": 0, "total": 0}),
            (224.0, None),
        ):
            now[0] = seconds
            shown.show(news)
        shown.begin("checkpoint-100")
        now[0] = 255.0
        shown.show(None)
        shown.end()
        now[0] = 300.0
        shown.show(None)
    assert caplog.messages == [
        "checkpoint-50: no documents yet after 31 s (a slow device takes long for the first ones)",
        "checkpoint-50: encoding 10 of 40 documents",
        "checkpoint-50: encoding 3,000 of 4,000 documents",
        "checkpoint-50: scoring",
        "checkpoint-100: no documents yet after 31 s (a slow device takes long for the first ones)",
    ]


def test_what_comes_after_encoding_is_not_called_encoding(tmp_path: Path, write_checkpoint: Callable[..., Path]) -> None:
    said: list[tuple[str, int, int]] = []

    class Listening(Unhurried):
        def progress(self, phase: str, done: int, total: int) -> None:
            said.append((phase, done, total))

    pipeline = open_pipeline(write_collection(tmp_path / "collection"), tmp_path / "state", "sampler=full")
    folder = write_checkpoint(tmp_path / "checkpoint")
    pipeline.validate(checkpoint_of(1), folder, full=False, control=Listening())
    phases = list(dict.fromkeys(phase for phase, _, _ in said))
    assert phases == ["encoding", "scoring", "estimating", "writing results"]
    assert said[-4:] == [("encoding", NUM_DOCUMENTS, NUM_DOCUMENTS), *((phase, 0, 0) for phase in phases[1:])]
