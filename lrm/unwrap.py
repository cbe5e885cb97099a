"""Cutting a mesh's surface into flat charts and laying them side by side in a square: places in a texture.

Finding charts, two ways. *box* is ours: a chart is a connected part of the surface that looks toward one of the six
axes, projected along it, and where two layers of a chart come to lie over each other the lower one is cut off; its time
grows with the number of faces and texels alone. *xatlas* grows charts that are hardly distorted; it takes seconds for
tens of thousands of faces and may take an hour for a noisy mesh.

Laying them out, two ways. Ours sets their boxes side by side. xatlas packs their outlines, which holds up to twice as
much surface in a texture and takes tenths of a second: ``packed``, the usual way, is our charts so laid out. xatlas
runs as a program of its own (`lrm.xatlas_child`) that is ended when its time is over.
"""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from multiview.errors import MeshError, SettingsError

from .mesh import Mesh
from .raster import flat_spans

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Way = Literal["auto", "xatlas", "packed", "box"]

TIME_LIMIT = 20.0
_CHILD = Path(__file__).with_name("xatlas_child.py")
# Beyond these there is nothing to be packed: noise of as many thousand charts (smooth objects of 20,000 faces have some
# 300), or meshes that fill a texture however they lie.
_PACKED_FACES, _PACKED_CHARTS = 200_000, 3000
_PADDING = 2  # texels around each chart
_MOST_STRETCH = 1.5  # by which what xatlas packs may be larger than was asked for: its gutters shrink as much
_SURE_COS = 0.3  # a face may go along with its neighbours' axis while it leans no further away than this
_ROUNDS = 4  # of cutting off what lies underneath
_SKYLINE = 4000  # charts, beyond which they are packed in shelves, which is coarser and quicker
_SHRINK = 0.96  # of the scale, after charts did not fit
# Where the axes of a chart lie for each of the six directions +x, -x, +y, -y, +z, -z: right and up as seen from
# outside, so that nothing is mirrored.
_RIGHT = np.array([(0, 1, 0), (0, -1, 0), (-1, 0, 0), (1, 0, 0), (0, 1, 0), (0, 1, 0)], np.float64)
_UP = np.array([(0, 0, 1), (0, 0, 1), (0, 0, 1), (0, 0, 1), (-1, 0, 0), (1, 0, 0)], np.float64)
_OUT = np.array([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)], np.float64)


@dataclass(frozen=True, eq=False)
class Unwrapped:
    """Where a mesh's surface lies in a square.

    Attributes:
        source: (M,) int64 which vertex of the mesh each new one is; vertices on seams are there more than once.
        faces: (F, 3) int32 of new vertices, in the mesh's order.
        uvs: (M, 2) float32 in [0, 1], v up; no two charts overlap.
        charts: (F,) int32 number of each face's chart; all 0 from xatlas, which does not say. Packing may have cut one.
        way: ``xatlas``, ``packed``, ``box``, or ``grid``: every two faces in a square cell of their own.
        used: share of the square that charts cover.
    """

    source: Ints
    faces: Ints
    uvs: Floats
    charts: Ints
    way: str
    used: float

    def apply(self, mesh: Mesh, texture: NDArray[np.uint8]) -> Mesh:
        """The mesh with these seams, places and ``texture`` (H, W, 3) uint8."""
        attributes = {name: values[self.source] for name, values in (mesh.attributes or {}).items()}
        return Mesh(
            mesh.vertices[self.source], self.faces, mesh.colors[self.source], self.uvs, texture, attributes or None
        )


