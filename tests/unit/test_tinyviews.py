"""The embedded view generator: encoding, noise path, sampler, and the rules that hold whatever its weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from multiview.errors import ImageError, SettingsError, WeightsError
from multiview.ring import ring_cameras
from multiview.tinyviews import (
    TinyViews,
    TinyViewsConfig,
    TinyViewsNetwork,
    blank_sketches,
    decode_views,
    denoise,
    encode_sketches,
    encode_views,
    path,
    preconditioning,
    predicted,
    regress,
    sampling_times,
)

SMALL = TinyViewsConfig(channels=(8, 16, 16), head_width=8, embedding=16)


def random_network(config: TinyViewsConfig = SMALL, seed: int = 0) -> TinyViewsNetwork:
    """Small random weights, the last layer's too (they begin at zero)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TinyViewsNetwork(config)
        for values in network.exit.parameters():
            nn.init.normal_(values, std=0.2)
    return network.eval().requires_grad_(False)


def inputs(seed: int = 0, size: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Encoded sketches (1, 6, 5, s, s), an encoded photo (1, 4, s, s) and a camera (1, 2)."""
    generator = torch.Generator().manual_seed(seed)
    sketches = encode_sketches(torch.rand(1, 6, 5, size, size, generator=generator))
    photo = encode_views(torch.rand(1, 4, size, size, generator=generator))
    return sketches, photo, torch.tensor([[0.5, 0.1]])


class Blob:
    """A sketcher that draws the same grey square everywhere, brighter for higher cameras."""

    image_size = 32

    def __call__(self, photo: Tensor, elevation_deg: float) -> tuple[Tensor, float]:
        drawn = torch.zeros(6, 5, 64, 64)
        drawn[:, :3, 16:48, 16:48] = 0.4 + elevation_deg / 200
        drawn[:, 3, 16:48, 16:48] = 1.0
        return drawn, 4.5


def generator(mean: bool = False, **changes: Any) -> TinyViews:
    return TinyViews(random_network(), Blob(), mean=mean, **changes)


def cutout(size: int = 48) -> Tensor:
    image = torch.zeros(4, size, size)
    image[:, size // 4 : -size // 4, size // 4 : -size // 4] = 0.7
    image[3] = (image[3] > 0).float()
    return image


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_encoding_is_undone_where_there_is_something(seed: int) -> None:
    rgba = torch.rand(2, 4, 5, 5, generator=torch.Generator().manual_seed(seed))
    back = decode_views(encode_views(rgba))
    assert torch.allclose(back[:, 3], rgba[:, 3], atol=1e-6)
    solid = rgba[:, 3:] > 0.1
    assert torch.allclose((back[:, :3] - rgba[:, :3]) * solid, torch.zeros(()), atol=1e-4)


def test_nothing_is_grey_without_alpha() -> None:
    assert encode_views(torch.zeros(4, 2, 2))[:, 0, 0].tolist() == [0, 0, 0, -1]
    assert encode_views(torch.ones(4, 2, 2))[:, 0, 0].tolist() == [1, 1, 1, 1]


def test_sketches_are_encoded_as_views_are() -> None:
    rgba = torch.rand(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    sketch = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:], torch.ones(6, 1, 3, 3)], 1)
    assert torch.allclose(encode_sketches(sketch)[:, :4], encode_views(rgba), atol=1e-6)
    assert torch.equal(encode_sketches(torch.zeros(1, 6, 5, 2, 2)), blank_sketches(torch.zeros(1, 6, 5, 2, 2)))


def test_the_path_ends_in_pure_noise() -> None:
    share, spread = path(torch.tensor([0.0, 0.5, 1.0]))
    assert share.flatten().tolist() == pytest.approx([1, 2**-0.5, 0], abs=1e-6)
    assert spread.flatten().tolist() == pytest.approx([0, 2**-0.5, 1], abs=1e-6)


@pytest.mark.parametrize("time", [0.05, 0.4, 0.9, 1.0])
def test_input_and_target_of_the_network_have_unit_size_at_every_noise_level(time: float) -> None:
    config = TinyViewsConfig(residual_rms=(0.3, 0.5))
    draw = torch.Generator().manual_seed(0)
    rms = torch.tensor([0.3, 0.3, 0.3, 0.5])[:, None, None]
    residual = torch.randn(1, 6, 4, 64, 64, generator=draw) * rms
    noise = torch.randn(residual.shape, generator=draw)
    when = torch.tensor([time])
    (share, spread), (scale, kept, strength) = path(when), preconditioning(config, when)
    missing = share * residual + spread * noise
    target = (residual - kept * missing) / strength
    assert (scale * missing).square().mean((1, 3, 4)).tolist()[0] == pytest.approx([1] * 4, abs=0.02)
    assert target.square().mean((1, 3, 4)).tolist()[0] == pytest.approx([1] * 4, abs=0.02)


def test_an_untrained_network_leaves_the_sketch_at_the_noisy_end() -> None:
    network = TinyViewsNetwork(SMALL).eval()  # its last layer is zero
    sketches, photo, camera = inputs()
    noisy = torch.randn(1, 6, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    told = torch.cat([camera, torch.ones_like(camera)], 1)
    with torch.no_grad():
        made = predicted(network, SMALL, noisy, torch.ones(1), sketches, photo, told)
        clean = predicted(network, SMALL, noisy, torch.full((1,), 1e-4), sketches, photo, told)
    assert torch.allclose(made, sketches[:, :, :4], atol=1e-6)
    assert torch.allclose(clean, noisy, atol=1e-2)


def test_ddim_finds_what_an_oracle_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = torch.rand(1, 6, 4, 64, 64, generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr("multiview.tinyviews.predicted", lambda *args: truth)
    sketches, photo, camera = inputs()
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(3))
    for steps in (1, 2, 7):
        found = denoise(random_network(), SMALL, noise, sketches, photo, camera, steps)
        assert torch.allclose(found, truth, atol=1e-5)


def test_times_run_from_noise_to_picture() -> None:
    assert sampling_times(4).tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_views_know_of_each_other_and_of_the_photo() -> None:
    network, (sketches, photo, camera) = random_network(), inputs()
    base = regress(network, SMALL, sketches, photo, camera)
    other = sketches.clone()
    other[:, 3] = -other[:, 3]
    assert (regress(network, SMALL, other, photo, camera)[:, 0] - base[:, 0]).abs().max() > 1e-4
    assert (regress(network, SMALL, sketches, -photo, camera) - base).abs().amax((2, 3, 4)).min() > 1e-4
    assert (regress(network, SMALL, sketches, photo, camera + 0.5) - base).abs().max() > 1e-4


def test_guidance_of_one_is_none_and_more_pushes_away_from_the_blank() -> None:
    network, (sketches, photo, camera) = random_network(), inputs()
    noise = torch.randn(1, 6, 4, 64, 64, generator=torch.Generator().manual_seed(3))
    told = torch.cat([camera, torch.ones_like(camera)], 1)
    untold = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    with torch.no_grad():
        plain = predicted(network, SMALL, noise, torch.ones(1), sketches, photo, told)
        free = predicted(
            network, SMALL, noise, torch.ones(1), blank_sketches(sketches), torch.zeros_like(photo), untold
        )
    one = denoise(network, SMALL, noise, sketches, photo, camera, 1)
    two = denoise(network, SMALL, noise, sketches, photo, camera, 1, guidance_scale=2.0)
    assert torch.allclose(one, plain, atol=1e-5)
    assert torch.allclose(two, 2 * plain - free, atol=1e-4)


def test_what_it_makes_is_a_ring_of_views_with_alpha() -> None:
    told: list[tuple[int, int]] = []
    views = generator().generate(
        cutout(), elevation_deg=10, generator=torch.Generator().manual_seed(0), num_inference_steps=3,
        on_step=lambda done, count: told.append((done, count)),
    )  # fmt: skip
    assert views.images.shape == (6, 3, 64, 64) and views.alpha.shape == (6, 1, 64, 64)
    assert views.images.min() >= 0 and views.images.max() <= 1 and views.images.dtype == torch.float32
    assert torch.equal(views.cameras.c2w, ring_cameras().c2w)
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    def made(seed: int, **changes: Any) -> Tensor:
        return (
            generator(**changes)
            .generate(cutout(), elevation_deg=0, generator=torch.Generator().manual_seed(seed), num_inference_steps=2)
            .images
        )

    assert torch.equal(made(0), made(0))
    assert not torch.equal(made(0), made(1))
    assert torch.equal(made(0, mean=True), made(1, mean=True))  # the regressor draws nothing


def test_the_sketch_is_drawn_for_the_elevation_that_was_given() -> None:
    low, high = (generator(mean=True).generate(cutout(), elevation_deg=e).images for e in (0.0, 60.0))
    assert (low - high).abs().max() > 0.05


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"elevation_deg": 100.0}, "elevation_deg=100"),
        ({"num_inference_steps": 2000}, "num_inference_steps=2000"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1"),
        ({"view_batch_size": 0}, "view_batch_size=0"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        generator().generate(cutout(), **{"elevation_deg": 0.0, **changes})


def test_pictures_of_another_shape_are_refused() -> None:
    with pytest.raises(ImageError, match="cut-out"):
        generator().generate(torch.zeros(3, 32, 32), elevation_deg=0)


def test_numbers_that_are_not_finite_are_an_error() -> None:
    broken = generator()
    broken.network.entry.weight.fill_(float("nan"))
    with pytest.raises(WeightsError, match="not finite in fp32"):
        broken.generate(cutout(), elevation_deg=0, num_inference_steps=1)


def test_a_cancelled_run_ends_with_what_the_caller_raised() -> None:
    def stop(done: int, count: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generator().generate(cutout(), elevation_deg=0, num_inference_steps=5, on_step=stop)


def test_saved_and_loaded_it_makes_the_same_views(tmp_path: Path) -> None:
    first = generator()
    first.save_pretrained(tmp_path / "m", {"licence": "MIT"})
    second = TinyViews.from_folder(tmp_path / "m", Blob())
    views = [g.generate(cutout(), elevation_deg=5, generator=torch.Generator().manual_seed(1)) for g in (first, second)]
    assert torch.equal(views[0].images, views[1].images)


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    generator().save_pretrained(tmp_path / "m")
    config = (tmp_path / "m" / "config.json").read_text().replace('"tiny-views"', '"tiny2"')
    (tmp_path / "m" / "config.json").write_text(config)
    with pytest.raises(WeightsError, match="'tiny2', expected 'tiny-views'"):
        TinyViews.from_folder(tmp_path / "m", Blob())


def test_the_shipped_size_costs_less_than_8_gflop_for_a_view_and_step() -> None:
    network = TinyViewsNetwork(TinyViewsConfig()).eval()
    sketches, photo, camera = inputs()
    told = torch.cat([camera, torch.ones_like(camera)], 1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(sketches[:, :, :4], sketches, photo, torch.ones(1), told)
    assert counter.get_total_flops() / 6 < 8e9
