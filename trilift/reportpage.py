"""One page of a folder run's report as HTML: everything inside it, nothing fetched, names shown as they are.

This file knows of values and words alone; `trilift.report` finds them.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

from .preview import TILES
from .progress import STAGE_WORDS, in_words
from .reportstyle import SCRIPT, STAGE_COLORS, STYLE

FIRST_PAGE = "report.html"
_LOW = 0.5  # overlaps below it are marked
_MAX_TEXT = 1500  # characters of one message on a card; results.jsonl has all of it
_MAX_WARNINGS = 8
# How well a lift gives its own photo back says little of how near it is to the truth (`trilift eval` prints the rank
# correlations), so that only what the network expects is shown as a score.
_SCORE_WORDS = {"expected_iou": "expected overlap", "seen_fraction": "seen in the photo", "watertight": "closed"}
_NOT_SHOWN = ("silhouette_iou", "input_psnr")
_NEAR_PAGES = 3


@dataclass(frozen=True)
class Card:
    """What a page shows of one photo.

    Attributes:
        place: its number in the run's order, from 0.
        source: the photo's name.
        status: ``done``, ``skipped`` or ``failed``.
        seconds: wall-clock seconds.
        stages: seconds per stage.
        error: why it failed, None unless it did.
        warnings: sentences.
        notes: what was assumed.
        checks: scores of asset.json.
        weights: (name, licence, commercial use) of each network that took part.
        folder: the asset's folder relative to the page, with ``/`` between names; None where there is none.
        files: names in that folder.
        picture: WebP, None where nothing can be shown.
        picture_size: (width, height) of it in pixels.
    """

    place: int
    source: str
    status: str
    seconds: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    checks: Mapping[str, float | bool] = field(default_factory=dict)
    weights: Sequence[tuple[str, str, str]] = ()
    folder: str | None = None
    files: Sequence[str] = ()
    picture: bytes | None = None
    picture_size: tuple[int, int] = (0, 0)

    @property
    def score(self) -> float | None:
        """What cards are sorted by: the overlap that the network expects, None where it expects none."""
        value = self.checks.get("expected_iou")
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class Cause:
    """One kind of failure.

    Attributes:
        words: the message without paths and numbers.
        count: photos that failed so.
        examples: (place, source) of some of them.
    """

    words: str
    count: int
    examples: Sequence[tuple[int, str]]


@dataclass(frozen=True)
class Span:
    """What one page holds: its first and last photo, and how many of them failed."""

    first: str
    last: str
    failed: int


@dataclass(frozen=True)
class Totals:
    """The whole run.

    Attributes:
        counts: photos per status.
        count: photos there are, None where nobody knows.
        warned: photos with warnings.
        median_seconds: of those lifted; None without any.
        stages: seconds per stage of all those lifted.
        causes: kinds of failures, the most frequent first.
        other_causes: photos that failed in ways not among ``causes``.
        title: what the run is called.
        written: when and by what, a sentence.
        page_size: photos a page.
        spans: of each page.
    """

    counts: Mapping[str, int]
    count: int | None
    warned: int
    median_seconds: float | None
    stages: Mapping[str, float]
    causes: Sequence[Cause]
    other_causes: int
    title: str
    written: str
    page_size: int
    spans: Sequence[Span]


def page_name(number: int) -> str:
    """Of page ``number``, counted from 1: ``report.html``, ``report-2.html``, ..."""
    return FIRST_PAGE if number == 1 else f"report-{number}.html"


def page_html(number: int, totals: Totals, cards: Iterable[Card], *, digest: str) -> Iterable[str]:
    """The pieces of page ``number``, so that nobody has to hold all of it.

    Args:
        number: from 1.
        totals: of the run; the first page shows all of them, the others a line.
        cards: of this page, in order.
        digest: letters and digits that tell this page's content from another; the page carries it.

    Yields:
        HTML text.
    """
    pages = len(totals.spans)
    title = totals.title if pages < 2 else f"{totals.title}, page {number} of {pages}"
    yield _HEAD.format(
        title=html.escape(title), style=STYLE, digest=digest,
        script_sum=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
    )  # fmt: skip
    # The other pages say nothing of the whole run, so that they can stay as they are while it goes on.
    told = html.escape(_told(totals)) if number == 1 else _from_to(totals.spans[number - 1])
    yield f'<header><h1>{html.escape(title)}</h1>\n<p class="soft">{told}</p>\n'
    yield (_overview(totals) if number == 1 else "") + "</header>\n<main>\n"
    yield (_failures(totals) + _contents(totals) if number == 1 else "") + _pages(number, pages) + _TOOLS
    yield '<div class="cards">\n'
    for card in cards:
        yield _card(card)
    yield f"</div>\n{_pages(number, pages)}</main>\n"
    written = f"<p>{html.escape(totals.written)}</p>" if number == 1 else ""
    yield f'<footer class="end small">{written}</footer>\n<script>{SCRIPT}</script>\n</body></html>\n'


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'sha256-{script_sum}'; base-uri 'none'; form-action 'none'">
<meta name="color-scheme" content="light dark"><meta name="trilift-digest" content="{digest}">
<title>{title}</title><link rel="icon" href="data:,">
<style>{style}</style></head><body>
"""

