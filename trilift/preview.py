"""One small picture that shows what a lift did: photo, cut-out, the mesh from the front and the side, generated views.

Reports of folder runs show thousands of them. It is made where the photo and the mesh are at hand, in the worker that
lifted it, and kept beside the asset as ``preview.webp``; a report makes those that are missing. It names the asset.json
that it belongs to, so that a preview of an earlier lift is never taken for that of the present one.
"""

from __future__ import annotations

import hashlib
import io
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multiview.errors import OutputError, TriliftError
from multiview.files import write_bytes_whole

if TYPE_CHECKING:
    from PIL.Image import Exif, Image

    from lrm.mesh import Mesh
    from multiview.cameras import Cameras

PREVIEW_FILE = "preview.webp"
TILES = ("photo", "cut-out", "front", "side")
TILE_PX = 128
"""Pixels per side of a tile; the picture is ``len(TILES)`` of them wide, views come in a row below."""
MAX_BYTES = 9 * 1024
"""Of one picture: a report's page of a thousand stays below 15 MB, base64 and words included."""

_RECORD_FILE = "asset.json"
_QUALITIES = (75, 60, 45, 30, 15)
_DESCRIPTION = 0x010E  # the EXIF tag that holds which asset.json a preview belongs to
_MAX_PIXELS = 64_000_000  # larger photos are not opened for a thumbnail
_LEAST_PX = 8  # smaller photos that failed show nothing
_CELLS = 64  # per axis, for stills: half a tile's pixels, since shading and colours are averaged anyway
_STILL_ELEVATION_DEG, _STILL_FOV_DEG = 15.0, 40.0
_FILLED = 0.47  # of a still, from its middle, that the mesh takes


def write_preview(folder: str | Path, photo: str | Path | None = None, *, mesh: Mesh | None = None) -> Path | None:
    """Draw ``preview.webp`` of a finished asset and put it into its folder.

    Args:
        folder: of the asset, asset.json in it.
        photo: the photo's file; where left out, what asset.json calls the photo, if it is still there unchanged.
        mesh: the asset's mesh where it is at hand, in the world frame or the file's; else it is read from its file.

    Returns:
        The file; None when ``folder`` holds no asset.json that can be read.

    Raises:
        OutputError: it cannot be written.
    """
    folder = Path(folder)
    made = _draw(folder, None if photo is None else Path(photo), mesh)
    if made is None:
        return None
    write_bytes_whole(folder / PREVIEW_FILE, made)
    return folder / PREVIEW_FILE


def preview_bytes(folder: Path) -> bytes | None:
    """The preview of the asset in ``folder`` as WebP, at most `MAX_BYTES`; made, and kept if possible, where missing.

    Returns None when there is no asset.json that can be read, or nothing can be shown of it.
    """
    key = _key(folder)
    if key is None:
        return None
    try:
        data = (folder / PREVIEW_FILE).read_bytes()
        if len(data) <= MAX_BYTES and _key_of(data) == key:
            return data
    except OSError:
        pass  # not there yet
    drawn = _draw(folder, None, None)
    if drawn is not None:
        with suppress(OutputError):  # a folder that may only be read: it is drawn again next time
            write_bytes_whole(folder / PREVIEW_FILE, drawn)
    return drawn


def is_preview_of(preview: bytes, record: bytes) -> bool:
    """Whether a WebP is the preview, of a size that reports take, of the asset whose asset.json is ``record``."""
    return len(preview) <= MAX_BYTES and _key_of(preview) == _sum(record)


def photo_thumbnail(photo: Path) -> bytes | None:
    """One tile of a photo that could not be lifted, as WebP of at most `MAX_BYTES`; None when nothing can be seen."""
    tile = _photo_tile(photo)
    if tile is None or max(tile.size) < _LEAST_PX or tile.getchannel("A").getbbox() is None:
        return None
    return _webp(tile, None)


