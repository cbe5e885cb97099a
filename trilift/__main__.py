"""``python -m trilift``: the same as the console script ``trilift``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
