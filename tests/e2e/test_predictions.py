"""`trilift eval` by the field's protocols and with other programs' meshes, through its public doors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("igl", reason="libigl is in the extra train")

from lrm.lpips import VGG16
from lrm.mesh import Mesh
from lrm.meshfile import read_mesh, write_mesh
from lrm.metrics import ShapeSettings
from multiview.errors import SettingsError, WeightsError
from tests.fakes import use_fake_model
from train import evaluate as evaluate_page
from train.baselines import turned
from train.evaluate import evaluate, main
from train.frames import FRAMES, Frame
from train.predictions import Predictions
from train.protocol import EvalObject, EvalProtocol, find_objects
from train.protocols import PROTOCOLS

QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
FEW = ShapeSettings(grid=32, points=800, align_points=150, align_yaws=12, icp_steps=5)
SMALL = {
    name: replace(protocol, image_size=64, train_objects=3,
                  shape=replace(FEW, align_pitches_deg=protocol.shape.align_pitches_deg))
    for name, protocol in PROTOCOLS.items()
}  # fmt: skip


def crane(foot: float = 1.0, arm: float = 0.9) -> Mesh:
    """Three boxes of three colours, without any symmetry."""
    parts = [
        ((-0.25, -0.25, -1), (0.25, 0.25, 1)),
        ((0.2, -0.25, -1), (foot, 0.25, -0.5)),
        ((-0.25, 0.2, 0.4), (0.25, arm, 0.9)),
    ]
    unit = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    vertices = np.concatenate([np.array(low) + unit * (np.array(high) - np.array(low)) for low, high in parts])
    one = np.array([t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))])
    colors = np.repeat([[0.8, 0.2, 0.2], [0.2, 0.3, 0.9], [0.2, 0.7, 0.3]], 8, 0)
    return Mesh(vertices, np.concatenate([one + 8 * i for i in range(3)]), colors)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three objects to be scored; no folder of training objects beside it."""
    for name, mesh in {"crane": crane(), "kit/sign": crane(0.6, 1.3), "post": crane(0.3, 0.5)}.items():
        write_mesh(mesh, tmp_path / "val" / f"{name}.glb")
    return tmp_path / "val"


@pytest.fixture
def perfect(data: Path, tmp_path: Path) -> Path:
    """The true objects as another program would write them that knows all: turned to the input's side, any size."""
    return predictions_of(data, tmp_path / "perfect")


def predictions_of(data: Path, folder: Path, frame: str = "trilift", suffix: str = ".glb") -> Path:
    """Right answers in a program's own axes: what is written is what it takes to be read back right."""
    for name, path in find_objects(data).items():
        azimuth, elevation = EvalProtocol().viewpoint(name)
        right = turned(EvalObject.read(name, path).mesh, azimuth)
        back = np.eye(4)
        ours = FRAMES["trilift"].world_from_file()
        back[:3, :3] = ours @ FRAMES[frame].world_from_file(elevation).T  # the file's points, as ours are written
        write_mesh(right.transformed(back), folder / f"{name}{suffix}")
    return folder


def score(data: Path, out: Path, **options: Any) -> dict[str, Any]:
    return evaluate(None, data, out, **({"protocol": SMALL["ours"], "answers": ("ours",)} | options))


# Predictions.


def test_right_predictions_get_full_marks_under_their_own_name(data: Path, perfect: Path, tmp_path: Path) -> None:
    record = score(data, tmp_path / "out", predictions=perfect)
    assert list(record["mean"]) == ["predictions", "shuffled"] and record["main"] == "predictions"
    assert record["mean"]["predictions"]["iou"] > 0.99 and record["mean"]["predictions"]["psnr"] > 35
    assert "seconds" not in record["mean"]["predictions"] and record["worth"] == {}
    assert record["count_answered"] == record["count"] == 3
    assert record["predictions"]["found"] == 3 and record["predictions"]["missing"] == []
    assert record["shuffled_drop"]["by"] > 0.1
    assert record["sheets"] == ["sheet.png", "best.png", "median.png", "worst.png"]
    assert read_mesh(tmp_path / "out" / "meshes" / "predictions" / "kit" / "sign.glb").extent.max() > 0.99


