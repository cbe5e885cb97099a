"""``python -m benchmarks gpu``: the network stages on an accelerator, beside what the card itself can do.

Measured in one process, after warm-up, as the median of some runs with their range:

- the card's own ceilings: products of large matrices (fp32, TF32, bf16, fp16), copies on the card and to it;
- one picture through a network of TripoSR's size (419M parameters, filled) and a mesh taken of a field of TripoSR's
  size fitted to a teapot, by stage;
- SyncDreamer's sixteen views over all steps of the schedule, networks of the published sizes (filled), in the ways that
  `multiview.fastrun` knows, against the plain one: fp32, one view and one half of the guidance at a time, nothing kept.

It needs torch, numpy and safetensors, and for a mesh on the CPU scipy; no diffusers. ``--small`` runs all of it in
seconds on any machine, to see that it runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lrm import devicemesh
from lrm.blocks import use_dtype
from lrm.devicemesh import DeviceEvaluator
from lrm.field import TriplaneField
from lrm.fit import FitConfig, fit_points
from lrm.lattice import Lattice
from lrm.threshold import choose_threshold
from lrm.triposr import TripoSRConfig, TripoSRNetwork
from lrm.vit import VitConfig
from multiview.devices import describe_device, on_accelerator, pick_device, synchronize
from multiview.fastrun import Compiled, RunOptions, SyncRun, guide, sync_functions
from multiview.fastunet import FastUNet
from multiview.generator import draw_noise
from multiview.ldm import UNetSizes
from multiview.syncdreamervolumes import (
    N_VIEWS,
    DepthLayers,
    VolumeNetwork,
    VolumeSizes,
    keep_norms_fp32,
    view_embeddings,
)

from .teapot import color, distance, teapot_field

LIFT_TARGET_S, SYNC_TARGET = 0.15, 4.0
GUIDANCE = 2.0
_MIB = 1 << 20
_POINTS = 1 << 18  # per pass through a field, as `extract_mesh`


@dataclass(frozen=True)
class Sizes:
    """What is measured; the defaults are the published models.

    Attributes:
        triposr, unet, volume: of the networks.
        resolution: samples per axis of the mesh's lattice.
        teapot: None for the fitted field of TripoSR's size, or the size of one that is fitted here in a moment.
        matrix_side, copy_mib: of the ceilings.
        steps: of SyncDreamer's schedule.
        runs: of each figure, after one to warm up.
    """

    triposr: TripoSRConfig = field(default_factory=TripoSRConfig)
    unet: UNetSizes = field(default_factory=UNetSizes)
    volume: VolumeSizes = field(default_factory=VolumeSizes)
    resolution: int = 256
    teapot: FitConfig | None = None
    matrix_side: int = 8192
    copy_mib: int = 1024
    steps: int = 50
    runs: int = 10


SMALL = Sizes(
    triposr=TripoSRConfig(
        image_size=32, vit=VitConfig(patch_size=16, width=32, layers=1, heads=2, mlp_width=32), plane_size=4,
        channels=32, heads=2, head_width=16, layers=1, norm_groups=8, plane_channels=4, decoder_width=8,
        decoder_layers=1,
    ),
    unet=UNetSizes(channels=(32, 32, 64, 64), layers=2, heads=2, context_width=8, latent_size=8),
    volume=VolumeSizes(
        latent_size=8, view_channels=8, time_width=16, widths=(8, 8, 8, 16), grid_size=8, depth_planes=8
    ),
    resolution=24, teapot=FitConfig(plane_channels=4, plane_size=16, width=16, hidden_layers=2), matrix_side=64,
    copy_mib=1, steps=4, runs=2,
)  # fmt: skip


@dataclass(frozen=True)
class Timing:
    """Seconds of some runs."""

    median: float
    low: float
    high: float


def clocked(call: Callable[[], object], device: torch.device, runs: int) -> Timing:
    """Time a call ``runs`` times; the device is waited for."""
    seconds = []
    for _ in range(runs):
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return Timing(statistics.median(seconds), min(seconds), max(seconds))


def timed(call: Callable[[], object], device: torch.device, runs: int) -> Timing:
    """`clocked`, after one call that is not counted."""
    call()
    return clocked(call, device, runs)


# The card


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Let products of fp32 matrices take TF32 inside the block, or not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = on
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def ceilings(device: torch.device, sizes: Sizes) -> dict[str, float]:
    """What the device can do: TFLOP/s of products by dtype, GB/s of copies (on the device read and write count)."""
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if on_accelerator(device):
        kinds |= {"tf32": torch.float32, "fp16": torch.float16}
    side, found = sizes.matrix_side, {}
    for name, dtype in kinds.items():
        a, b = (draw_noise((side, side), _seeded(k), device).to(dtype) for k in (0, 1))
        with tf32(name == "tf32"):
            found[f"{name} TFLOP/s"] = 2 * side**3 / timed(partial(torch.mm, a, b), device, 5).low / 1e12
    count = sizes.copy_mib * _MIB // 4
    here = torch.zeros(count, device=device)
    there = torch.empty_like(here)
    found["copy on the device GB/s"] = 8 * count / timed(lambda: there.copy_(here), device, 5).low / 1e9
    if on_accelerator(device):
        pinned = torch.zeros(count).pin_memory()
        found["copy to the device GB/s"] = (
            4 * count / timed(lambda: there.copy_(pinned, non_blocking=True), device, 5).low / 1e9
        )
    return found


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def filled(network: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a network's parameters: matrices by 1 / sqrt(inputs), norms with 1 and 0; for evaluation, no gradients."""
    generator = torch.Generator(next(network.parameters()).device).manual_seed(seed)
    for name, values in network.named_parameters():
        if values.ndim > 1:
            values.normal_(0, 1 / math.sqrt(values[0].numel()), generator=generator)
        else:
            values.fill_(float(name.endswith("weight")))
    return network.eval().requires_grad_(False)


