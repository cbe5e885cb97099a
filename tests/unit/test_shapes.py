"""Procedural objects: closed outward parts, upright, whole, normalised, the same for the same seed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from multiview.errors import SettingsError
from train import examples
from train.shapes import FAMILIES, MAX_FACES, MIN_FACES, blocks, make_object, make_parts, outlines, random_object
from train.shapes.blocks import _icosphere
from train.shapes.finish import enough_faces, finish, split_in_four

SEEDS = (0, 1, 2)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def edges_are_paired(faces: NDArray[np.int64]) -> bool:
    """Whether every directed edge occurs once and its opposite once: closed, and wound one way throughout."""
    edges = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    keys = np.sort(edges[:, 0] * 10**6 + edges[:, 1])
    back = np.sort(edges[:, 1] * 10**6 + edges[:, 0])
    return bool((np.diff(keys) > 0).all() and (keys == back).all())


def surface_samples(part: blocks.Part, size: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Points on a part's surface, about one to each 0.024 x 0.024 of an object of size 1, and its vertices."""
    corners = part.vertices[part.faces] / size
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    count = int(100 + area.sum() * 1800)
    which = rng.choice(len(area), count, p=area / area.sum())
    weights = rng.dirichlet([1, 1, 1], count)
    return np.concatenate([(corners[which] * weights[:, :, None]).sum(1), part.vertices / size])


