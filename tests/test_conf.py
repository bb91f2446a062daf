"""conf/ and the classes belong together: every choice names a class of its own folder, every run composes and builds."""

import dataclasses
import importlib
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from pydantic_core import PydanticUndefined

from dr_validate.cli.overrides import as_chosen, explain, explain_sweep, for_every_job, jobs_as_run
from dr_validate.cli.run import comments, documented
from dr_validate.config import STAGES, build, conf_dir
from dr_validate.errors import ConfigError
from tests.factories import CHOICES, built, choice, composed

NEEDED = {
    "beir": ["dataset.path=somewhere"],
    "msmarco": [],
    "msmarco_v2": [],
    "nq": [],
    "nq_dpr": ["dataset.path=somewhere"],
    "nanobeir": [],
    "beir_suite": ["dataset.path=somewhere"],
    "cqadupstack": ["dataset.path=somewhere"],
    "demo": [],
    "demo_wandb": [],
}


@pytest.mark.parametrize("path", CHOICES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_choice_names_a_class_in_the_file_of_its_name(path: Path) -> None:
    target = choice(path)["_target_"]
    assert target.rpartition(".")[0] == f"dr_validate.{path.parent.name}.{path.stem}"


@pytest.mark.parametrize("path", CHOICES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_key_of_a_class_can_be_set_without_a_plus_and_has_the_class_default(path: Path) -> None:
    values = choice(path)
    module, _, name = values.pop("_target_").rpartition(".")
    defaults = {field.name: field for field in dataclasses.fields(getattr(importlib.import_module(module), name))}
    assert set(values) == set(defaults)
    for key, value in values.items():
        default = getattr(defaults[key].default, "default", defaults[key].default)  # pydantic's Field holds one as well
        required = default in (dataclasses.MISSING, PydanticUndefined)
        same = value == (list(default) if isinstance(default, tuple) else default)
        assert same or required, f"{key}: {value!r} here, {default!r} in the class"


@pytest.mark.parametrize("path", sorted(conf_dir().rglob("*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_key_has_a_comment_where_it_is_typed(path: Path) -> None:
    def leaves(part: dict[str, Any], place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        nested = [
            leaves(value, (*place, key)) if isinstance(value, dict) and value and key not in members else [(*place, key)]
            for key, value in part.items()
        ]
        return [keys for some in nested for keys in some]

    own = {key: value for key, value in choice(path).items() if key not in ("_target_", "defaults", "hydra")}
    members = own.get("dataset", {}).get("members", {}) if path.parent.name == "run" else {}  # one comment for each
    assert not [".".join(keys) for keys in leaves(own) if keys not in comments(path)]


def test_help_shows_each_key_with_its_value_and_its_comment() -> None:
    config = composed("sampler=run_pool", "dataset=beir", "seed=7", "sampler.depth=5", "encoder.query_prefix=''")
    lines = documented(config, {"sampler": "run_pool", "dataset": "beir", "encoder": "auto", "source": "mine"}).splitlines()
    for line in (
        "seed: 7  # ",
        "sampler:  # sampler=run_pool",
        "  depth: 5  # documents of the run for each query",
        "metrics: [mrr@10, ",
    ):
        assert any(one.startswith(line) for one in lines), line
    for line in (
        "  path: ???  # required: folder in BEIR's form",
        "  query_prefix: ''  # put before every query; E5: ",
        "  mode: follow  # ",
    ):
        assert any(one.startswith(line) for one in lines), line
    assert "source:" in lines and "  follow_links: false" in lines  # a choice of somebody's own has no comments here
    assert not any("_target_" in line for line in lines)


def test_every_stage_has_a_choice_and_every_run_is_tried_here() -> None:
    assert {path.parent.name for path in CHOICES} == set(STAGES)
    assert {path.stem for path in (conf_dir() / "run").glob("*.yaml")} == set(NEEDED)


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_every_run_composes_and_builds(name: str) -> None:
    run = built(f"+run={name}", *NEEDED[name])
    assert run.settings.metrics


def test_the_msmarco_run_takes_a_device() -> None:
    assert built("+run=msmarco", "device=cuda:1").settings.device == "cuda:1"
    with pytest.raises(ConfigError, match="device: expected one device, .* several are engine=ray engine.workers=2"):
        built("+run=msmarco", "device=[cuda:0,cuda:1]")


def test_several_processes_with_ray_share_a_cluster_and_say_how_much_of_it_each_takes() -> None:
    wanted = ("dataset=pydoc", "source.path=x", "engine=ray", "watch.at_once=2")
    with pytest.raises(ConfigError) as caught:
        built(*wanted)
    assert [line.split(":")[0] for line in caught.value.problems] == ["engine.address", "engine.workers"]
    assert built(*wanted, "engine.address=auto", "engine.workers=4").watch.at_once == 2
    assert built("dataset=pydoc", "source.path=x", "watch.at_once=2").watch.at_once == 2


def test_a_sweep_on_slurm_has_a_launcher_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="Hydra's submitit launcher is not installed")
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = compose("config", ["dataset=pydoc", "hydra/launcher=slurm"], return_hydra_config=True)
    launcher = config.hydra.launcher
    assert launcher._target_.endswith(".SlurmLauncher")
    assert (launcher.nodes, launcher.tasks_per_node, launcher.timeout_min) == (1, 1, 240)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert explain_sweep(["-m", "+run=msmarco", "source.project=x", "seed=1,2", "hydra/launcher=slurm"]) is None


def test_the_first_choices_are_the_documented_defaults() -> None:
    run = built("source.path=x", "dataset=pydoc")
    assert (run.settings.seed, run.settings.top_k) == (13, 100)
    assert run.settings.metrics == ("mrr@10", "ndcg@10", "recall@100")
    assert (run.watch.mode, run.watch.order, run.watch.poll_s, run.watch.max_attempts) == ("follow", "newest_first", 30, 3)


def test_all_problems_come_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        built(
            "dataset=pydoc",
            "encoder.pooling=men",
            "+index.metrc=l2",
            "watch.poll_s=abc",
            "metrics=[ndgc@10]",
            "sampler=random",
            "sampler.fraction=2",
        )
    message = str(caught.value)
    assert message.startswith("6 problems in the configuration:")
    for part in (
        "source.path: required",
        "encoder.pooling: ",
        "'men'",
        "index.metrc: the chosen index has no such key",
        "watch.poll_s: ",
        "(got 'abc')",
        "metrics.0: ",
        "sampler.fraction: ",
    ):
        assert part in message


def test_keys_that_do_not_exist_are_named_with_all_other_problems() -> None:
    wrong = [
        "dataset=pydoc",
        "watch.pol_s=3",
        "source.path=x",
        "sampler.fraction=0.1",
        "encoder.pooling=men",
        "tracker.api_key=0123456789abcdef",
    ]
    with pytest.raises(ConfigCompositionException) as caught:
        composed(*wrong)
    message = explain(caught.value, wrong)
    assert message.startswith("4 problems in the configuration:")
    for part in (
        "watch.pol_s: there is no such key; did you mean watch.poll_s?",
        "sampler.fraction: sampler=full has no such key",
        "tracker.api_key: tracker=wandb has no such key; it has entity, project",
        "encoder.pooling: Input should be",
    ):
        assert part in message
    assert "0123456789abcdef" not in message


def test_what_an_experiment_set_for_another_choice_than_the_typed_one_is_left_out() -> None:
    typed = ["+run=demo", "sampler=full", "tracker=none"]
    config, left_out = as_chosen(composed(*typed), typed)
    assert left_out == ["sampler.fraction", "tracker.mode", "tracker.project"]
    assert build(config).settings.metrics
    assert as_chosen(composed("+run=demo"), ["+run=demo"]) == (composed("+run=demo"), [])


def test_a_key_that_was_typed_for_another_choice_is_a_mistake_all_the_same() -> None:
    typed = ["+run=demo", "sampler=full", "sampler.fraction=0.5"]
    config, left_out = as_chosen(composed(*typed), typed)
    assert not left_out
    with pytest.raises(ConfigError, match=r"sampler.fraction: the chosen sampler has no such key; leave it out"):
        build(config)


def test_one_name_where_a_list_is_expected_is_shown_as_a_list() -> None:
    with pytest.raises(ConfigError, match=r"metrics: expected a list, e.g. metrics=\[mrr@10\] \(got 'mrr@10'\)"):
        built("source.path=x", "dataset=pydoc", "metrics=mrr@10")


def test_a_cutoff_deeper_than_top_k_is_refused() -> None:
    with pytest.raises(ConfigError, match="top_k: got 100, but metrics reach down to 1000"):
        built("source.path=x", "dataset=pydoc", "metrics=[recall@1000]")


def test_a_class_from_elsewhere_is_never_imported() -> None:
    with pytest.raises(ConfigError, match=r"index._target_: got 'os.system', expected a class of dr_validate.index"):
        build({**composed("source.path=x", "dataset=pydoc"), "index": {"_target_": "os.system"}})


def test_a_secret_in_the_wrong_place_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        built("source.path=x", "dataset=pydoc", "+tracker.api_key=0123456789abcdef")
    assert "tracker.api_key" in str(caught.value)
    assert "0123456789abcdef" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "dr_validate validates dense-retrieval checkpoints"),
        (["--help", "sampler=stratified"], 0, "\n  pool_share: 0.7  # share for the pool, of what is left"),
        (["--cfg", "job", "+run=demo"], 0, "fraction: 0.1"),
        (["sampler=nonsense"], 2, "  sampler: got 'nonsense', expected one of full, random, run_pool, stratified"),
        (["+run=nonsense"], 2, "  run: got 'nonsense', expected one of beir, beir_suite, cqadupstack, demo,"),
        (["nonsense=1"], 2, "  nonsense: there is no such key"),
        (["run=demo"], 2, "use +run=demo"),
        (["source.path=x", "dataset=pydoc", "encoder.dtype=float8"], 2, "1 problem in the configuration:\n  encoder.dtype"),
        (["-m", "source.path=x", "sampler=full,random", "watch.mode=follow"], 2, "(-m), which implies watch.mode=once"),
    ],
    ids=["help", "help-of-a-choice", "cfg", "choice", "run", "key", "plus", "value", "follow-in-multirun"],
)
def test_questions_and_mistakes_are_answered_without_loading_anything(
    arguments: list[str], code: int, said: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "dr_validate", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == code, result.stderr[-2000:]
    assert said in result.stdout + result.stderr
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert not imported & {"torch", "faiss", "transformers", "wandb", "pyarrow", "ranx"}
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.rglob("*.log"))


@pytest.mark.parametrize("arguments", [[], ["-m", "source.path=x", "dataset=pydoc", "sampler=full,random"]])
def test_an_interrupt_ends_with_one_line(tmp_path: Path, arguments: list[str]) -> None:
    interrupt = "event == 'open' and str(of[0]).endswith('config.yaml') and signal.raise_signal(signal.SIGINT)"
    handled = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell starts what is in its background without
    start = f"import signal, sys; from dr_validate.__main__ import main; {handled}"
    code = f"{start}; sys.addaudithook(lambda event, of: {interrupt}); main()"
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 130
    assert result.stderr == "interrupted: ended at once; the next start goes on from what is saved\n"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sampler=random,stratifed"], "sampler: got 'stratifed', expected one of full, random, run_pool, stratified"),
        (["sampler=random", "sampler.fractoin=0.1,0.2"], "sampler=random has no such key; did you mean sampler.fraction?"),
        (["sampler=full", "sampler.fraction=0.1,0.2"], "sampler.fraction: sampler=full has no such key"),
        (
            ["sampler=full,random", "sampler.fractoin=0.1"],
            "sampler.fractoin: none of sampler=full,random has such a key; did you mean sampler.fraction?",
        ),
        (["sampler=full,stratifed", "sampler.fraction=0.1"], "sampler: got 'stratifed', expected one of full, random"),
        (["sampler=full,random", "sampler.fraction=0.1", "nonsense=1"], "  nonsense: there is no such key"),
        (["metrics=[mrr@10],[ndcg@10]", "watch.mod=once"], "watch.mod: there is no such key; did you mean watch.mode?"),
        (["seed=1,x"], "unable to parse string as an integer (got 'x'), with seed=x"),
        (["encoder.pooling=mean,men", "seed=1,2"], "(got 'men'), with encoder.pooling=men"),
        ([f"state_dir={__file__}", "seed=1,2"], "test_conf.py', a file; set it to a folder"),
        (["sampler=random", "sampler.fraction=0.06,2"], "(got 2), with sampler.fraction=2"),
    ],
)
def test_a_mistake_in_any_job_of_a_sweep_is_named_before_the_first_is_launched(overrides: list[str], said: str) -> None:
    message = explain_sweep(["-m", "source.path=x", "dataset=beir", "dataset.path=y", *overrides])
    assert message is not None
    assert said in message
    assert explain_sweep(["source.path=x", *overrides]) is None  # no sweep: Hydra composes at once


