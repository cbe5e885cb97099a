"""The value `Mesh`, a coloured triangle mesh in the world frame, and how it is taken from a field."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from multiview.errors import FieldError, MeshError, SettingsError

from . import devicemesh
from .devicemesh import DeviceCrossings, DeviceEvaluator, DeviceScan
from .field import Field, RawDensity
from .lattice import Evaluator, Lattice, Scan, SparseSamples, evaluate_chunks, scan, sure_sides
from .marching import Crossings, follow_surface, march_layers, place_vertices, place_with_colors, triangulate
from .threshold import Threshold, choose_threshold

if TYPE_CHECKING:
    import trimesh

FloatArray = NDArray[np.floating[Any]]

Way = Literal["followed", "dense"]
# World positions (N, 3) → raw density (N,): on the CPU, or where the field is.
Evaluate = Callable[[FloatArray], FloatArray] | DeviceEvaluator

_PROBE = 65  # samples per axis of the first look that finds the occupied box
# Where a coarse scan parts a larger share of its pairs, following the surface would visit a good part of all cells. A
# plane that crosses a cell parts its one pair in 0.58 of all directions, so that this is a third of the coarse cells.
_DENSE_SHARE = 0.2
# A pattern of the field may lie so beside that of the scan that it tells too little: following gives up at this share.
_MOST_FOLLOWED = 1 / 4
# A mesh of so many faces that crosses so large a share of the cells is worth a word; objects cross a few in a hundred.
_NOISY_FACES, _NOISY_SHARE = 500_000, 1 / 8


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh with vertex colours; arrays are converted to the stated types and never changed.

    Attributes:
        vertices: (N, 3) float32, world units, world frame (z up, photographed side toward +x).
        faces: (F, 3) int32, counter-clockwise seen from outside; F >= 1.
        colors: (N, 3) float32, sRGB in [0, 1].
        uvs: (N, 2) float32 texture coordinates, (0, 0) the texture's bottom left corner, or None.
        texture: (H, W, 3) uint8 sRGB base colour, row 0 at the top, or None; it goes with ``uvs``.
        attributes: more numbers of each vertex by name, (N,) float32, such as ``confidence``; or None.

    Raises:
        MeshError: wrong shapes, no faces, numbers that are not finite, colours outside [0, 1], a face that
            names a vertex that is not there, only one of ``uvs`` and ``texture``, or an attribute of another length.
    """

    vertices: FloatArray
    faces: NDArray[np.integer[Any]]
    colors: FloatArray
    uvs: FloatArray | None = None
    texture: NDArray[np.uint8] | None = None
    attributes: dict[str, FloatArray] | None = None

    def __post_init__(self) -> None:
        _set(self, "vertices", _floats(self.vertices, 3, "vertices (N, 3)"))
        _set(self, "colors", _floats(self.colors, 3, "colors (N, 3)"))
        _set(self, "faces", _indices(self.faces, len(self.vertices)))
        if len(self.colors) != len(self.vertices):
            raise MeshError(
                f"mesh wants one colour for each vertex, found {len(self.colors)} and {len(self.vertices)} vertices."
            )
        low, high = float(self.colors.min()), float(self.colors.max())
        if low < -1e-5 or high > 1 + 1e-5:
            raise MeshError(
                f"mesh wants sRGB colors in [0, 1], found {low:.4g} to {high:.4g}. Divide 8-bit colours by 255."
            )
        if (self.uvs is None) != (self.texture is None):
            raise MeshError("mesh wants uvs and texture together, found only one of them. Give both or neither.")
        if self.uvs is not None and self.texture is not None:
            _set(self, "uvs", _floats(self.uvs, 2, "uvs (N, 2)"))
            _check_texture(self.texture, len(self.uvs), len(self.vertices))
        if self.attributes is not None:
            kept = {name: _attribute(name, values, len(self.vertices)) for name, values in self.attributes.items()}
            object.__setattr__(self, "attributes", kept)

    @property
    def bounds(self) -> FloatArray:
        """(2, 3) lowest and highest corner of the bounding box, world units."""
        # Axis by axis: numpy is slow where the last axis is short (12 ms for 220,000 vertices, against 0.4).
        return np.array([[least(axis) for axis in self.vertices.T] for least in (np.min, np.max)], self.vertices.dtype)

    @property
    def extent(self) -> FloatArray:
        """(3,) sides of the bounding box, world units."""
        low, high = self.bounds
        return high - low

    @cached_property
    def volume(self) -> float:
        """Signed volume, world units cubed: positive when a closed mesh faces outward."""
        a, b, c = _triangles(self)
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)

    @cached_property
    def area(self) -> float:
        """Surface, world units squared."""
        return float(np.linalg.norm(_face_vectors(self), axis=1).sum() / 2)

    @cached_property
    def is_watertight(self) -> bool:
        """Whether every edge has exactly two faces, which run along it in opposite directions; seams are joined."""
        faces = self.joined_faces
        tail = faces[:, [0, 1, 2]].reshape(-1).astype(np.int64)
        head = faces[:, [1, 2, 0]].reshape(-1).astype(np.int64)
        along = tail * len(self.vertices)
        along += head
        against = head  # in place, as meshes of many millions of faces need it
        against *= len(self.vertices)
        against += tail
        along.sort()
        against.sort()
        once = bool((along[1:] != along[:-1]).all())
        return once and bool((along == against).all())

    @cached_property
    def joined_faces(self) -> NDArray[np.integer[Any]]:
        """(F, 3) ``faces``; with a texture, whose seams have vertices twice, the first of each place is named."""
        if self.uvs is None:
            return self.faces
        bits = np.ascontiguousarray(self.vertices + np.float32(0)).view("V12").reshape(-1)  # -0 becomes 0
        _, first, inverse = np.unique(bits, return_index=True, return_inverse=True)
        return np.asarray(first[inverse][self.faces], np.int32)

    @cached_property
    def normals(self) -> FloatArray:
        """(N, 3) float32 unit vertex normals, faces weighted by their area; (0, 0, 1) where no face has any area."""
        weighted, faces = _face_vectors(self), self.joined_faces
        total = np.stack(
            [
                sum(np.bincount(faces[:, k], weighted[:, axis], len(self.vertices)) for k in range(3))
                for axis in range(3)
            ],
            axis=1,
        )
        if self.uvs is not None:
            total[self.faces] = total[faces]
        length = np.linalg.norm(total, axis=1, keepdims=True)
        unit = np.where(length > 0, total / np.where(length > 0, length, 1), (0.0, 0.0, 1.0))
        return unit.astype(np.float32)

    def transformed(self, matrix: ArrayLike) -> Mesh:
        """Move every vertex by an affine (4, 4) matrix; faces are turned over when it mirrors, so they stay outward.

        Raises:
            MeshError: not (4, 4), not finite, not affine (last row 0 0 0 1), or flattening (determinant 0).
        """
        m = np.asarray(matrix, dtype=np.float64)
        if m.shape != (4, 4) or not np.isfinite(m).all() or not np.allclose(m[3], (0, 0, 0, 1), atol=1e-9):
            raise MeshError(f"a mesh is moved by a finite (4, 4) matrix with last row 0 0 0 1, found {m.tolist()}.")
        turn = float(np.linalg.det(m[:3, :3]))
        if turn == 0:
            raise MeshError("a mesh is moved by a matrix that can be undone, found determinant 0. Check its scale.")
        moved = self.vertices.astype(np.float64) @ m[:3, :3].T + m[:3, 3]
        return replace(self, vertices=moved, faces=self.faces[:, ::-1] if turn < 0 else self.faces)

    def to_trimesh(self) -> trimesh.Trimesh:
        """Give a ``trimesh.Trimesh`` in the world frame (z up, front +x), vertices and faces in the same order.

        Colours become uint8 RGBA by rounding, still sRGB. A texture is not carried over; `lrm.meshfile` writes it.
        """
        import trimesh

        rgba = np.full((len(self.vertices), 4), 255, np.uint8)
        rgba[:, :3] = np.rint(np.clip(self.colors, 0, 1) * 255)
        return trimesh.Trimesh(self.vertices, self.faces, vertex_colors=rgba, process=False)


