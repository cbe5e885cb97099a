"""Reading written files back, with other libraries than the ones that wrote them, and holding them to a profile.

trimesh reads GLB, glTF, OBJ, PLY and STL, usd-core USDZ; 3MF is read by `lrm.threemf.read_3mf`, apart from its writer.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrm.fileframe import UNITS, FileFrame
from lrm.mesh import Mesh
from lrm.topology import find_defects_in_places
from multiview.color import srgb_from_linear

from .profiles import Profile

Floats = NDArray[np.floating[Any]]

_NEAR = 1e-4  # of the longest side: how far corners may be from where they belong; text formats round
_COLOR_NEAR = 0.02  # in sRGB: readers that keep linear light in 8 bits are off by that in the mean of dark colours


@dataclass(frozen=True)
class ReadBack:
    """A mesh file as another library sees it.

    Attributes:
        corners: (F, 3, 3) corners of the triangles in file axes and units.
        color: (3,) mean sRGB over the triangles' corners, or None for a format without colours.
        unit: that the file states, of `UNITS`; None where it states none.
    """

    corners: Floats
    color: Floats | None
    unit: str | None = None


def check_export(
    path: Path, mesh: Mesh, matrix: Floats, frame: FileFrame, profile: Profile, *, beside: Sequence[Path] = ()
) -> list[dict[str, Any]]:
    """Read one mesh file back and compare it with what it should hold.

    Args:
        path: the file.
        mesh: what was written, world frame.
        matrix: (4, 4) from the world to the export frame.
        frame: axes and unit that the file should have.
        profile: what is wanted of it.
        beside: pictures and the like that belong to the file.

    Returns:
        One row for each check: ``file``, ``check``, ``pass``, ``found`` and ``wanted``, in words.
    """
    try:
        seen = read_back(path)
    # A foreign parser meets our file: whatever it stumbles over is what the row is there to tell.
    except Exception as error:
        return [_row(path, "opens", False, f"{type(error).__name__}: {error}"[:200], "a mesh")]
    whole = frame.matrix @ matrix
    corners = (mesh.vertices.astype(np.float64) @ whole[:3, :3].T + whole[:3, 3])[mesh.faces]
    rows = [_row(path, "opens", len(seen.corners) == len(corners), f"{len(seen.corners)} faces", f"{len(corners)}")]
    if len(seen.corners) != len(corners):
        return rows
    rows += [*_place_rows(path, seen, corners, frame), *_color_rows(path, seen, mesh)]
    if profile.faces is not None:
        rows.append(_row(path, "faces", len(corners) <= profile.faces, f"{len(corners)}", f"at most {profile.faces}"))
    if profile.watertight:
        rows += _solid_rows(path, seen)
    size = sum(file.stat().st_size for file in (path, *beside)) / 1e6
    rows.append(_row(path, "size", size <= profile.megabytes, f"{size:.2f} MB", f"at most {profile.megabytes:g} MB"))
    return rows


def read_back(path: Path) -> ReadBack:
    """Open a mesh file with another library than the one that wrote it."""
    suffix = path.suffix.lower()
    if suffix == ".usdz":
        return _read_usdz(path)
    if suffix == ".3mf":
        from lrm.threemf import file_unit, read_3mf

        triangles = read_3mf(path)
        # read_3mf turns y up; the file's own axes are z up.
        corners = triangles.vertices[triangles.faces][..., [0, 2, 1]] * (1, -1, 1)
        return ReadBack(corners, triangles.colors[triangles.faces].mean((0, 1)), file_unit(path))
    return _read_with_trimesh(path)


def _read_with_trimesh(path: Path) -> ReadBack:
    import trimesh

    loaded: Any = trimesh.load(str(path), process=False, maintain_order=True)
    # A scene's geometry is taken as it is: our files have one node without a transform.
    (mesh,) = loaded.geometry.values() if isinstance(loaded, trimesh.Scene) else (loaded,)
    corners = np.asarray(mesh.vertices, np.float64)[mesh.faces]
    if path.suffix.lower() == ".stl":
        return ReadBack(corners, None)
    unit = "metre" if path.suffix.lower() in (".glb", ".gltf") else None
    return ReadBack(corners, _trimesh_colors(mesh)[mesh.faces].mean((0, 1)), unit)


def _trimesh_colors(mesh: Any) -> Floats:
    """sRGB (N, 3) of the vertices of a trimesh mesh."""
    visual = mesh.visual
    if visual.kind == "texture" and visual.uv is not None:
        visual = visual.to_color()
    elif visual.kind == "texture":
        # glTF's COLOR_0, linear light as the file has it; its pictures are sRGB.
        linear = np.asarray(visual.vertex_attributes["color"])[:, :3]
        return srgb_from_linear(linear / np.float64(np.iinfo(linear.dtype).max))
    colors: Floats = np.asarray(visual.vertex_colors)[:, :3] / 255
    return colors


def _read_usdz(path: Path) -> ReadBack:
    """Through usd-core; the colour of a textured mesh is not looked at."""
    usd, geom = (importlib.import_module(f"pxr.{name}") for name in ("Usd", "UsdGeom"))
    stage = usd.Stage.Open(str(path))
    mesh = next(geom.Mesh(prim) for prim in stage.Traverse() if prim.IsA(geom.Mesh))
    faces = np.asarray(mesh.GetFaceVertexIndicesAttr().Get(), np.int64).reshape(-1, 3)
    points = np.asarray(mesh.GetPointsAttr().Get(), np.float64)
    shown = mesh.GetDisplayColorAttr().Get()
    color = None if shown is None else srgb_from_linear(np.asarray(shown, np.float64))[faces].mean((0, 1))
    metres = float(geom.GetStageMetersPerUnit(stage))
    unit = next((name for name, length in UNITS.items() if abs(length - metres) < 1e-9), f"{metres:g} metres")
    if geom.GetStageUpAxis(stage) != geom.Tokens.y:
        raise ValueError("the stage is not y up")
    return ReadBack(points[faces], color, unit)


def _place_rows(path: Path, seen: ReadBack, corners: Floats, frame: FileFrame) -> list[dict[str, Any]]:
    """Axes, front and winding, which are all told by where the corners are; the unit; the size."""
    side = float(np.ptp(corners.reshape(-1, 3), axis=0).max())
    off = float(np.abs(seen.corners - corners).max()) / side
    found_side = float(np.ptp(seen.corners.reshape(-1, 3), axis=0).max())
    wanted_axes = f"{frame.words}, faces outward"
    rows = [_row(path, "axes", off <= _NEAR, wanted_axes if off <= _NEAR else f"corners off by {off:.2%}", wanted_axes)]
    rows.append(
        _row(path, "unit", seen.unit in (None, frame.unit), seen.unit or "not stated by the format", frame.unit)
    )
    metres, wanted = found_side * UNITS[frame.unit], side * UNITS[frame.unit]
    fits = abs(metres - wanted) <= 1e-3 * wanted
    return [*rows, _row(path, "longest side", fits, f"{metres:.6g} m", f"{wanted:.6g} m")]


def _color_rows(path: Path, seen: ReadBack, mesh: Mesh) -> list[dict[str, Any]]:
    """The mean colour, where the format has colours."""
    if seen.color is None:
        return []
    wanted = _mean_color(mesh, textured=mesh.texture is not None and path.suffix.lower() not in (".ply", ".3mf"))
    off = float(np.abs(seen.color - wanted).max())
    return [_row(path, "colors", off <= _COLOR_NEAR, _percent(seen.color), _percent(wanted))]


def _mean_color(mesh: Mesh, *, textured: bool) -> Floats:
    """(3,) mean sRGB over the corners of the faces, of the texture or the vertices."""
    if textured and mesh.texture is not None and mesh.uvs is not None:
        height, width = mesh.texture.shape[:2]
        column = np.clip((mesh.uvs[:, 0] * width).astype(int), 0, width - 1)
        row = np.clip(((1 - mesh.uvs[:, 1]) * height).astype(int), 0, height - 1)
        colors = mesh.texture[row, column] / 255
    else:
        colors = mesh.colors.astype(np.float64)
    mean: Floats = colors[mesh.faces].mean((0, 1))
    return mean


def _solid_rows(path: Path, seen: ReadBack) -> list[dict[str, Any]]:
    """Closed, manifold, outward: after joining corners at one place, as slicers do."""
    points = seen.corners.reshape(-1, 3).astype(np.float32)
    defects = find_defects_in_places(points, np.arange(len(points)).reshape(-1, 3))
    a, b, c = seen.corners.transpose(1, 0, 2)
    volume = float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)
    return [
        _row(path, "watertight", not defects, "closed and manifold" if not defects else str(defects), "a solid"),
        _row(path, "volume", volume > 0, f"{volume:.6g} cubic file units", "above 0"),
    ]


def _row(path: Path, check: str, passes: bool, found: str, wanted: str) -> dict[str, Any]:
    return {"file": path.name, "check": check, "pass": bool(passes), "found": found, "wanted": wanted}


def _percent(color: Floats) -> str:
    return "mean sRGB " + " ".join(f"{value:.3f}" for value in color)
