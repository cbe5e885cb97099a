"""Pictures on objects: looking them up by hand-worked numbers, and where they land in every renderer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multiview.color import linear_from_srgb, srgb_from_linear
from tests.textured import BLUE, GREEN, RED, YELLOW, GlbMaker, checker_glb, checker_obj, cube, plain
from train.deform import random_recolor, recolored
from train.objects import TrainingObject, load_object
from train.points import sample_surface
from train.protocol import EvalObject, EvalProtocol
from train.render import Caster, Renderer, crop_camera
from train.texturedmesh import TexturedMesh, only_used, skin_of
from train.textures import Skin, SkinPainter, Texture, TextureStack, Wrap, _wrapped
from train.torchrender import TorchCaster

RENDERERS = ("embree", "torch")


def renderer(name: str, obj: TrainingObject) -> Renderer:
    if name == "embree":
        pytest.importorskip("embreex", reason="embreex is in the extra train")
        return Caster(obj)
    return TorchCaster(obj)


def pixels(*rows: list[int]) -> np.ndarray:
    """A grey picture from rows of bytes."""
    return np.repeat(np.array(rows, np.uint8)[..., None], 3, -1)


def grey(stack: TextureStack, slot: list[int], uv: list[tuple[float, float]], covered: list[float] | None = None):
    area = None if covered is None else torch.tensor(covered)
    found = stack.look_up(torch.tensor(slot), torch.tensor(uv, dtype=torch.float32), area)
    assert (found[:, 0] == found[:, 1]).all()
    return found[:, 0].tolist()


# --- looking up


def test_a_picture_is_read_bilinearly_from_its_top_left_corner() -> None:
    stack = TextureStack([Texture(pixels([0, 100], [200, 40]), ("clamp", "clamp"))])
    # Texel centres lie at a quarter and three quarters; halfway along the top it is 50, in the middle the mean of all.
    places = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75), (0.5, 0.25), (0.25, 0.5), (0.5, 0.5)]
    assert grey(stack, [0] * 7, places) == pytest.approx([0, 100, 200, 40, 50, 100, 85])


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [("repeat", [100, 0, 100, 0]), ("mirror", [0, 100, 100, 0]), ("clamp", [0, 100, 0, 100])],
)
def test_wrapping_by_hand(wrap: Wrap, expected: list[float]) -> None:
    across = TextureStack([Texture(pixels([0, 100]), (wrap, "repeat"))])
    down = TextureStack([Texture(pixels([0], [100]), ("repeat", wrap))])
    # Left of the picture, right of it, and a whole picture further on either side.
    places = [-0.25, 1.25, -1.25, 2.25]
    assert grey(across, [0] * 4, [(u, 0.5) for u in places]) == pytest.approx(expected)
    assert grey(down, [0] * 4, [(0.5, v) for v in places]) == pytest.approx(expected)


@given(st.integers(1, 9), st.integers(0, 20))
def test_texel_numbers_wrap_as_padding_does(size: int, reach: int) -> None:
    index = torch.arange(-reach, size + reach)[:, None].expand(-1, 2)
    for code, mode in enumerate(("wrap", "symmetric", "edge")):
        padded = np.pad(np.arange(size), reach, mode=mode)  # type: ignore[call-overload]
        found = _wrapped(index, torch.tensor([size, size]), torch.tensor([code, code]))
        assert found[:, 1].tolist() == padded.tolist(), mode


def test_halvings_are_means_and_mix_between_levels() -> None:
    stack = TextureStack([Texture(pixels([0, 40, 200, 200], [80, 120, 200, 200]))])
    assert stack.sizes[0].tolist() == [[4, 2], [2, 1], [1, 1]]
    # Half size: 60 and 200; one texel: 130. A sample that covers 4 texels reads the first, 16 the second.
    assert grey(stack, [0] * 4, [(0.25, 0.5)] * 4, [4, 16, 4096, 8]) == pytest.approx([60, 130, 130, 95])
    # What covers at most one texel reads the picture itself, whose middle of the left half is 60, too.
    assert grey(stack, [0] * 3, [(0.125, 0.25)] * 3, [0, 1, 4]) == pytest.approx([0, 0, 60 + 0.25 * 140], abs=1e-4)


def test_odd_sizes_are_halved_by_area() -> None:
    stack = TextureStack([Texture(pixels([0, 90, 180], [0, 90, 180], [0, 90, 180]))])
    assert stack.sizes[0].tolist() == [[3, 3], [1, 1]]
    assert grey(stack, [0], [(0.1, 0.1)], [9]) == pytest.approx([90], abs=1)


def test_pictures_of_any_size_are_looked_up_together() -> None:
    stack = TextureStack([Texture(pixels([10])), Texture(pixels([20, 20], [20, 20])), Texture(pixels([30, 30, 30]))])
    assert grey(stack, [2, 0, 1, 2], [(0.3, 0.6)] * 4, [1, 99, 99, 99]) == pytest.approx([30, 10, 20, 30])


def one_triangle(picture: np.ndarray, tints: np.ndarray) -> SkinPainter:
    vertices = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 1]], float)
    skin = Skin(np.zeros((3, 2), np.float32), np.zeros(3, np.int32), tints.astype(np.float32), (Texture(picture),))
    return SkinPainter(skin, vertices, np.array([[0, 1, 2]]))


def test_tint_is_a_product_in_linear_light() -> None:
    tints = np.array([[1, 0.5, 0], [1, 0.5, 0], [1, 0, 0]])
    painter = one_triangle(plain((188, 188, 188)), tints)
    # 188 is 0.5029 of linear white; half of that is 137 (0.2514), a quarter, midway between two corners, 98 (0.1257).
    weights = torch.tensor([[0.5, 0.5, 0], [0.5, 0, 0.5]])
    found = painter.paint(torch.zeros(2, 3), torch.tensor([0, 0]), weights)
    assert found[0].tolist() == pytest.approx([188, 137, 0], abs=0.6)
    assert found[1].tolist() == pytest.approx([188, 99, 0], abs=0.6)
    assert found[0, 1] == pytest.approx(255 * srgb_from_linear(linear_from_srgb(188 / 255) * 0.5), abs=1e-3)


def test_a_texture_of_one_level_stands_for_every_sample_area() -> None:
    painter = one_triangle(plain((1, 2, 3), 1), np.ones((3, 3)))
    found = painter.paint(torch.zeros(1, 3), torch.tensor([0]), torch.full((1, 3), 1 / 3), torch.tensor([1e9]))
    assert found.tolist() == [[1, 2, 3]]


# --- where it lands


@pytest.fixture(scope="module", params=["glb", "obj"])
def checkered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    write: Callable[[Path], Path] = checker_glb if request.param == "glb" else checker_obj
    return write(tmp_path_factory.mktemp("checker") / f"a.{request.param}")


@pytest.mark.parametrize("name", RENDERERS)
def test_each_colour_stands_in_its_corner_seen_from_every_side(checkered: Path, name: str) -> None:
    obj = load_object(checkered)
    cameras = [crop_camera(obj.vertices, azimuth, 0, 3.0) for azimuth in (0, 90, 180, 270)]
    for view in renderer(name, obj).views(cameras, 64):
        assert view[22, 22, :4].tolist() == [*RED, 255], "top left"
        assert view[22, 42, :4].tolist() == [*GREEN, 255], "top right"
        assert view[42, 22, :4].tolist() == [*BLUE, 255], "bottom left"
        assert view[42, 42, :4].tolist() == [*YELLOW, 255], "bottom right"


def test_the_evaluation_sees_the_same(checkered: Path) -> None:
    item = EvalObject.read("a", checkered)
    protocol = EvalProtocol(image_size=64)
    for azimuth in (0.0, 90.0, 180.0, 270.0):
        view = protocol.look(item.mesh, azimuth, 0.0)
        corners = [view[row, column].tolist() for row in (22, 42) for column in (22, 42)]
        assert corners == [[*color, 255] for color in (RED, GREEN, BLUE, YELLOW)]
    novel = protocol.novel_views(item.mesh)
    assert set(map(tuple, novel[0].flatten(1).T.round(decimals=3).tolist())) >= {
        tuple(np.round(np.array(color, np.float32) / 255, 3).tolist()) for color in (RED, GREEN, BLUE, YELLOW)
    }, "two sides and the top, all four colours"


def test_light_falls_on_the_picture(checkered: Path) -> None:
    item = EvalObject.read("a", checkered)
    unlit, lit = (EvalProtocol(image_size=48, light=light).look(item.mesh, 30.0, 20.0) for light in ("none", "soft"))
    assert np.array_equal(unlit[..., 3], lit[..., 3])
    solid = unlit[..., 3] == 255
    share = lit[solid][:, :3].sum(1) / unlit[solid][:, :3].sum(1)
    assert share.max() <= 1.01 and 0.5 < share.min() < 0.95 and np.ptp(share) > 0.05


def side_colors(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the checker says at world points on the cube's four upright sides, and whether it is not near a border."""
    x, y, z = positions.T
    right = np.where(np.abs(x) > 0.499, np.sign(x) * y, np.where(np.abs(y) > 0.499, -np.sign(y) * x, np.nan))
    top, left = z > 0, right < 0
    choice = np.where(top, np.where(left, 0, 1), np.where(left, 2, 3))
    inner = (np.abs(right) > 0.02) & (np.abs(z) > 0.02) & (np.abs(right) < 0.48) & (np.abs(z) < 0.48)
    return np.array([RED, GREEN, BLUE, YELLOW])[choice], inner


