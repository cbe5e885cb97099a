"""Inside or outside of a mesh that may be open: one rule for training labels and for metrics."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import torch

from multiview.errors import MeshError

SHEET_PROBE = 0.001  # of the longest side: how far from a face its two sides are asked for
SHEET_HALF_THICKNESS = 0.75 / 64  # of the longest side: 0.75 of a voxel of the 64 grid
_SAME_PLACE = 1e-6


def winding_number(vertices: np.ndarray, faces: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Generalised winding number of a triangle soup at points: near 1 inside, near 0 outside.

    Args:
        vertices: (N, 3) float.
        faces: (F, 3) int.
        points: (P, 3) float.

    Returns:
        (P,) float64. Uses libigl's tree when it is installed (extra ``train``), else the exact sum in plain torch.

    Source:
        Jacobson et al. 2013; the solid angle of a triangle is Van Oosterom and Strackee 1983.
    """
    if importlib.util.find_spec("igl") is not None:
        import igl

        return np.asarray(igl.fast_winding_number(_f64(vertices), _i64(faces), _f64(points)), dtype=np.float64).reshape(
            -1
        )
    return winding_number_torch(vertices, faces, points)


def winding_number_torch(
    vertices: np.ndarray, faces: np.ndarray, points: np.ndarray, chunk_size: int = 4_000_000
) -> np.ndarray:
    """`winding_number` as the exact sum over faces; ``chunk_size`` point-face pairs a pass change memory only."""
    corners = torch.as_tensor(_f64(vertices))[torch.as_tensor(_i64(faces))]
    queries = torch.as_tensor(_f64(points))
    total = torch.zeros(len(queries), dtype=torch.float64)
    rows = max(1, chunk_size // max(1, len(corners)))
    for start in range(0, len(queries), rows):
        a, b, c = (corners[None, :, i] - queries[start : start + rows, None] for i in range(3))
        la, lb, lc = a.norm(dim=-1), b.norm(dim=-1), c.norm(dim=-1)
        triple = (a * torch.linalg.cross(b, c)).sum(-1)
        below = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
        total[start : start + rows] = torch.atan2(triple, below).sum(-1) / (2 * math.pi)
    return total.numpy()


def sheet_faces(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Mark faces whose two sides are both outside: (F,) bool. Faces without area are never sheets."""
    corners = _f64(vertices)[_i64(faces)]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normal, axis=1)
    side = longest_side(vertices)
    good = length > (_SAME_PLACE * side) ** 2
    step = SHEET_PROBE * side * normal / np.where(good, length, 1)[:, None]
    middle = corners.mean(1)
    both = np.concatenate([middle + step, middle - step])
    outside = np.abs(winding_number(vertices, faces, both)) <= 0.5
    return good & outside[: len(faces)] & outside[len(faces) :]


def inside_mesh(vertices: np.ndarray, faces: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Tell inside from outside for a mesh that may be open or made of sheets.

    Inside is |winding number| above 0.5, or nearer than 0.75 / 64 of the longest side to a sheet face.

    Args:
        vertices: (N, 3) float, any unit.
        faces: (F, 3) int.
        points: (P, 3) float, same unit.

    Returns:
        (P,) bool.

    Raises:
        MeshError: no faces, or vertices that are not finite.
    """
    if len(faces) == 0 or not np.isfinite(vertices).all():
        raise MeshError(f"inside_mesh wants faces and finite vertices, found {len(faces)} faces.")
    inside = np.abs(winding_number(vertices, faces, points)) > 0.5
    sheets = sheet_faces(vertices, faces)
    if sheets.any():
        outside = np.flatnonzero(~inside)
        reach = SHEET_HALF_THICKNESS * longest_side(vertices)
        used, renumbered = np.unique(_i64(faces)[sheets], return_inverse=True)
        distance = distance_to_mesh(_f64(vertices)[used], renumbered.reshape(-1, 3), _f64(points)[outside], reach)
        inside[outside[distance < reach]] = True
    return inside


def distance_to_mesh(
    vertices: np.ndarray, faces: np.ndarray, points: np.ndarray, reach: float = math.inf
) -> np.ndarray:
    """Distance of points to the nearest face: (P,) float64; exact up to ``reach``, at least ``reach`` beyond it.

    Uses libigl's tree when it is installed, else plain torch over all pairs whose boxes come near.
    """
    if importlib.util.find_spec("igl") is not None:
        import igl

        squared: Any = igl.point_mesh_squared_distance(_f64(points), _f64(vertices), _i64(faces))
        return np.sqrt(np.asarray(squared[0], dtype=np.float64).reshape(-1))
    corners = _f64(vertices)[_i64(faces)]
    low, high = corners.min((0, 1)), corners.max((0, 1))
    near = ((points >= low - reach) & (points <= high + reach)).all(1)
    result = np.full(len(points), max(reach, 0.0) if math.isfinite(reach) else math.inf)
    result[near] = _pairwise_distance(torch.as_tensor(corners), torch.as_tensor(_f64(points)[near])).numpy()
    return result


def _pairwise_distance(corners: torch.Tensor, points: torch.Tensor, chunk_size: int = 2_000_000) -> torch.Tensor:
    """Smallest point-triangle distance per point; corners (F, 3, 3), points (P, 3)."""
    best = torch.full((len(points),), math.inf, dtype=torch.float64)
    rows = max(1, chunk_size // max(1, len(corners)))
    a, b, c = corners.unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    area = normal.norm(dim=-1).clamp(min=1e-30)
    for start in range(0, len(points), rows):
        p = points[start : start + rows, None]
        distance = torch.stack([_segment_distance(p, s, e) for s, e in ((a, b), (b, c), (c, a))]).amin(0)
        above = ((p - a) * normal).sum(-1) / area
        over = torch.stack(
            [
                (torch.linalg.cross((e - s).expand_as(p - s), p - s) * normal).sum(-1)
                for s, e in ((a, b), (b, c), (c, a))
            ]
        )
        distance = torch.where((over >= 0).all(0), above.abs(), distance)
        best[start : start + rows] = distance.amin(1)
    return best


def _segment_distance(p: torch.Tensor, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    along = end - start
    t = (((p - start) * along).sum(-1) / (along * along).sum(-1).clamp(min=1e-30)).clamp(0, 1)
    return (p - start - t[..., None] * along).norm(dim=-1)


def longest_side(vertices: np.ndarray) -> float:
    """Longest side of the bounding box."""
    return float((vertices.max(0) - vertices.min(0)).max())


def _f64(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, dtype=np.float64)


def _i64(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, dtype=np.int64)
