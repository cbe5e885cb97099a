"""``trilift fit``: from a folder of views to an asset folder (trilift/fit.py)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrm.meshfile import read_mesh
from lrm.raster import render_mesh
from multiview.camerafile import write_views
from multiview.cameras import orbit
from multiview.errors import CameraError, ImageError, SettingsError
from multiview.views import Views
from trilift import fit
from trilift.fit import FitOptions, add_parser, fit_folder, plain_background_alpha, split_views, view_scores, with_masks

from .test_hull import HALF, box_mesh

QUICK = FitOptions(samples=32, steps=(3, 3), resolution=32)


def views_of_a_box(count: int = 8, size: int = 64) -> Views:
    return render_mesh(box_mesh(), orbit([k * 360 / count for k in range(count)], 30.0, 3.0, 40.0), size)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_views(tmp_path / "box", views_of_a_box())
    return tmp_path / "box"


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(required=True))
    return parser.parse_args(["fit", *words])


def test_the_command_writes_an_asset_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = [str(folder), "-o", str(out), "--samples", "32", "--steps", "3,3", "--resolution", "32", "--json"]
    args = parsed([*words, "--hold-out", "4"])
    assert args.command(args) == 0
    assert sorted(p.name for p in out.iterdir()) == ["asset.json", "mesh.glb", "views.png"]
    record = json.loads((out / "asset.json").read_text("utf-8"))
    assert record["name"] == "box"
    assert record["views"] == {"count": 8, "size_px": [64, 64], "held_out": [3, 7]}
    assert record["scores"]["input"]["silhouette_iou"] > 0.9
    assert record["scores"]["held_out"]["silhouette_iou"] > 0.85
    assert record["mesh"]["watertight"] is True
    assert "are flat" in record["prior"]
    assert json.loads(capsys.readouterr().out)["scores"] == record["scores"]
    # 8 views of 64 px, each row of eight with the results below.
    with Image.open(out / "views.png") as sheet:
        assert sheet.size == (512, 128)
    sides = read_mesh(out / "mesh.glb").extent
    assert sides[1] / sides[0] == pytest.approx(HALF[1] / HALF[0], abs=0.08)


def test_the_same_seed_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        fit_folder(folder, tmp_path / name, QUICK, device="cpu")
    for file in ("mesh.glb", "views.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    one, two = (json.loads((tmp_path / name / "asset.json").read_text("utf-8")) for name in ("a", "b"))
    one.pop("seconds"), two.pop("seconds")
    assert one == two


def test_an_interrupted_save_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = fit_folder(folder, None, QUICK, device="cpu")

    def interrupted(*_: object) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "comparison_sheet", interrupted)
    with pytest.raises(KeyboardInterrupt):
        asset.save(tmp_path / "out" / "box", QUICK)
    assert list((tmp_path / "out").iterdir()) == []


def test_pictures_on_white_get_masks() -> None:
    views = views_of_a_box()
    white = Views(views.composite(1.0), torch.ones_like(views.alpha), views.cameras)
    masked = with_masks(white)
    agree = ((masked.alpha > 0.5) == (views.alpha > 0.02)).float().mean()
    assert float(agree) > 0.995
    assert with_masks(views).alpha is not views.alpha
    assert torch.equal(with_masks(views).alpha, views.alpha)


def test_a_plain_background_is_what_hangs_together_with_the_border() -> None:
    rgb = np.ones((6, 6, 3))
    rgb[1:5, 1:5] = 0.2
    rgb[2, 2] = 1.0  # exactly the ground's colour: a hole
    rgb[3, 3] = 1.0 - 3 / 255  # nearly, and inside: the object's
    alpha = plain_background_alpha(rgb)
    assert alpha is not None
    expected = np.zeros((6, 6))
    expected[1:5, 1:5] = 1
    expected[2, 2] = 0
    assert (alpha == expected).all()


def test_a_busy_background_is_not_plain() -> None:
    rgb = np.random.default_rng(0).random((16, 16, 3))
    assert plain_background_alpha(rgb) is None


def test_a_picture_without_an_object_is_named() -> None:
    views = views_of_a_box(4)
    images, alpha = views.composite(1.0), torch.ones_like(views.alpha)
    images[2] = 1.0
    with pytest.raises(ImageError, match="view 2 has no alpha, and no object"):
        with_masks(Views(images, alpha, views.cameras))


def test_errors_name_the_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CameraError, match="nowhere"):
        fit_folder(tmp_path / "nowhere", None, QUICK)
    views = views_of_a_box()
    write_views(tmp_path / "two", views.select([0, 3]))
    with pytest.raises(ImageError, match=r"two: a hull wants at least 3 views"):
        fit_folder(tmp_path / "two", None, QUICK, device="cpu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": 4}, "samples=4"),
        ({"hold_out": 1}, "hold_out=1"),
        ({"formats": ("xyz",)}, "formats=xyz"),
        ({"steps": (1,)}, "two whole numbers"),
        ({"height": 1.0, "scale": 2.0}, "exclude each other"),
        ({"background": "blue"}, "auto or keep"),
    ],
)
def test_options_are_checked(change: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        FitOptions(**change)  # type: ignore[arg-type]


def test_defaults_of_the_command_are_those_of_the_options() -> None:
    args = parsed(["somewhere"])
    assert FitOptions(**{name: getattr(args, name) for name in fit._OPTION_NAMES}) == FitOptions()


def test_every_kth_view_is_held_out() -> None:
    assert split_views(7, 3) == ([0, 1, 3, 4, 6], [2, 5])
    assert split_views(3, 0) == ([0, 1, 2], [])


def test_a_mesh_scores_fully_against_its_own_pictures() -> None:
    scores = view_scores(box_mesh(), views_of_a_box(3))
    assert scores["silhouette_iou"] == 1.0
    assert scores["psnr_db"] == pytest.approx(100.0)
    shifted = view_scores(box_mesh(center=(0, 0, 0.2)), views_of_a_box(3))
    assert shifted["silhouette_iou"] < 0.9
