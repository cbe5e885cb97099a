"""The page, through its public door: a real server on a loopback port, called as gradio's own client calls it."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

import trilift
from demo.app import BACKGROUNDS, EXTRA_FORMATS, STAGES, Workbench, build_app, launch_options, main
from tests.fakes import HALF_AXES, FakeModel, draw_photo
from trilift import ImageTo3D, LiftSettings, TriliftError

COLOR = (200, 60, 40)


class Loader:
    """Gives one pipeline with the fake model and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> ImageTo3D:
        self.calls += 1
        return ImageTo3D(FakeModel())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page's own folder of uploads and results, and the system's temporary folder beside it."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "tmp").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        patch.setattr("tempfile.tempdir", str(folder / "tmp"))
        yield folder


@pytest.fixture(scope="module")
def loader() -> Loader:
    return Loader()


@pytest.fixture(scope="module")
def server(store: Path, loader: Loader) -> Iterator[str]:
    """Address of the running page."""
    page = build_app(loader)
    _, url, _ = page.launch(**launch_options(), prevent_thread_lock=True, quiet=True)
    yield url
    page.close()


@pytest.fixture(scope="module")
def client(server: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from gradio_client import Client

    return Client(server, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_photo(tmp_path_factory.mktemp("photos") / "ball.png", COLOR)


def upload(path: Path) -> Any:
    from gradio_client import handle_file

    return handle_file(str(path))


def test_a_photo_becomes_a_glb(client: Any, loader: Loader, photo: Path, store: Path) -> None:
    mesh, cutout, message, files = client.predict(
        photo=upload(photo), resolution=64, background="auto", elevation=10, seed=3, formats=["obj"], api_name="/lift"
    )
    found = trimesh.load(mesh, force="mesh", process=False)
    assert found.is_watertight
    # File axes: wide (world y), tall (world z), deep (world x); the longest side is 1.
    assert found.extents == pytest.approx(np.array(HALF_AXES)[[1, 2, 0]] / max(HALF_AXES), abs=0.03)
    with Image.open(cutout) as image:
        assert image.mode == "RGBA"
        assert image.getpixel((image.width // 2, image.height // 2)) == (*COLOR, 255)
        assert image.getpixel((0, 0))[3] == 0  # type: ignore[index]
    assert re.match(rf"{len(found.vertices)} vertices, {len(found.faces)} triangles, [\d.]+ s", message)
    assert {Path(file).name for file in files} == {"mesh.glb", "mesh.obj", "input.png", "asset.json"}
    record = next(file for file in files if file.endswith("asset.json"))
    assert '"seed": 3' in Path(record).read_text("utf-8")
    # The folder that the asset was saved in is gone; what remains lies in the page's own store.
    assert list((store / "tmp").glob("trilift-demo-*")) == []


def test_the_model_is_loaded_once(client: Any, loader: Loader, photo: Path) -> None:
    for _ in range(2):
        client.predict(photo=upload(photo), resolution=64, api_name="/lift")
    assert loader.calls == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        pytest.param("notes.png", b"this is not a picture", r"notes\.png", id="not an image"),
        pytest.param("empty.png", b"", r"empty\.png", id="zero bytes"),
    ],
)
def test_a_bad_upload_gets_a_friendly_message(
    client: Any, tmp_path: Path, store: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Exception, match=words) as raised:
        client.predict(photo=upload(tmp_path / name), resolution=64, api_name="/lift")
    # Where the server keeps uploads is nobody's business.
    assert str(store) not in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_nothing_left_in_the_picture(client: Any, tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (10, 20, 30, 0)).save(tmp_path / "glass.png")
    with pytest.raises(Exception, match=r"glass\.png.*transparent"):
        client.predict(photo=upload(tmp_path / "glass.png"), resolution=64, api_name="/lift")


def test_no_photo(client: Any) -> None:
    with pytest.raises(Exception, match="Choose a photo first"):
        client.predict(photo=None, api_name="/lift")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param({"resolution": 4096}, "greater than maximum", id="too fine"),
        pytest.param({"elevation": 200}, "greater than maximum", id="elevation"),
        pytest.param({"background": "blur"}, "blur", id="background"),
        pytest.param({"formats": ["exe"]}, "exe", id="format"),
    ],
)
def test_values_from_outside_are_checked(client: Any, photo: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match=words):
        client.predict(photo=upload(photo), api_name="/lift", **arguments)


