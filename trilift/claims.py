"""Who works on which photo, when several processes share one output folder.

Every process of a run holds one lock file open, ``OUT/.trilift.lock``: a shared lock on its first byte says that it is
there, a lock on the byte numbered by a photo's name that the photo is in its hands. One more byte keeps runs apart that
do not share photos. The kernel gives locks up when their process ends, however it ends, so there are no stale claims,
no clocks and no heartbeats. It works between the processes of one machine, and between machines where the file system
passes locks on (NFS 4 does, Lustre with ``-o flock``); where it refuses locks, each process works as if it were alone,
and says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from pathlib import Path
from types import ModuleType

from multiview.errors import OutputError, SettingsError

from .keysets import key_of

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: one process at a time
    fcntl = None

LOCK_FILE = ".trilift.lock"
ASIDE = ".aside-"
"""How names of half-written files and folders begin (`multiview.files`, `trilift.asset`)."""

_COUNT_BYTE = (1 << 62) + 1  # beyond the bytes of all photos
_RUN_BYTE = (1 << 62) + 2  # held by every run: shared by those that claim photos, alone by one that does not
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_open_folders: set[str] = set()
_open_lock = threading.Lock()


class Claims:
    """The claims of this process on the photos of one output folder.

    Args:
        out: the output folder; made when missing.
        alone: for runs that claim no photos (those of Ray): nobody else may work on ``out`` meanwhile, and nobody may
            have begun before.

    Attributes:
        works: whether the file system has locks; without them every claim is granted.
        swept: how many half-written files and folders of processes that died were removed. It is done by a process that
            finds a lock file and nobody else there, and by the last one out when fewer left than came.

    Raises:
        SettingsError: this process has another run on the same folder, whose locks would be one; or another process
            has one, and one of the two wants to be alone.
        OutputError: the folder cannot be written.
    """

    def __init__(self, out: Path, *, alone: bool = False) -> None:
        self.works, self.swept = fcntl is not None, 0
        self._path = out / LOCK_FILE
        self._key = str(out.resolve())
        with _open_lock:
            if self._key in _open_folders:
                raise SettingsError(
                    f"{out}: another folder run of this process writes there. Finish or close() it first."
                )
            _open_folders.add(self._key)
        try:
            self._fd = self._join(out, alone)
        except BaseException:
            _open_folders.discard(self._key)
            raise

    def _join(self, out: Path, apart: bool) -> int:
        try:
            out.mkdir(parents=True, exist_ok=True)
            while True:
                left_behind = self._path.exists()
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
                alone = self._lock(fd, 0, shared=False)
                if not alone:
                    self._lock(fd, 0, shared=True, wait=True)
                if self._is_current(fd):
                    break
                os.close(fd)  # its last user removed the file in between
            if not self._lock(fd, _RUN_BYTE, shared=not apart):
                os.close(fd)
                raise _busy(out, apart)
            if alone:
                if left_behind:
                    self.swept = sweep(out)
                os.ftruncate(fd, 0)
                self._lock(fd, 0, shared=True)  # others may come in now
            self._count(fd, 1)
            return fd
        except OSError as error:
            raise OutputError(
                f"{out}: could not be written ({error.strerror or error}). "
                "Check free space and permission of the folder, or choose another with -o."
            ) from error

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._path))
        except FileNotFoundError:
            return False

    def take(self, source: str) -> bool:
        """Claim a photo; False when another process has it in hand."""
        return self._lock(self._fd, 1 + key_of(source) // 2, shared=False)

    def release(self, source: str) -> None:
        """Give a claim back."""
        if fcntl is not None and self.works:
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, 1 + key_of(source) // 2)

    def close(self, clean: bool = True) -> None:
        """Leave; the last one out takes the lock file with it, unless not ``clean``: then the next one in sweeps."""
        if self._key not in _open_folders:
            return
        with contextlib.suppress(OSError):
            others = self._count(self._fd, -1) if clean else 1
            if clean and self._lock(self._fd, 0, shared=False):
                if others > 0:  # they came, and did not leave by themselves
                    self.swept += sweep(self._path.parent)
                os.unlink(self._path)
        os.close(self._fd)
        _open_folders.discard(self._key)

    def _count(self, fd: int, change: int) -> int:
        """Change how many processes have come and not left in order; returns their number."""
        if fcntl is None or not self.works:
            return 0
        self._lock(fd, _COUNT_BYTE, shared=False, wait=True)
        found = os.pread(fd, 20, 0)
        number = (int(found) if found.strip().isdigit() else 0) + change
        os.pwrite(fd, f"{max(number, 0):<20}".encode(), 0)
        fcntl.lockf(fd, fcntl.LOCK_UN, 1, _COUNT_BYTE)
        return number

    def _lock(self, fd: int, byte: int, *, shared: bool, wait: bool = False) -> bool:
        """Lock one byte; False when another process holds it and we do not ``wait``."""
        if fcntl is None or not self.works:
            return True
        how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        try:
            fcntl.lockf(fd, how, 1, byte)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            if error.errno not in _NO_LOCKS:
                raise
            self.works = False
        return True


def _busy(out: Path, apart: bool) -> SettingsError:
    """What to say where two runs would do each other's work again."""
    if apart:
        why = "another run works on it just now, and a run of --engine ray shares its photos with nobody"
    else:
        why = "a run of --engine ray works on it just now, which shares its photos with nobody"
    return SettingsError(f"{out}: {why}. Wait until that one ends, or choose another folder with -o.")


def sweep(out: Path) -> int:
    """Remove what killed processes left half-written below ``out``; returns how many files and folders that were."""
    removed = 0
    for base, folders, files in os.walk(out):
        here = Path(base)
        for name in [name for name in (*folders, *files) if name.startswith(ASIDE)]:
            path = here / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            removed += 1
        # A folder with a record is an asset: nothing is ever half-written inside of one.
        folders[:] = [n for n in folders if not n.startswith(ASIDE) and not (here / n / "asset.json").is_file()]
    return removed
