"""Scores of one answer, what all of them say together, and how that is told: metrics.json and a table."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrm.field import Field
from lrm.lpips import load_lpips
from lrm.mesh import Mesh
from lrm.metrics import Bools, TrueShape, bootstrap_intervals, overlap, placed, psnr, ssim
from lrm.volume import render
from multiview.cameras import Cameras
from multiview.files import write_json_whole

from .baselines import TRIVIAL_ANSWERS, Bytes
from .protocol import EvalProtocol, Trivial
from .protocols import HEADLINES, WORDS

OURS, PREDICTIONS, SHUFFLED = "ours", "predictions", "shuffled"
MAIN_ANSWERS = (OURS, PREDICTIONS)
METRICS_FILE = "metrics.json"
FORMAT = 1
_INPUT_VIEW_SIZE = 128  # pixels per side of the volume-rendered input view
_VERSIONS = ("torch", "numpy", "scipy", "libigl", "PyMCubes", "pillow")

_WORDS = {
    "pictures": "unlit vertex colours over nothing (input, RGBA) or white (novel views); supersampled rasteriser",
    "placed": "both meshes centred on the bounding box, longest side 2; truth turned by minus the azimuth",
    "aligned": "best of yaws x pitches by two-sided mean distance, then rigid ICP with pairs both ways; no scale",
    "interval": "95 %, percentile bootstrap over objects, 10,000 resamples, seed 0",
    "shuffled": "iou of the main answer to another object's picture: the one half the list further on",
    "seed": "crc32 of the object's id",
}


@dataclass(frozen=True, eq=False)
class Scored:
    """What is kept of one object, small enough to be sent from process to process.

    Attributes:
        row: for metrics.json.
        thumbs: five small pictures (T, T, 3) uint8 for the contact sheet: input, two views of ours, two of the truth.
        truth, ours: filled cells of the grid, packed to bits, of the truth and of the main answer (the model's, or the
            predictions); ours is None when there is none.
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
    scores, volume = protocol.compare(mesh, truth)
    views = protocol.novel_views(placed(mesh))
    return Marked(scores | _picture_scores(views, truth_views, protocol), views, volume)


def score_failure(truth: TrueShape, truth_views: Tensor, protocol: EvalProtocol) -> Marked:
    """The same of an answer that is missing: no shape, white pictures."""
    views = torch.ones_like(truth_views)
    scores = protocol.compare_nothing() | _picture_scores(views, truth_views, protocol)
    return Marked(scores, views, np.zeros_like(truth.occupied))


