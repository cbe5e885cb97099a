"""`trilift eval` through its public doors, with models that know the truth, that know it wrongly, and that fail."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("igl", reason="libigl is in the extra train")

from lrm.mesh import Mesh
from lrm.meshfile import read_mesh, write_mesh
from lrm.metrics import PSNR_CEILING, ShapeSettings, placed
from lrm.volume import render
from multiview.camerafile import read_views
from multiview.cameras import orbit, project
from multiview.errors import MeshError, SettingsError
from tests.fakes import ellipsoid_field, use_fake_model
from train import protocol as protocol_page
from train.baselines import TRIVIAL_ANSWERS, Bytes, turned
from train.evaluate import ModelLifter, evaluate, main
from train.protocol import EvalObject, EvalProtocol, find_objects, spread
from train.scorecard import Scored, add_shuffled, input_psnr, own_scores, summarize

QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
SMALL = replace(
    EvalProtocol(),
    image_size=64,
    train_objects=3,
    shape=ShapeSettings(grid=32, points=1000, align_points=200, align_yaws=12, icp_steps=5),
)


def boxes(*pairs: tuple[tuple[float, ...], tuple[float, ...]]) -> Mesh:
    """Closed boxes, one colour each, faces outward."""
    unit = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    vertices = np.concatenate([np.array(low) + unit * (np.array(high) - np.array(low)) for low, high in pairs])
    one = np.array([t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))])
    colors = np.repeat([[0.8, 0.2, 0.2], [0.2, 0.3, 0.9], [0.2, 0.7, 0.3]][: len(pairs)], 8, 0)
    return Mesh(vertices, np.concatenate([one + 8 * i for i in range(len(pairs))]), colors)


def lopsided(foot: float = 1.0, arm: float = 0.9) -> Mesh:
    """No symmetry at all: a foot toward +x, an arm toward +y."""
    return boxes(
        ((-0.25, -0.25, -1), (0.25, 0.25, 1)),
        ((0.2, -0.25, -1), (foot, 0.25, -0.5)),
        ((-0.25, 0.2, 0.4), (0.25, arm, 0.9)),
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two objects to be scored, in a folder called val."""
    write_mesh(lopsided(), tmp_path / "val" / "crane.glb")
    write_mesh(lopsided(0.6, 1.3), tmp_path / "val" / "kit" / "sign.glb")
    return tmp_path / "val"


@pytest.fixture
def train(data: Path) -> Path:
    """Three training objects beside it."""
    folder = data.parent / "train"
    write_mesh(boxes(((-0.4, -0.3, -1), (0.4, 0.3, 1))), folder / "post.glb")
    write_mesh(boxes(((-1, -0.6, -0.2), (1, 0.6, 0.2))), folder / "slab.glb")
    write_mesh(lopsided(0.7, 0.7), folder / "stand.glb")
    return folder


def lifted(mesh: Mesh, picture: Bytes) -> SimpleNamespace:
    """What a model gives back: a mesh, and a field whose rendering is the cut-out itself."""
    field, camera = ellipsoid_field((0.3, 0.6, 0.2)), orbit(0.0, 10.0, 2.7, 40.0)

    def to_tensor(size: int) -> torch.Tensor:
        return torch.cat([render(field, camera, size, size).images[0], torch.ones(1, size, size)])

    return SimpleNamespace(mesh=mesh, field=field, camera=camera, cutout=SimpleNamespace(to_tensor=to_tensor))


def knowing(data: Path, change: Callable[[Mesh, float], Mesh]) -> Callable[[Bytes], Any]:
    """A model that knows which object comes next and from where, and answers with ``change`` of the two."""
    answers = iter(
        [
            change(EvalObject.read(name, path).mesh, SMALL.viewpoint(name)[0])
            for name, path in sorted(find_objects(data).items())
        ]
    )
    return lambda picture: lifted(next(answers), picture)


class Slab:
    """A model that can be sent to another process: a slab, whatever it sees."""

    def __call__(self, picture: Bytes) -> Any:
        return lifted(boxes(((-1, -1, -0.3), (1, 1, 0.3))), picture)


