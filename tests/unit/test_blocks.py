"""The decoder's parts against torch's own modules, and the dtypes of their parameters."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

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
    GeluMlp,
    Linear,
    ModulatedNorm,
    PlaneUpsampler,
    in_threads,
    matrix_dtype,
    multiply_rows,
    silu_rows,
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


def test_a_norm_of_one_condition_is_folded_and_follows_its_weights() -> None:
    norm = ModulatedNorm(8, 1e-6, condition_width=3)
    x, first, second = torch.randn(1, 5, 8), torch.randn(1, 3), torch.randn(1, 3)

    def plain(condition: torch.Tensor) -> torch.Tensor:
        return norm(torch.cat([x, x]), torch.cat([condition, condition]))[:1]  # two conditions are not folded

    for condition in (first, first, second, first):
        torch.testing.assert_close(norm(x, condition), plain(condition), atol=1e-5, rtol=1e-5)
    assert norm.modulation is not None
    for parameter in (norm.weight, norm.modulation.weight):
        before = norm(x, first)
        parameter.mul_(1.5)
        assert float((norm(x, first) - before).abs().max()) > 0.01
        torch.testing.assert_close(norm(x, first), plain(first), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [GeluMlp, GegluMlp])
def test_rows_go_through_an_mlp_in_parts(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    x, mlp = torch.randn(2, 7, 16), kind(16, 64)
    whole = mlp(x)
    seen: list[int] = []
    mlp.shrink.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    monkeypatch.setattr(lrm.blocks, "_MLP_ROWS", 4)
    torch.testing.assert_close(mlp(x), whole, atol=1e-6, rtol=1e-6)
    assert seen == [4, 4, 4, 2]


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


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("rows", [3, 2000])
def test_silu_in_the_product_is_silu_after_it(
    dtype: torch.dtype, off: float, fused: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mkl_is_slow", "multiplies_bf16"):
        monkeypatch.setattr(lrm.blocks, name, lambda: True)
    if not fused:
        monkeypatch.setattr(lrm.blocks, "_fused_silu", lambda: None)
    elif lrm.blocks._fused_silu() is None:
        pytest.skip("this torch has no product with SiLU in it")
    x, weight, bias = torch.randn(rows, 64), torch.randn(64, 64) / 8, torch.randn(64)
    found = silu_rows(x.to(dtype), weight.to(dtype), bias.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), F.silu(F.linear(x, weight, bias)), atol=off, rtol=off)


def test_silu_keeps_gradients() -> None:
    with torch.enable_grad():
        weight = torch.randn(4, 4, requires_grad=True)
        silu_rows(torch.randn(600, 4), weight, None).sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0


def test_a_wrong_or_missing_fused_product_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    look = lrm.blocks._fused_silu.__wrapped__
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda x, weight, bias, *rest: F.linear(x, weight, bias))
    assert look() is None

    def missing(*args: object) -> Tensor:
        raise RuntimeError("no oneDNN here")

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", missing)
    assert look() is None


def test_blocks_by_threads_come_back_in_order_and_each_thread_has_one_core() -> None:
    by: set[tuple[str, int]] = set()

    def double(part: Tensor) -> Tensor:
        by.add((threading.current_thread().name, torch.get_num_threads()))
        return part * 2

    before, numbers = torch.get_num_threads(), torch.arange(1000.0)
    torch.set_num_threads(2)
    try:
        assert torch.equal(in_threads(double, numbers.split(7)), numbers * 2)
        assert {count for _, count in by} == {1} and all(name.startswith("trilift-blocks") for name, _ in by)
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError):
            in_threads(lambda part: part / (1 // 0), [numbers])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_threads_have_their_callers_gradients(mode: Any) -> None:
    before, seen = torch.get_num_threads(), set()

    def look(part: Tensor) -> Tensor:
        seen.add((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return part * 2

    torch.set_num_threads(2)
    try:
        with mode():
            wanted = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            numbers = torch.ones(6, requires_grad=mode is torch.enable_grad)
            found = in_threads(look, numbers.split(2))
        assert seen == {wanted} and found.is_inference() == wanted[1]
        if found.requires_grad:
            with torch.enable_grad():
                found.sum().backward()
            assert numbers.grad is not None and numbers.grad.tolist() == [2.0] * 6
        assert found.requires_grad == (mode is torch.enable_grad)
    finally:
        torch.set_num_threads(before)


def test_one_thread_does_its_blocks_itself() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        caller = threading.current_thread().name
        assert in_threads(lambda part: part + (threading.current_thread().name == caller), [torch.zeros(2)]).sum() == 2
    finally:
        torch.set_num_threads(before)
