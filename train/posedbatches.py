"""Batches for the published families: pictures with cameras, placed in the model's world as inference places them.

A model that lifts one photo assumes its camera: azimuth 0, on the axis through the picture's middle, at a distance at
which the object is as large as it looks. So the world is turned, moved and scaled until the conditioning view's camera
is the assumed one, and the cameras of all other views with it. A model that takes views is told their cameras: its
world is only scaled.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from multiview.cameras import Cameras, crop_intrinsics, orbit, rays, yaw_rotation
from multiview.errors import SettingsError, TriliftError

from .batches import Augment, PackedData, PointCounts, light, resized, unlit
from .layouts import find_posed, read_posed
from .posed import PosedObject, ReadFlags

_KEPT = 4096  # objects of a folder whose cameras stay in memory
_OPAQUE = 0.99  # pictures whose least alpha is above have no matte
_OBJECT_ALPHA = 0.05
_ON_OBJECT = 0.8  # share of the patches whose middle is drawn within the object's box


@dataclass(frozen=True)
class LabelledPoints:
    """Points of an object in the world of its cameras.

    Attributes:
        points: (N, 3).
        inside: (N,) bool.
        surface, colors: (Q, 3), colours sRGB in [0, 1].
    """

    points: np.ndarray
    inside: np.ndarray
    surface: np.ndarray
    colors: np.ndarray


@dataclass(frozen=True)
class Shots:
    """Some views of an object, as one step sees them.

    Attributes:
        lit: (K, 4, H, W) straight RGBA as a network may see them.
        plain: the same as they should be rendered.
        cameras: K.
        points: or None where there are none.
    """

    lit: Tensor
    plain: Tensor
    cameras: Cameras
    points: LabelledPoints | None = None


class PosedSource(Protocol):
    """Where objects come from."""

    @property
    def names(self) -> Sequence[str]:
        """What the objects are called in an error."""
        ...

    def views_of(self, obj: int) -> int:
        """How many views an object has."""
        ...

    def shots(self, obj: int, views: Sequence[int], rng: np.random.Generator, counts: PointCounts) -> Shots:
        """Views of an object, with random light and random points of it."""
        ...


def packed_camera(row: np.ndarray) -> Cameras:
    """A `train.render.CropCamera` row as a camera in the object's world."""
    azimuth, elevation, distance, x, y, half = (float(value) for value in row)
    placed = orbit(azimuth, elevation, distance, 90.0)
    k = torch.eye(3)
    k[0, 0] = k[1, 1] = 0.5 / half
    k[0, 2], k[1, 2] = 0.5 - 0.5 * x / half, 0.5 + 0.5 * y / half
    return Cameras(placed.c2w, k[None])


class PackedShots:
    """Packed data of ``train.prepare`` as a `PosedSource`: under random light, with labelled points.

    Raises:
        SettingsError: the folder is not packed data.
    """

    def __init__(self, folder: str | Path, augment: Augment) -> None:
        self.data, self.augment = PackedData(folder), augment
        self.names: Sequence[str] = self.data.names

    def views_of(self, obj: int) -> int:
        """See `PosedSource`."""
        return int(self.data.arrays["views"].shape[1])

    def shots(self, obj: int, views: Sequence[int], rng: np.random.Generator, counts: PointCounts) -> Shots:
        """See `PosedSource`."""
        rows = [torch.from_numpy(self.data.arrays["views"][obj, v].copy()) for v in views]
        cameras = Cameras.cat([packed_camera(self.data.arrays["cameras"][obj, v]) for v in views])
        labels = self.data.labels(obj, rng, counts)
        points = LabelledPoints(labels["points"], labels["inside"] > 0.5, labels["surface"], labels["colors"])
        lit = torch.stack([light(row, rng, self.augment) for row in rows])
        return Shots(lit, torch.stack([unlit(row) for row in rows]), cameras, points)


