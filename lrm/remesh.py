"""Meshes of even triangles, or of quads, on the surface of another mesh.

Each step works on many edges at once: those of a set no two of which touch, so that what is true of an edge before the
step is true while it is changed.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multiview.errors import MeshError, SettingsError

from .mesh import Mesh
from .nearest import NearestOnMesh
from .pieces import welded
from .topology import find_defects, repaired

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Bools = NDArray[np.bool_]

_LONG, _SHORT = 4 / 3, 4 / 5  # of the wanted length: longer edges are split, shorter ones collapsed
_PASSES = 5
_BATCHES = 4  # of flips in a pass
_MOST_BATCHES, _FEW = 40, 0.002  # of collapses in a pass, which end when so small a share of edges is left to collapse
_PIECES = 4  # quads that Instant Meshes cuts each of its faces into, so that all are quads
_QUADS_SECONDS = 300
_LEAST_COSINE = 0.5  # between a face's normal before and after a collapse or a flip


def isotropic(mesh: Mesh, faces: int, *, passes: int = _PASSES) -> Mesh:
    """Give a mesh of nearly equilateral triangles on the surface of ``mesh``.

    Args:
        mesh: any; one that is not closed and manifold is first made so (`lrm.topology.repaired`).
        faces: triangles wanted, at least 4; met within some 15 in a hundred.
        passes: of splitting long edges, collapsing short ones, flipping and relaxing.

    Returns:
        A closed manifold `Mesh` with colours looked up on ``mesh``; every vertex lies on the surface of ``mesh``.

    Raises:
        MeshError: fewer than 4 faces wanted, or the mesh cannot be made a solid.

    Source:
        Botsch and Kobbelt 2004, "A remeshing approach to multiresolution modeling", section 4.
    """
    if faces < 4:
        raise MeshError(f"remeshing wants at least 4 faces, found {faces}.")
    places, of_vertex = welded(mesh.vertices)
    if find_defects(of_vertex[mesh.faces]):
        mesh = repaired(mesh)[0]
        places, of_vertex = welded(mesh.vertices)
    surface = NearestOnMesh(mesh)
    length = float(np.sqrt(4 * mesh.area / (np.sqrt(3) * faces)))
    state = _Triangles(*_near_count(places.astype(np.float64), of_vertex[mesh.faces].astype(np.int64), faces))
    for _ in range(passes):
        state = _split(state, _LONG * length)
        state = _collapse(state, length)
        state = _flip(state)
        state = _relax(state, surface)
        # Edges settle a little below the wanted length, by how much depends on the shape.
        length *= float(np.clip(np.sqrt(len(state.faces) / faces), 0.8, 1.25))
    found = surface(state.vertices)
    return Mesh(found.points, state.faces, np.clip(surface.colors(found), 0, 1))


def quads(mesh: Mesh, faces: int) -> Mesh:
    """Give a mesh whose triangles come in pairs, 2 k and 2 k + 1, that are quads following the surface's flow.

    Args:
        mesh: any.
        faces: triangles wanted, two for each quad.

    Returns:
        A `Mesh` with colours looked up on ``mesh``. It need not be closed: ask for ``watertight`` to have it mended,
        which may break some pairs.

    Raises:
        SettingsError: pynanoinstantmeshes is not installed.
        MeshError: nothing came of it.

    Source:
        Jakob et al. 2015, "Instant field-aligned meshes", through pynanoinstantmeshes.
    """
    if importlib.util.find_spec("pynanoinstantmeshes") is None:
        raise SettingsError("--remesh quads needs pynanoinstantmeshes. Try: pip install 'trilift[quads]'.")
    found, corners = _instant_quads(mesh, max(faces // (2 * _PIECES), 4))
    if len(corners) == 0:
        raise MeshError(f"no quads came of {len(mesh.faces)} triangles. Ask for more faces, or --remesh isotropic.")
    triangles = np.stack([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]], 1).reshape(-1, 3)
    whole = (triangles[:, 0] != triangles[:, 1]) & (triangles[:, 1] != triangles[:, 2])
    triangles = triangles[whole & (triangles[:, 2] != triangles[:, 0])]
    surface = NearestOnMesh(mesh)
    vertices = found.astype(np.float64)
    return Mesh(vertices, triangles, np.clip(surface.colors(surface(vertices)), 0, 1))


def _instant_quads(mesh: Mesh, count: int) -> tuple[Floats, Ints]:
    """About ``count`` faces by Instant Meshes, each cut into `_PIECES`: vertices (M, 3) and quads (Q, 4)."""
    places, of_vertex = welded(mesh.vertices)
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "given.npz", Path(folder) / "made.npz"
        np.savez(given, vertices=places, faces=of_vertex[mesh.faces].astype(np.uint32), count=np.int64(count))
        # -P: the script's own folder holds modules of this package, which are not to be found by their bare names.
        command = [sys.executable, "-P", str(Path(__file__).with_name("quads_child.py")), str(given), str(made)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_QUADS_SECONDS, check=False)
        except (subprocess.TimeoutExpired, OSError) as error:
            raise MeshError(
                f"Instant Meshes did not remesh {len(mesh.faces)} faces ({type(error).__name__}, at most "
                f"{_QUADS_SECONDS} s). Ask for fewer faces, or --remesh isotropic."
            ) from error
        if done.returncode != 0 or not made.is_file():
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit {done.returncode}"]
            raise MeshError(f"Instant Meshes failed on {len(mesh.faces)} faces ({said[0]}). Try --remesh isotropic.")
        with np.load(made) as result:
            return result["vertices"], result["quads"].reshape(-1, 4)


@dataclass(frozen=True)
class _Triangles:
    """A closed manifold mesh in the making: vertices (N, 3) float64 and faces (F, 3) int64."""

    vertices: Floats
    faces: Ints

    def edges(self) -> tuple[Ints, Ints]:
        """The edges (E, 2), lower vertex first, and for each the two corners (E, 2), 3 f + k, that stand across.

        The face of the first runs along the edge upward, that of the second downward.
        """
        tail, head = self.faces.reshape(-1), self.faces[:, [1, 2, 0]].reshape(-1)
        size = len(self.vertices)
        order = np.lexsort((tail > head, np.minimum(tail, head) * size + np.maximum(tail, head)))
        sides = order.reshape(-1, 2)
        across = sides // 3 * 3 + (sides + 2) % 3
        return np.stack([tail[sides[:, 0]], head[sides[:, 0]]], -1), across

    def normals(self) -> Floats:
        """(F, 3), twice the area long."""
        a, b, c = self.vertices[self.faces].transpose(1, 0, 2)
        normals: Floats = np.cross(b - a, c - a)
        return normals

    def neighbors(self) -> Any:
        """A sparse boolean matrix (N, N) of which vertices share an edge."""
        from scipy.sparse import coo_array

        tail, head = self.faces.reshape(-1), self.faces[:, [1, 2, 0]].reshape(-1)
        size = len(self.vertices)
        return coo_array((np.ones(len(tail), np.int8), (tail, head)), shape=(size, size)).tocsr()


def _near_count(vertices: Floats, faces: Ints, count: int) -> tuple[Floats, Ints]:
    """Decimated to about ``count`` faces: collapsing one by one would take long."""
    if len(faces) <= 1.5 * count:
        return vertices, faces
    import fast_simplification

    fewer, triangles = fast_simplification.simplify(
        np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32), target_count=count
    )
    triangles = np.asarray(triangles, np.int64)
    used, renamed = np.unique(triangles, return_inverse=True)
    if len(triangles) == 0:
        return vertices, faces
    places, corners = np.asarray(fewer, np.float64)[used], renamed.reshape(-1, 3)
    if find_defects(corners):  # thin parts may have been pinched off
        solid = repaired(Mesh(places, corners, np.zeros((len(places), 3))))[0]
        return solid.vertices.astype(np.float64), solid.faces.astype(np.int64)
    return places, corners


def _split(state: _Triangles, longest: float) -> _Triangles:
    """Halve edges until none is longer than ``longest``."""
    while True:
        edges, across = state.edges()
        ends = state.vertices[edges]
        long = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1) > longest
        if not long.any():
            return state
        middles = np.full(state.faces.size, -1, np.int64)  # by the corner across from the edge
        middles[across[long]] = len(state.vertices) + np.arange(int(long.sum()))[:, None]
        vertices = np.concatenate([state.vertices, ends[long].mean(1)])
        state = _Triangles(vertices, _cut(state.faces, middles.reshape(-1, 3)))


def _cut(faces: Ints, middles: Ints) -> Ints:
    """Faces cut at the ``middles`` (F, 3) of the sides across from their corners, -1 where a side stays whole."""
    count = (middles >= 0).sum(1)
    out = [faces[count == 0]]
    for cuts in (1, 2, 3):
        rows = np.flatnonzero(count == cuts)
        # Turned so that with one cut it is across from corner 2 (on a b), with two the whole side is across from 1.
        mark = (middles[rows] >= 0) if cuts == 1 else (middles[rows] < 0)
        turn = (mark.argmax(1) - (2 if cuts == 1 else 1)) % 3 if cuts < 3 else np.zeros(len(rows), np.int64)
        order = (np.arange(3) + turn[:, None]) % 3
        a, b, c = np.take_along_axis(faces[rows], order, 1).T
        across_a, across_b, across_c = np.take_along_axis(middles[rows], order, 1).T
        if cuts == 1:
            pieces = [(a, across_c, c), (across_c, b, c)]
        elif cuts == 2:
            pieces = [(across_c, b, across_a), (a, across_c, across_a), (a, across_a, c)]
        else:
            pieces = [
                (a, across_c, across_b), (across_c, b, across_a), (across_b, across_a, c),
                (across_a, across_b, across_c),
            ]  # fmt: skip
        out += [np.stack(piece, -1) for piece in pieces]
    return np.concatenate(out)


def _collapse(state: _Triangles, length: float) -> _Triangles:
    """Draw short edges together into their middles, where nothing folds over and no edge becomes long."""
    for _ in range(_MOST_BATCHES):
        edges, across = state.edges()
        ends = state.vertices[edges]
        lengths = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
        matrix = state.neighbors()
        valence = np.diff(matrix.indptr)
        opposite = state.faces.reshape(-1)[across]
        able = (lengths < _SHORT * length) & (valence[opposite] >= 5).all(1)
        chosen = np.flatnonzero(able)
        chosen = chosen[_common(matrix, edges[chosen]) == 2]
        chosen = chosen[_apart(edges[chosen], lengths[chosen], matrix)]
        chosen = chosen[_harmless(state, edges[chosen], length)]
        state = _drawn_together(state, edges[chosen]) if len(chosen) else state
        if len(chosen) < _FEW * len(edges):
            return state
    return state


def _common(matrix: Any, edges: Ints) -> Ints:
    """(E,) how many vertices are neighbours of both ends of each edge."""
    if len(edges) == 0:
        return np.zeros(0, np.int64)
    common: Ints = np.asarray(matrix[edges[:, 0]].multiply(matrix[edges[:, 1]]).sum(1)).reshape(-1)
    return common


def _apart(edges: Ints, order: Floats, matrix: Any) -> Bools:
    """(E,) a choice of edges, the shortest first, no two of which have ends that are one or neighbours."""
    rank = np.empty(len(edges), np.int64)
    rank[np.argsort(order, kind="stable")] = np.arange(len(edges))
    least = np.full(matrix.shape[0], len(edges), np.int64)
    for side in range(2):
        np.minimum.at(least, edges[:, side], rank)
    around = least.copy()
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    np.minimum.at(around, rows, least[matrix.indices])
    apart: Bools = (around[edges[:, 0]] == rank) & (around[edges[:, 1]] == rank)
    return apart


def _harmless(state: _Triangles, edges: Ints, length: float) -> Bools:
    """(E,) which of the edges, all apart, can be drawn together: faces keep their side, and none becomes large."""
    of_vertex = np.full(len(state.vertices), -1, np.int64)
    of_vertex[edges] = np.arange(len(edges))[:, None]
    owner = of_vertex[state.faces]
    edge = owner.max(1)
    rows = np.flatnonzero((edge >= 0) & ((owner >= 0).sum(1) == 1))  # those with two lose themselves
    middle = state.vertices[edges].mean(1)
    corners = state.vertices[state.faces[rows]]
    moved = np.where((owner[rows] >= 0)[..., None], middle[edge[rows]][:, None], corners)
    before = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    after = np.cross(moved[:, 1] - moved[:, 0], moved[:, 2] - moved[:, 0])
    size = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    sides = np.linalg.norm(moved - np.roll(moved, 1, 1), axis=-1).max(1)
    bad = ((before * after).sum(1) <= _LEAST_COSINE * size) | (sides > _LONG * length)
    harmless = np.ones(len(edges), np.bool_)
    harmless[edge[rows[bad]]] = False
    return harmless


def _drawn_together(state: _Triangles, edges: Ints) -> _Triangles:
    """Every edge becomes its middle."""
    vertices = state.vertices.copy()
    vertices[edges[:, 0]] = state.vertices[edges].mean(1)
    renamed = np.arange(len(vertices))
    renamed[edges[:, 1]] = edges[:, 0]
    faces = renamed[state.faces]
    flat = (faces[:, 0] == faces[:, 1]) | (faces[:, 1] == faces[:, 2]) | (faces[:, 2] == faces[:, 0])
    used, faces = np.unique(faces[~flat], return_inverse=True)
    return _Triangles(vertices[used], faces.reshape(-1, 3))


def _flip(state: _Triangles) -> _Triangles:
    """Turn edges inside their two faces where that brings vertices nearer to six edges each."""
    for _ in range(_BATCHES):
        edges, across = state.edges()
        matrix = state.neighbors()
        valence = np.diff(matrix.indptr).astype(np.int64)
        c, d = state.faces.reshape(-1)[across].T
        a, b = edges.T
        four = np.stack([a, b, c, d], -1)
        change = np.array([-1, -1, 1, 1])
        gain = np.abs(valence[four] - 6).sum(1) - np.abs(valence[four] + change - 6).sum(1)
        able = np.flatnonzero((gain > 0) & (valence[a] >= 5) & (valence[b] >= 5) & (c != d))
        there = edges[:, 0] * len(state.vertices) + edges[:, 1]
        wanted = np.minimum(c, d) * len(state.vertices) + np.maximum(c, d)
        able = able[~np.isin(wanted[able], there)]
        able = able[_keeps_side(state, four[able])]
        rank = np.empty(len(able), np.int64)
        rank[np.argsort(-gain[able], kind="stable")] = np.arange(len(able))
        least = np.full(len(state.vertices), len(able), np.int64)
        for corner in range(4):
            np.minimum.at(least, four[able, corner], rank)
        chosen = able[(least[four[able]] == rank[:, None]).all(1)]
        if len(chosen) == 0:
            return state
        faces = state.faces.copy()
        first, second = across[chosen].T // 3
        faces[first] = np.stack([a[chosen], d[chosen], c[chosen]], -1)
        faces[second] = np.stack([d[chosen], b[chosen], c[chosen]], -1)
        state = _Triangles(state.vertices, faces)
    return state


def _keeps_side(state: _Triangles, four: Ints) -> Bools:
    """(E,) whether the two faces about a b, turned to c d, look the way they did."""
    a, b, c, d = state.vertices[four].transpose(1, 0, 2)
    before = _unit(np.cross(b - a, c - a)) + _unit(np.cross(a - b, d - b))
    new = (np.cross(d - a, c - a), np.cross(b - d, c - d))
    cosines = [(_unit(before) * _unit(normal)).sum(1) for normal in new]
    keeps: Bools = (np.minimum(*cosines) > _LEAST_COSINE) & (np.linalg.norm(before, axis=1) > 1.5)
    return keeps


def _relax(state: _Triangles, surface: NearestOnMesh) -> _Triangles:
    """Move vertices to the middle of their neighbours along the surface, then onto ``surface``."""
    matrix = state.neighbors().astype(np.float64)
    middle = (matrix @ state.vertices) / np.maximum(np.diff(matrix.indptr), 1)[:, None]
    weighted = state.normals()
    total = np.stack(
        [
            sum(np.bincount(state.faces[:, k], weighted[:, axis], len(state.vertices)) for k in range(3))
            for axis in range(3)
        ],
        -1,
    )
    normals = _unit(total)
    step = middle - state.vertices
    wanted = state.vertices + step - (step * normals).sum(1, keepdims=True) * normals
    moved = _Triangles(surface(wanted).points, state.faces)
    # Where a face would turn over, its corners stay where they are.
    for _ in range(3):
        turned = (moved.normals() * weighted).sum(1) <= 0
        if not turned.any():
            return moved
        vertices = moved.vertices.copy()
        held = state.faces[turned].reshape(-1)
        vertices[held] = state.vertices[held]
        moved = _Triangles(vertices, state.faces)
    return moved if not ((moved.normals() * weighted).sum(1) <= 0).any() else state


def _unit(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Floats = vectors / np.where(length > 1e-30, length, 1.0)
    return unit
