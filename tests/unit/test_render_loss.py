"""Losses of patches and points by hand, chunks that change nothing, and the worst mistakes rejected."""

from __future__ import annotations

import math

import pytest
import torch

from lrm.field import FunctionField, OutputRule, PlanesDecoder, TriplaneField
from train.renderloss import gradient_error, over, patch_losses, point_losses, render_patches


def uniform_field(density: float, grey: float) -> FunctionField:
    return FunctionField(lambda p: torch.full_like(p[:, 0], density), lambda p: torch.full_like(p, grey), 0.5)


def test_patches_of_a_uniform_cube_by_hand() -> None:
    """One unit of density 1 lets exp(-1) through: colour 0.5 in front of a background of 0.2."""
    origins = torch.tensor([[[2.0, 0.0, 0.0], [2.0, 5.0, 0.0]]])
    directions = torch.tensor([[[-1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]])
    color, opacity = render_patches(
        uniform_field(1.0, 0.5), origins, directions, torch.full((1, 3), 0.2), samples_per_ray=8, chunk_size=100
    )
    through = math.exp(-1)
    assert opacity[0].tolist() == pytest.approx([1 - through, 0.0], abs=1e-5)
    assert color[0, 0].tolist() == pytest.approx([0.5 * (1 - through) + 0.2 * through] * 3, abs=1e-5)
    assert color[0, 1].tolist() == pytest.approx([0.2] * 3)


def test_patch_losses_by_hand() -> None:
    target = torch.zeros(1, 4, 4, 4)
    target[:, :, :, :2] = torch.tensor([0.4, 0.4, 0.4, 1.0])[None, :, None, None]
    background = torch.ones(1, 3)
    truth = over(target, background)
    assert truth[0, 0, 0].tolist() == pytest.approx([0.4, 0.4, 1.0, 1.0])
    exact = patch_losses(truth.flatten(2).transpose(1, 2), target[:, 3].flatten(1), target, background)
    assert all(value.item() == pytest.approx(0, abs=1e-6) for value in exact.values())
    white = patch_losses(torch.ones(1, 16, 3), torch.zeros(1, 16), target, background)
    assert white["color"].item() == pytest.approx(0.36 / 2)
    assert white["mask"].item() == pytest.approx(0.5)
    # Across, of 3 differences of neighbours one is 0.6; of 2 at a distance of two both; there is none of four. Down: 0.
    assert white["gradient"].item() == pytest.approx((0.6 / 3 + 0 + 0.6 + 0) / 4)


def test_gradients_do_not_mind_brightness_but_an_edge_that_moved() -> None:
    picture = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert gradient_error(picture + 0.3, picture).item() == pytest.approx(0, abs=1e-6)
    assert gradient_error(picture.roll(1, -1), picture).item() > 0.1


def triplane_field(seed: int = 0) -> TriplaneField:
    torch.manual_seed(seed)
    return TriplaneField(
        torch.randn(3, 4, 8, 8, requires_grad=True), PlanesDecoder(4, 8, 2), 1.0, 10.0, OutputRule("exp")
    )


def test_chunks_change_neither_numbers_nor_gradients() -> None:
    field = triplane_field()
    origins = torch.tensor([2.0, 0.0, 0.0]).expand(2, 9, 3)
    directions = torch.nn.functional.normalize(torch.randn(2, 9, 3) * 0.2 - torch.tensor([1.0, 0, 0]), dim=-1)
    found = []
    for chunk in (100, 4):
        planes = field.planes
        color, opacity = render_patches(
            field, origins, directions, torch.ones(2, 3), samples_per_ray=6, chunk_size=chunk
        )
        points = point_losses(
            field, origins[0] * 0.3, torch.ones(9), origins[1] * 0.2, torch.zeros(9, 3), chunk_size=chunk
        )
        total = color.sum() + opacity.square().sum() + points["points"] + points["surface"]
        found.append((color.detach(), torch.autograd.grad(total, planes)[0]))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


def test_a_point_at_the_fields_own_level_is_half_inside() -> None:
    field = triplane_field()
    with torch.no_grad():
        for parameter in field.decoder.parameters():
            parameter.zero_()
        field.decoder.get_parameter("layers.2.bias")[0] = field.outputs.from_density(field.level)
    point = torch.zeros(1, 3)
    for inside in (0.0, 1.0):
        losses = point_losses(field, point, torch.tensor([inside]), point, torch.full((1, 3), 0.5), chunk_size=10)
        assert losses["points"].item() == pytest.approx(math.log(2), abs=1e-5)
        assert losses["surface"].item() == pytest.approx(0, abs=1e-6)
