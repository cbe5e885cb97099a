"""Trivial answers to "what is the object in this picture?", which a model must beat.

All see what the model sees, a picture with its matte, and nothing of the truth; their constants are fitted on training
objects. Each is a mesh in the world frame as if the picture were taken from +x without perspective:

* ``ellipsoid``: as wide and tall as the silhouette's box, ``ellipsoid_depth`` deep;
* ``extrusion``: the silhouette, ``extrusion_depth`` deep;
* ``mean_shape``: where most training objects are solid, stretched to the silhouette's box, ``mean_shape_depth`` deep;
* ``retrieval``: the training object with the nearest silhouette, turned the same way.

Depths are in longest sides of the silhouette's box, which measures 2 here. The first three take the picture's colours,
the last has its own.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrm.mesh import Mesh
from lrm.metrics import Bools, Floats
from multiview.cameras import yaw_rotation
from multiview.errors import ImageError, SettingsError

TRIVIAL_ANSWERS = ("ellipsoid", "extrusion", "mean_shape", "retrieval")
DEPTHS = tuple(round(0.05 * step, 2) for step in range(1, 21))  # tried for ellipsoid and extrusion
MEAN_SHAPE_DEPTHS = tuple(round(0.1 * step, 1) for step in range(2, 11))
MEAN_SHAPE_LEVELS = (0.2, 0.3, 0.4, 0.5, 0.6)
RETRIEVAL_AZIMUTHS = tuple(range(0, 360, 30))
RETRIEVAL_ELEVATIONS = (0, 15, 30)
RETRIEVAL_SIZE = 32  # pixels per side of the silhouettes compared
_OUTLINE_SIZE = 64  # pixels per side of the silhouette that is extruded; its outline is finer than that

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Silhouette:
    """What a trivial answer sees, on the plane through the origin that faces the picture.

    Attributes:
        picture: (S, S, 4) uint8, straight-alpha sRGB.
        center: (x, y) px of the middle of the box of alpha > 0.5.
        extent: (width, height) of that box; its longest side is 2.
        pixel: side of a pixel in the same units.
    """

    picture: Bytes
    center: tuple[float, float]
    extent: tuple[float, float]
    pixel: float

    @classmethod
    def of(cls, picture: Bytes) -> Silhouette:
        """Measure a picture.

        Raises:
            ImageError: not (S, S, 4) of uint8, or nothing in it has alpha > 0.5.
        """
        if picture.ndim != 3 or picture.shape[0] != picture.shape[1] or picture.shape[2] != 4:
            raise ImageError(f"a silhouette wants a picture (S, S, 4) of uint8, found {picture.shape}.")
        rows, columns = np.nonzero(picture[..., 3] > 127)
        if not len(rows):
            raise ImageError(f"a silhouette wants some alpha above 0.5, found none in {picture.shape[:2]} pixels.")
        left, right, top, bottom = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
        pixel = 2 / float(max(right - left, bottom - top))
        center = (float(left + right) / 2, float(top + bottom) / 2)
        return cls(picture, center, (float(right - left) * pixel, float(bottom - top) * pixel), pixel)

    def pixels(self, points: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns (N,) of the pixels that world points (N, 3) fall on; the border's beyond the picture."""
        size = self.picture.shape[0]
        columns = np.floor(self.center[0] + points[:, 1] / self.pixel).astype(np.int64)
        rows = np.floor(self.center[1] - points[:, 2] / self.pixel).astype(np.int64)
        return rows.clip(0, size - 1), columns.clip(0, size - 1)

    def covers(self, points: Floats) -> Bools:
        """Whether alpha is above 0.5 where world points (N, 3) fall: (N,)."""
        rows, columns = self.pixels(points)
        seen: Bools = self.picture[rows, columns, 3] > 127
        return seen

    def colors(self, points: Floats) -> Floats:
        """(N, 3) sRGB in [0, 1] of the picture where world points (N, 3) fall, of the nearest opaque pixel else."""
        from scipy.ndimage import distance_transform_edt

        clear = self.picture[..., 3] <= 127
        nearest = distance_transform_edt(clear, return_distances=False, return_indices=True)
        rows, columns = self.pixels(points)
        found: Floats = self.picture[nearest[0][rows, columns], nearest[1][rows, columns], :3] / 255
        return found

    def small_alpha(self, size: int) -> Floats:
        """(size, size) alpha in [0, 1], averaged; ``size`` divides the picture's side.

        Raises:
            ImageError: it does not.
        """
        side = self.picture.shape[0]
        if side % size:
            raise ImageError(f"a silhouette of {size} px wants a picture of a multiple of that, found {side} px.")
        blocks = self.picture[..., 3].reshape(size, side // size, size, side // size)
        return blocks.mean((1, 3), dtype=np.float64) / 255


@dataclass(frozen=True, eq=False)
class Constants:
    """What the trivial answers know, fitted by the best mean IoU over training objects.

    Attributes:
        objects: how many.
        ellipsoid_depth, extrusion_depth, mean_shape_depth: in longest sides of the silhouette's box, at most 1.
        mean_shape_level: share of the training objects that are solid where the mean shape is.
        mean_shape: (M, M, M) float32 over x, y, z of each object's own box: share that is solid.
        ellipsoid_iou, extrusion_iou, mean_shape_iou: mean IoU on the training objects.
    """

    objects: int
    ellipsoid_depth: float
    extrusion_depth: float
    mean_shape_depth: float
    mean_shape_level: float
    mean_shape: NDArray[np.float32]
    ellipsoid_iou: float
    extrusion_iou: float
    mean_shape_iou: float

    def as_json(self) -> dict[str, Any]:
        """JSON values; the mean shape as compressed bytes, 255 for 1."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        packed = zlib.compress(np.rint(self.mean_shape * 255).astype(np.uint8).tobytes(), 9)
        return values | {"mean_shape": base64.b64encode(packed).decode("ascii")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Constants:
        """The inverse of `as_json`, but for rounding of the mean shape to 1 / 255.

        Raises:
            SettingsError: keys or sizes are wrong.
        """
        try:
            levels = np.frombuffer(zlib.decompress(base64.b64decode(values["mean_shape"])), np.uint8)
            side = round(len(levels) ** (1 / 3))
            volume = levels.reshape(side, side, side).astype(np.float32) / 255
            return cls(**(values | {"mean_shape": volume}))
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            raise SettingsError(f"constants of trivial answers cannot be read ({error}). Fit them again.") from error


@dataclass(frozen=True, eq=False)
class Example:
    """A training object as the protocol shows it: (S, S, 4) uint8 picture, and its truth on the grid (G, G, G)."""

    picture: Bytes
    occupied: Bools


def fit_constants(examples: Sequence[Example]) -> Constants:
    """Choose every constant of the trivial answers by the best mean IoU.

    Args:
        examples: at least one; truths placed (centred, longest side 2) on one grid over [-1, 1]^3.

    Raises:
        SettingsError: no examples.
    """
    if not examples:
        raise SettingsError("fitting the trivial answers wants at least one training object, found none.")
    silhouettes = [Silhouette.of(example.picture) for example in examples]
    ellipsoid, extrusion = np.zeros(len(DEPTHS)), np.zeros(len(DEPTHS))
    for silhouette, example in zip(silhouettes, examples, strict=True):
        centres = _front_centres(example.occupied.shape[0])
        dome = _dome(silhouette, centres)
        prism = silhouette.covers(centres).astype(np.float64)
        ellipsoid += profile_ious(example.occupied, np.outer(DEPTHS, dome))
        extrusion += profile_ious(example.occupied, np.outer(DEPTHS, prism))
    shares = np.stack([boxed(example.occupied) for example in examples]).mean(0)
    mean_shape = np.asarray(shares, np.float32)
    depth, level, mean_iou = _fit_mean_shape(mean_shape, silhouettes, examples)
    return Constants(
        objects=len(examples),
        ellipsoid_depth=DEPTHS[int(ellipsoid.argmax())],
        extrusion_depth=DEPTHS[int(extrusion.argmax())],
        mean_shape_depth=depth,
        mean_shape_level=level,
        mean_shape=mean_shape,
        ellipsoid_iou=float(ellipsoid.max()) / len(examples),
        extrusion_iou=float(extrusion.max()) / len(examples),
        mean_shape_iou=mean_iou,
    )


def _front_centres(grid: int) -> Floats:
    """(G * G, 3) cell centres of the plane x = 0, y slowest."""
    axis = (np.arange(grid) + 0.5) * 2 / grid - 1
    y, z = np.meshgrid(axis, axis, indexing="ij")
    return np.stack([np.zeros_like(y), y, z], -1).reshape(-1, 3)


def _dome(silhouette: Silhouette, points: Floats) -> Floats:
    """Half depth (N,) of the ellipsoid of half depth 1 at points' (y, z); 0 outside."""
    width, height = silhouette.extent
    square = (2 * points[:, 1] / width) ** 2 + (2 * points[:, 2] / height) ** 2
    dome: Floats = np.sqrt(np.maximum(1 - square, 0))
    return dome


def profile_ious(occupied: Bools, half_depths: Floats) -> Floats:
    """IoU of a truth with solids |x| < half depth, many at once.

    Args:
        occupied: (G, G, G) over [-1, 1]^3, G even.
        half_depths: (K, G * G) for the columns along x, y slowest.

    Returns:
        (K,) in [0, 1].
    """
    half = len(occupied) // 2
    near_and_far = occupied[half:].astype(np.int64) + occupied[half - 1 :: -1]  # both cells at |x|, from x = 0 outward
    within = np.concatenate([np.zeros((1, half * half * 4), np.int64), near_and_far.reshape(half, -1).cumsum(0)])
    cells = np.searchsorted((np.arange(half) + 0.5) / half, half_depths)  # (K, G * G) of them on each side
    common = np.take_along_axis(within, cells, 0).sum(1)
    return common / np.maximum(int(occupied.sum()) + 2 * cells.sum(1) - common, 1)


def boxed(occupied: Bools, size: int = 32) -> Bools:
    """Stretch the occupied box of a volume (G, G, G) over (size, size, size), by nearest cells; empty stays empty."""
    if not occupied.any():
        return np.zeros((size,) * 3, bool)
    index = []
    for axis in range(3):
        along = np.flatnonzero(occupied.any(tuple(a for a in range(3) if a != axis)))
        low, high = along[0], along[-1] + 1
        index.append((low + (np.arange(size) + 0.5) / size * (high - low)).astype(np.int64))
    stretched: Bools = occupied[np.ix_(*index)]
    return stretched


def _fit_mean_shape(
    mean_shape: NDArray[np.float32], silhouettes: Sequence[Silhouette], examples: Sequence[Example]
) -> tuple[float, float, float]:
    """Depth, level and mean IoU of the mean shape stretched to each silhouette's box."""
    levels = [level for level in MEAN_SHAPE_LEVELS if level < float(mean_shape.max())] or [float(mean_shape.max()) / 2]
    best = (MEAN_SHAPE_DEPTHS[0], levels[0], -1.0)
    for level in levels:
        solid = boxed(mean_shape > level, len(mean_shape))
        for depth in MEAN_SHAPE_DEPTHS:
            found = [
                _stretched_iou(solid, (2 * depth, *silhouette.extent), example.occupied)
                for silhouette, example in zip(silhouettes, examples, strict=True)
            ]
            if (mean := float(np.mean(found))) > best[2]:
                best = (depth, level, mean)
    return best


def _stretched_iou(solid: Bools, extent: tuple[float, float, float], occupied: Bools) -> float:
    """IoU of a truth (G, G, G) with a solid (M, M, M) that fills its cube, stretched to a centred box of ``extent``."""
    axis = (np.arange(len(occupied)) + 0.5) * 2 / len(occupied) - 1
    inside = [np.flatnonzero(np.abs(axis) < side / 2) for side in extent]
    source = [((axis[i] / side + 0.5) * len(solid)).astype(np.int64) for i, side in zip(inside, extent, strict=True)]
    stretched = solid[np.ix_(*source)]
    common = int((stretched & occupied[np.ix_(*inside)]).sum())
    return common / max(int(occupied.sum()) + int(stretched.sum()) - common, 1)


def ellipsoid(silhouette: Silhouette, constants: Constants, *, segments: int = 48) -> Mesh:
    """The ellipsoid as wide and tall as the silhouette's box: a closed mesh of ``segments`` meridians, outward."""
    rings = segments // 2
    polar = np.pi * np.arange(1, rings) / rings
    turn = 2 * np.pi * np.arange(segments) / segments
    ring = np.stack([np.cos(turn), np.sin(turn)], 1)
    body = np.concatenate(
        [np.stack([np.sin(polar)[:, None] * ring[None, :, i] for i in range(2)], -1),
         np.broadcast_to(np.cos(polar)[:, None, None], (rings - 1, segments, 1))], -1,
    )  # fmt: skip
    unit = np.concatenate([[[0.0, 0, 1]], body.reshape(-1, 3), [[0.0, 0, -1]]])
    half = np.array([constants.ellipsoid_depth, silhouette.extent[0] / 2, silhouette.extent[1] / 2])
    return _painted(unit * half, _ball_faces(rings, segments), silhouette)


def _ball_faces(rings: int, segments: int) -> NDArray[np.int64]:
    """Faces of a ball whose vertices are the top, rings - 1 rings of ``segments`` downward, and the bottom."""
    here = np.arange(segments)
    after = (here + 1) % segments
    last = 1 + (rings - 1) * segments
    parts = [np.stack([np.zeros_like(here), 1 + here, 1 + after], 1)]
    for ring in range(rings - 2):
        upper, lower = 1 + ring * segments, 1 + (ring + 1) * segments
        parts.append(np.stack([upper + here, lower + here, lower + after], 1))
        parts.append(np.stack([upper + here, lower + after, upper + after], 1))
    bottom = last - segments
    parts.append(np.stack([np.full_like(here, last), bottom + after, bottom + here], 1))
    return np.concatenate(parts)


def extrusion(silhouette: Silhouette, constants: Constants) -> Mesh:
    """The silhouette's outline (marching squares on 64 px) between two flat caps: a closed mesh, outward."""
    import mcubes

    side = silhouette.picture.shape[0]
    size = _OUTLINE_SIZE if side % _OUTLINE_SIZE == 0 else side
    alpha = np.pad(silhouette.small_alpha(size), 1)
    if not (alpha > 0.5).any():  # thinner than a pixel of the outline
        size = side
        alpha = np.pad(silhouette.small_alpha(size), 1)
    # Four layers, the outer two empty: marching cubes closes the ends, and clipping x makes them flat.
    vertices, faces = mcubes.marching_cubes(np.stack([0 * alpha, alpha, alpha, 0 * alpha]), 0.5)
    step = side / size
    x = (2 * vertices[:, 0].clip(1, 2) - 3) * constants.extrusion_depth
    y = ((vertices[:, 2] - 0.5) * step - silhouette.center[0]) * silhouette.pixel
    z = (silhouette.center[1] - (vertices[:, 1] - 0.5) * step) * silhouette.pixel
    return _painted(np.stack([x, y, z], 1), faces.astype(np.int64), silhouette)


def mean_shape(silhouette: Silhouette, constants: Constants) -> Mesh:
    """The level set of the mean shape, stretched to the silhouette's box: a closed mesh, outward."""
    import mcubes

    vertices, faces = mcubes.marching_cubes(
        np.pad(constants.mean_shape, 1).astype(np.float64), constants.mean_shape_level
    )
    low, high = vertices.min(0), vertices.max(0)
    sides = np.array([2 * constants.mean_shape_depth, *silhouette.extent])
    return _painted(((vertices - low) / (high - low) - 0.5) * sides, faces.astype(np.int64), silhouette)


def _painted(vertices: Floats, faces: NDArray[np.int64], silhouette: Silhouette) -> Mesh:
    """A mesh in the picture's colours, its faces turned outward."""
    mesh = Mesh(vertices, faces, silhouette.colors(vertices))
    return mesh if mesh.volume >= 0 else Mesh(vertices, faces[:, ::-1], mesh.colors)


def turned(mesh: Mesh, azimuth_deg: float) -> Mesh:
    """Turn a mesh by minus the azimuth of a camera, which then stands at azimuth 0; it stays upright."""
    matrix = np.eye(4)
    matrix[:3, :3] = yaw_rotation(-azimuth_deg).double().numpy()
    return mesh.transformed(matrix)


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Training objects by their silhouettes.

    Attributes:
        meshes: the training objects.
        alphas: (O * A * E, 32 * 32) float32 silhouettes, object slowest, then azimuth, then elevation.
    """

    meshes: Sequence[Mesh]
    alphas: NDArray[np.float32]

    @classmethod
    def of(cls, meshes: Sequence[Mesh], look: Callable[[Mesh, float, float, int], Bytes]) -> Retrieval:
        """See every mesh from every direction.

        Args:
            meshes: at least one.
            look: draws (mesh, azimuth_deg, elevation_deg, image_size) as a (S, S, 4) uint8 picture, cropped as inputs.
        """
        return cls(meshes, np.concatenate([small_silhouettes(mesh, look) for mesh in meshes]))

    def answer(self, silhouette: Silhouette) -> Mesh:
        """The object whose silhouette differs least (sum of squares), turned as it was seen."""
        asked = silhouette.small_alpha(RETRIEVAL_SIZE).reshape(-1).astype(np.float32)
        nearest = int(np.square(self.alphas - asked).sum(1).argmin())
        index, direction = divmod(nearest, len(RETRIEVAL_AZIMUTHS) * len(RETRIEVAL_ELEVATIONS))
        return turned(self.meshes[index], RETRIEVAL_AZIMUTHS[direction // len(RETRIEVAL_ELEVATIONS)])


def small_silhouettes(mesh: Mesh, look: Callable[[Mesh, float, float, int], Bytes]) -> NDArray[np.float32]:
    """A mesh's rows of `Retrieval.alphas`: (A * E, 32 * 32) float32 in [0, 1]."""
    seen = [
        look(mesh, azimuth, elevation, RETRIEVAL_SIZE)[..., 3].reshape(-1)
        for azimuth in RETRIEVAL_AZIMUTHS
        for elevation in RETRIEVAL_ELEVATIONS
    ]
    return np.asarray(np.stack(seen) / 255, np.float32)


def trivial_answer(name: str, picture: Bytes, constants: Constants, retrieval: Retrieval | None = None) -> Mesh:
    """One of `TRIVIAL_ANSWERS` for a picture (S, S, 4) uint8.

    Raises:
        SettingsError: an unknown name, or ``retrieval`` without training objects.
        ImageError: as `Silhouette.of`.
    """
    silhouette = Silhouette.of(picture)
    shapes = {"ellipsoid": ellipsoid, "extrusion": extrusion, "mean_shape": mean_shape}
    if name in shapes:
        return shapes[name](silhouette, constants)
    if name == "retrieval" and retrieval is not None:
        return retrieval.answer(silhouette)
    raise SettingsError(f"{name!r}: expected one of {', '.join(TRIVIAL_ANSWERS)}; retrieval wants training objects.")
