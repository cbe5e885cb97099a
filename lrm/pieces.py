"""The connected pieces of a mesh: which of them are the object, which are crumbs and inner shells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .lattice import Floats, Ints


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
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    area = np.bincount(piece, np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2, count)
    volume = np.bincount(piece, np.einsum("ij,ij->i", a, np.cross(b, c)) / 6, count)
    cavity = volume <= 0
    stays = ~cavity & (area >= keep_pieces * area[~cavity].max(initial=0.0))
    for hollow in np.flatnonzero(cavity):
        wall = vertices[faces[piece == hollow]].astype(np.float64)
        low, high = wall.min((0, 1)), wall.max((0, 1))
        for other in np.flatnonzero(stays):
            point = vertices[faces[np.argmax(piece == other), 0]].astype(np.float64)
            if ((point > low) & (point < high)).all() and abs(winding_number(point, wall)) > 0.5:
                stays[other] = False
    return stays[piece], int(count - stays.sum())


def winding_number(point: Floats, triangles: Floats) -> float:
    """How often closed triangles (T, 3, 3) wind around a point (3,): 1 inside when they face outward, 0 outside.

    Source:
        Van Oosterom and Strackee 1983, the solid angle of a plane triangle.
    """
    a, b, c = (triangles[:, k] - point for k in range(3))
    la, lb, lc = (np.linalg.norm(v, axis=1) for v in (a, b, c))
    across = np.einsum("ij,ij->i", a, np.cross(b, c))
    along = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
    return float(np.arctan2(across, along).sum() / (2 * np.pi))
