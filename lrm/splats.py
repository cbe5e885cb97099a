"""Gaussian splats of a field: flat discs on its surface, in the file layout that splat viewers share."""

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


@dataclass(frozen=True)
class Splats:
    """Gaussians in the world frame.

    Attributes:
        centers: (N, 3) float32 world units.
        normals: (N, 3) float32 unit, the thin axis of each.
        widths: (N,) float32 standard deviation along the surface, world units; across it a tenth of that.
        colors: (N, 3) float32 sRGB in [0, 1].
        opacity: of every Gaussian at its middle, in (0, 1).
    """

    centers: NDArray[np.float32]
    normals: NDArray[np.float32]
    widths: NDArray[np.float32]
    colors: NDArray[np.float32]
    opacity: float = _OPACITY


def splats_from_field(field: Field, mesh: Mesh, count: int = 100_000, *, seed: int = 0) -> Splats:
    """Cover the surface of a field with flat Gaussians.

    Args:
        field: asked for the colours.
        mesh: its surface; where the discs lie, and how they are turned.
        count: Gaussians, at least 1; spread evenly over the surface.
        seed: of where in their places they lie.

    Raises:
        SettingsError: ``count`` below 1.
        MeshError: the mesh has no surface.
    """
    if count < 1:
        raise SettingsError(f"splats={count}: expected at least 1.")
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
    colors = evaluate_chunks(field.color_function(), centers, field.device, _CHUNK)
    width = np.full(count, _WIDTH * np.sqrt(total / count), np.float32)
    return Splats(centers, normals.astype(np.float32), width, np.clip(colors, 0, 1).astype(np.float32))


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
    rows[:, 9] = np.log(splats.opacity / (1 - splats.opacity))
    rows[:, 10:12], rows[:, 12] = widths[:, None], widths + np.log(_FLATNESS)
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
