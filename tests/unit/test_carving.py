"""Outlines, their epipolar tangents, and carving: exact for balls, unchanged by how the world is placed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiview.cameras import Cameras, orbit
from tests.balls import BODY, SIDE, mattes
from train.carving import (
    EDGE,
    WORST,
    Eyes,
    best_order,
    carve,
    disagreement,
    middle,
    outlines_of,
    tangent_lines,
    turned_alike,
)

RING = orbit([45.0 * k for k in range(8)], 30.0, 2.0, 45.0)
MATTES = mattes(RING)
OUTLINES = outlines_of(MATTES)
BALL = np.array([[0.0, 0.0, 0.0, 0.4]])


def test_outlines_are_exact_for_boxes() -> None:
    matte = np.zeros((1, 10, 20), np.float32)
    matte[0, 2:5, 4:10] = 1
    matte[0, 2:5, 10] = 0.65  # the edge at `EDGE` runs through this pixel
    outline = outlines_of(matte)
    x, y = outline.corners[0, :, 0] * 20, outline.corners[0, :, 1] * 10
    # From 1 at x = 9.5 over 0.65 at 10.5 to 0 at 11.5: 0.15 lies 0.5 / 0.65 of a pixel behind 10.5.
    assert (x.min(), x.max()) == (4.0, pytest.approx(10.5 + 0.5 / 0.65))
    # In that pixel's column the edge lies 0.15 / 0.65 of a pixel from the centre of the empty one above.
    assert (y.min(), y.max()) == (pytest.approx(1.5 + 0.15 / 0.65), pytest.approx(5.5 - 0.15 / 0.65))
    assert outline.size[0] == pytest.approx((6.5 + 0.5 / 0.65) / 10) and not outline.framed.any()


def test_outlines_at_the_frame_say_so() -> None:
    matte = np.zeros((2, 8, 8), np.float32)
    matte[0, 3:6, 5:] = 1
    matte[1, 3:6, 2:5] = 1
    framed = outlines_of(matte).framed
    assert framed[0].any() and not framed[0].all() and not framed[1].any()


def test_right_cameras_agree_to_a_fraction_of_a_pixel() -> None:
    pixel = 1 / (np.median(OUTLINES.size) * MATTES.shape[1])
    judged = disagreement(OUTLINES, Eyes.of(RING))
    right = judged.total
    assert right < 0.2 * pixel
    assert (np.isfinite(judged.pairs) == ~np.eye(8, dtype=bool)).all()  # a view says nothing of itself alone
    turned = Cameras(RING.c2w * torch.tensor([1.0, -1.0, -1.0, 1.0]), RING.intrinsics)
    assert disagreement(OUTLINES, Eyes.of(turned)).total == WORST
    assert disagreement(OUTLINES.turned(mirror=True), Eyes.of(RING)).total > 10 * right
    wide = orbit([45.0 * k for k in range(8)], 30.0, 2.0, 60.0)
    assert disagreement(OUTLINES, Eyes.of(wide)).total > 3 * right


@pytest.mark.parametrize("view", [0, 3, 7])
def test_a_stray_view_stands_out(view: int) -> None:
    c2w = RING.c2w.clone()
    c2w[view] = orbit(45.0 * view - 40, -20.0, 2.0, 45.0).c2w[0]
    judged = disagreement(OUTLINES, Eyes.of(Cameras(c2w, RING.intrinsics)))
    assert judged.of_view.argmax() == view and judged.of_view[view] > 5 * np.median(judged.of_view)


def test_cameras_in_one_place_say_nothing() -> None:
    same = Cameras(RING.c2w[:1].expand(8, 4, 4), RING.intrinsics)
    assert disagreement(OUTLINES, Eyes.of(same)).total == WORST


@given(st.integers(0, 2**31), st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_how_the_world_is_placed_changes_nothing(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn *= np.linalg.det(turn)
    eyes = Eyes.of(RING)
    moved = Eyes(turn @ eyes.rotation, scale * eyes.centers @ turn.T + rng.normal(size=3), eyes.intrinsics)
    assert disagreement(OUTLINES, moved).total == pytest.approx(disagreement(OUTLINES, eyes).total, rel=1e-6, abs=1e-9)


def test_tangents_of_other_views_touch_the_outline() -> None:
    eyes = Eyes.of(RING)
    local = eyes.local_rays(OUTLINES.corners)
    for view, other in ((0, 1), (2, 5), (7, 3)):
        for line, side in zip(tangent_lines(OUTLINES, eyes, view, other), (1, -1), strict=True):
            offsets = side * (local[view] @ line) / np.linalg.norm(line[:2])
            assert offsets.min() == pytest.approx(0, abs=0.01) and offsets.max() > 0.1


def test_the_middle_of_a_ball_is_found() -> None:
    ball = np.array([[0.1, -0.2, 0.15, 0.2]])
    assert middle(outlines_of(mattes(RING, balls=ball)), Eyes.of(RING)) == pytest.approx([0.1, -0.2, 0.15], abs=0.02)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shuffled_pictures_find_their_cameras(seed: int) -> None:
    cameras = orbit([10.0, 80.0, 130.0, 200.0, 260.0, 300.0, 345.0], [0.0, 30, -20, 45, 10, 60, 20], 2.0, 45.0)
    shuffled = np.random.default_rng(seed).permutation(7)
    outlines = outlines_of(mattes(cameras)[shuffled])
    order = best_order(outlines, Eyes.of(cameras))
    assert shuffled[list(order)].tolist() == list(range(7))


def test_around_a_ring_the_order_that_moves_least_is_taken() -> None:
    swapped = [0, 1, 5, 3, 4, 2, 6, 7]
    turned = tuple(np.roll(swapped, 3))
    assert turned_alike(turned, OUTLINES.select(swapped), Eyes.of(RING)) == tuple(swapped)


# Carving


def test_a_carved_ball_has_its_size_and_place() -> None:
    eyes, alpha = Eyes.of(RING), mattes(RING, balls=BALL)
    carved = carve(alpha > EDGE, eyes, outlines_of(alpha))
    low, high = carved.longest_side
    assert 0.6 < low < 0.8 < high < 1.15  # 0.8, of which a ring at 30 degrees sees the top and bottom loosely
    assert carved.share > 0.999
    below, above = carved.center
    assert (below <= 0.02).all() and (above >= -0.02).all()


def test_the_longest_side_lies_between_its_bounds() -> None:
    carved = carve(MATTES > EDGE, Eyes.of(RING), OUTLINES)
    low, high = carved.longest_side
    assert 0.95 * low <= SIDE <= high and high < 1.4 * SIDE
    box = BODY[:, :3] - BODY[:, 3:], BODY[:, :3] + BODY[:, 3:]
    step = 0.04
    assert (carved.low - step <= box[0].min(0)).all() and (carved.high + step >= box[1].max(0)).all()


def test_masks_that_contradict_each_other_leave_little() -> None:
    shuffled = MATTES[[3, 6, 1, 0, 7, 2, 5, 4]]
    carved = carve(shuffled > EDGE, Eyes.of(RING), outlines_of(shuffled))
    assert carved.share < 0.9
    turned = Cameras(RING.c2w * torch.tensor([1.0, -1.0, -1.0, 1.0]), RING.intrinsics)
    nothing = carve(MATTES > EDGE, Eyes.of(turned), OUTLINES)
    assert nothing.empty and nothing.share == 0 and np.isnan(nothing.longest_side).all()