class FolderShots:
    """A folder of posed pictures in any layout of ``train.layouts``, as a `PosedSource`.

    Args:
        folder: with one folder an object; points are taken from ``points.npz`` where it is there.
        flags: how the poses are meant, where that is not what the layout says.

    Raises:
        CameraError: no posed pictures.
    """

    def __init__(self, folder: str | Path, flags: ReadFlags | None = None) -> None:
        self.found, self.flags = find_posed(folder), flags
        self.names: Sequence[str] = [str(one.folder) for one in self.found]
        self._read: OrderedDict[int, PosedObject] = OrderedDict()

    def views_of(self, obj: int) -> int:
        """See `PosedSource`."""
        return len(self._object(obj))

    def shots(self, obj: int, views: Sequence[int], rng: np.random.Generator, counts: PointCounts) -> Shots:
        """See `PosedSource`; the pictures have their light already."""
        one = self._object(obj)
        seen = one.views(views)
        if float(seen.alpha.min()) > _OPAQUE:
            raise SettingsError(
                f"{one.folder}: pictures have no transparent background (the least alpha of {len(seen)} is "
                f"{float(seen.alpha.min()):.2f}), so that nothing says where the object ends. Give RGBA pictures, or "
                "mask_path in transforms.json."
            )
        rgba = torch.cat([seen.images, seen.alpha], 1)
        return Shots(rgba, rgba, seen.cameras, self._points(one, rng, counts))

    def _object(self, obj: int) -> PosedObject:
        if obj not in self._read:
            self._read[obj] = read_posed(self.found[obj], self.flags)
            while len(self._read) > _KEPT:
                self._read.popitem(last=False)
        self._read.move_to_end(obj)
        return self._read[obj]

    def _points(self, one: PosedObject, rng: np.random.Generator, counts: PointCounts) -> LabelledPoints | None:
        there = one.labelled_points()
        if there is None:
            return None
        # Points are those of an object of longest side 1; its cameras may see it larger or smaller.
        scale = np.float32((one.scene_radius or 0.5) * 2 * one.flags.scene_scale)
        some = rng.integers(len(there.points), size=counts.uniform + counts.near)
        on = rng.integers(len(there.surface), size=counts.surface)
        return LabelledPoints(
            there.points[some].astype(np.float32) * scale, there.inside[some].astype(bool),
            there.surface[on].astype(np.float32) * scale, there.colors[on].astype(np.float32) / 255,
        )  # fmt: skip


def open_source(folder: str | Path, augment: Augment, flags: ReadFlags | None = None) -> PosedSource:
    """Packed data or a folder of posed pictures, whichever it is.

    Raises:
        CameraError: neither.
    """
    if (Path(folder) / "objects.json").is_file():
        return PackedShots(folder, augment)
    return FolderShots(folder, flags)


@dataclass(frozen=True)
class World:
    """How a family sees the world.

    Attributes:
        distance, focal: of the camera that it assumes, focal length in picture sides; they set the scale.
        single: it lifts one photo, whose camera is taken to be the assumed one.
        foreground_ratio: longest side of the object's box / picture side that conditioning pictures are cropped to,
            or None for pictures as they are.
        image_size: pixels per side of the network's pictures.
    """

    distance: float
    focal: float
    single: bool
    foreground_ratio: float | None
    image_size: int


@dataclass(frozen=True)
class Placing:
    """A similarity of the world: x → turn @ (x - origin) * scale.

    Attributes:
        turn: (3, 3) rotation about z.
        origin: (3,).
        scale: > 0.
    """

    turn: Tensor
    origin: Tensor
    scale: float

    def points(self, points: Tensor) -> Tensor:
        """(N, 3) → (N, 3)."""
        return (points - self.origin) @ self.turn.T * self.scale

    def cameras(self, cameras: Cameras) -> Cameras:
        """The cameras that see the moved world as before."""
        c2w = cameras.c2w.clone()
        c2w[:, :3, :3] = self.turn @ cameras.c2w[:, :3, :3]
        c2w[:, :3, 3] = self.points(cameras.c2w[:, :3, 3])
        return Cameras(c2w, cameras.intrinsics)


def place(cameras: Cameras, world: World, yaw_deg: float = 0.0) -> Placing:
    """Where a family takes an object to be, from the cameras of its conditioning views.

    Args:
        cameras: of the conditioning views, about an object at the origin; one for a single-photo family.
        world: the family's.
        yaw_deg: a further turn, for families that are told their cameras.
    """
    k, positions = cameras.intrinsics, cameras.positions
    if world.single:
        # The point on the axis through the picture's middle that is as deep as the object.
        x, y = (0.5 - k[0, 0, 2]) / k[0, 0, 0], -(0.5 - k[0, 1, 2]) / k[0, 1, 1]
        axis = cameras.c2w[0, :3, :3] @ torch.stack([x, y, torch.tensor(-1.0)])
        depth = float(positions[0] @ cameras.c2w[0, :3, 2])
        origin = positions[0] + max(depth, 1e-6) * axis
        away = positions[0] - origin
        yaw_deg = -math.degrees(math.atan2(float(away[1]), float(away[0])))
        distances = away.norm()[None]
    else:
        origin, distances = torch.zeros(3), positions.norm(dim=-1)
    scale = world.distance / world.focal * float((k[:, 1, 1] / distances).median())
    return Placing(yaw_rotation(yaw_deg), origin, scale)


