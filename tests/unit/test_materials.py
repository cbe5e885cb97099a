"""Patterns, a sun with shadows, stretched pictures: what is shown, asked for and told must agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("embreex", reason="embreex is in the extra train")

from lrm.mesh import Mesh
from lrm.metrics import placed
from lrm.tiny import decode_camera, photo_projection, project_points
from multiview.errors import SettingsError
from train.batches import Augment, PackedData, PointCounts, light, make_batch, random_stretch, snapshot, stretched
from train.deform import into_studio, prepare_deformed
from train.deform import main as deform
from train.materials import KINDS, Material, Sun, random_material, random_sun
from train.objects import TrainingObject, normalized
from train.points import label_points
from train.prepare import main as prepare
from train.protocol import EvalProtocol
from train.render import Caster, crop_camera

QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
PLAIN = Augment(lit=1.0, mirror=0.0, swap=0.0, exposure=0.0, ragged=0.0)


def box(low: tuple[float, ...], high: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    corners = np.array([[(low, high)[i][0], (low, high)[j][1], (low, high)[k][2]]
                        for i in (0, 1) for j in (0, 1) for k in (0, 1)], np.float32)  # fmt: skip
    return corners, np.array([t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))])


def table_under_a_roof() -> TrainingObject:
    """A wide floor, and over its half at y > 0 a roof that is thin."""
    floor, faces = box((-0.5, -0.5, -0.5), (0.5, 0.5, -0.4))
    roof, others = box((-0.5, 0.0, 0.3), (0.5, 0.5, 0.35))
    colors = np.full((16, 3), 200, np.uint8)
    return TrainingObject("roof", np.concatenate([floor, roof]), np.concatenate([faces, others + 8]), colors)


def material(kind: str, **values: object) -> Material:
    usual = {
        "kind": kind, "waves": np.tile(np.float32([[2.0, 0.0, 0.0]]), (6, 1)), "phases": np.zeros(6, np.float32),
        "strength": 0.5, "other": np.float32([0, 0, 255]), "share": 0.25,
    }  # fmt: skip
    return Material(**{**usual, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(10))
def test_patterns_stay_between_their_two_colours(seed: int) -> None:
    rng = np.random.default_rng(seed)
    made, points = random_material(rng), rng.uniform(-0.5, 0.5, (500, 3))
    base = np.array([180.0, 90.0, 30.0], np.float32)
    colors = made.paint(points, np.tile(base, (500, 1)))
    np.testing.assert_array_equal(colors, made.paint(points, np.tile(base, (500, 1))))
    if made.kind == "grain":
        free = colors.max(1) < 254
        np.testing.assert_allclose(colors[free] / base, np.tile(colors[free, :1] / base[0], 3), rtol=1e-4)
    else:
        shares = (colors - base) @ (made.other - base) / ((made.other - base) ** 2).sum()
        assert shares.min() > -1e-4 and shares.max() < made.strength + 1e-4
    assert np.ptp(colors, axis=0).max() > 3, f"{made.kind} shows nothing"


def test_all_kinds_are_drawn() -> None:
    assert {random_material(np.random.default_rng(seed)).kind for seed in range(60)} == set(KINDS)


def test_bands_by_hand() -> None:
    """cos(2π · 2x): one at x = 0 and ±0.5, minus one at ±0.25; a quarter of the way is above the middle of 0.5."""
    points = np.array([[0.0, 0.3, 0.1], [0.25, 0, 0], [0.5, -0.2, 0], [0.125, 0, 0]])
    painted = material("bands").paint(points, np.full((4, 3), 100, np.float32))
    np.testing.assert_allclose(painted, [[50, 50, 177.5], [100] * 3, [50, 50, 177.5], [100] * 3], atol=1e-4)


def test_bricks_have_joints_at_every_row() -> None:
    """Two rows to a longest side: joints about z = 0 and ±0.5, none at the middle of a brick."""
    points = np.array([[0.25, 0.25, 0.0], [0.25, 0.25, 0.25], [0.25, 0.25, -0.5]])
    painted = material("bricks", strength=1.0).paint(points, np.full((3, 3), 100, np.float32))
    assert painted[0].tolist() == painted[2].tolist() == [0, 0, 255]
    assert painted[1].tolist() == [100, 100, 100]


def test_the_sun_shines_by_its_cosine_and_casts_a_shadow() -> None:
    obj = table_under_a_roof()
    sun = Sun(np.float32([0, 0, 1]))
    points = np.array([[0.2, -0.25, -0.4], [0.2, 0.25, -0.4]]).repeat(500, 0)
    normals = np.tile([0.0, 0.0, 1.0], (1000, 1))
    cosine, highlight = sun.shade(Caster(obj).scene, points, normals, normals)
    assert cosine[:500].mean() == pytest.approx(1, abs=0.01)  # the scattered sun is a little aslant
    assert cosine[500:].max() == 0 and highlight.max() == 0
    low = replace(sun, toward=np.float32([-(3**0.5) / 2, 0, 0.5]), gloss=0.5, hardness=10.0)
    aslant, glint = low.shade(Caster(obj).scene, points[:500], normals[:500], np.tile([3**0.5 / 2, 0, 0.5], (500, 1)))
    assert aslant.mean() == pytest.approx(0.5, abs=0.02)
    assert glint.max() == pytest.approx(0.5, abs=1e-3)  # the camera stands where a mirror shows the sun
    away = low.shade(Caster(obj).scene, points[:500], normals[:500], np.tile([-(3**0.5) / 2, 0, 0.5], (500, 1)))[1]
    assert away.max() < 0.01


def test_suns_stand_above_the_ground() -> None:
    suns = [random_sun(np.random.default_rng(seed)) for seed in range(50)]
    assert min(float(sun.toward[2]) for sun in suns) > 0.2
    assert all(np.linalg.norm(sun.toward) == pytest.approx(1, abs=1e-6) for sun in suns)
    assert 10 < sum(sun.gloss == 0 for sun in suns) < 40


def test_a_sun_adds_two_channels_and_changes_no_other() -> None:
    obj = table_under_a_roof()
    camera = crop_camera(obj.vertices, 20.0, 30.0, 2.5)
    plain = Caster(obj).view(camera, 48)
    lit = Caster(obj, sun=Sun(np.float32([0, 0, 1]))).view(camera, 48)
    assert lit.shape == (48, 48, 9)
    np.testing.assert_array_equal(lit[..., :7], plain)
    shown, rng = light(torch.from_numpy(lit), np.random.default_rng(0), PLAIN), np.random.default_rng(0)
    without = light(torch.from_numpy(plain), rng, PLAIN)
    assert not torch.equal(shown, without)
    upward = torch.from_numpy((lit[..., 6] > 128) & (lit[..., 3] == 255) & (lit[..., 5] > 200))
    bright = torch.from_numpy(lit[..., 7] > 240)
    assert (bright & upward).sum() > 50 and (~bright & upward).sum() > 50
    assert shown[0][bright & upward].min() > shown[0][~bright & upward & (torch.from_numpy(lit[..., 7]) == 0)].max()


def test_patterns_in_pictures_are_those_at_points() -> None:
    obj = table_under_a_roof()
    made = material("bands", other=np.float32([255, 0, 0]), strength=1.0)
    camera = crop_camera(obj.vertices, 0.0, 89.9, 4.0)
    view = Caster(obj, made).view(camera, 96, supersample=1)
    half, steps = camera.half, ((np.arange(96) + 0.5) / 96 * 2 - 1)
    # From straight above down is toward +x: the roof's top is 4 - 0.35 below the camera.
    row, column, depth = 30, 70, 3.65
    down, across = half * steps[row] - camera.center[1], camera.center[0] + half * steps[column]
    point = np.array([[down * depth, across * depth, 0]])
    expected = made.paint(point, np.full((1, 3), 200, np.float32))
    assert view[row, column, 3] == 255
    np.testing.assert_allclose(view[row, column, :3], expected[0], atol=12)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lrm.meshfile import write_mesh

    folder = tmp_path_factory.mktemp("studio")
    for name, size in (("flat", (1, 0.5, 0.7)), ("tall", (0.4, 0.5, 1))):
        vertices, faces = box((-0.5,) * 3, (0.5,) * 3)
        write_mesh(Mesh(vertices * size, faces, np.tile([0.8, 0.3, 0.2], (8, 1))), folder / "meshes" / f"{name}.glb")
    small = ["--views", "3", "--image-size", "64", "--points", "4000", "--surface", "400"]
    assert prepare([str(folder / "meshes"), "-o", str(folder / "data"), *small]) == 0
    arguments = [str(folder / "data"), str(folder / "meshes"), "-o", str(folder / "lit"), "--views", "3"]
    assert deform([*arguments, "--studio"]) == 0
    return folder


def test_the_studio_packs_what_the_trainer_reads(packed: Path) -> None:
    data = PackedData(packed / "lit")
    assert data.arrays["views"].shape == (2, 3, 64, 64, 9)
    assert len(data) == 2 and data.arrays["views"][..., 7].max() > 200
    settings = {"views": 1, "counts": PointCounts(300, 100, 20, 40), "image_size": 48, "scene_radius": 1.6}
    batch = make_batch([(data, 1.0), (PackedData(packed / "data"), 1.0)], seed=0, step=0, batch_size=6,
                       augment=Augment(snapshot=1.0), known=0.0, target=True, **settings)  # fmt: skip
    assert torch.isfinite(batch.images).all() and batch.images.min() >= 0 and batch.images.max() <= 1


def test_studio_labels_stay_true() -> None:
    igl = pytest.importorskip("igl", reason="libigl is in the extra train")
    vertices, faces = box((-0.5, -0.3, -0.2), (0.5, 0.3, 0.2))
    obj = normalized("box", vertices, faces, np.full((8, 3), (200, 100, 50), np.uint8))
    points = label_points(obj, np.random.default_rng(0), count=2000, surface=200)
    painted = 0
    for seed in range(6):
        made, moved, pattern = into_studio(obj, points, np.random.default_rng(seed))
        assert np.ptp(made.vertices, axis=0).max() == pytest.approx(1, abs=1e-5)
        corners, triangles = made.vertices.astype(np.float64), made.faces.astype(np.int64)
        truth = igl.winding_number(corners, triangles, moved.points.astype(np.float64)) > 0.5
        assert (truth == moved.inside).mean() > 0.995
        painted += pattern is not None
        assert (len(np.unique(moved.colors, axis=0)) > 1) == (pattern is not None)
    assert 0 < painted < 6


def test_an_object_without_a_file_is_named(packed: Path) -> None:
    from train.prepare import PrepareSettings

    missing = prepare_deformed(packed / "no.glb", str(packed / "data"), {"no": 0}, PrepareSettings(), 1, True)
    assert missing.problem is not None and "no.glb" in missing.problem


@pytest.mark.parametrize("mirror", [0.0, 1.0])
def test_a_stretched_picture_is_that_of_the_stretched_object(packed: Path, mirror: float) -> None:
    """Surface points of the stretched object land on its picture and fill it; the camera told is the one that sees."""
    augment = Augment(lit=0.0, mirror=mirror, swap=0.0, exposure=0.0, ragged=0.0, stretch=0.3)
    counts = PointCounts(300, 100, 20, 300)
    widths = []
    for seed in range(12):
        batch = make_batch([(PackedData(packed / "data"), 1.0)], seed=seed, step=0, batch_size=1, views=1,
                           counts=counts, image_size=64, scene_radius=1.6, augment=augment, known=1.0)  # fmt: skip
        told = photo_projection(*decode_camera(batch.camera))
        torch.testing.assert_close(batch.projections[:, 0], told, atol=2e-5, rtol=1e-5)
        matte = batch.images[0, 0, 3]
        places = project_points(batch.projections[:, 0], batch.surface)[0]
        columns, rows = ((places[:, 0] + 1) * 32).long(), ((1 - places[:, 1]) * 32).long()
        hit = matte[rows.clamp(0, 63), columns.clamp(0, 63)] > 0.02
        assert hit.float().mean() > 0.93  # colours are asked for a little off the surface, too
        box_of = [int(((matte > 0.5).any(axis)).sum()) for axis in (0, 1)]
        assert max(box_of) == pytest.approx(0.85 * 64, abs=3)
        widths.append(box_of[0] / box_of[1])
        inside = project_points(batch.projections[:, 0], batch.points)[0][batch.occupancy[0] > 0.5]
        assert (matte[((1 - inside[:, 1]) * 32).long(), ((inside[:, 0] + 1) * 32).long()] > 0.02).float().mean() > 0.98
    assert np.std(widths) > 0.1


def test_a_stretch_keeps_the_longer_side_and_never_grows_too_much() -> None:
    inside = torch.zeros(40, 40, dtype=torch.bool)
    inside[10:30, 5:35] = True  # 30 wide, 20 high
    for seed in range(40):
        across, along = random_stretch(inside, np.random.default_rng(seed), 0.3)
        assert max(30 * across, 20 * along) == pytest.approx(30)
        assert max(across, along) <= 1.3
    picture = torch.zeros(4, 40, 40)
    picture[:, 10:30, 5:35] = 1
    wide = stretched(picture, 0.5, 1.2)[3] > 0.5
    assert (int(wide.any(0).sum()), int(wide.any(1).sum())) == (15, 24)
    assert stretched(picture, 1.0, 1.0) is picture


def test_a_snapshot_is_a_picture_that_is_a_little_off() -> None:
    color, alpha = torch.full((3, 32, 32), 0.5), torch.ones(1, 32, 32)
    for seed in range(10):
        seen = snapshot(color, alpha, np.random.default_rng(seed))
        assert seen.min() >= 0 and seen.max() <= 1
        assert 0.01 < (seen - color).abs().mean() < 0.3


def test_the_studio_changes_what_is_shown_and_not_where() -> None:
    vertices, faces = box((-0.5, -0.3, -0.2), (0.5, 0.3, 0.2))
    mesh = placed(Mesh(vertices, faces, np.tile([0.8, 0.3, 0.2], (8, 1))))
    plain, studio = (EvalProtocol(image_size=96, light=name) for name in ("none", "studio"))
    one, other = plain.look(mesh, 30.0, 20.0).astype(int), studio.look(mesh, 30.0, 20.0).astype(int)
    assert np.abs(one[..., 3] - other[..., 3]).mean() < 1
    solid = one[..., 3] == 255
    assert np.abs(one[solid] - other[solid])[:, :3].mean() > 10
    np.testing.assert_array_equal(studio.look(mesh, 30.0, 20.0), other)
    assert torch.equal(plain.novel_views(mesh), studio.novel_views(mesh))


def test_light_and_studio_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    from train.evaluate import build_parser

    with pytest.raises(SystemExit):
        build_parser("x").parse_args(["data", "-o", "out", "--light", "--studio"])
    assert "not allowed with" in capsys.readouterr().err
    assert build_parser("x").parse_args(["--light", "data", "-o", "out"]).light == "soft"
    assert build_parser("x").parse_args(["data", "-o", "out", "--studio"]).light == "studio"


def test_a_picture_with_nothing_solid_is_not_stretched() -> None:
    nothing = torch.zeros(8, 8, dtype=torch.bool)
    assert random_stretch(nothing, np.random.default_rng(0), 0.3) == (1.0, 1.0)


def test_studio_data_is_refused_where_it_would_be_taken_for_plain(packed: Path, tmp_path: Path) -> None:
    from train.rings import main as rings
    from train.warped import WarpedData

    with pytest.raises(SettingsError, match="--studio"):
        WarpedData(packed / "lit", packed / "meshes", 48)
    with pytest.raises(SettingsError, match="studio"):
        rings([str(packed / "lit"), "--meshes", str(packed / "meshes"), "-o", str(tmp_path), "--stretched", "1"])


def test_without_embree_the_studio_is_refused(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match="embree is not installed"):
        deform([str(packed / "data"), str(packed / "meshes"), "-o", str(tmp_path), "--studio"])
