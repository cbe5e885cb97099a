"""Previews: what is on them, that they are small, and whose they are."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from lrm.mesh import Mesh
from multiview.errors import OutputError
from multiview.weights import file_sha256
from tests.fakes import draw_photo
from trilift.preview import MAX_BYTES, coarse, is_preview_of, photo_thumbnail, preview_bytes, write_preview


def box(half: tuple[float, float, float] = (0.1, 0.2, 0.4)) -> Mesh:
    """Deep (x), wide (y) and tall (z) by twice ``half``; red at +x, the photographed side, green elsewhere."""
    shape = trimesh.creation.box(extents=[2 * side for side in half]).subdivide()
    vertices = shape.triangles.reshape(-1, 3)  # each face its own corners, so that colours do not run
    red = np.repeat(shape.face_normals[:, 0] > 0.5, 3)
    colors = np.where(red[:, None], (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    return Mesh(vertices=vertices, faces=np.arange(len(vertices)).reshape(-1, 3), colors=colors)


def asset(folder: Path, photo: Path | None = None, **record: object) -> Path:
    draw_photo(folder / "input.png", (0, 0, 255))
    if photo is not None:
        record["photo"] = {"name": str(photo), "sha256": file_sha256(photo)}
    (folder / "asset.json").write_text(json.dumps({"files": [{"name": "input.png"}], **record}))
    return folder


def tiles(data: bytes) -> list[np.ndarray]:
    """The four tiles of a preview as (128, 128, 4) numbers in 0 to 255."""
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(float)
    return [pixels[:128, 128 * i : 128 * (i + 1)] for i in range(4)]


def test_tiles_are_photo_cutout_front_and_side(tmp_path):
    photo = draw_photo(tmp_path / "a.jpg", (255, 0, 255), size=300)
    folder = asset(tmp_path / "a")
    path = write_preview(folder, photo, mesh=box())
    assert path == folder / "preview.webp" and path.stat().st_size <= MAX_BYTES
    shown = tiles(path.read_bytes())
    middle = [tile[64, 64] for tile in shown]
    assert middle[0][0] > 200 and middle[0][1] < 60 and middle[0][2] > 200  # the photo's purple
    assert middle[1][2] > 200 and middle[1][0] < 60  # the cut-out's blue
    assert middle[2][0] > 150 and middle[2][1] < 60  # the front is red
    assert middle[3][1] > 150 and middle[3][0] < 60  # the side is green
    widths = [int((tile[64, :, 3] > 128).sum()) for tile in shown[2:]]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.15)  # 0.4 wide, 0.2 deep
    assert (shown[2][..., 3] > 128).any(1).sum() > 100  # it fills its tile


def test_views_have_a_row_of_their_own(tmp_path):
    folder = asset(tmp_path / "a")
    Image.new("RGB", (400, 200), "white").save(folder / "views.png")
    data = preview_bytes(folder)
    assert data is not None and Image.open(io.BytesIO(data)).size == (512, 256)


def test_the_mesh_is_read_from_its_file(tmp_path):
    from lrm.meshfile import write_mesh

    folder = asset(tmp_path / "a", files=[{"name": "mesh.glb"}])
    write_mesh(box(), folder / "mesh.glb", matrix=np.eye(4)[[1, 2, 0, 3]])
    data = preview_bytes(folder)
    assert data is not None
    assert tiles(data)[2][64, 64, 0] > 150 and tiles(data)[3][64, 64, 1] > 150


def test_the_photo_is_shown_while_it_is_the_one_that_was_lifted(tmp_path):
    photo = draw_photo(tmp_path / "a.png")
    data = preview_bytes(asset(tmp_path / "a", photo))
    assert data is not None and tiles(data)[0][..., 3].max() == 255
    folder = asset(tmp_path / "b", photo)
    draw_photo(photo, (1, 2, 3))
    data = preview_bytes(folder)
    assert data is not None and tiles(data)[0][..., 3].max() == 0


def test_a_preview_is_kept_and_belongs_to_one_record(tmp_path):
    folder = asset(tmp_path / "a")
    first = preview_bytes(folder)
    assert first is not None and is_preview_of(first, (folder / "asset.json").read_bytes())
    (folder / "input.png").unlink()
    assert preview_bytes(folder) == first  # not drawn again
    asset(folder, seed=7)
    draw_photo(folder / "input.png", (255, 255, 0))
    second = preview_bytes(folder)
    assert second is not None and second != first and not is_preview_of(first, (folder / "asset.json").read_bytes())


def test_without_a_record_there_is_no_preview(tmp_path):
    assert preview_bytes(tmp_path) is None and write_preview(tmp_path) is None and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../mesh.glb", "mesh.usdz", "mesh.glb"])
def test_meshes_that_cannot_be_read_leave_their_tiles_empty(tmp_path, name):
    (tmp_path / "mesh.glb").write_bytes(b"glTF")
    folder = asset(tmp_path / "a", files=[{"name": name}])
    (folder / "mesh.glb").write_bytes(b"glTF")
    (folder / "mesh.usdz").write_bytes(b"PK")
    data = preview_bytes(folder)
    assert data is not None and [tile[..., 3].max() for tile in tiles(data)[2:]] == [0, 0]


def test_a_picture_that_does_not_compress_still_fits(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 4), np.uint8)
    folder = asset(tmp_path / "a")
    Image.fromarray(noise).save(folder / "input.png")
    Image.fromarray(np.tile(noise, (1, 2, 1))).save(folder / "views.png")
    data = preview_bytes(folder)
    assert data is not None and len(data) <= MAX_BYTES


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path, monkeypatch):
    folder = asset(tmp_path / "a")
    monkeypatch.setattr("tempfile.mkstemp", lambda **told: (_ for _ in ()).throw(PermissionError(13, "not allowed")))
    with pytest.raises(OutputError, match=r"preview\.webp: could not be written"):
        write_preview(folder)
    assert preview_bytes(folder) is not None  # a report goes on without keeping it


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "clear", "tiny", "missing"])
def test_photos_that_show_nothing_have_no_thumbnail(tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "cut":
        draw_photo(path)
        path.write_bytes(path.read_bytes()[:60])
    elif kind in ("clear", "tiny"):
        Image.new("RGBA", (64, 64) if kind == "clear" else (2, 2), (9, 9, 9, 0 if kind == "clear" else 255)).save(path)
    elif kind != "missing":
        path.write_bytes(b"" if kind == "empty" else b"hello")
    assert photo_thumbnail(path) is None


def test_coarse_meshes_have_the_means_of_their_cells():
    corners = np.array([[0, 0, 0], [0.1, 0, 0], [1, 0, 0], [1, 1, 0]], np.float32)
    colors = np.array([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0]], np.float32)
    faces = np.array([[0, 2, 3], [0, 1, 2], [1, 2, 3]] * 3)
    small = coarse(Mesh(vertices=corners, faces=faces, colors=colors), 2)
    assert small.vertices.tolist() == pytest.approx(np.array([[0.05, 0, 0], [1, 0, 0], [1, 1, 0]]))
    assert small.colors[0].tolist() == [0.5, 0.5, 0.5]
    assert small.faces.tolist() == [[0, 1, 2], [0, 1, 2]] * 3  # the thin one fell into a line


def test_coarse_leaves_small_meshes_alone():
    mesh = box()
    assert coarse(mesh, 64) is mesh
