"""Many photos, one after the other: names that never collide, a log, and runs that go on where they stopped."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from multiview.errors import ImageError, OutputError, SettingsError, TriliftError

from .photo import PHOTO_SUFFIXES, find_mask, is_mask
from .progress import OnStage, OnStep
from .report import write_report
from .settings import LiftSettings

if TYPE_CHECKING:
    from .asset import Asset
    from .pipeline import ImageTo3D
    from .settings import ViewSettings
    from .views import PhotoToViews

RECORD_FILE = "asset.json"
VIEWS_RECORD_FILE = "views.json"
RESULTS_FILE = "results.jsonl"
REPORT_FILE = "report.html"


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

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values, one object a photo, as ``--json`` prints and results.jsonl holds."""
        return {
            "source": self.source,
            "status": self.status,
            "error": self.error,
            "seconds": self.seconds,
            "folder": None if self.folder is None else str(self.folder),
            "files": list(self.files),
            "stages": dict(self.stages),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }


def lift_to_folder(
    pipe: ImageTo3D,
    photo: Path,
    folder: Path,
    settings: LiftSettings,
    *,
    source: str | None = None,
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
        on_stage: called with the name of each stage when it begins.
        on_step: called after every step of a view generator with how many are done and how many there are.
    """
    hint = f"lower --resolution (now {settings.resolution})"
    work = partial(_lift_and_save, pipe, photo, folder, settings, on_stage, on_step)
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
        return LiftResult(source, "failed", _since(start), error=_naming(str(error), photo))
    except MemoryError:
        text = f"{photo}: not enough memory. Close other programs, or {hint}."
        return LiftResult(source, "failed", _since(start), error=text)
    except Exception as error:
        if os.environ.get("TRILIFT_DEBUG"):
            raise
        text = f"{photo}: unexpected {type(error).__name__}: {error}. This is a bug; TRILIFT_DEBUG=1 shows where."
        return LiftResult(source, "failed", _since(start), error=text)
    return LiftResult(
        source, "done", _since(start), folder, files,
        stages=tuple(record["seconds"].items()), warnings=tuple(record["warnings"]), notes=_notes(record),
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
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names of the files written, and the asset's record with the seconds of writing."""
    from .asset import OWNED

    if photo.name in OWNED and photo.resolve().parent == folder.resolve():  # photos are never changed
        raise OutputError(f"{photo}: its result in {folder} would replace the photo itself. Choose another -o.")
    asset = pipe(photo, settings, on_stage=on_stage, on_step=on_step)
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
    return asset.save(
        folder, formats=settings.formats, turntable=settings.turntable, height=settings.height, scale=settings.scale
    )


def lift_folder(
    pipe: ImageTo3D,
    folder: str | Path,
    out: str | Path,
    settings: LiftSettings,
    *,
    on_photo: Callable[[int, int, str], OnStage | None] | None = None,
    on_step: OnStep | None = None,
) -> Iterator[LiftResult]:
    """Lift every photo below ``folder``, in sorted order; sub-folders and names are kept.

    ``out/results.jsonl`` gets one line a photo as soon as it is finished, ``out/report.html`` a table at the end. A
    photo whose asset.json states the same photo, mask, settings and weights is skipped. One bad photo never stops the
    others.

    Args:
        pipe: the loaded model.
        folder: searched with its sub-folders; masks, hidden files and folders, results of earlier runs and ``out`` are
            left out.
        out: made when missing; not ``folder`` itself.
        settings: how to lift, and what to write.
        on_photo: called with (index from 1, count, source) before each photo; may return a stage callback for it.
        on_step: see `lift_to_folder`.

    Returns:
        An iterator of one `LiftResult` per photo; the work is done as it is consumed.

    Raises:
        ImageError: ``folder`` is not a folder, cannot be listed, or holds no photos; raised at the call.
        SettingsError: ``out`` is ``folder`` itself; raised at the call.
        OutputError: the log or the report cannot be written; raised while iterating.
    """
    folder, out = Path(folder), Path(out)
    photos = find_photos(folder, out)
    places = asset_folders(photos, folder)
    return _run(pipe, folder, out, settings, places, on_photo, on_step)


def _run(
    pipe: ImageTo3D,
    folder: Path,
    out: Path,
    settings: LiftSettings,
    places: dict[Path, Path],
    on_photo: Callable[[int, int, str], OnStage | None] | None,
    on_step: OnStep | None,
) -> Iterator[LiftResult]:
    results: list[LiftResult] = []
    try:
        for index, (photo, place) in enumerate(places.items(), 1):
            source = photo.relative_to(folder).as_posix()
            on_stage = on_photo(index, len(places), source) if on_photo is not None else None
            result = _finished(pipe, photo, out / place, settings, source)
            if result is None:
                result = lift_to_folder(
                    pipe, photo, out / place, settings, source=source, on_stage=on_stage, on_step=on_step
                )
            append_line(out / RESULTS_FILE, json.dumps(result.as_json(), ensure_ascii=False))
            results.append(result)
            yield result
    finally:  # also after Ctrl-C, so that the report tells of what was done
        if results:
            write_report(out / REPORT_FILE, results, len(places))


def find_photos(folder: Path, out: Path) -> list[Path]:
    """Photos below ``folder`` in sorted order; see `lift_folder` for what is left out and raised."""
    if not folder.is_dir():
        found = "is a file (use trilift lift)" if folder.exists() else "does not exist"
        raise ImageError(f"{folder}: expected a folder of photos, but it {found}.")
    if out.resolve() == folder.resolve():
        raise SettingsError(f"{out}: the output folder is the photo folder itself. Choose another with -o.")
    found_photos: list[Path] = []
    errors: list[OSError] = []
    for base, dirs, files in os.walk(folder, onerror=errors.append):
        here = Path(base)
        dirs[:] = sorted(d for d in dirs if not d.startswith(".") and _is_source(here / d, out))
        found_photos += [here / f for f in files if not f.startswith(".") and _is_photo(here / f)]
    if errors:
        raise ImageError(f"{errors[0].filename}: cannot be listed ({errors[0].strerror}). Change its permissions.")
    if not found_photos:
        raise ImageError(f"{folder}: no photos in it or below. Looked for {' '.join(PHOTO_SUFFIXES)} in any case.")
    return sorted(found_photos, key=lambda p: p.relative_to(folder).parts)


def _is_source(folder: Path, out: Path) -> bool:
    """Whether to look for photos in ``folder``: not in the output, not in what an earlier run wrote."""
    written = any((folder / name).is_file() for name in (RECORD_FILE, VIEWS_RECORD_FILE))
    return folder.resolve() != out.resolve() and not written


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in PHOTO_SUFFIXES and path.is_file() and not is_mask(path)


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


def asset_name(photo: str) -> str:
    """The name of a photo's asset: the file's stem, made safe as a folder's name.

    ``a/chair.png`` → ``chair``; names of nothing but dots, and pictures without a file, → ``photo``.
    """
    return "photo" if photo == "<image>" else Path(photo).stem.strip(". ") or "photo"


def _key(place: Path) -> str:
    return place.as_posix().casefold()


def _finished(pipe: ImageTo3D, photo: Path, folder: Path, settings: LiftSettings, source: str) -> LiftResult | None:
    """A ``skipped`` result when ``folder`` holds an equal one, whole."""
    from multiview.weights import file_sha256

    start = time.perf_counter()
    try:
        record = json.loads((folder / RECORD_FILE).read_text("utf-8"))
        mask = find_mask(photo)
        mask_sha256 = None if mask is None else file_sha256(mask)
        if record["fingerprint"] != pipe.fingerprint(file_sha256(photo), mask_sha256, settings):
            return None
        files = {str(f["name"]): int(f["bytes"]) for f in record["files"]}
        if any((folder / name).stat().st_size != size for name, size in files.items()):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no record, or not one of ours: lift it
    return LiftResult(
        source, "skipped", _since(start), folder, tuple(sorted([*files, RECORD_FILE])),
        warnings=tuple(map(str, record.get("warnings", ()))),
    )  # fmt: skip


def append_line(path: Path, line: str) -> None:
    """Append ``line`` and see it on the disk; a line that an earlier run left half-written is closed first.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(line.encode("utf-8") + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(
            f"{path}: could not be written ({error.strerror or error}). "
            "Check free space and permission of the folder, or choose another with -o."
        ) from error


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 3)


def _naming(message: str, photo: Path) -> str:
    """``message`` with the photo in front unless it is named there already."""
    return message if str(photo) in message else f"{photo}: {message}"
