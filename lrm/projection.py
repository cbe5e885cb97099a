"""What pictures show of a surface: which points they see, how well, and in which colours.

A point counts for a picture by the angle under which it is seen and by how far inside an edge it lies: the edge of the
matte, and edges where one part of the object stands before another. At both, a surface that is a pixel beside the true
one would get the colour of something else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from multiview.cameras import Cameras, project
from multiview.errors import SettingsError
from multiview.views import Views

from .cells import Cells
from .mesh import Mesh
from .raster import Fragments, rasterize

Floats = NDArray[np.floating[Any]]

_CELL = 1 / 12  # of the reach over which tones fade: cells that are solved for as a whole first
# Of the right side's length: what may be missing of a tone, both in shares of what holds each vertex, else what nothing
# is known of (the back of a plate) would not count. A plate seen from one side is off by 0.011 at most where the tone
# is 0.3, lifts by 0.001; a byte of a picture is 0.004.
_TOLERANCE = 0.03

_SOLID = 0.9  # alpha from which a pixel is the object's alone
_DEPTH_SLACK = 0.015  # of the mesh's longest side: how far behind or before what a picture sees a point may lie
_JUMP = 0.03  # of the longest side: a difference in depth between pixels from which one part is before another
_FACING = (0.1, 0.55)  # cosines between which a picture's say grows from nothing to all
_INSIDE = (0.004, 0.016)  # of the picture's side: distances to an edge, likewise
_SOFT = 0.02  # of the picture's side: how far pictures are blurred before their colours are compared
_SOFT_PIXELS = 4  # of standard deviation that such a blur keeps at least, in a picture made smaller for it
_OUTLINE_SIDE = 160  # pixels of the pictures in which outlines are compared
# Gain in overlap below which a camera is left as it is. A mesh that is a little thin gains some hundredths by a scale
# that moves everything inside it off its place: measured on training objects, smaller gains made colours worse.
_WORTH = 0.02
_FARTHEST = 0.08  # of the picture's side, and of the size: how far an outline is moved


@dataclass(frozen=True, eq=False)
class Sight:
    """What a picture shows of N points.

    Attributes:
        weight: (N,) float32 in [0, 1], how far its colours are to be trusted; 0 for what it does not see.
        color: (N, 3) float32 sRGB in [0, 1]; only where ``weight`` is positive does it mean anything.
        soft: (N, 3) likewise, of the picture without its details.
        seen: (N,) whether the picture shows the point at all, at however bad an angle.
    """

    weight: NDArray[np.float32]
    color: NDArray[np.float32]
    soft: NDArray[np.float32]
    seen: NDArray[np.bool_]


class Projector:
    """One picture of a mesh, ready to be asked about points on it.

    Args:
        mesh: what stands in front of what, in the world of the camera.
        view: one picture with its camera, on the CPU.
        drawn: the mesh as this camera sees it, at the picture's size, where it is at hand.

    Raises:
        SettingsError: not exactly one view.
    """

    def __init__(self, mesh: Mesh, view: Views, drawn: Fragments | None = None) -> None:
        from scipy import ndimage

        if len(view) != 1:
            raise SettingsError(f"a Projector wants one view, found {len(view)}.")
        height, width = view.image_size
        self.camera = view.cameras
        self._pixel = 1 / float((view.cameras.intrinsics[0, 1, 1]) * height)  # at depth 1
        side = float(mesh.extent.max())
        self.slack = _DEPTH_SLACK * side
        drawn = rasterize(mesh, view.cameras, height, width) if drawn is None else drawn
        front = np.where(drawn.face >= 0, drawn.depth, np.inf)
        solid = (view.alpha[0, 0].numpy() > _SOLID) & (drawn.face >= 0)
        free = solid & ~_jumps(front, _JUMP * side)
        # A ring of nothing around, since beyond the picture nothing is seen.
        inside = ndimage.distance_transform_edt(np.pad(free, 1))[1:-1, 1:-1] / max(height, width)
        self._sure = torch.from_numpy(smooth_step(inside, *_INSIDE).astype(np.float32))[None, None]
        self._front = torch.from_numpy(front.astype(np.float32)).clamp(max=1e6)[None, None]
        self._solid = torch.from_numpy(solid.astype(np.float32))[None, None]
        # Where the matte is not solid the colours may be anything: those of the nearest solid pixel are taken.
        image = _bled(view.images[0].float().numpy(), solid)
        self._image = torch.from_numpy(np.concatenate([image, _softened(image, solid)]))[None]

    def __call__(self, points: Floats, normals: Floats) -> Sight:
        """What the picture shows of points (N, 3) with unit normals (N, 3)."""
        where = torch.as_tensor(np.asarray(points), dtype=torch.float32)
        places, depths = (t[0] for t in project(self.camera, where))
        grid = (places * 2 - 1)[None, None]

        def at(picture: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
            return F.grid_sample(picture, grid, mode=mode, padding_mode="zeros", align_corners=False)[0, :, 0]

        toward = F.normalize(self.camera.positions[0] - where, dim=1)
        facing = (torch.as_tensor(np.asarray(normals), dtype=torch.float32) * toward).sum(1).numpy()
        # Within a pixel a slanted surface rises by its width over the cosine.
        rise = depths.numpy() * self._pixel / np.maximum(facing, _FACING[0])
        level = (depths - at(self._front, "nearest")[0]).abs() <= self.slack + torch.from_numpy(rise)
        seen = (level & (at(self._solid, "nearest")[0] > 0.5)).numpy() & (facing > 0)
        weight = smooth_step(facing, *_FACING) * at(self._sure)[0].numpy() * seen
        colors = at(self._image).T.numpy()
        return Sight(weight.astype(np.float32), colors[:, :3], colors[:, 3:], seen)


def joined(sights: Sequence[Sight]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weight (N,), at most 1, and mean colour (N, 3) of what one picture or more show of the same points."""
    total, colors = np.zeros(len(sights[0].weight), np.float32), np.zeros_like(sights[0].color)
    for sight in sights:
        total += sight.weight
        colors += sight.weight[:, None] * sight.color
    mean = colors / np.maximum(total, np.float32(1e-9))[:, None]
    return total.clip(0, 1).astype(np.float32), mean.astype(np.float32)


