"""More photos of the same object: ``--photo back=b.png``, as views of one world.

Every photo is framed by itself, so nobody says how far its camera was. The embedded model guesses each camera's
elevation and focal length; what the photos share is the object's height, by which their pictures are brought to one
scale. For an object that stands upright and cameras that are not far apart in elevation that holds; it is a guess.
Their colours are painted on in the end, as the main photo's are (`trilift.texture`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from multiview.cameras import Cameras, orbit
from multiview.errors import SettingsError
from multiview.views import Views

from .chain import resized

SIDES = {"front": 0.0, "right": 90.0, "back": 180.0, "left": -90.0}
"""Azimuths of the cameras: ``right`` is taken from where one stands after walking a quarter around to the right."""
_FULL = 0.5  # alpha from which a pixel belongs to the object


@dataclass(frozen=True)
class SidePhoto:
    """Another photo and from where it was taken.

    Attributes:
        azimuth_deg: of its camera, relative to the main photo's, toward that camera's right.
        path: the file.
    """

    azimuth_deg: float
    path: Path


def parse_side(text: str) -> SidePhoto:
    """``back=b.png`` or ``135=b.png`` → a `SidePhoto`.

    Raises:
        SettingsError: no ``=``, or neither a side nor degrees before it.
    """
    side, equals, path = text.partition("=")
    if not equals or not path:
        raise SettingsError(f"--photo {text}: expected SIDE=FILE, such as back=b.png or 135=b.png.")
    if side in SIDES:
        return SidePhoto(SIDES[side], Path(path))
    try:
        azimuth = float(side)
    except ValueError:
        azimuth = math.nan
    if not (math.isfinite(azimuth) and abs(azimuth) <= 360):
        raise SettingsError(f"--photo {text}: expected {', '.join(SIDES)} or degrees from -360 to 360, found {side!r}.")
    return SidePhoto(azimuth, Path(path))


def photo_views(
    images: Sequence[Tensor], azimuths_deg: Sequence[float], elevations_deg: Sequence[float], focals: Sequence[float]
) -> Views:
    """Framed photos of one object as views of one world, in units of half the first one's width at the object.

    Args:
        images: cut-outs (4, S, S) of any sizes, straight RGBA, the object centred; the first is the main photo.
        azimuths_deg, elevations_deg: of their cameras.
        focals: focal lengths in half images.

    Returns:
        `Views` of the first one's size, cameras looking at the origin.
    """
    heights = [_height(image) for image in images]
    made = []
    for image, azimuth, elevation, focal, height in zip(
        images, azimuths_deg, elevations_deg, focals, heights, strict=True
    ):
        unit = heights[0] / height
        camera = orbit(azimuth, elevation, focal * unit, math.degrees(2 * math.atan(1 / focal)))
        one = Views(image[None, :3], image[None, 3:], camera)
        made.append(resized(one, (images[0].shape[1], images[0].shape[2])))
    return Views(
        torch.cat([v.images for v in made]), torch.cat([v.alpha for v in made]), Cameras.cat([v.cameras for v in made])
    )


def _height(image: Tensor) -> float:
    """Height of the object in half images; that of the whole picture where there is none."""
    rows = torch.nonzero((image[3] > _FULL).any(1)).flatten()
    return 2.0 if len(rows) == 0 else 2 * float(rows[-1] + 1 - rows[0]) / image.shape[1]
