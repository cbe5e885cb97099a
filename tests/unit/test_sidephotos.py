"""More photos of one object: where their cameras are put, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lrm.field import FunctionField
from lrm.volume import render
from multiview.cameras import Cameras, orbit, orbit_angles, project
from multiview.errors import SettingsError
from trilift.settings import LiftSettings
from trilift.sidephotos import SIDES, parse_side, photo_views


def picture(height: float, size: int = 64) -> torch.Tensor:
    """An upright bar that fills ``height`` of the picture."""
    image = torch.zeros(4, size, size)
    half = round(height * size / 2)
    image[:, size // 2 - half : size // 2 + half, size // 2 - 4 : size // 2 + 4] = 1.0
    return image


def test_sides_are_words_or_degrees() -> None:
    assert parse_side("back=b c.png") == parse_side("180=b c.png")
    assert parse_side("left=x=y.png").path == Path("x=y.png")
    assert parse_side("-30.5=a.png").azimuth_deg == -30.5
    assert SIDES["right"] == 90.0


@pytest.mark.parametrize("text", ["b.png", "back=", "above=b.png", "nan=b.png", "400=b.png"])
def test_wrong_sides_are_named(text: str) -> None:
    with pytest.raises(SettingsError, match="--photo"):
        parse_side(text)


def test_cameras_stand_where_the_sides_are_and_the_heights_agree() -> None:
    images = [picture(0.8), picture(0.4, 48)]
    views = photo_views(images, [0.0, 180.0], [10.0, 20.0], [4.0, 5.0])
    azimuths, elevations, distances = orbit_angles(views.cameras)
    assert azimuths.tolist() == pytest.approx([0, 180], abs=1e-3)
    assert elevations.tolist() == pytest.approx([10, 20], abs=1e-3)
    # The second shows the object half as tall, to a pixel: its half width is two of the first one's.
    assert distances.tolist() == pytest.approx([4.0, 5.0 * 52 / 64 * 48 / 20], abs=0.01)
    assert views.image_size == (64, 64)


def test_a_known_object_photographed_from_two_sides_comes_back_to_one_scale() -> None:
    """A bar with a lamp at its right end: both photos, framed differently, put the lamp at the same place."""

    def density(points: torch.Tensor) -> torch.Tensor:
        bar = (points.abs() < torch.tensor([0.1, 0.1, 0.5])).all(-1)
        lamp = (points - torch.tensor([0.0, 0.3, 0.0])).norm(dim=-1) < 0.1
        return (bar | lamp).float() * 200

    field = FunctionField(density, lambda p: torch.ones_like(p) * 0.5, scene_radius=0.6, level=100.0)
    shots = [(0.0, 2.9, 24.0), (180.0, 2.5, 40.0)]
    images, focals = [], []
    for azimuth, distance, fov in shots:
        seen = render(field, orbit(azimuth, 0.0, distance, fov), 96, 96, samples_per_ray=128, background=0.0)
        images.append(torch.cat([seen.images[0], seen.opacity[0]]))
        focals.append(1 / torch.tan(torch.deg2rad(torch.tensor(fov / 2))).item())
    views = photo_views(images, [a for a, _, _ in shots], [0.0, 0.0], focals)
    unit = 2.9 / focals[0]
    lamp = torch.tensor([[0.0, 0.3, 0.0]]) / unit
    pixels = project(views.cameras, lamp)[0][:, 0] * 96
    for alpha, (x, y) in zip(views.alpha[:, 0], pixels.tolist(), strict=True):
        assert alpha[int(y), int(x)] > 0.5
    assert (pixels[0, 0] - 48) * (pixels[1, 0] - 48) < 0  # right of the bar in one, left of it in the other


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"photos": ("back",)}, "SIDE=FILE"),
        ({"photos": "back=b.png"}, "photos="),
        ({"photos": ("back=b.png",), "views_dir": "v"}, "exclude each other"),
        ({"best_of": 0}, "best_of=0"),
        ({"best_of": 65}, "best_of=65"),
        ({"best_of_seconds": 0.0}, "best_of_seconds"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        LiftSettings().replaced(**changes)


def test_views_without_an_object_keep_the_picture_as_their_measure() -> None:
    views = photo_views([picture(0.8), torch.zeros(4, 64, 64)], [0.0, 90.0], [0.0, 0.0], [4.0, 4.0])
    assert isinstance(views.cameras, Cameras) and float(views.cameras.positions[1].norm()) == pytest.approx(
        3.2, abs=0.1
    )
