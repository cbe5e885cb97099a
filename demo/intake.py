"""What comes from a visitor: names, pictures and archives, none of which is trusted."""

from __future__ import annotations

import re
import shutil
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trilift import TriliftError, load_photo
from trilift.photo import PHOTO_SUFFIXES

MAX_UPLOAD_BYTES = 64 * 2**20
MAX_PIXELS = 40_000_000
MAX_ZIP_PHOTOS = 100
MAX_ZIP_MEMBERS = 1000
MAX_ZIP_BYTES = 512 * 2**20  # of what comes out
_MAX_NAME_BYTES = 120
_MAX_DEPTH = 8
_CHUNK = 1 << 16
_DEVICES = re.compile(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)$")
_UNWANTED = frozenset('<>:"|?*\\/')


class RefusedError(TriliftError):
    """An upload that is not taken; its message is for the visitor."""


@dataclass(frozen=True)
class Upload:
    """A file that a visitor has sent.

    Attributes:
        path: where gradio put it, below its own folder of uploads.
        name: as the visitor calls it, made harmless by `safe_name`.
    """

    path: Path
    name: str


def safe_name(name: str | None, fallback: str = "photo.png") -> str:
    """A visitor's file name as one that can be written anywhere: no folders, no control characters, at most 120 bytes.

    Letters of all scripts stay as they are. What begins with a dot or a dash loses it, since it would be hidden, or
    taken for an option of a command.
    """
    last = re.split(r"[\\/]", str(name or ""))[-1]
    plain = unicodedata.normalize("NFC", last)
    plain = "".join(letter for letter in plain if letter.isprintable() and letter not in _UNWANTED)
    plain = plain.strip().lstrip(".-~ ").rstrip(". ")
    stem, dot, suffix = plain.rpartition(".")
    stem, suffix = (stem, dot + suffix) if dot and len(suffix) <= 8 else (plain, "")
    while len((stem + suffix).encode()) > _MAX_NAME_BYTES:
        stem = stem[:-1]
    if not stem.strip():
        return fallback
    return ("_" if _DEVICES.match(stem) else "") + stem.rstrip(". ") + suffix


def own_upload(path: str | Path, name: str | None, uploads: Path, fallback: str = "photo.png") -> Upload:
    """Take a path that a client has named, when it is an upload.

    Args:
        path: what the client says.
        name: what the client calls the file; the path's own name when None.
        uploads: the folder below which uploads lie.
        fallback: see `safe_name`.

    Raises:
        RefusedError: it lies elsewhere, is a link or no file, or is larger than `MAX_UPLOAD_BYTES`.
    """
    told = Path(path)
    try:
        found = told.resolve(strict=True)
        status = told.lstat()
        inside = found.is_relative_to(uploads.resolve()) and stat.S_ISREG(status.st_mode)
    except (OSError, ValueError, RuntimeError):  # not there, a NUL in it, a circle of links
        inside = False
    if not inside:
        raise RefusedError("This file was not uploaded here. Choose a file and upload it.")
    if status.st_size > MAX_UPLOAD_BYTES:
        raise RefusedError(
            f"{safe_name(name or told.name, fallback)}: is too large ({status.st_size / 2**20:.0f} MB, at most "
            f"{MAX_UPLOAD_BYTES // 2**20} MB). Make it smaller first."
        )
    return Upload(found, safe_name(name or told.name, fallback))


def keep_photo(upload: Upload, folder: Path) -> Path:
    """Copy an uploaded picture into ``folder``, which is new, once it is known that it can be read.

    Raises:
        RefusedError: a symbol of its name only; TriliftError of `load_photo`: it is no picture, damaged, or too large.
    """
    folder.mkdir(parents=True)
    kept = folder / upload.name
    try:
        shutil.copyfile(upload.path, kept)
        load_photo(kept, max_pixels=MAX_PIXELS)
    except TriliftError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise RefusedError(str(error).replace(str(kept), upload.name)) from error
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise RefusedError(f"{upload.name}: could not be kept ({error.strerror or error}). Upload it again.") from error
    return kept


