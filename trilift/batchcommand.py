"""``trilift batch``: a folder of photos from the command line; `trilift.runner` does it.

Ctrl-C (or SIGTERM) once: what is in hand is finished, and the same command goes on from there later. Twice: at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from multiview.errors import SettingsError, TriliftError

from .progress import Narrator, in_words

if TYPE_CHECKING:
    from .batch import LiftResult
    from .runner import RunOptions
    from .settings import LiftSettings

OK, FAILED, INTERRUPTED = 0, 1, 130
ENGINES = ("local", "ray")
_TEXT = (
    "Lift every photo below FOLDER. Sub-folders and names are kept below OUT, with results.jsonl and report.html. Run "
    "it again to go on where it stopped: what is finished and unchanged is skipped, and what failed waits for "
    "--retry-failed. Several of these commands may work on one OUT; they share the photos. Ctrl-C finishes what is in "
    "hand; a second one stops at once."
)
_FOLDER_HELP = (
    "searched with its sub-folders; or a list of paths or URLs (.txt), tar shards (x-{000..099}.tar, as webdataset "
    "writes them), or a URL of any of these, such as s3://bucket/photos or https://host/list.txt"
)
_COUNT_SECONDS = 0.5  # a folder that is counted so soon is told of at the beginning
_TELL_SECONDS = 0.2  # between two changes of the line that rewrites itself


def add_parser(commands: Any, add_lift_options: Callable[[argparse.ArgumentParser], None], run: Any) -> None:
    """Add ``batch`` to the commands of the command line; ``run`` is what its arguments are given to."""
    parser = commands.add_parser("batch", help="lift a folder of photos; resumes", description=_TEXT)
    parser.add_argument("folder", type=_where, metavar="FOLDER", help=_FOLDER_HELP)
    add_lift_options(parser)
    add = parser.add_argument_group("folder").add_argument
    add("--glob", metavar="PATTERN", help="only photos whose path matches, such as '*.jpg' or 'cars/*'")
    add("--limit", type=int, metavar="N", help="at most N photos")
    add("--retry-failed", action="store_true", help="try again what failed before with the same photo and settings")
    workers_help = "processes that lift, each with its own model; 0: this one alone (default %(default)s)"
    add("--workers", type=int, default=0, metavar="N", help=workers_help)
    add("--threads", type=int, metavar="N", help="of each worker (default: the cores shared out)")
    add("--batch-size", type=int, metavar="N", help="photos in one pass of the network (default: by the device)")
    add(
        "--engine", choices=ENGINES, default="local", help="ray: on a cluster, with the extra ray (default %(default)s)"
    )
    add("--ray-address", metavar="ADDR", help="of a running Ray cluster (default: one is started here)")
    parser.set_defaults(command=run, views_dir=None, side_photos=None)


def _where(text: str) -> str | Path:
    return text if "://" in text else Path(text)


def _out(path: Path) -> str | Path:
    """The output folder, with the second slash of a URL, which `Path` takes away."""
    url = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)(.*)", path.as_posix())
    return path if url is None else f"{url[1]}://{url[2]}"


def run(args: argparse.Namespace, settings: LiftSettings) -> int:
    """Do what the arguments say; returns the exit status.

    Raises:
        SettingsError: options that do not go together, or a number out of range.
        TriliftError: there are no photos, the model cannot be loaded, or results cannot be written.
    """
    narrator = Narrator(sys.stderr, args.quiet)
    args.out = _out(args.out)
    from . import registry
    from .runner import RunOptions

    options = RunOptions(
        args.glob, args.limit, args.retry_failed, args.workers, args.threads, args.batch_size
    )  # fmt: skip
    if args.threads is not None and not args.workers:
        raise SettingsError(f"--threads {args.threads} is of each worker process. Give --workers, too.")
    if args.batch_size is not None and (args.workers or args.engine == "ray"):
        raise SettingsError(f"--batch-size {args.batch_size} is for lifts in this process: workers take one by one.")
    if args.ray_address is not None and args.engine != "ray":
        raise SettingsError(f"--ray-address {args.ray_address} belongs to --engine ray. Give that, too.")
    for named in (args.model, args.views):  # a wrong name fails before torch is loaded
        if named is not None:
            registry.resolve(named)
    with _Processes() as processes:
        return _run(args, settings, options, narrator, processes)


def _run(
    args: argparse.Namespace, settings: LiftSettings, options: RunOptions, narrator: Narrator, processes: _Processes
) -> int:
    from .recipe import PipeRecipe

    recipe = PipeRecipe(
        args.model, args.views, processes.device or args.device, args.dtype, args.revision, args.commercial_ok,
        args.max_memory,
    )  # fmt: skip
    stop = threading.Event()
    counter = _Counter(args.folder, args.out, options)
    tally = Tally(narrator, counter, sys.stderr, quiet=args.quiet, as_json=args.json)
    begin = _ray_results if args.engine == "ray" else _local_results
    with _signals(stop, narrator):
        results = begin(args, settings, options, recipe, stop, counter, narrator)
        counter.start()
        if counter.wait(_COUNT_SECONDS) is not None:
            narrator.say(f"{counter.total} photos in {args.folder}")
        with contextlib.closing(results):
            for result in results:
                tally.take(result)
    return tally.close(args.out, stopped=stop.is_set())


def _local_results(
    args: argparse.Namespace, settings: LiftSettings, options: RunOptions, recipe: Any, stop: threading.Event,
    counter: _Counter, narrator: Narrator,
) -> Any:  # fmt: skip
    from .runner import lift_folder

    return lift_folder(
        recipe, args.folder, args.out, settings, options, stop=stop, count=lambda: counter.total, on_note=narrator.say
    )


def _ray_results(
    args: argparse.Namespace, settings: LiftSettings, options: RunOptions, recipe: Any, stop: threading.Event,
    counter: _Counter, narrator: Narrator,
) -> Any:  # fmt: skip
    """The same on a Ray cluster; a pipeline of Ray Data that runs `trilift.batch.lift_item`."""
    from .rayengine import run_ray
    from .sources import photo_items

    items = photo_items(args.folder, args.out, glob=options.glob, limit=options.limit)
    photos = args.folder if isinstance(args.folder, Path) and args.folder.is_dir() else None
    return run_ray(
        items, args.out, settings, recipe, address=args.ray_address, actors=options.workers or None,
        retry_failed=options.retry_failed, stop=stop, photos=photos, count=lambda: counter.total,
    )  # fmt: skip


class _Counter:
    """Counts the photos of a run beside the work; of lists, folders and shards of this machine."""

    def __init__(self, where: str | Path, out: str | Path, options: RunOptions) -> None:
        self.total: int | None = None
        self._arguments = (where, out, options)
        self._done = threading.Event()

    def start(self) -> None:
        """Begin to count in a thread of its own."""
        if "://" not in str(self._arguments[0]):
            threading.Thread(target=self._count, daemon=True).start()

    def wait(self, seconds: float) -> int | None:
        """The number, if it is known within so many seconds."""
        self._done.wait(seconds)
        return self.total

    def _count(self) -> None:
        from .sources import photo_items

        where, out, options = self._arguments
        with contextlib.suppress(TriliftError, OSError):  # the run itself says what is wrong
            self.total = sum(1 for _ in photo_items(where, out, glob=options.glob, limit=options.limit))
        self._done.set()


class Tally:
    """Tells of results as they come, and how far the run is: on a terminal in a line that rewrites itself.

    Args:
        narrator: for lines that stay.
        counter: knows how many photos there are, as soon as it does.
        stream: where the line goes that rewrites itself, if it is a terminal.
        quiet: failures alone are told.
        as_json: a line of JSON for each result goes to stdout.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        narrator: Narrator,
        counter: _Counter,
        stream: TextIO,
        *,
        quiet: bool = False,
        as_json: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = {"done": 0, "skipped": 0, "failed": 0}
        self._narrator, self._counter, self._stream = narrator, counter, stream
        self._live = stream.isatty() and not quiet
        self._as_json, self._clock = as_json, clock
        self._begun: float | None = None
        self._earlier = 0
        self._told, self._last = 0.0, ""

    def take(self, result: LiftResult) -> None:
        """Count and tell one result."""
        if self._begun is None:
            self._begun = self._clock() - (result.seconds if result.status == "done" else 0.0)
        self.counts[result.status] += 1
        self._earlier += result.earlier
        self._last = result.source
        if self._as_json:
            from .journal import json_line  # --help need not wait for it

            print(json_line(result.as_json()), flush=True)
        if self._live:
            self._stream.write("\r\x1b[K")
        self._tell(result)
        if self._live and self._clock() > self._told + _TELL_SECONDS:
            self._told = self._clock()
            self._stream.write(f"\r{self.line()}\x1b[K")
            self._stream.flush()

    def _tell(self, result: LiftResult) -> None:
        if result.status == "failed":
            self._narrator.problem(result.error or f"{result.source}: failed")
            return
        if self._live and result.status == "skipped":
            return  # the line that rewrites itself counts them
        for warning in result.warnings if result.status == "done" else ():
            self._narrator.say(f"{result.source}: warning: {warning}")
        for note in result.notes:
            self._narrator.say(f"{result.source}: {note}")
        done = "already there, skipped" if result.status == "skipped" else f"lifted in {result.seconds:.1f} s"
        where = result.url or result.folder
        self._narrator.say(f"{result.source}: {done}: {where}")

    def line(self) -> str:
        """How far the run is: ``[120/2000] 3 failed, 14.2 photos/min, about 2 h 12 min left``."""
        finished, total = sum(self.counts.values()), self._counter.total
        told = [f"[{finished}/{'?' if total is None else total}] {self.counts['failed']} failed"]
        worked = finished - self.counts["skipped"] - self._earlier
        seconds = self._clock() - (self._begun if self._begun is not None else self._clock())
        if worked and seconds >= 1:  # before that a rate says nothing
            told.append(f"{60 * worked / seconds:.1f} photos/min")
            if total is not None and total > finished:
                told.append(f"about {in_words(seconds / worked * (total - finished))} left")
        return ", ".join(told)

    def close(self, out: str | Path, *, stopped: bool) -> int:
        """Say what came out; returns the exit status."""
        if self._live:
            self._stream.write("\r\x1b[K")
        told = ", ".join(f"{number} {status}" for status, number in self.counts.items())
        if self._earlier:
            told += f" ({self._earlier} of them in earlier runs; --retry-failed tries again)"
        self._narrator.say(f"{told}. See {_inside(out, 'report.html')} and {_inside(out, 'results.jsonl')}.")
        if stopped:
            where = f"after {self._last}" if self._last else "before the first photo"
            total = f" of {self._counter.total}" if self._counter.total is not None else ""
            self._narrator.say(
                f"Stopped {where} ({sum(self.counts.values())}{total} photos). The same command goes on from there."
            )
            return INTERRUPTED
        return FAILED if self.counts["failed"] else OK


def _inside(out: str | Path, name: str) -> str:
    return f"{out.rstrip('/')}/{name}" if isinstance(out, str) else str(out / name)


@contextlib.contextmanager
def _signals(stop: threading.Event, narrator: Narrator) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM set ``stop``, and the second end this process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: Any) -> None:
        if stop.is_set():
            os._exit(INTERRUPTED)  # workers see their input end; what is half-written is swept by the next run
        stop.set()
        narrator.say("\nfinishing what is in hand; once more stops at once")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Processes:
    """This process among those of ``accelerate launch``; alone, where nobody launched any.

    Attributes:
        device: of this process, None to choose as always.
    """

    def __init__(self) -> None:
        self.device: str | None = None
        self._state: Any = None

    def __enter__(self) -> _Processes:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            self._state = PartialState()
            self.device = str(self._state.device)
        return self

    def __exit__(self, *_: object) -> None:
        if self._state is not None:
            self._state.destroy_process_group()
