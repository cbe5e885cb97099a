"""Pictures of a result from all around: turntables, contact sheets, and the files they go into."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lrm.field import Field
from lrm.mesh import Mesh
from lrm.raster import render_mesh
from lrm.volume import render
from multiview.cameras import Cameras, orbit
from multiview.color import bytes_from_unit
from multiview.errors import FieldError, ImageError, SettingsError
from multiview.files import written_whole
from multiview.views import Views

if TYPE_CHECKING:
    from PIL import Image

Bytes = NDArray[np.uint8]

TURNTABLE_FPS = 18.0
_MARGIN = 1.05  # bounding sphere to picture border
_SHEET_FOV_DEG, _FROM_ABOVE_DEG = 20.0, 89.9
_WEBP_QUALITY = 85
_PALETTE_COLORS = 255  # of 256: the last one stands for transparent
_DITHER = 2.5  # how far dithering may move a colour, in units of what the palette misses it by
_PALETTE_SAMPLES = 1 << 18  # pixels that choose the palette


def turntable(
    subject: Mesh | Field,
    *,
    frames: int = 36,
    size: int = 256,
    elevation_deg: float = 15.0,
    fov_deg: float = 40.0,
    background: float | Sequence[float] | None = 1.0,
    shading: bool = True,
    on_step: Callable[[int, int], None] | None = None,
) -> Bytes:
    """Draw a full turn about the up axis, beginning at the photographed side.

    Args:
        subject: a mesh, rasterised with its vertex colours, or a field, volume rendered (slower, as the model sees it).
        frames: K pictures, evenly spaced in azimuth; the last is one step short of the first.
        size: pixels per side.
        elevation_deg: of every camera.
        fov_deg: full field of view; the distance follows, so that the bounding sphere fits the picture.
        background: sRGB value or three in [0, 1], or None for straight alpha.
        shading: see `lrm.raster.render_mesh`; fields carry their own light.
        on_step: called after each picture with how many are drawn and how many there are; what it raises ends it.

    Returns:
        (K, size, size, 3) uint8 sRGB, or (K, size, size, 4) with alpha when ``background`` is None.

    Raises:
        SettingsError: ``frames`` or ``size`` not positive.
        FieldError: the field has no density at its level.
    """
    if min(frames, size) < 1:
        raise SettingsError(f"a turntable wants frames and size of at least 1, found {frames} frames of {size} px.")
    cameras = _around(*_ball(subject), [k * 360 / frames for k in range(frames)], elevation_deg, fov_deg)
    return _drawn(subject, cameras, size, background, shading, on_step)


def turn_saved(folder: str | Path, on_step: Callable[[int, int], None] | None = None) -> Path:
    """Draw the turn of an asset that was saved without one: ``turntable.gif`` beside its ``mesh.glb``.

    Args:
        folder: of the asset.
        on_step: see `turntable`.

    Raises:
        MeshError: the mesh cannot be read.
        OutputError: the picture cannot be written.
    """
    from lrm.meshfile import read_mesh

    path = Path(folder) / "turntable.gif"
    write_gif(turntable(read_mesh(path.with_name("mesh.glb")), on_step=on_step), path, TURNTABLE_FPS)
    return path


def four_sides(
    subject: Mesh | Field, *, size: int = 512, background: float | Sequence[float] | None = 1.0, shading: bool = True
) -> Bytes:
    """Draw the front, the side that is right of it, the back and the top, for a picture sheet.

    Args:
        subject, size, background, shading: see `turntable`.

    Returns:
        (4, size, size, 3 or 4) uint8 sRGB; seen level from the front, the photo's right and behind, and from above with
        the front at the bottom of the picture.

    Raises:
        SettingsError: ``size`` not positive.
        FieldError: the field has no density at its level.
    """
    if size < 1:
        raise SettingsError(f"a sheet wants pictures of at least 1 px, found {size}.")
    center, ball_radius = _ball(subject)
    level = _around(center, ball_radius, [0.0, 90.0, 180.0], 0.0, _SHEET_FOV_DEG)
    # Straight from above the camera's own up would be undefined.
    top = _around(center, ball_radius, [0.0], _FROM_ABOVE_DEG, _SHEET_FOV_DEG)
    cameras = Cameras(torch.cat([level.c2w, top.c2w]), torch.cat([level.intrinsics, top.intrinsics]))
    return _drawn(subject, cameras, size, background, shading)


def _drawn(
    subject: Mesh | Field,
    cameras: Cameras,
    size: int,
    background: float | Sequence[float] | None,
    shading: bool,
    on_step: Callable[[int, int], None] | None = None,
) -> Bytes:
    """Pictures (V, size, size, 3 or 4) from ``cameras``.

    One view at a time: supersampled pictures of a whole turn would take gigabytes at large sizes.
    """
    pictures = []
    for index in range(len(cameras)):
        camera = cameras.select([index])
        if isinstance(subject, Mesh):
            view = render_mesh(subject, camera, size, shading=shading)
        else:
            view = _render_field(subject, camera, size)
        pictures.append(view_bytes(view, background)[0])
        if on_step is not None:
            on_step(index + 1, len(cameras))
    return np.stack(pictures)


def view_bytes(views: Views, background: float | Sequence[float] | None = None) -> Bytes:
    """Views → (V, H, W, 4) uint8 straight alpha, or (V, H, W, 3) over an sRGB ``background`` in [0, 1]."""
    images = torch.cat([views.images, views.alpha], 1) if background is None else views.composite(background)
    return bytes_from_unit(images.detach().cpu().permute(0, 2, 3, 1).numpy())


def sheet(images: Sequence[Bytes] | Bytes, columns: int, *, gap: int = 0, background: int = 255) -> Bytes:
    """Lay pictures of one size out in rows, as one picture.

    Args:
        images: K pictures (H, W, 3) or (H, W, 4) uint8, K >= 1; alpha is composited over ``background``.
        columns: pictures per row, >= 1; the last row may have empty places.
        gap: pixels between neighbours.
        background: sRGB byte of gaps, empty places and behind alpha.

    Returns:
        (rows * (H + gap) - gap, min(columns, K) * (W + gap) - gap, 3) uint8.

    Raises:
        ImageError: no pictures, or pictures of different sizes.
        SettingsError: ``columns`` below 1 or ``gap`` below 0.
    """
    sizes = sorted({image.shape[:2] for image in images})
    if len(sizes) != 1:
        raise ImageError(f"a sheet wants at least one picture and all of one size, found sizes {sizes}.")
    if columns < 1 or gap < 0:
        raise SettingsError(f"a sheet wants columns >= 1 and gap >= 0, found {columns} and {gap}.")
    height, width = sizes[0]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    page = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), background, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        page[top : top + height, left : left + width] = _opaque(image, background)
    return page


def write_gif(frames: Bytes, path: str | Path, fps: float = 20.0) -> None:
    """Write an endless GIF with one palette for all frames, so that flat parts do not flicker.

    Args:
        frames: (K, H, W, 3) uint8, or (K, H, W, 4), where alpha below 128 becomes transparent and the rest is opaque.
        path: the file to write; the same frames give the same bytes.
        fps: frames per second; GIF knows steps of 10 ms, of which the nearest is taken (at least 20 ms).

    Raises:
        SettingsError: ``fps`` not positive.
        ImageError: no frames, or another shape than stated.
        OutputError: the file could not be written.
    """
    _check_frames(frames, fps)
    duration_ms = max(round(100 / fps), 2) * 10
    palette = _palette(frames)
    pictures = [_indexed(frame, palette) for frame in frames]
    transparent = {"transparency": _PALETTE_COLORS, "disposal": 2} if frames.shape[-1] == 4 else {}
    with written_whole(path) as aside:
        pictures[0].save(
            aside, "GIF", save_all=True, append_images=pictures[1:], duration=duration_ms, loop=0, optimize=False,
            **transparent,
        )  # fmt: skip


def write_webp(frames: Bytes, path: str | Path, fps: float = 20.0) -> None:
    """Write an endless animated WebP: all colours, and soft alpha where the frames have it.

    Args:
        frames: (K, H, W, 3 or 4) uint8.
        path: the file to write; the same frames give the same bytes.
        fps: frames per second, to the nearest millisecond.

    Raises:
        SettingsError: ``fps`` not positive.
        ImageError: no frames, or another shape than stated.
        OutputError: the file could not be written.
    """
    from PIL import Image

    _check_frames(frames, fps)
    pictures = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    with written_whole(path) as aside:
        pictures[0].save(
            aside, "WEBP", save_all=True, append_images=pictures[1:], duration=max(round(1000 / fps), 1), loop=0,
            quality=_WEBP_QUALITY, method=4,
        )  # fmt: skip


def turntable_file_names(frames: int) -> tuple[str, ...]:
    """Names of the single pictures of a turn."""
    return tuple(f"turntable_{index:03d}.png" for index in range(frames))


def write_turntable(frames: Bytes, folder: Path, formats: Sequence[str]) -> None:
    """Write a turn as ``turntable.gif``, ``.webp`` or ``.mp4``, or as ``turntable_000.png`` and so on.

    Args:
        frames: (K, H, W, 3 or 4) uint8, as `turntable` gives them; mp4 has no alpha and shows white behind.
        folder: where to.
        formats: of gif, webp, png and mp4.

    Raises:
        SettingsError: another format, or mp4 without the extra ``video``.
        OutputError: a file could not be written.
    """
    writers = {"gif": write_gif, "webp": write_webp, "mp4": write_video}
    for name in dict.fromkeys(formats):
        if name == "png":
            _write_pngs(frames, folder)
        elif name in writers:
            writers[name](frames, folder / f"turntable.{name}", TURNTABLE_FPS)
        else:
            raise SettingsError(f"turntable format {name!r}: expected gif, webp, png or mp4.")


def _write_pngs(frames: Bytes, folder: Path) -> None:
    from PIL import Image

    for name, frame in zip(turntable_file_names(len(frames)), frames, strict=True):
        with written_whole(folder / name) as aside:
            Image.fromarray(np.ascontiguousarray(frame)).save(aside, "PNG")


def video_writer() -> str | None:
    """Which package can write mp4 here: ``imageio_ffmpeg``, ``av``, or None (the extra ``video`` is not installed)."""
    return next((name for name in ("imageio_ffmpeg", "av") if importlib.util.find_spec(name) is not None), None)


def write_video(frames: Bytes, path: str | Path, fps: float = 20.0) -> None:
    """Write an H.264 mp4 through imageio-ffmpeg or PyAV, whichever is installed.

    Args:
        frames: (K, H, W, 3) uint8, or (K, H, W, 4), composited over white; odd sizes lose their last row or column.
        path: the file to write.
        fps: frames per second.

    Raises:
        SettingsError: neither package is installed, or ``fps`` not positive.
        ImageError: no frames, or another shape than stated.
        OutputError: the file could not be written.
    """
    _check_frames(frames, fps)
    name = video_writer()
    if name is None:
        raise SettingsError(f"{path}: writing mp4 needs the video extra. Try: pip install 'trilift[video]'.")
    height, width = (side // 2 * 2 for side in frames.shape[1:3])
    opaque = np.stack([_opaque(frame, 255) for frame in frames])[:, :height, :width]
    with written_whole(path) as aside:
        _VIDEO_WRITERS[name](np.ascontiguousarray(opaque), aside, fps)


def _write_with_imageio_ffmpeg(frames: Bytes, path: Path, fps: float) -> None:
    ffmpeg = importlib.import_module("imageio_ffmpeg")
    size = (frames.shape[2], frames.shape[1])
    writer = ffmpeg.write_frames(str(path), size, fps=fps, codec="libx264", quality=8, macro_block_size=2)
    writer.send(None)  # a generator: the first send starts ffmpeg
    try:
        for frame in frames:
            writer.send(frame.tobytes())
    finally:
        writer.close()


def _write_with_av(frames: Bytes, path: Path, fps: float) -> None:
    av = importlib.import_module("av")
    from fractions import Fraction

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


_VIDEO_WRITERS: dict[str, Callable[[Bytes, Path, float], None]] = {
    "imageio_ffmpeg": _write_with_imageio_ffmpeg,
    "av": _write_with_av,
}


def _around(
    center: NDArray[Any], ball_radius: float, azimuths_deg: Sequence[float], elevation_deg: float, fov_deg: float
) -> Cameras:
    """Cameras on a circle about ``center`` (3,), as far away as a ball of that radius fills the picture."""
    distance = _MARGIN * ball_radius / np.sin(np.deg2rad(fov_deg) / 2)
    cameras = orbit(list(azimuths_deg), elevation_deg, float(distance), fov_deg)
    c2w = cameras.c2w.clone()
    c2w[:, :3, 3] += torch.as_tensor(center, dtype=c2w.dtype)
    return Cameras(c2w, cameras.intrinsics)


def _ball(subject: Mesh | Field) -> tuple[NDArray[Any], float]:
    """Centre (3,) of the subject's bounding box and radius of the ball about it that holds everything."""
    points = subject.vertices.astype(np.float64) if isinstance(subject, Mesh) else _occupied(subject)
    center = (points.min(0) + points.max(0)) / 2
    return center, max(float(np.linalg.norm(points - center, axis=1).max()), 1e-6)


