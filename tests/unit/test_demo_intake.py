"""What visitors send: names, uploads, archives, boxes and paint; nothing may leave its folder or crash anything."""

from __future__ import annotations

import io
import random
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo import intake
from demo.cutting import Box, correct, mask_path, read_layers
from demo.intake import RefusedError, Upload, keep_photo, own_upload, safe_name, unpack_photos
from tests.fakes import draw_photo
from trilift import TriliftError, cut_out, load_photo

HOSTILE_PARTS = [
    "../",
    "..\\",
    "/",
    "C:\\",
    "\x00",
    "\n",
    "\x1b[31m",
    "..",
    ".",
    "~",
    "-",
    "con",
    "\u202e",
    "é",
    "图",
    "a",
]


def hostile_names(count: int) -> list[str]:
    """Names made of what has broken other programs; the seed is fixed."""
    draw = random.Random(20261122)
    return [
        "".join(draw.choices(HOSTILE_PARTS, k=draw.randint(1, 12))) + draw.choice(["", ".png", ".PNG"])
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("chair.png", "chair.png", id="plain"),
        pytest.param("../../etc/passwd", "passwd", id="climbing"),
        pytest.param("C:\\Users\\me\\my chair.jpg", "my chair.jpg", id="windows path"),
        pytest.param("a\x00b\n.png", "ab.png", id="control characters"),
        pytest.param(".hidden.png", "hidden.png", id="hidden"),
        pytest.param("-rf.png", "rf.png", id="an option"),
        pytest.param("CON.png", "_CON.png", id="a device"),
        pytest.param("...", "photo.png", id="dots"),
        pytest.param(None, "photo.png", id="none"),
        pytest.param("стул 图.png", "стул 图.png", id="other scripts"),
        pytest.param("\u202egnp.exe", "gnp.exe", id="right to left"),
    ],
)
def test_names_are_made_harmless(name: str | None, expected: str) -> None:
    assert safe_name(name) == expected


def test_500_hostile_names_stay_in_their_folder(tmp_path: Path) -> None:
    for name in hostile_names(500):
        made = safe_name(name)
        assert made and len(made.encode()) <= 120 and made == Path(made).name
        assert made.isprintable() and not set(made) & set('<>:"|?*\\/') and made[0] not in ".-"
        assert (tmp_path / made).resolve().parent == tmp_path.resolve()
    assert len(safe_name("ж" * 300 + ".png").encode()) <= 120
    assert safe_name("ж" * 300 + ".png").endswith(".png")


