"""Rendered views, labelled points and batches: do picture and points speak of the same place?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("embreex", reason="embreex is in the extra train")

from lrm.tiny import photo_projection, project_points
from multiview.errors import SettingsError
from train.batches import (
    Augment,
    Batch,
    PackedData,
    PointCounts,
    light,
    make_batch,
    object_projection,
    transformed,
    upright_frame,
)
from train.objects import TrainingObject, load_object, normalized
from train.points import label_points, sample_surface
from train.prepare import Prepared, PrepareSettings, pack, prepare_object
from train.render import Caster, CropCamera, crop_camera

PLAIN = Augment(lit=0, mirror=0, swap=0, exposure=0, ragged=0)


def box(
    name: str = "box", size: tuple[float, float, float] = (1.0, 0.6, 0.4), color: tuple[int, int, int] = (200, 100, 50)
) -> TrainingObject:
    """A box with every corner split by face, and one red face at +x."""
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)]) * size
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    vertices = np.concatenate([corners[list(q)] for q in quads])
    faces = np.concatenate([np.array([[0, 1, 2], [0, 2, 3]]) + 4 * i for i in range(6)])
    colors = np.tile(np.array(color, np.uint8), (24, 1))
    colors[4:8] = (255, 0, 0)
    return normalized(name, vertices, faces, colors)


def test_vertices_that_no_face_uses_do_not_widen_the_box(tmp_path: Path) -> None:
    text = "\n".join(f"v {x} {y} {z}" for x in (0, 1) for y in (0, 2) for z in (0, 1)) + "\nv 50 50 50\n"
    quads = [(1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4)]
    (tmp_path / "far.obj").write_text(text + "\n".join("f " + " ".join(map(str, quad)) for quad in quads))
    found = load_object(tmp_path / "far.obj")
    assert len(found.vertices) == 8
    assert np.allclose(np.sort(found.extent), (0.5, 0.5, 1.0))


def test_crop_fills_the_stated_share_and_is_centred() -> None:
    obj = box()
    view = Caster(obj).view(crop_camera(obj.vertices, 30, 20, 2.63), 200)
    rows, columns = np.nonzero(view[..., 3] > 127)
    width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
    assert max(width, height) == pytest.approx(170, abs=2)
    assert (columns.min() + columns.max()) / 2 == pytest.approx(99.5, abs=1.5)
    assert (rows.min() + rows.max()) / 2 == pytest.approx(99.5, abs=1.5)


def test_camera_at_azimuth_zero_sees_the_plus_x_face_with_its_normal_toward_it() -> None:
    obj = box()
    middle = Caster(obj).view(crop_camera(obj.vertices, 0, 0, 3.0), 65)[32, 32]
    assert middle[:4].tolist() == [255, 0, 0, 255]
    assert middle[4:].tolist() == [128, 128, 255]  # right 0, up 0, back 1


def test_both_sides_of_a_sheet_are_seen() -> None:
    sheet = normalized(
        "sheet",
        np.array([[0, -0.5, -0.5], [0, 0.5, -0.5], [0, 0.0, 0.5]]),
        np.array([[0, 1, 2]]),
        np.full((3, 3), 90, np.uint8),
    )
    caster = Caster(sheet)
    for azimuth in (0, 180):
        view = caster.view(crop_camera(sheet.vertices, azimuth, 0, 3.0), 33)
        assert view[20, 16].tolist() == [90, 90, 90, 255, 128, 128, 255]


def test_surface_samples_lie_on_the_surface_with_its_colour() -> None:
    obj = box()
    positions, colors = sample_surface(obj, 2000, np.random.default_rng(0))
    half = np.array([0.5, 0.3, 0.2])
    assert np.abs(np.abs(positions) / half).max(1) == pytest.approx(1, abs=1e-6)
    on_red = positions[:, 0] > 0.5 - 1e-6
    assert (colors[on_red] == (255, 0, 0)).all()
    assert (colors[~on_red] == (200, 100, 50)).all()
    # Faces are drawn by area: y-z faces are 0.6 x 0.4 of 2 (0.24 + 0.4 + 0.6) in all.
    assert on_red.mean() == pytest.approx(0.24 / 2.48, abs=0.02)


def test_labels_of_a_box_by_its_inequalities() -> None:
    points = label_points(box(), np.random.default_rng(0), count=4000, surface=100)
    truth = (np.abs(points.points.astype(np.float64)) < (0.5, 0.3, 0.2)).all(1)
    assert (points.inside == truth).mean() > 0.999
    assert points.inside[:2000].mean() == pytest.approx(0.24 / 1.1**3, abs=0.03)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = PrepareSettings(views=3, image_size=48, points=2048, surface=512)
    out = tmp_path_factory.mktemp("packed")
    objects = [box("a"), box("b", (0.5, 0.5, 1.0), (10, 200, 30))]
    results = [prepare_object(o, settings) for o in objects] + [Prepared("broken", problem="no faces")]
    assert pack(iter(results), 3, out, settings) == (2, 1)
    return out


def test_skipped_objects_are_named_with_their_reason(packed: Path) -> None:
    assert json.loads((packed / "skipped.json").read_text()) == {"broken": "no faces"}
    assert PackedData(packed).names == ["a", "b"]


def batch_of(packed: Path, counts: PointCounts, views: int = 1, **changes: Any) -> Batch:
    settings: dict[str, Any] = {
        "seed": 0, "step": 0, "batch_size": 6, "image_size": 48, "scene_radius": 1.6, "augment": PLAIN, "known": 0.5,
    }  # fmt: skip
    return make_batch([(PackedData(packed), 1.0)], views=views, counts=counts, **(settings | changes))


def sampled(pictures: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Pictures (B, C, S, S) at (right, up) coordinates (B, N, 2) → (B, N, C)."""
    grid = seen[:, None] * torch.tensor([1, -1])
    return torch.nn.functional.grid_sample(pictures, grid, align_corners=False)[:, :, 0].transpose(1, 2)