def unwrap(mesh: Mesh, texture_size: int = 1024, *, way: Way = "auto", time_limit: float = TIME_LIMIT) -> Unwrapped:
    """Find places in a texture for a mesh's surface.

    Args:
        mesh: any; the fewer and smoother its faces, the better the charts.
        texture_size: texels per side of the square that is packed, 16 to 8192.
        way: ``box``, ``packed``, ``xatlas``, or ``auto``: ``packed`` where xatlas is installed and ends in time, else
            ``box``.
        time_limit: seconds for all of it, > 0; xatlas is ended when they are over.

    Returns:
        `Unwrapped`.

    Raises:
        SettingsError: a number out of range, or ``xatlas`` or ``packed`` insisted on where it is not installed.
        MeshError: more faces than the square has room for, or xatlas insisted on and it failed.
    """
    if not 16 <= texture_size <= 8192 or not time_limit > 0:
        raise SettingsError(
            f"unwrap wants texture_size from 16 to 8192 and time_limit above 0, found {texture_size}, {time_limit}."
        )
    if way not in ("auto", "xatlas", "packed", "box"):
        raise SettingsError(f"way={way!r}: expected auto, xatlas, packed or box.")
    there = importlib.util.find_spec("xatlas") is not None
    if way in ("xatlas", "packed") and not there:
        raise SettingsError(f"way={way!r}: xatlas is not installed. Try pip install xatlas==0.0.11, or way='box'.")
    if way == "xatlas":
        return unwrap_xatlas(mesh, texture_size, time_limit)
    began = time.monotonic()
    boxed = unwrap_boxes(mesh, texture_size)
    if way == "packed" or (way == "auto" and there and _is_packable(boxed)):
        try:
            packed = repacked(mesh, boxed, texture_size, max(time_limit - (time.monotonic() - began), 0.1))
            return packed if way == "packed" or packed.used > boxed.used else boxed
        except MeshError:
            if way == "packed":
                raise
    return boxed


def _is_packable(boxed: Unwrapped) -> bool:
    """Whether there are charts to be packed, and few enough to be packed in a moment."""
    few = len(boxed.faces) <= _PACKED_FACES and int(boxed.charts.max()) < _PACKED_CHARTS
    return few and boxed.way == "box"


def repacked(mesh: Mesh, unwrapped: Unwrapped, texture_size: int, time_limit: float) -> Unwrapped:
    """Lay the charts of ``unwrapped`` out anew with xatlas, each as large as its share of the surface.

    Raises:
        MeshError: see `unwrap_xatlas`.
    """
    spread = unwrapped.apply(mesh, np.zeros((1, 1, 3), np.uint8))
    found = _with_xatlas(spread.vertices, spread.faces, texture_size, time_limit, unwrapped.uvs)
    return replace(found, source=unwrapped.source[found.source], charts=unwrapped.charts, way="packed")


def unwrap_xatlas(mesh: Mesh, texture_size: int, time_limit: float) -> Unwrapped:
    """`unwrap` with xatlas in a process of its own, which is ended after ``time_limit`` seconds.

    Raises:
        MeshError: it took longer, failed, or spread the charts over several squares.
    """
    return _with_xatlas(mesh.vertices, mesh.faces, texture_size, time_limit, None)


def _with_xatlas(
    vertices: Floats, faces: Ints, texture_size: int, time_limit: float, places: Floats | None
) -> Unwrapped:
    """What `lrm.xatlas_child` makes of a mesh, and of ``places`` (N, 2) on charts where they are given."""
    head = np.array([len(vertices), len(faces), texture_size, places is not None], np.int64).tobytes()
    data = head + vertices.astype(np.float32).tobytes() + faces.astype(np.uint32).tobytes()
    data += b"" if places is None else places.astype(np.float32).tobytes()
    # -P: the script's own folder holds modules of this package, which are not to be found by their bare names.
    command = [sys.executable, "-P", str(_CHILD)]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=time_limit, check=False)
    except (subprocess.TimeoutExpired, OSError) as error:
        raise MeshError(
            f"xatlas did not unwrap {len(faces)} faces ({type(error).__name__} after at most {time_limit:.1f} s). "
            "Reduce the faces, or take way='box'."
        ) from error
    if done.returncode != 0 or len(done.stdout) < 24:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise MeshError(f"xatlas failed on {len(faces)} faces ({said[0]}). Take way='box'.")
    count, width, height = (int(n) for n in np.frombuffer(done.stdout, np.int64, 3))
    if max(width, height) > _MOST_STRETCH * texture_size:
        raise MeshError(
            f"xatlas needs {width} x {height} texels for the charts of {len(faces)} faces, and {texture_size} are "
            "to hold them. Reduce the faces, take a larger texture, or way='box'."
        )
    source = np.frombuffer(done.stdout, np.uint32, count, 24).astype(np.int64)
    new = np.frombuffer(done.stdout, np.uint32, 3 * len(faces), 24 + 4 * count).reshape(-1, 3).astype(np.int32)
    texels = np.frombuffer(done.stdout, np.float32, 2 * count, 24 + 4 * count + 12 * len(faces)).reshape(-1, 2)
    if not np.isfinite(texels).all():
        raise MeshError(f"xatlas found no places for {len(faces)} faces, which have no area. Take way='box'.")
    # What it packs comes out a little larger or smaller than was asked for, and rarely square.
    uvs = (texels / max(width, height, 1)).astype(np.float32).clip(0, 1)
    return Unwrapped(source, new, uvs, np.zeros(len(new), np.int32), "xatlas", _covered_share(uvs, new))


