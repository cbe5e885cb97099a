"""The page, through its public door: a real server on a loopback port, called as gradio's own client calls it."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shlex
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

import trilift
from demo.app import MAX_WAITING, build_app, launch_options, main, parse_auth
from lrm.meshfile import read_mesh
from tests.fakes import HALF_AXES, FakeModel, draw_photo, use_fake_model
from trilift import ImageTo3D, TriliftError, cli

COLOR = (200, 60, 40)
EXAMPLES = sorted((Path(trilift.__file__).parent / "examples").glob("*.png"))


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
    _, url, _ = page.launch(**launch_options(blocks=page), prevent_thread_lock=True, quiet=True)
    yield url
    page.close()
    page.sessions.close()


@pytest.fixture(scope="module")
def client(server: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return connect(server, tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_photo(tmp_path_factory.mktemp("photos") / "ball.png", COLOR)


def connect(server: str, downloads: Path, **options: Any) -> Any:
    from gradio_client import Client

    return Client(server, verbose=False, download_files=str(downloads), **options)


def upload(path: Path) -> Any:
    from gradio_client import handle_file

    return handle_file(str(path))


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def post(url: str, value: Any) -> Any:
    """The answer to JSON."""
    request = urllib.request.Request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def call(server: str, name: str, data: list[Any]) -> str:
    """What a raw caller of ``/lift`` and so on is answered: the stream of events as text."""
    event = post(f"{server}gradio_api/call/{name}", {"data": data})["event_id"]
    with urllib.request.urlopen(f"{server}gradio_api/call/{name}/{event}", timeout=60) as answer:
        return answer.read().decode()  # type: ignore[no-any-return]


def test_a_photo_becomes_a_glb(client: Any, photo: Path, store: Path) -> None:
    mesh, files, info = client.predict(
        photo=upload(photo), resolution=64, elevation=10, seed=3, formats=["obj"], api_name="/lift"
    )
    found = trimesh.load(mesh, force="mesh", process=False)
    assert found.is_watertight
    # File axes: wide (world y), tall (world z), deep (world x); the longest side is 1.
    assert found.extents == pytest.approx(np.array(HALF_AXES)[[1, 2, 0]] / max(HALF_AXES), abs=0.03)
    by_name = {Path(file).name: Path(file) for file in files}
    assert set(by_name) >= {"mesh.glb", "mesh.obj", "input.png", "asset.json"}
    with Image.open(by_name["input.png"]) as image:
        assert image.getpixel((image.width // 2, image.height // 2)) == (*COLOR, 255)
        assert image.getpixel((0, 0))[3] == 0  # type: ignore[index]
    assert (info["vertices"], info["faces"]) == (len(found.vertices), len(found.faces))
    assert info["name"] == "ball" and info["expected_iou"] is None
    record = by_name["asset.json"].read_text("utf-8")
    assert json.loads(record)["seed"] == 3
    assert json.loads(record)["photo"]["name"] == "ball.png"
    assert str(store) not in record, "where the server keeps files is nobody's business"


def test_the_command_line_gives_the_same_mesh(
    client: Any, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh, _, info = client.predict(
        photo=upload(photo), resolution=64, elevation=-12.5, faces=300, seed=7, formats=["stl"], api_name="/lift"
    )
    words = shlex.split(info["command"])
    assert words[:3] == ["trilift", "lift", "ball.png"]
    use_fake_model(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ball.png").write_bytes(photo.read_bytes())
    assert cli.main([*words[1:], "--quiet"]) == 0
    assert sha256(mesh) == sha256("out/ball/mesh.glb")
    assert Path("out/ball/mesh.stl").is_file()


def test_the_model_is_loaded_once(client: Any, loader: Loader, photo: Path) -> None:
    for _ in range(2):
        client.predict(photo=upload(photo), resolution=64, api_name="/lift")
    assert loader.calls == 1


def test_the_api_lists_models(client: Any) -> None:
    rows = client.predict(api_name="/models")
    by_name = {row["name"]: row for row in rows}
    assert by_name["tiny"]["stage"] == "reconstruction" and by_name["tiny"]["here"] is True
    assert by_name["tiny-views"]["stage"] == "views"
    assert all("path" not in row for row in rows)


def test_the_api_makes_views(client: Any, photo: Path) -> None:
    files, info = client.predict(photo=upload(photo), views="tiny-views", view_steps=1, seed=5, api_name="/views")
    names = {Path(file).name for file in files}
    assert names >= {"000.png", "001.png", "views.png", "cameras.json", "transforms.json", "views.json"}
    assert info["seed"] == 5 and len(info["cameras"]) == 6


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        pytest.param("notes.png", b"this is not a picture", r"notes\.png", id="not an image"),
        pytest.param("empty.png", b"", r"empty\.png", id="zero bytes"),
        pytest.param(
            "x.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", "not an image", id="svg"
        ),
    ],
)
def test_a_bad_upload_gets_a_friendly_message(
    client: Any, tmp_path: Path, store: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Exception, match=words) as raised:
        client.predict(photo=upload(tmp_path / name), resolution=64, api_name="/lift")
    assert str(store) not in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_nothing_left_in_the_picture(client: Any, tmp_path: Path) -> None:
    Image.new("RGBA", (64, 64), (10, 20, 30, 0)).save(tmp_path / "glass.png")
    with pytest.raises(Exception, match=r"glass\.png.*transparent") as raised:
        client.predict(photo=upload(tmp_path / "glass.png"), resolution=64, api_name="/lift")
    assert "sessions" not in str(raised.value)


def test_no_photo(client: Any) -> None:
    for name in ("/lift", "/views"):
        with pytest.raises(Exception, match="Choose a photo first"):
            client.predict(photo=None, api_name=name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param({"resolution": 4096}, "greater than maximum", id="too fine"),
        pytest.param({"elevation": 200}, "elevation=200", id="elevation"),
        pytest.param({"elevation": "high"}, "elevation is 'high'; expected degrees", id="words for a number"),
        pytest.param({"background": "blur"}, "blur", id="background"),
        pytest.param({"formats": ["exe"]}, "exe", id="format"),
        pytest.param({"model": "/etc"}, "'/etc' is not a model of this page", id="a path for a model"),
        pytest.param({"views": "../x"}, r"'\.\./x' is not a model of this page", id="a path for a generator"),
    ],
)
def test_values_from_outside_are_checked(client: Any, photo: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match=words):
        client.predict(photo=upload(photo), api_name="/lift", **arguments)


# What is not an upload is not read.


@pytest.mark.parametrize("name", ["lift", "views"])
@pytest.mark.parametrize(
    "path",
    [
        pytest.param("{secret}", id="a file of the server"),
        pytest.param("{store}/../photos/secret.png", id="climbing"),
        pytest.param("/etc/passwd", id="absolute"),
        pytest.param("http://127.0.0.1:9/x.png", id="an address"),
        pytest.param("file:///etc/passwd", id="a file address"),
        pytest.param("a\u0000b", id="NUL"),
    ],
)
def test_paths_of_the_server_are_refused(server: str, store: Path, tmp_path: Path, name: str, path: str) -> None:
    secret = draw_photo(tmp_path / "secret.png")
    said = path.format(secret=secret, store=store)
    payload = {"path": said, "meta": {"_type": "gradio.FileData"}, "orig_name": "x.png"}
    rest = [None, None, None, "tiny", "", 0, 0, 64, "auto", "", "vertex", 0, 1, [], False]
    data = [payload, *(rest if name == "lift" else ["tiny-views", 1, 0, "auto", ""])]
    text = call(server, name, data)
    assert "event: error" in text and "event: complete" not in text
    assert "mesh.glb" not in text


def test_another_visitors_files_are_refused(client: Any, server: str, photo: Path, store: Path) -> None:
    client.predict(photo=upload(photo), resolution=64, api_name="/lift")
    theirs = next((store / "gradio" / "sessions").rglob("input.png"))
    payload = {"path": str(theirs), "meta": {"_type": "gradio.FileData"}, "orig_name": "x.png"}
    text = call(server, "views", [payload, "tiny-views", 1, 0, "auto", ""])
    assert "event: error" in text and "not uploaded here" in text


def test_files_of_the_server_are_not_served(server: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in (secret, "http://127.0.0.1:9/", "/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(f"{server}gradio_api/file={path}", timeout=10)
        assert raised.value.code in (403, 404)


def test_names_of_uploads_do_not_escape(server: str, store: Path, photo: Path) -> None:
    """Multipart bodies written by hand, since clients clean names up."""
    before = {path for path in store.parent.rglob("*") if path.is_file() and store / "gradio" not in path.parents}
    for name in (
        "../../../evil.png",
        "/tmp/evil.png",
        "..\\evil.png",
        "a\x00b.png",
        "x" * 300 + ".png",
        "\x1b[31m.png",
    ):
        body = (
            b'--edge\r\nContent-Disposition: form-data; name="files"; filename="' + name.encode() + b'"\r\n'
            b"Content-Type: image/png\r\n\r\n" + photo.read_bytes() + b"\r\n--edge--\r\n"
        )
        headers = {"Content-Type": "multipart/form-data; boundary=edge"}
        request = urllib.request.Request(f"{server}gradio_api/upload", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                for path in json.load(answer):
                    assert Path(path).resolve().is_relative_to((store / "gradio").resolve())
        except urllib.error.HTTPError as error:
            assert error.code in (400, 413, 422, 500), name
    after = {path for path in store.parent.rglob("*") if path.is_file() and store / "gradio" not in path.parents}
    assert after == before
    with urllib.request.urlopen(f"{server}health", timeout=10) as answer:
        assert json.load(answer)["status"] == "ok"


def test_a_request_with_another_host_name_is_refused(server: str) -> None:
    request = urllib.request.Request(f"{server}config", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=10)
    assert raised.value.code == 421


# The server.


def test_the_page_has_three_public_endpoints_and_a_bounded_queue(client: Any, server: str) -> None:
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert sorted(named) == ["/lift", "/models", "/views"]
    with urllib.request.urlopen(f"{server}config", timeout=10) as answer:
        config = json.load(answer)
    assert config["analytics_enabled"] is False
    assert build_app(Loader())._queue.max_size == MAX_WAITING == 16


def test_the_documentation_has_every_parameter_of_the_api(client: Any) -> None:
    text = (Path(__file__).parents[2] / "docs" / "demo.md").read_text("utf-8")
    for name, endpoint in client.view_api(return_format="dict", print_info=False)["named_endpoints"].items():
        assert f"### `{name}`" in text
        for parameter in endpoint["parameters"]:
            assert f"`{parameter['parameter_name']}`" in text, (name, parameter["parameter_name"])


def test_the_health_address(server: str) -> None:
    with urllib.request.urlopen(f"{server}health", timeout=10) as answer:
        said = json.load(answer)
        assert answer.headers["Content-Type"] == "application/json"
    assert said["status"] == "ok" and said["max_waiting"] == 16 and said["waiting"] == 0


def folders(store: Path) -> set[Path]:
    """Those of the visitors."""
    return set((store / "gradio" / "sessions").glob("*"))


def wait_until_gone(folder: Path) -> None:
    end = time.monotonic() + 60
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.2)
    assert not folder.exists()


def test_what_a_visitor_leaves_is_removed(server: str, photo: Path, store: Path, tmp_path: Path) -> None:
    visitor = connect(server, tmp_path)
    before = folders(store)
    own = draw_photo(tmp_path / "mine.png", (1, 2, 3))
    visitor.predict(photo=upload(own), resolution=64, api_name="/lift")
    (folder,) = folders(store) - before
    assert folder.stat().st_mode & 0o077 == 0, "for this user alone"
    visitor.close()
    wait_until_gone(folder)
    assert [path for path in (store / "gradio").rglob("mine.png")] == []


def test_an_example_outlives_the_visitor_who_uploaded_it(server: str, store: Path, tmp_path: Path) -> None:
    """Gradio keeps equal files once, so that an upload of an example is the page's own copy."""
    example = EXAMPLES[0]
    before, visitor = folders(store), connect(server, tmp_path)
    visitor.predict(photo=upload(example), resolution=64, api_name="/lift")
    (folder,) = folders(store) - before
    visitor.close()
    wait_until_gone(folder)
    assert [path for path in (store / "gradio").glob(f"*/{example.name}")]


