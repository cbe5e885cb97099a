"""Fit a field to posed views of one object, without a network: silhouettes first, then colours.

::

    views ──► box ──► hull ──► flat ends ──► LatticeField ──► rendered, compared, mended ──► LatticeField
                        `lrm.hull`                       with coarse pictures, then with fine

The field is numbers on a lattice, not planes and a decoder: with some tens of views of one object there is nothing for
a decoder to learn, and a lattice is fitted many times sooner on a CPU, where only samples near the surface take part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from multiview.cameras import Cameras, project, rays
from multiview.errors import FieldError, SettingsError
from multiview.views import Views

from .field import Field, OutputRule, RawDensity
from .hull import carve, choose_dissent, cover, find_box, flatten, lattice_in, lattice_points
from .lattice import Lattice
from .volume import cube_interval, march

Progress = Callable[[float], None]

_OPAQUE = 3.0  # density of a filled sample, per spacing: two of them hide what is behind
_SHARPNESS = 3.0  # without it the fog outside the level set would fill a silhouette before the level set does
_SURE = 3.0  # raw density, either way, of samples whose silhouettes leave no doubt
_SLOPE = 2.0  # raw density of a filled sample of a shape; minus that of an empty one
_SURE_COLOR = 6.0  # the same of colours' logits
_SKIN = 4  # spacings of the object below its surface that are fitted
_PIXELS = (2.5, 1.0)  # width of the pictures' pixels, in spacings: coarse, then fine
_RING = 3  # pixels around the silhouettes that are compared, too
_BETAS = (0.9, 0.99)
_LEVELS = torch.linspace(-1.5, 0.5, 41)  # raw densities that may become the surface
_LEVEL_RAYS = 40000
_LONGEST = 3.0  # step of one number, in units of its rate
_CORNERS = torch.tensor([[c >> 2 & 1, c >> 1 & 1, c & 1] for c in range(8)])


@dataclass(frozen=True, eq=False)
class LatticeField(Field):
    """A field whose raw numbers are given at the samples of a lattice and linear between them.

    Attributes:
        lattice: where the samples lie; outside of their box is nothing.
        raw: (X, Y, Z) raw density, an occupancy logit.
        raw_color: (X, Y, Z, 3), logits of sRGB.
        outputs: raw numbers → density and colour.
    """

    lattice: Lattice
    raw: Tensor
    raw_color: Tensor
    outputs: OutputRule
    scene_radius: float
    level: float

    def __post_init__(self) -> None:
        shape = tuple(self.lattice.shape)
        if tuple(self.raw.shape) != shape or tuple(self.raw_color.shape) != (*shape, 3):
            raise FieldError(
                f"a lattice field of {shape} samples wants raw {shape} and raw_color {(*shape, 3)}, found "
                f"{tuple(self.raw.shape)} and {tuple(self.raw_color.shape)}."
            )

    @property
    def device(self) -> torch.device:
        """The device of the samples."""
        return self.raw.device

    def density_and_color(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See `Field`."""
        return self.density(points), self.color(points)

    def density(self, points: Tensor) -> Tensor:
        """See `Field`; the colour is not computed."""
        return self.outputs.to_density(self._raw_at(points))

    def color(self, points: Tensor) -> Tensor:
        """See `Field`; the density is not computed."""
        return self.outputs.to_color(self._sampled(self.raw_color.permute(3, 0, 1, 2), points).T)

    def raw_density(self) -> RawDensity:
        """See `Field`; the samples themselves, whose level was fitted and is sure."""
        return RawDensity(torch.no_grad()(self._raw_at), self.outputs.to_density, self.outputs.from_density, True)

    def _raw_at(self, points: Tensor) -> Tensor:
        raw = self._sampled(self.raw[None], points)[0]
        low, high = (points.new_tensor(corner) for corner in (self.lattice.origin, self.lattice.upper))
        inside = ((points >= low) & (points <= high)).all(-1)
        return torch.where(inside, raw, torch.full_like(raw, -_SURE))

    def _sampled(self, values: Tensor, points: Tensor) -> Tensor:
        """Values (C, X, Y, Z) at world points (N, 3), linear between samples: (C, N)."""
        low, high = (points.new_tensor(corner) for corner in (self.lattice.origin, self.lattice.upper))
        grid = ((points - low) / (high - low) * 2 - 1).flip(-1)[None, None, None]  # its last axis comes first
        return F.grid_sample(values[None], grid, padding_mode="border", align_corners=True)[0, :, 0, 0]


