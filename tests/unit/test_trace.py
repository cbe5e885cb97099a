"""`trilift.trace`: what a trace holds, and when there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from multiview.errors import ImageError, OutputError
from trilift.trace import both, traced


def spans(path: Path) -> dict[str, dict[str, float]]:
    """{name: first complete event} of a trace."""
    events = json.loads(path.read_text("utf-8"))["traceEvents"]
    return {e["name"]: e for e in reversed(events) if e.get("ph") == "X"}


def test_operations_lie_within_their_stage(tmp_path: Path) -> None:
    heard: list[str] = []
    with traced(tmp_path / "trace.json") as tell:
        listener = both(heard.append, tell)
        listener("load")
        torch.ones(4, 4) @ torch.ones(4, 4)
        listener("write")
        torch.ones(3).cumsum(0)
    assert heard == ["load", "write"]
    found = spans(tmp_path / "trace.json")
    for operation, inside, outside in (("aten::mm", "load", "write"), ("aten::cumsum", "write", "load")):
        start = found[operation]["ts"]
        span, other = found[f"stage: {inside}"], found[f"stage: {outside}"]
        assert span["ts"] <= start < span["ts"] + span["dur"]
        assert not other["ts"] <= start < other["ts"] + other["dur"]


def test_no_file_is_asked_for_and_none_is_written(tmp_path: Path) -> None:
    with traced(None) as tell:
        both(None, tell)("load")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="could not be written"), traced(tmp_path / "file" / "trace.json"):
        pass
    with pytest.raises(ImageError, match="of the body"), traced(tmp_path / "trace.json"):
        raise ImageError("of the body")
    assert "traceEvents" in (tmp_path / "trace.json").read_text("utf-8")  # what failed is worth looking at, too
