"""What the view generators that run networks of `diffusers` share: where these are, in which dtype, in how much memory.

::

    encoders (picture → what the steps are told) ─► UNet, step by step ─► decoder (latents → views)

One stage works at a time, so that with ``offload`` only its networks are on the device; how many views go through it
together decides the rest of what it takes. `plan_memory` chooses both so that a run fits.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from .devices import CPU, on_accelerator
from .errors import SettingsError, WeightsError
from .fastrun import MAX_REUSE, Runner, RunOptions
from .fastunet import fast_unet, same_parameters
from .generator import SchedulerName, StoredGenerator, logger, make_scheduler, module_dtype, pieces

_SMALLER_BATCHES = (8, 4, 2, 1)
_SPARE = 1.1
"""Allocators round up and kernels want room of their own."""


@dataclass(frozen=True)
class Stage:
    """A part of a run, for the account of memory.

    Attributes:
        networks: that work in it.
        numbers: how many numbers they keep at once while they do, beside their weights, at most.
    """

    networks: tuple[nn.Module, ...]
    numbers: int


@dataclass(frozen=True)
class MemoryPlan:
    """How a run is kept within bounds.

    Attributes:
        offload: whether the networks are on the device only while they work.
        view_batch_size: views per pass, None for all at once.
        needs_bytes: what the device has to have, about.
    """

    offload: bool
    view_batch_size: int | None
    needs_bytes: int


# Numbers that are alive at once, at most, for each pixel and channel of a network's widest level, as counted operation
# by operation on full-size networks (tests/unit/test_networks.py counts again). Attention is fused, so that no matrix
# of queries times keys is ever there.
_UNET_NUMBERS, _DECODER_NUMBERS, _ENCODER_NUMBERS = 26.1, 6.1, 5.1


def unet_numbers(unet: Any, latents: int, side: int) -> int:
    """What a UNet keeps while it works on ``latents`` latents of ``side`` pixels a side."""
    return math.ceil(_UNET_NUMBERS * unet.config.block_out_channels[0] * latents * side**2)


def vae_numbers(vae: Any, *, encoded_pixels: int = 0, decoded_pixels: int = 0) -> int:
    """What an autoencoder keeps while it works on pictures of so many pixels in all."""
    width = vae.config.block_out_channels[0]
    return math.ceil(width * max(_ENCODER_NUMBERS * encoded_pixels, _DECODER_NUMBERS * decoded_pixels))


class NetworkGenerator(StoredGenerator):
    """A `ViewGenerator` that denoises latents with a UNet of diffusers.

    Attributes:
        device: where the work is done.
        scheduler: of diffusers; another one that predicts the same may be put in its place.
        offload: whether every network is on the CPU but while it works.
        view_batch_size: what `generate` takes when it is told none.
        has_run_options: whether the family has several ways to run its networks.
        run_options: how it runs them, see `use_run_options`.
    """

    has_run_options: ClassVar[bool] = False
    device: torch.device
    scheduler: Any
    offload: bool = False
    view_batch_size: int | None = None
    run_options: RunOptions = RunOptions()
    _runner: Runner | None = None

    @property
    @abstractmethod
    def denoiser(self) -> Any:
        """The UNet."""

    @property
    @abstractmethod
    def n_views(self) -> int:
        """How many views a run makes."""

    @abstractmethod
    def stages(self, view_batch_size: int) -> tuple[Stage, ...]:
        """The stages of a run with so many views per pass."""

    # Where and how it runs.

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the UNet's matrices."""
        return module_dtype(self.denoiser)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Work on ``device`` and in ``dtype`` from now on; gives itself back."""
        self.device = self.device if device is None else torch.device(device)
        if dtype is not None:
            self._convert(dtype)
        for network in self.networks:
            nn.Module.to(network, CPU if self.offload else self.device)
        return self

    def _convert(self, dtype: torch.dtype) -> None:
        """Change the networks' dtype."""
        for network in self.networks:
            nn.Module.to(network, dtype)

    def set_scheduler(self, name: SchedulerName) -> None:
        """Choose DDIM, DPM++ or UniPC; any other scheduler of diffusers can be put into ``scheduler``.

        Raises:
            SettingsError: an unknown name.
        """
        self.scheduler = make_scheduler(name)

    def use_run_options(self, options: RunOptions) -> None:
        """Choose how the networks are run.

        Raises:
            SettingsError: ``reuse_steps`` is out of range.
        """
        if not 1 <= options.reuse_steps <= MAX_REUSE:
            raise SettingsError(
                f"reuse_steps={options.reuse_steps}: expected 1 (all layers every step) to {MAX_REUSE}."
            )
        self.run_options = options

    def runner(self) -> Runner | None:
        """The fast network over the UNet's parameters as they are now, None where there is none, as with adapters."""
        unet = self.denoiser
        if self._runner is None or self._runner.unet is not unet or not same_parameters(self._runner.fast, unet):
            made = fast_unet(unet)
            self._runner = None if made is None else Runner(unet, made)
            if made is None and self.run_options != RunOptions():
                logger.warning(
                    "%s: its UNet has adapters, hooks or attention of its own, so that diffusers runs all of it in "
                    "every step, whatever the run options say.",
                    self.name,
                )
        return self._runner

    def enable_model_cpu_offload(self, device: torch.device | str | None = None) -> None:
        """Keep the networks on the CPU and have on the device only those that work: encoders, UNet, decoder."""
        self.offload = True
        self.to(device)

    def enable_attention_slicing(self, slice_size: str | int = "auto") -> None:
        """Compute the UNet's attention some heads at a time: the same but for rounding.

        It takes less memory on devices without a fused kernel (`torch.nn.functional.scaled_dot_product_attention` has
        one on the CPU and on CUDA), and is slower everywhere.
        """
        self.denoiser.set_attention_slice(slice_size)

    def disable_attention_slicing(self) -> None:
        """Compute attention at once again."""
        self.denoiser.set_attention_slice(None)

    def pieces(self, count: int, view_batch_size: int | None) -> Iterator[slice]:
        """Which of ``count`` views go through a network together.

        On the CPU always one: a batch is no faster there, and so not even rounding depends on ``view_batch_size``.
        """
        if not on_accelerator(self.device) or self.run_options.plain:
            return pieces(count, 1)
        return pieces(count, self.view_batch_size if view_batch_size is None else view_batch_size)

    # Memory.

    def needs_bytes(self, view_batch_size: int | None, offload: bool) -> int:
        """About the memory that a run takes on the device: weights and what the networks keep while they work."""
        batch = min(view_batch_size or self.n_views, self.n_views) if on_accelerator(self.device) else 1
        stages = self.stages(batch)
        working = [stage.numbers * self.dtype.itemsize for stage in stages]
        if offload and on_accelerator(self.device):
            need = max(_bytes(stage.networks) + work for stage, work in zip(stages, working, strict=True))
        else:
            need = _bytes(self.networks) + max(working)
        return math.ceil(need * _SPARE)


