"""``trilift views`` and its Python face, with a stand-in generator that renders a known object."""

from __future__ import annotations

import io
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import trilift
from multiview import generator as generators
from multiview.camerafile import read_views, write_transforms
from multiview.cameras import orbit, orbit_angles
from multiview.errors import ImageError, OutputError, SettingsError, TriliftError
from tests.landmarks import FreeRenderer, Renderer, loaded, photo_of
from trilift import PhotoToViews, ViewSettings, cli
from trilift import views as module
from trilift.progress import Narrator, TimeLeft, in_words
from trilift.settings import SCHEDULERS, LiftSettings, parse_memory
from trilift.views import targets_of

ALL = ["000.png", "001.png", "002.png", "cameras.json", "input.png", "transforms.json", "views.json", "views.png"]


@pytest.fixture
def ring() -> Renderer:
    return Renderer("syncdreamer", orbit([0.0, 120.0, 240.0], [30.0, 0.0, -10.0], 1.5, 49.134), size=48)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return photo_of(tmp_path / "chair.png", size=96)


@pytest.fixture
def command(ring: Renderer, monkeypatch: pytest.MonkeyPatch) -> Renderer:
    """Every ``--views NAME`` of the command line is the stand-in."""
    use(ring, monkeypatch)
    return ring


def use(model: Renderer, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = []

    def load(name: str, **options: Any) -> PhotoToViews:
        asked.append({"name": name, **options})
        return loaded(model)

    monkeypatch.setattr(PhotoToViews, "from_pretrained", staticmethod(load))
    return asked


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def run(photo: Path, out: Path, *options: str) -> int:
    return cli.main(["views", str(photo), "-o", str(out), "--views", "syncdreamer", *options])


# What is written


def test_the_folder_is_what_views_dir_reads_back(ring: Renderer, photo: Path, tmp_path: Path) -> None:
    made = loaded(ring)(photo, elevation=20.0, seed=3)
    files = made.save(tmp_path / "out" / "chair")
    assert names(tmp_path / "out" / "chair") == ALL and files[-1].name == "views.json"
    assert torch.equal(read_views(tmp_path / "out" / "chair").cameras.c2w, made.views.cameras.c2w)
    for source in (tmp_path / "out" / "chair", tmp_path / "out" / "chair" / "transforms.json"):
        back = read_views(source)
        assert (back.cameras.c2w - made.views.cameras.c2w).abs().max() < 1e-6
        assert (back.cameras.intrinsics - made.views.cameras.intrinsics).abs().max() < 1e-6
        assert (back.images - made.views.images).abs().max() <= 0.5 / 255 + 1e-6
        assert (back.alpha - made.views.alpha).abs().max() <= 0.5 / 255 + 1e-6
    with Image.open(tmp_path / "out" / "chair" / "views.png") as sheet:
        assert sheet.size == (3 * 48, 48) and sheet.mode == "RGB"


def test_the_command_writes_records_and_tells(
    command: Renderer, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--steps", "20", "--guidance", "2.5", "--view-batch", "4", "--seed", "7", "--elevation", "12"]
    assert run(photo, tmp_path / "out", *options) == cli.OK
    assert names(tmp_path / "out" / "chair") == ALL
    told = capsys.readouterr().err
    assert "views by syncdreamer on cpu in float32, loaded in" in told
    assert "chair.png: views for a photo from 12 degrees above the horizon (as told)" in told
    steps = [line for line in told.splitlines() if "views: step" in line]
    assert len(steps) == 10 and steps[-1].endswith("step 20 of 20") and "left" in steps[0]
    call = command.calls[0]
    assert (call["steps"], call["guidance"], call["batch"], call["parity"]) == (20, 2.5, 4, False)
    # Framed as the generator was trained: 200 of 256 pixels.
    rows, columns = torch.nonzero(call["image"][3] > 0.5, as_tuple=True)
    longest = max(int(axis.max() - axis.min()) + 1 for axis in (rows, columns))
    assert call["image"].shape == (4, 48, 48) and abs(longest - 48 * 200 / 256) <= 1.5
    record = json.loads((tmp_path / "out" / "chair" / "views.json").read_text())
    assert (record["elevation_deg"], record["elevation_estimated"], record["steps"]) == (12.0, False, 20)
    assert record["seed"] == 7 and record["settings"]["guidance"] == 2.5 and record["repeated_in_fp32"] == []
    assert record["generator"]["architecture"] == "syncdreamer" and record["max_memory_bytes"] is None
    assert [row["azimuth_deg"] for row in record["cameras"]] == [0.0, 120.0, 240.0]
    assert [row["elevation_deg"] for row in record["cameras"]] == [30.0, 0.0, -10.0]
    assert {file["name"] for file in record["files"]} == set(ALL) - {"views.json"}
    assert list(record)[-1] == "seconds" and record["versions"]["diffusers"]


def test_an_elevation_that_nobody_said_is_estimated_shown_and_recorded(
    command: Renderer, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photo, tmp_path / "out", "--json") == cli.OK
    captured = capsys.readouterr()
    record = json.loads((tmp_path / "out" / "chair" / "views.json").read_text())
    assert record["elevation_estimated"] is True and -60 <= record["elevation_deg"] <= 85
    assert command.calls[0]["elevation_deg"] == record["elevation_deg"]
    assert f"from {record['elevation_deg']:g} degrees above the horizon (estimated; --elevation DEG" in captured.err
    line = json.loads(captured.out)
    assert line["status"] == "done" and sorted(line["files"]) == ALL and "views" in line["stages"]


def test_same_seed_same_bytes(ring: Renderer, photo: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        loaded(ring)(photo, elevation=20.0, seed=seed).save(tmp_path / name)
    pictures = {name: (tmp_path / name / "001.png").read_bytes() for name in "abc"}
    assert pictures["a"] == pictures["b"] != pictures["c"]
    a, b = (json.loads((tmp_path / name / "views.json").read_text()) for name in "ab")
    assert a.pop("seconds") and b.pop("seconds") and a == b


# Whole or not at all


def test_a_cancelled_run_leaves_nothing(command: Renderer, photo: Path, tmp_path: Path) -> None:
    command.fail_at = 3
    assert run(photo, tmp_path / "out", "--elevation", "20") == cli.INTERRUPTED
    assert not (tmp_path / "out").exists()


def test_a_save_that_fails_keeps_the_earlier_one(
    ring: Renderer, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "chair"
    pipe = loaded(ring)
    pipe(photo, elevation=20.0).save(folder)
    before = {name: (folder / name).read_bytes() for name in names(folder)}

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_transforms", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pipe(photo, elevation=20.0, seed=5).save(folder)
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before
    assert names(tmp_path) == ["chair", "chair.png"]


def test_fewer_views_replace_more_and_strangers_stay(ring: Renderer, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    loaded(ring)(photo, elevation=20.0).save(folder)
    (folder / "007.png").write_bytes(b"mine")
    (folder / "notes.txt").write_text("mine")
    ring.cameras = ring.cameras.select([1])
    loaded(ring)(photo, elevation=20.0).save(folder)
    assert names(folder) == sorted({*ALL, "007.png", "notes.txt"} - {"001.png", "002.png"})
    assert len(read_views(folder)) == 1


def test_photos_are_never_replaced(command: Renderer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = photo_of(tmp_path / "000.png", size=96)
    (tmp_path / "000").symlink_to(tmp_path, target_is_directory=True)
    before = photo.read_bytes()
    assert run(photo, tmp_path) == cli.FAILED
    assert "might replace the photo itself" in capsys.readouterr().err and photo.read_bytes() == before


def test_one_bad_photo_does_not_stop_the_others(
    command: Renderer, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    words = ["views", str(tmp_path / "bad.png"), str(photo), "-o", str(tmp_path / "out"), "--views", "syncdreamer"]
    assert cli.main([*words, "--elevation", "20"]) == cli.FAILED
    assert "1 of 2 photos failed." in capsys.readouterr().err and names(tmp_path / "out") == ["chair"]


# What can be asked for


@pytest.mark.parametrize(
    ("options", "azimuths", "elevations"),
    [
        pytest.param(["--cameras", "ring:4"], [0, 90, 180, 270], [12.0] * 4, id="ring-at-the-photos-elevation"),
        pytest.param(["--cameras", "ring:2", "--elevations=-5"], [0, 180], [-5.0] * 2, id="ring-below"),
        pytest.param(["--cameras", "ring:2", "--elevations", "5,10"], [0, 180], [5.0, 10.0], id="ring-each"),
        pytest.param(["--cameras", "instantmesh"], [30, 90, 150, 210, 270, 330], [20.0, -10.0] * 3, id="instantmesh"),
        pytest.param(["--azimuths", "45,-90", "--elevations", "10"], [45, 270], [10.0, 10.0], id="one-by-one"),
        pytest.param([], [30, 90, 150, 210, 270, 330], [20.0, -10.0] * 3, id="its-own"),
    ],
)  # fmt: skip
def test_cameras_for_generators_that_look_anywhere(
    options: list[str], azimuths: list[float], elevations: list[float], photo: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    use(FreeRenderer("zero123", orbit(0.0, 0.0, 1.5, 49.134), size=24), monkeypatch)
    assert run(photo, tmp_path / "out", "--elevation", "12", *options) == cli.OK
    a, e, d = orbit_angles(read_views(tmp_path / "out" / "chair").cameras)
    assert a.tolist() == pytest.approx(azimuths, abs=1e-3) and e.tolist() == pytest.approx(elevations, abs=1e-3)
    assert d.tolist() == pytest.approx([1.5] * len(azimuths), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cameras", "ring:4"], "syncdreamer makes views from cameras of its own"),
        (["--cameras", "ring:0"], "cameras='ring:0': expected instantmesh, or ring:N with N from 1 to 64"),
        (["--cameras", "ring:2", "--azimuths", "3"], "cameras=ring:2 and azimuths exclude each other"),
        (["--elevations", "3"], "elevations belong to azimuths"),
        (["--azimuths", "0,10,20", "--elevations", "1,2"], "elevations: expected 1 or 3, one for each azimuth"),
        (["--azimuths", "0", "--elevations", "95"], "elevations=95.0: expected a number from -90 to 90"),
        (["--steps", "0"], "view_steps=0: expected a whole number from 1 to 1000"),
        (["--guidance=-1"], "guidance=-1.0: expected a number above 0"),
        (["--elevation", "91"], "elevation=91.0: expected a number from -90 to 90"),
        (["--view-batch", "0"], "view_batch=0: expected a whole number"),
    ],
)  # fmt: skip
def test_wrong_usage_is_status_2(
    options: list[str], words: str, command: Renderer, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photo, tmp_path / "out", *options) == cli.USAGE
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_unknown_names_are_told_the_nearest(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["views", str(photo), "-o", str(tmp_path / "out"), "--views", "syncdraemer"]
    assert cli.main(words) == cli.FAILED
    assert "Did you mean syncdreamer?" in capsys.readouterr().err


def test_a_scheduler_is_set_for_once(photo: Path) -> None:
    class Choosing(Renderer):
        scheduler = "own"
        seen: tuple[str, ...] = ()

        def set_scheduler(self, name: str) -> None:
            self.scheduler = name

        def generate(self, *args: Any, **settings: Any) -> Any:
            self.seen += (self.scheduler,)
            return super().generate(*args, **settings)

    model = Choosing("zero123plus", orbit(0.0, 0.0, 1.5, 49.0), size=24)
    model.scheduler = "own"
    pipe = loaded(model)
    pipe(photo, elevation=0.0, scheduler="unipc")
    pipe(photo, elevation=0.0)
    assert model.seen == ("unipc", "own") and model.scheduler == "own"
    with pytest.raises(SettingsError, match="has no choice of schedulers"):
        loaded(Renderer("mine", orbit(0.0, 0.0, 1.5, 49.0), size=24))(photo, elevation=0.0, scheduler="ddim")
    assert SCHEDULERS == generators.SCHEDULERS


def test_memory_in_words() -> None:
    assert [parse_memory(text) for text in ("6GB", "500MB", "4GiB", "1.5 gb", "1234", 77)] == [
        6_000_000_000, 500_000_000, 4 * 2**30, 1_500_000_000, 1234, 77,
    ]  # fmt: skip
    for wrong in ("6XB", "-1", "0", "much", ""):
        with pytest.raises(SettingsError, match="expected bytes such as 6GB, 500MB"):
            parse_memory(wrong)


def test_memory_reaches_the_generator(
    ring: Renderer, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = use(ring, monkeypatch)
    assert run(photo, tmp_path / "out", "--elevation", "0", "--max-memory", "6GB") == cli.OK
    assert asked[0]["max_memory"] == 6_000_000_000
    with pytest.raises(SystemExit, match="2"):
        run(photo, tmp_path / "out", "--max-memory", "lots")
    assert "expected bytes such as 6GB" in capsys.readouterr().err


def test_targets_are_none_unless_asked_for() -> None:
    assert targets_of(ViewSettings(elevation=3.0), 3.0) is None
    asked = targets_of(ViewSettings(azimuths=(10.0, 20.0)), 7.0)
    assert asked is not None and asked.elevation_deg == (7.0, 7.0)


# What generators say


def test_what_was_repeated_in_fp32_is_recorded(ring: Renderer, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words are those of the real `FiniteSteps`."""
    layer = torch.nn.Linear(2, 2).to(torch.bfloat16)
    render = ring.generate

    def overflowing(*args: Any, **settings: Any) -> Any:
        with generators.FiniteSteps(layer) as steps:
            half = layer.weight.dtype == torch.bfloat16

            def call() -> torch.Tensor:
                return torch.tensor(float("nan") if layer.weight.dtype == torch.bfloat16 else 1.0)

            steps.run(call, "step 3 of 50 (t = 941)")
            assert half
        logging.getLogger("trilift").warning("%s was trained on elevations from -10 to 40, not 60.", "syncdreamer")
        return render(*args, **settings)

    monkeypatch.setattr(ring, "generate", overflowing)
    record = loaded(ring)(photo, elevation=60.0).record
    assert len(record["repeated_in_fp32"]) == 1 and "step 3 of 50 (t = 941)" in record["repeated_in_fp32"][0]
    assert record["warnings"] == ["syncdreamer was trained on elevations from -10 to 40, not 60."]
    assert not logging.getLogger("trilift").handlers  # nobody listens any more


# Progress


def test_time_left_by_hand() -> None:
    now = [100.0]
    left = TimeLeft(lambda: now[0])
    now[0] = 110.0  # ten seconds of warming up
    assert left.seconds(1, 5) == 40.0
    now[0] = 112.0
    assert left.seconds(2, 5) == 6.0  # two seconds each since
    now[0] = 118.0
    assert left.seconds(5, 5) == 0.0
    assert [in_words(s) for s in (0.4, 8.0, 59.6, 200.0, 7500.0)] == [
        "0 s",
        "8 s",
        "1 min 00 s",
        "3 min 20 s",
        "2 h 05 min",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_rewrites_itself_on_a_terminal() -> None:
    stream = Terminal()
    narrator = Narrator(stream)
    step = narrator.steps_of("chair.png")
    step(1, 3)
    narrator.say("a word in between")
    step(2, 3)
    step(3, 3)
    narrator.say("done")
    lines = stream.getvalue().split("\n")
    assert lines[0].startswith("\r  chair.png: views: step 1 of 3, about ") and lines[0].endswith("left\x1b[K")
    assert lines[1] == "a word in between"
    assert lines[2].count("\r") == 2 and lines[2].endswith("step 3 of 3\x1b[K") and lines[3:] == ["done", ""]


def test_about_ten_lines_elsewhere_and_none_when_quiet() -> None:
    for total, expected in ((49, 10), (4, 4), (1000, 10)):
        stream = io.StringIO()
        step = Narrator(stream).steps_of("chair.png")
        for done in range(1, total + 1):
            step(done, total)
        assert stream.getvalue().count("\n") == expected
    stream = io.StringIO()
    Narrator(stream, quiet=True).steps_of("chair.png")(1, 1)
    assert stream.getvalue() == ""


# NeRF's file


def test_transforms_by_hand(tmp_path: Path, ring: Renderer, photo: Path) -> None:
    views = loaded(ring)(photo, elevation=20.0).views
    write_transforms(tmp_path, views)
    values = json.loads((tmp_path / "transforms.json").read_text())
    assert values["camera_angle_x"] == pytest.approx(math.radians(49.134), abs=1e-6)
    frame = values["frames"][1]
    assert frame["file_path"] == "001.png" and (frame["w"], frame["h"]) == (48, 48)
    assert frame["fl_x"] == pytest.approx(24 / math.tan(math.radians(49.134) / 2), abs=1e-3) and frame["cx"] == 24
    assert np.array(frame["transform_matrix"])[:3, 3] == pytest.approx([-0.75, 1.5 * math.sqrt(3) / 2, 0], abs=1e-5)
    with pytest.raises(ImageError, match="no views to write"):
        write_transforms(tmp_path, views.select([]))


def test_public_names() -> None:
    for name in ("PhotoToViews", "GeneratedViews", "ViewSettings"):
        assert name in trilift.__all__ and getattr(trilift, name).__name__ == name
    assert LiftSettings(view_steps=3).view_settings() == ViewSettings(view_steps=3)
    assert issubclass(OutputError, TriliftError)
