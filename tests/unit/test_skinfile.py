"""Reading pictures from mesh files: factors, materials, wrapping, transforms, and what a broken picture says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from multiview.color import linear_from_srgb
from multiview.errors import MeshError
from tests.textured import (
    BLUE,
    CORNER_UVS,
    GREEN,
    RED,
    YELLOW,
    GlbMaker,
    checker,
    checker_glb,
    checker_obj,
    cube,
    plain,
    png,
    write_obj,
)
from train.objects import load_object
from train.points import sample_surface
from train.skinfile import _parsed_mtl, _side_for
from train.texturedmesh import read_textured, skin_of
from train.textures import Skin


def skin_of_file(path: Path, **options: Any) -> Skin:
    skin = skin_of(read_textured(path, **options))
    assert skin is not None
    return skin


def one_side(path: Path, **material: Any) -> Path:
    """The front of the cube with the checker."""
    maker, (vertices, faces, uvs) = GlbMaker(), cube((0,))
    wrap = material.pop("wrap", None)
    colors = material.pop("colors", None)
    number = maker.material(maker.picture(checker(), wrap), **material)
    return maker.primitive(vertices, faces, uvs, number, colors).write(path)


def shown(path: Path, count: int = 4000) -> set[tuple[int, ...]]:
    """All colours that cover at least one in fifty points of the surface."""
    colors, counts = np.unique(
        sample_surface(load_object(path), count, np.random.default_rng(0))[1], axis=0, return_counts=True
    )
    return {tuple(color) for color, n in zip(colors.tolist(), counts, strict=True) if n > count / 50}


# --- glTF


def test_a_glb_keeps_its_places_and_its_picture(tmp_path: Path) -> None:
    skin = skin_of_file(one_side(tmp_path / "a.glb"))
    assert skin.uvs.tolist() == CORNER_UVS.tolist() and skin.slots.tolist() == [0] * 4 and (skin.tints == 1).all()
    assert np.array_equal(skin.textures[0].pixels, checker()) and skin.textures[0].wrap == ("repeat", "repeat")


def test_factor_and_vertex_colour_are_multiplied_in_linear_light(tmp_path: Path) -> None:
    colors = np.tile([1.0, 0.5, 0.25], (4, 1))
    path = one_side(tmp_path / "a.glb", factor=(0.5, 1.0, 0.5, 0.3), colors=colors)
    assert skin_of_file(path).tints.tolist() == [[0.5, 0.5, 0.125]] * 4
    # Red 200 is 0.5776 of linear white; half of that is 0.2888 and shows as 146. Yellow's 30 in blue is 0.01298, an
    # eighth of that 0.00162 and shows as 5 (the straight part of the curve: 12.92 * 0.00162 * 255).
    colors = sample_surface(load_object(path), 2000, np.random.default_rng(0))[1]
    assert colors[:, 0].max() == 169 and 146 in colors[:, 0]  # and 230, 0.7913, halved shows as 169
    yellow = colors[colors[:, 0] == 169]
    assert 5 in yellow[:, 2]


def test_display_values_in_color_0_are_read_as_such(tmp_path: Path) -> None:
    maker, (vertices, faces, uvs) = GlbMaker(), cube((0,))
    maker.document["asset"]["extras"] = {"color": "srgb"}
    number = maker.material(maker.picture(checker()))
    maker.primitive(vertices, faces, uvs, number, np.full((4, 3), 0.5))
    assert skin_of_file(maker.write(tmp_path / "a.glb")).tints == pytest.approx(float(linear_from_srgb(0.5)), abs=1e-6)


def test_several_materials_keep_their_own_picture(tmp_path: Path) -> None:
    maker = GlbMaker()
    shared = maker.picture(plain(BLUE))
    for side, (texture, factor) in enumerate(
        ((maker.picture(plain(RED)), None), (shared, None), (shared, (0.25, 0.25, 0.25, 1)), (None, (0, 1, 0, 1)))
    ):
        vertices, faces, uvs = cube((side,))
        maker.primitive(vertices, faces, uvs, maker.material(texture, factor))
    path = maker.write(tmp_path / "a.glb")
    skin = skin_of_file(path)
    assert skin.slots.tolist() == [0] * 4 + [1] * 8 + [-1] * 4 and len(skin.textures) == 2
    # A quarter of 30 (0.01298) shows as 11, of 220 (0.7157) as 117.
    assert shown(path) == {RED, BLUE, (11, 11, 117), (0, 255, 0)}


def test_wrapping_is_the_sampler_s(tmp_path: Path) -> None:
    for number, name in ((33071, "clamp"), (33648, "mirror"), (10497, "repeat")):
        path = one_side(tmp_path / f"{name}.glb", wrap=(number, 10497))
        assert skin_of_file(path).textures[0].wrap == (name, "repeat")


def test_a_texture_transform_moves_the_picture(tmp_path: Path) -> None:
    # A quarter of the picture, its bottom right one: only yellow.
    moved = {"offset": [0.55, 0.55], "scale": [0.4, 0.4]}
    path = one_side(tmp_path / "a.glb", transform=moved)
    assert skin_of_file(path).uvs == pytest.approx(CORNER_UVS * 0.4 + 0.55)
    assert shown(path) == {YELLOW}


def test_places_far_out_are_brought_near_by_whole_pictures(tmp_path: Path) -> None:
    maker, (vertices, faces, uvs) = GlbMaker(), cube((0,))
    maker.primitive(vertices, faces, uvs + np.array([1024, -2048]), maker.material(maker.picture(checker())))
    skin = skin_of_file(maker.write(tmp_path / "a.glb"))
    assert skin.uvs.tolist() == CORNER_UVS.tolist()


def test_nodes_that_show_a_mesh_twice_and_mirrored(tmp_path: Path) -> None:
    maker, (vertices, faces, uvs) = GlbMaker(), cube((0,))
    maker.primitive(vertices, faces, uvs, maker.material(maker.picture(checker())))
    maker.document["nodes"] = [
        {"children": [1, 2]},
        {"mesh": 0},
        {"mesh": 0, "scale": [-1, 1, 1], "translation": [3, 0, 0]},
    ]
    path = maker.write(tmp_path / "a.glb")
    skin = skin_of_file(path)
    assert skin.uvs.tolist() == CORNER_UVS.tolist() * 2 and len(skin.textures) == 1
    positions, colors = sample_surface(load_object(path), 4000, np.random.default_rng(0))
    # The box is 4 wide: from -1/2 to -1/4 along world y the side itself, from 1/4 to 1/2 its mirror image.
    red = positions[(colors == RED).all(1)]
    first, second = red[red[:, 1] < 0], red[red[:, 1] > 0]
    assert first[:, 1].max() < -0.37 and second[:, 1].min() > 0.37 and (red[:, 2] > -0.01).all()


def test_a_picture_without_places_leaves_the_vertex_colours(tmp_path: Path) -> None:
    maker, (vertices, faces, _) = GlbMaker(), cube((0,))
    maker.primitive(vertices, faces, None, maker.material(maker.picture(checker()), (1, 0, 0, 1)))
    path = maker.write(tmp_path / "a.glb")
    assert load_object(path).skin is None and shown(path) == {(255, 0, 0)}


def test_a_see_through_picture_shows_the_colour_below(tmp_path: Path) -> None:
    rgba = np.concatenate([checker(), np.zeros((64, 64, 1), np.uint8)], -1)
    maker, (vertices, faces, uvs) = GlbMaker(), cube((0,))
    maker.primitive(vertices, faces, uvs, maker.material(maker.picture(png(rgba)), alphaMode="MASK", alphaCutoff=0.5))
    assert shown(maker.write(tmp_path / "a.glb")) == {RED, GREEN, BLUE, YELLOW}


def test_what_another_library_writes_is_read_the_same(tmp_path: Path) -> None:
    from PIL import Image

    vertices, faces, uvs = cube()
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(checker()))
    visual = trimesh.visual.TextureVisuals(uv=uvs * (1, -1) + (0, 1), material=material)
    trimesh.Trimesh(vertices, faces, visual=visual, process=False).export(tmp_path / "theirs.glb")
    ours = sample_surface(load_object(checker_glb(tmp_path / "ours.glb")), 500, np.random.default_rng(0))
    theirs = sample_surface(load_object(tmp_path / "theirs.glb"), 500, np.random.default_rng(0))
    assert np.allclose(ours[0], theirs[0], atol=1e-6) and np.array_equal(ours[1], theirs[1])


# --- size


def test_large_pictures_are_shrunk_by_area(tmp_path: Path) -> None:
    skin = skin_of_file(checker_glb(tmp_path / "a.glb"), largest_side=2)
    assert skin.textures[0].pixels.tolist() == [[list(RED), list(GREEN)], [list(BLUE), list(YELLOW)]]
    maker, (vertices, faces, uvs) = GlbMaker(), cube((0,))
    wide = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], 3, -1)  # 100 x 1
    maker.primitive(vertices, faces, uvs, maker.material(maker.picture(wide)))
    small = skin_of_file(maker.write(tmp_path / "b.glb"), largest_side=50).textures[0].pixels
    assert small.shape == (1, 50, 3) and small[0, :3, 0].tolist() == [1, 5, 9]


def test_many_pictures_share_the_room_of_sixteen() -> None:
    assert [_side_for(n, 2048) for n in (0, 1, 16, 64)] == [2048, 2048, 2048, 1024]
    assert all(n * _side_for(n, 2048) ** 2 <= 16 * 2048**2 for n in (17, 30, 1000, 10**9)[:3])


def test_sixty_four_pictures_are_each_half_as_large(tmp_path: Path) -> None:
    maker, (vertices, faces, uvs) = GlbMaker(), cube((0,))
    for index in range(64):
        maker.primitive(vertices, faces, uvs, maker.material(maker.picture(plain((index, 0, 0), 8))))
    skin = skin_of_file(maker.write(tmp_path / "a.glb"), largest_side=8)
    assert len(skin.textures) == 64 and {t.pixels.shape for t in skin.textures} == {(4, 4, 3)}


# --- OBJ and MTL


def test_an_obj_keeps_its_places_v_down(tmp_path: Path) -> None:
    path = checker_obj(tmp_path / "a.obj")
    skin, mesh = skin_of_file(path), read_textured(path)
    assert np.array_equal(skin.textures[0].pixels, checker()) and (skin.slots == 0).all()
    # The corner at the picture's top left, seen from the front: world x 1/2, y -1/2, z 1/2.
    corner = (np.abs(mesh.vertices - (0.5, -0.5, 0.5)) < 1e-6).all(1)
    assert [0.0, 0.0] in skin.uvs[corner].tolist()
    assert shown(path) == {RED, GREEN, BLUE, YELLOW}
    # Its vertices have the colour that the picture shows there: as it repeats, all four colours meet at a corner.
    meet = np.mean([RED, GREEN, BLUE, YELLOW], axis=0) / 255
    assert mesh.colors == pytest.approx(np.tile(meet, (len(mesh.colors), 1)), abs=1e-6)


def test_corners_that_sides_share_are_split_at_the_seams(tmp_path: Path) -> None:
    apart = checker_obj(tmp_path / "a.obj")
    positions = list(dict.fromkeys(map(tuple, cube()[0].tolist())))  # the cube's eight corners, once each
    number = [positions.index(tuple(v)) + 1 for v in cube()[0].tolist()]
    lines = apart.read_text().splitlines()
    joined = [line for line in lines if line[:2] not in ("v ", "f ")]
    joined += ["v {} {} {}".format(*p) for p in positions]
    joined += [
        "f " + " ".join(f"{number[int(v) - 1]}/{t}" for v, t in (c.split("/") for c in line.split()[1:]))
        for line in lines if line[:2] == "f "
    ]  # fmt: skip
    (tmp_path / "b.obj").write_text("\n".join(joined))
    assert len(positions) == 8
    one, other = (sample_surface(load_object(tmp_path / n), 500, np.random.default_rng(0)) for n in ("a.obj", "b.obj"))
    assert np.allclose(one[0], other[0], atol=1e-6) and np.array_equal(one[1], other[1])


def test_an_obj_of_several_materials(tmp_path: Path) -> None:
    for name, color in (("r.png", RED), ("b.png", BLUE)):
        (tmp_path / name).write_bytes(png(plain(color)))
    mtl = (
        "newmtl red\nmap_Kd r.png\nnewmtl dim blue\nKd 0.5 0.5 0.5\nmap_Kd C:\\art\\b.png\n"
        "newmtl black kd\nKd 0 0 0\nmap_Kd b.png\nnewmtl bare\nKd 0 1 0\n"
    )
    sides = {"red": (0,), "dim blue": (1, 2), "black kd": (3,), "bare": (4, 5)}
    path = write_obj(tmp_path / "a.obj", sides, mtl)
    # Kd 0.5 is 0.2140 of linear light; times 0.7157 (220) it shows as 109, times 0.01298 (30) as 9.
    assert shown(path) == {RED, BLUE, (9, 9, 109), (0, 255, 0)}


def test_options_of_map_kd_by_hand() -> None:
    text = (
        "NewMtl one\n\tMAP_KD  -s 2 3 1 -o 0.5 -clamp on -bm 0.2 bricks red 2.png\n"
        "newmtl two\nmap_Kd a.png\nKd 0.1 0.2 .3"
    )
    one, two = _parsed_mtl(text).values()
    assert (one.picture, one.wrap, one.scale, one.offset) == ("bricks red 2.png", "clamp", [2, 3], [0.5, 0])
    assert (two.picture, two.wrap, two.kd) == ("a.png", "repeat", (0.1, 0.2, 0.3))


def test_options_of_map_kd_move_the_picture(tmp_path: Path) -> None:
    (tmp_path / "c.png").write_bytes(png(checker()))
    # v runs up in an MTL: the lower left quarter of the picture is blue, moved up by a half it is red.
    for offset, color in (("0.05 0.05", BLUE), ("0.05 0.55", RED), ("0.55 0.05", YELLOW)):
        mtl = f"newmtl m\nmap_Kd -s 0.4 0.4 -o {offset} c.png\n"
        assert shown(write_obj(tmp_path / "a.obj", {"m": range(6)}, mtl)) == {color}


def test_formats_and_files_without_pictures_have_no_skin(tmp_path: Path) -> None:
    box = trimesh.creation.box((1, 2, 3))
    box.export(tmp_path / "a.ply")
    box.export(tmp_path / "bare.obj", include_texture=False)
    assert load_object(tmp_path / "a.ply").skin is None and load_object(tmp_path / "bare.obj").skin is None
    no_library = write_obj(tmp_path / "c.obj", {"m": range(6)}, "")
    no_library.with_suffix(".mtl").unlink()
    assert load_object(no_library).skin is None
    assert load_object(write_obj(tmp_path / "d.obj", {"m": range(6)}, "newmtl m\nKd 1 0 0\n")).skin is None


# --- what cannot be read


@pytest.mark.parametrize("data", [b"", b"not a picture", png(checker())[:90], png(checker())[:-200]], ids=range(4))
def test_a_broken_picture_is_named_with_its_file(tmp_path: Path, data: bytes) -> None:
    maker, (vertices, faces, uvs) = GlbMaker(), cube()
    maker.primitive(vertices, faces, uvs, maker.material(maker.picture(data or b" ")))
    with pytest.raises(MeshError, match=r"broken\.glb: .*image 0.*decoded"):
        load_object(maker.write(tmp_path / "broken.glb"))
    path = checker_obj(tmp_path / "broken.obj")
    (tmp_path / "four colours.png").write_bytes(data)
    with pytest.raises(MeshError, match=r"broken\.obj: .*four colours\.png is no picture"):
        load_object(path)


def test_a_missing_picture_is_named_with_its_file(tmp_path: Path) -> None:
    path = checker_obj(tmp_path / "gone.obj")
    (tmp_path / "four colours.png").unlink()
    with pytest.raises(MeshError, match=r"gone\.obj: .*four colours\.png.*Export it again"):
        load_object(path)
    document = GlbMaker()
    vertices, faces, uvs = cube()
    document.primitive(vertices, faces, uvs, document.material(document.picture(checker())))
    document.document["images"][0] = {"uri": "gone.png"}
    with pytest.raises(MeshError, match=r"gone\.glb: .*gone\.png cannot be read"):
        load_object(document.write(tmp_path / "gone.glb"))


def test_a_broken_picture_is_skipped_with_its_reason(tmp_path: Path) -> None:
    from train.prepare import main

    checker_glb(tmp_path / "in" / "good.glb", 8)
    maker, (vertices, faces, uvs) = GlbMaker(), cube()
    maker.primitive(vertices, faces, uvs, maker.material(maker.picture(b"no picture")))
    maker.write(tmp_path / "in" / "bad.glb")
    small = ["--views", "1", "--image-size", "16", "--points", "64", "--surface", "32"]
    assert main([str(tmp_path / "in"), "-o", str(tmp_path / "out"), *small]) == 0
    assert json.loads((tmp_path / "out" / "objects.json").read_text())["names"] == ["good"]
    assert "bad.glb" in json.loads((tmp_path / "out" / "skipped.json").read_text())["bad"]
