"""Whether a mesh is the boundary of a solid, and mending one that is not.

A triangle mesh bounds a solid when it is *closed* (no open edge), *manifold* (two faces at every edge, one fan of faces
at every vertex), evenly *turned* (the two faces of an edge run along it in opposite directions) and outward.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multiview.errors import MeshError, SettingsError

from .mesh import Mesh
from .pieces import welded

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Bools = NDArray[np.bool_]

_ROUNDS = 8  # of cutting and filling; each leaves fewer defects, and one or two are the rule
_NUDGE = 2e-5  # of the longest side: how far copies of a pinched vertex are drawn apart, so that files keep them apart


@dataclass(frozen=True)
class Defects:
    """What keeps a mesh from bounding a solid; all zero for one that does.

    Attributes:
        open_edges: edges with one face.
        crowded_edges: edges with more than two.
        turned_edges: edges whose two faces run along them in the same direction.
        pinched_vertices: vertices where several fans of faces meet in a point.
        flat_faces: faces that name a vertex twice.
    """

    open_edges: int
    crowded_edges: int
    turned_edges: int
    pinched_vertices: int
    flat_faces: int

    def __bool__(self) -> bool:
        return any((self.open_edges, self.crowded_edges, self.turned_edges, self.pinched_vertices, self.flat_faces))

    def __str__(self) -> str:
        counts = {
            "open edges": self.open_edges,
            "edges of more than two faces": self.crowded_edges,
            "edges between faces of different sides": self.turned_edges,
            "pinched vertices": self.pinched_vertices,
            "flat faces": self.flat_faces,
        }
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"


def find_defects(faces: Ints) -> Defects:
    """Count what keeps triangles (F, 3) from bounding a solid; vertices at one place count as one only if welded."""
    faces = np.asarray(faces, np.int64)
    flat = _flat(faces)
    edges = _Edges.of(faces[~flat])
    once, twice = edges.count == 1, edges.count == 2
    fans = edges.fans()
    return Defects(
        open_edges=int(once.sum()),
        crowded_edges=int((edges.count > 2).sum()),
        turned_edges=int((twice & (edges.balance != 0)).sum()),
        pinched_vertices=_pinched(faces[~flat], fans),
        flat_faces=int(flat.sum()),
    )


def find_defects_in_places(vertices: Floats, faces: Ints) -> Defects:
    """The same for a mesh whose vertices are joined where they are at exactly one place (seams of textures, STL)."""
    return find_defects(welded(vertices)[1][faces])


def crossed_share(mesh: Mesh, samples: int = 2000, *, seed: int = 0) -> float:
    """Share of sampled faces that another face, with which they share no corner, cuts through.

    Args:
        mesh: any; corners at one place count as one.
        samples: faces that are looked at, at most all.
        seed: of which.

    Returns:
        0 for a surface that does not run through itself, up to 1. Faces are compared with those whose middles are
        within reach of both; faces that lie in one plane are not said to cross.
    """
    from scipy.spatial import cKDTree

    faces = welded(mesh.vertices)[1][mesh.faces]
    corners = mesh.vertices.astype(np.float64)[mesh.faces]
    middles = corners.mean(1)
    reach = np.linalg.norm(corners - middles[:, None], axis=-1).max(1)
    chosen = np.random.default_rng(seed).permutation(len(faces))[:samples]
    # The few largest faces would make everything near: they reach as far as they do, the others as far as most.
    usual = float(np.quantile(reach, 0.999))
    near = cKDTree(middles).query_ball_point(middles[chosen], reach[chosen] + usual)
    first = np.repeat(np.arange(len(chosen)), [len(each) for each in near])
    second = np.concatenate([np.asarray(each, np.int64) for each in near])
    a, b = faces[chosen[first]], faces[second]
    apart = ~(a[:, :, None] == b[:, None, :]).any((1, 2))
    first, second = first[apart], second[apart]
    p, q = corners[chosen[first]], corners[second]
    cut = np.zeros(len(first), np.bool_)
    for k in range(3):
        cut |= _pierces(p[:, k], p[:, (k + 1) % 3], q) | _pierces(q[:, k], q[:, (k + 1) % 3], p)
    return float(len(np.unique(first[cut])) / len(chosen))


def _pierces(start: Floats, end: Floats, triangle: Floats) -> Bools:
    """(N,) whether segments (N, 3) to (N, 3) run through the insides of triangles (N, 3, 3).

    Source:
        Moeller and Trumbore 1997.
    """
    along = end - start
    e1, e2 = triangle[:, 1] - triangle[:, 0], triangle[:, 2] - triangle[:, 0]
    across = np.cross(along, e2)
    size = (e1 * across).sum(1)
    scale = np.linalg.norm(e1, axis=1) * np.linalg.norm(e2, axis=1) * np.linalg.norm(along, axis=1)
    slanted = np.abs(size) > 1e-9 * scale
    safe = np.where(slanted, size, 1.0)
    away = start - triangle[:, 0]
    u = (away * across).sum(1) / safe
    turned = np.cross(away, e1)
    v = (along * turned).sum(1) / safe
    t = (e2 * turned).sum(1) / safe
    near = 1e-9
    inside = (u > near) & (v > near) & (u + v < 1 - near) & (t > near) & (t < 1 - near)
    return np.asarray(slanted & inside)


def repaired(mesh: Mesh) -> tuple[Mesh, tuple[str, ...]]:
    """Give a mesh that bounds a solid: closed, manifold, outward, with a positive volume.

    Faces at bad edges are cut out, vertices where fans meet are doubled (and drawn apart by a hair, so that a file's
    reader does not join them again), holes are filled with fans of triangles. manifold3d then has the last word. A mesh
    that it takes as it is comes back as it is.

    Args:
        mesh: without a texture, or with one whose seams double vertices: it comes back without it when it is changed.

    Returns:
        The mesh, and what was done, in words; none when nothing was (vertices at one place may have been joined).

    Raises:
        SettingsError: manifold3d is not installed.
        MeshError: nothing with a volume is left, or the mesh cannot be mended; says what is wrong with it.
    """
    places, of_vertex = welded(mesh.vertices)
    joined = of_vertex[mesh.faces]
    found = find_defects(joined)
    if not found and mesh.volume > 0 and _solid_faces(places, joined, np.zeros((len(places), 3)))[2] == "":
        return (
            (mesh, ())
            if mesh.uvs is not None or len(places) == len(mesh.vertices)
            else (Mesh(places, joined, _joined_colors(mesh, of_vertex, len(places))), ())
        )
    colors = _joined_colors(mesh, of_vertex, len(places))
    vertices, faces, colors = _mended(places, joined, colors)
    vertices, faces, colors, said = _last_word(vertices, faces, colors)
    if said:
        raise MeshError(
            f"the mesh cannot be made a solid: manifold3d says {said}, found at first: {found}. "
            "Try another --resolution or --threshold."
        )
    solid = Mesh(vertices, faces, colors.clip(0, 1))
    if solid.volume < 0:
        solid = replace(solid, faces=solid.faces[:, ::-1])
    if not solid.volume > 0:
        raise MeshError(f"the mesh cannot be made a solid: it has no volume. Found at first: {found}.")
    told = f"made closed and manifold (found: {found}): {len(mesh.faces)} faces became {len(solid.faces)}"
    return solid, (told,)


def _joined_colors(mesh: Mesh, of_vertex: Ints, count: int) -> NDArray[np.float32]:
    """(count, 3) a colour for each place: that of the last of its vertices."""
    colors = np.empty((count, 3), np.float32)
    colors[of_vertex] = mesh.colors
    return colors


@dataclass(frozen=True)
class _Edges:
    """The undirected edges of triangles.

    Attributes:
        faces: (F, 3).
        of_side: (3 F,) the edge of each side; side 3 f + k of face f runs from its corner k to corner k + 1.
        up: (3 F,) whether the side runs from the lower to the higher vertex.
        count: (E,) sides.
        balance: (E,) sides that run up less those that run down.
    """

    faces: Ints
    of_side: Ints
    up: Bools
    count: Ints
    balance: Ints

    @staticmethod
    def of(faces: Ints) -> _Edges:
        """Sort the sides of ``faces`` (F, 3), none of which may name a vertex twice."""
        tail, head = faces.reshape(-1), faces[:, [1, 2, 0]].reshape(-1)
        size = int(faces.max(initial=0)) + 1
        keys = np.minimum(tail, head) * size + np.maximum(tail, head)
        _, of_side, count = np.unique(keys, return_inverse=True, return_counts=True)
        up = tail < head
        balance = np.bincount(of_side, np.where(up, 1.0, -1.0), len(count)).astype(np.int64)
        return _Edges(faces, of_side.reshape(-1), up, count, balance)

    def good(self) -> Bools:
        """(E,) which edges have two faces that run along them in opposite directions."""
        return (self.count == 2) & (self.balance == 0)

    def fans(self) -> Ints:
        """(3 F,) the fan of each corner: corners of one vertex whose faces hang together over good edges."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        joined = np.flatnonzero(self.good()[self.of_side])
        sides = joined[np.argsort(self.of_side[joined], kind="stable")].reshape(-1, 2)
        after = sides // 3 * 3 + (sides + 1) % 3
        # A side's first corner is at the vertex where its neighbour's side ends.
        a = np.concatenate([sides[:, 0], after[:, 0]])
        b = np.concatenate([after[:, 1], sides[:, 1]])
        corners = self.faces.size
        graph = coo_array((np.ones(len(a), np.bool_), (a, b)), shape=(corners, corners))
        fans: Ints = connected_components(graph, directed=False)[1]
        return fans


