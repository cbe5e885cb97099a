"""``python -m benchmarks views RINGS``: how good the views of the embedded generator are, on rings of unseen objects.

RINGS comes from ``python -m train.rings DATA --meshes MESHES -o RINGS --plain``. Scored are the sketches that it starts
from, the regressor and the drawn views; and whether drawn views belong together: the object that is lifted from them
must agree with them better than with as many views that were drawn one by one, each from noise of its own.

``python -m benchmarks views --reuse``: what fewer steps and reused features (``--reuse-steps``) cost generators that
run large networks, as distances from fifty whole steps from the same noise. Without ``--generator`` that is measured on
a small UNet of Zero123's kind which is fitted here, in a minute, to blurs that move with the azimuth.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lrm.sketch import SKETCH_RADIUS, sampled_lattice, sketch
from lrm.tiny import TinyLRM
from multiview.cameras import Cameras, orbit
from multiview.errors import SettingsError
from multiview.fastrun import RunOptions
from multiview.generator import SCHEDULERS
from multiview.ldm import ClipSizes, UNetSizes, VaeSizes
from multiview.ring import RING_SIZE, ring_cameras
from multiview.syncdreamer import SyncDreamer
from multiview.tinyviews import (
    DEFAULT_STEPS,
    TinyViewsNetwork,
    decode_views,
    denoise,
    encode_sketches,
    load_network,
    regress,
    small_photo,
)
from multiview.views import Views
from multiview.zero123 import Condition as Zero123Condition
from multiview.zero123 import Zero123
from multiview.zero123weights import Zero123Config, Zero123Network
from train.multiview import RingData, view_scores
from trilift.chain import resized
from trilift.generators import load_generator
from trilift.registry import EMBEDDED

from .pictures import EXAMPLES

Row = dict[str, Tensor]


def drawn(network: TinyViewsNetwork, row: Row, seed: int, steps: int) -> Tensor:
    """The ring (6, 4, s, s) of one row as it is drawn from a seed, straight RGBA."""
    sketches, photo = encode_sketches(row["sketches"])[None], small_photo(row["photo"][None], RING_SIZE)
    noise = torch.randn(1, *row["rings"].shape, generator=torch.Generator().manual_seed(seed))
    return decode_views(denoise(network, network.config, noise, sketches, photo, row["camera"][None], steps))[0]


def answers(network: TinyViewsNetwork, row: Row, seed: int, steps: int) -> dict[str, Tensor]:
    """What is scored, each (6, 4, s, s) straight RGBA."""
    sketches, photo = encode_sketches(row["sketches"])[None], small_photo(row["photo"][None], RING_SIZE)
    mean = regress(network, network.config, sketches, photo, row["camera"][None])
    return {
        "sketch": decode_views(sketches[0, :, :4]),
        "mean": decode_views(mean)[0],
        "drawn": drawn(network, row, seed, steps),
    }


def agreement(model: TinyLRM, row: Row, ring: Tensor) -> float:
    """PSNR in dB, over white, of a ring against what the object lifted from photo and ring looks like from there."""
    focal = math.exp(float(row["camera"][1]) + 1.5)
    camera = orbit(0.0, float(row["camera"][0]) * 30, focal, math.degrees(2 * math.atan(1 / focal)))
    photo = Views(row["photo"][None, :3], row["photo"][None, 3:], camera)
    shown = [i for i in range(len(ring)) if float(ring[i, 3].amax()) > 0.5]
    views = resized(Views(ring[shown, :3], ring[shown, 3:], ring_cameras().select(shown)), photo.image_size)
    joined = Views(
        torch.cat([photo.images, views.images]), torch.cat([photo.alpha, views.alpha]),
        Cameras.cat([photo.cameras, views.cameras]),
    )  # fmt: skip
    field = model.reconstruct_views(joined).field
    seen = sketch(sampled_lattice(field, SKETCH_RADIUS), SKETCH_RADIUS, ring_cameras(), RING_SIZE)
    white = seen[:, :3] + 1 - seen[:, 3:4], ring[:, :3] * ring[:, 3:] + 1 - ring[:, 3:]
    return float(-10 * (white[0] - white[1]).square().mean().clamp(min=1e-6).log10())


@torch.no_grad()
def measure(network: TinyViewsNetwork, model: TinyLRM, data: RingData, limit: int, steps: int) -> dict[str, float]:
    """All figures, means over rows spread over ``data``.

    Returns:
        ``<answer>_<score>`` for each answer and score of `train.multiview.view_scores`; ``agreement_together`` and
        ``agreement_one_by_one`` in dB.
    """
    found: dict[str, list[float]] = {}
    picked = [round(i * (data.rows - 1) / max(1, limit - 1)) for i in range(min(limit, data.rows))]
    for index in picked:
        row = data.row(index)
        for name, made in answers(network, row, index, steps).items():
            for key, value in view_scores(made, row["rings"]).items():
                found.setdefault(f"{name}_{key}", []).append(value)
        together = drawn(network, row, index, steps)
        mixed = torch.stack([drawn(network, row, 10**6 + 6 * index + view, steps)[view] for view in range(6)])
        found.setdefault("agreement_together", []).append(agreement(model, row, together))
        found.setdefault("agreement_one_by_one", []).append(agreement(model, row, mixed))
    return {key: sum(values) / len(values) for key, values in found.items()}


# What fewer steps and reused features cost

FITTED = UNetSizes(channels=(32, 64), layers=2, heads=2, context_width=8, latent_size=16)
_WHOLE_STEPS, _AZIMUTHS = 50, 6
_GUIDANCE = 3.0


def blurs(azimuth_rad: Tensor, side: int) -> Tensor:
    """Latents (B, 4, side, side) of about unit deviation, of objects turned by (B,) radians: four blurs that move."""
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    phase = azimuth_rad[:, None] + torch.arange(4) * (math.pi / 2)
    away = (x - 0.6 * phase.sin()[..., None, None]).square() + (y - 0.2 * phase.cos()[..., None, None]).square()
    return 3.0 * torch.exp(-4 * away) - 0.8


def harmonics(azimuth_rad: Tensor) -> Tensor:
    """Tokens (B, 1, 8) that say (B,) radians."""
    angles = azimuth_rad[:, None] * torch.arange(1, 5)
    return torch.cat([angles.sin(), angles.cos()], -1)[:, None]


def fitted_zero123(fit_steps: int, seed: int = 0) -> Zero123:
    """Zero123 with a small UNet fitted to `blurs`; its other parts are not, and are not asked."""
    torch.manual_seed(seed)
    small = ClipSizes(image_size=28, width=16, layers=1, heads=2, mlp_width=16, projection_width=8)
    config = Zero123Config(unet=FITTED, vae=VaeSizes(channels=(32, 32), layers=1), clip=small)
    model = Zero123(Zero123Network(config), "fitted")
    unet, alphas = model.network.unet.train().requires_grad_(True), model.scheduler.alphas_cumprod
    optimizer = torch.optim.AdamW(unet.parameters(), 2e-3)
    for step in range(fit_steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (0.01 + 0.99 * math.cos(0.5 * math.pi * step / fit_steps) ** 2)
        azimuth, time = torch.rand(16) * 2 * math.pi, torch.randint(1000, (16,))
        told = (torch.rand(16, 1, 1) > 0.1).float()
        clean, alpha = blurs(azimuth, FITTED.latent_size), alphas[time][:, None, None, None]
        noise = torch.randn_like(clean)
        seen = told[..., None] * blurs(torch.zeros(1), FITTED.latent_size)
        x = torch.cat([alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, seen], 1)
        loss = (unet(x, time, told * harmonics(azimuth), return_dict=False)[0] - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unet.eval().requires_grad_(False)
    return model


def asked_of(model: Zero123 | SyncDreamer, photo: Path | None) -> Callable[..., Tensor]:
    """A function that gives the latents of some views for settings ``num_inference_steps`` and ``scheduler``."""
    if model.name == "fitted":
        azimuth = torch.arange(_AZIMUTHS) * (2 * math.pi / _AZIMUTHS)
        condition = Zero123Condition(harmonics(azimuth), blurs(torch.zeros(1), FITTED.latent_size))
        start = torch.randn(_AZIMUTHS, 4, 16, 16, generator=torch.Generator().manual_seed(1))
        return lambda steps: cast(Zero123, model).denoise(
            start, condition, num_inference_steps=steps, guidance_scale=_GUIDANCE, step_noise=lambda _: start
        )
    from trilift.foreground import cut_out
    from trilift.photo import load_photo

    cutout = cut_out(load_photo(photo or EXAMPLES / "chair.png"), foreground_ratio=model.foreground_ratio)
    image = cutout.to_tensor(model.image_size)

    def run(steps: int) -> Tensor:
        made: Any = model(
            image, elevation_deg=20.0, num_inference_steps=steps, eta=0.0, output_type="latent",
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return made.images if isinstance(model, Zero123) else made

    return run


def reuse_rows(model: Zero123 | SyncDreamer, run: Callable[[int], Tensor]) -> list[dict[str, Any]]:
    """Distances from fifty whole steps of DDIM, relative to the latents' length, and CPU seconds against its own.

    Rows of ``scheduler``, ``steps``, ``reuse``, ``off`` (from its own scheduler's fifty steps) and ``share`` of time.
    """
    rows = []
    for scheduler in SCHEDULERS:
        model.set_scheduler(scheduler)
        whole, seconds = torch.empty(0), 0.0
        for steps, reuse in (
            (_WHOLE_STEPS, 1),
            (_WHOLE_STEPS, 2),
            (_WHOLE_STEPS, 3),
            (25, 1),
            (25, 2),
            (20, 1),
            (10, 1),
        ):
            model.use_run_options(RunOptions(reuse_steps=reuse))
            began = time.process_time()
            made = run(steps)
            spent = time.process_time() - began
            if (steps, reuse) == (_WHOLE_STEPS, 1):
                whole, seconds = made, spent
            off = ((made - whole).norm() / whole.norm()).item()
            rows.append({"scheduler": scheduler, "steps": steps, "reuse": reuse, "off": off, "share": spent / seconds})
    model.use_run_options(RunOptions())
    return rows


def measure_reuse(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of ``--reuse``."""
    if options.generator is None:
        model = fitted_zero123(options.fit_steps)
    else:
        loaded: Any = load_generator(options.generator).model
        if not loaded.has_run_options:
            raise SettingsError(
                f"--generator {options.generator}: expected Zero123 or SyncDreamer, found {loaded.name}."
            )
        model = loaded
    return reuse_rows(model, asked_of(model, options.photo))


def reuse_table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [f"{'scheduler':10}{'steps':>6}{'reuse':>6}{'off':>9}{'time':>7}"]
    return "\n".join(
        lines + [f"{r['scheduler']:10}{r['steps']:6}{r['reuse']:6}{r['off']:9.4f}{r['share']:7.2f}" for r in rows]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``python -m benchmarks views``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks views", description=__doc__)
    parser.add_argument("rings", type=Path, metavar="RINGS", nargs="?")
    parser.add_argument("--reuse", action="store_true", help="what fewer steps and reused features cost")
    parser.add_argument(
        "--generator", help="Zero123 or SyncDreamer: a name or folder (default: a small one, fitted here)"
    )
    parser.add_argument("--photo", type=Path, help="for --generator (default: chair.png of the examples)")
    parser.add_argument("--fit-steps", type=int, default=400, help="of the small one (default %(default)s)")
    parser.add_argument("--views", type=Path, default=EMBEDDED / "tiny-views", help="the generator's folder")
    parser.add_argument("--model", type=Path, default=EMBEDDED / "tiny", help="the reconstruction model's folder")
    parser.add_argument("--limit", type=int, default=100, help="rows, evenly spread (default %(default)s)")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS, help="denoising steps (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.reuse:
        print(reuse_table(measure_reuse(options)))
        return 0
    if options.rings is None:
        parser.error("give RINGS, or --reuse")
    network, model = load_network(options.views), TinyLRM.from_folder(options.model)
    figures = measure(network, model, RingData(options.rings), options.limit, options.steps)
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}, indent=1))
    return 0
