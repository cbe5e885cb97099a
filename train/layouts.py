"""Readers of posed pictures in the layouts that people have, one folder an object.

===============  ==================================================  ==============================  ==============
layout           what makes its folder                               stored matrices                 object's size
===============  ==================================================  ==============================  ==============
``transforms``   ``transforms.json``: ours, NeRF's, nerfstudio's      c2w, OpenGL                     if ours
``cameras``      ``cameras.json`` (``multiview/camerafile.py``)       c2w, OpenGL                     not said
``openlrm``      ``rgba/000.png``, ``pose/000.npy``,                  c2w, OpenGL                     not said
                 ``intrinsics.npy``
``zero123``      ``000.png`` and ``000.npy`` (3, 4)                   w2c, Blender, 49.13 degrees     longest side 1
``syncdreamer``  ``000.png`` ... and ``meta.pkl``                     w2c, OpenCV                     longest side 1
===============  ==================================================  ==============================  ==============

Files that differ from their layout are read with `ReadFlags`; ``python -m train.check`` finds out which.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# One wording of the errors of NeRF's format for this reader and the ground floor's.
from multiview.camerafile import (
    CAMERAS_FILE,
    NERF_FILE,
    entries,
    named,
    nerf_camera,
    picture_path,
    read_json,
    read_views,
)
from multiview.cameras import Cameras, intrinsics_from_fov
from multiview.errors import CameraError, ImageError, TriliftError

from .posed import PosedObject, ReadFlags

PICTURES = (".png", ".webp", ".jpg", ".jpeg")
POINTS_FILE = "points.npz"
OPENLRM_INTRINSICS = "intrinsics.npy"
META_FILE = "meta.pkl"
LENS_FOV_DEG = math.degrees(2 * math.atan(16 / 35))
"""Of Zero123's and SyncDreamer's renderings: a lens of 35 mm before a sensor of 32 mm."""

_LARGEST_META = 16 << 20  # bytes; SyncDreamer's have a few thousand
_LARGEST_MATRIX = 1 << 20
_NORMALISED_CENTER = 1.5  # a principal point beyond it is in pixels


@dataclass(frozen=True)
class FoundObject:
    """A folder that has posed pictures: its path below the data folder, where it lies, and its layout."""

    name: str
    folder: Path
    layout: str


@dataclass(frozen=True)
class _Stored:
    """What a reader found in a folder."""

    images: list[Path]
    masks: list[Path | None]
    matrices: Tensor
    intrinsics: Tensor
    scene_radius: float | None = None


# Finding


def layout_of(folder: Path) -> str | None:
    """Which layout a folder has, or None when it is no object."""
    if (folder / NERF_FILE).is_file():
        return "transforms"
    if (folder / CAMERAS_FILE).is_file():
        return "cameras"
    if (folder / "pose").is_dir() and (folder / "rgba").is_dir():
        return "openlrm"
    if (folder / META_FILE).is_file():
        return "syncdreamer"
    if any(path.stem.isdigit() for path in folder.glob("*.npy")):
        return "zero123"
    return None


def find_posed(root: str | Path) -> list[FoundObject]:
    """All folders at or below ``root`` that hold posed pictures, sorted by name.

    Raises:
        CameraError: there is no such folder, or no object in it; the message says what was looked for.
    """
    root = Path(root)
    if not root.is_dir():
        raise CameraError(f"{root}: expected a folder with one folder an object, found {_kind(root)}.")
    found = sorted(_walk(root, root), key=lambda one: one.name)
    if not found:
        pictures = sum(path.suffix.lower() in PICTURES for path in root.rglob("*"))
        raise CameraError(
            f"{root}: no posed pictures. Expected folders with {NERF_FILE}, {CAMERAS_FILE}, rgba/ and pose/ (OpenLRM), "
            f"{META_FILE} (SyncDreamer) or 000.npy beside 000.png (Zero123), found none and {pictures} pictures."
        )
    return found


def _kind(path: Path) -> str:
    return "a file" if path.exists() else "nothing there"


def _walk(root: Path, folder: Path) -> Iterator[FoundObject]:
    """Objects at or below a folder; the folders of an object and hidden ones are not entered."""
    if layout := layout_of(folder):
        name = folder.relative_to(root).as_posix()
        yield FoundObject(folder.name if name == "." else name, folder, layout)
        return
    with os.scandir(folder) as entries:
        inner = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    for name in inner:
        yield from _walk(root, folder / name)


# Reading


def read_posed(folder: str | Path | FoundObject, flags: ReadFlags | None = None) -> PosedObject:
    """Read what is stored of an object's views; pictures are read when they are wanted.

    Args:
        folder: of one object, in any layout of this module.
        flags: how its matrices are meant, where that is not what the layout says.

    Raises:
        CameraError: no known layout, cameras missing or malformed, not rigid; the message names the file.
        ImageError: a picture is missing or unreadable, or they differ in size.
    """
    found = folder if isinstance(folder, FoundObject) else _found(Path(folder))
    stored = READERS[found.layout](found.folder)
    usual = ReadFlags().filled(*CONVENTIONS_OF[found.layout])
    size = _common_size(stored.images)
    points = found.folder / POINTS_FILE
    obj = PosedObject(
        found.name, found.folder, found.layout, tuple(stored.images), tuple(stored.masks), stored.matrices,
        stored.intrinsics, size, usual, usual, stored.scene_radius, points if points.is_file() else None,
    )  # fmt: skip
    obj = obj.with_flags(flags or ReadFlags())
    with named(str(found.folder)):
        _ = obj.cameras  # checks that they are rigid
    return obj


def _found(folder: Path) -> FoundObject:
    layout = layout_of(folder) if folder.is_dir() else None
    if layout is None:
        raise CameraError(
            f"{folder}: expected a folder of posed pictures ({NERF_FILE}, {CAMERAS_FILE}, OpenLRM's pose/, Zero123's "
            f"000.npy or SyncDreamer's {META_FILE}), found {'none of them' if folder.is_dir() else _kind(folder)}."
        )
    return FoundObject(folder.name, folder, layout)


def _common_size(images: list[Path]) -> tuple[int, int]:
    """(height, width) of all pictures; only their heads are read."""
    from PIL import Image

    sizes: list[tuple[int, int]] = []
    for path in images:
        try:
            with Image.open(path) as image:
                sizes.append((image.height, image.width))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ImageError(f"{path}: not readable as a picture ({error}). Save it again as PNG or JPEG.") from error
        if sizes[-1] != sizes[0]:
            raise ImageError(
                f"{path}: {sizes[-1][1]} x {sizes[-1][0]} px, but {images[0].name} is {sizes[0][1]} x {sizes[0][0]} "
                "px. Resize all views to one size."
            )
    return sizes[0]


def _transforms(folder: Path) -> _Stored:
    """NeRF's and nerfstudio's ``transforms.json``; ours adds ``scene_radius``."""
    file = folder / NERF_FILE
    values = read_json(file)
    images, masks, cameras = [], [], []
    for where, frame in entries(file, values, "frames"):
        if "file_path" not in frame:
            raise CameraError(f'{where}: says no "file_path". Name the picture, relative to {file.name}.')
        images.append(picture_path(file, where, "file_path", frame["file_path"]))
        masks.append(picture_path(file, where, "mask_path", frame["mask_path"]) if "mask_path" in frame else None)
        height, width = _common_size(images[-1:])
        with named(where):
            # Of the picture only the size is looked at.
            cameras.append(nerf_camera(where, {**values, **frame}, np.empty((height, width, 0), np.uint8)))
    joined = Cameras.cat(cameras)
    radius = values.get("scene_radius")
    if radius is not None and not (isinstance(radius, int | float) and 0 < radius < math.inf):
        raise CameraError(f"{file}: scene_radius is {radius!r}, expected a positive number.")
    return _Stored(images, masks, joined.c2w, joined.intrinsics, radius)


def _own_cameras(folder: Path) -> _Stored:
    """Our ``cameras.json``, whose pictures may be placed by angles."""
    views = read_views(folder / CAMERAS_FILE)
    rows = json.loads((folder / CAMERAS_FILE).read_text("utf-8"))["views"]  # valid: `read_views` has read it
    masks = [folder / row["mask"] if "mask" in row else None for row in rows]
    return _Stored([folder / row["image"] for row in rows], masks, views.cameras.c2w, views.cameras.intrinsics)


def _openlrm(folder: Path) -> _Stored:
    """OpenLRM's training data: ``rgba``, ``pose`` (3 or 4, 4) camera to world, one ``intrinsics.npy``."""
    images = _numbered(folder / "rgba", PICTURES)
    poses = {path.stem: path for path in _numbered(folder / "pose", (".npy",))}
    lost = [path.name for path in images if path.stem not in poses]
    unseen = sorted(set(poses) - {path.stem for path in images})
    if lost or unseen:
        raise CameraError(
            f"{folder}: {len(images)} pictures in rgba/ and {len(poses)} poses in pose/ do not pair up; "
            + (f"no pose for {lost[0]}." if lost else f"no picture for {poses[unseen[0]].name}.")
        )
    matrices = torch.stack([_read_pose(poses[path.stem]) for path in images])
    file = folder / OPENLRM_INTRINSICS
    if not file.is_file():
        raise CameraError(f"{folder}: no {OPENLRM_INTRINSICS}, so nothing says the field of view. Put it beside pose/.")
    k = _read_intrinsics(file, _common_size(images))
    return _Stored(images, [None] * len(images), matrices, k.expand(len(images), 3, 3).clone())


