"""Texels and the surface: which point of a mesh each texel shows, and a picture without gaps from their colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from multiview.color import bytes_from_unit

from .field import Field
from .raster import rasterize_flat
from .unwrap import Unwrapped

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

_COLOR_CHUNK = 1 << 16  # points; changes memory, never results


@dataclass(frozen=True, eq=False)
class Texels:
    """The texels that show some surface, row by row from the top.

    Attributes:
        size: texels per side of the square.
        index: (K,) int64, row * size + column, row 0 at the top; ascending.
        face: (K,) int64 face of the mesh.
        weights: (K, 3) float32 barycentric weights of its corners; they sum to 1.
    """

    size: int
    index: Ints
    face: Ints
    weights: Floats

    def blend(self, values: Floats, faces: Ints) -> NDArray[np.float32]:
        """(K, C) or (K,) values of the texels from those of vertices (N, C) or (N,) with ``faces`` (F, 3)."""
        corners = faces[self.face]
        shares = self.weights if values.ndim == 1 else self.weights[..., None]
        mixed = values[corners[:, 0]] * shares[:, 0]
        for corner in (1, 2):
            mixed = mixed + values[corners[:, corner]] * shares[:, corner]
        return np.asarray(mixed, np.float32)


def covered_texels(unwrapped: Unwrapped, size: int) -> Texels:
    """Find the surface under every texel's centre.

    A face that holds no centre gets the texel that its middle lies in, where nothing else is, so that no chart is lost,
    however small.

    Args:
        unwrapped: of some mesh.
        size: texels per side, >= 1.
    """
    places = unwrapped.uvs[unwrapped.faces].astype(np.float64) * size
    places[..., 1] = size - places[..., 1]
    drawn = rasterize_flat(places, size, size)
    face, weights = drawn.face.reshape(-1), drawn.weights.reshape(-1, 3)
    missed = np.setdiff1d(np.arange(len(places)), face)
    middle = np.clip(np.floor(places[missed].mean(1)), 0, size - 1).astype(np.int64)
    at = middle[:, 1] * size + middle[:, 0]
    free = face[at] < 0
    face[at[free]], weights[at[free]] = missed[free], 1 / 3
    index = np.flatnonzero(face >= 0)
    return Texels(size, index, face[index], weights[index].astype(np.float32))


def field_colors(field: Field, points: Floats) -> NDArray[np.float32]:
    """(N, 3) sRGB in [0, 1] of a field at world points (N, 3); what is not a number becomes grey 0.5."""
    color = field.color_function()
    where = torch.as_tensor(np.asarray(points), dtype=torch.float32, device=field.device)
    found = torch.cat([color(chunk).float() for chunk in where.split(_COLOR_CHUNK)]).cpu().numpy()
    return np.where(np.isfinite(found), found, 0.5).clip(0, 1).astype(np.float32)


@torch.no_grad()
def snapped(field: Field, points: Floats, normals: Floats, *, threshold: float, reach: float) -> NDArray[np.float32]:
    """Move points along their normals onto a field's surface, where it is within ``reach``; the others stay.

    A decimated mesh lies a little beside the surface, and there a field may have other colours.

    Args:
        field: what the mesh was taken from.
        points: (N, 3) world units, near its surface.
        normals: (N, 3) unit length, outward.
        threshold: density of the surface.
        reach: how far a point may go, world units.

    Returns:
        (N, 3). The density's raw scale is taken to be linear over ``reach``.
    """
    raw = field.raw_density()
    level = raw.from_density(threshold)
    near, out = (torch.as_tensor(np.asarray(x), dtype=torch.float32, device=field.device) for x in (points, normals))
    moved = []
    for point, normal in zip(near.split(_COLOR_CHUNK), out.split(_COLOR_CHUNK), strict=True):
        here = raw.raw(point) - level
        step = torch.where(here > 0, reach, -reach)[:, None] * normal  # from inside outward, from outside inward
        there = raw.raw(point + step) - level
        crosses = (here * there < 0) & torch.isfinite(here - there)
        share = torch.where(crosses, here / torch.where(crosses, here - there, 1.0), 0.0)
        moved.append(point + share[:, None] * step)
    return torch.cat(moved).cpu().numpy()


def texture_image(texels: Texels, colors: Floats) -> NDArray[np.uint8]:
    """A picture (size, size, 3) uint8 of texels' colours (K, 3) in [0, 1]; every other texel is as the nearest of them.

    The whole gutter is filled, since smaller versions of a picture mix texels from far beyond a chart's border.
    """
    from scipy import ndimage

    image = np.zeros((texels.size**2, 3), np.uint8)
    image[texels.index] = bytes_from_unit(np.asarray(colors).clip(0, 1))
    empty = np.ones(texels.size**2, np.bool_)
    empty[texels.index] = False
    square = image.reshape(texels.size, texels.size, 3)
    if not empty.any():
        return square
    rows, columns = ndimage.distance_transform_edt(
        empty.reshape(texels.size, texels.size), return_distances=False, return_indices=True
    )
    return np.ascontiguousarray(square[rows, columns])