@pytest.mark.parametrize("mirror", [0.0, 1.0], ids=["plain", "mirrored"])
@pytest.mark.parametrize("views", [1, 2])
def test_inside_points_project_into_every_silhouette(packed: Path, mirror: float, views: int) -> None:
    augment = Augment(lit=0, mirror=mirror, swap=0, exposure=0, ragged=0)
    batch = batch_of(packed, PointCounts(256, 256, 64, 64), views, augment=augment, target=True)
    assert batch.target is not None
    inside = (batch.occupancy > 0.5) & (batch.weight > 0)
    assert inside.sum() > 200
    pictures = [batch.images[:, v] for v in range(views)] + [batch.target]
    cameras = [batch.projections[:, v] for v in range(views)] + [batch.target_projection]
    for picture, camera in zip(pictures, cameras, strict=True):
        seen = project_points(camera, batch.points)
        alpha = sampled(picture[:, 3:], seen)[..., 0]
        assert (alpha[inside] > 0.4).float().mean() > 0.98
        # and the silhouette is not simply everywhere
        assert (alpha[~inside] < 0.5).float().mean() > 0.35
        wrong = sampled(picture[:, 3:], -seen)[..., 0]
        assert (wrong[inside] > 0.4).float().mean() < (alpha[inside] > 0.4).float().mean()


@pytest.mark.parametrize("swap", [0.0, 1.0])
def test_surface_colours_meet_the_pixels_that_see_them(packed: Path, swap: float) -> None:
    augment = Augment(lit=0, mirror=0.5, swap=swap, exposure=0, ragged=0)
    batch = batch_of(packed, PointCounts(64, 64, 8, 400), seed=1, batch_size=8, augment=augment)
    seen = sampled(batch.images[:, 0, :3], project_points(batch.projections[:, 0], batch.surface))
    depth = batch.projections[:, 0, 2, :3]
    for colors, pixels, points, away in zip(batch.colors, seen, batch.surface, depth, strict=True):
        # The points nearest to the camera are seen.
        near = (-(points @ away)).topk(40).indices
        assert (colors[near] - pixels[near]).abs().max(1).values.median() < 0.1


