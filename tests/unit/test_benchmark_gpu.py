"""The accelerator's benchmark, on the CPU and small: that it runs, counts and compares rightly."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import PLAIN, SMALL, WAYS, Sizes, clocked, filled, main, measure, measure_sync, schedule, table
from benchmarks.gpu import step_flop as counted_step
from multiview.fastunet import FastUNet
from multiview.ldm import UNetSizes

CPU = torch.device("cpu")
ONE_STEP = replace(SMALL, steps=1, runs=1)


def test_the_schedule_is_the_published_samplers() -> None:
    times, alphas = schedule(50)
    assert (times[0], times[-1], len(times), len(alphas)) == (981, 1, 50, 51)
    assert alphas[0] == pytest.approx(0.00577550, rel=1e-4) and alphas[-1] == pytest.approx(0.99915, rel=1e-5)
    assert schedule(3)[0] == [667, 334, 1]


def test_flops_are_those_counted_by_hand() -> None:
    sizes = UNetSizes(channels=(32, 64), layers=1, heads=2, context_width=8, latent_size=8)
    unet = filled(FastUNet(sizes))
    assert unet.conv_in.weight.std().item() == pytest.approx((8 * 9) ** -0.5, rel=0.1)  # type: ignore[operator, union-attr]
    found = counted_step(SMALL)
    assert found["all"] == pytest.approx(found["volume"] + found["frustum"] + found["unet and depth"])
    assert found["all, plainly"] - found["all"] == pytest.approx(
        found["unet and depth, plainly"] - found["unet and depth"]
    )
    assert found["unet and depth, plainly"] > 1.02 * found["unet and depth"]


def test_a_published_step_is_six_and_a_half_tera_operations() -> None:
    """UNet: 16 views, 2 halves, 0.17 each; 0.03 for the volumes of each view; see docs/performance.md."""
    found = counted_step(Sizes())
    assert found["all, plainly"] == pytest.approx(6.80, abs=0.01) and found["all"] == pytest.approx(6.44, abs=0.01)


@pytest.mark.slow
def test_every_way_gives_the_plain_ways_noise() -> None:
    rows = list(measure_sync(CPU, ONE_STEP, [way for way in WAYS if not way.options.compile]))
    off = {row["way"]: row["noise_off"] for row in rows}
    assert next(iter(off)) == PLAIN.name and off[PLAIN.name] == 0 and 0 < off["fp32"] < 1e-4
    assert all(1e-3 < off[way.name] < 0.1 for way in WAYS if way.name in off and way.dtype == torch.bfloat16)
    assert not any(row["failed"] for row in rows)


def test_runs_are_counted_as_said() -> None:
    ran: list[int] = []
    timing = clocked(lambda: ran.append(1), CPU, 3)
    assert len(ran) == 3 and 0 <= timing.low <= timing.median <= timing.high


def row(way: str, seconds: float, **more: Any) -> dict[str, Any]:
    timing = {"median": seconds, "low": seconds, "high": seconds}
    return {"way": way, "failed": False, "seconds": timing, "noise_off": 0.25, **more}


def test_the_table_sets_every_way_against_the_plain_one() -> None:
    found = {
        "device": "cuda: a card", "torch": "2", "cudnn_tf32": True, "steps": 50, "resolution": 256,
        "ceilings": {"bf16 TFLOP/s": 500.0}, "step_tflop": {"all": 5.0},
        "syncdreamer": [row("plain fp32", 20.0), row("bf16", 2.5), row("bf16, compiled", 4.0, failed=True)],
        "triposr": [{"way": "bf16", "failed": False, "tflop": 3.0, "all": None,
                     "seconds": {"network": row("", 0.01)["seconds"]},
                     "mesh parts": {"cells": row("", 0.02)["seconds"]}}],
    }  # fmt: skip
    lines = table(found).splitlines()
    assert any("bf16 " in line and "8.00 x" in line for line in lines)
    assert any("5.00 x" in line and "torch.compile does not work here" in line for line in lines)
    assert "  floor in bf16 at the card's rate: 0.500 s" in lines  # 5 TFLOP * 50 / 500
    assert "  mesh over the whole cube: cells 0.0200 (0.0200 to 0.0200)" in lines
    assert any("network's floor 0.0060" in line and "no mesh: scipy is missing" in line for line in lines)


def test_what_is_measured_is_kept_after_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--small", "--device", "cpu", "--only", "ceilings", "--json", str(tmp_path / "gpu.json")]) == 0
    said = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert said["ceilings"]["fp32 TFLOP/s"] > 0 and said["device"].startswith("cpu") and "syncdreamer" not in said
    assert "copy on the device GB/s" in capsys.readouterr().out
    kept: list[set[str]] = []
    measure(CPU, ONE_STEP, ["ceilings", "triposr"], False, lambda found: kept.append(set(found)))
    assert [("ceilings" in one, "triposr" in one) for one in kept] == [(True, False), (True, True)]


@pytest.mark.slow
def test_it_needs_torch_numpy_and_safetensors_alone() -> None:
    """Machines with accelerators are lent with little installed."""
    blocked = ("PIL", "diffusers", "transformers", "huggingface_hub", "scipy", "mcubes", "trimesh", "skimage", "yaml")
    code = (
        f"import sys\nblocked = {blocked!r}\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in blocked: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import benchmarks.gpu"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
