"""Mirror planes of a mesh: upright planes that carry its surface onto itself, nearly.

The geometry says where a plane may lie; whether colours are alike on both sides, the geometry cannot say, and callers
must judge by colours before they carry any over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cells import Cells
from .mesh import Mesh

Floats = NDArray[np.floating[Any]]

_POINTS = 1500  # on the surface, that are mirrored; four times as many to say how far from it they come to lie
_ROUGHLY = 16  # times as many for the search, which looks their cells up
_CELLS = 48  # along the longest side
_FACES = 50_000  # of which points are drawn
_ANGLES = 60  # directions tried first, every 3 degrees
_CANDIDATES = 4  # of these refined
_GOOD = 0.02  # mean distance, of the longest side, up to which a plane counts
_FARTHEST = 0.2  # of the longest side: distances that count at most
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

    side = float(mesh.extent.max())
    # Of meshes of very many faces, one in several, since points are drawn on few of them.
    some = replace(mesh, faces=mesh.faces[:: max(len(mesh.faces) // _FACES, 1)])
    points = sample_surface(some, (_ROUGHLY + 1) * _POINTS, np.random.default_rng(seed)).astype(np.float64)
    few, rest = points[:_POINTS], points[_POINTS:]
    search = _Search(few, Cells(rest, _CELLS), side)
    tree = cKDTree(rest[: 4 * _POINTS])
    # Two samples of one surface do not lie on each other: what that alone costs is taken off.
    floor = float(np.mean(tree.query(few, 1)[0]))
    angles = np.arange(_ANGLES) * np.pi / _ANGLES
    first = search.errors(angles, search.middles(angles))
    lowest = np.flatnonzero((first <= np.roll(first, 1)) & (first <= np.roll(first, -1)))
    found: list[MirrorPlane] = []
    for index in lowest[np.argsort(first[lowest])][:_CANDIDATES]:
        angle, offset = search.refined(float(angles[index]))
        plane = MirrorPlane((float(np.cos(angle)), float(np.sin(angle)), 0.0), offset, 0.0)
        away = np.minimum(tree.query(plane.mirrored(few), 1)[0], _FARTHEST * side)
        plane = replace(plane, error=max(float(np.mean(away)) - floor, 0.0) / side)
        if plane.error <= good and all(angle_between(plane, other) >= _APART_DEG for other in found):
            found.append(plane)
    return sorted(found, key=lambda plane: plane.error)


@dataclass(frozen=True, eq=False)
class _Search:
    """Looks for planes roughly: mirrored points are held against the middles of cells of the surface.

    Attributes:
        points: (P, 3) on the surface.
        cells: of many points on the surface.
        side: longest side of the mesh.
    """

    points: Floats
    cells: Cells
    side: float

    def middles(self, angles: Floats) -> NDArray[np.float64]:
        """(A,) offsets of the planes through the middle of the points' extent, for normals at angles (A,)."""
        along = self.points[:, :2] @ np.stack([np.cos(angles), np.sin(angles)])
        return (along.min(0) + along.max(0)) / 2

    def errors(self, angles: Floats, offsets: Floats) -> NDArray[np.float64]:
        """(A,) mean distances of mirrored points from the surface, in longest sides."""
        normals = np.stack([np.cos(angles), np.sin(angles)], 1)
        beyond = self.points[:, :2] @ normals.T - offsets  # (P, A)
        mirrored = np.repeat(self.points[None], len(angles), 0)
        mirrored[..., :2] -= 2 * beyond.T[..., None] * normals[:, None]
        away = np.linalg.norm(mirrored - self.cells.middles[self.cells.nearest(mirrored)], axis=-1)
        return np.minimum(away, _FARTHEST * self.side).mean(1) / self.side

    def refined(self, angle: float) -> tuple[float, float]:
        """Angle and offset after a search with ever smaller steps."""
        at = np.array([angle, float(self.middles(np.array([angle]))[0])])
        best = float(self.errors(at[:1], at[1:])[0])
        step = np.array([np.deg2rad(1.5), 0.01 * self.side])
        while step[0] > np.deg2rad(0.2):
            tried = at + np.array([(1, 0), (-1, 0), (0, 1), (0, -1)]) * step
            values = self.errors(tried[:, 0], tried[:, 1])
            index = int(np.argmin(values))
            if values[index] < best:
                best, at = float(values[index]), tried[index]
            else:
                step = step / 2
        return float(at[0]), float(at[1])


def angle_between(a: MirrorPlane, b: MirrorPlane) -> float:
    """Degrees between two planes, 0 to 90."""
    return float(np.rad2deg(np.arccos(min(abs(float(np.dot(a.normal, b.normal))), 1.0))))
