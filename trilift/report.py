"""The report of a folder run: ``report.html``, a page per thousand photos, each a single file that needs no other.

It is made from what the run left on the disk, the journal and each asset's asset.json, a page at a time, so that its
memory does not grow with the run. A page whose photos are as they were is left as it is: a run that goes on rewrites
the pages where something happened.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from multiview.files import written_whole

from .preview import PREVIEW_FILE, is_preview_of, photo_thumbnail, preview_bytes
from .provenance import own_version
from .reportpage import Card, Cause, Span, Totals, page_html, page_name
from .reportstyle import SCRIPT, STYLE

PAGE_SIZE = 1000
_RECORD_FILE = "asset.json"
_STATUSES = ("done", "skipped", "failed")
_MAX_CAUSES, _EXAMPLES = 30, 4
_MAX_CAUSE_LENGTH = 160
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_HEAD_BYTES = 2048  # of a page that is there already, where its digest stands

_SCHEMA = """
CREATE TABLE rows (source TEXT PRIMARY KEY, sorting TEXT, status TEXT, cause TEXT, seconds REAL, warned INTEGER,
  row TEXT) WITHOUT ROWID;
"""
_UPSERT = "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?)"
_ORDER = """
CREATE TABLE ordered AS SELECT row_number() OVER (ORDER BY sorting, source) - 1 AS place, * FROM rows;
CREATE UNIQUE INDEX by_place ON ordered (place);
DROP TABLE rows;
"""


def write_report(
    out: str | Path,
    *,
    photos: str | Path | None = None,
    count: int | None = None,
    rows: Iterable[Mapping[str, Any]] | None = None,
    page_size: int = PAGE_SIZE,
) -> list[Path]:
    """Write ``report.html``, ``report-2.html``, ... of a folder run.

    Previews that the run has not left beside its assets are drawn now (70 ms each) and kept there.

    Args:
        out: the run's output folder; links in the pages are relative to it.
        photos: the folder of the photos, for thumbnails of those that failed; without it they have none.
        count: how many photos there are in all, where that is known.
        rows: of the journal, in its order, the latest of a photo counts; those of ``out/results.jsonl`` when left out.
        page_size: photos a page, at least 1.

    Returns:
        The pages, ``report.html`` first; it is written last, so that one that is there is whole.

    Raises:
        OutputError: the journal cannot be read or a page cannot be written.
    """
    out = Path(out)
    if rows is None:
        from .journal import Journal

        rows = Journal(out).read()
    with tempfile.TemporaryDirectory(prefix="trilift-report-") as scratch, closing(_connect(Path(scratch))) as index:
        _fill(index, rows)
        totals = _totals(index, out, count, page_size)
        paths = [out / page_name(number) for number in range(1, len(totals.spans) + 1)]
        for number in range(len(paths), 0, -1):
            _write_page(number, index, totals, out, None if photos is None else Path(photos))
    _remove_after(out, len(paths))
    return paths


def _connect(scratch: Path) -> sqlite3.Connection:
    """A database that lives as long as the writing of one report; nothing in it need survive a crash."""
    index = sqlite3.connect(scratch / "index.sqlite", isolation_level=None)
    index.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA temp_store=FILE;" + _SCHEMA)
    return index


def _fill(index: sqlite3.Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Put the latest row of each photo into the index, in sorted order: by folder, then by name."""
    index.execute("BEGIN")
    index.executemany(_UPSERT, (_indexed(row) for row in rows if row.get("status") in _STATUSES))
    index.execute("COMMIT")
    index.executescript(_ORDER)


def _indexed(row: Mapping[str, Any]) -> tuple[Any, ...]:
    source = _clean(str(row["source"]))
    error = row.get("error")
    cause = None if row["status"] != "failed" else cause_of(_clean(str(error or "unknown")), source)
    # A folder comes before names that begin with its name, as in a sorted walk.
    sorting = source.replace("/", "\x01")
    seconds = float(row.get("seconds") or 0.0)
    return source, sorting, row["status"], cause, seconds, bool(row.get("warnings")), json.dumps(dict(row))


