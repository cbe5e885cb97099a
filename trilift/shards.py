"""Photos in tar shards as webdataset writes them: ``key.jpg``, ``key.json``, ``key.mask.png`` one after the other.

Nothing is unpacked by name: a member is found by its offset and copied under a name of our own, so that a hostile
archive (absolute paths, ``..``, links, devices) has nothing to write to.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from multiview.errors import ImageError

from .photo import MASK_ENDING, MAX_FILE_BYTES, PHOTO_SUFFIXES
from .sources import PhotoItem, asset_name, free_name, is_url

_MASK = re.compile(rf"^(?P<stem>.+?)(\.mask|{MASK_ENDING})(?P<end>\.[^.]+)$")


@dataclass(frozen=True)
class Member:
    """Where a photo lies in a shard.

    Attributes:
        shard: path or URL of the archive.
        name: file name under which it is copied out.
        offset, size: of its bytes in the archive.
        mask: (suffix, offset, size) of its mask, None without one.
    """

    shard: str
    name: str
    offset: int
    size: int
    mask: tuple[str, int, int] | None = None


def items(shard: str, source: str, place: str) -> Iterator[PhotoItem]:
    """The photos of one shard in the order of the archive; its headers alone are read.

    Args:
        shard: path or URL.
        source: what the shard is called in `PhotoItem.source`.
        place: folder of its assets, ending in '/'.
    """
    taken: set[str] = set()
    named: set[str] = set()
    count = 0
    try:
        with _opened(shard) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            end = file.seek(0, os.SEEK_END)
            file.seek(archive.offset)
            for group in _groups(archive):
                for item in _group_items(group, shard, source, place, end, taken):
                    count += 1
                    again = item.source in named  # an archive may hold a name twice
                    yield replace(item, source=f"{item.source}#{count}") if again else item
                    named.add(item.source)
            _check_end(file, archive.offset)
    except (tarfile.TarError, OSError, ImportError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        yield PhotoItem(
            source, f"{place}broken-shard",
            problem=f"{shard}: the archive cannot be read on ({reason}) after {count} photos. Copy it again.",
        )  # fmt: skip


def _check_end(file: Any, offset: int) -> None:
    """Raise unless the archive's end mark, a block of zeros, is where its members end: tarfile stops without a word."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError(f"no end mark at byte {offset}")


def _groups(archive: tarfile.TarFile) -> Iterator[list[tarfile.TarInfo]]:
    """Members that lie side by side and share their key, which is the name up to the first dot."""
    group: list[tarfile.TarInfo] = []
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
        if member.isdir():
            continue
        if group and _key(member.name) != _key(group[0].name):
            yield group
            group = []
        group.append(member)
    if group:
        yield group


def _key(name: str) -> str:
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.split('.')[0].removesuffix(MASK_ENDING)}"


def _group_items(
    group: list[tarfile.TarInfo], shard: str, source: str, place: str, end: int, taken: set[str]
) -> Iterator[PhotoItem]:
    photos, masks = [], {}
    for member in group:
        name = PurePosixPath(member.name).name
        if PurePosixPath(name).suffix.lower() not in PHOTO_SUFFIXES or name.startswith("."):
            continue
        found = _MASK.match(name)
        if found is None:
            photos.append(member)
        else:
            masks[found["stem"]] = member
    if not photos:
        photos, masks = list(masks.values()), {}  # gas_mask.jpg alone is a photo
    shared = len({PurePosixPath(m.name).stem.casefold() for m in photos}) < len(photos)
    for member in photos:
        stem = PurePosixPath(member.name).stem
        mask = masks.get(stem) or masks.get(stem.split(".")[0])
        own = _place(member.name, place, shared, taken)
        yield _item(member, mask, shard, f"{source}/{member.name}", own, end)


def _place(name: str, place: str, shared: bool, taken: set[str]) -> str:
    """The asset's folder of a member: below ``place`` whatever the name says, and no two alike."""
    path = PurePosixPath(name.replace("\\", "/").replace("\0", "_"))
    parts = [p.strip(". ")[:100] or "folder" for p in path.parent.parts if p.strip("/") not in ("", ".", "..")]
    own = (path.name.strip(". ") or "photo") if shared else asset_name(path.name)
    return free_name(place + "/".join([*parts, own[:150]]), taken)


def _item(
    member: tarfile.TarInfo, mask: tarfile.TarInfo | None, shard: str, source: str, place: str, end: int
) -> PhotoItem:
    problem = _problem(member, end)
    if problem is None and mask is not None and (problem := _problem(mask, end)) is not None:
        problem = f"its mask {mask.name} {problem}"
    if problem is not None:
        return PhotoItem(source, place, problem=f"{source}: {problem}")
    name = re.sub(r"[^\w.,+ -]", "_", PurePosixPath(member.name).name)[-100:]
    beside = None if mask is None else (PurePosixPath(mask.name).suffix, mask.offset_data, mask.size)
    return PhotoItem(
        source, place, member=Member(shard, name, member.offset_data, member.size, beside)
    )  # fmt: skip


def _problem(member: tarfile.TarInfo, end: int) -> str | None:
    """Why a member cannot be taken for a photo, or None."""
    parts = PurePosixPath(member.name.replace("\\", "/")).parts
    if member.name.startswith(("/", "\\")) or ".." in parts or "\0" in member.name or re.match(r"[A-Za-z]:", parts[0]):
        return "the name leads out of the archive. Pack the shard with plain relative names."
    if not member.isreg():
        return "is a link or a device, not a regular file. Pack the picture itself."
    if member.size > MAX_FILE_BYTES:
        return f"is too large ({member.size} bytes, at most {MAX_FILE_BYTES}). Make it smaller."
    if member.size == 0:
        return "is empty (0 bytes). Pack the photo again."
    if member.offset_data + member.size > end:
        return "is cut short: the archive ends in the middle of it. Copy or download the shard again."
    return None


def copy_member(member: Member, scratch: Path) -> Path:
    """Copy a photo, and its mask beside it, out of a shard into ``scratch``.

    Raises:
        ImageError: the shard has gone or became shorter.
    """
    photo = scratch / member.name
    _copy_range(member.shard, member.offset, member.size, photo)
    if member.mask is not None:
        suffix, offset, size = member.mask
        _copy_range(member.shard, offset, size, photo.with_name(f"{photo.stem}{MASK_ENDING}{suffix}"))
    return photo


def _copy_range(shard: str, offset: int, size: int, target: Path) -> None:
    try:
        with _opened(shard) as file:
            file.seek(offset)
            data = file.read(size)
    except (OSError, ImportError, ValueError) as error:
        raise ImageError(f"{shard}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    if len(data) != size:
        raise ImageError(f"{shard}: became shorter: {len(data)} of {size} bytes at {offset}. Copy it again.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    except OSError as error:
        raise ImageError(f"{shard}: a photo in it could not be copied out ({error.strerror}).") from error


def _opened(shard: str) -> IO[bytes] | Any:
    if not is_url(shard):
        return open(shard, "rb")
    from . import storage

    return storage.opened(shard)
