"""Checkpoints in the published formats, filled by a rule, go from a picture to a mesh through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from lrm.triposr import TripoSRConfig
from multiview.camerafile import write_views, zero123plus_cameras
from multiview.views import Views
from tests.fakes import draw_photo
from tests.published import SMALL, published_folder, published_state, save_published
from trilift import ImageTo3D, cli, registry

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--resolution", "32", "--dtype", "fp32", "--device", "cpu"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo, a small copy of each family, and six views."""
    folder = tmp_path_factory.mktemp("published")
    draw_photo(folder / "chair.png")
    for family in SMALL:
        published_folder(folder / family, family)
    generator = torch.Generator().manual_seed(3)
    pictures, alpha = torch.rand(6, 3, 96, 96, generator=generator), torch.zeros(6, 1, 96, 96)
    alpha[:, :, 24:72, 24:72] = 1
    write_views(folder / "views", Views(pictures, alpha, zero123plus_cameras()))
    return folder


def lift(base: Path, out: Path, family: str, *options: str) -> int:
    return cli.main(["lift", str(base / "chair.png"), "-o", str(out), "--model", str(base / family), *FAST, *options])


def record_of(out: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / "chair" / "asset.json").read_text())
    return record


@pytest.mark.parametrize("family", list(SMALL))
def test_from_a_picture_to_a_mesh(family: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    views = ["--views-dir", str(base / "views")] if family == "instantmesh" else []
    assert lift(base, tmp_path, family, "--threshold", "median", *views) == cli.OK
    told = capsys.readouterr().err
    assert f"weights {family}: licence not stated, whether commercial use is allowed is not known" in told
    assert f"model {family} on cpu in float32, loaded in" in told
    mesh = trimesh.load(tmp_path / "chair" / "mesh.glb", force="mesh")
    assert len(mesh.faces) > 100 and mesh.extents.max() == pytest.approx(1, abs=1e-4)
    record = record_of(tmp_path)
    assert record["model"]["architecture"] == family and len(record["model"]["sha256"]) == 64
    assert record["model"]["commercial"] == "unknown" and record["dtype_reason"] == "asked for"
    assert record["settings"]["threshold"] == "median" and record["extraction"]["threshold_chosen"] == "given"
    assert (tmp_path / "chair" / "views.png").exists() == (family == "instantmesh")


def test_the_median_halves_the_grid(base: Path, tmp_path: Path) -> None:
    """Half of the samples of a grid of 64 per axis are above the threshold that was taken."""
    assert lift(base, tmp_path, "triposr", "--threshold", "median") == cli.OK
    threshold = record_of(tmp_path)["extraction"]["threshold"]
    pipe = ImageTo3D.from_pretrained(base / "triposr", device="cpu", dtype="fp32", on_note=lambda text: None)
    field = pipe(base / "chair.png", resolution=16, threshold="median").field
    axis = torch.linspace(-0.87, 0.87, 64)
    with torch.no_grad():
        densities = torch.cat([field.density(p) for p in torch.cartesian_prod(axis, axis, axis).split(1 << 16)])
    assert float((densities > threshold).float().mean()) == pytest.approx(0.5, abs=0.001)


def test_filled_weights_have_no_surface_at_the_published_level(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lift(base, tmp_path, "triposr", "--threshold", "25") == cli.FAILED
    assert "density_threshold=25.0 is above the highest density in the grid" in capsys.readouterr().err
    assert not (tmp_path / "chair").exists()


def test_elevation_and_upright_reach_openlrm(base: Path, tmp_path: Path) -> None:
    rows = {}
    for name, options in {"told": ["--elevation", "30"], "off": ["--upright", "off"], "estimated": []}.items():
        assert lift(base, tmp_path / name, "openlrm", "--threshold", "median", *options) == cli.OK
        rows[name] = record_of(tmp_path / name)
    assert rows["told"]["assumed"]["elevation_deg"] == 30.0 and rows["told"]["camera"]["elevation_deg"] == 30.0
    assert "elevation" not in rows["told"]["assumed"]["estimated"]
    assert rows["off"]["camera"]["elevation_deg"] == 0.0
    assert "elevation" in rows["estimated"]["assumed"]["estimated"]
    level, turned = (trimesh.load(tmp_path / n / "chair" / "mesh.glb", force="mesh") for n in ("off", "told"))
    assert np.abs(level.centroid - turned.centroid).max() > 0.005  # another object than the level one


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("triposr", ["--views-dir", "views"], "--views-dir views: triposr lifts the photo alone"),
        ("instantmesh", [], "instantmesh lifts several views with cameras, and has none. Give --views-dir DIR"),
        ("triposr", ["--commercial-ok"], "--commercial-ok: triposr has licence not stated (commercial use: unknown)"),
        ("triposr", ["--revision", "v1"], "revision='v1': triposr is not from a hub"),
    ],
)
def test_what_cannot_be_is_refused_with_status_2(
    family: str, options: list[str], words: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lift(base, tmp_path / "out", family, *options) == cli.USAGE
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_views_belong_to_one_photo(base: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    draw_photo(tmp_path / "b.png")
    words = ["lift", str(base / "chair.png"), str(tmp_path / "b.png"), "--model", "tiny", "--views-dir", "views"]
    assert cli.main(words) == cli.USAGE
    assert "--views-dir views belongs to one photo, found 2" in capsys.readouterr().err


def test_views_that_are_not_there_fail_the_lift(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lift(base, tmp_path, "instantmesh", "--views-dir", str(tmp_path / "gone")) == cli.FAILED
    assert "gone: not found. Give a folder with pictures" in capsys.readouterr().err


def test_a_cached_model_works_by_its_name_without_a_network(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    row = registry.find("triposr")
    snapshot = tmp_path / "hub" / "models--stabilityai--TripoSR" / "snapshots" / str(row.revision)
    published_folder(snapshot, "triposr")
    (snapshot / "config.yaml").write_text("backbone: {}\n")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(registry, "WEIGHT_SETS", (replace(row, sha256=None), *registry.WEIGHT_SETS[:1]))
    assert cli.main(["models"]) == cli.OK
    assert any(
        line.split()[:4] == ["triposr", "reconstruction", "ready", "yes"]
        for line in capsys.readouterr().out.splitlines()
    )
    photo = str(base / "chair.png")
    assert (
        cli.main(["lift", photo, "-o", str(tmp_path), "--model", "triposr", "--threshold", "median", *FAST]) == cli.OK
    )
    model = record_of(tmp_path)["model"]
    assert (model["name"], model["licence"], model["commercial"]) == ("triposr", "MIT", "yes")
    assert (model["repository"], model["revision"]) == ("stabilityai/TripoSR", row.revision)
    assert "licence" not in capsys.readouterr().err  # a plain yes needs no word


def test_a_model_that_is_not_cached_says_so_offline(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lift", str(base / "chair.png"), "--model", "openlrm-mix-small", *FAST]) == cli.FAILED
    told = capsys.readouterr().err
    assert "zxhezexin/openlrm-mix-small-1.1: config.json is not on this machine and TRILIFT_OFFLINE is set" in told


PEAK = """
import json, resource, sys
from trilift.cli import main
status = main(sys.argv[1:])
print(json.dumps({"status": status, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_full_size_triposr_from_a_picture_to_a_mesh(tmp_path: Path) -> None:
    """Every published tensor of TripoSR (549, 1.68 GB), in the published file, with the published config."""
    state = published_state("triposr", TripoSRConfig())
    assert len(state) == 549 and sum(t.numel() for t in state.values()) == 419_275_628
    save_published(tmp_path / "triposr" / "model.ckpt", state)
    size = (tmp_path / "triposr" / "model.ckpt").stat().st_size
    del state
    c = asdict(TripoSRConfig())
    config = f"""
cond_image_size: {c["image_size"]}
image_tokenizer: {{pretrained_model_name_or_path: facebook/dino-vitb16}}
tokenizer: {{plane_size: 32, num_channels: 1024}}
backbone:
  in_channels: ${{tokenizer.num_channels}}
  num_attention_heads: 16
  attention_head_dim: 64
  num_layers: 16
  cross_attention_dim: 768
post_processor: {{in_channels: 1024, out_channels: 40}}
decoder: {{in_channels: 120, n_neurons: 64, n_hidden_layers: 9, activation: silu}}
renderer: {{radius: 0.87, feature_reduction: concat, density_activation: exp, density_bias: -1.0,
  num_samples_per_ray: 128}}
"""
    (tmp_path / "triposr" / "config.yaml").write_text(config)
    draw_photo(tmp_path / "chair.png")
    words = ["lift", "chair.png", "-o", "out", "--model", "./triposr", "--threshold", "median", "--dtype", "fp32"]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *words, "--resolution", "48"], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["status"] == cli.OK, done.stderr
    print(done.stderr, result, record_of(tmp_path / "out")["seconds"])
    mesh = trimesh.load(tmp_path / "out" / "chair" / "mesh.glb", force="mesh")
    assert len(mesh.faces) > 1000 and np.isfinite(mesh.vertices).all()
    assert result["peak"] < 2 * size, "the weights are mapped once, and what the work takes beside them is bounded"
