"""Inside or outside, against shapes whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from lrm import inside
from lrm.inside import (
    distance_to_mesh,
    inside_lattice,
    inside_mesh,
    sheet_faces,
    winding_number,
    winding_number_lattice,
    winding_number_torch,
)
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
    with pytest.raises(MeshError, match="found 0 faces"):
        inside_lattice(CUBE_VERTICES, np.zeros((0, 3), int), LATTICE)


# On a lattice. Irregular steps, and every length another, so that swapped axes show.

LATTICE = [np.sort(np.random.default_rng(i).uniform(-0.4, 1.4, n)) for i, n in ((1, 9), (2, 8), (3, 7))]
POINTS = np.stack(np.meshgrid(*LATTICE, indexing="ij"), -1).reshape(-1, 3)


def tetrahedra(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Closed pieces at random that cut through each other, half of them turned inside out."""
    vertices = np.random.default_rng(seed).uniform(-0.2, 1.2, (4 * count, 3))
    one = np.array([[0, 1, 2], [0, 3, 1], [0, 2, 3], [1, 3, 2]])
    return vertices, np.concatenate([one + 4 * i for i in range(count)])


def test_lattice_of_a_cube_is_its_inequalities() -> None:
    x, y, z = (axis.reshape([-1 if i == j else 1 for j in range(3)]) for i, axis in enumerate(LATTICE))
    expected = (x > 0) & (x < 1) & (y > 0) & (y < 1) & (z > 0) & (z < 1)
    turns = winding_number_lattice(CUBE_VERTICES, CUBE_FACES, LATTICE)
    assert turns.shape == (9, 8, 7) and expected.sum() > 20
    assert (turns == expected).all()  # outward faces: plus one, and exactly
    assert (winding_number_lattice(CUBE_VERTICES, CUBE_FACES[:, ::-1], LATTICE) == -1.0 * expected).all()


def test_lattice_rows_through_vertices_and_edges_count_once() -> None:
    # A diamond whose corners, edges and diagonals all lie on lattice rows: nothing is met twice or not at all.
    corners = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], float)
    faces = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])
    axis = np.arange(-5, 6) / 4
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    reach = np.abs(x) + np.abs(y) + np.abs(z)
    turns = winding_number_lattice(corners, faces, [axis] * 3)
    off_surface = np.abs(reach - 1) > 1e-9
    assert (turns[off_surface] == (reach < 1)[off_surface]).all()
    assert set(np.unique(turns)) == {0.0, 1.0}


@pytest.mark.parametrize("seed", range(4))
def test_lattice_equals_the_exact_sum_on_closed_and_open_soups(seed: int) -> None:
    vertices, faces = tetrahedra(5, seed)
    exact = winding_number_torch(vertices, faces, POINTS)
    assert np.abs(winding_number_lattice(vertices, faces, LATTICE).reshape(-1) - exact).max() < 1e-9
    torn = np.random.default_rng(seed).permutation(faces)[:13]  # some border edges belong to two torn faces
    exact = winding_number_torch(vertices, torn, POINTS)
    assert np.abs(winding_number_lattice(vertices, torn, LATTICE).reshape(-1) - exact).max() < 1e-5
    assert np.ptp(exact) > 0.5


def test_lattice_of_a_quad_is_its_solid_angle() -> None:
    # As above: half a unit over and under the middle of a unit square is a sixth of the sphere; far below, nothing.
    axes = [np.array([0.5]), np.array([0.5]), np.array([-40.0, -0.5, 0.5])]
    assert winding_number_lattice(QUAD_VERTICES, QUAD_FACES, axes).reshape(-1) == pytest.approx(
        [1 / (4 * np.pi * 40**2), 1 / 6, -1 / 6], abs=1e-6
    )


def test_split_corners_do_not_open_a_mesh_on_the_lattice() -> None:
    split = CUBE_VERTICES[CUBE_FACES].reshape(-1, 3)
    turns = winding_number_lattice(split, np.arange(36).reshape(-1, 3), LATTICE)
    assert (turns == winding_number_lattice(CUBE_VERTICES, CUBE_FACES, LATTICE)).all()  # to the last bit: no border


