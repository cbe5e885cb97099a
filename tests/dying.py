"""Work whose process dies, for tests of what is done about it; a module of its own, so that new processes find it."""

from __future__ import annotations

import os

from train.renderset import Job


def work(job: Job) -> str | None:
    """Skip ``broken``, end the process at ``dies``, else succeed."""
    if job.name == "dies":
        os._exit(9)
    return "it is broken" if job.name == "broken" else None