def _set(mesh: Mesh, name: str, value: FloatArray | NDArray[np.integer[Any]]) -> None:
    object.__setattr__(mesh, name, value)  # the dataclass is frozen for others


def _floats(values: ArrayLike, width: int, name: str) -> FloatArray:
    """Contiguous finite float32 (N, width), N >= 1."""
    array = np.ascontiguousarray(values, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] != width or len(array) == 0:
        raise MeshError(f"mesh wants {name} with N >= 1, found shape {array.shape}.")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).any(1).sum())
        raise MeshError(f"mesh wants finite numbers, found NaN or Inf in {bad} of {len(array)} rows of {name}.")
    return array


def _attribute(name: str, values: ArrayLike, count: int) -> FloatArray:
    """Contiguous finite float32 (count,)."""
    array = np.ascontiguousarray(values, dtype=np.float32)
    if array.shape != (count,) or not np.isfinite(array).all():
        raise MeshError(
            f"mesh wants attribute {name!r} as {count} finite numbers, one for each vertex, found shape {array.shape}"
            f"{'' if np.isfinite(array).all() else ' with NaN or Inf'}."
        )
    return array


def _indices(faces: ArrayLike, count: int) -> NDArray[np.int32]:
    """Contiguous int32 (F, 3), F >= 1, all in [0, count)."""
    array = np.asarray(faces)
    if array.ndim != 2 or array.shape[1] != 3 or len(array) == 0 or array.dtype.kind not in "iu":
        raise MeshError(f"mesh wants whole-number faces (F, 3), F >= 1, found shape {array.shape} of {array.dtype}.")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= count:
        raise MeshError(f"faces name vertices {low} to {high}, but there are only 0 to {count - 1}.")
    return np.ascontiguousarray(array, dtype=np.int32)


