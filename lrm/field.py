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

from .blocks import in_threads, multiplies_bf16, multiply_rows, silu_rows

# Plane p reads coordinates (a, b) of a point: a runs along W, b along H. 0 = x, 1 = y, 2 = z.
PlanePairs = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
PAIRS_XY_XZ_YZ: PlanePairs = ((0, 1), (0, 2), (1, 2))
PAIRS_XY_XZ_ZY: PlanePairs = ((0, 1), (0, 2), (2, 1))

_BLOCK = 1 << 14  # bytes for each number of a layer: 1 MiB per layer of 64 numbers, 4096 points in fp32

Activation = Literal["silu", "relu"]
_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {"silu": F.silu, "relu": F.relu}
_LAYERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {  # without gradients, activation included
    "silu": silu_rows,
    "relu": lambda x, weight, bias: F.relu_(multiply_rows(x, weight, bias)),
}


@dataclass(frozen=True)
class RawDensity:
    """A field's density on the scale where its surface is easiest to find, prepared for many calls; no gradients.

    Attributes:
        raw: world points (N, 3) → (N,), a number that grows with density and is closer to linear across the
            surface than density itself (the logarithm of an exponential density, the logit of an occupancy).
        to_density: raw (...,) → density (...,), increasing.
        from_density: a density → its raw number; -inf or inf where no raw number gives that density.
        level_is_sure: the field's own level is right, however little of the field lies above it.
        rough: as ``raw`` in fewer digits and a fraction of the time, where the field has such a way, or None.
        with_color: world points (N, 3) → raw (N,) and sRGB colour (N, 3) for little more than ``raw`` alone, or None.
        thin: world points (N, 3) → raw (N,) of those parts alone that may be too thin for a first look, for little; the
            field's raw density is at least that. None where nothing is known of such parts.
    """

    raw: Callable[[Tensor], Tensor]
    to_density: Callable[[Tensor], Tensor]
    from_density: Callable[[float], float]
    level_is_sure: bool = False
    rough: Callable[[Tensor], Tensor] | None = None
    with_color: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    thin: Callable[[Tensor], Tensor] | None = None


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


def _plane_sums(planes: Tensor, pairs: PlanePairs) -> Callable[[Tensor], Tensor]:
    """For planes (3, H, W, C), a function from coordinates (N, K) to the sums (N, C) of what `sample_planes` gives."""
    if on_accelerator(planes.device):
        whole = planes.permute(0, 3, 1, 2)[None]
        return lambda coordinates: sample_planes(whole, coordinates[None], pairs=pairs)[0].sum(1)
    framed = F.pad(planes, (0, 0, 1, 2, 1, 2))  # with zeros, which is what is read off the planes
    return lambda coordinates: _add_texels(framed, coordinates, pairs)


def _add_texels(framed: Tensor, coordinates: Tensor, pairs: PlanePairs) -> Tensor:
    """Bilinear look-ups in three planes, added up: planes (3, 1 + H + 2, 1 + W + 2, C), coordinates (N, K) → (N, C).

    On the CPU grid_sample walks channel by channel. Twelve whole texels, weighted and added by one fused
    embedding_bag, are many times faster.
    """
    _, lines, columns, channels = framed.shape
    across, count = coordinates.t(), len(coordinates)
    column, right = _texels(across[[a for a, _ in pairs]], columns - 3)
    line, down = _texels(across[[b for _, b in pairs]], lines - 3)
    plane = torch.arange(3, dtype=torch.int32)[:, None] * (lines * columns)
    corner = line.mul_(columns).add_(column).add_(plane).t()
    both = right * down
    rows, shares = torch.empty(count, 3, 4, dtype=torch.int32), framed.new_empty(count, 3, 4)
    for k, step in enumerate((0, 1, columns, columns + 1)):
        torch.add(corner, step, out=rows[..., k])
    shares[..., 0] = (1 - right - down).add_(both).t()
    shares[..., 1], shares[..., 2], shares[..., 3] = (right - both).t(), (down - both).t(), both.t()
    texels = framed.view(-1, channels)
    return F.embedding_bag(rows.view(count, 12), texels, per_sample_weights=shares.view(count, 12), mode="sum")


