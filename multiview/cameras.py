"""Cameras: the only place where angles become matrices.

Conventions, once for the whole project:

* World: right-handed, z up, object centred at the origin. Azimuth 0 is +x and grows toward +y
  (counter-clockwise seen from above); elevation grows upward. Degrees at every API.
* A camera is its c2w matrix (4, 4) with OpenGL axes: x right, y up, looks along -z.
* Intrinsics are normalised: row x is divided by the image's width, row y by its height; (0, 0) is the
  image's top left corner, (1, 1) its bottom right corner, and pixel centres lie half a pixel inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import CameraError

_OPENCV_FROM_OPENGL = (1.0, -1.0, -1.0, 1.0)


@dataclass(frozen=True)
class Cameras:
    """V pinhole cameras.

    Attributes:
        c2w: (V, 4, 4) float, camera to world, rigid, OpenGL axes.
        intrinsics: (V, 3, 3) float, normalised by width and height (``intrinsics_norm``).

    Raises:
        CameraError: wrong shapes, not finite, or a rotation that is not rigid (1e-3).
    """

    c2w: Tensor
    intrinsics: Tensor

    def __post_init__(self) -> None:
        v = self.c2w.shape[0] if self.c2w.ndim == 3 else -1
        if tuple(self.c2w.shape) != (v, 4, 4) or tuple(self.intrinsics.shape) != (v, 3, 3):
            raise CameraError(
                f"cameras want c2w (V, 4, 4) and intrinsics (V, 3, 3), found {tuple(self.c2w.shape)} and "
                f"{tuple(self.intrinsics.shape)}. Give every view one pose and one intrinsics matrix."
            )
        if not (torch.isfinite(self.c2w).all() and torch.isfinite(self.intrinsics).all()):
            raise CameraError("cameras hold NaN or Inf. Check the file that they were read from.")
        rotation = self.c2w[:, :3, :3]
        eye = torch.eye(3, dtype=rotation.dtype, device=rotation.device)
        error = (rotation.transpose(1, 2) @ rotation - eye).abs().amax().item() if v else 0.0
        if error > 1e-3 or (v and torch.linalg.det(rotation.double()).min() < 0):
            raise CameraError(
                f"c2w is not rigid (R^T R differs from the identity by {error:.3g}, or it mirrors). "
                "Remove scale from the poses and check that they are c2w, not w2c times something."
            )

    def __len__(self) -> int:
        return self.c2w.shape[0]

    @property
    def w2c(self) -> Tensor:
        """(V, 4, 4) world to camera: the rigid inverse of ``c2w``."""
        return invert_rigid(self.c2w)

    @property
    def positions(self) -> Tensor:
        """(V, 3) camera centres in the world."""
        return self.c2w[:, :3, 3]

    @property
    def fov_y_deg(self) -> Tensor:
        """(V,) full vertical field of view in degrees, for a centred principal point."""
        return torch.rad2deg(2 * torch.atan(0.5 / self.intrinsics[:, 1, 1]))

    def to(self, device: torch.device | str) -> Cameras:
        """The same cameras on another device."""
        return Cameras(self.c2w.to(device), self.intrinsics.to(device))

    def select(self, indices: Sequence[int]) -> Cameras:
        """The cameras at ``indices``, in that order."""
        index = torch.as_tensor(list(indices), dtype=torch.long, device=self.c2w.device)
        return Cameras(self.c2w[index], self.intrinsics[index])

    def scaled(self, factor: float) -> Cameras:
        """The same pictures in a world whose lengths are ``factor`` times as long: positions grow, nothing turns.

        Raises:
            CameraError: ``factor`` is not positive.
        """
        if not 0 < factor < float("inf"):
            raise CameraError(f"a world is scaled by a positive number, found {factor}.")
        c2w = self.c2w.clone()
        c2w[:, :3, 3] *= factor
        return Cameras(c2w, self.intrinsics)

    @staticmethod
    def cat(parts: Sequence[Cameras]) -> Cameras:
        """All cameras of ``parts``, one after the other."""
        return Cameras(torch.cat([p.c2w for p in parts]), torch.cat([p.intrinsics for p in parts]))


def orbit(
    azimuth_deg: Sequence[float] | Tensor | float,
    elevation_deg: Sequence[float] | Tensor | float,
    distance: Sequence[float] | Tensor | float,
    fov_y_deg: Sequence[float] | Tensor | float,
) -> Cameras:
    """Place cameras on a sphere about the origin, looking at it, world z up.

    Args:
        azimuth_deg: V numbers or one, 0 = +x, toward +y.
        elevation_deg: V numbers or one, in [-90, 90]; at the poles the picture's up is -cos/sin of the azimuth.
        distance: V numbers or one, camera centre to origin, world units, > 0.
        fov_y_deg: V numbers or one, full vertical field of view, in (0, 180); square pixels, square image.

    Returns:
        V `Cameras` in float32, V the longest of the four.

    Raises:
        CameraError: lengths that do not go together, distance or field of view out of range.
    """
    given = (azimuth_deg, elevation_deg, distance, fov_y_deg)
    parts = [torch.as_tensor(x, dtype=torch.float64).reshape(-1) for x in given]
    count = max(p.numel() for p in parts)
    if any(p.numel() not in (1, count) for p in parts):
        raise CameraError(
            f"orbit wants lists of one length or single numbers, found lengths {[p.numel() for p in parts]}."
        )
    azimuth, elevation, dist, fov = (p.expand(count) for p in parts)
    if (dist <= 0).any() or not ((fov > 0) & (fov < 180)).all():
        raise CameraError(
            f"orbit wants distance > 0 and 0 < fov_y_deg < 180, found distance {dist.min():.4g} and "
            f"field of view {fov.min():.4g} to {fov.max():.4g}."
        )
    if (elevation.abs() > 90).any():
        raise CameraError(f"elevation_deg must lie in [-90, 90], found {elevation.abs().max():.4g}.")
    a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    zero = torch.zeros_like(a)
    # The three camera axes in closed form, so that the poles need no special case.
    right = torch.stack([-a.sin(), a.cos(), zero], -1)
    up = torch.stack([-e.sin() * a.cos(), -e.sin() * a.sin(), e.cos()], -1)
    back = torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], -1)
    c2w = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    c2w[:, :3, :3] = torch.stack([right, up, back], -1)
    c2w[:, :3, 3] = back * dist[:, None]
    return Cameras(c2w.float(), intrinsics_from_fov(fov).float())


def orbit_angles(cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Where cameras stand, seen from the origin: the numbers that `orbit` takes, whatever the cameras look at.

    Returns:
        (V,) float64 azimuths in [0, 360) degrees (0 straight above and below), (V,) elevations in degrees, and (V,)
        distances in world units.
    """
    x, y, z = cameras.positions.double().unbind(-1)
    azimuth = torch.rad2deg(torch.atan2(y, x)) % 360
    # A hair below 0 would come out as 360 less a hair.
    azimuth = torch.where(360 - azimuth < 1e-4, 0.0, azimuth)
    return azimuth, torch.rad2deg(torch.atan2(z, torch.hypot(x, y))), cameras.positions.double().norm(dim=-1)


