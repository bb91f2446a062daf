"""What a person types: quoting, paths, sweeps, suggestions; answered before anything runs."""

import dataclasses
import errno
import importlib
import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf, open_dict
from pydantic import TypeAdapter

from dr_validate.cli.grammar import explain_grammar, explain_own_files, with_overrides_first
from dr_validate.cli.overrides import composed as compose_with
from dr_validate.cli.overrides import explain, explain_sweep, for_open_keys
from dr_validate.cli.run import run_job, show_report
from dr_validate.cli.status import show_status
from dr_validate.cli.sweep import SweepStart
from dr_validate.config import ReportSettings, Settings, Watch, build, conf_dir, state_dir_of
from dr_validate.errors import ConfigError, SetupError
from dr_validate.files import expanded
from dr_validate.process import SETUP_IS_WRONG
from dr_validate.watcher.lock import claim, holder
from tests.factories import CHOICES, choice, composed

AWKWARD = [
    "/x/lr=1e-5",
    "/x/a,b",
    "/x/{a}",
    "/x/[1]",
    "/x/(1)",
    "~/out",
    "/x/it's",
    '/x/a"b',
    "/x/#1",
    "/x/a;b",
    "x=\\",
    'x="\\"',
]


@pytest.mark.parametrize("path", AWKWARD)
def test_a_path_that_means_something_to_hydra_comes_back_in_quotes_that_work(path: str) -> None:
    keys, arguments = ("source.path", "state_dir", "+sampler.run"), []
    for key in keys:
        message = explain_grammar([f"{key}={path}"])
        assert message is not None
        assert message.startswith(f"1 problem in the configuration:\n  {key.lstrip('+')}: got {path}, which ")
        typed = message.partition("goes in quotes: ")[2].partition(", a list in brackets")[0]
        arguments += shlex.split(typed)
    assert len(arguments) == len(keys)
    found: Any = composed(*arguments, "sampler=full", "dataset=pydoc")
    assert found["source"]["path"] == found["state_dir"] == found["sampler"]["run"] == path


@pytest.mark.parametrize(
    ("typed", "options", "overrides"),
    [
        ("+run=demo -m sampler=random,full", "-m", "+run=demo sampler=random,full"),
        ("a=b --config-dir own c=d --cfg job ~e", "--config-dir own --cfg job", "a=b c=d ~e"),
        ("a=b --foo=c", "--foo=c", "a=b"),
        ("a=1 --info", "--info", "a=1"),
        ("--info defaults a=1 -m a=2 a=1", "--info defaults -m", "a=1 a=2 a=1"),
        ("--config-dir a=b a=b", "--config-dir a=b", "a=b"),
        ("-m -- a=1", "-m", "a=1"),
        ("", "", ""),
    ],
)
def test_options_may_stand_anywhere_and_overrides_keep_their_order(typed: str, options: str, overrides: str) -> None:
    ordered = with_overrides_first(typed.split())
    assert ordered == [*overrides.split(), *options.split()]
    assert get_args_parser().parse_known_args(ordered)[0].overrides == overrides.split()  # as Hydra reads them


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--state_dir=x", "--state_dir: no such option (--hydra-help lists them); a key is given without dashes: state_dir=x"),
        ("--api_key=planted", "a key is given without dashes: api_key=VALUE"),
        ("status", "status: expected KEY=VALUE; did you mean task=status?"),
        ("sampler", "sampler: expected KEY=VALUE; did you mean sampler=VALUE?"),
        ("words", "words: expected KEY=VALUE, GROUP=CHOICE or +run=NAME; a value with spaces goes in quotes"),
        ("task=stauts", "got 'stauts', expected one of validate, status, doctor, report, dashboard; did you mean status?"),
        ("task=", "task: got '', expected one of validate"),
        ("sampler=null", "sampler: got null, expected one of full, random, run_pool, stratified"),
        ("+run=5", "run: got 5, expected one of beir, beir_suite"),
        ("index={a:1}", "index: got {a:1}, expected one of factory, flat, torch"),
        ("sampler=[random,full]", "stratified; several are a sweep: -m sampler=random,full"),
    ],
)
def test_what_is_no_option_no_key_and_no_choice_is_told_with_what_was_meant(typed: str, said: str) -> None:
    message = explain_grammar([typed, "seed=3"])
    assert message is not None and message.startswith("1 problem in the configuration:") and said in message
    assert "planted" not in message


