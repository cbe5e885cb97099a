"""Export profiles: what they ask for, that files are read back and judged, and that a wrong file fails."""

from __future__ import annotations

import importlib.util
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh

from lrm.fileframe import PRINTED, Y_UP, FileFrame, frame_of
from lrm.mesh import Mesh
from lrm.meshfile import FORMATS, file_matrix, read_mesh, write_mesh
from multiview.errors import MeshError, OutputError, SettingsError
from multiview.files import write_json_whole
from tests.unit.test_asset import make_asset
from trilift.asset import levels_of_detail
from trilift.cli import _settings, build_parser
from trilift.exportchecks import check_export, read_back
from trilift.profiles import PROFILE_SETTINGS, PROFILES, Profile
from trilift.settings import LIFT_FORMATS, LiftSettings, SaveSettings, parse_keep, parse_length

# A closed tetrahedron whose tips tell the axes apart: +x (front) is 0.1, +y 0.2 and +z (up) 0.4 from the corner.
TIPS = np.array([[0.0, 0, 0], [0.1, 0, 0], [0, 0.2, 0], [0, 0, 0.4]], np.float32)
OUTWARD = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32)
READ_BACK = tuple(name for name in FORMATS if name != "usdz" or importlib.util.find_spec("pxr"))
STRICT = Profile("test", "everything", (), faces=4, watertight=True, megabytes=0.1)


def tetrahedron() -> Mesh:
    return Mesh(TIPS, OUTWARD, np.full((4, 3), 0.5, np.float32))


def textured() -> Mesh:
    """The tetrahedron with a mid-grey picture, its vertex colours another grey: a reader must look at the picture."""
    uvs = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)
    return Mesh(TIPS, OUTWARD, np.full((4, 3), 0.25), uvs=uvs, texture=np.full((4, 4, 3), 128, np.uint8))


def checked(path: Path, mesh: Mesh, frame: FileFrame, *, written: Mesh | None = None, **options: Any) -> dict[str, Any]:
    """{check: row} of a file with ``written`` in it, held against ``mesh``."""
    matrix = file_matrix(mesh, height=0.3)
    files = write_mesh(written or mesh, path, matrix=options.pop("matrix", matrix), frame=options.pop("in_file", frame))
    rows = check_export(files[-1], mesh, matrix, frame, replace(STRICT, **options), beside=files[:-1])
    return {row["check"]: row for row in rows}


@pytest.mark.parametrize("name", READ_BACK)
@pytest.mark.parametrize("make", [tetrahedron, textured], ids=["vertex", "baked"])
@pytest.mark.parametrize("frame", [Y_UP, PRINTED], ids=["y-up-metres", "z-up-millimetres"])
def test_every_format_passes_its_own_checks(tmp_path: Path, name: str, make: Any, frame: FileFrame) -> None:
    rows = checked(tmp_path / f"a b.{name}", make(), frame_of(name, frame))
    assert all(row["pass"] for row in rows.values()), [row for row in rows.values() if not row["pass"]]
    assert {"opens", "axes", "unit", "longest side", "faces", "watertight", "volume", "size"} <= set(rows)
    assert ("colors" in rows) == (name != "stl" and (name != "usdz" or make is tetrahedron))


@pytest.mark.parametrize(
    ("check", "options"),
    [
        ("axes", {"in_file": FileFrame("+z", "metre")}),
        ("longest side", {"in_file": FileFrame("+y", "centimetre")}),
        ("axes", {"written": Mesh(TIPS, OUTWARD[:, ::-1], np.full((4, 3), 0.5))}),
        ("opens", {"written": Mesh(TIPS, OUTWARD[1:], np.full((4, 3), 0.5))}),
        ("colors", {"written": Mesh(TIPS, OUTWARD, np.full((4, 3), 0.55))}),
        ("faces", {"faces": 3}),
        ("size", {"megabytes": 1e-5}),
    ],
    ids=["turned", "unit", "inside-out", "face-lost", "lighter", "budget", "large"],
)
def test_a_wrong_file_fails_the_right_check(tmp_path: Path, check: str, options: dict[str, Any]) -> None:
    rows = checked(tmp_path / "a.ply", tetrahedron(), Y_UP, **options)
    assert not rows[check]["pass"], rows[check]


