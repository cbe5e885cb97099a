"""Render training views in plain torch, many at once, on any device: what `train.render` does with embree.

A z-buffer without compiled code. The rows of samples that cut each triangle, then the samples of each row, are listed
with tensor operations, and the nearest triangle of a sample is the least of integers that hold depth and index, so the
order in which a GPU works does not matter. Only the samples that are hit are coloured, once each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .objects import TrainingObject
from .render import CropCamera, camera_axes, surface_normals
from .textures import SkinPainter, sample_area

_CHUNK = 1 << 22  # samples in triangles' boxes per pass; changes memory, never results
_INDEX_BITS = 26  # of a key; the 36 above it are depth
_DEPTH_STEPS = (1 << 36) - 1
_NOTHING = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class _Eyes:
    """V cameras as tensors: rows right, up, back (V, 3, 3), and distance, centre right, centre up, half, each (V,)."""

    axes: Tensor
    distance: Tensor
    right: Tensor
    up: Tensor
    half: Tensor

    @classmethod
    def of(cls, cameras: Sequence[CropCamera], like: Tensor) -> _Eyes:
        axes = np.stack([camera_axes(c.azimuth_deg, c.elevation_deg) for c in cameras])
        numbers = np.array([[c.distance, *c.center, c.half] for c in cameras]).T
        return cls(torch.as_tensor(axes).to(like), *torch.as_tensor(numbers).to(like).unbind(0))


class TorchCaster:
    """An object ready to be drawn, as `train.render.Caster` without embree.

    Args:
        obj: what is rendered; both sides of every face are seen. At most 2^26 faces.
        device: where.
    """

    def __init__(self, obj: TrainingObject, device: str | torch.device = "cpu") -> None:
        place = torch.device(device)
        self.vertices = _wide(obj.vertices, place)
        self.faces = torch.as_tensor(obj.faces.astype(np.int64), device=place)
        self.colors = torch.as_tensor(obj.colors.astype(np.float32), device=place)
        flat, corner = (torch.as_tensor(normals, device=place) for normals in surface_normals(obj))
        self.flat_normals, self.corner_normals = flat, corner
        self.painter = None if obj.skin is None else SkinPainter(obj.skin, obj.vertices, obj.faces, place)

    def views(
        self,
        cameras: Sequence[CropCamera],
        image_size: int,
        *,
        supersample: int = 2,
        smooth: Sequence[bool] | None = None,
    ) -> np.ndarray:
        """Render crops.

        Args:
            cameras: V cameras, each beyond the object's reach.
            image_size: pixels per side.
            supersample: samples per pixel and axis.
            smooth: for each camera, whether normals are interpolated where the surface bends gently; no unless given.

        Returns:
            (V, image_size, image_size, 7) uint8 as `train.render.Caster.view` gives them.
        """
        side = image_size * supersample
        eyes = _Eyes.of(cameras, self.vertices)
        local = self.vertices @ eyes.axes.transpose(1, 2)  # (V, N, 3) right, up, back
        nearest = self._nearest(local, eyes, side)
        sample = (nearest != _NOTHING).nonzero()[:, 0]
        face = nearest[sample] & ((1 << _INDEX_BITS) - 1)
        full = torch.zeros(len(nearest), 7, device=sample.device)
        full[sample] = self._paint(
            local, eyes, sample, face, side, [False] * len(cameras) if smooth is None else smooth
        )
        return _shrink(full.reshape(len(cameras), side, side, 7), supersample)

    def view(self, camera: CropCamera, image_size: int, *, supersample: int = 2, smooth: bool = False) -> np.ndarray:
        """`views` of one camera: (image_size, image_size, 7) uint8."""
        return self.views([camera], image_size, supersample=supersample, smooth=[smooth])[0]

    def _nearest(self, local: Tensor, eyes: _Eyes, side: int) -> Tensor:
        """Key of the nearest triangle, its index in the lowest bits, of each sample (V * side * side,)."""
        inverse = 1 / (eyes.distance[:, None] - local[..., 2])
        x = (local[..., 0] * inverse - eyes.right[:, None]) / eyes.half[:, None]
        y = (local[..., 1] * inverse - eyes.up[:, None]) / eyes.half[:, None]
        # Column, row, closeness of each corner; sample centres lie at whole numbers and a half.
        screen = torch.stack([(1 + x) / 2 * side, (1 - y) / 2 * side, inverse], -1)
        triangles = screen[:, self.faces].reshape(-1, 3, 3)
        closest, farthest = inverse.max(), inverse.min()
        nearest = torch.full((len(local) * side * side,), _NOTHING, device=local.device)
        for part in _chunks(triangles, side):
            triangle, row, column, close = _fragments(triangles[part], side)
            triangle = part[triangle]
            far = ((closest - close) / (closest - farthest).clamp(min=1e-30)).clamp(0, 1)
            key = ((far * _DEPTH_STEPS).long() << _INDEX_BITS) + triangle % len(self.faces)
            view = torch.div(triangle, len(self.faces), rounding_mode="floor")
            nearest.scatter_reduce_(0, (view * side + row) * side + column, key, "amin")
        return nearest

    def _paint(
        self, local: Tensor, eyes: _Eyes, sample: Tensor, face: Tensor, side: int, smooth: Sequence[bool]
    ) -> Tensor:
        """Colour, 255 and the camera-frame normal, (H, 7) float32, of samples (H,) that see faces (H,)."""
        view = torch.div(sample, side * side, rounding_mode="floor")
        column, row = sample % side, torch.div(sample, side, rounding_mode="floor") % side
        x = eyes.right[view] + ((column + 0.5) / side * 2 - 1) * eyes.half[view]
        y = eyes.up[view] - ((row + 0.5) / side * 2 - 1) * eyes.half[view]
        toward = torch.stack([x, y, -torch.ones_like(x)], -1)
        corners = local[view[:, None], self.faces[face]]
        weights = _weights(corners, eyes.distance[view], toward).float()[..., None]
        color = (self.colors[self.faces[face]] * weights).sum(1)
        if self.painter is not None:
            flat = (eyes.axes[view].float() @ self.flat_normals[face][..., None])[..., 0]
            depth = eyes.distance[view] - (corners[..., 2] * weights[..., 0]).sum(1)
            area = sample_area((2 * eyes.half[view] / side) ** 2, depth, (toward * flat).sum(-1))
            color = self.painter.paint(color, face, weights[..., 0], area)
        bent = (self.corner_normals[face] * weights).sum(1)
        soft = torch.tensor(list(smooth), device=sample.device)[view, None]
        normal = torch.where(soft, bent, self.flat_normals[face])
        normal = (eyes.axes[view].float() @ normal[..., None])[..., 0]
        away = (toward.float() * normal).sum(-1, keepdim=True) > 0
        normal = torch.where(away, -normal, normal)
        normal = normal / normal.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        return torch.cat([color, torch.full_like(color[:, :1], 255), normal], -1)


def _wide(values: np.ndarray, device: torch.device) -> Tensor:
    """As float64, or as float32 on a device that has nothing wider."""
    wide = torch.as_tensor(values.astype(np.float64))
    try:
        return wide.to(device)
    except TypeError:
        return wide.float().to(device)


def _chunks(triangles: Tensor, side: int) -> Iterator[Tensor]:
    """Indices of the triangles that may hold a sample, in parts whose boxes hold about `_CHUNK` samples."""
    low = (triangles[..., :2].amin(1) - 0.5).ceil().clamp(0, side)
    high = (triangles[..., :2].amax(1) - 0.5).ceil().clamp(0, side)
    extent = high - low
    index = (extent > 0).all(1).nonzero()[:, 0]
    part = torch.div(extent[index].prod(1).long().cumsum(0), _CHUNK, rounding_mode="floor")
    yield from index.split(torch.unique_consecutive(part, return_counts=True)[1].tolist())


def _fragments(triangles: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All samples inside triangles (T, 3, 3) of column, row and closeness: triangle, row, column, closeness of each.

    A corner on a row of samples counts as above it, a sample on a cut belongs to its right: triangles that share an
    edge share no sample and miss none. Closeness (1 / depth) is linear over the picture, which depth is not.
    """
    height = triangles[..., 1]
    begin, end = (_first_sample(edge, side) for edge in (height.amin(1), height.amax(1)))
    triangle, row = _runs(begin, end)
    corners = triangles[triangle]
    above = corners[..., 1] <= (row + 0.5)[:, None]
    leaves = above & ~above[:, [1, 2, 0]]  # edges by their first corner; a cut triangle has one down, one up
    enters = ~above & above[:, [1, 2, 0]]
    down, up = (
        _cut(corners, edge.int().argmax(1), row + 0.5, falls) for edge, falls in ((leaves, True), (enters, False))
    )
    swap = (down[:, 0] > up[:, 0])[:, None]
    left, right = torch.where(swap, up, down), torch.where(swap, down, up)
    cut, column = _runs(_first_sample(left[:, 0], side), _first_sample(right[:, 0], side))
    left, right = left[cut], right[cut]
    share = (column + 0.5 - left[:, 0]) / (right[:, 0] - left[:, 0])
    return triangle[cut], row[cut], column, left[:, 1] + share * (right[:, 1] - left[:, 1])


