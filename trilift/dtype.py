"""Which number format a published network's matrices get here, and why."""

from __future__ import annotations

import functools
import time

import torch

from lrm.blocks import BlockConfig, DecoderBlock, use_dtype
from multiview.devices import on_accelerator, pick_dtype, synchronize

# bf16 must be so many times as fast as fp32 to be taken, so that a noisy clock does not change the numbers of a run.
_WORTH_IT = 1.3
_PROBE_TOKENS = 128


def choose_dtype(name: str, device: torch.device, width: int, heads: int, context: int) -> tuple[torch.dtype, str]:
    """The number format for the matrices of a published network, and a sentence on why.

    ``auto`` is bf16 where one decoder block of these sizes runs at least 1.3 times as fast in it on ``device``, else
    fp32; measured once in a process.

    Raises:
        SettingsError: an unknown name, or fp16 on the CPU.
    """
    chosen = pick_dtype(name, device)
    if name != "auto":
        return chosen, why_dtype(name, chosen)
    if bf16_is_faster(str(device), width, heads, context):
        return torch.bfloat16, "auto: one decoder block runs faster in bf16 on this device"
    return torch.float32, "auto: one decoder block does not run faster in bf16 on this device"


def why_dtype(name: str, chosen: torch.dtype) -> str:
    """Why ``--dtype name`` became ``chosen`` where nothing was measured."""
    return "asked for" if name != "auto" else f"auto: {str(chosen).removeprefix('torch.')} is usual on this device"


@functools.cache
def bf16_is_faster(device: str, width: int, heads: int, context: int) -> bool:
    """Time one decoder block in fp32 and in bf16; see `choose_dtype`."""
    try:
        fp32, bf16 = (_block_seconds(dtype, device, width, heads, context) for dtype in (torch.float32, torch.bfloat16))
    except (RuntimeError, TypeError):  # a device without bf16
        return False
    return fp32 > _WORTH_IT * bf16


@torch.no_grad()
def _block_seconds(dtype: torch.dtype, device: str, width: int, heads: int, context: int) -> float:
    """The shorter of two runs of a decoder block over a few tokens, after one to warm up.

    On the CPU the clock counts the seconds of this process alone, so that other programs do not change the choice.
    """
    clock = time.perf_counter if on_accelerator(torch.device(device)) else time.process_time
    with torch.device("meta"):
        block = use_dtype(DecoderBlock(BlockConfig(width, heads, context, 1e-6)), dtype)
    block = block.to_empty(device=device)
    for parameter in block.parameters():
        parameter.fill_(0.01)
    tokens = torch.full((1, _PROBE_TOKENS, width), 0.5, device=device)
    image_tokens = torch.full((1, _PROBE_TOKENS, context), 0.5, device=device)
    seconds = []
    for _ in range(3):
        start = clock()
        block(tokens, image_tokens)
        synchronize(torch.device(device))
        seconds.append(clock() - start)
    return min(seconds[1:])
