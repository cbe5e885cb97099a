"""What objects of plain colours lack to look like photographed ones: solid patterns, a sun with shadows, gloss.

Patterns are functions of the place in the object, so that pictures from all sides and the colours asked for at points
agree. Light is worked out by rays against the object itself: what stands in its own shadow is dark in the picture, and
its colour is still what it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Bytes = NDArray[np.uint8]

_WAVES = 6
_CYCLES = (1.5, 12.0)  # per longest side: coarser is a change of colour, finer is lost in pictures of 96 pixels
_LIFT = 2e-3  # of the longest side: shadow rays start off the surface by this
_SOFT = 0.06  # how far the sun's direction varies: the edges of shadows
KINDS = ("grain", "veins", "spots", "bands", "bricks")


@dataclass(frozen=True, eq=False)
class Material:
    """A solid pattern.

    Attributes:
        kind: of `KINDS`.
        waves: (K, 3) cycles per longest side, and ``phases`` (K,), of a smooth noise.
        strength: how much of the other colour there is at most, in [0, 1]; of ``grain`` the log of the brightness.
        other: (3,) sRGB in [0, 255], the second colour.
        share: of the surface that has the second colour, roughly; of ``bricks`` that of a joint in a brick's height.
    """

    kind: str
    waves: NDArray[np.float32]
    phases: NDArray[np.float32]
    strength: float
    other: NDArray[np.float32]
    share: float

    def paint(self, points: Floats, colors: Floats | Bytes) -> NDArray[np.float32]:
        """Colours (N, 3) in [0, 255] at points (N, 3) of an object of longest side 1, with the pattern."""
        colors = np.asarray(colors, np.float32)
        if self.kind == "grain":
            return np.clip(colors * np.exp(self.strength * self._noise(points))[:, None], 0, 255)
        mixed = colors + (self.strength * self._second(points))[:, None] * (self.other - colors)
        return np.asarray(mixed, np.float32)

    def _noise(self, points: Floats) -> NDArray[np.float32]:
        """Smooth noise (N,) of mean 0 and deviation about 1."""
        turns = np.asarray(points, np.float32) @ self.waves.T + self.phases
        return np.asarray(np.cos(2 * np.pi * turns).sum(1) * np.sqrt(2 / len(self.phases)), np.float32)

    def _second(self, points: Floats) -> NDArray[np.float32]:
        """How much (N,) in [0, 1] the second colour has of each point."""
        points = np.asarray(points, np.float32)
        if self.kind == "spots":
            return _rise(self._noise(points), 2.4 * (0.5 - self.share), 0.3)
        along = points @ self.waves[0] + self.phases[0]
        if self.kind == "veins":
            bent = along + 0.35 * self._noise(points)
            return np.asarray((0.5 + 0.5 * np.cos(2 * np.pi * bent)) ** 3, np.float32)
        if self.kind == "bands":
            return _rise(np.cos(2 * np.pi * along), 1 - 2 * self.share, 0.4)
        pitch = float(np.linalg.norm(self.waves[0]))  # bricks to a longest side, upward
        row = np.floor(points[:, 2] * pitch)
        level = np.abs((points[:, 2] * pitch) % 1 - 0.5)
        beside = [np.abs((points[:, k] * pitch / 2 + row / 2) % 1 - 0.5) for k in (0, 1)]
        # A wall shows the joints that run across it; the larger of both is always one of these.
        joint = np.maximum(level, np.maximum(*beside) * 0.98)
        return _rise(joint, 0.5 - self.share / 2, 0.12)


def _rise(value: Floats, middle: float, width: float) -> NDArray[np.float32]:
    """0 below ``middle``, 1 above, with a soft step of ``width``."""
    return np.asarray(np.clip((value - middle) / width + 0.5, 0, 1), np.float32)


def random_material(rng: np.random.Generator) -> Material:
    """A pattern of any kind in any colour."""
    kind = str(rng.choice(KINDS))
    low, high = np.log(_CYCLES)
    cycles = np.exp(rng.uniform(low, high, (_WAVES, 1)))
    directions = rng.normal(size=(_WAVES, 3))
    waves = cycles * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    strength = rng.uniform(0.05, 0.3) if kind == "grain" else rng.uniform(0.25, 0.9)
    return Material(
        kind=kind, waves=waves.astype(np.float32), phases=rng.random(_WAVES).astype(np.float32),
        strength=float(strength), other=(255 * rng.random(3) ** 0.8).astype(np.float32),
        share=float(rng.uniform(0.1, 0.25) if kind == "bricks" else rng.uniform(0.15, 0.5)),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Sun:
    """A light that casts shadows, and how much of it a surface throws back like a mirror.

    Attributes:
        toward: (3,) unit direction to the sun, world frame, z up.
        gloss: brightness of a highlight's middle, in [0, 1]; 0 for a matt surface.
        hardness: exponent of the highlight; large is small and sharp.
    """

    toward: NDArray[np.float32]
    gloss: float = 0.0
    hardness: float = 30.0

    def shade(
        self, scene: Any, points: Floats, normals: Floats, toward_camera: Floats
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Light that falls on points of a surface.

        Args:
            scene: of embree.
            points: (N, 3), longest side 1.
            normals: (N, 3) unit, on the side of the camera.
            toward_camera: (N, 3) unit.

        Returns:
            (N,) cosine of the sun's direction, 0 in shadow, and (N,) highlight, both in [0, 1].
        """
        scatter = np.random.default_rng(len(points)).normal(scale=_SOFT, size=(len(points), 3)).astype(np.float32)
        toward = (self.toward + scatter).astype(np.float32)
        toward /= np.sqrt(np.einsum("nc,nc->n", toward, toward))[:, None]
        cosine = np.clip(np.einsum("nc,nc->n", normals, toward), 0, 1)
        facing = np.flatnonzero(cosine > 0)
        if len(facing):
            starts = (points + _LIFT * normals).astype(np.float32)[facing]
            cosine[facing[scene.run(np.ascontiguousarray(starts), np.ascontiguousarray(toward[facing])) >= 0]] = 0
        highlight = np.zeros(len(points))
        if self.gloss:
            middle = self.toward + toward_camera
            length = np.sqrt(np.einsum("nc,nc->n", middle, middle))
            sharp = np.clip(np.einsum("nc,nc->n", normals, middle) / np.maximum(length, 1e-6), 0, 1) ** self.hardness
            highlight = self.gloss * sharp * (cosine > 0)
        return cosine.astype(np.float32), highlight.astype(np.float32)


def random_sun(rng: np.random.Generator) -> Sun:
    """A sun anywhere above the ground; half of all surfaces are matt."""
    azimuth, height = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(12, 80))
    flat = np.cos(height)
    toward = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(height)], np.float32)
    gloss = float(rng.uniform(0.1, 0.8)) if rng.random() < 0.5 else 0.0
    return Sun(toward, gloss, float(np.exp(rng.uniform(np.log(6), np.log(80)))))


def random_recolor(rng: np.random.Generator) -> Bytes:
    """A table (3, 256) uint8 of a gamma curve for each channel; the order of channels is the trainer's business."""
    gammas = np.exp(rng.normal(scale=0.25, size=(3, 1)))
    return np.round(255 * (np.arange(256) / 255) ** gammas).astype(np.uint8)


def recolored(colors: Bytes, table: Bytes) -> Bytes:
    """Colours (N, 3) uint8 through a table of `random_recolor`; a skin goes through `Skin.recolored`."""
    return np.stack([table[c][colors[:, c]] for c in range(3)], 1)
