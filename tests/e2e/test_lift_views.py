"""The embedded model on a ring of true views, through the command line: it must come out right, and better."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrm.mesh import Mesh
from lrm.meshfile import read_mesh
from lrm.metrics import occupancy, overlap, placed
from lrm.raster import render_mesh
from multiview.camerafile import write_views
from multiview.cameras import orbit
from train.shapes import make_object
from trilift.cli import main

pytest.importorskip("igl", reason="libigl is in the extra train")


def lifted_iou(truth: Mesh, out: Path, words: list[str]) -> float:
    assert main(["lift", str(out / "photo.png"), "-o", str(out / "lifted"), "--resolution", "96", *words]) == 0
    answer = read_mesh(out / "lifted" / "photo" / "mesh.glb")
    return overlap(occupancy(placed(answer)), occupancy(placed(truth)))


@pytest.mark.parametrize("family", ["teapot", "chair"])
def test_true_views_beat_the_photo_alone(family: str, tmp_path: Path) -> None:
    shape = make_object(family, np.random.default_rng(3))
    truth = Mesh(
        shape.vertices.astype(np.float32), shape.faces.astype(np.int32), (shape.colors / 255).astype(np.float32)
    )
    # The cameras are those of a photographer, not the network's crops: wide, and in units of their own.
    views = render_mesh(truth, orbit([0.0, 90.0, 180.0, 270.0], [25.0, 10.0, 25.0, 10.0], 2.6, 40.0), 160)
    write_views(tmp_path / "ring", views)
    photo = torch.cat([views.images[0], views.alpha[0]]).permute(1, 2, 0)
    Image.fromarray((photo * 255).round().byte().numpy()).save(tmp_path / "photo.png")

    alone = lifted_iou(truth, tmp_path, [])
    together = lifted_iou(truth, tmp_path, ["--views-dir", str(tmp_path / "ring")])
    print(f"{family}: photo alone {alone:.3f}, four views {together:.3f}")
    assert together > alone + 0.03
    record = json.loads((tmp_path / "lifted" / "photo" / "asset.json").read_text())
    assert record["settings"]["views_dir"] == str(tmp_path / "ring")
    assert record["assumed"]["elevation_deg"] == pytest.approx(25, abs=0.1)
    assert record["assumed"]["estimated"] == []
    # The view that the first camera had comes out where it was.
    assert record["checks"]["silhouette_iou"] > 0.6
