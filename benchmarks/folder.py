"""``python -m benchmarks folder``: folder runs at length: kills, memory, and what a run costs beside its lifts.

Parts, each asked for by name (default: kills and memory, which need no network):

- ``kills``: 2,000 small pictures and a stand-in lifter of 20 ms; the run is killed ten times (SIGKILL, at random
  moments) and started again. In the end every photo has one row, every good one a whole asset, and what was lifted
  twice is at most what was in hand at the kills.
- ``memory``: the same without kills, in one process; resident memory when 200 and when all photos are finished.
- ``overlap``: real lifts by the embedded model: seconds of a folder run in one process against those of the same
  photos in a bare loop that writes no files, before and after it in the same process; of the bare loop both network and
  meshing alone, and whole lifts. Processor seconds tell more than the clock's where others use the machine, too.
- ``workers``: real lifts by one and by two worker processes with one thread each. What a worker uses is with its start,
  so that short runs show more a photo.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trilift.journal import Journal
from trilift.recipe import PipeRecipe
from trilift.runner import RunOptions, lift_folder
from trilift.settings import PROJECTIONS, LiftSettings

from .pictures import EXAMPLES
from .standin import begun, file_record, make_photos, start, wait_for_calls

PARTS = ("kills", "memory", "overlap", "workers")
_CORE = ("network", "mesh", "simplify")


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


@dataclass
class _Bare:
    """What lifts cost in a plain loop that writes no files: seconds of the clock and of the processors, by stage."""

    wall: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    cpu: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    photos: int = 0

    def lift(self, pipe: Any, photo: Path, settings: LiftSettings) -> None:
        """Lift one photo and forget it."""
        stage, wall, cpu = "other", time.perf_counter(), time.process_time()

        def on_stage(name: str) -> None:
            nonlocal stage, wall, cpu
            now, used = time.perf_counter(), time.process_time()
            self.wall[stage] += now - wall
            self.cpu[stage] += used - cpu
            stage, wall, cpu = name, now, used

        pipe(photo, settings, on_stage=on_stage)
        on_stage("other")
        self.photos += 1

    def told(self, count: int) -> dict[str, Any]:
        """Seconds for ``count`` photos."""
        share = count / self.photos
        named = {name: round(value * share, 2) for name, value in sorted(self.cpu.items())}
        return {
            "network_and_meshing_s": round(share * sum(self.wall[name] for name in _CORE), 2),
            "network_and_meshing_cpu_s": round(share * sum(self.cpu[name] for name in _CORE), 2),
            "bare_lifts_s": round(share * sum(self.wall.values()), 2),
            "bare_lifts_cpu_s": round(share * sum(self.cpu.values()), 2),
            "bare_cpu_s_by_stage": named,
        }


def overlap(folder: Path, count: int, settings: LiftSettings) -> dict[str, Any]:
    """A folder run in one process against a bare loop over the same photos in the same process, with its threads.

    The bare loop takes half of the photos, a quarter of them before the run and a quarter after it, so that a machine
    that becomes slower or faster meanwhile tells in both; its seconds are doubled.
    """
    photos = sorted(_real_photos(folder / "in", count).iterdir())
    pipe, bare = PipeRecipe()(), _Bare()
    pipe(photos[0], settings)  # warms up
    quarter = max(count // 4, 1)
    for photo in photos[:quarter]:
        bare.lift(pipe, photo, settings)
    began, used = time.perf_counter(), time.process_time()
    done = sum(r.status == "done" for r in lift_folder(pipe, folder / "in", folder / "out", settings))
    wall, cpu = time.perf_counter() - began, time.process_time() - used
    for photo in photos[-quarter:]:
        bare.lift(pipe, photo, settings)
    told = bare.told(count)
    return {
        "photos": count, "done": done, "threads": torch.get_num_threads(), **told,
        "folder_run_s": round(wall, 2), "folder_run_cpu_s": round(cpu, 2),
        "over_network_and_meshing": _ratio(wall, told["network_and_meshing_s"]),
        "over_bare_lifts": _ratio(wall, told["bare_lifts_s"]),
        "cpu_over_bare_lifts": _ratio(cpu, told["bare_lifts_cpu_s"]),
    }  # fmt: skip


def _ratio(value: float, base: float) -> float:
    return round(value / max(base, 1e-9), 3)


def workers(folder: Path, count: int, settings: LiftSettings) -> dict[str, Any]:
    """Photos a second of one and of two worker processes with one thread each, from the first result to the last.

    One lifts a quarter of the photos and two lift half of them, which takes about as long.
    """
    rates, cpu = {}, {}
    for number in (1, 2):
        shutil.rmtree(folder / "in", ignore_errors=True)
        share = max(number * count // 4, number + 2)
        _real_photos(folder / "in", share)
        options, times = RunOptions(workers=number, threads=1), []
        before = os.times().children_user + os.times().children_system
        for _ in lift_folder(PipeRecipe(), folder / "in", folder / f"out{number}", settings, options):
            times.append(time.perf_counter())
        # The first results tell that every worker has loaded its model.
        rates[number] = (share - number) / (times[-1] - times[number - 1])
        cpu[number] = (os.times().children_user + os.times().children_system - before) / share
    return {
        "photos": count, "photos_per_s_by_one": round(rates[1], 3), "photos_per_s_by_two": round(rates[2], 3),
        "ratio": round(rates[2] / rates[1], 3),
        "cpu_s_a_photo_by_one": round(cpu[1], 2), "cpu_s_a_photo_by_two": round(cpu[2], 2),
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
    parser.add_argument(
        "--project", choices=PROJECTIONS, default=LiftSettings().project,
        help="whether the photo is painted on; off: a lift is network and meshing, and files (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    args = parser.parse_args(arguments)
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]}: expected some of {', '.join(PARTS)}")
    settings = LiftSettings(resolution=args.resolution, project=args.project)
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
