"""Even triangles, quads, smoothing and decimation: what stays true of the surface."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
import trimesh

from lrm.field import FunctionField
from lrm.mesh import Mesh, extract_mesh
from lrm.nearest import NearestOnMesh, nearest_weights
from lrm.remesh import isotropic, quads
from lrm.smooth import smoothed
from lrm.topology import find_defects
from multiview.errors import MeshError, SettingsError
from trilift.settings import LiftSettings
from trilift.shape import decimated, shaped


def colored(shape: trimesh.Trimesh) -> Mesh:
    """Colours that tell where a vertex is, -1 to 1 as 0 to 1."""
    return Mesh(shape.vertices, shape.faces, (np.asarray(shape.vertices) / 2 + 0.5).clip(0, 1))


def ball() -> Mesh:
    return colored(trimesh.creation.icosphere(4))


def two_balls() -> FunctionField:
    """Two balls that melt into each other: curved, with a crease."""

    def density(p: torch.Tensor) -> torch.Tensor:
        a = (p - torch.tensor([0.25, 0.0, 0.0])).norm(dim=-1)
        b = (p + torch.tensor([0.25, 0.1, 0.0])).norm(dim=-1)
        return 10.0 + 100.0 * (0.45 - torch.minimum(a, 1.3 * b))

    return FunctionField(density, lambda p: (p / 2 + 0.5).clamp(0, 1))


def edge_lengths(mesh: Mesh) -> np.ndarray:
    edges = np.unique(np.sort(mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), 1), axis=0)
    return np.linalg.norm(mesh.vertices[edges[:, 0]] - mesh.vertices[edges[:, 1]], axis=1)


def angles(mesh: Mesh) -> np.ndarray:
    """(F, 3) degrees."""
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    after, before = np.roll(corners, -1, 1) - corners, np.roll(corners, 1, 1) - corners
    cosine = (after * before).sum(-1) / np.linalg.norm(after, axis=-1) / np.linalg.norm(before, axis=-1)
    return np.degrees(np.arccos(cosine.clip(-1, 1)))


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ((0.25, 0.25, 5), (0.5, 0.25, 0.25)),  # above the inside: its foot
        ((0.5, -3, 0), (0.5, 0.5, 0)),  # beside a side: the side
        ((-1, -1, 0), (1, 0, 0)),  # beyond a corner
        ((2, 2, 0), (0, 0.5, 0.5)),
    ],
)
def test_nearest_place_of_a_triangle(point: tuple[float, ...], expected: tuple[float, ...]) -> None:
    triangle = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float64)
    assert nearest_weights(triangle, np.array(point)) == pytest.approx(expected, abs=1e-12)


def test_nearest_on_mesh_finds_large_faces_and_blends_colours() -> None:
    box = colored(trimesh.creation.box((1, 1, 1)))
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.5, 0.5, (200, 3))
    points[:, 2] = 0.75  # above the top, which has two faces
    places = NearestOnMesh(box)(points)
    assert places.distance == pytest.approx(np.full(200, 0.25)) and places.points[:, 2] == pytest.approx(
        np.full(200, 0.5)
    )
    assert NearestOnMesh(box).colors(places) == pytest.approx(places.points / 2 + 0.5, abs=1e-6)


def test_distances_are_exact_where_it_is_asked_for() -> None:
    # Long slivers beside small triangles: the samples of the nearest face are not among those that are nearest.
    rng = np.random.default_rng(3)
    corners = rng.uniform(-1, 1, (300, 1, 3)) + rng.normal(0, 0.02, (300, 3, 3)) * (1, 1, 60) ** rng.integers(
        0, 2, (300, 1, 1)
    )
    mesh = Mesh(corners.reshape(-1, 3), np.arange(900).reshape(-1, 3), np.full((900, 3), 0.5))
    points = rng.uniform(-1, 1, (400, 3))
    truth = corners.astype(np.float32).astype(np.float64)
    weights = nearest_weights(truth[None], points[:, None])
    nearest = np.linalg.norm(np.einsum("nfk,fkc->nfc", weights, truth) - points[:, None], axis=-1).min(1)
    look = NearestOnMesh(mesh)
    assert look.distances(points) == pytest.approx(nearest, abs=1e-9)
    usual = look(points).distance
    assert (usual >= nearest - 1e-9).all() and (usual > nearest + 1e-3).any(), "else this test would show nothing"
    some = look.distances(points, above=0.2)
    assert np.array_equal(some[usual <= 0.2], usual[usual <= 0.2])
    assert some[usual > 0.2] == pytest.approx(nearest[usual > 0.2], abs=1e-9)


@pytest.mark.parametrize("shape", ["ball", "box", "torus"])
def test_isotropic_is_even_closed_and_on_the_surface(shape: str) -> None:
    made = {
        "ball": trimesh.creation.icosphere(4),
        "box": trimesh.creation.box((1, 1.5, 0.5)),
        "torus": trimesh.creation.torus(0.7, 0.25),
    }[shape]
    mesh = colored(made)
    again = isotropic(mesh, 3000)
    assert not find_defects(again.faces) and again.is_watertight
    assert 2400 < len(again.faces) < 3600
    lengths = edge_lengths(again)
    assert lengths.std() < 0.2 * lengths.mean() and angles(again).min() > 20
    assert NearestOnMesh(mesh)(again.vertices).distance.max() < 1e-5, "vertices lie on the surface"
    assert again.volume == pytest.approx(mesh.volume, rel=0.02)
    assert np.abs(again.colors - (again.vertices / 2 + 0.5).clip(0, 1)).max() < 0.01


def test_isotropic_refuses_and_mends() -> None:
    with pytest.raises(MeshError, match="at least 4 faces, found 3"):
        isotropic(ball(), 3)
    if importlib.util.find_spec("manifold3d") is not None:
        whole = ball()
        assert not find_defects(isotropic(Mesh(whole.vertices, whole.faces[7:], whole.colors), 1000).faces)


def test_quads_come_in_pairs() -> None:
    pytest.importorskip("pynanoinstantmeshes", reason="extra quads is not installed")
    mesh = quads(ball(), 2000)
    assert 1000 < len(mesh.faces) < 4000 and mesh.volume == pytest.approx(4 / 3 * np.pi, rel=0.05)
    first, second = mesh.faces[0::2], mesh.faces[1::2]
    assert (first[:, 0] == second[:, 0]).all() and (first[:, 2] == second[:, 1]).all()


def test_quads_name_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"trilift\[quads\]"):
        quads(ball(), 100)


def test_smoothing_takes_noise_and_keeps_the_volume() -> None:
    mesh = ball()
    rng = np.random.default_rng(0)
    rough = Mesh(mesh.vertices * (1 + 0.01 * rng.normal(size=(len(mesh.vertices), 1))), mesh.faces, mesh.colors)
    even = smoothed(rough, 10)
    assert even.volume == pytest.approx(rough.volume, rel=1e-5)
    spread = [np.linalg.norm(each.vertices, axis=1).std() for each in (rough, even)]
    assert spread[1] < 0.45 * spread[0]
    assert smoothed(rough, 0) is rough
    with pytest.raises(MeshError, match="found -1"):
        smoothed(rough, -1)


def test_smoothing_holds_open_borders_and_seams() -> None:
    mesh = ball()
    cut = Mesh(mesh.vertices, mesh.faces[mesh.vertices[mesh.faces][..., 2].min(1) > 0], mesh.colors)
    edges = np.sort(cut.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), 1)
    unique, count = np.unique(edges, axis=0, return_counts=True)
    rim = np.unique(unique[count == 1])
    assert np.array_equal(smoothed(cut, 3).vertices[rim], cut.vertices[rim])
    soup = Mesh(mesh.vertices[mesh.faces].reshape(-1, 3), np.arange(mesh.faces.size).reshape(-1, 3),
                mesh.colors[mesh.faces].reshape(-1, 3))  # fmt: skip
    moved = smoothed(soup, 2)
    assert moved.vertices == pytest.approx(smoothed(mesh, 2).vertices[mesh.faces].reshape(-1, 3), abs=1e-5)


def test_decimated_to_20_000_faces_is_within_three_thousandths() -> None:
    fine = extract_mesh(two_balls(), mesh_resolution=160)
    assert len(fine.faces) > 80_000
    few = decimated(fine, 20_000)
    assert len(few.faces) <= 20_000
    side = float(fine.extent.max())
    there = NearestOnMesh(few)(fine.vertices[::3]).distance.max() / side
    back = NearestOnMesh(fine)(few.vertices).distance.max() / side
    assert max(there, back) < 0.003, "the farthest vertex, not the mean"
    assert np.abs(few.colors - (few.vertices / 2 + 0.5).clip(0, 1)).max() < 0.01


def test_shaped_leaves_defaults_alone_and_orders_its_steps() -> None:
    field = two_balls()
    mesh = extract_mesh(field, mesh_resolution=48)
    same, notes = shaped(mesh, field, LiftSettings())
    assert same is mesh and notes == ()
    told: list[str] = []

    class Stage:
        def __init__(self, name: str) -> None:
            told.append(name)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    settings = LiftSettings(smooth=2, remesh="isotropic", faces=1500)
    few, _ = shaped(mesh, field, settings, stage=Stage)
    assert told[:2] == ["smooth", "remesh"] and set(told) <= {"smooth", "remesh", "simplify"}
    assert len(few.faces) <= 1500 and few.is_watertight
    assert np.abs(few.colors - (few.vertices / 2 + 0.5).clip(0, 1)).max() < 1e-5, "colours are the field's"
