"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
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


def write_bytes_whole(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` in one step; see `written_whole`."""
    with written_whole(path) as aside:
        aside.write_bytes(data)


def write_json_whole(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON (UTF-8, keys in the given order) in one step."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes_whole(path, (text + "\n").encode("utf-8"))


def _umask() -> int:
    """The process's umask; reading it needs setting it for a moment."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
