"""Zero123 and Stable Zero123 against the published programs' own numbers, their files, and as a generator of views."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import multiview.zero123weights
from multiview import networks
from multiview.cameras import project
from multiview.checkpoint import read_checkpoint, rename_keys
from multiview.errors import ImageError, SettingsError, WeightsError
from multiview.generator import make_scheduler
from multiview.hub import HubFile, NoSuchFileError
from multiview.ldm import (
    ClipSizes,
    UNetSizes,
    VaeSizes,
    choose_weights,
    clip_pixels,
    count_parameters,
    ema_name,
    ldm_tensors,
    read_ldm,
    use_ema,
)
from multiview.views import Views
from multiview.zero123 import FOV_DEG, INSTANTMESH_TARGETS, Condition, Targets, Zero123, pose_numbers, ring
from multiview.zero123weights import Zero123Config, Zero123Network, ldm_keys
from tests.parity.fill import figures, furthest, uniform
from tests.parity.ldm_tables import (
    SCHEDULE_NAMES,
    ZERO123_FULL,
    ZERO123_SMALL,
    ema_copy,
    ldm_fill,
    normal,
    text_table,
)

SMALL = Zero123Config(
    unet=UNetSizes(channels=(32, 64, 128, 128), heads=4),
    vae=VaeSizes(channels=(32, 64, 128, 128)),
    clip=ClipSizes(width=64, layers=2, heads=4, mlp_width=256),
)
# Smaller still, for what has nothing to do with the published numbers: pictures of 32 x 32.
TINY = Zero123Config(
    unet=UNetSizes(channels=(32, 32), layers=1, heads=2, context_width=16, latent_size=8),
    vae=VaeSizes(channels=(32, 32, 32), layers=1),
    clip=ClipSizes(image_size=28, width=32, layers=1, heads=2, mlp_width=64, projection_width=16),
)

# Facts, section 11: mean, population deviation, elements at 0, n // 3, n // 2, n - 1.
EXPECTED = {
    "CLIP pixels": (+0.184952, 0.930223, -1.610879, -0.163095, -1.454813, -1.342904),
    "embedding": (-0.010631, 0.296106, +0.213172, +0.029780, -0.162488, -0.298575),
    "condition latent": (+0.306072, 0.616171, +0.097809, -0.027789, +0.040274, +0.289123),
    "token": (-0.006308, 0.320428, -0.315722, +0.067307, +0.172692, +0.008238),
    "token, Stable": (-0.005436, 0.323237, -0.390847, +0.192323, +0.150433, +0.013039),
    "token difference": (+0.000871, 0.046488, -0.075126, +0.125015, -0.022259, +0.004800),
    "noise, conditional": (+0.001457, 0.568826, -0.169201, -0.034791, -0.015471, +0.259679),
    "noise, unconditional": (+0.006098, 0.580544, +0.224299, +0.383341, +0.037510, +0.035807),
    "noise, guided": (-0.007824, 1.230814, -0.956201, -0.871057, -0.121434, +0.707424),
    "noise, Stable": (+0.001122, 0.569266, -0.152258, -0.013562, -0.030760, +0.249079),
    "latent after t = 501": (+0.003776, 2.136170, +0.098568, +2.110308, +0.956334, -0.839560),
    "latent after t = 251": (+0.010267, 2.854661, +0.958121, +2.489672, +0.919708, -1.275002),
    "latent after t = 1": (+0.010053, 2.863390, +1.010028, +2.465092, +0.907615, -1.341795),
    "that latent decoded": (+0.072064, 0.682953, -0.130821, +0.013518, +0.067193, +0.049116),
    "noise decoded": (+0.072233, 0.655180, -0.191266, +0.019762, +0.054802, +0.435319),
}
CLOSE = ("CLIP pixels", "embedding", "token", "token, Stable", "token difference")
SHAPE = (1, 4, 32, 32)


def tolerance(name: str) -> float:
    """1e-5 for pixels, embeddings and tokens, 1e-4 for the rest: the facts' own."""
    return 1e-5 if name in CLOSE else 1e-4


def worst(name: str, found: Tensor) -> float:
    """Largest difference from the published program's numbers, in tolerances."""
    return furthest(figures(found), EXPECTED[name]) / tolerance(name)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The small copy's weights; tests that change them take a copy of the dict."""
    return ldm_fill(ZERO123_SMALL)


@pytest.fixture(scope="module")
def small(state: dict[str, Tensor]) -> Zero123:
    """The small copy; tests leave it as it is."""
    return Zero123.from_state(SMALL, state)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return uniform(21, (1, 3, 256, 256), -1, 1)


def poses(rule: Any = "distance") -> Tensor:
    """Input elevation 10, target elevation 30, azimuth + 60, distance + 0.1 where the model knows it."""
    return pose_numbers(rule, Targets((60.0,), (30.0,), (0.1,) if rule == "distance" else ()), 10.0)


@pytest.fixture(scope="module")
def condition(small: Zero123, pixels: Tensor) -> Condition:
    return small.condition(pixels, poses())