def cropped_to_object(picture: Tensor, ratio: float) -> tuple[Tensor, tuple[float, float, float, float]]:
    """Crop or pad a picture (4, H, W) to a square with the object in its middle; pixels are moved, never resampled.

    Returns:
        (4, S, S), and the square's left, top, width and height in shares of the picture.

    Raises:
        SettingsError: there is no object in it.
    """
    _, height, width = picture.shape
    rows, columns = (torch.nonzero((picture[3] > _OBJECT_ALPHA).any(axis))[:, 0] for axis in (1, 0))
    if len(rows) == 0:
        raise SettingsError("a conditioning picture is empty: its alpha is 0 everywhere. Leave that view out.")
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    side = max(1, round(max(bottom - top, right - left) / ratio))
    x, y = (left + right - side) // 2, (top + bottom - side) // 2
    out = picture.new_zeros(4, side, side)
    y0, y1, x0, x1 = max(y, 0), min(y + side, height), max(x, 0), min(x + side, width)
    out[:, y0 - y : y1 - y, x0 - x : x1 - x] = picture[:, y0:y1, x0:x1]
    return out, (x / width, y / height, side / width, side / height)


@dataclass(frozen=True)
class PosedBatch:
    """One step's data: B objects, V conditioning views and T patches of other views each, in the model's world.

    Attributes:
        images: (B, V, 4, S, S) straight RGBA.
        c2w, intrinsics: (B, V, 4, 4) and (B, V, 3, 3) of these views.
        elevation: (B,) degrees of the first one's camera.
        origins, directions: (B, T, P * P, 3) rays of the patches, row-major.
        target: (B, T, 4, P, P) straight RGBA.
        background: (B, T, 3) what stands behind target and render.
        points, inside, known: (B, N, 3), (B, N) and (B, N); ``known`` is 0 for objects without points.
        surface, colors, colored: (B, Q, 3), (B, Q, 3) and (B, Q), likewise.
    """

    images: Tensor
    c2w: Tensor
    intrinsics: Tensor
    elevation: Tensor
    origins: Tensor
    directions: Tensor
    target: Tensor
    background: Tensor
    points: Tensor
    inside: Tensor
    known: Tensor
    surface: Tensor
    colors: Tensor
    colored: Tensor


@dataclass(frozen=True)
class SampleSettings:
    """What is taken of an object.

    Attributes:
        input_views: fewest and most conditioning views; fewer than there are is view dropout.
        target_views: views of which a patch is rendered.
        patch_size: P.
        target_size: pixels that a target picture's height is brought to before a patch is cut from it.
        own_view: chance that the first target is the first conditioning view.
        random_yaw: turn the world by any angle, for families that are told their cameras.
        ratio_jitter: the conditioning crop's foreground ratio is off by up to this.
        counts: points per object.
    """

    input_views: tuple[int, int] = (1, 1)
    target_views: int = 3
    patch_size: int = 32
    target_size: int = 128
    own_view: float = 0.3
    random_yaw: bool = False
    ratio_jitter: float = 0.03
    counts: PointCounts = field(default_factory=lambda: PointCounts(uniform=512, near=512, free=0, surface=256))


def sample_object(
    source: PosedSource, obj: int, rng: np.random.Generator, world: World, settings: SampleSettings, views: int
) -> dict[str, Tensor]:
    """One object of a `PosedBatch`; ``views`` conditioning views of it.

    Raises:
        SettingsError: the object has too few views, or something is wrong with one; the message names the object.
    """
    there = source.views_of(obj)
    if there < 2 or there < views:
        raise SettingsError(
            f"{source.names[obj]}: {there} views, expected at least {max(2, views)}. Render more, or lower input_views."
        )
    wanted = views + settings.target_views
    chosen = [int(v) for v in rng.choice(there, wanted, replace=there < wanted)]
    if there < wanted:  # the conditioning views are different ones in any case
        chosen[:views] = [int(v) for v in rng.permutation(there)[:views]]
    if rng.random() < settings.own_view:
        chosen[views] = chosen[0]
    try:
        shots = source.shots(obj, chosen, rng, settings.counts)
        images, cameras = _conditioning(shots, views, world, settings, rng)
    except TriliftError as error:
        if source.names[obj] in str(error):
            raise
        raise SettingsError(f"{source.names[obj]}: {error}") from error
    yaw = float(rng.uniform(0, 360)) if settings.random_yaw and not world.single else 0.0
    placing = place(cameras, world, yaw)
    placed = placing.cameras(cameras)
    height = placed.positions[0, 2] / placed.positions[0].norm()
    targets = _patches(shots.plain[views:], placing.cameras(shots.cameras.select(range(views, wanted))), settings, rng)
    return {
        "images": images, "c2w": placed.c2w, "intrinsics": placed.intrinsics,
        "elevation": torch.rad2deg(torch.asin(height.clamp(-1, 1))), **targets,
        "background": _backgrounds(settings.target_views, rng),
        **_points(shots.points, placing, settings.counts),
    }  # fmt: skip