def test_an_open_mesh_is_not_watertight_and_garbage_does_not_open(tmp_path: Path) -> None:
    hole = Mesh(TIPS, OUTWARD[1:], np.full((4, 3), 0.5))
    row = checked(tmp_path / "a.stl", hole, Y_UP)["watertight"]
    assert not row["pass"] and "3 open edges" in row["found"]
    (tmp_path / "b.glb").write_bytes(b"glTF nonsense")
    (row,) = check_export(tmp_path / "b.glb", hole, np.eye(4), Y_UP, STRICT)
    assert row["check"] == "opens" and not row["pass"]


def test_axes_of_files_worked_out_by_hand(tmp_path: Path) -> None:
    matrix = file_matrix(tetrahedron(), scale=1.0)  # metres; the middle of the box goes to the origin
    write_mesh(tetrahedron(), tmp_path / "a.stl", matrix=matrix, frame=PRINTED)
    (tmp_path / "bytes").write_bytes((tmp_path / "a.stl").read_bytes()[:80])
    assert (tmp_path / "bytes").read_bytes().startswith(b"trilift, z up, front -y")
    corners = read_back(tmp_path / "a.stl").corners
    # World (front, left..., up) = (0.1, 0, 0) less the middle (0.05, 0.1, 0.2); file: x = world y, y = -front, z = up.
    assert corners[0] == pytest.approx(np.array([[-100, 50, -200], [100, 50, -200], [-100, -50, -200]]), abs=1e-3)
    assert trimesh.load(tmp_path / "a.stl").extents == pytest.approx([200, 100, 400], rel=1e-5)


def test_3mf_opens_in_another_library_and_here(tmp_path: Path) -> None:
    pytest.importorskip("lxml", reason="trimesh reads 3MF with lxml")
    write_mesh(textured(), tmp_path / "a.3mf", matrix=file_matrix(tetrahedron(), height=0.12))
    seen = trimesh.load(tmp_path / "a.3mf", force="mesh")
    assert seen.units == "millimeter" and seen.is_watertight and seen.volume > 0
    assert seen.extents == pytest.approx([60, 30, 120], rel=1e-5), "x is the photo's width, z is up"
    back = read_mesh(tmp_path / "a.3mf")
    assert back.extent == pytest.approx([30, 60, 120], rel=1e-5)
    assert np.abs(back.colors - 0.25).max() < 0.003
    write_mesh(textured(), tmp_path / "b.3mf", matrix=file_matrix(tetrahedron(), height=0.12))
    assert (tmp_path / "a.3mf").read_bytes() == (tmp_path / "b.3mf").read_bytes()


def marked_cuboid() -> Mesh:
    """Mid-grey, 0.2 deep (x, front +x), 0.4 wide, 0.8 high; in front a nose of 0.1, high on the photo's right."""
    box = trimesh.creation.box((0.2, 0.4, 0.8))
    # The two triangles of the front share a diagonal; the nose stands on the one that holds its foot.
    front = next(k for k, face in enumerate(box.faces) if (box.vertices[face][:, 0] > 0.09).all()
                 and box.vertices[face].mean(0) @ (0, 1, 1) > 0)  # fmt: skip
    a, b, c = box.faces[front]
    nose = box.vertices[[a, b, c]].mean(0) + np.array([0.1, 0, 0])
    faces = np.concatenate([np.delete(box.faces, front, 0), [(a, b, 8), (b, c, 8), (c, a, 8)]])
    return Mesh(np.concatenate([box.vertices, [nose]]), faces, np.full((9, 3), 0.5))


