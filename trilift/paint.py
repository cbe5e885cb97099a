"""Colours of a mesh from the photographs that see it, for lifts without `trilift.texture`'s further layers.

The embedded model takes the shape from all its views but, trained on objects whose sides look alike, hardly any colour
from others than the first. Where photographs of other sides were given, what they show is painted on.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lrm.mesh import Mesh
from lrm.projection import Projector, joined
from multiview.views import Views


def painted(mesh: Mesh, views: Views) -> Mesh:
    """Blend what pictures show into the colours of the vertices that they see.

    By what rule a picture counts for a vertex, `lrm.projection` says. Vertices that no picture sees keep their colours,
    those seen at a slant or near an edge are blended.

    Args:
        mesh: in the world of the views' cameras.
        views: at least one.

    Returns:
        The mesh with other colours.
    """
    sights = [Projector(mesh, views.select([i]))(mesh.vertices, mesh.normals) for i in range(len(views))]
    weight, shown = joined(sights)
    colors = np.asarray(mesh.colors)
    return replace(mesh, colors=colors + weight[:, None] * (shown - colors))
