"""The losses of the embedded model's trainer: rays, rendered patches, and which camera the network is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from lrm.tiny import TinyConfig, TinyNetwork, decode_camera, photo_projection, project_points, ray_points
from train.batches import Batch, PointCounts
from train.lrm import LossWeights, losses, rendered_loss, told_projections
from train.preview import png_bytes

SMALL = TinyConfig(
    image_size=32, stem=(8, 8, 16, 16), width=24, layers=1, side_channels=(16, 8), front_channels=(16, 8, 8),
    plane_channels=4, lift_side=6, lift_channels=8, seed_channels=16, decoder_width=8, decoder_layers=1,
)  # fmt: skip


def camera(elevation: float, focal: float) -> torch.Tensor:
    return photo_projection(torch.tensor([elevation]), torch.tensor([focal]))


def test_ray_points_project_onto_their_pixels_and_are_evenly_spaced() -> None:
    projections = torch.cat([camera(25.0, 4.0), camera(-10.0, 6.0)])
    pixels = torch.rand(2, 7, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    points, delta = ray_points(projections, pixels, 1.6, 40)
    seen = project_points(projections, points.flatten(1, 2)).unflatten(1, (7, -1))
    assert torch.allclose(seen, pixels[:, :, None].expand_as(seen), atol=1e-4)
    gaps = points.diff(dim=2).norm(dim=-1)
    assert torch.allclose(gaps, delta[..., 1:], atol=1e-5)
    # The middle of the samples is where the ray passes nearest to the origin.
    middle = points.mean(2)
    along = points[:, :, -1] - points[:, :, 0]
    assert (middle * along).sum(-1).abs().max() < 1e-4


def small_batch(known: float, views: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, views, 4, 32, 32, generator=generator)
    true = torch.cat([camera(20.0, 4.5), camera(0.0, 4.5)])
    return Batch(
        images=image, projections=true[:, None].expand(-1, views, -1, -1),
        camera=torch.tensor([[20 / 30, 0.0], [0, 0]]),
        points=torch.rand(2, 48, 3, generator=generator) * 2 - 1, occupancy=torch.ones(2, 48), weight=torch.ones(2, 48),
        surface=torch.rand(2, 8, 3, generator=generator) - 0.5, colors=torch.full((2, 8, 3), 0.5),
        known=torch.full((2,), known), target_projection=true, target=torch.ones(2, 4, 32, 32),
    )  # fmt: skip


def test_unknown_cameras_are_those_that_the_head_guessed_and_several_views_are_always_told() -> None:
    guess = torch.tensor([[0.5, 0.1], [-0.2, 0.3]])
    guessed = photo_projection(*decode_camera(guess))
    for batch, expected in (
        (small_batch(0.0), guessed[:, None]),
        (small_batch(1.0), small_batch(1.0).projections),
        (small_batch(0.0, views=2), small_batch(0.0, views=2).projections),
    ):
        assert torch.allclose(told_projections(guess, batch), expected)


@pytest.mark.parametrize(("raw", "expected"), [(20.0, 0.5), (-20.0, 2.0)], ids=["full", "empty"])
def test_rendered_loss_of_a_uniform_field_by_hand(raw: float, expected: float) -> None:
    """A full cube of mid-grey before a white, opaque target: 0.5 for colour, 0 for the matte; empty: 1 and 1."""
    torch.manual_seed(0)
    network = TinyNetwork(SMALL)
    with torch.no_grad():
        for layer in network.decoder.layers:
            layer.weight.zero_()  # type: ignore[operator, union-attr]
            layer.bias.zero_()  # type: ignore[operator, union-attr]
        network.decoder.layers[-1].bias[0] = raw  # type: ignore[index]
    batch = small_batch(1.0)
    loss = rendered_loss(network, torch.zeros(2, 3, 4, 16, 16), batch.projections[:, 0], batch)
    assert loss.item() == pytest.approx(expected, abs=1e-3)


def test_every_part_of_the_loss_reaches_the_weights_that_it_should() -> None:
    torch.manual_seed(0)
    network = TinyNetwork(SMALL)
    counts = PointCounts(16, 16, 16, 8)
    zero = LossWeights(occupancy=0, overlap=0, color=0, camera=0, rendered=0)
    for name in vars(zero):
        network.zero_grad()
        total, parts = losses(network, network, small_batch(0.0), dataclasses.replace(zero, **{name: 1.0}), counts)
        assert total.item() == pytest.approx(parts[name].item())
        total.backward()
        touched = {n.split(".")[0] for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
        assert ("head" in touched) == (name == "camera")
        assert ("entry" in touched) == (name != "camera")


def test_png_bytes_read_back(tmp_path: Path) -> None:
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    (tmp_path / "p.png").write_bytes(png_bytes(picture))
    assert (np.asarray(Image.open(tmp_path / "p.png")) == picture).all()
