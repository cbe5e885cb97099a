"""The photos of a run, one after the other, however many there are: a folder, a list, tar shards, object storage.

::

    photos/  photos.txt  shards/x-{000..099}.tar  s3://bucket/photos
        └────────┴───────────────┴────────────────────┴──► PhotoItem(source, place) ... in an order that never changes

At most one directory or one shard is held in memory. What cannot be a photo (a broken link, a directory called
``x.png``, a hostile name in an archive) still becomes an item, whose `PhotoItem.fetch` says what is wrong with it: so
it gets its row in ``results.jsonl``, and is not passed over in silence.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from multiview.errors import ImageError, SettingsError

from .keysets import KeySet, key_of
from .photo import MASK_ENDING, PHOTO_SUFFIXES, find_mask

_DEEPEST = 200  # folders in folders; Python's own limit of calls lies behind it

if TYPE_CHECKING:
    from .shards import Member

RECORDS = ("asset.json", "views.json")
"""Files by which a folder is known to be a result, which is never searched for photos."""

_RACY_SECONDS = 2.0  # a file changed so lately may change again within one tick of its clock
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_SHARDS = 10_000_000


@dataclass(frozen=True)
class PhotoItem:
    """One photo of a run, wherever it lies; small, and can be sent to other processes.

    Attributes:
        source: what it is called: its posix path relative to the folder or list, or ``shard.tar/member``; unique in a
            run.
        place: its asset's folder relative to the output folder; no two are equal, not even where upper and lower case
            are one.
        path: the local file, None when it has to be fetched.
        url: where it lies in object storage.
        member: where it lies in a tar shard.
        problem: why it cannot be read; `fetch` raises it.
    """

    source: str
    place: str
    path: str | None = None
    url: str | None = None
    member: Member | None = None
    problem: str | None = None

    def key_bytes(self) -> bytes:
        """What claims on this photo are keyed by: its source."""
        return self.source.encode("utf-8", "surrogateescape")

    def fetch(self, scratch: Path) -> Path:
        """A local file with the photo, its mask beside it when there is one; a local photo is given where it is.

        Args:
            scratch: folder for copies, made when missing; the caller removes it.

        Raises:
            ImageError: there is a `problem`, or it cannot be copied.
        """
        if self.problem is not None:
            raise ImageError(self.problem)
        if self.path is not None:
            return Path(self.path)
        from . import shards

        if self.member is not None:
            return shards.copy_member(self.member, scratch)
        assert self.url is not None, "an item has a path, a url, a member or a problem"
        from . import storage

        return storage.copy_photo(self.url, scratch)

    def mark(self) -> str | None:
        """Size and time of the photo's file and its mask's, by which an unchanged photo is known without reading it.

        None where these say nothing: the file is not there, or was changed within the last seconds.
        """
        if self.problem is not None:
            return None
        if self.url is not None and self.member is None:
            from . import storage

            return storage.mark(self.url)
        file = self.path if self.member is None else self.member.shard
        if file is None or _URL.match(file):
            from . import storage

            told = None if file is None else storage.mark(file)
        else:
            told = _file_mark(file)
            if told is not None and self.member is None and (mask := find_mask(file)) is not None:
                mask_mark = _file_mark(mask)
                told = None if mask_mark is None else f"{told} {mask_mark}"
        return told if told is None or self.member is None else f"{told} {self.member.offset} {self.member.size}"


def photo_items(
    where: str | Path, out: str | Path, *, glob: str | None = None, limit: int | None = None
) -> Iterator[PhotoItem]:
    """The photos of a run in an order that never changes.

    Args:
        where: a folder, searched with its sub-folders in sorted order (masks, hidden files and folders, results of
            earlier runs and ``out`` are left out); a list, ``.txt``, of one path or URL a line, relative to the list's
            folder, in its own order; ``.tar`` shards as webdataset writes them: one, a pattern such as
            ``x-{000..099}.tar``, or a folder that holds them; or a URL of fsspec for any of these
            (``s3://bucket/photos``).
        out: where the results go; not ``where`` itself.
        glob: only photos whose source matches, such as ``*.jpg`` or ``cars/*``; ``*`` crosses folders, and case does
            not count.
        limit: at most so many.

    Raises:
        ImageError: ``where`` is missing or cannot be listed; while iterating.
        SettingsError: ``out`` is ``where`` itself, a pattern is no pattern, or a URL's package is not installed; while
            iterating.
    """
    items = _items(str(where), str(out))
    if glob is not None:
        wanted = re.compile(fnmatch.translate(glob.casefold()))
        items = (item for item in items if wanted.match(item.source.casefold()))
    return items if limit is None else islice(items, limit)


def _items(where: str, out: str) -> Iterator[PhotoItem]:
    if _URL.match(where):
        from . import storage

        yield from storage.photo_items(where, out)
    elif _is_shard(where):
        yield from shard_items(expand_braces(where))
    elif Path(where).suffix.lower() == ".txt" and Path(where).is_file():
        yield from _list_items(Path(where))
    else:
        yield from _folder_items(Path(where), out)


def is_url(where: str | Path) -> bool:
    """Whether ``where`` is for fsspec rather than a local path."""
    return _URL.match(str(where)) is not None


def _is_shard(where: str) -> bool:
    return where.lower().endswith(".tar") and not Path(where).is_dir()


def expand_braces(pattern: str) -> list[str]:
    """``x-{000..002}.tar`` → ``x-000.tar``, ``x-001.tar``, ``x-002.tar``; any number of such braces.

    Raises:
        SettingsError: a range that runs backwards or gives too many, or braces of another kind.
    """
    found = _BRACES.search(pattern)
    if found is None:
        if "{" in pattern and not os.path.exists(pattern):
            raise SettingsError(f"{pattern}: expected braces such as {{000..099}}.")
        return [pattern]
    first, last = int(found[1]), int(found[2])
    if last < first or last - first >= _MAX_SHARDS:
        raise SettingsError(f"{pattern}: {found[0]} gives {last - first + 1} shards. Begin with the lower number.")
    head, tail = pattern[: found.start()], expand_braces(pattern[found.end() :])
    return [f"{head}{n:0{len(found[1])}d}{end}" for n in range(first, last + 1) for end in tail]


# Folders


def _folder_items(folder: Path, out: str) -> Iterator[PhotoItem]:
    if not folder.is_dir():
        found = "is a file (use trilift lift)" if folder.exists() else "does not exist"
        raise ImageError(f"{folder}: expected a folder of photos, but it {found}.")
    inside = None if is_url(out) else Path(out).resolve()
    if inside == folder.resolve():
        raise SettingsError(f"{out}: the output folder is the photo folder itself. Choose another with -o.")
    nothing = True
    for item in _walk(folder, "", "", inside):
        nothing = False
        yield item
    if nothing:
        raise ImageError(f"{folder}: no photos in it or below. Looked for {' '.join(PHOTO_SUFFIXES)} in any case.")


def _walk(folder: Path, source: str, place: str, out: Path | None) -> Iterator[PhotoItem]:
    """Photos of one folder and below; ``source`` and ``place`` are the folder's, '' or ending in '/'."""
    if source.count("/") > _DEEPEST:
        text = f"{folder}: is more than {_DEEPEST} folders down. Move it up."
        yield PhotoItem(source.rstrip("/"), f"{place}unlisted", problem=text)
        return
    try:
        found = dict(_listed(folder, out))
    except OSError as error:
        text = f"{folder}: cannot be listed ({error.strerror}). Change its permissions."
        if not source:
            raise ImageError(text) from error
        yield PhotoItem(source.rstrip("/"), f"{place}unlisted", problem=text)
        return
    tars = {name for name, is_folder in found.items() if not is_folder and name.lower().endswith(".tar")}
    folders = {name for name, is_folder in found.items() if is_folder}
    photos = [name for name, is_folder in found.items() if not is_folder and is_photo_name(name, found)]
    places = sibling_places(photos, [*folders, *tars])
    del found
    for name in sorted(places):
        own, its = f"{source}{name}", f"{place}{places[name]}"
        if name in tars:
            yield from shard_items([str(folder / name)], source, f"{its}/")
        elif name in folders:
            yield from _sub_folder(folder / name, own, its, out)
        else:
            yield PhotoItem(own, its, path=str(folder / name))


def _sub_folder(folder: Path, source: str, place: str, out: Path | None) -> Iterator[PhotoItem]:
    """What is below a sub-folder; ``x.png/`` without a photo in it was meant for a photo."""
    nothing = True
    for item in _walk(folder, f"{source}/", f"{place}/", out):
        nothing = False
        yield item
    if nothing and folder.suffix.lower() in PHOTO_SUFFIXES:
        yield PhotoItem(source, place, path=str(folder))


def _listed(folder: Path, out: Path | None) -> list[tuple[str, bool]]:
    """(name, whether it is a folder) of what may matter in ``folder``."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder and _is_result(entry, out):
                continue
            found.append((entry.name, is_folder))
    return found


def _is_result(entry: os.DirEntry[str], out: Path | None) -> bool:
    """Whether a folder is the output, or what an earlier run wrote."""
    if out is not None and entry.name == out.name and Path(entry.path).resolve() == out:
        return True
    return any(os.path.isfile(os.path.join(entry.path, name)) for name in RECORDS)


def is_photo_name(name: str, beside: Container[str]) -> bool:
    """Whether a file of this name is taken for a photo: by its suffix, unless it is the mask of one in ``beside``."""
    path = PurePosixPath(name)
    if path.suffix.lower() not in PHOTO_SUFFIXES:
        return False
    if not path.stem.endswith(MASK_ENDING) or path.stem == MASK_ENDING:
        return True
    stem = path.stem.removesuffix(MASK_ENDING)
    return not any(stem + end in beside for s in PHOTO_SUFFIXES for end in (s, s.upper()))


# Folders of these names would stand where the run's own files stand.
_OF_THE_RUN = ("results.jsonl", "report.html")


def sibling_places(photos: Sequence[str], folders: Sequence[str]) -> dict[str, str]:
    """A folder's name for everything in one directory, none twice, not even where upper and lower case are one.

    Args:
        photos: file names.
        folders: names of sub-folders (and shards), which come first: their names are wanted as they are.

    Returns:
        {name: place}: a photo's is its stem unless two share it, then the full name, then that with a number.
    """
    taken = set(_OF_THE_RUN)
    places = {name: free_name(name.strip(". ") or "folder", taken) for name in sorted(folders)}
    stems = Counter(asset_name(name).casefold() for name in photos)
    for name in sorted(photos):
        stem = asset_name(name)
        shared = stems[stem.casefold()] > 1 or stem.casefold() in taken
        places[name] = free_name((name.strip(". ") or "photo") if shared else stem, taken)
    return places


def free_name(name: str, taken: set[str]) -> str:
    """``name``, or with the first number that makes it new; it is taken then."""
    number, free = 1, name
    while free.casefold() in taken:
        number += 1
        free = f"{name}-{number}"
    taken.add(free.casefold())
    return free


def asset_name(photo: str) -> str:
    """The name of a photo's asset: the file's stem, made safe as a folder's name.

    ``a/chair.png`` → ``chair``; names of nothing but dots, and pictures without a file, → ``photo``.
    """
    return "photo" if photo == "<image>" else Path(photo).stem.strip(". ") or "photo"


# Lists


def _list_items(path: Path) -> Iterator[PhotoItem]:
    """The photos of a list on this machine, in its order."""

    def item(line: str, place: str) -> PhotoItem:
        if is_url(line):
            return PhotoItem(line, place, url=line)
        return PhotoItem(line, place, path=str(path.parent / line))

    return listed_items(path, item)


def listed_items(path: Path, item: Callable[[str, str], PhotoItem]) -> Iterator[PhotoItem]:
    """The photos of a list in its order; it is read twice, so that names can be told apart.

    Args:
        path: the list on this machine.
        item: gives the photo of a line and its place.

    Raises:
        ImageError: it cannot be read; while iterating.
    """
    seen, once, twice, folders = KeySet(), KeySet(), KeySet(), KeySet()
    for line in _lines(path):
        if key_of(line) in seen:
            continue
        seen.add(key_of(line))
        key = key_of(_listed_place(line).casefold())
        (twice if key in once else once).add(key)
        for parent in PurePosixPath(_listed_place(line)).parents:
            folders.add(key_of(str(parent).casefold()))
    seen, taken = KeySet(), KeySet()
    for line in _lines(path):
        if key_of(line) in seen:
            continue
        seen.add(key_of(line))
        place = _listed_place(line)
        key = key_of(place.casefold())
        if key in twice or key in folders:
            full = PurePosixPath(line).name.strip(". ") or "photo"
            place = f"{PurePosixPath(place).parent}/{full}".removeprefix("./")
        number, first = 1, place
        while key_of(place.casefold()) in taken or (number > 1 and key_of(place.casefold()) in once):
            number += 1
            place = f"{first}-{number}"
        taken.add(key_of(place.casefold()))
        yield item(line, place)


def _lines(path: Path) -> Iterator[str]:
    """The lines of a list that say something, as posix paths without a leading ``./``."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            for line in file:
                text = line.strip("\r\n")
                if text.strip():
                    yield text if is_url(text) else os.path.normpath(text).replace(os.sep, "/")
    except OSError as error:
        raise ImageError(f"{path}: the list cannot be read ({error.strerror or error}). Check its path.") from error


def _listed_place(line: str) -> str:
    """The asset's folder of a line: its path without suffix, and without what would lead outside."""
    path = PurePosixPath(re.sub(_URL, "", line, count=1))
    parts = [part.strip(". ") or "folder" for part in path.parent.parts if part.strip("/") not in ("", ".", "..")]
    return "/".join([*(re.sub(r"[:\\]", "_", part) for part in parts), asset_name(path.name)])


# Shards


def shard_items(paths: Sequence[str], source: str = "", place: str | None = None) -> Iterator[PhotoItem]:
    """The photos of tar shards, one shard after the other.

    Args:
        paths: local paths or URLs.
        source: what goes before a shard's name in `PhotoItem.source`, '' or ending in '/'.
        place: folder of one shard's assets, ending in '/'; by its stem when left out.
    """
    from . import shards

    names: set[str] = set()
    places: set[str] = set()
    for path in paths:
        name = PurePosixPath(path.replace(os.sep, "/")).name
        own = f"{free_name(asset_name(name), places)}/" if place is None else place
        yield from shards.items(path, f"{source}{free_name(name, names)}", own)


# Marks


def _file_mark(path: str | Path) -> str | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode) or abs(time.time() - found.st_mtime) < _RACY_SECONDS:
        return None
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"


def copy_whole(read: Any, target: Path) -> None:
    """Write an open binary file's content to ``target``, whose folder is made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file:
        shutil.copyfileobj(read, file, 1 << 20)
