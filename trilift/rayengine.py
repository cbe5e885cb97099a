"""Folder runs on many machines: the same work on each photo, as a Ray Data pipeline with a pool of actors.

::

    photos ──► blocks in the object store ──► actors, each with a loaded pipeline ──► rows ──► results.jsonl
    (driver)                                   (any machine)                                    (driver)

What is done with a photo is `trilift.batch.lift_item`, as on one machine; who does it, when, and again when a machine
is lost, is Ray's business. Beside Ray's own parts there is one small actor, `Book`, on the driver's machine: it knows
what the journal says and how often a photo was begun, so that a photo that kills its worker each time becomes a row,
and a run that is told to stop ends with what is in hand.
"""

from __future__ import annotations

import os
import pickle
import queue
import shutil
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiview.errors import ImageError, SettingsError, TriliftError

from .settings import LiftSettings

if TYPE_CHECKING:
    from .batch import LiftResult
    from .sources import PhotoItem
    from .storage import OutStore

Loader = Callable[[], Any]
"""Picklable; gives the pipeline when called, as `trilift.recipe.PipeRecipe` does."""

MAX_TRIES = 3
"""How often a photo may lose its worker before it is given up."""

_BLOCK_ROWS = 64  # photos a block at most: a lost worker's block is gone through again, its finished photos skipped
_BLOCKS_PER_ACTOR = 8  # in short runs, so that all actors have something to do to the end
_MAX_HALVINGS, _LOWEST_RESOLUTION = 2, 64  # of the resolution, as `trilift.batch` lowers it for want of memory
_RECORD_FILE = "asset.json"
_UPLOAD_SECONDS = 30.0  # between uploads of the journal to object storage
_MAX_WAITING = 4096  # rows that have come and are not yet written down
_WATCH_SECONDS = 0.2  # between looks at whether to stop
_STOPPED = "stopped"  # status of rows that stand for photos that were not begun; nobody else sees them


def run_ray(
    items: Iterable[PhotoItem],
    out: str | Path,
    settings: LiftSettings,
    loader: Loader,
    *,
    address: str | None = None,
    actors: int | None = None,
    retry_failed: bool = False,
    stop: threading.Event | None = None,
    photos: Path | None = None,
    count: Callable[[], int | None] | None = None,
) -> Iterator[LiftResult]:
    """Lift photos on a Ray cluster; rows go to ``out``'s journal as they come, and a report ends the run.

    Ray is started, and ended with the run, unless this process is connected to it already. What is finished, and what
    failed before with the same photo, settings and weights, is known by the same rules as in `trilift.runner`. One bad
    photo gives one ``failed`` row; a worker that dies is started again and goes on with its photo, at most `MAX_TRIES`
    times. Photos are not claimed, so the run as a whole claims ``out``: meanwhile no other run may work on it.

    Args:
        items: the photos; what they name must be readable on every machine of the cluster.
        out: output folder on a file system that all machines share, or an fsspec URL.
        settings: how to lift, and what to write.
        loader: see `Loader`; it is called once in each actor.
        address: of a cluster, as ``ray.init`` takes it (``auto``, ``ray://host:10001``); None starts one on this
            machine.
        actors: how many workers at most; one a GPU, or one a core where there are no GPUs, when left out.
        retry_failed: lift photos again that failed before and are as they were then.
        stop: when set, photos in hand are finished and no other is begun.
        photos: the folder of the photos where they are in one, for the report.
        count: gives how many photos there are, for the report; asked at the end.

    Yields:
        Results in the order in which they are finished. The iterator can be closed at any time, which finishes the
        photos that are in hand and leaves nothing half-written.

    Raises:
        ImageError: there are no photos.
        SettingsError: Ray is not installed, there is no cluster at ``address``, ``actors`` is not positive, or another
            run works on ``out``.
        TriliftError: the pipeline cannot be loaded on a worker; what was finished is kept.
        OutputError: the journal or the report cannot be written.
    """
    if actors is not None and actors < 1:
        raise SettingsError(f"actors={actors}: expected at least 1.")
    _need_ray()
    stream = iter(items)
    first = next(stream, None)  # so that a wrong folder fails before anything is started
    if first is None:
        raise ImageError(f"{out}: there is no photo to lift. Look at the folder, and at --glob.")
    from .claims import Claims
    from .storage import OutStore

    store = OutStore(out)
    claims = Claims(store.local, alone=True)  # sweeps what a killed run left, too
    clean = fetched = False
    try:
        store.fetch_log()
        fetched = True
        with _cluster(address), _book(store.local, retry_failed, stop) as book:
            reader = _Reader(_rows(chain([first], stream), str(out), settings, loader, book, actors))
            clean = yield from _written_down(reader, store, lambda: book.stop.remote())
    finally:
        try:
            if fetched:  # else a shorter log would take the place of the one that could not be read
                _report(store, photos, None if count is None else count())
        finally:
            claims.close(clean)


