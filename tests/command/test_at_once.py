"""Several worker processes at once: what comes out is what comes out of one."""

import contextlib
import functools
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.factories import write_checkpoint
from tests.processes import LIMIT_S, children, is_alive, wait_for
from tests.small_run import blur, write_collection
from tests.warm import workers

pytestmark = pytest.mark.slow
STEPS = (100, 200, 300, 400)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("at_once")
    for place, step in enumerate(STEPS):
        blur(write_checkpoint(folder / "checkpoints" / f"checkpoint-{step}", step=step), 0.8 - 0.2 * place)
    return [
        f"source.path={folder / 'checkpoints'}",
        "dataset=beir",
        f"dataset.path={write_collection(folder / 'collection')}",
        "sampler=random",
        "sampler.fraction=0.2",
        "fidelity.baseline=always",
        "tracker=none",
        "watch.mode=once",
        "metrics=[mrr@10,recall@20]",
        "encoder.pooling=mean",
        "encoder.normalize=true",
    ]


@pytest.fixture(scope="module")
def expected(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of one process."""
    from tests.factories import CommandLine

    alone = CommandLine(tmp_path_factory.mktemp("alone"))
    assert alone(*arguments).returncode == 0
    return told(alone)


def told(run: Any) -> list[dict[str, Any]]:
    """What Reports say, in their order, but for moments and durations."""
    found = []
    for report in run.reports():
        notes = {name: value for name, value in without_moments(report["notes"]).items() if name != "ranked_ahead"}
        kept = {name: report[name] for name in ("status", "spec", "sampler", "attempts", "metrics", "agreement")}
        found.append({"step": report["checkpoint"]["step"], **kept, "notes": notes})
    return found


def without_moments(notes: Any) -> Any:
    if not isinstance(notes, dict):
        return notes
    return {name: without_moments(value) for name, value in notes.items() if name != "as_of"}


def ahead(run: Any) -> list[int]:
    return [report["checkpoint"]["step"] for report in run.reports() if report["notes"].get("ranked_ahead")]


@contextlib.contextmanager
def held(pid: int) -> Iterator[None]:
    """Within the block a process stands still, as if its device were slow."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def doing(run: Any) -> str:
    """What the watcher says of what it does."""
    for path in (run.folder / ".dr_validate" / "claims").glob("*.json"):
        with contextlib.suppress(OSError):
            return str(path.read_text())
    return ""


@contextlib.contextmanager
def begun(run: Any, arguments: list[str]) -> Iterator[Any]:
    """A watcher with two workers, whose first has been held between two slices until the second had ranked what comes next."""
    process = run.start(*arguments, "watch.at_once=2", "engine.slice_documents=32", "engine.save_every_s=0")
    try:
        wait_for(lambda: any((run.folder / ".dr_validate").glob("progress/*.npz")))
        with held(min(workers(process))):
            wait_for(lambda: "ranked ahead: checkpoint-" in doing(run))
        yield process
    finally:
        process.kill()
        process.communicate()


def test_values_order_and_evidence_are_those_of_one_process(
    dr_validate: Any, arguments: list[str], expected: list[dict[str, Any]]
) -> None:
    with begun(dr_validate, arguments) as process:
        _, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, err
    assert told(dr_validate) == expected
    assert ahead(dr_validate)
    assert "ranked ahead)" in err


def test_a_process_that_is_killed_ahead_costs_nothing(
    dr_validate: Any, arguments: list[str], expected: list[dict[str, Any]]
) -> None:
    with begun(dr_validate, arguments) as process:
        os.kill(max(workers(process)), signal.SIGKILL)
        _, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, err
    assert told(dr_validate) == expected


def naive(reports: Any, sampler: str) -> dict[int, float]:
    """Of each checkpoint, which has one Report with this sampler."""
    found = [one for one in reports if one["sampler"] == sampler]
    values = {one.get("step") or one["checkpoint"]["step"]: one["metrics"]["mrr@10"]["naive"] for one in found}
    assert len(values) == len(found)
    return values


def all_ended(processes: set[int]) -> bool:
    return not any(map(is_alive, processes))


def test_a_watcher_that_is_stopped_or_killed_leaves_nothing_behind_and_goes_on(
    dr_validate: Any, arguments: list[str], expected: list[dict[str, Any]]
) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = dr_validate.start(*arguments, "watch.at_once=2")
        wait_for(lambda: "ahead: " in doing(dr_validate))
        everyone = children(process.pid) | workers(process)
        process.send_signal(number)
        process.communicate(timeout=LIMIT_S)
        wait_for(functools.partial(all_ended, everyone))
    last = dr_validate(*arguments, "watch.at_once=2")
    assert last.returncode == 0, last.stderr
    for sampler in ("random", "full"):
        values = [naive(dr_validate.reports(), sampler), naive(expected, sampler)]
        assert values[0] == values[1] and len(values[0]) == len(STEPS)