# TripoSR's size


def small_teapot(config: FitConfig) -> TriplaneField:
    """A field fitted to the teapot in a moment, for ``--small``."""
    points = (torch.rand(4000, 3, generator=_seeded(0)) * 2 - 1) * config.scene_radius
    return fit_points(config, points, distance(points) < 0, color(points), steps=60)


def on(device: torch.device, one: TriplaneField) -> TriplaneField:
    """A field on a device."""
    return replace(one, planes=one.planes.to(device), decoder=one.decoder.to(device))


@torch.no_grad()
def measure_lift(device: torch.device, sizes: Sizes, compiling: bool) -> list[dict[str, Any]]:
    """One picture to a mesh, by stage: rows of ``way``, ``copy``, ``network``, ``mesh`` and ``all``.

    ``mesh parts`` are those of `mesh_parts`. On the CPU the mesh is left out where scipy is missing.
    """
    config = sizes.triposr
    picture = torch.rand(1, 3, config.image_size, config.image_size, generator=_seeded(1))
    if on_accelerator(device):
        picture = picture.pin_memory()
    with torch.enable_grad():  # it is fitted where it does not lie in the cache
        one = on(device, teapot_field() if sizes.teapot is None else small_teapot(sizes.teapot))
    mesh, parts = _mesh_timing(device, one, sizes), mesh_parts(device, one, sizes)
    with device:
        network = filled(TripoSRNetwork(config))
    flop = counted(lambda: network(picture.to(device)))
    rows = []
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("bf16, compiled", torch.bfloat16)):
        compiled = Compiled(network, "TripoSR") if "compiled" in name else None
        if compiled is not None and not compiling:
            continue
        use_dtype(network, dtype)
        copy = timed(lambda: picture.to(device, non_blocking=True), device, sizes.runs)
        forward = timed(partial(compiled or network, picture.to(device)), device, sizes.runs)
        stages = {"copy": copy, "network": forward, **({} if mesh is None else {"mesh": mesh})}
        rows.append(
            {
                "way": name,
                "failed": compiled is not None and compiled.failed,
                "tflop": flop / 1e12,
                "seconds": {stage: asdict(timing) for stage, timing in stages.items()},
                "all": None if mesh is None else sum(timing.median for timing in stages.values()),
                "mesh parts": {part: asdict(timing) for part, timing in parts.items()},
            }
        )
    return rows


