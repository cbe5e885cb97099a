"""The last steps of a lift's surface: whose colours it shows where, and whether in a texture or at its vertices.

::

    field ──► colours everywhere ──► carried over ──► mirrored ──► generated views ──► photographs
              (a blurred guess)       what the photo says about exposure and tone,     what was really seen
                                      fading with distance from what it sees

Each layer covers those before it as far as it is to be trusted. The same layers colour vertices and texels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lrm.bake import covered_texels, field_colors, snapped, texture_image
from lrm.field import Field
from lrm.mesh import Mesh
from lrm.projection import Projector, Refined, Sight, carried, joined, refine_camera, smooth_step
from lrm.raster import render_mesh
from lrm.symmetry import MirrorPlane, mirror_planes
from lrm.unwrap import TIME_LIMIT, Way, unwrap
from multiview.cameras import orbit
from multiview.views import Views

from .turntable import sheet, view_bytes

Floats = NDArray[np.floating[Any]]

CONFIDENCE = "confidence"  # the name of the vertex attribute
_SNAP = 0.006  # of the longest side: how far texels are moved onto the field's surface
_REACH = 0.25  # of the longest side: over which the photo's tone fades on what it does not see
_OVERALL = 0.5  # share of the photo's mean tone that remains far from all that it sees
_MIRROR_DIFFERENCE = (0.05, 0.12)  # colours apart on a mirror's two sides: all trust up to here, none from there
_LOCAL_DIFFERENCE = (0.10, 0.25)  # the same at one point, against what the field guesses there
_TWICE = 0.05  # share of the surface that the photos must show on both sides: nothing else can judge a mirror
_GENERATED_DIFFERENCE = (0.08, 0.25)  # the same for generated views against the field
_FULL_SIDE = 256  # pixels per side from which a generated view's details count fully
_PREVIEW = 320  # pixels per side of each picture of `confidence_sheet`
_SEEN, _SUPPORTED, _INVENTED = (0.13, 0.55, 0.33), (0.93, 0.69, 0.13), (0.62, 0.62, 0.66)


@dataclass(frozen=True)
class Pictures:
    """What there is to look at, in the mesh's world, on the CPU.

    Attributes:
        photo: the photograph, one view, or None where nobody knows from where it was taken.
        photos: photographs of other sides, or None.
        generated: views that a network made, or None.
    """

    photo: Views | None = None
    photos: Views | None = None
    generated: Views | None = None


@dataclass(frozen=True)
class TextureOptions:
    """How a surface is finished.

    Attributes:
        texture: ``vertex`` or ``baked``.
        size: texels per side.
        project: whether pictures are painted on.
        mirror: whether what is not seen may be filled from its mirror image; for objects that stand upright.
        way: how the surface is unwrapped, see `lrm.unwrap.unwrap`.
        time_limit: seconds for unwrapping.
    """

    texture: Literal["vertex", "baked"] = "vertex"
    size: int = 1024
    project: bool = False
    mirror: bool = True
    way: Way = "auto"
    time_limit: float = TIME_LIMIT


@dataclass(frozen=True, eq=False)
class Layers:
    """Colours of N points, and where they come from.

    Attributes:
        color: (N, 3) float32 sRGB in [0, 1].
        confidence: (N,) float32: above 0.5 seen in a photograph, 1 squarely so; up to 0.5 supported by generated
            views or a trusted mirror; 0 invented by the network.
    """

    color: NDArray[np.float32]
    confidence: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Mirror:
    """A plane that colours may be carried over, and how far it is trusted."""

    plane: MirrorPlane
    trust: float
    difference: float
    twice: float

    def told(self) -> dict[str, Any]:
        """As plain JSON values."""
        angle = float(np.rad2deg(np.arctan2(self.plane.normal[1], self.plane.normal[0]))) % 180
        return {
            "normal_azimuth_deg": round(angle, 2),
            "offset": round(self.plane.offset, 5),
            "error": round(self.plane.error, 5),
            "difference": round(self.difference, 4),
            "seen_twice": round(self.twice, 4),
            "trust": round(self.trust, 3),
        }


class SurfacePainter:
    """Pictures of a mesh, lined up with it once, and then asked for the colours of any points on it.

    Args:
        mesh: its colours are the field's.
        pictures: what there is.
        mirror: whether mirror planes are looked for.
    """

    def __init__(self, mesh: Mesh, pictures: Pictures, *, mirror: bool = True) -> None:
        self.mesh = mesh
        self.photos: list[Projector] = []
        self.generated: list[tuple[Projector, float]] = []
        self.refined: list[Refined] = []
        for views in (pictures.photo, pictures.photos):
            for index in range(0 if views is None else len(views)):
                self.photos.append(self._lined_up(views.select([index])))  # type: ignore[union-attr]
        for index in range(0 if pictures.generated is None else len(pictures.generated)):
            view = pictures.generated.select([index])  # type: ignore[union-attr]
            if float(view.alpha.amax()) > 0.5:
                self.generated.append((self._lined_up(view), min(1.0, min(view.image_size) / _FULL_SIDE)))
        self.mirrors: list[_Mirror] = []
        self.tone = self._tone()
        if mirror and self.photos:
            self.mirrors = [judged for plane in mirror_planes(mesh) if (judged := self._judged(plane)).trust > 0]
        if self.mirrors:
            self.tone = self._tone()  # now from what is mirrored, too, so that it blends in

    def _lined_up(self, view: Views) -> Projector:
        found = refine_camera(self.mesh, view)
        self.refined.append(found)
        return Projector(self.mesh, Views(view.images, view.alpha, found.camera))

    def _tone(self) -> NDArray[np.float32]:
        """(N, 3) what is added to the field's colours at the vertices so that they go on where the photos end."""
        vertices, normals = self.mesh.vertices, self.mesh.normals
        if not self.photos:
            return np.zeros((len(vertices), 3), np.float32)
        sight = self._sights(vertices, normals)
        weight, color = sight.weight, sight.color
        if self.mirrors:
            fill, support = self._filled(vertices, normals, np.clip(self.mesh.colors + self.tone, 0, 1))
            color, weight = _over(fill, color, weight), weight + (1 - weight) * support
        if not float(weight.max()) > 0:
            return np.zeros((len(vertices), 3), np.float32)
        apart = (color - self.mesh.colors) * (weight > 0)[:, None]
        rest = _OVERALL * np.average(apart, axis=0, weights=weight)
        return carried(self.mesh, apart, weight, reach=_REACH * float(self.mesh.extent.max()), rest=rest)

    def _filled(
        self, points: Floats, normals: Floats, guessed: Floats
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Colours (N, 3) of points from their mirror images, and how far (N,) they are supported by these."""
        color, support = np.asarray(guessed, np.float32), np.zeros(len(points), np.float32)
        for mirror in self.mirrors:
            sight = self._sights(mirror.plane.mirrored(points), mirror.plane.turned(normals))
            weight = mirror.trust * sight.weight * _agreeing(sight.soft, guessed, _LOCAL_DIFFERENCE)
            weight = weight * (1 - support)
            color, support = _over(color, sight.color, weight), support + weight
        return color, support

    def _judged(self, plane: MirrorPlane) -> _Mirror:
        """How alike the two sides of a plane are where the photos show both; without that it has no trust.

        What the field guesses on the hidden side is no judge: on training objects, mirrors that it alone approved of
        lost as often as they gained.
        """
        vertices, normals = self.mesh.vertices, self.mesh.normals
        own, other = self._sights(vertices, normals), self._sights(plane.mirrored(vertices), plane.turned(normals))
        both = own.weight * other.weight
        twice = float((both > 0.1).mean())
        if twice < _TWICE:
            return _Mirror(plane, 0.0, 1.0, twice)
        difference = float(np.average(np.abs(own.soft - other.soft).mean(1), weights=both))
        return _Mirror(plane, 1 - float(smooth_step(np.array(difference), *_MIRROR_DIFFERENCE)), difference, twice)

    def _sights(self, points: Floats, normals: Floats) -> Sight:
        """What the photographs together show of points."""
        sights = [photo(points, normals) for photo in self.photos]
        if len(sights) == 1:
            return sights[0]
        weight, color = joined(sights)
        soft = joined([replace(each, color=each.soft) for each in sights])[1]
        return Sight(weight, color, soft, np.logical_or.reduce([each.seen for each in sights]))

    def __call__(self, points: Floats, normals: Floats, base: Floats, tone: Floats) -> Layers:
        """Colours of points (N, 3) with normals (N, 3), the field's colours (N, 3) and the tone (N, 3) there."""
        guessed = np.clip(base + tone, 0, 1).astype(np.float32)
        color, support = self._filled(points, normals, guessed)
        for projector, share in self.generated:
            sight = projector(points, normals)
            weight = sight.weight * _agreeing(sight.soft, guessed, _GENERATED_DIFFERENCE)
            fresh = weight * (1 - support)
            color, support = _over(color, sight.color, share * fresh), support + fresh
        weight, seen = np.zeros(len(points), np.float32), np.zeros(len(points), np.bool_)
        if self.photos:
            sight = self._sights(points, normals)
            color, weight, seen = _over(color, sight.color, sight.weight), sight.weight, sight.seen
        # The least confidence of what is seen at all stays above that of what is not.
        confidence = np.where(seen, 0.5 + 0.5 * np.maximum(weight, 0.01), 0.5 * support.clip(0, 1))
        return Layers(color, confidence.astype(np.float32))

    def record(self) -> dict[str, Any]:
        """What was found, as plain JSON values."""
        cameras = [
            {
                "overlap_before": round(each.overlap_before, 4),
                "overlap": round(each.overlap, 4),
                "shift": [round(x, 5) for x in each.shift],
                "scale": round(each.scale, 5),
                "roll_deg": round(each.roll_deg, 3),
            }
            for each in self.refined
        ]
        return {"pictures": cameras, "mirrors": [mirror.told() for mirror in self.mirrors]}


def finished(
    mesh: Mesh, field: Field, pictures: Pictures, options: TextureOptions, *, threshold: float
) -> tuple[Mesh, dict[str, Any]]:
    """Give a mesh its last colours.

    Args:
        mesh: clean and, for a texture, decimated; its colours are the field's.
        field: what it was taken from.
        pictures: what there is to project.
        options: how.
        threshold: density of the surface.

    Returns:
        The mesh with colours at its vertices, with ``uvs`` and ``texture`` where one was asked for, and with the
        attribute `CONFIDENCE` where something was to be projected; and a record of plain JSON values.

    Raises:
        MeshError: more faces than the texture has room for.
    """
    used = pictures if options.project else Pictures()
    painter = SurfacePainter(mesh, used, mirror=options.mirror)
    layers = painter(mesh.vertices, mesh.normals, mesh.colors, painter.tone)
    colored, record = replace(mesh, colors=layers.color), painter.record()
    if options.project:
        colored = replace(colored, attributes={**(mesh.attributes or {}), CONFIDENCE: layers.confidence})
        record |= shares(colored)
    if options.texture == "vertex":
        return colored, record
    unwrapped = unwrap(mesh, options.size, way=options.way, time_limit=options.time_limit)
    texels = covered_texels(unwrapped, options.size)
    points, normals, tone = (texels.blend(values, mesh.faces) for values in (mesh.vertices, mesh.normals, painter.tone))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
    points = snapped(field, points, normals, threshold=threshold, reach=_SNAP * float(mesh.extent.max()))
    image = texture_image(texels, painter(points, normals, field_colors(field, points), tone).color)
    told = {"way": unwrapped.way, "size": options.size, "used": round(unwrapped.used, 4)}
    return unwrapped.apply(colored, image), {"unwrap": told, **record}


def shares(mesh: Mesh) -> dict[str, float]:
    """Shares of a surface by its confidence: ``seen_fraction``, ``supported_fraction``, ``invented_fraction``."""
    confidence = (mesh.attributes or {})[CONFIDENCE][mesh.faces].reshape(-1)  # each corner stands for a third
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).repeat(3)
    total = max(float(area.sum()), 1e-30)
    seen, supported = confidence > 0.5, (confidence > 0.1) & (confidence <= 0.5)
    found = {"seen": seen, "supported": supported, "invented": ~(seen | supported)}
    return {f"{name}_fraction": round(float(area[where].sum()) / total, 4) for name, where in found.items()}


