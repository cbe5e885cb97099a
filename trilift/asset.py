"""The result for one photo, and the folder it is saved in."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lrm.field import Field
from lrm.fileframe import Y_UP, FileFrame, frame_of
from lrm.mesh import Mesh
from lrm.meshfile import FORMATS, file_matrix, write_mesh
from multiview.cameras import Cameras, orbit_angles
from multiview.errors import OutputError
from multiview.files import write_json_whole, written_whole
from multiview.views import Views

from .foreground import Cutout
from .profiles import Profile
from .provenance import passport
from .settings import MAX_LODS, MAX_TURNTABLE_FRAMES, SaveSettings
from .texture import CONFIDENCE, confidence_sheet
from .turntable import four_sides, sheet, turntable, turntable_file_names, video_writer, view_bytes, write_turntable

RECORD_FILE = "asset.json"
RECORD_FORMAT = 1
SPLATS_FILE = "splats.ply"
_STEMS = ("mesh", *(f"mesh_lod{level}" for level in range(1, MAX_LODS + 1)))
# All names that a save may write, and so may replace or remove; anything else in the folder is left alone.
OWNED = (
    *(f"{stem}.{name}" for stem in _STEMS for name in FORMATS),
    *(f"{stem}{end}" for stem in _STEMS for end in (".bin", ".mtl", "_color.png", "_normal.png")),
    SPLATS_FILE,
    "input.png",
    "views.png",
    "seen.png",
    "sheet.png",
    "turntable.gif",
    "turntable.mp4",
    "turntable.webp",
    *turntable_file_names(MAX_TURNTABLE_FRAMES),
    RECORD_FILE,
)
_SHEET_SIZE = 512
_LEAST_TEXTURE = 64  # texels per side of the smallest level of detail
_VIEW_COLUMNS = 4


@dataclass(frozen=True, eq=False)
class Asset:
    """One photo's object and how it was made.

    Attributes:
        name: the photo's name without folder and suffix; not used for paths here.
        cutout: what was cut out of the photo; the network saw its ``image``.
        views: generated views, or None when the model took the cut-out alone.
        field: the radiance field, world frame.
        mesh: its surface, world frame.
        camera: one camera, that of the conditioning image, in the world frame at azimuth 0.
        normal_map: (H, W, 3) uint8 in tangent space for the mesh's UVs (`lrm.normalmap`), or None.
        record: how it was made, JSON values; what the clock says belongs under ``seconds`` and nowhere else, so that
            equal runs differ there alone.
    """

    name: str
    cutout: Cutout
    views: Views | None
    field: Field
    mesh: Mesh
    camera: Cameras
    record: dict[str, Any]
    normal_map: NDArray[np.uint8] | None = None

    def save(self, folder: str | Path, settings: SaveSettings | None = None, **changes: Any) -> list[Path]:
        """Write the asset's folder: all of it, or nothing.

        ``mesh.<format>`` for each format (and what belongs to it: ``mesh.bin``, ``mesh.mtl``, ``mesh_color.png``,
        ``mesh_normal.png``), ``mesh_lod<k>.<format>`` for each level of detail, ``splats.ply``, ``input.png`` (the
        cut-out, RGBA), ``views.png`` when there are views, ``sheet.png`` and a turntable when asked for
        (``turntable.gif``, and ``turntable.mp4`` where the video extra is installed, unless its formats are named), and
        ``asset.json``. Everything is written into a temporary folder beside the target first. In a folder that exists
        already, files of an earlier save are replaced or removed and all others are left alone; ``asset.json`` goes
        first and comes last, so a folder that has one is finished. With a profile every mesh file is read back, and
        what was found is in ``export.checks`` of asset.json.

        Args:
            folder: made when missing.
            settings: which files, and how; ``LiftSettings.saving()`` gives those of a lift.
            changes: single settings of `SaveSettings` by name, such as ``formats=("glb", "ply")`` or ``height=0.3``.

        Returns:
            The files written, ``asset.json`` last.

        Raises:
            SettingsError: an unknown format, ``height`` and ``scale`` together or not positive, or a format whose
                extra is not installed.
            OutputError: something could not be written; an earlier result in the folder is kept.
        """
        folder, settings = Path(folder), (settings or SaveSettings()).replaced(**changes)
        profile = settings.for_program
        side = 1.0 if profile is None else profile.longest_side
        matrix = file_matrix(self.mesh, height=settings.height, scale=settings.scale, longest_side=side)
        with staged(folder, OWNED) as stage:
            export = self._write_meshes(stage, settings, matrix)
            self._write_pictures(stage, settings)
            files = sorted(stage.iterdir(), key=lambda file: OWNED.index(file.name))
            write_json_whole(stage / RECORD_FILE, self._full_record(export, files))
            names = [file.name for file in files] + [RECORD_FILE]
        return [folder / name for name in names]

    def _write_meshes(self, stage: Path, settings: SaveSettings, matrix: NDArray[np.float64]) -> dict[str, Any]:
        """The mesh in every format and level of detail, and the splats; the record of the export."""
        profile = settings.for_program
        export = _export_record(matrix, settings, profile)
        extras = self._extras(export)
        generator = f"trilift {self.record.get('trilift', '')}".strip()
        solid = profile is not None and profile.watertight
        levels = levels_of_detail(self.mesh, settings.lods, watertight=solid)
        checks: list[dict[str, Any]] = []
        for stem, mesh in zip(_STEMS, [self.mesh, *levels], strict=False):
            normal_map = self.normal_map if mesh is self.mesh else None
            for name in (name for name in settings.formats if name in FORMATS):
                frame = frame_of(name, _wanted_frame(profile))
                written = write_mesh(
                    mesh, stage / f"{stem}.{name}", matrix=matrix, frame=frame, generator=generator, extras=extras,
                    roughness=settings.roughness, normal_map=normal_map,
                )  # fmt: skip
                if profile is not None:
                    from .exportchecks import check_export

                    checks += check_export(written[-1], mesh, matrix, frame, profile, beside=written[:-1])
        if "splats" in settings.formats:
            from lrm.splats import splats_from_field, write_splats

            write_splats(splats_from_field(self.field, self.mesh, settings.splats), stage / SPLATS_FILE, matrix)
        return export if profile is None else {**export, "checks": checks}

    def _write_pictures(self, stage: Path, settings: SaveSettings) -> None:
        """What people look at."""
        write_png(self.cutout.image, stage / "input.png")
        if self.views is not None:
            write_png(view_sheet(self.views), stage / "views.png")
        if CONFIDENCE in (self.mesh.attributes or {}):
            write_png(confidence_sheet(self.mesh), stage / "seen.png")
        if settings.sheet:
            write_png(sheet(list(four_sides(self.mesh, size=_SHEET_SIZE)), 4), stage / "sheet.png")
        if settings.turntable:
            frames = turntable(
                self.field if settings.turntable_of == "field" else self.mesh,
                frames=settings.turntable_frames,
                size=settings.turntable_size,
                elevation_deg=settings.turntable_elevation,
                background=None if settings.turntable_transparent else 1.0,
            )
            usual = ("gif",) if video_writer() is None else ("gif", "mp4")
            write_turntable(frames, stage, settings.turntable_formats or usual)

    def _extras(self, export: Mapping[str, Any]) -> dict[str, Any]:
        """What a glTF file says of itself: its name, its model, and the passport."""
        about = {"cutout": cutout_record(self.cutout), "camera": _camera_record(self.camera), "export": export}
        named = {"name": self.name, "model": _model_name(self.record)}
        return plain_json({**named, "passport": passport(self.record, about)})

    def _full_record(self, export: Mapping[str, Any], files: Sequence[Path]) -> dict[str, Any]:
        """What asset.json holds: the record, then what the asset itself says; ``seconds`` at the end."""
        record: dict[str, Any] = {"format": RECORD_FORMAT, "name": self.name}
        record |= {key: value for key, value in self.record.items() if key != "seconds"}
        record |= {
            "cutout": cutout_record(self.cutout),
            "camera": _camera_record(self.camera),
            "mesh": _mesh_record(self.mesh),
            "export": export,
            "files": [file_record(file) for file in files],
            "seconds": self.record.get("seconds", {}),
        }
        return plain_json(record)


def levels_of_detail(mesh: Mesh, count: int, *, watertight: bool = False) -> list[Mesh]:
    """``count`` meshes, each with half the triangles of the one before, and half the texture's side if it has one (more
    where its faces would have no room).

    Colours are those of the nearest place on ``mesh``, its texture included, so that what was painted on stays.

    Args:
        mesh: level 0.
        count: 0 or more.
        watertight: whether each is made a solid, see `lrm.topology.repaired`.

    Raises:
        MeshError: nothing is left at so few triangles.
    """
    from lrm.topology import repaired

    from .shape import decimated, textured_like

    levels: list[Mesh] = []
    for number in range(1, count + 1):
        last = levels[-1] if levels else mesh
        level = decimated(last, max(len(last.faces) // 2, 4), colors_from=mesh)
        level = repaired(level)[0] if watertight else level
        if mesh.texture is not None:
            # Of surfaces that no charts are found for, every two faces need a cell of two texels a side.
            room = 2 * math.ceil(math.sqrt((len(level.faces) + 1) // 2))
            level = textured_like(level, mesh, max(mesh.texture.shape[0] >> number, _LEAST_TEXTURE, room))
        levels.append(level)
    return levels


def _wanted_frame(profile: Profile | None) -> FileFrame:
    """Axes and unit that a profile asks for, where the format leaves the choice."""
    return Y_UP if profile is None else FileFrame(profile.up, profile.unit)  # type: ignore[arg-type]


@contextmanager
def staged(folder: Path, owned: Sequence[str]) -> Iterator[Path]:
    """Give an empty folder beside ``folder`` to write into; then its files become what ``folder`` holds of ``owned``.

    Args:
        folder: made when missing; files in it that are not ``owned`` are left alone.
        owned: names of all files that may be written, replaced or removed; the record is the last one.

    Raises:
        OutputError: something could not be written; what ``folder`` held before is kept.
    """
    scratch: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: is a file, and a folder is to be written there. Choose another with -o.")
        scratch = Path(tempfile.mkdtemp(prefix=".aside-", dir=folder.parent))
        stage = scratch / "new"
        stage.mkdir()  # inside, since mkdtemp's own folder is closed to others
        yield stage
        if folder.exists():
            _exchange(stage, folder, scratch / "old", owned)
        else:
            stage.replace(folder)
    except (OSError, OutputError) as error:
        if isinstance(error, OutputError) and (scratch is None or str(scratch) not in str(error)):
            raise
        reason = _reason(error, scratch)
        raise OutputError(
            f"{folder}: could not be written ({reason}). "
            "Check free space and permission of the folder, or choose another with -o."
        ) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _reason(error: OSError | OutputError, scratch: Path | None) -> str:
    """What went wrong, without the name of a temporary file that nobody knows."""
    cause = error.__cause__ if isinstance(error, OutputError) and isinstance(error.__cause__, OSError) else error
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause).replace(f"{scratch}{os.sep}new{os.sep}", "")


def _exchange(stage: Path, folder: Path, old: Path, owned: Sequence[str]) -> None:
    """Put the files of ``stage`` into ``folder`` in place of an earlier save's, which come back if that fails."""
    old.mkdir()
    # The record leaves first and arrives last: while the folder is between two states, it has none.
    present = [name for name in reversed(owned) if (folder / name).is_file()]
    arriving = sorted((file.name for file in stage.iterdir()), key=owned.index)
    done: list[Callable[[], Any]] = []
    try:
        for name in present:
            (folder / name).replace(old / name)
            done.append(lambda name=name: (old / name).replace(folder / name))  # type: ignore[misc]
        for name in arriving:
            (stage / name).replace(folder / name)
            done.append(lambda name=name: (folder / name).unlink())  # type: ignore[misc]
    except BaseException:  # Ctrl-C too
        for undo in reversed(done):
            undo()
        raise


