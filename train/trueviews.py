"""The ring of true views: what a perfect view generator would give, for `trilift eval --views true`."""

from __future__ import annotations

from lrm.mesh import Mesh
from multiview.cameras import Cameras, orbit
from multiview.ring import RING_AZIMUTHS_DEG, RING_ELEVATIONS_DEG
from multiview.views import Views

from .protocol import EvalProtocol
from .texturedmesh import render_textured


def true_views(mesh: Mesh, elevation_deg: float, protocol: EvalProtocol) -> Views:
    """A true object seen by the input's camera and from the ring of the embedded generator.

    Args:
        mesh: placed, and turned so that the input camera is at azimuth 0 (`train.protocol.true_mesh`).
        elevation_deg: of the input camera.
        protocol: gives distance, field of view, size and samples; the pictures are not cropped.

    Returns:
        1 + 6 views, the input's first; unlit.
    """
    distance, fov = 2 * protocol.camera_distance, protocol.fov_deg
    ring = zip(RING_AZIMUTHS_DEG, RING_ELEVATIONS_DEG, strict=True)
    cameras = [orbit(0.0, elevation_deg, distance, fov), *(orbit(a, e, distance, fov) for a, e in ring)]
    return render_textured(mesh, Cameras.cat(cameras), protocol.image_size, supersample=protocol.supersample)
