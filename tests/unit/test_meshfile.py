"""Meshes and files: axes, scale, winding, colours and malformed input."""

from __future__ import annotations

import base64
import errno
import importlib.util
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pygltflib
import pytest
import trimesh
from PIL import Image

from lrm.mesh import Mesh
from lrm.meshfile import FORMATS, file_matrix, read_mesh, write_mesh
from multiview.errors import MeshError, OutputError, SettingsError
from tests.glb_check import split_glb, validate_glb

# A closed tetrahedron whose tips tell the world's axes apart: +x is 0.1, +y is 0.2 and +z is 0.4 away from the corner.
TIPS = np.array([[0.0, 0, 0], [0.1, 0, 0], [0, 0.2, 0], [0, 0, 0.4]], np.float32)
OUTWARD = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32)
COLORED = tuple(name for name in FORMATS if name in ("glb", "obj", "ply"))
PLAIN = (*COLORED, "stl")


def tetrahedron(color: float = 0.5, shift: tuple[float, float, float] = (0, 0, 0)) -> Mesh:
    return Mesh(TIPS + np.float32(shift), OUTWARD, np.full((4, 3), color, np.float32))


def write_gltf(path: Path, document: dict[str, Any], arrays: list[np.ndarray]) -> Path:
    """A .gltf with one data-URI buffer; ``arrays`` become accessors 0, 1, ... (VEC by their width, or SCALAR)."""
    data, views, accessors = b"", [], []
    kinds = {np.dtype("f4"): 5126, np.dtype("u1"): 5121, np.dtype("u2"): 5123, np.dtype("u4"): 5125}
    for array in arrays:
        data += b"\0" * (-len(data) % 4)
        views.append({"buffer": 0, "byteOffset": len(data), "byteLength": array.nbytes})
        width = f"VEC{array.shape[1]}" if array.ndim == 2 else "SCALAR"
        entry = {"bufferView": len(views) - 1, "componentType": kinds[array.dtype], "count": len(array), "type": width}
        accessors.append(entry | ({"normalized": True} if array.ndim == 2 and array.dtype.kind == "u" else {}))
        data += array.tobytes()
    uri = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
    whole = {
        "asset": {"version": "2.0"},
        "buffers": [{"byteLength": len(data), "uri": uri}],
        "bufferViews": views,
        "accessors": accessors,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
    }
    path.write_text(json.dumps(whole | document))
    return path


def triangle_gltf(path: Path, colors: np.ndarray | None = None, **document: Any) -> Path:
    """One triangle in file axes, with COLOR_0 when given, and material 0 when the document has materials."""
    attributes = {"POSITION": 0} | ({} if colors is None else {"COLOR_0": 2})
    primitive: dict[str, Any] = {"attributes": attributes, "indices": 1}
    if "materials" in document:
        primitive["material"] = 0
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "f4")
    arrays = [points, np.array([0, 1, 2], "u2")] + ([] if colors is None else [colors])
    return write_gltf(path, {"meshes": [{"primitives": [primitive]}]} | document, arrays)


# --- the map from world to file


def test_file_matrix_centres_turns_and_scales() -> None:
    matrix = file_matrix(tetrahedron(shift=(1, 2, 3)))
    # Longest side 0.4 becomes 1: scale 2.5; the box's centre (1.05, 2.1, 3.2) becomes the origin.
    corner = matrix @ np.array([1, 2, 3, 1.0])
    assert corner == pytest.approx([-0.1 * 2.5, -0.2 * 2.5, -0.05 * 2.5, 1], abs=1e-6)
    assert matrix @ np.array([1, 2, 3.4, 1.0]) - corner == pytest.approx([0, 1, 0, 0], abs=1e-6), "world z is file y"
    assert matrix @ np.array([1.1, 2, 3, 1.0]) - corner == pytest.approx([0, 0, 0.25, 0], abs=1e-6), "world x is file z"
    assert matrix @ np.array([1, 2.2, 3, 1.0]) - corner == pytest.approx([0.5, 0, 0, 0], abs=1e-6), "world y is file x"


