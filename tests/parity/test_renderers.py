"""The published renderers: their own pictures of the small copies, and each rule worked out by hand.

Pictures come from the published code on the copies of tests/parity/fill.py, fp32 on CPU; for the two-pass renderer with
its random numbers drawn after ``manual_seed(5)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import lrm.twopass as twopass
from lrm.field import FunctionField, OutputRule, PlanesDecoder, TriplaneField
from lrm.fixedstep import render_fixed_step, render_rays_fixed_step, slab_interval
from lrm.instantmesh import InstantMesh, InstantMeshConfig
from lrm.instantmesh import camera_numbers as view_numbers
from lrm.openlrm import TurnedFrame, camera_numbers
from lrm.preprocess import triposr_input
from lrm.triposr import TripoSR, TripoSRConfig
from lrm.twopass import (
    INSTANTMESH_RULE,
    OPENLRM_RULE,
    TwoPassRule,
    coarse_depths,
    fine_depths,
    interval_weights,
    planes_interval,
    render_rays_two_pass,
    render_two_pass,
)
from lrm.vit import VitConfig
from lrm.volume import render
from multiview.camerafile import zero123plus_cameras
from multiview.cameras import Cameras, orbit, rays, yaw_rotation
from multiview.errors import SettingsError
from tests.parity.fill import TOLERANCE, figures, fill, furthest, uniform
from tests.parity.tables import INSTANTMESH_SMALL, TRIPOSR_SMALL
from tests.parity.test_openlrm import COPIES, NOTICED, picture, small_copy

TRIPOSR_PICTURES = [0.818826, 0.018773, 0.829032, 0.828101, 0.827649, 0.835301]
OPENLRM_PICTURES = {
    "separate": [0.814593, 0.055822, 0.851538, 0.819149, 0.842387, 0.907776],
    "joined": [0.821209, 0.056258, 0.853851, 0.845945, 0.830509, 0.913149],
}
OPENLRM_OPACITY = {
    "separate": [0.366359, 0.103505, 0.329420, 0.326012, 0.275215, 0.207341],
    "joined": [0.371140, 0.109919, 0.304453, 0.296392, 0.298019, 0.176789],
}
INSTANTMESH_PICTURES = [0.816939, 0.080122, 0.930969, 0.916647, 0.830929, 0.967566]
INSTANTMESH_OPACITY = [0.387592, 0.162933, 0.150499, 0.354693, 0.306009, 0.067172]
INSTANTMESH_DEPTH = 3.032934
SMALL_RULE = replace(OPENLRM_RULE, samples_per_ray=16)


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def triposr_field() -> TriplaneField:
    vit = VitConfig(16, 4, 48, 3, 4, 96, 1e-12)
    config = TripoSRConfig(
        image_size=96, vit=vit, plane_size=4, channels=64, heads=2, head_width=32, layers=2, plane_channels=6,
        decoder_width=16, samples_per_ray=16,
    )  # fmt: skip
    model = TripoSR.from_state(config, fill(TRIPOSR_SMALL))
    image = triposr_input(uniform(7, (80, 100, 3)).permute(2, 0, 1)[None], 96)
    return model.field(model.network(image)[0])


@pytest.fixture(scope="module", params=list(COPIES))
def openlrm_case(request: pytest.FixtureRequest) -> tuple[str, TriplaneField, Cameras]:
    """A small copy's field, turned into the world, and view 1 of the published orbit of 5, turned with it."""
    config = COPIES[request.param]
    model = small_copy(config)
    planes = model.network(picture(), camera_numbers(config, 1))[0]
    # Published: angle linspace(-90, 270, 5)[1] = 0 from +x, height 0.8 at a distance of 2; ours starts 90 degrees on.
    view = orbit(90.0, math.degrees(math.asin(0.4)), 2.0, math.degrees(2 * math.atan(0.5 / 0.75)))
    return request.param, model.field(planes), view


@pytest.fixture(scope="module")
def instantmesh_field() -> TriplaneField:
    vit = VitConfig(16, 4, 48, 3, 4, 96, 1e-12, condition_width=48)
    config = InstantMeshConfig(
        image_size=96, vit=vit, plane_size=4, width=64, heads=4, layers=2, plane_channels=6, samples_per_ray=16
    )
    model = InstantMesh.from_state(config, fill(INSTANTMESH_SMALL))
    views = uniform(13, (1, 6, 3, 96, 96))
    return model.field(model.network(views, view_numbers(zero123plus_cameras())[None])[0])


