"""The fast ways to run the denoising networks against the plain one, and few steps against many."""

from __future__ import annotations

import functools
import logging
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from multiview import fastrun, fastunet
from multiview.errors import SettingsError
from multiview.fastrun import Compiled, RunOptions, SyncRun, UNetRun, copied, guide, sync_functions
from multiview.generator import SCHEDULERS, SchedulerName, make_scheduler, set_timesteps
from multiview.networks import NetworkGenerator
from multiview.syncdreamer import Condition, SyncDreamer, SyncDreamerNetwork
from multiview.syncdreamervolumes import N_VIEWS, DepthLayer, VolumeNetwork, VolumeSizes, volume_geometry
from multiview.zero123 import Zero123, ring
from tests.small_generators import SYNCDREAMER, build_small
from trilift.settings import ViewSettings
from trilift.views import PhotoToViews

# fp32 rounding through the networks, relative to the largest number.
TOLERANCE = 1e-5
# Eight numbers to a group of the norms at the coarsest level: of two alone they would make signs, rounding and all.
SIDE = 16
SYNC = replace(
    SYNCDREAMER, unet=replace(SYNCDREAMER.unet, channels=(32, 32, 64, 64), latent_size=SIDE),
    volume=replace(SYNCDREAMER.volume, latent_size=SIDE),
)  # fmt: skip
CUTOUT = torch.rand(4, 64, 64, generator=torch.Generator().manual_seed(1))
TIMES = [981, 481, 1]


@functools.cache
def sync() -> SyncDreamer:
    """A small SyncDreamer, shared: options are put back by those who change them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return SyncDreamer(SyncDreamerNetwork(SYNC))


def told() -> Condition:
    """What it is told of some picture."""
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(4))
    return Condition(draw(1, 4, SIDE, SIDE), draw(N_VIEWS, 1, 8), draw(N_VIEWS, 4))


def noisy(seed: int = 5) -> Tensor:
    return torch.randn(N_VIEWS, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def off(found: Tensor, expected: Tensor) -> float:
    """Largest difference / largest number."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def sync_run(options: RunOptions, guided: bool = True) -> SyncRun:
    condition, runner = told(), sync().runner()
    assert runner is not None
    net = sync().network
    return SyncRun(
        runner.fast, net.volume, net.depth, condition.tokens, condition.views, condition.latent, TIMES,
        guided=guided, options=options,
    )  # fmt: skip


def drawn(model: Zero123, **settings: Any) -> Tensor:
    """The latents of three views after some steps."""
    made = model(
        CUTOUT, elevation_deg=10.0, targets=ring(3), output_type="latent",
        generator=torch.Generator().manual_seed(0), **{"num_inference_steps": 2, **settings},
    )  # fmt: skip
    latents: Tensor = made.images
    return latents


def small_zero123() -> Zero123:
    made = build_small("zero123")
    assert isinstance(made, Zero123)
    return made


def noted(where: list[Any], what: object) -> bool:
    """Write something down; False, to go on with ``or``."""
    where.append(what)
    return False


# The same numbers


