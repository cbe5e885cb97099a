"""Mirror planes: found where they are, and not where they are not."""

from __future__ import annotations

import numpy as np
import pytest

from lrm.cells import Cells
from lrm.mesh import Mesh
from lrm.metrics import sample_surface
from lrm.symmetry import MirrorPlane, _Search, mirror_planes


def box(extents: tuple[float, float, float], yaw_deg: float, moved: tuple[float, float] = (0, 0)) -> Mesh:
    import trimesh

    shape = trimesh.creation.box(extents)
    a = np.deg2rad(yaw_deg)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    return Mesh(shape.vertices @ turn.T + (*moved, 0), shape.faces, np.full((8, 3), 0.5))


def azimuth(plane: MirrorPlane) -> float:
    return float(np.rad2deg(np.arctan2(plane.normal[1], plane.normal[0])) % 180)


def test_a_turned_box_has_its_two_planes() -> None:
    planes = mirror_planes(box((1.0, 0.4, 0.3), 31.0, (0.2, -0.1)))
    assert sorted(azimuth(p) for p in planes) == pytest.approx([31.0, 121.0], abs=1.0)
    for plane in planes:
        assert plane.error < 0.004 and plane.normal[2] == 0
        # The box's middle lies on its planes.
        assert np.dot(plane.normal[:2], (0.2, -0.1)) == pytest.approx(plane.offset, abs=0.01)


def test_what_has_no_plane_gets_none() -> None:
    # An L whose arms differ in length and thickness.
    long, short = box((1.0, 0.2, 0.3), 0.0), box((0.3, 0.6, 0.3), 0.0, (0.35, 0.4))
    both = Mesh(
        np.concatenate([long.vertices, short.vertices]),
        np.concatenate([long.faces, short.faces + 8]),
        np.full((16, 3), 0.5),
    )
    assert mirror_planes(both, good=0.01) == []


@pytest.mark.parametrize("angle", [0.0, 0.7, 2.5])
def test_mirroring_twice_changes_nothing(angle: float) -> None:
    plane = MirrorPlane((float(np.cos(angle)), float(np.sin(angle)), 0.0), 0.2, 0.0)
    points = np.random.default_rng(0).normal(size=(20, 3))
    assert plane.mirrored(plane.mirrored(points)) == pytest.approx(points)
    assert plane.turned(plane.turned(points)) == pytest.approx(points)
    assert np.linalg.norm(plane.turned(points), axis=1) == pytest.approx(np.linalg.norm(points, axis=1))
    assert (plane.mirrored(points) + points) @ np.array(plane.normal) / 2 == pytest.approx(np.full(20, 0.2))


def test_the_search_is_repeatable() -> None:
    mesh = box((1.0, 0.4, 0.3), 12.0)
    assert mirror_planes(mesh, seed=3) == mirror_planes(mesh, seed=3)


def test_the_quick_search_measures_what_exact_distances_say() -> None:
    from scipy.spatial import cKDTree

    mesh = box((1.0, 0.4, 0.3), 31.0, (0.2, -0.1))
    points = sample_surface(mesh, 26_000, np.random.default_rng(0))
    search = _Search(points[:1500], Cells(points[1500:], 48), 1.0)
    angles = np.deg2rad([0.0, 31.0, 60.0, 76.0, 121.0, 150.0])
    offsets = search.middles(angles) + np.array([0.0, 0.0, 0.05, -0.1, 0.0, 0.02])
    tree = cKDTree(points[1500:])
    for angle, offset, found in zip(angles, offsets, search.errors(angles, offsets), strict=True):
        plane = MirrorPlane((float(np.cos(angle)), float(np.sin(angle)), 0.0), float(offset), 0.0)
        exact = np.minimum(tree.query(plane.mirrored(points[:1500]))[0], 0.2).mean()
        assert found == pytest.approx(exact, abs=1 / 96)  # half a cell
    # A box's middle is that of its points.
    assert search.middles(np.deg2rad([31.0]))[0] == pytest.approx(0.2 * np.cos(0.541) - 0.1 * np.sin(0.541), abs=0.005)


def test_meshes_of_many_faces_have_the_planes_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    import trimesh

    shape = trimesh.creation.icosphere(5, 0.5)  # 20,480 faces
    egg = Mesh(shape.vertices * (1.0, 0.6, 0.8), shape.faces, np.full((len(shape.vertices), 3), 0.5))
    found = [sorted(azimuth(plane) % 90 for plane in mirror_planes(egg))]
    monkeypatch.setattr("lrm.symmetry._FACES", 2000)
    found.append(sorted(azimuth(plane) % 90 for plane in mirror_planes(egg)))
    for angles in found:
        assert len(angles) == 2 and all(min(angle, 90 - angle) < 1.5 for angle in angles)
