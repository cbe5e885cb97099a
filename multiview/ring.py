"""The ring of views that the embedded generator draws, and its cameras."""

from __future__ import annotations

import torch

from .cameras import Cameras, orbit

RING_AZIMUTHS_DEG = (0.0, 60.0, 120.0, 180.0, 240.0, 300.0)
"""Azimuths relative to the photograph's."""
RING_ELEVATIONS_DEG = (30.0, 0.0, 30.0, 0.0, 30.0, 0.0)
"""Opposite views differ in elevation, since two outlines from exactly opposite sides say the same."""
RING_DISTANCE = 3.3
"""In half images of the photograph's crop: 19 of 20 objects fit."""
RING_FOV_DEG = 40.0
RING_SIZE = 64


def ring_cameras(unit: float = 1.0) -> Cameras:
    """The cameras of the ring, object at the origin.

    Args:
        unit: half the width of the photograph's crop at the origin, in world units.
    """
    cameras = [
        orbit(azimuth, elevation, RING_DISTANCE * unit, RING_FOV_DEG)
        for azimuth, elevation in zip(RING_AZIMUTHS_DEG, RING_ELEVATIONS_DEG, strict=True)
    ]
    return Cameras.cat(cameras)


def mirrored_order() -> torch.Tensor:
    """(6,) which view of the ring shows, left and right exchanged, what each one sees of the mirror image."""
    count = len(RING_AZIMUTHS_DEG)
    return torch.tensor([(count - i) % count for i in range(count)])
