"""``python -m benchmarks texture DATA``: what baked textures, projected photos and mirrors are worth, on true objects.

Each object of DATA (meshes, as `trilift eval` reads them) is photographed and lifted. Measured are, for each:

- ``vertex_db``, ``baked_db``: PSNR from 16 views against the field's own renders, of the whole mesh with colours at its
  vertices and of the decimated one with a texture baked from the field alone;
- ``source_field_db``, ``source_photo_db``: PSNR in the source view against the photo, inside the matte worn away by
  4 % of the picture's side, of the texture without and with the photo projected;
- ``hidden_field_db``, ``hidden_tone_db``, ``hidden_mirror_db``: colours on the side that the photo does not show,
  against the true object's nearest surface, as the field has them, with the photo's tone carried over, with mirrors;
- ``symmetric``: whether the true object, colours included, has an upright mirror plane;
- ``unwrap_seconds``, ``bake_seconds``: processor time, child processes included; ``bake`` is all that finishes the
  surface beside unwrapping: lining the photo up, tone, mirrors, and the colours of the texels.

``--symmetry`` measures the hidden side alone, of the first ten objects by name whose true mesh is ``symmetric`` and of
the first five that are clearly not (no upright plane within `_UNLIKE` of the longest side, whatever the colours), as
many of these as there are.

``--noise F`` also unwraps a ball of F faces with noise on it and tells the wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lrm.field import Field
from lrm.mesh import Mesh
from lrm.metrics import psnr
from lrm.raster import render_mesh
from lrm.symmetry import mirror_planes
from lrm.unwrap import unwrap
from lrm.volume import render
from multiview.cameras import Cameras, orbit
from train.protocol import EvalObject, EvalProtocol, find_objects, spread, true_mesh
from trilift import Asset, ImageTo3D
from trilift.shape import decimated, recolored
from trilift.texture import Pictures, SurfacePainter, TextureOptions, finished, photo_view

Floats = NDArray[np.floating[Any]]

_VIEWS, _SIDE, _SAMPLES = 16, 64, 64
_PHOTO_SIDE = 512
_WORN = 0.04  # of the picture's side
_TRUE_ERROR, _TRUE_DIFFERENCE = 0.006, 0.03  # up to which a true object is symmetric: shape, and colours
_UNLIKE = 0.03  # mean distance, of the longest side, beyond which no plane makes a true object symmetric
_SYMMETRIC, _ASYMMETRIC = 10, 5  # objects that --symmetry looks at
_SURFACE = 30_000  # points on a true object
_NORMAL_WEIGHT = 0.05  # longest sides that opposite directions count for when the nearest surface is looked for


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@torch.no_grad()
def around_db(meshes: Sequence[Mesh], field: Field) -> list[float]:
    """PSNR of meshes from 16 views against volume renders of their field, over white."""
    reach = float(np.linalg.norm(meshes[0].vertices, axis=1).max())
    azimuths, elevations = (
        [i * 360 / _VIEWS for i in range(_VIEWS)],
        [(-10.0, 10.0, 30.0, 50.0)[i % 4] for i in range(16)],
    )
    cameras = orbit(azimuths, elevations, 5 * reach, 25.0)
    truth = render(field, cameras, _SIDE, _SIDE, samples_per_ray=_SAMPLES).images.clamp(0, 1).cpu()
    return [float(psnr(render_mesh(mesh, cameras, _SIDE).composite(1.0), truth).mean()) for mesh in meshes]


def source_db(mesh: Mesh, rgba: torch.Tensor, camera: Cameras) -> float:
    """PSNR of a mesh in the source view against the photo, inside the worn matte and the mesh."""
    from scipy import ndimage

    side = rgba.shape[-1]
    seen = render_mesh(mesh, camera.to("cpu"), side)
    solid = ndimage.distance_transform_edt(np.pad(rgba[3].numpy() > 0.99, 1))[1:-1, 1:-1] > _WORN * side
    inside = torch.from_numpy(solid) & (seen.alpha[0, 0] > 0.99)
    error = (seen.images[0] - rgba[:3]).square().mean(0)[inside]
    return float(-10 * error.mean().clamp(min=1e-6).log10()) if len(error) else float("nan")


def surface_colors(mesh: Mesh, truth: Mesh) -> tuple[NDArray[np.float64], Floats]:
    """Which colour the true object has nearest to each vertex (N, 3), and their areas (N,), 0 where none is near.

    Boxes are laid over each other; places count as near when they look the same way.
    """
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(0)
    corners = truth.vertices[truth.faces].astype(np.float64)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(cross, axis=1)
    picked, shares = rng.choice(len(area), _SURFACE, p=area / area.sum()), rng.dirichlet([1, 1, 1], _SURFACE)
    points = np.einsum("nkc,nk->nc", corners[picked], shares)
    colors = np.einsum("nkc,nk->nc", truth.colors[truth.faces[picked]], shares)
    normals = (cross / np.maximum(area, 1e-12)[:, None])[picked]
    (low, high), (begin, end) = truth.bounds, mesh.bounds
    placed = (mesh.vertices - (begin + end) / 2) / (end - begin) * (high - low) + (low + high) / 2
    side = float((high - low).max())
    tree = cKDTree(np.c_[points / side, _NORMAL_WEIGHT * normals])
    # Sheets have one side in the file and two in the world.
    tries = [tree.query(np.c_[placed / side, sign * _NORMAL_WEIGHT * mesh.normals]) for sign in (1, -1)]
    distance = np.minimum(tries[0][0], tries[1][0])
    index = np.where(tries[0][0] <= tries[1][0], tries[0][1], tries[1][1])
    own = mesh.vertices[mesh.faces].astype(np.float64)
    own_area = np.linalg.norm(np.cross(own[:, 1] - own[:, 0], own[:, 2] - own[:, 0]), axis=1)
    mass = np.bincount(mesh.faces.reshape(-1), own_area.repeat(3), len(mesh.vertices))
    return colors[index], mass * (distance < 0.08)


def hidden_db(mesh: Mesh, pictures: Pictures, truth: Mesh) -> dict[str, float]:
    """PSNR of the colours that the photo does not show, as the field has them, with the tone, and with mirrors."""
    wanted, mass = surface_colors(mesh, truth)
    answers = {"field": mesh.colors}
    hidden = np.ones(len(mesh.vertices), np.bool_)
    for name, mirror in (("tone", False), ("mirror", True)):
        painter = SurfacePainter(mesh, pictures, mirror=mirror)
        layers = painter(mesh.vertices, mesh.normals, mesh.colors, painter.tone)
        answers[name] = layers.color
        if not mirror:
            hidden = layers.confidence <= 0.5
    weight = mass * hidden
    errors = {
        name: ((color - wanted) ** 2).mean(1) @ weight / max(weight.sum(), 1e-12) for name, color in answers.items()
    }
    return {f"hidden_{name}_db": float(-10 * np.log10(max(error, 1e-6))) for name, error in errors.items()}


def is_symmetric(truth: Mesh) -> bool:
    """Whether a true object has an upright mirror plane, colours included."""
    for plane in mirror_planes(truth, good=_TRUE_ERROR):
        turned = replace(truth, vertices=plane.mirrored(truth.vertices.astype(np.float64)), faces=truth.faces[:, ::-1])
        other, mass = surface_colors(truth, turned)
        if float(np.average(np.abs(other - truth.colors).mean(1), weights=np.maximum(mass, 1e-12))) < _TRUE_DIFFERENCE:
            return True
    return False


def symmetry_rows(
    pipe: ImageTo3D, objects: Mapping[str, Path], faces: int, resolution: int
) -> Iterator[dict[str, Any]]:
    """What mirrors are worth on the hidden side, for the objects that ``--symmetry`` names."""
    protocol, left = EvalProtocol(), {True: _SYMMETRIC, False: _ASYMMETRIC}
    for name, path in sorted(objects.items()):
        true = EvalObject.read(name, path)
        azimuth, elevation = protocol.viewpoint(name)
        truth = true_mesh(true.mesh, azimuth)
        symmetric = is_symmetric(truth)
        if not left[symmetric] or (not symmetric and mirror_planes(truth, good=_UNLIKE)):
            continue
        left[symmetric] -= 1
        asset = pipe(protocol.look(true.mesh, azimuth, elevation, _PHOTO_SIDE), resolution=resolution, project="off")
        mesh = recolored(decimated(asset.mesh, faces), asset.field)
        rgba = asset.cutout.to_tensor(len(asset.cutout.image))
        found = hidden_db(mesh, Pictures(photo_view(rgba, asset.camera)), truth)
        yield {"object": name, "symmetric": symmetric, **found}
        if not any(left.values()):
            return


def measure(asset: Asset, truth: Mesh, faces: int, size: int, *, around: bool) -> dict[str, Any]:
    """All figures of one lift."""
    field, threshold = asset.field, float(asset.record["extraction"]["threshold"])
    mesh = recolored(decimated(asset.mesh, faces), field)
    rgba = asset.cutout.to_tensor(len(asset.cutout.image))
    pictures = Pictures(photo_view(rgba, asset.camera))
    options = TextureOptions("baked", size)
    plain = finished(mesh, field, Pictures(), options, threshold=threshold)[0]
    began = cpu_seconds()
    unwrapped = unwrap(mesh, size)
    unwrapping = cpu_seconds() - began
    photographed = finished(mesh, field, pictures, replace(options, project=True), threshold=threshold)[0]
    row: dict[str, Any] = {"faces": len(mesh.faces), "way": unwrapped.way, "unwrap_seconds": unwrapping}
    row["bake_seconds"] = cpu_seconds() - began - 2 * unwrapping  # `finished` unwraps once more
    row["source_field_db"] = source_db(plain, rgba, asset.camera)
    row["source_photo_db"] = source_db(photographed, rgba, asset.camera)
    if around:
        row["vertex_db"], row["baked_db"] = around_db([asset.mesh, plain], field)
    return {**row, **hidden_db(mesh, pictures, truth), "symmetric": is_symmetric(truth)}


def noisy_ball(faces: int) -> Mesh:
    """A ball of about ``faces`` triangles whose vertices are off their places by more than an edge's length."""
    import trimesh

    rings = max(round((faces / 8) ** 0.5), 3)
    ball = trimesh.creation.uv_sphere(0.5, [rings, 2 * rings])
    noise = np.random.default_rng(0).normal(0, 2.0 / rings, ball.vertices.shape)
    return Mesh(ball.vertices + noise, ball.faces, np.full(ball.vertices.shape, 0.5))


