"""A mesh as the bytes of each file format; `lrm.meshfile` is the door."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multiview.color import bytes_from_unit, linear_from_srgb
from multiview.errors import MeshError, OutputError, SettingsError

from .glb import glb_bytes
from .mesh import Mesh


@dataclass(frozen=True)
class PlacedMesh:
    """A mesh with its positions in file axes.

    Attributes:
        mesh: faces, colours, texture.
        vertices: (N, 3) float32, file axes and units.
        normals: (N, 3) float32, file axes, unit length.
    """

    mesh: Mesh
    vertices: NDArray[np.float32]
    normals: NDArray[np.float32]

    @staticmethod
    def of(mesh: Mesh, matrix: NDArray[np.float64]) -> PlacedMesh:
        """Apply a world → file ``matrix`` (4, 4).

        Raises:
            MeshError: the matrix mirrors, shears, scales unevenly or is not finite.
        """
        linear = matrix[:3, :3]
        volume = float(np.linalg.det(linear)) if matrix.shape == (4, 4) and np.isfinite(matrix).all() else 0.0
        scale = volume ** (1 / 3) if volume > 0 else 0.0
        if scale == 0 or np.abs(linear.T @ linear / scale**2 - np.eye(3)).max() > 1e-6:
            raise MeshError(
                "the world to file matrix must be a rotation with an even, positive scale (no mirror, no shear), "
                f"found {matrix.tolist()}. Take it from file_matrix."
            )
        vertices = mesh.vertices.astype(np.float64) @ linear.T + matrix[:3, 3]
        normals = mesh.normals.astype(np.float64) @ (linear.T / scale)
        return PlacedMesh(mesh, vertices.astype(np.float32), normals.astype(np.float32))


def encode_glb(placed: PlacedMesh, *, generator: str, extras: Mapping[str, Any]) -> bytes:
    """GLB bytes; the baked texture when there is one, else the vertex colours as linear ``COLOR_0``."""
    mesh = placed.mesh
    textured = mesh.uvs is not None and mesh.texture is not None
    return glb_bytes(
        placed.vertices,
        mesh.faces,
        placed.normals,
        # 16 bits keep apart dark colours that 8 linear bits would join.
        linear_colors=None if textured else linear_from_srgb(mesh.colors.clip(0, 1)),
        uvs=mesh.uvs if textured else None,
        texture=mesh.texture if textured else None,
        generator=generator,
        extras=extras,
    )


def _obj(placed: PlacedMesh) -> bytes:
    """``v x y z r g b`` with sRGB colours in [0, 1], ``vn``, and ``f v//vn`` counted from 1."""
    rows = np.concatenate([placed.vertices, placed.mesh.colors.clip(0, 1)], -1).tolist()
    lines = ["# trilift: y up, front +z, sRGB vertex colours", "o object"]
    lines += ["v %.7g %.7g %.7g %.4f %.4f %.4f" % tuple(row) for row in rows]  # noqa: UP031 (twice as fast here)
    lines += ["vn %.4f %.4f %.4f" % tuple(row) for row in placed.normals.tolist()]  # noqa: UP031
    lines += [f"f {a}//{a} {b}//{b} {c}//{c}" for a, b, c in (placed.mesh.faces.astype(np.int64) + 1).tolist()]
    return ("\n".join(lines) + "\n").encode("ascii")


