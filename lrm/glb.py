"""Writing one mesh as GLB (binary glTF 2.0): plain struct and JSON, the same input gives the same bytes."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .gltf import CHUNK_BIN, CHUNK_JSON, GLB_MAGIC

ROUGHNESS = 0.9  # matt: the colours show as they are under any light
_ARRAY_BUFFER, _INDEX_BUFFER = 34962, 34963
_USHORT, _UINT, _FLOAT = 5123, 5125, 5126
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP = 9729, 9987, 33071


def glb_bytes(
    vertices: NDArray[np.float32],
    faces: NDArray[np.integer],
    normals: NDArray[np.float32],
    *,
    linear_colors: NDArray[np.floating] | None = None,
    uvs: NDArray[np.floating] | None = None,
    texture: NDArray[np.uint8] | None = None,
    generator: str,
    extras: Mapping[str, Any],
) -> bytes:
    """Encode a mesh as GLB with one rough, non-metallic, single-sided material.

    Args:
        vertices: (N, 3) float, file axes (y up), metres.
        faces: (F, 3) int, counter-clockwise seen from outside.
        normals: (N, 3) float, unit length.
        linear_colors: (N, 3) in [0, 1], linear light; becomes ``COLOR_0`` as normalised 16-bit RGBA, alpha full.
        uvs: (N, 2), u right and v *up* from the bottom left corner of ``texture``; turned v down here, as glTF wants.
        texture: (H, W, 3) uint8 sRGB base colour, embedded as PNG.
        generator: program and version, for ``asset.generator``.
        extras: JSON values for ``asset.extras``.

    Returns:
        The file's bytes.

    Source:
        glTF 2.0 specification (Khronos), sections 3.6.2 (alignment), 3.7.2 (meshes), 4.4 (GLB).
    """
    parts = _Parts()
    attributes = {"POSITION": parts.add(vertices.astype("<f4"), "VEC3", _FLOAT, bounds=True)}
    attributes["NORMAL"] = parts.add(normals.astype("<f4"), "VEC3", _FLOAT)
    if linear_colors is not None:
        rgba = np.full((len(vertices), 4), 65535, "<u2")
        rgba[:, :3] = np.rint(np.clip(linear_colors, 0, 1) * 65535)
        attributes["COLOR_0"] = parts.add(rgba, "VEC4", _USHORT, normalized=True)
    surface: dict[str, Any] = {"baseColorFactor": [1, 1, 1, 1], "metallicFactor": 0, "roughnessFactor": ROUGHNESS}
    document: dict[str, Any] = {"asset": {"version": "2.0", "generator": generator, "extras": dict(extras)}}
    if uvs is not None and texture is not None:
        down = np.stack([uvs[:, 0], 1 - uvs[:, 1]], -1)
        attributes["TEXCOORD_0"] = parts.add(down.astype("<f4"), "VEC2", _FLOAT)
        surface["baseColorTexture"] = {"index": 0}
        document |= _texture_entries(parts.add_view(_png(texture)))
    # 65535 is kept free: it restarts primitives in some graphics interfaces.
    short = len(vertices) <= 65535
    indices = faces.reshape(-1).astype("<u2" if short else "<u4")
    triangles = parts.add(indices, "SCALAR", _USHORT if short else _UINT, target=_INDEX_BUFFER)
    material = {"name": "surface", "pbrMetallicRoughness": surface, "doubleSided": False}
    document |= {
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "object", "mesh": 0}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": triangles, "material": 0, "mode": 4}]}],
        "materials": [material],
        "accessors": parts.accessors,
        "bufferViews": parts.views,
        "buffers": [{"byteLength": len(parts.data)}],
    }
    return _container(document, bytes(parts.data))


class _Parts:
    """The binary chunk as it grows, with the views and accessors that describe it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add_view(self, data: bytes, target: int | None = None) -> int:
        """Append bytes at the next multiple of 4; the index of the new buffer view."""
        self.data += b"\0" * (-len(self.data) % 4)
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)}
        self.views.append(view if target is None else view | {"target": target})
        self.data += data
        # The whole chunk is a multiple of 4 too, so that the declared buffer length holds its padding.
        self.data += b"\0" * (-len(self.data) % 4)
        return len(self.views) - 1

    def add(
        self,
        array: NDArray[Any],
        kind: str,
        component: int,
        *,
        bounds: bool = False,
        normalized: bool = False,
        target: int = _ARRAY_BUFFER,
    ) -> int:
        """Append an array; the index of its accessor."""
        entry: dict[str, Any] = {
            "bufferView": self.add_view(array.tobytes(), target),
            "componentType": component,
            "count": len(array),
            "type": kind,
        }
        if normalized:
            entry["normalized"] = True
        if bounds:
            entry["min"] = [float(x) for x in array.min(0)]
            entry["max"] = [float(x) for x in array.max(0)]
        self.accessors.append(entry)
        return len(self.accessors) - 1


def _texture_entries(view: int) -> dict[str, Any]:
    """The document's entries for one embedded PNG, sampled linearly and clamped at its border."""
    sampler = {"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP_LINEAR, "wrapS": _CLAMP, "wrapT": _CLAMP}
    return {
        "images": [{"bufferView": view, "mimeType": "image/png"}],
        "samplers": [sampler],
        "textures": [{"source": 0, "sampler": 0}],
    }


def _png(texture: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 → PNG bytes."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(texture)).save(file, "PNG")
    return file.getvalue()


def _container(document: dict[str, Any], binary: bytes) -> bytes:
    """Header, JSON chunk padded with spaces, binary chunk (already padded)."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(binary)
    head = struct.pack("<III", GLB_MAGIC, 2, length) + struct.pack("<II", len(text), CHUNK_JSON)
    return head + text + struct.pack("<II", len(binary), CHUNK_BIN) + binary
