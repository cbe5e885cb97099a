"""Telling people how far long work is, and how long each stage took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

OnStage = Callable[[str], None]

# What the stages of a lift are called to people; the keys are those of "seconds" in asset.json.
STAGE_WORDS = {
    "load": "reading the photo",
    "cutout": "cutting out the object",
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
        """Time the body as ``name`` and announce its start; a stage that fails is not recorded."""
        if self._on_stage is not None:
            self._on_stage(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)

    @property
    def total(self) -> float:
        """Seconds of all stages together."""
        return round(sum(self.seconds.values()), 3)


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

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()
