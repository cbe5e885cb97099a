"""``python -m benchmarks memory``: peak memory by model, measured where it can be and counted where weights are large.

The embedded model's lifts run in processes of their own, whose memory is looked at every 50 ms: all that is resident,
and what of it is the process's own. Of the published networks every tensor that is alive is counted, operation by
operation, on tensors without memory: what a network keeps beside its weights. `trilift.memory` plans by these figures.
"""

from __future__ import annotations

import argparse
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multiview.files import write_json_whole

from .everything import Row, _in_child, network_inputs, published_network

_MIB = 1 << 20
PUBLISHED = ("triposr", "openlrm", "instantmesh")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are alive at once, but for those of ``known``; ``most`` is the peak."""

    def __init__(self, known: nn.Module) -> None:
        super().__init__()
        self._known = {x.untyped_storage()._cdata for x in (*known.parameters(), *known.buffers())}
        self._alive: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and note what it made."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if (key := storage._cdata) not in self._alive and key not in self._known:
                    self._alive[key] = storage.nbytes()
                    weakref.finalize(storage, self._alive.pop, key, None)
        self.most = max(self.most, sum(self._alive.values()))
        return out


def working_bytes(make: Callable[[], nn.Module], inputs: Callable[[Any], tuple[Tensor, ...]]) -> int:
    """The most bytes alive at once while a network works, beside its weights; no memory is taken for them here."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        network: Any = make()
        given = inputs(network.config)
        with LiveBytes(network) as live:
            network(*given)
        return live.most


def peaks(quick: bool) -> Row:
    """Measured peaks of the embedded model by resolution, counted ones of the published networks."""
    measured = []
    for resolution in (48,) if quick else (128, 256, 512):
        row = _in_child(f"lift:ours:{resolution}:{time.time()}")
        largest = max(row["stages"].values(), key=lambda stage: stage["anonymous_mib"])
        measured.append(
            {"resolution": resolution, "peak_mib": row["peak_mib"], "own_mib": row["own_mib"], "in": largest["stage"]}
        )
    return {"tiny": measured, **{name: _counted(name, quick) for name in PUBLISHED}}


def _counted(name: str, quick: bool) -> Row:
    """Weights in fp32 and bf16, and what the network keeps beside them, in MiB."""
    with torch.device("meta"):
        weights = sum(p.numel() for p in published_network(name, quick).parameters())
    working = working_bytes(lambda: published_network(name, quick), lambda config: network_inputs(name, config))
    return {
        "weights_fp32_mib": 4 * weights / _MIB,
        "weights_bf16_mib": 2 * weights / _MIB,
        "working_mib": working / _MIB,
    }


def table(found: Row) -> str:
    """`peaks` as text."""
    lines = [
        f"  tiny at {row['resolution']:4d} samples per axis: {row['own_mib']:.0f} MiB of its own, most in "
        f"{row['in']}; {row['peak_mib']:.0f} resident"
        for row in found["tiny"]
    ]
    for name in PUBLISHED:
        row = found[name]
        lines.append(
            f"  {name:12} weights {row['weights_fp32_mib']:.0f} MiB in fp32 (mapped from their file on the CPU), "
            f"{row['weights_bf16_mib']:.0f} in bf16; the network keeps {row['working_mib']:.0f} beside them"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks memory", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one layer, one small lift")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    options = parser.parse_args(arguments)
    found = peaks(options.quick)
    print(table(found))
    if options.json is not None:
        write_json_whole(options.json, found)
    return 0
