"""The whole pipeline on embedded weights: views, more photos, the best of several lifts, and what they are worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from multiview.errors import ImageError, SettingsError
from trilift import cli, registry
from trilift.pipeline import ImageTo3D
from trilift.views import PhotoToViews

ROOT = Path(__file__).resolve().parents[2]
CHAIR = ROOT / "trilift" / "examples" / "chair.png"
TEAPOT = ROOT / "trilift" / "examples" / "teapot.png"


@pytest.fixture(scope="module")
def tiny() -> ImageTo3D:
    return ImageTo3D.from_pretrained("tiny", device="cpu")


def run(*words: str | Path) -> int:
    return cli.main([str(word) for word in words])


def asset(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "asset.json").read_text("utf-8"))
    return loaded


def test_a_photo_becomes_views_and_an_object_through_embedded_weights_alone(tmp_path: Path) -> None:
    words = ("--resolution", "48", "--steps", "2", "--quiet")
    assert run("lift", CHAIR, "-o", tmp_path / "a", "--views", "tiny-views", *words) == 0
    assert run("lift", CHAIR, "-o", tmp_path / "b", "--views", "tiny-views", *words) == 0
    record = asset(tmp_path / "a" / "chair")
    assert record["views"]["generator"]["name"] == "tiny-views" and record["views"]["steps"] == 2
    assert record["views"]["chain"]["photo_first"] is True and len(record["views"]["model_cameras"]) == 7
    assert Image.open(tmp_path / "a" / "chair" / "views.png").width >= 3 * 64
    assert 0 < record["checks"]["expected_iou"] < 1 and record["checks"]["input_psnr"] > 12
    first, second = ((tmp_path / side / "chair" / "mesh.glb").read_bytes() for side in "ab")
    assert first == second  # same seed, same bytes


def test_the_views_command_draws_the_embedded_ring_by_default(tmp_path: Path) -> None:
    assert run("views", CHAIR, "-o", tmp_path, "--steps", "2", "--quiet") == 0
    files = {file.name for file in (tmp_path / "chair").iterdir()}
    assert files >= {"000.png", "005.png", "views.png", "cameras.json", "transforms.json", "views.json"}
    assert (
        run("lift", CHAIR, "-o", tmp_path / "o", "--views-dir", tmp_path / "chair", "--resolution", "32", "--quiet")
        == 0
    )


def test_the_regressor_draws_nothing_and_agrees_with_the_photo_from_its_side(tiny: ImageTo3D) -> None:
    mean = PhotoToViews.from_pretrained("tiny-views-mean", device="cpu")
    first, second = (mean(TEAPOT, seed=seed) for seed in (0, 1))
    assert np.array_equal(first.views.images.numpy(), second.views.images.numpy())
    alone = tiny(TEAPOT, resolution=48)
    assert first.views.alpha.mean() == pytest.approx(float(first.views.alpha[0].mean()), rel=0.7)
    assert alone.record["checks"]["expected_iou"] > 0.2


def test_both_rows_run_the_same_weights() -> None:
    drawn, mean = registry.find("tiny-views"), registry.find("tiny-views-mean")
    assert drawn.sha256 == mean.sha256 and drawn.embedded_folder == mean.embedded_folder
    assert drawn.options != mean.options


def test_all_embedded_weights_together_are_at_most_36_mb() -> None:
    total = sum(file.stat().st_size for file in registry.EMBEDDED.rglob("*.safetensors"))
    assert total <= 36_000_000
    assert (registry.EMBEDDED / "tiny" / "model.safetensors").stat().st_size <= 24_000_000
    assert (registry.EMBEDDED / "tiny-views" / "model.safetensors").stat().st_size <= 12_000_000


def test_the_best_of_several_is_kept_and_the_others_are_named(tiny: ImageTo3D) -> None:
    plain = tiny(CHAIR, resolution=32)
    best = tiny(CHAIR, resolution=32, best_of=4)
    told = best.record["best_of"]
    scores = [each["score"] for each in told["tries"]]
    assert told["by"] == "expected_iou" and len(scores) == 4 and told["kept"] == int(np.argmax(scores))
    elevations = [each["elevation_deg"] for each in told["tries"]]
    assert np.allclose(np.array(elevations[1:]) - elevations[0], (8, -8, 16), atol=0.02)
    assert scores[0] == pytest.approx(plain.record["checks"]["expected_iou"], abs=1e-4)
    assert best.record["checks"]["expected_iou"] == pytest.approx(max(scores), abs=1e-4)
    assert "best_of" not in plain.record


def test_no_further_try_is_begun_after_the_time_limit(tiny: ImageTo3D) -> None:
    told = tiny(CHAIR, resolution=32, best_of=5, best_of_seconds=1e-6).record["best_of"]
    assert len(told["tries"]) == 1


def test_a_lift_that_cannot_come_out_differently_is_tried_once(tiny: ImageTo3D) -> None:
    assert len(tiny(CHAIR, resolution=32, best_of=5, elevation=15.0).record["best_of"]["tries"]) == 1


def test_photos_of_other_sides_are_lifted_together(tiny: ImageTo3D, tmp_path: Path) -> None:
    """The back of the picture, in another colour: it must be on the back of the mesh."""
    photo = np.array(Image.open(CHAIR).convert("RGBA"))
    blue = photo.copy()
    blue[..., :3] = (20, 40, 230)
    Image.fromarray(blue).save(tmp_path / "back.png")
    lifted = tiny(CHAIR, resolution=64, photos=(f"back={tmp_path / 'back.png'}",))
    vertices, colors = np.asarray(lifted.mesh.vertices), np.asarray(lifted.mesh.colors)
    behind = vertices[:, 0] < np.quantile(vertices[:, 0], 0.15)
    before = vertices[:, 0] > np.quantile(vertices[:, 0], 0.85)
    blueness = colors[:, 2] - colors[:, 0]
    assert blueness[behind].mean() > blueness[before].mean() + 0.15
    assert lifted.record["views"]["photos"][0]["azimuth_deg"] == 180
    assert lifted.views is not None and len(lifted.views) == 2


def test_without_projecting_the_photos_of_other_sides_are_not_painted_on(tiny: ImageTo3D, tmp_path: Path) -> None:
    """``--project off`` is "never": the colours are the field's, though the back photo shows others."""
    photo = np.array(Image.open(CHAIR).convert("RGBA"))
    photo[..., :3] = (20, 40, 230)
    Image.fromarray(photo).save(tmp_path / "back.png")
    lifted = tiny(CHAIR, resolution=32, photos=(f"back={tmp_path / 'back.png'}",), project="off")
    assert not {"paint", "texture"} & set(lifted.record["seconds"]) and "texture" not in lifted.record
    with torch.no_grad():
        colors = lifted.field.color_function()(torch.as_tensor(lifted.mesh.vertices, dtype=torch.float32))
    # Colours are taken where the refinement last looked, up to 2 % of an edge from the vertex; blue is far off.
    assert np.abs(np.asarray(lifted.mesh.colors) - colors.numpy()).max() < 0.02


def test_another_back_photo_is_another_result(tiny: ImageTo3D, tmp_path: Path) -> None:
    """The fingerprint, by which folder runs know what is done, holds the file's contents and not only its name."""
    from trilift.settings import LiftSettings

    settings, found = LiftSettings(photos=(f"back={tmp_path / 'b.png'}",)), []
    for value in (10, 200):
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(tmp_path / "b.png")
        found.append(tiny.fingerprint("0", None, settings))
    assert found[0] != found[1]


def test_what_does_not_go_together_is_refused(
    tiny: ImageTo3D, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    side = f"back={CHAIR}"
    assert run("lift", CHAIR, TEAPOT, "-o", tmp_path, "--photo", side) == 2
    assert "belongs to one photo" in capsys.readouterr().err
    assert run("lift", CHAIR, "-o", tmp_path, "--photo", side, "--views", "tiny-views") == 2
    assert "exclude each other" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="no other program"):
        PhotoToViews.from_pretrained("tiny-views", device="cpu")(CHAIR, parity=True)
    with pytest.raises(ImageError, match=r"none\.png"):
        tiny(CHAIR, photos=(f"left={tmp_path / 'none.png'}",))
