"""One attention call for the whole project."""

from __future__ import annotations

import importlib
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import SettingsError

_kernel = "sdpa"
_QUERIES = 512  # of one block on the CPU: with a few thousand keys its scores stay in the processor's cache


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

    The fused CPU kernel works on fp32 copies there and takes 2 to 3 times as long. Scores are bf16, their softmax is
    worked out in fp32. Adding one vector to all keys adds one number to all scores of a query, which softmax does not
    see; so the keys' mean is taken off, because networks often have a large one, and it would cost scores their digits.
    """
    batch, heads, length, width = query.shape
    # Laid out as (B, L, heads, width), so that joining the heads copies nothing.
    out = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
    for item in range(batch):
        for head in range(heads):
            q, k = query[item, head] * width**-0.5, key[item, head].float()
            k_transposed = (k - k.mean(0)).to(query.dtype).t()
            v = value[item, head].contiguous()
            for start in range(0, length, _QUERIES):
                block = slice(start, start + _QUERIES)
                torch.mm(torch.softmax(q[block] @ k_transposed, -1), v, out=out[item, head, block])
    return out


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, D) → (B, heads, L, D / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, heads, L, width) → (B, L, heads * width)."""
    return torch.flatten(x.transpose(1, 2), -2)
