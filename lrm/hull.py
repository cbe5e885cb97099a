"""What silhouettes say about a shape: the visual hull, and what a prior makes of the parts that they leave open.

The hull is everything that no view sees as background. It is too large wherever no camera looks along the surface: seen
from a ring above the horizon, a box gets a cone below its base and another above its lid. Nothing in the silhouettes
speaks for those, and nothing against; a prior has to decide, and `flatten` says which.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from multiview.cameras import project
from multiview.errors import CameraError, ImageError, SettingsError
from multiview.views import Views

from .lattice import Lattice

MIN_VIEWS = 3
_CHUNK = 1 << 16  # points per pass; changes memory, never results
_LOOK = 40  # samples per axis of the first look, which finds the box
_ENLARGE, _LOOKS = 1.6, 4  # of the first cube, when the object reaches its sides
_SAME_RAY = 1e-3  # views whose middle rays are nearer to parallel than this say nothing about depth
_FRAMED = 0.75  # share of the views whose frames a point must lie in, or it is outside
_COVERED = 0.97  # share of the silhouettes that a hull must fill; below it, views are allowed to be wrong


# Where the object is.


def find_box(views: Views) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Find a box that holds the object, from silhouettes alone.

    Args:
        views: V >= 3 views with alpha; every silhouette has some foreground.

    Returns:
        Lowest and highest corner (x, y, z), world units; a little larger than the hull's box.

    Raises:
        ImageError: fewer than three views, or a mask that is empty everywhere.
        CameraError: all views look along one line, or no place in space is foreground in (nearly) all views.
    """
    _check(views)
    center, reach = _first_cube(views)
    alpha = views.alpha
    for _ in range(_LOOKS):
        step = 2 * reach / _LOOK
        lattice = Lattice(tuple((center - reach + step / 2).tolist()), step, (_LOOK,) * 3)
        points = lattice_points(lattice).to(alpha.device)
        grown = Views(views.images, _grown(views, center, step), views.cameras)
        # A few views may be wrong here already: what is kept too much is carved later.
        inside = carve(grown, points, len(views) // 8) > 0.5
        if not inside.any():
            raise _nothing_seen(grown, points)
        found = points[inside]
        low, high = found.amin(0) - step, found.amax(0) + step
        if not ((low < center - reach) | (high > center + reach)).any():
            break
        reach *= _ENLARGE
    return _triple(low), _triple(high)


def _check(views: Views) -> None:
    if len(views) < MIN_VIEWS:
        raise ImageError(
            f"a hull wants at least {MIN_VIEWS} views of one object, found {len(views)}. Give more pictures."
        )
    empty = [index for index in range(len(views)) if not (views.alpha[index] > 0.5).any()]
    if empty:
        raise ImageError(
            f"the masks of {len(empty)} of {len(views)} views are empty (no pixel has alpha > 0.5), first view "
            f"{empty[0]}. Give pictures with alpha or with a mask, or leave these views out."
        )


def _first_cube(views: Views) -> tuple[Tensor, float]:
    """A point (3,) that the silhouettes' middles agree on, and how far around it they reach."""
    origins, directions, spread = _middle_rays(views)
    across = torch.eye(3).to(directions) - directions[:, :, None] * directions[:, None, :]
    total = across.sum(0)
    if float(torch.linalg.eigvalsh(total)[0]) < _SAME_RAY * len(views):
        raise CameraError(
            f"all {len(views)} views look along one line, so depth is unknown. Give pictures from around the object, "
            "and check that every view has its own pose."
        )
    center = torch.linalg.solve(total, (across @ origins[:, :, None]).sum(0))[:, 0]
    distance = ((center - origins) * directions).sum(-1).abs()
    return center.float(), float((spread * distance).amax()) * 1.1


def _middle_rays(views: Views) -> tuple[Tensor, Tensor, Tensor]:
    """Origins and unit directions (V, 3) of the rays through the silhouettes' boxes, and half diagonals (V,) of the
    boxes at distance 1; all float64."""
    height, width = views.image_size
    corners = []
    for mask in views.alpha[:, 0] > 0.5:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        corners.append([columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height])
    box = torch.tensor(corners, dtype=torch.float64, device=views.alpha.device)
    k, c2w = views.cameras.intrinsics.double(), views.cameras.c2w.double()
    focal = torch.stack([k[:, 0, 0], k[:, 1, 1]], -1)
    middle = ((box[:, :2] + box[:, 2:]) / 2 - k[:, :2, 2]) / focal
    local = torch.stack([middle[:, 0], -middle[:, 1], -torch.ones_like(middle[:, 0])], -1)
    directions = (c2w[:, :3, :3] @ local[:, :, None])[..., 0]
    spread = ((box[:, 2:] - box[:, :2]) / focal).norm(dim=-1) / 2
    return c2w[:, :3, 3], directions / directions.norm(dim=-1, keepdim=True), spread


def _grown(views: Views, center: Tensor, step: float) -> Tensor:
    """Alpha (V, 1, H, W) grown by about ``step`` at the object, so that no thin part falls between samples."""
    height, width = views.image_size
    distance = (views.cameras.positions - center).norm(dim=-1).clamp(min=1e-6)
    pixels = float((step * views.cameras.intrinsics[:, 1, 1] * height / distance).amax())
    radius = min(max(math.ceil(pixels), 1), max(height, width))
    wide = F.max_pool2d(views.alpha, (1, 2 * radius + 1), 1, (0, radius))
    return F.max_pool2d(wide, (2 * radius + 1, 1), 1, (radius, 0))


def _nothing_seen(views: Views, points: Tensor) -> CameraError:
    votes = torch.zeros(len(points), device=points.device)
    for value, framed in seen_alpha(views, points):
        votes += (value > 0.5) & framed
    return CameraError(
        f"the cameras do not see one object: no place is foreground in all {len(views)} views, the best in "
        f"{int(votes.max())}. Check the poses (OpenGL axes, camera to world, the order of the pictures) and the field "
        "of view."
    )


def _triple(values: Tensor) -> tuple[float, float, float]:
    x, y, z = values.tolist()
    return x, y, z


def lattice_in(low: tuple[float, float, float], high: tuple[float, float, float], samples: int) -> Lattice:
    """Lay a lattice over a box, ``samples`` (>= 2) along its longest side, samples in the middle of cubic cells.

    Raises:
        SettingsError: fewer than 2 samples, or a box without extent.
    """
    sides = np.asarray(high) - np.asarray(low)
    if samples < 2 or not sides.max() > 0:
        raise SettingsError(f"a lattice wants samples >= 2 in a box with extent, found {samples} in {sides.tolist()}.")
    spacing = float(sides.max()) / samples
    shape = np.maximum(np.ceil(sides / spacing - 1e-6).astype(int), 2)
    origin = (np.asarray(low) + np.asarray(high)) / 2 - (shape - 1) / 2 * spacing
    x, y, z = origin.tolist()
    nx, ny, nz = shape.tolist()
    return Lattice((x, y, z), spacing, (nx, ny, nz))


def lattice_points(lattice: Lattice) -> Tensor:
    """World positions (X * Y * Z, 3) float32 of all samples, x slowest."""
    axes = [
        torch.arange(count, dtype=torch.float64) * lattice.spacing + start
        for start, count in zip(lattice.origin, lattice.shape, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3).float()


# The hull.


def seen_alpha(views: Views, points: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For each view, alpha (N,) at the projections of world points (N, 3), and whether they lie in its frame (N,)."""
    for index in range(len(views)):
        uv, depth = project(views.cameras.select([index]), points)
        framed = ((uv[0] > 0) & (uv[0] < 1)).all(-1) & (depth[0] > 0)
        grid = (uv * 2 - 1).clamp(-2, 2)[None]
        value = F.grid_sample(views.alpha[index : index + 1], grid, padding_mode="border", align_corners=False)
        yield value[0, 0, 0], framed


def carve(views: Views, points: Tensor, dissent: int = 0) -> Tensor:
    """Tell how surely points belong to the visual hull.

    A view in whose frame a point does not lie says nothing about it; a point in the frame of fewer than three
    quarters of the views is outside.

    Args:
        views: V views; only alpha and cameras matter.
        points: (N, 3) world units, on the views' device.
        dissent: how many views may see background where the others see the object; 0 for exact masks.

    Returns:
        (N,) in [0, 1]: the smallest alpha that a point meets after the ``dissent`` smallest; 0.5 is the surface.

    Raises:
        SettingsError: ``dissent`` is negative or not below the number of views.
    """
    if not 0 <= dissent < len(views):
        raise SettingsError(f"dissent wants a number of views from 0 to {len(views) - 1}, found {dissent}.")
    return torch.cat([_carve_chunk(views, chunk, dissent) for chunk in points.split(_CHUNK)])


def _carve_chunk(views: Views, points: Tensor, dissent: int) -> Tensor:
    lowest = torch.full((dissent + 1, len(points)), math.inf, device=points.device)
    frames = torch.zeros(len(points), dtype=torch.int32, device=points.device)
    for value, framed in seen_alpha(views, points):
        value = torch.where(framed, value, 1.0)
        for place in range(dissent + 1):  # insertion into the sorted few
            lowest[place], value = torch.minimum(lowest[place], value), torch.maximum(lowest[place], value)
        frames += framed
    return torch.where(frames >= _FRAMED * len(views), lowest[-1], 0.0)


def choose_dissent(views: Views, lattice: Lattice) -> int:
    """The smallest number of views that must be allowed to be wrong so that the hull fills the silhouettes.

    Exact masks need none. Views that do not quite agree (generated ones, or poses that are slightly off) carve
    holes into each other's silhouettes; then up to an eighth of the views may be overruled at any one point.
    """
    points = lattice_points(lattice).to(views.alpha.device)
    # Grown, so that thin parts do not fall between the samples and look like disagreement.
    grown = Views(views.images, _grown(views, points.mean(0), lattice.spacing), views.cameras)
    best, best_share = 0, -1.0
    for dissent in range(len(views) // 8 + 1):
        share = covered_share(views, lattice, carve(grown, points, dissent))
        if share > best_share + 0.005:
            best, best_share = dissent, share
        if share >= _COVERED:
            break
    return best


def covered_share(views: Views, lattice: Lattice, values: Tensor) -> float:
    """The share, 0 to 1, of all silhouettes' pixels whose ray meets a sample of at least 0.5.

    Args:
        views: the silhouettes.
        lattice: X, Y, Z samples; pixels are as wide as its spacing.
        values: (X * Y * Z,) in [0, 1].
    """
    sights = Sights.of(views, lattice, torch.ones_like(values, dtype=torch.bool), pixel=1.5)
    filled = sights.highest(values) >= 0.5
    wanted = sights.masks(views)
    return int((filled & wanted).sum()) / max(int(wanted.sum()), 1)


# Silhouettes at the lattice's own fineness.


@dataclass(frozen=True, eq=False)
class Sights:
    """Which pixels see which points; pixels are about as wide as the points' spacing at the object.

    Attributes:
        pixel: (V, N) int64, numbers of pixels, of all views in a row; the last number stands for "out of the frame".
        size: (height, width) of a view.
    """

    pixel: Tensor
    size: tuple[int, int]

    @classmethod
    def of(cls, views: Views, lattice: Lattice, chosen: Tensor, *, pixel: float) -> Sights:
        """Look at the ``chosen`` samples (X * Y * Z,) bool with pixels ``pixel`` spacings wide."""
        points = lattice_points(lattice).to(views.alpha.device)[chosen]
        height, width = _coarse_size(views, lattice, pixel)
        outside = len(views) * height * width
        numbers = []
        for index in range(len(views)):
            uv, depth = project(views.cameras.select([index]), points)
            framed = ((uv[0] > 0) & (uv[0] < 1)).all(-1) & (depth[0] > 0)
            column, row = ((uv[0, :, i] * n).nan_to_num().clamp(0, n - 1).long() for i, n in ((0, width), (1, height)))
            numbers.append(torch.where(framed, (index * height + row) * width + column, outside))
        return cls(torch.stack(numbers), (height, width))

    @property
    def count(self) -> int:
        """How many pixels all views have."""
        return len(self.pixel) * self.size[0] * self.size[1]

    def highest(self, values: Tensor) -> Tensor:
        """The highest of values (N,) >= 0 that each pixel sees, 0 for none: (count + 1,)."""
        seen = torch.zeros(self.count + 1, device=values.device)
        return seen.scatter_reduce_(0, self.pixel.reshape(-1), values.repeat(len(self.pixel)), "amax")

    def masks(self, views: Views) -> Tensor:
        """The silhouettes at this fineness: (count + 1,) bool; a pixel that is mostly foreground counts."""
        small = F.interpolate(views.alpha, size=self.size, mode="area").reshape(-1) > 0.5
        return torch.cat([small, small.new_zeros(1)])

    def firm(self, views: Views) -> Tensor:
        """Pixels of `masks` that must stay covered: all but the outlines of what is wider than two pixels.

        Which sample casts the very edge of an outline is a matter of rounding; were it needed, it would often be one
        far along the edge's ray, where only the hull is.
        """
        mask = self.masks(views)[:-1].reshape(len(self.pixel), 1, *self.size).float()
        core = -F.max_pool2d(-mask, 3, 1, 1)
        wide = F.max_pool2d(core, 3, 1, 1)
        firm = (core > 0.5) | ((mask > 0.5) & (wide < 0.5))
        return torch.cat([firm.reshape(-1), firm.new_zeros(1)])


def _coarse_size(views: Views, lattice: Lattice, pixel: float) -> tuple[int, int]:
    """(height, width) of pictures whose pixels are ``pixel`` spacings wide at the lattice's middle; at most its own."""
    middle = (torch.tensor(lattice.origin) + torch.tensor(lattice.upper)).to(views.alpha) / 2
    distance = (views.cameras.positions - middle).norm(dim=-1)
    focal = views.cameras.intrinsics[:, [0, 1], [0, 1]]
    width, height = (distance[:, None] / (focal * lattice.spacing * pixel)).median(0).values.tolist()
    own_height, own_width = views.image_size
    return min(max(round(height), 4), own_height), min(max(round(width), 4), own_width)


# Flat undersides and lids.


@dataclass(frozen=True)
class PeelRule:
    """One way to tell when a layer may go; several of them vote.

    Attributes:
        pixel: width of the silhouettes' pixels that must stay covered, in spacings. Samples of a solid body are seen
            through from about 1 down.
        firm: whether the outlines' own pixels need no cover, see `Sights.firm`.
        lost_share: pixels that a layer may uncover, for each sample of its rim.
        from_tips: whether a layer must be the lowest of its surroundings, so that nothing is peeled around a tip that
            stays.
    """

    pixel: float
    firm: bool
    lost_share: float
    from_tips: bool


PEEL_RULES = (PeelRule(1.7, False, 0.15, False), PeelRule(1.3, True, 0.1, True), PeelRule(1.3, False, 0.15, False))
"""Chosen on 24 training objects, ring of 16 views, 48 samples: each alone gains 0.06 to 0.08 of IoU on the hull, their
majority 0.09, and on fewer objects anything is lost."""


def flatten(views: Views, lattice: Lattice, hull: Tensor, rules: Sequence[PeelRule] = PEEL_RULES) -> Tensor:
    """Take off a hull what only a pointed underside or top would need, as most things end flat.

    The prior, in a sentence: things have flat undersides and flat lids, as high and as low as their silhouettes allow.
    Connected plateaus of the hull's underside are taken off a layer of samples at a time, from below, for as long as
    what is left still casts the silhouettes; then those of its top from above. A cone that no silhouette needs goes, to
    the rim that casts its outline; the tip of a roof that is seen against the background stays. Sides are not touched.

    Args:
        views: whose silhouettes stay covered; the world's z is up.
        lattice: X, Y, Z samples, some 48 along the longest side; the rules are about its spacing.
        hull: (X, Y, Z) in [0, 1] as `carve` gives it.
        rules: an odd number of them; their majority decides.

    Returns:
        (X, Y, Z): the hull's value where a sample stays, 0 where it goes.
    """
    chosen = (hull >= 0.5).reshape(-1)
    votes = torch.zeros(hull.shape, device=hull.device)
    for rule in rules:
        sights = Sights.of(views, lattice, chosen, pixel=rule.pixel)
        needed = sights.firm(views) if rule.firm else torch.ones(sights.count + 1, dtype=torch.bool)
        needed[-1] = False
        peeler = _Peeler((hull >= 0.5).cpu().numpy(), sights.pixel.cpu().numpy(), needed.cpu().numpy(), rule)
        for upside_down in (False, True):
            peeler.peel(upside_down)
        votes += torch.from_numpy(peeler.solid).to(votes)
    return torch.where(votes * 2 > len(rules), hull, torch.zeros_like(hull))


class _Peeler:
    """A shape that loses layers, and how many of its samples each pixel still sees.

    Args:
        solid: (X, Y, Z) bool.
        pixel: (V, N) the pixels of its samples, in their order in the lattice.
        needed: (pixels,) bool, those that must not lose their last sample, if they have one.
        rule: when a layer may go.
    """

    def __init__(
        self, solid: NDArray[np.bool_], pixel: NDArray[np.int64], needed: NDArray[np.bool_], rule: PeelRule
    ) -> None:
        self.solid, self.pixel, self.rule = solid.copy(), pixel, rule
        self.number = np.cumsum(solid.reshape(-1)).reshape(solid.shape) - 1
        self.seen = np.bincount(pixel.reshape(-1), minlength=len(needed))
        self.needed = needed & (self.seen > 0)

    def peel(self, upside_down: bool) -> None:
        """Take layers off from below, or from above, until all plateaus stay."""
        from scipy import ndimage

        solid, number = (a[:, :, ::-1] if upside_down else a for a in (self.solid, self.number))
        beyond = solid.shape[2]
        lowest = np.where(solid.any(2), solid.argmax(2), beyond)
        stays = np.zeros(lowest.shape, np.bool_)
        for height in range(beyond):
            plateaus, count = ndimage.label(lowest == height)
            for plateau in range(1, count + 1):
                here = plateaus == plateau
                x, y = np.nonzero(here)
                if stays[x, y].all():
                    continue
                rim = int((here & ~ndimage.binary_erosion(here)).sum())
                tip = not self.rule.from_tips or not ((lowest < height) & ndimage.binary_dilation(here)).any()
                if tip and self._take(number[x, y, height], self.rule.lost_share * rim):
                    solid[x, y, height] = False
                    lowest[x, y] = np.where(solid[x, y].any(1), solid[x, y].argmax(1), beyond)
                else:
                    stays |= here

    def _take(self, samples: NDArray[np.int64], most_lost: float) -> bool:
        """Take samples out of all pixels' sight, unless more than ``most_lost`` needed pixels would see nothing."""
        pixels, counts = np.unique(self.pixel[:, samples], return_counts=True)
        empty = self.seen[pixels] == counts
        if int((empty & self.needed[pixels]).sum()) > most_lost:
            return False
        self.seen[pixels] -= counts
        self.needed[pixels] &= ~empty
        return True


def cover(views: Views, lattice: Lattice, hull: Tensor, shape: Tensor, reach: int = 2) -> Tensor:
    """Give back to a shape what its silhouettes lack, as far as it lies in the hull and beside the shape.

    A shape that was flattened on a coarser lattice has lost up to a coarse pixel of its outlines.

    Args:
        views: the silhouettes.
        lattice: X, Y, Z samples.
        hull, shape: (X, Y, Z) in [0, 1]; 0.5 is the surface.
        reach: how far the shape may grow, in spacings.

    Returns:
        (X, Y, Z) in [0, 1]: the hull's value at samples that were given back, the shape's elsewhere.
    """
    chosen = (hull >= 0.5).reshape(-1)
    sights = Sights.of(views, lattice, chosen, pixel=1.0)
    bound, value = hull.reshape(-1)[chosen], shape.reshape(-1)[chosen].clone()
    needed = (sights.highest(bound) >= 0.5) & sights.masks(views)
    full = torch.zeros_like(shape).reshape(-1)
    for _ in range(reach):
        full[chosen] = value
        beside = F.max_pool3d((full.reshape(shape.shape) >= 0.5).float()[None, None], 3, 1, 1)[0, 0] > 0
        lacking = needed & (sights.highest(value) < 0.5)
        back = beside.reshape(-1)[chosen] & lacking[sights.pixel].any(0)
        value = torch.where(back, torch.maximum(bound, value), value)
    mended = shape.clone().reshape(-1)
    mended[chosen] = value
    return mended.reshape(shape.shape)
