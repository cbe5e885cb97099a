"""The radiance field that every reconstruction model ends in.

`Field` is the hinge of the project: volume rendering, meshing, texturing and turntables ask it for density and
colour at world points and know nothing else. `TriplaneField` is three feature planes and a small decoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multiview.errors import FieldError

# Plane p reads coordinates (a, b) of a point: a runs along W, b along H. 0 = x, 1 = y, 2 = z.
PlanePairs = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
PAIRS_XY_XZ_YZ: PlanePairs = ((0, 1), (0, 2), (1, 2))
PAIRS_XY_XZ_ZY: PlanePairs = ((0, 1), (0, 2), (2, 1))

Activation = Literal["silu", "relu"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "relu": F.relu}


class Field(ABC):
    """Density and colour inside the cube [-scene_radius, scene_radius]^3 of the world frame.

    Attributes:
        scene_radius: half side of the cube, world units.
        level: density at which the surface is taken when nothing else is asked for.
        device: where the points that it is asked for must live.
    """

    scene_radius: float
    level: float

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the field's tensors."""

    @abstractmethod
    def density_and_color(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Density (N,) >= 0 and sRGB colour (N, 3) in [0, 1] at world points (N, 3); differentiable."""

    def density(self, points: Tensor) -> Tensor:
        """Density (N,) >= 0 at world points (N, 3)."""
        return self.density_and_color(points)[0]

    def color(self, points: Tensor) -> Tensor:
        """sRGB colour (N, 3) in [0, 1] at world points (N, 3)."""
        return self.density_and_color(points)[1]

    def density_function(self) -> Callable[[Tensor], Tensor]:
        """A function equal to `density` up to rounding, prepared for many calls; it gives no gradients."""
        return self.density


@dataclass(frozen=True)
class FunctionField(Field):
    """A field from two plain functions; for analytic shapes, tests and wrappers.

    Attributes:
        density_fn: world points (N, 3) → density (N,).
        color_fn: world points (N, 3) → sRGB colour (N, 3) in [0, 1].
    """

    density_fn: Callable[[Tensor], Tensor]
    color_fn: Callable[[Tensor], Tensor]
    scene_radius: float = 1.0
    level: float = 10.0

    @property
    def device(self) -> torch.device:
        """Analytic fields work on any device; the CPU is where callers without one start."""
        return torch.device("cpu")

    def density_and_color(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See `Field`."""
        return self.density_fn(points), self.color_fn(points)

    def density(self, points: Tensor) -> Tensor:
        """See `Field`; the colour is not computed."""
        return self.density_fn(points)

    def color(self, points: Tensor) -> Tensor:
        """See `Field`; the density is not computed."""
        return self.color_fn(points)


class Frame(Protocol):
    """A map from world points to the coordinates of the planes."""

    def to_plane(self, points: Tensor) -> Tensor:
        """World points (N, 3) → plane coordinates (N, 3), [-1, 1] over the planes; differentiable."""


@dataclass(frozen=True)
class CubeFrame:
    """The planes lie along the world's axes over the cube of half side ``scene_radius``."""

    scene_radius: float

    def to_plane(self, points: Tensor) -> Tensor:
        """World points (N, 3) → (N, 3) divided by ``scene_radius``."""
        return points / self.scene_radius


def sample_planes(planes: Tensor, coordinates: Tensor, *, pairs: PlanePairs = PAIRS_XY_XZ_YZ) -> Tensor:
    """Look up triplane features, bilinearly.

    A point reads one vector from each plane and keeps the three apart. Features fade to 0 from half a texel
    inside the planes' borders to half a texel outside, and stay 0 beyond.

    Args:
        planes: (B, 3, C, H, W) float. Of a pair (a, b), coordinate a runs along W and b along H; index 0 is
            the -1 side.
        coordinates: (B, N, 3) float in plane coordinates, useful range [-1, 1], same device.
        pairs: which two coordinates each plane reads.

    Returns:
        (B, N, 3, C) features, differentiable in ``planes`` and ``coordinates``.

    Raises:
        FieldError: ``planes`` is not 5-D with 3 planes, or the batch sizes differ.

    Source:
        Triplanes of Chan et al. 2022 (arXiv 2112.07945), section 3.
    """
    if planes.ndim != 5 or planes.shape[1] != 3 or coordinates.shape[:1] != planes.shape[:1]:
        raise FieldError(
            f"sample_planes wants planes (B, 3, C, H, W) and coordinates (B, N, 3), found {tuple(planes.shape)} "
            f"and {tuple(coordinates.shape)}."
        )
    batch, _, channels, height, width = planes.shape
    count = coordinates.shape[1]
    grid = torch.stack([coordinates[..., list(pair)] for pair in pairs], 1).reshape(batch * 3, 1, count, 2)
    sampled = F.grid_sample(
        planes.reshape(batch * 3, channels, height, width), grid.to(planes.dtype),
        mode="bilinear", padding_mode="zeros", align_corners=False,
    )  # fmt: skip
    return sampled.reshape(batch, 3, channels, count).permute(0, 3, 1, 2)


class PlanesDecoder(nn.Module):
    """The small MLP from joined plane features (3 * C) to raw density and raw colour.

    Args:
        plane_channels: C, channels of one plane.
        width: neurons of each hidden layer.
        hidden_layers: how many hidden layers, >= 1; there is one more linear layer to 4 numbers.
        activation: between the layers.
    """

    def __init__(self, plane_channels: int, width: int = 64, hidden_layers: int = 3, activation: Activation = "relu") -> None:
        super().__init__()
        self.activation = activation
        sizes = [3 * plane_channels] + [width] * hidden_layers + [4]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))

    def forward(self, features: Tensor) -> Tensor:
        """Joined features (..., 3 * C) → (..., 4): raw density, then raw red, green, blue."""
        x = features
        for layer in self.layers[:-1]:
            x = _ACTIVATIONS[self.activation](layer(x))
        return self.layers[-1](x)


