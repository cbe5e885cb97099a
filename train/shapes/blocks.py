"""Closed, outward-facing blocks from which all procedural objects are put together.

Every block is a `Part`: vertices shared between its faces, each edge in exactly two faces, triangles
counter-clockwise seen from outside, one sRGB colour a face. World z is up. Almost everything is a skin over a
stack of closed loops, so there is one place where faces are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .outlines import Floats, ear_clip, outline_rect, outline_round

Color = tuple[int, int, int]
Paint = Color | Sequence[Color]
Point = Sequence[float] | NDArray[Any]
_AXES = {"x": 0, "y": 1, "z": 2}
# The plain box is by far the commonest block, so it is a table: bottom face's middle at the origin, sides 1.
_BOX_CORNERS = np.array(
    [(x, y, z) for z in (0.0, 1.0) for x, y in ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))]
)
_BOX_FACES = np.array(
    [
        (1, 0, 3),
        (1, 3, 2),
        (4, 5, 6),
        (4, 6, 7),
        (0, 1, 5),
        (0, 5, 4),
        (1, 2, 6),
        (1, 6, 5),
        (2, 3, 7),
        (2, 7, 6),
        (3, 0, 4),
        (3, 4, 7),
    ],
    dtype=np.int64,
)


@dataclass(frozen=True)
class Part:
    """One closed block.

    Attributes:
        vertices: (N, 3) float64, any unit, z up.
        faces: (F, 3) int64, counter-clockwise seen from outside.
        colors: (F, 3) uint8 sRGB, one a face.
    """

    vertices: Floats
    faces: NDArray[np.int64]
    colors: NDArray[np.uint8]

    def move(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Part:
        """The block shifted by (x, y, z)."""
        return replace(self, vertices=self.vertices + np.array([x, y, z]))

    def scale(self, x: float, y: float | None = None, z: float | None = None) -> Part:
        """The block stretched about the origin; one number stretches evenly. Factors are > 0."""
        factors = np.array([x, x if y is None else y, x if z is None else z])
        return replace(self, vertices=self.vertices * factors)

    def turn(self, axis: str, degrees: float) -> Part:
        """The block turned about the origin, right-handed, about the axis ``x``, ``y`` or ``z``."""
        return replace(self, vertices=self.vertices @ _rotation(axis, degrees).T)

    def mirror(self, axis: str = "y") -> Part:
        """The block mirrored in the plane through the origin across ``axis``; faces stay outward."""
        signs = np.ones(3)
        signs[_AXES[axis]] = -1
        return replace(self, vertices=self.vertices * signs, faces=self.faces[:, ::-1])

    def paint(self, color: Color, where: NDArray[np.bool_]) -> Part:
        """The block with the faces of the mask ``where`` (F,) in another colour."""
        colors = self.colors.copy()
        colors[where] = color
        return replace(self, colors=colors)

    @property
    def centroids(self) -> Floats:
        """(F, 3) middle of every face."""
        return np.asarray(self.vertices[self.faces].mean(1))


def mirrored(parts: Sequence[Part], axis: str = "y") -> list[Part]:
    """The blocks and their mirror images across ``axis``."""
    return [*parts, *(part.mirror(axis) for part in parts)]


def _rotation(axis: str, degrees: float) -> Floats:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    i = _AXES[axis]
    j, k = (i + 1) % 3, (i + 2) % 3
    matrix = np.eye(3)
    matrix[j, j] = matrix[k, k] = c
    matrix[j, k], matrix[k, j] = -s, s
    return matrix


def signed_volume(vertices: Floats, faces: NDArray[np.int64]) -> float:
    """Volume inside a closed mesh, > 0 when its faces look outward."""
    a, b, c = (vertices[faces[:, i]] - vertices.mean(0) for i in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def _outward(vertices: Floats, faces: NDArray[np.int64], colors: NDArray[np.uint8]) -> Part:
    if signed_volume(vertices, faces) < 0:
        faces = faces[:, ::-1]
    return Part(np.ascontiguousarray(vertices), np.ascontiguousarray(faces), colors)


def _fan(ring: NDArray[np.int64], center: int) -> NDArray[np.int64]:
    return np.stack([np.roll(ring, -1), ring, np.full_like(ring, center)], 1)


def skin(rings: ArrayLike, color: Paint, *, closed: bool = False, cap: NDArray[np.int64] | None = None) -> Part:
    """Stretch a closed surface over loops of points.

    Args:
        rings: (R, S, 3), R loops of S points, all running the same way round. A first or last loop whose points
            coincide becomes a tip; the other ends are capped.
        color: one colour, or R - 1 (R when ``closed``), one a band between two loops; a cap takes its band's.
        closed: join the last loop to the first (a ring) and cap nothing.
        cap: (S - 2, 3) triangles over the loop's points, wound like the loop; a fan about the middle when None.

    Returns:
        A `Part` with faces outward whichever way the loops run.
    """
    points = np.asarray(rings, dtype=np.float64)
    r, s = points.shape[:2]
    bands = r if closed else r - 1
    paints = np.array([color] * bands if isinstance(color[0], int | np.integer) else color, dtype=np.uint8)
    index = np.arange(r * s).reshape(r, s)
    vertices = [points.reshape(-1, 3)]
    tips = [False, False] if closed else [float(np.ptp(points[i], 0).max()) < 1e-9 for i in (0, -1)]
    for end, is_tip in zip((0, -1), tips, strict=True):
        if is_tip:
            index[end] = index[end, 0]
    low, high = (index, np.roll(index, -1, 0)) if closed else (index[:-1], index[1:])
    low_next, high_next = np.roll(low, -1, 1), np.roll(high, -1, 1)
    quads = np.stack([np.stack([low, low_next, high_next], -1), np.stack([low, high_next, high], -1)], 2)
    faces = [quads.reshape(-1, 3)]
    colors = [np.repeat(paints, 2 * s, axis=0)]
    count = r * s
    for end, is_tip in zip((0, -1), tips, strict=True):
        if closed or is_tip:
            continue
        if cap is None:
            vertices.append(points[end].mean(0, keepdims=True))
            lid, count = _fan(index[end], count), count + 1
        else:
            lid = index[end][cap][:, ::-1]
        faces.append(lid if end == 0 else lid[:, ::-1])
        colors.append(np.repeat(paints[end][None], len(lid), axis=0))
    return _compact(np.concatenate(vertices), np.concatenate(faces), np.concatenate(colors))


def _compact(vertices: Floats, faces: NDArray[np.int64], colors: NDArray[np.uint8]) -> Part:
    """Drop the collapsed faces at tips and the vertices that nothing uses."""
    keep = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    faces, colors = faces[keep], colors[keep]
    used = np.zeros(len(vertices), dtype=bool)
    used[faces] = True
    return _outward(vertices[used], (np.cumsum(used) - 1)[faces], colors)


def stack(sections: Sequence[Sequence[float]], color: Paint, *, corner: float = 0.0, steps: int = 1) -> Part:
    """Rectangles at growing heights, joined.

    Args:
        sections: rows (z, half_x, half_y) or (z, half_x, half_y, middle_x, middle_y).
        color: one, or one a storey (rows - 1).
        corner: radius of the upright edges, in the unit of the rows; steps: points round each of them.
    """
    rings = []
    for row in sections:
        z, half_x, half_y, x, y = [*row, 0.0, 0.0][:5]
        flat = outline_rect(half_x, half_y, corner, steps)
        rings.append(np.column_stack([np.add(flat, (x, y)), np.full(len(flat), z)]))
    return skin(np.array(rings), color)


def box(size: Point, color: Color, at: Point = (0, 0, 0), *, bevel: float = 0.0) -> Part:
    """A box of ``size`` (x, y, z) whose bottom face's middle is ``at``; ``bevel`` cuts all edges, in the same unit."""
    x, y, z = (float(v) for v in size)
    bevel = min(bevel, 0.45 * x, 0.45 * y, 0.45 * z)
    if bevel <= 0:
        vertices = _BOX_CORNERS * (x, y, z) + np.asarray(at, dtype=np.float64)
        return Part(vertices, _BOX_FACES, np.array([color] * 12, dtype=np.uint8))
    inner = (x / 2 - bevel, y / 2 - bevel)
    rows = [(0, *inner), (bevel, x / 2, y / 2), (z - bevel, x / 2, y / 2), (z, *inner)]
    return stack(rows, color, corner=bevel, steps=2).move(*at)


