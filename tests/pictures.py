"""Photos of one object that tests draw themselves, so that its true place and alpha are known."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from trilift.photo import Photo, load_photo

# Example pictures that lie beside a checkout on some machines; tests do without them elsewhere.
PICTURES = Path(__file__).parents[1].parent / "shared" / "data" / "images"


def rectangle(
    left: int, top: int, right: int, bottom: int, *, size: tuple[int, int] = (100, 80), alpha: int = 255
) -> Photo:
    """A red rectangle on a clear, green ground; ``size`` is (width, height)."""
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    pixels[..., 1] = 255
    pixels[top:bottom, left:right] = (255, 0, 0, alpha)
    return load_photo(pixels)


def drawn(
    shape: str,
    color: tuple[float, float, float],
    ground: tuple[float, float, float] | np.ndarray,
    *,
    side: int = 200,
    shadow: float = 0.0,
    noise: float = 0.0,
    jpeg: int | None = None,
) -> tuple[Photo, np.ndarray]:
    """A shaded shape before a ground, and its true alpha (side, side)."""
    y, x = np.meshgrid(*[(np.arange(3 * side) + 0.5) / (3 * side)] * 2, indexing="ij")
    disc = np.hypot(x - 0.5, y - 0.5) < 0.25
    inside = {
        "disc": disc,
        "ring": disc & (np.hypot(x - 0.5, y - 0.5) > 0.13),
        "post": (np.abs(x - 0.5) < 0.15) & (y > 0.3),
        "table": ((np.abs(y - 0.3) < 0.03) & (np.abs(x - 0.5) < 0.3))
        | ((np.abs(np.abs(x - 0.5) - 0.25) < 0.012) & (y > 0.3) & (y < 0.85)),
    }[shape]
    alpha = inside.reshape(side, 3, side, 3).mean((1, 3))
    y, x = y[1::3, 1::3], x[1::3, 1::3]
    backdrop = np.broadcast_to(np.asarray(ground, float), (side, side, 3))
    backdrop = backdrop * (1 - shadow * np.exp(-(((x - 0.55) / 0.25) ** 2) - ((y - 0.75) / 0.07) ** 2))[..., None]
    shade = (1 - 0.5 * (x - 0.5))[..., None]
    pixels = alpha[..., None] * np.clip(np.array(color) * shade, 0, 1) + (1 - alpha[..., None]) * backdrop
    pixels += np.random.default_rng(7).normal(0, noise, pixels.shape) if noise else 0
    image = Image.fromarray(np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    if jpeg is not None:
        out = io.BytesIO()
        image.save(out, "JPEG", quality=jpeg)
        image = Image.open(out)
    return load_photo(image), alpha


def gradient(side: int = 200) -> np.ndarray:
    y, x = np.meshgrid(*[np.linspace(0, 1, side)] * 2, indexing="ij")
    return np.stack([0.3 + 0.5 * x, 0.5 + 0.3 * y, 0.8 - 0.3 * x * y], -1)


def foliage(side: int = 200) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(side, side, 3)), (3, 3, 0))
    return np.clip((0.4 + 0.12 * noise / noise.std()) * [0.6, 1.1, 0.5], 0, 1)
