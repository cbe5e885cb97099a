"""A reconstruction model without a network, and photos drawn by the tests: the fast path of the end-to-end tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lrm.field import FunctionField
from lrm.models import Reconstruction, ReconstructionModel
from multiview.cameras import orbit

# Half axes of the fake's ellipsoid in the world frame: deep (x), wide (y), tall (z). All different, so that swapped
# axes show.
HALF_AXES = (0.3, 0.4, 0.6)


class FakeModel(ReconstructionModel):
    """Every photo becomes an upright ellipsoid in the mean colour of the photo's object.

    Args:
        broken: give densities that are not finite, as a network that overflowed would.
        estimated_elevation_deg: what it says about the camera when it is not told.

    Attributes:
        calls: the arguments of each `reconstruct`: (images, elevation_deg, fov_deg, upright).
    """

    name = "fake"
    image_size = 64
    foreground_ratio = 0.85

    def __init__(self, broken: bool = False, estimated_elevation_deg: float = 20.0) -> None:
        self.broken = broken
        self.estimated_elevation_deg = estimated_elevation_deg
        self.calls: list[tuple[Tensor, float | None, float | None, bool]] = []

    def reconstruct(
        self, images: Tensor, *, elevation_deg: float | None = None, fov_deg: float | None = None, upright: bool = True
    ) -> list[Reconstruction]:
        """See `ReconstructionModel`."""
        self.calls.append((images, elevation_deg, fov_deg, upright))
        elevation = self.estimated_elevation_deg if elevation_deg is None else elevation_deg
        given = {"elevation": elevation_deg, "fov": fov_deg, "distance": None}
        return [
            Reconstruction(
                field=ellipsoid_field(mean_color(image), broken=self.broken),
                camera=orbit(0.0, elevation if upright else 0.0, 2.7, fov_deg or 40.0),
                elevation_deg=elevation,
                estimated=tuple(name for name, value in given.items() if value is None),
            )
            for image in images
        ]


def mean_color(image: Tensor) -> tuple[float, ...]:
    """Mean sRGB colour of the opaque part of a (4, S, S) picture."""
    weight = image[3].sum().clamp(min=1e-6)
    return tuple(((image[:3] * image[3]).sum((1, 2)) / weight).tolist())


def ellipsoid_field(color: tuple[float, ...] = (0.5, 0.5, 0.5), *, broken: bool = False) -> FunctionField:
    """A smooth ellipsoid of one colour with half axes `HALF_AXES`, surface at density 10."""
    axes = torch.tensor(HALF_AXES)

    def density(points: Tensor) -> Tensor:
        value = 20 * torch.sigmoid(12 * (1 - (points / axes).norm(dim=-1)))
        return value * float("nan") if broken else value

    return FunctionField(density, lambda points: torch.tensor(color).expand(len(points), 3), 1.0, 10.0)


def draw_photo(path: Path, color: tuple[int, int, int] = (200, 60, 40), size: int = 96) -> Path:
    """Write a picture of a disc of ``color`` with a real alpha (transparent outside); the suffix says the format."""
    y, x = np.mgrid[:size, :size] + 0.5
    alpha = np.hypot(x - size / 2, y - size / 2) < 0.35 * size
    pixels = np.zeros((size, size, 4), np.uint8)
    pixels[..., :3] = color
    pixels[..., 3] = 255 * alpha
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        Image.composite(image, Image.new("RGBA", image.size, "white"), image.getchannel("A")).convert("RGB").save(path)
    else:
        image.save(path)
    return path


def use_fake_model(monkeypatch: pytest.MonkeyPatch, model: FakeModel | None = None) -> FakeModel:
    """Let every ``from_pretrained``, of the command line too, give ``model``; returns it."""
    from trilift import registry
    from trilift.pipeline import ImageTo3D

    fake = model or FakeModel()
    monkeypatch.setattr(registry, "resolve", lambda name: (Path(str(name)), None))
    monkeypatch.setattr(ImageTo3D, "from_pretrained", classmethod(lambda cls, *args, **kwargs: cls(fake)))
    return fake
