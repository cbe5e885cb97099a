"""Balls that tests look at: exact mattes of a body without symmetry, from any cameras, with no renderer."""

from __future__ import annotations

import numpy as np

from multiview.cameras import Cameras, rays

# Centre and radius; no turn and no mirror maps them to each other.
BODY = np.array(
    [
        [0.0, 0.0, -0.1, 0.25],
        [0.3, 0.1, -0.05, 0.12],
        [-0.1, 0.25, 0.2, 0.15],
        [-0.05, -0.2, 0.3, 0.08],
        [0.2, -0.28, -0.2, 0.1],
    ]
)
CENTER = ((BODY[:, :3] - BODY[:, 3:]).min(0) + (BODY[:, :3] + BODY[:, 3:]).max(0)) / 2
BODY = np.concatenate([BODY[:, :3] - CENTER, BODY[:, 3:]], 1)
SIDE = float(((BODY[:, :3] + BODY[:, 3:]).max(0) - (BODY[:, :3] - BODY[:, 3:]).min(0)).max())


def mattes(cameras: Cameras, size: int = 48, balls: np.ndarray = BODY, fine: int = 3) -> np.ndarray:
    """(V, size, size) float32: the share of ``fine`` x ``fine`` rays of each pixel that meet a ball."""
    origins, directions = (x.double().numpy() for x in rays(cameras, size * fine, size * fine))
    hit = np.zeros(origins.shape[:2], bool)
    for *center, radius in balls:
        toward = np.array(center) - origins
        along = (toward * directions).sum(-1)
        hit |= ((toward**2).sum(-1) - along**2 < radius**2) & (along > 0)
    blocks = hit.reshape(len(cameras), size, fine, size, fine)
    return blocks.mean((2, 4)).astype(np.float32)
