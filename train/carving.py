"""Silhouettes and cameras judge each other: epipolar tangents of outlines, and the hull that all masks leave standing.

Two views of one object share their epipolar tangent planes: turned about the line between two cameras, a plane touches
the object at the same angle in both pictures. How far these angles differ is `disagreement`, precise to a fraction of
a pixel and free of any grid. `carve` keeps what lies inside every mask; the share of the masks that its own silhouettes
still cover says, more plainly and more coarsely, whether masks and cameras belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from multiview.cameras import Cameras

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

WORST = 0.25  # of the object's size: a pair of views that disagrees more than that says no more than that
_APART = 1e-3  # of the cameras' distance to the object: nearer cameras have no line between them
_WIDE = 0.9 * np.pi  # outlines that reach further around the line between two cameras hide its end
_CONVERGE = 0.05  # radians by which rays that should meet may run apart
_OUTLINE = 64  # corners kept of an outline
EDGE = 0.15  # alpha above which a pixel belongs to the object: low, so that thin parts of small pictures do
_AT_FRAME = 0.6  # pixels from the picture's frame
_SLACK = 1  # pixels by which masks are widened before they carve, so that thin parts survive
_FIRST = 28  # samples per axis of the first, coarse carving


@dataclass(frozen=True, eq=False)
class Outlines:
    """Convex outlines of V masks.

    Attributes:
        corners: (V, H, 2) in pictures' widths and heights, v down; short outlines repeat a corner.
        framed: (V, H) whether the corner lies on the picture's frame, so that the object may go on beyond it.
        size: (V,) longer side of the mask's box, in picture heights.
    """

    corners: Floats
    framed: Mask
    size: Floats

    def __len__(self) -> int:
        return len(self.corners)

    def select(self, order: Sequence[int]) -> Outlines:
        """The outlines of pictures ``order``."""
        index = list(order)
        return Outlines(self.corners[index], self.framed[index], self.size[index])

    def turned(self, *, mirror: bool = False, flip: bool = False) -> Outlines:
        """The outlines of the pictures with left and right, or top and bottom, exchanged."""
        corners = self.corners.copy()
        if mirror:
            corners[..., 0] = 1 - corners[..., 0]
        if flip:
            corners[..., 1] = 1 - corners[..., 1]
        return replace(self, corners=corners)


@dataclass(frozen=True, eq=False)
class Eyes:
    """Cameras as plain arrays: rotations (V, 3, 3) c2w OpenGL, centres (V, 3), normalised intrinsics (V, 3, 3)."""

    rotation: Floats
    centers: Floats
    intrinsics: Floats

    @classmethod
    def of(cls, cameras: Cameras) -> Eyes:
        c2w = cameras.c2w.double().cpu().numpy()
        return cls(c2w[:, :3, :3], c2w[:, :3, 3], cameras.intrinsics.double().cpu().numpy())

    def rays(self, corners: Floats) -> Floats:
        """World rays (V, H, 3), forward part 1, of picture places (V, H, 2) of the same cameras."""
        return self.local_rays(corners) @ self.rotation.transpose(0, 2, 1)

    def local_rays(self, corners: Floats) -> Floats:
        """Camera-frame rays (V, H, 3), forward part 1."""
        k = self.intrinsics[:, None]
        y = (corners[..., 1] - k[..., 1, 2]) / k[..., 1, 1]
        x = (corners[..., 0] - k[..., 0, 2] - k[..., 0, 1] * y) / k[..., 0, 0]
        return np.stack([x, -y, -np.ones_like(x)], -1)


def outlines_of(mattes: NDArray[np.floating]) -> Outlines:
    """Convex outlines of mattes (V, h, w) in [0, 1], none empty, to a fraction of a pixel."""
    from scipy.spatial import ConvexHull

    height, width = mattes.shape[1:]
    corners, framed, size = [], [], []
    for matte in mattes:
        across, down = _ends(matte), _ends(matte.T)[:, ::-1]
        points = np.concatenate([across, down])
        # Two corners a hair apart keep an outline of a single row of pixels from having no area.
        hull = points[
            ConvexHull(np.concatenate([points, points[:1] + 1e-3, points[:1] - (1e-3, 0)])).vertices % len(points)
        ]
        hull = hull[np.linspace(0, len(hull), _OUTLINE, endpoint=False).astype(int)]
        framed.append(((hull < _AT_FRAME) | (hull > np.array([width, height]) - _AT_FRAME)).any(1))
        corners.append(hull / (width, height))
        size.append(np.ptp(points, 0).max() / height)
    return Outlines(np.stack(corners), np.stack(framed), np.array(size))


def _ends(matte: NDArray[np.floating]) -> Floats:
    """Where each row of a matte (h, w) first and last crosses `EDGE`: (2 R, 2) x and y in pixels."""
    rows = np.flatnonzero((matte > EDGE).any(1))
    padded = np.pad(matte[rows].astype(np.float64), ((0, 0), (1, 1)))
    ends = []
    for values, flipped in ((padded, False), (padded[:, ::-1], True)):
        first = (values > EDGE).argmax(1)
        after, before = (values[np.arange(len(rows)), first - back] for back in (0, 1))
        # Of a pixel that is whole beside one that is empty the edge is taken to run between them.
        share = np.where(after - before < 1, (EDGE - before) / (after - before), 0.5)
        x = first - 1.5 + share
        ends.append(np.stack([matte.shape[1] - x if flipped else x, rows + 0.5], 1))
    return np.concatenate(ends)


def middle(outlines: Outlines, eyes: Eyes) -> Floats:
    """(3,) the point nearest to the rays through the middles of all outlines."""
    rays = eyes.rays(outlines.corners.mean(1, keepdims=True))[:, 0]
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    across = np.eye(3) - rays[:, :, None] * rays[:, None]
    # A trace of the identity keeps parallel rays solvable.
    total = across.sum(0) + 1e-9 * np.eye(3)
    return np.linalg.solve(total, (across @ eyes.centers[..., None])[..., 0].sum(0))


@dataclass(frozen=True, eq=False)
class Disagreement:
    """How far views contradict each other.

    Attributes:
        pairs: (V, V) symmetric, 0 to `WORST` of the object's size; NaN where a pair says nothing.
    """

    pairs: Floats

    @property
    def total(self) -> float:
        """Mean over all pairs that say something; `WORST` when hardly any does."""
        there = np.isfinite(self.pairs)
        few = there.sum() < 0.25 * self.pairs.size
        return WORST if few else float(self.pairs[there].mean())

    @property
    def of_view(self) -> Floats:
        """(V,) median over the other views of each view; NaN where nothing is said."""
        said = np.isfinite(self.pairs).any(1)
        medians = np.full(len(self.pairs), np.nan)
        medians[said] = np.nanmedian(self.pairs[said], axis=1)
        return medians


@dataclass(frozen=True, eq=False)
class _Tangents:
    """Of P pictures at A cameras, seen from B others: angles (P, A, B, 2) about the line between the two cameras, and
    what a radian of it is in the picture, in units of the object's size there (P, A, B); NaN where it says nothing."""

    angles: Floats
    lever: Floats
    converge: Mask


