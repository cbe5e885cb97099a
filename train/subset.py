"""``python -m train.subset DATA -o OUT --names FILE``: some objects of packed data, or all but these, in a folder.

For what needs objects that training never saw: a category held out, a smaller set to try a recipe on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from multiview.errors import SettingsError
from multiview.files import write_json_whole

from .batches import PackedData
from .config import run_command

_ROWS = 16  # copied at a time: bounded memory, whatever an object weighs


def subset(data: str | Path, out: str | Path, names: Sequence[str], *, without: bool = False) -> list[str]:
    """Copy the rows of some objects of packed data.

    Args:
        data: a folder of ``train.prepare``.
        out: made; must not hold packed data yet.
        names: of objects, as ``objects.json`` has them.
        without: take all others in place of these.

    Returns:
        The names of the objects in ``out``, in the order of ``data``.

    Raises:
        SettingsError: ``data`` is not packed data, names that it does not have, nothing left, or ``out`` is taken.
    """
    data, out = Path(data), Path(out)
    source = PackedData(data)
    record: dict[str, Any] = json.loads((data / "objects.json").read_text("utf-8"))
    there: list[str] = record["names"]
    unknown = sorted(set(names) - set(there))
    if unknown and not without:
        raise SettingsError(
            f"{data}: holds {len(there)} objects, but not {', '.join(unknown[:3])}"
            f"{f' and {len(unknown) - 3} more' if len(unknown) > 3 else ''}. Names are those of its objects.json."
        )
    rows = [row for row, name in enumerate(there) if (name in set(names)) != without]
    if not rows:
        raise SettingsError(f"{data}: none of its {len(there)} objects would be left.")
    if (out / "objects.json").exists():
        raise SettingsError(f"{out}: holds packed data already. Choose another with -o.")
    out.mkdir(parents=True, exist_ok=True)
    for name, array in source.arrays.items():
        copied = open_memmap(out / f"{name}.npy", mode="w+", dtype=array.dtype, shape=(len(rows), *array.shape[1:]))
        for first in range(0, len(rows), _ROWS):
            copied[first : first + _ROWS] = np.stack([array[row] for row in rows[first : first + _ROWS]])
        copied.flush()
    kept = [there[row] for row in rows]
    write_json_whole(out / "skipped.json", {})
    write_json_whole(out / "objects.json", {**record, "names": kept})  # last: without it the folder is not finished
    return kept


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status.

    Raises:
        SettingsError: see `subset`.
    """
    parser = argparse.ArgumentParser(prog="python -m train.subset", description=__doc__)
    parser.add_argument("data", type=Path, help="folder of train.prepare")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--names", type=Path, required=True, help="text file, one object's name a line")
    parser.add_argument("--without", action="store_true", help="all objects but these")
    args = parser.parse_args(argv)
    try:
        names = args.names.read_text("utf-8").split()
    except (OSError, ValueError) as error:
        raise SettingsError(f"{args.names}: cannot be read as a list of names ({error}).") from error
    kept = subset(args.data, args.out, names, without=args.without)
    print(json.dumps({"objects": len(kept), "out": str(args.out)}))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
