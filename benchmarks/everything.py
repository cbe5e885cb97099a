"""``python -m benchmarks``: the figures that the README quotes, in one run, beside their floors and a plain baseline.

Parts: ``lift`` (the embedded model, cold process to files, by stage), ``extraction`` (a field of TripoSR's size, fitted
to a teapot), ``triposr`` (process start to GLB at full size), ``networks`` (the published architectures on filled
weights), ``views`` (the embedded generator), ``growth`` (cost against resolution, faces, views and batch), ``memory``
(peaks by model), ``folder`` (a run of many photos, and of two workers). The baseline is this project's plain path in
the same run: fp32 and dense grids. Ours and plain take turns, so that a busy machine slows
both; ratios are of neighbours in time, with their spread. Floors are the counted operations and bytes at the rates at
which this machine multiplies large matrices and copies memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .extraction import compare
from .machine import Machine, measure_machine
from .pictures import EXAMPLES
from .plot import chart, page
from .teapot import teapot_field
from .triposr import Meter, plain_ways

Row = dict[str, Any]


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes and one repeat: a few minutes")
    parser.add_argument("--only", metavar="PART,PART", help=f"of {','.join(PARTS)} (default: all)")
    parser.add_argument("--repeats", type=int, help="turns of ours and plain (default 3, with --quick 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw how cost grows")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(_CHILDREN[options.child.split(":")[0]](*options.child.split(":")[1:])))
        return 0
    wanted = list(PARTS) if options.only is None else options.only.split(",")
    if unknown := [name for name in wanted if name not in PARTS]:
        parser.error(f"--only {','.join(unknown)}: expected parts of {', '.join(PARTS)}")
    repeats = options.repeats or (1 if options.quick else 3)
    machine = measure_machine(512, 30) if options.quick else measure_machine()
    print(_told(machine), flush=True)
    result: Row = {"machine": asdict(machine), "quick": options.quick, "repeats": repeats}
    for name in wanted:
        result[name] = PARTS[name](machine, options.quick, repeats)
        print(f"\n{name}\n{_TABLES[name](result[name])}", flush=True)
    if options.json is not None:
        from multiview.files import write_json_whole

        write_json_whole(options.json, result)
    if options.plot is not None and "growth" in result:
        write_plot(options.plot, result["growth"])
    return 0


def spread(values: Sequence[float]) -> Row:
    """Median, least and most of repeats."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "runs": len(values)}