def test_two_visitors_keep_their_results_apart(server: str, tmp_path: Path) -> None:
    colors, found = {"red": (200, 40, 40), "blue": (40, 40, 200)}, {}

    def visit(name: str) -> None:
        visitor = connect(server, tmp_path / name)
        mesh, _, _ = visitor.predict(
            photo=upload(draw_photo(tmp_path / name / "same.png", colors[name])), resolution=64, api_name="/lift"
        )
        found[name] = read_mesh(mesh).colors.mean(0)
        visitor.close()

    threads = [threading.Thread(target=visit, args=(name,)) for name in colors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["red"][0] > 2 * found["red"][2] and found["blue"][2] > 2 * found["blue"][0]


def test_the_page_asks_no_other_machine_for_fonts(server: str) -> None:
    with urllib.request.urlopen(f"{server}theme.css", timeout=10) as answer:
        theme = answer.read().decode()
    assert "system-ui" in theme
    # Pictures inside the style sheet name the SVG namespace, which nobody fetches.
    assert set(re.findall(r"https?://([^/\"']+)", theme)) <= {"www.w3.org"}


def test_visitors_without_the_password_see_nothing_but_health(photo: Path, tmp_path: Path) -> None:
    page = build_app(Loader())
    _, url, _ = page.launch(**launch_options(auth=("me", "secret"), blocks=page), prevent_thread_lock=True, quiet=True)
    try:
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(f"{url}config", timeout=10)
        assert raised.value.code == 401
        with urllib.request.urlopen(f"{url}health", timeout=10) as answer:
            assert json.load(answer)["status"] == "ok"
        mesh, _, _ = connect(url, tmp_path, auth=("me", "secret")).predict(
            photo=upload(photo), resolution=64, api_name="/lift"
        )
        assert Path(mesh).stat().st_size > 1000
    finally:
        page.close()
        page.sessions.close()


def test_it_listens_on_this_machine_only_unless_told() -> None:
    options = launch_options()
    assert options["server_name"] == "127.0.0.1"
    assert options["share"] is False and options["auth"] is None
    assert options["allowed_paths"] == []
    assert 1024 <= options["server_port"] <= 65535
    assert launch_options("0.0.0.0", 8123, share=True)["server_port"] == 8123


def fake_launch(monkeypatch: pytest.MonkeyPatch, launch: Any) -> None:
    import gradio as gr

    monkeypatch.setattr(gr.Blocks, "launch", launch)
    monkeypatch.setattr(ImageTo3D, "from_pretrained", lambda name, views, device: ImageTo3D(FakeModel()))


def test_main_hands_over_what_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: dict[str, Any] = {}

    def launch(self: Any, **options: Any) -> None:
        store = Path(os.environ["GRADIO_TEMP_DIR"])
        launched.update(options, store=store, private=store.stat().st_mode & 0o077 == 0)

    fake_launch(monkeypatch, launch)
    assert main(["--port", "8124", "--host", "localhost", "--auth", "me:secret"]) == 0
    assert (launched["server_name"], launched["server_port"], launched["share"]) == ("localhost", 8124, False)
    assert launched["auth"] == ("me", "secret")
    assert launched["private"] and not launched["store"].exists(), "its folder goes with it"


@pytest.mark.parametrize(("link", "auth"), [("https://x.gradio.live", []), (None, []), (None, ["--auth", "me:secret"])])
def test_a_public_link_is_asked_for_and_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], link: str | None, auth: list[str]
) -> None:
    launched: dict[str, Any] = {}

    def launch(self: Any, **options: Any) -> None:
        launched.update(options)
        self.local_url, self.share_url = "http://127.0.0.1:8124/", link

    fake_launch(monkeypatch, launch)
    waited: list[str] = []
    monkeypatch.setattr("gradio.Blocks.block_thread", lambda self: waited.append("until Ctrl-C"))
    assert main(["--port", "8124"]) == 0
    told = capsys.readouterr().err
    assert launched["share"] is False and "public link" not in told and waited == []
    assert main(["--port", "8124", "--share", *auth]) == 0
    told = capsys.readouterr().err
    assert launched["share"] is True and launched["server_name"] == "127.0.0.1"
    assert "--share: whoever has the public link" in told and "through gradio's servers" in told
    assert ("--auth NAME:PASSWORD keeps others out" in told) is not bool(auth)
    assert ("there is no public link" in told and "http://127.0.0.1:8124/" in told) is (link is None)
    assert waited == ["until Ctrl-C"], "with a link or without, the page is there"