# The published pictures


def test_the_fixed_step_renderer_gives_triposrs_pictures(triposr_field: TriplaneField) -> None:
    cameras = orbit([0.0, 180.0], 0.0, 1.9, 40.0)
    drawn = render_fixed_step(triposr_field, cameras, 6, 6, samples_per_ray=16)
    assert furthest(figures(drawn.images.permute(0, 2, 3, 1)), TRIPOSR_PICTURES) < TOLERANCE
    # Other chunks change nothing; a metric step, as ours has, does.
    again = render_fixed_step(triposr_field, cameras, 6, 6, samples_per_ray=16, chunk_size=7)
    assert torch.allclose(again.images, drawn.images, atol=1e-6)
    metric = render(triposr_field, cameras, 6, 6, samples_per_ray=16)
    assert furthest(figures(metric.images.permute(0, 2, 3, 1)), TRIPOSR_PICTURES) > NOTICED


def test_the_two_pass_renderer_gives_openlrms_pictures(openlrm_case: tuple[str, TriplaneField, Cameras]) -> None:
    copy, field, view = openlrm_case
    drawn = render_two_pass(field, view, 6, 6, generator=seeded(), rule=SMALL_RULE)
    assert furthest(figures(drawn.images[0]), OPENLRM_PICTURES[copy]) < TOLERANCE
    assert furthest(figures(drawn.opacity[0]), OPENLRM_OPACITY[copy]) < TOLERANCE
    again = render_two_pass(field, view, 6, 6, generator=seeded(), rule=SMALL_RULE, chunk_size=40)
    assert torch.allclose(again.images, drawn.images, atol=1e-5)


def test_the_two_pass_renderer_gives_instantmeshs_pictures(instantmesh_field: TriplaneField) -> None:
    rule = replace(INSTANTMESH_RULE, samples_per_ray=16)
    view = orbit(45.0, 20.0, 4.5, 30.0)  # the second of eight around
    drawn = render_two_pass(instantmesh_field, view, 6, 6, generator=seeded(), rule=rule)
    assert furthest(figures(drawn.images[0]), INSTANTMESH_PICTURES) < TOLERANCE
    assert furthest(figures(drawn.opacity[0]), INSTANTMESH_OPACITY) < TOLERANCE
    # Not divided by the opacity, every depth falls short of the smallest sample and is clamped to it.
    origins, directions = rays(view, 6, 6)
    depth = render_rays_two_pass(instantmesh_field, origins, directions, seeded(), rule)[2]
    assert furthest(depth, [INSTANTMESH_DEPTH] * 36) < TOLERANCE
    divided = render_rays_two_pass(instantmesh_field, origins, directions, seeded(), replace(rule, divide_depth=True))
    assert (divided[2] - INSTANTMESH_DEPTH).abs().min() > NOTICED


def test_pictures_do_not_depend_on_how_the_field_is_pitched(
    openlrm_case: tuple[str, TriplaneField, Cameras],
) -> None:
    """Field and camera turned together: the same picture, random numbers included."""
    copy, field, view = openlrm_case
    turn = yaw_rotation(25.0)
    turned = replace(field, frame=TurnedFrame(turn @ field.frame.world_from_plane, 1.0))
    c2w = view.c2w.clone()
    c2w[:, :3] = turn @ view.c2w[:, :3]
    cameras = Cameras(c2w, view.intrinsics)
    drawn = render_two_pass(turned, cameras, 6, 6, generator=seeded(), rule=SMALL_RULE)
    assert furthest(figures(drawn.images[0]), OPENLRM_PICTURES[copy]) < TOLERANCE