def test_file_matrix_height_and_scale() -> None:
    mesh = tetrahedron()
    assert np.linalg.det(file_matrix(mesh, height=2.0)[:3, :3]) == pytest.approx(5.0**3)
    assert np.linalg.det(file_matrix(mesh, scale=3.0)[:3, :3]) == pytest.approx(27.0)
    assert np.linalg.det(file_matrix(mesh, longest_side=0.2)[:3, :3]) == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scale": 1.0, "height": 1.0}, "exclude each other"),
        ({"scale": 0.0}, r"scale=0\.0"),
        ({"height": -2.0}, r"height=-2\.0"),
        ({"height": float("nan")}, "positive"),
        ({"longest_side": float("inf")}, "longest_side"),
    ],
)
def test_file_matrix_refuses(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        file_matrix(tetrahedron(), **arguments)


def test_file_matrix_needs_an_extent() -> None:
    flat = Mesh(np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1]]), np.array([[0, 1, 2]]), np.zeros((3, 3)))
    with pytest.raises(MeshError, match="bounding box"):
        file_matrix(flat, height=1.0)
    assert file_matrix(flat)[0, 1] == pytest.approx(1.0)


# --- every format, read by others


@pytest.mark.parametrize("name", PLAIN)
def test_trimesh_sees_it_upright_front_and_outward(tmp_path: Path, name: str) -> None:
    write_mesh(tetrahedron(), tmp_path / f"a.{name}")
    seen = trimesh.load(tmp_path / f"a.{name}", force="mesh")
    assert seen.extents == pytest.approx([0.5, 1.0, 0.25], abs=1e-6), "y is up and 1 high"
    assert seen.bounds.sum(0) == pytest.approx([0, 0, 0], abs=1e-6), "centred"
    front = seen.vertices[seen.vertices[:, 2].argmax()]
    assert front == pytest.approx([-0.25, -0.5, 0.125], abs=1e-6), "the tip toward world +x is toward file +z"
    assert seen.volume == pytest.approx(0.5 * 1.0 * 0.25 / 6, rel=1e-5), "outward faces have a positive volume"
    assert seen.is_watertight
    if name != "stl":
        centroid = np.asarray(seen.vertices).mean(0)
        toward = np.einsum("ij,ij->i", seen.vertex_normals, seen.vertices - centroid)
        assert (toward > 0).all()


def test_pygltflib_sees_the_same(tmp_path: Path) -> None:
    write_mesh(tetrahedron(), tmp_path / "a.glb", generator="trilift 9.9", extras={"model": "tiny"})
    document = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
    assert document.asset.generator == "trilift 9.9" and document.asset.extras == {"model": "tiny"}
    accessor = document.accessors[document.meshes[0].primitives[0].attributes.POSITION]
    assert accessor.max == pytest.approx([0.25, 0.5, 0.125]) and accessor.min == pytest.approx([-0.25, -0.5, -0.125])
    blob = document.binary_blob()
    view = document.bufferViews[accessor.bufferView]
    positions = np.frombuffer(blob, "<f4", 12, view.byteOffset).reshape(4, 3)
    view = document.bufferViews[document.accessors[document.meshes[0].primitives[0].indices].bufferView]
    a, b, c = positions[np.frombuffer(blob, "<u2", 12, view.byteOffset).reshape(4, 3)].astype(float).transpose(1, 0, 2)
    assert np.einsum("ij,ij->", a, np.cross(b, c)) / 6 == pytest.approx(0.5 * 0.25 / 6), (
        "counter-clockwise from outside"
    )
    material = document.materials[0]
    assert not material.doubleSided and material.pbrMetallicRoughness.baseColorFactor == [1, 1, 1, 1]


def test_glb_is_well_formed_and_grey_is_linear(tmp_path: Path) -> None:
    write_mesh(tetrahedron(0.5), tmp_path / "a.glb")
    arrays = validate_glb((tmp_path / "a.glb").read_bytes())
    # 0.5 of sRGB is 0.21404 of linear light: 0.21404 * 65535 = 14027.2.
    assert arrays["COLOR_0"].tolist() == [[14027, 14027, 14027, 65535]] * 4
    assert arrays["indices"].tolist() == OUTWARD.reshape(-1).tolist()


