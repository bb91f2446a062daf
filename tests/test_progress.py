"""What a log says of long work, where there is no terminal."""

import logging

import pytest

from dr_validate.progress import Progress


def test_long_work_is_heard_of_before_its_first_documents(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr("dr_validate.progress.time.monotonic", lambda: now[0])
    shown = Progress()
    with caplog.at_level(logging.INFO):
        shown.show(None)  # nothing has begun
        shown.begin("checkpoint-50")
        for seconds, news in (
            (131.0, None),
            (140.0, {"phase": "encode", "done": 10, "total": 40}),  # soon after the last line
            (162.0, None),
            (170.0, {"phase": "encode", "done": 20, "total": 40}),
            (193.0, {"phase": "encode", "done": 30, "total": 40}),
        ):
            now[0] = seconds
            shown.show(news)
        shown.begin("checkpoint-100")
        now[0] = 224.0
        shown.show(None)
        shown.end()
        now[0] = 300.0
        shown.show(None)
    assert caplog.messages == [
        "checkpoint-50: no documents yet after 31 s (a slow device takes long for the first ones)",
        "checkpoint-50: encode 10 of 40",
        "checkpoint-50: encode 30 of 40",
        "checkpoint-100: no documents yet after 31 s (a slow device takes long for the first ones)",
    ]
