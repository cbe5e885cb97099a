"""From a cut-out picture to the numbers that each published network was fed with in training.

The published programs differ in ways that cost quality when they are missed: a background of grey or white, a crop
that loses its last row and column, 8-bit numbers cut off rather than rounded, and three ways to resize. Each is a small
function here. None of them subtracts the ImageNet mean: the networks that want that do it themselves.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from multiview.errors import ImageError, SettingsError

REFERENCE_RATIO = 0.85
"""Longest side of the object / side of the picture, in TripoSR's and InstantMesh's own programs."""

TRIPOSR_GREY = 0.5
WHITE = 1.0


def picture_tensor(picture: NDArray[np.uint8]) -> Tensor:
    """An 8-bit picture (H, W, C) as (1, C, H, W) float32 in [0, 1], divided by 255 as the published programs do.

    Raises:
        ImageError: not uint8, or not (H, W, 3 or 4) with something in it.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (3, 4) or picture.size == 0:
        raise ImageError(f"expected a uint8 picture (H, W, 3 or 4), found {picture.dtype} {picture.shape}.")
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255


def reference_crop(rgba: NDArray[np.uint8], foreground_ratio: float = REFERENCE_RATIO) -> NDArray[np.uint8]:
    """Crop to the object and pad to a square, as TripoSR and InstantMesh do; pixels are moved, never resampled.

    The box of alpha > 0 leaves out its last row and its last column, as theirs does. It is padded to a square and then
    to the wanted ratio with transparent black, the odd pixel after the picture.

    Args:
        rgba: (H, W, 4) uint8, straight alpha.
        foreground_ratio: longest side of the box / side of the result, in (0, 1].

    Returns:
        (S, S, 4) uint8 with S = int(side / foreground_ratio).

    Raises:
        ImageError: not such a picture, or no box of at least 2 x 2 px has alpha above 0.
        SettingsError: ``foreground_ratio`` is out of range.

    Source:
        Facts 1.8; the background remover's faint halo counts as the object, as alpha only has to be above 0.
    """
    if rgba.dtype != np.uint8 or rgba.ndim != 3 or rgba.shape[2] != 4:
        raise ImageError(f"reference_crop wants a uint8 RGBA picture (H, W, 4), found {rgba.dtype} {rgba.shape}.")
    left, top, right, bottom = _reference_box(rgba[..., 3])
    x, y, side = reference_square(rgba[..., 3], foreground_ratio)
    picture = np.zeros((side, side, 4), np.uint8)
    picture[top - y : bottom - y, left - x : right - x] = rgba[top:bottom, left:right]
    return picture


def reference_square(alpha: NDArray[np.uint8], foreground_ratio: float = REFERENCE_RATIO) -> tuple[int, int, int]:
    """(left, top, side) px of the square of a photo that `reference_crop` shows; it may reach outside.

    Args:
        alpha: (H, W) uint8.
        foreground_ratio: see `reference_crop`.

    Raises:
        ImageError, SettingsError: see `reference_crop`.
    """
    if not 0 < foreground_ratio <= 1:
        raise SettingsError(f"foreground_ratio={foreground_ratio}: expected a number above 0 and at most 1.")
    left, top, right, bottom = _reference_box(alpha)
    width, height = right - left, bottom - top
    tight = max(width, height)
    side = int(tight / foreground_ratio)
    # Two paddings, to a square and to the ratio, each with its odd pixel after the object.
    margin = (side - tight) // 2
    return left - (tight - width) // 2 - margin, top - (tight - height) // 2 - margin, side


def composited(images: Tensor, background: float) -> Tensor:
    """Straight RGBA (B, 4, H, W) over one value → (B, 3, H, W); RGB (B, 3, H, W) comes back as it is.

    Raises:
        ImageError: neither three nor four channels.
    """
    if images.ndim != 4 or images.shape[1] not in (3, 4) or images.numel() == 0:
        raise ImageError(f"expected pictures (B, 3 or 4, H, W), found {tuple(images.shape)}.")
    if images.shape[1] == 3:
        return images
    alpha = images[:, 3:]
    return images[:, :3] * alpha + (1 - alpha) * background


def truncated_to_8_bits(images: Tensor) -> Tensor:
    """Floats in [0, 1] cut off to n / 255, not rounded; any shape."""
    return (images.clamp(0, 1) * 255).floor() / 255


