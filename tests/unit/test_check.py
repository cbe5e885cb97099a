"""The pose linter names planted mistakes, mends them with the flags it gives, and is quiet on clean data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.linter import MISTAKES, named_first, planted, settings_of
from multiview.camerafile import write_transforms, write_views
from multiview.cameras import Cameras, orbit
from multiview.views import Views
from tests.balls import BODY, mattes
from train.carving import outlines_of
from train.check import ERROR, WARNING, find_mattes, judge, main
from train.layouts import FoundObject
from train.mistakes import nice_factor
from train.objects import TrainingObject
from train.posed import ReadFlags
from train.renderset import render_object
from train.shapes import make_object

RING = orbit([22.5 * k for k in range(16)], 30.0, 2.0, 45.0)
FAMILIES = ("teapot", "chair", "quadruped")


def save(folder: Path, cameras: Cameras = RING, balls: np.ndarray = BODY, size: int = 64) -> Path:
    """The balls' pictures with ``transforms.json``; every row of a picture has its own colour."""
    import torch

    alpha = torch.from_numpy(mattes(cameras, size, balls))[:, None]
    shade = torch.linspace(0.1, 0.8, size)[None, None, :, None].expand(len(cameras), 3, size, size)
    views = Views(shade, alpha, cameras)
    write_views(folder, views)
    write_transforms(folder, views)
    document = json.loads((folder / "transforms.json").read_text())
    (folder / "transforms.json").write_text(json.dumps(document | {"scene_radius": 0.4}))
    return folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("balls") / "body")


def copied(clean: Path, tmp_path: Path) -> Path:
    shutil.copytree(clean, tmp_path / "data" / "body")
    return tmp_path / "data" / "body"


def found(folder: Path) -> FoundObject:
    return FoundObject(folder.name, folder, "transforms")


