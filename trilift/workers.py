"""Photos lifted by processes of their own: as many cores or GPUs as there are, and none that dies takes the run along.

A worker is this interpreter, started anew; it loads the pipeline and then lifts one photo after the other. What
``--max-memory`` allows is shared out among the workers of a machine or device; where a share does not suffice, there
are fewer of them. Tasks and results go through a worker's standard input and output as pickles, between one user's own
processes. A worker ends when its input does, so none outlives the run, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import IO, Any

from multiview.errors import SettingsError, TriliftError

from .batch import LiftResult, lift_item
from .lanes import Outcome, Task
from .recipe import PipeRecipe
from .settings import LiftSettings, TooLittleMemoryError, parse_memory

_LENGTH = struct.Struct(">Q")
_START = "import sys; sys.path[:] = {path!r}; from trilift.workers import serve; serve()"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

_STARTS = 3  # of a worker that something ends while it loads
_OWN_BYTES = 170_000_000  # of memory, of the process that hands out the tasks, as measured


class Crew:
    """Worker processes, each with a thread here that hands it tasks.

    Args:
        loader: picklable; called in each worker, it gives the pipeline.
        settings: of the run, which the pipeline has to be able to do.
        count: how many workers.
        threads: of torch and numpy in each; None shares the cores out.

    Attributes:
        size: how many photos are in hand at most: as many as there are workers.
    """

    def __init__(
        self, loader: Callable[[], Any], settings: LiftSettings, count: int, threads: int | None = None
    ) -> None:
        self._loader, self._settings = loader, settings
        self._workers: list[_Worker | None] = []
        count = self.size = self._as_many_as_fit(count, threads)
        self._threads_each = threads or max((os.cpu_count() or 1) // count, 1)
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._workers += [None] * (count - len(self._workers))
        self._killed = False
        self._threads = [threading.Thread(target=self._work, args=(slot,), daemon=True) for slot in range(count)]
        for thread in self._threads:
            thread.start()

    def _as_many_as_fit(self, count: int, threads: int | None) -> int:
        """How many workers ``--max-memory`` has room for; the first of them is started to find out."""
        while count > 1 and getattr(self._loader, "max_memory", None) is not None:
            each = threads or max((os.cpu_count() or 1) // count, 1)
            first: _Worker | None = None
            problem: Exception | None
            try:
                first = _Worker(self._loader, self._settings, 0, each, count)
                problem = first.begin()
            except Exception as error:
                problem = error
            if problem is None:
                self._workers = [first]
                break
            if first is not None:
                first.kill()
            if not _is_too_little(problem):
                break  # the first task says what is wrong, or brings it up again
            count = _fewer(count, problem)
        return count

    def submit(self, task: Task) -> None:
        """Take ``task`` on; the first worker that is free gets it."""
        self._tasks.put(task)

    def take(self, timeout: float | None = None) -> Outcome | None:
        """The next outcome, None when there was none for ``timeout`` seconds."""
        try:
            return self._outcomes.get(timeout=timeout)
        except queue.Empty:
            return None

    def pids(self) -> list[int]:
        """Of the workers that are running."""
        return [worker.pid for worker in self._workers if worker is not None and worker.pid is not None]

    def close(self) -> None:
        """Let the workers end when they have done what they were given."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def kill(self) -> None:
        """End the workers at once."""
        self._killed = True
        for worker in self._workers:
            if worker is not None:
                worker.kill()

    def _work(self, slot: int) -> None:
        """Hand tasks to one worker, and start another when it died."""
        while (task := self._tasks.get()) is not None and not self._killed:
            for _ in range(_STARTS):
                outcome = self._done(slot, task)
                worker = self._workers[slot]
                if outcome.result is None and worker is not None:
                    worker.kill()
                    self._workers[slot] = None
                if not (isinstance(outcome.error, WorkerStartError) and outcome.error.by_signal) or self._killed:
                    break  # a worker that is killed while it loads says nothing of the photo, and little of the run
            self._outcomes.put(outcome)
        worker = self._workers[slot]
        if worker is not None:
            worker.finish()
            self._workers[slot] = None

    def _done(self, slot: int, task: Task) -> Outcome:
        """The outcome of a task in a slot's worker; a thread of ours must not end before it has one."""
        try:
            worker = self._workers[slot]
            if worker is None:
                worker = self._workers[slot] = _Worker(
                    self._loader, self._settings, slot, self._threads_each, self.size
                )  # fmt: skip
            return worker.do(task)
        except Exception as error:
            told = f"a worker process could not be started ({type(error).__name__}: {error}). Try fewer --workers."
            return Outcome(task, error=TriliftError(told))


def _is_too_little(problem: Exception) -> bool:
    """Whether a pipeline was refused for ``--max-memory``, which all such errors name."""
    too_little = isinstance(problem, SettingsError) and "--max-memory" in str(problem)
    return too_little or isinstance(problem, TooLittleMemoryError)


