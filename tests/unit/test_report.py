"""The report of folder runs: one page that needs no other file and shows names as they are."""

from __future__ import annotations

from pathlib import Path

from tests.fakes import draw_photo
from trilift.batch import LiftResult
from trilift.report import write_report


def test_report_is_one_file_and_escapes_names(tmp_path: Path) -> None:
    draw_photo(tmp_path / "a b" / "input.png")
    results = [
        LiftResult("<a&b>.png", "done", 1.25, tmp_path / "a b", ("mesh.glb",), warnings=("<soft>",)),
        LiftResult("no-picture.png", "skipped", 0.0, tmp_path / "gone", ("mesh.glb",)),
        LiftResult("c.png", "failed", 0.5, error="c.png: <script>"),
    ]
    write_report(tmp_path / "report.html", results, 3)
    text = (tmp_path / "report.html").read_text()
    assert text.count("<tr") == 4 and text.count("data:image/png;base64,") == 1
    assert "&lt;a&amp;b&gt;.png" in text and "&lt;script&gt;" in text and "<script" not in text
    assert 'href="a%20b/mesh.glb"' in text and "http" not in text
    assert "1 done, 1 skipped, 1 failed; 3 of 3 photos finished" in text
