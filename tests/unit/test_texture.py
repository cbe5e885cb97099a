"""The last colours of a surface: which picture shows where, what is trusted, and what comes out at the front door."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrm.field import FunctionField
from lrm.mesh import Mesh
from lrm.symmetry import MirrorPlane
from multiview.cameras import orbit
from multiview.errors import SettingsError
from multiview.views import Views
from trilift import ImageTo3D, LiftSettings
from trilift.cli import build_parser
from trilift.texture import (
    CONFIDENCE,
    Pictures,
    SurfacePainter,
    TextureOptions,
    confidence_sheet,
    finished,
    shares,
)

EXAMPLES = Path(__file__).parents[2] / "trilift" / "examples"
GREY = FunctionField(lambda p: (20 - 20 * p.norm(dim=-1)).clamp(min=0), lambda p: torch.full_like(p, 0.5))


def ball(level: int = 4, stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Mesh:
    import trimesh

    shape = trimesh.creation.icosphere(level, 0.5)
    return Mesh(shape.vertices * stretch, shape.faces, np.full((len(shape.vertices), 3), 0.5))


def picture(mesh: Mesh, azimuth_deg: float, paint: Any, size: int = 128) -> Views:
    """The mesh from there, its colours ``paint`` of its places (N, 3)."""
    from lrm.raster import render_mesh

    camera = orbit(azimuth_deg, 0.0, 3.0, 30.0)
    return render_mesh(replace(mesh, colors=paint(mesh.vertices)), camera, size)


def plain(color: tuple[float, float, float]) -> Any:
    return lambda places: np.tile(np.float32(color), (len(places), 1))


def by_side(axis: int) -> Any:
    """Red where a coordinate is positive, blue elsewhere."""
    return lambda places: np.where((places[:, axis] > 0)[:, None], np.float32([1, 0, 0]), np.float32([0, 0, 1]))


def colored(painter: SurfacePainter, mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    layers = painter(mesh.vertices, mesh.normals, mesh.colors, painter.tone)
    return layers.color, layers.confidence


def test_the_photo_shows_where_it_sees_and_its_tone_elsewhere() -> None:
    mesh = ball()
    options = TextureOptions("baked", 256, project=True, way="box", mirror=False)
    result, record = finished(
        mesh, GREY, Pictures(picture(mesh, 0.0, plain((0.9, 0.5, 0.3)), 512)), options, threshold=10.0
    )
    assert result.texture is not None and result.texture.shape == (256, 256, 3) and result.uvs is not None
    x, colors = result.vertices[:, 0], result.colors
    assert colors[x > 0.35] == pytest.approx(np.tile((0.9, 0.5, 0.3), (int((x > 0.35).sum()), 1)), abs=0.01)
    # Far behind half of the tone is left: 0.5 + 0.5 * 0.4, 0.5 and 0.5 - 0.5 * 0.2.
    assert colors[x < -0.45].mean(0) == pytest.approx((0.7, 0.5, 0.4), abs=0.03)
    corner = np.round(result.uvs * 256 - 0.5).astype(int).clip(0, 255)
    texels = result.texture[255 - corner[:, 1], corner[:, 0]] / 255
    assert np.abs(texels - colors).max() < 0.05  # texture and vertices say the same
    # From 3 away, the ball is seen as far as x = 0.25 / 3: (0.5 - 0.083) / 1 of its surface, less the last pixel's rim.
    assert 0.37 < record["seen_fraction"] < 0.42
    assert record["seen_fraction"] + record["supported_fraction"] + record["invented_fraction"] == pytest.approx(1)
    assert record["unwrap"]["way"] == "box" and record["pictures"][0]["scale"] == 1.0


def test_without_projecting_the_field_alone_shows() -> None:
    mesh = ball(3)
    photo = Pictures(picture(mesh, 0.0, plain((1.0, 0.0, 0.0))))
    result, record = finished(mesh, GREY, photo, TextureOptions("baked", 128, way="box"), threshold=10.0)
    assert result.texture is not None and (np.abs(result.texture.astype(int) - 128) <= 1).all()
    assert result.attributes is None and "seen_fraction" not in record


def test_vertices_are_painted_without_a_texture() -> None:
    mesh = ball(3)
    photo = Pictures(picture(mesh, 0.0, plain((1.0, 0.0, 0.0))))
    result, record = finished(mesh, GREY, photo, TextureOptions("vertex", project=True), threshold=10.0)
    assert result.texture is None and np.array_equal(result.faces, mesh.faces) and "unwrap" not in record
    assert result.colors[mesh.vertices[:, 0] > 0.4] == pytest.approx(np.float32([1, 0, 0]) + 0 * result.colors[
        mesh.vertices[:, 0] > 0.4], abs=0.01)  # fmt: skip
    confidence = (result.attributes or {})[CONFIDENCE]
    assert confidence[mesh.vertices[:, 0] > 0.4].min() > 0.9 and confidence[mesh.vertices[:, 0] < 0].max() == 0


def test_what_is_alike_on_both_sides_is_mirrored() -> None:
    # An egg that lies along y; seen from 45 degrees, its far half is alike: red above, blue below.
    mesh = ball(4, (0.7, 1.3, 1.0))
    truth = by_side(2)(mesh.vertices)
    mesh = Mesh(mesh.vertices, mesh.faces, 0.5 + 0.9 * (truth - 0.5))  # the network's guess is a little pale
    photo = Pictures(picture(mesh, 40.0, by_side(2)))
    painter = SurfacePainter(mesh, photo)
    assert painter.mirrors and all(0 < m.trust <= 1 and m.twice >= 0.05 for m in painter.mirrors)
    normals = sorted(m.told()["normal_azimuth_deg"] % 90 for m in painter.mirrors)
    assert all(min(n, 90 - n) < 3 for n in normals)
    color, confidence = colored(painter, mesh)
    bare, _ = colored(SurfacePainter(mesh, photo, mirror=False), mesh)
    supported = (confidence > 0.3) & (confidence <= 0.5)
    assert supported.mean() > 0.05
    error, before = (np.abs(each - truth)[supported].mean() for each in (color, bare))
    assert error < 0.5 * before


@pytest.mark.parametrize("guess", [0.9, 0.4], ids=["near", "far"])
def test_a_mirror_must_not_be_far_from_what_the_field_guesses(guess: float) -> None:
    # As above; but when the network says clearly that behind is another colour, left and right being alike is no proof.
    mesh = ball(4, (0.7, 1.3, 1.0))
    truth = by_side(2)(mesh.vertices)
    behind = mesh.vertices @ (np.cos(np.deg2rad(40)), np.sin(np.deg2rad(40)), 0) < 0.05
    colors = np.where(behind[:, None], 0.5 + guess * (truth - 0.5), truth)
    painter = SurfacePainter(Mesh(mesh.vertices, mesh.faces, colors), Pictures(picture(mesh, 40.0, by_side(2))))
    assert any(mirror.trust > 0 for mirror in painter.mirrors) == (guess == 0.9)


@pytest.mark.parametrize(
    ("planes", "error", "off_guess", "trusted"),
    [
        (["back"], 0.0, 0.009, []),
        (["back", "side"], 0.0, 0.02, ["back"]),
        (["back", "side"], 0.0, 0.04, []),
        (["back", "side"], 0.016, 0.02, []),
    ],
    ids=["nobody-vouches", "vouched-for", "too-far", "by-one-that-fits-badly"],
)
def test_who_vouches_for_a_mirror_between_front_and_back(
    monkeypatch: pytest.MonkeyPatch, planes: list[str], error: float, off_guess: float, trusted: list[str]
) -> None:
    # Seen from the front, a ball: what is behind is shown by the plane across x alone, and nothing of both its sides is
    # seen; the plane across y shows hardly anything new, and the photo finds its sides alike.
    known = {"back": MirrorPlane((1.0, 0.0, 0.0), 0.0, 0.0), "side": MirrorPlane((0.0, 1.0, 0.0), 0.0, error)}
    painter = SurfacePainter(ball(), Pictures(picture(ball(), 0.0, plain((0.5, 0.5, 0.5)))), mirror=False)
    looked = {name: painter._looked_at(plane) for name, plane in known.items()}
    assert looked["back"].difference is None and looked["back"].fills > 0.2 and looked["back"].off_guess < 0.005
    assert looked["side"].difference == pytest.approx(0, abs=0.002) and looked["side"].twice > 0.2
    looked["side"] = replace(looked["side"], fills=0.0)  # 0.017 of the surface, for a pixel's rim
    told = {known[name]: replace(each, off_guess=off_guess) for name, each in looked.items()}
    monkeypatch.setattr(painter, "_looked_at", told.__getitem__)
    judged = painter._judged([known[name] for name in planes])
    assert [each.plane for each in judged if each.trust > 0] == [known[name] for name in trusted]


@pytest.mark.parametrize(
    ("apart", "wanted"), [(0.1, (0.5, 0.5)), (0.6, (0.8, 0.2))], ids=["nearly-alike", "quite-different"]
)
def test_guesses_of_what_nobody_sees_are_evened_over_a_mirror(apart: float, wanted: tuple[float, float]) -> None:
    # An egg from its end, left and right alike in the photo; behind, the network guesses one side lighter.
    mesh = ball(4, (1.3, 0.7, 1.0))
    behind, left = mesh.vertices[:, 0] < -0.1, mesh.vertices[:, 1] > 0
    guessed = 0.5 + np.where(behind, np.where(left, apart / 2, -apart / 2), 0.0)
    mesh = Mesh(mesh.vertices, mesh.faces, np.repeat(guessed[:, None], 3, 1))
    painter = SurfacePainter(mesh, Pictures(picture(mesh, 0.0, plain((0.5, 0.5, 0.5)))))
    side = [each for each in painter.mirrors if abs(each.plane.normal[1]) > 0.9]
    assert len(side) == 1 and side[0].evens == 1 and side[0].fills < 0.03  # it shows hardly anything new
    color, confidence = colored(painter, mesh)
    clear = behind & (np.abs(mesh.vertices[:, 1]) > 0.1)
    found = [color[clear & (left == which)].mean() for which in (True, False)]
    assert found == pytest.approx(wanted, abs=0.02)
    assert confidence[clear].max() == 0  # still invented
    assert painter.record()["mirrors"][0]["evens"] == 1.0


@pytest.mark.parametrize(("error", "evens"), [(0.0, 1.0), (0.02, 0.5), (0.03, 0.0)], ids=["fits", "half", "badly"])
def test_mirrors_that_fit_badly_even_nothing(error: float, evens: float) -> None:
    painter = SurfacePainter(ball(), Pictures(picture(ball(), 0.0, plain((0.5, 0.5, 0.5)))), mirror=False)
    found = painter._judged([MirrorPlane((0.0, 1.0, 0.0), 0.0, error)])
    assert sum(each.evens for each in found) == pytest.approx(evens, abs=1e-6)


def test_sides_that_differ_are_not_mirrored() -> None:
    # Left red, right blue: the plane through x and z mirrors the shape, and the photo shows that colours differ.
    mesh = ball(4, (1.3, 0.7, 1.0))
    photo = Pictures(picture(mesh, 0.0, by_side(1)))
    painter = SurfacePainter(mesh, photo)
    assert all(abs(m.plane.normal[1]) < 0.9 for m in painter.mirrors)
    color, _ = colored(painter, mesh)
    bare, _ = colored(SurfacePainter(mesh, photo, mirror=False), mesh)
    assert np.abs(color - bare).max() < 0.02


def test_generated_views_count_where_the_field_agrees() -> None:
    mesh = ball(4, (1.3, 0.7, 1.0))
    photo = picture(mesh, 0.0, plain((0.5, 0.5, 0.5)))
    back = mesh.vertices[:, 0] < -0.6
    near = Pictures(photo, generated=picture(mesh, 180.0, plain((0.55, 0.5, 0.45)), 256))
    color, confidence = colored(SurfacePainter(mesh, near, mirror=False), mesh)
    assert color[back].mean(0) == pytest.approx((0.55, 0.5, 0.45), abs=0.01)
    assert confidence[back].min() > 0.4 and confidence[back].max() <= 0.5
    far = Pictures(photo, generated=picture(mesh, 180.0, plain((1.0, 0.0, 0.0)), 256))
    color, confidence = colored(SurfacePainter(mesh, far, mirror=False), mesh)
    assert color[back] == pytest.approx(np.full((int(back.sum()), 3), 0.5), abs=0.01) and confidence[back].max() == 0


def test_photographs_of_other_sides_count_as_seen() -> None:
    mesh = ball()
    both = Pictures(picture(mesh, 0.0, plain((1.0, 0.0, 0.0))), photos=picture(mesh, 180.0, plain((0.0, 0.0, 1.0))))
    color, confidence = colored(SurfacePainter(mesh, both), mesh)
    front, back = mesh.vertices[:, 0] > 0.35, mesh.vertices[:, 0] < -0.35
    assert np.allclose(color[front], (1, 0, 0), atol=0.01) and confidence[front].min() > 0.9
    assert np.allclose(color[back], (0, 0, 1), atol=0.01) and confidence[back].min() > 0.9


def test_what_is_seen_at_a_slant_is_blended_with_what_was_there() -> None:
    # From 3 away the ball is seen as far as x = 0.083; at x = 0.2 to 0.3 it is turned by 53 to 66 degrees, and more.
    mesh = ball()
    painter = SurfacePainter(mesh, Pictures(picture(mesh, 0.0, plain((1.0, 0.0, 0.0)))), mirror=False)
    color = painter(mesh.vertices, mesh.normals, mesh.colors, 0 * painter.tone).color  # the tone would hide the blend
    away, slanted = mesh.vertices[:, 0] < 0.05, (mesh.vertices[:, 0] > 0.2) & (mesh.vertices[:, 0] < 0.3)
    assert color[away] == pytest.approx(np.full((int(away.sum()), 3), 0.5), abs=1e-6)
    assert ((color[slanted, 0] > 0.5) & (color[slanted, 0] < 1)).all()


def test_nothing_to_look_at_leaves_the_field() -> None:
    mesh = ball(2)
    color, confidence = colored(SurfacePainter(mesh, Pictures()), mesh)
    assert np.allclose(color, 0.5) and confidence.max() == 0


def test_shares_are_of_the_surface() -> None:
    # A face of area 2 seen at all corners, one of area 1 supported, one of area 1 invented.
    corners = np.array(
        [[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 0], [0, 1, 0], [0, 0, 2]]
    )
    confidence = np.array([1, 0.7, 0.51, 0.5, 0.3, 0.2, 0.0, 0.0, 0.05], np.float32)
    mesh = Mesh(corners, np.arange(9).reshape(3, 3), np.full((9, 3), 0.5), attributes={CONFIDENCE: confidence})
    assert shares(mesh) == {"seen_fraction": 0.5, "supported_fraction": 0.25, "invented_fraction": 0.25}


def test_the_preview_shows_three_sides() -> None:
    mesh = ball(2)
    confidence = (mesh.vertices[:, 0] > 0).astype(np.float32)
    shown = confidence_sheet(Mesh(mesh.vertices, mesh.faces, mesh.colors, attributes={CONFIDENCE: confidence}), 64)
    assert shown.shape == (64, 192, 3)
    front, behind = shown[32, 32].astype(int), shown[32, 160].astype(int)
    assert front[1] > front[0] + 40 and abs(behind[1] - behind[0]) < 10  # green, and grey


def test_settings_say_when_and_how_much() -> None:
    plain_, baked = LiftSettings(), LiftSettings(texture="baked")
    assert plain_.face_budget is None and plain_.projects and not LiftSettings(threshold="median").projects
    assert (
        baked.face_budget == 20_000 and baked.projects and LiftSettings(texture="baked", faces=500).face_budget == 500
    )
    assert LiftSettings(project="on").projects and not LiftSettings(texture="baked", project="off").projects
    for wrong, said in (
        ({"texture": "painted"}, "vertex or baked"),
        ({"texture_size": 8}, "16 to 8192"),
        ({"project": "maybe"}, "auto or on or off"),
    ):
        with pytest.raises(SettingsError, match=said):
            LiftSettings(**wrong)  # type: ignore[arg-type]


def test_the_command_line_takes_them() -> None:
    asked = ["lift", "a.png", "-o", "out", "--texture", "baked", "--texture-size", "512", "--project", "off"]
    args = build_parser().parse_args(asked)
    assert (args.texture, args.texture_size, args.project) == ("baked", 512, "off")


@pytest.fixture(scope="module")
def lifted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """One of the examples with a small texture, saved."""
    asset = ImageTo3D.from_pretrained("tiny")(
        sorted(EXAMPLES.glob("*.png"))[0], resolution=48, faces=2000, texture="baked", texture_size=128
    )
    folder = tmp_path_factory.mktemp("lifted") / "object"
    asset.save(folder, formats=("glb", "ply"))
    return asset, folder


def test_a_lift_with_a_texture_says_what_was_seen(lifted: tuple[Any, Path]) -> None:
    _, folder = lifted
    record = json.loads((folder / "asset.json").read_text())
    assert record["texture"]["unwrap"]["size"] == 128 and len(record["texture"]["pictures"]) == 1
    assert 0.1 < record["checks"]["seen_fraction"] == record["texture"]["seen_fraction"] < 0.7
    assert record["checks"]["watertight"] is True  # seams are no holes
    assert (folder / "seen.png").stat().st_size > 500


def test_other_programs_read_the_texture_and_the_confidence(lifted: tuple[Any, Path]) -> None:
    import trimesh
    from pygltflib import GLTF2

    asset, folder = lifted
    document = GLTF2().load(str(folder / "mesh.glb"))
    assert document.materials[0].pbrMetallicRoughness.baseColorTexture.index == 0
    assert getattr(document.meshes[0].primitives[0].attributes, "_CONFIDENCE", None) is not None
    read = trimesh.load(str(folder / "mesh.glb"), force="mesh", process=False)
    shown = np.asarray(read.visual.material.baseColorTexture.convert("RGB"))
    assert np.array_equal(shown, asset.mesh.texture)
    down = 1 - np.asarray(read.visual.uv)[:, 1]  # trimesh turns v up
    assert 1 - down == pytest.approx(asset.mesh.uvs[:, 1], abs=1e-6)
    ply = (folder / "mesh.ply").read_bytes()[:2000]
    assert b"property float confidence" in ply


def test_a_baked_lift_is_the_same_each_time(lifted: tuple[Any, Path]) -> None:
    asset, _ = lifted
    again = ImageTo3D.from_pretrained("tiny")(
        sorted(EXAMPLES.glob("*.png"))[0], resolution=48, faces=2000, texture="baked", texture_size=128
    )
    assert np.array_equal(again.mesh.texture, asset.mesh.texture) and np.array_equal(again.mesh.uvs, asset.mesh.uvs)