def _run_blocks(function: Callable[[Tensor], Tensor], points: Tensor, numbers: torch.dtype) -> Tensor:
    """``function`` of points (N, 3), on the CPU in blocks whose layers of ``numbers`` stay in the processor's cache."""
    if on_accelerator(points.device):
        return function(points)
    return in_threads(function, points.split(_BLOCK // numbers.itemsize))


def _texels(coordinates: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where coordinates, [-1, 1] over ``size`` texels, fall in the row that starts one texel before and ends two after.

    Returns:
        The texel below, int32 in 0 to ``size`` + 1, and the share of the next one, in [0, 1], or NaN as the coordinate.
    """
    position = (coordinates * (size / 2)).add_((size + 1) / 2).clamp_(0, size + 1)
    low = position.floor()
    return low.int().clamp_(0, size + 1), position.sub_(low)  # the second clamp is for NaN, which turns into any number


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
class FoldedPlanes:
    """Planes that the decoder's first layer was multiplied into, and the layers that are left.

    Attributes:
        sums: plane coordinates (N, K) → (N, width), the first layer's output without its bias.
        bias: (width,) of the first layer.
        hidden: weight (width, width) and bias (width,) of each further hidden layer.
        last: weight (4, width) and bias (4,).
    """

    sums: Callable[[Tensor], Tensor]
    bias: Tensor
    hidden: list[tuple[Tensor, Tensor]]
    last: tuple[Tensor, Tensor]


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
        rule, folded = self.outputs, self._folded()
        raw, both = (self.folded_raw(wanted, folded=folded) for wanted in (slice(0, 1), slice(0, 4)))
        rough = self.folded_raw(slice(0, 1), rough=True, folded=folded) if self._rough_pays(folded) else None

        def with_color(points: Tensor) -> tuple[Tensor, Tensor]:
            numbers = both(points)
            return numbers[:, 0], rule.to_color(numbers[:, 1:])

        return RawDensity(
            lambda points: raw(points)[:, 0],
            rule.to_density,
            rule.from_density,
            self.raw_bias is not None,
            None if rough is None else lambda points: rough(points)[:, 0],
            with_color,
            None if self.touch is None else self._touched_alone,
        )

    @torch.no_grad()
    def _touched_alone(self, points: Tensor) -> Tensor:
        """Raw density (N,) that `touch` gives to points (N, 3) where there is nothing else."""
        assert self.touch is not None
        return self.touch(points.new_full((len(points),), -math.inf), self._coordinates(points.float()))

    def folded_raw(
        self, outputs: slice = slice(0, 4), *, rough: bool = False, folded: FoldedPlanes | None = None
    ) -> Callable[[Tensor], Tensor]:
        """`raw` with the decoder's first layer folded into the planes, exact because bilinear sampling is linear.

        A point then costs three short look-ups that are added up, in place of a wide joined vector and a wide layer.

        Args:
            outputs: which of the four decoder outputs are wanted.
            rough: multiply in bf16 between the hidden layers; numbers are then off by some 2 ** -8 of the largest.
            folded: from `_folded` when it is there already.

        Returns:
            A function from world points (N, 3) to (N, len(outputs)), equal to `raw` up to rounding, no gradients.
        """
        folded = folded or self._folded()
        weight, bias = folded.last[0][outputs], folded.last[1][outputs]
        numbers = torch.bfloat16 if rough else torch.float32
        hidden = [(w.to(numbers), b.to(numbers)) for w, b in folded.hidden]
        biased = outputs.start in (None, 0)
        activation = _ACTIVATIONS[self.decoder.activation]

        @torch.no_grad()
        def decode(points: Tensor) -> Tensor:
            coordinates = self._coordinates(points.float())
            x = activation(folded.sums(coordinates).add_(folded.bias), inplace=True).to(numbers)
            for w, b in hidden:
                x = _LAYERS[self.decoder.activation](x, w, b)
            x = F.linear(x.float(), weight, bias)
            return self._biased(x, coordinates) if biased else x

        return lambda points: _run_blocks(decode, points, numbers)

    @torch.no_grad()
    def _folded(self) -> FoldedPlanes:
        first, *others = [(layer.weight.float(), layer.bias.float()) for layer in self._linear_layers()]
        planes = torch.einsum("opc,pchw->phwo", first[0].unflatten(1, (3, -1)), self.planes.float()).contiguous()
        return FoldedPlanes(_plane_sums(planes, self.pairs), first[1], others[:-1], others[-1])

    def _rough_pays(self, folded: FoldedPlanes) -> bool:
        """Whether bf16 saves time here: on a processor that has it, from two products of some width on."""
        wide = len(folded.hidden) >= 2 and len(folded.bias) >= 32
        return wide and self.device.type == "cpu" and multiplies_bf16()

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
