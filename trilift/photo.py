"""Photos: any picture that Pillow reads becomes one (H, W, 4) uint8 sRGB array, or an error that names the file."""

from __future__ import annotations

import hashlib
import io
import re
import stat
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from multiview.errors import ImageError

PHOTO_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".webp",
    ".avif",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".tga",
    ".jp2",
    ".ppm",
    ".pgm",
)
"""File name endings, in lower case, that folder runs take for photos."""

MASK_ENDING = "_mask"
MAX_PIXELS = 100_000_000
MAX_FILE_BYTES = 1 << 30
MAX_SIDE = 2048
MIN_SIDE = 16


@dataclass(frozen=True)
class Photo:
    """One picture as the user gave it, upright and in sRGB.

    Attributes:
        name: the path as given, or ``<image>`` for a picture that came from memory.
        source_image: (H, W, 4) uint8, straight alpha, sRGB; longest side at most 2048 px. Boxes are in its pixels.
        has_alpha: a real alpha: some pixel is more than half transparent and not all are equal. When it is false
            the alpha of ``source_image`` is 255 everywhere, but for a picture that is transparent everywhere (0).
        mask_path: the ``<name>_mask.*`` file beside the photo, if there is one.
        sha256: hexadecimal, of the file's bytes, or of the pixels of a picture from memory.
        notes: what was done on reading that the user may want to know, one sentence each.
        original_size: (width, height) px after EXIF rotation and before any shrinking.
    """

    name: str
    source_image: np.ndarray
    has_alpha: bool
    mask_path: str | None
    sha256: str
    notes: tuple[str, ...]
    original_size: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) px of ``source_image``."""
        return self.source_image.shape[1], self.source_image.shape[0]


def load_photo(source: str | Path | Image.Image | np.ndarray, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Read a photo from a file, a PIL image or an array.

    EXIF rotation is applied, an ICC profile is converted to sRGB, the first of several pictures is taken, and a photo
    larger than 2048 px is shrunk to that (Lanczos, colours weighted by alpha); the notes say so.

    Args:
        source: a path; a PIL image of any mode (it is not changed); or an array (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4) of bool, uint8, uint16, or float in [0, 1], sRGB with straight alpha.
        max_pixels: larger pictures are refused from their header, before anything is decoded.

    Returns:
        The photo; a mask file beside a path is looked for by name and read only by `read_mask`.

    Raises:
        ImageError: missing, a folder, not permitted, empty, not an image, cut short, smaller than 16 px a side, more
            than ``max_pixels``, or an array of another form or with values that are not finite or out of range.
    """
    if isinstance(source, np.ndarray):
        image = _from_array(source)
        return _photo("<image>", image, _pixels_sha256(image), max_pixels, None)
    if isinstance(source, Image.Image):
        _check_size("<image>", source.size, max_pixels)
        return _photo("<image>", source, None, max_pixels, None)
    if not isinstance(source, str | Path):
        raise ImageError(f"a photo is a path, a PIL image or a numpy array, found {type(source).__name__}.")
    data = _read_bytes(source)
    image = _open(str(source), data, max_pixels)
    return _photo(str(source), image, hashlib.sha256(data).hexdigest(), max_pixels, find_mask(source))


def find_mask(path: str | Path) -> Path | None:
    """The mask file of the photo ``path``: ``<name>_mask.png`` beside it, else with another photo suffix, else None."""
    path = Path(path)
    for suffix in PHOTO_SUFFIXES:
        for ending in (suffix, suffix.upper()):
            candidate = path.with_name(path.stem + MASK_ENDING + ending)
            with suppress(OSError):  # the photo's name with the ending may be too long for the file system
                if candidate.is_file():
                    return candidate
    return None


def is_mask(path: str | Path) -> bool:
    """Whether ``path`` is the mask of a photo beside it; ``gas_mask.jpg`` alone is a photo, not a mask."""
    path = Path(path)
    if not path.stem.endswith(MASK_ENDING) or path.stem == MASK_ENDING:
        return False
    stem = path.stem.removesuffix(MASK_ENDING)
    return any(path.with_name(stem + end).is_file() for s in PHOTO_SUFFIXES for end in (s, s.upper()))


