"""Reading the `Skin` of a mesh file: base colour pictures of glTF, and of OBJ with its MTL."""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lrm.gltf import GltfReader, Triangles, base_color, moved_uvs, read_container
from lrm.meshfile import colored_triangles
from multiview.color import linear_from_srgb
from multiview.errors import MeshError

from .textures import Skin, SkinPainter, Texture, Wrap

LARGEST_SIDE = 2048
_FULL_SIZE = 16  # pictures of the largest side that one object may have; of more, each is smaller
_WRAPS: dict[int, Wrap] = {10497: "repeat", 33648: "mirror", 33071: "clamp"}  # glTF's, which are OpenGL's
# Options of map_Kd with how many words may follow; -o, -s and -t take one to three numbers.
_MAP_OPTIONS = {
    "-blendu": 1, "-blendv": 1, "-bm": 1, "-boost": 1, "-cc": 1, "-clamp": 1, "-imfchan": 1, "-mm": 2, "-o": 3,
    "-s": 3, "-t": 3, "-texres": 1, "-type": 1,
}  # fmt: skip
Floats = NDArray[np.floating[Any]]


def read_gltf_skin(path: str | Path, vertices: int, largest_side: int = LARGEST_SIDE) -> Skin | None:
    """Read where the vertices of a glTF lie in its base colour pictures.

    Picture x base colour factor x ``COLOR_0``, with KHR_texture_transform and the sampler's wrapping. Alpha is dropped:
    masked and see-through texels are opaque in their own colour.

    A picture that is missing or broken is an error and not a reason for the factor alone: an object in wrong
    colours would be learned as it is.

    Args:
        path: a file that `lrm.meshfile.read_mesh` has read; the skin belongs to its vertices, in their order.
        vertices: how many it found.
        largest_side: pixels; larger pictures are shrunk to it by area, and further where an object has more than 16.

    Returns:
        The skin; None where no face shows a picture.

    Raises:
        MeshError: a picture cannot be read; the message names the file.
    """
    path = Path(path)
    try:
        skin = _joined(_gltf_parts(path, largest_side))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError, struct.error) as error:
        raise _unusable(path, error) from error
    assert skin is None or len(skin.uvs) == vertices, f"{path}: {vertices} vertices, but {len(skin.uvs)} with a place"
    return skin


def read_obj_skin(path: str | Path, largest_side: int = LARGEST_SIDE) -> tuple[Triangles, Skin] | None:
    """Read an OBJ whose MTL names pictures, vertices split at the seams, which `read_mesh` does not do.

    map_Kd (its -s, -o and -clamp) x Kd, where a black Kd counts as unsaid, since exporters leave it at 0 beside a
    picture; Kd is sRGB, as OBJ's colours are here.

    Args:
        path: an OBJ file.
        largest_side: as `read_gltf_skin`'s.

    Returns:
        Triangles in file axes, and their skin; None where no face shows a picture: then `read_mesh` is right.

    Raises:
        MeshError: a picture cannot be read (as for glTF), or the file is no usable OBJ; the message names the file.
    """
    path = Path(path)
    try:
        materials, folder = _materials_of(path)
        if not any(material.picture for material in materials.values()):
            return None
        triangles, parts = _obj_parts(path, folder, materials, largest_side)
        skin = _joined(parts)
    # A foreign parser meets foreign bytes here: whatever it stumbles over, the file is what is wrong.
    except Exception as error:
        raise _unusable(path, error) from error
    if skin is None:
        return None
    every = np.arange(len(skin.uvs))
    corners = torch.eye(3)[:1].expand(len(every), 3)
    bare = torch.from_numpy(triangles.colors * 255)
    painter = SkinPainter(skin, triangles.vertices, np.repeat(every[:, None], 3, 1), halvings=False)
    colors = painter.paint(bare, torch.from_numpy(every), corners).numpy() / 255
    return Triangles(triangles.vertices, triangles.faces, colors), skin


def _unusable(path: Path, error: Exception) -> MeshError:
    reason = f"{type(error).__name__}: {error}"[:300]
    return MeshError(f"{path}: its textures cannot be read ({reason}). Export it again with its pictures.")


@dataclass(frozen=True, eq=False)
class _Part:
    """Vertices of one material: places (N, 2) v down, linear tints (N, 3), and the picture, if there is one."""

    uvs: Floats
    tints: Floats
    texture: Texture | None = None

    @staticmethod
    def bare(count: int) -> _Part:
        return _Part(np.zeros((count, 2)), np.ones((count, 3)))


def _joined(parts: Sequence[_Part]) -> Skin | None:
    """One skin of all vertices; None where no part has a picture."""
    if all(part.texture is None for part in parts):
        return None
    textures: list[Texture] = []
    uvs, slots = [], []
    for part in parts:
        if part.texture is not None and part.texture not in textures:
            textures.append(part.texture)
        slots.append(np.full(len(part.uvs), -1 if part.texture is None else textures.index(part.texture), np.int32))
        uvs.append(part.uvs if part.texture is None else _near_zero(part.uvs, part.texture.wrap))
    tints = np.concatenate([part.tints for part in parts]).clip(0, 1).astype(np.float32)
    return Skin(np.concatenate(uvs).astype(np.float32), np.concatenate(slots), tints, tuple(textures))


