"""The command line through its own door, `main([...])`, and once as a process."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

import trilift
from tests.fakes import FakeModel, draw_photo, use_fake_model
from trilift import batch, cli, registry
from trilift.cli import main

ROOT = Path(trilift.__file__).parents[1]
FAST = ["--resolution", "32"]


def process(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from trilift.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=cwd)


@pytest.fixture
def model(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return use_fake_model(monkeypatch)


# Help and usage


@pytest.mark.parametrize(
    "command", [[], ["lift"], ["batch"], ["views"], ["models"], ["doctor"], ["demo"]], ids=" ".join
)
def test_help_loads_nothing_heavy(command):
    code = (
        f"import sys\nfrom trilift.cli import main\ntry:\n    main({[*command, '--help']!r})\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "assert not {'torch', 'numpy', 'PIL', 'scipy', 'gradio'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: trilift")


def test_help_offers_only_what_works(capsys):
    for command in ("lift", "batch"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert "--resolution" in text and "--turntable" in text
        assert "--texture" in text and ("--engine" in text) == (command == "batch")
        assert "--views NAME" in text and ("--views-dir" in text) == (command == "lift")


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"trilift {trilift.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice"),
        (["lift"], "required: PHOTO"),
        (["lift", "a.png", "--resolution", "many"], "invalid int value"),
        (["lift", "a.png", "--background", "blue"], "invalid choice"),
        (["lift", "a.png", "--threshold", "high"], "--threshold"),
        (["demo", "--port", "99999"], "expected 0 to 65535"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_status_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and words in captured.err and captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lift", "a.png", "--resolution", "4"], "resolution=4: expected a whole number from 16 to 2048"),
        (["lift", "a.png", "--format", "glb,fbx"], "formats='fbx': expected glb"),
        (["lift", "a.png", "--height", "1", "--scale", "1"], "exclude each other"),
        (["batch", ".", "-o", "."], "the output folder is the photo folder itself"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_out_of_range_are_status_2(arguments, words, capsys, model):
    assert main(arguments) == cli.USAGE
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_unknown_model_is_status_1_and_lists_what_is_ready(capsys):
    assert main(["lift", "a.png", "--model", "tripsr"]) == cli.FAILED
    assert "Did you mean triposr" in capsys.readouterr().err


# lift


def test_lift_writes_the_folder_and_tells(model, tmp_path, capsys):
    draw_photo(tmp_path / "chair.png")
    assert main(["lift", "chair.png", *FAST]) == cli.OK
    assert sorted(p.name for p in (tmp_path / "out" / "chair").iterdir()) == [
        "asset.json",
        "input.png",
        "mesh.glb",
        "seen.png",
    ]
    captured = capsys.readouterr()
    assert "chair.png: lifted in" in captured.err and str(Path("out/chair")) in captured.err
    assert captured.out == ""


def test_lift_passes_every_option_on(model, tmp_path):
    draw_photo(tmp_path / "a.png")
    options = (
        "--resolution 40 --threshold 9.5 --faces 300 --format obj,stl --height 2 --turntable --background auto "
        "--foreground-ratio 0.7 --elevation 12 --fov 50 --upright off --seed 5 --device cpu --dtype fp32 "
        "--best-of 2 --best-of-seconds 9 --keep 5% --smooth 3 --remesh off --watertight --texture vertex "
        "--texture-size 256 --project off --lods 1 --roughness 0.5 --splats 500 --sheet --turntable-format webp "
        "--turntable-frames 3 --turntable-size 40 --turntable-elevation 5 --turntable-of mesh --turntable-transparent "
        "-o made"
    )
    assert main(["lift", "a.png", *options.split()]) == cli.OK
    record = json.loads((tmp_path / "made" / "a" / "asset.json").read_text())
    assert record["settings"] == {
        "resolution": 40, "threshold": 9.5, "background": "auto", "foreground_ratio": 0.7, "elevation": 12.0,
        "fov": 50.0, "views_dir": None, "photos": [], "best_of": 2, "best_of_seconds": 9.0,
        "view_steps": None, "guidance": None, "scheduler": None, "view_batch": None,
        "parity": False, "upright": "off", "faces": 300, "texture": "vertex",
        "formats": ["obj", "stl"], "turntable": True, "seed": 5, "height": 2.0, "scale": None,
        "texture_size": 256, "normal_map": False, "project": "off", "profile": None, "keep": 0.05, "smooth": 3,
        "remesh": "off", "watertight": True, "lods": 1, "roughness": 0.5, "splats": 500, "sheet": True,
        "turntable_formats": ["webp"],
        "turntable_frames": 3, "turntable_size": 40, "turntable_elevation": 5.0, "turntable_of": "mesh",
        "turntable_transparent": True,
    }  # fmt: skip
    assert {"mesh.obj", "mesh.stl", "turntable.webp", "sheet.png"} <= {f["name"] for f in record["files"]}
    assert record["mesh"]["faces"] <= 300
    assert model.calls[-1][1] == 12.0 and model.calls[-1][3] is False


def test_json_is_one_object_a_photo_and_nothing_else(model, tmp_path, capsys):
    draw_photo(tmp_path / "b.png")
    (tmp_path / "a.png").write_bytes(b"")
    assert main(["lift", "a.png", "b.png", "--json", *FAST]) == cli.FAILED
    captured = capsys.readouterr()
    bad, good = (json.loads(line) for line in captured.out.splitlines())
    assert (bad["source"], bad["status"], bad["folder"]) == ("a.png", "failed", None)
    assert bad["error"].startswith("a.png: is empty") and bad["error"] in captured.err
    assert (good["source"], good["status"], good["error"]) == ("b.png", "done", None)
    assert good["folder"] == str(Path("out/b")) and "mesh.glb" in good["files"]
    assert set(good["stages"]) >= {"load", "cutout", "network", "mesh", "write"} and good["seconds"] > 0


def test_quiet_tells_failures_only(model, tmp_path, capsys):
    draw_photo(tmp_path / "b.png")
    assert main(["lift", "b.png", "--quiet", *FAST]) == cli.OK
    assert capsys.readouterr() == ("", "")
    assert main(["lift", "gone.png", "b.png", "--quiet", *FAST]) == cli.FAILED
    captured = capsys.readouterr()
    assert captured.err.startswith("trilift: gone.png: there is no such file") and captured.err.count("\n") == 1


def test_stages_are_told_on_a_terminal(model, tmp_path, capsys, monkeypatch):
    draw_photo(tmp_path / "b.png")
    main(["lift", "b.png", *FAST])
    assert "running the network" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main(["lift", "b.png", *FAST])
    lines = capsys.readouterr().err.splitlines()
    told = [line.split(": ")[1] for line in lines if line.endswith("...")]
    assert told[:2] == ["reading the photo ...", "cutting out the object ..."]
    assert told[2:4] == ["running the network ...", "taking the surface ..."] and told[-1] == "writing files ..."


def test_photos_with_one_name_do_not_overwrite_each_other(model, tmp_path):
    draw_photo(tmp_path / "a" / "b.c.jpg")
    draw_photo(tmp_path / "a" / "b.c.png")
    draw_photo(tmp_path / "other" / "d.png")
    assert main(["lift", "a/b.c.jpg", "a/b.c.png", "other/d.png", *FAST]) == cli.OK
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["b.c.jpg", "b.c.png", "d"]


def test_second_lift_replaces_the_first(model, tmp_path):
    draw_photo(tmp_path / "a.png")
    main(["lift", "a.png", "--format", "obj", *FAST])
    main(["lift", "a.png", *FAST])
    assert sorted(p.name for p in (tmp_path / "out" / "a").iterdir()) == [
        "asset.json",
        "input.png",
        "mesh.glb",
        "seen.png",
    ]


def test_ctrl_c_is_130_and_leaves_nothing_half_written(model, tmp_path, capsys, monkeypatch):
    for name in ("a.png", "b.png", "c.png"):
        draw_photo(tmp_path / name)
    plain = FakeModel.reconstruct

    def interrupted(self, *args, **kwargs):
        if len(self.calls) == 1:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(FakeModel, "reconstruct", interrupted)
    assert main(["lift", "a.png", "b.png", "c.png", *FAST]) == cli.INTERRUPTED
    assert "interrupted" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]


def test_ctrl_c_while_writing_leaves_nothing(model, tmp_path, monkeypatch):
    import trilift.asset

    draw_photo(tmp_path / "a.png")

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(trilift.asset, "write_png", interrupted)
    assert main(["lift", "a.png", *FAST]) == cli.INTERRUPTED
    assert list((tmp_path / "out").iterdir()) == []


# batch


def test_batch_lifts_all_and_goes_on(model, tmp_path, capsys):
    draw_photo(tmp_path / "in" / "a.png")
    draw_photo(tmp_path / "in" / "sub" / "b.PNG", (30, 90, 200))
    (tmp_path / "in" / "sub" / "c.jpg").write_text("not an image")
    assert main(["batch", "in", "-o", "in/out", "--json", *FAST]) == cli.FAILED
    captured = capsys.readouterr()
    assert [json.loads(line)["status"] for line in captured.out.splitlines()] == ["done", "done", "failed"]
    assert "in/sub/c.jpg: is not an image" in captured.err and "2 done, 0 skipped, 1 failed" in captured.err
    assert (tmp_path / "in/out/sub/b/mesh.glb").is_file() and not (tmp_path / "in/out/sub/c").exists()
    assert (tmp_path / "in/out/report.html").read_text().count("data:image/webp") == 2

    draw_photo(tmp_path / "in" / "sub" / "c.jpg")
    draw_photo(tmp_path / "in" / "a.png", (1, 2, 3))
    calls = len(model.calls)
    assert main(["batch", "in", "-o", "in/out", "--json", *FAST]) == cli.OK
    statuses = {(row := json.loads(line))["source"]: row["status"] for line in capsys.readouterr().out.splitlines()}
    assert statuses == {"a.png": "done", "sub/b.PNG": "skipped", "sub/c.jpg": "done"}
    assert len(model.calls) == calls + 2
    assert len((tmp_path / "in/out/results.jsonl").read_text().splitlines()) == 5  # what is skipped has its row already


def test_ctrl_c_in_a_folder_run_keeps_what_is_finished(model, tmp_path, capsys, monkeypatch):
    for name in ("a.png", "b.png", "c.png"):
        draw_photo(tmp_path / "in" / name)
    plain = FakeModel.reconstruct

    def interrupted(self, *args, **kwargs):
        if len(self.calls) == 1:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(FakeModel, "reconstruct", interrupted)
    assert main(["batch", "in", "--json", *FAST]) == cli.INTERRUPTED
    assert [json.loads(line)["source"] for line in capsys.readouterr().out.splitlines()] == ["a.png"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a", "report.html", "results.jsonl"]
    assert "1 of 3 photos finished" in (tmp_path / "out" / "report.html").read_text()
    monkeypatch.setattr(FakeModel, "reconstruct", plain)
    assert main(["batch", "in", "--json", *FAST]) == cli.OK
    assert [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()] == ["skipped", "done", "done"]


def test_batch_of_nothing_is_no_success(model, tmp_path, capsys):
    assert main(["batch", "nowhere"]) == cli.FAILED
    assert "nowhere: expected a folder of photos, but it does not exist" in capsys.readouterr().err
    (tmp_path / "in").mkdir()
    assert main(["batch", "in"]) == cli.FAILED
    assert "in: no photos in it or below" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# models, doctor, demo


def test_models_lists_all_with_licences(capsys):
    assert main(["models"]) == cli.OK
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(registry.WEIGHT_SETS)
    assert lines[0].split()[:6] == ["name", "stage", "status", "here", "size", "memory"]
    assert any(line.startswith("triposr ") and "ready" in line and "MIT" in line for line in lines)
    assert any(line.startswith("zero123-xl ") and "ready" in line for line in lines)
    assert main(["models", "--json"]) == cli.OK
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["name"]: row["commercial"] for row in rows}["openlrm-mix-base"] == "no"
    assert {row["name"]: row["status"] for row in rows}["tiny"] == "ready"


def test_doctor_finds_missing_and_damaged_weights(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "EMBEDDED", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == cli.FAILED
    out = capsys.readouterr().out
    assert any(line.startswith("bad   weights tiny:") and "missing" in line for line in out.splitlines())
    assert "ok    python:" in out and "torch:" in out and "can be written" in out

    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"\x10\x00\x00")
    assert main(["doctor", "--json"]) == cli.FAILED
    found = json.loads(capsys.readouterr().out)
    assert found["weights tiny"]["state"] == "bad" and "not a whole safetensors file" in found["weights tiny"]["text"]
    assert found["fast_simplification"]["state"] in ("ok", "note")


def test_doctor_compares_the_hash_of_the_table(tmp_path, monkeypatch):
    from dataclasses import replace

    import torch
    from safetensors.torch import save_file

    from multiview.weights import file_sha256
    from trilift.doctor import check_weights

    monkeypatch.setattr(registry, "EMBEDDED", tmp_path)
    path = tmp_path / "tiny" / "model.safetensors"
    path.parent.mkdir()
    save_file({"x": torch.ones(3)}, path)
    good = replace(registry.find("tiny"), sha256=file_sha256(path))
    monkeypatch.setattr(registry, "WEIGHT_SETS", (good,))
    assert [(f.state, "1 tensors" in f.text) for f in check_weights()] == [("ok", True)]
    monkeypatch.setattr(registry, "WEIGHT_SETS", (replace(good, sha256="0" * 64),))
    (finding,) = check_weights()
    assert finding.state == "bad" and f"expected {'0' * 64}" in finding.text


def test_doctor_survives_a_check_that_fails(monkeypatch):
    from trilift import doctor

    def broken() -> list[doctor.Finding]:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(doctor, "check_memory", broken)
    found = {f.name: f for f in doctor.examine()}
    assert found["broken"].state == "bad" and "ZeroDivisionError" in found["broken"].text and "python" in found


def test_demo_hands_its_options_to_the_page(monkeypatch):
    got = []
    page = types.ModuleType("app")
    page.main = lambda argv: got.append(argv)  # type: ignore[attr-defined]
    for home in ("demo.app", "trilift_demo.app"):  # which one is there depends on how this checkout is installed
        monkeypatch.setitem(sys.modules, home, page)
    assert main(["demo", "--port", "0"]) == cli.OK
    assert main(["demo", "--host", "0.0.0.0", "--share", "--model", "runs/x", "--device", "cpu"]) == cli.OK
    usual = ["--model", "tiny", "--device", "auto"]
    assert got[0] == ["--host", "127.0.0.1", "--port", "0", *usual]
    assert got[1] == ["--host", "0.0.0.0", "--port", "7860", "--model", "runs/x", "--device", "cpu", "--share"]


# As a process


def test_as_a_process(tmp_path):
    done = process("models", "--json", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads(done.stdout.splitlines()[0])["name"] == "tiny"
    module = subprocess.run([sys.executable, "-m", "trilift", "fly"], capture_output=True, text=True, cwd=ROOT)
    assert module.returncode == 2 and "invalid choice" in module.stderr


def test_a_reader_that_goes_away_is_no_traceback(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from trilift.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "models"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()
        assert b"Traceback" not in running.stderr.read()


def test_the_embedded_model_from_a_process(tmp_path):
    draw_photo(tmp_path / "disc.png")
    done = process("lift", "disc.png", "--resolution", "64", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "done"
    assert json.loads((tmp_path / "out" / "disc" / "asset.json").read_text())["model"]["name"] == "tiny"


def test_report_name_is_the_documented_one():
    assert (batch.RESULTS_FILE, batch.REPORT_FILE) == ("results.jsonl", "report.html")
