"""What all view generators share: pictures on white, schedulers, networks on and off the device, overflowing steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multiview.errors import ImageError, SettingsError, WeightsError
from multiview.generator import (
    FiniteSteps,
    check_cutout,
    check_settings,
    draw_noise,
    make_scheduler,
    matte_from_white,
    module_dtype,
    on_device,
    over_white,
    pieces,
)

# Pictures.


def test_a_cutout_goes_over_white_and_what_lies_under_clear_pixels_never_shows() -> None:
    image = torch.zeros(4, 2, 2)
    image[:, 0, 0] = torch.tensor([0.2, 0.4, 0.6, 1.0])
    image[:, 0, 1] = torch.tensor([0.2, 0.4, 0.6, 0.5])
    found = over_white(image, 2)
    assert tuple(found.shape) == (1, 3, 2, 2)
    assert found[0, :, 0, 0].tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert found[0, :, 0, 1].tolist() == pytest.approx([0.6, 0.7, 0.8])
    assert found[0, :, 1].min() == 1
    black_under, white_under = torch.zeros(4, 8, 8), torch.zeros(4, 8, 8)
    white_under[:3] = 1
    assert torch.equal(over_white(black_under, 4), over_white(white_under, 4))
    assert over_white(black_under, 4).min().item() == pytest.approx(1, abs=1e-6)


def test_a_picture_of_another_size_is_resized_without_overshooting() -> None:
    image = torch.zeros(4, 32, 32)
    image[3, :, 16:] = 1  # the right half black
    found = over_white(image, 8)[0, 0]
    assert tuple(found.shape) == (8, 8) and found.min() >= 0 and found.max() <= 1
    assert found[:, :3].min() > 0.95 and found[:, 5:].max() < 0.05


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(3, 8, 8), r"\(4, S, S\).*found \(3, 8, 8\)"),
        (torch.zeros(4, 8, 9), r"found \(4, 8, 9\)"),
        (torch.zeros(1, 4, 8, 8), r"found \(1, 4, 8, 8\)"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), r"found torch\.uint8.*255"),
        (torch.full((4, 8, 8), 200.0), r"found 200 to 200"),
        (torch.full((4, 8, 8), torch.nan), r"found nan"),
    ],
    ids=["rgb", "oblong", "batch", "bytes", "range", "nan"],
)
def test_what_is_no_cutout_is_refused(image: Tensor, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        check_cutout(image)


def disc(size: int = 64, radius: float = 20.0) -> Tensor:
    """True coverage (1, 1, S, S) of a disc, smooth at the edge."""
    at = torch.arange(size * 8) / 8 + 1 / 16 - size / 2
    inside = (at[:, None].square() + at[None].square() < radius**2).float()
    return F.avg_pool2d(inside[None, None], 8)


def test_a_matte_is_the_true_coverage_and_its_colours_are_the_objects() -> None:
    cover, color = disc(), torch.tensor([0.7, 0.2, 0.1]).reshape(1, 3, 1, 1)
    colors, alpha = matte_from_white(color * cover + 1 - cover)
    assert (alpha - cover).abs().max().item() < 0.1
    assert (alpha - cover).abs().mean().item() < 2e-3
    solid = alpha > 0.2
    assert ((colors - color).abs() * solid).max().item() < 0.05
    again = colors * alpha + 1 - alpha
    assert (again - (color * cover + 1 - cover)).abs().max().item() < 0.1


def test_white_inside_the_object_stays_and_noise_on_the_background_goes() -> None:
    picture = torch.full((2, 3, 32, 32), 0.3)
    picture[:, :, :4], picture[:, :, 28:] = 1.0, 1.0
    picture[0, :, 12:18, 12:18] = 1.0  # a white spot, closed all around
    picture[1] -= 0.05 * torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    _, alpha = matte_from_white(picture)
    assert alpha[:, 0, :4].max() == 0 and alpha[:, 0, 28:].max() == 0
    assert alpha[0, 0, 6:26].min() == 1
    assert alpha[1, 0, 6:26].min() == 1


def test_a_white_picture_has_nothing_in_it_and_a_full_one_no_background() -> None:
    assert matte_from_white(torch.ones(1, 3, 8, 8))[1].max() == 0
    assert matte_from_white(torch.zeros(1, 3, 8, 8))[1].min() == 1


# Settings and schedulers.


def test_settings_in_range_pass_and_others_are_named() -> None:
    good: dict[str, Any] = {
        "elevation_deg": -90.0, "num_inference_steps": 1, "guidance_scale": 0.0, "view_batch_size": None,
    }  # fmt: skip
    check_settings(**good)
    for key, wrong in (
        ("elevation_deg", float("nan")), ("num_inference_steps", 1001), ("guidance_scale", float("inf")),
        ("view_batch_size", 0),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=rf"{key}={wrong}"):
            check_settings(**good | {key: wrong})


def test_schedulers_share_the_noise_and_start_where_they_should() -> None:
    alphas = [make_scheduler(name).alphas_cumprod for name in ("ddim", "dpm++", "unipc")]
    assert all(torch.equal(a, alphas[0]) for a in alphas)
    for name, first in (("ddim", 981), ("dpm++", 999), ("unipc", 999)):
        scheduler = make_scheduler(name)  # type: ignore[arg-type]
        scheduler.set_timesteps(50)
        assert int(scheduler.timesteps[0]) == first and len(scheduler.timesteps) == 50
    assert make_scheduler("ddim", prediction_type="v_prediction").config.prediction_type == "v_prediction"
    with pytest.raises(SettingsError, match=r"'euler': expected ddim, dpm\+\+, unipc"):
        make_scheduler("euler")  # type: ignore[arg-type]


def test_noise_comes_from_the_generator_alone() -> None:
    a, b = (draw_noise((2, 3), torch.Generator().manual_seed(5), torch.device("cpu")) for _ in range(2))
    assert torch.equal(a, b) and a.dtype == torch.float32
    state = torch.get_rng_state()
    draw_noise((2, 3), torch.Generator().manual_seed(5), torch.device("cpu"))
    assert torch.equal(state, torch.get_rng_state())


def test_pieces_cover_everything_once() -> None:
    assert list(pieces(5, 2)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(pieces(5, None)) == [slice(0, 5)]
    assert list(pieces(0, None)) == []


# Networks.


class Remembers(nn.Linear):
    """A layer that notes where it was sent."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.sent: list[str] = []

    def to(self, *args: Any, **kwargs: Any) -> Any:
        self.sent.append(str(args[0]))
        return super().to(*args, **kwargs)


