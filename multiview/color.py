"""sRGB and linear light, exactly as IEC 61966-2-1 defines them, and bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Floats = NDArray[np.floating]


def linear_from_srgb(srgb: ArrayLike) -> _Floats:
    """Decode sRGB display values to linear light.

    Args:
        srgb: any shape, float (integers are taken as float64); [0, 1] is the useful range. Leave alpha out.

    Returns:
        The same shape and float type; 0.5 becomes 0.2140. Values below 0 follow the straight part of the curve.

    Source:
        IEC 61966-2-1, the exact two-piece curve, not a power of 2.2.
    """
    value = _as_floats(srgb)
    curved = ((np.maximum(value, 0.0) + 0.055) / 1.055) ** 2.4
    return np.where(value <= 0.04045, value / 12.92, curved).astype(value.dtype)


def srgb_from_linear(linear: ArrayLike) -> _Floats:
    """Encode linear light as sRGB display values: the inverse of `linear_from_srgb`.

    Args:
        linear: any shape, float (integers are taken as float64); [0, 1] is the useful range.

    Returns:
        The same shape and float type; 0.2140 becomes 0.5.
    """
    value = _as_floats(linear)
    # The join sits where the two pieces of the decoding curve meet, 0.04045 / 12.92, so that the pair stays inverse.
    curved = 1.055 * np.maximum(value, 0.0) ** (1 / 2.4) - 0.055
    return np.where(value <= 0.04045 / 12.92, value * 12.92, curved).astype(value.dtype)


def bytes_from_unit(value: ArrayLike) -> NDArray[np.uint8]:
    """Floats in [0, 1], clipped, → uint8 0..255, rounded to the nearest; any shape."""
    return np.rint(np.clip(_as_floats(value), 0.0, 1.0) * 255).astype(np.uint8)


def _as_floats(value: ArrayLike) -> _Floats:
    array = np.asarray(value)
    return array if np.issubdtype(array.dtype, np.floating) else array.astype(np.float64)
