"""What posed pictures are, whatever layout they came in, and the flags that say how their poses are meant.

A `PosedObject` keeps the matrices as its files have them, and `ReadFlags` turn them into cameras. So the linter
(``check.py``) can try what the poses would mean under other flags, and every reader takes the flags it names.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

# The ground floor's readers of single values and pictures: one wording of their errors for all layouts.
from multiview.camerafile import read_masked as read_picture
from multiview.cameras import Cameras, invert_rigid, look_at, opengl_from_blender, opengl_from_opencv
from multiview.errors import CameraError, ImageError
from multiview.views import Views

from .points import PointSet
from .readflags import CONVENTIONS as CONVENTIONS
from .readflags import POSES as POSES
from .readflags import UPS as UPS
from .readflags import ReadFlags as ReadFlags

_WIDEST_DEG = 175.0


def cameras_from(stored: Tensor, intrinsics: Tensor, flags: ReadFlags) -> Cameras:
    """Turn stored matrices into cameras of the project's world.

    Args:
        stored: (V, 4, 4) rigid matrices as the files have them.
        intrinsics: (V, 3, 3) normalised by the picture's width and height.
        flags: with ``camera_convention`` and ``pose`` filled in.

    Raises:
        CameraError: they are not rigid, or a flag does not go with them.
    """
    c2w = invert_rigid(stored) if flags.pose == "w2c" else stored
    axes = opengl_from_opencv if flags.camera_convention == "opencv" else opengl_from_blender
    c2w = _stood_up(axes(c2w), flags.up)
    c2w[:, :3, 3] -= c2w.new_tensor(flags.center)
    if flags.look_at is not None:
        c2w = look_at(c2w[:, :3, 3], c2w.new_tensor(flags.look_at))
    c2w[:, :3, 3] *= flags.scene_scale
    return Cameras(c2w, _widened(intrinsics, flags.fov_scale))


def up_rotation(up: str) -> Tensor:
    """Rotation (3, 3) from a world whose ``up`` axis is up to the project's, z up."""
    turned = {
        "z": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
        "-z": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
        "y": ((0, 0, 1), (1, 0, 0), (0, 1, 0)),
        "-y": ((0, 0, 1), (-1, 0, 0), (0, -1, 0)),
        "x": ((0, 1, 0), (0, 0, 1), (1, 0, 0)),
        "-x": ((0, 1, 0), (0, 0, -1), (-1, 0, 0)),
    }
    return torch.tensor(turned[up], dtype=torch.float32)


def _stood_up(c2w: Tensor, up: str) -> Tensor:
    turned = c2w.clone()
    turned[:, :3] = up_rotation(up).to(c2w) @ c2w[:, :3]
    return turned


def _widened(intrinsics: Tensor, fov_scale: float) -> Tensor:
    """Intrinsics whose full angles of view are ``fov_scale`` times as wide, at most `_WIDEST_DEG`."""
    if fov_scale == 1.0:
        return intrinsics
    k = intrinsics.clone()
    for axis in (0, 1):
        half = torch.atan(0.5 / intrinsics[:, axis, axis]) * fov_scale
        k[:, axis, axis] = 0.5 / torch.tan(half.clamp(max=math.radians(_WIDEST_DEG / 2)))
    return k


