"""The radiance field that every reconstruction model ends in.

`Field` is the hinge of the project: volume rendering, meshing, texturing and turntables ask it for density and
colour at world points and know nothing else. `TriplaneField` is three feature planes and a small decoder.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multiview.devices import on_accelerator
from multiview.errors import FieldError

# Plane p reads coordinates (a, b) of a point: a runs along W, b along H. 0 = x, 1 = y, 2 = z.
PlanePairs = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
PAIRS_XY_XZ_YZ: PlanePairs = ((0, 1), (0, 2), (1, 2))
PAIRS_XY_XZ_ZY: PlanePairs = ((0, 1), (0, 2), (2, 1))

_BLOCK = 4096  # points: 1 MiB per layer of 64 floats

Activation = Literal["silu", "relu"]
_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {"silu": F.silu, "relu": F.relu}


@dataclass(frozen=True)
class RawDensity:
    """A field's density on the scale where its surface is easiest to find, prepared for many calls; no gradients.

    Attributes:
        raw: world points (N, 3) → (N,), a number that grows with density and is closer to linear across the
            surface than density itself (the logarithm of an exponential density, the logit of an occupancy).
        to_density: raw (...,) → density (...,), increasing.
        from_density: a density → its raw number; -inf or inf where no raw number gives that density.
        level_is_sure: the field's own level is right, however little of the field lies above it.
    """

    raw: Callable[[Tensor], Tensor]
    to_density: Callable[[Tensor], Tensor]
    from_density: Callable[[float], float]
    level_is_sure: bool = False


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
        return torch.no_grad()(self.density)

    def color_function(self) -> Callable[[Tensor], Tensor]:
        """A function equal to `color` up to rounding, prepared for many calls; it gives no gradients."""
        return torch.no_grad()(self.color)

    def raw_density(self) -> RawDensity:
        """Density on its raw scale, for finding the surface; here density is its own raw number."""
        return RawDensity(self.density_function(), lambda raw: raw, float)

    @property
    def reach(self) -> float:
        """Half side of the largest cube where the field means something, at least ``scene_radius``."""
        return self.scene_radius


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


def _add_planes(planes: Tensor, coordinates: Tensor, pairs: PlanePairs) -> Tensor:
    """The sum over the three planes of `sample_planes`, for planes (3, H, W, C) and coordinates (N, 3) → (N, C)."""
    if on_accelerator(planes.device):
        return sample_planes(planes.permute(0, 3, 1, 2)[None], coordinates[None], pairs=pairs)[0].sum(1)
    # On the CPU grid_sample walks channel by channel. Twelve whole texels, weighted and added by one fused
    # embedding_bag, are many times faster.
    _, height, width, channels = planes.shape
    columns = {a: _two_texels(coordinates[:, a], width) for a, _ in pairs}
    lines = {b: _two_texels(coordinates[:, b], height) for _, b in pairs}
    rows, weights = [], []
    for plane, (a, b) in enumerate(pairs):
        rows.append((lines[b][0] * width)[:, :, None] + (columns[a][0] + plane * height * width)[:, None, :])
        weights.append(lines[b][1][:, :, None] * columns[a][1][:, None, :])
    bags, shares = torch.stack(rows, 1).flatten(1), torch.stack(weights, 1).flatten(1)
    return F.embedding_bag(bags, planes.view(-1, channels), per_sample_weights=shares, mode="sum")


def _run_blocks(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """``function`` of points (N, 3), on the CPU in blocks whose layers stay in the processor's cache."""
    if on_accelerator(points.device):
        return function(points)
    return torch.cat([function(block) for block in points.split(_BLOCK)])


