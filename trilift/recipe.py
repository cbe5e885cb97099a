"""How to load a pipeline, as a value: it goes to other processes, and answers without loading what it can."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from multiview.errors import TriliftError

if TYPE_CHECKING:
    from .pipeline import ImageTo3D
    from .settings import LiftSettings


class Judge(Protocol):
    """Whoever can say what decides a result; an `ImageTo3D` does."""

    def fingerprint(self, photo_sha256: str, mask_sha256: str | None, settings: LiftSettings) -> str:
        """See `ImageTo3D.fingerprint`."""


@dataclass(frozen=True)
class PipeRecipe:
    """The arguments of `ImageTo3D.from_pretrained`, by which any process can load the same pipeline.

    Attributes:
        model, views, device, dtype, revision, commercial_ok, max_memory: see `ImageTo3D.from_pretrained`.
    """

    model: str = "tiny"
    views: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    commercial_ok: bool = False
    max_memory: int | str | None = None

    def __call__(self, on_note: Callable[[str], None] | None = None) -> ImageTo3D:
        """Load it; raises what `ImageTo3D.from_pretrained` does."""
        from .pipeline import ImageTo3D

        return ImageTo3D.from_pretrained(
            self.model, views=self.views, device=self.device, dtype=self.dtype, revision=self.revision,
            commercial_ok=self.commercial_ok, max_memory=self.max_memory, on_note=on_note,
        )  # fmt: skip

    def on(self, device: str) -> PipeRecipe:
        """The same on another device."""
        return replace(self, device=device)

    def unloaded(self, record: dict[str, Any]) -> Judge | None:
        """The pipeline without its networks, good for fingerprints alone.

        Args:
            record: of an asset that such a pipeline made. Its architecture is what the same weights have, and where
                ``auto`` chose the number format, it chose that one on such a device.

        Returns:
            None where it cannot be known without loading: other weights, another view generator, another number format.
        """
        from multiview.devices import pick_device

        from . import registry
        from .loading import check_commercial, fetch, weights_record
        from .pipeline import ImageTo3D

        try:
            dtype, device = str(record["dtype"]), str(record["device"]).partition(":")[0]
            if not self._takes(dtype) or pick_device(self.device).type != device:
                return None
            weights = weights_record(
                fetch(registry.resolve(self.model), self.revision), str(record["model"]["architecture"])
            )
            if asdict(weights) != record["model"]:
                return None
            if self.commercial_ok:
                check_commercial(weights)
            empty: Any = _NoNetwork(weights.name)
            pipe = ImageTo3D(empty, weights=weights)
            pipe.dtype = dtype
            if self.views is not None:
                pipe.generator = self._unloaded_generator(record["views"])
        except (TriliftError, OSError, KeyError, TypeError, AttributeError):
            return None  # not a record of ours, or loading will say what is wrong
        return None if self.views is not None and pipe.generator is None else pipe

    def _takes(self, dtype: str) -> bool:
        """Whether this is the number format that networks would have, or ``auto`` may have chosen it."""
        from multiview.devices import DTYPES

        return self.dtype == "auto" or str(DTYPES.get(self.dtype)).removeprefix("torch.") == dtype

    def _unloaded_generator(self, record: dict[str, Any]) -> Any:
        """The view generator without its networks, None where it is not the one of ``record``."""
        from . import registry
        from .generators import fetch_generator, generator_record
        from .loading import check_commercial
        from .views import PhotoToViews

        assert self.views is not None, "asked for with a generator only"
        dtype = str(record["dtype"])
        weights = generator_record(fetch_generator(registry.resolve(self.views), None))
        if not self._takes(dtype) or asdict(weights) != record["generator"]:
            return None
        if self.commercial_ok:
            check_commercial(weights)
        empty: Any = _NoNetwork(weights.name)
        generator = PhotoToViews(empty, weights=weights)
        generator.dtype = dtype
        return generator


@dataclass(frozen=True)
class _NoNetwork:
    """Stands where a reconstruction model would; nobody asks it to reconstruct."""

    name: str


@dataclass(frozen=True)
class _NoGenerator:
    """Stands where a view generator would."""

    family: str
    told: dict[str, Any]

    def identity(self) -> dict[str, Any]:
        """What the generator said."""
        return self.told


def without_networks(pipe: Any) -> Judge:
    """What of a loaded pipeline is good for fingerprints; a pipeline of another kind (tests) as it is."""
    from .pipeline import ImageTo3D

    if not isinstance(pipe, ImageTo3D):
        judge: Judge = pipe
        return judge
    empty: Any = _NoNetwork(pipe.model.name)
    light = ImageTo3D(empty, weights=pipe.weights)
    light.dtype = pipe.dtype
    if pipe.generator is not None:
        generator: Any = _NoGenerator(pipe.generator.family, pipe.generator.identity())
        light.generator = generator
    return light


def empty_caches() -> None:
    """Give memory back that is only kept for later, here and on an accelerator."""
    import gc

    import torch

    gc.collect()
    clear = getattr(torch.accelerator, "empty_cache", None)  # torch 2.9 or newer
    if clear is not None and torch.accelerator.is_available():
        with contextlib.suppress(RuntimeError):  # Apple's, before a release of torch that has it
            clear()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, here or on an accelerator.

    Torch has its own kind for accelerators; of the CPU's memory it says so in words, and so do numpy and C++ libraries,
    and the system where it cannot map a file.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = (
        "out of memory", "can't allocate memory", "not enough memory", "unable to allocate", "bad_alloc",
        "alloc_failed",
    )  # fmt: skip
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