def _told(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Means over rows, and the least and greatest gain on the hidden side."""
    if not rows:
        return {"what": name, "objects": 0}
    keys = [key for key, value in rows[0].items() if isinstance(value, float)]
    means = {key: round(float(np.nanmean([row[key] for row in rows])), 3) for key in keys}
    gains = [row["hidden_mirror_db"] - row["hidden_tone_db"] for row in rows]
    span = {"mirror_gain_least": round(min(gains), 3), "mirror_gain_most": round(max(gains), 3)}
    return {"what": name, "objects": len(rows), **means, **span}


def _tell_symmetry(pipe: ImageTo3D, objects: Mapping[str, Path], faces: int, resolution: int) -> int:
    """Print a row for each object of `symmetry_rows`, and how many gain and lose."""
    rows = []
    for row in symmetry_rows(pipe, objects, faces, resolution):
        row["gain_db"] = row["hidden_mirror_db"] - row["hidden_tone_db"]
        rows.append(row)
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
    for symmetric in (True, False):
        gains = np.array([row["gain_db"] for row in rows if row["symmetric"] == symmetric])
        if len(gains):
            told = {"mean": gains.mean(), "least": gains.min(), "most": gains.max()}
            counts = {"gain": int((gains > 0).sum()), "lose_over_0.05": int((gains < -0.05).sum())}
            about = {"symmetric": symmetric, "objects": len(gains), **counts}
            print(json.dumps({**about, **{k: round(float(v), 3) for k, v in told.items()}}), flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command ``python -m benchmarks texture``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks texture", description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of meshes")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--limit", type=int, default=10, help="objects, evenly spread (default %(default)s)")
    parser.add_argument("--faces", type=int, default=20_000, help="of the textured mesh (default %(default)s)")
    parser.add_argument("--size", type=int, default=1024, help="texels per side (default %(default)s)")
    parser.add_argument(
        "--resolution", type=int, default=160, help="samples per axis of the mesh (default %(default)s)"
    )
    parser.add_argument("--no-around", action="store_true", help="leave out the 16 views, which take longest")
    parser.add_argument("--symmetry", action="store_true", help="only what mirrors are worth on the hidden side")
    parser.add_argument("--noise", type=int, metavar="F", help="also unwrap a noisy ball of F faces")
    args = parser.parse_args(arguments)
    pipe, protocol, rows = ImageTo3D.from_pretrained(args.model), EvalProtocol(), []
    if args.symmetry:
        return _tell_symmetry(pipe, find_objects(args.data), args.faces, args.resolution)
    for name, path in spread(find_objects(args.data), args.limit).items():
        true = EvalObject.read(name, path)
        azimuth, elevation = protocol.viewpoint(name)
        asset = pipe(protocol.look(true.mesh, azimuth, elevation, _PHOTO_SIDE), resolution=args.resolution)
        row = measure(asset, true_mesh(true.mesh, azimuth), args.faces, args.size, around=not args.no_around)
        rows.append(row)
        print(
            json.dumps({"object": name, **{k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}}),
            flush=True,
        )
    for what, chosen in (
        ("all", rows),
        ("symmetric", [r for r in rows if r["symmetric"]]),
        ("other", [r for r in rows if not r["symmetric"]]),
    ):
        print(json.dumps(_told(chosen, what)), flush=True)
    if args.noise:
        ball = noisy_ball(args.noise)
        began, spent = time.perf_counter(), cpu_seconds()
        found = unwrap(ball, args.size)
        told = {"wall_seconds": round(time.perf_counter() - began, 2), "cpu_seconds": round(cpu_seconds() - spent, 2)}
        print(json.dumps({"noisy_faces": len(ball.faces), "way": found.way, "used": round(found.used, 3), **told}))
    return 0
