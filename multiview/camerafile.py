"""Pictures with cameras on disk: our own ``cameras.json``, NeRF's ``transforms.json``, and the sheet of Zero123++.

Our own format is a folder with the pictures and one ``cameras.json``::

    {
      "format": 1,
      "axes": "opengl",
      "distance": 4.0, "fov_y_deg": 30.0,
      "views": [
        {"image": "front.png", "azimuth_deg": 0, "elevation_deg": 20},
        {"image": "back.png", "mask": "back_mask.png", "azimuth_deg": 180, "elevation_deg": 20, "distance": 3.5},
        {"image": "top.png", "c2w": [[...4 numbers...], ...3 or 4 rows...], "intrinsics_norm": [[...], [...], [...]]}
      ]
    }

A view is placed either by angles (on a sphere about the origin, looking at it, square pixels) or by its
matrix ``c2w`` and its ``intrinsics_norm`` (row x divided by the picture's width, row y by its height). ``axes`` says
whose camera axes the matrices have: ``opengl`` (x right, y up, looks along -z; the default) or ``opencv`` (y down,
looks along +z). The world is the project's: right-handed, z up, the object at the origin, azimuth 0 = +x. What stands
beside ``views`` holds for every view that does not say otherwise. Pictures are named relative to the file. Alpha is
the picture's own; a ``mask`` (white = object) replaces it.

World units are taken as they are in every format: a reconstruction model says in which cube it expects the object.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .cameras import Cameras, intrinsics_from_fov, opengl_from_blender, opengl_from_opencv, orbit
from .color import bytes_from_unit
from .errors import CameraError, ImageError
from .files import write_json_whole, written_whole
from .views import Views

FORMAT_VERSION = 1
CAMERAS_FILE = "cameras.json"
NERF_FILE = "transforms.json"

ZERO123PLUS_AZIMUTHS_DEG = (30.0, 90.0, 150.0, 210.0, 270.0, 330.0)
ZERO123PLUS_ELEVATIONS_DEG = (20.0, -10.0, 20.0, -10.0, 20.0, -10.0)
ZERO123PLUS_FOV_DEG = 30.0
ZERO123PLUS_DISTANCE = 4.0
"""What InstantMesh assumes; Zero123++ itself has no world units."""

_ANGLES = ("azimuth_deg", "elevation_deg", "distance", "fov_y_deg")
_MATRICES = ("c2w", "intrinsics_norm")
_SHARED = (*_ANGLES, "intrinsics_norm")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_PINHOLE = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL")
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_Pixels = np.ndarray


def read_views(path: str | Path) -> Views:
    """Read pictures with their cameras.

    Args:
        path: a folder with ``cameras.json`` (looked for first), ``transforms.json``, or else exactly one picture that
            is a Zero123++ sheet; or one of these files itself, under any name.

    Returns:
        The views in the file's order; pictures without alpha and mask get alpha 1.

    Raises:
        CameraError: there is no such file, or it does not say what it must; the message names it.
        ImageError: a picture is missing or unreadable, or they differ in size.
    """
    path = Path(path)
    file = _find(path) if path.is_dir() else path
    if not file.is_file():
        raise CameraError(f"{path}: not found. Give a folder with pictures and {CAMERAS_FILE} or {NERF_FILE}.")
    if file.suffix.lower() in _PICTURES:
        return read_zero123plus_sheet(file)
    values = read_json(file)
    if "frames" in values:
        return _nerf_views(file, values)
    return _own_views(file, values)


def write_views(folder: str | Path, views: Views) -> None:
    """Write views as a folder that `read_views` gives back: RGBA pictures and ``cameras.json``.

    Cameras come back exactly (float32), pictures and alpha to the nearest of 255 steps. The pictures are written
    first, so that a ``cameras.json`` that is there is whole.

    Args:
        folder: made when missing; pictures ``000.png``, ``001.png``, ... in it are replaced.
        views: at least one.

    Raises:
        ImageError: there are no views.
        OutputError: something could not be written.
    """
    folder = Path(folder)
    if len(views) == 0:
        raise ImageError(f"{folder}: no views to write. Give at least one.")
    rgba = bytes_from_unit(torch.cat([views.images, views.alpha], 1).permute(0, 2, 3, 1).cpu().numpy())
    rows = []
    for index, pixels in enumerate(rgba):
        name = f"{index:03d}.png"
        with written_whole(folder / name) as aside:
            Image.fromarray(pixels).save(aside, "PNG")
        c2w, intrinsics = views.cameras.c2w[index].tolist(), views.cameras.intrinsics[index].tolist()
        rows.append({"image": name, "c2w": c2w, "intrinsics_norm": intrinsics})
    write_json_whole(folder / CAMERAS_FILE, {"format": FORMAT_VERSION, "axes": "opengl", "views": rows})


def write_transforms(folder: str | Path, views: Views) -> None:
    """Write NeRF's ``transforms.json`` beside the pictures that `write_views` has written.

    It has what Blender's NeRF scenes, instant-ngp and nerfstudio look for: ``camera_angle_x`` in radians where all
    views share one, and for every frame its pose (Blender's and OpenGL's axes, world z up) and intrinsics in pixels.

    Args:
        folder: with ``000.png``, ``001.png``, ...
        views: those of the pictures, at least one.

    Raises:
        ImageError: there are no views.
        OutputError: it could not be written.
    """
    folder = Path(folder)
    if len(views) == 0:
        raise ImageError(f"{folder}: no views to write. Give at least one.")
    height, width = views.image_size
    frames = []
    for index, (c2w, k) in enumerate(zip(views.cameras.c2w, views.cameras.intrinsics.double(), strict=True)):
        x, y = (k[0] * width).tolist(), (k[1] * height).tolist()
        camera = {"fl_x": x[0], "fl_y": y[1], "cx": x[2], "cy": y[2], "w": width, "h": height}
        frames.append({"file_path": f"{index:03d}.png", "transform_matrix": c2w.tolist(), **camera})
    angles = {round(2 * math.atan(width / (2 * frame["fl_x"])), 9) for frame in frames}
    shared = {"camera_angle_x": angles.pop()} if len(angles) == 1 else {}
    write_json_whole(folder / NERF_FILE, {"camera_model": "PINHOLE", **shared, "frames": frames})


def zero123plus_cameras(distance: float = ZERO123PLUS_DISTANCE) -> Cameras:
    """The six cameras of a Zero123++ v1.2 sheet, tile by tile, about an object whose photograph is at azimuth 0.

    Args:
        distance: camera centre to origin, world units, > 0.

    Source:
        Facts 4.4; elevations are above the ground, not above the photograph's camera.
    """
    return orbit(ZERO123PLUS_AZIMUTHS_DEG, ZERO123PLUS_ELEVATIONS_DEG, distance, ZERO123PLUS_FOV_DEG)


def zero123plus_views(sheet: _Pixels, distance: float = ZERO123PLUS_DISTANCE, name: str = "the sheet") -> Views:
    """Cut a Zero123++ sheet, 3 rows of 2 square tiles, into six views: tile = 2 * row + column.

    Args:
        sheet: (3 * S, 2 * S, 3 or 4) uint8 sRGB; without alpha the views' alpha is 1 (the background stays).
        distance: see `zero123plus_cameras`.
        name: what to call the sheet in an error.

    Raises:
        ImageError: the picture is not 3 rows of 2 squares.
    """
    height, width = sheet.shape[:2]
    side = width // 2
    if side < 1 or (height, width) != (3 * side, 2 * side):
        raise ImageError(
            f"{name}: expected a Zero123++ sheet of 3 rows of 2 square tiles (such as 640 x 960 px), found "
            f"{width} x {height} px. Give the sheet as it was made, or the pictures with a {CAMERAS_FILE}."
        )
    rows = sheet.reshape(3, side, 2, side, sheet.shape[2]).transpose(0, 2, 1, 3, 4)
    return _views(list(rows.reshape(6, side, side, sheet.shape[2])), zero123plus_cameras(distance))


def read_zero123plus_sheet(path: str | Path, distance: float = ZERO123PLUS_DISTANCE) -> Views:
    """`zero123plus_views` of a picture file.

    Raises:
        ImageError: the picture is unreadable, or not 3 rows of 2 squares.
    """
    return zero123plus_views(_read_picture(Path(path)), distance, str(path))


# Finding and reading


def _find(folder: Path) -> Path:
    """The file in ``folder`` that says where the cameras are."""
    for name in (CAMERAS_FILE, NERF_FILE):
        if (folder / name).is_file():
            return folder / name
    pictures = sorted(p for p in folder.iterdir() if p.suffix.lower() in _PICTURES and not p.name.startswith("."))
    if len(pictures) == 1:
        return pictures[0]
    others = sorted(p.name for p in folder.glob("transforms*.json"))
    hint = f" Or give one of these files itself: {', '.join(others)}." if others else ""
    raise CameraError(
        f"{folder}: no cameras. Expected {CAMERAS_FILE}, {NERF_FILE} or one Zero123++ sheet, found "
        f"{len(pictures)} pictures and neither file.{hint}"
    )


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CameraError(f"{path}: not readable as JSON ({error}). Write or fetch it again.") from error
    if not isinstance(values, dict):
        raise CameraError(f"{path}: expected a JSON object, found {type(values).__name__}.")
    return values


def _read_picture(path: Path) -> _Pixels:
    """(H, W, 3) or, with transparency, (H, W, 4) uint8; pixels as they are stored, as the cameras belong to those."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ImageError(f"{path}: expected an 8-bit picture, found mode {image.mode}. Save it with 8 bits.")
            alpha = "A" in image.getbands() or "transparency" in image.info
            return np.array(image.convert("RGBA" if alpha else "RGB"))
    except FileNotFoundError as error:
        raise ImageError(f"{path}: the picture is not there.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path}: not readable as a picture ({error}). Save it again as PNG or JPEG.") from error


