"""The cut-out before the lift: shown, and corrected by a brush or a box.

A correction becomes ``<name>_mask.png`` beside the session's copy of the photo, which is what a lift takes for its
mask, here and on the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from trilift import Cutout, TriliftError, cut_out, load_photo

from .intake import MAX_PIXELS, RefusedError

ADD_COLOR, REMOVE_COLOR = "#00a800", "#d80000"
EDITOR_SIDE = 768
_MAX_LAYER_PIXELS = 4_000_000
_HOW = {
    "alpha": "The picture's own transparency.",
    "mask": "Your correction, or the mask beside the picture.",
    "rembg": "Background removed by the learned remover.",
    "classical": "Background removed by colours alone.",
    "keep": "The whole picture.",
}


@dataclass(frozen=True)
class Box:
    """A box in a photo, in percent of its width and height from its left upper corner."""

    left: float = 0.0
    top: float = 0.0
    right: float = 100.0
    bottom: float = 100.0

    @property
    def is_whole(self) -> bool:
        """Whether it leaves nothing out."""
        return (self.left, self.top, self.right, self.bottom) == (0.0, 0.0, 100.0, 100.0)

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) px, right and bottom excluded.

        Raises:
            RefusedError: fewer than 16 px on a side.
        """
        left, right = (round(width * value / 100) for value in (self.left, self.right))
        top, bottom = (round(height * value / 100) for value in (self.top, self.bottom))
        if right - left < 16 or bottom - top < 16:
            raise RefusedError(
                f"The box is {right - left} x {bottom - top} px; at least 16 px a side are needed. Make it larger."
            )
        return max(left, 0), max(top, 0), min(right, width), min(bottom, height)


def mask_path(photo: Path) -> Path:
    """Where the mask of a photo lies."""
    return photo.with_name(f"{photo.stem}_mask.png")


def describe_cutout(cutout: Cutout) -> str:
    """How the cut-out was made, and a line for each of its warnings."""
    return "\n".join([_HOW[cutout.method], *cutout.warnings])


def for_editor(photo: Path) -> np.ndarray:
    """The photo as it is painted on: (H, W, 3) uint8 over white, at most `EDITOR_SIDE` px a side."""
    image = Image.fromarray(load_photo(photo, max_pixels=MAX_PIXELS).source_image)
    image.thumbnail((EDITOR_SIDE, EDITOR_SIDE))
    white = Image.new("RGBA", image.size, "white")
    return np.array(Image.alpha_composite(white, image).convert("RGB"))


def read_layers(files: Sequence[Path | BytesIO]) -> list[np.ndarray]:
    """Painted layers as (H, W, 4) uint8 each.

    Raises:
        TriliftError: one is no picture, or too large.
    """
    layers = []
    for file in files:
        try:
            with Image.open(file) as opened:
                if opened.width * opened.height > _MAX_LAYER_PIXELS:
                    raise RefusedError("The painted layer has too many pixels. Load the photo again.")
                layers.append(np.array(opened.convert("RGBA")))
        except RefusedError:
            raise
        except Exception as error:  # whatever a plugin raises on a damaged file
            raise RefusedError("The painted layer cannot be read. Load the photo again.") from error
    return layers


def correct(photo: Path, background: str, box: Box, layers: Sequence[np.ndarray]) -> Cutout:
    """Cut the object out anew, and keep what came of it as the photo's mask.

    Args:
        photo: the session's copy.
        background: ``auto``, ``keep`` or ``remove``; inside the box that is how the object is found.
        box: nothing outside of it belongs to the object.
        layers: (H, W, 4) uint8, painted over the whole photo: what is greener than red belongs to the object, what is
            redder does not.

    Raises:
        TriliftError: nothing is left, or the box is too small.
    """
    mask_path(photo).unlink(missing_ok=True)
    pixels = load_photo(photo, max_pixels=MAX_PIXELS).source_image
    height, width = pixels.shape[:2]
    left, top, right, bottom = box.pixels(width, height)
    mask = np.zeros((height, width), np.uint8)
    try:
        mask[top:bottom, left:right] = _found(np.ascontiguousarray(pixels[top:bottom, left:right]), background)
    except TriliftError:
        if not layers:
            raise  # with a brush the object may be painted by hand
    for layer in layers:
        mask = _painted(mask, layer)
    if not (mask > 127).any():
        raise RefusedError(f"{photo.name}: nothing is left of the picture. Paint the object green, or reset.")
    from trilift.asset import write_png

    write_png(np.stack([mask] * 3, -1), mask_path(photo))
    try:
        return cut_out(load_photo(photo, max_pixels=MAX_PIXELS))
    except TriliftError:
        mask_path(photo).unlink(missing_ok=True)
        raise


def _found(pixels: np.ndarray, background: str) -> np.ndarray:
    """The object's alpha (H, W) uint8 in a part of a photo (H, W, 4)."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    cutout = cut_out(load_photo(pixels), background=background, size=max(side, 64))  # type: ignore[arg-type]
    if cutout.method == "keep":
        return np.full((height, width), 255, np.uint8)
    left, top, shown = cutout.crop
    scale = cutout.image.shape[0] / shown
    alpha = Image.fromarray(cutout.image[..., 3])
    # Output pixel (x, y) of the part is at ((x - left) * scale, (y - top) * scale) of the cut-out.
    affine = (scale, 0.0, -left * scale, 0.0, scale, -top * scale)
    return np.array(alpha.transform((width, height), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))


def _painted(mask: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """A mask (H, W) with a painted layer (h, w, 4) laid over it."""
    size = (mask.shape[1], mask.shape[0])
    paint = np.array(Image.fromarray(layer).resize(size, Image.Resampling.NEAREST)).astype(np.int16)
    touched = paint[..., 3] > 127
    keeps = paint[..., 1] > paint[..., 0]
    return np.where(touched, np.where(keeps, 255, 0), mask).astype(np.uint8)
