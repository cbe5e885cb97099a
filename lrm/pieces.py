"""The connected pieces of a mesh: which of them are the object, which are crumbs and inner shells."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .inside import winding_number_torch
from .lattice import Floats, Ints

_PASS = 1 << 19  # faces per pass; changes memory, and sums in their last digits


def label_pieces(faces: Ints, vertex_count: int) -> tuple[int, Ints]:
    """How many pieces hang together by shared vertices, and the piece (F,) of each face, numbered from 0."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    tail = np.concatenate([faces[:, 0], faces[:, 1]])
    head = np.concatenate([faces[:, 1], faces[:, 2]])
    graph = coo_array((np.ones(len(tail), np.bool_), (tail, head)), shape=(vertex_count, vertex_count))
    count, of_vertex = connected_components(graph, directed=False)
    return int(count), of_vertex[faces[:, 0]]


def outer_faces(vertices: Floats, faces: Ints, keep_pieces: float) -> tuple[NDArray[np.bool_], int]:
    """Choose the faces that make the object's outside.

    Dropped are pieces with less than ``keep_pieces`` of the largest piece's surface, pieces that face inward (the
    walls of a cavity, which nobody can see), and pieces inside such a cavity.

    Args:
        vertices: (N, 3) world units.
        faces: (F, 3), every piece closed.
        keep_pieces: share in [0, 1].

    Returns:
        (F,) which faces stay, and how many pieces were dropped.
    """
    count, piece = label_pieces(faces, len(vertices))
    if count == 1:
        return np.ones(len(faces), np.bool_), 0
    area, volume = np.zeros(count), np.zeros(count)
    rows = np.ascontiguousarray(vertices.T, np.float64)  # numpy is quick on long rows
    for at in range(0, len(faces), _PASS):
        part = slice(at, at + _PASS)
        a, b, c = (rows[:, faces[part, k]] for k in range(3))
        (px, py, pz), (qx, qy, qz) = b - a, c - a
        normal = np.stack([py * qz - pz * qy, pz * qx - px * qz, px * qy - py * qx])
        area += np.bincount(piece[part], np.sqrt((normal * normal).sum(0)) / 2, count)
        volume += np.bincount(piece[part], (a * normal).sum(0) / 6, count)  # a · (b x c) is a · normal
    stays = outer_pieces(area, volume, keep_pieces, lambda: (vertices, faces, piece))
    return stays[piece], int(count - stays.sum())


def outer_pieces(
    area: Floats, volume: Floats, keep_pieces: float, mesh: Callable[[], tuple[Floats, Ints, Ints]]
) -> NDArray[np.bool_]:
    """Choose the pieces (count,) that make the object's outside; see `outer_faces`.

    Args:
        area, volume: (count,) of each piece, in any unit; the volume is negative where it faces inward.
        keep_pieces: share in [0, 1].
        mesh: gives vertices (N, 3), faces (F, 3) and the piece (F,) of each; asked only where there are cavities.
    """
    count, cavity = len(area), volume <= 0
    stays = ~cavity & (area >= keep_pieces * area[~cavity].max(initial=0.0))
    if not cavity.any():
        return stays
    vertices, faces, piece = mesh()
    # Faces piece by piece, so that looking at one of thousands of pieces does not cost a pass over all faces.
    by_piece = np.argsort(piece, kind="stable")
    first = np.searchsorted(piece, np.arange(count + 1), sorter=by_piece)
    points = vertices[faces[by_piece[first[:-1]], 0]]
    for hollow in np.flatnonzero(cavity):
        wall = faces[by_piece[first[hollow] : first[hollow + 1]]]
        corners = vertices[wall.reshape(-1)]
        near = stays & ((points > corners.min(0)) & (points < corners.max(0))).all(1)
        for other in np.flatnonzero(near):
            if abs(winding_number_torch(vertices, wall, points[other][None])[0]) > 0.5:
                stays[other] = False
    return stays


def welded(vertices: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """Join vertices that are at exactly one place, as the two sides of a texture seam are.

    Args:
        vertices: (N, 3).

    Returns:
        The places (M, 3), in the order in which they first appear, and for each vertex its place (N,).
    """
    rows = np.ascontiguousarray(vertices) + 0.0  # -0 and 0 are one place
    keys = rows.view([("", rows.dtype)] * rows.shape[1]).reshape(-1)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rows[first[order]], rank[inverse.reshape(-1)]
