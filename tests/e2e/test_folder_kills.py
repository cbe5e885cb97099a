"""Folder runs that are killed, in processes of their own, through the real runner: nothing is lost or done twice."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.standin import BAD, begun, make_photos, start, wait_for_calls
from trilift.journal import Journal

IN_HAND = 6  # four lanes, and two photos that are claimed beyond
PHOTOS, KILLS = 200, 3


def assets(out: Path) -> dict[str, dict]:
    """{place: record} of all assets, each of which is whole."""
    found = {}
    for path in out.rglob("asset.json"):
        record = json.loads(path.read_text())
        for file in record["files"]:
            data = (path.parent / file["name"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"]), path
        found[path.parent.relative_to(out).as_posix()] = record
    return found


def assert_complete(out: Path, good: list[str], bad: list[str]) -> None:
    """Every good photo has one valid asset, every bad one a single row that says why, and nothing else is left."""
    assert sorted(assets(out)) == sorted(name.rsplit(".", 1)[0] for name in good)
    rows = list(Journal(out).read())
    status: dict[str, list[str]] = {}
    for row in rows:
        status.setdefault(row["source"], []).append(row["status"])
    # Of a photo whose process died between asset and row, the next run wrote that it is there.
    assert {source: len(found) for source, found in status.items()} == dict.fromkeys(good + bad, 1)
    for row in rows:
        assert (row["status"] == "failed") == (row["source"] in bad)
        if row["status"] == "failed":
            assert BAD[row["source"].rsplit("/", 1)[1]][1] in row["error"]
    assert [p for p in out.rglob("*") if "aside" in p.name or p.name == ".trilift.lock"] == []


def calls(log: Path) -> tuple[Counter[str], Counter[str]]:
    """How often each photo was begun, and how often it was written."""
    lines = [line.split(" ", 1) for line in log.read_text().splitlines()]
    return Counter(name for kind, name in lines if kind == "begin"), Counter(n for kind, n in lines if kind == "end")


def finish(running: subprocess.Popen[bytes]) -> dict[str, int]:
    """Let a run come to its end, and give its counts."""
    output, _ = running.communicate(timeout=200)
    assert running.returncode == 0
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize(
    "options",
    [pytest.param([], id="lanes"), pytest.param(["--workers", "2"], id="workers", marks=pytest.mark.slow)],
)
def test_killed_three_times_at_random(tmp_path: Path, options: list[str]) -> None:
    good, bad = make_photos(tmp_path / "in", PHOTOS - 10)
    out, log, draw = tmp_path / "out", tmp_path / "log", random.Random(len(options))
    for _ in range(KILLS):
        running = start(tmp_path / "in", out, log, *options)
        wait_for_calls(log, begun(log) + draw.randrange(1, 60), running)
        time.sleep(draw.random() * 0.02)
        running.kill()
        running.wait()
        assert running.stdout is not None
        running.stdout.close()
    counts = finish(start(tmp_path / "in", out, log, *options))
    assert sum(counts.values()) == PHOTOS and counts["failed"] == 10
    assert_complete(out, good, bad)
    begins, ends = calls(log)
    assert max(ends.values()) == 1
    assert sum(begins.values()) - PHOTOS <= KILLS * IN_HAND and max(begins.values()) <= 1 + KILLS
    assert finish(start(tmp_path / "in", out, log, *options)) == {"done": 0, "skipped": PHOTOS - 10, "failed": 10}
    assert calls(log)[0] == begins and len(list(Journal(out).read())) == PHOTOS


def test_two_processes_share_a_folder_and_are_killed(tmp_path: Path) -> None:
    good, bad = make_photos(tmp_path / "in", PHOTOS - 10)
    out, log, draw = tmp_path / "out", tmp_path / "log", random.Random(5)
    running = [start(tmp_path / "in", out, log) for _ in range(2)]
    for _ in range(KILLS):
        victim = draw.randrange(2)
        wait_for_calls(log, begun(log) + draw.randrange(1, 50), running[victim])
        time.sleep(draw.random() * 0.02)
        running[victim].kill()
        running[victim].communicate()
        running[victim] = start(tmp_path / "in", out, log)
    both = [finish(process) for process in running]
    assert all(sum(counts.values()) == PHOTOS for counts in both)
    # What the killed ones left half-written was swept by the last one out.
    assert_complete(out, good, bad)
    begins, ends = calls(log)
    assert max(ends.values()) == 1 and sum(begins.values()) - PHOTOS <= KILLS * IN_HAND


def test_a_killed_worker_costs_nothing(tmp_path: Path) -> None:
    """SIGKILL and SIGSEGV in the middle of a photo: it is tried again, and one that always kills is told of."""
    good, _ = make_photos(tmp_path / "in", 12, bad=0)
    for name in ("dies-once.png", "segfault.png"):
        (tmp_path / "in" / "set0" / "0000.png").rename(tmp_path / "in" / name) if name == "dies-once.png" else (
            tmp_path / "in" / "set1" / "0001.png"
        ).rename(tmp_path / "in" / name)
    out, log = tmp_path / "out", tmp_path / "log"
    counts = finish(start(tmp_path / "in", out, log, "--workers", "2"))
    assert counts == {"done": 11, "skipped": 0, "failed": 1}
    rows = {row["source"]: row for row in Journal(out).read()}
    assert len(rows) == 12 and rows["dies-once.png"]["attempt"] == 2 and rows["dies-once.png"]["status"] == "done"
    told = rows["segfault.png"]
    assert told["cause"] == "crash" and "signal 11, SIGSEGV" in told["error"] and told["attempt"] == 2
    assert "2 times" in told["error"] and len(good) == 12


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_ctrl_c_finishes_what_is_in_hand(tmp_path: Path, kind: signal.Signals) -> None:
    """Through the command line: exit status 130, everything begun is finished, and it says where it stopped."""
    make_photos(tmp_path / "in", 150, bad=0)
    out, log = tmp_path / "out", tmp_path / "log"
    running = command(tmp_path / "in", out, log)
    wait_for_calls(log, 20, running)
    running.send_signal(kind)
    told = running.communicate(timeout=100)[1].decode()
    assert running.returncode == 130, told
    begins, ends = calls(log)
    assert begins == ends and 20 <= len(begins) < 150
    assert len(list(Journal(out).read())) == len(begins) == len(assets(out))
    assert "finishing what is in hand" in told and "Stopped after set" in told and f"{len(begins)} of 150" in told
    assert (out / "report.html").is_file() and not (out / ".trilift.lock").exists()


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    make_photos(tmp_path / "in", 30, bad=0)
    out, log = tmp_path / "out", tmp_path / "log"
    running = command(tmp_path / "in", out, log, stage_ms=20_000)
    wait_for_calls(log, 1, running)
    began = time.monotonic()
    running.send_signal(signal.SIGINT)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=100)
    assert running.returncode == 130 and time.monotonic() - began < 15  # a photo would take 80 seconds
    assert assets(out) == {}


def command(photos: Path, out: Path, log: Path, stage_ms: float = 5) -> subprocess.Popen[bytes]:
    """``trilift batch`` with the stand-in in place of what loads a model."""
    import sys

    from benchmarks.standin import ROOT

    code = (
        "import sys, functools\nfrom benchmarks.standin import StandIn\nimport trilift.recipe as recipe\n"
        f"recipe.PipeRecipe = lambda *a: functools.partial(StandIn, {str(log)!r}, {stage_ms})\n"
        f"from trilift.cli import main\nsys.exit(main(['batch', {str(photos)!r}, '-o', {str(out)!r}]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, cwd=ROOT, env=environment)
