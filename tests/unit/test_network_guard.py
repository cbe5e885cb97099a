"""The guard that keeps the tests off the network is tested itself: one that lets through looks like one that works."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

# A documentation address (RFC 5737): nobody is there, even where the guard should fail.
ELSEWHERE = "192.0.2.1"


def with_socket(method: str, *args: Any, kind: int = socket.SOCK_STREAM) -> None:
    with socket.socket(type=kind) as sock:
        getattr(sock, method)(*args)


@pytest.mark.parametrize(
    "reach",
    [
        pytest.param(lambda: socket.create_connection((ELSEWHERE, 80), timeout=1), id="create_connection"),
        pytest.param(lambda: with_socket("connect", (ELSEWHERE, 80)), id="connect"),
        pytest.param(lambda: with_socket("connect_ex", (ELSEWHERE, 80)), id="connect_ex"),
        pytest.param(lambda: with_socket("sendto", b"x", (ELSEWHERE, 53), kind=socket.SOCK_DGRAM), id="sendto"),
        pytest.param(lambda: with_socket("sendto", b"x", 0, (ELSEWHERE, 9), kind=socket.SOCK_DGRAM), id="sendto-flags"),
        pytest.param(lambda: socket.getaddrinfo("example.invalid", 80), id="getaddrinfo"),
        pytest.param(lambda: socket.getaddrinfo(host="example.invalid", port=80), id="getaddrinfo-keywords"),
        pytest.param(lambda: socket.gethostbyname("example.invalid"), id="gethostbyname"),
    ],
)
def test_other_machines_are_refused_and_remembered(reach: Any, network_guard: Any) -> None:
    with pytest.raises(RuntimeError, match="tests run without network"):
        reach()
    attempts = network_guard.clear()
    assert len(attempts) == 1
    assert ELSEWHERE in attempts[0] or "example.invalid" in attempts[0]


def test_a_swallowed_refusal_is_still_remembered(network_guard: Any) -> None:
    with contextlib.suppress(Exception):  # what careless code does
        with_socket("connect", (ELSEWHERE, 80))
    assert network_guard.clear() == [f"connect: {ELSEWHERE}"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_is_reached(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        answers: list[bytes] = []

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                answers.append(peer.recv(5))

        thread = threading.Thread(target=answer)
        thread.start()
        with socket.create_connection((host, server.getsockname()[1]), timeout=5) as client:
            client.sendall(b"hello")
        thread.join(5)
    assert answers == [b"hello"]


@pytest.mark.parametrize("name", ["TRILIFT_OFFLINE", "HF_HUB_OFFLINE"])
def test_child_processes_are_told_to_stay_offline(name: str) -> None:
    child = subprocess.run(
        [sys.executable, "-c", f"import os; print(os.environ[{name!r}])"], capture_output=True, text=True, check=True
    )
    assert child.stdout.strip() == "1"
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
