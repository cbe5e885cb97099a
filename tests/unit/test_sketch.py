"""Sketches: quick renderings of a lattice of samples, against a ball whose outline is known."""

from __future__ import annotations

import math

import pytest
import torch

from lrm.field import FunctionField
from lrm.sketch import PhotoSketcher, sampled_lattice, sketch
from lrm.tiny import TinyConfig, TinyLRM
from multiview.ring import RING_DISTANCE, RING_FOV_DEG, ring_cameras

RADIUS = 1.4
SMALL = TinyConfig(
    image_size=32, stem=(8, 8, 16, 16), width=16, heads=1, layers=1, lift_side=4, lift_channels=8, seed_channels=8,
    side_channels=(8, 8), front_channels=(8, 8, 8), plane_channels=8, decoder_width=16,
)  # fmt: skip


def ball(radius: float, center: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> FunctionField:
    """A dense ball, red where y > 0 and blue elsewhere."""
    middle = torch.tensor(center)

    def density(points: torch.Tensor) -> torch.Tensor:
        return ((points - middle).norm(dim=-1) < radius).float() * 200

    def color(points: torch.Tensor) -> torch.Tensor:
        red = (points[:, 1:2] > 0).float()
        return torch.cat([red, torch.zeros_like(red), 1 - red], -1)

    return FunctionField(density, color, scene_radius=RADIUS, level=100.0)


def test_a_lattice_holds_density_and_color_by_z_y_x() -> None:
    lattice = sampled_lattice(ball(0.3, (0.0, 0.0, 0.7)), RADIUS, 16)
    inside = torch.nonzero(lattice[0] > 0).float()
    place = ((inside + 0.5) / 16 * 2 - 1) * RADIUS
    assert place.mean(0)[0].item() == pytest.approx(0.7, abs=0.05)  # z first
    assert place.mean(0)[1:].abs().max().item() < 0.05
    assert lattice[1, :, 12].mean() == 1 and lattice[3, :, 3].mean() == 1  # red at +y, blue at -y


def test_a_ball_is_seen_as_large_as_it_is_and_in_its_colors() -> None:
    cameras = ring_cameras().select([0])
    drawn = sketch(sampled_lattice(ball(0.8), RADIUS, 64), RADIUS, cameras, 64)[0]
    seen = math.sqrt(float((drawn[3] > 0.5).sum()) / math.pi) / 32  # radius in half images
    true = 0.8 / math.sqrt(RING_DISTANCE**2 - 0.8**2) / math.tan(math.radians(RING_FOV_DEG / 2))
    assert true < seen < true + 0.05  # the outermost cell, between dense and empty, is opaque
    assert drawn[:3, 32, 44].tolist() == pytest.approx([1, 0, 0], abs=0.05)  # +y is right of the camera at +x
    assert drawn[:3, 32, 20].tolist() == pytest.approx([0, 0, 1], abs=0.05)


def test_what_is_nearer_has_more_depth() -> None:
    near, far = (
        sketch(sampled_lattice(ball(0.3, (x, 0.0, 0.0)), RADIUS, 48), RADIUS, ring_cameras().select([0]), 33)
        for x in (0.8, -0.8)
    )
    assert near[0, 4].max() > far[0, 4].max() + 0.2
    assert far[0, 4, 0, 0] == 0  # nothing there


def test_the_sketcher_mistrusts_what_the_model_guessed_itself() -> None:
    model = TinyLRM.random(SMALL)
    photo = torch.rand(4, 32, 32, generator=torch.Generator().manual_seed(1))
    guess = float(model.guess_camera(photo[None])[0, 0])
    sketcher = PhotoSketcher(model)
    own, focal = sketcher(photo, guess)
    told, _ = sketcher(photo, guess + 20)
    free, _ = model.plain_fields(photo[None])
    again = sketch(sampled_lattice(free[0], 1.4), 1.4, ring_cameras(), 64)
    assert torch.equal(own, again)
    assert not torch.allclose(told, own)
    assert focal == pytest.approx(float(model.guess_camera(photo[None])[0, 1]))
    assert sketcher.image_size == 32


def test_plain_fields_agree_with_reconstruct_off_the_silhouettes_touch() -> None:
    model = TinyLRM.random(SMALL)
    photo = torch.zeros(1, 4, 32, 32)
    photo[:, :, 8:24, 8:24] = 0.8
    plain, camera = model.plain_fields(photo)
    whole = model.reconstruct(photo)[0]
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) * 0.4 - 0.2
    assert camera[0, 0].item() == pytest.approx(whole.elevation_deg)
    assert torch.allclose(plain[0].color(points), whole.field.color(points), atol=1e-5)
