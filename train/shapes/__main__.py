"""``python -m train.shapes FAMILY -o MESHES --count 40``: procedural objects as GLB files, to try things on."""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lrm.mesh import Mesh
from lrm.meshfile import write_mesh
from multiview.errors import SettingsError

from ..config import run_command
from . import FAMILIES, make_object


def write_family(family: str, out: str | Path, count: int, seed: int = 0) -> list[Path]:
    """Write objects of one family, no two alike; the same arguments give the same files.

    Args:
        family: of `FAMILIES`.
        out: folder, made when missing.
        count: at least 1.
        seed: another one gives other objects.

    Returns:
        The files, ``FAMILY-000.glb`` and on.

    Raises:
        SettingsError: no such family, or a count below 1.
    """
    if family not in FAMILIES or count < 1:
        raise SettingsError(
            f"{count} of {family!r}: expected at least 1 object of one of {', '.join(sorted(FAMILIES))}."
        )
    out, files = Path(out), []
    out.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        shape = make_object(family, np.random.default_rng([zlib.crc32(family.encode()), seed, number]))
        mesh = Mesh(shape.vertices, shape.faces, shape.colors / np.float32(255))
        files.append(out / f"{family}-{number:03d}.glb")
        write_mesh(mesh, files[-1])
    return files


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status.

    Raises:
        SettingsError: see `write_family`.
    """
    parser = argparse.ArgumentParser(prog="python -m train.shapes", description=__doc__)
    parser.add_argument("family", help=f"of {', '.join(sorted(FAMILIES))}")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=40, help="(default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default %(default)s)")
    args = parser.parse_args(argv)
    print(f"{len(write_family(args.family, args.out, args.count, args.seed))} files in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
