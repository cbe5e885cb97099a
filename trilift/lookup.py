"""What is finished and what failed before: a photo's content, the asset in its place, and the log, held together."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiview.errors import ImageError, SettingsError
from multiview.weights import file_sha256

from .batch import LiftResult, content_sums
from .journal import Journal, Known, sync_files
from .lanes import Outcome
from .recipe import Judge, PipeRecipe, without_networks
from .settings import LiftSettings
from .sources import PhotoItem
from .storage import RECORD_FILE, OutStore

if TYPE_CHECKING:
    from .pipeline import ImageTo3D


class Lookup:
    """Answers for one run whether a photo still has to be lifted.

    Args:
        store: where the assets are.
        loader: of the pipeline whose results count.
        settings: those that count.
        retry_failed: whether failures of earlier runs count for nothing.
        scratch: folder for copies of photos that are not on this machine.
    """

    def __init__(
        self, store: OutStore, loader: Loader, settings: LiftSettings, *, retry_failed: bool, scratch: Path
    ) -> None:
        self._store, self._loader, self._settings = store, loader, settings
        self._retry_failed, self._scratch = retry_failed, scratch
        self._journal = Journal(store.local)
        self._known = Known(self._journal)

    def refresh(self) -> None:
        """Take in what was written to the log since the last look, by whichever process.

        Raises:
            OutputError: it cannot be read.
        """
        self._known.refresh()

    def _judges(self, record: dict[str, Any] | None) -> list[Judge]:
        """Who can say what decides a result, without loading the network where that is possible."""
        found = [self._loader.unloaded(record)] if record is not None else []
        judges = [judge for judge in (*found, self._loader.loaded) if judge is not None]
        return judges or [self._loader.judge()]

    def finished(self, item: PhotoItem) -> LiftResult | None:
        """A ``skipped`` result when there is an equal asset, whole; its row is added to the log if it is missing."""
        start = time.perf_counter()
        record = self._store.record(item.place)
        if record is None or "fingerprint" not in record:
            return None
        try:
            sizes = {str(f["name"]): int(f["bytes"]) for f in record["files"]}
            there = self._store.sizes(item.place)
            if any(there.get(name) != size for name, size in sizes.items()):
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not one of ours, or it is going away
        found = next(filter(None, (self._same(item, judge, record) for judge in self._judges(record))), None)
        if found is None:
            return None
        result = LiftResult(
            item.source, "skipped", round(time.perf_counter() - start, 3), files=(*sorted([*sizes, RECORD_FILE]),),
            warnings=tuple(map(str, record.get("warnings", ()))), checks=dict(record.get("checks") or {}),
            place=item.place, **found,
        )  # fmt: skip
        result = self.placed(result)
        if not self._known.is_finished(item.source, result.fingerprint):
            if not self._store.remote:
                sync_files(self._store.local / item.place)
            self._journal.append(result)
        return result

    def _same(self, item: PhotoItem, judge: Judge, record: dict[str, Any]) -> dict[str, Any] | None:
        """Fields of a result when ``record`` is of this photo with these settings, else None."""
        mark, run, there = item.mark(), judge.fingerprint("", None, self._settings), str(record["fingerprint"])
        if mark is not None and self._known.is_finished(item.source, there, mark, run):
            return {"fingerprint": there, "mark": mark, "run": run}  # this very file was lifted, and this came of it
        sums = content_sums(item, self._fetched(item))
        wanted = judge.fingerprint(*sums, self._settings)
        told = {"sha256": sums[0], "fingerprint": wanted, "mark": mark, "run": run}
        known = self._known.is_finished(item.source, wanted)
        if there == wanted:
            return told if known or self._is_whole(item, record) else None
        lowered = _lowered(record, self._settings)
        if known and lowered is not None and there == judge.fingerprint(*sums, lowered):
            return {**told, "lowered": {"resolution": lowered.resolution}}
        return None

    def _fetched(self, item: PhotoItem) -> Path | None:
        """The photo on this machine for a look at its content."""
        if item.path is None:
            shutil.rmtree(self._scratch, ignore_errors=True)  # of the photo before
        with contextlib.suppress(ImageError):
            return item.fetch(self._scratch)
        return None

    def _is_whole(self, item: PhotoItem, record: dict[str, Any]) -> bool:
        """Whether the files of an asset that has no row have the sums that its record states.

        Its process died before it had seen them on the disk; after a power cut they may have their size but not their
        content.
        """
        return self._store.remote or sums_agree(self._store.local / item.place, record)

    def failed_before(self, item: PhotoItem) -> LiftResult | None:
        """The result of an attempt that failed with the same photo, settings and weights, unless those are retried."""
        if not self._known.has_failed(item.source):
            return None
        # Tried again is what failed before this run; what another process has just tried is not.
        since = (self._known.began_at or 0) if self._retry_failed else 0
        mark = item.mark()
        for judge in self._judges(self._example()):
            row = None
            if mark is not None:
                row = self._known.failure(item.source, mark, judge.fingerprint("", None, self._settings), since=since)
            if row is None:
                sums = content_sums(item, self._fetched(item))
                row = self._known.failure(item.source, judge.fingerprint(*sums, self._settings), since=since)
            if row is not None:
                return replace(LiftResult.from_json(row), earlier=True)
        return None

    def _example(self) -> dict[str, Any] | None:
        """The record of some asset of this run or an earlier one."""
        return None if self._known.example is None else self._store.record(self._known.example)

    def placed(self, result: LiftResult) -> LiftResult:
        """With the asset's folder as people know it."""
        if self._store.remote:
            return replace(result, folder=None, url=f"{self._store.name}/{result.place}")
        return replace(result, folder=self._store.local / str(result.place))

    def died(self, outcome: Outcome) -> LiftResult:
        """A ``failed`` result for a photo that took its process down whenever it was tried."""
        item, attempt = outcome.task.item, outcome.task.attempt
        sums = content_sums(item, self._fetched(item))
        judge = self._judges(self._example())[0]
        hint = "lower --resolution, or look at the photo" if "SIGKILL" in str(outcome.died) else "look at the photo"
        times = "" if attempt == 1 else f" {attempt} times, at last"
        return LiftResult(
            item.source, "failed", 0.0, cause="crash", place=item.place, sha256=sums[0], mark=item.mark(),
            error=f"{item.source}: the process that lifted it died{times} ({outcome.died}). Try {hint}.",
            fingerprint=judge.fingerprint(*sums, self._settings), run=judge.fingerprint("", None, self._settings),
            attempt=attempt,
        )  # fmt: skip