_TOOLS = """<div class="tools" role="search" hidden>
<input type="search" id="find" placeholder="Find in names, errors, warnings" aria-label="Find" autocomplete="off">
<select id="status" aria-label="Status"><option value="">any status</option><option>done</option>\
<option>skipped</option><option>failed</option></select>
<select id="sort" aria-label="Sort by"><option value="name">by name</option><option value="seconds">by seconds</option>\
<option value="score">by score</option><option value="warnings">by warnings</option></select>
<button type="button" id="order" title="turn the order round">&#8593;</button>
<label><input type="checkbox" id="warned"> with warnings</label>
<output id="shown"></output></div>
"""


def _told(totals: Totals) -> str:
    """``2 done, 0 skipped, 1 failed; 3 of 3 photos finished.``"""
    parts = ", ".join(f"{totals.counts.get(status, 0):,} {status}" for status in ("done", "skipped", "failed"))
    finished = sum(totals.counts.values())
    of = "" if totals.count is None else f" of {totals.count:,}"
    return f"{parts}; {finished:,}{of} photos finished."


def _overview(totals: Totals) -> str:
    """The numbers of the whole run, and where its time went."""
    finished = sum(totals.counts.values())
    tiles = [("", f"{finished:,}", "photos")]
    for status in ("done", "skipped", "failed"):
        number = totals.counts.get(status, 0)
        tiles.append((status if number else "", f"{number:,}", status))
    tiles += [("warn" if totals.warned else "", f"{totals.warned:,}", "with warnings")]
    if totals.median_seconds is not None:
        tiles += [("", f"{totals.median_seconds:.1f} s", "median per photo")]
    items = "".join(f'<li class="{kind}"><b>{value}</b>{words}</li>' for kind, value, words in tiles)
    return f'<ul class="totals">{items}</ul>\n{_time_spent(totals.stages)}'


def _time_spent(stages: Mapping[str, float]) -> str:
    """A bar of all stages with a legend; nothing when no time is known."""
    total = sum(stages.values())
    if total <= 0:
        return ""
    rows = "".join(
        f'<li><i style="{_color(name)}"></i>{html.escape(STAGE_WORDS.get(name, name))} {seconds / total:.0%}'
        f" ({in_words(seconds)})</li>"
        for name, seconds in stages.items()
    )
    return f'<div class="bar large">{_segments(stages)}</div>\n<ul class="legend">{rows}</ul>\n'


def _segments(stages: Mapping[str, float]) -> str:
    return "".join(f'<i style="flex:{max(seconds, 0):.4g};{_color(name)}"></i>' for name, seconds in stages.items())


def _color(stage: str) -> str:
    return f"background:{STAGE_COLORS[stage]}" if stage in STAGE_COLORS else ""


def _failures(totals: Totals) -> str:
    """The table of failures by cause."""
    failed = totals.counts.get("failed", 0)
    if not failed:
        return ""
    rows = "".join(_cause_row(cause, failed, totals.page_size) for cause in totals.causes)
    if totals.other_causes:
        rows += f'<tr><td class="number">{totals.other_causes:,}</td><td>other causes</td><td></td></tr>'
    return (
        f'<h2>Failures by cause</h2>\n<div class="scroll"><table><thead><tr><th class="number">photos</th>'
        f"<th>cause</th><th>such as</th></tr></thead><tbody>{rows}</tbody></table></div>\n"
    )


def _cause_row(cause: Cause, failed: int, page_size: int) -> str:
    examples = ", ".join(
        f'<a href="{page_name(place // page_size + 1)}#p{place}"><bdi>{html.escape(source)}</bdi></a>'
        for place, source in cause.examples
    )
    share = f'<span class="soft">{cause.count / failed:.0%}</span>'
    words = html.escape(cause.words[:1].upper() + cause.words[1:])
    return f'<tr><td class="number">{cause.count:,} {share}</td><td>{words}</td><td>{examples}</td></tr>'


def _contents(totals: Totals) -> str:
    """Which photos are on which page; nothing for a single page."""
    if len(totals.spans) < 2:
        return ""
    rows = "".join(
        f'<tr><td class="number"><a href="{page_name(number)}">{number}</a></td><td>{_from_to(span)}</td>'
        f'<td class="number">{span.failed:,}</td></tr>'
        for number, span in enumerate(totals.spans, 1)
    )
    return (
        f"<details><summary>{len(totals.spans):,} pages of {totals.page_size:,} photos, by name</summary>"
        f'<div class="scroll"><table><thead><tr><th class="number">page</th><th>photos</th>'
        f'<th class="number">failed</th></tr></thead><tbody>{rows}</tbody></table></div></details>\n'
    )


