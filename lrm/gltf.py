"""Reading glTF 2.0 (``.glb`` and ``.gltf``) down to triangles and colours.

Read here rather than through a mesh library because colours need it: ``COLOR_0`` and base colour factors are linear
light in up to 16 bits or floats, and libraries round both to 8 linear bits, which leaves dark colours a few steps.
Static geometry only: every node of the scene with its transform, in the rest pose of skinned meshes.
"""

from __future__ import annotations

import base64
import io
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from multiview.color import linear_from_srgb, srgb_from_linear
from multiview.errors import MeshError

GLB_MAGIC, CHUNK_JSON, CHUNK_BIN = 0x46546C67, 0x4E4F534A, 0x004E4942
GREY = 0.5  # sRGB of a surface that states no colour
_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
_DRACO = "KHR_draco_mesh_compression"
_MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Triangles:
    """Triangles with vertex colours, in the axes of the file.

    Attributes:
        vertices: (N, 3) float64.
        faces: (F, 3) int64, counter-clockwise seen from outside.
        colors: (N, 3) float64, sRGB in [0, 1].
    """

    vertices: Floats
    faces: NDArray[np.int64]
    colors: Floats

    @staticmethod
    def cat(parts: list[Triangles]) -> Triangles:
        """All of ``parts`` as one, faces renumbered."""
        starts = np.cumsum([0] + [len(p.vertices) for p in parts])
        return Triangles(
            np.concatenate([p.vertices for p in parts] or [np.zeros((0, 3))]),
            np.concatenate([p.faces + s for p, s in zip(parts, starts, strict=False)] or [np.zeros((0, 3), np.int64)]),
            np.concatenate([p.colors for p in parts] or [np.zeros((0, 3))]),
        )


def read_gltf(path: str | Path) -> Triangles:
    """Read all triangles of the default scene, with vertex colours.

    Colour is base colour factor x texture at the vertex x ``COLOR_0``, worked in linear light and returned as sRGB, or
    mid-grey where none of the three is given. ``asset.extras.color == "srgb"`` says that ``COLOR_0`` holds display
    values already.

    Args:
        path: a ``.glb`` or ``.gltf`` file; buffers and images may be data URIs or files beside it.

    Returns:
        `Triangles` in file axes (y up), vertices of all nodes one after the other.

    Raises:
        MeshError: not glTF 2.0, compressed geometry, or the file contradicts itself (counts, offsets, indices).
        OSError: the file itself cannot be read.
    """
    path = Path(path)
    try:
        document, binary = read_container(path.read_bytes())
        return GltfReader(path, document, binary).triangles()
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        raise MeshError(f"{path}: not a usable glTF 2.0 file ({reason}). Export it again as GLB.") from error


def read_container(data: bytes) -> tuple[dict[str, Any], bytes | None]:
    """Bytes of a ``.glb`` or ``.gltf`` → its JSON object and its binary chunk."""
    if data[:4] != struct.pack("<I", GLB_MAGIC):
        document, binary = json.loads(data.decode("utf-8-sig")), None
    else:
        _, version, length = struct.unpack_from("<III", data)
        if version != 2 or length > len(data):
            raise ValueError(f"GLB version {version} of {length} bytes, found {len(data)} bytes, wanted version 2")
        chunks: dict[int, bytes] = {}
        start = 12
        while start + 8 <= length:
            size, kind = struct.unpack_from("<II", data, start)
            if start + 8 + size > length:
                raise ValueError(f"a chunk declares {size} bytes, the file has {length - start - 8} left")
            chunks.setdefault(kind, data[start + 8 : start + 8 + size])
            start += 8 + size
        document, binary = json.loads(chunks[CHUNK_JSON].decode("utf-8")), chunks.get(CHUNK_BIN)
    if not isinstance(document, dict) or not str(document.get("asset", {}).get("version", "")).startswith("2"):
        raise ValueError("no asset.version 2.x in its JSON")
    return document, binary