def test_a_value_that_is_wrong_in_every_job_of_a_sweep_is_told_once() -> None:
    message = explain_sweep(["-m", "source.path=x", "dataset=beir", "dataset.path=y", "top_k=0", "seed=1,2"])
    assert message is not None
    first, *others = message.splitlines()[1:]
    assert first == "  top_k: Input should be greater than or equal to 1 (got 0)"
    assert [one.split(";")[0] for one in others] == ["  dataset.path: y does not exist"]


def test_sweeps_that_compose_are_let_through() -> None:
    good = ["-m", "+run=msmarco", "sampler=random,run_pool", "source.project=x", "seed=range(1,3)"]
    assert explain_sweep([*good, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]) is None


def test_a_key_that_the_default_choice_lacks_may_be_set_for_all_choices_of_a_sweep() -> None:
    for choices in ("sampler=random,stratified", "sampler=full,random,stratified"):
        sweep = ["-m", choices, "sampler.fraction=0.1", "seed=1", "dataset=beir"]
        assert explain_sweep([*sweep, "source.path=x", "dataset.path=y"]) is None
    sweep = ["-m", "sampler=random,stratified", "sampler.fraction=0.1", "seed=1", "dataset=beir"]
    assert for_every_job(sweep) == ["-m", "sampler=random,stratified", "++sampler.fraction=0.1", "seed=1", "dataset=beir"]
    for as_it_is in (
        sweep[1:],  # no sweep
        ["-m", "sampler=random", "sampler.fraction=0.1", "seed=1,2"],  # the choice is the same for all
        ["-m", "sampler=random,stratified", "sampler.fraction=0.1,0.2", "++sampler.x=1", "~tracker"],
        ["-m", "seed=["],
    ):
        assert for_every_job(as_it_is) == as_it_is