def look_at(position: Tensor, target: Tensor, up: Tensor | None = None) -> Tensor:
    """Build c2w matrices of cameras at ``position`` that look at ``target``.

    Args:
        position: (V, 3) or (3,) world units.
        target: (V, 3) or (3,) world units, different from ``position``.
        up: (3,) world direction that shall be up in the picture; +z by default.

    Returns:
        (V, 4, 4) c2w with OpenGL axes, in the dtype of ``position``.

    Raises:
        CameraError: position equals target, or the view direction is parallel to ``up``.
    """
    position = position.reshape(-1, 3)
    target = target.to(position).reshape(-1, 3).expand_as(position)
    up = position.new_tensor([0.0, 0.0, 1.0]) if up is None else up.to(position)
    back = position - target
    length = back.norm(dim=-1, keepdim=True)
    right = torch.linalg.cross(up.expand_as(back), back)
    if (length < 1e-12).any() or (right.norm(dim=-1) < 1e-6 * length[:, 0]).any():
        raise CameraError(
            "look_at wants a position away from its target and a view direction that is not along up. "
            "For a view from straight above use orbit(elevation_deg=90) or another up."
        )
    back = back / length
    right = right / right.norm(dim=-1, keepdim=True)
    c2w = torch.eye(4, dtype=position.dtype, device=position.device).repeat(len(position), 1, 1)
    c2w[:, :3, :3] = torch.stack([right, torch.linalg.cross(back, right), back], -1)
    c2w[:, :3, 3] = position
    return c2w