@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["unguided", "guided"])
def test_zero123_draws_the_same_fast_plainly_and_by_diffusers(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_zero123()
    fast = drawn(model, guidance_scale=scale)
    model.use_run_options(RunOptions(plain=True))
    assert off(drawn(model, guidance_scale=scale), fast) < TOLERANCE
    monkeypatch.setattr(Zero123, "runner", lambda _: None)
    assert off(drawn(model, guidance_scale=scale), fast) < TOLERANCE


@pytest.mark.parametrize("scale", [1.0, 2.0], ids=["unguided", "guided"])
@torch.no_grad()
def test_syncdreamer_predicts_the_same_fast_plainly_and_by_diffusers(scale: float) -> None:
    model, latents, every = sync(), noisy(), [slice(0, N_VIEWS)]
    expected = model._predict_noise(latents, 481, told(), scale, None)
    assert off(model.predict_noise(latents, 481, told(), scale), expected) < TOLERANCE
    for options in (RunOptions(), RunOptions(plain=True), RunOptions(channels_last=True)):
        run = sync_run(options, guided=scale != 1)
        assert off(guide(run.predict(1, latents, every), scale), expected) < TOLERANCE, options
        in_pieces = run.predict(1, latents, [slice(0, 5), slice(5, N_VIEWS)])
        assert off(guide(in_pieces, scale), expected) < TOLERANCE, options
    other_time = guide(sync_run(RunOptions(), guided=scale != 1).predict(0, latents, every), scale)
    assert off(other_time, expected) > 100 * TOLERANCE


@torch.no_grad()
def test_a_depth_layer_reads_the_same_in_the_shorter_order() -> None:
    draw = torch.Generator().manual_seed(6)
    torch.manual_seed(6)
    layer = DepthLayer(32, 16)
    x, volume = torch.randn(4, 32, 8, 8, generator=draw), torch.randn(2, 16, 6, 8, 8, generator=draw)
    added = layer(x, volume) - x
    assert off(layer.folded(x, volume) - x, added) < TOLERANCE
    assert torch.equal(layer.folded(x, volume[:0]), layer(x, volume[:0]))
    assert off(layer.folded(x, volume.flip(2)) - x, added) < TOLERANCE  # depths are a set to attention
    assert off(layer.folded(x, volume.flip(3)) - x, added) > 100 * TOLERANCE  # rows are not


@torch.no_grad()
def test_geometry_that_is_kept_is_the_one_that_is_worked_out() -> None:
    torch.manual_seed(7)
    sizes = SYNC.volume
    network = VolumeNetwork(sizes).eval()
    geometry, time, views = volume_geometry(sizes, torch.device("cpu")), torch.tensor([5]), torch.randn(N_VIEWS, 4)
    assert geometry.pixels.shape == (N_VIEWS, 8**3, 2) and geometry.frustums.shape == (N_VIEWS, 8, SIDE, SIDE, 3)
    volume = network.spatial_volume(noisy(), time, views)
    assert torch.equal(network.spatial_volume(noisy(), time, views, geometry), volume)
    for indices in (range(3, 7), [15]):
        kept = network.frustum_volumes(volume, time, views, indices, geometry)
        again = network.frustum_volumes(volume, time, views, indices)
        assert kept.keys() == again.keys() and all(torch.equal(kept[w], again[w]) for w in kept)


def test_what_no_step_changes_is_worked_out_once_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def watched(owner: Any, name: str) -> None:
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: noted(asked, name) or plain(*args))

    watched(fastunet.FastUNet, "told")
    watched(fastunet.FastUNet, "time_rows")
    watched(fastrun, "volume_geometry")
    drawn(small_zero123(), num_inference_steps=5)
    assert sorted(asked) == ["time_rows", "told", "told"]  # of the picture and of nothing, for all views and steps
    asked.clear()
    run = sync_run(RunOptions())
    for step in range(3):
        run.predict(step, noisy(), [slice(0, N_VIEWS)])
    assert sorted(asked) == ["time_rows", "told", "told", "volume_geometry"]


@torch.no_grad()
def test_after_an_overflow_all_is_worked_out_again_in_fp32() -> None:
    model = small_zero123()
    model.to(dtype=torch.bfloat16)
    runner = model.runner()
    assert runner is not None
    tokens, latents = torch.randn(2, 1, 8), torch.randn(2, 4, 16, 16)
    run = UNetRun(runner.fast, tokens, TIMES, guided=True, options=RunOptions())
    half = run.predict(0, latents, latents[:1], slice(0, 2))
    model.network.unet.float()
    again = run.predict(0, latents, latents[:1], slice(0, 2))
    fresh = UNetRun(runner.fast, tokens, TIMES, guided=True, options=RunOptions())
    assert torch.equal(again, fresh.predict(0, latents, latents[:1], slice(0, 2)))
    assert 1e-4 < off(half, again) < 0.1


# Reuse


@torch.no_grad()
def test_reused_features_are_those_of_the_last_whole_step() -> None:
    every = [slice(0, 10), slice(10, N_VIEWS)]
    reusing, whole = sync_run(RunOptions(reuse_steps=2)), sync_run(RunOptions())
    ran: list[int] = []
    spatial = reusing._spatial
    reusing._spatial = lambda *args: noted(ran, 1) or spatial(*args)
    first = reusing.predict(0, noisy(), every)
    assert torch.equal(first, whole.predict(0, noisy(), every))
    second = reusing.predict(1, noisy(6), every)
    assert torch.equal(second, reusing.predict(1, noisy(6), every))  # a step may be repeated
    assert off(second, whole.predict(1, noisy(6), every)) > 1e-3
    assert torch.equal(reusing.predict(2, noisy(7), every), whole.predict(2, noisy(7), every))
    assert len(ran) == 2  # the volumes of steps 0 and 2


