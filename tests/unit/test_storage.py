"""The log of a run in object storage: how many bytes it costs, and what is left of it whatever dies in between."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from multiview.errors import ImageError, OutputError
from trilift import storage
from trilift.journal import RESULTS_FILE
from trilift.sources import photo_items
from trilift.storage import OutStore, RemoteLog

ROW = b'{"source": "%06d.png", "status": "done", "seconds": 1.234, "place": "%06d"}\n'


class CountedStorage(MemoryFileSystem):
    """Object storage that counts what is sent to it and what is read from it."""

    cachable = False
    sent = 0

    def pipe_file(self, path: str, value: bytes, *args: Any, **options: Any) -> None:
        """See fsspec."""
        self.sent += len(value)
        super().pipe_file(path, value, *args, **options)

    def put_file(self, lpath: str, rpath: str, *args: Any, **options: Any) -> None:
        """See fsspec."""
        self.sent += Path(lpath).stat().st_size
        super().put_file(lpath, rpath, *args, **options)


@pytest.fixture
def system() -> Iterator[CountedStorage]:
    system = CountedStorage()
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def there(system: CountedStorage) -> list[str]:
    """Names of all objects of the run ``/r``."""
    return sorted(path.removeprefix("/r/") for path in system.store)


def grow(folder: Path, rows: range) -> None:
    """Append rows to the log in ``folder``."""
    folder.mkdir(exist_ok=True)
    with open(folder / RESULTS_FILE, "ab") as file:
        file.writelines(ROW % (number, number) for number in rows)


def test_the_bytes_of_a_long_run_are_linear(system: CountedStorage, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(storage, "SEGMENT_BYTES", 2000)
    sent = {}
    for commits in (200, 400):
        folder = tmp_path / str(commits)
        log = RemoteLog(system, f"/{commits}", folder)
        system.sent = 0
        for number in range(commits):
            grow(folder, range(5 * number, 5 * number + 5))
            log.publish()
        sent[commits] = system.sent
        total = (folder / RESULTS_FILE).stat().st_size
        # Each commit sends what is new and at most one segment again; the whole log each time would be 200 times total.
        assert system.sent <= total + commits * 2000
        log.publish(whole=True)
        assert system.sent == sent[commits] + total
    assert sent[400] < 2.1 * sent[200]


def test_whatever_dies_the_log_comes_back_row_by_row(system: CountedStorage, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(storage, "SEGMENT_BYTES", 700)
    draw, written = random.Random(5), 0
    for run in range(30):
        folder = tmp_path / str(run)  # each run on another machine, which has nothing of those before
        log = RemoteLog(system, "/r", folder)
        log.fetch()
        found = (folder / RESULTS_FILE).read_bytes() if written else b""
        assert found == b"".join(ROW % (number, number) for number in range(written)), f"before run {run}"
        for _ in range(draw.randrange(1, 6)):
            count = draw.randrange(1, 25)
            grow(folder, range(written, written + count))
            log.publish()
            written += count
        if draw.random() < 0.4:
            log.publish(whole=True)
            assert there(system) == [RESULTS_FILE]
        grow(folder, range(written, written + 2))  # killed before these were uploaded: they are lost, no others


def test_a_run_that_dies_between_the_whole_log_and_its_segments(system: CountedStorage, tmp_path: Path) -> None:
    log = RemoteLog(system, "/r", tmp_path / "a")
    grow(tmp_path / "a", range(10))
    log.publish()
    assert there(system) == [".results/000000000000000.jsonl"]
    system.pipe_file(f"/r/{RESULTS_FILE}", (tmp_path / "a" / RESULTS_FILE).read_bytes())
    (tmp_path / "b").mkdir()
    other = RemoteLog(system, "/r", tmp_path / "b")
    other.fetch()
    assert (tmp_path / "b" / RESULTS_FILE).read_bytes() == (tmp_path / "a" / RESULTS_FILE).read_bytes()
    before = system.sent
    other.publish(whole=True)  # nothing is new: nothing is sent, and what is there twice goes
    assert system.sent == before and there(system) == [RESULTS_FILE]


def test_a_log_of_another_history_is_replaced_and_never_mixed(system: CountedStorage, tmp_path: Path) -> None:
    grow(tmp_path / "here", range(100, 140))
    grow(tmp_path / "there", range(10))
    RemoteLog(system, "/r", tmp_path / "there").publish()
    log = RemoteLog(system, "/r", tmp_path / "here")
    log.fetch()
    log.publish()
    assert there(system) == [RESULTS_FILE]
    grow(tmp_path / "here", range(140, 145))
    log.publish()
    (tmp_path / "new").mkdir()
    RemoteLog(system, "/r", tmp_path / "new").fetch()
    rows = (tmp_path / "new" / RESULTS_FILE).read_bytes()
    assert rows == b"".join(ROW % (number, number) for number in range(100, 145))


def test_a_gap_is_told_and_nothing_is_overwritten(tmp_path: Path, monkeypatch: Any) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    system.store.clear()
    monkeypatch.setattr(storage, "SEGMENT_BYTES", 500)
    out = OutStore("memory://r", tmp_path)
    grow(out.local, range(30))
    out.publish_log()
    names = sorted(path for path in system.store if ".results" in path)
    assert len(names) > 2
    system.rm_file(names[1])
    other = OutStore("memory://r", tmp_path / "other")
    with pytest.raises(OutputError, match=r"r/results\.jsonl: could not be fetched \(ValueError: bytes \d+ to \d+ of"):
        other.fetch_log()
    assert not (other.local / RESULTS_FILE).exists()
    system.store.clear()


def test_two_processes_that_end_together_both_end_well(
    system: CountedStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = RemoteLog(system, "/run", tmp_path)
    grow(tmp_path, range(5))
    first.publish()
    second = RemoteLog(system, "/run", tmp_path)
    second.fetch()
    grow(tmp_path, range(5, 9))
    remove, others = system.rm_file, [lambda: second.publish(whole=True)]

    def beaten(path: str) -> None:
        if others:
            others.pop()()
        remove(path)

    monkeypatch.setattr(system, "rm_file", beaten)
    first.publish(whole=True)
    assert not others
    assert system.cat_file("/run/results.jsonl") == (tmp_path / "results.jsonl").read_bytes()


def test_an_empty_log_there_is_no_history(system: CountedStorage, tmp_path: Path) -> None:
    system.pipe_file("/run/results.jsonl", b"")
    log = RemoteLog(system, "/run", tmp_path)
    log.fetch()
    grow(tmp_path, range(3))
    log.publish(whole=True)
    assert system.cat_file("/run/results.jsonl") == (tmp_path / "results.jsonl").read_bytes()


@pytest.mark.parametrize("line", ["file://{}", "local://{}", "zip://a.png::file://{}", "zip://a.png::{}"])
def test_a_list_from_elsewhere_chooses_no_file_of_this_machine(
    system: CountedStorage, tmp_path: Path, line: str
) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    system.pipe_file("/l/list.txt", f"{line.format(secret)}\n".encode())
    (item,) = photo_items("memory:///l/list.txt", "memory:///out")
    with pytest.raises(ImageError, match="to a file of this machine"):
        item.fetch(tmp_path / "scratch")
