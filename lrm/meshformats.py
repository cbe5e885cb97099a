"""A mesh as the files of each format; `lrm.meshfile` is the door."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multiview.color import bytes_from_unit, linear_from_srgb
from multiview.errors import MeshError

from .fileframe import Y_UP, FileFrame
from .glb import ROUGHNESS, Surface, glb_bytes, gltf_files, png_bytes
from .mesh import Mesh
from .threemf import threemf_bytes

Files = dict[str, bytes]


@dataclass(frozen=True, eq=False)
class Style:
    """What is written beside the mesh itself.

    Attributes:
        stem: of the file, for the names of the files that stand beside it.
        generator: program and version.
        extras: JSON values for glTF's ``asset.extras``; other formats have no place for them.
        roughness: of the material, 0 to 1, where the format has one.
        normal_map: (H, W, 3) uint8 for the mesh's UVs, see `lrm.normalmap`; None for none.
        frame: axes and unit of the file.
    """

    stem: str
    generator: str = "trilift"
    extras: Mapping[str, Any] = field(default_factory=dict)
    roughness: float = ROUGHNESS
    normal_map: NDArray[np.uint8] | None = None
    frame: FileFrame = Y_UP

    @property
    def plain_stem(self) -> str:
        """The stem without blanks and signs that mean something in URIs, for formats that name other files."""
        return re.sub(r"[\s%#?]+", "_", self.stem) or "mesh"


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


def _surface(placed: PlacedMesh, style: Style) -> Surface:
    """Colours and material for glTF: the baked texture when there is one, else the vertex colours in linear light."""
    mesh = placed.mesh
    attributes = vertex_attributes(mesh)
    if mesh.uvs is None or mesh.texture is None:
        # 16 bits keep apart dark colours that 8 linear bits would join.
        linear = linear_from_srgb(mesh.colors.clip(0, 1))
        return Surface(linear_colors=linear, roughness=style.roughness, attributes=attributes)
    tangents = None
    if style.normal_map is not None:
        from .normalmap import vertex_tangents

        tangents = vertex_tangents(placed.vertices, mesh.faces, placed.normals, mesh.uvs)
    return Surface(
        uvs=mesh.uvs, texture=mesh.texture, normal_map=style.normal_map, tangents=tangents, roughness=style.roughness,
        attributes=attributes,
    )  # fmt: skip


def vertex_attributes(mesh: Mesh) -> dict[str, NDArray[np.float32]]:
    """The further numbers that a mesh carries for each vertex, (N,) float32 by name, such as ``confidence``."""
    held: Mapping[str, Any] = getattr(mesh, "attributes", None) or {}
    return {name: np.asarray(values, np.float32) for name, values in held.items()}


def _glb(placed: PlacedMesh, style: Style) -> Files:
    data = glb_bytes(
        placed.vertices, placed.mesh.faces, placed.normals, surface=_surface(placed, style), generator=style.generator,
        extras=style.extras,
    )  # fmt: skip
    return {f"{style.stem}.glb": data}


def _gltf(placed: PlacedMesh, style: Style) -> Files:
    return gltf_files(
        placed.vertices, placed.mesh.faces, placed.normals, surface=_surface(placed, style), generator=style.generator,
        extras=style.extras, stem=style.plain_stem,
    )  # fmt: skip


def _obj(placed: PlacedMesh, style: Style) -> Files:
    """Text with a material file and pictures beside it for a baked texture, or with vertex colours."""
    mesh = placed.mesh
    if mesh.uvs is None or mesh.texture is None:
        return {f"{style.stem}.obj": _colored_obj(placed, style)}
    stem = style.plain_stem
    pictures = {f"{stem}_color.png": png_bytes(mesh.texture)}
    if style.normal_map is not None:
        pictures[f"{stem}_normal.png"] = png_bytes(style.normal_map)
    return {
        **pictures,
        f"{stem}.mtl": _mtl(stem, style),
        f"{style.stem}.obj": _textured_obj(placed, mesh.uvs, stem, style),
    }


def _colored_obj(placed: PlacedMesh, style: Style) -> bytes:
    """``v x y z r g b`` with sRGB colours in [0, 1], ``vn``, and ``f v//vn`` counted from 1."""
    rows = np.concatenate([placed.vertices, placed.mesh.colors.clip(0, 1)], -1).tolist()
    lines = [f"# trilift: {style.frame.words}, sRGB vertex colours", "o object"]
    lines += ["v %.7g %.7g %.7g %.4f %.4f %.4f" % tuple(row) for row in rows]  # noqa: UP031 (twice as fast here)
    lines += ["vn %.4f %.4f %.4f" % tuple(row) for row in placed.normals.tolist()]  # noqa: UP031
    lines += [f"f {a}//{a} {b}//{b} {c}//{c}" for a, b, c in (placed.mesh.faces.astype(np.int64) + 1).tolist()]
    return ("\n".join(lines) + "\n").encode("ascii")


