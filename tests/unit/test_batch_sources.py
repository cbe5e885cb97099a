"""Where photos come from: folders, lists, tar shards, object storage; their names, their places, what is wrong."""

from __future__ import annotations

import io
import os
import pickle
import sys
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiview.errors import ImageError, SettingsError
from tests.fakes import draw_photo
from trilift.sources import PhotoItem, expand_braces, photo_items, sibling_places


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())


def found(where: Path | str, out: Path | str = "nowhere", **options: object) -> list[tuple[str, str]]:
    return [(item.source, item.place) for item in photo_items(where, out, **options)]  # type: ignore[arg-type]


# Folders


def test_a_folder_is_searched_sorted_and_picky(tmp_path):
    wanted = ["B.PNG", "a.jpg", "sub/d.jpeg", "sub/deep/c.WebP"]
    touch(*(tmp_path / name for name in wanted))
    touch(tmp_path / "a_mask.png", tmp_path / ".hidden.png", tmp_path / ".git/e.png", tmp_path / "notes.txt")
    touch(tmp_path / "out/e/input.png", tmp_path / "old-run/f/input.png", tmp_path / "old-run/f/asset.json")
    touch(tmp_path / "gas_mask.jpg", tmp_path / "album.png/inside.png")
    places = {"album.png/inside.png": "album.png/inside", "gas_mask.jpg": "gas_mask"}
    expected = {name: name.rsplit(".", 1)[0] for name in wanted} | places
    assert found(tmp_path, tmp_path / "out") == sorted(expected.items())
    assert next(photo_items(tmp_path, "o")).fetch(tmp_path / "unused") == tmp_path / "B.PNG"  # where it is
    assert not (tmp_path / "unused").exists()


