"""Textured files through the commands that use them: train.prepare, train.deform and trilift eval."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrm.metrics import ShapeSettings
from tests.textured import BLUE, GREEN, RED, YELLOW, GlbMaker, checker_glb, checker_obj, cube
from train.batches import PackedData
from train.deform import main as deform
from train.prepare import main as prepare
from train.protocol import EvalProtocol

COLORS = np.array([RED, GREEN, BLUE, YELLOW])
SMALL = ["--views", "4", "--image-size", "48", "--points", "512", "--surface", "512"]


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    checker_glb(tmp_path / "objects" / "as-glb.glb")
    checker_obj(tmp_path / "objects" / "as-obj.obj")
    return tmp_path / "objects"


def near_share(colors: np.ndarray, palette: np.ndarray) -> float:
    """Share of colours (N, 3) within 2 levels of one of the palette's."""
    return float((np.abs(colors[:, None].astype(int) - palette).max(-1).min(1) <= 2).mean())


@pytest.mark.parametrize("renderer", ["embree", "torch"])
def test_prepare_packs_pictures_and_surface_colours(objects: Path, tmp_path: Path, renderer: str) -> None:
    if renderer == "embree":
        pytest.importorskip("embreex", reason="embreex is in the extra train")
    assert prepare([str(objects), "-o", str(tmp_path / "data"), *SMALL, "--renderer", renderer]) == 0
    packed = PackedData(tmp_path / "data")
    assert packed.names == ["as-glb", "as-obj"]
    for views, colors in zip(packed.arrays["views"], packed.arrays["colors"], strict=True):
        assert near_share(colors, COLORS) > 0.9  # the rest lies where two colours meet
        seen = views[views[..., 3] == 255][:, :3]
        assert near_share(seen, COLORS) > 0.75
        counts = [near_share(seen, color[None]) for color in COLORS]
        assert min(counts) > 0.1, "all four colours are seen"


def test_deform_recolours_the_pictures_too(objects: Path, tmp_path: Path) -> None:
    assert prepare([str(objects), "-o", str(tmp_path / "data"), *SMALL]) == 0
    assert deform([str(tmp_path / "data"), str(objects), "-o", str(tmp_path / "more"), "--views", "2"]) == 0
    before, after = PackedData(tmp_path / "data"), PackedData(tmp_path / "more")
    for index in range(2):
        old, new = before.arrays["colors"][index], after.arrays["colors"][index]
        assert np.abs(old.astype(int) - new).max() > 8
        # What each of the four colours became at the surface is what the pictures show.
        palette = np.array([np.median(new[(np.abs(old.astype(int) - c).max(1) <= 1)], axis=0) for c in COLORS])
        views = after.arrays["views"][index]
        assert near_share(views[views[..., 3] == 255][:, :3], palette) > 0.7


def test_eval_shows_the_picture_and_scores(tmp_path: Path) -> None:
    pytest.importorskip("igl", reason="libigl is in the extra train")
    from train.evaluate import evaluate

    checker_glb(tmp_path / "val" / "checker.glb")
    maker, (vertices, faces, uvs) = GlbMaker(), cube()
    maker.primitive(vertices, faces, uvs, maker.material(maker.picture(b"no picture")))
    maker.write(tmp_path / "val" / "broken.glb")
    for name, colors in (("grey", 0.3), ("white", 0.9)):
        plain_maker = GlbMaker().primitive(vertices * (1, 2, 1), faces, colors=np.full((24, 3), colors))
        plain_maker.write(tmp_path / "train" / f"{name}.glb")
    checker_obj(tmp_path / "train" / "twin.obj")
    protocol = replace(
        EvalProtocol(), image_size=64, train_objects=3,
        shape=ShapeSettings(grid=24, points=500, align_points=100, align_yaws=8, icp_steps=2),
    )  # fmt: skip
    out = tmp_path / "out"
    record = evaluate(None, tmp_path / "val", out, answers=("ellipsoid", "retrieval"), protocol=protocol)
    assert [row["id"] for row in record["objects"]] == ["checker"] and record["failures"] == []
    assert [s["id"] for s in record["skipped"]] == ["broken"] and "broken.glb" in record["skipped"][0]["error"]
    with Image.open(out / "inputs" / "checker.png") as picture:
        pixels = np.asarray(picture)
    seen = pixels[pixels[..., 3] == 255][:, :3]
    assert near_share(seen, COLORS) > 0.8 and min(near_share(seen, c[None]) for c in COLORS) > 0.05
    assert record["mean"]["retrieval"]["iou"] > 0.6, "the twin is found"
    assert json.loads((out / "metrics.json").read_text())["objects"][0]["faces"] == 12
