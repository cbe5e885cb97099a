"""What holds for the mesh of any field: it is the dense mesh, closed, outward, and nothing thick enough is lost."""

from __future__ import annotations

import math
from collections.abc import Callable

import mcubes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree
from torch import Tensor

from lrm.field import FunctionField
from lrm.lattice import Evaluator, Lattice, SparseSamples, scan
from lrm.marching import Crossings, follow_surface, march_layers, place_vertices, triangulate
from lrm.mesh import Mesh, extract_mesh, extract_mesh_with_report
from lrm.pieces import outer_faces

seeds = st.integers(0, 2**31 - 1)
SAMPLES = 41
STEP = 4


def waves(seed: int, highest: float = 5.0) -> Callable[[Tensor], Tensor]:
    """A random smooth function of points in [-1, 1]^3: twelve waves of up to ``highest`` radians per unit."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(12, 3, generator=generator), dim=1)
    k = directions * torch.rand(12, 1, generator=generator) * highest
    phase, height = torch.rand(12, generator=generator) * 2 * math.pi, torch.randn(12, generator=generator)
    return lambda p: (torch.sin(p @ k.T + phase) * height).sum(-1)


def gray(points: Tensor) -> Tensor:
    return torch.full_like(points, 0.5)


def sparse(function: Callable[[Tensor], Tensor], samples: int, step: int) -> tuple[Lattice, Crossings, np.ndarray]:
    """All pieces of the level set 0, unrefined."""
    lattice = Lattice((-1.0,) * 3, 2 / (samples - 1), (samples,) * 3)
    evaluate = Evaluator(function, torch.device("cpu"), 100_000)
    kept = SparseSamples(lattice, evaluate, 0.0)
    crossings = triangulate(kept, follow_surface(kept, scan(lattice, step, evaluate), small_pieces=True))
    return lattice, crossings, place_vertices(crossings, evaluate, 0)


def dense(function: Callable[[Tensor], Tensor], lattice: Lattice) -> tuple[np.ndarray, np.ndarray]:
    """PyMCubes over every sample, with a layer far below the level around it."""
    index = np.stack(np.meshgrid(*(np.arange(1, n + 1) for n in lattice.shape), indexing="ij"), -1).reshape(-1, 3)
    values = function(torch.from_numpy(lattice.positions(index))).numpy().reshape(lattice.shape)
    vertices, faces = mcubes.marching_cubes(np.pad(values.astype(np.float64), 1, constant_values=-1e9), 0.0)
    return lattice.positions(vertices), faces.astype(np.int64)


def canonical(vertices: np.ndarray, faces: np.ndarray, lattice: Lattice) -> set[tuple[int, ...]]:
    """Each triangle as its corners in hundredths of a cell, turned so that the smallest comes first."""
    cells = np.rint((vertices.astype(np.float64) - lattice.origin) / lattice.spacing * 100).astype(np.int64)
    keys = (cells[:, 0] << 40) + (cells[:, 1] << 20) + cells[:, 2]
    corners = keys[faces]
    turn = corners.argmin(1)
    return {tuple(np.roll(c, -t)) for c, t in zip(corners.tolist(), turn.tolist(), strict=True)}


@settings(max_examples=25)
@given(seeds)
def test_the_sparse_mesh_is_the_dense_mesh(seed: int) -> None:
    function = waves(seed)
    lattice, crossings, vertices = sparse(function, SAMPLES, STEP)
    expected, faces = dense(function, lattice)
    assert (len(vertices), len(crossings.faces)) == (len(expected), len(faces))
    # A vertex on a sample is kept a ten-thousandth of a cell away from it.
    tolerance = 1e-6 + 1.1e-4 * lattice.spacing
    assert cKDTree(expected).query(vertices)[0].max() < tolerance
    assert cKDTree(vertices).query(expected)[0].max() < tolerance
    mesh = Mesh(vertices, crossings.faces, np.zeros_like(vertices))
    assert mesh.is_watertight and mesh.volume > 0


def test_the_sparse_mesh_has_the_dense_meshs_very_triangles() -> None:
    function = waves(7)
    lattice, crossings, vertices = sparse(function, 65, STEP)
    expected, faces = dense(function, lattice)
    mine, theirs = canonical(vertices, crossings.faces, lattice), canonical(expected, faces, lattice)
    # Corners that round to different hundredths of a cell cost a few matches.
    assert len(mine & theirs) > 0.99 * len(theirs)
    turned = canonical(vertices, crossings.faces[:, ::-1], lattice)
    assert len(turned & theirs) < 0.05 * len(theirs)  # slivers with two corners that round to one


@settings(max_examples=15)
@given(seeds, st.sampled_from([20, 31]))
def test_marching_layer_by_layer_gives_the_very_same_mesh_as_following(seed: int, samples: int) -> None:
    function = waves(seed)
    lattice, followed, vertices = sparse(function, samples, step=1)
    evaluate = Evaluator(function, torch.device("cpu"), 1000)
    marched = march_layers(lattice, evaluate, 0.0)
    assert evaluate.count == samples**3
    for name in ("start", "axis", "faces"):
        np.testing.assert_array_equal(getattr(marched, name), getattr(followed, name))
    assert np.abs(place_vertices(marched, evaluate, 0) - vertices).max() < 1e-6 * np.ptp(vertices, axis=0).max()
    assert len(np.unique(marched.start, axis=0)) <= marched.cells == followed.cells


@settings(max_examples=5)
@given(seeds)
def test_noise_is_marched_densely_and_gives_the_dense_mesh(seed: int) -> None:
    # Random numbers on 24 nodes per axis, linear in between: at their median the surface is nearly everywhere.
    nodes = torch.randn(1, 1, 24, 24, 24, generator=torch.Generator().manual_seed(seed))

    def noise(p: Tensor) -> Tensor:
        at = p.flip(-1)[None, None, None]
        return torch.nn.functional.grid_sample(nodes, at, align_corners=True)[0, 0, 0, 0]

    field = FunctionField(lambda p: 10 + noise(p), gray)
    mesh, report = extract_mesh_with_report(
        field, mesh_resolution=SAMPLES, threshold=10.0, fit_box=False, refine_steps=0, keep_pieces=0.01
    )
    assert report.way == "dense" and report.evaluations > SAMPLES**3
    lattice = Lattice((-1.0,) * 3, 2 / (SAMPLES - 1), (SAMPLES,) * 3)
    expected, faces = dense(lambda p: field.density(p) - 10, lattice)
    stays, dropped = outer_faces(expected, faces, 0.01)
    assert (len(mesh.faces), report.pieces_dropped) == (stays.sum(), dropped)
    expected = expected[np.unique(faces[stays])]
    tolerance = 1e-6 + 1.1e-4 * lattice.spacing
    assert len(mesh.vertices) == len(expected)
    assert cKDTree(expected).query(mesh.vertices)[0].max() < tolerance
    assert cKDTree(mesh.vertices).query(expected)[0].max() < tolerance
    assert mesh.is_watertight


def test_far_fewer_samples_than_dense() -> None:
    field = FunctionField(lambda p: 10 + 20 * (0.6 - p.norm(dim=-1)), gray)
    _, report = extract_mesh_with_report(field, mesh_resolution=256, fit_box=False, refine_steps=0)
    assert report.evaluations < 256**3 / 40


@settings(max_examples=25)
@given(seeds, st.floats(-0.3, 0.3))
def test_plates_of_one_and_a_half_coarse_cells_are_never_lost(seed: int, offset: float) -> None:
    # A hard-edged round plate, flat on both sides, in any direction; the coarse samples see nothing near it.
    normal = torch.nn.functional.normalize(torch.randn(3, generator=torch.Generator().manual_seed(seed)), dim=0)
    lattice_step = 2 / 64
    thickness = 1.5 * STEP * lattice_step

    def distance(p: Tensor) -> Tensor:
        height = p @ normal
        across = (p - height[:, None] * normal).norm(dim=-1)
        return torch.maximum((height - offset).abs() - thickness / 2, across - 0.5)

    field = FunctionField(lambda p: 20.0 * (distance(p) < 0), gray)
    mesh = extract_mesh(field, mesh_resolution=65, fit_box=False, refine_steps=6)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(math.pi * 0.25 * thickness, rel=0.05)


@settings(max_examples=15)
@given(seeds, st.sampled_from([24, 33, 50]), st.booleans())
def test_any_smooth_field_gives_a_closed_outward_mesh(seed: int, samples: int, fit_box: bool) -> None:
    # Waves cross the cube's faces nearly always, so this is about closing at the border, too.
    wave = waves(seed)
    field = FunctionField(lambda p: 10 + wave(p), lambda p: torch.sigmoid(p))
    mesh = extract_mesh(field, mesh_resolution=samples, fit_box=fit_box, threshold=10.0)
    assert mesh.is_watertight and mesh.volume > 0
    assert np.abs(mesh.vertices).max() <= 1.0 + 1e-6
    np.testing.assert_allclose(mesh.colors, torch.sigmoid(torch.from_numpy(mesh.vertices)).numpy(), atol=1e-6)


@settings(max_examples=15)
@given(st.floats(0.15, 0.6), st.tuples(*[st.floats(-0.35, 0.35)] * 3), st.sampled_from([40, 64]))
def test_spheres_are_round_wherever_they_are(radius: float, center: tuple[float, float, float], samples: int) -> None:
    middle = torch.tensor(center)
    field = FunctionField(lambda p: 10 - 15 * ((p - middle).norm(dim=-1) - radius), gray)
    mesh, report = extract_mesh_with_report(field, mesh_resolution=samples)
    cell = max(np.subtract(*report.box[::-1])) / (max(report.shape) - 1)
    away = np.linalg.norm(mesh.vertices - np.asarray(center), axis=1)
    assert np.abs(away - radius).max() < 0.02 * cell
    normals = (mesh.vertices - np.asarray(center)) / away[:, None]
    assert (mesh.normals * normals).sum(1).min() > 0.98
    assert mesh.is_watertight and len(mesh.vertices) - len(mesh.faces) // 2 == 2


@settings(max_examples=10)
@given(seeds)
def test_a_turned_field_gives_the_turned_mesh(seed: int) -> None:
    # x -> y -> z -> x: the lattice turns into itself, so surfaces agree but for how ambiguous cells are cut.
    wave = waves(seed, 3.0)
    one, two = (
        extract_mesh(
            FunctionField(lambda p, o=order: 10 + wave(p[:, o]), gray),
            mesh_resolution=32,
            fit_box=False,
            threshold=10.0,
        )
        for order in ([0, 1, 2], [2, 0, 1])
    )
    assert two.volume == pytest.approx(one.volume, rel=1e-3)
    np.testing.assert_allclose(two.bounds[:, [2, 0, 1]], one.bounds, atol=1e-3)
