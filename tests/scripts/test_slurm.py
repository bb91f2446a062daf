"""The files for Slurm, with stand-ins for its commands that start, kill and start again as Slurm does."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.factories import CommandLine, composed
from tests.processes import wait_for

ROOT = Path(__file__).resolve().parents[2]
SBATCH = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$CLUSTER/submitted.new"
mv "$CLUSTER/submitted.new" "$CLUSTER/submitted"
"""
COMMANDS = {
    "sbatch": SBATCH,
    "srun": '#!/usr/bin/env bash\nwhile [[ "$1" == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": "#!/usr/bin/env bash\necho n1; echo n2; echo n3\n",
    "ray": '#!/usr/bin/env bash\nprintf "%s\\n" "$@" "token ${#RAY_AUTH_TOKEN}" > "$CLUSTER/given"\n',
}
# The command starts warm, in the process group of its job, which is killed as a whole.
PYTHON = f"""#!{sys.executable}
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from tests import warm
command = warm.popen([sys.executable, *sys.argv[1:]], process_group=os.getpgrp())
signal.signal(signal.SIGTERM, lambda *_: command.terminate())
sys.exit(command.wait())
"""


class Cluster:
    """Runs one job at a time, in a process group of its own, as `sbatch` would; what a job submits is in `submitted`."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        folder.mkdir()
        for name, script in {**COMMANDS, "python": PYTHON}.items():
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)
        path = f"{folder}:{environment['PATH']}"
        self._environment = {**environment, "PATH": path, "CLUSTER": str(folder), "SLURM_SUBMIT_DIR": str(ROOT)}

    def start(self, script: str, *arguments: str, left_s: float, cwd: Path, **more: str) -> "subprocess.Popen[bytes]":
        job = {"SLURM_JOB_ID": "77", "SLURM_JOB_END_TIME": str(int(time.time() + left_s)), **more}
        command = ["bash", str(ROOT / "scripts" / "slurm" / script), *arguments]
        options: dict[str, Any] = {"stderr": subprocess.STDOUT, "process_group": 0}
        with (self.folder / "log").open("a") as log:
            return subprocess.Popen(command, cwd=cwd, env={**self._environment, **job}, stdout=log, **options)

    @property
    def said(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def submitted(self) -> list[str]:
        path = self.folder / "submitted"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def cluster(tmp_path: Path, dr_validate: CommandLine) -> Iterator[Cluster]:
    yield Cluster(tmp_path / "cluster", {**dr_validate.environment, **warm.share()})


def kill_all(job: "subprocess.Popen[bytes]") -> None:
    """As when a node is lost."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    job.wait()


def test_a_watcher_in_jobs_of_hours_is_killed_requeued_resubmits_itself_and_ends_with_the_training(
    cluster: Cluster, dr_validate: Any, tmp_path: Path, collection: Path, write_checkpoint: Callable[..., Path]
) -> None:
    source, work = tmp_path / "output", tmp_path / "work"
    source.mkdir()
    arguments = [
        *(f"source.path={source}", "dataset=beir", f"dataset.path={collection}", "tracker=none", "watch.poll_s=0.05"),
        *("encoder.pooling=mean", "encoder.normalize=true", "device=cpu", "index=torch", f"watch.stop_file={source / 'done'}"),
    ]

    def save(step: int) -> None:
        write_checkpoint(tmp_path / "ready" / f"checkpoint-{step}", seed=step, step=step)
        shutil.move(tmp_path / "ready" / f"checkpoint-{step}", source / f"checkpoint-{step}")

    def wait_for_reports(job: "subprocess.Popen[bytes]", number: int) -> None:
        wait_for(lambda: len(dr_validate.reports()) == number or job.poll() is not None)
        assert len(dr_validate.reports()) == number, cluster.said

    save(1)
    job = cluster.start("watch.sbatch", *arguments, left_s=86_400, cwd=work)
    try:
        wait_for_reports(job, 1)
        kill_all(job)
        assert cluster.submitted == []
        save(2)
        job = cluster.start("watch.sbatch", *arguments, left_s=86_400, cwd=work, SLURM_RESTART_COUNT="1")  # requeued
        wait_for_reports(job, 2)
        job.send_signal(signal.SIGTERM)  # scancel, or a preemption: Slurm itself starts it again
        job.wait()
        assert (job.returncode, cluster.submitted) == (0, []), cluster.said

        job = cluster.start("watch.sbatch", *arguments, left_s=605, cwd=work)  # it soon ends by itself
        job.wait()
        assert job.returncode == 0, cluster.said
        script = str(ROOT / "scripts" / "slurm" / "watch.sbatch")
        assert cluster.submitted == ["--dependency=afterany:77", script, *arguments], cluster.said
        (cluster.folder / "submitted").unlink()

        save(3)
        (source / "done").touch()
        job = cluster.start("watch.sbatch", *arguments, left_s=86_400, cwd=work)
        job.wait()
        assert (job.returncode, cluster.submitted) == (0, []), cluster.said
    finally:
        kill_all(job)
    reports = dr_validate.reports()
    assert [(report["checkpoint"]["step"], report["status"]) for report in reports] == [(1, "done"), (2, "done"), (3, "done")]


def test_a_job_that_was_told_to_end_just_before_its_limit_submits_the_next_one(cluster: Cluster, tmp_path: Path) -> None:
    (cluster.folder / "python").write_text(
        "#!/usr/bin/env bash\ntrap 'exit 0' TERM\ntouch $CLUSTER/begun\nwhile true; do sleep 0.05; done\n"
    )
    job = cluster.start("watch.sbatch", "a=b c", left_s=100, cwd=tmp_path, MARGIN_S="20")
    try:
        wait_for((cluster.folder / "begun").exists)
        job.send_signal(signal.SIGTERM)
        job.wait()
    finally:
        kill_all(job)
    assert (job.returncode, cluster.submitted[-1]) == (0, "a=b c"), cluster.said


def test_a_limit_that_is_too_short_is_said_and_nothing_is_submitted(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.start("watch.sbatch", left_s=500, cwd=tmp_path)
    job.wait()
    assert (job.returncode, cluster.submitted) == (2, [])
    assert "raise it" in cluster.said


@pytest.mark.parametrize("code", [1, 2])
def test_what_is_wrong_is_not_submitted_again(cluster: Cluster, tmp_path: Path, code: int) -> None:
    (cluster.folder / "python").write_text(f"#!/usr/bin/env bash\nexit {code}\n")
    job = cluster.start("watch.sbatch", left_s=86_400, cwd=tmp_path)
    job.wait()
    assert (job.returncode, cluster.submitted) == (code, [])


def test_ray_is_started_on_every_node_and_the_run_on_the_first(cluster: Cluster, tmp_path: Path) -> None:
    nodes = {"SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_NUM_NODES": "3"}
    job = cluster.start("ray.sbatch", "+run=msmarco", left_s=86_400, cwd=tmp_path, **nodes)
    job.wait()
    assert job.returncode == 0, cluster.said
    given = (cluster.folder / "given").read_text().splitlines()
    assert given[:6] == ["symmetric-run", "--address", "n1:20077", "--min-nodes", "3", "--"]
    assert given[6:9] == ["python", "-m", "dr_validate"]
    assert "engine.address=n1:20077" in given and "+run=msmarco" in given
    assert given[-1] == "token 64"  # of the environment, on no command line
    assert (
        composed(*[one for one in given[9:-1] if not one.startswith("+run")], "dataset=pydoc")["engine"]["address"]
        == "n1:20077"
    )
