"""Files appear whole or not at all, whatever goes wrong on the way."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from multiview.errors import OutputError
from multiview.files import folder_written_whole, write_bytes_whole, write_json_whole, written_whole


def no_space(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_file_appears_at_the_end_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "mesh.glb"
    with written_whole(path) as aside:
        assert aside.parent == path.parent
        assert aside.suffix == ".glb"
        aside.write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert os.listdir(path.parent) == ["mesh.glb"]


def test_an_earlier_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes_whole(path, b"first")
    write_bytes_whole(str(path), b"second")
    assert path.read_bytes() == b"second"


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_bytes_whole(tmp_path / "a.bin", b"x")
        assert os.umask(0o027) == 0o027, "the umask was left changed"
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o640


def test_disk_full_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(OutputError, match=r"a\.bin: could not be written \(No space left on device\)") as raised:
        write_bytes_whole(path, b"new")
    assert isinstance(raised.value.__cause__, OSError)
    assert os.listdir(tmp_path) == ["a.bin"]
    assert path.read_bytes() == b"old"


def test_disk_full_half_way(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Check free space"), written_whole(tmp_path / "a.bin") as aside:
        aside.write_bytes(b"half")
        no_space()
    assert os.listdir(tmp_path) == []


def test_renaming_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OutputError, match="No space left"):
        write_bytes_whole(tmp_path / "a.bin", b"x")
    assert os.listdir(tmp_path) == []


def test_a_folder_stands_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(OutputError, match=r"a\.bin"):
        write_bytes_whole(tmp_path / "a.bin", b"x")
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_file_stands_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"not a folder")
    with pytest.raises(OutputError, match=r"another with -o"):
        write_bytes_whole(tmp_path / "out" / "a.bin", b"x")
    assert (tmp_path / "out").read_bytes() == b"not a folder"


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(OutputError, match=r"\(Permission denied\).*permission of the folder"):
        write_bytes_whole(tmp_path / "a.bin", b"x")


@pytest.mark.parametrize("error", [ValueError("ours"), KeyboardInterrupt()])
def test_other_errors_pass_and_leave_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), written_whole(tmp_path / "a.bin") as aside:
        aside.write_bytes(b"half")
        raise error
    assert os.listdir(tmp_path) == []


def test_json_is_readable_utf8_in_the_given_order(tmp_path: Path) -> None:
    write_json_whole(tmp_path / "a.json", {"z": "Stuhl für später", "a": [1, 2.5, None]})
    text = (tmp_path / "a.json").read_text("utf-8")
    assert list(json.loads(text)) == ["z", "a"]
    assert "für" in text
    assert text.endswith("}\n")


def test_json_without_numbers_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nan"):
        write_json_whole(tmp_path / "a.json", {"x": float("nan")})
    assert os.listdir(tmp_path) == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    with folder_written_whole(folder, last="config.json") as aside:
        (aside / "unet").mkdir()
        (aside / "unet" / "a.bin").write_bytes(b"1")
        (aside / "config.json").write_text("{}")
        assert not folder.exists()
    assert (folder / "unet" / "a.bin").read_bytes() == b"1" and os.listdir(folder.parent) == ["model"]
    with pytest.raises(KeyboardInterrupt), folder_written_whole(folder, last="config.json") as aside:
        (aside / "config.json").write_text("half")
        raise KeyboardInterrupt
    assert (folder / "config.json").read_text() == "{}" and os.listdir(folder.parent) == ["model"]


def test_a_folder_that_is_there_gets_new_files_its_mark_last_and_keeps_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unet").mkdir()
    for name, text in (("config.json", "old"), ("unet/a.bin", "old"), ("notes.txt", "mine")):
        (tmp_path / name).write_text(text)
    order: list[str] = []
    replace = os.replace

    def watched(source: Any, target: Path) -> None:
        order.append(target.name)
        assert not (tmp_path / "config.json").exists()
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    with folder_written_whole(tmp_path, last="config.json") as aside:
        (aside / "unet").mkdir()
        for name in ("config.json", "unet/a.bin", "z.bin"):
            (aside / name).write_text("new")
    assert sorted(order) == ["a.bin", "config.json", "z.bin"] and order[-1] == "config.json"
    found = {name: (tmp_path / name).read_text() for name in ("config.json", "unet/a.bin", "z.bin", "notes.txt")}
    assert found == {"config.json": "new", "unet/a.bin": "new", "z.bin": "new", "notes.txt": "mine"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match=r"file/model: could not be written"),
        folder_written_whole(tmp_path / "file" / "model", last="config.json"),
    ):
        pass
