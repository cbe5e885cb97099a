"""A trace of a lift for Chrome's or Perfetto's viewer: every operation of torch below the stage that it belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from multiview.files import written_whole

from .progress import OnStage


@contextmanager
def traced(path: Path | None) -> Iterator[OnStage]:
    """Record what runs inside, and write it when that is over, whether it failed or not.

    Args:
        path: a file to write, JSON, with ``.gz`` at the end compressed; None records nothing.

    Yields:
        What wants to be told when a stage begins; stages are the spans under which the operations lie.

    Raises:
        OutputError: the file cannot be written.
    """
    if path is None:
        yield lambda name: None
        return
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.accelerator.is_available() else [])]
    recorded = profile(activities=kinds)

    def write() -> None:
        with written_whole(path) as aside:
            recorded.export_chrome_trace(str(aside))

    try:
        with recorded, ExitStack() as stage:

            def tell(name: str) -> None:
                stage.close()  # a stage ends where the next one begins
                stage.enter_context(record_function(f"stage: {name}"))

            yield tell
    except BaseException:
        with suppress(Exception):  # what went wrong inside is what must be heard
            write()
        raise
    write()


def both(first: OnStage | None, second: OnStage) -> OnStage:
    """One listener that tells two."""

    def tell(name: str) -> None:
        if first is not None:
            first(name)
        second(name)

    return tell
