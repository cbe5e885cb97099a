"""The embedded model's frame, network and folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from lrm.field import TriplaneField
from lrm.tiny import PictureFrame, TinyConfig, TinyLRM, contract_depth
from multiview.cameras import orbit, project
from multiview.errors import FieldError, ImageError, WeightsError

SMALL = TinyConfig(
    image_size=32,
    stem=(8, 8, 16, 16),
    width=24,
    heads=3,
    layers=1,
    side_channels=(16, 8),
    front_channels=(16, 8, 8),
    plane_channels=4,
)


@pytest.fixture(scope="module")
def model() -> TinyLRM:
    return TinyLRM.random(SMALL, seed=3)


@pytest.mark.parametrize("elevation_deg", [0.0, 25.0, -15.0])
def test_plane_coordinates_are_image_coordinates_of_the_stated_camera(elevation_deg: float) -> None:
    focal = 4.0
    camera = orbit(0.0, elevation_deg, focal, math.degrees(2 * math.atan(1 / focal)))
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    uv, depth = project(camera, points)
    plane = PictureFrame(elevation_deg, focal, 1.2).to_plane(points)
    # Image v grows downward and both run over 0..1; plane coordinates run over -1..1 and up is positive.
    assert torch.allclose(plane[:, 1], uv[0, :, 0] * 2 - 1, atol=1e-5)
    assert torch.allclose(plane[:, 2], 1 - uv[0, :, 1] * 2, atol=1e-5)
    assert torch.allclose(plane[:, 0], contract_depth(focal - depth[0], 1.2), atol=1e-5)


def test_contracted_depth_by_hand() -> None:
    depth = torch.tensor([0.0, 1.2, -1.2, 1e6])
    assert contract_depth(depth, 1.2).tolist() == pytest.approx([0, 2**-0.5, -(2**-0.5), 1.0])


def test_front_plane_is_the_picture_the_right_way_up(model: TinyLRM) -> None:
    """What changes in the picture's top right corner changes the front plane's top right corner most."""
    picture = torch.full((1, 4, 32, 32), 0.5)
    changed = picture.clone()
    changed[:, :3, 2:6, 24:28] = 1.0  # rows 2..5 from the top, columns 24..27
    with torch.no_grad():
        change = model.network(changed)[0] - model.network(picture)[0]
    difference = change.abs()[0, 2].sum(0)  # (16, 16), row 0 at the bottom
    row, column = divmod(int(difference.argmax()), 16)
    assert row >= 11
    assert column >= 10


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
    with pytest.raises(WeightsError, match="architecture 'triposr', expected 'tiny'"):
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
