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
from lrm.splats import SH_C0, Splats, softness, splats_from_field, turned_to, write_splats
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


def soft_ball() -> FunctionField:
    """The same ball as a network would see it: it becomes opaque over a quarter of its radius, with a haze around."""

    def density(p: torch.Tensor) -> torch.Tensor:
        away = 0.55 - (p - torch.tensor([0.1, 0.0, 0.05])).norm(dim=-1)
        return 25 * torch.sigmoid(25 * away)

    return FunctionField(density, painted_ball().color, level=6.0)


def seen_from(path: Path, matrix: np.ndarray, azimuth_deg: float, size: int) -> torch.Tensor:
    """(3, size, size) the splats of a file, drawn by the reference rasteriser from 25 degrees above."""
    centers, covariances, opacities, colors = decoded(read_splats(path))
    # Back from the file (COLMAP axes, scaled) to the world.
    back = torch.linalg.inv(torch.tensor(np.diag([1.0, -1.0, -1.0, 1.0]) @ matrix))
    world, spread = centers @ back[:3, :3].T + back[:3, 3], back[:3, :3] @ covariances @ back[:3, :3].T
    return render_splats(world, spread, opacities, colors, orbit(azimuth_deg, 25.0, 3.0, 40.0), size)


@pytest.mark.parametrize(
    ("field", "flatness", "least"), [(painted_ball(), 0.1, 27), (soft_ball(), 1.0, 30)], ids=["hard", "soft"]
)
def test_rendered_splats_look_like_the_field(
    tmp_path: Path, field: FunctionField, flatness: float, least: float
) -> None:
    mesh = extract_mesh(field, mesh_resolution=48)
    matrix = file_matrix(mesh, scale=2.0)
    splats = splats_from_field(field, mesh, 12_000)
    assert splats.flatness == flatness and 9_000 < len(splats.centers) <= 12_000
    write_splats(splats, tmp_path / "splats.ply", matrix)
    # The field is sampled at pixel centres, splats are blurred by half a pixel: small pictures differ at their rims.
    true = render(field, orbit(135, 25.0, 3.0, 40.0), 144, 144, samples_per_ray=96).images.double()
    assert float(psnr(seen_from(tmp_path / "splats.ply", matrix, 135, 144)[None], true)[0]) > least
    turned = seen_from(tmp_path / "splats.ply", matrix, -135, 144)
    assert float(psnr(turned[None], true)[0]) < 20, "the picture tells sides apart"


def test_discs_would_not_look_like_a_soft_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    field = soft_ball()
    mesh = extract_mesh(field, mesh_resolution=48)
    monkeypatch.setattr("lrm.splats._SOFT", 1.0)
    write_splats(splats_from_field(field, mesh, 12_000), tmp_path / "splats.ply", file_matrix(mesh))
    true = render(field, orbit(135, 25.0, 3.0, 40.0), 96, 96, samples_per_ray=64).images.double()
    assert float(psnr(seen_from(tmp_path / "splats.ply", file_matrix(mesh), 135, 96)[None], true)[0]) < 24


def test_softness_by_hand() -> None:
    # Density grows from 0 at the face x = 0.5 of a cube inward as k t: opacity 1 - exp(-k t^2 / 2).
    box = trimesh.creation.box((1, 1, 1)).subdivide().subdivide().subdivide()
    mesh = Mesh(box.vertices, box.faces, np.full((len(box.vertices), 3), 0.5))

    def depth(p: torch.Tensor) -> torch.Tensor:
        return (0.5 - p.abs().amax(-1)).clamp(min=0)

    def grey(p: torch.Tensor) -> torch.Tensor:
        return torch.full((len(p), 3), 0.5)

    k = 2000.0
    # Half is reached at t = sqrt(2 ln 2 / k); the two areas between are told by integrating the closed form.
    t = np.linspace(0, 0.12, 200_001)
    opacity = 1 - np.exp(-k * t**2 / 2)
    wanted = np.abs(opacity - (opacity > 0.5)).mean() * 0.12
    assert softness(FunctionField(lambda p: k * depth(p), grey), mesh) == pytest.approx(wanted, rel=0.1)
    assert softness(FunctionField(lambda p: 1e6 * depth(p), grey), mesh) < 0.003


def test_a_mist_takes_as_much_light_as_the_field(tmp_path: Path) -> None:
    # A ball of even density 2 and radius 0.5: along its middle exp(-2) of the light is left.
    field = FunctionField(
        lambda p: torch.where(p.norm(dim=-1) < 0.5, 2.0, 0.0), lambda p: torch.zeros(len(p), 3), level=1.0
    )
    ball = trimesh.creation.icosphere(3, 0.5)
    mesh = Mesh(ball.vertices, ball.faces, np.full((len(ball.vertices), 3), 0.5))
    splats = splats_from_field(field, mesh, 6_000)
    assert splats.flatness == 1.0 and 4_000 < len(splats.centers) <= 6_000
    write_splats(splats, tmp_path / "splats.ply", file_matrix(mesh, scale=1.0))
    picture = seen_from(tmp_path / "splats.ply", file_matrix(mesh, scale=1.0), 0, 300)
    assert float(picture[:, 140:160, 140:160].mean()) == pytest.approx(np.exp(-2.0), abs=0.02)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_colours_and_densities_that_are_no_numbers(bad: float) -> None:
    def density(p: torch.Tensor) -> torch.Tensor:
        return torch.where(p[:, 0] > 0, bad, soft_ball().density(p))

    splats = splats_from_field(
        FunctionField(density, lambda p: torch.full((len(p), 3), bad)), extract_mesh(soft_ball(), mesh_resolution=24),
        500,
    )  # fmt: skip
    assert np.isfinite(splats.centers).all() and np.isfinite(splats.colors).all() and len(splats.centers) <= 500


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
