"""TripoSR's own way to render its field, for comparing numbers with it; `lrm.volume.render` is what we use.

It differs from ours in kind: every sample counts as 1 / S of a unit long, however long the ray's way through the cube
is, so that its pictures are a little thinner at the rim. Written from the formulas of the fact sheet (2.4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from multiview.cameras import Cameras, rays
from multiview.errors import SettingsError

from .field import Field
from .volume import Rendering

_SHRINK = 0.999  # of the cube's half side: rays stop just inside
_SMALLEST = 1e-6  # direction components below it are replaced by it in the slab test
_SHORTEST = 0.01  # rays with a shorter way through the cube count as missing it
_KEEP = 1e-10  # added to the transparency of each sample


def slab_interval(origins: Tensor, directions: Tensor, half_side: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays pass the cube of half side ``half_side``, with the published tolerances.

    Args:
        origins, directions: (R, 3) world units, directions of unit length.

    Returns:
        ``t_near`` >= 0 and ``t_far`` (R,), and (R,) bool: whether the ray counts as hitting the cube.
    """
    safe = torch.where(directions.abs() < _SMALLEST, torch.full_like(directions, _SMALLEST), directions)
    a, b = (-half_side - origins) / safe, (half_side - origins) / safe
    near = torch.minimum(a, b).amax(-1).clamp(min=0)
    far = torch.maximum(a, b).amin(-1)
    return near, far, far - near > _SHORTEST


def render_rays_fixed_step(
    field: Field, origins: Tensor, directions: Tensor, samples_per_ray: int = 128, background: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """March rays with S midpoints that each count as 1 / S of a unit long; deterministic.

    Args:
        field: its density is taken after activation; its cube is ``scene_radius``.
        origins, directions: (R, 3) world units, directions of unit length.
        samples_per_ray: S.
        background: sRGB value in [0, 1]; rays that miss have it.

    Returns:
        Colour (R, 3) over the background, opacity (R,), expected ray parameter (R,), 0 where nothing was hit.
    """
    near, far, hit = slab_interval(origins, directions, field.scene_radius * _SHRINK)
    middles = (torch.arange(samples_per_ray, device=origins.device, dtype=origins.dtype) + 0.5) / samples_per_ray
    t = near[hit, None] + (far - near)[hit, None] * middles
    points = origins[hit, None] + directions[hit, None] * t[..., None]
    density, color = field.density_and_color(points.reshape(-1, 3))
    alpha = 1 - torch.exp(-density.reshape(t.shape) / samples_per_ray)
    clear = torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1] + _KEEP], -1)
    weights = torch.cumprod(clear, -1) * alpha
    rgb = origins.new_full((len(origins), 3), background)
    opacity, expected = origins.new_zeros(len(origins)), origins.new_zeros(len(origins))
    total = weights.sum(-1)
    rgb[hit] = (weights[..., None] * color.reshape(*t.shape, 3)).sum(-2) + background * (1 - total[:, None])
    opacity[hit] = total
    expected[hit] = (weights * t).sum(-1) / total.clamp(min=1e-6)
    return rgb, opacity, expected


@torch.no_grad()
def render_fixed_step(
    field: Field,
    cameras: Cameras,
    height: int,
    width: int,
    *,
    samples_per_ray: int = 128,
    background: float = 1.0,
    chunk_size: int = 8192,
) -> Rendering:
    """Render a field as TripoSR's program renders its own.

    Args:
        field: what is rendered; the published numbers are for TripoSR's `TriplaneField`.
        cameras: V cameras in the world frame.
        height, width: pixels.
        samples_per_ray: S; it changes the length that a sample counts for, and with it the opacity.
        background: sRGB value in [0, 1].
        chunk_size: rays per pass; changes memory, never results.

    Returns:
        A `Rendering` on the field's device, without gradients.

    Raises:
        SettingsError: a size that is not positive.

    Source:
        Facts 2.4; parity in tests/parity/test_renderers.py.
    """
    if min(height, width, samples_per_ray, chunk_size) < 1:
        raise SettingsError(
            f"render_fixed_step wants positive sizes, found {height} x {width}, {samples_per_ray} samples, "
            f"{chunk_size} rays a chunk."
        )
    origins, directions = rays(cameras.to(field.device), height, width)
    pairs = zip(origins.reshape(-1, 3).split(chunk_size), directions.reshape(-1, 3).split(chunk_size), strict=True)
    parts = [render_rays_fixed_step(field, o, d, samples_per_ray, background) for o, d in pairs]
    rgb, opacity, t = (torch.cat(part) for part in zip(*parts, strict=True))
    return as_rendering(rgb, opacity, t, cameras.to(field.device), directions, height, width)


def as_rendering(
    rgb: Tensor, opacity: Tensor, t: Tensor, cameras: Cameras, directions: Tensor, height: int, width: int
) -> Rendering:
    """Put rays together into pictures.

    Args:
        rgb: (V * H * W, 3). opacity, t: (V * H * W,), ``t`` the ray parameter.
        cameras: V cameras, on the same device.
        directions: (V, H * W, 3) of unit length, from `multiview.cameras.rays`.

    Returns:
        A `Rendering`; its depth is ``t`` measured along each camera's forward axis.
    """
    v = len(cameras)
    along = (directions * -cameras.c2w[:, None, :3, 2]).sum(-1).reshape(-1)
    return Rendering(
        images=rgb.reshape(v, height, width, 3).permute(0, 3, 1, 2),
        opacity=opacity.reshape(v, 1, height, width),
        depth=(t * along).reshape(v, 1, height, width),
    )