def view_sheet(views: Views) -> NDArray[np.uint8]:
    """Views side by side over white, `_VIEW_COLUMNS` in a row, as ``views.png`` shows them: (H, W, 3) uint8."""
    return sheet(list(view_bytes(views)), _VIEW_COLUMNS)


def write_png(image: NDArray[np.uint8], path: Path) -> None:
    """(H, W, 3 or 4) uint8 → PNG, the same bytes for the same pixels."""
    from PIL import Image

    with written_whole(path) as aside:
        Image.fromarray(np.ascontiguousarray(image)).save(aside, "PNG")


def _model_name(record: Mapping[str, Any]) -> str | None:
    """The model's name in a record, which may hold a table about it or the name alone."""
    model = record.get("model")
    return model.get("name") if isinstance(model, Mapping) else model


def cutout_record(cutout: Cutout) -> dict[str, Any]:
    """How an object was cut out of its photo."""
    return {
        "method": cutout.method,
        "foreground_ratio": cutout.foreground_ratio,
        "source_size_px": cutout.source_size,
        "box_px": cutout.box,
        "crop_px": cutout.crop,
        "checks": cutout.checks,
        "warnings": cutout.warnings,
    }


def _camera_record(camera: Cameras) -> dict[str, Any]:
    """The conditioning image's camera; angles are worked out again from its matrix."""
    azimuth, elevation, distance = (float(numbers[0]) for numbers in orbit_angles(camera.to("cpu")))
    return {
        "of": "input.png",
        "convention": "c2w with OpenGL axes (x right, y up, looks along -z), world z up; intrinsics in image fractions",
        "c2w": _rounded(camera.c2w[0]),
        "intrinsics": _rounded(camera.intrinsics[0]),
        "azimuth_deg": round(azimuth, 4),
        "elevation_deg": round(elevation, 4),
        "distance_world": round(distance, 6),
        "fov_y_deg": round(float(camera.fov_y_deg[0]), 4),
    }


