"""Contact sheets of an evaluation: all objects small, the best, median and worst ten large."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from lrm.meshfile import read_mesh
from lrm.metrics import placed
from lrm.raster import render_mesh
from multiview.color import bytes_from_unit
from multiview.files import written_whole

from .baselines import Bytes
from .protocol import EvalProtocol
from .scorecard import OURS, Scored, main_answer

SHEET_FILE = "sheet.png"
_THUMB, _CAPTION, _COLUMNS, _ROWS = 96, 14, 3, 12
_SHEET_VIEWS = (0, 2)  # of the novel views: front right and back left
_CHOSEN = 10  # objects on each of the sheets of the best, the median and the worst
_CHOSEN_FILES = ("best.png", "median.png", "worst.png")
_CELL, _HEAD = 228, 34  # pixels: 7 cells a row make 1596; a row's line of text
_CHOSEN_FOV_DEG = 30.0  # closer than the novel views, which have room for every object's diagonal
_CHOSEN_AZIMUTHS = {"front": 0.0, "side": 90.0, "behind": 180.0}  # from the input camera


def write_sheets(scored: Sequence[Scored], out: Path) -> list[str]:
    """Draw input, main answer and truth (two novel views each) of all objects, best IoU first; gives the file names."""
    ordered = sorted(scored, key=lambda s: -s.row[_main(s)]["iou"])
    per_page, names = _COLUMNS * _ROWS, []
    for stale in out.glob("sheet-*.png"):  # of an earlier, longer run
        stale.unlink()
    for start in range(0, len(ordered), per_page):
        page = start // per_page + 1
        name = SHEET_FILE if page == 1 else SHEET_FILE.replace(".", f"-{page}.")
        write_picture(_sheet(ordered[start : start + per_page]), out / name)
        names.append(name)
    return names


def _main(one: Scored) -> str:
    """The answer that the sheets show."""
    return main_answer(one.row) or OURS


def _sheet(scored: Sequence[Scored]) -> Bytes:
    """One page: cells of input | ours, ours | truth, truth with a caption, filled row by row."""
    from PIL import Image, ImageDraw

    width, height = 5 * _THUMB + 8, _THUMB + _CAPTION
    rows = math.ceil(len(scored) / _COLUMNS)
    page = Image.new("RGB", (min(len(scored), _COLUMNS) * width, rows * height), "white")
    draw = ImageDraw.Draw(page)
    for index, one in enumerate(scored):
        x, y = index % _COLUMNS * width, index // _COLUMNS * height
        draw.text((x + 2, y + 1), _caption(one), fill="black")
        for column, picture in enumerate(one.thumbs):
            page.paste(Image.fromarray(picture), (x + column * _THUMB + (column + 1) // 2 * 3, y + _CAPTION))
    return np.asarray(page)


def _caption(one: Scored) -> str:
    """IoU and id, in letters that Pillow's own font has."""
    return f"{one.row[_main(one)]['iou']:.3f}  {one.row['id']}".encode("ascii", "replace").decode()


def thumbs(picture: Bytes, our_views: Tensor | None, truth_views: Tensor) -> list[Bytes]:
    """`Scored.thumbs`: the input over grey, two views of ours (of the truth when there are none), two of the truth.

    Args:
        picture: (S, S, 4) uint8.
        our_views, truth_views: (V, 3, S, S) in [0, 1].
    """
    from PIL import Image

    pictures = [_over_grey(picture)]
    for views in (truth_views if our_views is None else our_views, truth_views):
        pictures += [_pixels(views[view % len(views)]) for view in _SHEET_VIEWS]
    size = (_THUMB, _THUMB)
    return [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BOX)) for p in pictures]


def _over_grey(picture: Bytes) -> Bytes:
    """(S, S, 4) uint8 over light grey: (S, S, 3)."""
    from PIL import Image

    rgba = Image.fromarray(picture)
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, (225, 225, 225, 255)), rgba).convert("RGB"))


