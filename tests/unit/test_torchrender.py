"""The renderer in plain torch against embree, and against pictures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from train.objects import TrainingObject, normalized
from train.render import CameraDraw, Caster, CropCamera, crop_camera, random_crop_camera
from train.torchrender import TorchCaster


def triangle(
    vertices: list[tuple[float, float, float]], colors: list[tuple[int, int, int]] | None = None
) -> TrainingObject:
    """Triangles of three vertices each, as they are: not centred, not scaled."""
    faces = np.arange(len(vertices), dtype=np.int32).reshape(-1, 3)
    shades = np.array(colors or [(90, 90, 90)] * len(vertices), np.uint8)
    return TrainingObject("triangle", np.array(vertices, np.float32), faces, shades)


def procedural(index: int) -> TrainingObject:
    from train.shapes import random_object

    shape = random_object(np.random.default_rng([7, index]))
    return TrainingObject(f"{index}", shape.vertices, shape.faces, shape.colors)


def level(distance: float = 2.0, half: float = 0.25) -> CropCamera:
    """On +x, looking at the origin: right is +y, up is +z."""
    return CropCamera(0.0, 0.0, distance, (0.0, 0.0), half)


def test_a_half_plane_fills_its_half_of_the_picture() -> None:
    # The plane x = 0 where y > 0 (and -3 < z < 3): right of the middle.
    sheet = triangle([(0, 0, -3), (0, 9, 0), (0, 0, 3)])
    view = TorchCaster(sheet).view(level(), 16)
    assert (view[:, 8:, 3] == 255).all() and (view[:, :8, 3] == 0).all()
    assert view[8, 12].tolist() == [90, 90, 90, 255, 128, 128, 255]
    assert view[8, 4].tolist() == [0, 0, 0, 0, 128, 128, 128]


def test_alpha_is_the_share_of_samples() -> None:
    # At distance 2 and half 0.25 a picture of 4 pixels spans 1 unit at x = 0: y from 1/8 covers half a pixel.
    sheet = triangle([(0, 0.125, -9), (0, 9, 0), (0, 0.125, 9)])
    view = TorchCaster(sheet).view(level(), 4)
    assert view[0, :, 3].tolist() == [0, 0, 128, 255]


def test_the_nearer_of_two_is_seen_from_either_side() -> None:
    red, blue = [(255, 0, 0)] * 3, [(0, 0, 255)] * 3
    both = triangle([(0.1, -3, -3), (0.1, 3, -3), (0.1, 0, 5), (-0.1, -3, -3), (-0.1, 3, -3), (-0.1, 0, 5)], red + blue)
    for azimuth, color in ((0.0, [255, 0, 0]), (180.0, [0, 0, 255])):
        view = TorchCaster(both).view(CropCamera(azimuth, 0.0, 2.0, (0.0, 0.0), 0.25), 8)
        assert (view[..., :3] == color).all()


def test_colours_are_blended_by_perspective() -> None:
    # A wall that runs away: at y = 0 it is 1 from the camera and black, at y = 2 it is 3 away and white.
    wall = triangle(
        [(1, 0, -9), (-1, 2, -9), (1, 0, 9), (1, 0, 9), (-1, 2, -9), (-1, 2, 9)],
        [(0, 0, 0), (200, 200, 200), (0, 0, 0), (0, 0, 0), (200, 200, 200), (200, 200, 200)],
    )
    view = TorchCaster(wall).view(level(2.0, 0.5), 64, supersample=1)
    # Column 48 looks along right / depth = 0.5 * (48.5 / 32 - 1): it meets y = t with t / (1 + t) equal to that.
    slope = 0.5 * (48.5 / 32 - 1)
    assert view[32, 48, 0] == pytest.approx(200 * slope / (1 - slope) / 2, abs=1)


def test_equal_to_embree_on_procedural_objects() -> None:
    pytest.importorskip("embreex", reason="embreex is in the extra train")
    for index in range(6):
        obj, rng = procedural(index), np.random.default_rng(index)
        cameras = [random_crop_camera(obj.vertices, rng) for _ in range(3)]
        theirs = Caster(obj).views(cameras, 48, smooth=[True, False, True]).astype(int)
        ours = TorchCaster(obj).views(cameras, 48, smooth=[True, False, True]).astype(int)
        assert (ours[..., 3] == theirs[..., 3]).mean() > 0.998
        solid = (ours[..., 3] == 255) & (theirs[..., 3] == 255)
        apart = np.abs(ours - theirs)[solid].max(1)
        assert solid.sum() > 500 and (apart <= 1).mean() > 0.99, f"object {index}"


def test_views_are_drawn_together_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    obj, rng = procedural(3), np.random.default_rng(0)
    cameras = [random_crop_camera(obj.vertices, rng) for _ in range(3)]
    caster = TorchCaster(obj)
    together = caster.views(cameras, 32, smooth=[False, True, False])
    assert np.array_equal(together[1], caster.view(cameras[1], 32, smooth=True))
    assert not np.array_equal(together[1], caster.view(cameras[1], 32, smooth=False))
    monkeypatch.setattr("train.torchrender._CHUNK", 500)  # many passes
    assert np.array_equal(together, caster.views(cameras, 32, smooth=[False, True, False]))


def test_no_sample_is_lost_or_doubled_between_triangles() -> None:
    # A fan around a point on a sample centre, edges through other centres: alpha 255 all over the square.
    ring = [
        (0, 0.5, 0.0),
        (0, 0.5, 0.5),
        (0, 0, 0.5),
        (0, -0.5, 0.5),
        (0, -0.5, 0),
        (0, -0.5, -0.5),
        (0, 0, -0.5),
        (0, 0.5, -0.5),
    ]
    fan = [p for i in range(8) for p in ((0.0, 0.0, 0.0), ring[i], ring[(i + 1) % 8])]
    view = TorchCaster(triangle(fan)).view(level(), 9, supersample=1)  # centres at multiples of 1/9
    assert (view[..., 3] == 255).all()


def test_behind_the_picture_there_is_nothing() -> None:
    view = TorchCaster(triangle([(0, 5, 5), (0, 6, 5), (0, 5, 6)])).view(level(), 8)
    assert (view[..., :4] == 0).all()


def test_the_device_is_used() -> None:
    with pytest.raises(RuntimeError):
        TorchCaster(procedural(0), "no-such-device")
    assert TorchCaster(procedural(0), torch.device("cpu")).vertices.dtype == torch.float64


# The cameras.


def test_cameras_keep_to_their_ranges() -> None:
    obj, rng = (
        normalized("slab", procedural(1).vertices, procedural(1).faces, procedural(1).colors),
        np.random.default_rng(0),
    )
    seen = [random_crop_camera(obj.vertices, rng) for _ in range(200)]
    elevation, distance = np.array([c.elevation_deg for c in seen]), np.array([c.distance for c in seen])
    fov, azimuth = np.array([c.fov_deg for c in seen]), np.array([c.azimuth_deg for c in seen])
    assert elevation.min() >= -20 and elevation.max() <= 50
    # 0.7 from -5..35, and of the other 0.3 the part of -20..50 that lies there: 0.7 + 0.3 * 40 / 70.
    assert ((elevation > -5) & (elevation < 35)).mean() == pytest.approx(0.871, abs=0.06)
    assert distance.min() >= 1.5 and distance.max() <= 4 and np.ptp(distance) > 2
    assert fov.min() >= 10 and fov.max() <= 60 and np.ptp(fov) > 20
    assert azimuth.min() < 10 and azimuth.max() > 350


def test_the_usual_share_is_what_is_asked_for() -> None:
    rng, draw = (
        np.random.default_rng(1),
        CameraDraw(usual_share=1.0, usual_elevation_deg=(5.0, 6.0), fov_deg=(20.0, 21.0)),
    )
    seen = [random_crop_camera(procedural(0).vertices, rng, draw) for _ in range(20)]
    assert all(5 <= c.elevation_deg <= 6 for c in seen)
    assert all(19.99 < c.fov_deg < 21.01 for c in seen)  # the distance that gives this field of view was found


def test_what_is_too_narrow_for_any_field_of_view_is_seen_from_nearby() -> None:
    needle = np.array([[0, 0, -0.5], [0, 0, 0.5]]) * 0.1
    camera = random_crop_camera(needle, np.random.default_rng(0))
    assert camera.distance == pytest.approx(1.5, abs=1e-3) and camera.fov_deg < 10


def test_field_of_view_of_a_crop_by_hand() -> None:
    camera = crop_camera(np.array([[0, -0.5, 0], [0, 0.5, 0]]), 0.0, 0.0, 2.0, 0.5)
    assert camera.half == pytest.approx(0.5)  # 1 wide, 2 away, in half of the picture
    assert camera.fov_deg == pytest.approx(2 * 26.565051)
