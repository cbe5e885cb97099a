"""Volume rendering of a field: deterministic ray marching."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from multiview.cameras import Cameras, rays
from multiview.errors import SettingsError

from .field import Field


@dataclass(frozen=True)
class Rendering:
    """What volume rendering gives, for V views of H x W pixels.

    Attributes:
        images: (V, 3, H, W) sRGB in [0, 1], composited over the background.
        opacity: (V, 1, H, W) in [0, 1], the sum of the ray's weights.
        depth: (V, 1, H, W) along the camera's forward axis, world units; 0 where opacity is 0.
    """

    images: Tensor
    opacity: Tensor
    depth: Tensor


def cube_interval(origins: Tensor, directions: Tensor, scene_radius: float) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave the cube of half side ``scene_radius``.

    Args:
        origins, directions: (R, 3), world units; directions need not have unit length.

    Returns:
        ``t_near`` and ``t_far`` (R,), in units of the direction's length, ``t_near`` clamped at 0; a ray that misses
        the cube has both 0.
    """
    safe = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    a, b = (-scene_radius - origins) / safe, (scene_radius - origins) / safe
    near = torch.minimum(a, b).amax(-1).clamp(min=0)
    far = torch.maximum(a, b).amin(-1)
    hit = far > near
    return torch.where(hit, near, torch.zeros_like(near)), torch.where(hit, far, torch.zeros_like(far))


def march(density: Tensor, color: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Composite samples front to back.

    Args:
        density: (R, S) >= 0, per world unit.
        color: (R, S, 3).
        delta: (R, S) or (R, 1) length of each sample's interval, world units.

    Returns:
        Colour (R, 3) not composited over anything, ``opacity`` (R,) and ``weights`` (R, S), which sum to opacity <= 1.

    Source:
        Max 1995; equation 3 of NeRF (arXiv 2003.08934).
    """
    optical = density * delta
    before = torch.cumsum(optical, -1) - optical
    weights = torch.exp(-before) * -torch.expm1(-optical)
    return (weights[..., None] * color).sum(-2), weights.sum(-1), weights


def render_rays(
    field: Field, origins: Tensor, directions: Tensor, samples_per_ray: int = 128, background: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """March rays through a field with evenly spaced midpoints; the same input gives the same output.

    A field may mean something outside its cube (`Field.reach`): one that was stood upright has corners there. Rays are
    marched through the cube that holds it all.

    Args:
        field: what is rendered.
        origins, directions: (R, 3) world units, directions of unit length.
        samples_per_ray: midpoints between entering and leaving the cube.
        background: sRGB value in [0, 1] behind everything.

    Returns:
        Colour (R, 3) over the background, opacity (R,), and expected ray parameter ``t`` (R,), 0 where nothing was
        hit. Differentiable in the field.
    """
    near, far = cube_interval(origins, directions, max(field.scene_radius, field.reach))
    step = (far - near)[:, None] / samples_per_ray
    middle = torch.arange(samples_per_ray, device=origins.device, dtype=origins.dtype) + 0.5
    t = near[:, None] + step * middle
    points = origins[:, None] + directions[:, None] * t[..., None]
    density, color = field.density_and_color(points.reshape(-1, 3))
    shape = t.shape
    rgb, opacity, weights = march(density.reshape(shape), color.reshape(*shape, 3), step)
    expected = (weights * t).sum(-1) / opacity.clamp(min=1e-6)
    return rgb + background * (1 - opacity[:, None]), opacity, expected


def render(
    field: Field,
    cameras: Cameras,
    height: int,
    width: int,
    *,
    samples_per_ray: int = 128,
    background: float = 1.0,
    chunk_size: int = 8192,
) -> Rendering:
    """Render a field from V cameras.

    Args:
        field: what is rendered.
        cameras: V cameras in the world frame.
        height, width: pixels.
        samples_per_ray: see `render_rays`.
        background: sRGB value in [0, 1].
        chunk_size: rays per pass; changes memory, never results.

    Returns:
        A `Rendering` on the field's device. When gradients are on, each chunk is recomputed in the backward pass,
        so that memory stays that of one chunk.

    Raises:
        SettingsError: a size that is not positive.
    """
    if min(height, width, samples_per_ray, chunk_size) < 1:
        raise SettingsError(
            f"render wants positive sizes, found {height} x {width}, {samples_per_ray} samples, "
            f"{chunk_size} rays a chunk."
        )
    origins, directions = rays(cameras.to(field.device), height, width)
    flat_o, flat_d = origins.reshape(-1, 3), directions.reshape(-1, 3)
    parts = []
    for start in range(0, len(flat_o), chunk_size):
        o, d = flat_o[start : start + chunk_size], flat_d[start : start + chunk_size]
        if torch.is_grad_enabled():
            parts.append(checkpoint(render_rays, field, o, d, samples_per_ray, background, use_reentrant=False))
        else:
            parts.append(render_rays(field, o, d, samples_per_ray, background))
    rgb, opacity, t = (torch.cat([p[i] for p in parts]) for i in range(3))
    forward = -cameras.c2w[:, None, :3, 2].to(field.device)
    depth = t * (directions * forward).sum(-1).reshape(-1)
    v = len(cameras)
    return Rendering(
        images=rgb.reshape(v, height, width, 3).permute(0, 3, 1, 2),
        opacity=opacity.reshape(v, 1, height, width),
        depth=depth.reshape(v, 1, height, width),
    )
