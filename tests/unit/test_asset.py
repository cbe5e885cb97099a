"""The asset folder: what is in it, that it is whole, and that nothing else is touched."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from lrm.field import FunctionField
from lrm.mesh import Mesh
from multiview.cameras import orbit
from multiview.errors import OutputError, SettingsError, TriliftError
from multiview.views import Views
from trilift import asset as module
from trilift import turntable as films
from trilift.asset import OWNED, Asset
from trilift.foreground import Cutout

# Few and small pictures: what they show is tested in test_turntable.py.
SHORT: dict[str, Any] = {"turntable": True, "turntable_frames": 5, "turntable_size": 24}


def make_asset(**changes: Any) -> Asset:
    """A small asset: a box 0.2 x 0.4 x 0.8 away from the origin, mid-grey."""
    image = np.zeros((16, 16, 4), np.uint8)
    image[4:12, 4:12] = (10, 20, 30, 255)
    cutout = Cutout(
        image=image, method="alpha", foreground_ratio=0.5, box=(4, 5, 12, 13), crop=(0.0, 1.0, 16.0),
        source_size=(16, 18), name="photos/chair.png", checks={"coverage": 0.22, "touches_border": False},
        warnings=("looks thin",),
    )  # fmt: skip
    box = trimesh.creation.box((0.2, 0.4, 0.8))
    asset = Asset(
        name="chair", cutout=cutout, views=None,
        field=FunctionField(lambda p: 20 * torch.ones(len(p)), lambda p: torch.full((len(p), 3), 0.5)),
        mesh=Mesh(box.vertices + 0.1, box.faces, np.full((8, 3), 0.5)),
        camera=orbit(0.0, 20.0, 2.5, 40.0),
        record={"trilift": "0.1.0", "model": {"name": "tiny"}, "seed": 0, "seconds": {"mesh": 1.25}},
    )  # fmt: skip
    return replace(asset, **changes)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_folder_holds_what_was_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "chair"
    paths = make_asset().save(folder, formats=("glb", "ply"))
    assert [path.name for path in paths] == ["mesh.glb", "mesh.ply", "input.png", "asset.json"]
    assert all(path.parent == folder and path.is_file() for path in paths)
    assert names(folder) == {path.name for path in paths} and names(tmp_path / "out") == {"chair"}
    with Image.open(folder / "input.png") as picture:
        assert np.array_equal(np.asarray(picture), make_asset().cutout.image)
    assert trimesh.load(folder / "mesh.glb", force="mesh").extents == pytest.approx([0.5, 1.0, 0.25], abs=1e-6)


def test_record_says_how_it_was_made(tmp_path: Path) -> None:
    asset = make_asset()
    asset.save(tmp_path / "a")
    record = json.loads((tmp_path / "a" / "asset.json").read_text())
    assert record["format"] == 1 and record["name"] == "chair" and record["seed"] == 0
    assert record["seconds"] == {"mesh": 1.25} and list(record)[-1] == "seconds"
    assert record["camera"]["elevation_deg"] == pytest.approx(20, abs=1e-3) and record["camera"]["azimuth_deg"] == 0
    assert record["camera"]["fov_y_deg"] == pytest.approx(40, abs=1e-3)
    assert record["camera"]["distance_world"] == pytest.approx(2.5, abs=1e-5)
    assert record["camera"]["c2w"] == pytest.approx(asset.camera.c2w[0].numpy(), abs=1e-6)
    assert record["mesh"]["faces"] == 12 and record["mesh"]["watertight"] is True
    assert record["cutout"]["box_px"] == [4, 5, 12, 13] and record["cutout"]["warnings"] == ["looks thin"]
    assert record["cutout"]["checks"] == {"coverage": 0.22, "touches_border": False}
    assert record["export"]["up_axis"] == "+y" and record["export"]["front_axis"] == "+z"
    assert [file["name"] for file in record["files"]] == ["mesh.glb", "input.png"]
    assert record["files"][0]["bytes"] == (tmp_path / "a" / "mesh.glb").stat().st_size


def test_matrix_in_the_record_is_the_one_of_the_file(tmp_path: Path) -> None:
    asset = make_asset()
    asset.save(tmp_path / "a", height=2.0)
    matrix = np.array(json.loads((tmp_path / "a" / "asset.json").read_text())["export"]["file_from_world"])
    written = trimesh.load(tmp_path / "a" / "mesh.glb", force="mesh", process=False)
    assert asset.mesh.vertices @ matrix[:3, :3].T + matrix[:3, 3] == pytest.approx(written.vertices, abs=1e-6)
    assert written.extents[1] == pytest.approx(2.0)
    asset.save(tmp_path / "a", scale=10.0)
    assert trimesh.load(tmp_path / "a" / "mesh.glb", force="mesh").extents == pytest.approx([4, 8, 2], rel=1e-5)


def test_equal_runs_give_equal_bytes_but_for_the_clock(tmp_path: Path) -> None:
    make_asset().save(tmp_path / "a", **SHORT)
    make_asset(record=make_asset().record | {"seconds": {"mesh": 9.75}}).save(tmp_path / "b", **SHORT)
    for name in ("mesh.glb", "input.png", "turntable.gif"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    a, b = (json.loads((tmp_path / x / "asset.json").read_text()) for x in "ab")
    assert a.pop("seconds") != b.pop("seconds") and a == b


def test_record_is_valid_json_whatever_is_in_it(tmp_path: Path) -> None:
    wild = {
        "nan": float("nan"),
        "array": np.arange(2),
        "number": np.float32(0.5),
        "path": Path("x"),
        "set": {1: (2, None)},
    }
    make_asset(record=wild).save(tmp_path / "a")

    def refuse(word: str) -> None:
        raise AssertionError(word)

    record = json.loads((tmp_path / "a" / "asset.json").read_text(), parse_constant=refuse)
    assert record["nan"] is None and record["array"] == [0, 1] and record["number"] == 0.5
    assert record["path"] == "x" and record["set"] == {"1": [2, None]} and record["seconds"] == {}


def test_views_and_turntable_are_written_when_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "video_writer", lambda: None)
    views = Views(torch.full((6, 3, 8, 8), 0.5), torch.ones(6, 1, 8, 8), orbit([0, 60, 120, 180, 240, 300], 0, 2, 40))
    make_asset(views=views).save(tmp_path / "a", **SHORT)
    assert names(tmp_path / "a") == {"mesh.glb", "input.png", "views.png", "turntable.gif", "asset.json"}
    with Image.open(tmp_path / "a" / "views.png") as sheet, Image.open(tmp_path / "a" / "turntable.gif") as film:
        assert sheet.size == (4 * 8, 2 * 8) and film.size == (24, 24) and film.n_frames == 5


def test_video_comes_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "video_writer", lambda: "av")
    monkeypatch.setattr(films, "write_video", lambda frames, path, fps: path.write_bytes(b"film"))
    paths = make_asset().save(tmp_path / "a", **SHORT)
    assert [path.name for path in paths] == ["mesh.glb", "input.png", "turntable.gif", "turntable.mp4", "asset.json"]


def test_saving_again_removes_what_is_stale_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    make_asset().save(folder, formats=("glb", "stl"), **SHORT)
    (folder / "notes.txt").write_text("mine")
    (folder / "more").mkdir()
    make_asset(record={"seed": 7}).save(folder, formats=("obj",))
    assert names(folder) == {"mesh.obj", "input.png", "asset.json", "notes.txt", "more"}
    assert json.loads((folder / "asset.json").read_text())["seed"] == 7
    assert names(tmp_path) == {"a"}


def test_folder_has_the_usual_permissions(tmp_path: Path) -> None:
    make_asset().save(tmp_path / "a")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def full_disk_at(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """Let every rename of a file whose new path contains ``word`` fail as a full disk does."""
    real = os.replace

    def replace_(source: Any, target: Any, **options: Any) -> None:
        if word in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target, **options)

    monkeypatch.setattr(os, "replace", replace_)


@pytest.mark.parametrize("word", ["mesh.glb", "input.png", "asset.json"])
def test_full_disk_leaves_no_half_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    full_disk_at(monkeypatch, word)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        make_asset().save(tmp_path / "out" / "chair")
    assert str(tmp_path / "out" / "chair") in str(caught.value) and ".aside-" not in str(caught.value)
    assert names(tmp_path / "out") == set()


@pytest.mark.parametrize("fail_at", range(8))
def test_a_failed_exchange_brings_the_earlier_result_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    folder = tmp_path / "a"
    make_asset(record={"seed": 1}).save(folder, formats=("glb", "ply"))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    moves = 0
    real = Path.replace

    def counted(self: Path, target: Any) -> Any:
        nonlocal moves
        moves += 1
        # Four files leave and three arrive, 7 moves in all; those that undo come after and go through.
        if moves == fail_at + 1:
            raise OSError(errno.EIO, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", counted)
    if fail_at == 7:
        make_asset(record={"seed": 2}).save(folder)
        assert moves == 7 and names(folder) == {"mesh.glb", "input.png", "asset.json"}
        return
    with pytest.raises(OutputError, match="Input/output error"):
        make_asset(record={"seed": 2}).save(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert names(tmp_path) == {"a"}


def test_while_files_move_there_is_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a"
    make_asset().save(folder)
    order: list[str] = []
    real = Path.replace

    def recorded(self: Path, target: Any) -> Any:
        order.append(self.name)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", recorded)
    make_asset().save(folder)
    assert order[0] == "asset.json" and order[-1] == "asset.json" and order.count("asset.json") == 2


def test_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"file: is a file"):
        make_asset().save(tmp_path / "file")
    with pytest.raises(OutputError, match="could not be written"):
        make_asset().save(tmp_path / "file" / "below")
    assert names(tmp_path) == {"file"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"formats": ("glb", "fbx")}, "glb or obj or ply or stl or usdz"),
        ({"formats": ()}, "one or more"),
        ({"height": 1.0, "scale": 1.0}, "exclude each other"),
        ({"height": -1.0}, "height=-1.0: expected a number above 0"),
        ({"profile": "maya"}, "blender or unity or unreal or web or print"),
        ({"turntable_formats": ("avi",)}, "gif or webp or png or mp4"),
        ({"lods": 9}, "whole number from 0 to 4"),
        ({"roughness": 1.5}, "a number from 0 to 1"),
        ({"hight": 1.0}, "Did you mean 'height'"),
    ],
)
def test_bad_settings_touch_nothing(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        make_asset().save(tmp_path / "a", **options)
    assert names(tmp_path) == set()


def test_missing_extra_leaves_the_earlier_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_asset().save(tmp_path / "a")
    before = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TriliftError, match=r"trilift\[usd\]"):
        make_asset().save(tmp_path / "a", formats=("glb", "usdz"))
    assert {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()} == before


def test_glb_names_its_maker(tmp_path: Path) -> None:
    make_asset().save(tmp_path / "a")
    data = (tmp_path / "a" / "mesh.glb").read_bytes()
    document = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
    assert document["asset"]["generator"] == "trilift 0.1.0"
    extras = document["asset"]["extras"]
    assert extras["name"] == "chair" and extras["model"] == "tiny"


def test_all_names_that_may_be_written_are_owned() -> None:
    assert {"mesh.glb", "mesh.usdz", "input.png", "views.png", "turntable.gif", "turntable.mp4"} < set(OWNED)
    assert OWNED[-1] == "asset.json"
