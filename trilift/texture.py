"""The last steps of a lift's surface: whose colours it shows where, and whether in a texture or at its vertices.

::

    field ──► colours everywhere ──► carried over ──► evened ──► mirrored ──► generated views ──► photographs
              (a blurred guess)       what the photo says       ╰ where sides are alike ╯         what was really seen
                                      about exposure and tone,    the same guess on both sides, and
                                      fading with distance        what the photo shows of one of them

Each layer covers those before it as far as it is to be trusted. The same layers colour vertices and texels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lrm.bake import covered_texels, field_colors, snapped, texture_image
from lrm.cells import Cells
from lrm.field import Field
from lrm.mesh import Mesh
from lrm.projection import (
    Projector,
    Refined,
    Sight,
    carried,
    carried_roughly,
    joined,
    refine_camera,
    smooth_step,
    vertex_areas,
)
from lrm.raster import rasterize, render_mesh
from lrm.symmetry import MirrorPlane, angle_between, mirror_planes
from lrm.unwrap import TIME_LIMIT, Way, unwrap
from multiview.cameras import Cameras, orbit
from multiview.views import Views

from .turntable import sheet, view_bytes

Floats = NDArray[np.floating[Any]]

CONFIDENCE = "confidence"  # the name of the vertex attribute
_SNAP = 0.006  # of the longest side: how far texels are moved onto the field's surface
_REACH = 0.25  # of the longest side: over which the photo's tone fades on what it does not see
_OVERALL = 0.5  # share of the photo's mean tone that remains far from all that it sees
_MIRROR_DIFFERENCE = (0.03, 0.08)  # colours apart on a mirror's two sides: all trust up to here, none from there
_LOCAL_DIFFERENCE = (0.10, 0.25)  # the same at one point, against what the field guesses there
_TWICE = 0.05  # share of the surface that the photos must show on both sides to judge a mirror by themselves
# The same to have guesses evened by it: the mean of two guesses of what is alike is off by less than they are. This,
# its error, who vouches and what must be filled were set by 84 training objects, 50 symmetric (benchmarks/texture.py).
_TWICE_TO_EVEN = 0.02
_EVENS_ERROR = (0.015, 0.025)  # of the longest side: evened fully where sides are no further apart, not at all there
_TOLD = 0.01  # share from which what they show on both sides counts against a mirror
# Where a mirror would fill: colours apart from what the field guesses there. A mirror that the photos judged may differ
# more from that blurred guess than one that has no other judge. Set by 29 training objects (benchmarks/texture.py).
_JUDGED_GUESS = (0.045, 0.08)
_UNJUDGED_GUESS = (0.024, 0.032)
_ACROSS_DEG = 60.0  # from which angle on a mirror vouches for another: what is alike left and right is seldom cut open
_VOUCHES_ERROR = 0.015  # of the longest side: a mirror whose sides are further apart vouches for none
_FILLS = 0.03  # share of the surface that a mirror must show for the first time: less hardly shows, and shifts the tone
_MIRROR_ERROR = 0.035  # of the longest side: how far mirrored surfaces may be apart in the mean
_CELLS = 64  # along the longest side, in which tones are judged roughly, and guesses evened
_GENERATED_DIFFERENCE = (0.08, 0.25)  # the same for generated views against the field
_FULL_SIDE = 256  # pixels per side from which a generated view's details count fully
_PREVIEW = 256  # pixels per side of each picture of `confidence_sheet`
_PREVIEW_CELLS = 96  # along the longest side
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
    """A plane that colours may be carried over.

    Attributes:
        plane: where it lies.
        trust: how far what the photos show of one side is painted on the other, 0 to 1.
        difference: colours apart where the photos show both sides; None where they hardly do.
        off_guess: colours that it would paint, apart from what the field guesses there.
        twice, fills: shares of the surface that the photos show on both sides, and for the first time by it.
        evens: how far guesses of what is not seen are made alike on both sides, 0 to 1.
    """

    plane: MirrorPlane
    trust: float
    difference: float | None
    off_guess: float
    twice: float
    fills: float
    evens: float = 0.0

    @property
    def by_photos(self) -> float:
        """1 where the photos find both sides alike or say nothing, 0 where they find them different."""
        return 1.0 if self.difference is None else _falling(self.difference, *_MIRROR_DIFFERENCE)

    @property
    def vouches(self) -> bool:
        """Whether the photos find its two sides alike, and it fits well enough to speak for a mirror across."""
        return self.twice >= _TWICE and self.by_photos > 0.5 and self.plane.error <= _VOUCHES_ERROR

    def told(self) -> dict[str, Any]:
        """As plain JSON values."""
        angle = float(np.rad2deg(np.arctan2(self.plane.normal[1], self.plane.normal[0]))) % 180
        return {
            "normal_azimuth_deg": round(angle, 2),
            "offset": round(self.plane.offset, 5),
            "error": round(self.plane.error, 5),
            "difference": None if self.difference is None else round(self.difference, 4),
            "off_guess": round(self.off_guess, 4),
            "seen_twice": round(self.twice, 4),
            "trust": round(self.trust, 3),
            "evens": round(self.evens, 3),
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
        self._known: dict[MirrorPlane | None, Sight] = {}
        self.tone = np.zeros((len(mesh.vertices), 3), np.float32)
        planes = mirror_planes(mesh, good=_MIRROR_ERROR) if mirror and self.photos else []
        if planes:
            cells = Cells(mesh.vertices, _CELLS)
            self.tone = self._tone(cells)
            self.mirrors = self._judged(planes)
            self.tone = self._tone()  # now from what is mirrored, too, so that it blends in
            self.tone += self._evened(cells)
        elif self.photos:
            self.tone = self._tone()

    def _lined_up(self, view: Views) -> Projector:
        drawn = rasterize(self.mesh, view.cameras, *view.image_size)
        found = refine_camera(self.mesh, view, drawn)
        self.refined.append(found)
        kept = drawn if found.camera is view.cameras else None
        return Projector(self.mesh, Views(view.images, view.alpha, found.camera), kept)

    def _tone(self, cells: Cells | None = None) -> NDArray[np.float32]:
        """(N, 3) what is added to the field's colours at the vertices so that they go on where the photos end.

        With ``cells`` one answer for all vertices of each, for judging by.
        """
        vertices, normals = self.mesh.vertices, self.mesh.normals
        sight = self._shown(vertices, normals)
        weight, color = sight.weight, sight.color
        if self.mirrors:
            fill, support = self._filled(vertices, normals, np.clip(self.mesh.colors + self.tone, 0, 1))
            color, weight = _over(fill, color, weight), weight + (1 - weight) * support
        if not float(weight.max()) > 0:
            return np.zeros((len(vertices), 3), np.float32)
        apart = (color - self.mesh.colors) * (weight > 0)[:, None]
        rest = _OVERALL * np.average(apart, axis=0, weights=weight)
        reach = _REACH * self._side
        if cells is not None:
            return carried_roughly(self.mesh, cells, apart, weight, reach=reach, rest=rest, areas=self._areas)
        return carried(self.mesh, apart, weight, reach=reach, rest=rest, areas=self._areas)

    @cached_property
    def _side(self) -> float:
        """Longest side of the mesh."""
        return float(self.mesh.extent.max())

    @cached_property
    def _areas(self) -> NDArray[np.float64]:
        """(N,) of the vertices."""
        return vertex_areas(self.mesh)

    def _evened(self, cells: Cells) -> NDArray[np.float32]:
        """(N, 3) what makes the guesses at the vertices that no photo shows more alike on both sides of mirrors.

        The mean of the guesses of a place and of its mirror images, where these do not differ by much.
        """
        planes = [each for each in self.mirrors if each.evens > 0]
        change = np.zeros((len(self.mesh.vertices), 3), np.float32)
        if not planes:
            return change
        guessed = np.clip(self.mesh.colors + self.tone, 0, 1)
        share = 1 - self._shown(self.mesh.vertices, self.mesh.normals).weight
        share *= 1 - self._filled(self.mesh.vertices, self.mesh.normals, guessed)[1].clip(0, 1)
        hidden = np.flatnonzero(share > 0)
        places, means = self.mesh.vertices[hidden].astype(np.float64), cells.means(guessed)
        own, total = cells.blended(means, places), np.ones(len(hidden), np.float32)
        for mirror in planes:
            other = cells.blended(means, mirror.plane.mirrored(places))
            weight = mirror.evens * _agreeing(other, own, _LOCAL_DIFFERENCE)
            change[hidden] += weight[:, None] * (other - own)
            total += weight
        change[hidden] *= (share[hidden] / total)[:, None]
        return change

    def _filled(
        self, points: Floats, normals: Floats, guessed: Floats
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Colours (N, 3) of points from their mirror images, and how far (N,) they are supported by these."""
        color, support = np.asarray(guessed, np.float32), np.zeros(len(points), np.float32)
        for mirror in (each for each in self.mirrors if each.trust > 0):
            sight = self._shown(points, normals, mirror.plane)
            weight = mirror.trust * sight.weight * _agreeing(sight.soft, guessed, _LOCAL_DIFFERENCE)
            weight = weight * (1 - support)
            # Without details: a lift's two sides are never quite alike, and what is a little off would be seen twice.
            color, support = _over(color, sight.soft, weight), support + weight
        return color, support

    def _judged(self, planes: Sequence[MirrorPlane]) -> list[_Mirror]:
        """The planes that are trusted: by how alike their sides are where the photos show both, and by the field.

        Where the photos show too little of both sides, as with a mirror between front and back, the field's guess
        decides, and more strictly: it is blurred, and a wrong mirror may well be near it. A mirror of which they show
        nothing on both sides must be vouched for by another across: lifts are often more alike in front and behind than
        their objects.
        """
        looked = [self._looked_at(plane) for plane in planes]
        good = [each.plane for each in looked if each.vouches]
        trusted = []
        for each in looked:
            near = _JUDGED_GUESS if each.twice >= _TWICE else _UNJUDGED_GUESS
            alone = each.difference is None and all(angle_between(each.plane, other) < _ACROSS_DEG for other in good)
            trust = each.by_photos * _falling(each.off_guess, *near) * (each.fills >= _FILLS) * (not alone)
            evens = each.by_photos * _falling(each.plane.error, *_EVENS_ERROR)
            evens *= each.difference is not None and each.twice >= _TWICE_TO_EVEN
            trusted += [replace(each, trust=trust, evens=evens)] if trust > 0 or evens > 0 else []
        return trusted

    def _looked_at(self, plane: MirrorPlane) -> _Mirror:
        """What pictures and field say of a plane; not yet how far it is trusted."""
        vertices, normals = self.mesh.vertices, self.mesh.normals
        own, other = self._shown(vertices, normals), self._shown(vertices, normals, plane)
        both, fresh = own.weight * other.weight, other.weight * (1 - own.weight)
        twice, fills = float((both > 0.1).mean()), float(fresh.mean())
        difference, off_guess = None, 1.0
        if twice >= _TOLD:
            difference = float(np.average(np.abs(own.soft - other.soft).mean(1), weights=both))
        if fills > 0:
            guessed = np.clip(self.mesh.colors + self.tone, 0, 1)
            off_guess = float(np.average(np.abs(other.soft - guessed).mean(1), weights=fresh))
        return _Mirror(plane, 0.0, difference, off_guess, twice, fills)

    def _shown(self, points: Floats, normals: Floats, plane: MirrorPlane | None = None) -> Sight:
        """What the photographs show of points, or of their mirror images; of the vertices it is worked out once."""
        if points is not self.mesh.vertices:
            return self._sights(points, normals, plane)
        if plane not in self._known:
            self._known[plane] = self._sights(points, normals, plane)
        return self._known[plane]

    def _sights(self, points: Floats, normals: Floats, plane: MirrorPlane | None) -> Sight:
        """What the photographs together show of points, or of their mirror images."""
        if plane is not None:
            points, normals = plane.mirrored(points), plane.turned(normals)
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
            sight = self._shown(points, normals)
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
    from .preview import coarse

    confidence = (mesh.attributes or {})[CONFIDENCE]
    grey = np.repeat(confidence[:, None], 3, 1).astype(np.float32)
    # Joined in cells it looks the same at this size, for half of the time.
    mesh = coarse(Mesh(vertices=mesh.vertices, faces=mesh.faces, colors=grey), _PREVIEW_CELLS)
    confidence = mesh.colors[:, 0]
    colors = np.where((confidence > 0.5)[:, None], _SEEN, np.where((confidence > 0.1)[:, None], _SUPPORTED, _INVENTED))
    middle = mesh.bounds.mean(0)
    radius = float(np.linalg.norm(mesh.vertices - middle, axis=1).max())
    around = orbit([0.0, 90.0, 180.0], 15.0, 5.2 * max(radius, 1e-6), 24.0)
    c2w = around.c2w.clone()
    c2w[:, :3, 3] += c2w.new_tensor(middle)
    seen = render_mesh(mesh, Cameras(c2w, around.intrinsics), size, shading=True, colors=colors)
    return sheet(view_bytes(seen, 1.0), 3)


def photo_view(rgba: torch.Tensor, camera: Any) -> Views:
    """A cut-out (4, S, S) straight RGBA as one view."""
    return Views(rgba[None, :3].cpu(), rgba[None, 3:].cpu(), camera.to("cpu"))


def _falling(value: float, low: float, high: float) -> float:
    """1 up to ``low``, 0 from ``high`` on."""
    return 1 - float(smooth_step(np.array(value), low, high))


def _agreeing(shown: Floats, guessed: Floats, difference: tuple[float, float]) -> NDArray[np.float32]:
    """(N,) 1 where colours are alike, 0 where they are not."""
    return (1 - smooth_step(np.abs(shown - guessed).mean(1), *difference)).astype(np.float32)


def _over(color: Floats, layer: Floats, weight: Floats) -> NDArray[np.float32]:
    """``layer`` over ``color`` (N, 3) by ``weight`` (N,)."""
    return (color + weight[:, None] * (layer - color)).astype(np.float32)
