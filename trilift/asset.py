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
from lrm.mesh import Mesh
from lrm.meshfile import FORMATS, file_matrix, write_mesh
from multiview.cameras import Cameras, orbit_angles
from multiview.errors import OutputError, SettingsError
from multiview.files import write_json_whole, written_whole
from multiview.views import Views

from .foreground import Cutout
from .turntable import sheet, turntable, video_writer, view_bytes, write_gif, write_video

RECORD_FILE = "asset.json"
RECORD_FORMAT = 1
# All names that a save may write, and so may replace or remove; anything else in the folder is left alone.
OWNED = (
    *(f"mesh.{name}" for name in FORMATS),
    "input.png",
    "views.png",
    "turntable.gif",
    "turntable.mp4",
    RECORD_FILE,
)
_TURNTABLE_FRAMES, _TURNTABLE_SIZE, _TURNTABLE_FPS = 36, 320, 18.0
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

    def save(
        self,
        folder: str | Path,
        *,
        formats: Sequence[str] = ("glb",),
        turntable: bool = False,
        height: float | None = None,
        scale: float | None = None,
    ) -> list[Path]:
        """Write the asset's folder: all of it, or nothing.

        ``mesh.<format>`` for each format, ``input.png`` (the cut-out, RGBA), ``views.png`` when there are views,
        ``turntable.gif`` when asked for (and ``turntable.mp4`` where the video extra is installed), and ``asset.json``.
        Everything is written into a temporary folder beside the target first. In a folder that exists already, files of
        an earlier save are replaced or removed and all others are left alone; ``asset.json`` goes first and comes
        last, so a folder that has one is finished.

        Args:
            folder: made when missing.
            formats: names of `lrm.meshfile.FORMATS`.
            turntable: whether to draw the mesh from all around.
            height: of the object in metres; without it and ``scale`` the longest side is 1.
            scale: metres per world unit.

        Returns:
            The files written, ``asset.json`` last.

        Raises:
            SettingsError: an unknown format, ``height`` and ``scale`` together or not positive, or a format whose
                extra is not installed.
            OutputError: something could not be written; an earlier result in the folder is kept.
        """
        folder = Path(folder)
        unknown = [name for name in formats if name not in FORMATS]
        if unknown or not formats:
            raise SettingsError(f"formats={','.join(formats)}: expected one or more of {', '.join(FORMATS)}.")
        matrix = file_matrix(self.mesh, height=height, scale=scale)
        with staged(folder, OWNED) as stage:
            self._write_files(stage, formats, turntable, matrix)
            files = sorted(stage.iterdir(), key=lambda file: OWNED.index(file.name))
            write_json_whole(stage / RECORD_FILE, self._full_record(matrix, files))
            names = [file.name for file in files] + [RECORD_FILE]
        return [folder / name for name in names]

    def _write_files(
        self, stage: Path, formats: Sequence[str], with_turntable: bool, matrix: NDArray[np.float64]
    ) -> None:
        """All files but the record."""
        generator = f"trilift {self.record.get('trilift', '')}".strip()
        for name in dict.fromkeys(formats):
            extras = {"name": self.name, "model": _plain(_model_name(self.record))}
            write_mesh(self.mesh, stage / f"mesh.{name}", matrix=matrix, generator=generator, extras=extras)
        write_png(self.cutout.image, stage / "input.png")
        if self.views is not None:
            write_png(view_sheet(self.views), stage / "views.png")
        if with_turntable:
            frames = turntable(self.mesh, frames=_TURNTABLE_FRAMES, size=_TURNTABLE_SIZE)
            write_gif(frames, stage / "turntable.gif", _TURNTABLE_FPS)
            if video_writer() is not None:
                write_video(frames, stage / "turntable.mp4", _TURNTABLE_FPS)

    def _full_record(self, matrix: NDArray[np.float64], files: Sequence[Path]) -> dict[str, Any]:
        """What asset.json holds: the record, then what the asset itself says; ``seconds`` at the end."""
        record: dict[str, Any] = {"format": RECORD_FORMAT, "name": self.name}
        record |= {key: value for key, value in self.record.items() if key != "seconds"}
        record |= {
            "cutout": cutout_record(self.cutout),
            "camera": _camera_record(self.camera),
            "mesh": _mesh_record(self.mesh),
            "export": _export_record(matrix),
            "files": [file_record(file) for file in files],
            "seconds": self.record.get("seconds", {}),
        }
        return plain_json(record)


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


def _export_record(matrix: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "file_from_world": matrix,
        "unit": "metre",
        "up_axis": "+y",
        "front_axis": "+z",
        "color_space": "COLOR_0 of GLB and displayColor of USDZ are linear light; colours of PLY and OBJ are sRGB",
    }


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
