"""``python -m train.deform DATA MESHES -o OUT``: packed data again with stretched, recoloured objects.

A stretch along the object's own axes leaves every label true, so that only the pictures are rendered anew. It turns
2,000 objects into as many shapes as one likes: chairs that are wider, towers that are lower. With ``--studio`` they
are tapered and sheared as well (`train.warped`), and look more like what is photographed: patterns on two of three, and
a sun that casts shadows and glints.
"""

from __future__ import annotations

import argparse
import importlib.util
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
from .materials import Material, random_material, random_recolor, random_sun, recolored
from .objects import TrainingObject, find_meshes, load_object, normalized
from .points import PointSet
from .prepare import Prepared, PrepareSettings, pack, rendered
from .warped import WarpSettings, projected, random_warp

STRETCH = 0.25  # standard deviation of the logarithm of the factor along each axis
MOST_STRETCH = 1.7
PAINTED = 0.65  # chance of a pattern in the studio


def random_stretch(rng: np.random.Generator) -> np.ndarray:
    """Factors (3,) along x, y and z; half of the time x and y share one, so that round things stay round."""
    factors = np.exp(rng.normal(scale=STRETCH, size=3))
    if rng.random() < 0.5:
        factors[1] = factors[0]
    return np.clip(factors, 1 / MOST_STRETCH, MOST_STRETCH)


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


def into_studio(
    obj: TrainingObject, points: PointSet, rng: np.random.Generator
) -> tuple[TrainingObject, PointSet, Material | None]:
    """Warp and recolour an object and its points together, and draw a pattern for it."""
    matrix, table = random_warp(rng, WarpSettings()), random_recolor(rng)
    material = random_material(rng) if rng.random() < PAINTED else None
    skin = None if obj.skin is None else obj.skin.recolored(table)
    warped = projected(matrix, obj.vertices)
    made = normalized(obj.name, warped, obj.faces, recolored(obj.colors, table), skin)
    low, high = warped.min(0), warped.max(0)
    middle, side = (low + high) / 2, max(float((high - low).max()), 1e-9)

    def moved(places: np.ndarray) -> np.ndarray:
        return ((projected(matrix, places) - middle) / side).astype(np.float16)

    surface, colors = moved(points.surface), recolored(points.colors, table)
    if material is not None:
        colors = np.asarray(np.round(material.paint(surface, colors)), np.uint8)
    return made, PointSet(moved(points.points), points.inside, surface, colors), material


def prepare_deformed(
    path: Path, data: str, rows: dict[str, int], settings: PrepareSettings, seed: int, studio: bool = False
) -> Prepared:
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
    if not studio:
        return rendered(*deform(obj, original, rng), rng, settings)
    made, labels, material = into_studio(obj, original, rng)
    return rendered(made, labels, rng, settings, material, random_sun(rng))


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
    parser.add_argument("--studio", action="store_true", help="warped, with patterns, shadows and gloss (embree)")
    args = parser.parse_args(argv)
    packed = PackedData(args.data)
    sizes = {name: packed.arrays[name].shape for name in ("views", "points", "surface")}
    settings = PrepareSettings(
        args.views, sizes["views"][2], sizes["points"][1], sizes["surface"][1],
        renderer="embree" if args.studio else "auto", channels=9 if args.studio else 7,
    )  # fmt: skip
    if args.studio and importlib.util.find_spec("embreex") is None:
        raise SettingsError("--studio: embree is not installed, which casts its shadows. pip install 'trilift[train]'.")
    rows = {name: row for row, name in enumerate(packed.names)}
    paths = find_meshes(args.objects)[: args.limit]
    if not paths:
        raise SettingsError(f"{args.objects}: no meshes found (.glb, .gltf, .obj, .ply, .stl, .off).")
    job = partial(prepare_deformed, data=args.data, rows=rows, settings=settings, seed=args.seed, studio=args.studio)
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        done, skipped = pack(pool.imap(job, paths, 4), len(paths), args.out, settings)
    print(json.dumps({"packed": done, "skipped": skipped, "out": str(args.out)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