@pytest.mark.parametrize("faces", [CUBE_FACES, CUBE_FACES[:10], CUBE_FACES[8:10]], ids=["closed", "open", "sheet"])
def test_inside_on_a_lattice_is_inside_at_its_points(faces: np.ndarray) -> None:
    # Some levels lie close to the faces, where a sheet's thickness decides.
    axes = [np.sort(np.append(axis, [-0.008, 0.008, 0.994, 1.006])) for axis in LATTICE]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    expected = inside_mesh(CUBE_VERTICES, faces, points)
    assert 0 < expected.sum() < len(points)
    assert (inside_lattice(CUBE_VERTICES, faces, axes).reshape(-1) == expected).all()


def test_the_lattice_looks_at_the_mesh_after_its_motion() -> None:
    turn = np.array([[0, -1, 0, 1.0], [1, 0, 0, 0], [0, 0, 1, 0.1], [0, 0, 0, 1]])  # x → y, then back over the cube
    moved = inside_lattice(CUBE_VERTICES * (1, 0.5, 0.8), CUBE_FACES, LATTICE, rigid=turn)
    x, y, z = np.meshgrid(*LATTICE, indexing="ij")
    expected = (x > 0.5) & (x < 1) & (y > 0) & (y < 1) & (z > 0.1) & (z < 0.9)
    assert expected.any() and (moved == expected).all()


def test_sheets_that_are_known_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = inside_lattice(QUAD_VERTICES, QUAD_FACES, [np.array([0.5])] * 2 + [np.array([0.01])])
    assert expected.all()
    monkeypatch.setattr(inside, "sheet_faces", None)
    axes = [np.array([0.5]), np.array([0.5]), np.array([0.01])]
    assert inside_lattice(QUAD_VERTICES, QUAD_FACES, axes, sheets=np.array([True, True])).all()
    assert not inside_lattice(QUAD_VERTICES, QUAD_FACES, axes, sheets=np.array([False, False])).any()


# Without libigl.


def procedural(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Vertices and faces of procedural objects, a fifth of the faces taken out of every second one."""
    from train.shapes import random_object

    found = []
    for index in range(count):
        rng = np.random.default_rng([7, index])
        shape = random_object(rng)
        faces = rng.permutation(shape.faces)[: max(4, len(shape.faces) * (5 - index % 2) // 5)]
        found.append((shape.vertices.astype(np.float64), faces))
    return found


def test_the_exact_sum_equals_libigl_on_20_procedural_objects() -> None:
    pytest.importorskip("igl", reason="libigl is in the extra train")
    points = np.random.default_rng(0).uniform(-0.55, 0.55, (150, 3))
    differences, sides = [], []
    for vertices, faces in procedural(20):
        tree, exact = winding_number(vertices, faces, points), winding_number_torch(vertices, faces, points)
        differences.append(np.abs(tree - exact))
        clear = np.abs(np.abs(exact) - 0.5) > 0.05  # the tree's own error cannot turn these
        sides.append((np.abs(tree) > 0.5)[clear] == (np.abs(exact) > 0.5)[clear])
    assert np.concatenate(sides).all() and np.concatenate(sides).size > 2500
    # libigl's tree is second order: a hundredth of a turn at worst, next to far-away clusters.
    assert np.max(differences) < 0.05 and np.mean(differences) < 2e-3


def test_labels_without_libigl_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("igl", reason="libigl is in the extra train")
    points = np.random.default_rng(1).uniform(-0.5, 1.5, (3000, 3))
    soup = CUBE_FACES[4:]
    expected = inside_mesh(CUBE_VERTICES, soup, points)
    monkeypatch.setattr(inside, "_has_igl", lambda: False)
    without = inside_mesh(CUBE_VERTICES, soup, points, device="cpu")
    assert (without != expected).mean() < 0.002 and expected.any()
    with pytest.raises(RuntimeError):  # the device that is asked for is the one that is used
        inside_mesh(CUBE_VERTICES, soup, points, device="no-such-device")
