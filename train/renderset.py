"""``python -m train.render MESHES -o DATA``: meshes → posed pictures, one folder an object, for fine-tuning any model.

::

    DATA/settings.json, skipped.json
    DATA/<path of the mesh without suffix>/
        transforms.json          NeRF's and nerfstudio's layout: OpenGL c2w, world z up, longest side 1 about the origin
        rgba/000.png ...         straight sRGB over a transparent background
        depth/000.npy ...        with --depth: float32 along the camera's forward axis, 0 where nothing is
        normal/000.png ...       with --normals: camera frame (right, up, back) as 128 + 127 n
        points.npz               unless --points 0: points, inside, surface, colors of train/points.py

No Blender and no OpenGL: embree draws, or plain torch without it. An object's folder appears whole or not at all, so
that the same command, started again, goes on with what is missing. What cannot be used is named in skipped.json.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from multiview.camerafile import (
    NERF_FILE,
    ZERO123PLUS_AZIMUTHS_DEG,
    ZERO123PLUS_DISTANCE,
    ZERO123PLUS_ELEVATIONS_DEG,
    ZERO123PLUS_FOV_DEG,
)
from multiview.cameras import Cameras, orbit
from multiview.color import linear_from_srgb, srgb_from_linear
from multiview.devices import pick_device
from multiview.errors import MeshError, SettingsError, TriliftError
from multiview.files import folder_written_whole, write_json_whole

from .layouts import LENS_FOV_DEG, POINTS_FILE
from .objects import TrainingObject, find_meshes, normalized
from .points import label_points
from .render import RENDERERS, Caster, CropCamera, Renderer, camera_axes, pick_renderer
from .torchrender import TorchCaster

PRESETS = ("free", "zero123", "syncdreamer", "syncdreamer-inputs", "zero123plus")
LIGHTS = ("soft", "none")
SETTINGS_FILE = "settings.json"
SKIPPED_FILE = "skipped.json"
SCENE_RADIUS = 0.5
USD_SUFFIXES = (".usd", ".usda", ".usdc", ".usdz")

_NEAREST = 0.9  # longest sides from the middle: the corner of a cube is 0.87 away
_AMBIENT, _SKY, _SUN = 0.35, 0.25, 0.55  # shares of light, in linear light


@dataclass(frozen=True)
class RenderSettings:
    """What is drawn of each object; lengths in its longest sides.

    Attributes:
        preset: of `PRESETS`, where cameras stand: ``zero123`` at random as its training data, ``syncdreamer`` its ring
            of 16 at elevation 30 and ``syncdreamer-inputs`` its 16 input views, ``zero123plus`` its six, or ``free``.
        views: pictures of an object, for the presets that draw them at random; None for the preset's own number.
        azimuth_deg, elevation_deg: lists of one length (or one number) for ``free``; empty for random ones.
        elevation_range_deg: of random elevations of ``free``.
        distance: camera to the object's middle; two numbers are a range; None for the preset's.
        fov_deg: full field of view; None for the preset's.
        image_size: pixels per side.
        supersample: rays per pixel and axis.
        seed: of everything random, together with the object's name.
        light: ``soft`` is a sky, ambient light and one sun that stays in the object's world; ``none`` shows colours.
        depth, normals: whether these are written.
        points, surface: labelled points and coloured surface points; 0 points for no file.
        renderer, device: as `train.render.pick_renderer`.
        max_faces: meshes with more are skipped.
        max_megabytes: mesh files larger than that are skipped unread.
    """

    preset: str = "free"
    views: int | None = None
    azimuth_deg: tuple[float, ...] = ()
    elevation_deg: tuple[float, ...] = ()
    elevation_range_deg: tuple[float, float] = (-20.0, 50.0)
    distance: tuple[float, ...] | None = None
    fov_deg: float | None = None
    image_size: int = 256
    supersample: int = 3
    seed: int = 0
    light: str = "soft"
    depth: bool = False
    normals: bool = False
    points: int = 32768
    surface: int = 8192
    renderer: str = "auto"
    device: str = "cpu"
    max_faces: int = 5_000_000
    max_megabytes: float = 512.0

    def __post_init__(self) -> None:
        for name, value, known in (("preset", self.preset, PRESETS), ("light", self.light, LIGHTS)):
            if value not in known:
                raise SettingsError(f"--{name} {value}: expected one of {', '.join(known)}.")
        counts = {"image-size": self.image_size, "supersample": self.supersample, "max-faces": self.max_faces}
        counts |= {} if self.views is None else {"views": self.views}
        for name, count in counts.items():
            if count < 1:
                raise SettingsError(f"--{name} {count}: expected a positive number.")
        if self.fov_deg is not None and not 0 < self.fov_deg < 170:
            raise SettingsError(f"--fov {self.fov_deg:g}: expected degrees between 0 and 170.")
        distance = self.distance
        if distance is not None and (len(distance) > 2 or min(distance) < _NEAREST or distance[0] > distance[-1]):
            raise SettingsError(
                f"--distance {' '.join(f'{d:g}' for d in distance)}: expected one number or LOW HIGH, at least "
                f"{_NEAREST} longest sides, so that the camera is outside the object."
            )
        if max((abs(e) for e in (*self.elevation_deg, *self.elevation_range_deg)), default=0) > 90:
            raise SettingsError("elevations: expected degrees between -90 and 90.")
        given = {len(values) for values in (self.azimuth_deg, self.elevation_deg) if len(values) > 1}
        if len(given) > 1 or bool(self.azimuth_deg) != bool(self.elevation_deg):
            raise SettingsError(
                f"--azimuths has {len(self.azimuth_deg)} numbers and --elevations {len(self.elevation_deg)}: expected "
                "two lists of one length, or one number in one of them."
            )


@dataclass(frozen=True)
class Placed:
    """Where V cameras stand, all looking at the object's middle: each (V,), degrees and longest sides."""

    azimuth_deg: tuple[float, ...]
    elevation_deg: tuple[float, ...]
    distance: tuple[float, ...]
    fov_deg: tuple[float, ...]

    @property
    def cameras(self) -> Cameras:
        """The same cameras as matrices."""
        return orbit(self.azimuth_deg, self.elevation_deg, self.distance, self.fov_deg)

    def crops(self) -> list[CropCamera]:
        """The same cameras as `train.render` knows them."""
        rows = zip(self.azimuth_deg, self.elevation_deg, self.distance, self.fov_deg, strict=True)
        return [CropCamera(a, e, d, (0.0, 0.0), math.tan(math.radians(f / 2))) for a, e, d, f in rows]


