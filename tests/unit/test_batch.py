"""Names, resuming and the log of folder runs, with a stand-in for the pipeline."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multiview.errors import ImageError, SettingsError
from trilift.batch import LiftResult, asset_folders, lift_to_folder
from trilift.runner import RunOptions, lift_folder
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
        return SimpleNamespace(record=record, save=lambda folder, *_, **__: _save(folder, record))


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


def read_results(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def run(
    pipe: object, tmp_path: Path, settings: LiftSettings = SETTINGS, options: RunOptions | None = None
) -> list[str]:
    return [r.status for r in lift_folder(pipe, tmp_path / "in", tmp_path / "out", settings, options)]


def test_one_bad_photo_never_stops_the_others(tmp_path):
    touch(*(tmp_path / "in" / name for name in ("a.png", "bad.png", "bug.png", "huge.png", "s/z.png")))
    assert run(StubPipe(), tmp_path) == ["done", "failed", "failed", "failed", "done"]
    rows = sorted(read_results(tmp_path / "out"), key=lambda row: row["source"])
    assert [row["source"] for row in rows] == ["a.png", "bad.png", "bug.png", "huge.png", "s/z.png"]
    assert [row["cause"] for row in rows] == [None, "ImageError", "bug", "memory", None]
    assert rows[0]["folder"] == str(tmp_path / "out" / "a") and rows[0]["error"] is None
    assert rows[0]["files"] == ["asset.json", "input.png", "mesh.glb"]
    assert rows[1]["error"].endswith("in/bad.png: nothing left after background removal.")
    assert "bug.png: unexpected ZeroDivisionError: float division" in rows[2]["error"]
    assert "not enough memory" in rows[3]["error"] and "--resolution (now 64)" in rows[3]["error"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a", "report.html", "results.jsonl", "s"]


def test_each_result_is_on_the_disk_before_the_caller_has_it(tmp_path):
    touch(*(tmp_path / "in" / f"{letter}.png" for letter in "abcdefghijklmnop"))
    pipe = StubPipe()
    results = lift_folder(pipe, tmp_path / "in", tmp_path / "out", SETTINGS, count=lambda: 16)
    seen = []
    for result in results:
        seen.append(result.source)
        assert set(seen) <= {row["source"] for row in read_results(tmp_path / "out")}
    assert seen == sorted(seen) and len(seen) == 16


class BrokenLoopError(Exception):
    """What a caller may raise."""


@pytest.mark.parametrize("how", ["close", "raise"])
def test_leaving_the_loop_leaves_nothing_half_written(tmp_path, how):
    touch(*(tmp_path / "in" / f"{number:03d}.png" for number in range(60)))
    pipe = StubPipe()
    results = lift_folder(pipe, tmp_path / "in", tmp_path / "out", SETTINGS)
    if how == "close":
        next(results)
        results.close()
    else:
        with pytest.raises(BrokenLoopError):
            for _ in results:
                raise BrokenLoopError
        del results
    rows = read_results(tmp_path / "out")
    assert 1 <= len(rows) == len(pipe.lifted) < 20  # those in hand, and no others
    whole = sorted(path.parent.name for path in (tmp_path / "out").glob("*/asset.json"))
    assert whole == sorted(Path(row["source"]).stem for row in rows)
    assert not [path for path in (tmp_path / "out").rglob(".*")]  # neither a lock nor anything aside
    assert run(StubPipe(), tmp_path).count("done") == 60 - len(rows)


def test_a_second_run_skips_what_is_finished_and_knows_what_failed(tmp_path):
    touch(tmp_path / "in/a.png", tmp_path / "in/bad.png")
    run(StubPipe(), tmp_path)
    again = StubPipe()
    assert run(again, tmp_path) == ["skipped", "failed"] and again.lifted == []
    assert sorted(row["status"] for row in read_results(tmp_path / "out")) == ["done", "failed"]
    assert run(again, tmp_path, options=RunOptions(retry_failed=True)) == ["skipped", "failed"]
    assert again.lifted == ["bad.png"] and len(read_results(tmp_path / "out")) == 3


def test_what_failed_is_tried_again_when_it_changed(tmp_path):
    touch(tmp_path / "in/bad.png")
    run(StubPipe(), tmp_path)
    for change in ("photo", "settings", "weights"):
        if change == "photo":
            (tmp_path / "in/bad.png").write_bytes(b"another bad one")
        pipe = StubPipe("w2" if change == "weights" else "w1")
        settings = SETTINGS.replaced(seed=4) if change == "settings" else SETTINGS
        assert run(pipe, tmp_path, settings) == ["failed"] and pipe.lifted == ["bad.png"], change


def test_the_network_is_not_loaded_when_nothing_is_left_to_do(tmp_path):
    """Of a stand-in the fingerprint must be asked; the real rule is in test_batch_recipe.py."""
    touch(tmp_path / "in/a.png")
    loaded = []

    def loader() -> StubPipe:
        loaded.append(1)
        return StubPipe()

    folder = lift_folder(loader, tmp_path / "in", tmp_path / "out", SETTINGS)
    assert loaded == []
    assert [result.status for result in folder] == ["done"] and loaded == [1]


def test_an_asset_without_its_row_gets_one(tmp_path):
    """As after a kill between the asset and the row: it is not lifted again, but only if all its bytes are right."""
    touch(tmp_path / "in/a.png", tmp_path / "in/b.png")
    run(StubPipe(), tmp_path)
    (tmp_path / "out/results.jsonl").unlink()
    mesh = tmp_path / "out/b/mesh.glb"
    record = json.loads((tmp_path / "out/b/asset.json").read_text())
    record["files"][1]["sha256"] = "0" * 64  # of the right size, but other bytes: what a power cut leaves
    (tmp_path / "out/b/asset.json").write_text(json.dumps(record))
    again = StubPipe()
    assert run(again, tmp_path) == ["skipped", "done"] and again.lifted == ["b.png"] and mesh.is_file()
    assert sorted(row["status"] for row in read_results(tmp_path / "out")) == ["done", "skipped"]
    assert run(again, tmp_path) == ["skipped", "skipped"] and len(read_results(tmp_path / "out")) == 2


def test_an_unchanged_photo_is_known_without_reading_it(tmp_path, monkeypatch):
    from trilift import batch

    touch(tmp_path / "in/a.png")
    os.utime(tmp_path / "in/a.png", (1e9, 1e9))  # long ago: what was changed just now is always read
    run(StubPipe(), tmp_path)
    reads = []
    monkeypatch.setattr(batch, "_sha256", lambda path: reads.append(path) or "0")
    assert run(StubPipe(), tmp_path) == ["skipped"] and reads == []
    os.utime(tmp_path / "in/a.png", (1e9, 1e9 + 1))
    assert run(StubPipe(), tmp_path) == ["done"] and reads != []


class SmallMemory(StubPipe):
    """Has memory for lifts at 64 samples per axis; every asset states the resolution that it was lifted at."""

    def fingerprint(self, photo_sha256, mask_sha256, settings):
        return f"{photo_sha256} {settings.resolution}"

    def __call__(self, photo, settings, on_stage=None, on_step=None):
        if settings.resolution > 64:
            self.lifted.append(f"{settings.resolution}")
            raise MemoryError
        asset = super().__call__(photo, settings, on_stage, on_step)
        asset.record["settings"] = {"resolution": settings.resolution}
        return asset


def test_out_of_memory_is_retried_smaller_and_recorded(tmp_path):
    touch(tmp_path / "in/a.png")
    pipe = SmallMemory()
    (result,) = lift_folder(pipe, tmp_path / "in", tmp_path / "out", SETTINGS)
    assert pipe.lifted == ["256", "128", "a.png"]
    assert (result.status, result.lowered) == ("done", {"resolution": 64})
    assert "Memory did not suffice for --resolution 256; lifted at 64." in result.warnings
    (row,) = read_results(tmp_path / "out")
    assert row["lowered"] == {"resolution": 64} and row["fingerprint"].endswith(" 256")
    again = SmallMemory()
    (result,) = lift_folder(again, tmp_path / "in", tmp_path / "out", SETTINGS)
    assert (result.status, again.lifted) == ("skipped", [])
    assert [r.status for r in lift_folder(again, tmp_path / "in", tmp_path / "out", SETTINGS.replaced(seed=1))] != []
    other = SETTINGS.replaced(resolution=128)  # nobody asked for that before
    assert [r.status for r in lift_folder(again, tmp_path / "in", tmp_path / "out", other)] == ["done"]


def test_a_row_gives_its_result_back(tmp_path):
    result = LiftResult(
        "a.png", "done", 1.5, tmp_path / "a", ("mesh.glb",), (("load", 0.5),), warnings=("soft",), place="a",
        sha256="s", fingerprint="f", mark="m", run="r", checks={"iou": 0.5}, attempt=2, lowered={"resolution": 64},
    )  # fmt: skip
    assert LiftResult.from_json(json.loads(json.dumps(result.as_json()))) == result
    remote = LiftResult("a.png", "done", 1.0, url="s3://b/out/a")
    assert remote.as_json()["folder"] == "s3://b/out/a"
    assert LiftResult.from_json(remote.as_json()) == remote
    assert LiftResult.from_json({"source": "a", "status": "failed", "error": "no"}).error == "no"  # an older row


def test_one_process_does_not_work_twice_on_one_folder(tmp_path):
    touch(tmp_path / "in/a.png", tmp_path / "in/b.png")
    first = lift_folder(StubPipe(), tmp_path / "in", tmp_path / "out", SETTINGS)
    next(first)
    with pytest.raises(SettingsError, match="another folder run of this process writes there"):
        next(lift_folder(StubPipe(), tmp_path / "in", tmp_path / "out", SETTINGS))
    first.close()
    assert run(StubPipe(), tmp_path) == ["skipped", "skipped"]


def test_options_are_checked(tmp_path):
    touch(tmp_path / "in/a.png")
    with pytest.raises(SettingsError, match=r"workers=-1: expected a whole number from 0"):
        RunOptions(workers=-1)
    with pytest.raises(SettingsError, match="workers=2: they load the model themselves, and nobody knows from where"):
        lift_folder(StubPipe(), tmp_path / "in", tmp_path / "out", SETTINGS, RunOptions(workers=2))
    with pytest.raises(ImageError, match=r"no photo in it matches glob='\*\.jpg'"):
        lift_folder(StubPipe(), tmp_path / "in", tmp_path / "out", SETTINGS, RunOptions(glob="*.jpg"))


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


@pytest.mark.parametrize(
    ("wanted", "others", "tried"),
    [(128, True, [128, 128]), (256, True, [256, 256, 128]), (128, False, [128, 64])],
    ids=["suffices-then", "made-smaller-then", "there-were-none"],
)
def test_what_fails_among_others_is_tried_once_more_when_they_have_gone(tmp_path, wanted, others, tried):
    """Memory suffices for 64 samples, and for 128 when others have gone."""
    from trilift.batch import lift_item
    from trilift.sources import PhotoItem

    touch(tmp_path / "a.png")
    pipe, asked, most = StubPipe(), [], [64]

    def lift(photo, settings, *rest, **options):
        asked.append(settings.resolution)
        if settings.resolution > most[-1]:
            raise MemoryError("no room")
        return pipe(photo, settings, *rest, **options)

    def make_room():
        most.append(128 if others else 64)
        return others

    item, settings = PhotoItem("a.png", "a", path=str(tmp_path / "a.png")), SETTINGS.replaced(resolution=wanted)
    made = lift_item(
        _Calls(pipe, lift), item, tmp_path / "out", settings, tmp_path / "s", make_room=make_room
    )  # fmt: skip
    assert made.status == "done" and asked == tried and len(most) == 2
    assert made.lowered == ({} if tried[-1] == wanted else {"resolution": tried[-1]})


class _Calls:
    """A pipeline that is called in another way."""

    def __init__(self, pipe, call):
        self._pipe, self._call = pipe, call

    def __call__(self, *given, **options):
        return self._call(*given, **options)

    def __getattr__(self, name):
        return getattr(self._pipe, name)


def test_memory_that_runs_out_while_a_photo_is_read_costs_that_photo_alone(tmp_path, monkeypatch):
    from trilift import batch
    from trilift.sources import PhotoItem

    def no_room(path):
        raise MemoryError("no room")

    touch(tmp_path / "a.png")
    monkeypatch.setattr(batch, "_sha256", no_room)
    item = PhotoItem("a.png", "a", path=str(tmp_path / "a.png"))
    result = batch.lift_item(StubPipe(), item, tmp_path / "out", SETTINGS, tmp_path / "s")
    assert (result.status, result.cause) == ("failed", "memory")
    assert "a.png: not enough memory to read it" in str(result.error)


def test_a_lift_may_begin_at_half_the_resolution(tmp_path):
    """What is tried a third time, after the system had ended its process twice."""
    from trilift.batch import lift_item
    from trilift.sources import PhotoItem

    touch(tmp_path / "a.png")
    pipe, item = SmallMemory(), PhotoItem("a.png", "a", path=str(tmp_path / "a.png"))
    settings = SETTINGS.replaced(resolution=128)
    result = lift_item(pipe, item, tmp_path / "out" / "a", settings, tmp_path / "s", halvings=1)
    assert (result.status, result.lowered, pipe.lifted) == ("done", {"resolution": 64}, ["a.png"])
    tiny = lift_item(pipe, item, tmp_path / "out" / "a", SETTINGS.replaced(resolution=64), tmp_path / "s", halvings=1)
    assert tiny.status == "done" and tiny.lowered == {}  # there is nothing smaller worth having
