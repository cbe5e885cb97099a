"""``python -m benchmarks lift``: the whole command, process start to files written, by stage, with peak memory.

Each run is a fresh process, so that loading counts. Beside each time stands the machine's own speed in the same run:
how long 20 products of 2048 x 2048 matrices take. Compare ratios, not seconds, between noisy machines.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from .pictures import EXAMPLES


def one_lift(photo: Path, model: str, resolution: int) -> dict[str, float]:
    """Run ``trilift lift`` in a process of its own; its wall seconds, stage seconds and peak memory in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "trilift", "lift", str(photo), "-o", folder, "--model", model, "--quiet"]
        began = time.perf_counter()
        subprocess.run([*command, "--resolution", str(resolution)], check=True)
        seconds = time.perf_counter() - began
        record = json.loads(next(Path(folder).glob("*/asset.json")).read_text("utf-8"))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"process": seconds, **record["seconds"], "peak_mib": peak, "faces": record["mesh"]["faces"]}


def machine_seconds() -> float:
    """Seconds for 20 products of 2048 x 2048 fp32 matrices, after one to warm up."""
    a = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0))
    torch.mm(a, a)
    began = time.perf_counter()
    for _ in range(20):
        torch.mm(a, a)
    return time.perf_counter() - began


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks lift", description=__doc__)
    parser.add_argument("photos", nargs="*", type=Path, help="pictures (default: chair.png of the examples)")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args(arguments)
    for photo in args.photos or [EXAMPLES / "chair.png"]:
        for _ in range(args.runs):
            row = {"machine": machine_seconds(), **one_lift(photo, args.model, args.resolution)}
            print(
                json.dumps({"photo": photo.name, **{name: round(value, 3) for name, value in row.items()}}), flush=True
            )
    return 0
