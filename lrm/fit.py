"""Fit a triplane field to labelled points of one object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multiview.errors import FieldError, SettingsError

from .field import Activation, OutputRule, PlanesDecoder, TriplaneField


@dataclass(frozen=True)
class FitConfig:
    """The size and the rules of a field that is fitted; the defaults are TripoSR's.

    Attributes:
        plane_channels: channels of one plane.
        plane_size: texels per side of a plane.
        width, hidden_layers, activation: of the decoder, see `PlanesDecoder`.
        outputs: raw numbers → density and colour.
        scene_radius: half side of the cube, world units.
        level: density of the surface.
        batch_points: points per step.
        learning_rate: Adam's, at the start; it falls to a hundredth along half a cosine.
    """

    plane_channels: int = 40
    plane_size: int = 64
    width: int = 64
    hidden_layers: int = 9
    activation: Activation = "silu"
    outputs: OutputRule = field(default_factory=OutputRule)
    scene_radius: float = 0.87
    level: float = 25.0
    batch_points: int = 8192
    learning_rate: float = 5e-3


def fit_points(
    config: FitConfig,
    points: Tensor,
    inside: Tensor,
    colors: Tensor,
    *,
    steps: int = 400,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> TriplaneField:
    """Fit planes and decoder to one object by Adam on random batches.

    The raw density above that of ``config.level`` is trained as the logit of being inside, so the level set comes to
    lie on the object's surface; colour is trained where the object is.

    Args:
        config: size and rules of the field.
        points: (N, 3) float, world units, in the cube; denser near the surface is better.
        inside: (N,) bool, or float in [0, 1].
        colors: (N, 3) float sRGB in [0, 1]; only those inside count.
        steps: of Adam, >= 1.
        seed: of the start values and the batches; the same seed gives the same field on one machine.
        progress: called with a growing fraction in [0, 1].

    Returns:
        A `TriplaneField` on the device of ``points``, without gradients.

    Raises:
        SettingsError: ``steps`` below 1, or a level that the output rule cannot reach.
        FieldError: shapes that do not go together.
    """
    if steps < 1:
        raise SettingsError(f"fit_points wants steps >= 1, found {steps}.")
    count = len(points)
    if points.shape != (count, 3) or inside.shape != (count,) or colors.shape != (count, 3) or count == 0:
        raise FieldError(
            f"fit_points wants points (N, 3), inside (N,) and colors (N, 3) with N >= 1, found {tuple(points.shape)}, "
            f"{tuple(inside.shape)} and {tuple(colors.shape)}."
        )
    generator = torch.Generator().manual_seed(seed)
    fitted = _start(config, generator, points.device)
    optimiser = torch.optim.Adam([fitted.planes, *fitted.decoder.parameters()], lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, config.learning_rate / 100)
    for step in range(steps):
        batch = torch.randint(count, (config.batch_points,), generator=generator).to(points.device)
        loss = _loss(fitted, points[batch], inside[batch].float(), colors[batch])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress((step + 1) / steps)
    fitted.planes.requires_grad_(False)
    fitted.decoder.requires_grad_(False)
    return fitted


def _start(config: FitConfig, generator: torch.Generator, device: torch.device) -> TriplaneField:
    """Small random planes, and a decoder whose layers keep the size of what passes through them."""
    if not abs(config.outputs.from_density(config.level)) < float("inf"):
        raise SettingsError(f"level {config.level} cannot be reached by {config.outputs}. Choose one between its ends.")
    decoder = PlanesDecoder(config.plane_channels, config.width, config.hidden_layers, config.activation)
    for layer in decoder.layers:
        assert isinstance(layer, nn.Linear)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(layer.bias)
    size = (3, config.plane_channels, config.plane_size, config.plane_size)
    planes = (0.3 * torch.randn(size, generator=generator)).to(device).requires_grad_()
    return TriplaneField(planes, decoder.to(device), config.scene_radius, config.level, config.outputs)


def _loss(fitted: TriplaneField, points: Tensor, inside: Tensor, colors: Tensor) -> Tensor:
    raw = fitted.raw(points)
    level = fitted.outputs.from_density(fitted.level)
    occupancy = F.binary_cross_entropy_with_logits(raw[:, 0] - level, inside)
    error = (fitted.outputs.to_color(raw[:, 1:]) - colors).square().sum(-1)
    return occupancy + (error * inside).sum() / inside.sum().clamp(min=1)
