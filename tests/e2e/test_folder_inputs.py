"""Folder runs from the outside: lists, shards and object storage in, object storage out, and what the command says."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.standin import ROOT, StandIn, make_photos
from tests.fakes import draw_photo, use_fake_model
from trilift import cli
from trilift.batch import LiftResult
from trilift.batchcommand import Tally
from trilift.cli import main
from trilift.journal import Journal
from trilift.progress import Narrator
from trilift.runner import RunOptions, lift_folder
from trilift.settings import LiftSettings

FAST = ["--resolution", "32"]


@pytest.fixture
def model(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return use_fake_model(monkeypatch)


@pytest.fixture
def memory(monkeypatch, tmp_path):
    """The in-memory storage of fsspec, empty, and a cache for what is on its way there."""
    import fsspec

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def rows(out: Path) -> dict[str, dict]:
    return {row["source"]: row for row in Journal(out).read()}


def test_shards_through_the_command_line(model, tmp_path, capsys):
    draw_photo(tmp_path / "cat.png")
    with tarfile.open(tmp_path / "x-0.tar", "w") as archive:
        archive.add(tmp_path / "cat.png", "a/cat.png")
        archive.addfile(tarfile.TarInfo("../evil.png"))
    assert main(["batch", "x-{0..1}.tar", *FAST]) == cli.FAILED
    told = capsys.readouterr().err
    assert "x-0.tar/../evil.png: the name leads out of the archive" in told and "x-1.tar: the archive" in told
    assert "1 done, 0 skipped, 2 failed" in told
    record = json.loads((tmp_path / "out/x-0/a/cat/asset.json").read_text())
    assert record["photo"]["name"] == "x-0.tar/a/cat.png"  # not that of the copy
    with tarfile.open(tmp_path / "x-1.tar", "w") as archive:
        archive.add(tmp_path / "cat.png", "cat.png")
    assert main(["batch", "x-{0..1}.tar", *FAST]) == cli.FAILED
    assert "1 done, 1 skipped, 1 failed (1 of them in earlier runs; --retry-failed tries" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if "evil" in path.name]


def test_a_list_with_glob_and_limit(model, tmp_path, capsys):
    for name in ("b.png", "a.jpg", "c.png", "d.png"):
        draw_photo(tmp_path / name)
    (tmp_path / "list.txt").write_text("d.png\na.jpg\nb.png\nc.png\n")
    assert main(["batch", "list.txt", "--glob", "*.png", "--limit", "2", "--json", *FAST]) == cli.OK
    assert [json.loads(line)["source"] for line in capsys.readouterr().out.splitlines()] == ["d.png", "b.png"]
    assert main(["batch", "list.txt", "--limit", "0", *FAST]) == cli.USAGE
    assert main(["batch", "list.txt", "--ray-address", "auto", *FAST]) == cli.USAGE


def test_retry_failed(model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_text("no picture")
    for options, tried in (([], 1), ([], 1), (["--retry-failed"], 2)):
        assert main(["batch", "in", *options, *FAST]) == cli.FAILED
        assert "in/a.png: is not an image" in capsys.readouterr().err
        assert len(list(Journal(tmp_path / "out").read())) == tried


def test_object_storage_in_and_out(memory, tmp_path):
    good, bad = make_photos(tmp_path / "in", 6, bad=2)
    for name in (*good, *bad):
        memory.pipe(f"/photos/{name}", (tmp_path / "in" / name).read_bytes())
    log = tmp_path / "log"
    run = partial(lift_folder, partial(StandIn, str(log), 1), "memory://photos", "memory://results/r", LiftSettings())
    results = list(run())
    assert [r.status for r in results].count("done") == 6 and len(results) == 8
    assert results[0].url == "memory://results/r/set0/0000" and results[0].folder is None
    record = json.loads(memory.cat_file("/results/r/set0/0000/asset.json"))
    assert record["photo"]["name"] == "set0/0000.png"
    sizes = {f["name"]: f["bytes"] for f in record["files"]}
    assert {name: memory.info(f"/results/r/set0/0000/{name}")["size"] for name in sizes} == sizes
    lines = memory.cat_file("/results/r/results.jsonl").decode().splitlines()
    assert len(lines) == 8 and memory.exists("/results/r/report.html")
    failed = [json.loads(line) for line in lines if '"failed"' in line]
    assert all("/tmp" not in row["error"] and row["source"] in row["error"] for row in failed)
    assert not list((tmp_path / "cache").rglob("mesh.glb"))  # what is uploaded does not stay
    begun = log.read_text().count("begin")
    assert sorted(r.status for r in run()) == ["failed"] * 2 + ["skipped"] * 6
    import shutil

    shutil.rmtree(tmp_path / "cache")  # as on another machine
    assert sorted(r.status for r in run()) == ["failed"] * 2 + ["skipped"] * 6
    assert log.read_text().count("begin") == begun
    memory.rm_file("/results/r/set0/0000/mesh.glb")
    assert sorted(r.status for r in run()) == ["done"] + ["failed"] * 2 + ["skipped"] * 5


def test_results_come_as_they_are_made_by_workers_too(tmp_path):
    """The caller has results while later photos have not been begun, and closing ends the workers."""
    make_photos(tmp_path / "in", 40, bad=0)
    log = tmp_path / "log"
    results = lift_folder(
        partial(StandIn, str(log), 5), tmp_path / "in", tmp_path / "out", LiftSettings(), RunOptions(workers=2)
    )
    first = [next(results).source for _ in range(3)]
    assert first == ["set0/0000.png", "set0/0005.png", "set0/0010.png"]
    assert log.read_text().count("begin") < 30
    results.close()
    lines = log.read_text().splitlines()
    assert sum("begin" in line for line in lines) == sum("end" in line for line in lines) == len(rows(tmp_path / "out"))
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    alive = children.read_text().split() if children.exists() else []
    assert not [pid for pid in alive if b"trilift.workers" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_worker_does_not_outlive_its_run(tmp_path):
    make_photos(tmp_path / "in", 8, bad=0)
    command = [sys.executable, "-m", "benchmarks.standin", "in", "out", "log", "--workers", "1", "--stage-ms", "9000"]
    running = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    )
    from benchmarks.standin import wait_for_calls

    wait_for_calls(tmp_path / "log", 1, running)  # type: ignore[arg-type]
    (worker,) = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split() or ["0"]
    running.send_signal(signal.SIGKILL)
    running.wait()
    import time

    end = time.monotonic() + 8  # its photo would take 36 seconds
    while Path(f"/proc/{worker}/cmdline").exists() and time.monotonic() < end:
        if Path(f"/proc/{worker}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    assert time.monotonic() < end and "end" not in (tmp_path / "log").read_text()


# What is told


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_tells_rate_time_left_and_failures(tmp_path):
    now = [100.0]
    stream = Terminal()
    counter = SimpleNamespace(total=None)
    tally = Tally(Narrator(stream), counter, stream, clock=lambda: now[0])  # type: ignore[arg-type]
    tally.take(LiftResult("a.png", "skipped", 0.0))
    assert tally.line() == "[1/?] 0 failed"
    for number in range(4):
        now[0] += 30
        status = "failed" if number == 2 else "done"
        tally.take(LiftResult(f"{number}.png", status, 30.0, error="no" if status == "failed" else None))  # type: ignore[arg-type]
    counter.total = 25
    # Four in 120 s (the skipped one cost nothing), 20 are left.
    assert tally.line() == "[5/25] 1 failed, 2.0 photos/min, about 10 min 00 s left"
    assert "a.png" not in stream.getvalue() and "trilift: no" in stream.getvalue()
    assert tally.close(tmp_path, stopped=True) == 130
    assert "Stopped after 3.png (5 of 25 photos). The same command goes on from there." in stream.getvalue()


def test_urls_keep_their_slashes_in_messages():
    stream = io.StringIO()
    tally = Tally(Narrator(stream), SimpleNamespace(total=1), stream)  # type: ignore[arg-type]
    tally.take(LiftResult("a.png", "done", 1.0, url="s3://b/out/a"))
    assert tally.close("s3://b/out", stopped=False) == 0
    assert "s3://b/out/a" in stream.getvalue() and "See s3://b/out/report.html" in stream.getvalue()


@pytest.mark.slow
def test_accelerate_launch_shares_the_photos(tmp_path):
    """Two processes of ``accelerate launch`` on one folder: each photo is lifted once."""
    for number in range(6):
        draw_photo(tmp_path / "in" / f"{number}.png", (number * 40, 80, 90))
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "trilift", "batch", "in", "--resolution", "32",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = list(Journal(tmp_path / "out").read())
    assert sorted(row["source"] for row in found) == [f"{n}.png" for n in range(6)]
    assert {row["status"] for row in found} == {"done"}
