"""From the ranking of a sample to corrected metrics: the evidence of every checkpoint is kept, and corrects the others."""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dr_validate.estimator.estimate import Estimated, differences, estimate
from dr_validate.estimator.evidence import FORMAT, RankEvidence, can_be_estimated, rank_evidence
from dr_validate.files import digest_of_name, name_of_digest, read_arrays, write_arrays, write_atomically
from dr_validate.ledger.reports import EstimateDetails
from dr_validate.metrics.gains import means, parse
from dr_validate.values import Estimate, Float64, Ranking, Sample, Scores, TestSet
from dr_validate.worker.samples import Baselines

MOST_CHECKPOINTS = 32  # the latest: more add little and cost time
MOST_BASELINES = 4  # far from all of them a checkpoint is corrected less well; more cost time
SAMPLE_FILE = "sample.json"  # beside the evidence: of which sample it is, and of which full corpus
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """What a Report says: `per_query` corrected (num_queries,) by metric, `notes` JSON values."""

    metrics: Mapping[str, Estimate]
    per_query: Mapping[str, Float64]
    notes: Mapping[str, Any]


class Estimates:
    """One per sample: `folder` keeps one file for each checkpoint that met it.

    `baselines` of other checkpoints calibrate the model. A checkpoint's own does not: its values stay what the sample says, so
    that comparing them with the full corpus tells how good samples are.
    """

    def __init__(self, folder: Path, test_set: TestSet, sample: Sample, top_k: int, baselines: Baselines) -> None:
        self._folder, self._test_set, self._sample, self._top_k = folder, test_set, sample, top_k
        self._baselines = baselines
        self.possible = can_be_estimated(sample)

    def of(self, digest: str, ranking: Ranking, scores: Scores) -> Corrected:
        """Corrected by all that is known so far; where the sample says nothing of the rest, the value is an upper bound."""
        if not self.possible:
            return self._uncorrected(scores)
        mine = self._keep_evidence(digest, ranking)
        now = _known_from(self._folder, self._baselines, self._test_set, self._top_k, scores.per_query, last=digest)
        history = {**now.history, digest: mine}
        made = _estimated([*history.values()], self._test_set, self._top_k, now.full)
        if not made:
            return self._uncorrected(scores)
        *earlier, _ = history
        first = dict(zip(history, next(iter(made.values())), strict=True))
        corrected = {name: _as_estimate(estimated[-1], scores.mean(name)) for name, estimated in made.items()}
        per_query = {name: estimated[-1].per_query for name, estimated in made.items()}
        uncorrected = self._uncorrected(scores)
        return Corrected(
            metrics={name: corrected.get(name, uncorrected.metrics[name]) for name in scores.per_query},
            per_query={name: per_query.get(name, uncorrected.per_query[name]) for name in scores.per_query},
            notes={
                "estimate": EstimateDetails(
                    sample=self._sample.fingerprint,
                    metric=next(iter(made)),
                    checkpoints=len(history),
                    baselines=len(next(iter(now.full.values())).keys() - {len(earlier)}),
                    as_of=now.as_of,
                    outranking={name: estimated[-1].outranking for name, estimated in made.items()},
                    population={name: estimated[-1].population_interval for name, estimated in made.items()},
                    earlier={self._sample.fingerprint: _earlier(earlier, made)},
                    differences=_differences(digest, first),
                ).to_json()
            },
        )

    def _keep_evidence(self, digest: str, ranking: Ranking) -> RankEvidence:
        """Keep what the ranking of a checkpoint over this sample shows."""
        id_hash = self._test_set.corpus.id_hash[self._sample.ordinals]
        mine = rank_evidence(ranking, self._test_set.qrels, self._sample, id_hash)
        save(mine, self._folder / _file_name(digest))
        return mine

    def _uncorrected(self, scores: Scores) -> Corrected:
        # Leaving documents out can only lift the judged ones: the uncorrected value is a certain upper bound, and where nothing
        # is known of the documents left out, nothing but 0 is a certain lower one.
        full = self._sample.is_full
        means = {name: scores.mean(name) for name in scores.per_query}
        metrics = {name: Estimate(value=v, low=v if full else 0.0, high=v, naive=v) for name, v in means.items()}
        return Corrected(metrics=metrics, per_query=scores.per_query, notes={})


def note_sample(folder: Path, sample: Sample, full_spec: str) -> None:
    """Have `folder` (see `Estimates`) say whose it is: a ranking under `full_spec` revises its values, too, whichever run of
    this state_dir it comes from."""
    if can_be_estimated(sample) and not (path := folder / SAMPLE_FILE).exists():
        write_atomically(path, json.dumps({"sample": sample.fingerprint, "full_spec": full_spec}))


