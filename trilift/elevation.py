"""From how far above the horizon was a photograph taken? The embedded model's guess, for models that make none."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from lrm.tiny import TinyLRM

from . import registry


@functools.cache
def _embedded() -> TinyLRM:
    """The embedded network, for its camera head."""
    source = registry.resolve("tiny")
    assert source.path is not None, "the embedded weights lie in the package"
    return TinyLRM.from_folder(source.path)


@torch.no_grad()
def estimate_elevations(images: Tensor) -> list[float]:
    """Ask the embedded model from how far above the horizon pictures were taken.

    Args:
        images: (B, 4, S, S) in [0, 1], straight-alpha sRGB, any S and device; the object may fill the picture more or
            less than the embedded model is used to.

    Returns:
        B elevations in degrees.
    """
    return estimate_cameras(images)[0]


@torch.no_grad()
def estimate_cameras(images: Tensor) -> tuple[list[float], list[float]]:
    """Ask the embedded model how pictures were taken.

    Args:
        images: as `estimate_elevations`.

    Returns:
        B elevations in degrees, and B focal lengths in half widths of pictures framed as the embedded model wants them.
    """
    model = _embedded()
    camera = model.guess_camera(fitted(images.float().cpu(), model.image_size, model.foreground_ratio))
    return camera[:, 0].tolist(), camera[:, 1].tolist()


def fitted(images: Tensor, size: int, foreground_ratio: float) -> Tensor:
    """Resample pictures so that the object's box has ``foreground_ratio`` of the side, about the picture's centre.

    Args:
        images: (B, 4, S, S) in [0, 1], straight alpha.
        size: side of the result in pixels.
        foreground_ratio: longest side of the object's box / side of the result.

    Returns:
        (B, 4, size, size), straight alpha; transparent where the picture ends.
    """
    rgb, alpha = images[:, :3], images[:, 3:]
    premultiplied = torch.cat([rgb * alpha, alpha], 1)
    fitted_pictures = []
    for picture in premultiplied:
        half = _half_extent(picture[3])
        side = max(round(picture.shape[-1] * half / foreground_ratio), 1)
        pad = side - picture.shape[-1]
        before = pad // 2
        square = F.pad(picture[None], (before, pad - before, before, pad - before))
        fitted_pictures.append(F.interpolate(square, (size, size), mode="bilinear", antialias=True))
    result = torch.cat(fitted_pictures)
    return torch.cat([result[:, :3] / result[:, 3:].clamp(min=1e-6), result[:, 3:]], 1).clamp(0, 1)


def _half_extent(alpha: Tensor) -> float:
    """How far the object (S, S) reaches from the centre, 1 at the border; 1 for an empty picture."""
    found = (alpha > 0.5).nonzero()
    if len(found) == 0:
        return 1.0
    middle = (alpha.shape[-1] - 1) / 2
    return min((float((found - middle).abs().max()) + 0.5) / (alpha.shape[-1] / 2), 1.0)
