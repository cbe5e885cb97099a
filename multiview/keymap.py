"""From the names in a published checkpoint to ours: key maps as data.

A table accounts for every published tensor: it is renamed, its rows are parted among several of ours, or it is dropped
for a reason that the table states. `multiview.checkpoint.fill_network` does the loading and reports what is left over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from .checkpoint import Dropped


@dataclass(frozen=True)
class KeyTable:
    """How one family's published names become ours; a `multiview.checkpoint.KeyMap`.

    A pattern is a name in which each ``*`` stands for a whole number. It covers the name itself and the name with
    ``.weight`` or ``.bias`` behind it.

    Attributes:
        renames: (published pattern, ours) pairs; ours has as many ``*``. A tuple of several of ours means that the
            published tensor's rows are theirs, one after the other, in equal parts: see `part`.
        dropped: {published pattern: why it is not needed}; ``**`` stands for any text here.
        prefix: taken off the front of every published name that has it.
    """

    renames: tuple[tuple[str, str | tuple[str, ...]], ...]
    dropped: Mapping[str, str]
    prefix: str = ""

    def __call__(self, key: str) -> str | Dropped | None:
        """A published name, or one that `part` made, → our name, why it is dropped, or None when it is not known."""
        key, place = _without_place(key.removeprefix(self.prefix))
        for pattern, reason in self._drop_patterns:
            if pattern.fullmatch(key):
                return Dropped(reason)
        for pattern, ours in self._patterns:
            if match := pattern.fullmatch(key):
                return _fill(ours[place], match) if place < len(ours) else None
        return None

    def part(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give each part of a tensor that holds several of ours a name of its own: ``key``, ``key[1]``, ``key[2]``.

        Args:
            state: {published name: tensor}.

        Returns:
            {published name: tensor}, views of the tensors in ``state``. A tensor whose rows cannot be parted evenly
            stays whole, so that its shape is found wrong when it is loaded.
        """
        parted: dict[str, Tensor] = {}
        for key, tensor in state.items():
            count = self._count(key.removeprefix(self.prefix))
            whole = count == 1 or tensor.ndim == 0 or tensor.shape[0] % count
            parts = [tensor] * count if whole else tensor.chunk(count)
            parted.update((f"{key}[{i}]" if i else key, part) for i, part in enumerate(parts))
        return parted

    def published(self, name: str) -> str:
        """One of our names → the published name that it comes from (of the first pattern that fits), else itself."""
        for pattern, published in self._inverse:
            if match := pattern.fullmatch(name):
                return self.prefix + _fill(published, match)
        return name

    def _count(self, key: str) -> int:
        return next((len(ours) for pattern, ours in self._patterns if len(ours) > 1 and pattern.fullmatch(key)), 1)

    @cached_property
    def _drop_patterns(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_compiled(pattern), reason) for pattern, reason in self.dropped.items()]

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], tuple[str, ...]]]:
        return [(_compiled(published), _several(ours)) for published, ours in self.renames]

    @cached_property
    def _inverse(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_compiled(name), published) for published, ours in self.renames for name in _several(ours)]


def sequential_renames(published: str, ours: str, layers: int = 16) -> tuple[tuple[str, str], ...]:
    """Linear layers that are counted with the activations between them: 0, 2, 4, ... → 0, 1, 2, ..."""
    return tuple((f"{published}.{2 * i}", f"{ours}.{i}") for i in range(layers))


def _several(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _without_place(key: str) -> tuple[str, int]:
    """``key[2]`` → ``key`` and 2; a plain key is its own first part."""
    match = re.fullmatch(r"(.*)\[([1-9])\]", key)
    return (match[1], int(match[2])) if match else (key, 0)


def _compiled(pattern: str) -> re.Pattern[str]:
    anything = re.escape(pattern).replace(r"\*\*", ".*")
    return re.compile(anything.replace(r"\*", r"(\d+)") + r"(\.weight|\.bias)?")


def _fill(pattern: str, match: re.Match[str]) -> str:
    """Put the numbers of ``match`` in place of the stars, and its ``.weight`` or ``.bias`` behind."""
    *numbers, ending = match.groups()
    for number in numbers:
        pattern = pattern.replace("*", number, 1)
    return pattern + (ending or "")