def _near_zero(uvs: Floats, wrap: tuple[Wrap, Wrap]) -> Floats:
    """Places moved by whole repeats (even ones, for mirrors) so that float32 is fine enough far out, too."""
    repeats = np.array([rule != "clamp" for rule in wrap])
    if not np.isfinite(uvs).all():
        raise ValueError("texture coordinates are NaN or Inf")
    return uvs - repeats * 2 * np.floor(uvs.min(0) / 2) if len(uvs) else uvs


def _decoded(source: Path | bytes, name: str, largest_side: int) -> NDArray[np.uint8]:
    """A picture as (H, W, 3) uint8, no side longer than ``largest_side``; ValueError with its name if it is none."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            picture = image.convert("RGB")
    # What a decoder raises on damaged bytes is anything: OSError, SyntaxError, struct.error, a bomb error.
    except Exception as error:
        raise ValueError(f"{name} is no picture that can be decoded: {error}") from error
    scale = largest_side / max(picture.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BOX)
    return np.asarray(picture)


def _side_for(count: int, largest_side: int) -> int:
    """Longest side of each of ``count`` pictures so that all together stay within `_FULL_SIZE` of the largest."""
    return max(1, int(largest_side * min(1.0, math.sqrt(_FULL_SIZE / max(count, 1)))))


# glTF.


def _gltf_parts(path: Path, largest_side: int) -> list[_Part]:
    document, binary = read_container(path.read_bytes())
    used = {t["index"] for _, t in map(base_color, document.get("materials", [])) if t is not None}
    if not used:
        return []
    reader = _SkinReader(path, document, binary, _side_for(len(used), largest_side))
    reader.triangles()
    return reader.parts


class _SkinReader(GltfReader):
    """Walks the scene as `read_gltf` does and keeps, for each primitive, its place in pictures in ``parts``."""

    def __init__(self, path: Path, document: dict[str, Any], binary: bytes | None, largest_side: int) -> None:
        super().__init__(path, document, binary)
        self.largest_side = largest_side
        self.parts: list[_Part] = []
        self._pictures: dict[int, NDArray[np.uint8]] = {}
        self._textures: dict[tuple[int, tuple[Wrap, Wrap]], Texture] = {}

    def _colors(self, primitive: dict[str, Any], count: int) -> Floats:
        """Called once for each primitive; vertex colours are `read_gltf`'s business."""
        self.parts.append(self._part(primitive, count))
        return np.zeros((count, 3))

    def _part(self, primitive: dict[str, Any], count: int) -> _Part:
        attributes = primitive["attributes"]
        material = self.document["materials"][primitive["material"]] if "material" in primitive else {}
        factor, reference = base_color(material)
        if reference is None:
            return _Part.bare(count)
        moved = reference.get("extensions", {}).get("KHR_texture_transform", {})
        name = f"TEXCOORD_{moved.get('texCoord', reference.get('texCoord', 0))}"
        if name not in attributes:
            return _Part.bare(count)
        uvs = moved_uvs(self._accessor(attributes[name], width=(2,)), moved)
        tints = np.tile(np.asarray(factor or (1.0, 1.0, 1.0), np.float64)[:3], (count, 1))
        if "COLOR_0" in attributes:
            vertex = self._accessor(attributes["COLOR_0"], width=(3, 4))[:, :3].clip(0, 1)
            tints = tints * (linear_from_srgb(vertex) if self.color_is_srgb else vertex)
        if len(uvs) != count:
            raise ValueError(f"{name} has {len(uvs)} entries for {count} vertices")
        return _Part(uvs, tints, self._texture(self.document["textures"][reference["index"]]))

    def _texture(self, entry: dict[str, Any]) -> Texture:
        """The picture and wrapping of a texture; the same ones are the same object."""
        source = entry.get("source", entry.get("extensions", {}).get("EXT_texture_webp", {}).get("source"))
        if source is None:
            raise ValueError("a base colour texture has no image that is read here (PNG, JPEG, WebP)")
        sampler = self.document.get("samplers", [])[entry["sampler"]] if "sampler" in entry else {}
        wrap = _WRAPS[sampler.get("wrapS", 10497)], _WRAPS[sampler.get("wrapT", 10497)]
        if (source, wrap) not in self._textures:
            if source not in self._pictures:
                image = self.document["images"][source]
                data = self._view(image["bufferView"]) if "bufferView" in image else self._uri(image["uri"])
                self._pictures[source] = _decoded(data, f"image {source}", self.largest_side)
            self._textures[source, wrap] = Texture(self._pictures[source], wrap)
        return self._textures[source, wrap]


# OBJ and MTL.