def _pixels(view: Tensor) -> Bytes:
    """(3, S, S) in [0, 1] → (S, S, 3) uint8."""
    return np.ascontiguousarray(bytes_from_unit(view.permute(1, 2, 0).numpy()))


def write_chosen_sheets(scored: Sequence[Scored], out: Path, protocol: EvalProtocol) -> list[str]:
    """Draw the ten best, median and worst objects by IoU: input | front, side, behind of the answer | of the truth.

    The meshes and inputs that were written to OUT are drawn. With fewer than thirty objects the sheets overlap.

    Returns:
        The file names: best.png, median.png, worst.png, each with the best of its objects on top.

    Raises:
        OutputError: a file cannot be written.
    """
    ordered = sorted(scored, key=lambda s: -s.row[_main(s)]["iou"])
    count = min(_CHOSEN, len(ordered))
    middle = (len(ordered) - count) // 2
    drawn: dict[int, list[Bytes]] = {}  # by place in the order: an object may be on several sheets
    for name, first in zip(_CHOSEN_FILES, (0, middle, len(ordered) - count), strict=True):
        places = range(first, first + count)
        drawn |= {i: _chosen_pictures(ordered[i], out, protocol) for i in places if i not in drawn}
        rows = [(_caption(ordered[i]), drawn[i]) for i in places]
        write_picture(_chosen_sheet(rows, _main(ordered[0])), out / name)
    return list(_CHOSEN_FILES)


def _chosen_sheet(objects: Sequence[tuple[str, Sequence[Bytes]]], main: str) -> Bytes:
    """Rows of seven cells, each row under its caption, the columns named above."""
    from PIL import Image, ImageDraw, ImageFont

    columns = ["input", *(f"{whose}, {side}" for whose in (main, "truth") for side in _CHOSEN_AZIMUTHS)]
    height = _CELL + _HEAD
    page = Image.new("RGB", (len(columns) * _CELL, len(objects) * height + _HEAD), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(20)
    for column, words in enumerate(columns):
        draw.text((column * _CELL + _CELL // 2, _HEAD // 2), words, fill="black", font=font, anchor="mm")
    for index, (caption, pictures) in enumerate(objects):
        top = _HEAD + index * height
        draw.line((0, top, page.width, top), fill=(190, 190, 190))
        draw.text((8, top + _HEAD // 2), caption, fill="black", font=font, anchor="lm")
        for column, picture in enumerate(pictures):
            cell = Image.fromarray(picture).resize((_CELL, _CELL), Image.Resampling.LANCZOS)
            page.paste(cell, (column * _CELL, top + _HEAD))
    return np.asarray(page)


def _chosen_pictures(one: Scored, out: Path, protocol: EvalProtocol) -> list[Bytes]:
    """The seven pictures of one object; ours are blank where the model failed."""
    from PIL import Image

    with Image.open(out / "inputs" / f"{one.row['id']}.png") as picture:
        pictures = [_over_grey(np.asarray(picture))]
    cameras = protocol.around(tuple(_CHOSEN_AZIMUTHS.values()), _CHOSEN_FOV_DEG)
    main = _main(one)
    failed = any(failure["answer"] == main for failure in one.failures)
    for answer in (main, "truth"):
        if answer == main and failed:
            pictures += [np.full((_CELL, _CELL, 3), 255, np.uint8)] * len(cameras)
            continue
        mesh = placed(read_mesh(out / "meshes" / answer / f"{one.row['id']}.glb"))
        views = render_mesh(mesh, cameras, _CELL, shading=True, supersample=2).composite(1.0)
        pictures += [_pixels(view) for view in views]
    return pictures


def write_picture(picture: Bytes, path: Path) -> None:
    """Write a picture (H, W, 3 or 4) uint8 as PNG, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    from PIL import Image

    with written_whole(path) as aside:
        Image.fromarray(np.ascontiguousarray(picture)).save(aside, "PNG")