def smooth_step(value: Floats, low: float, high: float) -> Floats:
    """0 up to ``low``, 1 from ``high`` on, and a smooth rise between."""
    share = ((value - low) / (high - low)).clip(0, 1)
    return share * share * (3 - 2 * share)


def _jumps(depth: Floats, least: float) -> NDArray[np.bool_]:
    """(H, W) pixels beside which something lies nearer or further by more than ``least``, though no slope leads there.

    A slope takes a step from every pixel to the next; a jump is much longer than the steps before and after it.
    """
    found = np.zeros(depth.shape, np.bool_)
    for axis in (0, 1):
        along = np.moveaxis(depth, axis, 0)
        with np.errstate(invalid="ignore"):
            step = np.nan_to_num(np.abs(along[1:] - along[:-1]), nan=0.0, posinf=1e9)  # nothing beside nothing: 0
        around = np.pad(step, ((1, 1), (0, 0)))
        jump = step > least + 2 * np.minimum(around[:-2], around[2:])
        beside = np.moveaxis(found, axis, 0)
        beside[1:] |= jump
        beside[:-1] |= jump
    return found


def _bled(image: Floats, solid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(3, H, W) with the colour of the nearest solid pixel wherever it is not solid."""
    from scipy import ndimage

    if solid.all() or not solid.any():
        return np.ascontiguousarray(image, np.float32)
    rows, columns = ndimage.distance_transform_edt(~solid, return_distances=False, return_indices=True)
    return np.ascontiguousarray(image[:, rows, columns], np.float32)


def _softened(image: Floats, solid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(3, H, W) blurred over `_SOFT` of its side, over solid pixels alone."""
    from scipy import ndimage

    wide = _SOFT * max(image.shape[1:])
    # What is blurred over many pixels can be so in a smaller picture.
    smaller = max(int(wide / _SOFT_PIXELS), 1)
    layers = torch.from_numpy(np.concatenate([image * solid, solid[None]]).astype(np.float32))[None]
    layers = F.avg_pool2d(layers, smaller, ceil_mode=True, count_include_pad=False)
    blurred = np.stack([ndimage.gaussian_filter(each, wide / smaller) for each in layers[0].numpy()])
    soft = torch.from_numpy(blurred)[None]
    summed = F.interpolate(soft, scale_factor=float(smaller), mode="bilinear")[0, :, : image.shape[1], : image.shape[2]]
    share = summed[3].numpy()
    return np.where(share > 1e-3, summed[:3].numpy() / np.maximum(share, 1e-3), image).astype(np.float32)


# The camera, by the outline.


@dataclass(frozen=True)
class Refined:
    """A camera moved so that a mesh's outline lies as a picture's matte does.

    Attributes:
        camera: one camera.
        overlap_before, overlap: of the outlines, overlap over union, before and after.
        shift: right and down, in picture sides; ``scale`` and ``roll_deg`` (clockwise) of the mesh's picture.
    """

    camera: Cameras
    overlap_before: float
    overlap: float
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    roll_deg: float = 0.0


def refine_camera(mesh: Mesh, view: Views, drawn: Fragments | None = None) -> Refined:
    """Shift, scale and roll a camera's picture so that the mesh's outline covers the matte best.

    All three move the picture as a whole (the camera turns about its axis, and its intrinsics change), so that the mesh
    is drawn once and its outline moved. A gain too small to be more than noise leaves the camera as it is.

    Args:
        mesh: in the camera's world.
        view: one picture with its matte and camera, square, on the CPU.
        drawn: the mesh as that camera sees it, in whatever size, where it is at hand; used if it is fine enough.
    """
    side = _OUTLINE_SIDE
    if drawn is None or len(drawn.face) < 2 * side:
        drawn = rasterize(mesh, view.cameras, 2 * side, 2 * side)
    covered = torch.from_numpy((drawn.face >= 0).astype(np.float32))[None, None]
    outline = F.interpolate(covered, (side, side), mode="area")
    matte = F.interpolate(view.alpha.float(), (side, side), mode="area")
    move = np.array([0.0, 0.0, 0.0, 0.0])  # shift right, shift down, log scale, roll in radians
    best = before = _overlap(outline, matte, move)
    step = 0.04
    while step > 0.4 / side:
        tried = [(move + sign * step * np.eye(4)[k]) for k in range(4) for sign in (1, -1)]
        tried = [each for each in tried if np.abs(each).max() <= _FARTHEST]
        found = [_overlap(outline, matte, each) for each in tried]
        index = int(np.argmax(found)) if found else -1
        if index >= 0 and found[index] > best:
            best, move = found[index], tried[index]
        else:
            step /= 2
    if best < before + _WORTH:
        return Refined(view.cameras, before, before)
    return Refined(
        _moved(view.cameras, move), before, best, (float(move[0]), float(move[1])), float(np.exp(move[2])),
        float(np.rad2deg(move[3])),
    )  # fmt: skip


def _similarity(move: Floats) -> NDArray[np.float64]:
    """(3, 3) where points of the mesh's picture go, in picture sides from its middle, y down."""
    c, s = np.exp(move[2]) * np.array([np.cos(move[3]), np.sin(move[3])])
    return np.array([[c, -s, move[0]], [s, c, move[1]], [0, 0, 1]])


def _overlap(outline: torch.Tensor, matte: torch.Tensor, move: Floats) -> float:
    """Overlap over union of soft outlines (1, 1, S, S), the first one moved."""
    back = np.linalg.inv(_similarity(move))
    theta = torch.tensor(back[:2] * (1, 1, 2), dtype=torch.float32)[None]  # grid units are half sides
    moved = F.grid_sample(outline, F.affine_grid(theta, list(outline.shape), align_corners=False), align_corners=False)
    both, either = torch.minimum(moved, matte).sum(), torch.maximum(moved, matte).sum()
    return float(both / either) if float(either) > 0 else 0.0


def _moved(camera: Cameras, move: Floats) -> Cameras:
    """The camera whose square picture is moved by a similarity about its middle."""
    middle = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    similarity = middle @ _similarity(move) @ np.linalg.inv(middle)
    whole = similarity @ camera.intrinsics[0].double().numpy()
    # whole = intrinsics x roll about the camera's axis; the roll is moved into the pose.
    roll = np.arctan2(whole[1, 0], whole[1, 1])
    turn = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1.0]])
    intrinsics = whole @ turn.T
    pose = np.eye(4)
    pose[:3, :3] = turn * np.outer([1, -1, -1], [1, -1, -1])  # from y down, looking along +z, to OpenGL's axes
    c2w = camera.c2w[0].double().numpy() @ pose.T
    return Cameras(torch.tensor(c2w, dtype=torch.float32)[None], torch.tensor(intrinsics, dtype=torch.float32)[None])


