"""Hold a field that a network predicted to the silhouette of its photo.

A network that cannot know how deep a chair's leg stands gives it a little occupancy everywhere and enough nowhere, and
the leg is missed. Here missed parts come back as rods: neighbouring rays agree on a depth first, weighing what the
field says along each of them, so that a leg stands in one piece and starts where the seat is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .field import TriplaneField

_MATTE_LEVEL = 0.5  # share of the highest matte that counts as the object there
_BORDER = 2  # pixels about the matte in which the field is let be
_OUT_OF_SIGHT = -20.0
_TIP = 4  # pixels; missed parts that reach no farther from what is there are corners, which stay round
_DEEP = 2.0  # pixels from the outline; what is missed there is a hole
_LARGE = 20  # pixels of what a missed part must join, on two sides, to be kept however short it is
_DEPTHS = 64  # samples on a ray
_REACH = 4  # pixels; how far rays that meet a surface have a say in the depth of missed ones
_ROUNDS = 60  # of neighbours asking each other
_OWN = 0.03  # what a ray's own density counts beside its neighbours': parts of some 20 pixels agree
_TEMPERATURE = 0.18  # logits; of choosing a depth from what the rays agree on
_UNLIKELY = -12.0
_SMOOTHING = 30  # rounds of averaging the depths found
_STEEP_DEG = 50.0  # up to which a part's depth is measured along the ground: upright legs keep it then
_LEAST_RADIUS_PX = 1.3  # thinner rods would slip between the samples of a mesh
_MOST_DEPTH_PX = 3.5  # wider parts become sheets of this half thickness
_FINER = 2  # pixels of a rod's maps for each of the photo's, along each axis
_HEIGHT = 3.0  # logits of a rod's middle above the surface


@dataclass(frozen=True)
class Rods:
    """Thin parts about the rays of a picture, joined to a field as its `TriplaneField.touch`.

    Attributes:
        axis: (3,) along which depth is measured, as a function of the first three plane coordinates.
        maps: (3, S, S), row 0 at the bottom: 1 on the middle line of a rod falling to 0 on its edge and below outside;
            the depth of its middle; one over its half thickness squared.
        level: raw density of the surface.
    """

    axis: Tensor
    maps: Tensor
    level: float

    def __call__(self, raw: Tensor, coordinates: Tensor) -> Tensor:
        """Raw densities (N,) at plane coordinates (N, C), the picture's last → the same, raised inside the rods."""
        grid = coordinates[None, None, :, -2:].to(self.maps.dtype)
        core, middle, sharp = F.grid_sample(self.maps[None], grid, padding_mode="border", align_corners=False)[0, :, 0]
        off = coordinates[:, :3].to(self.axis) @ self.axis - middle
        return torch.maximum(raw, self.level + _HEIGHT * (core - off.square() * sharp))


def silhouette_touch(
    field: TriplaneField, matte: Tensor, projection: Tensor, extents: tuple[float, float, float], level: float
) -> tuple[Tensor, Rods | None]:
    """What makes a field agree with its photo's silhouette.

    Args:
        field: in the upright frame of the picture, as the network gave it; its cube holds the object.
        matte: (S, S) in [0, 1], row 0 at the top.
        projection: (3, 4) upright frame → picture, see `lrm.tiny.photo_projection`.
        extents: half sides of the box that the first three plane coordinates are measured by.
        level: raw density of the surface.

    Returns:
        A bias for `TriplaneField.raw_bias`, (S, S) with row 0 at the bottom: 0 at the object and out of sight well off
        it; and rods where parts of some length were missed, None where none was.
    """
    # Parts thinner than a pixel have little matte; where there is nothing else they are the object.
    inside = thickened(matte > _MATTE_LEVEL * matte.max())
    bias = torch.where(_grown(matte > 0.02, _BORDER), 0.0, _OUT_OF_SIGHT).flip(0)
    axis = depth_axis(projection)
    depths = ((torch.arange(_DEPTHS, device=matte.device) + 0.5) * (2 / _DEPTHS) - 1) * field.scene_radius
    rows, columns = torch.nonzero(inside, as_tuple=True)
    steps = (torch.arange(len(matte), device=matte.device) + 0.5) * (2 / len(matte)) - 1
    points = rays_at_depths(projection, torch.stack([steps[columns], -steps[rows]], -1), axis, depths)
    raw = field.folded_raw(slice(0, 1))(points.flatten(0, 1)).unflatten(0, (-1, _DEPTHS))[..., 0] - level
    raw = torch.where(points.norm(dim=-1) < field.scene_radius, raw, _UNLIKELY)
    highest = raw.amax(1)
    missed = long_parts(torch.zeros_like(inside).index_put((rows, columns), highest < 0), inside)
    if not missed.any():
        return bias, None
    scores = torch.where((highest < 0)[:, None], raw - highest[:, None], raw.clamp(max=0)).clamp(min=_UNLIKELY)
    volume = torch.zeros(*inside.shape, _DEPTHS, device=raw.device).index_put((rows, columns), scores)
    near = inside & _grown(missed, _REACH)
    depth = torch.zeros_like(matte)
    box = bounding_box(near)
    depth[box] = agreed_depths(volume[box].permute(2, 0, 1).contiguous(), near[box], missed[box], depths)
    maps = rod_maps(inside, missed, depth, matte / matte.max() * (0.5 / _MATTE_LEVEL)).flip(1)
    return bias, Rods(axis * axis.new_tensor(extents), maps, level)