def test_surface_colours_are_the_pictures_at_the_points(checkered: Path) -> None:
    positions, colors = sample_surface(load_object(checkered), 3000, np.random.default_rng(0))
    expected, told = side_colors(positions)
    assert told.mean() == pytest.approx(4 / 6 * (0.92**2), abs=0.04)
    assert (colors[told] == expected[told]).all()
    mirrored, told = side_colors(positions * (1, -1, 1))
    assert (colors[told] == mirrored[told]).all(1).mean() < 0.1, "the check would see a mirrored picture"


def test_points_are_drawn_as_for_the_same_object_without_pictures(checkered: Path) -> None:
    obj = load_object(checkered)
    bare, _ = sample_surface(replace(obj, skin=None), 500, np.random.default_rng(1))
    assert np.array_equal(bare, sample_surface(obj, 500, np.random.default_rng(1))[0])


def two_materials(path: Path) -> Path:
    """Front and back textured, small noise on the right side, and vertex colours alone on the others."""
    maker, noise = GlbMaker(), np.random.default_rng(0).integers(0, 255, (96, 48, 3)).astype(np.uint8)
    for sides, picture in (((0, 2), plain(RED)), ((1,), noise)):
        vertices, faces, uvs = cube(sides)
        maker.primitive(vertices, faces, uvs, maker.material(maker.picture(picture), (1, 0.5, 1, 1)))
    vertices, faces, _ = cube((3, 4, 5))
    shades = np.random.default_rng(1).random((12, 3))
    return maker.primitive(vertices, faces, colors=shades).write(path)


