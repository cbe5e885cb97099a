"""What holds for any camera."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multiview.cameras import (
    Cameras,
    crop_intrinsics,
    gltf_from_world,
    invert_rigid,
    look_at,
    opencv_from_opengl,
    opengl_from_blender,
    opengl_from_opencv,
    orbit,
    pitch_rotation,
    project,
    rays,
    world_from_gltf,
    yaw_rotation,
)

azimuths = st.floats(-720, 720)
elevations = st.floats(-90, 90)
off_the_poles = st.floats(-85, 85)
distances = st.floats(0.5, 20)
fovs = st.floats(10, 120)
angles = st.floats(-360, 360)


@given(azimuths, elevations, distances, fovs)
def test_poses_are_rigid_and_look_at_the_origin(azimuth: float, elevation: float, distance: float, fov: float) -> None:
    cameras = orbit(azimuth, elevation, distance, fov)
    torch.testing.assert_close(cameras.c2w @ cameras.w2c, torch.eye(4)[None], atol=1e-5 * distance, rtol=0)
    assert torch.linalg.det(cameras.c2w[0, :3, :3]).item() == pytest.approx(1, abs=1e-5)
    uv, depth = project(cameras, torch.zeros(1, 3))
    torch.testing.assert_close(uv[0, 0], torch.tensor([0.5, 0.5]), atol=1e-5, rtol=0)
    assert depth.item() == pytest.approx(distance, rel=1e-5)
    assert cameras.fov_y_deg.item() == pytest.approx(fov, abs=1e-3)


@given(azimuths, off_the_poles, distances)
def test_orbit_is_look_at_off_the_poles(azimuth: float, elevation: float, distance: float) -> None:
    c2w = orbit(azimuth, elevation, distance, 40).c2w
    torch.testing.assert_close(look_at(c2w[:, :3, 3], torch.zeros(3)), c2w, atol=2e-5, rtol=0)


@given(azimuths, elevations, fovs, st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 10))
def test_a_ray_projects_back_to_its_pixel(
    azimuth: float, elevation: float, fov: float, height: int, width: int, reach: float
) -> None:
    cameras = orbit(azimuth, elevation, 2.0, fov)
    origins, directions = rays(cameras, height, width)
    torch.testing.assert_close(directions.norm(dim=-1), torch.ones(1, height * width), atol=1e-5, rtol=0)
    uv, depth = project(cameras, (origins + reach * directions))
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    expected = torch.stack([(u.reshape(-1) + 0.5) / width, (v.reshape(-1) + 0.5) / height], -1)
    torch.testing.assert_close(uv[0], expected, atol=2e-4, rtol=0)
    assert (depth > 0).all()


@given(fovs, st.integers(0, 5), st.integers(0, 5), st.integers(1, 3), st.integers(1, 3))
def test_a_crop_sees_the_rays_of_its_pixels(fov: float, left: int, top: int, width: int, height: int) -> None:
    full = orbit(20, 10, 2.0, fov)
    k = crop_intrinsics(full.intrinsics, left / 8, top / 8, width / 8, height / 8)
    _, part = rays(Cameras(full.c2w, k), height, width)
    _, whole = rays(full, 8, 8)
    expected = whole.reshape(8, 8, 3)[top : top + height, left : left + width].reshape(1, -1, 3)
    torch.testing.assert_close(part, expected, atol=1e-5, rtol=0)


@given(azimuths, elevations, distances)
def test_converters_are_their_own_way_back(azimuth: float, elevation: float, distance: float) -> None:
    c2w = orbit(azimuth, elevation, distance, 40).c2w
    assert torch.equal(opengl_from_opencv(opencv_from_opengl(c2w)), c2w)
    assert torch.equal(opencv_from_opengl(opengl_from_opencv(c2w)), c2w)
    torch.testing.assert_close(opengl_from_blender(c2w), c2w, atol=1e-6, rtol=0)
    torch.testing.assert_close(invert_rigid(invert_rigid(c2w)), c2w, atol=1e-5 * distance, rtol=0)


@given(st.lists(st.tuples(*[st.floats(-100, 100, width=32)] * 3), min_size=1, max_size=5))
def test_file_axes_are_a_rotation_and_come_back(numbers: list[tuple[float, float, float]]) -> None:
    points = torch.tensor(numbers, dtype=torch.float32)
    assert torch.equal(world_from_gltf(gltf_from_world(points)), points)
    assert torch.equal(gltf_from_world(world_from_gltf(points)), points)
    # Rows are the images of the axes: orthonormal and not a mirror.
    matrix = gltf_from_world(torch.eye(3)).T
    assert torch.equal(matrix @ matrix.T, torch.eye(3))
    assert torch.linalg.det(matrix).item() == pytest.approx(1)
    torch.testing.assert_close(points @ matrix.T, gltf_from_world(points))


@given(angles, angles)
def test_turns_add_up(first: float, second: float) -> None:
    for turn in (pitch_rotation, yaw_rotation):
        torch.testing.assert_close(turn(first) @ turn(second), turn(first + second), atol=1e-5, rtol=0)
        torch.testing.assert_close(turn(first) @ turn(-first), torch.eye(3), atol=1e-6, rtol=0)


@given(azimuths, off_the_poles, distances)
def test_yaw_then_pitch_make_the_orbit(azimuth: float, elevation: float, distance: float) -> None:
    position = yaw_rotation(azimuth) @ pitch_rotation(elevation) @ torch.tensor([distance, 0.0, 0.0])
    expected = orbit(azimuth, elevation, distance, 40).positions[0]
    torch.testing.assert_close(position, expected, atol=3e-5 * distance, rtol=0)


@given(angles, azimuths, off_the_poles)
def test_turning_camera_and_points_together_changes_nothing(yaw: float, azimuth: float, elevation: float) -> None:
    points = torch.tensor([[0.3, -0.2, 0.1], [-0.4, 0.5, 0.25]])
    still, _ = project(orbit(azimuth, elevation, 2.0, 40), points)
    turned, _ = project(orbit(azimuth + yaw, elevation, 2.0, 40), points @ yaw_rotation(yaw).T)
    torch.testing.assert_close(turned, still, atol=1e-4, rtol=0)