def test_a_single_photo_has_the_projection_that_inference_assumes(packed: Path) -> None:
    batch = batch_of(packed, PointCounts(8, 8, 8, 8))
    elevation, focal = batch.camera[:, 0] * 30, torch.exp(batch.camera[:, 1] + 1.5)
    assert torch.allclose(batch.projections[:, 0], photo_projection(elevation, focal), atol=2e-5)


def test_several_views_are_always_told_and_a_single_one_sometimes(packed: Path) -> None:
    counts = PointCounts(8, 8, 8, 8)
    assert batch_of(packed, counts, 2, known=0.0).known.tolist() == [1.0] * 6
    assert batch_of(packed, counts, known=0.0).known.tolist() == [0.0] * 6
    assert 0 < batch_of(packed, counts, batch_size=40, known=0.5).known.mean() < 1


def test_upright_frame_by_hand() -> None:
    # Camera at azimuth 90 (on +y), 30 degrees up, distance 2, half 0.25: one unit is 0.5 of the object's.
    camera = CropCamera(90.0, 30.0, 2.0, (0.0, 0.0), 0.25).as_row()
    frame = upright_frame(camera, centred=False)
    # Toward the camera is +y, right is -x, up is z, whatever the elevation.
    points = np.array([[-0.2, 0.0, 0.1], [0.0, 0.5, 0.0]], np.float32)
    assert transformed(frame, points) == pytest.approx(np.array([[0.0, 0.4, 0.2], [1.0, 0.0, 0.0]]), abs=1e-6)


def test_a_centred_frame_keeps_every_pixel_where_it_was() -> None:
    camera = CropCamera(40.0, 25.0, 2.2, (0.05, -0.08), 0.2).as_row()
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 3)).astype(np.float32)
    direct = object_projection(camera) @ np.concatenate([points, np.ones((50, 1))], 1).T
    moved = torch.from_numpy(transformed(upright_frame(camera, centred=True), points))
    seen = project_points(photo_projection(torch.tensor([25.0]), torch.tensor([5.0]))[0], moved)
    assert seen.numpy() == pytest.approx((direct[:2] / direct[2]).T, abs=1e-5)


def test_batches_depend_on_seed_and_step_alone(packed: Path) -> None:
    def numbers(seed: int, step: int) -> torch.Tensor:
        b = batch_of(packed, PointCounts(8, 8, 4, 8), seed=seed, step=step, batch_size=2, augment=Augment())
        return torch.cat([b.images.flatten(), b.points.flatten(), b.colors.flatten(), b.known])

    assert torch.equal(numbers(0, 5), numbers(0, 5))
    assert not torch.equal(numbers(0, 5), numbers(0, 6))
    assert not torch.equal(numbers(0, 5), numbers(1, 5))


def test_unlit_pictures_keep_their_colours_and_light_changes_them() -> None:
    obj = box()
    view = torch.from_numpy(Caster(obj).view(crop_camera(obj.vertices, 20, 10, 3.0), 32))
    plain = light(view, np.random.default_rng(0), PLAIN)
    assert torch.allclose(plain[:3] * (plain[3:] > 0), view.permute(2, 0, 1)[:3].float() / 255 * (plain[3:] > 0))
    lit = light(view, np.random.default_rng(0), Augment(lit=1, mirror=0, swap=0, exposure=0, ragged=0))
    assert (lit[:3] - plain[:3]).abs().max() > 0.02
    assert torch.equal(lit[3], plain[3])


def test_a_folder_that_is_not_packed_data_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"python -m train\.prepare"):
        PackedData(tmp_path)