def _occupied(field: Field, samples: int = 48) -> NDArray[Any]:
    """(N, 3) corners of a coarse lattice around the samples where the field is at least at its level."""
    step = 2 * field.scene_radius / samples
    axis = (torch.arange(samples, device=field.device) + 0.5) * step - field.scene_radius
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    with torch.no_grad():
        filled = torch.cat([field.density(chunk) for chunk in points.split(1 << 16)]) >= field.level
    inside = points[filled].cpu().numpy().astype(np.float64)
    if len(inside) == 0:
        raise FieldError(f"nothing to show: no density of {field.level:g} or more at {samples} samples per axis.")
    return np.concatenate([inside - step, inside + step])


def _render_field(field: Field, camera: Cameras, size: int) -> Views:
    """One view of a field with straight alpha."""
    with torch.no_grad():
        seen = render(field, camera, size, size, background=0.0)
    opacity = seen.opacity.clamp(0, 1)
    # Over black the picture is colour times opacity.
    straight = (seen.images / opacity.clamp(min=1e-6)).clamp(0, 1)
    return Views(straight, opacity, camera.to(opacity.device))


def _opaque(image: Bytes, background: int) -> Bytes:
    """(H, W, 3) as it is, (H, W, 4) over an sRGB byte."""
    if image.shape[-1] == 3:
        return image
    alpha = image[..., 3:].astype(np.float64) / 255
    return np.rint(image[..., :3] * alpha + background * (1 - alpha)).astype(np.uint8)


