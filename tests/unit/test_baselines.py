"""Trivial answers on pictures whose best answer is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lrm.mesh import Mesh
from lrm.metrics import overlap
from multiview.errors import ImageError, SettingsError
from train.baselines import (
    RETRIEVAL_SIZE,
    Bytes,
    Constants,
    Example,
    Retrieval,
    Silhouette,
    boxed,
    ellipsoid,
    extrusion,
    fit_constants,
    mean_shape,
    profile_ious,
    trivial_answer,
    turned,
)


def picture(width: int, height: int, size: int = 256, left: int = 20, top: int = 30) -> Bytes:
    """A rectangle, red in its left half and blue in its right, on nothing."""
    image = np.zeros((size, size, 4), np.uint8)
    image[top : top + height, left : left + width] = (0, 0, 255, 255)
    image[top : top + height, left : left + width // 2] = (255, 0, 0, 255)
    return image


def constants(**changes: object) -> Constants:
    values = {
        "objects": 1, "ellipsoid_depth": 1.0, "extrusion_depth": 1.0, "mean_shape_depth": 1.0, "mean_shape_level": 0.5,
        "mean_shape": np.ones((8, 8, 8), np.float32), "ellipsoid_iou": 0.0, "extrusion_iou": 0.0, "mean_shape_iou": 0.0,
    }  # fmt: skip
    return Constants(**(values | changes))  # type: ignore[arg-type]


def solid_box(half: tuple[float, float, float], grid: int = 64) -> np.ndarray:
    """Occupancy of a centred box of half sides ``half``."""
    axis = np.abs((np.arange(grid) + 0.5) * 2 / grid - 1)
    x, y, z = (axis < h for h in half)
    return x[:, None, None] & y[None, :, None] & z[None, None, :]


def solid_ellipsoid(half: tuple[float, float, float], grid: int = 64) -> np.ndarray:
    axis = (np.arange(grid) + 0.5) * 2 / grid - 1
    x, y, z = ((axis / h) ** 2 for h in half)
    return x[:, None, None] + y[None, :, None] + z[None, None, :] < 1


def disc(size: int = 256, half: float = 100) -> Bytes:
    y, x = np.mgrid[:size, :size] + 0.5
    image = np.zeros((size, size, 4), np.uint8)
    image[np.hypot(x - size / 2, y - size / 2) < half] = (90, 90, 90, 255)
    return image


# The silhouette.


def test_silhouette_measures_its_box_with_longest_side_2() -> None:
    seen = Silhouette.of(picture(100, 200))
    assert seen.extent == pytest.approx((1.0, 2.0)) and seen.center == (70, 130) and seen.pixel == pytest.approx(0.01)
    points = np.array([[0, -0.4, 0.9], [5, 0.4, -0.9], [0, 0.6, 0], [0, 0, 1.1]])
    assert seen.covers(points).tolist() == [True, True, False, False]
    # Left in the picture is -y, and red; beyond the silhouette the nearest colour counts.
    np.testing.assert_allclose(seen.colors(points[:3]), [[1, 0, 0], [0, 0, 1], [0, 0, 1]])


def test_silhouette_up_is_up() -> None:
    image = np.zeros((64, 64, 4), np.uint8)
    image[8:56, 30:34, 3] = 255
    image[8:12, 20:44, 3] = 255  # a T
    seen = Silhouette.of(image)
    assert seen.covers(np.array([[0, 0.4, 0.95], [0, 0.4, -0.95]])).tolist() == [True, False]


def test_silhouette_averages_alpha_when_it_shrinks() -> None:
    image = np.zeros((64, 64, 4), np.uint8)
    image[:3, :2, 3] = 255
    small = Silhouette.of(image).small_alpha(32)
    assert small[0, 0] == 1 and small[1, 0] == 0.5 and small.sum() == 1.5
    with pytest.raises(ImageError, match="multiple"):
        Silhouette.of(image).small_alpha(48)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((8, 8, 4), np.uint8), "none in"),
        (np.zeros((8, 9, 4), np.uint8), r"\(8, 9, 4\)"),
        (np.zeros((8, 8, 3), np.uint8), r"\(8, 8, 3\)"),
    ],
    ids=["empty", "not square", "no alpha"],
)
def test_pictures_without_a_silhouette_are_errors(image: Bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        Silhouette.of(image)


# The shapes.


def test_ellipsoid_fills_pi_over_6_of_its_box() -> None:
    mesh = ellipsoid(Silhouette.of(picture(100, 200)), constants(ellipsoid_depth=0.4), segments=96)
    np.testing.assert_allclose(mesh.extent, [0.8, 1.0, 2.0], atol=1e-6)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(math.pi / 6 * 0.8 * 1.0 * 2.0, rel=0.005)  # positive: faces outward


def test_extrusion_of_a_square_is_a_box() -> None:
    mesh = extrusion(Silhouette.of(picture(160, 160)), constants(extrusion_depth=0.3))
    np.testing.assert_allclose(mesh.extent, [0.6, 2.0, 2.0], atol=0.02)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(0.6 * 4, rel=0.01)
    red = mesh.vertices[:, 1] < -0.1
    np.testing.assert_allclose(mesh.colors[red], np.tile([1, 0, 0], (red.sum(), 1)))


def test_extrusion_keeps_a_hole_and_stays_where_the_silhouette_is() -> None:
    image = picture(160, 80)
    image[50:90, 40:80] = 0  # towards the left
    mesh = extrusion(Silhouette.of(image), constants(extrusion_depth=0.5))
    assert mesh.volume == pytest.approx((160 * 80 - 40 * 40) / 80**2, rel=0.02)
    middle = float((mesh.vertices[:, 1] > 0.2).sum() / len(mesh.vertices))
    assert middle < 0.5, "the hole's wall is on the -y side"


def test_extrusion_of_a_hair_is_not_empty() -> None:
    image = np.zeros((256, 256, 4), np.uint8)
    image[20:220, 101, 3] = 255  # half a pixel of the outline
    mesh = extrusion(Silhouette.of(image), constants())
    assert mesh.extent[1] == pytest.approx(0.01, abs=0.002) and mesh.extent[2] == pytest.approx(2, abs=0.02)


def test_mean_shape_is_stretched_to_the_box() -> None:
    volume = np.zeros((16, 16, 16), np.float32)
    volume[4:12, 2:10, 5:9] = 1
    mesh = mean_shape(Silhouette.of(picture(50, 200)), constants(mean_shape=volume, mean_shape_depth=0.7))
    np.testing.assert_allclose(mesh.extent, [1.4, 0.5, 2.0], atol=1e-6)
    np.testing.assert_allclose(mesh.bounds.mean(0), 0, atol=1e-6)
    assert mesh.volume > 0 and mesh.is_watertight


# Fitting.


def test_constants_are_those_of_boxes() -> None:
    # Boxes 0.6 of their longest side deep: the extrusion of that depth is the truth itself.
    examples = [Example(picture(w, h), solid_box((0.6, w / 200, h / 200))) for w, h in ((200, 100), (60, 200))]
    found = fit_constants(examples)
    assert found.objects == 2
    assert found.extrusion_depth == 0.6 and found.extrusion_iou == pytest.approx(1, abs=0.04)
    assert found.mean_shape_depth == 0.6 and found.mean_shape_iou == pytest.approx(1, abs=0.04)
    assert (found.mean_shape == 1).all()
    assert found.extrusion_iou > found.ellipsoid_iou + 0.2


def test_constants_are_those_of_ellipsoids() -> None:
    examples = [Example(disc(), solid_ellipsoid((0.4, 1, 1))), Example(disc(), solid_ellipsoid((0.4, 1, 1)))]
    found = fit_constants(examples)
    assert found.ellipsoid_depth == pytest.approx(0.4) and found.ellipsoid_iou > 0.93
    assert found.extrusion_depth < 0.4, "an extrusion as deep as the ellipsoid would be too much of it"


def test_profiles_are_counted_as_grids_are() -> None:
    rng = np.random.default_rng(0)
    occupied, half_depths = rng.random((8, 8, 8)) < 0.4, rng.random((3, 64)) * 1.2
    x = np.abs((np.arange(8) + 0.5) / 4 - 1)
    expected = [overlap(occupied, x[:, None, None] < half.reshape(1, 8, 8)) for half in half_depths]
    assert profile_ious(occupied, half_depths) == pytest.approx(expected)


def test_fitting_on_nothing_is_an_error() -> None:
    with pytest.raises(SettingsError, match="at least one training object"):
        fit_constants([])


def test_boxed_stretches_what_is_occupied() -> None:
    occupied = np.zeros((8, 8, 8), bool)
    occupied[2:4, 1:7, 3:4] = True
    occupied[3, 1:4, 3] = False
    wide = boxed(occupied, 4)
    assert wide[:2].all()
    assert not wide[2:, :2].any() and wide[2:, 2:].all()
    assert not boxed(np.zeros((4, 4, 4), bool), 2).any()


def test_constants_survive_json() -> None:
    volume = (np.arange(64).reshape(4, 4, 4) / 255).astype(np.float32)
    before = constants(mean_shape=volume, ellipsoid_depth=0.45, objects=7)
    after = Constants.from_json(json.loads(json.dumps(before.as_json())))
    assert after.objects == 7 and after.ellipsoid_depth == 0.45
    np.testing.assert_allclose(after.mean_shape, volume, atol=1e-6)
    with pytest.raises(SettingsError, match="Fit them again"):
        Constants.from_json({"mean_shape": "AAAA"})


# Retrieval.


def flag(direction_deg: float) -> Mesh:
    """A pole with a flag toward one azimuth."""
    vertices = np.array([[0, 0, -1], [0, 0, 1], [1.0, 0, 1], [1.0, 0, 0.4], [0, 0, 0.4]])
    mesh = Mesh(vertices, np.array([[0, 1, 2], [1, 2, 3], [1, 3, 4]]), np.full((5, 3), 0.5))
    return turned(mesh, -direction_deg)


def test_turned_takes_the_camera_to_azimuth_0() -> None:
    mesh = turned(flag(0), 90)  # a camera at +y comes to +x; what pointed to +x points to -y
    assert mesh.vertices[2].tolist() == pytest.approx([0, -1, 1], abs=1e-6)


def test_retrieval_gives_the_object_turned_as_it_was_seen() -> None:
    seen: list[tuple[float, float]] = []

    def look(mesh: Mesh, azimuth: float, elevation: float, size: int) -> Bytes:
        """A bar whose height tells the mesh and whose width tells the azimuth."""
        seen.append((azimuth, elevation))
        image = np.zeros((size, size, 4), np.uint8)
        image[: 8 + 8 * int(mesh.vertices[1, 2] > 1.5), : 1 + int(azimuth) // 30, 3] = 255
        return image

    tall = flag(0).transformed(np.diag([2.0, 2, 2, 1]))
    library = Retrieval.of([flag(0), tall], look)
    assert len(seen) == 2 * 12 * 3 and library.alphas.shape == (72, RETRIEVAL_SIZE**2)
    asked = np.repeat(np.repeat(look(tall, 90, 0, RETRIEVAL_SIZE), 4, 0), 4, 1)
    answer = trivial_answer("retrieval", asked, constants(), library)
    np.testing.assert_allclose(answer.vertices, turned(tall, 90).vertices)


def test_unknown_answers_are_errors() -> None:
    with pytest.raises(SettingsError, match=r"'cube'.*ellipsoid"):
        trivial_answer("cube", picture(10, 10), constants())
    with pytest.raises(SettingsError, match="training objects"):
        trivial_answer("retrieval", picture(10, 10), constants())
