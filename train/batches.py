"""Batches for the embedded model from packed data: pictures under random light, points in the picture's frame.

What a step sees depends on the seed and the step's number alone, so that a run that was stopped goes on to the same
numbers without any sampler state.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lrm.tiny import ELEVATION_UNIT_DEG, USUAL_LOG_FOCAL
from multiview.errors import SettingsError

from .render import camera_axes

# Chance that the view to be rendered is the one that the network sees: a thin part whose depth it cannot know must then
# stand somewhere, in place of everywhere a little.
OWN_VIEW = 0.5
MOST_GROWTH = 1.3  # of an object whose picture is stretched: it must stay within the field's box
COLOR_JITTER = 0.02  # of the longest side: colour is asked for near the surface, not only on it


@dataclass(frozen=True)
class Augment:
    """Chances and strengths of what is done to a picture; 0 everywhere gives it as rendered, unlit.

    Attributes:
        lit: chance of directional light; else the plain colours.
        mirror: chance of a left-right mirror image of picture and object.
        swap: chance of permuted colour channels in picture and object.
        exposure: standard deviation of the log of the picture's brightness.
        ragged: chance of a matte grown or shrunk by about half a pixel.
        stretch: standard deviation of the log of how much wider a single photo is made, and its object with it: what a
            camera sees of an object stretched across its line of sight is its picture, stretched.
        snapshot: chance of a camera's faults: white balance, gamma, blur, noise.
    """

    lit: float = 0.75
    mirror: float = 0.5
    swap: float = 0.3
    exposure: float = 0.12
    ragged: float = 0.2
    stretch: float = 0.0
    snapshot: float = 0.0


@dataclass(frozen=True)
class Batch:
    """One step's data: B objects with V views each, in the upright frame of each first view (`lrm.tiny`).

    Attributes:
        images: (B, V, 4, S, S) float in [0, 1], straight RGBA.
        projections: (B, V, 3, 4) upright frame → picture.
        camera: (B, 2) what the camera head should say of the first view.
        points: (B, P, 3); ``uniform`` of them come first, then those near the surface, then free space.
        occupancy: (B, P) float 0 or 1.
        weight: (B, P) float, 0 where the label is not known.
        surface: (B, Q, 3).
        colors: (B, Q, 3) float sRGB.
        known: (B,) 1 where the network is told the cameras.
        target: (B, 4, S, S) unlit straight RGBA of one more view or of the first one, or None where nothing is to be
            rendered.
        target_projection: (B, 3, 4) its camera; the last view's where there is no target.
    """

    images: Tensor
    projections: Tensor
    camera: Tensor
    points: Tensor
    occupancy: Tensor
    weight: Tensor
    surface: Tensor
    colors: Tensor
    known: Tensor
    target_projection: Tensor
    target: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved = {name: value.to(device, non_blocking=True) for name, value in vars(self).items() if value is not None}
        return Batch(**moved)


class Source(ABC):
    """Where a batch's objects come from: `PackedData` here, `train.warped.WarpedData`, `train.ringviews.RingViews`."""

    @abstractmethod
    def sample(
        self,
        rng: np.random.Generator,
        views: int,
        counts: PointCounts,
        image_size: int,
        scene_radius: float,
        augment: Augment,
        with_target: bool,
    ) -> dict[str, Tensor]:
        """One object of a `Batch`: its tensors without the batch's dimension, ``known`` left out."""


