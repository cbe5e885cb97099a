"""Writing one mesh as glTF 2.0, in one file (GLB) or with its parts beside it: plain struct and JSON, the same input
gives the same bytes."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .gltf import CHUNK_BIN, CHUNK_JSON, GLB_MAGIC

ROUGHNESS = 0.9  # matt: the colours show as they are under any light
_ARRAY_BUFFER, _INDEX_BUFFER = 34962, 34963
_USHORT, _UINT, _FLOAT = 5123, 5125, 5126
_LINEAR, _LINEAR_MIPMAP_LINEAR, _CLAMP = 9729, 9987, 33071


@dataclass(frozen=True)
class Surface:
    """What a glTF mesh looks like.

    Attributes:
        linear_colors: (N, 3) in [0, 1], linear light; becomes ``COLOR_0`` as normalised 16-bit RGBA, alpha full.
        uvs: (N, 2), u right and v *up* from the bottom left corner of ``texture``; turned v down here, as glTF wants.
        texture: (H, W, 3) uint8 sRGB base colour, as PNG.
        normal_map: (H, W, 3) uint8 tangent-space normals (x right, y up, z out), as PNG; it goes with ``tangents``.
        tangents: (N, 4) unit tangent along u and the sign of the bitangent, see `lrm.normalmap.vertex_tangents`.
        roughness: of the one material, 0 to 1; it is never metallic, since a metal shows no colour of its own.
        attributes: more numbers for each vertex, (N,) each; written as ``_NAME``, as glTF names an application's own.
    """

    linear_colors: NDArray[np.floating] | None = None
    uvs: NDArray[np.floating] | None = None
    texture: NDArray[np.uint8] | None = None
    normal_map: NDArray[np.uint8] | None = None
    tangents: NDArray[np.floating] | None = None
    roughness: float = ROUGHNESS
    attributes: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def glb_bytes(
    vertices: NDArray[np.float32],
    faces: NDArray[np.integer],
    normals: NDArray[np.float32],
    *,
    surface: Surface,
    generator: str,
    extras: Mapping[str, Any],
) -> bytes:
    """Encode a mesh as GLB with one rough, non-metallic, single-sided material.

    Args:
        vertices: (N, 3) float, file axes (y up), metres.
        faces: (F, 3) int, counter-clockwise seen from outside.
        normals: (N, 3) float, unit length.
        surface: its colours and material.
        generator: program and version, for ``asset.generator``.
        extras: JSON values for ``asset.extras``.

    Returns:
        The file's bytes.

    Source:
        glTF 2.0 specification (Khronos), sections 3.6.2 (alignment), 3.7.2 (meshes), 4.4 (GLB).
    """
    parts = _Parts()
    document = _document(parts, vertices, faces, normals, surface, generator, extras)
    images = [{"bufferView": parts.add_view(data), "mimeType": "image/png"} for _, data in _images(surface)]
    return _container(_closed(document, parts, images, {}), bytes(parts.data))


def gltf_files(
    vertices: NDArray[np.float32],
    faces: NDArray[np.integer],
    normals: NDArray[np.float32],
    *,
    surface: Surface,
    generator: str,
    extras: Mapping[str, Any],
    stem: str,
) -> dict[str, bytes]:
    """The same mesh as ``stem.gltf`` with ``stem.bin`` and PNG pictures beside it.

    Args:
        stem: of the names. It stands in URIs as it is, since not all readers undo percent signs: it must have neither
            blanks nor any of ``%#?``; letters of all alphabets will do.

    Returns:
        {file name: bytes}, the ``.gltf`` last; the other arguments are those of `glb_bytes`.
    """
    parts = _Parts()
    document = _document(parts, vertices, faces, normals, surface, generator, extras)
    pictures = {f"{stem}_{kind}.png": data for kind, data in _images(surface)}
    images = [{"uri": name, "mimeType": "image/png"} for name in pictures]
    whole = _closed(document, parts, images, {"uri": f"{stem}.bin"})
    return {f"{stem}.bin": bytes(parts.data), **pictures, f"{stem}.gltf": _json(whole)}


def _document(
    parts: _Parts,
    vertices: NDArray[np.float32],
    faces: NDArray[np.integer],
    normals: NDArray[np.float32],
    surface: Surface,
    generator: str,
    extras: Mapping[str, Any],
) -> dict[str, Any]:
    """The document but for its buffer and its pictures; ``parts`` get the arrays."""
    attributes = {"POSITION": parts.add(vertices.astype("<f4"), "VEC3", _FLOAT, bounds=True)}
    attributes["NORMAL"] = parts.add(normals.astype("<f4"), "VEC3", _FLOAT)
    if surface.tangents is not None:
        attributes["TANGENT"] = parts.add(surface.tangents.astype("<f4"), "VEC4", _FLOAT)
    if surface.linear_colors is not None:
        rgba = np.full((len(vertices), 4), 65535, "<u2")
        rgba[:, :3] = np.rint(np.clip(surface.linear_colors, 0, 1) * 65535)
        attributes["COLOR_0"] = parts.add(rgba, "VEC4", _USHORT, normalized=True)
    if surface.uvs is not None:
        down = np.stack([surface.uvs[:, 0], 1 - surface.uvs[:, 1]], -1)
        attributes["TEXCOORD_0"] = parts.add(down.astype("<f4"), "VEC2", _FLOAT)
    for name, values in surface.attributes.items():
        attributes[f"_{name.upper()}"] = parts.add(np.asarray(values).astype("<f4"), "SCALAR", _FLOAT)
    # 65535 is kept free: it restarts primitives in some graphics interfaces.
    short = len(vertices) <= 65535
    indices = faces.reshape(-1).astype("<u2" if short else "<u4")
    triangles = parts.add(indices, "SCALAR", _USHORT if short else _UINT, target=_INDEX_BUFFER)
    return {
        "asset": {"version": "2.0", "generator": generator, "extras": dict(extras)},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "object", "mesh": 0}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": triangles, "material": 0, "mode": 4}]}],
        "materials": [_material(surface)],
    }


def _closed(
    document: dict[str, Any], parts: _Parts, images: list[dict[str, Any]], buffer: dict[str, Any]
) -> dict[str, Any]:
    """The document with its pictures, accessors and buffer."""
    if images:
        document |= _texture_entries(images)
    return document | {
        "accessors": parts.accessors,
        "bufferViews": parts.views,
        "buffers": [{"byteLength": len(parts.data), **buffer}],
    }


def _material(surface: Surface) -> dict[str, Any]:
    """One rough, non-metallic, single-sided material."""
    physical: dict[str, Any] = {
        "baseColorFactor": [1, 1, 1, 1],
        "metallicFactor": 0,
        "roughnessFactor": surface.roughness,
    }
    material: dict[str, Any] = {"name": "surface", "pbrMetallicRoughness": physical, "doubleSided": False}
    if surface.texture is not None:
        physical["baseColorTexture"] = {"index": 0}
    if surface.normal_map is not None:
        material["normalTexture"] = {"index": 0 if surface.texture is None else 1}
    return material


def _images(surface: Surface) -> list[tuple[str, bytes]]:
    """What each picture is, and its PNG; the order is that of the texture indices."""
    pictures = (("color", surface.texture), ("normal", surface.normal_map))
    return [(kind, png_bytes(picture)) for kind, picture in pictures if picture is not None]


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


def _texture_entries(images: list[dict[str, Any]]) -> dict[str, Any]:
    """The document's entries for pictures, sampled linearly and clamped at their borders."""
    sampler = {"magFilter": _LINEAR, "minFilter": _LINEAR_MIPMAP_LINEAR, "wrapS": _CLAMP, "wrapT": _CLAMP}
    return {
        "images": images,
        "samplers": [sampler],
        "textures": [{"source": index, "sampler": 0} for index in range(len(images))],
    }


def png_bytes(texture: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 → PNG bytes."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(texture)).save(file, "PNG")
    return file.getvalue()


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(
        "utf-8",
        "backslashreplace",  # names of old file systems are no Unicode; this is how JSON escapes them
    )


def _container(document: dict[str, Any], binary: bytes) -> bytes:
    """Header, JSON chunk padded with spaces, binary chunk (already padded)."""
    text = _json(document)
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(binary)
    head = struct.pack("<III", GLB_MAGIC, 2, length) + struct.pack("<II", len(text), CHUNK_JSON)
    return head + text + struct.pack("<II", len(binary), CHUNK_BIN) + binary