def test_both_renderers_agree(tmp_path: Path) -> None:
    pytest.importorskip("embreex", reason="embreex is in the extra train")
    obj = load_object(two_materials(tmp_path / "a.glb"))
    cameras = [crop_camera(obj.vertices, a, e, 2.2) for a, e in ((20, 10), (75, -15), (140, 40), (300, 5))]
    theirs, ours = (r.views(cameras, 64).astype(int) for r in (Caster(obj), TorchCaster(obj)))
    solid = (ours[..., 3] == 255) & (theirs[..., 3] == 255)
    apart = np.abs(ours - theirs)[solid].max(1)
    assert solid.sum() > 5000 and (apart <= 1).mean() > 0.99 and (apart <= 6).mean() > 0.999


@pytest.mark.parametrize("name", RENDERERS)
def test_faces_without_a_picture_are_drawn_as_before(tmp_path: Path, name: str) -> None:
    obj = load_object(two_materials(tmp_path / "a.glb"))
    assert obj.skin is not None and sorted(set(obj.skin.slots.tolist())) == [-1, 0, 1]
    # Two sides with a picture stand before others whose colours are the vertices': those are the same bytes.
    camera = crop_camera(obj.vertices, 330.0, 35.0, 2.5)
    skinned, bare = (renderer(name, o).views([camera], 64)[0] for o in (obj, replace(obj, skin=None)))
    assert np.array_equal(skinned[..., 3:], bare[..., 3:])
    up = skinned[..., 5] > 200  # the top, whose normal points up in the picture
    assert up.sum() > 100 and np.array_equal(skinned[up], bare[up])