def test_clean_data_raises_no_alarm(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judged = judge(found(clean), ReadFlags())
    assert judged.findings == () and judged.disagreement is not None and judged.disagreement < 0.005
    assert main([str(clean.parent)]) == 0
    assert "1 objects, 0 with errors" in capsys.readouterr().out


@pytest.mark.parametrize("what", MISTAKES)
def test_a_planted_mistake_is_named_and_its_flags_mend_it(what: str, clean: Path, tmp_path: Path) -> None:
    kind, plant = MISTAKES[what]
    case = planted(clean, tmp_path / "case", plant, (1, 2))
    judged = judge(case, ReadFlags())
    assert named_first(judged) == kind, judged.findings
    assert judged.mended is not None
    finding = judged.findings[0]
    assert finding.flags and finding.before is not None and finding.after is not None
    if kind not in ("up", "center", "scale"):
        assert finding.after < 0.5 * finding.before
    mended = judge(case, judged.mended)
    assert not mended.wrong, mended.findings


@pytest.mark.parametrize("family", FAMILIES)
def test_procedural_objects(family: str, tmp_path: Path) -> None:
    shape = make_object(family, np.random.default_rng(3))
    obj = TrainingObject(family, shape.vertices, shape.faces, shape.colors)
    render_object(obj, family, settings_of("sphere", 64), tmp_path / family)
    assert not judge(found(tmp_path / family), ReadFlags()).wrong
    missed = []
    for number, (what, (kind, plant)) in enumerate(MISTAKES.items()):
        case = planted(tmp_path / family, tmp_path / f"{number}", plant, (number,))
        if named_first(judge(case, ReadFlags())) != kind:
            missed.append(what)
    assert len(missed) <= 1, missed


def test_two_mistakes_at_once(clean: Path, tmp_path: Path) -> None:
    flags = ReadFlags(pose="w2c", fov_scale=1.4)
    judged = judge(found(clean), flags)
    assert judged.findings[0].kind == "pose+fov" and judged.mended is not None
    assert judged.mended.pose == "c2w" and judged.mended.fov_scale == pytest.approx(1.0, abs=0.04)
    assert "--pose=c2w" in judged.findings[0].flags


def test_one_wrong_pose_is_named_by_its_number(clean: Path, tmp_path: Path) -> None:
    folder = copied(clean, tmp_path)
    document = json.loads((folder / "transforms.json").read_text())
    document["frames"][5]["transform_matrix"] = orbit(200.0, -30.0, 2.0, 45.0).c2w[0].tolist()
    (folder / "transforms.json").write_text(json.dumps(document))
    judged = judge(found(folder), ReadFlags())
    assert named_first(judged) == "views" and "views 5 contradict" in judged.findings[0].message


# Pictures that no pose can help


def repaint(folder: Path, change: Callable[[int, np.ndarray], np.ndarray]) -> None:
    for path in sorted(folder.glob("*.png")):
        Image.fromarray(change(int(path.stem), np.array(Image.open(path)))).save(path)


def over(color: float) -> Callable[[int, np.ndarray], np.ndarray]:
    """Pictures without alpha, over a grey background."""

    def change(index: int, rgba: np.ndarray) -> np.ndarray:
        alpha = rgba[..., 3:] / 255
        return np.round(rgba[..., :3] * alpha + color * (1 - alpha)).astype(np.uint8)

    return change


def test_objects_on_white_are_cut_out_by_contrast(clean: Path, tmp_path: Path) -> None:
    folder = copied(clean, tmp_path)
    repaint(folder, over(255))
    assert judge(found(folder), ReadFlags()).findings == ()


def test_white_on_white_is_named(clean: Path, tmp_path: Path) -> None:
    folder = copied(clean, tmp_path)
    repaint(folder, lambda _, rgba: np.full_like(rgba[..., :3], 250))
    finding = judge(found(folder), ReadFlags()).findings[0]
    assert (finding.kind, finding.level) == ("no-matte", ERROR) and "nothing stands out" in finding.message
    noise = np.random.default_rng(0)
    repaint(folder, lambda _, rgb: noise.integers(0, 255, rgb.shape, np.uint8))
    assert "no plain background" in judge(found(folder), ReadFlags()).findings[0].message


def test_contrast_mattes_by_hand() -> None:
    pictures = np.ones((1, 6, 6, 3), np.float32)
    pictures[0, 2:4, 2:4] = 0.5
    pictures[0, 2, 4] = 0.94  # half of the contrast that counts as whole
    made, findings = find_mattes(pictures, np.ones((1, 6, 6), np.float32))
    assert not findings and made[0, 2].tolist() == [0, 0, 1, 1, pytest.approx(0.5), 0]


def test_empty_masks_are_named(clean: Path, tmp_path: Path) -> None:
    folder = copied(clean, tmp_path)
    repaint(folder, lambda index, rgba: rgba * (index not in (3, 7)))
    judged = judge(found(folder), ReadFlags())
    assert [(f.kind, f.level) for f in judged.findings] == [("empty", ERROR)]
    assert "2 of 16 masks are empty: views 3, 7" in judged.findings[0].message


def test_duplicates_are_named(clean: Path, tmp_path: Path) -> None:
    folder = copied(clean, tmp_path)
    shutil.copy(folder / "002.png", folder / "009.png")
    judged = judge(found(folder), ReadFlags())
    assert [f.kind for f in judged.findings] == ["duplicates"]
    assert "2 = 9" in judged.findings[0].message and "different cameras" in judged.findings[0].message
    document = json.loads((folder / "transforms.json").read_text())
    document["frames"][9]["transform_matrix"] = document["frames"][2]["transform_matrix"]
    (folder / "transforms.json").write_text(json.dumps(document))
    judged = judge(found(folder), ReadFlags())
    assert [f.kind for f in judged.findings] == ["duplicates"] and "picture and camera" in judged.findings[0].message


def test_the_same_picture_all_around_a_ball_is_right(tmp_path: Path) -> None:
    ball = np.array([[0.0, 0.0, 0.0, 0.4]])
    folder = save(tmp_path / "ball", balls=ball)
    pixels = np.array(Image.open(folder / "000.png"))
    repaint(folder, lambda _, rgba: pixels)
    assert judge(found(folder), ReadFlags()).findings == ()


def test_cropped_objects_are_named(tmp_path: Path) -> None:
    near = orbit([22.5 * k for k in range(16)], 30.0, 2.0, 16.0)
    judged = judge(found(save(tmp_path / "near", near)), ReadFlags())
    assert judged.findings[0].kind == "cropped" and judged.findings[0].level == ERROR
    assert "16 are cut off" in judged.findings[0].message
    assert not {"fov", "scale", "center", "unknown"} & {f.kind for f in judged.findings}
    edge = outlines_of(mattes(near))
    assert edge.framed.any(1).all()


def test_too_few_views_are_a_warning(tmp_path: Path) -> None:
    judged = judge(found(save(tmp_path / "two", RING.select([0, 4]))), ReadFlags())
    assert [(f.kind, f.level) for f in judged.findings] == [("few-views", WARNING)] and not judged.wrong


# The command


def test_the_command_writes_report_and_picture(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind, plant = MISTAKES["opencv for opengl"]
    planted(clean, tmp_path / "data" / "a", plant, (0,))
    planted(clean, tmp_path / "data" / "b", plant, (0,))
    (tmp_path / "data" / "c").mkdir()
    (tmp_path / "data" / "c" / "transforms.json").write_text("{}")
    assert main([str(tmp_path / "data"), "-o", str(tmp_path / "out")]) == 1
    report = json.loads((tmp_path / "out" / "check.json").read_text())
    assert report["objects"] == report["wrong"] == 3 and report["kinds"] == {kind: 2, "unreadable": 1}
    assert report["flags"] == ["--camera-convention=opencv"]
    first = report["details"][0]["findings"][0]
    assert first["explained_before"] < 0.5 and first["explained_after"] > 0.99
    picture = np.array(Image.open(tmp_path / "out" / "a.png"))
    assert picture.shape == (2 * 174, 6 * 160, 3)
    red, green = (((picture[..., a].astype(int) - picture[..., b]) > 30).sum() for a, b in ((0, 1), (1, 0)))
    assert red > 500 and green > 500  # the upper row is not explained, the lower one is
    assert "What mends most of them: --camera-convention=opencv" in capsys.readouterr().out
    mended = ["--camera-convention=opencv", "--json", str(tmp_path / "data")]
    assert main(mended) == 1 and json.loads(capsys.readouterr().out)["kinds"] == {"unreadable": 1}
    shutil.rmtree(tmp_path / "data" / "c")
    assert main(mended) == 0


def test_a_folder_without_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "no posed pictures" in capsys.readouterr().err
    assert main([str(tmp_path), "--scene-scale", "-2"]) == 2


@pytest.mark.parametrize(
    ("low", "high", "factor"),
    [(0.45, 0.55, 0.5), (1.8, 2.3, 2.0), (0.09, 0.12, 0.1), (0.6, 0.7, 2 / 3), (90, 130, 100.0), (1.21, 1.23, 1.22)],
)
def test_factors_are_round_where_they_may_be(low: float, high: float, factor: float) -> None:
    assert nice_factor(low, high) == pytest.approx(factor, rel=2e-3)
