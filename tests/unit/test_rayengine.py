"""Folder runs on Ray: what a worker does with a photo, what the book knows, and a cluster that loses a worker."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from multiview.errors import ImageError, SettingsError, TriliftError
from tests.fakes import draw_photo
from tests.rayfakes import SlowLoader
from trilift.batch import LiftResult
from trilift.journal import Journal
from trilift.rayengine import MAX_TRIES, Book, _Lifter, run_ray
from trilift.settings import LiftSettings
from trilift.sources import PhotoItem, photo_items

SETTINGS = LiftSettings()


class NearBook:
    """A `Book` that answers at once, as an actor's handle would."""

    def __init__(self, book: Book) -> None:
        self.begin = SimpleNamespace(remote=book.begin)
        self.told = SimpleNamespace(remote=book.told)


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``ray.get`` give back what it is given; nothing else is asked of Ray here."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda value: value))


def lifter(tmp_path: Path, settings: LiftSettings = SETTINGS, out: str | None = None, retry: bool = False) -> _Lifter:
    """A worker whose book reads ``tmp_path/out``."""
    book = Book(str(tmp_path / "out"), retry)
    return _Lifter(
        out or str(tmp_path / "out"), settings, SlowLoader(str(tmp_path / "log"), seconds=0.0), NearBook(book)
    )


def item(tmp_path: Path, name: str = "a.png") -> PhotoItem:
    path = tmp_path / "in" / name
    if not path.exists():
        draw_photo(path, size=32)
    return PhotoItem(name, Path(name).stem, path=str(path))


def lifts(tmp_path: Path) -> Counter[str]:
    """How often each photo was begun, by the stand-in's own log."""
    log = tmp_path / "log"
    return Counter(line.split()[1] for line in log.read_text().splitlines() if not line.endswith("ok"))


def written(tmp_path: Path, row: dict) -> None:
    Journal(tmp_path / "out").append(LiftResult.from_json(row))


@pytest.mark.usefixtures("near")
def test_a_worker_lifts_then_skips_what_is_there(tmp_path):
    first = lifter(tmp_path)._row(item(tmp_path))
    assert (first["status"], first["attempt"], first["known"], first["place"]) == ("done", 1, False, "a")
    assert first["folder"] == str(tmp_path / "out" / "a")
    assert (tmp_path / "out" / "a" / "preview.webp").is_file()
    # Its row was lost with its worker: the asset says that it is done.
    again = lifter(tmp_path)._row(item(tmp_path))
    assert (again["status"], again["known"], again["files"]) == ("skipped", False, ["asset.json", "input.png"])
    written(tmp_path, again)
    assert lifter(tmp_path)._row(item(tmp_path))["known"] is True
    assert lifts(tmp_path) == {"a.png": 1}


@pytest.mark.usefixtures("near")
@pytest.mark.parametrize("change", ["photo", "settings", "cut", "damaged", "record"])
def test_a_worker_lifts_again_what_is_not_the_same(tmp_path, change):
    lifter(tmp_path)._row(item(tmp_path))
    asset, settings = tmp_path / "out" / "a", SETTINGS
    if change == "photo":
        draw_photo(tmp_path / "in" / "a.png", (1, 2, 3), size=32)
    elif change == "settings":
        settings = SETTINGS.replaced(resolution=128)
    elif change == "cut":
        (asset / "input.png").write_bytes(b"")
    elif change == "damaged":  # the same size, other bytes, and no row that says that they were seen on the disk
        (asset / "input.png").write_bytes(bytes((asset / "input.png").stat().st_size))
    else:
        (asset / "asset.json").write_text("{")
    assert lifter(tmp_path, settings)._row(item(tmp_path))["status"] == "done"
    assert lifts(tmp_path) == {"a.png": 2}


@pytest.mark.usefixtures("near")
def test_an_asset_of_lower_resolution_counts_only_where_the_journal_knows_why(tmp_path):
    low = lifter(tmp_path, SETTINGS.replaced(resolution=128))._row(item(tmp_path))
    wanted = low["fingerprint"].rpartition(" ")[0] + " 256"
    written(tmp_path, {**low, "fingerprint": wanted, "lowered": {"resolution": 128}})
    assert lifter(tmp_path)._row(item(tmp_path))["status"] == "skipped"
    (tmp_path / "out" / "results.jsonl").unlink()
    assert lifter(tmp_path)._row(item(tmp_path))["status"] == "done"


