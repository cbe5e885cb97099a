"""Several photos on their way at once in one process: while one is meshed, the next is in the network, and so on.

::

    photo 5 ──► reading, cut-out │ photo 4 ──► network │ photos 2, 3 ──► meshing │ photo 1 ──► checks, writing

Each photo has a thread of its own and goes through the ordinary lift; where a stage begins, the thread waits until
there is room: for one photo in most stages, for two where meshes are made. Under ``--max-memory`` there are as many as
`trilift.memory` finds room for. numpy, torch and Pillow let go of Python's lock while they work, so that the stages
overlap. Photos never overtake each other. One for which memory runs out waits until those under way have gone, is tried
again with all of it to itself before anything is made smaller, and from then on half as many are under way.
"""

from __future__ import annotations

import copy
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .batch import LiftResult, lift_item
from .settings import LiftSettings
from .sources import PhotoItem

if TYPE_CHECKING:
    from .memory import LiftPlan
    from .pipeline import ImageTo3D

PREPARE, NETWORK, MESH, FINISH = range(4)
# Which station a stage of `trilift.progress.Stopwatch` belongs to; one that is not named stays where it is.
_STATIONS = {
    "load": PREPARE, "cutout": PREPARE, "views": NETWORK, "network": NETWORK, "mesh": MESH, "simplify": MESH,
    "texture": MESH, "check": FINISH, "write": FINISH,
}  # fmt: skip
_LANES = 5
_MESHING = 2  # the longest station by far for small models, and mostly numpy on one core


