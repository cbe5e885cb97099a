"""Stretched and recoloured objects: labels must stay true, pictures must follow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("embreex", reason="embreex is in the extra train")

from lrm.meshfile import write_mesh
from train.batches import PackedData
from train.deform import deform, main, random_recolor, random_stretch, recolored
from train.objects import normalized
from train.points import label_points
from train.prepare import main as prepare


def box() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.3, 0.3) for z in (-0.2, 0.2)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    return corners, faces, np.full((8, 3), (200, 100, 50), np.uint8)


@pytest.mark.parametrize("seed", range(5))
def test_labels_stay_true(seed: int) -> None:
    obj = normalized("box", *box())
    points = label_points(obj, np.random.default_rng(0), count=2000, surface=200)
    stretched, moved = deform(obj, points, np.random.default_rng(seed))
    half = np.abs(stretched.vertices).max(0)
    assert half.max() == pytest.approx(0.5)
    truth = (np.abs(moved.points.astype(np.float64)) < half).all(1)
    assert (truth == moved.inside).mean() > 0.998
    on = np.abs(moved.surface.astype(np.float64)) / half
    assert on.max(1) == pytest.approx(1, abs=3e-3)
    assert len(np.unique(moved.colors, axis=0)) == 1
    assert (moved.colors[0] == stretched.colors[0]).all()


def test_stretches_stay_in_their_range_and_often_keep_round_things_round() -> None:
    factors = np.stack([random_stretch(np.random.default_rng(i)) for i in range(300)])
    assert factors.min() >= 1 / 1.7
    assert factors.max() <= 1.7
    assert (factors[:, 0] == factors[:, 1]).mean() == pytest.approx(0.5, abs=0.1)
    assert factors.std(0).min() > 0.15


def test_recolouring_keeps_black_and_white_and_is_one_table_a_channel() -> None:
    table = random_recolor(np.random.default_rng(0))
    assert recolored(np.array([[0, 255, 0]], np.uint8), table).tolist() == [[0, 255, 0]]
    assert (np.diff(table.astype(int), axis=1) >= 0).all()


def test_the_command_packs_what_the_trainer_reads(tmp_path: Path) -> None:
    from lrm.mesh import Mesh

    vertices, faces, colors = box()
    for name, height in (("a", 1.0), ("b", 2.0)):
        scaled = (vertices * (1, 1, height)).astype(np.float32)
        mesh = Mesh(scaled, faces.astype(np.int32), (colors / 255).astype(np.float32))
        write_mesh(mesh, tmp_path / "m" / f"{name}.glb")
    sizes = ["--views", "2", "--image-size", "32", "--points", "512", "--surface", "64"]
    assert prepare([str(tmp_path / "m"), "-o", str(tmp_path / "data"), *sizes]) == 0
    assert main([str(tmp_path / "data"), str(tmp_path / "m"), "-o", str(tmp_path / "more"), "--views", "3"]) == 0
    first, second = PackedData(tmp_path / "data"), PackedData(tmp_path / "more")
    assert second.names == first.names == ["a", "b"]
    assert second.arrays["views"].shape == (2, 3, 32, 32, 7)
    assert (second.arrays["inside"][:] == first.arrays["inside"][:]).all()
    assert np.abs(second.arrays["points"][:] - first.arrays["points"][:]).max() > 0.01
    assert (second.arrays["views"][..., 3] > 0).any((1, 2, 3)).all()