def cushion(size: Point, color: Color, at: Point = (0, 0, 0), puff: float = 0.3) -> Part:
    """A soft box: rounded upright edges, and rounded over top and bottom by ``puff`` of its height (0..0.5)."""
    x, y, z = (float(v) for v in size)
    soft = min(puff * z, 0.3 * x, 0.3 * y)
    rows = []
    for angle in np.deg2rad([-90, -45, 0, 45, 90]):
        inset = soft * (1 - np.cos(angle))
        middle = soft if angle <= 0 else z - soft
        rows.append((middle + soft * np.sin(angle), x / 2 - inset, y / 2 - inset))
        if angle == 0:
            rows.append((z - soft, x / 2, y / 2))
    return stack(rows, color, corner=min(x, y) * 0.22, steps=4).move(*at)


def lathe(profile: ArrayLike, color: Paint, *, segments: int = 20, at: Point = (0, 0, 0)) -> Part:
    """Turn a profile of rows (radius, z) about the z axis; radius 0 at an end makes a tip, else it is capped."""
    rows = np.asarray(profile, dtype=np.float64)
    circle = outline_round(segments)
    rings = [np.column_stack([circle * r, np.full(segments, z)]) for r, z in rows]
    return skin(np.array(rings), color).move(*at)


def cylinder(
    radius: float,
    height: float,
    color: Color,
    at: Point = (0, 0, 0),
    *,
    top: float | None = None,
    segments: int = 16,
    axis: str = "z",
) -> Part:
    """A cylinder or (``top`` given) a frustum or cone along +``axis``, its first disc's middle at ``at``."""
    part = lathe([(radius, 0), (radius if top is None else top, height)], color, segments=segments)
    turned = part.turn("y", 90) if axis == "x" else part.turn("x", -90) if axis == "y" else part
    return turned.move(*at)


