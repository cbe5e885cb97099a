"""One photo of many: lift it and save it, and whatever goes wrong with it becomes a result that says so.

Folder runs stand on this: `trilift.runner` goes through the photos of `trilift.sources`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from multiview.errors import OutputError, TriliftError

from .journal import RESULTS_FILE as RESULTS_FILE
from .preview import write_preview
from .progress import OnStage, OnStep
from .recipe import empty_caches, is_out_of_memory
from .settings import LiftSettings
from .sources import PhotoItem
from .sources import asset_name as asset_name

if TYPE_CHECKING:
    from .asset import Asset
    from .pipeline import ImageTo3D
    from .settings import ViewSettings
    from .views import PhotoToViews

REPORT_FILE = "report.html"
VIEWS_RECORD_FILE = "views.json"
_LOWEST_RESOLUTION = 64
_MAX_HALVINGS = 2


@dataclass(frozen=True)
class LiftResult:
    """What became of one photo.

    Attributes:
        source: the photo's path; relative to the photo folder in folder runs, as given otherwise.
        status: ``done``, ``skipped`` (an equal result was there already) or ``failed``.
        seconds: wall-clock seconds spent on it, file writing included.
        folder: the asset's folder, None when it failed.
        files: names of the files in that folder, written now or found there.
        stages: seconds per stage.
        error: the message, None unless it failed.
        warnings: sentences about the photo and its cut-out.
        notes: what was assumed where nobody said it, one sentence each.
        cause: of a failure, in a word: the kind of error (``ImageError``), ``memory``, ``crash`` or ``bug``.
        place: the asset's folder relative to the output folder, in folder runs.
        url: the asset's folder in object storage; ``folder`` is None then.
        sha256: of the photo's bytes.
        fingerprint: of all that decides the result, see `ImageTo3D.fingerprint`; of what was asked for, where
            ``lowered`` says that it was not all done.
        mark, run: size and time of the photo's file, and the fingerprint without the photo, by which an unchanged photo
            is known without reading it.
        checks: the numbers of `trilift.pipeline.quality_checks`.
        attempt: which attempt this was, from 1.
        lowered: settings that were lowered since memory did not suffice, by name.
        earlier: whether this is the failure of an earlier run, which was not tried again; not in the log.
    """

    source: str
    status: Literal["done", "skipped", "failed"]
    seconds: float
    folder: Path | None = None
    files: tuple[str, ...] = ()
    stages: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    cause: str | None = None
    place: str | None = None
    url: str | None = None
    sha256: str | None = None
    fingerprint: str | None = None
    mark: str | None = None
    run: str | None = None
    checks: dict[str, Any] = field(default_factory=dict)
    attempt: int = 1
    lowered: dict[str, Any] = field(default_factory=dict)
    earlier: bool = False

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, one object a photo, as ``--json`` prints and results.jsonl holds."""
        return {
            "source": self.source,
            "status": self.status,
            "error": self.error,
            "seconds": self.seconds,
            "folder": self.url if self.folder is None else str(self.folder),
            "files": list(self.files),
            "stages": dict(self.stages),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "cause": self.cause,
            "place": self.place,
            "sha256": self.sha256,
            "fingerprint": self.fingerprint,
            "mark": self.mark,
            "run": self.run,
            "checks": self.checks,
            "attempt": self.attempt,
            "lowered": self.lowered,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> LiftResult:
        """The result of which `as_json` gave ``row``; what an older row lacks has its default."""
        folder = row.get("folder")
        remote = isinstance(folder, str) and "://" in folder
        names = ("cause", "place", "sha256", "fingerprint", "mark", "run", "error")
        plain: dict[str, Any] = {name: row.get(name) for name in names}
        return cls(
            str(row["source"]), row["status"], float(row.get("seconds") or 0.0),
            None if folder is None or remote else Path(folder), tuple(row.get("files") or ()),
            tuple((row.get("stages") or {}).items()), warnings=tuple(row.get("warnings") or ()),
            notes=tuple(row.get("notes") or ()), url=folder if remote else None, checks=row.get("checks") or {},
            attempt=int(row.get("attempt") or 1), lowered=row.get("lowered") or {},
            **plain,
        )  # fmt: skip


def lift_to_folder(
    pipe: ImageTo3D,
    photo: Path,
    folder: Path,
    settings: LiftSettings,
    *,
    source: str | None = None,
    named: str | None = None,
    on_stage: OnStage | None = None,
    on_step: OnStep | None = None,
) -> LiftResult:
    """Lift one photo and save it; whatever goes wrong with it becomes a ``failed`` result.

    Args:
        pipe: the loaded model.
        photo: the file.
        folder: the asset's folder, made or replaced.
        settings: how to lift, and what to write.
        source: what to call the photo in the result; its path when left out.
        named: what the asset's record calls it; its path when left out.
        on_stage: called with the name of each stage when it begins.
        on_step: called after every step of a view generator with how many are done and how many there are.
    """
    hint = f"lower --resolution (now {settings.resolution})"
    work = partial(_lift_and_save, pipe, photo, folder, settings, on_stage, on_step, named)
    return _attempt(work, photo, folder, str(photo) if source is None else source, hint)


def views_to_folder(
    pipe: PhotoToViews,
    photo: Path,
    folder: Path,
    settings: ViewSettings,
    *,
    on_stage: OnStage | None = None,
    on_step: OnStep | None = None,
) -> LiftResult:
    """Make views of one photo and save them; whatever goes wrong with it becomes a ``failed`` result.

    The arguments are those of `lift_to_folder`.
    """
    work = partial(_make_and_save_views, pipe, photo, folder, settings, on_stage, on_step)
    return _attempt(work, photo, folder, str(photo), "lower --view-batch")


def _attempt(
    work: Callable[[], tuple[tuple[str, ...], dict[str, Any]]], photo: Path, folder: Path, source: str, hint: str
) -> LiftResult:
    """The result of ``work``, which gives names of files and a record; its errors become ``failed`` results.

    Args:
        work: what is to be done with the photo.
        photo, folder, source: see `lift_to_folder`.
        hint: what to try when memory runs out.
    """
    start = time.perf_counter()
    try:
        files, record = work()
    except TriliftError as error:
        cause = type(error).__name__
        return LiftResult(source, "failed", _since(start), error=_naming(str(error), photo), cause=cause)
    except Exception as error:
        if is_out_of_memory(error):
            text = f"{photo}: not enough memory. Close other programs, or {hint}."
            return LiftResult(source, "failed", _since(start), error=text, cause="memory")
        if os.environ.get("TRILIFT_DEBUG"):
            raise
        text = f"{photo}: unexpected {type(error).__name__}: {error}. This is a bug; TRILIFT_DEBUG=1 shows where."
        return LiftResult(source, "failed", _since(start), error=text, cause="bug")
    return LiftResult(
        source, "done", _since(start), folder, files,
        stages=tuple(record["seconds"].items()), warnings=tuple(record["warnings"]), notes=_notes(record),
        sha256=(record.get("photo") or {}).get("sha256"), fingerprint=record.get("fingerprint"),
        checks=dict(record.get("checks") or {}),
    )  # fmt: skip


def _notes(record: dict[str, Any]) -> tuple[str, ...]:
    """What a record says was assumed for generated views."""
    made = record.get("views", record)
    if "elevation_deg" not in made:
        return ()
    how = "estimated; --elevation DEG says it" if made["elevation_estimated"] else "as told"
    return (f"views for a photo from {made['elevation_deg']:g} degrees above the horizon ({how})",)


def _lift_and_save(
    pipe: ImageTo3D,
    photo: Path,
    folder: Path,
    settings: LiftSettings,
    on_stage: OnStage | None,
    on_step: OnStep | None,
    named: str | None = None,
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names of the files written, and the asset's record with the seconds of writing.

    ``named`` is what the record calls a photo that was copied here from elsewhere.
    """
    from .asset import OWNED

    if photo.name in OWNED and photo.resolve().parent == folder.resolve():  # photos are never changed
        raise OutputError(f"{photo}: its result in {folder} would replace the photo itself. Choose another -o.")
    asset = pipe(photo, settings, on_stage=on_stage, on_step=on_step)
    if named is not None and "photo" in asset.record:
        mask = asset.record["photo"].get("mask")
        asset.record["photo"] |= {"name": named, "mask": mask and Path(mask).name}
    return _written(lambda: save_asset(asset, folder, settings), asset.record, on_stage)


def _make_and_save_views(
    pipe: PhotoToViews,
    photo: Path,
    folder: Path,
    settings: ViewSettings,
    on_stage: OnStage | None,
    on_step: OnStep | None,
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The same for views."""
    if photo.resolve().parent == folder.resolve():  # photos are never changed, and views have plain names
        raise OutputError(f"{photo}: its views in {folder} might replace the photo itself. Choose another -o.")
    made = pipe(photo, settings, on_stage=on_stage, on_step=on_step)
    return _written(lambda: made.save(folder), made.record, on_stage)


def _written(
    save: Callable[[], list[Path]], record: dict[str, Any], on_stage: OnStage | None
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Save; the names of the files and the record with the seconds that it took."""
    if on_stage is not None:
        on_stage("write")
    start = time.perf_counter()
    paths = save()
    return tuple(sorted(p.name for p in paths)), {**record, "seconds": {**record["seconds"], "write": _since(start)}}


def save_asset(asset: Asset, folder: str | Path, settings: LiftSettings) -> list[Path]:
    """``asset.save`` with what ``settings`` say about files; returns the paths written."""
    return asset.save(folder, settings.saving())


def lift_item(
    pipe: ImageTo3D,
    item: PhotoItem,
    folder: Path,
    settings: LiftSettings,
    scratch: Path,
    *,
    halvings: int = 0,
    on_stage: OnStage | None = None,
    make_room: Callable[[], bool] | None = None,
) -> LiftResult:
    """Lift one photo of a folder run: fetch it, lift and save it, and again smaller where memory does not suffice.

    This is the whole of what any engine does with a photo.

    Args:
        pipe: the loaded model.
        item: the photo.
        folder: the asset's folder on this machine, made or replaced.
        settings: how to lift, and what to write.
        scratch: folder for a copy of a photo that is not on this machine; removed.
        halvings: of the resolution to begin with, since more took the process down.
        on_stage: called with the name of each stage when it begins.
        make_room: called when memory does not suffice; waits until nothing else is going on, and says whether anything
            was: then the same is tried once more before it is made smaller. None where there never is.

    Returns:
        The result with all that a later run compares. Of a lift at half or a quarter of the resolution, since memory
        did not suffice for more, ``lowered`` and a warning say so.
    """
    start = time.perf_counter()
    mark = item.mark()
    try:
        photo = item.fetch(scratch)
        sums = content_sums(item, photo)
        result = _lift_smaller(pipe, photo, folder, settings, item, halvings, on_stage, make_room)
        if result.status == "done":
            with suppress(Exception):  # the asset is whole, and reports draw what is missing
                write_preview(folder, photo)  # while photo and asset are at hand
    except TriliftError as error:
        sums = content_sums(item, None)
        text = _naming(str(error), Path(item.source))
        result = LiftResult(item.source, "failed", _since(start), error=text, cause=type(error).__name__)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        sums = "unreadable: not enough memory", None  # to be read; what lifting takes is no matter of this block
        text = f"{item.source}: not enough memory to read it. Close other programs."
        result = LiftResult(item.source, "failed", _since(start), error=text, cause="memory")
    finally:
        if item.path is None:
            shutil.rmtree(scratch, ignore_errors=True)
    wanted = pipe.fingerprint(*sums, settings)
    if result.status == "done" and not result.lowered and result.fingerprint != wanted:
        wanted, mark = str(result.fingerprint), None  # the photo was changed while we looked
    return replace(
        result, place=item.place, sha256=result.sha256 or sums[0], fingerprint=wanted, mark=mark,
        run=pipe.fingerprint("", None, settings),
    )  # fmt: skip


def _lift_smaller(
    pipe: ImageTo3D,
    photo: Path,
    folder: Path,
    settings: LiftSettings,
    item: PhotoItem,
    halvings: int,
    on_stage: OnStage | None,
    make_room: Callable[[], bool] | None,
) -> LiftResult:
    """Lift at the resolution that was asked for, or at the first half of it for which memory suffices."""
    named = None if item.path is not None else item.source
    sizes = [settings.resolution >> halving for halving in range(_MAX_HALVINGS + 1)]
    sizes = [size for size in sizes[halvings:] if size >= _LOWEST_RESOLUTION] or [settings.resolution]
    for size in sizes:
        now = settings if size == settings.resolution else settings.replaced(resolution=size)
        lift = partial(
            lift_to_folder, pipe, photo, folder, now, source=item.source, named=named, on_stage=on_stage
        )  # fmt: skip
        result = lift()
        if result.cause == "memory" and make_room is not None:
            empty_caches()
            result, make_room = lift() if make_room() else result, None
        if result.cause != "memory":
            break
        empty_caches()
    if named is not None and result.error is not None:  # nobody knows the copy
        result = replace(result, error=result.error.replace(str(photo), item.source))
    if now is settings or result.status != "done":
        return result
    told = f"Memory did not suffice for --resolution {settings.resolution}; lifted at {now.resolution}."
    return replace(result, lowered={"resolution": now.resolution}, warnings=(*result.warnings, told))


def content_sums(item: PhotoItem, photo: Path | None) -> tuple[str, str | None]:
    """(SHA-256 of the photo, SHA-256 of its mask or None); why it cannot be read in place of the sum of the photo.

    Args:
        item: the photo.
        photo: the local file, None when it could not be fetched.
    """
    from .photo import MAX_FILE_BYTES, find_mask

    if photo is None:
        return f"unreadable: {item.problem or item.source}", None
    try:
        found = photo.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_FILE_BYTES:
            return f"unreadable: mode {stat.S_IFMT(found.st_mode)}, {found.st_size} bytes", None
        mask = find_mask(photo)
        return _sha256(photo), None if mask is None else _sha256(mask)
    except OSError as error:
        return f"unreadable: {error.strerror}", None


def _sha256(path: Path) -> str:
    """`multiview.weights.file_sha256` without waiting for torch, which a run with nothing to do never needs."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def asset_folders(photos: Sequence[Path], base: Path | None = None) -> dict[Path, Path]:
    """A folder name for every photo, none twice (not even where upper and lower case are one).

    It is the file's stem (``chair.png`` → ``chair``) unless two photos share it, then the full file name (``chair.png``
    and ``chair.jpg``), then that with a number (``chair.png-2``).

    Args:
        photos: paths; the same file twice counts once.
        base: keep the sub-folders below it; None puts all side by side.

    Returns:
        {photo: relative folder}, in the order of ``photos``.
    """
    unique = list({p.resolve(): p for p in reversed(photos)}.values())[::-1]
    parents = {p: p.parent.relative_to(base) if base is not None else Path() for p in unique}
    # A sub-folder of photos keeps its name; no asset may sit in its place.
    taken = {_key(d) for parent in parents.values() for d in (parent, *parent.parents)}
    stems = Counter(_key(parents[p] / asset_name(str(p))) for p in unique)
    places: dict[Path, Path] = {}
    for photo in unique:
        place = parents[photo] / asset_name(str(photo))
        if stems[_key(place)] > 1 or _key(place) in taken:
            place = parents[photo] / (photo.name.strip(". ") or "photo")
        number, first = 1, place
        while _key(place) in taken:
            number += 1
            place = first.with_name(f"{first.name}-{number}")
        taken.add(_key(place))
        places[photo] = place
    return places


def _key(place: Path) -> str:
    return place.as_posix().casefold()


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)


def _naming(message: str, photo: Path) -> str:
    """``message`` with the photo in front unless it is named there already."""
    return message if str(photo) in message else f"{photo}: {message}"
