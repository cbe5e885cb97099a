"""Visitors, kept apart: each has a folder that nobody can guess, and everything of it goes when the visitor goes."""

from __future__ import annotations

import filecmp
import secrets
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .intake import RefusedError, Upload, keep_photo
from .jobs import Job

IDLE_SECONDS = 3600.0
MAX_SESSIONS = 200
MAX_RESULTS = 12
MAX_TOTAL_BYTES = 8 * 2**30
_RESULTS = "results"


@dataclass(frozen=True)
class Result:
    """One finished lift of a session.

    Attributes:
        title: for the history.
        folder: its own.
        files: what can be downloaded; the GLB first.
        picture: the cut-out.
        views: pictures of generated views.
        turntable: an animation, or None.
        scores: lines for people, as HTML.
        command: the same lift on the command line.
        facts: for programs, JSON values.
    """

    title: str
    folder: Path
    files: tuple[Path, ...]
    picture: Path
    views: tuple[Path, ...]
    turntable: Path | None
    scores: str
    command: str
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Session:
    """One visitor.

    Attributes:
        folder: with everything of this visitor; its name is random.
        results: finished lifts, the newest last.
        job: what runs for this visitor now.
        seen: time.monotonic() of the last request.
        shown: the result that the visitor looks at.
    """

    folder: Path
    results: list[Result] = field(default_factory=list)
    job: Job | None = None
    seen: float = field(default_factory=time.monotonic)
    shown: Result | None = None
    _photos: dict[Path, Path] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _count: int = 0
    _newest: Result | None = None

    def photo(self, upload: Upload) -> Path:
        """The session's own copy of an upload; the same one every time.

        Raises:
            RefusedError: it is no picture that can be taken.
        """
        with self._lock:
            kept = self._photos.get(upload.path)
            if kept is None or not kept.is_file() or kept.name != upload.name:
                kept = self._photos[upload.path] = keep_photo(upload, self.fresh("photos"))
            return kept

    def fresh(self, kind: str) -> Path:
        """A path below the session's folder that nobody has used; nothing is made there."""
        with self._lock:
            self._count += 1
            return self.folder / kind / str(self._count)

    def begin(self, kind: str) -> Job:
        """A new job; the one before it is stopped."""
        with self._lock:
            self.stop()
            self.job = Job(kind)
            return self.job

    def stop(self) -> bool:
        """Stop what runs; whether anything did."""
        with self._lock:
            job, self.job = self.job, None
            if job is None or job.stopping:
                return False
            job.stop()
            return True

    def take_newest(self) -> Result | None:
        """The result that nobody has asked for yet, None when there is no such."""
        with self._lock:
            result, self._newest = self._newest, None
            return result

    def add(self, result: Result) -> None:
        """Put a result into the history; the oldest go when there are more than `MAX_RESULTS`."""
        with self._lock:
            self.results.append(result)
            self._newest = self.shown = result
            while len(self.results) > MAX_RESULTS:
                shutil.rmtree(self.results.pop(0).folder, ignore_errors=True)

    def change(self, before: Result, after: Result) -> None:
        """Put a result into the place of another, wherever that is still kept."""
        with self._lock:
            self.results = [after if each is before else each for each in self.results]
            self.shown = after if self.shown is before else self.shown

    @property
    def uploads(self) -> set[Path]:
        """Files of gradio's own folder that this visitor has used."""
        with self._lock:
            return set(self._photos)


class Sessions:
    """All visitors.

    Args:
        root: folder of the sessions' folders; below gradio's own, so that gradio serves what lies in them.
        shared: files of the page itself. Gradio keeps equal files once, so that a visitor's upload of one of these is
            the page's own copy, and stays.
        clock: seconds, for tests.
    """

    def __init__(self, root: Path, shared: Sequence[Path] = (), clock: Any = time.monotonic) -> None:
        self.root, self._shared = root, {path.name: path for path in shared}
        self._clock = clock
        self._known: dict[str, Session] = {}
        self._lock = threading.Lock()

    def of(self, key: str | None) -> Session:
        """The session that a client names; begun when it is new.

        Raises:
            RefusedError: there are too many visitors.
        """
        now = self._clock()
        with self._lock:
            stale = [
                name
                for name, session in self._known.items()
                if now - session.seen > IDLE_SECONDS and (session.job is None or session.job.stopping)
            ]  # a job that is under way may take longer than anybody asks for anything
        for name in stale:
            self.drop(name)
        with self._lock:
            name = key or f"once {secrets.token_hex(8)}"
            session = self._known.get(name)
            if session is None:
                if len(self._known) >= MAX_SESSIONS:
                    raise RefusedError("There are too many visitors just now. Try again in a few minutes.")
                folder = self.root / secrets.token_urlsafe(16)
                folder.mkdir(parents=True, mode=0o700)
                session = self._known[name] = Session(folder)
            session.seen = now
            return session

    def find(self, key: str | None) -> Session | None:
        """The session if there is one."""
        with self._lock:
            return self._known.get(key or "")

    def drop(self, key: str | None) -> None:
        """End a session: stop its job and remove its folder and the uploads that nobody else uses."""
        with self._lock:
            session = self._known.pop(key or "", None)
            others = {path for other in self._known.values() for path in other.uploads}
        if session is None:
            return
        session.stop()
        for path in session.uploads - others:
            with suppress(OSError):
                own = self._shared.get(path.name)
                if own is None or not filecmp.cmp(path, own, shallow=False):
                    path.unlink()
                    path.parent.rmdir()
        shutil.rmtree(session.folder, ignore_errors=True)

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            names = list(self._known)
        for name in names:
            self.drop(name)

    def __len__(self) -> int:
        with self._lock:
            return len(self._known)
