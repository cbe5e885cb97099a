"""`train.frames`: how other makers' files lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrm.mesh import Mesh
from lrm.meshfile import read_mesh
from multiview.errors import SettingsError
from train.frames import AXES, FRAMES, Frame

POINT = np.array([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("name", "world"),
    [
        ("trilift", (3, 1, 2)),  # file z is front, x is left of the picture's right (+y), y is up
        ("gltf", (3, 1, 2)),
        ("triposr", (1, 2, 3)),
        ("syncdreamer", (1, 2, 3)),
        ("instantmesh", (1, 2, -3)),  # the file holds (x, y, -z)
        ("blender", (-2, 1, 3)),
        ("y,-z", (-3, -1, 2)),
        ("+x,+y", (2, 3, 1)),
    ],
)
def test_frames_turn_file_points_into_the_world(name: str, world: tuple[float, ...]) -> None:
    np.testing.assert_allclose(Frame.parse(name).world_from_file() @ POINT, world, atol=1e-12)


def test_the_camera_frames_are_stood_upright_by_the_elevation() -> None:
    """A camera at elevation 30 that looks at the origin stands at (cos 30, 0, sin 30); its right is +y."""
    cosine, sine = np.cos(np.pi / 6), np.sin(np.pi / 6)
    to_viewer, right, up = np.eye(3)[2], np.eye(3)[0], np.eye(3)[1]
    opengl = FRAMES["camera"].world_from_file(30.0)
    np.testing.assert_allclose(opengl @ to_viewer, (cosine, 0, sine), atol=1e-6)
    np.testing.assert_allclose(opengl @ right, (0, 1, 0), atol=1e-6)
    np.testing.assert_allclose(opengl @ up, (-sine, 0, cosine), atol=1e-6)
    opencv = FRAMES["opencv"].world_from_file(30.0)
    np.testing.assert_allclose(opencv, opengl @ np.diag([1.0, -1, -1]), atol=1e-6)


def test_openlrm_lies_as_its_published_model_does() -> None:
    from lrm.openlrm import _WORLD_FROM_PUBLISHED

    np.testing.assert_allclose(FRAMES["openlrm"].world_from_file(0.0), _WORLD_FROM_PUBLISHED, atol=1e-6)
    assert FRAMES["openlrm"].pitched


@given(st.sampled_from(AXES), st.sampled_from(AXES), st.booleans(), st.booleans(), st.floats(-80, 80))
def test_turns_are_rotations_and_mirrors_mirror(
    up: str, front: str, pitched: bool, mirrored: bool, elevation: float
) -> None:
    if up[1] == front[1]:
        with pytest.raises(SettingsError, match="two different axes"):
            Frame(up, front)
        return
    turn = Frame(up, front, pitched, mirrored).world_from_file(elevation)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(turn) == pytest.approx(-1 if mirrored else 1, abs=1e-6)


def test_a_mesh_that_was_read_is_stood_as_its_file_says(tmp_path: Path) -> None:
    path = tmp_path / "a.obj"
    path.write_text("v 1 2 3\nv 4 2 3\nv 1 6 3\nf 1 2 3\n")
    corners = np.array([[1, 2, 3], [4, 2, 3], [1, 6, 3]], np.float64)
    np.testing.assert_allclose(FRAMES["triposr"].stand(read_mesh(path)).vertices, corners, atol=1e-6)
    same = read_mesh(path)
    np.testing.assert_array_equal(FRAMES["trilift"].stand(same).vertices, same.vertices)
    flipped = FRAMES["instantmesh"].stand(same)
    np.testing.assert_allclose(flipped.vertices, corners * (1, 1, -1), atol=1e-6)
    np.testing.assert_allclose(normal(flipped), normal(FRAMES["triposr"].stand(same)) * (1, 1, -1), atol=1e-6)


def normal(mesh: Mesh) -> np.ndarray:
    a, b, c = mesh.vertices[mesh.faces[0]]
    return np.cross(b - a, c - a)


def test_upright_keeps_what_is_up_and_is_a_rotation() -> None:
    for axis in ("x", "y", "z", "-x", "-y", "-z"):
        frame = Frame.upright(axis)
        turn = frame.world_from_file()
        up = np.zeros(3)
        up["xyz".index(axis[-1])] = -1 if axis[0] == "-" else 1
        np.testing.assert_allclose(turn @ up, (0, 0, 1), atol=1e-12)
        assert np.linalg.det(turn) == pytest.approx(1)
    assert Frame.upright("y") == FRAMES["trilift"], "plain files are read as ours"


@pytest.mark.parametrize("text", ["", "z", "z,y,x", "up,front", "z,-y,tilted"])
def test_other_words_are_no_frames(text: str) -> None:
    with pytest.raises(SettingsError, match=r"triposr.*up and front"):
        Frame.parse(text)
    with pytest.raises(SettingsError, match="expected one of x, y, z"):
        Frame.upright("w")


def test_words_are_parsed_and_told() -> None:
    frame = Frame.parse(" Z, -Y ,mirrored,pitched")
    assert frame == Frame("+z", "-y", True, True)
    assert frame.words == "+z up, front -y, pitched, mirrored"
