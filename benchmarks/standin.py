"""Folder runs in processes of their own, with a stand-in for the model: what is killed in the middle of its work.

As a program: ``python -m benchmarks.standin PHOTOS OUT LOG [--workers N] [--stage-ms MS]``; it goes through the runner.
`benchmarks.folder` and the tests of folder runs use it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from multiview.errors import ImageError, TriliftError
from multiview.files import folder_written_whole
from trilift.batch import content_sums
from trilift.photo import load_photo
from trilift.runner import RunOptions, lift_folder
from trilift.settings import LiftSettings
from trilift.sources import PhotoItem

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("load", "network", "mesh", "write")


class StandIn:
    """In place of `ImageTo3D`: reads a photo as it does, spends a few milliseconds in each stage, writes three files.

    Args:
        log: gets a line ``begin NAME`` for each call and ``end NAME`` when the asset is there.
        stage_ms: milliseconds in each of the four stages.
        weights: enters the fingerprint.
    """

    def __init__(self, log: str, stage_ms: float = 5.0, weights: str = "w1") -> None:
        self.log, self.stage_ms, self.weights = log, stage_ms, weights

    def fingerprint(self, photo_sha256: str, mask_sha256: str | None, settings: LiftSettings) -> str:
        """See `ImageTo3D.fingerprint`."""
        return f"{photo_sha256} {mask_sha256} {settings.resolution} {settings.seed} {self.weights}"

    def note(self, line: str) -> None:
        """Add a line to the log."""
        with open(self.log, "a") as file:
            file.write(line + "\n")

    def __call__(self, photo: Path, settings: LiftSettings, on_stage: Any = None, on_step: Any = None) -> Any:
        """Lift, so to speak; see `ImageTo3D.__call__`."""
        self.note(f"begin {photo.name}")
        self.misbehave(photo, settings)
        picture = None
        for stage in STAGES[:3]:
            if on_stage is not None:
                on_stage(stage)
            picture = picture or load_photo(photo)
            time.sleep(self.stage_ms / 1000)
        assert picture is not None
        if not picture.source_image[..., 3].any():
            raise ImageError(f"{photo}: the picture is transparent everywhere.")
        sums = content_sums(PhotoItem(photo.name, "", str(photo)), photo)
        record = {
            "fingerprint": self.fingerprint(*sums, settings), "photo": {"name": str(photo), "sha256": sums[0]},
            "settings": settings.as_record(), "seconds": {"load": 0.005}, "warnings": [],
        }  # fmt: skip
        return SimpleNamespace(record=record, save=lambda folder, *_, **__: self.save(Path(folder), record, photo))

    def misbehave(self, photo: Path, settings: LiftSettings) -> None:
        """What names ask for: a worker that dies, memory that is not there."""
        if "segfault" in photo.name:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "dies-once" in photo.name and not Path(self.log + ".died").exists():
            Path(self.log + ".died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if "no-memory" in photo.name or ("big" in photo.name and settings.resolution > 128):
            raise MemoryError

    def save(self, folder: Path, record: dict[str, Any], photo: Path) -> list[Path]:
        """Write the three files, whole or not at all."""
        data = os.urandom(2000)
        with folder_written_whole(folder, "asset.json") as stage:
            Image.new("RGB", (16, 16), "red").save(stage / "input.png")
            (stage / "mesh.glb").write_bytes(data)
            time.sleep(self.stage_ms / 1000)
            files = [file_record(path) for path in sorted(stage.iterdir())]
            (stage / "asset.json").write_text(json.dumps({**record, "files": files}))
        self.note(f"end {photo.name}")
        return [folder / "input.png", folder / "mesh.glb", folder / "asset.json"]


def file_record(path: Path) -> dict[str, Any]:
    """Name, size and sum of a file, as asset.json has them."""
    data = path.read_bytes()
    return {"name": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# Photos


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_of(path: Path, width: int, height: int) -> None:
    """A PNG that claims a size and has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"") + _chunk(b"IEND", b""))


def _truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:900])


def _unreadable(path: Path) -> None:
    """Without permission to read it; root may read everything, and gets a pipe in place of a file."""
    if os.geteuid() == 0:
        os.mkfifo(path)
    else:
        path.write_bytes(b"x")
        path.chmod(0)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.jpg": (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
    "truncated.jpg": (_truncated, "cut short or damaged"),
    "text.png": (lambda path: path.write_text("hello"), "is not an image"),
    "bomb.png": (lambda path: _png_of(path, 60_000, 60_000), "too many pixels"),
    "heic.jpeg": (lambda path: path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(99)), "is not an image"),
    "nothing.png": (lambda path: _png_of(path, 0, 0), "nothing.png"),
    "unreadable.png": (_unreadable, "no permission" if os.geteuid() else "is not a regular file"),
    "transparent.png": (lambda path: Image.new("RGBA", (32, 32)).save(path), "transparent everywhere"),
    "pixel.png": (lambda path: Image.new("RGB", (1, 1)).save(path), "too small (1 x 1 px"),
    "folder.png": (lambda path: path.mkdir(), "is a folder, not a photo"),
    "link.png": (lambda path: path.symlink_to("nowhere"), "no such file"),
}


def make_photos(folder: Path, good: int, bad: int = 10) -> tuple[list[str], list[str]]:
    """Write so many small pictures in a few sub-folders, and the first so many broken ones; gives their sources."""
    names = []
    for number in range(good):
        path = folder / f"set{number % 5}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number % 256, number // 256, 9)).save(path)
        names.append(path.relative_to(folder).as_posix())
    broken = []
    for number, (name, (make, _)) in enumerate(list(BAD.items())[:bad]):
        path = folder / f"set{number % 5}" / name
        make(path)
        broken.append(path.relative_to(folder).as_posix())
    return names, broken


# Processes


def start(photos: Path, out: Path, log: Path, *options: str) -> subprocess.Popen[bytes]:
    """Begin a run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.standin", str(photos), str(out), str(log), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


def begun(log: Path) -> int:
    """How many calls the log tells of."""
    return log.read_text().count("begin ") if log.exists() else 0


def wait_for_calls(log: Path, count: int, running: subprocess.Popen[bytes], seconds: float = 120) -> None:
    """Wait until the log tells of so many calls, or the process has ended."""
    end = time.monotonic() + seconds
    while begun(log) < count and running.poll() is None and time.monotonic() < end:
        time.sleep(0.005)


def run(arguments: list[str]) -> int:
    """One run; the last line of stdout holds its counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("photos")
    parser.add_argument("out")
    parser.add_argument("log")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--stage-ms", type=float, default=5.0)
    parser.add_argument("--resident", help="file that gets 'finished resident-KiB' lines")
    parser.add_argument("--retry-failed", action="store_true")
    args = parser.parse_args(arguments)
    options = RunOptions(workers=args.workers, retry_failed=args.retry_failed)
    loader = partial(StandIn, args.log, args.stage_ms)
    counts = {"done": 0, "skipped": 0, "failed": 0}
    try:
        for result in lift_folder(loader, args.photos, args.out, LiftSettings(), options):
            counts[result.status] += 1
            if args.resident:
                with open(args.resident, "a") as file:
                    file.write(f"{sum(counts.values())} {resident_kib()}\n")
    except TriliftError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(counts))
    return 0


def resident_kib() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)


if __name__ == "__main__":
    from benchmarks import standin  # by its name, so that workers find the stand-in

    sys.exit(standin.run(sys.argv[1:]))
