"""``python -m benchmarks fit``: `trilift fit` against the true shapes, beside the visual hull that it starts from.

Two setups. ``ring``: SyncDreamer's 16 views at elevation 30 degrees, 256 pixels, object of longest side 1 seen from 1.5
with a field of view of 49.13 degrees. ``bands``: 32 views at elevations -20, 10 and 40 in turn, same camera, watertight
objects only. Shapes are compared as `trilift eval` does (`lrm.metrics`: IoU at 64 cubed, Chamfer, F-scores), unaligned.
Seconds are those of the fit and the surface; ``cpu`` is what the process computed meanwhile, whatever else ran.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lrm.fitviews import FittedViews, FitViewsSettings, fit_views, hull_field
from lrm.mesh import Mesh, extract_mesh
from lrm.metrics import ShapeSettings, TrueShape, occupancy, overlap, score_nothing, score_shape
from multiview.cameras import Cameras, orbit
from multiview.errors import MeshError, TriliftError
from multiview.views import Views
from train.protocol import EvalObject, find_objects, is_watertight, spread
from train.texturedmesh import render_textured
from trilift.fit import view_scores

SETUPS = ("ring", "bands")
DATA = Path(__file__).parents[1].parent / "shared" / "data" / "objects" / "val"
_SIZE = 256
_FOV_DEG = math.degrees(2 * math.atan(128 / 280))
_DISTANCE = 1.5 * 2  # `placed` objects have a longest side of 2
_BAND_ELEVATIONS_DEG = (-20.0, 10.0, 40.0)
_RESOLUTION = 192
# Alignment is not reported, so it is not searched for.
_SHAPE = replace(ShapeSettings(), align_yaws=1, align_pitches_deg=(0.0,), icp_steps=0)
_COLUMNS = ("iou", "iou_in_place", "chamfer")


def setup_cameras(setup: str) -> Cameras:
    """The cameras of a setup, about an object that is `placed`."""
    if setup == "ring":
        return orbit([22.5 * k for k in range(16)], 30.0, _DISTANCE, _FOV_DEG)
    bands = [_BAND_ELEVATIONS_DEG[k % 3] for k in range(32)]
    return orbit([11.25 * k for k in range(32)], bands, _DISTANCE, _FOV_DEG)


def shape_scores(answer: Mesh | None, truth: TrueShape) -> dict[str, float]:
    """``iou``, ``chamfer`` and the F-scores of a mesh, and ``iou_in_place``: without placing it anew."""
    scores = score_nothing(_SHAPE) if answer is None else score_shape(answer, truth)
    kept = {name: value for name, value in scores.items() if not name.endswith("_aligned")}
    kept["iou_in_place"] = 0.0 if answer is None else overlap(occupancy(answer, _SHAPE.grid), truth.occupied)
    return kept


def surface(fitted: FittedViews, views: Views) -> tuple[Mesh | None, Mesh | None]:
    """Meshes of the hull and of the fit; None where there is nothing."""
    hull = hull_field(views, fitted.field.lattice, fitted.hull)
    meshes: list[Mesh | None] = []
    for field in (hull, fitted.field):
        try:
            meshes.append(extract_mesh(field, mesh_resolution=_RESOLUTION))
        except MeshError:
            meshes.append(None)
    return meshes[0], meshes[1]


def one_object(name: str, true: Mesh, setup: str, settings: FitViewsSettings, light: bool = False) -> dict[str, Any]:
    """Draw one object, fit it, and score it beside its hull."""
    views = render_textured(true, setup_cameras(setup), _SIZE, shading=light, supersample=2)
    began, cpu = time.perf_counter(), time.process_time()
    fitted = fit_views(views, settings)
    hull, mesh = surface(fitted, views)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    truth = TrueShape.of(true, 0, _SHAPE)
    row: dict[str, Any] = {"object": name, "setup": setup, "seconds": seconds, "cpu": cpu, "dissent": fitted.dissent}
    row |= {"hull": shape_scores(hull, truth), "fit": shape_scores(mesh, truth)}
    if mesh is not None:
        row["views"] = view_scores(mesh, views)
    return row


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the objects of one setup, and what the fit gains over the hull."""
    means = {
        f"{kind}_{column}": float(np.mean([row[kind][column] for row in rows]))
        for kind in ("hull", "fit") for column in _COLUMNS
    }  # fmt: skip
    return {
        "setup": rows[0]["setup"],
        "objects": len(rows),
        **means,
        "iou_gain": means["fit_iou"] - means["hull_iou"],
        "chamfer_ratio": means["fit_chamfer"] / means["hull_chamfer"],
        "seconds": float(np.mean([row["seconds"] for row in rows])),
        "slowest": float(np.max([row["seconds"] for row in rows])),
        "cpu": float(np.mean([row["cpu"] for row in rows])),
    }


def rounded(values: Any) -> Any:
    """Numbers with four digits behind the point, in nested tables, too."""
    if isinstance(values, dict):
        return {key: rounded(value) for key, value in values.items()}
    return round(values, 4) if isinstance(values, float) else values


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks fit", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of meshes (default %(default)s)")
    parser.add_argument("--limit", type=int, default=10, help="objects of each setup (default %(default)s)")
    parser.add_argument("--setups", default=",".join(SETUPS), help="of ring,bands (default both)")
    parser.add_argument("--samples", type=int, default=FitViewsSettings().samples, help="of the field's lattice")
    parser.add_argument("--light", action="store_true", help="light the pictures softly")
    args = parser.parse_args(arguments)
    setups = args.setups.split(",")
    if not set(setups) <= set(SETUPS):
        parser.error(f"--setups {args.setups}: expected some of {','.join(SETUPS)}")
    settings = FitViewsSettings(samples=args.samples)
    failed = 0
    for setup in setups:
        rows = []
        for name, true in _objects(args.data, args.limit, watertight=setup == "bands"):
            try:
                rows.append(one_object(name, true, setup, settings, args.light))
                print(json.dumps(rounded(rows[-1])), flush=True)
            except TriliftError as error:
                failed += 1
                print(f"{name}: {error}", file=sys.stderr)
        if rows:
            print(json.dumps(rounded(summary(rows))), flush=True)
    return 1 if failed else 0


def _objects(folder: Path, limit: int, *, watertight: bool) -> list[tuple[str, Mesh]]:
    """At most ``limit`` objects, evenly spread, of those that are watertight if that is asked for."""
    read = {name: EvalObject.read(name, path).mesh for name, path in find_objects(folder).items()} if watertight else {}
    paths = {name: path for name, path in find_objects(folder).items() if not watertight or is_watertight(read[name])}
    return [(name, read.get(name) or EvalObject.read(name, path).mesh) for name, path in spread(paths, limit).items()]
