"""Unwrapping: nothing lies over anything else, nothing is mirrored or lost, and it ends in time."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lrm import unwrap as subject
from lrm.mesh import Mesh
from lrm.raster import flat_spans
from lrm.unwrap import Unwrapped, face_neighbors, unwrap, unwrap_xatlas
from multiview.errors import MeshError, SettingsError

needs_xatlas = pytest.mark.skipif(importlib.util.find_spec("xatlas") is None, reason="xatlas is not installed")


def of(vertices: Any, faces: Any) -> Mesh:
    return Mesh(np.asarray(vertices), np.asarray(faces), np.full((len(vertices), 3), 0.5))


def cube() -> Mesh:
    import trimesh

    box = trimesh.creation.box((1.0, 1.0, 1.0))
    return of(box.vertices, box.faces)


def ball(noise: float, seed: int = 0, level: int = 3) -> Mesh:
    import trimesh

    round_ = trimesh.creation.icosphere(level, 0.5)
    return of(round_.vertices + np.random.default_rng(seed).normal(0, noise, round_.vertices.shape), round_.faces)


def helicoid(turns: float = 2.0, steps: int = 60) -> Mesh:
    """A winding ramp around the z axis: it looks up everywhere and lies over itself after one turn."""
    angle = np.linspace(0, turns * 2 * np.pi, steps)
    inner, outer = 0.2, 0.5
    rim = np.stack([np.cos(angle), np.sin(angle)], 1)
    height = (0.05 * angle)[:, None]
    vertices = np.concatenate([np.hstack([inner * rim, height]), np.hstack([outer * rim, height])])
    a, b = np.arange(steps - 1), np.arange(steps - 1) + steps
    faces = np.concatenate([np.stack([a, b, b + 1], 1), np.stack([a, b + 1, a + 1], 1)])
    return of(vertices, faces)


def overlaps(found: Unwrapped, size: int) -> int:
    """How many texels lie in two faces that share no edge."""
    face, texel = flat_spans(found.uvs[found.faces].astype(np.float64) * size, size, size)
    order = np.argsort(texel, kind="stable")
    face, texel = face[order], texel[order]
    again = np.flatnonzero(texel[1:] == texel[:-1])
    first, second = found.faces[face[again]], found.faces[face[again + 1]]
    return int(((first[:, :, None] == second[:, None, :]).any(2).sum(1) < 2).sum())


def uv_areas(found: Unwrapped) -> NDArray[np.float64]:
    """Signed areas of the faces in the square, positive for counter-clockwise."""
    a, b, c = (found.uvs[found.faces[:, k]].astype(np.float64) for k in range(3))
    return ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2


def same_corners(found: Unwrapped, mesh: Mesh) -> bool:
    return np.array_equal(mesh.vertices[found.source[found.faces]], mesh.vertices[mesh.faces])


def test_a_cube_becomes_six_squares_of_one_size() -> None:
    mesh = cube()
    found = unwrap(mesh, 128, way="box")
    assert found.way == "box" and len(set(found.charts.tolist())) == 6
    assert len(found.source) == 24  # four corners for each side
    areas = uv_areas(found)
    assert areas == pytest.approx(np.full(12, areas[0]), rel=1e-4) and areas[0] > 0
    assert found.used == pytest.approx(12 * areas[0], rel=1e-4) and 0.4 < found.used < 1
    assert same_corners(found, mesh) and overlaps(found, 128) == 0


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05], ids=["smooth", "rough", "wild"])
@pytest.mark.parametrize("seed", [0, 1])
def test_charts_do_not_lie_over_each_other_whatever_the_mesh(noise: float, seed: int) -> None:
    mesh = ball(noise, seed)
    found = unwrap(mesh, 256, way="box")
    assert found.way == "box" and overlaps(found, 256) == 0
    assert found.uvs.min() >= 0 and found.uvs.max() <= 1
    assert same_corners(found, mesh)
    assert (uv_areas(found) > -1e-9).all()  # nothing mirrored, nothing turned over


def test_charts_keep_a_gutter() -> None:
    found = unwrap(ball(0.0), 256, way="box")
    texels = found.uvs[found.faces].reshape(-1, 2) * 256
    chart = np.repeat(found.charts, 3)
    low, high = (np.stack([side(texels[chart == c], 0) for c in range(6)]) for side in (np.min, np.max))
    for a in range(6):
        for b in range(a):
            gap = np.maximum(low[a] - high[b], low[b] - high[a]).max()
            assert gap >= 3.5  # two texels on each side, less what rounding up leaves


def test_a_ramp_that_winds_over_itself_is_cut() -> None:
    mesh = helicoid()
    found = unwrap(mesh, 256, way="box")
    assert len(set(found.charts.tolist())) >= 2
    assert overlaps(found, 256) == 0 and same_corners(found, mesh)


def test_one_triangle_and_faces_without_area() -> None:
    found = unwrap(of([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]]), 64, way="box")
    assert found.faces.shape == (1, 3) and 0.3 < uv_areas(found)[0] < 0.5
    flat = unwrap(of([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]]), 64, way="box")
    assert np.isfinite(flat.uvs).all()


def soup(count: int) -> Mesh:
    rng = np.random.default_rng(0)
    corners = rng.uniform(-0.5, 0.5, (count, 1, 3)) + rng.normal(0, 0.05, (count, 3, 3))
    return of(corners.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3))


def test_more_charts_than_texels_go_into_a_grid() -> None:
    mesh = soup(1500)  # 1500 boxes of 2 x 2 texels are more than 64 x 64
    found = unwrap(mesh, 64, way="box")
    assert found.way == "grid" and overlaps(found, 64) == 0
    assert same_corners(found, mesh) and (uv_areas(found) > 0).all()


def test_faces_without_room_are_refused() -> None:
    with pytest.raises(
        MeshError, match=r"5000 faces have no room in a texture of 64 x 64 texels.*--faces.*--texture-si"
    ):
        unwrap(soup(5000), 64, way="box")


def test_neighbours_across_edges() -> None:
    # Two triangles share the edge 1-2; a third has it, too, in the second mesh: then nobody is across.
    two = np.array([[0, 1, 2], [1, 3, 2]])
    assert face_neighbors(two).tolist() == [[-1, 1, -1], [-1, -1, 0]]
    three = np.array([[0, 1, 2], [1, 3, 2], [1, 4, 2]])
    assert (face_neighbors(three) == -1).all()


@needs_xatlas
def test_xatlas_gives_the_same_mesh_and_no_overlap() -> None:
    mesh = ball(0.0)
    found = unwrap(mesh, 256, way="xatlas", time_limit=120)
    assert found.way == "xatlas" and same_corners(found, mesh)
    assert found.uvs.min() >= 0 and found.uvs.max() <= 1 and found.used > 0.3
    assert overlaps(found, 256) <= 3  # its padding and rounding are its own


@needs_xatlas
def test_xatlas_is_not_taken_where_its_charts_would_have_no_gutters() -> None:
    with pytest.raises(MeshError, match=r"xatlas needs \d+ x \d+ texels.*64 are to hold them"):
        unwrap(soup(1500), 64, way="xatlas", time_limit=120)


@needs_xatlas
@pytest.mark.parametrize("shape", ["ball", "cube", "ramp"])
def test_packed_charts_are_those_of_boxes_laid_out_anew(shape: str) -> None:
    mesh = {"ball": ball(0.0), "cube": cube(), "ramp": helicoid()}[shape]
    found, boxed = unwrap(mesh, 256, way="packed", time_limit=120), unwrap(mesh, 256, way="box")
    assert found.way == "packed" and same_corners(found, mesh) and np.array_equal(found.charts, boxed.charts)
    assert found.uvs.min() >= 0 and found.uvs.max() <= 1 and overlaps(found, 256) <= 3
    areas = np.abs(uv_areas(found))  # xatlas turns charts over where they lie better so
    # Faces are as large as on the surface, but for what leans away within a chart: 1 / 0.3 in all.
    corners = mesh.vertices[mesh.faces].astype(float)
    true = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    assert (areas / true).max() < 4 * (areas / true).min()


@needs_xatlas
def test_what_is_packed_better_is_taken() -> None:
    ramp, round_ = helicoid(), ball(0.0)  # curved strips, whose boxes are half empty; and six squares but for corners
    assert unwrap(ramp, 256, way="packed").used > 1.2 * unwrap(ramp, 256, way="box").used
    assert unwrap(ramp, 256, time_limit=120).way == "packed"
    assert unwrap(round_, 256, way="packed").used < unwrap(round_, 256, way="box").used
    assert unwrap(round_, 256, time_limit=120).way == "box"


def test_without_xatlas_boxes_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert unwrap(cube(), 64).way == "box"
    for way in ("xatlas", "packed"):
        with pytest.raises(SettingsError, match=f"way='{way}'.*pip install xatlas"):
            unwrap(cube(), 64, way=way)  # type: ignore[arg-type]


def test_xatlas_is_ended_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sleeper, mark = tmp_path / "sleeper.py", tmp_path / "woke"
    sleeper.write_text(f"import time\ntime.sleep(100)\nopen({str(mark)!r}, 'w')\n")
    monkeypatch.setattr(subject, "_CHILD", sleeper)
    with pytest.raises(MeshError, match=r"12 faces \(TimeoutExpired after at most 0.3 s\).*way='box'"):
        unwrap_xatlas(cube(), 64, 0.3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert unwrap(cube(), 64, time_limit=0.3).way == "box"
    assert not mark.exists()


def test_what_xatlas_fails_on_is_unwrapped_by_boxes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('out of luck')\n")
    monkeypatch.setattr(subject, "_CHILD", broken)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert unwrap(cube(), 64).way == "box"
    for way in ("xatlas", "packed"):
        with pytest.raises(MeshError, match="out of luck"):
            unwrap(cube(), 64, way=way)  # type: ignore[arg-type]


def test_packing_is_not_begun_for_meshes_that_would_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("xatlas was begun")

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(AssertionError, match="was begun"):
        unwrap(ball(0.0, level=3), 256)  # 1280 faces, in 6 parts
    monkeypatch.setattr(subject, "_PACKED_FACES", 1000)
    assert unwrap(ball(0.0, level=3), 256).way == "box"
    monkeypatch.setattr(subject, "_PACKED_FACES", 10_000)
    monkeypatch.setattr(subject, "_PACKED_CHARTS", 100)
    assert unwrap(ball(0.05, level=3), 256).way == "box"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"texture_size": 8}, "16 to 8192"),
        ({"time_limit": 0.0}, "time_limit above 0"),
        ({"way": "other"}, "auto, xatlas, packed"),
    ],
    ids=["size", "time", "way"],
)
def test_options_out_of_range(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        unwrap(cube(), **changes)


def test_the_mesh_with_its_texture_keeps_seams_closed() -> None:
    mesh = cube()
    found = unwrap(mesh, 64, way="box")
    textured = found.apply(mesh, np.zeros((64, 64, 3), np.uint8))
    assert len(textured.vertices) == 24 and textured.is_watertight
    corner = mesh.normals[found.source]  # a seam does not bend the light
    assert textured.normals == pytest.approx(corner, abs=1e-6)
