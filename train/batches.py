"""Batches for the embedded model from packed data: pictures under random light, points in the picture's frame.

What a step sees depends on the seed and the step's number alone, so that a run that was stopped goes on to the same
numbers without any sampler state.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lrm.tiny import ELEVATION_UNIT_DEG, USUAL_LOG_FOCAL, contract_depth
from multiview.errors import SettingsError

from .render import camera_axes

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
    """

    lit: float = 0.75
    mirror: float = 0.5
    swap: float = 0.3
    exposure: float = 0.12
    ragged: float = 0.2


@dataclass(frozen=True)
class Batch:
    """One step's data.

    Attributes:
        images: (B, 4, S, S) float in [0, 1], straight RGBA.
        points: (B, P, 3) plane coordinates of `lrm.tiny.PictureFrame`.
        occupancy: (B, P) float 0 or 1.
        weight: (B, P) float, 0 where the label is not known.
        surface: (B, Q, 3) plane coordinates.
        colors: (B, Q, 3) float sRGB.
        camera: (B, 2) what the camera head should say.
    """

    images: Tensor
    points: Tensor
    occupancy: Tensor
    weight: Tensor
    surface: Tensor
    colors: Tensor
    camera: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


class PackedData:
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

    def item(self, obj: int, view: int, rng: np.random.Generator, points: int, surface: int) -> dict[str, np.ndarray]:
        """One picture of one object with a random slice of its points; half uniform, half near the surface."""
        a = self.arrays
        half = a["points"].shape[1] // 2
        starts = rng.integers(0, half - points // 2 + 1, 2) + np.array([0, half])
        rows = np.concatenate([np.arange(s, s + points // 2) for s in starts])
        first = rng.integers(0, a["surface"].shape[1] - surface + 1)
        on = a["surface"][obj, first : first + surface].astype(np.float32)
        return {
            "view": a["views"][obj, view].copy(),
            "camera": a["cameras"][obj, view],
            "points": a["points"][obj, rows[0] : rows[-1] + 1][rows - rows[0]].astype(np.float32),
            "inside": a["inside"][obj, rows[0] : rows[-1] + 1][rows - rows[0]].astype(np.float32),
            "surface": on
            + rng.normal(scale=COLOR_JITTER, size=on.shape).astype(np.float32) * rng.random((len(on), 1), np.float32),
            "colors": a["colors"][obj, first : first + surface].astype(np.float32) / 255,
            "reach": np.abs(a["surface"][obj].astype(np.float32)).max(0) + 0.02,
        }


def picture_coordinates(points: np.ndarray, camera: np.ndarray, contraction: float) -> np.ndarray:
    """Object points (N, 3) → plane coordinates (N, 3) under a `CropCamera` row: contracted depth, right, up."""
    azimuth, elevation, distance, cx, cy, half = (float(x) for x in camera)
    local = points @ camera_axes(azimuth, elevation).T.astype(np.float32)
    z = np.maximum(distance - local[:, 2:], 0.05 * distance)
    depth = local[:, 2:] / (distance * half)
    return np.concatenate(
        [contract_depth(torch.from_numpy(depth), contraction).numpy(), (local[:, :2] / z - (cx, cy)) / half], 1
    ).astype(np.float32)


def free_points(
    camera: np.ndarray, reach: np.ndarray, contraction: float, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Points anywhere in the picture's frame.

    Returns:
        Plane coordinates (count, 3), and (count,) 1 where they are outside the object's box and so empty, else 0.
    """
    azimuth, elevation, distance, cx, cy, half = (float(x) for x in camera)
    coordinates = rng.uniform(-1, 1, (count, 3)).astype(np.float32) * (0.97, 1, 1)
    depth = contraction * coordinates[:, :1] / np.sqrt(1 - coordinates[:, :1] ** 2)
    back = depth * distance * half
    plane = coordinates[:, 1:] * half + (cx, cy)
    local = np.concatenate([plane * (distance - back), back], 1)
    world = local @ camera_axes(azimuth, elevation)
    outside = (np.abs(world) > reach).any(1) & (back[:, 0] < 0.95 * distance)
    return coordinates.astype(np.float32), outside.astype(np.float32)


def light(view: Tensor, rng: np.random.Generator, augment: Augment) -> Tensor:
    """Shade one packed view (S, S, 7) uint8 → RGBA (4, S, S) float in [0, 1]."""
    data = view.permute(2, 0, 1).float() / 255
    color, alpha = data[:3], data[3:4]
    if rng.random() < augment.lit:
        normal = data[4:] * (255 / 127) - 128 / 127
        azimuth, height = rng.uniform(0, 2 * np.pi), rng.uniform(-0.2, 1.2)
        toward = rng.uniform(0.1, 1.0)
        sun = torch.tensor([np.cos(azimuth) * np.cos(height), np.sin(height) + 0.2, toward], dtype=torch.float32)
        sun = sun / sun.norm()
        ambient = rng.uniform(0.35, 0.8)
        sky = 1 + rng.uniform(0, 0.25) * normal[1]
        shade = ambient * sky + (1.15 - ambient) * (normal * sun[:, None, None]).sum(0).clamp(min=0)
        tint = torch.tensor(1 + rng.normal(scale=0.03, size=(3, 1, 1)), dtype=torch.float32)
        color = (color.clamp(min=1e-4) ** 2.2 * shade * tint).clamp(1e-6, 1) ** (1 / 2.2)
    if augment.exposure:
        color = (color * float(np.exp(rng.normal(scale=augment.exposure)))).clamp(0, 1)
    if rng.random() < augment.ragged:
        alpha = ((alpha - 0.5) * rng.uniform(1, 3) + 0.5 + rng.uniform(-0.4, 0.4)).clamp(0, 1) * (alpha > 0)
    return torch.cat([color * (alpha > 0), alpha])


def resized(image: Tensor, size: int) -> Tensor:
    """Straight RGBA (4, S, S) → (4, size, size), averaged where colour is premultiplied, as a cut-out is."""
    if image.shape[-1] == size:
        return image
    premultiplied = torch.cat([image[:3] * image[3:], image[3:]])
    small = F.interpolate(premultiplied[None], (size, size), mode="bilinear", antialias=True)[0]
    return torch.cat([(small[:3] / small[3:].clamp(min=1e-4)).clamp(0, 1), small[3:]])


def make_batch(
    sources: Sequence[tuple[PackedData, float]],
    *,
    seed: int,
    step: int,
    batch_size: int,
    points: int,
    free: int,
    surface: int,
    image_size: int,
    contraction: float,
    augment: Augment,
) -> Batch:
    """Assemble the batch of one step.

    Args:
        sources: packed data and how often each is drawn from.
        seed, step: all randomness.
        batch_size, points, free, surface: pictures; labelled, free-space and coloured points per picture.
        image_size, contraction: as the model's.
        augment: what is done to pictures.
    """
    rng = np.random.default_rng([seed, step])
    chances = np.array([weight for _, weight in sources])
    rows: list[tuple[Tensor, ...]] = []
    for which in rng.choice(len(sources), batch_size, p=chances / chances.sum()):
        data = sources[which][0]
        obj, view = int(rng.integers(len(data))), int(rng.integers(data.arrays["views"].shape[1]))
        rows.append(_sample(data.item(obj, view, rng, points, surface), rng, free, contraction, augment))
    rows = [(resized(image, image_size), *others) for image, *others in rows]
    return Batch(*(torch.stack(column) for column in zip(*rows, strict=True)))


def _sample(
    item: dict[str, np.ndarray], rng: np.random.Generator, free: int, contraction: float, augment: Augment
) -> tuple[Tensor, ...]:
    camera = item["camera"]
    image = light(torch.from_numpy(item["view"]), rng, augment)
    empty, known = free_points(camera, item["reach"], contraction, free, rng)
    points = np.concatenate([picture_coordinates(item["points"], camera, contraction), empty])
    surface = picture_coordinates(item["surface"], camera, contraction)
    colors = item["colors"]
    if rng.random() < augment.mirror:
        image = image.flip(2)
        points, surface = points * (1, -1, 1), surface * (1, -1, 1)
    if rng.random() < augment.swap:
        order = rng.permutation(3)
        image, colors = image[[*order, 3]], colors[:, order]
    head = (float(camera[1]) / ELEVATION_UNIT_DEG, -float(np.log(camera[5])) - USUAL_LOG_FOCAL)
    return (
        image,
        torch.from_numpy(points.astype(np.float32)),
        torch.from_numpy(np.concatenate([item["inside"], np.zeros(free, np.float32)])),
        torch.from_numpy(np.concatenate([np.ones(len(item["inside"]), np.float32), known])),
        torch.from_numpy(surface.astype(np.float32)),
        torch.from_numpy(np.ascontiguousarray(colors)),
        torch.tensor(head),
    )
