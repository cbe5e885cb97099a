"""Smoothing that keeps the volume."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multiview.errors import MeshError

from .mesh import Mesh
from .pieces import welded

_SHRINK, _GROW = 0.5, -0.53  # lambda and mu of Taubin: waves of more than some ten edges pass, shorter ones fade


def smoothed(mesh: Mesh, passes: int) -> Mesh:
    """Smooth a mesh by Taubin's two steps, a pass each, then scale it about its middle to the volume that it had.

    Args:
        mesh: any; vertices at one place move together, vertices on open edges stay.
        passes: 0 or more; each fades wrinkles of the size of an edge to about a half.

    Returns:
        The mesh with moved vertices; faces, colours and texture are the same.

    Raises:
        MeshError: ``passes`` below 0.

    Source:
        Taubin 1995, "A signal processing approach to fair surface design", with even weights.
    """
    if passes < 0:
        raise MeshError(f"smoothing wants 0 passes or more, found {passes}.")
    if passes == 0:
        return mesh
    from scipy.sparse import coo_array

    places, of_vertex = welded(mesh.vertices)
    faces = of_vertex[mesh.faces]
    tail, head = faces[:, [0, 1, 2]].reshape(-1), faces[:, [1, 2, 0]].reshape(-1)
    size = len(places)
    links = coo_array((np.ones(len(tail)), (tail, head)), shape=(size, size)).tocsr()
    both = links + links.T
    both.data[:] = 1.0
    degree = np.maximum(np.asarray(both.sum(1)).reshape(-1), 1.0)[:, None]
    held = _on_open_edges(tail, head, size)[:, None]
    moved = places.astype(np.float64)
    for _ in range(passes):
        for step in (_SHRINK, _GROW):
            moved = np.where(held, moved, moved + step * (both @ moved / degree - moved))
    result = replace(mesh, vertices=moved[of_vertex])
    return _with_volume(result, mesh.volume) if not held.any() else result


def _on_open_edges(tail: NDArray[Any], head: NDArray[Any], size: int) -> NDArray[np.bool_]:
    """(size,) which vertices are on an edge that has not two sides."""
    keys, count = np.unique(np.minimum(tail, head) * size + np.maximum(tail, head), return_counts=True)
    open_ = keys[count != 2]
    held = np.zeros(size, np.bool_)
    held[open_ // size] = held[open_ % size] = True
    return held


def _with_volume(mesh: Mesh, volume: float) -> Mesh:
    """Scaled about the middle of its box; as it is where there is no volume to speak of."""
    if not (volume > 0 and mesh.volume > 0):
        return mesh
    middle = mesh.bounds.astype(np.float64).mean(0)
    factor = (volume / mesh.volume) ** (1 / 3)
    return replace(mesh, vertices=middle + factor * (mesh.vertices.astype(np.float64) - middle))
