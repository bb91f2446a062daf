"""From a ranking over one of a run's samples to what its Report says, with all that is kept of other checkpoints."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dr_validate.config import Settings
from dr_validate.estimates import Estimates, Outcome, Past, learnt
from dr_validate.plans import Plan, Plans, part_name
from dr_validate.values import Ranking, Scores, TestSet


class Outcomes:
    """Checkpoints are compared on the sample that they share; over two epochs by way of the anchor, which has met both."""

    def __init__(self, settings: Settings, test_set: TestSet, plans: Plans) -> None:
        self._settings, self._test_set, self._plans = settings, test_set, plans
        self._closed: dict[str, Past] = {}  # by part: earlier epochs hardly change

    def of(self, plan: Plan, digest: str, ranking: Ranking, scores: Scores) -> Outcome:
        """Where the plan follows the drift, notes["estimate"] names the epoch and its anchor, None where that was not met."""
        outcome = self._estimates(plan).of(digest, ranking, scores, self._pasts(plan))
        if not self._plans.follow_drift or plan is self._plans[True]:
            return outcome
        anchor = self._anchor(plan)
        met = anchor is not None and self.has_met(plan, anchor)
        epoch = {"epoch": plan.epoch, "anchor": anchor if met else None}
        return replace(outcome, notes={**outcome.notes, "estimate": {**outcome.notes.get("estimate", {}), **epoch}})

    def seen(self, plans: Sequence[Plan]) -> dict[str, Any]:
        """What a new baseline changes: every checkpoint that met one of these samples, as it looks now."""
        views = [self._estimates(plan).seen(self._settings.metrics) for plan in plans]
        return {sample: checkpoints for view in views for sample, checkpoints in view.items()}

    def has_met(self, plan: Plan, digest: str) -> bool:
        """Whether a checkpoint can be compared with others on this sample; always where nothing can be."""
        estimates = self._estimates(plan)
        return not estimates.possible or estimates.has_met(digest)

    def missing_anchor(self, plan: Plan) -> str | None:
        """The checkpoint by which this sample was drawn, if it has not met it yet."""
        anchor = self._anchor(plan)
        return None if anchor is None or self.has_met(plan, anchor) else anchor

    def meet(self, plan: Plan, digest: str, ranking: Ranking) -> None:
        """Learn from a checkpoint without a Report."""
        self._estimates(plan).meet(digest, ranking)

    def _anchor(self, plan: Plan) -> str | None:
        return self._plans.epochs.all()[plan.epoch - 1].anchor if plan.epoch else None

    def _estimates(self, plan: Plan) -> Estimates:
        folder = self._settings.state_dir / "estimates" / plan.spec / plan.part
        anchor = self._anchor(plan)
        anchors, baselines = [anchor] if anchor else [], self._plans.baselines
        return Estimates(folder, self._test_set, plan.sample, self._settings.top_k, baselines, anchors)

    def _pasts(self, plan: Plan) -> Sequence[Past]:
        """The same level of earlier epochs, the latest first."""
        epochs = self._plans.epochs.all()[: plan.epoch]
        found = []
        for epoch in reversed(epochs):
            part = part_name(epoch.number - 1, plan.level)
            if part not in self._closed:
                folder = self._settings.state_dir / "estimates" / plan.spec / part
                anchors = [each.anchor for each in epochs[max(0, epoch.number - 2) : epoch.number]]
                metric, top_k, baselines = self._settings.metrics[0], self._settings.top_k, self._plans.baselines
                known = learnt(folder, self._test_set, metric, top_k, baselines, anchors)
                self._closed[part] = Past(anchor=epoch.anchor, estimated=known)
            found.append(self._closed[part])
        return found