def right(mesh: Mesh, azimuth: float) -> Mesh:
    """The truth, moved and scaled, which does not count."""
    matrix = np.diag([0.3, 0.3, 0.3, 1.0])
    matrix[:3, 3] = (5, -2, 1)
    return turned(mesh, azimuth).transformed(matrix)


def score(data: Path, out: Path, lifter: Any, **changes: Any) -> dict[str, Any]:
    return evaluate(lifter, data, out, protocol=SMALL, **({"answers": ("ours",)} | changes))


# Truth and near-truths.


def test_the_truth_gets_full_marks_and_everything_is_written(data: Path, train: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    lines: list[str] = []
    lifter = knowing(data, right)
    record = evaluate(lifter, data, out, protocol=SMALL, model={"name": "truth", "sha256": None}, tell=lines.append)
    assert record == json.loads((out / "metrics.json").read_text())
    assert [row["id"] for row in record["objects"]] == ["crane", "kit/sign"]
    assert all(row["ours"]["iou"] > 0.99 and row["ours"]["ssim"] > 0.99 for row in record["objects"])
    assert set(record["mean"]) == {"ours", "shuffled", *TRIVIAL_ANSWERS} and record["failures"] == []
    means = record["mean"]
    assert means["ours"]["fscore_0.1"] > 0.95 and means["ours"]["psnr"] > 35
    assert max(means[name]["iou"] for name in TRIVIAL_ANSWERS) < 0.9
    assert means["extrusion"]["iou"] > 0.05 and "input_psnr" not in means["extrusion"]
    assert means["ours"]["iou"] == pytest.approx(np.mean([row["ours"]["iou"] for row in record["objects"]]))
    assert record["lead"]["iou"]["by"] == pytest.approx(1 - means[record["lead"]["iou"]["over"]]["iou"], abs=0.01)
    assert record["constants"]["objects"] == 3 and record["left_out"] == {}
    assert record["model"]["name"] == "truth" and record["protocol"]["image_size"] == 64
    for name in ("ours", "truth", *TRIVIAL_ANSWERS):
        assert read_mesh(out / "meshes" / name / "kit" / "sign.glb").extent.max() == pytest.approx(1, abs=1e-4)
    with Image.open(out / "inputs" / "crane.png") as picture, Image.open(out / "sheet.png") as sheet:
        assert picture.mode == "RGBA" and sheet.size == (2 * 488, 110)
    assert any("fitting" in line for line in lines)
    assert lines[-1] == f"[2/2] kit/sign: IoU {record['objects'][1]['ours']['iou']:.3f} (ours)"


def test_sheets_of_the_best_the_median_and_the_worst(data: Path, tmp_path: Path) -> None:
    out, calls = tmp_path / "out", iter(range(2))
    knows = knowing(data, right)

    def second_fails(picture: Bytes) -> Any:
        if next(calls) == 1:
            raise MeshError("no surface was found")
        return knows(picture)

    record = score(data, out, second_fails)
    assert record["sheets"] == ["sheet.png", "best.png", "median.png", "worst.png"]
    for name in ("best", "median", "worst"):  # two objects: all of them on each
        with Image.open(out / f"{name}.png") as page:
            assert page.size == (7 * 228, 34 + 2 * 262)
            cells = np.asarray(page).astype(float)
        top, bottom = cells[34 + 34 : 34 + 262], cells[34 + 262 + 34 :]
        rows = [[row[4:224, 228 * i + 4 : 228 * i + 224] for i in range(7)] for row in (top, bottom)]
        assert all((cell < 200).any() for cell in rows[0]), "the better one is on top, in all seven cells"
        for ours, truth in ((1, 4), (2, 5), (3, 6)):
            assert np.abs(rows[0][ours] - rows[0][truth]).mean() < 2, "ours is the truth"
            assert (rows[1][ours] == 255).all() and (rows[1][truth] < 200).any(), "what failed is blank"
        assert np.abs(rows[0][4] - rows[0][6]).mean() > 5, "front and behind differ"


# Pictures of other objects.


def scored(name: str, truth: np.ndarray, ours: np.ndarray | None) -> Scored:
    row: dict[str, Any] = {"id": name, "ours": {"iou": 0.5}}
    return Scored(row, [], np.packbits(truth), None if ours is None else np.packbits(ours), [])


def test_shuffled_is_the_overlap_with_the_answer_half_the_list_on() -> None:
    cells = np.eye(4, dtype=bool).repeat(4, 1)[:, :16].reshape(4, 4, 4)  # object i fills a quarter of 16 cells
    wide = cells | np.roll(cells, 2, 0)  # ours: that quarter and the one of the object two further on
    objects = [scored(f"{i}", cells[i], wide[i]) for i in range(4)]
    add_shuffled(objects)
    assert [one.row["shuffled"] for one in objects] == [{"iou": 0.5, "picture": f"{(i + 2) % 4}"} for i in range(4)]
    odd = [scored(f"{i}", cells[i], cells[i]) for i in range(3)]
    add_shuffled(odd)
    assert [one.row["shuffled"] for one in odd] == [{"iou": 0.0, "picture": f"{(i + 1) % 3}"} for i in range(3)]


def test_shuffled_needs_two_objects_and_a_model() -> None:
    cells = np.ones((2, 2, 2), bool)
    for objects in ([scored("a", cells, cells)], [scored("a", cells, None), scored("b", cells, None)]):
        add_shuffled(objects)
        assert "shuffled" not in objects[0].row


def test_a_model_that_looks_loses_by_other_pictures_and_a_blind_one_does_not(data: Path, tmp_path: Path) -> None:
    write_mesh(boxes(((-1, -0.6, -0.2), (1, 0.6, 0.2))), data / "slab.glb")
    record = score(data, tmp_path / "sees", knowing(data, right))
    drop = record["shuffled_drop"]
    shuffled = [row["shuffled"] for row in record["objects"]]
    assert [one["picture"] for one in shuffled] == ["kit/sign", "slab", "crane"]
    assert record["mean"]["shuffled"]["iou"] == pytest.approx(np.mean([one["iou"] for one in shuffled]))
    assert drop["by"] == pytest.approx(record["mean"]["ours"]["iou"] - record["mean"]["shuffled"]["iou"])
    assert drop["by"] > 0.3 and drop["interval_95"][0] > 0.1
    blind = score(data, tmp_path / "blind", lambda picture: lifted(boxes(((-1, -1, -1), (1, 1, 1))), picture))
    assert blind["shuffled_drop"]["by"] == pytest.approx(0, abs=1e-12)
    assert blind["lead"] == {}, "shuffled answers are no trivial answer"


# Several processes.


def test_two_processes_give_the_same_numbers(data: Path, train: Path, tmp_path: Path) -> None:
    answers = ("ours", "extrusion", "retrieval")
    found = [score(data, tmp_path / f"{n}", Slab(), answers=answers, processes=n) for n in (1, 2)]
    for record in found:
        for row in record["objects"]:
            row["ours"].pop("seconds")
    assert found[0]["objects"] == found[1]["objects"] and found[0]["failures"] == found[1]["failures"] == []
    assert (tmp_path / "1" / "best.png").read_bytes() == (tmp_path / "2" / "best.png").read_bytes()


def test_fitting_is_spread_where_it_is_worth_it(
    data: Path, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def mapped(function: Callable[[Any], Any], items: Any, processes: int) -> Any:
        seen.append(processes)
        return map(function, items)

    monkeypatch.setattr(protocol_page, "mapped", mapped)
    monkeypatch.setattr(protocol_page, "_WORTH_A_PROCESS", 1)
    objects, names = find_objects(data), ("extrusion", "retrieval")
    protocol_page.prepare_trivial(names, train, tmp_path, objects, SMALL, lambda line: None, 2)
    monkeypatch.setattr(protocol_page, "_WORTH_A_PROCESS", 2)  # three objects: one process
    protocol_page.prepare_trivial(names, train, tmp_path / "again", objects, SMALL, lambda line: None, 2)
    assert seen == [2, 2, 1, 1]


def test_a_model_that_cannot_be_sent_says_so(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"processes=2 wants a model.*Try processes=1"):
        score(data, tmp_path, lambda picture: None, processes=2)
    with pytest.raises(SettingsError, match="processes=0"):
        score(data, tmp_path, None, processes=0)


def test_a_named_model_travels_without_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_model(monkeypatch)
    lifter = ModelLifter("fake", "cpu", "fp32", 32)
    assert lifter.told()["name"] == "fake" and lifter.pipe is lifter.pipe
    again = pickle.loads(pickle.dumps(lifter))
    assert again == lifter and "pipe" not in vars(again)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda mesh, azimuth: turned(mesh, -azimuth), id="turned the wrong way"),
        pytest.param(lambda mesh, azimuth: mesh, id="not turned"),
        pytest.param(lambda mesh, azimuth: turned(mesh, azimuth).transformed(np.diag([1.0, -1, 1, 1])), id="mirrored"),
        pytest.param(lambda mesh, azimuth: turned(mesh, azimuth).transformed(np.diag([1.0, 1, -1, 1])), id="head down"),
    ],
)
def test_wrong_answers_get_wrong_marks(data: Path, tmp_path: Path, change: Callable[[Mesh, float], Mesh]) -> None:
    azimuths = [SMALL.viewpoint(name)[0] for name in find_objects(data)]
    assert all(20 < a % 180 < 160 for a in azimuths), "these objects are seen from where a wrong turn shows"
    record = score(data, tmp_path / "out", knowing(data, change))
    assert all(row["ours"]["iou"] < 0.8 for row in record["objects"])
    assert record["mean"]["ours"]["ssim"] < 0.97


