"""Work that can be watched and stopped: lifts run in a thread of their own, and the page looks at them now and then.

::

    page ──watch()──► worker: work(job) ──job.on_stage, on_step, show──► Snapshots ──► page
      └── job.stop() ──► the next stage, step or layer of a network raises `Stopped`
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from trilift import TriliftError

log = logging.getLogger("trilift.demo")

TICK_SECONDS = 0.4
# Of a plain lift, in about the order in which they come; what else turns up is put where it turns up.
USUAL_STAGES = ("load", "cutout", "network", "mesh", "check", "write")
_MEMORY = 0.5  # how much the last lift counts in what the next one is expected to take


class Stopped(BaseException):
    """Raised inside work whose user has asked for its end, or has left.

    It is no `Exception`, so that nothing on the way takes it for a failure of the photo.
    """


@dataclass(frozen=True)
class Snapshot:
    """How far a job is.

    Attributes:
        stage: its name; empty before the first.
        elapsed: seconds since the job began.
        fraction: of the way, 0 to 1.
        done, total: steps of this stage; 0 where it has none.
        left: seconds that are expected still, None where nobody knows.
        passed: stages that are behind, with their seconds.
        news: what the work has shown since the last snapshot.
    """

    stage: str = ""
    elapsed: float = 0.0
    fraction: float = 0.0
    done: int = 0
    total: int = 0
    left: float | None = None
    passed: tuple[tuple[str, float], ...] = ()
    news: tuple[Any, ...] = ()


class Pace:
    """How long stages took before, for jobs of the same kind; safe to ask from several threads."""

    def __init__(self) -> None:
        self._seconds: dict[str, dict[str, float]] = {}
        self._lock = threading.Lock()

    def learn(self, kind: str, seconds: dict[str, float]) -> None:
        """Remember what a finished job took, by stage."""
        with self._lock:
            known = self._seconds.get(kind, {})
            self._seconds[kind] = {
                name: value if name not in known else _MEMORY * value + (1 - _MEMORY) * known[name]
                for name, value in seconds.items()
            }

    def expected(self, kind: str) -> dict[str, float]:
        """Seconds by stage, in their order; empty for a kind that nobody has seen yet."""
        with self._lock:
            return dict(self._seconds.get(kind, {}))


@dataclass
class Job:
    """One piece of work of one session, as seen from both sides.

    Attributes:
        kind: jobs of one kind take about the same time.
    """

    kind: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)
    _told: queue.SimpleQueue[tuple[str, Any]] = field(default_factory=queue.SimpleQueue)

    def stop(self) -> None:
        """Ask for the end of the work; it comes at the next stage, step or layer of a network."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether its end was asked for."""
        return self._stop.is_set()

    def check(self) -> None:
        """Raise `Stopped` when the end was asked for; for the thread that does the work."""
        if self._stop.is_set():
            raise Stopped

    def on_stage(self, name: str) -> None:
        """To be handed to a lift."""
        self.check()
        self._told.put(("stage", name))

    def on_step(self, done: int, total: int) -> None:
        """To be handed to a lift."""
        self.check()
        self._told.put(("step", (done, total)))

    def show(self, news: Any) -> None:
        """Something to look at while the work goes on."""
        self._told.put(("news", news))


def watch(job: Job, work: Callable[[Job], Any], pace: Pace, worker: Executor) -> Iterator[Snapshot | Done]:
    """Have ``work`` done in a thread and tell how far it is, about twice a second.

    Args:
        job: what the work tells of itself, and by which it is stopped.
        work: called with ``job``; what it returns comes last, in a `Done`.
        pace: of earlier jobs; learns of this one when it is finished.
        worker: whose one thread does the work of all jobs in turn: what is being stopped and what comes next do not
            share the processor, and memory that one job has used serves the next.

    Raises:
        Stopped: the work was stopped.
        Exception: what the work raised.
    """
    meter = _Meter(job.kind, pace)
    future = worker.submit(_run, job, work)
    try:
        while not future.done():
            yield meter.read(job._told, TICK_SECONDS)
        yield meter.read(job._told, 0)
    finally:  # the page may have been closed while we were waiting
        job.stop()
    value = future.result()
    meter.finish()
    yield Done(value)


@dataclass(frozen=True)
class Done:
    """The end of a job: what its work returned."""

    value: Any


