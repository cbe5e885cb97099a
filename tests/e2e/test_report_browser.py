"""The report in a real browser, from the disk: no errors, no requests, and its tools do what they say."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.chromium import Browser, find_chromium
from tests.fakes import draw_photo
from trilift.report import write_report

_EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>.png"
_SHOWN = "Array.from(document.querySelectorAll('.card:not([hidden]) h3 bdi')).map(e => e.textContent)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium or Chrome is installed")
    page = Browser(program)
    yield page
    page.close()


@pytest.fixture
def out(tmp_path: Path, browser: Browser) -> Path:
    """A report of six photos on two pages, two of them failures."""
    browser.problems.clear()
    browser.requests.clear()
    rows = []
    for name, seconds, score, warnings in (
        ("a.png", 3, 0.5, []),
        ("b.png", 1, 0.9, ["Soft edge."]),
        ("c.png", 2, 0.7, []),
    ):
        draw_photo(tmp_path / name[0] / "input.png")
        (tmp_path / name[0] / "asset.json").write_text(json.dumps({"checks": {"expected_iou": score}}))
        rows.append(
            {
                "source": name,
                "status": "done",
                "seconds": seconds,
                "folder": str(tmp_path / name[0]),
                "place": name[0],
                "warnings": warnings,
                "files": ["input.png"],
                "stages": {"mesh": 1.0},
            }
        )
    for name in ("d.png", "e.png", _EVIL):
        rows.append({"source": name, "status": "failed", "seconds": 0.1, "error": f"{name}: is empty (0 bytes)."})
    write_report(tmp_path, rows=rows, page_size=5)
    return tmp_path


def test_it_opens_from_the_disk_without_errors_or_requests(browser, out):
    for name in ("report.html", "report-2.html"):
        browser.open(out / name)
        assert browser.run("document.title").startswith("trilift: ")
    broken = "Array.from(document.images).filter(i => !i.complete || !i.naturalWidth).length"
    assert browser.run(broken) == 0
    assert browser.problems == []
    outside = [address for address in browser.requests if not address.startswith(("data:", "about:"))]
    assert outside == [(out / name).as_uri() for name in ("report.html", "report-2.html")]


def test_names_are_text(browser, out):
    browser.open(out / "report.html")
    assert browser.run(_SHOWN)[0] == "script><img src=x onerror=alert(2)>.png".join(["<script>alert(1)</", ""])
    assert browser.run("document.querySelectorAll('script').length") == 1
    assert browser.problems == []


def test_filters_and_sorting(browser, out):
    browser.open(out / "report.html")
    everything = browser.run(_SHOWN)
    assert everything[1:] == ["a.png", "b.png", "c.png", "d.png"]
    choose = (
        "(name, value) => { const e = document.getElementById(name); e.value = value; "
        "e.dispatchEvent(new Event(name === 'find' ? 'input' : 'change')); }"
    )
    browser.run(f"({choose})('sort', 'seconds')")
    assert browser.run(_SHOWN)[2:] == ["b.png", "c.png", "a.png"]
    browser.run("document.getElementById('order').click()")
    assert browser.run(_SHOWN)[:3] == ["a.png", "c.png", "b.png"]
    browser.run(f"({choose})('sort', 'score')")
    assert browser.run(_SHOWN)[:3] == ["b.png", "c.png", "a.png"]  # those without a score come last
    assert browser.run("location.hash") == "#sort=score-"
    browser.run(f"({choose})('status', 'failed')")
    assert len(browser.run(_SHOWN)) == 2
    assert browser.run("document.getElementById('shown').textContent") == "2 of 5 shown"
    browser.run(f"({choose})('status', '')")
    browser.run(f"({choose})('find', 'SOFT')")
    assert browser.run(_SHOWN) == ["b.png"]
    browser.run(f"({choose})('find', '')")
    browser.run("document.getElementById('warned').click()")
    assert browser.run(_SHOWN) == ["b.png"]
    browser.open(out / "report.html", "#status=done&sort=seconds")  # a link to what was chosen
    assert browser.run(_SHOWN) == ["b.png", "c.png", "a.png"]
    assert browser.problems == []


def test_examples_of_failures_lead_to_their_cards(browser, out):
    browser.open(out / "report.html")
    there = browser.run("Array.from(document.querySelectorAll('tbody a')).map(a => a.getAttribute('href'))")
    assert "report-2.html#p5" in there
    browser.open(out / "report-2.html", "#p5")
    assert browser.run("document.querySelector('.card:target h3 bdi').textContent") == "e.png"
    assert browser.run(_SHOWN) == ["e.png"]


def test_it_fits_a_phone_and_is_dark_where_asked(browser, out):
    bright = {}
    for dark in (False, True):
        browser.resize(390, 844, phone=True, dark=dark)
        browser.open(out / "report.html")
        assert browser.run("document.documentElement.scrollWidth") <= 390
        picture = Image.open(io.BytesIO(browser.picture())).convert("L")
        assert picture.size == (390, 844)
        bright[dark] = picture.getpixel((4, 800))
    assert bright[False] > 220 and bright[True] < 60
