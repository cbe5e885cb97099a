"""``python -m benchmarks category OBJECTS --packed DATA -o OUT``: what fine-tuning on a category of one's own gains.

A base is trained that never saw one category. It is tuned on 200 objects of it, once alone and once with rehearsal of
the base's data, and judged by `trilift eval` on the category's other objects and on validation objects of all other
categories. Differences are paired, object by object, with 95 % bootstrap intervals. Every stage is a command that a
user could type, printed before it runs; what is finished in OUT is not done again.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrm.metrics import bootstrap_intervals
from multiview.errors import SettingsError
from multiview.files import write_json_whole, written_whole

TUNED = ("tuned", "rehearsed")
_SEED = 0


def split_category(manifest: Path, category: str, count: int) -> dict[str, list[str]]:
    """Names of a category's training objects: ``tune`` (``count`` of them, at random) and ``test`` (all others).

    Args:
        manifest: CSV with columns id, category, split.
        category: of its column.
        count: of objects to tune on.

    Raises:
        SettingsError: fewer than 40 objects would be left to test on.
    """
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = sorted(row["id"] for row in rows if row["category"] == category and row["split"] == "train")
    if len(found) < count + 40:
        raise SettingsError(f"{manifest}: {category} has {len(found)} objects, expected {count} + 40 or more.")
    shuffled = random.Random(_SEED).sample(found, len(found))
    others = sorted(row["id"] for row in rows if row["category"] != category and row["split"] == "val")
    return {"all": found, "tune": sorted(shuffled[:count]), "test": sorted(shuffled[count:]), "others": others}


class Stages:
    """Runs commands one after the other; the seconds of each are kept in ``OUT/seconds.json``."""

    def __init__(self, out: Path) -> None:
        self.out, self.file = out, out / "seconds.json"
        self.seconds: dict[str, float] = json.loads(self.file.read_text("utf-8")) if self.file.exists() else {}

    def run(self, name: str, module: str, *words: str | Path) -> None:
        """Run ``python -m module words`` unless stage ``name`` is finished.

        `trilift eval` ends with status 1 when some object has no answer, which counts as nothing; that is no failure.

        Raises:
            subprocess.CalledProcessError: the command failed.
        """
        if name in self.seconds:
            return
        command = [sys.executable, "-m", module, *(str(word) for word in words)]
        print("$ python " + shlex.join(command[1:]), flush=True)
        start = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.DEVNULL)
        if done.returncode != (1 if module == "trilift" and done.returncode == 1 else 0):
            done.check_returncode()
        self.seconds[name] = round(time.perf_counter() - start, 1)
        write_json_whole(self.file, self.seconds)


def linked(names: Sequence[str], meshes: Path, folder: Path) -> Path:
    """A folder of links to the GLBs of some objects, wherever they lie below ``meshes``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        link = folder / f"{name}.glb"
        if not link.is_symlink():
            link.symlink_to(next(meshes.glob(f"*/{name}.glb")).resolve())
    return folder


def scores(folder: Path) -> dict[str, float]:
    """IoU of ours by object, of a finished `trilift eval`."""
    rows = json.loads((folder / "metrics.json").read_text("utf-8"))["objects"]
    return {row["id"]: float(row["ours"]["iou"]) for row in rows}


