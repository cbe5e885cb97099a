"""Folder runs: which photos there are, which are finished, who lifts the rest, and what is written down.

::

    photo_items ──► claimed? finished? ──► Lanes (this process) or Crew (workers) ──► results.jsonl ──► the caller
      sources       claims, journal           lanes, workers                           journal

A photo's way: it is claimed, so that no other process takes it; its asset and the log are looked at, after the claim,
so that what another process did meanwhile is seen; it is lifted and its asset's files are seen on the disk; its row is
appended; the claim is given back; the caller gets the result. Whatever dies in between, the next run finds either a
whole asset or none.
"""

from __future__ import annotations

import itertools
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiview.errors import ImageError, OutputError, SettingsError

from .batch import LiftResult
from .claims import Claims
from .journal import Journal, sync_files
from .lanes import Lanes, Outcome, Task
from .lookup import Loader, Lookup
from .recipe import PipeRecipe
from .settings import LiftSettings, parse_memory
from .sources import PhotoItem, photo_items
from .storage import OutStore
from .workers import Crew

if TYPE_CHECKING:
    from .pipeline import ImageTo3D

_POLL_SECONDS = 0.1  # how often photos in other processes' hands are looked at
_MAX_DEFERRED = 64
_SPARE = 2  # claimed beyond those in hand, so that nobody waits for the next one
_AHEAD = 8  # results that may wait for those of photos before them, as a multiple of those in hand
_ATTEMPTS = 2
_UPLOAD_SECONDS = 30.0


