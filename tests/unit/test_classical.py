"""The remover by colours: drawn photos whose true alpha is known, and each step with numbers worked out by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.pictures import PICTURES, drawn, foliage, gradient
from trilift import classical
from trilift.classical import alpha_by_colors
from trilift.photo import Photo, load_photo


def found_alpha(photo: Photo) -> np.ndarray:
    return alpha_by_colors(photo.source_image[..., :3].astype(np.float32) / 255)


def overlap(found: np.ndarray, true: np.ndarray) -> float:
    return float(((found > 0.5) & (true > 0.5)).sum() / ((found > 0.5) | (true > 0.5)).sum())


@pytest.mark.parametrize(
    ("photo_and_alpha", "least"),
    [
        pytest.param(drawn("disc", (0.7, 0.2, 0.1), (0.8, 0.8, 0.8)), 0.985, id="plain"),
        pytest.param(drawn("ring", (0.7, 0.2, 0.1), gradient()), 0.97, id="hole-before-gradient"),
        pytest.param(
            drawn("disc", (0.2, 0.3, 0.7), (0.9, 0.9, 0.9), shadow=0.6, noise=0.01, side=320), 0.97, id="shadow"
        ),
        pytest.param(drawn("disc", (0.82, 0.82, 0.81), (0.99, 0.99, 0.99)), 0.98, id="white-on-white"),
        pytest.param(
            # Nothing but its outline tells it from its shadow: rather with the shadow than without the object.
            drawn("disc", (0.85, 0.85, 0.84), (0.99, 0.99, 0.99), shadow=0.2, side=320),
            0.75,
            id="white-in-its-own-shadow",
        ),
        pytest.param(drawn("disc", (0.14, 0.12, 0.1), (0.05, 0.05, 0.05), noise=0.008), 0.97, id="dark-on-dark"),
        pytest.param(drawn("disc", (0.2, 0.45, 0.3), (0.7, 0.7, 0.7), noise=0.06), 0.97, id="noise"),
        pytest.param(drawn("ring", (0.8, 0.6, 0.2), gradient(), jpeg=40), 0.93, id="jpeg-40"),
        pytest.param(drawn("post", (0.2, 0.3, 0.7), (0.75, 0.7, 0.65), noise=0.01), 0.98, id="at-the-border"),
        pytest.param(drawn("table", (0.3, 0.2, 0.15), (0.85, 0.85, 0.85), jpeg=90), 0.9, id="thin-legs"),
        pytest.param(drawn("disc", (0.8, 0.3, 0.25), foliage()), 0.97, id="before-foliage"),
    ],
)
def test_the_object_is_found(photo_and_alpha: tuple[Photo, np.ndarray], least: float) -> None:
    photo, alpha = photo_and_alpha
    found = found_alpha(photo)
    assert found.dtype == np.float32 and found.min() >= 0 and found.max() <= 1
    assert overlap(found, alpha) > least


def test_the_edge_is_soft_and_its_alpha_true() -> None:
    photo, alpha = drawn("disc", (0.7, 0.2, 0.1), (0.8, 0.8, 0.8))
    found = found_alpha(photo)
    edge = (alpha > 0.05) & (alpha < 0.95)
    assert np.abs(found - alpha)[edge].mean() < 0.06  # a hard mask is 0.25 off
    assert np.abs(found - alpha)[~edge].mean() < 0.001


def test_polynomials_and_robust_fit() -> None:
    basis = classical._polynomials(9, 11, 2)
    assert basis.shape == (9, 11, 6)
    values = np.stack([basis @ c for c in np.arange(18.0).reshape(3, 6)], -1).reshape(-1, 3)
    values[::3] += 80  # a third of them lie far off
    coefficients, _ = classical._robust_fit(basis.reshape(-1, 6), values)
    assert np.abs(coefficients - np.arange(18.0).reshape(3, 6).T).max() < 0.05


def test_lab_of_known_colours() -> None:
    rgb = np.array([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [0.4663, 0.4663, 0.4663]])
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.2], [50, 0, 0]]
    assert np.abs(classical._lab(rgb) - expected).max() < 0.05


def test_graph_cut_follows_the_edge_and_the_energies() -> None:
    lab = np.zeros((6, 8, 3))
    lab[:, 4:, 0] = 60
    as_background, as_object = np.zeros((6, 8)), np.zeros((6, 8))
    as_background[:, 7], as_object[:, 0] = 50, 50  # only the two ends know; the edge decides between them
    mask = classical._graph_cut(lab, as_background, as_object, smoothness=5.0)
    assert mask[:, 4:].all() and not mask[:, :4].any()
    lonely = np.zeros((6, 8))
    lonely[3, 3] = 4  # one pixel's wish is cheaper to refuse than its outline to cut
    assert not classical._graph_cut(np.zeros((6, 8, 3)), lonely, np.full((6, 8), 0.1), smoothness=5.0).any()


def test_mixture_of_two_colours() -> None:
    rng = np.random.default_rng(0)
    colors = np.concatenate([rng.normal((20, 0, 0), 1, (300, 3)), rng.normal((70, 10, 0), 1, (100, 3))])
    mixture = classical._Mixture.fit(colors, k=2)
    order = np.argsort(mixture.means[:, 0])
    assert np.abs(mixture.means[order] - [[20, 0, 0], [70, 10, 0]]).max() < 0.5
    assert np.exp(mixture.log_weights[order]) == pytest.approx([0.75, 0.25])
    near, far = mixture.energy(np.array([[20.0, 0, 0], [45, 0, 0]]))
    assert near + 20 < far
    # A density: exp(-energy) of the two Gaussians, each at its own mean, with the noise floor of 2 units.
    assert near == pytest.approx(
        0.5 * np.log(np.linalg.det(np.cov(colors[:300].T) + 4 * np.eye(3))) - np.log(0.75), abs=0.01
    )


def test_pieces_and_holes() -> None:
    mask = np.zeros((40, 40), bool)
    mask[5:25, 5:25] = True
    mask[10:12, 10:12] = False  # a pinprick
    mask[15:20, 15:20] = False  # a hole
    mask[5:9, 26] = True  # a speck nearby
    mask[38, 38] = True  # a speck far away
    kept = classical._kept_pieces(mask)
    assert kept[5:9, 26].all() and not kept[38, 38]
    like, unlike = np.zeros((40, 40)), np.full((40, 40), 50.0)
    assert classical._filled(mask, like)[10:12, 10:12].all(), "too small for a hole"
    assert not classical._filled(mask, like)[15:20, 15:20].any(), "the background is seen through it"
    assert classical._filled(mask, unlike)[15:20, 15:20].all(), "a part of the object like its background's shadow"


def test_jpeg_blocks_are_seen() -> None:
    noisy = np.random.default_rng(0).normal(0, 0.01, (64, 64, 3)) + gradient(64)
    assert not classical._has_jpeg_blocks(noisy)
    out = io.BytesIO()
    Image.fromarray(np.round(np.clip(noisy, 0, 1) * 255).astype(np.uint8)).save(out, "JPEG", quality=60)
    assert classical._has_jpeg_blocks(np.asarray(Image.open(out)) / 255)


@pytest.mark.parametrize("name", ["chair.png", "hamburger.png", "school-bus.png"])
def test_removal_finds_the_alpha_that_an_artist_drew(name: str) -> None:
    if not (PICTURES / name).is_file():
        pytest.skip(f"{PICTURES / name} is not here")
    pixels = load_photo(PICTURES / name).source_image.astype(np.float32) / 255
    alpha = pixels[..., 3:]
    assert overlap(alpha_by_colors(pixels[..., :3] * alpha + 1 - alpha), alpha[..., 0]) > 0.98