def ellipsoid(
    radii: Point,
    color: Paint,
    at: Point = (0, 0, 0),
    *,
    segments: int = 16,
    rings: int = 9,
    power: float = 2.0,
) -> Part:
    """An ellipsoid, or a superellipsoid for ``power`` > 2, of half axes ``radii`` about ``at``; ``rings`` loops."""
    angle = np.deg2rad(np.linspace(-90, 90, rings))
    c, s = np.clip(np.cos(angle), 0, None), np.sin(angle)
    r, z = c ** (2 / power), np.sign(s) * np.abs(s) ** (2 / power)
    r[[0, -1]] = 0
    circle = outline_round(segments, power=power)
    loops = [np.column_stack([circle * ri, np.full(segments, zi)]) for ri, zi in zip(r, z, strict=True)]
    return skin(np.array(loops), color).scale(*radii).move(*at)


def tube(points: ArrayLike, radii: ArrayLike, color: Paint, *, segments: int = 8, flat: float = 1.0) -> Part:
    """Sweep a circle along a polyline.

    Args:
        points: (K, 3), no two neighbours equal.
        radii: one number or (K,); 0 at an end makes a tip.
        color: one, or one a piece (K - 1).
        flat: second half axis over the first; the first starts out horizontal where it can.
    """
    p = np.asarray(points, dtype=np.float64)
    r = np.broadcast_to(np.asarray(radii, dtype=np.float64), (len(p),))
    step = np.diff(p, axis=0)
    step /= np.linalg.norm(step, axis=1, keepdims=True)
    tangent = np.concatenate([step[:1], step[:-1] + step[1:], step[-1:]])
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    side = np.cross([0, 0, 1.0], tangent[0]) if abs(tangent[0, 2]) < 0.95 else np.array([1.0, 0, 0])
    circle = outline_round(segments)
    rings = []
    for point, along, radius in zip(p, tangent, r, strict=True):
        # Carry the first direction along: remove what points forward, keep the rest.
        side = side - along * (side @ along)
        side /= np.linalg.norm(side)
        frame = np.stack([side, np.cross(along, side) * flat])
        rings.append(point + circle @ frame * radius)
    return skin(np.array(rings), color)


def capsule(
    start: Point,
    end: Point,
    radius: float,
    color: Color,
    *,
    end_radius: float | None = None,
    segments: int = 10,
) -> Part:
    """A rod from ``start`` to ``end`` with round ends; ``end_radius`` tapers it."""
    a, b = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    along = (b - a) / np.linalg.norm(b - a)
    last = radius if end_radius is None else end_radius
    bend = np.deg2rad([90, 50, 0])
    points = [a - along * radius * np.sin(t) for t in bend] + [b + along * last * np.sin(t) for t in bend[::-1]]
    radii = [0, radius * np.cos(bend[1]), radius, last, last * np.cos(bend[1]), 0]
    return tube(np.array(points), radii, color, segments=segments)


