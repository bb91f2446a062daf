"""A ranking that several devices share: slices dealt to whoever is free, their exact top-k merged to the exact top-k."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from dr_validate.engine.merge import merge, ranking_of
from dr_validate.engine.progress import Progress
from dr_validate.engine.slices import Dealer, Slice, cut
from dr_validate.errors import Interrupted
from dr_validate.messages import Message, Team
from dr_validate.stages import Control, Index, Ranked, Workload
from dr_validate.values import Float32, Ranking, TopK

LOOK_EVERY_S = 0.1
SLICES_PER_MEMBER = 8  # of a small sample, so that all end at about the same time ...
SMALLEST_SLICE = 256  # ... though no less than a few batches


def slice_size(workload: Workload, index: Index, members: int, slice_documents: int) -> int:
    """Documents in a slice: fewer where there are few in all, unless the ranking depends on it (an approximate index)."""
    if index.fingerprint():
        return slice_documents
    return min(slice_documents, max(SMALLEST_SLICE, -(-len(workload.ordinals) // (SLICES_PER_MEMBER * members))))


class Shared:
    """Deals and merges; encodes nothing itself.

    Queries are encoded once and sent to all, so that every device scores the same vectors; documents need not wait for it.
    """

    def __init__(self, team: Team, workload: Workload, control: Control, save_every_s: float) -> None:
        self._team, self._workload, self._control, self._save_every_s = team, workload, control, save_every_s
        self._members = range(len(team.names))
        self._doing: dict[int, Slice] = {}  # by member
        self._vectors: dict[int, Float32] = {}  # of queries, by first position
        self._finished: list[set[int]] = [set() for _ in self._members]  # documents, by first position
        self._asked = 0  # members that are to send their top
        self._tops: list[TopK] = []
        self._covered: set[int] = set()  # slices in those
        self._accounts: list[Mapping[str, Any]] = []
        self._is_open = self._is_stopping = False

    def run(self, index: Index, slice_documents: int) -> Ranked:
        """See `Engine.rank_shared`."""
        work, number = self._workload, len(self._members)
        size = slice_size(work, index, number, slice_documents)
        slices = cut(work.documents, size)
        self._progress = Progress(work, index, slices)
        self._before = self._progress.load()
        self._num_saved, self._saved_at = len(self._before.done), time.monotonic()
        self._count = self._progress.count(self._before.done)
        self._dealer = Dealer([piece for piece in slices if piece.start not in self._before.done], number)
        self._queries = deque(cut(work.queries, size))
        self._num_queries = len(self._queries)
        try:
            self._encode()
        except Interrupted:
            self._is_stopping = True
            self._gather_tops()
            self._save()
            raise
        self._gather_tops()
        ranking = ranking_of(self._merged(), work)
        self._progress.clear()
        return self._ranked(ranking)

    def _encode(self) -> None:
        self._control.check()
        for member in self._members:
            self._deal(member)
        while self._team.waiting:
            self._control.check()
            self._listen()
            if self._asked and len(self._tops) == self._asked:
                self._save()
            elif self._is_open and not self._asked and time.monotonic() - self._saved_at >= self._save_every_s:
                self._ask_for_tops()

    def _deal(self, member: int) -> None:
        """Give the member its next slice, of the queries as long as there are any."""
        kind, piece = ("query", self._queries.popleft()) if self._queries else ("document", self._dealer.next(member))
        if piece is not None:
            self._doing[member] = piece
            self._team.ask(member, Message(kind=kind, facts=asdict(piece)))

    def _listen(self) -> None:
        """Wait a moment for an answer, and act on it."""
        answer = self._team.answer(LOOK_EVERY_S)
        if answer is None:
            return
        member, message = answer.member, answer.message
        if message.kind == "top":
            self._tops.append(TopK(documents=message.arrays["documents"], scores=message.arrays["scores"]))
            self._covered |= self._finished[member]  # answers come in the order of the requests
        elif message.kind == "account":
            self._accounts.append(message.facts)
        elif message.kind in ("query", "document"):
            piece = self._doing.pop(member)
            if message.kind == "query":
                self._take_queries(piece, message.arrays["vectors"])
            else:
                self._take_documents(member, piece)
            if not self._is_stopping:
                self._deal(member)

    def _take_queries(self, piece: Slice, vectors: Float32) -> None:
        self._vectors[piece.start] = vectors
        if len(self._vectors) == self._num_queries:
            queries = np.concatenate([self._vectors[start] for start in sorted(self._vectors)])
            for member in self._members:
                self._team.ask(member, Message(kind="open", arrays={"queries": queries}))
            self._is_open = True

    def _take_documents(self, member: int, piece: Slice) -> None:
        self._finished[member].add(piece.start)
        self._count += len(piece)
        self._control.progress("encoding", self._count, len(self._workload.ordinals))

    def _settle(self) -> None:
        while self._team.waiting:
            self._listen()

    def _ask_for_tops(self) -> None:
        self._tops, self._covered = [], set()
        asked = [member for member in self._members if self._finished[member]]
        self._asked = len(asked)
        for member in asked:
            self._team.ask(member, Message(kind="top"))

    def _gather_tops(self) -> None:
        """After what is begun is finished."""
        self._settle()
        if self._is_open:  # or else there are vectors of documents, but nothing was searched
            self._ask_for_tops()
            self._settle()

    def _merged(self) -> TopK:
        tops = self._tops if self._before.top is None else [self._before.top, *self._tops]
        return merge(tops, self._workload.tie_rank)

    def _save(self) -> None:
        done = self._before.done | self._covered
        if len(done) > self._num_saved:
            self._progress.save(done, self._merged())
        self._asked, self._num_saved, self._saved_at = 0, len(done), time.monotonic()

    def _ranked(self, ranking: Ranking) -> Ranked:
        # Whoever encoded most has the model at hand; another might load it just to say what it is.
        busiest = max(self._members, key=lambda member: len(self._finished[member]))
        for member in self._members:
            self._team.ask(member, Message(kind="account", facts={"contract": member == busiest}))
        self._settle()
        seconds = [account["seconds"] for account in self._accounts]
        return Ranked(
            ranking=ranking,
            encoded_now=sum(account["encoded_now"] for account in self._accounts),
            # The mean: what devices do at the same time takes as long as one of them.
            seconds={phase: sum(part[phase] for part in seconds) / len(seconds) for phase in seconds[0]},
            contract=next((account["contract"] for account in self._accounts if account.get("contract")), {}),
        )
