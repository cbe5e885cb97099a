"""`train.datasets`: scanned objects as downloaded."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrm.mesh import Mesh
from lrm.meshfile import write_mesh
from multiview.errors import MeshError, SettingsError
from train.datasets import dataset_of, find_objects, read_object, told_datasets
from train.protocol import EvalObject
from train.texturedmesh import TexturedMesh

# A box 1 wide, 2 deep, 4 high along the third axis; its picture is red below and blue above (v up).
CORNERS = [(x, y, z) for z in (0.0, 4.0) for y in (0.0, 2.0) for x in (0.0, 1.0)]
QUADS = [(1, 3, 4, 2), (5, 6, 8, 7), (1, 2, 6, 5), (3, 7, 8, 4), (1, 5, 7, 3), (2, 4, 8, 6)]


def obj_text(order: tuple[int, int, int], library: str, materials: tuple[str, ...] = ("material_0",)) -> str:
    """The box as an OBJ in file axes ``order``; the first material for half of its faces, the last for the rest."""
    lines = [f"mtllib {library}"]
    lines += [f"v {c[order[0]]} {c[order[1]]} {c[order[2]]}" for c in CORNERS]
    lines += ["vt 0.5 0.25", "vt 0.5 0.75"]
    for index, (a, b, c, d) in enumerate(QUADS):
        lines.append(f"usemtl {materials[0] if index < 3 else materials[-1]}")
        lines += [f"f {i}/{1 if i <= 4 else 2} {j}/{1 if j <= 4 else 2} {k}/{1 if k <= 4 else 2}" for i, j, k in
                  ((a, b, c), (a, c, d))]  # fmt: skip
    return "\n".join(lines) + "\n"


def picture() -> Image.Image:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, :, 2], pixels[4:, :, 0] = 255, 255  # the upper rows are high v
    return Image.fromarray(pixels)


def google(folder: Path, name: str, **options: object) -> Path:
    """``NAME/meshes/model.obj`` and the rest as Google Scanned Objects have it: z up."""
    base = folder / name
    (base / "meshes").mkdir(parents=True)
    (base / "materials" / "textures").mkdir(parents=True)
    (base / "meshes" / "model.obj").write_text(obj_text((0, 1, 2), "model.mtl", **options))  # type: ignore[arg-type]
    (base / "meshes" / "model.mtl").write_text(
        "newmtl material_0\n# shader_type beckmann\nmap_Kd texture.png\n\nKd 1 1 1\n\nnewmtl material_1\nKd 0 1 0\n"
    )
    picture().save(base / "materials" / "textures" / "texture.png")
    (base / "model.config").write_text("<model/>")
    return base


def omni(folder: Path, category: str, name: str) -> Path:
    """``raw_scans/CATEGORY/NAME/Scan/Scan.obj`` as OmniObject3D has it: y up."""
    base = folder / "raw_scans" / category / name / "Scan"
    base.mkdir(parents=True)
    (base / "Scan.obj").write_text(obj_text((1, 2, 0), "Scan.mtl"))
    (base / "Scan.mtl").write_text("newmtl material_0\nKd 0.8 0.8 0.8\nmap_Kd Scan.jpg\n")
    picture().save(base / "Scan.jpg", quality=95)
    return base


def zipped(base: Path) -> Path:
    """The folder of an object as the zip that it comes in."""
    path = base.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(base.rglob("*")):
            archive.write(file, file.relative_to(base).as_posix())
    return path


def check_box(mesh: Mesh) -> None:
    """4 high, red at the foot and blue at the top."""
    assert isinstance(mesh, TexturedMesh)
    np.testing.assert_allclose(mesh.vertices.max(0) - mesh.vertices.min(0), (1, 2, 4), atol=1e-5)
    low = mesh.vertices[:, 2] < 2
    assert mesh.colors[low, 0].min() > 0.7 and mesh.colors[low, 2].max() < 0.1
    assert mesh.colors[~low, 2].min() > 0.7 and mesh.colors[~low, 0].max() < 0.1


def test_google_scanned_objects_are_read_with_texture_and_z_up(tmp_path: Path) -> None:
    google(tmp_path, "Mug_blue.v2")
    found = find_objects(tmp_path)
    assert list(found) == ["Mug_blue.v2"]
    check_box(read_object(found["Mug_blue.v2"], 512))
    item = EvalObject.read("Mug_blue.v2", found["Mug_blue.v2"])
    np.testing.assert_allclose(item.mesh.vertices.max(0), (0.25, 0.5, 1), atol=1e-6)


def test_a_google_object_zipped_reads_as_the_folder_does(tmp_path: Path) -> None:
    base = google(tmp_path, "Mug")
    unpacked = read_object(base / "meshes" / "model.obj", 512)
    path = zipped(base)
    assert list(find_objects(tmp_path).values()) == [base / "meshes" / "model.obj"], "the folder counts"
    shutil.rmtree(base)
    assert find_objects(tmp_path) == {"Mug": path}
    mesh = read_object(path, 512)
    check_box(mesh)
    np.testing.assert_array_equal(mesh.vertices, unpacked.vertices)


def test_zips_of_other_things_are_no_objects(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "notes.zip", "w") as archive:
        archive.writestr("notes.txt", "nothing")
    (tmp_path / "broken.zip").write_bytes(b"PK not a zip")
    with pytest.raises(SettingsError, match=r"mesh files.*Unpack the archives first, such as broken.zip, notes.zip"):
        find_objects(tmp_path)


def test_a_zip_with_a_broken_mesh_names_itself(tmp_path: Path) -> None:
    base = google(tmp_path, "Mug")
    (base / "materials" / "textures" / "texture.png").write_bytes(b"no picture")
    path = zipped(base)
    with pytest.raises(MeshError, match=r"Mug\.zip.*texture\.png"):
        read_object(path, 512)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(MeshError, match=r"Mug\.zip.*Download it again"):
        read_object(path, 512)


def test_a_zip_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    base = google(tmp_path / "in", "Mug")
    path = zipped(base)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("meshes/../../escaped.txt", "x")
        archive.writestr("../escaped.txt", "x")
    check_box(read_object(path, 512))
    assert not list(tmp_path.rglob("escaped.txt"))


def test_omniobject3d_is_read_with_texture_and_y_up(tmp_path: Path) -> None:
    omni(tmp_path, "anise", "anise_001")
    omni(tmp_path, "box", "box_002")
    found = find_objects(tmp_path)
    assert list(found) == ["anise_001", "box_002"]
    assert find_objects(tmp_path / "raw_scans" / "anise") == {"anise_001": found["anise_001"]}, "ids stay"
    mesh = read_object(found["anise_001"], 512)
    np.testing.assert_allclose(mesh.vertices.max(0) - mesh.vertices.min(0), (1, 2, 4), atol=1e-5)
    assert isinstance(mesh, TexturedMesh)


def test_up_overrides_what_is_known(tmp_path: Path) -> None:
    path = google(tmp_path, "Mug") / "meshes" / "model.obj"
    extents = {up: np.ptp(read_object(path, 64, up).vertices, 0).round(4).tolist() for up in ("x", "y", "z", "-z")}
    assert extents["z"] == [1, 2, 4] and extents["-z"] == [1, 2, 4]
    assert extents["y"] == [4, 1, 2] and extents["x"] == [2, 4, 1]
    top = read_object(path, 64, "-z")
    assert top.colors[top.vertices[:, 2] < top.vertices[:, 2].mean(), 2].min() > 0.7, "head down: blue below"
    with pytest.raises(SettingsError, match="up='w'"):
        read_object(path, 64, "w")


def test_several_materials_keep_their_pictures(tmp_path: Path) -> None:
    path = google(tmp_path, "Mug", materials=("material_0", "material_1")) / "meshes" / "model.obj"
    mesh = read_object(path, 64)
    assert isinstance(mesh, TexturedMesh)
    of_face = mesh.colors[mesh.faces].mean(1)
    assert mesh.skin is not None
    shown = mesh.skin.slots[mesh.faces[:, 0]] >= 0
    assert np.count_nonzero(shown) == 6 and len(of_face) == 12
    np.testing.assert_allclose(of_face[~shown], [[0, 1, 0]] * 6, atol=0.01)
    assert of_face[shown, 1].max() < 0.1


def test_objects_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    omni(tmp_path / "a", "anise", "anise_001")
    omni(tmp_path / "b", "anise", "anise_001")
    assert list(find_objects(tmp_path)) == ["a/raw_scans/anise/anise_001", "b/raw_scans/anise/anise_001"]


def test_datasets_are_counted_beside_plain_meshes(tmp_path: Path) -> None:
    google(tmp_path, "Mug")
    omni(tmp_path, "anise", "anise_001")
    write_mesh(Mesh(np.array(CORNERS), np.array(QUADS)[:, :3] - 1, np.ones((8, 3))), tmp_path / "plain" / "box.glb")
    found = find_objects(tmp_path)
    assert list(found) == ["Mug", "anise_001", "plain/box"]
    assert told_datasets(list(found.values())) == {"google-scanned-objects": 1, "meshes": 1, "omniobject3d": 1}
    assert dataset_of(found["plain/box"]) is None
