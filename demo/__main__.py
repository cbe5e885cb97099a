"""``python -m demo``: the page without the command line; a wheel has it as ``python -m trilift_demo``."""

from __future__ import annotations

import sys

from trilift import TriliftError

from .app import main

if __name__ == "__main__":
    try:
        sys.exit(main())
    except TriliftError as error:
        sys.exit(f"trilift: {error}")