# Carrying what is seen over to what is not.


def carried(
    mesh: Mesh, values: Floats, weight: Floats, *, reach: float, rest: Floats, areas: Floats | None = None
) -> NDArray[np.float32]:
    """Spread values known at some vertices smoothly over a mesh, fading toward ``rest`` over a distance.

    The smoothest function that stays near the values where they are known and near ``rest`` where nothing is: the
    minimum of the sum over the surface of its slope squared, of ``weight`` times its squared distance to ``values``
    over ``reach`` / 8 squared, and of its squared distance to ``rest`` over ``reach`` squared.

    Args:
        mesh: N vertices.
        values: (N, C) known where ``weight`` is positive.
        weight: (N,) in [0, 1].
        reach: world units, > 0.
        rest: (C,).
        areas: (N,) `vertex_areas`, where they are at hand.

    Returns:
        (N, C), off the minimum by some hundredths of the values at most (`_TOLERANCE`).
    """
    mass = vertex_areas(mesh) if areas is None else areas
    known, loose, unit = 64 * mass * weight / reach**2, mass / reach**2, float(mass.mean())
    # In units of a usual vertex, so that numbers of half the size, which are read in half the time, do for the rounds.
    system = _system(mesh.faces, known, loose) / unit
    wanted = ((known[:, None] * values + loose[:, None] * np.asarray(rest)) / unit).T.astype(np.float32)
    by_cells, each = _by_cells(system, mesh.vertices, reach * _CELL), (1 / system.diagonal()).astype(np.float32)
    return _conjugate_gradients(
        system.astype(np.float32), wanted, lambda sides: each * sides + by_cells(sides), tolerance=_TOLERANCE, most=400,
        start=by_cells(wanted), scale=np.sqrt(unit / (known + loose)).astype(np.float32),
    ).T  # fmt: skip


