"""OpenLRM's and InstantMesh's own way to render, for comparing numbers with them; `lrm.volume.render` is what we use.

Each ray is sampled twice: at jittered even steps through the cube, then again where the first pass met something. The
samples are random also at inference, so a number can only be compared when the random numbers are drawn in the same
layout. Written from the formulas of the fact sheet (1.6) alone; the published file is under a licence that we keep
away from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from multiview.cameras import Cameras, rays
from multiview.errors import SettingsError

from .field import CubeFrame, Frame, TriplaneField
from .fixedstep import as_rendering
from .volume import Rendering

_KEEP = 1e-10  # added to the transparency of each interval


@dataclass(frozen=True)
class TwoPassRule:
    """What differs between the programs that render in two passes.

    Attributes:
        samples_per_ray: S, of both passes together; even, at least 8.
        guard: outside the cube raw density is the lowest float32 divided by this.
        divide_depth: whether depth is divided by the ray's opacity. InstantMesh leaves that out, so that its depth
            means little where opacity is low.
        background: sRGB value behind everything.
    """

    samples_per_ray: int = 96
    guard: float = 8.0
    divide_depth: bool = True
    background: float = 1.0

    def __post_init__(self) -> None:
        if self.samples_per_ray < 8 or self.samples_per_ray % 2 or self.guard <= 0:
            raise SettingsError(
                "a two-pass rule wants an even samples_per_ray of at least 8 and a positive guard, found "
                f"{self.samples_per_ray} and {self.guard}."
            )


OPENLRM_RULE = TwoPassRule()
INSTANTMESH_RULE = TwoPassRule(guard=3.0, divide_depth=False)


@torch.no_grad()
def render_two_pass(
    field: TriplaneField,
    cameras: Cameras,
    height: int,
    width: int,
    *,
    generator: torch.Generator,
    rule: TwoPassRule = OPENLRM_RULE,
    chunk_size: int = 1 << 18,
) -> Rendering:
    """Render a field as the programs of OpenLRM and InstantMesh render theirs.

    Args:
        field: planes over a cube of the world, possibly turned; the raw density is averaged before activation.
        cameras: V cameras in the world frame. Their number is part of the random layout.
        height, width: pixels.
        generator: where the random numbers come from; the same seed gives the same picture.
        rule: which program's.
        chunk_size: points per query; changes memory, never results.

    Returns:
        A `Rendering` on the field's device, without gradients. Colours may leave [0, 1] by the colour margin of the
        field's output rule, as the published ones do.

    Raises:
        SettingsError: a size that is not positive, or a field whose planes do not lie over a cube.

    Source:
        Facts 1.6; parity in tests/parity/test_renderers.py.
    """
    if min(height, width, chunk_size) < 1:
        raise SettingsError(
            f"render_two_pass wants positive sizes, found {height} x {width}, {chunk_size} points a chunk."
        )
    cameras = cameras.to(field.device)
    origins, directions = rays(cameras, height, width)
    rgb, opacity, t = render_rays_two_pass(field, origins, directions, generator, rule, chunk_size)
    return as_rendering(rgb, opacity, t, cameras, directions, height, width)


@torch.no_grad()
def render_rays_two_pass(
    field: TriplaneField,
    origins: Tensor,
    directions: Tensor,
    generator: torch.Generator,
    rule: TwoPassRule,
    chunk_size: int = 1 << 18,
) -> tuple[Tensor, Tensor, Tensor]:
    """Two passes over the rays of one call.

    Args:
        origins, directions: (V, R, 3) world units, directions of unit length; V and R set the random layout.

    Returns:
        Colour (V * R, 3) over the background, opacity (V * R,), and the published program's depth (V * R,): a ray
        parameter, clamped to the smallest and largest sample of the whole call.
    """
    near, far = planes_interval(field, origins, directions)
    half = rule.samples_per_ray // 2
    coarse = coarse_depths(near, far, half, generator)
    o, d = origins.reshape(-1, 3), directions.reshape(-1, 3)
    first = _query(field, o, d, coarse, rule, chunk_size)
    weights = interval_weights(field, coarse, first[..., 0])
    fine = fine_depths(coarse, weights, generator)
    second = _query(field, o, d, fine, rule, chunk_size)
    depths, order = torch.sort(torch.cat([coarse, fine], -1), -1)
    samples = torch.cat([first, second], 1).gather(1, order[..., None].expand(-1, -1, 4))
    return _composite(field, depths, samples, rule)


def planes_interval(field: TriplaneField, origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays pass the planes' cube; a cube behind the camera counts, with negative numbers.

    Rays that miss get the smallest and the largest of the *entries* of those that hit. That is how the published
    program has it; as both lie outside the cube or in empty space, nothing is seen of it. If no ray hits, -1 and -2.

    Args:
        origins, directions: (V, R, 3) world units.

    Returns:
        ``near`` and ``far`` (V, R).
    """
    frame = _linear_frame(field)
    shape = origins.shape[:-1]
    o, d = frame.to_plane(origins.reshape(-1, 3)), frame.to_plane(directions.reshape(-1, 3))
    a, b = (-1 - o) / d, (1 - o) / d
    near, far = torch.minimum(a, b).amax(-1), torch.maximum(a, b).amin(-1)
    hit = far > near  # false for the NaN of a ray that lies in one of the cube's faces
    if not hit.any():
        return torch.full_like(near, -1).reshape(shape), torch.full_like(far, -2).reshape(shape)
    low, high = near[hit].min(), near[hit].max()
    return torch.where(hit, near, low).reshape(shape), torch.where(hit, far, high).reshape(shape)


