"""Reading photos: every mode gives the colours worked out by hand, every bad file its own sentence."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from multiview.errors import ImageError
from trilift.photo import MAX_SIDE, PHOTO_SUFFIXES, find_mask, is_mask, load_photo, read_mask

SIZE = (24, 20)  # width, height


def plain(mode: str, color: Any, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.new(mode, size, color)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 64)
    chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (body, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def wide(mode: str, value: float, other: float = 0.0) -> Image.Image:
    """A picture of more than 8 bits: ``value`` everywhere, but ``other`` in one corner."""
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    values = np.full(SIZE[::-1], value, dtype)
    values[0, 0] = other
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param(plain("1", 1), (255, 255, 255), id="1-bit"),
        pytest.param(plain("L", 77), (77, 77, 77), id="grey"),
        pytest.param(plain("RGB", (10, 20, 30)), (10, 20, 30), id="rgb"),
        pytest.param(plain("RGBX", (10, 20, 30, 0)), (10, 20, 30), id="rgbx"),
        pytest.param(plain("HSV", (0, 255, 200)), (200, 0, 0), id="hsv"),
        pytest.param(plain("CMYK", (0, 255, 255, 0)), (255, 0, 0), id="cmyk"),
        pytest.param(plain("YCbCr", (90, 128, 128)), (90, 90, 90), id="ycbcr"),
        pytest.param(plain("LAB", (128, 128, 128)), None, id="lab"),
        pytest.param(plain("RGB", (10, 20, 30)).quantize(4), (10, 20, 30), id="palette"),
        pytest.param(wide("I;16", 0x8080), (128, 128, 128), id="I;16-full-range"),
        pytest.param(wide("I;16", 257), (1, 1, 1), id="I;16-dark-stays-dark"),
        pytest.param(wide("I", 200), (200, 200, 200), id="I-of-8-bits"),
        pytest.param(wide("I", 51400), (200, 200, 200), id="I-of-16-bits"),
        pytest.param(wide("I", 1_000_000), (255, 255, 255), id="I-of-more-bits-is-stretched"),
        pytest.param(wide("F", 0.4), (102, 102, 102), id="F-of-unit-range"),
        pytest.param(wide("F", 200.0), (200, 200, 200), id="F-of-8-bits"),
        pytest.param(wide("F", 10.0, -10.0), (255, 255, 255), id="F-with-negative-is-stretched"),
    ],
)
def test_each_mode_gives_its_colours_and_full_alpha(image: Image.Image, expected: tuple[int, int, int] | None) -> None:
    photo = load_photo(image)
    assert photo.source_image.shape == (20, 24, 4)
    assert photo.source_image.dtype == np.uint8
    assert not photo.has_alpha
    found = tuple(int(v) for v in photo.source_image[10, 10])
    if expected is None:  # Lab (50, 0, 0): a mid-grey, 119 in sRGB
        assert found[3] == 255 and all(abs(v - 119) <= 2 for v in found[:3])
    else:
        assert found == (*expected, 255)


def test_wide_grey_is_scaled_not_clipped() -> None:
    ramp = np.tile(np.linspace(0, 65535, 32).astype(np.uint16), (20, 1))
    found = load_photo(Image.fromarray(ramp)).source_image[0, :, 0]
    assert np.abs(found - np.linspace(0, 255, 32)).max() <= 0.51


def test_16_bit_rgb_png(tmp_path: Path) -> None:
    raw = b"".join(b"\0" + struct.pack(">HHH", 0x8000, 0x4000, 0xFFFF) * 20 for _ in range(20))
    body = b"IHDR" + struct.pack(">IIBBBBB", 20, 20, 16, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c))
        for c in (body, b"IDAT" + zlib.compress(raw), b"IEND")
    ]
    path = tmp_path / "deep.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    assert load_photo(path).source_image[5, 5].tolist() == [128, 64, 255, 255]


def test_broken_values_in_a_float_tiff_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"f\.tiff: 1 pixels are NaN"):
        load_photo(saved(tmp_path / "f.tiff", wide("F", 0.5, float("nan"))))


# Alpha


def test_palette_with_transparency_and_grey_with_alpha(tmp_path: Path) -> None:
    image = plain("P", 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (4, 4, 20, 16))
    photo = load_photo(saved(tmp_path / "p.png", image, transparency=0))
    assert photo.has_alpha
    assert photo.source_image[10, 10].tolist() == [200, 100, 50, 255]
    assert photo.source_image[0, 0, 3] == 0
    grey = plain("LA", (90, 255))
    grey.paste((0, 0), (0, 0, 5, 5))
    photo = load_photo(grey)
    assert photo.has_alpha and photo.source_image[10, 10].tolist() == [90, 90, 90, 255]


def test_half_transparent_objects_stay_straight() -> None:
    pixels = np.zeros((20, 24, 4), np.uint8)
    pixels[4:16, 4:20] = (200, 100, 50, 128)
    photo = load_photo(pixels)
    assert photo.has_alpha
    assert photo.source_image[10, 10].tolist() == [200, 100, 50, 128]


@pytest.mark.parametrize("alpha", [255, 200, "some 254"])
def test_an_alpha_that_says_nothing_is_no_alpha(alpha: int | str) -> None:
    pixels = np.full((20, 24, 4), 90, np.uint8)
    pixels[..., 3] = 255 if isinstance(alpha, str) else alpha
    if isinstance(alpha, str):
        pixels[:3, :3, 3] = 254
    photo = load_photo(pixels)
    assert not photo.has_alpha
    assert (photo.source_image[..., 3] == 255).all()
    assert bool(photo.notes) == (alpha != 255)


def test_a_wholly_transparent_picture_keeps_its_zero_alpha() -> None:
    photo = load_photo(np.zeros((20, 24, 4), np.uint8))
    assert not photo.has_alpha and not photo.source_image[..., 3].any()


# Rotation, profiles, several pictures, size


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (3, (19, 23)), (6, (0, 19)), (8, (23, 0)), (2, (0, 23))]
)
def test_exif_rotation(tmp_path: Path, orientation: int, corner: tuple[int, int]) -> None:
    image = plain("RGB", (0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = load_photo(saved(tmp_path / "turned.png", image, exif=exif))
    assert photo.source_image[corner][:3].tolist() == [255, 0, 0]
    turned = orientation in (6, 8)
    assert photo.original_size == (SIZE[::-1] if turned else SIZE) == photo.size


def test_icc_profile_is_converted_and_a_broken_one_is_noted(tmp_path: Path) -> None:
    # Linear light: sRGB primaries, gamma 1. 50 % light is 188 in sRGB.
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert load_photo(saved(tmp_path / "s.png", plain("RGB", (10, 120, 250)), icc_profile=srgb)).source_image[
        0, 0, :3
    ] == pytest.approx([10, 120, 250], abs=1)
    linear = linear_grey_profile()
    photo = load_photo(saved(tmp_path / "l.png", plain("L", 128), icc_profile=linear))
    assert photo.source_image[0, 0, 0] == pytest.approx(188, abs=2)
    assert photo.notes == ()
    photo = load_photo(saved(tmp_path / "b.png", plain("RGB", (10, 120, 250)), icc_profile=b"nonsense" * 30))
    assert photo.source_image[0, 0].tolist() == [10, 120, 250, 255]
    assert any("ICC" in note for note in photo.notes)


def linear_grey_profile() -> bytes:
    """The smallest ICC grey profile: a D50 white point and a curve of gamma 1."""
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">I", 0)
    tags = (
        struct.pack(">I", 2)
        + b"wtpt"
        + struct.pack(">II", 156, len(white))
        + b"kTRC"
        + struct.pack(">II", 176, len(curve))
    )
    header = bytearray(128)
    header[0:4] = struct.pack(">I", 176 + len(curve))
    header[8:12] = b"\x02\x10\0\0"
    header[12:24] = b"mntrGRAYXYZ "
    header[36:40] = b"acsp"
    header[68:80] = struct.pack(">iii", 63190, 65536, 54061)
    return bytes(header) + tags + white + curve


def test_the_first_of_several_pictures(tmp_path: Path) -> None:
    frames = [plain("RGB", c) for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    photo = load_photo(saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:]))
    assert photo.source_image[5, 5, :3].tolist() == [255, 0, 0]
    assert any("3 pictures" in note for note in photo.notes)


def test_large_photos_are_shrunk_and_say_so() -> None:
    pixels = np.zeros((64, 4096, 4), np.uint8)
    pixels[:, :, :3] = (0, 255, 0)  # green where it is clear: it must not bleed into the red
    pixels[:, 1025:3071] = (255, 0, 0, 255)
    photo = load_photo(pixels)
    assert photo.size == (MAX_SIDE, 32) and photo.original_size == (4096, 64)
    assert any("4096 x 64" in note and "2048 x 32" in note for note in photo.notes)
    edge = photo.source_image[16, 510:514]
    assert set(edge[:, 3].tolist()) - {0, 255}, "the edge lies within a pixel"
    assert edge[edge[:, 3] > 8][:, 1].max() <= 4


def test_a_large_jpeg_keeps_its_original_size(tmp_path: Path) -> None:
    photo = load_photo(saved(tmp_path / "wide.jpg", plain("RGB", (50, 60, 70), (4500, 100))))
    assert photo.original_size == (4500, 100) and photo.size == (2048, 46)
    assert photo.source_image[20, 900, :3].tolist() == pytest.approx([50, 60, 70], abs=2)


# Names and sums


def test_name_and_hash(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", plain("RGB", (1, 2, 3)))
    assert load_photo(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_photo(str(path)).name == str(path)
    one, two = load_photo(plain("RGB", (1, 2, 3))), load_photo(plain("RGB", (1, 2, 4)))
    assert one.name == "<image>" and len(one.sha256) == 64 and one.sha256 != two.sha256
    assert load_photo(plain("RGB", (1, 2, 3))).sha256 == one.sha256


def test_the_given_picture_is_not_changed() -> None:
    image, array = plain("P", 3), np.full((20, 20), 0.25)
    before = image.tobytes()
    load_photo(image)
    load_photo(array)
    assert image.mode == "P" and image.tobytes() == before and (array == 0.25).all()


# Arrays


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        pytest.param(np.full((20, 20), 9, np.uint8), [9, 9, 9, 255], id="H-W"),
        pytest.param(np.full((20, 20, 1), 9, np.uint8), [9, 9, 9, 255], id="H-W-1"),
        pytest.param(np.full((20, 20, 3), 257 * 9, np.uint16), [9, 9, 9, 255], id="uint16"),
        pytest.param(np.full((20, 20, 3), 0.2), [51, 51, 51, 255], id="float64"),
        pytest.param(np.ones((20, 20), bool), [255, 255, 255, 255], id="bool"),
    ],
)
def test_arrays(array: np.ndarray, expected: list[int]) -> None:
    assert load_photo(array).source_image[7, 7].tolist() == expected


@pytest.mark.parametrize(
    ("array", "words"),
    [
        pytest.param(np.full((20, 20), np.nan), r"400 of 400 values that are NaN", id="nan"),
        pytest.param(np.full((20, 20, 3), 128.0), r"\[0, 1\], found 128 to 128.*255", id="float-of-255"),
        pytest.param(np.full((20, 20), -0.5), r"found -0.5", id="negative"),
        pytest.param(np.zeros((20, 20, 2), np.uint8), r"\(20, 20, 2\)", id="two-channels"),
        pytest.param(np.zeros((2, 20, 20, 3), np.uint8), r"\(2, 20, 20, 3\)", id="batch"),
        pytest.param(np.zeros((0, 20), np.uint8), r"empty.*\(0, 20\)", id="no-rows"),
        pytest.param(np.zeros((20, 20), np.int64), r"int64", id="int64"),
        pytest.param(np.zeros((8, 20), np.uint8), r"20 x 8 px; at least 16", id="too-small"),
    ],
)
def test_arrays_that_are_refused(array: np.ndarray, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        load_photo(array)


def test_something_else_is_refused() -> None:
    with pytest.raises(ImageError, match="found list"):
        load_photo([1, 2])  # type: ignore[arg-type]


# Bad files


def _noise_jpeg() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def _noise_png() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"", "is empty \\(0 bytes\\)", id="zero-bytes"),
        pytest.param(b"hello, I am a text", "not an image.*18 bytes", id="text"),
        pytest.param(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n", "not an image", id="postscript-is-not-run"
        ),
        pytest.param(_noise_jpeg()[:1500], "cut short or damaged", id="truncated-jpeg"),
        pytest.param(_noise_png()[:5000], "cut short or damaged", id="truncated-png"),
        pytest.param(png_header(1, 1), "too small \\(1 x 1 px; at least 16", id="one-pixel"),
        pytest.param(png_header(4000, 15), "too small \\(4000 x 15 px", id="a-line"),
        pytest.param(png_header(30000, 30000), r"too many pixels \(900,?000,?000.*at most 100,000,000", id="30000"),
        pytest.param(png_header(11000, 10000), r"too many pixels \(11000 x 10000", id="pillow-would-only-warn"),
    ],
)
def test_bad_files(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=words) as caught:
        load_photo(path)
    assert str(caught.value).startswith(str(path))


def test_missing_folder_and_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match=r"gone\.png: there is no such file"):
        load_photo(tmp_path / "gone.png")
    with pytest.raises(ImageError, match=r"is a folder.*trilift batch"):
        load_photo(tmp_path)
    path = saved(tmp_path / "mine.png", plain("L", 1))

    def forbidden(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", forbidden)  # root may read anything, so chmod would prove nothing
    with pytest.raises(ImageError, match=r"mine\.png: no permission"):
        load_photo(path)


def test_a_picture_that_is_larger_than_asked_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    image = Image.open(io.BytesIO(_noise_png()))
    with pytest.raises(ImageError, match="64 x 64 = 4,096; at most 4,000"):
        load_photo(image, max_pixels=4000)


# Masks


def test_the_mask_beside_a_photo(tmp_path: Path) -> None:
    photo_path = saved(tmp_path / "cup.jpg", plain("RGB", (9, 9, 9)))
    assert find_mask(photo_path) is None and load_photo(photo_path).mask_path is None
    mask = plain("L", 0)
    mask.paste(255, (5, 4, 15, 12))
    path = saved(tmp_path / "cup_mask.png", mask)
    photo = load_photo(photo_path)
    assert photo.mask_path == str(path)
    alpha = read_mask(photo)
    assert alpha.shape == (20, 24) and alpha.dtype == np.float32
    assert alpha.sum() == 80 and alpha[4:12, 5:15].min() == 1


@pytest.mark.parametrize(
    ("inside", "outside", "mode"),
    [(1, 0, "L"), (True, False, "1"), ((9, 9, 9, 255), (9, 9, 9, 0), "RGBA"), ((255, 255, 255), (0, 0, 0), "RGB")],
    ids=["labels-0-and-1", "1-bit", "alpha", "rgb"],
)
def test_masks_of_any_mode(tmp_path: Path, inside: Any, outside: Any, mode: str) -> None:
    photo_path = saved(tmp_path / "cup.png", plain("RGB", (9, 9, 9)))
    mask = plain(mode, outside)
    mask.paste(inside, (5, 4, 15, 12))
    saved(tmp_path / "cup_mask.png", mask)
    assert read_mask(load_photo(photo_path)).sum() == 80


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    photo_path = saved(tmp_path / "cup.png", plain("RGB", (9, 9, 9)))
    saved(tmp_path / "cup_mask.png", plain("L", 255, (30, 31)))
    with pytest.raises(ImageError, match=r"cup_mask\.png: the mask is 30 x 31 px.*cup\.png is 24 x 20"):
        read_mask(load_photo(photo_path))


def test_a_mask_is_shrunk_with_its_photo(tmp_path: Path) -> None:
    photo_path = saved(tmp_path / "cup.png", plain("RGB", (9, 9, 9), (4096, 32)))
    mask = plain("L", 0, (4096, 32))
    mask.paste(255, (0, 0, 2048, 32))
    saved(tmp_path / "cup_mask.png", mask)
    alpha = read_mask(load_photo(photo_path))
    assert alpha.shape == (16, 2048) and alpha.sum() == 16 * 1024


def test_which_files_are_masks(tmp_path: Path) -> None:
    saved(tmp_path / "cup.jpg", plain("RGB", (9, 9, 9)))
    saved(tmp_path / "cup_mask.png", plain("L", 255))
    saved(tmp_path / "gas_mask.jpg", plain("RGB", (9, 9, 9)))
    assert is_mask(tmp_path / "cup_mask.png")
    assert not is_mask(tmp_path / "cup.jpg")
    assert not is_mask(tmp_path / "gas_mask.jpg"), "a photo of a gas mask has no photo named gas beside it"
    assert not is_mask(tmp_path / "_mask.png")


def test_suffixes_are_lower_case_and_pillow_knows_them() -> None:
    Image.init()
    assert all(s == s.lower() and s in Image.registered_extensions() for s in PHOTO_SUFFIXES)
