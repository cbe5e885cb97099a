"""Gaussian splats: what the file says, where they lie, and that they look like the field."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from lrm.field import FunctionField
from lrm.mesh import Mesh, extract_mesh
from lrm.meshfile import file_matrix
from lrm.metrics import psnr
from lrm.splats import SH_C0, Splats, splats_from_field, turned_to, write_splats
from lrm.volume import render
from multiview.cameras import orbit
from multiview.errors import MeshError, SettingsError
from tests.splat_raster import decoded, read_splats, render_splats

# What the loaders of 3D Gaussian Splatting look up by name; f_rest_* are absent at degree 0.
NAMES = {"x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"} | {
    f"rot_{k}" for k in range(4)
}


def painted_ball() -> FunctionField:
    """A hard ball of radius 0.6, of many colours, off the middle."""

    def density(p: torch.Tensor) -> torch.Tensor:
        return 300 * torch.sigmoid(400 * (0.6 - (p - torch.tensor([0.1, 0.0, 0.05])).norm(dim=-1)))

    def color(p: torch.Tensor) -> torch.Tensor:
        return torch.stack(
            [0.5 + 0.4 * torch.sin(6 * p[:, 2]), 0.5 + 0.4 * torch.sin(4 * p[:, 1]), p[:, 0] / 2 + 0.5], -1
        )

    return FunctionField(density, color, level=150.0)


def test_rendered_splats_look_like_the_field(tmp_path: Path) -> None:
    field = painted_ball()
    mesh = extract_mesh(field, mesh_resolution=48)
    matrix = file_matrix(mesh, scale=2.0)
    write_splats(splats_from_field(field, mesh, 12_000), tmp_path / "splats.ply", matrix)
    centers, covariances, opacities, colors = decoded(read_splats(tmp_path / "splats.ply"))
    # Back from the file (COLMAP axes, scaled) to the world.
    whole = torch.tensor(np.diag([1.0, -1.0, -1.0, 1.0]) @ matrix)
    back = torch.linalg.inv(whole)
    world = centers @ back[:3, :3].T + back[:3, 3]
    spread = back[:3, :3] @ covariances @ back[:3, :3].T
    camera = orbit(135, 25.0, 3.0, 40.0)
    # The field is sampled at pixel centres, splats are blurred by half a pixel: small pictures differ at their rims.
    true = render(field, camera, 144, 144, samples_per_ray=96).images.double()
    seen = render_splats(world, spread, opacities, colors, camera, 144)
    assert float(psnr(seen[None], true)[0]) > 27
    turned = render_splats(world, spread, opacities, colors, orbit(-135, 25.0, 3.0, 40.0), 144)
    assert float(psnr(turned[None], true)[0]) < 20, "the picture tells sides apart"


def test_file_has_the_names_axes_and_scales_of_the_layout(tmp_path: Path) -> None:
    # One splat at the world's front (+x), looking there; export frame: front +z; COLMAP: front -z.
    one = Splats(
        centers=np.float32([[0.5, 0, 0.25]]), normals=np.float32([[1, 0, 0]]), widths=np.float32([0.1]),
        colors=np.float32([[0.5, 1, 0]]),
    )  # fmt: skip
    box = Mesh(trimesh.creation.box((1, 1, 1)).vertices, trimesh.creation.box().faces, np.full((8, 3), 0.5))
    write_splats(one, tmp_path / "a.ply", file_matrix(box, scale=2.0))
    rows = read_splats(tmp_path / "a.ply")
    assert set(rows) >= NAMES and not any(name.startswith("f_rest") for name in rows)
    assert [float(rows[name][0]) for name in "xyz"] == pytest.approx([0, -0.5, -1.0])
    assert [float(rows[f"n{name}"][0]) for name in "xyz"] == pytest.approx([0, 0, -1])
    assert [float(rows[f"f_dc_{k}"][0]) for k in range(3)] == pytest.approx([0, 0.5 / SH_C0, -0.5 / SH_C0])
    assert float(rows["scale_0"][0]) == pytest.approx(np.log(0.2)) and float(rows["scale_2"][0]) == pytest.approx(
        np.log(0.02)
    )
    assert 1 / (1 + np.exp(-float(rows["opacity"][0]))) == pytest.approx(0.98)
    trimesh_cloud = trimesh.load(tmp_path / "a.ply")
    assert np.asarray(trimesh_cloud.vertices) == pytest.approx(np.array([[0, -0.5, -1.0]])), "another library opens it"


@pytest.mark.parametrize("normal", [(0, 0, 1), (0, 0, -1), (1, 0, 0), (0.6, 0, -0.8), (-0.48, 0.6, 0.64)])
def test_quaternions_turn_z_to_the_normal(normal: tuple[float, ...]) -> None:
    (quaternion,) = turned_to(np.array([normal]))
    w, x, y, z = quaternion
    turned = [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)]
    assert turned == pytest.approx(normal, abs=1e-9) and np.linalg.norm(quaternion) == pytest.approx(1)


def test_splats_spread_evenly_and_by_the_seed() -> None:
    box = trimesh.creation.box((1, 1, 1))
    mesh = Mesh(box.vertices, box.faces, np.full((8, 3), 0.5))
    field = FunctionField(lambda p: torch.zeros(len(p)), lambda p: torch.full((len(p), 3), 0.25))
    splats = splats_from_field(field, mesh, 1200)
    on_top = (splats.centers[:, 2] > 0.4999).sum()
    assert abs(int(on_top) - 200) <= 2, "a sixth of them on each side"
    assert splats.colors == pytest.approx(np.full((1200, 3), 0.25))
    assert np.array_equal(splats.centers, splats_from_field(field, mesh, 1200).centers)
    assert not np.array_equal(splats.centers, splats_from_field(field, mesh, 1200, seed=1).centers)


def test_splats_refuse_nothing() -> None:
    field = FunctionField(lambda p: torch.zeros(len(p)), lambda p: torch.zeros(len(p), 3))
    flat = Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]]), np.zeros((3, 3)))
    with pytest.raises(SettingsError, match="splats=0"):
        splats_from_field(field, flat, 0)
    with pytest.raises(MeshError, match="no surface"):
        splats_from_field(field, flat, 10)
