"""Drawing a mesh: a small z-buffer rasteriser in numpy, for turntables, contact sheets and checks.

No OpenGL and no compiler. The rows of all triangles, then the pixels of all rows, are listed with array operations, so
the cost follows the number of pixels covered (all layers), plus a little per triangle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from multiview.cameras import Cameras, project
from multiview.errors import SettingsError
from multiview.views import Views

from .mesh import Mesh

Floats = NDArray[np.floating[Any]]

_CHUNK = 1 << 21  # pixels of triangles' boxes per pass; changes memory, never results
_NEAR = 1e-4  # of the camera's distance to the farthest vertex: triangles that reach nearer are left out
_EDGE = 1e-9  # pixels by which a row reaches over a triangle's edges
_NO_AREA = 1e-12  # square pixels (twice the area): triangles seen edge-on, which cover nothing
# Where the light stands in the camera frame (x right, y up, z toward the viewer), and how much of it is everywhere.
_LIGHT = np.array([-0.35, 0.55, 0.76])
_AMBIENT = 0.55


@dataclass(frozen=True)
class Fragments:
    """What one camera sees at each pixel centre.

    Attributes:
        face: (H, W) int64 index of the nearest face, -1 where there is none.
        weights: (H, W, 3) float64 barycentric weights of that face's corners on its surface (perspective-correct), 0
            where there is none; they sum to 1.
        depth: (H, W) float64 along the camera's forward axis, world units; 0 where there is none.
    """

    face: NDArray[np.int64]
    weights: Floats
    depth: Floats


def rasterize(mesh: Mesh, camera: Cameras, height: int, width: int) -> Fragments:
    """Find the nearest face at every pixel centre; both sides of a face are seen.

    Args:
        mesh: in the world frame.
        camera: one camera. Triangles that reach behind it (or nearly touch its plane) are left out whole.
        height, width: pixels, > 0.

    Returns:
        `Fragments`. Where two faces have one depth, the lower index is taken, so the result has one value.

    Raises:
        SettingsError: not exactly one camera, or a size that is not positive.
    """
    if len(camera) != 1 or min(height, width) < 1:
        raise SettingsError(f"rasterize wants one camera and a positive size, found {len(camera)}, {height} x {width}.")
    corners, inverse_depth, faces = _screen_triangles(mesh, camera, height, width)
    nearest = np.zeros(height * width)
    winner = np.full(height * width, -1, np.int64)
    for chunk in _chunks(*_boxes(corners, height, width)):
        _draw(chunk, corners, inverse_depth, width, nearest, winner)
    return _fragments(winner, corners, inverse_depth, faces, height, width)


def rasterize_flat(corners: Floats, height: int, width: int) -> Fragments:
    """Find the triangle at every pixel centre of a plane, as in a texture.

    Args:
        corners: (F, 3, 2) float, x right and y *down* in pixels.
        height, width: pixels, > 0.

    Returns:
        `Fragments` of depth 1; where triangles lie over each other, of the lowest index.
    """
    wide = np.asarray(corners, np.float64)
    ones = np.ones(wide.shape[:2])
    nearest, winner = np.zeros(height * width), np.full(height * width, -1, np.int64)
    for chunk in _chunks(*_boxes(wide, height, width)):
        _draw(chunk, wide, ones, width, nearest, winner)
    return _fragments(winner, wide, ones, np.arange(len(wide)), height, width)


def flat_spans(corners: Floats, height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every (triangle, pixel centre inside it) of a plane: two (P,) arrays, pixels numbered row * width + column.

    Args:
        corners, height, width: see `rasterize_flat`.
    """
    wide = np.asarray(corners, np.float64)
    triangles, pixels = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for chunk in _chunks(*_boxes(wide, height, width)):
        triangle, y, left, counts = _spans(*chunk, wide)
        row = np.repeat(np.arange(len(counts)), counts)
        offset = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        triangles.append(triangle[row])
        pixels.append((y * width + left)[row] + offset)
    return np.concatenate(triangles), np.concatenate(pixels)


