"""Readers of posed pictures: every layout gives the same cameras, flags turn them, and bad data is named."""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from multiview.cameras import Cameras, opencv_from_opengl, orbit
from multiview.errors import CameraError, ImageError, SettingsError, TriliftError
from train.layouts import LENS_FOV_DEG, find_posed, layout_of, read_plain_pickle, read_posed
from train.points import PointSet
from train.posed import ReadFlags, add_flags, flags_of

SIZE = 8
CAMERAS = orbit([0.0, 90.0, 200.0], [30.0, -10.0, 45.0], 1.5, LENS_FOV_DEG)


def picture(path: Path, value: int, size: tuple[int, int] = (SIZE, SIZE)) -> None:
    """A picture whose left half is opaque grey ``value``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    pixels[:, : size[0] // 2] = (value, value, value, 255)
    Image.fromarray(pixels).save(path)


def pictures(folder: Path, count: int = 3) -> None:
    for index in range(count):
        picture(folder / f"{index:03d}.png", 10 * (index + 1))


def transforms(folder: Path, **more: object) -> Path:
    pictures(folder / "rgba")
    frames = [{"file_path": f"rgba/{i:03d}.png", "transform_matrix": c2w.tolist()} for i, c2w in enumerate(CAMERAS.c2w)]
    document = {"camera_angle_x": math.radians(LENS_FOV_DEG), "frames": frames, **more}
    (folder / "transforms.json").write_text(json.dumps(document))
    return folder


def openlrm(folder: Path) -> Path:
    pictures(folder / "rgba")
    (folder / "pose").mkdir()
    for index, c2w in enumerate(CAMERAS.c2w.numpy()):
        np.save(folder / "pose" / f"{index:03d}.npy", c2w[:3])
    focal = SIZE / 2 / math.tan(math.radians(LENS_FOV_DEG / 2))
    np.save(folder / "intrinsics.npy", np.array([[focal, focal], [SIZE / 2, SIZE / 2], [SIZE, SIZE]]))
    return folder


def zero123(folder: Path) -> Path:
    pictures(folder)
    for index, w2c in enumerate(CAMERAS.w2c.numpy()):
        np.save(folder / f"{index:03d}.npy", w2c[:3])
    return folder


def syncdreamer(folder: Path, protocol: int = 4) -> Path:
    pictures(folder)
    w2c = Cameras(opencv_from_opengl(CAMERAS.c2w), CAMERAS.intrinsics).w2c.numpy()[:, :3]
    k = np.array([[35 / 32 * SIZE, 0, SIZE / 2], [0, 35 / 32 * SIZE, SIZE / 2], [0, 0, 1]])
    content = [k, np.zeros(3, np.float32), np.float32(0.5) * np.ones(3), np.full(3, 1.5), w2c]
    (folder / "meta.pkl").write_bytes(pickle.dumps(content, protocol))
    return folder


MAKERS = {"transforms": transforms, "openlrm": openlrm, "zero123": zero123, "syncdreamer": syncdreamer}


@pytest.mark.parametrize("layout", MAKERS)
def test_every_layout_gives_the_same_cameras(layout: str, tmp_path: Path) -> None:
    obj = read_posed(MAKERS[layout](tmp_path / "chair"))
    assert (obj.name, obj.layout, len(obj), obj.image_size) == ("chair", layout, 3, (SIZE, SIZE))
    assert torch.allclose(obj.cameras.c2w, CAMERAS.c2w, atol=1e-6)
    assert torch.allclose(obj.cameras.intrinsics, CAMERAS.intrinsics, atol=1e-5)
    assert obj.scene_radius == (0.5 if layout in ("zero123", "syncdreamer") else None)
    views = obj.views([2, 0])
    assert views.images[0, 0, 0, 0] == pytest.approx(30 / 255) and views.images[1, 0, 0, 0] == pytest.approx(10 / 255)
    assert views.alpha[0, 0, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert torch.allclose(views.cameras.c2w[0], CAMERAS.c2w[2], atol=1e-6)


def test_our_cameras_json_is_a_layout_too(tmp_path: Path) -> None:
    from multiview.camerafile import write_views
    from multiview.views import Views

    write_views(tmp_path / "a", Views(torch.zeros(3, 3, 4, 4), torch.ones(3, 1, 4, 4), CAMERAS))
    obj = read_posed(tmp_path / "a")
    assert obj.layout == "cameras" and torch.allclose(obj.cameras.c2w, CAMERAS.c2w, atol=1e-6)


def test_objects_are_found_below_a_folder_and_not_within_objects(tmp_path: Path) -> None:
    transforms(tmp_path / "b" / "chair")
    openlrm(tmp_path / "a")
    zero123(tmp_path / "b" / "chair" / "inner")
    transforms(tmp_path / ".aside-x")
    assert [(one.name, one.layout) for one in find_posed(tmp_path)] == [("a", "openlrm"), ("b/chair", "transforms")]
    assert find_posed(tmp_path / "a")[0].name == "a"
    assert layout_of(tmp_path / "b") is None


def test_pictures_are_made_smaller_by_area_and_without_dark_seams(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "000.png", 200, (6, 6))
    np.save(tmp_path / "a" / "000.npy", CAMERAS.w2c[0].numpy())
    views = read_posed(tmp_path / "a").views(size=2)
    assert views.alpha[0, 0, 0].tolist() == [1, 0] and views.images[0, 0, 0, 0] == pytest.approx(200 / 255)
    third = read_posed(tmp_path / "a").views(size=4)  # the second of four columns is whole, the third is not
    assert third.alpha[0, 0, 0].tolist() == [1, 1, 0, 0]


def test_labelled_points_are_read_beside_the_pictures(tmp_path: Path) -> None:
    folder = transforms(tmp_path / "a", scene_radius=0.5)
    points = PointSet(
        np.zeros((4, 3), np.float16), np.ones(4, bool), np.ones((2, 3), np.float16), np.zeros((2, 3), np.uint8)
    )
    np.savez_compressed(folder / "points.npz", **vars(points))
    obj = read_posed(folder)
    read = obj.labelled_points()
    assert obj.scene_radius == 0.5 and read is not None and read.inside.all() and read.surface.shape == (2, 3)
    (folder / "points.npz").write_bytes(b"PK")
    with pytest.raises(ImageError, match=r"points\.npz.*labelled points"):
        read_posed(folder).labelled_points()


# Flags


def test_flags_undo_what_was_stored_otherwise(tmp_path: Path) -> None:
    folder = transforms(tmp_path / "a")
    document = json.loads((folder / "transforms.json").read_text())
    stored = Cameras(opencv_from_opengl(CAMERAS.c2w), CAMERAS.intrinsics).w2c
    for frame, matrix in zip(document["frames"], stored, strict=True):
        frame["transform_matrix"] = matrix.tolist()
    (folder / "transforms.json").write_text(json.dumps(document))
    obj = read_posed(folder, ReadFlags(camera_convention="opencv", pose="w2c"))
    assert torch.allclose(obj.cameras.c2w, CAMERAS.c2w, atol=1e-5)
    assert obj.flags.difference(obj.layout_flags) == ["--camera-convention=opencv", "--pose=w2c"]


def test_world_flags_by_hand(tmp_path: Path) -> None:
    obj = read_posed(transforms(tmp_path / "a"))
    x, y, z = CAMERAS.positions[0].tolist()
    turned = obj.with_flags(ReadFlags(up="y")).cameras.positions[0]
    assert torch.allclose(turned, torch.tensor([z, x, y]), atol=1e-6)  # glTF's front +z becomes +x
    moved = obj.with_flags(ReadFlags(center=(0.5, 0.0, 0.0), scene_scale=2.0)).cameras.positions[0]
    assert torch.allclose(moved, torch.tensor([2 * x - 1, 2 * y, 2 * z]), atol=1e-6)
    wide = obj.with_flags(ReadFlags(fov_scale=1.5)).cameras
    assert wide.fov_y_deg[0].item() == pytest.approx(1.5 * LENS_FOV_DEG, abs=1e-3)
    aimed = obj.with_flags(ReadFlags(look_at=(0.0, 0.0, 0.3))).cameras
    toward = torch.tensor([0.0, 0.0, 0.3]) - aimed.positions
    assert torch.allclose(-aimed.c2w[:, :3, 2], toward / toward.norm(dim=1, keepdim=True), atol=1e-5)


@pytest.mark.parametrize("up", ["z", "-z", "y", "-y", "x", "-x"])
def test_up_flags_turn_and_never_mirror(up: str, tmp_path: Path) -> None:
    from train.posed import up_rotation

    turn = up_rotation(up)
    axis = (-1.0 if up[0] == "-" else 1.0) * torch.eye(3)["xyz".index(up[-1])]
    assert torch.equal(turn @ axis, torch.tensor([0.0, 0.0, 1.0])) and torch.linalg.det(turn) == 1


def test_picture_flags(tmp_path: Path) -> None:
    obj = read_posed(transforms(tmp_path / "a"), ReadFlags(mirror=True, order=(2, 0, 1)))
    assert obj.pixels(0)[0, -1].tolist() == [30, 30, 30, 255] and obj.pixels(0)[0, 0, 3] == 0
    with pytest.raises(CameraError, match=r"--order has 2 numbers up to 1, expected each of 0 to 2"):
        obj.with_flags(ReadFlags(order=(0, 1)))


def test_flags_come_from_the_command_line() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    words = ["--pose=w2c", "--up=-y", "--center=1,2,-3", "--fov-scale=1.2", "--mirror", "--order=1,0"]
    flags = flags_of(parser.parse_args(words))
    assert flags == ReadFlags(pose="w2c", up="-y", center=(1, 2, -3), fov_scale=1.2, mirror=True, order=(1, 0))
    assert sorted(flags.difference(ReadFlags())) == sorted(words)
    with pytest.raises(SettingsError, match=r"--scene-scale -1.*positive"):
        flags_of(parser.parse_args(["--scene-scale", "-1"]))


# Bad data


def edit(folder: Path, **changes: object) -> None:
    """Change ``transforms.json``; None takes a key away."""
    document = json.loads((folder / "transforms.json").read_text())
    document |= changes
    (folder / "transforms.json").write_text(json.dumps({k: v for k, v in document.items() if v is not None}))


def scaled_pose(folder: Path) -> None:
    pose = CAMERAS.c2w[0].numpy().copy()
    pose[:3, :3] *= 1.2
    np.save(folder / "pose" / "001.npy", pose)


BROKEN = {
    "no intrinsics": (transforms, lambda f: edit(f, camera_angle_x=None), r"transforms\.json.*no focal length"),
    "no intrinsics file": (openlrm, lambda f: (f / "intrinsics.npy").unlink(), r"no intrinsics\.npy"),
    "distortion": (transforms, lambda f: edit(f, k1=0.1), r"k1 = 0\.1. Undistort"),
    "not rigid": (openlrm, scaled_pose, r"001\.npy.*not rigid.*0\.44"),
    "no picture": (zero123, lambda f: (f / "001.png").unlink(), r"001\.png.*not there"),
    "no pose": (openlrm, lambda f: (f / "pose" / "002.npy").unlink(), r"3 pictures.*2 poses.*no pose for 002\.png"),
    "too few": (syncdreamer, lambda f: (f / "002.png").unlink(), r"3 poses.*2 numbered pictures"),
    "sizes": (zero123, lambda f: picture(f / "002.png", 9, (4, 8)), r"002\.png: 4 x 8 px, but 000\.png is 8 x 8"),
    "no such picture": (transforms, lambda f: (f / "rgba" / "001.png").unlink(), r"frames\[1\].*not there"),
    "NaN": (zero123, lambda f: np.save(f / "001.npy", np.full((3, 4), np.nan)), r"001\.npy.*found NaN or Inf"),
    "shape": (zero123, lambda f: np.save(f / "001.npy", np.eye(3)), r"001\.npy.*found \(3, 3\)"),
    "objects": (zero123, lambda f: np.save(f / "001.npy", np.array([{}])), r"001\.npy.*not readable"),
    "no number": (transforms, lambda f: edit(f, scene_radius="big"), r"scene_radius is 'big'"),
    "pickle cut": (syncdreamer, lambda f: (f / "meta.pkl").write_bytes(b"\x80\x04"), r"meta\.pkl.*not a whole pickle"),
    "other pickle": (
        syncdreamer, lambda f: (f / "meta.pkl").write_bytes(pickle.dumps([1, 2])), r"meta\.pkl.*found list of 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_bad_data_is_named(name: str, tmp_path: Path) -> None:
    make, spoil, message = BROKEN[name]
    folder = make(tmp_path / "chair")
    spoil(folder)
    with pytest.raises(TriliftError, match=message) as raised:
        read_posed(folder)
    assert "chair" in str(raised.value)


def test_an_empty_folder_and_a_missing_one(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    with pytest.raises(CameraError, match=r"no posed pictures.*found none and 1 pictures"):
        find_posed(tmp_path)
    with pytest.raises(CameraError, match="found nothing there"):
        find_posed(tmp_path / "not")
    with pytest.raises(CameraError, match="found none of them"):
        read_posed(tmp_path)


# Pickles


class Evil:
    """A pickle of it makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_does_not(tmp_path: Path) -> None:
    folder = syncdreamer(tmp_path / "chair")
    (folder / "meta.pkl").write_bytes(pickle.dumps([np.eye(3), Evil(tmp_path / "ran")]))
    with pytest.raises(CameraError, match=r"meta\.pkl.*mkdir.*Nothing was run"):
        read_posed(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    assert torch.allclose(read_posed(syncdreamer(tmp_path / "a", protocol)).cameras.c2w, CAMERAS.c2w, atol=1e-6)


def test_pickles_hold_numbers_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps({"a": np.float64(2.5), "b": [1, "x", (True, None)]}))
    assert read_plain_pickle(file) == {"a": 2.5, "b": [1, "x", (True, None)]}
    file.write_bytes(pickle.dumps(np.array([Path("x")], object)))
    with pytest.raises(CameraError, match="Nothing was run"):
        read_plain_pickle(file)
    # An array that asks for a terabyte gets nothing.
    data = pickle.dumps(np.zeros(3))
    huge = data.replace(b"K\x00\x85", b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85", 1)
    assert huge != data
    file.write_bytes(huge)
    assert read_plain_pickle(file).shape == (3,)
