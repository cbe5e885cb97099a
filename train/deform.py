"""``python -m train.deform DATA MESHES -o OUT``: packed data again with stretched, recoloured objects.

A stretch along the object's own axes leaves every label true, so that only the pictures are rendered anew. It turns
2,000 objects into as many shapes as one likes: chairs that are wider, towers that are lower.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from multiview.errors import SettingsError, TriliftError

from .batches import PackedData
from .objects import TrainingObject, find_meshes, load_object, normalized
from .points import PointSet
from .prepare import Prepared, PrepareSettings, pack, rendered

STRETCH = 0.25  # standard deviation of the logarithm of the factor along each axis
MOST_STRETCH = 1.7


def random_stretch(rng: np.random.Generator) -> np.ndarray:
    """Factors (3,) along x, y and z; half of the time x and y share one, so that round things stay round."""
    factors = np.exp(rng.normal(scale=STRETCH, size=3))
    if rng.random() < 0.5:
        factors[1] = factors[0]
    return np.clip(factors, 1 / MOST_STRETCH, MOST_STRETCH)


def random_recolor(rng: np.random.Generator) -> np.ndarray:
    """A table (3, 256) uint8 of a gamma curve for each channel; the order of channels is the trainer's business."""
    gammas = np.exp(rng.normal(scale=0.25, size=(3, 1)))
    return np.round(255 * (np.arange(256) / 255) ** gammas).astype(np.uint8)


def recolored(colors: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Colours (N, 3) uint8 through a table of `random_recolor`; a skin goes through `Skin.recolored`."""
    return np.stack([table[c][colors[:, c]] for c in range(3)], 1)


def deform(obj: TrainingObject, points: PointSet, rng: np.random.Generator) -> tuple[TrainingObject, PointSet]:
    """Stretch and recolour an object and its points together; longest side 1 again, labels as they were."""
    factors, table = random_stretch(rng), random_recolor(rng)
    skin = None if obj.skin is None else obj.skin.recolored(table)
    stretched = normalized(obj.name, obj.vertices * factors, obj.faces, recolored(obj.colors, table), skin)
    side = float((np.ptp(obj.vertices, axis=0) * factors).max())
    matrix = factors / side
    moved = PointSet(
        (points.points.astype(np.float64) * matrix).astype(np.float16), points.inside,
        (points.surface.astype(np.float64) * matrix).astype(np.float16), recolored(points.colors, table),
    )  # fmt: skip
    return stretched, moved


def prepare_deformed(path: Path, data: str, rows: dict[str, int], settings: PrepareSettings, seed: int) -> Prepared:
    """One object of ``data``, deformed and rendered; name and ``seed`` decide all that is random."""
    if path.stem not in rows:
        return Prepared(path.stem, problem=f"not in {data}")
    try:
        obj = load_object(path)
    except TriliftError as error:
        return Prepared(path.stem, problem=str(error))
    rng = np.random.default_rng([seed, zlib.crc32(path.stem.encode())])
    arrays = PackedData(data).arrays
    row = rows[path.stem]
    original = PointSet(**{name: np.array(arrays[name][row]) for name in ("points", "inside", "surface", "colors")})
    return rendered(*deform(obj, original, rng), rng, settings)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.deform", description=__doc__)
    parser.add_argument("data", help="folder of train.prepare")
    parser.add_argument("objects", help="folder of the meshes that it was made from")
    parser.add_argument("-o", "--out", required=True, type=Path)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int, default=None, help="only the first objects")
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args(argv)
    packed = PackedData(args.data)
    sizes = {name: packed.arrays[name].shape for name in ("views", "points", "surface")}
    settings = PrepareSettings(args.views, sizes["views"][2], sizes["points"][1], sizes["surface"][1])
    rows = {name: row for row, name in enumerate(packed.names)}
    paths = find_meshes(args.objects)[: args.limit]
    if not paths:
        raise SettingsError(f"{args.objects}: no meshes found (.glb, .gltf, .obj, .ply, .stl, .off).")
    job = partial(prepare_deformed, data=args.data, rows=rows, settings=settings, seed=args.seed)
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        done, skipped = pack(pool.imap(job, paths, 4), len(paths), args.out, settings)
    print(json.dumps({"packed": done, "skipped": skipped, "out": str(args.out)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