def read_masked(path: Path, mask: Path | None) -> _Pixels:
    """The picture at ``path``; a mask replaces its alpha."""
    pixels = _read_picture(path)
    if mask is None:
        return pixels
    matte = _read_picture(mask)
    if matte.shape[:2] != pixels.shape[:2]:
        raise ImageError(
            f"{mask}: expected a mask of {pixels.shape[1]} x {pixels.shape[0]} px as {path.name} has, found "
            f"{matte.shape[1]} x {matte.shape[0]} px."
        )
    return np.dstack([pixels[..., :3], matte[..., :3].mean(-1).round().astype(np.uint8)])


def _views(pictures: Sequence[_Pixels], cameras: Cameras) -> Views:
    """Pictures (H, W, 3 or 4) uint8 of one size with their cameras."""
    opaque = (np.full((*p.shape[:2], 1), 255, np.uint8) for p in pictures)
    rgba = [p if p.shape[2] == 4 else np.dstack([p, o]) for p, o in zip(pictures, opaque, strict=True)]
    tensor = torch.from_numpy(np.stack(rgba)).permute(0, 3, 1, 2).float() / 255
    return Views(tensor[:, :3], tensor[:, 3:], cameras)


def _same_size(paths: Sequence[Path], pictures: Sequence[_Pixels]) -> None:
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape[:2] != pictures[0].shape[:2]:
            raise ImageError(
                f"{path}: {picture.shape[1]} x {picture.shape[0]} px, but {paths[0].name} is "
                f"{pictures[0].shape[1]} x {pictures[0].shape[0]} px. Resize all views to one size."
            )


