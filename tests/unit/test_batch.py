"""Names, resuming and the log of folder runs, with a stand-in for the pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multiview.errors import ImageError, OutputError, SettingsError
from trilift.batch import append_line, asset_folders, find_photos, lift_folder, lift_to_folder
from trilift.settings import LiftSettings

SETTINGS = LiftSettings()


class StubPipe:
    """Stands in for ImageTo3D: writes two small files; photos with "bad" in their name fail."""

    def __init__(self, weights: str = "w1") -> None:
        self.weights = weights
        self.lifted: list[str] = []

    def fingerprint(self, photo_sha256, mask_sha256, settings):
        return f"{photo_sha256} {mask_sha256} {settings} {self.weights}"

    def __call__(self, photo, settings, on_stage=None, on_step=None):
        from multiview.weights import file_sha256
        from trilift.photo import find_mask

        self.lifted.append(photo.name)
        if on_stage:
            on_stage("load")
        if "bad" in photo.name:
            raise ImageError("nothing left after background removal.")
        if "bug" in photo.name:
            raise ZeroDivisionError("float division")
        if "huge" in photo.name:
            raise MemoryError
        mask = find_mask(photo)
        fingerprint = self.fingerprint(file_sha256(photo), mask and file_sha256(mask), settings)
        record = {"fingerprint": fingerprint, "seconds": {"load": 0.5}, "warnings": ["<soft> edge"]}
        return SimpleNamespace(record=record, save=lambda folder, **options: _save(folder, record))


def _save(folder: Path, record: dict) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (200, 100)).save(folder / "input.png")
    (folder / "mesh.glb").write_bytes(b"glTF")
    files = [{"name": n, "bytes": (folder / n).stat().st_size} for n in ("input.png", "mesh.glb")]
    (folder / "asset.json").write_text(json.dumps({**record, "files": files}))
    return [folder / "mesh.glb", folder / "input.png", folder / "asset.json"]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())


@pytest.mark.parametrize(
    ("photos", "folders"),
    [
        pytest.param(["a/chair.png", "tea.jpg"], ["chair", "tea"], id="stem"),
        pytest.param(["a/b.c.jpg", "a/b.c.png"], ["b.c.jpg", "b.c.png"], id="shared-stem"),
        pytest.param(["a/x.png", "b/x.png"], ["x.png", "x.png-2"], id="shared-name"),
        pytest.param(["a.1.png", "a.2.png"], ["a.1", "a.2"], id="dots"),
        pytest.param(["Chair.png", "chair.jpg"], ["Chair.png", "chair.jpg"], id="case"),
        pytest.param(["x.png", "x.jpg", "x.png.gif"], ["x.png", "x.jpg", "x.png.gif"], id="name-is-a-stem"),
        pytest.param(["..png", "a.png"], ["photo", "a"], id="only-dots"),
        pytest.param(["a.png", "./a.png", "b.png"], ["a", "b"], id="same-file-twice"),
    ],
)
def test_asset_folders_by_hand(photos, folders):
    assert [str(place) for place in asset_folders([Path(p) for p in photos]).values()] == folders


@given(st.lists(st.tuples(st.sampled_from("ab"), st.text("aA.-2", min_size=1, max_size=5), st.sampled_from("pj"))))
def test_asset_folders_never_collide_nor_escape(parts):
    photos = [Path(folder) / f"{stem}.{suffix}" for folder, stem, suffix in parts]
    for base in (None, Path()):
        places = asset_folders(photos, base)
        keys = [place.as_posix().casefold() for place in places.values()]
        assert len(set(keys)) == len(keys) == len({p.resolve() for p in photos})
        assert all(place.name not in ("", ".", "..") and not place.is_absolute() for place in places.values())


def test_asset_folder_never_takes_the_place_of_a_folder_of_photos():
    photos = [Path("in/chair.png"), Path("in/chair/front.png")]
    assert [p.as_posix() for p in asset_folders(photos, Path("in")).values()] == ["chair.png", "chair/front"]


def test_find_photos_is_recursive_sorted_and_picky(tmp_path):
    wanted = ["B.PNG", "a.jpg", "sub/deep/c.WebP", "sub/d.jpeg"]
    touch(*(tmp_path / name for name in wanted))
    touch(tmp_path / "a_mask.png", tmp_path / ".hidden.png", tmp_path / ".git/e.png", tmp_path / "notes.txt")
    touch(tmp_path / "out/e/input.png", tmp_path / "old-run/f/input.png", tmp_path / "old-run/f/asset.json")
    (tmp_path / "folder.png").mkdir()
    found = [p.relative_to(tmp_path).as_posix() for p in find_photos(tmp_path, tmp_path / "out")]
    assert found == sorted(wanted)


def test_a_mask_without_a_photo_is_a_photo(tmp_path):
    touch(tmp_path / "gas_mask.jpg")
    assert [p.name for p in find_photos(tmp_path, tmp_path / "out")] == ["gas_mask.jpg"]


def test_find_photos_refuses_what_cannot_work(tmp_path):
    with pytest.raises(ImageError, match=r"no photos in it or below\. Looked for \.png"):
        find_photos(tmp_path, tmp_path / "out")
    with pytest.raises(ImageError, match="missing: expected a folder of photos, but it does not exist"):
        find_photos(tmp_path / "missing", tmp_path / "out")
    touch(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: expected a folder of photos, but it is a file"):
        find_photos(tmp_path / "a.png", tmp_path / "out")
    with pytest.raises(SettingsError, match="the output folder is the photo folder itself"):
        find_photos(tmp_path, tmp_path / "x" / "..")


def read_results(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def run(pipe: StubPipe, tmp_path: Path, settings: LiftSettings = SETTINGS) -> list[str]:
    return [r.status for r in lift_folder(pipe, tmp_path / "in", tmp_path / "out", settings)]


def test_one_bad_photo_never_stops_the_others(tmp_path):
    touch(*(tmp_path / "in" / name for name in ("a.png", "bad.png", "bug.png", "huge.png", "s/z.png")))
    assert run(StubPipe(), tmp_path) == ["done", "failed", "failed", "failed", "done"]
    rows = read_results(tmp_path / "out")
    assert [row["source"] for row in rows] == ["a.png", "bad.png", "bug.png", "huge.png", "s/z.png"]
    assert rows[0]["folder"] == str(tmp_path / "out" / "a") and rows[0]["error"] is None
    assert rows[0]["files"] == ["asset.json", "input.png", "mesh.glb"]
    assert rows[1]["error"].endswith("in/bad.png: nothing left after background removal.")
    assert "bug.png: unexpected ZeroDivisionError: float division" in rows[2]["error"]
    assert "not enough memory" in rows[3]["error"] and "--resolution (now 256)" in rows[3]["error"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a", "report.html", "results.jsonl", "s"]


def test_each_result_is_on_the_disk_before_the_next_photo(tmp_path):
    touch(tmp_path / "in/a.png", tmp_path / "in/b.png")
    results = lift_folder(StubPipe(), tmp_path / "in", tmp_path / "out", SETTINGS)
    next(results)
    assert len(read_results(tmp_path / "out")) == 1
    results.close()
    assert "1 of 2 photos finished" in (tmp_path / "out" / "report.html").read_text()


def test_a_second_run_skips_what_is_finished(tmp_path):
    touch(tmp_path / "in/a.png", tmp_path / "in/bad.png")
    run(StubPipe(), tmp_path)
    again = StubPipe()
    assert run(again, tmp_path) == ["skipped", "failed"]
    assert again.lifted == ["bad.png"]
    assert [row["status"] for row in read_results(tmp_path / "out")] == ["done", "failed", "skipped", "failed"]


@pytest.mark.parametrize("change", ["photo", "mask", "settings", "weights", "file-cut", "file-gone", "record-damaged"])
def test_whatever_decides_the_result_makes_it_new(tmp_path, change):
    touch(tmp_path / "in/a.png")
    run(StubPipe(), tmp_path)
    asset = tmp_path / "out" / "a"
    settings, pipe = SETTINGS, StubPipe("w2" if change == "weights" else "w1")
    if change == "photo":
        (tmp_path / "in/a.png").write_bytes(b"other")
    elif change == "mask":
        touch(tmp_path / "in/a_mask.png")
    elif change == "settings":
        settings = SETTINGS.replaced(resolution=64)
    elif change == "file-cut":
        (asset / "mesh.glb").write_bytes(b"gl")
    elif change == "file-gone":
        (asset / "mesh.glb").unlink()
    elif change == "record-damaged":
        (asset / "asset.json").write_text('{"fingerprint":')
    assert run(pipe, tmp_path, settings) == ["done"]
    assert run(pipe, tmp_path, settings) == ["skipped"]


def test_a_result_never_replaces_its_own_photo(tmp_path):
    photo = tmp_path / "input" / "input.png"
    touch(photo)
    result = lift_to_folder(StubPipe(), photo, tmp_path / "input", SETTINGS)
    assert result.status == "failed" and "would replace the photo itself" in (result.error or "")
    assert photo.read_bytes() == b"input.png"


def test_a_torn_last_line_is_closed_before_the_next(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    append_line(path, "one")
    with open(path, "a") as file:
        file.write('{"torn')
    append_line(path, "two")
    assert path.read_text() == 'one\n{"torn\ntwo\n'


def test_a_log_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"log\.jsonl: could not be written"):
        append_line(tmp_path / "file" / "log.jsonl", "one")