@pytest.mark.parametrize("name", PLAIN)
def test_read_mesh_returns_to_the_world(tmp_path: Path, name: str) -> None:
    write_mesh(tetrahedron(0.5), tmp_path / f"a.{name}")
    back = read_mesh(tmp_path / f"a.{name}")
    assert back.extent == pytest.approx([0.25, 0.5, 1.0], abs=1e-6)
    assert back.volume == pytest.approx(0.5 * 0.25 / 6, rel=1e-5) and back.is_watertight
    tip = back.vertices[back.vertices[:, 0].argmax()]
    assert tip == pytest.approx([0.125, -0.25, -0.5], abs=1e-6)
    assert np.abs(back.colors - 0.5).max() < (1e-4 if name == "glb" else 0.5 / 255 + 1e-6), "mid-grey stays mid-grey"


def test_dark_colours_keep_their_steps(tmp_path: Path) -> None:
    # Bytes 0, 1, 2, 3 of sRGB are 0, 0.08, 0.15 and 0.23 of an 8-bit linear step: eight bits would join them.
    colors = np.repeat(np.arange(4, dtype=np.float32)[:, None] / 255, 3, 1)
    write_mesh(Mesh(TIPS, OUTWARD, colors), tmp_path / "a.glb")
    assert np.rint(read_mesh(tmp_path / "a.glb").colors[:, 0] * 255).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", PLAIN)
def test_same_mesh_same_bytes(tmp_path: Path, name: str) -> None:
    for stem in "ab":
        write_mesh(tetrahedron(), tmp_path / f"{stem}.{name}", extras={"seed": 0})
    assert (tmp_path / f"a.{name}").read_bytes() == (tmp_path / f"b.{name}").read_bytes()


def test_obj_text(tmp_path: Path) -> None:
    write_mesh(tetrahedron(0.5), tmp_path / "a.obj", matrix=file_matrix(tetrahedron(), scale=10.0))
    lines = (tmp_path / "a.obj").read_text().splitlines()
    assert "v -1 2 -0.5 0.5000 0.5000 0.5000" in lines, "the upper tip"
    assert lines.count("f 2//2 3//3 4//4") == 1 and sum(line.startswith("vn ") for line in lines) == 4


def test_stl_is_binary_with_outward_normals_and_no_attributes(tmp_path: Path) -> None:
    write_mesh(tetrahedron(), tmp_path / "a.stl")
    data = (tmp_path / "a.stl").read_bytes()
    assert not data.startswith(b"solid") and len(data) == 84 + 4 * 50 and data[80:84] == struct.pack("<I", 4)
    # Face 0 (corners 0, 2, 1) is the floor: its normal points down, file -y.
    assert struct.unpack_from("<3f", data, 84) == pytest.approx((0, -1, 0))
    assert all(data[84 + 50 * k + 48 : 84 + 50 * k + 50] == b"\0\0" for k in range(4))


@pytest.mark.parametrize(("count", "component"), [(65535, 5123), (65536, 5125)])
def test_glb_indices_grow_to_32_bits_when_needed(tmp_path: Path, count: int, component: int) -> None:
    vertices = np.zeros((count, 3), np.float32)
    vertices[-3:] = TIPS[1:]
    mesh = Mesh(vertices, np.array([[count - 3, count - 2, count - 1]]), np.zeros((count, 3)))
    write_mesh(mesh, tmp_path / "a.glb")
    data = (tmp_path / "a.glb").read_bytes()
    assert validate_glb(data)["indices"].tolist() == [count - 3, count - 2, count - 1]
    document, _ = split_glb(data)
    assert document["accessors"][document["meshes"][0]["primitives"][0]["indices"]]["componentType"] == component