# Where up and front (right, up, front of the photo) lie in each format's files, and how many of its units a metre has.
WORLDS = {name: ("xyz", (1, 1, 1), 1.0) for name in FORMATS} | {"3mf": ("xzy", (1, 1, -1), 1000.0)}


@pytest.mark.parametrize("name", READ_BACK)
def test_a_grey_cuboid_of_unequal_sides_in_every_format(tmp_path: Path, name: str) -> None:
    mesh, (axes, signs, unit) = marked_cuboid(), WORLDS[name]
    path = write_mesh(mesh, tmp_path / f"a.{name}", matrix=file_matrix(mesh, height=1.6))[-1]
    seen = read_back(path)  # trimesh, usd-core
    corners = seen.corners[..., ["xyz".index(axis) for axis in axes]] * signs / unit
    assert np.ptp(corners.reshape(-1, 3), axis=0) == pytest.approx([0.8, 1.6, 0.6], rel=1e-5), "width, height, depth"
    # The nose: the corner furthest to the front. World y is the photo's right, z is up; twice as large in the file.
    tip = corners.reshape(-1, 3)[corners.reshape(-1, 3)[:, 2].argmax()]
    nose = mesh.vertices[8]
    assert tip == pytest.approx([2 * nose[1], 2 * nose[2], 0.3], abs=1e-5) and nose[1] > 0 and nose[2] > 0
    a, b, c = (corners[:, k] for k in range(3))
    assert np.einsum("ij,ij->", a, np.cross(b, c)) / 6 == pytest.approx(8 * mesh.volume, rel=1e-4), "faces outward"
    if name == "stl":
        assert seen.color is None
    else:
        assert seen.color == pytest.approx([0.5, 0.5, 0.5], abs=0.5 / 255 + 0.002), "mid-grey stays mid-grey"


def test_3mf_blends_colours_over_its_triangles(tmp_path: Path) -> None:
    colors = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], np.float32)
    write_mesh(Mesh(TIPS, OUTWARD, colors), tmp_path / "a.3mf", matrix=file_matrix(tetrahedron(), height=0.1))
    model = zipfile.ZipFile(tmp_path / "a.3mf").read("3D/3dmodel.model").decode()
    assert model.count("<m:color ") == 4 and model.count('p1="') == model.count('p2="') == model.count('p3="') == 4
    back = read_mesh(tmp_path / "a.3mf")
    assert back.colors[back.faces] == pytest.approx(colors[OUTWARD], abs=1e-6)


@pytest.mark.parametrize("name", ["obj", "gltf"])
def test_formats_of_several_files_name_each_other(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"my chair.v2.{name}"
    files = write_mesh(textured(), path, normal_map=np.full((4, 4, 3), 128, np.uint8))
    assert files[-1] == path and len(files) == 4 and all(file.is_file() for file in files)
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in files}
    seen: Any = trimesh.load(path, force="mesh", process=False)
    picture = seen.visual.material.image if name == "obj" else seen.visual.material.baseColorTexture
    assert picture.convert("RGB").getpixel((0, 0)) == (128, 128, 128)
    assert seen.visual.uv[1] == pytest.approx([1, 0]), "v is up for trimesh"


def test_roughness_and_attributes_are_carried(tmp_path: Path) -> None:
    mesh = replace(tetrahedron(), attributes={"confidence": np.array([0, 0.25, 0.5, 1], np.float32)})
    write_mesh(mesh, tmp_path / "a.glb", roughness=0.3)
    write_mesh(mesh, tmp_path / "a.ply")
    data = (tmp_path / "a.glb").read_bytes()
    document = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
    assert document["materials"][0]["pbrMetallicRoughness"]["roughnessFactor"] == 0.3
    assert "_CONFIDENCE" in document["meshes"][0]["primitives"][0]["attributes"]
    assert b"property float confidence" in (tmp_path / "a.ply").read_bytes()
    assert trimesh.load(tmp_path / "a.ply", process=False).extents == pytest.approx([0.5, 1, 0.25], abs=1e-6)
    with pytest.raises(SettingsError, match="roughness=2"):
        write_mesh(mesh, tmp_path / "b.glb", roughness=2)