def render_mesh(
    mesh: Mesh, cameras: Cameras, size: int | tuple[int, int], *, shading: bool = False, supersample: int = 2
) -> Views:
    """Draw a mesh with its texture where it has one, else with its vertex colours.

    Args:
        mesh: in the world frame.
        cameras: V cameras.
        size: pixels per side, or (height, width).
        shading: darken softly where the surface turns away from a light above the viewer's left shoulder; without it
            the picture shows the colours themselves.
        supersample: samples per pixel and axis; colour and alpha are their average.

    Returns:
        V `Views` in float32: straight sRGB, alpha the share of samples that hit; colour 0 where alpha is 0.

    Raises:
        SettingsError: a size or ``supersample`` that is not positive.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width, supersample) < 1:
        raise SettingsError(f"render_mesh wants positive sizes, found {height} x {width}, supersample {supersample}.")
    pictures = []
    for index in range(len(cameras)):
        camera = cameras.select([index])
        fragments = rasterize(mesh, camera, height * supersample, width * supersample)
        rgba = _paint(mesh, fragments, camera if shading else None)
        pictures.append(_shrink(rgba, supersample))
    stack = np.stack(pictures) if pictures else np.zeros((0, height, width, 4))
    alpha = stack[..., 3:]
    straight = np.where(alpha > 0, stack[..., :3] / np.maximum(alpha, 1e-12), 0.0).clip(0, 1)
    image, matte = (torch.from_numpy(x.astype(np.float32)).permute(0, 3, 1, 2).contiguous() for x in (straight, alpha))
    return Views(image, matte, cameras)


def _screen_triangles(mesh: Mesh, camera: Cameras, height: int, width: int) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Corners (T, 3, 2) in pixels, 1 / depth (T, 3) and the face index (T,) of every triangle before the camera."""
    double = Cameras(camera.c2w.double().cpu(), camera.intrinsics.double().cpu())
    uv, depth = (x[0].numpy() for x in project(double, torch.from_numpy(mesh.vertices).double()))
    seen = (depth[mesh.faces] > _NEAR * max(float(depth.max()), 1e-12)).all(1)
    faces = np.flatnonzero(seen)
    triangles = mesh.faces[faces]
    corners = (uv * (width, height))[triangles]
    return corners, 1 / depth[triangles], faces