@pytest.fixture(scope="module")
def values(small: Zero123, pixels: Tensor, condition: Condition) -> dict[str, Tensor]:
    """Everything that `EXPECTED` lists, from our code."""
    with torch.no_grad():
        embedding = small._embedding(pixels)
        stable = small.tokens(embedding, poses("polar"))
        x, latent, token = normal(22, SHAPE), condition.latent, condition.tokens
        steps: dict[str, Tensor] = {}

        def keep(_: int, t: int, latents: Tensor) -> Tensor:
            steps[f"latent after t = {t}"] = latents
            return latents

        end = small.denoise(
            x, condition, num_inference_steps=4, guidance_scale=3.0, parity=True,
            step_noise=lambda i: normal(100 + i, SHAPE), after_step=keep,
        )  # fmt: skip
        return steps | {
            "CLIP pixels": clip_pixels(pixels),
            "embedding": embedding,
            "condition latent": latent,
            "token": token,
            "token, Stable": stable,
            "token difference": stable - token,
            "noise, conditional": small.noise(x, 961, token, latent),
            "noise, unconditional": small.noise(x, 961, torch.zeros_like(token), torch.zeros_like(latent)),
            "noise, guided": small.guided_noise(x, 961, token, latent, 3.0),
            "noise, Stable": small.noise(x, 961, stable, latent),
            "that latent decoded": small.decode(end),
            "noise decoded": small.decode(normal(23, SHAPE)),
        }


def test_the_fill_is_the_facts_own(state: dict[str, Tensor]) -> None:
    first = {
        "model.diffusion_model.input_blocks.0.0.weight": (0.224966, -0.135469, -0.162133),
        "cc_projection.weight": (0.024937, -0.090979, -0.026936),
        "cond_stage_model.model.visual.class_embedding": (0.323367, -0.258028, 0.379325),
    }
    for key, expected in first.items():
        assert state[key].flatten()[:3].tolist() == pytest.approx(expected, abs=1e-6), key
    assert uniform(21, (3,), -1, 1).tolist() == pytest.approx([-0.902550, -0.421781, 0.441933], abs=1e-6)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_number_is_the_published_programs(name: str, values: dict[str, Tensor]) -> None:
    assert worst(name, values[name]) < 1


# Each wrong variant of the facts' pitfalls, and a number that it misses by far.


def over_clip(pixels: Tensor, **how: Any) -> Tensor:
    """CLIP pixels with another resize."""
    resized = F.interpolate(pixels, (224, 224), mode="bicubic", **how)
    # At its own size `clip_pixels` resizes nothing.
    return clip_pixels(resized)


def test_the_usual_clip_processors_resize_is_noticed(pixels: Tensor) -> None:
    assert worst("CLIP pixels", over_clip(pixels, align_corners=True)) < 1
    assert worst("CLIP pixels", over_clip(pixels, align_corners=False)) > 100
    assert worst("CLIP pixels", over_clip(pixels, align_corners=False, antialias=True)) > 100
    assert worst("CLIP pixels", over_clip(pixels, align_corners=True).clamp(-1.5, 1.5)) > 100


def test_the_other_activation_and_a_normalised_embedding_are_noticed(
    state: dict[str, Tensor], pixels: Tensor, values: dict[str, Tensor]
) -> None:
    other = Zero123.from_state(replace(SMALL, clip=replace(SMALL.clip, activation="gelu")), state)
    with torch.no_grad():
        assert worst("embedding", other._embedding(pixels)) > 100
    assert worst("embedding", F.normalize(values["embedding"], dim=-1)) > 100


@pytest.mark.parametrize(
    "numbers",
    [
        pose_numbers("distance", Targets((60.0,), (10.0,), (0.1,)), 30.0),  # the sign of the polar angle
        pose_numbers("distance", Targets((-60.0,), (30.0,), (0.1,)), 10.0),  # azimuth the other way
        poses("polar"),  # Stable Zero123's rule
        torch.tensor([[-20.0, math.sin(math.pi / 3), 0.5, 0.1]]),  # degrees
    ],
    ids=["polar sign", "azimuth sign", "rule", "degrees"],
)
def test_wrong_pose_numbers_are_noticed(small: Zero123, values: dict[str, Tensor], numbers: Tensor) -> None:
    assert worst("token", small.tokens(values["embedding"], numbers)) > 100


@pytest.mark.parametrize("fourth", [0.0, 0.1, 80.0], ids=["zero", "distance", "degrees"])
def test_a_wrong_fourth_number_for_stable_zero123_is_noticed(
    small: Zero123, values: dict[str, Tensor], fourth: float
) -> None:
    numbers = poses("polar")
    numbers[:, 3] = fourth
    assert worst("token, Stable", small.tokens(values["embedding"], numbers)) > 100


@torch.no_grad()
def test_a_scaled_condition_latent_is_noticed(small: Zero123, condition: Condition) -> None:
    wrong = small.noise(normal(22, SHAPE), 961, condition.tokens, condition.latent * 0.18215)
    assert worst("noise, conditional", wrong) > 100
    assert worst("condition latent", condition.latent * 0.18215) > 100


@torch.no_grad()
def test_a_sampled_condition_latent_is_noticed(small: Zero123, pixels: Tensor) -> None:
    sample = small.network.vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(0))
    assert worst("condition latent", sample) > 100


@torch.no_grad()
def test_a_projected_null_token_is_noticed(small: Zero123, condition: Condition) -> None:
    zero = torch.zeros_like(condition.latent)
    projected = small.tokens(torch.zeros(1, 768), torch.zeros(1, 4))
    with_pose = small.tokens(torch.zeros(1, 768), poses())
    for token in (projected, with_pose):
        assert worst("noise, unconditional", small.noise(normal(22, SHAPE), 961, token, zero)) > 100