@dataclass(frozen=True, eq=False)
class PosedObject:
    """Pictures of one object with what was stored of their cameras.

    Attributes:
        name: path of its folder below the data folder.
        folder: where it lies.
        layout: of `train.layouts.LAYOUTS`.
        images: V picture files, in the order of the stored matrices.
        masks: for each picture a file whose white replaces its alpha, or None.
        stored: (V, 4, 4) rigid matrices as the files have them, float32.
        intrinsics: (V, 3, 3) as stored, normalised by width and height, float32.
        image_size: (height, width) of all pictures, pixels.
        flags: how the matrices are meant, filled in.
        layout_flags: what the layout itself says of them.
        scene_radius: half side of the cube that the object fills, world units; None where the layout does not say.
        points: file of labelled points, as `train.points.PointSet` in the scene of longest side 1; None without.
    """

    name: str
    folder: Path
    layout: str
    images: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    stored: Tensor
    intrinsics: Tensor
    image_size: tuple[int, int]
    flags: ReadFlags
    layout_flags: ReadFlags
    scene_radius: float | None = None
    points: Path | None = None

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def cameras(self) -> Cameras:
        """The V cameras in the project's world; picture ``order[i]`` belongs to camera i."""
        return cameras_from(self.stored, self.intrinsics, self.flags)

    def with_flags(self, flags: ReadFlags) -> PosedObject:
        """The same files, meant otherwise.

        Raises:
            CameraError: ``order`` is not an order of this object's pictures.
        """
        if flags.order is not None and sorted(flags.order) != list(range(len(self))):
            raise CameraError(
                f"{self.folder}: --order has {len(flags.order)} numbers up to {max(flags.order, default=-1)}, "
                f"expected each of 0 to {len(self) - 1} once, as there are {len(self)} pictures."
            )
        return replace(
            self, flags=flags.filled(self.layout_flags.camera_convention or "", self.layout_flags.pose or "")
        )

    def pixels(self, index: int) -> np.ndarray:
        """The picture of camera ``index``: (H, W, 3 or 4) uint8, turned as the flags say.

        Raises:
            ImageError: it is not there or unreadable.
        """
        place = index if self.flags.order is None else self.flags.order[index]
        picture = read_picture(self.images[place], self.masks[place])
        if self.flags.mirror:
            picture = picture[:, ::-1]
        return np.ascontiguousarray(picture[::-1] if self.flags.flip else picture)

    def views(self, indices: Sequence[int] | None = None, size: int | None = None) -> Views:
        """Read pictures with their cameras.

        Args:
            indices: which cameras; all unless given.
            size: pixels of the longer side, averaged by area; as they are unless given.

        Raises:
            ImageError: a picture is not there, unreadable or of another size.
        """
        chosen = list(range(len(self)) if indices is None else indices)
        rgba = torch.stack([self._rgba(index, size) for index in chosen])
        return Views(rgba[:, :3], rgba[:, 3:], self.cameras.select(chosen))

    def _rgba(self, index: int, size: int | None) -> Tensor:
        """(4, H, W) straight RGBA in [0, 1]."""
        pixels = self.pixels(index)
        if pixels.shape[:2] != self.image_size:
            raise ImageError(
                f"{self.images[index]}: expected {self.image_size[1]} x {self.image_size[0]} px as the other views "
                f"have, found {pixels.shape[1]} x {pixels.shape[0]} px. Resize all views to one size."
            )
        picture = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        if len(picture) == 3:
            picture = torch.cat([picture, torch.ones_like(picture[:1])])
        height, width = self.image_size
        if size is None or size == max(height, width):
            return picture
        scale = size / max(height, width)
        target = max(1, round(height * scale)), max(1, round(width * scale))
        full = torch.cat([picture[:3] * picture[3:], picture[3:]])[None]
        small = (
            interpolate(full, target, mode="area")[0] if scale < 1 else interpolate(full, target, mode="bilinear")[0]
        )
        return torch.cat([small[:3] / small[3:].clamp(min=1e-6), small[3:]]).clamp(0, 1)

    def labelled_points(self) -> PointSet | None:
        """The labelled points, if there are some.

        Raises:
            ImageError: the file is damaged.
        """
        if self.points is None:
            return None
        try:
            with np.load(self.points, allow_pickle=False) as file:
                return PointSet(*(file[name] for name in ("points", "inside", "surface", "colors")))
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ImageError(
                f"{self.points}: not readable as labelled points ({error}). Render the object again."
            ) from error


# Flags on a command line


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The options of `ReadFlags`, for every command that reads posed pictures."""
    group = parser.add_argument_group("how poses and pictures are meant (python -m train.check says which you need)")
    add = group.add_argument
    add("--camera-convention", choices=CONVENTIONS, help="camera axes of the stored matrices (default: the layout's)")
    add("--pose", choices=POSES, help="what the stored matrices are (default: the layout's)")
    add("--up", choices=UPS, default="z", help="which axis of the stored world is up (default %(default)s)")
    add("--center", type=_point, default=(0.0, 0.0, 0.0), metavar="X,Y,Z", help="move this point to the origin")
    add("--look-at", type=_point, default=None, metavar="X,Y,Z", help="turn all cameras, in place, to look at it")
    add("--scene-scale", type=float, default=1.0, help="multiply camera positions (default %(default)s)")
    add("--fov-scale", type=float, default=1.0, help="multiply the full angles of view (default %(default)s)")
    add("--mirror", action="store_true", help="exchange left and right of every picture")
    add("--flip", action="store_true", help="exchange top and bottom of every picture")
    add("--order", type=_numbers, default=None, metavar="I,J,...", help="camera 0 shows picture I, camera 1 J, ...")
    add("--scene-radius", type=float, default=None, help="half side of the cube that the object fills, world units")


def flags_of(args: argparse.Namespace) -> ReadFlags:
    """What the options of `add_flags` say.

    Raises:
        SettingsError: a number out of range.
    """
    return ReadFlags(**{entry.name: getattr(args, entry.name) for entry in fields(ReadFlags)})


def _point(text: str) -> tuple[float, float, float]:
    values = tuple(float(part) for part in text.split(","))
    if len(values) != 3 or not all(math.isfinite(v) for v in values):
        raise argparse.ArgumentTypeError(f"expected X,Y,Z, found {text!r}")
    return values[0], values[1], values[2]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
