"""How much of the time one GPU would be at work, told without one: model and search are sleeps as long as an H200 takes.

    python scripts/research/device_busy.py --state /dev/shm/busy

All else is real: files, tokenizer, token cache, kept vectors, running top-k of the first slice, metrics, Report. Each
checkpoint is validated in the same process; the first also tokenizes the corpus. `ranking`: share of the time between the first
and the last work of the device; `checkpoint`: of all the time, with loading, scoring and writing.
"""

import argparse
import contextlib
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dr_validate.config import build
from dr_validate.index.torch import TorchIndex
from dr_validate.stages import Encoder, Model, Search
from dr_validate.values import Checkpoint, Int64, Side, TokenBlock, TopK
from dr_validate.worker.pipeline import Pipeline
from scripts.research.scale import NUM_WORDS, write_bert

PASSAGES_A_SECOND = 35_000  # BERT-base in bfloat16 (scripts/GPU.md)
SEARCHED_A_SECOND = 8192 / 0.0062  # documents against 6,980 queries (scripts/GPU.md)
DIM, NUM_QUERIES, NUM_WORDS_OF_A_PASSAGE = 768, 100, 57


class Device:
    """Remembers when it worked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.spans: list[tuple[float, float]] = []  # begin and end of each piece of work, seconds

    def work(self, seconds: float) -> None:
        """Take so long when it is free, while other threads go on."""
        with self._lock:
            began = time.monotonic()
            time.sleep(seconds)
            self.spans.append((began, began + seconds))


class SleepingModel:
    """A loaded checkpoint whose vectors take as long as on a GPU, and are the same for each text."""

    dim = DIM

    def __init__(self, model: Model, device: Device, most: int) -> None:
        self._model, self._device = model, device
        self._vectors = torch.randn(most, DIM, generator=torch.Generator().manual_seed(7))

    @property
    def contract(self) -> Mapping[str, Any]:
        """The real one's."""
        return self._model.contract

    def tokenizer(self, side: Side) -> Any:
        """The real one's."""
        return self._model.tokenizer(side)

    def encode(self, tokens: TokenBlock, side: Side) -> torch.Tensor:
        """(len(tokens), DIM)."""
        self._device.work(len(tokens) / PASSAGES_A_SECOND)
        return self._vectors[: len(tokens)]


class SleepingSearch:
    """A running top-k of the first block; the others take as long as on a GPU."""

    def __init__(self, search: Search, device: Device) -> None:
        self._search, self._device, self._is_empty = search, device, True

    def add(self, vectors: Any, ordinals: Int64) -> None:
        """See `Search.add`."""
        if self._is_empty:
            self._search.add(vectors, ordinals)
            self._is_empty = False
        self._device.work(len(ordinals) / SEARCHED_A_SECOND)

    def top(self) -> TopK:
        """See `Search.top`."""
        return self._search.top()

    def restore(self, top: TopK) -> None:
        """See `Search.restore`."""
        self._search.restore(top)


class SleepingIndex(TorchIndex):
    """Opens SleepingSearch."""

    device = Device()

    def open(self, queries: Any, top_k: int, tie_rank: Int64, device: str) -> SleepingSearch:
        """See `Index.open`."""
        return SleepingSearch(super().open(queries, top_k, tie_rank, device), self.device)


class NoControl:
    """Never interrupts."""

    def check(self) -> None:
        """See `Control.check`."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """See `Control.progress`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--slice", type=int, default=2048, help="documents")
    parser.add_argument("--checkpoints", type=int, default=3)
    parser.add_argument(
        "--state", type=Path, help="folder to keep vectors and tokens in while it runs (default: a temporary one)"
    )
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_collection(folder / "collection", given.slices * given.slice)
        write_bert(folder / "checkpoint")
        state = folder / "state"
        if given.state:
            state = given.state
            stack.callback(shutil.rmtree, state, ignore_errors=True)
        sys.stdout.write("| checkpoint | wall s | device s | ranking | checkpoint |\n|---|---|---|---|---|\n")
        for row in measure(folder, state, given.slice, given.checkpoints):
            sys.stdout.write(f"| {' | '.join(row)} |\n")
            sys.stdout.flush()


def measure(folder: Path, state: Path, size: int, checkpoints: int) -> Iterator[list[str]]:
    """A row for each checkpoint, validated one after the other."""
    device = SleepingIndex.device
    pipeline = open_pipeline(folder, state, size)
    for number in range(checkpoints):
        device.spans.clear()
        began = time.monotonic()
        pipeline.validate(checkpoint_of(number), folder / "checkpoint", full=False, control=NoControl())
        wall, busy_s = time.monotonic() - began, sum(end - start for start, end in device.spans)
        shares = (busy_s / (device.spans[-1][1] - device.spans[0][0]), busy_s / wall)
        yield [str(number + 1), f"{wall:.1f}", f"{busy_s:.1f}", *(f"{share:.0%}" for share in shares)]
    pipeline.close()


def open_pipeline(folder: Path, state: Path, size: int) -> Pipeline:
    """On the device that sleeps."""
    run = build(
        {
            "source": {"_target_": "dr_validate.source.folder.FolderSource", "path": str(folder)},
            "dataset": {"_target_": "dr_validate.dataset.beir.BeirDataset", "path": str(folder / "collection")},
            **{stage: {"_target_": f"dr_validate.{place}"} for stage, place in PLAIN.items()},
            "encoder": {"_target_": "dr_validate.encoder.auto.AutoEncoder", "pooling": "mean", "normalize": True},
            "engine": {"_target_": "dr_validate.engine.local.LocalEngine", "slice_documents": size},
            "state_dir": str(state),
            "metrics": ["mrr@10"],
        }
    )

    @contextlib.contextmanager
    def load(encoder: Encoder, digest: str, place: Path, where: str) -> Iterator[Model]:
        with encoder.load(place, where) as model:
            yield SleepingModel(model, SleepingIndex.device, size)

    pipeline = Pipeline(replace(run, index=SleepingIndex()), "cpu", load)
    pipeline.open()
    return pipeline


def checkpoint_of(number: int) -> Checkpoint:
    """All with the same weights, and vectors of their own."""
    about: dict[str, Any] = {"version": "1", "step_from": "folder name", "created_at": "2026-01-01T00:00:00Z", "uri": "here"}
    return Checkpoint(name=f"c{number}", digest=f"sha256:{number}", step=number, **about)


PLAIN = {
    "store": "store.checkpoints.CheckpointStore",
    "sampler": "sampler.full.FullSampler",
    "index": "index.torch.TorchIndex",
    "fidelity": "fidelity.against_full.AgainstFull",
    "tracker": "tracker.none.NoTracker",
}


def write_collection(folder: Path, num_documents: int) -> None:
    """Passages as long as MS MARCO's."""
    chance, words = random.Random(7), [f"w{n}" for n in range(NUM_WORDS)]
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w") as stream:
        for n in range(num_documents):
            text = " ".join(chance.choices(words, k=NUM_WORDS_OF_A_PASSAGE))
            stream.write(json.dumps({"_id": f"d{n}", "title": "", "text": text}) + "\n")
    queries = [{"_id": f"q{n}", "text": " ".join(chance.choices(words, k=6))} for n in range(NUM_QUERIES)]
    (folder / "queries.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in queries))
    rows = [f"q{n}\td{chance.randrange(num_documents)}\t1\n" for n in range(NUM_QUERIES)]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))


if __name__ == "__main__":
    main()
