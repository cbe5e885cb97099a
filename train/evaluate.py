"""``trilift eval DATA -o OUT``: score a model, and trivial answers beside it, against meshes that it has not seen.

One input picture per object, drawn as docs/evaluation.md says; what comes back is compared with the truth by volume,
surface and novel views. OUT gets ``metrics.json``, the meshes, the input pictures and contact sheets.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrm.field import Field
from lrm.mesh import Mesh
from lrm.meshfile import read_mesh, write_mesh
from lrm.metrics import (
    ShapeSettings,
    TrueShape,
    bootstrap_intervals,
    occupancy,
    placed,
    psnr,
    score_nothing,
    score_shape,
    ssim,
)
from lrm.raster import render_mesh
from lrm.volume import render
from multiview.cameras import Cameras, crop_intrinsics, orbit, project
from multiview.color import bytes_from_unit
from multiview.errors import MeshError, SettingsError, TriliftError
from multiview.files import write_json_whole, written_whole

from .baselines import TRIVIAL_ANSWERS, Bytes, Constants, Example, Retrieval, fit_constants, trivial_answer, turned
from .objects import find_meshes

OURS = "ours"
METRICS_FILE, CONSTANTS_FILE, SHEET_FILE = "metrics.json", "constants.json", "sheet.png"
FORMAT = 1
_INPUT_VIEW_SIZE = 128  # pixels per side of the volume-rendered input view
_VERSIONS = ("torch", "numpy", "scipy", "libigl", "PyMCubes", "pillow")


@dataclass(frozen=True)
class EvalProtocol:
    """What is drawn and how it is compared; lengths in longest sides of the object.

    Attributes:
        azimuth_deg, elevation_deg: range of the input camera, uniform; the object's id seeds the draw.
        fov_deg: of the camera before its picture is cropped, and of the novel views.
        camera_distance: to the middle of the object's box.
        image_size: pixels per side of input and novel views.
        foreground_ratio: longest side of the silhouette's box / side of the cropped input.
        light: ``none`` shows colours as they are; ``soft`` lights the input pictures, never the novel views.
        novel_azimuths_deg, novel_elevation_deg: of the novel views, relative to the input camera's azimuth.
        supersample: samples per pixel and axis in all pictures.
        mesh_resolution: samples per axis when the model's surface is taken.
        train_objects: on which the trivial answers are fitted.
        shape: how shapes are compared.
    """

    azimuth_deg: tuple[float, float] = (0.0, 360.0)
    elevation_deg: tuple[float, float] = (-5.0, 35.0)
    fov_deg: float = 40.0
    camera_distance: float = 0.9 / math.sin(math.radians(20.0))
    image_size: int = 256
    foreground_ratio: float = 0.85
    light: str = "none"
    novel_azimuths_deg: tuple[float, ...] = (45.0, 135.0, 225.0, 315.0)
    novel_elevation_deg: float = 15.0
    supersample: int = 2
    mesh_resolution: int = 128
    train_objects: int = 200
    shape: ShapeSettings = field(default_factory=ShapeSettings)

    def viewpoint(self, object_id: str) -> tuple[float, float]:
        """Azimuth and elevation of the input camera in degrees, by crc32 of the object's id."""
        rng = np.random.default_rng(seed_of(object_id))
        return float(rng.uniform(*self.azimuth_deg)), float(rng.uniform(*self.elevation_deg))

    def look(self, mesh: Mesh, azimuth_deg: float, elevation_deg: float, image_size: int | None = None) -> Bytes:
        """Draw an object that is `placed`, cropped square about its silhouette: (S, S, 4) uint8 straight alpha."""
        size = image_size or self.image_size
        camera = orbit(azimuth_deg, elevation_deg, 2 * self.camera_distance, self.fov_deg)
        uv = project(camera, torch.from_numpy(mesh.vertices))[0][0]
        low, high = uv.amin(0), uv.amax(0)
        side = float((high - low).max()) / self.foreground_ratio
        left, top = ((low + high - side) / 2).tolist()
        camera = Cameras(camera.c2w, crop_intrinsics(camera.intrinsics, left, top, side, side))
        views = render_mesh(mesh, camera, size, shading=self.light == "soft", supersample=self.supersample)
        return bytes_from_unit(torch.cat([views.images, views.alpha], 1)[0].permute(1, 2, 0).numpy())

    def novel_views(self, mesh: Mesh) -> Tensor:
        """(V, 3, S, S) unlit pictures over white of a mesh that is `placed`, its source camera at azimuth 0."""
        cameras = orbit(self.novel_azimuths_deg, self.novel_elevation_deg, 2 * self.camera_distance, self.fov_deg)
        return render_mesh(mesh, cameras, self.image_size, supersample=self.supersample).composite(1.0)


