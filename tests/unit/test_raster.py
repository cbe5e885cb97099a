"""The rasteriser against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lrm.mesh import Mesh
from lrm.raster import rasterize, render_mesh
from multiview.cameras import Cameras, intrinsics_from_fov, orbit, project
from multiview.errors import SettingsError

# From (4, 0, 0) toward the origin: picture right is world +y, picture up is world +z. With a field of view of
# 2 atan(1/4), the plane x = 0 is seen from -1 to 1 in y and z.
FRONT = orbit(0.0, 0.0, 4.0, float(np.rad2deg(2 * np.arctan(0.25))))


def quad(low: tuple[float, float], high: tuple[float, float], x: float = 0.0, color: float = 1.0) -> Mesh:
    """A rectangle in the plane ``x``, from (y, z) ``low`` to ``high``, facing +x."""
    (y0, z0), (y1, z1) = low, high
    corners = np.array([[x, y0, z0], [x, y1, z0], [x, y1, z1], [x, y0, z1]])
    return Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]), np.full((4, 3), color))


def joined(*meshes: Mesh) -> Mesh:
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.faces + s for m, s in zip(meshes, starts, strict=True)]),
        np.concatenate([m.colors for m in meshes]),
    )


def test_quad_covers_exactly_its_pixels() -> None:
    # y in [-0.5, 0.75] of [-1, 1] over 8 px: columns 2 to 6. z in [0, 0.5], up: rows 2 and 3.
    hit = rasterize(quad((-0.5, 0.0), (0.75, 0.5)), FRONT, 8, 8).face >= 0
    expected = np.zeros((8, 8), bool)
    expected[2:4, 2:7] = True
    assert np.array_equal(hit, expected)


def test_half_covered_pixels_have_half_alpha_and_straight_colour() -> None:
    # The left border at y = -0.625 cuts column 1 (from -0.75 to -0.5) in half.
    views = render_mesh(quad((-0.625, -0.5), (0.5, 0.5), color=0.6), FRONT, 8, supersample=2)
    assert views.images.shape == (1, 3, 8, 8) and views.images.dtype == torch.float32
    assert views.alpha[0, 0, 4].tolist() == [0, 0.5, 1, 1, 1, 1, 0, 0]
    assert views.images[0, :, 4, 1].tolist() == pytest.approx([0.6] * 3), "colour is not darkened by the empty half"
    assert views.images[0, :, 0, 0].tolist() == [0, 0, 0]


def test_size_may_be_height_and_width() -> None:
    camera = Cameras(FRONT.c2w, intrinsics_from_fov(FRONT.fov_y_deg, aspect=2.0).float())
    views = render_mesh(quad((-2, -1), (2, 1)), camera, (4, 8), supersample=1)
    assert views.image_size == (4, 8) and views.alpha.min() == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["near-first", "near-last"])
def test_nearer_wins_whatever_the_order(order: tuple[int, int]) -> None:
    both = (quad((-0.5, -0.5), (0.5, 0.5), x=0.5, color=1.0), quad((-2, -2), (2, 2), x=-0.5, color=0.0))
    views = render_mesh(joined(*(both[i] for i in order)), FRONT, 16, supersample=1)
    assert views.images[0, 0, 8, 8] == 1 and views.images[0, 0, 0, 0] == 0 and views.alpha.min() == 1


def test_equal_depth_takes_the_lower_face() -> None:
    mesh = joined(quad((-1, -1), (1, 1), color=0.25), quad((-1, -1), (1, 1), color=0.75))
    assert render_mesh(mesh, FRONT, 8, supersample=1).images.unique().tolist() == pytest.approx([0.25])


def test_crossing_faces_are_cut_where_they_meet() -> None:
    # Two planes x = y and x = -y cross at y = 0; of each only the nearer half is seen.
    one = Mesh(
        np.array([[-1, -1, -1], [1, 1, -1], [1, 1, 1], [-1, -1, 1]]), quad((0, 0), (1, 1)).faces, np.zeros((4, 3))
    )
    two = Mesh(np.array([[1, -1, -1], [-1, 1, -1], [-1, 1, 1], [1, -1, 1]]), one.faces, np.ones((4, 3)))
    red = render_mesh(joined(one, two), FRONT, 16, supersample=1).images[0, 0, 8]
    assert red[2:8].tolist() == [1] * 6 and red[8:14].tolist() == [0] * 6


def test_colours_are_perspective_correct() -> None:
    # A floor from x = 2 (2 away from the camera) to x = -12 (16 away), colour 0 to 1 along it. At depth d the floor
    # z = -0.25 is seen at v = 0.5 + 0.5 * 0.25 * 4 / d, and the colour there is (d - 2) / 14.
    corners = np.array([[2, -9, -0.25], [2, 9, -0.25], [-12, 9, -0.25], [-12, -9, -0.25]])
    mesh = Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]), np.repeat([[0.0], [0.0], [1.0], [1.0]], 3, 1))
    size = 200
    views = render_mesh(mesh, FRONT, size, supersample=1)
    depth = rasterize(mesh, FRONT, size, size).depth
    rows = np.arange(110, 148)  # v from 0.55 to 0.74
    d = 0.5 / ((rows + 0.5) / size - 0.5)
    assert depth[rows, 100] == pytest.approx(d, rel=1e-6)
    assert views.images[0, 0, rows, 100].numpy() == pytest.approx((d - 2) / 14, abs=1e-6)
    flat = np.interp(rows, [rows[0], rows[-1]], (d[[0, -1]] - 2) / 14)
    assert np.abs(flat - (d - 2) / 14).max() > 0.1, "interpolation over the screen would be far off"


def test_fragments_agree_with_project() -> None:
    rng = np.random.default_rng(0)
    mesh = Mesh(rng.uniform(-0.6, 0.6, (30, 3)), rng.integers(0, 30, (20, 3)), rng.random((30, 3)))
    camera = orbit(35.0, 25.0, 3.0, 40.0)
    fragments = rasterize(mesh, camera, 48, 64)
    y, x = np.nonzero(fragments.face >= 0)
    assert len(y) > 200
    weights, corners = fragments.weights[y, x], mesh.vertices[mesh.faces[fragments.face[y, x]]].astype(np.float64)
    assert (weights >= -1e-9).all() and weights.sum(1) == pytest.approx(1)
    uv, depth = project(camera, torch.from_numpy((weights[:, :, None] * corners).sum(1)).float())
    assert uv[0].numpy() == pytest.approx(np.stack([(x + 0.5) / 64, (y + 0.5) / 48], 1), abs=1e-5)
    assert depth[0].numpy() == pytest.approx(fragments.depth[y, x], abs=1e-5)


def test_nothing_lies_before_what_is_seen() -> None:
    """Brute force: at every pixel, the nearest of all faces whose projection holds the pixel's centre."""
    rng = np.random.default_rng(1)
    mesh = Mesh(rng.uniform(-0.6, 0.6, (40, 3)), rng.integers(0, 40, (25, 3)), rng.random((40, 3)))
    camera = orbit(-60.0, -10.0, 3.0, 40.0)
    size = 24
    uv, depth = (t[0].double().numpy() for t in project(camera, torch.from_numpy(mesh.vertices)))
    expected = np.zeros((size, size))
    for face in mesh.faces:
        matrix = np.vstack([(uv[face] * size).T, np.ones(3)])
        if abs(np.linalg.det(matrix)) < 1e-9:
            continue
        for row in range(size):
            for column in range(size):
                weights = np.linalg.solve(matrix, [column + 0.5, row + 0.5, 1])
                if weights.min() >= 0:
                    expected[row, column] = max(expected[row, column], (weights / depth[face]).sum())
    found = rasterize(mesh, camera, size, size).depth
    assert ((found > 0) == (expected > 0)).all()
    assert found[found > 0] == pytest.approx(1 / expected[expected > 0], rel=1e-4)


