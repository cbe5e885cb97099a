"""``python -m train.multiview --config RECIPE -o RUN``: train or fine-tune a view generator.

The recipe's ``family`` says which: none for the embedded one, ``zero123`` (Zero123, Zero123-XL and Stable Zero123) or
``syncdreamer``. The same command runs on the CPU and on GPUs (``accelerate launch -m train.multiview ...``). The run
folder is that of ``train.lrm``: ``config.json``, ``log.jsonl``, ``checkpoint.pt`` to resume from, ``previews/`` (views
that it draws beside the true ones), and ``model/``, which `trilift views --views` and `trilift lift --views` read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .config import read_config, recipe_values, run_command
from .tinyviews import (
    RingData,
    ViewsTrainConfig,
    ViewsTrainer,
    gradient_energy,
    read_views_recipe,
    validate,
    view_scores,
    views_loss,
    write_preview,
)
from .trainer import BaseTrainer, start

__all__ = [
    "RingData", "ViewsTrainConfig", "ViewsTrainer", "gradient_energy", "main", "read_views_recipe", "validate",
    "view_scores", "views_loss", "write_preview",
]  # fmt: skip
_EMBEDDED = "tiny-views"


def make_trainer(path: str | Path, overrides: Sequence[str], out: Path) -> BaseTrainer[Any, Any]:
    """The trainer that a recipe asks for.

    Raises:
        SettingsError: not YAML, an override without ``=``, a value out of range, or data that does not go with the
            family.
        WeightsError: an unknown key, a value of a wrong type, or weights that cannot be loaded.
    """
    values = recipe_values(path, overrides)
    if values.get("family", _EMBEDDED) == _EMBEDDED:
        return ViewsTrainer(read_views_recipe(path, overrides), out)
    from .viewtuning import TUNERS, ViewTuneConfig

    config = read_config(ViewTuneConfig, path, overrides)
    return TUNERS[config.family](config, out)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.multiview", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML recipe")
    parser.add_argument("-o", "--out", required=True, type=Path, help="run folder; resumes when it has a checkpoint")
    parser.add_argument("overrides", nargs="*", help="key=value, e.g. steps=100 network.blocks=2")
    args = parser.parse_args(argv)
    start(make_trainer(args.config, args.overrides, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