def _covered_share(uvs: Floats, faces: Ints) -> float:
    """Share of the square that faces cover, for places that do not overlap."""
    a, b, c = (uvs[faces[:, k]].astype(np.float64) for k in range(3))
    u, v = b - a, c - a
    return float(np.abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]).sum() / 2)


# Our own: parts that look toward one axis.


def unwrap_boxes(mesh: Mesh, texture_size: int) -> Unwrapped:
    """`unwrap` by projection along the six axes.

    Raises:
        MeshError: more faces than the square has room for.
    """
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    neighbors = face_neighbors(mesh.faces)
    axis = _axes(_crossed(mesh), neighbors)
    flat = np.stack([np.einsum("fkc,fc->fk", corners, _RIGHT[axis]), np.einsum("fkc,fc->fk", corners, _UP[axis])], -1)
    height = np.einsum("fkc,fc->f", corners, _OUT[axis])
    key, turn = axis.astype(np.int64), 0
    while True:
        charts = _components(key, neighbors)
        places = _lay_out(flat, charts, texture_size)
        if places is None:
            return _grid(mesh, texture_size)
        under = _underneath(places, height, mesh.faces, charts, texture_size)
        if not len(under) or turn > _ROUNDS:
            return _joined(mesh, places / texture_size, charts)
        # What lies underneath becomes a chart of its own; what still does after some rounds, a chart for each face.
        key[under] = key.max() + 1 + (np.arange(len(under)) if turn >= _ROUNDS - 1 else key[under])
        turn += 1


