"""``python -m benchmarks demo``: the page under load: 20 clients for 3 minutes, each lifting again and again.

The server is ``trilift demo`` in a process of its own with the embedded model; clients are gradio's. Told are lifts per
minute, seconds from the request to the files, how often the queue was full, failed requests, and the server's memory
after the twentieth lift and at its highest after that. Exit status 1 when an accepted request failed or memory grew by
more than a tenth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multiview.errors import TriliftError

_EXAMPLE = Path(__file__).parents[1] / "trilift" / "examples" / "car.png"
_START_SECONDS = 180.0
_GROWTH = 1.10
_WARM = 20  # lifts after which memory must not grow any more


@dataclass
class Told:
    """What the clients saw.

    Attributes:
        seconds: of each answered request.
        memory: bytes of the server after each.
        busy: how often the queue was full.
        failed: what other errors said.
    """

    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    busy: int = 0
    failed: list[str] = field(default_factory=list)


def resident_bytes(pid: int) -> int:
    """Memory of a process; 0 where there is no /proc."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


@contextmanager
def running_server(port: int) -> Any:
    """The process of ``trilift demo``, once it answers.

    Raises:
        TriliftError: it ended, or does not answer within `_START_SECONDS`.
    """
    command = [sys.executable, "-m", "trilift", "demo", "--port", str(port)]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            end = time.monotonic() + _START_SECONDS
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise TriliftError(f"trilift demo did not come up: {log.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.5)
            yield process
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(json.load(answer)["status"] == "ok")
    except OSError:
        return False


def visit(url: str, pid: int, until: float, resolution: int, told: Told) -> None:
    """One client: lift until the time is over; a full queue is waited out for a second."""
    from gradio_client import Client, handle_file

    with tempfile.TemporaryDirectory(prefix="trilift-client-") as folder:
        client = Client(url, verbose=False, download_files=folder)
        while time.monotonic() < until:
            start = time.monotonic()
            try:
                client.predict(photo=handle_file(str(_EXAMPLE)), resolution=resolution, api_name="/lift")
            except Exception as error:  # whatever it is, it is told
                if "queue is full" in str(error).lower():
                    told.busy += 1
                    time.sleep(1.0)
                else:
                    told.failed.append(f"{type(error).__name__}: {error}")
                continue
            told.seconds.append(time.monotonic() - start)
            told.memory.append(resident_bytes(pid))
        client.close()


def measure(clients: int, seconds: float, port: int, resolution: int) -> dict[str, Any]:
    """Run the server and the clients; gives the figures."""
    told = Told()
    with running_server(port) as server:
        began = time.monotonic()
        arguments = (f"http://127.0.0.1:{port}", server.pid, began + seconds, resolution, told)
        threads = [threading.Thread(target=visit, args=arguments) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
    warm = told.memory[_WARM - 1] if len(told.memory) >= _WARM else None
    peak = max(told.memory[_WARM - 1 :], default=None)
    return {
        "clients": clients,
        "seconds": round(took, 1),
        "lifts": len(told.seconds),
        "lifts_per_minute": round(60 * len(told.seconds) / took, 1),
        "median_seconds": round(statistics.median(told.seconds), 2) if told.seconds else None,
        "longest_seconds": round(max(told.seconds), 2) if told.seconds else None,
        "queue_full": told.busy,
        "failed": told.failed[:10],
        "memory_after_20_mb": None if warm is None else round(warm / 1e6),
        "memory_peak_mb": None if peak is None else round(peak / 1e6),
    }


def is_fine(row: dict[str, Any]) -> bool:
    """Whether nothing that was accepted failed and memory stayed flat."""
    warm, peak = row["memory_after_20_mb"], row["memory_peak_mb"]
    return not row["failed"] and (warm is None or peak <= _GROWTH * warm)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures as one JSON object; 1 when a request failed or memory grew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks demo", description=__doc__)
    parser.add_argument("--clients", type=int, default=20, help="(default %(default)s)")
    parser.add_argument("--seconds", type=float, default=180.0, help="(default %(default)s)")
    parser.add_argument("--resolution", type=int, default=64, help="of the meshes (default %(default)s)")
    parser.add_argument("--port", type=int, default=7861, help="(default %(default)s)")
    args = parser.parse_args(argv)
    row = measure(args.clients, args.seconds, args.port, args.resolution)
    print(json.dumps(row, indent=2))
    return 0 if is_fine(row) else 1