def _random_as(order: str) -> Callable[[tuple[int, ...], torch.Generator, Tensor], Tensor]:
    """The random numbers of the coarse pass drawn in another layout."""

    def draw(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        if order == "none" and len(shape) == 3:
            return torch.full(shape, 0.5)
        if order == "rays first" and len(shape) == 3:
            return torch.rand((*shape[1:], shape[0]), generator=generator).permute(2, 0, 1)
        return torch.rand(shape, generator=generator)

    return draw


@pytest.mark.parametrize("order", ["none", "rays first"])
def test_another_random_layout_is_noticed(
    openlrm_case: tuple[str, TriplaneField, Cameras], order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, field, view = openlrm_case
    monkeypatch.setattr(twopass, "_uniform", _random_as(order))
    drawn = render_two_pass(field, view, 6, 6, generator=seeded(), rule=SMALL_RULE)
    assert furthest(figures(drawn.images[0]), OPENLRM_PICTURES[copy]) > NOTICED


def test_density_that_is_averaged_after_activation_is_noticed(
    openlrm_case: tuple[str, TriplaneField, Cameras], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, field, view = openlrm_case

    def averaged_late(field: TriplaneField, depths: Tensor, raw: Tensor) -> Tensor:
        density = field.outputs.to_density(raw)
        middle = field.outputs.from_density
        mean = (density[:, 1:] + density[:, :-1]) / 2
        backwards = torch.tensor([[middle(x) for x in row] for row in mean.tolist()])
        return interval_weights_of_middles(field, depths, backwards)

    monkeypatch.setattr(twopass, "interval_weights", averaged_late)
    drawn = render_two_pass(field, view, 6, 6, generator=seeded(), rule=SMALL_RULE)
    assert furthest(figures(drawn.opacity[0]), OPENLRM_OPACITY[copy]) > NOTICED


def interval_weights_of_middles(field: TriplaneField, depths: Tensor, raw: Tensor) -> Tensor:
    """`interval_weights` for raw density (R, n - 1) of the middles."""
    alpha = 1 - torch.exp(-field.outputs.to_density(raw) * (depths[:, 1:] - depths[:, :-1]))
    before = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1]], -1), -1)
    return alpha * before


# The fixed-step rule by hand


def uniform_box(density: float, radius: float = 0.87) -> FunctionField:
    return FunctionField(
        lambda p: torch.full((len(p),), density), lambda p: torch.full((len(p), 3), 0.25), scene_radius=radius
    )


def test_every_ray_through_the_cube_counts_as_one_unit_long() -> None:
    # Straight through and through a short piece near a corner: the same opacity, 1 - exp(-density).
    origins = torch.tensor([[1.9, 0.0, 0.0], [1.9, 0.0, 0.0]])
    directions = torch.tensor([[-1.0, 0.0, 0.0], [-1.0, 0.8, 0.0]])
    directions = directions / directions.norm(dim=-1, keepdim=True)
    for samples in (1, 16, 128):
        rgb, opacity, _ = render_rays_fixed_step(uniform_box(0.7), origins, directions, samples)
        assert opacity.tolist() == pytest.approx([1 - math.exp(-0.7)] * 2, abs=1e-6)
        assert rgb[0, 0].item() == pytest.approx(0.25 * opacity[0].item() + math.exp(-0.7), abs=1e-6)


def test_the_slab_test_has_the_published_tolerances() -> None:
    shrunk = 0.87 * 0.999
    origins = torch.tensor([[1.9, 0.0, 0.0], [1.9, shrunk - 1e-4, 0.0], [1.9, 0.8695, 0.0], [0.0, 0.0, 0.0]])
    directions = torch.tensor([[-1.0, 0.0, 0.0]]).expand(4, 3)
    near, far, hit = slab_interval(origins, directions, shrunk)
    assert hit.tolist() == [True, True, False, True]  # 0.8695 is inside the cube, but outside the shrunk one
    assert near.tolist()[0] == pytest.approx(1.9 - shrunk, abs=1e-6)
    assert far.tolist()[0] == pytest.approx(1.9 + shrunk, abs=1e-6)
    assert (near[3].item(), far[3].item()) == pytest.approx((0.0, shrunk))  # from inside: what lies ahead
    # A way of less than 0.01 through a corner counts as missing.
    corner = torch.tensor([[shrunk, shrunk - 0.005, 0.0]])
    grazing = torch.tensor([[-(0.5**0.5), 0.5**0.5, 0.0]])
    near, far, hit = slab_interval(corner, grazing, shrunk)
    assert (far - near).item() == pytest.approx(0.005 * 2**0.5, abs=1e-6)
    assert not hit.item()
    assert render_rays_fixed_step(uniform_box(50.0), corner, grazing)[0].tolist() == [[1.0, 1.0, 1.0]]


