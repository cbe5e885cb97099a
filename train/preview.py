"""Pictures of a training run: what the network sees and what its field looks like from there and from the side.

Written with numpy and zlib alone, because machines lent for training have little else.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lrm.tiny import TinyLRM
from lrm.volume import render
from multiview.cameras import Cameras, orbit
from multiview.files import write_bytes_whole

from .batches import Augment, PackedData, light, resized

PREVIEW_SIDE = 96
SIDE_AZIMUTHS = (60.0, 120.0, 180.0)


def png_bytes(picture: np.ndarray) -> bytes:
    """A picture (H, W, 3) uint8 as a PNG file."""
    height, width, _ = picture.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, width * 3)], 1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@torch.no_grad()
def preview(model: TinyLRM, data: PackedData, count: int = 6) -> np.ndarray:
    """One row an object: its picture, then its field volume-rendered from the front, from two sides and from behind.

    Args:
        model: in evaluation mode.
        data: packed objects; ``count`` evenly spaced ones are shown, first view each, unlit.

    Returns:
        (rows * PREVIEW_SIDE, 5 * PREVIEW_SIDE, 3) uint8 over white.
    """
    plain, rng = Augment(lit=0, mirror=0, swap=0, exposure=0, ragged=0), np.random.default_rng(0)
    rows = []
    for obj in np.unique(np.linspace(0, len(data) - 1, count).astype(int)):
        packed = light(torch.from_numpy(data.arrays["views"][obj, 0].copy()), rng, plain)
        made = model.reconstruct(resized(packed, model.image_size)[None])[0]
        fov, distance = float(made.camera.fov_y_deg[0]), float(made.camera.positions[0].norm())
        around = orbit(SIDE_AZIMUTHS, 15.0, distance, min(1.35 * fov, 120.0))
        cameras = Cameras.cat([made.camera, around]).to(model.device)
        seen = render(made.field, cameras, PREVIEW_SIDE, PREVIEW_SIDE, samples_per_ray=64).images.cpu()
        shown = resized(packed, PREVIEW_SIDE)
        rows.append(torch.cat([(shown[:3] * shown[3:] + 1 - shown[3:])[None], seen]))
    return _tiled(rows)


def posed_preview(conditioning: list[Tensor], truth: list[Tensor], made: list[Tensor]) -> np.ndarray:
    """Two rows an object: its picture and true views, and below the views that its field gives.

    Args:
        conditioning: pictures (4, S, S), straight alpha.
        truth, made: views (K, 3, P, P) of each, over white.

    Returns:
        (2 * objects * P, (K + 1) * P, 3) uint8 over white.
    """
    rows = []
    for picture, true, rendered in zip(conditioning, truth, made, strict=True):
        seen = resized(picture, true.shape[-1])
        seen = (seen[:3] * seen[3:] + 1 - seen[3:])[None]
        rows += [torch.cat([seen, true]), torch.cat([torch.ones_like(seen), rendered])]
    return _tiled(rows)


def write_posed_preview(path: Path, conditioning: list[Tensor], truth: list[Tensor], made: list[Tensor]) -> np.ndarray:
    """Write `posed_preview` as a PNG file; returns the picture."""
    picture = posed_preview(conditioning, truth, made)
    write_bytes_whole(path, png_bytes(picture))
    return picture


def _tiled(rows: list[Tensor]) -> np.ndarray:
    """Rows of pictures (K, 3, S, S) in [0, 1] → one picture (rows * S, K * S, 3) uint8."""
    sheet = torch.stack(rows).permute(0, 3, 1, 4, 2)  # (rows, S, K, S, 3)
    r, s, k, _, _ = sheet.shape
    return (sheet.reshape(r * s, k * s, 3).clamp(0, 1) * 255).round().byte().numpy()


def write_preview(path: Path, model: TinyLRM, data: PackedData, count: int = 6) -> np.ndarray:
    """Write `preview` as a PNG file; returns the picture."""
    picture = preview(model, data, count)
    write_bytes_whole(path, png_bytes(picture))
    return picture
