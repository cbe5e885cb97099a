"""Telling people how far long work is, and how long each stage took."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

OnStage = Callable[[str], None]
OnStep = Callable[[int, int], None]
"""As in multiview.generator: told after every step how many are done and how many there are."""

# What the stages of a lift are called to people; the keys are those of "seconds" in asset.json.
STAGE_WORDS = {
    "load": "reading the photo",
    "cutout": "cutting out the object",
    "views": "making views",
    "network": "running the network",
    "mesh": "taking the surface",
    "simplify": "reducing triangles",
    "check": "comparing with the photo",
    "write": "writing files",
}


class Stopwatch:
    """Seconds per named stage, in the order in which the stages ran.

    Attributes:
        seconds: {stage: wall-clock seconds}, rounded to milliseconds.
    """

    def __init__(self, on_stage: OnStage | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._on_stage = on_stage

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body as ``name``, announcing its start; what fails is not recorded, what runs again adds up."""
        if self._on_stage is not None:
            self._on_stage(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)

    @property
    def total(self) -> float:
        """Seconds of all stages together."""
        return round(sum(self.seconds.values()), 3)


def note_on_stderr(text: str) -> None:
    """A line for people where nobody else takes it."""
    print(f"trilift: {text}", file=sys.stderr)


class TimeLeft:
    """How long steps will still take, judged by those that are done.

    The first step has to wait for what comes before it and warms things up, so that it counts only while there is no
    other.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._begun = self._first = clock()

    def seconds(self, done: int, total: int) -> float:
        """Seconds left when ``done`` steps of ``total`` are done, done >= 1; to be asked after every step."""
        now = self._clock()
        if done == 1:
            self._first = now
            return (now - self._begun) * (total - 1)
        return (now - self._first) / (done - 1) * (total - done)


def in_words(seconds: float) -> str:
    """A time for people: ``8 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Narrator:
    """One line per event on a text stream (stderr): a line per stage on a terminal, a line per photo elsewhere.

    Args:
        stream: where the lines go.
        quiet: only `problem` is written.
    """

    def __init__(self, stream: TextIO, quiet: bool = False) -> None:
        self._stream = stream
        self._quiet = quiet
        self._per_stage = not quiet and stream.isatty()
        self._line_open = False  # whether a line that rewrites itself is still being written

    def say(self, text: str) -> None:
        """A line for people, left out when quiet."""
        if not self._quiet:
            self._write(text)

    def problem(self, text: str) -> None:
        """A failure; always written."""
        self._write(f"trilift: {text}")

    def stages_of(self, photo: str) -> OnStage:
        """What to hand to a lift of ``photo`` so that its stages are told."""

        def on_stage(name: str) -> None:
            if self._per_stage:
                self._write(f"  {photo}: {STAGE_WORDS.get(name, name)} ...")

        return on_stage

    def steps_of(self, photo: str) -> OnStep:
        """What to hand to a view generator so that its steps are told, with the time left.

        On a terminal one line rewrites itself; elsewhere there is a line about every tenth of the way.
        """
        left = TimeLeft()
        told = 0

        def on_step(done: int, total: int) -> None:
            nonlocal left, told
            seconds = left.seconds(done, total)
            before, told = told, done
            if done == total:  # what comes next begins anew
                left, told = TimeLeft(), 0
            if self._quiet:
                return
            rest = f", about {in_words(seconds)} left" if done < total else ""
            text = f"  {photo}: views: step {done} of {total}{rest}"
            if self._per_stage:
                self._rewrite(text, last=done == total)
            elif done * 10 // total > before * 10 // total:
                self._write(text)

        return on_step

    def _rewrite(self, text: str, last: bool) -> None:
        """Write over the line that is open; the last of it closes the line."""
        self._stream.write(f"\r{text}\x1b[K" + ("\n" if last else ""))
        self._stream.flush()
        self._line_open = not last

    def _write(self, text: str) -> None:
        start = "\n" if self._line_open else ""
        self._line_open = False
        self._stream.write(f"{start}{text}\n")
        self._stream.flush()