def test_texture_is_embedded_with_v_down(tmp_path: Path) -> None:
    texture = np.zeros((2, 2, 3), np.uint8)
    texture[0, 0], texture[0, 1], texture[1, 0], texture[1, 1] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    # Texel centres; v counts from the bottom here, so the red top left texel is at (0.25, 0.75).
    uvs = np.array([[0.25, 0.75], [0.75, 0.75], [0.25, 0.25], [0.75, 0.25]], np.float32)
    mesh = Mesh(TIPS, OUTWARD, np.full((4, 3), 0.5, np.float32), uvs=uvs, texture=texture)
    write_mesh(mesh, tmp_path / "a.glb")
    arrays = validate_glb((tmp_path / "a.glb").read_bytes())
    assert "COLOR_0" not in arrays, "viewers would multiply it into the texture"
    assert arrays["TEXCOORD_0"].tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert read_mesh(tmp_path / "a.glb").colors == pytest.approx(texture.reshape(4, 3) / 255, abs=1e-6)
    seen = trimesh.load(tmp_path / "a.glb", force="mesh").visual
    assert seen.material.baseColorTexture.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    assert seen.uv[0] == pytest.approx([0.25, 0.75]), "trimesh turns v up again"


# --- what others write


def test_linear_and_srgb_vertex_colours(tmp_path: Path) -> None:
    colors = np.full((3, 4), 128, "u1")
    linear = read_mesh(triangle_gltf(tmp_path / "linear.gltf", colors)).colors
    marked = {"asset": {"version": "2.0", "extras": {"up": "y", "color": "srgb"}}}
    display = read_mesh(triangle_gltf(tmp_path / "srgb.gltf", colors, **marked)).colors
    assert linear == pytest.approx(np.full((3, 3), 0.736646), abs=1e-5), "linear 128/255 shows as sRGB 0.7366"
    assert display == pytest.approx(np.full((3, 3), 128 / 255), abs=1e-6), "display values stay as they are"


def test_colour_is_factor_times_vertex_colour_in_linear_light(tmp_path: Path) -> None:
    material = {"materials": [{"pbrMetallicRoughness": {"baseColorFactor": [0.5, 0.001, 1, 1]}}]}
    alone = read_mesh(triangle_gltf(tmp_path / "a.gltf", **material)).colors
    # 0.001 is on the straight part: 0.01292. Libraries that keep the factor in 8 bits lose it.
    assert alone[0] == pytest.approx([0.735357, 0.01292, 1.0], abs=1e-5)
    both = read_mesh(triangle_gltf(tmp_path / "b.gltf", np.full((3, 3), 0.428082, "f4"), **material)).colors
    assert both[0, 0] == pytest.approx(0.5, abs=1e-5), "0.5 x 0.428082 = 0.214041 of light"


def test_no_colour_at_all_is_grey(tmp_path: Path) -> None:
    assert (read_mesh(triangle_gltf(tmp_path / "a.gltf")).colors == 0.5).all()
    assert (read_mesh(triangle_gltf(tmp_path / "b.gltf", materials=[{"name": "plain"}])).colors == 0.5).all()


def textured_gltf(path: Path, uvs: np.ndarray, sampler: dict[str, int], texture: dict[str, Any]) -> Path:
    """The triangle with a 2 x 1 texture, black left and white right."""
    file = io.BytesIO()
    Image.fromarray(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)).save(file, "PNG")
    (path.parent / "black white.png").write_bytes(file.getvalue())
    primitive = {"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "material": 0}
    document = {
        "meshes": [{"primitives": [primitive]}],
        "materials": [{"pbrMetallicRoughness": {"baseColorTexture": {"index": 0} | texture}}],
        "textures": [{"source": 0, "sampler": 0}],
        "samplers": [sampler],
        "images": [{"uri": "black%20white.png"}],
    }
    return write_gltf(path, document, [np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], "f4"), uvs.astype("f4")])


