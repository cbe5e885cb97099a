"""Random draws: numbers, choices, and colours of real things."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from .blocks import Color, Part

T = TypeVar("T")

# Palettes of things that have their own colours: never drawn from all hues.
_NATURAL = {
    "skin",
    "bread",
    "bark",
    "leaf",
    "white",
    "dark",
    "rubber",
    "stone",
    "hair",
    "fur",
    "glass",
    "metal",
    "light",
}

# Representative sRGB colours; every draw varies them a little.
PALETTES: dict[str, tuple[str, ...]] = {
    "wood": ("8b5a2b", "a9713f", "c89b63", "6b4226", "4a2c1a", "deb887", "b5803f", "e3c49a", "5c4033"),
    "metal": ("9aa0a6", "6f757b", "c0c4c8", "43474b", "d8dadc", "7d8489", "2f3235"),
    "brass": ("c9a227", "b08d57", "d4af37", "b87333", "e0bc5a"),
    "painted": (
        "c0392b",
        "2e5fa8",
        "2f8f4e",
        "e0a91b",
        "f2f2ee",
        "2b2b2b",
        "d35400",
        "1f7a8c",
        "7a4fa3",
        "8d1f2f",
        "5aa9c9",
        "e7e1cf",
        "54606b",
        "b3433f",
        "efc94c",
    ),
    "plastic": (
        "e53935",
        "1e88e5",
        "43a047",
        "fdd835",
        "fb8c00",
        "8e24aa",
        "00acc1",
        "f06292",
        "fafafa",
        "212121",
        "7cb342",
        "ff7043",
    ),
    "fabric": (
        "d9d4c7",
        "8c8c8c",
        "6d7f99",
        "9c5b4b",
        "3f4f5f",
        "c4b08b",
        "557a5a",
        "b06a7a",
        "efe9dd",
        "2f3b46",
        "7b5b3a",
        "a33b3b",
        "e8ddd0",
    ),
    "ceramic": (
        "f4f1e8",
        "e8e2d0",
        "3b6ea5",
        "b5523b",
        "d96b3f",
        "6fa287",
        "26456b",
        "e0c185",
        "fafafa",
        "7f3b2d",
        "d64530",
        "88b2c4",
        "2f2f33",
    ),
    "clay": ("b5623c", "c97b4f", "9c4f30", "d99468", "8a5a3c"),
    "glass": ("a8cfe0", "7fb4cc", "c9e3ec", "5f93a8", "8fb8a0", "2f4a58", "3a5566"),
    "leaf": ("3f8f3f", "2f6f34", "6aa84f", "8fbf4d", "4c9a5e", "25592b", "a3b83c", "57a773"),
    "autumn": ("d9822b", "c0392b", "e0b12f", "a8521e", "d97fa6"),
    "bark": ("6b4a2f", "5a3d28", "8a6a4a", "7a5c42", "9b8568"),
    "stone": ("8d8d8d", "a7a39b", "6f6c68", "bdb7a9", "7c8790", "565a60", "9c8f7f"),
    "brick": ("a4553d", "8f4a38", "b96a4a", "7b3f30"),
    "wall": (
        "efe6d2",
        "e2d2b0",
        "d9c7b8",
        "f5f2ea",
        "c9d3d6",
        "e8b98f",
        "b9c7a5",
        "cf8f7a",
        "a9bccb",
        "f0d98c",
        "b59a7d",
        "8c7461",
    ),
    "roof": ("b5482f", "8c3b2a", "4a5560", "6b4a3a", "35404d", "c96a3b", "7a2f2f", "3f6b6b", "59636b", "d9772f"),
    "skin": ("f1c9a5", "e0ac7d", "c68642", "8d5524", "5c3a21", "ffdbac"),
    "hair": ("2b1b12", "4a2f1b", "8a5a2b", "d9b36b", "1a1a1a", "a84a2a", "b0b0b0"),
    "fur": ("8a5a32", "c49a6c", "4a3728", "e8e0d2", "2f2f2f", "b5703a", "9a9a9a", "d9c4a0"),
    "dark": ("1c1c1e", "2a2a2d", "3a3a3d", "26292c"),
    "rubber": ("1f1f20", "2c2c2d", "38383a"),
    "light": ("fff2b3", "ffe28a", "fdf6d8", "f7e7a1"),
    "white": ("f8f8f5", "f0eee8", "fdfdfb", "e9e9e6"),
    "flower": ("e84a6f", "f2c12e", "b05cc6", "f7f3ef", "e8703a", "5a7fd6", "d63b3b"),
    "bread": ("d9a15a", "c98a3f", "b8742e", "e3b878", "9a5f2a"),
}


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number in [low, high)."""
    return float(rng.uniform(low, high))


def chance(rng: np.random.Generator, probability: float = 0.5) -> bool:
    """True with ``probability``."""
    return bool(rng.random() < probability)


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of ``options``, all alike likely."""
    return options[int(rng.integers(len(options)))]


def whole(rng: np.random.Generator, low: int, high: int) -> int:
    """A whole number in [low, high], both ends included."""
    return int(rng.integers(low, high + 1))


def from_hex(text: str) -> Color:
    """``rrggbb`` → (r, g, b)."""
    return int(text[0:2], 16), int(text[2:4], 16), int(text[4:6], 16)


def vary(rng: np.random.Generator, color: Color, amount: float = 0.05) -> Color:
    """A colour near ``color``: hue moves by up to amount / 3, saturation and brightness by up to ``amount``."""
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in color))
    h += float(rng.uniform(-1, 1)) * amount / 3
    s = min(max(s * (1 + float(rng.uniform(-2, 2)) * amount), 0), 1)
    v = min(max(v * (1 + float(rng.uniform(-1.5, 1.5)) * amount), 0.05), 1)
    r, g, b = colorsys.hsv_to_rgb(h % 1, s, v)
    return round(r * 255), round(g * 255), round(b * 255)


def shade(color: Color, factor: float) -> Color:
    """``color`` darker (factor < 1) or lighter (factor > 1, toward white)."""
    if factor <= 1:
        r, g, b = (round(c * factor) for c in color)
    else:
        r, g, b = (round(255 - (255 - c) / factor) for c in color)
    return r, g, b


def hue(rng: np.random.Generator, *names: str) -> Color:
    """A varied colour of one of the named palettes, all alike likely; one made thing in twenty has any hue at all."""
    color = from_hex(pick(rng, PALETTES[pick(rng, names)]))
    if chance(rng, 0.05) and not _NATURAL.intersection(names):
        r, g, b = colorsys.hsv_to_rgb(float(rng.random()), uniform(rng, 0.2, 0.9), uniform(rng, 0.3, 0.95))
        color = round(r * 255), round(g * 255), round(b * 255)
    return vary(rng, color)


def accent(rng: np.random.Generator, base: Color, *names: str) -> Color:
    """A colour of the named palettes that stands out from ``base`` (tries a few and keeps the most different)."""
    options = [hue(rng, *names) for _ in range(3)]
    return max(options, key=lambda c: sum(abs(a - b) for a, b in zip(c, base, strict=True)))


def mottled(rng: np.random.Generator, part: Part, amount: float = 0.06) -> Part:
    """The block with each face a little darker or lighter, as stone, bark or thatch is."""
    factor = 1 + rng.uniform(-amount, amount, (len(part.faces), 1))
    return replace(part, colors=np.clip(part.colors * factor, 0, 255).astype(np.uint8))


def smoothness(rng: np.random.Generator) -> int:
    """Segments round a circle for one object: low-poly, usual or smooth."""
    return pick(rng, (8, 10, 12, 12, 16, 16, 20, 24))
