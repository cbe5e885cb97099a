"""Mesh extraction against plain dense evaluation of the same field: time, evaluations, agreement, memory.

The field has TripoSR's size and is fitted to a teapot, since random weights have no surface. ``dense`` is what the
reference programs do: `Field.density` in chunks at every sample of the cube, then PyMCubes. ``ours`` is
`extract_mesh` as it is, colours and refined vertices included, on the same lattice (``fit_box=False``). Both run in
one child process, ours before and after dense, so that a busy machine slows both; CPU seconds stand beside the wall's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from lrm.field import Field
from lrm.lattice import Floats, Ints, Lattice
from lrm.mesh import ExtractionReport, Mesh, extract_mesh_with_report
from lrm.pieces import outer_faces
from multiview.files import write_json_whole

from .teapot import teapot_field

_DENSE_CHUNK = 8192  # points, as TripoSR
_TO_THE_END = 40  # evaluations for each vertex, more than any needs
_REPEATS = 2  # of ours, on either side of dense; the best one counts


def main(arguments: list[str]) -> int:
    """Run the benchmark and print a table; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks extraction", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="dense and ours at 128 only")
    parser.add_argument("--dense", type=int, default=256, help="resolution of the dense comparison (default 256)")
    parser.add_argument("--resolutions", default="128,256,512,1024", help="of ours, for memory and growth of cost")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        kind, resolution = options.child.split(":")
        print(json.dumps({"compare": compare, "alone": alone}[kind](int(resolution))))
        return 0
    dense = 128 if options.quick else options.dense
    resolutions = [128] if options.quick else [int(n) for n in options.resolutions.split(",")]
    teapot_field()  # fit once, outside of what is measured
    alone_rows = [_in_child("alone", n) for n in resolutions]
    result: dict[str, Any] = {
        "machine": {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "compare": _in_child("compare", dense),
        "alone": alone_rows,
        "exponents": _exponents(alone_rows),
    }
    print(_table(result))
    if options.json is not None:
        write_json_whole(options.json, result)
    return 0


def compare(resolution: int) -> dict[str, Any]:
    """Measure dense and ours on one lattice of ``resolution`` samples per axis, and how well the meshes agree.

    Agreement is that of our unrefined vertices with those of a dense mesh in the logarithm of density, where both
    interpolate linearly. ``moved`` is how far ours, as users get it, lies from the level set of the same edges found to
    the last digit in fp32. ``level_error`` says how far from the level the vertices of both end, as a reference
    program leaves them (linear in density) and as we do.
    """
    field = teapot_field()
    ours: list[dict[str, float]] = []

    def run() -> None:
        for _ in range(_REPEATS):
            (made, report), spent = _timed(lambda: _ours(field, resolution))
            ours.append({**spent, "evaluations": report.evaluations})
            meshes.append(made)

    meshes: list[Mesh] = []
    run()
    values, dense = _timed(lambda: dense_density(field, resolution))
    run()
    best = min(ours, key=lambda r: r["wall"])
    plain, faces = dense_mesh(field, values - np.float32(field.level))
    stays, _ = outer_faces(plain, faces, 0.01)
    used = np.unique(faces[stays])
    seen = np.log(np.maximum(values, np.finfo(np.float32).tiny))  # where it is 0, the side is all that it tells
    logarithmic, _ = dense_mesh(field, seen - np.float32(math.log(field.level)))
    unrefined, _ = _ours(field, resolution, refine_steps=0)
    with mock.patch("lrm.field.multiplies_bf16", lambda: False):
        truth, _ = _ours(field, resolution, refine_steps=_TO_THE_END)
    return {
        "resolution": resolution,
        "dense": {**dense, "evaluations": resolution**3},
        "ours": best,
        "ratio_wall": dense["wall"] / best["wall"],
        "ratio_cpu": dense["cpu"] / min(r["cpu"] for r in ours),
        "ratio_evaluations": resolution**3 / best["evaluations"],
        "faces": {"dense": int(stays.sum()), "ours": len(meshes[-1].faces)},
        "vertex_distance": _symmetric_distance(logarithmic[used], unrefined.vertices, float(unrefined.extent.max())),
        "moved": _moved(meshes[-1], truth),
        "level_error": {"dense": _level_error(field, plain[used]), "ours": _level_error(field, meshes[-1].vertices)},
    }


def alone(resolution: int) -> dict[str, Any]:
    """Measure ours by itself, with the settings that users get: time and peak memory of this process."""
    field = teapot_field()
    before = _peak_mib()
    (mesh, report), spent = _timed(lambda: extract_mesh_with_report(field, mesh_resolution=resolution))
    return {
        "resolution": resolution, **spent, "evaluations": report.evaluations, "cells": report.cells,
        "vertices": len(mesh.vertices), "faces": len(mesh.faces), "peak_mib": _peak_mib(), "peak_before_mib": before,
    }  # fmt: skip


def dense_density(field: Field, resolution: int) -> Floats:
    """Density (n, n, n) at linspace(-scene_radius, scene_radius, n) along each axis, every sample, in chunks."""
    axis = torch.linspace(-field.scene_radius, field.scene_radius, resolution)
    parts: list[torch.Tensor] = []
    with torch.no_grad():
        for x in axis:
            y, z = torch.meshgrid(axis, axis, indexing="ij")
            slab = torch.stack([x.expand_as(y), y, z], -1).reshape(-1, 3)
            parts.extend(field.density(chunk) for chunk in slab.split(_DENSE_CHUNK))
    return np.asarray(torch.cat(parts).numpy()).reshape((resolution,) * 3)


def dense_mesh(field: Field, values: Floats) -> tuple[Floats, Ints]:
    """PyMCubes over (n, n, n), > 0 inside, closed at the cube's border: vertices (N, 3) world units, faces (F, 3)."""
    import mcubes

    n, r = len(values), field.scene_radius
    padded = np.pad(values, 1, constant_values=np.float32(-1e6))  # so far below that vertices stay at the cube's face
    vertices, faces = mcubes.marching_cubes(padded, 0.0)
    return Lattice((-r, -r, -r), 2 * r / (n - 1), (n, n, n)).positions(vertices), faces.astype(np.int64)


def _ours(field: Field, resolution: int, **settings: Any) -> tuple[Mesh, ExtractionReport]:
    return extract_mesh_with_report(field, mesh_resolution=resolution, fit_box=False, threshold=field.level, **settings)


def _timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def _symmetric_distance(a: Floats, b: Floats, longest: float) -> dict[str, float]:
    """Largest and mean distance from each vertex to the nearest of the other mesh, as a share of the longest side."""
    from scipy.spatial import cKDTree

    distances = np.concatenate([cKDTree(b).query(a)[0], cKDTree(a).query(b)[0]]) / longest
    return {"max": float(distances.max()), "mean": float(distances.mean())}


def _moved(mesh: Mesh, truth: Mesh) -> dict[str, float]:
    """Largest and mean distance of the vertices of two meshes with the same faces, as shares of the longest side."""
    if not np.array_equal(mesh.faces, truth.faces):
        return {"max": math.nan, "mean": math.nan}
    distances = np.linalg.norm(mesh.vertices - truth.vertices, axis=1) / float(truth.extent.max())
    return {"max": float(distances.max()), "mean": float(distances.mean())}


def _level_error(field: Field, vertices: Floats) -> float:
    """Mean |raw density - level| at the vertices."""
    raw = field.raw_density()
    values = raw.raw(torch.from_numpy(np.ascontiguousarray(vertices, np.float32)))
    return float((values - raw.from_density(field.level)).abs().mean())


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


def _in_child(kind: str, resolution: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks", "extraction", "--child", f"{kind}:{resolution}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _exponents(rows: list[dict[str, Any]]) -> dict[str, float]:
    """p in cost ~ resolution ** p, from the first to the last row."""
    if len(rows) < 2:
        return {}
    first, last = rows[0], rows[-1]
    step = math.log(last["resolution"] / first["resolution"])
    return {key: math.log(last[key] / first[key]) / step for key in ("wall", "cpu", "evaluations", "faces")}


def _table(result: dict[str, Any]) -> str:
    c = result["compare"]
    lines = [
        f"{c['resolution']} samples per axis, whole cube, {result['machine']['threads']} threads",
        f"  {'':8}{'wall s':>10}{'CPU s':>10}{'evaluations':>14}{'faces':>10}{'|raw - level|':>16}",
        *(
            f"  {k:8}{c[k]['wall']:10.2f}{c[k]['cpu']:10.2f}{c[k]['evaluations']:14,d}{c['faces'][k]:10,d}"
            f"{c['level_error'][k]:16.2e}"
            for k in ("dense", "ours")
        ),
        f"  ratio   {c['ratio_wall']:10.1f}{c['ratio_cpu']:10.1f}{c['ratio_evaluations']:14.1f}",
        f"  vertices differ by {c['vertex_distance']['max']:.1e} of the longest side at most, "
        f"{c['vertex_distance']['mean']:.1e} on average",
        f"  ours lies within {c['moved']['max']:.1e} of the longest side of its edges' exact points, "
        f"{c['moved']['mean']:.1e} on average",
        "",
        "extract_mesh alone, box fitted",
        f"  {'samples':>8}{'wall s':>10}{'CPU s':>10}{'evaluations':>14}{'faces':>12}{'peak MiB':>10}",
    ]
    for row in result["alone"]:
        lines.append(
            f"  {row['resolution']:8d}{row['wall']:10.2f}{row['cpu']:10.2f}{row['evaluations']:14,d}{row['faces']:12,d}"
            f"{row['peak_mib']:10.0f}"
        )
    if result["exponents"]:
        powers = ", ".join(f"{v:.2f} ({k})" for k, v in result["exponents"].items())
        lines.append(f"  cost grows as samples to the power {powers}")
    return "\n".join(lines)