def test_networks_are_on_the_device_only_while_they_work_when_asked() -> None:
    layer = Remembers()
    with on_device(torch.device("meta"), layer, offload=False):
        pass
    assert layer.sent == ["meta"]
    layer = Remembers()
    with pytest.raises(KeyboardInterrupt), on_device(torch.device("cpu", 0), layer, offload=True):
        raise KeyboardInterrupt
    assert layer.sent == ["cpu:0", "cpu"]


def test_a_half_step_that_overflows_is_repeated_in_fp32_and_the_dtypes_come_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    layer = nn.Linear(2, 2, bias=True).half()
    layer.bias.data = layer.bias.data.float()  # norms and biases may be kept in fp32
    before = {name: p.clone() for name, p in layer.named_parameters()}
    calls: list[torch.dtype] = []

    def call() -> Tensor:
        calls.append(module_dtype(layer))
        return torch.tensor([1e5]).to(module_dtype(layer)).float()

    with caplog.at_level("WARNING", logger="trilift"), FiniteSteps(layer) as steps:
        assert steps.run(call, "step 3 of 50 (t = 941)").item() == 1e5
        assert steps.run(call, "step 4 of 50").item() == 1e5
        assert steps.retried == ["step 3 of 50 (t = 941)"]
    assert calls == [torch.float16, torch.float32, torch.float32]
    assert "step 3 of 50 (t = 941) gave numbers that are not finite in float16: repeated in fp32" in caplog.text
    assert {name: p.dtype for name, p in layer.named_parameters()} == {"weight": torch.float16, "bias": torch.float32}
    assert all(torch.equal(p, before[name]) for name, p in layer.named_parameters())


def test_what_is_not_finite_in_fp32_is_an_error_and_the_dtypes_come_back() -> None:
    layer = nn.Linear(2, 2).half()
    numbers = torch.tensor([1.0, torch.nan, torch.inf])
    with pytest.raises(WeightsError, match=r"step 1 of 2 gave.*\(2 of 3\).*damaged"), FiniteSteps(layer) as steps:
        steps.run(lambda: numbers, "step 1 of 2")
    assert module_dtype(layer) == torch.float16
