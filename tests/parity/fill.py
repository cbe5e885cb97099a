"""Weights from a rule, so that parity can be shown without checkpoints, and how values are compared.

The reference values in this folder's tests come from the published models' own code, run on small copies whose every
tensor was filled from its key by `fill`. A line of such values is mean, population standard deviation, and the
flattened tensor's elements at 0, n // 3, n // 2 and n - 1.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]

_TOKENS = ("cls_token", "pos_embed", "position_embeddings", "register_tokens", "tokenizer.embeddings")
TOLERANCE = 5e-6
"""Relative to numbers above 1, absolute below. Ours differ from the references by rounding, 2e-6 at most. The promise
is 1e-4, but a wrong eps in the decoder's norms moves the planes by only 1e-5 and must be noticed."""


def fill_tensor(key: str, shape: Sequence[int]) -> Tensor:
    """The float32 tensor that the rule gives for a published name and shape."""
    r = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    if key.endswith(_TOKENS):
        r = 0.5 * r
    elif len(shape) == 1:
        r = 1 + 0.1 * r if key.endswith(("weight", "gamma")) else 0.1 * r
    else:
        r = r / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(r.astype(np.float32))


def fill(shapes: Shapes) -> dict[str, Tensor]:
    """A whole state dict by the rule."""
    return {key: fill_tensor(key, shape) for key, shape in shapes.items()}


def uniform(seed: int, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
    """Random float32 numbers as the reference runs drew them."""
    return torch.from_numpy(np.random.RandomState(seed).uniform(low, high, size=tuple(shape)).astype(np.float32))


def figures(tensor: Tensor) -> list[float]:
    """Mean, population standard deviation, and the elements at 0, n // 3, n // 2, n - 1 of the flattened tensor."""
    flat = tensor.detach().double().flatten()
    n = len(flat)
    picked = [flat[i].item() for i in (0, n // 3, n // 2, n - 1)]
    return [flat.mean().item(), flat.std(unbiased=False).item(), *picked]


def furthest(found: Tensor | Sequence[float], expected: Sequence[float]) -> float:
    """Largest difference between found and expected numbers, relative to the expected ones where these exceed 1."""
    a = torch.as_tensor(found, dtype=torch.float64).flatten()
    b = torch.as_tensor(list(expected), dtype=torch.float64)
    assert a.shape == b.shape, f"{tuple(a.shape)} numbers found, {tuple(b.shape)} expected"
    return ((a - b).abs() / b.abs().clamp(min=1)).max().item()


def with_endings(
    names: Sequence[str], weight: tuple[int, ...], bias: tuple[int, ...] | None
) -> dict[str, tuple[int, ...]]:
    """``name.weight`` of one shape and ``name.bias`` of another (or none) for each name; for tables of shapes."""
    table: dict[str, tuple[int, ...]] = {}
    for name in names:
        table[f"{name}.weight"] = weight
        if bias is not None:
            table[f"{name}.bias"] = bias
    return table
