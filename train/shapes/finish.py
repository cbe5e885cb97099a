"""From a heap of blocks to one object: normalised, vertices split where colours meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .blocks import Part

MIN_FACES = 200
MAX_FACES = 6000
_FRONTS = ("+x", "+y", "-x", "-y")


@dataclass(frozen=True)
class Shape:
    """One procedural object.

    Attributes:
        name: family, then the side that its front faces, such as ``chair-front+x``.
        family: key of ``FAMILIES``.
        vertices: (N, 3) float32, world z up, right-handed; bounding box centred at 0, longest side 1.
        faces: (F, 3) int32, counter-clockwise seen from outside, 200 <= F <= 6000.
        colors: (N, 3) uint8 sRGB, one a vertex.
    """

    name: str
    family: str
    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    colors: NDArray[np.uint8]


def finish(parts: Sequence[Part], family: str, quarter_turns: int) -> Shape:
    """Join ``parts`` into a `Shape`.

    Args:
        parts: closed blocks, any unit, front toward +x, z up.
        family: what to call it.
        quarter_turns: how often to turn it by 90 degrees about z, +x toward +y.

    Returns:
        The union by concatenation; blocks may overlap. Faces are split in four where there are under 200.
    """
    parts = enough_faces(parts)
    pieces = [_split_colors(part) for part in parts]
    starts = np.cumsum([0, *(len(p[0]) for p in pieces)])
    vertices = np.concatenate([p[0] for p in pieces])
    faces = np.concatenate([p[1] + start for p, start in zip(pieces, starts, strict=False)])
    for _ in range(quarter_turns % 4):
        vertices = vertices[:, [1, 0, 2]] * (-1, 1, 1)
    low, high = vertices.min(0), vertices.max(0)
    vertices = (vertices - (low + high) / 2) / (high - low).max()
    name = f"{family}-front{_FRONTS[quarter_turns % 4]}"
    colors = np.concatenate([p[2] for p in pieces])
    return Shape(name, family, vertices.astype(np.float32), faces.astype(np.int32), colors)


def enough_faces(parts: Sequence[Part]) -> Sequence[Part]:
    """The same blocks, all split in four until there are ``MIN_FACES`` faces in all."""
    while sum(len(part.faces) for part in parts) < MIN_FACES:
        parts = [split_in_four(part) for part in parts]
    return parts


def split_in_four(part: Part) -> Part:
    """The block with every face cut at the middles of its edges; stays closed."""
    ends = np.sort(part.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    edges, which = np.unique(ends, axis=0, return_inverse=True)
    middle = which.reshape(-1, 3) + len(part.vertices)
    a, b, c = part.faces.T
    ab, bc, ca = middle.T
    faces = np.stack([a, ab, ca, ab, b, bc, ca, bc, c, ab, bc, ca], 1).reshape(-1, 3)
    vertices = np.concatenate([part.vertices, part.vertices[edges].mean(1)])
    return Part(vertices, faces, np.repeat(part.colors, 4, axis=0))


def _split_colors(part: Part) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.uint8]]:
    """Vertices (one for each pair of place and colour), faces and vertex colours of a block."""
    packed = part.colors.astype(np.int64) @ np.array([65536, 256, 1])
    if (packed == packed[0]).all():
        return part.vertices, part.faces, np.repeat(part.colors[:1], len(part.vertices), axis=0)
    keys = part.faces.astype(np.int64) * 2**24 + packed[:, None]
    unique, inverse = np.unique(keys, return_inverse=True)
    rgb = unique % 2**24
    colors = np.stack([rgb >> 16, rgb >> 8 & 255, rgb & 255], 1).astype(np.uint8)
    return part.vertices[unique >> 24], inverse.reshape(-1, 3), colors
