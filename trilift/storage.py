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
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from multiview.errors import ImageError, OutputError, SettingsError
from multiview.files import written_whole

from .journal import RESULTS_FILE, locked
from .photo import MASK_ENDING, MAX_FILE_BYTES, PHOTO_SUFFIXES
from .sources import (
    RECORDS,
    PhotoItem,
    copy_whole,
    expand_braces,
    is_photo_name,
    is_url,
    listed_items,
    shard_items,
    sibling_places,
)

RECORD_FILE = "asset.json"
SEGMENT_BYTES = 256 * 1024
"""Of a log in object storage, about 350 rows; more would be written again and again, fewer would be many objects."""
_SEGMENTS = ".results"  # their folder; in the run's own they would have to be looked for among all its assets
_SEGMENT = re.compile(r"(\d{15})\.jsonl")
_FETCH_LOCK = ".fetch.lock"
_WEB = ("http://", "https://")


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
    if _without_query(where).lower().endswith(".txt") and _is_file(system, path):
        yield from _list_items(system, path, where)
        return
    found = False
    prefix = where.rstrip("/")
    inside = file_system(out)[1] if out.split("://")[0] == where.split("://")[0] and "://" in out else None
    for item in _walk(system, path, prefix, "", "", inside):
        found = True
        yield item
    if not found:
        raise ImageError(f"{where}: no photos in it or below. Looked for {' '.join(PHOTO_SUFFIXES)} in any case.")


def _without_query(url: str) -> str:
    """A web address without what follows its path, such as a signature; in other addresses these are names."""
    return re.split(r"[?#]", url, maxsplit=1)[0] if url.lower().startswith(_WEB) else url


def _is_file(system: Any, path: str) -> bool:
    with contextlib.suppress(Exception):  # every storage has exceptions of its own; listing says what is wrong
        return bool(system.isfile(path))
    return False


def _list_items(system: Any, path: str, url: str) -> Iterator[PhotoItem]:
    """The photos of a list: one path a line, relative to the list's own folder, or one URL.

    The list is copied here first, since it is read twice and must say the same both times.
    """
    with tempfile.TemporaryDirectory(prefix="trilift-list-") as scratch:
        copy = Path(scratch, "list.txt")
        try:
            with system.open(path, "rb") as file:
                copy_whole(file, copy)
        except Exception as error:  # every storage has exceptions of its own
            told = f"{type(error).__name__}: {error}"
            raise ImageError(
                f"{url}: the list cannot be read ({told}). Check the address and the credentials."
            ) from error
        yield from listed_items(copy, lambda line, place: _listed(line, place, url))


def _is_here(url: str) -> bool:
    """Whether a URL, or a part of one that fsspec chains (``zip://a.png::/home/x.zip``), names a file here."""
    parts = [part for part in url.split("::") if "://" in part or not part.isalnum()]
    return any("://" not in part or part.split("://")[0].lower() in ("file", "local") for part in parts)


def _listed(line: str, place: str, url: str) -> PhotoItem:
    """The photo of one line of the list at ``url``."""
    if is_url(line):
        if _is_here(line) and not _is_here(url):
            text = f"{line}: leads from the list {url} to a file of this machine. Put the list on this machine, too."
            return PhotoItem(line, place, problem=text)
        return PhotoItem(line, place, url=line)
    scheme, _, rest = _without_query(url).partition("://")
    folder = posixpath.dirname(rest)
    joined = posixpath.normpath(posixpath.join(folder, line))
    host = folder.split("/", 1)[0]
    if line.startswith("/") or joined.startswith("..") or (host and joined.split("/", 1)[0] != host):
        text = f"{line}: leads out of the storage of {url}. Write it relative to the list, or as a URL."
        return PhotoItem(line, place, problem=text)
    return PhotoItem(line, place, url=f"{scheme}://{joined}")


def _walk(system: Any, path: str, url: str, source: str, place: str, out: str | None) -> Iterator[PhotoItem]:
    """Photos of one remote folder and below; ``source`` and ``place`` are '' or end in '/'."""
    try:
        found = _entries(system, path, out)
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


def _entries(system: Any, path: str, out: str | None) -> dict[str, bool]:
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


class _Piece(NamedTuple):
    """A part of a log in object storage: its first byte in the log, its bytes, and its name below the run's folder."""

    start: int
    size: int
    name: str

    @property
    def end(self) -> int:
        return self.start + self.size


