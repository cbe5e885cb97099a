"""Weights from the hub: fetched once, checked, offline from then on; every way to fail says what to do.

The hub is a little HTTP server on this machine that speaks what huggingface_hub asks for.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from multiview import hub
from multiview.errors import WeightsError
from multiview.hub import HubFile, NoSuchFileError, cached_file, hub_file, is_hub_id, remembered_sha256

COMMIT, OLDER = "a" * 40, "b" * 40
WEIGHTS = bytes(range(256)) * 40
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


class Hub(ThreadingHTTPServer):
    """A hub of one machine.

    Attributes:
        files: {(repository, file): content}; every revision in ``revisions`` has the same ones.
        gated: repositories that want a login.
        served: what is sent in place of the right content, None for that.
        size: what is said to be its size in place of the right one, None for that.
        asked: every request for a file, "METHOD path".
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {("someone/model", "model.ckpt"): WEIGHTS, ("someone/model", "config.yaml"): b"backbone: {}\n"}
        self.gated = {"someone/gated"}
        self.revisions = {"main": COMMIT, COMMIT: COMMIT, OLDER: OLDER}
        self.served: bytes | None = None
        self.size: int | None = None
        self.asked: list[str] = []


class Answer(BaseHTTPRequestHandler):
    """One request: ``/owner/name/resolve/<revision>/<file>``."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        if "/resolve/" not in self.path:  # what the library asks for its own ends
            return self._refuse(404, "NotFound", "not here")
        self.server.asked.append(f"{self.command} {self.path}")
        owner, name, _, revision, file = (self.path.strip("/").split("?")[0].split("/", 4) + [""] * 5)[:5]
        repository = f"{owner}/{name}"
        content = self.server.files.get((repository, file))
        if repository in self.server.gated:
            return self._refuse(401, "GatedRepo", "Access to model is restricted.")
        if repository not in {r for r, _ in self.server.files}:
            return self._refuse(401, "RepoNotFound", "Repository not found")
        if revision not in self.server.revisions:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        if content is None:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        body = content if self.server.served is None else self.server.served
        self.send_response(200)
        self.send_header("X-Repo-Commit", self.server.revisions[revision])
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(self.server.size or len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache and an empty home for what trilift remembers; the hub may be asked."""
    from huggingface_hub import constants

    for switch in hub.OFFLINE_SWITCHES:
        monkeypatch.delenv(switch, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "hub"


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    with Hub() as server:
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_fetched_once_and_never_asked_again(server: Hub) -> None:
    notes: list[str] = []
    found = hub_file("someone/model", "model.ckpt", sha256=SHA256, size_bytes=10240, on_download=notes.append)
    assert found.path.read_bytes() == WEIGHTS and found.revision == COMMIT
    assert len(notes) == 1 and notes[0].startswith("fetching model.ckpt of someone/model (0 MB) into ")
    asked = len(server.asked)
    assert [line.split()[0] for line in server.asked].count("GET") == 1
    assert {line.split("/resolve/")[1] for line in server.asked} <= {"main/model.ckpt", f"{COMMIT}/model.ckpt"}
    again = hub_file("someone/model", "model.ckpt", sha256=SHA256, on_download=notes.append)
    assert again == found and len(server.asked) == asked and len(notes) == 1


def test_works_offline_once_cached(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cached_file("someone/model", "model.ckpt") is None
    found = hub_file("someone/model", "model.ckpt")
    for switch in hub.OFFLINE_SWITCHES:
        monkeypatch.setenv(switch, "1")
        assert hub_file("someone/model", "model.ckpt") == found == cached_file("someone/model", "model.ckpt")
        with pytest.raises(WeightsError, match=rf"config\.yaml is not on this machine and {switch} is set"):
            hub_file("someone/model", "config.yaml")
        monkeypatch.delenv(switch)
    assert not any("config.yaml" in line for line in server.asked)


def test_a_pinned_revision_is_asked_for(server: Hub) -> None:
    assert hub_file("someone/model", "model.ckpt", revision=OLDER).revision == OLDER
    assert all(f"/resolve/{OLDER}/" in line for line in server.asked)
    assert cached_file("someone/model", "model.ckpt", COMMIT) is None


@pytest.mark.parametrize(
    ("repository", "file", "revision", "words"),
    [
        pytest.param("someone/gated", "model.ckpt", None,
                     r"gated: .*accepted the licence\. Accept it at .*hf auth login \(or set HF_TOKEN\)", id="gated"),
        pytest.param("nobody/model", "model.ckpt", None, "nobody/model: the hub has no such repository, or it is priv",
                     id="no repository"),
        pytest.param("someone/model", "model.ckpt", "v9", "no revision 'v9'", id="no revision"),
        pytest.param("someone/model", "gone.bin", None, r"there is no file gone\.bin in revision main", id="no file"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses(server: Hub, repository: str, file: str, revision: str | None, words: str) -> None:
    with pytest.raises(WeightsError, match=words) as caught:
        hub_file(repository, file, revision=revision)
    assert isinstance(caught.value, NoSuchFileError) == (file == "gone.bin")
    assert caught.value.__cause__ is not None


def test_a_hub_that_cannot_be_reached(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    url = "http://127.0.0.1:9"  # nobody listens on the discard port
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    words = r"someone/model: model\.ckpt is not on this machine and the hub cannot be reached .*folder or file"
    with pytest.raises(WeightsError, match=words):
        hub_file("someone/model", "model.ckpt")


def test_a_full_disk_in_the_middle_of_a_download(server: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import file_download

    def full(url: str, file: Any, **_: Any) -> None:
        file.write(WEIGHTS[:100])
        file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(file_download, "http_get", full)
        with pytest.raises(WeightsError, match=r"does not fit on the disk of .*MB free.*set HF_HOME.*run it again"):
            hub_file("someone/model", "model.ckpt", sha256=SHA256)
    assert cached_file("someone/model", "model.ckpt") is None
    found = hub_file("someone/model", "model.ckpt", sha256=SHA256)
    assert found.path.read_bytes() == WEIGHTS
    assert [p.name for p in home.rglob("*.incomplete")] == []


def test_a_cache_that_may_not_be_written(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refused(*_: Any, **__: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refused)
    with pytest.raises(WeightsError, match=r"cannot be put into .*hub \(Permission denied\).*set HF_HOME"):
        hub_file("someone/model", "model.ckpt")


def test_a_disk_that_is_known_to_be_too_small_is_not_filled(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    server.size = 1_677_000_000
    with pytest.raises(WeightsError, match=r"of 1677 MB does not fit on the disk of .*\(5 MB free\)"):
        hub_file("someone/model", "model.ckpt")
    assert [line.split()[0] for line in server.asked] == ["HEAD"]


def test_a_damaged_download_is_removed_and_fetched_anew(server: Hub) -> None:
    server.served = WEIGHTS[:-1] + b"!"
    with pytest.raises(WeightsError, match=rf"model\.ckpt has sha256 [0-9a-f]{{64}}, expected {SHA256}.*run again"):
        hub_file("someone/model", "model.ckpt")  # held to the sum that the hub itself states
    assert cached_file("someone/model", "model.ckpt") is None
    server.served = None
    assert hub_file("someone/model", "model.ckpt").path.read_bytes() == WEIGHTS


def test_another_release_than_the_known_one_is_refused(server: Hub) -> None:
    with pytest.raises(WeightsError, match=f"expected {'0' * 64}: it is damaged, or another release"):
        hub_file("someone/model", "model.ckpt", sha256="0" * 64)


def test_a_bug_of_ours_is_not_called_a_broken_network(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def broken(*_: Any, **__: Any) -> str:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(ZeroDivisionError):
        hub_file("someone/model", "model.ckpt")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a/b", True), ("stabilityai/TripoSR", True), ("a", False), ("./a", False), ("/a/b", False), ("a/b/c", False),
     ("~/a", False), ("../a", False), ("a/", False)],
)  # fmt: skip
def test_the_form_of_a_repository(name: str, expected: bool) -> None:
    assert is_hub_id(name) == expected


class TestRemembered:
    @pytest.fixture(autouse=True)
    def small(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hub, "_REMEMBER_FROM", 10)

    def test_read_once_until_it_changes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from multiview import weights

        path = tmp_path / "model"
        path.write_bytes(WEIGHTS)
        assert remembered_sha256(path) == SHA256
        read: list[Path] = []
        monkeypatch.setattr(weights, "file_sha256", lambda p: read.append(p) or "f" * 64)
        assert remembered_sha256(path) == SHA256 and read == []
        path.write_bytes(WEIGHTS + b"x")
        assert remembered_sha256(path) == "f" * 64 and len(read) == 1

    @pytest.mark.parametrize("text", ["", "[]", '{"x": 1}'])
    def test_a_damaged_memory_is_no_harm(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "xdg/trilift").mkdir(parents=True)
        (tmp_path / "xdg/trilift/sha256.json").write_text(text)
        (tmp_path / "model").write_bytes(WEIGHTS)
        assert remembered_sha256(tmp_path / "model") == SHA256
        known = json.loads((tmp_path / "xdg/trilift/sha256.json").read_text())
        assert known[str((tmp_path / "model").resolve())][3] == SHA256

    def test_a_home_that_cannot_be_written_is_no_harm(self, tmp_path: Path) -> None:
        (tmp_path / "xdg").write_text("a file where a folder is wanted")
        (tmp_path / "model").write_bytes(WEIGHTS)
        assert remembered_sha256(tmp_path / "model") == SHA256


def test_files_of_a_cache_without_commits_have_no_revision() -> None:
    assert hub._hub_file(Path("/x/models/model.ckpt")) == HubFile(Path("/x/models/model.ckpt"), None)