def paired(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """Means before and after, their difference, and its 95 % interval over the objects that both have."""
    names = sorted(before.keys() & after.keys())
    table = np.array([[after[name] - before[name]] for name in names])
    low, high = bootstrap_intervals(table)[0]
    return {
        "objects": len(names),
        "before": round(float(np.mean([before[name] for name in names])), 4),
        "after": round(float(np.mean([after[name] for name in names])), 4),
        "gain": round(float(table.mean()), 4),
        "interval_95": [round(float(low), 4), round(float(high), 4)],
    }


def prepare(stages: Stages, packed: Sequence[Path], split: dict[str, list[str]]) -> tuple[list[Path], list[Path]]:
    """Parts every packed folder into the base's data, which lacks the category, and that of the objects to tune on."""
    out = stages.out
    for name in ("all", "tune"):
        with written_whole(out / f"{name}.txt") as aside:
            aside.write_text("\n".join(split[name]) + "\n", "utf-8")
    base, tune = [], []
    for data in packed:
        base.append(out / f"{data.name}-without")
        tune.append(out / f"{data.name}-tune")
        stages.run(base[-1].name, "train.subset", data, "-o", base[-1], "--names", out / "all.txt", "--without")
        stages.run(tune[-1].name, "train.subset", data, "-o", tune[-1], "--names", out / "tune.txt")
    return base, tune


def train(stages: Stages, folders: tuple[list[Path], list[Path]], args: argparse.Namespace) -> None:
    """The base, then the fine-tunes of it."""
    out = stages.out
    base, tune = (",".join(str(folder) for folder in part) for part in folders)
    share = ",".join("1" for _ in folders[0])
    stages.run(
        "base", "train.lrm", "--config", "train/recipes/tiny.yaml", "-o", out / "base", f"data=[{base}]",
        f"data_weights=[{share}]", f"val='{args.val}'", *args.base,
    )  # fmt: skip
    tuned = ["train.lrm", "--config", "train/recipes/tiny-finetune.yaml", "-o"]
    words = [
        f"data=[{tune}]",
        f"data_weights=[{share}]",
        f"init={out / 'base' / 'model'}",
        f"val='{args.val}'",
        *args.tune,
    ]
    extra = {"tuned": (), "rehearsed": (f"rehearsal=[{base}]",)}
    for name in args.models:
        stages.run(name, *tuned, out / name, *words, *extra[name])


def judge(stages: Stages, meshes: Path, split: dict[str, list[str]], models: Sequence[str]) -> dict[str, Any]:
    """`trilift eval` of the base and its fine-tunes on both sets, and the paired differences."""
    found: dict[str, Any] = {}
    for part in ("test", "others"):
        folder = linked(split[part], meshes, stages.out / part)
        marks = {}
        for model in ("base", *models):
            place = stages.out / f"eval-{part}-{model}"
            stages.run(
                place.name, "trilift", "eval", folder, "-o", place, "--model", stages.out / model / "model",
                "--answers", "ours", "--quiet",
            )  # fmt: skip
            marks[model] = scores(place)
        found |= {f"{part} {model}": paired(marks["base"], marks[model]) for model in models}
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks category", description=__doc__)
    parser.add_argument("objects", type=Path, help="folder with manifest.csv, train/ and val/")
    parser.add_argument(
        "--packed", type=Path, nargs="+", required=True, help="folders of train.prepare; the first plain"
    )
    parser.add_argument("--val", default="", help="packed validation objects, for the gauge alone")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--category", default="furniture")
    parser.add_argument("--count", type=int, default=200, help="objects to tune on (default %(default)s)")
    parser.add_argument("--base", nargs="*", default=["steps=900", "rendered_share=0.2"], metavar="K=V")
    parser.add_argument("--tune", nargs="*", default=["steps=600"], metavar="K=V")
    parser.add_argument("--models", nargs="+", choices=TUNED, default=TUNED, help="which fine-tunes (default both)")
    args = parser.parse_args(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    split = split_category(args.objects / "manifest.csv", args.category, args.count)
    stages = Stages(args.out)
    train(stages, prepare(stages, args.packed, split), args)
    found = judge(stages, args.objects, split, args.models)
    write_json_whole(args.out / "category.json", {"category": args.category, "seconds": stages.seconds, **found})
    for name, row in found.items():
        low, high = row["interval_95"]
        print(f"{name:18} {row['before']:.3f} -> {row['after']:.3f}  {row['gain']:+.3f} [{low:+.3f}, {high:+.3f}]"
              f"  {row['objects']} objects")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