def connected_pieces(parts: list[blocks.Part], tolerance: float) -> int:
    """Number of groups of parts whose surfaces come within ``tolerance`` of the object's size of each other."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(0)
    size = float(np.ptp(np.concatenate([p.vertices for p in parts]), axis=0).max())
    samples = [surface_samples(part, size, rng) for part in parts]
    label = np.repeat(np.arange(len(parts)), [len(s) for s in samples])
    pairs = label[cKDTree(np.concatenate(samples)).query_pairs(tolerance, output_type="ndarray")]
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(parts), len(parts)))
    return int(connected_components(graph, directed=False)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_closed_outward_and_hang_together(family: str) -> None:
    for seed in SEEDS:
        parts = make_parts(family, np.random.default_rng(seed))
        for part in parts:
            assert edges_are_paired(part.faces), f"{family} {seed}: a part is open"
            assert blocks.signed_volume(part.vertices, part.faces) > 0
            assert np.isfinite(part.vertices).all()
            assert part.colors.shape == part.faces.shape and part.colors.dtype == np.uint8
        assert connected_pieces(parts, 0.03) == 1, f"{family} {seed}: a part floats"


@pytest.mark.parametrize("family", FAMILIES)
def test_objects_are_normalised_and_repeatable(family: str) -> None:
    for seed in SEEDS:
        shape = make_object(family, np.random.default_rng(seed))
        again = make_object(family, np.random.default_rng(seed))
        low, high = shape.vertices.min(0), shape.vertices.max(0)
        assert MIN_FACES <= len(shape.faces) <= MAX_FACES
        assert (high - low).max() == pytest.approx(1, abs=1e-5) and np.abs(low + high).max() < 1e-5
        assert (high - low).min() > 0.01
        assert shape.vertices.dtype == np.float32 and shape.faces.dtype == np.int32
        assert shape.colors.shape == shape.vertices.shape and shape.colors.dtype == np.uint8
        assert shape.faces.min() == 0 and shape.faces.max() == len(shape.vertices) - 1
        assert shape.name.startswith(f"{family}-front") and shape.family == family
        assert (shape.vertices == again.vertices).all() and (shape.colors == again.colors).all()
        assert (shape.faces == again.faces).all() and shape.name == again.name


@pytest.mark.parametrize("family", ["chair", "car", "house", "teapot", "burger", "hydrant", "person"])
def test_other_seeds_give_other_objects(family: str) -> None:
    shapes = [make_object(family, np.random.default_rng(seed)) for seed in range(4)]
    extents = {tuple(np.round(np.sort(np.ptp(s.vertices, axis=0)), 4)) for s in shapes}
    assert len(extents) == 4


@pytest.mark.parametrize("seed", range(6))
def test_a_chair_has_thin_legs_below_and_a_back_behind(seed: int) -> None:
    points = np.concatenate([p.vertices for p in make_parts("chair", np.random.default_rng(seed))])
    low, high = points[:, 2].min(), points[:, 2].max()
    top = points[points[:, 2] > low + 0.85 * (high - low)]
    feet = points[points[:, 2] < low + 0.02 * (high - low)]
    assert low == pytest.approx(0, abs=1e-9)
    assert (top[:, 0] < 0).all()  # the back stands at -x, so the seat's front is +x
    assert feet[:, 0].min() < -0.05 and feet[:, 0].max() > 0.05 and np.abs(feet[:, 1]).min() > 0.05


@pytest.mark.parametrize("seed", range(6))
def test_a_car_is_longer_than_wide_and_narrows_upward(seed: int) -> None:
    points = np.concatenate([p.vertices for p in make_parts("car", np.random.default_rng(seed))])
    x, y, z = np.ptp(points, axis=0)
    assert x > 1.5 * y and x > 2 * z
    roof = points[points[:, 2] > 0.93 * points[:, 2].max()]
    assert np.ptp(roof[:, 0]) < 0.85 * x and points[:, 2].min() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_a_house_has_its_door_in_front_below_its_roof(seed: int) -> None:
    parts = make_parts("house", np.random.default_rng(seed))
    walls = parts[0]
    knobs = [p for p in parts if (p.colors == (200, 170, 60)).all()]
    assert len(knobs) == 1
    assert knobs[0].vertices[:, 0].mean() > walls.vertices[:, 0].max()
    assert knobs[0].vertices[:, 2].max() < walls.vertices[:, 2].max() <= max(p.vertices[:, 2].max() for p in parts[1:])


@pytest.mark.parametrize("family", ["car", "bus", "plane", "fish", "quadruped", "chair", "armchair", "teddy"])
def test_vehicles_animals_and_seats_are_as_wide_left_as_right(family: str) -> None:
    for seed in SEEDS:
        y = np.concatenate([p.vertices[:, 1] for p in make_parts(family, np.random.default_rng(seed))])
        assert y.max() == pytest.approx(-y.min(), rel=0.03)


def test_an_unknown_family_names_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"'chaise'.*chair.*teapot"):
        make_object("chaise", np.random.default_rng(0))


def test_random_objects_come_from_many_families_by_weight() -> None:
    rng = np.random.default_rng(7)
    found = [random_object(rng).family for _ in range(150)]
    assert len(set(found)) > 40
    assert all(family in FAMILIES and FAMILIES[family].weight > 0 for family in found)


def test_the_front_turns_with_the_name() -> None:
    box = blocks.box((2, 1, 1), RED)
    nose = blocks.box((0.2, 0.2, 0.2), BLUE, (1.1, 0, 0.4))
    for turns, (axis, sign) in enumerate([(0, 1), (1, 1), (0, -1), (1, -1)]):
        shape = finish([box, nose], "toy", turns)
        front = shape.vertices[(shape.colors == BLUE).all(1)].mean(0)
        assert np.argmax(np.abs(front[:2])) == axis and np.sign(front[axis]) == sign
        assert shape.name == "toy-front" + ("+x", "+y", "-x", "-y")[turns]
        assert blocks.signed_volume(shape.vertices.astype(np.float64), shape.faces.astype(np.int64)) > 0


def test_vertices_are_split_where_colours_meet() -> None:
    bands = blocks.lathe([(1, 0), (1, 1), (1, 2)], [RED, BLUE], segments=4)
    shape = finish([bands], "toy", 0)
    # Without the split every face would blend two colours; with it all three corners of a face agree.
    corner_colors = shape.colors[shape.faces]
    assert (corner_colors == corner_colors[:, :1]).all()
    assert {tuple(c) for c in np.unique(shape.colors, axis=0).tolist()} == {RED, BLUE}


def test_block_volumes_by_hand() -> None:
    def volume(part: blocks.Part) -> float:
        assert edges_are_paired(part.faces)
        return blocks.signed_volume(part.vertices, part.faces)

    assert volume(blocks.box((2, 3, 4), RED)) == pytest.approx(24)
    assert volume(blocks.box((2, 3, 4), RED, bevel=0.1)) < 24
    assert volume(blocks.box((2, 3, 4), RED, bevel=0.1)) == pytest.approx(24, rel=0.02)
    # A regular 400-gon's area is pi r^2 but for 4e-5 of it.
    assert volume(blocks.cylinder(2, 3, RED, segments=400)) == pytest.approx(12 * np.pi, rel=1e-4)
    assert volume(blocks.cylinder(2, 3, RED, top=0, segments=400)) == pytest.approx(4 * np.pi, rel=1e-4)
    assert volume(blocks.ellipsoid((1, 2, 3), RED, segments=80, rings=81)) == pytest.approx(8 * np.pi, rel=3e-3)
    # Pappus: a ring's volume is 2 pi R times the area of its cross-section.
    assert volume(blocks.torus(3, 0.5, RED, segments=200, around=80)) == pytest.approx(1.5 * np.pi**2, rel=2e-3)
    assert volume(blocks.extrude([(0, 0), (4, 0), (4, 3)], 2, RED)) == pytest.approx(12)
    tube = blocks.tube([(0, 0, 0), (0, 0, 5)], 1, RED, segments=400)
    assert volume(tube) == pytest.approx(5 * np.pi, rel=1e-4)
    capsule = blocks.capsule((0, 0, 0), (0, 0, 2), 1, RED, segments=100)
    assert 2 * np.pi < volume(capsule) < 2 * np.pi + 4 / 3 * np.pi


def test_cylinder_axes_and_places() -> None:
    along_x = blocks.cylinder(0.1, 2, RED, (1, 0, 0), axis="x", segments=12).vertices
    along_y = blocks.cylinder(0.1, 2, RED, (0, 1, 0), axis="y", segments=12).vertices
    assert along_x[:, 0].min() == pytest.approx(1) and along_x[:, 0].max() == pytest.approx(3)
    assert along_y[:, 1].min() == pytest.approx(1) and along_y[:, 1].max() == pytest.approx(3)


def test_extrude_keeps_the_notch_of_an_l_either_way_round() -> None:
    corner = [(0, 0), (3, 0), (3, 1), (1, 1), (1, 3), (0, 3)]
    for outline in (corner, corner[::-1]):
        part = blocks.extrude(outline, 2, RED, axis="z")
        assert blocks.signed_volume(part.vertices, part.faces) == pytest.approx(10)  # area 5, depth 2


@settings(max_examples=60, deadline=None)
@given(radii=st.lists(st.floats(0.2, 1.0), min_size=3, max_size=14))
def test_ear_clip_covers_any_star_shaped_polygon(radii: list[float]) -> None:
    angle = np.arange(len(radii)) * 2 * np.pi / len(radii)
    outline = np.column_stack([np.cos(angle), np.sin(angle)]) * np.array(radii)[:, None]
    following = np.roll(outline, -1, axis=0)
    area = (outline[:, 0] * following[:, 1] - outline[:, 1] * following[:, 0]).sum() / 2
    a, b, c = (outline[outlines.ear_clip(outline)[:, k]] for k in range(3))
    pieces = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
    assert len(pieces) == len(radii) - 2
    assert (pieces > -1e-9).all() and pieces.sum() == pytest.approx(area, rel=1e-6, abs=1e-9)


def test_splitting_in_four_keeps_volume_and_closure() -> None:
    part = blocks.box((1, 2, 3), RED, bevel=0.2)
    fine = split_in_four(part)
    assert len(fine.faces) == 4 * len(part.faces) and edges_are_paired(fine.faces)
    assert blocks.signed_volume(fine.vertices, fine.faces) == pytest.approx(
        blocks.signed_volume(part.vertices, part.faces)
    )
    assert sum(len(p.faces) for p in enough_faces([blocks.box((1, 1, 1), RED)])) == 768  # 12, 48, 192, 768


def test_mirror_and_turn_keep_faces_outward() -> None:
    part = blocks.lathe([(1, 0), (0.5, 1), (0, 2)], RED, segments=9)
    for other in (part.mirror(), part.mirror("x"), part.turn("x", 70), part.scale(1, 2, 3)):
        assert blocks.signed_volume(other.vertices, other.faces) > 0
    turned = blocks.box((2, 1, 1), RED, (1, 0, 0)).turn("z", 90)
    assert turned.vertices[:, 1].max() == pytest.approx(2) and turned.vertices[:, 1].min() == pytest.approx(0, abs=1e-9)


def test_curve_passes_through_its_points() -> None:
    points = [(0.0, 0.0), (1.0, 2.0), (3.0, 1.0)]
    assert outlines.curve(points, 5)[[0, 2, 4]] == pytest.approx(np.array(points))


def test_example_pictures_are_written_with_alpha_and_without(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("embreex", reason="the example renderer casts rays with embreex (extra train)")
    paths = examples.write_examples(tmp_path, 32, only=("teapot.png", "mushroom-grey.png"))
    assert [p.name for p in paths] == ["teapot.png", "mushroom-grey.png"]
    teapot, mushroom = (np.asarray(Image.open(p)) for p in paths)
    assert teapot.shape == (32, 32, 4) and mushroom.shape == (32, 32, 3)
    assert teapot[0, 0, 3] == 0 and teapot[16, 16, 3] == 255
    corners = mushroom[[0, 0, 31, 31], [0, 31, 0, 31]].astype(int)
    assert corners.min() > 190 and np.ptp(corners) < 12  # one light grey all round
    assert np.ptp(mushroom[16, 16].astype(int)) > 20


def test_examples_refuse_unknown_names(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SettingsError, match=r"'boat\.png'.*chair\.png"):
        examples.write_examples(tmp_path, 32, only=("boat.png",))
    with pytest.raises(SettingsError, match="image_size 4"):
        examples.write_examples(tmp_path, 4)
    assert not list(tmp_path.iterdir())


def test_the_camera_frames_the_object_to_four_fifths() -> None:
    shape = examples.make_shape(examples.EXAMPLES[0])
    points = shape.vertices.astype(np.float64)
    camera = examples.framing_camera(points, 35, 18)
    local = (points - camera.positions[0].numpy()) @ camera.c2w[0, :3, :3].numpy()
    reach = np.abs(local[:, :2] / -local[:, 2:]).max() / np.tan(np.deg2rad(20))
    assert reach == pytest.approx(0.82, abs=0.005)


@pytest.mark.parametrize(("levels", "volume"), [(0, 2.536150710), (3, 4.0 / 3.0 * math.pi)])
def test_icospheres_are_closed_point_outward_and_grow_into_a_ball(levels: int, volume: float) -> None:
    vertices, faces = _icosphere(levels)
    assert (len(vertices), len(faces)) == (10 * 4**levels + 2, 20 * 4**levels)
    assert np.linalg.norm(vertices, axis=1) == pytest.approx(1)
    directed = {(int(a), int(b)) for f in faces for a, b in zip(f, np.roll(f, -1), strict=True)}
    assert len(directed) == 3 * len(faces)
    assert all((b, a) in directed for a, b in directed)
    a, b, c = vertices[faces].transpose(1, 0, 2)
    assert (np.cross(a, b) * c).sum() / 6 == pytest.approx(volume, rel=1e-6 if levels == 0 else 0.02)


def test_a_family_is_written_as_files_that_are_the_same_each_time(tmp_path: Path) -> None:
    from lrm.meshfile import read_mesh
    from train.shapes.__main__ import main, write_family

    first = write_family("mushroom", tmp_path / "a", 2)
    assert [file.name for file in first] == ["mushroom-000.glb", "mushroom-001.glb"]
    again = write_family("mushroom", tmp_path / "b", 2)
    other = write_family("mushroom", tmp_path / "c", 1, seed=1)
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in again]
    assert len({file.read_bytes() for file in (*first, *other)}) == 3
    assert np.ptp(read_mesh(first[0]).vertices, axis=0).max() == pytest.approx(1, abs=1e-4)
    with pytest.raises(SettingsError, match=r"1 of 'lampp'.*lamp, "):
        write_family("lampp", tmp_path, 1)
    assert main(["vase", "-o", str(tmp_path / "d"), "--count", "1"]) == 0
