"""What one device does of a ranking: slices of texts through the model, documents on into a running top-k."""

import time
from collections.abc import Mapping

import numpy as np

from dr_validate.engine.merge import searched_k
from dr_validate.engine.slices import Slice
from dr_validate.engine.texts import Texts
from dr_validate.messages import Message
from dr_validate.stages import Index, Model, Search, Workload
from dr_validate.values import Float32, TopK


class Share:
    """Documents may be added before the search is open: they are searched as soon as it is."""

    def __init__(self, model: Model, workload: Workload, index: Index, device: str) -> None:
        self._workload, self._index, self._device = workload, index, device
        every_query = np.arange(len(workload.own_documents))
        self._queries = Texts("query", workload.queries, every_query, workload.vectors, model)
        self._documents = Texts("document", workload.documents, workload.ordinals, workload.vectors, model)
        self._search: Search | None = None
        self._unsearched: list[tuple[Float32, Slice]] = []
        self._search_s = 0.0

    def query_vectors(self, piece: Slice) -> Float32:
        """(num_queries, dim) of a slice of the queries."""
        return self._queries.vectors(piece.block, piece.part)

    def open(self, queries: Float32, top: TopK | None = None) -> None:
        """Open the search for these vectors of all queries, and go on from `top` where there is one."""
        work = self._workload
        self._search = self._index.open(queries, searched_k(work), work.tie_rank, self._device)
        if top is not None:
            self._search.restore(top)
        self._search_all()

    def add(self, piece: Slice) -> None:
        """Encode a slice of the documents and search it."""
        self._unsearched.append((self._documents.vectors(piece.block, piece.part), piece))
        self._search_all()

    def top(self) -> TopK:
        """The best documents of those added so far."""
        assert self._search is not None, "asked for the top before the search is open"
        return self._search.top()

    @property
    def encoded_now(self) -> int:
        """Documents that had to be encoded."""
        return self._documents.encoded_now

    @property
    def seconds(self) -> Mapping[str, float]:
        """By phase."""
        sides = (self._queries.seconds, self._documents.seconds)
        return {phase: sum(seconds[phase] for seconds in sides) for phase in sides[0]} | {"search": self._search_s}

    def answer(self, request: Message) -> Message:
        """See `messages.Share`: the requests of `shared.py`."""
        if request.kind == "query":
            return Message(kind="query", arrays={"vectors": self.query_vectors(Slice(**request.facts))})
        if request.kind == "open":
            self.open(request.arrays["queries"])
            return Message(kind="open")
        if request.kind == "document":
            self.add(Slice(**request.facts))
            return Message(kind="document")
        if request.kind == "top":
            top = self.top()
            return Message(kind="top", arrays={"documents": top.documents, "scores": top.scores})
        assert request.kind == "account", request.kind
        return Message(kind="account", facts={"encoded_now": self.encoded_now, "seconds": dict(self.seconds)})

    def _search_all(self) -> None:
        if self._search is None:
            return
        began = time.monotonic()
        for vectors, piece in self._unsearched:
            self._search.add(vectors, self._workload.ordinals[piece.part])
        self._unsearched.clear()
        self._search_s += time.monotonic() - began
