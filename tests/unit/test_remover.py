"""The learned remover: taken when it is there, fetched whole or not at all, never the end of a lift."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.pictures import drawn, rectangle
from trilift import remover
from trilift.foreground import cut_out
from trilift.remover import learned_alpha


def test_the_learned_remover_is_taken_when_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def predict(self, image: Image.Image) -> list[Image.Image]:
            matte = Image.new("L", image.size, 0)
            matte.paste(255, (30, 30, 60, 50))
            return [matte]

    (tmp_path / "u2net.onnx").write_bytes(b"weights")
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    monkeypatch.setattr(remover, "_rembg_session", lambda model: Session())
    cutout = cut_out(rectangle(10, 20, 50, 40), background="remove")
    assert (cutout.method, cutout.box, cutout.warnings) == ("rembg", (30, 30, 60, 50), ())


def test_a_broken_learned_remover_does_not_cost_the_lift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "u2netp.onnx").write_bytes(b"not weights")
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))

    def broken(model: str) -> Any:
        raise RuntimeError("INVALID_PROTOBUF")

    monkeypatch.setattr(remover, "_rembg_session", broken)
    cutout = cut_out(drawn("disc", (0.7, 0.2, 0.1), (0.8, 0.8, 0.8))[0], rembg_model="u2netp")
    assert cutout.method == "classical" and "INVALID_PROTOBUF" in cutout.warnings[0]


# Fetching its weights


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers with 1000 bytes, with fewer than it promised, or not at all."""

    hang = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/hang":
            self.hang.wait(20)
            return
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * (400 if self.path == "/short" else 1000))

    def log_message(self, *args: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    _Handler.hang.clear()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    _Handler.hang.set()
    httpd.shutdown()
    httpd.server_close()


MD5 = hashlib.md5(b"x" * 1000).hexdigest()


def test_fetch_writes_a_whole_file(server: str, tmp_path: Path) -> None:
    path = tmp_path / "models" / "u2net.onnx"
    assert remover._Fetch(server + "/whole", path, MD5).run() == ""
    assert path.read_bytes() == b"x" * 1000


@pytest.mark.parametrize(("where", "md5"), [("/short", MD5), ("/whole", "0" * 32)], ids=["cut-short", "wrong-sum"])
def test_fetch_leaves_no_half_file(server: str, tmp_path: Path, where: str, md5: str) -> None:
    problem = remover._Fetch(server + where, tmp_path / "u2net.onnx", md5).run()
    assert problem
    assert list(tmp_path.iterdir()) == []


def test_fetch_does_not_hang(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remover, "_CONNECT_SECONDS", 0.3)
    assert remover._Fetch(server + "/hang", tmp_path / "u2net.onnx", MD5).run()
    assert list(tmp_path.iterdir()) == []


def test_fetch_is_tried_once_and_not_at_all_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def failing(self: Any) -> str:
        tries.append(self.url)
        return "no route to host"

    monkeypatch.setattr(remover._Fetch, "run", failing)
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    remover._fetch_rembg_model.cache_clear()
    try:
        monkeypatch.setenv("TRILIFT_OFFLINE", "1")
        assert "TRILIFT_OFFLINE is set" in learned_alpha(np.zeros((16, 16, 3)), "u2net")[1]
        assert tries == []
        remover._fetch_rembg_model.cache_clear()
        monkeypatch.delenv("TRILIFT_OFFLINE")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        for _ in range(3):
            assert "no route to host" in learned_alpha(np.zeros((16, 16, 3)), "u2net")[1]
        assert len(tries) == 1 and tries[0].endswith("/u2net.onnx")
    finally:
        remover._fetch_rembg_model.cache_clear()


def test_we_look_where_rembg_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = pytest.importorskip("rembg.sessions.u2net").U2netSession
    for name in ("U2NET_HOME", "REMBG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for variables in (
        {},
        {"U2NET_HOME": "a"},
        {"REMBG_HOME": "b"},
        {"XDG_DATA_HOME": "c"},
        {"XDG_DATA_HOME": "c", "REMBG_HOME": "b"},
    ):
        with monkeypatch.context() as patch:
            for name, folder in variables.items():
                patch.setenv(name, str(tmp_path / folder))
            ours = [str(p) for p in remover._rembg_folders("u2net")]
            assert ours == [base.model_dir(), base.legacy_home()]
