"""Objects warped at every step: labels stay true, joined objects stay apart, pictures and points fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("embreex", reason="embreex is in the extra train")

from lrm.mesh import Mesh
from lrm.meshfile import write_mesh
from multiview.errors import SettingsError
from train.batches import Augment, PointCounts, make_batch
from train.prepare import main as prepare
from train.warped import WarpedData, WarpSettings, joined, projected, random_warp

QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
COUNTS = PointCounts(uniform=300, near=100, free=20, surface=40)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two boxes that fill their cubes badly, packed."""
    folder = tmp_path_factory.mktemp("warped")
    unit = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) - 0.5
    faces = np.array([t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))])
    for name, size in (("flat", (1, 0.5, 0.7)), ("tall", (0.4, 0.4, 1))):
        write_mesh(Mesh(unit * size, faces, np.tile([0.8, 0.3, 0.2], (8, 1))), folder / "meshes" / f"{name}.glb")
    small = ["--views", "1", "--image-size", "16", "--points", "4000", "--surface", "200"]
    assert prepare([str(folder / "meshes"), "-o", str(folder / "data"), *small]) == 0
    return folder


def source(packed: Path, **settings: float) -> WarpedData:
    return WarpedData(packed / "data", packed / "meshes", 48, WarpSettings(**settings))


def test_a_warp_keeps_lines_straight_and_the_inside_inside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        matrix = random_warp(rng, WarpSettings(taper=1.0, stretch=1.0))
        ends = rng.uniform(-0.5, 0.5, (2, 3))
        line = ends[0] + np.linspace(0, 1, 5)[:, None] * (ends[1] - ends[0])
        mapped = projected(matrix, line)
        along = (mapped - mapped[0]) / np.linalg.norm(mapped[-1] - mapped[0])
        sideways = along - (along @ along[-1])[:, None] * along[-1]
        assert np.abs(sideways).max() < 1e-4
        assert (line @ matrix[3, :3] + 1 > 0.2).all()


@pytest.mark.parametrize("pairs", [0.0, 1.0])
def test_labels_stay_true(packed: Path, pairs: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against winding numbers of the mesh that was rendered."""
    igl = pytest.importorskip("igl", reason="libigl is in the extra train")
    from train import warped

    seen: list[tuple[np.ndarray, np.ndarray]] = []
    caster = warped.Caster

    def watched(obj, *others):  # type: ignore[no-untyped-def]
        seen.append((obj.vertices, obj.faces))
        return caster(obj, *others)

    monkeypatch.setattr(warped, "Caster", watched)
    data, rng = source(packed, joined=pairs, warped=1.0, taper=0.5), np.random.default_rng(1)
    checked = 0
    for _ in range(6):
        _, _, labels = data.draw(rng, 1, COUNTS)
        vertices, faces = seen[-1]
        points = labels["points"].astype(np.float64)
        inside = igl.winding_number(vertices.astype(np.float64), faces.astype(np.int64), points) > 0.5
        assert np.mean(inside == (labels["inside"] > 0.5)) > 0.985  # packed points are half-precision numbers
        checked += int(inside.sum())
        assert np.ptp(vertices, axis=0).max() == pytest.approx(1, abs=1e-5)
        assert (np.abs(vertices).max(0) <= labels["reach"]).all()
    assert checked > 100


def test_joined_objects_touch_and_do_not_overlap(packed: Path) -> None:
    data, rng = source(packed, warped=0.0), np.random.default_rng(2)
    for _ in range(12):
        first, other = data._part(rng, COUNTS), data._part(rng, COUNTS)
        both, count = joined(first, other, rng), len(first.vertices)
        one, two = both.vertices[:count], both.vertices[count:]
        gaps = np.maximum(one.min(0) - two.max(0), two.min(0) - one.max(0))
        assert gaps.max() == pytest.approx(0, abs=1e-5)
        assert np.ptp(both.vertices, axis=0).max() == pytest.approx(1, abs=1e-5)
        assert len(both.points) >= COUNTS.uniform and 0 < both.inside.mean() < 1


def test_without_warps_the_object_is_as_it_was(packed: Path) -> None:
    alone = source(packed, joined=0.0, warped=0.0).draw(np.random.default_rng(2), 1, COUNTS)[2]
    sides = np.sort(np.ptp(alone["points"][alone["inside"] > 0.5], axis=0))
    assert sides[2] > 0.9 and sides[0] < 0.55


def test_batches_take_it_as_they_take_packed_data(packed: Path) -> None:
    arguments = {
        "seed": 0, "step": 1, "batch_size": 2, "views": 2, "counts": COUNTS, "image_size": 48, "scene_radius": 1.6,
        "augment": Augment(), "known": 0.3, "target": True,
    }  # fmt: skip
    batch = make_batch([(source(packed), 1.0)], **arguments)
    again = make_batch([(source(packed), 1.0)], **arguments)
    assert batch.images.shape == (2, 2, 4, 48, 48) and batch.points.shape == (2, 420, 3)
    assert torch.equal(batch.images, again.images) and torch.equal(batch.points, again.points)
    assert batch.target is not None and batch.target.shape == (2, 4, 48, 48)


def test_without_its_meshes_it_says_so(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="none of the meshes"):
        WarpedData(packed / "data", tmp_path, 48)
