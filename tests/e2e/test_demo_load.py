"""Many visitors at once, through gradio's own client."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.app import build_app, launch_options
from tests.fakes import FakeModel, draw_photo
from trilift import ImageTo3D

CLIENTS, SECONDS = 8, 30.0
LIFTS = 30  # at least, however slow the machine is


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    page = build_app(lambda: ImageTo3D(FakeModel()))
    _, url, _ = page.launch(**launch_options(blocks=page), prevent_thread_lock=True, quiet=True)
    yield url
    page.close()
    page.sessions.close()


def resident_bytes() -> int:
    """Of this process, from /proc."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def visit(server: str, folder: Path, until: float, told: dict[str, list[Any]]) -> None:
    """Lift again and again until the time is over and there are enough; what happens is added to ``told``."""
    from gradio_client import Client, handle_file

    photo = draw_photo(folder / "ball.png")
    client = Client(server, verbose=False, download_files=str(folder / "got"))
    while time.monotonic() < until or len(told["done"]) < LIFTS:
        try:
            mesh, _, _ = client.predict(photo=handle_file(str(photo)), resolution=64, turntable=False, api_name="/lift")
            assert Path(mesh).read_bytes()[:4] == b"glTF"
            told["done"].append(resident_bytes())
        except Exception as error:
            told["busy" if "queue is full" in str(error).lower() else "failed"].append(repr(error))
    client.close()


@pytest.mark.slow
def test_eight_visitors_for_half_a_minute(server: str, tmp_path: Path) -> None:
    """Every accepted request is answered, and memory is flat; takes 40 s."""
    told: dict[str, list[Any]] = {"done": [], "busy": [], "failed": []}
    until = time.monotonic() + SECONDS
    threads = [threading.Thread(target=visit, args=(server, tmp_path / str(k), until, told)) for k in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told["failed"] == []
    gc.collect()
    assert len(told["done"]) >= LIFTS
    after_twenty, last = told["done"][19], max(told["done"][20:])
    assert last <= 1.10 * after_twenty, f"{after_twenty / 1e6:.0f} MB after the 20th lift, then {last / 1e6:.0f} MB"


def test_a_full_queue_is_answered_politely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json
    import urllib.error
    import urllib.request

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    page = build_app(lambda: ImageTo3D(FakeModel()))
    page.queue(max_size=0, api_open=False)
    _, url, _ = page.launch(**launch_options(blocks=page), prevent_thread_lock=True, quiet=True)
    try:
        request = urllib.request.Request(
            f"{url}gradio_api/call/models", b'{"data": []}', {"Content-Type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(request, timeout=20)
        assert raised.value.code == 503
        assert "try again in a minute" in json.load(raised.value)["detail"]
    finally:
        page.close()
        page.sessions.close()