def _draw(folder: Path, photo: Path | None, mesh: Mesh | None) -> bytes | None:
    """The preview of the asset in ``folder`` as WebP; see `write_preview`."""
    from PIL import Image

    key = _key(folder)
    if key is None:
        return None
    record = _record(folder)
    if photo is None:
        photo = _recorded_photo(record)
    tiles = [
        None if photo is None else _photo_tile(photo),
        _picture_tile(folder / "input.png", TILE_PX, TILE_PX),
        *_stills(folder, record, mesh),
    ]
    views = _picture_tile(folder / "views.png", len(TILES) * TILE_PX, TILE_PX)
    if views is None and not any(tiles):
        return None
    page = Image.new("RGBA", (len(TILES) * TILE_PX, TILE_PX if views is None else TILE_PX + views.height))
    for index, tile in enumerate(tiles):
        if tile is not None:
            page.paste(tile, (index * TILE_PX + (TILE_PX - tile.width) // 2, (TILE_PX - tile.height) // 2))
    if views is not None:
        page.paste(views, ((page.width - views.width) // 2, TILE_PX))
    return _webp(page, key)


def _key(folder: Path) -> str | None:
    """What tells one asset.json from another; None when there is none."""
    try:
        return _sum((folder / _RECORD_FILE).read_bytes())
    except OSError:
        return None


def _sum(record: bytes) -> str:
    return hashlib.sha256(record).hexdigest()[:32]


def _key_of(preview: bytes) -> str | None:
    """The key of the asset.json that a preview was made for; None when it is no preview of ours."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(preview)) as picture:
            return str(picture.getexif().get(_DESCRIPTION))
    except (OSError, ValueError, SyntaxError):
        return None


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / _RECORD_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _recorded_photo(record: dict[str, Any]) -> Path | None:
    """The photo's file as asset.json names it, if that is there with the same bytes."""
    from multiview.weights import file_sha256

    told = record.get("photo")
    if not isinstance(told, dict):
        return None
    try:
        path = Path(str(told.get("name")))
        return path if path.is_file() and file_sha256(path) == told.get("sha256") else None
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return None


def _photo_tile(photo: Path) -> Image | None:
    """At most `TILE_PX` per side, upright; None for whatever Pillow cannot show cheaply."""
    from PIL import Image, ImageOps

    try:
        with Image.open(photo) as picture:
            if picture.width * picture.height > _MAX_PIXELS:
                return None
            picture.draft("RGB", (2 * TILE_PX, 2 * TILE_PX))  # JPEG decodes smaller at once
            picture.thumbnail((TILE_PX, TILE_PX), reducing_gap=2.0)
            upright = ImageOps.exif_transpose(picture)
            return upright.convert("RGBA")
    except Exception:  # damaged files raise nearly anything, and a report goes on without this picture
        return None


def _picture_tile(path: Path, width: int, height: int) -> Image | None:
    """A picture of ours, at most so wide and high; None when it is not there."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.load()
            tile = picture.convert("RGBA")
    except (OSError, ValueError, SyntaxError):
        return None
    tile.thumbnail((width, height), reducing_gap=2.0)
    return tile


def _stills(folder: Path, record: dict[str, Any], mesh: Mesh | None) -> tuple[Image | None, Image | None]:
    """The mesh from the photographed side and from a quarter turn to its right."""
    from PIL import Image

    from lrm.raster import render_mesh

    from .turntable import view_bytes

    try:
        mesh = _read(folder, record) if mesh is None else mesh
        if mesh is None:
            return None, None
        small = coarse(mesh, _CELLS)
        seen = view_bytes(render_mesh(small, _still_cameras(small), TILE_PX, shading=True))
    except TriliftError:
        return None, None
    return Image.fromarray(seen[0]), Image.fromarray(seen[1])


def _still_cameras(mesh: Mesh) -> Cameras:
    """From the front and from the side, both at one distance and zoom, so that the mesh just fits both pictures."""
    import torch

    from multiview.cameras import Cameras, orbit, project

    low, high = mesh.bounds
    distance = 4 * max(float(np.linalg.norm(high - low)) / 2, 1e-6)
    cameras = orbit([0.0, 90.0], _STILL_ELEVATION_DEG, distance, _STILL_FOV_DEG)
    c2w, intrinsics = cameras.c2w.clone(), cameras.intrinsics.clone()
    c2w[:, :3, 3] += c2w.new_tensor((low + high) / 2)
    uv, _ = project(Cameras(c2w, intrinsics), torch.from_numpy(mesh.vertices).to(c2w))
    intrinsics[:, :2, :2] *= _FILLED / max(float((uv - 0.5).abs().max()), 1e-6)
    return Cameras(c2w, intrinsics)


def _read(folder: Path, record: dict[str, Any]) -> Mesh | None:
    """The asset's mesh from the first of its files that can be read."""
    from lrm.meshfile import READABLE, read_mesh

    files = record.get("files") or ()
    names = [str(file.get("name")) for file in files if isinstance(file, dict)]
    for name in names:
        if Path(name).suffix.lower() in READABLE and Path(name).name == name and (folder / name).is_file():
            return read_mesh(folder / name)
    return None


def coarse(mesh: Mesh, cells: int) -> Mesh:
    """Join the vertices in each cell of a grid, which is quick and good enough for a thumbnail.

    Args:
        mesh: any; one whose faces are few already is given back.
        cells: per axis along the longest side, 1 to 256.

    Returns:
        A mesh of positions and colours that are means over cells, without faces that fell into a point or a line.
        The mesh itself where nothing would be left.
    """
    from lrm.mesh import Mesh

    if len(mesh.faces) <= 2 * cells * cells:
        return mesh
    low = mesh.vertices.min(0)
    side = max(float((mesh.vertices.max(0) - low).max()), 1e-12)
    place = ((mesh.vertices - low) * ((cells - 1e-3) / side)).astype(np.int64).clip(0, cells - 1)
    cell = (place[:, 0] * cells + place[:, 1]) * cells + place[:, 2]
    used = np.zeros(cells**3, bool)
    used[cell] = True
    group = (np.cumsum(used) - 1)[cell]
    faces = group[mesh.faces]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    if len(faces) == 0:
        return mesh
    vertices, colors = (_means(values, group) for values in (mesh.vertices, mesh.colors))
    return Mesh(vertices=vertices, faces=faces, colors=colors.clip(0, 1))


def _means(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(N, 3) values → (G, 3) float32 means over equal ``group`` numbers (N,), of which there are G from 0."""
    count = np.bincount(group)
    sums = [np.bincount(group, values[:, axis]) for axis in range(3)]
    return (np.stack(sums, 1) / count[:, None]).astype(np.float32)


def _webp(picture: Image, key: str | None) -> bytes:
    """As WebP in the best quality that stays within `MAX_BYTES`, smaller in pixels where none does."""
    from PIL import Image

    exif = Image.Exif()
    if key is not None:
        exif[_DESCRIPTION] = key
    while True:
        for quality in _QUALITIES:
            data = _encoded(picture, quality, exif)
            if len(data) <= MAX_BYTES:
                return data
        picture = picture.resize((max(picture.width // 2, 1), max(picture.height // 2, 1)))


def _encoded(picture: Image, quality: int, exif: Exif) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, alpha_quality=quality, method=4, exif=exif)
    return buffer.getvalue()
