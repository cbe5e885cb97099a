"""`ImageTo3D` through its public door: with the fake model, and with the embedded weights when they are there."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import trilift
from lrm.meshfile import FORMATS as FILE_FORMATS
from lrm.meshfile import read_mesh
from lrm.tiny import TinyConfig, TinyLRM
from multiview.errors import FieldError, ImageError, SettingsError, WeightsError
from multiview.weights import file_sha256
from tests.fakes import HALF_AXES, FakeModel, draw_photo, ellipsoid_field, use_fake_model
from trilift import ImageTo3D, LiftSettings
from trilift.pipeline import naming
from trilift.settings import FORMATS
from trilift.shape import shaped


@pytest.fixture
def photo(tmp_path):
    return draw_photo(tmp_path / "chair.png")


@pytest.fixture
def pipe():
    return ImageTo3D(FakeModel())


# The public names


def test_import_is_light_and_names_come_when_used():
    code = (
        "import sys, trilift; assert not {'torch', 'numpy', 'PIL'} & set(sys.modules); "
        "trilift.LiftSettings(); assert 'torch' not in sys.modules; "
        "trilift.models(); assert 'torch' not in sys.modules; "
        "trilift.ImageTo3D; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(trilift.__file__).parents[1])


def test_the_lift_path_loads_nothing_it_does_not_need():
    code = (
        "import sys; from trilift import ImageTo3D; "
        "heavy = {'diffusers', 'transformers', 'matplotlib', 'gradio', 'rembg', 'onnxruntime', 'train', 'demo'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(trilift.__file__).parents[1])


def test_every_public_name_is_there():
    for name in trilift.__all__:
        assert getattr(trilift, name) is not None
        assert name in dir(trilift)
    with pytest.raises(AttributeError, match="no attribute 'ImageTo4D'"):
        _ = trilift.ImageTo4D


# Settings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resolution": 8}, "resolution=8: expected a whole number from 16 to 2048"),
        ({"resolution": 64.0}, "resolution=64.0: expected a whole number"),
        ({"resolution": True}, "resolution=True: expected a whole number"),
        ({"threshold": 0}, "threshold=0: expected auto or median or a number above 0"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"threshold": "high"}, "threshold='high': expected auto or median or a number above 0"),
        ({"background": "blue"}, "background='blue': expected auto or keep or remove"),
        ({"foreground_ratio": 1.5}, "foreground_ratio=1.5: expected a number from 0.2 to 1"),
        ({"elevation": 91}, "elevation=91: expected a number from -90 to 90"),
        ({"fov": 0}, "fov=0: expected a number from 1 to 150"),
        ({"upright": "yes"}, "upright='yes': expected auto or off"),
        ({"faces": 3}, "faces=3: expected a whole number from 4"),
        ({"texture": "woven"}, "texture='woven': expected"),
        ({"formats": ()}, "expected a list of one or more of glb, obj"),
        ({"formats": "glb"}, "formats='glb': expected a list"),
        ({"formats": ["glb", "fbx"]}, "formats='fbx': expected glb or obj"),
        ({"formats": ["glb", "glb"]}, "names one format twice"),
        ({"seed": -1}, "seed=-1: expected a whole number from 0"),
        ({"height": -2}, "height=-2: expected a number above 0"),
        ({"height": 2, "scale": 3}, "height=2 and scale=3 exclude each other"),
        ({"resolutoin": 64}, "unknown setting 'resolutoin'. Did you mean 'resolution'"),
        ({"zzz": 1}, "unknown setting 'zzz'. Known are resolution"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_out_of_range_say_what_was_expected(changes, words):
    with pytest.raises(SettingsError) as caught:
        LiftSettings().replaced(**changes)
    assert words in str(caught.value)


def test_settings_are_plain_json_and_do_not_change():
    settings = LiftSettings().replaced(formats=["obj", "glb"], threshold=3)
    assert json.loads(json.dumps(settings.as_record()))["formats"] == ["obj", "glb"]
    assert LiftSettings().formats == ("glb",)


def test_formats_are_those_of_the_writer():
    assert set(FORMATS) == set(FILE_FORMATS)


# One lift, with the fake model


def test_a_photo_becomes_an_upright_file_in_the_right_colour(pipe, photo, tmp_path):
    asset = pipe(photo, resolution=48)
    files = asset.save(tmp_path / "out")
    assert {f.name for f in files} == {"mesh.glb", "input.png", "seen.png", "asset.json"}
    scene = trimesh.load(tmp_path / "out" / "mesh.glb", force="mesh", process=False)
    x, y, z = HALF_AXES
    # File axes are (world y, world z, world x), longest side 1: (0.8, 1.2, 0.6) / 1.2.
    assert scene.extents == pytest.approx([y / z, 1.0, x / z], abs=0.02)
    assert scene.volume > 0
    assert np.abs(asset.mesh.colors - np.array([200, 60, 40]) / 255).max() < 0.01
    assert read_mesh(tmp_path / "out" / "mesh.glb").colors == pytest.approx(asset.mesh.colors, abs=0.01)


def test_the_record_says_how_it_was_made(pipe, photo):
    record = pipe(photo, resolution=40, elevation=10, seed=7).record
    assert record["trilift"] == trilift.__version__
    assert record["photo"]["sha256"] == file_sha256(photo)
    assert record["model"]["name"] == "fake" and record["model"]["sha256"] is None
    assert record["settings"]["resolution"] == 40 and record["seed"] == 7
    assert record["assumed"]["elevation_deg"] == 10 and record["assumed"]["estimated"] == ["fov", "distance"]
    assert record["assumed"]["camera_distance"] == pytest.approx(2.7)
    assert record["versions"]["torch"] == torch.__version__ and record["versions"]["numpy"] == np.__version__
    assert list(record["seconds"]) == ["load", "cutout", "network", "mesh", "texture", "check", "lift"]
    stages = [s for name, s in record["seconds"].items() if name != "lift"]
    assert record["seconds"]["lift"] == pytest.approx(sum(stages), abs=0.002)
    assert record["device"].startswith("cpu") and record["dtype"] == "float32"
    assert 0 < record["checks"]["silhouette_iou"] < 1 and record["checks"]["watertight"] is True
    json.dumps(record, allow_nan=False)


def test_silhouette_check_compares_the_right_views():
    """A disc of 0.35 * 96 px radius is cut out at ratio 0.85; a sphere drawn to fit that exactly overlaps fully."""
    from multiview.cameras import orbit
    from trilift.foreground import cut_out
    from trilift.photo import load_photo
    from trilift.pipeline import quality_checks

    y, x = np.mgrid[:96, :96] + 0.5
    picture = np.full((96, 96, 4), 255, np.uint8)
    picture[..., 3] = 255 * (np.hypot(x - 48, y - 48) < 34)
    cutout = cut_out(load_photo(picture), foreground_ratio=0.85)
    half_angle = math.atan(0.85 * math.tan(math.radians(20)))  # of the sphere's rim in a 40 degree picture
    ball = trimesh.creation.icosphere(subdivisions=4, radius=3 * math.sin(half_angle))
    from lrm.mesh import Mesh
    from lrm.models import Reconstruction

    mesh = Mesh(ball.vertices, ball.faces, np.full_like(ball.vertices, 0.5))
    made = Reconstruction(ellipsoid_field(), orbit(0, 15, 3, 40), 15, ())
    assert quality_checks(mesh, made, cutout)["silhouette_iou"] > 0.96
    moved = Mesh(ball.vertices + np.array([0, 0.6, 0]), ball.faces, np.full_like(ball.vertices, 0.5))
    assert quality_checks(moved, made, cutout)["silhouette_iou"] < 0.7


def test_a_wrong_outline_is_told():
    bar = np.zeros((64, 64, 4), np.uint8)
    bar[30:34, 4:60] = 255
    record = ImageTo3D(FakeModel())(bar, resolution=32).record
    assert record["checks"]["silhouette_iou"] < 0.5
    assert any("agrees with its outline in the photo by only" in warning for warning in record["warnings"])


def test_camera_options_reach_the_model(photo):
    model = FakeModel()
    pipe = ImageTo3D(model)
    pipe(photo, resolution=32)
    images, elevation, fov, upright = model.calls[-1]
    assert images.shape == (1, 4, 64, 64) and images.dtype == torch.float32 and 0.99 < images.max() <= 1
    assert (elevation, fov, upright) == (None, None, True)
    asset = pipe(photo, resolution=32, elevation=-5, fov=40, upright="off")
    _, elevation, fov, upright = model.calls[-1]
    # The conditioning image shows a square of the photo's 96 px, so the tangents scale by that side over 96.
    wanted = 2 * math.degrees(math.atan(math.tan(math.radians(20)) * asset.cutout.crop[2] / 96))
    assert fov == pytest.approx(wanted) and fov < 40
    assert (elevation, upright) == (-5, False)


def test_foreground_ratio_is_the_models_unless_given(photo):
    model = FakeModel()
    model.foreground_ratio = 0.6
    assert ImageTo3D(model)(photo, resolution=32).cutout.foreground_ratio == 0.6
    assert ImageTo3D(model)(photo, resolution=32, foreground_ratio=0.9).cutout.foreground_ratio == 0.9


def test_pictures_arrays_and_lists(pipe, photo):
    picture = Image.open(photo)
    assets = pipe([photo, str(photo), picture, np.asarray(picture)], resolution=32)
    assert [asset.name for asset in assets] == ["chair", "chair", "photo", "photo"]
    assert all(len(asset.mesh.faces) == len(assets[0].mesh.faces) for asset in assets)
    assert pipe([], resolution=32) == []


def test_stages_are_announced_in_order(pipe, photo):
    told: list[str] = []
    pipe(photo, resolution=48, faces=100, on_stage=told.append)
    assert told == ["load", "cutout", "network", "mesh", "simplify", "texture", "check"]


def test_gradients_and_random_numbers_of_the_caller_are_left_alone(pipe, photo):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    field = pipe(photo, resolution=32).field
    assert torch.equal(torch.get_rng_state(), before) and torch.is_grad_enabled()
    points = torch.zeros(1, 3).add(0.2).requires_grad_()
    field.density(points).sum().backward()
    assert points.grad is not None and points.grad.abs().sum() > 0


@pytest.mark.parametrize("faces", [60, 400])
def test_faces_reduces_triangles_and_keeps_shape_and_colour(pipe, photo, faces):
    full = pipe(photo, resolution=48)
    small = pipe(photo, resolution=48, faces=faces)
    assert len(small.mesh.faces) <= faces < len(full.mesh.faces)
    assert small.mesh.is_watertight and small.mesh.volume == pytest.approx(full.mesh.volume, rel=0.15)
    assert small.mesh.colors.mean(0) == pytest.approx(full.mesh.colors.mean(0), abs=1e-4)


def test_faces_above_what_there_is_changes_nothing(pipe, photo):
    mesh = pipe(photo, resolution=32).mesh
    same, notes = shaped(mesh, ellipsoid_field(), LiftSettings(faces=10**6))
    assert same is mesh and notes == ()


def test_a_normal_map_lies_beside_a_baked_texture(pipe, photo, tmp_path):
    asset = pipe(photo, resolution=48, faces=200, texture="baked", texture_size=64, normal_map=True)
    assert asset.normal_map is not None and asset.normal_map.shape == (64, 64, 3)
    assert asset.normal_map[..., 2].min() > 128  # out of the surface
    assert np.ptp(asset.normal_map[..., 0]) > 5  # the ball is rounder than 200 triangles
    files = {file.name for file in asset.save(tmp_path / "out", formats=("gltf",))}
    assert {"mesh_color.png", "mesh_normal.png"} <= files
    with pytest.raises(SettingsError, match="--texture baked"):
        LiftSettings(normal_map=True)


def test_same_seed_same_bytes(pipe, photo, tmp_path):
    for run in ("a", "b"):
        pipe(photo, resolution=48, faces=500, seed=1).save(tmp_path / run, formats=("glb", "ply", "stl", "obj"))
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(names) == 7
    for name in names:
        a, b = ((tmp_path / run / name).read_bytes() for run in ("a", "b"))
        if name == "asset.json":
            a, b = ({k: v for k, v in json.loads(x).items() if k != "seconds"} for x in (a, b))
        assert a == b, name


def test_an_error_names_the_photo(photo):
    with pytest.raises(FieldError, match=r"chair\.png: "):
        ImageTo3D(FakeModel(broken=True))(photo, resolution=32)


def test_naming_leaves_named_errors_and_bugs_alone():
    with pytest.raises(ImageError, match=r"^a\.png: is empty$"), naming("a.png"):
        raise ImageError("a.png: is empty")
    with pytest.raises(ImageError, match=r"^a\.png: is empty$"), naming("a.png"):
        raise ImageError("is empty")
    with pytest.raises(ZeroDivisionError, match=r"^by zero$"), naming("a.png"):
        raise ZeroDivisionError("by zero")


def test_one_call_functions(monkeypatch, photo, tmp_path):
    use_fake_model(monkeypatch)
    asset = trilift.lift(photo, tmp_path / "one", resolution=32, formats=["stl"])
    assert asset.name == "chair" and (tmp_path / "one" / "mesh.stl").is_file()
    results = list(trilift.lift_folder(tmp_path, tmp_path / "many", resolution=32))
    assert [(r.source, r.status) for r in results] == [("chair.png", "done")]


# Loading


def test_from_pretrained_refuses_what_is_not_there():
    with pytest.raises(SettingsError, match=r"zero123-xl is Zero123.*Give it with --views"):
        ImageTo3D.from_pretrained("zero123-xl")
    with pytest.raises(SettingsError, match="--views syncdreamer: triposr lifts the photo alone"):
        ImageTo3D.from_pretrained("triposr", views="syncdreamer")
    with pytest.raises(SettingsError, match=r"tiny is .* makes no views"):
        ImageTo3D.from_pretrained("tiny", views="tiny")


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory):
    """A folder in our own format, with a very small untrained network."""
    config = TinyConfig(
        image_size=32, stem=(8, 8, 8, 16), width=16, heads=2, layers=1, side_channels=(8, 8), front_channels=(8, 8, 8),
        plane_channels=8, decoder_width=8, decoder_layers=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "mine"
    TinyLRM.random(config, seed=1).save(folder, {"licence": "CC0-1.0"})
    return folder


def test_from_pretrained_loads_a_folder(random_folder):
    pipe = ImageTo3D.from_pretrained(str(random_folder), device="cpu")
    assert pipe.weights.name == "mine" and pipe.weights.licence == "CC0-1.0" and pipe.weights.commercial == "unknown"
    assert pipe.weights.sha256 == file_sha256(random_folder / "model.safetensors")
    assert (pipe.model.image_size, pipe.dtype, pipe.device.type) == (32, "float32", "cpu")


def test_from_pretrained_refuses_revision_and_unknown_devices(random_folder):
    with pytest.raises(SettingsError, match="revision='v1'"):
        ImageTo3D.from_pretrained(random_folder, revision="v1")
    with pytest.raises(SettingsError, match="--device tpu: expected auto"):
        ImageTo3D.from_pretrained(random_folder, device="tpu")
    with pytest.raises(SettingsError, match="--dtype fp8: expected auto"):
        ImageTo3D.from_pretrained(random_folder, device="cpu", dtype="fp8")


def test_from_pretrained_refuses_damaged_weights(random_folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        data = (random_folder / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2] if name.startswith("model") else data)
    with pytest.raises(WeightsError, match=r"model\.safetensors: not a whole safetensors file"):
        ImageTo3D.from_pretrained(tmp_path)


# The embedded weights


@pytest.mark.parametrize("name", ["chair.png", "teapot.png"])
def test_embedded_model_lifts_a_real_picture(shared_data, tmp_path, name):
    pipe = ImageTo3D.from_pretrained("tiny", device="cpu")
    asset = pipe(shared_data / "images" / name, resolution=64)
    asset.save(tmp_path / "out")
    scene = trimesh.load(tmp_path / "out" / "mesh.glb", force="mesh", process=False)
    assert scene.is_watertight and scene.volume > 0 and scene.extents.max() == pytest.approx(1, abs=1e-4)
    assert asset.record["checks"]["silhouette_iou"] > 0.7
    assert len(np.unique((asset.mesh.colors * 16).astype(int), axis=0)) > 3


def test_embedded_model_gives_the_same_bytes_twice(tmp_path):
    photo = draw_photo(tmp_path / "disc.png")
    for run in ("a", "b"):
        ImageTo3D.from_pretrained("tiny", device="cpu")(photo, resolution=64).save(tmp_path / run)
    assert (tmp_path / "a" / "mesh.glb").read_bytes() == (tmp_path / "b" / "mesh.glb").read_bytes()
