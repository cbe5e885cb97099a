"""Model inputs against the published programs' own arithmetic, redone here in numpy, and the worked examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrm.preprocess import (
    composited,
    instantmesh_input,
    openlrm_input,
    picture_tensor,
    reference_crop,
    reference_square,
    triposr_input,
    truncated_to_8_bits,
)
from multiview.errors import ImageError, SettingsError


def block(height: int, width: int, top: int = 30, left: int = 25) -> np.ndarray:
    """A clear 200 x 180 picture with one opaque block whose pixels all differ."""
    picture = np.zeros((200, 180, 4), np.uint8)
    count = np.arange(height * width).reshape(height, width)
    picture[top : top + height, left : left + width] = np.stack([count % 251, count // 251, count % 7, 0 * count], -1)
    picture[top : top + height, left : left + width, 3] = 255
    return picture


def test_the_crop_of_the_worked_example() -> None:
    cropped = reference_crop(block(100, 60))
    assert cropped.shape == (116, 116, 4)
    rows, columns = np.flatnonzero(cropped[..., 3].any(1)), np.flatnonzero(cropped[..., 3].any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (8, 106, 28, 86)
    # 99 rows and 59 columns are left: the last ones are lost, the others are the same pixels.
    assert (cropped[8:107, 28:87] == block(100, 60)[30:129, 25:84]).all()


def test_the_odd_pixel_of_the_padding_comes_after() -> None:
    # 11 x 8 loses a line each way: 10 x 7, padded to 10 with 1 before and 2 after, then to int(10 / 0.85) = 11 with
    # 0 before and 1 after.
    cropped = reference_crop(block(11, 8))
    assert cropped.shape == (11, 11, 4)
    assert np.flatnonzero(cropped[..., 3].any(0)).tolist() == list(range(1, 8))
    assert np.flatnonzero(cropped[..., 3].any(1)).tolist() == list(range(0, 10))


def test_a_halo_of_alpha_1_counts_as_the_object() -> None:
    picture = block(40, 40)
    picture[10, 5, 3] = 1
    assert reference_crop(picture, 1.0).shape[0] == 70 - 10 - 1


@given(
    top=st.integers(0, 20), left=st.integers(0, 20), height=st.integers(2, 60), width=st.integers(2, 60),
    ratio=st.floats(0.3, 1.0),
)  # fmt: skip
def test_every_crop_is_a_centred_square_of_the_asked_ratio(
    top: int, left: int, height: int, width: int, ratio: float
) -> None:
    cropped = reference_crop(block(height, width, top, left), ratio)
    x, y, whole = reference_square(block(height, width, top, left)[..., 3], ratio)
    side = max(height, width) - 1
    assert cropped.shape == (int(side / ratio),) * 2 + (4,)
    rows, columns = np.flatnonzero(cropped[..., 3].any(1)), np.flatnonzero(cropped[..., 3].any(0))
    assert (len(rows), len(columns)) == (height - 1, width - 1)
    assert (columns[0] + x, rows[0] + y, whole) == (left, top, len(cropped))
    for line, size in ((rows, len(cropped)), (columns, len(cropped))):
        before, after = line[0], size - 1 - line[-1]
        assert 0 <= after - before <= 2  # two paddings, each with at most one pixel more after


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (np.zeros((5, 6, 4), np.uint8), "found 0 x 0 px with alpha above 0 in 5 x 6 px"),
        (block(1, 30), "found 1 x 30 px"),
        (np.zeros((5, 6, 3), np.uint8), r"found uint8 \(5, 6, 3\)"),
        (np.zeros((5, 6, 4), np.float32), "found float32"),
    ],
    ids=["empty", "one-row", "no-alpha", "floats"],
)
def test_what_cannot_be_cropped_is_said(picture: np.ndarray, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        reference_crop(picture)


@pytest.mark.parametrize("ratio", [0.0, 1.01, -1.0, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(SettingsError, match="above 0 and at most 1"):
        reference_crop(block(9, 9), ratio)


def every_color_and_alpha() -> np.ndarray:
    """(256, 256, 4) uint8: each grey value with each alpha."""
    color, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    return np.stack([color, color, color, alpha], -1)


def test_triposr_composites_and_cuts_off_exactly_as_8_bit_numpy_does() -> None:
    rgba = every_color_and_alpha()
    unit = rgba.astype(np.float32) / 255.0
    over_grey = unit[..., :3] * unit[..., 3:] + (1 - unit[..., 3:]) * 0.5
    expected = (over_grey * 255.0).astype(np.uint8)  # as theirs: cut off, not rounded
    ours = triposr_input(picture_tensor(rgba), image_size=256)[0].permute(1, 2, 0) * 255
    assert np.abs(ours.numpy() - expected).max() < 1e-3
    rounded = np.rint(over_grey * 255)
    assert np.abs(ours.numpy() - rounded).max() > 0.99  # the test can tell the two apart


def test_a_picture_that_went_through_premultiplied_floats_is_not_cut_off_one_step_lower() -> None:
    exact = picture_tensor(every_color_and_alpha()[1:])
    alpha = exact[:, 3:]
    worn = torch.cat([(exact[:, :3] * alpha) / alpha, alpha], 1)
    assert not torch.equal(worn, exact)
    assert torch.equal(triposr_input(worn, 64), triposr_input(exact, 64))


def triangle_weights(source: int, target: int) -> np.ndarray:
    """(target, source) rows of antialiased bilinear resampling: a triangle of the wider pixel's half width."""
    scale = source / target
    support = max(scale, 1.0)
    centre = (np.arange(target) + 0.5) * scale
    weights = np.clip(1 - np.abs(np.arange(source) + 0.5 - centre[:, None]) / support, 0, None)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("shape", [(80, 100), (20, 31)], ids=["smaller", "larger"])