def test_what_only_looks_like_a_photo_gets_its_row(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    touch(tmp_path / "z.png")
    assert [source for source, _ in found(tmp_path)] == ["folder.png", "link.jpg", "pipe.png", "z.png"]


@pytest.mark.parametrize(
    ("names", "places"),
    [
        pytest.param(["a/b.c.jpg", "a/b.c.png"], ["a/b.c.jpg", "a/b.c.png"], id="shared-stem"),
        pytest.param(["Chair.png", "chair.jpg"], ["Chair.png", "chair.jpg"], id="case"),
        pytest.param(["A/x.png", "a/x.png"], ["A/x", "a-2/x"], id="folders-that-differ-in-case"),
        pytest.param(["chair.png", "chair/front.png"], ["chair/front", "chair.png"], id="a-folder-of-that-name"),
        pytest.param(["..png", "a.png"], [], id="hidden"),
    ],
)
def test_places_by_hand(tmp_path, names, places):
    touch(*(tmp_path / name for name in names))
    if places:
        assert [place for _, place in found(tmp_path)] == places
    else:
        assert found(tmp_path) == [("a.png", "a")]


@given(
    st.lists(st.text("aA.-2", min_size=1, max_size=4), unique=True), st.lists(st.text("aA.", min_size=1), unique=True)
)
def test_places_never_collide_nor_escape(stems, folders):
    photos = [f"{stem}.png" for stem in stems] + [f"{stem}.jpg" for stem in stems[::2]]
    places = sibling_places(photos, [name for name in folders if name not in photos])
    assert len({place.casefold() for place in places.values()}) == len(places)
    assert all(place not in ("", ".", "..") and "/" not in place for place in places.values())


def test_glob_and_limit(tmp_path):
    touch(*(tmp_path / name for name in ("a.png", "b.JPG", "cars/c.jpg", "cars/old/d.png")))
    assert [s for s, _ in found(tmp_path, glob="*.jpg")] == ["b.JPG", "cars/c.jpg"]
    assert [s for s, _ in found(tmp_path, glob="cars/*")] == ["cars/c.jpg", "cars/old/d.png"]
    assert [s for s, _ in found(tmp_path, limit=2)] == ["a.png", "b.JPG"]
    assert found(tmp_path, glob="*.gif") == []


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(ImageError, match=r"no photos in it or below\. Looked for \.png"):
        found(tmp_path)
    with pytest.raises(ImageError, match="missing: expected a folder of photos, but it does not exist"):
        found(tmp_path / "missing")
    touch(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: expected a folder of photos, but it is a file"):
        found(tmp_path / "a.png")
    with pytest.raises(SettingsError, match="the output folder is the photo folder itself"):
        found(tmp_path, tmp_path / "x" / "..")


def test_memory_is_that_of_one_directory(tmp_path):
    for number in range(40):
        (tmp_path / f"d{number:02d}").mkdir()
        for photo in range(50):
            os.close(os.open(tmp_path / f"d{number:02d}" / f"{photo}.png", os.O_CREAT))

    def held() -> int:
        """Bytes that this package holds; threads of other tests may be at work yet."""
        ours = tracemalloc.Filter(True, "*/trilift/*")
        return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([ours]).traces)

    tracemalloc.start()
    try:
        items = photo_items(tmp_path, "o")
        for _ in range(100):
            next(items)
        early = held()
        for _ in range(1800):
            next(items)
        assert held() < early + 20_000  # 2,000 names would be 200,000 bytes
    finally:
        tracemalloc.stop()


def test_marks_follow_photo_and_mask(tmp_path):
    touch(tmp_path / "a.png")
    (item,) = photo_items(tmp_path, "o")
    assert item.mark() is None  # changed just now, and may be changed again within the clock's tick
    os.utime(tmp_path / "a.png", (1e9, 1e9))
    first = item.mark()
    assert first is not None and item.mark() == first
    touch(tmp_path / "a_mask.png")
    os.utime(tmp_path / "a_mask.png", (1e9, 1e9))
    assert item.mark() not in (None, first)
    assert item.key_bytes() == b"a.png" and pickle.loads(pickle.dumps(item)) == item


def test_a_folder_that_cannot_be_listed_gets_a_row(tmp_path, monkeypatch):
    touch(tmp_path / "a.png", tmp_path / "locked/b.png")
    plain = os.scandir

    def scandir(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return plain(path)

    monkeypatch.setattr(os, "scandir", scandir)
    good, bad = photo_items(tmp_path, "o")
    assert good.source == "a.png" and bad.source == "locked"
    with pytest.raises(ImageError, match=r"locked: cannot be listed \(Permission denied\)"):
        bad.fetch(tmp_path)


# Lists


def test_a_list_in_its_order(tmp_path):
    touch(tmp_path / "photos/b.png", tmp_path / "photos/a.png", tmp_path / "photos/sub/a.png", tmp_path / "else/c.png")
    lines = [
        "b.png",
        "",
        "./sub/a.png",
        "a.png",
        "b.png",
        "../else/c.png",
        "a.jpg",
        "sub.png",
        f"{tmp_path}/else/c.png",
    ]
    listed = tmp_path / "photos" / "list.txt"
    listed.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    items = list(photo_items(listed, "o"))
    outside = f"{tmp_path}/else/c.png"
    assert [(i.source, i.place) for i in items] == [
        ("b.png", "b"), ("sub/a.png", "sub/a"), ("a.png", "a.png"), ("../else/c.png", "else/c"), ("a.jpg", "a.jpg"),
        ("sub.png", "sub.png"), (outside, outside[1:-4]),
    ]  # fmt: skip
    assert items[1].fetch(tmp_path).read_bytes() == b"a.png"
    assert items[3].fetch(tmp_path).samefile(tmp_path / "else/c.png")


# Shards


def add(archive: tarfile.TarFile, name: str, data: bytes = b"x", **changes: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in changes.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(data))


def test_shards_as_webdataset_writes_them(tmp_path):
    for number in range(2):
        with tarfile.open(tmp_path / f"x-{number:03d}.tar", "w") as archive:
            add(archive, "cat.jpg", b"cat%d" % number)
            add(archive, "cat.json", b"{}")
            add(archive, "cat.mask.png", b"mask%d" % number)
            add(archive, "sub/dog.png", b"dog")
            add(archive, "notes.txt")
    scratch = tmp_path / ".scratch"
    items = list(photo_items(str(tmp_path / "x-{000..001}.tar"), "o"))
    assert [(i.source, i.place) for i in items] == [
        ("x-000.tar/cat.jpg", "x-000/cat"), ("x-000.tar/sub/dog.png", "x-000/sub/dog"),
        ("x-001.tar/cat.jpg", "x-001/cat"), ("x-001.tar/sub/dog.png", "x-001/sub/dog"),
    ]  # fmt: skip
    photo = items[2].fetch(scratch / "a")
    assert photo.name == "cat.jpg" and photo.read_bytes() == b"cat1"
    from trilift.photo import find_mask

    mask = find_mask(photo)
    assert mask is not None and mask.read_bytes() == b"mask1"
    assert find_mask(items[3].fetch(scratch / "b")) is None
    folder = [(source, place) for source, place in found(tmp_path)]  # a folder of shards
    assert folder[0] == ("x-000.tar/cat.jpg", "x-000.tar/cat") and len(folder) == 4
    assert found(tmp_path / "x-001.tar")[0] == ("x-001.tar/cat.jpg", "x-001/cat")
    assert pickle.loads(pickle.dumps(items[0])) == items[0]


def test_hostile_members_get_rows_and_never_lead_outside(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "../../evil.png")
        add(archive, "/etc/evil.png")
        add(archive, "link.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "C:\\evil.png")
        add(archive, "empty.png", b"")
        add(archive, "good.png", b"good")
        add(archive, "good.png", b"good again")
        add(archive, "l" * 300 + ".png", b"long")
    items = list(photo_items(tmp_path / "x.tar", "o"))
    problems = {item.source: item.problem for item in items if item.problem}
    words = {"evil": "leads out of the archive", "link": "is a link or a device", "empty": "is empty (0 bytes)"}
    assert len(problems) == 5
    for source, problem in problems.items():
        assert source in problem and any(word in problem for key, word in words.items() if key in source)
    places = [item.place for item in items]
    assert len({place.casefold() for place in places}) == len({item.source for item in items}) == 8
    out = tmp_path / "out"
    assert all((out / place).resolve().is_relative_to(out) and len(Path(place).name) < 200 for place in places)
    assert [i.fetch(tmp_path / str(n)).read_bytes() for n, i in enumerate(items[-3:])] == [
        b"good",
        b"good again",
        b"long",
    ]
    with pytest.raises(ImageError, match="leads out of the archive"):
        items[0].fetch(tmp_path)


def test_a_huge_member_is_refused_from_its_header(tmp_path, monkeypatch):
    from trilift import shards

    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "big.png", b"x" * 2000)
    monkeypatch.setattr(shards, "MAX_FILE_BYTES", 1000)
    (item,) = photo_items(tmp_path / "x.tar", "o")
    assert item.problem is not None and "is too large (2000 bytes, at most 1000)" in item.problem


@pytest.mark.parametrize("how", ["missing", "not-a-tar", "cut-in-a-member", "cut-in-a-header"])
def test_a_broken_shard_gets_a_row_and_the_others_go_on(tmp_path, how):
    for number in range(2):
        with tarfile.open(tmp_path / f"x{number}.tar", "w") as archive:
            add(archive, "a.png", b"a" * 600)
            add(archive, "b.png", b"b" * 3000)
    first = tmp_path / "x0.tar"
    data = first.read_bytes()
    if how == "missing":
        first.unlink()
    else:
        cuts = {"not-a-tar": b"hello" * 200, "cut-in-a-member": data[:2500], "cut-in-a-header": data[:1700]}
        first.write_bytes(cuts[how])
    items = list(photo_items(str(tmp_path / "x{0..1}.tar"), "o"))
    assert [item.source for item in items[-2:]] == ["x1.tar/a.png", "x1.tar/b.png"]
    told = [item for item in items[:-2] if item.problem]
    assert told and any(word in told[-1].problem for word in ("cannot be read on", "is cut short"))
    assert len(items) - len(told) == (2 if how in ("missing", "not-a-tar") else 3)


def test_braces():
    assert expand_braces("a{08..11}{0..1}.tar") == [f"a{n}{m}.tar" for n in ("08", "09", "10", "11") for m in "01"]
    assert expand_braces("plain.tar") == ["plain.tar"]
    with pytest.raises(SettingsError, match=r"\{3\.\.1\} gives -1 shards"):
        expand_braces("x{3..1}.tar")
    with pytest.raises(SettingsError, match=r"expected braces such as \{000\.\.099\}"):
        expand_braces("x{a,b}.tar")


# Object storage


@pytest.fixture
def memory():
    """The in-memory storage of fsspec, empty."""
    import fsspec

    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def test_photos_in_object_storage(memory, tmp_path):
    for name in ("a.jpg", "a_mask.png", "sub/b.PNG", "sub/old/asset.json", "sub/old/input.png", "out/x/input.png"):
        memory.pipe(f"/photos/{name}", name.encode())
    items = list(photo_items("memory://photos", "memory://photos/out"))
    assert [(i.source, i.place) for i in items] == [("a.jpg", "a"), ("sub/b.PNG", "sub/b")]
    photo = items[0].fetch(tmp_path / "s")
    assert photo.read_bytes() == b"a.jpg" and (tmp_path / "s" / "a_mask.png").read_bytes() == b"a_mask.png"
    mark = items[1].mark()
    assert mark is not None and mark == items[1].mark()
    memory.pipe("/photos/sub/b.PNG", b"other")
    assert items[1].mark() != mark
    memory.rm("/photos/sub/b.PNG")
    with pytest.raises(ImageError, match=r"memory://photos/sub/b\.PNG: there is no such object"):
        items[1].fetch(tmp_path / "t")


def test_shards_in_object_storage(memory, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        add(archive, "cat.jpg", b"cat")
    memory.pipe("/shards/x-0.tar", buffer.getvalue())
    (item,) = photo_items("memory://shards/x-{0..0}.tar", "o")
    assert item.source == "x-0.tar/cat.jpg" and item.fetch(tmp_path / "s").read_bytes() == b"cat"
    assert found("memory://shards") == [("x-0.tar/cat.jpg", "x-0.tar/cat")]


def test_storage_that_is_not_there(memory, tmp_path):
    with pytest.raises(ImageError, match="memory://nothing: "):
        found("memory://nothing")
    with pytest.raises(SettingsError, match="fsspec"):
        found("nosuchkind://bucket/photos")
    listed = tmp_path / "list.txt"
    memory.pipe("/photos/a.jpg", b"a")
    listed.write_text("memory://photos/a.jpg\n")
    (item,) = photo_items(listed, "o")
    assert (item.source, item.place) == ("memory://photos/a.jpg", "photos/a")
    assert item.fetch(tmp_path / "s").read_bytes() == b"a"


def test_a_list_in_object_storage(memory, tmp_path):
    for name in ("lists/sub/a.jpg", "b.png", "c.png"):
        memory.pipe(f"/photos/{name}", name.encode())
    lines = ["sub/a.jpg", "../b.png", "memory://photos/c.png", "", "./sub/a.jpg", "/etc/hostname", "../../../x.png"]
    memory.pipe("/photos/lists/photos.TXT", "\n".join(lines).encode())
    items = list(photo_items("memory://photos/lists/photos.TXT", "memory://out"))
    assert [item.source for item in items] == [
        "sub/a.jpg", "../b.png", "memory://photos/c.png", "/etc/hostname", "../../../x.png"
    ]  # fmt: skip
    assert [item.url for item in items[:3]] == [
        "memory://photos/lists/sub/a.jpg", "memory://photos/b.png", "memory://photos/c.png"
    ]  # fmt: skip
    assert [item.fetch(tmp_path / "s").read_bytes() for item in items[:3]] == [b"lists/sub/a.jpg", b"b.png", b"c.png"]
    for item in items[3:]:  # whoever wrote a list elsewhere must not choose files of this machine
        assert item.path is None and item.url is None and item.problem is not None
        with pytest.raises(ImageError, match=r"leads out of the storage of memory://photos/lists/photos\.TXT"):
            item.fetch(tmp_path / "s")
    assert [item.source for item in photo_items("memory://photos/lists/photos.TXT", "o", glob="*.png", limit=1)] == [
        "../b.png"
    ]


def test_a_list_at_a_web_address(tmp_path, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    from trilift import storage

    class Web(MemoryFileSystem):
        """Stands where fsspec's own reader of the web would, which wants a network."""

        protocol = "https"
        cachable = False

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + path.removeprefix("https:").lstrip("/").split("?")[0]

    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "https", Web)
    system, path = storage.file_system("https://host/sets/list.txt?signature=a/b")
    system.pipe(path, b"a.jpg\nhttps://elsewhere/b.jpg\n")
    items = list(photo_items("https://host/sets/list.txt?signature=a/b", "o"))
    assert [item.url for item in items] == ["https://host/sets/a.jpg", "https://elsewhere/b.jpg"]
    assert [item.place for item in items] == ["a", "elsewhere/b"]
    system.rm(path)
    with pytest.raises(ImageError, match=r"list\.txt"):
        list(photo_items("https://host/sets/list.txt", "o"))


def test_an_item_with_a_problem_says_it(tmp_path):
    with pytest.raises(ImageError, match="it is broken"):
        PhotoItem("a", "a", problem="it is broken").fetch(tmp_path)
    assert PhotoItem("a", "a", problem="it is broken").mark() is None


def test_photos_named_like_files_of_the_run_and_folders_in_folders_in_folders(tmp_path: Path) -> None:
    for name in ("results.jsonl.png", "report.html.png", "a.png"):
        draw_photo(tmp_path / "in" / name)
    deep = tmp_path / "in" / "/".join(["d"] * 230)
    deep.mkdir(parents=True)
    draw_photo(deep / "b.png")
    found = {item.source: item for item in photo_items(tmp_path / "in", tmp_path / "out")}
    assert found["results.jsonl.png"].place == "results.jsonl.png"
    assert found["report.html.png"].place == "report.html.png"
    assert found["a.png"].place == "a"
    problems = [item.problem for item in found.values() if item.problem]
    assert len(problems) == 1 and "more than 200 folders down" in problems[0]
