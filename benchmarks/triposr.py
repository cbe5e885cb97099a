"""TripoSR at its full size, from process start to GLB: seconds and peak memory by stage, in fp32 and in bf16.

The published weights are not needed: a file of the published form and size (549 tensors, 1.68 GB) is filled by the rule
that the parity tests use, once, in a temporary folder or in the one named by ``--weights``. The network does its whole
work on them, but what comes out is noise: its surface, taken at the median of its densities (``--surface filled``), has
millions of faces at 256 samples per axis, as no object has. So by default the mesh is that of a teapot to which a field
of the same size was fitted. Each number format runs in a process of its own; beside it stands the machine's own speed
in the same run, and the network's floor: its products counted, at the rate at which this process multiplies large
matrices of that number format. ``wall`` is seconds, ``CPU`` seconds of all threads together: on a busy machine half of
them is about what two quiet cores would take.

``--baseline`` runs the plain way in the same run, too: the network in fp32 with torch's own matrix products, density at
every sample of the grid in chunks of 8192, PyMCubes, colours at its vertices; everything else is the same. The last
lines compare the two.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch

from lrm.blocks import multiply_rows

from .extraction import dense_density, dense_mesh
from .lift import machine_seconds
from .pictures import EXAMPLES
from .teapot import teapot_field

if TYPE_CHECKING:
    from lrm.field import Field
    from lrm.mesh import ExtractionReport, Mesh

WEIGHTS, CONFIG = "model.ckpt", "config.yaml"
# What the published config.yaml says.
PUBLISHED_CONFIG = """
cond_image_size: 512
image_tokenizer: {pretrained_model_name_or_path: facebook/dino-vitb16}
tokenizer: {plane_size: 32, num_channels: 1024}
backbone: {in_channels: 1024, num_attention_heads: 16, attention_head_dim: 64, num_layers: 16, cross_attention_dim: 768}
post_processor: {in_channels: 1024, out_channels: 40}
decoder: {in_channels: 120, n_neurons: 64, n_hidden_layers: 9, activation: silu}
renderer:
  {radius: 0.87, feature_reduction: concat, density_activation: exp, density_bias: -1.0, num_samples_per_ray: 128}
"""
PLAIN = "plain"  # in place of a number format: the baseline
_COLOR_CHUNK = 8192  # points
_LOOK_SECONDS = 0.05
_MIB = 1 << 20


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks triposr", description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", choices=("fp32", "bf16", "auto", "both"), default="both")
    parser.add_argument("--photo", type=Path, default=EXAMPLES / "chair.png")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--surface", choices=("teapot", "filled"), default="teapot", help="what the mesh is taken of")
    parser.add_argument("--runs", type=int, default=1, help="processes for each number format (default 1)")
    parser.add_argument("--baseline", action="store_true", help="the plain way as well, once, and the ratio to it")
    parser.add_argument("--layers", type=int, default=16, help="decoder blocks; fewer than 16 are for a rehearsal")
    parser.add_argument("--weights", type=Path, help="folder for the filled weights, which are kept there")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.baseline and options.surface != "teapot":
        parser.error("--baseline goes with --surface teapot: a dense grid of noise would have millions of faces.")
    if options.child:
        dtype, began = options.child.split(":")
        print(json.dumps(measure(options, dtype, float(began))))
        return 0
    rows = []
    with ExitStack() as stack:
        folder = options.weights or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        filled_weights(folder, options.layers)
        teapot_field()  # fitted once, outside of what is measured
        dtypes = ("fp32", "bf16") if options.dtype == "both" else (options.dtype,)
        for dtype in [*[each for each in dtypes for _ in range(options.runs)], *[PLAIN] * options.baseline]:
            rows.append({"machine": machine_seconds(), **_in_child(folder, dtype, options)})
            print(table(rows[-1]), flush=True)
    if options.baseline:
        print(comparison(rows), flush=True)
    if options.json is not None:
        from multiview.files import write_json_whole

        write_json_whole(options.json, {"cpus": os.cpu_count(), "torch": torch.__version__, "rows": rows})
    return 0


def filled_weights(folder: Path, layers: int = 16) -> None:
    """Write ``model.ckpt`` and ``config.yaml`` as published, filled by the rule, unless they are there.

    Args:
        folder: made when missing.
        layers: blocks of the plane decoder; 16 as published.
    """
    from multiview.files import written_whole

    if (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: filled(key, shape) for key, shape in published_shapes(layers).items()}
    with written_whole(folder / WEIGHTS) as aside:
        torch.save(state, aside)
    (folder / CONFIG).write_text(PUBLISHED_CONFIG.replace("num_layers: 16", f"num_layers: {layers}"), "utf-8")


def published_shapes(layers: int = 16) -> dict[str, tuple[int, ...]]:
    """{published name: shape} of the full-size checkpoint, or of one with fewer decoder blocks."""
    from lrm.triposr import KEYS, TripoSRConfig, TripoSRNetwork

    config = replace(TripoSRConfig(), layers=layers)
    with torch.device("meta"):
        network = TripoSRNetwork(config)
    shapes = {KEYS.published(name): tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    pooler, width = "image_tokenizer.model.pooler.dense", config.vit.width
    return shapes | {f"{pooler}.weight": (width, width), f"{pooler}.bias": (width,)}  # published, though never read


def filled(key: str, shape: Sequence[int]) -> torch.Tensor:
    """The float32 tensor that the parity tests' rule gives for a published name and shape."""
    values = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    if key.endswith(("cls_token", "position_embeddings", "tokenizer.embeddings")):
        values *= 0.5
    elif len(shape) == 1:
        values = float(key.endswith("weight")) + 0.1 * values
    else:
        values /= math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