# --- settings and the asset


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_lawful(name: str) -> None:
    profile = PROFILES[name]
    settings = LiftSettings(profile=name)
    assert set(profile.formats) <= set(settings.formats) <= set(LIFT_FORMATS)
    assert settings.faces == profile.faces and settings.watertight == profile.watertight
    assert settings.texture == profile.texture and FileFrame(profile.up, profile.unit)  # type: ignore[arg-type]
    assert LiftSettings().replaced(**settings.as_record()) == settings, "a record says it all"
    assert settings.saving().for_program == profile


def test_a_profile_does_not_overrule_what_was_said() -> None:
    settings = LiftSettings(profile="web", faces=500, formats=("ply",))
    assert settings.faces == 500 and settings.formats == ("ply", "glb")
    assert LiftSettings(profile="web", given=("texture",)).texture == "vertex", "a default that was chosen"
    assert LiftSettings().replaced(profile="web", texture="vertex").texture == "vertex"
    assert LiftSettings(profile="web").replaced(keep=0.01, texture="vertex", seed=1).texture == "vertex"
    with pytest.raises(SettingsError, match=r"given=.*faces, texture, watertight, keep"):
        LiftSettings(given=("seed",))


@pytest.mark.parametrize(
    ("words", "wanted", "given"),
    [
        ("--for web", {"texture": "baked", "faces": 20_000}, ()),
        ("--for web --texture vertex", {"texture": "vertex", "faces": 20_000}, ("texture",)),
        ("--texture baked --for web --faces 700", {"texture": "baked", "faces": 700}, ()),
        ("--for print --keep 1%", {"keep": 0.01, "watertight": True}, ("keep",)),
        ("--for print", {"keep": 1.0, "texture": "vertex"}, ()),
        ("--texture vertex --keep 1%", {"texture": "vertex", "keep": 0.01, "faces": None, "watertight": False}, ()),
    ],
)
def test_what_the_command_line_was_told_wins_over_the_profile(
    words: str, wanted: dict[str, Any], given: tuple[str, ...]
) -> None:
    settings = _settings(build_parser().parse_args(["lift", "a.png", *words.split()]))
    assert {name: getattr(settings, name) for name in wanted} == wanted and settings.given == given
    assert LiftSettings().replaced(**settings.as_record()) == settings, "a record says it all"
    assert settings.replaced(seed=5).replaced(seed=0) == settings
    assert settings.replaced(profile=None).given == () and set(settings.given) <= set(PROFILE_SETTINGS)


@pytest.mark.parametrize(
    ("text", "metres"),
    [("30cm", 0.3), ("1.2m", 1.2), ("250 mm", 0.25), ("12in", 0.3048), ("5 ft", 1.524), ("0.3", 0.3), (2, 2.0)],
)
def test_lengths(text: str | float, metres: float) -> None:
    assert parse_length(text) == pytest.approx(metres)


@pytest.mark.parametrize("text", ["", "cm", "-3cm", "0", "3 parsec", "1,5m", "nan", "inf"])
def test_no_lengths(text: str) -> None:
    with pytest.raises(SettingsError, match="such as 30cm"):
        parse_length(text)


def test_shares_to_keep() -> None:
    assert [parse_keep(text) for text in ("largest", "all", "5%", "0.5%", "100%")] == [1, 0, 0.05, 0.005, 1]
    for text in ("5", "101%", "some", "-1%"):
        with pytest.raises(SettingsError, match="largest, all, or a share"):
            parse_keep(text)