def read_mask(photo: Photo) -> np.ndarray:
    """Read the mask file of ``photo``.

    The mask's alpha channel counts when it has a real one, else its brightness: white is the object. Grey edges stay
    soft; a mask of two values counts as black and white, whatever the two are.

    Args:
        photo: a photo with a ``mask_path``.

    Returns:
        (H, W) float32 alpha in [0, 1], the size of ``photo.source_image``; above 0.5 is the object.

    Raises:
        ImageError: the mask cannot be read, or has not the size of the photo.
    """
    if photo.mask_path is None:
        raise ImageError(f"{photo.name}: has no mask file. Put a <name>_mask.png beside it.")
    data = _read_bytes(photo.mask_path)
    image = _upright(_open(photo.mask_path, data, MAX_PIXELS), photo.mask_path, [])
    if image.size != photo.original_size:
        raise ImageError(
            f"{photo.mask_path}: the mask is {image.size[0]} x {image.size[1]} px, but its photo {photo.name} is "
            f"{photo.original_size[0]} x {photo.original_size[1]} px. Give a mask of the photo's size, or remove it."
        )
    plain = _to_8_bit(image, photo.mask_path, [])
    alpha = np.asarray(plain.convert("RGBA").getchannel("A"))
    value = alpha if _is_real_alpha(alpha) else np.asarray(plain.convert("L"))
    levels = np.unique(value)
    if len(levels) == 2:
        value = np.where(value == levels[1], 255, 0).astype(np.uint8)
    resized = Image.fromarray(value)
    if resized.size != photo.size:
        resized = resized.resize(photo.size, Image.Resampling.BOX)
    # A mask saved as JPEG is never quite 0 or 255: the outer tenths count as fully out and fully in.
    return np.clip((np.asarray(resized, np.float32) / 255 - 0.1) / 0.8, 0, 1)


def _photo(name: str, image: Image.Image, sha256: str | None, max_pixels: int, mask: Path | None) -> Photo:
    """Decode, turn upright, convert to sRGB, shrink: the common road of files and pictures from memory."""
    notes: list[str] = []
    _check_size(name, image.size, max_pixels)
    try:
        frames = int(getattr(image, "n_frames", 1))
    except Exception:  # a damaged index of frames; the first one may still be whole
        frames = 1
    if frames > 1:
        notes.append(f"the file holds {frames} pictures; the first one is used")
    original = image.size
    if sha256 is not None and image.format == "JPEG":
        image.draft(None, (MAX_SIDE, MAX_SIDE))  # decodes a huge JPEG at a half, quarter or eighth of its size
    upright = _upright(image, name, notes)
    if (upright.width > upright.height) != (image.width > image.height):
        original = (original[1], original[0])
    if sha256 is None:
        sha256 = _pixels_sha256(upright)
    plain = _shrunk(_to_8_bit(upright, name, notes))
    if plain.size != original:
        notes.append(f"shrunk from {original[0]} x {original[1]} to {plain.size[0]} x {plain.size[1]} px on reading")
    pixels = np.array(_to_srgb(plain, upright.info.get("icc_profile"), notes))
    has_alpha = _is_real_alpha(pixels[..., 3])
    if not has_alpha and pixels[..., 3].any():
        if pixels[..., 3].min() < 255:
            notes.append(f"an alpha that is nowhere below {pixels[..., 3].min() / 255:.2f} is taken as no alpha")
        pixels[..., 3] = 255
    return Photo(name, pixels, has_alpha, str(mask) if mask else None, sha256, tuple(notes), original)


def _is_real_alpha(alpha: np.ndarray) -> bool:
    """Whether (H, W) uint8 ``alpha`` says what the object is: some of it more than half clear, and not all equal."""
    return bool(alpha.min() < 128 and alpha.min() < alpha.max())


