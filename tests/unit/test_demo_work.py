"""What the page's buttons start, without the page: lifts, views on the way, folders as zip files, and the examples."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo.bench import Bench
from demo.cutting import Box, correct
from demo.intake import RefusedError, Upload
from demo.jobs import Done, Pace, Snapshot, Stopped
from demo.recipe import Choices
from demo.sessions import Session, Sessions
from demo.work import Lifting
from tests.fakes import FakeModel, draw_photo
from trilift import ImageTo3D, cli, examplecheck
from trilift.examplecheck import compare, example_files, numbers_of, read_expected

SMALL = Choices(resolution=64, turntable=False)


@pytest.fixture
def lifting() -> Lifting:
    return Lifting(Bench(load=lambda *_, **__: ImageTo3D(FakeModel())), Pace())


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    sessions = Sessions(tmp_path / "sessions")
    yield sessions.of("visitor")
    sessions.close()


@pytest.fixture
def upload(tmp_path: Path) -> Upload:
    return Upload(draw_photo(tmp_path / "up" / "ball.png"), "ball.png")


def end_of(steps: Iterator[Any]) -> Any:
    """The value of the last step; those before it are snapshots."""
    *before, last = steps
    assert all(isinstance(now, Snapshot) for now in before)
    assert isinstance(last, Done)
    return last.value


def test_a_corrected_cutout_is_what_is_lifted(lifting: Lifting, session: Session, tmp_path: Path) -> None:
    pixels = np.full((96, 192, 3), 255, np.uint8)
    pixels[32:64, 32:64] = (200, 40, 40)
    pixels[32:64, 128:160] = (40, 40, 200)
    Image.fromarray(pixels).save(tmp_path / "two.png")
    upload = Upload(tmp_path / "two.png", "two.png")
    correct(session.photo(upload), "auto", Box(50, 0, 100, 100), [])
    result = end_of(lifting.lift(session, upload, {}, SMALL))
    with Image.open(result.picture) as image:
        color = np.array(image)[image.height // 2, image.width // 2]
    assert color[2] > 150 > color[0], "the blue one"
    names = [path.name for path in result.files]
    assert names[0] == "mesh.glb" and {"two.png", "two_mask.png"} <= set(names)
    assert result.command == "trilift lift two.png -o out --resolution=64"


def test_more_photos_reach_the_settings_by_name(lifting: Lifting, session: Session, upload: Upload) -> None:
    back = Upload(draw_photo(upload.path.with_name("b.png"), (1, 2, 3)), "my back.png")
    with pytest.raises(RefusedError, match=r"--photo back=my back\.png: fake lifts one photo") as raised:
        end_of(lifting.lift(session, upload, {"back": back, "left": None}, SMALL))
    assert "sessions" not in str(raised.value), "and nothing is told of folders"


def test_views_are_seen_while_they_come(session: Session, upload: Upload, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded models, two denoising steps; takes a few seconds."""
    monkeypatch.setattr("demo.bench._PREVIEW_SECONDS", 0.0)
    monkeypatch.setattr("demo.jobs.TICK_SECONDS", 0.01)
    lifting = Lifting(Bench(), Pace())
    choices = Choices(views="tiny-views", view_steps=2, resolution=64)
    *steps, end = lifting.lift(session, upload, {}, choices)
    seen = [(now.stage, news) for now in steps for news in now.news]
    assert 2 <= len(seen) <= 3 and all(len(news) == 6 for _, news in seen)
    assert seen[0][0] == "views" and seen[0][1][0].parent != seen[-1][1][0].parent
    for path in (*seen[0][1], *seen[-1][1]):
        with Image.open(path) as image:
            assert image.width >= 32 and image.mode == "RGB"
    assert seen[0][1][0].read_bytes() != seen[-1][1][0].read_bytes(), "the first was rough"
    assert len(end.value.views) == 6 and end.value.facts["expected_iou"] is not None
    assert "expected" in end.value.scores.lower() and "silhouette" not in end.value.scores.lower()
    assert end.value.command == "trilift lift ball.png -o out --views tiny-views --steps=2 --resolution=64"
    assert "generate" not in vars(lifting.bench.pipe("tiny", "tiny-views").generator.model), (
        "nobody else is shown these"
    )


def packed(path: Path, photos: dict[str, bytes]) -> Upload:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in photos.items():
            file.writestr(name, data)
    return Upload(path, path.name)