def unpack_photos(archive: Upload, folder: Path) -> list[Path]:
    """Unpack the photos of a zip file into ``folder``, which is new; sub-folders are kept, other files are left out.

    Every member is looked at before anything is written, and what is written is counted, whatever sizes the archive
    claims.

    Returns:
        The photos, in the order of the archive.

    Raises:
        RefusedError: no zip file, damaged, encrypted, a member that would leave the folder, too many or too much, or no
            photo in it.
    """
    try:
        with zipfile.ZipFile(archive.path) as opened:
            members = _checked_members(archive.name, opened.infolist())
            return _unpacked(archive.name, opened, members, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        raise RefusedError(f"{archive.name}: is not a zip file that can be unpacked ({_reason(error)}).") from error


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _checked_members(name: str, infos: list[zipfile.ZipInfo]) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The photos among the members, and where each belongs."""
    if len(infos) > MAX_ZIP_MEMBERS:
        raise RefusedError(f"{name}: holds {len(infos)} files; at most {MAX_ZIP_MEMBERS} are taken.")
    chosen = []
    for info in infos:
        place = _place(name, info)
        if info.is_dir() or any(part.startswith(".") or part == "__MACOSX" for part in place.parts):
            continue
        if place.suffix.lower() in PHOTO_SUFFIXES:
            chosen.append((info, place))
    if not chosen:
        raise RefusedError(
            f"{name}: holds no photo ({len(infos)} files; photos end in {', '.join(PHOTO_SUFFIXES[:5])} ...)."
        )
    if len(chosen) > MAX_ZIP_PHOTOS:
        raise RefusedError(
            f"{name}: holds {len(chosen)} photos; at most {MAX_ZIP_PHOTOS} are lifted here. Give fewer, or use "
            "trilift batch on your own machine."
        )
    size = sum(info.file_size for info, _ in chosen)
    if size > MAX_ZIP_BYTES:
        raise RefusedError(
            f"{name}: would unpack to {size / 2**20:,.0f} MB; at most {MAX_ZIP_BYTES // 2**20} MB are taken."
        )
    return chosen


def _place(archive: str, info: zipfile.ZipInfo) -> PurePosixPath:
    """Where a member belongs below the folder; only plain relative names are taken."""
    said = info.orig_filename  # as it is in the file; zipfile cuts the other one at a NUL
    shown = ascii(said[:80])
    parts = said.rstrip("/").split("/")
    if not all(letter.isprintable() for letter in said) or "\\" in said or ":" in said:
        raise RefusedError(f"{archive}: the name {shown} in it has characters that file names here must not have.")
    if said.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise RefusedError(f"{archive}: the name {shown} in it points outside of the archive.")
    if len(parts) > _MAX_DEPTH or any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
        raise RefusedError(f"{archive}: the name {shown} in it is too long.")
    if stat.S_IFMT(info.external_attr >> 16) == stat.S_IFLNK:
        raise RefusedError(f"{archive}: {shown} in it is a link. Pack the picture itself.")
    if info.flag_bits & 1:
        raise RefusedError(f"{archive}: is encrypted. Pack it without a password.")
    return PurePosixPath(*parts)


def _unpacked(
    name: str, opened: zipfile.ZipFile, members: list[tuple[zipfile.ZipInfo, PurePosixPath]], folder: Path
) -> list[Path]:
    left, written = MAX_ZIP_BYTES, []
    try:
        for info, place in members:
            target = folder.joinpath(*place.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(info) as source, open(target, "xb") as file:
                left = _copied(source.read, file.write, left, name)
            _check_pixels(target, name, str(place))
            written.append(target)
    except FileExistsError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise RefusedError(f"{name}: holds two files of one name.") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return written


def _copied(read: Callable[[int], bytes], write: Callable[[bytes], int], left: int, name: str) -> int:
    """Copy all there is; gives how many bytes may still come."""
    while chunk := read(_CHUNK):
        left -= len(chunk)
        if left < 0:
            raise RefusedError(f"{name}: unpacks to more than it says; at most {MAX_ZIP_BYTES // 2**20} MB are taken.")
        write(chunk)
    return left


def _check_pixels(file: Path, archive: str, shown: str) -> None:
    """Refuse pictures whose header claims too many pixels; what is no picture is left to the run's own report."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            pixels = image.width * image.height
    except Image.DecompressionBombError:
        pixels = MAX_PIXELS + 1
    except Exception:  # plugins raise many kinds on damaged headers
        return
    if pixels > MAX_PIXELS:
        raise RefusedError(
            f"{archive}: {shown} in it has too many pixels (at most {MAX_PIXELS:,}). Make it smaller first."
        )