@pytest.mark.usefixtures("near")
def test_a_failure_stands_until_something_changes_or_it_is_asked_for(tmp_path):
    row = lifter(tmp_path)._row(item(tmp_path, "bad.png"))
    assert row["status"] == "failed" and "bad.png: is a bad picture" in row["error"] and not row["known"]
    written(tmp_path, row)
    again = lifter(tmp_path)._row(item(tmp_path, "bad.png"))
    assert (again["status"], again["error"], again["known"]) == ("failed", row["error"], True)
    assert lifts(tmp_path) == {"bad.png": 1}
    assert lifter(tmp_path, retry=True)._row(item(tmp_path, "bad.png"))["known"] is False
    assert lifts(tmp_path) == {"bad.png": 2}


@pytest.mark.usefixtures("near")
def test_a_photo_that_cannot_be_read_is_a_row(tmp_path):
    row = lifter(tmp_path)._row(PhotoItem("x.png", "x", problem="x.png: is a folder. Give a file."))
    assert row["status"] == "failed" and row["error"] == "x.png: is a folder. Give a file."


@pytest.mark.usefixtures("near")
def test_a_photo_that_ends_its_workers_is_given_up(tmp_path):
    worker = lifter(tmp_path)
    for _ in range(MAX_TRIES):  # begun, and nobody came back
        worker._book.begin.remote("deadly.png", None)
    row = worker._row(item(tmp_path, "deadly.png"))
    assert (row["status"], row["cause"], row["attempt"]) == ("failed", "crash", MAX_TRIES + 1)
    assert f"died {MAX_TRIES} times" in row["error"] and "--resolution" in row["error"]
    assert not (tmp_path / "log").exists()  # it was not tried a fourth time


@pytest.mark.usefixtures("near")
def test_results_in_object_storage_are_uploaded_and_found_again(tmp_path):
    system = pytest.importorskip("fsspec").filesystem("memory")
    row = lifter(tmp_path, out="memory://trilift-ray/out")._row(item(tmp_path))
    assert (row["status"], row["folder"]) == ("done", "memory://trilift-ray/out/a")
    there = sorted(name.rpartition("/")[2] for name in system.ls("/trilift-ray/out/a", detail=False))
    assert there == ["asset.json", "input.png", "preview.webp"]
    again = lifter(tmp_path, out="memory://trilift-ray/out")._row(item(tmp_path))
    assert (again["status"], again["folder"]) == ("skipped", "memory://trilift-ray/out/a")
    assert lifts(tmp_path) == {"a.png": 1}
    system.rm("/trilift-ray", recursive=True)


def test_the_book_counts_tries_and_forgets_what_is_done(tmp_path):
    book = Book(str(tmp_path), False)
    assert book.begin("a", None) == (1, False)
    assert book.begin("a", None) == (2, False)  # its worker died
    assert book.begin("b", "a") == (1, False)
    assert book.begin("a", "b") == (1, False)  # a block that is gone through again
    book.stop()
    assert book.begin("c", "a") == (0, False)


@pytest.mark.usefixtures("near")
def test_stopped_workers_begin_nothing(tmp_path):
    worker = lifter(tmp_path)
    book = Book(str(tmp_path), False)
    book.stop()
    worker._book = NearBook(book)
    assert worker._row(item(tmp_path)) == {"source": "a.png", "status": "stopped"}


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(SettingsError, match=r"needs the ray extra .*pip install 'trilift\[ray\]', or --engine local"):
        next(run_ray([], tmp_path, SETTINGS, SlowLoader("log")))


def test_a_number_of_actors_is_positive(tmp_path):
    with pytest.raises(SettingsError, match="actors=0: expected at least 1"):
        next(run_ray([], tmp_path, SETTINGS, SlowLoader("log"), actors=0))


