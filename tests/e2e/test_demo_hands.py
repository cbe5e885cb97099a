"""The page in people's hands, in Chromium: painting on the photo, pasting, the webcam, the keyboard, a turntable.

Skipped, saying why, where Chromium or playwright is not installed.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.chromium import find_chromium
from tests.e2e.test_demo_browser import FLAGS, Snowman, choose, lower_resolution, opened, served
from tests.fakes import draw_photo

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt-get install chromium)"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
]
# A camera that shows a moving test picture, and nobody who is asked whether it may.
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
PASTE = """data => {
  const bytes = Uint8Array.from(atob(data), each => each.charCodeAt(0)), carrier = new DataTransfer();
  carrier.items.add(new File([bytes], 'pasted.png', {type: 'image/png'}));
  document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: carrier, bubbles: true, cancelable: true}));
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(Snowman(), tmp_path_factory.mktemp("demo")) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *CAMERA])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser: Any, server: str) -> Iterator[Any]:
    yield from opened(browser, server, 1280, 900)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red ball in the middle half of a picture whose own alpha says so."""
    return draw_photo(tmp_path_factory.mktemp("photos") / "ball.png")


def about(tab: Any) -> str:
    return str(tab.locator("#tl-about textarea").input_value())


def seen_cutout(tab: Any) -> np.ndarray:
    """The cut-out that the page shows, (H, W, 4) uint8."""
    address = tab.locator("#tl-cutout img").get_attribute("src")
    with urllib.request.urlopen(address, timeout=60) as answer:
        return np.array(Image.open(io.BytesIO(answer.read())).convert("RGBA"))


def open_editor(tab: Any) -> dict[str, float]:
    """Unfold the correction; where the photo is on the screen: its left, top and side in pixels."""
    tab.get_by_role("button", name="Correct the cut-out").click()
    tab.wait_for_selector("#tl-editor canvas")
    tab.locator("#tl-editor").evaluate("part => part.scrollIntoView({block: 'center'})")
    # The photo is loaded when its size in percent of the canvas is known, and it stands still then.
    tab.wait_for_function("(document.querySelector('#tl-editor').innerText.match(/[0-9]+%/) || ['100%'])[0] !== '100%'")
    tab.wait_for_timeout(1000)
    box = tab.locator("#tl-editor canvas").first.bounding_box()
    percent = int(re.findall(r"(\d+)%", tab.inner_text("#tl-editor"))[0])
    side = 512 * percent / 100
    return {"left": box["x"] + (box["width"] - side) / 2, "top": box["y"] + (box["height"] - side) / 2, "side": side}


def stroke(tab: Any, place: dict[str, float], start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw a straight line with the brush, between places in the photo from (0, 0) to (1, 1)."""
    (x0, y0), (x1, y1) = (
        (place["left"] + x * place["side"], place["top"] + y * place["side"]) for x, y in (start, end)
    )
    tab.get_by_role("button", name="Brush", exact=True).click()
    tab.mouse.move(x0, y0)
    tab.mouse.down()
    for step in range(1, 13):
        tab.mouse.move(x0 + (x1 - x0) * step / 12, y0 + (y1 - y0) * step / 12)
    tab.mouse.up()
    tab.wait_for_timeout(500)


def cut_again(tab: Any) -> np.ndarray:
    before = tab.locator("#tl-cutout img").get_attribute("src")
    tab.get_by_role("button", name="Cut out again").click()
    tab.wait_for_function(
        "before => { const now = document.querySelector('#tl-cutout img'); return now && now.src !== before; }",
        arg=before,
    )
    return seen_cutout(tab)