def test_a_folder_comes_back_with_its_report(
    lifting: Lifting, session: Session, upload: Upload, tmp_path: Path
) -> None:
    photos = {"a.png": upload.path.read_bytes(), "sub/b.png": upload.path.read_bytes(), "bad.png": b"no picture"}
    steps = list(lifting.folder(session, packed(tmp_path / "mine.zip", photos), SMALL))
    results = [news for now in steps[:-1] for news in now.news]
    assert {(each.source, each.status) for each in results} == {
        ("a.png", "done"), ("bad.png", "failed"), ("sub/b.png", "done"),
    }  # fmt: skip
    target = steps[-1].value
    assert target.name == "mine-results.zip"
    with zipfile.ZipFile(target) as file:
        names = set(file.namelist())
        text = "".join(file.read(name).decode() for name in names if name.endswith((".json", ".jsonl", ".html")))
    assert names >= {"report.html", "results.jsonl", "a/mesh.glb", "sub/b/mesh.glb", "a/asset.json"}
    assert str(tmp_path) not in text
    assert [path.name for path in target.parent.iterdir()] == ["mine-results.zip"], "nothing else is kept"


def test_a_generators_views_are_no_news_of_a_folder(
    session: Session, upload: Upload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demo.bench._PREVIEW_SECONDS", 0.0)
    chosen = Choices(resolution=64, turntable=False, views="tiny-views", view_steps=2)
    archive = packed(tmp_path / "mine.zip", {"a.png": upload.path.read_bytes()})
    steps = list(Lifting(Bench(), Pace()).folder(session, archive, chosen))
    assert [each.status for now in steps[:-1] for each in now.news] == ["done"]


def test_a_folder_is_stopped_in_the_middle(session: Session, upload: Upload, tmp_path: Path) -> None:
    lifting = Lifting(Bench(load=lambda *_, **__: ImageTo3D(FakeModel())), Pace())
    archive = packed(tmp_path / "m.zip", {f"{k:02}.png": upload.path.read_bytes() for k in range(40)})
    results = []
    with pytest.raises(Stopped):
        for now in lifting.folder(session, archive, SMALL):
            results += now.news if isinstance(now, Snapshot) else []
            if results:
                session.stop()
    assert 1 <= len(results) < 40
    assert threading.active_count() < 20


# The examples.


def test_every_example_has_expectations() -> None:
    expected = read_expected()
    assert sorted(expected) == [path.stem for path in example_files()] and len(expected) >= 5
    for numbers in expected.values():
        assert compare(numbers, numbers) == ()
        assert max(numbers["extents"]) == 1.0


def test_what_differs_is_told() -> None:
    expected = read_expected()["chair"]
    found = {**expected, "extents": [0.5, 0.5, 1.0], "watertight": False}
    found["volume"] = expected["volume"] * 1.05
    told = compare(found, expected)
    assert any(text.startswith("extents: found") for text in told) and "the mesh is not closed" in told
    assert not any(text.startswith("volume") for text in told), "within a tenth"
    assert compare({**expected, "expected_iou": None}, expected) == (
        f"expected_iou: found None, expected {expected['expected_iou']}",
    )
    off = {**expected, "silhouette_iou": expected["silhouette_iou"] - 0.05}
    assert compare(off, expected) and not compare({**off, "method": "rembg"}, expected), "another remover cut it out"


def test_the_command_compares_and_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_photo(tmp_path / "a.png")
    draw_photo(tmp_path / "b.png")
    pipe = ImageTo3D(FakeModel())
    monkeypatch.setattr(examplecheck, "example_files", lambda: [tmp_path / "a.png", tmp_path / "b.png"])
    monkeypatch.setattr(ImageTo3D, "from_pretrained", classmethod(lambda cls, *_, **__: pipe))
    good = numbers_of(pipe(tmp_path / "a.png", resolution=examplecheck.RESOLUTION))
    monkeypatch.setattr(examplecheck, "read_expected", lambda: {"a": good, "b": {**good, "color": [0, 0, 0]}})
    assert cli.main(["examples", "--verify", "--json"]) == cli.FAILED
    said = capsys.readouterr()
    rows = {row["name"]: row for row in map(json.loads, said.out.splitlines())}
    assert rows["a"]["ok"] and not rows["b"]["ok"] and rows["b"]["differences"][0].startswith("color: found")
    assert "1 of 2 examples differ" in said.err
    monkeypatch.setattr(examplecheck, "read_expected", lambda: {"a": good, "b": good})
    assert cli.main(["examples", "--verify"]) == cli.OK
    assert cli.main(["examples", "--record", str(tmp_path / "e.json")]) == cli.OK
    assert read_expected(tmp_path / "e.json") == {"a": good, "b": good}


def test_the_list_of_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["examples"]) == cli.OK
    assert [Path(line).stem for line in capsys.readouterr().out.splitlines()] == sorted(read_expected())


@pytest.mark.slow
def test_the_shipped_examples_are_as_expected() -> None:
    """Five lifts with the embedded model; takes about 20 s of a core."""
    assert cli.main(["examples", "--verify"]) == cli.OK
