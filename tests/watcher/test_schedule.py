"""The order of work, on plain values."""

import dataclasses

from dr_validate.values import Checkpoint, Incomplete, Listing, Status
from dr_validate.watcher import schedule
from dr_validate.watcher.schedule import Target


def checkpoint(step: int, digest: str | None = None, name: str | None = None) -> Checkpoint:
    name = name or f"checkpoint-{step}"
    return Checkpoint(
        name=name,
        version=name,
        digest=f"sha256:{digest or step}",
        step=step,
        step_from="trainer_state.json",
        created_at="2026-11-21T00:00:00Z",
        uri=f"/run/{name}",
    )


LISTING = Listing(checkpoints=tuple(checkpoint(step) for step in (100, 200, 300, 400)))


def test_the_newest_is_next_and_what_is_settled_is_not() -> None:
    left = schedule.waiting(LISTING, {"sha256:300": "done", "sha256:100": "failed"}, "newest_first")
    assert [c.step for c in left] == [400, 200]


def test_oldest_first_goes_by_step() -> None:
    assert [c.step for c in schedule.waiting(LISTING, {}, "oldest_first")] == [100, 200, 300, 400]


def test_equal_weights_are_one_evaluation_and_the_later_one_is_told() -> None:
    listing = Listing(checkpoints=(checkpoint(100, "a"), checkpoint(200, "b"), checkpoint(300, "a")))
    assert [c.step for c in schedule.unique(listing)] == [100, 200]
    assert [(later.step, earlier.step) for later, earlier in schedule.same_weights(listing)] == [(300, 100)]


def test_the_incomplete_is_waited_for_until_a_later_one_is_complete() -> None:
    early = Incomplete(name="checkpoint-300", uri="", step=300, lacks="model.safetensors")
    late = Incomplete(name="checkpoint-500", uri="", step=500, lacks="model.safetensors")
    away = dataclasses.replace(early, name="checkpoint-301", is_out_of_reach=True)
    listing = Listing(checkpoints=LISTING.checkpoints, incomplete=(early, away, late))
    assert schedule.given_up(listing, finite=False) == [early]
    assert schedule.given_up(listing, finite=True) == [early, away, late]


def test_stale_are_those_that_wait_behind_a_newer_one() -> None:
    pairs = schedule.overtaken(LISTING, {"sha256:200": "done"})
    assert [(old.step, newest.step) for old, newest in pairs] == [(100, 400), (300, 400)]


def test_a_failed_attempt_comes_after_the_fresh_ones_and_not_before_its_time() -> None:
    target = Target(dataset="d", sampler="full", spec="s", sampled_spec="s", full_spec="s")
    times = {("sha256:100", "s"): 5.0, ("sha256:200", "s"): 50.0, ("sha256:300", "of another collection"): 50.0}
    ready = schedule.due([(c, target) for c in LISTING.checkpoints], times, moment=10.0)
    assert [c.step for c, _ in ready] == [300, 400, 100]


def test_baselines_go_to_validated_checkpoints_that_lack_one() -> None:
    settled: dict[str, Status] = {"sha256:100": "done", "sha256:200": "failed", "sha256:300": "done", "sha256:400": "done"}
    full: dict[str, Status] = {"sha256:300": "done"}
    assert [c.step for c in schedule.without_baseline(LISTING, settled, full, range(4), "newest_first")] == [400, 100]
    assert [c.step for c in schedule.without_baseline(LISTING, settled, full, [0], "newest_first")] == [100]
