"""The value `Mesh`, and extraction from analytic fields: numbers, borders, pieces, thresholds, errors."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lrm.field import FunctionField, OutputRule, PlanesDecoder, RawDensity, TriplaneField
from lrm.fit import FitConfig, fit_points
from lrm.lattice import Evaluator, Lattice, SparseSamples, SureSides, layers, scan, sure_sides
from lrm.marching import case_tables, follow_surface, march_layers, place_with_colors, triangulate
from lrm.mesh import Mesh, extract_mesh, extract_mesh_with_report
from lrm.pieces import label_pieces
from lrm.threshold import choose_threshold
from multiview.errors import FieldError, MeshError, SettingsError

CUBE_VERTICES = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float32)
CUBE_FACES = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
     [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]]
)  # fmt: skip


def cube(**changes: Any) -> Mesh:
    values: dict[str, Any] = {"vertices": CUBE_VERTICES, "faces": CUBE_FACES, "colors": np.full((8, 3), 0.5)}
    return Mesh(**{**values, **changes})


def position_color(points: Tensor) -> Tensor:
    return (points / 2 + 0.5).clamp(0, 1)


def shape_field(distance: Callable[[Tensor], Tensor], **changes: Any) -> FunctionField:
    """Density 10 at the surface of a shape given by its distance, negative inside; 20 per unit."""
    return FunctionField(lambda p: 10 - 20 * distance(p), position_color, **changes)


def ball(radius: float, center: tuple[float, float, float] = (0, 0, 0)) -> Callable[[Tensor], Tensor]:
    return lambda p: (p - p.new_tensor(center)).norm(dim=-1) - radius


def torus_distance(p: Tensor) -> Tensor:
    return ((p[:, :2].norm(dim=-1) - 0.5).square() + p[:, 2].square()).sqrt() - 0.2


def test_a_cube_by_hand() -> None:
    mesh = cube()
    assert (mesh.volume, mesh.area) == pytest.approx((1.0, 6.0))
    assert mesh.is_watertight
    assert mesh.bounds.tolist() == [[0, 0, 0], [1, 1, 1]] and mesh.extent.tolist() == [1, 1, 1]
    assert (mesh.vertices.dtype, mesh.faces.dtype, mesh.colors.dtype) == (np.float32, np.int32, np.float32)
    # Corner 0 has two triangles in each of x = 0, y = 0 and z = 0; corner 1 has one in x = 0 and y = 0, two in z = 1.
    assert mesh.normals[0] == pytest.approx(-np.ones(3) / math.sqrt(3), abs=1e-6)
    assert mesh.normals[1] == pytest.approx(np.array([-1, -1, 2]) / math.sqrt(6), abs=1e-6)


def test_open_and_wrongly_turned_meshes_are_not_watertight() -> None:
    assert not cube(faces=CUBE_FACES[1:]).is_watertight
    turned = CUBE_FACES.copy()
    turned[0] = turned[0, ::-1]
    assert not cube(faces=turned).is_watertight
    assert cube(faces=CUBE_FACES[:, ::-1]).volume == pytest.approx(-1.0)


def test_a_vertex_without_faces_still_has_a_normal() -> None:
    mesh = Mesh(np.eye(4, 3), np.array([[0, 1, 2]]), np.zeros((4, 3)))
    assert mesh.normals[3].tolist() == [0, 0, 1]


def test_transformed_moves_and_keeps_faces_outward() -> None:
    mirror = np.diag([-2.0, 1.0, 1.0, 1.0])
    mirror[:3, 3] = (0, 5, 0)
    moved = cube().transformed(mirror)
    assert moved.volume == pytest.approx(2.0)
    assert moved.bounds.tolist() == [[-2, 5, 0], [0, 6, 1]]
    assert cube().vertices[4].tolist() == [1, 0, 0]  # the first one is as it was


def test_to_trimesh_keeps_order_and_rounds_colours() -> None:
    made = cube(colors=np.tile([0.0, 0.5, 1.0], (8, 1))).to_trimesh()
    np.testing.assert_array_equal(made.vertices, CUBE_VERTICES)
    np.testing.assert_array_equal(made.faces, CUBE_FACES)
    assert made.visual.vertex_colors[3].tolist() == [0, 128, 255, 255]
    assert made.is_watertight and made.volume == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"vertices": np.zeros((8, 2))}, r"vertices \(N, 3\).*\(8, 2\)", id="flat vertices"),
        pytest.param({"vertices": CUBE_VERTICES * [1, 1, np.nan]}, "NaN or Inf in 8 of 8 rows of vertices", id="nan"),
        pytest.param({"faces": np.zeros((0, 3), int)}, r"F >= 1.*\(0, 3\)", id="no faces"),
        pytest.param({"faces": CUBE_FACES.astype(float)}, "whole-number.*float64", id="float faces"),
        pytest.param({"faces": CUBE_FACES + 1}, "1 to 8, but there are only 0 to 7", id="index too high"),
        pytest.param({"faces": CUBE_FACES - 1}, "-1 to 6", id="index negative"),
        pytest.param({"colors": np.zeros((7, 3))}, "found 7 and 8", id="too few colours"),
        pytest.param({"colors": np.full((8, 3), 128)}, r"\[0, 1\], found 128 to 128.*255", id="8-bit colours"),
        pytest.param({"uvs": np.zeros((8, 2))}, "only one of them", id="uvs alone"),
        pytest.param(
            {"uvs": np.zeros((7, 2)), "texture": np.zeros((2, 2, 3), np.uint8)}, "7 uvs and 8 vertices", id="few uvs"
        ),
        pytest.param(
            {"uvs": np.zeros((8, 2)), "texture": np.zeros((2, 2, 4), np.uint8)}, r"\(2, 2, 4\)", id="rgba texture"
        ),
    ],
)
def test_malformed_meshes_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MeshError, match=words):
        cube(**changes)


def test_flattening_and_projective_matrices_are_refused() -> None:
    with pytest.raises(MeshError, match="determinant 0"):
        cube().transformed(np.diag([1.0, 1.0, 0.0, 1.0]))
    with pytest.raises(MeshError, match="last row 0 0 0 1"):
        cube().transformed(np.diag([1.0, 1.0, 1.0, 2.0]))


def test_case_tables_are_those_of_pymcubes() -> None:
    import mcubes

    tables = case_tables()
    for case in range(256):
        inside = (case >> np.arange(8) & 1).astype(bool).reshape(2, 2, 2)
        # With values of +1 and -1 every vertex lies in the middle of its edge, so the edge can be read without doubt.
        vertices, faces = mcubes.marching_cubes(np.where(inside, 1.0, -1.0), 0.0)
        doubled = np.rint(np.asarray(vertices)[faces.astype(np.int64)] * 2).astype(int).reshape(-1, 3, 3)
        count = tables.counts[case]
        assert count == len(doubled)
        np.testing.assert_array_equal(tables.axes[case, :count], np.argmax(doubled == 1, -1))
        np.testing.assert_array_equal(tables.owners[case, :count], doubled // 2)


def test_case_tables_agree_with_the_signs_that_they_were_read_from() -> None:
    tables = case_tables()
    assert tables.counts[[0, 255]].tolist() == [0, 0] and tables.counts.max() == 5
    for case in range(1, 255):
        inside = (case >> np.arange(8) & 1).astype(bool)
        owners, axes = tables.owners[case, : tables.counts[case]], tables.axes[case, : tables.counts[case]]
        ends = owners + np.eye(3, dtype=int)[axes]
        corner = [4 * e[..., 0] + 2 * e[..., 1] + e[..., 2] for e in (owners, ends)]
        assert (inside[corner[0]] != inside[corner[1]]).all()


@pytest.mark.parametrize("fit_box", [True, False], ids=["fitted", "whole cube"])
def test_a_sphere_has_its_radius_volume_and_colours(fit_box: bool) -> None:
    mesh, report = extract_mesh_with_report(shape_field(ball(0.6)), mesh_resolution=64, fit_box=fit_box)
    cell = (report.box[1][0] - report.box[0][0]) / (report.shape[0] - 1)
    error = np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.6).max()
    assert error < 5e-5 < 0.01 * cell
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=3e-3)
    assert mesh.is_watertight
    np.testing.assert_allclose(mesh.colors, mesh.vertices / 2 + 0.5, atol=1e-6)
    np.testing.assert_allclose(mesh.normals, mesh.vertices / 0.6, atol=0.05)
    assert not report.touched_border and report.warnings == () and report.pieces_dropped == 0


def test_a_torus_is_within_a_hundredth_of_a_cell_and_has_its_hole() -> None:
    mesh, report = extract_mesh_with_report(shape_field(torus_distance), mesh_resolution=96)
    cell = (report.box[1][0] - report.box[0][0]) / 95
    assert np.abs(torus_distance(torch.from_numpy(mesh.vertices)).numpy()).max() < 0.01 * cell
    assert mesh.volume == pytest.approx(2 * math.pi**2 * 0.5 * 0.04, rel=3e-3)
    assert len(mesh.vertices) - len(mesh.faces) // 2 == 0  # Euler number of a torus: V - E + F with E = 3F / 2


def test_refinement_brings_a_bent_density_onto_its_level() -> None:
    steep = FunctionField(lambda p: 25 * torch.exp(30 * (0.5 - p.norm(dim=-1))), position_color, level=25.0)
    errors = []
    for steps in (0, 1, 2, 4):
        mesh = extract_mesh(steep, mesh_resolution=33, fit_box=False, refine_steps=steps)
        errors.append(np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.5).mean())
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[3] < 0.02 * errors[0]


def test_the_whole_cube_lattice_is_linspace_with_both_ends() -> None:
    _, report = extract_mesh_with_report(shape_field(ball(0.5), scene_radius=0.87), mesh_resolution=30, fit_box=False)
    assert report.box == (pytest.approx((-0.87,) * 3), pytest.approx((0.87,) * 3)) and report.shape == (30, 30, 30)
    lattice = Lattice((-0.87,) * 3, 1.74 / 29, (30, 30, 30))
    axis = lattice.positions(np.stack([np.arange(1, 31)] * 3, 1))[:, 0]
    np.testing.assert_allclose(axis, torch.linspace(-0.87, 0.87, 30).numpy(), atol=1e-7)


def test_a_fitted_box_spends_its_samples_on_the_object() -> None:
    small = shape_field(ball(0.2, (0.5, -0.3, 0.1)))
    fitted, report = extract_mesh_with_report(small, mesh_resolution=64)
    whole = extract_mesh(small, mesh_resolution=64, fit_box=False)
    assert len(fitted.faces) > 10 * len(whole.faces)
    low, high = np.array([0.3, -0.5, -0.1]), np.array([0.7, -0.1, 0.3])
    assert (np.asarray(report.box[0]) <= low).all() and (np.asarray(report.box[1]) >= high).all()
    np.testing.assert_allclose(fitted.bounds, [low, high], atol=1e-3)


def test_a_needle_thinner_than_the_first_look_is_not_cut_off() -> None:
    # A ball with a spike along +z of radius 0.008, half a cell of the first look, up to z = 0.8.
    def distance(p: Tensor) -> Tensor:
        height = p[:, 2].clamp(0, 0.8)
        spike = (p - torch.stack([0 * height, 0 * height, height], -1)).norm(dim=-1) - 0.008
        return torch.minimum(ball(0.3)(p), spike)

    mesh = extract_mesh(shape_field(distance), mesh_resolution=256)
    assert mesh.is_watertight
    assert mesh.bounds[1, 2] == pytest.approx(0.808, abs=2e-3)


def test_a_surface_that_meets_the_cube_is_closed_flat_and_said_so() -> None:
    for fit_box in (True, False):
        mesh, report = extract_mesh_with_report(shape_field(lambda p: p[:, 0]), mesh_resolution=33, fit_box=fit_box)
        assert mesh.is_watertight and report.touched_border
        assert "border" in report.warnings[0]
        assert mesh.volume == pytest.approx(4.0, rel=0.01)  # the half cube x < 0
        assert mesh.bounds.tolist() == [[-1, -1, -1], [pytest.approx(0, abs=1e-6), 1, 1]]


def test_a_field_that_reaches_further_is_tried_once_more_in_a_larger_cube() -> None:
    @dataclasses.dataclass(frozen=True)
    class Reaching(FunctionField):
        reach: float = 1.25  # type: ignore[misc]

    fields = [Reaching(lambda p, r=r: 10 - 20 * ball(r)(p), position_color) for r in (1.1, 1.4)]  # type: ignore[misc]
    whole, report = extract_mesh_with_report(fields[0], mesh_resolution=48)
    assert not report.touched_border and whole.volume == pytest.approx(4 / 3 * math.pi * 1.1**3, rel=0.01)
    cut, report = extract_mesh_with_report(fields[1], mesh_resolution=48)
    assert report.touched_border and cut.is_watertight
    assert np.abs(cut.vertices).max() == pytest.approx(1.0)  # of the cube that was asked for


def test_crumbs_and_inner_shells_are_dropped() -> None:
    def distance(p: Tensor) -> Tensor:
        shell = torch.maximum(ball(0.6)(p), -ball(0.4)(p))
        return torch.minimum(torch.minimum(shell, ball(0.2)(p)), ball(0.05, (0.9, 0.9, 0.9))(p))

    field = shape_field(distance)
    mesh, report = extract_mesh_with_report(field, mesh_resolution=96)
    assert report.pieces_dropped == 3  # the cavity's wall, the ball inside it, the crumb
    assert label_pieces(mesh.faces, len(mesh.vertices))[0] == 1
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.01)
    kept = extract_mesh(field, mesh_resolution=96, keep_pieces=0.0)
    assert label_pieces(kept.faces, len(kept.vertices))[0] == 2
    assert kept.bounds[1] == pytest.approx([0.95] * 3, abs=2e-3)


def test_two_pieces_of_like_size_both_stay() -> None:
    field = shape_field(lambda p: torch.minimum(ball(0.3, (0.5, 0, 0))(p), ball(0.25, (-0.5, 0, 0))(p)))
    mesh = extract_mesh(field, mesh_resolution=64)
    assert label_pieces(mesh.faces, len(mesh.vertices))[0] == 2
    assert mesh.bounds[:, 0].tolist() == pytest.approx([-0.75, 0.8], abs=1e-3)


def test_scan_looks_at_a_quarter_of_the_coarse_samples() -> None:
    asked: list[int] = []

    def evaluate(positions: np.ndarray) -> np.ndarray:
        asked.append(len(positions))
        return positions[:, 0]

    found = scan(Lattice((0.0, 0.0, 0.0), 1.0, (9, 9, 9)), 4, evaluate)
    # Coarse samples at 0, 4, 8, between two layers of padding. All even: the middle of each axis; all odd: the others.
    assert found.coordinates[0].tolist() == [0, 1, 5, 9, 10]
    assert sum(asked) == 1 + 8 and len(found.inner) == 9
    assert found.values[2, 2, 2] == 4.0 and found.values[3, 1, 3] == 8.0 and np.isnan(found.values[2, 1, 1])


def test_the_share_of_crossed_coarse_cells_by_hand() -> None:
    found = scan(Lattice((0.0, 0.0, 0.0), 1.0, (9, 9, 9)), 4, lambda positions: positions[:, 0])
    # 4 x 4 x 4 coarse cells, those beside the padding too. Only the four odd samples with x = 8 are above 6, and their
    # eight neighbours along the diagonals, with x = 4 or in the padding, are not: 32 of 64 cells.
    assert found.share_crossed(6.0) == 0.5
    assert found.share_crossed(9.0) == 0.0


@pytest.mark.parametrize("together", [1, 10, 10**6])
def test_layers_are_all_samples_with_padding(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    monkeypatch.setattr("lrm.lattice._TOGETHER", together)
    asked: list[int] = []

    def evaluate(positions: np.ndarray) -> np.ndarray:
        asked.append(len(positions))
        return np.asarray(positions @ np.array([100, 10, 1], np.float32))

    found = np.stack(list(layers(Lattice((1.0, 2.0, 3.0), 1.0, (4, 3, 2)), evaluate, 0.5)))
    assert found.shape == (6, 5, 4) and sum(asked) == 24 and len(asked) == {1: 4, 10: 4, 10**6: 1}[together]
    # Position (1, 2, 3) is 123; one sample further along z adds 1, along y 10, along x 100.
    assert found[1:-1, 1:-1, 1:-1].flatten().tolist() == [
        123 + 100 * x + 10 * y + z - 0.5 for x in range(4) for y in range(3) for z in range(2)
    ]
    assert np.isneginf(found).sum() == found.size - 24


@pytest.mark.parametrize("fit_box", [True, False], ids=["fitted", "whole cube"])
@pytest.mark.parametrize(
    "distance",
    [ball(0.6), torus_distance, lambda p: torch.minimum(ball(0.3, (0.5, 0, 0))(p), p[:, 2] + 0.7)],
    ids=["ball", "torus", "ball over a floor that is cut"],
)
def test_the_dense_way_gives_the_mesh_of_the_followed_surface(
    distance: Callable[[Tensor], Tensor], fit_box: bool
) -> None:
    made = {
        way: extract_mesh_with_report(shape_field(distance), mesh_resolution=50, fit_box=fit_box, way=way)
        for way in ("followed", "dense")
    }
    (followed, one), (dense, two) = made["followed"], made["dense"]
    assert (one.way, two.way) == ("followed", "dense") and one.cells == two.cells
    assert two.evaluations > max(math.prod(two.shape), one.evaluations)
    np.testing.assert_array_equal(dense.faces, followed.faces)
    assert np.abs(dense.vertices - followed.vertices).max() < 1e-6 * followed.extent.max()
    np.testing.assert_allclose(dense.colors, followed.colors, atol=1e-5)


def test_the_way_follows_from_how_much_surface_there_is() -> None:
    waves = FunctionField(lambda p: 10 + torch.sin(30 * p).sum(-1), position_color)
    assert extract_mesh_with_report(waves, mesh_resolution=48, threshold=10.0)[1].way == "dense"
    assert extract_mesh_with_report(shape_field(ball(0.6)), mesh_resolution=96)[1].way == "followed"


def test_following_gives_up_where_there_is_more_surface_than_the_scan_has_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    waves = FunctionField(lambda p: 10 + torch.sin(30 * p).sum(-1), position_color)
    expected = extract_mesh(waves, mesh_resolution=40, threshold=10.0, way="dense")
    monkeypatch.setattr("lrm.mesh._DENSE_SHARE", 1.0)
    for most, way in ((1 / 4, "dense"), (1.0, "followed")):
        monkeypatch.setattr("lrm.mesh._MOST_FOLLOWED", most)
        mesh, report = extract_mesh_with_report(waves, mesh_resolution=40, threshold=10.0)
        assert report.way == way and len(mesh.faces) == len(expected.faces)
    lattice = Lattice((-1.0,) * 3, 2 / 39, (40,) * 3)
    evaluate = Evaluator(lambda p: torch.sin(30 * p).sum(-1), torch.device("cpu"), 10**5)
    samples = SparseSamples(lattice, evaluate, 0.0)
    part = follow_surface(samples, scan(lattice, 4, evaluate), most_cells=1000)
    assert 1000 < len(part.cells) < report.cells and evaluate.count < 40**3


def test_the_dense_way_holds_layers_and_not_the_volume() -> None:
    samples = 160
    lattice = Lattice((-1.0,) * 3, 2 / (samples - 1), (samples,) * 3)
    evaluate = Evaluator(lambda p: 0.3 - p.norm(dim=-1), torch.device("cpu"), 10**5)
    case_tables()
    tracemalloc.start()
    try:
        crossings = march_layers(lattice, evaluate, 0.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(crossings.faces) > 15_000
    assert peak < 4 * samples**3 / 2  # half of what the samples alone would take


def test_a_mesh_of_noise_comes_with_its_face_count(monkeypatch: pytest.MonkeyPatch) -> None:
    waves = FunctionField(lambda p: 10 + torch.sin(30 * p).sum(-1), position_color)
    monkeypatch.setattr("lrm.mesh._NOISY_FACES", 10_000)
    mesh, report = extract_mesh_with_report(waves, mesh_resolution=40, threshold=10.0)
    assert len(mesh.faces) > 10_000
    assert f"{len(mesh.faces):,} faces" in report.warnings[-1] and "--threshold" in report.warnings[-1]
    monkeypatch.setattr("lrm.mesh._NOISY_FACES", 10**6)
    assert not any(
        "faces" in w for w in extract_mesh_with_report(waves, mesh_resolution=40, threshold=10.0)[1].warnings
    )
    # Many faces alone are no noise.
    monkeypatch.setattr("lrm.mesh._NOISY_FACES", 10_000)
    fine, report = extract_mesh_with_report(shape_field(ball(0.6)), mesh_resolution=100)
    assert len(fine.faces) > 10_000 and report.warnings == ()


def test_a_mesh_that_memory_would_not_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrm.marching._MOST_FACES", 1000)
    with pytest.raises(MeshError, match=r"more than 1,000 faces on \(40, 40, 40\) samples.* of 40 layers.*--threshold"):
        extract_mesh(shape_field(ball(0.6)), mesh_resolution=40, fit_box=False, way="dense")


def test_vertices_do_not_depend_on_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = extract_mesh(shape_field(torus_distance), mesh_resolution=40)
    monkeypatch.setattr("lrm.marching._PASS", 37)
    parts = extract_mesh(shape_field(torus_distance), mesh_resolution=40)
    np.testing.assert_array_equal(parts.faces, whole.faces)
    np.testing.assert_allclose(parts.vertices, whole.vertices, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "asked", "words"),
    [
        pytest.param(
            shape_field(lambda p: ball(0.5)(p) + 0.5),
            25.0,
            r"density_threshold=25\.0 is above the highest .* \(10, 65 samples per axis\).*below 10",
            id="empty",
        ),
        pytest.param(shape_field(ball(0.5)), -500.0, r"=-500\.0 is below the lowest density.*whole cube", id="full"),
        pytest.param(shape_field(ball(0.5), level=9e4), "auto", r"90000\.0 \(the field's own\) is above", id="auto"),
        pytest.param(
            FunctionField(lambda p: torch.full((len(p),), 30.0), position_color), "auto", "30 everywhere", id="constant"
        ),
    ],
)
def test_fields_without_a_surface_say_so(field: FunctionField, asked: Any, words: str) -> None:
    with pytest.raises(MeshError, match=words):
        extract_mesh(field, mesh_resolution=128, threshold=asked)


def test_a_field_with_nan_says_where() -> None:
    bad = FunctionField(lambda p: torch.where(p[:, 0] > 0.9, math.nan, 10.0), position_color)
    with pytest.raises(FieldError, match=r"not finite at \d+ of \d+ points, first at \(1, .*--dtype fp32"):
        extract_mesh(bad, mesh_resolution=32)
    colorless = dataclasses.replace(shape_field(ball(0.5)), color_fn=lambda p: p / 0 * 0)
    with pytest.raises(FieldError, match="colour is not finite at"):
        extract_mesh(colorless, mesh_resolution=32)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mesh_resolution": 4}, "8 to 4096.*4"),
        ({"threshold": "high"}, "'auto', found 'high'"),
        ({"threshold": math.nan}, "finite.*nan"),
        ({"keep_pieces": 1.5}, "0 to 1, found 1.5"),
        ({"refine_steps": -1}, "found -1"),
        ({"chunk_size": 0}, "and 0"),
        ({"way": "sparse"}, "'dense', found 'sparse'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        extract_mesh(shape_field(ball(0.5)), **settings)


LOGARITHMIC = RawDensity(lambda p: p[:, 0], torch.exp, lambda d: math.log(d) if d > 0 else -math.inf)


def rough_field(error: float, distance: Callable[[Tensor], Tensor] = torus_distance, **changes: Any) -> FunctionField:
    """A field with a rough way whose numbers are off by up to ``error``, differently at every place."""

    def noise(points: Tensor) -> Tensor:
        return torch.frac(torch.sin(points @ points.new_tensor([127.1, 311.7, 74.7])) * 43758.5) * error

    class Rough(FunctionField):
        def raw_density(self) -> RawDensity:
            exact = self.density_function()
            return RawDensity(
                exact,
                lambda raw: raw,
                float,
                rough=lambda p: exact(p) + noise(p),
                with_color=lambda p: (exact(p), self.color_fn(p)),
            )

    return Rough(lambda p: 10 - 20 * distance(p), position_color, **changes)


@pytest.mark.parametrize("fit_box", [True, False], ids=["fitted", "whole cube"])
@pytest.mark.parametrize("way", ["followed", "dense"])
def test_rough_numbers_change_no_triangle_and_move_no_vertex(fit_box: bool, way: Any) -> None:
    exact = shape_field(torus_distance)
    kwargs: dict[str, Any] = {"mesh_resolution": 60, "fit_box": fit_box, "way": way}
    expected, plain = extract_mesh_with_report(exact, **kwargs)
    # Neighbouring samples differ by up to 20 * 2 / 59 = 0.7, so an error of 0.2 moves unrefined vertices by a lot.
    mesh, report = extract_mesh_with_report(rough_field(0.2), **kwargs)
    np.testing.assert_array_equal(mesh.faces, expected.faces)
    assert (report.box, report.cells) == (plain.box, plain.cells)
    # A vertex is done within 1 % of its edge's difference, and one more secant step, whose slope is off by at most half
    # here: 0.005 of a cell, which is a twentieth of the 0.1 % of the longest side that a speed-up may cost.
    cell = (report.box[1][0] - report.box[0][0]) / (report.shape[0] - 1)
    assert np.abs(mesh.vertices - expected.vertices).max() < 5e-3 * cell
    # Colours may come from 2 % of an edge away: they change by half a unit per unit of length.
    assert np.abs(mesh.colors - expected.colors).max() < 0.02 * cell


def test_bf16_changes_no_triangle_of_a_deep_fields_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    decoder = PlanesDecoder(8, width=64, hidden_layers=9, activation="silu")
    with torch.no_grad():
        for layer in decoder.layers:
            layer.weight.mul_(3)  # activations of order one through all nine layers
    field = TriplaneField(torch.randn(3, 8, 5, 5), decoder, 0.8, 1.0)
    points = (torch.rand(5000, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1) * 0.8
    with torch.no_grad():
        level = float(field.density(points).quantile(0.8))
    made = []
    for fast in (False, True):
        monkeypatch.setattr("lrm.field.multiplies_bf16", lambda fast=fast: fast)
        # Kinks of this random field lie within cells, where four steps leave both of them a tenth of a cell off.
        made.append(extract_mesh_with_report(field, mesh_resolution=48, threshold=level, refine_steps=8))
    (exact, plain), (rough, report) = made
    assert report.evaluations > plain.evaluations  # those near the level were asked for twice
    np.testing.assert_array_equal(rough.faces, exact.faces)
    # The surface of one in fp32 may move by 0.1 % of the longest side; this moves it by a hundredth of that on average.
    moved = np.abs(rough.vertices - exact.vertices) / exact.extent.max()
    assert moved.max() < 1e-3 and moved.mean() < 1e-5


def test_rough_ends_save_looks_where_they_are_nearly_right() -> None:
    lattice = Lattice((-1.0,) * 3, 2 / 30, (31,) * 3)
    exact = Evaluator(lambda p: 20 * (0.6 - p.norm(dim=-1)), torch.device("cpu"), 10**5)
    samples = SparseSamples(lattice, exact, 0.0)
    crossings = triangulate(samples, follow_surface(samples, scan(lattice, 4, exact)))
    # Up to 0.02 of an edge's 1.3 is noise: guesses are off by that, and by the norm's curve.
    off = np.random.default_rng(0).uniform(-0.02, 0.02, crossings.values.shape).astype(np.float32)
    rough = dataclasses.replace(
        crossings, values=np.where(np.abs(crossings.values) < 0.1, crossings.values, crossings.values + off)
    )
    looks, errors = [], []
    for noise in (0.0, 0.02, 1.0):
        seen = Evaluator(lambda p: 20 * (0.6 - p.norm(dim=-1, keepdim=True)), torch.device("cpu"), 10**5)
        placed, _ = place_with_colors(rough, seen, 4, noise=noise)
        looks.append(seen.count)
        errors.append(np.abs(np.linalg.norm(placed, axis=1) - 0.6).max() / lattice.spacing)
    # Noise as large as the edges' differences explains nothing: as without.
    assert looks[1] < looks[0] - 0.05 * len(placed) and looks[2] == looks[0]
    assert max(errors) < 5e-3  # cells


class RodAndBall(FunctionField):
    """A ball and a rod through it that slips between the samples of a first look; ``thin`` is whether it is known."""

    thin = True

    def raw_density(self) -> RawDensity:
        def rod(p: Tensor) -> Tensor:
            return 10 - 20 * torch.maximum((p[:, 1:] - 0.0156).norm(dim=-1) - 0.012, p[:, 0].abs() - 0.8)

        def raw(p: Tensor) -> Tensor:
            return torch.maximum(self.density_fn(p), rod(p))

        return RawDensity(raw, lambda density: density, float, thin=rod if self.thin else None)


def test_a_rod_that_is_known_is_in_the_first_box() -> None:
    known = RodAndBall(lambda p: 10 - 20 * ball(0.3)(p), position_color)
    unknown = type("Unknown", (RodAndBall,), {"thin": False})(known.density_fn, known.color_fn)
    (expected, plain), (mesh, report) = (extract_mesh_with_report(f, mesh_resolution=128) for f in (unknown, known))
    assert expected.extent[0] == pytest.approx(1.6, abs=0.01)  # the box grew until it held the rod
    for name in ("vertices", "faces", "colors"):
        assert getattr(mesh, name).tobytes() == getattr(expected, name).tobytes()
    assert report.box == plain.box and report.evaluations < 0.75 * plain.evaluations


def test_without_refinement_nothing_is_rough() -> None:
    kwargs: dict[str, Any] = {"mesh_resolution": 40, "refine_steps": 0}
    mesh, expected = (extract_mesh(f, **kwargs) for f in (rough_field(0.2), shape_field(torus_distance)))
    np.testing.assert_array_equal(mesh.vertices, expected.vertices)


def test_levels_and_complaints_are_made_of_exact_numbers() -> None:
    weak, plain = (f(0.2) if f is rough_field else f(torus_distance) for f in (rough_field, shape_field))
    low = [dataclasses.replace(f, level=500.0) for f in (weak, plain)]  # the highest density, 14, is under 1/8 of it
    one, two = (extract_mesh_with_report(f, mesh_resolution=40)[1] for f in low)
    assert (one.threshold_chosen, one.threshold) == ("histogram", two.threshold)
    with pytest.raises(MeshError) as plain_error:
        extract_mesh(plain, threshold=1000.0)
    with pytest.raises(MeshError) as error:
        extract_mesh(weak, threshold=1000.0)
    assert str(error.value) == str(plain_error.value)


def test_rough_numbers_are_replaced_near_the_level_only() -> None:
    asked: list[float] = []

    def exact(positions: np.ndarray) -> np.ndarray:
        asked.extend(positions[:, 0].tolist())
        return positions[:, 0].copy()

    sides = SureSides(exact, lambda positions: positions[:, 0] + 0.125, level=3.0, margin=0.5)
    positions = np.zeros((5, 3), np.float32)
    positions[:, 0] = [1.0, 2.5, 2.75, 3.25, 3.5]  # rough: 1.125, 2.625, 2.875, 3.375, 3.625
    assert sides(positions).tolist() == [1.125, 2.5, 2.75, 3.25, 3.625]
    assert asked == [2.5, 2.75, 3.25]


def test_rough_numbers_are_given_up_where_most_are_near_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrm.lattice._FAIR_LOOK", 10)
    asked: list[int] = []

    def rough(positions: np.ndarray) -> np.ndarray:
        asked.append(len(positions))
        return np.zeros(len(positions), np.float32)

    sides = SureSides(lambda positions: positions[:, 0], rough, level=0.0, margin=0.5)
    for _ in range(4):
        assert (sides(np.ones((6, 3), np.float32)) == 1).all()
    assert asked == [6, 6]  # after 12 of 12 were near, nobody asks for rough ones


def test_the_margin_is_four_times_the_largest_error_near_the_level() -> None:
    lattice = Lattice((-1.0,) * 3, 0.1, (21,) * 3)
    off = lambda p: np.where(np.abs(p[:, 0]) < 0.3, 0.01, 5.0).astype(np.float32)  # noqa: E731
    found = scan(lattice, 1, lambda p: p[:, 0] + off(p))
    monkey = pytest.MonkeyPatch()
    with monkey.context() as m:
        m.setattr("lrm.lattice._CALIBRATION", 50)
        sides, settled = sure_sides(lambda p: p[:, 0], lambda p: p[:, 0] + off(p), 0.0, found, lattice)
    assert sides.margin == pytest.approx(0.04, rel=1e-4)
    # The layer x = 0 is inside the margin and exact now, that at 0.1 is not.
    assert np.nanmax(np.abs(settled.values[11])) < 1e-6 and settled.values[12, 12, 12] == pytest.approx(0.11)


def test_corners_of_cells_are_the_samples_at_them() -> None:
    lattice = Lattice((-1.0,) * 3, 0.1, (12, 20, 9))
    one, two = (SparseSamples(lattice, lambda p: p @ np.array([1, 10, 100], np.float32), 0.25) for _ in range(2))
    cells = np.stack(np.meshgrid(*(np.arange(n + 1) for n in lattice.shape), indexing="ij"), -1).reshape(-1, 3)
    cells = cells.astype(np.int32)
    corners = cells[:, None] + np.array([[c >> 2, c >> 1 & 1, c & 1] for c in range(8)])
    np.testing.assert_array_equal(one.at_corners(cells), two.at(corners[..., 0], corners[..., 1], corners[..., 2]))


def test_colours_are_kept_from_where_the_vertex_was_last_seen() -> None:
    lattice = Lattice((-1.0,) * 3, 2 / 30, (31,) * 3)
    evaluate = Evaluator(lambda p: 0.6**3 - p.norm(dim=-1) ** 3, torch.device("cpu"), 10**5)
    samples = SparseSamples(lattice, evaluate, 0.0)
    crossings = triangulate(samples, follow_surface(samples, scan(lattice, 4, evaluate)))
    both = Evaluator(
        lambda p: torch.cat([0.6**3 - p.norm(dim=-1, keepdim=True) ** 3, p], 1), torch.device("cpu"), 10**5
    )
    placed, seen = place_with_colors(crossings, both, 1)
    known = np.isfinite(seen).all(1)
    # The "colour" is the place that was looked at; some linear guesses are within 2 % of an edge, 0.0013.
    assert 0.3 < known.mean() < 1 and np.abs(seen - placed)[known].max() <= 0.02 * lattice.spacing + 1e-6
    assert np.isfinite(place_with_colors(crossings, both, 4)[1]).mean() > known.mean()
    assert np.isnan(place_with_colors(crossings, both, 0)[1]).all()


def test_auto_takes_the_level_when_the_field_is_clearly_on_both_sides() -> None:
    raw = np.concatenate([np.full(900, math.log(0.01)), np.full(100, math.log(100))]).astype(np.float32)
    found = choose_threshold(raw, LOGARITHMIC, 25.0, "auto", samples_per_axis=10)
    assert (found.density, found.chosen) == (25.0, "level")
    assert found.raw == pytest.approx(math.log(25))


def test_auto_splits_the_histogram_when_the_field_stays_below_its_level() -> None:
    raw = np.concatenate([np.full(900, -4.0), np.full(100, 2.0)]).astype(np.float32)  # densities 0.018 and 7.4
    found = choose_threshold(raw, LOGARITHMIC, 25.0, "auto", samples_per_axis=10)
    assert found.chosen == "histogram"
    assert found.raw == pytest.approx(-1.0, abs=0.1) and found.density == pytest.approx(math.exp(found.raw))


def test_auto_is_not_fooled_by_a_few_high_samples() -> None:
    raw = np.concatenate([np.full(60_000, -4.0), np.full(5000, 2.0), np.full(5, 5.0)]).astype(np.float32)
    assert choose_threshold(raw, LOGARITHMIC, 25.0, "auto", samples_per_axis=10).chosen == "histogram"
    # A field that is sure of its level means these few.
    sure = dataclasses.replace(LOGARITHMIC, level_is_sure=True)
    assert choose_threshold(raw, sure, 25.0, "auto", samples_per_axis=10).chosen == "level"


def test_a_weak_field_is_lifted_with_a_warning() -> None:
    weak = dataclasses.replace(shape_field(ball(0.5)), density_fn=lambda p: 5.0 * (p.norm(dim=-1) < 0.5).float())
    mesh, report = extract_mesh_with_report(weak, mesh_resolution=64)
    assert report.threshold_chosen == "histogram" and 0 < report.threshold < 5
    assert f"density_threshold={report.threshold:.4g}" in report.warnings[0]
    assert mesh.volume == pytest.approx(math.pi / 6, rel=0.05)


def test_same_input_same_bytes_and_chunks_do_not_matter() -> None:
    field = shape_field(torus_distance)
    first, second, chunked = (extract_mesh(field, mesh_resolution=48, chunk_size=c) for c in (10**6, 10**6, 777))
    for name in ("vertices", "faces", "colors"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
        np.testing.assert_allclose(getattr(first, name), getattr(chunked, name), atol=1e-6)


def test_progress_grows_from_0_to_1() -> None:
    seen: list[float] = []
    extract_mesh(shape_field(ball(0.5)), mesh_resolution=16, progress=seen.append)
    assert seen[0] == 0.0 and seen[-1] == 1.0 and seen == sorted(seen)


def test_report_counts_evaluations() -> None:
    asked: list[int] = []
    field = shape_field(ball(0.5))

    def counting(points: Tensor) -> Tensor:
        asked.append(len(points))
        return field.density_fn(points)

    mesh, report = extract_mesh_with_report(
        dataclasses.replace(field, density_fn=counting), mesh_resolution=128, fit_box=False
    )
    assert report.evaluations == sum(asked) < 128**3 / 20
    assert report.cells == pytest.approx(len(mesh.vertices), rel=0.01)
    assert report.seconds > 0


@pytest.mark.parametrize(
    "rule", [OutputRule("exp"), OutputRule("occupancy", density_scale=50.0)], ids=["exp", "occupancy"]
)
def test_a_fitted_triplane_field_gives_back_its_ball(rule: OutputRule) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(20_000, 3, generator=generator) * 2 - 1
    config = FitConfig(4, 16, 16, 2, "silu", rule, scene_radius=1.0, batch_points=2000, learning_rate=0.02)
    field = fit_points(config, points, ball(0.5)(points) < 0, torch.full_like(points, 0.25), steps=150, seed=1)
    assert not field.planes.requires_grad
    mesh, report = extract_mesh_with_report(field, mesh_resolution=64)
    assert (report.threshold, report.threshold_chosen) == (25.0, "level")
    assert np.linalg.norm(mesh.vertices, axis=1).mean() == pytest.approx(0.5, abs=0.015)
    assert np.abs(mesh.colors - 0.25).mean() < 0.06
    with torch.no_grad():
        error = field.density(torch.from_numpy(mesh.vertices)).numpy() / 25 - 1
    assert np.abs(error).mean() < 0.01


def test_fitting_is_repeatable_and_refuses_what_does_not_fit() -> None:
    config = FitConfig(2, 4, 8, 1, scene_radius=1.0, batch_points=50)
    points = torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
    inside, colors = points[:, 0] > 0.5, torch.zeros(100, 3)
    one, two, other = (fit_points(config, points, inside, colors, steps=3, seed=s).planes for s in (5, 5, 6))
    assert torch.equal(one, two) and not torch.equal(one, other)
    with pytest.raises(SettingsError, match="steps >= 1, found 0"):
        fit_points(config, points, inside, colors, steps=0)
    with pytest.raises(FieldError, match=r"\(100, 3\), \(99,\)"):
        fit_points(config, points, inside[1:], colors)
    with pytest.raises(SettingsError, match=r"level 25\.0 cannot be reached"):
        fit_points(dataclasses.replace(config, outputs=OutputRule("occupancy")), points, inside, colors)


def test_a_triplane_field_and_a_function_of_the_same_density_give_one_mesh() -> None:
    torch.manual_seed(0)
    field = TriplaneField(3 * torch.randn(3, 4, 6, 6), PlanesDecoder(4, 8, 1, "silu"), 1.0, 0.37)
    plain = FunctionField(field.density, field.color, 1.0, 0.37)
    a, b = (extract_mesh(f, mesh_resolution=40, threshold=0.37, fit_box=False, refine_steps=6) for f in (field, plain))
    np.testing.assert_array_equal(a.faces, b.faces)
    assert np.abs(a.vertices - b.vertices).mean() < 1e-5 and np.abs(a.vertices - b.vertices).max() < 0.05 * (2 / 39)