def _ply(placed: PlacedMesh) -> bytes:
    """Binary little-endian PLY: positions, normals, sRGB bytes, and faces as lists of three."""
    vertices, faces = placed.vertices, placed.mesh.faces
    header = [
        "ply",
        "format binary_little_endian 1.0",
        "comment trilift: y up, front +z, sRGB vertex colours",
        f"element vertex {len(vertices)}",
        *(f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
        f"element face {len(faces)}",
        "property list uchar int vertex_indices",
        "end_header",
    ]
    rows = np.empty(len(vertices), [("position", "<f4", 3), ("normal", "<f4", 3), ("color", "u1", 3)])
    rows["position"], rows["normal"], rows["color"] = vertices, placed.normals, bytes_from_unit(placed.mesh.colors)
    lists = np.empty(len(faces), [("count", "u1"), ("indices", "<i4", 3)])
    lists["count"], lists["indices"] = 3, faces
    return ("\n".join(header) + "\n").encode("ascii") + rows.tobytes() + lists.tobytes()


def _stl(placed: PlacedMesh) -> bytes:
    """Binary STL: face normals and corners; no colours (attribute bytes 0)."""
    corners = placed.vertices[placed.mesh.faces]
    edges = corners.astype(np.float64)
    normals = np.cross(edges[:, 1] - edges[:, 0], edges[:, 2] - edges[:, 0])
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    facets = np.zeros(len(corners), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    facets["normal"] = normals / np.where(length > 0, length, 1.0)
    facets["corners"] = corners
    # The header must not begin with "solid": readers would take the file for text.
    return b"trilift, y up, front +z".ljust(80, b"\0") + np.uint32(len(corners)).tobytes() + facets.tobytes()


def _usdz(placed: PlacedMesh) -> bytes:
    """A UsdGeom.Mesh with per-vertex ``displayColor`` (linear light), packed by usd-core.

    Source:
        openusd.org: UsdGeomMesh, UsdUtilsCreateNewUsdzPackage.
    """
    if importlib.util.find_spec("pxr") is None:
        raise SettingsError("writing .usdz needs usd-core, which is not installed. Try: pip install 'trilift[usd]'.")
    usd, utils = (importlib.import_module(f"pxr.{name}") for name in ("Usd", "UsdUtils"))
    with tempfile.TemporaryDirectory() as folder:
        layer, package = Path(folder) / "object.usdc", Path(folder) / "object.usdz"
        stage = usd.Stage.CreateNew(str(layer))
        _define_usd_mesh(stage, placed)
        stage.GetRootLayer().Save()
        if not utils.CreateNewUsdzPackage(str(layer), str(package)):
            raise OutputError("usd-core could not pack the .usdz archive. Check the temporary folder's free space.")
        return package.read_bytes()


def _define_usd_mesh(stage: Any, placed: PlacedMesh) -> None:
    """Put the mesh on an empty USD stage as ``/object``, y up, metres."""
    geom, sdf, types = (importlib.import_module(f"pxr.{name}") for name in ("UsdGeom", "Sdf", "Vt"))
    vectors, numbers = types.Vec3fArray.FromNumpy, types.IntArray.FromNumpy
    geom.SetStageUpAxis(stage, geom.Tokens.y)
    geom.SetStageMetersPerUnit(stage, 1.0)
    mesh = geom.Mesh.Define(stage, "/object")
    stage.SetDefaultPrim(mesh.GetPrim())
    faces = placed.mesh.faces
    mesh.CreatePointsAttr(vectors(placed.vertices))
    mesh.CreateExtentAttr(vectors(np.stack([placed.vertices.min(0), placed.vertices.max(0)])))
    mesh.CreateFaceVertexCountsAttr(numbers(np.full(len(faces), 3, np.int32)))
    mesh.CreateFaceVertexIndicesAttr(numbers(faces.reshape(-1)))
    mesh.CreateNormalsAttr(vectors(placed.normals))
    mesh.SetNormalsInterpolation(geom.Tokens.vertex)
    mesh.CreateSubdivisionSchemeAttr(geom.Tokens.none)
    color = geom.PrimvarsAPI(mesh).CreatePrimvar("displayColor", sdf.ValueTypeNames.Color3fArray, geom.Tokens.vertex)
    linear = linear_from_srgb(placed.mesh.colors.clip(0, 1))
    color.Set(vectors(np.ascontiguousarray(linear, dtype=np.float32)))


ENCODERS: dict[str, Callable[[PlacedMesh], bytes]] = {"obj": _obj, "ply": _ply, "stl": _stl, "usdz": _usdz}
