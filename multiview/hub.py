"""Weights from the Hugging Face hub: fetched once into the hub's own cache, checked, and offline from then on."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import TriliftError, WeightsError

OFFLINE_SWITCHES = ("TRILIFT_OFFLINE", "HF_HUB_OFFLINE")


class NoSuchFileError(WeightsError):
    """The repository is there and can be read, but has no file of that name."""


_SHA256 = re.compile("[0-9a-f]{64}")
# Sums of larger files are remembered; smaller ones are read faster than a list of them.
_REMEMBER_FROM = 50_000_000


@dataclass(frozen=True)
class HubFile:
    """A file of a hub repository on this machine.

    Attributes:
        path: in the hub's cache; never to be changed.
        revision: the commit that it belongs to, None when the cache does not say.
    """

    path: Path
    revision: str | None


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form of a repository on the hub, ``owner/name``."""
    part = r"[A-Za-z0-9][A-Za-z0-9._-]*"
    return re.fullmatch(rf"{part}/{part}", name) is not None


def offline_switch() -> str | None:
    """The environment variable that forbids the network, None when it may be used."""
    for switch in OFFLINE_SWITCHES:
        if os.environ.get(switch, "").lower() in ("1", "true", "yes", "on"):
            return switch
    return None


def cached_file(repository: str, file: str, revision: str | None = None) -> HubFile | None:
    """The file in the hub's cache, None when it is not there; nothing is asked of the network."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(repository, file, revision=revision)
    return _hub_file(Path(found)) if isinstance(found, str) else None


def hub_file(
    repository: str,
    file: str,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    size_bytes: int | None = None,
    on_download: Callable[[str], None] | None = None,
) -> HubFile:
    """A file of a hub repository: from the cache when it is there, else fetched into it.

    A file that is there is taken as it is, without asking the hub whether there is a newer one.

    Args:
        repository: ``owner/name``.
        file: its path in the repository.
        revision: a commit, branch or tag; None for the main branch.
        sha256: what its sum must be, when it is known. Files kept by the hub under their sum are always held to that.
        size_bytes: about how large it is, for the check that it fits on the disk, where the hub does not say.
        on_download: called with one line for people when something is going to be fetched.

    Raises:
        NoSuchFileError: the repository has no such file.
        WeightsError: no such repository or revision; the hub cannot be reached, or wants a login or a licence to
            be accepted; the disk is full; or the sum is wrong (the file is removed: the next try fetches it again).
    """
    found = cached_file(repository, file, revision)
    if found is None:
        found = _fetch(repository, file, revision, size_bytes, on_download)
    _check_sum(found.path, f"{repository}: {file}", sha256)
    return found


def _hub_file(path: Path) -> HubFile:
    """Cached files lie at ``.../snapshots/<commit>/<path in the repository>``."""
    parts = path.parts
    after = parts.index("snapshots") + 1 if "snapshots" in parts else len(parts)
    return HubFile(path, parts[after] if after < len(parts) else None)


def _fetch(
    repository: str, file: str, revision: str | None, size_bytes: int | None, on_download: Callable[[str], None] | None
) -> HubFile:
    what = f"{repository}: {file}"
    if (switch := offline_switch()) is not None:
        raise WeightsError(
            f"{what} is not on this machine and {switch} is set, so it is not fetched. Unset it, or give a folder or "
            "file with the weights."
        )
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    except ImportError as error:
        raise WeightsError(f"{what}: huggingface_hub is not installed. Try: pip install huggingface_hub.") from error
    with _hub_errors(repository, file, revision):
        # Asked for by itself first: without a network this fails at once, where a download tries for half a minute.
        size_bytes = get_hf_file_metadata(hf_hub_url(repository, file, revision=revision)).size or size_bytes
        _check_space(what, size_bytes)
        if on_download is not None:
            size = "" if size_bytes is None else f" ({size_bytes / 1e6:.0f} MB)"
            on_download(f"fetching {file} of {repository}{size} into {cache_folder()}")
        return _hub_file(Path(hf_hub_download(repository, file, revision=revision)))


@contextlib.contextmanager
def _hub_errors(repository: str, file: str, revision: str | None) -> Iterator[None]:
    """Turn whatever the hub's library raises into one `WeightsError` that says what to do."""
    try:
        yield
    except TriliftError:
        raise
    except Exception as error:
        if (message := _explained(error, repository, file, revision)) is None:
            raise
        kind = NoSuchFileError if f"there is no file {file}" in message else WeightsError
        raise kind(message) from error


