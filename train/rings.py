"""``python -m train.rings DATA -o OUT [--meshes FOLDER]``: packed data → what the embedded view generator learns from.

A row is one photograph of one object: the photograph, what the reconstruction model makes of it seen from the ring's
cameras (`lrm.sketch`), and the truth from there (`multiview.ring`), in the upright frame of the photograph. OUT holds
plain ``.npy`` arrays: ``photos`` (N, S, S, 4) uint8 straight RGBA under random light, ``sketches`` (N, V, s, s, 5)
uint8, ``rings`` (N, V, s, s, 4) uint8 straight RGBA unlit, ``cameras`` (N, 3) elevation told, true one, both in
degrees, and focal length told; ``sources`` (N, 2) rows and views of DATA.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from lrm.sketch import SKETCH_RADIUS, sampled_lattice, sketch
from lrm.tiny import TinyLRM
from multiview.errors import SettingsError, TriliftError
from multiview.files import write_json_whole
from multiview.ring import RING_AZIMUTHS_DEG, RING_DISTANCE, RING_ELEVATIONS_DEG, RING_FOV_DEG, RING_SIZE, ring_cameras

from .batches import Augment, PackedData, light, resized, transformed, upright_frame
from .deform import random_recolor, random_stretch, recolored
from .objects import TrainingObject, find_meshes, load_object, normalized
from .render import Caster, CropCamera

KNOWN_CAMERA = 0.4  # chance that the reconstruction model is told the photograph's camera
ARRAYS = ("photos", "sketches", "rings", "cameras", "sources")


@dataclass(frozen=True)
class RingSettings:
    """How rows are made.

    Attributes:
        data: folder of `train.prepare` or `train.deform`.
        model: folder of the reconstruction model that draws the sketches.
        views: photographs per object.
        seed: all randomness, with the object's name.
        meshes: file of each mesh by its stem; empty for procedural objects.
        stretched: seed of `train.deform` when ``data`` comes from there.
        plain: photographs unlit and cameras never told, as for validation.
    """

    data: str
    model: str
    views: int
    seed: int
    meshes: dict[str, Path]
    stretched: int | None = None
    plain: bool = False


_in_worker: dict[str, TinyLRM] = {}


def _model(folder: str) -> TinyLRM:
    """The reconstruction model, once for each process."""
    if folder not in _in_worker:
        torch.set_num_threads(1)
        _in_worker[folder] = TinyLRM.from_folder(folder)
    return _in_worker[folder]


def packed_object(name: str, settings: RingSettings) -> TrainingObject:
    """The mesh that a row of packed data was made from.

    Raises:
        SettingsError: there is no mesh of that name.
        MeshError: it cannot be read.
    """
    if name.startswith("procedural-"):
        from .shapes import random_object

        shape = random_object(np.random.default_rng([7, int(name.removeprefix("procedural-"))]))
        return TrainingObject(name, shape.vertices, shape.faces, shape.colors)
    if name not in settings.meshes:
        raise SettingsError(f"{settings.data}: no mesh {name} below --meshes. Give the folder it was prepared from.")
    obj = load_object(settings.meshes[name])
    if settings.stretched is None:
        return obj
    rng = np.random.default_rng([settings.stretched, zlib.crc32(name.encode())])  # as `train.deform` draws
    factors, table = random_stretch(rng), random_recolor(rng)
    skin = None if obj.skin is None else obj.skin.recolored(table)
    return normalized(name, obj.vertices * factors, obj.faces, recolored(obj.colors, table), skin)


def ring_truth(obj: TrainingObject, frame: np.ndarray) -> np.ndarray:
    """The object from the ring's cameras in the upright frame of a photograph (4, 4): (V, s, s, 4) uint8, unlit."""
    caster = Caster(replace(obj, vertices=transformed(frame, obj.vertices)))
    half = float(np.tan(np.deg2rad(RING_FOV_DEG / 2)))
    cameras = [
        CropCamera(a, e, RING_DISTANCE, (0.0, 0.0), half)
        for a, e in zip(RING_AZIMUTHS_DEG, RING_ELEVATIONS_DEG, strict=True)
    ]
    return caster.views(cameras, RING_SIZE, supersample=3)[..., :4]