@pytest.mark.parametrize("name", PROFILES)
def test_saving_for_a_program_writes_its_checks(tmp_path: Path, name: str) -> None:
    asset = make_asset()
    paths = asset.save(tmp_path / "a", SaveSettings(profile=name, sheet=False))
    record = json.loads(paths[-1].read_text())
    checks = record["export"]["checks"]
    assert record["export"]["profile"] == name and all(row["pass"] for row in checks)
    assert {row["file"] for row in checks} == {path.name for path in paths if path.stem == "mesh"}
    expected = 0.1 if name == "print" else 1.0
    assert trimesh.load(tmp_path / "a" / "mesh.glb", force="mesh").extents.max() == pytest.approx(expected)
    if name == "print":
        assert record["export"]["frames"]["stl"] == {"unit": "millimetre", "up_axis": "+z", "front_axis": "-y"}
        assert trimesh.load(tmp_path / "a" / "mesh.stl").extents.max() == pytest.approx(100)


def test_levels_of_detail_halve_the_faces(tmp_path: Path) -> None:
    ball = trimesh.creation.icosphere(3)
    mesh = Mesh(ball.vertices, ball.faces, (np.asarray(ball.vertices) / 2 + 0.5).clip(0, 1))
    paths = make_asset(mesh=mesh).save(tmp_path / "a", lods=2)
    assert [path.name for path in paths[:3]] == ["mesh.glb", "mesh_lod1.glb", "mesh_lod2.glb"]
    counts = [len(read_mesh(path).faces) for path in paths[:3]]
    assert counts[0] == 1280 and 0 < counts[1] <= 640 and 0 < counts[2] <= 320
    coarse = read_mesh(paths[2])
    assert np.abs(coarse.colors - (coarse.vertices + 0.5)).max() < 0.03, "colours are where they were"


def test_levels_of_a_baked_mesh_have_pictures_of_their_own(tmp_path: Path) -> None:
    # A picture finer than the triangles: stripes across every one of them, which vertex colours could not tell.
    from lrm.bake import covered_texels, texture_image
    from lrm.unwrap import unwrap

    ball = trimesh.creation.icosphere(3)
    bare = Mesh(ball.vertices, ball.faces, np.full((len(ball.vertices), 3), 0.5))

    def stripes(places: Any) -> Any:
        return np.repeat(0.5 + 0.4 * np.sin(18 * places[:, 2:]), 3, axis=1)

    unwrapped = unwrap(bare, 256, way="box")
    texels = covered_texels(unwrapped, 256)
    places = texels.blend(bare.vertices, bare.faces)
    mesh = unwrapped.apply(bare, texture_image(texels, stripes(places)))
    paths = make_asset(mesh=mesh).save(tmp_path / "a", formats=("glb", "obj"), lods=2)
    assert {"mesh_lod1.obj", "mesh_lod1.mtl", "mesh_lod1_color.png", "mesh_lod2.glb"} <= {path.name for path in paths}
    for level, size in ((1, 128), (2, 64)):
        coarse: Any = trimesh.load(tmp_path / "a" / f"mesh_lod{level}.glb", force="mesh", process=False)
        assert coarse.visual.material.baseColorTexture.size == (size, size)
        assert 0 < len(coarse.faces) <= 1280 >> level
    first = levels_of_detail(mesh, 1)[0]
    assert first.texture is not None and first.uvs is not None
    middles, uv = first.vertices[first.faces].mean(1), first.uvs[first.faces].mean(1)
    found = first.texture[((1 - uv[:, 1]) * 128).astype(int), (uv[:, 0] * 128).astype(int)] / 255
    corners = first.colors[first.faces].mean(1)
    off, by_corners = (np.abs(each - stripes(middles)).mean() for each in (found, corners))
    assert off < 0.06 and off < 0.5 * by_corners


