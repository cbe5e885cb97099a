"""The protocols of `trilift eval`: our own and two of the field's, as values, and what of them is a choice of ours.

docs/evaluation.md has the same in a table: what the papers say, what their code does, what they leave open.
"""

from __future__ import annotations

import math
from dataclasses import replace

from lrm.metrics import ShapeSettings
from multiview.errors import SettingsError

from .protocol import EvalProtocol

_SYNC_FOCAL, _SYNC_SIZE, _SYNC_VIEWS = 280.0, 256, 16  # of SyncDreamer's meta_info/camera-16.pkl

OURS_PROTOCOL = EvalProtocol()

TRIPOSR = replace(
    OURS_PROTOCOL,
    name="triposr",
    shape=replace(ShapeSettings(), align_pitches_deg=(-30.0, -15.0, 0.0, 15.0, 30.0), icp_steps=50),
)
"""TripoSR's and SF3D's: Chamfer and F-scores after a search of rotations and ICP."""

SYNCDREAMER = replace(
    OURS_PROTOCOL,
    name="syncdreamer",
    novel_azimuths_deg=tuple(360.0 / _SYNC_VIEWS * view for view in range(_SYNC_VIEWS)),
    novel_elevation_deg=30.0,
    novel_distance=1.5,
    novel_fov_deg=math.degrees(2 * math.atan(_SYNC_SIZE / 2 / _SYNC_FOCAL)),
    depth_points=0.01,
)
"""SyncDreamer's: unit box, no alignment, points from depth maps, its ring of 16 views."""

PROTOCOLS = {protocol.name: protocol for protocol in (OURS_PROTOCOL, TRIPOSR, SYNCDREAMER)}

HEADLINES = {
    "ours": ("iou", "chamfer", "fscore_0.1", "fscore_0.2", "fscore_0.5", "psnr", "ssim"),
    "triposr": ("chamfer_aligned", "fscore_0.1_aligned", "fscore_0.2_aligned", "fscore_0.5_aligned"),
    "syncdreamer": ("chamfer", "iou", "psnr", "ssim", "lpips"),
}
"""The keys that each protocol is about; reports hold others, too."""

_BY_AREA = {
    "unit": "half of the longest side: both meshes are centred on their boxes and scaled so that the longest side is 2",
    "points": "10,000 on each surface, uniformly by area",
    "chamfer": "un-squared, mean of both directions; a missing mesh counts as 2",
}
_SYNC = {
    "unit": "the longest side: both meshes are centred on their boxes and scaled into the unit box",
    "placed": "both meshes centred on the bounding box, longest side 1; truth turned by minus the azimuth",
    "points": "of 16 depth maps of 256 pixels, the novel views' cameras, thinned to one point per cell of 0.01",
    "aligned": "not at all",
    "chamfer": "un-squared, mean of both directions; a missing mesh counts as 1",
    "iou": "64 cubed cell centres over the unit box, inside by lrm/inside.py's rule",
}
WORDS = {
    "ours": _BY_AREA,
    "triposr": _BY_AREA
    | {"aligned": "best of 72 yaws x 5 pitches on 1,000 points by two-sided mean distance, then at most 50 rigid ICP "
       "steps with pairs both ways; no scale; keys ending in _aligned are the protocol's, the others are unaligned"},
    "syncdreamer": _SYNC,
}  # fmt: skip
"""What metrics.json says about each protocol, beside what `train.scorecard` says of all."""


def protocol_named(name: str) -> EvalProtocol:
    """One of `PROTOCOLS`.

    Raises:
        SettingsError: there is no such protocol.
    """
    if name not in PROTOCOLS:
        raise SettingsError(f"protocol={name}: expected one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
