"""How near a result is to the truth: shapes by volume, surface and alignment, pictures by PSNR and SSIM.

Shapes are compared after `placed`: centred on the bounding box, longest side 2, so that a cube of half side 1 holds
both. All distances are in those units: 0.1 is a twentieth of the longest side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from multiview.cameras import pitch_rotation, yaw_rotation
from multiview.errors import ImageError, MeshError, SettingsError

from .inside import inside_lattice, sheet_faces
from .mesh import Mesh

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

PSNR_CEILING = 100.0  # dB, of equal pictures: JSON has no infinity, and a mean could not use it
_SSIM_SIZE, _SSIM_SIGMA = 11, 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2
_SETTLED = 1e-9  # an ICP step that moves points by less is the last


@dataclass(frozen=True)
class ShapeSettings:
    """How two shapes are compared; the defaults are those of ``trilift eval``.

    Attributes:
        grid: cells per axis over [-1, 1], asked at their centres.
        points: drawn on each surface, uniformly by area.
        fscore_distances: of a point to the other surface that counts as a hit.
        align_points: of those points, how many the alignment sees.
        align_yaws: evenly spaced turns about up that it tries.
        align_pitches_deg: turns about the source camera's left-right axis that it tries with each.
        icp_steps: from the best of these.
    """

    grid: int = 64
    points: int = 10_000
    fscore_distances: tuple[float, ...] = (0.1, 0.2, 0.5)
    align_points: int = 1_000
    align_yaws: int = 72
    align_pitches_deg: tuple[float, ...] = (-15.0, 0.0, 15.0)
    icp_steps: int = 30


@dataclass(frozen=True, eq=False)
class TrueShape:
    """A true shape, ready to be compared with several answers.

    Attributes:
        mesh: as `placed` gives it.
        occupied: (G, G, G) bool over x, y, z, cell centres inside.
        points: (P, 3) on the surface.
        seed: of the points; answers draw theirs from another stream of it.
        settings: how it is compared.
    """

    mesh: Mesh
    occupied: Bools
    points: Floats
    seed: int
    settings: ShapeSettings

    @classmethod
    def of(cls, mesh: Mesh, seed: int, settings: ShapeSettings | None = None) -> TrueShape:
        """Place a mesh and measure it.

        Raises:
            MeshError: the mesh has no extent or no area.
        """
        settings = settings or ShapeSettings()
        mesh = placed(mesh)
        points = sample_surface(mesh, settings.points, np.random.default_rng([seed, 0]))
        return cls(mesh, occupancy(mesh, settings.grid), points, seed, settings)


def placed(mesh: Mesh) -> Mesh:
    """Centre a mesh's bounding box at the origin and scale evenly so that its longest side is 2.

    Raises:
        MeshError: all vertices are in one place.
    """
    low, high = mesh.bounds.astype(np.float64)
    side = float((high - low).max())
    if side <= 0:
        raise MeshError(f"a mesh to compare wants some extent, found all {len(mesh.vertices)} vertices at {low}.")
    matrix = np.diag([2 / side, 2 / side, 2 / side, 1.0])
    matrix[:3, 3] = -(low + high) / side
    return mesh.transformed(matrix)


def score_shape(answer: Mesh, truth: TrueShape) -> dict[str, float]:
    """Compare an answer with the truth, as it stands and after the best rigid alignment.

    Args:
        answer: world frame, any place and size; it is `placed` first.
        truth: what it should be.

    Returns:
        ``iou`` of the volumes, ``chamfer`` (mean distance to the other surface, mean of both directions, not
        squared), ``fscore_D`` for every distance D, and the same with ``_aligned``: turned and moved by
        `best_alignment` (never scaled). Parts that alignment moves out of the grid still count in the union.

    Raises:
        MeshError: the answer has no extent or no area.
    """
    return score_shape_and_volume(answer, truth)[0]


def score_shape_and_volume(answer: Mesh, truth: TrueShape) -> tuple[dict[str, float], Bools]:
    """`score_shape`, and which cells of the truth's grid the answer fills: (G, G, G) bool over x, y, z."""
    settings = truth.settings
    answer = placed(answer)
    points = sample_surface(answer, settings.points, np.random.default_rng([truth.seed, 1]))
    few = settings.align_points
    rigid = best_alignment(points[:few], truth.points[:few], settings)
    inside = partial(inside_lattice, answer.vertices, answer.faces, sheets=sheet_faces(answer.vertices, answer.faces))
    occupied: Bools = inside(cell_axes((settings.grid // 2,) * 3, settings.grid))
    scores = {"iou": overlap(occupied, truth.occupied)}
    scores |= surface_scores(points, truth.points, settings.fscore_distances)
    halves = _half_cells(_moved(answer.vertices.astype(np.float64), rigid), settings.grid)
    wide = inside(cell_axes(halves, settings.grid), rigid=rigid)
    scores["iou_aligned"] = overlap(wide, _padded(truth.occupied, halves))
    moved = surface_scores(_moved(points, rigid), truth.points, settings.fscore_distances)
    return scores | {f"{key}_aligned": value for key, value in moved.items()}, occupied


def score_nothing(settings: ShapeSettings | None = None) -> dict[str, float]:
    """What `score_shape` says of an answer that is not there: no overlap, no hit, one longest side (2) away."""
    settings = settings or ShapeSettings()
    scores = {"iou": 0.0, "chamfer": 2.0, **{f"fscore_{d:g}": 0.0 for d in settings.fscore_distances}}
    return scores | {f"{key}_aligned": value for key, value in scores.items()}


def cell_axes(half_cells: Sequence[int], grid: int) -> list[Floats]:
    """x, y and z of the centres of cells of side 2 / ``grid``, ``half_cells`` of them to each side of the origin.

    With ``half_cells`` = grid / 2 they fill [-1, 1].
    """
    return [(np.arange(-half, half) + 0.5) * 2 / grid for half in half_cells]


def occupancy(mesh: Mesh, grid: int = 64) -> Bools:
    """Which cell centres of ``grid`` (even) cells per axis over [-1, 1]^3 are inside: (G, G, G) bool over x, y, z.

    Raises:
        SettingsError: ``grid`` is not even and positive.
    """
    if grid < 2 or grid % 2:
        raise SettingsError(f"grid={grid}: expected an even number of cells per axis, at least 2.")
    inside: Bools = inside_lattice(mesh.vertices, mesh.faces, cell_axes((grid // 2,) * 3, grid))
    return inside


def overlap(a: Bools, b: Bools) -> float:
    """Intersection over union of two boolean arrays of one shape, 0 to 1; 0 when both are empty.

    Raises:
        SettingsError: different shapes.
    """
    if a.shape != b.shape:
        raise SettingsError(f"overlap wants arrays of one shape, found {a.shape} and {b.shape}.")
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def _half_cells(vertices: Floats, grid: int) -> tuple[int, int, int]:
    """Cells to each side of the origin that hold all vertices (N, 3), at least those of [-1, 1]."""
    reach = np.ceil(np.abs(vertices).max(0) * grid / 2 - 1e-9).astype(int)
    x, y, z = np.maximum(reach, grid // 2).tolist()
    return x, y, z


def _padded(occupied: Bools, half_cells: Sequence[int]) -> Bools:
    return np.pad(occupied, [(h - n // 2,) * 2 for h, n in zip(half_cells, occupied.shape, strict=True)])


def sample_surface(mesh: Mesh, count: int, rng: np.random.Generator) -> Floats:
    """Draw ``count`` points on a mesh, uniformly by area: (count, 3) float64.

    Raises:
        MeshError: no face has any area.
    """
    corners = mesh.vertices.astype(np.float64)[mesh.faces]
    edge_u, edge_v = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.linalg.norm(np.cross(edge_u, edge_v), axis=1)
    if not area.sum() > 0:
        raise MeshError(f"a surface to draw points on wants some area, found 0 in {len(area)} faces.")
    face = rng.choice(len(area), count, p=area / area.sum())
    u, v = rng.random((2, count, 1))
    beyond = u + v > 1  # the other half of the parallelogram is folded back
    u, v = np.where(beyond, 1 - u, u), np.where(beyond, 1 - v, v)
    drawn: Floats = corners[face, 0] + u * edge_u[face] + v * edge_v[face]
    return drawn


def surface_scores(answer: Floats, truth: Floats, distances: Sequence[float]) -> dict[str, float]:
    """Chamfer distance and F-scores of two point clouds.

    Args:
        answer, truth: (P, 3) and (Q, 3) points on the surfaces.
        distances: that count as a hit.

    Returns:
        ``chamfer``: mean distance to the nearest point of the other, mean of both directions. ``fscore_D``: harmonic
        mean of the share of answer points within D of the truth and of truth points within D of the answer.
    """
    from scipy.spatial import cKDTree

    to_truth, _ = cKDTree(truth).query(answer)
    to_answer, _ = cKDTree(answer).query(truth)
    scores = {"chamfer": float(to_truth.mean() + to_answer.mean()) / 2}
    for distance in distances:
        precision, recall = float((to_truth <= distance).mean()), float((to_answer <= distance).mean())
        total = precision + recall
        scores[f"fscore_{distance:g}"] = 2 * precision * recall / total if total else 0.0
    return scores


def best_alignment(source: Floats, target: Floats, settings: ShapeSettings | None = None) -> Floats:
    """Turn and move one point cloud onto another.

    Every yaw is tried with every pitch; from the best, ICP steps pair each point with the nearest of the other cloud,
    in both directions, and solve for the rigid motion (Kabsch 1976). The best of all that was seen is given, so the
    result is never worse than leaving the cloud alone.

    Args:
        source, target: (P, 3) and (Q, 3), both about the origin.
        settings: ``align_yaws``, ``align_pitches_deg`` and ``icp_steps`` are used.

    Returns:
        (4, 4) rigid, source → target.

    Source:
        Besl and McKay 1992, with pairs from both sides.
    """
    from scipy.spatial import cKDTree

    settings = settings or ShapeSettings()
    turns = _candidate_turns(settings)
    source_tree, target_tree = cKDTree(source), cKDTree(target)
    forward, _ = target_tree.query(source @ turns.transpose(0, 2, 1))
    # The nearest turned point to a target point is found by turning the target back.
    backward, _ = source_tree.query(target @ turns)
    scores = forward.mean(1) + backward.mean(1)
    rigid = np.eye(4)
    rigid[:3, :3] = turns[int(scores.argmin())]
    best, best_score = rigid, float("inf")
    for _ in range(settings.icp_steps + 1):
        to_target, nearest = target_tree.query(_moved(source, rigid))
        to_source, nearest_back = source_tree.query(_moved(target, np.linalg.inv(rigid)))
        score = float(to_target.mean() + to_source.mean())
        if score < best_score:
            best, best_score = rigid, score
        here = np.concatenate([source, source[nearest_back]])
        there = np.concatenate([target[nearest], target])
        before, rigid = rigid, rigid_fit(here, there)
        if np.abs(rigid - before).max() < _SETTLED:
            break
    return best


def _candidate_turns(settings: ShapeSettings) -> Floats:
    """(Y * P, 3, 3) rotations: yaw first, then pitch as the source camera sees it; the identity is among them."""
    yaws = torch.arange(settings.align_yaws) * (360 / settings.align_yaws)
    pitches = torch.tensor(settings.align_pitches_deg)
    turns = pitch_rotation(pitches)[:, None] @ yaw_rotation(yaws)[None]
    found: Floats = turns.reshape(-1, 3, 3).double().numpy()
    return found


def rigid_fit(source: Floats, target: Floats) -> Floats:
    """The rigid motion (4, 4) that brings paired points (P, 3) nearest in the least-squares sense; never a mirror.

    Source:
        Kabsch 1976.
    """
    from_mean, to_mean = source.mean(0), target.mean(0)
    u, _, vt = np.linalg.svd((source - from_mean).T @ (target - to_mean))
    keep = np.diag([1.0, 1.0, float(np.sign(np.linalg.det(vt.T @ u.T)) or 1.0)])
    rigid = np.eye(4)
    rigid[:3, :3] = vt.T @ keep @ u.T
    rigid[:3, 3] = to_mean - rigid[:3, :3] @ from_mean
    return rigid


def _moved(points: Floats, rigid: NDArray[np.floating[Any]]) -> Floats:
    moved: Floats = points @ rigid[:3, :3].T + rigid[:3, 3]
    return moved


def psnr(answer: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures.

    Args:
        answer, truth: (V, 3, H, W) in [0, 1].

    Returns:
        (V,) dB, at most `PSNR_CEILING`.

    Raises:
        ImageError: shapes that differ.
    """
    _check_pictures(answer, truth)
    error = (answer.double() - truth.double()).square().mean((1, 2, 3))
    return -10 * torch.log10(error.clamp(min=10 ** (-PSNR_CEILING / 10)))


def ssim(answer: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of pictures: gaussian window 11 x 11, sigma 1.5, mean over whole windows and RGB.

    Args:
        answer, truth: (V, 3, H, W) in [0, 1], at least 11 pixels a side.

    Returns:
        (V,) in [-1, 1], 1 for equal pictures.

    Raises:
        ImageError: shapes that differ, or pictures smaller than the window.

    Source:
        Wang et al. 2004, with its constants (0.01, 0.03); variances are not corrected for their bias.
    """
    _check_pictures(answer, truth)
    if min(answer.shape[2:]) < _SSIM_SIZE:
        raise ImageError(f"ssim wants pictures of at least {_SSIM_SIZE} pixels a side, found {tuple(answer.shape)}.")
    a, b = answer.double(), truth.double()
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a, var_b = _blurred(a * a) - mean_a.square(), _blurred(b * b) - mean_b.square()
    covariance = _blurred(a * b) - mean_a * mean_b
    above = (2 * mean_a * mean_b + _SSIM_C1) * (2 * covariance + _SSIM_C2)
    below = (mean_a.square() + mean_b.square() + _SSIM_C1) * (var_a + var_b + _SSIM_C2)
    return (above / below).mean((1, 2, 3))


def _blurred(pictures: Tensor) -> Tensor:
    """Gaussian mean over every whole window: (V, C, H, W) → (V, C, H - 10, W - 10)."""
    return _windows(pictures.shape[2]).to(pictures) @ pictures @ _windows(pictures.shape[3]).to(pictures).T


def _windows(length: int) -> Tensor:
    """(length - 10, length) float64: row i holds the window over i .. i + 10. A product of matrices beats a
    convolution of single channels several times over."""
    steps = torch.arange(_SSIM_SIZE, dtype=torch.float64) - _SSIM_SIZE // 2
    window = torch.exp(-steps.square() / (2 * _SSIM_SIGMA**2))
    rows = torch.zeros(length - _SSIM_SIZE + 1, length, dtype=torch.float64)
    for offset, weight in enumerate(window / window.sum()):
        rows.diagonal(offset).fill_(float(weight))
    return rows


def _check_pictures(answer: Tensor, truth: Tensor) -> None:
    if answer.shape != truth.shape or answer.ndim != 4:
        raise ImageError(
            f"pictures to compare want one shape (V, C, H, W), found {tuple(answer.shape)} and {tuple(truth.shape)}."
        )


def bootstrap_intervals(
    table: NDArray[Any], *, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> NDArray[np.float64]:
    """Intervals of the means of columns by the percentile bootstrap; rows are drawn with replacement.

    Args:
        table: (N, K) numbers, N >= 1 rows.
        resamples: how often N rows are drawn.
        seed: of the draws; the same table and seed give the same intervals.
        level: share of the resampled means inside.

    Returns:
        (K, 2) low and high.

    Raises:
        SettingsError: not a table, or no rows.
    """
    if table.ndim != 2 or not len(table):
        raise SettingsError(f"an interval wants a table with at least one row of values, found shape {table.shape}.")
    count = len(table)
    # How often each row is drawn is all that a mean needs.
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    means = drawn @ np.asarray(table, np.float64) / count
    bounds: NDArray[np.float64] = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return bounds.T