def taking_turns(ours: Callable[[], Row], plain: Callable[[], Row], repeats: int) -> tuple[list[Row], list[Row]]:
    """Rows of both, ours and plain by turns."""
    pairs = [(ours(), plain()) for _ in range(repeats)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def ratios(ours: Sequence[Row], plain: Sequence[Row], key: str) -> Row:
    """How many times as much of ``key`` each plain row took as ours of the same turn."""
    return spread([b[key] / max(a[key], 1e-9) for a, b in zip(ours, plain, strict=True)])


# The embedded model, process start to files.


def lift(machine: Machine, quick: bool, repeats: int) -> Row:
    """Stages of a lift in processes of their own, ours and plain, floors beside them."""
    resolution = 48 if quick else 256

    def one(way: str) -> Row:
        return _in_child(f"lift:{way}:{resolution}:{time.time()}")

    ours, plain = taking_turns(lambda: one("ours"), lambda: one("plain"), repeats)
    stages = [_stage_row(name, ours, machine) for name in ours[0]["stages"]]
    return {
        "resolution": resolution, "faces": ours[0]["faces"], "stages": stages,
        "wall": spread([row["wall"] for row in ours]), "cpu": spread([row["cpu"] for row in ours]),
        "peak_mib": max(row["peak_mib"] for row in ours), "own_mib": max(row["own_mib"] for row in ours),
        "plain": {key: spread([row[key] for row in plain]) for key in ("wall", "cpu", "peak_mib")},
        "ratio_wall": ratios(ours, plain, "wall"), "ratio_cpu": ratios(ours, plain, "cpu"),
    }  # fmt: skip


def _stage_row(name: str, runs: Sequence[Row], machine: Machine) -> Row:
    """One stage of several runs: seconds, memory and the floor of what it has to do."""
    rows = [run["stages"][name] for run in runs]
    flop, moved = runs[0]["flop"].get(name, 0.0), runs[0]["bytes"].get(name, 0.0)
    return {
        "stage": name, "wall": spread([row["wall"] for row in rows]), "cpu": spread([row["cpu"] for row in rows]),
        "peak_mib": max(row["peak_mib"] for row in rows),
        "floor": machine.floor_seconds(flop=flop, bytes_moved=moved),
    }  # fmt: skip


def lift_child(way: str, resolution: str, began: str) -> Row:
    """Lift the example in this process, which was started at the time ``began``; ``way`` is ``ours`` or ``plain``."""
    meter = Meter("import", float(began))
    from trilift import ImageTo3D

    with plain_ways() if way == "plain" else nullcontext(), tempfile.TemporaryDirectory() as out:
        meter.stage("weights")
        pipe = ImageTo3D.from_pretrained("tiny", device="cpu", dtype="fp32", on_note=lambda text: None)
        asset = pipe(EXAMPLES / "chair.png", resolution=int(resolution), on_stage=meter.stage)
        meter.stage("write")
        written = sum(file.stat().st_size for file in asset.save(Path(out) / "lifted"))
        stages = {row["stage"]: row for row in meter.close()}
    points = asset.record["extraction"]["evaluations"]
    size = pipe.model.image_size
    conditioning = asset.cutout.conditioning(size)[None]
    weights = sum(t.numel() * t.element_size() for t in pipe.model.network.parameters())  # type: ignore[attr-defined]
    return {
        "stages": stages, "faces": len(asset.mesh.faces), "evaluations": points,
        "flop": {
            "network": counted_flop(lambda: pipe.model.reconstruct(conditioning)),
            "mesh": points * _point_flop(asset.field),
        },
        "bytes": {"weights": float(weights), "write": float(written)},
        **{key: sum(row[key] for row in stages.values()) for key in ("wall", "cpu")},
        "peak_mib": max(row["peak_mib"] for row in stages.values()),
        "own_mib": max(row["anonymous_mib"] for row in stages.values()),
    }  # fmt: skip


@torch.no_grad()
def counted_flop(work: Callable[[], Any]) -> float:
    """Floating-point operations of the matrix products, convolutions and attention of some work, as torch counts."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    # The CPU's kernel is one that torch's table lacks.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={kernel: attention}) as counter:
        work()
    return float(counter.get_total_flops())


def _point_flop(field: Any, count: int = 4096) -> float:
    """Operations of one evaluation of a field's density."""
    points = (torch.rand(count, 3, generator=torch.Generator().manual_seed(0)) - 0.5) * field.scene_radius
    return counted_flop(lambda: field.density(points)) / count


# A field of TripoSR's size.


def extraction(machine: Machine, quick: bool, repeats: int) -> Row:
    """`benchmarks.extraction.compare` several times, in this process: dense and ours stand in each."""
    resolution = 48 if quick else 256
    field = teapot_field()
    rows = [compare(resolution) for _ in range(repeats)]
    flop = rows[0]["ours"]["evaluations"] * _point_flop(field)
    return {
        "resolution": resolution, "ours": {key: spread([r["ours"][key] for r in rows]) for key in ("wall", "cpu")},
        "plain": {key: spread([r["dense"][key] for r in rows]) for key in ("wall", "cpu")},
        "ratio_wall": spread([r["ratio_wall"] for r in rows]), "ratio_cpu": spread([r["ratio_cpu"] for r in rows]),
        "evaluations": rows[0]["ours"]["evaluations"], "vertex_distance": rows[0]["vertex_distance"],
        "floor": machine.floor_seconds(flop=flop),
    }  # fmt: skip


# TripoSR, process start to GLB.


def triposr(machine: Machine, quick: bool, repeats: int) -> Row:
    """`benchmarks.triposr` in bf16, the plain way, in fp32, and in bf16 again: plain stands between two of ours."""
    del machine, repeats
    from .triposr import PLAIN, filled_weights
    from .triposr import _in_child as lift_in_child

    layers, resolution = (1, 48) if quick else (16, 256)
    asked = argparse.Namespace(photo=EXAMPLES / "chair.png", resolution=resolution, surface="teapot")
    teapot_field()  # fitted once, outside of what is measured
    with tempfile.TemporaryDirectory() as folder:
        filled_weights(Path(folder), layers)
        runs = [_whole_lift(lift_in_child(Path(folder), way, asked)) for way in ("bf16", PLAIN, "fp32", "bf16")]
    ours, plain = [runs[0], runs[3]], runs[1]
    return {
        "layers": layers, "resolution": resolution, "bf16": ours, "fp32": runs[2], "plain": plain,
        **{f"ratio_{key}": spread([plain[key] / max(each[key], 1e-9) for each in ours]) for key in ("wall", "cpu")},
        "network_over_floor": spread([each["network"] / each["floor"] for each in ours]),
    }  # fmt: skip


def _whole_lift(row: Row) -> Row:
    """What `benchmarks.triposr` measured in a process, summed up."""
    stages = row["stages"]
    network = [stage for stage in stages if stage["stage"] in ("encoder", "decoder", "planes")]
    return {
        "stages": stages, **{key: sum(stage[key] for stage in stages) for key in ("wall", "cpu")},
        "network": sum(stage["wall"] for stage in network), "floor": row["tflop"] / row["tflop_per_s"],
        "peak_mib": max(stage["peak_mib"] for stage in stages),
        "own_mib": max(stage["anonymous_mib"] for stage in stages),
    }  # fmt: skip


# The published networks.


def networks(machine: Machine, quick: bool, repeats: int) -> Row:
    """Each published reconstruction network on filled weights, in bf16 and in plain fp32, by turns."""
    return {name: _network_row(name, machine, quick, repeats) for name in ("triposr", "openlrm", "instantmesh")}


def _network_row(name: str, machine: Machine, quick: bool, repeats: int) -> Row:
    with torch.device("meta"):  # to be counted nothing need be worked out
        network = published_network(name, quick)
        inputs = network_inputs(name, network.config)
    flop = counted_flop(lambda: network(*inputs))

    def one(dtype: str) -> Row:
        return _in_child(f"network:{name}:{dtype}:{int(quick)}")

    ours, plain = taking_turns(lambda: one("bf16"), lambda: one("fp32"), repeats)
    return {
        "tflop": flop / 1e12, "ours": {key: spread([r[key] for r in ours]) for key in ("wall", "cpu")},
        "plain": {key: spread([r[key] for r in plain]) for key in ("wall", "cpu")},
        "floor": machine.floor_seconds(flop=flop, dtype="bf16"), "plain_floor": machine.floor_seconds(flop=flop),
        "ratio_wall": ratios(ours, plain, "wall"), "ratio_cpu": ratios(ours, plain, "cpu"),
        "peak_mib": max(r["peak_mib"] for r in ours), "plain_peak_mib": max(r["peak_mib"] for r in plain),
    }  # fmt: skip


def network_child(name: str, dtype: str, quick: str) -> Row:
    """A network's first pass in this process; in fp32 the plain way."""
    network = _filled_network(name, {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype], quick == "1")
    inputs = network_inputs(name, network.config)
    meter = Meter("network", time.time())
    with plain_ways() if dtype == "fp32" else nullcontext(), torch.no_grad():
        network(*inputs)
    return meter.close()[0]


def published_network(name: str, quick: bool = False) -> Any:
    """A network of the published size, or of one layer, as it comes out of its class."""
    from dataclasses import replace

    from trilift.families import find_family

    family = find_family(name)
    assert family is not None, "a published family"
    model = family.load()
    config: Any = model.config_type()
    if quick:
        config = replace(config, layers=1, vit=replace(config.vit, layers=1))
    return model.network_type(config).eval().requires_grad_(False)


def network_inputs(name: str, config: Any) -> tuple[torch.Tensor, ...]:
    """What such a network takes for one object: a picture; or with a camera; or six views with theirs."""
    side = config.image_size
    if name == "instantmesh":
        return torch.zeros(1, 6, 3, side, side), torch.zeros(1, 6, 16)
    picture = torch.zeros(1, 3, side, side)
    return (picture,) if name == "triposr" else (picture, torch.zeros(1, 16))


@torch.no_grad()
def _filled_network(name: str, dtype: torch.dtype, quick: bool) -> Any:
    """On the CPU, its weights filled with small numbers that neither vanish nor overflow."""
    from lrm.blocks import use_dtype

    with torch.device("meta"):
        network = use_dtype(published_network(name, quick), dtype)
    network = network.to_empty(device="cpu")
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.fill_(0.01)
    return network


@torch.no_grad()
def timed(work: Callable[[], Any]) -> Row:
    """Wall and CPU seconds of some work."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


# The embedded view generator.


def views(machine: Machine, quick: bool, repeats: int) -> Row:
    """The embedded generator's six views of the example."""
    from trilift import PhotoToViews

    pipe = PhotoToViews.from_pretrained("tiny-views", device="cpu", on_note=lambda text: None)
    steps = 2 if quick else None
    runs = [timed(lambda: pipe(EXAMPLES / "chair.png", view_steps=steps)) for _ in range(repeats)]
    flop = counted_flop(lambda: pipe(EXAMPLES / "chair.png", view_steps=steps))
    return {
        "wall": spread([r["wall"] for r in runs]), "cpu": spread([r["cpu"] for r in runs]), "tflop": flop / 1e12,
        "floor": machine.floor_seconds(flop=flop),
    }  # fmt: skip


# How cost grows.


def growth(machine: Machine, quick: bool, repeats: int) -> Row:
    """CPU seconds by resolution (ours and dense), faces, views and pictures together: lists of [amount, seconds]."""
    del machine
    from lrm.mesh import extract_mesh
    from trilift import ImageTo3D
    from trilift.shape import decimated

    field, pipe = teapot_field(), ImageTo3D.from_pretrained("tiny", device="cpu", on_note=lambda text: None)
    from .extraction import _exponents, dense_density

    def least(work: Callable[[], Any]) -> float:
        return min(timed(work)["cpu"] for _ in range(repeats))

    sizes, dense = ((24, 48), (16, 24)) if quick else ((128, 256, 512, 1024), (32, 64, 128))
    alone = [_in_child(f"alone:{size}") for size in sizes]
    mesh = extract_mesh(field, mesh_resolution=sizes[1])
    faces = [len(mesh.faces) // part for part in ((4, 2) if quick else (64, 16, 4, 2))]
    counts = (1, 2) if quick else (1, 2, 4, 8)
    image = torch.rand(1, 4, pipe.model.image_size, pipe.model.image_size, generator=torch.Generator().manual_seed(0))
    return {
        "resolution": [[row["resolution"], row["cpu"]] for row in alone],
        "extraction": {"alone": alone, "exponents": _exponents(alone)},
        "resolution_dense": [[n, least(lambda n=n: dense_density(field, n))] for n in dense],  # type: ignore[misc]
        "faces": [[n, least(lambda n=n: decimated(mesh, n))] for n in faces],  # type: ignore[misc]
        "views": [[n, least(lambda n=n: _views_lift(pipe.model, image, n))] for n in counts],  # type: ignore[misc]
        "batch": [[n, least(lambda n=n: pipe.model.reconstruct(image.repeat(n, 1, 1, 1)))] for n in counts],  # type: ignore[misc]
    }  # fmt: skip


def alone_child(resolution: str) -> Row:
    """`benchmarks.extraction.alone` here, with the peak of this process; what rusage says has its parent's in it."""
    from .extraction import alone

    row = alone(int(resolution))
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text("ascii", "replace").splitlines()
        row["peak_mib"] = next((int(x.split()[1]) / 1024 for x in lines if x.startswith("VmHWM:")), row["peak_mib"])
    return row


def _views_lift(model: Any, image: torch.Tensor, count: int) -> Any:
    """The embedded model on ``count`` views around an object."""
    from multiview.cameras import orbit
    from multiview.views import Views

    cameras = orbit([i * 360 / count for i in range(count)], 15.0, 2.5, 40.0)
    return model.reconstruct_views(
        Views(image[:, :3].repeat(count, 1, 1, 1), image[:, 3:].repeat(count, 1, 1, 1), cameras)
    )


def write_plot(path: Path, grown: Row) -> None:
    """Four charts of `growth` as one SVG."""
    from multiview.files import written_whole

    titles = {"resolution": "samples per axis", "faces": "triangles that are left", "views": "views of one object"}
    titles["batch"] = "pictures together"
    charts = []
    for name, across in titles.items():
        series = {name: [tuple(pair) for pair in grown[name]]}
        if name == "resolution":
            series = {"ours": series[name], "dense": [tuple(pair) for pair in grown["resolution_dense"]]}
        charts.append(chart(f"CPU seconds against {name}", across, series))
    with written_whole(path) as aside:
        aside.write_text(page(charts), "utf-8")


def memory(machine: Machine, quick: bool, repeats: int) -> Row:
    """See `benchmarks.memory`."""
    del machine, repeats
    from .memory import peaks

    return peaks(quick)


# A folder.


def folder(machine: Machine, quick: bool, repeats: int) -> Row:
    """`benchmarks.folder`: a run against a bare loop, and two worker processes against one."""
    del machine, repeats
    from trilift.settings import LiftSettings

    from .folder import overlap, workers

    count, settings = (4, LiftSettings(resolution=48, project="off")) if quick else (40, LiftSettings(project="off"))
    with tempfile.TemporaryDirectory(prefix="trilift-benchmark-") as name:
        return {
            "overlap": overlap(Path(name) / "overlap", count, settings),
            "workers": workers(Path(name) / "workers", count, settings),
        }


# Tables.


def _told(m: Machine) -> str:
    return (
        f"{m.cpus} CPUs, {m.threads} threads, torch {m.torch}: products at {m.fp32 / 1e9:.0f} GFLOP/s in fp32 and "
        f"{m.bf16 / 1e9:.0f} in bf16, copies at {m.copied / 1e9:.1f} GB/s"
    )


def _of(found: Row) -> str:
    """Median and spread of repeats."""
    return f"{found['median']:.3g} ({found['low']:.3g} to {found['high']:.3g})"


def _lift_table(part: Row) -> str:
    lines = [f"  {'stage':10}{'wall s':>26}{'CPU s':>26}{'floor s':>10}{'peak MiB':>10}"]
    lines += [
        f"  {r['stage']:10}{_of(r['wall']):>26}{_of(r['cpu']):>26}{r['floor']:10.3f}{r['peak_mib']:10.0f}"
        for r in part["stages"]
    ]
    lines.append(f"  {'all':10}{_of(part['wall']):>26}{_of(part['cpu']):>26}{'':10}{part['peak_mib']:10.0f}")
    return "\n".join([*lines, _ratio_line(part)])


def _ratio_line(part: Row) -> str:
    return f"  plain takes {_of(part['ratio_wall'])} times as long, {_of(part['ratio_cpu'])} times the CPU seconds"


def _extraction_table(part: Row) -> str:
    ours = f"  ours {_of(part['ours']['wall'])} s, floor {part['floor']:.3f} s, {part['evaluations']:,} evaluations"
    return "\n".join([ours, f"  plain {_of(part['plain']['wall'])} s", _ratio_line(part)])


def _triposr_table(part: Row) -> str:
    lines = [f"  {'':8}{'wall s':>10}{'CPU s':>10}{'network s':>11}{'peak MiB':>10}{'of it own':>11}"]
    for name, r in [*[("bf16", each) for each in part["bf16"]], ("fp32", part["fp32"]), ("plain", part["plain"])]:
        seconds = f"{r['wall']:10.2f}{r['cpu']:10.2f}{r['network']:11.2f}"
        lines.append(f"  {name:8}{seconds}{r['peak_mib']:10.0f}{r['own_mib']:11.0f}")
    floor = part["bf16"][0]["floor"]
    lines.append(f"  bf16 network {_of(part['network_over_floor'])} times its floor of {floor:.2f} s")
    stages = "  ".join(f"{stage['stage']} {stage['wall']:.2f}" for stage in part["bf16"][0]["stages"])
    return "\n".join([*lines, f"  stages in bf16, s: {stages}", _ratio_line(part)])


def _networks_table(part: Row) -> str:
    return "\n".join(
        f"  {name:12} {r['tflop']:.2f} TFLOP: bf16 {_of(r['ours']['wall'])} s, floor {r['floor']:.2f} s, peak "
        f"{r['peak_mib']:.0f} MiB; fp32 {_of(r['plain']['wall'])} s, {_of(r['ratio_wall'])} times as long, peak "
        f"{r['plain_peak_mib']:.0f} MiB"
        for name, r in part.items()
    )


def _views_table(part: Row) -> str:
    return f"  six views {_of(part['wall'])} s, {part['tflop']:.3f} TFLOP, floor {part['floor']:.3f} s"


def _growth_table(part: Row) -> str:
    pairs = {name: found for name, found in part.items() if name != "extraction"}
    lines = [f"  {name:18}" + "  ".join(f"{n}: {s:.3g} s" for n, s in found) for name, found in pairs.items()]
    rows = part["extraction"]["alone"]
    told = "  ".join(f"{r['resolution']}: {r['wall']:.2f} s, {r['peak_mib']:.0f} MiB" for r in rows)
    power = part["extraction"]["exponents"]["wall"]
    return "\n".join([*lines, f"  extraction by the clock  {told}; samples to the power {power:.2f}"])


def _folder_table(part: Row) -> str:
    over, more = part["overlap"], part["workers"]
    return (
        f"  {over['done']} photos {over['folder_run_s']:.1f} s, {over['over_network_and_meshing']:.2f} times network "
        f"and meshing alone, {over['over_bare_lifts']:.2f} times bare lifts\n  two workers of one thread lift "
        f"{more['ratio']:.2f} times as many photos as one: {more['photos_per_s_by_two']:.2f} a second"
    )


def _memory_table(part: Row) -> str:
    from .memory import table

    return table(part)


def _in_child(words: str) -> Row:
    command = [sys.executable, "-m", "benchmarks", "everything", "--child", words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


PARTS: dict[str, Callable[[Machine, bool, int], Row]] = {
    "lift": lift, "extraction": extraction, "triposr": triposr, "networks": networks, "views": views, "growth": growth,
    "memory": memory, "folder": folder,
}  # fmt: skip
_TABLES: dict[str, Callable[[Row], str]] = {
    "lift": _lift_table, "extraction": _extraction_table, "triposr": _triposr_table, "networks": _networks_table,
    "views": _views_table, "growth": _growth_table, "memory": _memory_table, "folder": _folder_table,
}  # fmt: skip
_CHILDREN: dict[str, Callable[..., Row]] = {"lift": lift_child, "network": network_child, "alone": alone_child}