def _picture_scores(views: Tensor, truth_views: Tensor, protocol: EvalProtocol) -> dict[str, float]:
    scores = {"psnr": float(psnr(views, truth_views).mean()), "ssim": float(ssim(views, truth_views).mean())}
    if protocol.lpips is not None:
        scores["lpips"] = float(load_lpips(protocol.lpips)(views, truth_views).mean())
    return scores


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
    """Write into each row what the main answer to another object's picture is worth: ``shuffled``, its ``iou``.

    The other object is the one half the list further on, so each picture is used once and none meets its own object. A
    model whose answer depends on the picture must lose by this. Nothing is done for fewer than two objects, or without
    a main answer.
    """
    if len(scored) < 2 or any(one.ours is None for one in scored):
        return
    for index, one in enumerate(scored):
        other = scored[(index + len(scored) // 2) % len(scored)]
        if other.ours is not None:
            iou = overlap(np.unpackbits(other.ours).view(bool), np.unpackbits(one.truth).view(bool))
            one.row[SHUFFLED] = {"iou": iou, "picture": other.row["id"]}


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means and intervals by answer, over all objects and over watertight ones, and the main answer's lead.

    With predictions also over the objects that have one (``_answered``): what the others' marks of nothing hide.

    Args:
        rows: at least one; the same answers in each; ``failed`` names those that count as nothing.
    """
    closed = [row for row in rows if row["watertight"]]
    names = [name for name in (*MAIN_ANSWERS, *TRIVIAL_ANSWERS, SHUFFLED) if name in rows[0]]
    main = main_answer(names)
    return {
        "main": main,
        "count": len(rows),
        "mean": {name: _means(rows, name) for name in names},
        "interval_95": {name: _intervals(rows, name) for name in names},
        "count_watertight": len(closed),
        "mean_watertight": {name: _means(closed, name) for name in names} if closed else {},
        "interval_95_watertight": {name: _intervals(closed, name) for name in names} if closed else {},
        "lead": {key: lead for key in ("iou", "fscore_0.1") if (lead := _lead(rows, names, main, key))},
        "shuffled_drop": _difference(rows, main, SHUFFLED, "iou") if SHUFFLED in names and main else {},
        "worth": _worth(rows) if OURS in names else {},
    } | (_answered(rows, names) if PREDICTIONS in names else {})


def main_answer(names: Iterable[str]) -> str | None:
    """The answer that sheets, leads and shuffled pictures are about: the model's if it was asked, else predictions."""
    return next((name for name in MAIN_ANSWERS if name in set(names)), None)


def _answered(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """The means over the objects that have a prediction that can be used; and how predictions compare with ours."""
    there = [row for row in rows if PREDICTIONS not in row.get("failed", ())]
    told = {
        "count_answered": len(there),
        "mean_answered": {name: _means(there, name) for name in names} if there else {},
        "interval_95_answered": {name: _intervals(there, name) for name in names} if there else {},
    }
    if OURS in names:
        keys = [key for key in _keys(rows, PREDICTIONS) if key in rows[0][OURS]]
        told["predictions_less_ours"] = {key: _difference(rows, PREDICTIONS, OURS, key) for key in keys}
    return told


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


def _lead(rows: Sequence[Mapping[str, Any]], names: Sequence[str], main: str | None, key: str) -> dict[str, Any] | None:
    """By how much the main answer is above the best trivial answer, object by object."""
    trivial = [name for name in names if name in TRIVIAL_ANSWERS]
    if main is None or not trivial or key not in rows[0][main]:
        return None
    best = max(trivial, key=lambda name: _means(rows, name)[key])
    return {"over": best} | _difference(rows, main, best, key)


def _difference(rows: Sequence[Mapping[str, Any]], one: str, other: str, key: str) -> dict[str, Any]:
    """By how much one answer is above another, object by object, with its interval."""
    difference = np.array([[row[one][key] - row[other][key]] for row in rows])
    return {"by": float(difference.mean()), "interval_95": bootstrap_intervals(difference)[0].tolist()}


def table(record: Mapping[str, Any]) -> str:
    """The means of metrics.json as a short table for people."""
    lines = _table_lines(record, "mean", "interval_95")
    main = record.get("main") or OURS
    for key, lead in record["lead"].items():
        lines.append(f"{key}: {_told_difference(main, lead)} from {lead['over']}")
    if drop := record["shuffled_drop"]:
        lines.append(f"iou: {_told_difference(main, drop)} from answers to other objects' pictures")
    for key in ("iou", "chamfer", "chamfer_aligned"):
        if key in record.get("predictions_less_ours", {}):
            lines.append(f"{key}: {_told_difference(PREDICTIONS, record['predictions_less_ours'][key])} from ours")
    lines += [f"{key}: rank correlation {value:.2f} with the true IoU" for key, value in record["worth"].items()]
    if 0 < record.get("count_answered", record["count"]) < record["count"]:
        lines += [f"over the {record['count_answered']} of {record['count']} objects that have a prediction:"]
        lines += _table_lines(record, "mean_answered", "interval_95_answered")
    return "\n".join(lines)


_COLUMNS = ("iou", "fscore_0.1", "fscore_0.2", "fscore_0.5", "chamfer", "iou_aligned", "fscore_0.1_aligned",
            "psnr", "ssim", "lpips", "input_psnr", "seconds")  # fmt: skip


def _table_lines(record: Mapping[str, Any], means: str, intervals: str) -> list[str]:
    """A line for each answer; the protocol's own keys first, IoU with its interval."""
    own = HEADLINES.get(record.get("protocol", {}).get("name", OURS), ())
    columns = _COLUMNS if own == HEADLINES["ours"] else (*own, *(key for key in _COLUMNS if key not in own))
    keys = [key for key in columns if any(key in values for values in record[means].values())]
    lines = [["", *keys]]
    for name, values in record[means].items():
        cells = [f"{values[key]:.3f}" if key in values else "-" for key in keys]
        if keys and keys[0] in values:
            low, high = record[intervals][name][keys[0]]
            cells[0] += f" [{low:.3f}, {high:.3f}]"
        lines.append([name, *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _told_difference(name: str, difference: Mapping[str, Any]) -> str:
    low, high = difference["interval_95"]
    return f"{name} {'are' if name == PREDICTIONS else 'is'} {difference['by']:+.3f} [{low:+.3f}, {high:+.3f}]"


# metrics.json.


def write_metrics(
    scored: Sequence[Scored],
    skipped: Sequence[Mapping[str, str]],
    trivial: Trivial,
    protocol: EvalProtocol,
    out: Path,
    *,
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    predictions: Mapping[str, Any] | None,
    sheets: Sequence[str],
    began: float,
    fitted: float,
) -> dict[str, Any]:
    """Write OUT/metrics.json and give what it holds.

    Args:
        scored: at least one object.
        skipped: ``id`` and ``error`` of each truth that could not be used.
        data: what to write down about the true objects, JSON values; ``data`` is their folder, as the user gave it.
        model: what to write down about the model, JSON values.
        predictions: likewise, about another program's meshes; None where there are none.
        sheets: file names of the contact sheets.
        began, fitted: `time.perf_counter` at the start of the run, and when the trivial answers were ready.

    Raises:
        OutputError: the file cannot be written.
    """
    told = {"headline": list(HEADLINES.get(protocol.name, ()))} | _WORDS | WORDS.get(protocol.name, {})
    record = {
        "format": FORMAT, **data, "model": dict(model), "protocol": asdict(protocol) | told,
        **({} if predictions is None else {"predictions": dict(predictions)}),
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
