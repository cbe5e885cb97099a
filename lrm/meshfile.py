"""The one place where meshes meet files: axes, scale, colour space and winding.

Inside the project a mesh is in the world frame (z up, photographed side +x, sRGB colours). Files are y up with the
photographed side toward +z, triangles counter-clockwise seen from outside; 3MF is z up in millimetres, and an export
profile may ask for other axes and units where a format leaves the choice (`lrm.fileframe`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from multiview.cameras import gltf_from_world, world_from_gltf
from multiview.errors import MeshError, SettingsError
from multiview.files import write_bytes_whole

from .fileframe import FileFrame, frame_of
from .glb import ROUGHNESS
from .gltf import GREY, Triangles, read_gltf
from .mesh import Mesh
from .meshformats import ENCODERS, PlacedMesh, Style
from .threemf import read_3mf

FORMATS = tuple(ENCODERS)
READABLE = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off", ".3mf")

Floats = NDArray[np.float64]


def file_matrix(
    mesh: Mesh, *, longest_side: float = 1.0, scale: float | None = None, height: float | None = None
) -> Floats:
    """The map from world to file: centre the bounding box at the origin, turn the axes, scale evenly.

    Args:
        mesh: at least one vertex; its bounding box must not be a point (a flat one cannot have a height).
        longest_side: of the exported bounding box in metres, unless ``scale`` or ``height`` says otherwise.
        scale: metres per world unit.
        height: metres from the lowest to the highest point, along up.

    Returns:
        (4, 4) float64; a world point (x, y, z, 1) becomes ``matrix @ point``, y up, photographed side toward +z.

    Raises:
        SettingsError: ``scale`` and ``height`` together, or a number that is not positive and finite.
        MeshError: the bounding box has no extent to scale by.
    """
    if scale is not None and height is not None:
        raise SettingsError(f"scale={scale} and height={height} exclude each other. Give one of them.")
    for name, value in (("longest_side", longest_side), ("scale", scale), ("height", height)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise SettingsError(f"{name}={value}: expected a positive number.")
    low, high = mesh.vertices.min(0).astype(np.float64), mesh.vertices.max(0).astype(np.float64)
    extent = high - low
    if scale is None:
        side = extent[2] if height is not None else extent.max()
        if side <= 0:
            raise MeshError(f"the mesh's bounding box is {extent.tolist()}: nothing to scale to size. Give scale.")
        scale = float((height or longest_side) / side)
    axes = gltf_from_world(torch.eye(3, dtype=torch.float64)).numpy().T  # column i: where world axis i goes
    matrix = np.eye(4)
    matrix[:3, :3] = scale * axes
    matrix[:3, 3] = -matrix[:3, :3] @ ((low + high) / 2)
    return matrix


def write_mesh(
    mesh: Mesh,
    path: str | Path,
    *,
    matrix: Floats | None = None,
    frame: FileFrame | None = None,
    generator: str = "trilift",
    extras: Mapping[str, Any] | None = None,
    roughness: float = ROUGHNESS,
    normal_map: NDArray[np.uint8] | None = None,
) -> list[Path]:
    """Write a mesh in the format that the suffix names; the same mesh gives the same bytes.

    GLB and glTF: normals, vertex colours as linear ``COLOR_0`` (or the baked texture) and one rough, non-metallic,
    single-sided material, so that every viewer shows the colours; further vertex attributes as ``_NAME``. glTF has its
    arrays in ``stem.bin`` and pictures as ``stem_color.png`` and ``stem_normal.png`` beside it. OBJ: sRGB vertex
    colours, or the texture with ``stem.mtl`` and the same pictures. PLY: sRGB vertex colours and further attributes.
    STL: shape only. USDZ: ``displayColor`` or the texture, through usd-core. 3MF: sRGB colours at the corners.

    Args:
        mesh: in the world frame.
        path: ends in one of `FORMATS`; existing files are replaced.
        matrix: (4, 4) world → export frame (y up, metres), rotation and even scale; `file_matrix(mesh)` unless given.
        frame: axes and unit of the file, where the format leaves the choice.
        generator: program and version, where the format has a place for it.
        extras: JSON values for ``asset.extras`` of glTF; other formats have no place for them.
        roughness: of the material, 0 to 1, where the format has one.
        normal_map: (H, W, 3) uint8 in tangent space for the mesh's UVs (`lrm.normalmap`); for textured meshes, in
            formats that know them.

    Returns:
        The files written, the one asked for last.

    Raises:
        SettingsError: an unknown suffix, a roughness outside [0, 1], or ``.usdz`` without the usd extra.
        MeshError: the matrix does not keep shape and handedness.
        OutputError: a file could not be written; nothing half-written stays behind.
    """
    path = Path(path)
    name = path.suffix.lower().removeprefix(".")
    if name not in FORMATS:
        raise SettingsError(f"{path}: expected a mesh file ending in .{', .'.join(FORMATS)}, found {path.suffix!r}.")
    if not 0 <= roughness <= 1:
        raise SettingsError(f"roughness={roughness}: expected a number from 0 to 1.")
    own = frame_of(name, frame)
    matrix = file_matrix(mesh) if matrix is None else np.asarray(matrix, np.float64)
    if matrix.shape == (4, 4):
        matrix = own.matrix @ matrix
    style = Style(path.stem, generator, extras or {}, roughness, normal_map, own)
    files = ENCODERS[name](PlacedMesh.of(mesh, matrix), style)
    # The last one is the mesh itself: it may be spelled ".GLB", and its pictures are there before it is.
    targets = [path.with_name(beside) for beside in list(files)[:-1]] + [path]
    for target, data in zip(targets, files.values(), strict=True):
        write_bytes_whole(target, data)
    return targets


def read_mesh(path: str | Path) -> Mesh:
    """Read a mesh file of any maker into the world frame: file axes (x, y, z), y up, front +z → world (z, x, y).

    Positions keep the file's scale and origin. All nodes of a scene are joined with their transforms. Colours are
    per vertex and sRGB: glTF colours (factor x texture x ``COLOR_0``) are converted from linear light unless the file's
    ``asset.extras.color`` is ``"srgb"``; PLY, OBJ, OFF and 3MF colours are taken as sRGB; textures are read at the
    vertices; a surface that states no colour is grey 0.5. Vertices stay as the file has them; STL's are joined by
    position. 3MF is turned from z up.

    Args:
        path: one of `READABLE`, by suffix.

    Returns:
        `Mesh` in file units.

    Raises:
        MeshError: missing file, unknown suffix, not a mesh, no faces, NaN, more elements declared than the file can
            hold; the message names the file.
    """
    path = Path(path)
    if path.suffix.lower() not in READABLE:
        raise MeshError(f"{path}: expected a mesh file ending in {', '.join(READABLE)}, found {path.suffix!r}.")
    try:
        size = path.stat().st_size
        if path.is_dir() or size == 0:
            raise MeshError(f"{path}: expected a mesh file, found {'a folder' if path.is_dir() else '0 bytes'}.")
        triangles = _read_triangles(path, size)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MeshError(f"{path}: cannot be read ({reason}). Check the path and its permission.") from error
    return _world_mesh(path, triangles)


def _read_triangles(path: Path, size: int) -> Triangles:
    """By the reader of the suffix, in file axes, y up."""
    suffix = path.suffix.lower()
    if suffix in (".glb", ".gltf"):
        return read_gltf(path)
    return read_3mf(path) if suffix == ".3mf" else _read_with_trimesh(path, size)


def _world_mesh(path: Path, triangles: Triangles) -> Mesh:
    """Check what a reader gave and turn it into the world frame."""
    bad = int((~np.isfinite(triangles.vertices)).any(-1).sum())
    if len(triangles.faces) == 0 or bad:
        found = f"{bad} of {len(triangles.vertices)} vertices are NaN or Inf" if bad else "no faces"
        raise MeshError(f"{path}: expected a triangle mesh, found {found}. Export it again from where it was made.")
    vertices = world_from_gltf(torch.from_numpy(triangles.vertices)).numpy()
    try:
        return Mesh(
            vertices=np.ascontiguousarray(vertices, dtype=np.float32),
            faces=np.ascontiguousarray(triangles.faces, dtype=np.int32),
            colors=np.ascontiguousarray(triangles.colors, dtype=np.float32),
        )
    except MeshError as error:
        raise MeshError(f"{path}: {error}") from error


def _read_with_trimesh(path: Path, size: int) -> Triangles:
    """OBJ, PLY, STL and OFF through trimesh, in file axes."""
    import trimesh

    suffix = path.suffix.lower()
    _check_declared(path, size)
    try:
        loaded = trimesh.load(str(path), process=False, maintain_order=True)
        scene = loaded if isinstance(loaded, trimesh.Scene) else trimesh.Scene(loaded)
        parts = []
        for name in scene.graph.nodes_geometry:
            transform, geometry = scene.graph[name]
            mesh = scene.geometry[geometry]
            if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces):
                mesh = mesh.copy().apply_transform(transform)
                if suffix == ".stl":
                    mesh.merge_vertices()
                parts.append(colored_triangles(mesh))
        return Triangles.cat(parts)
    # A foreign parser meets foreign bytes here: whatever it stumbles over, the file is what is wrong.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise MeshError(f"{path}: not a usable {suffix[1:].upper()} mesh ({reason}). Export it again.") from error


def _check_declared(path: Path, size: int) -> None:
    """Refuse a header that declares more vertices or faces than the file has bytes, before memory is asked for."""
    with path.open("rb") as file:
        head = file.read(4096)
    counts: list[int] = []
    if path.suffix.lower() == ".ply":
        counts = [int(n) for n in re.findall(rb"^\s*element\s+\w+\s+(\d+)", head, re.MULTILINE)]
    elif path.suffix.lower() == ".off":
        text = re.sub(rb"#[^\n]*", b"", head)
        counts = [int(n) for n in re.findall(rb"\d+", text[:200])[:2]]
    elif path.suffix.lower() == ".stl" and not head.lstrip().startswith(b"solid") and len(head) >= 84:
        counts = [50 * int.from_bytes(head[80:84], "little")]
    if any(count > size for count in counts):
        raise MeshError(
            f"{path}: its header declares {max(counts)} elements or bytes of them, but the file has {size} bytes. "
            "It is cut off or damaged; copy or export it again."
        )


def colored_triangles(mesh: Any) -> Triangles:
    """A trimesh mesh → triangles with sRGB vertex colours; vertices are split where faces carry the colours."""
    visual = mesh.visual
    vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)
    if visual.kind == "face":
        colors = np.repeat(_unit(visual.face_colors), 3, axis=0)
        return Triangles(vertices[faces.reshape(-1)], np.arange(3 * len(faces)).reshape(-1, 3), colors)
    colors = np.full((len(vertices), 3), GREY)
    if visual.kind == "vertex":
        colors = _unit(visual.vertex_colors)
    elif visual.kind == "texture":
        sampled = visual.material.to_color(visual.uv) if visual.uv is not None else None
        colors[:] = _unit(visual.material.main_color if sampled is None else sampled)
    return Triangles(vertices, faces, colors)


def _unit(colors: Any) -> NDArray[np.float64]:
    """uint8 (..., 3 or 4) → (..., 3) float64 in [0, 1]."""
    return np.asarray(colors, np.float64)[..., :3] / 255
