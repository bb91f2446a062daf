"""What ranking a checkpoint takes: its kept vectors, its model and its tokens, none of them touched before it is used."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dr_validate.component import fingerprint
from dr_validate.config import Run
from dr_validate.files import write_atomically
from dr_validate.stages import Encoder, Model, TextBlocks, Tokenizer, Workload
from dr_validate.store.embeddings import NothingKept
from dr_validate.values import Float32, Sample, Side, TestSet, TokenBlock
from dr_validate.worker.samples import SpecSample
from dr_validate.worker.token_cache import TokenCache

if TYPE_CHECKING:
    from torch import Tensor

Load = Callable[[Encoder, str, Path, str], AbstractContextManager[Model]]
"""From encoder, digest, folder and device to the loaded model."""
SIDES: tuple[Side, Side] = ("query", "document")


class LazyModel:
    """The `Model` protocol; `load` is entered when it is first used and left with the block. `load_s`: what that took."""

    def __init__(self, load: Callable[[], AbstractContextManager[Model]], when_loaded: Callable[[], None]) -> None:
        self._load, self._when_loaded = load, when_loaded
        self._stack = ExitStack()
        self._model: Model | None = None
        self.load_s = 0.0

    def __enter__(self) -> "LazyModel":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._model = None
        self._stack.__exit__(*exc_info)

    @property
    def dim(self) -> int:
        """See `Model.dim`."""
        return self._loaded().dim

    @property
    def contract(self) -> Mapping[str, Any]:
        """See `Model.contract`."""
        return self._loaded().contract

    def tokenizer(self, side: Side) -> Tokenizer:
        """See `Model.tokenizer`."""
        return self._loaded().tokenizer(side)

    def encode(self, tokens: TokenBlock, side: Side) -> "Tensor | Float32":
        """See `Model.encode`."""
        return self._loaded().encode(tokens, side)

    def _loaded(self) -> Model:
        if self._model is None:
            began = time.monotonic()
            self._model = self._stack.enter_context(self._load())
            self.load_s = time.monotonic() - began
            self._when_loaded()
        return self._model


class LazyBlocks:
    """The `TextBlocks` protocol; `open` is called for the first block. Blocks may be asked for in several threads."""

    def __init__(self, open: Callable[[], TextBlocks], *, num_texts: int, block_size: int) -> None:
        self._open, self._num_texts, self._size = open, num_texts, block_size
        self._blocks: TextBlocks | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return -(-self._num_texts // self._size)

    def positions(self, number: int) -> slice:
        """See `TextBlocks.positions`."""
        return slice(number * self._size, min((number + 1) * self._size, self._num_texts))

    def block(self, number: int) -> TokenBlock:
        """See `TextBlocks.block`."""
        with self._lock:  # or else two would tokenize it
            if self._blocks is None:
                self._blocks = self._open()
            return self._blocks.block(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointEncoding:
    """A checkpoint and what is to be ranked with it: kept vectors, and a model and tokens that are made when first needed."""

    model: LazyModel
    workload: Workload
    described: Mapping[str, Any]  # what the encoder says of the checkpoint without loading it

    @property
    def load_s(self) -> float:
        """See `Opened.load_s`."""
        return self.model.load_s

    def contract(self) -> Mapping[str, Any]:
        """The model's, and how it was computed when the first of its vectors was made."""

        def computed() -> Mapping[str, Any]:
            return {key: value for key, value in self.model.contract.items() if key not in self.described}

        return {**self.described, **self.workload.vectors.contract(computed)}


