"""Make the example pictures from objects that this project makes: ``python -m train.examples -o FOLDER``.

The objects come from ``train.shapes`` with fixed seeds, so the pictures are the project's own. The renderer is a small
ray caster: one sun with shadow, an ambient light from the sky that is darker in corners, 16 samples a pixel.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from multiview.cameras import Cameras, orbit, rays
from multiview.errors import SettingsError
from multiview.files import written_whole

from .shapes import Shape, make_parts
from .shapes.finish import finish

Floats = NDArray[np.float64]
FOV_DEG = 40.0
_SKY_DIRECTIONS = 24
_FLOOR_COLOR = 0.62
# Linear grey of a plain backdrop; the floor runs into it without a horizon.
_BACKDROP = 0.66


@dataclass(frozen=True)
class Example:
    """One picture: what to make, from which seed, seen from where."""

    file: str
    family: str
    seed: int
    azimuth_deg: float
    elevation_deg: float
    floor: bool = False


EXAMPLES: tuple[Example, ...] = (
    Example("chair.png", "chair", 1, 35.0, 18.0),
    Example("teapot.png", "teapot", 29, 55.0, 16.0),
    Example("house.png", "house", 15, 35.0, 18.0),
    Example("car.png", "car", 12, 40.0, 17.0),
    Example("mushroom-grey.png", "mushroom", 91, 35.0, 18.0, floor=True),
)


class _Scene:
    """Triangles that can be asked for first hits and for shadow."""

    def __init__(self, vertices: Floats, faces: NDArray[np.int64], colors: Floats) -> None:
        """Take vertices (N, 3), faces (F, 3) and linear face colours (F, 3) in [0, 1]; needs embreex."""
        import trimesh
        from trimesh.ray.ray_pyembree import RayMeshIntersector

        mesh = trimesh.Trimesh(vertices, faces, process=False)
        self.caster: Any = RayMeshIntersector(mesh)
        self.vertices, self.faces, self.colors = vertices, faces, colors
        self.normals = np.asarray(mesh.face_normals, dtype=np.float64)

    def first_hits(self, origins: Floats, directions: Floats) -> NDArray[np.int64]:
        """Face index (M,) that each ray meets first, -1 for none."""
        return np.asarray(self.caster.intersects_first(origins, directions), dtype=np.int64)

    def blocked(self, points: Floats, directions: Floats) -> NDArray[np.bool_]:
        """(M,) whether something stands in the way from each point."""
        return self.first_hits(points, directions) >= 0


def linear_from_srgb(color: Floats) -> Floats:
    """Display values in [0, 1] → linear light."""
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def srgb_from_linear(color: Floats) -> Floats:
    """Linear light in [0, 1] → display values."""
    color = np.clip(color, 0, 1)
    return np.where(color <= 0.0031308, color * 12.92, 1.055 * color ** (1 / 2.4) - 0.055)


def make_shape(example: Example) -> Shape:
    """The example's object, its front toward +x."""
    return finish(make_parts(example.family, np.random.default_rng(example.seed)), example.family, 0)


def framing_camera(vertices: Floats, azimuth_deg: float, elevation_deg: float) -> Cameras:
    """One camera whose picture the object (N, 3) about the origin fills to about four fifths."""
    low, high = 1.0, 6.0
    for _ in range(30):
        middle = (low + high) / 2
        camera = orbit(azimuth_deg, elevation_deg, middle, FOV_DEG)
        local = (vertices - camera.positions[0].numpy()) @ camera.c2w[0, :3, :3].numpy()
        spread = np.abs(local[:, :2] / -local[:, 2:]).max() / np.tan(np.deg2rad(FOV_DEG / 2))
        low, high = (middle, high) if spread > 0.82 else (low, middle)
    return orbit(azimuth_deg, elevation_deg, high, FOV_DEG)


def sky_directions(count: int) -> Floats:
    """(count, 3) unit directions over the upper hemisphere and a little below the horizon, evenly spread."""
    k = np.arange(count) + 0.5
    z = 1 - 1.25 * k / count
    angle = k * np.pi * (3 - np.sqrt(5))
    flat = np.sqrt(1 - z * z)
    return np.column_stack([flat * np.cos(angle), flat * np.sin(angle), z])


def shade_points(scene: _Scene, points: Floats, normals: Floats, albedo: Floats, sun: Floats) -> Floats:
    """Linear colour (M, 3): a sun that casts shadows and a sky that is dimmer near other surfaces."""
    lit_from = points + normals * 1e-4
    facing = np.clip(normals @ sun, 0, None)
    seen = facing > 0
    seen[seen] = ~scene.blocked(lit_from[seen], np.broadcast_to(sun, (int(seen.sum()), 3)))
    light = 0.75 * (facing * seen)[:, None] * np.array([1.0, 0.97, 0.92])
    sky, weight = np.zeros(len(points)), np.zeros(len(points))
    for direction in sky_directions(_SKY_DIRECTIONS):
        cosine = np.clip(normals @ direction, 0, None)
        up = cosine > 0
        free = np.zeros(len(points), dtype=bool)
        free[up] = ~scene.blocked(lit_from[up], np.broadcast_to(direction, (int(up.sum()), 3)))
        brightness = 0.55 + 0.45 * max(direction[2], 0.0)
        sky += cosine * free * brightness
        weight += cosine
    ambient = 0.08 + 0.5 * sky / np.maximum(weight, 1e-9)
    return albedo * (light + ambient[:, None] * np.array([0.96, 0.98, 1.04]))


