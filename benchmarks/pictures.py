"""``python -m benchmarks pictures``: lift pictures and show each input beside its object from four sides."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from multiview.files import written_whole
from trilift import ImageTo3D
from trilift.turntable import sheet, turntable

EXAMPLES = Path(__file__).parent.parent / "trilift" / "examples"


def rows(pipe: ImageTo3D, photos: Sequence[Path], size: int, resolution: int) -> list[np.ndarray]:
    """For each photo the cut-out on white, then the mesh from the front, +y side, behind and the other side.

    Returns:
        Pictures (size, size, 3) uint8, five a photo.
    """
    pictures: list[np.ndarray] = []
    for photo in photos:
        asset = pipe(photo, resolution=resolution)
        pictures.append(_on_white(asset.cutout.to_tensor(size)))
        pictures.extend(turntable(asset.mesh, frames=4, size=size))
        print(
            json.dumps({"photo": photo.name, "seconds": asset.record["seconds"], **asset.record["checks"]}), flush=True
        )
    return pictures


def _on_white(rgba: Tensor) -> np.ndarray:
    """(4, S, S) float → (S, S, 3) uint8 over white."""
    flat = rgba[:3] * rgba[3:] + 1 - rgba[3:]
    return (flat.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks pictures", description=__doc__)
    parser.add_argument("photos", nargs="*", type=Path, help="pictures (default: the project's own examples)")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/pictures.png"))
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--size", type=int, default=224, help="pixels per picture")
    parser.add_argument("--resolution", type=int, default=192, help="samples per axis of the mesh")
    args = parser.parse_args(arguments)
    photos = args.photos or sorted(EXAMPLES.glob("*.png"))
    pictures = rows(ImageTo3D.from_pretrained(args.model), photos, args.size, args.resolution)
    with written_whole(args.out) as aside:
        Image.fromarray(sheet(pictures, 5)).save(aside, "PNG", optimize=True)
    print(args.out)
    return 0