class Meter:
    """Seconds and peak memory of consecutive stages of this process.

    Args:
        name: of the stage that is under way.
        began: when it began, as `time.time` says; before this process, for its first stage.
        tell: called with each stage that has ended.
    """

    def __init__(self, name: str, began: float, tell: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.stages: list[dict[str, Any]] = []
        self._name, self._began, self._cpu, self._tell = name, began, 0.0, tell
        self._peak = (0.0, 0.0)
        self._lock, self._done = threading.Lock(), threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()

    def stage(self, name: str) -> None:
        """End the stage that is under way and begin another."""
        now, cpu = time.time(), time.process_time()
        with self._lock:
            rss, anonymous = (max(a, b) for a, b in zip(self._peak, memory_mib(), strict=True))
            self.stages.append(
                {
                    "stage": self._name,
                    "wall": now - self._began,
                    "cpu": cpu - self._cpu,
                    "peak_mib": rss,
                    "anonymous_mib": anonymous,
                }
            )
            self._name, self._began, self._cpu, self._peak = name, now, cpu, (0.0, 0.0)
        if self._tell is not None:
            self._tell(self.stages[-1])

    def close(self) -> list[dict[str, Any]]:
        """End the last stage; all of them, in order. A stage that came twice is there twice."""
        self.stage("")
        self._done.set()
        self._watch.join()
        return self.stages

    def _look(self) -> None:
        while not self._done.wait(_LOOK_SECONDS):
            rss, anonymous = memory_mib()
            with self._lock:
                self._peak = (max(self._peak[0], rss), max(self._peak[1], anonymous))


def memory_mib() -> tuple[float, float]:
    """This process's resident memory, and what of it is its own and not a mapped file; zeros where /proc is not."""
    try:
        lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
    except OSError:
        return 0.0, 0.0
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS:", "RssAnon:"))}
    return int(values.get("VmRSS", 0)) / 1024, int(values.get("RssAnon", 0)) / 1024


def measure(options: argparse.Namespace, dtype: str, began: float) -> dict[str, Any]:
    """Lift the photo in this process, which was started at the time ``began``; each stage is told on stderr."""
    meter = Meter("start", began, lambda row: print(_line(row), file=sys.stderr, flush=True))
    from trilift import ImageTo3D

    meter.stage("weights")
    asked = "fp32" if dtype == PLAIN else dtype
    pipe = ImageTo3D.from_pretrained(options.weights, device="cpu", dtype=asked, on_note=lambda text: None)
    network: Any = pipe.model.network  # type: ignore[attr-defined]
    # The network's parts say when they begin; what comes before the encoder is the picture's own preparation.
    network.vit.register_forward_pre_hook(lambda *_: meter.stage("encoder"))
    network.vit.register_forward_hook(lambda *_: meter.stage("decoder"))
    network.upsampler.register_forward_pre_hook(lambda *_: meter.stage("planes"))
    if options.surface == "teapot":
        pipe.model.field = lambda planes: teapot_field()  # type: ignore[attr-defined]
    threshold = "median" if options.surface == "filled" else "auto"
    with ExitStack() as stack:
        if dtype == PLAIN:
            stack.enter_context(plain_ways())
        asset = pipe(options.photo, resolution=options.resolution, threshold=threshold, on_stage=meter.stage)
        meter.stage("write")
        out = stack.enter_context(tempfile.TemporaryDirectory())
        glb = next(path for path in asset.save(Path(out) / "lifted") if path.suffix == ".glb")
        size = glb.stat().st_size
    stages = meter.close()
    return {
        "dtype": dtype, "ran": pipe.dtype, "tflop": network_flop(network.config) / 1e12,
        "tflop_per_s": product_rate(pipe.model.dtype) / 1e12,  # type: ignore[attr-defined]
        "tflop_per_cpu_s": product_rate(pipe.model.dtype, clock=time.process_time) / 1e12,  # type: ignore[attr-defined]
        "surface": options.surface, "resolution": options.resolution,
        "threads": torch.get_num_threads(), "stages": stages, "vertices": len(asset.mesh.vertices),
        "faces": len(asset.mesh.faces), "glb_mib": size / _MIB,
    }  # fmt: skip


@contextmanager
def plain_ways() -> Iterator[None]:
    """Inside, fp32 products are torch's own and surfaces are taken from dense grids."""
    with (
        mock.patch("lrm.blocks.mkl_is_slow", lambda: False),
        mock.patch("trilift.pipeline.extract_mesh_with_report", plain_extraction),
    ):
        yield


def plain_extraction(field: Field, *, mesh_resolution: int, **others: Any) -> tuple[Mesh, ExtractionReport]:
    """The surface at the field's level as the reference programs take it; ``others`` are not looked at.

    Args:
        field: on the CPU.
        mesh_resolution: samples per axis of the whole cube.
    """
    from lrm.mesh import ExtractionReport, Mesh

    began, r = time.perf_counter(), field.scene_radius
    vertices, faces = dense_mesh(field, dense_density(field, mesh_resolution) - np.float32(field.level))
    with torch.no_grad():
        colors = torch.cat([field.color(chunk) for chunk in torch.from_numpy(vertices).split(_COLOR_CHUNK)])
    report = ExtractionReport(
        threshold=field.level, threshold_chosen="level", mesh_resolution=mesh_resolution,
        shape=(mesh_resolution,) * 3, box=((-r,) * 3, (r,) * 3), way="dense", evaluations=mesh_resolution**3,
        cells=len(vertices), pieces_dropped=0, touched_border=False, warnings=(),
        seconds=time.perf_counter() - began,
    )  # fmt: skip
    return Mesh(vertices, faces, colors.numpy()), report


def network_flop(config: Any) -> float:
    """Floating-point operations of the matrix products of one picture through `lrm.triposr.TripoSRNetwork`.

    Args:
        config: a `lrm.triposr.TripoSRConfig`; a multiplication with its addition counts as two.
    """
    v, width = config.vit, config.heads * config.head_width
    patches, tokens = (config.image_size // v.patch_size) ** 2, 3 * config.plane_size**2
    seen = patches + 1
    encoder = patches * 3 * v.patch_size**2 * v.width
    encoder += v.layers * seen * v.width * (4 * v.width + 2 * seen + 2 * v.mlp_width)
    own = tokens * width * (4 * width + 2 * tokens)
    cross = tokens * width * (2 * width + 2 * seen) + 2 * seen * v.width * width
    geglu = tokens * width * 12 * width  # to twice the hidden width of 4 * width, and back from it
    ends = 2 * tokens * config.channels * width + tokens * config.channels * 4 * config.plane_channels
    return 2.0 * (encoder + config.layers * (own + cross + geglu) + ends)


@torch.no_grad()
def product_rate(
    dtype: torch.dtype, side: int = 2048, times: int = 8, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Floating-point operations per second of products of (side, side) matrices here, the best of a few.

    The product is the one that `lrm.blocks.Linear` makes, so that the floor of fp32 is the faster library's.
    """
    a, b = (torch.randn(side, side, generator=torch.Generator().manual_seed(s)).to(dtype) for s in (0, 1))
    seconds = []
    for _ in range(times + 1):
        began = clock()
        multiply_rows(a, b, None)
        seconds.append(clock() - began)
    return 2 * side**3 / min(seconds[1:])


def _in_child(folder: Path, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks", "triposr", "--child", f"{dtype}:{time.time()}"]
    command += ["--weights", str(folder), "--photo", str(options.photo)]
    command += ["--resolution", str(options.resolution), "--surface", options.surface]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(row: dict[str, Any]) -> str:
    """One run as text: a line for each stage, and their sum."""
    stages = row["stages"]
    network = [s for s in stages if s["stage"] in ("encoder", "decoder", "planes")]
    seconds, cpu = (sum(s[kind] for s in network) for kind in ("wall", "cpu"))
    rate = row["tflop_per_s"]
    floor = row["tflop"] / rate
    lines = [
        f"TripoSR, {row['dtype']} ({row['ran']}), {row['surface']}, {row['threads']} threads, "
        f"{row['resolution']} samples per axis ({row['faces']:,} faces, GLB of {row['glb_mib']:.0f} MiB)",
        f"  network: {row['tflop']:.2f} TFLOP in {seconds:.2f} s; floor {floor:.2f} s at {rate:.2f} TFLOP/s, "
        f"{seconds / floor:.2f} times that, "
        f"{cpu * row['tflop_per_cpu_s'] / row['tflop']:.2f} times by CPU seconds; 20 products of 2048² in fp32: "
        f"{row['machine']:.2f} s",
        f"  {'stage':10}{'wall':>8}{'CPU':>8}{'peak MiB':>10}{'of it own':>11}",
    ]
    total = {key: sum(s[key] for s in stages) for key in ("wall", "cpu")}
    total |= {key: max(s[key] for s in stages) for key in ("peak_mib", "anonymous_mib")}
    return "\n".join([*lines, *(_line(s) for s in (*stages, {"stage": "all", **total}))])


def comparison(rows: Sequence[dict[str, Any]]) -> str:
    """How many times faster each run was than the plain one, which is the last of ``rows``, and by which stages."""

    def spent(row: dict[str, Any], kind: str, *stages: str) -> float:
        return float(sum(s[kind] for s in row["stages"] if not stages or s["stage"] in stages))

    *quick, plain = rows
    lines = ["times faster than the plain way", f"  {'':8}{'':>10}{'wall':>8}{'CPU':>8}"]
    for row in quick:
        for name, stages in (("all", ()), ("network", ("encoder", "decoder", "planes")), ("mesh", ("mesh",))):
            ratios = [spent(plain, kind, *stages) / max(spent(row, kind, *stages), 1e-9) for kind in ("wall", "cpu")]
            lines.append(f"  {row['dtype']:8}{name:>10}{ratios[0]:8.1f}{ratios[1]:8.1f}")
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    """One stage as text."""
    return f"  {row['stage']:10}{row['wall']:8.2f}{row['cpu']:8.2f}{row['peak_mib']:10.0f}{row['anonymous_mib']:11.0f}"
