"""A pipeline in this process, as the worker builds it: for tests that need many of them."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dr_validate.config import build, conf_dir
from dr_validate.devices import label, resolve_devices
from dr_validate.errors import Preempted
from dr_validate.values import Checkpoint
from dr_validate.worker.pipeline import Pipeline
from dr_validate.worker.team import WorkerTeam

STATED = ["dataset=beir", "tracker=none", "encoder.pooling=mean", "encoder.normalize=true", "source.path=unused"]


@dataclass
class Unhurried:
    """A control that never stops anything."""

    seen: list[tuple[str, int, int]] = field(default_factory=list)

    def check(self) -> None:
        pass

    def progress(self, phase: str, done: int, total: int) -> None:
        self.seen.append((phase, done, total))


class GivesWay(Unhurried):
    """Lets some slices through."""

    def __init__(self, slices: int) -> None:
        super().__init__()
        self.slices = slices

    def check(self) -> None:
        if len(self.seen) >= self.slices:
            raise Preempted


@pytest.fixture
def open_pipeline(tmp_path: Path, wide_collection: Path) -> Iterator[Callable[..., Pipeline]]:
    """`open_pipeline("sampler=random", ...)`: on the wide collection, with state in `tmp_path / "state"`."""

    def opened(*overrides: str) -> Pipeline:
        stated = [*STATED, f"dataset.path={wide_collection}", f"state_dir={tmp_path / 'state'}", *overrides]
        with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            config = compose("config", stated)
        plain = OmegaConf.to_container(config, resolve=True)
        assert isinstance(plain, dict)
        run = build({str(key): value for key, value in plain.items()})
        devices = resolve_devices(run.settings.device)
        team = WorkerTeam(run.raw, devices) if len(devices) > 1 else None
        pipelines.append(Pipeline(run, label(devices), team))
        pipelines[-1].open()
        return pipelines[-1]

    pipelines: list[Pipeline] = []
    yield opened
    for pipeline in pipelines:
        pipeline.close()


@pytest.fixture
def checkpoints(
    tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> Iterator[Callable[[int], Sequence[tuple[Checkpoint, Path]]]]:
    """`checkpoints(8)`: that many, each with its folder."""

    def written(number: int) -> Sequence[tuple[Checkpoint, Path]]:
        found = [(checkpoint_of(step), write_checkpoint(tmp_path / f"checkpoint-{step}", seed=step)) for step in range(number)]
        gc.freeze()  # the encoder collects garbage after each checkpoint, here among all that pytest and its tests hold
        return found

    yield written
    gc.unfreeze()


def checkpoint_of(step: int) -> Checkpoint:
    name = f"checkpoint-{step}"
    digest, at = f"sha256:{step:04x}", "2026-11-21T03:12:00Z"
    return Checkpoint(name=name, version=name, digest=digest, step=step, step_from="name", created_at=at, uri=name)
