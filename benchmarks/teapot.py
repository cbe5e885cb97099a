"""A teapot of analytic shapes, and a triplane field of TripoSR's size that is fitted to it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrm.field import PlanesDecoder, TriplaneField
from lrm.fit import FitConfig, fit_points
from multiview.files import written_whole

_POINTS = 400_000
_PART_COLORS = ((0.85, 0.80, 0.70), (0.30, 0.45, 0.75), (0.75, 0.25, 0.20), (0.25, 0.60, 0.35), (0.90, 0.70, 0.20))


def part_distances(points: Tensor) -> Tensor:
    """Distances (N, 5), negative inside, of points (N, 3) to body, lid, knob, spout, handle; longest side about 1.1."""
    body = _ellipsoid(points, (0.0, 0.0, -0.04), (0.34, 0.34, 0.27))
    lid = _ellipsoid(points, (0.0, 0.0, 0.22), (0.17, 0.17, 0.06))
    knob = _ellipsoid(points, (0.0, 0.0, 0.31), (0.05, 0.05, 0.05))
    spout = _capsule(points, (0.0, 0.25, -0.10), (0.0, 0.55, 0.20), 0.075, 0.035)
    ring = points - points.new_tensor([0.0, -0.34, 0.0])
    handle = ((ring[:, 1:].norm(dim=-1) - 0.16).square() + ring[:, 0].square()).sqrt() - 0.035
    return torch.stack([body, lid, knob, spout, handle], 1)


def distance(points: Tensor) -> Tensor:
    """Distance (N,) to the teapot's surface, negative inside; the parts run softly into each other."""
    sharpness = 60.0
    return -torch.logsumexp(-sharpness * part_distances(points), 1) / sharpness


def color(points: Tensor) -> Tensor:
    """sRGB colour (N, 3) of the nearest part, with soft borders."""
    share = torch.softmax(-60.0 * part_distances(points), 1)
    return share @ points.new_tensor(_PART_COLORS)


def labelled_points(scene_radius: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points (N, 3), whether they are inside (N,) and colours (N, 3): a third anywhere, the rest near the surface."""
    generator = torch.Generator().manual_seed(seed)
    anywhere = (torch.rand(_POINTS, 3, generator=generator) * 2 - 1) * scene_radius
    near = anywhere[distance(anywhere).abs() < 0.06]
    more = near[torch.randint(len(near), (2 * _POINTS,), generator=generator)]
    more = more + 0.01 * torch.randn(more.shape, generator=generator)
    points = torch.cat([anywhere, more.clamp(-scene_radius, scene_radius)])
    return points, distance(points) < 0, color(points)


def teapot_field(steps: int = 500, seed: int = 0) -> TriplaneField:
    """A field of TripoSR's size (planes 3 x 40 x 64 x 64, nine hidden layers of 64) fitted to the teapot.

    It takes about half a minute on one core the first time; then it lies in ``~/.cache/trilift/benchmarks`` (or under
    ``TRILIFT_BENCHMARK_CACHE``), under a name made of all settings.
    """
    config = FitConfig()
    key = json.dumps([dataclasses.asdict(config), steps, seed, _POINTS, torch.__version__], sort_keys=True)
    folder = Path(os.environ.get("TRILIFT_BENCHMARK_CACHE", Path.home() / ".cache" / "trilift" / "benchmarks"))
    path = folder / f"teapot-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    if not path.exists():
        field = fit_points(config, *labelled_points(config.scene_radius, seed), steps=steps, seed=seed)
        with written_whole(path) as aside:
            save_file({"planes": field.planes, **field.decoder.state_dict()}, aside)
    state = load_file(path)
    decoder = PlanesDecoder(config.plane_channels, config.width, config.hidden_layers, config.activation)
    planes = state.pop("planes")
    decoder.load_state_dict(state)
    return TriplaneField(planes, decoder.requires_grad_(False), config.scene_radius, config.level, config.outputs)


def _ellipsoid(points: Tensor, center: tuple[float, float, float], radii: tuple[float, float, float]) -> Tensor:
    """Distance to an ellipsoid, exact to first order near its surface."""
    p, r = points - points.new_tensor(center), points.new_tensor(radii)
    k0, k1 = (p / r).norm(dim=-1), (p / r**2).norm(dim=-1)
    return k0 * (k0 - 1) / k1.clamp(min=1e-6)


def _capsule(points: Tensor, start: tuple[float, ...], end: tuple[float, ...], wide: float, narrow: float) -> Tensor:
    """Distance to a round bar that tapers from ``wide`` to ``narrow``, near enough for a gentle taper."""
    a, b = points.new_tensor(start), points.new_tensor(end)
    along = ((points - a) @ (b - a) / (b - a).square().sum()).clamp(0, 1)
    return (points - a - along[:, None] * (b - a)).norm(dim=-1) - (wide + (narrow - wide) * along)
