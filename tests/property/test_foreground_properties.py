"""What holds for the cut-out of any picture."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trilift import foreground
from trilift.classical import alpha_by_colors
from trilift.foreground import cut_out
from trilift.photo import load_photo


@st.composite
def rectangles(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """An RGBA picture with one opaque rectangle of random colours, and its box."""
    width, height = draw(st.integers(16, 90)), draw(st.integers(16, 90))
    left, top = draw(st.integers(0, width - 3)), draw(st.integers(0, height - 3))
    right, bottom = draw(st.integers(left + 2, width)), draw(st.integers(top + 2, height))
    pixels = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (height, width, 4), np.uint8)
    pixels[..., 3] = 0
    pixels[top:bottom, left:right, 3] = 255
    return pixels, (left, top, right, bottom)


@given(rectangles(), st.sampled_from([0.3, 0.5, 0.85, 1.0]), st.sampled_from([48, 64, 101]))
def test_the_box_is_centred_at_its_ratio(
    drawn: tuple[np.ndarray, tuple[int, int, int, int]], ratio: float, size: int
) -> None:
    pixels, box = drawn
    if box == (0, 0, pixels.shape[1], pixels.shape[0]):
        pixels[0, 0, 3] = 0  # else it has no alpha at all
    cutout = cut_out(load_photo(pixels), foreground_ratio=ratio, size=size)
    assert cutout.method == "alpha" and cutout.image.shape == (size, size, 4)
    if box[2] - box[0] > 2 and box[3] - box[1] > 2:
        assert cutout.box == box
    left, top, right, bottom = foreground._box(cutout.image[..., 3] / 255)
    assert abs(max(right - left, bottom - top) - ratio * size) <= 2
    assert abs(left + right - size) <= 2 and abs(top + bottom - size) <= 2
    # The crop says the same thing in the photo's pixels.
    x, y, side = cutout.crop
    assert side * ratio == max(cutout.box[2] - cutout.box[0], cutout.box[3] - cutout.box[1])
    assert x + side / 2 == (cutout.box[0] + cutout.box[2]) / 2 and y + side / 2 == (cutout.box[1] + cutout.box[3]) / 2


@given(rectangles(), st.sampled_from([16, 33, 64, 80]))
def test_tensors_are_straight_bounded_and_black_where_clear(
    drawn: tuple[np.ndarray, tuple[int, int, int, int]], size: int
) -> None:
    tensor = cut_out(load_photo(drawn[0]), background="keep" if drawn[0][..., 3].all() else "auto", size=64).to_tensor(
        size
    )
    assert tensor.shape == (4, size, size) and bool(torch.isfinite(tensor).all())
    assert float(tensor.min()) >= 0 and float(tensor.max()) <= 1
    assert not tensor[:3][:, tensor[3] == 0].any()


@given(st.integers(0, 10_000))
@settings(max_examples=15)
def test_any_picture_gives_an_alpha_without_a_crash(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(16, 70, 2))
    levels = int(rng.integers(1, 5))
    rgb = rng.integers(0, levels, (height, width, 3)).astype(np.float32) / max(levels - 1, 1)
    alpha = alpha_by_colors(rgb)
    assert alpha.shape == (height, width) and alpha.dtype == np.float32
    assert np.isfinite(alpha).all() and alpha.min() >= 0 and alpha.max() <= 1
    assert np.array_equal(alpha, alpha_by_colors(rgb))


@given(st.integers(0, 3), st.booleans())
@settings(max_examples=8)
def test_removal_turns_with_the_picture(turns: int, mirrored: bool) -> None:
    y, x = np.meshgrid(np.linspace(-1, 1, 96), np.linspace(-1, 1, 96), indexing="ij")
    inside = (np.abs(x + 0.2) < 0.35) & (np.abs(y) < 0.6) & ~((x > 0) & (y < 0))
    rgb = np.where(inside[..., None], [0.7, 0.3, 0.2], np.stack([0.6 + 0.2 * x, 0.7 + 0.1 * y, 0.7 - 0.1 * x * y], -1))
    rgb = rgb.astype(np.float32)

    def turned(a: np.ndarray) -> np.ndarray:
        return np.rot90(a[:, ::-1] if mirrored else a, turns).copy()

    found, expected = alpha_by_colors(turned(rgb)), turned(alpha_by_colors(rgb))
    assert np.mean((found > 0.5) != (expected > 0.5)) < 0.003
    assert np.mean((expected > 0.5) != turned(inside)) < 0.01