def _zero123(folder: Path) -> _Stored:
    """Zero123's renderings of Objaverse: ``000.png`` and ``000.npy``, world to camera (3, 4) with Blender's axes.

    Source:
        Facts 3: lens 35, sensor 32, longest side 1.
    """
    poses = [path for path in _numbered(folder, (".npy",)) if path.stem.isdigit()]
    images = []
    for pose in poses:
        beside = [pose.with_suffix(suffix) for suffix in PICTURES if pose.with_suffix(suffix).is_file()]
        if not beside:
            raise ImageError(f"{pose.with_suffix('.png')}: the picture of {pose.name} is not there.")
        images.append(beside[0])
    matrices = torch.stack([_read_pose(path) for path in poses])
    k = intrinsics_from_fov(LENS_FOV_DEG).float().expand(len(images), 3, 3).clone()
    return _Stored(images, [None] * len(images), matrices, k, 0.5)


def _syncdreamer(folder: Path) -> _Stored:
    """SyncDreamer's renderings: pictures and one pickle of [K, azimuths, elevations, distances, poses].

    Source:
        Facts 5: poses are world to camera (V, 3, 4) with OpenCV's axes, K is in pixels, longest side 1.
    """
    file = folder / META_FILE
    content = read_plain_pickle(file)
    if not isinstance(content, list | tuple) or len(content) != 5:
        raise CameraError(f"{file}: expected [K, azimuths, elevations, distances, poses], found {_short(content)}.")
    k, _, _, _, poses = (np.asarray(part) for part in content)
    if k.shape != (3, 3) or poses.ndim != 3 or poses.shape[1:] not in ((3, 4), (4, 4)):
        raise CameraError(f"{file}: expected K (3, 3) and poses (V, 3, 4), found {k.shape} and {poses.shape}.")
    images = [path for path in _numbered(folder, PICTURES) if path.stem.isdigit()]
    if len(images) != len(poses):
        raise ImageError(
            f"{folder}: {META_FILE} has {len(poses)} poses, but there are {len(images)} numbered pictures."
        )
    matrices = torch.stack([_as_pose(file, pose) for pose in poses])
    intrinsics = _as_intrinsics(file, k, _common_size(images))
    return _Stored(images, [None] * len(images), matrices, intrinsics.expand(len(images), 3, 3).clone(), 0.5)


