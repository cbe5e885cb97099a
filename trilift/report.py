"""The report of a folder run: one HTML page with a row per photo, its cut-out, files and remarks."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from multiview.files import write_bytes_whole

if TYPE_CHECKING:
    from .batch import LiftResult


def write_report(path: Path, results: Sequence[LiftResult], count: int) -> None:
    """Write a table of ``results`` as one HTML file that needs no other: thumbnails are inside it.

    Args:
        path: the file; links in it are relative to its folder, so the assets of ``results`` must lie below that.
        results: what has been finished, in order.
        count: how many photos there are in all.

    Raises:
        OutputError: it cannot be written.
    """
    told = ", ".join(f"{sum(r.status == s for r in results)} {s}" for s in ("done", "skipped", "failed"))
    rows = "\n".join(_report_row(result, path.parent) for result in results)
    text = _REPORT.format(told=told, finished=len(results), count=count, rows=rows)
    write_bytes_whole(path, text.encode("utf-8"))


_REPORT = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>trilift batch</title><style>
body {{ font: 15px system-ui, sans-serif; margin: 2em; }}
td, th {{ text-align: left; padding: 4px 12px; border-bottom: 1px solid #ddd; vertical-align: middle; }}
.failed td {{ background: #fdecea; }}
</style></head><body>
<h1>trilift batch</h1>
<p>{told}; {finished} of {count} photos finished.</p>
<table><tr><th>cut-out</th><th>photo</th><th>status</th><th>seconds</th><th>files</th><th>remarks</th></tr>
{rows}
</table></body></html>
"""


def _report_row(result: LiftResult, base: Path) -> str:
    links, thumbnail = "", ""
    if result.folder is not None:
        place = quote(result.folder.relative_to(base).as_posix())
        links = " ".join(f'<a href="{place}/{quote(name)}">{html.escape(name)}</a>' for name in result.files)
        thumbnail = _thumbnail(result.folder / "input.png")
    remarks = html.escape(result.error or " ".join(result.warnings))
    cells = (thumbnail, html.escape(result.source), result.status, f"{result.seconds:.1f}", links, remarks)
    return f'<tr class="{result.status}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _thumbnail(picture: Path) -> str:
    """An ``<img>`` of at most 96 px with its data inside; nothing when the picture cannot be read."""
    from PIL import Image

    try:
        with Image.open(picture) as image:
            image.thumbnail((96, 96))
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
    except OSError:
        return ""
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
