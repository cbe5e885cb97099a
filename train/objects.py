"""Training objects: coloured triangle meshes in the world frame, centred, longest side 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class TrainingObject:
    """One object to learn from.

    Attributes:
        name: unique within its set.
        vertices: (N, 3) float32, world frame (z up), centred on the bounding box, longest side 1.
        faces: (F, 3) int32, counter-clockwise seen from outside.
        colors: (N, 3) uint8 sRGB.
    """

    name: str
    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray

    @property
    def extent(self) -> np.ndarray:
        """(3,) sides of the bounding box."""
        return self.vertices.max(0) - self.vertices.min(0)


def normalized(name: str, vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray) -> TrainingObject:
    """Centre on the bounding box and scale so that its longest side is 1."""
    low, high = vertices.min(0), vertices.max(0)
    side = max(float((high - low).max()), 1e-9)
    return TrainingObject(
        name, ((vertices - (low + high) / 2) / side).astype(np.float32), faces.astype(np.int32), colors
    )


def find_meshes(folder: str | Path) -> list[Path]:
    """All mesh files below ``folder``, sorted."""
    suffixes = {".glb", ".gltf", ".obj", ".ply", ".stl", ".off"}
    return sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in suffixes)


def load_object(path: str | Path) -> TrainingObject:
    """Read a mesh file as a training object.

    Raises:
        MeshError: as `lrm.meshfile.read_mesh`.
    """
    from lrm.meshfile import read_mesh

    mesh = read_mesh(path)
    return normalized(Path(path).stem, mesh.vertices, mesh.faces, np.round(mesh.colors * 255).astype(np.uint8))