def confidence_sheet(mesh: Mesh, size: int = _PREVIEW) -> NDArray[np.uint8]:
    """A picture (size, 3 * size, 3) of a mesh from the front, its right side and behind, coloured by confidence.

    Green was seen in a photograph, amber is supported by generated views or a mirror, grey is invented.
    """
    confidence = (mesh.attributes or {})[CONFIDENCE]
    colors = np.where((confidence > 0.5)[:, None], _SEEN, np.where((confidence > 0.1)[:, None], _SUPPORTED, _INVENTED))
    middle = mesh.bounds.mean(0)
    radius = float(np.linalg.norm(mesh.vertices - middle, axis=1).max())
    centred = Mesh(mesh.vertices - middle, mesh.faces, colors)
    cameras = orbit([0.0, 90.0, 180.0], 15.0, 5.2 * max(radius, 1e-6), 24.0)
    return sheet(view_bytes(render_mesh(centred, cameras, size, shading=True), 1.0), 3)


def photo_view(rgba: torch.Tensor, camera: Any) -> Views:
    """A cut-out (4, S, S) straight RGBA as one view."""
    return Views(rgba[None, :3].cpu(), rgba[None, 3:].cpu(), camera.to("cpu"))


def _agreeing(shown: Floats, guessed: Floats, difference: tuple[float, float]) -> NDArray[np.float32]:
    """(N,) 1 where colours are alike, 0 where they are not."""
    return (1 - smooth_step(np.abs(shown - guessed).mean(1), *difference)).astype(np.float32)


def _over(color: Floats, layer: Floats, weight: Floats) -> NDArray[np.float32]:
    """``layer`` over ``color`` (N, 3) by ``weight`` (N,)."""
    return (color + weight[:, None] * (layer - color)).astype(np.float32)
