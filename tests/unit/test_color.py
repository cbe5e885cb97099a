"""sRGB and linear light, against numbers of the standard."""

from __future__ import annotations

import numpy as np
import pytest

from multiview.color import bytes_from_unit, linear_from_srgb, srgb_from_linear


@pytest.mark.parametrize(
    ("srgb", "linear"),
    [
        (0.0, 0.0),
        (0.04045, 0.04045 / 12.92),  # end of the straight part
        (0.5, 0.21404114),
        (186 / 255, 0.49102085),  # half the light
        (1.0, 1.0),
    ],
    ids=["black", "join", "mid-grey", "half-light", "white"],
)
def test_known_values_both_ways(srgb: float, linear: float) -> None:
    assert linear_from_srgb(srgb) == pytest.approx(linear, abs=1e-7)
    assert srgb_from_linear(linear) == pytest.approx(srgb, abs=1e-7)


def test_pair_is_inverse_and_not_a_plain_power() -> None:
    values = np.linspace(0, 1, 4097)
    assert np.abs(srgb_from_linear(linear_from_srgb(values)) - values).max() < 1e-12
    # A gamma of 2.2 differs by 0.0325 at its worst in display values; the exact curve must not be that.
    assert np.abs(values**2.2 - linear_from_srgb(values)).max() > 5e-3


def test_curve_is_increasing_across_the_join() -> None:
    values = linear_from_srgb(np.linspace(0.04, 0.041, 1001))
    assert (np.diff(values) > 0).all()


def test_dtype_and_shape_follow_and_values_outside_stay_finite() -> None:
    assert linear_from_srgb(np.full((2, 3), 0.5, np.float32)).dtype == np.float32
    assert srgb_from_linear(np.array([0, 1])).dtype == np.float64
    outside = srgb_from_linear(np.array([-0.1, 1.5], np.float32))
    assert outside[0] == pytest.approx(-1.292) and 1 < outside[1] < 2


def test_bytes_round_to_nearest_and_clip() -> None:
    assert bytes_from_unit([-1.0, 0.0, 0.5, 0.999, 1.0, 7.0]).tolist() == [0, 0, 128, 255, 255, 255]
    assert bytes_from_unit(np.float32([100.4 / 255, 100.6 / 255])).tolist() == [100, 101]
