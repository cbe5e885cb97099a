"""Other programs: the pictures that they are given, and their meshes, one for each object, as answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lrm.mesh import Mesh
from lrm.meshfile import READABLE
from multiview.errors import MeshError, SettingsError
from multiview.files import write_json_whole

from .datasets import find_objects
from .frames import Frame
from .objects import find_meshes
from .protocol import EvalObject, EvalProtocol, check_numbers, mapped, spread
from .sheets import write_picture
from .texturedmesh import only_used, read_textured

INPUTS_FILE = "inputs.json"
_TEXTURE_SIZE = 1024
_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Predictions:
    """The meshes of another program.

    Attributes:
        folder: where they are.
        files: by object id; objects without one are not there.
        frame: how they lie.
        missing: ids of the objects without one.
        unused: files that belong to no object, relative to the folder.
    """

    folder: Path
    files: Mapping[str, Path]
    frame: Frame
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    @classmethod
    def find(cls, folder: str | Path, ids: Iterable[str], frame: Frame) -> Predictions:
        """Find the mesh of each object: ``ID.glb`` (or another suffix), ``ID/mesh.glb``, or the only mesh in ``ID/``.

        An id with folders in it is also found under its last part alone, if no other id ends in that.

        Raises:
            SettingsError: no such folder, no meshes in it, two meshes for one id, or none that belongs to an object.
        """
        folder, ids = Path(folder), list(ids)
        paths = find_meshes(folder) if folder.is_dir() else []
        if not paths:
            raise SettingsError(
                f"{folder}: expected a folder of meshes, ID.glb or ID/mesh.glb for each object "
                f"({', '.join(READABLE)}), found none."
            )
        by_name = _by_name(paths, folder)
        files = {name: path for name in ids if (path := _file_of(name, ids, by_name, folder)) is not None}
        if not files:
            raise SettingsError(_no_match(folder, ids, paths))
        used = set(files.values())
        return cls(
            folder, files, frame,
            missing=tuple(name for name in ids if name not in files),
            unused=tuple(path.relative_to(folder).as_posix() for path in paths if path not in used),
        )  # fmt: skip

    def answer(self, object_id: str, elevation_deg: float) -> Mesh:
        """The mesh for an object, with its pictures, upright in the world frame.

        Args:
            elevation_deg: of the input's camera; frames that are pitched are stood upright by it.

        Raises:
            MeshError: there is none, or it cannot be read.
        """
        if object_id not in self.files:
            raise MeshError(
                f"{self.folder}: no mesh for {object_id}; expected {object_id}.glb or {object_id}/mesh.glb."
            )
        mesh = only_used(read_textured(self.files[object_id], _TEXTURE_SIZE))
        return self.frame.stand(mesh, elevation_deg)

    def told(self) -> dict[str, Any]:
        """What metrics.json says about them."""
        return {
            "folder": str(self.folder), "frame": self.frame.words, "found": len(self.files),
            "missing": list(self.missing), "unused": list(self.unused),
        }  # fmt: skip


def _by_name(paths: Sequence[Path], folder: Path) -> dict[str, list[Path]]:
    """Files by the id they could be for: their path without suffix, and the folder they are in."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        relative = path.relative_to(folder)
        found.setdefault(relative.with_suffix("").as_posix(), []).append(path)
    for parent in sorted({path.parent for path in paths} - {folder}):
        inside = [path for path in paths if path.parent == parent]
        named = [path for path in inside if path.stem.lower() == "mesh"]
        found.setdefault(parent.relative_to(folder).as_posix(), []).extend(
            named or (inside if len(inside) == 1 else [])
        )
    return {name: files for name, files in found.items() if files}


def _file_of(object_id: str, ids: Sequence[str], by_name: Mapping[str, list[Path]], folder: Path) -> Path | None:
    """The one file for an id; None where there is none."""
    last = object_id.rsplit("/", 1)[-1]
    alone = sum(other.rsplit("/", 1)[-1] == last for other in ids) == 1
    for name in (object_id, last) if alone else (object_id,):
        files = by_name.get(name, [])
        if len({path.with_suffix("") for path in files}) > 1:
            shown = ", ".join(path.relative_to(folder).as_posix() for path in files[:_SHOWN])
            raise SettingsError(f"{folder}: expected one mesh for {object_id}, found {len(files)}: {shown}. Keep one.")
        if files:  # one mesh in several formats: the first of them holds the most
            return min(files, key=lambda path: READABLE.index(path.suffix.lower()))
    return None


def _no_match(folder: Path, ids: Sequence[str], paths: Sequence[Path]) -> str:
    files = ", ".join(path.relative_to(folder).as_posix() for path in paths[:_SHOWN])
    return (
        f"{folder}: none of {len(paths)} meshes belongs to one of {len(ids)} objects. "
        f"Objects: {', '.join(ids[:_SHOWN])}; files: {files}. Name each file ID.glb, or ID/mesh.glb; "
        "--write-inputs writes input pictures with these names."
    )


# Inputs for other programs.


def write_inputs(
    data: str | Path,
    folder: str | Path,
    *,
    limit: int | None = None,
    protocol: EvalProtocol | None = None,
    up: str | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """Write the input pictures that another program should be given, and ``inputs.json`` about them.

    Args:
        data, limit, protocol, up, processes: as `evaluate` takes them; the pictures are those that it will score by.
        folder: gets ``ID.png`` for each object: RGBA, straight alpha.

    Returns:
        What inputs.json holds: ``inputs``, a row for each picture with id, file and the camera's elevation, for
        programs that ask for it, and ``skipped``, the true meshes that cannot be read.

    Raises:
        SettingsError: no objects, or a limit, axis or number of processes that is wrong.
        OutputError: a file cannot be written.
    """
    data, folder, protocol = Path(data), Path(folder), protocol or EvalProtocol()
    check_numbers(limit, processes, up)
    objects = spread(find_objects(data), limit)
    job = partial(_write_input, folder=folder, protocol=protocol, up=up)
    rows = list(mapped(job, objects.items(), min(processes, len(objects))))
    record = {
        "data": str(data), "protocol": protocol.name, "light": protocol.light,
        "inputs": [row for row in rows if "error" not in row], "skipped": [row for row in rows if "error" in row],
    }  # fmt: skip
    write_json_whole(folder / INPUTS_FILE, record)
    return record


def _write_input(named: tuple[str, Path], folder: Path, protocol: EvalProtocol, up: str | None) -> dict[str, Any]:
    name, path = named
    azimuth, elevation = protocol.viewpoint(name)
    try:
        picture = protocol.look(EvalObject.read(name, path, up=up).mesh, azimuth, elevation)
    except MeshError as error:
        return {"id": name, "error": str(error)}
    write_picture(picture, folder / f"{name}.png")
    return {"id": name, "file": f"{name}.png", "elevation_deg": round(elevation, 4)}