def one_worker() -> Executor:
    """A worker for `watch`."""
    return ThreadPoolExecutor(1, thread_name_prefix="trilift-demo-job")


def _run(job: Job, work: Callable[[Job], Any]) -> Any:
    """What the thread does; a bug of ours leaves its trace in the log, since the page shows none."""
    with stoppable(job):
        job.check()
        try:
            return work(job)
        except TriliftError:
            raise
        except Exception:
            log.exception("a job of the page failed")
            raise


_here = threading.local()


@contextmanager
def stoppable(job: Job) -> Iterator[None]:
    """Inside the block every layer of every network of this thread is a place where ``job`` can stop."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    def before_layer(*_: Any) -> None:
        mine = getattr(_here, "job", None)
        if mine is not None:
            mine.check()

    handle = register_module_forward_pre_hook(before_layer)
    before, _here.job = getattr(_here, "job", None), job
    try:
        yield
    finally:
        _here.job = before
        handle.remove()


class _Meter:
    """What the page is told, worked out from what the work tells and from what such work took before."""

    def __init__(self, kind: str, pace: Pace) -> None:
        self._kind, self._pace = kind, pace
        self._expected = pace.expected(kind)
        self._began = self._stage_began = self._step_began = time.monotonic()
        self._now = Snapshot()

    def read(self, told: queue.SimpleQueue[tuple[str, Any]], timeout: float) -> Snapshot:
        """Take what was told, waiting for the first of it, and say how far the work is."""
        news: list[Any] = []
        self._now = replace(self._now, news=())
        try:
            self._take(*told.get(timeout=timeout) if timeout else told.get_nowait(), news)
            while True:
                self._take(*told.get_nowait(), news)
        except queue.Empty:
            pass
        elapsed = time.monotonic() - self._began
        left, fraction = self._left(), self._fraction()
        self._now = replace(self._now, elapsed=elapsed, left=left, fraction=fraction, news=tuple(news))
        return self._now

    def finish(self) -> None:
        """The work is done: remember its pace."""
        self._close_stage()
        seconds: dict[str, float] = {}
        for name, value in self._now.passed:
            seconds[name] = seconds.get(name, 0.0) + value
        self._pace.learn(self._kind, seconds)

    def _take(self, what: str, value: Any, news: list[Any]) -> None:
        if what == "stage":
            self._close_stage()
            self._now = replace(self._now, stage=value, done=0, total=0)
        elif what == "step":
            if value[0] <= 1:
                self._step_began = time.monotonic()
            self._now = replace(self._now, done=value[0], total=value[1])
        else:
            news.append(value)

    def _close_stage(self) -> None:
        now = time.monotonic()
        if self._now.stage:
            passed = (*self._now.passed, (self._now.stage, now - self._stage_began))
            self._now = replace(self._now, passed=passed)
        self._stage_began = self._step_began = now

    def _left(self) -> float | None:
        """Seconds of this stage and of those that follow, as far as that is known."""
        now, rest = self._now, self._rest_of_stage()
        behind = {name for name, _ in now.passed} | {now.stage}
        if rest is None or not self._expected:
            return rest if now.total else None
        return rest + sum(seconds for name, seconds in self._expected.items() if name not in behind)

    def _rest_of_stage(self) -> float | None:
        now, at = self._now, time.monotonic()
        if now.done > 1:  # the first step warms things up and says little
            return (at - self._step_began) / (now.done - 1) * (now.total - now.done)
        if now.stage not in self._expected:
            return 0.0 if self._expected else None
        return max(self._expected[now.stage] - (at - self._stage_began), 0.0)

    def _fraction(self) -> float:
        """By time where the pace is known, else by the number of stages; it never reaches 1 before the end."""
        now = self._now
        stages = self._expected or {name: 1.0 for name in dict.fromkeys((*USUAL_STAGES, now.stage)) if name}
        whole = sum(stages.values()) or 1.0
        behind = sum(stages.get(name, 0.0) for name in {name for name, _ in now.passed})
        share = stages.get(now.stage, 0.0)
        inside = now.done / now.total if now.total else 0.0
        if not now.total and self._expected and share:
            inside = min((time.monotonic() - self._stage_began) / share, 0.95)
        return min((behind + share * inside) / whole, 0.99)