def _conditioning(
    shots: Shots, views: int, world: World, settings: SampleSettings, rng: np.random.Generator
) -> tuple[Tensor, Cameras]:
    """The conditioning pictures at the network's size, and their cameras."""
    cameras = shots.cameras.select(range(views))
    images, intrinsics = [], cameras.intrinsics.clone()
    for index, picture in enumerate(shots.lit[:views]):
        if world.foreground_ratio is not None:
            off = float(rng.uniform(-settings.ratio_jitter, settings.ratio_jitter))
            picture, box = cropped_to_object(picture, min(1.0, world.foreground_ratio + off))
            intrinsics[index : index + 1] = crop_intrinsics(intrinsics[index : index + 1], *box)
        elif picture.shape[1] != picture.shape[2]:
            raise SettingsError(f"expected square pictures, found {picture.shape[2]} x {picture.shape[1]} px.")
        images.append(resized(picture, world.image_size))
    return torch.stack(images), Cameras(cameras.c2w, intrinsics)


def _patches(plain: Tensor, cameras: Cameras, settings: SampleSettings, rng: np.random.Generator) -> dict[str, Tensor]:
    """A patch of each target view and its rays."""
    size = settings.patch_size
    found: dict[str, list[Tensor]] = {"target": [], "origins": [], "directions": []}
    for index, picture in enumerate(plain):
        seen = resized(picture, max(size, settings.target_size)) if picture.shape[1] == picture.shape[2] else picture
        height, width = seen.shape[1:]
        if min(height, width) < size:
            raise SettingsError(f"expected pictures of at least patch_size={size} px, found {width} x {height} px.")
        top, left = _corner(seen[3], size, rng)
        # The patch is a picture of its own: a crop.
        shares = (left / width, top / height, size / width, size / height)
        one = cameras.select([index])
        origins, directions = rays(Cameras(one.c2w, crop_intrinsics(one.intrinsics, *shares)), size, size)
        found["target"].append(seen[:, top : top + size, left : left + size])
        found["origins"].append(origins[0])
        found["directions"].append(directions[0])
    return {name: torch.stack(values) for name, values in found.items()}


def _corner(alpha: Tensor, size: int, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a patch, mostly about a place within the object's box."""
    height, width = alpha.shape
    low, high = [0, 0], [height, width]
    if rng.random() < _ON_OBJECT and (alpha > _OBJECT_ALPHA).any():
        for axis in (0, 1):
            there = torch.nonzero((alpha > _OBJECT_ALPHA).any(1 - axis))[:, 0]
            low[axis], high[axis] = int(there[0]), int(there[-1]) + 1
    middle = [int(rng.integers(a, b)) for a, b in zip(low, high, strict=True)]
    return tuple(min(max(m - size // 2, 0), n - size) for m, n in zip(middle, (height, width), strict=True))  # type: ignore[return-value]


def _backgrounds(count: int, rng: np.random.Generator) -> Tensor:
    """(count, 3): white, black or grey for a third each of two thirds of the views, any colour for the others."""
    grey = rng.choice([0.0, 0.5, 1.0], (count, 1)).repeat(3, 1)
    any_color = rng.random((count, 3))
    return torch.from_numpy(np.where(rng.random((count, 1)) < 2 / 3, grey, any_color).astype(np.float32))


def _points(points: LabelledPoints | None, placing: Placing, counts: PointCounts) -> dict[str, Tensor]:
    """Points in the model's world; zeros that do not count for an object that has none."""
    n, q = counts.uniform + counts.near, counts.surface
    if points is None:
        return {
            "points": torch.zeros(n, 3), "inside": torch.zeros(n), "known": torch.zeros(n),
            "surface": torch.zeros(q, 3), "colors": torch.zeros(q, 3), "colored": torch.zeros(q),
        }  # fmt: skip
    place_, tensor = placing.points, torch.from_numpy
    return {
        "points": place_(tensor(points.points)), "inside": tensor(points.inside.astype(np.float32)),
        "known": torch.ones(n), "surface": place_(tensor(points.surface)),
        "colors": tensor(np.ascontiguousarray(points.colors, np.float32)), "colored": torch.ones(q),
    }  # fmt: skip


def stack_samples(rows: Sequence[dict[str, Tensor]]) -> PosedBatch:
    """Samples of `sample_object` as a batch."""
    columns: dict[str, Any] = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return PosedBatch(**columns)
