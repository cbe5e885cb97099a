"""Scores of one answer, what all of them say together, and how that is told: metrics.json, a table, contact sheets."""

from __future__ import annotations

import json
import math
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
from lrm.metrics import TrueShape, bootstrap_intervals, placed, psnr, score_nothing, score_shape, ssim
from lrm.volume import render
from multiview.cameras import Cameras
from multiview.color import bytes_from_unit
from multiview.files import write_json_whole, written_whole

from .baselines import TRIVIAL_ANSWERS, Bytes
from .protocol import EvalProtocol, Trivial

OURS = "ours"
METRICS_FILE, SHEET_FILE = "metrics.json", "sheet.png"
FORMAT = 1
_INPUT_VIEW_SIZE = 128  # pixels per side of the volume-rendered input view
_VERSIONS = ("torch", "numpy", "scipy", "libigl", "PyMCubes", "pillow")

_WORDS = {
    "pictures": "unlit vertex colours over nothing (input, RGBA) or white (novel views); supersampled rasteriser",
    "placed": "both meshes centred on the bounding box, longest side 2; truth turned by minus the azimuth",
    "aligned": "best of yaws x pitches by two-sided mean distance, then rigid ICP with pairs both ways; no scale",
    "chamfer": "un-squared, mean of both directions; a missing mesh counts as 2",
    "interval": "95 %, percentile bootstrap over objects, 10,000 resamples, seed 0",
    "seed": "crc32 of the object's id",
}


@dataclass(eq=False)
class Scored:
    """One object's row, and the pictures that the contact sheet shows."""

    row: dict[str, Any]
    picture: Bytes
    truth_views: Tensor
    our_views: Tensor | None
    failures: list[dict[str, str]]


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


def score_answer(
    mesh: Mesh, truth: TrueShape, truth_views: Tensor, protocol: EvalProtocol
) -> tuple[dict[str, float], Tensor]:
    """All metrics of one answer, and its novel views."""
    scores = score_shape(mesh, truth)
    views = protocol.novel_views(placed(mesh))
    return scores | _picture_scores(views, truth_views), views


def score_failure(truth_views: Tensor, protocol: EvalProtocol) -> tuple[dict[str, float], Tensor]:
    """The same of an answer that is missing: no shape, white pictures."""
    views = torch.ones_like(truth_views)
    return score_nothing(protocol.shape) | _picture_scores(views, truth_views), views


def _picture_scores(views: Tensor, truth_views: Tensor) -> dict[str, float]:
    return {"psnr": float(psnr(views, truth_views).mean()), "ssim": float(ssim(views, truth_views).mean())}


def input_psnr(lifted: Lifted) -> float:
    """PSNR in dB of the volume-rendered input view against the cut-out, both over white, 128 px."""
    size = _INPUT_VIEW_SIZE
    rgba = lifted.cutout.to_tensor(size)
    with torch.no_grad():
        seen = render(lifted.field, lifted.camera, size, size).images.float().cpu()
    return float(psnr(seen.clamp(0, 1), (rgba[:3] * rgba[3:] + 1 - rgba[3:])[None]))


def white_psnr(picture: Bytes) -> float:
    """PSNR in dB of plain white against a picture (S, S, 4) uint8 over white: `input_psnr` of a missing answer."""
    rgba = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)
    over_white = (rgba[:3] * rgba[3:] + 1 - rgba[3:])[None]
    return float(psnr(torch.ones_like(over_white), over_white))