@dataclass(frozen=True)
class FitViewsSettings:
    """How a field is fitted to views; lengths in spacings of the lattice unless they say otherwise.

    Attributes:
        samples: of the lattice, along the longest side of the object's box, 16 to 512.
        flat_samples: of the lattice on which the hull is flattened, see `lrm.hull.flatten`; 0 leaves the hull as it is.
        steps: of the optimisation against coarse and against fine pictures.
        batch_rays: rays per step.
        learning_rate: of colours' logits, at the start of each level; it falls to a tenth.
        density_rate: the same of raw densities.
        step: between samples of a ray.
        mask_weight: of the silhouettes' loss beside the colours'.
        surface_weight: of a prior of little surface, which keeps what no view tells smooth.
        seed: of the rays and the samples' offsets.
    """

    samples: int = 192
    flat_samples: int = 48
    steps: tuple[int, int] = (80, 160)
    batch_rays: int = 2048
    learning_rate: float = 0.1
    density_rate: float = 0.1
    step: float = 0.8
    mask_weight: float = 1.0
    surface_weight: float = 0.005
    seed: int = 0

    def __post_init__(self) -> None:
        if not 16 <= self.samples <= 512 or not 0 <= self.flat_samples <= 512:
            raise SettingsError(
                f"a fit wants samples from 16 to 512 and flat_samples up to 512, found {self.samples} and "
                f"{self.flat_samples}."
            )
        if min(self.steps) < 0 or self.batch_rays < 1 or not self.learning_rate > 0 or not 0.1 <= self.step <= 4:
            raise SettingsError(
                "a fit wants steps >= 0, batch_rays >= 1, learning_rate > 0 and a step of 0.1 to 4 spacings, found "
                f"{self.steps}, {self.batch_rays}, {self.learning_rate} and {self.step}."
            )


@dataclass(frozen=True, eq=False)
class FittedViews:
    """What came of a fit.

    Attributes:
        field: fitted, without gradients.
        hull: (X, Y, Z) the visual hull at the field's lattice, in [0, 1]; 0.5 is its surface.
        dissent: how many views may be wrong at any one point; 0 for views that agree.
    """

    field: LatticeField
    hull: Tensor
    dissent: int


def fit_views(views: Views, settings: FitViewsSettings | None = None, progress: Progress | None = None) -> FittedViews:
    """Fit a field to views of one object.

    A rendered silhouette ends a little outside of the level set, in its fog, so a field whose pictures are right has a
    surface that is too tight. In the end the level is moved to where the surface's own silhouettes are the pictures'.

    What no view tells is decided by the prior of `lrm.hull.flatten`: undersides and lids that no camera sees are flat,
    where the silhouettes allow it.

    Args:
        views: V >= 3 with alpha, on any device; the fit runs there.
        settings: how.
        progress: called with a growing fraction in [0, 1].

    Returns:
        The field and what it started from. The same views and settings give the same numbers on one machine.

    Raises:
        ImageError: fewer than three views, or empty masks.
        CameraError: the cameras do not see one object.
    """
    settings = settings or FitViewsSettings()
    tell = progress or (lambda fraction: None)
    low, high = find_box(views)
    coarse = lattice_in(low, high, settings.flat_samples or settings.samples)
    dissent = choose_dissent(views, coarse)
    tell(0.05)
    shape = hull_on(views, coarse, dissent)
    if settings.flat_samples:
        shape = flatten(views, coarse, shape)
    tell(0.25)
    generator = torch.Generator().manual_seed(settings.seed)
    lattice = lattice_in(low, high, settings.samples)
    hull = hull_on(views, lattice, dissent)
    fitted = _begin(views, lattice, hull, _mended(views, lattice, hull, shape, coarse))
    for level, pixel in enumerate(_PIXELS):
        seen, part = _shrunk(views, lattice, pixel), partial(_part, tell, 0.25 + 0.375 * level)
        fitted = _optimise(fitted, hull, seen, settings.steps[level], settings, generator, part)
    fitted = _calibrated(fitted, views, generator)
    tell(1.0)
    return FittedViews(fitted, hull, dissent)


