"""Inside or outside of a mesh that may be open: one rule for training labels and for metrics.

`inside_mesh` asks it of any points, `inside_lattice` of an axis-aligned lattice, many times sooner. Both use libigl's
trees where that is installed (extra ``train``) and plain torch, on any device, where it is not.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from multiview.errors import MeshError

SHEET_PROBE = 0.001  # of the longest side: how far from a face its two sides are asked for
SHEET_HALF_THICKNESS = 0.75 / 64  # of the longest side: 0.75 of a voxel of the 64 grid
_SAME_PLACE = 1e-6
_MANY_BORDER_EDGES = 512  # from here on libigl's tree is sooner than the sum over the border


def winding_number(
    vertices: np.ndarray, faces: np.ndarray, points: np.ndarray, *, device: str | torch.device = "cpu"
) -> np.ndarray:
    """Generalised winding number of a triangle soup at points: near 1 inside, near 0 outside.

    Args:
        vertices: (N, 3) float.
        faces: (F, 3) int.
        points: (P, 3) float.
        device: where plain torch works when libigl is not installed; libigl itself works on the CPU.

    Returns:
        (P,) float64. Uses libigl's tree when it is installed (extra ``train``), else the exact sum in plain torch.

    Source:
        Jacobson et al. 2013; the solid angle of a triangle is Van Oosterom and Strackee 1983.
    """
    if _has_igl():
        import igl

        return np.asarray(igl.fast_winding_number(_f64(vertices), _i64(faces), _f64(points)), dtype=np.float64).reshape(
            -1
        )
    return winding_number_torch(vertices, faces, points, device=device)


def winding_number_torch(
    vertices: np.ndarray,
    faces: np.ndarray,
    points: np.ndarray,
    chunk_size: int = 4_000_000,
    *,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """`winding_number` as the exact sum over faces; ``chunk_size`` point-face pairs a pass change memory only."""
    place = torch.device(device)
    corners = _tensor(vertices, place)[torch.as_tensor(_i64(faces), device=place)]
    queries = _tensor(points, place)
    total = torch.zeros(len(queries), dtype=queries.dtype, device=place)
    rows = max(1, chunk_size // max(1, len(corners)))
    for start in range(0, len(queries), rows):
        a, b, c = (corners[None, :, i] - queries[start : start + rows, None] for i in range(3))
        la, lb, lc = a.norm(dim=-1), b.norm(dim=-1), c.norm(dim=-1)
        triple = (a * torch.linalg.cross(b, c)).sum(-1)
        below = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
        total[start : start + rows] = torch.atan2(triple, below).sum(-1) / (2 * math.pi)
    return total.cpu().double().numpy()


def sheet_faces(vertices: np.ndarray, faces: np.ndarray, *, device: str | torch.device = "cpu") -> np.ndarray:
    """Mark faces whose two sides are both outside: (F,) bool. Faces without area are never sheets."""
    corners = _f64(vertices)[_i64(faces)]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normal, axis=1)
    side = longest_side(vertices)
    good = length > (_SAME_PLACE * side) ** 2
    step = SHEET_PROBE * side * normal / np.where(good, length, 1)[:, None]
    middle = corners.mean(1)
    # Behind most faces is the inside, so that side is asked for first and the other only where it still matters.
    for probes in (middle - step, middle + step):
        left = np.flatnonzero(good)
        good[left] = np.abs(winding_number(vertices, faces, probes[left], device=device)) <= 0.5
    return good


def inside_mesh(
    vertices: np.ndarray, faces: np.ndarray, points: np.ndarray, *, device: str | torch.device = "cpu"
) -> np.ndarray:
    """Tell inside from outside for a mesh that may be open or made of sheets.

    Inside is |winding number| above 0.5, or nearer than 0.75 / 64 of the longest side to a sheet face.

    Args:
        vertices: (N, 3) float, any unit.
        faces: (F, 3) int.
        points: (P, 3) float, same unit.
        device: where plain torch works when libigl is not installed.

    Returns:
        (P,) bool.

    Raises:
        MeshError: no faces, or vertices that are not finite.
    """
    _check_mesh(vertices, faces)
    inside = np.abs(winding_number(vertices, faces, points, device=device)) > 0.5
    sheets = sheet_faces(vertices, faces, device=device)
    if sheets.any():
        reach = SHEET_HALF_THICKNESS * longest_side(vertices)
        outside = np.flatnonzero(~inside)
        inside[outside] = _near_faces(vertices, faces[sheets], _f64(points)[outside], reach, device)
    return inside


def _check_mesh(vertices: np.ndarray, faces: np.ndarray) -> None:
    if len(faces) == 0 or not np.isfinite(vertices).all():
        raise MeshError(f"the inside of a mesh wants faces and finite vertices, found {len(faces)} faces.")


def _near_faces(
    vertices: np.ndarray, faces: np.ndarray, points: np.ndarray, reach: float, device: str | torch.device
) -> np.ndarray:
    """Whether points (P, 3) are nearer than ``reach`` to some of the faces: (P,) bool."""
    used, renumbered = np.unique(_i64(faces), return_inverse=True)
    vertices = _f64(vertices)[used]
    near = ((points >= vertices.min(0) - reach) & (points <= vertices.max(0) + reach)).all(1)
    distance = distance_to_mesh(vertices, renumbered.reshape(-1, 3), points[near], reach, device=device)
    near[near] = distance < reach
    return near


# On a lattice.


def inside_lattice(
    vertices: np.ndarray,
    faces: np.ndarray,
    axes: Sequence[np.ndarray],
    *,
    rigid: np.ndarray | None = None,
    sheets: np.ndarray | None = None,
) -> np.ndarray:
    """`inside_mesh` at every point of an axis-aligned lattice.

    Args:
        vertices: (N, 3) float, any unit.
        faces: (F, 3) int.
        axes: x (X,), y (Y,) and z (Z,) of the lattice, each increasing, same unit.
        rigid: (4, 4) motion of the mesh before the lattice looks at it; sheets are as thick as before it.
        sheets: (F,) bool as `sheet_faces` gives it, where it is known already.

    Returns:
        (X, Y, Z) bool.

    Raises:
        MeshError: no faces, or vertices that are not finite.
    """
    _check_mesh(vertices, faces)
    moved = _f64(vertices) if rigid is None else _f64(vertices) @ rigid[:3, :3].T + rigid[:3, 3]
    if len(_border(moved, _i64(faces))[1]) > _MANY_BORDER_EDGES and _has_igl():
        inside = np.abs(winding_number(moved, faces, _lattice_points(axes))) > 0.5
    else:
        inside = np.abs(winding_number_lattice(moved, faces, axes)).reshape(-1) > 0.5
    sheets = sheet_faces(vertices, faces) if sheets is None else sheets
    if sheets.any():
        reach = SHEET_HALF_THICKNESS * longest_side(vertices)
        outside = np.flatnonzero(~inside)
        inside[outside] = _near_faces(moved, faces[sheets], _lattice_points(axes)[outside], reach, "cpu")
    return inside.reshape([len(axis) for axis in axes])


def _lattice_points(axes: Sequence[np.ndarray]) -> np.ndarray:
    """(X * Y * Z, 3) float64, x slowest."""
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def winding_number_lattice(vertices: np.ndarray, faces: np.ndarray, axes: Sequence[np.ndarray]) -> np.ndarray:
    """`winding_number` at every point of an axis-aligned lattice, exactly and many times sooner.

    A ray from a point toward +x counts the faces that it leaves through less those that it enters through; for a closed
    mesh that is the winding number. An open mesh is closed by strips from its border edges to infinity toward -x, which
    no such ray meets; then the strips' own solid angles, which have a closed form, are taken away again. The cost
    follows the columns that faces cover, and points times border edges.

    Args:
        vertices: (N, 3) float.
        faces: (F, 3) int.
        axes: x (X,), y (Y,) and z (Z,) of the lattice, each increasing.

    Returns:
        (X, Y, Z) float64. Points on the surface itself are taken to one of its sides.

    Source:
        Martens, Trettner and Bessmeltsev 2026 (arXiv 2605.01536): crossings of a ray plus an integral along the border.
        Here all rays of a lattice are cast at once, by rows.
    """
    vertices, faces = _f64(vertices), _i64(faces)
    turns = _crossings(vertices, faces, [_f64(axis) for axis in axes])
    edges, counts = _border(vertices, faces)
    return turns + _strip_turns(vertices[edges], counts, axes) if len(edges) else turns


def _crossings(vertices: np.ndarray, faces: np.ndarray, axes: Sequence[np.ndarray]) -> np.ndarray:
    """Faces left less faces entered on the way from each lattice point toward +x: (X, Y, Z) float64.

    Rows of constant z cut a face between the edge that goes up through the row and the one that goes down. A vertex on
    a row counts as below it and a column on a cut belongs to its right, so faces that share an edge share no column and
    miss none.
    """
    x, y, z = axes
    height = vertices[:, 2][faces]
    begin, end = np.searchsorted(z, height.min(1)), np.searchsorted(z, height.max(1))
    face = np.repeat(np.arange(len(faces)), end - begin)
    row = _runs(begin, end - begin)
    below = height[face] <= z[row, None]
    rises = below & ~below[:, [1, 2, 0]]  # edges by their first corner; a cut face has one that rises, one that falls
    falls = ~below & below[:, [1, 2, 0]]
    up, down = (
        _cut(vertices, faces[face], z[row], edge.argmax(1), rises=r) for edge, r in ((rises, True), (falls, False))
    )
    forward = down[1] <= up[1]  # counter-clockwise seen from +x: the ray leaves here
    left, right = np.where(forward, down, up), np.where(forward, up, down)
    begin, end = np.searchsorted(y, left[1]), np.searchsorted(y, right[1])
    cut = np.repeat(np.arange(len(face)), end - begin)
    column = _runs(begin, end - begin)
    share = (y[column] - left[1, cut]) / (right[1, cut] - left[1, cut])
    before = np.searchsorted(x, left[0, cut] + share * (right[0, cut] - left[0, cut]))  # lattice points that see it
    where = (before * len(y) + column) * len(z) + row[cut]
    sign = np.where(forward[cut], 1.0, -1.0)
    met = np.bincount(where, sign, (len(x) + 1) * len(y) * len(z)).reshape(len(x) + 1, len(y), len(z))
    return met[:0:-1].cumsum(0)[::-1]


def _runs(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Join the ranges start, start + 1, ... of the given lengths: (sum of lengths,) int64."""
    ends = np.cumsum(lengths)
    return np.arange(int(lengths.sum())) + np.repeat(starts - (ends - lengths), lengths)