def test_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    mesh = Mesh(rng.uniform(-0.6, 0.6, (60, 3)), rng.integers(0, 60, (80, 3)), rng.random((60, 3)))
    whole = rasterize(mesh, FRONT, 40, 40)
    monkeypatch.setattr("lrm.raster._CHUNK", 7)
    parts = rasterize(mesh, FRONT, 40, 40)
    assert np.array_equal(whole.face, parts.face) and np.array_equal(whole.weights, parts.weights)
    twice = rasterize(joined(mesh, mesh), FRONT, 40, 40)
    assert np.array_equal(twice.face, whole.face), "of equal faces in different chunks the lower stays"


def test_triangles_behind_the_camera_are_left_out() -> None:
    behind = quad((-1, -1), (1, 1), x=8.0)
    through = Mesh(np.array([[0, 0, 0], [8, 1, 0], [0, 1, 1]]), np.array([[0, 1, 2]]), np.ones((3, 3)))
    assert render_mesh(behind, FRONT, 8).alpha.max() == 0
    assert render_mesh(through, FRONT, 8).alpha.max() == 0


def test_triangles_smaller_than_a_pixel_leave_no_holes() -> None:
    side = np.linspace(-0.8, 0.8, 90)
    y, z = np.meshgrid(side, side, indexing="ij")
    vertices = np.stack([np.zeros_like(y), y, z], -1).reshape(-1, 3)
    i = (np.arange(89)[:, None] * 90 + np.arange(89)).reshape(-1)
    faces = np.concatenate([np.stack([i, i + 90, i + 91], 1), np.stack([i, i + 91, i + 1], 1)])
    alpha = render_mesh(Mesh(vertices, faces, np.ones((len(vertices), 3))), FRONT, 20, supersample=1).alpha[0, 0]
    assert alpha[2:18, 2:18].min() == 1 and alpha.sum() == 16 * 16