def thickened(inside: Tensor) -> Tensor:
    """A silhouette (S, S) bool with its threads of one or two pixels a pixel wider on each side."""
    opened = _grown(~_grown(~inside, 1), 1) & inside  # what a square of three pixels fits into
    return inside | _grown(inside & ~opened, 1)


def long_parts(missed: Tensor, inside: Tensor) -> Tensor:
    """Those missed pixels (S, S) bool that belong to a part: a leg, not the tip of a corner.

    A part is some of it more than `_TIP` pixels away from what of the inside is not missed, or deep in the silhouette
    (a hole in the field), or it joins two large pieces of that.
    """
    part = missed & (~_grown(inside & ~missed, _TIP) | (edge_distances(inside) > _DEEP))
    for _ in range(2 * _TIP):
        part = _grown(part, 1) & missed
    return part | _bridges(missed, inside)


def _bridges(missed: Tensor, inside: Tensor) -> Tensor:
    """Connected missed pixels (S, S) bool between two or more large pieces of what is there."""
    there, gaps = connected(inside & ~missed), connected(missed)
    numbers, sizes = torch.unique(there[there > 0], return_counts=True)
    large = torch.where(torch.isin(there, numbers[sizes >= _LARGE]), there, 0)
    found = torch.zeros_like(missed)
    for number in torch.unique(gaps[gaps > 0]):
        gap = gaps == number
        beside = large[_grown(gap, 1)]
        if len(torch.unique(beside[beside > 0])) >= 2:
            found |= gap
    return found


def connected(mask: Tensor) -> Tensor:
    """Number the pieces of a mask (S, S) bool whose pixels touch, corners included: (S, S) float, 0 outside."""
    numbers = torch.arange(1, mask.numel() + 1, device=mask.device, dtype=torch.float32).view(mask.shape) * mask
    while True:
        spread = F.max_pool2d(numbers[None, None], 3, 1, 1)[0, 0] * mask
        if torch.equal(spread, numbers):
            return numbers
        numbers = spread