def test_reuse_moves_views_the_more_the_longer_it_is() -> None:
    model = small_zero123()
    whole = drawn(model, num_inference_steps=12)
    distances = []
    for count in (2, 4):
        model.use_run_options(RunOptions(reuse_steps=count))
        distances.append(((drawn(model, num_inference_steps=12) - whole).norm() / whole.norm()).item())
    assert 0 < distances[0] < distances[1] < 0.2


def test_a_network_that_diffusers_has_to_run_says_that_nothing_is_reused(caplog: pytest.LogCaptureFixture) -> None:
    model = small_zero123()
    model.enable_attention_slicing(1)
    with caplog.at_level(logging.WARNING, logger="trilift"):
        expected = drawn(model)
        assert not caplog.records  # nothing was asked for
        model.use_run_options(RunOptions(reuse_steps=2))
        assert torch.equal(drawn(model), expected)
    assert "diffusers runs all of it in every step" in caplog.text


@pytest.mark.parametrize("count", [0, 9])
def test_reuse_is_bounded(count: int) -> None:
    with pytest.raises(SettingsError, match=rf"reuse_steps={count}.*expected.* 8"):
        small_zero123().use_run_options(RunOptions(reuse_steps=count))
    with pytest.raises(SettingsError, match=rf"reuse_steps={count}.* 1 to 8"):
        ViewSettings(reuse_steps=count)
    with pytest.raises(SettingsError, match="reuse_steps=2 and parity exclude each other"):
        ViewSettings(reuse_steps=2, parity=True)


def test_settings_choose_the_way_for_one_run_alone(caplog: pytest.LogCaptureFixture) -> None:
    model = small_zero123()
    seen: list[RunOptions] = []
    begin = model._run
    model._run = lambda *args: noted(seen, model.run_options) or begin(*args)  # type: ignore[method-assign, assignment]
    made = PhotoToViews(model, dtype=torch.float32)
    photo = (CUTOUT.permute(1, 2, 0) * 255).byte().numpy()
    photo[..., 3] = 0
    photo[16:48, 16:48, 3] = 255
    views = made(photo, view_steps=2, reuse_steps=2, elevation=0.0)
    assert seen == [RunOptions(reuse_steps=2)] and model.run_options == RunOptions()
    assert views.record["settings"]["reuse_steps"] == 2
    other = PhotoToViews(build_small("zero123plus"))
    with pytest.raises(SettingsError, match=r"one way only.*--reuse-steps and --compile.*Zero123 or SyncDreamer"):
        other(photo, compile=True)


# Compiling


def broken(*_: Any, **__: Any) -> Any:
    def fails(*_: Any) -> Any:
        raise RuntimeError("no C++ compiler was found\nmore lines")

    return fails


def test_without_a_compiler_it_warns_once_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", broken)
    model = small_zero123()
    expected = drawn(model)
    model.use_run_options(RunOptions(compile=True))
    with caplog.at_level(logging.WARNING, logger="trilift"):
        assert torch.equal(drawn(model), expected)
        assert torch.equal(drawn(model), expected)
    said = [record.message for record in caplog.records]
    assert said == ["unet: torch.compile does not work here (no C++ compiler was found); going on without it."]


def test_running_out_of_memory_is_no_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: full)
    one = Compiled(lambda x: x, "one")
    with pytest.raises(torch.OutOfMemoryError):
        one(torch.ones(1))
    assert not one.failed


def test_what_is_compiled_is_compiled_once_for_all_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, **said: noted(compiled, said) or function)
    model = small_zero123()
    model.use_run_options(RunOptions(compile=True))
    assert torch.equal(drawn(model), drawn(model))
    assert compiled == [{"mode": "default", "dynamic": False}]


