"""Unwrap one mesh with xatlas: a program of its own, since xatlas cannot be interrupted and a process can be ended.

`lrm.unwrap` runs this file. It reads from stdin four int64 (vertices N, faces F, texels per side, and 1 where charts
are given, else 0), N x 3 float32, F x 3 uint32 and, where charts are given, N x 2 float32 places on them; given charts
are packed as they are, which takes tenths of a second where finding charts takes seconds. It writes three int64 (new
vertices M, width, height), the M old vertices uint32, F x 3 uint32 faces and M x 2 float32 places in texels, v up, and
nothing of this package is imported.
"""

from __future__ import annotations

import sys

import numpy as np
import xatlas

_PADDING = 3  # texels between charts


def main() -> None:
    """Read, unwrap, write."""
    data = sys.stdin.buffer.read()
    count, faces, size, given = (int(n) for n in np.frombuffer(data, np.int64, 4))
    vertices = np.frombuffer(data, np.float32, 3 * count, 32).reshape(count, 3)
    triangles = np.frombuffer(data, np.uint32, 3 * faces, 32 + 12 * count).reshape(faces, 3)
    atlas, charts, pack = xatlas.Atlas(), xatlas.ChartOptions(), xatlas.PackOptions()
    if given:
        places = np.frombuffer(data, np.float32, 2 * count, 32 + 12 * (count + faces)).reshape(count, 2)
        atlas.add_mesh(vertices, triangles, uvs=places)
        charts.use_input_mesh_uvs = True
    else:
        atlas.add_mesh(vertices, triangles)
    pack.resolution, pack.padding, pack.bilinear = size, _PADDING, True
    atlas.generate(charts, pack)
    width, height = atlas.width, atlas.height
    if atlas.atlas_count > 1:
        raise SystemExit(f"xatlas gave {atlas.atlas_count} pages")
    old, new_faces, uvs = atlas.get_mesh(0)
    places = np.asarray(uvs, np.float32) * np.array([width, height], np.float32)
    out = sys.stdout.buffer
    out.write(np.array([len(old), width, height], np.int64).tobytes())
    out.write(np.ascontiguousarray(old, np.uint32).tobytes())
    out.write(np.ascontiguousarray(new_faces, np.uint32).tobytes())
    out.write(np.ascontiguousarray(places, np.float32).tobytes())


if __name__ == "__main__":
    main()
