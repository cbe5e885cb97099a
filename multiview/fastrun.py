"""How the denoising networks are run: what a run works out once, what it keeps between steps, what is compiled.

::

    picture ─► tokens, latent ─┐
    schedule ─► times ─────────┴─► UNetRun / SyncRun ──► predict(step, latents) ─► noise with and without the picture
                                   once: times, cross-attentions, geometry     each step: one pass for both halves

There is a fast way, the default, and a plain one (`RunOptions.plain`) that does every product in every step, one view
and one half of the guidance at a time, for comparison. Both are the same numbers but for rounding; only
``reuse_steps`` changes results.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .fastunet import FastUNet, Look
from .generator import module_dtype
from .syncdreamervolumes import N_VIEWS, DepthLayer, DepthLayers, Geometry, VolumeNetwork, volume_geometry

logger = logging.getLogger("trilift")

Volumes = dict[int, Tensor]
MAX_REUSE = 8


@dataclass(frozen=True)
class RunOptions:
    """How networks are run.

    Attributes:
        plain: every product in every step, one view and one half at a time.
        reuse_steps: 1 runs all layers in every step. N runs the deep ones in the first of every N steps and takes their
            features again in the others, by which results change; see ``python -m benchmarks views --reuse``.
        compile: through `torch.compile` (on CUDA with its graphs), where that works.
        channels_last: the UNet's convolutions with the channels innermost; another order of sums, the same otherwise.
    """

    plain: bool = False
    reuse_steps: int = 1
    compile: bool = False
    channels_last: bool = False


class Compiled:
    """A function of tensors through `torch.compile`; where that does not work here, as it is, after one warning.

    Args:
        function: gives tensors, or tuples or dicts of them, for inputs of ever the same shapes.
        name: for the warning.

    Attributes:
        failed: whether it goes on without.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._function, self._name = function, name
        self._compiled: dict[bool, Callable[..., Any]] = {}
        self.failed = False

    def __call__(self, *arguments: Any) -> Any:
        """What the function gives; on CUDA copies, since the graphs' own memory is written over by the next call."""
        if self.failed:
            return self._function(*arguments)
        on_cuda = any(isinstance(x, Tensor) and x.is_cuda for x in arguments)
        try:
            return self._run(on_cuda, arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # no compiler, no Triton, an unknown operation: many kinds, of several libraries
            self.failed = True
            first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            logger.warning("%s: torch.compile does not work here (%s); going on without it.", self._name, first)
            return self._function(*arguments)

    def _run(self, on_cuda: bool, arguments: tuple[Any, ...]) -> Any:
        if on_cuda not in self._compiled:
            mode = "reduce-overhead" if on_cuda else "default"
            self._compiled[on_cuda] = torch.compile(self._function, mode=mode, dynamic=False)
        if not on_cuda:
            return self._compiled[on_cuda](*arguments)
        torch.compiler.cudagraph_mark_step_begin()
        return copied(self._compiled[on_cuda](*arguments))


def copied(made: Any) -> Any:
    """Tensors, and tuples and dicts of them, each cloned; anything else as it is."""
    if isinstance(made, Tensor):
        return made.clone()
    if isinstance(made, dict):
        return {key: copied(value) for key, value in made.items()}
    return tuple(map(copied, made)) if isinstance(made, tuple) else made


def looking(layers: DepthLayers, volumes: Volumes, plain: bool = False) -> Look:
    """How a `FastUNet` looks along the rays of the first views of its batch; see `DepthLayer.forward`."""
    way, at = (DepthLayer.forward if plain else DepthLayer.folded), layers.at()
    return lambda name, x: way(at[name], x, volumes[x.shape[-1]]) if name in at else x


class UNetRun:
    """A UNet over one schedule, for views whose pictures are described by one token each.

    Args:
        unet: the network.
        tokens: (V, 1, D) fp32, one for each view.
        times: of all the steps.
        guided: give what is predicted without the picture as well: token and latent of zeros.
        options: see `RunOptions`.
        depth: SyncDreamer's layers, or None.
        forward: stands in for `fast_forward(unet, depth)`, such as a `Compiled` of it.
    """

    def __init__(
        self,
        unet: FastUNet,
        tokens: Tensor,
        times: Sequence[int],
        *,
        guided: bool,
        options: RunOptions,
        depth: DepthLayers | None = None,
        forward: Callable[..., tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.unet, self.tokens, self.depth, self.guided, self.options = unet, tokens, depth, guided, options
        self.times = torch.as_tensor(list(times), device=tokens.device)
        self._forward = forward or fast_forward(unet, depth)
        if options.channels_last:
            unet.use_channels_last()
        self._known: tuple[torch.dtype, Tensor, Tensor, Tensor] | None = None
        self._deep: dict[int, Tensor] = {}

    def is_fresh(self, step: int) -> bool:
        """Whether all layers run in a step, counted from 0."""
        return step % self.options.reuse_steps == 0

    def predict(
        self, step: int, latents: Tensor, beside: Tensor, piece: slice, volumes: Volumes | None = None
    ) -> Tensor:
        """The noise of some views in a step, counted from 0; asking again for a step gives the same.

        Args:
            step: which time it is.
            latents: (n, 4, H, W) of those views.
            beside: (1, 4, H, W) the picture's latent.
            piece: which views these are.
            volumes: of their rays, with ``depth``.

        Returns:
            (2 or 1, n, 4, H, W) fp32, the half with the picture first.
        """
        if self.options.plain:
            return self._predict_plainly(step, latents, beside, piece, volumes)
        dtype, rows, told, free = self._once()
        x = torch.cat([latents, beside.expand(len(latents), -1, -1, -1)], 1)
        here = told[piece]
        if self.guided:
            x = torch.cat([x, torch.cat([latents, torch.zeros_like(latents)], 1)])
            here = torch.cat([here, free.expand_as(here)])
        deep = None if self.is_fresh(step) else self._deep[piece.start].to(dtype)
        own = None if volumes is None else {width: volume.to(dtype) for width, volume in volumes.items()}
        noise, deep = self._forward(x.to(dtype), rows[step : step + 1], here, deep, own)
        if self.options.reuse_steps > 1:
            self._deep[piece.start] = deep
        return noise.float().unflatten(0, (2 if self.guided else 1, -1))

    def _once(self) -> tuple[torch.dtype, Tensor, Tensor, Tensor]:
        """Dtype, rows of times (T, Σ), and what cross-attentions answer to the tokens (V, Σ) and to zeros (1, Σ).

        Worked out again when the network has another dtype, as after an overflow.
        """
        dtype = module_dtype(self.unet)
        if self._known is None or self._known[0] != dtype:
            free = self.unet.told(torch.zeros_like(self.tokens[:1]))
            self._known = (dtype, self.unet.time_rows(self.times), self.unet.told(self.tokens), free)
        return self._known

    def _predict_plainly(
        self, step: int, latents: Tensor, beside: Tensor, piece: slice, volumes: Volumes | None
    ) -> Tensor:
        """`predict`, all worked out here and now, one half after the other."""
        dtype, halves = module_dtype(self.unet), []
        for share in (1, 0) if self.guided else (1,):
            x = torch.cat([latents, share * beside.expand(len(latents), -1, -1, -1)], 1).to(dtype)
            row = self.unet.time_rows(self.times[step : step + 1])
            look = None
            if self.depth is not None and volumes is not None:
                own = {width: volume.to(dtype)[: share * len(x)] for width, volume in volumes.items()}
                look = looking(self.depth, own, plain=True)
            tokens = (share * self.tokens[piece]).to(dtype)
            halves.append(self.unet(x, row, None, None, look, tokens)[0].float())
        return torch.stack(halves)


def fast_forward(unet: FastUNet, depth: DepthLayers | None = None) -> Callable[..., tuple[Tensor, Tensor]]:
    """`FastUNet.forward` as a function of tensors alone: (x, row, told, deep, volumes) → (noise, deep)."""

    def forward(
        x: Tensor, row: Tensor, told: Tensor, deep: Tensor | None, volumes: Volumes | None
    ) -> tuple[Tensor, Tensor]:
        look = None if depth is None or volumes is None else looking(depth, volumes)
        found: tuple[Tensor, Tensor] = unet(x, row, told, deep, look)
        return found

    return forward


class SyncRun:
    """SyncDreamer's networks over one schedule.

    Args:
        unet: the network.
        volume, depth: SyncDreamer's own.
        tokens, views: (16, 1, D) and (16, 4) fp32, of each view.
        beside: (1, 4, H, W) the picture's latent.
        times, guided, options: see `UNetRun`.
        compiled: stand-ins by name (``unet``, ``spatial``, ``frustum``), such as `sync_functions` through `Compiled`.
        geometry: of `volume_geometry`, where it is there from an earlier run.
    """

    def __init__(
        self,
        unet: FastUNet,
        volume: VolumeNetwork,
        depth: DepthLayers,
        tokens: Tensor,
        views: Tensor,
        beside: Tensor,
        times: Sequence[int],
        *,
        guided: bool,
        options: RunOptions,
        compiled: dict[str, Callable[..., Any]] | None = None,
        geometry: Geometry | None = None,
    ) -> None:
        self.volume, self.views, self.beside, self.options = volume, views, beside, options
        call = compiled or sync_functions(unet, volume, depth)
        self.unet = UNetRun(
            unet, tokens, times, guided=guided, options=options, depth=depth, forward=call["unet"]
        )  # fmt: skip
        self._spatial, self._frustum = call["spatial"], call["frustum"]
        self._geometry = geometry
        if geometry is None and not options.plain:
            self._geometry = volume_geometry(volume.sizes, tokens.device)
        self._kept: dict[int, Volumes] = {}

    def predict(self, step: int, latents: Tensor, pieces: Iterable[slice]) -> Tensor:
        """The noise of all views in a step: latents (16, 4, H, W) → (2 or 1, 16, 4, H, W); see `UNetRun.predict`.

        The volume is built once, from all of them; a piece of the views at a time then goes through the UNet.
        """
        dtype = module_dtype(self.volume)
        timestep, views = self.unet.times[step : step + 1], self.views.to(dtype)
        fresh, found = self.unet.is_fresh(step), []
        volumes: Volumes
        volume = self._spatial(latents.to(dtype), timestep, views, self._geometry) if fresh else None
        for piece in pieces:
            if volume is not None:
                volumes = self._frustum(volume, timestep, *self._seen_by(piece, views))
                if self.options.reuse_steps > 1:
                    self._kept[piece.start] = finest(volumes)
            else:
                volumes = self._kept[piece.start]
            found.append(self.unet.predict(step, latents[piece], self.beside, piece, volumes))
        return torch.cat(found, 1)

    def _seen_by(self, piece: slice, views: Tensor) -> tuple[Tensor, range, Geometry | None]:
        """Views, indices and geometry of a piece, as `VolumeNetwork.frustum_volumes` takes them.

        The piece is cut out here: `torch.compile` would compile its function for every one of them.
        """
        if self._geometry is None:
            return views, range(N_VIEWS)[piece], None
        own = views[piece]
        return own, range(len(own)), replace(self._geometry, frustums=self._geometry.frustums[piece])


def finest(volumes: Volumes) -> Volumes:
    """The volumes that the layers of the finest level read, which are all that a step needs that reuses features."""
    widest = max(volumes)
    return {widest: volumes[widest]}


def sync_functions(unet: FastUNet, volume: VolumeNetwork, depth: DepthLayers) -> dict[str, Callable[..., Any]]:
    """What a step of SyncDreamer calls, by name, as functions that can be compiled."""
    return {
        "unet": fast_forward(unet, depth), "spatial": volume.spatial_volume, "frustum": volume.frustum_volumes,
    }  # fmt: skip


def guide(halves: Tensor, scale: float) -> Tensor:
    """Halves (2 or 1, n, ...) of `UNetRun.predict` → the guided noise (n, ...): free + scale * (told - free)."""
    if len(halves) == 1:
        return halves[0]
    told, free = halves
    return free + scale * (told - free)


class Runner:
    """Keeps for a generator what its runs share: the fast network over its UNet's parameters, compiled functions.

    Args:
        unet: of diffusers.
        fast: made of it, see `multiview.fastunet.fast_unet`.
    """

    def __init__(self, unet: nn.Module, fast: FastUNet) -> None:
        self.unet, self.fast = unet, fast
        self._compiled: dict[str, Callable[..., Any]] | None = None

    def compiled(self, functions: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
        """Functions through `Compiled`, the same objects every time."""
        if self._compiled is None:
            self._compiled = {name: Compiled(function, name) for name, function in functions.items()}
        return self._compiled
