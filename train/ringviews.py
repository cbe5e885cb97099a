"""A photograph with the ring of views that a generator adds to it, true or made, as a source of batches.

The pictures are those of ``train.rings``. True ones teach the reconstruction model what more views are worth, made ones
how far they can be trusted; both come in any number and order.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lrm.tiny import ELEVATION_UNIT_DEG, USUAL_LOG_FOCAL, crop_views, view_projections
from multiview.cameras import Cameras, orbit
from multiview.ring import ring_cameras
from multiview.views import Views

from .batches import Augment, PackedData, PointCounts, Source, free_points, transformed, upright_frame
from .multiview import RingData

MADE = 0.6  # chance of made views, where there are some
GUESSED = 0.5  # chance that the photograph's camera is the one that the camera head guessed


class RingViews(Source):
    """Rows of ``train.rings`` with the labels of the packed data that they were made from.

    Args:
        folder: of ``train.rings``; where ``python -m train.made`` has been, made views are drawn as well.
        data: folder of the packed data, None for the one that the rings name.

    Raises:
        SettingsError: one of the two is not finished.
    """

    def __init__(self, folder: str | Path, data: str | Path | None = None) -> None:
        self.rings = RingData(folder)
        self.packed = PackedData(data if data is not None else self.rings.data)
        file = Path(folder) / "made.npy"
        self.made = np.load(file, mmap_mode="r") if file.exists() else None

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
        """See `train.batches.Source`; with one view it is the photograph alone."""
        index = int(rng.integers(self.rings.rows))
        row, a = self.rings.row(index), self.rings.arrays
        obj, packed_view = (int(x) for x in a["sources"][index])
        camera = self.packed.arrays["cameras"][obj, packed_view]
        chosen = rng.choice(6, min(views - 1, 6), replace=False).tolist()
        shown = self._shown(index, row["rings"], rng)[chosen]
        elevation, true, focal = (float(x) for x in a["cameras"][index])
        if rng.random() >= GUESSED:
            elevation, focal = true, 1 / float(camera[5])
        photo = orbit(0.0, elevation, focal, math.degrees(2 * math.atan(1 / focal)))
        cropped = _cropped(row["photo"], shown, photo, chosen, image_size)
        target = int(rng.integers(6))
        cameras = Cameras.cat([cropped.cameras, ring_cameras().select([target])])
        projections, _, unit = view_projections(cameras)
        frame = upright_frame(camera, centred=True)
        frame[:3] /= unit
        labels = self.packed.labels(obj, rng, counts)
        empty, sure = free_points(frame, labels["reach"], scene_radius, counts.free, rng)
        head = (true / ELEVATION_UNIT_DEG, -math.log(float(camera[5])) - USUAL_LOG_FOCAL)
        known = np.concatenate([np.ones(len(labels["inside"]), np.float32), sure])
        arrays = {
            "camera": np.array(head),
            "points": np.concatenate([transformed(frame, labels["points"]), empty]),
            "occupancy": np.concatenate([labels["inside"], np.zeros(counts.free)]), "weight": known,
            "surface": transformed(frame, labels["surface"]), "colors": labels["colors"],
        }  # fmt: skip
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in arrays.items()}
        tensors["projections"], tensors["target_projection"] = projections[:-1], projections[-1]
        tensors["images"] = torch.cat([cropped.images, cropped.alpha], 1)
        if with_target:
            tensors["target"] = _enlarged(row["rings"][[target]], image_size)[0]
        if rng.random() < augment.mirror:
            tensors = mirrored(tensors)
        return tensors

    def _shown(self, index: int, true: Tensor, rng: np.random.Generator) -> Tensor:
        """The ring (6, 4, s, s) that is shown: made views, or true ones, some of them spoilt as made ones are."""
        if self.made is not None and rng.random() < MADE:
            return torch.from_numpy(self.made[index].copy()).permute(0, 3, 1, 2).float() / 255
        return spoilt(true, rng) if rng.random() < 0.4 else true


def spoilt(views: Tensor, rng: np.random.Generator) -> Tensor:
    """Views (V, 4, s, s) blurred, shifted by a pixel or two, and noisy, each in its own way."""
    made = []
    for view in views:
        x = torch.cat([view[:3] * view[3:], view[3:]])[None]
        if rng.random() < 0.6:
            small = int(rng.integers(24, 56))
            x = F.interpolate(F.interpolate(x, (small, small), mode="area"), x.shape[-2:], mode="bilinear")
        shift = rng.integers(-2, 3, 2).tolist()
        x = x.roll(shift, (2, 3))[0]
        noise = torch.from_numpy(rng.normal(scale=0.04 * rng.random(), size=tuple(x.shape)).astype(np.float32))
        x = (x + noise * (x[3:] > 0.02)).clamp(0, 1)
        made.append(torch.cat([(x[:3] / x[3:].clamp(min=0.02)).clamp(0, 1), x[3:]]))
    return torch.stack(made)


def mirrored(sample: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sample of the mirror image: left and right exchanged in pictures, points and projections."""
    flipped = dict(sample)
    flip = torch.tensor([1.0, -1.0, 1.0])
    for name in ("images", "target"):
        if name in sample:
            flipped[name] = sample[name].flip(-1)
    for name in ("points", "surface"):
        flipped[name] = sample[name] * flip
    both = torch.tensor([[-1.0], [1.0], [1.0]]) * torch.tensor([1.0, -1.0, 1.0, 1.0])
    for name in ("projections", "target_projection"):
        flipped[name] = sample[name] * both
    return flipped


def _enlarged(views: Tensor, size: int) -> Tensor:
    """Straight RGBA (V, 4, s, s) → (V, 4, size, size)."""
    x = torch.cat([views[:, :3] * views[:, 3:], views[:, 3:]], 1)
    x = F.interpolate(x, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
    return torch.cat([(x[:, :3] / x[:, 3:].clamp(min=1e-4)).clamp(0, 1), x[:, 3:]], 1)


def _cropped(photo: Tensor, shown: Tensor, camera: Cameras, chosen: list[int], size: int) -> Views:
    """Photo (4, S, S) and ring views as `TinyLRM.reconstruct_views` sees them; views without an object are left out."""
    ring = _enlarged(shown, photo.shape[-1])
    keep = [i for i in range(len(chosen)) if float(ring[i, 3].amax()) > 0.5]
    rgba = torch.cat([photo[None], ring[keep]])
    cameras = Cameras.cat([camera, ring_cameras().select([chosen[i] for i in keep])]) if keep else camera
    views = crop_views(Views(rgba[:, :3], rgba[:, 3:], cameras), size, 0.85)
    if len(keep) == len(chosen):
        return views
    # As many views as the batch wants: an empty one is shown as nothing, uncropped.
    empty = [i for i in range(len(chosen)) if i not in keep]
    nothing = torch.zeros(len(empty), 4, size, size)
    rest = Views(nothing[:, :3], nothing[:, 3:], ring_cameras().select([chosen[i] for i in empty]))
    return Views.cat([views, rest])