def test_a_mesh_carries_its_passport(tmp_path: Path) -> None:
    model = {"name": "tiny", "sha256": "ab" * 32, "licence": "Apache-2.0", "commercial": "yes", "file": "x"}
    photo = {"name": "/home/somebody/chair.png", "sha256": "cd" * 32}
    record = make_asset().record | {
        "model": model,
        "photo": photo,
        "versions": {"torch": "2"},
        "checks": {"watertight": True},
    }
    make_asset(record=record).save(tmp_path / "a", formats=("glb",))
    data = (tmp_path / "a" / "mesh.glb").read_bytes()
    told = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])["asset"]["extras"]["passport"]
    assert told["model"] == {k: v for k, v in model.items() if k != "file"} and told["photo_sha256"] == "cd" * 32
    assert told["seed"] == 0 and told["versions"] == {"torch": "2"} and told["checks"] == {"watertight": True}
    assert told["cutout"]["method"] == "alpha" and told["camera"]["fov_y_deg"] == pytest.approx(40, abs=1e-3)
    assert told["export"]["unit"] == "metre" and "linear" in told["export"]["color_space"]
    assert "somebody" not in json.dumps(told), "nobody's folders leave the house"


@pytest.mark.parametrize("name", ["a b", "a.b.c", "стул", "椅子 🪑", "x" * 255, "é" * 127 + "x"])
def test_folders_of_any_name(tmp_path: Path, name: str) -> None:
    paths = make_asset(name=name).save(tmp_path / name, formats=("glb", "obj", "gltf", "3mf"))
    assert all(path.is_file() for path in paths)
    document = json.loads((tmp_path / name / "asset.json").read_text("utf-8"))
    assert document["name"] == name and len(read_mesh(tmp_path / name / "mesh.gltf").faces) == 12


def test_splats_sheet_and_turntable_formats(tmp_path: Path) -> None:
    paths = make_asset().save(
        tmp_path / "a", formats=("glb", "splats"), splats=200, sheet=True, turntable=True, turntable_frames=3,
        turntable_size=16, turntable_formats=("webp", "png"), turntable_transparent=True,
    )  # fmt: skip
    names = [path.name for path in paths]
    assert names == [
        "mesh.glb", "splats.ply", "input.png", "sheet.png", "turntable.webp", "turntable_000.png", "turntable_001.png",
        "turntable_002.png", "asset.json",
    ]  # fmt: skip
    record = json.loads(paths[-1].read_text())
    assert record["export"]["splats"]["up_axis"] == "-y"
    from PIL import Image

    with Image.open(paths[4]) as film, Image.open(paths[5]) as frame, Image.open(paths[3]) as sheet:
        assert film.n_frames == 3 and frame.mode == "RGBA" and frame.getpixel((0, 0))[3] == 0
        assert sheet.size == (4 * 512, 512)
    # The next save without them takes them away.
    assert len(make_asset().save(tmp_path / "a")) == 3 and len(list((tmp_path / "a").iterdir())) == 3


def one_triangle() -> Mesh:
    return Mesh(TIPS[1:], np.array([[0, 1, 2]]), np.full((3, 3), 0.5))


def test_one_triangle_has_splats_and_levels_of_detail(tmp_path: Path) -> None:
    baked = replace(one_triangle(), uvs=np.array([[0, 0], [1, 0], [0, 1]]), texture=np.full((64, 64, 3), 128, np.uint8))
    paths = make_asset(mesh=baked).save(tmp_path / "a", formats=("glb", "splats"), splats=100, lods=1)
    assert {"mesh.glb", "mesh_lod1.glb", "splats.ply"} <= {path.name for path in paths}
    assert len(read_mesh(tmp_path / "a" / "mesh_lod1.glb").faces) == 1


