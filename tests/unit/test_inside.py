"""Inside or outside, against shapes whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from lrm import inside
from lrm.inside import distance_to_mesh, inside_mesh, sheet_faces, winding_number, winding_number_torch
from multiview.errors import MeshError

CUBE_VERTICES = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
CUBE_QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
CUBE_FACES = np.array([t for a, b, c, d in CUBE_QUADS for t in ((a, b, c), (a, c, d))])
QUAD_VERTICES = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
QUAD_FACES = np.array([[0, 1, 2], [0, 2, 3]])


def test_winding_number_is_one_inside_a_cube_and_zero_outside() -> None:
    points = np.array([[0.5, 0.5, 0.5], [0.1, 0.9, 0.2], [1.5, 0.5, 0.5], [-3, 0, 0]])
    assert winding_number_torch(CUBE_VERTICES, CUBE_FACES, points) == pytest.approx([1, 1, 0, 0], abs=1e-9)


def test_winding_number_of_an_open_quad_is_its_solid_angle() -> None:
    # Seen from 0.5 above the middle, a unit square is one face of a cube about the eye: 4 pi / 6 of the sphere.
    above = winding_number_torch(QUAD_VERTICES, QUAD_FACES, np.array([[0.5, 0.5, 0.5], [0.5, 0.5, -0.5]]))
    assert above == pytest.approx([-1 / 6, 1 / 6], abs=1e-9)


def test_tree_and_exact_winding_numbers_agree() -> None:
    pytest.importorskip("igl", reason="libigl is in the extra train")
    points = np.random.default_rng(0).uniform(-0.5, 1.5, (500, 3))
    soup = CUBE_FACES[:9]  # open
    difference = winding_number(CUBE_VERTICES, soup, points) - winding_number_torch(CUBE_VERTICES, soup, points)
    assert np.abs(difference).max() < 0.02
    assert np.abs(difference).mean() < 2e-3


def test_chunks_do_not_change_the_winding_number() -> None:
    points = np.random.default_rng(1).uniform(-1, 2, (50, 3))
    whole = winding_number_torch(CUBE_VERTICES, CUBE_FACES, points)
    pieces = winding_number_torch(CUBE_VERTICES, CUBE_FACES, points, chunk_size=24)
    assert np.allclose(whole, pieces, atol=1e-12)


def test_inside_does_not_depend_on_which_way_faces_turn() -> None:
    points = np.array([[0.5, 0.5, 0.5], [2.0, 0.5, 0.5]])
    assert inside_mesh(CUBE_VERTICES, CUBE_FACES[:, ::-1], points).tolist() == [True, False]


def test_a_sheet_is_thickened_by_three_quarters_of_a_voxel() -> None:
    reach = 0.75 / 64
    points = np.array(
        [[0.5, 0.5, 0.9 * reach], [0.5, 0.5, -0.9 * reach], [0.5, 0.5, 1.1 * reach], [1 + 1.1 * reach, 0.5, 0]]
    )
    assert sheet_faces(QUAD_VERTICES, QUAD_FACES).all()
    assert inside_mesh(QUAD_VERTICES, QUAD_FACES, points).tolist() == [True, True, False, False]


def test_faces_of_a_closed_mesh_are_not_thickened() -> None:
    assert not sheet_faces(CUBE_VERTICES, CUBE_FACES).any()
    just_outside = np.array([[0.5, 0.5, 1.005], [0.5, -0.005, 0.5]])
    assert not inside_mesh(CUBE_VERTICES, CUBE_FACES, just_outside).any()


def test_distance_with_and_without_libigl(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.array([[0.5, 0.5, 2.0], [2.0, 2.0, 0.5], [2.0, 2.0, 2.0], [0.5, 0.5, 0.9]])
    expected = [1.0, 2**0.5, 3**0.5, 0.1]  # face, edge, corner, from within
    assert distance_to_mesh(CUBE_VERTICES, CUBE_FACES, points) == pytest.approx(expected)
    monkeypatch.setattr(inside.importlib.util, "find_spec", lambda name: None)
    assert distance_to_mesh(CUBE_VERTICES, CUBE_FACES, points) == pytest.approx(expected)
    near = distance_to_mesh(CUBE_VERTICES, CUBE_FACES, points, reach=0.5)
    assert near[3] == pytest.approx(0.1)
    assert (near[:3] >= 0.5).all()


def test_no_faces_is_an_error() -> None:
    with pytest.raises(MeshError, match="found 0 faces"):
        inside_mesh(CUBE_VERTICES, np.zeros((0, 3), int), np.zeros((1, 3)))