OWN = "# @package _global_\n"


@pytest.mark.parametrize(
    ("typed", "name", "text", "said"),
    [
        (
            "dataset=own",
            "dataset/own",
            "path: nq",
            "no `_target_`, so it names no class; add a line such as `_target_: dr_validate",
        ),
        ("dataset=own", "dataset/own", "", "or one that builds on a choice: `defaults: [beir]`"),
        ("sampler=own,full", "sampler/own", "pool_share: 0.5", "`_target_: dr_validate.sampler.stratified.StratifiedSampler`"),
        ("dataset=beir", "dataset/beir", "path: nq", "is never read, for dataset=beir is a choice of dr_validate"),
        (
            "+run=own",
            "run/own",
            "dataset: {path: nq}",
            "no `# @package _global_`, so its keys would be those of run; make that",
        ),
        ("+run=own", "run/own", f"# mine\n{OWN}seed: 3", "no `# @package _global_`"),
        ("+exp=own", "exp/own", "words", "no `# @package _global_`, so its keys would be those of exp"),
        (
            "+run=own",
            "run/own",
            f"{OWN}defaults: [dataset: beir]",
            "got `- dataset: beir` in its defaults, expected `- override",
        ),
        ("+run=own", "run/own", f"{OWN}defaults: [override dataset: beir]", "expected `- override /dataset: beir`"),
        (
            "+run=own",
            "run/own",
            f"{OWN}dataset: beir",
            "got `dataset: beir`, expected `- override /dataset: beir` in its defaults",
        ),
        ("+run=own", "run/own", f"{OWN}defaults: beir", "got `defaults: beir`, expected a list, `defaults: [beir]`"),
        ("+run=own", "run/own", f"\ufeff{OWN}seed: 3", "begins with a byte order mark, after which Hydra sees no `# @package`"),
        (
            "sampler=own",
            "sampler/own",
            "# gr\udcf6\udcdfe",
            "not text in UTF-8 (invalid start byte at byte 4); save it as UTF-8",
        ),
    ],
)
def test_a_file_of_ones_own_that_lacks_a_line_is_named_with_the_line(
    tmp_path: Path, typed: str, name: str, text: str, said: str
) -> None:
    path = tmp_path / f"{name}.yaml"
    path.parent.mkdir()
    path.write_bytes(text.encode(errors="surrogateescape"))
    message = explain_own_files(["--config-dir", str(tmp_path), typed, "seed=3"])
    assert message is not None and message.startswith(f"1 problem in the configuration:\n  {path}: ") and said in message


@pytest.mark.parametrize(
    ("typed", "files", "key", "value"),
    [
        ("+watch=own", {"watch/own": "poll_s: 5"}, "watch.poll_s", 5),  # a section, not an experiment
        ("+run=mine/beir", {"run/mine/beir": f"{OWN}seed: 3"}, "seed", 3),
        ("sampler=random", {"sampler/random": (conf_dir() / "sampler" / "random.yaml").read_text()}, "seed", 13),
        (
            "sampler=own",
            {"sampler/own": f"{OWN}sampler: {{_target_: my_package.Own}}"},
            "sampler._target_",
            "my_package.Own",
        ),
        (
            "+run=own",
            {"run/own": f"{OWN}defaults: [encoder: e5]", "run/encoder/e5": f"{OWN}encoder: {{pooling: cls}}"},
            "encoder.pooling",
            "cls",
        ),
        (
            "+run=own",
            {"run/own": f"{OWN}defaults: [/my/encoder: e5]", "my/encoder/e5": f"{OWN}encoder: {{pooling: cls}}"},
            "encoder.pooling",
            "cls",
        ),
        ("+run=own", {"run/own": f"{OWN}defaults: [/a@encoder: e5]", "a/e5": "pooling: cls"}, "encoder.pooling", "cls"),
        ("+run=own", {"run/own": f"{OWN}defaults: [optional /a: none, override /index: torch]\nseed: 3"}, "seed", 3),
    ],
)
def test_what_hydra_composes_of_ones_own_files_is_let_through(
    tmp_path: Path, typed: str, files: Mapping[str, str], key: str, value: Any
) -> None:
    for name, text in files.items():
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert explain_own_files(["--config-dir", str(tmp_path), typed]) is None
    config, error = compose_with(["dataset=pydoc", typed], str(tmp_path))
    assert error is None
    assert OmegaConf.select(OmegaConf.create(config), key) == value