# Our own format


def _own_views(file: Path, values: dict[str, Any]) -> Views:
    _known_keys(str(file), values, ("format", "axes", "views", *_SHARED))
    if values.get("format") != FORMAT_VERSION:
        raise CameraError(f'{file}: expected "format": {FORMAT_VERSION}, found {values.get("format")!r}.')
    axes = values.get("axes", "opengl")
    if axes not in ("opengl", "opencv"):
        raise CameraError(f'{file}: "axes" is {axes!r}, expected "opengl" or "opencv".')
    shared = {key: values[key] for key in _SHARED if key in values}
    cameras, paths, pictures = [], [], []
    for where, view in entries(file, values, "views"):
        _known_keys(where, view, ("image", "mask", *_ANGLES, *_MATRICES))
        if "image" not in view:
            raise CameraError(f'{where}: says no "image". Name the picture, relative to {file.name}.')
        paths.append(picture_path(file, where, "image", view["image"]))
        mask = picture_path(file, where, "mask", view["mask"]) if "mask" in view else None
        pictures.append(read_masked(paths[-1], mask))
        with named(where):
            cameras.append(_own_camera(where, {**shared, **view}, axes, pictures[-1]))
    _same_size(paths, pictures)
    return _views(pictures, Cameras.cat(cameras))


