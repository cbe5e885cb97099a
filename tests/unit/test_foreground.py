"""The cut-out: geometry and checks worked out by hand, which road is taken, whole cut-outs of pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from multiview.errors import ImageError, SettingsError
from tests.pictures import PICTURES, drawn, foliage, rectangle
from trilift import foreground
from trilift.foreground import Cutout, cut_out
from trilift.photo import load_photo

# Geometry


def test_box_crop_and_centre() -> None:
    cutout = cut_out(rectangle(10, 20, 50, 40), foreground_ratio=0.8, size=100)
    assert cutout.method == "alpha" and cutout.warnings == ()
    assert cutout.box == (10, 20, 50, 40)
    assert cutout.crop == (5.0, 5.0, 50.0)  # 40 / 0.8, around (30, 30)
    assert cutout.source_size == (100, 80) and cutout.name == "<image>"
    opaque = cutout.image[..., 3] > 127
    assert foreground._box(opaque) == (10, 30, 90, 70)
    assert cutout.image[50, 50].tolist() == [255, 0, 0, 255]
    assert not cutout.image[cutout.image[..., 3] == 0].any(), "clear pixels have no colour"


def test_a_crop_may_reach_outside_the_photo() -> None:
    cutout = cut_out(rectangle(0, 0, 100, 20), foreground_ratio=0.5, size=64)
    assert cutout.crop == (-50.0, -90.0, 200.0)
    assert foreground._box(cutout.image[..., 3] / 255) == (16, 29, 48, 35)
    assert cutout.checks["touches_border"] is True
    assert any("top, left, right" in w for w in cutout.warnings)


@pytest.mark.parametrize("size", [37, 64, 300])
def test_no_colour_bleeds_in_from_clear_pixels(size: int) -> None:
    cutout = cut_out(rectangle(11, 17, 52, 43), size=size)
    seen = cutout.image[cutout.image[..., 3] > 4]
    assert (seen[:, 0] >= 250).all() and (seen[:, 1] <= 5).all()


def test_half_transparent_objects_stay_straight() -> None:
    cutout = cut_out(rectangle(10, 20, 50, 40, alpha=160), size=64)
    assert cutout.image[32, 32].tolist() == [255, 0, 0, 160]
    tensor = cutout.to_tensor(64)
    assert tensor[:, 32, 32].tolist() == pytest.approx([1, 0, 0, 160 / 255], abs=1e-6)


def test_to_tensor_resizes_colours_weighted_by_alpha() -> None:
    image = np.zeros((4, 4, 4), np.uint8)
    image[:, :2] = (200, 100, 0, 255)
    image[:, 2:] = (0, 255, 255, 0)
    cutout = Cutout(image, "alpha", 0.85, (0, 0, 2, 4), (0, 0, 4), (4, 4), "x", {}, ())
    assert torch.equal(cutout.to_tensor(4)[:, 0, 2:], torch.zeros(4, 2)), "colours are 0 where alpha is 0"
    small = cutout.to_tensor(1)
    assert small.shape == (4, 1, 1) and small.dtype == torch.float32
    assert small.flatten().tolist() == pytest.approx([200 / 255, 100 / 255, 0, 0.5], abs=1e-5)
    with pytest.raises(SettingsError, match="size=0"):
        cutout.to_tensor(0)


def test_field_of_view_of_the_crop() -> None:
    cutout = cut_out(rectangle(10, 20, 50, 40), foreground_ratio=0.8)  # side 50 of 80 px
    expected = math.degrees(2 * math.atan(math.tan(math.radians(20)) * 50 / 80))
    assert cutout.crop_fov_deg(40) == pytest.approx(expected)
    assert cut_out(rectangle(0, 0, 80, 79, size=(80, 80)), foreground_ratio=1).crop_fov_deg(40) == pytest.approx(40)
    with pytest.raises(SettingsError, match="photo_fov_deg=180"):
        cutout.crop_fov_deg(180)


# Which road is taken


def test_the_mask_file_wins_over_alpha(tmp_path: Path) -> None:
    Image.fromarray(rectangle(10, 20, 50, 40).source_image).save(tmp_path / "a.png")
    mask = Image.new("L", (100, 80), 0)
    mask.paste(255, (60, 10, 80, 70))
    mask.save(tmp_path / "a_mask.png")
    cutout = cut_out(load_photo(tmp_path / "a.png"))
    assert cutout.method == "mask" and cutout.box == (60, 10, 80, 70)


def test_keep_takes_the_whole_frame() -> None:
    cutout = cut_out(load_photo(np.full((40, 80, 3), 90, np.uint8)), background="keep", size=80)
    assert (cutout.method, cutout.foreground_ratio, cutout.warnings) == ("keep", 1.0, ())
    assert cutout.box == (0, 0, 80, 40) and cutout.crop == (0.0, -20.0, 80.0)
    assert (cutout.image[20:60, :, :] == (90, 90, 90, 255)).all()
    assert not cutout.image[:20].any() and not cutout.image[60:].any()


def test_keep_shows_clear_pixels_white() -> None:
    cutout = cut_out(rectangle(10, 20, 50, 40, size=(80, 80)), background="keep", size=80)
    assert cutout.image[0, 0].tolist() == [255, 255, 255, 255]
    assert cutout.image[30, 30].tolist() == [255, 0, 0, 255]


def test_removal_by_colours_says_so_and_how_to_mend_it() -> None:
    cutout = cut_out(drawn("disc", (0.7, 0.2, 0.1), (0.8, 0.8, 0.8))[0])
    assert cutout.method == "classical"
    (warning,) = cutout.warnings
    for words in ("made by colours alone", "_mask.png", "RGBA", "rembg d u2net", "TRILIFT_OFFLINE"):
        assert words in warning


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"background": "blur"}, "background='blur'.*auto, keep, remove"),
        ({"foreground_ratio": 1.2}, "foreground_ratio=1.2"),
        ({"foreground_ratio": float("nan")}, "foreground_ratio=nan"),
        ({"size": 4}, "size=4"),
        ({"background": "remove", "rembg_model": "u3net"}, "rembg_model='u3net'.*u2net"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        cut_out(rectangle(10, 20, 50, 40), **options)


# What is found wrong


def test_nothing_left_and_nothing_there() -> None:
    with pytest.raises(ImageError, match=r"<image>: is transparent everywhere \(20 x 20 px"):
        cut_out(load_photo(np.zeros((20, 20, 4), np.uint8)))
    with pytest.raises(
        ImageError, match=r"nothing left after background removal \(0 of 8000 pixels have alpha > 0.5"
    ) as e:
        cut_out(rectangle(10, 20, 50, 40, alpha=100))
    assert "_mask.png" in str(e.value) and "--background keep" in str(e.value)
    for flat in (np.full((64, 64, 3), 128, np.uint8), np.zeros((64, 64, 3), np.uint8)):
        with pytest.raises(ImageError, match="0 of 4096 pixels"):
            cut_out(load_photo(flat))


def test_checks_count_by_hand() -> None:
    alpha = np.zeros((10, 20))
    alpha[2:6, 0:4] = 1  # 16 px, 4 of them on the border
    alpha[8, 10:14] = 0.6  # 4 px in a second piece
    alpha[0, 10] = 0.5  # not above 0.5
    checks, warnings = foreground._checked(alpha)
    assert checks == {
        "coverage": 20 / 200,
        "border_share": pytest.approx(4 / 56),
        "touches_border": True,
        "pieces": 2.0,
        "outside_largest": pytest.approx(0.2),
    }
    assert ["left" in warnings[0], "2 pieces, 20%" in warnings[1]] == [True, True] and len(warnings) == 2


def test_too_little_and_too_much() -> None:
    assert any("only 0.05%" in w for w in cut_out(rectangle(10, 20, 12, 22)).warnings)
    full = cut_out(rectangle(0, 0, 100, 79))
    assert any("covers 99%" in w for w in full.warnings) and len(full.warnings) == 1


# With the background removed by colours


def test_no_background_fringe_stays_on_the_edge() -> None:
    photo, _ = drawn("disc", (0.7, 0.1, 0.1), (0.1, 0.8, 0.1))  # red before green
    cutout = cut_out(photo, size=256)
    edge = (cutout.image[..., 3] > 25) & (cutout.image[..., 3] < 230)
    assert edge.sum() > 200
    green = cutout.image[edge][:, 1].astype(float)
    assert green.mean() < 45 and np.percentile(green, 95) < 70  # the object has 26, the ground 204


def test_removal_is_deterministic_and_leaves_the_photo_alone() -> None:
    photo, _ = drawn("disc", (0.8, 0.3, 0.25), foliage())
    before = photo.source_image.copy()
    assert np.array_equal(cut_out(photo).image, cut_out(photo).image)
    assert np.array_equal(photo.source_image, before)


@pytest.mark.parametrize(
    ("name", "method", "coverage"),
    [
        ("chair.png", "alpha", 0.232),
        ("hamburger.png", "alpha", 0.150),
        ("school-bus.png", "alpha", 0.231),
        ("teapot.png", "classical", 0.244),
        ("hydrant.png", "classical", 0.159),
        ("storybook-house.jpg", "classical", 0.490),
    ],
)
def test_the_example_pictures(name: str, method: str, coverage: float) -> None:
    if not (PICTURES / name).is_file():
        pytest.skip(f"{PICTURES / name} is not here")
    cutout = cut_out(load_photo(PICTURES / name))
    assert cutout.method == method
    assert cutout.checks["coverage"] == pytest.approx(coverage, abs=0.012)
    assert not cutout.checks["touches_border"] and cutout.checks["outside_largest"] < 0.01
