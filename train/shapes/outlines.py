"""Flat outlines, smooth curves and the cutting of polygons into triangles."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def outline_rect(half_x: float, half_y: float, corner: float = 0.0, steps: int = 1) -> Floats:
    """A rectangle's outline (4 * steps, 2), counter-clockwise; ``steps`` points round each corner of that radius."""
    if steps == 1 or corner <= 0:
        return np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], dtype=np.float64) * (half_x, half_y)
    corner = min(corner, 0.98 * half_x, 0.98 * half_y)
    angles = np.deg2rad(np.linspace(0, 90, steps))
    arc = np.stack([np.cos(angles), np.sin(angles)], 1) * corner
    base = np.array([half_x - corner, half_y - corner])
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    quarter = [base + arc, base + arc[::-1], base + arc, base + arc[::-1]]
    return np.concatenate([q * sign for q, sign in zip(quarter, signs, strict=True)])


def outline_round(count: int, radius_x: float = 1.0, radius_y: float | None = None, power: float = 2.0) -> Floats:
    """Circle, ellipse or superellipse (``power`` > 2 is squarer) of ``count`` points (count, 2), counter-clockwise."""
    angle = np.arange(count) * 2 * np.pi / count
    c, s = np.cos(angle), np.sin(angle)
    xy = np.stack([np.sign(c) * np.abs(c) ** (2 / power), np.sign(s) * np.abs(s) ** (2 / power)], 1)
    return np.asarray(xy * (radius_x, radius_x if radius_y is None else radius_y))


def curve(points: ArrayLike, count: int) -> Floats:
    """Smooth curve (count, D) through ``points`` (K, D), K >= 2 (Catmull-Rom, the ends doubled)."""
    p = np.asarray(points, dtype=np.float64)
    p = np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, len(p) - 3, count)
    i = np.minimum(t.astype(int), len(p) - 4)
    f = (t - i)[:, None]
    a, b, c, d = (p[i + k] for k in range(4))
    return np.asarray(b + 0.5 * f * (c - a + f * (2 * a - 5 * b + 4 * c - d + f * (3 * (b - c) + d - a))))


def ear_clip(outline: Floats) -> NDArray[np.int64]:
    """Triangles (N - 2, 3) over the corners of a simple counter-clockwise polygon (N, 2), N >= 3."""
    left = list(range(len(outline)))
    triangles = []
    while len(left) > 3:
        for k in range(len(left)):
            a, b, c = left[k - 1], left[k], left[(k + 1) % len(left)]
            others = outline[[i for i in left if i not in (a, b, c)]]
            if _is_ear(outline[a], outline[b], outline[c], others):
                break
        else:  # only rounding leaves no ear; any corner will do then
            k, a, b, c = 1, left[0], left[1], left[2]
        triangles.append((a, b, c))
        left.pop(k)
    return np.array([*triangles, tuple(left)], dtype=np.int64)


def _is_ear(a: Floats, b: Floats, c: Floats, others: Floats) -> bool:
    def turn(p: Floats, q: Floats, r: Floats) -> Floats:
        return np.asarray((q[0] - p[0]) * (r[..., 1] - p[1]) - (q[1] - p[1]) * (r[..., 0] - p[0]))

    if turn(a, b, c) <= 1e-12:
        return False
    inside = (turn(a, b, others) >= 0) & (turn(b, c, others) >= 0) & (turn(c, a, others) >= 0)
    return not bool(inside.any())
