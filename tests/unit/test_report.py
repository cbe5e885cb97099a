"""The report of folder runs: pages that need no other file, show names as they are, and stay small."""

from __future__ import annotations

import base64
import io
import json
import re
import tracemalloc
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multiview.errors import OutputError
from tests.fakes import draw_photo
from trilift.preview import MAX_BYTES
from trilift.report import cause_of, write_report
from trilift.reportpage import Card, Span, Totals, page_html, page_name
from trilift.reportstyle import SCRIPT

_VOID = {"meta", "link", "img", "input", "br"}


class Checker(HTMLParser):
    """Notes tags that do not match, ids that are there twice, and what the page names."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.mistakes: list[str] = []
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.tags: Counter[str] = Counter()
        self._open: list[str] = []
        self.feed(text)
        self.close()
        self.mistakes += [f"{tag} is left open" for tag in self._open]
        self.mistakes += [f"{name} is there twice" for name, count in self.ids.items() if count > 1]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        names = [name for name, _ in attrs]
        self.mistakes += [f"{tag} has {name} twice" for name in set(names) if names.count(name) > 1]
        told = dict(attrs)
        self.ids.update([str(told["id"])] if "id" in told else [])
        self.links += [str(told[name]) for name in ("href", "src") if name in told]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.mistakes.append(f"</{tag}> closes nothing")


def row(source: str, status: str = "done", **told: Any) -> dict[str, Any]:
    """A row of the journal."""
    return {"source": source, "status": status, "seconds": 1.25, "folder": None, "files": [], "stages": {},
            "error": None, "warnings": [], "notes": [], "place": None, **told}  # fmt: skip


def asset(out: Path, place: str, **record: Any) -> dict[str, Any]:
    """The fields of a row for an asset that is written to ``out/place``."""
    folder = out / place
    draw_photo(folder / "input.png")
    (folder / "asset.json").write_text(json.dumps({"files": [{"name": "mesh.glb"}], **record}))
    return {"folder": str(folder), "place": place, "files": ["asset.json", "mesh.glb"]}


def page(out: Path, number: int = 1) -> str:
    return (out / page_name(number)).read_text("utf-8")


def cards(text: str) -> list[str]:
    return re.findall(r"<article .*?</article>", text, re.DOTALL)


def test_a_report_is_one_file_that_shows_names_as_they_are(tmp_path):
    rows = [
        row("<a&b>.png", warnings=["<soft>"], stages={"network": 0.5, "mesh": 1.5, "lift": 2.0},
            **asset(tmp_path, "a b#1%", checks={"silhouette_iou": 0.97, "expected_iou": 0.31, "seen_fraction": 0.42,
                                                "watertight": True},
                    model={"name": "tiny", "licence": "Apache-2.0", "commercial": "yes"})),
        row("<script>alert(1)</script>.png", "failed", error="<script>alert(1)</script>.png: <b>is</b> empty."),
        row("c.png", "skipped", folder=str(tmp_path / "gone"), place="gone"),
    ]  # fmt: skip
    assert write_report(tmp_path, rows=rows, count=4) == [tmp_path / "report.html"]
    text, found = page(tmp_path), Checker(page(tmp_path))
    assert found.mistakes == []
    assert "1 done, 1 skipped, 1 failed; 3 of 4 photos finished." in text
    assert text.count("<script") == 1 and found.tags["script"] == 1 and found.tags["b"] == 6  # numbers of the totals
    assert "&lt;a&amp;b&gt;.png" in text and "alert(1)&lt;/" in text and "&lt;soft&gt;" in text
    outside = [link for link in found.links if not link.startswith(("data:", "#", "report.html#"))]
    assert outside == ["a%20b%231%25/", "a%20b%231%25/asset.json", "a%20b%231%25/mesh.glb"]
    assert "http" not in re.sub(r"http-equiv", "", text)
    first = next(card for card in cards(text) if "a&amp;b" in card)
    assert 'data-score="0.3100"' in first and 'class="low"><dt>expected overlap</dt><dd>31%' in first
    assert "<dt>seen in the photo</dt><dd>42%" in first and "97%" not in first and "<dt>closed</dt><dd>yes" in first
    assert "network 0.50, mesh 1.50</p>" in first and "lift" not in first
    assert "tiny, Apache-2.0, commercial use: yes" in first
    assert "running the network 25% (0 s)" in text and "taking the surface 75% (2 s)" in text


def test_the_latest_row_counts_and_photos_are_in_sorted_order(tmp_path):
    rows = [row("b/x.png", "failed", error="b/x.png: is empty."), row("b c.png"), row("a.png"), row("b/x.png"),
            row("z.png", "begun")]  # fmt: skip
    write_report(tmp_path, rows=rows)
    text = page(tmp_path)
    assert "3 done, 0 skipped, 0 failed; 3 photos finished." in text and "Failures" not in text
    assert re.findall(r"<h3><bdi>(?:<span[^>]*>([^<]*)</span>)?([^<]*)<", text) == [
        ("", "a.png"), ("b/", "x.png"), ("", "b c.png")]  # fmt: skip


def test_it_reads_the_journal_and_skips_lines_that_were_cut_off(tmp_path):
    lines = [json.dumps(row("a.png")), '{"source": "b.p']
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    write_report(tmp_path)
    assert "1 done, 0 skipped, 0 failed; 1 photos finished." in page(tmp_path)


def test_a_run_without_photos_has_a_page_that_says_so(tmp_path):
    assert write_report(tmp_path, rows=[]) == [tmp_path / "report.html"]
    assert "0 photos finished" in page(tmp_path) and Checker(page(tmp_path)).mistakes == []


def test_pages_are_linked_and_pages_of_a_longer_report_go(tmp_path):
    rows = [row(f"p{i:02d}.png", "failed" if i == 7 else "done", error="x: is odd." if i == 7 else None)
            for i in range(10)]  # fmt: skip
    paths = write_report(tmp_path, rows=rows, page_size=3)
    assert [path.name for path in paths] == ["report.html", "report-2.html", "report-3.html", "report-4.html"]
    for number in range(1, 5):
        text, found = page(tmp_path, number), Checker(page(tmp_path, number))
        assert found.mistakes == [] and len(cards(text)) == (3 if number < 4 else 1)
        others = {page_name(each) for each in range(1, 5) if each != number}
        assert others <= set(found.links)
    assert 'href="report-3.html#p7"' in page(tmp_path) and 'id="p7"' in page(tmp_path, 3)
    assert "p03.png</bdi> &#8230; <bdi>p05.png" in page(tmp_path)
    (tmp_path / "report-5.html").write_text("not ours")
    write_report(tmp_path, rows=rows[:4], page_size=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report-2.html", "report-5.html", "report.html"]


def test_pages_where_nothing_changed_are_left_alone(tmp_path):
    rows = [row("a.png"), row("b.png", **asset(tmp_path, "b")), row("c.png")]
    write_report(tmp_path, rows=rows, page_size=1)
    marked = {number: page(tmp_path, number) + "<!-- as it was -->" for number in (1, 2, 3)}
    for number, text in marked.items():
        (tmp_path / page_name(number)).write_text(text)
    (tmp_path / "b" / "asset.json").write_text('{"checks": {"expected_iou": 0.5}}')
    write_report(tmp_path, rows=rows, page_size=1)
    kept = [number for number in marked if page(tmp_path, number) == marked[number]]
    assert kept == [3]  # the first one states when it was written, and the asset on the second one is another


def test_a_page_of_a_thousand_photos_stays_below_fifteen_megabytes(tmp_path):
    """By arithmetic: a card with the largest picture and long texts, a thousand times, and all the rest of a page."""
    texts = ["Seen from the photo's side the object agrees with its outline in the photo by only 31%. Look at it."] * 2
    card = Card(0, "some/folder/with/a/name/photo.png", "done", 9.0, {"network": 1.0, "mesh": 2.0, "check": 3.0}, None,
                texts, (), {"silhouette_iou": 0.5, "input_psnr": 23.0, "watertight": True},
                (("tiny", "Apache-2.0", "yes"),), "some/folder/with/a/name/photo", ("asset.json", "mesh.glb"),
                b"x" * MAX_BYTES, (512, 256))  # fmt: skip
    totals = Totals({"done": 1}, 1, 0, 1.0, {}, (), 0, "t", "w", 1000, [Span("a", "b", 0)])
    empty = len("".join(page_html(1, totals, [], digest="0")).encode())
    one = len("".join(page_html(1, totals, [card], digest="0")).encode()) - empty
    assert empty + 1000 * one < 15e6


def test_photos_that_failed_are_shown_where_their_folder_is_known(tmp_path):
    draw_photo(tmp_path / "in" / "a.png", size=300)
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    rows = [row("a.png", "failed", error="a.png: is odd."), row("b.png", "failed", error="b.png: is odd.")]
    write_report(tmp_path / "out", rows=rows, photos=tmp_path / "in")
    first, second = cards(page(tmp_path / "out"))
    data = re.search(r'src="data:image/webp;base64,([^"]+)"', first)
    assert data is not None and "<img" not in second
    assert Image.open(io.BytesIO(base64.b64decode(data[1]))).size == (128, 128)
    write_report(tmp_path / "out", rows=rows)
    assert "<img" not in page(tmp_path / "out")


@pytest.mark.parametrize("damage", ["[]", "{", '{"checks": 5, "model": [], "views": 3, "seconds": {"lift": "x"}}'])
def test_damaged_records_cost_a_card_its_details_alone(tmp_path, damage):
    rows = [row("a.png", "skipped", **asset(tmp_path, "a"))]
    (tmp_path / "a" / "asset.json").write_text(damage)
    write_report(tmp_path, rows=rows)
    assert Checker(page(tmp_path)).mistakes == [] and 'href="a/"' in page(tmp_path)


def test_skipped_photos_have_the_seconds_of_the_run_that_lifted_them(tmp_path):
    told = asset(tmp_path, "a", seconds={"network": 2.0, "mesh": 1.0, "lift": 3.0})
    write_report(tmp_path, rows=[row("a.png", "skipped", **{**told, "seconds": 0.001})])
    assert "3.0 s: network 2.00, mesh 1.00</p>" in page(tmp_path)


def test_assets_outside_of_the_folder_are_not_linked(tmp_path):
    told = asset(tmp_path / "elsewhere", "a")
    for place in ("../elsewhere/a", None):
        write_report(tmp_path / "out", rows=[row("a.png", **{**told, "place": place})])
        assert 'href="../' not in page(tmp_path / "out") and "elsewhere" not in page(tmp_path / "out")


def test_reports_of_object_storage_read_it(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    asset(tmp_path, "a", checks={"expected_iou": 0.75})
    from trilift.preview import write_preview

    write_preview(tmp_path / "a")
    for name in ("asset.json", "preview.webp"):
        system.pipe_file(f"/trilift-report/a/{name}", (tmp_path / "a" / name).read_bytes())
    rows = [row("a.png", folder="memory://trilift-report/a", place="a", files=["asset.json"])]
    write_report(tmp_path / "local", rows=rows)
    text = page(tmp_path / "local")
    assert 'href="a/asset.json"' in text and "<dd>75%" in text and "data:image/webp" in text
    system.rm("/trilift-report", recursive=True)


def test_a_report_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"report\.html: could not be written"):
        write_report(tmp_path / "file", rows=[row("a.png")])


@pytest.mark.parametrize(
    ("error", "source", "cause"),
    [
        ("/in/a.png: is empty (0 bytes). Copy it again.", "a.png", "is empty"),
        ("/in dir/a.1.png: is too small (1 x 1 px; at least (16)). Give.", "a.1.png", "is too small"),
        ("/tmp/x/key.jpg: found 3 pieces, 1.5 wanted.", "s.tar/key.jpg", "found N pieces, N wanted"),
        ("b.png: unexpected ZeroDivisionError: float division. This is a bug.", "b.png",
         "unexpected ZeroDivisionError: float division"),
        ("/out/a: could not be written (No space left).", "a.png", "…: could not be written"),
        ("a.png: no 'weird name' in C:\\x\\y\nhere", "a.png", "no … in … here"),
        ("", "a.png", "unknown"),
    ],
)  # fmt: skip
def test_causes_by_hand(error, source, cause):
    assert cause_of(error, source) == cause


@given(st.text(max_size=200), st.text(max_size=20))
def test_causes_are_short_and_never_fail(error, source):
    cause = cause_of(error, source)
    assert 1 <= len(cause) <= 160 and not re.search(r"[0-9]", cause)


def test_failures_are_counted_by_cause(tmp_path):
    rows = [row(f"{i}.png", "failed", error=f"/in/{i}.png: is too small ({i} x 1 px).") for i in range(6)]
    rows += [row("z.png", "failed", error="/in/z.png: is empty (0 bytes).")]
    write_report(tmp_path, rows=rows)
    table = page(tmp_path).partition("<tbody>")[2].partition("</tbody>")[0]
    assert re.findall(r'number">(\d+) .*?(\d+%)</span></td><td>([^<]*)<', table) == [
        ("6", "86%", "Is too small"), ("1", "14%", "Is empty")]  # fmt: skip
    assert table.count("<a ") == 5  # four examples, and the only one


def test_names_that_are_not_unicode_are_written(tmp_path):
    write_report(tmp_path, rows=[row("bad\udcff.png", "failed", error="bad\udcff.png: is empty.")])
    assert r"bad\udcff.png: is empty" in page(tmp_path)


def test_the_script_of_the_page_is_the_one_that_its_policy_allows(tmp_path):
    import hashlib

    write_report(tmp_path, rows=[])
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    assert f"<script>{SCRIPT}</script>" in page(tmp_path) and f"'sha256-{digest}'" in page(tmp_path)
    assert "default-src 'none'" in page(tmp_path)


def test_memory_does_not_grow_with_the_run(tmp_path):
    """Python's own memory at its highest, for ten times as many photos."""

    def peak(count: int) -> int:
        tracemalloc.start()
        write_report(tmp_path, rows=(row(f"{i:05d}.png") for i in range(count)), page_size=50)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(100)  # what is loaded once
    assert peak(2000) < 1.5 * peak(200)