def _check_texture(texture: NDArray[np.uint8], uv_count: int, count: int) -> None:
    if uv_count != count:
        raise MeshError(f"mesh wants one uv for each vertex, found {uv_count} uvs and {count} vertices.")
    if texture.ndim != 3 or texture.shape[2] != 3 or texture.dtype != np.uint8 or texture.size == 0:
        raise MeshError(f"mesh wants a texture (H, W, 3) of uint8, found shape {texture.shape} of {texture.dtype}.")


def _triangles(mesh: Mesh) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The three corners of each face (F, 3) in float64, so that sums over many faces stay exact enough."""
    vertices = mesh.vertices.astype(np.float64)
    return vertices[mesh.faces[:, 0]], vertices[mesh.faces[:, 1]], vertices[mesh.faces[:, 2]]


def _face_vectors(mesh: Mesh) -> FloatArray:
    """(F, 3) face normals with twice the face's area as their length."""
    a, b, c = _triangles(mesh)
    return np.cross(b - a, c - a)


@dataclass(frozen=True)
class ExtractionReport:
    """How a mesh was taken from a field.

    Attributes:
        threshold: density at which the surface was taken.
        threshold_chosen: ``given`` by the caller, the field's own ``level``, or from the ``histogram`` of densities.
        mesh_resolution: samples along the longest side of ``box``.
        shape: samples along x, y, z.
        box: lowest and highest corner of the lattice, world units.
        way: ``followed``: the surface was followed from where a coarse scan met it; ``dense``: every sample of the
            lattice was evaluated, since the surface runs through a good part of all cells.
        evaluations: density evaluations, all passes together.
        cells: lattice cells that the surface crosses.
        pieces_dropped: small pieces and inner shells that were left out.
        touched_border: whether the surface met the cube's faces and was closed there.
        warnings: what a user should know, in whole sentences.
        seconds: wall time.
    """

    threshold: float
    threshold_chosen: str
    mesh_resolution: int
    shape: tuple[int, int, int]
    box: tuple[tuple[float, float, float], tuple[float, float, float]]
    way: Way
    evaluations: int
    cells: int
    pieces_dropped: int
    touched_border: bool
    warnings: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class ExtractionSettings:
    """The choices behind `extract_mesh`, which documents them."""

    mesh_resolution: int = 256
    threshold: float | Literal["auto"] = "auto"
    keep_pieces: float = 0.01
    fit_box: bool = True
    refine_steps: int = 4
    chunk_size: int = 262144
    way: Literal["auto"] | Way = "auto"

    def __post_init__(self) -> None:
        if not 8 <= self.mesh_resolution <= 4096:
            raise SettingsError(
                f"mesh_resolution must lie in 8 to 4096 samples per axis, found {self.mesh_resolution}."
            )
        if isinstance(self.threshold, str) and self.threshold != "auto":
            raise SettingsError(f"threshold must be a density or 'auto', found {self.threshold!r}.")
        if self.threshold != "auto" and not math.isfinite(self.threshold):
            raise SettingsError(f"threshold must be a finite density or 'auto', found {self.threshold}.")
        if self.way not in ("auto", "followed", "dense"):
            raise SettingsError(f"way must be 'auto', 'followed' or 'dense', found {self.way!r}.")
        if not 0 <= self.keep_pieces <= 1:
            raise SettingsError(f"keep_pieces is a share of the largest piece, 0 to 1, found {self.keep_pieces}.")
        if self.refine_steps < 0 or self.chunk_size < 1:
            raise SettingsError(
                f"refine_steps must be >= 0 and chunk_size >= 1 point, found {self.refine_steps} and {self.chunk_size}."
            )


