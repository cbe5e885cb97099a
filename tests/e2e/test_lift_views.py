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
from train.shapes import random_object
from trilift import ImageTo3D
from trilift.cli import main

pytest.importorskip("igl", reason="libigl is in the extra train")


def ring_of(seed: int, folder: Path) -> Mesh:
    """A procedural object as ``photo.png`` and four views with cameras in ``ring``; gives the object."""
    shape = random_object(np.random.default_rng([77, seed]))
    truth = Mesh(
        shape.vertices.astype(np.float32), shape.faces.astype(np.int32), (shape.colors / 255).astype(np.float32)
    )
    # The cameras are those of a photographer, not the network's crops: wide, and in units of their own.
    views = render_mesh(truth, orbit([0.0, 90.0, 180.0, 270.0], [25.0, 10.0, 25.0, 10.0], 2.6, 40.0), 160)
    write_views(folder / "ring", views)
    photo = torch.cat([views.images[0], views.alpha[0]]).permute(1, 2, 0)
    Image.fromarray((photo * 255).round().byte().numpy()).save(folder / "photo.png")
    return truth


def iou(answer: Mesh, truth: Mesh) -> float:
    return overlap(occupancy(placed(answer)), occupancy(placed(truth)))


def test_true_views_beat_the_photo_alone(tmp_path: Path) -> None:
    pipe = ImageTo3D.from_pretrained("tiny", device="cpu", dtype="fp32")
    alone, together = [], []
    for seed in range(6):
        folder = tmp_path / str(seed)
        truth = ring_of(seed, folder)
        alone.append(iou(pipe(folder / "photo.png", resolution=64).mesh, truth))
        together.append(iou(pipe(folder / "photo.png", resolution=64, views_dir=folder / "ring").mesh, truth))
    print(f"photo alone {np.round(alone, 3)}, four views {np.round(together, 3)}")
    assert np.mean(together) > np.mean(alone) + 0.03


def test_the_command_line_takes_views_and_records_them(tmp_path: Path) -> None:
    truth = ring_of(2, tmp_path)
    words = ["--views-dir", str(tmp_path / "ring"), "--resolution", "96"]
    assert main(["lift", str(tmp_path / "photo.png"), "-o", str(tmp_path / "lifted"), *words]) == 0
    assert iou(read_mesh(tmp_path / "lifted" / "photo" / "mesh.glb"), truth) > 0.6
    record = json.loads((tmp_path / "lifted" / "photo" / "asset.json").read_text())
    assert record["settings"]["views_dir"] == str(tmp_path / "ring")
    assert record["assumed"]["elevation_deg"] == pytest.approx(25, abs=0.1)
    assert record["assumed"]["estimated"] == []
    # The view that the first camera had comes out where it was.
    assert record["checks"]["silhouette_iou"] > 0.6