def disagreement(outlines: Outlines, eyes: Eyes) -> Disagreement:
    """How far the outlines' epipolar tangents differ, for each pair of views.

    Args:
        outlines: V.
        eyes: V.
    """
    rays = eyes.rays(outlines.corners)[:, None]  # (V, 1, H, 3): picture i at camera i alone
    tangents = _tangents(rays, outlines.framed[:, None], outlines.size[:, None], eyes, middle(outlines, eyes))
    angles, lever = tangents.angles[:, 0], tangents.lever[:, 0]
    gaps = _gaps(angles, angles.transpose(1, 0, 2), lever, lever.T)
    return Disagreement(_judged(gaps, tangents.converge))


def _judged(gaps: Floats, converge: Mask) -> Floats:
    pairs = np.where(converge, np.minimum(gaps, WORST), WORST)
    pairs[np.eye(len(pairs), dtype=bool)] = np.nan
    return pairs


def _tangents(rays: Floats, framed: Mask, size: Floats, eyes: Eyes, center: Floats) -> _Tangents:
    """Tangent angles of outlines against every other camera.

    Args:
        rays: (P, A, H, 3) world rays of outlines. With A = 1 picture i is at camera i.
        framed: (P, 1, H).
        size: (P, 1) in picture heights.
        eyes: the cameras.
        center: (3,) a point near the object, where angles begin.
    """
    line = eyes.centers[None] - eyes.centers[:, None]
    length = np.linalg.norm(line, axis=-1)
    reach = np.linalg.norm(eyes.centers - center, axis=1).mean()
    near = length < _APART * max(reach, 1e-12)
    # The same frame for both cameras of a pair: the line runs from the lower index to the higher.
    sign = np.sign(np.arange(len(line))[None] - np.arange(len(line))[:, None])
    axis = line * (sign / np.maximum(length, 1e-12))[..., None]
    from_lower = np.where((sign >= 0)[..., None], eyes.centers[:, None], eyes.centers[None])
    first = center - from_lower
    first = first - (first * axis).sum(-1, keepdims=True) * axis
    first /= np.maximum(np.linalg.norm(first, axis=-1, keepdims=True), 1e-12)
    second = np.cross(axis, first)
    if rays.shape[1] == 1:  # camera of a picture = its index
        u, v = (np.einsum("phk,pbk->pbh", rays[:, 0], frame)[:, None] for frame in (first, second))
        along = np.einsum("pk,pbk->pb", rays[:, 0].mean(1), axis)[:, None]
        focal = eyes.intrinsics[:, 1, 1][:, None, None]
    else:
        u, v = (np.einsum("pahk,abk->pabh", rays, frame) for frame in (first, second))
        along = np.einsum("pak,abk->pab", rays.mean(2), axis)
        focal = eyes.intrinsics[:, 1, 1][None, :, None]
    angle = np.arctan2(v, u)
    low, high = angle.argmin(-1), angle.argmax(-1)
    ends = np.stack([np.take_along_axis(angle, i[..., None], -1)[..., 0] for i in (low, high)], -1)
    cut = np.stack([np.take_along_axis(framed[:, :, None], i[..., None], -1)[..., 0] for i in (low, high)], -1)
    hidden = (ends[..., 1] - ends[..., 0] > _WIDE) | (near[:, None] if rays.shape[1] == 1 else near)
    ends = np.where(cut | hidden[..., None], np.nan, ends)
    lever = np.hypot(u, v).mean(-1) * focal / size[..., None]
    if rays.shape[1] == 1:
        ray = rays[:, 0].mean(1)
        toward = np.arccos(np.clip(along[:, 0] * sign / np.linalg.norm(ray, axis=1)[:, None], -1, 1))
        converge = (toward + toward.T < np.pi + _CONVERGE) | near
    else:
        converge = np.ones(line.shape[:2], bool)
    return _Tangents(ends, lever, converge)


