"""The decoder's parts against torch's own modules, and the dtypes of their parameters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lrm.blocks
from lrm.blocks import (
    Attention,
    BlockConfig,
    DecoderBlock,
    GegluMlp,
    Linear,
    ModulatedNorm,
    PlaneUpsampler,
    matrix_dtype,
    multiply_rows,
    use_dtype,
)

CONFIG = BlockConfig(width=16, heads=2, context_width=12, norm_eps=1e-5)


@pytest.fixture(autouse=True)
def seeded() -> object:
    """Random weights and inputs, the same in every test; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        yield


def test_attention_is_torchs_multihead_attention() -> None:
    theirs = nn.MultiheadAttention(16, 4, bias=False, batch_first=True, kdim=12, vdim=12)
    ours = Attention(16, 4, 12)
    names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    for part, name in zip((ours.query, ours.key, ours.value), names, strict=True):
        part.weight.copy_(getattr(theirs, name))
    ours.out.weight.copy_(theirs.out_proj.weight)
    x, context = torch.randn(2, 5, 16), torch.randn(2, 7, 12)
    expected = theirs(x, context, context, need_weights=False)[0]
    torch.testing.assert_close(ours(x, context), expected, atol=1e-5, rtol=1e-5)


def test_all_attention_goes_through_attend(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def recording(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen.append((tuple(query.shape), tuple(key.shape), tuple(value.shape)))
        return value.mean(2, keepdim=True).expand_as(query)

    monkeypatch.setattr(lrm.blocks, "attend", recording)
    DecoderBlock(CONFIG)(torch.randn(1, 6, 16), torch.randn(1, 4, 12))
    assert seen == [((1, 2, 6, 8), (1, 2, 4, 8), (1, 2, 4, 8)), ((1, 2, 6, 8),) * 3]


def test_geglu_takes_the_value_first_and_the_gate_second() -> None:
    mlp = GegluMlp(1, 1)
    mlp.expand.weight.copy_(torch.tensor([[3.0], [2.0]]))
    mlp.expand.bias.zero_()
    mlp.shrink.weight.fill_(1.0)
    mlp.shrink.bias.zero_()
    gate = 2.0 * 0.5 * (1 + torch.erf(torch.tensor(2.0 / 2**0.5))).item()
    assert mlp(torch.ones(1, 1)).item() == pytest.approx(3.0 * gate, abs=1e-6)


def test_a_modulated_norm_shifts_by_the_first_half_and_scales_by_the_second() -> None:
    norm = ModulatedNorm(2, 1e-6, condition_width=1)
    assert norm.modulation is not None
    norm.modulation.weight.zero_()
    norm.modulation.bias.copy_(torch.tensor([10.0, 20.0, 1.0, 2.0]))
    # LN of (0, 2) is (-1, 1): -1 * (1 + 1) + 10 and 1 * (1 + 2) + 20.
    assert norm(torch.tensor([[[0.0, 2.0]]]), torch.zeros(1, 1)).flatten().tolist() == pytest.approx([8, 23], abs=1e-4)
    assert ModulatedNorm(2, 1e-6)(torch.tensor([[[0.0, 2.0]]])).flatten().tolist() == pytest.approx([-1, 1], abs=1e-4)


def test_the_upsampler_is_a_transposed_convolution_of_each_plane() -> None:
    upsampler = PlaneUpsampler(6, 5)
    tokens = torch.randn(2, 3 * 16, 6)
    maps = tokens.reshape(2, 3, 4, 4, 6).permute(0, 1, 4, 2, 3).flatten(0, 1)
    expected = F.conv_transpose2d(maps, upsampler.weight, upsampler.bias, stride=2).unflatten(0, (2, 3))
    torch.testing.assert_close(upsampler(tokens), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("order", [("self", "cross"), ("cross", "self")], ids="-".join)
@pytest.mark.parametrize("mlp", ["gelu", "geglu"])
def test_a_block_is_its_steps_in_the_configs_order(order: tuple, mlp: str) -> None:
    block = DecoderBlock(replace(CONFIG, order=order, mlp=mlp))
    x, context = torch.randn(1, 6, 16), torch.randn(1, 4, 12)
    y = x
    for step in order:
        if step == "self":
            y = y + block.attend_self(block.norm_self(y))
        else:
            y = y + block.attend_cross(block.norm_cross(y), context)
    y = y + block.mlp(block.norm_mlp(y))
    torch.testing.assert_close(block(x, context), y, atol=1e-6, rtol=1e-6)
    other = DecoderBlock(replace(CONFIG, order=order[::-1], mlp=mlp))
    other.load_state_dict(block.state_dict())
    assert (other(x, context) - y).abs().max().item() > 1e-3


def test_one_set_of_tokens_meets_many_contexts() -> None:
    block = DecoderBlock(replace(CONFIG, order=("self", "cross")))
    x, contexts = torch.randn(1, 6, 16), torch.randn(3, 4, 12)
    expected = torch.cat([block(x, contexts[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(block(x, contexts), expected, atol=1e-5, rtol=1e-5)
    begun = x + block.attend_self(block.norm_self(x))
    torch.testing.assert_close(block(begun, contexts, begun=True), expected, atol=1e-5, rtol=1e-5)
    assert (block(x, contexts, begun=True) - expected).abs().max().item() > 1e-3


def test_each_image_has_its_own_condition() -> None:
    block = DecoderBlock(replace(CONFIG, condition_width=3))
    x, context, condition = torch.randn(2, 6, 16), torch.randn(2, 4, 12), torch.randn(2, 3)
    both = block(x, context, condition)
    for i in range(2):
        alone = block(x[i : i + 1], context[i : i + 1], condition[i : i + 1])
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-5, rtol=1e-5)
    assert (block(x, context, condition.flip(0)) - both).abs().max().item() > 1e-3


def test_a_dtype_reaches_the_matrices_alone() -> None:
    block = use_dtype(DecoderBlock(replace(CONFIG, condition_width=3)), torch.bfloat16)
    assert matrix_dtype(block) == torch.bfloat16
    inside = {
        f"{name}.{key}" for name, m in block.named_modules() if isinstance(m, Linear) for key, _ in m.named_parameters()
    }
    for name, parameter in block.named_parameters():
        assert parameter.dtype == (torch.bfloat16 if name in inside else torch.float32), name
    assert block.norm_self.weight.dtype == torch.float32
    x = torch.randn(1, 6, 16)
    assert block(x, torch.randn(1, 4, 12), torch.randn(1, 3)).dtype == torch.float32
    assert matrix_dtype(nn.ReLU()) == torch.float32


@pytest.mark.parametrize("shape", [(512, 12), (1, 1025, 12), (2, 700, 12)], ids=str)
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
def test_rows_as_pixels_are_multiplied_as_rows(
    shape: tuple[int, ...], biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lrm.blocks, "mkl_is_slow", lambda: True)
    seen = []
    convolve = F.conv2d
    monkeypatch.setattr(lrm.blocks.F, "conv2d", lambda *a, **k: seen.append(a[0].shape) or convolve(*a, **k))
    x, weight = torch.randn(shape), torch.randn(7, 12)
    bias = torch.randn(7) if biased else None
    torch.testing.assert_close(multiply_rows(x, weight, bias), F.linear(x, weight, bias), atol=1e-5, rtol=1e-5)
    count = x.numel() // 12
    assert seen == [(-(-count // 64), 12, 1, 64)]  # whole pictures of 64 pixels, the last one filled up


@pytest.mark.parametrize("why", ["gradients", "bf16", "few rows", "another processor"])
def test_other_products_are_torchs_own(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lrm.blocks, "mkl_is_slow", lambda: why != "another processor")
    monkeypatch.setattr(lrm.blocks.F, "conv2d", lambda *a, **k: pytest.fail("a convolution"))
    dtype = torch.bfloat16 if why == "bf16" else torch.float32
    x, weight = torch.randn(10 if why == "few rows" else 600, 12, dtype=dtype), torch.randn(7, 12, dtype=dtype)
    with torch.set_grad_enabled(why == "gradients"):
        assert torch.equal(multiply_rows(x, weight, None), F.linear(x, weight))
