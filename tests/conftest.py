"""What every test stands on: no network, two threads, the same random examples every time.

The guard below is put up when pytest reads this file and stays: anything that reaches for another machine (a connection
or a name look-up) is refused, and the test during which it happened fails even where the code under test swallowed the
refusal. Child processes are told through their environment to stay offline.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

OFFLINE_ENVIRONMENT = {
    "TRILIFT_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}
# Before anything imports huggingface_hub or gradio, which read these once.
os.environ.update(OFFLINE_ENVIRONMENT)

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("trilift", deadline=None, derandomize=True, max_examples=50, print_blob=True)
settings.load_profile("trilift")
torch.set_num_threads(min(2, int(os.environ.get("OMP_NUM_THREADS") or 2)))


class NetworkBlockedError(RuntimeError):
    """A test reached for the network. Not an OSError, so that code which tolerates a broken network still fails."""


class NetworkGuard:
    """Refuses to talk to any machine but this one, and remembers who tried.

    Attributes:
        attempts: what was refused since the last `clear`, one "what: where" each.
    """

    def __init__(self) -> None:
        self.attempts: list[str] = []
        self._originals: dict[tuple[Any, str], Any] = {}

    def install(self) -> None:
        """Put the guard in front of the socket module; harmless when it stands already."""
        if self._originals:
            return
        for name in ("connect", "connect_ex"):
            self._wrap(socket.socket, name, lambda self_, address, *_: _address_host(self_, address))
        self._wrap(socket.socket, "sendto", lambda self_, *args: _address_host(self_, args[-1]))
        for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
            self._wrap(socket, name, lambda host, *_: host)

    def remove(self) -> None:
        """Take the guard down again."""
        for (owner, name), original in self._originals.items():
            setattr(owner, name, original)
        self._originals.clear()

    def clear(self) -> list[str]:
        """Forget the attempts and give them back."""
        attempts, self.attempts = self.attempts, []
        return attempts

    def _wrap(self, owner: Any, name: str, host_of: Callable[..., Any]) -> None:
        original = getattr(owner, name)

        def guarded(*args: Any, **kwargs: Any) -> Any:
            host = host_of(*args) if args else kwargs.get("host")
            if not is_local(host):
                self.attempts.append(f"{name}: {host}")
                raise NetworkBlockedError(f"{name} to {host!r}: tests run without network.")
            return original(*args, **kwargs)

        self._originals[owner, name] = original
        setattr(owner, name, guarded)


def _address_host(sock: socket.socket, address: Any) -> Any:
    """The host of a socket address; None (this machine) for unix sockets."""
    return address[0] if sock.family in (socket.AF_INET, socket.AF_INET6) else None


def is_local(host: Any) -> bool:
    """Whether ``host`` (a name, an address, or nothing) is this machine."""
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(str(host).split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


GUARD = NetworkGuard()
GUARD.install()


@pytest.fixture(autouse=True)
def network_guard() -> Iterator[NetworkGuard]:
    """Fail the test that reached for the network; a test of the guard itself clears ``attempts``."""
    GUARD.clear()
    yield GUARD
    attempts = GUARD.clear()
    assert not attempts, f"this test reached for the network: {attempts}"


@pytest.fixture(autouse=True)
def own_accelerator() -> Iterator[None]:
    """Accelerate keeps one state a process, precision included: the next test may train in another precision."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder shared/data beside the checkout (test objects and pictures), or skip."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: this test reads objects and pictures that are not part of the repository")
    return folder
