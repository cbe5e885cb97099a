"""Training objects: coloured or textured triangle meshes in the world frame, centred, longest side 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .textures import Skin


@dataclass(frozen=True)
class TrainingObject:
    """One object to learn from.

    Attributes:
        name: unique within its set.
        vertices: (N, 3) float32, world frame (z up), centred on the bounding box, longest side 1.
        faces: (F, 3) int32, counter-clockwise seen from outside.
        colors: (N, 3) uint8 sRGB; where a face has a picture, what that shows at its corners.
        skin: the pictures that faces show, if some do.
    """

    name: str
    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray
    skin: Skin | None = None

    @property
    def extent(self) -> np.ndarray:
        """(3,) sides of the bounding box."""
        return self.vertices.max(0) - self.vertices.min(0)


def normalized(
    name: str, vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray, skin: Skin | None = None
) -> TrainingObject:
    """Centre on the bounding box and scale so that its longest side is 1."""
    low, high = vertices.min(0), vertices.max(0)
    side = max(float((high - low).max()), 1e-9)
    return TrainingObject(
        name, ((vertices - (low + high) / 2) / side).astype(np.float32), faces.astype(np.int32), colors, skin
    )


def find_meshes(folder: str | Path) -> list[Path]:
    """All mesh files below ``folder``, sorted."""
    suffixes = {".glb", ".gltf", ".obj", ".ply", ".stl", ".off"}
    return sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in suffixes)


def load_object(path: str | Path) -> TrainingObject:
    """Read a mesh file as a training object, with the base colour pictures of a glTF or an OBJ.

    Vertices that no face uses are left out: they would make the object's box, and with it every picture, too wide.

    Raises:
        MeshError: as `train.texturedmesh.read_textured`; also for a picture that is missing or broken.
    """
    from .texturedmesh import only_used, read_textured, skin_of

    mesh = only_used(read_textured(path))
    colors = np.round(mesh.colors * 255).astype(np.uint8)
    return normalized(Path(path).stem, mesh.vertices, mesh.faces, colors, skin_of(mesh))
