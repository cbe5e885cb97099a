"""Objects warped anew at every step: rendered as they are drawn, from the meshes that packed data was made from.

Every warp is a projective map: it keeps planes plane, so that a warped mesh bounds just the warped solid, and labelled
points stay true. Stretched, tapered, sheared and put together, 2,000 objects do not come again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from multiview.errors import SettingsError

from .batches import Drawn, PackedData, PointCounts
from .materials import random_material, random_recolor, random_sun, recolored
from .objects import TrainingObject, find_meshes, load_object
from .render import Caster, random_crop_camera
from .textures import Skin

LARGEST_TAPER = 0.45
MOST_WARPED = 1.9  # times as long as wide, against the original


@dataclass(frozen=True)
class WarpSettings:
    """How objects are warped.

    Attributes:
        warped: chance that an object is warped at all.
        joined: chance that another object stands beside or on it.
        stretch: standard deviation of the log of the factor along each axis.
        taper: standard deviation of how much wider one end is than the other, over the length of the box.
        shear: standard deviation of the lean, as a slope.
        painted: chance of a pattern over the colours (`train.materials`).
        sunlit: chance that the pictures show the shadows and the gloss of a sun; `train.batches.light` uses them.
    """

    warped: float = 0.85
    joined: float = 0.2
    stretch: float = 0.3
    taper: float = 0.25
    shear: float = 0.06
    painted: float = 0.0
    sunlit: float = 0.0


def random_warp(rng: np.random.Generator, settings: WarpSettings) -> np.ndarray:
    """A projective map (4, 4) of homogeneous points in the cube [-0.5, 0.5]³, whose depth stays positive there."""
    factors = np.exp(rng.normal(scale=settings.stretch, size=3))
    if rng.random() < 0.5:
        factors[1] = factors[0]  # round things stay round
    factors = np.clip(factors, MOST_WARPED**-0.5, MOST_WARPED**0.5)
    matrix = np.diag([*factors, 1.0])
    if rng.random() < 0.5:
        tapers = np.clip(rng.normal(scale=settings.taper, size=3) * (0.4, 0.4, 1.0), -LARGEST_TAPER, LARGEST_TAPER)
        matrix[3, :3] = tapers
    if rng.random() < 0.4:
        lean = np.eye(4)
        lean[:2, 2] = rng.normal(scale=settings.shear, size=2)
        matrix = lean @ matrix
    return matrix


def projected(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 3) by a projective map (4, 4), float32."""
    mapped = points.astype(np.float64) @ matrix[:, :3].T + matrix[:, 3]
    return (mapped[:, :3] / mapped[:, 3:]).astype(np.float32)


@dataclass
class _Part:
    """An object with all its labelled points, in one frame."""

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray
    points: np.ndarray
    inside: np.ndarray
    near: np.ndarray
    near_inside: np.ndarray
    surface: np.ndarray
    surface_colors: np.ndarray
    skin: Skin | None

    def moved(self, scale: float, offset: np.ndarray) -> _Part:
        names = ("vertices", "points", "near", "surface")
        return _Part(**{**vars(self), **{n: (getattr(self, n) * scale + offset).astype(np.float32) for n in names}})

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        return self.vertices.min(0), self.vertices.max(0)

    def centred(self) -> _Part:
        low, high = self.box
        scale = 1 / max(float((high - low).max()), 1e-9)
        return self.moved(scale, -(low + high) / 2 * scale)