def model_sketches(model: TinyLRM, photo: torch.Tensor, camera: torch.Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """What the model makes of a photograph (4, S, S), seen from the ring.

    Args:
        model: draws them.
        photo: straight RGBA in [0, 1].
        camera: (2,) elevation in degrees and focal length to tell it, or None to let it guess.

    Returns:
        (V, s, s, 5) uint8 of `lrm.sketch.sketch`, and (2,) the camera used.
    """
    fields, used = model.plain_fields(photo[None], None if camera is None else camera[None])
    drawn = sketch(sampled_lattice(fields[0], SKETCH_RADIUS), SKETCH_RADIUS, ring_cameras(), RING_SIZE)
    return (drawn.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy(), used[0].numpy()


def object_rows(row: int, settings: RingSettings) -> dict[str, np.ndarray] | str:
    """The rows of one packed object, or what is wrong with its mesh."""
    data = PackedData(settings.data)
    name = data.names[row]
    rng = np.random.default_rng([settings.seed, zlib.crc32(name.encode())])
    try:
        obj = packed_object(name, settings)
    except TriliftError as error:
        return f"{name}: {error}"
    model, found = _model(settings.model), []
    count = data.arrays["views"].shape[1]
    picked = np.arange(settings.views) if settings.plain else rng.choice(count, settings.views, replace=False)
    augment = Augment(lit=0, exposure=0, ragged=0) if settings.plain else Augment()
    for view in picked:
        packed, camera = data.arrays["views"][row, view], data.arrays["cameras"][row, view]
        photo = resized(light(torch.from_numpy(packed.copy()), rng, augment), model.image_size)
        truth = torch.tensor([camera[1], 1 / camera[5]], dtype=torch.float32)
        told = not settings.plain and rng.random() < KNOWN_CAMERA
        drawn, used = model_sketches(model, photo, truth if told else None)
        found.append(
            {
                "photos": (photo.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy(),
                "sketches": drawn,
                "rings": ring_truth(obj, upright_frame(camera, centred=True)),
                "cameras": np.array([used[0], truth[0], used[1]], np.float32),
                "sources": np.array([row, view], np.int32),
            }
        )
    return {key: np.stack([each[key] for each in found]) for key in ARRAYS}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.rings", description=__doc__)
    parser.add_argument("data", help="folder of train.prepare or train.deform")
    parser.add_argument("-o", "--out", required=True, type=Path)
    parser.add_argument("--meshes", help="folder of the meshes that it was made from; not for procedural data")
    parser.add_argument("--model", default="trilift/weights/tiny", help="reconstruction model (default %(default)s)")
    parser.add_argument("--views", type=int, default=2, help="photographs per object (default %(default)s)")
    parser.add_argument("--stretched", type=int, metavar="SEED", help="seed that train.deform was run with")
    parser.add_argument("--plain", action="store_true", help="first views, unlit, cameras guessed: for validation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limit", type=int, default=None, help="only the first objects")
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args(argv)
    meshes = {path.stem: path for path in find_meshes(args.meshes)} if args.meshes else {}
    settings = RingSettings(args.data, args.model, args.views, args.seed, meshes, args.stretched, args.plain)
    data = PackedData(args.data)
    if data.arrays["views"].shape[-1] > 7:
        raise SettingsError(
            f"{args.data}: made by train.deform --studio, whose objects cannot be made again here: "
            "rings would show others. Give a folder of train.prepare, or of train.deform without --studio."
        )
    count = len(data.names[: args.limit])
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        made = pool.imap(partial(object_rows, settings=settings), range(count), 4)
        rows, skipped = _write(made, count, settings, args.out)
    print(json.dumps({"rows": rows, "skipped": skipped, "out": str(args.out)}))
    return 0


def _write(made: object, count: int, settings: RingSettings, out: Path) -> tuple[int, int]:
    """Write rows as they come; returns how many there are, and how many objects were skipped."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.json").unlink(missing_ok=True)  # written last: without it the folder is not finished
    arrays: dict[str, np.memmap] = {}
    skipped: list[str] = []
    rows = 0
    for done, found in enumerate(made, 1):  # type: ignore[var-annotated, arg-type]
        if isinstance(found, str):
            skipped.append(found)
            continue
        for key, values in found.items():
            if key not in arrays:
                shape = (count * settings.views, *values.shape[1:])
                arrays[key] = open_memmap(out / f"{key}.npy", mode="w+", dtype=values.dtype, shape=shape)
            arrays[key][rows : rows + settings.views] = values
        rows += settings.views
        if done % 100 == 0 or done == count:
            print(f"rings of {done} of {count} objects, skipped {len(skipped)}", file=sys.stderr, flush=True)
    for array in arrays.values():
        array.flush()
    write_json_whole(out / "rows.json", {"rows": rows, "skipped": skipped, "data": settings.data})
    return rows, len(skipped)


if __name__ == "__main__":
    sys.exit(main())