class Drawn(Source):
    """A source of packed pictures with their cameras and labels."""

    @abstractmethod
    def draw(
        self, rng: np.random.Generator, views: int, counts: PointCounts
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """A random object.

        Returns:
            Pictures (views, S, S, 7) uint8, their cameras (views, 6), and labels as `PackedData.labels` gives them.
        """

    def sample(
        self,
        rng: np.random.Generator,
        views: int,
        counts: PointCounts,
        image_size: int,
        scene_radius: float,
        augment: Augment,
        with_target: bool,
    ) -> dict[str, Tensor]:
        """See `Source`."""
        return _sample(self, rng, views, counts, image_size, scene_radius, augment, with_target)


class PackedData(Drawn):
    """The arrays that ``train.prepare`` wrote, mapped into memory.

    Raises:
        SettingsError: the folder is not a finished packed data set.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        try:
            self.names: list[str] = json.loads((folder / "objects.json").read_text("utf-8"))["names"]
            arrays = ("views", "cameras", "points", "inside", "surface", "colors")
            self.arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays}
        except (OSError, ValueError, KeyError) as error:
            raise SettingsError(
                f"{folder}: not packed training data ({error}). "
                f"Make it with: python -m train.prepare MESHES -o {folder}"
            ) from error

    def __len__(self) -> int:
        return len(self.names)

    def draw(
        self, rng: np.random.Generator, views: int, counts: PointCounts
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """See `Drawn.draw`."""
        obj, packed_views = int(rng.integers(len(self))), self.arrays["views"].shape[1]
        chosen = rng.choice(packed_views, views, replace=packed_views < views)
        pictures = np.stack([self.arrays["views"][obj, v] for v in chosen])
        return pictures, np.stack([self.arrays["cameras"][obj, v] for v in chosen]), self.labels(obj, rng, counts)

    def labels(self, obj: int, rng: np.random.Generator, counts: PointCounts) -> dict[str, np.ndarray]:
        """Random slices of one object's points: uniform ones, ones near the surface, coloured ones on it."""
        a = self.arrays
        half = a["points"].shape[1] // 2
        rows = [
            slice(s, s + n)
            for n, low in ((counts.uniform, 0), (counts.near, half))
            for s in (low + int(rng.integers(0, half - n + 1)),)
        ]
        first = int(rng.integers(0, a["surface"].shape[1] - counts.surface + 1))
        on = a["surface"][obj, first : first + counts.surface].astype(np.float32)
        blur = rng.normal(scale=COLOR_JITTER, size=on.shape).astype(np.float32) * rng.random((len(on), 1), np.float32)
        return {
            "points": np.concatenate([a["points"][obj, r] for r in rows]).astype(np.float32),
            "inside": np.concatenate([a["inside"][obj, r] for r in rows]).astype(np.float32),
            "surface": on + blur,
            "colors": a["colors"][obj, first : first + counts.surface].astype(np.float32) / 255,
            "reach": np.abs(a["surface"][obj].astype(np.float32)).max(0) + 0.02,
        }


@dataclass(frozen=True)
class PointCounts:
    """Points of one object and step: uniform in its cube, near its surface, anywhere in the frame, with colour."""

    uniform: int = 1024
    near: int = 512
    free: int = 192
    surface: int = 256


def object_projection(camera: np.ndarray) -> np.ndarray:
    """Homogeneous object points → (right, up, depth) of the picture of a `CropCamera` row: (3, 4) float64.

    Right and up are in [-1, 1] over the crop after division by depth, which is 1 at the origin.
    """
    azimuth, elevation, distance, cx, cy, half = (float(x) for x in camera)
    right, up, back = camera_axes(azimuth, elevation)
    away = np.append(-back, distance)
    return np.stack([(np.append(right, 0) - cx * away) / half, (np.append(up, 0) - cy * away) / half, away]) / distance


def upright_frame(camera: np.ndarray, *, centred: bool) -> np.ndarray:
    """Homogeneous object points → the upright frame of a picture (`lrm.tiny`): (4, 4) float64.

    Args:
        camera: a `CropCamera` row.
        centred: pretend that the camera looks at the crop's centre, as is done for a single photo, by shearing the
            object along the camera's axis; else the frame's origin is the object's.
    """
    azimuth, elevation, distance, cx, cy, half = (float(x) for x in camera)
    unit = distance * half
    local = np.zeros((4, 4))
    local[:3, :3], local[3, 3] = camera_axes(azimuth, elevation) / unit, 1
    if centred:
        # The picture shows (right / z - c) / half with z = distance - back, so a point keeps its pixel when it is
        # moved by -c * z / distance in units of half the image at the origin.
        local[0, :3] += cx / half * local[2, :3] * half
        local[1, :3] += cy / half * local[2, :3] * half
        local[0, 3], local[1, 3] = -cx / half, -cy / half
    e = np.deg2rad(elevation)
    turn = np.zeros((4, 4))
    turn[0, 2], turn[0, 1] = np.cos(e), -np.sin(e)
    turn[1, 0] = 1
    turn[2, 2], turn[2, 1] = np.sin(e), np.cos(e)
    turn[3, 3] = 1
    return turn @ local


def transformed(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 3) by an affine (4, 4), float32."""
    return (points @ matrix[:3, :3].T.astype(np.float32) + matrix[:3, 3].astype(np.float32)).astype(np.float32)


def free_points(
    from_object: np.ndarray, reach: np.ndarray, radius: float, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Points anywhere in the upright frame's cube of half side ``radius``.

    Returns:
        (count, 3), and (count,) 1 where they are outside the object's box and so empty, else 0.
    """
    points = rng.uniform(-radius, radius, (count, 3)).astype(np.float32)
    outside = (np.abs(transformed(np.linalg.inv(from_object), points)) > reach).any(1)
    return points, outside.astype(np.float32)


def light(view: Tensor, rng: np.random.Generator, augment: Augment) -> Tensor:
    """Shade one packed view (S, S, 7 or 9) uint8 → RGBA (4, S, S) float in [0, 1].

    With nine channels the sun is the one of `train.materials.Sun`, else one that casts no shadow.
    """
    data = view.permute(2, 0, 1).float() / 255
    color, alpha = data[:3], data[3:4]
    if rng.random() < augment.lit:
        normal = data[4:7] * (255 / 127) - 128 / 127
        azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(-0.2, 1.2)
        toward = rng.uniform(0.1, 1.0)
        sun = torch.tensor([np.cos(azimuth) * np.cos(height), np.sin(height) + 0.2, toward], dtype=torch.float32)
        sun = sun / sun.norm()
        ambient = rng.uniform(0.35, 0.8)
        sky = 1 + rng.uniform(0, 0.25) * normal[1]
        cosine = data[7] if len(data) > 7 else (normal * sun[:, None, None]).sum(0).clamp(min=0)
        shade = ambient * sky + (1.15 - ambient) * cosine
        tint = torch.tensor(1 + rng.normal(scale=0.03, size=(3, 1, 1)), dtype=torch.float32)
        lit = color.clamp(min=1e-4) ** 2.2 * shade * tint + (data[8] if len(data) > 8 else 0)
        color = lit.clamp(1e-6, 1) ** (1 / 2.2)
    if augment.exposure:
        color = (color * float(np.exp(rng.normal(scale=augment.exposure)))).clamp(0, 1)
    if rng.random() < augment.ragged:
        alpha = ((alpha - 0.5) * rng.uniform(1, 3) + 0.5 + rng.uniform(-0.4, 0.4)).clamp(0, 1) * (alpha > 0)
    if augment.snapshot and rng.random() < augment.snapshot:
        color = snapshot(color, alpha, rng)
    return torch.cat([color * (alpha > 0), alpha])


def snapshot(color: Tensor, alpha: Tensor, rng: np.random.Generator) -> Tensor:
    """Colours (3, S, S) of a cut-out with matte (1, S, S) as a pocket camera has them: tint, gamma, blur, noise."""
    gains = torch.tensor(np.exp(rng.normal(scale=0.07, size=(3, 1, 1))), dtype=torch.float32)
    color = (color.clamp(min=1e-4) ** float(np.exp(rng.normal(scale=0.15))) * gains).clamp(0, 1)
    if rng.random() < 0.5:
        side = color.shape[-1]
        small = max(8, int(side * rng.uniform(0.45, 0.9)))
        both = torch.cat([color * alpha, alpha])[None]
        blurred = F.interpolate(F.interpolate(both, (small, small), mode="area"), (side, side), mode="bilinear")[0]
        color = (blurred[:3] / blurred[3:].clamp(min=0.05)).clamp(0, 1)
    noise = rng.normal(scale=0.03 * rng.random(), size=tuple(color.shape)).astype(np.float32)
    return (color + torch.from_numpy(noise)).clamp(0, 1)


def resized(image: Tensor, size: int) -> Tensor:
    """Straight RGBA (4, S, S) → (4, size, size), averaged where colour is premultiplied, as a cut-out is."""
    if image.shape[-1] == size:
        return image
    premultiplied = torch.cat([image[:3] * image[3:], image[3:]])
    small = F.interpolate(premultiplied[None], (size, size), mode="bilinear", antialias=True)[0]
    return torch.cat([(small[:3] / small[3:].clamp(min=1e-4)).clamp(0, 1), small[3:]])


def random_stretch(inside: Tensor, rng: np.random.Generator, deviation: float) -> tuple[float, float]:
    """How much wider and higher a photo is made; its longer side stays as long as it was.

    Args:
        inside: (S, S) bool silhouette about the picture's middle.
        rng: all randomness.
        deviation: of the log of the ratio of both; it stays within two of these.

    Returns:
        Factors across and along the picture; 1 and 1 where the object would grow by more than `MOST_GROWTH`, or where
        nothing is inside.
    """
    ratio = float(np.exp(np.clip(rng.normal(scale=deviation), -2 * deviation, 2 * deviation)))
    height, width = (int(inside.any(axis).sum()) for axis in (1, 0))
    if not height:  # too thin to fill a pixel, such as a sheet from its edge
        return 1.0, 1.0
    along = max(width, height) / max(ratio * width, height)
    return (ratio * along, along) if max(along, ratio * along) <= MOST_GROWTH else (1.0, 1.0)


def stretched(image: Tensor, across: float, along: float) -> Tensor:
    """A straight RGBA picture (4, S, S) made wider and higher by these factors about its middle."""
    if across == along == 1.0:
        return image
    matrix = image.new_tensor([[[1 / across, 0, 0], [0, 1 / along, 0]]])
    grid = F.affine_grid(matrix, [1, 4, *image.shape[1:]], align_corners=False)
    premultiplied = torch.cat([image[:3] * image[3:], image[3:]])[None]
    moved = F.grid_sample(premultiplied, grid, align_corners=False)[0]
    return torch.cat([(moved[:3] / moved[3:].clamp(min=1e-4)).clamp(0, 1), moved[3:]])


def unlit(view: Tensor) -> Tensor:
    """One packed view (S, S, 7) uint8 → straight RGBA (4, S, S) float in [0, 1], plain colours."""
    return view[..., :4].permute(2, 0, 1).float() / 255


def make_batch(
    sources: Sequence[tuple[Source, float]],
    *,
    seed: int,
    step: int,
    batch_size: int,
    views: int,
    counts: PointCounts,
    image_size: int,
    scene_radius: float,
    augment: Augment,
    known: float,
    target: bool = False,
) -> Batch:
    """Assemble the batch of one step.

    Args:
        sources: packed data and how often each is drawn from.
        seed, step: all randomness.
        batch_size: objects; ``views`` pictures of each.
        counts: points per object.
        image_size, scene_radius: as the model's.
        augment: what is done to pictures.
        known: chance that the network is told a single photo's camera; those of several views always are.
        target: also give one more view to be rendered.
    """
    rng = np.random.default_rng([seed, step])
    chances = np.array([weight for _, weight in sources])
    rows: list[dict[str, Tensor]] = []
    for which in rng.choice(len(sources), batch_size, p=chances / chances.sum()):
        rows.append(sources[which][0].sample(rng, views, counts, image_size, scene_radius, augment, target))
    told = np.ones(batch_size) if views > 1 else rng.random(batch_size) < known
    columns = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return Batch(**columns, known=torch.from_numpy(told.astype(np.float32)))


def _sample(
    data: Drawn,
    rng: np.random.Generator,
    views: int,
    counts: PointCounts,
    image_size: int,
    scene_radius: float,
    augment: Augment,
    with_target: bool,
) -> dict[str, Tensor]:
    """One object of a `Batch`."""
    pictures, rows, labels = data.draw(rng, views + with_target, counts)
    if with_target and rng.random() < OWN_VIEW:
        pictures[-1], rows[-1] = pictures[0], rows[0]
    packed, cameras = [torch.from_numpy(picture) for picture in pictures], list(rows)
    lit, frame = [light(view, rng, augment) for view in packed[:views]], upright_frame(cameras[0], centred=views == 1)
    across, along = 1.0, 1.0
    if augment.stretch and views == 1:
        across, along = random_stretch(lit[0][3] > 0.5, rng, augment.stretch)
        lit = [stretched(lit[0], across, along)]
        frame = np.diag([along, across, along, 1]) @ frame
    images = [resized(image, image_size) for image in lit]
    images += [resized(unlit(view), image_size) for view in packed[views:]]
    empty, sure = free_points(frame, labels["reach"], scene_radius, counts.free, rng)
    points = np.concatenate([transformed(frame, labels["points"]), empty])
    surface, colors = transformed(frame, labels["surface"]), labels["colors"]
    projections = np.stack([object_projection(camera) @ np.linalg.inv(frame) for camera in cameras])
    projections[:views] = np.diag([across, along, 1]) @ projections[:views]
    if rng.random() < augment.mirror:
        images = [image.flip(2) for image in images]
        points, surface = points * (1, -1, 1), surface * (1, -1, 1)
        projections[:, :, 1] *= -1
        projections[:, 0] *= -1
    if rng.random() < augment.swap:
        order = rng.permutation(3)
        images = [image[[*order, 3]] for image in images]
        colors = colors[:, order]
    projections /= projections[:, 2:, 3:]
    head = (float(cameras[0][1]) / ELEVATION_UNIT_DEG, float(np.log(along / cameras[0][5])) - USUAL_LOG_FOCAL)
    known = np.concatenate([np.ones(len(labels["inside"]), np.float32), sure])
    arrays = {
        "projections": projections[:views], "target_projection": projections[-1], "camera": np.array(head),
        "points": points, "occupancy": np.concatenate([labels["inside"], np.zeros(counts.free)]), "weight": known,
        "surface": surface, "colors": np.ascontiguousarray(colors),
    }  # fmt: skip
    tensors = {name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in arrays.items()}
    if with_target:
        tensors["target"] = images.pop()
    return {"images": torch.stack(images), **tensors}
