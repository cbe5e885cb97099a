"""Thin parts that a field misses come back as rods in one piece."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lrm.silhouette import (
    Rods,
    agreed_depths,
    connected,
    depth_axis,
    edge_distances,
    long_parts,
    rays_at_depths,
    rod_maps,
    thickened,
)
from lrm.tiny import photo_projection, project_points


def test_legs_bridges_and_holes_are_parts_and_tips_of_corners_are_not() -> None:
    inside, missed = torch.zeros(2, 40, 40, dtype=torch.bool).unbind()
    inside[2:12, 2:22] = True
    inside[12:22, 4] = missed[12:22, 4] = True  # a leg of ten pixels
    missed[2:4, 20:22] = True  # a corner of two
    missed[6:8, 10:12] = True  # a hole
    inside[5:7, 22:24] = missed[5:7, 22:24] = True  # a short bridge ...
    inside[2:12, 24:36] = True  # ... to another piece
    found = long_parts(missed, inside)
    assert found[12:22, 4].all()
    assert found[6:8, 10:12].all()
    assert found[5:7, 22:24].all()
    assert found.sum() == 10 + 4 + 4


def test_threads_are_thickened_and_wide_parts_are_not() -> None:
    inside = torch.zeros(20, 20, dtype=torch.bool)
    inside[2:8, 2:8] = True
    inside[12, 2:18] = True
    wide = thickened(inside)
    assert wide[11:14, 2:18].all()
    assert wide[:10].sum() == 36


def test_edge_distances_by_hand() -> None:
    inside = torch.zeros(7, 9, dtype=torch.bool)
    inside[2:5] = True  # a bar three pixels wide, from border to border
    distances = edge_distances(inside)
    assert distances[:, 4].tolist() == [-1.5, -0.5, 0.5, 1.5, 0.5, -0.5, -1.5]
    assert distances[3, 0] == 0.5  # it ends where the picture does


def test_edge_distances_and_pieces_are_those_of_scipy() -> None:
    from scipy.ndimage import distance_transform_edt, label

    blobs = torch.rand(24, 40, generator=torch.Generator().manual_seed(1)) > 0.6
    mask = torch.nn.functional.pad(blobs, (1, 1, 1, 1)).numpy()
    wanted = np.where(mask, distance_transform_edt(mask) - 0.5, 0.5 - distance_transform_edt(~mask))[1:-1, 1:-1]
    assert np.allclose(edge_distances(blobs).numpy(), wanted, atol=1e-5)
    pieces, count = label(blobs.numpy(), np.ones((3, 3)))
    found = connected(blobs).numpy()
    assert len(np.unique(found)) == count + 1
    assert all(len(np.unique(found[pieces == k])) == 1 for k in range(count + 1))


@pytest.mark.parametrize("elevation_deg", [-20.0, 0.0, 35.0, 80.0])
def test_rays_pass_their_pixels_at_the_depths_asked_for(elevation_deg: float) -> None:
    projection = photo_projection(torch.tensor([elevation_deg]), torch.tensor([3.0]))[0]
    pixels = torch.tensor([[0.0, 0.0], [0.7, -0.4], [-0.9, 0.8]])
    axis, depths = depth_axis(projection), torch.tensor([-0.8, 0.0, 0.5])
    points = rays_at_depths(projection, pixels, axis, depths)
    assert torch.allclose(points @ axis, depths.expand(3, 3), atol=1e-5)
    seen = project_points(projection, points.flatten(0, 1)).unflatten(0, (3, 3))
    assert torch.allclose(seen, pixels[:, None].expand(3, 3, 2), atol=1e-5)


def test_depth_is_along_the_ground_until_the_camera_looks_steeply() -> None:
    def tilt(elevation_deg: float) -> float:
        axis = depth_axis(photo_projection(torch.tensor([elevation_deg]), torch.tensor([3.0]))[0])
        return math.degrees(math.atan2(float(axis[2]), float(axis[0])))

    assert [round(tilt(e), 3) for e in (-60.0, -10.0, 0.0, 45.0, 80.0)] == [-10.0, 0.0, 0.0, 0.0, 30.0]


def test_rays_of_one_part_agree_and_begin_where_what_is_there_ends() -> None:
    depths = torch.linspace(-1, 1, 41)
    near = torch.zeros(24, 24, dtype=torch.bool)
    near[2:20, 10:12] = True
    missed = near.clone()
    missed[:4] = False
    # Each ray by itself would rather be somewhere at random; all of them see some chance at 0.5.
    wish = torch.rand(24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    own = -4 * (depths[:, None, None] - wish).abs()
    scores = torch.maximum(own, -0.3 - 20 * (depths[:, None, None] - 0.5).abs())
    scores[:, 2:4] = torch.where((depths - 0.5).abs() < 0.06, 0.0, -8.0)[:, None, None]  # the seat
    found = agreed_depths(scores, near, missed, depths)
    assert (found[~missed] == 0).all()
    column = found[4:20, 10]
    assert abs(float(column[0]) - 0.5) < 0.1
    assert float(column.diff().abs().max()) < 0.05
    assert float(wish[4:20, 10].diff().abs().max()) > 0.5


def test_a_rod_is_as_thick_as_its_silhouette_is_wide_and_stands_at_its_depth() -> None:
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[4:28, 14:18] = True  # four pixels of 1/16
    maps = rod_maps(inside, inside, torch.where(inside, 0.3, 0.0), inside.float()).flip(1)
    rods = Rods(torch.tensor([1.0, 0.0, 0.0]), maps, level=-1.0)

    def solid(depth: float, right: float, up: float = 0.0) -> bool:
        return float(rods(torch.tensor([-9.0]), torch.tensor([[depth, 0.0, 0.0, right, up]]))) > -1.0

    assert solid(0.3, 0.0)
    assert solid(0.3 + 0.09, 0.0) and solid(0.3 - 0.09, 0.0)  # half of 4/16 along the ray, too, less half a pixel
    assert not solid(0.3 + 0.14, 0.0) and not solid(0.0, 0.0)
    assert solid(0.3, 0.1) and not solid(0.3, 0.16)
    assert solid(0.3, 0.0, up=0.7) and not solid(0.3, 0.0, up=0.85)
    # What is there already stays.
    assert float(rods(torch.tensor([5.0]), torch.tensor([[0.3, 0.0, 0.0, 0.0, 0.0]]))) == 5.0