@pytest.mark.parametrize("frame", [name for name in FRAMES if name != "trilift"])
def test_frames_of_other_programs_are_read_back(data: Path, tmp_path: Path, frame: str) -> None:
    folder = predictions_of(data, tmp_path / "theirs", frame)
    record = score(data, tmp_path / "out", predictions=folder, frame=frame, limit=1)
    assert record["mean"]["predictions"]["iou"] > 0.98
    if frame != "gltf":
        wrong = score(data, tmp_path / "out", predictions=folder, limit=1)
        assert wrong["mean"]["predictions"]["iou"] < 0.9


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_our_own_answers_read_as_predictions_give_the_same_figures(
    data: Path, tmp_path: Path, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_model(monkeypatch)
    monkeypatch.setitem(evaluate_page.PROTOCOLS, protocol, SMALL[protocol])
    monkeypatch.setattr(evaluate_page, "protocol_named", SMALL.__getitem__)
    out, again = tmp_path / "out", tmp_path / "again"
    limit = "3" if protocol == "ours" else "1"
    common = ["--protocol", protocol, "--resolution", "32", "--answers", "ours", "--limit", limit, "--processes", "1"]
    assert main([str(data), "-o", str(out), *common]) == 0
    assert main([str(data), "-o", str(again), *common, "--predictions", str(out / "meshes" / "ours")]) == 0
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (out, again))
    for row, other in zip(first["objects"], second["objects"], strict=True):
        for key, value in other["predictions"].items():
            tolerance = 0.2 if key == "psnr" else 0.01 if key.startswith("fscore") else 2e-3
            assert value == pytest.approx(row["ours"][key], abs=tolerance), key
    for key, difference in second["predictions_less_ours"].items():
        assert difference["by"] == pytest.approx(0, abs=0.2 if key == "psnr" else 0.01), key
    assert first["protocol"]["name"] == protocol == second["protocol"]["name"]


