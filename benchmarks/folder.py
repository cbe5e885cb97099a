"""``python -m benchmarks folder``: folder runs at length: kills, memory, and what a run costs beside its lifts.

Parts, each asked for by name (default: kills and memory, which need no network):

- ``kills``: 2,000 small pictures and a stand-in lifter of 20 ms; the run is killed ten times (SIGKILL, at random
  moments) and started again. In the end every photo has one row, every good one a whole asset, and what was lifted
  twice is at most what was in hand at the kills.
- ``memory``: the same without kills, in one process; resident memory when 200 and when all photos are finished.
- ``overlap``: real lifts by the embedded model: seconds of a folder run in one process against those of network and
  meshing alone, which are measured in the same process before and after it.
- ``workers``: real lifts by one and by two worker processes with one thread each.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trilift.journal import Journal
from trilift.recipe import PipeRecipe
from trilift.runner import RunOptions, lift_folder
from trilift.settings import LiftSettings

from .pictures import EXAMPLES
from .standin import begun, file_record, make_photos, start, wait_for_calls

PARTS = ("kills", "memory", "overlap", "workers")


def kills(folder: Path, photos: int, count: int, seed: int) -> dict[str, Any]:
    """Kill a run ``count`` times at random moments, let it finish, and look at what there is."""
    good, bad = make_photos(folder / "in", photos - 10)
    out, log, draw = folder / "out", folder / "log", random.Random(seed)
    began = time.perf_counter()
    for number in range(count):
        running = start(folder / "in", out, log)
        # Spread over the run: each kill comes somewhere in the next tenth of what is left.
        left = max(photos - begun(log), 1)
        wait_for_calls(log, begun(log) + draw.randrange(1, max(2 * left // (count - number + 1), 2)), running)
        time.sleep(draw.random() * 0.02)
        running.kill()
        running.communicate()
    running = start(folder / "in", out, log)
    running.communicate()
    calls = Counter(line.split(" ", 1)[1] for line in log.read_text().splitlines() if line.startswith("begin "))
    rows = Counter((row["source"], row["status"] == "failed") for row in Journal(out).read())
    whole = sum(_is_whole(path) for path in out.rglob("asset.json"))
    return {
        "photos": photos, "kills": count, "seconds": round(time.perf_counter() - began, 1),
        "whole_assets": whole, "good": len(good),
        "rows": sum(rows.values()), "bad_with_one_row": sum(rows[source, True] == 1 for source in bad),
        "lifted_again": sum(calls.values()) - photos, "in_hand_at_kills_at_most": count * 6,
        "left_half_written": sum(".aside-" in path.name for path in out.rglob(".*")),
    }  # fmt: skip


def _is_whole(record: Path) -> bool:
    return all(file_record(record.parent / f["name"]) == f for f in json.loads(record.read_text())["files"])


def memory(folder: Path, photos: int) -> dict[str, Any]:
    """Resident memory of one run's process when 200 and when all of its photos are finished."""
    make_photos(folder / "in", photos - 10)
    told = folder / "resident"
    running = start(folder / "in", folder / "out", folder / "log", "--resident", str(told), "--stage-ms", "2")
    running.communicate()
    lines: dict[int, int] = {}
    for line in told.read_text().splitlines():
        finished, kib = line.split()
        lines[int(finished)] = int(kib)
    first, last = lines[min(200, photos)], lines[photos]
    return {
        "photos": photos, "resident_mib_at_200": round(first / 1024, 1), "resident_mib_at_end": round(last / 1024, 1),
        "grown_by": f"{last / first - 1:+.1%}", "highest_mib": round(max(lines.values()) / 1024, 1),
    }  # fmt: skip


def _real_photos(folder: Path, count: int) -> Path:
    """So many copies of the example pictures that have an alpha, so that no remover is asked."""
    sources = [EXAMPLES / name for name in ("car.png", "chair.png", "house.png", "teapot.png")]
    folder.mkdir(parents=True)
    for number in range(count):
        shutil.copy(sources[number % len(sources)], folder / f"{number:04d}.png")
    return folder


def _alone(pipe: Any, photos: list[Path], settings: LiftSettings) -> Iterator[float]:
    """Seconds of network and meshing of each photo, one after the other."""
    for photo in photos:
        seconds = pipe(photo, settings).record["seconds"]
        yield sum(value for name, value in seconds.items() if name in ("network", "mesh", "simplify"))


def overlap(folder: Path, count: int, settings: LiftSettings) -> dict[str, Any]:
    """A folder run in one process against network and meshing alone, half of them before and half after it."""
    photos = sorted(_real_photos(folder / "in", count).iterdir())
    pipe = PipeRecipe()()
    pipe(photos[0], settings)  # warms up
    cpu = [time.process_time()]
    alone = sum(_alone(pipe, photos[: count // 2], settings))
    cpu.append(time.process_time())
    began = time.perf_counter()
    done = sum(r.status == "done" for r in lift_folder(pipe, folder / "in", folder / "out", settings))
    wall = time.perf_counter() - began
    cpu.append(time.process_time())
    alone += sum(_alone(pipe, photos[count // 2 :], settings))
    cpu.append(time.process_time())
    return {
        "photos": count, "done": done, "network_and_meshing_s": round(alone, 2), "folder_run_s": round(wall, 2),
        "ratio": round(wall / alone, 3), "whole_lifts_alone_cpu_s": round(cpu[1] - cpu[0] + cpu[3] - cpu[2], 2),
        "folder_run_cpu_s": round(cpu[2] - cpu[1], 2),
    }  # fmt: skip


def workers(folder: Path, count: int, settings: LiftSettings) -> dict[str, Any]:
    """Photos a second of one and of two worker processes, from the first result to the last."""
    rates = {}
    for number in (1, 2):
        shutil.rmtree(folder / "in", ignore_errors=True)
        _real_photos(folder / "in", count)
        options, times = RunOptions(workers=number, threads=1), []
        for _ in lift_folder(PipeRecipe(), folder / "in", folder / f"out{number}", settings, options):
            times.append(time.perf_counter())
        # The first results tell that every worker has loaded its model.
        rates[number] = (count - number - 1) / (times[-1] - times[number])
    return {
        "photos": count, "photos_per_s_by_one": round(rates[1], 3), "photos_per_s_by_two": round(rates[2], 3),
        "ratio": round(rates[2] / rates[1], 3),
    }  # fmt: skip


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks folder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--photos", type=int, default=2000, help="of kills and memory (default %(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="(default %(default)s)")
    parser.add_argument("--lifts", type=int, default=100, help="of overlap and workers (default %(default)s)")
    parser.add_argument("--resolution", type=int, default=LiftSettings().resolution)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    args = parser.parse_args(arguments)
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]}: expected some of {', '.join(PARTS)}")
    settings = LiftSettings(resolution=args.resolution)
    for part in args.parts or ("kills", "memory"):
        with tempfile.TemporaryDirectory(prefix="trilift-benchmark-") as name:
            folder = Path(name)
            if part == "kills":
                row = kills(folder, args.photos, args.kills, args.seed)
            elif part == "memory":
                row = memory(folder, args.photos)
            else:
                row = (overlap if part == "overlap" else workers)(folder, args.lifts, settings)
        print(json.dumps({"part": part, **row}), flush=True)
    return 0
