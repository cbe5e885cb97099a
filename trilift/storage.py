"""Photos and results in object storage (``s3://``, ``gs://``, ``memory://`` ...), through fsspec where it is installed.

Results are lifted into a local folder and uploaded whole, ``asset.json`` last: a place that has one is finished there,
as it is on a disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from multiview.errors import ImageError, OutputError, SettingsError

from .photo import MASK_ENDING, MAX_FILE_BYTES, PHOTO_SUFFIXES
from .sources import RECORDS, PhotoItem, expand_braces, is_photo_name, shard_items, sibling_places

RECORD_FILE = "asset.json"


def file_system(url: str) -> tuple[Any, str]:
    """(file system, path in it) of a URL.

    Raises:
        SettingsError: fsspec or the package for this kind of storage is not installed, or the URL is no such thing.
    """
    try:
        import fsspec
    except ImportError as error:
        raise SettingsError(f"{url}: needs the package fsspec. Try: pip install fsspec.") from error
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        kind = url.split("://")[0]
        raise SettingsError(f"{url}: fsspec lacks a package for {kind}:// ({error}).") from error
    except ValueError as error:
        raise SettingsError(f"{url}: fsspec does not know this kind of storage ({error}).") from error
    return system, path.rstrip("/")


def opened(url: str) -> Any:
    """The object at ``url``, open for reading bytes, with seek."""
    system, path = file_system(url)
    return system.open(path, "rb")


def photo_items(where: str, out: str) -> Iterator[PhotoItem]:
    """The photos below a URL; see `trilift.sources.photo_items`.

    Raises:
        ImageError: there is nothing, or it cannot be listed.
        SettingsError: see `file_system`; or ``out`` is ``where``.
    """
    if where.rstrip("/") == out.rstrip("/"):
        raise SettingsError(f"{out}: the output folder is the photo folder itself. Choose another with -o.")
    if where.lower().endswith(".tar"):
        yield from shard_items(expand_braces(where))
        return
    system, path = file_system(where)
    found = False
    prefix = where.rstrip("/")
    inside = file_system(out)[1] if out.split("://")[0] == where.split("://")[0] and "://" in out else None
    for item in _walk(system, path, prefix, "", "", inside):
        found = True
        yield item
    if not found:
        raise ImageError(f"{where}: no photos in it or below. Looked for {' '.join(PHOTO_SUFFIXES)} in any case.")


def _walk(system: Any, path: str, url: str, source: str, place: str, out: str | None) -> Iterator[PhotoItem]:
    """Photos of one remote folder and below; ``source`` and ``place`` are '' or end in '/'."""
    try:
        found = _listed(system, path, out)
    except Exception as error:  # every storage has exceptions of its own
        text = f"{url}: cannot be listed ({type(error).__name__}: {error}). Check the address and the credentials."
        if not source:
            raise ImageError(text) from error
        yield PhotoItem(source.rstrip("/"), f"{place}unlisted", problem=text)
        return
    if source and any(name in found for name in RECORDS):
        return
    tars = {name for name, is_folder in found.items() if not is_folder and name.lower().endswith(".tar")}
    folders = {name for name, is_folder in found.items() if is_folder}
    photos = [name for name, is_folder in found.items() if not is_folder and is_photo_name(name, found)]
    places = sibling_places(photos, [*folders, *tars])
    for name in sorted(places):
        own, its = f"{source}{name}", f"{place}{places[name]}"
        if name in tars:
            yield from shard_items([f"{url}/{name}"], source, f"{its}/")
        elif name in folders:
            yield from _walk(system, f"{path}/{name}", f"{url}/{name}", f"{own}/", f"{its}/", out)
        else:
            yield PhotoItem(own, its, url=f"{url}/{name}")


def _listed(system: Any, path: str, out: str | None) -> dict[str, bool]:
    """{name: whether it is a folder} of one remote folder."""
    found = {}
    for entry in system.ls(path, detail=True):
        full = str(entry["name"]).rstrip("/")
        name = posixpath.basename(full)
        if name and not name.startswith(".") and full.strip("/") not in ((out or "").strip("/"), path.strip("/")):
            found[name] = entry["type"] == "directory"
    return found


def mark(url: str) -> str | None:
    """What the storage says of an object's version, None when it says nothing."""
    with contextlib.suppress(Exception):
        system, path = file_system(url)
        found = system.info(path)
        told = [found.get(name) for name in ("size", "ETag", "etag", "md5Hash", "LastModified", "mtime", "created")]
        if any(value is not None for value in told[1:]):
            return hashlib.sha256(repr(told).encode()).hexdigest()[:32]
    return None


