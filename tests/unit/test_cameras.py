"""Cameras against numbers worked out by hand or printed by the published models."""

from __future__ import annotations

import math

import pytest
import torch

from multiview.cameras import (
    Cameras,
    blender_from_opengl,
    crop_intrinsics,
    gltf_from_world,
    intrinsics_from_fov,
    invert_rigid,
    look_at,
    opencv_from_opengl,
    opengl_from_blender,
    opengl_from_opencv,
    orbit,
    orbit_angles,
    pitch_rotation,
    project,
    rays,
    world_from_gltf,
    yaw_rotation,
)
from multiview.errors import CameraError


def close(found: torch.Tensor, expected: object, tolerance: float = 1e-6) -> bool:
    wanted = torch.as_tensor(expected, dtype=found.dtype)
    assert found.shape == wanted.shape
    return bool((found - wanted).abs().max() <= tolerance)


class TestOrbit:
    @pytest.mark.parametrize(
        ("azimuth", "elevation", "expected"),
        [
            pytest.param(0, 0, (2, 0, 0), id="in front: +x"),
            pytest.param(90, 0, (0, 2, 0), id="azimuth grows toward +y"),
            pytest.param(180, 0, (-2, 0, 0), id="behind"),
            pytest.param(0, 90, (0, 0, 2), id="above"),
            pytest.param(90, -30, (0, math.sqrt(3), -1), id="below and to the side"),
        ],
    )
    def test_positions(self, azimuth: float, elevation: float, expected: tuple[float, ...]) -> None:
        assert close(orbit(azimuth, elevation, 2.0, 40.0).positions[0], expected)

    def test_front_camera_axes(self) -> None:
        # At +x looking back: right is +y, up is +z, and the camera's +z (away from what it sees) is +x.
        rotation = orbit(0, 0, 1.9, 40).c2w[0, :3, :3]
        assert close(rotation, [[0, 0, 1], [1, 0, 0], [0, 1, 0]])

    @pytest.mark.parametrize(("azimuth", "up"), [(0, (-1, 0, 0)), (90, (0, -1, 0)), (180, (1, 0, 0))])
    def test_straight_above_up_points_away_from_the_azimuth(self, azimuth: float, up: tuple[float, ...]) -> None:
        assert close(orbit(azimuth, 90, 1.0, 40).c2w[0, :3, 1], up)

    def test_published_view_vectors(self) -> None:
        """The first two of InstantMesh's six input cameras, printed by its own code."""
        cameras = orbit([30, 90], [20, -10], 4.0, 30.0)
        first = [[-0.5, -0.296198, 0.813798, 3.255191], [0.866025, -0.171010, 0.469846, 1.879385]]
        first.append([0, 0.939693, 0.342020, 1.368081])
        second = [[-1, 0, 0, 0], [0, 0.173648, 0.984808, 3.939231], [0, 0.984808, -0.173648, -0.694593]]
        assert close(cameras.c2w[:, :3], [first, second], 1e-6)
        assert close(cameras.c2w[:, 3], [[0, 0, 0, 1]] * 2)
        assert close(cameras.intrinsics[0], [[1.866025, 0, 0.5], [0, 1.866025, 0.5], [0, 0, 1]], 1e-6)

    def test_one_number_goes_with_many(self) -> None:
        cameras = orbit([0, 120, 240], 10, [1, 2, 3], 40)
        assert len(cameras) == 3
        assert close(cameras.positions.norm(dim=-1), [1, 2, 3])
        assert close(cameras.fov_y_deg, [40, 40, 40], 1e-4)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            pytest.param(([0, 1], [0, 1, 2], 1, 40), r"found lengths \[2, 3, 1, 1\]", id="lengths"),
            pytest.param((0, 0, 0, 40), "distance > 0", id="distance 0"),
            pytest.param((0, 0, 1, 180), "field of view 180 to 180", id="fov 180"),
            pytest.param((0, 0, 1, 0), "0 < fov_y_deg < 180", id="fov 0"),
            pytest.param((0, 91, 1, 40), r"elevation_deg must lie in \[-90, 90\], found 91", id="elevation"),
            pytest.param((float("nan"), 0, 1, 40), "NaN", id="nan azimuth"),
            pytest.param((0, 0, float("inf"), 40), "NaN or Inf", id="infinite distance"),
        ],
    )
    def test_errors(self, arguments: tuple[object, ...], words: str) -> None:
        with pytest.raises(CameraError, match=words):
            orbit(*arguments)  # type: ignore[arg-type]


