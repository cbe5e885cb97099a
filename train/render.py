"""Training views: random cameras, and colour, matte and normals of one object seen from them, with embree.

A view is already cropped to the object, as the network will see it. Because the silhouette's box is the box of the
projected vertices, the crop is known before a ray is shot.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from multiview.errors import SettingsError

from .materials import Material, Sun
from .objects import TrainingObject
from .textures import SkinPainter, sample_area

RENDERERS = ("auto", "embree", "torch")
_HALVINGS = 20  # of the range of distances: to some millionths of a longest side
CREASE_COS = 0.75  # smooth shading where a vertex normal stays within 41 degrees of its face


@dataclass(frozen=True)
class CropCamera:
    """A camera whose picture is cropped square about the object.

    Attributes:
        azimuth_deg, elevation_deg: direction of the camera, world frame.
        distance: camera centre to the box's centre in longest sides.
        center: (2,) centre of the crop on the plane at depth 1, right and up.
        half: half side of the crop on the plane at depth 1, so that 1 / half is its focal length in half images.
    """

    azimuth_deg: float
    elevation_deg: float
    distance: float
    center: tuple[float, float]
    half: float

    @property
    def fov_deg(self) -> float:
        """Field of view of the crop."""
        return float(np.rad2deg(2 * np.arctan(self.half)))

    def as_row(self) -> np.ndarray:
        """(6,) float32: azimuth, elevation, distance, centre x, centre y, half."""
        return np.array([self.azimuth_deg, self.elevation_deg, self.distance, *self.center, self.half], np.float32)


def camera_axes(azimuth_deg: float, elevation_deg: float) -> np.ndarray:
    """Rows right, up, back of a camera that looks at the origin: (3, 3) float64."""
    a, e = np.deg2rad([azimuth_deg, elevation_deg])
    return np.array(
        [
            [-np.sin(a), np.cos(a), 0],
            [-np.sin(e) * np.cos(a), -np.sin(e) * np.sin(a), np.cos(e)],
            [np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)],
        ]
    )


def crop_camera(
    vertices: np.ndarray, azimuth_deg: float, elevation_deg: float, distance: float, foreground_ratio: float = 0.85
) -> CropCamera:
    """Frame an object: the longest side of its silhouette's box fills ``foreground_ratio`` of the crop.

    Args:
        vertices: (N, 3), world frame.
        distance: camera to origin, greater than the object's reach.
        foreground_ratio: in (0, 1].
    """
    local = vertices @ camera_axes(azimuth_deg, elevation_deg).T
    plane = local[:, :2] / (distance - local[:, 2:])
    low, high = plane.min(0), plane.max(0)
    center = (low + high) / 2
    half = float((high - low).max()) / 2 / foreground_ratio
    return CropCamera(azimuth_deg, elevation_deg, distance, (float(center[0]), float(center[1])), half)


@dataclass(frozen=True)
class CameraDraw:
    """How cameras are drawn; azimuths are uniform.

    Attributes:
        elevation_deg: range of all elevations.
        usual_elevation_deg, usual_share: where photographs are mostly taken from, and the share of the views drawn
            from there; the others are uniform over all.
        distance: camera to the middle of the object, longest sides.
        fov_deg: of the cropped picture, which is all that a network can know of a photograph's. Uniform over what the
            object has within ``distance``.
        foreground_ratio: as `crop_camera`'s.
    """

    elevation_deg: tuple[float, float] = (-20.0, 50.0)
    usual_elevation_deg: tuple[float, float] = (-5.0, 35.0)
    usual_share: float = 0.7
    distance: tuple[float, float] = (1.5, 4.0)
    fov_deg: tuple[float, float] = (10.0, 60.0)
    foreground_ratio: tuple[float, float] = (0.82, 0.88)


def random_crop_camera(vertices: np.ndarray, rng: np.random.Generator, draw: CameraDraw | None = None) -> CropCamera:
    """Draw a camera.

    An object too narrow (too wide) for every field of view asked for is seen from the nearest (farthest) distance.

    Args:
        vertices: (N, 3), world frame, longest side 1 about the origin.
        rng: all randomness.
        draw: from where.
    """
    draw = draw or CameraDraw()
    usual = rng.random() < draw.usual_share
    elevation = rng.uniform(*(draw.usual_elevation_deg if usual else draw.elevation_deg))
    azimuth, ratio = rng.uniform(0, 360), rng.uniform(*draw.foreground_ratio)

    def at(distance: float) -> CropCamera:
        return crop_camera(vertices, azimuth, elevation, distance, ratio)

    near, far = draw.distance
    wanted = rng.uniform(*np.clip([at(far).fov_deg, at(near).fov_deg], *draw.fov_deg))
    for _ in range(_HALVINGS):  # the farther away, the narrower
        middle = (near + far) / 2
        near, far = (middle, far) if at(middle).fov_deg > wanted else (near, middle)
    return at((near + far) / 2)


class Renderer(Protocol):
    """An object ready to be seen: `Caster` here, `TorchCaster` in ``torchrender.py``."""

    def views(
        self,
        cameras: Sequence[CropCamera],
        image_size: int,
        *,
        supersample: int = 2,
        smooth: Sequence[bool] | None = None,
    ) -> np.ndarray:
        """(V, image_size, image_size, 7) uint8; see `Caster.view`."""
        ...


def pick_renderer(name: str, device: str) -> str:
    """``embree`` or ``torch`` for ``auto``: embree on a CPU that has it, as it is many times faster there.

    Raises:
        SettingsError: an unknown name, embree where it is not installed, or embree and an accelerator.
    """
    if name not in RENDERERS:
        raise SettingsError(f"--renderer {name}: expected one of {', '.join(RENDERERS)}.")
    has_embree = importlib.util.find_spec("embreex") is not None
    on_cpu = device == "cpu"
    if name == "embree" and not (has_embree and on_cpu):
        reason = (
            f"works on the CPU, not on {device}" if has_embree else "is not installed (pip install 'trilift[train]')"
        )
        raise SettingsError(f"--renderer embree: embree {reason}. Try --renderer torch.")
    return name if name != "auto" else "embree" if has_embree and on_cpu else "torch"


class Caster:
    """An object ready for rays.

    Args:
        obj: what is rendered; both sides of every face are seen.
        material: a pattern over its colours, or None.
        sun: what lights it, or None; with a sun, views have two channels more.

    Raises:
        ImportError: embreex is missing; it comes with the extra ``train``.
    """

    def __init__(self, obj: TrainingObject, material: Material | None = None, sun: Sun | None = None) -> None:
        from embreex import rtcore_scene
        from embreex.mesh_construction import TriangleMesh

        self.obj, self.material, self.sun = obj, material, sun
        self.scene: Any = rtcore_scene.EmbreeScene()
        TriangleMesh(self.scene, np.ascontiguousarray(obj.vertices[obj.faces], dtype=np.float32))
        self.face_normals, self.corner_normals = surface_normals(obj)
        self.painter = None if obj.skin is None else SkinPainter(obj.skin, obj.vertices, obj.faces)

    def views(
        self,
        cameras: Sequence[CropCamera],
        image_size: int,
        *,
        supersample: int = 2,
        smooth: Sequence[bool] | None = None,
    ) -> np.ndarray:
        """`view` of each camera: (V, image_size, image_size, 7) uint8."""
        bent = [False] * len(cameras) if smooth is None else smooth
        pairs = zip(cameras, bent, strict=True)
        return np.stack([self.view(c, image_size, supersample=supersample, smooth=s) for c, s in pairs])

    def view(self, camera: CropCamera, image_size: int, *, supersample: int = 2, smooth: bool = False) -> np.ndarray:
        """Render one crop.

        Args:
            camera: where from.
            image_size: pixels per side.
            supersample: rays per pixel and axis.
            smooth: interpolate normals where the surface bends gently.

        Returns:
            (image_size, image_size, 7) uint8: straight sRGB albedo, alpha, and the camera-frame normal (right, up,
            back) as 128 + 127 n, turned toward the camera. With a sun 9: then its cosine, 0 in shadow, and the
            highlight, both times 255.
        """
        side = image_size * supersample
        axes = camera_axes(camera.azimuth_deg, camera.elevation_deg)
        steps = ((np.arange(side) + 0.5) / side * 2 - 1) * camera.half
        x, y = np.meshgrid(camera.center[0] + steps, camera.center[1] - steps)
        local = np.stack([x, y, -np.ones_like(x)], -1).reshape(-1, 3)
        directions = (local @ axes).astype(np.float32)
        origins = np.broadcast_to((axes[2] * camera.distance).astype(np.float32), directions.shape)
        hits = self.scene.run(np.ascontiguousarray(origins), directions, output=1)
        face = hits["primID"]
        hit = face >= 0
        face, u, v = face[hit], hits["u"][hit], hits["v"][hit]
        weights = np.stack([1 - u - v, u, v], 1).astype(np.float32)
        color = _blend(self.obj.colors[self.obj.faces[face]].astype(np.float32), weights)
        if self.painter is not None:
            along = _dot(local[hit], self.face_normals[face] @ axes.T)
            depth, cosine, shades, shares = map(torch.from_numpy, (hits["tfar"][hit], along, color, weights))
            area = sample_area((2 * camera.half / side) ** 2, depth, cosine)
            color = self.painter.paint(shades, torch.from_numpy(face).long(), shares, area).numpy()
        normal = _blend(self.corner_normals[face], weights) if smooth else self.face_normals[face]
        normal = normal @ axes.T.astype(np.float32)
        normal = normal * np.where(_dot(local[hit], normal) > 0, -1, 1)[:, None]
        normal /= np.maximum(np.sqrt(_dot(normal, normal)), 1e-9)[:, None]
        full = np.zeros((side * side, 7 if self.sun is None else 9), np.float32)
        points = origins[hit] + directions[hit] * hits["tfar"][hit][:, None]
        if self.material is not None:
            color = self.material.paint(points, color)
        if self.sun is not None:
            away = directions[hit]
            toward_camera = -away / np.sqrt(_dot(away, away))[:, None]
            shaded = self.sun.shade(self.scene, points, normal @ axes.astype(np.float32), toward_camera)
            full[hit, 7:] = 255 * np.stack(shaded, 1)
        full[hit, :3], full[hit, 3], full[hit, 4:7] = color, 255, normal
        return _shrink(full.reshape(side, side, full.shape[1]), supersample)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Products (N,) of rows (N, 3); numpy is slow at sums over three numbers."""
    return np.asarray(a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2])