def _read_bytes(source: str | Path) -> bytes:
    """The whole file; every way in which that can fail has its own sentence."""
    try:
        path = Path(source)
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{source}: is a folder, not a photo. Use trilift batch for all the photos in it.")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{source}: is not a regular file. Copy the picture into a file first.")
        if status.st_size == 0:
            raise ImageError(f"{source}: is empty (0 bytes). Copy or download the photo again.")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(
                f"{source}: is too large ({status.st_size} bytes, at most {MAX_FILE_BYTES}). Make it smaller."
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"{source}: there is no such file. Check the spelling and the folder.") from error
    except PermissionError as error:
        raise ImageError(
            f"{source}: no permission to read it. Change its permissions, or copy it elsewhere."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageError(f"{source!s}: cannot be read ({error}). Check the path and the disk.") from error


def _open(name: str, data: bytes, max_pixels: int) -> Image.Image:
    """Read the header only, and check the size that it claims."""
    Image.init()
    formats = [f for f in Image.ID if f != "EPS"]  # an EPS is a program, and Pillow would run Ghostscript on it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow only warns from 89 to 179 megapixels; our own limit is below
            image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        found = f"{int(pixels.group()):,}" if pixels else "far more"
        raise ImageError(_too_many(name, found, max_pixels)) from error
    except UnidentifiedImageError as error:
        hint = " HEIC photos must be converted first." if name.lower().endswith((".heic", ".heif")) else ""
        raise ImageError(
            f"{name}: is not an image that Pillow can read ({len(data)} bytes, first {data[:8]!r}). "
            f"Give a PNG, JPEG, WebP, TIFF or similar.{hint}"
        ) from error
    except Exception as error:  # plugins raise many kinds on damaged headers
        raise ImageError(_damaged(name, len(data), error)) from error
    _check_size(name, image.size, max_pixels)
    return image


def _check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(_too_many(name, f"{width} x {height} = {width * height:,}", max_pixels))
    if min(size) < MIN_SIDE:
        raise ImageError(
            f"{name}: is too small ({width} x {height} px; at least {MIN_SIDE} px a side). Give a larger photo."
        )


def _too_many(name: str, found: str, max_pixels: int) -> str:
    return f"{name}: has too many pixels ({found}; at most {max_pixels:,}). Make it smaller first."


def _damaged(name: str, n_bytes: int | None, error: Exception) -> str:
    size = f"{n_bytes} bytes; " if n_bytes is not None else ""
    return f"{name}: the picture is cut short or damaged ({size}{error}). Copy or download it again."


def _upright(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    """Decode the pixels and apply the EXIF rotation."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except Exception as error:  # OSError, SyntaxError, zlib.error, struct.error ...: all mean a damaged picture
        raise ImageError(_damaged(name, None, error)) from error
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF must not cost the picture
        notes.append("the EXIF rotation could not be read and is left out")
        return image


def _to_8_bit(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    """The same picture in one of the modes L, LA, RGB, RGBA, CMYK or LAB."""
    mode = image.mode
    if mode in ("L", "RGB") and "transparency" in image.info:
        return image.convert("LA" if mode == "L" else "RGBA")
    if mode in ("L", "LA", "RGB", "RGBA", "CMYK", "LAB"):
        return image
    if mode in ("P", "PA"):
        return image.convert("RGBA" if mode == "PA" or "transparency" in image.info else "RGB")
    if mode == "1":
        return image.convert("L")
    if mode in ("La", "RGBa"):
        return image.convert("LA" if mode == "La" else "RGBA")
    if mode.startswith("I") or mode == "F":
        return _grey_from_wide(image, name, notes)
    return image.convert("RGB")  # RGBX, YCbCr, HSV


def _grey_from_wide(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    """Scale grey values of more than 8 bits to 8; Pillow's own conversion would clip them at 255."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError(f"{name}: {np.count_nonzero(~np.isfinite(values))} pixels are NaN or infinite. Mend the file.")
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16"):
        top = 65535.0
    elif image.mode == "F" and high <= 1:
        top = 1.0
    else:  # a wide type says nothing of its range, so take the least usual one that holds all values
        top = next((t for t in (255.0, 65535.0) if high <= t), high)
    if low < 0 or top not in (1.0, 255.0, 65535.0):
        notes.append(f"grey values from {low:g} to {high:g} are stretched to black and white")
        values, top = values - low, max(high - low, 1e-12)
    grey = Image.fromarray(np.round(values * (255 / top)).astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8)))
    return grey


def _shrunk(image: Image.Image) -> Image.Image:
    """At most 2048 px a side. Pillow weights colours by alpha when it resizes LA and RGBA."""
    scale = MAX_SIDE / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _to_srgb(image: Image.Image, profile: Any, notes: list[str]) -> Image.Image:
    """RGBA in sRGB, by the ICC profile (bytes) when there is one that fits, else by Pillow's plain conversion."""
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    color = image.convert(image.mode[:-1]) if alpha is not None else image
    converted = None
    if profile:
        try:
            converted = _by_profile(color, profile)
        except Exception as error:  # ImageCms raises PyCMSError, OSError, ValueError, TypeError on broken profiles
            notes.append(f"the ICC colour profile is broken and left out ({error})")
    if converted is None and color.mode == "LAB":
        converted = _by_profile(color, None)
    rgba = (converted or color).convert("RGB").convert("RGBA")
    if alpha is not None:
        rgba.putalpha(alpha)
    return rgba


def _by_profile(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """``image`` in sRGB; None when the profile is for another colour space than the picture's mode."""
    from PIL import ImageCms

    if profile is None:
        source: Any = ImageCms.createProfile("LAB")
    else:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if space == "RGB" and image.mode == "L":
            image = image.convert("RGB")  # a grey PNG that was saved out of an RGB workflow
        if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}.get(space) != image.mode:
            return None
    return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    """A PIL image (L, RGB or RGBA) of an array; see `load_photo` for what is allowed."""
    shape = array.shape
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(f"an image array has the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), found {shape}.")
    if 0 in shape:
        raise ImageError(f"the image array is empty: its shape is {shape}. Give one of at least {MIN_SIDE} px a side.")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            bad = np.count_nonzero(~np.isfinite(array))
            raise ImageError(
                f"the image array has {bad} of {array.size} values that are NaN or infinite. Mend it first."
            )
        low, high = float(array.min()), float(array.max())
        if low < 0 or high > 1:
            raise ImageError(
                f"a float image array lies in [0, 1], found {low:g} to {high:g}. Divide by 255 if it has 8 bits."
            )
        array = np.round(array.astype(np.float32) * 255)
    elif array.dtype == np.uint16:
        array = np.round(array.astype(np.float32) / 257)
    elif array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise ImageError(f"an image array is bool, uint8, uint16 or float, found {array.dtype}. Convert it first.")
    array = array.astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if shape[2:] == (1,) else array))


def _pixels_sha256(image: Image.Image) -> str:
    """Hexadecimal SHA-256 of mode, size and pixels."""
    digest = hashlib.sha256(f"{image.mode} {image.size}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