@pytest.mark.slow
def test_the_brush_changes_the_cutout_where_it_was(tab: Any, tmp_path: Path) -> None:
    picture = np.zeros((512, 512, 4), np.uint8)
    picture[128:384, 128:384] = (200, 60, 40, 255)  # a square in the middle half
    picture[..., :3] = (200, 60, 40)
    Image.fromarray(picture).save(tmp_path / "square.png")
    choose(tab, tmp_path / "square.png")
    whole = seen_cutout(tab)
    side = len(whole)
    assert (whole[..., 3] > 127).mean() == pytest.approx(0.85**2, abs=0.02), "a square at the usual ratio"
    place = open_editor(tab)
    # Green, the first colour, to the right of the square: what belongs to the object reaches from 1/4 to about 0.9 now.
    stroke(tab, place, (0.7, 0.5), (0.88, 0.5))
    grown = cut_again(tab)[..., 3] > 127
    rows, columns = np.nonzero(grown)
    assert np.ptp(columns) > 1.2 * np.ptp(rows), "it has become wider, and no higher"
    reach = grown[:, : int(columns.min() + 0.75 * np.ptp(columns))].any(1).sum(), grown[:, columns.max() - 5].sum()
    assert reach[1] < 0.4 * reach[0], "by a line at its right, not by a block"
    # Red across the middle of the square: a gap there, where the brush was, and none elsewhere.
    tab.get_by_role("button", name="Color", exact=True).click()
    tab.get_by_role("button", name="Red: does not belong to it").click()
    stroke(tab, place, (0.2, 0.35), (0.8, 0.35))
    parted = cut_again(tab)[..., 3] > 127
    assert "Your correction" in about(tab)
    column = parted[:, int(0.3 * side)]  # through the square, left of its middle
    runs = np.flatnonzero(np.diff(np.concatenate([[0], column.astype(int), [0]])))
    assert len(runs) == 4, "two pieces with a gap between"
    upper, gap, lower = runs[1] - runs[0], runs[2] - runs[1], runs[3] - runs[2]
    assert 4 < gap < upper + lower and upper < lower, "the gap is above the middle"
    tab.get_by_role("button", name="Reset", exact=True).click()
    tab.wait_for_function("document.querySelector('#tl-about textarea').value.includes('own transparency')")
    assert np.array_equal(seen_cutout(tab), whole)


