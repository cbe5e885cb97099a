"""A view generator and a reconstruction model that take turns in memory, where ``--max-memory`` has no room for both.

::

    views: generator loaded, model resting ──► network: model loaded, generator resting ──► the next photo's views

It is for the CPU: on an accelerator a generator's networks leave the device by themselves while they do not work. One
that rests is gone from memory but for its sizes and settings, and is read from its files again when it is needed. Both
keep their identity, so that whoever holds them need not know.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lrm.models import ReconstructionModel
from lrm.published import PublishedModel
from multiview.devices import on_accelerator
from multiview.errors import SettingsError
from multiview.networks import NetworkGenerator

from .memory import CHUNKS, Memory, left_for_generator, network_bytes, own_bytes
from .recipe import empty_caches

if TYPE_CHECKING:
    from .views import PhotoToViews

_USUAL_RESOLUTION = 512  # of the lifts that must fit for both to stay; larger ones are refused or take turns anyway


class Turns:
    """Has one of the two in memory at a time.

    Args:
        model: of the published ones; another is too small to be worth it, and stays.
        load_model: reads the same one again.
        generator: makes the views.
        load_generator: reads the same one again.
    """

    def __init__(
        self,
        model: ReconstructionModel,
        load_model: Callable[[], ReconstructionModel],
        generator: NetworkGenerator,
        load_generator: Callable[[], Any],
    ) -> None:
        self._model, self._load_model = model, load_model
        self._generator, self._load_generator = generator, load_generator
        self._parts = [name for name, part in vars(generator).items() if isinstance(part, nn.Module)]

    def for_views(self) -> None:
        """Let the model rest, and have the generator in memory."""
        rest(self._model)
        generator = self._generator
        if any(getattr(generator, name) is None for name in self._parts):
            fresh = self._load_generator()
            for name in self._parts:
                setattr(generator, name, getattr(fresh, name))

    def for_lifting(self) -> None:
        """Let the generator rest, and have the model in memory."""
        for name in self._parts:
            setattr(self._generator, name, None)
        self._generator._runner = None  # it holds the same parameters
        give_back()
        wake(self._model, self._load_model)


def rest(model: ReconstructionModel) -> None:
    """Take a published model's network out of memory; fields that it made keep what they need of it."""
    if isinstance(model, PublishedModel) and isinstance(model.network, nn.Module):
        model.network = SimpleNamespace(config=model.network.config)
        give_back()


def wake(model: ReconstructionModel, load: Callable[[], ReconstructionModel]) -> None:
    """Read the network of a model that rests; one that does not is left alone."""
    if isinstance(model, PublishedModel) and not isinstance(model.network, nn.Module):
        fresh: Any = load()
        model.network = fresh.network


def give_back() -> None:
    """Return freed memory to the system, which counts what allocators keep for later as ours."""
    empty_caches()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def load_beside(
    model: ReconstructionModel,
    load_model: Callable[[], ReconstructionModel],
    load_generator: Callable[..., PhotoToViews],
    limit: int | None,
    device: torch.device,
) -> tuple[PhotoToViews, Turns | None, int | None]:
    """Load a generator for a model, which rests meanwhile where memory is limited.

    Args:
        model: loaded.
        load_model: reads the same one again.
        load_generator: see `PhotoToViews.from_pretrained`; told ``max_memory``, and where it reads again, ``on_note``.
        limit: bytes of memory, None for no limit.
        device: where both run.

    Returns:
        The generator; what has them take turns, None where they need not; and the bytes that are held while the model
        is in memory and the generator rests, None where that is not so.

    Raises:
        SettingsError: not even the generator alone fits.
    """
    if limit is None or on_accelerator(device):
        return load_generator(max_memory=left_for_generator(limit, model, device)), None, None
    with_model = own_bytes(device)
    rest(model)
    base = own_bytes(device)
    generator = _within(limit, base, load_generator)
    drawing = generator.model
    if isinstance(drawing, NetworkGenerator):
        held = own_bytes(device) - base + max(with_model, base)
        lifts = Memory(limit, device, held, network_bytes(model)).needs_bytes(_USUAL_RESOLUTION, CHUNKS[0])
        views = max(with_model, base) + drawing.needs_bytes(drawing.view_batch_size, drawing.offload)
        if max(lifts, views) > limit:
            again = partial(load_generator, max_memory=limit - base, on_note=lambda text: None)
            return generator, Turns(model, load_model, drawing, lambda: again().model), with_model
    wake(model, load_model)
    return generator, None, None


def _within(limit: int, base: int, load_generator: Callable[..., PhotoToViews]) -> PhotoToViews:
    """Load a generator into what ``base`` bytes of libraries leave of the limit."""
    taken = f"Of the {limit / 1e9:.3g} GB of --max-memory {base / 1e9:.3g} are taken before any network is loaded."
    if base >= limit:
        raise SettingsError(f"{taken} Give it more.")
    try:
        generator = load_generator(max_memory=limit - base)
    except SettingsError as error:
        if "--max-memory" not in str(error):
            raise
        raise SettingsError(f"{error} {taken}") from error
    generator.max_memory = limit  # as it was asked for
    return generator
