"""What enters the published networks, against the published programs' own steps, written here once more in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lrm.openlrm import OpenLRM
from lrm.published import PublishedModel
from lrm.triposr import TripoSR
from multiview.errors import ImageError, SettingsError
from multiview.keymap import KeyTable
from tests.published import MODELS, SMALL, published_state
from trilift.foreground import Cutout, cut_out
from trilift.photo import Photo, load_photo

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "images"
REAL = ("chair.png", "hamburger.png", "school-bus.png")  # those with an alpha of their own
STEP = 1 / 255

Box = tuple[int, int, int, int]


def soft_blob(height: int, width: int, box: Box, seed: int = 0) -> np.ndarray:
    """(H, W, 4) uint8: noise, colours also where it is clear, with a soft edge and a faint halo around ``box``."""
    random = np.random.RandomState(seed)
    picture = random.randint(0, 256, (height, width, 4)).astype(np.uint8)
    left, top, right, bottom = box
    rows, columns = np.mgrid[:height, :width] + 0.5
    outside = np.maximum.reduce([left - columns, columns - right, top - rows, rows - bottom])
    alpha = np.clip(255 * (2 - outside) / 4, 0, 255)
    picture[..., 3] = np.where((outside > 2) & (outside < 4), 1, alpha)
    return picture


PICTURES = {
    "tall": soft_blob(120, 150, (40, 12, 71, 95), 1),
    "wide-odd": soft_blob(91, 133, (9, 31, 120, 60), 2),
    "at-the-border": soft_blob(64, 64, (-5, -5, 40, 70), 3),
    "larger-than-the-network": soft_blob(300, 280, (20, 30, 250, 280), 4),
}


def photo_of(name: str) -> tuple[np.ndarray, Photo]:
    """The pixels of a synthetic or real picture, and the photo that is read from it."""
    if name in PICTURES:
        return PICTURES[name], load_photo(PICTURES[name])
    if not (SHARED / name).exists():
        pytest.skip(f"{name} is not in ../shared/data/images on this machine")
    return np.asarray(Image.open(SHARED / name)), load_photo(SHARED / name)


def published_crop(rgba: np.ndarray, ratio: float) -> np.ndarray:
    """The crop of the facts' section 1.8, line by line."""
    ys, xs = np.where(rgba[..., 3] > 0)
    cut = rgba[ys.min() : ys.max(), xs.min() : xs.max()]
    for side in (max(cut.shape[:2]), int(max(cut.shape[:2]) / ratio)):
        before = [(side - n) // 2 for n in cut.shape[:2]]
        after = [side - n - b for n, b in zip(cut.shape[:2], before, strict=True)]
        cut = np.pad(cut, ((before[0], after[0]), (before[1], after[1]), (0, 0)))
    return cut


def bilinear(source: int, target: int) -> np.ndarray:
    """(target, source) weights: a triangle as wide as the coarser of the two pixels."""
    scale = source / target
    centres = (np.arange(target) + 0.5) * scale
    weights = np.clip(1 - np.abs(np.arange(source) + 0.5 - centres[:, None]) / max(scale, 1), 0, None)
    return weights / weights.sum(1, keepdims=True)


def bicubic_on_corners(source: int, target: int) -> np.ndarray:
    """(target, source) weights of Keys' cubic with a = -0.75, corner pixels on corner pixels, borders repeated."""
    weights = np.zeros((target, source))
    for i, x in enumerate(np.arange(target) * (source - 1) / (target - 1)):
        for k in range(int(x) - 1, int(x) + 3):
            d = abs(x - k)
            near, far = (1.25 * d - 2.25) * d * d + 1, -0.75 * (((d - 5) * d + 8) * d - 4)
            weights[i, np.clip(k, 0, source - 1)] += near if d <= 1 else far if d < 2 else 0.0
    return weights


def resized(picture: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(H, W, 3) → (3, S, S) by weights (S, H) and (S, W)."""
    return rows @ picture.transpose(2, 0, 1) @ columns.T


def triposr_reference(rgba: np.ndarray, size: int, ratio: float = 0.85) -> np.ndarray:
    """(3, S, S): section 2.3, steps 1 and 2, for a picture with an alpha of its own."""
    unit = published_crop(rgba, ratio).astype(np.float32) / 255
    grey = unit[..., :3] * unit[..., 3:] + (1 - unit[..., 3:]) * 0.5
    eight_bits = (grey * 255).astype(np.uint8) / 255
    weights = bilinear(len(eight_bits), size)
    return resized(eight_bits, weights, weights)


def openlrm_reference(rgba: np.ndarray, size: int) -> np.ndarray:
    """(3, S, S): section 3.3, step 1."""
    unit = rgba.astype(np.float64) / 255
    white = unit[..., :3] * unit[..., 3:] + (1 - unit[..., 3:])
    rows, columns = (bicubic_on_corners(n, size) for n in rgba.shape[:2])
    return resized(white, rows, columns).clip(0, 1)


@pytest.fixture(scope="module")
def models() -> dict[str, PublishedModel]:
    return {family: MODELS[family].from_state(SMALL[family], published_state(family)) for family in MODELS}


def entering(model: PublishedModel, picture: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The picture (3, S, S) that the network of ``model`` is called with when ``picture`` (4, H, W) is lifted."""
    seen: list[Tensor] = []

    def planes(*inputs: Tensor) -> Tensor:
        seen.append(inputs[0])
        return torch.zeros(1, 3, SMALL[model.architecture].plane_channels, 4, 4)

    monkeypatch.setattr(model, "_planes", planes)
    model.reconstruct(picture[None])
    return seen[0][0]


def cut(model: PublishedModel | type[PublishedModel], photo: Photo, **options: object) -> Cutout:
    options = {"foreground_ratio": 0.85, **options}
    return cut_out(photo, framing=model.framing, **options)  # type: ignore[arg-type]


# TripoSR


@pytest.mark.parametrize("name", [*PICTURES, *REAL])
def test_triposr_sees_what_its_own_program_shows_it(
    name: str, models: dict[str, PublishedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, photo = photo_of(name)
    cutout = cut(models["triposr"], photo)
    ours = entering(models["triposr"], cutout.conditioning(96), monkeypatch).numpy()
    expected = triposr_reference(pixels, 96)
    assert np.abs(ours - expected).max() < 0.01 * STEP
    # The test can tell: our own framing of the same square, resampled, is further off than a step.
    own = entering(models["triposr"], cutout.to_tensor(96), monkeypatch).numpy()
    assert np.abs(own - expected).max() > STEP


@pytest.mark.parametrize("ratio", [0.5, 0.85, 1.0])
def test_the_cropped_picture_is_made_of_the_photos_own_pixels(ratio: float) -> None:
    pixels, photo = photo_of("wide-odd")
    cutout = cut(TripoSR, photo, foreground_ratio=ratio)
    assert cutout.native is not None
    visible = cutout.native[..., 3] > 0
    assert np.array_equal(cutout.native[visible], published_crop(pixels, ratio)[visible])
    assert np.array_equal(cutout.native[..., 3], published_crop(pixels, ratio)[..., 3])
    # The square that is written down holds those pixels.
    left, top, side = (int(v) for v in cutout.crop)
    assert side == len(cutout.native)
    y, x = np.argwhere(visible)[len(np.argwhere(visible)) // 2]
    assert np.array_equal(cutout.native[y, x], pixels[top + y, left + x])


def test_the_shown_picture_shows_the_same_square() -> None:
    _, photo = photo_of("tall")
    cutout = cut(TripoSR, photo, size=256)
    assert cutout.native is not None and cutout.image.shape == (256, 256, 4)
    shrunk = cutout.to_tensor(32)[3].numpy()
    weights = bilinear(len(cutout.native), 32)
    # They differ by the last row and column, which the published crop loses.
    assert np.abs(shrunk - weights @ (cutout.native[..., 3] / 255) @ weights.T).mean() < 0.01


# OpenLRM


@pytest.mark.parametrize("name", ["centred-60", "centred-131", *REAL])
def test_openlrm_sees_a_prepared_square_as_it_is(
    name: str, models: dict[str, PublishedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name.startswith("centred"):
        n = int(name.split("-")[1])
        pixels = soft_blob(n, n, (n // 5, n // 4, n - n // 5, n - n // 4), n)
        photo = load_photo(pixels)
    else:
        pixels, photo = photo_of(name)
    cutout = cut(models["openlrm"], photo)
    assert cutout.crop == (0.0, 0.0, len(pixels)) and cutout.native is not None
    assert np.array_equal(cutout.native, pixels)
    ours = entering(models["openlrm"], cutout.conditioning(42), monkeypatch).numpy()
    assert np.abs(ours - openlrm_reference(pixels, 42)).max() < 0.01 * STEP


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((100, 120), (30, 20, 90, 80)),  # not square
        ((100, 100), (10, 30, 62, 70)),  # centred 14 % of the side off
        ((100, 100), (30, 30, 70, 70)),  # 0.44 of the side
    ],
    ids=["not-square", "off-centre", "small"],
)
def test_openlrm_gets_other_pictures_centred(size: tuple[int, int], box: Box) -> None:
    cutout = cut(OpenLRM, load_photo(soft_blob(*size, box)), foreground_ratio=0.8, size=512)
    assert cutout.native is None and cutout.foreground_ratio == 0.8
    found = np.argwhere(cutout.image[..., 3] > 127)
    assert max(found.max(0) - found.min(0) + 1) == pytest.approx(0.8 * 512, abs=2)
    # It goes to the network at that size, to be resized once.
    assert torch.equal(cutout.conditioning(42), torch.from_numpy(cutout.image).permute(2, 0, 1) / 255)


def test_a_square_that_was_cut_out_by_us_is_not_prepared(tmp_path: Path) -> None:
    pixels = soft_blob(100, 100, (20, 20, 80, 80))
    Image.fromarray(pixels[..., :3]).save(tmp_path / "a.png")
    Image.fromarray(pixels[..., 3]).save(tmp_path / "a_mask.png")
    cutout = cut(OpenLRM, load_photo(tmp_path / "a.png"), foreground_ratio=0.8)
    assert (cutout.method, cutout.native) == ("mask", None)


def test_what_was_found_in_a_prepared_picture_is_written_down() -> None:
    cutout = cut(OpenLRM, load_photo(soft_blob(100, 100, (20, 30, 80, 70))))
    assert cutout.box == (20, 30, 80, 70)
    assert cutout.foreground_ratio == pytest.approx(0.6)
    assert cutout.crop_fov_deg(50.0) == pytest.approx(50.0)  # the frame is the photo's


# All families


@pytest.mark.parametrize("family", list(MODELS))
def test_a_kept_photo_goes_in_as_it_is(family: str) -> None:
    pixels = np.random.RandomState(5).randint(0, 256, (40, 61, 3)).astype(np.uint8)
    cutout = cut(MODELS[family], load_photo(pixels), background="keep")
    assert cutout.native is not None and cutout.native.shape == (61, 61, 4)
    assert cutout.crop == (0.0, -10.0, 61.0) and cutout.foreground_ratio == 1.0
    assert np.array_equal(cutout.native[10:50, :, :3], pixels)  # 21 lines are added, 10 of them above
    assert (cutout.native[10:50, :, 3] == 255).all()
    assert not cutout.native[:10].any() and not cutout.native[50:].any()


def test_a_kept_square_reaches_triposr_as_its_program_hands_it_over(
    models: dict[str, PublishedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.RandomState(6).randint(0, 256, (130, 130, 3)).astype(np.uint8)
    cutout = cut(models["triposr"], load_photo(pixels), background="keep")
    weights = bilinear(130, 96)
    expected = resized(pixels / 255, weights, weights)
    assert (
        np.abs(entering(models["triposr"], cutout.conditioning(96), monkeypatch).numpy() - expected).max() < 0.01 * STEP
    )


def test_the_embedded_models_framing_resamples_once_to_its_size() -> None:
    cutout = cut_out(load_photo(PICTURES["tall"]))
    assert (cutout.framing, cutout.native) == ("resampled", None)
    assert torch.equal(cutout.conditioning(48), cutout.to_tensor(48))


def test_an_object_of_one_row_cannot_be_cropped() -> None:
    pixels = np.zeros((20, 20, 4), np.uint8)
    pixels[7, 3:15] = 255
    with pytest.raises(ImageError, match="at least 2 x 2 px, found 1 x 12 px"):
        cut(TripoSR, load_photo(pixels))


def test_an_unknown_framing_is_refused() -> None:
    with pytest.raises(SettingsError, match="framing='tight': expected one of resampled, cropped, given"):
        cut_out(load_photo(PICTURES["tall"]), framing="tight")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "shape", [(4, 96, 96), (1, 3, 96, 96), (0, 4, 96, 96), (1, 4, 0, 96)], ids=["3-D", "no-alpha", "none", "empty"]
)
def test_what_is_no_picture_is_refused(shape: tuple[int, ...], models: dict[str, PublishedModel]) -> None:
    for family in ("triposr", "openlrm"):
        with pytest.raises(ImageError, match=rf"{family} wants pictures \(B, 4, H, W\).*found \({shape[0]}, "):
            models[family].reconstruct(torch.zeros(shape))


def test_every_family_says_its_framing() -> None:
    assert {family: model.framing for family, model in MODELS.items()} == {
        "triposr": "cropped", "openlrm": "given", "instantmesh": "cropped",
    }  # fmt: skip
    assert all(isinstance(model.keys, KeyTable) for model in MODELS.values())