@torch.no_grad()
def test_the_latent_of_a_white_picture_for_no_picture_is_noticed(small: Zero123, condition: Condition) -> None:
    white = small._latent(torch.ones(1, 3, 256, 256))
    wrong = small.noise(normal(22, SHAPE), 961, torch.zeros_like(condition.tokens), white)
    assert worst("noise, unconditional", wrong) > 100


@torch.no_grad()
def test_head_widths_in_place_of_counts_load_and_are_noticed(state: dict[str, Tensor], condition: Condition) -> None:
    """The small copy has 4 heads, 8 wide at its first level."""
    other = Zero123.from_state(replace(SMALL, unet=replace(SMALL.unet, heads=8)), state)
    assert worst("noise, conditional", other.noise(normal(22, SHAPE), 961, condition.tokens, condition.latent)) > 100


def test_guidance_exchanged_is_noticed(values: dict[str, Tensor]) -> None:
    free, told = values["noise, unconditional"], values["noise, conditional"]
    assert worst("noise, guided", free + 3 * (told - free)) < 1
    assert worst("noise, guided", told + 3 * (free - told)) > 100
    assert worst("noise, guided", told + 3 * (told - free)) > 100


def test_one_token_makes_cross_attention_deaf_to_the_picture(small: Zero123, condition: Condition) -> None:
    attention = small.network.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    with torch.no_grad():
        a, b = (attention(normal(s, (1, 16, 128)), encoder_hidden_states=condition.tokens) for s in (1, 2))
        expected = attention.to_out[0](attention.to_v(condition.tokens))
    assert (a - b).abs().max().item() < 1e-5
    assert (a - expected).abs().max().item() < 1e-5


# The noise schedule and the samplers.


def deviation(scheduler: Any, t: int) -> float:
    """DDIM's noise of a step at eta 1: what is left when latents and prediction are zero."""
    zero = torch.zeros(1, 1, 1, 1)
    return scheduler.step(zero, t, zero, eta=1.0, variance_noise=torch.ones_like(zero)).prev_sample.item()


def test_the_schedule_is_the_published_one() -> None:
    scheduler = make_scheduler("ddim")
    expected = {0: 0.99915, 961: 0.0072817, 981: 0.0057755, 999: 0.0046601}
    for t, alpha in expected.items():
        assert scheduler.alphas_cumprod[t].item() == pytest.approx(alpha, abs=1e-6), t
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == list(range(981, 0, -20))
    for t, sigma in {1: 0.020648, 21: 0.039480, 401: 0.259022, 961: 0.448282, 981: 0.454463}.items():
        assert deviation(scheduler, t) == pytest.approx(sigma, abs=2e-6), t


def test_a_linear_schedule_is_noticed() -> None:
    wrong = make_scheduler("ddim", beta_schedule="linear")
    assert wrong.alphas_cumprod[999].item() == pytest.approx(0.00157896, abs=1e-7)
    assert abs(wrong.alphas_cumprod[961].item() - 0.0072817) > 1e-3


@pytest.mark.parametrize(("count", "first", "steps"), [(50, 961, 49), (75, 976, 76), (4, 501, 3)])
def test_parity_mode_leaves_the_noisiest_step_out(count: int, first: int, steps: int) -> None:
    seen = times_of(count, parity=True)
    assert (seen[0], seen[-1], len(seen)) == (first, 1, steps)


def test_the_sane_default_runs_every_step_and_draws_no_noise() -> None:
    asked: list[int] = []
    seen = times_of(5, step_noise=lambda i: asked.append(i) or torch.zeros(1, 4, 8, 8))  # type: ignore[func-returns-value]
    assert seen == [801, 601, 401, 201, 1] and asked == []
    times_of(5, eta=1.0, step_noise=lambda i: asked.append(i) or torch.zeros(1, 4, 8, 8))  # type: ignore[func-returns-value]
    assert asked == [0, 1, 2, 3]  # none left in the picture at the end
    times_of(6, parity=True, step_noise=lambda i: asked.append(i) or torch.zeros(1, 4, 8, 8))  # type: ignore[func-returns-value]
    assert asked[4:] == [0, 1, 2, 3, 4, 5]  # 166 apart from 1: seven times, less the first; noise after the last too


def times_of(count: int, step_noise: Callable[[int], Tensor] | None = None, **settings: Any) -> list[int]:
    """The timesteps that a run with a stubbed network goes through."""
    model = tiny()
    model.guided_noise = lambda x, *_: torch.zeros_like(x)  # type: ignore[method-assign]
    seen: list[int] = []

    def after(_: int, t: int, x: Tensor) -> Tensor:
        seen.append(int(t))
        return x

    nothing = Condition(torch.zeros(1, 1, 16), torch.zeros(1, 4, 8, 8))
    zero = torch.zeros(1, 4, 8, 8)
    model.denoise(
        zero, nothing, num_inference_steps=count, guidance_scale=3.0, after_step=after,
        step_noise=step_noise or (lambda _: zero), **settings,
    )  # fmt: skip
    return seen


# Cameras.