@pytest.mark.parametrize(
    ("swept", "expected"),
    [
        (
            ["sampler=full,random,stratified", "++sampler.fraction=0.1"],
            [
                ["sampler=full"],
                ["sampler=random", "sampler.fraction=0.1"],
                ["sampler=stratified", "sampler.fraction=0.1"],
            ],
        ),
        (
            ["sampler.fraction=0.05,0.1", "sampler=random,full"],
            [["sampler.fraction=0.05", "sampler=random"], ["sampler=full"], ["sampler.fraction=0.1", "sampler=random"]],
        ),
        (["index=flat,factory", "++index.spec=IVF8"], [["index=flat"], ["index=factory", "index.spec=IVF8"]]),
        (
            ["+run=msmarco,nq", "++dataset.path=here", "++dataset.id=there"],
            [["+run=msmarco", "dataset.path=here"], ["+run=nq", "dataset.id=there"]],
        ),
        (
            ["+run=demo", "sampler=full,random"],
            [["+run=demo", "sampler=full"], ["+run=demo", "sampler=random"]],
        ),
        (["sampler=random,random,full,full"], [["sampler=random"], ["sampler=random"], ["sampler=full"], ["sampler=full"]]),
        (["sampler=full,random", "++sampler.x=1"], [["sampler=full", "++sampler.x=1"], ["sampler=random", "++sampler.x=1"]]),
        (["sampler=full", "sampler.fraction=0.1,0.2"], [["sampler=full", f"sampler.fraction={n}"] for n in (0.1, 0.2)]),
    ],
)
def test_a_job_of_a_sweep_is_told_only_what_its_choices_have_a_key_for_and_no_job_runs_twice_for_it(
    swept: list[str], expected: list[list[str]]
) -> None:
    values = [[f"{key}={value}" for value in values.split(",")] for key, _, values in (one.partition("=") for one in swept)]
    jobs = jobs_as_run([list(job) for job in itertools.product(*values)], lambda choices: composed(*choices))
    assert jobs == expected


