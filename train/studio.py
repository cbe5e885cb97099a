"""An object as a photograph might show it, for ``trilift eval --studio``: a pattern, a sun, a pocket camera."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from numpy.typing import NDArray

from lrm.mesh import Mesh

from .batches import Augment, light
from .materials import random_material, random_sun
from .objects import TrainingObject
from .render import Caster, crop_camera
from .texturedmesh import skin_of

_PAINTED = 0.6  # chance of a pattern
_PHOTOGRAPHED = Augment(lit=1.0, mirror=0.0, swap=0.0, exposure=0.12, ragged=0.0, snapshot=1.0)


def studio_look(
    mesh: Mesh, azimuth_deg: float, elevation_deg: float, size: int, *, distance: float, ratio: float
) -> NDArray[np.uint8]:
    """Draw an object under a sun that casts shadows, most often with a pattern that it does not have, as a snapshot.

    Args:
        mesh: `lrm.metrics.placed`: longest side 2; both sides of every face are seen.
        azimuth_deg, elevation_deg: of the camera; together they seed all that is random.
        size: pixels per side.
        distance: of the camera from the middle, in longest sides.
        ratio: longest side of the silhouette's box / side of the picture.

    Returns:
        (size, size, 4) uint8 straight alpha.

    Raises:
        ImportError: embreex is missing; it comes with the extra ``train``.
    """
    rng = np.random.default_rng(zlib.crc32(f"{azimuth_deg:.5f} {elevation_deg:.5f}".encode()))
    colors = np.round(mesh.colors * 255).astype(np.uint8)
    obj = TrainingObject("", (mesh.vertices / 2).astype(np.float32), mesh.faces, colors, skin_of(mesh))
    material = random_material(rng) if rng.random() < _PAINTED else None
    camera = crop_camera(obj.vertices, azimuth_deg, elevation_deg, distance, ratio)
    view = Caster(obj, material, random_sun(rng)).view(camera, size, smooth=bool(rng.random() < 0.5))
    seen = light(torch.from_numpy(view), rng, _PHOTOGRAPHED)
    return np.asarray((seen * 255).round().to(torch.uint8).permute(1, 2, 0))
