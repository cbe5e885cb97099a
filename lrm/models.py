"""What a reconstruction model is, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from multiview.cameras import Cameras
from multiview.views import Views

from .field import Field

Framing = Literal["resampled", "cropped", "given"]
"""How a photo becomes the picture that a model is given (`trilift.foreground.cut_out` does it).

``resampled``: the object centred to a fraction of a pixel, at the model's ``image_size``. ``cropped``: pixels of the
photo moved, never resampled (`lrm.preprocess.reference_crop`); the model resizes the square itself. ``given``: a square
picture with its own alpha and its object in the middle as it is, any other one centred; the model resizes it itself.
"""


@dataclass(frozen=True)
class Reconstruction:
    """One object as a model sees it.

    Attributes:
        field: in the world frame: z up and upright, source camera at azimuth 0 (on the +x side).
        camera: one camera, that of the conditioning image; rendering ``field`` with it gives that image again.
        elevation_deg: elevation of that camera, always: 0 for a field that was left in the camera's pitch.
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
        framing: how the pictures that it is given are made of photos.
        lifts_photos: whether a single photo will do; a `ViewsModel` may want views alone.
    """

    framing: ClassVar[Framing] = "resampled"
    lifts_photos: ClassVar[bool] = True
    name: str
    image_size: int
    foreground_ratio: float

    @abstractmethod
    def reconstruct(
        self, images: Tensor, *, elevation_deg: float | None = None, fov_deg: float | None = None, upright: bool = True
    ) -> list[Reconstruction]:
        """Lift B pictures.

        Args:
            images: (B, 4, S, S) float in [0, 1], straight-alpha sRGB, any device; S = ``image_size`` for the framing
                ``resampled``, any S (of any two sides H x W, even) for the others.
            elevation_deg: elevation of the source camera if known, else the model estimates it or takes it for 0.
            fov_deg: full vertical field of view of the *conditioning image* if known.
            upright: stand the field upright by the elevation. False leaves the field of a network that thinks in the
                photograph's camera as it is: the camera is level then, elevation 0 whatever was given, and nothing is
                estimated. Networks whose fields stand upright by themselves (TripoSR, InstantMesh) do not mind it.

        Returns:
            B reconstructions, in order.

        Raises:
            FieldError: the network gave numbers that are not finite.
            ImageError: the pictures have another shape than stated.
        """


class ViewsModel(ReconstructionModel):
    """A reconstruction model that takes several views with cameras in place of one picture."""

    @abstractmethod
    def reconstruct_views(
        self, views: Views, *, elevation_deg: float | None = None, fov_deg: float | None = None
    ) -> Reconstruction:
        """Lift V views of one object.

        Args:
            views: any number of them, square pictures of any size, cameras in the world frame and in the units of
                the model's cube, source camera at azimuth 0.
            elevation_deg: elevation of the source camera if known; it moves ``Reconstruction.camera`` only.
            fov_deg: full vertical field of view of the source picture if known; the same.

        Raises:
            ImageError: no views, or views that are not square.
            FieldError: the network gave numbers that are not finite.
        """