def test_pose_numbers_are_the_facts_own() -> None:
    up_right = Targets((90.0,), (30.0,))
    assert pose_numbers("distance", up_right, 0.0)[0].tolist() == pytest.approx([-0.523599, 1, 0, 0], abs=1e-6)
    stable = pose_numbers("polar", Targets((90.0,), (35.0,)), 5.0)
    assert stable[0].tolist() == pytest.approx([-0.523599, 1, 0, 1.483530], abs=1e-6)
    expected = [-0.349066, 0.866025, 0.5]
    assert poses()[0].tolist() == pytest.approx([*expected, 0.1], abs=1e-6)
    assert poses("polar")[0].tolist() == pytest.approx([*expected, 1.396263], abs=1e-6)
    with pytest.raises(SettingsError, match=r"keeps the input's distance.*0\.1.*Zero123-XL"):
        pose_numbers("polar", Targets((0.0,), (0.0,), (0.1,)), 0.0)


def test_cameras_show_a_landmark_where_it_belongs() -> None:
    """(0, 0.3, 0.2) from the front, from the input's right, from behind and from its left, level, 1.5 away."""
    assert pytest.approx(49.1343, abs=1e-4) == FOV_DEG
    uv, depth = project(ring(4).cameras(), torch.tensor([[0.0, 0.3, 0.2]]))
    focal = 280 / 256  # the training cameras', as in SyncDreamer's K
    expected = [(0.3, 1.5), (0.0, 1.2), (-0.3, 1.5), (0.0, 1.8)]
    for (across, away), found, far in zip(expected, uv[:, 0].tolist(), depth[:, 0].tolist(), strict=True):
        assert far == pytest.approx(away, abs=1e-5)
        assert found == pytest.approx([0.5 + focal * across / away, 0.5 - focal * 0.2 / away], abs=1e-5)


def test_positive_azimuth_is_the_input_cameras_right_and_above_is_a_smaller_polar_angle() -> None:
    targets = Targets((90.0,), (30.0,), (0.25,))
    source, target = ring(1).cameras(), targets.cameras()
    right = source.c2w[0, :3, 0]
    assert (target.positions[0] @ right).item() == pytest.approx(1.75 * math.cos(math.pi / 6), abs=1e-5)
    assert target.positions[0, 2].item() == pytest.approx(1.75 / 2, abs=1e-5)
    numbers = pose_numbers("distance", targets, 0.0)[0]
    assert numbers[0] < 0 and numbers[1] > 0 and numbers[3] == 0.25


def test_targets_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"found 2 and 1"):
        Targets((0.0, 1.0), (0.0,))
    with pytest.raises(SettingsError, match=r"found 0 and 0"):
        Targets((), ())
    with pytest.raises(SettingsError, match=r"\[-90, 90\]"):
        Targets((0.0,), (95.0,))
    with pytest.raises(SettingsError, match=r"1 view or more, found 0"):
        ring(0)


# Names and files.


def test_the_full_size_network_takes_exactly_the_published_tensors() -> None:
    with torch.device("meta"):
        network = Zero123Network(Zero123Config())
        published = {key: torch.empty(shape) for key, shape in ZERO123_FULL.items()}
    keys = ldm_keys()
    parted = ldm_tensors(published, keys)
    renamed = rename_keys(parted, keys, "full")
    assert not renamed.unknown and not renamed.dropped
    assert {k: t.shape for k, t in renamed.state.items()} == {k: t.shape for k, t in network.state_dict().items()}
    for ours, theirs in renamed.published.items():
        assert keys.published(ours) == theirs.partition("[")[0]


def test_the_parts_have_the_published_numbers_of_tensors_and_parameters() -> None:
    with torch.device("meta"):
        network = Zero123Network(Zero123Config())
    counts = {name: (count_parameters(part), len(part.state_dict())) for name, part in network.named_children()}
    assert counts == {
        "unet": (859_532_484, 686),
        "vae": (83_653_863, 248),
        "image_encoder": (303_966_208, 392),
        "cc_projection": (593_664, 2),
    }
    assert len(ZERO123_SMALL) == 968
    with torch.device("meta"):
        small = Zero123Network(SMALL)
    assert len(small.unet.state_dict()) == 686


def with_extras(state: dict[str, Tensor], change: float) -> dict[str, Tensor]:
    """What the published checkpoints hold besides: averages (the raw weights plus ``change``), text side, schedule."""
    extras = {key: torch.zeros(2) for key in (*text_table(), *SCHEDULE_NAMES)}
    averages = {ema_name(key): tensor + change for key, tensor in state.items() if key.startswith("model.")}
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    return state | extras | averages | counters


def test_averages_are_found_by_their_dotless_names() -> None:
    name = "model.diffusion_model.input_blocks.0.0.weight"
    assert ema_name(name) == "model_ema.diffusion_modelinput_blocks00weight"
    small = {name: torch.zeros(1), "cc_projection.weight": torch.ones(1), ema_name(name): torch.full((1,), 2.0)}
    chosen = use_ema(small, "x.ckpt")
    assert {key: value.item() for key, value in chosen.items()} == {name: 2.0, "cc_projection.weight": 1.0}
    assert set(ema_copy({name: (1,)})) == {ema_name(name), "model_ema.decay", "model_ema.num_updates"}
    with pytest.raises(WeightsError, match=r"x\.ckpt: model\.other\.bias has no running average.*weights='raw'"):
        use_ema(small | {"model.other.bias": torch.zeros(1)}, "x.ckpt")
    with pytest.raises(WeightsError, match=r"1 running averages belong to no tensor, first model_ema\.lost"):
        use_ema(small | {"model_ema.lost": torch.zeros(1)}, "x.ckpt")


