"""Keeping a lift within the memory that it may take: what each stage needs, what can be made smaller, and a second try.

::

    --max-memory ──► number format ──► generator beside the model, or in turn ──► photos at once ──► points per pass
                     (while loading)    (`trilift.turns`)                          (in a folder)      (of every lift)

Counted is the memory of the process's own on the CPU (weights that are mapped from a file are the system's cache, and
it takes them back when it needs to), and what is allocated on the device elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from multiview.devices import on_accelerator
from multiview.errors import SettingsError

from .recipe import empty_caches, is_out_of_memory
from .settings import TooLittleMemoryError

if TYPE_CHECKING:
    from .views import PhotoToViews

Made = TypeVar("Made")

CHUNKS = (262_144, 65_536, 16_384, 4_096)
"""Points per pass through a field, the usual number first; fewer take less memory and change results by rounding."""
_LEAST_CHUNK = 1_024  # down to which a second try goes
_VIEW_BATCHES = (8, 4, 2, 1)

# Numbers that a network keeps at once beside its weights, at most, for each plane token and channel of its width, as
# counted operation by operation on the full-size networks (`python -m benchmarks memory`).
_NETWORK_NUMBERS = {"triposr": 10.8, "openlrm": 8.75, "instantmesh": 9.7}
_EMBEDDED_BYTES = 40_000_000  # the embedded network and its silhouette, measured likewise
# Bytes of a lift's other stages, measured as peaks of a process's own memory (the same command), each with a margin.
_POINT_BYTES = 64  # of each point in a pass while the surface is taken; the field goes through it in small blocks
_SAMPLE_BYTES = 1_300  # of each point in a pass of volume rendering, when a lift is compared with its photo,
_SAMPLES = 48**3  # of which there are so many
_SURFACE_BYTES = 1_700  # of each square of the resolution, while the surface is taken, painted and written
_TEXEL_BYTES = 100  # of each texel, where a texture is baked
_LIBRARIES_BYTES = 90_000_000  # what is imported, and pictures, by the end of the first lift
# Of each photo beyond the first that is on its way: what stays of it between stages, and its thread's freed memory.
_PHOTO_BYTES = 75_000_000


@dataclass(frozen=True)
class Crowd:
    """How many photos are lifted at once in this process; see `trilift.lanes`.

    Attributes:
        photos: on their way, each at a stage of its own but for the two below.
        batch: in one pass of the network.
        meshed: while their surfaces are taken.
    """

    photos: int = 1
    batch: int = 1
    meshed: int = 1

    def smaller(self) -> list[Crowd]:
        """Itself, and what may be tried in its place, down to one photo alone."""
        halves = [self.batch >> n for n in range(self.batch.bit_length())]
        tries = [Crowd(self.photos - self.batch + batch, batch, self.meshed) for batch in halves]
        tries += [Crowd(tries[-1].photos, 1, 1), Crowd(3), Crowd()]
        return [each for n, each in enumerate(tries) if each.photos <= self.photos and each not in tries[:n]]


@dataclass(frozen=True)
class LiftPlan:
    """How lifts are kept within bounds.

    Attributes:
        chunk_size: points per pass through the field.
        needs_bytes: what this process will take in all, about.
        crowd: how many lifts there are at once.
    """

    chunk_size: int
    needs_bytes: int
    crowd: Crowd = Crowd()

    def told(self, limit: int) -> str:
        """In a sentence, for people."""
        many = self.crowd
        how = "one photo at a time"
        if many.photos > 1:
            how = f"{many.photos} photos on their way, {many.batch} in the network and {many.meshed} meshed at a time"
        return (
            f"--max-memory {limit / 1e9:.3g} GB: {how}, {self.chunk_size} points per pass; about "
            f"{self.needs_bytes / 1e9:.3g} GB"
        )


@dataclass
class Memory:
    """The memory that lifts may take, and what was done to keep within it.

    Attributes:
        limit: bytes; None for no limit, where only running out of memory makes work smaller.
        device: whose memory is meant.
        held: bytes that were taken before the first lift: libraries and weights.
        network: bytes that the reconstruction network keeps while it works.
        crowd: how many lifts share the memory.
        chunk_size: points per pass of the next lift.
        warnings: sentences on what was made smaller, of the lift under way.
    """

    limit: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    held: int = 0
    network: int = 0
    crowd: Crowd = Crowd()
    chunk_size: int = CHUNKS[0]
    warnings: list[str] = field(default_factory=list)

    def begun(self, resolution: int, texels: int = 0) -> Memory:
        """The same for one lift, which is planned now; lifts in other threads have theirs.

        Args:
            resolution: samples per axis of the mesh.
            texels: of a baked texture.

        Raises:
            SettingsError: it does not fit in any way; says how much is needed, and at which resolution it would fit.
        """
        chunk_size = CHUNKS[0] if self.limit is None else self.plan(resolution, texels=texels).chunk_size
        return replace(self, chunk_size=chunk_size, warnings=[])

    def plan(self, resolution: int, crowds: Sequence[Crowd] = (), *, texels: int = 0) -> LiftPlan:
        """Choose how many lifts there are at once, and the points per pass, as many as may be; see `begun`.

        Args:
            resolution: samples per axis of the mesh.
            crowds: the first that fits is taken; without any, the one that is set.
            texels: see `begun`.
        """
        assert self.limit is not None, "there is something to keep within"
        least = 0
        for crowd in crowds or (self.crowd,):
            for chunk_size in CHUNKS:
                least = self.needs_bytes(resolution, chunk_size, crowd, texels)
                if least <= self.limit:
                    return LiftPlan(chunk_size, least, crowd)
        raise TooLittleMemoryError(
            f"--max-memory {self.limit / 1e9:.3g} GB: a lift at --resolution {resolution} needs about "
            f"{least / 1e9:.3g} GB on {self.device.type}, {self.held / 1e9:.3g} GB of it for weights and libraries"
            f"{self._smaller(resolution, texels)}. Give it more, or take a smaller model.",
            self.limit,
            least,
        )

    def needs_bytes(self, resolution: int, chunk_size: int, crowd: Crowd | None = None, texels: int = 0) -> int:
        """About what lifts take: what is held already, and the largest stage of one, or all stages of several."""
        crowd = crowd or self.crowd
        together = max if crowd.photos == 1 else _sum  # one photo is at one stage, several may be at all of them
        surface, seen = chunk_size * _POINT_BYTES, min(chunk_size, _SAMPLES) * _SAMPLE_BYTES
        if on_accelerator(self.device):  # there a field goes through its points at once; the surface is on the CPU
            points = chunk_size * _SAMPLE_BYTES
            return self.held + together(self.network * crowd.batch, points * crowd.meshed)
        surface += resolution**2 * _SURFACE_BYTES + texels * _TEXEL_BYTES
        stages = together(self.network, surface * crowd.meshed, seen)
        return self.held + _LIBRARIES_BYTES + stages + (crowd.photos - 1) * _PHOTO_BYTES

    def as_record(self) -> dict[str, Any]:
        """What was planned, for ``asset.json``."""
        return {"limit_bytes": self.limit, "points_per_pass": self.chunk_size, "photos_at_once": self.crowd.photos}

    def _smaller(self, resolution: int, texels: int) -> str:
        """Words on the highest resolution that would fit."""
        assert self.limit is not None, "there is something to keep within"
        for smaller in (1024, 512, 256, 128, 64):
            if smaller < resolution and self.needs_bytes(smaller, CHUNKS[-1], texels=texels) <= self.limit:
                return f"; --resolution {smaller} would fit"
        if texels and self.needs_bytes(resolution, CHUNKS[-1]) <= self.limit:
            return "; a smaller --texture-size or --texture vertex would fit"
        return ""

    def by_points(self, what: str, work: Callable[[int], Made]) -> Made:
        """``work(chunk_size)``; where memory runs out, again with half as many points per pass.

        Args:
            what: the stage, for people.
            work: changes nothing when it fails.

        Raises:
            MemoryError: memory runs out with 1024 points, too; says what to try.
        """
        while True:
            try:
                return work(self.chunk_size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self.chunk_size // 2 < _LEAST_CHUNK:
                    raise no_memory(what, f"{self.chunk_size} points per pass", error) from error
                failed = _without_frames(error)
            empty_caches()
            self.chunk_size //= 2
            self._told(what, failed, f"{self.chunk_size} points per pass in place of {CHUNKS[0]}")

    def by_views(self, what: str, work: Callable[[int | None], Made], asked: int | None) -> Made:
        """``work(view_batch)`` with ``asked`` views per pass (None: all); where memory runs out, with fewer.

        Raises:
            MemoryError: memory runs out with one view at a time, too.
        """
        tries = [asked, *(size for size in _VIEW_BATCHES if asked is None or size < asked)]
        for size, smaller in zip(tries, [*tries[1:], None], strict=True):
            try:
                return work(size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if smaller is None or not on_accelerator(self.device):  # on the CPU views go one by one anyway
                    raise no_memory(what, "the fewest views per pass", error) from error
                failed = _without_frames(error)
            empty_caches()
            self._told(what, failed, f"{smaller} views per pass")
        raise AssertionError("the last try returns or raises")

    def whole(self, what: str, work: Callable[[], Made]) -> Made:
        """``work()``, which cannot be made smaller; where memory runs out, once more with all caches emptied.

        Raises:
            MemoryError: memory runs out again.
        """
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failed = _without_frames(error)
        empty_caches()
        self._told(what, failed, "the same once more, after caches were emptied")
        try:
            return work()
        except Exception as error:
            if is_out_of_memory(error):
                raise no_memory(what, "a second try", error) from error
            raise

    def _told(self, what: str, error: str, instead: str) -> None:
        """Write down how a stage was done in the end: the last try's words take the place of those before."""
        start = f"Memory ran out in {what} "
        others = [text for text in self.warnings if not text.startswith(start)]
        self.warnings = [*others, f"{start}({error}): done with {instead}."]


