"""Pictures with cameras, read from and written to disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from multiview.camerafile import read_views, write_views, zero123plus_cameras, zero123plus_views
from multiview.cameras import opencv_from_opengl, orbit
from multiview.errors import CameraError, ImageError, OutputError, TriliftError
from multiview.views import Views

LEVEL = {"azimuth_deg": 0, "elevation_deg": 0, "distance": 2.0, "fov_y_deg": 40.0}
IDENTITY = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
K = [[1.2, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]]


def save(path: Path, width: int = 8, height: int = 8, color: tuple[int, ...] = (10, 20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA" if len(color) == 4 else "RGB", (width, height), color).save(path)


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return path


def own(folder: Path, *views: dict[str, Any], **top: Any) -> Path:
    save(folder / "a.png")
    return write_json(folder / "cameras.json", {"format": 1, "views": list(views), **top})


# Our own format


def random_views(seed: int, count: int, height: int, width: int) -> Views:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 4, height, width, generator=generator)
    angles = torch.rand(count, 4, generator=generator)
    cameras = orbit(360 * angles[:, 0], 170 * angles[:, 1] - 85, 1 + 4 * angles[:, 2], 10 + 100 * angles[:, 3])
    return Views(images[:, :3], images[:, 3:], cameras)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6), count=st.integers(1, 4), height=st.integers(1, 9), width=st.integers(1, 9),
)  # fmt: skip
def test_what_is_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, height: int, width: int
) -> None:
    folder = tmp_path_factory.mktemp("views")
    views = random_views(seed, count, height, width)
    write_views(folder, views)
    again = read_views(folder)
    assert torch.equal(again.cameras.c2w, views.cameras.c2w)
    assert torch.equal(again.cameras.intrinsics, views.cameras.intrinsics)
    assert (again.images - views.images).abs().max() <= 0.5 / 255 + 1e-6
    assert (again.alpha - views.alpha).abs().max() <= 0.5 / 255 + 1e-6
    # Once it went through 8 bits, nothing is lost any more.
    write_views(folder, again)
    assert torch.equal(read_views(folder).images, again.images)


def test_nothing_but_the_stated_files_is_written(tmp_path: Path) -> None:
    write_views(tmp_path / "new" / "folder", random_views(0, 2, 4, 4))
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == ["000.png", "001.png", "cameras.json"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="could not be written"):
        write_views(tmp_path / "file" / "views", random_views(0, 1, 2, 2))
    with pytest.raises(ImageError, match="no views to write"):
        write_views(tmp_path, random_views(0, 1, 2, 2).select([]))


def test_views_by_angles_share_what_stands_at_the_top(tmp_path: Path) -> None:
    save(tmp_path / "sub" / "b.png", color=(255, 0, 0, 51))
    views = [
        {"image": "a.png", "azimuth_deg": 30},
        {"image": "sub/b.png", "azimuth_deg": -90, "distance": 3.5},
    ]
    own(tmp_path, *views, elevation_deg=20, distance=4.0, fov_y_deg=30)
    read = read_views(tmp_path)
    expected = orbit([30, -90], 20, [4.0, 3.5], 30)
    assert torch.equal(read.cameras.c2w, expected.c2w)
    assert torch.equal(read.cameras.intrinsics, expected.intrinsics)
    assert read.images[0, :, 3, 3].tolist() == pytest.approx([10 / 255, 20 / 255, 30 / 255])
    assert read.alpha[:, 0, 0, 0].tolist() == pytest.approx([1.0, 0.2])
    assert read.images[1, :, 0, 0].tolist() == [1, 0, 0]  # straight, not multiplied by alpha


def test_angles_go_with_square_pixels_whatever_the_pictures_shape(tmp_path: Path) -> None:
    own(tmp_path, {"image": "wide.png", **LEVEL})
    save(tmp_path / "wide.png", 16, 8)
    k = read_views(tmp_path).cameras.intrinsics[0]
    assert k[1, 1].item() == pytest.approx(0.5 / math.tan(math.radians(20)), abs=1e-6)
    assert k[0, 0].item() == pytest.approx(k[1, 1].item() / 2, abs=1e-6)


def test_matrices_in_both_axes_give_the_same_camera(tmp_path: Path) -> None:
    camera = orbit(40.0, 25.0, 3.0, 50.0)
    theirs = opencv_from_opengl(camera.c2w)[0]
    for axes, pose in (("opengl", camera.c2w[0]), ("opencv", theirs)):
        rows = pose[:3].tolist()  # the last row may be left out
        own(tmp_path, {"image": "a.png", "c2w": rows, "intrinsics_norm": camera.intrinsics[0].tolist()}, axes=axes)
        read = read_views(tmp_path).cameras
        assert torch.allclose(read.c2w, camera.c2w)
        assert torch.equal(read.intrinsics, camera.intrinsics)


def test_a_mask_replaces_the_alpha(tmp_path: Path) -> None:
    own(tmp_path, {"image": "a.png", "mask": "m.png", **LEVEL})
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "m.png")
    assert (read_views(tmp_path).alpha[0, 0] * 255).round().flatten().tolist() == list(range(64))
    save(tmp_path / "m.png", 4, 8)
    with pytest.raises(ImageError, match=r"m\.png: expected a mask of 8 x 8 px as a\.png has, found 4 x 8 px"):
        read_views(tmp_path)


@pytest.mark.parametrize(
    ("views", "top", "words"),
    [
        ([], {}, 'expected a list "views" with at least one entry, found an empty list'),
        ([7], {}, r"views\[0\]: expected an object, found 7"),
        ([{**LEVEL}], {}, r'views\[0\]: says no "image"'),
        ([{"image": "a.png", "azimut_deg": 3}], {}, "unknown key 'azimut_deg'. Did you mean 'azimuth_deg'"),
        ([{"image": "a.png", "azimuth_deg": 3, "distance": 2}], {}, "no elevation_deg and no fov_y_deg"),
        ([{"image": "a.png", **LEVEL, "distance": 0}], {}, r"views\[0\]: orbit wants distance > 0"),
        ([{"image": "a.png", **LEVEL, "fov_y_deg": "40"}], {}, "fov_y_deg is '40', expected a finite number"),
        ([{"image": "a.png", **LEVEL, "distance": True}], {}, "distance is True"),
        ([{"image": 5, **LEVEL}], {}, "image is 5, expected a file name"),
        ([{"image": "a.png", "c2w": IDENTITY}], {}, "c2w needs intrinsics_norm beside it"),
        ([{"image": "a.png", "c2w": IDENTITY[:2], "intrinsics_norm": K}], {}, "expected 3 or 4 rows of 4 numbers"),
        ([{"image": "a.png", "c2w": [[1, 2]] * 3, "intrinsics_norm": K}], {}, r"found a row \[1, 2\]"),
        (
            [{"image": "a.png", "c2w": [*IDENTITY[:3], [1, 0, 0, 1]], "intrinsics_norm": K}], {},
            "expected the last row 0 0 0 1",
        ),
        (
            [{"image": "a.png", "c2w": [[2, 0, 0, 0], *IDENTITY[1:]], "intrinsics_norm": K}], {},
            r"views\[0\]: c2w is not rigid",
        ),
        (
            [{"image": "a.png", "c2w": IDENTITY, "intrinsics_norm": [[-1, 0, 0.5], *K[1:]]}], {},
            "focal lengths are -1 and 1.2, expected positive",
        ),
        ([{"image": "a.png", **LEVEL}], {"axes": "blender"}, "\"axes\" is 'blender', expected"),
        ([{"image": "a.png", **LEVEL}], {"format": 2}, '"format": 1, found 2'),
        ([{"image": "a.png", **LEVEL}], {"azimuth": 2}, "unknown key 'azimuth'"),
    ],
)  # fmt: skip
def test_what_a_file_says_wrongly_is_named(tmp_path: Path, views: list[Any], top: dict[str, Any], words: str) -> None:
    own(tmp_path, *views, **top)
    with pytest.raises(CameraError, match=words) as caught:
        read_views(tmp_path)
    assert str(tmp_path / "cameras.json") in str(caught.value)


def test_pictures_that_are_not_there_or_differ_are_named(tmp_path: Path) -> None:
    own(tmp_path, {"image": "a.png", **LEVEL}, {"image": "b.png", **LEVEL})
    with pytest.raises(ImageError, match=r"views\[1\]: image names .*b\.png, which is not there"):
        read_views(tmp_path)
    save(tmp_path / "b.png", 9, 8)
    with pytest.raises(ImageError, match=r"b\.png: 9 x 8 px, but a\.png is 8 x 8 px"):
        read_views(tmp_path)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(ImageError, match=r"b\.png: not readable as a picture"):
        read_views(tmp_path)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(ImageError, match=r"b\.png: expected an 8-bit picture, found mode I;16"):
        read_views(tmp_path)


# NeRF's format


def nerf(folder: Path, frames: list[dict[str, Any]], **top: Any) -> Path:
    return write_json(folder / "transforms.json", {"frames": frames, **top})


def test_blenders_scenes_are_read_without_suffix_and_in_order(tmp_path: Path) -> None:
    cameras = orbit([0, 120], [10, -5], 4.0, 50.0)
    for i in range(2):
        save(tmp_path / "train" / f"r_{i}.png", color=(50 * i, 0, 0, 255))
    frames = [{"file_path": f"./train/r_{i}", "transform_matrix": cameras.c2w[i].tolist()} for i in (1, 0)]
    nerf(tmp_path, frames, camera_angle_x=math.radians(50))
    read = read_views(tmp_path)
    assert torch.allclose(read.cameras.c2w, cameras.c2w[[1, 0]], atol=1e-6)
    assert torch.allclose(read.cameras.intrinsics, cameras.intrinsics, atol=1e-6)
    assert (read.images[:, 0, 0, 0] * 255).tolist() == pytest.approx([50, 0])


def test_a_wide_picture_has_square_pixels_and_scale_is_taken_off(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", 20, 10)
    pose = orbit(10.0, 20.0, 3.0, 40.0).c2w[0]
    scaled = pose.clone()
    scaled[:3, :3] *= 2.5
    nerf(tmp_path, [{"file_path": "a", "transform_matrix": scaled.tolist()}], camera_angle_x=math.pi / 2)
    read = read_views(tmp_path).cameras
    assert torch.allclose(read.c2w[0], pose, atol=1e-6)
    assert [read.intrinsics[0, i, i].item() for i in (0, 1)] == pytest.approx([0.5, 1.0], abs=1e-6)


def test_focal_lengths_in_pixels_belong_to_the_stated_size(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 20, 10)  # reduced to half since the cameras were found
    frame = {"file_path": "a.png", "transform_matrix": IDENTITY, "cx": 22.0}
    nerf(tmp_path, [frame], fl_x=60.0, fl_y=50.0, cy=9.0, w=40, h=20, k1=0.0, camera_model="OPENCV")
    k = read_views(tmp_path).cameras.intrinsics[0]
    expected = [[1.5, 0, 0.55], [0, 2.5, 0.45], [0, 0, 1]]
    assert torch.allclose(k, torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("frame", "top", "words"),
    [
        ({}, {}, r"frames\[0\]: no focal length. Give camera_angle_x"),
        ({}, {"camera_angle_x": 40}, r"camera_angle_x is 40, expected radians .*not degrees"),
        ({}, {"fl_x": 0}, "focal lengths are 0 and 0, expected positive"),
        ({}, {"fl_x": 9, "w": 8, "h": 4}, "the camera is for 8 x 4 px, the picture has 8 x 8 px"),
        ({}, {"fl_x": 9, "k1": 0.1}, r"without distortion, found k1 = 0.1. Undistort"),
        ({}, {"fl_x": 9, "camera_model": "OPENCV_FISHEYE"}, "found camera_model 'OPENCV_FISHEYE'"),
        ({"transform_matrix": None}, {"fl_x": 9}, "transform_matrix: expected 3 or 4 rows"),
        ({"transform_matrix": [[0] * 4] * 3}, {"fl_x": 9}, "column of zeros"),
        ({"transform_matrix": [[-1, 0, 0, 0], *IDENTITY[1:]]}, {"fl_x": 9}, r"frames\[0\]: c2w is not rigid"),
        ({"transform_matrix": orbit(1.0, 2.0, 3.0, 40.0).c2w[0].T.tolist()}, {"fl_x": 9}, "transposed"),
    ],
)
def test_what_a_nerf_file_says_wrongly_is_named(
    tmp_path: Path, frame: dict[str, Any], top: dict[str, Any], words: str
) -> None:
    save(tmp_path / "a.png")
    nerf(tmp_path, [{"file_path": "a.png", "transform_matrix": IDENTITY, **frame}], **top)
    with pytest.raises(CameraError, match=words) as caught:
        read_views(tmp_path)
    assert "transforms.json" in str(caught.value)


def test_a_frame_without_its_parts_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    nerf(tmp_path, [{"transform_matrix": IDENTITY}], fl_x=9)
    with pytest.raises(CameraError, match=r'frames\[0\]: says no "file_path"'):
        read_views(tmp_path)
    nerf(tmp_path, [{"file_path": "a"}], fl_x=9)
    with pytest.raises(CameraError, match=r"frames\[0\]: no transform_matrix"):
        read_views(tmp_path)


# Zero123++'s sheet


def test_the_six_cameras_are_the_published_ones() -> None:
    cameras = zero123plus_cameras()
    assert cameras.c2w[0, :3].flatten().tolist() == pytest.approx(
        [-0.5, -0.296198, 0.813798, 3.255191, 0.866025, -0.171010, 0.469846, 1.879385, 0, 0.939693, 0.342020, 1.368081],
        abs=1e-6,
    )
    assert cameras.c2w[1, :3].flatten().tolist() == pytest.approx(
        [-1, 0, 0, 0, 0, 0.173648, 0.984808, 3.939231, 0, 0.984808, -0.173648, -0.694593], abs=1e-6
    )
    assert cameras.intrinsics[:, 0, 0].tolist() == pytest.approx([1.866025] * 6, abs=1e-6)
    assert zero123plus_cameras(2.0).positions.norm(dim=-1).tolist() == pytest.approx([2.0] * 6)


def sheet(side: int = 4, channels: int = 3) -> np.ndarray:
    """Tile k has red 10 * k; green counts the rows of a tile, blue its columns."""
    picture = np.zeros((3 * side, 2 * side, channels), np.uint8)
    for row in range(3):
        for column in range(2):
            tile = picture[row * side : (row + 1) * side, column * side : (column + 1) * side]
            tile[..., 0] = 10 * (2 * row + column)
            tile[..., 1] = np.arange(side)[:, None]
            tile[..., 2] = np.arange(side)
    return picture


def test_a_sheet_is_cut_row_by_row() -> None:
    views = zero123plus_views(sheet())
    assert views.image_size == (4, 4)
    tiles = (views.images * 255).round()
    assert tiles[:, 0, 2, 1].tolist() == [0, 10, 20, 30, 40, 50]
    assert tiles[3, 1, :, 0].tolist() == [0, 1, 2, 3]
    assert tiles[3, 2, 0].tolist() == [0, 1, 2, 3]
    assert views.alpha.min() == 1
    assert zero123plus_views(sheet(channels=4)).alpha.max() == 0


@pytest.mark.parametrize("shape", [(8, 12, 3), (12, 10, 3), (13, 8, 3), (0, 0, 3), (12, 9, 3)])
def test_a_picture_that_is_no_sheet_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=f"3 rows of 2 square tiles .*found {shape[1]} x {shape[0]} px"):
        zero123plus_views(np.zeros(shape, np.uint8))


def test_a_sheet_alone_in_a_folder_or_by_name_is_read(tmp_path: Path) -> None:
    Image.fromarray(sheet()).save(tmp_path / "views.png")
    expected = zero123plus_views(sheet())
    for path in (tmp_path, tmp_path / "views.png"):
        assert torch.equal(read_views(path).images, expected.images)
    save(tmp_path / "views.png", 8, 8)
    with pytest.raises(ImageError, match=r"views\.png: expected a Zero123\+\+ sheet"):
        read_views(tmp_path)


# Finding the file


def test_our_own_file_comes_before_nerfs_and_both_before_a_sheet(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    nerf(tmp_path, [{"file_path": "a.png", "transform_matrix": IDENTITY}], camera_angle_x=1.0)
    assert read_views(tmp_path).cameras.positions.tolist() == [[0, 0, 0]]
    own(tmp_path, {"image": "a.png", **LEVEL})
    assert read_views(tmp_path).cameras.positions[0].tolist() == pytest.approx([2, 0, 0])
    assert read_views(str(tmp_path / "transforms.json")).cameras.positions.tolist() == [[0, 0, 0]]


def test_what_was_looked_for_and_found_is_said(tmp_path: Path) -> None:
    with pytest.raises(CameraError, match=r"nowhere: not found. Give a folder"):
        read_views(tmp_path / "nowhere")
    with pytest.raises(CameraError, match=r"no cameras. Expected cameras\.json, transforms\.json .*found 0 pictures"):
        read_views(tmp_path)
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    write_json(tmp_path / "transforms_train.json", {})
    with pytest.raises(CameraError, match=r"found 2 pictures .* one of these files itself: transforms_train\.json"):
        read_views(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not readable as JSON"), ("[1]", "expected a JSON object, found list"), ("\x00\xff", "not readable")],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "cameras.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CameraError, match=words) as caught:
        read_views(tmp_path)
    assert "cameras.json" in str(caught.value)


def json_values() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["a.png", "", "\0", "x" * 300])
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["image", "c2w", "mask", "file_path", *LEVEL, "w", "fl_x"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )


@settings(max_examples=80)
@given(values=json_values(), key=st.sampled_from(["views", "frames"]), broken=st.sampled_from([None, *LEVEL, "c2w"]))
def test_no_file_makes_anything_but_views_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, values: Any, key: str, broken: str | None
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    save(folder / "a.png")
    entry = {"image": "a.png", "file_path": "a.png", "transform_matrix": IDENTITY, **LEVEL}
    entry = {k: v for k, v in entry.items() if k in (LEVEL.keys() | {"image"} if key == "views" else entry)}
    rows = values if broken is None else [{**entry, broken: values}]
    write_json(
        folder / "cameras.json", {"format": 1, key: rows, "fl_x": 3} if key == "frames" else {"format": 1, key: rows}
    )
    try:
        assert len(read_views(folder)) >= 1
    except TriliftError as error:
        assert str(folder) in str(error)