def test_averages_are_taken_unless_raw_weights_are_asked_for_and_recorded(state: dict[str, Tensor]) -> None:
    key, ours = "model.diffusion_model.out.2.bias", "unet.conv_out.bias"
    model = Zero123.from_state(SMALL, with_extras(state, change=0.5))
    assert model.record["weights"] == "ema"
    assert torch.equal(model.network.state_dict()[ours], state[key] + 0.5)
    few = with_extras({key: state[key], "cc_projection.bias": state["cc_projection.bias"]}, change=0.5)
    for weights, kind, change in (("auto", "ema", 0.5), ("ema", "ema", 0.5), ("raw", "raw", 0.0)):
        chosen, found = choose_weights(few, weights, "x.ckpt")  # type: ignore[arg-type]
        assert found == kind and torch.equal(chosen[key], state[key] + change)
        assert not any("ema" in name for name in chosen)
    assert choose_weights(state, "auto", "x.ckpt")[1] == "raw"
    with pytest.raises(WeightsError, match=r"x\.ckpt: holds no running averages.*weights='raw'"):
        choose_weights(state, "ema", "x.ckpt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("model.diffusion_model.out.0.bias"), r"1 missing, first model\.diffusion_model\.out\.0\.bias"),
        (lambda s: s.update({"model.diffusion_model.extra": torch.zeros(1)}), r"1 unknown, first model\.diffusion_mod"),
        (lambda s: s.update({"cc_projection.weight": torch.zeros(772, 768)}), r"1 transposed, first cc_projection"),
        (
            lambda s: s.update({"first_stage_model.encoder.mid.attn_1.q.weight": torch.zeros(128, 128, 3, 3)}),
            r"1 of another shape, first first_stage_model\.encoder\.mid\.attn_1\.q\.weight \(128, 128, 3, 3\)",
        ),
        (
            lambda s: s.update({"model.diffusion_model.output_blocks.2.2.conv.weight": torch.zeros(1)}),
            r"1 unknown, first model\.diffusion_model\.output_blocks\.2\.2\.conv\.weight",
        ),
        (
            lambda s: s.update({"model.diffusion_model.middle_conditions.proj_in.0.bias": torch.zeros(1)}),
            r"1 unknown, first model\.diffusion_model\.middle_conditions",
        ),
    ],
    ids=["missing", "extra", "transposed", "attention", "upsampler", "syncdreamer"],
)
def test_weights_that_do_not_fit_are_named_as_published(
    state: dict[str, Tensor], change: Callable[[dict[str, Tensor]], Any], words: str
) -> None:
    changed = dict(state)
    change(changed)
    with pytest.raises(WeightsError, match=rf"small\.ckpt does not fit.*{words}"):
        Zero123.from_state(SMALL, changed, where="small.ckpt")


@contextmanager
def lightning() -> Iterator[type]:
    """The class that old training programs used as a key, importable under its name only while a file is written."""
    names = ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.callbacks.model_checkpoint")
    before = {name: sys.modules.get(name) for name in names}
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    kind = type("ModelCheckpoint", (), {"__module__": names[-1]})
    sys.modules[names[-1]].ModelCheckpoint = kind  # type: ignore[attr-defined]
    try:
        yield kind
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def test_a_training_checkpoint_is_read_without_making_its_objects(tmp_path: Path) -> None:
    path = tmp_path / "zero123-xl.ckpt"
    with lightning() as kind:
        content = {
            "epoch": 3, "global_step": 7, "state_dict": {"betas": torch.arange(4.0)},
            "callbacks": {kind: {"best_model_score": np.float64(0.25), "dirpath": "there", "now": np.array(1.5)[()]}},
            "optimizer_states": [{"state": {0: {"step": 1, "exp_avg": torch.ones(3)}}, "param_groups": []}],
            "lr_schedulers": [],
        }  # fmt: skip
        torch.save(content, path)
    assert "pytorch_lightning" not in sys.modules
    found = read_ldm(path)
    assert set(found) == {"betas"} and found["betas"].tolist() == [0, 1, 2, 3]
    with pytest.raises(WeightsError, match=r"could run code"):
        read_checkpoint(path)  # outside, the list does not hold


class Touches:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_anything_else_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {"betas": torch.zeros(1)}, "callbacks": Touches(tmp_path / "made")}, path)
    with pytest.raises(WeightsError, match=r"evil\.ckpt: expected tensors alone.*mkdir"):
        read_ldm(path)
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_needs_the_pose_rule(tmp_path: Path) -> None:
    path = tmp_path / "stable_zero123.ckpt"
    torch.save({"state_dict": {"betas": torch.zeros(1)}}, path)
    with pytest.raises(SettingsError, match=r"stable_zero123\.ckpt.*pose_rule='distance'.*'polar' for Stable"):
        Zero123.from_pretrained(path)
    with pytest.raises(WeightsError, match=r"does not fit the model.*missing"):
        Zero123.from_pretrained(path, pose_rule="polar")
    with pytest.raises(WeightsError, match=r"nowhere: expected a folder or a checkpoint"):
        Zero123.from_pretrained(tmp_path / "nowhere")


# A model small enough to run many times.


