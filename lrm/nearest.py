"""The nearest place on a mesh's surface, for points that are close to it, and what the mesh says there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .mesh import Mesh

Floats = NDArray[np.floating[Any]]

_CANDIDATES = 8  # faces that are looked at for each point; the nearest is among them for meshes of even triangles
_CHUNK = 1 << 16  # points per pass; changes memory, never results
_EXACT_CHUNK = 2000  # the same where every face within reach is looked at
_DENSITY = 4.0  # samples of large faces are at most this many mean edge lengths apart


@dataclass(frozen=True)
class Places:
    """Places on a surface.

    Attributes:
        points: (N, 3) float64.
        face: (N,) int64 the face that each is on.
        weights: (N, 3) float64 barycentric, >= 0, sum 1.
        distance: (N,) float64 to the point that was asked for.
    """

    points: Floats
    face: NDArray[np.int64]
    weights: Floats
    distance: Floats


class NearestOnMesh:
    """Looks places up on one mesh.

    The nearest face is searched among those whose samples are nearest (a k-d tree over the middles of faces, and over
    more points of large faces), and the nearest place of it is exact: what comes back is on the surface, and at most a
    triangle's size farther than the very nearest place.
    """

    def __init__(self, mesh: Mesh) -> None:
        from scipy.spatial import cKDTree

        self.mesh = mesh
        self._corners = mesh.vertices.astype(np.float64)[mesh.faces]
        points, self._face = _samples(self._corners)
        self._tree = cKDTree(points)
        self._reach = _farthest(self._corners)

    def __call__(self, points: Floats) -> Places:
        """The nearest places to ``points`` (N, 3)."""
        parts = [self._look(points[at : at + _CHUNK]) for at in range(0, len(points), _CHUNK)]
        return Places(
            np.concatenate([p.points for p in parts]), np.concatenate([p.face for p in parts]),
            np.concatenate([p.weights for p in parts]), np.concatenate([p.distance for p in parts]),
        )  # fmt: skip

    def colors(self, places: Places) -> Floats:
        """sRGB (N, 3) at places: the texture's, bilinear, where the mesh has one, else blended vertex colours."""
        mesh = self.mesh
        if mesh.texture is None or mesh.uvs is None:
            return np.einsum("nk,nkc->nc", places.weights, mesh.colors[mesh.faces[places.face]])
        uvs = np.einsum("nk,nkc->nc", places.weights, mesh.uvs[mesh.faces[places.face]])
        height, width = mesh.texture.shape[:2]
        x, y = uvs[:, 0] * width - 0.5, (1 - uvs[:, 1]) * height - 0.5
        left, top = np.floor(x), np.floor(y)
        columns = np.stack([left, left + 1]).astype(np.int64).clip(0, width - 1)
        rows = np.stack([top, top + 1]).astype(np.int64).clip(0, height - 1)
        fx, fy = (x - left)[:, None], (y - top)[:, None]
        upper, lower = (mesh.texture[row, columns[0]] * (1 - fx) + mesh.texture[row, columns[1]] * fx for row in rows)
        blended: Floats = (upper * (1 - fy) + lower * fy) / 255
        return blended

    def distances(self, points: Floats, *, above: float = 0.0) -> Floats:
        """Distances (N,) of ``points`` (N, 3) from the surface, exact where they come out larger than ``above``.

        What a call gives is at most a triangle too far. Here every face that could be nearer is looked at, too; that
        takes longer, and who asks for the largest distance alone need not ask it of the others.
        """
        found = self(points).distance
        for at in np.array_split(np.flatnonzero(found > above), max(len(points) // _EXACT_CHUNK, 1)):
            if not len(at):
                continue
            # A nearer place is on a face one of whose samples is within that distance and the face's own reach.
            near = self._tree.query_ball_point(points[at], found[at] + self._reach)
            row = np.repeat(np.arange(len(at)), [len(each) for each in near])
            corners = self._corners[self._face[np.concatenate([np.asarray(each, np.int64) for each in near])]]
            weights = nearest_weights(corners, points[at][row])
            away = np.linalg.norm(np.einsum("nc,ncd->nd", weights, corners) - points[at][row], axis=1)
            np.minimum.at(found, at[row], away)
        return found

    def _look(self, points: Floats) -> Places:
        count = min(_CANDIDATES, len(self._face))
        near = self._tree.query(points, count)[1].reshape(len(points), count)
        faces = self._face[near]
        weights = nearest_weights(self._corners[faces], points[:, None])
        found = np.einsum("nkc,nkcd->nkd", weights, self._corners[faces])
        squared = ((found - points[:, None]) ** 2).sum(-1)
        row, best = np.arange(len(points)), squared.argmin(1)
        return Places(found[row, best], faces[row, best], weights[row, best], np.sqrt(squared[row, best]))


def nearest_weights(corners: Floats, points: Floats) -> Floats:
    """Barycentric weights of the nearest place of each triangle to a point.

    Args:
        corners: (..., 3, 3).
        points: (..., 3), broadcast against ``corners``.

    Returns:
        (..., 3), >= 0, sum 1. The place is inside where the foot of the perpendicular is, else on the nearest side.
    """
    a, b, c = corners[..., 0, :], corners[..., 1, :], corners[..., 2, :]
    ab, ac, ap = b - a, c - a, points - a
    d00, d01, d11 = (ab * ab).sum(-1), (ab * ac).sum(-1), (ac * ac).sum(-1)
    d20, d21 = (ap * ab).sum(-1), (ap * ac).sum(-1)
    area = d00 * d11 - d01 * d01
    safe = np.where(area > 0, area, 1.0)
    v, w = (d11 * d20 - d01 * d21) / safe, (d00 * d21 - d01 * d20) / safe
    inside = (area > 0) & (v >= 0) & (w >= 0) & (v + w <= 1)
    foot = np.stack([1 - v - w, v, w], -1)
    best, least = np.zeros_like(foot), np.full(foot.shape[:-1], np.inf)
    for start, end in ((0, 1), (1, 2), (2, 0)):
        p, q = corners[..., start, :], corners[..., end, :]
        along = q - p
        length = (along * along).sum(-1)
        t = np.clip(((points - p) * along).sum(-1) / np.where(length > 0, length, 1.0), 0, 1)
        away = ((p + t[..., None] * along - points) ** 2).sum(-1)
        nearer = away < least
        least = np.where(nearer, away, least)
        side = np.zeros_like(foot)
        side[..., start], side[..., end] = 1 - t, t
        best = np.where(nearer[..., None], side, best)
    weights: Floats = np.where(inside[..., None], foot, best)
    return weights


def _farthest(corners: Floats) -> float:
    """How far a place on any face (F, 3, 3) may be from the nearest of its samples, at most (see `_samples`)."""
    sides, cuts = _cuts(corners)
    from_middle = np.linalg.norm(corners - corners.mean(1, keepdims=True), axis=-1).max(1)
    # A small triangle of a lattice is no longer than a cut of the longest side, and no place in it farther from a tip.
    return float(np.where(cuts > 1, np.minimum(sides / cuts, from_middle), from_middle).max())


def _cuts(corners: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """(F,) longest sides of faces (F, 3, 3), and into how many parts their samples cut them."""
    sides = np.linalg.norm(corners - np.roll(corners, 1, 1), axis=-1).max(1)
    usual = max(float(np.median(sides)), 1e-12)
    return sides, np.clip(np.ceil(sides / (_DENSITY * usual)), 1, 64).astype(np.int64)


def _samples(corners: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Points (M, 3) on faces (F, 3, 3) and their faces (M,): the middle, and a lattice over faces that are large."""
    cuts = _cuts(corners)[1]
    points, faces = [corners.mean(1)], [np.arange(len(corners))]
    for cut in np.unique(cuts[cuts > 1]):
        chosen = np.flatnonzero(cuts == cut)
        i, j = np.nonzero(np.add.outer(np.arange(cut + 1), np.arange(cut + 1)) <= cut)
        weights = np.stack([cut - i - j, i, j], -1) / cut
        points.append(np.einsum("mk,fkd->fmd", weights, corners[chosen]).reshape(-1, 3))
        faces.append(chosen.repeat(len(weights)))
    return np.concatenate(points), np.concatenate(faces)