# What the rows say together.


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means and intervals by answer, over all objects and over watertight ones, and our lead over trivial answers.

    Args:
        rows: at least one; the same answers in each.
    """
    closed = [row for row in rows if row["watertight"]]
    names = [name for name in (OURS, *TRIVIAL_ANSWERS) if name in rows[0]]
    return {
        "count": len(rows),
        "mean": {name: _means(rows, name) for name in names},
        "interval_95": {name: _intervals(rows, name) for name in names},
        "count_watertight": len(closed),
        "mean_watertight": {name: _means(closed, name) for name in names} if closed else {},
        "interval_95_watertight": {name: _intervals(closed, name) for name in names} if closed else {},
        "lead": {key: lead for key in ("iou", "fscore_0.1") if (lead := _lead(rows, names, key))},
    }


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """(N, K) numbers of one answer, keys in the order of the first row."""
    return np.array([[row[name][key] for key in rows[0][name]] for row in rows], np.float64)


def _means(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    return dict(zip(rows[0][name], _values(rows, name).mean(0).tolist(), strict=True))


def _intervals(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[float]]:
    return dict(zip(rows[0][name], bootstrap_intervals(_values(rows, name)).tolist(), strict=True))


def _lead(rows: Sequence[Mapping[str, Any]], names: Sequence[str], key: str) -> dict[str, Any] | None:
    """By how much ours is above the best trivial answer, object by object."""
    trivial = [name for name in names if name != OURS]
    if OURS not in names or not trivial or key not in rows[0][OURS]:
        return None
    best = max(trivial, key=lambda name: _means(rows, name)[key])
    difference = np.array([[row[OURS][key] - row[best][key]] for row in rows])
    interval = bootstrap_intervals(difference)[0].tolist()
    return {"over": best, "by": float(difference.mean()), "interval_95": interval}


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


# Contact sheets.

_THUMB, _CAPTION, _COLUMNS, _ROWS = 96, 14, 3, 12
_SHEET_VIEWS = (0, 2)  # of the novel views: front right and back left


def write_sheets(scored: Sequence[Scored], out: Path) -> list[str]:
    """Draw input, ours and truth (two novel views each) of every object, the best IoU first; gives the file names."""
    ordered = sorted(scored, key=lambda s: -s.row[OURS]["iou"])
    per_page, names = _COLUMNS * _ROWS, []
    for stale in out.glob("sheet-*.png"):  # of an earlier, longer run
        stale.unlink()
    for start in range(0, len(ordered), per_page):
        page = start // per_page + 1
        name = SHEET_FILE if page == 1 else SHEET_FILE.replace(".", f"-{page}.")
        write_picture(_sheet(ordered[start : start + per_page]), out / name)
        names.append(name)
    return names


def _sheet(scored: Sequence[Scored]) -> Bytes:
    """One page: cells of input | ours, ours | truth, truth with a caption, filled row by row."""
    from PIL import Image, ImageDraw

    width, height = 5 * _THUMB + 8, _THUMB + _CAPTION
    rows = math.ceil(len(scored) / _COLUMNS)
    page = Image.new("RGB", (min(len(scored), _COLUMNS) * width, rows * height), "white")
    draw = ImageDraw.Draw(page)
    for index, one in enumerate(scored):
        x, y = index % _COLUMNS * width, index // _COLUMNS * height
        caption = f"{one.row[OURS]['iou']:.3f}  {one.row['id']}"
        draw.text((x + 2, y + 1), caption.encode("ascii", "replace").decode(), fill="black")
        for column, picture in enumerate(_thumbs(one)):
            page.paste(picture, (x + column * _THUMB + (column + 1) // 2 * 3, y + _CAPTION))
    return np.asarray(page)


def _thumbs(one: Scored) -> list[Any]:
    """Five small Pillow pictures: the input over grey, then two views of ours and two of the truth."""
    from PIL import Image

    rgba = Image.fromarray(one.picture)
    grey = Image.new("RGBA", rgba.size, (225, 225, 225, 255))
    pictures = [Image.alpha_composite(grey, rgba).convert("RGB")]
    for views in (one.truth_views if one.our_views is None else one.our_views, one.truth_views):
        for view in _SHEET_VIEWS:
            pixels = bytes_from_unit(views[view % len(views)].permute(1, 2, 0).numpy())
            pictures.append(Image.fromarray(np.ascontiguousarray(pixels)))
    return [picture.resize((_THUMB, _THUMB), Image.Resampling.BOX) for picture in pictures]


def write_picture(picture: Bytes, path: Path) -> None:
    """Write a picture (H, W, 3 or 4) uint8 as PNG, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    from PIL import Image

    with written_whole(path) as aside:
        Image.fromarray(np.ascontiguousarray(picture)).save(aside, "PNG")
