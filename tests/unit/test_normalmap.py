"""Tangents and normal maps: directions worked out by hand, and undone as a viewer does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import trimesh

from lrm.mesh import Mesh
from lrm.normalmap import bake_normal_map, vertex_tangents
from lrm.unwrap import unwrap_boxes
from multiview.errors import MeshError

SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float64)
FACES = np.array([[0, 1, 2], [0, 2, 3]])
UP = np.tile([0.0, 0, 1], (4, 1))


def square(uvs: np.ndarray) -> Mesh:
    """A square looking up."""
    return Mesh(SQUARE, FACES, np.full((4, 3), 0.5), uvs=uvs, texture=np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("uvs", "tangent", "sign"),
    [
        (SQUARE[:, :2], (1, 0, 0), 1),
        (SQUARE[:, [1, 0]] * (1, -1) + (0, 1), (0, 1, 0), 1),  # turned by a quarter
        (SQUARE[:, :2] * (-1, 1) + (1, 0), (-1, 0, 0), -1),  # mirrored
        (np.zeros((4, 2)), None, 1),  # no picture: any level direction
    ],
    ids=["plain", "turned", "mirrored", "none"],
)
def test_tangents_follow_u(uvs: np.ndarray, tangent: tuple[float, ...] | None, sign: float) -> None:
    found = vertex_tangents(SQUARE, FACES, UP, uvs)
    assert (found[:, 3] == sign).all() and np.linalg.norm(found[:, :3], axis=1) == pytest.approx(np.ones(4))
    assert found[:, 2] == pytest.approx(np.zeros(4)), "level"
    if tangent is not None:
        assert found[:, :3] == pytest.approx(np.tile(tangent, (4, 1)), abs=1e-6)


def test_a_slope_leans_toward_plus_u_as_red_and_plus_v_as_green() -> None:
    coarse = square(SQUARE[:, :2])
    for axis, channel in ((0, 0), (1, 1)):
        slope = SQUARE.copy()
        slope[:, 2] = -0.01 * slope[:, axis]  # falls toward +x: its normal leans toward +x
        picture = bake_normal_map(coarse, Mesh(slope, FACES, coarse.colors), 8)
        lean = picture[4, 4].astype(float) / 255 * 2 - 1
        assert lean[channel] == pytest.approx(0.01, abs=0.009) and picture[4, 4, channel] > 127 and lean[2] > 0.99
        assert abs(lean[1 - channel]) < 0.006


def test_a_viewer_gets_the_fine_normals_back() -> None:
    fine = trimesh.creation.icosphere(4)
    ball = Mesh(fine.vertices, fine.faces, np.full((len(fine.vertices), 3), 0.5))
    few = trimesh.creation.icosphere(2)
    coarse = Mesh(few.vertices, few.faces, np.full((len(few.vertices), 3), 0.5))
    mesh = unwrap_boxes(coarse, 128).apply(coarse, np.zeros((128, 128, 3), np.uint8))
    picture = bake_normal_map(mesh, ball, 128)
    assert mesh.uvs is not None
    tangents = vertex_tangents(mesh.vertices, mesh.faces, mesh.normals, mesh.uvs)
    # In the middle of every face, as a shader does: blended tangent and normal, bitangent from their cross product.
    middle = mesh.uvs[mesh.faces].mean(1)
    texels = picture[((1 - middle[:, 1]) * 128).astype(int), (middle[:, 0] * 128).astype(int)] / 255 * 2 - 1
    normal, tangent = (v[mesh.faces].mean(1) for v in (mesh.normals, tangents[:, :3]))
    normal, tangent = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (normal, tangent))
    across = np.cross(normal, tangent) * tangents[mesh.faces[:, 0], 3:]
    shaded = tangent * texels[:, :1] + across * texels[:, 1:2] + normal * texels[:, 2:]
    true = mesh.vertices[mesh.faces].mean(1)
    cosine = (shaded * true).sum(1) / np.linalg.norm(shaded, axis=1) / np.linalg.norm(true, axis=1)
    assert np.degrees(np.arccos(cosine.clip(-1, 1))).mean() < 3


def test_far_away_parts_leave_it_flat_and_uvs_are_needed() -> None:
    coarse = square(SQUARE[:, :2])
    away = Mesh(SQUARE + np.array([0, 0, 0.5]), FACES[:, ::-1], coarse.colors)
    assert (bake_normal_map(coarse, away, 8) == (128, 128, 255)).all()
    with pytest.raises(MeshError, match="Unwrap it first"):
        bake_normal_map(replace(coarse, uvs=None, texture=None), away, 8)
