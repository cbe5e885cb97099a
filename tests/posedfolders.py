"""Folders of posed pictures for training tests: two solids whose every side has another colour, rendered by volume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lrm.field import FunctionField
from lrm.volume import render
from multiview.camerafile import write_views
from multiview.cameras import Cameras, orbit
from multiview.views import Views

HALF = torch.tensor([[0.5, 0.25, 0.3], [0.3, 0.45, 0.2]])  # half sides of the solids


def depth_inside(points: Tensor, kind: int) -> Tensor:
    """How deep points (N, 3) are in solid 0, a box, or 1, an ellipsoid; negative outside."""
    if kind == 0:
        return (HALF[0] - points.abs()).amin(-1)
    return (1 - (points / HALF[1]).norm(dim=-1)) * HALF[1].min()


def solid(kind: int = 0) -> FunctionField:
    """A solid about the origin, longest side near 1; colours follow the position, so that no two sides look alike."""
    return FunctionField(
        lambda p: 200 * torch.sigmoid(200 * depth_inside(p, kind)), lambda p: (0.45 + 0.8 * p).clamp(0.05, 0.9), 0.6
    )


def solid_views(kind: int = 0, cameras: Cameras | None = None, size: int = 48) -> Views:
    """Straight RGBA views of a solid; by default eight all around from two heights."""
    if cameras is None:
        cameras = orbit([0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0], [15.0, 40.0] * 4, 2.2, 35.0)
    with torch.no_grad():
        seen = render(solid(kind), cameras, size, size, samples_per_ray=96, background=0.0)
    return Views((seen.images / seen.opacity.clamp(min=1e-3)).clamp(0, 1), seen.opacity.clamp(0, 1), cameras)


def posed_folder(folder: Path, kinds: tuple[int, ...] = (0,), points: bool = True) -> Path:
    """One folder of views a solid, with labelled points."""
    for kind in kinds:
        place = folder / f"solid{kind}"
        write_views(place, solid_views(kind))
        if points:
            rng = np.random.default_rng(kind)
            cloud = torch.from_numpy(rng.uniform(-0.55, 0.55, (4000, 3)).astype(np.float32))
            inside = depth_inside(cloud, kind) > 0
            on = cloud[inside][:500]
            colors = (solid(kind).color_fn(on) * 255).round().byte()
            np.savez(place / "points.npz", points=cloud, inside=inside, surface=on, colors=colors)
    return folder
