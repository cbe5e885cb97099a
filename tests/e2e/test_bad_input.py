"""Every bad input of the first issue, through the command line: one message naming the file, status 1, nothing
half-written, and the good photos beside it still lifted."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import trilift
from lrm.field import FunctionField
from multiview import files as whole_files
from tests.fakes import FakeModel, draw_photo, use_fake_model
from trilift import cli
from trilift.cli import main

ROOT = Path(trilift.__file__).parents[1]
FAST = ["--resolution", "32"]


@pytest.fixture(autouse=True)
def model(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return use_fake_model(monkeypatch)


def not_an_image(path: Path) -> None:
    path.write_text("<html>404 not found</html>")


def truncated(path: Path) -> None:
    draw_photo(path, size=200)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def zero_bytes(path: Path) -> None:
    path.write_bytes(b"")


def one_pixel(path: Path) -> None:
    Image.new("RGB", (1, 1), "red").save(path)


def huge(path: Path) -> None:
    """A PNG that claims 30,000 x 30,000 pixels; its data are a few hundred kilobytes of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(30_001)) for _ in range(300)) + rows.flush()
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def transparent(path: Path) -> None:
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(path)


def nothing_left(path: Path) -> None:
    """A mask file that marks nothing."""
    Image.new("RGB", (64, 64), "red").save(path)
    Image.new("L", (64, 64), 0).save(path.with_name(path.stem + "_mask.png"))


def a_folder(path: Path) -> None:
    path.mkdir()


def missing(path: Path) -> None:
    pass


def wrong_mask(path: Path) -> None:
    draw_photo(path)
    Image.new("L", (20, 30), 255).save(path.with_name(path.stem + "_mask.png"))


BAD = {
    "not-an-image": (not_an_image, "not an image"),
    "truncated": (truncated, "cut short or damaged"),
    "zero-bytes": (zero_bytes, "is empty (0 bytes)"),
    "one-pixel": (one_pixel, "too small (1 x 1 px"),
    "huge": (huge, "too many pixels"),
    "transparent": (transparent, "transparent everywhere"),
    "nothing-left": (nothing_left, "nothing left after background removal"),
    "a-folder": (a_folder, "is a folder, not a photo"),
    "missing": (missing, "no such file"),
    "wrong-mask": (wrong_mask, "the mask is 20 x 30 px"),
}


def assert_only_good_ones(out: Path, names: list[str]) -> None:
    """Nothing but whole assets of ``names`` lies below ``out``, and no temporary file."""
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == names
    for name in names:
        record = json.loads((out / name / "asset.json").read_text())
        assert {f["name"]: f["bytes"] for f in record["files"]} == {
            p.name: p.stat().st_size for p in (out / name).iterdir() if p.name not in ("asset.json", "preview.webp")
        }
    assert not [p for p in out.rglob("*") if "aside" in p.name]


@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD)
def test_bad_photo_between_good_ones(make: Callable[[Path], None], words, tmp_path, capsys):
    draw_photo(tmp_path / "a.png")
    make(tmp_path / "bad.png")
    draw_photo(tmp_path / "z.png")
    assert main(["lift", "a.png", "bad.png", "z.png", "--json", *FAST]) == cli.FAILED
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    assert words in rows[1]["error"] and "bad" in rows[1]["error"] and rows[1]["error"] in captured.err
    assert captured.err.count("trilift: ") == 1 and "Traceback" not in captured.err
    assert "bug" not in rows[1]["error"]
    assert_only_good_ones(tmp_path / "out", ["a", "z"])


def test_all_bad_photos_in_one_folder_run(tmp_path, capsys):
    for name, (make, _) in BAD.items():
        if name not in ("missing", "a-folder"):  # a folder run finds neither
            (tmp_path / "in").mkdir(exist_ok=True)
            make(tmp_path / "in" / f"{name}.png")
    draw_photo(tmp_path / "in" / "a.png")
    draw_photo(tmp_path / "in" / "z.png")
    assert main(["batch", "in", "--quiet", *FAST]) == cli.FAILED
    errors = capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    failed = {Path(row["source"]).stem: row["error"] for row in rows if row["status"] == "failed"}
    assert sorted(failed) == sorted(set(BAD) - {"missing", "a-folder"})
    for name, error in failed.items():
        assert BAD[name][1] in error and error in errors
    assert_only_good_ones(tmp_path / "out", ["a", "z"])


def test_no_permission(tmp_path, capsys, monkeypatch):
    """Mocked, since root may read everything."""
    draw_photo(tmp_path / "locked.png")
    draw_photo(tmp_path / "z.png")
    plain = Path.read_bytes

    def read_bytes(self: Path) -> bytes:
        if self.name == "locked.png":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return plain(self)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert main(["lift", "locked.png", "z.png", *FAST]) == cli.FAILED
    assert "trilift: locked.png: no permission to read it" in capsys.readouterr().err
    assert_only_good_ones(tmp_path / "out", ["z"])


