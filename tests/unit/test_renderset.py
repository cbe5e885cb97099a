"""`train.render` as a command: landmarks land where the cameras say, and broken meshes never stop it."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrm.mesh import Mesh
from lrm.meshfile import write_mesh
from multiview.camerafile import read_views
from multiview.cameras import orbit, project
from multiview.errors import MeshError, SettingsError
from train.layouts import LENS_FOV_DEG, find_posed, read_posed
from train.renderset import (
    Job,
    RenderSettings,
    build_parser,
    find_jobs,
    lit,
    main,
    place_cameras,
    render_folder,
    run_jobs,
    settings_of,
)
from train.usdfile import read_usd

QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
FACES = np.array([t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))])
CORNERS = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
SMALL = ["--image-size", "32", "--points", "256", "--surface", "16", "--views", "4"]


def box(low: tuple[float, ...], high: tuple[float, ...], color: tuple[float, ...]) -> Mesh:
    return Mesh(np.array(low) + CORNERS * (np.array(high) - low), FACES, np.tile(color, (8, 1)))


def joined(*parts: Mesh) -> Mesh:
    offsets = np.cumsum([0, *(len(p.vertices) for p in parts)])
    faces = np.concatenate([p.faces + o for p, o in zip(parts, offsets, strict=False)])
    return Mesh(np.concatenate([p.vertices for p in parts]), faces, np.concatenate([p.colors for p in parts]))


# A grey body of longest side 1 about the origin with a red knob at +x and a blue one on top.
BODY = joined(
    box((-0.5, -0.2, -0.3), (0.4, 0.2, 0.2), (0.5, 0.5, 0.5)),
    box((0.4, -0.05, -0.05), (0.5, 0.05, 0.05), (1, 0, 0)),
    box((-0.05, -0.05, 0.2), (0.05, 0.05, 0.3), (0, 0, 1)),
)


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    write_mesh(BODY, tmp_path / "in" / "body.glb")
    return tmp_path / "in"


def run(*words: object) -> int:
    return main([str(word) for word in words])


def test_landmarks_land_where_the_cameras_say(meshes: Path, tmp_path: Path) -> None:
    azimuths = "--azimuths=10,-60,75,180"
    assert run(meshes, "-o", tmp_path / "out", *SMALL[:6], azimuths, "--elevations=25", "--light=none") == 0
    views = read_views(tmp_path / "out" / "body")  # what the rest of the house reads
    assert torch.allclose(views.cameras.c2w, orbit([10, -60, 75, 180], 25, 2.6, 40).c2w, atol=1e-5)
    knobs = torch.tensor([[0.5, 0.0, 0.0], [0.0, 0.0, 0.3]])
    uv, _ = project(views.cameras, knobs)
    for view, knob, channel in ((0, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 2), (1, 1, 2), (2, 1, 2), (3, 1, 2)):
        column, row = (uv[view, knob] * 32).int().tolist()
        around = views.composite(0.0)[view, :, row - 1 : row + 2, column - 1 : column + 2].amax((1, 2))
        assert around[channel] > 0.8 and around[2 - channel] < 0.6, (view, knob, around)
    assert views.images[3, 0].max() < 0.6  # from behind no red is seen
    assert (views.alpha[:, :, 0] == 0).all() and views.alpha.max() == 1


def test_what_is_on_disk(meshes: Path, tmp_path: Path) -> None:
    assert run(meshes, "-o", tmp_path / "out", *SMALL, "--depth", "--normals") == 0
    folder = tmp_path / "out" / "body"
    obj = read_posed(folder)
    assert len(obj) == 4 and obj.scene_radius == 0.5 and obj.layout == "transforms"
    assert [one.name for one in find_posed(tmp_path / "out")] == ["body"]
    points = obj.labelled_points()
    assert points is not None and points.inside.shape == (256,) and points.surface.shape == (16, 3)
    within = (np.abs(points.points.astype(float)) < 0.55).all(1)
    assert 0.02 < points.inside[within].mean() < 0.6
    depth = np.load(folder / "depth" / "000.npy")
    rgba = np.array(Image.open(folder / "rgba" / "000.png"))
    assert depth.dtype == np.float32 and ((depth > 0) == (rgba[..., 3] > 127)).mean() > 0.97
    assert 2.6 - 0.75 < depth[depth > 0].min() < depth.max() < 2.6 + 0.75
    normal = (np.array(Image.open(folder / "normal" / "000.png")).astype(float) - 128) / 127
    seen = rgba[..., 3] == 255
    assert np.linalg.norm(normal[seen][:, :3], axis=1) == pytest.approx(1, abs=0.03)
    assert (normal[seen][:, 2] > -0.1).all()  # toward the camera
    document = json.loads((folder / "transforms.json").read_text())
    assert document["camera_model"] == "PINHOLE" and document["frames"][0]["depth_file_path"] == "depth/000.npy"
    assert document["frames"][0]["fl_x"] == pytest.approx(16 / math.tan(math.radians(20)))


def test_light_by_hand() -> None:
    placed = place_cameras(RenderSettings(azimuth_deg=(0,), elevation_deg=(0,)), np.random.default_rng(0))
    view = np.zeros((1, 1, 2, 7), np.uint8)
    # A white surface that faces up, seen from the horizon: the camera's up is the world's; the other pixel is empty.
    view[0, 0, 0] = (255, 255, 255, 255, 128, 255, 128)
    up, side = (lit(view, placed, np.array(sun))[0, 0] for sun in ((0, 0, 1), (0, 1, 0)))
    assert up[0].tolist() == [255, 255, 255, 255]  # 0.35 + 0.25 + 0.55 is more than white
    # 0.6 of linear light is 1.055 * 0.6^(1 / 2.4) - 0.055 = 0.798 of display.
    assert side[0].tolist() == [203, 203, 203, 255] and up[1].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("preset", "count", "fov"),
    [("zero123", 12, LENS_FOV_DEG), ("syncdreamer", 16, LENS_FOV_DEG), ("zero123plus", 6, 30.0), ("free", 24, 40.0)],
)
def test_presets_are_the_published_cameras(preset: str, count: int, fov: float) -> None:
    placed = place_cameras(RenderSettings(preset), np.random.default_rng(0))
    assert len(placed.azimuth_deg) == count and placed.fov_deg == (fov,) * count
    if preset == "syncdreamer":
        assert placed.azimuth_deg[3] == 67.5 and set(placed.elevation_deg) == {30} and set(placed.distance) == {1.5}
        # fx = 280 at 256 px (facts 5.1)
        assert placed.cameras.intrinsics[0, 0, 0].item() * 256 == pytest.approx(280, abs=0.01)
    if preset == "zero123plus":
        assert placed.elevation_deg == (20, -10, 20, -10, 20, -10) and placed.azimuth_deg[0] == 30
    if preset == "zero123":
        assert 1.5 <= min(placed.distance) < max(placed.distance) <= 2.2 and min(placed.elevation_deg) < -20


def test_random_cameras_depend_on_seed_and_name(meshes: Path, tmp_path: Path) -> None:
    write_mesh(BODY, meshes / "other.glb")
    poses = {}
    for seed in (0, 1):
        for again in range(2 - seed):
            out = tmp_path / f"out{seed}{again}"
            assert run(meshes, "-o", out, *SMALL, "--seed", seed, "--points=0") == 0
            for name in ("body", "other"):
                poses[seed, again, name] = (out / name / "transforms.json").read_text()
            assert not (out / "body" / "points.npz").exists()
    assert poses[0, 0, "body"] == poses[0, 1, "body"] != poses[1, 0, "body"]
    assert poses[0, 0, "body"].replace("body", "") != poses[0, 0, "other"].replace("other", "")


# Broken meshes


def broken(folder: Path) -> None:
    """Files that cannot be rendered."""
    head = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    end = "property list uchar int vertex_indices\nend_header\n"
    (folder / "declares.ply").write_text(f"{head}element face 100000000\n{end}")
    (folder / "nan.ply").write_text(f"{head}element face 1\n{end}0 0 0\n1 0 nan\n0 1 0\n3 0 1 2\n")
    (folder / "point.ply").write_text(f"{head}element face 1\n{end}1 1 1\n1 1 1\n1 1 1\n3 0 1 2\n")
    (folder / "empty.obj").write_text("")
    (folder / "faceless.off").write_text("OFF\n1 0 0\n0 0 0\n")
    (folder / "declares.stl").write_bytes(bytes(80) + struct.pack("<I", 100_000_000) + bytes(50))


REASONS = {
    "declares.ply": r"declares 100000000 elements",
    "nan": "NaN",
    "point": "one point",
    "empty": "0 bytes",
    "faceless": "no",
    "declares.stl": r"declares 5000000000 elements or bytes",
}


@pytest.mark.parametrize("processes", [1, 2])
def test_broken_meshes_are_named_and_stop_nothing(processes: int, meshes: Path, tmp_path: Path) -> None:
    broken(meshes)
    out = tmp_path / "out"
    settings = RenderSettings(views=2, image_size=16, points=0)
    skipped = render_folder(find_jobs(meshes), settings, out, processes)
    assert (out / "body" / "transforms.json").is_file()
    assert set(skipped) == set(REASONS) and json.loads((out / "skipped.json").read_text()) == skipped
    for name, words in REASONS.items():
        assert words in skipped[name] and name in skipped[name], skipped[name]
    assert sorted(path.name for path in out.iterdir()) == ["body", "settings.json", "skipped.json"]


def test_a_process_that_dies_takes_no_other_mesh_with_it() -> None:
    from tests.dying import work

    jobs = [Job(Path(name), name) for name in ("a", "dies", "broken", "b", "c", "d")]
    results = {job.name: reason for job, reason in run_jobs(jobs, work, 2)}
    assert results == {"a": None, "b": None, "c": None, "d": None, "broken": "it is broken", "dies": results["dies"]}
    assert "ended by the system" in str(results["dies"])


def test_large_meshes_are_skipped(meshes: Path, tmp_path: Path) -> None:
    assert run(meshes, "-o", tmp_path / "a", *SMALL, "--max-faces", 35) == 1
    assert "36 faces, expected at most 35" in json.loads((tmp_path / "a" / "skipped.json").read_text())["body"]
    assert run(meshes, "-o", tmp_path / "b", *SMALL, "--max-megabytes", 1e-4) == 1
    assert "--max-megabytes" in json.loads((tmp_path / "b" / "skipped.json").read_text())["body"]


def test_vertices_that_no_face_uses_do_not_count(tmp_path: Path) -> None:
    stray = Mesh(np.concatenate([BODY.vertices, [[50, 0, 0]]]), BODY.faces, np.concatenate([BODY.colors, [[0, 0, 0]]]))
    write_mesh(stray, tmp_path / "in" / "a.ply")
    assert run(tmp_path / "in", "-o", tmp_path / "out", *SMALL, "--points=0") == 0
    assert read_posed(tmp_path / "out" / "a").views().alpha.mean() > 0.02


# Stop and go


def test_it_goes_on_with_what_is_missing(meshes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mesh(BODY, meshes / "other.glb")
    out = tmp_path / "out"
    assert run(meshes, "-o", out, *SMALL, "--limit", 1) == 0
    before = (out / "body" / "transforms.json").stat().st_mtime_ns
    (out / "other" / "rgba").mkdir(parents=True)  # half finished: no transforms.json
    (out / ".aside-dead" / "rgba").mkdir(parents=True)
    capsys.readouterr()
    assert run(meshes, "-o", out, *SMALL) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rendered"] == 2 and "body" not in captured.err and "2 of 2: other" in captured.err
    assert (out / "body" / "transforms.json").stat().st_mtime_ns == before
    assert not (out / ".aside-dead").exists() and len(read_posed(out / "other")) == 4


def test_other_settings_want_another_folder(meshes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(meshes, "-o", tmp_path / "out", *SMALL) == 0
    capsys.readouterr()
    assert run(meshes, "-o", tmp_path / "out", *SMALL, "--light=none") == 2
    assert "begun with light = soft, now it is none" in capsys.readouterr().err


def test_names_never_collide(tmp_path: Path) -> None:
    for name in ("chair.glb", "chair.obj", "table.glb", "table/leg.glb", "b/chair.ply"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [job.name for job in find_jobs(tmp_path)]
    assert sorted(names) == ["b/chair", "chair.glb", "chair.obj", "table.glb", "table/leg"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--distance", "0.5"), r"--distance 0\.5.*outside the object"),
        (("--distance", "3", "2"), r"LOW HIGH"),
        (("--azimuths=1,2", "--elevations=1,2,3"), r"2 numbers and --elevations 3"),
        (("--azimuths=1,2",), r"--elevations 0"),
        (("--fov", "200"), r"--fov 200"),
        (("--image-size", "0"), r"--image-size 0"),
        (("--elevation-range", "0", "95"), r"between -90 and 90"),
        (("--renderer", "embree", "--device", "nonsense"), "nonsense"),
    ],
)
def test_bad_options_are_named(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_of(build_parser().parse_args(["in", "-o", "out", *words]))


def test_a_folder_without_meshes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "-o", tmp_path / "out") == 2
    assert "no meshes found" in capsys.readouterr().err
    assert run(tmp_path / "not", "-o", tmp_path / "out") == 2


# USD


USDA = """#usda 1.0
( upAxis = "%s" )
def Xform "root" {
    double3 xformOp:translate = (0, 0, 3)
    uniform token[] xformOpOrder = ["xformOp:translate"]
    def Mesh "quad" {
        int[] faceVertexCounts = [4]
        int[] faceVertexIndices = [0, 1, 2, 3]
        point3f[] points = [(0, 0, 0), (2, 0, 0), (2, 1, 0), (0, 1, 0)]
        color3f[] primvars:displayColor = [(1, 0, 0.2140411)] ( interpolation = "constant" )
    }
}
"""


@pytest.mark.parametrize("axis", ["Y", "Z"])
def test_usd_is_read(axis: str, tmp_path: Path) -> None:
    pytest.importorskip("pxr", reason="usd-core is in the extra usd")
    (tmp_path / "a.usda").write_text(USDA % axis)
    mesh = read_usd(tmp_path / "a.usda")
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert mesh.colors[0] == pytest.approx([1, 0, 0.5], abs=1e-3)
    # The corner (2, 1, 3): with y up, front +z becomes +x; with z up, front -y becomes +x.
    assert mesh.vertices[2] == pytest.approx([3, 2, 1] if axis == "Y" else [-1, 2, 3])
    normal = np.cross(mesh.vertices[1] - mesh.vertices[0], mesh.vertices[2] - mesh.vertices[0])
    assert normal / 2 == pytest.approx([1, 0, 0] if axis == "Y" else [0, 0, 1])
    (tmp_path / "b.usda").write_text("not usd")
    with pytest.raises(MeshError, match=r"b\.usda: not a usable USD stage"):
        read_usd(tmp_path / "b.usda")


def test_usd_without_usd_core_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pxr", None)
    with pytest.raises(MeshError, match=r"a\.usd: USD files need usd-core.*trilift\[usd\]"):
        read_usd(tmp_path / "a.usd")
