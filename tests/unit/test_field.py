"""The triplane field: what it reads where, how raw numbers become density and colour, and its prepared functions."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from lrm.field import (
    PAIRS_XY_XZ_YZ,
    PAIRS_XY_XZ_ZY,
    FunctionField,
    OutputRule,
    PlanePairs,
    PlanesDecoder,
    TriplaneField,
    sample_planes,
)
from multiview.errors import FieldError


def ramp_planes(size: int = 8) -> Tensor:
    """(1, 3, 2, size, size): channel 0 of every plane is the coordinate along W at texel centres, channel 1 along H."""
    centres = (torch.arange(size) + 0.5) / size * 2 - 1
    along_w, along_h = centres.expand(size, size), centres[:, None].expand(size, size)
    return torch.stack([along_w, along_h]).expand(1, 3, 2, size, size).contiguous()


def random_field(pairs: PlanePairs = PAIRS_XY_XZ_YZ, **changes: object) -> TriplaneField:
    torch.manual_seed(0)
    decoder = PlanesDecoder(5, width=16, hidden_layers=3, activation="silu")
    return TriplaneField(torch.randn(3, 5, 6, 7), decoder, 0.8, 1.0, pairs=pairs, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        pytest.param(PAIRS_XY_XZ_YZ, [[0.1, -0.2], [0.1, 0.3], [-0.2, 0.3]], id="xy-xz-yz"),
        pytest.param(PAIRS_XY_XZ_ZY, [[0.1, -0.2], [0.1, 0.3], [0.3, -0.2]], id="xy-xz-zy"),
    ],
)
def test_planes_that_encode_their_coordinates_read_them_back(pairs: PlanePairs, expected: list[list[float]]) -> None:
    features = sample_planes(ramp_planes(), torch.tensor([[[0.1, -0.2, 0.3]]]), pairs=pairs)
    torch.testing.assert_close(features[0, 0], torch.tensor(expected))


@pytest.mark.parametrize(
    ("x", "share"),
    [(0.0, 1.0), (0.875, 1.0), (1.0, 0.5), (1.0625, 0.25), (1.125, 0.0), (3.0, 0.0), (-1.0, 0.5)],
)
def test_features_fade_across_the_border(x: float, share: float) -> None:
    # 8 texels over [-1, 1]: half a texel is 0.125, so planes of ones read 1 up to 0.875 and 0 from 1.125 on.
    features = sample_planes(torch.ones(1, 3, 1, 8, 8), torch.tensor([[[x, 0.0, 0.0]]]))
    assert features[0, 0, 0, 0].item() == pytest.approx(share)
    assert features[0, 0, 2, 0].item() == pytest.approx(1.0)  # the y-z plane does not see x


def test_sample_planes_says_which_shapes_it_wants() -> None:
    with pytest.raises(FieldError, match=r"\(B, 3, C, H, W\).*\(1, 2, 4, 8, 8\)"):
        sample_planes(torch.zeros(1, 2, 4, 8, 8), torch.zeros(1, 5, 3))
    with pytest.raises(FieldError, match=r"\(2, 5, 3\)"):
        sample_planes(torch.zeros(1, 3, 4, 8, 8), torch.zeros(2, 5, 3))


@pytest.mark.parametrize("pairs", [PAIRS_XY_XZ_YZ, PAIRS_XY_XZ_ZY], ids=["yz", "zy"])
def test_folded_functions_equal_the_plain_ones_inside_and_outside(pairs: PlanePairs) -> None:
    field = random_field(pairs)
    points = (torch.rand(9000, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1) * 1.2
    with torch.no_grad():
        torch.testing.assert_close(field.folded_raw()(points), field.raw(points), atol=2e-6, rtol=0)
        torch.testing.assert_close(field.density_function()(points), field.density(points), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(field.color_function()(points), field.color(points), atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [1, 63, 4096, 9001])
def test_numbers_do_not_depend_on_how_many_points_are_asked_for(count: int) -> None:
    field = random_field()
    points = (torch.rand(9001, 3, generator=torch.Generator().manual_seed(3)) * 2 - 1) * 0.9
    ask = field.raw_density().raw
    torch.testing.assert_close(ask(points)[:count], ask(points[:count]), atol=1e-6, rtol=0)


def deep_field() -> TriplaneField:
    """A field of TripoSR's depth: eight products of 64 after the first layer, and activations of order one."""
    torch.manual_seed(0)
    decoder = PlanesDecoder(8, width=64, hidden_layers=9, activation="silu")
    with torch.no_grad():
        for layer in decoder.layers:
            layer.weight.mul_(3)
    return TriplaneField(torch.randn(3, 8, 16, 16), decoder, 0.8, 1.0)