def test_texture_wraps_or_clamps_as_its_sampler_says(tmp_path: Path) -> None:
    uvs = np.array([[0.75, 0], [1.25, 0], [-0.25, 0]])
    repeated = read_mesh(textured_gltf(tmp_path / "a.gltf", uvs, {}, {})).colors[:, 0]
    clamped = read_mesh(textured_gltf(tmp_path / "b.gltf", uvs, {"wrapS": 33071, "wrapT": 33071}, {})).colors[:, 0]
    assert repeated == pytest.approx([1, 0, 1], abs=1e-6)
    assert clamped == pytest.approx([1, 1, 0], abs=1e-6)


def test_texture_transform_moves_the_lookup(tmp_path: Path) -> None:
    moved = {"extensions": {"KHR_texture_transform": {"offset": [0.25, 0], "scale": [0.5, 1]}}}
    uvs = np.array([[0, 0], [1, 0], [0.5, 0]])  # become 0.25, 0.75 and 0.5, half way between the texels
    assert read_mesh(textured_gltf(tmp_path / "a.gltf", uvs, {}, moved)).colors[:, 0] == pytest.approx(
        [0, 1, 0.5], abs=1e-6
    )


def test_nodes_are_placed_and_mirrored_ones_stay_outward(tmp_path: Path) -> None:
    write_mesh(tetrahedron(), tmp_path / "a.glb", matrix=file_matrix(tetrahedron(), scale=1.0))
    document, binary = split_glb((tmp_path / "a.glb").read_bytes())
    half = float(np.sqrt(0.5))
    document["scenes"] = [{"nodes": [0]}]
    document["nodes"] = [
        {"children": [1, 2], "translation": [0, 10, 0]},
        {"mesh": 0, "scale": [-1, 1, 1]},
        {"mesh": 0, "rotation": [0, half, 0, half], "translation": [5, 0, 0]},
    ]
    document["buffers"][0]["uri"] = "a.bin"
    (tmp_path / "a.bin").write_bytes(binary)
    (tmp_path / "a.gltf").write_text(json.dumps(document))
    mesh = read_mesh(tmp_path / "a.gltf")
    assert len(mesh.faces) == 8 and mesh.is_watertight
    assert mesh.volume == pytest.approx(2 * 0.1 * 0.2 * 0.4 / 6, rel=1e-4), "the mirrored one is not inside out"
    assert mesh.bounds.mean(0)[2] == pytest.approx(10, abs=1e-5), "the parent's lift along file y is world z"
    # The second is turned by 90 degrees about file y: its 0.2 along x lies along z now, and 0.1 along x.
    second = mesh.vertices[4:]
    assert np.ptp(second, axis=0) == pytest.approx([0.2, 0.1, 0.4], abs=1e-5)
    # The tip toward world +x, in file axes (-0.1, -0.2, 0.05), is turned to (0.05, -0.2, 0.1) and moved by (5, 10, 0).
    assert second[1] == pytest.approx([0.1, 5.05, 9.8], abs=1e-5)


@pytest.mark.parametrize(
    ("mode", "indices", "faces"),
    [
        (5, [0, 1, 2, 3], [[0, 1, 2], [2, 1, 3]]),
        (6, [0, 1, 2, 3], [[0, 1, 2], [0, 2, 3]]),
        (4, [0, 1, 2, 0, 2, 3], [[0, 1, 2], [0, 2, 3]]),
    ],
    ids=["strip", "fan", "list"],
)
def test_primitive_modes(tmp_path: Path, mode: int, indices: list[int], faces: list[list[int]]) -> None:
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], "f4")
    primitives = [
        {"attributes": {"POSITION": 0}, "indices": 1, "mode": mode},
        {"attributes": {"POSITION": 0}, "mode": 1},  # lines are passed over
    ]
    path = write_gltf(tmp_path / "a.gltf", {"meshes": [{"primitives": primitives}]}, [square, np.array(indices, "u1")])
    assert read_mesh(path).faces.tolist() == faces


