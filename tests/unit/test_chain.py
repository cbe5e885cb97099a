"""The rules by which generated views are handed to reconstruction models, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from multiview.cameras import Cameras, orbit
from multiview.errors import CameraError, SettingsError
from multiview.views import Views
from trilift import chain, registry

GENERATORS, MODELS = ("zero123", "syncdreamer", "zero123plus"), ("instantmesh", "tiny")


def some_views(count: int = 16, size: int = 4) -> Views:
    """View k is of the grey k / 100, from azimuth 10 k, 1.5 away."""
    shades = torch.arange(count).reshape(-1, 1, 1, 1) / 100
    cameras = orbit([10.0 * k for k in range(count)], 30.0, 1.5, 49.134)
    return Views(shades.expand(-1, 3, size, size).clone(), torch.ones(count, 1, size, size), cameras)


def test_every_pair_has_one_rule_with_a_reason() -> None:
    names = [(pair.generator, pair.model) for pair in chain.PAIRS]
    assert len(set(names)) == len(names)
    assert {(g, m) for g in GENERATORS for m in MODELS} <= set(names)
    for pair in chain.PAIRS:
        assert len(pair.why) > 40 and len(pair.azimuths_deg) == len(pair.elevations_deg) and pair.world_scale > 0


def test_units_of_a_side_fill_instantmeshs_cube() -> None:
    """Facts: unit cubes doubled, cameras from 1.5 to 3.0; Zero123++ is at home at 4.0."""
    for name, scale, distance in (("zero123", 2.0, 3.0), ("syncdreamer", 2.0, 3.0), ("zero123plus", 1.0, 4.0)):
        pair, world = chain.find_pair(name, "instantmesh"), chain.WORLDS[name]
        assert pair.world_scale == scale and world.photo_distance * scale == distance
        assert world.object_side * scale == 2.0


def test_unknown_pairs_are_handed_on_as_they_are() -> None:
    pair = chain.find_pair("mine", "yours")
    views = some_views()
    same = chain.handed_on(pair, views)
    assert torch.equal(same.images, views.images) and torch.equal(same.cameras.c2w, views.cameras.c2w)


def test_selection_scale_and_photo_by_hand() -> None:
    views, pair = some_views(), chain.find_pair("syncdreamer", "tiny")
    photo = Views(torch.full((1, 3, 8, 8), 0.5), torch.ones(1, 1, 8, 8), orbit(0.0, 20.0, 1.5, 49.134))
    handed = chain.handed_on(pair, views, photo)
    assert handed.images[:, 0, 0, 0].tolist() == pytest.approx([0.5, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14])
    assert handed.image_size == (8, 8) and handed.cameras.positions.norm(dim=-1).tolist() == pytest.approx([1.5] * 8)
    doubled = chain.handed_on(chain.find_pair("syncdreamer", "instantmesh"), views)
    assert len(doubled) == 16 and doubled.cameras.positions.norm(dim=-1).tolist() == pytest.approx([3.0] * 16)
    assert torch.equal(doubled.cameras.intrinsics, views.cameras.intrinsics)
    assert torch.equal(doubled.cameras.c2w[:, :3, :3], views.cameras.c2w[:, :3, :3])


def test_resizing_does_not_bleed_in_what_is_not_there() -> None:
    images = torch.zeros(1, 3, 4, 4)
    images[:, 0] = 1  # red, and white where alpha is 0
    images[:, :, :, 2:] = 1
    alpha = torch.zeros(1, 1, 4, 4)
    alpha[..., :2] = 1
    seen = chain.resized(Views(images, alpha, orbit(0, 0, 1, 40)), (8, 8))
    shown = seen.images[0][:, seen.alpha[0, 0] > 0.1]
    assert shown[0].min() > 0.99 and shown[1:].max() < 0.01
    assert 0.2 < float(seen.alpha[0, 0, 0, 4]) < 0.3  # bilinear: a quarter


def test_the_photos_camera_sees_as_much_under_another_field_of_view() -> None:
    """Half of what is seen at the origin: 1.5 tan(49.134 / 2) = 0.6857."""
    cameras = some_views().cameras
    usual = chain.photo_camera("syncdreamer", cameras, 20.0)
    assert float(usual.positions.norm()) == pytest.approx(1.5) and float(usual.fov_y_deg) == pytest.approx(
        49.134, abs=1e-3
    )
    told = chain.photo_camera("syncdreamer", cameras, 20.0, fov_deg=30.0)
    distance = float(told.positions.norm())
    assert distance == pytest.approx(0.685714 / math.tan(math.radians(15)), abs=1e-4)
    assert float(told.positions[0, 2]) == pytest.approx(distance * math.sin(math.radians(20)), abs=1e-4)
    # Without a row in the table: the views' own distance and angle.
    other = chain.photo_camera("mine", orbit([0.0, 90.0], 0.0, 2.5, 33.0), -5.0)
    assert float(other.positions.norm()) == pytest.approx(2.5) and float(other.fov_y_deg) == pytest.approx(33.0)


@pytest.mark.parametrize("model", ["triposr", "openlrm-mix-base"])
def test_a_generator_before_a_model_for_one_photo_is_refused_before_anything_is_read(model: str) -> None:
    with pytest.raises(
        SettingsError, match=f"--views syncdreamer: {model} lifts the photo alone.*instantmesh-base or tiny"
    ):
        chain.check_sources(registry.resolve(model), registry.resolve("syncdreamer"))
    for fitting in ("tiny", "instantmesh-large"):
        chain.check_sources(registry.resolve(fitting), registry.resolve("syncdreamer"))


def test_worlds_grow_by_positive_numbers_alone() -> None:
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(CameraError, match="positive number"):
            some_views().cameras.scaled(wrong)


def test_views_that_show_nothing_are_left_out_and_named() -> None:
    cameras = Cameras.cat([orbit(60.0 * k, 0.0, 3.0, 40.0) for k in range(3)])
    alpha = torch.ones(3, 1, 8, 8)
    alpha[1] = 0.2
    views = Views(torch.zeros(3, 3, 8, 8), alpha, cameras)
    kept, empty = chain.shown(views)
    assert empty == (1,) and torch.equal(kept.cameras.c2w, cameras.c2w[[0, 2]])
    nothing = Views(views.images, alpha * 0, cameras)
    assert chain.shown(nothing) == (nothing, ())  # the model then says what is wrong