def place_cameras(settings: RenderSettings, rng: np.random.Generator) -> Placed:
    """Where the cameras of one object stand.

    Source:
        Facts 3 (Zero123: directions uniform in a cube, distance 1.5 to 2.2), 4.4 (Zero123++), 5.1 (SyncDreamer).
    """
    fov, near_far = LENS_FOV_DEG, (1.5, 1.5)
    if settings.preset == "zero123":
        count, near_far = settings.views or 12, (1.5, 2.2)
        toward = rng.uniform(-1, 1, (count, 3))
        azimuth = np.degrees(np.arctan2(toward[:, 1], toward[:, 0])) % 360
        elevation = np.degrees(np.arctan2(toward[:, 2], np.hypot(toward[:, 0], toward[:, 1])))
    elif settings.preset.startswith("syncdreamer"):
        azimuth, elevation = 22.5 * np.arange(16), np.full(16, 30.0)
        if settings.preset == "syncdreamer-inputs":
            elevation = rng.uniform(-10, 40, 16)
    elif settings.preset == "zero123plus":
        azimuth, elevation = np.array(ZERO123PLUS_AZIMUTHS_DEG), np.array(ZERO123PLUS_ELEVATIONS_DEG)
        fov, near_far = ZERO123PLUS_FOV_DEG, (ZERO123PLUS_DISTANCE, ZERO123PLUS_DISTANCE)
    else:
        fov, near_far = 40.0, (2.6, 2.6)
        azimuth, elevation = _free_directions(settings, rng)
    fov = settings.fov_deg or fov
    near_far = near_far if settings.distance is None else (settings.distance[0], settings.distance[-1])
    distance = rng.uniform(*near_far, len(azimuth))
    return Placed(tuple(azimuth.tolist()), tuple(elevation.tolist()), tuple(distance.tolist()), (fov,) * len(azimuth))


