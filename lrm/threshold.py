"""At which density the surface of a field is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from multiview.errors import MeshError

from .field import RawDensity
from .lattice import Floats

_SPECK = 8192  # one sample in so many is noise, not an object
_BINS = 256


@dataclass(frozen=True)
class Threshold:
    """An iso-level of a field.

    Attributes:
        density: the level as a density, per world unit.
        raw: the same on the field's raw scale.
        chosen: ``given`` by the caller, the field's own ``level``, or from the ``histogram``.
    """

    density: float
    raw: float
    chosen: Literal["given", "level", "histogram"]


def choose_threshold(
    raw_values: Floats, raw_density: RawDensity, level: float, asked: float | Literal["auto"], *, samples_per_axis: int
) -> Threshold:
    """Turn ``auto`` or a number into a level that the field crosses.

    ``auto`` takes the field's own level when there are samples on both sides of it; of those above, the highest one in
    8192 samples does not count, since a few specks are noise and no object, unless the field is sure of its level.
    Otherwise it splits the histogram of raw values in two (Otsu 1979: largest variance between the two classes). A
    field whose highest density is under a hundredth of its level counts as empty.

    Args:
        raw_values: (N,) raw densities of a coarse look at the whole field.
        raw_density: the field's raw scale.
        level: the field's own level, a density.
        asked: a density, or ``auto``.
        samples_per_axis: of that look, for the error message.

    Raises:
        MeshError: everything is below the level (empty), above it (full), or the field is the same everywhere.
    """
    own = raw_density.from_density(level)
    if asked != "auto":
        raw = raw_density.from_density(asked)
        _check_sides(raw_values, raw_density, raw, f"{float(asked)}", samples_per_axis)
        return Threshold(float(asked), raw, "given")
    low, high, top = _range(raw_values)
    if _to_density(raw_density, high) < 0.01 * level:
        _check_sides(raw_values, raw_density, own, f"{float(level)} (the field's own)", samples_per_axis)
    if low <= own < (high if raw_density.level_is_sure else top):
        return Threshold(float(level), own, "level")
    if high - low <= 1e-6 * max(abs(high), 1.0):
        raise MeshError(
            f"the field's density is {_to_density(raw_density, high):.4g} everywhere ({samples_per_axis} samples per "
            "axis), so it has no surface. Check that weights and config.json come from one release."
        )
    raw = _otsu(raw_values)
    return Threshold(_to_density(raw_density, raw), raw, "histogram")


def _check_sides(values: Floats, raw_density: RawDensity, raw: float, name: str, samples_per_axis: int) -> None:
    low, high = (_to_density(raw_density, float(v)) for v in (values.min(), values.max()))
    if values.max() <= raw:
        raise MeshError(
            f"density_threshold={name} is above the highest density in the grid ({high:.4g}, {samples_per_axis} "
            f"samples per axis), so the mesh would be empty. Try a value below {high:.4g}, or check that weights and "
            "config.json come from one release."
        )
    if values.min() > raw:
        raise MeshError(
            f"density_threshold={name} is below the lowest density in the grid ({low:.4g}, {samples_per_axis} "
            f"samples per axis), so the mesh would be the whole cube. Try a value between {low:.4g} and {high:.4g}."
        )


def _range(values: Floats) -> tuple[float, float, float]:
    """Lowest, highest, and highest value but for one in 8192."""
    which = len(values) - max(round(len(values) / _SPECK), 1)
    return float(values.min()), float(values.max()), float(np.partition(values, which)[which])


def _to_density(raw_density: RawDensity, raw: float) -> float:
    return float(raw_density.to_density(torch.tensor(raw, dtype=torch.float64)))


def _otsu(values: Floats) -> float:
    """The value that splits a histogram into the two classes with the largest variance between them."""
    counts, edges = np.histogram(values.astype(np.float64), _BINS)
    middle = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    total = np.cumsum(counts * middle)
    means = total[:-1] / np.maximum(below, 1) - (total[-1] - total[:-1]) / np.maximum(above, 1)
    between = below * above * means**2
    # An empty gap between the classes gives many equal best splits; the middle one is the most robust.
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    return float((edges[best[0] + 1] + edges[best[-1] + 1]) / 2)
