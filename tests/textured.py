"""Textured objects that tests make themselves: a cube with a picture on every side, as GLB and as OBJ."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RED, GREEN, BLUE, YELLOW = (200, 20, 20), (20, 180, 20), (30, 30, 220), (230, 220, 30)

# Sides of a cube in file axes (y up): the way out, and the directions that are right and up to someone who looks at it.
SIDES = (
    ((0, 0, 1), (1, 0, 0), (0, 1, 0)),
    ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    ((0, 0, -1), (-1, 0, 0), (0, 1, 0)),
    ((-1, 0, 0), (0, 0, 1), (0, 1, 0)),
    ((0, 1, 0), (1, 0, 0), (0, 0, -1)),
    ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
)
CORNERS = np.array([(-1, 1), (1, 1), (1, -1), (-1, -1)])  # right, up: from the picture's top left, clockwise
CORNER_UVS = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float)  # u right, v down, as glTF has them


def checker(size: int = 64) -> np.ndarray:
    """(size, size, 3): red top left, green top right, blue bottom left, yellow bottom right."""
    picture = np.empty((size, size, 3), np.uint8)
    half = size // 2
    picture[:half, :half], picture[:half, half:] = RED, GREEN
    picture[half:, :half], picture[half:, half:] = BLUE, YELLOW
    return picture


def plain(color: Sequence[int], size: int = 8) -> np.ndarray:
    """(size, size, 3) of one colour."""
    return np.full((size, size, 3), color, np.uint8)


def cube(sides: Sequence[int] = range(6)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some sides of a cube of side 1: vertices (4S, 3) in file axes, faces (2S, 3), uvs (4S, 2) v down."""
    vertices = []
    for side in sides:
        out, right, up = (np.array(d, float) for d in SIDES[side])
        vertices += [(out + x * right + y * up) / 2 for x, y in CORNERS]
    faces = np.array([[0, 3, 2], [0, 2, 1]])
    return (
        np.array(vertices),
        np.concatenate([faces + 4 * i for i in range(len(sides))]),
        np.tile(CORNER_UVS, (len(sides), 1)),
    )


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


class GlbMaker:
    """Collects primitives and materials and writes them as one GLB."""

    def __init__(self) -> None:
        self.data = b""
        self.document: dict[str, Any] = {"asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}]}
        self.document |= {"nodes": [{"mesh": 0}], "meshes": [{"primitives": []}], "bufferViews": [], "accessors": []}
        for name in ("materials", "textures", "images", "samplers"):
            self.document[name] = []

    def picture(self, image: np.ndarray | bytes, wrap: tuple[int, int] | None = None) -> int:
        """Add an image and its texture; gives the texture's number."""
        view = self._view(image if isinstance(image, bytes) else png(image))
        self.document["images"].append({"bufferView": view, "mimeType": "image/png"})
        texture = {"source": len(self.document["images"]) - 1}
        if wrap is not None:
            self.document["samplers"].append({"wrapS": wrap[0], "wrapT": wrap[1]})
            texture["sampler"] = len(self.document["samplers"]) - 1
        self.document["textures"].append(texture)
        return len(self.document["textures"]) - 1

    def material(
        self, texture: int | None, factor: Sequence[float] | None = None, transform: Any = None, **more: Any
    ) -> int:
        """Add a material; gives its number."""
        metallic: dict[str, Any] = {}
        if texture is not None:
            metallic["baseColorTexture"] = {"index": texture}
            if transform is not None:
                metallic["baseColorTexture"]["extensions"] = {"KHR_texture_transform": transform}
        if factor is not None:
            metallic["baseColorFactor"] = list(factor)
        self.document["materials"].append({"pbrMetallicRoughness": metallic} | more)
        return len(self.document["materials"]) - 1

    def primitive(
        self,
        vertices: np.ndarray,
        faces: np.ndarray,
        uvs: np.ndarray | None = None,
        material: int | None = None,
        colors: np.ndarray | None = None,
    ) -> GlbMaker:
        """Add a primitive; colours are linear floats."""
        attributes = {"POSITION": self._accessor(vertices.astype("<f4"))}
        if uvs is not None:
            attributes["TEXCOORD_0"] = self._accessor(uvs.astype("<f4"))
        if colors is not None:
            attributes["COLOR_0"] = self._accessor(colors.astype("<f4"))
        entry: dict[str, Any] = {"attributes": attributes, "indices": self._accessor(faces.astype("<u4").reshape(-1))}
        if material is not None:
            entry["material"] = material
        self.document["meshes"][0]["primitives"].append(entry)
        return self

    def write(self, path: Path) -> Path:
        """Write the GLB."""
        document = self.document | {"buffers": [{"byteLength": len(self.data)}]}
        text = json.dumps({k: v for k, v in document.items() if v != []}).encode()
        text += b" " * (-len(text) % 4)
        data = self.data + b"\0" * (-len(self.data) % 4)
        chunks = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(data), 0x004E4942) + data
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks)
        return path

    def _view(self, data: bytes) -> int:
        self.data += b"\0" * (-len(self.data) % 4)
        self.document["bufferViews"].append({"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)})
        self.data += data
        return len(self.document["bufferViews"]) - 1

    def _accessor(self, array: np.ndarray) -> int:
        kind = {"f": 5126, "u": 5125}[array.dtype.kind]
        width = f"VEC{array.shape[1]}" if array.ndim == 2 else "SCALAR"
        entry = {"bufferView": self._view(array.tobytes()), "componentType": kind, "count": len(array), "type": width}
        self.document["accessors"].append(entry)
        return len(self.document["accessors"]) - 1


def checker_glb(path: Path, size: int = 64) -> Path:
    """A cube with the checker, upright and not mirrored, on every side."""
    maker = GlbMaker()
    vertices, faces, uvs = cube()
    return maker.primitive(vertices, faces, uvs, maker.material(maker.picture(checker(size)))).write(path)


def write_obj(path: Path, sides: dict[str, Sequence[int]], mtl: str, uvs: np.ndarray = CORNER_UVS) -> Path:
    """A cube as OBJ, its sides by the name of their material, beside an MTL of the same stem; ``uvs`` have v down."""
    lines = [f"mtllib {path.stem}.mtl"]
    lines += [f"vt {u:.6f} {1 - v:.6f}" for u, v in uvs]
    count = 0
    for material, numbers in sides.items():
        vertices, _, _ = cube(numbers)
        lines += [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in vertices] + [f"usemtl {material}"]
        for start in range(count, count + len(vertices), 4):
            lines += [f"f {start + a + 1}/{a + 1} {start + b + 1}/{b + 1} {start + c + 1}/{c + 1}"
                      for a, b, c in ((0, 3, 2), (0, 2, 1))]  # fmt: skip
        count += len(vertices)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", "utf-8")
    path.with_suffix(".mtl").write_text(mtl, "utf-8")
    return path


def checker_obj(path: Path) -> Path:
    """The checker's cube as OBJ with MTL and PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "four colours.png").write_bytes(png(checker()))
    return write_obj(path, {"checker": range(6)}, "newmtl checker\nKd 1 1 1\nmap_Kd four colours.png\n")
