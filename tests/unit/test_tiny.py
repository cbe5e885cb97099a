"""The embedded model's frame, network and folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lrm.field import TriplaneField
from lrm.mesh import extract_mesh
from lrm.tiny import (
    PictureFrame,
    TinyConfig,
    TinyLRM,
    crop_views,
    photo_projection,
    project_points,
    ray_points,
    view_projections,
)
from multiview.cameras import Cameras, orbit, project, yaw_rotation
from multiview.errors import FieldError, ImageError, WeightsError
from multiview.views import Views

SMALL = TinyConfig(
    image_size=32,
    stem=(8, 8, 16, 16),
    width=24,
    heads=3,
    layers=1,
    side_channels=(16, 8),
    front_channels=(16, 8, 8),
    plane_channels=4,
    lift_side=6,
    lift_channels=8,
    seed_channels=16,
)


@pytest.fixture(scope="module")
def model() -> TinyLRM:
    return TinyLRM.random(SMALL, seed=3)


@pytest.mark.parametrize("elevation_deg", [0.0, 25.0, -15.0])
def test_plane_coordinates_are_those_of_the_stated_camera_and_of_the_box(elevation_deg: float) -> None:
    focal = 4.0
    camera = orbit(0.0, elevation_deg, focal, math.degrees(2 * math.atan(1 / focal)))
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    uv, depth = project(camera, points)
    projection = photo_projection(torch.tensor([elevation_deg]), torch.tensor([focal]))[0]
    plane = PictureFrame(projection, (1.6, 1.0, 2.0)).to_plane(points)
    # Image v grows downward and both run over 0..1; plane coordinates run over -1..1 and up is positive.
    assert torch.allclose(plane[:, 3], uv[0, :, 0] * 2 - 1, atol=1e-5)
    assert torch.allclose(plane[:, 4], 1 - uv[0, :, 1] * 2, atol=1e-5)
    assert torch.allclose(plane[:, :3], points / torch.tensor([1.6, 1.0, 2.0]))
    homogeneous = torch.cat([points, torch.ones(200, 1)], 1) @ projection.T
    assert torch.allclose(homogeneous[:, 2], depth[0] / focal, atol=1e-5)


def ring(azimuths: tuple[float, ...], elevation: float = 20.0, distance: float = 3.0, fov: float = 40.0) -> Cameras:
    return orbit(azimuths, elevation, distance, fov)


@pytest.mark.parametrize("first", [0.0, 75.0, 200.0])
def test_projections_of_views_are_their_cameras_in_the_first_ones_frame(first: float) -> None:
    cameras = ring((first, first + 90, first + 200))
    matrices, turn, unit = view_projections(cameras)
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    uv, _ = project(cameras, points)
    seen = project_points(matrices, (points @ turn.T / unit).expand(3, -1, -1))
    assert torch.allclose(seen[..., 0], uv[..., 0] * 2 - 1, atol=1e-5)
    assert torch.allclose(seen[..., 1], 1 - uv[..., 1] * 2, atol=1e-5)
    # The unit is half the first image at the origin: 3 * tan 20 degrees.
    assert unit == pytest.approx(3 * math.tan(math.radians(20)), rel=1e-5)
    alone = photo_projection(torch.tensor([20.0]), torch.tensor([1 / math.tan(math.radians(20))]))
    assert torch.allclose(matrices[:1], alone, atol=1e-5)


def test_views_are_cropped_about_their_mattes_and_cameras_follow() -> None:
    pictures, alpha = torch.zeros(1, 3, 100, 200), torch.zeros(1, 1, 100, 200)
    alpha[0, 0, 20:60, 100:120] = 1
    pictures[0, 0, 20:60, 100:120] = torch.linspace(0, 1, 40)[:, None]
    views = Views(pictures, alpha, orbit(0.0, 10.0, 3.0, 40.0))
    cropped = crop_views(views, 64, 0.8)
    # 40 rows fill 0.8 of a side of 50 pixels, centred at row 40, column 110: 64 / 50 pixels a pixel.
    rows, columns = (torch.nonzero((cropped.alpha[0, 0] > 0.5).any(axis)).flatten() for axis in (1, 0))
    assert (len(rows), len(columns)) == (pytest.approx(51, abs=1), pytest.approx(26, abs=1))
    assert float(rows[0] + rows[-1]) / 2 == pytest.approx(31.5, abs=0.6)
    assert float(columns[0] + columns[-1]) / 2 == pytest.approx(31.5, abs=0.6)
    assert cropped.images[0, 0, 32, 32] == pytest.approx(0.5, abs=0.05)
    point = torch.tensor([[0.1, 0.05, -0.2]])
    before, after = project(views.cameras, point)[0][0, 0], project(cropped.cameras, point)[0][0, 0]
    pixel = before * torch.tensor([200.0, 100.0])
    assert torch.allclose(after, (pixel - torch.tensor([85.0, 15.0])) / 50, atol=1e-4)


def test_an_empty_matte_is_an_error_that_names_the_view() -> None:
    views = Views(torch.zeros(2, 3, 32, 32), torch.zeros(2, 1, 32, 32), ring((0.0, 90.0)))
    with pytest.raises(ImageError, match="view 0 of 2: its matte is empty"):
        crop_views(views, 32, 0.85)


def test_views_from_a_turned_world_give_the_same_object_turned(model: TinyLRM) -> None:
    generator = torch.Generator().manual_seed(2)
    pictures, alpha = torch.rand(3, 3, 32, 32, generator=generator), torch.ones(3, 1, 32, 32)
    straight = model.reconstruct_views(Views(pictures, alpha, ring((0.0, 120.0, 240.0))))
    turned = model.reconstruct_views(Views(pictures, alpha, ring((70.0, 190.0, 310.0))))
    larger = model.reconstruct_views(Views(pictures, alpha, ring((0.0, 120.0, 240.0), distance=6.0)))
    points = torch.rand(100, 3, generator=generator) - 0.5
    density = straight.field.density(points)
    assert density.std() > 0
    assert torch.allclose(turned.field.density(points @ yaw_rotation(70.0).T), density, atol=1e-3)
    assert torch.allclose(larger.field.density(points * 2) * 2, density, atol=1e-3)
    assert straight.elevation_deg == pytest.approx(20, abs=1e-3)


def test_more_views_change_the_field_and_their_order_after_the_first_does_not(model: TinyLRM) -> None:
    generator = torch.Generator().manual_seed(3)
    views = Views(torch.rand(3, 3, 32, 32, generator=generator), torch.ones(3, 1, 32, 32), ring((0.0, 120.0, 240.0)))
    points = torch.rand(100, 3, generator=generator) - 0.5
    all_three = model.reconstruct_views(views).field.density(points)
    swapped = model.reconstruct_views(views.select([0, 2, 1])).field.density(points)
    alone = model.reconstruct_views(views.select([0])).field.density(points)
    assert torch.allclose(all_three, swapped, atol=1e-3)
    assert (all_three - alone).abs().max() > 1e-2


def test_front_plane_is_the_picture_the_right_way_up(model: TinyLRM) -> None:
    """What changes in the picture's top right corner changes the front plane's top right corner most."""
    picture = torch.full((1, 1, 4, 32, 32), 0.5)
    changed = picture.clone()
    changed[..., :3, 2:6, 24:28] = 1.0  # rows 2..5 from the top, columns 24..27
    camera = photo_projection(torch.tensor([10.0]), torch.tensor([4.0]))[:, None], torch.ones(1)
    with torch.no_grad():
        change = model.network(changed, *camera) - model.network(picture, *camera)
    difference = change.abs()[0, 2].sum(0)  # (16, 16), row 0 at the bottom
    row, column = divmod(int(difference.argmax()), 16)
    assert row >= 11
    assert column >= 10


def test_lifted_features_stand_where_their_pixels_ray_runs(model: TinyLRM) -> None:
    """A mark at the right of a level picture changes the right of both upright planes' seeds, at all depths."""
    network = model.network
    projections = photo_projection(torch.tensor([0.0]), torch.tensor([50.0]))[:, None]
    cameras = torch.cat([projections.flatten(2), torch.ones(1, 1, 1)], -1)
    features = [torch.zeros(1, c, 16 // s, 16 // s) for c, s in zip((8, 8, 16, 16), (1, 2, 4, 8), strict=True)]
    marked = [f.clone() for f in features]
    marked[1][..., :, 6:] = 5.0  # the right quarter of the map of 8 x 8
    with torch.no_grad():
        change = [
            (b - a).abs()[0].sum(0)
            for a, b in zip(
                network._pressed(features, projections, cameras),
                network._pressed(marked, projections, cameras),
                strict=True,
            )
        ]
    above = change[0]  # (y, x): y from left to right of the picture
    assert above[-1].min() > 10 * above[0].max()
    assert above[-1].min() > 0.5 * above[-1].max()


def density_of(model: TinyLRM, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Raw density on the rays of all pixels of the field that a network without an opinion gives, (S, S, 64)."""
    made = model.reconstruct(image[None], elevation_deg=10.0, fov_deg=20.0)[0]
    field = made.field
    assert isinstance(field, TriplaneField)
    assert isinstance(field.frame, PictureFrame)
    steps = (torch.arange(32) + 0.5) / 16 - 1
    up, right = torch.meshgrid(-steps, steps, indexing="ij")
    points, lengths = ray_points(
        field.frame.projection[None], torch.stack([right, up], -1).flatten(0, 1)[None], 1.5, 64
    )
    raw = field.raw_density()
    values = raw.raw(points.flatten(0, 2)).unflatten(0, (32, 32, 64))
    assert torch.allclose(values.flatten(), field.raw(points.flatten(0, 2))[:, 0], atol=1e-3)
    return values, lengths, raw.from_density(field.level)


def test_thin_parts_of_the_silhouette_get_a_surface_and_the_background_none() -> None:
    image = torch.zeros(4, 32, 32)
    image[3, 4:28, 15:18] = 1.0  # a post three pixels thick
    doubtful = TinyLRM.random(SMALL, seed=3)
    doubtful.network.decoder.layers[-1].bias[0] -= 4  # type: ignore[index, operator]
    values, lengths, level = density_of(doubtful, image)
    inside = values > level
    assert inside.any(-1)[4:28, 15:18].float().mean() > 0.9
    # Of each ray's 3 units not much more is inside than the post is wide: 3 pixels of 32, that is 0.19.
    thickness = (inside * lengths.unflatten(1, (32, 32))[0]).sum(-1)[8:24, 16]
    assert 0.1 < thickness.median() < 0.6
    far = torch.ones(32, 32, dtype=torch.bool)
    far[1:31, 12:21] = False
    assert not inside[far].any()


def test_a_thread_of_one_pixel_becomes_a_mesh_along_all_its_length() -> None:
    image = torch.zeros(1, 4, 32, 32)
    image[0, 3, 3:29, 16] = 1.0
    blank = TinyLRM.random(SMALL, seed=3)
    for layer in blank.network.decoder.layers:
        layer.weight.zero_()  # type: ignore[operator, union-attr]
        layer.bias.fill_(-4.0)  # type: ignore[operator, union-attr]
    mesh = extract_mesh(blank.reconstruct(image, elevation_deg=0.0, fov_deg=10.0)[0].field, mesh_resolution=64)
    # 26 of 32 pixels tall in a picture two units tall, and a few pixels wide; perspective makes its far end larger.
    size = np.ptp(mesh.vertices, axis=0)
    assert 1.5 < size[2] < 2.1
    assert size[1] < 6 / 16


def test_wide_parts_and_surfaces_that_are_there_are_left_alone(model: TinyLRM) -> None:
    wide = torch.zeros(32, 32)
    wide[6:26, 6:26] = 1.0
    made = model.reconstruct(torch.cat([torch.rand(3, 32, 32), wide[None]])[None], elevation_deg=5.0, fov_deg=20.0)[0]
    field = made.field
    assert isinstance(field, TriplaneField)
    assert field.touch is None  # this network is full of doubt, but nowhere below its level there
    assert field.raw_bias is not None
    assert (field.raw_bias.flip(0)[6:26, 6:26] == 0).all()
    assert (field.raw_bias.flip(0)[:3] < -10).all()


def test_reconstruct_gives_one_upright_field_a_picture(model: TinyLRM) -> None:
    pictures = torch.rand(2, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    first, second = model.reconstruct(pictures, elevation_deg=20.0, fov_deg=30.0)
    assert isinstance(first.field, TriplaneField)
    assert first.field.planes.shape == (3, 4, 16, 16)
    assert not torch.equal(first.field.planes, second.field.planes)  # type: ignore[attr-defined]
    assert first.camera.fov_y_deg.item() == pytest.approx(30, abs=1e-4)
    assert first.camera.positions[0].tolist() == pytest.approx(
        [
            math.cos(math.radians(20)) / math.tan(math.radians(15)),
            0,
            math.sin(math.radians(20)) / math.tan(math.radians(15)),
        ],
        abs=1e-5,
    )
    assert first.estimated == ()
    assert set(model.reconstruct(pictures)[0].estimated) == {"elevation", "fov", "distance"}


def test_upright_off_leaves_the_field_in_the_cameras_pitch(model: TinyLRM) -> None:
    picture = torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(2))
    upright = model.reconstruct(picture, elevation_deg=90.0, fov_deg=30.0)[0].field
    pitched = model.reconstruct(picture, elevation_deg=90.0, fov_deg=30.0, upright=False)[0].field
    # Seen from straight above, the camera's right, up and back are the world's +y, -x and +z.
    camera_points = torch.rand(50, 3, generator=torch.Generator().manual_seed(3)) - 0.5  # (back, right, up)
    world = torch.stack([-camera_points[:, 2], camera_points[:, 1], camera_points[:, 0]], 1)
    assert torch.allclose(upright.density(world), pitched.density(camera_points), atol=1e-5)


def test_folder_round_trip_is_exact(model: TinyLRM, tmp_path: Path) -> None:
    model.save(tmp_path / "m", {"training": {"steps": 1}})
    loaded = TinyLRM.from_folder(tmp_path / "m")
    picture = torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(4))
    assert loaded.name == "m"
    assert torch.equal(loaded.reconstruct(picture)[0].field.planes, model.reconstruct(picture)[0].field.planes)  # type: ignore[attr-defined]


def test_unknown_config_key_names_the_nearest(model: TinyLRM, tmp_path: Path) -> None:
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["network"]["plane_chanels"] = config["network"].pop("plane_channels")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"'plane_chanels'\. Did you mean 'plane_channels'"):
        TinyLRM.from_folder(tmp_path)


def test_weights_of_another_size_are_refused_with_both_shapes(model: TinyLRM, tmp_path: Path) -> None:
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["network"]["plane_channels"] = 8
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"\(4, 8, 3, 3\) in the file, \(8, 8, 3, 3\) in the model"):
        TinyLRM.from_folder(tmp_path)


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, "architecture": "triposr"}))
    with pytest.raises(WeightsError, match="architecture 'triposr', expected 'tiny2'"):
        TinyLRM.from_folder(tmp_path)


def test_numbers_that_are_not_finite_are_an_error() -> None:
    broken = TinyLRM.random(SMALL, seed=0)
    broken.network.head.out[2].bias.fill_(math.nan)
    with pytest.raises(FieldError, match="not finite"):
        broken.reconstruct(torch.rand(1, 4, 32, 32))


def test_pictures_of_another_size_are_an_error(model: TinyLRM) -> None:
    with pytest.raises(ImageError, match=r"\(B, 4, 32, 32\), found \(1, 3, 32, 32\)"):
        model.reconstruct(torch.rand(1, 3, 32, 32))


def test_random_leaves_the_callers_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    TinyLRM.random(SMALL, seed=9)
    assert torch.equal(before, torch.get_rng_state())
