"""The embedded view generator as something that is loaded by name: its network, with the embedded model to sketch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from lrm.sketch import PhotoSketcher
from lrm.tiny import TinyLRM
from multiview.errors import SettingsError, WeightsError
from multiview.generator import StoredGenerator
from multiview.tinyviews import ARCHITECTURE, TinyViews, load_network
from multiview.weights import WEIGHTS_FILE, read_config_json

from .registry import EMBEDDED

ANSWERS = ("drawn", "mean")


class EmbeddedViews(TinyViews, StoredGenerator):
    """`multiview.tinyviews.TinyViews` with the embedded reconstruction model as its sketcher."""

    architecture: ClassVar[str] = ARCHITECTURE
    own_files: ClassVar[tuple[str, ...]] = (WEIGHTS_FILE,)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """See `StoredGenerator`; the sketcher's is not one of them."""
        return (self.network,)

    @classmethod
    def load(
        cls,
        place: Path,
        *,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        answer: str | None = None,
        **options: Any,
    ) -> Self:
        """See `StoredGenerator.load`.

        Args:
            place: a folder of `multiview.tinyviews.save_network`.
            name, device, dtype: see there.
            answer: ``drawn`` for views drawn from noise, ``mean`` for the regressor's; None for what the config says.
            options: none is known.
        """
        answer = answer or str(read_config_json(place).get("answer", ANSWERS[0]))
        if answer not in ANSWERS or options:
            found = f"answer={answer!r}" if not options else f"{', '.join(options)}"
            raise SettingsError(f"{name}: expected answer {' or '.join(ANSWERS)} and nothing else, found {found}.")
        sketcher = PhotoSketcher(TinyLRM.from_folder(EMBEDDED / "tiny", device, dtype))
        made = cls(load_network(place).to(device), sketcher, name, mean=answer == "mean", dtype=dtype)
        made.record = {"weights": "ema", "source": str(place)}
        return made

    @classmethod
    def weight_files(cls, place: Path, **options: Any) -> list[Path]:
        """See `StoredGenerator`."""
        file = place / WEIGHTS_FILE
        if not file.is_file():
            raise WeightsError(
                f"{place}: expected {WEIGHTS_FILE} beside config.json. Give the folder of a run's model."
            )
        return [file]