def test_the_published_example_of_a_ray() -> None:
    directions = rays(orbit(0.0, 0.0, 1.9, 40.0), 256, 256)[1]
    assert directions[0, 0].tolist() == pytest.approx([-0.889853, -0.322615, 0.322615], abs=1e-6)


def test_depth_of_a_wall_is_along_the_forward_axis() -> None:
    wall = FunctionField(lambda p: 1e5 * (p[:, 0] < 0.3).float(), lambda p: torch.zeros(len(p), 3), scene_radius=0.87)
    drawn = render_fixed_step(wall, orbit(0.0, 0.0, 1.9, 20.0), 5, 5, samples_per_ray=1024)
    assert drawn.depth.amin().item() == pytest.approx(1.6, abs=4e-3)
    assert drawn.depth.amax().item() == pytest.approx(1.6, abs=4e-3)


# The two-pass rule by hand


def constant_field(raw_density: float, raw_color: float = 0.0) -> TriplaneField:
    """Planes of zeros, so that the decoder's last bias is the answer everywhere, OpenLRM's output rule."""
    decoder = PlanesDecoder(1, 4, 1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
        decoder.layers[-1].bias.copy_(torch.tensor([raw_density, raw_color, raw_color, raw_color]))
    outputs = OutputRule("softplus", density_bias=-1.0, color_margin=0.001)
    return TriplaneField(torch.zeros(3, 1, 2, 2), decoder, 1.0, 3.0, outputs)


def toward_origin(*positions: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    origins = torch.tensor([list(positions)])
    return origins, -origins / origins.norm(dim=-1, keepdim=True)


def test_rays_that_miss_get_the_nearest_and_the_farthest_entry() -> None:
    origins, directions = toward_origin((3.0, 0.0, 0.0), (5.0, 0.0, 0.0), (9.0, 0.0, 0.0))
    directions[0, 2] = torch.tensor([0.0, 0.0, 1.0])
    near, far = planes_interval(constant_field(0.0), origins, directions)
    assert near.tolist() == [[2.0, 4.0, 2.0]]
    assert far.tolist() == [[4.0, 6.0, 4.0]]  # the last is the farthest entry, not the farthest exit
    near, far = planes_interval(constant_field(0.0), origins, -directions)
    assert near[0, :2].tolist() == [-4.0, -6.0]  # a cube behind the camera counts
    away = torch.tensor([[[0.0, 0.0, 1.0]] * 3])
    near, far = planes_interval(constant_field(0.0), origins, away)
    assert (near.tolist(), far.tolist()) == ([[-1.0] * 3], [[-2.0] * 3])


def test_coarse_depths_are_even_steps_moved_by_numbers_drawn_sample_by_sample() -> None:
    near, far = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 8.0]])
    depths = coarse_depths(near, far, 5, seeded(3))
    drawn = torch.rand(5, 1, 2, generator=seeded(3))
    # Steps of 0.5 and 1.5.
    expected = [[1 + 0.5 * (i + drawn[i, 0, 0].item()) for i in range(5)]]
    expected.append([2 + 1.5 * (i + drawn[i, 0, 1].item()) for i in range(5)])
    assert torch.allclose(depths, torch.tensor(expected), atol=1e-6)
    assert depths[1, -1] >= 8  # the last may pass the exit


def test_weights_of_three_samples_by_hand() -> None:
    raw = torch.tensor([[1.0, 3.0, 2.0]])
    depths = torch.tensor([[0.0, 0.5, 2.0]])
    # Middles 2 and 2.5, softplus(m - 1): 1.313262, 1.701413; lengths 0.5 and 1.5.
    first, second = 1 - math.exp(-1.313262 * 0.5), 1 - math.exp(-1.701413 * 1.5)
    weights = interval_weights(constant_field(0.0), depths, raw)
    assert weights.tolist() == [pytest.approx([first, (1 - first) * second], abs=1e-6)]


