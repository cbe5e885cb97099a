"""Turntables, sheets and moving pictures."""

from __future__ import annotations

import errno
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from lrm.field import FunctionField
from lrm.mesh import Mesh
from multiview.errors import FieldError, ImageError, OutputError, SettingsError
from trilift import turntable as module
from trilift.turntable import sheet, turntable, video_writer, write_gif, write_video


def sided_box(shift: float = 0.0) -> Mesh:
    """A box, red on the world's +x side, green on -x, and blue on +y; vertices split by face."""
    box = trimesh.creation.box((1, 1, 1))
    normals = np.repeat(np.rint(box.face_normals), 3, 0)
    colors = np.stack([normals[:, 0] > 0, normals[:, 0] < 0, normals[:, 1] > 0], 1).astype(np.float32)
    return Mesh(box.triangles.reshape(-1, 3) + shift, np.arange(36).reshape(-1, 3), colors)


def test_begins_at_the_photographed_side_and_turns_toward_plus_y() -> None:
    frames = turntable(sided_box(), frames=4, size=32, elevation_deg=0, shading=False)
    assert frames.shape == (4, 32, 32, 3) and frames.dtype == np.uint8
    assert [frame[16, 16].tolist() for frame in frames] == [[255, 0, 0], [0, 0, 255], [0, 255, 0], [0, 0, 0]]
    assert frames[:, 0, 0].tolist() == [[255] * 3] * 4


def test_whole_object_fits_wherever_it_stands() -> None:
    frames = turntable(sided_box(shift=5.0), frames=6, size=48, elevation_deg=30, background=None)
    assert frames.shape == (6, 48, 48, 4)
    alpha = frames[..., 3] > 0
    assert not alpha[:, [0, -1]].any() and not alpha[:, :, [0, -1]].any(), "nothing touches the border"
    wide = alpha.any(1).sum(1)
    assert wide.max() > 0.6 * 48, "and it is not lost in the middle"
    columns = np.nonzero(alpha.any((0, 1)))[0]
    assert abs(columns.mean() - 23.5) < 1, "centred"


def test_a_field_is_turned_too() -> None:
    ball = FunctionField(
        density_fn=lambda p: 200.0 * ((p - torch.tensor([0.0, 0.0, 0.3])).norm(dim=-1) < 0.3).float(),
        color_fn=lambda p: torch.stack([(p[:, 0] > 0).float(), (p[:, 0] <= 0).float(), torch.zeros(len(p))], -1),
    )
    frames = turntable(ball, frames=2, size=32, elevation_deg=0, background=None)
    assert frames[0, 16, 16].tolist() == [255, 0, 0, 255] and frames[1, 16, 16].tolist() == [0, 255, 0, 255]
    assert frames[0, 0, 0, 3] == 0 and (frames[0, ..., 3] > 128).sum() > 300, "the ball fills the picture"
    with pytest.raises(FieldError, match="no density of 10"):
        turntable(FunctionField(lambda p: torch.zeros(len(p)), lambda p: torch.zeros(len(p), 3)))


def test_bad_counts_are_refused() -> None:
    with pytest.raises(SettingsError, match="0 frames of 8 px"):
        turntable(sided_box(), frames=0, size=8)


def test_sheet_places_pictures_in_rows() -> None:
    images = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)]
    page = sheet(images, 2, gap=1, background=99)
    assert page.shape == (5, 7, 3)
    assert page[0, 0, 0] == 10 and page[1, 4, 0] == 20 and page[3, 0, 0] == 30
    assert (page[2] == 99).all() and (page[:, 3] == 99).all() and (page[3:, 4:] == 99).all()


def test_sheet_composites_alpha() -> None:
    image = np.zeros((1, 2, 4), np.uint8)
    image[0, 0] = (200, 100, 0, 255)
    assert sheet([image], 5)[0].tolist() == [[200, 100, 0], [255, 255, 255]]


