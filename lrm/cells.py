"""Space around a surface in cells: what lies in each, and which of them is nearest to a place.

A look-up costs the same however many points there are, and comes out a fraction of a cell off. That is enough wherever
something smooth is asked for, or the mean of many distances.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

_MARGIN = 3  # cells around the points' box, so that places a little outside have cells of their own
_MOST = 256  # cells along the longest side, 17 million in all


class Cells:
    """Points in the cells of a lattice.

    Args:
        points: (N, 3), N >= 1.
        along: cells along the longest side of their box, 1 to 256.

    Attributes:
        group: (N,) int64 number of each point's cell among the G cells that hold any.
        middles: (G, 3) float64 mean point of each.
    """

    def __init__(self, points: Floats, along: int) -> None:
        if not 1 <= along <= _MOST or len(points) == 0:
            raise ValueError(f"Cells wants points and 1 to {_MOST} cells, found {len(points)} points, {along} cells.")
        # Axis by axis: numpy is slow where the last axis is short.
        low, high = (np.array([least(axis) for axis in points.T], np.float64) for least in (np.min, np.max))
        extent = high - low
        self.side = max(float(extent.max()), 1e-12) / along
        self._low = low - _MARGIN * self.side
        self._shape = tuple(int(n) for n in np.floor(extent / self.side) + 1 + 2 * _MARGIN)
        key = self._key(points)
        used = np.zeros(int(np.prod(self._shape)), np.bool_)
        used[key] = True
        self._used = used
        self.group: NDArray[np.int64] = (np.cumsum(used) - 1)[key]
        self._count = np.bincount(self.group)
        self.middles = self.means(points)

    def sums(self, values: Floats) -> NDArray[np.float64]:
        """(G,) or (G, C) sums over cells of values (N,) or (N, C) of the points."""
        if values.ndim == 1:
            return np.bincount(self.group, values, len(self._count)).astype(np.float64)
        return np.stack([self.sums(column) for column in values.T], 1)

    def means(self, values: Floats) -> NDArray[np.float64]:
        """(G, C) means over cells of values (N, C) of the points."""
        return self.sums(values) / self._count[:, None]

    def nearest(self, places: Floats) -> NDArray[np.int64]:
        """(..., ) number of the cell with points whose middle is nearest to that of the cell of each place (..., 3).

        Places beyond the lattice are taken to its border.
        """
        return self._near.reshape(-1)[self._key(places)]

    def blended(self, values: Floats, places: Floats) -> NDArray[np.float32]:
        """(M, C) values (G, C) of cells at places (M, 3), linear between cells; empty cells have the nearest's."""
        # Where cells are, in units of half the lattice from its middle; the last axis of a picture comes first.
        grid = (places - self._low) / (self.side * np.array(self._shape)) * 2 - 1
        volume = torch.from_numpy(np.ascontiguousarray(values, np.float32)[self._near]).permute(3, 0, 1, 2)[None]
        where = torch.from_numpy(np.ascontiguousarray(grid[:, ::-1], np.float32))[None, None, None]
        found = F.grid_sample(volume, where, mode="bilinear", padding_mode="border", align_corners=False)
        return found[0, :, 0, 0].T.numpy()

    @cached_property
    def _near(self) -> NDArray[np.int64]:
        """(X, Y, Z) number of the nearest cell with points."""
        from scipy import ndimage

        used = self._used.reshape(self._shape)
        x, y, z = ndimage.distance_transform_edt(~used, return_distances=False, return_indices=True)
        return (np.cumsum(self._used) - 1).reshape(self._shape)[x, y, z]

    def _key(self, places: Floats) -> NDArray[np.int64]:
        """(...,) flat index of the cells of places (..., 3)."""
        key: Any = 0
        for axis, count in enumerate(self._shape):
            along = np.floor((places[..., axis] - self._low[axis]) / self.side).clip(0, count - 1)
            key = key * count + along.astype(np.int64)
        return np.asarray(key, np.int64)
