"""``python -m benchmarks NAME [options]``: run one of the benchmarks, or list them."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import benchmarks


def names() -> list[str]:
    """The benchmarks: modules of this folder that have a ``main``, by name."""
    found = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if not m.name.startswith("_"))
    return [n for n in found if hasattr(importlib.import_module(f"benchmarks.{n}"), "main")]


def main(arguments: list[str]) -> int:
    """Run the benchmark named first with the other arguments; gives the exit status."""
    known = names()
    if not arguments or arguments[0] not in known:
        print(f"usage: python -m benchmarks {{{','.join(known)}}} [options]", file=sys.stderr)
        return 2
    return int(importlib.import_module(f"benchmarks.{arguments[0]}").main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