def _gaps(one: Floats, other: Floats, lever: Floats, other_lever: Floats) -> Floats:
    """Mean over the two tangents of the angles' difference, in object sizes; NaN where neither is seen."""
    apart = np.abs((one - other + np.pi) % (2 * np.pi) - np.pi)
    seen = np.isfinite(apart)
    count = seen.sum(-1)
    mean = np.where(seen, apart, 0).sum(-1) / np.maximum(count, 1)
    return np.where(count > 0, mean * (lever + other_lever) / 2, np.nan)


def best_order(outlines: Outlines, eyes: Eyes, seed: int = 0, starts: int = 12) -> tuple[int, ...]:
    """Which picture belongs to which camera, judged by all pairs: camera i shows picture ``order[i]``.

    Picture pairs are exchanged as long as that helps, from the given order and from random ones.

    Args:
        outlines: V, at most some 40: memory grows with the fourth power.
        eyes: V.
        seed: of the random orders.
        starts: how many random orders are tried beside the given one.
    """
    count = len(outlines)
    local = np.stack([eyes.local_rays(np.broadcast_to(c, (count, *c.shape))) for c in outlines.corners])
    rays = local @ eyes.rotation.transpose(0, 2, 1)[None]
    center = middle(outlines, eyes)
    tangents = _tangents(rays, outlines.framed[:, None], outlines.size[:, None], eyes, center)
    cost = np.zeros((count, count, count, count), np.float32)  # picture p at camera a, picture q at camera b
    for p in range(count):
        one, lever = tangents.angles[p][:, None], tangents.lever[p][:, None]
        other = tangents.angles.transpose(2, 0, 1, 3)  # of (q, b, a): [a, q, b]
        other_lever = tangents.lever.transpose(2, 0, 1)
        gaps = np.minimum(_gaps(one, other, lever, other_lever), WORST)
        cost[p] = np.where(np.isfinite(gaps), gaps, 0.0)
    rng = np.random.default_rng(seed)
    found = [_exchanged(cost, np.arange(count))]
    found += [_exchanged(cost, rng.permutation(count)) for _ in range(starts)]
    return tuple(int(i) for i in min(found, key=lambda order: _cost(cost, order)))


def _cost(cost: NDArray[np.float32], order: NDArray[np.int64]) -> float:
    camera = np.arange(len(order))
    return float(cost[order[:, None], camera[:, None], order[None], camera[None]].sum())