def _free_directions(settings: RenderSettings, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The directions that were asked for, or random ones."""
    if settings.azimuth_deg:
        pair = np.broadcast_arrays(np.array(settings.azimuth_deg), np.array(settings.elevation_deg))
        return pair[0], pair[1]
    count = settings.views or 24
    return rng.uniform(0, 360, count), rng.uniform(*settings.elevation_range_deg, count)


def load_mesh(path: Path, settings: RenderSettings) -> TrainingObject:
    """Read a mesh file for rendering; vertices that no face uses are left out, since they would widen its box.

    Raises:
        MeshError: too large, or as `train.texturedmesh.read_textured`, or it has no extent.
    """
    from .texturedmesh import only_used, read_textured, skin_of

    megabytes = path.stat().st_size / 1e6
    if megabytes > settings.max_megabytes:
        raise MeshError(
            f"{path}: {megabytes:.0f} MB, expected at most {settings.max_megabytes:g}. Make it simpler, or raise "
            "--max-megabytes (reading may need twenty times as much memory)."
        )
    if path.suffix.lower() in USD_SUFFIXES:
        from .usdfile import read_usd

        mesh = read_usd(path)
    else:
        mesh = read_textured(path)
    if len(mesh.faces) > settings.max_faces:
        raise MeshError(
            f"{path}: {len(mesh.faces):,} faces, expected at most {settings.max_faces:,}. Make it simpler, or raise "
            "--max-faces."
        )
    mesh = only_used(mesh)
    extent = np.ptp(mesh.vertices, 0)
    if not (np.isfinite(extent).all() and extent.max() > 0):
        raise MeshError(f"{path}: all its faces lie in one point or reach beyond float32, so there is nothing to see.")
    return normalized(path.stem, mesh.vertices, mesh.faces, np.round(mesh.colors * 255).astype(np.uint8), skin_of(mesh))


def lit(views: np.ndarray, placed: Placed, sun: np.ndarray) -> np.ndarray:
    """Light rendered views by a sky, ambient light and a sun, all fixed in the world.

    Args:
        views: (V, S, S, 7) uint8 as `train.render.Caster.view` gives them.
        placed: their cameras.
        sun: (3,) unit vector toward it, world frame.

    Returns:
        (V, S, S, 4) uint8 straight sRGB and alpha.
    """
    pictures = np.empty((*views.shape[:3], 4), np.uint8)
    for index, view in enumerate(views):
        axes = camera_axes(placed.azimuth_deg[index], placed.elevation_deg[index])
        normal = (view[..., 4:].astype(np.float64) - 128) / 127 @ axes
        light = _AMBIENT + _SKY * (1 + normal[..., 2]) / 2 + _SUN * (normal @ sun).clip(0)
        linear = linear_from_srgb(view[..., :3] / 255.0) * light[..., None]
        pictures[index, ..., :3] = np.round(srgb_from_linear(linear.clip(0, 1)) * 255)
        pictures[index, ..., 3] = view[..., 3]
    pictures[views[..., 3] == 0] = 0
    return pictures


def render_object(obj: TrainingObject, name: str, settings: RenderSettings, out: Path) -> None:
    """Write one object's folder, whole or not at all.

    Args:
        obj: longest side 1.
        name: seeds, with the settings' seed, all that is random, and is noted in ``transforms.json``.
        settings: what is drawn.
        out: the object's folder.

    Raises:
        MeshError: its points cannot be labelled.
        OutputError: it could not be written.
    """
    rng = np.random.default_rng([settings.seed, zlib.crc32(name.encode())])
    placed = place_cameras(settings, rng)
    embree = pick_renderer(settings.renderer, settings.device) == "embree"
    renderer: Renderer = Caster(obj) if embree else TorchCaster(obj, settings.device)
    views = renderer.views(placed.crops(), settings.image_size, supersample=settings.supersample)
    height, azimuth = math.radians(rng.uniform(35, 65)), rng.uniform(0, 2 * math.pi)
    sun = np.array([math.cos(height) * math.cos(azimuth), math.cos(height) * math.sin(azimuth), math.sin(height)])
    pictures = lit(views, placed, sun) if settings.light == "soft" else views[..., :4]
    with folder_written_whole(out, NERF_FILE) as folder:
        _write_pictures(folder / "rgba", pictures)
        if settings.normals:
            _write_pictures(folder / "normal", np.concatenate([views[..., 4:], views[..., 3:4]], -1))
        if settings.depth:
            _write_depth(folder / "depth", obj, placed, settings.image_size)
        if settings.points:
            points = label_points(obj, rng, count=settings.points, surface=settings.surface, device=settings.device)
            np.savez_compressed(folder / POINTS_FILE, **vars(points))
        write_json_whole(folder / NERF_FILE, _transforms(name, placed, settings))


def _write_pictures(folder: Path, pictures: np.ndarray) -> None:
    from PIL import Image

    folder.mkdir()
    for index, pixels in enumerate(pictures):
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{index:03d}.png")


def _write_depth(folder: Path, obj: TrainingObject, placed: Placed, size: int) -> None:
    """Depth at pixel centres, one ``.npy`` a view."""
    from lrm.mesh import Mesh
    from lrm.raster import rasterize

    folder.mkdir()
    mesh, cameras = Mesh(obj.vertices, obj.faces, obj.colors / np.float32(255)), placed.cameras
    for index in range(len(cameras)):
        depth = rasterize(mesh, cameras.select([index]), size, size).depth
        np.save(folder / f"{index:03d}.npy", depth.astype(np.float32))


def _transforms(name: str, placed: Placed, settings: RenderSettings) -> dict[str, Any]:
    """What ``transforms.json`` says."""
    size, frames = settings.image_size, []
    for index, c2w in enumerate(placed.cameras.c2w):
        focal = size / 2 / math.tan(math.radians(placed.fov_deg[index] / 2))
        frame: dict[str, Any] = {"file_path": f"rgba/{index:03d}.png", "transform_matrix": c2w.tolist()}
        frame |= {"fl_x": focal, "fl_y": focal, "cx": size / 2, "cy": size / 2, "w": size, "h": size}
        frame |= {"depth_file_path": f"depth/{index:03d}.npy"} if settings.depth else {}
        frame |= {"normal_file_path": f"normal/{index:03d}.png"} if settings.normals else {}
        frames.append(frame)
    shared = {"camera_model": "PINHOLE", "camera_angle_x": math.radians(placed.fov_deg[0])}
    return {**shared, "name": name, "scene_radius": SCENE_RADIUS, "frames": frames}


# A folder of meshes


@dataclass(frozen=True)
class Job:
    """One mesh file and the name of the folder that it becomes."""

    path: Path
    name: str


def find_jobs(folder: Path) -> list[Job]:
    """All mesh files below a folder with names of their own, sorted.

    Raises:
        SettingsError: there is no such folder, or no mesh in it.
    """
    if not folder.is_dir():
        raise SettingsError(
            f"{folder}: expected a folder of meshes, found {'a file' if folder.exists() else 'nothing'}."
        )
    usd = [path for path in folder.rglob("*") if path.suffix.lower() in USD_SUFFIXES]
    paths = sorted([*find_meshes(folder), *usd])
    if not paths:
        raise SettingsError(f"{folder}: no meshes found (.glb, .gltf, .obj, .ply, .stl, .off, .usd).")
    plain = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    taken = {name for name in plain if plain.count(name) > 1}
    # An object's folder must not lie within another's.
    taken |= {name for name in plain if any(other.startswith(f"{name}/") for other in plain)}
    names = [name + path.suffix.lower() if name in taken else name for path, name in zip(paths, plain, strict=True)]
    return [Job(path, name) for path, name in zip(paths, names, strict=True)]


def render_job(job: Job, settings: RenderSettings, out: Path) -> str | None:
    """Render one mesh file; gives the reason when it cannot be."""
    try:
        render_object(load_mesh(job.path, settings), job.name, settings, out / job.name)
    except TriliftError as error:
        return str(error)
    except (MemoryError, RecursionError) as error:
        return f"{job.path}: too large for this machine ({type(error).__name__}). Make it simpler."
    # One mesh must never stop the others; what was not foreseen is said with its kind.
    except Exception as error:
        return f"{job.path}: {type(error).__name__}: {error}"
    return None


def run_jobs(
    jobs: Sequence[Job], work: Callable[[Job], str | None], processes: int = 1
) -> Iterator[tuple[Job, str | None]]:
    """Do ``work`` for every job, in this process or in several: each with its reason when it was skipped, as they end.

    A job whose process dies (memory, a crash in compiled code) is tried once more alone, and named if it dies again.
    """
    if processes <= 1:
        for job in jobs:
            yield job, work(job)
        return
    suspects: list[Job] = []
    left = list(jobs)
    while left:
        running: dict[Future[str | None], Job] = {}
        with _pool(processes) as pool:
            try:
                while left or running:
                    while left and len(running) < 2 * processes:
                        future = pool.submit(work, left[0])
                        running[future] = left.pop(0)
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        reason = future.result()
                        yield running.pop(future), reason
            except BrokenProcessPool:
                suspects += running.values()  # one of these took its process down
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    for job in suspects:
        with _pool(1) as pool:
            try:
                yield job, pool.submit(work, job).result()
            except BrokenProcessPool:
                yield job, f"{job.path}: the process that rendered it was ended by the system; it may need more memory."


def _pool(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def render_folder(
    jobs: Sequence[Job],
    settings: RenderSettings,
    out: Path,
    processes: int = 1,
    on_done: Callable[[Job, str | None], None] | None = None,
) -> dict[str, str]:
    """Render what is missing below ``out``; gives the reason for each name that was skipped.

    Raises:
        SettingsError: ``out`` was begun with other settings.
        OutputError: it could not be written.
    """
    _same_settings(out, settings)
    for stale in out.rglob(".aside-*"):  # of a run that was killed
        shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)
    missing = [job for job in jobs if not (out / job.name / NERF_FILE).is_file()]
    skipped: dict[str, str] = {}
    work = partial(render_job, settings=settings, out=out)
    for job, reason in run_jobs(missing, work, processes):
        if reason is not None:
            skipped[job.name] = reason
        if on_done is not None:
            on_done(job, reason)
    write_json_whole(out / SKIPPED_FILE, dict(sorted(skipped.items())))
    return skipped


def _same_settings(out: Path, settings: RenderSettings) -> None:
    """Note the settings of a new folder, and refuse one that was begun with others."""
    now = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()}
    file = out / SETTINGS_FILE
    if file.is_file():
        before = json.loads(file.read_text("utf-8"))
        changed = [key for key in now if key not in ("renderer", "device") and before.get(key) != now[key]]
        if changed:
            raise SettingsError(
                f"{out}: was begun with {changed[0]} = {before.get(changed[0])}, now it is {now[changed[0]]}. Give the "
                "same options to go on, or another folder with -o."
            )
    write_json_whole(file, now)


# The command


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    usual = RenderSettings()
    parser = argparse.ArgumentParser(
        prog="python -m train.render", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("meshes", type=Path, help="folder of meshes (y up, as glTF says)")
    add("-o", "--out", required=True, type=Path, help="the data folder; an unfinished one is gone on with")
    add("--processes", type=int, default=1, help="(default %(default)s)")
    add("--limit", type=int, default=None, help="only the first meshes")
    add("--preset", choices=PRESETS, default=usual.preset, help="where cameras stand (default %(default)s)")
    add("--views", type=int, default=None, help="pictures of an object (zero123: 12, free: 24)")
    add("--azimuths", type=_list, default=(), metavar="A,B,...", help="free: degrees, 0 = +x, toward +y")
    add("--elevations", type=_list, default=(), metavar="A,B,...", help="free: degrees above the horizon")
    add("--elevation-range", type=float, nargs=2, default=usual.elevation_range_deg, metavar=("LOW", "HIGH"),
        help="free, at random (default %(default)s)")  # fmt: skip
    add("--distance", type=float, nargs="+", default=None, help="longest sides to the middle, or LOW HIGH")
    add("--fov", type=float, default=None, help="full field of view in degrees (default: the preset's)")
    add("--image-size", type=int, default=usual.image_size, help="pixels per side (default %(default)s)")
    add("--supersample", type=int, default=usual.supersample, help="rays per pixel and axis (default %(default)s)")
    add("--seed", type=int, default=usual.seed, help="(default %(default)s)")
    add("--light", choices=LIGHTS, default=usual.light, help="soft: sky and one sun (default %(default)s)")
    add("--depth", action="store_true", help="write depth/000.npy")
    add("--normals", action="store_true", help="write normal/000.png")
    add("--points", type=int, default=usual.points, help="labelled points, 0 for none (default %(default)s)")
    add("--surface", type=int, default=usual.surface, help="coloured surface points (default %(default)s)")
    add("--renderer", choices=RENDERERS, default=usual.renderer, help="auto: embree on a CPU that has it, else torch")
    add("--device", default=usual.device, help="for torch: auto, cpu, cuda, cuda:N or mps (default %(default)s)")
    add("--max-faces", type=int, default=usual.max_faces, help="skip larger meshes (default %(default)s)")
    add("--max-megabytes", type=float, default=usual.max_megabytes, help="skip larger files (default %(default)s)")
    return parser


def _list(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def settings_of(args: argparse.Namespace) -> RenderSettings:
    """What the options say.

    Raises:
        SettingsError: a value out of range, a device or renderer that is not here.
    """
    device = str(pick_device(args.device))
    pick_renderer(args.renderer, device)
    low, high = args.elevation_range
    return RenderSettings(
        args.preset, args.views, args.azimuths, args.elevations, (low, high),
        None if args.distance is None else tuple(args.distance), args.fov, args.image_size, args.supersample, args.seed,
        args.light, args.depth, args.normals, args.points, args.surface, args.renderer, device, args.max_faces,
        args.max_megabytes,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when all meshes were rendered, 1 when some were skipped, 2 for wrong usage."""
    args = build_parser().parse_args(argv)
    try:
        settings = settings_of(args)
        jobs = find_jobs(args.meshes)[: args.limit]
        done = sum((args.out / job.name / NERF_FILE).is_file() for job in jobs)
        count = iter(range(done + 1, len(jobs) + 1))

        def tell(job: Job, reason: str | None) -> None:
            print(f"{next(count)} of {len(jobs)}: {job.name}: {reason or 'rendered'}", file=sys.stderr, flush=True)

        skipped = render_folder(jobs, settings, args.out, args.processes, tell)
    except SettingsError as error:
        print(f"SettingsError: {error}", file=sys.stderr)
        return 2
    except TriliftError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"rendered": len(jobs) - len(skipped), "skipped": len(skipped), "out": str(args.out)}))
    return 1 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
