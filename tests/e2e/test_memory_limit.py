"""``--max-memory`` keeps its promise: lifts in processes that the system lets have no more memory than so much."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Reserved for threads' stacks and freed pages that are kept: private memory that the system counts and nobody uses.
CAP_BYTES = 500_000_000

SCRIPT = """
import json, resource, sys, threading, time
from pathlib import Path
cap, limit, photo, out = int(sys.argv[1]), sys.argv[2] or None, sys.argv[3], sys.argv[4]
resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))
peak = 0
def look():
    global peak
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = max(peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")))
def watch():
    while True:
        look()
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
from trilift import ImageTo3D
pipe = ImageTo3D.from_pretrained("tiny", device="cpu", max_memory=limit, on_note=lambda text: None)
asset = pipe(photo, resolution=64)
asset.save(out)
look()
print(json.dumps({"peak": peak, "faces": len(asset.mesh.faces), "warnings": asset.record["warnings"]}))
"""


def lift(limit: str, out: Path) -> dict[str, Any]:
    """The embedded model's lift of an example in a capped process of one thread."""
    command = [sys.executable, "-c", SCRIPT, str(CAP_BYTES), limit, str(ROOT / "trilift/examples/chair.png"), str(out)]
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, env={**os.environ, **threads})
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux caps and counts a process's own memory")
def test_a_capped_lift_is_planned_or_becomes_smaller(tmp_path: Path) -> None:
    planned = lift("350MB", tmp_path / "planned")
    assert not any("Memory ran out" in text for text in planned["warnings"])
    assert planned["peak"] <= 350_000_000
    # Without a plan the same process runs into its cap, and finishes with less.
    surprised = lift("", tmp_path / "surprised")
    assert any("Memory ran out in comparing with the photo" in text for text in surprised["warnings"])
    assert surprised["faces"] == planned["faces"]
    record = json.loads((tmp_path / "surprised" / "asset.json").read_text("utf-8"))
    assert any("Memory ran out" in text for text in record["warnings"])


FOLDER_SCRIPT = """
import json, os, resource, sys, threading, time
cap, photos, out, words = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]
resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))  # of this process, and of each of its workers
peak = 0
def own(pid):
    with open(f"/proc/{pid}/status") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon:"))
def look():
    global peak
    try:
        children = [open(f"/proc/self/task/{task}/children").read().split() for task in os.listdir("/proc/self/task")]
        peak = max(peak, sum(own(pid) for pid in ("self", *sum(children, []))))
    except OSError:
        pass  # one has just gone
def watch():
    while True:
        look()
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
from trilift import cli
status = cli.main(["batch", photos, "-o", out, "--device", "cpu", "--resolution", "64", "--project", "off", *words])
look()
print(json.dumps({"peak": peak, "status": status}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux caps and counts a process's own memory")
@pytest.mark.parametrize(
    ("words", "limit", "cap", "told"),
    [
        (("--max-memory", "900MB"), 900, 1100, "5 photos on their way, 1 in the network and 2 meshed at a time"),
        (("--max-memory", "900MB", "--workers", "4"), 900, 650, "room for 2 of 4 workers"),
    ],
    ids=["lanes", "workers"],
)
def test_a_capped_folder_run_keeps_within_its_limit(
    words: tuple[str, ...], limit: int, cap: int, told: str, tmp_path: Path
) -> None:
    photos = tmp_path / "in"
    photos.mkdir()
    for name in ("car", "chair", "house", "teapot"):
        for number in range(2):
            shutil.copy(ROOT / f"trilift/examples/{name}.png", photos / f"{name}{number}.png")
    command = [sys.executable, "-c", FOLDER_SCRIPT, str(cap * 10**6), str(photos), str(tmp_path / "out"), *words]
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, env={**os.environ, **threads})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["status"] == 0 and told in done.stderr, done.stderr
    assert 200_000_000 < found["peak"] <= limit * 10**6
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 8 and {row["status"] for row in rows} == {"done"}
    assert not any(row["lowered"] or "Memory ran out" in " ".join(row["warnings"]) for row in rows)