# What the model is shown.


def test_viewpoints_are_in_range_and_the_ids_own() -> None:
    protocol = EvalProtocol()
    seen = np.array([protocol.viewpoint(f"object {i}") for i in range(400)])
    assert seen[:, 0].min() < 5 and seen[:, 0].max() > 355 and seen[:, 0].mean() == pytest.approx(180, abs=15)
    assert -5 <= seen[:, 1].min() < -4 and 34 < seen[:, 1].max() <= 35
    assert protocol.viewpoint("chair") == protocol.viewpoint("chair") != protocol.viewpoint("table")


def test_input_fills_85_percent_and_shows_the_side_toward_the_camera() -> None:
    mesh = boxes(((0, -0.5, -1), (0.5, 0.5, 1)), ((-0.5, -0.5, -1), (0, 0.5, 1)))  # red toward +x, blue toward -x
    for azimuth, color in ((0.0, [204, 51, 51]), (180.0, [51, 76, 230])):
        picture = EvalProtocol().look(mesh, azimuth, 0.0)
        rows, columns = np.nonzero(picture[..., 3] > 127)
        assert np.ptp(rows) + 1 == pytest.approx(0.85 * 256, abs=2)
        assert rows.mean() == pytest.approx(127.5, abs=1) and columns.mean() == pytest.approx(127.5, abs=1)
        np.testing.assert_allclose(picture[128, 128, :3], color, atol=2)