def build_scene(shape: Shape, floor: bool) -> _Scene:
    """The object, and with ``floor`` a wide light-grey ground under it."""
    vertices = shape.vertices.astype(np.float64)
    faces = shape.faces.astype(np.int64)
    colors = linear_from_srgb(shape.colors[faces].mean(1) / 255.0)
    if floor:
        z = vertices[:, 2].min()
        corners = np.array([(x, y, z) for x, y in ((-40, -40), (40, -40), (40, 40), (-40, 40))], dtype=np.float64)
        ground = np.array([(0, 1, 2), (0, 2, 3)]) + len(vertices)
        vertices, faces = np.concatenate([vertices, corners]), np.concatenate([faces, ground])
        colors = np.concatenate([colors, np.full((2, 3), _FLOOR_COLOR)])
    return _Scene(vertices, faces, colors)


def render(shape: Shape, example: Example, image_size: int = 512, supersample: int = 4) -> NDArray[np.uint8]:
    """Draw a shape.

    Args:
        shape: the object.
        example: gives the camera and whether there is a floor.
        image_size: side of the picture in pixels.
        supersample: rays along each side of a pixel.

    Returns:
        (image_size, image_size, 4) straight-alpha sRGB; (…, 3) with a floor.
    """
    scene = build_scene(shape, example.floor)
    side = image_size * supersample
    camera = framing_camera(shape.vertices.astype(np.float64), example.azimuth_deg, example.elevation_deg)
    origin, along = (t[0].double().numpy() for t in rays(camera, side, side))
    face = scene.first_hits(origin, along)
    hit = face >= 0
    a, normal = scene.vertices[scene.faces[face[hit], 0]], scene.normals[face[hit]]
    slope = np.einsum("ij,ij->i", normal, along[hit])
    depth = np.einsum("ij,ij->i", normal, a - origin[hit]) / np.where(np.abs(slope) < 1e-9, 1e-9, slope)
    points = origin[hit] + depth[:, None] * along[hit]
    toward = np.where(slope[:, None] > 0, -normal, normal)
    sun = sun_direction(example.azimuth_deg)
    color = np.zeros((side * side, 4))
    color[hit, :3] = shade_points(scene, points, toward, scene.colors[face[hit]], sun)
    color[hit, 3] = 1.0
    if example.floor:
        ground = face >= len(shape.faces)
        color[ground, :3] *= _BACKDROP / open_floor_color(scene, sun)
        color[~hit] = (_BACKDROP, _BACKDROP, _BACKDROP, 1.0)
    return _to_bytes(color.reshape(image_size, supersample, image_size, supersample, 4).mean((1, 3)), example.floor)


def sun_direction(azimuth_deg: float) -> Floats:
    """(3,) unit direction toward the sun: left of the camera at ``azimuth_deg`` and high."""
    turn = np.deg2rad(azimuth_deg - 50)
    sun = np.array([np.cos(turn), np.sin(turn), 1.15])
    return np.asarray(sun / np.linalg.norm(sun))


def open_floor_color(scene: _Scene, sun: Floats) -> Floats:
    """(3,) linear colour of the floor far from everything: what the backdrop's grey is measured against."""
    far = np.array([[30.0, 30.0, scene.vertices[:, 2].min()]])
    return shade_points(scene, far, np.array([[0.0, 0.0, 1.0]]), np.full((1, 3), _FLOOR_COLOR), sun)[0]


def _to_bytes(color: Floats, opaque: bool) -> NDArray[np.uint8]:
    """Linear, alpha-weighted (H, W, 4) → straight sRGB bytes (H, W, 4), or (H, W, 3) when ``opaque``."""
    alpha = color[..., 3:]
    straight = srgb_from_linear(color[..., :3] / np.maximum(alpha, 1e-6))
    picture = straight if opaque else np.concatenate([straight, alpha], -1)
    return np.round(picture * 255).astype(np.uint8)


def write_examples(folder: str | Path, image_size: int = 512, only: Sequence[str] = ()) -> list[Path]:
    """Write the example pictures as PNG into ``folder``.

    Args:
        folder: made when missing.
        image_size: side in pixels, at least 16.
        only: file names to make; all when empty.

    Returns:
        The written paths.

    Raises:
        SettingsError: ``image_size`` too small, or a name in ``only`` that is not an example.
        OutputError: a file could not be written.
    """
    from PIL import Image

    names = [example.file for example in EXAMPLES]
    unknown = [name for name in only if name not in names]
    if image_size < 16 or unknown:
        found = f"found {unknown[0]!r}" if unknown else f"image_size {image_size}, expected 16 or more"
        raise SettingsError(f"examples: {found}; the names are {', '.join(names)}.")
    paths = []
    for example in EXAMPLES:
        if only and example.file not in only:
            continue
        path = Path(folder) / example.file
        picture = Image.fromarray(render(make_shape(example), example, image_size))
        with written_whole(path) as aside:
            picture.save(aside, optimize=True)
        paths.append(path)
    return paths


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``python -m train.examples``."""
    parser = argparse.ArgumentParser(description="Make the example pictures from the project's own shapes.")
    parser.add_argument("-o", "--output", required=True, help="folder for the PNG files")
    parser.add_argument("--size", type=int, default=512, help="side in pixels (default: 512)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for path in write_examples(options.output, options.size):
        print(f"{path}  {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
