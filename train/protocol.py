"""What `train.evaluate` draws and compares with: input and novel views, the true objects, and the trivial answers'
constants, which are fitted on training objects drawn in the same way. And how the work is spread over processes.

`train.protocols` names the protocols that there are.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import pickle
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lrm.mesh import Mesh
from lrm.metrics import (
    Bools,
    Floats,
    ShapeSettings,
    TrueShape,
    occupancy,
    overlap,
    placed,
    score_nothing,
    score_shape_and_volume,
    surface_scores,
)
from multiview.cameras import Cameras, crop_intrinsics, orbit, project
from multiview.color import bytes_from_unit
from multiview.errors import MeshError, SettingsError
from multiview.files import write_json_whole

from .baselines import Bytes, Constants, Example, Retrieval, fit_constants, small_silhouettes, trivial_answer, turned
from .datasets import find_objects, read_object
from .depthpoints import depth_points
from .frames import Frame
from .studio import studio_look
from .texturedmesh import only_used, render_textured

CONSTANTS_FILE = "constants.json"
_TEXTURE_SIZE, _TRAIN_TEXTURE_SIZE = 1024, 512  # of pictures on objects: all training objects are held at once
_WORTH_A_PROCESS = 16  # training objects; with fewer for each, starting processes takes longer than fitting

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class EvalProtocol:
    """What is drawn and how it is compared; lengths in longest sides of the object.

    Attributes:
        name: of the protocol, for reports.
        azimuth_deg, elevation_deg: range of the input camera, uniform; the object's id seeds the draw.
        fov_deg: of the camera before its picture is cropped, and of the novel views.
        camera_distance: to the middle of the object's box.
        image_size: pixels per side of input and novel views.
        foreground_ratio: longest side of the silhouette's box / side of the cropped input.
        light: ``none`` shows colours as they are; ``soft`` lights the input pictures, never the novel views; with
            ``studio`` they have patterns, shadows, gloss and a pocket camera's faults as well (`train.studio`).
        novel_azimuths_deg, novel_elevation_deg: of the novel views, relative to the input camera's azimuth.
        novel_distance, novel_fov_deg: of the novel views' cameras; None: as the input camera's before the crop.
        supersample: samples per pixel and axis in all pictures.
        mesh_resolution: samples per axis when the model's surface is taken.
        train_objects: on which the trivial answers are fitted.
        shape: how shapes are compared.
        depth_points: compare the points that the novel views' cameras see in place of points drawn by area, in
            longest sides, without alignment; the spacing of the lattice in which points that share a cell become one,
            in longest sides. None: points by area, in halves of the longest side, with and without alignment.
        lpips: file or folder of the weights for LPIPS; None leaves it out.
    """

    name: str = "ours"
    azimuth_deg: tuple[float, float] = (0.0, 360.0)
    elevation_deg: tuple[float, float] = (-5.0, 35.0)
    fov_deg: float = 40.0
    camera_distance: float = 0.9 / math.sin(math.radians(20.0))
    image_size: int = 256
    foreground_ratio: float = 0.85
    light: str = "none"
    novel_azimuths_deg: tuple[float, ...] = (45.0, 135.0, 225.0, 315.0)
    novel_elevation_deg: float = 15.0
    novel_distance: float | None = None
    novel_fov_deg: float | None = None
    supersample: int = 2
    mesh_resolution: int = 128
    train_objects: int = 200
    shape: ShapeSettings = field(default_factory=ShapeSettings)
    depth_points: float | None = None
    lpips: str | None = None

    def viewpoint(self, object_id: str) -> tuple[float, float]:
        """Azimuth and elevation of the input camera in degrees, by crc32 of the object's id."""
        rng = np.random.default_rng(seed_of(object_id))
        return float(rng.uniform(*self.azimuth_deg)), float(rng.uniform(*self.elevation_deg))

    def look(self, mesh: Mesh, azimuth_deg: float, elevation_deg: float, image_size: int | None = None) -> Bytes:
        """Draw an object that is `placed`, cropped square about its silhouette: (S, S, 4) uint8 straight alpha."""
        size = image_size or self.image_size
        if self.light == "studio":
            distance, ratio = self.camera_distance, self.foreground_ratio
            return studio_look(mesh, azimuth_deg, elevation_deg, size, distance=distance, ratio=ratio)
        camera = orbit(azimuth_deg, elevation_deg, 2 * self.camera_distance, self.fov_deg)
        uv = project(camera, torch.from_numpy(mesh.vertices))[0][0]
        low, high = uv.amin(0), uv.amax(0)
        side = float((high - low).max()) / self.foreground_ratio
        left, top = ((low + high - side) / 2).tolist()
        camera = Cameras(camera.c2w, crop_intrinsics(camera.intrinsics, left, top, side, side))
        views = render_textured(mesh, camera, size, shading=self.light == "soft", supersample=self.supersample)
        return bytes_from_unit(torch.cat([views.images, views.alpha], 1)[0].permute(1, 2, 0).numpy())

    def novel_views(self, mesh: Mesh) -> Tensor:
        """(V, 3, S, S) unlit pictures over white of a mesh that is `placed`, its source camera at azimuth 0."""
        return render_textured(mesh, self.novel_cameras, self.image_size, supersample=self.supersample).composite(1.0)

    @property
    def novel_cameras(self) -> Cameras:
        """Of the novel views, about a mesh that is `placed`."""
        distance, fov = self.novel_distance or self.camera_distance, self.novel_fov_deg or self.fov_deg
        return orbit(self.novel_azimuths_deg, self.novel_elevation_deg, 2 * distance, fov)

    def around(self, azimuths_deg: Sequence[float], fov_deg: float | None = None) -> Cameras:
        """Cameras about a mesh that is `placed`, at these azimuths and the novel views' elevation, uncropped."""
        return orbit(azimuths_deg, self.novel_elevation_deg, 2 * self.camera_distance, fov_deg or self.fov_deg)

    def true_shape(self, mesh: Mesh, seed: int) -> TrueShape:
        """A true object, ready to be compared with several answers.

        Raises:
            MeshError: as `lrm.metrics.TrueShape.of`, or no camera sees it.
        """
        truth = TrueShape.of(mesh, seed, self.shape)
        return truth if self.depth_points is None else replace(truth, points=self._seen(truth.mesh, self.depth_points))

    def compare(self, answer: Mesh, truth: TrueShape) -> tuple[dict[str, float], Bools]:
        """Shape scores of an answer in the world frame, and which cells of the truth's grid it fills.

        Raises:
            MeshError: the answer has no extent, no area, or no camera sees it.
        """
        if self.depth_points is None:
            return score_shape_and_volume(answer, truth)
        answer = placed(answer)
        occupied = occupancy(answer, self.shape.grid)
        surface = surface_scores(self._seen(answer, self.depth_points), truth.points, ())
        return {"iou": overlap(occupied, truth.occupied), "chamfer": surface["chamfer"] / 2}, occupied

    def compare_nothing(self) -> dict[str, float]:
        """What `compare` says of an answer that is not there: no overlap, no hit, one longest side away."""
        return score_nothing(self.shape) if self.depth_points is None else {"iou": 0.0, "chamfer": 1.0}

    def _seen(self, mesh: Mesh, spacing: float) -> Floats:
        return depth_points(mesh, self.novel_cameras, self.image_size, 2 * spacing)