@pytest.mark.parametrize("name", RENDERERS)
def test_texels_finer_than_pixels_are_averaged(tmp_path: Path, name: str) -> None:
    board = (np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8)
    maker, (vertices, faces, uvs) = GlbMaker(), cube()
    maker.primitive(vertices, faces, uvs, maker.material(maker.picture(np.repeat(board[..., None], 3, -1))))
    obj = load_object(maker.write(tmp_path / "a.glb"))
    view = renderer(name, obj).views([crop_camera(obj.vertices, 20, 15, 2.5)], 48)[0].astype(float)
    solid = view[..., 3] == 255
    assert view[solid][:, 0] == pytest.approx(127.5, abs=3)


@pytest.mark.parametrize("name", RENDERERS)
def test_texels_larger_than_pixels_stay_sharp(checkered: Path, name: str) -> None:
    obj = load_object(checkered)
    view = renderer(name, obj).views([crop_camera(obj.vertices, 0, 0, 3.0)], 256)[0]
    row = view[70, :, 0].astype(int)  # red, then green, across the middle
    assert (np.abs(row[40:216] - RED[0]) < 2).sum() + (np.abs(row[40:216] - GREEN[0]) < 2).sum() >= 176 - 6


# --- recolouring, taking parts


def test_a_recoloured_picture_is_its_texels_through_the_table(checkered: Path) -> None:
    obj, table = load_object(checkered), random_recolor(np.random.default_rng(3))
    assert obj.skin is not None
    again = replace(obj, skin=obj.skin.recolored(table))
    _, before = sample_surface(obj, 2000, np.random.default_rng(0))
    positions, after = sample_surface(again, 2000, np.random.default_rng(0))
    told = side_colors(positions)[1]
    assert np.array_equal(after[told], recolored(before, table)[told])
    assert np.abs(after[told].astype(int) - before[told]).max() > 8
    assert np.array_equal(obj.skin.textures[0].pixels[0, 0], RED), "the object itself is as it was"


def test_a_recoloured_tint_is_near_the_recoloured_product() -> None:
    tints = np.tile([1.0, 0.4, 0.1], (3, 1))
    picture, table = plain((180, 120, 240)), random_recolor(np.random.default_rng(5))
    skin = Skin(np.zeros((3, 2), np.float32), np.zeros(3, np.int32), tints.astype(np.float32), (Texture(picture),))
    corners = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 1]], float), np.array([[0, 1, 2]])
    hit = torch.zeros(1, 3), torch.tensor([0]), torch.full((1, 3), 1 / 3)
    before, after = (SkinPainter(s, *corners).paint(*hit).round().numpy() for s in (skin, skin.recolored(table)))
    assert np.abs(after - recolored(before.astype(np.uint8), table)).max() <= 4
    assert np.abs(after - before).max() > 8


def test_unused_vertices_are_dropped_with_their_places() -> None:
    vertices = np.array([[9, 9, 9], [0, 0, 0], [1, 0, 0], [9, 9, 9], [0, 1, 0]], float)
    uvs = np.arange(10).reshape(5, 2).astype(np.float32)
    skin = Skin(uvs, np.zeros(5, np.int32), np.ones((5, 3), np.float32), (Texture(plain(RED)),))
    mesh = only_used(TexturedMesh(vertices, np.array([[1, 2, 4]]), np.full((5, 3), 0.5), skin=skin))
    kept = skin_of(mesh)
    assert kept is not None and kept.uvs.tolist() == [[2, 3], [4, 5], [8, 9]] and mesh.faces.tolist() == [[0, 1, 2]]
    assert skin_of(mesh.transformed(np.diag([2.0, 2, 2, 1]))) is kept