def _first_sample(edge: Tensor, side: int) -> Tensor:
    """Index of the first sample centre at or after a coordinate, 0 to ``side``."""
    return (edge - 0.5).ceil().clamp(0, side).long()


def _runs(begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """For ranges begin .. end (R,): which range, and the number in it, of all numbers in a row."""
    lengths = (end - begin).clamp(min=0)
    which = torch.repeat_interleave(torch.arange(len(begin), device=begin.device), lengths)
    starts = lengths.cumsum(0) - lengths
    return which, begin[which] + torch.arange(len(which), device=begin.device) - starts[which]


def _cut(corners: Tensor, edge: Tensor, row: Tensor, falls: bool) -> Tensor:
    """Column and closeness (R, 2) where edge number ``edge`` (R,) of triangles (R, 3, 3) passes through rows (R,).

    Always worked out from the upper end, so that both triangles of an edge find the very same number.
    """
    rows = torch.arange(len(corners), device=corners.device)
    tail, head = corners[rows, edge], corners[rows, (edge + 1) % 3]
    first, last = (tail, head) if falls else (head, tail)
    share = ((row - first[:, 1]) / (last[:, 1] - first[:, 1]))[:, None]
    return first[:, [0, 2]] + share * (last[:, [0, 2]] - first[:, [0, 2]])


def _weights(corners: Tensor, distance: Tensor, toward: Tensor) -> Tensor:
    """Barycentric weights (H, 3), >= 0, where rays ``toward`` (H, 3) from (0, 0, distance) pierce triangles (H, 3, 3).

    Source:
        Möller and Trumbore 1997.
    """
    a, b, c = corners.unbind(1)
    across = torch.linalg.cross(toward, c - a)
    eye = -a + torch.nn.functional.pad(distance[:, None], (2, 0))
    volume = ((b - a) * across).sum(-1)
    volume = torch.where(volume.abs() < 1e-30, torch.full_like(volume, 1e-30), volume)
    u = (eye * across).sum(-1) / volume
    v = (toward * torch.linalg.cross(eye, b - a)).sum(-1) / volume
    weights = torch.stack([1 - u - v, u, v], -1).clamp(0, 1)
    return weights / weights.sum(-1, keepdim=True)


def _shrink(full: Tensor, factor: int) -> np.ndarray:
    """(V, S, S, 7) samples → (V, S / factor, S / factor, 7) uint8; colour and normal over the hit samples only."""
    v, h, w, c = full.shape
    total = full.reshape(v, h // factor, factor, w // factor, factor, c).sum((2, 4))
    hits = (total[..., 3:4] / 255).clamp(min=1)
    normal = total[..., 4:] / total[..., 4:].norm(dim=-1, keepdim=True).clamp(min=1e-9)
    packed = torch.cat([total[..., :3] / hits, total[..., 3:4] / factor**2, 128 + 127 * normal], -1)
    return packed.round().clamp(0, 255).to(torch.uint8).cpu().numpy()