class _Reader:
    """Takes rows from Ray in a thread of its own, so that those that come together are written down together.

    A row that is seen on the disk by itself costs milliseconds; a thousand workers finish more than that allows.

    Args:
        rows: to be read; belongs to the thread from now on.

    Attributes:
        ended: whether nothing will come any more.
    """

    def __init__(self, rows: Iterator[dict[str, Any]]) -> None:
        self.ended = False
        self._failure: BaseException | None = None
        self._queue: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._read, args=(rows,), daemon=True)
        self._thread.start()

    def _read(self, rows: Iterator[dict[str, Any]]) -> None:
        last: BaseException | None = None
        try:
            for row in rows:
                self._queue.put(row)
        except BaseException as error:  # raised where the rows are taken
            last = error
        self._queue.put(last)

    def take(self) -> list[dict[str, Any]]:
        """All rows that are there, at least one; none at the end, when what the reading raised is raised."""
        found: list[dict[str, Any]] = []
        while not self.ended and not (found and self._queue.empty()):
            row = self._queue.get()
            if isinstance(row, dict):
                found.append(row)
                continue
            self.ended, self._failure = True, row
            self._thread.join()
        if not found and self._failure is not None:
            raise self._failure
        return found


def _written_down(reader: _Reader, store: OutStore, stop: Callable[[], None]) -> Generator[LiftResult, None, bool]:
    """Append what is new to the journal and hand it on; returns whether no worker died.

    Whoever closes it early gets no further results, but what is in hand is finished and written down.
    """
    from .journal import Journal

    journal, clean, can_write, next_upload = Journal(store.local), True, True, 0.0
    try:
        while rows := reader.take():
            results = _results(rows)
            can_write = False
            journal.append(*(result for result, known in results if not known))
            can_write = True
            clean = clean and all(result.attempt == 1 for result, _ in results)
            for result, _ in results:
                yield result
            if store.remote and time.monotonic() > next_upload:
                store.publish_log()
                next_upload = time.monotonic() + _UPLOAD_SECONDS
    finally:
        if not reader.ended:
            stop()
            while rows := reader.take():
                if can_write:
                    left = _results([row for row in rows if "fatal" not in row])
                    journal.append(*(result for result, known in left if not known))
    return clean


def _results(rows: list[dict[str, Any]]) -> list[tuple[LiftResult, bool]]:
    """(result, whether the journal has it already) of the rows of workers.

    Raises:
        TriliftError: a worker cannot work at all.
    """
    from .batch import LiftResult

    for row in rows:
        if (fatal := row.get("fatal")) is not None:
            raise TriliftError(str(fatal))
    told = [row for row in rows if row["status"] != _STOPPED]
    return [
        (replace(LiftResult.from_json(row), earlier=row["known"] and row["status"] == "failed"), row["known"])
        for row in told
    ]


def _report(store: OutStore, photos: Path | None, count: int | None) -> None:
    """Write the report where the run left anything, and see it and the journal where they belong."""
    from .journal import RESULTS_FILE
    from .report import write_report

    if not (store.local / RESULTS_FILE).is_file():
        return
    store.publish_log(whole=True)
    for page in write_report(store.local, photos=photos, count=count):
        store.publish_file(page.name)