def _part(tell: Progress, began: float, share: float) -> None:
    tell(began + 0.375 * share)


def hull_on(views: Views, lattice: Lattice, dissent: int) -> Tensor:
    """The visual hull at the samples of a lattice: (X, Y, Z) in [0, 1], 0 on its border."""
    points = lattice_points(lattice).to(views.alpha.device)
    hull = carve(views, points, dissent).reshape(lattice.shape)
    return F.pad(hull[1:-1, 1:-1, 1:-1], [1] * 6)


def hull_field(views: Views, lattice: Lattice, hull: Tensor) -> LatticeField:
    """A hull (X, Y, Z) as a field, with the mean colours of the views."""
    return _begin(views, lattice, hull, hull)


def _mended(views: Views, lattice: Lattice, hull: Tensor, shape: Tensor, source: Lattice) -> Tensor:
    """A shape on one lattice at the samples of another, with all of the silhouettes: (X, Y, Z) in [0, 1]."""
    return cover(views, lattice, hull, torch.minimum(_resampled(shape[..., None], source, lattice)[..., 0], hull))


def _resampled(values: Tensor, source: Lattice, lattice: Lattice) -> Tensor:
    """Values (X, Y, Z, C) at the samples of one lattice → (X', Y', Z', C) at those of another, linear between."""
    low, high = torch.tensor(source.origin).to(values), torch.tensor(source.upper).to(values)
    grid = ((lattice_points(lattice).to(values) - low) / (high - low) * 2 - 1).flip(-1)
    found = F.grid_sample(
        values.permute(3, 0, 1, 2)[None], grid.reshape(1, *lattice.shape, 3), padding_mode="border", align_corners=True
    )
    return found[0].permute(1, 2, 3, 0).contiguous()


def _outputs(lattice: Lattice) -> OutputRule:
    return OutputRule("occupancy", density_scale=_OPAQUE / lattice.spacing, sharpness=_SHARPNESS)


def _field(lattice: Lattice, raw: Tensor, raw_color: Tensor) -> LatticeField:
    rule = _outputs(lattice)
    half = lattice.spacing / 2
    reach = max(abs(side) + half for side in (*lattice.origin, *lattice.upper))
    return LatticeField(lattice, raw, raw_color, rule, reach, rule.density_scale / 2)


def _begin(views: Views, lattice: Lattice, hull: Tensor, shape: Tensor) -> LatticeField:
    """A field with a shape (X, Y, Z) in [0, 1], within the hull, and the views' mean colours."""
    raw = torch.minimum(_raw(shape), _raw(hull))
    points = lattice_points(lattice).to(views.alpha.device)
    colors = torch.cat([_mean_color(views, chunk) for chunk in points.split(1 << 16)])
    return _field(lattice, raw, torch.logit(colors.clamp(0.02, 0.98)).reshape(*lattice.shape, 3))


def _raw(shape: Tensor) -> Tensor:
    """A shape's values in [0, 1] as raw density; 0 at 0.5."""
    return ((shape - 0.5) * 2 * _SLOPE).clamp(-_SURE, _SURE)


def _mean_color(views: Views, points: Tensor) -> Tensor:
    """The mean of what the views show at points (N, 3): (N, 3), grey where no view shows the object."""
    total = torch.full((len(points), 4), 1e-3, device=points.device)
    total[:, :3] *= 0.5
    for index in range(len(views)):
        uv, _ = project(views.cameras.select([index]), points)
        rgba = torch.cat([views.images[index] * views.alpha[index], views.alpha[index]])
        grid = (uv * 2 - 1).clamp(-2, 2)[None]
        total += F.grid_sample(rgba[None], grid, align_corners=False)[0, :, 0].T
    return total[:, :3] / total[:, 3:]