def _exchanged(cost: NDArray[np.float32], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Exchange the pair of pictures that lowers the cost most until none does."""
    order, camera = order.copy(), np.arange(len(order))
    for _ in range(20 * len(order)):
        # at[p, a]: what picture p at camera a costs against all others as they stand.
        at = cost[:, :, order, camera].sum(-1)
        # Of two that change places, what they cost with each other at their old places does not count.
        pair = cost[order[:, None], camera[:, None], order[None], camera[None]]
        crossed = at[order][:, camera]  # [i, j]: the picture of i at camera j, all others in place
        own = cost[order[:, None], camera[None], order[None], camera[None]]  # the picture of i at j, against j's own
        late = cost[order[:, None], camera[None], order[:, None], camera[:, None]]  # the picture of i at j and at i
        new = cost[order[:, None], camera[None], order[None], camera[:, None]]  # i's at j and j's at i
        moved = crossed - own - late + new
        before = np.diag(crossed)
        change = 2 * (moved + moved.T - before[:, None] - before[None]) - 2 * (new - pair)
        change[np.diag_indices(len(order))] = 0
        i, j = np.unravel_index(change.argmin(), change.shape)
        if change[i, j] > -1e-6:
            break
        order[[i, j]] = order[[j, i]]
    return order


def turned_alike(order: Sequence[int], outlines: Outlines, eyes: Eyes) -> tuple[int, ...]:
    """Of orders that differ from ``order`` by a step around the ring and fit as well, the one that moves least.

    Silhouettes cannot tell an object from one that is turned about the axis of an even ring of cameras.
    """
    rolled = [tuple(int(i) for i in np.roll(order, step)) for step in range(len(order))]
    errors = [disagreement(outlines.select(one), eyes).total for one in rolled]
    good = [one for one, error in zip(rolled, errors, strict=True) if error <= 1.1 * errors[0] + 1e-4]
    return max(good, key=lambda one: sum(i == j for i, j in enumerate(one)))


def tangent_lines(outlines: Outlines, eyes: Eyes, view: int, other: int) -> Floats:
    """The tangents to the outline in picture ``other`` as they run through picture ``view``.

    Returns:
        (2, 3) lines in the camera frame of ``view``: they are where a ray (x, y, -1) times the line is 0; NaN where
        ``other`` says nothing.
    """
    line = eyes.centers[other] - eyes.centers[view]
    axis = line / max(float(np.linalg.norm(line)), 1e-12)
    toward = middle(outlines, eyes) - eyes.centers[view]
    first = toward - (toward @ axis) * axis
    first /= max(float(np.linalg.norm(first)), 1e-12)
    second = np.cross(axis, first)
    ray = eyes.rays(outlines.corners)[other]
    angle = np.arctan2(ray @ second, ray @ first)
    if np.ptp(angle) > _WIDE:
        return np.full((2, 3), np.nan)
    lines = [np.cross(axis, np.cos(t) * first + np.sin(t) * second) for t in (angle.min(), angle.max())]
    return np.stack(lines) @ eyes.rotation[view]


# Carving


@dataclass(frozen=True, eq=False)
class Carved:
    """What all masks leave standing.

    Attributes:
        explained: (V,) share of each mask that the hull's own silhouette covers, 0 to 1.
        covered: (V, h, w) that silhouette, inside the mask.
        low, high: (3,) outer box of the hull, world units: the object reaches no further.
        least_low, least_high: (3,) the object reaches at least to these, since every ray of a mask meets it somewhere
            in the hull.
    """

    explained: Floats
    covered: Mask
    low: Floats
    high: Floats
    least_low: Floats
    least_high: Floats

    @property
    def share(self) -> float:
        """Mean of ``explained``."""
        return float(self.explained.mean())

    @property
    def empty(self) -> bool:
        """Whether nothing is left."""
        return not np.isfinite(self.low).all()

    @property
    def longest_side(self) -> tuple[float, float]:
        """Between which lengths the object's longest side lies, world units; NaN when nothing is left."""
        return float((self.least_high - self.least_low).max()), float((self.high - self.low).max())

    @property
    def center(self) -> tuple[Floats, Floats]:
        """Between which points the middle of the object's box lies."""
        return (self.low + self.least_high) / 2, (self.least_low + self.high) / 2


def carve(masks: Mask, eyes: Eyes, outlines: Outlines, resolution: int = 48) -> Carved:
    """Carve a grid by masks, and look at what is left.

    Args:
        masks: (V, h, w), none empty.
        eyes: V cameras.
        outlines: of these masks.
        resolution: samples per axis within the box of what a first, coarser carving leaves.
    """
    wide = _widened(masks)
    # Beyond the frame nothing is known of an object that is cut off by it.
    open_frame = outlines.framed.sum(1) > 1
    center = middle(outlines, eyes)
    distance = np.linalg.norm(eyes.centers - center, axis=1)
    half = 0.75 * float(np.median(distance * outlines.size / eyes.intrinsics[:, 1, 1]))
    step = 2 * half / _FIRST
    points = _grid(center - half, center + half, _FIRST)
    # A coarse sample stands for its cell, so masks are widened by about half a cell there.
    pixels = 0.6 * step * float(np.median(eyes.intrinsics[:, 1, 1] / distance)) * masks.shape[1]
    coarse = _inside(points, _widened(masks, 1 + int(np.ceil(pixels))), eyes, open_frame)
    if len(coarse) == 0:
        nothing, none = np.zeros(len(masks)), np.full(3, np.nan)
        return Carved(nothing, np.zeros_like(masks), none, none, none, none)
    low, high = coarse.min(0) - step, coarse.max(0) + step
    points = _grid(low, high, resolution)
    kept = _inside(points, wide, eyes, open_frame)
    pixel = [_pixel(kept, eyes, view, mask.shape)[0] for view, mask in enumerate(masks)]
    return _looked_at(kept, pixel, masks, (high - low) / resolution)


def _grid(low: Floats, high: Floats, count: int) -> Floats:
    """Cell centres (count^3, 3) of a box."""
    axes = [a + (np.arange(count) + 0.5) / count * (b - a) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def _inside(points: Floats, masks: Mask, eyes: Eyes, open_frame: Mask) -> Floats:
    """The points (K, 3) of ``points`` (N, 3) that lie in every mask."""
    for view, mask in enumerate(masks):
        flat, ahead = _pixel(points, eyes, view, mask.shape)
        kept = np.where(flat >= 0, mask.reshape(-1)[flat], ahead & bool(open_frame[view]))
        points = points[kept]
    return points


def _pixel(points: Floats, eyes: Eyes, view: int, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], Mask]:
    """In which pixel of a picture each point lies, (N,), -1 beyond the frame; and whether it is before the camera."""
    height, width = shape
    local = (points - eyes.centers[view]) @ eyes.rotation[view]
    ahead = local[:, 2] < 0
    depth = np.where(ahead, -local[:, 2], 1.0)
    k = eyes.intrinsics[view]
    x, y = local[:, 0] / depth, -local[:, 1] / depth
    u, v = k[0, 0] * x + k[0, 1] * y + k[0, 2], k[1, 1] * y + k[1, 2]
    within = ahead & (u >= 0) & (u < 1) & (v >= 0) & (v < 1)
    flat = np.full(len(points), -1)
    flat[within] = (v[within] * height).astype(np.int64) * width + (u[within] * width).astype(np.int64)
    return flat, ahead


def _widened(masks: Mask, pixels: int = _SLACK) -> Mask:
    """Masks grown by some pixels to all eight sides."""
    from scipy.ndimage import binary_dilation

    block = np.ones((1, 2 * pixels + 1, 2 * pixels + 1), bool)
    return binary_dilation(masks, block)


def _looked_at(points: Floats, pixel: Sequence[NDArray[np.int64]], masks: Mask, step: Floats) -> Carved:
    """The hull's silhouettes and boxes from its points (K, 3) and their pixels in each view."""
    covered = np.zeros(masks.shape, bool)
    least_high, least_low = np.full(3, -np.inf), np.full(3, np.inf)
    for view, mask in enumerate(masks):
        hit = pixel[view] >= 0
        seen = np.zeros(mask.size, bool)
        seen[pixel[view][hit]] = True
        # Samples may lie a pixel apart.
        covered[view] = _widened(seen.reshape(1, *mask.shape))[0] & mask
        core = hit & mask.reshape(-1)[pixel[view]]
        for axis in range(3):
            nearest = np.full(mask.size, np.inf)
            np.minimum.at(nearest, pixel[view][core], points[core, axis])
            farthest = np.full(mask.size, -np.inf)
            np.maximum.at(farthest, pixel[view][core], points[core, axis])
            if core.any():
                least_high[axis] = max(least_high[axis], nearest[np.isfinite(nearest)].max())
                least_low[axis] = min(least_low[axis], farthest[np.isfinite(farthest)].min())
    explained = covered.sum((1, 2)) / np.maximum(masks.sum((1, 2)), 1)
    if len(points) == 0 or not np.isfinite(least_high).all():
        none = np.full(3, np.nan)
        return Carved(explained, covered, none, none, none, none)
    return Carved(explained, covered, points.min(0) - step / 2, points.max(0) + step / 2, least_low, least_high)