def _need_ray() -> None:
    """Raise unless Ray Data can be imported."""
    # Before the import, which reads it: nobody asked for figures to be sent anywhere.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"--engine ray needs the ray extra ({error}). Try: pip install 'trilift[ray]', or --engine local."
        ) from error


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Be connected to a cluster: the one that this process knows already, the one at ``address``, or one of our own."""
    import logging

    import ray

    if ray.is_initialized():
        yield
        return
    local: dict[str, Any] = {"address": "local", "include_dashboard": False}
    # Ray puts a handler of its own in place of the one by which the command line finishes what is in hand.
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            **(local if address is None else {"address": address}),
            log_to_driver=False, logging_level=logging.ERROR, namespace="trilift",
        )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = "on this machine" if address is None else f"at {address}"
        raise SettingsError(
            f"--engine ray: no cluster {where} ({error}). Check --ray-address; this Ray is {ray.__version__}."
        ) from error
    finally:
        if in_main and before is not None:
            signal.signal(signal.SIGTERM, before)
    try:
        yield
    finally:
        ray.shutdown()


class Book:
    """What all workers of a run have to know of each other; lives on the driver's machine, where the journal is.

    Args:
        out: the run's output folder on that machine.
        retry_failed: whether failures of earlier runs count for nothing.
    """

    def __init__(self, out: str, retry_failed: bool) -> None:
        from .journal import Journal, Known

        journal = Journal(out)
        self._known = Known(journal)
        self._known.refresh()
        self._has_history = journal.path.exists()
        self._retry_failed = retry_failed
        self._tries: dict[str, int] = {}  # of photos in hand
        self._stopping = False

    def begin(self, source: str, finished: str | None) -> tuple[int, bool]:
        """Note that ``source`` is begun, and that the same worker is done with ``finished``.

        Returns:
            Which try it is, from 1, or 0 when no photo shall be begun any more; and whether `told` knows anything.
        """
        if finished is not None and finished != source:
            self._tries.pop(finished, None)
        if self._stopping:
            return 0, False
        self._tries[source] = self._tries.get(source, 0) + 1
        return self._tries[source], self._has_history

    def told(self, source: str, fingerprint: str) -> tuple[bool, dict[str, Any] | None]:
        """Whether the journal says that this was finished; and the row by which it failed and is not tried again."""
        if self._known.is_finished(source, fingerprint):
            return True, None
        return False, None if self._retry_failed else self._known.failure(source, fingerprint)

    def stop(self) -> None:
        """Let no further photo begin."""
        self._stopping = True


@contextmanager
def _book(out: Path, retry_failed: bool, stop: threading.Event | None) -> Iterator[Any]:
    """The run's `Book` as an actor on this machine, where ``out`` is; it is told when ``stop`` is set."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Book)
    book = actor.options(num_cpus=0, scheduling_strategy=here).remote(str(out.resolve()), retry_failed)
    ended = threading.Event()

    def watch() -> None:
        while stop is not None and not ended.wait(_WATCH_SECONDS):
            if stop.is_set():
                book.stop.remote()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield book
    finally:
        ended.set()
        watcher.join()
        ray.kill(book)


def _rows(
    items: Iterable[PhotoItem], out: str, settings: LiftSettings, loader: Loader, book: Any, actors: int | None
) -> Iterator[dict[str, Any]]:
    """The rows of all photos as they are finished."""
    import logging

    import ray
    from ray.data import ActorPoolStrategy

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    count, gpus = _pool(actors, getattr(loader, "device", "auto"))
    blocks = _blocks(items, count)
    if not blocks:
        return
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # a row leaves its worker when it is there, not with the rest of its block
    context.execution_options.preserve_order = False
    # Ray Data starts workers that died again, and gives them the block that they had, as often as it takes.
    pool = ActorPoolStrategy(min_size=1, max_size=count, initial_size=count, max_tasks_in_flight_per_actor=2)
    with ray.data.DataContext.current(context):
        lifted = ray.data.from_arrow_refs(blocks).map_batches(
            _Lifter, fn_constructor_args=(out, settings, loader, book), batch_size=None, batch_format="pyarrow",
            compute=pool, num_cpus=None if gpus else 1, num_gpus=gpus or None,
        )  # fmt: skip
        tables: Iterable[Any] = lifted.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow")
        for table in tables:
            for row in table.column("row").to_pylist():
                yield pickle.loads(row)


