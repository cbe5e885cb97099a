"""The visual hull and its flat ends (lrm/hull.py), on a box whose shadows are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lrm.hull import (
    PEEL_RULES,
    Sights,
    carve,
    choose_dissent,
    cover,
    covered_share,
    find_box,
    flatten,
    lattice_in,
    lattice_points,
)
from lrm.lattice import Lattice
from lrm.mesh import Mesh
from lrm.raster import render_mesh
from multiview.cameras import Cameras, orbit
from multiview.errors import CameraError, ImageError, SettingsError
from multiview.views import Views

HALF = (0.5, 0.4, 0.25)


def box_mesh(half: tuple[float, float, float] = HALF, center: tuple[float, float, float] = (0, 0, 0)) -> Mesh:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float) * half + center
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]
    return Mesh(corners, np.array(faces), np.full((8, 3), 0.5))


def ring(count: int = 16, elevation: float = 30.0, size: int = 96, mesh: Mesh | None = None) -> Views:
    cameras = orbit([k * 360 / count for k in range(count)], elevation, 3.0, 40.0)
    return render_mesh(mesh or box_mesh(), cameras, size)


def in_box(points: torch.Tensor, half: tuple[float, float, float] = HALF) -> torch.Tensor:
    return (points.abs() < torch.tensor(half)).all(-1)


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_a_lattice_has_its_samples_in_the_middle_of_cubic_cells() -> None:
    lattice = lattice_in((0.0, 0.0, 0.0), (1.0, 0.5, 0.5), 4)
    assert lattice.spacing == 0.25
    assert lattice.shape == (4, 2, 2)
    assert lattice.origin == pytest.approx((0.125, 0.125, 0.125))
    points = lattice_points(lattice)
    assert points[0].tolist() == pytest.approx([0.125, 0.125, 0.125])
    assert points[1].tolist() == pytest.approx([0.125, 0.125, 0.375])  # z runs fastest
    assert points[-1].tolist() == pytest.approx([0.875, 0.375, 0.375])


@pytest.mark.parametrize(("high", "samples"), [((1.0, 1.0, 1.0), 1), ((0.0, 0.0, 0.0), 8)])
def test_a_lattice_needs_samples_and_extent(high: tuple[float, float, float], samples: int) -> None:
    with pytest.raises(SettingsError, match="samples >= 2"):
        lattice_in((0.0, 0.0, 0.0), high, samples)


def test_the_hull_holds_the_object_and_a_known_cone_below_it() -> None:
    views = ring()
    # Straight below the middle, the shadow edge of the side at x = 0.5 falls at 30 degrees (a camera is far away but
    # not infinitely: a little steeper), so the cone ends between 0.25 + 0.4 tan 30 and 0.25 + 0.5 tan 35.
    depth = torch.linspace(-1.0, 0.0, 201)
    below = carve(views, torch.stack([torch.zeros(201), torch.zeros(201), depth], 1)) > 0.5
    lowest = float(depth[below].min())
    assert -(0.25 + 0.5 * np.tan(np.radians(35))) < lowest < -(0.25 + 0.35 * np.tan(np.radians(30)))
    generator = torch.Generator().manual_seed(0)
    inside = (torch.rand(500, 3, generator=generator) * 2 - 1) * torch.tensor(HALF) * 0.97
    assert (carve(views, inside) > 0.5).all()


def test_a_view_may_be_overruled() -> None:
    views = ring(8)
    alpha = views.alpha.clone()
    alpha[3] = 0
    alpha[3, 0, :4, :4] = 1  # a mask in the wrong corner
    wrong = Views(views.images, alpha, views.cameras)
    middle = torch.zeros(1, 3)
    assert float(carve(wrong, middle)) == 0.0
    assert float(carve(wrong, middle, dissent=1)) == 1.0
    with pytest.raises(SettingsError, match="from 0 to 7, found 8"):
        carve(views, middle, dissent=8)


def test_the_smallest_dissent_that_fills_the_silhouettes_is_chosen() -> None:
    views = ring(16)
    lattice = lattice_in(*find_box(views), 24)
    assert choose_dissent(views, lattice) == 0
    alpha = views.alpha.clone()
    alpha[5, 0, :, :40] = 0  # one view has lost a third of the object
    holed = Views(views.images, alpha, views.cameras)
    assert choose_dissent(holed, lattice) == 1


def test_what_lies_outside_a_frame_is_not_carved_by_it() -> None:
    cameras = orbit([0.0, 90.0, 180.0, 270.0], 0.0, 3.0, 40.0)
    full = torch.ones(4, 1, 16, 16)
    views = Views(torch.zeros(4, 3, 16, 16), full, cameras)
    # Half the frame is depth * tan 20 = 0.364 depth wide. (0.6, 0.9, 0) is out of it for the camera on +x alone, which
    # sees it at depth 2.4, 0.9 aside of 0.874; (0, 1.3, 0) is out of it for both cameras on the x axis.
    assert carve(views, torch.tensor([[0.6, 0.9, 0.0], [0.0, 1.3, 0.0]])).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("center", [(0.0, 0.0, 0.0), (0.3, -0.2, 0.15)], ids=["middle", "aside"])
def test_the_box_holds_the_object_closely(center: tuple[float, float, float]) -> None:
    half = (0.3, 0.25, 0.2)
    low, high = find_box(ring(16, 10.0, mesh=box_mesh(half, center)))
    true_low, true_high = np.array(center) - half, np.array(center) + half
    assert (np.array(low) <= true_low).all()
    assert (np.array(high) >= true_high).all()
    assert (true_low - np.array(low) < 0.25).all()
    assert (np.array(high) - true_high < 0.25).all()


def test_too_few_views_are_refused() -> None:
    with pytest.raises(ImageError, match="at least 3 views of one object, found 2"):
        find_box(ring(16).select([0, 4]))


def test_an_empty_mask_is_named() -> None:
    views = ring(4)
    alpha = views.alpha.clone()
    alpha[2] = 0
    with pytest.raises(ImageError, match=r"masks of 1 of 4 views are empty.*first view 2"):
        find_box(Views(views.images, alpha, views.cameras))


def test_one_pose_for_all_views_is_refused() -> None:
    views = ring(4)
    same = Views(views.images, views.alpha, views.cameras.select([0, 0, 0, 0]))
    with pytest.raises(CameraError, match="look along one line"):
        find_box(same)


def test_cameras_that_look_elsewhere_are_refused() -> None:
    views = ring(8)
    c2w = views.cameras.c2w.clone()
    # Every camera moved sideways by its own amount: the silhouettes' cones have no point in common.
    c2w[:, :3, 3] += c2w[:, :3, 1] * torch.linspace(-30, 30, 8)[:, None]
    with pytest.raises(CameraError, match=r"do not see one object.*Check the poses"):
        find_box(Views(views.images, views.alpha, Cameras(c2w, views.cameras.intrinsics)))


def test_sights_count_and_find_what_a_pixel_sees() -> None:
    views = ring(3, 0.0, size=32)
    lattice = Lattice((-0.1, -0.1, -0.1), 0.2, (2, 2, 2))
    sights = Sights.of(views, lattice, torch.ones(8, dtype=torch.bool), pixel=1.0)
    values = torch.arange(1.0, 9.0)
    assert float(sights.highest(values).max()) == 8.0
    assert sights.highest(values)[-1] == 0.0


def test_outlines_of_what_is_wide_are_not_firm_and_thin_things_are() -> None:
    alpha = torch.zeros(3, 1, 8, 8)
    alpha[:, 0, 1:6, 1:6] = 1  # 5 x 5: the outline is not firm
    alpha[:, 0, 7, :] = 1  # one pixel high: firm
    cameras = orbit([0.0, 120.0, 240.0], 0.0, 3.0, 40.0)
    views = Views(torch.zeros(3, 3, 8, 8), alpha, cameras)
    firm = Sights(torch.zeros(3, 1, dtype=torch.long), (8, 8)).firm(views)[:64].reshape(8, 8)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:5, 2:5] = True
    expected[7] = True
    assert torch.equal(firm, expected)


def flattened(half: tuple[float, float, float] = HALF, mesh: Mesh | None = None) -> list[torch.Tensor]:
    """Hull, flattened hull and positions for a box or another mesh."""
    views = ring(mesh=mesh or box_mesh(half))
    lattice = lattice_in(*find_box(views), 32)
    points = lattice_points(lattice)
    hull = carve(views, points).reshape(lattice.shape)
    return [hull, flatten(views, lattice, hull), points.reshape(*lattice.shape, 3)]


def test_a_box_loses_its_cones_and_stays_a_box() -> None:
    hull, flat, points = flattened()
    true = in_box(points)
    before, after = iou(hull >= 0.5, true), iou(flat >= 0.5, true)
    assert before < 0.7
    assert after > before + 0.15
    assert ((flat == hull) | (flat == 0)).all()
    heights = points[..., 2][flat >= 0.5]
    assert float(heights.min()) == pytest.approx(-HALF[2], abs=0.1)
    assert float(heights.max()) == pytest.approx(HALF[2], abs=0.1)


def test_a_roof_that_is_seen_keeps_its_tip() -> None:
    base = np.array([[-0.4, -0.4, -0.4], [0.4, -0.4, -0.4], [0.4, 0.4, -0.4], [-0.4, 0.4, -0.4], [0, 0, 0.6]])
    faces = np.array([[0, 2, 1], [0, 3, 2], [0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]])
    _, flat, points = flattened(mesh=Mesh(base, faces, np.full((5, 3), 0.5)))
    heights = points[..., 2][flat >= 0.5]
    assert float(heights.max()) > 0.45  # steeper than the cameras look down
    assert float(heights.min()) == pytest.approx(-0.4, abs=0.12)


def test_more_rules_than_one_decide_by_majority() -> None:
    views = ring()
    lattice = lattice_in(*find_box(views), 24)
    hull = carve(views, lattice_points(lattice)).reshape(lattice.shape)
    one, *others = (flatten(views, lattice, hull, [rule]) > 0 for rule in PEEL_RULES)
    votes = one.int() + sum(other.int() for other in others)
    assert torch.equal(flatten(views, lattice, hull) > 0, votes >= 2)


def test_what_silhouettes_lack_is_given_back() -> None:
    views = ring()
    lattice = lattice_in(*find_box(views), 32)
    points = lattice_points(lattice)
    hull = carve(views, points).reshape(lattice.shape)
    shape = torch.where(points.reshape(*lattice.shape, 3)[..., 0] > 0.42, 0.0, hull)  # one end cut off
    mended = cover(views, lattice, hull, shape)
    lost, found = (covered_share(views, lattice, x.reshape(-1)) for x in (shape, mended))
    assert found > lost + 0.01
    assert (mended >= shape).all()
    assert (mended <= hull).all()