def extract_mesh(
    field: Field,
    *,
    mesh_resolution: int = 256,
    threshold: float | Literal["auto"] = "auto",
    keep_pieces: float = 0.01,
    fit_box: bool = True,
    refine_steps: int = 4,
    chunk_size: int = 262144,
    way: Literal["auto"] | Way = "auto",
    progress: Callable[[float], None] | None = None,
) -> Mesh:
    """Take the surface of a field as a closed, outward-facing mesh with vertex colours.

    A coarse pattern of samples finds the surface, which is then followed over the fine lattice so that the field is
    evaluated only at corners of cells that it crosses (a surface that is nearly everywhere, as in noise, is found by
    going through all cells, a layer at a time); marching cubes (PyMCubes' cases) makes the triangles; vertices
    are moved onto the level by regula falsi on the field's raw scale. Where the field has a rough way (bf16), it tells
    the sides of samples far from the level; sides near it and all vertices are fp32's, so that the triangles are the
    same. Beyond the cube the field counts as empty, so a surface that meets the cube's faces is closed there; a field
    that says it reaches further (`Field.reach`) is first tried once more in a cube up to 1.25 times as large.

    Args:
        field: on any device; the mesh comes back on the CPU.
        mesh_resolution: samples along the longest side of the box, 8 to 4096.
        threshold: density of the surface, or ``auto``: see `lrm.threshold.choose_threshold`.
        keep_pieces: pieces with a smaller share of the largest piece's surface are dropped, 0 to 1; inner shells always
            are. With 0, pieces smaller than a coarse step are searched for, too.
        fit_box: lay the lattice over the occupied part of the cube (cubic cells); False lays it over the whole cube,
            samples at linspace(-scene_radius, scene_radius, mesh_resolution), as the reference programs do.
        refine_steps: most evaluations for each vertex after linear interpolation; nine in ten need one.
        chunk_size: points per pass through the field; changes memory, never results beyond rounding.
        way: ``followed`` or ``dense`` insists on one way; the meshes differ only by what ``followed`` can miss.
        progress: called with a growing fraction in [0, 1].

    Returns:
        A `Mesh` in the world frame. Isolated parts thinner than 1.5 coarse steps (a coarse step is every 4th sample,
        every 8th from 400 samples on) can be missed; whatever hangs together with a found part is found.

    Raises:
        MeshError: nothing or everything is above the threshold; or the mesh has over 50 million faces.
        FieldError: the field gives numbers that are not finite.
        SettingsError: an option is out of range.
    """
    return extract_mesh_with_report(
        field, mesh_resolution=mesh_resolution, threshold=threshold, keep_pieces=keep_pieces, fit_box=fit_box,
        refine_steps=refine_steps, chunk_size=chunk_size, way=way, progress=progress,
    )[0]  # fmt: skip