def _crossed(mesh: Mesh) -> NDArray[np.float64]:
    """(F, 3) normals of the faces, twice their areas long."""
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def _joined(mesh: Mesh, places: Floats, charts: Ints) -> Unwrapped:
    """Corners (F, 3, 2) that are one vertex of one chart become one new vertex."""
    width = int(charts.max()) + 1
    pairs = mesh.faces.astype(np.int64) * width + charts[:, None]
    unique, first, inverse = np.unique(pairs.reshape(-1), return_index=True, return_inverse=True)
    uvs = places.reshape(-1, 2)[first].astype(np.float32).clip(0, 1)
    faces = inverse.reshape(-1, 3).astype(np.int32)
    return Unwrapped(unique // width, faces, uvs, charts.astype(np.int32), "box", _covered_share(uvs, faces))


def face_neighbors(faces: Ints) -> NDArray[np.int64]:
    """(F, 3) the face across each edge (corner k to k + 1), -1 where there is none or more than one."""
    count = len(faces)
    tail, head = faces.reshape(-1).astype(np.int64), faces[:, [1, 2, 0]].reshape(-1).astype(np.int64)
    key = np.minimum(tail, head) * (int(faces.max()) + 1) + np.maximum(tail, head)
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    # Runs of exactly two.
    start = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    length = np.diff(np.r_[start, len(ordered)])
    pair = start[length == 2]
    across = np.full(3 * count, -1, np.int64)
    across[order[pair]], across[order[pair + 1]] = order[pair + 1] // 3, order[pair] // 3
    return across.reshape(count, 3)


def _axes(crossed: Floats, neighbors: Ints) -> NDArray[np.int64]:
    """(F,) which of the six directions each face is projected along.

    The nearest to a face's normal after a little smoothing; then faces whose neighbours agree on another go along,
    while they lean no further from it than `_SURE_COS`, since every seam costs texels and may be seen.
    """
    length = np.linalg.norm(crossed, axis=1, keepdims=True)
    normal = crossed / np.maximum(length, 1e-30)
    there = (neighbors >= 0)[..., None]
    soft = crossed
    for _ in range(2):
        soft = soft + (soft[neighbors] * there).sum(1)
    own = normal @ _OUT.T
    allowed = own > _SURE_COS
    allowed[np.arange(len(own)), own.argmax(1)] = True
    axis = np.where(allowed, soft @ _OUT.T, -np.inf).argmax(1)
    rows = np.arange(len(axis))
    for _ in range(6):
        votes = np.zeros((len(axis), 6), np.int8)
        for edge in range(3):
            votes[rows, np.where(there[:, edge, 0], axis[neighbors[:, edge]], axis)] += 1
        wanted = votes.argmax(1)
        moved = (votes[rows, wanted] >= 2) & (wanted != axis) & allowed[rows, wanted]
        if not moved.any():
            break
        axis = np.where(moved, wanted, axis)
    return axis


def _components(key: Ints, neighbors: Ints) -> NDArray[np.int64]:
    """(F,) numbers of connected parts whose faces have one ``key``."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    face = np.repeat(np.arange(len(key)), 3)
    other = neighbors.reshape(-1)
    same = (other >= 0) & (key[face] == key[np.maximum(other, 0)])
    ones = np.ones(int(same.sum()), np.int8)
    graph = coo_matrix((ones, (face[same], other[same])), shape=(len(key), len(key)))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _lay_out(flat: Floats, charts: Ints, size: int) -> Floats | None:
    """Pack the charts of projected corners (F, 3, 2): the same in texels, v up; None where there is no room."""
    count = int(charts.max()) + 1
    low, high = np.full((count, 2), np.inf), np.full((count, 2), -np.inf)
    for corner in range(3):
        np.minimum.at(low, charts, flat[:, corner])
        np.maximum.at(high, charts, flat[:, corner])
    extent = high - low
    turned = extent[:, 1] > extent[:, 0]  # lying charts fill shelves and skylines better
    wide = np.where(turned[:, None], extent[:, ::-1], extent)
    # Where there are so many charts that their gutters would take the room, thinner ones do.
    crowded = count * (2 + 2 * _PADDING) ** 2 > size * size / 8
    for padding in (1, 0) if crowded else (_PADDING, 1, 0):
        area = float(np.prod(wide, axis=1).sum())
        scale = size * math.sqrt(0.95 / max(area, 1e-30))
        scale = min(scale, (size - 2 * padding - 1) / max(float(wide.max()), 1e-30))
        for _ in range(60):
            boxes = np.ceil(wide * scale).astype(np.int64) + 1 + 2 * padding
            if (boxes[:, 0] * boxes[:, 1]).sum() <= size * size:
                corners = _packed(boxes, size)
                if corners is not None:
                    return _placed(flat, charts, low, high, turned, corners + padding, scale)
            elif (boxes == 2 + 2 * padding).all():
                break  # as small as boxes get
            scale *= _SHRINK
    return None


def _placed(
    flat: Floats, charts: Ints, low: Floats, high: Floats, turned: NDArray[np.bool_], corners: Ints, scale: float
) -> Floats:
    """Corners (F, 3, 2) in texels: each chart's lowest corner on ``corners``, off texel centres by an odd fraction.

    A quarter turn takes (u, v) to (v, -u): right and up stay right-handed.
    """
    local = flat - low[charts][:, None]
    span = (high - low)[charts][:, None]
    quarter = np.stack([local[..., 1], span[..., 0] - local[..., 0]], -1)
    local = np.where(turned[charts][:, None, None], quarter, local)
    # Else edges of regular meshes would run through texel centres and both their faces claim them.
    return local * scale + corners[charts][:, None] + 0.4871


def _packed(boxes: Ints, size: int) -> Ints | None:
    """Lower left corners (C, 2) of boxes (C, 2) in a square, none over another; None where they do not fit."""
    if int(boxes.max()) > size:
        return None
    order = np.lexsort((-boxes[:, 0], -boxes[:, 1]))
    corners = np.zeros_like(boxes)
    found = _skyline(boxes[order], size) if len(boxes) <= _SKYLINE else _shelves(boxes[order], size)
    if found is None:
        return None
    corners[order] = found
    return corners


def _skyline(boxes: Ints, size: int) -> Ints | None:
    """Each box in turn as low as it goes, then as far left; the space below it is given up."""
    line = np.zeros(size, np.int64)
    corners = np.zeros_like(boxes)
    for index, (width, height) in enumerate(boxes.tolist()):
        tops = np.lib.stride_tricks.sliding_window_view(line, width).max(1) if width < 24 else _window_max(line, width)
        left = int(tops.argmin())
        bottom = int(tops[left])
        if bottom + height > size:
            return None
        line[left : left + width] = bottom + height
        corners[index] = left, bottom
    return corners


def _window_max(line: Ints, width: int) -> Ints:
    """Maximum of every run of ``width`` entries, by doubling."""
    tops, reach = line, 1
    while reach < width:
        step = min(reach, width - reach)
        tops = np.maximum(tops[: len(tops) - step], tops[step:])
        reach += step
    return tops


def _shelves(boxes: Ints, size: int) -> Ints | None:
    """Boxes of falling height in rows from the bottom."""
    corners = np.zeros_like(boxes)
    start, bottom = 0, 0
    ends = np.cumsum(boxes[:, 0])
    while start < len(boxes):
        height = int(boxes[start, 1])
        if bottom + height > size:
            return None
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + size, side="right")), start + 1)
        corners[start:stop, 0] = ends[start:stop] - boxes[start:stop, 0] - before
        corners[start:stop, 1] = bottom
        start, bottom = stop, bottom + height
    return corners


def _underneath(places: Floats, height: Floats, faces: Ints, charts: Ints, size: int) -> NDArray[np.int64]:
    """Faces that lie under another of their chart at some texel's centre, though the two share no edge."""
    face, texel = flat_spans(places, size, size)
    order = np.lexsort((-height[face], texel))
    face, texel = face[order], texel[order]
    again = np.flatnonzero(texel[1:] == texel[:-1])
    upper, lower = face[again], face[again + 1]
    shared = (faces[upper][:, :, None] == faces[lower][:, None, :]).any(2).sum(1)
    return np.unique(lower[(shared < 2) & (charts[upper] == charts[lower])])


def _grid(mesh: Mesh, size: int) -> Unwrapped:
    """Every two faces in a square cell, whatever their shapes: for what no charts can be found.

    Raises:
        MeshError: cells of less than 2 texels.
    """
    count = len(mesh.faces)
    columns = math.ceil(math.sqrt((count + 1) // 2))
    cell = size // columns
    if cell < 2:
        raise MeshError(
            f"{count} faces have no room in a texture of {size} x {size} texels. "
            f"Reduce the faces (--faces 20000), or ask for a larger texture (--texture-size {2 * size})."
        )
    face = np.arange(count)
    number = face // 2
    corner = np.stack([number % columns, number // columns], -1)[:, None] * cell
    # Two right triangles, half a texel from the border of the cell and from each other.
    low, high = 0.25, cell - 0.25
    lower = np.array([(low, low), (high - 0.5, low), (low, high - 0.5)])
    upper = np.array([(high, high), (low + 0.5, high), (high, low + 0.5)])
    places = corner + np.where((face % 2 == 0)[:, None, None], lower, upper)
    uvs = (places.reshape(-1, 2) / size).astype(np.float32)
    faces = np.arange(3 * count, dtype=np.int32).reshape(-1, 3)
    source = mesh.faces.reshape(-1).astype(np.int64)
    return Unwrapped(source, faces, uvs, face.astype(np.int32), "grid", _covered_share(uvs, faces))
