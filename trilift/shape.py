"""The order of the steps between the surface of a field and the mesh that is coloured and written.

::

    extract_mesh ──► smoothed ──► remeshed ──► decimated ──► repaired
                     --smooth     --remesh     --faces       --watertight
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from lrm.field import Field
from lrm.mesh import Mesh
from multiview.errors import MeshError

from .settings import LiftSettings

_COLOR_CHUNK = 1 << 16
# How fast the error that an edge may cost grows from pass to pass, the gentlest first; others where it does not get
# down to the faces asked for. On lifts at 20,000 faces 3 leaves a third of the largest distance that the usual 7 does.
_HASTES = (3, 5, 7)
_REMESH_TRIES = 4  # to stay within the triangles asked for, which ways of remeshing hit roughly

OnStep = Callable[[str], AbstractContextManager[None]]


def shaped(
    mesh: Mesh, field: Field, settings: LiftSettings, *, stage: OnStep | None = None
) -> tuple[Mesh, tuple[str, ...]]:
    """Give a mesh the topology that ``settings`` ask for, before it gets a texture.

    Args:
        mesh: of the field, with vertex colours, closed.
        field: what it was taken from; moved and new vertices ask it for their colours.
        settings: ``smooth``, ``remesh``, ``face_budget`` and ``watertight``.
        stage: told the name of each step that is taken; `trilift.progress.Stopwatch.stage` does.

    Returns:
        The mesh, and sentences on what was mended. With default settings it is the mesh itself.

    Raises:
        MeshError: nothing is left, or the mesh cannot be made a solid.
        SettingsError: a package that a step needs is not installed.
    """
    step = stage or (lambda name: nullcontext())
    notes: tuple[str, ...] = ()
    started = mesh
    if settings.smooth:
        with step("smooth"):
            from lrm.smooth import smoothed

            mesh = smoothed(mesh, settings.smooth)
    if settings.remesh != "off":
        with step("remesh"):
            mesh = _remeshed(mesh, settings)
    budget = settings.face_budget
    if budget is not None and len(mesh.faces) > budget and settings.remesh != "quads":  # which it would tear apart
        with step("simplify"):
            mesh = decimated(mesh, budget)
    if settings.watertight:
        with step("repair"):
            from lrm.topology import repaired

            mesh, told = repaired(mesh)
            notes = tuple(f"The mesh was {sentence}." for sentence in told)
    return (mesh if mesh is started else recolored(mesh, field)), notes


def _remeshed(mesh: Mesh, settings: LiftSettings) -> Mesh:
    """By triangles of even size, or pairs of them; as many as are asked for, or as there were."""
    from lrm.remesh import isotropic, quads

    way, count = (quads if settings.remesh == "quads" else isotropic), settings.face_budget or len(mesh.faces)
    made, wanted = way(mesh, count), count
    for _ in range(_REMESH_TRIES):
        if settings.face_budget is None or len(made.faces) <= count:
            break
        wanted = max(int(0.97 * wanted * count / len(made.faces)), 4)
        made = way(mesh, wanted)
    return made


def decimated(mesh: Mesh, faces: int, *, colors_from: Mesh | None = None) -> Mesh:
    """Reduce a mesh to at most ``faces`` triangles by quadric decimation.

    Args:
        mesh: any, in the world frame; vertices at one place (a texture's seams) are joined, its texture is not kept.
        faces: triangles wanted, at least 4.
        colors_from: the mesh on which the new vertices look up their colours; ``mesh`` unless given.

    Raises:
        MeshError: nothing is left at so few triangles.
    """
    import fast_simplification

    from lrm.nearest import NearestOnMesh
    from lrm.pieces import welded

    places, of_vertex = welded(mesh.vertices)
    given = np.ascontiguousarray(places, np.float32), np.ascontiguousarray(of_vertex[mesh.faces], np.int32)
    for haste in _HASTES:
        vertices, triangles = fast_simplification.simplify(*given, target_count=min(faces, len(mesh.faces)), agg=haste)
        if len(triangles) <= faces:
            break
    if len(triangles) == 0:
        raise MeshError(f"faces={faces}: nothing is left of {len(mesh.faces)} triangles. Ask for more faces.")
    look = NearestOnMesh(mesh if colors_from is None else colors_from)
    colors = look.colors(look(np.asarray(vertices, np.float64)))
    return Mesh(np.asarray(vertices, np.float32), np.asarray(triangles, np.int32), np.clip(colors, 0, 1))


def textured_like(mesh: Mesh, source: Mesh, size: int) -> Mesh:
    """Unwrap a mesh and paint on it what another one, of nearly the same surface, shows.

    Args:
        mesh: without a texture, such as a level of detail of ``source``.
        source: looked at for every texel at the place nearest to it, its texture where it has one.
        size: texels per side, 16 to 8192.

    Raises:
        MeshError: more faces than the texture has room for.
    """
    from lrm.bake import covered_texels, texture_image
    from lrm.nearest import NearestOnMesh
    from lrm.unwrap import unwrap

    unwrapped = unwrap(mesh, size)
    texels = covered_texels(unwrapped, size)
    look = NearestOnMesh(source)
    colors = look.colors(look(texels.blend(mesh.vertices, mesh.faces).astype(np.float64)))
    return unwrapped.apply(mesh, texture_image(texels, colors))


def recolored(mesh: Mesh, field: Field) -> Mesh:
    """The mesh with the field's colours at its vertices, without a texture."""
    points = torch.as_tensor(mesh.vertices, dtype=torch.float32, device=field.device)
    with torch.no_grad():
        colors = torch.cat([field.color(chunk) for chunk in points.split(_COLOR_CHUNK)]).clamp(0, 1)
    return Mesh(mesh.vertices, mesh.faces, colors.cpu().numpy().astype(np.float32))
