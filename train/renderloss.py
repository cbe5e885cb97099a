"""Losses of rendered patches and labelled points, for fields that are rendered by volume.

A field is asked for rays or points in chunks, each of which is computed again on the way back, so that memory is that
of one chunk; the chunk's size changes no result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lrm.field import Field, TriplaneField
from lrm.volume import render_rays

_SCALES = (1, 2, 4)  # pixels between the neighbours whose difference is a gradient


@dataclass(frozen=True)
class RenderWeights:
    """What each part of the loss counts.

    Attributes:
        color: squared error of the colour over the background.
        mask: squared error of opacity against alpha.
        gradient: absolute error of differences of pixels 1, 2 and 4 apart.
        features: how different render and truth look to a network: one less the cosine of what the model's own image
            encoder, as published, sees in them, or as ``feature_weights`` say.
        feature_weights: files of that network, see `train.features.load_features`; empty for the model's own encoder.
        points: cross-entropy of inside or outside at labelled points, where there are some.
        surface: absolute error of the colour at surface points, likewise.
    """

    color: float = 1.0
    mask: float = 0.5
    gradient: float = 0.2
    features: float = 0.0
    feature_weights: tuple[str, ...] = ()
    points: float = 0.1
    surface: float = 0.1


def ramp(step: int, steps: int, shares: tuple[float, float]) -> float:
    """How much of a part of the loss counts at a step: 0 before the first share of the run, 1 from the second on."""
    low, high = (share * steps for share in shares)
    return min(1.0, max(0.0, (step - low) / max(1e-9, high - low)))


def _chunked(function: Callable[..., tuple[Tensor, ...]], chunk_size: int, *inputs: Tensor) -> tuple[Tensor, ...]:
    """``function`` of rows in chunks, joined; recomputed in the backward pass when gradients are on."""
    parts = []
    for start in range(0, len(inputs[0]), chunk_size):
        rows = [x[start : start + chunk_size] for x in inputs]
        parts.append(checkpoint(function, *rows, use_reentrant=False) if torch.is_grad_enabled() else function(*rows))
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def render_patches(
    field: Field, origins: Tensor, directions: Tensor, background: Tensor, *, samples_per_ray: int, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Render T patches of R rays.

    Args:
        field: what is rendered.
        origins, directions: (T, R, 3), directions of unit length.
        background: (T, 3) sRGB.
        samples_per_ray: see `lrm.volume.render_rays`.
        chunk_size: rays of one pass.

    Returns:
        Colour (T, R, 3) over the background, and opacity (T, R); differentiable in the field.
    """

    def march(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        color, opacity, _ = render_rays(field, o, d, samples_per_ray, background=0.0)
        return color, opacity

    color, opacity = _chunked(march, chunk_size, origins.flatten(0, 1), directions.flatten(0, 1))
    opacity = opacity.view(origins.shape[:2])
    return color.view(origins.shape) + background[:, None] * (1 - opacity[..., None]), opacity


def over(target: Tensor, background: Tensor) -> Tensor:
    """Straight RGBA (T, 4, P, P) over colours (T, 3) → (T, 3, P, P)."""
    return target[:, :3] * target[:, 3:] + background[:, :, None, None] * (1 - target[:, 3:])


def gradient_error(made: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error of the differences of pixels 1, 2 and 4 apart, along both axes, of (T, C, P, P)."""
    errors = []
    for step in _SCALES:
        for axis in (-1, -2):
            if made.shape[axis] > step:
                count = made.shape[axis] - step
                a, b = (x.narrow(axis, step, count) - x.narrow(axis, 0, count) for x in (made, truth))
                errors.append((a - b).abs().mean())
    return torch.stack(errors).mean()


def patch_losses(color: Tensor, opacity: Tensor, target: Tensor, background: Tensor) -> dict[str, Tensor]:
    """Colour, mask and gradient errors of rendered patches.

    Args:
        color, opacity: see `render_patches`.
        target: (T, 4, P, P) straight RGBA.
        background: (T, 3).
    """
    made = color.transpose(1, 2).unflatten(2, target.shape[2:])
    truth = over(target, background)
    return {
        "color": (made - truth).square().mean(),
        "mask": (opacity.unflatten(1, target.shape[2:]) - target[:, 3]).square().mean(),
        "gradient": gradient_error(made, truth),
    }


def point_losses(
    field: TriplaneField, points: Tensor, inside: Tensor, surface: Tensor, colors: Tensor, *, chunk_size: int
) -> dict[str, Tensor]:
    """Errors of a field at labelled points.

    The raw density, less that of the field's own level, is the logit of being inside.

    Args:
        field: with a level.
        points, inside: (N, 3) and (N,) float 0 or 1.
        surface, colors: (Q, 3) and (Q, 3) sRGB.
        chunk_size: points of one pass.
    """
    (raw,) = _chunked(lambda x: (field.raw(x),), chunk_size, torch.cat([points, surface]))
    logits = raw[: len(points), 0] - field.outputs.from_density(field.level)
    made = field.outputs.to_color(raw[len(points) :, 1:])
    return {
        "points": F.binary_cross_entropy_with_logits(logits, inside),
        "surface": (made - colors).abs().mean(),
    }
