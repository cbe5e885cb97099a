"""Reading USD files (``.usd``, ``.usda``, ``.usdc``, ``.usdz``) with usd-core, which comes with the extra ``usd``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lrm.gltf import GREY
from lrm.mesh import Mesh
from multiview.color import srgb_from_linear
from multiview.errors import MeshError


def read_usd(path: Path) -> Mesh:
    """Read all meshes of a stage into the world frame, with ``displayColor`` as their colours.

    Faces of more than three corners become fans. Materials are not read: a mesh without ``displayColor`` is grey.

    Returns:
        `Mesh` in stage units, z up, the file's front at +x as `lrm.meshfile.read_mesh` gives it.

    Raises:
        MeshError: usd-core is not installed, the file is unreadable, or it has no faces; the message names it.
    """
    try:
        from pxr import Usd, UsdGeom
    except ImportError as error:
        raise MeshError(f"{path}: USD files need usd-core. Install it with pip install 'trilift[usd]'.") from error
    try:
        stage = Usd.Stage.Open(str(path))
        prims = [prim for prim in stage.Traverse() if prim.IsA(UsdGeom.Mesh)]
        parts = [_part(UsdGeom.Mesh(prim)) for prim in prims]
        z_up = UsdGeom.GetStageUpAxis(stage) == UsdGeom.Tokens.z
    # A foreign parser meets foreign bytes here: whatever it stumbles over, the file is what is wrong.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise MeshError(f"{path}: not a usable USD stage ({reason}). Export it again.") from error
    offsets = np.cumsum([0, *(len(vertices) for vertices, _, _ in parts)])
    faces = [f + offset for (_, f, _), offset in zip(parts, offsets, strict=False)]
    if not sum(map(len, faces)):
        raise MeshError(f"{path}: expected a triangle mesh, found no faces. Export it again.")
    vertices, colors = (np.concatenate([part[i] for part in parts]) for i in (0, 2))
    # The photographed side of a z-up stage is -y, that of a y-up one +z.
    world = vertices[:, [1, 0, 2]] * (-1, 1, 1) if z_up else vertices[:, [2, 0, 1]]
    if not np.isfinite(world).all():
        raise MeshError(f"{path}: {int((~np.isfinite(world)).any(1).sum())} vertices are NaN or Inf. Export it again.")
    return Mesh(world.astype(np.float32), np.concatenate(faces).astype(np.int32), colors.astype(np.float32))


def _part(mesh: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices, one for each corner (C, 3), triangles (F, 3) and sRGB colours (C, 3) of one mesh of a stage."""
    from pxr import Gf, UsdGeom

    points = np.asarray(mesh.GetPointsAttr().Get() or [], np.float64).reshape(-1, 3)
    counts = np.asarray(mesh.GetFaceVertexCountsAttr().Get() or [], np.int64)
    corners = np.asarray(mesh.GetFaceVertexIndicesAttr().Get() or [], np.int64)
    if counts.sum() != len(corners) or (len(corners) and not 0 <= corners.min() <= corners.max() < len(points)):
        raise ValueError(
            f"{mesh.GetPath()}: {counts.sum()} corners declared, {len(corners)} given of {len(points)} points"
        )
    matrix = np.array(Gf.Matrix4d(UsdGeom.XformCache().GetLocalToWorldTransform(mesh.GetPrim())))
    placed = points @ matrix[:3, :3] + matrix[3, :3]  # rows, as USD has them
    first = np.cumsum(counts) - counts
    pairs = zip(first.tolist(), counts.tolist(), strict=True)
    fans = [np.array([[a, a + k, a + k + 1] for k in range(1, n - 1)]).reshape(-1, 3) for a, n in pairs]
    faces = np.concatenate(fans).astype(np.int64) if fans else np.zeros((0, 3), np.int64)
    left_handed = mesh.GetOrientationAttr().Get() == UsdGeom.Tokens.leftHanded
    if left_handed != (np.linalg.det(matrix[:3, :3]) < 0):
        faces = faces[:, ::-1]
    return placed[corners], faces, _corner_colors(mesh, corners, counts, len(points))


def _corner_colors(mesh: Any, corners: np.ndarray, counts: np.ndarray, points: int) -> np.ndarray:
    """(C, 3) sRGB from ``displayColor``, which is linear light, however it is spread over the mesh."""
    grey = np.full((len(corners), 3), GREY)
    primvar = mesh.GetDisplayColorPrimvar()
    if not primvar:
        return grey
    values = np.asarray(primvar.ComputeFlattened() or [], np.float64).reshape(-1, 3)
    every = np.arange(len(corners))
    index, expected = {
        "constant": (np.zeros_like(corners), 1),
        "uniform": (np.repeat(np.arange(len(counts)), counts), len(counts)),
        "vertex": (corners, points),
        "varying": (corners, points),
        "faceVarying": (every, len(corners)),
    }.get(str(primvar.GetInterpolation()), (every, -1))
    return srgb_from_linear(values[index].clip(0, 1)) if len(values) == expected else grey
