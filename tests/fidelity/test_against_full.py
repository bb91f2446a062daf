from collections.abc import Sequence

import pytest
from omegaconf import OmegaConf

from dr_validate.fidelity.against_full import AgainstFull
from dr_validate.values import Checkpoint, Estimate, Report

METRIC = "mrr@10"


def report(number: int, value: float | None) -> Report:
    """Done with this value, or failed where it is None."""
    done = value is not None
    return Report(
        checkpoint=Checkpoint(
            name=f"checkpoint-{number}",
            version=f"v{number}",
            digest=f"sha256:{number}",
            step=number,
            step_from="folder name",
            created_at="2026-11-21T03:12:00Z",
            uri=f"file:///checkpoint-{number}",
        ),
        dataset="vaswani",
        sampler="random",
        spec="9f2c",
        status="done" if done else "failed",
        at="2026-11-21T03:15:10Z",
        error=None if done else "broken",
        metrics={METRIC: Estimate(value=value, low=0, high=1, naive=1)} if value is not None else {},
    )


def reports(values: Sequence[float | None]) -> list[Report]:
    return [report(number, value) for number, value in enumerate(values)]


def test_bias_rmse_tau_and_regret_are_those_of_a_hand_calculation() -> None:
    found = AgainstFull().compare(reports([0.3, 0.5, 0.4]), reports([0.2, 0.3, 0.35]), METRIC)
    assert found is not None
    assert (found.metric, found.checkpoints) == (METRIC, 3)
    assert found.bias == pytest.approx((0.1 + 0.2 + 0.05) / 3)
    assert found.rmse == pytest.approx(((0.01 + 0.04 + 0.0025) / 3) ** 0.5)
    assert found.kendall_tau == pytest.approx(1 / 3)  # two pairs in order, one not
    assert found.regret == pytest.approx(0.05)  # the sample takes number 1, number 2 is best


def test_checkpoints_are_joined_by_digest_and_only_where_both_are_done() -> None:
    sampled = reports([0.1, 0.2, None, 0.4])
    full = [report(3, 0.4), report(2, 0.9), report(7, 0.9), report(0, 0.1), report(1, None)]
    found = AgainstFull().compare(sampled, full, METRIC)
    assert found is not None
    assert (found.checkpoints, found.bias, found.regret) == (2, 0, 0)


def test_under_two_common_checkpoints_there_is_no_agreement() -> None:
    assert AgainstFull().compare(reports([0.1, 0.2]), [report(1, 0.2)], METRIC) is None
    assert AgainstFull().compare([], [], METRIC) is None
    assert AgainstFull().compare(reports([0.1, 0.2]), reports([0.1, 0.2]), "ndcg@10") is None


def test_tau_is_none_where_one_side_is_constant() -> None:
    found = AgainstFull().compare(reports([0.5, 0.5]), reports([0.2, 0.3]), METRIC)
    assert found is not None
    assert found.kendall_tau is None


def test_regret_among_ties_is_the_worst_that_can_happen() -> None:
    found = AgainstFull().compare(reports([0.5, 0.5, 0.1]), reports([0.3, 0.2, 0.35]), METRIC)
    assert found is not None
    assert found.regret == pytest.approx(0.15)


def test_ties_on_one_side_follow_tau_b() -> None:
    found = AgainstFull().compare(reports([0.1, 0.1, 0.3]), reports([0.1, 0.2, 0.3]), METRIC)
    assert found is not None
    assert found.kendall_tau == pytest.approx(2 / (2 * 3) ** 0.5)


@pytest.mark.parametrize(
    ("baseline", "wanted"),
    [("always", [0, 1, 2, 3]), ("every:1", [0, 1, 2, 3]), ("every:3", [0, 3]), ("idle", [0, 1, 2, 3]), ("off", [])],
)
def test_a_baseline_is_wanted_as_configured(baseline: str, wanted: list[int]) -> None:
    fidelity = AgainstFull(baseline=baseline)
    assert [index for index in range(4) if fidelity.wants_baseline(index)] == wanted


@pytest.mark.parametrize(
    ("baseline", "modes"),
    [("idle", ["follow"]), ("always", ["follow", "once"]), ("every:2", ["follow", "once"]), ("off", [])],
)
def test_a_run_that_ends_by_itself_makes_no_idle_baselines(baseline: str, modes: list[str]) -> None:
    assert [mode for mode in ("follow", "once") if AgainstFull(baseline=baseline).runs_in(mode)] == modes


@pytest.mark.parametrize("baseline", ["", "never", "every", "every:", "every:0", "every:-1", "every:1.5", "every:x", "Idle"])
def test_another_baseline_is_an_error_that_names_the_choices(baseline: str) -> None:
    with pytest.raises(ValueError, match="expected idle, always, every:N"):
        AgainstFull(baseline=baseline)


def test_a_yaml_file_may_say_off_which_it_reads_as_false() -> None:
    written = dict(OmegaConf.create("baseline: off").items())
    assert written == {"baseline": False} and AgainstFull(**written).baseline == "off"