@pytest.mark.slow
def test_the_box_leaves_out_what_is_outside(tab: Any, photo: Path) -> None:
    choose(tab, photo)
    whole = seen_cutout(tab)[..., 3] > 127
    open_editor(tab)
    box = tab.get_by_label(re.compile("number input for Box: right edge"))
    box.fill("50")
    box.press("Tab")
    half = cut_again(tab)[..., 3] > 127
    rows, columns = np.nonzero(half)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert np.ptp(np.nonzero(whole)[0]) == pytest.approx(np.ptp(np.nonzero(whole)[1]), abs=6), "a ball at first"
    assert width / height == pytest.approx(0.5, abs=0.06), "its left half then"
    tall = half[:, columns.min() + width // 2 :].sum()
    assert tall > 0.55 * half.sum(), "cut on the right, round on the left"


def test_a_picture_is_pasted(tab: Any, photo: Path) -> None:
    data = base64.b64encode(photo.read_bytes()).decode()
    tab.wait_for_selector("#tl-photo input[type=file]", state="attached")
    tab.evaluate(PASTE, data)
    tab.wait_for_function("((document.querySelector('#tl-about textarea') || {}).value || '').length > 3")
    first = seen_cutout(tab)
    other = draw_photo(photo.with_name("other.png"), (10, 200, 30))
    before = tab.locator("#tl-cutout img").get_attribute("src")
    tab.evaluate(PASTE, base64.b64encode(other.read_bytes()).decode())  # takes the first one's place
    tab.wait_for_function(
        "before => { const now = document.querySelector('#tl-cutout img'); return now && now.src !== before; }",
        arg=before,
    )
    middle = len(first) // 2
    assert tuple(first[middle, middle, :3]) == (200, 60, 40)
    assert tuple(seen_cutout(tab)[middle, middle, :3]) == (10, 200, 30)


@pytest.mark.slow
def test_the_webcam_takes_a_photo(tab: Any) -> None:
    tab.get_by_role("button", name="Capture from camera").first.click()
    tab.get_by_role("button", name="Click to Access Webcam").click()
    tab.wait_for_function("(document.querySelector('#tl-photo video') || {}).videoWidth > 0")
    tab.get_by_role("button", name="capture photo").click()
    tab.wait_for_function("((document.querySelector('#tl-about textarea') || {}).value || '').length > 3")
    pixels = np.array(Image.open(io.BytesIO(tab.locator("#tl-photo").screenshot())).convert("RGB")).astype(int)
    green = (pixels[..., 1] > pixels[..., 0] + 60) & (pixels[..., 1] > pixels[..., 2] + 60)
    assert green.mean() > 0.2, "the camera's test picture is green"


def test_the_keyboard_alone_lifts_and_downloads(tab: Any, photo: Path, tmp_path: Path) -> None:
    lower_resolution(tab)
    choose(tab, photo)  # a file dialog is the browser's own
    tab.evaluate("document.activeElement.blur()")

    def tab_to(wanted: str, most: int = 60) -> None:
        script = "wanted => { const at = document.activeElement; return at && at.matches(wanted); }"
        for _ in range(most):
            tab.keyboard.press("Tab")
            if tab.evaluate(script, wanted):
                return
        raise AssertionError(f"{wanted} is not reached in {most} steps")

    tab_to("#tl-lift")
    focus = "getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).boxShadow"
    assert tab.evaluate(focus) != "nonenone", "who uses the keyboard sees where it is"
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#tl-state .tl-good")
    tab_to("#tl-turn")
    tab_to("#tl-files a[download='mesh.glb']")
    with tab.expect_download() as download:
        tab.keyboard.press("Enter")
    download.value.save_as(tmp_path / "mesh.glb")
    assert (tmp_path / "mesh.glb").read_bytes()[:4] == b"glTF"


@pytest.mark.slow
def test_one_click_turns_the_object(tab: Any, photo: Path) -> None:
    lower_resolution(tab)
    choose(tab, photo)
    assert not tab.locator("#tl-turn").is_visible(), "there is nothing to turn yet"
    tab.click("#tl-lift")
    tab.wait_for_selector("#tl-state .tl-good")
    assert not tab.locator("#tl-turntable").is_visible()
    tab.click("#tl-turn")
    tab.wait_for_selector("#tl-turntable img")
    tab.wait_for_selector("#tl-state .tl-good")
    address = tab.locator("#tl-turntable img").get_attribute("src")
    with urllib.request.urlopen(address, timeout=60) as answer:
        turn = Image.open(io.BytesIO(answer.read()))
        assert turn.n_frames == 36, "it is still an animation when it reaches the page"
    assert tab.locator("#tl-files a[download='turntable.gif']").count() >= 1
    assert not tab.locator("#tl-turn").is_visible()
    assert tab.locator("#tl-viewer canvas").count() == 1, "the object stays"


def test_screen_readers_find_every_input_by_its_name(tab: Any, photo: Path) -> None:
    choose(tab, photo)
    for name in ("Settings", "More photos of the same object", "Many photos: a folder as a zip file"):
        tab.get_by_role("button", name=name).click()
    open_editor(tab)
    tab.get_by_role("button", name="Color", exact=True).click()
    tab.wait_for_selector("#tl-editor [aria-label^='Green']")
    tree = tab.locator("body").aria_snapshot()
    kinds = ("button", "textbox", "slider", "spinbutton", "checkbox", "radio", "combobox", "listbox")
    lines = [line.strip().removeprefix("- ").strip("'") for line in tree.splitlines()]
    nameless = [line for line in lines if re.fullmatch(rf"({'|'.join(kinds)})( \[[^\]]*\])*:?", line)]
    assert nameless == []
    for kind, name in (
        ("button", "Lift to 3D"), ("button", "Cancel"), ("button", "Cut out again"), ("combobox", "Model"),
        ("combobox", "View generator"), ("spinbutton", "Seed"), ("radio", "find it"), ("checkbox", "Turntable"),
        ("textbox", "About the cut-out"), ("slider", "Resolution"), ("slider", "left edge"),
        ("button", "Example: chair"), ("button", "Look closer: Cut-out"), ("button", "Red: does not belong to it"),
    ):  # fmt: skip
        assert any(line.startswith(f"{kind} ") and name in line for line in lines), f"{kind} {name}"
