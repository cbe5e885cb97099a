"""Labelled points of an object: inside or outside, and surface colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lrm.inside import inside_mesh

from .objects import TrainingObject
from .textures import SkinPainter

UNIFORM_REACH = 0.55  # half side of the cube that uniform points fill; the object fills 0.5
NEAR_SIGMAS = (0.01, 0.03, 0.08)


@dataclass(frozen=True)
class PointSet:
    """Points of one object, in its world frame (longest side 1).

    Attributes:
        points: (P, 3) float16; the first half uniform in the cube, the second half near the surface.
        inside: (P,) bool.
        surface: (Q, 3) float16 on the surface, uniform by area.
        colors: (Q, 3) uint8 sRGB at ``surface``.
    """

    points: np.ndarray
    inside: np.ndarray
    surface: np.ndarray
    colors: np.ndarray


def sample_surface(obj: TrainingObject, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``count`` points uniformly by area: positions (count, 3) float64 and sRGB colours (count, 3) uint8.

    Where the surface has a picture, its colour there is read at the picture's full size.
    """
    corners = obj.vertices[obj.faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    face = rng.choice(len(area), count, p=area / area.sum())
    u, v = rng.random((2, count))
    flip = u + v > 1
    u, v = np.where(flip, 1 - u, u), np.where(flip, 1 - v, v)
    weights = np.stack([1 - u - v, u, v], 1)[..., None]
    positions = (corners[face] * weights).sum(1)
    colors = (obj.colors[obj.faces[face]].astype(np.float64) * weights).sum(1)
    if obj.skin is not None:
        painter = SkinPainter(obj.skin, obj.vertices, obj.faces, halvings=False)
        colors = painter.paint(*map(torch.from_numpy, (colors, face, weights[..., 0]))).numpy()
    return positions, np.round(colors).astype(np.uint8)


def label_points(
    obj: TrainingObject,
    rng: np.random.Generator,
    *,
    count: int = 32768,
    surface: int = 8192,
    device: str | torch.device = "cpu",
) -> PointSet:
    """Draw and label points of an object.

    Args:
        obj: longest side 1.
        rng: all randomness.
        count: points with labels; half uniform in the cube of half side `UNIFORM_REACH`, half within some
            `NEAR_SIGMAS` of the surface.
        surface: points with colours.
        device: where winding numbers are summed when libigl is not installed.

    Raises:
        MeshError: as `lrm.inside.inside_mesh`.
    """
    near = count // 2
    on, _ = sample_surface(obj, near, rng)
    near_points = on + rng.normal(size=(near, 3)) * rng.choice(NEAR_SIGMAS, near)[:, None]
    uniform = rng.uniform(-UNIFORM_REACH, UNIFORM_REACH, (count - near, 3))
    # Labels belong to the stored numbers, so round first.
    points = np.concatenate([uniform, near_points]).astype(np.float16)
    positions, colors = sample_surface(obj, surface, rng)
    inside = inside_mesh(obj.vertices, obj.faces, points.astype(np.float64), device=device)
    return PointSet(points, inside, positions.astype(np.float16), colors)
