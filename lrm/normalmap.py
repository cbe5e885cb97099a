"""Normal maps: the folds of a fine mesh as a picture on a coarse one with UVs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from multiview.errors import MeshError

from .bake import covered_texels, texture_image
from .mesh import Mesh
from .nearest import NearestOnMesh
from .unwrap import Unwrapped

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

_FAR = 0.02  # of the longest side: what is farther away than that is another part of the fine mesh
_AGAINST = 0.2  # cosine: a fine normal that leans further away belongs to another side of a thin part


def bake_normal_map(mesh: Mesh, fine: Mesh, texture_size: int = 1024) -> NDArray[np.uint8]:
    """Draw the normals of a fine mesh into a tangent-space picture for a coarse one.

    Args:
        mesh: with UVs that do not overlap; its seams may double vertices.
        fine: nearly the same surface, in the same frame, without UVs.
        texture_size: texels per side.

    Returns:
        (size, size, 3) uint8: red along u, green along v *up*, blue out, 0 to 255 for -1 to 1, as glTF's normalTexture
        wants it with the tangents of `vertex_tangents`. A texel whose place has no part of the fine mesh near it is
        flat (128, 128, 255); what no chart covers is as its nearest texel is.

    Raises:
        MeshError: the mesh has no UVs.

    Source:
        glTF 2.0, section 3.9.3. The frame follows MikkTSpace (Mikkelsen 2008): angle-weighted vertex tangents, blended
        and not made orthogonal again in the pixel, so that viewers undo exactly what is done here.
    """
    if mesh.uvs is None:
        raise MeshError("a normal map wants a mesh with uvs. Unwrap it first (--texture baked).")
    everything = np.arange(len(mesh.vertices))
    charts = np.zeros(len(mesh.faces), np.int32)
    texels = covered_texels(Unwrapped(everything, mesh.faces, mesh.uvs, charts, "given", 0.0), texture_size)
    normals = mesh.normals
    tangents = vertex_tangents(mesh.vertices, mesh.faces, normals, mesh.uvs)
    points = texels.blend(mesh.vertices, mesh.faces).astype(np.float64)
    out = _unit(texels.blend(normals, mesh.faces).astype(np.float64))
    along = _unit(texels.blend(tangents[:, :3], mesh.faces).astype(np.float64))
    across = _unit(np.cross(out, along) * np.sign(texels.blend(tangents[:, 3], mesh.faces))[:, None])
    places = NearestOnMesh(fine)(points)
    folded = _unit(np.einsum("nk,nkc->nc", places.weights, fine.normals[fine.faces[places.face]].astype(np.float64)))
    side = float(np.ptp(mesh.vertices.astype(np.float64), axis=0).max())
    other = (places.distance > _FAR * side) | ((folded * out).sum(1) < _AGAINST)
    folded = np.where(other[:, None], out, folded)
    frame = np.stack([along, across, out], -1)
    # Frames that have fallen flat (a face without area in the picture) cannot be undone; they stay flat.
    sound = np.abs(np.linalg.det(frame)) > 1e-3
    local = np.zeros_like(folded)
    local[:, 2] = 1.0
    local[sound] = _unit(np.linalg.solve(frame[sound], folded[sound][..., None])[..., 0])
    picture = texture_image(texels, np.clip(local / 2 + 0.5, 0, 1))
    return picture


def vertex_tangents(vertices: Floats, faces: Ints, normals: Floats, uvs: Floats) -> NDArray[np.float32]:
    """Tangents of a mesh with UVs, as glTF's ``TANGENT`` wants them.

    Args:
        vertices: (N, 3), vertices doubled at seams.
        faces: (F, 3).
        normals: (N, 3) unit.
        uvs: (N, 2), v up.

    Returns:
        (N, 4) float32: the unit direction in which u grows, at right angles to the normal, and +1 or -1, so that
        ``cross(normal, tangent) * sign`` is where v grows upward.

    Source:
        MikkTSpace (Mikkelsen 2008): faces weighted by the angle at the vertex.
    """
    corners, places = vertices.astype(np.float64)[faces], uvs.astype(np.float64)[faces]
    e1, e2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    d1, d2 = places[:, 1] - places[:, 0], places[:, 2] - places[:, 0]
    area = d1[:, 0] * d2[:, 1] - d2[:, 0] * d1[:, 1]
    turn = np.where(area < 0, -1.0, 1.0)
    toward = (e1 * d2[:, 1:] - e2 * d1[:, 1:]) * turn[:, None]
    total, signs = np.zeros((len(vertices), 3)), np.zeros(len(vertices))
    for corner in range(3):
        at = faces[:, corner]
        flat = _unit(_level(toward, normals[at]))
        a = _unit(_level(corners[:, (corner + 1) % 3] - corners[:, corner], normals[at]))
        b = _unit(_level(corners[:, (corner + 2) % 3] - corners[:, corner], normals[at]))
        angle = np.arccos(np.clip((a * b).sum(1), -1, 1))
        for axis in range(3):
            total[:, axis] += np.bincount(at, flat[:, axis] * angle, len(vertices))
        signs += np.bincount(at, turn * angle, len(vertices))
    # A vertex whose faces cancel, or that has none, takes any direction that is level.
    any_level = np.cross(normals, np.where(np.abs(normals[:, :1]) < 0.9, (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
    level = _level(total, normals)
    lost = np.linalg.norm(level, axis=1) < 1e-9
    tangents = _unit(np.where(lost[:, None], any_level, level))
    return np.concatenate([tangents, np.where(signs < 0, -1.0, 1.0)[:, None]], 1).astype(np.float32)


def _level(vectors: Floats, normals: Floats) -> Floats:
    """What of ``vectors`` is at right angles to unit ``normals``."""
    normals = normals.astype(np.float64)
    left: Floats = vectors - (vectors * normals).sum(-1, keepdims=True) * normals
    return left


def _unit(vectors: Floats) -> Floats:
    """Of length 1, or 0 where they were 0."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 1e-30, length, 1.0)
