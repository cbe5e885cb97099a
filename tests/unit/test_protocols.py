"""`train.protocols`, and the points from depth maps that one of them compares."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("igl", reason="libigl is in the extra train")

from lrm.mesh import Mesh
from lrm.metrics import ShapeSettings, placed, score_shape
from multiview.cameras import orbit, project
from multiview.errors import MeshError, SettingsError
from train.baselines import turned
from train.depthpoints import depth_points
from train.protocol import EvalProtocol
from train.protocols import HEADLINES, PROTOCOLS, SYNCDREAMER, TRIPOSR, WORDS, protocol_named

QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
SMALL_SYNC = replace(SYNCDREAMER, image_size=64, shape=ShapeSettings(grid=32, points=500))


def box(*half: float) -> Mesh:
    """A closed box about the origin, faces outward."""
    vertices = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * half
    faces = np.array([t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))])
    return Mesh(vertices, faces, np.full((8, 3), 0.5))


# Points from depth maps.


def test_depth_points_lie_on_the_faces_that_are_seen() -> None:
    """A camera at +x sees only the front of a box, its field of view ends 1 unit beside the middle."""
    camera = orbit(0.0, 0.0, 3.0, math.degrees(2 * math.atan(0.5)))
    points = depth_points(box(1.0, 1.5, 0.5), camera, 64, 1e-4)
    np.testing.assert_allclose(points[:, 0], 1.0, atol=1e-6)
    assert np.abs(points[:, 1]).max() == pytest.approx(1 - 1 / 64, abs=1e-6), (
        "centres of the outer pixels, 2 units away"
    )
    assert np.abs(points[:, 2]).max() < 0.5 and np.abs(points[:, 2]).max() > 0.5 - 2 / 64
    uv, depth = project(camera, torch.from_numpy(points).float())
    pixels = uv[0].numpy() * 64 - 0.5
    np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-3)
    np.testing.assert_allclose(depth, 2.0, atol=1e-5)


def test_points_that_share_a_cell_become_their_mean() -> None:
    camera = orbit(0.0, 0.0, 3.0, math.degrees(2 * math.atan(0.5)))
    mesh = box(1.0, 4.0, 4.0).transformed([[1, 0, 0, 0.01], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    points = depth_points(mesh, camera, 4, 1.0)
    # Pixel centres at ±0.249 and ±0.746 of the square that is seen, 1.99 wide: the inner ones share the cell about 0.
    reach = 0.75 * 1.99 / 2
    expected = sorted((y * reach, z * reach) for y in (-1, 0, 1) for z in (-1, 0, 1))
    np.testing.assert_allclose(sorted(map(tuple, points[:, 1:].round(6) + 0.0)), expected, atol=1e-5)


def test_nothing_seen_is_an_error() -> None:
    aside = box(0.1, 0.1, 0.1).transformed([[1, 0, 0, 0], [0, 1, 0, 50], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(MeshError, match="1 cameras see, found none"):
        depth_points(aside, orbit(0.0, 0.0, 3.0, 40.0), 16, 0.01)


# SyncDreamer's.


def test_syncdreamers_cameras_are_its_ring() -> None:
    cameras = SYNCDREAMER.novel_cameras
    assert len(cameras) == 16
    # The fact sheet: camera 0 at (1.299038, 0, 0.75) about an object of longest side 1; here it is 2. Focal 280 of 256.
    np.testing.assert_allclose(cameras.positions[0], (2 * 1.299038, 0, 1.5), atol=1e-5)
    np.testing.assert_allclose(cameras.intrinsics[0, 0, 0] * 256, 280, rtol=1e-6)
    assert math.degrees(math.atan2(cameras.positions[1, 1], cameras.positions[1, 0])) == pytest.approx(22.5, abs=1e-4)


def test_syncdreamers_chamfer_is_in_longest_sides_and_without_alignment() -> None:
    truth = SMALL_SYNC.true_shape(box(0.5, 0.2, 1.0), 0)
    assert truth.points[:, 2].max() == pytest.approx(1.0, abs=0.02) and truth.points[:, 2].min() < 0
    same, filled = SMALL_SYNC.compare(box(0.05, 0.02, 0.1), truth)  # any size: both are placed
    assert same["iou"] == 1.0 and same["chamfer"] == pytest.approx(0, abs=1e-6) and set(same) == {"iou", "chamfer"}
    assert filled.shape == (32, 32, 32)
    wider, _ = SMALL_SYNC.compare(box(0.5, 0.3, 1.0), truth)
    # The two broad faces moved by 0.1 of 2, thus by 0.05 longest sides; other points moved less.
    assert 0.015 < wider["chamfer"] < 0.05
    assert wider["iou"] == pytest.approx(0.2 / 0.3, abs=0.08)
    quarter, _ = SMALL_SYNC.compare(turned(box(0.5, 0.2, 1.0), 90.0), truth)
    assert quarter["iou"] < 0.5, "a quarter turn costs marks"
    assert SMALL_SYNC.compare_nothing() == {"iou": 0.0, "chamfer": 1.0}


def test_syncdreamers_hidden_underside_does_not_count() -> None:
    """From elevation 30 nothing below is seen: a dent in the bottom changes IoU but not Chamfer."""
    truth = SMALL_SYNC.true_shape(box(0.6, 0.6, 1.0), 0)
    hollow = box(0.6, 0.6, 1.0)
    vertices = np.concatenate([hollow.vertices, [[0, 0, 0.8]]])
    ring = [0, 2, 6, 4]
    dent = [[ring[i], ring[(i + 1) % 4], 8] for i in range(4)]
    kept = [face for face in hollow.faces.tolist() if set(face) - {0, 2, 4, 6}]
    dented = Mesh(vertices, np.array(kept + dent), np.full((9, 3), 0.5))
    scores, _ = SMALL_SYNC.compare(dented, truth)
    assert scores["chamfer"] == pytest.approx(0, abs=1e-6) and scores["iou"] < 0.8


# TripoSR's.


def test_triposrs_search_finds_what_leans_and_turns() -> None:
    protocol = replace(TRIPOSR, shape=replace(TRIPOSR.shape, grid=32, points=1000, align_points=200, align_yaws=24))
    crooked = Mesh(*_crane())
    truth = protocol.true_shape(crooked, 3)
    leaned = turned(crooked, 130.0).transformed(_pitch(24.0))
    scores, _ = protocol.compare(leaned, truth)
    assert scores["chamfer_aligned"] < 0.4 * scores["chamfer"]
    assert scores["fscore_0.1_aligned"] > scores["fscore_0.1"] + 0.3
    plain = score_shape(leaned, truth)
    assert plain == scores, "the keys and numbers are those of our own protocol under these settings"
    assert protocol.compare_nothing()["chamfer_aligned"] == 2.0


def _crane() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = [
        ((-0.25, -0.25, -1), (0.25, 0.25, 1)),
        ((0.2, -0.25, -1), (1, 0.25, -0.5)),
        ((-0.25, 0.2, 0.4), (0.25, 0.9, 0.9)),
    ]
    unit = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    vertices = np.concatenate([np.array(low) + unit * (np.array(high) - np.array(low)) for low, high in parts])
    one = np.array([t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))])
    return vertices, np.concatenate([one + 8 * i for i in range(3)]), np.full((24, 3), 0.5)


def _pitch(degrees: float) -> np.ndarray:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[c, 0, -s, 0], [0, 1, 0, 0], [s, 0, c, 0], [0, 0, 0, 1.0]])


# All.


def test_our_own_protocol_is_the_default_and_all_are_described() -> None:
    assert PROTOCOLS["ours"] == EvalProtocol() and list(PROTOCOLS) == ["ours", "triposr", "syncdreamer"]
    assert set(HEADLINES) == set(WORDS) == set(PROTOCOLS)
    draws = {(p.azimuth_deg, p.elevation_deg, p.fov_deg, p.image_size, p.foreground_ratio) for p in PROTOCOLS.values()}
    assert len(draws) == 1, "all are asked with the same inputs"
    with pytest.raises(SettingsError, match=r"protocol=gso: expected one of ours, triposr, syncdreamer"):
        protocol_named("gso")


def test_scores_do_not_depend_on_where_the_answer_stands() -> None:
    answer = box(0.5, 0.3, 1.0)
    moved = placed(answer).transformed([[0.3, 0, 0, 4], [0, 0.3, 0, -1], [0, 0, 0.3, 2], [0, 0, 0, 1]])
    truth = SMALL_SYNC.true_shape(box(0.5, 0.2, 1.0), 0)
    here, there = (SMALL_SYNC.compare(mesh, truth)[0] for mesh in (answer, moved))
    assert here == {key: pytest.approx(value, abs=1e-4) for key, value in there.items()}