def _two_texels(coordinate: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two texels (N, 2) int32 beside a coordinate in [-1, 1], and their weights (N, 2), 0 off the plane."""
    position = (coordinate + 1) * (size / 2) - 0.5
    low = position.floor()
    near = torch.stack([low, low + 1], 1)
    weights = (1 - (position[:, None] - near).abs()) * ((near >= 0) & (near < size))
    return near.int().clamp_(0, size - 1), weights


class PlanesDecoder(nn.Module):
    """The small MLP from joined plane features (3 * C) to raw density and raw colour.

    Args:
        plane_channels: C, channels of one plane.
        width: neurons of each hidden layer.
        hidden_layers: how many hidden layers, >= 1; there is one more linear layer to 4 numbers.
        activation: between the layers.
    """

    def __init__(
        self, plane_channels: int, width: int = 64, hidden_layers: int = 3, activation: Activation = "relu"
    ) -> None:
        super().__init__()
        self.activation = activation
        sizes = [3 * plane_channels] + [width] * hidden_layers + [4]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, features: Tensor) -> Tensor:
        """Joined features (..., 3 * C) → (..., 4): raw density, then raw red, green, blue."""
        x = features
        for layer in self.layers[:-1]:
            x = _ACTIVATIONS[self.activation](layer(x))
        return self.layers[-1](x)


def _logit(share: float) -> float:
    """The number whose sigmoid is ``share``, in (0, 1)."""
    return math.log(share) - math.log1p(-share)


@dataclass(frozen=True)
class OutputRule:
    """How raw decoder outputs become density and colour.

    ``exp``: exp(raw + density_bias). ``softplus``: softplus(raw + density_bias). ``occupancy``: the raw value is
    an occupancy logit and density is density_scale * sigmoid(sharpness * (raw - logit(middle))), so that density is
    density_scale / 2 where occupancy is ``middle`` and a sharpness above 1 clears the fog that slight doubt would be.
    Colour is sigmoid(raw) * (1 + 2 * color_margin) - color_margin (Mildenhall et al. 2022 use 0.001).
    """

    density: Literal["exp", "softplus", "occupancy"] = "exp"
    density_bias: float = -1.0
    density_scale: float = 1.0
    color_margin: float = 0.0
    middle: float = 0.5
    sharpness: float = 1.0

    def to_density(self, raw: Tensor) -> Tensor:
        """Raw (...,) → density (...,) >= 0; increasing in ``raw``."""
        if self.density == "exp":
            return torch.exp(raw + self.density_bias)
        if self.density == "softplus":
            return F.softplus(raw + self.density_bias)
        return self.density_scale * torch.sigmoid(self.sharpness * (raw - _logit(self.middle)))

    def from_density(self, density: float) -> float:
        """The raw number whose density is ``density``: -inf or inf at and beyond the ends of what can be reached."""
        top = self.density_scale if self.density == "occupancy" else math.inf
        if not 0 < density < top:
            return -math.inf if density <= 0 else math.inf
        if self.density == "exp":
            return math.log(density) - self.density_bias
        if self.density == "softplus":
            # log(exp(d) - 1), written so that neither large nor small densities lose their digits.
            return density + math.log(-math.expm1(-density)) - self.density_bias
        return _logit(density / self.density_scale) / self.sharpness + _logit(self.middle)

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
        raw_bias: (H, W) float added to the raw density, read where the last plane is, its
            border off the borders; or None.
        touch: a last change of the raw density: (N,) raw densities, (N, C) plane coordinates → (N,); or None.
    """

    planes: Tensor
    decoder: PlanesDecoder
    scene_radius: float
    level: float
    outputs: OutputRule = OutputRule()
    pairs: PlanePairs = PAIRS_XY_XZ_YZ
    frame: Frame | None = None
    raw_bias: Tensor | None = None
    touch: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """The device of the planes."""
        return self.planes.device

    def raw(self, points: Tensor) -> Tensor:
        """World points (N, 3) → decoder outputs (N, 4), before activation; differentiable."""
        coordinates = self._coordinates(points)
        features = sample_planes(self.planes[None], coordinates[None], pairs=self.pairs)[0]
        return self._biased(self.decoder(features.flatten(-2)), coordinates)

    def density_and_color(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See `Field`."""
        raw = self.raw(points)
        return self.outputs.to_density(raw[..., 0]), self.outputs.to_color(raw[..., 1:])

    @property
    def reach(self) -> float:
        """See `Field`; a frame may say so in an attribute ``reach``."""
        return float(getattr(self.frame, "reach", self.scene_radius))

    def density_function(self) -> Callable[[Tensor], Tensor]:
        """See `Field`; `folded_raw` and the output rule."""
        raw = self.folded_raw(slice(0, 1))
        return lambda points: self.outputs.to_density(raw(points)[:, 0])

    def color_function(self) -> Callable[[Tensor], Tensor]:
        """See `Field`; `folded_raw` and the output rule."""
        raw = self.folded_raw(slice(1, 4))
        return lambda points: self.outputs.to_color(raw(points))

    def raw_density(self) -> RawDensity:
        """See `Field`; the decoder's raw density. A bias was made for the level, which is sure then."""
        raw, rule = self.folded_raw(slice(0, 1)), self.outputs
        sure = self.raw_bias is not None
        return RawDensity(lambda points: raw(points)[:, 0], rule.to_density, rule.from_density, sure)

    def folded_raw(self, outputs: slice = slice(0, 4)) -> Callable[[Tensor], Tensor]:
        """`raw` with the decoder's first layer folded into the planes, exact because bilinear sampling is linear.

        A point then costs three short look-ups that are added up, in place of a wide joined vector and a wide layer.

        Args:
            outputs: which of the four decoder outputs are wanted.

        Returns:
            A function from world points (N, 3) to (N, len(outputs)), equal to `raw` up to rounding, no gradients.
        """
        with torch.no_grad():
            first, *others = [(layer.weight.float(), layer.bias.float()) for layer in self._linear_layers()]
            folded = torch.einsum("opc,pchw->phwo", first[0].unflatten(1, (3, -1)), self.planes.float()).contiguous()
            others[-1] = (others[-1][0][outputs], others[-1][1][outputs])
            steps = [(weight.t().contiguous(), bias.clone()) for weight, bias in others]
        biased = outputs.start in (None, 0)
        return lambda points: _run_blocks(
            lambda block: self._decode_folded(block, folded, first[1], steps, biased), points
        )

    @torch.no_grad()
    def _decode_folded(
        self, points: Tensor, folded: Tensor, bias: Tensor, steps: list[tuple[Tensor, Tensor]], biased: bool
    ) -> Tensor:
        activation = _ACTIVATIONS[self.decoder.activation]
        coordinates = self._coordinates(points.float())
        x = _add_planes(folded, coordinates, self.pairs).add_(bias)
        spare = torch.empty_like(x)
        for weight, add in steps:
            activation(x, inplace=True)
            wide = weight.shape[1] == x.shape[1]
            x, spare = torch.addmm(add, x, weight, out=spare) if wide else torch.addmm(add, x, weight), x
        return self._biased(x, coordinates) if biased else x

    def _biased(self, raw: Tensor, coordinates: Tensor) -> Tensor:
        """Decoder outputs (N, K), density first, with `raw_bias` added to the density."""
        if self.raw_bias is None and self.touch is None:
            return raw
        density = raw[:, 0]
        if self.raw_bias is not None:
            grid = coordinates[None, None, :, list(self.pairs[-1])].to(self.raw_bias.dtype)
            bias = F.grid_sample(self.raw_bias[None, None], grid, padding_mode="border", align_corners=False)[0, 0, 0]
            density = density + bias
        if self.touch is not None:
            density = self.touch(density, coordinates)
        return torch.cat([density[:, None], raw[:, 1:]], 1)

    def _linear_layers(self) -> list[nn.Linear]:
        return [layer for layer in self.decoder.layers if isinstance(layer, nn.Linear)]

    def _coordinates(self, points: Tensor) -> Tensor:
        return (self.frame or CubeFrame(self.scene_radius)).to_plane(points)
