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
    x, y, inverse_depth, faces = _screen_triangles(mesh, camera, height, width)
    winner = _winners(x, y, inverse_depth, height, width)
    return _fragments(winner, x, y, inverse_depth, faces, height, width)


def rasterize_flat(corners: Floats, height: int, width: int) -> Fragments:
    """Find the triangle at every pixel centre of a plane, as in a texture.

    Args:
        corners: (F, 3, 2) float, x right and y *down* in pixels.
        height, width: pixels, > 0.

    Returns:
        `Fragments` of depth 1; where triangles lie over each other, of the lowest index.
    """
    x, y = _columns(corners)
    ones = np.ones(x.shape)
    winner = _winners(x, y, ones, height, width)
    return _fragments(winner, x, y, ones, np.arange(x.shape[1]), height, width)


def flat_spans(corners: Floats, height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every (triangle, pixel centre inside it) of a plane: two (P,) arrays, pixels numbered row * width + column.

    Args:
        corners, height, width: see `rasterize_flat`.
    """
    x, y = _columns(corners)
    triangles, pixels = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for chunk in _chunks(*_boxes(x, y, height, width)):
        triangle, line, left, counts = _spans(*chunk, x, y)
        row = np.repeat(np.arange(len(counts)), counts)
        offset = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        triangles.append(triangle[row])
        pixels.append((line * width + left)[row] + offset)
    return np.concatenate(triangles), np.concatenate(pixels)


def render_mesh(
    mesh: Mesh,
    cameras: Cameras,
    size: int | tuple[int, int],
    *,
    shading: bool = False,
    supersample: int = 2,
    colors: NDArray[np.floating[Any]] | None = None,
) -> Views:
    """Draw a mesh with its texture where it has one, else with its vertex colours.

    Args:
        mesh: in the world frame.
        cameras: V cameras.
        size: pixels per side, or (height, width).
        shading: darken softly where the surface turns away from a light above the viewer's left shoulder; without it
            the picture shows the colours themselves.
        supersample: samples per pixel and axis; colour and alpha are their average.
        colors: (N, 3) in [0, 1] at the vertices, in place of the mesh's texture and colours.

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
        rgba = _paint(mesh, fragments, camera if shading else None, colors)
        pictures.append(_shrink(rgba, supersample))
    stack = np.stack(pictures) if pictures else np.zeros((0, height, width, 4))
    alpha = stack[..., 3:]
    straight = np.where(alpha > 0, stack[..., :3] / np.maximum(alpha, 1e-12), 0.0).clip(0, 1)
    image, matte = (torch.from_numpy(x.astype(np.float32)).permute(0, 3, 1, 2).contiguous() for x in (straight, alpha))
    return Views(image, matte, cameras)


def _columns(corners: Floats) -> tuple[Floats, Floats]:
    """x and y, each (3, T) float64, of corners (T, 3, 2): long rows of one number each are what numpy is quick on."""
    x, y = np.ascontiguousarray(np.asarray(corners, np.float64).transpose(2, 1, 0))
    return x, y


def _screen_triangles(
    mesh: Mesh, camera: Cameras, height: int, width: int
) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
    """x and y in pixels and 1 / depth, each (3, T), and the face index (T,) of every triangle before the camera."""
    double = Cameras(camera.c2w.double().cpu(), camera.intrinsics.double().cpu())
    uv, depth = (x[0].numpy() for x in project(double, torch.from_numpy(mesh.vertices).double()))
    triangles = np.ascontiguousarray(mesh.faces.T)
    before = depth > _NEAR * max(float(depth.max()), 1e-12)
    faces = np.arange(triangles.shape[1])
    if not before.all():
        faces = np.flatnonzero(before[triangles].all(0))
        triangles = triangles[:, faces]
    x, y = uv[:, 0] * width, uv[:, 1] * height
    with np.errstate(divide="ignore"):  # of vertices in the camera's own plane, which are in no triangle that is left
        inverse = 1 / depth
    return x[triangles], y[triangles], inverse[triangles], faces


def _boxes(x: Floats, y: Floats, height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Boxes of pixel centres, for triangles that may hold one: index (T,), and (left, top, columns, rows) (T, 4)."""
    lows, extents = [], []
    for values, limit in ((x, width), (y, height)):
        low = np.ceil(_least(values) - 0.5).clip(0, limit)
        lows.append(low)
        extents.append((np.floor(_most(values) - 0.5) + 1).clip(0, limit) - low)
    index = np.flatnonzero((extents[0] > 0) & (extents[1] > 0))
    near_x, near_y = x[:, index], y[:, index]
    ux, vx, uy, vy = near_x[1] - near_x[0], near_x[2] - near_x[0], near_y[1] - near_y[0], near_y[2] - near_y[0]
    index = index[~(np.abs(ux * vy - uy * vx) <= _NO_AREA)]  # not seen edge-on
    return index, np.stack([part[index] for part in (*lows, *extents)], 1).astype(np.int64)


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


def _winners(x: Floats, y: Floats, inverse_depth: Floats, height: int, width: int) -> NDArray[np.int64]:
    """The triangle (height * width,) that is nearest at each pixel centre, -1 where there is none."""
    nearest, winner = np.zeros(height * width), np.full(height * width, -1, np.int64)
    for chunk in _chunks(*_boxes(x, y, height, width)):
        _draw(chunk, x, y, inverse_depth, width, nearest, winner)
    return winner


def _draw(
    chunk: tuple[NDArray[np.int64], NDArray[np.int64]],
    x: Floats,
    y: Floats,
    inverse_depth: Floats,
    width: int,
    nearest: Floats,
    winner: NDArray[np.int64],
) -> None:
    """Draw some triangles into the z-buffer ``nearest`` (1 / depth, larger is nearer) and ``winner``, in place."""
    triangle, line, left, counts = _spans(*chunk, x, y)
    # 1 / depth is linear over the screen (depth is not), so a row of a triangle needs a start and a slope.
    own_x, own_y, own = x[:, triangle], y[:, triangle], inverse_depth[:, triangle]
    slope, down = _gradient(own_x, own_y, own)
    start = own[0] + slope * (left + 0.5 - own_x[0]) + down * (line + 0.5 - own_y[0])
    row = np.repeat(np.arange(len(counts)), counts)
    offset = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    inverse = start[row] + slope[row] * offset
    # Rounding in slivers must not carry a face nearer than its nearest corner.
    inverse = np.clip(inverse, _least(own)[row], _most(own)[row])
    pixel = (line * width + left)[row] + offset
    before = nearest[pixel]
    np.maximum.at(nearest, pixel, inverse)
    won = (inverse == nearest[pixel]) & (inverse > before)
    # Of repeated pixels the last assignment stays: backwards, so that the lowest face index wins a tie.
    winner[pixel[won][::-1]] = triangle[row[won]][::-1]


def _spans(
    index: NDArray[np.int64], boxes: NDArray[np.int64], x: Floats, y: Floats
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows of pixel centres inside triangles: triangle, y, leftmost x and count, each (rows,), in triangle order.

    Centres on an edge belong to both sides; `_EDGE` sees to it that rounding loses none between two triangles.
    """
    rows = boxes[:, 3]
    which = np.repeat(np.arange(len(index)), rows)
    line = np.arange(len(which)) + np.repeat(boxes[:, 1] - np.cumsum(rows) + rows, rows)
    middle, owner = line + 0.5, index[which]
    xs, ys = x[:, owner], y[:, owner]
    first, last = np.full(len(which), np.inf), np.full(len(which), -np.inf)
    for start, end in ((0, 1), (1, 2), (2, 0)):
        low, high = np.minimum(ys[start], ys[end]), np.maximum(ys[start], ys[end])
        crossed = (middle >= low) & (middle <= high) & (low < high)
        rise = np.where(crossed, ys[end] - ys[start], 1.0)
        at = xs[start] + (middle - ys[start]) / rise * (xs[end] - xs[start])
        np.minimum(first, np.where(crossed, at, np.inf), out=first)
        np.maximum(last, np.where(crossed, at, -np.inf), out=last)
    # Clipped to the triangle's box, which lies inside the picture.
    left, right = boxes[which, 0], boxes[which, 0] + boxes[which, 2]
    left = np.clip(np.ceil(first - 0.5 - _EDGE), left, right).astype(np.int64)
    stop = np.clip(np.floor(last - 0.5 + _EDGE) + 1, boxes[which, 0], right).astype(np.int64)
    keep = np.flatnonzero(stop > left)
    return owner[keep], line[keep], left[keep], (stop - left)[keep]


def _gradient(x: Floats, y: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Slope per pixel in x and in y, each (T,), of values (3, T) at corners x and y (3, T) of area other than 0."""
    ux, vx, uy, vy = x[1] - x[0], x[2] - x[0], y[1] - y[0], y[2] - y[0]
    du, dv = values[1] - values[0], values[2] - values[0]
    area = ux * vy - uy * vx
    return (du * vy - dv * uy) / area, (dv * ux - du * vx) / area


def _weights(x: Floats, y: Floats) -> Floats:
    """Barycentric weights (3, P) on the screen of a point in its triangle, whose corners lie at x and y (3, P) of it.

    Either winding; each weight is >= 0.
    """
    weights = np.stack([x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0]])
    weights /= weights[0] + weights[1] + weights[2]
    # Centres on an edge may come out a rounding error outside.
    weights = weights.clip(0, 1)
    return weights / (weights[0] + weights[1] + weights[2])


def _fragments(
    winner: NDArray[np.int64],
    x: Floats,
    y: Floats,
    inverse_depth: Floats,
    faces: NDArray[np.int64],
    height: int,
    width: int,
) -> Fragments:
    """Work out weights and depth at the pixels that were hit, once each."""
    hit = np.flatnonzero(winner >= 0)
    triangle = winner[hit]
    flat = _weights(x[:, triangle] - (hit % width + 0.5), y[:, triangle] - (hit // width + 0.5))
    over_depth = flat * inverse_depth[:, triangle]
    inverse = over_depth[0] + over_depth[1] + over_depth[2]
    face = np.full(height * width, -1, np.int64)
    weights, depth = np.zeros((height * width, 3)), np.zeros(height * width)
    face[hit], weights[hit], depth[hit] = faces[triangle], (over_depth / inverse).T, 1 / inverse
    return Fragments(face.reshape(height, width), weights.reshape(height, width, 3), depth.reshape(height, width))


def _paint(mesh: Mesh, fragments: Fragments, light_from: Cameras | None, colors: Floats | None) -> Floats:
    """(H, W, 4) colour times alpha, and alpha (0 or 1); shaded when a camera is given, in other colours where given."""
    hit = fragments.face >= 0
    weights, corners = fragments.weights[hit], mesh.faces[fragments.face[hit]]
    if colors is None and mesh.uvs is not None and mesh.texture is not None:
        color = sample_texture(mesh.texture, _blend(weights, mesh.uvs, corners))
    else:
        color = _blend(weights, mesh.colors if colors is None else colors, corners)
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
    """Minimum (T,) of values (3, T)."""
    return np.minimum(np.minimum(values[0], values[1]), values[2])


def _most(values: Floats) -> Floats:
    """Maximum (T,) of values (3, T)."""
    return np.maximum(np.maximum(values[0], values[1]), values[2])


def _shade(normals: Floats, camera: Cameras) -> Floats:
    """Brightness (P,) in [0, 1] for normals (P, 3) of any length; a back side is lit as if it were the front."""
    local = normals @ camera.c2w[0, :3, :3].double().cpu().numpy()
    local = np.where(local[:, 2:] < 0, -local, local)
    length = np.maximum(np.sqrt(np.einsum("pk,pk->p", local, local)), 1e-12)
    return _AMBIENT + (1 - _AMBIENT) * (local @ (_LIGHT / np.linalg.norm(_LIGHT)) / length).clip(0, 1)