def test_one_triangle_is_written_and_its_profile_says_what_is_wrong(tmp_path: Path) -> None:
    paths = make_asset(mesh=one_triangle()).save(tmp_path / "a", profile="print", formats=("glb", "obj", "ply", "gltf"))
    checks = json.loads(paths[-1].read_text())["export"]["checks"]
    failed = {(row["file"], row["check"]) for row in checks if not row["pass"]}
    assert failed >= {("mesh.stl", "watertight"), ("mesh.3mf", "watertight")}
    assert not any(check in ("opens", "axes", "unit", "longest side", "colors") for _, check in failed)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(OutputError, match="closed"):
        make_asset().save(tmp_path / "closed" / "a")


def test_colours_that_are_not_numbers_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match=r"NaN or Inf in 1 of 4 rows of colors"):
        Mesh(TIPS, OUTWARD, np.array([[0.5] * 3] * 3 + [[np.nan, 0, 0]]))
    from lrm.field import FunctionField
    from trilift.shape import recolored

    spoilt = FunctionField(lambda p: torch.ones(len(p)), lambda p: torch.full((len(p), 3), float("nan")))
    with pytest.raises(MeshError, match="NaN or Inf"):
        recolored(tetrahedron(), spoilt)


def three_mf(path: Path, objects: str, build: str) -> Path:
    """A 3MF file with a red palette, some objects and a build."""
    core = "http://schemas.microsoft.com/3dmanufacturing/core/2015/02"
    material = "http://schemas.microsoft.com/3dmanufacturing/material/2015/02"
    text = (
        f'<model unit="millimeter" xmlns="{core}" xmlns:m="{material}"><resources>'
        f'<m:colorgroup id="1"><m:color color="#FF0000FF"/></m:colorgroup>{objects}</resources>'
        f"<build>{build}</build></model>"
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("3D/3dmodel.model", text)
    return path


def one_face(number: int, attributes: str = "") -> str:
    vertices = '<vertex x="0" y="0" z="0"/><vertex x="1" y="0" z="0"/><vertex x="0" y="1" z="0"/>'
    face = '<triangle v1="0" v2="1" v3="2"/>'
    mesh = f"<mesh><vertices>{vertices}</vertices><triangles>{face}</triangles></mesh>"
    return f'<object id="{number}" type="model" {attributes}>{mesh}</object>'


def test_a_3mf_gives_what_its_build_names_in_the_objects_own_colour(tmp_path: Path) -> None:
    objects = one_face(2, 'pid="1" pindex="0"') + one_face(3)
    both = read_mesh(three_mf(tmp_path / "both.3mf", objects, ""))
    assert len(both.faces) == 2
    red = read_mesh(three_mf(tmp_path / "red.3mf", objects, '<item objectid="2"/>'))
    assert len(red.faces) == 1 and np.allclose(red.colors, (1, 0, 0), atol=1e-6)
    grey = read_mesh(three_mf(tmp_path / "grey.3mf", objects, '<item objectid="3"/>'))
    assert len(grey.faces) == 1 and np.ptp(grey.colors) == 0


def test_a_damaged_3mf_is_named(tmp_path: Path) -> None:
    file = three_mf(tmp_path / "cut.3mf", one_face(2) * 50, "")
    data = bytearray(file.read_bytes())
    data[60:140] = bytes(80)
    file.write_bytes(data)
    with pytest.raises(MeshError, match=r"cut\.3mf: not a usable 3MF"):
        read_mesh(file)


def test_a_profile_can_be_taken_back_and_exchanged() -> None:
    printed = LiftSettings(profile="print", seed=3)
    assert printed.watertight and printed.keep == 1.0
    assert printed.replaced(profile=None) == LiftSettings(seed=3)
    assert printed.replaced(profile="web") == LiftSettings(profile="web", seed=3)
    assert LiftSettings(profile="print", texture="baked").face_budget == 20_000


def test_names_that_are_no_unicode_are_escaped(tmp_path: Path) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    write_json_whole(tmp_path / "a.json", {"name": name})
    assert json.loads((tmp_path / "a.json").read_text())["name"] == name
