"""Round trips through files, for any mesh."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrm.mesh import Mesh
from lrm.meshfile import file_matrix, read_mesh, write_mesh
from multiview.color import linear_from_srgb, srgb_from_linear
from tests.glb_check import validate_glb

SEEDS = st.integers(0, 2**32 - 1)


def random_mesh(seed: int) -> Mesh:
    """A soup of up to 40 triangles on up to 30 vertices of any size and place, every vertex in some face."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 31))
    scale = 10.0 ** rng.uniform(-2, 2)
    vertices = (rng.normal(size=(count, 3)) * rng.uniform(0.1, 1, 3) + rng.normal(size=3)) * scale
    faces = np.stack([rng.permutation(count)[:3] for _ in range(int(rng.integers(1, 41)))])
    chain = np.stack([np.arange(count), (np.arange(count) + 1) % count, (np.arange(count) + 2) % count], 1)
    return Mesh(vertices, np.concatenate([chain, faces]), rng.random((count, 3)))


@pytest.mark.parametrize(("name", "color_step"), [("glb", 2e-4), ("ply", 1 / 255), ("obj", 1.2 / 255)])
@settings(max_examples=25)
@given(seed=SEEDS)
def test_what_is_written_is_read_back(name: str, color_step: float, seed: int) -> None:
    mesh = random_mesh(seed)
    matrix = file_matrix(mesh)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{name}"
        write_mesh(mesh, path, matrix=matrix)
        back = read_mesh(path)
        if name == "glb":
            validate_glb(path.read_bytes())
    # read_mesh turns the axes back and leaves scale and origin as the file has them.
    side = float(np.ptp(mesh.vertices.astype(np.float64), axis=0).max())
    low, high = mesh.vertices.min(0).astype(np.float64), mesh.vertices.max(0).astype(np.float64)
    expected = (mesh.vertices - (low + high) / 2) / side
    assert np.abs(back.vertices - expected).max() < 2e-6
    assert np.array_equal(back.faces, mesh.faces)
    assert np.abs(back.colors - mesh.colors).max() <= color_step


@settings(max_examples=25)
@given(seed=SEEDS)
def test_stl_keeps_the_corners_in_order(seed: int) -> None:
    mesh = random_mesh(seed)
    with tempfile.TemporaryDirectory() as folder:
        write_mesh(mesh, Path(folder) / "a.stl", matrix=file_matrix(mesh, scale=1.0))
        back = read_mesh(Path(folder) / "a.stl")
    low, high = mesh.bounds.astype(np.float64)
    expected = (mesh.vertices - (low + high) / 2)[mesh.faces]
    found = back.vertices[back.faces]
    size = float(np.ptp(mesh.vertices, axis=0).max())
    assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-5 * size


@given(seed=SEEDS, height=st.floats(0.01, 1000))
def test_file_matrix_is_a_similarity_and_invertible(seed: int, height: float) -> None:
    mesh = random_mesh(seed)
    matrix = file_matrix(mesh, height=height)
    inverse = np.linalg.inv(matrix)
    assert np.abs(matrix @ inverse - np.eye(4)).max() < 1e-9
    placed = mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3]
    assert np.ptp(placed[:, 1]) == pytest.approx(height, rel=1e-5)
    assert np.abs(placed.min(0) + placed.max(0)).max() < 1e-4 * np.ptp(placed, axis=0).max()
    assert np.linalg.det(matrix[:3, :3]) > 0


@given(value=st.floats(0, 1))
def test_srgb_pair_is_inverse(value: float) -> None:
    assert float(srgb_from_linear(linear_from_srgb(value))) == pytest.approx(value, abs=1e-12)