def _textured_obj(placed: PlacedMesh, uvs: NDArray[Any], stem: str, style: Style) -> bytes:
    """``v``, ``vt`` (v up, as here), ``vn`` and ``f v/vt/vn``, with the material of ``stem.mtl``."""
    lines = [f"# trilift: {style.frame.words}", f"mtllib {stem}.mtl", "o object"]
    lines += ["v %.7g %.7g %.7g" % tuple(row) for row in placed.vertices.tolist()]  # noqa: UP031
    lines += ["vt %.6f %.6f" % tuple(row) for row in uvs.tolist()]  # noqa: UP031
    lines += ["vn %.4f %.4f %.4f" % tuple(row) for row in placed.normals.tolist()]  # noqa: UP031
    lines.append("usemtl surface")
    corners = (placed.mesh.faces.astype(np.int64) + 1).tolist()
    lines += [f"f {a}/{a}/{a} {b}/{b}/{b} {c}/{c}/{c}" for a, b, c in corners]
    return ("\n".join(lines) + "\n").encode("utf-8")


def _mtl(stem: str, style: Style) -> bytes:
    """One diffuse material; ``Pr`` and ``Pm`` are the roughness and metalness that newer readers know."""
    lines = ["newmtl surface", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", "d 1", "illum 1", f"Pr {style.roughness:g}", "Pm 0"]
    lines.append(f"map_Kd {stem}_color.png")
    if style.normal_map is not None:
        lines += [f"norm {stem}_normal.png", f"map_Bump {stem}_normal.png"]
    return ("\n".join(lines) + "\n").encode("utf-8")


def _ply(placed: PlacedMesh, style: Style) -> Files:
    """Binary little-endian PLY: positions, normals, sRGB bytes, further attributes, and faces as lists of three."""
    vertices, faces, more = placed.vertices, placed.mesh.faces, vertex_attributes(placed.mesh)
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment trilift: {style.frame.words}, sRGB vertex colours",
        f"element vertex {len(vertices)}",
        *(f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
        *(f"property float {name}" for name in more),
        f"element face {len(faces)}",
        "property list uchar int vertex_indices",
        "end_header",
    ]
    kinds = [("position", "<f4", (3,)), ("normal", "<f4", (3,)), ("color", "u1", (3,))]
    rows = np.empty(len(vertices), np.dtype([*kinds, *((name, "<f4") for name in more)]))
    rows["position"], rows["normal"], rows["color"] = vertices, placed.normals, bytes_from_unit(placed.mesh.colors)
    for name, values in more.items():
        rows[name] = values
    lists = np.empty(len(faces), [("count", "u1"), ("indices", "<i4", 3)])
    lists["count"], lists["indices"] = 3, faces
    return {f"{style.stem}.ply": ("\n".join(header) + "\n").encode("ascii") + rows.tobytes() + lists.tobytes()}


def _stl(placed: PlacedMesh, style: Style) -> Files:
    """Binary STL: face normals and corners; no colours (attribute bytes 0)."""
    corners = placed.vertices[placed.mesh.faces]
    edges = corners.astype(np.float64)
    normals = np.cross(edges[:, 1] - edges[:, 0], edges[:, 2] - edges[:, 0])
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    facets = np.zeros(len(corners), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    facets["normal"] = normals / np.where(length > 0, length, 1.0)
    facets["corners"] = corners
    # The header must not begin with "solid": readers would take the file for text.
    head = f"trilift, {style.frame.words}".encode("ascii").ljust(80, b"\0")
    return {f"{style.stem}.stl": head + np.uint32(len(corners)).tobytes() + facets.tobytes()}


def _3mf(placed: PlacedMesh, style: Style) -> Files:
    """See `lrm.threemf.threemf_bytes`."""
    mesh = placed.mesh
    data = threemf_bytes(placed.vertices, mesh.faces, mesh.colors, unit=style.frame.unit, generator=style.generator)
    return {f"{style.stem}.3mf": data}


def _usdz(placed: PlacedMesh, style: Style) -> Files:
    """A USD mesh packed by usd-core, see `lrm.usdz`."""
    from .usdz import usdz_bytes

    return {f"{style.stem}.usdz": usdz_bytes(placed, style)}


ENCODERS: dict[str, Callable[[PlacedMesh, Style], Files]] = {
    "glb": _glb,
    "obj": _obj,
    "ply": _ply,
    "stl": _stl,
    "usdz": _usdz,
    "gltf": _gltf,
    "3mf": _3mf,
}
"""For each format the files of one mesh by name, those that others refer to first."""