class LiftedCutout(Protocol):
    """The part of `trilift.foreground.Cutout` that is used here."""

    def to_tensor(self, size: int) -> Tensor:
        """(4, size, size) straight-alpha picture in [0, 1]."""
        ...


class Lifted(Protocol):
    """The part of `trilift.asset.Asset` that is used here."""

    @property
    def mesh(self) -> Mesh: ...
    @property
    def field(self) -> Field: ...
    @property
    def camera(self) -> Cameras: ...
    @property
    def cutout(self) -> LiftedCutout: ...


Lifter = Callable[[Bytes], Lifted]


@dataclass(frozen=True, eq=False)
class EvalObject:
    """One true object: its id (path below the folder, without suffix) and its mesh, `placed` but not yet turned."""

    id: str
    path: Path
    mesh: Mesh

    @classmethod
    def read(cls, object_id: str, path: Path) -> EvalObject:
        """Read a mesh file; vertices that no face uses are dropped, since they would widen the box.

        Raises:
            MeshError: as `lrm.meshfile.read_mesh` and `lrm.metrics.placed`.
        """
        mesh = read_mesh(path)
        used, faces = np.unique(mesh.faces, return_inverse=True)
        try:
            return cls(object_id, path, placed(Mesh(mesh.vertices[used], faces.reshape(-1, 3), mesh.colors[used])))
        except MeshError as error:
            raise MeshError(f"{path}: {error}") from error


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


def seed_of(object_id: str) -> int:
    """crc32 of the id: the seed of all that is random about an object."""
    return zlib.crc32(object_id.encode())


def find_objects(folder: Path) -> dict[str, Path]:
    """All mesh files below ``folder`` by id, sorted; two files with one stem are told apart by their suffix.

    Raises:
        SettingsError: no such folder, or no mesh files in it.
    """
    paths = find_meshes(folder) if folder.is_dir() else []
    if not paths:
        raise SettingsError(f"{folder}: expected a folder of mesh files (.glb, .obj, .ply ...), found none in it.")
    stems = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    return {
        stem if stems.count(stem) == 1 else path.relative_to(folder).as_posix(): path
        for stem, path in zip(stems, paths, strict=True)
    }


