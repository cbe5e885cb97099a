"""``python -m train.made RINGS --model FOLDER``: draw every ring of packed rings with a view generator.

Writes ``made.npy`` (N, V, s, s, 4) uint8 straight RGBA beside the true rings, for `train.ringviews`: a reconstruction
model that is to lift made views learns from such.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from multiview.devices import pick_device
from multiview.errors import SettingsError
from multiview.tinyviews import (
    TinyViewsNetwork,
    decode_views,
    denoise,
    encode_sketches,
    load_network,
    regress,
    small_photo,
)

from .multiview import RingData

_BATCH = 8
MADE_FILE = "made.npy"


@torch.no_grad()
def drawn_rings(network: TinyViewsNetwork, data: RingData, rows: range, steps: int, seed: int) -> np.ndarray:
    """The rings of some rows as the generator draws them: (R, V, s, s, 4) uint8.

    Args:
        network: on its device, evaluating.
        data: photos, sketches and cameras are read from here.
        rows: which.
        steps: denoising steps; 0 asks the regressor.
        seed: with each row's number, of its noise.
    """
    device, some = next(network.parameters()).device, [data.row(i) for i in rows]
    joined = {key: torch.stack([row[key] for row in some]).to(device) for key in ("photo", "sketches", "camera")}
    sketches = encode_sketches(joined["sketches"])
    photo = small_photo(joined["photo"], sketches.shape[-1])
    if steps == 0:
        views = regress(network, network.config, sketches, photo, joined["camera"])
    else:
        shape = tuple(sketches[0, :, :4].shape)
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed * 10**6 + i)) for i in rows]
        views = denoise(
            network, network.config, torch.stack(noise).to(device), sketches, photo, joined["camera"], steps
        )
    return (decode_views(views).permute(0, 1, 3, 4, 2) * 255).round().to(torch.uint8).cpu().numpy()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.made", description=__doc__)
    parser.add_argument("rings", type=Path, help="folder of train.rings")
    parser.add_argument("--model", default="trilift/weights/tiny-views", help="view generator (default %(default)s)")
    parser.add_argument(
        "--steps", type=int, default=6, help="denoising steps, 0 for the regressor (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default %(default)s)")
    args = parser.parse_args(argv)
    if not 0 <= args.steps <= 1000:
        raise SettingsError(f"--steps {args.steps}: expected 0 to 1000.")
    data, network = RingData(args.rings), load_network(args.model).to(pick_device(args.device))
    made = open_memmap(
        args.rings / (MADE_FILE + ".part"), mode="w+", dtype=np.uint8, shape=data.arrays["rings"][: data.rows].shape
    )
    for start in range(0, data.rows, _BATCH):
        rows = range(start, min(start + _BATCH, data.rows))
        made[rows.start : rows.stop] = drawn_rings(network, data, rows, args.steps, args.seed)
        if start % (50 * _BATCH) == 0:
            print(f"made {rows.stop} of {data.rows}", file=sys.stderr, flush=True)
    made.flush()
    (args.rings / (MADE_FILE + ".part")).replace(args.rings / MADE_FILE)  # whole or not at all
    print(json.dumps({"rows": data.rows, "out": str(args.rings / MADE_FILE)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
