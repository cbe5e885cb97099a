"""``python -m train.prepare OBJECTS -o DATA``: meshes → packed views and points, ready to train on.

DATA holds plain ``.npy`` arrays, one row an object in the order of ``objects.json``, so that a trainer maps them
into memory: ``views`` (O, K, S, S, 7) uint8, ``cameras`` (O, K, 6), ``points`` (O, P, 3), ``inside`` (O, P),
``surface`` (O, Q, 3), ``colors`` (O, Q, 3). Objects that cannot be used are named in ``skipped.json`` with the reason.

With the extra ``train`` (embree, libigl) this is work for processors. Without it, plain torch draws the views and sums
the winding numbers on any device: ``--device auto``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from multiview.devices import pick_device
from multiview.errors import SettingsError, TriliftError
from multiview.files import write_json_whole

from .materials import Material, Sun
from .objects import TrainingObject, find_meshes, load_object
from .points import PointSet, label_points
from .render import RENDERERS, CameraDraw, Caster, Renderer, pick_renderer, random_crop_camera
from .torchrender import TorchCaster

_RANGES = ("elevation_deg", "usual_elevation_deg", "distance", "fov_deg")  # of `CameraDraw`, as options


@dataclass(frozen=True)
class PrepareSettings:
    """Sizes of the packed data.

    Attributes:
        views: pictures per object.
        image_size: pixels per side.
        points: labelled points per object, half of them near the surface.
        surface: coloured surface points per object.
        draw: how cameras are drawn.
        renderer: of `RENDERERS`.
        device: where plain torch renders, and labels points when libigl is not installed.
        channels: of the pictures, see `train.render.Caster.view`.
    """

    views: int = 12
    image_size: int = 128
    points: int = 32768
    surface: int = 8192
    draw: CameraDraw = field(default_factory=CameraDraw)
    renderer: str = "auto"
    device: str = "cpu"
    channels: int = 7


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
    points = label_points(obj, rng, count=settings.points, surface=settings.surface, device=settings.device)
    if not points.inside.any():
        return Prepared(obj.name, problem="no point is inside")
    return rendered(obj, points, rng, settings)


def rendered(
    obj: TrainingObject,
    points: PointSet,
    rng: np.random.Generator,
    settings: PrepareSettings,
    material: Material | None = None,
    sun: Sun | None = None,
) -> Prepared:
    """Add the pictures to an object whose points are labelled; patterns and a sun want embree."""
    embree = pick_renderer(settings.renderer, settings.device) == "embree"
    renderer: Renderer = Caster(obj, material, sun) if embree else TorchCaster(obj, settings.device)
    cameras = [random_crop_camera(obj.vertices, rng, settings.draw) for _ in range(settings.views)]
    smooth = [bool(rng.random() < 0.5) for _ in cameras]
    views = renderer.views(cameras, settings.image_size, smooth=smooth)
    return Prepared(obj.name, views, np.stack([c.as_row() for c in cameras]), points)


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
    (out / "objects.json").unlink(missing_ok=True)  # written last: without it the folder is not finished
    s, size = settings, settings.image_size
    shapes: dict[str, tuple[tuple[int, ...], type]] = {
        "views": ((s.views, size, size, s.channels), np.uint8),
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
    write_json_whole(out / "objects.json", {"settings": asdict(settings), "names": names})
    return len(names), len(skipped)


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m train.prepare", description=__doc__)
    add, usual, draw = parser.add_argument, PrepareSettings(), CameraDraw()
    add("objects", nargs="?", help="folder of meshes (y up as glTF); omit with --procedural")
    add("-o", "--out", required=True, type=Path)
    add("--procedural", type=int, default=0, help="make this many procedural objects instead")
    add("--limit", type=int, default=None, help="only the first objects")
    add("--processes", type=int, default=1)
    add("--views", type=int, default=usual.views, help="pictures per object (default %(default)s)")
    add("--image-size", type=int, default=usual.image_size, help="pixels per side (default %(default)s)")
    add("--points", type=int, default=usual.points, help="labelled points per object (default %(default)s)")
    add("--surface", type=int, default=usual.surface, help="coloured points per object (default %(default)s)")
    add("--renderer", choices=RENDERERS, default=usual.renderer, help="auto: embree on a CPU that has it, else torch")
    add("--device", default=usual.device, help="for torch: auto, cpu, cuda, cuda:N or mps (default %(default)s)")
    for name in _RANGES:
        option, default = "--" + name.removesuffix("_deg").replace("_", "-"), getattr(draw, name)
        add(option, dest=name, type=float, nargs=2, default=default, metavar=("LOW", "HIGH"),
            help="of the cameras (default %(default)s)")  # fmt: skip
    add("--usual-share", type=float, default=draw.usual_share, help="of the views (default %(default)s)")
    return parser


def settings_of(args: argparse.Namespace) -> PrepareSettings:
    """What the options say.

    Raises:
        SettingsError: a device or renderer that is not here, or ranges that are empty.
    """
    ranges = {
        name: tuple(getattr(args, name)) for name in ("elevation_deg", "usual_elevation_deg", "distance", "fov_deg")
    }
    for name, (low, high) in ranges.items():
        if not low <= high:
            raise SettingsError(f"{name}: expected LOW at most HIGH, found {low:g} {high:g}.")
    if ranges["distance"][0] < 1 or not 0 <= args.usual_share <= 1:
        raise SettingsError(
            f"distance {ranges['distance'][0]:g} and usual share {args.usual_share:g}: expected a camera at least one "
            "longest side from the middle, so that it is outside the object, and a share from 0 to 1."
        )
    device = str(pick_device(args.device))
    pick_renderer(args.renderer, device)
    draw = CameraDraw(usual_share=args.usual_share, **ranges)
    return PrepareSettings(args.views, args.image_size, args.points, args.surface, draw, args.renderer, device)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status.

    Raises:
        SettingsError: as `settings_of`, or no meshes.
    """
    args = build_parser().parse_args(argv)
    settings = settings_of(args)
    job: Callable[..., Prepared] = prepare_procedural if args.procedural else prepare_file
    if not args.procedural and args.objects is None:
        raise SettingsError("expected a folder of meshes or --procedural N, found neither.")
    items: list[int] | list[Path] = list(range(args.procedural)) if args.procedural else find_meshes(args.objects)
    items = items[: args.limit]
    if not items:
        raise SettingsError(f"{args.objects}: no meshes found (.glb, .gltf, .obj, .ply, .stl, .off).")
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        packed, skipped = pack(pool.imap(partial(job, settings=settings), items, 4), len(items), args.out, settings)
    print(json.dumps({"packed": packed, "skipped": skipped, "out": str(args.out)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
