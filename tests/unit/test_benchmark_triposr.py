"""The full-size benchmark's parts that need no full-size run: its weights, its meter, its table."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.triposr import (
    PUBLISHED_CONFIG,
    Meter,
    comparison,
    filled,
    filled_weights,
    memory_mib,
    network_flop,
    plain_extraction,
    plain_ways,
    product_rate,
    published_shapes,
    table,
)
from lrm.field import FunctionField
from lrm.mesh import extract_mesh
from lrm.triposr import TripoSRConfig, TripoSRNetwork, published_config
from lrm.vit import VitConfig
from multiview.checkpoint import read_checkpoint
from tests.parity.fill import fill_tensor


def test_the_checkpoint_has_the_published_tensors() -> None:
    shapes = published_shapes()
    assert len(shapes) == 549
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 419_275_628
    assert shapes["backbone.transformer_blocks.15.ff.net.0.proj.weight"] == (8192, 1024)


def test_the_config_is_the_published_one() -> None:
    assert published_config(yaml.safe_load(PUBLISHED_CONFIG), "here") == TripoSRConfig()


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("image_tokenizer.model.embeddings.cls_token", (1, 1, 8)),
        ("image_tokenizer.model.embeddings.position_embeddings", (1, 5, 8)),
        ("tokenizer.embeddings", (3, 4, 2, 2)),
        ("backbone.norm.weight", (6,)),
        ("backbone.norm.bias", (6,)),
        ("post_processor.upsample.weight", (6, 2, 2, 2)),
    ],
)
def test_weights_follow_the_parity_tests_rule(key: str, shape: tuple[int, ...]) -> None:
    assert torch.equal(filled(key, shape), fill_tensor(key, shape))


def test_weights_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.triposr.published_shapes", lambda layers: {"backbone.norm.weight": (6,)})
    filled_weights(tmp_path / "w")
    state = read_checkpoint(tmp_path / "w" / "model.ckpt")
    assert torch.equal(state["backbone.norm.weight"], fill_tensor("backbone.norm.weight", (6,)))
    monkeypatch.setattr("benchmarks.triposr.published_shapes", lambda layers: pytest.fail("written a second time"))
    filled_weights(tmp_path / "w")


def test_the_meter_gives_each_stage_its_seconds_and_its_peak() -> None:
    meter = Meter("start", time.time() - 5.0)
    meter.stage("idle")
    time.sleep(0.3)
    meter.stage("busy")
    held = torch.ones(64 << 20, dtype=torch.uint8)
    end = time.process_time() + 0.2
    while time.process_time() < end:
        held.add_(1)
    del held
    meter.stage("after")
    start, idle, busy, after = meter.close()
    assert [row["stage"] for row in (start, idle, busy, after)] == ["start", "idle", "busy", "after"]
    assert start["wall"] >= 5.0 and idle["wall"] >= 0.29 and busy["cpu"] >= 0.2
    if memory_mib() != (0.0, 0.0):
        assert busy["anonymous_mib"] > idle["anonymous_mib"] + 50
        assert after["anonymous_mib"] < busy["anonymous_mib"] - 50
        assert all(row["peak_mib"] >= row["anonymous_mib"] for row in (start, idle, busy, after))


def test_the_table_adds_seconds_and_takes_the_highest_peak() -> None:
    stages = [
        {"stage": "start", "wall": 1.5, "cpu": 1.0, "peak_mib": 300.0, "anonymous_mib": 100.0},
        {"stage": "weights", "wall": 2.25, "cpu": 2.0, "peak_mib": 200.0, "anonymous_mib": 150.0},
        {"stage": "encoder", "wall": 1.0, "cpu": 2.0, "peak_mib": 100.0, "anonymous_mib": 100.0},
        {"stage": "decoder", "wall": 5.0, "cpu": 9.5, "peak_mib": 100.0, "anonymous_mib": 100.0},
    ]
    row = {
        "dtype": "auto",
        "ran": "bfloat16",
        "tflop": 3.0,
        "tflop_per_s": 0.75,
        "tflop_per_cpu_s": 0.4,
        "surface": "teapot",
        "threads": 2,
        "resolution": 256,
        "faces": 1234,
        "glb_mib": 3.0,
        "machine": 0.5,
    }
    lines = table({**row, "stages": stages}).splitlines()
    assert "TripoSR, auto (bfloat16), teapot, 2 threads, 256 samples per axis (1,234 faces, GLB" in lines[0]
    assert lines[-1].split() == ["all", "9.75", "14.50", "300", "150"]
    # 3 TFLOP at 0.75 TFLOP/s are 4 s; encoder and decoder took 6.
    assert "3.00 TFLOP in 6.00 s; floor 4.00 s at 0.75 TFLOP/s, 1.50 times that" in lines[1]
    # At 0.4 TFLOP in a CPU second they are 7.5 CPU seconds; encoder and decoder took 11.5.
    assert "1.53 times by CPU seconds" in lines[1]


def test_the_comparison_is_with_the_last_run_by_stages() -> None:
    def run(dtype: str, decoder: float, mesh: float) -> dict[str, object]:
        stages = [("start", 2.0), ("encoder", 1.0), ("decoder", decoder), ("planes", 0.0), ("mesh", mesh)]
        return {"dtype": dtype, "stages": [{"stage": s, "wall": v, "cpu": 2 * v} for s, v in stages]}

    lines = comparison([run("bf16", 4.0, 1.0), run("plain", 19.0, 80.0)]).splitlines()
    # 102 s against 8; encoder and decoder 20 against 5; 80 against 1.
    assert [line.split() for line in lines[2:]] == [
        ["bf16", "all", "12.8", "12.8"], ["bf16", "network", "4.0", "4.0"], ["bf16", "mesh", "80.0", "80.0"]
    ]  # fmt: skip


def test_the_plain_way_gives_the_same_object() -> None:
    color = lambda p: (p / 2 + 0.5).clamp(0, 1)  # noqa: E731
    field = FunctionField(lambda p: 10 - 20 * (p.norm(dim=-1) - 0.6), color, 1.0, 10.0)
    mesh, report = plain_extraction(field, mesh_resolution=32, threshold="auto", chunk_size=5)
    ours = extract_mesh(field, mesh_resolution=32, fit_box=False)
    assert (len(mesh.faces), report.shape, report.evaluations) == (len(ours.faces), (32, 32, 32), 32**3)
    assert mesh.is_watertight and mesh.volume == pytest.approx(ours.volume, rel=3e-3)  # ours is refined
    assert abs(mesh.colors - color(torch.from_numpy(mesh.vertices)).numpy()).max() < 1e-6


def test_inside_plain_ways_the_pipeline_and_the_products_are_plain() -> None:
    import lrm.blocks
    import trilift.pipeline

    usual = trilift.pipeline.extract_mesh_with_report, lrm.blocks.mkl_is_slow
    with plain_ways():
        assert trilift.pipeline.extract_mesh_with_report is plain_extraction and not lrm.blocks.mkl_is_slow()
    assert (trilift.pipeline.extract_mesh_with_report, lrm.blocks.mkl_is_slow) == usual


def test_the_networks_operations_are_those_that_torch_counts() -> None:
    config = TripoSRConfig(
        image_size=32, vit=VitConfig(table_side=2, width=24, layers=3, heads=2, mlp_width=40), plane_size=4,
        channels=64, heads=2, head_width=16, layers=2, plane_channels=5,
    )  # fmt: skip
    network = TripoSRNetwork(config)
    with FlopCounterMode(display=False) as counter:
        network(torch.rand(1, 3, 32, 32))
    assert network_flop(config) == counter.get_total_flops()


def test_the_full_size_network_is_three_teraflop() -> None:
    assert network_flop(TripoSRConfig()) == pytest.approx(3.0e12, rel=0.1)


def test_a_rate_is_operations_over_seconds() -> None:
    ticks = iter([0.0, 9.0, 10.0, 10.5, 11.0, 13.0])
    # The first product warms up; of the others, 0.5 s and 2 s, the faster counts: 2 * 8 * 8 * 8 / 0.5.
    assert product_rate(torch.float32, side=8, times=2, clock=lambda: next(ticks)) == 2048.0