class GltfReader:
    """One open document: resolves buffers and accessors once and walks the scene."""

    def __init__(self, path: Path, document: dict[str, Any], binary: bytes | None) -> None:
        self.path, self.document, self.binary = path, document, binary
        self.color_is_srgb = (document["asset"].get("extras") or {}).get("color") == "srgb"
        self._buffers: dict[int, bytes] = {}
        self._images: dict[int, NDArray[np.uint8]] = {}

    def triangles(self) -> Triangles:
        parts = []
        for mesh, transform in self._placed_meshes():
            for primitive in self.document["meshes"][mesh]["primitives"]:
                part = self._primitive(primitive)
                if part is not None:
                    parts.append(_moved(part, transform))
        return Triangles.cat(parts)

    def _placed_meshes(self) -> list[tuple[int, Floats]]:
        """(mesh index, node to scene (4, 4)) of every mesh in the scene, parents before children."""
        nodes = self.document.get("nodes", [])
        scenes = self.document.get("scenes", [])
        if not scenes:  # a library file: every mesh, unplaced
            return [(i, np.eye(4)) for i in range(len(self.document.get("meshes", [])))]
        roots = scenes[self.document.get("scene", 0)].get("nodes", [])
        waiting: list[tuple[int, Floats]] = [(index, np.eye(4)) for index in reversed(roots)]
        placed: list[tuple[int, Floats]] = []
        seen: set[int] = set()
        while waiting:
            index, parent = waiting.pop()
            if index in seen:
                raise ValueError(f"node {index} has two parents, or is its own; the nodes must be a tree")
            seen.add(index)
            transform = parent @ _node_matrix(nodes[index])
            if "mesh" in nodes[index]:
                placed.append((nodes[index]["mesh"], transform))
            waiting += [(child, transform) for child in reversed(nodes[index].get("children", []))]
        return placed

    def _primitive(self, primitive: dict[str, Any]) -> Triangles | None:
        """One primitive in the axes of its node; None for points and lines."""
        if _DRACO in primitive.get("extensions", {}):
            raise ValueError(f"its geometry is compressed with {_DRACO}, which is not read here; decompress it first")
        mode = primitive.get("mode", 4)
        if mode not in (4, 5, 6):
            return None
        attributes = primitive["attributes"]
        vertices = self._accessor(attributes["POSITION"], width=(3,))
        count = len(vertices)
        indices = self._indices(primitive["indices"]) if "indices" in primitive else np.arange(count)
        if len(indices) and indices.max() >= count:
            raise ValueError(f"a face names vertex {indices.max()} of {count}")
        return Triangles(vertices, _faces(indices, mode), self._colors(primitive, count))

    def _colors(self, primitive: dict[str, Any], count: int) -> Floats:
        """(count, 3) sRGB of a primitive's vertices."""
        attributes = primitive["attributes"]
        material = self.document["materials"][primitive["material"]] if "material" in primitive else {}
        factor, texture = base_color(material)
        linear: Floats | None = None if factor is None else np.tile(np.asarray(factor, np.float64)[:3], (count, 1))
        if texture is not None:
            uv_name = f"TEXCOORD_{texture.get('texCoord', 0)}"
            if uv_name in attributes:
                uvs = self._accessor(attributes[uv_name], width=(2,))
                sampled = linear_from_srgb(self._sample(texture, uvs))
                linear = sampled if linear is None else linear * sampled
        if "COLOR_0" not in attributes:
            return np.full((count, 3), GREY) if linear is None else srgb_from_linear(linear.clip(0, 1))
        vertex = self._accessor(attributes["COLOR_0"], width=(3, 4))[:, :3].clip(0, 1)
        if len(vertex) != count:
            raise ValueError(f"COLOR_0 has {len(vertex)} entries for {count} vertices")
        if self.color_is_srgb and linear is None:
            return vertex
        vertex = linear_from_srgb(vertex) if self.color_is_srgb else vertex
        return srgb_from_linear((vertex if linear is None else vertex * linear).clip(0, 1))

    def _sample(self, texture: dict[str, Any], uvs: Floats) -> Floats:
        """sRGB (N, 3) of a base colour texture at ``uvs`` (N, 2), bilinear in display values, repeated or clamped."""
        entry = self.document["textures"][texture["index"]]
        source = entry.get("source", entry.get("extensions", {}).get("EXT_texture_webp", {}).get("source"))
        if source is None:
            raise ValueError(f"texture {texture['index']} has no image that is read here (PNG, JPEG, WebP)")
        samplers = self.document.get("samplers", [])
        sampler = samplers[entry["sampler"]] if "sampler" in entry else {}
        clamp = (sampler.get("wrapS", 10497) == 33071, sampler.get("wrapT", 10497) == 33071)
        uvs = moved_uvs(uvs, texture.get("extensions", {}).get("KHR_texture_transform", {}))
        return _bilinear(self._image(source), uvs, clamp)

    def _image(self, index: int) -> NDArray[np.uint8]:
        """Image ``index`` as (H, W, 3) sRGB bytes: a large one as floats would take gigabytes."""
        if index not in self._images:
            from PIL import Image

            entry = self.document["images"][index]
            data = self._view(entry["bufferView"]) if "bufferView" in entry else self._uri(entry["uri"])
            try:
                with Image.open(io.BytesIO(data)) as image:
                    pixels = np.asarray(image.convert("RGB"))
            except (OSError, Image.DecompressionBombError) as error:
                raise ValueError(f"image {index} cannot be decoded: {error}") from error
            self._images[index] = pixels
        return self._images[index]

    def _indices(self, index: int) -> NDArray[np.int64]:
        return self._accessor(index, width=(1,)).astype(np.int64)[:, 0]

    def _accessor(self, index: int, width: tuple[int, ...]) -> Floats:
        """Accessor ``index`` as float64 (count, width), integers scaled to [0, 1] or [-1, 1] when ``normalized``."""
        accessor = self.document["accessors"][index]
        count, columns = accessor["count"], _WIDTHS[accessor["type"]]
        dtype = np.dtype(_COMPONENTS[accessor["componentType"]])
        if columns not in width or "sparse" in accessor or "bufferView" not in accessor:
            raise ValueError(f"accessor {index} ({accessor['type']}, {count} elements) is sparse, empty or not fitting")
        view = self.document["bufferViews"][accessor["bufferView"]]
        data = self._view(accessor["bufferView"])
        stride = view.get("byteStride", dtype.itemsize * columns)
        start = accessor.get("byteOffset", 0)
        if start < 0 or count < 1 or stride < dtype.itemsize * columns:
            raise ValueError(f"accessor {index} has count {count}, offset {start}, stride {stride}")
        if start + (count - 1) * stride + dtype.itemsize * columns > len(data):
            raise ValueError(f"accessor {index} declares {count} elements, its buffer view holds {len(data)} bytes")
        raw = np.ndarray((count, columns), dtype, data, start, (stride, dtype.itemsize))
        if not accessor.get("normalized"):
            return raw.astype(np.float64)
        return np.maximum(raw / np.float64(np.iinfo(dtype).max), -1.0)

    def _view(self, index: int) -> bytes:
        """The bytes of buffer view ``index``."""
        view = self.document["bufferViews"][index]
        for name in _MESHOPT:
            if name in view.get("extensions", {}):
                raise ValueError(f"its data is compressed with {name}, which is not read here; decompress it first")
        data, start, length = self._buffer(view["buffer"]), view.get("byteOffset", 0), view["byteLength"]
        if start < 0 or length < 0 or start + length > len(data):
            raise ValueError(f"buffer view {index} wants bytes {start} to {start + length} of {len(data)}")
        return data[start : start + length]

    def _buffer(self, index: int) -> bytes:
        if index not in self._buffers:
            entry = self.document["buffers"][index]
            if "uri" in entry:
                self._buffers[index] = self._uri(entry["uri"])
            elif self.binary is not None:
                self._buffers[index] = self.binary
            else:
                raise ValueError(f"buffer {index} has neither a uri nor a binary chunk")
        return self._buffers[index]

    def _uri(self, uri: str) -> bytes:
        """A data URI or a file beside the document."""
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition(",")[2])
        if ":" in uri.partition("/")[0]:
            raise ValueError(f"it points to {uri[:60]}, and nothing is fetched; keep its files beside it")
        try:
            return (self.path.parent / unquote(uri)).read_bytes()
        except OSError as error:
            raise ValueError(f"its file {unquote(uri)} cannot be read: {error.strerror}") from error