def test_shading_darkens_what_turns_away_and_only_then() -> None:
    # A face toward the camera, and one tilted so that it faces down and away from the light.
    toward = quad((-1, -1), (1, 1), color=0.8)
    away = Mesh(np.array([[0.2, -1, -1], [0.2, 1, -1], [1.2, 1, 1], [1.2, -1, 1]]), toward.faces, np.full((4, 3), 0.8))
    lit, dim = (float(render_mesh(m, FRONT, 8, shading=True).images[0, 0, 4, 4]) for m in (toward, away))
    assert 0.55 * 0.8 <= dim < lit - 0.1 and lit <= 0.8
    assert float(render_mesh(away, FRONT, 8).images[0, 0, 4, 4]) == pytest.approx(0.8)


def test_shading_is_the_same_from_behind() -> None:
    mesh = quad((-1, -1), (1, 1), color=0.8)
    turned = Mesh(mesh.vertices, mesh.faces[:, ::-1], mesh.colors)
    a, b = (render_mesh(m, FRONT, 8, shading=True).images for m in (mesh, turned))
    assert torch.allclose(a, b, atol=1e-6)


def test_turning_mesh_and_camera_together_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    mesh = Mesh(rng.uniform(-0.5, 0.5, (30, 3)), rng.integers(0, 30, (30, 3)), rng.random((30, 3)))
    quarter = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    a = render_mesh(mesh, orbit(10.0, 20.0, 2.5, 40.0), 32, shading=True)
    b = render_mesh(mesh.transformed(quarter), orbit(100.0, 20.0, 2.5, 40.0), 32, shading=True)
    assert (a.alpha - b.alpha).abs().mean() < 1e-3 and (a.images - b.images).abs().mean() < 2e-3


def test_bad_sizes_are_refused() -> None:
    mesh = quad((-1, -1), (1, 1))
    with pytest.raises(SettingsError, match="0 x 0"):
        render_mesh(mesh, FRONT, 0)
    with pytest.raises(SettingsError, match="found 2"):
        rasterize(mesh, orbit([0, 10], 0, 3, 40), 8, 8)