def test_density_and_colour_together_are_those_asked_for_alone() -> None:
    field, points = deep_field(), torch.rand(3000, 3, generator=torch.Generator().manual_seed(4)) - 0.5
    raw = field.raw_density()
    assert raw.with_color is not None
    density, color = raw.with_color(points)
    torch.testing.assert_close(density, raw.raw(points), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(color, field.color(points), atol=1e-5, rtol=1e-4)


def test_rough_density_is_bf16s_and_the_exact_one_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrm.field.multiplies_bf16", lambda: True)
    field, points = deep_field(), torch.rand(3000, 3, generator=torch.Generator().manual_seed(5)) - 0.5
    raw = field.raw_density()
    assert raw.rough is not None
    exact, rough = raw.raw(points), raw.rough(points)
    spread = exact.std().item()
    # Eight roundings to 8 bits of numbers of this size, each some 2 ** -9 of it, add up to about a hundredth.
    assert 1e-4 * spread < (rough - exact).abs().mean() < 0.02 * spread
    with torch.no_grad():
        torch.testing.assert_close(exact, field.raw(points)[:, 0], atol=1e-4 * spread, rtol=0)


def test_what_a_touch_adds_is_known_by_itself() -> None:
    def ball(raw: Tensor, coordinates: Tensor) -> Tensor:
        return torch.maximum(raw, 3 - 10 * coordinates.norm(dim=-1))

    plain, points = random_field(), torch.tensor([[0.0, 0.0, 0.0], [0.4, 0.0, 0.0], [0.8, 0.8, 0.0]])
    assert plain.raw_density().thin is None
    touched = dataclasses.replace(plain, touch=ball).raw_density()
    assert touched.thin is not None
    # Plane coordinates are points over 0.8: 3, 3 - 10 * 0.5, 3 - 10 * sqrt(2).
    torch.testing.assert_close(touched.thin(points), torch.tensor([3.0, -2.0, 3 - 10 * math.sqrt(2)]))
    assert (touched.raw(points) >= touched.thin(points) - 1e-5).all()


def test_rough_density_is_offered_only_where_it_saves_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrm.field.multiplies_bf16", lambda: True)
    assert deep_field().raw_density().rough is not None
    assert random_field().raw_density().rough is None  # layers of 16 are too short
    monkeypatch.setattr("lrm.field.multiplies_bf16", lambda: False)
    assert deep_field().raw_density().rough is None


def test_folded_functions_tell_the_pairs_apart() -> None:
    points = torch.tensor([[0.3, 0.1, -0.4]])
    same = random_field(PAIRS_XY_XZ_YZ).density_function()(points)
    swapped = random_field(PAIRS_XY_XZ_ZY).density_function()(points)
    assert abs(same.item() - swapped.item()) > 1e-4


def test_folded_functions_follow_a_frame() -> None:
    class Turned:
        reach = 1.5

        def to_plane(self, points: Tensor) -> Tensor:
            return points[:, [1, 2, 0]] * 0.7

    field = random_field(frame=Turned())
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(2)) - 0.5
    with torch.no_grad():
        torch.testing.assert_close(field.density_function()(points), field.density(points))
    assert field.reach == 1.5
    assert random_field().reach == 0.8


def test_a_nan_coordinate_gives_nan_and_nothing_else() -> None:
    density = random_field().density_function()(torch.tensor([[0.1, math.nan, 0.2], [0.1, 0.1, 0.2], [1e30, 0.0, 0.0]]))
    assert torch.isnan(density).tolist() == [True, False, False]


def test_prepared_functions_give_no_gradients_but_density_does() -> None:
    field = random_field()
    points = torch.zeros(2, 3, requires_grad=True)
    assert not field.density_function()(points).requires_grad
    field.density(points).sum().backward()
    assert points.grad is not None and points.grad.abs().sum() > 0


