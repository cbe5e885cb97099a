"""Large sets of names in little memory: what a run over millions of photos has to remember of each."""

from __future__ import annotations

import hashlib

import numpy as np

_MERGE_FROM = 1 << 16


def key_of(*parts: str | None) -> int:
    """A number below 2^63 for some texts; a million of them collide with a chance of one in ten million."""
    joined = "\x00".join("\x01" if part is None else part for part in parts)
    digest = hashlib.blake2b(joined.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class KeySet:
    """A set of `key_of` numbers that only grows, in eight bytes each."""

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._sorted = np.empty(0, np.uint64)

    def add(self, key: int) -> None:
        """Take ``key`` in; again is no change."""
        self._recent.add(key)
        if len(self._recent) >= _MERGE_FROM:
            fresh = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._sorted = np.union1d(self._sorted, fresh)
            self._recent.clear()

    def __contains__(self, key: int) -> bool:
        if key in self._recent:
            return True
        at = int(np.searchsorted(self._sorted, np.uint64(key)))
        return at < len(self._sorted) and int(self._sorted[at]) == key