def extract_mesh_with_report(
    field: Field, *, progress: Callable[[float], None] | None = None, **settings: Any
) -> tuple[Mesh, ExtractionReport]:
    """`extract_mesh`, and how it went. ``settings`` are the other arguments of `extract_mesh`, by name."""
    options = ExtractionSettings(**settings)
    tell = progress or (lambda fraction: None)
    began = time.perf_counter()
    raw = field.raw_density()
    ask = _asked(raw, field.device, options)
    tell(0.0)
    shell = _shell_in_cube(raw, ask, field.level, field.scene_radius, options)
    if _touches(shell, field.scene_radius) and field.reach > field.scene_radius:
        shell = _try_larger(shell, raw, ask, field, options)
    tell(0.5)
    vertices, colors = _placed(shell.crossings, raw, ask, options)
    tell(0.75)
    mesh = Mesh(vertices, _on_cpu(shell.crossings.faces), _colors(raw, field, vertices, colors, options.chunk_size))
    tell(1.0)
    return mesh, _report(shell, options, ask.count, time.perf_counter() - began)


@dataclass(frozen=True)
class _Shell:
    """The outside of a level set on a lattice, closed, before its vertices are refined."""

    crossings: Crossings | DeviceCrossings
    threshold: Threshold
    way: Way
    pieces_dropped: int

    @property
    def lattice(self) -> Lattice:
        """Where its edges lie."""
        return self.crossings.lattice

    @cached_property
    def sides_cut(self) -> NDArray[np.bool_]:
        """(2, 3) whether it meets the lowest and highest samples along x, y, z and was closed there."""
        return self.crossings.sides_cut


def _sides_on_cube(lattice: Lattice, radius: float) -> NDArray[np.bool_]:
    """(2, 3) whether a side of the lattice lies on the face of the cube of half side ``radius``, or beyond it."""
    near = 1e-6 * radius
    low, high = np.asarray(lattice.origin), np.asarray(lattice.upper)
    return np.stack([low <= -radius + near, high >= radius - near])


@dataclass
class _Asked:
    """The field's raw density; all evaluations are counted.

    Attributes:
        exact: from the CPU's positions.
        rough: the same in fewer digits, where it pays.
        there: from positions on the field's device, where the surface is taken there.
        thin: parts that may be thinner than the cells of the first look, by themselves, where they are known; see
            `RawDensity`. It costs so little that it is not counted.
        noise: how far off the rough densities may be near the level, in place of which exact ones were not asked for.
    """

    exact: Evaluator
    rough: Evaluator | None
    there: DeviceEvaluator | None
    thin: Callable[[FloatArray], FloatArray] | None
    noise: float = 0.0

    @property
    def sure(self) -> Evaluate:
        """Exact densities, on the device where the surface is taken."""
        return self.there or self.exact

    @property
    def count(self) -> int:
        """Evaluations so far."""
        return sum(one.count for one in (self.exact, self.rough, self.there) if one is not None)


def _asked(raw: RawDensity, device: torch.device, options: ExtractionSettings) -> _Asked:
    """How a field's density is asked for."""
    there = DeviceEvaluator(raw.raw, device, options.chunk_size) if devicemesh.works_here(device) else None
    # Rough numbers are good for telling sides; only vertices that are then placed by exact ones come out right.
    rough, thin = raw.rough if options.refine_steps and there is None else None, raw.thin
    return _Asked(
        Evaluator(raw.raw, device, options.chunk_size),
        None if rough is None else Evaluator(rough, device, options.chunk_size),
        there,
        None if thin is None else lambda places: evaluate_chunks(thin, places, device, options.chunk_size),
    )