def _sum(*parts: int) -> int:
    return sum(parts)


def no_memory(what: str, tried: str, error: BaseException) -> MemoryError:
    """The error of a stage that does not fit, however small; folder runs then lower the resolution."""
    return MemoryError(
        f"memory ran out in {what}, with {tried}, too ({_first_line(error)}). Try a lower --resolution, a smaller "
        "model, or close other programs; --max-memory says beforehand whether a lift fits."
    )


def _without_frames(error: BaseException) -> str:
    """The error's words; its frames, which hold what was allocated, are let go."""
    error.__traceback__ = None
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:100]


def own_bytes(device: torch.device) -> int:
    """What is taken now: of the process's own memory on the CPU, of the device's by this process elsewhere.

    Where the system does not tell what is a process's own (not Linux), its highest resident size is taken.
    """
    if on_accelerator(device):
        module: Any = torch.get_device_module(device)  # torch.accelerator tells it from 2.9 on, for MPS later still
        ask = getattr(module, "memory_allocated", None)
        return int(module.current_allocated_memory() if ask is None else ask(device))
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text("ascii", "replace").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def network_bytes(model: Any) -> int:
    """What a reconstruction model's network keeps at once beside its weights while it works on one object.

    Args:
        model: any `lrm.models.ReconstructionModel`; one of another family than the published ones counts as embedded.
    """
    numbers = _NETWORK_NUMBERS.get(getattr(model, "architecture", ""))
    if numbers is None:
        return _EMBEDDED_BYTES
    config = model.network.config
    width = config.width if hasattr(config, "width") else config.heads * config.head_width
    return int(numbers * 4 * 3 * config.plane_size**2 * width)


