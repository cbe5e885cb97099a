"""Work in further processes: forks that inherit all that is imported, and two that train as one."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable

import torch


def in_child(function: Callable[[], object], environment: dict[str, str] | None = None) -> int:
    """Run something in a fork of this process, whose imports are done; gives the child's number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        from accelerate.state import AcceleratorState

        os.setpgid(0, 0)
        os.environ.update(environment or {})
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.set_num_threads(1)
        function()
        status = 0
    except BaseException:
        traceback.print_exc()  # nobody else would
    finally:
        sys.stderr.flush()
        os._exit(status)


def finished(child: int) -> int:
    """Wait for a child of `in_child`; gives its exit status, or less than 0 for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_two_processes(function: Callable[[], object]) -> list[int]:
    """Run something in both processes of one training run on this machine's CPU; gives their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        environment = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        children.append(in_child(function, environment))
    return [finished(child) for child in children]
