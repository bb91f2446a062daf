"""A pipeline in this process, as the worker builds it: for tests that need many of them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dr_validate.config import build, conf_dir
from dr_validate.values import Checkpoint
from dr_validate.worker.pipeline import Pipeline
from tests.engine.controls import checkpoint_of

STATED = ["dataset=beir", "tracker=none", "encoder.pooling=mean", "encoder.normalize=true", "source.path=unused"]


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
        pipelines.append(Pipeline(run, run.engine.find_device(run.settings.device)))
        pipelines[-1].open()
        return pipelines[-1]

    pipelines: list[Pipeline] = []
    yield opened
    for pipeline in pipelines:
        pipeline.close()


@pytest.fixture
def checkpoints(tmp_path: Path, write_checkpoint: Callable[..., Path]) -> Callable[[int], Sequence[tuple[Checkpoint, Path]]]:
    """`checkpoints(8)`: that many, each with its folder."""

    def written(number: int) -> Sequence[tuple[Checkpoint, Path]]:
        return [(checkpoint_of(step), write_checkpoint(tmp_path / f"checkpoint-{step}", seed=step)) for step in range(number)]

    return written
