"""The sampler and the metric of the folder's README, outside the package, through the command line."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dr_validate.component import component
from dr_validate.config import build
from dr_validate.errors import ConfigError
from dr_validate.values import Listing
from tests.factories import composed

README = Path(__file__).resolve().parents[2] / "dr_validate" / "sampler" / "README.md"


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.S)
    return str(found)


FILES = {
    "my_package/samplers.py": block("python"),
    "my_package/metrics.py": block("py"),
    "my_conf/sampler/thousand.yaml": block("yaml"),
}


def test_a_sampler_and_a_metric_of_a_package_of_ones_own_validate(
    dr_validate: Any, collection: Path, write_checkpoint: Callable[..., Path]
) -> None:
    folder = dr_validate.folder
    write_checkpoint(folder / "output" / "checkpoint-5", step=5)
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    command = shlex.split(block("bash"))[3:]
    pooled = ["encoder.pooling=mean", "encoder.normalize=true", "tracker=none", "watch.mode=once"]
    result = dr_validate(*(f"dataset.path={collection}" if part == "dataset.path=nq" else part for part in command), *pooled)
    assert result.returncode == 0, result.stderr
    (report,) = [report for report in dr_validate.reports() if report["sampler"] == "thousand"]
    assert report["corpus"]["encoded"] == 12 + 20  # judged documents, and the others
    own = report["metrics"]["my_package.metrics.best_grade@5"]  # each query has one relevant document, of grade 1
    assert own["value"] == own["naive"] >= report["metrics"]["mrr@10"]["naive"] > 0 == own["low"]


def test_a_metric_of_a_package_that_is_not_named_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"metrics.0: got 'os.path.join@5'; .*plugins=\[os\]"):
        build(composed("source.path=x", "dataset=pydoc", "metrics=[os.path.join@5]"))


def test_a_class_of_a_package_that_is_not_named_is_never_imported() -> None:
    config = {**composed("source.path=x", "dataset=pydoc"), "sampler": {"_target_": "my_package.samplers.Thousand"}}
    with pytest.raises(
        ConfigError, match=r"expected a class of dr_validate.sampler; for one of your own, .*plugins=\[my_package\]"
    ):
        build(config)


def test_what_is_named_and_no_component_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sampler._target_: got 'os.system', which is no @component"):
        build({**composed("source.path=x", "dataset=pydoc"), "plugins": ["os"], "sampler": {"_target_": "os.system"}})


@component
class Unfinished:
    """A source that lists nothing and does nothing else."""

    training_run: str = "mine"

    def list(self, state_dir: Path) -> Listing:
        return Listing()


def test_a_class_that_lacks_what_its_stage_asks_for_is_refused_at_the_start() -> None:
    source = {"_target_": f"{__name__}.{Unfinished.__name__}"}
    lacks = "which lacks brings_several, check, fetch, identity, needs_config, still_has; dr_validate/stages.py says"
    with pytest.raises(ConfigError, match=rf"source._target_: got '{__name__}.Unfinished', {lacks} .*\(class Source\)"):
        build({**composed("source.path=x", "dataset=pydoc"), "plugins": ["tests"], "source": source})