@pytest.mark.parametrize("left", range(9))
def test_disk_full(tmp_path, capsys, monkeypatch, left):
    """One rename fails, after ``left`` that worked: three files are made aside, three old ones go, three new ones come.

    Whichever it is, the first photo's earlier result stays as it was.
    """
    draw_photo(tmp_path / "a.png")
    draw_photo(tmp_path / "z.png")
    main(["lift", "a.png", "--quiet", *FAST])
    before = {p.name: p.read_bytes() for p in (tmp_path / "out" / "a").iterdir()}
    plain, count = os.replace, 0

    def replace(source, target):
        nonlocal count
        count += 1
        if count == left + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        plain(source, target)

    monkeypatch.setattr(whole_files.os, "replace", replace)
    assert main(["lift", "a.png", "z.png", "--elevation", "5", *FAST]) == cli.FAILED
    errors = capsys.readouterr().err
    assert "No space left on device" in errors and "a.png" in errors and "out/a: could not be written" in errors
    assert_only_good_ones(tmp_path / "out", ["a", "z"])
    assert {p.name: p.read_bytes() for p in (tmp_path / "out" / "a").iterdir()} == before


def test_output_folder_that_is_a_file(tmp_path, capsys):
    draw_photo(tmp_path / "a.png")
    (tmp_path / "out").write_text("in the way")
    assert main(["lift", "a.png", *FAST]) == cli.FAILED
    errors = capsys.readouterr().err
    assert "trilift: a.png: " in errors and "could not be written" in errors
    assert (tmp_path / "out").read_text() == "in the way"


def test_network_output_that_is_not_finite(tmp_path, capsys, monkeypatch):
    use_fake_model(monkeypatch, FakeModel(broken=True))
    draw_photo(tmp_path / "a.png")
    assert main(["lift", "a.png", *FAST]) == cli.FAILED
    errors = capsys.readouterr().err
    assert "trilift: a.png: " in errors and "finite" in errors and "bug" not in errors
    assert not (tmp_path / "out").exists()


def test_field_without_a_surface(tmp_path, capsys, monkeypatch):
    """Asked for a level above everything that the network gives."""
    draw_photo(tmp_path / "a.png")
    assert main(["lift", "a.png", "--threshold", "25", *FAST]) == cli.FAILED
    errors = capsys.readouterr().err
    assert "trilift: a.png: density_threshold=25" in errors and "above the highest density" in errors
    assert not (tmp_path / "out").exists()


def test_colours_that_are_not_finite(tmp_path, capsys, monkeypatch):
    draw_photo(tmp_path / "a.png")
    monkeypatch.setattr(FunctionField, "color", lambda self, points: torch.full((len(points), 3), float("nan")))
    assert main(["lift", "a.png", *FAST]) == cli.FAILED
    errors = capsys.readouterr().err
    assert "trilift: a.png: " in errors and "bug" not in errors
    assert not (tmp_path / "out").exists()


def test_a_bug_of_ours_is_told_as_one_and_stops_nobody(tmp_path, capsys, monkeypatch):
    draw_photo(tmp_path / "a.png")
    draw_photo(tmp_path / "z.png")
    plain = FakeModel.reconstruct

    def buggy(self, *args, **kwargs):
        if not self.calls:
            self.calls.append(args)
            raise RuntimeError("shapes (3, 4) and (5,)")
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(FakeModel, "reconstruct", buggy)
    assert main(["lift", "a.png", "z.png", *FAST]) == cli.FAILED
    assert "a.png: unexpected RuntimeError: shapes (3, 4) and (5,). This is a bug" in capsys.readouterr().err
    assert_only_good_ones(tmp_path / "out", ["z"])
    monkeypatch.setenv("TRILIFT_DEBUG", "1")
    monkeypatch.setattr(FakeModel, "reconstruct", lambda self, *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["lift", "a.png", *FAST])


def test_inputs_are_never_changed(tmp_path):
    photos = [draw_photo(tmp_path / "a.png"), draw_photo(tmp_path / "b.jpg")]
    Image.fromarray(np.full((96, 96), 255, np.uint8)).save(tmp_path / "b_mask.png")
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.iterdir()}
    assert main(["lift", *map(str, photos), *FAST]) == cli.OK
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before} == before


def test_bad_photos_as_a_process(tmp_path):
    """Once for real: the message is all there is on stderr, and stdout holds JSON only."""
    zero_bytes(tmp_path / "empty.png")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.fakes import FakeModel\nfrom pathlib import Path\nfrom trilift import registry\n"
        "from trilift.pipeline import ImageTo3D\nfrom trilift.cli import main\n"
        "registry.resolve = lambda name: (Path(name), None)\n"
        "ImageTo3D.from_pretrained = classmethod(lambda cls, *a, **k: cls(FakeModel()))\nsys.exit(main())"
    )
    command = [sys.executable, "-c", code, "lift", "empty.png", "--json", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("trilift: empty.png: is empty (0 bytes)") and done.stderr.count("\n") == 1
    assert json.loads(done.stdout)["status"] == "failed"
    assert os.listdir(tmp_path) == ["empty.png"]