def _shell_in_cube(raw: RawDensity, ask: _Asked, level: float, radius: float, options: ExtractionSettings) -> _Shell:
    """Find the level set in the cube of half side ``radius``."""
    n = options.mesh_resolution
    step = 4 if n < 400 else 8
    per_axis, look = (min(_PROBE, n), 1) if options.fit_box else (n, step)
    cube = Lattice((-radius,) * 3, 2 * radius / (per_axis - 1), (per_axis,) * 3)
    coarse, threshold, sides = _first_look(cube, look, raw, ask, level, options)
    if not options.fit_box:
        return _shell(cube, coarse, threshold, sides, options)
    # The box is that of exact numbers, so that the lattice is the same whatever the machine's way to be quick.
    shell = _shell(cube, coarse, threshold, ask.sure, options)
    return _shell_in_box(shell, radius, step, sides, ask.thin, options)


def _first_look(
    cube: Lattice, look: int, raw: RawDensity, ask: _Asked, level: float, options: ExtractionSettings
) -> tuple[Scan | DeviceScan, Threshold, Evaluate]:
    """Scan the cube, choose the level, and say what to ask for samples from then on.

    The scan is rough where a field can be. It is made again exactly where its numbers themselves matter: for a level
    from their histogram, and for a complaint that quotes them.
    """

    def chosen(coarse: Scan | DeviceScan) -> Threshold:
        asked = len(coarse.coordinates[0]) - 2
        return choose_threshold(coarse.inner, raw, level, options.threshold, samples_per_axis=asked)

    if ask.rough is not None:
        coarse = scan(cube, look, ask.rough)
        with suppress(MeshError):
            threshold = chosen(coarse)
            if threshold.chosen != "histogram":
                sides, settled = sure_sides(ask.exact, ask.rough, threshold.raw, coarse, cube)
                ask.noise = sides.noise
                return settled, threshold, sides
    found = _scan(cube, look, ask.sure)
    return found, chosen(found), ask.sure


def _scan(lattice: Lattice, step: int, evaluate: Evaluate) -> Scan | DeviceScan:
    """A coarse scan, worked out where positions are wanted."""
    if isinstance(evaluate, DeviceEvaluator):
        return devicemesh.device_scan(lattice, step, evaluate)
    return scan(lattice, step, evaluate)


def _shell_in_box(
    probe: _Shell,
    radius: float,
    step: int,
    evaluate: Evaluate,
    thin: Callable[[FloatArray], FloatArray] | None,
    options: ExtractionSettings,
) -> _Shell:
    """Find the level set again on a lattice over the box of a rough one; grow the box until it holds all of it."""
    margin = probe.lattice.spacing
    low, high = probe.crossings.bounds()
    low, high = low - margin, high + margin
    shell = None
    while shell is None:
        low, high = np.maximum(low, -radius), np.minimum(high, radius)
        lattice = _lattice_over(low, high, radius, options.mesh_resolution)
        # What is known to run out of the box is not worth following first.
        inner_sides = ~_sides_on_cube(lattice, radius)
        cut = inner_sides & _thin_sides(lattice, thin, probe.threshold.raw, step, inner_sides)
        if not cut.any():
            shell = _shell(lattice, _scan(lattice, step, evaluate), probe.threshold, evaluate, options)
            cut = inner_sides & shell.sides_cut
        if cut.any():
            # Something thinner than the rough lattice runs out: open the box there, in the end up to the cube.
            shell, grow = None, cut * (0.1 * (high - low).max() + 2 * margin)
            low, high = low - grow[0], high + grow[1]
    return replace(shell, pieces_dropped=max(shell.pieces_dropped, probe.pieces_dropped))


