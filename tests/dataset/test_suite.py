"""The members of a suite as they are typed: what each comes to, and mistakes by their keys."""

from pathlib import Path
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException

from dr_validate.cli.overrides import OPEN_KEYS, explain, for_every_job, for_open_keys, jobs_as_run
from dr_validate.config import TEXT_KEYS, check_datasets, conf_dir
from dr_validate.encoder.spec import CONTRACT_KEYS
from dr_validate.errors import ConfigError, SetupError
from tests.factories import built, choice, composed

SUITE = ["dataset=suite", "source.path=x", "tracker=none", "encoder.query_max_length=64"]


def members(*typed: str) -> list[str]:
    return [*SUITE, *for_open_keys([f"dataset.members.{one}" for one in typed])]


def test_each_member_is_the_run_that_validates_it_alone() -> None:
    run = built(
        *members("nq=data/nq", "arguana.path=/data/arguana", "arguana.encoder.query_max_length=512"), "sampler=stratified"
    )
    assert list(run.members) == ["nq", "arguana"] and run.collections == tuple(run.members.values())
    alone = built("dataset=beir", "dataset.path=data/nq", "dataset.name=nq", *SUITE[1:], "sampler=stratified")
    nq, arguana = run.collections
    assert (nq.dataset, nq.encoder, nq.sampler) == (alone.dataset, alone.encoder, alone.sampler)
    assert nq.raw["encoder"] == alone.raw["encoder"] and nq.raw["sampler"] == alone.raw["sampler"]
    assert arguana.dataset == built(*SUITE[1:], "dataset=beir", "dataset.path=/data/arguana", "dataset.name=arguana").dataset
    assert arguana.encoder == built(*SUITE[1:3], "dataset=pydoc", "encoder.query_max_length=512").encoder


def test_choice_sampler_and_folder_are_those_of_the_member() -> None:
    typed = members("docs.choice=pydoc", "docs.num_queries=7", "docs.sampler=full", "nq=nq", "nq.sampler.fraction=0.25")
    run = built(*typed, "dataset.path=/data", "sampler=random")
    docs, nq = run.collections
    assert docs.dataset == built(*SUITE[1:], "dataset=pydoc", "dataset.num_queries=7", "dataset.name=docs").dataset
    assert docs.sampler.fingerprint()["sampler"] == "full" and nq.sampler.fingerprint()["fraction"] == 0.25
    assert nq.raw["dataset"]["path"] == "/data/nq"
    assert nq.sampler != run.sampler


def test_all_mistakes_come_at_once_by_their_keys() -> None:
    typed = ["b.pth=data/b", "c.choice=bier", "d.path=d", "d.encoder.pooling=cls", "e=[3]", "f.path=f", "mean=g", "h.path=h"]
    with pytest.raises(ConfigError) as caught:
        built(
            *members(*typed, "f.split=a/b", "h.encoder.query_max_length=0", "h.sampler.choice=random", "h.sampler.fraction=2")
        )
    for part in (
        "dataset.members.b.path: required, no default (set it as dataset.members.b.path=VALUE)",
        "dataset.members.b.pth: the chosen dataset.members.b has no such key",
        "dataset.members.c.choice: got 'bier', expected one of beir, dpr, hub, ir_datasets, msmarco, pydoc, tevatron",
        "dataset.members.d.encoder.pooling: a collection may have its own query_prefix, ",
        "dataset.members.e: expected a folder, or keys such as dataset.members.e.path=FOLDER (got [3])",
        "dataset.members.f.split: ",
        "dataset.members: got the name 'mean', ",
        "dataset.members.h.encoder.query_max_length: ",
        "dataset.members.h.sampler.fraction: ",
    ):
        assert part in str(caught.value)
    assert str(caught.value).startswith("9 problems in the configuration:")


def test_a_suite_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="dataset.members: required, no default; name the collections: dataset.members.NAME"):
        built(*SUITE)


def test_what_is_not_at_its_place_is_named_by_its_member(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = built(*members(f"a={tmp_path / 'nowhere'}", f"b={tmp_path / 'file'}"))
    with pytest.raises(SetupError) as caught:
        check_datasets(run)
    first, second = str(caught.value).splitlines()
    assert first.startswith("dataset.members.a.path: ") and second.startswith("dataset.members.b.path: ")


def test_members_stay_in_every_job_of_a_sweep() -> None:
    typed = for_every_job(
        for_open_keys(["-m", "sampler=full,random", "dataset.members.a=a", "sampler.fraction=0.5", *SUITE[:1]])
    )
    job = [one for one in typed if one != "-m"]
    jobs = [[*job[1:], "sampler=full"], [*job[1:], "sampler=random"]]
    for one in jobs_as_run(jobs, lambda choices: composed(*choices)):
        assert "++dataset.members.a.path=a" in one


def test_the_keys_that_a_member_may_have_of_the_encoder_are_keys_of_its_contract() -> None:
    assert set(TEXT_KEYS) <= set(CONTRACT_KEYS)


@pytest.mark.parametrize(
    ("typed", "stage", "key", "value"),
    [
        (["engine=ray", "engine.resources={CPU: 8, GPU: 0.5}"], "engine", "resources", {"CPU": 8, "GPU": 0.5}),
        (["engine=ray", "engine.resources.CPU=8"], "engine", "resources", {"CPU": 8}),
        (["source=wandb", "source.metadata={kind: final}"], "source", "metadata", {"kind": "final"}),
        (["dataset=suite", "dataset.members={a: a, b: b}"], "dataset", "members", {"a": "a", "b": "b"}),
    ],
)
def test_names_that_no_yaml_file_has_are_set_as_the_pages_say(
    typed: list[str], stage: str, key: str, value: dict[str, Any]
) -> None:
    assert composed(*for_open_keys(["dataset=pydoc", *typed]))[stage][key] == value
    job = for_every_job(for_open_keys(["-m", "sampler=full,random", "dataset=pydoc", *typed]))[1:]
    for one in jobs_as_run([["sampler=full", *job[1:]], ["sampler=random", *job[1:]]], lambda choices: composed(*choices)):
        assert composed(*one)[stage][key] == value


def test_every_mapping_without_names_takes_some_on_the_command_line() -> None:
    empty = {
        f"{path.parent.name}.{key}"
        for path in conf_dir().glob("*/*.yaml")
        for key, value in choice(path).items()
        if value == {}
    }
    assert empty == set(OPEN_KEYS)


def test_a_list_in_place_of_names_is_refused_in_words() -> None:
    typed = ["dataset=suite", "dataset.members=[a,b]", "source.path=x"]
    with pytest.raises(ConfigCompositionException) as caught:
        composed(*for_open_keys(typed))
    assert "dataset.members: takes names with a value each; set dataset.members.NAME=VALUE" in explain(caught.value, typed)