def _explained(error: Exception, repository: str, file: str, revision: str | None) -> str | None:
    """What an error of the hub's library means for people; None for a bug of ours."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repository}"
    if _is_full(error):
        return _full(f"{repository}: {file}", cache_folder())
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{repository}: {file} cannot be put into {cache_folder()} ({error.strerror}). Change its permissions, or "
            "set HF_HOME to a folder that you may write."
        )
    # Subclasses first.
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repository}: its owner gives the weights only to people who are logged in and have accepted the "
            f"licence. Accept it at {page}, then run: hf auth login (or set HF_TOKEN)."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository}: no revision {revision!r}. Look at {page}/commits/main, or leave the revision out."
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{repository}: the hub has no such repository, or it is private and there is no login that may see it. "
            "Check the name, or run: hf auth login (or set HF_TOKEN)."
        )
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return _unreachable(repository, file, error)
    if isinstance(error, errors.EntryNotFoundError):
        return f"{repository}: there is no file {file} in revision {revision or 'main'}. Look at {page}/tree/main."
    if isinstance(error, errors.HFValidationError):
        return f"{repository}: not a name of a hub repository ({error}). Expected owner/name."
    if isinstance(error, errors.HfHubHTTPError | OSError) or type(error).__module__.startswith(("http", "requests")):
        return _unreachable(repository, file, error)
    return None


def _unreachable(repository: str, file: str, error: Exception) -> str:
    cause = _last_cause(error)
    reason = str(cause).strip().split("\n")[0].rstrip(".") or type(cause).__name__
    return (
        f"{repository}: {file} is not on this machine and the hub cannot be reached ({reason[:200]}). Check the "
        "network and try again, or give a folder or file with the weights."
    )


def _last_cause(error: BaseException) -> BaseException:
    while (deeper := error.__cause__) is not None:
        error = deeper
    return error


def _is_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind ``error``, however deep."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _full(what: str, folder: Path, size_bytes: int | None = None) -> str:
    free = free_bytes(folder)
    size = "" if size_bytes is None else f" of {size_bytes / 1e6:.0f} MB"
    return (
        f"{what}{size} does not fit on the disk of {folder} ({free / 1e6:.0f} MB free). Nothing half-fetched is used: "
        "make room there, or set HF_HOME to a folder on another disk, and run it again."
    )


def _check_space(what: str, size_bytes: int | None) -> None:
    folder = cache_folder()
    if size_bytes is not None and free_bytes(folder) < size_bytes:
        raise WeightsError(_full(what, folder, size_bytes))


def cache_folder() -> Path:
    """The hub's own cache: ``HF_HUB_CACHE``, or below ``HF_HOME``."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def free_bytes(folder: Path) -> int:
    """Free space on the disk that ``folder`` is or will be on."""
    there = next((p for p in (folder, *folder.parents) if p.exists()), Path.cwd())
    return shutil.disk_usage(there).free


def _check_sum(path: Path, what: str, sha256: str | None) -> None:
    """Hold a cached file to the sum that is known; a wrong one is removed from the cache.

    The cache keeps large files under the sum that the hub states for them.
    """
    blob = path.resolve()
    wanted = sha256 or (blob.name if _SHA256.fullmatch(blob.name) else None)
    if wanted is None:
        return
    found = remembered_sha256(path)
    if found == wanted:
        return
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)
    raise WeightsError(
        f"{what} has sha256 {found}, expected {wanted}: it is damaged, or another release than this version of trilift "
        "knows. It was removed from the cache; run again to fetch it anew."
    )


def remembered_sha256(path: str | Path) -> str:
    """`multiview.weights.file_sha256`, remembered for large files until their size or time of change differ.

    Reading gigabytes for their sum at every start would take longer than loading them. What is remembered lies in
    ``$XDG_CACHE_HOME/trilift/sha256.json`` (``~/.cache`` without that); it may be removed at any time.
    """
    from .weights import file_sha256

    path = Path(path).resolve()
    stat = path.stat()
    if stat.st_size < _REMEMBER_FROM:
        return file_sha256(path)
    known = _remembered()
    mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    entry = known.get(str(path))
    if isinstance(entry, list) and entry[:3] == mark and len(entry) == 4 and _SHA256.fullmatch(str(entry[3])):
        return str(entry[3])
    found = file_sha256(path)
    _remember({**{k: v for k, v in known.items() if Path(k).is_file()}, str(path): [*mark, found]})
    return found


def _memory_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "trilift" / "sha256.json"


def _remembered() -> dict[str, Any]:
    try:
        known = json.loads(_memory_file().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(known: dict[str, Any]) -> None:
    from .files import write_json_whole

    with contextlib.suppress(TriliftError, OSError):  # in a read-only home it is worked out again next time
        write_json_whole(_memory_file(), known)
