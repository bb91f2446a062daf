"""The watcher as a user meets it: real processes, real checkpoints, real kills."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dr_validate.errors import SetupError
from dr_validate.process import SETUP_IS_WRONG
from dr_validate.values import Checkpoint, Incomplete, Listing
from dr_validate.watcher.loop import exit_code_of
from tests import warm
from tests.processes import LIMIT_S, is_alive, wait_for

WriteCheckpoint = Callable[..., Path]


@pytest.fixture
def checkpoints(tmp_path: Path, write_checkpoint: WriteCheckpoint) -> Path:
    folder = tmp_path / "checkpoints"
    for number in range(1, 6):
        write_checkpoint(folder / f"checkpoint-{number * 100}", seed=number, step=number * 100)
    return folder


@pytest.fixture
def arguments(checkpoints: Path, collection: Path) -> list[str]:
    return [
        f"source.path={checkpoints}",
        "dataset=beir",
        f"dataset.path={collection}",
        "sampler=full",
        "tracker=none",
        "watch.mode=once",
        "encoder.pooling=mean",
        "encoder.normalize=true",
        "top_k=100",
    ]


def done(reports: Any) -> dict[str, Any]:
    found = [r for r in reports if r["status"] == "done"]
    values = {r["checkpoint"]["name"]: r["metrics"] for r in found}
    assert len(values) == len(found), "a checkpoint was reported done twice"
    return values


def test_once_validates_what_is_there_and_a_second_run_has_nothing_to_do(dr_validate: Any, arguments: list[str]) -> None:
    first = dr_validate(*arguments, "write_ranking=true")
    assert first.returncode == 0, first.stderr
    reports = dr_validate.reports()
    assert [r["checkpoint"]["step"] for r in reports] == [500, 400, 300, 200, 100]  # newest first
    for report in reports:
        assert report["corpus"] == {"documents": 48, "encoded": 48, "encoded_now": 48, "fraction": 1.0}
        for metric in report["metrics"].values():
            assert metric["low"] == metric["value"] == metric["high"] == metric["naive"]
        assert set(report["seconds"]) >= {"download", "load", "encode", "search", "score", "total"}
        digest = report["checkpoint"]["digest"].replace(":", "-")
        ranking = dr_validate.folder / ".dr_validate" / "rankings" / report["spec"] / f"{digest}.trec"
        lines = ranking.read_text().splitlines()
        assert len(lines) == 12 * 48
        assert lines[0].split()[:2] == ["q0", "Q0"]
    assert "500" in first.stdout
    second = dr_validate(*arguments)
    assert second.returncode == 0, second.stderr
    assert dr_validate.reports() == reports


def test_killed_at_six_random_moments_each_checkpoint_is_done_once_with_the_same_values(
    dr_validate: Any, arguments: list[str], tmp_path: Path
) -> None:
    undisturbed = dr_validate(*arguments, "state_dir=undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    expected = done(dr_validate.reports("undisturbed"))
    chance = random.Random(7)
    started = time.monotonic()
    process = dr_validate.start(*arguments, "block_documents=4")
    wait_for(lambda: bool(dr_validate.reports()))
    typical = time.monotonic() - started  # until the first report: moments are spread over start, work and end
    kill(process)
    for _ in range(5):
        process = dr_validate.start(*arguments, "block_documents=4")
        with contextlib.suppress(subprocess.TimeoutExpired):  # still running: the moment has come
            process.wait(timeout=chance.uniform(0.1, 1.0) * typical)
        kill(process)
    last = dr_validate(*arguments, "block_documents=4")
    assert last.returncode == 0, last.stderr
    assert done(dr_validate.reports()) == expected
    assert len(dr_validate.reports()) == 5


def kill(process: Any) -> None:
    process.kill()
    process.communicate()


def test_follow_picks_up_what_appears_and_sigterm_is_a_clean_end(
    dr_validate: Any, arguments: list[str], checkpoints: Path, write_checkpoint: WriteCheckpoint
) -> None:
    with following(dr_validate, [*arguments, "watch.mode=follow", "watch.poll_s=0.3"]) as process:
        wait_for(lambda: len(dr_validate.reports()) == 5)
        write_checkpoint(checkpoints / "half", seed=9, step=600)
        for worker in warm.workers(process):
            os.kill(worker, signal.SIGKILL)  # while it has nothing to do
        weights = checkpoints / "half" / "model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[: len(whole) // 2])
        (checkpoints / "half").rename(checkpoints / "checkpoint-600")
        write_checkpoint(checkpoints / "checkpoint-550", seed=10, step=550)
        wait_for(lambda: len(dr_validate.reports()) == 6)
        (checkpoints / "checkpoint-600" / "model.safetensors").write_bytes(whole)
        wait_for(lambda: len(dr_validate.reports()) == 7)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, err
    assert [(r["checkpoint"]["step"], r["attempts"]) for r in dr_validate.reports()][5:] == [(550, 1), (600, 1)]
    assert "SIGTERM" in err
    assert "Traceback" not in err


class following:
    """A watcher that is killed at the end of the block, whatever happened in it."""

    def __init__(self, command_line: Any, arguments: list[str]) -> None:
        self.process = command_line.start(*arguments)

    def __enter__(self) -> Any:
        return self.process

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_stop_file_ends_a_follower_after_its_work_and_its_baselines(dr_validate: Any, arguments: list[str]) -> None:
    (dr_validate.folder / "over").touch()
    more = ["watch.mode=follow", "watch.poll_s=0.3", "watch.stop_file=over", "sampler=random", "sampler.fraction=0.5"]
    result = dr_validate(*arguments, *more)
    assert result.returncode == 0, result.stderr
    reports = dr_validate.reports()
    sampled = {r["checkpoint"]["step"]: r for r in reports if r["sampler"] == "random"}
    full = {r["checkpoint"]["step"]: r for r in reports if r["sampler"] == "full"}
    assert set(sampled) == set(full) == {100, 200, 300, 400, 500}
    for step, report in sampled.items():
        for name, estimate in report["metrics"].items():
            exact = full[step]["metrics"][name]["value"]
            assert estimate["low"] <= exact <= estimate["high"] + 1e-12
    agreement = reports[-1]["agreement"]
    assert agreement["checkpoints"] == 5
    assert "Sampled against full corpus over 5 checkpoints" in result.stdout


def test_a_second_watcher_of_the_same_spec_is_told_who_holds_it(dr_validate: Any, arguments: list[str]) -> None:
    with following(dr_validate, [*arguments, "watch.mode=follow", "watch.poll_s=0.3"]) as process:
        wait_for(lambda: len(dr_validate.reports()) == 5)
        second = dr_validate(*arguments)
        assert second.returncode == 2
        assert f"process {process.pid} on " in second.stderr
        assert "Traceback" not in second.stderr


def test_a_checkpoint_rotated_away_while_in_use_is_validated_from_its_copy(
    dr_validate: Any, arguments: list[str], checkpoints: Path
) -> None:
    stop = threading.Event()
    threading.Thread(target=delete_when_copied, args=(dr_validate.folder / ".dr_validate", checkpoints, stop)).start()
    try:
        result = dr_validate(*arguments)
    finally:
        stop.set()
    assert result.returncode == 0, result.stderr
    reports = dr_validate.reports()
    assert {r["status"] for r in reports if r["checkpoint"]["name"] == "checkpoint-500"} == {"done"}
    for report in reports:
        assert report["status"] == "done" or (report["status"] == "skipped" and "deleted" in report["error"])


def delete_when_copied(state_dir: Path, checkpoints: Path, stop: threading.Event) -> None:
    while not stop.wait(0.01):
        if any((state_dir / "checkpoints").glob("sha256-*")):
            shutil.rmtree(checkpoints)
            return


def test_status_tells_what_is_done_failed_and_pending(
    dr_validate: Any, arguments: list[str], checkpoints: Path, write_checkpoint: WriteCheckpoint
) -> None:
    assert dr_validate("task=status").returncode == 2  # there is no state_dir
    (dr_validate.folder / ".dr_validate").mkdir()
    assert dr_validate("task=status").stdout.startswith("Nothing has been validated")
    assert "pending: checkpoint-500 (step 500)" in dr_validate("task=status", f"source.path={checkpoints}").stdout
    write_checkpoint(checkpoints / "checkpoint-50", seed=1, step=50, tokenizer=False)
    assert dr_validate(*arguments).returncode == 1
    write_checkpoint(checkpoints / "checkpoint-700", seed=11, step=700)
    out = dr_validate("task=status", f"source.path={checkpoints}").stdout
    kept = "kept vectors: 0.00 GiB for 5 checkpoints, at most 20 (store.embeddings_max_gib)"
    for part in ("checkpoint-700", "pending", "checkpoint-50", "failed", "encoder.tokenizer", "done", "mrr@10", kept):
        assert part in out


def test_a_finite_run_that_finds_nothing_says_where_it_looked(dr_validate: Any, arguments: list[str]) -> None:
    result = dr_validate(*arguments, "source.path=elsewhere")
    assert result.returncode == 2, result.stderr
    said = "source: no checkpoint was found (source.path=elsewhere), so nothing was validated; is it the right source?"
    assert result.stderr.splitlines()[-1] == said


@pytest.mark.parametrize(
    ("complete", "incomplete", "settled", "code"),
    [
        ("ab", "", {"a": "done", "b": "done"}, 0),
        ("ab", "c", {"a": "done", "b": "done"}, 0),
        ("ab", "", {"a": "done", "b": "failed"}, 1),
        ("a", "", {"a": "done", "b": "failed"}, 0),  # another training's, or one that is gone
        ("", "c", {}, 1),
        ("", "", {"a": "done"}, 2),
    ],
)
def test_the_exit_code_of_a_finite_run(complete: str, incomplete: str, settled: dict[str, str], code: int) -> None:
    whole = [Checkpoint(name=n, version=n, digest=f"x:{n}", step=1, step_from="", created_at="", uri=n) for n in complete]
    parts = [Incomplete(name=n, step=1, lacks="weights", uri=n) for n in incomplete]
    listing = Listing(checkpoints=tuple(whole), incomplete=tuple(parts))
    known = {f"x:{name}": state for name, state in settled.items()}
    try:
        found = exit_code_of(listing, known, {"path": "output", "name": None})
    except SetupError as error:
        found = SETUP_IS_WRONG
        assert "(source.path=output)" in str(error)
    assert found == code


def test_doctor_names_every_problem_and_its_way_out(dr_validate: Any, arguments: list[str]) -> None:
    well = dr_validate(*arguments, "task=doctor")
    assert well.returncode == 0, well.stdout + well.stderr
    assert "48 documents, 12 queries" in well.stdout
    assert "kept vectors: 0.00 GiB for 0 checkpoints" in well.stdout
    assert "queries and documents: mean pooling, normalized, at most" in well.stdout
    ill = dr_validate(*arguments, "task=doctor", "device=cuda:7", "dataset.path=nowhere", "encoder.pooling=null")
    assert ill.returncode == 2
    assert ill.stdout.count("problem") == 3
    assert "encoder.pooling" in ill.stdout
    assert "cuda:7" in ill.stdout
    assert "nowhere" in ill.stdout


def test_a_multirun_of_samplers_shares_one_state_dir(dr_validate: Any, arguments: list[str], wide_collection: Path) -> None:
    given = ("sampler=", "dataset.path=", "watch.mode=")  # a sweep validates what there is, and ends
    base = [a for a in arguments if not a.startswith(given)] + [f"dataset.path={wide_collection}"]
    result = dr_validate("-m", *base, "sampler=full,random,run_pool", "state_dir=state")
    assert result.returncode == 0, result.stderr
    reports = dr_validate.reports("state")
    by_sampler = {name: [r for r in reports if r["sampler"] == name] for name in ("full", "random", "run_pool")}
    assert {name: len(found) for name, found in by_sampler.items()} == {"full": 5, "random": 5, "run_pool": 5}
    assert by_sampler["run_pool"][-1]["agreement"]["checkpoints"] == 5  # the full job gave the baselines


def test_the_worker_dies_with_its_watcher(dr_validate: Any, arguments: list[str]) -> None:
    process = dr_validate.start(*arguments, "watch.mode=follow")
    wait_for(lambda: bool(dr_validate.reports()))
    (worker,) = warm.workers(process)
    kill(process)
    wait_for(lambda: not is_alive(worker))


def test_a_worker_whose_watcher_was_killed_before_it_said_a_word_ends_without_one() -> None:
    command = [sys.executable, "-m", "dr_validate.worker.main"]
    with warm.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.communicate(timeout=LIMIT_S)[0] == ""
    assert process.returncode == 0


def test_a_worker_whose_watcher_is_gone_when_it_answers_ends_without_a_word() -> None:
    command = [sys.executable, "-m", "dr_validate.worker.main"]
    with warm.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdout.close()  # before there is anything to say: that the configuration is wrong
        process.stdin.write("{}\n")
        process.stdin.close()
        assert process.stderr.read() == ""
        process.wait(LIMIT_S)


def test_a_worker_that_is_killed_costs_one_attempt(dr_validate: Any, arguments: list[str]) -> None:
    with following(dr_validate, [*arguments, "watch.mode=follow", "watch.poll_s=0.3", "block_documents=1"]) as process:
        wait_for(lambda: len(dr_validate.reports()) >= 1)
        for worker in warm.workers(process):
            os.kill(worker, signal.SIGKILL)
        wait_for(lambda: len(dr_validate.reports()) == 5)
    reports = dr_validate.reports()
    assert [r["status"] for r in reports] == ["done"] * 5
    assert sorted(r["attempts"] for r in reports)[:4] == [1, 1, 1, 1]