def _rounded(matrix: Tensor) -> NDArray[np.float64]:
    """A matrix to 9 decimals, without the sign of zeros."""
    rounded: NDArray[np.float64] = np.round(matrix.double().cpu().numpy(), 9) + 0.0
    return rounded


def _mesh_record(mesh: Mesh) -> dict[str, Any]:
    return {
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
        "watertight": mesh.is_watertight,
        "volume_world": mesh.volume,
        "bounds_world": mesh.bounds,
    }


def _export_record(matrix: NDArray[np.float64], settings: SaveSettings, profile: Profile | None) -> dict[str, Any]:
    """Axes, unit and colour space; ``frames`` for the formats that have others, and the profile."""
    record: dict[str, Any] = {
        "file_from_world": matrix,
        "unit": "metre",
        "up_axis": "+y",
        "front_axis": "+z",
        "color_space": "COLOR_0 of GLB and displayColor of USDZ are linear light; colours of PLY and OBJ are sRGB",
    }
    frames = {name: frame_of(name, _wanted_frame(profile)) for name in settings.formats if name in FORMATS}
    other = {
        name: {"unit": frame.unit, "up_axis": frame.up, "front_axis": frame.front}
        for name, frame in frames.items()
        if frame != Y_UP
    }
    if other:
        record["frames"] = other
    if "splats" in settings.formats:
        from lrm.splats import CONVENTION

        record["splats"] = CONVENTION
    return record if profile is None else {**record, "profile": profile.name}


def file_record(path: Path) -> dict[str, Any]:
    """Name, size and sum of a file that was written."""
    data = path.read_bytes()
    return {"name": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def plain_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record in values that JSON has, see `_plain`."""
    plain: dict[str, Any] = _plain(record)
    return plain


def _plain(value: Any) -> Any:
    """JSON values only: arrays and tuples become lists, numpy numbers Python's, NaN and Inf null, the rest text."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