def copy_photo(url: str, scratch: Path) -> Path:
    """Copy a photo, and its mask beside it when there is one, into ``scratch``.

    Raises:
        ImageError: it cannot be read, or is larger than any photo may be.
    """
    system, path = file_system(url)
    name = PurePosixPath(path).name
    try:
        size = int(system.info(path).get("size") or 0)
        if size > MAX_FILE_BYTES:
            raise ImageError(f"{url}: is too large ({size} bytes, at most {MAX_FILE_BYTES}). Make it smaller.")
        scratch.mkdir(parents=True, exist_ok=True)
        target = scratch / name
        target.write_bytes(system.cat_file(path))
        _copy_mask(system, path, scratch)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{url}: there is no such object. Check the address.") from error
    except Exception as error:  # every storage has exceptions of its own
        raise ImageError(f"{url}: cannot be fetched ({type(error).__name__}: {error}).") from error
    return target


def _copy_mask(system: Any, path: str, scratch: Path) -> None:
    base = PurePosixPath(path)
    for suffix in PHOTO_SUFFIXES:
        for ending in (suffix, suffix.upper()):
            mask = str(base.with_name(f"{base.stem}{MASK_ENDING}{ending}"))
            if system.exists(mask):
                (scratch / PurePosixPath(mask).name).write_bytes(system.cat_file(mask))
                return


class OutStore:
    """Where results end up: a local folder, or object storage with a local folder in front.

    Args:
        out: a path or a URL.
        scratch: local folder for what is on its way to a URL, the log of the run among it; one for each URL below
            ``$XDG_CACHE_HOME/trilift/runs`` when left out.

    Attributes:
        local: where results are written on this machine.
        remote: whether they are uploaded from there.
    """

    def __init__(self, out: str | Path, scratch: Path | None = None) -> None:
        self.remote = re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(out)) is not None
        self.name = str(out).rstrip("/") if self.remote else str(out)
        self.local = Path(out)
        self._uploaded: dict[str, int] = {}
        if self.remote:
            self._system, self._path = file_system(str(out))
            digest = hashlib.sha256(self.name.encode()).hexdigest()[:16]
            cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
            self.local = (scratch or cache / "trilift" / "runs") / digest
            self.local.mkdir(parents=True, exist_ok=True)

    def record(self, place: str) -> dict[str, Any] | None:
        """The record of a finished asset, None when there is none that can be read."""
        try:
            if self.remote:
                data = self._system.cat_file(f"{self._path}/{place}/{RECORD_FILE}")
            else:
                data = (self.local / place / RECORD_FILE).read_bytes()
            found = json.loads(data)
        except Exception:  # every storage has exceptions of its own, and all mean that there is none
            return None
        return found if isinstance(found, dict) else None

    def sizes(self, place: str) -> dict[str, int]:
        """{name: bytes} of the files of an asset."""
        if not self.remote:
            with os.scandir(self.local / place) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        found = self._system.ls(f"{self._path}/{place}", detail=True)
        return {posixpath.basename(entry["name"]): int(entry["size"]) for entry in found if entry["type"] == "file"}

    def publish(self, place: str) -> None:
        """Upload an asset that was written locally, its record last, and remove the local copy.

        Raises:
            OutputError: something could not be uploaded; the local copy is kept.
        """
        if not self.remote:
            return
        import shutil

        folder = self.local / place
        target = f"{self._path}/{place}"
        with self._reporting(place):
            self._system.makedirs(target, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(f"{target}/{RECORD_FILE}")  # of an earlier result, of which nothing shall be mixed
            for file in sorted(folder.iterdir(), key=lambda path: path.name == RECORD_FILE):
                if file.is_file():
                    self._system.pipe_file(f"{target}/{file.name}", file.read_bytes())
        shutil.rmtree(folder, ignore_errors=True)

    def publish_file(self, name: str) -> None:
        """Upload a file of the run itself, such as its log, when it has grown since the last time."""
        file = self.local / name
        if self.remote and file.is_file() and self._uploaded.get(name) != file.stat().st_size:
            with self._reporting(name):
                self._system.makedirs(self._path, exist_ok=True)
                self._system.pipe_file(f"{self._path}/{name}", file.read_bytes())
            self._uploaded[name] = file.stat().st_size

    def fetch_file(self, name: str) -> None:
        """Bring a file of an earlier run, such as its log, here when it is longer there.

        Raises:
            OutputError: it is there and could not be fetched; a shorter one must not take its place later.
        """
        if not self.remote:
            return
        with self._reporting(name, "fetched"), contextlib.suppress(FileNotFoundError):
            there = int(self._system.info(f"{self._path}/{name}")["size"])
            file = self.local / name
            if not file.is_file() or file.stat().st_size < there:
                file.write_bytes(self._system.cat_file(f"{self._path}/{name}"))

    @contextlib.contextmanager
    def _reporting(self, what: str, doing: str = "uploaded") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every storage has exceptions of its own
            raise OutputError(
                f"{self.name}/{what}: could not be {doing} ({type(error).__name__}: {error}). Check the address and "
                "the credentials, and run the same command again."
            ) from error
