"""Scores of one answer, what all of them say together, and how that is told: metrics.json and a table."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrm.field import Field
from lrm.mesh import Mesh
from lrm.metrics import (
    Bools,
    TrueShape,
    bootstrap_intervals,
    overlap,
    placed,
    psnr,
    score_nothing,
    score_shape_and_volume,
    ssim,
)
from lrm.volume import render
from multiview.cameras import Cameras
from multiview.files import write_json_whole

from .baselines import TRIVIAL_ANSWERS, Bytes
from .protocol import EvalProtocol, Trivial

OURS, SHUFFLED = "ours", "shuffled"
METRICS_FILE = "metrics.json"
FORMAT = 1
_INPUT_VIEW_SIZE = 128  # pixels per side of the volume-rendered input view
_VERSIONS = ("torch", "numpy", "scipy", "libigl", "PyMCubes", "pillow")

_WORDS = {
    "pictures": "unlit vertex colours over nothing (input, RGBA) or white (novel views); supersampled rasteriser",
    "placed": "both meshes centred on the bounding box, longest side 2; truth turned by minus the azimuth",
    "aligned": "best of yaws x pitches by two-sided mean distance, then rigid ICP with pairs both ways; no scale",
    "chamfer": "un-squared, mean of both directions; a missing mesh counts as 2",
    "interval": "95 %, percentile bootstrap over objects, 10,000 resamples, seed 0",
    "shuffled": "iou of our answer to another object's picture: the one half the list further on",
    "seed": "crc32 of the object's id",
}


@dataclass(frozen=True, eq=False)
class Scored:
    """What is kept of one object, small enough to be sent from process to process.

    Attributes:
        row: for metrics.json.
        thumbs: five small pictures (T, T, 3) uint8 for the contact sheet: input, two views of ours, two of the truth.
        truth, ours: filled cells of the grid, packed to bits; ours is None when the model was not asked.
        failures: answers that failed, and why.
    """

    row: dict[str, Any]
    thumbs: list[Bytes]
    truth: Bytes
    ours: Bytes | None
    failures: list[dict[str, str]]


@dataclass(frozen=True, eq=False)
class Marked:
    """One answer's marks, its novel views (V, 3, S, S), and the filled cells (G, G, G) of its shape."""

    scores: dict[str, float]
    views: Tensor
    volume: Bools


# One answer.


class LiftedCutout(Protocol):
    """The part of `trilift.foreground.Cutout` that is used here."""

    def to_tensor(self, size: int) -> Tensor:
        """(4, size, size) straight-alpha picture in [0, 1]."""
        ...


class Lifted(Protocol):
    """The part of `trilift.asset.Asset` that is used here."""

    @property
    def mesh(self) -> Mesh: ...
    @property
    def field(self) -> Field: ...
    @property
    def camera(self) -> Cameras: ...
    @property
    def cutout(self) -> LiftedCutout: ...


def score_answer(mesh: Mesh, truth: TrueShape, truth_views: Tensor, protocol: EvalProtocol) -> Marked:
    """All metrics of one answer."""
    scores, volume = score_shape_and_volume(mesh, truth)
    views = protocol.novel_views(placed(mesh))
    return Marked(scores | _picture_scores(views, truth_views), views, volume)


def score_failure(truth: TrueShape, truth_views: Tensor, protocol: EvalProtocol) -> Marked:
    """The same of an answer that is missing: no shape, white pictures."""
    views = torch.ones_like(truth_views)
    scores = score_nothing(protocol.shape) | _picture_scores(views, truth_views)
    return Marked(scores, views, np.zeros_like(truth.occupied))


def _picture_scores(views: Tensor, truth_views: Tensor) -> dict[str, float]:
    return {"psnr": float(psnr(views, truth_views).mean()), "ssim": float(ssim(views, truth_views).mean())}


def input_psnr(lifted: Lifted) -> float:
    """PSNR in dB of the volume-rendered input view against the cut-out, both over white, 128 px."""
    size = _INPUT_VIEW_SIZE
    rgba = lifted.cutout.to_tensor(size)
    with torch.no_grad():
        seen = render(lifted.field, lifted.camera, size, size).images.float().cpu()
    return float(psnr(seen.clamp(0, 1), (rgba[:3] * rgba[3:] + 1 - rgba[3:])[None]))