def _clean(text: str) -> str:
    """With the bytes of file names that are not UTF-8 spelled out, which no page and no database can hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def cause_of(error: str, source: str) -> str:
    """The kind of a failure: its first sentence without names, numbers and what stands in brackets.

    ``/in/a.png: is empty (0 bytes). Copy it again.`` → ``is empty``

    Args:
        error: the message.
        source: the photo's name in the run.
    """
    for name in filter(None, (source, source.rpartition("/")[2])):
        before, found, after = error.partition(name)
        if found and len(before) < 4096 and after[:2] in (": ", ":"):
            error = after[1:]
            break
    text = " ".join(error.split())
    while (shorter := re.sub(r"\s*\([^()]*\)", "", text)) != text:  # innermost brackets first
        text = shorter
    text = re.split(r"(?<=[^.\s])[.!?](?:\s|$)", text, maxsplit=1)[0]
    text = re.sub(r"(['\"]).*?\1", "…", text)
    text = re.sub(r"(?:\b[A-Za-z]:)?[^\s:]*[/\\][^\s:]*", "…", text)
    text = re.sub(r"\d+(?:[.,]\d+)*", "N", text).strip(" :;,-")
    return text[:_MAX_CAUSE_LENGTH] or "unknown"


def _totals(index: sqlite3.Connection, out: Path, count: int | None, page_size: int) -> Totals:
    counts = dict(index.execute("SELECT status, count(*) FROM ordered GROUP BY status"))
    causes = [
        Cause(words, number, index.execute(
            "SELECT place, source FROM ordered WHERE cause = ? ORDER BY place LIMIT ?", (words, _EXAMPLES)).fetchall())
        for words, number in index.execute(
            "SELECT cause, count(*) AS number FROM ordered WHERE cause IS NOT NULL GROUP BY cause "
            "ORDER BY number DESC, cause LIMIT ?", (_MAX_CAUSES,)).fetchall()
    ]  # fmt: skip
    return Totals(
        counts=counts,
        count=count,
        warned=index.execute("SELECT count(*) FROM ordered WHERE warned").fetchone()[0],
        median_seconds=_median_seconds(index, counts.get("done", 0)),
        stages=_stage_sums(index),
        causes=causes,
        other_causes=counts.get("failed", 0) - sum(cause.count for cause in causes),
        title=f"trilift: {_clean(out.resolve().name) or 'report'}",
        written=f"Written on {time.strftime('%Y-%m-%d %H:%M')} by trilift {own_version()}.",
        page_size=page_size,
        spans=list(_spans(index, sum(counts.values()), page_size)),
    )


def _median_seconds(index: sqlite3.Connection, done: int) -> float | None:
    if done == 0:
        return None
    query = "SELECT seconds FROM ordered WHERE status = 'done' ORDER BY seconds LIMIT 1 OFFSET ?"
    return float(index.execute(query, (done // 2,)).fetchone()[0])


def _stage_sums(index: sqlite3.Connection) -> dict[str, float]:
    """Seconds per stage of all photos lifted."""
    sums: dict[str, float] = {}
    for (text,) in index.execute("SELECT row FROM ordered WHERE status = 'done'"):
        for name, seconds in _stages(json.loads(text).get("stages")).items():
            sums[name] = sums.get(name, 0.0) + seconds
    return sums


def _stages(told: Any) -> dict[str, float]:
    """Seconds per stage; ``lift`` is the sum of others, and damaged entries are left out."""
    if not isinstance(told, Mapping):
        return {}
    return {str(k): float(v) for k, v in told.items() if k != "lift" and isinstance(v, int | float)}


def _spans(index: sqlite3.Connection, photos: int, page_size: int) -> Iterator[Span]:
    """What each page holds; one page without photos when there are none."""
    for start in range(0, max(photos, 1), page_size):
        ends = (start, min(start + page_size, photos) - 1)
        names = dict(index.execute("SELECT place, source FROM ordered WHERE place IN (?, ?)", ends))
        query = "SELECT count(*) FROM ordered WHERE status = 'failed' AND place BETWEEN ? AND ?"
        yield Span(names.get(ends[0], ""), names.get(ends[1], ""), index.execute(query, ends).fetchone()[0])


def _write_page(number: int, index: sqlite3.Connection, totals: Totals, out: Path, photos: Path | None) -> None:
    """Write one page unless one of the same content is there already."""
    start = (number - 1) * totals.page_size
    query = "SELECT place, row FROM ordered WHERE place >= ? AND place < ? ORDER BY place"
    rows = [(place, json.loads(text)) for place, text in index.execute(query, (start, start + totals.page_size))]
    path = out / page_name(number)
    digest = _digest(number, rows, totals, out)
    if number > 1 and _digest_of(path) == digest:
        return
    cards = (_card(place, row, out, photos) for place, row in rows)
    with written_whole(path) as aside, open(aside, "w", encoding="utf-8") as file:
        file.writelines(page_html(number, totals, cards, digest=digest))


def _digest(number: int, rows: list[tuple[int, dict[str, Any]]], totals: Totals, out: Path) -> str:
    """Of all that decides a page; of assets, what a look at their folders tells without reading them."""
    told = (number, len(totals.spans), totals.page_size, totals.title, own_version(), STYLE, SCRIPT)
    digest = hashlib.sha256(repr(told).encode())
    for place, row in rows:
        folder = _asset_folder(row, out)
        state = None if folder is None else _state(folder / _RECORD_FILE)  # in object storage the row says enough
        digest.update(repr((place, sorted(row.items()), state)).encode())
    return digest.hexdigest()


def _state(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return None
    return stat.st_size, stat.st_mtime_ns


def _digest_of(path: Path) -> str | None:
    """What a page that is there says of its content."""
    try:
        with open(path, "rb") as file:
            found = re.search(rb'name="trilift-digest" content="([0-9a-f]+)"', file.read(_HEAD_BYTES))
    except OSError:
        return None
    return None if found is None else found[1].decode()


def _asset_folder(row: Mapping[str, Any], out: Path) -> Path | None:
    """The asset's folder on this machine; None when there is none.

    Rows say where below ``out`` it lies; older ones hold the path as the run knew it, which may be relative to another
    working directory.
    """
    place, told = row.get("place"), row.get("folder")
    if not told or _URL.match(str(told)):
        return None
    try:
        folder = out / str(place) if place else Path(str(told))
        inside = folder.is_dir() and folder.resolve().is_relative_to(out.resolve())
    except (OSError, ValueError):
        return None
    return folder if inside else None


def _card(place: int, row: Mapping[str, Any], out: Path, photos: Path | None) -> Card:
    """What the page shows of one photo."""
    source, status = _clean(str(row["source"])), str(row["status"])
    card = Card(
        place, source, status, float(row.get("seconds") or 0.0), _stages(row.get("stages")),
        None if row.get("error") is None else _clean(str(row["error"])),
        warnings=_texts(row.get("warnings")), notes=_texts(row.get("notes")),
    )  # fmt: skip
    if status == "failed":
        return _with_picture(card, None if photos is None else _failed_thumbnail(photos, str(row["source"])))
    place_of, record, picture = _asset(row, out)
    if place_of is None:
        return card
    card = replace(card, folder=_clean(place_of), files=_texts(row.get("files")))
    return _with_record(_with_picture(card, picture), record)


def _asset(row: Mapping[str, Any], out: Path) -> tuple[str | None, bytes | None, bytes | None]:
    """(place below ``out``, asset.json, preview) of a photo, each None where there is none."""
    url = str(row.get("folder"))
    if _URL.match(url):  # the report lies beside the assets there, too
        record, picture = _fetched(f"{url}/{_RECORD_FILE}"), _fetched(f"{url}/{PREVIEW_FILE}")
        if record is None or picture is None or not is_preview_of(picture, record):
            picture = None
        return str(row.get("place") or "") or None, record, picture
    folder = _asset_folder(row, out)
    if folder is None:
        return None, None, None
    picture = preview_bytes(folder)
    try:
        record = (folder / _RECORD_FILE).read_bytes()
    except OSError:
        record = None
    return os.path.relpath(folder.resolve(), out.resolve()).replace(os.sep, "/"), record, picture


def _fetched(url: str) -> bytes | None:
    """An object in storage, None when it cannot be had."""
    from .storage import opened

    try:
        with opened(url) as file:
            data: bytes = file.read()
            return data
    except Exception:  # every storage has exceptions of its own, and a report goes on without
        return None


def _texts(told: Any) -> tuple[str, ...]:
    return tuple(_clean(str(text)) for text in told) if isinstance(told, list | tuple) else ()


def _failed_thumbnail(photos: Path, source: str) -> bytes | None:
    path = photos / source
    try:
        return photo_thumbnail(path) if path.is_file() else None
    except (OSError, ValueError):
        return None


def _with_picture(card: Card, picture: bytes | None) -> Card:
    from PIL import Image

    if picture is None:
        return card
    with Image.open(io.BytesIO(picture)) as image:
        return replace(card, picture=picture, picture_size=image.size)


def _with_record(card: Card, data: bytes | None) -> Card:
    """The card with what asset.json says."""
    try:
        record = json.loads(data or b"")
    except ValueError:
        return card
    if not isinstance(record, dict):
        return card
    checks = record.get("checks")
    scores = {k: v for k, v in checks.items() if isinstance(v, int | float)} if isinstance(checks, dict) else {}
    card = replace(card, checks=scores, weights=_weights(record))
    if card.status != "skipped":
        return card
    seconds = record.get("seconds")  # the row has those of looking whether it is finished
    stages = _stages(seconds)
    lift = seconds.get("lift") if isinstance(seconds, dict) else None
    return replace(card, stages=stages, seconds=float(lift) if isinstance(lift, int | float) else sum(stages.values()))


def _weights(record: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """(name, licence, commercial use) of the model, and of the view generator where there was one."""
    views = record.get("views")
    told = (record.get("model"), views.get("generator") if isinstance(views, Mapping) else None)
    return tuple(
        (str(each.get("name")), str(each.get("licence") or "licence unknown"), str(each.get("commercial") or "unknown"))
        for each in told
        if isinstance(each, Mapping)
    )


def _remove_after(out: Path, pages: int) -> None:
    """Remove pages of an earlier, longer report."""
    number = pages + 1
    while (old := out / page_name(number)).is_file() and _digest_of(old) is not None:
        old.unlink(missing_ok=True)
        number += 1
