"""The mean over the collections of a suite: a spec of its own, whose Reports follow from theirs."""

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dr_validate.component import fingerprint
from dr_validate.config import MEAN
from dr_validate.estimator.estimate import two_sided
from dr_validate.ledger.ledger import Ledger
from dr_validate.ledger.per_query import read_query_values
from dr_validate.ledger.reports import EstimateDetails
from dr_validate.values import Z_95, Estimate, Report

SUMS = ("documents", "encoded", "queries")  # of what the ledger says of a spec
Ends = tuple[float, float]
log = logging.getLogger(__name__)


def mean_names(collections: Sequence[Mapping[str, Any]], made: Mapping[str, Any]) -> dict[str, Any]:
    """What the ledger says of the mean, from what it says of each collection (`Pipeline.describe`)."""
    samplers = {names["sampler"] for names in collections}

    def all_of(key: str) -> str:
        return fingerprint({"mean of": sorted(names[key] for names in collections)})

    return {
        "dataset": MEAN,
        "dataset_fingerprint": all_of("dataset_fingerprint"),
        **{key: sum(names[key] for names in collections) for key in SUMS},
        "sampler": samplers.pop() if len(samplers) == 1 else "several samplers",
        "sample_fingerprint": all_of("sample_fingerprint"),
        "spec": all_of("spec"),
        "full_spec": all_of("full_spec"),
        "device": collections[0]["device"],
        "made": made,
        "members": {names["dataset"]: names["spec"] for names in collections},
    }