def _flat(faces: Ints) -> Bools:
    """(F,) which faces name a vertex twice."""
    flat: Bools = (faces[:, 0] == faces[:, 1]) | (faces[:, 1] == faces[:, 2]) | (faces[:, 2] == faces[:, 0])
    return flat


def _pinched(faces: Ints, fans: Ints) -> int:
    """How many vertices have several fans."""
    pairs = np.unique(np.stack([faces.reshape(-1), fans], -1), axis=0)
    return int((np.bincount(pairs[:, 0]) > 1).sum()) if len(pairs) else 0


def _mended(vertices: Floats, faces: Ints, colors: Floats) -> tuple[Floats, Ints, Floats]:
    """Cut and fill until no defects are left; the last round's result if some always are."""
    for _ in range(_ROUNDS):
        faces = faces[~_flat(faces)]
        edges = _Edges.of(faces)
        bad = (edges.count > 2) | ((edges.count == 2) & (edges.balance != 0))
        faces = faces[~bad[edges.of_side].reshape(-1, 3).any(1)]
        if len(faces) == 0:
            raise MeshError("the mesh cannot be made a solid: no two of its faces fit together at their edges.")
        vertices, faces, colors = _unpinched(vertices, faces, colors)
        vertices, faces, colors = _filled(vertices, faces, colors)
        if not find_defects(faces):
            break
    return vertices, faces, colors