def _check_frames(frames: Bytes, fps: float) -> None:
    if frames.ndim != 4 or frames.shape[-1] not in (3, 4) or frames.dtype != np.uint8 or frames.size == 0:
        raise ImageError(f"frames want shape (K, H, W, 3 or 4) of uint8, found {frames.shape} of {frames.dtype}.")
    if not fps > 0:
        raise SettingsError(f"fps={fps}: expected a positive number.")


def _palette(frames: Bytes) -> Image.Image:
    """A Pillow palette picture of the at most 255 colours that suit all frames."""
    from PIL import Image

    pixels = frames.reshape(-1, frames.shape[-1])
    if frames.shape[-1] == 4:
        pixels = pixels[pixels[:, 3] >= 128]
    pixels = pixels[:: max(len(pixels) // _PALETTE_SAMPLES, 1), :3]
    if len(pixels) == 0:
        pixels = np.zeros((1, 3), np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels[None])).quantize(_PALETTE_COLORS, Image.Quantize.MEDIANCUT)


def _indexed(frame: Bytes, palette: Image.Image) -> Image.Image:
    """A frame in the colours of ``palette``; transparent pixels get the last index.

    Gradients are dithered in a pattern that stands still (Bayer's), by as much as the palette misses a colour: flat
    parts stay flat, and nothing crawls from frame to frame as it would with error diffusion.
    """
    color = np.ascontiguousarray(frame[..., :3])
    plain = _nearest(color, palette)
    missed = color - np.asarray(plain.convert("RGB"), np.float64)
    height, width = color.shape[:2]
    tiles = np.tile(_BAYER, (-(-height // 8), -(-width // 8)))
    # Turned differently for each channel, so that hues mix as well as brightness.
    pattern = np.stack([tiles, np.roll(tiles, 3, 0), np.roll(tiles, 5, 1)], -1)[:height, :width]
    dithered = np.rint(color + _DITHER * np.abs(missed) * pattern).clip(0, 255).astype(np.uint8)
    indices = np.asarray(_nearest(dithered, palette)).copy()
    if frame.shape[-1] == 4:
        indices[frame[..., 3] < 128] = _PALETTE_COLORS
    from PIL import Image

    indexed = Image.fromarray(indices)
    indexed.putpalette(((plain.getpalette() or []) + [0] * 768)[:768])
    return indexed


def _nearest(color: Bytes, palette: Image.Image) -> Image.Image:
    """(H, W, 3) → the nearest colours of ``palette``."""
    from PIL import Image

    return Image.fromarray(color).quantize(palette=palette, dither=Image.Dither.NONE)


def _bayer(side: int) -> NDArray[np.float64]:
    """Bayer's threshold matrix (side, side), side a power of 2, values evenly spread in (-0.5, 0.5)."""
    ranks = np.zeros((1, 1))
    while len(ranks) < side:
        ranks = np.block([[4 * ranks, 4 * ranks + 2], [4 * ranks + 3, 4 * ranks + 1]])
    return (ranks + 0.5) / side**2 - 0.5


_BAYER = _bayer(8)
