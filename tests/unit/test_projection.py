"""Pictures on surfaces: who sees what and how well, cameras moved by outlines, and tones carried over."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lrm import projection
from lrm.cells import Cells
from lrm.mesh import Mesh
from lrm.projection import Projector, Sight, carried, carried_roughly, joined, refine_camera, smooth_step, vertex_areas
from lrm.raster import rasterize, render_mesh
from multiview.cameras import Cameras, orbit, project
from multiview.errors import SettingsError
from multiview.views import Views

CAMERA = orbit(0.0, 0.0, 3.0, 30.0)


def ball(level: int = 4, stretch: tuple[float, float, float] = (1, 1, 1)) -> Mesh:
    import trimesh

    shape = trimesh.creation.icosphere(level, 0.5)
    return Mesh(shape.vertices * stretch, shape.faces, np.full((len(shape.vertices), 3), 0.5))


def halves(size: int = 128, alpha: float = 1.0) -> Views:
    """Red on the left of the picture, blue on the right."""
    image = torch.zeros(1, 3, size, size)
    image[:, 0, :, : size // 2], image[:, 2, :, size // 2 :] = 1.0, 1.0
    return Views(image, torch.full((1, 1, size, size), alpha), CAMERA)


def test_points_get_the_colour_of_their_pixel_where_they_face_the_picture() -> None:
    # The camera stands on +x and looks at -x: its right is +y.
    points = np.array([[0.5, 0, 0], [0.48, -0.14, 0], [0.48, 0.14, 0], [-0.5, 0, 0], [0, 0.5, 0]])
    sight = Projector(ball(), halves())(points, points * 2)
    assert sight.weight[1:3] == pytest.approx([1.0, 1.0]) and sight.seen.tolist() == [True, True, True, False, False]
    assert sight.color[1] == pytest.approx([1, 0, 0]) and sight.color[2] == pytest.approx([0, 0, 1])
    assert sight.weight[3] == 0 and sight.weight[4] == 0


def test_trust_falls_with_the_angle() -> None:
    angle = np.deg2rad([0, 40, 60, 70, 80])
    points = 0.5 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    weight = Projector(ball(), halves(256))(points, points * 2).weight
    assert (np.diff(weight) <= 1e-6).all() and weight[0] == 1 and 0 < weight[3] < weight[2] <= 1 and weight[4] < 0.2


def test_nothing_is_trusted_beside_the_edge_of_the_matte() -> None:
    view = halves(200)
    view.alpha[:, :, :, 110:] = 0.0  # ends at column 110 of 200; 0.004 and 0.016 of a side are 0.8 and 3.2 pixels
    columns = np.array([100.5, 107.0, 109.6, 112.0])
    local = (columns / 200 * 2 - 1) * math.tan(math.radians(15))  # right of the axis at depth 1
    y = local * 2.5  # about where the ball's front is
    x = np.sqrt(0.25 - y**2)
    y = local * (3 - x)
    points = np.stack([np.sqrt(0.25 - y**2), y, 0 * y], 1)
    weight = Projector(ball(), view)(points, points * 2).weight
    assert weight[0] == 1 and 0.5 < weight[1] <= 1 and weight[2] < 0.1 and weight[3] == 0


def test_nothing_is_trusted_beside_the_edge_of_what_stands_in_front() -> None:
    wall = np.array([[-1, -1, -1], [-1, 1, -1], [-1, 1, 1], [-1, -1, 1]], float)
    small = ball(3)
    mesh = Mesh(
        np.concatenate([wall, small.vertices * 0.4]),
        np.concatenate([[[0, 1, 2], [0, 2, 3]], small.faces + 4]),
        np.full((4 + len(small.vertices), 3), 0.5),
    )
    shadow = 0.2 / math.sqrt(9 - 0.04) * 4  # radius on the wall that the small ball hides
    points = np.array([[-1, shadow * f, 0] for f in (0.5, 1.02, 1.6)])
    sight = Projector(mesh, halves(256))(points, np.tile([1.0, 0, 0], (3, 1)))
    assert sight.weight[0] == 0 and sight.weight[1] < 0.3 and sight.weight[2] == pytest.approx(1)


def test_a_whole_object_behind_another_is_not_seen() -> None:
    front, behind = ball(3), ball(3)
    places = np.concatenate([front.vertices, behind.vertices * 0.6 + np.float32([-1.2, 0, 0])])
    both = Mesh(
        places, np.concatenate([front.faces, behind.faces + len(front.vertices)]), np.full((len(places), 3), 0.5)
    )
    weight = Projector(both, halves())(both.vertices, both.normals).weight
    assert weight[len(front.vertices) :].max() == 0 and weight[: len(front.vertices)].max() == 1


def test_half_transparent_pixels_say_nothing() -> None:
    # The matte is 0.5 all over, though the picture has colours.
    mesh = ball()
    sight = Projector(mesh, halves(alpha=0.5))(mesh.vertices, mesh.normals)
    assert sight.weight.max() == 0 and not sight.seen.any()
    assert Projector(mesh, halves())(mesh.vertices, mesh.normals).weight.max() == 1


def test_a_projector_wants_one_view() -> None:
    with pytest.raises(SettingsError, match="one view, found 2"):
        Projector(ball(2), Views.cat([halves(), halves()]))


def test_joining_pictures_is_their_weighted_mean() -> None:
    def sight(weight: float, value: float) -> Sight:
        color = np.full((1, 3), value, np.float32)
        return Sight(np.array([weight], np.float32), color, color, np.array([True]))

    weight, color = joined([sight(0.6, 0.0), sight(0.2, 1.0)])
    assert weight == pytest.approx([0.8]) and color[0] == pytest.approx([0.25] * 3)
    assert joined([sight(0.9, 0.0), sight(0.9, 1.0)])[0] == pytest.approx([1.0])


def test_smooth_step_ends_flat() -> None:
    assert smooth_step(np.array([0.0, 1.0, 1.5, 2.0, 9.0]), 1.0, 2.0) == pytest.approx([0, 0, 0.5, 1, 1])


def seen_by(mesh: Mesh, camera: Cameras) -> Views:
    views = render_mesh(mesh, camera, 192)
    return Views(views.images, views.alpha, camera)


def test_a_camera_is_moved_until_the_outline_fits() -> None:
    mesh = ball(3, (0.6, 1.0, 0.5))
    true = orbit(0.0, 10.0, 3.0, 28.0)
    roll = math.radians(3.0)
    pose = torch.eye(4)
    pose[:2, :2] = torch.tensor([[math.cos(roll), -math.sin(roll)], [math.sin(roll), math.cos(roll)]])
    intrinsics = true.intrinsics.clone()
    intrinsics[0, 0, 2] += 0.03
    intrinsics[0, 1, 2] -= 0.02
    picture = seen_by(mesh, Cameras(true.c2w @ pose, intrinsics))
    found = refine_camera(mesh, Views(picture.images, picture.alpha, orbit(0.0, 10.0, 3.0, 29.5)))
    assert found.overlap_before < 0.9 and found.overlap > 0.97
    points = torch.as_tensor(mesh.vertices)
    wanted, got = project(picture.cameras, points)[0], project(found.camera, points)[0]
    assert float((wanted - got).abs().max()) < 0.01  # of the picture's side
    assert found.shift == pytest.approx((0.03, -0.02), abs=0.006) and found.scale == pytest.approx(1.056, abs=0.02)


def test_a_camera_that_fits_stays_as_it_is() -> None:
    mesh = ball(3)
    found = refine_camera(mesh, seen_by(mesh, CAMERA))
    assert found.camera is CAMERA and found.scale == 1.0 and found.overlap == found.overlap_before > 0.97


def test_tones_stay_where_known_and_fade_with_distance() -> None:
    mesh = ball(3)
    known = (mesh.vertices[:, 0] > 0).astype(float)
    values = np.full((len(mesh.vertices), 2), (0.3, -0.1))
    found = carried(mesh, values * known[:, None], known, reach=0.2, rest=np.array([0.1, 0.0]))
    front, beside, back = (found[mesh.vertices[:, 0] > 0.3], found[np.abs(mesh.vertices[:, 0] + 0.1) < 0.03],
                           found[mesh.vertices[:, 0] < -0.45])  # fmt: skip
    assert front == pytest.approx(np.tile((0.3, -0.1), (len(front), 1)), abs=0.01)
    assert ((beside[:, 0] > 0.12) & (beside[:, 0] < 0.28)).all()
    assert back == pytest.approx(np.tile((0.1, 0.0), (len(back), 1)), abs=0.03)


def test_a_tone_known_nowhere_is_the_rest() -> None:
    mesh = ball(2)
    none = np.zeros(len(mesh.vertices))
    found = carried(mesh, np.zeros((len(none), 1)), none, reach=0.2, rest=np.array([0.25]))
    assert found == pytest.approx(np.full((len(none), 1), 0.25), abs=1e-3)


def test_quick_tones_are_near_those_of_a_plain_solver() -> None:
    # Known on one half and in a checkered way; the plain answer is of the whole system at once, in fp64.
    mesh = ball(4)
    x, y, z = mesh.vertices.T
    weight = np.where(x > 0.05, 0.3 + 0.7 * (y > 0), 0.0)
    values, rest = np.stack([0.2 * np.sign(np.sin(9 * z)), 0.1 + 0.3 * y], 1), np.array([0.0, 0.1])
    areas = vertex_areas(mesh)
    known, loose = 64 * areas * weight / 0.25**2, areas / 0.25**2
    system = projection._system(mesh.faces, known, loose).toarray()
    plain = np.linalg.solve(system, known[:, None] * values + loose[:, None] * rest)
    quick = carried(mesh, values, weight, reach=0.25, rest=rest)
    assert np.abs(quick - plain).max() < 0.006 and np.abs(quick - plain).mean() < 0.001  # a byte is 0.004
    rough = carried_roughly(mesh, Cells(mesh.vertices, 24), values, weight, reach=0.25, rest=rest)
    assert np.abs(rough - plain).mean() < 0.02 and np.abs(rough - plain).max() < 0.15
    assert np.abs(0 * plain + rest - plain).mean() > 0.06  # what no answer at all is off by


def test_areas_of_vertices() -> None:
    # A triangle of area 2 and one of area 1 on its long side; a vertex of neither keeps a trace.
    vertices = np.array([[0, 0, 0], [2, 0, 0], [0, 2, 0], [2, 2, 1], [9, 9, 9]])
    mesh = Mesh(vertices, np.array([[0, 1, 2], [1, 3, 2]]), np.full((5, 3), 0.5))
    other = np.linalg.norm(np.cross((0, 2, 1), (-2, 2, 0))) / 2
    assert vertex_areas(mesh) == pytest.approx([2 / 3, (2 + other) / 3, (2 + other) / 3, other / 3, 0], abs=1e-5)
    assert vertex_areas(mesh).min() > 0


@pytest.mark.parametrize("size", [64, 300, 512])
def test_the_quick_blur_is_near_the_plain_one(size: int) -> None:
    from scipy import ndimage

    rng = np.random.default_rng(size)
    blocks = np.kron(rng.random((3, size // 16 + 1, size // 16 + 1)), np.ones((16, 16)))[:, :size, :size]
    image, solid = blocks.astype(np.float32), np.hypot(*np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]) < 0.8
    wide = 0.02 * size
    share = ndimage.gaussian_filter(solid.astype(np.float32), wide)
    plain = np.stack([ndimage.gaussian_filter(each * solid, wide) for each in image]) / np.maximum(share, 1e-3)
    apart = np.abs(projection._softened(image, solid) - plain)[:, solid]
    assert apart.max() < 0.02 and apart.mean() < 0.002


def test_a_drawing_at_hand_gives_the_same_sights() -> None:
    mesh = ball(4, (1.0, 0.8, 0.6))
    view = halves(400)
    drawn = rasterize(mesh, view.cameras, 400, 400)
    with_it, without = Projector(mesh, view, drawn), Projector(mesh, view)
    for mine, plain in zip(
        vars(with_it(mesh.vertices, mesh.normals)).values(), vars(without(mesh.vertices, mesh.normals)).values(),
        strict=True,
    ):  # fmt: skip
        assert np.array_equal(mine, plain)
    matte = Views(view.images, torch.from_numpy((drawn.face >= 0).astype(np.float32))[None, None], view.cameras)
    smaller = ball(4, (0.9, 0.72, 0.54))  # the outline must grow by a ninth, as far as it may: 8 %
    plain = refine_camera(smaller, matte)
    quick = refine_camera(smaller, matte, rasterize(smaller, view.cameras, 400, 400))
    assert quick.scale == pytest.approx(plain.scale, abs=0.005) and plain.scale > 1.05
    assert quick.overlap == pytest.approx(plain.overlap, abs=0.003)
    coarse = refine_camera(smaller, matte, rasterize(smaller, view.cameras, 64, 64))  # too coarse: drawn anew
    assert (coarse.scale, coarse.overlap) == (plain.scale, plain.overlap)


def test_the_back_of_a_thin_plate_fades_as_it_should() -> None:
    """Cells that hold front and back of a plate together must not pass for a solution."""
    import trimesh

    plate = trimesh.creation.box((1.0, 1.0, 0.01)).subdivide_to_size(0.03)
    mesh = Mesh(np.asarray(plate.vertices), np.asarray(plate.faces), np.full((len(plate.vertices), 3), 0.5))
    front = (mesh.normals[:, 2] > 0.9).astype(np.float32)
    values = 0.3 * front[:, None] * np.ones(3, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lrm.projection._TOLERANCE", 1e-4)
        exact = carried(mesh, values, front, reach=0.25, rest=np.zeros(3))
    found = carried(mesh, values, front, reach=0.25, rest=np.zeros(3))
    assert np.abs(found - exact).max() < 0.02
    assert exact[mesh.normals[:, 2] < -0.9].mean() < 0.2
