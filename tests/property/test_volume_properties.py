"""What holds for any field, camera and chunk size."""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lrm.field import FunctionField, PlanesDecoder, TriplaneField
from lrm.volume import march, render, render_rays
from multiview.cameras import Cameras, orbit

seeds = st.integers(0, 2**31 - 1)


def small_field(seed: int) -> TriplaneField:
    torch.manual_seed(seed)
    return TriplaneField(2 * torch.randn(3, 4, 5, 5), PlanesDecoder(4, 8, 2, "silu"), 0.9, 1.0)


def blob(rotation: torch.Tensor) -> FunctionField:
    """A lopsided coloured lump, turned by ``rotation``, well inside the cube."""
    center, sides = torch.tensor([0.15, -0.1, 0.05]), torch.tensor([0.2, 0.1, 0.15])

    def local(points: torch.Tensor) -> torch.Tensor:
        return (points @ rotation - center) / sides

    return FunctionField(
        lambda p: 30 * torch.exp(-local(p).square().sum(-1)), lambda p: torch.sigmoid(local(p)), scene_radius=1.0
    )


@settings(max_examples=15)
@given(seeds, st.integers(1, 200))
def test_chunked_equals_unchunked(seed: int, chunk_size: int) -> None:
    field, cameras = small_field(seed), orbit([0.0, 70.0], 20.0, 2.5, 40.0)
    with torch.no_grad():
        whole = render(field, cameras, 7, 9, samples_per_ray=12, chunk_size=10_000)
        parts = render(field, cameras, 7, 9, samples_per_ray=12, chunk_size=chunk_size)
    for name in ("images", "opacity", "depth"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), atol=2e-6, rtol=1e-5)


@given(seeds, st.integers(1, 6), st.integers(1, 20), st.floats(0, 1e6))
def test_weights_sum_to_opacity_and_at_most_one(seed: int, rays: int, samples: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    density = scale * torch.rand(rays, samples, generator=generator)
    color = torch.rand(rays, samples, 3, generator=generator)
    mixed, opacity, weights = march(density, color, torch.rand(rays, 1, generator=generator))
    assert (weights >= 0).all() and (opacity <= 1 + 1e-5).all()
    torch.testing.assert_close(weights.sum(-1), opacity)
    assert (mixed <= opacity[:, None] + 1e-5).all()


@settings(max_examples=10)
@given(seeds, st.floats(-180, 180), st.floats(-80, 80))
def test_turning_cameras_and_scene_together_changes_nothing(seed: int, azimuth: float, elevation: float) -> None:
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)))[0]
    rotation = rotation * torch.linalg.det(rotation).sign()
    cameras = orbit(azimuth, elevation, 3.0, 30.0)
    turned = cameras.c2w.clone()
    turned[:, :3] = rotation @ cameras.c2w[:, :3]
    still = render(blob(torch.eye(3)), cameras, 10, 10, samples_per_ray=256)
    moved = render(blob(rotation), Cameras(turned, cameras.intrinsics), 10, 10, samples_per_ray=256)
    # The cube does not turn, so the midpoints fall elsewhere; the lump is smooth, so that hardly matters.
    torch.testing.assert_close(moved.images, still.images, atol=3e-3, rtol=0)
    torch.testing.assert_close(moved.opacity, still.opacity, atol=3e-3, rtol=0)
    assert still.opacity.max() > 0.9


@settings(max_examples=8)
@given(seeds)
def test_gradients_match_finite_differences(seed: int) -> None:
    field = small_field(seed)
    field.decoder.double()
    origins = torch.tensor([[2.0, 0.1, 0.2], [0.3, -2.0, 0.1]], dtype=torch.float64)
    directions = torch.tensor([[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)

    def image(planes: torch.Tensor) -> torch.Tensor:
        return torch.cat(
            [
                part.reshape(-1)
                for part in render_rays(dataclasses.replace(field, planes=planes), origins, directions, 6)
            ]
        )

    planes = field.planes.double().requires_grad_()
    probe = torch.randn(planes.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = torch.randn(10, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * image(planes)).sum(), planes)
    step = 1e-5
    with torch.no_grad():
        change = (weights * (image(planes + step * probe) - image(planes - step * probe))).sum() / (2 * step)
    torch.testing.assert_close((gradient * probe).sum(), change, atol=1e-6, rtol=1e-4)


def test_gradients_do_not_depend_on_chunks() -> None:
    cameras, gradients = orbit(30.0, 10.0, 2.5, 40.0), []
    for chunk_size in (5, 1000):
        field = small_field(3)
        planes = field.planes.clone().requires_grad_()
        render(
            dataclasses.replace(field, planes=planes), cameras, 6, 6, samples_per_ray=8, chunk_size=chunk_size
        ).images.sum().backward()
        gradients.append(planes.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)
