"""``python -m train.lrm --config train/recipes/tiny.yaml``: train or fine-tune a reconstruction model.

The recipe's ``family`` says which: none for the embedded model, ``triposr``, ``openlrm`` or ``instantmesh``. The same
command runs on the CPU and on GPUs (``accelerate launch -m train.lrm ...``). It writes into the run folder:
``config.json`` first, ``log.jsonl`` as it goes (the same in ``tensorboard/`` where TensorBoard is installed),
``previews/`` of unseen objects, ``checkpoint.pt`` to resume from, and ``model/``, which `trilift lift --model` and
``ImageTo3D.from_pretrained`` read. Started again, it goes on where the last checkpoint was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .config import read_config, recipe_values, run_command
from .tiny import LossWeights, TrainConfig, Trainer, losses, rendered_loss, told_projections, val_iou
from .trainer import BaseTrainer, start

__all__ = [
    "LossWeights", "TrainConfig", "Trainer", "losses", "main", "read_recipe", "rendered_loss", "told_projections",
    "val_iou",
]  # fmt: skip


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a recipe of the embedded model; ``overrides`` are ``key=value`` or ``part.key=value`` with YAML values.

    Raises:
        SettingsError: not YAML, an override without ``=``, or a value out of range.
        WeightsError: an unknown key or a value of a wrong type.
    """
    return read_config(TrainConfig, path, overrides)


def make_trainer(path: str | Path, overrides: Sequence[str], out: Path) -> BaseTrainer[Any, Any]:
    """The trainer that a recipe asks for; see `read_recipe` for what it raises."""
    if recipe_values(path, overrides).get("family", "tiny") == "tiny":
        return Trainer(read_recipe(path, [word for word in overrides if word != "family=tiny"]), out)
    from .finetune import FinetuneConfig, FinetuneTrainer

    return FinetuneTrainer(read_config(FinetuneConfig, path, overrides), out)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.lrm", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML recipe")
    parser.add_argument("-o", "--out", required=True, type=Path, help="run folder; resumes when it has a checkpoint")
    parser.add_argument("overrides", nargs="*", help="key=value, e.g. steps=100 network.width=64")
    args = parser.parse_args(argv)
    start(make_trainer(args.config, args.overrides, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
