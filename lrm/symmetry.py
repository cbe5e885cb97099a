"""Mirror planes of a mesh: upright planes that carry its surface onto itself, nearly.

The geometry says where a plane may lie; whether colours are alike on both sides, the geometry cannot say, and callers
must judge by colours before they carry any over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .mesh import Mesh

Floats = NDArray[np.floating[Any]]

_POINTS = 1500  # on the surface, for the search; four times as many for the last word
_ANGLES = 60  # directions tried first, every 3 degrees
_CANDIDATES = 4  # of these refined
_GOOD = 0.02  # mean distance, of the longest side, up to which a plane counts
_APART_DEG = 15.0  # planes nearer to each other are one


@dataclass(frozen=True)
class MirrorPlane:
    """An upright mirror plane.

    Attributes:
        normal: (3,) unit length, horizontal.
        offset: signed distance of the plane from the origin along ``normal``, world units.
        error: mean distance of mirrored surface points from the surface, in longest sides of the mesh.
    """

    normal: tuple[float, float, float]
    offset: float
    error: float

    def mirrored(self, points: Floats) -> NDArray[np.float64]:
        """Points (N, 3) on the other side."""
        normal = np.asarray(self.normal)
        return points - 2 * (points @ normal - self.offset)[:, None] * normal

    def turned(self, directions: Floats) -> NDArray[np.float64]:
        """Directions (N, 3) as the mirror shows them."""
        normal = np.asarray(self.normal)
        return directions - 2 * (directions @ normal)[:, None] * normal


def mirror_planes(mesh: Mesh, *, seed: int = 0, good: float = _GOOD) -> list[MirrorPlane]:
    """Find upright planes that mirror a mesh's surface onto itself.

    Args:
        mesh: upright, z up.
        seed: of the surface points.
        good: largest mean distance of a mirrored point from the surface, in longest sides.

    Returns:
        At most four planes, the best first, at least 15 degrees apart; none when nothing is good enough.
    """
    from scipy.spatial import cKDTree

    from .metrics import sample_surface

    rng = np.random.default_rng(seed)
    side = float(mesh.extent.max())
    few, many = (sample_surface(mesh, count, rng).astype(np.float64) for count in (_POINTS, 4 * _POINTS))
    tree = cKDTree(many)
    # Two samples of one surface do not lie on each other: what that alone costs is taken off.
    floor = float(np.mean(tree.query(few, 1)[0]))

    def error(angle: float, offset: float) -> float:
        normal = np.array([np.cos(angle), np.sin(angle), 0.0])
        mirrored = few - 2 * (few @ normal - offset)[:, None] * normal
        return max(float(np.mean(np.minimum(tree.query(mirrored, 1)[0], 0.2 * side))) - floor, 0.0) / side

    def middle(angle: float) -> float:
        along = few @ np.array([np.cos(angle), np.sin(angle), 0.0])
        return float(along.min() + along.max()) / 2

    angles = np.arange(_ANGLES) * np.pi / _ANGLES
    first = np.array([error(a, middle(a)) for a in angles])
    lowest = np.flatnonzero((first <= np.roll(first, 1)) & (first <= np.roll(first, -1)))
    found: list[MirrorPlane] = []
    for index in lowest[np.argsort(first[lowest])][:_CANDIDATES]:
        angle, offset, lowest_error = _refined(error, float(angles[index]), middle(float(angles[index])), side)
        plane = MirrorPlane((float(np.cos(angle)), float(np.sin(angle)), 0.0), offset, lowest_error)
        if lowest_error <= good and all(angle_between(plane, other) >= _APART_DEG for other in found):
            found.append(plane)
    return sorted(found, key=lambda plane: plane.error)


def _refined(error: Any, angle: float, offset: float, side: float) -> tuple[float, float, float]:
    """Angle, offset and error after a search with ever smaller steps."""
    best = error(angle, offset)
    turn, shift = np.deg2rad(1.5), 0.01 * side
    while turn > np.deg2rad(0.2):
        tried = [(angle + turn, offset), (angle - turn, offset), (angle, offset + shift), (angle, offset - shift)]
        values = [error(*each) for each in tried]
        index = int(np.argmin(values))
        if values[index] < best:
            best, (angle, offset) = values[index], tried[index]
        else:
            turn, shift = turn / 2, shift / 2
    return angle, offset, best


def angle_between(a: MirrorPlane, b: MirrorPlane) -> float:
    """Degrees between two planes, 0 to 90."""
    return float(np.rad2deg(np.arccos(min(abs(float(np.dot(a.normal, b.normal))), 1.0))))