def coarse_depths(near: Tensor, far: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Even steps from near to far (V, R), each moved on by a random part of a step; the last may pass ``far``.

    Returns:
        (V * R, count), ascending. The random numbers are drawn as [sample, view, ray].
    """
    jitter = _uniform((count, *near.shape), generator, near).permute(1, 2, 0)
    step = ((far - near) / (count - 1))[..., None]
    even = torch.linspace(0, 1, count, device=near.device, dtype=near.dtype)
    depths = near[..., None] + (far - near)[..., None] * even + jitter * step
    return depths.reshape(-1, count)


def fine_depths(depths: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
    """Draw new depths where the coarse pass met something.

    Args:
        depths: (R, n) ascending.
        weights: (R, n - 1) of the intervals between them.

    Returns:
        (R, n), in no order. The random numbers are drawn as [ray, sample].
    """
    smooth = F.max_pool1d(weights[:, None], 2, stride=1, padding=1)
    smooth = F.avg_pool1d(smooth, 2, stride=1)[:, 0] + 0.01
    share = smooth[:, 1:-1] + 1e-5
    share = share / share.sum(-1, keepdim=True)
    reached = torch.cat([torch.zeros_like(share[:, :1]), torch.cumsum(share, -1)], -1)
    bins = (depths[:, 1:] + depths[:, :-1]) / 2
    u = _uniform(tuple(depths.shape), generator, depths)
    found = torch.searchsorted(reached, u, right=True)
    low, high = (found - 1).clamp(min=0), found.clamp(max=share.shape[-1])
    width = reached.gather(1, high) - reached.gather(1, low)
    width = torch.where(width < 1e-5, torch.ones_like(width), width)
    start, end = bins.gather(1, low), bins.gather(1, high)
    return start + (u - reached.gather(1, low)) / width * (end - start)


def interval_weights(field: TriplaneField, depths: Tensor, raw_density: Tensor) -> Tensor:
    """Weights (R, n - 1) of the intervals between depths (R, n); raw density (R, n) is averaged before activation."""
    density = field.outputs.to_density((raw_density[:, 1:] + raw_density[:, :-1]) / 2)
    alpha = 1 - torch.exp(-density * (depths[:, 1:] - depths[:, :-1]))
    clear = torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1] + _KEEP], -1)
    return alpha * torch.cumprod(clear, -1)


def _composite(
    field: TriplaneField, depths: Tensor, samples: Tensor, rule: TwoPassRule
) -> tuple[Tensor, Tensor, Tensor]:
    """Depths (R, S) ascending and samples (R, S, 4) of raw density and colour → colour, opacity, depth."""
    weights = interval_weights(field, depths, samples[..., 0])
    color = (samples[:, 1:, 1:] + samples[:, :-1, 1:]) / 2
    middle = (depths[:, 1:] + depths[:, :-1]) / 2
    opacity = weights.sum(-1)
    rgb = (weights[..., None] * color).sum(1) + rule.background * (1 - opacity[:, None])
    depth = (weights * middle).sum(-1)
    if rule.divide_depth:
        depth = torch.nan_to_num(depth / opacity, nan=float("inf"), posinf=float("inf"))
    return rgb, opacity, depth.clamp(depths.min(), depths.max())


def _query(
    field: TriplaneField, origins: Tensor, directions: Tensor, depths: Tensor, rule: TwoPassRule, chunk_size: int
) -> Tensor:
    """Samples (R, n, 4) at depths (R, n): raw density, guarded outside the cube, and colour, 0 there."""
    frame, ask = _linear_frame(field), field.folded_raw()
    guard = torch.finfo(depths.dtype).min / rule.guard
    margin = field.outputs.color_margin
    parts = []
    rays_per_chunk = max(1, chunk_size // depths.shape[1])
    for o, d, z in zip(*(x.split(rays_per_chunk) for x in (origins, directions, depths)), strict=True):
        points = (o[:, None] + d[:, None] * z[..., None]).reshape(-1, 3)
        raw = ask(points)
        # Not through OutputRule.to_color, which clamps: the published colours keep their margin.
        color = torch.sigmoid(raw[:, 1:]) * (1 + 2 * margin) - margin
        inside = (frame.to_plane(points).abs() <= 1).all(-1, keepdim=True)
        density = torch.where(inside, raw[:, :1], torch.full_like(raw[:, :1], guard))
        parts.append(torch.cat([density, torch.where(inside, color, 0.0)], -1).reshape(*z.shape, 4))
    return torch.cat(parts)


def _linear_frame(field: TriplaneField) -> Frame:
    """The field's frame, which must keep straight rays straight; a frame says so by an attribute ``linear``."""
    frame = field.frame or CubeFrame(field.scene_radius)
    if not (isinstance(frame, CubeFrame) or getattr(frame, "linear", False)):
        raise SettingsError(
            f"render_two_pass wants planes over a cube, found a field with a {type(frame).__name__}. "
            "Render it with lrm.volume.render."
        )
    return frame


def _uniform(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """U(0, 1), drawn where the generator lives, so that a seed means the same on every device."""
    return torch.rand(shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)
