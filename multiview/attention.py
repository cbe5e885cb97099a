"""One attention call for the whole project."""

from __future__ import annotations

import importlib
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import SettingsError

_kernel = "sdpa"


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
        (B, heads, L, width), differentiable in all three.
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
    return F.scaled_dot_product_attention(query, key, value)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, D) → (B, heads, L, D / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, heads, L, width) → (B, L, heads * width)."""
    return torch.flatten(x.transpose(1, 2), -2)