def carried_roughly(
    mesh: Mesh,
    cells: Cells,
    values: Floats,
    weight: Floats,
    *,
    reach: float,
    rest: Floats,
    areas: Floats | None = None,
) -> NDArray[np.float32]:
    """`carried` for the means of cells: the vertices of each are joined to one, and all of them get its value.

    Args:
        cells: of the mesh's vertices, smaller than ``reach`` / 8.
        mesh, values, weight, reach, rest, areas: see `carried`.

    Returns:
        (N, C).
    """
    from scipy.sparse.linalg import splu

    mass = vertex_areas(mesh) if areas is None else areas
    known, loose = 64 * mass * weight / reach**2, mass / reach**2
    given = cells.sums(known[:, None] * values + loose[:, None] * np.asarray(rest))
    faces = cells.group[mesh.faces]
    a, b, c = faces.T
    system = _system(faces[(a != b) & (b != c) & (c != a)], cells.sums(known), cells.sums(loose))
    solved = splu(system.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
    found: NDArray[np.float32] = solved.solve(given).astype(np.float32)
    return found[cells.group]


def vertex_areas(mesh: Mesh) -> NDArray[np.float64]:
    """(N,) a third of the area of all faces at each vertex, and never quite nothing."""
    x, y, z = (np.ascontiguousarray(axis, np.float64)[mesh.faces.T] for axis in mesh.vertices.T)
    u, v = ([axis[corner] - axis[0] for axis in (x, y, z)] for corner in (1, 2))
    crossed = u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]
    third = np.sqrt(crossed[0] ** 2 + crossed[1] ** 2 + crossed[2] ** 2) / 6
    area = sum(np.bincount(corner, third, len(mesh.vertices)) for corner in mesh.faces.T)
    return np.maximum(area, 1e-6 * max(float(np.mean(area)), 1e-30))


