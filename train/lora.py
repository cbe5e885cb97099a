"""``python -m train.lora ADAPTER -o FOLDER`` merges a saved adapter with the model that it was trained on."""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrm.lora import load_adapter, merge_lora, read_adapter_config
from multiview.devices import DTYPES
from multiview.errors import SettingsError

from .bases import load_base


def merge_folder(adapter: Path, out: Path, base: str = "", dtype: str = "fp32") -> str:
    """Merge a saved adapter with its base model and write the folder that inference loads.

    Args:
        adapter: folder of `save_adapter`.
        out: model folder to write.
        base: model in place of the one that the adapter names.
        dtype: of the numbers in the file: ``fp32``, ``bf16`` or ``fp16``.

    Returns:
        The base model's name.

    Raises:
        WeightsError: the adapter or its base cannot be loaded, or they do not fit.
        OutputError: ``out`` cannot be written.
    """
    name = base or read_adapter_config(adapter)[1]
    if not name:
        raise SettingsError(f"{adapter}: does not say which model it was trained on. Give --base.")
    if is_view_generator(name):
        from .viewtuning import load_view_base

        model, origin = load_view_base(name)
        # Their adapters sit on the UNet, whose numbers may lie in a mapped file.
        carrier: Any = copy.deepcopy(model.network.unet)
        model.network.unet, save = carrier, model.save_pretrained
    else:
        model, origin = load_base(name)
        carrier, save = model.network, model.save
    load_adapter(carrier, adapter)
    merge_lora(carrier)
    save(out, {**origin, "name": out.name, "adapter": str(adapter)}, DTYPES[dtype])
    return name


def is_view_generator(name: str) -> bool:
    """Whether a base makes views, and so is loaded otherwise."""
    from trilift.generators import is_generator

    return is_generator(name)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.lora", description="Merge an adapter with its base model.")
    parser.add_argument("adapter", type=Path, help="folder with adapter_model.safetensors and adapter_config.json")
    parser.add_argument("-o", "--out", required=True, type=Path, help="model folder to write")
    parser.add_argument("--base", default="", help="in place of the model that the adapter names")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="in the file")
    args = parser.parse_args(argv)
    name = merge_folder(args.adapter, args.out, args.base, args.dtype)
    option = "--views" if is_view_generator(str(args.out)) else "--model"
    print(f"{args.out}: {name} with {args.adapter}; trilift lift photo.png {option} {args.out}")
    return 0


if __name__ == "__main__":
    from .config import run_command

    sys.exit(run_command(main))