def seed_of(object_id: str) -> int:
    """crc32 of the id: the seed of all that is random about an object."""
    return zlib.crc32(object_id.encode())


# The true objects.


@dataclass(frozen=True, eq=False)
class EvalObject:
    """One true object: its id (path below the folder, without suffix) and its mesh, `placed` but not yet turned."""

    id: str
    path: Path
    mesh: Mesh

    @classmethod
    def read(cls, object_id: str, path: Path, texture_size: int = _TEXTURE_SIZE, up: str | None = None) -> EvalObject:
        """Read a mesh file; vertices that no face uses are dropped, since they would widen the box.

        Args:
            path: as `train.datasets.find_objects` gives it.
            texture_size: texels per side at most, if it has pictures; larger ones are shrunk.
            up: the axis of the file that is up; None for what `train.datasets` knows of it.

        Raises:
            MeshError: as `train.datasets.read_object` and `lrm.metrics.placed`.
        """
        mesh = only_used(read_object(path, texture_size, up))
        try:
            return cls(object_id, path, placed(mesh))
        except MeshError as error:
            raise MeshError(f"{path}: {error}") from error


def spread(objects: Mapping[str, Path], limit: int | None) -> dict[str, Path]:
    """At most ``limit`` objects, evenly spaced over the sorted ids, so that every pack has its share."""
    ids = sorted(objects)
    if limit is None or limit >= len(ids):
        return {name: objects[name] for name in ids}
    return {ids[index * len(ids) // limit]: objects[ids[index * len(ids) // limit]] for index in range(limit)}


def check_numbers(limit: int | None, processes: int, up: str | None = None) -> None:
    """Refuse a limit or a number of processes below 1, and an axis that is none.

    Raises:
        SettingsError: one of them is.
    """
    if limit is not None and limit < 1:
        raise SettingsError(f"limit={limit}: expected at least 1 object.")
    if processes < 1:
        raise SettingsError(f"processes={processes}: expected at least 1.")
    if up is not None:
        Frame.upright(up)


def true_mesh(mesh: Mesh, azimuth_deg: float) -> Mesh:
    """The object as an answer should give it: turned by minus the azimuth, upright, and `placed` again."""
    return placed(turned(mesh, azimuth_deg))


def is_watertight(mesh: Mesh) -> bool:
    """Whether every edge has exactly two faces once vertices in one place are joined (winding is not asked for)."""
    _, place = np.unique(mesh.vertices, axis=0, return_inverse=True)
    faces = place.reshape(-1)[mesh.faces]
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1)
    _, counts = np.unique(edges, axis=0, return_counts=True)
    return bool((counts == 2).all())


# The trivial answers.


@dataclass(frozen=True, eq=False)
class Trivial:
    """The trivial answers that can be given here, and why the others cannot."""

    names: tuple[str, ...]
    left_out: Mapping[str, str]
    constants: Constants | None = None
    retrieval: Retrieval | None = None

    def answer(self, name: str, picture: Bytes) -> Mesh:
        """See `train.baselines.trivial_answer`."""
        if self.constants is None:
            raise SettingsError(f"{name}: {self.left_out.get(name, 'not fitted')}")
        return trivial_answer(name, picture, self.constants, self.retrieval)


def prepare_trivial(
    names: Sequence[str],
    train: Path | None,
    out: Path,
    test_ids: Iterable[str],
    protocol: EvalProtocol,
    tell: Callable[[str], None],
    processes: int = 1,
) -> Trivial:
    """Fit what the trivial answers need on training objects, or take it from OUT/constants.json if nothing changed.

    Args:
        names: of `TRIVIAL_ANSWERS`.
        train: folder of training objects; None leaves all trivial answers out.
        test_ids: never among the training objects.
        tell: called with lines about the progress.
        processes: that draw and measure the training objects; more never change the result.

    Raises:
        SettingsError: the folder has no mesh files.
        OutputError: constants.json cannot be written.
    """
    if not names or train is None:
        reason = "no folder of training objects to fit its constants on; give one with --train"
        return Trivial((), {name: reason for name in names})
    hidden = set(test_ids)
    chosen = spread({k: v for k, v in find_objects(train).items() if k not in hidden}, protocol.train_objects)
    meshes = _readable(chosen, tell)
    sizes = {k: path.stat().st_size for k, path in chosen.items()}
    key = hashlib.sha256(json.dumps([_fitted_under(protocol), sizes]).encode()).hexdigest()
    processes = max(1, min(processes, len(meshes) // _WORTH_A_PROCESS))
    constants = _cached_constants(out / CONSTANTS_FILE, key)
    if constants is None:
        tell(f"fitting the trivial answers on {len(meshes)} objects of {train}; later runs into {out} reuse it")
        constants = fit_constants(list(mapped(partial(_example, protocol=protocol), meshes.items(), processes)))
        record = {"key": key, "train": str(train), "protocol": asdict(protocol), "constants": constants.as_json()}
        write_json_whole(out / CONSTANTS_FILE, record)
    retrieval = None
    if "retrieval" in names:
        tell(f"drawing the silhouettes of {len(meshes)} training objects")
        seen = mapped(partial(small_silhouettes, look=protocol.look), meshes.values(), processes)
        retrieval = Retrieval(list(meshes.values()), np.concatenate(list(seen)))
    return Trivial(tuple(names), {}, constants, retrieval)


def _readable(chosen: Mapping[str, Path], tell: Callable[[str], None]) -> dict[str, Mesh]:
    """The meshes that can be read; a broken training object is no reason to stop."""
    meshes = {}
    for name, path in chosen.items():
        try:
            meshes[name] = EvalObject.read(name, path, _TRAIN_TEXTURE_SIZE).mesh
        except MeshError as error:
            tell(f"left out of the training objects: {error}")
    return meshes


def _example(named: tuple[str, Mesh], protocol: EvalProtocol) -> Example:
    name, mesh = named
    azimuth, elevation = protocol.viewpoint(name)
    return Example(protocol.look(mesh, azimuth, elevation), occupancy(true_mesh(mesh, azimuth), protocol.shape.grid))


def _fitted_under(protocol: EvalProtocol) -> dict[str, Any]:
    """What of a protocol decides the constants: how inputs are drawn, and the grid. Others may share the file."""
    drawn = ("azimuth_deg", "elevation_deg", "fov_deg", "camera_distance", "image_size", "foreground_ratio", "light",
             "supersample", "train_objects")  # fmt: skip
    values = asdict(protocol)
    return {key: values[key] for key in drawn} | {"grid": protocol.shape.grid}


def _cached_constants(path: Path, key: str) -> Constants | None:
    """What an earlier run fitted under the same key; None when there is none that can be used."""
    try:
        record = json.loads(path.read_text("utf-8"))
        return Constants.from_json(record["constants"]) if record["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, SettingsError):
        return None


# Several processes.


def mapped(function: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[Result]:
    """``map`` over several fresh processes, results in the order of the items; with one, in this process.

    The processors are shared out: each process computes with its part of the threads.

    Args:
        function: sent to each process once; it and what it gives must survive pickling when there are several.
        items: what it is called with, one at a time.
        processes: at least 1.

    Raises:
        SettingsError: ``function`` cannot be sent to another process.
    """
    if processes <= 1:
        yield from map(function, items)
        return
    try:
        pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise SettingsError(
            f"processes={processes} wants a model that can be sent to other processes ({error}). Try processes=1."
        ) from error
    threads = max(1, (os.cpu_count() or 1) // processes)
    with multiprocessing.get_context("spawn").Pool(processes, _begin, (function, threads)) as pool:
        yield from pool.imap(_call, items)


_function: Callable[[Any], Any] | None = None  # of this process, when `mapped` started it


def _begin(function: Callable[[Any], Any], threads: int) -> None:
    global _function
    os.environ["IGL_NUM_THREADS"] = str(threads)  # libigl reads it at its first call
    torch.set_num_threads(threads)
    _function = function


def _call(item: Any) -> Any:
    assert _function is not None, "called outside `mapped`"
    return _function(item)
