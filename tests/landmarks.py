"""An object without symmetry, and where its landmarks are: the truth that camera tests stand on.

::

             ┌──┐ blue, on top                     world: x toward the photo's camera, y to the right of its picture,
       ┌─────┴──┴──────────┐                       z up; longest side 1 (along y), centred
       │       grey        ├────┐
       │                   │ red│ on the +y side
       └───────────────────┴────┘
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lrm.mesh import Mesh
from lrm.raster import render_mesh
from multiview.cameras import Cameras, intrinsics_from_fov, look_at
from multiview.generator import OnStep, ViewGenerator
from multiview.views import Views
from multiview.zero123 import INSTANTMESH_TARGETS, Targets
from trilift.loading import WeightsRecord
from trilift.views import PhotoToViews

RED, BLUE, GREY = (0.85, 0.08, 0.08), (0.08, 0.08, 0.9), (0.6, 0.6, 0.6)
# Centres of the two knobs.
RED_AT = np.array([0.05, 0.39, -0.08])
BLUE_AT = np.array([-0.02, -0.2, 0.26])
_PARTS = (
    ((0.0, -0.11, -0.08), (0.5, 0.78, 0.54), GREY),
    (tuple(RED_AT), (0.3, 0.22, 0.3), RED),
    (tuple(BLUE_AT), (0.26, 0.26, 0.18), BLUE),
)  # fmt: skip


def knobbed() -> Mesh:
    """The object: a grey box, a red knob on its +y side, a blue one on top."""
    vertices, faces, colors, count = [], [], [], 0
    for center, extents, color in _PARTS:
        box = trimesh.creation.box(extents)
        vertices.append(box.vertices + np.array(center))
        faces.append(box.faces + count)
        colors.append(np.tile(color, (len(box.vertices), 1)))
        count += len(box.vertices)
    joined = np.concatenate(vertices).astype(np.float32)
    return Mesh(joined, np.concatenate(faces).astype(np.int32), np.concatenate(colors).astype(np.float32))


def beacons() -> Mesh:
    """Nothing but a small red cube and a small blue one where the knobs are: nothing hides them."""
    cubes = [trimesh.creation.box((0.1, 0.1, 0.1)) for _ in range(2)]
    vertices = np.concatenate([cube.vertices + at for cube, at in zip(cubes, (RED_AT, BLUE_AT), strict=True)])
    faces = np.concatenate([cubes[0].faces, cubes[1].faces + 8]).astype(np.int32)
    return Mesh(vertices.astype(np.float32), faces, np.repeat(np.array([RED, BLUE], np.float32), 8, 0))


def place(azimuth_deg: float, elevation_deg: float, distance: float, fov_deg: float) -> Cameras:
    """One camera from angles, by trigonometry of its own: not through `multiview.cameras.orbit`."""
    a, e = np.deg2rad([azimuth_deg, elevation_deg])
    position = distance * np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    c2w = look_at(torch.tensor(position), torch.zeros(3))
    return Cameras(c2w.float(), intrinsics_from_fov(fov_deg).float())


def true_views(cameras: Cameras, size: int = 128, object_side: float = 1.0, mesh: Mesh | None = None) -> Views:
    """The object (or ``mesh`` in its place), of that longest side, seen by cameras."""
    mesh = mesh or knobbed()
    scaled = Mesh(mesh.vertices * np.float32(object_side), mesh.faces, mesh.colors)
    return render_mesh(scaled, cameras, size, shading=False)


def blob(image: Tensor, alpha: Tensor, color: str) -> NDArray[np.float64] | None:
    """Middle (u, v) in image fractions of what is ``red`` or ``blue`` in (3, H, W) with (1, H, W); None when hidden."""
    wanted, other = (0, 2) if color == "red" else (2, 0)
    mask = (image[wanted] > 0.5) & (image[other] < 0.3) & (image[1] < 0.3) & (alpha[0] > 0.5)
    if int(mask.sum()) < 0.002 * mask.numel():
        return None
    rows, columns = torch.nonzero(mask, as_tuple=True)
    height, width = mask.shape
    return np.array([(columns.double().mean() + 0.5) / width, (rows.double().mean() + 0.5) / height])


def colored(mesh: Mesh, color: str) -> NDArray[np.float64]:
    """Middle (3,) of those vertices of a mesh that are red or blue, where its box has longest side 1 and middle 0."""
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    placed = (mesh.vertices - (low + high) / 2) / float((high - low).max())
    wanted, other = (0, 2) if color == "red" else (2, 0)
    c = np.asarray(mesh.colors)
    score = c[:, wanted] - np.maximum(c[:, other], c[:, 1])
    chosen = score > max(0.25, 0.6 * float(score.max()))
    return placed[chosen].mean(0) if chosen.any() else np.full(3, np.nan)


class Renderer(ViewGenerator):
    """Stands in for a generator: renders the object from the cameras that it claims, whatever the photo shows.

    Args:
        architecture: whose place it takes in a chain.
        cameras: V of them, in its world.
        object_side: longest side of the object in that world.
        size: pixels per side.

    Attributes:
        calls: the keyword arguments of each `generate`.
    """

    foreground_ratio = 200 / 256

    def __init__(self, architecture: str, cameras: Cameras, object_side: float = 1.0, size: int = 64) -> None:
        self.name = self.architecture = architecture
        self.cameras, self.object_side, self.image_size = cameras, object_side, size
        self.calls: list[dict[str, Any]] = []
        self.fail_at: int | None = None

    def generate(
        self,
        image: Tensor,
        *,
        elevation_deg: float,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        view_batch_size: int | None = None,
        on_step: OnStep | None = None,
        parity: bool = False,
    ) -> Views:
        """See `ViewGenerator`; a little noise from the seed lies on the pictures."""
        told = {"elevation_deg": elevation_deg, "steps": num_inference_steps, "guidance": guidance_scale}
        self.calls.append({**told, "batch": view_batch_size, "parity": parity, "image": image})
        for step in range(1, (num_inference_steps or 5) + 1):
            if step == self.fail_at:
                raise KeyboardInterrupt
            if on_step is not None:
                on_step(step, num_inference_steps or 5)
        views = true_views(self.cameras, self.image_size, self.object_side)
        noise = torch.rand(views.images.shape, generator=generator) * 0.02
        return Views((views.images + noise).clamp(0, 1), views.alpha, views.cameras)


class FreeRenderer(Renderer):
    """The same, of Zero123's kind: it renders from where it is told."""

    targets = INSTANTMESH_TARGETS

    def generate(self, image: Tensor, *, targets: Targets | None = None, **settings: Any) -> Views:
        """See `multiview.zero123.Zero123.generate`."""
        self.cameras = (targets or self.targets).cameras()
        return super().generate(image, **settings)


def loaded(model: ViewGenerator) -> PhotoToViews:
    """A generator as `PhotoToViews.from_pretrained` would give it."""
    record = WeightsRecord(model.name, sha256="0" * 64, architecture=getattr(model, "architecture", None))
    return PhotoToViews(model, weights=record)


def photo_of(path: Path, elevation_deg: float = 20.0, size: int = 192) -> Path:
    """Write a photo of the object with its own alpha, from azimuth 0 and 2.2 away."""
    view = true_views(place(0.0, elevation_deg, 2.2, 40.0), size)
    pixels = torch.cat([view.images[0], view.alpha[0]]).permute(1, 2, 0)
    Image.fromarray((pixels * 255).round().byte().numpy()).save(path)
    return path