def _boxes(corners: Floats, height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Boxes of pixel centres, for triangles that may hold one: index (T,), and (left, top, columns, rows) (T, 4)."""
    limit = np.array([width, height], np.float64)
    low = np.ceil(_least(corners) - 0.5).clip(0, limit)
    high = (np.floor(_most(corners) - 0.5) + 1).clip(0, limit)
    extent = np.maximum(high - low, 0)
    u, v = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    seen_edge_on = np.abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]) <= _NO_AREA
    index = np.flatnonzero((extent[:, 0] > 0) & (extent[:, 1] > 0) & ~seen_edge_on)
    return index, np.concatenate([low[index], extent[index]], 1).astype(np.int64)


def _chunks(index: NDArray[np.int64], boxes: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Split (index, boxes) so that the boxes of each part hold at most `_CHUNK` pixels, or it is one triangle."""
    total = np.cumsum(boxes[:, 2] * boxes[:, 3])
    parts, start = [], 0
    while start < len(index):
        done = total[start - 1] if start else 0
        stop = max(int(np.searchsorted(total, done + _CHUNK, side="right")), start + 1)
        parts.append((index[start:stop], boxes[start:stop]))
        start = stop
    return parts


def _draw(
    chunk: tuple[NDArray[np.int64], NDArray[np.int64]],
    corners: Floats,
    inverse_depth: Floats,
    width: int,
    nearest: Floats,
    winner: NDArray[np.int64],
) -> None:
    """Draw some triangles into the z-buffer ``nearest`` (1 / depth, larger is nearer) and ``winner``, in place."""
    triangle, y, left, counts = _spans(*chunk, corners)
    # 1 / depth is linear over the screen (depth is not), so a row of a triangle needs a start and a slope.
    slope, down = _gradient(corners[triangle], inverse_depth[triangle])
    start = inverse_depth[triangle, 0]
    start = start + slope * (left + 0.5 - corners[triangle, 0, 0]) + down * (y + 0.5 - corners[triangle, 0, 1])
    row = np.repeat(np.arange(len(counts)), counts)
    offset = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    inverse = start[row] + slope[row] * offset
    # Rounding in slivers must not carry a face nearer than its nearest corner.
    low, high = _least(inverse_depth[triangle]), _most(inverse_depth[triangle])
    inverse = np.clip(inverse, low[row], high[row])
    pixel = (y * width + left)[row] + offset
    before = nearest[pixel]
    np.maximum.at(nearest, pixel, inverse)
    won = (inverse == nearest[pixel]) & (inverse > before)
    # Of repeated pixels the last assignment stays: backwards, so that the lowest face index wins a tie.
    winner[pixel[won][::-1]] = triangle[row[won]][::-1]


def _spans(
    index: NDArray[np.int64], boxes: NDArray[np.int64], corners: Floats
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows of pixel centres inside triangles: triangle, y, leftmost x and count, each (rows,), in triangle order.

    Centres on an edge belong to both sides; `_EDGE` sees to it that rounding loses none between two triangles.
    """
    which = np.repeat(np.arange(len(index)), boxes[:, 3])
    y = boxes[which, 1] + np.arange(len(which)) - np.repeat(np.cumsum(boxes[:, 3]) - boxes[:, 3], boxes[:, 3])
    a = corners[index[which]]
    b = a[:, [1, 2, 0]]
    middle = (y + 0.5)[:, None]
    rise = b[..., 1] - a[..., 1]
    crossed = (middle >= np.minimum(a[..., 1], b[..., 1])) & (middle <= np.maximum(a[..., 1], b[..., 1])) & (rise != 0)
    x = a[..., 0] + (middle - a[..., 1]) / np.where(crossed, rise, 1.0) * (b[..., 0] - a[..., 0])
    first = _least(np.where(crossed, x, np.inf))
    last = _most(np.where(crossed, x, -np.inf))
    # Clipped to the triangle's box, which lies inside the picture.
    left, right = boxes[which, 0], boxes[which, 0] + boxes[which, 2]
    left = np.clip(np.ceil(first - 0.5 - _EDGE), left, right).astype(np.int64)
    stop = np.clip(np.floor(last - 0.5 + _EDGE) + 1, boxes[which, 0], right).astype(np.int64)
    keep = np.flatnonzero(stop > left)
    return index[which[keep]], y[keep], left[keep], (stop - left)[keep]


def _gradient(corners: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Slope per pixel in x and in y, each (T,), of values (T, 3) given at corners (T, 3, 2) of area other than 0."""
    (ux, uy), (vx, vy) = (corners[:, 1] - corners[:, 0]).T, (corners[:, 2] - corners[:, 0]).T
    du, dv = values[:, 1] - values[:, 0], values[:, 2] - values[:, 0]
    area = ux * vy - uy * vx
    return (du * vy - dv * uy) / area, (dv * ux - du * vx) / area


def _weights(corners: Floats, x: Floats, y: Floats) -> Floats:
    """Barycentric weights (P, 3) on the screen of points in their triangles (P, 3, 2); either winding, >= 0."""
    px, py = corners[..., 0] - x[:, None], corners[..., 1] - y[:, None]
    a = px[:, 1] * py[:, 2] - px[:, 2] * py[:, 1]
    b = px[:, 2] * py[:, 0] - px[:, 0] * py[:, 2]
    c = px[:, 0] * py[:, 1] - px[:, 1] * py[:, 0]
    weights = np.stack([a, b, c], 1) / (a + b + c)[:, None]
    # Centres on an edge may come out a rounding error outside.
    weights = weights.clip(0, 1)
    return weights / _total(weights)[:, None]


def _fragments(
    winner: NDArray[np.int64],
    corners: Floats,
    inverse_depth: Floats,
    faces: NDArray[np.int64],
    height: int,
    width: int,
) -> Fragments:
    """Work out weights and depth at the pixels that were hit, once each."""
    hit = np.flatnonzero(winner >= 0)
    triangle = winner[hit]
    flat = _weights(corners[triangle], hit % width + 0.5, hit // width + 0.5)
    over_depth = flat * inverse_depth[triangle]
    inverse = _total(over_depth)
    face = np.full(height * width, -1, np.int64)
    weights, depth = np.zeros((height * width, 3)), np.zeros(height * width)
    face[hit], weights[hit], depth[hit] = faces[triangle], over_depth / inverse[:, None], 1 / inverse
    return Fragments(face.reshape(height, width), weights.reshape(height, width, 3), depth.reshape(height, width))


def _paint(mesh: Mesh, fragments: Fragments, light_from: Cameras | None) -> Floats:
    """(H, W, 4) colour times alpha, and alpha (0 or 1); shaded when a camera is given."""
    hit = fragments.face >= 0
    weights, corners = fragments.weights[hit], mesh.faces[fragments.face[hit]]
    if mesh.uvs is not None and mesh.texture is not None:
        color = sample_texture(mesh.texture, _blend(weights, mesh.uvs, corners))
    else:
        color = _blend(weights, mesh.colors, corners)
    if light_from is not None:
        color = color * _shade(_blend(weights, mesh.normals, corners), light_from)[:, None]
    picture = np.zeros((*fragments.face.shape, 4))
    picture[hit, :3], picture[hit, 3] = color, 1.0
    return picture


def sample_texture(texture: NDArray[np.uint8], uvs: Floats) -> Floats:
    """Colours (P, 3) in [0, 1] of a texture (H, W, 3) uint8 at places (P, 2), v up: bilinear, clamped at borders."""
    height, width = texture.shape[:2]
    x = np.clip(uvs[:, 0] * width - 0.5, 0, width - 1)
    y = np.clip((1 - uvs[:, 1]) * height - 0.5, 0, height - 1)
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right, low = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    across, down = (x - left)[:, None], (y - top)[:, None]
    upper = texture[top, left] * (1 - across) + texture[top, right] * across
    lower = texture[low, left] * (1 - across) + texture[low, right] * across
    return (upper * (1 - down) + lower * down) / 255


def _blend(weights: Floats, values: NDArray[np.floating[Any]], corners: NDArray[np.integer[Any]]) -> Floats:
    """(P, C) mean of the vertices' ``values`` (N, C) at ``corners`` (P, 3) by ``weights`` (P, 3)."""
    wide = values.astype(np.float64)
    mixed: Floats = wide[corners[:, 0]] * weights[:, :1]
    for k in (1, 2):
        mixed += wide[corners[:, k]] * weights[:, k : k + 1]
    return mixed


def _shrink(picture: Floats, factor: int) -> Floats:
    """(H * factor, W * factor, C) → (H, W, C), the mean of each block."""
    parts = [picture[row::factor, column::factor] for row in range(factor) for column in range(factor)]
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total / len(parts)


def _least(values: Floats) -> Floats:
    """Minimum over axis 1, of length 3; many times faster than ``min(1)`` on so short an axis, as are the next two."""
    return np.minimum(np.minimum(values[:, 0], values[:, 1]), values[:, 2])


def _most(values: Floats) -> Floats:
    """Maximum over axis 1, of length 3."""
    return np.maximum(np.maximum(values[:, 0], values[:, 1]), values[:, 2])


def _total(values: Floats) -> Floats:
    """Sum over axis 1, of length 3."""
    return values[:, 0] + values[:, 1] + values[:, 2]


def _shade(normals: Floats, camera: Cameras) -> Floats:
    """Brightness (P,) in [0, 1] for normals (P, 3) of any length; a back side is lit as if it were the front."""
    local = normals @ camera.c2w[0, :3, :3].double().cpu().numpy()
    local = np.where(local[:, 2:] < 0, -local, local)
    length = np.maximum(np.sqrt(np.einsum("pk,pk->p", local, local)), 1e-12)
    return _AMBIENT + (1 - _AMBIENT) * (local @ (_LIGHT / np.linalg.norm(_LIGHT)) / length).clip(0, 1)