class TestLookAt:
    def test_from_the_side(self) -> None:
        # At -y looking along +y with z up: right = up x back = z x (-y) = +x.
        c2w = look_at(torch.tensor([0.0, -3.0, 0.0]), torch.zeros(3))
        assert close(c2w, [[[1, 0, 0, 0], [0, 0, -1, -3], [0, 1, 0, 0], [0, 0, 0, 1]]])

    def test_many_positions_one_target_and_another_up(self) -> None:
        above = look_at(torch.tensor([[0.0, 0, 5], [0, 0, 2]]), torch.zeros(3), up=torch.tensor([0.0, 1.0, 0.0]))
        assert above.shape == (2, 4, 4)
        assert close(above[:, :3, :3], torch.eye(3).repeat(2, 1, 1))
        assert close(above[:, :3, 3], [[0, 0, 5], [0, 0, 2]])

    def test_length_of_up_does_not_matter(self) -> None:
        position, target = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.0, 0.0])
        long = look_at(position, target, up=torch.tensor([0.0, 0.0, 7.0]))
        assert close(long, look_at(position, target))

    @pytest.mark.parametrize("position", [(0.0, 0.0, 0.0), (0.0, 0.0, 4.0)], ids=["at the target", "along up"])
    def test_errors(self, position: tuple[float, ...]) -> None:
        with pytest.raises(CameraError, match=r"away from its target.*orbit\(elevation_deg=90\)"):
            look_at(torch.tensor(position), torch.zeros(3))