class Encoding:
    """Opens the checkpoints of a run; what they share, tokens above all, stays between them."""

    def __init__(self, run: Run, device: str, test_set: TestSet, load: Load | None = None) -> None:
        """`load`: instead of the encoder's own."""
        self._load = load
        self._run, self._device, self._test_set = run, device, test_set
        self._state_dir = run.settings.state_dir
        self._tokens = TokenCache(self._state_dir / "tokens")

    @contextlib.contextmanager
    def open(
        self,
        digest: str,
        folder: Path,
        sample: SpecSample,
        when_loaded: Callable[[], None] = lambda: None,
        *,
        keep: bool = True,
    ) -> Iterator[CheckpointEncoding]:
        """The checkpoint in `folder` on one sample. `when_loaded` is called once the model is there, if it is needed at all;
        without `keep` no vector is read or kept."""

        def load() -> AbstractContextManager[Model]:
            if self._load is not None:
                return self._load(self._run.encoder, digest, folder, self._device)
            model: AbstractContextManager[Model] = self._run.encoder.load(folder, self._device)
            return model

        test_set, read = self._test_set, read_encoder(self._run, digest, folder)
        key = vectors_key(read, test_set)
        counts: dict[Side, int] = {"query": len(test_set.query_ids), "document": len(test_set.corpus)}
        kept = self._run.store.vectors(digest, key, counts, self._state_dir, baseline=sample.is_baseline)
        with (
            kept if keep else contextlib.nullcontext(NothingKept()) as vectors,
            LazyModel(load, when_loaded) as model,
        ):
            texts = {side: self._texts(side, sample.sample, model) for side in SIDES}
            workload = Workload(
                queries=texts["query"],
                documents=texts["document"],
                vectors=vectors,
                ordinals=sample.sample.ordinals,
                own_documents=test_set.own_documents,
                tie_rank=test_set.corpus.tie_rank,
                top_k=self._run.settings.top_k,
                preemptible=sample.is_baseline,
                progress_file=self._state_dir / "progress" / f"{sample.spec}-{digest.replace(':', '-')}.npz",
            )
            yield CheckpointEncoding(model=model, workload=workload, described=read["contract"])

    def _texts(self, side: Side, sample: Sample, model: Model) -> LazyBlocks:
        test_set = self._test_set
        if side == "query":
            key, number, block_size = f"queries-{test_set.fingerprint}", len(test_set.query_ids), len(test_set.query_ids)
        else:
            part = "full" if sample.is_full else sample.fingerprint
            key, number = f"documents-{test_set.fingerprint}-{part}", len(sample.ordinals)
            block_size = self._run.settings.block_documents

        def read(part: slice) -> Sequence[str] | Sequence[list[int]]:
            return test_set.query_texts[part] if side == "query" else test_set.corpus.texts(sample.ordinals[part])

        def open_blocks() -> TextBlocks:
            tokenizer = model.tokenizer(side)
            return self._tokens.open(tokenizer=tokenizer, texts_key=key, num_texts=number, read=read, block_size=block_size)

        return LazyBlocks(open_blocks, num_texts=number, block_size=block_size)


def read_encoder(run: Run, digest: str, folder: Path) -> Mapping[str, Any]:
    """What the encoder says of a checkpoint (`Encoder.read`); of one whose folder is gone, what it said when it was there."""
    if not folder.is_dir() and (known := remembered_encoder(run, digest)):
        return known
    read: Mapping[str, Any] = run.encoder.read(folder)
    path = _remembered_in(run, digest)
    with contextlib.suppress(OSError):  # then it is read again
        content = json.dumps(dict(read), sort_keys=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            write_atomically(path, content)
    return read


def remembered_encoder(run: Run, digest: str) -> Mapping[str, Any] | None:
    """What the encoder with these settings said of a checkpoint when its folder was there, None where that is not known."""
    try:
        known = json.loads(_remembered_in(run, digest).read_bytes())
        return {"contract": known["contract"], "vectors": known["vectors"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remembered_in(run: Run, digest: str) -> Path:
    stated = fingerprint(dict(run.encoder.fingerprint()))
    return run.settings.state_dir / "embeddings" / ".read" / f"{digest.replace(':', '-')}-{stated}.json"


def vectors_key(read: Mapping[str, Any], test_set: TestSet) -> Mapping[str, Any]:
    """What vectors of a checkpoint are kept under: the effect of the encoder's settings, however it was brought about."""
    return {"encoder": read["vectors"], "test_set": test_set.fingerprint}