@dataclass(frozen=True)
class RunOptions:
    """How a folder is gone through; nothing here changes a result.

    Attributes:
        glob, limit: see `trilift.sources.photo_items`.
        retry_failed: try photos again that failed before; without it they wait until photo, settings or weights change.
        workers: processes beside this one that lift, each with a pipeline of its own; 0 lifts in this one. A photo that
            takes its process down costs a worker, but would end a run that has none.
        threads: of torch and numpy in each worker; None shares the cores out.
        batch_size: pictures in one pass of the network at most; None lets the device decide.

    Raises:
        SettingsError: a number out of range.
    """

    glob: str | None = None
    limit: int | None = None
    retry_failed: bool = False
    workers: int = 0
    threads: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name, low in (("limit", 1), ("workers", 0), ("threads", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
                raise SettingsError(f"{name}={value!r}: expected a whole number from {low} on.")


def lift_folder(
    pipe: ImageTo3D | PipeRecipe | Callable[[], Any],
    folder: str | Path,
    out: str | Path,
    settings: LiftSettings,
    options: RunOptions | None = None,
    *,
    stop: threading.Event | None = None,
    count: Callable[[], int | None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Iterator[LiftResult]:
    """Lift every photo below ``folder``; sub-folders and names are kept.

    ``out/results.jsonl`` gets one line for every photo that was worked on, as soon as it is finished;
    ``out/report.html`` is written at the end. A photo whose asset was made of the same photo, mask, settings and
    weights is skipped; one that failed with these is not tried again unless ``options`` say so. Several processes may
    work on one ``out``: they share the photos. One bad photo never stops the others.

    Args:
        pipe: the loaded model; or what loads it when called, which happens with the first photo that needs it. Worker
            processes need the latter, picklable.
        folder: of photos; or a list, shards or a URL, see `trilift.sources.photo_items`.
        out: made when missing; or a URL. Not ``folder`` itself.
        settings: how to lift, and what to write.
        options: how to go about it.
        stop: when set, no further photo is begun and the iterator ends with what is in hand.
        count: gives how many photos there are, for the report; asked at the end.
        on_note: told one line for people now and then.

    Returns:
        An iterator of one `LiftResult` per photo in the order of the photos; it can be closed at any time, which
        finishes the few photos that are in hand and leaves nothing half-written.

    Raises:
        ImageError: there are no photos, or ``folder`` cannot be listed; raised at the call.
        SettingsError: ``out`` is ``folder`` itself, another run of this process writes there, or workers and a pipeline
            that cannot be loaded by others; raised at the call.
        OutputError: results, log or report cannot be written; raised while iterating.
        TriliftError: the model cannot be loaded; raised while iterating.
    """
    options = options or RunOptions()
    items = photo_items(folder, out, glob=options.glob, limit=options.limit)
    first = next(items, None)  # so that a wrong folder fails here
    if first is None:
        fits = "there is no photo in it" if options.glob is None else f"no photo in it matches glob={options.glob!r}"
        raise ImageError(f"{folder}: {fits}.")
    run = FolderRun(
        pipe, itertools.chain([first], items), OutStore(out), settings, options, stop=stop, count=count,
        photos=Path(folder) if Path(folder).is_dir() else None, on_note=on_note,
    )  # fmt: skip
    return run.results()


class FolderRun:
    """One run; see `lift_folder` for the arguments.

    Args:
        photos: the folder of the photos, where they are in one.
    """

    def __init__(
        self,
        pipe: Any,
        items: Iterator[PhotoItem],
        store: OutStore,
        settings: LiftSettings,
        options: RunOptions,
        *,
        stop: threading.Event | None = None,
        count: Callable[[], int | None] | None = None,
        photos: Path | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        self._loader = Loader(pipe, on_note)
        if options.workers and self._loader.recipe is None:
            raise SettingsError(
                f"workers={options.workers}: they load the model themselves, and nobody knows from where. Take a "
                "pipeline of ImageTo3D.from_pretrained, or leave workers out."
            )
        self._items, self._store, self._settings, self._options = items, store, settings, options
        self._stop, self._note = stop or threading.Event(), on_note or (lambda text: None)
        self._count, self._photos = count or (lambda: None), photos
        self._journal = Journal(store.local)
        self._line: deque[_Slot] = deque()  # in the order of the photos
        self._pending: dict[int, _Slot] = {}
        self._deferred: deque[PhotoItem] = deque()
        self._hands: Any = None
        self._numbers = itertools.count()
        self._exhausted, self._next_upload, self._emitted = False, 0.0, 0
        self._interrupt: BaseException | None = None

    def results(self) -> Iterator[LiftResult]:
        """Do it; see `lift_folder`."""
        self._claims = Claims(self._store.local)
        clean = False
        try:
            self._store.fetch_log()
            with tempfile.TemporaryDirectory(prefix="trilift-") as scratch:
                self._scratch = Path(scratch)
                self._lookup = Lookup(
                    self._store, self._loader, self._settings, retry_failed=self._options.retry_failed,
                    scratch=self._scratch / "look",
                )  # fmt: skip
                try:
                    yield from self._go()
                finally:
                    self._finish_in_hand()
                    clean = True
                    if self._emitted:
                        self._report()
            if self._interrupt is not None:
                raise self._interrupt
        finally:
            self._claims.close(clean)

    def _go(self) -> Iterator[LiftResult]:
        polled = 0.0
        while True:
            if self._deferred and time.monotonic() > polled + _POLL_SECONDS:
                polled = time.monotonic()
                self._look_at_deferred()
            while self._feed_one():
                yield from self._ready()
            yield from self._ready()
            if self._pending:
                self._collect(_POLL_SECONDS if self._deferred else None)
            elif self._deferred and not self._stopping:
                time.sleep(_POLL_SECONDS)
            elif self._exhausted or self._stopping:
                return

    @property
    def _stopping(self) -> bool:
        return self._stop.is_set() or self._interrupt is not None

    # Feeding

    def _feed_one(self) -> bool:
        """Look at the next photo; False when there is none, or enough in hand."""
        if self._exhausted or self._stopping or len(self._deferred) >= _MAX_DEFERRED:
            return False
        size = 1 if self._hands is None else self._hands.size
        if len(self._pending) >= size + _SPARE or len(self._line) >= size * _AHEAD:
            return False
        item = next(self._items, None)
        if item is None:
            self._exhausted = True
            return False
        if not self._look_at(item):
            self._deferred.append(item)
        return True

    def _look_at_deferred(self) -> None:
        """Photos that were in other processes' hands: they are finished, given up, or still there."""
        for _ in range(len(self._deferred)):
            if self._stopping:
                return
            item = self._deferred.popleft()
            if not self._look_at(item):
                self._deferred.append(item)

    def _look_at(self, item: PhotoItem) -> bool:
        """Claim a photo and find out what is to be done with it; False when another process has it."""
        if not self._claims.take(item.source):
            return False
        slot = _Slot(item)
        try:
            self._lookup.refresh()  # after the claim: whoever had it before has written its row
            found = self._lookup.finished(item) or self._lookup.failed_before(item)
        except BaseException:
            self._claims.release(item.source)
            raise
        self._line.append(slot)
        if found is not None:
            slot.result = found
            self._claims.release(item.source)
            return True
        if self._hands is None:
            self._hands = self._begin()
        self._submit(slot)
        return True

    def _submit(self, slot: _Slot, attempt: int = 1, halvings: int = 0) -> None:
        number = next(self._numbers)
        self._pending[number] = slot
        folder, scratch = self._store.local / slot.item.place, self._scratch / str(number)
        self._hands.submit(Task(number, slot.item, folder, self._settings, scratch, attempt, halvings))

    def _begin(self) -> Lanes | Crew:
        """Who lifts; begun when the first photo needs it."""
        options = self._options
        if options.workers:
            assert self._loader.recipe is not None, "has been looked at"
            self._loader.forget()
            crew = Crew(self._loader.recipe, self._settings, options.workers, options.threads)
            if crew.size < options.workers:
                limit = parse_memory(self._loader.recipe.max_memory or 0) / 1e9
                self._note(f"--max-memory {limit:.3g} GB: room for {crew.size} of {options.workers} workers")
            return crew
        pipe = self._loader.pipe()
        if hasattr(pipe, "check"):
            pipe.check(self._settings)
        lanes = Lanes(pipe, batch_size=options.batch_size, settings=self._settings)
        if lanes.plan is not None:
            self._note(lanes.plan.told(pipe.memory.limit))
        return lanes

    # What is done

    def _collect(self, timeout: float | None) -> None:
        """Take in outcomes, at least one unless the time runs out; see them on the disk."""
        outcomes: list[tuple[Outcome, _Slot]] = []
        found = self._hands.take(timeout)
        while found is not None:
            # What was taken is nobody's to wait for any more, whatever goes wrong with the writing of another.
            outcomes.append((found, self._pending.pop(found.task.number)))
            found = self._hands.take(0)
        results: list[tuple[_Slot, LiftResult]] = []
        for outcome, slot in outcomes:
            if outcome.died is not None and self._again(slot, outcome):
                continue
            if outcome.error is not None:
                self._line.remove(slot)
                self._claims.release(slot.item.source)
                self._interrupt = self._interrupt or outcome.error
                continue
            results.append((slot, self._saved(outcome)))
        self._journal.append(*(result for _, result in results))
        for slot, result in results:
            slot.result = result
            self._claims.release(slot.item.source)
        if self._store.remote and time.monotonic() > self._next_upload:
            self._next_upload = time.monotonic() + _UPLOAD_SECONDS
            self._store.publish_log()

    def _again(self, slot: _Slot, outcome: Outcome) -> bool:
        """Try once more what took its process down; where the system may have ended it for its memory, then smaller."""
        task, killed = outcome.task, "SIGKILL" in str(outcome.died)
        if task.attempt >= _ATTEMPTS + killed or self._stopping:
            return False
        self._note(f"{slot.item.source}: its process died ({outcome.died}); trying again")
        self._submit(slot, task.attempt + 1, halvings=int(task.attempt == _ATTEMPTS))
        return True

    def _saved(self, outcome: Outcome) -> LiftResult:
        """The result of an outcome, its files seen on the disk, or in object storage."""
        item = outcome.task.item
        if outcome.result is None:
            return self._lookup.died(outcome)
        result = outcome.result
        if result.status != "done":
            return result
        try:
            if self._store.remote:
                self._store.publish(item.place)
            else:
                sync_files(self._store.local / item.place)
        except OSError as error:
            raise OutputError(f"{self._store.local / item.place}: could not be written ({error.strerror}).") from error
        return self._lookup.placed(result)

    def _ready(self) -> Iterator[LiftResult]:
        """Results at the head of the line."""
        while self._line and (result := self._line[0].result) is not None:
            self._line.popleft()
            self._emitted += 1
            yield result

    def _finish_in_hand(self) -> None:
        """Let what is in hand be finished and written down; a second Ctrl-C leaves it where it is."""
        if self._hands is None:
            return
        try:
            while self._pending:
                self._collect(None)
        except BaseException:
            self._hands.kill()
            raise
        self._hands.close()

    def _report(self) -> None:
        """Write the report, and see what the run leaves beside the assets where it belongs."""
        from .report import write_report

        self._store.publish_log(whole=True)
        pages = write_report(self._store.local, photos=self._photos, count=self._count())
        for page in pages:
            self._store.publish_file(page.name)


@dataclass
class _Slot:
    """A photo in the line, and its result when there is one."""

    item: PhotoItem
    result: LiftResult | None = None
