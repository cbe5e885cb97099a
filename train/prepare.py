"""``python -m train.prepare OBJECTS -o DATA``: meshes → packed views and points, ready to train on.

DATA holds plain ``.npy`` arrays, one row an object in the order of ``objects.json``, so that a trainer maps them
into memory: ``views`` (O, K, S, S, 7) uint8, ``cameras`` (O, K, 6), ``points`` (O, P, 3), ``inside`` (O, P),
``surface`` (O, Q, 3), ``colors`` (O, Q, 3). Objects that cannot be used are named in ``skipped.json`` with the reason.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from multiview.errors import SettingsError, TriliftError
from multiview.files import write_json_whole

from .objects import TrainingObject, find_meshes, load_object
from .points import PointSet, label_points
from .render import Caster, random_crop_camera


@dataclass(frozen=True)
class PrepareSettings:
    """Sizes of the packed data.

    Attributes:
        views: pictures per object.
        image_size: pixels per side.
        points: labelled points per object, half of them near the surface.
        surface: coloured surface points per object.
    """

    views: int = 12
    image_size: int = 128
    points: int = 32768
    surface: int = 8192


@dataclass(frozen=True)
class Prepared:
    """One object's rows of the packed arrays, or the reason why there are none."""

    name: str
    views: np.ndarray | None = None
    cameras: np.ndarray | None = None
    points: PointSet | None = None
    problem: str | None = None


def prepare_object(obj: TrainingObject, settings: PrepareSettings) -> Prepared:
    """Render and label one object; the object's name seeds all that is random."""
    rng = np.random.default_rng(zlib.crc32(obj.name.encode()))
    points = label_points(obj, rng, count=settings.points, surface=settings.surface)
    if not points.inside.any():
        return Prepared(obj.name, problem="no point is inside")
    caster = Caster(obj)
    cameras = [random_crop_camera(obj.vertices, rng) for _ in range(settings.views)]
    views = [caster.view(c, settings.image_size, smooth=bool(rng.random() < 0.5)) for c in cameras]
    return Prepared(obj.name, np.stack(views), np.stack([c.as_row() for c in cameras]), points)


def prepare_file(path: Path, settings: PrepareSettings) -> Prepared:
    """`prepare_object` of a mesh file; what is wrong with the file becomes the ``problem``."""
    try:
        return prepare_object(load_object(path), settings)
    except TriliftError as error:
        return Prepared(path.stem, problem=str(error))


def prepare_procedural(index: int, settings: PrepareSettings) -> Prepared:
    """`prepare_object` of the procedural object number ``index``."""
    from .shapes import random_object

    shape = random_object(np.random.default_rng([7, index]))
    return prepare_object(
        TrainingObject(f"procedural-{index:06d}", shape.vertices, shape.faces, shape.colors), settings
    )


def pack(results: Iterator[Prepared], count: int, out: Path, settings: PrepareSettings) -> tuple[int, int]:
    """Write results into the packed arrays as they come; returns how many were packed and how many skipped."""
    out.mkdir(parents=True, exist_ok=True)
    s, size = settings, settings.image_size
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "views": ((s.views, size, size, 7), np.uint8),
        "cameras": ((s.views, 6), np.float32),
        "points": ((s.points, 3), np.float16),
        "inside": ((s.points,), np.bool_),
        "surface": ((s.surface, 3), np.float16),
        "colors": ((s.surface, 3), np.uint8),
    }
    arrays = {
        name: open_memmap(out / f"{name}.npy", mode="w+", dtype=dtype, shape=(count, *shape))
        for name, (shape, dtype) in shapes.items()
    }
    names: list[str] = []
    skipped: dict[str, str] = {}
    for done, result in enumerate(results, 1):
        if result.points is None or result.views is None:
            skipped[result.name] = result.problem or "unknown"
        else:
            row = {"views": result.views, "cameras": result.cameras, **vars(result.points)}
            for name, array in arrays.items():
                array[len(names)] = row[name]
            names.append(result.name)
        if done % 100 == 0 or done == count:
            print(f"prepared {done} of {count}, skipped {len(skipped)}", file=sys.stderr, flush=True)
    for array in arrays.values():
        array.flush()
    write_json_whole(out / "skipped.json", skipped)
    write_json_whole(out / "objects.json", {"settings": vars(settings), "names": names})
    return len(names), len(skipped)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.prepare", description=__doc__)
    parser.add_argument("objects", nargs="?", help="folder of meshes (y up as glTF); omit with --procedural")
    parser.add_argument("-o", "--out", required=True, type=Path)
    parser.add_argument("--procedural", type=int, default=0, help="make this many procedural objects instead")
    parser.add_argument("--limit", type=int, default=None, help="only the first objects")
    parser.add_argument("--processes", type=int, default=1)
    for name, default in vars(PrepareSettings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    args = parser.parse_args(argv)
    settings = PrepareSettings(args.views, args.image_size, args.points, args.surface)
    job: Callable[..., Prepared] = prepare_procedural if args.procedural else prepare_file
    items: list[int] | list[Path] = list(range(args.procedural)) if args.procedural else find_meshes(args.objects or "")
    items = items[: args.limit]
    if not items:
        raise SettingsError(f"{args.objects}: no meshes found (.glb, .gltf, .obj, .ply, .stl, .off).")
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        packed, skipped = pack(pool.imap(partial(job, settings=settings), items, 4), len(items), args.out, settings)
    print(json.dumps({"packed": packed, "skipped": skipped, "out": str(args.out)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