def test_two_questions_at_a_time_are_refused_as_hydra_would_with_a_traceback() -> None:
    message = str(explain_grammar(["-m", "--cfg", "job", "seed=1,2"]))
    assert message.endswith("--multirun and --cfg: expected one of them at a time")
    assert explain_grammar(["--cfg", "job", "--resolve", "-p", "watch", "+run=[demo,own]"]) is None


def test_a_task_from_the_environment_is_let_through() -> None:
    assert explain_grammar(["task=${oc.env:TASK,status}"]) is None


def test_files_of_ones_own_that_lack_nothing_are_let_through_and_those_that_they_choose_are_looked_at(tmp_path: Path) -> None:
    for group in ("run", "dataset"):
        (tmp_path / group).mkdir()
    (tmp_path / "run" / "own.yaml").write_text(f"{OWN}# mine\ndefaults:\n  - override /dataset: own\n  - _self_\n")
    (tmp_path / "dataset" / "own.yaml").write_text("defaults: [beir]\npath: nq\n")
    typed = ["--config-dir", str(tmp_path), "+run=own"]
    assert explain_own_files(typed) is None
    (tmp_path / "dataset" / "own.yaml").write_text("path: nq\n")
    assert "dataset/own.yaml: no `_target_`" in str(explain_own_files(typed))
    assert explain_own_files(typed[2:]) is None


def test_a_key_of_another_choice_says_which_have_it() -> None:
    with pytest.raises(ConfigCompositionException) as caught:
        composed("sampler.fraction=0.5")
    said = explain(caught.value, ["sampler.fraction=0.5", "source.path=x", "dataset=pydoc", "tracker=none"])
    assert "sampler.fraction: sampler=full has no such key; it is one of sampler=random,run_pool,stratified" in said


def test_a_key_that_was_added_by_mistake_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        build(composed("source.path=x", "dataset=pydoc", "+watch.mod=once", "+foo=3"))
    assert "watch.mod: the chosen watch has no such key; did you mean mode? Or leave it out" in str(caught.value)
    assert "foo: there is no such key; leave it out" in str(caught.value)


def test_a_word_in_place_of_a_section_is_named(tmp_path: Path) -> None:
    config = {**composed("source.path=x", "dataset=pydoc"), "watch": "once", "report": "page.html", "metrics": None}
    with pytest.raises(ConfigError) as caught:
        build(config)
    assert "watch: got 'once', expected keys of its own, such as watch.mode=VALUE" in str(caught.value)
    assert "report: got 'page.html', expected keys of its own, such as report.out=VALUE" in str(caught.value)
    assert "metrics: expected a list, e.g. metrics=[A,B] (got None)" in str(caught.value)


def test_a_sweep_on_slurm_without_slurm_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = explain_sweep(["-m", "hydra/launcher=slurm", "dataset=pydoc", "seed=1,2"])
    assert said == "hydra/launcher: got 'slurm', but no srun is on the PATH; start it where Slurm is, or leave it out"


def test_values_that_hydra_reads_are_let_through() -> None:
    assert explain_grammar(["source.path=/x/a b:c%d@e", "metrics=[mrr@10,ndcg@10]", "~sampler.fraction", "+run=demo"]) is None
    assert explain_grammar(["-m", "sampler=full,random", "seed=range(1,3)"]) is None


