"""Our UNet against diffusers' over the same parameters, and what it saves against what it saves it from."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from multiview.fastunet import SHALLOW, FastUNet, fast_unet, same_parameters
from multiview.ldm import UNetSizes, make_unet

# Four levels as in the published networks, of different widths, so that no two may be mixed up.
FOUR = UNetSizes(channels=(32, 64, 96, 96), layers=2, heads=4, context_width=24, latent_size=8)
TWO = UNetSizes(channels=(32, 64), layers=1, heads=2, context_width=8, latent_size=8)
SIZES = {"four levels": FOUR, "two levels": TWO}
TIMES = torch.tensor([981, 481, 1])
# fp32 rounding through some forty layers, relative to the largest number.
TOLERANCE = 1e-5


@functools.cache
def nets(name: str) -> tuple[Any, FastUNet]:
    """Diffusers' network, filled from a seed, and ours over its parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        unet = make_unet(SIZES[name]).eval().requires_grad_(False)
    ours = fast_unet(unet)
    assert ours is not None
    return unet, ours


def inputs(name: str, count: int = 3) -> tuple[Tensor, Tensor]:
    """Latents with the picture's beside them, and one token each."""
    draw = torch.Generator().manual_seed(5)
    latents = torch.randn(count, 8, 8, 8, generator=draw)
    return latents, torch.randn(count, 1, SIZES[name].context_width, generator=draw)


def off(found: Tensor, expected: Tensor) -> float:
    """Largest difference / largest number."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_it_is_diffusers_network_with_and_without_the_shortcut(name: str) -> None:
    unet, ours = nets(name)
    x, tokens = inputs(name)
    expected = unet(x, TIMES[1], encoder_hidden_states=tokens, return_dict=False)[0]
    row = ours.time_rows(TIMES)[1:2]
    assert off(ours(x, row, ours.told(tokens))[0], expected) < TOLERANCE
    assert off(ours(x, row, None, tokens=tokens)[0], expected) < TOLERANCE
    wrong_time, wrong_token = ours.time_rows(TIMES)[:1], ours.told(tokens.flip(0))
    assert off(ours(x, wrong_time, ours.told(tokens))[0], expected) > 100 * TOLERANCE
    assert off(ours(x, row, wrong_token)[0], expected) > 100 * TOLERANCE


@torch.no_grad()
def test_a_cross_attention_over_one_token_answers_the_same_to_every_pixel() -> None:
    """Softmax over one number is 1: the answer is to_out(to_v(token)), worked out here by hand."""
    _, ours = nets("two levels")
    _, tokens = inputs("two levels")
    crossing = ours.down_blocks[0].attentions[0].crossing  # type: ignore[union-attr, index]
    weights = crossing.to_v.weight, crossing.to_out[0].weight, crossing.to_out[0].bias
    by_hand = tokens[:, 0] @ weights[0].T @ weights[1].T + weights[2]
    asked = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(crossing(asked, tokens), by_hand[:, None].expand(3, 5, 32), atol=1e-6)
    assert torch.allclose(ours.told(tokens)[:, :32], by_hand, atol=1e-6)
    nothing = ours.told(torch.zeros(1, 1, 8))
    assert torch.allclose(nothing[0, :32], weights[2], atol=1e-7)  # zeros leave the bias alone


@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_deep_features_of_the_same_step_change_nothing_and_of_another_little(name: str) -> None:
    _, ours = nets(name)
    x, tokens = inputs(name)
    rows, told = ours.time_rows(TIMES), ours.told(tokens)
    whole, deep = ours(x, rows[1:2], told)
    again, kept = ours(x, rows[1:2], told, deep)
    assert torch.equal(again, whole) and kept is deep
    other, _ = ours(x, rows[1:2], told, ours(x, rows[:1], told)[1])
    zeros, _ = ours(x, rows[1:2], told, torch.zeros_like(deep))
    assert 0 < off(other, whole) < off(zeros, whole)


@torch.no_grad()
def test_reused_features_leave_out_all_but_the_finest_layers() -> None:
    _, ours = nets("four levels")
    x, tokens = inputs("four levels")
    row, told = ours.time_rows(TIMES)[:1], ours.told(tokens)
    _, deep = ours(x, row, told)
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in ours.named_modules()
        if name.rsplit(".", 2)[-2:-1] == ["resnets"]
    ]
    ours(x, row, told, deep)
    for handle in handles:
        handle.remove()
    assert SHALLOW == 2
    assert ran == ["down_blocks.0.resnets.0", "up_blocks.3.resnets.1", "up_blocks.3.resnets.2"]


def test_the_parameters_are_the_same_objects_whatever_becomes_of_them() -> None:
    unet = make_unet(TWO).eval().requires_grad_(False)
    ours = fast_unet(unet)
    assert ours is not None and same_parameters(ours, unet)
    unet.to(torch.bfloat16)
    assert ours.conv_in.weight.dtype == torch.bfloat16 and same_parameters(ours, unet)
    unet.conv_in.weight.data.fill_(0.25)
    assert ours.conv_in.weight.unique().tolist() == [0.25]
    unet.conv_in.weight = torch.nn.Parameter(unet.conv_in.weight.clone(), requires_grad=False)
    assert not same_parameters(ours, unet)
    assert same_parameters(fast_unet(unet), unet)  # type: ignore[arg-type]


def test_what_is_frozen_stays_frozen_and_what_is_trained_trained() -> None:
    unet = make_unet(TWO).requires_grad_(False)
    unet.mid_block.requires_grad_(True)
    before = {name: p.requires_grad for name, p in unet.named_parameters()}
    assert fast_unet(unet) is not None
    assert {name: p.requires_grad for name, p in unet.named_parameters()} == before and set(before.values()) == {
        True,
        False,
    }


def sliced(unet: Any) -> None:
    unet.set_attention_slice(1)


def hooked(unet: Any) -> None:
    unet.mid_block.register_forward_hook(lambda *_: None)


def replaced(unet: Any) -> None:
    unet.down_blocks[0].resnets[0].forward = lambda x, _: x


def adapted(unet: Any) -> None:
    unet.conv_in = torch.nn.Sequential(unet.conv_in)


def other_norm(unet: Any) -> None:
    unet.register_to_config(norm_eps=1e-3)


def freeu(unet: Any) -> None:
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


@pytest.mark.parametrize("change", [sliced, hooked, replaced, adapted, other_norm, freeu])
def test_what_is_not_the_plain_network_is_left_to_diffusers(change: Any) -> None:
    unet = make_unet(TWO).eval().requires_grad_(False)
    ours = fast_unet(unet)
    assert ours is not None
    changed = copy.deepcopy(unet)
    change(changed)
    assert fast_unet(changed) is None
    change(unet)
    assert change is other_norm or not same_parameters(ours, unet)
    assert fast_unet(torch.nn.Linear(1, 1)) is None
