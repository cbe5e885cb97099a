"""Colours of a mesh from the pictures that see it.

The embedded model takes the shape from all its views but, trained on objects whose sides look alike, hardly any colour
from others than the first. Where photographs of other sides were given, what they show is painted on.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from lrm.mesh import Mesh
from lrm.raster import rasterize
from multiview.cameras import project
from multiview.views import Views

_DEPTH_SLACK = 0.02  # of the mesh's longest side: how far behind the surface that a view sees a vertex may lie
_SURE = 0.3  # weight from which a picture's colour replaces the mesh's own entirely
_SOLID = 0.9  # alpha from which a pixel is the object's alone


def painted(mesh: Mesh, views: Views) -> Mesh:
    """Blend what pictures show into the colours of the vertices that they see.

    A picture counts for a vertex by the square of the cosine between its normal and the direction to the camera, and
    not at all where another part of the mesh is in front or the matte is not solid. Vertices that no picture sees keep
    their colours, those seen at a slant are blended.

    Args:
        mesh: in the world of the views' cameras.
        views: at least one.

    Returns:
        The mesh with other colours.
    """
    vertices = np.asarray(mesh.vertices, np.float64)
    slack = _DEPTH_SLACK * float(np.ptp(vertices, axis=0).max())
    total, colors = np.zeros(len(vertices)), np.zeros((len(vertices), 3))
    for index in range(len(views)):
        weight, shown = _seen(mesh, views.select([index]), slack)
        total += weight
        colors += weight[:, None] * shown
    share = np.clip(total / _SURE, 0, 1)[:, None]
    blended = share * colors / np.maximum(total, 1e-9)[:, None] + (1 - share) * np.asarray(mesh.colors)
    return replace(mesh, colors=blended.astype(np.float32))


def _seen(mesh: Mesh, view: Views, slack: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (N,) and colours (N, 3) of the vertices as one picture shows them."""
    points = torch.as_tensor(np.asarray(mesh.vertices), dtype=torch.float32)
    places, depths = (t[0] for t in project(view.cameras, points))
    grid = (places * 2 - 1)[None, None]
    height, width = view.image_size
    drawn = rasterize(mesh, view.cameras, height, width)
    front = torch.as_tensor(np.where(drawn.face >= 0, drawn.depth, np.inf), dtype=torch.float32)
    before = F.grid_sample(front.clamp(max=1e6)[None, None], grid, mode="nearest", align_corners=False)[0, 0, 0]
    pixels = F.grid_sample(torch.cat([view.images, view.alpha], 1), grid, align_corners=False)[0, :, 0]
    toward = F.normalize(view.cameras.positions[0] - points, dim=1)
    facing = (torch.as_tensor(_normals(mesh), dtype=torch.float32) * toward).sum(1).clamp(min=0)
    visible = (depths <= before + slack) & (pixels[3] > _SOLID)
    return (facing.square() * visible).double().numpy(), pixels[:3].T.double().numpy()


def _normals(mesh: Mesh) -> NDArray[np.float64]:
    """Unit vertex normals (N, 3), faces weighted by area."""
    vertices, faces = np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    cross, normals = np.cross(b - a, c - a), np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], cross)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
