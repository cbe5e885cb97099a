"""The log of a folder run, and what is known from it; claims of several processes; sets of many names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiview.errors import OutputError, SettingsError
from trilift.batch import LiftResult
from trilift.claims import LOCK_FILE, Claims, sweep
from trilift.journal import Journal, Known, append_lines
from trilift.keysets import KeySet, key_of

ROOT = Path(__file__).resolve().parents[2]


def row(source: str, status: str = "done", **changes: object) -> LiftResult:
    told = {"fingerprint": f"f-{source}", "mark": "m", "run": "r", **changes}
    return LiftResult(source, status, 1.0, **told)  # type: ignore[arg-type]


# The log


def test_a_torn_last_line_is_closed_before_the_next(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    append_lines(path, ["one"])
    with open(path, "a") as file:
        file.write('{"torn')
    append_lines(path, ["two", "three"])
    assert path.read_text() == 'one\n{"torn\ntwo\nthree\n'


def test_a_log_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"log\.jsonl: could not be written"):
        append_lines(tmp_path / "file" / "log.jsonl", ["one"])


def test_rows_are_read_around_damage(tmp_path):
    journal = Journal(tmp_path)
    assert list(journal.read()) == [] and list(journal.latest()) == []
    journal.append(row("a"), row("b", "failed"))
    with open(journal.path, "ab") as file:
        file.write(b'{"source": "torn", "sta\n[1]\n\xff\xfe\nnull\n{"status": "done"}\n')
    journal.append(row("a", "failed"), row("c"))
    with open(journal.path, "ab") as file:
        file.write(b'{"source": "d", "status": "done"}')  # not ended: may still be being written
    assert [(r["source"], r["status"]) for r in journal.read()] == [
        ("a", "done"), ("b", "failed"), ("a", "failed"), ("c", "done"),
    ]  # fmt: skip
    assert [(r["source"], r["status"]) for r in journal.latest()] == [("b", "failed"), ("a", "failed"), ("c", "done")]
    offset = next(offset for offset, r in journal.rows() if r["source"] == "b")
    assert journal.row_at(offset) == row("b", "failed").as_json() and journal.row_at(offset + 1) is None


def test_names_that_are_no_unicode_come_back(tmp_path):
    journal = Journal(tmp_path)
    journal.append(row("caf\udce9.png"), row("über.png"))
    assert [r["source"] for r in journal.read()] == ["caf\udce9.png", "über.png"]
    assert "über" in journal.path.read_text("utf-8")


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["done", "failed"])), max_size=12))
def test_the_latest_row_of_each_photo_counts(rows):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(folder)
        journal.append(*(row(source, status) for source, status in rows))
        assert {r["source"]: r["status"] for r in journal.latest()} == dict(rows)
        assert len(list(journal.latest())) == len(dict(rows))


def test_what_is_known_follows_the_log(tmp_path):
    journal = Journal(tmp_path)
    known = Known(journal)
    journal.append(row("a", place="there/a"), row("b", "failed", error="no"))
    assert not known.is_finished("a", "f-a")
    known.refresh()
    assert known.is_finished("a", "f-a") and known.is_finished("a", "f-a", "m", "r") and known.example == "there/a"
    assert not known.is_finished("a", "f-b") and not known.is_finished("a", "f-a", "m", "other")
    assert known.has_failed("b") and not known.has_failed("a")
    for told in (("f-b",), ("m", "r")):
        failure = known.failure("b", *told)
        assert failure is not None and failure["error"] == "no"
    assert known.failure("b", "f-a") is None
    other = Journal(tmp_path)  # as another process does
    other.append(row("b"))
    known.refresh()
    assert known.failure("b", "f-b") is None and known.failure("b", "m", "r") is None and known.is_finished("b", "f-b")


def test_several_processes_append_whole_lines(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\n"
        "from trilift.journal import append_lines\n"
        "for n in range(40): append_lines(Path(sys.argv[1]), [sys.argv[2] * 5000 for _ in range(3)])"
    )
    path = tmp_path / "log"
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "xyz"]
    assert [process.wait() for process in running] == [0, 0, 0]
    lines = path.read_text().splitlines()
    assert len(lines) == 360 and {(len(line), len(set(line))) for line in lines} == {(5000, 1)}


# Sets of names


@given(st.lists(st.integers(0, 200)), st.lists(st.integers(0, 200)))
def test_a_key_set_is_a_set(put, asked):
    import trilift.keysets as keysets

    before, keysets._MERGE_FROM = keysets._MERGE_FROM, 4  # so that both of its halves are used
    try:
        keys = KeySet()
        for number in put:
            keys.add(key_of(str(number)))
    finally:
        keysets._MERGE_FROM = before
    assert [key_of(str(n)) in keys for n in asked] == [n in put for n in asked]


def test_keys_tell_parts_apart():
    assert len({key_of("ab"), key_of("a", "b"), key_of("a", None, "b"), key_of("a", "", "b"), key_of("b", "a")}) == 5
    assert 0 <= key_of("\udce9") < 2**63


# Claims

HOLD = (
    f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom pathlib import Path\nfrom trilift.claims import Claims\n"
    "claims = Claims(Path(sys.argv[1]), alone=len(sys.argv) > 3)\n"
    "print(claims.take(sys.argv[2]), flush=True)\nsys.stdin.readline()\n"
    "claims.close()"
)


def holder(out: Path, source: str, *alone: str) -> subprocess.Popen[str]:
    """Another process that claims ``source`` and holds it until its input ends; has said whether it got it."""
    command = [sys.executable, "-c", HOLD, str(out), source, *alone]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline().strip() == "True"


def test_one_process_has_a_photo_and_death_gives_it_back(tmp_path):
    other = holder(tmp_path, "a.png")
    assert said(other)
    mine = Claims(tmp_path)
    assert not mine.take("a.png") and mine.take("b.png")
    other.kill()
    other.communicate()
    assert mine.take("a.png")
    third = holder(tmp_path, "b.png")
    assert not said(third)
    mine.release("b.png")
    third.communicate("\n")
    mine.close()
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_run_that_shares_nothing_is_alone(tmp_path):
    other = holder(tmp_path, "a.png")
    assert said(other)
    with pytest.raises(SettingsError, match=r"another run works on it just now.* -o"):
        Claims(tmp_path, alone=True)
    Claims(tmp_path).close()  # those that share come in, also after somebody was refused
    other.communicate("\n")
    ray = holder(tmp_path, "a.png", "alone")
    assert said(ray)
    for alone in (False, True):
        with pytest.raises(SettingsError, match=r"--engine ray.*Wait until that one ends"):
            Claims(tmp_path, alone=alone)
    ray.kill()
    ray.communicate()
    Claims(tmp_path, alone=True).close()
    assert not (tmp_path / LOCK_FILE).exists()


def test_what_killed_processes_left_is_swept_by_the_next_or_the_last(tmp_path):
    def litter() -> list[Path]:
        paths = [tmp_path / ".aside-1" / "new" / "mesh.glb", tmp_path / "sub" / ".aside-2.jsonl"]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half")
        return [tmp_path / ".aside-1", paths[1]]

    (tmp_path / "asset" / ".aside-theirs").mkdir(parents=True)
    (tmp_path / "asset" / "asset.json").write_text("{}")
    left = litter()
    clean = Claims(tmp_path)  # there was no lock file: nobody died here, and what lies about is not ours
    assert clean.swept == 0 and all(path.exists() for path in left)
    dying = holder(tmp_path, "a.png")
    assert said(dying)
    dying.kill()
    dying.communicate()
    clean.close()  # the last one out, and two came
    assert clean.swept == 2 and not any(path.exists() for path in left) and not (tmp_path / LOCK_FILE).exists()
    dying = holder(tmp_path, "a.png")
    assert said(dying)
    left = litter()
    beside = Claims(tmp_path)
    assert beside.swept == 0 and all(path.exists() for path in left)  # they may be the other one's
    beside.close()
    dying.kill()
    dying.communicate()
    after = Claims(tmp_path)
    assert after.swept == 2 and not any(path.exists() for path in left)
    after.close()
    assert (tmp_path / "asset" / ".aside-theirs").is_dir() and sweep(tmp_path) == 0


def test_a_second_run_in_one_process_is_refused(tmp_path):
    first = Claims(tmp_path)
    with pytest.raises(SettingsError, match="another folder run of this process"):
        Claims(tmp_path / "." / "x" / "..")
    first.close()
    first.close()
    Claims(tmp_path).close()


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for _ in range(2):  # the first refusal leaves nothing behind
        with pytest.raises(OutputError, match=r"file: could not be written .* -o"):
            Claims(tmp_path / "file")


def test_without_locks_every_claim_is_granted(tmp_path, monkeypatch):
    import errno

    import trilift.claims

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(trilift.claims.fcntl, "lockf", refuse)
    claims = Claims(tmp_path)
    assert not claims.works and claims.take("a") and claims.take("a")
    claims.release("a")
    claims.close()
    assert json.dumps([p.name for p in tmp_path.iterdir()]) == "[]"
