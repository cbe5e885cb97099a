"""Making a result again: found the same, found different and why, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from lrm.mesh import Mesh
from multiview.errors import ImageError, OutputError, SettingsError, WeightsError
from multiview.weights import file_sha256
from tests.unit.test_asset import make_asset
from trilift import reproduce as module
from trilift.cli import main
from trilift.pipeline import ImageTo3D
from trilift.reproduce import chamfer, compare, differing, find_photo, recorded_settings, reproduce
from trilift.settings import LiftSettings


class FakePipe:
    """Lifts every photo to the box of `make_asset`, ``wider`` by a factor."""

    def __init__(self, wider: float = 1.0, sha256: str = "ab") -> None:
        self.wider = wider
        self.weights = type("Weights", (), {"sha256": sha256, "name": "tiny"})()

    def __call__(self, photo: Path, settings: LiftSettings, **_: Any) -> Any:
        box = make_asset().mesh
        mesh = Mesh(box.vertices * np.float32([1, self.wider, 1]), box.faces, box.colors)
        record = {
            "trilift": "0.1.0",
            "photo": {"name": str(photo), "sha256": file_sha256(photo)},
            "model": {"name": "tiny", "sha256": self.weights.sha256},
            "seed": settings.seed,
            "settings": settings.as_record(),
            "versions": {"torch": torch.__version__},
            "dtype": "float32",
            "seconds": {"lift": 1.0},
        }
        return make_asset(mesh=mesh, record=record)


@pytest.fixture
def lifted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a result of ``photos/chair.png``; the pipeline that makes it again is a `FakePipe`."""
    photo = tmp_path / "photos" / "chair.png"
    photo.parent.mkdir()
    Image.new("RGB", (8, 8), (200, 10, 10)).save(photo)
    settings = LiftSettings(resolution=64, formats=("glb", "ply"))
    FakePipe()(photo, settings).save(tmp_path / "out" / "chair", settings.saving())
    use(monkeypatch, FakePipe())
    return tmp_path / "out" / "chair"


def use(monkeypatch: pytest.MonkeyPatch, pipe: FakePipe) -> list[tuple[Any, dict[str, Any]]]:
    calls: list[tuple[Any, dict[str, Any]]] = []

    def load(name: Any, **options: Any) -> FakePipe:
        calls.append((name, options))
        return pipe

    monkeypatch.setattr(ImageTo3D, "from_pretrained", load)
    return calls


