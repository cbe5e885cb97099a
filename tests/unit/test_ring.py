"""The ring of the embedded view generator: where it looks from, and what a mirror makes of it."""

from __future__ import annotations

import pytest
import torch

from multiview.cameras import project
from multiview.ring import RING_AZIMUTHS_DEG, RING_ELEVATIONS_DEG, mirrored_order, ring_cameras


def test_views_stand_where_the_tables_say() -> None:
    positions = ring_cameras().positions
    azimuth = torch.rad2deg(torch.atan2(positions[:, 1], positions[:, 0])) % 360
    elevation = torch.rad2deg(torch.asin(positions[:, 2] / positions.norm(dim=1)))
    assert azimuth.tolist() == pytest.approx(RING_AZIMUTHS_DEG, abs=1e-3)
    assert elevation.tolist() == pytest.approx(RING_ELEVATIONS_DEG, abs=1e-3)


def test_the_unit_scales_the_world() -> None:
    assert torch.allclose(ring_cameras(2.5).positions, 2.5 * ring_cameras().positions)


def test_a_mirrored_object_is_seen_mirrored_by_the_view_that_the_order_names() -> None:
    point = torch.tensor([[0.4, 0.3, -0.2]])
    seen = project(ring_cameras(), point)[0][:, 0]
    mirrored = project(ring_cameras(), point * torch.tensor([1.0, -1.0, 1.0]))[0][:, 0]
    expected = seen[mirrored_order()] * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])
    assert torch.allclose(mirrored, expected, atol=1e-5)
    assert not torch.allclose(mirrored, seen, atol=0.05)