def module_bytes(network: nn.Module) -> int:
    """What a network's parameters and buffers take, wherever they lie."""
    return sum(t.numel() * t.element_size() for t in (*network.parameters(), *network.buffers()))


def dtype_within(dtype: str, device: torch.device, weights_bytes: int, limit: int | None) -> str:
    """The number format to ask for so that a model loads within ``limit`` bytes.

    On the CPU, fp32 weights are read straight from their file, and bf16 ones are a copy of half the size: where
    ``auto`` might make that copy and it does not fit, it becomes fp32. On an accelerator ``auto`` is small already.

    Args:
        dtype: as the user said.
        device: where the model shall run.
        weights_bytes: of the file, in fp32.
        limit: see `Memory`.
    """
    if limit is None or dtype != "auto" or on_accelerator(device):
        return dtype
    return "fp32" if own_bytes(device) + weights_bytes // 2 + _LIBRARIES_BYTES > limit else dtype


def left_for_generator(limit: int | None, model: Any, device: torch.device) -> int | None:
    """What a view generator may take beside a reconstruction model that stays loaded.

    Raises:
        SettingsError: the model's weights alone do not fit.
    """
    if limit is None or not on_accelerator(device):
        return limit
    taken = module_bytes(model.network)
    if taken >= limit:
        raise SettingsError(
            f"--max-memory {limit / 1e9:.3g} GB: the weights of {model.name} alone take {taken / 1e9:.3g} GB on "
            f"{device.type}. Give it more, or take a smaller model."
        )
    return limit - taken


def memory_of(
    limit: int | None, model: Any, generator: PhotoToViews | None, device: torch.device, held: int | None = None
) -> Memory:
    """What is known once everything is loaded; a generator is released from the device where both do not fit there.

    Args:
        limit: see `Memory`.
        model, generator, device: as they were loaded.
        held: bytes that are taken while lifting; None for what is taken now.

    Raises:
        SettingsError: not even the smallest lift fits.
    """
    memory = Memory(limit, device, own_bytes(device) if held is None else held, network_bytes(model))
    if limit is None:
        return memory
    release = getattr(None if generator is None else generator.model, "enable_model_cpu_offload", None)
    if on_accelerator(device) and release is not None and memory.needs_bytes(0, CHUNKS[-1]) > limit:
        release()  # from now on it is there only while it works
        empty_caches()
        memory.held = own_bytes(device)
    memory.plan(16)
    return memory