class SuiteMean:
    """Makes the Reports of the mean when those of all collections are there. Each collection counts the same.

    Its interval is for other queries like these: 95%, as resampling queries within each collection has it (normal), and where
    they are sampled the estimator's error with it. Where a collection has only a bound, so has the mean.
    """

    def __init__(self, ledger: Ledger, names: Mapping[str, Any], collections: Sequence[Mapping[str, Any]]) -> None:
        self.names = names
        self._ledger, self._collections = ledger, collections
        self._reaches: dict[tuple[str, str, str], float] = {}  # by spec, digest and metric

    def due(self, *, full: bool) -> list[Report]:
        """Reports that can be given now, by step; without time and agreement. `full`: of the full corpora.

        One that failed on a collection has no mean: over the others it would not compare with those of other checkpoints.
        """
        key = "full_spec" if full else "spec"
        specs = [names[key] for names in self._collections]
        settled = [self._ledger.settled(spec) for spec in specs]
        ready = set.intersection(*map(set, settled)) - self._ledger.settled(self.names[key]).keys()
        if full:
            ready = {digest for digest in ready if all(states[digest] == "done" for states in settled)}
        if not ready:
            return []
        known = [self._by_digest(spec) for spec in specs]
        of = {digest: [reports[digest] for reports in known] for digest in set.intersection(*map(set, known))}
        made = [self._made(digest, of, full=full) for digest in ready & of.keys()]
        return sorted(made, key=lambda report: (report.checkpoint.step, report.checkpoint.name))

    def _by_digest(self, spec: str) -> dict[str, Report]:
        return {one.checkpoint.digest: one for one in self._ledger.revised(spec) if one.status != "skipped"}

    def _made(self, digest: str, of: Mapping[str, Sequence[Report]], *, full: bool) -> Report:
        reports = of[digest]
        failed = [report for report in reports if report.status != "done"]
        spec = self.names["full_spec" if full else "spec"]
        status: Literal["done", "failed"] = "failed" if failed else "done"
        return Report(
            checkpoint=reports[0].checkpoint,
            dataset=MEAN,
            sampler="full" if full else self.names["sampler"],
            spec=spec,
            status=status,
            at="",
            attempts=max(report.attempts for report in reports),
            error=_why(failed),
            metrics={} if failed else {name: self._estimate(reports, name)[0] for name in reports[0].metrics},
            corpus={} if failed else _corpus(reports),
            seconds={} if failed else _sums([report.seconds for report in reports]),
            notes={} if failed else self._notes(digest, of, full=full),
        )

    def _notes(self, digest: str, of: Mapping[str, Sequence[Report]], *, full: bool) -> dict[str, Any]:
        """With what earlier means look like now; a mean of full corpora says it of all sampled ones in the state_dir."""
        reports = of[digest]
        metrics = list(reports[0].metrics)
        details = [EstimateDetails.of(report) for report in reports]
        done = {other: mine for other, mine in of.items() if other != digest and all(one.status == "done" for one in mine)}
        notes = {"collections": {one.dataset: one.spec for one in reports}}
        is_full = full or self.names["full_spec"] == self.names["spec"]
        estimate = EstimateDetails(
            sample=fingerprint({"full" if full else "sample": self.names["sample_fingerprint"]}),
            metric=metrics[0],
            checkpoints=min(each.checkpoints for each in details),
            baselines=min(each.baselines for each in details),
            population={name: ends for name in metrics if (ends := self._estimate(reports, name)[1]) is not None},
            differences={other: told for other in done if (told := _difference(reports, other)) is not None},
        )
        if not is_full:
            earlier = {other: self._view(mine) for other, mine in done.items()}
            estimate = EstimateDetails(**{**estimate.to_json(), "earlier": {estimate.sample: earlier}})
        sampled = self._sampled_now() if is_full else {}
        return {**notes, "estimate": estimate.to_json(), **({"sampled": sampled} if sampled else {})}

    def _sampled_now(self) -> dict[str, dict[str, Any]]:
        """How the sampled means over these full corpora look now, by spec, whichever run they are of."""
        found: dict[str, dict[str, Any]] = {}
        for spec, names in self._ledger.specs().items():
            if names.get("members") and names.get("full_spec") == self.names["full_spec"] != spec:
                known = [self._by_digest(member) for member in names["members"].values()]
                seen = {one: [each[one] for each in known] for one in set.intersection(*map(set, known))}
                views = {one: self._view(mine) for one, mine in seen.items() if all(each.status == "done" for each in mine)}
                found[spec] = {"earlier": {fingerprint({"sample": names["sample_fingerprint"]}): views}}
        return found

    def _view(self, reports: Sequence[Report]) -> dict[str, list[float]]:
        """As `EstimateDetails.earlier` has a checkpoint."""
        found = {}
        for name in reports[0].metrics:
            estimate, population = self._estimate(reports, name)
            found[name] = [estimate.value, estimate.low, estimate.high, *(population or ())]
        return found

    def _estimate(self, reports: Sequence[Report], name: str) -> tuple[Estimate, Ends | None]:
        parts = [report.metrics[name] for report in reports]
        value, naive = (statistics.fmean(getattr(part, key) for part in parts) for key in ("value", "naive"))
        ranges = [self._range(report, name) for report in reports]
        known = [ends for ends in ranges if ends is not None]
        if len(known) < len(ranges):
            low, high = (statistics.fmean(getattr(part, key) for part in parts) for key in ("low", "high"))
            return Estimate(value=value, low=min(low, value), high=max(high, value), naive=naive), None
        below, above = (
            math.hypot(*(max(0.0, sign * (part.value - ends[side])) for part, ends in zip(parts, known, strict=True)))
            for side, sign in ((0, 1), (1, -1))
        )
        low, high = value - below / len(parts), value + above / len(parts)
        low, high = max(low, min(0.0, value)), min(high, max(1.0, value))
        return Estimate(value=value, low=low, high=high, naive=naive), (low, high)

    def _range(self, report: Report, name: str) -> Ends | None:
        """95% for other queries like those of one collection; None where there is only a bound."""
        if (told := EstimateDetails.of(report).population.get(name)) is not None:
            return told
        estimate = report.metrics[name]
        if estimate.low < estimate.high:
            return None
        reach = self._of_queries(report, name)
        return estimate.value - reach, estimate.value + reach

    def _of_queries(self, report: Report, name: str) -> float:
        """Half the width of the interval of a mean over queries like those of a Report, from its values per query."""
        key = report.spec, report.checkpoint.digest, name
        if key not in self._reaches:
            try:
                values = list(read_query_values(self._ledger.path.parent, report, name).values())
            except OSError as error:
                log.warning("%s; the interval of the mean goes without the choice of its queries", error)
                return 0.0
            self._reaches[key] = Z_95 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        return self._reaches[key]


def _difference(reports: Sequence[Report], other: str) -> dict[str, Any] | None:
    """Of the mean from that of another checkpoint, as `EstimateDetails.differences` has it; None where one tells nothing."""
    known = [EstimateDetails.of(report).differences.get(other) for report in reports]
    told = [one for one in known if isinstance(one, dict)]
    if len(told) < len(known):
        return None
    value = statistics.fmean(one["value"] for one in told)
    own = math.hypot(*((one["high"] - one["low"]) / 2 for one in told)) / len(told)
    population = math.hypot(*((one["population"][1] - one["population"][0]) / 2 for one in told)) / len(told)
    ends = {"low": value - own, "high": value + own, "population": [value - population, value + population]}
    return {"value": value, **ends, "p": two_sided(value, population / Z_95)}


def _why(failed: Sequence[Report]) -> str | None:
    errors = {report.error: report.dataset for report in failed}
    words = "; ".join(f"{dataset}: {error}" for error, dataset in errors.items())
    return f"no mean, for {len(failed)} of its collections failed: {words}" if failed else None


def _corpus(reports: Sequence[Report]) -> dict[str, float]:
    found = _sums([{key: one for key, one in report.corpus.items() if key != "fraction"} for report in reports])
    return {**found, "fraction": found["encoded"] / found["documents"]}


def _sums(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: sum(part.get(key, 0.0) for part in parts) for key in dict.fromkeys(key for part in parts for key in part)}
