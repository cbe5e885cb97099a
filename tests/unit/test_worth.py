"""The overlap that a network expects, against solids whose chances are known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lrm.field import FunctionField, OutputRule, PlanesDecoder, TriplaneField
from lrm.worth import expected_overlap


def field(chance_inside: float, chance_outside: float = 0.0, *, half: float = 0.5) -> TriplaneField:
    """A slab |x| < ``half`` of the cube |x| < 1 whose points are inside with one chance, the others with another."""
    side = 64
    steps = (torch.arange(side) + 0.5) / side * 2 - 1
    high, low = (math.log(max(c, 1e-9) / max(1 - c, 1e-9)) for c in (chance_inside, chance_outside))
    plane = torch.where(steps.abs() < half, high, low).expand(side, side)
    planes = torch.zeros(3, 1, side, side)
    planes[0, 0] = plane  # of x and y; x runs along the width
    decoder = PlanesDecoder(1, 2, 1, "relu").requires_grad_(False)
    for values in decoder.parameters():
        values.zero_()
    first, last = decoder.layers
    first.weight[:, 0] = torch.tensor([1.0, -1.0])  # the number and its negative, so that relu loses neither
    last.weight[0] = torch.tensor([1.0, -1.0])
    rule = OutputRule("occupancy", density_scale=80.0, middle=0.5)
    return TriplaneField(planes=planes, decoder=decoder, scene_radius=1.0, level=40.0, outputs=rule)


@pytest.mark.parametrize(
    ("inside", "outside", "expected"),
    [(0.999999, 0.0, 1.0), (0.8, 0.0, 0.8), (0.8, 0.1, 0.8 / 1.1), (0.6, 0.4, 0.6 / 1.4)],
)
def test_half_a_cube_of_known_chances(inside: float, outside: float, expected: float) -> None:
    assert expected_overlap(field(inside, outside)) == pytest.approx(expected, abs=0.02)


def test_nothing_inside_is_worth_nothing() -> None:
    assert expected_overlap(field(0.3, 0.2)) == 0.0


def test_a_surer_network_expects_more() -> None:
    found = [expected_overlap(field(chance, 0.05)) for chance in (0.55, 0.7, 0.9)]
    assert found[0] < found[1] < found[2]  # type: ignore[operator]


def test_fields_without_chances_say_nothing() -> None:
    plain = FunctionField(lambda p: p[:, 0] * 0 + 20, lambda p: p * 0)
    assert expected_overlap(plain) is None
    assert expected_overlap(replace(field(0.8), outputs=OutputRule("exp"))) is None
