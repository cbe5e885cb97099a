"""What keeps a mesh from bounding a solid, and mending it."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import trimesh

from lrm.mesh import Mesh
from lrm.pieces import welded
from lrm.topology import Defects, crossed_share, find_defects, find_defects_in_places, repaired
from multiview.errors import MeshError, SettingsError

TIPS = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
OUTWARD = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])

needs_manifold = pytest.mark.skipif(importlib.util.find_spec("manifold3d") is None, reason="manifold3d not installed")


def grey(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    return Mesh(vertices, faces, np.full((len(vertices), 3), 0.5))


def two_tetrahedra(second: np.ndarray) -> Mesh:
    """A tetrahedron and another with corners ``second``, joined where they are at one place."""
    places, of_vertex = welded(np.concatenate([TIPS, second]).astype(np.float32))
    return grey(places, of_vertex[np.concatenate([OUTWARD, OUTWARD + 4])])


@pytest.mark.parametrize(
    ("faces", "expected"),
    [
        (OUTWARD, Defects(0, 0, 0, 0, 0)),
        (OUTWARD[1:], Defects(3, 0, 0, 0, 0)),
        (np.concatenate([OUTWARD, [[0, 1, 1]]]), Defects(0, 0, 0, 0, 1)),
        # Turned over, a face disagrees with each of its three neighbours, and no fan holds together across them.
        (np.concatenate([OUTWARD[:3], OUTWARD[3:, ::-1]]), Defects(0, 0, 3, 3, 0)),
    ],
    ids=["solid", "open", "flat", "turned"],
)
def test_defects_are_counted(faces: np.ndarray, expected: Defects) -> None:
    assert find_defects(faces) == expected
    assert bool(expected) == (expected != Defects(0, 0, 0, 0, 0))


def test_solids_that_meet_in_a_point_or_an_edge() -> None:
    point = two_tetrahedra(-TIPS[:, [1, 0, 2]])
    assert find_defects(point.faces) == Defects(0, 0, 0, 1, 0)
    # Turned by half about z the second shares the edge from (0, 0, 0) to (0, 0, 1).
    edge = two_tetrahedra(TIPS * (-1, -1, 1))
    found = find_defects(edge.faces)
    assert found.crowded_edges == 1 and found.open_edges == 0
    assert str(found).startswith("1 edges of more than two faces")


def test_seams_are_no_holes_when_places_count() -> None:
    soup = grey(TIPS[OUTWARD].reshape(-1, 3), np.arange(12).reshape(-1, 3))
    assert find_defects(soup.faces).open_edges == 12
    assert not find_defects_in_places(soup.vertices, soup.faces)


@needs_manifold
def test_what_is_sound_stays_as_it_is() -> None:
    mesh = grey(TIPS, OUTWARD)
    again, told = repaired(mesh)
    assert again is mesh and told == ()


@needs_manifold
@pytest.mark.parametrize(
    ("mesh", "volume"),
    [
        (grey(TIPS, OUTWARD[1:]), 1 / 6),
        (grey(TIPS, OUTWARD[:, ::-1]), 1 / 6),
        (two_tetrahedra(-TIPS[:, [1, 0, 2]]), 1 / 3),
        (grey(TIPS[OUTWARD].reshape(-1, 3), np.arange(12).reshape(-1, 3)), 1 / 6),
    ],
    ids=["hole", "inside-out", "pinched", "soup"],
)
def test_mended_meshes_are_solid_even_when_a_reader_joins_places(mesh: Mesh, volume: float) -> None:
    solid, _ = repaired(mesh)
    assert not find_defects_in_places(solid.vertices, solid.faces)
    assert solid.volume == pytest.approx(volume, rel=1e-3) and solid.is_watertight
    assert solid.colors == pytest.approx(np.full((len(solid.vertices), 3), 0.5), abs=1e-6)


@needs_manifold
@pytest.mark.parametrize("seed", range(3))
def test_a_ball_that_lost_a_fifth_of_its_faces_is_whole_again(seed: int) -> None:
    ball = trimesh.creation.icosphere(3)
    kept = np.random.default_rng(seed).random(len(ball.faces)) > 0.2
    solid, told = repaired(grey(ball.vertices, ball.faces[kept]))
    assert not find_defects_in_places(solid.vertices, solid.faces)
    assert 0.9 * ball.volume < solid.volume < 1.01 * ball.volume
    assert "open edges" in told[0] and f"{int(kept.sum())} faces became" in told[0]


@needs_manifold
def test_what_has_no_volume_cannot_be_mended() -> None:
    with pytest.raises(MeshError, match=r"cannot be made a solid.*3 open edges"):
        repaired(grey(TIPS[:3], np.array([[0, 1, 2]])))


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="pip install manifold3d"):
        repaired(grey(TIPS, OUTWARD))


def test_welded_joins_exact_places_in_order() -> None:
    places, of_vertex = welded(np.array([[1, 0, 0], [0, 0, 0], [1, -0.0, 0], [0, 0, 1e-7]], np.float32))
    assert places.tolist()[:2] == [[1, 0, 0], [0, 0, 0]] and of_vertex.tolist() == [0, 1, 0, 2]


def test_crossing_faces_are_found() -> None:
    assert crossed_share(grey(TIPS, OUTWARD)) == 0
    ball = trimesh.creation.icosphere(3)
    assert crossed_share(grey(ball.vertices, ball.faces)) == 0
    # Two balls of radius 1 whose middles are 1 apart: only faces about the common circle cross, a few in a hundred.
    both = np.concatenate([ball.vertices, ball.vertices + np.array([1, 0.01, 0.02])])
    share = crossed_share(grey(both, np.concatenate([ball.faces, ball.faces + len(ball.vertices)])))
    assert 0.02 < share < 0.15
    slit = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.2, 0.2, -1], [0.2, 0.2, 1], [0.3, 0.2, 1.0]])
    assert crossed_share(grey(slit, np.array([[0, 1, 2], [3, 4, 5]]))) == 1


@needs_manifold
def test_mending_introduces_no_crossings() -> None:
    ball = trimesh.creation.icosphere(4)
    kept = np.random.default_rng(5).random(len(ball.faces)) > 0.05
    broken = grey(ball.vertices, ball.faces[kept])
    assert crossed_share(broken) == 0 and crossed_share(repaired(broken)[0]) == 0