def _unpinched(vertices: Floats, faces: Ints, colors: Floats) -> tuple[Floats, Ints, Floats]:
    """A vertex of its own for every fan, drawn a hair toward the fan's faces where it was shared."""
    fans = _Edges.of(faces).fans()
    first = np.full(int(fans.max()) + 1, -1, np.int64)
    corner = faces.reshape(-1)
    first[fans] = corner
    fan_count = np.bincount(first, minlength=len(vertices))
    moved = vertices[first].astype(np.float64)
    shared = fan_count[first] > 1
    if shared.any():
        centers = vertices[faces].mean(1).repeat(3, 0)
        total = np.stack([np.bincount(fans, centers[:, axis], len(first)) for axis in range(3)], -1)
        toward = total / np.bincount(fans, minlength=len(first))[:, None] - moved
        length = np.linalg.norm(toward, axis=1, keepdims=True)
        hair = _NUDGE * float(np.ptp(vertices, axis=0).max())
        step = toward / np.where(length > 0, length, 1) * np.minimum(hair, length / 4)
        moved = np.where(shared[:, None], moved + step, moved)
    return moved.astype(np.float32), fans.reshape(-1, 3), colors[first]


def _filled(vertices: Floats, faces: Ints, colors: Floats) -> tuple[Floats, Ints, Floats]:
    """Close every hole of a mesh without pinched vertices: a triangle, or a fan about the middle of its rim."""
    edges = _Edges.of(faces)
    sides = np.flatnonzero(edges.count[edges.of_side] == 1)
    tail, head = faces.reshape(-1)[sides], faces[:, [1, 2, 0]].reshape(-1)[sides]
    follow = dict(zip(head.tolist(), tail.tolist(), strict=True))  # against the faces: the filling runs the other way
    new_faces: list[list[int]] = []
    new_vertices: list[Floats] = []
    new_colors: list[Floats] = []
    while follow:
        start, at = next(iter(follow.items()))
        loop = [start]
        while at != start:
            loop.append(at)
            at = follow[at]
        for vertex in loop:
            del follow[vertex]
        if len(loop) == 3:
            new_faces.append(loop)
            continue
        middle = len(vertices) + len(new_vertices)
        new_vertices.append(vertices[loop].mean(0))
        new_colors.append(colors[loop].mean(0))
        new_faces += [[a, b, middle] for a, b in zip(loop, loop[1:] + loop[:1], strict=True)]
    if not new_faces:
        return vertices, faces, colors
    return (
        np.concatenate([vertices, np.asarray(new_vertices, np.float32).reshape(-1, 3)]),
        np.concatenate([faces, np.asarray(new_faces, np.int64)]),
        np.concatenate([colors, np.asarray(new_colors, np.float32).reshape(-1, 3)]),
    )