def _own_camera(where: str, view: dict[str, Any], axes: str, picture: _Pixels) -> Cameras:
    """One camera by its matrices if the view has ``c2w``, else by its angles."""
    if "c2w" in view:
        if "intrinsics_norm" not in view:
            raise CameraError(f"{where}: c2w needs intrinsics_norm beside it (3 x 3, divided by the picture's size).")
        c2w = _pose(where, "c2w", view["c2w"])
        intrinsics = _matrix(where, "intrinsics_norm", view["intrinsics_norm"], (3,), 3)
        return _pinhole(where, opengl_from_opencv(c2w) if axes == "opencv" else c2w, intrinsics)
    missing = [key for key in _ANGLES if key not in view]
    if missing:
        raise CameraError(f"{where}: no {' and no '.join(missing)}. Give {', '.join(_ANGLES)}, or c2w.")
    azimuth, elevation, distance, fov = (_number(where, key, view[key]) for key in _ANGLES)
    placed = orbit(azimuth, elevation, distance, fov)
    aspect = picture.shape[1] / picture.shape[0]
    return Cameras(placed.c2w, intrinsics_from_fov(fov, aspect).float())


# NeRF's format


def _nerf_views(file: Path, values: dict[str, Any]) -> Views:
    """``transforms.json`` as Blender's NeRF scenes, instant-ngp and nerfstudio write it."""
    cameras, paths, pictures = [], [], []
    for where, frame in entries(file, values, "frames"):
        if "file_path" not in frame:
            raise CameraError(f'{where}: says no "file_path". Name the picture, relative to {file.name}.')
        paths.append(picture_path(file, where, "file_path", frame["file_path"]))
        mask = picture_path(file, where, "mask_path", frame["mask_path"]) if "mask_path" in frame else None
        pictures.append(read_masked(paths[-1], mask))
        with named(where):
            cameras.append(nerf_camera(where, {**values, **frame}, pictures[-1]))
    _same_size(paths, pictures)
    return _views(pictures, Cameras.cat(cameras))


def nerf_camera(where: str, frame: dict[str, Any], picture: _Pixels) -> Cameras:
    """The camera of a frame; ``frame`` has the file's shared values too."""
    model = frame.get("camera_model", "PINHOLE")
    bent = [key for key in _DISTORTION if key in frame and _number(where, key, frame[key]) != 0]
    if model not in _PINHOLE or bent:
        found = f"camera_model {model!r}" if model not in _PINHOLE else f"{bent[0]} = {frame[bent[0]]}"
        raise CameraError(f"{where}: expected a camera without distortion, found {found}. Undistort the pictures.")
    if "transform_matrix" not in frame:
        raise CameraError(f"{where}: no transform_matrix (4 x 4, camera to world).")
    pose = _pose(where, "transform_matrix", frame["transform_matrix"])
    if (pose[:3, :3].norm(dim=0) < 1e-12).any():
        raise CameraError(f"{where}: transform_matrix has a column of zeros, so it is no pose.")
    size = picture.shape[1], picture.shape[0]
    return _pinhole(where, opengl_from_blender(pose), _nerf_intrinsics(where, frame, size))


def _nerf_intrinsics(where: str, frame: dict[str, Any], size: tuple[int, int]) -> Tensor:
    """Normalised intrinsics (3, 3) from focal lengths in pixels, or else from full angles of view in radians."""
    given = {
        key: _number(where, key, frame[key])
        for key in ("fl_x", "fl_y", "cx", "cy", "w", "h", "camera_angle_x", "camera_angle_y")
        if key in frame
    }
    width, height = given.get("w", float(size[0])), given.get("h", float(size[1]))
    if min(width, height) <= 0 or abs(width / height - size[0] / size[1]) > 0.01 * size[0] / size[1]:
        raise CameraError(
            f"{where}: the camera is for {width:g} x {height:g} px, the picture has {size[0]} x {size[1]} px. "
            "Give pictures of the same proportions."
        )
    if "fl_x" in given:
        fx, fy = given["fl_x"], given.get("fl_y", given["fl_x"])
    elif "camera_angle_x" in given:
        fx = width * _focal(where, "camera_angle_x", given["camera_angle_x"])
        fy = height * _focal(where, "camera_angle_y", given["camera_angle_y"]) if "camera_angle_y" in given else fx
    else:
        raise CameraError(f"{where}: no focal length. Give camera_angle_x (radians) or fl_x (pixels).")
    k = intrinsics_from_fov(90.0)[0]
    k[0, 0], k[0, 2] = fx / width, given.get("cx", width / 2) / width
    k[1, 1], k[1, 2] = fy / height, given.get("cy", height / 2) / height
    return k.float()


