"""Folders of scanned objects as they are downloaded: which file is the object, what its id is, and which way is up.

* Google Scanned Objects, a folder or a zip for each object: ``NAME/meshes/model.obj``, its picture in
  ``NAME/materials/textures/texture.png``. z up, metres. The id is NAME.
* OmniObject3D, unpacked: ``raw_scans/CATEGORY/NAME/Scan/Scan.obj`` with ``Scan.mtl`` and ``Scan.jpg``. y up, as OBJ
  is: its own rendering script brings the files into Blender with that importer's defaults. The id is NAME, such as
  ``anise_001``.
* Every other mesh file: y up, as `lrm.meshfile.read_mesh` takes it; the id is its path without suffix.
"""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lrm.mesh import Mesh
from multiview.errors import MeshError, SettingsError

from .frames import Frame
from .objects import find_meshes
from .texturedmesh import read_textured

_LARGEST_ZIP = 2**31  # bytes of one object when unpacked
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")


@dataclass(frozen=True)
class Dataset:
    """A layout that is recognised.

    Attributes:
        name: for reports.
        mesh: the last parts of the path of an object's mesh; the part before them is its id.
        up: the axis of the file that is up.
    """

    name: str
    mesh: tuple[str, ...]
    up: str

    def holds(self, path: Path | PurePosixPath) -> bool:
        """Whether a path ends as this dataset's meshes do."""
        return tuple(path.parts[-len(self.mesh) :]) == self.mesh


GOOGLE_SCANNED = Dataset("google-scanned-objects", ("meshes", "model.obj"), "z")
OMNI_OBJECT = Dataset("omniobject3d", ("Scan", "Scan.obj"), "y")
DATASETS = (GOOGLE_SCANNED, OMNI_OBJECT)
PLAIN = "meshes"


def dataset_of(path: Path) -> Dataset | None:
    """The dataset that a mesh file, or a zip with one in it, comes from; None for any other mesh file."""
    if path.suffix.lower() == ".zip":
        return GOOGLE_SCANNED
    return next((dataset for dataset in DATASETS if dataset.holds(path)), None)


def find_objects(folder: Path) -> dict[str, Path]:
    """All objects below ``folder`` by id, sorted; where one is there as a folder and as a zip, the folder counts.

    Two files of one id are told apart by their paths: plain meshes by the suffix, scans by the folders above.

    Raises:
        SettingsError: no such folder, or no objects in it.
    """
    meshes = find_meshes(folder) if folder.is_dir() else []
    zips = [path for path in sorted(folder.rglob("*.zip")) if _member(path)] if folder.is_dir() else []
    unpacked = {_name(path, folder) for path in meshes}
    paths = [*meshes, *(path for path in zips if _name(path, folder) not in unpacked)]
    if not paths:
        raise SettingsError(_nothing_in(folder))
    names = [_name(path, folder) for path in paths]
    named = {
        name if names.count(name) == 1 else _longer(path, folder): path for name, path in zip(names, paths, strict=True)
    }
    return {name: named[name] for name in sorted(named)}


def _name(path: Path, folder: Path) -> str:
    """The id of an object if no other has the same."""
    dataset = dataset_of(path)
    if dataset is None:
        return path.relative_to(folder).with_suffix("").as_posix()
    if path.suffix.lower() == ".zip":
        return path.stem
    return path.absolute().parts[-len(dataset.mesh) - 1]


def _longer(path: Path, folder: Path) -> str:
    """The id of an object whose `_name` another has, too."""
    dataset = dataset_of(path)
    relative = path.relative_to(folder)
    if dataset is None or path.suffix.lower() == ".zip":
        return relative.as_posix()
    return PurePosixPath(*relative.parts[: -len(dataset.mesh)]).as_posix()


def _nothing_in(folder: Path) -> str:
    expected = f"{folder}: expected a folder of mesh files (.glb, .obj, .ply ...), found none in it."
    packed = (
        [p.name for p in sorted(folder.rglob("*")) if p.name.lower().endswith(_ARCHIVES)][:3] if folder.is_dir() else []
    )
    return f"{expected} Unpack the archives first, such as {', '.join(packed)}." if packed else expected


def told_datasets(paths: Sequence[Path]) -> dict[str, int]:
    """How many objects come from which dataset."""
    names = [dataset.name if (dataset := dataset_of(path)) else PLAIN for path in paths]
    return {name: names.count(name) for name in sorted(set(names))}


def read_object(path: Path, texture_size: int, up: str | None = None) -> Mesh:
    """Read a true object with its pictures, upright in the world frame, in the file's units.

    Args:
        path: a mesh file, or a zip of Google Scanned Objects as it comes.
        texture_size: texels per side at most.
        up: the axis that is up in the file (``y``, ``z``, ``-z`` ...); None for the dataset's own.

    Raises:
        SettingsError: ``up`` is no axis.
        MeshError: as `train.texturedmesh.read_textured`; the message names the file.
    """
    dataset = dataset_of(path)
    axis = up or (dataset.up if dataset else "y")
    frame = Frame.upright(axis)
    mesh = _read_zip(path, texture_size) if path.suffix.lower() == ".zip" else read_textured(path, texture_size)
    return mesh if axis in ("y", "+y") else frame.stand(mesh)


def _member(path: Path) -> str | None:
    """The name of the mesh in a zip of Google Scanned Objects; None for any other zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return None
    return next((name for name in names if GOOGLE_SCANNED.holds(PurePosixPath(name))), None)


def _read_zip(path: Path, texture_size: int) -> Mesh:
    """The mesh in a zip, unpacked for as long as it is read."""
    member = _member(path)
    if member is None:
        raise MeshError(f"{path}: expected a zip with meshes/model.obj in it, found none. Download it again.")
    top = PurePosixPath(member).parent.parent
    with tempfile.TemporaryDirectory(prefix="trilift-") as aside:
        try:
            _unpack(path, top, Path(aside))
            return read_textured(Path(aside) / "meshes" / "model.obj", texture_size)
        # A broken archive shows itself in many ways: a bad checksum, a cut-off stream, a method that is not known.
        except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
            raise MeshError(f"{path}: cannot be unpacked ({error}). Download it again.") from error
        except MeshError as error:
            raise MeshError(f"{path}: {str(error).replace(aside, path.name)}") from error


def _unpack(path: Path, top: PurePosixPath, folder: Path) -> None:
    """Write the mesh, its materials and pictures to ``folder``; nothing else in the archive is touched."""
    with zipfile.ZipFile(path) as archive:
        wanted = {}
        for info in archive.infolist():
            parts = PurePosixPath(info.filename).parts
            inner = parts[len(top.parts) :] if parts[: len(top.parts)] == top.parts else ()
            if not info.is_dir() and ".." not in parts and inner[:1] in (("meshes",), ("materials",)):
                wanted[info] = folder.joinpath(*inner)
        size = sum(info.file_size for info in wanted)
        if size > _LARGEST_ZIP:
            raise MeshError(f"it declares {size} bytes of mesh and pictures; more than {_LARGEST_ZIP} is not unpacked.")
        for info, place in wanted.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(archive.read(info))
