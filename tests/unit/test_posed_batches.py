"""Posed batches: the world is placed as inference places it, and every ray of a patch meets what its pixel shows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiview.camerafile import write_views
from multiview.cameras import Cameras, orbit, orbit_angles, project
from multiview.errors import SettingsError, TriliftError
from multiview.views import Views
from tests.posedfolders import depth_inside, posed_folder, solid_views
from train.batches import Augment, PointCounts, object_projection
from train.posedbatches import (
    FolderShots,
    SampleSettings,
    World,
    cropped_to_object,
    open_source,
    packed_camera,
    place,
    sample_object,
    stack_samples,
)

SINGLE = World(distance=1.9, focal=1.374, single=True, foreground_ratio=0.85, image_size=48)
TOLD = World(distance=4.0, focal=1.866, single=False, foreground_ratio=None, image_size=48)
SAMPLE = SampleSettings(
    patch_size=20, target_size=40, target_views=2, ratio_jitter=0.0, counts=PointCounts(200, 100, 0, 50)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return posed_folder(tmp_path_factory.mktemp("posed"))


@settings(max_examples=25, deadline=None)
@given(
    azimuth=st.floats(-180, 180), elevation=st.floats(-60, 60), distance=st.floats(1, 9), fov=st.floats(10, 80),
    cx=st.floats(0.35, 0.65), cy=st.floats(0.35, 0.65),
)  # fmt: skip
def test_a_photos_camera_is_placed_where_inference_assumes_it(
    azimuth: float, elevation: float, distance: float, fov: float, cx: float, cy: float
) -> None:
    seen = orbit(azimuth, elevation, distance, fov)
    k = seen.intrinsics.clone()
    k[0, 0, 2], k[0, 1, 2] = cx, cy
    cameras = Cameras(seen.c2w, k)
    placing = place(cameras, SINGLE)
    placed = placing.cameras(cameras)
    got_azimuth, _, got_distance = orbit_angles(placed)
    assert math.cos(math.radians(float(got_azimuth))) == pytest.approx(1, abs=1e-4)
    # As large in the picture as with the assumed camera.
    assert float(got_distance) / float(k[0, 1, 1]) == pytest.approx(1.9 / 1.374, rel=1e-4)
    # The picture's middle looks at the origin, and every point keeps its pixel.
    assert torch.allclose(project(placed, torch.zeros(1, 3))[0], torch.tensor([0.5, 0.5]), atol=1e-3)
    points = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    assert torch.allclose(project(cameras, points)[0], project(placed, placing.points(points))[0], atol=1e-3)


def test_told_cameras_are_only_scaled_and_turned() -> None:
    cameras = orbit([0.0, 90.0], [0.0, 20.0], 2.0, 40.0)
    placing = place(cameras, TOLD, yaw_deg=30.0)
    azimuth, elevation, distance = orbit_angles(placing.cameras(cameras))
    assert azimuth.tolist() == pytest.approx([30, 120], abs=1e-3)
    assert elevation.tolist() == pytest.approx([0, 20], abs=1e-3)
    focal = 0.5 / math.tan(math.radians(20))
    assert distance.tolist() == pytest.approx([4.0 / 1.866 * focal] * 2, rel=1e-4)


@pytest.mark.parametrize("world", [SINGLE, TOLD], ids=["one photo", "told views"])
def test_points_land_on_the_object_in_pictures_and_patches(folder: Path, world: World) -> None:
    source = FolderShots(folder)
    views = 1 if world.single else 3
    batch = stack_samples([sample_object(source, 0, np.random.default_rng(i), world, SAMPLE, views) for i in range(6)])
    assert batch.images.shape == (6, views, 4, 48, 48)
    for b in range(6):
        inside = batch.points[b][batch.inside[b] > 0]
        uv, _ = project(Cameras(batch.c2w[b], batch.intrinsics[b]), inside)
        pixels = (uv * 48).long().clamp(0, 47)
        for v in range(views):
            alpha = batch.images[b, v, 3, pixels[v, :, 1], pixels[v, :, 0]]
            assert (alpha > 0.3).float().mean() > 0.95
        for t in range(2):
            toward = torch.nn.functional.normalize(inside - batch.origins[b, t, :1], dim=-1)
            best, ray = (toward @ batch.directions[b, t].T).max(1)
            step = (batch.directions[b, t, 0] - batch.directions[b, t, 1]).norm()
            on = best > 1 - (0.6 * step) ** 2 / 2  # within the patch
            alpha = batch.target[b, t, 3].flatten()[ray[on]]
            assert len(alpha) == 0 or (alpha > 0.3).float().mean() > 0.95


def test_the_same_random_numbers_give_the_same_sample_and_view_dropout_is_a_number_of_views(folder: Path) -> None:
    source = FolderShots(folder)
    a, b = (sample_object(source, 0, np.random.default_rng(3), TOLD, SAMPLE, 2) for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert sample_object(source, 0, np.random.default_rng(3), TOLD, SAMPLE, 5)["images"].shape[0] == 5


def test_the_crop_moves_pixels_and_says_where_it_was() -> None:
    picture = torch.zeros(4, 20, 30)
    picture[:, 2:8, 20:29] = 1.0  # 6 rows, 9 columns
    crop, (left, top, width, height) = cropped_to_object(picture, 0.9)
    assert crop.shape == (4, 10, 10)
    assert crop.sum() == picture.sum()
    # The square's middle is the box's: column 24.5, row 5, to the pixel below.
    assert (left * 30, top * 20, width * 30, height * 20) == pytest.approx((19, 0, 10, 10))
    with pytest.raises(SettingsError, match="empty"):
        cropped_to_object(torch.zeros(4, 5, 5), 0.9)


def test_packed_cameras_show_points_where_the_packed_projection_does() -> None:
    row = np.array([30.0, 20.0, 2.5, 0.03, -0.02, 0.25], np.float32)
    points = torch.rand(6, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    homogeneous = np.concatenate([points.numpy(), np.ones((6, 1))], 1) @ object_projection(row).T
    expected = homogeneous[:, :2] / homogeneous[:, 2:]
    uv, _ = project(packed_camera(row), points)
    found = torch.stack([uv[0, :, 0] * 2 - 1, 1 - uv[0, :, 1] * 2], -1)
    assert np.allclose(found.numpy(), expected, atol=1e-5)


def test_objects_without_points_do_not_count_there(tmp_path: Path) -> None:
    source = open_source(posed_folder(tmp_path, points=False), Augment())
    sample = sample_object(source, 0, np.random.default_rng(0), SINGLE, SAMPLE, 1)
    assert sample["known"].sum() == 0
    assert sample["colored"].sum() == 0


def opaque(folder: Path) -> None:
    views = solid_views(size=24)
    write_views(folder / "a", Views(views.images, torch.ones_like(views.alpha), views.cameras))


def one_view(folder: Path) -> None:
    write_views(folder / "a", solid_views(size=24).select([0]))


def two_sizes(folder: Path) -> None:
    from PIL import Image

    write_views(folder / "a", solid_views(size=24))
    Image.new("RGBA", (20, 20)).save(folder / "a" / "003.png")


def edited(folder: Path, change: object) -> None:
    write_views(folder / "a", solid_views(size=24))
    values = json.loads((folder / "a" / "cameras.json").read_text())
    change(values["views"][2])  # type: ignore[operator]
    (folder / "a" / "cameras.json").write_text(json.dumps(values))


def not_rigid(folder: Path) -> None:
    edited(folder, lambda view: view["c2w"][0].__setitem__(0, 7.0))


def no_intrinsics(folder: Path) -> None:
    edited(folder, lambda view: view.pop("intrinsics_norm"))


def bad_points(folder: Path) -> None:
    write_views(folder / "a", solid_views(size=24))
    np.savez(folder / "a" / "points.npz", points=np.zeros((4, 3)))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(lambda folder: None, "no posed pictures. Expected folders", id="empty folder"),
        pytest.param(
            opaque, r"a: pictures have no transparent background \(the least alpha of \d+ is 1\.00", id="no matte"
        ),
        pytest.param(one_view, "a: 1 views, expected at least 2", id="one view"),
        pytest.param(two_sizes, r"003\.png: .*20 x 20 px", id="two sizes"),
        pytest.param(not_rigid, r"cameras\.json: views\[2\].*not rigid", id="not rigid"),
        pytest.param(no_intrinsics, r"cameras\.json: views\[2\]: c2w needs intrinsics_norm", id="no intrinsics"),
        pytest.param(bad_points, r"points\.npz: not readable as labelled points", id="points"),
    ],
)
def test_bad_data_is_named(spoil: object, words: str, tmp_path: Path) -> None:
    spoil(tmp_path)  # type: ignore[operator]
    with pytest.raises(TriliftError, match=words):
        source = open_source(tmp_path, Augment())
        sample_object(source, 0, np.random.default_rng(0), SINGLE, SAMPLE, 1)


def test_the_solid_of_these_tests_is_where_it_should_be() -> None:
    assert depth_inside(torch.tensor([[0.49, 0.0, 0.0], [0.51, 0.0, 0.0]]), 0).gt(0).tolist() == [True, False]