def test_files_of_the_server_are_not_served(server: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"{server}gradio_api/file={secret}", timeout=10)
    assert raised.value.code in (403, 404)


def test_the_page_has_one_public_endpoint_and_a_bounded_queue(client: Any, server: str) -> None:
    assert list(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == ["/lift"]
    with urllib.request.urlopen(f"{server}config", timeout=10) as answer:
        config = json.load(answer)
    assert config["analytics_enabled"] is False
    assert build_app(Loader())._queue.max_size == 16


def test_the_page_asks_no_other_machine_for_fonts(server: str) -> None:
    with urllib.request.urlopen(f"{server}theme.css", timeout=10) as answer:
        theme = answer.read().decode()
    assert "system-ui" in theme
    # Pictures inside the style sheet name the SVG namespace, which nobody fetches.
    assert set(re.findall(r"https?://([^/\"']+)", theme)) <= {"www.w3.org"}


def test_it_listens_on_this_machine_only_unless_told() -> None:
    options = launch_options()
    assert options["server_name"] == "127.0.0.1"
    assert options["share"] is False
    assert options["allowed_paths"] == []
    assert 1024 <= options["server_port"] <= 65535
    assert launch_options("0.0.0.0", 8123, share=True)["server_port"] == 8123


def test_main_hands_over_what_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import gradio as gr

    launched: dict[str, Any] = {}
    monkeypatch.setattr(gr.Blocks, "launch", lambda self, **options: launched.update(options))
    monkeypatch.setattr(ImageTo3D, "from_pretrained", lambda name, device: ImageTo3D(FakeModel()))
    assert main(["--port", "8124", "--host", "localhost"]) == 0
    assert (launched["server_name"], launched["server_port"], launched["share"]) == ("localhost", 8124, False)


def test_main_says_when_it_cannot_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    import gradio as gr

    def refuse(self: Any, **_: Any) -> None:
        raise OSError("Cannot find empty port in range: 8124-8124.")

    monkeypatch.setattr(gr.Blocks, "launch", refuse)
    monkeypatch.setattr(ImageTo3D, "from_pretrained", lambda name, device: ImageTo3D(FakeModel()))
    with pytest.raises(TriliftError, match=r"127\.0\.0\.1:8124 cannot be listened on.*--port 0"):
        main(["--port", "8124"])


def test_the_cutout_is_shown_with_its_warnings(tmp_path: Path) -> None:
    bench = Workbench(Loader(), str)
    picture, about = bench.preview(str(draw_photo(tmp_path / "ball.jpg", COLOR)), "auto")
    assert picture is not None and picture.shape[2] == 4
    assert about.startswith("Background removed by colours alone.\n"), "the classical cut-out comes with a warning"
    kept, about = bench.preview(str(tmp_path / "ball.jpg"), "keep")
    assert kept is not None and about == "The whole picture."
    assert bench.preview(None, "auto") == (None, "")


def test_every_choice_of_the_page_is_a_setting() -> None:
    for _, background in BACKGROUNDS:
        assert LiftSettings(background=background).background == background  # type: ignore[arg-type]
    assert LiftSettings(formats=("glb", *EXTRA_FORMATS)).formats[0] == "glb"


def test_every_stage_has_words(tmp_path: Path, photo: Path) -> None:
    stages: list[str] = []
    Workbench(Loader(), str).lift(str(photo), resolution=32, on_stage=stages.append)
    assert stages == list(STAGES)


def test_the_page_uses_public_names_only() -> None:
    import ast

    tree = ast.parse((Path(__file__).parents[2] / "demo" / "app.py").read_text("utf-8"))
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "trilift"
        for alias in node.names
    }
    assert names
    assert names <= set(trilift.__all__)
