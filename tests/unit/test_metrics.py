"""The instrument's numbers against shapes and pictures whose numbers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrm.mesh import Mesh
from lrm.metrics import (
    PSNR_CEILING,
    ShapeSettings,
    TrueShape,
    best_alignment,
    bootstrap_intervals,
    cell_axes,
    occupancy,
    overlap,
    placed,
    psnr,
    rigid_fit,
    sample_surface,
    score_nothing,
    score_shape,
    score_shape_and_volume,
    ssim,
    surface_scores,
)
from multiview.cameras import pitch_rotation, yaw_rotation
from multiview.errors import ImageError, MeshError, SettingsError

pytest.importorskip("igl", reason="libigl is in the extra train; without it these take minutes")

QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
SMALL = ShapeSettings(grid=32, points=2000, align_points=400, align_yaws=24)


def box(low: tuple[float, float, float], high: tuple[float, float, float]) -> Mesh:
    """A closed box, faces outward."""
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    vertices = np.asarray(low) + corners * (np.asarray(high) - np.asarray(low))
    faces = [t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))]
    return Mesh(vertices, np.array(faces), np.full((8, 3), 0.5))


def joined(*meshes: Mesh) -> Mesh:
    starts = np.cumsum([0, *(len(m.vertices) for m in meshes)])
    faces = [m.faces + s for m, s in zip(meshes, starts[:-1], strict=True)]
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate(faces),
        np.concatenate([m.colors for m in meshes]),
    )


def lopsided() -> Mesh:
    """An object without any symmetry: a foot toward +x, an arm toward +y, high up."""
    return joined(
        box((-0.3, -0.3, -1), (0.3, 0.3, 1)),
        box((0.2, -0.2, -1), (1, 0.2, -0.6)),
        box((-0.2, 0.2, 0.5), (0.2, 0.8, 0.9)),
    )


def sphere(radius: float) -> Mesh:
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=4, radius=radius)
    return Mesh(ball.vertices, ball.faces, np.full((len(ball.vertices), 3), 0.5))


# Placing and volume.


def test_placed_centres_the_box_and_makes_the_longest_side_2() -> None:
    mesh = placed(box((1, 2, 3), (2, 6, 5)))  # sides 1, 4, 2
    np.testing.assert_allclose(mesh.bounds, [[-0.25, -1, -0.5], [0.25, 1, 0.5]], atol=1e-6)


def test_a_point_cannot_be_placed() -> None:
    with pytest.raises(MeshError, match="some extent"):
        placed(Mesh(np.ones((3, 3)), np.array([[0, 1, 2]]), np.zeros((3, 3))))


def test_cells_are_asked_at_their_centres() -> None:
    x, y, z = cell_axes((1, 2, 3), 4)
    assert x.tolist() == [-0.25, 0.25] and y.tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert len(z) == 6 and z[-1] == 1.25


def test_iou_of_two_shifted_boxes() -> None:
    # Cubes of side 1, shifted by half: intersection 1/2, union 3/2.
    a, b = (
        occupancy(box((-0.75, -0.5, -0.5), (0.25, 0.5, 0.5)), 64),
        occupancy(box((-0.25, -0.5, -0.5), (0.75, 0.5, 0.5)), 64),
    )
    assert a.sum() == b.sum() == 32**3
    assert overlap(a, b) == pytest.approx(1 / 3, abs=1e-12)


def test_iou_of_concentric_spheres_is_the_cube_of_their_radii() -> None:
    a, b = occupancy(sphere(0.95), 64), occupancy(sphere(0.6), 64)
    assert overlap(a, b) == pytest.approx((0.6 / 0.95) ** 3, abs=0.005)


def test_occupancy_keeps_x_y_z_apart() -> None:
    occupied = occupancy(box((0, -1, -1), (1, -0.5, 1)), 8)  # +x half, lowest quarter of y
    assert occupied[4:, :2, :].all() and occupied.sum() == 4 * 2 * 8


def test_overlap_of_nothing_and_of_unlike_grids() -> None:
    assert overlap(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), bool)) == 0.0
    with pytest.raises(SettingsError, match=r"one shape.*\(2,\).*\(3,\)"):
        overlap(np.zeros(2, bool), np.zeros(3, bool))
    with pytest.raises(SettingsError, match="grid=7"):
        occupancy(sphere(1), 7)


# Surfaces.


def test_points_are_drawn_by_area() -> None:
    # Two triangles in the planes x = 0 and x = 1, areas 1/2 and 3/2.
    mesh = Mesh(
        np.array([[0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [1, 3, 0], [1, 0, 1]]),
        np.array([[0, 1, 2], [3, 4, 5]]),
        np.zeros((6, 3)),
    )
    points = sample_surface(mesh, 20_000, np.random.default_rng(0))
    second = points[:, 0] > 0.5
    assert second.mean() == pytest.approx(0.75, abs=0.01)
    assert points[second].mean(0) == pytest.approx([1, 1, 1 / 3], abs=0.02)  # the triangle's centroid
    assert (points[~second][:, 1] + points[~second][:, 2]).max() <= 1 + 1e-9


def test_a_surface_without_area_is_an_error() -> None:
    line = Mesh(np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]]), np.array([[0, 1, 2]]), np.zeros((3, 3)))
    with pytest.raises(MeshError, match="some area"):
        sample_surface(line, 10, np.random.default_rng(0))


def test_chamfer_of_parallel_squares_is_their_distance() -> None:
    u, v = np.meshgrid(np.linspace(-1, 1, 21), np.linspace(-1, 1, 21))
    low = np.stack([u, v, np.zeros_like(u)], -1).reshape(-1, 3)
    scores = surface_scores(low + np.array([0, 0, 0.3]), low, (0.1, 0.2, 0.5))
    assert scores == pytest.approx({"chamfer": 0.3, "fscore_0.1": 0, "fscore_0.2": 0, "fscore_0.5": 1})


def test_chamfer_is_not_squared_and_means_both_directions() -> None:
    a, b = np.array([[0.0, 0, 0]]), np.array([[0.0, 0, 2], [0, 0, 6]])
    # a → b: 2; b → a: (2 + 6) / 2 = 4; their mean: 3.
    assert surface_scores(a, b, ())["chamfer"] == pytest.approx(3)


def test_fscore_is_the_harmonic_mean_of_precision_and_recall() -> None:
    answer = np.array([[0.0, 0, 0], [0, 0, 9]])  # one of two near the truth: precision 1/2
    truth = np.array([[0.0, 0, 0.1], [5, 0, 0], [0, 5, 0], [0, 0, -5]])  # one of four found: recall 1/4
    assert surface_scores(answer, truth, (0.2,))["fscore_0.2"] == pytest.approx(2 * (1 / 8) / (3 / 4))
    assert surface_scores(answer, truth, (0.1,))["fscore_0.1"] == pytest.approx(1 / 3)  # at the distance itself: a hit


# Alignment.


def test_rigid_fit_undoes_a_motion_and_never_mirrors() -> None:
    rng = np.random.default_rng(3)
    points = rng.normal(size=(50, 3))
    turn = (pitch_rotation(20) @ yaw_rotation(130)).double().numpy()
    found = rigid_fit(points, points @ turn.T + [1, 2, 3])
    np.testing.assert_allclose(found[:3, :3], turn, atol=1e-6)
    np.testing.assert_allclose(found[:3, 3], [1, 2, 3], atol=1e-6)
    mirrored = rigid_fit(points, points * [-1, 1, 1])
    assert np.linalg.det(mirrored[:3, :3]) == pytest.approx(1)


@pytest.mark.parametrize("yaw", [37.0, 171.0])
def test_alignment_finds_a_turn_between_its_tries(yaw: float) -> None:
    turn = (pitch_rotation(8.0) @ yaw_rotation(yaw)).double().numpy()
    source = sample_surface(lopsided(), 800, np.random.default_rng(0))
    target = source @ turn.T + [0.05, -0.03, 0.02]
    found = best_alignment(source, target)
    np.testing.assert_allclose(found[:3, :3], turn, atol=1e-3)
    np.testing.assert_allclose(found[:3, 3], [0.05, -0.03, 0.02], atol=1e-3)


def test_alignment_is_never_worse_than_leaving_alone() -> None:
    rng = np.random.default_rng(5)
    source, target = rng.normal(size=(60, 3)) * [1, 2, 0.3], rng.normal(size=(70, 3)) * [0.5, 0.5, 2]
    rigid = best_alignment(source, target, SMALL)
    moved = source @ rigid[:3, :3].T + rigid[:3, 3]
    assert surface_scores(moved, target, ())["chamfer"] <= surface_scores(source, target, ())["chamfer"]
    np.testing.assert_allclose(rigid[:3, :3] @ rigid[:3, :3].T, np.eye(3), atol=1e-9)


# Whole answers.


def test_the_truth_scores_full_marks_at_any_place_and_size() -> None:
    truth = TrueShape.of(lopsided(), seed=1, settings=SMALL)
    same = lopsided().transformed(np.diag([3.0, 3, 3, 1]) + np.array([[0, 0, 0, 7.0]] * 3 + [[0] * 4]))
    scores = score_shape(same, truth)
    assert scores["iou"] > 0.99 and scores["iou_aligned"] > 0.9
    assert scores["fscore_0.1"] > 0.99 and scores["chamfer"] < 0.05
    assert set(scores) == set(score_nothing(SMALL))


def test_the_volume_comes_with_the_scores() -> None:
    truth = TrueShape.of(lopsided(), seed=1, settings=SMALL)
    scores, volume = score_shape_and_volume(box((-1, -1, -1), (1, 1, 1)), truth)
    assert volume.shape == (32, 32, 32) and volume.all()
    assert scores == score_shape(box((-1, -1, -1), (1, 1, 1)), truth)
    assert scores["iou"] == pytest.approx(truth.occupied.mean())


def test_a_mirrored_truth_does_not() -> None:
    truth = TrueShape.of(lopsided(), seed=1, settings=SMALL)
    scores = score_shape(lopsided().transformed(np.diag([1.0, -1, 1, 1])), truth)
    assert scores["iou"] < 0.95 and scores["fscore_0.1"] < 0.97


def test_a_turned_truth_is_found_by_alignment_alone() -> None:
    truth = TrueShape.of(lopsided(), seed=1, settings=SMALL)
    turn = np.eye(4)
    turn[:3, :3] = yaw_rotation(90).double().numpy()
    scores = score_shape(lopsided().transformed(turn), truth)
    assert scores["iou"] < 0.6
    assert scores["iou_aligned"] > 0.9 and scores["fscore_0.1_aligned"] > 0.99
    assert scores["chamfer_aligned"] < scores["chamfer"] / 3


def test_what_alignment_moves_out_of_the_grid_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # A rod 2 long, moved along itself by a quarter: 1.5 in common of 2.5. Cut off at the grid it would be 1.5 of 2.
    rod = box((-0.25, -0.25, -1), (0.25, 0.25, 1))
    shift = np.eye(4)
    shift[2, 3] = 0.5
    monkeypatch.setattr("lrm.metrics.best_alignment", lambda *_: shift)
    scores = score_shape(rod, TrueShape.of(rod, seed=1, settings=SMALL))
    assert scores["iou"] == pytest.approx(1) and scores["iou_aligned"] == pytest.approx(0.6)


# Pictures.


def test_psnr_by_hand() -> None:
    black = torch.zeros(2, 3, 4, 4)
    answer = torch.stack([torch.full((3, 4, 4), 0.1), torch.zeros(3, 4, 4)])
    assert psnr(answer, black).tolist() == pytest.approx([20.0, PSNR_CEILING])  # mse 0.01: -10 log10 0.01 = 20
    one_pixel = black[:1].clone()
    one_pixel[0, 0, 0, 0] = 1
    assert psnr(one_pixel, black[:1]).item() == pytest.approx(10 * math.log10(48))


def test_ssim_of_equal_pictures_is_1_and_of_flat_ones_their_luminance_term() -> None:
    picture = torch.rand(2, 3, 20, 16, generator=torch.Generator().manual_seed(0))
    assert ssim(picture, picture).tolist() == pytest.approx([1, 1])
    a, b = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.8)
    expected = (2 * 0.16 + 1e-4) / (0.04 + 0.64 + 1e-4)  # no variance: the second factor is C2 / C2
    assert ssim(a, b).item() == pytest.approx(expected, abs=1e-6)


def test_ssim_of_a_negative_is_minus_what_its_contrast_says() -> None:
    # Around 1/2, a picture and its negative have equal means up to the window, and opposite covariance.
    y, x = np.mgrid[:32, :32]
    board = torch.from_numpy(0.5 + 0.25 * (-1.0) ** (x + y)).expand(1, 3, 32, 32)
    steps = np.arange(-5, 6)
    g = np.exp(-(steps**2) / (2 * 1.5**2))
    swing = 0.25 * float((g / g.sum() * (-1.0) ** steps).sum()) ** 2  # what the window leaves of the board
    variance = 0.25**2 - swing**2
    mean_a, mean_b = 0.5 + swing, 0.5 - swing
    expected = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
    expected *= (-2 * variance + 9e-4) / (2 * variance + 9e-4)
    assert ssim(board, 1 - board).item() == pytest.approx(expected, abs=1e-6)


def test_ssim_agrees_with_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image comes with rembg")
    rng = np.random.default_rng(0)
    a = rng.random((24, 30, 3))
    b = (a + 0.3 * rng.random(a.shape)).clip(0, 1)
    ours = ssim(*(torch.from_numpy(x).permute(2, 0, 1)[None] for x in (a, b))).item()
    _, full = metrics.structural_similarity(
        a, b, channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    assert ours == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-6)


def test_pictures_must_go_together() -> None:
    with pytest.raises(ImageError, match=r"one shape.*\(1, 3, 8, 8\).*\(1, 3, 8, 9\)"):
        psnr(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))
    with pytest.raises(ImageError, match="at least 11 pixels"):
        ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


# Intervals.


def test_bootstrap_interval_is_that_of_a_normal_mean() -> None:
    values = np.random.default_rng(0).normal(3, 2, (400, 2)) * [1, 10]
    found = bootstrap_intervals(values)
    for column, (low, high) in enumerate(found):
        mean, error = values[:, column].mean(), values[:, column].std() / 20
        assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.1 * error)
    assert (bootstrap_intervals(values) == found).all()
    assert (bootstrap_intervals(values, seed=1) != found).all()


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20))
def test_bootstrap_interval_stays_among_the_values(values: list[float]) -> None:
    ((low, high),) = bootstrap_intervals(np.array(values)[:, None], resamples=200)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_an_interval_of_nothing_is_an_error() -> None:
    with pytest.raises(SettingsError, match=r"at least one row.*\(0, 2\)"):
        bootstrap_intervals(np.zeros((0, 2)))