def own_scores(lifted: Lifted) -> dict[str, float]:
    """What the model itself says about its answer: the numbers among the checks that asset.json has."""
    record = getattr(lifted, "record", {})
    checks = record.get("checks", {})
    return {f"own_{key}": float(value) for key, value in checks.items() if isinstance(value, float)}


def white_psnr(picture: Bytes) -> float:
    """PSNR in dB of plain white against a picture (S, S, 4) uint8 over white: `input_psnr` of a missing answer."""
    rgba = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)
    over_white = (rgba[:3] * rgba[3:] + 1 - rgba[3:])[None]
    return float(psnr(torch.ones_like(over_white), over_white))


# What the rows say together.


def add_shuffled(scored: Sequence[Scored]) -> None:
    """Write into each row what our answer to another object's picture is worth: ``shuffled``, its ``iou``.

    The other object is the one half the list further on, so each picture is used once and none meets its own object. A
    model whose answer depends on the picture must lose by this. Nothing is done for fewer than two objects, or without
    ours.
    """
    if len(scored) < 2 or any(one.ours is None for one in scored):
        return
    for index, one in enumerate(scored):
        other = scored[(index + len(scored) // 2) % len(scored)]
        if other.ours is not None:
            iou = overlap(np.unpackbits(other.ours).view(bool), np.unpackbits(one.truth).view(bool))
            one.row[SHUFFLED] = {"iou": iou, "picture": other.row["id"]}


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means and intervals by answer, over all objects and over watertight ones, and our lead over trivial answers.

    Args:
        rows: at least one; the same answers in each.
    """
    closed = [row for row in rows if row["watertight"]]
    names = [name for name in (OURS, *TRIVIAL_ANSWERS, SHUFFLED) if name in rows[0]]
    return {
        "count": len(rows),
        "mean": {name: _means(rows, name) for name in names},
        "interval_95": {name: _intervals(rows, name) for name in names},
        "count_watertight": len(closed),
        "mean_watertight": {name: _means(closed, name) for name in names} if closed else {},
        "interval_95_watertight": {name: _intervals(closed, name) for name in names} if closed else {},
        "lead": {key: lead for key in ("iou", "fscore_0.1") if (lead := _lead(rows, names, key))},
        "shuffled_drop": _difference(rows, SHUFFLED, "iou") if SHUFFLED in names else {},
        "worth": _worth(rows) if OURS in names else {},
    }


def _worth(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How well each of our own scores orders the objects as the true IoU does: Spearman's rank correlation.

    Scores that an answer lacks, as those of failed ones do, count as 0; one that is the same for all has no order.
    """
    from scipy.stats import spearmanr

    keys = sorted({key for row in rows for key in row[OURS] if key.startswith("own_")})
    truth = np.array([row[OURS]["iou"] for row in rows])
    found = {}
    for key in keys:
        told = np.array([row[OURS].get(key, 0.0) for row in rows])
        if len(rows) > 2 and np.ptp(told) > 0 and np.ptp(truth) > 0:
            found[key.removeprefix("own_")] = float(spearmanr(told, truth).statistic)
    return found


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """(N, K) numbers of one answer, keys as `_keys` gives them."""
    return np.array([[row[name][key] for key in _keys(rows, name)] for row in rows], np.float64)


def _keys(rows: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """The numbers in the first row of one answer, in its order."""
    return [key for key, value in rows[0][name].items() if not isinstance(value, str) and not key.startswith("own_")]


def _means(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    return dict(zip(_keys(rows, name), _values(rows, name).mean(0).tolist(), strict=True))


def _intervals(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[float]]:
    return dict(zip(_keys(rows, name), bootstrap_intervals(_values(rows, name)).tolist(), strict=True))


def _lead(rows: Sequence[Mapping[str, Any]], names: Sequence[str], key: str) -> dict[str, Any] | None:
    """By how much ours is above the best trivial answer, object by object."""
    trivial = [name for name in names if name in TRIVIAL_ANSWERS]
    if OURS not in names or not trivial or key not in rows[0][OURS]:
        return None
    best = max(trivial, key=lambda name: _means(rows, name)[key])
    return {"over": best} | _difference(rows, best, key)


def _difference(rows: Sequence[Mapping[str, Any]], other: str, key: str) -> dict[str, Any]:
    """By how much ours is above another answer, object by object, with its interval."""
    difference = np.array([[row[OURS][key] - row[other][key]] for row in rows])
    return {"by": float(difference.mean()), "interval_95": bootstrap_intervals(difference)[0].tolist()}


def table(record: Mapping[str, Any]) -> str:
    """The means of metrics.json as a short table for people."""
    keys = [key for key in ("iou", "fscore_0.1", "fscore_0.2", "fscore_0.5", "chamfer", "iou_aligned",
                            "fscore_0.1_aligned", "psnr", "ssim", "input_psnr", "seconds")
            if any(key in means for means in record["mean"].values())]  # fmt: skip
    lines = [["", *keys]]
    for name, means in record["mean"].items():
        low, high = record["interval_95"][name]["iou"]
        cells = [f"{means[key]:.3f}" if key in means else "-" for key in keys]
        lines.append([name, f"{cells[0]} [{low:.3f}, {high:.3f}]", *cells[1:]])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    for key, lead in record["lead"].items():
        low, high = lead["interval_95"]
        rows.append(f"{key}: ours is {lead['by']:+.3f} [{low:+.3f}, {high:+.3f}] from {lead['over']}")
    if drop := record["shuffled_drop"]:
        low, high = drop["interval_95"]
        rows.append(f"iou: ours is {drop['by']:+.3f} [{low:+.3f}, {high:+.3f}] from answers to other objects' pictures")
    rows += [f"{key}: rank correlation {value:.2f} with the true IoU" for key, value in record["worth"].items()]
    return "\n".join(rows)


# metrics.json.


def write_metrics(
    scored: Sequence[Scored],
    skipped: Sequence[Mapping[str, str]],
    trivial: Trivial,
    protocol: EvalProtocol,
    out: Path,
    *,
    data: Path,
    model: Mapping[str, Any],
    sheets: Sequence[str],
    began: float,
    fitted: float,
) -> dict[str, Any]:
    """Write OUT/metrics.json and give what it holds.

    Args:
        scored: at least one object.
        skipped: ``id`` and ``error`` of each truth that could not be used.
        data: folder of the true meshes, as the user gave it.
        model: what to write down about the model, JSON values.
        sheets: file names of the contact sheets.
        began, fitted: `time.perf_counter` at the start of the run, and when the trivial answers were ready.

    Raises:
        OutputError: the file cannot be written.
    """
    record = {
        "format": FORMAT, "data": str(data), "model": dict(model), "protocol": asdict(protocol) | _WORDS,
        **summarize([s.row for s in scored]),
        "left_out": dict(trivial.left_out),
        "constants": _told_constants(trivial),
        "failures": [failure for s in scored for failure in s.failures], "skipped": list(skipped),
        "sheets": list(sheets), "versions": versions(),
        "seconds": {
            "fit": round(fitted - began, 1), "objects": round(time.perf_counter() - fitted, 1),
            "total": round(time.perf_counter() - began, 1),
        },
        "objects": [s.row for s in scored],
    }  # fmt: skip
    write_json_whole(out / METRICS_FILE, record)
    written: dict[str, Any] = json.loads((out / METRICS_FILE).read_text("utf-8"))
    return written


def _told_constants(trivial: Trivial) -> dict[str, Any]:
    """The fitted constants without the mean shape's volume, which constants.json has."""
    if trivial.constants is None:
        return {}
    return {key: value for key, value in trivial.constants.as_json().items() if key != "mean_shape"}


def versions() -> dict[str, str | None]:
    """Versions of what decides the numbers; None when a package is not installed."""
    from trilift import __version__

    found: dict[str, str | None] = {"trilift": __version__, "python": sys.version.split()[0]}
    for package in _VERSIONS:
        try:
            found[package.lower()] = version(package)
        except PackageNotFoundError:
            found[package.lower()] = None
    return found
