"""What a field looks like from a few cameras, roughly and quickly: from a lattice of samples in place of the network.

A generator of views starts from such sketches: they carry the reconstruction model's guess of the shape to every view,
so that the views are drawn of one object.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from multiview.cameras import Cameras, rays
from multiview.ring import RING_SIZE, ring_cameras

from .field import Field
from .tiny import TinyLRM
from .volume import cube_interval, march

LATTICE = 48
SKETCH_RADIUS = 1.4  # half images: half side of the cube that is sampled for the ring
SAMPLES_PER_RAY = 64
_SAME_ELEVATION_DEG = 0.05  # closer numbers are the same guess, rounded for a record


@torch.no_grad()
def sampled_lattice(field: Field, radius: float, samples: int = LATTICE) -> Tensor:
    """Density and colour of a field at the points of a cube.

    Args:
        field: asked at samples³ points.
        radius: half side of the cube, world units; lattice points lie at the middles of its cells.
        samples: points per axis.

    Returns:
        (4, samples, samples, samples) by [channel, z, y, x]: density in 1 / world unit, then sRGB in [0, 1].
    """
    steps = ((torch.arange(samples, device=field.device) + 0.5) / samples * 2 - 1) * radius
    z, y, x = torch.meshgrid(steps, steps, steps, indexing="ij")
    density, color = field.density_and_color(torch.stack([x, y, z], -1).reshape(-1, 3))
    values = torch.cat([density.reshape(-1, 1), color.reshape(-1, 3)], 1)
    return values.T.reshape(4, samples, samples, samples).float().contiguous()


@torch.no_grad()
def sketch(lattice: Tensor, radius: float, cameras: Cameras, size: int, samples: int = SAMPLES_PER_RAY) -> Tensor:
    """Render a lattice from V cameras.

    Args:
        lattice: of `sampled_lattice`.
        radius: half side of its cube, world units.
        cameras: V, square pictures.
        size: pixels per side.
        samples: points per ray.

    Returns:
        (V, 5, size, size): premultiplied sRGB and opacity in [0, 1], then expected depth times opacity: 0 at the far
        end of the cube's sphere, 1 at the near end.
    """
    origins, directions = (t.reshape(-1, 3) for t in rays(cameras.to(lattice.device), size, size))
    near, far = cube_interval(origins, directions, radius)
    step = (far - near)[:, None] / samples
    t = near[:, None] + step * (torch.arange(samples, device=lattice.device) + 0.5)
    points = (origins[:, None] + directions[:, None] * t[..., None]) / radius
    seen = F.grid_sample(lattice[None], points[None, None], align_corners=False)[0, :, 0]  # (4, R, samples)
    color, opacity, weights = march(seen[0], seen[1:].permute(1, 2, 0), step)
    distance = cameras.positions.norm(dim=-1).to(lattice.device).repeat_interleave(size * size)
    reach = radius * 3**0.5
    depth = ((distance[:, None] + reach - t) / (2 * reach) * weights).sum(-1)
    flat = torch.cat([color, opacity[:, None], depth[:, None]], 1)
    return flat.reshape(len(cameras), size, size, 5).permute(0, 3, 1, 2).clamp(0, 1)


class PhotoSketcher:
    """Draws the sketches of the embedded view generator with the embedded reconstruction model.

    Args:
        model: on its device.
    """

    def __init__(self, model: TinyLRM) -> None:
        self.model = model

    @property
    def image_size(self) -> int:
        """Side in pixels of the photo that it wants."""
        return self.model.image_size

    def __call__(self, photo: Tensor, elevation_deg: float) -> tuple[Tensor, float]:
        """See `multiview.tinyviews.Sketcher`.

        The model is told the elevation, unless it is its own guess: what it guesses it mistrusts, as in training.
        """
        guess = self.model.guess_camera(photo[None])
        known = abs(float(guess[0, 0]) - elevation_deg) > _SAME_ELEVATION_DEG
        if known:
            guess[0, 0] = elevation_deg
        fields, camera = self.model.plain_fields(photo[None], guess if known else None)
        drawn = sketch(sampled_lattice(fields[0], SKETCH_RADIUS), SKETCH_RADIUS, ring_cameras(), RING_SIZE)
        return drawn, float(camera[0, 1])
