"""Texels: which point each one shows, and pictures without gaps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lrm.bake import Texels, covered_texels, field_colors, snapped, texture_image
from lrm.field import FunctionField
from lrm.mesh import Mesh
from lrm.raster import rasterize_flat, render_mesh, sample_texture
from lrm.unwrap import Unwrapped, unwrap
from multiview.cameras import orbit


def square(uvs: np.ndarray) -> Unwrapped:
    """Two triangles over a quad with these places."""
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    return Unwrapped(np.arange(4), faces, uvs.astype(np.float32), np.zeros(2, np.int32), "box", 1.0)


WHOLE = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], np.float64)


def test_each_texel_shows_the_surface_under_its_centre() -> None:
    texels = covered_texels(square(WHOLE), 8)
    assert np.array_equal(texels.index, np.arange(64))
    places = texels.blend(WHOLE, square(WHOLE).faces)
    row, column = np.divmod(np.arange(64), 8)
    # v is up and rows go down: row 0 is at v = 1 - 1/16.
    assert places == pytest.approx(np.stack([(column + 0.5) / 8, 1 - (row + 0.5) / 8], 1), abs=1e-6)


def test_a_face_too_small_for_a_centre_gets_a_texel() -> None:
    tiny = np.array([(0.5, 0.5), (0.501, 0.5), (0.501, 0.501), (0.5, 0.501)])
    texels = covered_texels(square(tiny), 8)  # around the corner of four texels; its middles lie right and above
    assert texels.index.tolist() == [3 * 8 + 4]
    assert texels.weights == pytest.approx(np.full((1, 3), 1 / 3))


def test_gutters_are_as_the_nearest_texel() -> None:
    texels = Texels(4, np.array([0, 15]), np.array([0, 0]), np.full((2, 3), 1 / 3, np.float32))
    image = texture_image(texels, np.array([[1.0, 0, 0], [0, 0, 1.0]]))
    assert image.shape == (4, 4, 3) and image.dtype == np.uint8
    assert image[0, 1].tolist() == [255, 0, 0] and image[1, 1].tolist() == [255, 0, 0]
    assert image[2, 3].tolist() == [0, 0, 255] and image[3, 2].tolist() == [0, 0, 255]


def ball_density(points: Tensor) -> Tensor:
    return (20 - 20 * points.norm(dim=-1)).clamp(min=0)  # 10 at radius 0.5


def stripes(points: Tensor) -> Tensor:
    return (0.5 + 0.45 * torch.sin(5 * points)).clamp(0, 1)


FIELD = FunctionField(ball_density, stripes)


def test_points_are_moved_onto_the_surface_if_it_is_near() -> None:
    rng = np.random.default_rng(0)
    outward = rng.normal(size=(60, 3))
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    radius = np.r_[np.linspace(0.485, 0.515, 40), np.full(20, 0.6)]
    moved = snapped(FIELD, radius[:, None] * outward, outward, threshold=10.0, reach=0.02)
    found = np.linalg.norm(moved, axis=1)
    assert found[:40] == pytest.approx(np.full(40, 0.5), abs=1e-4)
    assert found[40:] == pytest.approx(np.full(20, 0.6), abs=1e-6)


def test_colours_that_are_no_numbers_become_grey() -> None:
    broken = FunctionField(ball_density, lambda points: torch.where(points > 0, float("nan"), 0.25))
    assert field_colors(broken, np.array([[1.0, -1.0, -1.0]])).tolist() == [[0.5, 0.25, 0.25]]


@pytest.mark.parametrize("way", ["box", "auto"])
def test_a_baked_ball_looks_like_its_field_without_seams(way: str) -> None:
    import trimesh

    shape = trimesh.creation.icosphere(3, 0.5)
    mesh = Mesh(shape.vertices, shape.faces, np.full((len(shape.vertices), 3), 0.5))
    unwrapped = unwrap(mesh, 256, way=way)  # type: ignore[arg-type]
    texels = covered_texels(unwrapped, 256)
    textured = unwrapped.apply(
        mesh, texture_image(texels, field_colors(FIELD, texels.blend(mesh.vertices, mesh.faces)))
    )
    camera = orbit([20.0, 200.0], [30.0, -40.0], 3.0, 25.0)
    seen = render_mesh(textured, camera, 96, supersample=1)
    # What the field says at the very points of the surface: the same mesh, its places as colours.
    where = render_mesh(Mesh(mesh.vertices, mesh.faces, mesh.vertices + 0.5), camera, 96, supersample=1)
    inside = where.alpha[:, 0] > 0
    wanted = stripes(where.images.permute(0, 2, 3, 1)[inside] - 0.5)
    error = (seen.images.permute(0, 2, 3, 1)[inside] - wanted).abs()
    assert float(error.mean()) < 0.006
    assert float(error.amax()) < 0.06  # a seam would show as a line of another colour: the stripes span 0.9


def test_a_texture_is_read_bilinearly_v_up() -> None:
    texture = np.zeros((2, 2, 3), np.uint8)
    texture[0, 0] = 255  # top left
    found = sample_texture(texture, np.array([(0.25, 0.75), (0.5, 0.75), (0.5, 0.5), (0.0, 1.0), (0.75, 0.25)]))
    assert found[:, 0] == pytest.approx([1.0, 0.5, 0.25, 1.0, 0.0])


def test_flat_drawing_says_which_triangle_holds_a_centre() -> None:
    corners = np.array([[(0, 0), (4, 0), (0, 4)], [(4, 0), (4, 4), (0, 4)]], np.float64)
    drawn = rasterize_flat(corners, 4, 4)
    assert drawn.face[0, 0] == 0 and drawn.face[3, 3] == 1
    place = np.einsum("hwk,hwkc->hwc", drawn.weights, corners[drawn.face])
    assert place[2, 1] == pytest.approx([1.5, 2.5])
