"""``python -m benchmarks [NAME] [options]``: run one of the benchmarks, or without a name (or ``all``) every figure."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import benchmarks


def names() -> list[str]:
    """The benchmarks: modules of this folder that have a ``main``, by name.

    Told by their text, so that one of them runs where another's libraries are not installed.
    """
    here = Path(benchmarks.__file__).parent
    return sorted(p.stem for p in here.glob("[!_]*.py") if "\ndef main(" in p.read_text("utf-8"))


def main(arguments: list[str]) -> int:
    """Run the benchmark named first with the other arguments, or `benchmarks.everything`; gives the exit status."""
    if not arguments or arguments[0] == "all" or arguments[0].startswith("-"):
        arguments = ["everything", *arguments[arguments[:1] == ["all"] :]]
    known = names()
    if arguments[0] not in known:
        print(f"usage: python -m benchmarks [{{all,{','.join(known)}}}] [options]", file=sys.stderr)
        return 2
    return int(importlib.import_module(f"benchmarks.{arguments[0]}").main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
