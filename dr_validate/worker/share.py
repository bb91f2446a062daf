"""The process that holds one of several devices: `python -m dr_validate.worker.share`, started and steered by `team`.

Each message on standard input has one answer on standard output. `start` and `read` come once, then for each ranking `begin`,
the requests of `engine.shared`, `account` and `end`. Test set, tokens, imports and the device stay between rankings.
"""

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from dr_validate.config import build
from dr_validate.devices import hold
from dr_validate.messages import Message, Share, read_message, write_message
from dr_validate.process import live_and_die_with_parent, set_up_logging
from dr_validate.worker.encoding import CheckpointEncoding
from dr_validate.worker.main import errors_to, private_stdout, what_stays
from dr_validate.worker.pipeline import Pipeline


def main() -> None:
    live_and_die_with_parent()
    answers = os.fdopen(private_stdout(), "wb")
    set_up_logging()
    requests: queue.Queue[Message | None] = queue.Queue()
    # Read at all times, so that the worker never waits until a big message fits into the pipe.
    threading.Thread(target=_read, args=(sys.stdin.buffer, requests), daemon=True).start()
    member = _Member()

    def complain(problem: Mapping[str, Any]) -> None:
        write_message(answers, Message(kind="error", facts=problem["error"]))

    while (request := requests.get()) is not None:
        with errors_to(complain):
            write_message(answers, member.answer(request))


class _Member:
    _pipeline: Pipeline
    _encoded: CheckpointEncoding

    def __init__(self) -> None:
        self._opened = contextlib.ExitStack()
        self._share: Share | None = None

    def answer(self, request: Message) -> Message:
        facts = request.facts
        if request.kind == "start":
            self._start(facts["config"], facts["place"])
        elif request.kind == "read":
            self._pipeline.open_data()
            return Message(kind="read", facts={"specs": list(self._pipeline.specs)})
        elif request.kind == "begin":
            self._begin(facts["digest"], Path(facts["folder"]), full=facts["full"])
        elif request.kind == "end":
            self._share = None
            self._opened.close()
        elif self._share is not None:  # or else `begin` went wrong, which was told
            answer = self._share.answer(request)
            return self._whole_account(answer, facts["contract"]) if request.kind == "account" else answer
        return Message(kind=request.kind)

    def _start(self, config: Mapping[str, Any], place: str) -> None:
        with what_stays():
            import torch  # noqa: F401  # takes seconds; the worker reads the test set meanwhile

            hold(place)
            self._pipeline = Pipeline(build(config), place)

    def _begin(self, digest: str, folder: Path, *, full: bool) -> None:
        pipeline = self._pipeline
        opened = pipeline.encoding.open(digest, folder, pipeline.sample(full=full))
        self._encoded = encoded = self._opened.enter_context(opened)
        self._share = pipeline.run.engine.share(encoded.model, encoded.workload, pipeline.run.index, pipeline.device)

    def _whole_account(self, answer: Message, wants_contract: bool) -> Message:
        encoded = self._encoded
        seconds = {"load": encoded.model.load_s, **answer.facts["seconds"]}
        contract = encoded.contract() if wants_contract else {}
        return Message(kind="account", facts={**answer.facts, "seconds": seconds, "contract": dict(contract)})


def _read(stream: IO[bytes], requests: "queue.Queue[Message | None]") -> None:
    while (message := read_message(stream)) is not None:
        requests.put(message)
    requests.put(None)


if __name__ == "__main__":
    main()