def test_the_turned_truth_seen_from_azimuth_0_is_the_input() -> None:
    mesh = placed(lopsided())
    asked = SMALL.look(mesh, 70.0, 25.0).astype(int)
    assert np.abs(SMALL.look(turned(mesh, 70.0), 0.0, 25.0) - asked).mean() < 1  # single pixels at edges
    assert np.abs(SMALL.look(turned(mesh, -70.0), 0.0, 25.0) - asked).mean() > 10


def test_light_is_for_the_input_alone() -> None:
    mesh, soft = lopsided(), replace(EvalProtocol(), light="soft", image_size=64)
    plain = replace(soft, light="none")
    assert (plain.look(mesh, 30, 20)[..., :3].astype(int) - soft.look(mesh, 30, 20)[..., :3]).max() > 20
    assert torch.equal(plain.novel_views(mesh), soft.novel_views(mesh))


def test_inputs_are_framed_as_in_training() -> None:
    pytest.importorskip("embreex", reason="embreex is in the extra train")
    from train.objects import normalized
    from train.render import Caster, crop_camera

    mesh = lopsided()
    obj = normalized("crane", mesh.vertices, mesh.faces, np.rint(mesh.colors * 255).astype(np.uint8))
    protocol = EvalProtocol()
    camera = crop_camera(obj.vertices, 70.0, 25.0, protocol.camera_distance)
    theirs = Caster(obj).view(camera, 128)[..., :4].astype(int)
    ours = protocol.look(EvalObject("crane", Path(), placed(mesh)).mesh, 70.0, 25.0, 128).astype(int)
    assert np.abs(theirs[..., 3] - ours[..., 3]).mean() < 1.0
    solid = (theirs[..., 3] == 255) & (ours[..., 3] == 255)
    assert np.abs(theirs[solid] - ours[solid]).mean() < 1.5