def test_triposr_resizes_bilinearly_with_antialiasing(shape: tuple[int, int]) -> None:
    image = np.random.RandomState(7).uniform(size=(*shape, 3))
    rows, columns = triangle_weights(shape[0], 48), triangle_weights(shape[1], 48)
    expected = np.einsum("ih,hwc,jw->cij", rows, image, columns)
    ours = triposr_input(torch.from_numpy(image).permute(2, 0, 1)[None].float(), 48)
    assert np.abs(ours[0].numpy() - expected).max() < 1e-5


def cubic_weights(source: int, target: int) -> np.ndarray:
    """(target, source) rows of Keys' cubic with a = -0.75, corners on corners, borders repeated."""
    weights = np.zeros((target, source))
    for i, position in enumerate(np.linspace(0, source - 1, target)):
        base = int(np.floor(position))
        for k in range(base - 1, base + 3):
            x = abs(position - k)
            near = 1.25 * x**3 - 2.25 * x**2 + 1
            far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
            weights[i, min(max(k, 0), source - 1)] += near if x <= 1 else far if x < 2 else 0
    return weights


def test_openlrm_resizes_bicubically_corner_to_corner_over_white() -> None:
    rgba = np.random.RandomState(11).uniform(size=(4, 50, 60))
    over_white = rgba[:3] * rgba[3] + 1 - rgba[3]
    expected = np.einsum("ih,chw,jw->cij", cubic_weights(50, 42), over_white, cubic_weights(60, 42)).clip(0, 1)
    ours = openlrm_input(torch.from_numpy(rgba)[None].float(), 42)[0]
    assert np.abs(ours.numpy() - expected).max() < 1e-5
    assert ours[:, 0, 0].tolist() == pytest.approx(over_white[:, 0, 0].tolist(), abs=1e-6)
    assert ours[:, -1, -1].tolist() == pytest.approx(over_white[:, -1, -1].tolist(), abs=1e-6)


def test_openlrm_clamps_the_overshoot_of_an_edge() -> None:
    edge = torch.zeros(1, 3, 10, 10)
    edge[..., 5:] = 1
    plain = torch.nn.functional.interpolate(edge, (37, 37), mode="bicubic", align_corners=True)
    assert plain.max() > 1.01
    assert openlrm_input(edge, 37).max() == 1
    assert openlrm_input(edge, 37).min() == 0


def test_instantmesh_leaves_pictures_of_its_size_alone_and_antialiases_others() -> None:
    views = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(instantmesh_input(views, 32), views)
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1
    # Reducing four pixels to one mixes the stripes to grey; without antialiasing only some of them would be seen.
    assert (instantmesh_input(stripes, 16)[..., 2:-2] - 0.5).abs().max() < 0.01
    clear = torch.zeros(1, 4, 32, 32)
    assert instantmesh_input(clear, 32).min() == 1  # white, not black


def test_a_view_that_is_not_square_is_refused() -> None:
    with pytest.raises(ImageError, match="square views, found 20 x 30 px"):
        instantmesh_input(torch.zeros(1, 3, 20, 30))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 2, 8, 8), (1, 4, 0, 8)])
def test_pictures_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    for prepare in (triposr_input, instantmesh_input, lambda images: openlrm_input(images, 42)):
        with pytest.raises(ImageError, match=r"\(B, 3 or 4, H, W\), found \("):
            prepare(torch.zeros(shape))


def test_sizes_and_bytes_are_checked() -> None:
    with pytest.raises(SettingsError, match="image_size=0"):
        triposr_input(torch.zeros(1, 3, 8, 8), 0)
    with pytest.raises(ImageError, match=r"float64 \(2, 2, 3\)"):
        picture_tensor(np.zeros((2, 2, 3)))


@given(value=st.floats(0, 1, width=32), background=st.floats(0, 1, width=32), alpha=st.floats(0, 1, width=32))
def test_compositing_and_cutting_off_stay_within_one_step(value: float, background: float, alpha: float) -> None:
    pixel = torch.tensor([value, value, value, alpha]).reshape(1, 4, 1, 1)
    over = composited(pixel, background)
    assert min(value, background) - 1e-6 <= over.min() <= over.max() <= max(value, background) + 1e-6
    cut = truncated_to_8_bits(over)
    assert (over - cut).min() >= -1e-6
    assert (over - cut).max() <= 1 / 255 + 1e-6
