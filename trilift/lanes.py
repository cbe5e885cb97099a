"""Several photos on their way at once in one process: while one is meshed, the next is in the network, and so on.

::

    photo 5 ──► reading, cut-out │ photo 4 ──► network │ photos 2, 3 ──► meshing │ photo 1 ──► checks, writing

Each photo has a thread of its own and goes through the ordinary lift; where a stage begins, the thread waits until
there is room: for one photo in most stages, for two where meshes are made. Under ``--max-memory``, which plans one
lift, one photo is on its way. numpy, torch and Pillow let go of Python's lock while they work, so that the
stages overlap. Photos never overtake each other.
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
    """

    def __init__(self, room: Sequence[int]) -> None:
        self._room = room
        self._moved = threading.Condition()
        self._stations: dict[int, int] = {}  # number → station, in the order of coming; -1 before the first

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
            if station <= self._stations[number]:
                return 0.0
            self._moved.wait_for(lambda: self._has_room(number, station))
            self._stations[number] = station
            self._moved.notify_all()
        return time.perf_counter() - start

    def _has_room(self, number: int, station: int) -> bool:
        """Whether fewer photos than there is room for, of those in front, have yet to leave ``station``."""
        ahead = 0
        for other, where in self._stations.items():
            if other == number:
                return ahead < self._room[station]
            ahead += where <= station
        return True

    def leave(self, number: int) -> None:
        """Go, finished or not."""
        with self._moved:
            self._stations.pop(number, None)
            self._moved.notify_all()


class Lanes:
    """Lifts photos in threads of this process.

    Args:
        pipe: the loaded model, used by all of them.
        batch_size: pictures in one pass of the network at most; None for one on the CPU, where more are no faster, and
            eight elsewhere.
        lift: what is done with a photo, for tests; `trilift.batch.lift_item`.

    Attributes:
        size: how many photos are on their way at most.
    """

    def __init__(
        self, pipe: ImageTo3D, *, batch_size: int | None = None, lift: Callable[..., LiftResult] = lift_item
    ) -> None:
        batch = batch_size or (1 if str(getattr(pipe, "device", "cpu")).startswith("cpu") else 8)
        generates = getattr(pipe, "generator", None) is not None  # such pipelines keep state between steps
        limited = getattr(getattr(pipe, "memory", None), "limit", None) is not None  # planned for one lift at a time
        batch = 1 if generates or limited else batch
        self._pipe = _shared(pipe, batch)
        self._lift = lift
        self.size = 1 if limited else _LANES + batch - 1
        self._line = Line((1, batch, _MESHING, 1))
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

        try:
            waited += self._line.enter(task.number, PREPARE)
            result = self._lift(
                self._pipe, task.item, task.folder, task.settings, task.scratch, halvings=task.halvings,
                on_stage=on_stage,
            )  # fmt: skip
            seconds = round(max(time.perf_counter() - start - waited, 0.0), 3)
            return Outcome(task, replace(result, seconds=seconds, attempt=task.attempt))
        except BaseException as error:  # Ctrl-C in this thread, or a bug that TRILIFT_DEBUG lets through
            return Outcome(task, error=error)
        finally:
            self._line.leave(task.number)


def _shared(pipe: ImageTo3D, batch: int) -> Any:
    """The pipeline with a model that several threads may ask; pipelines of another kind (tests) as they are."""
    if not hasattr(pipe, "model"):
        return pipe
    from .batching import batching

    shared = copy.copy(pipe)
    shared.model = batching(pipe.model, batch)
    return shared
