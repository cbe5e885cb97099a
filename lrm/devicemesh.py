"""The surface of a field as tensors on the field's own device: coarse scan, cells, triangles, pieces, vertices.

What `lrm.lattice`, `lrm.marching` and `lrm.pieces` do on the CPU in many small steps is done here in few large ones, as
accelerators want it: in place of cells that are followed one layer after the other, whole *bricks* of 4 x 4 x 4 cells
are evaluated, first all those in which the coarse scan changes side, then their neighbours across faces that the
surface crosses. The triangles and their order are those of the CPU; pieces that the coarse scan misses and that lie
in the bricks of others are found besides.

Only sizes (how many cells, how many points are left) and the finished mesh are copied from the device. Nothing depends
on the order in which threads run: sums are of whole numbers, scattered values are equal or unique, the rest is sorted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multiview.devices import on_accelerator

from .lattice import OUTSIDE, Floats, Ints, Lattice, coarse_axes, not_finite
from .marching import NEAR_ENOUGH, SAME_PLACE, case_tables
from .pieces import outer_pieces

_BRICK = 4  # cells along a brick's side at least: as many whole coarse steps as it takes
_SAMPLES_PER_PASS = 1 << 23  # of bricks, before samples that they share are told; changes memory only
_FACES_PER_PASS = 1 << 22  # changes memory only
_OWN = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))  # a cell's lowest corner and the other ends of its own edges
_UNIT = 1 << 20  # surfaces and volumes of pieces are summed in such parts of a cell's


def works_here(device: torch.device) -> bool:
    """Whether surfaces are taken on ``device`` itself: on accelerators that have float64 (Apple's have not)."""
    try:
        return on_accelerator(device) and torch.empty(0, dtype=torch.float64, device=device).numel() == 0
    except (TypeError, RuntimeError):
        return False


class DeviceEvaluator:
    """A field's raw density at positions that are on its device: chunked, checked and counted.

    Args:
        raw: world points (N, 3) → (N,); or more numbers of each point, (N, K), the density first.
        device: where they are.
        chunk_size: points per pass; changes memory, never results beyond rounding.
    """

    def __init__(self, raw: Callable[[Tensor], Tensor], device: torch.device, chunk_size: int) -> None:
        self.raw, self.device, self.chunk_size, self.count = raw, device, chunk_size, 0

    def from_cpu(self) -> Callable[[Floats], Floats]:
        """The same for positions on the CPU, whose densities come back there."""
        return lambda places: np.asarray(self(torch.from_numpy(places).to(self.device)).cpu().numpy())

    @torch.no_grad()
    def __call__(self, positions: Tensor) -> Tensor:
        """Raw density (N,) float32 at world positions (N, 3), or (N, K) with what else ``raw`` gives; N >= 1.

        Raises:
            FieldError: a density is not finite; says how many and where the first one is.
        """
        self.count += len(positions)
        values = torch.cat([self.raw(chunk).float() for chunk in positions.split(self.chunk_size)])
        bad = ~torch.isfinite(values if values.ndim == 1 else values[:, 0])
        if bad.any():
            raise not_finite(int(bad.sum()), len(values), positions[torch.nonzero(bad)[0, 0]].tolist())
        return values


def positions(lattice: Lattice, index: Tensor) -> Tensor:
    """World positions (N, 3) float32 of padded indices (N, 3), the same bits as `Lattice.positions`."""
    along = [(index[:, k].double() - 1.0) * lattice.spacing + lattice.origin[k] for k in range(3)]
    return torch.stack(along, 1).float()


@dataclass(frozen=True, eq=False)
class DeviceScan:
    """`lrm.lattice.Scan` as tensors.

    Attributes:
        coordinates: padded indices of the coarse samples along x, y and z, int64.
        values: (X, Y, Z) float32 raw density; `OUTSIDE` in the padding, NaN where the pattern has no sample.
        asked: (N,) raw density of all evaluated samples.
        step: from one of them to the next along an axis, in samples.
    """

    coordinates: tuple[Tensor, Tensor, Tensor]
    values: Tensor
    asked: Tensor
    step: int

    @property
    def inner(self) -> Floats:
        """(N,) raw density of all evaluated samples, on the CPU."""
        return np.asarray(self.asked.cpu().numpy())

    def crossed(self, level: float) -> Tensor:
        """(X - 1, Y - 1, Z - 1) whether the two evaluated corners of each coarse cell are on different sides."""
        known, inside = ~torch.isnan(self.values), self.values > _fp32(level)
        found = torch.zeros([n - 1 for n in self.values.shape], dtype=torch.bool, device=self.values.device)
        near, far = slice(None, -1), slice(1, None)
        for y in ((near, far), (far, near)):
            for z in ((near, far), (far, near)):
                here, there = (near, y[0], z[0]), (far, y[1], z[1])
                found |= known[here] & known[there] & (inside[here] != inside[there])
        return found

    def share_crossed(self, level: float) -> float:
        """See `lrm.lattice.Scan`."""
        crossed = self.crossed(level)
        return int(crossed.sum()) / max(crossed.numel(), 1)


def device_scan(lattice: Lattice, step: int, evaluate: DeviceEvaluator) -> DeviceScan:
    """`lrm.lattice.scan` in one call of ``evaluate``."""
    x, y, z = (torch.from_numpy(axis).to(evaluate.device) for axis in coarse_axes(lattice, step))
    values = torch.full([len(x), len(y), len(z)], math.nan, device=evaluate.device)
    parts, places = [], []
    for parity in (0, 1):
        values[parity::2, parity::2, parity::2] = OUTSIDE
        place = tuple(slice(2 - parity, len(axis) - 1, 2) for axis in (x, y, z))  # all but the padding
        grid = torch.meshgrid(x[place[0]], y[place[1]], z[place[2]], indexing="ij")
        places.append((place, grid[0].shape))
        parts.append(torch.stack([axis.reshape(-1) for axis in grid], 1))
    asked = evaluate(positions(lattice, torch.cat(parts)))
    for (place, shape), found in zip(places, asked.split([len(part) for part in parts]), strict=True):
        values[place] = found.view(shape)
    return DeviceScan((x, y, z), values, asked, step)


def _fp32(level: float) -> float:
    """A level as the float32 number that densities are held against."""
    return float(np.float32(level))


class _Keys:
    """Numbers of places (x, y, z), each in 0 to its side's length, in the order of x, then y, then z."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        _, self.y, self.z = shape

    def of(self, places: Tensor) -> Tensor:
        """Places (..., 3) int64 → (...,) int64."""
        return (places[..., 0] * self.y + places[..., 1]) * self.z + places[..., 2]

    def places(self, keys: Tensor) -> Tensor:
        """(N,) → (N, 3)."""
        rest = torch.div(keys, self.z, rounding_mode="floor")
        return torch.stack([torch.div(rest, self.y, rounding_mode="floor"), rest % self.y, keys % self.z], 1)


class _Samples:
    """Values of a field at places of a lattice, each evaluated once, whichever bricks of ``side`` cells ask for it."""

    def __init__(self, lattice: Lattice, evaluate: DeviceEvaluator, level: float, side: int) -> None:
        self.lattice, self.evaluate, self.level, self.side = lattice, evaluate, _fp32(level), side
        self.last = [n + 1 for n in lattice.shape]  # the padding's index
        self.keys = _Keys(tuple(n + 2 for n in lattice.shape))
        self._known = torch.empty(0, dtype=torch.int64, device=evaluate.device)  # sorted
        self._values = torch.empty(0, device=evaluate.device)

    def at(self, keys: Tensor) -> Tensor:
        """Values (...,) minus the level at samples (...,), `OUTSIDE` in the padding; all those of some bricks."""
        keys, back = torch.unique(keys, return_inverse=True)
        found = torch.full(keys.shape, math.nan, device=keys.device)
        if len(self._known):
            at = torch.searchsorted(self._known, keys).clamp_(max=len(self._known) - 1)
            found = torch.where(self._known[at] == keys, self._values[at], found)
        new = torch.isnan(found)
        index = self.keys.places(keys)
        real = (index > 0).all(1)
        for k in range(3):
            real &= index[:, k] < self.last[k]
        found = torch.where(new & ~real, OUTSIDE, found)
        ask = torch.nonzero(new & real)[:, 0]
        if len(ask):
            found[ask] = self.evaluate(positions(self.lattice, index[ask])) - self.level
        # Only samples on the faces of bricks are asked for again.
        add = torch.nonzero(new & real & ((index - 1) % self.side == 0).any(1))[:, 0]
        self._known, order = torch.cat([self._known, keys[add]]).sort()
        self._values = torch.cat([self._values, found[add]])[order]
        return found[back]


@dataclass(frozen=True, eq=False)
class _Cells:
    """Cells that the level set crosses: their keys (A,), cases (A,) and values (A, 4) at `_OWN` corners."""

    keys: Tensor
    cases: Tensor
    values: Tensor

    def where(self, chosen: Tensor) -> _Cells:
        """Those with the given numbers, in their order."""
        return _Cells(self.keys[chosen], self.cases[chosen], self.values[chosen])


def find_cells(
    samples: _Samples, coarse: DeviceScan, *, small_pieces: bool = False, most_cells: int | None = None
) -> _Cells | None:
    """Every cell that the level set crosses and that hangs together with where a coarse scan changes side.

    A coarse cell lies in one brick, and so does its crossed part of the surface: the bricks of all coarse cells that
    change side are the start, and those beyond the brick faces that are crossed are asked next.

    Args:
        samples: of the fine lattice.
        coarse: a `device_scan` of it.
        small_pieces: look for pieces that peak between coarse samples, too.
        most_cells: give up when more cells than that are found, and return None.
    """
    side = samples.side
    keys = _Keys(tuple((n - 1) // side + 2 for n in samples.lattice.shape))
    cells = torch.nonzero(coarse.crossed(samples.level))
    lowest = torch.stack([axis[cells[:, k]] for k, axis in enumerate(coarse.coordinates)], 1)
    waiting = keys.of(_brick_of(lowest, side))
    if small_pieces:
        waiting = torch.cat([waiting, keys.of(_risen(samples, coarse))])
    waiting, visited = torch.unique(waiting), waiting[:0]
    per_pass, count = max(_SAMPLES_PER_PASS // (side + 1) ** 3, 1), 0
    found: list[_Cells] = []
    while len(waiting):
        now, waiting = waiting[:per_pass], waiting[per_pass:]
        made, beyond = _look_into(samples, keys.places(now))
        visited = torch.cat([visited, now]).sort().values
        found.append(made)
        count += len(made.keys)
        if most_cells is not None and count > most_cells:
            return None
        waiting = torch.unique(torch.cat([waiting, keys.of(beyond)]))
        at = torch.searchsorted(visited, waiting).clamp_(max=len(visited) - 1)
        waiting = waiting[visited[at] != waiting]
    if not found:
        none = torch.empty(0, dtype=torch.int64, device=coarse.values.device)
        return _Cells(none, none, torch.empty(0, 4, device=coarse.values.device))
    parts = [torch.cat([getattr(one, name) for one in found]) for name in ("keys", "cases", "values")]
    return _Cells(*parts).where(parts[0].argsort())


def _brick_of(cells: Tensor, side: int) -> Tensor:
    """The bricks (N, 3) of cells (N, 3); brick b along an axis holds cells 1 + (b - 1) * side and the next ones."""
    return torch.div(cells - 1, side, rounding_mode="floor") + 1


def _grid(count: int, device: torch.device) -> Tensor:
    """Offsets (count, count, count, 3) int64, z running fastest."""
    along = torch.arange(count, device=device)
    return torch.stack(torch.meshgrid(along, along, along, indexing="ij"), -1)


def _look_into(samples: _Samples, bricks: Tensor) -> tuple[_Cells, Tensor]:
    """The crossed cells of bricks (B, 3), and the bricks (N, 3) beyond the brick faces that are crossed."""
    side = samples.side
    lowest = 1 + (bricks - 1) * side
    steps = torch.arange(side + 1, device=bricks.device)  # beyond the padding all is outside, as in it
    x, y, z = ((lowest[:, k, None] + steps).clamp_(0, last) for k, last in enumerate(samples.last))
    rows = (x * samples.keys.y)[:, :, None] + y[:, None]
    values = samples.at((rows * samples.keys.z)[..., None] + z[:, None, None])
    inside, cell = values > 0, [slice(0, side), slice(1, side + 1)]
    cases = torch.zeros([len(bricks), side, side, side], dtype=torch.int64, device=bricks.device)
    for bit in range(8):
        corner = inside[:, cell[bit >> 2], cell[bit >> 1 & 1], cell[bit & 1]]
        cases |= corner.long() << bit
    b, *at = torch.nonzero((cases > 0) & (cases < 255), as_tuple=True)
    keys = samples.keys.of(lowest[b] + torch.stack(at, 1))
    own = torch.stack([values[(b, *(a + offset for a, offset in zip(at, corner, strict=True)))] for corner in _OWN], 1)
    planes = torch.stack([inside.select(1 + axis, end).flatten(1) for axis in range(3) for end in (0, side)], 1)
    from_, face = torch.nonzero(planes.any(2) & ~planes.all(2), as_tuple=True)
    way = (torch.arange(3, device=face.device) == face[:, None] // 2) * (face[:, None] % 2 * 2 - 1)
    return _Cells(keys, cases[(b, *at)], own), bricks[from_] + way


def _risen(samples: _Samples, coarse: DeviceScan) -> Tensor:
    """Bricks (N, 3) about walks uphill that end inside; see `lrm.marching._climb`, whose walks these are."""
    tops = _tops(coarse, samples.level)
    at, height, stride = tops, torch.full([len(tops)], OUTSIDE, device=tops.device), coarse.step // 2
    moves = _grid(3, tops.device).reshape(-1, 3)
    moves = moves - 3 * (moves == 2)  # 0, 1, -1: staying comes first
    while stride and len(at):
        around = at[:, None] + moves * stride
        for k, n in enumerate(samples.lattice.shape):
            around[..., k].clamp_(1, n)
        found = samples.evaluate(positions(samples.lattice, around.view(-1, 3))).view(len(at), -1)
        best = found.argmax(1, keepdim=True)
        height = found.gather(1, best)[:, 0]
        at, stride = around.gather(1, best[..., None].expand(-1, -1, 3))[:, 0], stride // 2
    up = height > samples.level
    ends = torch.stack([_brick_of(place[up], samples.side) for place in (tops, at)])
    low, high = ends.amin(0), ends.amax(0)  # no more than a brick apart, as a walk is shorter than a coarse step
    return torch.minimum(low[:, None] + _grid(2, tops.device).reshape(-1, 3), high[:, None]).flatten(0, 1)


def _tops(coarse: DeviceScan, level: float) -> Tensor:
    """Padded fine indices (T, 3) of coarse samples that may lie beside a small piece; as `lrm.marching._tops`."""
    values = torch.where(torch.isinf(coarse.values), math.nan, coarse.values)
    inner = values[1:-1, 1:-1, 1:-1]
    x, y, z = values.shape
    around = [values[i : x - 2 + i, j : y - 2 + j, k : z - 2 + k] for i in (0, 2) for j in (0, 2) for k in (0, 2)]
    highest, lowest = around[0], around[0]
    for neighbour in around[1:]:
        highest, lowest = torch.fmax(highest, neighbour), torch.fmin(lowest, neighbour)
    index = torch.nonzero((inner <= level) & (inner >= highest) & (level - inner <= inner - lowest)) + 1
    return torch.stack([axis[index[:, k]] for k, axis in enumerate(coarse.coordinates)], 1)


@dataclass(frozen=True, eq=False)
class DeviceCrossings:
    """`lrm.marching.Crossings` as tensors on one device.

    Attributes:
        lattice: where the edges lie.
        level: raw density of the surface.
        start: (N, 3) int64 padded index of each edge's lower end.
        axis: (N,) int64 direction of each edge.
        values: (N, 2) float32 at the lower and the upper end, minus the level.
        faces: (F, 3) int64, counter-clockwise seen from outside.
        cells: how many cells of the lattice the level set crosses.
    """

    lattice: Lattice
    level: float
    start: Tensor
    axis: Tensor
    values: Tensor
    faces: Tensor
    cells: int

    @property
    def sides_cut(self) -> NDArray[np.bool_]:
        """See `lrm.marching.Crossings`."""
        open_ends = torch.isinf(self.values)
        cut = [(open_ends[:, side] & (self.axis == k)).any() for side in range(2) for k in range(3)]
        return np.array(torch.stack(cut).view(2, 3).tolist(), np.bool_)

    def bounds(self) -> Floats:
        """(2, 3) float64 lowest and highest corner of the vertices, before they are refined."""
        vertices = self._unrefined()
        return np.array(torch.stack([vertices.amin(0), vertices.amax(0)]).tolist(), np.float64)

    def outer(self, keep_pieces: float) -> tuple[DeviceCrossings, int]:
        """See `lrm.marching.Crossings`."""
        count, piece = label_pieces(self.faces, len(self.start))
        if count == 1:
            return self, 0
        area, volume = self._measures(piece, count)
        stays = outer_pieces(area, volume, keep_pieces, lambda: self._on_cpu(piece))
        if stays.all():
            return self, 0
        return self._select(torch.from_numpy(stays).to(piece.device)[piece]), int(count - stays.sum())

    def place(self, evaluate: DeviceEvaluator | None, steps: int) -> tuple[Tensor, Tensor]:
        """`lrm.marching.place_with_colors`: (N, 3) float32 positions, (N, K) float32 colours or NaN."""
        t, colors = _parameters(self, evaluate, steps)
        return positions(self.lattice, self.along(t, torch.arange(len(t), device=t.device))), colors

    def along(self, t: Tensor, which: Tensor) -> Tensor:
        """Padded positions (M, 3) float64 at parameter t (N,) of the edges ``which`` (M,)."""
        on_axis = torch.arange(3, device=t.device) == self.axis[which, None]
        return self.start[which].double() + on_axis * t[which, None]

    def _on_cpu(self, piece: Tensor) -> tuple[Floats, Ints, Ints]:
        """Vertices (N, 3), faces (F, 3) and their pieces (F,); cavities are rare, and emptied on the CPU."""
        return self._unrefined().cpu().numpy(), self.faces.cpu().numpy(), piece.cpu().numpy()

    def _unrefined(self) -> Tensor:
        return self.place(None, 0)[0]

    def _measures(self, piece: Tensor, count: int) -> tuple[Floats, Floats]:
        """Surface and signed volume of each piece in cells (count,), summed in whole numbers: any order is exact."""
        ends = self.along(self._linear(), torch.arange(len(self.start), device=piece.device))
        a, b, c = (ends[self.faces[:, k]] for k in range(3))
        surface = torch.linalg.cross(b - a, c - a).norm(dim=1) / 2
        solid = (a * torch.linalg.cross(b, c)).sum(1) / 6
        sums = torch.zeros(2, count, dtype=torch.int64, device=piece.device)
        for row, numbers in zip(sums, (surface, solid), strict=True):
            row.index_add_(0, piece, (numbers * _UNIT).round().long())
        area, volume = sums.cpu().numpy() / _UNIT
        return area, volume

    def _linear(self) -> Tensor:
        zero = torch.zeros(len(self.values), dtype=torch.float64, device=self.values.device)
        return _zero(zero, zero + 1, *self.values.double().unbind(1))

    def _select(self, stays: Tensor) -> DeviceCrossings:
        """Only the faces that stay (F,), and only the vertices that they use, in their order."""
        faces = self.faces[stays]
        marks = torch.zeros(len(self.start), dtype=torch.int64, device=stays.device)
        marks[faces.reshape(-1)] = 1
        used, faces = torch.nonzero(marks)[:, 0], (marks.cumsum(0) - 1)[faces]
        return replace(self, start=self.start[used], axis=self.axis[used], values=self.values[used], faces=faces)


def crossings(
    lattice: Lattice,
    coarse: DeviceScan,
    evaluate: DeviceEvaluator,
    level: float,
    *,
    small_pieces: bool = False,
    most_cells: int | None = None,
) -> DeviceCrossings | None:
    """Where the level set crosses a lattice, as far as it hangs together with what a scan met; see `find_cells`."""
    samples = _Samples(lattice, evaluate, level, coarse.step * -(-_BRICK // coarse.step))
    cells = find_cells(samples, coarse, small_pieces=small_pieces, most_cells=most_cells)
    return None if cells is None else triangulate(samples, cells)


def triangulate(samples: _Samples, cells: _Cells) -> DeviceCrossings:
    """`lrm.marching.triangulate` of cells in lattice order."""
    crossed = torch.stack([(cells.cases ^ cells.cases >> bit) & 1 for bit in (4, 2, 1)], 1) > 0  # along x, y, z
    numbers = crossed.view(-1).cumsum(0).view(-1, 3) - 1
    owner, axis = torch.nonzero(crossed, as_tuple=True)
    values = torch.stack([cells.values[owner, 0], cells.values[owner, 1 + axis]], 1)
    count = max(len(cells.keys), 1)
    per_pass = _FACES_PER_PASS // 5
    faces = [
        _faces(cells, numbers, slice(first, first + per_pass), samples.keys) for first in range(0, count, per_pass)
    ]
    start = samples.keys.places(cells.keys[owner])
    return DeviceCrossings(samples.lattice, samples.level, start, axis, values, torch.cat(faces), len(cells.keys))


def _faces(cells: _Cells, numbers: Tensor, part: slice, keys: _Keys) -> Tensor:
    """Triangles (F, 3) of some cells as numbers of vertices, which ``numbers`` (A, 3) has for each cell's own edges."""
    device, tables = cells.keys.device, case_tables()
    owners, axes, counts = (torch.from_numpy(t).to(device).long() for t in (tables.owners, tables.axes, tables.counts))
    cases, many = cells.cases[part], counts[cells.cases[part]]
    cell = torch.repeat_interleave(torch.arange(len(cases), device=device), many)
    which = torch.arange(len(cell), device=device) - (many.cumsum(0) - many)[cell]
    owner = cells.keys[part][cell, None] + keys.of(owners)[cases[cell], which]
    return numbers[torch.searchsorted(cells.keys, owner), axes[cases[cell], which]]


def label_pieces(faces: Tensor, vertex_count: int) -> tuple[int, Tensor]:
    """How many pieces hang together by shared vertices, and the piece (F,) of each face, numbered from 0.

    Every piece ends up with the number of its lowest vertex: of two neighbouring trees the higher root is hung under
    the lower one, and all trees are made flat again, until no edge joins two trees.
    """
    parent = torch.arange(vertex_count, device=faces.device)
    tail, head = torch.cat([faces[:, 0], faces[:, 1]]), torch.cat([faces[:, 1], faces[:, 2]])
    jumps = max(vertex_count, 2).bit_length()
    while True:
        a, b = parent[tail], parent[head]
        if not (a != b).any():
            break
        parent = parent.scatter_reduce(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        for _ in range(jumps):
            parent = parent[parent]
    roots, piece = torch.unique(parent[faces[:, 0]], return_inverse=True)
    return len(roots), piece


def _parameters(crossings: DeviceCrossings, evaluate: DeviceEvaluator | None, steps: int) -> tuple[Tensor, Tensor]:
    """Where each edge (N,) meets the level, and the colours seen there; see `lrm.marching.place_with_colors`."""
    fa, fb = (f.clone() for f in crossings.values.double().unbind(1))
    a, b = torch.zeros_like(fa), torch.ones_like(fa)
    t, at = _zero(a, b, fa, fb), torch.full_like(fa, math.nan)
    colors = torch.empty(len(t), 0, device=t.device)
    scale = (fa - fb).abs()
    todo = torch.nonzero(torch.isfinite(scale))[:, 0]
    for _ in range(steps if evaluate is not None else 0):
        if not len(todo):
            break
        assert evaluate is not None
        found = evaluate(positions(crossings.lattice, crossings.along(t, todo)).contiguous()).view(len(todo), -1)
        f, now = found[:, 0].double() - _fp32(crossings.level), t[todo]
        if not colors.numel():
            colors = torch.full([len(t), found.shape[1] - 1], math.nan, device=t.device)
        at[todo], colors[todo] = now, found[:, 1:]
        low, high, below, above = (values[todo] for values in (a, b, fa, fb))
        left = (f > 0) == (below > 0)
        # The Illinois rule: an end that stays where it was for a second time counts half.
        a[todo], b[todo] = torch.where(left, now, low), torch.where(left, high, now)
        fa[todo] = torch.where(left, f, torch.where(high == 1.0, below, below / 2))
        fb[todo] = torch.where(left, torch.where(low == 0.0, above, above / 2), f)
        t[todo] = _zero(a[todo], b[todo], fa[todo], fb[todo])
        todo = todo[f.abs() > NEAR_ENOUGH * scale[todo]]
    near = (t - at).abs() <= SAME_PLACE  # False where nothing was seen
    return t, torch.where(near[:, None], colors, math.nan)


def _zero(a: Tensor, b: Tensor, fa: Tensor, fb: Tensor) -> Tensor:
    """Where the line through (a, fa) and (b, fb) is zero; see `lrm.marching._zero`."""
    low, high = torch.isfinite(fa), torch.isfinite(fb)
    part = torch.where(low & high, (fa / (fa - fb)).clamp(1e-4, 1 - 1e-4), torch.where(high, 1.0, 0.0))
    return a + (b - a) * part
