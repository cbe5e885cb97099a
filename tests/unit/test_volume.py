"""Ray marching against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from lrm.field import FunctionField
from lrm.volume import cube_interval, march, render, render_rays
from multiview.cameras import orbit
from multiview.errors import SettingsError

GREY = FunctionField(lambda p: torch.zeros(len(p)), lambda p: torch.full((len(p), 3), 0.25))


def slab(density: float, half: float = 2.0) -> FunctionField:
    """Uniform density where |x| < half (the cube has half side 1), colour (1, 0.5, 0)."""
    return FunctionField(
        lambda p: density * (p[:, 0].abs() < half).float(), lambda p: torch.tensor([1.0, 0.5, 0.0]).expand(len(p), 3)
    )


def toward_minus_x(y: float = 0.0, start: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[start, y, 0.1]]), torch.tensor([[-1.0, 0.0, 0.0]])


@pytest.mark.parametrize("density", [0.0, 0.3, 2.0, 1000.0])
def test_uniform_cube_has_the_closed_form_opacity(density: float) -> None:
    color, opacity, _ = render_rays(slab(density), *toward_minus_x(), samples_per_ray=7, background=1.0)
    seen = 1 - math.exp(-density * 2.0)  # the cube is two units long
    assert opacity.item() == pytest.approx(seen, abs=1e-6)
    assert color[0].tolist() == pytest.approx([1.0, 0.5 * seen + (1 - seen), 1 - seen], abs=1e-6)


def test_depth_of_a_thin_medium_is_the_middle_and_of_a_wall_its_front() -> None:
    _, _, thin = render_rays(slab(1e-4), *toward_minus_x(), samples_per_ray=64)
    assert thin.item() == pytest.approx(3.0, abs=1e-3)  # from 2 to 4
    _, _, wall = render_rays(slab(1e4, half=0.5), *toward_minus_x(), samples_per_ray=64)
    assert wall.item() == pytest.approx(2.5 + 1 / 64, abs=1e-5)  # the first midpoint behind x = 0.5


def test_a_ray_that_misses_is_background() -> None:
    color, opacity, depth = render_rays(slab(5.0), *toward_minus_x(y=1.5), background=0.75)
    assert (opacity.item(), depth.item()) == (0.0, 0.0)
    assert color[0].tolist() == [0.75] * 3


def test_a_cube_behind_the_camera_is_not_seen_and_from_inside_only_what_lies_ahead_counts() -> None:
    origin, direction = toward_minus_x()
    assert render_rays(slab(5.0), origin, -direction)[1].item() == 0.0
    inside = torch.tensor([[0.5, 0.0, 0.0]])
    assert render_rays(slab(0.4), inside, direction)[1].item() == pytest.approx(1 - math.exp(-0.4 * 1.5), abs=1e-6)


class Reaching(FunctionField):
    """Means something up to 1.5 from the origin, though its cube has half side 1."""

    @property
    def reach(self) -> float:
        return 1.5


def test_what_a_field_holds_outside_its_cube_is_seen() -> None:
    def density(points: torch.Tensor) -> torch.Tensor:
        return 2.0 * (points[:, 0].abs() > 1.0)

    def color(points: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(points), 3)

    # Two walls, from -1.5 to -1 and from 1 to 1.5: a length of 1 in all.
    _, opacity, _ = render_rays(Reaching(density, color), *toward_minus_x(y=1.2), samples_per_ray=30)
    assert opacity.item() == pytest.approx(1 - math.exp(-2.0), abs=1e-6)
    assert render_rays(FunctionField(density, color), *toward_minus_x())[1].item() == 0.0
    assert render_rays(Reaching(density, color), *toward_minus_x(y=1.6))[1].item() == 0.0


def test_a_field_that_reaches_no_further_than_its_cube_is_marched_as_before() -> None:
    class Short(FunctionField):
        @property
        def reach(self) -> float:
            return 0.5

    field = Short(lambda p: torch.ones(len(p)), lambda p: torch.zeros(len(p), 3))
    assert render_rays(field, *toward_minus_x())[1].item() == pytest.approx(1 - math.exp(-2.0), abs=1e-5)


def test_cube_interval_of_a_diagonal_ray() -> None:
    direction = torch.ones(1, 3) / math.sqrt(3)
    near, far = cube_interval(-2 * torch.ones(1, 3), direction, 1.0)
    assert (near.item(), far.item()) == pytest.approx((math.sqrt(3), 3 * math.sqrt(3)), rel=1e-6)


def test_weights_by_hand() -> None:
    # Optical depths ln 2 and ln 4: weights 1/2 and 1/2 * 3/4.
    density = torch.tensor([[math.log(2), math.log(4)]])
    color = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    mixed, opacity, weights = march(density, color, torch.ones(1, 1))
    assert weights[0].tolist() == pytest.approx([0.5, 0.375])
    assert opacity.item() == pytest.approx(0.875)
    assert mixed[0].tolist() == pytest.approx([0.5, 0.375, 0.0])


def test_depth_is_along_the_forward_axis_not_along_the_ray() -> None:
    # A wall at x = 0.5 facing the camera: every pixel has the same depth, though the corner rays are longer.
    field = slab(1e4, half=0.5)
    seen = render(field, orbit(0.0, 0.0, 3.0, 20.0), 9, 9, samples_per_ray=512)
    assert seen.depth[0, 0].flatten().tolist() == pytest.approx([2.5] * 81, abs=4e-3)
    assert seen.opacity.min().item() == pytest.approx(1.0)


def test_picture_shows_the_near_side_upright() -> None:
    # Red above, blue below, green on the +y side: seen from +x, up is up and +y is at the right.
    def color(p: torch.Tensor) -> torch.Tensor:
        return torch.stack([p[:, 2] > 0, p[:, 1] > 0, p[:, 2] < 0], -1).float()

    field = FunctionField(lambda p: 1e3 * (p.abs().amax(-1) < 0.5).float(), color)
    images = render(field, orbit(0.0, 0.0, 4.0, 16.0), 8, 8).images[0]
    assert images[:, 2, 2].tolist() == pytest.approx([1, 0, 0], abs=1e-3)
    assert images[:, 2, 5].tolist() == pytest.approx([1, 1, 0], abs=1e-3)
    assert images[:, 5, 2].tolist() == pytest.approx([0, 0, 1], abs=1e-3)


@pytest.mark.parametrize("sizes", [(0, 4, 8, 8), (4, 4, 0, 8), (4, 4, 8, 0)])
def test_sizes_must_be_positive(sizes: tuple[int, int, int, int]) -> None:
    height, width, samples, chunk = sizes
    with pytest.raises(SettingsError, match=f"{height} x {width}, {samples} samples, {chunk} rays"):
        render(GREY, orbit(0, 0, 3, 30), height, width, samples_per_ray=samples, chunk_size=chunk)