def test_missing_and_broken_predictions_count_as_nothing_and_are_named(
    data: Path, perfect: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (perfect / "crane.glb").unlink()
    (perfect / "post.glb").write_bytes(b"glTF but not really")
    write_mesh(crane(), perfect / "stranger.glb")
    record = score(data, tmp_path / "out", predictions=perfect)
    rows = {row["id"]: row for row in record["objects"]}
    for name in ("crane", "post"):
        marks = rows[name]["predictions"]
        assert marks["iou"] == marks["fscore_0.5_aligned"] == 0 and marks["chamfer"] == 2
        assert rows[name]["failed"] == ["predictions"]
    assert "failed" not in rows["kit/sign"]
    assert record["mean"]["predictions"]["iou"] == pytest.approx(rows["kit/sign"]["predictions"]["iou"] / 3)
    assert record["count_answered"] == 1
    assert record["mean_answered"]["predictions"]["iou"] == rows["kit/sign"]["predictions"]["iou"]
    assert record["predictions"]["missing"] == ["crane"] and record["predictions"]["unused"] == ["stranger.glb"]
    told = {failure["id"]: failure["error"] for failure in record["failures"]}
    assert "crane.glb or crane/mesh.glb" in told["crane"] and "post.glb" in told["post"]
    assert main([str(data), "-o", str(tmp_path / "cli"), "--predictions", str(perfect), "--answers", "ellipsoid",
                 "--protocol", "syncdreamer", "--processes", "1", "--quiet"]) == 1  # fmt: skip
    said = capsys.readouterr()
    assert "1 of 3 objects have no mesh and count as nothing" in said.err and "1 meshes belong to no object" in said.err
    assert "over the 1 of 3 objects that have a prediction" in said.out


def test_files_are_found_by_id_folder_or_last_part(tmp_path: Path) -> None:
    for name in ("a.obj", "b/mesh.glb", "b/other.glb", "c/only.ply", "kit/d.stl", "e.glb", "x.y.glb", "f.obj", "f.glb"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    ids = ["a", "b", "kit/c", "kit/d", "one/e", "two/e", "x.y", "f", "g"]
    found = Predictions.find(tmp_path, ids, FRAMES["gltf"])
    files = {name: path.relative_to(tmp_path).as_posix() for name, path in found.files.items()}
    assert files == {
        "a": "a.obj", "b": "b/mesh.glb", "kit/c": "c/only.ply", "kit/d": "kit/d.stl", "x.y": "x.y.glb", "f": "f.glb"
    }  # fmt: skip
    assert found.missing == ("one/e", "two/e", "g"), "e could be either"
    assert found.unused == ("b/other.glb", "e.glb", "f.obj")


def test_predictions_that_fit_no_object_show_three_of_each(data: Path, tmp_path: Path) -> None:
    for index in range(5):
        write_mesh(crane(), tmp_path / "theirs" / str(index) / "mesh.obj")
    with pytest.raises(SettingsError, match=r"none of 5 .* 3 objects.*crane, kit/sign, post; files: 0/mesh.obj, 1.*2/"):
        score(data, tmp_path / "out", predictions=tmp_path / "theirs")
    with pytest.raises(SettingsError, match=r"nowhere: expected a folder of meshes, ID\.glb"):
        score(data, tmp_path / "out", predictions=tmp_path / "nowhere")
    with pytest.raises(SettingsError, match=r"frame='sideways'.*triposr"):
        score(data, tmp_path / "out", predictions=tmp_path / "theirs", frame="sideways")
    write_mesh(crane(), tmp_path / "theirs" / "crane.glb")
    write_mesh(crane(), tmp_path / "theirs" / "crane" / "mesh.glb")
    with pytest.raises(SettingsError, match=r"one mesh for crane, found 2: crane\.glb, crane/mesh\.glb"):
        score(data, tmp_path / "out", predictions=tmp_path / "theirs")


# Inputs for other programs.


def test_inputs_are_written_as_they_are_scored(
    data: Path, perfect: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "inputs"
    assert main([str(data), "--write-inputs", str(folder), "--processes", "1"]) == 0
    assert "3 input pictures" in capsys.readouterr().out
    listed = json.loads((folder / "inputs.json").read_text())["inputs"]
    assert [(row["id"], row["file"]) for row in listed] == [
        ("crane", "crane.png"), ("kit/sign", "kit/sign.png"), ("post", "post.png")
    ]  # fmt: skip
    score(data, tmp_path / "out", predictions=perfect, protocol=EvalProtocol(shape=FEW), limit=1)
    with Image.open(folder / "crane.png") as given, Image.open(tmp_path / "out" / "inputs" / "crane.png") as scored:
        assert given.mode == "RGBA" and given.size == (256, 256)
        np.testing.assert_array_equal(np.asarray(given), np.asarray(scored))
    assert listed[0]["elevation_deg"] == pytest.approx(EvalProtocol().viewpoint("crane")[1], abs=1e-3)


def test_the_command_wants_a_place_and_one_thing_at_a_time(data: Path, perfect: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="-o OUT"):
        main([str(data)])
    with pytest.raises(SettingsError, match="exclude each other"):
        main([str(data), "--write-inputs", str(tmp_path), "--predictions", str(perfect)])
    with pytest.raises(SettingsError, match="up='w'"):
        main([str(data), "--write-inputs", str(tmp_path), "--up", "w"])


# Protocols.


def test_each_protocol_reports_its_keys_trivial_answers_and_itself(data: Path, perfect: Path, tmp_path: Path) -> None:
    train = tmp_path / "train"
    for name, mesh in {"slab": crane(0.3, 0.3), "stand": crane(0.7, 0.7), "tee": crane(0.9, 0.2)}.items():
        write_mesh(mesh, train / f"{name}.glb")
    keys = {}
    for name in ("triposr", "syncdreamer"):
        record = score(
            data,
            tmp_path / "out",
            predictions=perfect,
            protocol=SMALL[name],
            train=train,
            answers=("extrusion",),
            limit=2,
        )
        keys[name] = set(record["mean"]["predictions"])
        assert set(record["mean"]["extrusion"]) == keys[name] == set(record["interval_95"]["extrusion"])
        assert set(record["protocol"]["headline"]) - {"lpips"} <= keys[name]
        assert record["protocol"]["name"] == name and "longest side" in record["protocol"]["unit"]
        assert all(row["seed"] > 0 for row in record["objects"]) and len(record["objects_sha256"]) == 64
        assert record["versions"]["numpy"] == np.__version__ and record["datasets"] == {"meshes": 2}
    assert keys["syncdreamer"] == {"iou", "chamfer", "psnr", "ssim"}
    assert {"chamfer", "chamfer_aligned", "fscore_0.2", "fscore_0.2_aligned"} <= keys["triposr"]


def test_lpips_is_reported_when_its_weights_are_given(data: Path, perfect: Path, tmp_path: Path) -> None:
    generator, state, inputs = torch.Generator().manual_seed(0), {}, 3
    for index in VGG16.convolutions:
        state[f"features.{index}.weight"] = torch.randn(4, inputs, 3, 3, generator=generator) * 0.3
        state[f"features.{index}.bias"] = torch.zeros(4)
        inputs = 4
    state |= {f"lin{depth}.model.1.weight": torch.ones(1, 4, 1, 1) for depth in range(5)}
    torch.save(state, tmp_path / "lpips.pth")
    shutil.copy(perfect / "post.glb", perfect / "crane.glb")  # one wrong answer
    protocol = replace(SMALL["syncdreamer"], lpips=str(tmp_path / "lpips.pth"))
    record = score(data, tmp_path / "out", predictions=perfect, protocol=protocol)
    marks = {row["id"]: row["predictions"]["lpips"] for row in record["objects"]}
    assert marks["crane"] > 10 * marks["post"] and record["mean"]["predictions"]["lpips"] > 0
    with pytest.raises(WeightsError, match=r"nothing\.pth"):
        score(
            data, tmp_path / "out", predictions=perfect, protocol=replace(protocol, lpips=str(tmp_path / "nothing.pth"))
        )


def test_google_scanned_objects_are_scored_from_their_zips(tmp_path: Path) -> None:
    import zipfile

    (tmp_path / "gso").mkdir()
    with zipfile.ZipFile(tmp_path / "gso" / "Mug.zip", "w") as archive:
        corners = crane().vertices.tolist()
        lines = [f"v {x} {y} {z}" for x, y, z in corners] + [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in crane().faces]
        archive.writestr("meshes/model.obj", "\n".join(lines))
    azimuth, _ = EvalProtocol().viewpoint("Mug")
    write_mesh(turned(crane(), azimuth), tmp_path / "theirs" / "Mug.glb")
    record = score(tmp_path / "gso", tmp_path / "out", predictions=tmp_path / "theirs")
    assert record["mean"]["predictions"]["iou"] > 0.99 and record["datasets"] == {"google-scanned-objects": 1}
    lying = score(tmp_path / "gso", tmp_path / "out", predictions=tmp_path / "theirs", up="y")
    assert lying["mean"]["predictions"]["iou"] < 0.7 and lying["up"] == "y"


def test_frames_are_values(data: Path, perfect: Path, tmp_path: Path) -> None:
    record = score(data, tmp_path / "out", predictions=perfect, frame=Frame("+y", "+z"), limit=1)
    assert record["predictions"]["frame"] == "+y up, front +z"