def test_interleaved_vertices(tmp_path: Path) -> None:
    path = triangle_gltf(tmp_path / "a.gltf")
    document = json.loads(path.read_text())
    rows = np.zeros(3, [("position", "<f4", 3), ("pad", "<f4", 1)])
    rows["position"], rows["pad"] = [[0, 0, 0], [0, 0, 7], [0, 3, 0]], 99
    document["buffers"].append({"byteLength": rows.nbytes, "uri": "data:;base64," + base64.b64encode(rows).decode()})
    document["bufferViews"][0] = {"buffer": 1, "byteLength": rows.nbytes, "byteStride": 16}
    path.write_text(json.dumps(document))
    assert read_mesh(path).vertices.tolist() == [[0, 0, 0], [7, 0, 0], [0, 0, 3]]


def test_ply_face_colours_and_off(tmp_path: Path) -> None:
    box = trimesh.creation.box((1, 2, 3))
    box.visual.face_colors = np.tile(np.arange(12, dtype=np.uint8)[:, None] * 20, (1, 4)) | [0, 0, 0, 255]
    box.export(tmp_path / "a.ply")
    box.export(tmp_path / "a.off")
    faces = read_mesh(tmp_path / "a.ply")
    assert len(faces.vertices) == 36 and (faces.colors[faces.faces][:, :, 0].std(1) == 0).all(), "one colour a face"
    assert np.rint(faces.colors[faces.faces][:, 0, 0] * 255).tolist() == list(range(0, 240, 20))
    assert read_mesh(tmp_path / "a.off").extent == pytest.approx([3, 1, 2])


def test_shared_training_objects(shared_data: Path) -> None:
    files = sorted((shared_data / "objects" / "train").glob("*.glb"))[::11]
    assert len(files) >= 200
    for file in files:
        mesh = read_mesh(file)
        assert mesh.extent.max() == pytest.approx(1.0, abs=1e-4), file.name
        assert np.abs(mesh.bounds.sum(0)).max() < 1e-3, file.name
    raw = trimesh.load(files[0], force="mesh", process=False)
    mesh = read_mesh(files[0])
    assert mesh.vertices == pytest.approx(raw.vertices[:, [2, 0, 1]], abs=1e-6)
    assert mesh.colors == pytest.approx(raw.visual.vertex_colors[:, :3] / 255, abs=1e-6), "marked srgb in the file"


# --- malformed input


def _patched(path: Path, change: Any) -> Path:
    """The triangle file with its JSON changed in place by ``change``."""
    triangle_gltf(path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["accessors"][0].update(count=4_000_000_000), "declares 4000000000 elements"),
        (lambda d: d["accessors"][1].update(byteOffset=-6), "offset -6"),
        (lambda d: d["bufferViews"][0].update(byteLength=10**12), "buffer view 0 wants"),
        (lambda d: d["accessors"][0].pop("bufferView"), "sparse, empty"),
        (lambda d: d["accessors"][0].update(type="VEC2"), "VEC2"),
        (lambda d: d["accessors"][0].update(count=2), "names vertex 2 of 2"),
        (lambda d: d["meshes"][0]["primitives"][0].update(extensions={"KHR_draco_mesh_compression": {}}), "draco"),
        (lambda d: d["bufferViews"][0].update(extensions={"EXT_meshopt_compression": {}}), "meshopt"),
        (lambda d: d["buffers"][0].update(uri="https://example.org/a.bin"), "nothing is fetched"),
        (lambda d: d["buffers"][0].update(uri="gone.bin"), "gone.bin"),
        (lambda d: d["buffers"][0].pop("uri"), "neither a uri"),
        (lambda d: d["nodes"][0].update(children=[0]), "must be a tree"),
        (lambda d: d["meshes"].clear(), "list index"),
        (lambda d: d["asset"].update(version="1.0"), "asset.version"),
        (lambda d: d["meshes"][0]["primitives"].clear(), "no faces"),
    ],
)
def test_gltf_that_contradicts_itself(tmp_path: Path, change: Any, words: str) -> None:
    path = _patched(tmp_path / "broken.gltf", change)
    with pytest.raises(MeshError, match=words) as caught:
        read_mesh(path)
    assert "broken.gltf" in str(caught.value)