def _from_to(span: Span) -> str:
    """The first and the last photo of a page."""
    return f"<bdi>{html.escape(span.first)}</bdi> &#8230; <bdi>{html.escape(span.last)}</bdi>"


def _pages(number: int, pages: int) -> str:
    """Links to the pages near this one, to the first and the last."""
    if pages < 2:
        return ""
    near = range(max(number - _NEAR_PAGES, 1), min(number + _NEAR_PAGES, pages) + 1)
    shown = sorted({1, *near, pages})
    links, before = "", 0
    for each in shown:
        links += "<span>&#8230;</span>" if each > before + 1 else ""
        links += f'<b aria-current="page">{each}</b>' if each == number else f'<a href="{page_name(each)}">{each}</a>'
        before = each
    return f'<nav class="pages" aria-label="Pages">{links}</nav>\n'


def _card(card: Card) -> str:
    """One photo."""
    data = {"place": card.place, "status": card.status, "seconds": f"{card.seconds:.3f}"}
    data |= {"warnings": len(card.warnings)} | ({} if card.score is None else {"score": f"{card.score:.4f}"})
    told = " ".join(f'data-{name}="{html.escape(str(value))}"' for name, value in data.items())
    parts = [_title(card), _figure(card)]
    if card.error is not None:
        parts.append(f'<p class="error">{_text(card.error)}</p>')
    parts += [f'<p class="warning">{_text(text)}</p>' for text in card.warnings[:_MAX_WARNINGS]]
    if len(card.warnings) > _MAX_WARNINGS:
        parts.append(f'<p class="small">and {len(card.warnings) - _MAX_WARNINGS} more warnings</p>')
    parts += [_scores(card.checks), _seconds(card)]
    parts += [f'<p class="small">{_text(text)}</p>' for text in card.notes[:_MAX_WARNINGS]]
    parts.append(_foot(card))
    body = "\n".join(part for part in parts if part)
    return f'<article class="card {html.escape(card.status)}" id="p{card.place}" {told}>\n{body}\n</article>\n'


def _text(text: str) -> str:
    return html.escape(text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + " …")


def _title(card: Card) -> str:
    folder, slash, name = card.source.rpartition("/")
    before = f'<span class="folder">{html.escape(folder + slash)}</span>' if slash else ""
    return f'<h3><bdi>{before}{html.escape(name)}</bdi><span class="state">{html.escape(card.status)}</span></h3>'


def _figure(card: Card) -> str:
    """The picture with its captions; nothing where there is none."""
    if card.picture is None:
        return ""
    width, height = card.picture_size
    data = base64.b64encode(card.picture).decode()
    alone = card.status == "failed"  # the photo, and nothing came of it
    has_views = not alone and 4 * height > width
    words = ("photo",) if alone else (*TILES, "generated views") if has_views else TILES
    alt = html.escape(f"{', '.join(words)} of {card.source}")
    image = f'<img alt="{alt}" width="{width}" height="{height}" decoding="async" src="data:image/webp;base64,{data}">'
    captions = "".join(f"<span>{word}</span>" for word in words[: len(TILES)])
    below = '<div class="captions"><span>generated views</span></div>' if has_views else ""
    kind = ' class="single"' if alone else ""
    return f'<figure{kind}><div class="captions">{captions}</div>{image}{below}</figure>'


def _scores(checks: Mapping[str, float | bool]) -> str:
    """The checks of asset.json, those that have no word of ours under their own name."""
    items = ""
    for name, value in checks.items():
        if name in _NOT_SHOWN:
            continue
        if isinstance(value, bool):
            words, low = "yes" if value else "no", not value
        elif name.endswith(("_iou", "_fraction")):
            words, low = f"{value:.0%}", value < _LOW and name.endswith("_iou")
        else:
            words, low = f"{value:.4g}", False
        label = html.escape(_SCORE_WORDS.get(name, name.replace("_", " ")))
        kind = ' class="low"' if low else ""
        items += f"<div{kind}><dt>{label}</dt><dd>{words}</dd></div>"
    return f'<dl class="scores">{items}</dl>' if items else ""


def _seconds(card: Card) -> str:
    """How long it took, in all and by stage."""
    if not card.stages:
        return f'<p class="small">{card.seconds:.1f} s</p>' if card.status == "failed" else ""
    told = ", ".join(f"{html.escape(name)} {seconds:.2f}" for name, seconds in card.stages.items())
    return f'<div class="bar">{_segments(card.stages)}</div>\n<p class="small">{card.seconds:.1f} s: {told}</p>'


def _foot(card: Card) -> str:
    """Links to what there is of it, and whose weights made it."""
    words = []
    if card.folder is not None:
        place = quote(card.folder)
        links = [f'<a href="{place}/">folder</a>']
        links += [f'<a href="{place}/{quote(name)}">{html.escape(name)}</a>' for name in card.files]
        words.append(" ".join(links))
    for name, licence, commercial in card.weights:
        words.append(html.escape(f"{name}, {licence}, commercial use: {commercial}"))
    return "".join(f'<p class="small foot">{line}</p>' for line in words)
