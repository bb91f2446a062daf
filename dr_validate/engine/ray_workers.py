"""Who is there to work, of `engine=ray`: actors that come, answer, and are lost and replaced. Imports ray when it is used."""

import contextlib
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dr_validate.engine.ray_worker import Handed, RayWorker, environment_of
from dr_validate.engine.slices import Slice
from dr_validate.errors import DeviceFailure

COUNT_DEVICES_EVERY_S = 5.0
MOST_LOSSES = 5  # in a row at one place, without a slice done: then it is given up
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The settings, as far as they are about workers. `workers` None: one for each device of the cluster."""

    device: str
    workers: int | None
    resources: Mapping[str, float]
    threads: int
    save_every_s: float
    slice_documents: int | None


@dataclass(slots=True, kw_only=True)
class Call:
    """What a worker was asked and has not answered."""

    kind: str
    job: int
    began: float
    piece: Slice | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Worker:
    """A place for a worker, and who is in it; its actor is replaced when it is lost."""

    number: int
    actor: Any = None
    where: str = ""  # empty until it has said hello
    call: Call | None = None
    losses: int = 0  # in a row
    finished: list[Slice] = field(default_factory=list)  # of this ranking, by this actor
    handed: list[Handed] = field(default_factory=list)  # the latest of each actor that was here
    is_new: bool = True  # the latest is of an actor before this one, or there is none
    handed_at: float = 0.0
    busy_s: float = 0.0
    num_slices: int = 0
    num_lost: int = 0

    @property
    def name(self) -> str:
        return f"worker {self.number}" + (f" ({self.where})" if self.where else "")


class Workers:
    """Those that there are; they stay between rankings. To be closed."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.all: list[Worker] = []
        self._calls: dict[Any, tuple[Worker, Any]] = {}  # by reference: who was asked, and the actor that was there then
        self._counted_at = -float("inf")
        self.tend()

    def close(self) -> None:
        """End the workers at once."""
        import ray

        for worker in self.all:
            if worker.actor is not None and ray.is_initialized():
                ray.kill(worker.actor)
        self.all, self._calls = [], {}

    def tend(self) -> None:
        """Have an actor in each place, and a place for each device that has joined."""
        now = time.monotonic()
        if now - self._counted_at >= COUNT_DEVICES_EVERY_S:
            self._counted_at = now
            number = self.wanted.workers or max(1, _num_devices(self.wanted))
            self.all += [Worker(number=place + 1) for place in range(len(self.all), number)]
        for worker in self.all:
            if worker.actor is None and worker.losses < MOST_LOSSES:
                worker.actor, worker.where, worker.call, worker.is_new = self._new_actor(), "", None, True
                self.ask(worker, "hello", 0)

    def end(self) -> None:
        """Have them let go of the model, each after what it does now."""
        for worker in self.all:
            if worker.actor is not None and worker.where:
                worker.actor.end.remote()

    def ask(self, worker: Worker, kind: str, job: int, *arguments: Any, piece: Slice | None = None) -> None:
        """Call a method of the worker; does not wait."""
        worker.call = Call(kind=kind, job=job, began=time.monotonic(), piece=piece)
        self._calls[getattr(worker.actor, kind).remote(*arguments)] = (worker, worker.actor)

    def answers(self, timeout_s: float) -> Iterable[tuple[Worker, Call, Any]]:
        """What was answered, after waiting for the first: a value, or what the worker raised, or how it was lost (RayError)."""
        import ray

        if not self._calls:
            time.sleep(timeout_s)
            return
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=timeout_s)
        more, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        for reference in dict.fromkeys([*ready, *more]):
            worker, actor = self._calls.pop(reference)
            if actor is not worker.actor or worker.call is None:
                continue  # of one that was given up
            call, worker.call = worker.call, None
            try:
                answer = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                answer = error.cause
            except ray.exceptions.RayError as error:
                answer = error
            if call.kind == "hello" and isinstance(answer, Mapping):
                worker.where = f"{answer['host']}, process {answer['pid']}"
                log.info("%s is there, %d threads", worker.name, answer["threads"])
                continue
            yield worker, call, answer

    def lose(self, worker: Worker, reason: BaseException) -> None:
        """The actor is gone, or is to go: another one comes, unless this happens again and again."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(worker.actor)
        worker.actor, worker.call, worker.finished = None, None, []
        worker.losses += 1
        worker.num_lost += 1
        words = " ".join(str(reason).split())[:300]
        log.warning("%s was lost: %s: %s", worker.name, type(reason).__name__, words)
        if worker.losses >= MOST_LOSSES:
            log.error("%s is given up: lost %d times without finishing anything", worker.name, worker.losses)
            if all(one.losses >= MOST_LOSSES for one in self.all):
                raise DeviceFailure(f"all workers were lost again and again, last {worker.name}: {words}")

    def _new_actor(self) -> Any:
        import ray

        wanted = self.wanted
        others = {name: value for name, value in wanted.resources.items() if name not in ("CPU", "GPU", "memory")}
        options = {
            "num_cpus": wanted.resources["CPU"],
            "num_gpus": wanted.resources.get("GPU", 0),
            "memory": wanted.resources.get("memory"),
            "resources": others,
            "max_restarts": 0,  # whoever is restarted knows nothing; the unit of a new try is a slice
            "max_task_retries": 0,
        }
        return ray.remote(RayWorker).options(**options).remote(wanted.device, environment_of(wanted.threads))


def _num_devices(wanted: Wanted) -> int:
    """For how many workers there is room in the cluster now."""
    import ray

    there: Mapping[str, float] = ray.cluster_resources()
    return min((int(there.get(name, 0) // number) for name, number in wanted.resources.items() if number > 0), default=1)