def bounding_box(mask: Tensor) -> tuple[slice, slice]:
    """Rows and columns of a mask (S, S) bool that has any."""
    rows, columns = (torch.nonzero(mask.any(axis)).flatten() for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def depth_axis(projection: Tensor) -> Tensor:
    """The unit axis (3,) in the upright frame along which depth is measured: toward the camera over the ground, and
    more and more at the camera itself the steeper than `_STEEP_DEG` it looks."""
    elevation = math.degrees(math.atan2(-float(projection[1, 0]), float(projection[1, 2])))
    turn = math.radians(max(elevation - _STEEP_DEG, 0.0) + min(elevation + _STEEP_DEG, 0.0))
    return projection.new_tensor([math.cos(turn), 0.0, math.sin(turn)])


def rays_at_depths(projection: Tensor, pixels: Tensor, axis: Tensor, depths: Tensor) -> Tensor:
    """Where the rays of pixels have the given depths along an axis.

    Args:
        projection: (3, 4) world → picture.
        pixels: (R, 2) right and up in [-1, 1].
        axis: (3,) unit, not across the rays.
        depths: (D,).

    Returns:
        (R, D, 3) points p that are seen at the pixels, with axis · p = depth.
    """
    rows = projection[None, :2] - pixels[:, :, None] * projection[None, 2:]  # (R, 2, 4): rows · (p, 1) = 0
    left = torch.cat([rows[:, :, :3], axis.expand(len(pixels), 1, 3)], 1)
    zero = torch.zeros_like(pixels[:, :1])
    right = torch.stack([torch.cat([-rows[:, :, 3], zero], 1), torch.cat([zero, zero, zero + 1], 1)], -1)
    start, step = torch.linalg.solve(left, right).unbind(-1)
    return start[:, None] + depths[:, None] * step[:, None]


def agreed_depths(scores: Tensor, near: Tensor, missed: Tensor, depths: Tensor) -> Tensor:
    """One depth for each missed pixel, much the same as its neighbours'.

    Args:
        scores: (D, S, S) in logits, 0 at the likeliest depth of a missed ray and wherever another ray is inside.
        near: (S, S) bool; the pixels that have a say, the missed ones among them.
        missed: (S, S) bool.
        depths: (D,).

    Returns:
        (S, S), 0 where not missed.
    """
    mask = near.to(scores)
    shares = _mean3(mask[None]).clamp(min=1e-6)
    belief = scores * mask
    for _ in range(_ROUNDS):
        belief = torch.where(missed, _OWN * scores + (1 - _OWN) * _mean3(belief * mask) / shares, belief)
    found = (torch.softmax(belief / _TEMPERATURE, 0) * depths[:, None, None]).sum(0) * missed
    own_shares = _mean3(missed.to(scores)[None])[0].clamp(min=1e-6)
    for _ in range(_SMOOTHING):
        found = torch.where(missed, _mean3(found[None])[0] / own_shares, 0.0)
    return found


def rod_maps(inside: Tensor, missed: Tensor, depth: Tensor, matte: Tensor) -> Tensor:
    """The maps of `Rods`, but with row 0 at the top and `_FINER` times the pixels, so that outlines are smooth.

    Args:
        inside, missed: (S, S) bool.
        depth: (S, S) of the missed pixels.
        matte: (S, S) whose level 0.5 is the outline between inside and outside, as far as it agrees with ``inside``.
    """
    size = len(inside) * _FINER
    smooth = torch.where(inside, matte.clamp(min=0.5), matte.clamp(max=0.5 - 1e-3))
    outline = F.interpolate(smooth[None, None], (size, size), mode="bilinear")[0, 0] >= 0.5
    wide = F.interpolate(missed[None, None].float(), (size, size), mode="nearest")[0, 0] > 0
    known, missed = wide, wide & outline
    middle = F.interpolate(depth[None, None], (size, size), mode="nearest")[0, 0]
    edge = edge_distances(outline) / _FINER
    radius = F.max_pool2d((edge * missed)[None, None], 4 * _FINER + 1, 1, 2 * _FINER)[0, 0]
    values = torch.stack([middle, radius.clamp(min=_LEAST_RADIUS_PX)]) * known
    for _ in range(3 * _FINER):  # beyond its edge a rod's numbers are those of its nearest pixels
        shares = _mean3(known.to(depth)[None])
        values = torch.where(known, values, _mean3(values * known) / shares.clamp(min=1e-6))
        known = _grown(known, 1)
    shares = _mean3(known.to(depth)[None]).clamp(min=1e-6)
    for _ in range(3 * _FINER):
        values = torch.where(known, _mean3(values * known) / shares, values)
    middle, radius = values[0], values[1].clamp(min=_LEAST_RADIUS_PX)
    core = torch.where(known, 1 - ((radius - edge) / radius).clamp(min=0).square(), -4.0).clamp(min=-4)
    half = radius.clamp(max=_MOST_DEPTH_PX) * (2 / len(inside))
    return torch.stack([core, middle, 1 / half.square()])


def edge_distances(inside: Tensor) -> Tensor:
    """Pixels (S, S) from the middle of each pixel to the outline of a silhouette (S, S) bool, negative outside."""
    mask = F.pad(inside, (1, 1, 1, 1))  # beyond the picture there is nothing
    signed = torch.where(mask, _nearest(~mask) - 0.5, 0.5 - _nearest(mask))
    return signed[1:-1, 1:-1]


def _nearest(targets: Tensor) -> Tensor:
    """Pixels (H, W) from the middle of each pixel to that of the nearest target (H, W) bool, inf without any."""
    height, width = targets.shape
    rows = torch.arange(height, device=targets.device, dtype=torch.float32)[:, None].expand(height, width)
    above = torch.where(targets, rows, -math.inf).cummax(0).values
    below = torch.where(targets, rows, math.inf).flip(0).cummin(0).values.flip(0)
    down = torch.minimum(rows - above, below - rows).square()  # to the nearest one of the same column
    columns = torch.arange(width, device=targets.device, dtype=torch.float32)
    across = (columns[:, None] - columns).square()
    return (down[:, None, :] + across).amin(-1).sqrt()


def _mean3(maps: Tensor) -> Tensor:
    """The mean over each pixel's 3 x 3 neighbourhood, zeros beyond the border: (D, S, S)."""
    return F.avg_pool2d(maps[:, None], 3, 1, 1)[:, 0]


def _grown(mask: Tensor, pixels: int) -> Tensor:
    """A mask (S, S) bool with all pixels that are so near to it, along rows and columns."""
    return F.max_pool2d(mask.float()[None, None], 2 * pixels + 1, 1, pixels)[0, 0] > 0
