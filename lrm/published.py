"""What the published families share as reconstruction models: loading, saving, running in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from multiview.cameras import Cameras, orbit
from multiview.checkpoint import fill_network
from multiview.devices import on_accelerator
from multiview.errors import FieldError, ImageError, WeightsError
from multiview.keymap import KeyTable
from multiview.weights import WEIGHTS_FILE, config_from_dict, read_config_json, read_safetensors, save_folder

from .blocks import matrix_dtype, use_dtype
from .models import ReconstructionModel


def source_camera(
    fov_deg: float | None, elevation_deg: float | None, *, usual_fov_deg: float, usual_distance: float
) -> Cameras:
    """The camera at azimuth 0 that a picture is taken to come from.

    Args:
        fov_deg: full vertical field of view if known; the camera then moves so that the object stays as large in
            the picture as it is with the usual one.
        elevation_deg: if known, else level.
        usual_fov_deg, usual_distance: what the family assumes.
    """
    fov = usual_fov_deg if fov_deg is None else fov_deg
    closer = math.tan(math.radians(usual_fov_deg / 2)) / math.tan(math.radians(fov / 2))
    return orbit(0.0, elevation_deg or 0.0, usual_distance * closer, fov)


def not_given(elevation_deg: float | None, fov_deg: float | None) -> tuple[str, ...]:
    """Which of elevation, field of view and distance had to be assumed; the distance follows the field of view."""
    given = {"elevation": elevation_deg, "fov": fov_deg, "distance": fov_deg}
    return tuple(name for name, value in given.items() if value is None)


class PublishedModel(ReconstructionModel):
    """A reconstruction model whose weights come from elsewhere.

    Attributes:
        architecture: the word for the family in our ``config.json``.
        config_type: frozen dataclass of the family's sizes; its defaults are the published model.
        network_type: network built from such a config, kept there as ``config``.
        keys: published names → names of that network.
        network: in evaluation mode; matrices in the dtype chosen at loading, the rest fp32.

    Args:
        network: of ``network_type``, on its device.
        name: see `ReconstructionModel`.
    """

    architecture: ClassVar[str]
    config_type: ClassVar[type]
    network_type: ClassVar[type[nn.Module]]
    keys: ClassVar[KeyTable]
    network: Any

    def __init__(self, network: nn.Module, name: str) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name = name
        config: Any = network.config
        self.image_size = config.image_size
        self.foreground_ratio = config.foreground_ratio

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(iter(self.network.parameters())).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network's matrices."""
        return matrix_dtype(self.network)

    @classmethod
    def from_state(
        cls,
        config: Any,
        state: Mapping[str, Tensor],
        *,
        name: str | None = None,
        where: str = "weights",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        published: bool = True,
    ) -> Self:
        """Build the model around tensors, strictly and without a second copy of those that fit as they are.

        Args:
            config: of ``config_type``.
            state: {published name: tensor}, or {our name: tensor} when ``published`` is False; not changed, but
                the network may share its memory.
            name: see `ReconstructionModel`; the architecture's by default.
            where: what to call the weights in an error, usually the file.
            device: where the network shall be.
            dtype: of the matrices; everything else is fp32.
            published: which names ``state`` has.

        Raises:
            WeightsError: tensors missing, unknown or of another shape.
        """

        network = fill_network(
            lambda: use_dtype(cls.network_type(config), dtype),
            cls.keys.part(state) if published else state,
            where,
            key_map=cls.keys if published else None,
            device=device,
        )
        return cls(network, name or cls.architecture)

    @classmethod
    def from_folder(
        cls, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """Load our own folder form, ``config.json`` and ``model.safetensors``, strictly.

        Raises:
            WeightsError: a file is missing or damaged, another architecture, or the tensors do not fit.
        """
        folder = Path(folder)
        values = read_config_json(folder)
        if values.get("architecture") != cls.architecture:
            raise WeightsError(f"{folder}: architecture {values.get('architecture')!r}, expected {cls.architecture!r}.")
        config: Any = config_from_dict(cls.config_type, values.get("network", {}), f"{folder}/config.json")
        path = folder / WEIGHTS_FILE
        state = read_safetensors(path)
        return cls.from_state(
            config, state, name=folder.name, where=str(path), device=device, dtype=dtype, published=False
        )

    def save(self, folder: str | Path, extra: dict[str, Any] | None = None, dtype: torch.dtype | None = None) -> None:
        """Write the folder that `from_folder` reads; ``extra`` goes into ``config.json`` beside the sizes."""
        config = {"architecture": self.architecture, "network": asdict(self.network.config), **(extra or {})}
        save_folder(folder, config, self.network.state_dict(), dtype)

    def _check_pictures(self, images: Tensor) -> None:
        """Raise unless ``images`` is (B, 4, H, W) with something in it; each family resizes by its own rule."""
        if images.ndim != 4 or images.shape[1] != 4 or images.numel() == 0:
            raise ImageError(
                f"{self.name} wants pictures (B, 4, H, W) with straight alpha, any size, found {tuple(images.shape)}."
            )

    @torch.no_grad()
    def _planes(self, *inputs: Tensor) -> Tensor:
        """Run the network on inputs (B, ...) → planes (B, 3, C, H, W).

        On the CPU one object goes through at a time: a batch is no faster there, needs B times the memory, and this
        way an object's planes do not depend on its neighbours.

        Raises:
            FieldError: planes that are not finite.
        """
        inputs = tuple(x.to(self.device) for x in inputs)
        step = len(inputs[0]) if on_accelerator(self.device) else 1
        planes = torch.cat([self.network(*(x[i : i + step] for x in inputs)) for i in range(0, len(inputs[0]), step)])
        if not torch.isfinite(planes).all():
            raise FieldError(f"{self.name} gave planes that are not finite. Try --dtype fp32.")
        return planes