def tiny(config: Zero123Config = TINY, seed: int = 0, **kwargs: Any) -> Zero123:
    """Random weights, pictures of 32 x 32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Zero123(Zero123Network(config), "tiny", **kwargs)


def cutout(size: int = 32) -> Tensor:
    """A coloured square on a transparent ground."""
    image = torch.zeros(4, size, size)
    inside = slice(size // 8, size - size // 8)
    image[:, inside, inside] = torch.tensor([0.8, 0.3, 0.1, 1.0])[:, None, None]
    return image


def run(model: Zero123, seed: int = 1, **settings: Any) -> Tensor:
    """The pictures of two steps."""
    settings = {"num_inference_steps": 2, "elevation_deg": 10.0} | settings
    return model(cutout(), generator=torch.Generator().manual_seed(seed), **settings).images


def same_weights(found: Zero123, expected: Zero123) -> bool:
    """Whether two have the same numbers in the same places."""
    a, b = found.network.state_dict(), expected.network.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_our_folder_gives_the_same_pictures_back(tmp_path: Path) -> None:
    model = tiny(replace(TINY, pose_rule="polar"), weights="ema", source="x.ckpt")
    model.save_pretrained(tmp_path / "mine")
    again = Zero123.from_pretrained(tmp_path / "mine")
    assert (again.name, again.config, again.record) == ("mine", model.config, model.record)
    assert same_weights(again, model)
    # Where a file's tensors lie in memory moves the last digits of sums.
    assert (run(again) - run(model)).abs().max().item() < 1e-5
    with pytest.raises(SettingsError, match=r"pose rule 'polar', not 'distance'"):
        Zero123.from_pretrained(tmp_path / "mine", pose_rule="distance")
    half = Zero123.from_pretrained(tmp_path / "mine", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.to(dtype=torch.float32).dtype == torch.float32


def test_a_cancelled_save_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    model.save_pretrained(tmp_path / "old")

    def stopped(path: Path, *_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(multiview.zero123weights, "write_safetensors", stopped)
    for folder in (tmp_path / "old", tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            model.save_pretrained(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert same_weights(Zero123.from_pretrained(tmp_path / "old"), model)


def as_conversion(folder: Path, style: str) -> Path:
    """Our folder as others lay theirs out: ``kxic`` (.bin, an old VAE) or ``ashawkey`` (variants, another name)."""
    from safetensors.torch import load_file, save_file

    (folder / "config.json").unlink()
    (folder / "cc_projection" / "config.json").write_text("{}")
    for file in sorted(folder.rglob("*.safetensors")):
        part, state = file.parent.name, load_file(file)
        if part == "cc_projection":
            inner = "projection" if style == "kxic" else "proj"
            state = {f"{inner}.{key}": tensor for key, tensor in state.items()}
        if part == "image_encoder":
            state["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
        if part == "vae" and style == "kxic":
            for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
                state = {key.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): t for key, t in state.items()}
        file.unlink()
        if style == "kxic":
            name = "pytorch_model.bin" if part == "image_encoder" else "diffusion_pytorch_model.bin"
            torch.save(state, file.with_name(name))
        else:
            variant = "fp16_ema" if part == "unet" else "fp16"
            save_file(state, file.with_name(f"{file.stem}.{variant}.safetensors"))
    if style == "ashawkey":
        (folder / "cc_projection").rename(folder / "clip_camera_projection")
    return folder


@pytest.mark.parametrize(("style", "variant", "kind"), [("kxic", None, "unknown"), ("ashawkey", "fp16_ema", "ema")])
def test_published_conversions_load_to_the_same_weights(
    tmp_path: Path, style: str, variant: str | None, kind: str
) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    folder = as_conversion(tmp_path, style)
    found = Zero123.from_pretrained(folder, pose_rule="distance", variant=variant)
    # The sizes of pictures that conversions state are guesses of the converter: they are 256 px.
    assert found.config == replace(TINY, unet=replace(TINY.unet, latent_size=32))
    assert found.record["weights"] == kind and same_weights(found, model)
    with pytest.raises(SettingsError, match=r"pose_rule='distance' for Zero123"):
        Zero123.from_pretrained(folder)
    # One variant alone needs not be named, one of two does.
    assert Zero123.from_pretrained(folder, pose_rule="distance").record["weights"] == kind
    if variant:
        unet = folder / "unet" / "diffusion_pytorch_model.fp16_ema.safetensors"
        shutil.copy(unet, unet.with_name("diffusion_pytorch_model.fp16.safetensors"))
        with pytest.raises(WeightsError, match=r"expected diffusion_pytorch_model\.safetensors, found .*fp16_ema"):
            Zero123.from_pretrained(folder, pose_rule="distance")


@pytest.mark.parametrize("style", ["kxic", "ashawkey"])
def test_a_conversion_on_the_hub_is_fetched_one_file_per_part(
    tmp_path: Path, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    folder, fetched = as_conversion(tmp_path, style), []

    def hub_file(repository: str, name: str, *, revision: str | None, **_: Any) -> HubFile:
        assert (repository, revision) == ("someone/xl", "main")
        if not (folder / name).is_file():
            raise NoSuchFileError(name)
        fetched.append(name)
        return HubFile(folder / name, None)

    monkeypatch.setattr(multiview.zero123weights, "hub_file", hub_file)
    variant = "fp16_ema" if style == "ashawkey" else None
    found = Zero123.from_pretrained("someone/xl", pose_rule="distance", revision="main", variant=variant)
    assert same_weights(found, model) and (found.name, found.record["source"]) == ("someone/xl", "someone/xl")
    assert len(fetched) == 7  # three configs and four files of weights
    with pytest.raises(WeightsError, match=r"someone/xl: expected unet/.*none of.*file= or variant="):
        Zero123.from_pretrained("someone/xl", pose_rule="distance", revision="main", variant="bf16")


def test_a_checkpoint_on_the_hub_is_named_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"state_dict": {"betas": torch.zeros(1)}}, tmp_path / "stable_zero123.ckpt")

    def hub_file(repository: str, name: str, *, revision: str | None, **_: Any) -> HubFile:
        return HubFile(tmp_path / name, None)

    monkeypatch.setattr(multiview.zero123weights, "hub_file", hub_file)
    with pytest.raises(WeightsError, match=r"stable_zero123\.ckpt does not fit.*missing"):
        Zero123.from_pretrained("stabilityai/stable-zero123", file="stable_zero123.ckpt", pose_rule="polar")


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("unet", {"attention_head_dim": [5, 10]}, r"heads: expected int, found \[5, 10\]"),
        ("unet", {"use_linear_projection": True}, r"use_linear_projection is True, but these models have False"),
        ("unet", {"flip_sin_to_cos": False}, r"flip_sin_to_cos is False, but these models have True"),
        ("unet", {"norm_eps": 1e-6}, r"norm_eps is 1e-06"),
        ("vae", {"scaling_factor": 0.13025}, r"scaling_factor is 0\.13025, but these models have 0\.18215"),
        ("image_encoder", {"hidden_act": "relu"}, r"activation: expected one of .*found 'relu'"),
    ],
    ids=["heads", "linear", "sinus", "eps", "scale", "activation"],
)
def test_a_conversion_that_says_something_else_is_refused(
    tmp_path: Path, part: str, change: dict[str, Any], words: str
) -> None:
    tiny().save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    path = tmp_path / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsError, match=rf"{part}/config\.json.*{words}"):
        Zero123.from_pretrained(tmp_path, pose_rule="distance")


# As a generator.


def test_a_picture_becomes_views_with_cameras() -> None:
    model = tiny()
    views = model.generate(
        cutout(), elevation_deg=10.0, generator=torch.Generator().manual_seed(0), num_inference_steps=2
    )
    assert isinstance(views, Views) and tuple(views.images.shape) == (6, 3, 32, 32)
    assert torch.equal(views.cameras.c2w, INSTANTMESH_TARGETS.cameras().c2w)
    assert views.images.min() >= 0 and views.images.max() <= 1 and views.alpha.min() >= 0 and views.alpha.max() <= 1
    model.targets, model.camera_distance = ring(3, 20.0), 2.0
    views = model.generate(cutout(), elevation_deg=10.0, num_inference_steps=1)
    assert len(views) == 3 and views.cameras.positions.norm(dim=1).tolist() == pytest.approx([2.0] * 3, abs=1e-5)


def test_the_same_seed_gives_the_same_bytes_and_another_another() -> None:
    model = tiny()
    for settings in ({}, {"parity": True, "num_inference_steps": 3}, {"eta": 0.5}):
        first = run(model, **settings)
        torch.rand(3)  # the global generator plays no part
        assert torch.equal(first, run(model, **settings))
    assert (run(model) - run(model, seed=2)).abs().max().item() > 0.01


def test_views_per_pass_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together, as on a GPU; on the CPU they go one by one whatever is said (tests/unit/test_networks.py)."""
    monkeypatch.setattr(networks, "on_accelerator", lambda _device: True)
    model = tiny()
    settings: dict[str, Any] = {"targets": ring(16), "num_inference_steps": 3, "eta": 1.0}
    at_once = run(model, **settings)
    for size in (1, 5, 16):
        assert (run(model, view_batch_size=size, **settings) - at_once).abs().max().item() < 1e-5, size