def intrinsics_from_fov(fov_y_deg: Tensor | float, aspect: float = 1.0) -> Tensor:
    """Normalised intrinsics (V, 3, 3) for full vertical fields of view; principal point centred.

    Args:
        fov_y_deg: (V,) or a number, degrees in (0, 180).
        aspect: width / height of the image, square pixels.
    """
    fov = torch.as_tensor(fov_y_deg, dtype=torch.float64).reshape(-1)
    focal = 0.5 / torch.tan(torch.deg2rad(fov) / 2)
    k = torch.zeros(fov.numel(), 3, 3, dtype=torch.float64)
    k[:, 0, 0] = focal / aspect
    k[:, 1, 1] = focal
    k[:, :2, 2] = 0.5
    k[:, 2, 2] = 1.0
    return k


def crop_intrinsics(intrinsics: Tensor, left: float, top: float, width: float, height: float) -> Tensor:
    """Intrinsics (V, 3, 3) of a crop, given in fractions of the full image (0..1, may reach outside)."""
    k = intrinsics.clone()
    k[:, 0, :] = k[:, 0, :] / width
    k[:, 1, :] = k[:, 1, :] / height
    k[:, 0, 2] = (intrinsics[:, 0, 2] - left) / width
    k[:, 1, 2] = (intrinsics[:, 1, 2] - top) / height
    return k