def _node_matrix(node: dict[str, Any]) -> Floats:
    """Node to parent (4, 4): ``matrix``, or translation @ rotation @ scale."""
    if "matrix" in node:
        return np.asarray(node["matrix"], np.float64).reshape(4, 4).T
    x, y, z, w = np.asarray(node.get("rotation", (0, 0, 0, 1)), np.float64)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * np.asarray(node.get("scale", (1, 1, 1)), np.float64)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def _moved(part: Triangles, transform: Floats) -> Triangles:
    """The part placed by its node; a mirroring node turns the faces back outward, as glTF 2.0 section 3.7.4 says."""
    if np.array_equal(transform, np.eye(4)):
        return part
    vertices = part.vertices @ transform[:3, :3].T + transform[:3, 3]
    mirrored = np.linalg.det(transform[:3, :3]) < 0
    return Triangles(vertices, part.faces[:, ::-1] if mirrored else part.faces, part.colors)


def _faces(indices: NDArray[np.int64], mode: int) -> NDArray[np.int64]:
    """Indices of triangles (4), a strip (5) or a fan (6) → (F, 3)."""
    if mode == 4:
        if len(indices) % 3:
            raise ValueError(f"{len(indices)} indices are not a multiple of 3")
        return indices.reshape(-1, 3)
    if mode == 6:
        return np.stack([np.broadcast_to(indices[:1], len(indices) - 2), indices[1:-1], indices[2:]], -1)
    faces = np.stack([indices[:-2], indices[1:-1], indices[2:]], -1)
    faces[1::2] = faces[1::2, [1, 0, 2]]
    return faces[(faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 0] != faces[:, 2])]