@pytest.mark.parametrize(
    ("images", "columns", "error", "words"),
    [
        ([], 2, ImageError, "at least one"),
        ([np.zeros((2, 2, 3), np.uint8), np.zeros((3, 2, 3), np.uint8)], 2, ImageError, r"\(2, 2\), \(3, 2\)"),
        ([np.zeros((2, 2, 3), np.uint8)], 0, SettingsError, "columns >= 1"),
    ],
)
def test_sheet_refuses(images: list[np.ndarray], columns: int, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        sheet(images, columns)


def read_gif(path: Path) -> tuple[np.ndarray, list[int]]:
    """(K, H, W, 4) and the durations in milliseconds."""
    frames, durations = [], []
    with Image.open(path) as gif:
        for index in range(gif.n_frames):
            gif.seek(index)
            frames.append(np.asarray(gif.convert("RGBA")))
            durations.append(gif.info["duration"])
    return np.stack(frames), durations


def test_gif_keeps_flat_colours_exactly_and_its_pace(tmp_path: Path) -> None:
    frames = np.full((3, 16, 16, 3), 255, np.uint8)
    for index, color in enumerate([(200, 30, 40), (20, 180, 90), (1, 2, 3)]):
        frames[index, 4:12, 4 + index : 12 + index] = color
    write_gif(frames, tmp_path / "a.gif", fps=12.5)
    back, durations = read_gif(tmp_path / "a.gif")
    assert np.abs(back[..., :3].astype(int) - frames).max() <= 4, "Pillow's palette search is good to 4 levels"
    assert (back[:, 0, 0, :3] == 255).all() and durations == [80, 80, 80]


def test_gif_gradients_are_right_on_average(tmp_path: Path) -> None:
    y, x = np.mgrid[0:64, 0:64] / 63.0
    frame = np.rint(np.stack([x, y, 1 - x * y], -1) * 255).astype(np.uint8)
    write_gif(frame[None], tmp_path / "a.gif")
    back = read_gif(tmp_path / "a.gif")[0][0, ..., :3].astype(float)
    blocks = (back - frame).reshape(8, 8, 8, 8, 3).mean((1, 3))
    # Without the dithering the means of 8 x 8 blocks are off by up to 4.4 levels, 0.97 on average.
    assert np.abs(blocks).max() < 3.4 and np.abs(blocks).mean() < 0.75


def test_gif_with_alpha_is_transparent(tmp_path: Path) -> None:
    frames = np.zeros((2, 8, 8, 4), np.uint8)
    frames[0, :4], frames[1, 4:] = (250, 10, 10, 255), (10, 10, 250, 255)
    write_gif(frames, tmp_path / "a.gif")
    back, _ = read_gif(tmp_path / "a.gif")
    assert np.array_equal(back[..., 3] > 0, frames[..., 3] > 0), "a frame does not show through the next"
    assert np.abs(back[0, 0, 0].astype(int) - [250, 10, 10, 255]).max() <= 4


def test_same_frames_same_gif(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 20, 20, 3), dtype=np.uint8)
    for name in "ab":
        write_gif(frames, tmp_path / f"{name}.gif")
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_gif_refuses_what_is_no_film(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"\(2, 8, 8\)"):
        write_gif(np.zeros((2, 8, 8), np.uint8), tmp_path / "a.gif")
    with pytest.raises(SettingsError, match="fps=0"):
        write_gif(np.zeros((2, 8, 8, 3), np.uint8), tmp_path / "a.gif", fps=0)


def test_gif_on_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match=r"a\.gif.*No space left"):
        write_gif(np.zeros((1, 8, 8, 3), np.uint8), tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())


def test_video_without_its_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert video_writer() is None
    with pytest.raises(SettingsError, match=r"pip install 'trilift\[video\]'"):
        write_video(np.zeros((1, 8, 8, 3), np.uint8), tmp_path / "a.mp4")


def test_video_frames_are_opaque_and_even(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def record(frames: np.ndarray, path: Path, fps: float) -> None:
        seen.append(frames)
        path.write_bytes(b"film")

    monkeypatch.setattr(module, "video_writer", lambda: "av")
    monkeypatch.setitem(module._VIDEO_WRITERS, "av", record)
    write_video(np.zeros((2, 9, 7, 4), np.uint8), tmp_path / "a.mp4")
    assert seen[0].shape == (2, 8, 6, 3) and (seen[0] == 255).all()
    assert (tmp_path / "a.mp4").read_bytes() == b"film" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["imageio_ffmpeg", "av"])
def test_video_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pytest.importorskip(name, reason=f"{name} (extra video) is not installed")
    monkeypatch.setattr(module, "video_writer", lambda: name)
    write_video(np.full((5, 64, 64, 3), 200, np.uint8), tmp_path / "a.mp4", fps=10)
    assert (tmp_path / "a.mp4").read_bytes()[4:8] == b"ftyp"