READERS: dict[str, Callable[[Path], _Stored]] = {
    "transforms": _transforms,
    "cameras": _own_cameras,
    "openlrm": _openlrm,
    "zero123": _zero123,
    "syncdreamer": _syncdreamer,
}
LAYOUTS = tuple(READERS)
# What the matrices of a layout are where no flag says otherwise: camera axes, and which way they map.
CONVENTIONS_OF = {
    "transforms": ("opengl", "c2w"),
    "cameras": ("opengl", "c2w"),
    "openlrm": ("opengl", "c2w"),
    "zero123": ("blender", "w2c"),
    "syncdreamer": ("opencv", "w2c"),
}


# Values


def _numbered(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a folder with these suffixes, sorted by number where their names are numbers.

    Raises:
        ImageError: there are none.
    """
    files = [p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith(".")]
    if not files:
        raise ImageError(f"{folder}: expected files ending in {', '.join(suffixes)}, found none.")
    return sorted(files, key=lambda p: (0, int(p.stem), p.name) if p.stem.isdigit() else (1, 0, p.name))


def _read_array(path: Path) -> np.ndarray:
    """A ``.npy`` of numbers; nothing pickled is read.

    Raises:
        CameraError: unreadable, too large for a camera, or not of finite numbers.
    """
    try:
        if path.stat().st_size > _LARGEST_MATRIX:
            raise ValueError(f"{path.stat().st_size} bytes, far more than a camera needs")
        array = np.load(path, allow_pickle=False)
        if not (isinstance(array, np.ndarray) and array.dtype.kind in "fiu"):
            raise ValueError("no array of numbers")
    except (OSError, ValueError, EOFError) as error:
        raise CameraError(
            f"{path}: not readable as a camera matrix ({error}). Write it again with numpy.save."
        ) from error
    return array


def _read_pose(path: Path) -> Tensor:
    return _as_pose(path, _read_array(path))


def _as_pose(path: Path, array: np.ndarray) -> Tensor:
    """A stored matrix (3, 4) or (4, 4) → (4, 4) float32, checked to be rigid up to scale of its axes.

    Raises:
        CameraError: another shape, not finite, not rigid.
    """
    if array.shape not in ((3, 4), (4, 4)) or not np.isfinite(array).all():
        found = array.shape if array.shape not in ((3, 4), (4, 4)) else "NaN or Inf"
        raise CameraError(f"{path}: expected a pose of (3, 4) or (4, 4) finite numbers, found {found}.")
    rotation = array[:3, :3].astype(np.float64)
    error = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if error > 1e-3 or np.linalg.det(rotation) < 0:
        raise CameraError(
            f"{path}: the pose is not rigid (R^T R differs from the identity by {error:.3g}, its determinant is "
            f"{np.linalg.det(rotation):.3g}). Remove scale from the poses, and do not mirror the world."
        )
    pose = torch.eye(4)
    pose[:3] = torch.from_numpy(array[:3].astype(np.float32))
    return pose


def _read_intrinsics(path: Path, size: tuple[int, int]) -> Tensor:
    return _as_intrinsics(path, _read_array(path), size)


def _as_intrinsics(path: Path, array: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Intrinsics → (3, 3) float32, normalised by width and height.

    Args:
        path: to name in an error.
        array: a camera matrix (3, 3) or (4, 4), in pixels or normalised, or OpenLRM's [[fx, fy], [cx, cy], [width,
            height]].
        size: (height, width) of the pictures, which pixels belong to unless ``array`` has its own.

    Raises:
        CameraError: another shape, or focal lengths that are not positive.
    """
    height, width = size
    if array.shape == (3, 2):
        (fx, fy), (cx, cy), (width, height) = array.astype(np.float64).tolist()
    elif array.shape in ((3, 3), (4, 4)):
        fx, fy, cx, cy = (float(array[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    else:
        raise CameraError(f"{path}: expected intrinsics (3, 3), (4, 4) or (3, 2), found {array.shape}.")
    if not (math.isfinite(fx + fy + cx + cy) and min(fx, fy, width, height) > 0):
        raise CameraError(f"{path}: focal lengths are {fx:g} and {fy:g}, expected positive finite numbers.")
    k = torch.eye(3)
    # Normalised intrinsics have their principal point within a picture of size 1.
    pixels = array.shape == (3, 2) or max(cx, cy) > _NORMALISED_CENTER
    across, down = (float(width), float(height)) if pixels else (1.0, 1.0)
    k[0, 0], k[0, 2], k[1, 1], k[1, 2] = fx / across, cx / across, fy / down, cy / down
    return k


# Pickles


class _PlainUnpickler(pickle.Unpickler):
    """Builds numbers, text, containers and numpy arrays of numbers; anything else is refused before it is built."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            if name == "_reconstruct":
                return _empty_array
            if name == "scalar":
                return _plain_scalar
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return _plain_array
        if (module, name) == ("numpy", "ndarray"):
            return "ndarray"  # only ever handed to `_empty_array`
        if (module, name) == ("numpy", "dtype"):
            return _plain_dtype
        if (module, name) == ("_codecs", "encode"):
            return _latin_bytes
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """Where numpy begins an array; its shape and bytes come later, so nothing large is asked for here."""
    return np.ndarray.__new__(np.ndarray, (0,), np.int8)


def _plain_array(data: bytes, kind: np.dtype[Any], shape: tuple[int, ...], order: str) -> np.ndarray:
    """How pickles of protocol 5 write an array."""
    return np.frombuffer(data, kind).reshape(shape, order="F" if order == "F" else "C")


def _plain_dtype(name: Any, *flags: Any) -> np.dtype[Any]:
    """A number type; objects and records are refused."""
    made = np.dtype(name) if isinstance(name, str) else np.dtype("O")
    if made.kind not in "biuf":
        raise pickle.UnpicklingError(f"it has an array of {name!r}")
    return made


def _plain_scalar(kind: np.dtype[Any], data: bytes) -> Any:
    return np.frombuffer(data, kind, 1)[0]


def _latin_bytes(text: str, encoding: str) -> bytes:
    """How old pickles write the bytes of arrays."""
    return text.encode("latin1")


def read_plain_pickle(path: Path) -> Any:
    """Read a pickle of numbers, text, containers and numpy arrays without running any code that it names.

    Raises:
        CameraError: missing, damaged, larger than 16 MiB, or it names anything else, which is then not run.
    """
    try:
        if path.stat().st_size > _LARGEST_META:
            raise CameraError(
                f"{path}: {path.stat().st_size} bytes, expected a pickle of cameras below {_LARGEST_META}."
            )
        return _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except TriliftError:
        raise
    except pickle.UnpicklingError as error:
        raise CameraError(
            f"{path}: expected numbers and arrays alone, found something else ({error}), which could run code. "
            "Nothing was run. Get the file from its first publisher, or give transforms.json in its place."
        ) from error
    # Damaged pickles fail in any way that Python objects can.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise CameraError(f"{path}: not a whole pickle ({reason}). Fetch or write it again.") from error


def _short(value: Any) -> str:
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__
