"""Collections that share a checkpoint: as if each were validated alone, with one load of the weights."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dr_validate.errors import CheckpointError, SetupError
from dr_validate.values import Checkpoint, Report
from dr_validate.worker.pipeline import Suite
from tests.factories import built, write_collection
from tests.small_run import Unhurried, checkpoint_of

STATED = ["dataset=suite", "source.path=unused", "tracker=none", "encoder.normalize=true", "encoder.pooling=mean"]
STATED += ["metrics=[mrr@10,recall@20]"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three collections."""
    for name, number in (("a", 48), ("b", 60), ("c", 75)):
        write_collection(tmp_path / name, number)
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path, write_checkpoint: Callable[..., Path]) -> Path:
    return write_checkpoint(tmp_path / "checkpoint", seed=3)


@pytest.fixture
def loads(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], int]]:
    """How often weights were loaded so far."""
    with caplog.at_level(logging.DEBUG, "dr_validate.encoder.auto"):
        yield lambda: sum(message.startswith("loaded ") for message in caplog.messages)


class Failing(Unhurried):
    """Where scores are to be made, this one fails."""

    def progress(self, phase: str, done: int, total: int) -> None:
        if phase == "scoring":
            raise CheckpointError("failed")


def opened(data: Path, *overrides: str, names: str = "abc", state: str = "state") -> Suite:
    members = [f"++dataset.members.{name}.path={data / name}" for name in names]
    suite = Suite(built(*STATED, *members, f"state_dir={data / state}", *overrides), "cpu")
    suite.open()
    return suite


def validate(suite: Suite, folder: Path, number: int, *, more: bool, one: Checkpoint | None = None) -> Report:
    asked = one or checkpoint_of(100)
    return suite.validate(asked, folder, collection=number, full=False, more=more, control=Unhurried())


def test_values_are_those_of_separate_runs_and_the_weights_are_loaded_once(
    data: Path, folder: Path, loads: Callable[[], int]
) -> None:
    own = ["++dataset.members.b.encoder.query_max_length=3", "++dataset.members.c.encoder.document_prefix='number '"]
    suite = opened(data, *own)
    together = [validate(suite, folder, number, more=number < 2) for number in range(3)]
    assert loads() == 1
    alone = [["dataset.path=" + str(data / "a")], ["encoder.query_max_length=3"], ["encoder.document_prefix='number '"]]
    for name, given, report in zip("abc", alone, together, strict=True):
        run = [*STATED, "dataset=beir", f"dataset.path={data / name}", f"state_dir={data / 'alone'}", *given]
        single = Suite(built(*run), "cpu")
        single.open()
        expected = validate(single, folder, 0, more=False)
        assert (report.dataset, report.spec, report.metrics) == (name, expected.spec, expected.metrics)
        assert report.corpus == expected.corpus and report.notes["encoder"] == expected.notes["encoder"]
        assert together[0].notes["encoder"]["query"]["max_length"] != 3
    assert together[1].notes["encoder"]["query"]["max_length"] == 3
    assert loads() == 4
    assert len({json.dumps(report.notes["encoder"]) for report in together}) == 3


def test_the_model_is_let_go_after_the_last_collection_and_after_a_failure(
    data: Path, folder: Path, loads: Callable[[], int], tmp_path: Path, write_checkpoint: Callable[..., Path]
) -> None:
    suite = opened(data, "store.embeddings_max_gib=0")
    validate(suite, folder, 0, more=False)
    validate(suite, folder, 1, more=True)
    assert loads() == 2
    with pytest.raises(CheckpointError):
        suite.validate(checkpoint_of(100), folder, collection=2, full=False, more=True, control=Failing())
    validate(suite, folder, 2, more=True)
    assert loads() == 3
    another = write_checkpoint(tmp_path / "another", seed=4)
    first = validate(suite, folder, 0, more=True)
    second = validate(suite, another, 0, more=True, one=checkpoint_of(200))
    assert loads() == 4 and first.metrics != second.metrics


def test_a_member_may_have_a_sampler_of_its_own(data: Path, folder: Path) -> None:
    suite = opened(data, "++dataset.members.b.sampler.choice=random", "++dataset.members.b.sampler.fraction=0.5", names="ab")
    reports = [validate(suite, folder, number, more=True) for number in range(2)]
    assert [(report.sampler, report.corpus["encoded"]) for report in reports] == [("full", 48), ("random", 30)]


def test_the_same_data_twice_are_refused_by_the_keys_of_both(data: Path) -> None:
    with pytest.raises(SetupError, match=r"dataset.members.a and dataset.members.x hold the same documents, queries and "):
        opened(data, f"++dataset.members.x.path={data / 'a'}", "++dataset.members.x.encoder.query_max_length=3")
    with pytest.raises(SetupError, match=r"dataset.members.a and dataset.members.b have the same name \(a\)"):
        opened(data, "++dataset.members.b.name=a")


def test_members_that_cannot_be_read_are_all_named_at_once(data: Path) -> None:
    with (data / "b" / "corpus.jsonl").open("a") as stream:
        stream.write("{\n")
    (data / "c" / "qrels" / "test.tsv").unlink()
    with pytest.raises(SetupError) as caught:
        opened(data)
    first, second = str(caught.value).split("dataset.members.c")[0], "dataset.members.c.qrels: "
    assert first.startswith("dataset.members.b: ") and "corpus.jsonl:61: " in first and second in str(caught.value)
