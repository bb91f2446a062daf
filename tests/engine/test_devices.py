"""Several devices for one checkpoint, with real processes: parts of one processor stand in for GPUs."""

import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from dr_validate.devices import check_devices, resolve_devices
from dr_validate.errors import CheckpointError, DeviceFailure, Preempted, SetupError
from dr_validate.values import Checkpoint
from dr_validate.worker.pipeline import Pipeline
from tests.engine.controls import GivesWay, Unhurried, checkpoint_of
from tests.processes import LIMIT_S, wait_for

OpenPipeline = Callable[..., Pipeline]
Checkpoints = Callable[[int], Sequence[tuple[Checkpoint, Path]]]
NUM_DOCUMENTS = 200
PLAIN = ["engine.slice_documents=16", "block_documents=64", "write_ranking=true", "index=torch"]


def processes_under(pid: int, module: str) -> set[int]:
    """Running processes below this one that run this module."""
    found: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = stat.with_name("cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        child = int(stat.parent.name)
        if parent == pid:
            found |= ({child} if module in command else set()) | processes_under(child, module)
    return found


def members_of(pid: int) -> list[int]:
    return sorted(processes_under(pid, "dr_validate.worker.share"))


def without_race(notes: Mapping[str, Any]) -> dict[str, Any]:
    """All but which library multiplies on this processor: each process finds the faster one for itself."""
    encoder = dict(notes["encoder"])
    for side in ("query", "document"):
        if encoder.get(side):
            encoder[side] = {key: value for key, value in encoder[side].items() if key != "linear_layers"}
    return {**notes, "encoder": encoder}


def ranking_in(state_dir: Path) -> str:
    (path,) = (state_dir / "rankings").rglob("*.trec")
    text = path.read_text()
    path.unlink()
    return text


def test_two_processes_rank_as_one_device_does_and_live_on_whatever_a_checkpoint_brings(
    open_pipeline: OpenPipeline, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    first, second, broken = checkpoints(3)
    alone = open_pipeline(*PLAIN, "device=cpu", f"state_dir={tmp_path / 'alone'}")
    expected, rankings = [], []
    for one in (first, second):
        expected.append(alone.validate(*one, full=False, control=Unhurried()))
        rankings.append(ranking_in(tmp_path / "alone"))

    team = open_pipeline(*PLAIN, "device=[cpu:0,cpu:1]", "store.embeddings_max_gib=0", f"state_dir={tmp_path / 'team'}")
    members = members_of(os.getpid())
    assert len(members) == 2
    assert team.describe() == {**alone.describe(), "device": "cpu:0,cpu:1"}

    weights = load_file(broken[1] / "model.safetensors")
    save_file({name: weight * float("nan") for name, weight in weights.items()}, broken[1] / "model.safetensors")
    with pytest.raises(CheckpointError, match="vectors hold NaN or Inf"):
        team.validate(*broken, full=False, control=Unhurried())
    with pytest.raises(CheckpointError):
        team.validate(checkpoint_of(9), tmp_path / "nothing here", full=False, control=Unhurried())

    control = GivesWay(4)
    with pytest.raises(Preempted):
        team.validate(*first, full=False, control=control)
    done = control.seen[-1][1]
    for one, report, ranking in zip((first, second), expected, rankings, strict=True):
        found = team.validate(*one, full=False, control=Unhurried())
        assert ranking_in(tmp_path / "team") == ranking
        assert found.metrics == report.metrics
        assert without_race(found.notes) == without_race({**report.notes, "device": "cpu:0,cpu:1"})
        assert found.corpus["encoded_now"] == NUM_DOCUMENTS - (done if one is first else 0)
        assert set(found.seconds) == set(report.seconds)
        assert found.seconds["total"] >= max(found.seconds["encode"], found.seconds["load"]) > 0
    assert members_of(os.getpid()) == members  # the same processes all along

    os.kill(members[1], signal.SIGKILL)
    with pytest.raises(DeviceFailure, match=r"cpu:\d: its process was ended by SIGKILL \(out of memory\?\)"):
        team.validate(*second, full=False, control=Unhurried())
    assert members_of(os.getpid()) == []


def test_vectors_are_kept_by_all_a_death_costs_an_attempt_and_nobody_outlives_the_watcher(
    dr_validate: Any, tmp_path: Path, wide_collection: Path, write_checkpoint: Callable[..., Path]
) -> None:
    source = tmp_path / "checkpoints"
    source.mkdir()
    for number in (1, 2):
        write_checkpoint(tmp_path / "ready" / f"checkpoint-{number}", seed=number, step=number)
    process = dr_validate.start(
        *(f"source.path={source}", "dataset=beir", f"dataset.path={wide_collection}", "tracker=none", "index=torch"),
        *("encoder.pooling=mean", "encoder.normalize=true", "watch.poll_s=0.05", "device=[cpu:0,cpu:1]"),
        *("sampler=random", "sampler.fraction=0.5", "engine.slice_documents=8"),
    )
    try:
        shutil.move(tmp_path / "ready" / "checkpoint-1", source / "checkpoint-1")
        wait_for(lambda: len(dr_validate.reports()) == 2)  # the sample, then the baseline
        os.kill(members_of(process.pid)[0], signal.SIGKILL)
        shutil.move(tmp_path / "ready" / "checkpoint-2", source / "checkpoint-2")
        wait_for(lambda: len(dr_validate.reports()) >= 3)
        everyone = [*members_of(process.pid), *processes_under(process.pid, "dr_validate.worker.main")]
        assert len(everyone) == 3
        process.kill()
        _, err = process.communicate(timeout=LIMIT_S)
        wait_for(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in everyone))
    finally:
        process.kill()
        process.communicate()
    sampled, baseline, again = dr_validate.reports()[:3]
    assert [report["corpus"]["encoded_now"] for report in (sampled, baseline)] == [100, 100]
    assert (sampled["attempts"], again["attempts"]) == (1, 2)
    assert "cpu:0: its process was ended by SIGKILL (out of memory?)" in err or "cpu:1: its process" in err
    assert "validating on cpu:0,cpu:1:" in err
    assert "Traceback" not in err


def test_a_device_key_says_what_is_wrong_with_it() -> None:
    assert check_devices(["cuda:1"]) == check_devices("cuda:1") == "cuda:1"
    assert check_devices(["cpu:0", "cpu:1"]) == ("cpu:0", "cpu:1")
    for wrong, said in [
        ([], "expected auto, cpu, cuda:1 or a list"),
        (3, "expected auto, cpu, cuda:1 or a list"),
        (["cuda:0", 1], "expected auto, cpu, cuda:1 or a list"),
        (["cuda:0", "auto"], "'auto' cannot be in a list"),
        (["cuda:0", "gpu1"], "'gpu1' cannot be in a list"),
        (["cuda:0", "cuda"], "cuda:0 is named twice"),
        (["cpu", "cpu:0"], "cpu:0 is named twice"),
    ]:
        with pytest.raises(ValueError, match=said):
            check_devices(wrong)


def test_parts_of_a_processor_share_its_threads_and_every_missing_device_is_named() -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        assert [(d.name, d.place, d.threads) for d in resolve_devices(["cpu:0", "cpu:1"])] == [
            ("cpu:0", "cpu", 3),
            ("cpu:1", "cpu", 3),
        ]
        assert [d.threads for d in resolve_devices([f"cpu:{n}" for n in range(9)])] == [1] * 9
        assert [(d.place, d.threads) for d in resolve_devices("cpu:0")] == [("cpu", 6)]
    finally:
        torch.set_num_threads(before)
    with pytest.raises(SetupError, match=r"(?s)got 'cuda:98'.*got 'cuda:99'"):
        resolve_devices(["cuda:98", "cpu:0", "cuda:99"])