def _blend(corners: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Values (N, C) between those of triangles' corners (N, 3, C) by weights (N, 3)."""
    parts = [corners[:, k] * weights[:, k, None] for k in range(3)]
    return np.asarray(parts[0] + parts[1] + parts[2])


def _shrink(full: np.ndarray, factor: int) -> np.ndarray:
    """Average ``factor`` x ``factor`` samples; all but the matte over the hit samples only."""
    h, w, c = full.shape
    total = full.reshape(h // factor, factor, w // factor, factor, c).sum((1, 3))
    hits = np.maximum(total[..., 3:4] / 255, 1)
    out = np.empty(total.shape, np.uint8)
    out[..., :3] = np.round(total[..., :3] / hits)
    out[..., 3] = np.round(total[..., 3] / factor**2)
    normal = total[..., 4:7] / np.maximum(np.linalg.norm(total[..., 4:7], axis=-1, keepdims=True), 1e-9)
    out[..., 4:7] = np.round(128 + 127 * normal)
    out[..., 7:] = np.round(total[..., 7:] / hits)
    return out


def surface_normals(obj: TrainingObject) -> tuple[np.ndarray, np.ndarray]:
    """Unit face normals (F, 3) and corner normals (F, 3, 3): smooth over gentle bends, flat over creases."""
    corners = obj.vertices[obj.faces].astype(np.float64)
    weighted = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat = weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-12)
    _, place = np.unique(np.round(obj.vertices, 5), axis=0, return_inverse=True)
    place = place.reshape(-1)[obj.faces]
    sums = np.zeros((place.max() + 1, 3))
    for corner in range(3):
        np.add.at(sums, place[:, corner], weighted)
    smooth = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    at_corner = smooth[place]
    gentle = (at_corner * flat[:, None]).sum(-1, keepdims=True) > CREASE_COS
    return flat.astype(np.float32), np.where(gentle, at_corner, flat[:, None]).astype(np.float32)


if __name__ == "__main__":
    from .renderset import main

    raise SystemExit(main())
