"""Whole pipelines and runs on a cluster of their own: real models, and kills of the processes that a user sees."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from dr_validate.engine import ray_ranking
from dr_validate.engine.ray import import_ray, remove_leftovers
from dr_validate.errors import CheckpointError, Preempted
from dr_validate.values import Checkpoint
from dr_validate.worker.pipeline import Pipeline
from tests import ray_python
from tests.engine.controls import GivesWay, Unhurried, checkpoint_of
from tests.processes import LIMIT_S, children, wait_for

OpenPipeline = Callable[..., Pipeline]
Checkpoints = Callable[[int], Sequence[tuple[Checkpoint, Path]]]
NUM_DOCUMENTS = 200
PLAIN = ["engine.slice_documents=16", "block_documents=64", "write_ranking=true", "index=torch", "device=cpu"]
RAY = ["engine=ray", "engine.workers=2"]


def processes_under(pid: int) -> dict[int, str]:
    """Running processes below this one, with their command lines."""
    found: dict[int, str] = {}
    for child in children(pid):
        try:
            found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            found |= processes_under(child)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def without_race(notes: Mapping[str, Any]) -> dict[str, Any]:
    """All but who did what, and which library multiplies on this processor: each process finds the faster one for itself."""
    encoder = dict(notes["encoder"])
    for side in ("query", "document"):
        if encoder.get(side):
            encoder[side] = {key: value for key, value in encoder[side].items() if key != "linear_layers"}
    return {**{key: value for key, value in notes.items() if key != "workers"}, "encoder": encoder}


def ranking_in(state_dir: Path) -> str:
    (path,) = (state_dir / "rankings").rglob("*.trec")
    text = path.read_text()
    path.unlink()
    return text


def test_two_workers_rank_as_one_device_does_and_live_on_whatever_a_checkpoint_brings(
    open_pipeline: OpenPipeline, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_ranking, "SETTLE_S", LIMIT_S)
    for name, value in ray_python.environment().items():
        monkeypatch.setenv(name, value)
    first, second, broken = checkpoints(3)
    alone = open_pipeline(*PLAIN, f"state_dir={tmp_path / 'alone'}")
    expected, rankings = [], []
    for one in (first, second):
        expected.append(alone.validate(*one, full=False, control=Unhurried()))
        rankings.append(ranking_in(tmp_path / "alone"))

    before = set(processes_under(os.getpid()))
    many = open_pipeline(*PLAIN, *RAY, "store.embeddings_max_gib=0", f"state_dir={tmp_path / 'many'}")
    started = set(processes_under(os.getpid())) - before
    made = {**many.describe(), "made": None}
    assert made == {**alone.describe(), "made": None}

    weights = load_file(broken[1] / "model.safetensors")
    save_file({name: weight * float("nan") for name, weight in weights.items()}, broken[1] / "model.safetensors")
    with pytest.raises(CheckpointError, match="^[0-9]+ of [0-9]+ (query|document) vectors hold NaN or Inf"):
        many.validate(*broken, full=False, control=Unhurried())
    with pytest.raises(CheckpointError):
        many.validate(checkpoint_of(9), tmp_path / "nothing here", full=False, control=Unhurried())

    control = GivesWay(4)
    with pytest.raises(Preempted):
        many.validate(*first, full=False, control=control)
    done = control.seen[-1][1]
    for one, report, ranking in zip((first, second), expected, rankings, strict=True):
        found = many.validate(*one, full=False, control=Unhurried())
        assert ranking_in(tmp_path / "many") == ranking
        assert found.metrics == report.metrics
        assert without_race(found.notes) == without_race(report.notes)
        assert found.corpus["encoded_now"] <= NUM_DOCUMENTS - (done if one is first else 0)
        assert set(found.seconds) == set(report.seconds)
        assert found.seconds["total"] > 0 and found.seconds["load"] > 0
        assert [worker["lost"] for worker in found.notes["workers"]] == [0, 0]
    ray = import_ray()
    ray.shutdown()  # as the interpreter does at its end, if a run was not closed
    many.close()
    assert not ray.is_initialized()
    assert not any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in started)


def test_a_killed_worker_costs_no_attempt_and_after_a_kill_or_a_signal_to_the_group_nobody_and_nothing_is_left(
    dr_validate: Any, tmp_path: Path, wide_collection: Path, collection: Path, write_checkpoint: Callable[..., Path]
) -> None:
    source = tmp_path / "checkpoints"
    source.mkdir()
    for number in (1, 2, 3):
        write_checkpoint(tmp_path / "ready" / f"checkpoint-{number}", seed=number, step=number)
    overrides = [
        *(f"source.path={source}", "dataset=suite", f"dataset.members.wide={wide_collection}", "tracker=none", "index=torch"),
        *(f"dataset.members.small={collection}", "engine=ray", "engine.workers=1", "device=cpu", "watch.poll_s=0.05"),
        *("encoder.pooling=mean", "encoder.normalize=true"),
        *("sampler=random", "sampler.fraction=0.5", "engine.slice_documents=8", "fidelity.baseline=off"),
    ]

    def bring(number: int, process: "subprocess.Popen[str]") -> None:
        shutil.move(tmp_path / "ready" / f"checkpoint-{number}", source / f"checkpoint-{number}")
        wait_for(lambda: len(dr_validate.reports()) == 3 * number or process.poll() is not None)
        assert process.poll() is None, process.communicate()[1]

    with ended(dr_validate.start(*overrides)) as process:
        bring(1, process)
        os.kill(next(pid for pid, name in processes_under(process.pid).items() if "ray::RayWorker" in name), signal.SIGKILL)
        bring(2, process)
        killed = list(processes_under(process.pid))
        assert len(killed) > 3
        process.kill()
        _, err = process.communicate(timeout=LIMIT_S)
    assert "was lost: " in err
    assert "Traceback" not in err
    with ended(dr_validate.start(*overrides, start_new_session=True)) as process:
        bring(3, process)
        signalled = list(processes_under(process.pid))
        os.killpg(process.pid, signal.SIGTERM)  # as a batch system does, or a supervisor
        _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    # For a minute Ray's own agents try to tell a server of the end that was its end, too.
    wait_for(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in killed + signalled), between_s=0.5)
    assert not left_by(signalled)
    remove_leftovers()  # as the next start does
    assert not left_by(killed)

    reports = dr_validate.reports()
    assert all(report["status"] == "done" for report in reports)
    wide, small, mean = ([one for one in reports if one["dataset"] == name] for name in ("wide", "small", "mean"))
    assert [len(wide), len(small), len(mean)] == [3, 3, 3]
    assert [report["attempts"] for report in wide + small] == [1, 1, 1, 1, 1, 1]
    assert [report["corpus"]["encoded_now"] for report in wide + small] == [100] * 3 + [24] * 3


@contextlib.contextmanager
def ended(process: "subprocess.Popen[str]") -> Iterator["subprocess.Popen[str]"]:
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def left_by(processes: Sequence[int]) -> list[Path]:
    folders = [Path(root, f"dr-ray-{pid}") for root in (tempfile.gettempdir(), "/dev/shm", "/tmp") for pid in processes]
    return [folder for folder in folders if folder.exists()]