def rays(cameras: Cameras, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Shoot one ray through every pixel centre.

    Args:
        cameras: V cameras.
        height, width: image size in pixels, > 0.

    Returns:
        ``ray_origins`` and ``ray_directions``, both (V, height * width, 3) world units; directions have unit
        length; row-major, row 0 at the top.
    """
    like = cameras.c2w
    v, u = torch.meshgrid(
        (torch.arange(height, dtype=like.dtype, device=like.device) + 0.5) / height,
        (torch.arange(width, dtype=like.dtype, device=like.device) + 0.5) / width,
        indexing="ij",
    )
    k = cameras.intrinsics[:, :, :, None]
    y = (v.reshape(-1) - k[:, 1, 2]) / k[:, 1, 1]
    x = (u.reshape(-1) - k[:, 0, 2] - k[:, 0, 1] * y) / k[:, 0, 0]
    local = torch.stack([x, -y, -torch.ones_like(x)], -1)
    world = local @ cameras.c2w[:, :3, :3].transpose(1, 2)
    directions = world / world.norm(dim=-1, keepdim=True)
    return cameras.positions[:, None, :].expand_as(directions), directions


def project(cameras: Cameras, points: Tensor) -> tuple[Tensor, Tensor]:
    """Project world points into every camera.

    Args:
        cameras: V cameras.
        points: (N, 3) or (V, N, 3), world units.

    Returns:
        ``uv`` (V, N, 2) in normalised image coordinates (0..1 inside, v down), and ``depth`` (V, N) along the
        camera's forward axis in world units; where depth is not positive, ``uv`` means nothing. Differentiable.
    """
    points = points if points.ndim == 3 else points.expand(len(cameras), -1, -1)
    local = (points - cameras.positions[:, None, :]) @ cameras.c2w[:, :3, :3]
    depth = -local[..., 2]
    safe = torch.where(depth.abs() < 1e-9, torch.full_like(depth, 1e-9), depth)
    x, y = local[..., 0] / safe, -local[..., 1] / safe
    k = cameras.intrinsics[:, :, :, None]
    u = k[:, 0, 0] * x + k[:, 0, 1] * y + k[:, 0, 2]
    v = k[:, 1, 1] * y + k[:, 1, 2]
    return torch.stack([u, v], -1), depth


def invert_rigid(transform: Tensor) -> Tensor:
    """Inverse (..., 4, 4) of rigid transforms, exact up to rounding: transpose the rotation."""
    inverse = torch.zeros_like(transform)
    rotation_t = transform[..., :3, :3].transpose(-1, -2)
    inverse[..., :3, :3] = rotation_t
    inverse[..., :3, 3] = -(rotation_t @ transform[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1
    return inverse


def opengl_from_opencv(c2w: Tensor) -> Tensor:
    """c2w (..., 4, 4) with OpenCV axes (x right, y down, looks along +z) → OpenGL axes. Its own inverse."""
    return c2w * c2w.new_tensor(_OPENCV_FROM_OPENGL)


def opencv_from_opengl(c2w: Tensor) -> Tensor:
    """c2w (..., 4, 4) with OpenGL axes → OpenCV axes (x right, y down, looks along +z)."""
    return c2w * c2w.new_tensor(_OPENCV_FROM_OPENGL)


def opengl_from_blender(matrix_world: Tensor) -> Tensor:
    """Blender's camera ``matrix_world`` (..., 4, 4) → c2w here: drop the scale, axes and z-up world are the same."""
    c2w = matrix_world.clone()
    c2w[..., :3, :3] = c2w[..., :3, :3] / c2w[..., :3, :3].norm(dim=-2, keepdim=True)
    return c2w


def blender_from_opengl(c2w: Tensor) -> Tensor:
    """c2w (..., 4, 4) → Blender's camera ``matrix_world``: the same numbers, a copy."""
    return c2w.clone()


def gltf_from_world(points: Tensor) -> Tensor:
    """World (x, y, z), z up, source camera at +x → file axes (y, z, x): y up, photographed side toward +z."""
    return points[..., [1, 2, 0]]


def world_from_gltf(points: Tensor) -> Tensor:
    """File axes (x, y, z), y up, front +z → world (z, x, y): z up, front +x."""
    return points[..., [2, 0, 1]]


def pitch_rotation(pitch_deg: float | Tensor) -> Tensor:
    """Rotation (3, 3) or (B, 3, 3) about y that lifts +x by ``pitch_deg``: it maps +x to (cos, 0, sin).

    A network that predicts in the frame of a camera at elevation e (camera on its own +x) is stood upright by
    ``world = points @ pitch_rotation(e).T``.
    """
    rad = torch.deg2rad(torch.as_tensor(pitch_deg, dtype=torch.float32))
    c, s, zero, one = rad.cos(), rad.sin(), torch.zeros_like(rad), torch.ones_like(rad)
    rows = [torch.stack([c, zero, -s], -1), torch.stack([zero, one, zero], -1), torch.stack([s, zero, c], -1)]
    return torch.stack(rows, -2)


def yaw_rotation(yaw_deg: float | Tensor) -> Tensor:
    """Rotation (3, 3) or (B, 3, 3) about z by ``yaw_deg``, +x toward +y."""
    rad = torch.deg2rad(torch.as_tensor(yaw_deg, dtype=torch.float32))
    c, s, zero, one = rad.cos(), rad.sin(), torch.zeros_like(rad), torch.ones_like(rad)
    rows = [torch.stack([c, -s, zero], -1), torch.stack([s, c, zero], -1), torch.stack([zero, zero, one], -1)]
    return torch.stack(rows, -2)