class TestIntrinsics:
    def test_ninety_degrees(self) -> None:
        # tan 45 = 1: the focal length is half the image's height.
        assert close(intrinsics_from_fov(90.0)[0], [[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]])

    def test_wide_image_has_square_pixels(self) -> None:
        k = intrinsics_from_fov(90.0, aspect=2.0)[0]
        assert close(k[0], [0.25, 0, 0.5])
        assert close(k[1], [0, 0.5, 0.5])

    def test_central_crop_doubles_the_focal_length(self) -> None:
        k = crop_intrinsics(intrinsics_from_fov(90.0), 0.25, 0.25, 0.5, 0.5)[0]
        assert close(k, [[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])

    def test_corner_crop_moves_the_principal_point(self) -> None:
        # The right lower quarter: the old centre is its left upper corner. The left upper one: its right lower corner.
        assert close(crop_intrinsics(intrinsics_from_fov(90.0), 0.5, 0.5, 0.5, 0.5)[0, :2, 2], [0, 0])
        assert close(crop_intrinsics(intrinsics_from_fov(90.0), 0.0, 0.0, 0.5, 0.5)[0, :2, 2], [1, 1])

    def test_crop_leaves_the_full_intrinsics_alone(self) -> None:
        k = intrinsics_from_fov(60.0)
        crop_intrinsics(k, 0.1, 0.2, 0.5, 0.6)
        assert torch.equal(k, intrinsics_from_fov(60.0))


class TestRays:
    def test_published_corner_ray(self) -> None:
        """Pixel (0, 0) of TripoSR's view 0, printed by its own code."""
        origins, directions = rays(orbit(0, 0, 1.9, 40), 256, 256)
        assert directions.shape == origins.shape == (1, 65536, 3)
        assert close(directions[0, 0], (-0.889853, -0.322615, 0.322615))
        assert close(origins[0, [0, 65535]], [[1.9, 0, 0]] * 2)

    def test_order_is_row_major_from_the_top(self) -> None:
        _, directions = rays(orbit(0, 0, 1.0, 90), 3, 5)
        grid = directions[0].reshape(3, 5, 3)
        # From +x, the picture's right is world +y and its top is world +z.
        assert (grid[:, 1:, 1] > grid[:, :-1, 1]).all()
        assert (grid[:-1, :, 2] > grid[1:, :, 2]).all()
        assert close(grid[1, 2], (-1, 0, 0))

    def test_wide_image(self) -> None:
        # fov 90 and 4 x 2 pixels: pixels are 1 x 1 at depth 1, so the first centre is (-1.5, 0.5, -1) in the camera.
        camera = Cameras(torch.eye(4)[None], intrinsics_from_fov(90.0, aspect=2.0).float())
        _, directions = rays(camera, 2, 4)
        assert close(directions[0, 0] * math.sqrt(3.5), (-1.5, 0.5, -1))
        assert close(directions[0, 7] * math.sqrt(3.5), (1.5, -0.5, -1))

    def test_skew_is_undone(self) -> None:
        camera = Cameras(torch.eye(4)[None], torch.tensor([[[1.0, 0.3, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]]]))
        _, directions = rays(camera, 4, 4)
        uv, _ = project(camera, directions[0] * 2)
        assert close(uv[0, 1], (0.375, 0.125))


class TestProject:
    camera = orbit(0, 0, 2.0, 90)

    @pytest.mark.parametrize(
        ("point", "uv", "depth"),
        [
            pytest.param((0, 0, 0), (0.5, 0.5), 2, id="centre"),
            pytest.param((0, 1, 0), (0.75, 0.5), 2, id="+y is right"),
            pytest.param((0, 0, 1), (0.5, 0.25), 2, id="+z is up"),
            pytest.param((1, 0.5, -0.5), (0.75, 0.75), 1, id="nearer is larger"),
        ],
    )
    def test_hand_worked(self, point: tuple[float, ...], uv: tuple[float, ...], depth: float) -> None:
        found_uv, found_depth = project(self.camera, torch.tensor([point], dtype=torch.float32))
        assert close(found_uv[0, 0], uv)
        assert close(found_depth[0], [depth])

    def test_behind_and_beside_have_no_positive_depth(self) -> None:
        uv, depth = project(self.camera, torch.tensor([[4.0, 0, 0], [2.0, 1, 0]]))
        assert close(depth[0], [-2, 0])
        assert torch.isfinite(uv).all()

    def test_points_of_each_view(self) -> None:
        cameras = orbit([0, 90], 0, 2.0, 90)
        points = torch.tensor([[[0.0, 1, 0]], [[1.0, 0, 0]]])
        uv, _ = project(cameras, points)
        # +y is right from the front; from the side (+y) +x is left.
        assert close(uv[:, 0], [[0.75, 0.5], [0.25, 0.5]])

    def test_differentiable(self) -> None:
        points = torch.tensor([[0.0, 0.0, 0.0]], requires_grad=True)
        uv, _ = project(self.camera, points)
        uv[0, 0, 0].backward()
        # du/dy = focal / depth = 0.5 / 2.
        assert points.grad is not None
        assert close(points.grad[0], (0, 0.25, 0))


class TestConverters:
    pose = orbit(30, 20, 4.0, 30).c2w

    def test_opencv_turns_y_and_z_over_and_keeps_the_place(self) -> None:
        turned = opencv_from_opengl(self.pose)
        assert close(turned[0, :3, 0], self.pose[0, :3, 0])
        assert close(turned[0, :3, 1], -self.pose[0, :3, 1])
        assert close(turned[0, :3, 2], -self.pose[0, :3, 2])
        assert torch.equal(turned[0, :, 3], self.pose[0, :, 3])

    def test_opencv_camera_looks_along_plus_z(self) -> None:
        forward = opencv_from_opengl(self.pose)[0, :3, 2]
        assert close(forward, -self.pose[0, :3, 3] / 4.0, 1e-5)

    def test_opencv_and_back(self) -> None:
        assert torch.equal(opengl_from_opencv(opencv_from_opengl(self.pose)), self.pose)

    def test_blender_scale_is_dropped(self) -> None:
        scaled = self.pose.clone()
        scaled[:, :3, :3] *= torch.tensor([2.0, 3.0, 0.5])
        assert close(opengl_from_blender(scaled), self.pose)
        assert torch.equal(blender_from_opengl(self.pose), self.pose)

    def test_files_are_y_up_with_the_front_toward_plus_z(self) -> None:
        front, left, top = torch.eye(3)
        assert close(gltf_from_world(front), (0, 0, 1))
        assert close(gltf_from_world(left), (1, 0, 0))
        assert close(gltf_from_world(top), (0, 1, 0))
        assert close(gltf_from_world(torch.tensor([[1.0, 2.0, 3.0]])), [[2, 3, 1]])
        assert close(world_from_gltf(torch.tensor([[1.0, 2.0, 3.0]])), [[3, 1, 2]])

    def test_inverse_of_a_shifted_quarter_turn(self) -> None:
        turn = torch.tensor([[0.0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]])
        assert close(invert_rigid(turn), [[0, 1, 0, -6], [-1, 0, 0, 5], [0, 0, 1, -7], [0, 0, 0, 1]])


class TestRotations:
    def test_pitch_lifts_the_front(self) -> None:
        lifted = pitch_rotation(30.0) @ torch.tensor([1.0, 0, 0])
        assert close(lifted, (math.sqrt(3) / 2, 0, 0.5))
        assert close(pitch_rotation(30.0) @ torch.tensor([0, 1.0, 0]), (0, 1, 0))

    def test_pitch_stands_a_pitched_frame_upright(self) -> None:
        # A camera on its own +x at distance 2 stands, in the world, where orbit puts it.
        upright = torch.tensor([[2.0, 0, 0]]) @ pitch_rotation(25.0).T
        assert close(upright, orbit(0, 25, 2.0, 40).positions)

    def test_yaw_turns_x_toward_y(self) -> None:
        assert close(yaw_rotation(90.0) @ torch.tensor([1.0, 0, 0]), (0, 1, 0))
        assert close(yaw_rotation(90.0) @ torch.tensor([0, 0, 1.0]), (0, 0, 1))

    def test_batches(self) -> None:
        assert yaw_rotation(torch.tensor([0.0, 90.0])).shape == (2, 3, 3)
        assert close(pitch_rotation(torch.tensor([0.0, 90.0]))[1] @ torch.tensor([1.0, 0, 0]), (0, 0, 1))


class TestCamerasValue:
    k = intrinsics_from_fov(40.0).float()

    def broken(self, row: int, column: int, value: float) -> torch.Tensor:
        c2w = torch.eye(4)[None].clone()
        c2w[0, row, column] = value
        return c2w

    def test_shapes(self) -> None:
        with pytest.raises(CameraError, match=r"\(V, 4, 4\).*found \(4, 4\) and \(1, 3, 3\)"):
            Cameras(torch.eye(4), self.k)
        with pytest.raises(CameraError, match=r"found \(2, 4, 4\) and \(1, 3, 3\)"):
            Cameras(torch.eye(4).repeat(2, 1, 1), self.k)

    def test_not_finite(self) -> None:
        with pytest.raises(CameraError, match="NaN or Inf"):
            Cameras(self.broken(0, 3, math.nan), self.k)

    def test_scale(self) -> None:
        with pytest.raises(CameraError, match=r"not rigid \(R\^T R differs from the identity by 3"):
            Cameras(self.broken(1, 1, 2.0), self.k)

    def test_mirror(self) -> None:
        with pytest.raises(CameraError, match="mirrors"):
            Cameras(self.broken(0, 0, -1.0), self.k)

    def test_camera_errors_are_value_errors(self) -> None:
        with pytest.raises(ValueError, match="NaN"):
            Cameras(self.broken(0, 0, math.inf), self.k)

    def test_select_and_cat(self) -> None:
        cameras = orbit([0, 90, 180], 0, 1.0, [30, 40, 50])
        picked = cameras.select([2, 0])
        assert close(picked.positions, [[-1, 0, 0], [1, 0, 0]])
        assert close(picked.fov_y_deg, [50, 30], 1e-4)
        joined = Cameras.cat([picked, cameras.select([1])])
        assert len(joined) == 3
        assert close(joined.positions[2], (0, 1, 0))

    def test_w2c_takes_the_camera_to_the_origin(self) -> None:
        cameras = orbit(30, 20, 4.0, 30)
        moved = cameras.w2c[0] @ torch.tensor([*cameras.positions[0].tolist(), 1.0])
        assert close(moved, (0, 0, 0, 1), 1e-6)

    def test_to_keeps_the_numbers(self) -> None:
        cameras = orbit(30, 20, 4.0, 30)
        assert torch.equal(cameras.to("cpu").c2w, cameras.c2w)


class TestOrbitAngles:
    @pytest.mark.parametrize(
        ("azimuth", "elevation", "distance"),
        [
            pytest.param(0.0, 0.0, 2.0, id="in front"),
            pytest.param(330.0, -10.0, 4.0, id="to the left and below"),
            pytest.param(22.5, 30.0, 1.5, id="a ring's second"),
        ],
    )
    def test_they_are_those_of_orbit(self, azimuth: float, elevation: float, distance: float) -> None:
        found = [float(numbers[0]) for numbers in orbit_angles(orbit(azimuth, elevation, distance, 40.0))]
        assert found == pytest.approx([azimuth, elevation, distance], abs=1e-4)

    def test_a_hair_below_zero_is_zero(self) -> None:
        assert float(orbit_angles(orbit(-1e-6, 0.0, 2.0, 40.0))[0]) == 0.0
        assert float(orbit_angles(orbit(-1.0, 0.0, 2.0, 40.0))[0]) == pytest.approx(359.0, abs=1e-4)


def test_a_larger_world_shows_the_same_picture() -> None:
    """Twice as far from what is twice as large: the same pixel, twice the depth."""
    cameras = orbit([10.0, 200.0], [20.0, -30.0], 1.5, 49.134)
    points = torch.tensor([[0.1, -0.3, 0.2], [0.4, 0.0, -0.1]])
    uv, depth = project(cameras, points)
    uv_doubled, depth_doubled = project(cameras.scaled(2.0), points * 2)
    assert close(uv_doubled, uv, 1e-5) and close(depth_doubled, depth * 2, 1e-5)