class RemoteLog:
    """``results.jsonl`` of a run in object storage, where nothing can be appended to an object.

    While a run goes on, what the log has grown by is uploaded as segments, ``.results/<offset>.jsonl``, each named by
    the byte of the log that it begins with. The last one is written anew until it has `SEGMENT_BYTES`, so that an
    upload costs no more than what is new and one segment, however long the log is. At the end the whole log is uploaded
    once as ``results.jsonl``, and the segments are removed. Whatever dies in between, whole log and segments give the
    log back by their offsets: nothing is there twice.

    Args:
        system, path: of the run's output folder.
        local: folder of the log on this machine.
    """

    def __init__(self, system: Any, path: str, local: Path) -> None:
        self._system, self._path = system, path
        self._file = local / RESULTS_FILE
        self._start = self._end = 0  # of the last segment: where it begins, and how far it is uploaded
        self._whole: int | None = None  # bytes of the whole log as it was uploaded last
        self._is_other = False  # what is there is not the beginning of ours, and has to be replaced

    def fetch(self) -> None:
        """Bring the log here when it is longer there; what is known to be there is not uploaded again.

        Processes of this machine that begin together do so one after the other: a second copy, put in place later,
        would take away what the first process has appended meanwhile.
        """
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with open(self._file.with_name(_FETCH_LOCK), "ab") as lock, locked(lock.fileno()):
            self._fetch()

    def _fetch(self) -> None:
        pieces = self._pieces()
        there = max((piece.end for piece in pieces), default=0)
        if there > self._size():
            self._bring(pieces)
        elif there and not self._is_ours(max(pieces, key=lambda piece: piece.end)):
            self._is_other = True
            return
        self._whole = next((piece.size for piece in pieces if piece.name == RESULTS_FILE), None)
        last = pieces[-1] if pieces else None
        is_open = last is not None and last.name != RESULTS_FILE and last.end == there
        self._start, self._end = (last.start if last is not None and is_open else there), there

    def publish(self, *, whole: bool = False) -> None:
        """Upload what has come since the last time.

        Args:
            whole: the run ends: upload it in one piece, and remove the segments.
        """
        size = self._size()
        if whole or self._is_other:
            self._publish_whole(size)
            return
        while self._end < size:
            if self._end - self._start >= SEGMENT_BYTES:
                self._start = self._end
            data = self._read(self._start, min(self._start + SEGMENT_BYTES, size))
            self._system.makedirs(f"{self._path}/{_SEGMENTS}", exist_ok=True)
            self._system.pipe_file(f"{self._path}/{_SEGMENTS}/{self._start:015d}.jsonl", data)
            self._end = self._start + len(data)

    def _publish_whole(self, size: int) -> None:
        if size and (self._whole != size or self._is_other):
            self._system.makedirs(self._path, exist_ok=True)
            self._system.put_file(str(self._file), f"{self._path}/{RESULTS_FILE}")
            self._whole, self._is_other = size, False
        for piece in self._pieces():
            if piece.name != RESULTS_FILE and piece.end <= size:
                with contextlib.suppress(FileNotFoundError):  # another process of this run ends, too
                    self._system.rm_file(f"{self._path}/{piece.name}")
        self._start = self._end = max(size, self._end)

    def _pieces(self) -> list[_Piece]:
        """The whole log and every segment there, in the order of their first bytes."""
        self._system.invalidate_cache()
        found = []
        with contextlib.suppress(FileNotFoundError):
            found.append(_Piece(0, int(self._system.info(f"{self._path}/{RESULTS_FILE}")["size"]), RESULTS_FILE))
        with contextlib.suppress(FileNotFoundError):
            for entry in self._system.ls(f"{self._path}/{_SEGMENTS}", detail=True):
                name = posixpath.basename(str(entry["name"]))
                if (match := _SEGMENT.fullmatch(name)) is not None:
                    found.append(_Piece(int(match[1]), int(entry["size"]), f"{_SEGMENTS}/{name}"))
        return sorted(found, key=lambda piece: piece.start)  # the whole log stays before a segment of the same start

    def _bring(self, pieces: list[_Piece]) -> None:
        """Put the log together here, each byte once."""
        with written_whole(self._file) as aside, open(aside, "wb") as file:
            for piece in pieces:
                end = file.tell()
                if piece.start > end:
                    raise ValueError(f"bytes {end} to {piece.start} of the log are not there")
                if piece.end > end:
                    with self._system.open(f"{self._path}/{piece.name}", "rb") as there:
                        there.seek(end - piece.start)
                        shutil.copyfileobj(there, file, 1 << 20)

    def _is_ours(self, piece: _Piece) -> bool:
        """Whether the log there is the beginning of the one here: by its last bytes, which are in ``piece``."""
        start = max(piece.start, piece.end - SEGMENT_BYTES)
        with self._system.open(f"{self._path}/{piece.name}", "rb") as there:
            there.seek(start - piece.start)
            return bool(there.read() == self._read(start, piece.end))

    def _size(self) -> int:
        return self._file.stat().st_size if self._file.is_file() else 0

    def _read(self, start: int, end: int) -> bytes:
        with open(self._file, "rb") as file:
            file.seek(start)
            return file.read(end - start)


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
        self._log: RemoteLog | None = None
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
        """Upload a file of the run itself, such as a page of its report.

        Raises:
            OutputError: it could not be uploaded.
        """
        file = self.local / name
        if self.remote and file.is_file():
            with self._reporting(name):
                self._system.makedirs(self._path, exist_ok=True)
                self._system.put_file(str(file), f"{self._path}/{name}")

    @property
    def log(self) -> RemoteLog | None:
        """The run's log in object storage, None where results stay on this machine."""
        if not self.remote:
            return None
        if self._log is None:
            self._log = RemoteLog(self._system, self._path, self.local)
        return self._log

    def fetch_log(self) -> None:
        """Bring the log of earlier runs here, as far as it is longer there.

        Raises:
            OutputError: it is there and could not be fetched; a shorter one must not take its place later.
        """
        if self.log is not None:
            with self._reporting(RESULTS_FILE, "fetched"):
                self.log.fetch()

    def publish_log(self, *, whole: bool = False) -> None:
        """Upload what the log has grown by; see `RemoteLog.publish`.

        Raises:
            OutputError: it could not be uploaded.
        """
        if self.log is not None:
            with self._reporting(RESULTS_FILE):
                self.log.publish(whole=whole)

    @contextlib.contextmanager
    def _reporting(self, what: str, doing: str = "uploaded") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # every storage has exceptions of its own
            raise OutputError(
                f"{self.name}/{what}: could not be {doing} ({type(error).__name__}: {error}). Check the address and "
                "the credentials, and run the same command again."
            ) from error