@dataclass
class _ObjMaterial:
    """What an MTL file says of one material: sRGB Kd, the picture's file, and how places are moved (v up)."""

    kd: tuple[float, ...] = ()
    picture: str = ""
    wrap: Wrap = "repeat"
    scale: list[float] = field(default_factory=lambda: [1.0, 1.0])
    offset: list[float] = field(default_factory=lambda: [0.0, 0.0])


def _materials_of(path: Path) -> tuple[dict[str, _ObjMaterial], Path]:
    """What the OBJ's MTL says, and the folder it lies in; nothing where there is none, as for `read_mesh`."""
    library = re.search(rb"^[ \t]*mtllib[ \t]+(.+?)\s*$", path.read_bytes(), re.MULTILINE)
    mtl = path.parent / library[1].decode("utf-8", "replace").replace("\\", "/") if library else path
    return (_parsed_mtl(mtl.read_text("utf-8", "replace")) if library and mtl.is_file() else {}), mtl.parent


def _obj_parts(
    path: Path, folder: Path, materials: dict[str, _ObjMaterial], largest_side: int
) -> tuple[Triangles, list[_Part]]:
    """All triangles, and the places of their vertices, from what trimesh gives for each material."""
    import trimesh

    side = _side_for(sum(bool(m.picture) for m in materials.values()), largest_side)
    loaded = trimesh.load(str(path), process=False)  # seams are split only where it may order vertices anew
    scene = loaded if isinstance(loaded, trimesh.Scene) else trimesh.Scene(loaded)
    textures: dict[tuple[Path, Wrap], Texture] = {}
    shapes, parts = [], []
    for mesh in scene.geometry.values():
        if not isinstance(mesh, trimesh.Trimesh) or not len(mesh.faces):
            continue
        visual, count = mesh.visual, len(mesh.vertices)
        uvs = getattr(visual, "uv", None)
        material = materials.get(str(visual.material.name)) if visual.kind == "texture" else None
        if material is None or not material.picture or uvs is None or len(uvs) != count:
            shapes.append(colored_triangles(mesh))
            parts.append(_Part.bare(len(shapes[-1].vertices)))
            continue
        key = _picture_file(folder, material.picture), material.wrap
        if key not in textures:
            textures[key] = Texture(_decoded(key[0], str(key[0]), side), (material.wrap, material.wrap))
        shapes.append(Triangles(np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces), np.zeros((count, 3))))
        parts.append(_obj_part(np.asarray(uvs, np.float64)[:, :2], material, textures[key]))
    return Triangles.cat(shapes), parts


def _obj_part(uvs: Floats, material: _ObjMaterial, texture: Texture) -> _Part:
    """``uvs`` as the file has them, v up."""
    placed = uvs * material.scale + material.offset
    kd = np.array(material.kd if any(material.kd) else (1.0, 1.0, 1.0)).clip(0, 1)
    return _Part(np.stack([placed[:, 0], 1 - placed[:, 1]], 1), np.tile(linear_from_srgb(kd), (len(uvs), 1)), texture)


def _picture_file(folder: Path, name: str) -> Path:
    """Where the MTL file says, or under the same name beside it or in the folder that Gazebo's models keep theirs in.

    Many MTL files hold paths of the machine they were made on; those of Google Scanned Objects name the picture alone.
    """
    said = folder / name.replace("\\", "/")
    places = (said, folder / said.name, folder.parent / "materials" / "textures" / said.name)
    return next((place for place in places if place.is_file()), places[1])


def _parsed_mtl(text: str) -> dict[str, _ObjMaterial]:
    """Materials of an MTL file by name; statements other than Kd and map_Kd are passed over."""
    materials: dict[str, _ObjMaterial] = {}
    current = _ObjMaterial()
    for line in text.splitlines():
        word, _, rest = line.strip().replace("\t", " ").partition(" ")
        rest = rest.strip()
        if word.lower() == "newmtl":
            current = materials[" ".join(rest.split())] = _ObjMaterial()
        elif word.lower() == "kd":
            numbers = [float(part) for part in rest.split() if _is_number(part)]
            current.kd = tuple(numbers) if len(numbers) == 3 else ()
        elif word.lower() == "map_kd":
            _read_map(rest, current)
    return materials


def _read_map(rest: str, material: _ObjMaterial) -> None:
    """``-s 2 2 -clamp on bricks red.png``: the options, then a file name that may hold blanks."""
    words = rest.split()
    while words and words[0].lower() in _MAP_OPTIONS and len(words) > 1:
        option = words.pop(0).lower()
        values: list[str] = []
        while words[1:] and len(values) < _MAP_OPTIONS[option]:
            if option in ("-o", "-s", "-t") and not _is_number(words[0]):
                break
            values.append(words.pop(0))
        if option in ("-o", "-s"):
            target = material.offset if option == "-o" else material.scale
            target[: min(len(values), 2)] = [float(v) for v in values[:2]]
        elif option == "-clamp" and values == ["on"]:
            material.wrap = "clamp"
    material.picture = " ".join(words)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text) is not None
