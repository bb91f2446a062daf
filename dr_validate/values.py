"""The values that flow through the pipeline, in the order in which they appear. Frozen, checked at birth."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dr_validate.component import fingerprint

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Side = Literal["query", "document"]
Status = Literal["done", "failed", "skipped"]
SIDES: tuple[Side, Side] = ("query", "document")
Z_95 = 1.96  # half the width of a 95% interval, in standard errors
MAX_ROWS = 1000  # of the newest checkpoints, in a table for a tracker
CellValue = str | float | None
RankingKey = tuple[str, int, bool]  # digest of a checkpoint, number of the collection, whether on the full corpus
ARTIFACT_SCHEME = "wandb-artifact://"  # of the URI of a checkpoint that is a version of an artifact in W&B


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An immutable version of the trained weights, never an alias.

    `digest`: `algorithm:hex` over the files that can change a score; `step_from`: where the training step was read;
    `created_at`: ISO 8601 in UTC; `training_run` wrote it, `group` is what that run belongs to ("" where not known);
    `num_bytes`: of the files that encoding needs (0 where not known); `weights_sha256`: hex, of the weights that were
    measured, "" until then.
    """

    name: str
    version: str
    digest: str
    step: int
    step_from: str
    created_at: str
    uri: str
    training_run: str = ""
    group: str = ""
    num_bytes: int = 0
    weights_sha256: str = ""

    def __post_init__(self) -> None:
        assert ":" in self.digest, f"digest {self.digest!r} has no algorithm prefix"
        assert self.step >= 0, f"step {self.step} of {self.name} is negative"

    @property
    def label(self) -> str:
        """How messages and tables name it: `name`, or `name:version` where one name has many versions."""
        return self.name if self.version == self.name else f"{self.name}:{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Incomplete:
    """Looks like a checkpoint but `lacks` something, in words for the user; for ever if `final` (deleted, unusable).

    `is_deleted`: it was complete, as far as anybody knows, and is not there any more; `lacks` then says so. `is_out_of_reach`:
    whether it is complete cannot be told now; the next poll may tell.
    """

    name: str
    uri: str
    step: int
    lacks: str
    final: bool = False
    is_deleted: bool = False
    is_out_of_reach: bool = False
    training_run: str = ""
    group: str = ""

    @property
    def reason(self) -> str:
        """Why there will be no Report of it, if it stays like this."""
        return self.lacks if self.is_deleted else f"incomplete: {self.lacks}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a source holds right now, each by ascending (step, name).

    `save_steps`: the trainer says that it saves every so many steps (0: it does not). `missing`: what must have been there
    once, by the numbers that the source gives its versions, and is not.
    """

    checkpoints: tuple[Checkpoint, ...] = ()
    incomplete: tuple[Incomplete, ...] = ()
    missing: tuple[Incomplete, ...] = ()
    save_steps: int = 0


class Corpus(Protocol):
    """Documents by ordinal 0..len-1; texts stay on disk (memory-mapped), only what is asked for is read."""

    def __len__(self) -> int: ...
    def ids(self, ordinals: Int64) -> list[str]:
        """Document ids, in the order of `ordinals`."""

    def texts(self, ordinals: Int64) -> list[str] | list[list[int]]:
        """Texts (title and text joined by one space), or token ids where the collection came tokenized."""

    def find(self, ids: Sequence[str]) -> Int64:
        """Ordinal of each id, -1 where there is no such document."""

    @property
    def tie_rank(self) -> Int64:
        """(num_documents,) place of each document when ids are sorted *descending* by UTF-8 bytes: trec_eval's tie order."""

    @property
    def id_hash(self) -> NDArray[np.uint64]:
        """(num_documents,) first 8 bytes of BLAKE2b of each id: the stable number that sampling builds on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Qrels:
    """Judgements by row of the test set's queries; row q holds `documents[offsets[q]:offsets[q + 1]]` with their gains."""

    offsets: Int64  # (num_queries + 1,)
    documents: Int64  # (num_judgements,) ordinals
    gains: Int64  # (num_judgements,) graded; <= 0 is judged not relevant
    not_found: NDArray[np.bool_] | None = None  # (num_queries,) queries whose answers no document holds: they count, as 0

    def __post_init__(self) -> None:
        assert self.offsets[-1] == len(self.documents) == len(self.gains), "qrels: lengths disagree"

    def row(self, query: int) -> tuple[Int64, Int64]:
        """Ordinals and gains judged for one query row."""
        part = slice(int(self.offsets[query]), int(self.offsets[query + 1]))
        return self.documents[part], self.gains[part]


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSet:
    """A test collection: every query has a judgement or is `not_found`, every judged document exists.
    `own_documents[q]` is the ordinal of the document that *is* query q (ArguAna, Quora) and must not be returned for it,
    -1 for none. `fingerprint` changes with any document, query or judgement; `corpus_key` is the folder of the documents in
    the cache of data sets, "" where they are in none. `shipped_run`: a run over it that comes with the collection;
    `baseline_run`: one that a checkpoint has made.
    """

    __test__ = False  # not a pytest class

    name: str
    corpus: Corpus
    query_ids: tuple[str, ...]
    query_texts: Sequence[str] | Sequence[list[int]]
    qrels: Qrels
    own_documents: Int64  # (num_queries,)
    fingerprint: str
    corpus_key: str = ""
    shipped_run: Path | None = None
    baseline_run: Path | None = None

    def __post_init__(self) -> None:
        agree = len(self.query_ids) == len(self.query_texts) == len(self.qrels.offsets) - 1 == len(self.own_documents)
        assert agree, "test set: lengths of queries, qrels and own_documents disagree"

    @property
    def judged(self) -> Int64:
        """Ordinals of all judged documents, ascending, each once."""
        return np.unique(self.qrels.documents)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The documents that stand in for the corpus, in encode order (ascending ordinals), each with its inclusion probability."""

    ordinals: Int64  # (num_encoded,)
    inclusion: Float64  # (num_encoded,) probability with which the draw takes this document
    num_documents: int  # of the whole corpus
    fingerprint: str

    def __post_init__(self) -> None:
        assert 0 < len(self.ordinals) == len(self.inclusion), "sample: no documents, or lengths disagree"
        assert bool(np.all(np.diff(self.ordinals) > 0)), "sample: ordinals are not ascending"
        assert bool(np.all((self.inclusion > 0) & (self.inclusion <= 1))), "sample: inclusion probabilities outside (0, 1]"

    @property
    def is_full(self) -> bool:
        """Whether every document is in it."""
        return len(self.ordinals) == self.num_documents


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBlock:
    """Token ids of consecutive texts, flat and unpadded; text i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: NDArray[Any]  # (num_tokens,) uint16 or uint32
    offsets: Int64  # (num_texts + 1,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64:
        """(num_texts,) tokens of each text."""
        return np.diff(self.offsets)

    def take(self, rows: Int64) -> "TokenBlock":
        """Some texts, in the order of `rows`; a view where they are neighbours."""
        if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            first, last = int(self.offsets[rows[0]]), int(self.offsets[rows[-1] + 1])
            return TokenBlock(ids=self.ids[first:last], offsets=self.offsets[rows[0] : rows[-1] + 2] - first)
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(int(offsets[-1])) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return TokenBlock(ids=np.asarray(self.ids)[places], offsets=offsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The best documents so far for each query: canonical float32 scores descending, ties by `Corpus.tie_rank`."""

    documents: Int64  # (num_queries, top_k) ordinals, -1 where there are fewer
    scores: Float32  # (num_queries, top_k), -inf where there are fewer

    def __post_init__(self) -> None:
        assert self.documents.shape == self.scores.shape, "top-k: shapes disagree"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """What was retrieved for each query of the test set, best first; own documents already dropped."""

    documents: Int64  # (num_queries, top_k) ordinals, -1 where there are fewer
    scores: Float32  # (num_queries, top_k)

    def __post_init__(self) -> None:
        assert self.documents.shape == self.scores.shape, "ranking: shapes disagree"
        with np.errstate(invalid="ignore"):  # -inf minus -inf
            assert not bool(np.any(np.diff(self.scores, axis=1) > 0)), "ranking: scores do not descend"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Each metric for each query of the test set; NaN for a query that has no relevant document (left out of means)."""

    per_query: Mapping[str, Float64]  # metric -> (num_queries,)

    def mean(self, metric: str) -> float:
        """Mean over the queries that have a relevant document."""
        return float(np.nanmean(self.per_query[metric]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A metric on the full corpus as far as it is known: `low`..`high` holds it with 95% for these queries (of a mean over
    collections: of other queries like these, even where the corpora were encoded whole); `naive` is the
    uncorrected value, the metric on the sample as if it were the corpus: a certain upper bound, for leaving documents out lifts
    the judged ones."""

    value: float
    low: float
    high: float
    naive: float

    def __post_init__(self) -> None:
        assert self.low <= self.value <= self.high, f"estimate: {self.low} <= {self.value} <= {self.high} is false"

    @property
    def is_bound(self) -> bool:
        """A value that nothing corrected: the metric lies somewhere below it."""
        lowest = not math.isfinite(self.low) or (self.low <= 0 and self.high == self.value == self.naive)
        return lowest and self.low < self.high

    @property
    def has_interval(self) -> bool:
        """Neither exact nor a mere bound."""
        return self.low < self.high and not self.is_bound and math.isfinite(self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How well sampled values stand in for full-corpus ones, over `checkpoints` that have both; on `metric`."""

    metric: str
    checkpoints: int
    kendall_tau: float | None  # None where it is not defined (all values tied)
    rmse: float
    bias: float
    regret: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of one checkpoint under one spec: the record in the ledger and one line of reports.jsonl."""

    checkpoint: Checkpoint
    dataset: str
    sampler: str
    spec: str
    status: Status
    error: str | None = None
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    corpus: Mapping[str, float] = field(default_factory=dict)  # documents, encoded, encoded_now, fraction
    agreement: Agreement | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)  # by phase, and total
    attempts: int = 1
    at: str
    notes: Mapping[str, Any] = field(default_factory=dict)  # encoder contract, queries left out ...

    def __post_init__(self) -> None:
        done = self.status == "done"
        assert done == bool(self.metrics) == (self.error is None), f"report: {self.status}, {self.metrics}, {self.error!r}"

    @property
    def is_mean(self) -> bool:
        """Over the collections of a suite: its interval is not for these queries but for any like them."""
        return "collections" in self.notes


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Named columns and their rows."""

    columns: tuple[str, ...]
    rows: list[list[CellValue]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """`verdict`: what the numbers say; `queries`: how many moved between which checkpoints; "" where there is nothing yet."""

    verdict: str = ""
    queries: str = ""
    tables: Mapping[str, Table] = field(default_factory=dict)


Find = Callable[[str], Findings]
"""From the name of a training run to what is known of it by now."""


def find_nothing(training_run: str) -> Findings:
    """Where there is no ledger to ask."""
    return Findings()


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRow:
    """A row: one job, its best checkpoint's value, and how well its sample of `documents` stood in for the corpus.

    What it costs is the number of `documents` for a checkpoint, of which `encoded` over all checkpoints were not kept from an
    earlier job; `seconds` depend on what else the machine did.
    `tau_low`, `tau_high`: 95%; `covered`: in how many of `with_interval` checkpoints the full value lies in the interval.
    """

    strategy: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    naive: float | None
    tau: float | None
    tau_low: float | None
    tau_high: float | None
    rmse: float | None
    bias: float | None
    regret: float | None
    checkpoints: int | None
    covered: int | None
    with_interval: int | None
    documents: int | None
    encoded: int
    seconds: float
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What the summary run is about; `group` as for the validation runs of the sweep ("" for that of the training run)."""

    training_run: str
    group: str
    dataset: str
    specs: tuple[str, ...]
    strategies: tuple[SweepRow, ...]
    state_dir: Path

    @property
    def run_id(self) -> str:
        """The same for the same specs of the same training: a repeated sweep resumes it."""
        return fingerprint({"training_run": self.training_run, "sweep": sorted(set(self.specs))})

    @property
    def key(self) -> str:
        """Changes with the table."""
        return fingerprint({"rows": [asdict(one) for one in self.strategies]})