def test_input_psnr_is_of_the_field_seen_by_its_own_camera() -> None:
    same = lifted(lopsided(), np.zeros((8, 8, 4), np.uint8))
    assert input_psnr(same) == PSNR_CEILING
    aside = SimpleNamespace(**(vars(same) | {"camera": orbit(90.0, 10.0, 2.7, 40.0)}))
    assert input_psnr(aside) < 25


# What goes wrong.


def test_a_model_that_fails_counts_as_nothing_and_is_named(data: Path, tmp_path: Path) -> None:
    knows = knowing(data, right)

    def second_fails(picture: Bytes, calls: list[int] = []) -> Any:  # noqa: B006 - remembers between calls
        calls.append(1)
        if len(calls) == 2:
            raise MeshError("no surface was found")
        return knows(picture)

    record = score(data, tmp_path / "out", second_fails)
    assert record["failures"] == [{"id": "kit/sign", "answer": "ours", "error": "MeshError: no surface was found"}]
    failed = record["objects"][1]["ours"]
    assert failed["iou"] == failed["fscore_0.5"] == 0 and failed["chamfer"] == 2 and 0 < failed["psnr"] < 30
    assert record["mean"]["ours"]["iou"] == pytest.approx(0.5, abs=0.01)
    assert not (tmp_path / "out" / "meshes" / "ours" / "kit").exists()


def test_a_truth_that_cannot_be_read_is_skipped_and_named(data: Path, tmp_path: Path) -> None:
    (data / "kit" / "broken.glb").write_bytes(b"glTF but not really")
    record = score(data, tmp_path / "out", None, answers=("ours",))
    assert [s["id"] for s in record["skipped"]] == ["kit/broken"] and "broken.glb" in record["skipped"][0]["error"]
    assert record["count"] == 2


def test_trivial_answers_are_left_out_without_training_objects(data: Path, tmp_path: Path) -> None:
    record = score(data, tmp_path / "out", knowing(data, right), answers=("ours", "ellipsoid"))
    assert (
        set(record["mean"]) == {"ours", "shuffled"}
        and "--train" in record["left_out"]["ellipsoid"]
        and record["lead"] == {}
    )