def test_fine_depths_follow_the_published_inverse() -> None:
    depths = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
    weights = torch.tensor([[0.0, 0.0, 0.9, 0.0, 0.0]])
    # Max over neighbours: 0 0 .9 .9 0 0; mean of neighbours: 0 .45 .9 .45 0; without the ends, plus 0.01001:
    share = [0.46001, 0.91001, 0.46001]
    total = sum(share)
    reached = [0.0, share[0] / total, (share[0] + share[1]) / total, 1.0]
    bins = [0.5, 1.5, 2.5, 3.5, 4.5]
    drawn = torch.rand(1, 6, generator=seeded(8))
    expected = []
    for u in drawn[0].tolist():
        j = sum(edge <= u for edge in reached)
        low, high = max(j - 1, 0), min(j, 3)
        expected.append(bins[low] + (u - reached[low]) / (reached[high] - reached[low]) * (bins[high] - bins[low]))
    assert fine_depths(depths, weights, seeded(8)).tolist() == [pytest.approx(expected, abs=1e-5)]


def test_a_uniform_cube_has_nearly_the_closed_form_opacity() -> None:
    # Density softplus(0) = 0.693147 over the two units of the cube; jitter cuts up to one coarse step off each end.
    drawn = render_rays_two_pass(
        constant_field(1.0), *toward_origin((3.0, 0.0, 0.0)), seeded(), TwoPassRule(samples_per_ray=4000)
    )
    rgb, opacity, depth = drawn
    assert opacity.item() == pytest.approx(1 - math.exp(-2 * math.log(2)), abs=2e-3)
    assert rgb[0, 0].item() == pytest.approx(0.5 * opacity.item() + 1 - opacity.item(), abs=1e-3)
    assert 2 < depth.item() < 4


def test_outside_the_cube_there_is_nothing_and_colour_keeps_its_margin() -> None:
    origins, directions = toward_origin((3.0, 0.0, 0.0), (0.0, 5.0, 0.0))
    directions[0, 1] = torch.tensor([0.0, 1.0, 0.0])
    for rule in (OPENLRM_RULE, INSTANTMESH_RULE):
        # The second ray looks away from the cube, which still counts; the first sees white that is a little more.
        rgb, opacity, depth = render_rays_two_pass(constant_field(40.0, 30.0), origins, directions, seeded(), rule)
        assert torch.isfinite(rgb).all() and torch.isfinite(depth).all()
        assert opacity[0].item() == pytest.approx(1, abs=1e-6)
        assert 1 < rgb[0, 0].item() <= 1.001 + 1e-6


def test_a_missing_ray_is_background_and_its_depth_the_farthest_of_the_call() -> None:
    origins, directions = toward_origin((3.0, 0.0, 0.0), (3.0, 0.0, 0.0))
    directions[0, 1] = torch.tensor([0.0, 0.0, 1.0])
    rule = replace(OPENLRM_RULE, background=0.75)
    rgb, opacity, depth = render_rays_two_pass(constant_field(2.0), origins, directions, seeded(), rule)
    assert rgb[1].tolist() == [0.75] * 3
    assert opacity[1].item() == 0
    assert depth[1] >= depth[0]  # nothing divided by nothing is clamped to the largest sample
    # InstantMesh does not divide: 0, clamped to the smallest sample instead.
    _, _, undivided = render_rays_two_pass(constant_field(2.0), origins, directions, seeded(), INSTANTMESH_RULE)
    assert undivided[1] <= undivided[0]


def test_the_same_seed_gives_the_same_picture_and_another_another() -> None:
    field, view = constant_field(1.5), orbit(20.0, 10.0, 2.5, 50.0)
    first, again, other = (render_two_pass(field, view, 4, 4, generator=seeded(s)).images for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_settings_that_cannot_be_rendered_are_refused() -> None:
    view = orbit(0.0, 0.0, 2.0, 40.0)
    with pytest.raises(SettingsError, match="even samples_per_ray of at least 8 and a positive guard, found 9"):
        TwoPassRule(samples_per_ray=9)
    with pytest.raises(SettingsError, match="found 0 x 4, 262144 points"):
        render_two_pass(constant_field(0.0), view, 0, 4, generator=seeded())
    with pytest.raises(SettingsError, match="found 4 x 4, 0 samples"):
        render_fixed_step(constant_field(0.0), view, 4, 4, samples_per_ray=0)

    class Bent:
        def to_plane(self, points: Tensor) -> Tensor:
            return points**3

    bent = replace(constant_field(0.0), frame=Bent())
    with pytest.raises(SettingsError, match="found a field with a Bent"):
        render_two_pass(bent, view, 4, 4, generator=seeded())
