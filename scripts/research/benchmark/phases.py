"""Where this project's time goes: the worker's pipeline in one process, with a meter around encoder and index.

The command itself, with its two processes, is measured whole; its phases are known to it by the clock on the wall alone.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dr_validate.config import Run, build, conf_dir
from dr_validate.metrics.ranx import RanxMetrics
from dr_validate.stages import Encoder, Index, Model, Search, Tokenizer
from dr_validate.values import Float32, Int64, Side, TokenBlock, TopK
from dr_validate.worker.pipeline import Pipeline
from scripts.research.benchmark.job import Job
from scripts.research.benchmark.meter import Meter

if TYPE_CHECKING:
    from torch import Tensor


def pipeline(job: Job, meter: Meter, overrides: Sequence[str]) -> float:
    """nDCG@10 of the last checkpoint. `score` is by the clock on the wall, for CPU seconds too."""
    with tempfile.TemporaryDirectory() as state:
        run = _compose([*overrides, f"state_dir={state}"])
        whole = Pipeline(
            dataclasses.replace(run, encoder=_Encoder(run.encoder, meter), index=_Index(run.index, meter)), job.device
        )
        with meter.phase("start"):
            RanxMetrics(names=run.settings.metrics).warm_up()  # here and not in a thread, for it to have a phase
            whole.open()
        for checkpoint in run.source.list(Path(state)).checkpoints:
            report = whole.validate(checkpoint, Path(checkpoint.uri), full=False, control=_Unhurried())
            meter.cpu["score"] += report.seconds["score"]
            meter.wall["score"] += report.seconds["score"]
    return report.metrics["ndcg@10"].value


def _compose(overrides: Sequence[str]) -> Run:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    assert isinstance(config, dict)
    return build({str(key): value for key, value in config.items()})


class _Encoder:
    def __init__(self, encoder: Encoder, meter: Meter) -> None:
        self._encoder, self._meter = encoder, meter

    @contextlib.contextmanager
    def load(self, folder: Path, device: str, weights_of: Model | None = None) -> Iterator[Model]:
        with contextlib.ExitStack() as stack:
            with self._meter.phase("load"):
                model = stack.enter_context(self._encoder.load(folder, device, weights_of))
            yield _Model(model, self._meter)

    def read(self, folder: Path) -> Mapping[str, Any]:
        return self._encoder.read(folder)

    def fingerprint(self) -> Mapping[str, Any]:
        return self._encoder.fingerprint()


class _Model:
    def __init__(self, model: Model, meter: Meter) -> None:
        self._model, self._meter = model, meter
        self.dim, self.contract = model.dim, model.contract
        assert self.contract["batches"] == "packed", "the tokens computed are counted as if none were padding"

    def tokenizer(self, side: Side) -> Tokenizer:
        return _Tokenizer(self._model.tokenizer(side), self._meter)

    def encode(self, tokens: TokenBlock, side: Side) -> "Tensor | Float32":
        with self._meter.phase("encode"):
            vectors = self._model.encode(tokens, side)
        lengths = [int(length) for length in tokens.lengths]
        self._meter.mark(f"first {side} slice")
        self._meter.count(lengths, sum(lengths))
        return vectors


class _Tokenizer:
    def __init__(self, tokenizer: Tokenizer, meter: Meter) -> None:
        self._tokenizer, self._meter = tokenizer, meter
        self.key = tokenizer.key

    def tokenize(self, texts: Sequence[str] | Sequence[list[int]]) -> TokenBlock:
        with self._meter.phase("tokenize"):
            return self._tokenizer.tokenize(texts)


class _Index:
    def __init__(self, index: Index, meter: Meter) -> None:
        self._index, self._meter = index, meter

    def open(self, queries: "Tensor | Float32", top_k: int, tie_rank: Int64, device: str) -> Search:
        with self._meter.phase("search"):
            return _Search(self._index.open(queries, top_k, tie_rank, device), self._meter)

    def check(self) -> str:
        return self._index.check()

    def fingerprint(self) -> Mapping[str, Any]:
        return self._index.fingerprint()


class _Search:
    def __init__(self, search: Search, meter: Meter) -> None:
        self._search, self._meter = search, meter

    def add(self, vectors: "Tensor | Float32", ordinals: Int64) -> None:
        with self._meter.phase("search"):
            self._search.add(vectors, ordinals)

    def top(self) -> TopK:
        return self._search.top()

    def restore(self, top: TopK) -> None:
        self._search.restore(top)


class _Unhurried:
    def check(self) -> None:
        """Nothing stops it."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """Nobody looks."""