def rounded_to_8_bits(images: Tensor) -> Tensor:
    """Floats in [0, 1] moved to the nearest n / 255; pictures that came from 8 bits get their exact numbers back."""
    return (images.clamp(0, 1) * 255).round() / 255


def triposr_input(images: Tensor, image_size: int = 512) -> Tensor:
    """What TripoSR's network sees, before the ImageNet mean is taken off.

    RGBA goes over mid grey and is cut off to 8 bits, both at the picture's own size, as the published program writes
    it into an 8-bit picture there. Then the picture is squeezed to a square: bilinear, antialiased.

    Args:
        images: (B, 4, H, W) straight-alpha sRGB in [0, 1], any size (`reference_crop` makes it square), or (B, 3, H, W)
            already over grey, which is only resized.
        image_size: S, pixels.

    Returns:
        (B, 3, S, S) float in [0, 1], same device.

    Raises:
        ImageError: ``images`` has another shape.
        SettingsError: ``image_size`` is not positive.

    Source:
        Facts 2.3, steps 1 and 2.
    """
    _check_size(image_size)
    rgb = composited(images, TRIPOSR_GREY)
    if images.shape[1] == 4:
        # Their picture is 8-bit RGBA to begin with. A float that lost its last digit on the way here would be cut off
        # to the next lower step.
        rgb = truncated_to_8_bits(composited(rounded_to_8_bits(images), TRIPOSR_GREY))
    return F.interpolate(rgb, (image_size, image_size), mode="bilinear", align_corners=False, antialias=True)


def openlrm_input(images: Tensor, image_size: int) -> Tensor:
    """What OpenLRM's network sees; it takes no mean off.

    RGBA goes over white. The picture is squeezed to a square: bicubic, corner pixels on corner pixels, no antialiasing,
    clamped afterwards because bicubic overshoots.

    Args:
        images: (B, 4, H, W) straight-alpha sRGB in [0, 1], or (B, 3, H, W) already over white; any size.
        image_size: S, pixels: 224, 336 or 448 for small, base and large.

    Returns:
        (B, 3, S, S) float in [0, 1], same device.

    Raises:
        ImageError: ``images`` has another shape.
        SettingsError: ``image_size`` is not positive.

    Source:
        Facts 3.3, step 1.
    """
    _check_size(image_size)
    rgb = composited(images, WHITE)
    return F.interpolate(rgb, (image_size, image_size), mode="bicubic", align_corners=True).clamp(0, 1)


def instantmesh_input(images: Tensor, image_size: int = 320) -> Tensor:
    """What InstantMesh's network sees of each view, before the ImageNet mean is taken off.

    RGBA goes over white. Another size than the network's is resized: bicubic, antialiased, clamped.

    Args:
        images: (V, 4, H, H) straight-alpha sRGB in [0, 1], or (V, 3, H, H) already over white; square.
        image_size: S, pixels.

    Returns:
        (V, 3, S, S) float in [0, 1], same device.

    Raises:
        ImageError: ``images`` has another shape, or is not square (its cameras would no longer be right).
        SettingsError: ``image_size`` is not positive.

    Source:
        Facts 4.3, step 1.
    """
    _check_size(image_size)
    rgb = composited(images, WHITE)
    height, width = rgb.shape[2:]
    if height != width:
        raise ImageError(f"expected square views, found {height} x {width} px. Crop or pad them to squares.")
    if height != image_size:
        size = (image_size, image_size)
        rgb = F.interpolate(rgb, size, mode="bicubic", align_corners=False, antialias=True)
    return rgb.clamp(0, 1)


def _reference_box(alpha: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of alpha > 0 without its last column and row; right and bottom excluded."""
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    if len(rows) == 0 or rows[-1] == rows[0] or columns[-1] == columns[0]:
        covered = f"{rows[-1] - rows[0] + 1} x {columns[-1] - columns[0] + 1}" if len(rows) else "0 x 0"
        raise ImageError(
            f"expected an object of at least 2 x 2 px, found {covered} px with alpha above 0 in "
            f"{alpha.shape[0]} x {alpha.shape[1]} px. Give another cut-out."
        )
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def _check_size(image_size: int) -> None:
    if image_size < 1:
        raise SettingsError(f"image_size={image_size}: expected at least 1 px.")
