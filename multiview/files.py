"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import OutputError


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success rename it into place, on failure remove it.

    Args:
        path: the file that shall appear; its folder is made when missing.

    Yields:
        A path in the same folder with the same suffix, to be written by the caller.

    Raises:
        OutputError: the folder cannot be made, or writing or renaming failed (disk full, no permission);
            the original ``OSError`` is chained. Nothing half-written stays behind.
    """
    path = Path(path)
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".aside-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        aside = Path(name)
        yield aside
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, path)
    except OSError as error:
        raise OutputError(
            f"{path}: could not be written ({error.strerror or error}). "
            "Check free space and permission of the folder, or choose another with -o."
        ) from error
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(folder: str | Path, last: str) -> Iterator[Path]:
    """Give a temporary folder beside ``folder``; on success move what is in it into place, on failure remove it.

    Args:
        folder: that shall have the files. When it is there already, files of the same names are replaced and others
            left alone.
        last: name of the file by which readers know that the rest is there: an old one goes first, the new one comes
            last, so that whoever is killed in between leaves a folder that is refused rather than a mixture.

    Yields:
        An empty folder, to be filled by the caller.

    Raises:
        OutputError: see `written_whole`.
    """
    folder = Path(folder).absolute()
    aside: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".aside-", dir=folder.parent))
        os.chmod(aside, 0o777 & ~_umask())
        yield aside
        _move_into(aside, folder, last)
    except OSError as error:
        raise OutputError(
            f"{folder}: could not be written ({error.strerror or error}). "
            "Check free space and permission of the folder, or choose another with -o."
        ) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def _move_into(aside: Path, folder: Path, last: str) -> None:
    """Rename the folder where there is none yet, else file by file."""
    if not folder.exists():
        os.rename(aside, folder)
        return
    (folder / last).unlink(missing_ok=True)
    files = sorted((file for file in aside.rglob("*") if file.is_file()), key=lambda file: file == aside / last)
    for file in files:
        place = folder / file.relative_to(aside)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)


def write_bytes_whole(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` in one step; see `written_whole`."""
    with written_whole(path) as aside:
        aside.write_bytes(data)


def write_json_whole(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON (UTF-8, keys in the given order) in one step."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes_whole(path, (text + "\n").encode("utf-8", "backslashreplace"))  # names that are no Unicode


def _umask() -> int:
    """The process's umask; reading it needs setting it for a moment."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