def test_without_photos_nothing_is_started(tmp_path):
    pytest.importorskip("ray.data", reason="the ray extra is not installed")
    with pytest.raises(ImageError, match="there is no photo to lift"):
        next(run_ray([], tmp_path, SETTINGS, SlowLoader("log")))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray with two processors and little memory on this machine, ended afterwards."""
    pytest.importorskip("ray.data", reason="the ray extra is not installed")
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # at Ray's 15, a busy machine lets them wait for minutes
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        scratch = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets want short names
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, _temp_dir=scratch,
            log_to_driver=False, logging_level="ERROR",
        )  # fmt: skip
        yield
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_lost_worker_costs_what_was_in_hand(tmp_path):
    """40 photos, 4 bad and one that ends its process; a worker is killed by ``kill -9`` in the middle. Then again."""
    names = [f"p{i:02d}.png" for i in range(40)]
    for i in (3, 13, 23, 33):
        names[i] = f"bad{i}.png"
    names[17] = "deadly17.png"
    for i, name in enumerate(names):
        draw_photo(tmp_path / "in" / name, (5 * i, 90, 60), size=32)
    loader, killed = SlowLoader(str(tmp_path / "log"), seconds=0.1), []

    def kill_one() -> None:
        log = tmp_path / "log"
        while not log.exists() or log.read_text().count(" ok") < 8:
            time.sleep(0.02)
        pid, name, *_ = log.read_text().splitlines()[-1].split()
        os.kill(int(pid), signal.SIGKILL)
        killed.append(name)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    out = tmp_path / "out"
    results = list(run_ray(photo_items(tmp_path / "in", out), out, SETTINGS, loader, photos=tmp_path / "in"))
    killer.join(10)
    assert len(killed) == 1

    statuses = {result.source: result.status for result in results}
    assert len(results) == 40 and sorted(statuses) == sorted(names)
    failed = {name for name, status in statuses.items() if status == "failed"}
    assert failed == {name for name in names if not name.startswith("p")}
    crash = next(result for result in results if result.source == "deadly17.png")
    assert crash.cause == "crash" and "died 3 times" in str(crash.error)
    begun = lifts(tmp_path)
    assert begun.pop("deadly17.png") == 3
    assert sum(begun.values()) - len(begun) <= 2  # what the two workers had in hand
    for name in names:
        if name.startswith("p"):
            record = json.loads((out / Path(name).stem / "asset.json").read_text())
            assert (out / Path(name).stem / "input.png").stat().st_size == record["files"][0]["bytes"]
    assert Counter(row["source"] for row in Journal(out).read()) == dict.fromkeys(names, 1)
    assert "35 done" in (page := (out / "report.html").read_text()) or "skipped" in page

    again = list(run_ray(photo_items(tmp_path / "in", out), out, SETTINGS, loader))
    assert Counter(result.status for result in again) == {"skipped": 35, "failed": 5}
    assert sum(result.earlier for result in again) == 5
    assert len(list(Journal(out).read())) == 40
    assert not [path for path in out.rglob(".aside-*")]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_stop_finishes_what_is_in_hand(tmp_path):
    for i in range(60):
        draw_photo(tmp_path / "in" / f"p{i:02d}.png", (4 * i, 90, 60), size=32)
    stop, results, out = threading.Event(), [], tmp_path / "out"
    loader = SlowLoader(str(tmp_path / "log"), seconds=0.3)
    for result in run_ray(photo_items(tmp_path / "in", out), out, SETTINGS, loader, stop=stop):
        results.append(result)
        stop.set()
    assert 1 <= len(results) < 40 and {result.status for result in results} == {"done"}
    assert len(results) == sum(lifts(tmp_path).values()) == len(list(Journal(out).read()))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_an_error_in_the_callers_loop_leaves_nothing_half_written(tmp_path):
    for i in range(60):
        draw_photo(tmp_path / "in" / f"p{i:02d}.png", (4 * i, 90, 60), size=32)
    out = tmp_path / "out"
    results = run_ray(photo_items(tmp_path / "in", out), out, SETTINGS, SlowLoader(str(tmp_path / "log"), seconds=0.3))
    next(results)
    results.close()
    rows = list(Journal(out).read())
    assert 1 <= len(rows) < 40 and len(rows) == sum(lifts(tmp_path).values())
    assert len(list(out.glob("*/asset.json"))) == len(rows) and not list(out.rglob(".aside-*"))
    assert f"{len(rows)} done" in (out / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_model_that_cannot_be_loaded_is_an_error_of_ours(tmp_path):
    draw_photo(tmp_path / "in" / "a.png", size=32)
    with pytest.raises(TriliftError, match=r"A worker could not load the model: model\.safetensors: there is no such"):
        list(run_ray(photo_items(tmp_path / "in", tmp_path / "out"), tmp_path / "out", SETTINGS,
                     SlowLoader(str(tmp_path / "log"), broken=True)))  # fmt: skip
