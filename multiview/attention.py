"""One attention call for the whole project."""

from __future__ import annotations

import importlib
import importlib.util
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import SettingsError

_kernel = "sdpa"
_QUERIES = 512  # of one block on the CPU: with a few thousand keys its scores stay in the processor's cache
_MOST = 2.0**60  # of weights before they are made to add up to 1, so far from overflow that sums of values are, too


def use_attention(kernel: str) -> None:
    """Choose the kernel behind `attend` for this process: ``sdpa`` (default) or ``xformers``.

    Raises:
        SettingsError: an unknown name, or xformers is not installed.
    """
    global _kernel
    if kernel not in ("sdpa", "xformers"):
        raise SettingsError(f"attention kernel {kernel!r}: expected sdpa or xformers.")
    if kernel == "xformers" and importlib.util.find_spec("xformers") is None:
        raise SettingsError("attention kernel xformers is not installed. Try: pip install 'trilift[xformers]'.")
    _kernel = kernel


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention without mask or dropout, scale head_width ** -0.5.

    Args:
        query: (B, heads, L, width) float.
        key: (B, heads, M, width).
        value: (B, heads, M, width).

    Returns:
        (B, heads, L, width), differentiable in all three. In bf16 on the CPU weights are off by up to 2 ** -9 times
        the score, in fp32 and by the fused kernels by rounding alone.
    """
    if _kernel == "xformers":
        ops = importlib.import_module("xformers.ops")
        # xformers wants (batch, length, heads, width).
        q, k, v = (x.transpose(1, 2).contiguous() for x in (query, key, value))
        out: Tensor = ops.memory_efficient_attention(q, k, v)
        return out.transpose(1, 2)
    if query.device.type == "cpu" and torch.is_grad_enabled():
        # The fused CPU kernel's backward pass takes 2 to 3 times as long as plain products at a few hundred tokens.
        return torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, -1) @ value
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        return _attend_in_blocks(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


def _attend_in_blocks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`attend` for bf16 on the CPU, without gradients: plain products, a block of queries at a time.

    The fused CPU kernel works on fp32 copies there and takes 2 to 3 times as long. Scores are bf16, to the base 2,
    since that power is the quickest. They are not shifted by their maximum, and the answer is divided by the powers'
    sum in place of the powers, which saves two of softmax's three ways through them. Adding one vector to all keys adds
    one number to all scores of a query, which this does not see; so the keys' mean is taken off, because networks often
    have a large one, and it would cost scores their digits.
    """
    batch, heads, length, width = query.shape
    # Laid out as (B, L, heads, width), so that joining the heads copies nothing.
    out = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
    for item in range(batch):
        # All heads at once, since a head's numbers lie apart from each other.
        keys = key[item].transpose(0, 1).flatten(1).float()
        keys = ((keys - keys.mean(0)) * (math.log2(math.e) * width**-0.5)).to(query.dtype)
        keys_t = keys.unflatten(1, (heads, width)).permute(1, 2, 0)
        for head in range(heads):
            parts = query[item, head], keys_t[head], value[item, head]
            if not _attend_by_powers(*parts, out[item, head]):
                _attend_by_softmax(*parts, out[item, head])
    return out


def _attend_by_powers(query: Tensor, keys_t: Tensor, value: Tensor, out: Tensor) -> bool:
    """Answer the queries (L, width) of one head into ``out``, unless powers of their scores leave the range of bf16.

    Args:
        query, value, out: of one head, (L or M, width).
        keys_t: (width, M), scaled so that weights are in proportion to 2 ** score.

    Returns:
        Whether every query's weights added up to an ordinary number; else ``out`` holds nothing of use.
    """
    sums = torch.empty(len(query), dtype=torch.float32)
    scores = query.new_empty(min(len(query), _QUERIES), keys_t.shape[1])
    for start in range(0, len(query), _QUERIES):
        block = slice(start, start + _QUERIES)
        powers = torch.mm(query[block], keys_t, out=scores[: len(query) - start])
        torch.exp2(powers, out=powers)
        sums[block] = powers.sum(-1)
        torch.mm(powers, value, out=out[block])
    out.div_(sums[:, None])
    return bool(sums.min() > 1 / _MOST) and bool(sums.max() < _MOST)  # of what is not a number, neither holds


def _attend_by_softmax(query: Tensor, keys_t: Tensor, value: Tensor, out: Tensor) -> None:
    """The same with scores shifted by their maximum, which keeps weights of any scores in range."""
    for start in range(0, len(query), _QUERIES):
        block = slice(start, start + _QUERIES)
        scores = (query[block] @ keys_t).float() * math.log(2)
        torch.mm(torch.softmax(scores, -1).to(query.dtype), value, out=out[block])


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, D) → (B, heads, L, D / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, heads, L, width) → (B, L, heads * width)."""
    return torch.flatten(x.transpose(1, 2), -2)