def test_decoder_applies_its_layers_with_the_activation_between_them() -> None:
    decoder = PlanesDecoder(1, width=1, hidden_layers=1, activation="relu")
    with torch.no_grad():
        decoder.layers[0].weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))  # type: ignore[operator]
        decoder.layers[0].bias.fill_(-1.0)  # type: ignore[operator]
        decoder.layers[1].weight.copy_(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))  # type: ignore[operator]
        decoder.layers[1].bias.fill_(0.5)  # type: ignore[operator]
    out = decoder(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    # 1 + 2 + 3 - 1 = 5, then 0.5 + 5 * (1, 2, 3, 4); and relu(-1) = 0.
    assert out.tolist() == [[5.5, 10.5, 15.5, 20.5], [0.5] * 4]


@pytest.mark.parametrize(
    ("rule", "raw", "density"),
    [
        pytest.param(OutputRule("exp", -1.0), 4.218875825, 25.0, id="exp: TripoSR's level"),
        pytest.param(OutputRule("softplus", -1.0), 1.0, math.log(2), id="softplus at 0"),
        pytest.param(OutputRule("softplus", -1.0), 41.0, 40.0, id="softplus, large"),
        pytest.param(OutputRule("occupancy", density_scale=80.0), 0.0, 40.0, id="occupancy at 0"),
        pytest.param(OutputRule("occupancy", density_scale=80.0), math.log(3), 60.0, id="occupancy at 3 to 1"),
        pytest.param(OutputRule("occupancy", density_scale=80.0, middle=0.2), -math.log(4), 40.0, id="its middle"),
        # sharpness 2: the odds of 3 to 1 count as 9 to 1.
        pytest.param(OutputRule("occupancy", density_scale=80.0, sharpness=2.0), math.log(3), 72.0, id="sharpness"),
    ],
)
def test_output_rules_and_their_inverse(rule: OutputRule, raw: float, density: float) -> None:
    assert rule.to_density(torch.tensor(raw, dtype=torch.float64)).item() == pytest.approx(density, rel=1e-6)
    assert rule.from_density(density) == pytest.approx(raw, abs=1e-6)


def test_densities_out_of_reach_have_infinite_raw_numbers() -> None:
    assert OutputRule("exp").from_density(0.0) == -math.inf
    assert OutputRule("softplus").from_density(-1.0) == -math.inf
    assert OutputRule("occupancy", density_scale=80.0).from_density(80.0) == math.inf


def test_colour_margin_is_clamped() -> None:
    rule = OutputRule(color_margin=0.001)
    color = rule.to_color(torch.tensor([-50.0, 0.0, 50.0]))
    assert color.tolist() == pytest.approx([0.0, 0.5, 1.0])
    # sigmoid(2) * 1.002 - 0.001
    assert rule.to_color(torch.tensor(2.0)).item() == pytest.approx(0.880797078 * 1.002 - 0.001, abs=1e-6)


def test_function_field_asks_only_for_what_is_wanted() -> None:
    def never(points: Tensor) -> Tensor:
        raise AssertionError("not asked for")

    points = torch.tensor([[1.0, 2.0, 2.0]])
    density_only = FunctionField(lambda p: p.norm(dim=-1), never)
    assert density_only.density(points).tolist() == [3.0]
    raw = density_only.raw_density()
    assert raw.raw(points).tolist() == [3.0] and raw.from_density(3.0) == 3.0
    assert FunctionField(never, lambda p: p / 4).color(points).tolist() == [[0.25, 0.5, 0.5]]


def test_a_bias_is_read_where_the_last_plane_is_and_only_touches_the_density() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    decoder = PlanesDecoder(4, width=8, hidden_layers=2)
    plain = TriplaneField(torch.randn(3, 4, 8, 8, generator=generator), decoder, 1.0, 1.0)
    bias = torch.zeros(6, 6)
    bias[4, 1] = 3.0  # of the last pair (y, z): y at -0.5, z at 0.5
    biased = dataclasses.replace(plain, raw_bias=bias)
    points = torch.tensor([[0.3, -0.5, 0.5], [-0.9, -0.5, 0.5], [0.3, 0.5, 0.5], [0.3, -0.5, -0.5]])
    difference = (biased.raw(points) - plain.raw(points)).detach()
    assert torch.allclose(difference[:, 0], torch.tensor([3.0, 3.0, 0.0, 0.0]), atol=1e-5)
    assert (difference[:, 1:] == 0).all()
    many = torch.rand(500, 3, generator=generator) * 2.4 - 1.2
    for outputs in (slice(0, 4), slice(0, 1), slice(1, 4)):
        assert torch.allclose(biased.folded_raw(outputs)(many), biased.raw(many)[:, outputs], atol=1e-4)
    assert biased.raw_density().level_is_sure
    assert not plain.raw_density().level_is_sure


def test_a_touch_comes_last_and_changes_the_density_alone() -> None:
    torch.manual_seed(0)
    plain = TriplaneField(torch.randn(3, 4, 8, 8), PlanesDecoder(4, width=8, hidden_layers=2), 1.0, 1.0)

    def touch(raw: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
        return torch.where(coordinates[:, 0] > 0, raw * 2, raw)

    touched = dataclasses.replace(plain, raw_bias=torch.ones(2, 2), touch=touch)
    points = torch.tensor([[0.5, 0.1, 0.2], [-0.5, 0.1, 0.2]])
    before, after = plain.raw(points).detach(), touched.raw(points).detach()
    assert torch.allclose(after[:, 0], (before[:, 0] + 1) * torch.tensor([2.0, 1.0]), atol=1e-5)
    assert torch.equal(after[:, 1:], before[:, 1:])
    for outputs in (slice(0, 4), slice(0, 1), slice(1, 4)):
        assert torch.allclose(touched.folded_raw(outputs)(points), after[:, outputs], atol=1e-4)
