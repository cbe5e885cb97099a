"""``python -m benchmarks machine``: how fast this machine multiplies matrices and copies memory.

These are the ceilings that other benchmarks set their figures against: so many operations cannot take less time than at
the rate of large products, so many bytes not less than at the rate of copies.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict, dataclass

import torch

from lrm.blocks import multiply_rows

from .triposr import product_rate

_COPIED = 1 << 26  # bytes, many times what caches hold


@dataclass(frozen=True)
class Machine:
    """What was measured, and where.

    Attributes:
        fp32, bf16: floating-point operations per second of large matrix products, by the fastest way that we know.
        copied: bytes per second read and written by a copy, each byte counted twice.
        cpus, threads: of the machine, and those that torch uses.
        torch, python: versions.
    """

    fp32: float
    bf16: float
    copied: float
    cpus: int
    threads: int
    torch: str
    python: str

    def floor_seconds(self, *, flop: float = 0.0, bytes_moved: float = 0.0, dtype: str = "fp32") -> float:
        """The least time for so many operations in a number format (``fp32`` or ``bf16``) and bytes read or written."""
        return flop / {"fp32": self.fp32, "bf16": self.bf16}[dtype] + bytes_moved / self.copied


def measure_machine(side: int = 2048, times: int = 8) -> Machine:
    """Measure it now; the best of ``times``, since other programs can only slow it down."""
    return Machine(
        fp32=max(product_rate(torch.float32, side, times), rows_rate(side, times)),
        bf16=product_rate(torch.bfloat16, side, times),
        copied=copy_rate(times), cpus=os.cpu_count() or 1, threads=torch.get_num_threads(),
        torch=torch.__version__, python=platform.python_version(),
    )  # fmt: skip


@torch.no_grad()
def rows_rate(side: int, times: int) -> float:
    """Operations per second of fp32 products by the faster of torch's two libraries, see `lrm.blocks.multiply_rows`."""
    a, b = (torch.randn(side, side, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    seconds = []
    for _ in range(times + 1):
        began = time.perf_counter()
        multiply_rows(a, b, None)
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds[1:])


def copy_rate(times: int = 8) -> float:
    """Bytes per second, read and written, of copies of 64 MiB."""
    source = torch.zeros(_COPIED, dtype=torch.uint8)
    target, seconds = torch.empty_like(source), []
    for _ in range(times + 1):
        began = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - began)
    return 2 * _COPIED / min(seconds[1:])


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks machine", description=__doc__.split("\n")[0])
    parser.parse_args(arguments)
    print(json.dumps(asdict(measure_machine()), indent=1))
    return 0