def _last_word(vertices: Floats, faces: Ints, colors: Floats) -> tuple[Floats, Ints, Floats, str]:
    """What manifold3d makes of a mesh without defects: itself, or the complaint."""
    solid, triangles, said = _solid_faces(vertices, faces, colors)
    if said:
        return vertices, faces, colors, said
    # manifold3d may leave slivers out and join vertices; where that pinches a vertex, ours was sound already.
    if find_defects(triangles) or find_defects_in_places(solid[:, :3], triangles):
        found = find_defects_in_places(vertices, faces)
        return vertices, faces, colors, str(found) if found else ""
    return solid[:, :3], triangles, solid[:, 3:], ""


def _solid_faces(vertices: Floats, faces: Ints, colors: Floats) -> tuple[Floats, Ints, str]:
    """Vertices with colours (N, 6) and faces (F, 3) as manifold3d has them, and its complaint, ``""`` for none.

    Raises:
        SettingsError: manifold3d is not installed.
    """
    if importlib.util.find_spec("manifold3d") is None:
        raise SettingsError("making a mesh watertight needs manifold3d. Try: pip install manifold3d.")
    library = importlib.import_module("manifold3d")
    rows = np.ascontiguousarray(np.concatenate([vertices, colors], 1), np.float32)
    solid = library.Manifold(library.Mesh(rows, np.ascontiguousarray(faces, np.uint32)))
    status = str(solid.status()).rpartition(".")[2]
    if status != "NoError" or solid.is_empty():
        return rows, faces, "nothing is left" if status == "NoError" else status
    out = solid.to_mesh()
    triangles = np.asarray(out.tri_verts, np.int64)
    joined = np.arange(len(out.vert_properties))
    joined[np.asarray(out.merge_from_vert, np.int64)] = np.asarray(out.merge_to_vert, np.int64)
    return np.asarray(out.vert_properties, np.float32), joined[triangles], ""