def test_a_comma_without_a_sweep_may_have_meant_a_list() -> None:
    message = explain_grammar(["metrics=mrr@10,ndcg@10"])
    assert message is not None
    (argument,) = shlex.split(message.partition("a list in brackets: ")[2])
    assert composed(argument)["metrics"] == ["mrr@10", "ndcg@10"]


def test_all_unreadable_values_are_named_at_once_and_a_secret_is_not_shown() -> None:
    message = explain_grammar(["source.path=/x/a=b", "tracker.api_key=abc=def", "dataset.path=/y/a=b"])
    assert message is not None
    assert message.startswith("3 problems in the configuration:")
    assert "abc" not in message


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "dataset.members.a/b=x",
            "dataset.members.a/b: no key may have such a name; give one of letters, digits, _ and - alone",
        ),
        ("dataset.members.ä=x", "dataset.members.ä: no key may have such a name"),
        ("+encoder.po oling=cls", "encoder.po oling: no key may have such a name"),
        ("source.metadata.train/loss=3", "'train/loss' is written as 'source.metadata={train/loss: 3}'"),
        ("source.metadata.my/api_key=planted", "source.metadata.my/api_key: no key may have such a name"),
    ],
)
def test_a_key_with_a_name_that_no_key_may_have_is_named_and_not_its_value(typed: str, said: str) -> None:
    message = explain_grammar(for_open_keys([typed]))
    assert message is not None and said in message and "planted" not in message and "one text goes in quotes" not in message


def test_a_bracket_that_is_left_open_is_no_path() -> None:
    message = explain_grammar(["metrics=[mrr@10"])
    assert message is not None
    assert "metrics: got [mrr@10" in message
    assert "is a bracket or a quote missing" in message


def test_without_a_data_set_the_choices_are_named() -> None:
    with pytest.raises(
        ConfigError, match="dataset: required, no default; choose one of dataset=beir, dataset=dpr, dataset=hub"
    ):
        build(composed("source.path=x"))


@pytest.mark.parametrize("more", [[], ["--cfg", "job"]])
def test_a_key_of_a_data_set_that_is_not_chosen_asks_for_the_choice_once(more: list[str]) -> None:
    arguments = ["source.path=x", "dataset.path=y", "dataset.split=dev", "tracker=none"]
    with pytest.raises(ConfigCompositionException) as caught:
        composed(*arguments)
    message = explain(caught.value, [*arguments, *more])
    assert message.startswith("1 problem in the configuration:\n  dataset: required, no default; choose one of dataset=beir")


