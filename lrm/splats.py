"""Gaussian splats of a field, in the file layout that splat viewers share.

Two ways. A field that is opaque from its surface on is covered with flat *discs*. In one that fades in over a stretch,
as networks' fields do, discs would stand where the eye sees through; it becomes a *mist*: small balls on a lattice
through all of it that can be seen, each as dense as the field is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multiview.errors import MeshError, SettingsError
from multiview.files import write_bytes_whole

from .field import Field
from .lattice import evaluate_chunks
from .mesh import Mesh

Floats = NDArray[np.floating[Any]]

SH_C0 = 0.28209479177387814
"""The constant spherical harmonic, 1 / (2 sqrt(pi)): colour is 0.5 + SH_C0 * f_dc."""
CONVENTION = {
    "layout": "INRIA 3D Gaussian Splatting, SH degree 0: log scales, logit opacity, unit quaternions w x y z",
    "up_axis": "-y",
    "front_axis": "-z",
    "unit": "metre",
    "color_space": "sRGB",
}
"""What ``asset.json`` says of ``splats.ply``. The axes are those of COLMAP and OpenCV (x right, y down, z forward),
which splat viewers take for granted: (x, y, z) of the other files is (x, -y, -z) here."""

_WIDTH = 0.75  # standard deviation of a disc in units of the mean distance of samples: neighbours melt into a surface
_FLATNESS = 0.1  # thickness of a disc in units of its width
_OPACITY = 0.98
_CHUNK = 1 << 18

# Softness, in longest sides, from which a field becomes a mist: the hardest ball comes to 0.003 for the steps in which
# it is measured, lifts of the embedded model to 0.006 to 0.015.
_SOFT = 0.0045
_PROBES, _STEPS, _DEEP = 1500, 48, 0.12  # where softness is measured: places, steps, longest sides in and out
_BALL = 0.6  # standard deviation of a ball in steps of the lattice: neighbours sum up to evenness within 0.2 %
_CUT = 1 / 255  # opacity below which the published renderer, and others after it, leave a Gaussian's pixel out
_COARSE, _FINE = 48, 128  # samples per axis of the cube, and of the box of what can be seen
_FAINT = 0.01  # optical depth of a cell of the lattice below which it is left out
_HIDDEN = 0.02  # share of light below which what lies behind is left out


@dataclass(frozen=True)
class Splats:
    """Gaussians in the world frame.

    Attributes:
        centers: (N, 3) float32 world units.
        normals: (N, 3) float32 unit, the thin axis of each.
        widths: (N,) float32 standard deviation along the surface, world units.
        colors: (N, 3) float32 sRGB in [0, 1].
        opacity: of every Gaussian at its middle, in (0, 1); (N,) float32, or one number for all.
        flatness: standard deviation along the thin axis in units of ``widths``; 1 for balls.
    """

    centers: NDArray[np.float32]
    normals: NDArray[np.float32]
    widths: NDArray[np.float32]
    colors: NDArray[np.float32]
    opacity: NDArray[np.float32] | float = _OPACITY
    flatness: float = _FLATNESS


def splats_from_field(field: Field, mesh: Mesh, count: int = 100_000, *, seed: int = 0) -> Splats:
    """Make Gaussians that look like a field.

    Args:
        field: as it is volume rendered.
        mesh: its surface; where discs lie, and how they are turned.
        count: Gaussians at most, at least 1; of discs just as many.
        seed: of where in their places discs lie.

    Raises:
        SettingsError: ``count`` below 1.
        MeshError: the mesh has no surface.
    """
    if count < 1:
        raise SettingsError(f"splats={count}: expected at least 1.")
    if softness(field, mesh) > _SOFT:
        mist = _mist(field, count)
        if len(mist.centers):
            return mist
    return _discs(field, mesh, count, seed)


def softness(field: Field, mesh: Mesh) -> float:
    """How gradually a field becomes opaque at its surface, in longest sides of the mesh.

    Along lines straight into the surface: the area between the opacity so far and the step that is where half is
    reached, in the mean. 0 for an opaque solid; infinite nowhere, as what never becomes opaque counts from its end.
    """
    side, rng = float(mesh.extent.max()), np.random.default_rng(0)
    face = mesh.faces[rng.integers(0, len(mesh.faces), _PROBES)]
    depths = ((np.arange(_STEPS) + 0.5) / _STEPS * 2 - 1) * _DEEP * side
    lines = mesh.vertices[face].mean(1)[:, None] - depths[:, None] * mesh.normals[face[:, 0]][:, None]
    step = 2 * _DEEP * side / _STEPS
    opacity = -np.expm1(-np.cumsum(_densities(field, lines.reshape(-1, 3)).reshape(lines.shape[:2]) * step, axis=1))
    solid = np.maximum.accumulate(opacity > 0.5, axis=1)
    return float(np.abs(opacity - solid).sum(1).mean() * step / max(side, 1e-30))


def _discs(field: Field, mesh: Mesh, count: int, seed: int) -> Splats:
    """Flat Gaussians spread evenly over a surface; raises what `splats_from_field` does."""
    corners = mesh.vertices.astype(np.float64)[mesh.faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    total = float(areas.sum())
    if not total > 0:
        raise MeshError(f"the mesh has no surface to lay splats on ({len(areas)} faces of no area).")
    rng = np.random.default_rng(seed)
    # One sample in each of ``count`` even shares of the surface: no lumps and no gaps between faces.
    shares = (np.arange(count) + rng.random(count)) * (total / count)
    face = np.searchsorted(np.cumsum(areas), shares).clip(0, len(areas) - 1)
    root, along = np.sqrt(rng.random(count)), rng.random(count)
    weights = np.stack([1 - root, root * (1 - along), root * along], -1)
    centers = np.einsum("nk,nkd->nd", weights, corners[face]).astype(np.float32)
    normals = np.einsum("nk,nkd->nd", weights, mesh.normals[mesh.faces[face]])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(length > 1e-9, normals / np.where(length > 1e-9, length, 1), (0.0, 0.0, 1.0))
    width = np.full(count, _WIDTH * np.sqrt(total / count), np.float32)
    return Splats(centers, normals.astype(np.float32), width, _colors(field, centers))


def _mist(field: Field, count: int) -> Splats:
    """Balls on a lattice through all that can be seen of a field, at most ``count``, perhaps none.

    A ball of opacity o at its middle takes as much light from all that passes as a cell of the lattice does when
    2 pi w^2 (Li2(o) - Li2(c)) is the cell's volume times its density, w its standard deviation: the integral of
    -log(1 - o g) over a Gaussian g of the plane, as far as o g is above the c where renderers cut it off.
    """
    from scipy.special import spence

    place, cell, visible = _visible_cells(field)
    if not visible.any():
        return _balls(np.empty((0, 3)), 1.0, np.empty(0), np.empty((0, 3)))
    step = (1.02 * float(visible.sum()) * cell**3 / count) ** (1 / 3)
    centers = _lattice(place, cell, visible, step)
    depths = _densities(field, centers) * step
    order = np.argsort(-depths, kind="stable")[:count]
    kept = np.sort(order[depths[order] > _FAINT])
    opacities = np.linspace(_CUT, 0.99, 4096)
    opacity = np.interp(depths[kept] / (2 * np.pi * _BALL**2), spence(1 - opacities) - spence(1 - _CUT), opacities)
    return _balls(centers[kept], _BALL * step, opacity, _colors(field, centers[kept]))


def _balls(centers: Floats, width: float, opacity: Floats, colors: Floats) -> Splats:
    up = np.tile(np.array([0, 0, 1], np.float32), (len(centers), 1))
    widths = np.full(len(centers), width, np.float32)
    return Splats(centers.astype(np.float32), up, widths, colors, opacity.astype(np.float32), flatness=1.0)


def _visible_cells(field: Field) -> tuple[Floats, float, NDArray[np.bool_]]:
    """Lowest corner (3,) of a box, the side of its cells, and which cells (X, Y, Z) hold something that can be seen.

    A look at the whole cube finds the box; only near what it found is looked at closely. What can be seen is what
    enough light reaches along one of the axes at least.
    """
    from scipy import ndimage

    reach = max(field.scene_radius, field.reach)
    wide = 2 * reach / _COARSE
    low = np.full(3, -reach)
    coarse = _densities(field, _middles(low, wide, np.ones((_COARSE,) * 3, np.bool_))).reshape((_COARSE,) * 3) * wide
    there = ndimage.binary_dilation(coarse > _FAINT, np.ones((3, 3, 3)))
    if not there.any():
        return low, wide, there
    box = [slice(int(along.min()), int(along.max()) + 1) for along in np.nonzero(there)]
    looked, low = there[tuple(box)], low + wide * np.array([each.start for each in box])
    looked &= ndimage.maximum_filter(_light(coarse), 3)[tuple(box)] > _HIDDEN
    cell = wide * max(looked.shape) / _FINE
    index = [
        np.minimum(((np.arange(round(n * wide / cell)) + 0.5) * cell / wide).astype(int), n - 1) for n in looked.shape
    ]
    near = looked[np.ix_(*index)]
    # Cells that no look went to are empty or, well inside, opaque.
    depth = np.where(coarse[tuple(box)] > 1, np.float32(9), np.float32(0))[np.ix_(*index)]
    depth[near] = _densities(field, _middles(low, cell, near)) * cell
    return low, cell, near & (depth > _FAINT * cell / wide) & (_light(depth) > _HIDDEN)


def _light(depth: Floats) -> Floats:
    """Share of light that reaches cells of optical depths (X, Y, Z) from the axis where it is most."""
    most = np.zeros_like(depth)
    for axis in range(3):
        behind = np.cumsum(depth, axis)
        total = np.take(behind, [-1], axis)
        np.maximum(most, np.exp(-(behind - depth)), out=most)
        np.maximum(most, np.exp(-(total - behind)), out=most)
    return most


def _middles(low: Floats, cell: float, chosen: NDArray[np.bool_]) -> Floats:
    """Middles (N, 3) of the chosen cells (X, Y, Z) of a box."""
    return low + (np.argwhere(chosen) + 0.5) * cell


def _lattice(low: Floats, cell: float, chosen: NDArray[np.bool_], step: float) -> Floats:
    """Points (N, 3) of a lattice ``step`` apart that lie in the chosen cells (X, Y, Z), a layer at a time."""
    counts = [max(int(np.ceil(n * cell / step)), 1) for n in chosen.shape]
    middles = [(np.arange(count) + 0.5) * step for count in counts]
    cells = [np.minimum((along / cell).astype(int), n - 1) for along, n in zip(middles, chosen.shape, strict=True)]
    layers = []
    for x, in_cell in zip(middles[0], cells[0], strict=True):
        y, z = np.nonzero(chosen[in_cell][np.ix_(cells[1], cells[2])])
        layers.append(np.stack([np.full(len(y), x), middles[1][y], middles[2][z]], -1))
    return low + np.concatenate(layers)


def _densities(field: Field, points: Floats) -> Floats:
    """(N,) of a field at world points (N, 3); what is no number counts as empty."""
    found = evaluate_chunks(field.density, points, field.device, _CHUNK).reshape(-1)
    return np.nan_to_num(found, nan=0.0, posinf=1e6, neginf=0.0)


def _colors(field: Field, points: Floats) -> NDArray[np.float32]:
    """(N, 3) sRGB of a field at world points (N, 3)."""
    if not len(points):
        return np.empty((0, 3), np.float32)
    colors = evaluate_chunks(field.color_function(), points, field.device, _CHUNK)
    return np.nan_to_num(colors, nan=0.5).clip(0, 1).astype(np.float32)


def write_splats(splats: Splats, path: str | Path, matrix: Floats) -> None:
    """Write splats as the binary PLY of 3D Gaussian Splatting; the same splats give the same bytes.

    Args:
        splats: in the world frame.
        path: of the ``.ply`` file.
        matrix: (4, 4) from the world to the export frame (y up, metres), a rotation and an even scale; the file's axes
            are turned from that as `CONVENTION` says.

    Raises:
        OutputError: the file could not be written.

    Source:
        Kerbl et al. 2023, arXiv 2308.04079, and the attribute names of its published point clouds.
    """
    whole = np.diag([1.0, -1.0, -1.0, 1.0]) @ matrix
    scale = float(np.linalg.det(whole[:3, :3])) ** (1 / 3)
    centers = splats.centers.astype(np.float64) @ whole[:3, :3].T + whole[:3, 3]
    normals = splats.normals.astype(np.float64) @ (whole[:3, :3].T / scale)
    widths = np.log(splats.widths.astype(np.float64) * scale)
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"]
    names += ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    rows = np.empty((len(centers), len(names)), "<f4")
    rows[:, 0:3], rows[:, 3:6] = centers, normals
    rows[:, 6:9] = (splats.colors.astype(np.float64) - 0.5) / SH_C0
    opacity = np.clip(np.asarray(splats.opacity, np.float64), 1e-4, 1 - 1e-4)
    rows[:, 9] = np.log(opacity / (1 - opacity))
    rows[:, 10:12], rows[:, 12] = widths[:, None], widths + np.log(splats.flatness)
    rows[:, 13:17] = turned_to(normals)
    axes = "x right, y down, front -z (COLMAP)"
    header = ["ply", "format binary_little_endian 1.0", f"comment trilift: {axes}, metres, SH degree 0"]
    header += [f"element vertex {len(rows)}", *(f"property float {name}" for name in names), "end_header"]
    write_bytes_whole(path, ("\n".join(header) + "\n").encode("ascii") + rows.tobytes())


def turned_to(normals: Floats) -> Floats:
    """Unit quaternions (N, 4), w x y z, of the shortest turns that take the z axis to unit ``normals`` (N, 3)."""
    x, y, z = np.moveaxis(np.asarray(normals, np.float64), -1, 0)
    quaternion = np.stack([1 + z, -y, x, np.zeros_like(x)], -1)
    # Straight down there is no shortest turn: any half turn about a level axis will do.
    quaternion = np.where((z < -1 + 1e-12)[:, None], (0.0, 1.0, 0.0, 0.0), quaternion)
    unit: Floats = quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True)
    return unit
