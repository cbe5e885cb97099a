"""A view is a picture with its camera and its matte."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cameras import Cameras
from .errors import ImageError


@dataclass(frozen=True)
class Views:
    """V pictures of one object, with cameras.

    Attributes:
        images: (V, 3, H, W) float in [0, 1], sRGB, straight (not multiplied by alpha).
        alpha: (V, 1, H, W) float in [0, 1].
        cameras: V `Cameras` in the world frame of the project.

    Raises:
        ImageError: shapes that do not go together.
    """

    images: Tensor
    alpha: Tensor
    cameras: Cameras

    def __post_init__(self) -> None:
        v, _, h, w = self.images.shape if self.images.ndim == 4 else (-1, 0, 0, 0)
        expected = ((v, 3, h, w), (v, 1, h, w), v)
        found = (tuple(self.images.shape), tuple(self.alpha.shape), len(self.cameras))
        if expected != found:
            raise ImageError(
                "views want images (V, 3, H, W), alpha (V, 1, H, W) and V cameras, found "
                f"{found[0]}, {found[1]} and {found[2]} cameras."
            )

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.images.shape[2], self.images.shape[3]

    def composite(self, background: float | Sequence[float] = 1.0) -> Tensor:
        """(V, 3, H, W): the pictures over one sRGB background value (or three) in [0, 1]."""
        color = torch.as_tensor(background, dtype=self.images.dtype, device=self.images.device).reshape(-1, 1, 1)
        return self.images * self.alpha + color * (1 - self.alpha)

    def select(self, indices: Sequence[int]) -> Views:
        """The views at ``indices``, in that order."""
        index = torch.as_tensor(list(indices), dtype=torch.long, device=self.images.device)
        return Views(self.images[index], self.alpha[index], self.cameras.select(indices))

    def to(self, device: torch.device | str) -> Views:
        """The same views on another device."""
        return Views(self.images.to(device), self.alpha.to(device), self.cameras.to(device))

    @staticmethod
    def cat(parts: Sequence[Views]) -> Views:
        """All views of ``parts``, one after the other; their pictures must have one size."""
        sizes = sorted({p.image_size for p in parts})
        if len(sizes) != 1:
            raise ImageError(f"views of different sizes cannot be joined: {sizes}. Resize them to one size first.")
        return Views(
            torch.cat([p.images for p in parts]),
            torch.cat([p.alpha for p in parts]),
            Cameras.cat([p.cameras for p in parts]),
        )
