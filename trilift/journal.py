"""The log of a folder run, ``results.jsonl``: one JSON object a photo, appended when the photo is finished.

A line is on the disk before anybody is told of it, several processes may append, and a line that was cut off by a crash
costs itself alone. Lines are never changed: the latest one of a photo is the one that counts.
"""

from __future__ import annotations

import contextlib
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiview.errors import OutputError

from .keysets import KeySet, key_of

if TYPE_CHECKING:
    from .batch import LiftResult

RESULTS_FILE = "results.jsonl"


class Journal:
    """``results.jsonl`` of an output folder.

    Args:
        out: the output folder; made with the first line.

    Attributes:
        path: the file.
    """

    def __init__(self, out: str | Path) -> None:
        self.path = Path(out) / RESULTS_FILE

    def append(self, *results: LiftResult) -> None:
        """Add a line for each result and see them on the disk, in one write.

        Raises:
            OutputError: it cannot be written.
        """
        if results:
            append_lines(self.path, [json_line(result.as_json()) for result in results])

    def read(self) -> Iterator[dict[str, Any]]:
        """Every row in order; lines that are no JSON object with a ``source`` (cut off, damaged) are left out."""
        return (row for _, row in self.rows())

    def rows(self, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """(offset of the line in bytes, row) of the whole lines from byte ``start`` on."""
        for offset, _, row in self.lines(start):
            if row is not None:
                yield offset, row

    def lines(self, start: int = 0) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
        """(offset of a line, offset after it, its row or None) of every whole line from byte ``start`` on."""
        try:
            with open(self.path, "rb") as file:
                offset = file.seek(start)
                for line in file:
                    if not line.endswith(b"\n"):
                        return  # being written, or cut off: the next writer closes it
                    yield offset, offset + len(line), _row(line)
                    offset += len(line)
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot be read ({error.strerror or error}). Change its permissions, or choose another "
                "folder with -o."
            ) from error

    def row_at(self, offset: int) -> dict[str, Any] | None:
        """The row whose line begins at ``offset``."""
        return next((row for found, row in self.rows(offset) if found == offset), None)

    def latest(self) -> Iterator[dict[str, Any]]:
        """The latest row of each photo, in the order in which these rows were written; 16 bytes of memory a line."""
        import numpy as np

        keys, offsets = array("Q"), array("Q")
        for offset, row in self.rows():
            keys.append(key_of(str(row["source"])))
            offsets.append(offset)
        # np.unique keeps the first of equals, and of the reversed list that is the last one.
        _, first = np.unique(np.frombuffer(keys, np.uint64)[::-1], return_index=True)
        wanted = np.sort(np.frombuffer(offsets, np.uint64)[::-1][first])
        position = 0
        for offset, row in self.rows():
            if position < len(wanted) and offset == int(wanted[position]):
                position += 1
                yield row


def json_line(row: dict[str, Any]) -> str:
    """A row as one line of JSON; names that are no Unicode (old file systems have them) are escaped."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(row)
    return text


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("source"), str) else None


class Known:
    """What the journal says of photos, by what decides their results.

    A photo's work is keyed by its source and the fingerprint of photo, settings and weights. A shorter way to the same
    is its mark (size and time of its file) with the key of the run, which are known without reading the photo.

    Args:
        journal: read from the beginning at first, later from where the last look ended.

    Attributes:
        example: place of some finished asset, None when no row names one.
        began_at: where the log ended at the first look; None before it. What stands behind is of this run's time.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._end = 0
        self.began_at: int | None = None
        self._finished, self._failed_ever = KeySet(), KeySet()
        self._failed: dict[int, int] = {}  # key → offset of the row
        self.example: str | None = None

    def refresh(self) -> None:
        """Take in what was appended since the last look, by whichever process."""
        for offset, end, row in self._journal.lines(self._end):
            self._end = end
            if row is None:
                continue
            source, status = str(row["source"]), row.get("status")
            told = [row.get(name) for name in ("fingerprint", "mark", "run")]
            fingerprint, mark, run = (None if value is None else str(value) for value in told)
            if status == "failed":
                self._failed_ever.add(key_of(source))
                for key in _failed_keys(source, fingerprint, mark, run):
                    self._failed[key] = offset
            elif status in ("done", "skipped") and fingerprint is not None:
                self.example = row.get("place") or self.example
                self._finished.add(key_of(source, fingerprint))
                self._finished.add(key_of(source, fingerprint, mark, run))
                for key in _failed_keys(source, fingerprint, mark, run):
                    self._failed.pop(key, None)
        if self.began_at is None:
            self.began_at = self._end

    def is_finished(self, source: str, fingerprint: str | None, *told: str | None) -> bool:
        """Whether a row says that ``source`` was finished with this fingerprint (and this mark and run key)."""
        return key_of(source, fingerprint, *told) in self._finished

    def has_failed(self, source: str) -> bool:
        """Whether a row says that ``source`` failed, with whatever settings."""
        return key_of(source) in self._failed_ever

    def failure(self, source: str, *told: str | None, since: int = 0) -> dict[str, Any] | None:
        """The row by which ``source`` failed with this fingerprint (or mark and run key), unless it worked later."""
        offset = self._failed.get(key_of(source, *told))
        return None if offset is None or offset < since else self._journal.row_at(offset)


def _failed_keys(source: str, fingerprint: str | None, mark: str | None, run: str | None) -> Iterator[int]:
    if fingerprint is not None:
        yield key_of(source, fingerprint)
    if mark is not None and run is not None:
        yield key_of(source, mark, run)


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append ``lines`` and see them on the disk; a line that was left half-written is closed first.

    Raises:
        OutputError: it cannot be written.
    """
    text = "".join(line + "\n" for line in lines).encode("utf-8")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not path.exists()
        with open(path, "ab+", buffering=0) as file, locked(file.fileno()):
            end = file.seek(0, os.SEEK_END)
            if end > 0:
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    text = b"\n" + text
            _write_all(file.fileno(), text)
            os.fsync(file.fileno())
        if fresh:
            sync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            f"{path}: could not be written ({error.strerror or error}). "
            "Check free space and permission of the folder, or choose another with -o."
        ) from error


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


@contextlib.contextmanager
def locked(fd: int) -> Iterator[None]:
    """No other process that asks for it has this file meanwhile, where the file system has locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX)
    yield  # closing the file unlocks it


def sync_folder(folder: Path) -> None:
    """See the names in ``folder`` on the disk; where folders cannot be opened (Windows) there is nothing to do."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    except OSError:
        pass
    finally:
        os.close(fd)


def sync_files(folder: Path) -> None:
    """See the files of a finished asset on the disk, and the folder's name."""
    for path in folder.iterdir():
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
    sync_folder(folder.parent)
