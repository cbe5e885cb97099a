"""Low-rank adapters on linear layers: put them into a network, read and write them, merge them.

An adapter folder has peft's two files, ``adapter_model.safetensors`` and ``adapter_config.json``, with peft's names.

Source: Hu et al. 2021 (arXiv 2106.09685), section 4.1. Written from the paper; peft is not needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from multiview.errors import SettingsError, WeightsError
from multiview.files import write_json_whole
from multiview.weights import read_safetensors, write_safetensors

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_FRONT = "base_model.model."  # what peft puts before every name


@dataclass(frozen=True)
class LoraConfig:
    """Where adapters go and how wide they are.

    Attributes:
        rank: inner width of the two matrices.
        alpha: their product counts alpha / rank.
        targets: last names of the linear layers that get one, such as ``query`` or ``to_out.0``; empty for those that a
            family names, its attention's.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()


class LoraLinear(nn.Module):
    """A linear layer with an adapter: base(x) + scale * B(A(x)); B starts at 0, so that nothing changes at first.

    Args:
        base: kept as it is.
        rank, alpha: see `LoraConfig`.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        like = {"device": base.weight.device, "dtype": torch.float32}
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, **like)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, **like)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    @property
    def weight(self) -> Tensor:
        """The base's: blocks ask for its dtype."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out), in the dtype of the base's answer."""
        made = self.base(x)
        added = self.lora_B(self.lora_A(x.to(self.lora_A.weight.dtype)))
        return made + (self.scale * added).to(made.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The base with the adapter added to its weight, in place."""
        product = self.lora_B.weight @ self.lora_A.weight
        self.base.weight += (self.scale * product).to(self.base.weight.dtype)
        return self.base


def adapters(network: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The adapters inside a network, by dotted name."""
    return ((name, module) for name, module in network.named_modules() if isinstance(module, LoraLinear))


def add_lora(network: nn.Module, config: LoraConfig) -> list[str]:
    """Put adapters into a network, freeze all else, and return the names of the layers that got one.

    Args:
        network: changed in place.
        config: which layers.

    Raises:
        SettingsError: no layer has such a name, or the rank is not positive.
    """
    if config.rank < 1:
        raise SettingsError(f"lora.rank={config.rank}: expected at least 1.")
    linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    chosen = [name for name in linear if f".{name}".endswith(tuple(f".{target}" for target in config.targets))]
    if not chosen:
        there = sorted({name.split(".")[-1] for name in linear if not name.split(".")[-1].isdigit()})
        raise SettingsError(
            f"lora.targets={list(config.targets)}: no linear layer has such a name. There are {', '.join(there)}."
        )
    network.requires_grad_(False)
    for name in chosen:
        _replace(network, name, LoraLinear(linear[name], config.rank, config.alpha))
    return chosen


def merge_lora(network: nn.Module) -> None:
    """Add every adapter to the layer that it sits on and take it out, in place."""
    for name, module in list(adapters(network)):
        _replace(network, name, module.merged())


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, module)


def save_adapter(folder: str | Path, network: nn.Module, config: LoraConfig, base: str) -> None:
    """Write a network's adapters with peft's names.

    Args:
        folder: made when missing.
        network: with adapters.
        config: they were made with.
        base: name or folder of the model that they sit on.

    Raises:
        OutputError: it cannot be written.
    """
    folder = Path(folder)
    state = {}
    for name, module in adapters(network):
        for part in ("lora_A", "lora_B"):
            state[f"{_FRONT}{name}.{part}.weight"] = getattr(module, part).weight
    write_safetensors(folder / ADAPTER_WEIGHTS, state)
    said = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": base, "r": config.rank,
        "lora_alpha": config.alpha, "lora_dropout": 0.0, "bias": "none", "target_modules": list(config.targets),
        "inference_mode": True,
    }  # fmt: skip
    write_json_whole(folder / ADAPTER_CONFIG, said)


def read_adapter_config(folder: str | Path) -> tuple[LoraConfig, str]:
    """What ``adapter_config.json`` says: the config and the base model's name.

    Raises:
        WeightsError: missing, damaged, or an adapter of another kind.
    """
    path = Path(folder) / ADAPTER_CONFIG
    try:
        said = json.loads(path.read_text("utf-8"))
        kind = said["peft_type"]
        config = LoraConfig(int(said["r"]), float(said["lora_alpha"]), tuple(map(str, said["target_modules"])))
        base = str(said["base_model_name_or_path"] or "")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path}: expected peft's adapter_config.json with r, lora_alpha and target_modules ({error!r})."
        ) from error
    if kind != "LORA":
        raise WeightsError(f"{path}: expected an adapter of kind LORA, found {kind!r}.")
    return config, base


def load_adapter(network: nn.Module, folder: str | Path) -> None:
    """Put a saved adapter into the network that it was trained on, strictly; `merge_lora` then makes it plain again.

    Raises:
        WeightsError: files are missing or damaged, or the tensors do not fit the network.
    """
    config, base = read_adapter_config(folder)
    path = Path(folder) / ADAPTER_WEIGHTS
    state = read_safetensors(path)
    try:
        add_lora(network, config)
    except SettingsError as error:
        raise WeightsError(f"{path}: does not fit this model ({error})") from error
    wanted = {
        f"{_FRONT}{name}.{part}.weight": getattr(module, part).weight
        for name, module in adapters(network)
        for part in ("lora_A", "lora_B")
    }
    wrong = sorted(
        (state.keys() ^ wanted.keys()) | {n for n in state.keys() & wanted.keys() if state[n].shape != wanted[n].shape}
    )
    if wrong:
        raise WeightsError(
            f"{path}: {len(wrong)} of {len(wanted)} tensors do not fit the model, first {wrong[0]}. The adapter was "
            f"trained on {base or 'another model'}."
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(state[name])