def revised_by(
    digest: str, estimates: Path, full_spec: str, test_set: TestSet, top_k: int, metrics: Sequence[str], baselines: Baselines
) -> dict[str, dict[str, Any]]:
    """What a full-corpus ranking of `digest` changes: by spec, of every sample under `estimates` that it has met, all
    checkpoints as they look now (`as_of` and `earlier` of `EstimateDetails`)."""
    found = {}
    for path in sorted(estimates.glob(f"*/{_file_name(digest)}")):
        note = path.parent / SAMPLE_FILE
        try:
            noted = json.loads(note.read_bytes())
            fingerprint, is_mine = noted["sample"], noted["full_spec"] == full_spec
        except FileNotFoundError:  # of a version that did not note it; the next start of that run does
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s): the values of that sample are not revised; delete it", note, error)
            continue
        if is_mine:
            now = _known_from(path.parent, baselines, test_set, top_k, metrics)
            made = _estimated(list(now.history.values()), test_set, top_k, now.full)
            found[path.parent.name] = {"as_of": now.as_of, "earlier": {fingerprint: _earlier(list(now.history), made)}}
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What is kept of checkpoints, oldest first, by digest: of the latest, and of some with a baseline."""

    history: Mapping[str, RankEvidence]
    full: Mapping[str, Mapping[int, float]]  # by metric: of those with a baseline, by their place, its full-corpus value
    as_of: float  # when the newest of it was written, seconds since 1970


def _known_from(
    folder: Path, baselines: Baselines, test_set: TestSet, top_k: int, metrics: Collection[str], last: str = ""
) -> _Known:
    """`last`: taken for the latest, whatever its file says. Of the metrics whose dependence on ranks is known: not of those of
    other packages."""
    files = {digest_of_name(path.stem): path for path in folder.glob("*.npz")}
    as_of = max([baselines.as_of(files), *(path.stat().st_mtime for path in files.values())])
    sources = baselines.spread(files, MOST_BASELINES)
    history = _evidence_in(files, sources, last)
    names = [name for name in metrics if parse(name).package is None]
    full: dict[str, dict[int, float]] = {name: {} for name in names}
    for place, digest in enumerate(history):
        if digest in sources:
            try:
                ranking, shape = baselines.ranking(digest), (len(test_set.query_ids), top_k)
                if ranking.documents.shape != shape:
                    raise ValueError(f"it has the shape {ranking.documents.shape}, expected {shape}")
                for name, value in means(names, ranking.documents, test_set.qrels).items():
                    full[name][place] = value
            except (OSError, ValueError) as error:
                log.warning("the full-corpus ranking of %s cannot be read (%s) and is not used", digest, error)
    return _Known(history=history, full=full, as_of=as_of)


def _estimated(
    history: Sequence[RankEvidence], test_set: TestSet, top_k: int, full: Mapping[str, Mapping[int, float]]
) -> dict[str, Sequence[Estimated]]:
    if not history:
        return {}
    return {name: estimate(history, test_set.qrels, name, top_k, known) for name, known in full.items()}


def save(evidence: RankEvidence, path: Path) -> None:
    """In a file of its own."""
    write_arrays(path, format=FORMAT, **{field.name: getattr(evidence, field.name) for field in fields(evidence)})


def load(path: Path) -> RankEvidence:
    """Raises OSError for a file that cannot be read, ValueError for one that is damaged or of another format."""
    names = [field.name for field in fields(RankEvidence)]
    found, *arrays = read_arrays(path, "format", *names)
    if found != FORMAT:
        raise ValueError(f"{path} has the format {found}, expected {FORMAT}")
    return RankEvidence(**dict(zip(names, arrays, strict=True)))


def _evidence_in(files: Mapping[str, Path], kept: Collection[str], last: str) -> dict[str, RankEvidence]:
    """Of the latest checkpoints and those to be kept, oldest first, by digest."""
    ordered = sorted(files, key=lambda digest: (digest == last, files[digest].stat().st_mtime_ns))
    recent = ordered[-MOST_CHECKPOINTS:]
    found = {}
    for digest in [*(digest for digest in ordered if digest in kept and digest not in recent), *recent]:
        try:
            found[digest] = load(files[digest])
        except (OSError, ValueError) as error:
            log.warning("%s: left out of the estimates; it can be deleted", error)
    return found


def _file_name(digest: str) -> str:
    return f"{name_of_digest(digest)}.npz"


def _as_estimate(estimated: Estimated, naive: float) -> Estimate:
    low, high = estimated.interval
    value = min(estimated.value, naive)
    return Estimate(value=value, low=min(low, value), high=min(max(high, value), naive), naive=naive)


def _earlier(digests: Sequence[str], made: Mapping[str, Sequence[Estimated]]) -> dict[str, dict[str, list[float]]]:
    """Of the checkpoints before, as they look now: value, low, high, and low and high for the population of queries."""
    found: dict[str, dict[str, list[float]]] = {digest: {} for digest in digests}
    for name, estimated in made.items():
        for digest, each in zip(digests, estimated, strict=False):  # the last one is not an earlier one
            now = _as_estimate(each, each.naive)
            found[digest][name] = [now.value, now.low, now.high, *each.population_interval]
    return found


def _differences(digest: str, made: Mapping[str, Estimated]) -> dict[str, dict[str, Any]]:
    """What the first metric says of this checkpoint against the others that met this sample."""
    others = [other for other in made if other != digest]
    return {
        other: {
            "value": difference.value,
            "low": difference.low,
            "high": difference.high,
            "population": [difference.population_low, difference.population_high],
            "p": difference.p,
        }
        for other, difference in zip(others, differences(made[digest], [made[other] for other in others]), strict=True)
    }
