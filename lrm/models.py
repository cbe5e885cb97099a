"""What a reconstruction model is, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from multiview.cameras import Cameras

from .field import Field


@dataclass(frozen=True)
class Reconstruction:
    """One object as a model sees it.

    Attributes:
        field: in the world frame: z up and upright, source camera at azimuth 0 (on the +x side).
        camera: one camera, that of the conditioning image; rendering ``field`` with it gives that image again.
        elevation_deg: elevation of that camera.
        estimated: which of ``elevation``, ``fov``, ``distance`` the model estimated or assumed itself.
    """

    field: Field
    camera: Cameras
    elevation_deg: float
    estimated: tuple[str, ...]


class ReconstructionModel(ABC):
    """Pictures in, fields out.

    Attributes:
        name: as in the registry, or the folder's name.
        image_size: side in pixels of the conditioning image.
        foreground_ratio: longest side of the object's box / image side that the model was trained with.
    """

    name: str
    image_size: int
    foreground_ratio: float

    @abstractmethod
    def reconstruct(
        self, images: Tensor, *, elevation_deg: float | None = None, fov_deg: float | None = None, upright: bool = True
    ) -> list[Reconstruction]:
        """Lift B pictures.

        Args:
            images: (B, 4, S, S) float in [0, 1], straight-alpha sRGB, S = ``image_size``; any device.
            elevation_deg: elevation of the source camera if known, else the model estimates it.
            fov_deg: full vertical field of view of the *conditioning image* if known.
            upright: stand the field upright by the elevation; False leaves it in the camera's pitch (elevation 0).

        Returns:
            B reconstructions, in order.

        Raises:
            FieldError: the network gave numbers that are not finite.
            ImageError: the pictures have another shape than stated.
        """