def _pool(actors: int | None, device: str) -> tuple[int, float]:
    """(workers at most, GPUs for each) on the cluster that this process is connected to."""
    import ray

    there = ray.cluster_resources()
    gpus = 0 if device == "cpu" else int(there.get("GPU", 0))
    most = gpus or max(int(there.get("CPU", 1)), 1)
    return min(actors or most, most), 1.0 if gpus else 0.0


def _blocks(items: Iterable[PhotoItem], actors: int) -> list[Any]:
    """References to blocks of photos in the object store, which puts on disk what it cannot hold."""
    import pyarrow
    import ray

    stream = iter(items)
    first = list(islice(stream, _BLOCK_ROWS * _BLOCKS_PER_ACTOR * actors))
    rows = min(max(len(first) // (_BLOCKS_PER_ACTOR * actors), 1), _BLOCK_ROWS)
    every = chain(first, stream)
    blocks = []
    while block := list(islice(every, rows)):
        blocks.append(ray.put(pyarrow.table({"item": [pickle.dumps(item) for item in block]})))
    return blocks


class _Lifter:
    """A worker: holds the pipeline, and lifts the photos of one block after the other.

    Args:
        out: output folder or URL.
        settings, loader: see `run_ray`.
        book: the run's `Book`.
    """

    def __init__(self, out: str, settings: LiftSettings, loader: Loader, book: Any) -> None:
        from .storage import OutStore

        self._settings, self._loader, self._book = settings, loader, book
        scratch = Path(tempfile.mkdtemp(prefix="trilift-ray-"))
        weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)
        self._store = OutStore(out, scratch / "out")
        self._photo_scratch = scratch / "photo"
        self._pipe: Any = None
        self._finished: str | None = None

    def __call__(self, block: Any) -> Iterator[Any]:
        """A table with a column ``item`` → a table with one row for each of its photos, one after the other."""
        import pyarrow

        for data in block.column("item").to_pylist():
            yield pyarrow.table({"row": [pickle.dumps(self._row(pickle.loads(data)))]})

    def _row(self, item: PhotoItem) -> dict[str, Any]:
        """What became of one photo, as the journal has it; never raises, since that would end the run."""
        import ray

        number, has_history = ray.get(self._book.begin.remote(item.source, self._finished))
        self._finished = item.source
        if number == 0:
            return {"source": item.source, "status": _STOPPED}
        if self._pipe is None:
            try:
                pipe = self._loader()
                if hasattr(pipe, "check"):
                    pipe.check(self._settings)
                self._pipe = pipe
            except Exception as error:
                return {"fatal": f"A worker could not load the model: {error}"}
        start = time.perf_counter()
        try:
            found, known = self._looked_up(item, number, has_history)
            result = found or self._published(self._lifted(item))
        except Exception as error:
            text = f"{item.source}: unexpected {type(error).__name__}: {error}. This is a bug; please report it."
            result, known = _failed(item, start, text, "bug"), False
        return {**replace(result, attempt=number).as_json(), "known": known}

    def _looked_up(self, item: PhotoItem, number: int, has_history: bool) -> tuple[LiftResult | None, bool]:
        """What is to be said of a photo without lifting it, None where it must be; and whether the journal says so.

        Args:
            item: the photo.
            number: which try it is.
            has_history: whether the journal may know of it.
        """
        import ray

        from .batch import LiftResult, content_sums

        start, record = time.perf_counter(), self._store.record(item.place)
        if number <= MAX_TRIES and not has_history and record is None:
            return None, False
        try:
            sums = content_sums(item, item.fetch(self._photo_scratch))
        except TriliftError:
            sums = content_sums(item, None)
        wanted = self._pipe.fingerprint(*sums, self._settings)
        marks = {"mark": item.mark(), "run": self._pipe.fingerprint("", None, self._settings), "sha256": sums[0]}
        known, failed = ray.get(self._book.told.remote(item.source, wanted)) if has_history else (False, None)
        if record is not None and self._is_wanted(record, wanted, sums, known) and self._is_whole(item, record, known):
            seconds = round(time.perf_counter() - start, 3)
            return self._skipped(item, record, seconds, fingerprint=wanted, **marks), known
        if failed is not None:
            return replace(LiftResult.from_json(failed), seconds=0.0), True
        if number > MAX_TRIES:
            text = (
                f"{item.source}: the worker that lifted it died {MAX_TRIES} times. It may want more memory than there "
                "is: try it alone with trilift lift, or lower --resolution."
            )
            return replace(_failed(item, start, text, "crash"), fingerprint=wanted, **marks), False
        return None, False

    def _is_wanted(self, record: dict[str, Any], wanted: str, sums: tuple[str, str | None], known: bool) -> bool:
        """Whether an asset is what is asked for; at a lower resolution only where the journal knows of it."""
        there = record.get("fingerprint")
        if there == wanted:
            return True
        resolutions = (self._settings.resolution >> halvings for halvings in range(1, _MAX_HALVINGS + 1))
        lowered = (self._settings.replaced(resolution=number) for number in resolutions if number >= _LOWEST_RESOLUTION)
        return known and any(there == self._pipe.fingerprint(*sums, each) for each in lowered)

    def _is_whole(self, item: PhotoItem, record: dict[str, Any], known: bool) -> bool:
        """Whether the asset's files are there in their sizes, and, where no row vouches for them, with their sums."""
        from .lookup import sums_agree

        try:
            sizes = self._store.sizes(item.place)
            if any(sizes.get(str(file["name"])) != int(file["bytes"]) for file in record["files"]):
                return False
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return known or self._store.remote or sums_agree(self._store.local / item.place, record)

    def _skipped(self, item: PhotoItem, record: dict[str, Any], seconds: float, **told: Any) -> LiftResult:
        """The result for an asset that is there already."""
        from .batch import LiftResult

        names = sorted([*(str(file["name"]) for file in record["files"]), _RECORD_FILE])
        return self._placed(
            LiftResult(
                item.source, "skipped", seconds, files=tuple(names), place=item.place,
                warnings=tuple(map(str, record.get("warnings", ()))), checks=dict(record.get("checks") or {}), **told,
            )
        )  # fmt: skip

    def _lifted(self, item: PhotoItem) -> LiftResult:
        from .batch import lift_item

        return lift_item(self._pipe, item, self._store.local / item.place, self._settings, self._photo_scratch)

    def _published(self, result: LiftResult) -> LiftResult:
        """See a lifted asset on the disk or in object storage, its preview with it."""
        if result.status != "done" or result.folder is None or result.place is None:
            return result
        from .journal import sync_files
        from .preview import preview_bytes

        try:
            preview_bytes(result.folder)
            if self._store.remote:
                self._store.publish(result.place)
            else:
                sync_files(result.folder)
        except (TriliftError, OSError) as error:
            return replace(result, status="failed", folder=None, error=str(error), cause=type(error).__name__)
        return self._placed(result)

    def _placed(self, result: LiftResult) -> LiftResult:
        """With the asset's folder as people know it."""
        if self._store.remote:
            return replace(result, folder=None, url=f"{self._store.name}/{result.place}")
        return replace(result, folder=self._store.local / str(result.place))


def _failed(item: PhotoItem, start: float, text: str, cause: str) -> LiftResult:
    from .batch import LiftResult

    seconds = round(time.perf_counter() - start, 3)
    return LiftResult(item.source, "failed", seconds, error=text, cause=cause, place=item.place)