def test_own_configurations_get_suggestions_too(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    own = "# @package _global_\ndefaults:\n  - override /dataset: beir\ndataset:\n  path: x\n"
    (tmp_path / "run" / "mine.yaml").write_text(own)
    arguments = ["--config-dir", str(tmp_path), "+run=mine", "source.path=x", "tracker=none"]
    with pytest.raises(ConfigCompositionException) as caught:
        composed("watch.pol_s=3")
    said = "watch.pol_s: there is no such key; did you mean watch.poll_s?"
    assert said in explain(caught.value, [*arguments, "watch.pol_s=3"])
    assert said in str(explain_sweep(["-m", *arguments, "watch.pol_s=3,4"]))
    assert explain_sweep(["-m", *arguments, "seed=3,4"]) is None


def test_a_file_of_ones_own_that_is_no_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.yaml").write_text("# @package _global_\ntracker: none\n  foo: 1\n")
    said = str(explain_sweep(["-m", "--config-dir", str(tmp_path), "+run=mine", "seed=3,4"]))
    assert "mapping values are not allowed here" in said and f'{tmp_path}/run/mine.yaml", line 3' in said


def test_a_sweep_that_would_follow_is_refused_and_one_that_says_nothing_is_not() -> None:
    sweep = ["-m", "source.path=x", "dataset=pydoc", "sampler=full,run_pool", "task=doctor"]
    assert explain_sweep(sweep) is None
    for mode in ("watch.mode=follow", "++watch.mode=once,follow"):
        assert "watch.mode: got 'follow', which never ends, in a multirun (-m)" in str(explain_sweep([*sweep, mode]))


def test_a_sample_that_is_too_small_is_named_before_the_first_job_of_a_sweep(collection: Path, tmp_path: Path) -> None:
    sweep = ["-m", "source.path=x", "dataset=beir", f"dataset.path={collection}", f"state_dir={tmp_path / 'state'}"]
    for sampler in ("random", "run_pool", "stratified"):
        message = explain_sweep([*sweep, f"sampler={sampler}", "sampler.fraction=0.9,0.1"])
        assert message is not None, sampler
        assert message.startswith("sampler.fraction: got 0.1, which is 5 of 48 documents")
    assert explain_sweep([*sweep, "sampler=random", "sampler.fraction=0.9,0.5"]) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--resolve", "--resolve: fills in what another option shows; give --cfg job"),
        ("--experimental-rerun foo.pickle", "--experimental-rerun: got 'foo.pickle', expected a file config.pickle"),
        ("-sc query=bash", "--shell-completion: query=bash is what a shell asks at the Tab key; give install=bash"),
        ("-sc", "--shell-completion: expected one install=SHELL or uninstall=SHELL, with one of bash"),
        ("-sc install=tcsh", "--shell-completion: expected one install=SHELL"),
    ],
)
def test_options_of_hydra_that_lack_something_are_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COMP_LINE", raising=False)
    assert said in str(explain_grammar(options.split()))
    monkeypatch.setenv("COMP_LINE", "dr_validate ta")
    (tmp_path / "config.pickle").touch()
    for good in ("--resolve --cfg job", "--experimental-rerun config.pickle", "-sc query=bash", "-sc install=bash"):
        assert explain_grammar(good.split()) is None


def fields() -> list[tuple[str, str, Any]]:
    """Choice, key and type of every value that may be a path."""
    classes = [choice(path)["_target_"].rpartition(".") for path in CHOICES]
    named = {f"{module}.{name}": getattr(importlib.import_module(module), name) for module, _, name in classes}
    named |= {"Settings": Settings, "Watch": Watch, "ReportSettings": ReportSettings}
    found = [(name, field.name, field.type) for name, cls in named.items() for field in dataclasses.fields(cls)]
    return [(name, key, kind) for name, key, kind in found if "Path" in str(kind)]


def test_the_home_of_the_user_stands_for_itself_in_every_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = fields()
    assert {key for _, key, _ in found} >= {"path", "state_dir", "stop_file", "out", "dir", "corpus", "tokenizer", "base_model"}
    for name, key, kind in found:
        assert TypeAdapter(kind).validate_python("~/x") == tmp_path / "x", f"{name}: {key}"
        with pytest.raises(ValueError, match="an empty path"):
            TypeAdapter(kind).validate_python("")


def test_names_that_may_be_paths_know_the_home_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run: Any = build(
        composed("source.path=x", "dataset=hub", 'dataset.id="~/nq"', "sampler=run_pool", 'sampler.run="~/a.trec"')
    )
    assert (run.dataset.id, run.sampler.run) == (f"{tmp_path}/nq", f"{tmp_path}/a.trec")
    run = build(composed("source.path=x", "dataset=pydoc", "sampler=stratified", 'sampler.pool=[bm25,"~/a.trec"]'))
    assert run.sampler.pool == ("bm25", f"{tmp_path}/a.trec")


def test_the_state_dir_is_the_same_for_every_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = composed('state_dir="~/state"', 'source.path="~/x"', "dataset=pydoc")
    assert state_dir_of(config) == build(config).settings.state_dir == tmp_path / "state"


