"""Points of a surface as cameras see it: depth maps, thinned to one point for each cell of a lattice."""

from __future__ import annotations

import numpy as np

from lrm.mesh import Mesh
from lrm.metrics import Floats
from lrm.raster import rasterize
from multiview.cameras import Cameras
from multiview.errors import MeshError


def depth_points(mesh: Mesh, cameras: Cameras, image_size: int, spacing: float) -> Floats:
    """Lift the depth maps of a mesh to points; what no camera sees is not among them.

    Args:
        mesh: in the world frame.
        cameras: V cameras.
        image_size: pixels per side of the depth maps; a point for each pixel centre that meets the surface.
        spacing: side of the cells, world units, one of them about the origin; all points in one become their mean.

    Returns:
        (P, 3) float64, world units, sorted by cell.

    Raises:
        MeshError: no camera sees anything of it.

    Source:
        SyncDreamer's eval_mesh.py: Open3D's voxel_down_sample of all its depth maps' points together, whose lattice
        begins half a cell below the lowest point; ours does not depend on the points.
    """
    seen = [_lifted(mesh, cameras.select([index]), image_size) for index in range(len(cameras))]
    points = np.concatenate(seen) if seen else np.zeros((0, 3))
    if not len(points):
        raise MeshError(f"points from depth maps want a surface that {len(cameras)} cameras see, found none.")
    cells = np.rint(points / spacing).astype(np.int64)  # so that faces at whole cells are not torn apart by rounding
    _, inverse, count = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    cell = inverse.reshape(-1)
    return np.stack([np.bincount(cell, points[:, axis]) / count for axis in range(3)], 1)


def _lifted(mesh: Mesh, camera: Cameras, size: int) -> Floats:
    """(P, 3) points of the surface at the pixel centres of one camera."""
    fragments = rasterize(mesh, camera, size, size)
    hit = fragments.face >= 0
    corners = mesh.vertices.astype(np.float64)[mesh.faces[fragments.face[hit]]]
    points: Floats = (corners * fragments.weights[hit][..., None]).sum(1)
    return points
