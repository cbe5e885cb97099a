"""Samples of a field on a regular lattice: what is asked for, a coarse pattern of them, or all, a layer at a time.

Lattice indices are *padded*: samples 1 .. n of an axis lie in space, and 0 and n + 1 are one layer of samples outside,
which count as empty whatever the field says there. That layer is what closes a mesh at the lattice's border.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multiview.errors import FieldError

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]

BRICK_BITS = 3  # bricks of 8 x 8 x 8 samples
_SIDE = 1 << BRICK_BITS
_LAST = _SIDE - 1
_TOGETHER = 1 << 16  # samples of layers that are evaluated in one call; changes memory only
_SAFETY = 4  # margins are so many times the largest error seen
_CALIBRATION = 2048  # samples by which the error of rough values is learned
_FAIR_LOOK, _MOST_NEAR = 1 << 14, 0.4  # rough values are given up if, after so many, more than this share was too near
OUTSIDE = -np.inf


@dataclass(frozen=True)
class Lattice:
    """Evenly spaced samples along the world's axes.

    Attributes:
        origin: world position of the first sample (padded index 1, 1, 1).
        spacing: distance of neighbouring samples, world units, the same along all axes.
        shape: samples along x, y, z, each >= 2, without the padding.
    """

    origin: tuple[float, float, float]
    spacing: float
    shape: tuple[int, int, int]

    def positions(self, index: Ints | Floats) -> Floats:
        """World positions (N, 3) float32 of padded indices (N, 3), which may lie between samples."""
        return (np.asarray(self.origin) + (index - 1.0) * self.spacing).astype(np.float32)

    @property
    def upper(self) -> tuple[float, float, float]:
        """World position of the last sample."""
        x, y, z = (o + (n - 1) * self.spacing for o, n in zip(self.origin, self.shape, strict=True))
        return x, y, z


class Evaluator:
    """A field's raw density as a numpy function of positions: chunked, checked and counted.

    Args:
        raw: world points (N, 3) → (N,), on ``device``; or more numbers of each point, (N, K), the density first.
        device: where points must live.
        chunk_size: points per pass; changes memory, never results beyond rounding.
    """

    def __init__(self, raw: Callable[[Tensor], Tensor], device: torch.device, chunk_size: int) -> None:
        self.raw, self.device, self.chunk_size = raw, device, chunk_size
        self.count = 0

    def __call__(self, positions: Floats) -> Floats:
        """Raw density (N,) float32 at world positions (N, 3), or (N, K) with what else ``raw`` gives.

        Raises:
            FieldError: a density is not finite; says how many and where the first one is.
        """
        values = evaluate_chunks(self.raw, positions, self.device, self.chunk_size)
        self.count += len(positions)
        densities = values if values.ndim == 1 else values[:, 0]
        bad = ~np.isfinite(densities)
        if bad.any():
            raise not_finite(int(bad.sum()), len(values), positions[int(np.argmax(bad))])
        return values


def not_finite(bad: int, asked: int, first: Sequence[float] | Floats) -> FieldError:
    """The error for densities that are not finite: how many of how many, and where the first one is."""
    x, y, z = first
    return FieldError(
        f"the field's density is not finite at {bad} of {asked} points, first at "
        f"({x:.4g}, {y:.4g}, {z:.4g}). Check the weights, or run the network in fp32 (--dtype fp32)."
    )


def evaluate_chunks(
    function: Callable[[Tensor], Tensor], positions: Floats, device: torch.device, chunk_size: int
) -> Floats:
    """Evaluate ``function`` at world positions (N, 3) in chunks on ``device``; gives float32 numpy (N, ...)."""
    points = torch.from_numpy(np.ascontiguousarray(positions, dtype=np.float32))
    with torch.no_grad():
        parts = [function(chunk.to(device)).float().cpu() for chunk in points.split(chunk_size)]
    return np.asarray(torch.cat(parts).numpy())


class SureSides:
    """Raw density that is rough far from a level and exact near it, so that its side of the level is always right.

    Args:
        exact, rough: world positions (N, 3) → raw density (N,); ``rough`` is off by less than ``margin``.
        level: raw density.
        margin: where the rough number is no further than this from the level, the exact one is taken.
    """

    def __init__(
        self, exact: Callable[[Floats], Floats], rough: Callable[[Floats], Floats], level: float, margin: float
    ) -> None:
        self.exact, self.rough, self.level, self.margin = exact, rough, level, margin
        self._asked = self._near = 0

    @property
    def noise(self) -> float:
        """The largest error of the rough numbers that was seen."""
        return self.margin / _SAFETY

    def __call__(self, positions: Floats) -> Floats:
        """Raw density (N,) float32 at world positions (N, 3)."""
        if self._asked > _FAIR_LOOK and self._near > _MOST_NEAR * self._asked:
            return self.exact(positions)  # two looks at most points cost more than one
        return self.settle(self.rough(positions), positions)

    def settle(self, values: Floats, positions: Floats) -> Floats:
        """Rough values (N,) with those near the level replaced, in place."""
        near = np.abs(values - np.float32(self.level)) <= self.margin
        self._asked, self._near = self._asked + len(values), self._near + int(near.sum())
        if near.any():
            values[near] = self.exact(positions[near])
        return values


def sure_sides(
    exact: Callable[[Floats], Floats], rough: Callable[[Floats], Floats], level: float, coarse: Scan, lattice: Lattice
) -> tuple[SureSides, Scan]:
    """Learn from a scan how far off the rough numbers are near a level.

    The margin is four times the largest error among the 2048 samples nearest to the level: errors are rounding, spread
    about evenly, and of that many the largest is more than three standard deviations out.

    Args:
        exact, rough: world positions (N, 3) → raw density (N,).
        level: raw density.
        coarse: a `scan` of ``lattice`` with ``rough``.
        lattice: where its samples lie.

    Returns:
        What to ask from now on, and the scan with its samples settled.
    """
    known = np.argwhere(np.isfinite(coarse.values))
    positions = lattice.positions(np.stack([coarse.coordinates[i][known[:, i]] for i in range(3)], 1))
    values = coarse.values[tuple(known.T)]
    distance = np.abs(values - np.float32(level))
    nearest = np.argpartition(distance, min(_CALIBRATION, len(values)) - 1)[:_CALIBRATION]
    margin = _SAFETY * float(np.abs(exact(positions[nearest]) - values[nearest]).max())
    sides = SureSides(exact, rough, level, margin)
    settled = coarse.values.copy()
    settled[tuple(known.T)] = sides.settle(values, positions)
    return sides, Scan(coarse.coordinates, settled)


class SparseSamples:
    """Values of a field on a lattice, evaluated when first asked for, kept in bricks that exist only where needed.

    Attributes:
        lattice: where the samples lie.
        cell_numbers: (bricks * 512,) int32, one free number for each cell, by the address of its lowest corner;
            -1 at first.
    """

    def __init__(self, lattice: Lattice, evaluate: Callable[[Floats], Floats], level: float) -> None:
        self.lattice, self.level, self._evaluate = lattice, level, evaluate
        self._padded = np.asarray(lattice.shape) + 1  # the last padded index of each axis
        self._bricks_shape = tuple(int(n) // _SIDE + 1 for n in self._padded)
        self._table = np.full(self._bricks_shape, -1, np.int32)
        self._used = 0
        self._values = np.empty(0, np.float32)
        self.cell_numbers = np.empty(0, np.int32)

    def addresses(self, x: Ints, y: Ints, z: Ints) -> Ints:
        """Where the samples at padded indices are kept, int64; their bricks are made when missing."""
        bx, by, bz = x >> BRICK_BITS, y >> BRICK_BITS, z >> BRICK_BITS
        slot = self._table[bx, by, bz]
        if slot.size and slot.min() < 0:
            missing = slot < 0
            self._make_bricks(np.ravel_multi_index((bx[missing], by[missing], bz[missing]), self._bricks_shape))
            slot = self._table[bx, by, bz]
        local = ((x & _LAST) << 2 * BRICK_BITS) | ((y & _LAST) << BRICK_BITS) | (z & _LAST)
        return (slot.astype(np.int64) << 3 * BRICK_BITS) | local

    def at(self, x: Ints, y: Ints, z: Ints) -> Floats:
        """Values minus the level at padded indices of any one shape; > 0 is inside, `OUTSIDE` in the padding."""
        addresses = self.addresses(x, y, z)
        values = self._values[addresses]
        missing = np.isnan(values)
        if missing.any():
            self._fill(x[missing], y[missing], z[missing], addresses[missing])
            values = self._values[addresses]
        return values

    def at_corners(self, cells: NDArray[np.int32]) -> Floats:
        """`at` the eight corners of cells (F, 3) → (F, 8), z running fastest and x slowest.

        An axis has two layers of corners, so that their parts of the address are worked out twice and not eight times.
        """
        both = np.arange(2, dtype=np.int32)
        x, y, z = (cells[:, axis, None] + both for axis in range(3))
        _, ny, nz = self._bricks_shape
        brick = _sums((x >> BRICK_BITS) * (ny * nz), (y >> BRICK_BITS) * nz, z >> BRICK_BITS)
        slot = self._table.reshape(-1)[brick]
        if slot.size and slot.min() < 0:
            self._make_bricks(brick[slot < 0])
            slot = self._table.reshape(-1)[brick]
        local = _sums((x & _LAST) << 2 * BRICK_BITS, (y & _LAST) << BRICK_BITS, z & _LAST)
        addresses = (slot.astype(np.int64) << 3 * BRICK_BITS) | local
        values = self._values[addresses]
        cell, corner = np.nonzero(np.isnan(values))
        if len(cell):
            at = x[cell, corner >> 2], y[cell, corner >> 1 & 1], z[cell, corner & 1]
            self._fill(*at, addresses[cell, corner])
            values = self._values[addresses]
        return values

    def known(self, addresses: Ints) -> Floats:
        """What is there already: values minus the level, NaN where nothing was evaluated."""
        return self._values[addresses]

    def _fill(self, x: Ints, y: Ints, z: Ints, addresses: Ints) -> None:
        first = first_of_each(self._values.view(np.int32), addresses)
        x, y, z, addresses = x[first], y[first], z[first], addresses[first]
        values = np.full(len(x), OUTSIDE, np.float32)
        real = (
            (np.minimum(np.minimum(x, y), z) > 0)
            & (x < self._padded[0])
            & (y < self._padded[1])
            & (z < self._padded[2])
        )
        if real.any():
            index = np.stack([x[real], y[real], z[real]], 1)
            values[real] = self._evaluate(self.lattice.positions(index)) - np.float32(self.level)
        self._values[addresses] = values

    def _make_bricks(self, flat: Ints) -> None:
        """Make room for bricks, named by their place in the flattened table, some of them many times."""
        flat = np.unique(flat)
        self._table.reshape(-1)[flat] = np.arange(self._used, self._used + len(flat))
        self._used += len(flat)
        room = len(self._values) >> 3 * BRICK_BITS
        if self._used > room:
            more = (max(self._used, room + room // 2) - room) << 3 * BRICK_BITS
            self._values = np.concatenate([self._values, np.full(more, np.nan, np.float32)])
            self.cell_numbers = np.concatenate([self.cell_numbers, np.full(more, -1, np.int32)])


def _sums(x: Ints, y: Ints, z: Ints) -> Ints:
    """Sums (F, 8) of one number along each axis, of which every cell has two: (F, 2) each."""
    return np.asarray((x[:, :, None, None] + (y[:, :, None] + z[:, None, :])[:, None]).reshape(len(x), 8))


def first_of_each(scratch: NDArray[np.int32], addresses: Ints) -> NDArray[np.bool_]:
    """Mark one occurrence of each address, without sorting; overwrites ``scratch`` at the addresses."""
    order = np.arange(len(addresses), dtype=np.int32)
    scratch[addresses] = order
    return np.asarray(scratch[addresses] == order)


@dataclass(frozen=True)
class Scan:
    """Raw density on the coarse lattice.

    Attributes:
        coordinates: padded indices of the coarse samples along x, y and z; the first and last are padding.
        values: (X, Y, Z) float32 raw density; `OUTSIDE` in the padding, NaN where the pattern has no sample.
    """

    coordinates: tuple[Ints, Ints, Ints]
    values: Floats

    @property
    def inner(self) -> Floats:
        """(N,) raw density of all evaluated samples."""
        return self.values[np.isfinite(self.values)]

    def share_crossed(self, level: float) -> float:
        """The share of coarse cells, 0 to 1, whose two evaluated corners lie on different sides of the level.

        The pattern has just one pair of samples in each cell, at the ends of one of its body diagonals.
        """
        with np.errstate(invalid="ignore"):
            inside = self.values > np.float32(level)
        crossed = sum(len(start) for start, _ in diagonal_pairs(self.values, inside))
        return crossed / max(int(np.prod([n - 1 for n in self.values.shape])), 1)


def scan(lattice: Lattice, step: int, evaluate: Callable[[Floats], Floats]) -> Scan:
    """Look at every ``step``-th sample of a lattice, in a body-centred pattern.

    Of the coarse samples only those whose three coarse indices are all even or all odd are evaluated, a quarter. Every
    plane through space, however it leans, has a layer of them within sqrt(2) / 2 coarse steps: the shortest vector of
    the pattern's reciprocal lattice is (1/2, 1/2, 0), so layers are at most sqrt(2) steps apart. A plate of 1.5 steps
    therefore always holds samples.

    Args:
        lattice: its last sample of each axis is looked at even when ``step`` does not divide the axis.
        step: in samples, >= 1.
        evaluate: world positions (N, 3) → raw density (N,).
    """
    axes = coarse_axes(lattice, step)
    values = np.full([len(a) for a in axes], np.nan, np.float32)
    for parity in (0, 1):
        chosen = values[parity::2, parity::2, parity::2]
        grids = np.meshgrid(*(a[parity::2] for a in axes), indexing="ij")
        index = np.stack([g.reshape(-1) for g in grids], 1)
        real = ((index > 0) & (index <= np.asarray(lattice.shape))).all(1)
        found = np.full(len(index), OUTSIDE, np.float32)
        found[real] = evaluate(lattice.positions(index[real]))
        chosen[...] = found.reshape(chosen.shape)
    return Scan((axes[0], axes[1], axes[2]), values)


def coarse_axes(lattice: Lattice, step: int) -> list[NDArray[np.int64]]:
    """Padded indices of the samples of a `scan` along x, y and z: the padding, every ``step``-th one, the last one."""
    return [np.unique(np.concatenate([[0], np.arange(1, n + 1, step), [n, n + 1]])) for n in lattice.shape]


def layers(lattice: Lattice, evaluate: Callable[[Floats], Floats], level: float) -> Iterator[Floats]:
    """Evaluate every sample of a lattice, one layer across x after the other; small layers share a call.

    Args:
        lattice: X, Y, Z samples.
        evaluate: world positions (N, 3) → raw density (N,).
        level: taken off the values.

    Yields:
        For each padded index along x, 0 to X + 1: (Y + 2, Z + 2) float32, values minus the level, > 0 inside, `OUTSIDE`
        in the padding.
    """
    x, y, z = (lattice.positions(np.arange(1, n + 1)[:, None])[:, axis] for axis, n in enumerate(lattice.shape))
    outside = np.full((len(y) + 2, len(z) + 2), OUTSIDE, np.float32)
    together = max(_TOGETHER // (len(y) * len(z)), 1)
    yield outside
    for first in range(0, len(x), together):
        across = x[first : first + together]
        points = np.empty((len(across), len(y), len(z), 3), np.float32)
        points[..., 0], points[..., 1], points[..., 2] = across[:, None, None], y[:, None], z
        values = evaluate(points.reshape(-1, 3)) - np.float32(level)
        for layer in values.reshape(points.shape[:3]):
            yield np.pad(layer, 1, constant_values=OUTSIDE)
    yield outside


def diagonal_pairs(values: Floats, inside: NDArray[np.bool_]) -> Iterator[tuple[Ints, Ints]]:
    """Neighbours along the body diagonals of a coarse lattice of which exactly one is inside: index pairs (P, 3)."""
    known = ~np.isnan(values)
    for sy in (1, -1):
        for sz in (1, -1):
            here = (slice(None, -1), _half(sy, False), _half(sz, False))
            there = (slice(1, None), _half(sy, True), _half(sz, True))
            differ = known[here] & known[there] & (inside[here] != inside[there])
            start = np.argwhere(differ) + np.array([0, sy < 0, sz < 0], np.int64)
            yield start, start + np.array([1, sy, sz], np.int64)


def _half(sign: int, far: bool) -> slice:
    """The slice of near or far ends of the unit steps along one axis in the given direction."""
    return slice(1, None) if far == (sign > 0) else slice(None, -1)
