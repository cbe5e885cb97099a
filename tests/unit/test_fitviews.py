"""Fitting a lattice field to views (lrm/fitviews.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lrm.field import OutputRule
from lrm.fitviews import FitViewsSettings, LatticeField, fit_views, hull_field
from lrm.hull import lattice_points
from lrm.lattice import Lattice
from lrm.mesh import extract_mesh
from lrm.raster import render_mesh
from multiview.cameras import orbit
from multiview.errors import FieldError, ImageError, SettingsError
from multiview.views import Views

from .test_hull import box_mesh, in_box, iou

QUICK = FitViewsSettings(samples=32, flat_samples=32, steps=(10, 25), batch_rays=512)


def small_field() -> LatticeField:
    """Raw density that is x, colour logits that are y, on 3 x 4 x 2 samples."""
    lattice = Lattice((-1.0, -1.5, -0.5), 1.0, (3, 4, 2))
    points = lattice_points(lattice).reshape(3, 4, 2, 3)
    rule = OutputRule("occupancy", density_scale=8.0)
    return LatticeField(lattice, points[..., 0], points[..., 1:2].expand(3, 4, 2, 3), rule, 1.5, 4.0)


def box_views(count: int = 8, size: int = 64) -> Views:
    return render_mesh(box_mesh(), orbit([k * 360 / count for k in range(count)], 30.0, 3.0, 40.0), size)


def test_a_lattice_field_is_linear_between_its_samples() -> None:
    field = small_field()
    points = torch.tensor([[0.25, 0.0, 0.1], [-0.75, -1.2, -0.5], [1.0, 1.5, 0.5]])
    density, color = field.density_and_color(points)
    assert density.tolist() == pytest.approx((8 * torch.sigmoid(points[:, 0])).tolist(), abs=1e-5)
    assert color[:, 1].tolist() == pytest.approx(torch.sigmoid(points[:, 1]).tolist(), abs=1e-5)
    assert field.density(points[:1]).item() == pytest.approx(field.raw_density().to_density(points[:1, 0]).item())


def test_outside_its_lattice_a_field_is_empty() -> None:
    outside = small_field().density(torch.tensor([[1.01, 0.0, 0.0], [0.0, 0.0, -0.51]]))
    assert (outside < 0.4).all()  # 8 * sigmoid(-3) = 0.379


def test_a_lattice_field_wants_one_number_a_sample() -> None:
    field = small_field()
    with pytest.raises(FieldError, match=r"of \(3, 4, 2\) samples"):
        replace(field, raw=field.raw[:2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": 8}, "samples from 16 to 512"),
        ({"step": 9.0}, "step of 0.1 to 4"),
        ({"steps": (5, -1)}, "steps >= 0"),
    ],
)
def test_settings_are_checked(change: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        FitViewsSettings(**change)  # type: ignore[arg-type]


def test_a_box_is_fitted_better_than_its_hull_and_in_its_colour() -> None:
    views = box_views()
    told: list[float] = []
    fitted = fit_views(views, QUICK, told.append)
    points = lattice_points(fitted.field.lattice)
    true = in_box(points)
    hull = (fitted.hull > 0.5).reshape(-1)
    found = fitted.field.density(points) > fitted.field.level
    assert iou(found, true) > iou(hull, true) + 0.05
    assert not (found & (fitted.hull < 0.45).reshape(-1)).any()
    mesh = extract_mesh(fitted.field, mesh_resolution=48)
    assert abs(float(mesh.colors.mean()) - 0.5) < 0.03
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert fitted.dissent == 0


def test_the_same_seed_gives_the_same_numbers() -> None:
    views = box_views()
    settings = replace(QUICK, steps=(3, 3))
    one, two = fit_views(views, settings), fit_views(views, settings)
    other = fit_views(views, replace(settings, seed=1))
    assert torch.equal(one.field.raw, two.field.raw)
    assert torch.equal(one.field.raw_color, two.field.raw_color)
    assert not torch.equal(one.field.raw, other.field.raw)


def test_without_steps_and_film_the_hull_comes_back() -> None:
    views = box_views()
    fitted = fit_views(views, replace(QUICK, steps=(0, 0), flat_samples=0))
    start = hull_field(views, fitted.field.lattice, fitted.hull)
    points = lattice_points(fitted.field.lattice)
    same = (fitted.field.density(points) > fitted.field.level) == (start.density(points) > start.level)
    assert float(same.float().mean()) > 0.99


def test_two_views_are_too_few() -> None:
    with pytest.raises(ImageError, match="at least 3 views"):
        fit_views(box_views().select([0, 1]), QUICK)