def _focal(where: str, key: str, angle_rad: float) -> float:
    """Focal length in picture sides for a full angle of view."""
    if not 0 < angle_rad < math.pi:
        raise CameraError(f"{where}: {key} is {angle_rad:g}, expected radians between 0 and 3.14 (not degrees).")
    return 0.5 / math.tan(angle_rad / 2)


# Values


def entries(file: Path, values: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of the list ``key`` with what to call it in an error."""
    rows = values.get(key)
    if not isinstance(rows, list) or not rows:
        found = "an empty list" if rows == [] else f"{rows!r:.60}"
        raise CameraError(f'{file}: expected a list "{key}" with at least one entry, found {found}.')
    for index, row in enumerate(rows):
        where = f"{file}: {key}[{index}]"
        if not isinstance(row, dict):
            raise CameraError(f"{where}: expected an object, found {row!r:.60}.")
        yield where, row


@contextmanager
def named(where: str) -> Iterator[None]:
    """Put ``where`` in front of the message of a `CameraError` that does not have it yet."""
    try:
        yield
    except CameraError as error:
        if where in str(error):
            raise
        raise CameraError(f"{where}: {error}") from error


def _pinhole(where: str, c2w: Tensor, intrinsics: Tensor) -> Cameras:
    """One camera of c2w (4, 4) and intrinsics (3, 3), whose focal lengths must be positive."""
    if not (intrinsics[0, 0] > 0 and intrinsics[1, 1] > 0):
        raise CameraError(
            f"{where}: focal lengths are {intrinsics[0, 0]:g} and {intrinsics[1, 1]:g}, expected positive numbers."
        )
    return Cameras(c2w[None], intrinsics[None])


def _known_keys(where: str, values: dict[str, Any], known: Sequence[str]) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known are {', '.join(known)}."
            raise CameraError(f"{where}: unknown key {key!r}.{hint}")


def picture_path(file: Path, where: str, key: str, name: Any) -> Path:
    """The picture that ``name`` means beside ``file``; NeRF's Blender scenes leave the suffix out."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise CameraError(f"{where}: {key} is {name!r:.60}, expected a file name.")
    path = file.parent / name
    if path.is_file():
        return path
    for suffix in _PICTURES:
        candidate = path.with_name(path.name + suffix)
        if candidate.is_file():
            return candidate
    raise ImageError(f"{where}: {key} names {path}, which is not there. Put the picture there or correct the name.")


def _number(where: str, key: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) < 1e30:  # NaN is not below it either, and float32 still holds it
        raise CameraError(f"{where}: {key} is {value!r:.60}, expected a finite number.")
    return float(value)


def _matrix(where: str, key: str, value: Any, heights: tuple[int, ...], width: int) -> Tensor:
    """A list of rows as a float32 matrix."""
    wanted = f"{' or '.join(map(str, heights))} rows of {width} numbers"
    if not isinstance(value, list) or len(value) not in heights:
        raise CameraError(f"{where}: {key}: expected {wanted}, found {value!r:.60}.")
    for row in value:
        if not isinstance(row, list) or len(row) != width:
            raise CameraError(f"{where}: {key}: expected {wanted}, found a row {row!r:.60}.")
    return torch.tensor([[_number(where, key, x) for x in row] for row in value], dtype=torch.float32)


def _pose(where: str, key: str, value: Any) -> Tensor:
    """A pose (4, 4); the last row may be left out and must be 0 0 0 1 if it is there."""
    pose = _matrix(where, key, value, (3, 4), 4)
    last = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    if len(pose) == 4 and not torch.allclose(pose[3:], last, atol=1e-6):
        raise CameraError(f"{where}: {key}: expected the last row 0 0 0 1, found {pose[3].tolist()}. Is it transposed?")
    return torch.cat([pose[:3], last])