@dataclass(frozen=True)
class Task:
    """A photo that is to be lifted.

    Attributes:
        number: by which the outcome is known.
        item: the photo.
        folder: of its asset on this machine.
        settings: how to lift it.
        scratch: folder for a copy of the photo.
        attempt: from 1.
        halvings: of the resolution, see `trilift.batch.lift_item`.
    """

    number: int
    item: PhotoItem
    folder: Path
    settings: LiftSettings
    scratch: Path
    attempt: int = 1
    halvings: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a task: a result, an error that is none of the photo's, or the death of its process.

    Attributes:
        task: which.
        result: None with ``error`` or ``died``.
        error: Ctrl-C, weights that cannot be loaded, or, with TRILIFT_DEBUG, a bug.
        died: how the process ended that had it in hand, such as ``signal 11``.
    """

    task: Task
    result: LiftResult | None = None
    error: BaseException | None = None
    died: str | None = None


class Line:
    """Photos in the order in which they came, each at a station or before it; nobody overtakes.

    Args:
        room: how many may be at each station.
        most: how many may be at all of them together.
    """

    def __init__(self, room: Sequence[int], most: int = 1 << 30) -> None:
        self._room, self._most = room, most
        self._moved = threading.Condition()
        self._stations: dict[int, int] = {}  # number → station, in the order of coming; -1 before the first
        self._alone: int | None = None  # who is alone, or waits for the others to go

    def join(self, number: int) -> None:
        """Come in behind all others."""
        with self._moved:
            self._stations[number] = -1

    def enter(self, number: int, station: int) -> float:
        """Leave the station before and go to ``station``, as soon as there is room; returns the seconds of waiting.

        Whoever is further already stays there.
        """
        start = time.perf_counter()
        with self._moved:
            if number == self._alone or station <= self._stations[number]:
                return 0.0
            self._moved.wait_for(lambda: self._has_room(number, station))
            self._stations[number] = station
            self._moved.notify_all()
        return time.perf_counter() - start

    def _has_room(self, number: int, station: int) -> bool:
        """Whether fewer photos than there is room for, of those in front, have yet to leave ``station``."""
        if self._stations[number] < 0 and (self._alone is not None or self._under_way() >= self._most):
            return False
        ahead = 0
        for other, where in self._stations.items():
            if other == number:
                return ahead < self._room[station]
            ahead += where <= station
        return True

    def _under_way(self) -> int:
        return sum(station >= 0 for station in self._stations.values())

    def be_alone(self, number: int) -> bool:
        """Let those behind pass, and wait until no other is under way; returns whether any was.

        Until this one leaves, none begins; and from now on half as many may be under way.
        """
        with self._moved:
            under_way = self._under_way()
            others = under_way > 1 or self._alone is not None
            self._most = max(min(self._most, under_way) // 2, 1)
            self._stations.pop(number, None)
            self._moved.notify_all()
            self._moved.wait_for(lambda: self._alone is None)
            self._alone = number
            self._moved.wait_for(lambda: self._under_way() == 0)
        return others

    def leave(self, number: int) -> None:
        """Go, finished or not."""
        with self._moved:
            self._stations.pop(number, None)
            if self._alone == number:
                self._alone = None
            self._moved.notify_all()


class Lanes:
    """Lifts photos in threads of this process.

    Args:
        pipe: the loaded model, used by all of them.
        batch_size: pictures in one pass of the network at most; None for one on the CPU, where more are no faster, and
            eight elsewhere.
        settings: of the lifts, by which ``--max-memory`` is planned; None plans one photo at a time.
        lift: what is done with a photo, for tests; `trilift.batch.lift_item`.

    Attributes:
        size: how many photos are on their way at most.
        plan: how they keep within ``--max-memory``, None without it.
    """

    def __init__(
        self,
        pipe: ImageTo3D,
        *,
        batch_size: int | None = None,
        settings: LiftSettings | None = None,
        lift: Callable[..., LiftResult] = lift_item,
    ) -> None:
        batch = batch_size or (1 if str(getattr(pipe, "device", "cpu")).startswith("cpu") else 8)
        generates = getattr(pipe, "generator", None) is not None  # such pipelines keep state between steps
        batch = 1 if generates else batch
        self.size, meshing = _LANES + batch - 1, _MESHING
        self.plan = _planned(pipe, settings, self.size, batch, meshing)
        if self.plan is not None:
            crowd = self.plan.crowd
            self.size, batch, meshing = crowd.photos, crowd.batch, crowd.meshed
        self._pipe = _shared(pipe, batch, self.plan)
        self._lift = lift
        self._line = Line((1, batch, meshing, 1), self.size)
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self.size)]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Task) -> None:
        """Take ``task`` on; it begins when those before it have moved on."""
        self._line.join(task.number)
        self._tasks.put(task)

    def take(self, timeout: float | None = None) -> Outcome | None:
        """The next outcome, None when there was none for ``timeout`` seconds."""
        try:
            return self._outcomes.get(timeout=timeout)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Let the threads end when they have done what they were given."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def kill(self) -> None:
        """Leave: threads cannot be ended, they go with the process."""

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._outcomes.put(self._done(task))

    def _done(self, task: Task) -> Outcome:
        start, waited = time.perf_counter(), 0.0

        def on_stage(name: str) -> None:
            nonlocal waited
            waited += self._line.enter(task.number, _STATIONS.get(name, PREPARE))

        def make_room() -> bool:
            nonlocal waited
            began = time.perf_counter()
            others = self._line.be_alone(task.number)
            waited += time.perf_counter() - began
            return others

        try:
            waited += self._line.enter(task.number, PREPARE)
            result = self._lift(
                self._pipe, task.item, task.folder, task.settings, task.scratch, halvings=task.halvings,
                on_stage=on_stage, make_room=make_room if self.size > 1 else None,
            )  # fmt: skip
            seconds = round(max(time.perf_counter() - start - waited, 0.0), 3)
            return Outcome(task, replace(result, seconds=seconds, attempt=task.attempt))
        except BaseException as error:  # Ctrl-C in this thread, or a bug that TRILIFT_DEBUG lets through
            return Outcome(task, error=error)
        finally:
            self._line.leave(task.number)


def _planned(pipe: ImageTo3D, settings: LiftSettings | None, photos: int, batch: int, meshed: int) -> LiftPlan | None:
    """How many photos are lifted at once within ``--max-memory``; None without it."""
    memory = getattr(pipe, "memory", None)
    if memory is None or memory.limit is None:
        return None
    from .memory import Crowd

    alone = settings is None or getattr(pipe, "generator", None) is not None  # which is planned for itself alone
    crowds = [Crowd()] if alone else Crowd(photos, batch, meshed).smaller()
    resolution, texels = (0, 0) if settings is None else (settings.resolution, settings.texels)
    plan: LiftPlan = memory.plan(resolution, crowds, texels=texels)
    return plan


def _shared(pipe: ImageTo3D, batch: int, plan: LiftPlan | None) -> Any:
    """The pipeline with a model that several threads may ask; pipelines of another kind (tests) as they are."""
    if not hasattr(pipe, "model"):
        return pipe
    from .batching import batching

    shared = copy.copy(pipe)
    shared.model = batching(pipe.model, batch)
    if plan is not None:
        shared.memory = replace(pipe.memory, crowd=plan.crowd)
    return shared