def test_what_sweeps_have_in_common_takes_no_composing() -> None:
    def compose(choices: tuple[str, ...]) -> dict[str, Any]:
        raise AssertionError(choices)

    for jobs in ([["seed=1", "source.path=x"], ["seed=2", "source.path=x"]], [["sampler=full", "top_k=9"], ["sampler=random"]]):
        assert jobs_as_run(jobs, compose) == jobs


@pytest.mark.parametrize(
    "overrides",
    [
        ["source.path=${hydra:runtime.cwd}/ckpt"],  # what only a job knows
        ["source.path=${oc.env:ONLY_THERE}"],
        ["hydra.searchpath=[file:///somewhere]", "+run=mine"],
        ["--config-dir", "somewhere", "+run=mine"],
        ["seed=range(0)"],
        ["++hydra.sweeper.params.sampler=stratified,random"],
        ["seed=["],
    ],
)
def test_what_it_takes_hydra_to_know_is_left_to_hydra(overrides: list[str]) -> None:
    assert explain_sweep(["-m", "seed=1,2", *overrides]) is None


def test_values_that_a_file_of_ones_own_has_for_jobs_are_left_to_hydra(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.yaml").write_text("# @package _global_\nhydra: {sweeper: {params: {dataset: 'pydoc,beir'}}}\n")
    assert explain_sweep(["-m", "--config-dir", str(tmp_path), "+run=mine", "source.path=x", "seed=1,2"]) is None
