"""What is refused before a training begins, and how its results are called and compared."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from dr_validate.errors import ConfigError, SetupError
from dr_validate.integrations.checkpoints import BestSoFar, is_better, to_delete
from dr_validate.integrations.checks import ValidationSettings, check_trainer, keys_for, values_of
from dr_validate.integrations.child import child_environment
from dr_validate.integrations.transformers import AsyncValidation
from dr_validate.values import Checkpoint, Estimate, Report
from tests.integrations.tiny import STATED, learner


def report(
    value: float, *, low: float | None = None, high: float | None = None, digest: str = "sha256:a", **notes: Any
) -> Report:
    checkpoint = Checkpoint(name="c", version="c", digest=digest, step=1, step_from="folder name", created_at="", uri="")
    estimate = Estimate(value=value, low=value if low is None else low, high=value if high is None else high, naive=1.0)
    told = {"dataset": "d", "sampler": "full", "spec": "s", "status": "done", "at": "2026-11-21T03:12:00Z", "attempts": 1}
    given: dict[str, Any] = {**told, "metrics": {"mrr@10": estimate}, "corpus": {}, "seconds": {}, "notes": notes}
    return Report(checkpoint=checkpoint, **given)


@pytest.mark.parametrize(
    ("arguments", "settings", "named"),
    [
        ({"save_strategy": "no", "load_best_model_at_end": False}, {}, "save_strategy='no'"),
        ({"save_strategy": "best"}, {}, "save_strategy='best'"),
        ({"greater_is_better": False}, {}, "greater_is_better=False"),
        ({}, {"every": 0}, "every: got 0"),
        ({}, {"every": 5, "snapshot_folder": "/dev/null/x"}, "snapshot_folder: /dev/null/x cannot be made (Not a directory)"),
        ({}, {"backpressure": "some"}, "backpressure: got 'some'"),
        ({}, {"min_confidence": 95}, "min_confidence: got 95"),
        ({}, {"device": "cuda:1"}, "device: set twice"),
    ],
)
def test_settings_that_would_not_work_are_refused_at_attach_with_the_way_out(
    bert: Any, harder: Path, tmp_path: Path, arguments: Any, settings: Any, named: str
) -> None:
    trainer = learner(bert, harder, tmp_path / "out", **arguments)
    with pytest.raises(ConfigError) as caught:
        AsyncValidation([*STATED, f"dataset.path={harder}"], **settings).attach(trainer)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(named)


def test_one_string_is_no_list_of_overrides() -> None:
    with pytest.raises(ConfigError, match=r"overrides: got 'dataset=beir', expected a list of such"):
        AsyncValidation("dataset=beir")


def test_a_model_that_does_not_say_how_it_pools_is_refused_before_the_training(bert: Any, harder: Path, tmp_path: Path) -> None:
    overrides = [f"dataset.path={harder}", *(one for one in STATED if not one.startswith("encoder."))]
    with pytest.raises(ConfigError) as caught:
        AsyncValidation(overrides).attach(learner(bert, harder, tmp_path / "out"))
    lacking = [f"encoder.{key}: a BertModel does not say it; state it as in training" for key in ("pooling", "normalize")]
    assert caught.value.problems == tuple(lacking)


def test_a_state_dir_that_cannot_be_written_is_refused_before_the_training(bert: Any, harder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    overrides = [*STATED, f"dataset.path={harder}", f"state_dir={tmp_path / 'file' / 'state'}"]
    with pytest.raises(SetupError, match=r"state_dir .*/file/state: cannot be written .*; set state_dir to a folder that can"):
        AsyncValidation(overrides).attach(learner(bert, harder, tmp_path / "out"))


def test_a_sampler_that_knows_no_differences_cannot_be_sure_of_one(bert: Any, harder: Path, tmp_path: Path) -> None:
    overrides = [*STATED, f"dataset.path={harder}", "sampler=run_pool"]
    with pytest.raises(ConfigError, match="min_confidence: .*sampler=run_pool never says") as caught:
        AsyncValidation(overrides, min_confidence=0.95).attach(learner(bert, harder, tmp_path / "out"))
    assert len(caught.value.problems) == 1


def spread_over(*, fsdp: str = "", zero: dict[str, Any] | None = None, n_gpu: int = 1) -> Any:
    """What is asked of a trainer whose model is spread over devices."""
    args = SimpleNamespace(save_strategy="steps", metric_for_best_model=None, greater_is_better=None, n_gpu=n_gpu)
    fsdp_plugin = SimpleNamespace(state_dict_type=f"StateDictType.{fsdp}")
    deepspeed_plugin = SimpleNamespace(zero_stage=(zero or {}).get("stage"), deepspeed_config={"zero_optimization": zero})
    state = SimpleNamespace(fsdp_plugin=fsdp_plugin, deepspeed_plugin=deepspeed_plugin)
    parts = {"accelerator": SimpleNamespace(state=state), "model": SimpleNamespace()}
    enabled = {"is_fsdp_enabled": bool(fsdp), "is_deepspeed_enabled": zero is not None}
    return SimpleNamespace(args=args, callback_handler=SimpleNamespace(callbacks=[]), **parts, **enabled)


@pytest.mark.parametrize(
    ("spread", "settings", "named"),
    [
        ({"fsdp": "FULL_STATE_DICT"}, {}, ""),
        ({"fsdp": "SHARDED_STATE_DICT"}, {}, "FSDP saves its weights in parts (SHARDED_STATE_DICT)"),
        ({"fsdp": "FULL_STATE_DICT"}, {"every": 10}, "every: FSDP and DeepSpeed keep weights in parts"),
        ({"zero": {"stage": 2}}, {}, ""),
        ({"zero": {"stage": 2}}, {"every": 10}, "every: FSDP and DeepSpeed keep weights in parts"),
        ({"zero": {"stage": 3}}, {}, "DeepSpeed ZeRO-3 saves no whole weights; set stage3_gather_16bit"),
        ({"zero": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}}, {}, ""),
        ({"n_gpu": 2}, {"device": "cuda:1"}, "device=cuda:1: the Trainer spreads batches over all 2 GPUs (DataParallel)"),
        ({"n_gpu": 2}, {"device": "cpu"}, ""),
    ],
)
def test_weights_in_parts_are_refused_where_nothing_whole_would_be_validated(
    spread: dict[str, Any], settings: dict[str, Any], named: str
) -> None:
    given: dict[str, Any] = {"device": None, "every": None, "exit_timeout_s": 1, "backpressure": "all", "min_confidence": None}
    chosen = ValidationSettings(**given | settings, snapshot_folder=Path("/dev/shm"))
    if not named:
        check_trainer(spread_over(**spread), chosen, ["dataset=pydoc"], AsyncValidation)
        return
    with pytest.raises(ConfigError) as caught:
        check_trainer(spread_over(**spread), chosen, ["dataset=pydoc"], AsyncValidation)
    (problem,) = caught.value.problems
    assert problem.startswith(named)


def test_what_the_trainer_decides_is_not_to_be_set(bert: Any, harder: Path, tmp_path: Path) -> None:
    trainer = learner(bert, harder, tmp_path / "out")
    with pytest.raises(ConfigError) as caught:
        AsyncValidation([*STATED, "source.path=elsewhere", "watch.skip=never", "nonsense"]).attach(trainer)
    assert [one.partition(":")[0] for one in caught.value.problems] == ["source.path", "watch.skip", "nonsense"]


def test_a_wrong_key_and_a_data_set_that_is_not_there_are_refused_at_attach(bert: Any, harder: Path, tmp_path: Path) -> None:
    trainer = learner(bert, harder, tmp_path / "out")
    with pytest.raises(SetupError, match="encoder.pooling.*got 'men'"):
        AsyncValidation([*STATED, f"dataset.path={harder}", "encoder.pooling=men"]).attach(trainer)
    with pytest.raises(SetupError, match="nowhere"):
        AsyncValidation([*STATED, "dataset.path=nowhere"]).attach(trainer)


def test_an_adapter_needs_its_base_named_where_that_is_no_folder(bert: Any, harder: Path, tmp_path: Path) -> None:
    trainer = learner(bert, harder, tmp_path / "out")
    model: Any = trainer.model
    model.peft_config = {"default": SimpleNamespace(base_model_name_or_path="org/base")}
    with pytest.raises(ConfigError, match="encoder.base_model: .*'org/base' is no folder here"):
        AsyncValidation([*STATED, f"dataset.path={harder}"]).attach(trainer)


@pytest.mark.parametrize(
    ("wanted", "keys"),
    [
        (None, {"ndcg@10": "eval_ndcg@10", "hit_rate@1": "eval_hit_rate@1"}),
        ("ndcg@10", {"ndcg@10": "eval_ndcg@10", "hit_rate@1": "eval_hit_rate@1"}),
        ("eval_nq_dot_ndcg@10", {"ndcg@10": "eval_nq_dot_ndcg@10", "hit_rate@1": "eval_nq_dot_accuracy@1"}),
        ("nq_dot_accuracy@1", {"ndcg@10": "eval_nq_dot_ndcg@10", "hit_rate@1": "eval_nq_dot_accuracy@1"}),
    ],
)
def test_results_have_the_names_that_the_trainer_asks_for(wanted: str | None, keys: dict[str, str]) -> None:
    assert keys_for(SimpleNamespace(metric_for_best_model=wanted), ["ndcg@10", "hit_rate@1"]) == keys


def test_of_a_suite_the_mean_decides_whatever_it_is_called() -> None:
    suite, metrics = ("nq", "fiqa"), ["ndcg@10"]
    for wanted, key in ((None, "eval_mean_ndcg@10"), ("mean_ndcg@10", "eval_mean_ndcg@10"), ("ndcg@10", "eval_ndcg@10")):
        assert keys_for(SimpleNamespace(metric_for_best_model=wanted), metrics, suite) == {"ndcg@10": key}
    with pytest.raises(ConfigError, match="got 'eval_nq_ndcg@10', of nq alone; of a suite the mean decides: set mean_ndcg@10"):
        keys_for(SimpleNamespace(metric_for_best_model="eval_nq_ndcg@10"), metrics, suite)


def test_a_metric_that_is_not_computed_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 'loss', but what is computed is ndcg@10"):
        keys_for(SimpleNamespace(metric_for_best_model="loss"), ["ndcg@10"])


def test_an_estimate_comes_with_the_ends_of_its_interval() -> None:
    keys = {"mrr@10": "eval_mrr@10"}
    assert values_of(report(0.5), keys) == {"eval_mrr@10": 0.5}
    sampled = values_of(report(0.5, low=0.4, high=0.6), keys)
    assert sampled == {"eval_mrr@10": 0.5, "eval_mrr@10_low": 0.4, "eval_mrr@10_high": 0.6}


def difference(value: float, reach: float) -> dict[str, Any]:
    """As the estimator writes it: exact for these queries, and so far off for others."""
    return {"low": value, "high": value, "population": [value - reach, value + reach]}


def test_better_may_be_asked_to_be_sure(tmp_path: Path) -> None:
    best = report(0.50, digest="sha256:b")
    sure, unsure = (
        report(0.55, estimate={"metric": "mrr@10", "differences": {"sha256:b": difference(0.05, wide)}})
        for wide in (0.04, 0.08)
    )
    assert [is_better(one, best, "mrr@10", tmp_path, 0.95) for one in (sure, unsure)] == [True, False]
    assert [is_better(one, best, "mrr@10", tmp_path, None) for one in (sure, unsure)] == [True, True]
    assert not is_better(best, sure, "mrr@10", tmp_path, None)


def test_of_a_mean_the_queries_of_each_collection_are_held_against_their_own(tmp_path: Path) -> None:
    notes: Any = {"collections": {"a": "a-f", "b": "b-f"}}
    best, better = report(0.5, digest="sha256:b", **notes), report(0.53125, digest="sha256:c", **notes)
    values = {"a-f": [[0.5] * 10, [0.625, 0.4375] * 5], "b-f": [[0.5] * 10, [0.59375, 0.46875] * 5]}
    for spec, columns in values.items():
        for one, column in zip((best, better), columns, strict=True):
            path = tmp_path / "queries" / spec / f"{one.checkpoint.digest.replace(':', '-')}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            table = {"query_id": [str(n) for n in range(len(column))], "metric": ["mrr@10"] * len(column), "value": column}
            pyarrow.parquet.write_table(pyarrow.table(table), path)
    # Mean changes 1/32, standard errors 1/32 and 1/48: together 0.0313 with 0.0188, which is 1.66 of them.
    assert [is_better(better, best, "mrr@10", tmp_path, sure) for sure in (0.9, 0.95, 0.98)] == [True, True, False]


def test_the_watcher_takes_no_part_in_the_training() -> None:
    theirs = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1", "GROUP_RANK": "0"}
    theirs |= {"TORCHELASTIC_RUN_ID": "x", "ACCELERATE_USE_FSDP": "true", "WANDB_RUN_ID": "t1", "WANDB_SERVICE": "x"}
    ours = {"PATH": "/bin", "WANDB_API_KEY": "k", "WANDB_PROJECT": "p", "CUDA_VISIBLE_DEVICES": "0", "HF_HOME": "h"}
    assert child_environment({**theirs, **ours}) == ours
    assert child_environment(ours, "1")["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(
    ("limit", "kept", "going"),
    [(None, [], []), (1, [], [10, 20, 30]), (2, [20], [10, 30]), (1, [10, 30], [20]), (3, [], [10]), (1, [10, 20, 30], [])],
)
def test_the_oldest_go_but_never_the_newest_the_best_and_what_waits(
    limit: int | None, kept: list[int], going: list[int]
) -> None:
    assert to_delete([10, 20, 30, 40], limit, kept) == going


def test_what_is_not_surely_better_does_not_take_the_place_of_the_best(tmp_path: Path) -> None:
    so_far = BestSoFar(tmp_path, "mrr@10", tmp_path, 0.95)
    assert so_far.offer(report(0.50, digest="sha256:b"), 10)
    for step, wide, takes_it in ((20, 0.08, False), (30, 0.04, True)):
        estimate = {"metric": "mrr@10", "differences": {"sha256:b": difference(0.05, wide)}}
        better = report(0.55, digest=f"sha256:{step}", estimate=estimate)
        assert so_far.offer(better, step) is takes_it
    assert so_far.step == 30


def test_one_best_is_kept_and_none_where_it_is_a_saved_checkpoint(tmp_path: Path) -> None:
    so_far = BestSoFar(tmp_path, "mrr@10", tmp_path, None)
    kept = []
    for step, is_saved in ((5, False), (10, False), (15, True), (20, False)):
        (tmp_path / "snapshots" / str(step)).mkdir(parents=True)
        if is_saved:
            (tmp_path / f"checkpoint-{step}").mkdir()
        assert so_far.offer(report(step / 100), step)
        so_far.keep(tmp_path / "snapshots" / str(step))
        kept.append([path.name for path in tmp_path.glob("best-*")])
    assert kept == [["best-5"], ["best-10"], [], ["best-20"]]


def test_values_are_held_against_each_other_as_the_later_report_sees_both(tmp_path: Path) -> None:
    best, seen = report(0.50, digest="sha256:b", estimate={"sample": "s"}), {"sha256:b": {"mrr@10": [0.54, 0.5, 0.6]}}
    told = {"metric": "mrr@10", "sample": "s", "as_of": 1.0, "earlier": {"s": seen}}
    later = report(0.55, estimate={**told, "differences": {"sha256:b": {"population": [-0.02, 0.04]}}})
    assert not is_better(later, best, "mrr@10", tmp_path, 0.95)  # 0.01, and not 0.05, with 0.0153


def test_that_nothing_can_be_surely_better_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    worse, better = (report(value, low=0.0, high=value, digest=f"sha256:{value}") for value in (0.1, 0.9))
    bounds = [
        replace(one, metrics={"mrr@10": replace(one.metrics["mrr@10"], naive=one.metrics["mrr@10"].value)})
        for one in (worse, better)
    ]
    for one in bounds:
        path = tmp_path / "queries" / "s" / f"{one.checkpoint.digest.replace(':', '-')}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = {
            "query_id": [str(n) for n in range(10)],
            "metric": ["mrr@10"] * 10,
            "value": [one.metrics["mrr@10"].value] * 10,
        }
        pyarrow.parquet.write_table(pyarrow.table(table), path)
    assert not is_better(bounds[1], bounds[0], "mrr@10", tmp_path, 0.95)
    assert "is not known (it is an upper bound" in caplog.text
    exact = [report(value, digest=one.checkpoint.digest) for value, one in zip((0.1, 0.9), bounds, strict=True)]
    assert is_better(exact[1], exact[0], "mrr@10", tmp_path, 0.95)
    path.write_bytes(b"PAR1 and no more")
    assert not is_better(exact[1], exact[0], "mrr@10", tmp_path, 0.95)  # and the training goes on
    assert "cannot be read" in caplog.text