def test_only_uploads_are_taken(tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    photo = draw_photo(uploads / "x" / "ball.png")
    assert own_upload(photo, "my ball.png", uploads) == Upload(photo.resolve(), "my ball.png")
    secret = draw_photo(tmp_path / "secret.png")
    (uploads / "link.png").symlink_to(secret)
    for path in (secret, uploads / "link.png", uploads / ".." / "secret.png", uploads, uploads / "none", "a\x00b"):
        with pytest.raises(RefusedError, match="not uploaded here"):
            own_upload(path, None, uploads)


def test_large_uploads_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MAX_UPLOAD_BYTES", 100)
    with pytest.raises(RefusedError, match=r"ball\.png: is too large \(0 MB, at most 0 MB\)"):
        own_upload(draw_photo(tmp_path / "ball.png"), None, tmp_path)


def png_bomb(side: int) -> bytes:
    """A PNG that claims side × side pixels and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
POLYGLOT = b"GIF89a/*" + b"\x00" * 20 + b"*/=1;alert(1)//<script>alert(2)</script>"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(SVG, "not an image", id="svg with a script"),
        pytest.param(POLYGLOT, "pixels|damaged|not an image|small", id="gif and javascript"),
        pytest.param(png_bomb(30_000), "too many pixels", id="bomb"),
        pytest.param(png_bomb(7_000), "too many pixels", id="above the page's own limit"),
        pytest.param(b"%!PS\n(x) show", "not an image", id="postscript"),
        pytest.param(b"", "empty", id="nothing"),
        pytest.param(b"PK\x03\x04" + b"\x00" * 40, "not an image", id="zip"),
    ],
)
def test_hostile_pictures_get_an_answer(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "up.png").write_bytes(content)
    with pytest.raises(RefusedError, match=words) as raised:
        keep_photo(Upload(tmp_path / "up.png", "mine.png"), tmp_path / "kept")
    assert str(tmp_path) not in str(raised.value) and "mine.png" in str(raised.value)
    assert not (tmp_path / "kept").exists()


def pack(path: Path, members: dict[str, bytes]) -> Upload:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, zipfile.ZIP_DEFLATED  # afterwards, so that it stays as it is
            file.writestr(info, data)
    return Upload(path, path.name)


@pytest.fixture
def ball(tmp_path: Path) -> bytes:
    return draw_photo(tmp_path / "ball.png", size=32).read_bytes()


def test_photos_come_out_of_a_zip(tmp_path: Path, ball: bytes) -> None:
    members = {"a.png": ball, "sub/b.jpg": ball, "notes.txt": b"x", "__MACOSX/a.png": b"x", "sub/.c.png": b"x"}
    found = unpack_photos(pack(tmp_path / "p.zip", members), tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in found] == ["a.png", "sub/b.jpg"]
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} == {"a.png", "b.jpg"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param("../evil.png", "points outside", id="climbing"),
        pytest.param("a/../../evil.png", "points outside", id="climbing later"),
        pytest.param("/etc/evil.png", "points outside", id="absolute"),
        pytest.param("C:/evil.png", "characters", id="drive"),
        pytest.param("a\\..\\evil.png", "characters", id="backslash"),
        pytest.param("a\nb.png", "characters", id="newline"),
        pytest.param("/".join(["d"] * 20) + "/e.png", "too long", id="deep"),
        pytest.param("x" * 200 + ".png", "too long", id="long"),
    ],
)
def test_members_that_would_leave_are_refused(tmp_path: Path, ball: bytes, name: str, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        unpack_photos(pack(tmp_path / "p.zip", {"good.png": ball, name: ball}), tmp_path / "in" / "out")
    assert not (tmp_path / "in").exists() and not (tmp_path / "evil.png").exists()


def test_a_name_with_a_nul_is_refused(tmp_path: Path, ball: bytes) -> None:
    archive = pack(tmp_path / "p.zip", {"a\x00b.png": ball})
    with pytest.raises(RefusedError, match="characters"):
        unpack_photos(archive, tmp_path / "out")


def test_500_hostile_members_never_escape(tmp_path: Path, ball: bytes) -> None:
    for number, name in enumerate(hostile_names(500)):
        archive = pack(tmp_path / "p.zip", {name or "x": ball})
        out = tmp_path / "deep" / "er" / str(number)
        try:
            for path in unpack_photos(archive, out):
                assert path.resolve().is_relative_to(out.resolve())
        except RefusedError as error:
            assert str(error).startswith("p.zip: ") and str(error).isprintable()
    assert {path.name for path in tmp_path.iterdir()} <= {"p.zip", "ball.png", "deep"}


def test_links_bombs_and_damaged_archives_are_refused(
    tmp_path: Path, ball: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "l.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(RefusedError, match="is a link"):
        unpack_photos(Upload(tmp_path / "l.zip", "l.zip"), tmp_path / "out")
    (tmp_path / "no.zip").write_bytes(b"PK not a zip")
    with pytest.raises(RefusedError, match=r"no\.zip: is not a zip file"):
        unpack_photos(Upload(tmp_path / "no.zip", "no.zip"), tmp_path / "out")
    with pytest.raises(RefusedError, match="holds no photo"):
        unpack_photos(pack(tmp_path / "t.zip", {"a.txt": b"x"}), tmp_path / "out")
    with pytest.raises(RefusedError, match="too many pixels"):
        unpack_photos(pack(tmp_path / "b.zip", {"a.png": png_bomb(30_000)}), tmp_path / "out")
    monkeypatch.setattr(intake, "MAX_ZIP_BYTES", 1000)
    with pytest.raises(RefusedError, match="would unpack to"):
        unpack_photos(pack(tmp_path / "z.zip", {"a.png": b"0" * 100_000}), tmp_path / "out")
    monkeypatch.setattr(intake, "MAX_ZIP_PHOTOS", 1)
    with pytest.raises(RefusedError, match="holds 2 photos; at most 1"):
        unpack_photos(pack(tmp_path / "m.zip", {"a.png": ball, "b.png": ball}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_member_that_lies_about_its_size_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RefusedError, match="more than it says"):
        intake._copied(io.BytesIO(b"0" * 2000).read, lambda data: len(data), 1000, "p.zip")


# The cut-out by hand.


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Two discs of 16 px radius on white, left and right."""
    y, x = np.mgrid[:96, :192] + 0.5
    pixels = np.full((96, 192, 3), 255, np.uint8)
    for middle, color in ((48, (200, 40, 40)), (144, (40, 40, 200))):
        pixels[np.hypot(x - middle, y - 48) < 16] = color
    (tmp_path / "kept").mkdir()
    Image.fromarray(pixels).save(tmp_path / "kept" / "two.png")
    return tmp_path / "kept" / "two.png"


def test_a_box_leaves_the_rest_out(photo: Path) -> None:
    cutout = correct(photo, "auto", Box(0, 0, 50, 100), [])
    assert cutout.method == "mask"
    with Image.open(mask_path(photo)) as mask:
        alpha = np.array(mask.convert("L"))
    assert alpha.shape == (96, 192) and alpha[48, 48] == 255 and not alpha[:, 96:].any()
    # A disc of radius 16 has 804 px.
    assert (alpha > 127).sum() == pytest.approx(804, rel=0.1)
    assert cut_out(load_photo(photo)).method == "mask", "a lift of the same file takes it, too"


def test_the_brush_adds_and_removes(photo: Path) -> None:
    layer = np.zeros((48, 96, 4), np.uint8)  # half the photo's size
    layer[:, 48:] = (216, 0, 0, 255)
    layer[0:4, 0:4] = (0, 168, 0, 255)
    correct(photo, "auto", Box(), [layer])
    with Image.open(mask_path(photo)) as mask:
        alpha = np.array(mask.convert("L"))
    assert not alpha[:, 96:].any() and (alpha[:8, :8] == 255).all() and alpha[48, 48] == 255


def test_painting_everything_red_says_so_and_leaves_no_mask(photo: Path) -> None:
    layer = np.zeros((96, 192, 4), np.uint8)
    layer[:] = (216, 0, 0, 255)
    with pytest.raises(TriliftError, match=r"two\.png: nothing is left"):
        correct(photo, "auto", Box(), [layer])
    assert not mask_path(photo).exists()


def test_boxes_and_layers_are_checked() -> None:
    assert Box(10, 0, 60, 100).pixels(200, 100) == (20, 0, 120, 100)
    assert Box().is_whole and not Box(1).is_whole
    with pytest.raises(RefusedError, match="The box is 10 x 100 px"):
        Box(50, 0, 55, 100).pixels(200, 100)
    with pytest.raises(RefusedError, match="cannot be read"):
        read_layers([io.BytesIO(b"no picture")])
    with pytest.raises(RefusedError, match="too many pixels"):
        read_layers([io.BytesIO(png_bomb(5000))])