# The optimisation.


class _Active:
    """The samples of a lattice field that can matter, as one table: those in or beside the hull, but not deep inside.

    Attributes:
        table: (M + 2, 4) raw density and raw colour; the last two rows are empty space and the object's inside.
        number: (X, Y, Z) int64 row of each sample.
        bound: (M + 2,) the highest raw density that the hull allows.
        neighbours: (M, 3) rows of the samples one further along x, y and z.
    """

    def __init__(self, start: LatticeField, hull: Tensor) -> None:
        deep = ~_grown(start.raw <= 0, _SKIN)
        near = _grown(hull > 0.25, 1) & ~deep
        self.lattice, self.outputs = start.lattice, start.outputs
        self.where = near.nonzero(as_tuple=True)
        self.count = count = len(self.where[0])
        self.number = torch.where(deep, count + 1, count)
        self.number[self.where] = torch.arange(count, device=near.device)
        rows = torch.cat([start.raw[..., None], start.raw_color], -1)[self.where]
        ends = rows.new_tensor([[-_SURE, 0.0, 0.0, 0.0], [_SURE, 0.0, 0.0, 0.0]])
        self.ends, self.start_color = ends, start.raw_color
        self.table = torch.cat([rows, ends]).requires_grad_()
        self.bound = torch.cat([_raw(hull)[self.where], ends[:, 0]])
        beyond = F.pad(self.number, [0, 1] * 3, value=count)
        x, y, z = self.where
        self.neighbours = torch.stack([beyond[x + 1, y, z], beyond[x, y + 1, z], beyond[x, y, z + 1]], 1)

    def occupied(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each point (..., 3) is in a cell worth sampling, and that cell's lowest corner (..., 3) int64.

        What is deep inside is not: the skin hides it.
        """
        place = (points - points.new_tensor(self.lattice.origin)) / self.lattice.spacing
        last = torch.tensor(self.lattice.shape, device=points.device) - 2
        corner = place.floor().long()
        inside = ((corner >= 0) & (corner <= last)).all(-1)
        corner = torch.minimum(corner.clamp(min=0), last)
        return inside & (self.number[corner[..., 0], corner[..., 1], corner[..., 2]] < self.count), corner

    def at(self, points: Tensor, corner: Tensor) -> Tensor:
        """The four raw numbers at points (P, 3) whose cells' lowest corners are known: (P, 4)."""
        share = (points - points.new_tensor(self.lattice.origin)) / self.lattice.spacing - corner
        offsets = _CORNERS.to(points.device)
        index = corner[:, None] + offsets
        rows = self.number[index[..., 0], index[..., 1], index[..., 2]]
        weights = torch.where(offsets.bool(), share[:, None], 1 - share[:, None]).prod(-1)
        return F.embedding_bag(rows, self.table, per_sample_weights=weights, mode="sum")

    def surface(self) -> Tensor:
        """How much the occupancy changes from sample to sample, added up, in faces of cells: a scalar."""
        filled = torch.sigmoid(self.table[:, 0])
        change = filled[self.neighbours] - filled[: self.count, None]
        return (change.square().sum(-1) + 1e-6).sqrt().sum()

    def bounded(self) -> None:
        """Take back what has left the hull or the range of raw numbers."""
        with torch.no_grad():
            self.table[:, 0].copy_(torch.minimum(self.table[:, 0].clamp(-_SURE, _SURE), self.bound))
            self.table[:, 1:].clamp_(-_SURE_COLOR, _SURE_COLOR)
            self.table[self.count :] = self.ends

    def field(self) -> LatticeField:
        """The whole lattice again."""
        full = self.table.detach()[self.number]
        full[..., 1:] = torch.where((self.number < self.count)[..., None], full[..., 1:], self.start_color)
        return _field(self.lattice, full[..., 0].contiguous(), full[..., 1:].contiguous())


def _grown(shape: Tensor, spacings: int) -> Tensor:
    """A shape (X, Y, Z) bool with all samples within so many spacings of it along x, y and z."""
    wide = shape.float()[None, None]
    for _ in range(spacings):
        wide = F.max_pool3d(wide, 3, 1, 1)
    return wide[0, 0] > 0


@dataclass(frozen=True, eq=False)
class _Rays:
    """All rays worth comparing: origins, unit directions (R, 3), colour times alpha and alpha (R, 4)."""

    origins: Tensor
    directions: Tensor
    truth: Tensor

    @classmethod
    def of(cls, views: Views, some: Callable[[int], Tensor] | None = None) -> _Rays:
        """All of them, or those whose numbers, of so many, ``some`` gives; only these are held in memory."""
        height, width = views.image_size
        near = F.max_pool2d(views.alpha, 2 * _RING + 1, 1, _RING) > 0
        picked = None if some is None else some(int(near.sum())).to(near.device)
        parts, first = [], 0
        for index in range(len(views)):
            origins, directions = rays(views.cameras.select([index]), height, width)
            chosen = near[index, 0].reshape(-1).nonzero()[:, 0]
            if picked is not None:
                own = picked[(picked >= first) & (picked < first + len(chosen))] - first
                first, chosen = first + len(chosen), chosen[own]
            rgba = torch.cat([views.images[index] * views.alpha[index], views.alpha[index]]).reshape(4, -1).T
            parts.append((origins[0][chosen], directions[0][chosen], rgba[chosen]))
        return cls(*(torch.cat([part[i] for part in parts]) for i in range(3)))


def _shrunk(views: Views, lattice: Lattice, pixel: float) -> Views:
    """Views whose pixels are about ``pixel`` spacings wide at the object, never larger than they are."""
    middle = _middle(lattice).to(views.alpha)
    distance = (views.cameras.positions - middle).norm(dim=-1)
    own = (distance / (views.cameras.intrinsics[:, 1, 1] * views.image_size[0])).median()
    factor = int(pixel * lattice.spacing / float(own))
    if factor < 2:
        return views
    alpha = F.avg_pool2d(views.alpha, factor)
    images = F.avg_pool2d(views.images * views.alpha, factor) / alpha.clamp(min=1e-6)
    height, width = views.image_size
    # Pixels that do not fill a block are left out on the right and at the bottom, and the frame with them.
    scale = [width / (images.shape[3] * factor), height / (images.shape[2] * factor)]
    intrinsics = views.cameras.intrinsics.clone()
    intrinsics[:, 0] *= scale[0]
    intrinsics[:, 1] *= scale[1]
    return Views(images, alpha, Cameras(views.cameras.c2w, intrinsics))


def _optimise(
    start: LatticeField, hull: Tensor, views: Views, steps: int, settings: FitViewsSettings,
    generator: torch.Generator, tell: Progress,
) -> LatticeField:  # fmt: skip
    """Adam on random rays, within the hull."""
    active = _Active(start, hull)
    active.bounded()
    lattice = start.lattice
    middle = _middle(lattice).to(hull)
    seen = _Rays.of(views)
    descent = _Descent(active.table, settings.learning_rate, settings.density_rate)
    area = (
        float((hull > 0.5).sum()) ** (2 / 3) + 1
    )  # the prior's unit, so that its weight means the same on any lattice
    for step in range(steps):
        batch = torch.randint(len(seen.truth), (settings.batch_rays,), generator=generator).to(hull.device)
        shown = _render(active, seen.origins[batch], seen.directions[batch], middle, settings.step, generator)
        error = (shown - seen.truth[batch]).square()
        loss = error[:, :3].sum(-1).mean() + settings.mask_weight * error[:, 3].mean()
        loss = loss + settings.surface_weight * active.surface() / area / 10
        (gradient,) = torch.autograd.grad(loss, active.table)
        descent.step(gradient, 0.1 ** (step / steps))
        active.bounded()
        tell((step + 1) / steps)
    return active.field()


def _calibrated(field: LatticeField, views: Views, generator: torch.Generator) -> LatticeField:
    """The field with its surface at the level whose silhouettes agree best with the pictures'."""
    seen = _Rays.of(views, lambda count: torch.randperm(count, generator=generator)[:_LEVEL_RAYS])
    ends = zip(seen.origins.split(1 << 12), seen.directions.split(1 << 12), strict=True)
    peaks = torch.cat([_highest(field, *some) for some in ends])
    levels = _LEVELS.to(peaks)
    filled, wanted = peaks > levels[:, None], seen.truth[:, 3] > 0.5
    overlap = (filled & wanted).sum(1) / (filled | wanted).sum(1).clamp(min=1)
    return _field(field.lattice, (field.raw - levels[overlap.argmax()]).clamp(-_SURE, _SURE), field.raw_color)


def _highest(field: LatticeField, origins: Tensor, directions: Tensor) -> Tensor:
    """The highest raw density (R,) that rays with origins and directions (R, 3) meet."""
    lattice = field.lattice
    middle, half = _middle(lattice).to(origins), max(lattice.shape) * lattice.spacing / 2
    near, far = cube_interval(origins - middle, directions, half)
    count = max(math.ceil(float((far - near).max()) / (lattice.spacing / 2)), 1)
    share = (torch.arange(count, device=origins.device) + 0.5) / count
    t = near[:, None] + (far - near)[:, None] * share
    points = origins[:, None] + directions[:, None] * t[..., None]
    return field._raw_at(points.reshape(-1, 3)).reshape(t.shape).amax(1)


def _middle(lattice: Lattice) -> Tensor:
    """The middle (3,) of a lattice's box."""
    return (torch.tensor(lattice.origin) + torch.tensor(lattice.upper)) / 2


class _Descent:
    """Adam on a table (M, 4), but that all densities share one second moment.

    Plain Adam would move a sample that no ray has met as far as any other, wherever the faint pull of the prior points.
    """

    def __init__(self, table: Tensor, color_rate: float, density_rate: float) -> None:
        self.table = table
        self.rates = table.new_tensor([density_rate, *[color_rate] * 3])
        self.first, self.second = torch.zeros_like(table), torch.zeros_like(table)
        self.count = 0

    def step(self, gradient: Tensor, share: float) -> None:
        """One step with ``share`` of the rates."""
        self.count += 1
        square = gradient.square()
        met = square[:, 0] > 0
        square[:, 0] = square[met, 0].mean() if met.any() else 0.0
        self.first.lerp_(gradient, 1 - _BETAS[0])
        self.second.lerp_(square, 1 - _BETAS[1])
        first, second = self.first / (1 - _BETAS[0] ** self.count), self.second / (1 - _BETAS[1] ** self.count)
        move = (first / (second.sqrt() + 1e-12)).clamp(-_LONGEST, _LONGEST)
        with torch.no_grad():
            self.table -= share * self.rates * move


def _render(
    active: _Active, origins: Tensor, directions: Tensor, middle: Tensor, step: float, generator: torch.Generator
) -> Tensor:
    """Colour times opacity and opacity (R, 4) of rays, sampled every ``step`` spacings from a random offset on."""
    lattice = active.lattice
    half = max(lattice.shape) * lattice.spacing / 2
    near, far = cube_interval(origins - middle, directions, half)
    length = step * lattice.spacing
    count = max(math.ceil(float((far - near).max()) / length), 1)
    offset = torch.rand(len(origins), 1, generator=generator).to(origins.device)
    t = near[:, None] + (torch.arange(count, device=origins.device) + offset) * length
    points = origins[:, None] + directions[:, None] * t[..., None]
    held, corner = active.occupied(points)
    raw = active.at(points[held], corner[held])
    density, color = points.new_zeros(t.shape), points.new_zeros(*t.shape, 3)
    density = density.masked_scatter(held, active.outputs.to_density(raw[:, 0]))
    color = color.masked_scatter(held[..., None], active.outputs.to_color(raw[:, 1:]))
    rgb, opacity, _ = march(density, color, torch.full_like(t[:, :1], length))
    return torch.cat([rgb, opacity[:, None]], -1)