def test_the_same_is_found_the_same(lifted: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    before = {file.name: file.read_bytes() for file in lifted.iterdir()}
    found = reproduce(lifted / "asset.json")
    assert found.equal and set(found.same) == {"mesh.glb", "mesh.ply", "input.png"}
    assert {file.name: file.read_bytes() for file in lifted.iterdir()} == before, "nothing there is touched"
    assert main(["reproduce", str(lifted), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["equal"] is True
    calls = use(monkeypatch, FakePipe())
    reproduce(lifted, model="folder/of/weights")
    assert calls[0][0] == "folder/of/weights" and calls[0][1]["dtype"] == "fp32"


def test_a_difference_is_named_and_measured(lifted: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    use(monkeypatch, FakePipe(wider=1.1))
    record = json.loads((lifted / "asset.json").read_text())
    record["versions"]["torch"], record["seed"] = "1.0", 3
    (lifted / "asset.json").write_text(json.dumps(record))
    assert main(["reproduce", str(lifted / "asset.json"), "-o", str(lifted.parent / "again")]) == 1
    told = capsys.readouterr().err
    assert "differ: mesh.glb, mesh.ply" in told and f"version of torch: 1.0 before, {torch.__version__} now" in told
    assert "seed: 3 before, 0 now" in told and "of the longest side apart" in told
    assert (lifted.parent / "again" / "mesh.glb").is_file()


def test_meshes_are_compared_even_when_the_old_one_is_gone(lifted: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    FakePipe(wider=1.2)(tmp_path / "photos" / "chair.png", LiftSettings()).save(again)
    record = json.loads((lifted / "asset.json").read_text())
    found = compare(tmp_path / "nowhere", record, again)
    assert found.changed == ("mesh.glb",) and found.missing == ("mesh.ply",) and not found.equal
    assert "chamfer" not in found.apart and found.apart["faces"] == {"before": 12, "now": 12}


def test_chamfer_of_boxes_worked_out_by_hand() -> None:
    def box(side: float) -> Mesh:
        made = trimesh.creation.box((1, 1, side)).subdivide().subdivide()
        return Mesh(made.vertices, made.faces, np.full((len(made.vertices), 3), 0.5))

    assert chamfer(box(1), box(1)) == pytest.approx(0, abs=1e-6)
    # 0.05 up and down: the two lids of six sides are 0.05 away, and so is the rim of the walls of the larger, 0.025 in
    # the mean over a tenth... of 4.2: 0.0167 there; back, lids 2 of 6.4 at 0.05, rims 0.4 of 6.4 at 0.025.
    there, back = 2 / 6 * 0.05, (2 * 0.05 + 0.4 * 0.025) / 6.4
    assert chamfer(box(1), box(1.1)) == pytest.approx((there + back) / 2, rel=0.05)


def test_photo_is_found_by_its_sum(lifted: Path, tmp_path: Path) -> None:
    record = json.loads((lifted / "asset.json").read_text())
    there = tmp_path / "photos" / "chair.png"
    assert find_photo(lifted / "asset.json", record) == there
    moved = lifted.parent / "chair.png"
    shutil.move(there, moved)
    assert find_photo(lifted / "asset.json", record) == moved, "beside the result's folder"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "other.png")
    with pytest.raises(ImageError, match=r"other\.png is another picture.*--photo"):
        find_photo(lifted / "asset.json", record, tmp_path / "other.png")
    moved.unlink()
    with pytest.raises(ImageError, match="is not there"):
        find_photo(lifted / "asset.json", record)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, OutputError, "cannot be read"),
        ("{", OutputError, "is no JSON"),
        ('{"format": 1}', OutputError, "found none of its photo, model, settings, files"),
        ("[]", OutputError, "expected the record of a lift"),
    ],
)
def test_what_is_no_record(tmp_path: Path, content: str | None, error: type[Exception], words: str) -> None:
    if content is not None:
        (tmp_path / "asset.json").write_text(content)
    with pytest.raises(error, match=words):
        reproduce(tmp_path / "asset.json")


def test_settings_and_weights_of_another_world(lifted: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with pytest.raises(SettingsError, match=r"trilift 9\.0; unknown setting 'shine'"):
        recorded_settings(Path("a.json"), {"trilift": "9.0", "settings": {"shine": 1}})
    assert recorded_settings(Path("a.json"), {"settings": {"seed": 4}}) == LiftSettings(seed=4)
    use(monkeypatch, FakePipe(sha256="cd"))
    with pytest.raises(WeightsError, match="expected sha256 ab, found cd"):
        reproduce(lifted)
    assert main(["reproduce", str(lifted)]) == 1 and "weights tiny" in capsys.readouterr().err
    use(monkeypatch, FakePipe())
    with pytest.raises(OutputError, match="Choose another folder"):
        reproduce(lifted, lifted)


def test_differences_are_named_one_by_one() -> None:
    before = {
        "trilift": "1",
        "settings": {"seed": 0, "faces": None},
        "versions": {"numpy": "2.0"},
        "model": {"name": "a"},
    }
    now = {"trilift": "2", "settings": {"seed": 0, "faces": 9}, "versions": {"numpy": "2.0"}, "model": {"name": "a"}}
    assert differing(before, now) == ("trilift: 1 before, 2 now", "setting faces: None before, 9 now")
    assert differing(now, now) == () and module.SAME == 0