class WarpedData(Drawn):
    """Packed data and the meshes behind it, as a source of batches; see `train.batches.PackedData`.

    Args:
        folder: of ``train.prepare``, whose points are warped.
        meshes: folder of the meshes that it was made from; every one is read once and kept.
        image_size: pixels per side of the pictures.
        settings: how objects are warped.

    Raises:
        SettingsError: no packed data, objects of ``train.deform --studio``, or none of the meshes is there.
    """

    def __init__(
        self, folder: str | Path, meshes: str | Path, image_size: int, settings: WarpSettings | None = None
    ) -> None:
        self.packed, self.image_size, self.settings = PackedData(folder), image_size, settings or WarpSettings()
        if self.packed.arrays["views"].shape[-1] > 7:
            raise SettingsError(
                f"{folder}: made by train.deform --studio, so its points are not those of {meshes}. Put the folder of "
                "train.prepare first in data."
            )
        self.paths = {path.stem: path for path in find_meshes(meshes)}
        self.rows = [row for row, name in enumerate(self.packed.names) if name in self.paths]
        self._read: dict[int, TrainingObject] = {}
        if not self.rows:
            raise SettingsError(f"{meshes}: none of the meshes that {folder} was made from. Give the same folder.")

    def __len__(self) -> int:
        return len(self.rows)

    def draw(
        self, rng: np.random.Generator, views: int, counts: PointCounts
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """See `train.batches.Drawn.draw`."""
        part = self._part(rng, counts)
        if rng.random() < self.settings.joined:
            other = self._part(rng, counts)
            if part.skin is None and other.skin is None:  # pictures of two objects are not put together
                part = joined(part, other, rng)
        obj = TrainingObject("warped", part.vertices, part.faces, part.colors, part.skin)
        cameras = [random_crop_camera(obj.vertices, rng) for _ in range(views)]
        smooth = [bool(rng.random() < 0.5) for _ in cameras]
        material = random_material(rng) if rng.random() < self.settings.painted else None
        sun = random_sun(rng) if rng.random() < self.settings.sunlit else None
        pictures = Caster(obj, material, sun).views(cameras, self.image_size, smooth=smooth)
        on, colors = part.surface[: counts.surface], part.surface_colors[: counts.surface].astype(np.float32)
        colors = colors if material is None else material.paint(on, colors)
        blur = rng.normal(scale=0.02, size=on.shape).astype(np.float32)
        labels = {
            "points": np.concatenate([part.points[: counts.uniform], part.near[: counts.near]]),
            "inside": np.concatenate([part.inside[: counts.uniform], part.near_inside[: counts.near]]),
            "surface": on + blur,
            "colors": colors / 255,
            "reach": np.abs(part.vertices).max(0) + 0.02,
        }
        return pictures, np.stack([c.as_row() for c in cameras]), labels

    def _part(self, rng: np.random.Generator, counts: PointCounts) -> _Part:
        """A random object, warped and recoloured, centred, longest side 1; more points than are needed."""
        row = self.rows[int(rng.integers(len(self.rows)))]
        if row not in self._read:
            self._read[row] = load_object(self.paths[self.packed.names[row]])
        obj, a = self._read[row], self.packed.arrays
        half = a["points"].shape[1] // 2

        def some(count: int, low: int, high: int) -> slice:
            start = low + int(rng.integers(0, max(1, high - low - 2 * count)))
            return slice(start, min(start + 2 * count, high))

        uniform, near = some(counts.uniform, 0, half), some(counts.near, half, 2 * half)
        surface = some(counts.surface, 0, a["surface"].shape[1])
        colors, painted, skin = obj.colors, a["colors"][row, surface], obj.skin
        if rng.random() < self.settings.warped:
            matrix, table = random_warp(rng, self.settings), random_recolor(rng)
            colors, painted = recolored(colors, table), recolored(painted, table)
            skin = None if skin is None else skin.recolored(table)
        else:
            matrix = np.eye(4)
        return _Part(
            projected(matrix, obj.vertices), obj.faces, colors,
            projected(matrix, a["points"][row, uniform]), a["inside"][row, uniform].astype(np.float32),
            projected(matrix, a["points"][row, near]), a["inside"][row, near].astype(np.float32),
            projected(matrix, a["surface"][row, surface]), painted, skin,
        ).centred()  # fmt: skip


def joined(first: _Part, other: _Part, rng: np.random.Generator) -> _Part:
    """Another object beside or on top of the first, their boxes touching; points of one in the other's box go."""
    other = other.moved(float(rng.uniform(0.35, 1.0)), np.zeros(3))
    axis = int(rng.choice(3, p=[0.25, 0.25, 0.5]))
    sign = 1.0 if axis == 2 else float(rng.choice([-1.0, 1.0]))
    (low, high), (low2, high2) = first.box, other.box
    offset = rng.uniform(-0.25, 0.25, 3) * (high - low)
    if axis != 2:
        offset[2] = low[2] - low2[2]  # on the same ground
    offset[axis] = high[axis] - low2[axis] if sign > 0 else low[axis] - high2[axis]
    other = other.moved(1.0, offset)

    def merged(name: str, label: str) -> tuple[np.ndarray, np.ndarray]:
        kept = []
        for part, beside in ((first, other), (other, first)):
            points, (a, b) = getattr(part, name), beside.box
            free = ~((points >= a) & (points <= b)).all(1)
            kept.append((points[free], getattr(part, label)[free]))
        points, labels = (np.concatenate([k[i] for k in kept]) for i in range(2))
        order = rng.permutation(len(points))
        return points[order], labels[order]

    points, inside = merged("points", "inside")
    near, near_inside = merged("near", "near_inside")
    order = rng.permutation(len(first.surface) + len(other.surface))
    return _Part(
        np.concatenate([first.vertices, other.vertices]),
        np.concatenate([first.faces, other.faces + len(first.vertices)]),
        np.concatenate([first.colors, other.colors]),
        points, inside, near, near_inside,
        np.concatenate([first.surface, other.surface])[order],
        np.concatenate([first.surface_colors, other.surface_colors])[order],
        None,
    ).centred()  # fmt: skip