def test_a_view_depends_on_its_own_camera_and_on_the_inputs_elevation_as_the_rule_says() -> None:
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for rule in ("distance", "polar"):
        model = tiny(replace(TINY, pose_rule=rule))  # type: ignore[arg-type]

        def made(azimuth: float, up: float, model: Zero123 = model) -> Tensor:
            return run(
                model, targets=Targets((0.0, azimuth), (up, up)), latents=start, elevation_deg=up, output_type="np"
            )

        a, b, raised = made(90.0, 0.0), made(180.0, 0.0), made(90.0, 20.0)
        assert np.abs(a[0] - b[0]).max() < 1e-5 and np.abs(a[1] - b[1]).max() > 1e-4
        # The whole world turned up: only Stable Zero123 knows.
        assert (np.abs(a - raised).max() > 1e-4) == (rule == "polar")


@pytest.mark.parametrize("name", ["ddim", "dpm++", "unipc"])
def test_every_scheduler_gives_pictures(name: Any) -> None:
    model = tiny()
    model.set_scheduler(name)
    images = run(model, num_inference_steps=4)
    assert torch.isfinite(images).all() and images.std() > 0
    assert torch.equal(images, run(model, num_inference_steps=4))
    if name != "ddim":
        with pytest.raises(SettingsError, match=r"has no eta and no parity mode.*ddim"):
            run(model, parity=True)


