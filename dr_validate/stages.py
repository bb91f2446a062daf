"""The protocols of the stages, in pipeline order. A stage imports none of the others.

Every component also has `fingerprint() -> Mapping[str, Any]` where its settings can change a score: JSON values that become
part of the spec. What cannot change a score (device, batch size, folder) stays out of it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from dr_validate.values import (
    Agreement,
    Checkpoint,
    Find,
    Float32,
    Int64,
    Listing,
    Ranking,
    Report,
    Sample,
    Side,
    Sweep,
    TestSet,
    TokenBlock,
    TopK,
    find_nothing,
)

if TYPE_CHECKING:
    from torch import Tensor


class Source(Protocol):
    """Which checkpoints exist; bring one here."""

    needs_config: ClassVar[bool]
    """Whether a checkpoint without config.json is incomplete. Not so where the encoder is given one (`config.build`)."""

    brings_several: ClassVar[bool]
    """Whether its checkpoints may be of several training runs, which they name; else all are of `training_run`."""

    @property
    def training_run(self) -> str:
        """Name of the training run that writes the checkpoints: groups the validation runs of one training."""

    def identity(self) -> Mapping[str, Any]:
        """What decides which checkpoints are its own (JSON values): copies that were taken for it are known by this."""

    def list(self, state_dir: Path) -> Listing:
        """What exists now. Cheap when nothing changed; digests of unchanged files are remembered under `state_dir`."""

    def fetch(self, checkpoint: Checkpoint, into: Path) -> None:
        """Copy what encoding needs (never pickles, never optimizer states) into the empty folder `into`, verified against
        `checkpoint.digest`. Raises CheckpointError if it is gone or can never be used, OSError if it is worth another try."""

    def check(self) -> None:
        """Raise SetupError for what is wrong and can be known at once: nothing is listed, no server is asked."""

    def still_has(self, checkpoint: Checkpoint) -> bool:
        """Whether one that was listed once is there (a filter may leave it out now). Raises OSError if that is unknown."""


class Store(Protocol):
    """What is kept of checkpoints under a state_dir (`root`): verified copies, and vectors that they made."""

    @property
    def max_gib(self) -> float:
        """What the copies may take."""

    def take(
        self,
        checkpoint: Checkpoint,
        fetch: Callable[[Checkpoint, Path], None],
        root: Path,
        source: str = "",
        keep: Collection[str] = (),
    ) -> None:
        """Fetch a copy if there is none, and note that `source` has it. `keep`: digests that stay on a full disk."""

    def has(self, digest: str, root: Path) -> bool: ...
    def digests(self, root: Path) -> set[str]: ...
    def taken(self, source: str, root: Path) -> list[Checkpoint]:
        """Checkpoints of one source that there are copies of."""

    def let_go(self, source: str, root: Path) -> list[Checkpoint]:
        """Checkpoints of one source that there were copies of."""

    def make_room(self, num_bytes: int, keep: Collection[str], precious: Sequence[str], root: Path) -> bool:
        """Remove copies until `num_bytes` more fit; whether they do."""

    def lease(self, digest: str, root: Path) -> AbstractContextManager[Path]:
        """The folder of a verified copy, which nobody removes within the block."""

    def weights_sha256(self, digest: str, root: Path) -> str: ...
    def vectors(
        self, digest: str, terms: Mapping[str, Any], counts: Mapping[Side, int], root: Path, *, baseline: bool = False
    ) -> "AbstractContextManager[Vectors]":
        """Kept vectors of one checkpoint under one encoder contract and for one test set (`terms`, JSON values).

        `baseline`: all documents will be asked for, and nothing that is kept may go for it.
        """

    def describe_vectors(self, root: Path) -> str: ...


class Dataset(Protocol):
    """A test collection on disk, on a hub, or made from what is installed."""

    def open(self, cache: Path) -> TestSet:
        """Read and check it; big parts are converted once into `cache` and memory-mapped from there. Raises DatasetError."""

    def check(self) -> None:
        """Raise DatasetError where a part is not at its place; nothing is read."""


class Sampler(Protocol):
    """Which documents stand in for the corpus, with which inclusion probability; the same ones for every checkpoint."""

    def draw(self, test_set: TestSet, seed: int, cache: Path) -> Sample:
        """Deterministic in (test set, settings, seed). `cache` keeps what is costly to make (a BM25 run)."""

    def check(self, test_set: TestSet) -> None:
        """Raise SetupError for a sample that is too small, as far as that is known before a run is read or BM25 is asked."""

    def fingerprint(self) -> Mapping[str, Any]:
        """JSON values that change with the draw; `sampler` is its name."""


class Tokenizer(Protocol):
    """Texts to token ids, as one side (query or document) of one model wants them: prefix, special tokens, maximum length."""

    @property
    def key(self) -> str:
        """Changes when the token ids of any text could: vocabulary, normalisation, prefix, length."""

    def tokenize(self, texts: Sequence[str] | Sequence[list[int]]) -> TokenBlock:
        """Batched and without padding. Token ids pass through, cut to the maximum length, if the contract allows it."""


class Model(Protocol):
    """A loaded checkpoint: text sides and the way from tokens to vectors."""

    @property
    def dim(self) -> int: ...

    @property
    def contract(self) -> Mapping[str, Any]:
        """What was read or stated: pooling, normalisation, prompts, lengths, dtype. JSON values; goes into the Report."""

    def tokenizer(self, side: Side) -> Tokenizer: ...

    def encode(self, tokens: TokenBlock, side: Side) -> "Tensor | Float32":
        """(len(tokens), dim) float32 on the device, in the order given, batched inside; need not wait for the device."""


class Encoder(Protocol):
    """From a checkpoint folder to a Model."""

    def load(self, folder: Path, device: str, weights_of: Model | None = None) -> AbstractContextManager[Model]:
        """Read the contract, load the weights, free them on exit. Raises CheckpointError where the folder or what is stated
        about it cannot work; never guesses pooling or normalisation, never runs code or pickles from the folder.
        `weights_of`: a model of this folder that outlives it, made with other lengths and prefixes: has the weights."""

    def read(self, folder: Path) -> Mapping[str, Any]:
        """What becomes of a checkpoint, without its weights: `contract` as Model.contract begins, and `vectors`, a string that
        changes when any vector of this checkpoint could, whether by what is stated or by what it says itself. JSON values.
        Raises as `load` does."""

    def fingerprint(self) -> Mapping[str, Any]: ...


class Search(Protocol):
    """A running exact top-k over blocks of vectors for fixed queries."""

    def add(self, vectors: "Tensor | Float32", ordinals: Int64) -> None:
        """Merge a block: vectors (n, dim) where they are, ordinals (n,). Memory does not grow with the number of blocks."""

    def top(self) -> TopK: ...

    def restore(self, top: TopK) -> None:
        """Go on from an earlier `top()` of the same queries."""


class Index(Protocol):
    """Blocks of vectors to a running top-k; scores are dot products, ties broken by `tie_rank`."""

    def open(self, queries: "Tensor | Float32", top_k: int, tie_rank: Int64, device: str) -> Search: ...

    def check(self) -> str:
        """What is worth saying before a run, empty for nothing. Raises SetupError where the library is not installed."""

    def fingerprint(self) -> Mapping[str, Any]:
        """Empty for every exact index: they give the same ranking."""


class TextBlocks(Protocol):
    """Tokens of texts in blocks of consecutive positions; made on demand, memory-mapped once made."""

    def __len__(self) -> int: ...

    def block(self, number: int) -> TokenBlock: ...

    def positions(self, number: int) -> slice:
        """Which texts the block holds."""


Encode = Callable[[Int64], "Tensor | Float32"]
"""From positions to vectors (len(positions), dim)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What was found of some ordinals."""

    mask: NDArray[np.bool_]  # (num_ordinals,)
    vectors: Float32  # (num_kept, dim), (0, 0) for none


class Vectors(Protocol):
    """Vectors of one checkpoint: of documents by ordinal, of queries by row. Kept between calls as far as there is room."""

    def look(self, side: Side, ordinals: Int64) -> Kept:
        """What is kept of these now. May be called from another thread while `get` is at work."""

    def get(self, side: Side, ordinals: Int64, encode: Encode, device: str = "cpu", kept: Kept | None = None) -> "Tensor":
        """(len(ordinals), dim) float32 on the device. `encode` is called with the positions in `ordinals` of those that are
        not kept, and what it returns is kept, a little later. Ordinals are ascending, each once. `kept`: an answer of `look`.
        Raises what `encode` raises."""

    def contract(self, read: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """How these were computed, as said when the first of them were made (JSON values); read and kept if need be."""


class Control(Protocol):
    """How long work is watched from outside: called between batches and blocks."""

    def check(self) -> None:
        """Raise Preempted, Stopped or TimedOut if this work is to stop now."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """Tell what is being done now ("encoding", "scoring"), and of how many documents; `total` 0 where none are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What an engine ranks: all queries and the sample's documents, as tokens and as far as they are kept as vectors."""

    queries: TextBlocks
    documents: TextBlocks
    vectors: Vectors
    ordinals: Int64  # (num_encoded,) of the sample, in the order of `documents`
    own_documents: Int64  # (num_queries,) ordinal that must not be returned for a query, -1 for none
    tie_rank: Int64  # (num_documents,) see Corpus.tie_rank
    top_k: int
    progress_file: Path  # running top-k of unfinished work: an interrupted or killed ranking goes on from here
    preemptible: bool = False  # a baseline: whatever comes is more urgent
    elsewhere: object = None  # `engine.ray_workers.Elsewhere`: how a process on another device comes to the same work


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """An engine's answer: the ranking, how many documents were encoded for it in this call, and seconds by phase."""

    ranking: Ranking
    encoded_now: int
    seconds: Mapping[str, float]
    contract: Mapping[str, Any] = field(default_factory=dict)  # of the model, where other processes loaded it
    workers: Sequence[Mapping[str, Any]] = ()  # what each of those did (JSON values)