def _system(faces: NDArray[np.integer[Any]], known: Floats, loose: Floats) -> Any:
    """Sparse (N, N): vertices pull at those they share an edge with, and are held by ``known`` and ``loose`` (N,)."""
    from scipy.sparse import coo_matrix, diags

    tail, head = faces.reshape(-1), faces[:, [1, 2, 0]].reshape(-1)
    # Every edge stands in two faces; 0.5 / tan 60 degrees of each is the cotangent weight of even triangles.
    edges = coo_matrix((np.full(len(tail), 0.2887), (tail, head)), shape=(len(known), len(known)))
    joined = (edges + edges.T).tocsr()
    return (diags(np.asarray(joined.sum(1)).reshape(-1) + known + loose) - joined).tocsr()


def _conjugate_gradients(
    system: Any, wanted: NDArray[np.float32], helper: Callable[[Floats], Floats], *, tolerance: float, most: int,
    start: NDArray[np.float32], scale: NDArray[np.float32],
) -> NDArray[np.float32]:  # fmt: skip
    """Solve a symmetric positive system for several right sides, each as if it were alone.

    Args:
        system: sparse (N, N) float32.
        wanted: (C, N) right sides; rows, since numpy is slow where the last axis is short.
        helper: preconditioner, (C, N) → (C, N), whose scale does not matter.
        tolerance: of the residual's length, as a share of the right side's, both times ``scale``; a side
            that is there is left alone.
        most: rounds.
        start: (C, N) where to begin; kept as it is.
        scale: (N,).

    Returns:
        (C, N).
    """
    found = start.copy()
    residual = wanted - np.stack([system @ row for row in start])
    goal = tolerance**2 * _dots(wanted * scale, wanted * scale)
    direction, before = np.zeros_like(wanted), np.ones((len(wanted), 1), np.float32)
    for _ in range(most):
        scaled = residual * scale
        active = _dots(scaled, scaled) > goal
        if not active.any():
            break
        eased = helper(residual)
        slope = _dots(residual, eased)
        direction *= np.where(active, slope / before, 0)
        direction += eased
        pushed = np.stack([system @ row for row in direction])
        bend = _dots(direction, pushed)
        step = np.where(active, slope / np.where(active, bend, 1), 0).astype(np.float32)
        found += step * direction
        residual -= step * pushed
        before = np.where(active, slope, 1).astype(np.float32)
    return found


def _dots(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, 1) products of the rows of a and b (C, N)."""
    return np.stack([x @ y for x, y in zip(a, b, strict=True)])[:, None]


def _by_cells(system: Any, vertices: Floats, cell: float) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """What solves a smooth system over a mesh roughly: cells of space, each taken as a whole; (C, N) → (C, N).

    Beside each vertex by itself it makes a good helper for `_conjugate_gradients`: without it, a number has to travel
    from vertex to vertex, which takes hundreds of rounds.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.linalg import splu

    side = max(float(np.ptp(axis)) for axis in vertices.T)
    group = Cells(vertices, min(max(math.ceil(side / cell), 1), 256)).group
    gather = coo_matrix((np.ones(len(group)), (np.arange(len(group)), group))).tocsr()
    coarse, spread = splu((gather.T @ system @ gather).tocsc()), gather.T.tocsr().astype(np.float32)

    def solve(sides: NDArray[np.float32]) -> NDArray[np.float32]:
        cells = np.stack([spread @ row for row in sides], 1).astype(np.float64)
        found: NDArray[np.float32] = coarse.solve(cells).T.astype(np.float32)[:, group]
        return found

    return solve