def base_color(material: dict[str, Any]) -> tuple[list[float] | None, dict[str, Any] | None]:
    """(linear factor, texture reference) of a material, None where it does not say."""
    glossy = material.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness")
    if glossy is not None:
        return glossy.get("diffuseFactor"), glossy.get("diffuseTexture")
    metallic = material.get("pbrMetallicRoughness", {})
    return metallic.get("baseColorFactor"), metallic.get("baseColorTexture")


def moved_uvs(uvs: Floats, transform: dict[str, Any]) -> Floats:
    """Apply KHR_texture_transform: scale, then rotate, then shift."""
    if not transform:
        return uvs
    angle = float(transform.get("rotation", 0.0))
    c, s = np.cos(angle), np.sin(angle)
    scaled = uvs * np.asarray(transform.get("scale", (1, 1)), np.float64)
    return scaled @ np.array([[c, -s], [s, c]]) + np.asarray(transform.get("offset", (0, 0)), np.float64)


def _bilinear(image: NDArray[np.uint8], uvs: Floats, clamp: tuple[bool, bool]) -> Floats:
    """sRGB in [0, 1] of (H, W, 3) at ``uvs`` (N, 2), u right, v down, (0, 0) the top left; wraps unless clamped."""
    height, width = image.shape[:2]
    corners = []
    for axis, size in ((0, width), (1, height)):
        position = uvs[:, axis] * size - 0.5
        low = np.floor(position)
        pair = np.stack([low, low + 1]).astype(np.int64)
        corners.append((pair.clip(0, size - 1) if clamp[axis] else pair % size, (position - low)[:, None]))
    (x, fx), (y, fy) = corners
    upper, lower = ([image[row, column] / 255 for column in x] for row in y)
    top = upper[0] * (1 - fx) + upper[1] * fx
    bottom = lower[0] * (1 - fx) + lower[1] * fx
    return top * (1 - fy) + bottom * fy
