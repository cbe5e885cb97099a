"""Quads for one mesh by Instant Meshes: a program of its own, since the library writes its progress to stdout.

`lrm.remesh` runs this file with the names of an .npz to read (vertices float32 (N, 3), faces uint32 (F, 3), count) and
of one to write (vertices (M, 3), quads (Q, 4)); nothing of this package is imported.
"""

from __future__ import annotations

import sys

import numpy as np
import pynanoinstantmeshes


def main() -> None:
    """Read, remesh, write."""
    given = np.load(sys.argv[1])
    count = int(given["count"])
    vertices, quads = pynanoinstantmeshes.remesh(given["vertices"], given["faces"], count, 4, 4, deterministic=True)
    np.savez(sys.argv[2], vertices=np.asarray(vertices, np.float32), quads=np.asarray(quads, np.int64))


if __name__ == "__main__":
    main()
