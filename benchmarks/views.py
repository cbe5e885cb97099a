"""``python -m benchmarks views RINGS``: how good the views of the embedded generator are, on rings of unseen objects.

RINGS comes from ``python -m train.rings DATA --meshes MESHES -o RINGS --plain``. Scored are the sketches that it starts
from, the regressor and the drawn views; and whether drawn views belong together: the object that is lifted from them
must agree with them better than with as many views that were drawn one by one, each from noise of its own.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lrm.sketch import SKETCH_RADIUS, sampled_lattice, sketch
from lrm.tiny import TinyLRM
from multiview.cameras import Cameras, orbit
from multiview.ring import RING_SIZE, ring_cameras
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
from train.multiview import RingData, view_scores
from trilift.chain import resized
from trilift.registry import EMBEDDED

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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``python -m benchmarks views``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks views", description=__doc__)
    parser.add_argument("rings", type=Path, metavar="RINGS")
    parser.add_argument("--views", type=Path, default=EMBEDDED / "tiny-views", help="the generator's folder")
    parser.add_argument("--model", type=Path, default=EMBEDDED / "tiny", help="the reconstruction model's folder")
    parser.add_argument("--limit", type=int, default=100, help="rows, evenly spread (default %(default)s)")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS, help="denoising steps (default %(default)s)")
    options = parser.parse_args(arguments)
    network, model = load_network(options.views), TinyLRM.from_folder(options.model)
    figures = measure(network, model, RingData(options.rings), options.limit, options.steps)
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}, indent=1))
    return 0
