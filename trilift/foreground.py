"""The cut-out: what of a photo is the object, squared and centred, and what was done to find it.

A mask file says it, else a real alpha, else the background is removed: by a learned remover (rembg) when its weights
are there or can be fetched (remover.py), else by colours alone, which needs nothing but the photo (classical.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lrm.models import Framing
from lrm.preprocess import picture_tensor, reference_crop, reference_square
from multiview.errors import ImageError, SettingsError

from .classical import alpha_by_colors
from .matting import clean_colors
from .photo import Photo, read_mask
from .remover import learned_alpha

Background = Literal["auto", "keep", "remove"]
Method = Literal["alpha", "mask", "rembg", "classical", "keep"]

REMEDIES = (
    "Give an RGBA image with your own cut-out or a <name>_mask.png beside the photo, "
    "or keep the background with --background keep."
)


# A square picture with its own alpha is taken as prepared for its network when its object's middle is no further from
# the picture's and its longest side no shorter than these shares of the picture's side.
_PREPARED_OFF_CENTRE = 0.1
_PREPARED_SIDE = 0.5


@dataclass(frozen=True)
class Cutout:
    """One object, cut out of its photo, centred in a square.

    Attributes:
        image: (S, S, 4) uint8, straight alpha, sRGB, showing ``crop``; colours are 0 where alpha is 0. The object's box
            is centred, its longest side is ``foreground_ratio`` * S; nearly so for framings other than ``resampled``.
        method: where the alpha came from.
        foreground_ratio: longest side of the object's box / image side; 1 for ``keep``, as found in a prepared picture.
        box: (left, top, right, bottom) px of alpha > 0.5 in the photo's ``source_image``; right and bottom excluded.
        crop: (left, top, side) px, the square of ``source_image`` that ``image`` shows; it may reach outside.
        source_size: (width, height) px of ``source_image``.
        name: the photo's.
        checks: numbers about the alpha, all over ``source_image``: ``coverage`` (share of pixels above 0.5),
            ``border_share`` (share of the outermost pixels above 0.5), ``touches_border``, ``pieces`` (count) and
            ``outside_largest`` (share of the object outside its largest piece).
        warnings: what the user should look at, one sentence each.
        framing: how the picture for the network is made, see `lrm.models.Framing`.
        native: (N, N, 4) uint8 of the photo's own pixels, straight alpha: what a network that resizes by itself is
            given; None when that is ``image``.
    """

    image: np.ndarray
    method: Method
    foreground_ratio: float
    box: tuple[int, int, int, int]
    crop: tuple[float, float, float]
    source_size: tuple[int, int]
    name: str
    checks: dict[str, float | bool]
    warnings: tuple[str, ...]
    framing: Framing = "resampled"
    native: np.ndarray | None = None

    def conditioning(self, image_size: int) -> Tensor:
        """What a network with pictures of ``image_size`` is given: (4, H, W) float32 in [0, 1], straight alpha.

        For the framing ``resampled`` that is `to_tensor`; for the others the 8-bit picture as it is, divided by 255.
        """
        if self.framing == "resampled":
            return self.to_tensor(image_size)
        return picture_tensor(self.image if self.native is None else self.native)[0]

    def to_tensor(self, size: int) -> Tensor:
        """Resize to a (4, size, size) float32 tensor in [0, 1], straight alpha.

        Colours are weighted by alpha while they are resized (bilinear, antialiased), so that nothing bleeds in from
        pixels that are not there; where alpha is 0 colours are 0.

        Raises:
            SettingsError: ``size`` is not positive.
        """
        if size < 1:
            raise SettingsError(f"size={size}: expected at least 1 px.")
        pixels = torch.from_numpy(np.ascontiguousarray(self.image)).permute(2, 0, 1).float() / 255
        pixels = torch.cat([pixels[:3] * pixels[3:], pixels[3:]])
        if size != pixels.shape[-1]:
            pixels = torch.nn.functional.interpolate(pixels[None], (size, size), mode="bilinear", antialias=True)[0]
        alpha = pixels[3:].clamp(0, 1)
        color = torch.where(alpha > 0, pixels[:3] / alpha.clamp(min=1e-6), 0).clamp(0, 1)
        return torch.cat([color, alpha])

    def crop_fov_deg(self, photo_fov_deg: float) -> float:
        """Full field of view of ``image`` when the whole photo has the full vertical one ``photo_fov_deg``.

        The photo's principal point is taken to be its centre. An object off the centre is looked at a little askew,
        which a centred camera cannot say; the angle returned is that of the same square in the photo's middle.

        Raises:
            SettingsError: ``photo_fov_deg`` is not between 0 and 180.
        """
        if not 0 < photo_fov_deg < 180:
            raise SettingsError(f"photo_fov_deg={photo_fov_deg}: expected an angle between 0 and 180 degrees.")
        half = math.tan(math.radians(photo_fov_deg) / 2) * self.crop[2] / self.source_size[1]
        return math.degrees(2 * math.atan(half))


def cut_out(
    photo: Photo,
    *,
    background: Background = "auto",
    foreground_ratio: float = 0.85,
    size: int = 512,
    framing: Framing = "resampled",
    rembg_model: str = "u2net",
) -> Cutout:
    """Find the object of a photo and centre it in a square.

    Args:
        photo: from `load_photo`.
        background: ``auto`` takes the mask file, else the photo's own alpha, else removes the background; ``remove``
            removes it whatever else there is; ``keep`` takes the whole frame for the object.
        foreground_ratio: longest side of the object's box / image side, in [0.1, 1]. ``keep`` fills the square (1).
        size: S, side of the result in px, at least 16.
        framing: what the network wants, see `lrm.models.Framing`. With ``cropped`` the box is that of alpha > 0 without
            its last row and column, and a kept photo is padded to a square as it is.
        rembg_model: name of the learned remover's weights, as in rembg.

    Returns:
        The cut-out. What looks wrong with it, or that colours alone had to do, is in its ``warnings``.

    Raises:
        ImageError: the photo is transparent everywhere, its mask does not fit, or nothing is left of it.
        SettingsError: an option is out of range, or rembg has no such model.
    """
    if background not in get_args(Background):
        raise SettingsError(f"background={background!r}: expected one of {', '.join(get_args(Background))}.")
    if not 0.1 <= foreground_ratio <= 1:
        raise SettingsError(f"foreground_ratio={foreground_ratio}: expected a number from 0.1 to 1.")
    if size < 16:
        raise SettingsError(f"size={size}: expected at least 16 px.")
    if framing not in get_args(Framing):
        raise SettingsError(f"framing={framing!r}: expected one of {', '.join(get_args(Framing))}.")
    if not photo.source_image[..., 3].any():
        raise ImageError(
            f"{photo.name}: is transparent everywhere ({photo.size[0]} x {photo.size[1]} px, highest alpha 0). "
            "Give a photo with something in it, or save it without its alpha channel."
        )
    rgba, method, warnings = _with_alpha(photo, background, rembg_model)
    checks, found = _checked(rgba[..., 3])
    if checks["coverage"] == 0:
        raise ImageError(
            f"{photo.name}: nothing left after background removal "
            f"(0 of {rgba[..., 3].size} pixels have alpha > 0.5; method {method}).\n  {REMEDIES}"
        )
    if method == "keep":
        foreground_ratio, found = 1.0, []
    box = _box(rgba[..., 3])
    crop, foreground_ratio, native = _framed(rgba, box, method, foreground_ratio, framing)
    image = _resampled(rgba, crop, size)
    return Cutout(
        image, method, foreground_ratio, box, crop, photo.size, photo.name, checks, (*warnings, *found), framing, native
    )


# Where the alpha comes from


def _with_alpha(photo: Photo, background: Background, rembg_model: str) -> tuple[np.ndarray, Method, list[str]]:
    """The photo as (H, W, 4) float32 in [0, 1], straight alpha, how that was made, and warnings."""
    pixels = photo.source_image.astype(np.float32) / 255
    if background == "auto" and photo.mask_path is not None:
        alpha = read_mask(photo)
        return np.dstack([clean_colors(pixels[..., :3], alpha), alpha]), "mask", []
    if background == "auto" and photo.has_alpha:
        return pixels, "alpha", []
    own_alpha = pixels[..., 3:]
    rgb = pixels[..., :3] * own_alpha + (1 - own_alpha)
    if background == "keep":
        return np.dstack([rgb, np.ones_like(own_alpha)]), "keep", []
    learned, reason = learned_alpha(rgb, rembg_model)
    if learned is not None:
        return np.dstack([clean_colors(rgb, learned), learned]), "rembg", []
    alpha = alpha_by_colors(rgb)
    warning = (
        f"The learned background remover is not there ({reason}), so the cut-out was made by colours alone. If it is "
        "not good, give an RGBA image or a <name>_mask.png beside the photo, or fetch the remover with: "
        f"rembg d {rembg_model}"
    )
    return np.dstack([clean_colors(rgb, alpha), alpha]), "classical", [warning]


def _checked(alpha: np.ndarray) -> tuple[dict[str, float | bool], list[str]]:
    """Numbers about (H, W) float ``alpha`` and a sentence on each that looks wrong; see `Cutout.checks`."""
    from scipy import ndimage

    mask = alpha > 0.5
    border = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    labels, pieces = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(labels.ravel())[1:]
    outside = 1 - float(areas.max() / areas.sum()) if pieces else 0.0
    checks: dict[str, float | bool] = {
        "coverage": float(mask.mean()),
        "border_share": float(border.mean()),
        "touches_border": bool(border.any()),
        "pieces": float(pieces),
        "outside_largest": outside,
    }
    found = []
    if 0 < checks["coverage"] < 0.01:
        found.append(f"The object covers only {mask.mean():.2%} of the photo. Crop the photo closer to it.")
    if checks["coverage"] > 0.9:
        found.append(
            f"The object covers {mask.mean():.0%} of the photo, so little or no background was found. {REMEDIES}"
        )
    elif checks["border_share"] > 0.01:
        sides = {"top": mask[0], "bottom": mask[-1], "left": mask[:, 0], "right": mask[:, -1]}
        touched = ", ".join(side for side, line in sides.items() if line.mean() > 0.01) or "border"
        found.append(
            f"The object touches the photo's border ({touched}; {border.mean():.0%} of the border), so it may be cut "
            "off. Use a photo that shows all of it."
        )
    if outside > 0.05:
        found.append(
            f"The object is in {pieces} pieces, {outside:.0%} of it outside the largest. "
            "If only one of them is meant, give a <name>_mask.png."
        )
    return checks, found


# Squaring and centring


def _box(alpha: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of alpha > 0.5, right and bottom excluded."""
    rows, columns = np.flatnonzero((alpha > 0.5).any(1)), np.flatnonzero((alpha > 0.5).any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _framed(
    rgba: np.ndarray, box: tuple[int, int, int, int], method: Method, foreground_ratio: float, framing: Framing
) -> tuple[tuple[float, float, float], float, np.ndarray | None]:
    """The square to show, the object's ratio in it, and its pixels where the framing wants them as they are.

    Args:
        rgba: (H, W, 4) float32 in [0, 1], straight alpha.
        box: of alpha > 0.5, see `Cutout`.
        method: where the alpha came from.
        foreground_ratio: longest side of the box / side of the square.
        framing: see `lrm.models.Framing`.
    """
    if framing != "resampled" and method == "keep":
        left, top, native = _padded_to_square(_to_8_bits(rgba))
        return (float(left), float(top), float(len(native))), foreground_ratio, native
    if framing == "cropped":
        pixels = _to_8_bits(rgba)
        left, top, side = reference_square(pixels[..., 3], foreground_ratio)
        return (float(left), float(top), float(side)), foreground_ratio, reference_crop(pixels, foreground_ratio)
    if framing == "given" and method == "alpha" and _is_prepared(box, rgba.shape[:2]):
        side = rgba.shape[0]
        return (0.0, 0.0, float(side)), max(box[2] - box[0], box[3] - box[1]) / side, _to_8_bits(rgba)
    return _crop(box, foreground_ratio), foreground_ratio, None


def _is_prepared(box: tuple[int, int, int, int], shape: tuple[int, ...]) -> bool:
    """Whether a photo of ``shape`` (height, width) is a square with its object in the middle."""
    height, width = shape
    left, top, right, bottom = box
    off_centre = max(abs(left + right - width), abs(top + bottom - height)) / 2
    longest = max(right - left, bottom - top)
    return height == width and off_centre <= _PREPARED_OFF_CENTRE * width and longest >= _PREPARED_SIDE * width


def _to_8_bits(rgba: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] → uint8, rounded: pixels that came from 8 bits get their exact numbers back."""
    return np.rint(np.clip(rgba, 0, 1) * 255).astype(np.uint8)


def _padded_to_square(pixels: np.ndarray) -> tuple[int, int, np.ndarray]:
    """(left, top) px of the square in the photo, not above 0, and the square: (H, W, 4) uint8 with clear pixels added.

    The published programs squeeze a photo that is not square; that would change the object's shape.
    """
    height, width = pixels.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.zeros((side, side, 4), np.uint8)
    square[top : top + height, left : left + width] = pixels
    return -left, -top, square


def _crop(box: tuple[int, int, int, int], foreground_ratio: float) -> tuple[float, float, float]:
    """(left, top, side) of the square around the middle of ``box``, in its pixels."""
    left, top, right, bottom = box
    side = max(right - left, bottom - top) / foreground_ratio
    return (left + right - side) / 2, (top + bottom - side) / 2, side


def _resampled(rgba: np.ndarray, crop: tuple[float, float, float], size: int) -> np.ndarray:
    """The square ``crop`` of straight-alpha ``rgba`` (H, W, 4) float as (size, size, 4) uint8; outside is clear."""
    left, top, side = crop
    x0, y0 = math.floor(left) - 2, math.floor(top) - 2
    n = math.ceil(side) + 5
    padded = np.zeros((n, n, 4), np.float32)
    height, width = rgba.shape[:2]
    inside = rgba[max(y0, 0) : min(y0 + n, height), max(x0, 0) : min(x0 + n, width)]
    oy, ox = max(-y0, 0), max(-x0, 0)
    padded[oy : oy + inside.shape[0], ox : ox + inside.shape[1]] = inside
    padded[..., :3] *= padded[..., 3:]
    # Hamming, as the others overshoot: they leave a faint ring of alpha around a sharp edge.
    kernel = Image.Resampling.HAMMING if side > size else Image.Resampling.BILINEAR
    box = (left - x0, top - y0, left - x0 + side, top - y0 + side)
    channels = [Image.fromarray(padded[..., c]).resize((size, size), kernel, box) for c in range(4)]
    premultiplied = np.clip(np.dstack([np.asarray(c) for c in channels]), 0, 1)
    alpha = np.round(premultiplied[..., 3:] * 255)
    color = np.where(alpha > 0, premultiplied[..., :3] / np.maximum(premultiplied[..., 3:], 1e-6), 0)
    return np.concatenate([np.round(np.clip(color, 0, 1) * 255), alpha], 2).astype(np.uint8)
