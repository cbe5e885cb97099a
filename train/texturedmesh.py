"""Meshes with their textures: reading them from files, and drawing them as `lrm.raster.render_mesh` draws colours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from lrm.gltf import Triangles
from lrm.mesh import Mesh
from lrm.meshfile import read_mesh
from lrm.raster import rasterize, render_mesh
from multiview.cameras import Cameras, world_from_gltf
from multiview.errors import MeshError
from multiview.views import Views

from .skinfile import LARGEST_SIDE, read_gltf_skin, read_obj_skin
from .textures import Skin, SkinPainter, sample_area


@dataclass(frozen=True, eq=False)
class TexturedMesh(Mesh):
    """A mesh of a file whose surface shows pictures; moving it keeps them.

    Attributes:
        skin: where its vertices lie in which pictures; ``colors`` are what these show at the vertices.
    """

    skin: Skin | None = None


def read_textured(path: str | Path, largest_side: int = LARGEST_SIDE) -> Mesh:
    """`read_mesh`, and the pictures of a glTF or an OBJ that has some: then a `TexturedMesh`, else a plain `Mesh`.

    Args:
        path: one of `lrm.meshfile.READABLE`, by suffix.
        largest_side: pixels; larger pictures are shrunk.

    Raises:
        MeshError: as `lrm.meshfile.read_mesh`, and a picture that is missing or broken; the message names the file.
    """
    path = Path(path)
    if path.suffix.lower() == ".obj" and path.is_file():
        found = read_obj_skin(path, largest_side)
        if found is not None:
            return _obj_mesh(path, *found)
    mesh = read_mesh(path)
    skin = read_gltf_skin(path, len(mesh.vertices), largest_side) if path.suffix.lower() in (".glb", ".gltf") else None
    return mesh if skin is None else TexturedMesh(mesh.vertices, mesh.faces, mesh.colors, skin=skin)


def _obj_mesh(path: Path, triangles: Triangles, skin: Skin) -> TexturedMesh:
    """From file axes into the world frame, and checked."""
    vertices = world_from_gltf(torch.from_numpy(triangles.vertices)).numpy()
    try:
        return TexturedMesh(vertices, triangles.faces, triangles.colors, skin=skin)
    except MeshError as error:
        raise MeshError(f"{path}: {error}") from error


def skin_of(mesh: Mesh) -> Skin | None:
    """The pictures of a mesh, if it has some."""
    return mesh.skin if isinstance(mesh, TexturedMesh) else None


def only_used(mesh: Mesh) -> Mesh:
    """The mesh without the vertices that no face uses."""
    used, faces = np.unique(mesh.faces, return_inverse=True)
    bare = Mesh(mesh.vertices[used], faces.reshape(-1, 3), mesh.colors[used])
    skin = skin_of(mesh)
    return bare if skin is None else TexturedMesh(bare.vertices, bare.faces, bare.colors, skin=skin.select(used))


def render_textured(mesh: Mesh, cameras: Cameras, size: int, *, shading: bool = False, supersample: int = 2) -> Views:
    """Draw a mesh as `lrm.raster.render_mesh` does, with its pictures where it has some.

    Args, returns and errors are those of `render_mesh`; a mesh without pictures gives its very numbers.
    """
    skin = skin_of(mesh)
    if skin is None:
        return render_mesh(mesh, cameras, size, shading=shading, supersample=supersample)
    painter = SkinPainter(skin, mesh.vertices, mesh.faces)
    samples = [_samples(mesh, painter, cameras.select([i]), size * supersample, shading) for i in range(len(cameras))]
    alpha = torch.cat([alpha for _, alpha in samples])
    shown = avg_pool2d(torch.cat([image for image, _ in samples]) * alpha, supersample)
    matte = avg_pool2d(alpha, supersample)
    return Views(torch.where(matte > 0, shown / matte.clamp(min=1e-12), 0).clamp(0, 1), matte, cameras)


def _samples(mesh: Mesh, painter: SkinPainter, camera: Cameras, side: int, shading: bool) -> tuple[Tensor, Tensor]:
    """Colour (1, 3, side, side) and alpha (1, 1, side, side) of each sample of one camera."""
    plain = render_mesh(mesh, camera, side, supersample=1)
    fragments = rasterize(mesh, camera, side, side)
    hit = fragments.face >= 0
    face, weights = fragments.face[hit], fragments.weights[hit]
    corners = mesh.vertices[mesh.faces[face]].astype(np.float64)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    depth = torch.from_numpy(fragments.depth[hit])
    eye = camera.c2w[0, :3, 3].double().numpy()
    rays = ((corners * weights[..., None]).sum(1) - eye) / depth[:, None].numpy()
    focal = camera.intrinsics[0].double()
    area = sample_area(1 / (focal[0, 0] * focal[1, 1] * side**2), depth, torch.from_numpy((normal * rays).sum(1)))
    colors = plain.images[0].permute(1, 2, 0)
    seen = torch.from_numpy(hit)
    painted = painter.paint(colors[seen] * 255, torch.from_numpy(face), torch.from_numpy(weights), area) / 255
    if shading:  # a white mesh shows how bright the light is
        white = replace(mesh, colors=np.ones_like(mesh.colors))
        painted = (
            painted * render_mesh(white, camera, side, shading=True, supersample=1).images[0].permute(1, 2, 0)[seen]
        )
    colors = colors.clone()
    colors[seen] = painted
    return colors.permute(2, 0, 1)[None], plain.alpha