def _fewer(count: int, problem: Exception) -> int:
    """How many workers to try after ``count`` had too little memory each."""
    needs = problem.needs_bytes if isinstance(problem, TooLittleMemoryError) else 0
    had = problem.limit_bytes if isinstance(problem, TooLittleMemoryError) else 0
    return max(min(count * had // needs, count - 1) if needs else count // 2, 1)


class WorkerStartError(TriliftError):
    """A worker process ended while it started.

    Attributes:
        by_signal: whether something ended it from outside.
    """

    def __init__(self, message: str, by_signal: bool) -> None:
        super().__init__(message)
        self.by_signal = by_signal


class _Worker:
    """One process, in slot ``slot`` of ``count``."""

    def __init__(
        self, loader: Callable[[], Any], settings: LiftSettings, slot: int, threads: int, count: int = 1
    ) -> None:
        self._hello: bytes | None = pickle.dumps((loader, settings, slot, threads, count))
        environment = {**os.environ, **{name: str(threads) for name in _THREAD_VARIABLES}}
        # The output of what it runs goes to our stderr; its own standard output is ours.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START.format(path=sys.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=environment, start_new_session=True,
        )  # fmt: skip

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process.poll() is None else None

    def do(self, task: Task) -> Outcome:
        """Have ``task`` done, and wait for it. What keeps a worker from starting is no fault of the photo."""
        try:
            if (problem := self.begin()) is not None:
                return Outcome(task, error=problem)
        except (OSError, EOFError) as error:
            how = self._how_it_ended()
            told = f"a worker process ended while it started ({how})"
            told += ". What it said stands above; --workers 0 does without them."
            failure = WorkerStartError(told, how.startswith("signal"))
            failure.__cause__ = error
            return Outcome(task, error=failure)
        try:
            answer = self._asked(pickle.dumps(task))
        except (OSError, EOFError):
            return Outcome(task, died=self._how_it_ended())
        if isinstance(answer, LiftResult):
            return Outcome(task, replace(answer, attempt=task.attempt))
        return Outcome(task, error=answer)

    def begin(self) -> Exception | None:
        """Wait until it has loaded the pipeline, unless it has; what keeps it from that.

        Raises:
            OSError, EOFError: it ended.
        """
        problem: Exception | None = None
        if self._hello is not None:
            problem = self._asked(self._hello)
            self._hello = None
        return problem

    def _asked(self, message: bytes) -> Any:
        """Send a message, and wait for its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None, "both are pipes"
        _send(self._process.stdin, message)
        return pickle.loads(_receive(self._process.stdout))

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "no answer"
        if code >= 0:
            return f"exit status {code}"
        try:
            return f"signal {-code}, {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"

    def finish(self) -> None:
        """Let it end by itself, which it does when its input ends."""
        assert self._process.stdin is not None and self._process.stdout is not None, "both are pipes"
        try:
            self._process.stdin.close()
            self._process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            self.kill()
        self._process.stdout.close()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what could not be sent any more
                if pipe is not None:
                    pipe.close()


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    """One message; EOFError when the other side has gone."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return data


def serve() -> None:
    """The life of a worker: load the pipeline, then answer every task until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which lets us finish what is in hand
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not get between the answers
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(os.fdopen(os.dup(0), "rb"), inbox), daemon=True).start()
    loader, settings, slot, threads, count = pickle.loads(inbox.get())
    pipe: Any = None
    problem: Exception | None = None
    try:
        pipe = _load(loader, slot, threads, count)
        if hasattr(pipe, "check"):
            pipe.check(settings)
    except Exception as error:
        problem = error if isinstance(error, TriliftError) else TriliftError(f"{type(error).__name__}: {error}")
        if _is_too_little(problem):
            told = f"That is what is left for a worker ({count} share it, after what the run itself takes)."
            problem.args = (f"{problem} {told}",)
    _send(answers, pickle.dumps(problem))
    while True:
        task: Task = pickle.loads(inbox.get())
        answer: Any
        try:
            answer = lift_item(
                pipe, task.item, task.folder, task.settings, task.scratch, halvings=task.halvings
            )  # fmt: skip
        except Exception as error:  # a bug that TRILIFT_DEBUG lets through
            answer = TriliftError(f"{task.item.source}: {type(error).__name__}: {error}")
        _send(answers, pickle.dumps(answer))


def _listen(pipe: IO[bytes], inbox: queue.SimpleQueue[bytes]) -> None:
    """Take messages in; when the run is over, or has died, so are we, in the middle of whatever it is."""
    while True:
        try:
            inbox.put(_receive(pipe))
        except (EOFError, OSError):
            os._exit(0)


def _load(loader: Callable[[], Any], slot: int, threads: int, count: int) -> Any:
    """The pipeline; where there are several accelerators and none is named, each worker takes the next one.

    ``max_memory`` is that of the machine or of each accelerator, of which this worker gets its share.
    """
    if not isinstance(loader, PipeRecipe):
        return loader()
    import torch

    from multiview.devices import on_accelerator, pick_device

    torch.set_num_threads(threads)
    sharing, own = count, 0 if on_accelerator(pick_device(loader.device)) else _OWN_BYTES
    if loader.device == "auto" and torch.accelerator.is_available():
        kind, devices = torch.accelerator.current_accelerator(), torch.accelerator.device_count()
        if kind is not None and devices > 1:
            loader = loader.on(f"{kind.type}:{slot % devices}")
            sharing = -(-count // devices)
    if loader.max_memory is not None:
        loader = replace(loader, max_memory=max((parse_memory(loader.max_memory) - own) // sharing, 1))
    return loader()