def _mesh_timing(device: torch.device, one: TriplaneField, sizes: Sizes) -> Timing | None:
    """Seconds of taking a mesh, None where what it needs is missing."""
    if importlib.util.find_spec("scipy") is None and not devicemesh.works_here(device):
        return None
    from lrm.mesh import extract_mesh

    return timed(lambda: extract_mesh(one, mesh_resolution=sizes.resolution), device, max(1, sizes.runs // 2))


def mesh_parts(device: torch.device, one: TriplaneField, sizes: Sizes) -> dict[str, Timing]:
    """What a mesh over the whole cube is made of, as tensors on the device: one lattice, its second look left out.

    Returns:
        ``folding`` the decoder into the planes, the coarse ``scan``, ``cells`` and triangles, ``pieces``, ``vertices``
        with their colours, and the ``copy`` of the mesh to the CPU.
    """
    n, raw = sizes.resolution, one.raw_density()
    lattice = Lattice((-one.scene_radius,) * 3, 2 * one.scene_radius / (n - 1), (n,) * 3)
    both = raw.with_color

    def density_and_color(points: Tensor) -> Tensor:
        assert both is not None
        density, colors = both(points)
        return torch.cat([density[:, None], colors], 1)

    evaluate, colored = (DeviceEvaluator(ask, device, _POINTS) for ask in (raw.raw, density_and_color))
    coarse = devicemesh.device_scan(lattice, 4, evaluate)
    level = choose_threshold(coarse.inner, raw, one.level, "auto", samples_per_axis=n).raw
    found = devicemesh.crossings(lattice, coarse, evaluate, level)
    assert found is not None and found.cells
    outer, _ = found.outer(0.01)
    vertices, colors = outer.place(colored, 4)
    calls: dict[str, Callable[[], object]] = {
        "folding": one.raw_density,
        "scan": lambda: devicemesh.device_scan(lattice, 4, evaluate),
        "cells": lambda: devicemesh.crossings(lattice, coarse, evaluate, level),
        "pieces": lambda: found.outer(0.01),
        "vertices": lambda: outer.place(colored, 4),
        "copy": lambda: [values.cpu() for values in (vertices, colors, outer.faces)],
    }
    return {name: timed(call, device, max(1, sizes.runs // 2)) for name, call in calls.items()}


def counted(call: Callable[[], object]) -> float:
    """Floating-point operations of the products and convolutions in a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


# SyncDreamer


class SyncParts(nn.Module):
    """SyncDreamer's networks, but for the VAE and CLIP, which run once a picture."""

    def __init__(self, unet: UNetSizes, volume: VolumeSizes) -> None:
        super().__init__()
        self.unet = FastUNet(unet)
        self.volume, self.depth = VolumeNetwork(volume), DepthLayers(unet.channels, volume.widths)

    def in_dtype(self, dtype: torch.dtype) -> SyncParts:
        """Itself, in another dtype, the volumes' norms in fp32 as always."""
        self.to(dtype)
        keep_norms_fp32(self)
        return self


@dataclass(frozen=True)
class Way:
    """One way to run SyncDreamer's steps.

    Attributes:
        name: in the table.
        dtype: of the networks.
        options: see `RunOptions`.
    """

    name: str
    dtype: torch.dtype
    options: RunOptions


PLAIN = Way("plain fp32", torch.float32, RunOptions(plain=True))
WAYS = (
    PLAIN,
    Way("fp32", torch.float32, RunOptions()),
    Way("bf16", torch.bfloat16, RunOptions()),
    Way("bf16, channels last", torch.bfloat16, RunOptions(channels_last=True)),
    Way("bf16, deep layers every 2nd step", torch.bfloat16, RunOptions(reuse_steps=2)),
    Way("bf16, compiled, channels last", torch.bfloat16, RunOptions(compile=True, channels_last=True)),
    Way("bf16, compiled", torch.bfloat16, RunOptions(compile=True)),
)


def schedule(steps: int) -> tuple[list[int], list[float]]:
    """Times of the published sampler, latest first, and ᾱ at each and after the last."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    alphas = (1 - betas).cumprod(0)
    times = list(range(0, 1000, 1000 // steps))[:steps][::-1]
    return [t + 1 for t in times], [float(alphas[t + 1]) for t in times] + [float(alphas[0])]


class Sampler:
    """DDIM without fresh noise over filled networks.

    Args:
        parts: of SyncDreamer.
        sizes: how many steps.
        device: where they are.
    """

    def __init__(self, parts: SyncParts, sizes: Sizes, device: torch.device) -> None:
        self.parts, self.sizes, self.device = parts, sizes, device
        volume = sizes.volume
        shape = (N_VIEWS, volume.latent_channels, volume.latent_size, volume.latent_size)
        self.start = draw_noise(shape, _seeded(2), device)
        self.tokens = draw_noise((N_VIEWS, 1, sizes.unet.context_width), _seeded(3), device)
        self.beside = draw_noise((1, *shape[1:]), _seeded(4), device)
        self.views = view_embeddings(20.0).to(device)
        self.times, self.alphas = schedule(sizes.steps)

    def begin(self, options: RunOptions, compiled: dict[str, Callable[..., Any]] | None) -> SyncRun:
        """A run with one of the ways; what it works out once is worked out in its first step."""
        parts = self.parts
        return SyncRun(
            parts.unet, parts.volume, parts.depth, self.tokens, self.views, self.beside, self.times,
            guided=True, options=options, compiled=compiled,
        )  # fmt: skip

    def noise(self, run: SyncRun, step: int, latents: Tensor) -> Tensor:
        """The guided noise of all views."""
        each = [slice(k, k + 1) for k in range(N_VIEWS)]
        return guide(run.predict(step, latents, each if run.options.plain else [slice(0, N_VIEWS)]), GUIDANCE)

    @torch.no_grad()
    def sample(self, options: RunOptions, compiled: dict[str, Callable[..., Any]] | None, steps: int) -> Tensor:
        """The latents after so many steps of the schedule."""
        run, x = self.begin(options, compiled), self.start
        for step in range(steps):
            noise = self.noise(run, step, x)
            now, after = self.alphas[step], self.alphas[step + 1]
            clean = (x - (1 - now) ** 0.5 * noise) / now**0.5
            x = after**0.5 * clean + (1 - after) ** 0.5 * noise
        return x


@torch.no_grad()
def measure_sync(device: torch.device, sizes: Sizes, ways: Sequence[Way]) -> Iterator[dict[str, Any]]:
    """SyncDreamer's steps in some ways: rows of ``way``, ``seconds`` and the first step's ``noise_off``.

    ``noise_off`` is the distance from the first way's noise in the first step, relative to its length.
    """
    with device:
        parts = filled(SyncParts(sizes.unet, sizes.volume))
    assert isinstance(parts, SyncParts)
    sampler, plain = Sampler(parts, sizes, device), None
    for way in ways:
        parts.in_dtype(way.dtype)
        parts.unet.use_channels_last(way.options.channels_last)
        compiled: dict[str, Callable[..., Any]] | None = None
        if way.options.compile:
            functions = sync_functions(parts.unet, parts.volume, parts.depth)
            compiled = {name: Compiled(function, name) for name, function in functions.items()}
        sampler.sample(way.options, compiled, min(3, sizes.steps))  # to warm up
        runs = 1 if way.options.plain else max(1, sizes.runs // 3)
        timing = clocked(partial(sampler.sample, way.options, compiled, sizes.steps), device, runs)
        first = sampler.noise(sampler.begin(way.options, compiled), 0, sampler.start)
        plain = first if plain is None else plain
        yield {
            "way": way.name,
            "failed": any(one.failed for one in (compiled or {}).values() if isinstance(one, Compiled)),
            "seconds": asdict(timing),
            "noise_off": ((first - plain).norm() / plain.norm()).item(),
        }


def step_flop(sizes: Sizes) -> dict[str, float]:
    """TFLOP of one guided step of SyncDreamer by part, counted on networks without numbers.

    Returns:
        ``volume`` (the views' encoder and the spatial network, once), ``frustum`` (sixteen views), ``unet and depth``
        (thirty-two latents), the same two where every product is done (``... plainly``), and both ``all``.
    """
    meta = torch.device("meta")
    with meta:
        parts = SyncParts(sizes.unet, sizes.volume).eval().requires_grad_(False)
        v, side = sizes.volume, sizes.volume.latent_size
        latents, time_, views = torch.empty(N_VIEWS, v.latent_channels, side, side), torch.empty(1), torch.empty(16, 4)
        seen = torch.empty(N_VIEWS, v.widths[0], v.depth_planes, side, side)
        features, time_row = (
            torch.empty(1, N_VIEWS * v.view_channels, *(v.grid_size,) * 3),
            torch.empty(1, v.time_width),
        )
        x = torch.empty(2 * N_VIEWS, sizes.unet.in_channels, side, side)
        token = torch.empty(2 * N_VIEWS, 1, sizes.unet.context_width)
    volumes: dict[int, Tensor] = {}

    def frustum() -> None:
        volumes.update(parts.volume.frustum(seen, time_row, views))

    def volume() -> None:
        parts.volume.encoder(latents, time_row, views)
        parts.volume.spatial(features, time_row)

    from multiview.fastrun import looking

    row, told = parts.unet.time_rows(time_), parts.unet.told(token)
    found = {"volume": counted(volume), "frustum": counted(frustum)}
    found["unet and depth"] = counted(lambda: parts.unet(x, row, told, None, looking(parts.depth, volumes)))
    found["unet and depth, plainly"] = counted(
        lambda: parts.unet(x, row, None, None, looking(parts.depth, volumes, plain=True), token)
    )
    found["all"] = found["volume"] + found["frustum"] + found["unet and depth"]
    found["all, plainly"] = found["volume"] + found["frustum"] + found["unet and depth, plainly"]
    return {name: value / 1e12 for name, value in found.items()}


# The table


def measure(
    device: torch.device, sizes: Sizes, only: Sequence[str], compiling: bool, keep: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """All figures, as values that JSON has; ``keep`` is given what there is after every part."""
    found: dict[str, Any] = {
        "device": describe_device(device), "torch": torch.__version__, "steps": sizes.steps,
        "resolution": sizes.resolution, "cudnn_tf32": torch.backends.cudnn.allow_tf32,
    }  # fmt: skip
    if "ceilings" in only:
        found["ceilings"] = ceilings(device, sizes)
        keep(found)
    if "triposr" in only:
        found["triposr"] = measure_lift(device, sizes, compiling)
        keep(found)
    if "syncdreamer" in only:
        found["step_tflop"], found["syncdreamer"] = step_flop(sizes), []
        for row in measure_sync(device, sizes, [way for way in WAYS if compiling or not way.options.compile]):
            found["syncdreamer"].append(row)
            keep(found)
    return found


def table(found: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [f"{found['device']}, torch {found['torch']}, TF32 in fp32 convolutions: {found['cudnn_tf32']}"]
    rates = found.get("ceilings", {})
    lines += [f"  {name:34}{value:10.2f}" for name, value in rates.items()]
    if "triposr" in found:
        lines += [
            "",
            f"TripoSR's size, picture to mesh, {found['resolution']} samples per axis (s; target {LIFT_TARGET_S})",
        ]
        lines += [_lift_line(row, rates) for row in found["triposr"]]
        lines += [f"  mesh over the whole cube: {_seconds(found['triposr'][0]['mesh parts'])}"]
    if "syncdreamer" in found:
        lines += [
            "",
            f"SyncDreamer, 16 views x {found['steps']} steps, networks of the steps (s; target {SYNC_TARGET:g} x)",
        ]
        plain = found["syncdreamer"][0]["seconds"]["median"]
        lines += [_sync_line(row, plain) for row in found["syncdreamer"]]
        flop = found["step_tflop"]
        lines += ["  TFLOP of a step: " + ", ".join(f"{name} {value:.3g}" for name, value in flop.items())]
        if "bf16 TFLOP/s" in rates:
            floor = flop["all"] * found["steps"] / rates["bf16 TFLOP/s"]
            lines += [f"  floor in bf16 at the card's rate: {floor:.3f} s"]
    return "\n".join(lines)


def _lift_line(row: dict[str, Any], rates: dict[str, float]) -> str:
    stages = _seconds(row["seconds"])
    rate = rates.get("fp32 TFLOP/s" if row["way"] == "fp32" else "bf16 TFLOP/s")
    floor = "" if rate is None else f", network's floor {row['tflop'] / rate:.4f}"
    whole = "no mesh: scipy is missing" if row["all"] is None else f"all {row['all']:.4f}"
    return f"  {row['way']:18}{stages}{floor}, {whole}{_failed(row)}"


def _seconds(stages: dict[str, dict[str, float]]) -> str:
    return ", ".join(
        f"{name} {one['median']:.4f} ({one['low']:.4f} to {one['high']:.4f})" for name, one in stages.items()
    )


def _sync_line(row: dict[str, Any], plain: float) -> str:
    one = row["seconds"]
    return (
        f"  {row['way']:34}{one['median']:9.3f} ({one['low']:.3f} to {one['high']:.3f})  {plain / one['median']:6.2f} x"
        f"  first noise off by {row['noise_off']:.2g}{_failed(row)}"
    )


def _failed(row: dict[str, Any]) -> str:
    return "  [torch.compile does not work here: as without]" if row["failed"] else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__.split("\n")[0])
    parts = ("ceilings", "triposr", "syncdreamer")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default %(default)s)")
    parser.add_argument("--small", action="store_true", help="tiny networks, to see that it runs")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="parts to measure (default: all)")
    parser.add_argument("--steps", type=int, help="of SyncDreamer's schedule (default 50)")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled ways out")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args(arguments)
    sizes = SMALL if options.small else Sizes()
    if options.steps is not None:
        sizes = replace(sizes, steps=options.steps)
    found = measure(pick_device(options.device), sizes, options.only, not options.no_compile, partial(_keep, options))
    print(table(found))
    return 0


def _keep(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Tell what there is, and write it down, so that a run that is cut off leaves its figures."""
    print(f"-- measured so far\n{table(found)}", file=sys.stderr, flush=True)
    if options.json is not None:
        from multiview.files import write_json_whole

        write_json_whole(options.json, found)


if __name__ == "__main__":
    sys.exit(main())