def test_constants_are_fitted_once_for_one_train_folder(
    data: Path, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = score(data, out, None, answers=("extrusion",), train=train)

    def again(_: Any) -> Any:
        raise AssertionError("fitted again")

    monkeypatch.setattr(protocol_page, "fit_constants", again)
    second = score(data, out, None, answers=("extrusion",), train=train)
    # Means of the mean shape are rounded in the file; what extrusion uses is not.
    assert second["constants"] == first["constants"]
    assert second["mean"]["extrusion"]["iou"] == first["mean"]["extrusion"]["iou"]
    (train / "slab.glb").unlink()
    with pytest.raises(AssertionError, match="fitted again"):
        score(data, out, None, answers=("extrusion",), train=train)


def test_objects_that_are_scored_are_never_trained_on(data: Path, tmp_path: Path) -> None:
    write_mesh(boxes(((-0.4, -0.3, -1), (0.4, 0.3, 1))), data / "post.glb")
    record = score(data, tmp_path / "out", None, answers=("retrieval",), train=data, limit=1)
    assert record["count"] == 1 and record["constants"]["objects"] == 2
    assert record["mean"]["retrieval"]["iou"] < 0.95


def test_wrong_settings_are_errors(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"answers=ours,cube.*retrieval"):
        score(data, tmp_path, None, answers=("ours", "cube"))
    with pytest.raises(SettingsError, match="limit=0"):
        score(data, tmp_path, None, limit=0)
    with pytest.raises(SettingsError, match=r"nowhere.*mesh files"):
        score(tmp_path / "nowhere", tmp_path, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"trilift\[train\]"):
        score(data, tmp_path, None)


def test_limit_spreads_over_the_ids() -> None:
    objects = {f"{i:02}": Path(f"{i:02}.glb") for i in range(10)}
    assert list(spread(objects, 3)) == ["00", "03", "06"]
    assert list(spread(objects, None)) == list(spread(objects, 99)) == sorted(objects)


# The command.


def test_the_command_scores_a_model_and_prints_a_table(
    data: Path, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_fake_model(monkeypatch)
    out = tmp_path / "out"
    argv = [str(data), "-o", str(out), "--answers", "ours,ellipsoid", "--limit", "1", "--resolution", "32"]
    assert main(argv) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert lines[0].split()[0] == "iou" and lines[1].startswith("ours ") and lines[2].startswith("ellipsoid ")
    assert "iou: ours is" in lines[3] and "from ellipsoid" in lines[3]
    assert "[1/1] crane" in told.err
    record = json.loads((out / "metrics.json").read_text())
    # The fake's answer is an ellipsoid 0.3 x 0.4 x 0.6 whatever it sees.
    assert np.sort(read_mesh(out / "meshes" / "ours" / "crane.glb").extent) == pytest.approx([0.5, 2 / 3, 1], abs=0.03)
    assert record["protocol"]["mesh_resolution"] == 32 and record["model"]["name"] == "fake"


def test_the_command_says_when_something_failed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.fakes import FakeModel

    use_fake_model(monkeypatch, FakeModel(broken=True))
    assert main([str(data), "-o", str(tmp_path / "out"), "--answers", "ours", "--limit", "1", "--quiet"]) == 1
    assert "crane: ours: " in capsys.readouterr().err


class Ringed:
    """A model that is shown the ring and knows the truth."""

    wants_true_views = True

    def __init__(self, data: Path) -> None:
        self.knowing, self.seen = knowing(data, right), [read_mesh(path) for path in sorted(data.rglob("*.glb"))]
        self.shares: list[float] = []

    def __call__(self, picture: Bytes, views_dir: Path) -> Any:
        answer, views = self.knowing(picture), read_views(views_dir)
        assert len(views) == 7
        points = torch.from_numpy(np.asarray(placed(answer.mesh).vertices, np.float32))
        pixels = (project(views.cameras, points)[0] * views.image_size[0]).long().clamp(0, views.image_size[0] - 1)
        grown = torch.nn.functional.max_pool2d((views.alpha > 0).float(), 3, 1, 1)[:, 0]
        self.shares += [float(g[p[:, 1], p[:, 0]].mean()) for g, p in zip(grown, pixels, strict=True)]
        return answer


def test_the_ring_of_true_views_sees_the_truth_where_its_cameras_say(data: Path, tmp_path: Path) -> None:
    model = Ringed(data)
    record = score(data, tmp_path / "out", model, answers=("ours",))
    assert record["mean"]["ours"]["iou"] > 0.99
    assert len(model.shares) == 14 and min(model.shares) == 1.0


def test_a_named_generator_is_loaded_with_the_model_and_the_true_ring_is_none() -> None:
    assert ModelLifter("tiny", "cpu", "fp32", 32, "true").wants_true_views
    assert not ModelLifter("tiny", "cpu", "fp32", 32, "zero123-xl").wants_true_views


def test_what_a_model_says_of_itself_is_ranked_against_the_truth() -> None:
    def row(iou: float, **own: float) -> dict[str, Any]:
        return {"watertight": True, "ours": {"iou": iou, **{f"own_{key}": value for key, value in own.items()}}}

    rows = [
        row(0.1, good=0.2, bad=0.9, flat=1.0),
        row(0.5, good=0.3, bad=0.5, flat=1.0),
        row(0.9, good=0.8, bad=0.1, flat=1.0),
    ]
    told = summarize(rows)
    assert told["worth"] == {"good": pytest.approx(1.0), "bad": pytest.approx(-1.0)}
    assert "own_good" not in told["mean"]["ours"]
    rows.append({"watertight": True, "ours": {"iou": 0.0}})  # a failed answer says nothing, which counts as 0
    assert summarize(rows)["worth"]["good"] == pytest.approx(1.0)


def test_own_scores_are_the_numbers_among_the_checks() -> None:
    lifted_ = SimpleNamespace(record={"checks": {"expected_iou": 0.5, "watertight": True}})
    assert own_scores(lifted_) == {"own_expected_iou": 0.5}
    assert own_scores(SimpleNamespace()) == {}