def test_the_schedulers_agree_on_a_noise_that_is_known() -> None:
    """With the exact noise of latents x0 = 0.7 every sampler ends at x0."""
    model = tiny()

    def exact(x: Tensor, t: int, *_: Any) -> Tensor:
        alpha = model.scheduler.alphas_cumprod[int(t)]
        return (x - 0.7 * alpha.sqrt()) / (1 - alpha).sqrt()

    model.guided_noise = exact  # type: ignore[method-assign]
    for name in ("ddim", "dpm++", "unipc"):
        model.set_scheduler(name)  # type: ignore[arg-type]
        end = run(model, num_inference_steps=20, output_type="latent")
        assert (end.mean() - 0.7).abs().item() < 0.02, name


def test_outputs_have_the_form_that_was_asked_for() -> None:
    model = tiny()
    pictures = run(model, output_type="pil")
    assert len(pictures) == 6 and pictures[0].size == (32, 32)
    array = run(model, output_type="np")
    assert array.shape == (6, 32, 32, 3)
    assert np.abs(np.asarray(pictures[2]) / 255 - array[2]).max() <= 0.5 / 255 + 1e-6
    assert tuple(run(model, output_type="latent").shape) == (6, 4, 8, 8)
    cut = run(model, parity=True, num_inference_steps=3) * 255
    assert (cut - cut.round()).abs().max().item() < 1e-4


def test_callbacks_see_every_step_may_change_it_and_may_end_the_run() -> None:
    model = tiny()
    seen: list[Any] = []

    def zero(pipe: Zero123, step: int, t: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((pipe is model, step, t))
        return {"latents": torch.zeros_like(tensors["latents"])}

    end = run(model, callback_on_step_end=zero, output_type="latent", on_step=lambda *done: seen.append(done))
    assert seen == [(True, 0, 501), (1, 2), (True, 1, 1), (2, 2)] and not end.any()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = run(model)
    with pytest.raises(KeyboardInterrupt):
        run(model, on_step=stop)
    assert torch.equal(run(model), before)


def test_what_overflows_in_half_precision_is_named_and_repeated_in_fp32(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny().to(dtype=torch.bfloat16)
    full = run(tiny_like(model))

    def overflow(module: Any, _: Any, output: tuple[Tensor]) -> tuple[Tensor]:
        return (output[0] * torch.nan,) if module.conv_in.weight.dtype == torch.bfloat16 else output

    handle = model.network.unet.register_forward_hook(overflow)
    with caplog.at_level("WARNING", logger="trilift"):
        found = run(model)
    handle.remove()
    assert "step 1 of 2 (t = 501) gave numbers that are not finite in bfloat16" in caplog.text
    assert "step 2 of 2" not in caplog.text  # the rest of the run stays in fp32
    assert {p.dtype for p in model.network.unet.parameters()} == {torch.bfloat16}
    assert torch.isfinite(found).all() and (found - full).abs().mean().item() < 0.05


def tiny_like(model: Zero123) -> Zero123:
    """The same weights in fp32."""
    other = tiny()
    other.network.load_state_dict({key: tensor.float() for key, tensor in model.network.state_dict().items()})
    return other


def test_damaged_weights_are_named_with_the_step() -> None:
    model = tiny()
    model.network.unet.conv_out.bias.data[0] = torch.nan
    with pytest.raises(WeightsError, match=r"step 1 of 2 \(t = 501\).*fp32.*weights may be damaged"):
        run(model)


@torch.no_grad()
def test_guidance_of_one_is_the_conditional_noise_and_of_nothing_the_unconditional() -> None:
    model = tiny()
    told = model.encode(cutout(), pose_numbers("distance", ring(2), 0.0))
    x = normal(1, (2, 4, 8, 8))
    free = model.noise(x, 501, torch.zeros_like(told.tokens), torch.zeros_like(told.latent))
    conditional = model.noise(x, 501, told.tokens, told.latent)
    assert (free - conditional).abs().max().item() > 0.01
    for scale, expected in ((1.0, conditional), (1.0 + 1e-7, conditional), (0.0, free)):
        assert (model.guided_noise(x, 501, told.tokens, told.latent, scale) - expected).abs().max().item() < 1e-5


def test_sliced_attention_and_networks_moved_as_needed_change_nothing() -> None:
    model = tiny()
    plain = run(model)
    model.enable_attention_slicing()
    assert (run(model) - plain).abs().max().item() < 1e-5
    model.disable_attention_slicing()
    model.enable_model_cpu_offload()
    assert torch.equal(run(model), plain)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"elevation_deg": 91.0}, SettingsError, r"elevation_deg=91"),
        ({"num_inference_steps": 0}, SettingsError, r"num_inference_steps=0"),
        ({"guidance_scale": -1.0}, SettingsError, r"guidance_scale=-1"),
        ({"view_batch_size": 0}, SettingsError, r"view_batch_size=0"),
        ({"output_type": "jpg"}, SettingsError, r"output_type 'jpg'"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, SettingsError, r"expected \(6, 4, 8, 8\), found \(1, 4, 8, 8\)"),
        ({"parity": True, "num_inference_steps": 1}, SettingsError, r"2 or more"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        run(tiny(), **settings)


def test_another_picture_is_refused() -> None:
    with pytest.raises(ImageError, match=r"\(4, S, S\).*found \(3, 32, 32\)"):
        tiny().generate(torch.zeros(3, 32, 32), elevation_deg=0.0)