def spread(objects: Mapping[str, Path], limit: int | None) -> dict[str, Path]:
    """At most ``limit`` objects, evenly spaced over the sorted ids, so that every pack has its share."""
    ids = sorted(objects)
    if limit is None or limit >= len(ids):
        return {name: objects[name] for name in ids}
    return {ids[index * len(ids) // limit]: objects[ids[index * len(ids) // limit]] for index in range(limit)}


def true_mesh(mesh: Mesh, azimuth_deg: float) -> Mesh:
    """The object as an answer should give it: turned by minus the azimuth, upright, and `placed` again."""
    return placed(turned(mesh, azimuth_deg))


# The trivial answers' constants.


def prepare_trivial(
    names: Sequence[str],
    train: Path | None,
    out: Path,
    test_ids: Iterable[str],
    protocol: EvalProtocol,
    tell: Callable[[str], None],
) -> Trivial:
    """Fit what the trivial answers need on training objects, or take it from OUT/constants.json if nothing changed.

    Args:
        names: of `TRIVIAL_ANSWERS`.
        train: folder of training objects; None leaves all trivial answers out.
        test_ids: never among the training objects.
        tell: called with lines about the progress.

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
    key = hashlib.sha256(
        json.dumps([asdict(protocol), {k: path.stat().st_size for k, path in chosen.items()}]).encode()
    ).hexdigest()
    constants = _cached_constants(out / CONSTANTS_FILE, key)
    if constants is None:
        tell(f"fitting the trivial answers on {len(meshes)} objects of {train}; later runs into {out} reuse it")
        constants = fit_constants([_example(name, mesh, protocol) for name, mesh in meshes.items()])
        record = {"key": key, "train": str(train), "protocol": asdict(protocol), "constants": constants.as_json()}
        write_json_whole(out / CONSTANTS_FILE, record)
    retrieval = None
    if "retrieval" in names:
        tell(f"drawing the silhouettes of {len(meshes)} training objects")
        retrieval = Retrieval.of(list(meshes.values()), protocol.look)
    return Trivial(tuple(names), {}, constants, retrieval)


def _readable(chosen: Mapping[str, Path], tell: Callable[[str], None]) -> dict[str, Mesh]:
    """The meshes that can be read; a broken training object is no reason to stop."""
    meshes = {}
    for name, path in chosen.items():
        try:
            meshes[name] = EvalObject.read(name, path).mesh
        except MeshError as error:
            tell(f"left out of the training objects: {error}")
    return meshes


def _example(name: str, mesh: Mesh, protocol: EvalProtocol) -> Example:
    azimuth, elevation = protocol.viewpoint(name)
    return Example(protocol.look(mesh, azimuth, elevation), occupancy(true_mesh(mesh, azimuth), protocol.shape.grid))


def _cached_constants(path: Path, key: str) -> Constants | None:
    """What an earlier run fitted under the same key; None when there is none that can be used."""
    try:
        record = json.loads(path.read_text("utf-8"))
        return Constants.from_json(record["constants"]) if record["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, SettingsError):
        return None


# One object.


@dataclass(eq=False)
class Scored:
    """One object's row, and the pictures that the contact sheet shows."""

    row: dict[str, Any]
    picture: Bytes
    truth_views: Tensor
    our_views: Tensor | None
    failures: list[dict[str, str]]


def score_object(
    item: EvalObject, lifter: Lifter | None, trivial: Trivial, out: Path, protocol: EvalProtocol
) -> Scored:
    """Draw the input, ask for every answer, compare each with the truth; writes the input and the meshes.

    An answer that fails in any way counts as nothing at all: IoU 0, no hits, white pictures.

    Raises:
        MeshError: the truth itself cannot be compared (no area).
        OutputError: a file cannot be written.
    """
    azimuth, elevation = protocol.viewpoint(item.id)
    picture = protocol.look(item.mesh, azimuth, elevation)
    _write_picture(picture, out / "inputs" / f"{item.id}.png")
    truth = TrueShape.of(true_mesh(item.mesh, azimuth), seed_of(item.id), protocol.shape)
    _save_mesh(truth.mesh, out, "truth", item.id)
    row = {
        "id": item.id, "file": str(item.path), "azimuth_deg": round(azimuth, 4), "elevation_deg": round(elevation, 4),
        "watertight": is_watertight(item.mesh), "faces": len(item.mesh.faces),
    }  # fmt: skip
    scored = Scored(row, picture, protocol.novel_views(truth.mesh), None, [])
    for name in ([OURS] if lifter is not None else []) + list(trivial.names):
        ask = partial(_ask_model, lifter) if name == OURS and lifter else partial(_ask_trivial, trivial, name)
        mesh = _add_answer(scored, name, ask, truth, protocol)
        if mesh is not None:
            _save_mesh(mesh, out, name, item.id)
    return scored


Answer = tuple[Mesh, dict[str, float]]  # the mesh, and what else is to be written into its row


def _ask_model(lifter: Lifter, picture: Bytes) -> Answer:
    began = time.perf_counter()
    lifted = lifter(picture)
    seconds = time.perf_counter() - began
    return lifted.mesh, {"input_psnr": input_psnr(lifted), "seconds": round(seconds, 3)}


def _ask_trivial(trivial: Trivial, name: str, picture: Bytes) -> Answer:
    return trivial.answer(name, picture), {}


def _add_answer(
    scored: Scored, name: str, ask: Callable[[Bytes], Answer], truth: TrueShape, protocol: EvalProtocol
) -> Mesh | None:
    """Ask for one answer and put its scores into the row; gives its mesh, None when it failed."""
    mesh: Mesh | None = None
    try:
        mesh, extra = ask(scored.picture)
        scores, views = _score_answer(mesh, truth, scored.truth_views, protocol)
    except Exception as error:  # whatever a model stumbles over, the other objects are still to be scored
        mesh = None
        scored.failures.append({"id": scored.row["id"], "answer": name, "error": f"{type(error).__name__}: {error}"})
        scores, views = _score_failure(scored.truth_views, protocol)
        extra = {"input_psnr": _white_psnr(scored.picture), "seconds": 0.0} if name == OURS else {}
    scored.row[name] = scores | extra
    if name == OURS:
        scored.our_views = views
    return mesh


def _score_answer(
    mesh: Mesh, truth: TrueShape, truth_views: Tensor, protocol: EvalProtocol
) -> tuple[dict[str, float], Tensor]:
    """All metrics of one answer, and its novel views."""
    scores = score_shape(mesh, truth)
    views = protocol.novel_views(placed(mesh))
    return scores | _picture_scores(views, truth_views), views


def _score_failure(truth_views: Tensor, protocol: EvalProtocol) -> tuple[dict[str, float], Tensor]:
    views = torch.ones_like(truth_views)
    return score_nothing(protocol.shape) | _picture_scores(views, truth_views), views


def _picture_scores(views: Tensor, truth_views: Tensor) -> dict[str, float]:
    return {"psnr": float(psnr(views, truth_views).mean()), "ssim": float(ssim(views, truth_views).mean())}


def input_psnr(lifted: Lifted) -> float:
    """PSNR in dB of the volume-rendered input view against the cut-out, both over white, 128 px."""
    size = _INPUT_VIEW_SIZE
    rgba = lifted.cutout.to_tensor(size)
    with torch.no_grad():
        seen = render(lifted.field, lifted.camera, size, size).images.float().cpu()
    return float(psnr(seen.clamp(0, 1), (rgba[:3] * rgba[3:] + 1 - rgba[3:])[None]))


def _white_psnr(picture: Bytes) -> float:
    rgba = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)
    over_white = (rgba[:3] * rgba[3:] + 1 - rgba[3:])[None]
    return float(psnr(torch.ones_like(over_white), over_white))


def is_watertight(mesh: Mesh) -> bool:
    """Whether every edge has exactly two faces once vertices in one place are joined (winding is not asked for)."""
    _, place = np.unique(mesh.vertices, axis=0, return_inverse=True)
    faces = place.reshape(-1)[mesh.faces]
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1)
    _, counts = np.unique(edges, axis=0, return_counts=True)
    return bool((counts == 2).all())