class Ranker(Protocol):
    """Blocks of documents to one Ranking."""

    def rank(self, model: Model, workload: Workload, index: Index, control: Control, device: str) -> Ranked:
        """The best documents of each query. Raises Interrupted when told to stop; the next call goes on from there."""


class Engine(Protocol):
    """Where rankings are made: on one device in this process, or on many elsewhere."""

    def find_device(self, wanted: str) -> str:
        """From the `device` key to what models are loaded on. Raises SetupError naming what there is."""

    def problems_of_many(self) -> Sequence[str]:
        """What is wrong in the configuration where several worker processes use this engine (`watch.at_once`)."""

    def describe(self, device: str) -> str:
        """What `task=doctor` says of devices elsewhere, "" where there are none. Raises SetupError where none can be had."""

    def start(self, device: str) -> AbstractContextManager[Ranker]:
        """Get hold of the device or of many of its kind, which are let go of with the block."""

    def clean_up(self) -> None:
        """Remove what a process that held devices, and was killed, has left on this machine."""


class Fidelity(Protocol):
    """Whether sampled values stand in for full-corpus ones."""

    def runs_in(self, mode: str) -> bool:
        """Whether full-corpus baselines are computed in this watch.mode."""

    def wants_baseline(self, place: int) -> bool:
        """Whether the validated checkpoint at this place (0 is the first by step) is to have a baseline."""

    def compare(self, sampled: Sequence[Report], full: Sequence[Report], metric: str) -> Agreement | None:
        """Over the checkpoints (by digest) that are done in both; None under two of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """What a tracker is told of the watcher's run: whose Reports it brings, those under `spec` and their baselines.

    `find` gives what is told beside the rows. Of a suite all this speaks of the mean; `config["collections"]` says what each
    collection is called (dataset, sampler, spec, full_spec ...), whose Reports come beside it.
    """

    state_dir: Path
    training_run: str  # of checkpoints that name none
    spec: str
    dataset: str
    sampler: str
    config: Mapping[str, Any]  # what may leave this machine
    folder: str = ""  # outside which those that name none are of another training (`named_folder`); "": anywhere
    find: Find = find_nothing

    @property
    def collections(self) -> Sequence[Mapping[str, Any]]:
        """Of a suite."""
        return tuple(self.config.get("collections", ()))

    @property
    def whole(self) -> str:
        """Of a suite what the Reports of the mean have for a dataset."""
        return self.dataset if self.collections else ""

    @property
    def sampled(self) -> set[str]:
        """Specs whose Reports are no baselines."""
        return {self.spec, *(str(names["spec"]) for names in self.collections)}


class TrackerRun(Protocol):
    """Brings Reports to the outside world, each exactly once as far as the outside allows."""

    @property
    def is_remote(self) -> bool:
        """Whether there is a server where Reports arrive, or do not."""

    def deliver(self, report: Report, history: Sequence[Report]) -> None:
        """Deliver one Report; `history` holds all Reports of its spec so far, this one included. Any exception means: later.
        What was delivered already is no error and changes nothing."""

    def settle(self, report: Report) -> bool:
        """Do what a delivered Report still needs and may take long; whether it is known to have arrived for good. Asked once
        `deliver` has returned, until it has, once more after `close`, and `deliver` comes first again after a restart."""

    def close(self, timeout_s: float) -> None:
        """Flush and end within about `timeout_s`."""


class Tracker(Protocol):
    """Where the Reports of a run go beside reports.jsonl."""

    def examine(self) -> str:
        """What `task=doctor` says. Raises SetupError where nothing could be delivered."""

    def check(self) -> None:
        """Raise SetupError where a package or key is missing; no server is asked."""

    def start(self, about: Tracked) -> TrackerRun:
        """The deliveries of one run of the watcher; no server is asked before the first."""

    def log_sweep(self, sweep: Sweep) -> str:
        """Log the table of a sweep; where it went. Raises Outage or SetupError."""