def test_without_a_tunnel_the_page_still_runs_and_for_this_machine_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import gradio.networking

    def no_tunnel(**_: Any) -> str:
        raise RuntimeError("Could not create share URL")

    monkeypatch.setattr(gradio.networking, "setup_tunnel", no_tunnel)
    page = build_app(Loader(), tmp_path)
    _, url, public = page.launch(**launch_options(share=True, blocks=page), prevent_thread_lock=True, quiet=True)
    try:
        assert public is None and page.share_url is None
        assert json.load(urllib.request.urlopen(f"{url}health", timeout=30))["status"] == "ok"
        away = urllib.request.Request(f"{url}health", headers={"Host": "x.gradio.live"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(away, timeout=30)
        assert refused.value.code == 421
        page.share_url = "https://x.gradio.live"
        assert urllib.request.urlopen(away, timeout=30).status == 200, "with a link its name is taken"
    finally:
        page.close()
        page.sessions.close()


def test_the_page_promises_only_what_holds(tmp_path: Path) -> None:
    for served in (False, True):
        page = build_app(Loader(), tmp_path / str(served), served=served)
        assert ("Nothing leaves this machine" in json.dumps(page.get_config_file(), default=str)) is not served
        page.sessions.close()


def test_main_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(self: Any, **_: Any) -> None:
        raise OSError("Cannot find empty port in range: 8124-8124.")

    fake_launch(monkeypatch, refuse)
    with pytest.raises(TriliftError, match=r"127\.0\.0\.1:8124 cannot be listened on.*--port 0"):
        main(["--port", "8124"])
    with pytest.raises(TriliftError, match="there is no such folder"):
        main(["--models-dir", str(tmp_path / "none")])
    for text in ("me", "me:", ":secret"):
        with pytest.raises(TriliftError, match="expected NAME:PASSWORD"):
            parse_auth(text)


def test_the_page_uses_public_names_only() -> None:
    names, modules = set(), set()
    for source in (Path(__file__).parents[2] / "demo").glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").startswith("trilift"):
                modules.add(node.module)
                names |= {alias.name for alias in node.names}
    assert names and not any(name.startswith("_") for name in names)
    allowed = {"asset", "generators", "photo", "progress", "settings", "turntable"}
    assert modules <= {"trilift", *(f"trilift.{name}" for name in allowed)}