@dataclass(frozen=True)
class OutputRule:
    """How raw decoder outputs become density and colour.

    ``exp``: exp(raw + density_bias). ``softplus``: softplus(raw + density_bias). ``occupancy``: the raw value is
    an occupancy logit and density is density_scale * sigmoid(raw), so that raw 0 is density_scale / 2.
    Colour is sigmoid(raw) * (1 + 2 * color_margin) - color_margin (Mildenhall et al. 2022 use 0.001).
    """

    density: Literal["exp", "softplus", "occupancy"] = "exp"
    density_bias: float = -1.0
    density_scale: float = 1.0
    color_margin: float = 0.0

    def to_density(self, raw: Tensor) -> Tensor:
        """Raw (...,) → density (...,) >= 0; increasing in ``raw``."""
        if self.density == "exp":
            return torch.exp(raw + self.density_bias)
        if self.density == "softplus":
            return F.softplus(raw + self.density_bias)
        return self.density_scale * torch.sigmoid(raw)

    def to_color(self, raw: Tensor) -> Tensor:
        """Raw (..., 3) → sRGB (..., 3), clamped to [0, 1] where the margin reaches outside."""
        color = torch.sigmoid(raw)
        if self.color_margin:
            color = (color * (1 + 2 * self.color_margin) - self.color_margin).clamp(0, 1)
        return color


@dataclass(frozen=True)
class TriplaneField(Field):
    """Three planes and a decoder, as a field in the world frame.

    Attributes:
        planes: (3, C, H, W) float.
        decoder: `PlanesDecoder` of the same C.
        frame: world → plane coordinates; `CubeFrame(scene_radius)` unless a network predicts in another frame.
        outputs: raw numbers → density and colour.
        pairs: coordinates read by each plane.
    """

    planes: Tensor
    decoder: PlanesDecoder
    scene_radius: float
    level: float
    outputs: OutputRule = OutputRule()
    pairs: PlanePairs = PAIRS_XY_XZ_YZ
    frame: Frame | None = None

    @property
    def device(self) -> torch.device:
        """The device of the planes."""
        return self.planes.device

    def raw(self, points: Tensor) -> Tensor:
        """World points (N, 3) → decoder outputs (N, 4), before activation; differentiable."""
        features = sample_planes(self.planes[None], self._coordinates(points)[None], pairs=self.pairs)[0]
        return self.decoder(features.flatten(-2))

    def density_and_color(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See `Field`."""
        raw = self.raw(points)
        return self.outputs.to_density(raw[..., 0]), self.outputs.to_color(raw[..., 1:])

    def density_function(self) -> Callable[[Tensor], Tensor]:
        """`density` with the decoder's first layer folded into the planes (exact: bilinear sampling is linear)."""
        with torch.no_grad():
            first = self.decoder.layers[0]
            weight = first.weight.unflatten(1, (3, -1))  # (width, 3, C)
            folded = torch.einsum("opc,pchw->pohw", weight, self.planes.to(weight.dtype)).contiguous()
            last = self.decoder.layers[-1]
            last_weight, last_bias = last.weight[:1], last.bias[:1]
        activation = _ACTIVATIONS[self.decoder.activation]

        def density(points: Tensor) -> Tensor:
            with torch.no_grad():
                x = sample_planes(folded[None], self._coordinates(points)[None], pairs=self.pairs)[0].sum(1) + first.bias
                for layer in self.decoder.layers[1:-1]:
                    x = layer(activation(x))
                return self.outputs.to_density(F.linear(activation(x), last_weight, last_bias)[:, 0])

        return density

    def _coordinates(self, points: Tensor) -> Tensor:
        return (self.frame or CubeFrame(self.scene_radius)).to_plane(points)