def test_positions_that_are_not_numbers(tmp_path: Path) -> None:
    points = np.array([[0, 0, 0], [np.nan, 0, 0], [0, 1, 0]], "f4")
    path = write_gltf(tmp_path / "a.gltf", {"meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}]}, [points])
    with pytest.raises(MeshError, match=r"a\.gltf.*1 of 3 vertices are NaN"):
        read_mesh(path)


@pytest.mark.parametrize("keep", [3, 11, 40, 300], ids=lambda n: f"{n}-bytes")
def test_truncated_glb(tmp_path: Path, keep: int) -> None:
    write_mesh(tetrahedron(), tmp_path / "a.glb")
    path = tmp_path / "cut.glb"
    path.write_bytes((tmp_path / "a.glb").read_bytes()[:keep])
    with pytest.raises(MeshError, match=r"cut\.glb"):
        read_mesh(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "a.ply",
            b"ply\nformat ascii 1.0\nelement vertex 999999999999\nproperty float x\nend_header\n",
            "999999999999",
        ),
        ("a.off", b"OFF\n# many\n888888888888 1 0\n0 0 0\n", "888888888888"),
        ("a.stl", b"\0" * 80 + b"\xff\xff\xff\xff" + b"\0" * 50, "declares"),
        ("a.obj", b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", r"a\.obj"),
        ("a.obj", b"# nothing\n", r"a\.obj"),
        ("a.ply", b"\x89PNG not a mesh at all", r"a\.ply"),
        ("a.stl", b"solid a\nendsolid a\n", r"a\.stl"),
        ("a.glb", b"", "0 bytes"),
        ("a.txt", b"hello", r"\.glb, \.gltf.*\.txt"),
    ],
)
def test_other_files_that_are_no_mesh(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MeshError, match=words) as caught:
        read_mesh(tmp_path / name)
    assert name in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match=r"gone\.glb.*No such file"):
        read_mesh(tmp_path / "gone.glb")
    (tmp_path / "folder.glb").mkdir()
    with pytest.raises(MeshError, match="found a folder"):
        read_mesh(tmp_path / "folder.glb")


# --- writing that fails


def test_unknown_suffix_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"\.glb, \.obj, \.ply, \.stl, \.usdz.*'\.fbx'"):
        write_mesh(tetrahedron(), tmp_path / "a.fbx")


@pytest.mark.parametrize(
    "matrix",
    [np.diag([1.0, 1, -1, 1]), np.diag([1.0, 2, 1, 1]), np.eye(3), np.full((4, 4), np.nan)],
    ids=["mirror", "uneven", "3x3", "nan"],
)
def test_matrix_must_keep_shape_and_hand(tmp_path: Path, matrix: np.ndarray) -> None:
    with pytest.raises(MeshError, match="rotation with an even, positive scale"):
        write_mesh(tetrahedron(), tmp_path / "a.glb", matrix=matrix)
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"a\.glb.*No space left"):
        write_mesh(tetrahedron(), tmp_path / "a.glb")
    assert not list(tmp_path.iterdir())


def test_usdz_without_its_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'trilift\[usd\]'"):
        write_mesh(tetrahedron(), tmp_path / "a.usdz")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("pxr") is None, reason="usd-core (extra usd) is not installed")
def test_usdz_read_back(tmp_path: Path) -> None:
    from pxr import Usd, UsdGeom

    write_mesh(tetrahedron(0.5), tmp_path / "a.usdz")
    stage = Usd.Stage.Open(str(tmp_path / "a.usdz"))
    mesh = UsdGeom.Mesh(stage.GetDefaultPrim())
    assert UsdGeom.GetStageUpAxis(stage) == "Y" and UsdGeom.GetStageMetersPerUnit(stage) == 1
    assert np.ptp(np.array(mesh.GetPointsAttr().Get()), axis=0) == pytest.approx([0.5, 1, 0.25])
    assert list(mesh.GetDisplayColorAttr().Get()[0]) == pytest.approx([0.21404] * 3, abs=1e-5)
