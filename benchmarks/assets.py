"""What comes out of lifts, measured: decimation, watertightness, splats, and the size and time of every format.

The embedded model lifts rendered views of val objects (or the pictures given). For each: the surface distance between
the fine mesh and the one of ``--faces``, both ways; what `lrm.topology.repaired` finds and leaves; the share of faces
that cross others before and after; splats against the field's own picture; seconds of CPU and megabytes of each format.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrm.mesh import Mesh
from lrm.meshfile import FORMATS, write_mesh
from lrm.nearest import NearestOnMesh
from lrm.remesh import isotropic
from lrm.topology import crossed_share, find_defects_in_places, repaired
from multiview.files import write_json_whole

_SAMPLES = 20_000
_SURELY_NEAR = 0.001  # of the longest side: distances up to here may be told a little too large, greater ones are exact


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark and print a table; see ``--help``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks assets", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("photos", nargs="*", type=Path, help="pictures (default: those of ../shared/data/images)")
    parser.add_argument("--limit", type=int, default=8, help="lift at most so many (default %(default)s)")
    parser.add_argument("--resolution", type=int, default=192, help="of the fine mesh (default %(default)s)")
    parser.add_argument("--faces", type=int, default=20_000, help="of the decimated one (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--val", type=int, metavar="N", help="lift N val objects, drawn from 20 degrees above, instead")
    options = parser.parse_args(arguments)
    data = Path(__file__).resolve().parents[2] / "shared" / "data"
    photos = list(options.photos) or _pictures(data / "images")[: options.limit]
    pictures: list[tuple[str, Any]] = [(photo.name, photo) for photo in photos]
    if options.val:
        pictures = _drawn(data / "objects" / "val", options.val)
    if not pictures:
        parser.error("no pictures: name some")
    from trilift.pipeline import ImageTo3D

    pipe, rows = ImageTo3D.from_pretrained("tiny"), []
    for name, picture in pictures:
        asset = pipe(picture, resolution=options.resolution)
        rows.append({"photo": name, **measure(asset.mesh, options.faces)})
        print(_line(rows[-1]), flush=True)
    print(_summary(rows))
    if options.json:
        write_json_whole(options.json, {"faces": options.faces, "resolution": options.resolution, "rows": rows})
    return 0


def measure(mesh: Mesh, faces: int) -> dict[str, Any]:
    """Everything about one fine mesh, as plain JSON values."""
    from trilift.shape import decimated

    few, decimate_s = _timed(lambda: decimated(mesh, faces))
    even, remesh_s = _timed(lambda: isotropic(mesh, faces))
    (solid, told), repair_s = _timed(lambda: repaired(few))
    return {
        "faces": len(mesh.faces),
        "defects": str(find_defects_in_places(mesh.vertices, mesh.faces)),
        "decimated": {**distance(mesh, few), "faces": len(few.faces), "cpu_s": decimate_s},
        "isotropic": {**distance(mesh, even), "faces": len(even.faces), "cpu_s": remesh_s},
        "decimated_defects": str(find_defects_in_places(few.vertices, few.faces)),
        "repaired_defects": str(find_defects_in_places(solid.vertices, solid.faces)),
        "repaired": list(told),
        "repair_cpu_s": repair_s,
        "volume": solid.volume,
        "crossed_before": crossed_share(few),
        "crossed_after": crossed_share(solid),
        "files": file_costs(few),
    }


def distance(a: Mesh, b: Mesh) -> dict[str, float]:
    """Distances between two surfaces in per cent of the longest side of ``a``: mean of both ways, 99th of a hundred,
    and the largest of the samples, which is exact."""
    from lrm.metrics import sample_surface

    rng, side = np.random.default_rng(0), float(a.extent.max())
    near = _SURELY_NEAR * side
    there = NearestOnMesh(b).distances(sample_surface(a, _SAMPLES, rng).astype(np.float64), above=near)
    back = NearestOnMesh(a).distances(sample_surface(b, _SAMPLES, rng).astype(np.float64), above=near)
    both = np.concatenate([there, back]) * 100 / side
    return {"mean": float(both.mean()), "p99": float(np.quantile(both, 0.99)), "max": float(both.max())}


def file_costs(mesh: Mesh) -> dict[str, dict[str, float]]:
    """CPU seconds and megabytes of writing each format."""
    costs = {}
    for name in FORMATS:
        if name == "usdz" and importlib.util.find_spec("pxr") is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"a.{name}"
            files, seconds = _timed(lambda path=path: write_mesh(mesh, path))  # type: ignore[misc]
            costs[name] = {"cpu_s": seconds, "megabytes": sum(file.stat().st_size for file in files) / 1e6}
    return costs


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    done = work()
    return done, round(time.process_time() - start, 3)


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if file.suffix in (".png", ".jpg")) if folder.is_dir() else []


def _drawn(folder: Path, count: int) -> list[tuple[str, Any]]:
    """Names and pictures (256, 256, 4) uint8 of ``count`` objects, spread over the folder."""
    from lrm.meshfile import read_mesh
    from lrm.raster import render_mesh
    from multiview.cameras import orbit
    from trilift.turntable import view_bytes

    files = sorted(folder.glob("*.glb")) if folder.is_dir() else []
    camera = orbit(30.0, 20.0, 2.6, 40.0)
    chosen = files[:: max(len(files) // count, 1)][:count]
    return [(file.stem, view_bytes(render_mesh(read_mesh(file), camera, 256))[0]) for file in chosen]


def _line(row: dict[str, Any]) -> str:
    near, even = row["decimated"], row["isotropic"]
    return (
        f"{row['photo']:<22} {row['faces']:>7} faces ({row['defects']}); to {near['faces']}: mean {near['mean']:.3f} % "
        f"p99 {near['p99']:.3f} % max {near['max']:.3f} %, {near['cpu_s']:.1f} s; isotropic {even['faces']}: "
        f"mean {even['mean']:.3f} % max {even['max']:.3f} %, {even['cpu_s']:.1f} s; defects {row['decimated_defects']} "
        f"-> {row['repaired_defects']}, crossed {row['crossed_before']:.4f} -> {row['crossed_after']:.4f}"
    )


def _summary(rows: list[dict[str, Any]]) -> str:
    worst = max(row["decimated"]["mean"] for row in rows)
    solid = sum(row["repaired_defects"] == "none" and row["volume"] > 0 for row in rows)
    sizes = {name: np.mean([row["files"][name]["megabytes"] for row in rows]) for name in rows[0]["files"]}
    seconds = {name: np.mean([row["files"][name]["cpu_s"] for row in rows]) for name in rows[0]["files"]}
    written = ", ".join(f"{name} {sizes[name]:.2f} MB {seconds[name]:.2f} s" for name in sizes)
    return (
        f"{len(rows)} lifts: worst mean distance {worst:.3f} % of the longest side, {solid} of {len(rows)} solid after "
        f"repair; files: {written}"
    )