def test_copies_are_of_all_tensors() -> None:
    given = (torch.ones(2), {3: torch.zeros(1)}, None)
    made = copied(given)
    assert made[0] is not given[0] and made[1][3] is not given[1][3] and made[2] is None
    assert torch.equal(made[0], given[0]) and made[1][3].item() == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@torch.no_grad()
def test_a_compiled_layer_gives_the_same() -> None:
    """One residual block with its transformer: a whole network takes minutes to compile on a CPU."""
    runner, draw = small_zero123().runner(), torch.Generator().manual_seed(8)
    assert runner is not None
    unet = runner.fast
    x, tokens = torch.randn(2, 32, 8, 8, generator=draw), torch.randn(2, 1, 8, generator=draw)
    given = (0, x, unet.time_rows(torch.tensor([481])), unet.told(tokens), None)
    layer: Any = unet.mid_block.layer
    compiled = Compiled(layer, "layer")
    assert off(compiled(*given), layer(*given)) < TOLERANCE
    assert not compiled.failed


@pytest.mark.slow
@torch.no_grad()
def test_what_a_step_calls_can_be_captured_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs without a break, which is what CUDA's graphs replay; here they are then run as they are."""
    capture = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: capture(f, backend="eager", fullgraph=True, dynamic=False))
    model, every = sync(), [slice(0, N_VIEWS)]
    runner, net = model.runner(), model.network
    assert runner is not None
    functions = {name: Compiled(f, name) for name, f in sync_functions(runner.fast, net.volume, net.depth).items()}
    condition, options = told(), RunOptions(reuse_steps=2, compile=True)
    run = SyncRun(
        runner.fast, net.volume, net.depth, condition.tokens, condition.views, condition.latent, TIMES,
        guided=True, options=options, compiled=dict(functions),
    )  # fmt: skip
    plain = sync_run(RunOptions(reuse_steps=2))
    for step in range(2):
        assert off(run.predict(step, noisy(), every), plain.predict(step, noisy(), every)) < TOLERANCE
    assert not any(one.failed for one in functions.values())


# Few steps


def ends_at(name: SchedulerName, steps: int) -> Tensor:
    """Where a sampler takes noise when the pictures are known to be normal, mean 0.3 and deviation 0.5.

    The noise in x at ᾱ is then expected to be sqrt(1 - ᾱ) (x - sqrt(ᾱ) 0.3) / (0.25 ᾱ + 1 - ᾱ).
    """
    scheduler = make_scheduler(name)
    set_timesteps(scheduler, steps, torch.device("cpu"))
    x = torch.linspace(-2, 2, 9)[None, None, None]
    for t in scheduler.timesteps:
        alpha = scheduler.alphas_cumprod[int(t)]
        noise = (1 - alpha).sqrt() * (x - alpha.sqrt() * 0.3) / (0.25 * alpha + 1 - alpha)
        x = scheduler.step(noise, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("name", SCHEDULERS)
def test_few_steps_come_near_fifty_the_nearer_the_more_they_are(name: SchedulerName) -> None:
    """And fifty end where the flow ends: noise z (of deviation 1 at the start) comes to 0.3 + 0.5 z."""
    fifty = ends_at(name, 50)
    exact = 0.3 + 0.5 * torch.linspace(-2, 2, 9)
    assert (fifty - exact).abs().max() < 0.08
    distances = [(ends_at(name, steps) - fifty).abs().max().item() for steps in (5, 10, 25)]
    assert distances[0] > distances[1] > distances[2]
    # Measured: 0.041, 0.035 and 0.034 of pictures whose deviation is 0.5.
    assert distances[2] < 0.05


def test_few_steps_of_a_network_come_near_fifty_too() -> None:
    """Measured with UniPC: 0.069, 0.022 and 0.002 of their length; with DDIM 0.60, 0.36 and 0.11."""
    model = small_zero123()
    model.set_scheduler("unipc")
    fifty = drawn(model, num_inference_steps=50)
    distances = [
        ((drawn(model, num_inference_steps=steps) - fifty).norm() / fifty.norm()).item() for steps in (5, 10, 25)
    ]
    assert distances[0] > distances[1] > distances[2] and distances[2] < 0.01


def test_only_two_families_have_several_ways() -> None:
    assert Zero123.has_run_options and SyncDreamer.has_run_options and not NetworkGenerator.has_run_options
    assert VolumeSizes().grid_size == 32