def _cut(vertices: np.ndarray, faces: np.ndarray, z: np.ndarray, edge: np.ndarray, *, rises: bool) -> np.ndarray:
    """x and y (2, R) where edge number ``edge`` (R,) of faces (R, 3) passes through the heights z (R,).

    Always worked out from the lower end, so that both faces of an edge find the very same number.
    """
    rows = np.arange(len(faces))
    tail, head = vertices[faces[rows, edge]], vertices[faces[rows, (edge + 1) % 3]]
    low, high = (tail, head) if rises else (head, tail)
    share = (z - low[:, 2]) / (high[:, 2] - low[:, 2])
    return (low[:, :2] + share[:, None] * (high[:, :2] - low[:, :2])).T


def _border(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges that faces run along more often one way than the other.

    Returns:
        (E, 2) vertex indices tail, head; and (E,) how often more often. None for a closed mesh, also where vertices are
        split but lie in one place.
    """
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges, counts = _uncancelled(edges, np.ones(len(edges)), len(vertices))
    if not len(edges):
        return edges, counts
    used, index = np.unique(edges, return_inverse=True)
    _, first, place = np.unique(vertices[used], axis=0, return_index=True, return_inverse=True)
    joined, counts = _uncancelled(place.reshape(-1)[index.reshape(-1, 2)], counts, len(first))
    return used[first][joined], counts


def _uncancelled(edges: np.ndarray, counts: np.ndarray, vertices: int) -> tuple[np.ndarray, np.ndarray]:
    """Add up ``counts`` of edges (E, 2) in one place, those that run down in index negative; zeros are dropped."""
    low, high = edges.min(1), edges.max(1)
    key, index = np.unique(low * vertices + high, return_inverse=True)
    total = np.bincount(index.reshape(-1), np.where(edges[:, 0] == low, counts, -counts), len(key))
    total[key // vertices == key % vertices] = 0  # from a vertex to itself
    keep = np.flatnonzero(total)
    return np.stack([key[keep] // vertices, key[keep] % vertices], 1), total[keep]


def _strip_turns(edges: np.ndarray, counts: np.ndarray, axes: Sequence[np.ndarray]) -> np.ndarray:
    """Solid angle over 4 pi, at lattice points, of the strips from edges (E, 2, 3) toward -x: (X, Y, Z) float64.

    With a and b from the point to an edge's ends, p and q their parts across x, the tangent of half the solid angle is
    -(p x q) / (p . q + (|a| - a_x)(|b| - b_x)): Van Oosterom and Strackee's formula with a third corner at infinity.
    Single precision: no angle is off by more than some millionths.
    """
    x, y, z = (torch.as_tensor(np.ascontiguousarray(axis), dtype=torch.float32) for axis in axes)
    total = torch.zeros(len(x), len(y) * len(z))
    for (tail, head), count in zip(torch.as_tensor(edges, dtype=torch.float32), counts.tolist(), strict=True):
        py, pz = ((end - axis) for end, axis in zip(tail[1:], (y, z), strict=True))
        qy, qz = ((end - axis) for end, axis in zip(head[1:], (y, z), strict=True))
        cross = (py[:, None] * qz - pz * qy[:, None]).reshape(-1)
        dot = (py[:, None] * qy[:, None] + pz * qz).reshape(-1)
        lengths = _beyond(tail[0] - x, (py[:, None].square() + pz.square()).reshape(-1))
        lengths *= _beyond(head[0] - x, (qy[:, None].square() + qz.square()).reshape(-1))
        total.add_(torch.atan2(-cross.expand_as(lengths), lengths.add_(dot)), alpha=count)
    return (total.double() / (2 * math.pi)).reshape(len(x), len(y), len(z)).numpy()


def _beyond(along: torch.Tensor, across_squared: torch.Tensor) -> torch.Tensor:
    """|a| - a_x for a_x (X,) and the square of the rest (C,): (X, C), without cancellation."""
    length = (along.square()[:, None] + across_squared).sqrt()
    total = length + along.abs()[:, None]
    return torch.where(along[:, None] > 0, across_squared / total.clamp(min=1e-30), total)


# Distances.


def distance_to_mesh(
    vertices: np.ndarray,
    faces: np.ndarray,
    points: np.ndarray,
    reach: float = math.inf,
    *,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Distance of points to the nearest face: (P,) float64; exact up to ``reach``, at least ``reach`` beyond it.

    Uses libigl's tree when it is installed, else plain torch on ``device`` over all pairs whose boxes come near.
    """
    if _has_igl():
        import igl

        squared: Any = igl.point_mesh_squared_distance(_f64(points), _f64(vertices), _i64(faces))
        return np.sqrt(np.asarray(squared[0], dtype=np.float64).reshape(-1))
    corners = _f64(vertices)[_i64(faces)]
    low, high = corners.min((0, 1)), corners.max((0, 1))
    near = ((points >= low - reach) & (points <= high + reach)).all(1)
    result = np.full(len(points), max(reach, 0.0) if math.isfinite(reach) else math.inf)
    place = torch.device(device)
    result[near] = _pairwise_distance(_tensor(corners, place), _tensor(points[near], place)).cpu().double().numpy()
    return result


def _pairwise_distance(corners: torch.Tensor, points: torch.Tensor, chunk_size: int = 2_000_000) -> torch.Tensor:
    """Smallest point-triangle distance per point; corners (F, 3, 3), points (P, 3)."""
    best = torch.full_like(points[:, 0], math.inf)
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


def _has_igl() -> bool:
    return importlib.util.find_spec("igl") is not None


def _tensor(x: np.ndarray, device: torch.device) -> torch.Tensor:
    """As float64 on a device, as float32 on one that has no wider numbers (Apple's)."""
    wide = torch.as_tensor(_f64(x))
    try:
        return wide.to(device)
    except TypeError:
        return wide.float().to(device)


def _f64(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, dtype=np.float64)


def _i64(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, dtype=np.int64)