@pytest.mark.parametrize("task", [show_status, show_report])
def test_a_task_that_only_reads_names_a_state_dir_that_is_not_there_and_makes_none(
    task: Callable[[Mapping[str, Any]], int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (file := tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=r"state_dir: got 'nowhere', but there is no folder /.*/nowhere; set it to the folder"
    ):
        task({"state_dir": "nowhere"})
    with pytest.raises(ConfigError, match="file', which is no folder; set it to the folder that task=validate wrote to"):
        task({"state_dir": str(file)})
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ConfigError, match=r"which user \d+ may not look into; run as its owner"):
        task({"state_dir": str(tmp_path)})
    assert list(tmp_path.iterdir()) == [file]


def test_a_state_dir_without_a_ledger_yet_is_no_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for files in ([], ["ledger.db"]):  # whoever made that one was killed before its first table
        for name in files:
            (tmp_path / name).touch()
        with caplog.at_level("INFO"):
            assert show_report({"state_dir": str(tmp_path)}) == show_status({"state_dir": str(tmp_path)}) == 0
        assert f"nothing has been validated in {tmp_path} yet" in caplog.text
        assert "Nothing has been validated in" in capsys.readouterr().out
        assert [path.name for path in tmp_path.iterdir()] == files


def test_a_home_that_nobody_knows_is_said() -> None:
    with pytest.raises(SetupError, match="got '~nobody-of-this-name/x', but the home that ~ stands for is not known"):
        expanded("~nobody-of-this-name/x")


def test_every_run_says_which_data_set_it_takes() -> None:
    for path in (conf_dir() / "run").glob("*.yaml"):
        assert "override /dataset: " in path.read_text(), path.name


def test_a_sweep_makes_no_folder_named_like_the_sign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = compose("config", ['state_dir="~/state"'], return_hydra_config=True)
    assert str(config.hydra.sweep.dir).startswith(f"{tmp_path}/state/multirun/")
    assert config.hydra.callbacks.sweep._target_ == f"{SweepStart.__module__}.SweepStart"  # whose module every job imports


def run_composed(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of the job that the command line would run."""
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = compose("config", overrides, return_hydra_config=True)
        monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        return run_job(config)


def test_a_variable_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    assert run_composed(["dataset=beir", "dataset.path=${oc.env:NOWHERE}"], monkeypatch) == SETUP_IS_WRONG
    said = capfd.readouterr().err
    assert "a value with ${...} cannot be filled in" in said and "variable 'NOWHERE' not found" in said


def test_a_state_dir_that_cannot_be_filled_in_is_named_before_a_sweep_makes_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = ["-m", "source.path=x", "dataset=beir", "dataset.path=y", "sampler=random", "sampler.fraction=0.1,0.2"]
    monkeypatch.delenv("NOWHERE", raising=False)
    message = explain_sweep([*sweep, "state_dir=${oc.env:NOWHERE}"])
    assert message is not None and "cannot be filled in" in message and "variable 'NOWHERE' not found" in message
    assert explain_sweep([*sweep, "state_dir=${dataset.path}/state"]) is None
    message = explain_sweep([*sweep, "state_dir=${hydra:runtime.cwd}/state"])
    assert message is not None and "state_dir: got ${hydra:...}, which is not known when a sweep (-m)" in message


def test_a_file_of_another_user_is_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(run: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/x/state/ledger.lock")

    monkeypatch.setattr("dr_validate.watcher.loop.watch", refuse)
    monkeypatch.setattr("dr_validate.cli.run.check_start", lambda run: None)
    overrides = ["dataset=beir", f"dataset.path={tmp_path}", f"source.path={tmp_path}", "tracker=none"]
    overrides += [f"state_dir={tmp_path}/state"]
    assert run_composed(overrides, monkeypatch) == SETUP_IS_WRONG
    assert "/x/state/ledger.lock: Permission denied, for user" in (said := capfd.readouterr().err)
    assert "set another one" in said


def test_who_holds_a_claim_can_be_asked_by_who_may_only_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []
    really: Any = Path.open

    def open_to_read(path: Path, mode: str = "r", *_: Any, **__: Any) -> Any:
        opened.append(mode)
        if set(mode) & set("wax+"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return really(path, mode)

    with claim(tmp_path, "spec", "2026-11-21T03:12:00Z"):
        monkeypatch.setattr(Path, "open", open_to_read)
        found = holder(tmp_path, "spec")
        monkeypatch.undo()
    assert found is not None
    assert found["pid"] == os.getpid()
    assert opened