def sums_agree(folder: Path, record: dict[str, Any]) -> bool:
    """Whether an asset's files have the sums that its record states; files without a sum are not looked at."""
    try:
        return all(file_sha256(folder / f["name"]) == f["sha256"] for f in record["files"] if "sha256" in f)
    except (OSError, KeyError, TypeError):
        return False


def _lowered(record: dict[str, Any], settings: LiftSettings) -> LiftSettings | None:
    """``settings`` at the lower resolution that an asset has, None when it has no lower one."""
    told = record.get("settings")
    resolution = told.get("resolution") if isinstance(told, dict) else None
    if not isinstance(resolution, int) or resolution >= settings.resolution:
        return None
    with contextlib.suppress(SettingsError):
        return settings.replaced(resolution=resolution)
    return None


class Loader:
    """What is known of the pipeline before and after it is loaded.

    Args:
        pipe: a loaded pipeline, or what loads it.
        on_note: told when something is fetched.

    Attributes:
        recipe: what loads it in other processes, None for a pipeline that nobody else can load.
    """

    def __init__(self, pipe: Any, on_note: Callable[[str], None] | None) -> None:
        is_loaded = hasattr(pipe, "fingerprint")
        self._pipe = pipe if is_loaded else None
        self.recipe = getattr(pipe, "recipe", None) if is_loaded else pipe
        self.loaded: Judge | None = self._pipe
        self._on_note = on_note
        self._unloaded: dict[str, Judge | None] = {}

    def unloaded(self, record: dict[str, Any]) -> Judge | None:
        """See `PipeRecipe.unloaded`; what is asked for once is remembered."""
        if self.loaded is not None or not isinstance(self.recipe, PipeRecipe):
            return None
        views = record.get("views")
        made = [views.get("generator"), views.get("dtype")] if isinstance(views, dict) else None
        told = [record.get("model"), record.get("dtype"), str(record.get("device"))[:4], made]
        key = json.dumps(told, sort_keys=True)
        if key not in self._unloaded:
            self._unloaded[key] = self.recipe.unloaded(record)
        return self._unloaded[key]

    def judge(self) -> Judge:
        """Who can say what decides a result, which takes loading the pipeline if it has not been loaded."""
        if self.loaded is None:
            light = without_networks(self.pipe())
            self.loaded = light
        return self.loaded

    def pipe(self) -> Any:
        """The pipeline; loaded now, if it has not been."""
        if self._pipe is None:
            assert self.recipe is not None, "a pipeline that is not loaded has something that loads it"
            start = time.perf_counter()
            takes_notes = isinstance(self.recipe, PipeRecipe)
            self._pipe = self.recipe(self._on_note) if takes_notes else self.recipe()
            if self._on_note is not None and takes_notes:
                self._on_note(f"{_described(self._pipe)}, loaded in {time.perf_counter() - start:.1f} s")
        self.loaded = self.loaded or self._pipe
        return self._pipe

    def forget(self) -> None:
        """Let a pipeline go that was loaded to ask it something; workers have their own."""
        self._pipe = None


def _described(pipe: ImageTo3D) -> str:
    """A pipeline in words."""
    told = f"model {pipe.weights.name} on {pipe.device} in {pipe.dtype}"
    if pipe.generator is None:
        return told
    return f"views by {pipe.generator.weights.name} in {pipe.generator.dtype}, {told}"