def plan_memory(model: NetworkGenerator, limit: int) -> MemoryPlan:
    """Choose how ``model`` runs within ``limit`` bytes, as little slower as may be.

    First fewer views go through the networks together, then these are on the device only while they work. On the CPU,
    where they always are and views go one by one, there is nothing to choose.

    Args:
        model: on the CPU yet, its ``device`` where it shall run.
        limit: bytes.

    Raises:
        SettingsError: it does not fit in any way; says how much is needed.
    """
    least = 0
    for offload in (False, True):
        for batch in (None, *(size for size in _SMALLER_BATCHES if size < model.n_views)):
            least = model.needs_bytes(batch, offload)
            if least <= limit:
                return MemoryPlan(offload and on_accelerator(model.device), batch, least)
    half = ", or in half precision (--dtype bf16) about half of that" if model.dtype.itemsize == 4 else ""
    raise SettingsError(
        f"--max-memory {limit / 1e9:.3g} GB: {model.name} needs about {least / 1e9:.3g} GB on {model.device.type} with "
        f"its networks there {'one after the other' if on_accelerator(model.device) else 'all the time'} and one view "
        f"at a time{half}. Give it more, or take a smaller generator."
    )


def use_plan(model: NetworkGenerator, plan: MemoryPlan) -> None:
    """Move a model to its device as planned; it stays within the plan when it is asked for more views later."""
    model.view_batch_size = plan.view_batch_size or model.n_views
    if plan.offload:
        model.enable_model_cpu_offload()
    else:
        model.to(model.device)


def require_files(files: list[Path]) -> list[Path]:
    """The files, when all are there.

    Raises:
        WeightsError: one is not.
    """
    for file in files:
        if not file.is_file():
            raise WeightsError(f"{file}: not found. The model's folder is not whole: fetch or copy it again.")
    return files


def _bytes(networks: Sequence[nn.Module]) -> int:
    """What the weights of networks take."""
    return sum(t.numel() * t.element_size() for one in networks for t in (*one.parameters(), *one.buffers()))