def _save_mesh(mesh: Mesh, out: Path, answer: str, object_id: str) -> None:
    write_mesh(mesh, out / "meshes" / answer / f"{object_id}.glb")


def _write_picture(picture: Bytes, path: Path) -> None:
    from PIL import Image

    with written_whole(path) as aside:
        Image.fromarray(np.ascontiguousarray(picture)).save(aside, "PNG")


# All objects.


def evaluate(
    lifter: Lifter | None,
    data: str | Path,
    out: str | Path,
    *,
    train: str | Path | None = None,
    answers: Sequence[str] = (OURS, *TRIVIAL_ANSWERS),
    limit: int | None = None,
    protocol: EvalProtocol | None = None,
    model: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Score a model and trivial answers on every mesh below a folder, and write OUT.

    Args:
        lifter: the model, picture (S, S, 4) uint8 → something like `trilift.Asset`; None scores trivial answers alone.
        data: folder of true meshes.
        out: ``metrics.json``, ``constants.json``, ``sheet.png`` (and ``sheet-2.png`` ...), ``inputs/<id>.png``,
            ``meshes/<answer>/<id>.glb``; the truth is one of the answers there.
        train: folder of training objects for the trivial answers; None takes DATA/../train if that is another folder.
        answers: ``ours`` and names of `TRIVIAL_ANSWERS`.
        limit: at most so many objects, evenly spaced.
        protocol: what is drawn and compared.
        model: what to write down about the model, JSON values.
        tell: called with a line about the progress now and then.

    Returns:
        What metrics.json holds.

    Raises:
        SettingsError: wrong answers or limit, no meshes, or libigl is missing.
        MeshError: none of the true meshes can be used.
        OutputError: a file cannot be written.
    """
    data, out, protocol = Path(data), Path(out), protocol or EvalProtocol()
    _check_settings(answers, limit)
    began = time.perf_counter()
    objects = spread(find_objects(data), limit)
    names = [name for name in TRIVIAL_ANSWERS if name in answers]
    tell = tell or (lambda line: None)
    trivial = prepare_trivial(names, _train_folder(train, data), out, objects, protocol, tell)
    fitted = time.perf_counter()
    scored, skipped = _score_all(objects, lifter if OURS in answers else None, trivial, out, protocol, tell)
    if not scored:
        raise MeshError(f"{data}: none of {len(objects)} true meshes can be used, first: {skipped[0]['error']}")
    sheets = write_sheets(scored, out) if OURS in answers and lifter is not None else []
    record = {
        "format": FORMAT, "data": str(data), "model": dict(model or {}), "protocol": asdict(protocol) | _WORDS,
        **summarize([s.row for s in scored]),
        "left_out": dict(trivial.left_out),
        "constants": _told_constants(trivial),
        "failures": [failure for s in scored for failure in s.failures], "skipped": skipped,
        "sheets": sheets, "versions": versions(),
        "seconds": {
            "fit": round(fitted - began, 1), "objects": round(time.perf_counter() - fitted, 1),
            "total": round(time.perf_counter() - began, 1),
        },
        "objects": [s.row for s in scored],
    }  # fmt: skip
    write_json_whole(out / METRICS_FILE, record)
    written: dict[str, Any] = json.loads((out / METRICS_FILE).read_text("utf-8"))
    return written


def _score_all(
    objects: Mapping[str, Path],
    lifter: Lifter | None,
    trivial: Trivial,
    out: Path,
    protocol: EvalProtocol,
    tell: Callable[[str], None],
) -> tuple[list[Scored], list[dict[str, str]]]:
    """`score_object` for each; and the truths that cannot be used, with the reason."""
    scored, skipped = [], []
    for index, (object_id, path) in enumerate(objects.items(), 1):
        try:
            scored.append(score_object(EvalObject.read(object_id, path), lifter, trivial, out, protocol))
        except MeshError as error:
            skipped.append({"id": object_id, "error": str(error)})
        else:
            tell(f"[{index}/{len(objects)}] {_told(scored[-1].row)}")
    return scored, skipped


def _told(row: Mapping[str, Any]) -> str:
    """One line about one object."""
    name = next((name for name in (OURS, *TRIVIAL_ANSWERS) if name in row), None)
    return f"{row['id']}: IoU {row[name]['iou']:.3f} ({name})" if name else f"{row['id']}: no answers"


_WORDS = {
    "pictures": "unlit vertex colours over nothing (input, RGBA) or white (novel views); supersampled rasteriser",
    "placed": "both meshes centred on the bounding box, longest side 2; truth turned by minus the azimuth",
    "aligned": "best of yaws x pitches by two-sided mean distance, then rigid ICP with pairs both ways; no scale",
    "chamfer": "un-squared, mean of both directions; a missing mesh counts as 2",
    "interval": "95 %, percentile bootstrap over objects, 10,000 resamples, seed 0",
    "seed": "crc32 of the object's id",
}


def _check_settings(answers: Sequence[str], limit: int | None) -> None:
    known = (OURS, *TRIVIAL_ANSWERS)
    wrong = [name for name in answers if name not in known]
    if wrong or not answers:
        raise SettingsError(f"answers={','.join(answers)}: expected some of {', '.join(known)}.")
    if limit is not None and limit < 1:
        raise SettingsError(f"limit={limit}: expected at least 1 object.")
    if importlib.util.find_spec("igl") is None:
        raise SettingsError("trilift eval wants libigl, which is not installed. Try: pip install 'trilift[train]'.")


def _train_folder(train: str | Path | None, data: Path) -> Path | None:
    """The folder given, else the sibling of DATA called train, if that is there and another one."""
    if train is not None:
        return Path(train)
    sibling = data.resolve().parent / "train"
    return sibling if sibling.is_dir() and sibling != data.resolve() else None


def _told_constants(trivial: Trivial) -> dict[str, Any]:
    """The fitted constants without the mean shape's volume, which constants.json has."""
    if trivial.constants is None:
        return {}
    return {key: value for key, value in trivial.constants.as_json().items() if key != "mean_shape"}


def versions() -> dict[str, str | None]:
    """Versions of what decides the numbers; None when a package is not installed."""
    from trilift import __version__

    found: dict[str, str | None] = {"trilift": __version__, "python": sys.version.split()[0]}
    for package in _VERSIONS:
        try:
            found[package.lower()] = version(package)
        except PackageNotFoundError:
            found[package.lower()] = None
    return found


# What the rows say together.


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means and intervals by answer, over all objects and over watertight ones, and our lead over trivial answers.

    Args:
        rows: at least one; the same answers in each.
    """
    closed = [row for row in rows if row["watertight"]]
    names = [name for name in (OURS, *TRIVIAL_ANSWERS) if name in rows[0]]
    return {
        "count": len(rows),
        "mean": {name: _means(rows, name) for name in names},
        "interval_95": {name: _intervals(rows, name) for name in names},
        "count_watertight": len(closed),
        "mean_watertight": {name: _means(closed, name) for name in names} if closed else {},
        "interval_95_watertight": {name: _intervals(closed, name) for name in names} if closed else {},
        "lead": {key: lead for key in ("iou", "fscore_0.1") if (lead := _lead(rows, names, key))},
    }


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """(N, K) numbers of one answer, keys in the order of the first row."""
    return np.array([[row[name][key] for key in rows[0][name]] for row in rows], np.float64)


def _means(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    return dict(zip(rows[0][name], _values(rows, name).mean(0).tolist(), strict=True))


def _intervals(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[float]]:
    return dict(zip(rows[0][name], bootstrap_intervals(_values(rows, name)).tolist(), strict=True))


def _lead(rows: Sequence[Mapping[str, Any]], names: Sequence[str], key: str) -> dict[str, Any] | None:
    """By how much ours is above the best trivial answer, object by object."""
    trivial = [name for name in names if name != OURS]
    if OURS not in names or not trivial or key not in rows[0][OURS]:
        return None
    best = max(trivial, key=lambda name: _means(rows, name)[key])
    difference = np.array([[row[OURS][key] - row[best][key]] for row in rows])
    interval = bootstrap_intervals(difference)[0].tolist()
    return {"over": best, "by": float(difference.mean()), "interval_95": interval}


def table(record: Mapping[str, Any]) -> str:
    """The means of metrics.json as a short table for people."""
    keys = [key for key in ("iou", "fscore_0.1", "fscore_0.2", "fscore_0.5", "chamfer", "iou_aligned",
                            "fscore_0.1_aligned", "psnr", "ssim", "input_psnr", "seconds")
            if any(key in means for means in record["mean"].values())]  # fmt: skip
    lines = [["", *keys]]
    for name, means in record["mean"].items():
        low, high = record["interval_95"][name]["iou"]
        cells = [f"{means[key]:.3f}" if key in means else "-" for key in keys]
        lines.append([name, f"{cells[0]} [{low:.3f}, {high:.3f}]", *cells[1:]])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    for key, lead in record["lead"].items():
        low, high = lead["interval_95"]
        rows.append(f"{key}: ours is {lead['by']:+.3f} [{low:+.3f}, {high:+.3f}] from {lead['over']}")
    return "\n".join(rows)


# Contact sheets.

_THUMB, _CAPTION, _COLUMNS, _ROWS = 96, 14, 3, 12
_SHEET_VIEWS = (0, 2)  # of the novel views: front right and back left


def write_sheets(scored: Sequence[Scored], out: Path) -> list[str]:
    """Draw input, ours and truth (two novel views each) of every object, the best IoU first; gives the file names."""
    ordered = sorted(scored, key=lambda s: -s.row[OURS]["iou"])
    per_page, names = _COLUMNS * _ROWS, []
    for stale in out.glob("sheet-*.png"):  # of an earlier, longer run
        stale.unlink()
    for start in range(0, len(ordered), per_page):
        page = start // per_page + 1
        name = SHEET_FILE if page == 1 else SHEET_FILE.replace(".", f"-{page}.")
        _write_picture(_sheet(ordered[start : start + per_page]), out / name)
        names.append(name)
    return names


def _sheet(scored: Sequence[Scored]) -> Bytes:
    """One page: cells of input | ours, ours | truth, truth with a caption, filled row by row."""
    from PIL import Image, ImageDraw

    width, height = 5 * _THUMB + 8, _THUMB + _CAPTION
    rows = math.ceil(len(scored) / _COLUMNS)
    page = Image.new("RGB", (min(len(scored), _COLUMNS) * width, rows * height), "white")
    draw = ImageDraw.Draw(page)
    for index, one in enumerate(scored):
        x, y = index % _COLUMNS * width, index // _COLUMNS * height
        caption = f"{one.row[OURS]['iou']:.3f}  {one.row['id']}"
        draw.text((x + 2, y + 1), caption.encode("ascii", "replace").decode(), fill="black")
        for column, picture in enumerate(_thumbs(one)):
            page.paste(picture, (x + column * _THUMB + (column + 1) // 2 * 3, y + _CAPTION))
    return np.asarray(page)


def _thumbs(one: Scored) -> list[Any]:
    """Five small Pillow pictures: the input over grey, then two views of ours and two of the truth."""
    from PIL import Image

    rgba = Image.fromarray(one.picture)
    grey = Image.new("RGBA", rgba.size, (225, 225, 225, 255))
    pictures = [Image.alpha_composite(grey, rgba).convert("RGB")]
    for views in (one.truth_views if one.our_views is None else one.our_views, one.truth_views):
        for view in _SHEET_VIEWS:
            pixels = bytes_from_unit(views[view % len(views)].permute(1, 2, 0).numpy())
            pictures.append(Image.fromarray(np.ascontiguousarray(pixels)))
    return [picture.resize((_THUMB, _THUMB), Image.Resampling.BOX) for picture in pictures]


# The command.


def build_parser(prog: str = "trilift eval") -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Score a model against true meshes, with trivial answers beside it. OUT gets metrics.json, meshes, "
        "input pictures and contact sheets. docs/evaluation.md has the protocol.",
    )
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="folder of true meshes, searched with its sub-folders")
    add("-o", "--out", type=Path, required=True, metavar="OUT", help="output folder")
    add("--model", default="tiny", help="a name of trilift models, or a folder (default %(default)s)")
    add("--train", type=Path, metavar="DIR", help="objects to fit the trivial answers on (default: DATA/../train)")
    add(
        "--answers", type=lambda text: tuple(part.strip() for part in text.split(",") if part.strip()),
        default=(OURS, *TRIVIAL_ANSWERS), metavar="A,B", help=f"of {','.join((OURS, *TRIVIAL_ANSWERS))} (default: all)",
    )  # fmt: skip
    add("--limit", type=int, metavar="N", help="only N objects, evenly spaced")
    default = EvalProtocol().mesh_resolution
    add("--resolution", type=int, default=default, metavar="N", help="samples per axis (default %(default)s)")
    add("--light", action="store_true", help="light the input pictures softly; without it they show plain colours")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default %(default)s)")
    add("--dtype", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="of the network")
    add("--quiet", action="store_true", help="only the table, on stdout")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "trilift eval") -> int:
    """Run the command; 0: every answer was scored, 1: some failed or were skipped, each named on stderr.

    Raises:
        TriliftError: as `evaluate`, or the model cannot be loaded.
    """
    args = build_parser(prog).parse_args(argv)
    _check_settings(args.answers, args.limit)
    protocol = replace(EvalProtocol(), light="soft" if args.light else "none", mesh_resolution=args.resolution)
    lifter, model = _load(args, protocol) if OURS in args.answers else (None, {})

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    record = evaluate(
        lifter, args.data, args.out, train=args.train, answers=args.answers, limit=args.limit, protocol=protocol,
        model=model, tell=None if args.quiet else tell,
    )  # fmt: skip
    print(table(record))
    for name, reason in record["left_out"].items():
        print(f"{name}: left out: {reason}", file=sys.stderr)
    problems = [*record["failures"], *record["skipped"]]
    for problem in problems:
        print(f"{problem['id']}: {problem.get('answer', 'truth')}: {problem['error']}", file=sys.stderr)
    return 1 if problems else 0


def _load(args: argparse.Namespace, protocol: EvalProtocol) -> tuple[Lifter, dict[str, Any]]:
    """The model as a function from pictures, and what to write down about it."""
    from trilift.pipeline import ImageTo3D

    pipe = ImageTo3D.from_pretrained(args.model, device=args.device, dtype=args.dtype)

    def lift(picture: Bytes) -> Lifted:
        return pipe(picture, resolution=protocol.mesh_resolution)

    return lift, asdict(pipe.weights) | {"device": str(pipe.device), "dtype": pipe.dtype}


if __name__ == "__main__":
    try:
        sys.exit(main(prog="python -m train.evaluate"))
    except TriliftError as problem:
        print(f"trilift eval: {problem}", file=sys.stderr)
        sys.exit(2 if isinstance(problem, SettingsError) else 1)