def _thin_sides(
    lattice: Lattice,
    thin: Callable[[FloatArray], FloatArray] | None,
    level: float,
    step: int,
    sides: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Which of some sides (2, 3) of a lattice thin parts run through, as far as every few samples on them tell."""
    cut = np.zeros((2, 3), np.bool_)
    if thin is None:
        return cut
    every = [np.arange(1, n + 1, max(step // 2, 1)) for n in lattice.shape]
    for side, axis in np.argwhere(sides):
        axes = [np.array([lattice.shape[k] if side else 1]) if k == axis else every[k] for k in range(3)]
        index = np.stack([grid.reshape(-1) for grid in np.meshgrid(*axes, indexing="ij")], 1)
        cut[side, axis] = (thin(lattice.positions(index)) > level).any()
    return cut


def _shell(
    lattice: Lattice, coarse: Scan | DeviceScan, threshold: Threshold, evaluate: Evaluate, options: ExtractionSettings
) -> _Shell:
    crossings, way = _crossings(lattice, coarse, threshold.raw, evaluate, options)
    if not len(crossings.faces):
        raise MeshError(
            f"no surface was found at density_threshold={threshold.density:.6g} on {lattice.shape} samples; what is "
            "above it is smaller than a few cells. Try a lower threshold or a higher mesh_resolution."
        )
    outer, dropped = crossings.outer(options.keep_pieces)
    return _Shell(outer, threshold, way, dropped)


def _crossings(
    lattice: Lattice, coarse: Scan | DeviceScan, level: float, evaluate: Evaluate, options: ExtractionSettings
) -> tuple[Crossings | DeviceCrossings, Way]:
    """Where the level set crosses the lattice, found in the way asked for or the one that is likely the shorter."""
    auto = options.way == "auto"
    if options.way == "followed" or (auto and coarse.share_crossed(level) <= _DENSE_SHARE):
        most = int(_MOST_FOLLOWED * math.prod(lattice.shape)) if auto else None
        followed = _followed(lattice, coarse, level, evaluate, small_pieces=options.keep_pieces == 0, most=most)
        if followed is not None:
            return followed, "followed"
    ask = evaluate.from_cpu() if isinstance(evaluate, DeviceEvaluator) else evaluate
    return march_layers(lattice, ask, level), "dense"


def _followed(
    lattice: Lattice,
    coarse: Scan | DeviceScan,
    level: float,
    evaluate: Evaluate,
    *,
    small_pieces: bool,
    most: int | None,
) -> Crossings | DeviceCrossings | None:
    """Where the surface that a scan met crosses the lattice; None where it crosses more than ``most`` cells."""
    if isinstance(evaluate, DeviceEvaluator):
        assert isinstance(coarse, DeviceScan)
        return devicemesh.crossings(lattice, coarse, evaluate, level, small_pieces=small_pieces, most_cells=most)
    assert isinstance(coarse, Scan)
    samples = SparseSamples(lattice, evaluate, level)
    surface = follow_surface(samples, coarse, small_pieces=small_pieces, most_cells=most)
    return triangulate(samples, surface) if most is None or len(surface.cells) <= most else None


def _lattice_over(low: FloatArray, high: FloatArray, radius: float, samples: int) -> Lattice:
    """Cubic cells over a box in the cube; ``samples`` along its longest side, sides on the cube's faces stay there."""
    sides = high - low
    spacing = float(sides.max()) / (samples - 1)
    shape = np.maximum(np.ceil(sides / spacing - 1e-6).astype(int) + 1, 2)
    spare = (shape - 1) * spacing - sides
    on_low, on_high = low <= -radius + 1e-9, high >= radius - 1e-9
    origin = low - np.where(on_low, 0.0, np.where(on_high, spare, spare / 2))
    return Lattice(
        (float(origin[0]), float(origin[1]), float(origin[2])), spacing, (int(shape[0]), int(shape[1]), int(shape[2]))
    )


def _try_larger(shell: _Shell, raw: RawDensity, ask: _Asked, field: Field, options: ExtractionSettings) -> _Shell:
    """The level set in a larger cube if it is whole there, else the one that was cut."""
    radius = min(field.reach, 1.25 * field.scene_radius)
    try:
        larger = _shell_in_cube(raw, ask, field.level, radius, options)
    except MeshError:
        return shell
    return shell if _touches(larger, radius) else larger


def _touches(shell: _Shell, radius: float) -> bool:
    """Whether the surface met a face of the cube of half side ``radius``."""
    return bool((shell.sides_cut & _sides_on_cube(shell.lattice, radius)).any())


def _placed(
    crossings: Crossings | DeviceCrossings, raw: RawDensity, ask: _Asked, options: ExtractionSettings
) -> tuple[FloatArray, FloatArray]:
    """Vertices (N, 3), and colours (N, 3) where the field was asked for both at once; NaN where they are not known."""
    both = raw.with_color

    def joined(points: Tensor) -> Tensor:
        assert both is not None
        density, colors = both(points)
        return torch.cat([density[:, None], colors], 1)

    steps, want = options.refine_steps, raw.raw if both is None or not options.refine_steps else joined
    if isinstance(crossings, DeviceCrossings):
        there = DeviceEvaluator(want, ask.exact.device, options.chunk_size)
        placed, colors = (_on_cpu(one) for one in crossings.place(there, steps))
        ask.exact.count += there.count
    elif want is joined:
        here = Evaluator(joined, ask.exact.device, options.chunk_size)
        placed, colors = place_with_colors(crossings, here, steps, noise=ask.noise)
        ask.exact.count += here.count
    else:
        placed, colors = place_vertices(crossings, ask.exact, steps), np.empty((len(crossings.axis), 0))
    return placed, colors if colors.shape[1] else np.full((len(placed), 3), np.nan)


def _on_cpu(values: Tensor | NDArray[Any]) -> NDArray[Any]:
    """The same numbers on the CPU."""
    return np.asarray(values.cpu().numpy()) if isinstance(values, Tensor) else values


def _colors(raw: RawDensity, field: Field, vertices: FloatArray, colors: FloatArray, chunk_size: int) -> FloatArray:
    """Colours (N, 3) of vertices (N, 3), of which some are known; where they are NaN the field is asked."""
    unknown, both = ~np.isfinite(colors).all(1), raw.with_color
    if unknown.any():
        ask = field.color_function() if both is None else lambda points: both(points)[1]
        colors[unknown] = evaluate_chunks(ask, vertices[unknown], field.device, chunk_size)
    bad = ~np.isfinite(colors).all(1)
    if bad.any():
        raise FieldError(
            f"the field's colour is not finite at {int(bad.sum())} of {len(vertices)} vertices. "
            "Check the weights, or run the network in fp32 (--dtype fp32)."
        )
    return np.clip(colors, 0, 1)


def _report(shell: _Shell, options: ExtractionSettings, evaluations: int, seconds: float) -> ExtractionReport:
    lattice, notes = shell.lattice, []
    touched = bool(shell.sides_cut.any())
    if touched:
        notes.append("The object reaches the border of the scene cube and was cut off flat there.")
    if shell.threshold.chosen == "histogram":
        notes.append(
            f"The field hardly crosses its usual level; density_threshold={shell.threshold.density:.4g} was chosen "
            "from the histogram of densities. Give --threshold to choose another."
        )
    faces, share = len(shell.crossings.faces), shell.crossings.cells / math.prod(n + 1 for n in lattice.shape)
    if faces > _NOISY_FACES and share > _NOISY_SHARE:
        notes.append(
            f"The mesh has {faces:,} faces: its surface runs through {share:.0%} of all cells, which is noise rather "
            "than an object. Check the weights, try another --threshold, or ask for fewer faces (--faces)."
        )
    return ExtractionReport(
        threshold=shell.threshold.density,
        threshold_chosen=shell.threshold.chosen,
        mesh_resolution=options.mesh_resolution,
        shape=lattice.shape,
        box=(lattice.origin, lattice.upper),
        way=shell.way,
        evaluations=evaluations,
        cells=shell.crossings.cells,
        pieces_dropped=shell.pieces_dropped,
        touched_border=touched,
        warnings=tuple(notes),
        seconds=seconds,
    )