def torus(
    radius: float,
    thickness: float,
    color: Color,
    at: Point = (0, 0, 0),
    *,
    segments: int = 20,
    around: int = 8,
) -> Part:
    """A ring in the xy plane about ``at``: ``radius`` to the middle of a tube of half width ``thickness``."""
    cross = outline_round(around, thickness)
    rows = np.add(cross, (radius, 0))
    angle = np.arange(segments) * 2 * np.pi / segments
    rings = [np.column_stack([rows[:, 0] * np.cos(a), rows[:, 0] * np.sin(a), rows[:, 1]]) for a in angle]
    return skin(np.array(rings), color, closed=True).move(*at)


def extrude(outline: ArrayLike, depth: float, color: Paint, *, axis: str = "y", bevel: float = 0.0) -> Part:
    """Give a flat simple outline a thickness, symmetric about the plane it lies in.

    Args:
        outline: (N, 2) corners of a polygon that does not cross itself, either way round. Axis ``z`` reads them as
            (x, y), ``y`` as (x, z), ``x`` as (y, z).
        depth: full thickness along ``axis``.
        color: one, or three with a bevel: first side, rim, second side.
        bevel: how far the two faces are drawn in toward the outline's middle, same unit.
    """
    flat = np.asarray(outline, dtype=np.float64)
    following = np.roll(flat, -1, axis=0)
    if (flat[:, 0] * following[:, 1] - flat[:, 1] * following[:, 0]).sum() < 0:
        flat = flat[::-1]
    triangles = ear_clip(flat)
    middle = (flat.max(0) + flat.min(0)) / 2
    half = (flat.max(0) - flat.min(0)) / 2
    bevel = min(bevel, 0.45 * float(half.min()), 0.45 * depth)
    drawn_in = middle + (flat - middle) * (1 - bevel / half)
    rows = [(flat, -depth / 2), (flat, depth / 2)]
    if bevel > 0:
        rows = [(drawn_in, -depth / 2), (flat, bevel - depth / 2), (flat, depth / 2 - bevel), (drawn_in, depth / 2)]
    order = {"z": [0, 1, 2], "y": [0, 2, 1], "x": [2, 0, 1]}[axis]
    rings = [np.column_stack([ring, np.full(len(ring), t)])[:, order] for ring, t in rows]
    return skin(np.array(rings), color, cap=triangles)


@lru_cache(maxsize=4)
def _icosphere(levels: int) -> tuple[Floats, NDArray[np.int64]]:
    """Unit icosahedron whose every face is parted into four, ``levels`` times: vertices (N, 3), faces (F, 3)."""
    golden = (1 + 5**0.5) / 2
    ring = [(-1, golden), (1, golden), (-1, -golden), (1, -golden)]
    corners = [(x, y, 0) for x, y in ring] + [(0, x, y) for x, y in ring] + [(y, 0, x) for x, y in ring]
    # The faces of the hull: every three corners that are one edge (2 long) apart from each other, seen from outside.
    points = np.array(corners, dtype=np.float64)
    near = np.isclose(np.linalg.norm(points[:, None] - points, axis=-1), 2)
    found = [(i, j, k) for i, j, k in combinations(range(12), 3) if near[i, j] and near[j, k] and near[i, k]]
    faces = np.array([(i, j, k) if np.linalg.det(points[[i, j, k]]) > 0 else (i, k, j) for i, j, k in found])
    for _ in range(levels):
        edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
        unique, place = np.unique(edges, axis=0, return_inverse=True)
        middle = place.reshape(-1, 3) + len(points)
        points = np.concatenate([points, points[unique].mean(1)])
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        (a, b, c), (ab, bc, ca) = faces.T, middle.T
        faces = np.concatenate([np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
    return points / np.linalg.norm(points, axis=1, keepdims=True), faces.astype(np.int64)


def blob(
    radii: Point,
    color: Color,
    rng: np.random.Generator,
    at: Point = (0, 0, 0),
    *,
    rough: float = 0.1,
    levels: int = 2,
    waves: float = 3.0,
) -> Part:
    """A lumpy ball: an icosphere (20 * 4 ** levels faces) whose radius waves by about ``rough`` of itself."""
    ball, faces = _icosphere(levels)
    directions = rng.normal(size=(5, 3)) * waves
    height = np.sin(ball @ directions.T + rng.uniform(0, 2 * np.pi, 5)).mean(1) * 1.6
    vertices = ball * (1 + rough * height)[:, None] * np.asarray(radii, dtype=np.float64)
    colors = np.repeat(np.array([color], dtype=np.uint8), len(faces), axis=0)
    return Part(vertices + np.asarray(at, dtype=np.float64), faces, colors)
