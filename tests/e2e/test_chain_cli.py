"""From a photo through a generator and a reconstruction model to a mesh, on the command line; weights are small and
random, so that what comes out means nothing, but every part of the way is the real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh

from multiview.camerafile import read_views
from tests.fakes import draw_photo
from tests.landmarks import Renderer, loaded, photo_of, place
from tests.published import published_folder
from tests.small_generators import make_small
from trilift import ImageTo3D, LiftSettings, PhotoToViews, cli

GENERATORS = ("zero123", "syncdreamer", "zero123plus")
COUNTS = {"instantmesh": (6, 16, 6), "tiny": (3, 16, 6)}  # views that are generated
FAST = ["--resolution", "32", "--threshold", "median", "--steps", "2", "--dtype", "fp32", "--device", "cpu", "--quiet"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo, a small copy of each generator and of InstantMesh, and one of TripoSR."""
    folder = tmp_path_factory.mktemp("chain")
    draw_photo(folder / "chair.png")
    for name in GENERATORS:
        make_small(name, folder / name, seed=2)
    for family in ("instantmesh", "triposr"):
        published_folder(folder / family, family)
    return folder


def lift(base: Path, out: Path, model: str, views: str, *options: str) -> int:
    place = "tiny" if model == "tiny" else str(base / model)
    return cli.main(
        ["lift", str(base / "chair.png"), "-o", str(out), "--model", place, "--views", views, *FAST, *options]
    )


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "asset.json").read_text())
    return record


@pytest.mark.parametrize("model", ["instantmesh", "tiny"])
@pytest.mark.parametrize("name", GENERATORS)
def test_from_a_photo_to_a_mesh(name: str, model: str, base: Path, tmp_path: Path) -> None:
    assert lift(base, tmp_path, model, str(base / name), "--elevation", "15", "--max-memory", "4GB") == cli.OK
    folder = tmp_path / "chair"
    assert sorted(file.name for file in folder.iterdir()) == ["asset.json", "input.png", "mesh.glb", "views.png"]
    mesh = trimesh.load(folder / "mesh.glb", force="mesh")
    assert len(mesh.faces) > 50 and mesh.extents.max() == pytest.approx(1, abs=1e-4)
    record = record_of(folder)
    made = record["views"]
    assert made["generator"]["architecture"] == name and len(made["generator"]["sha256"]) == 64
    assert (made["elevation_deg"], made["elevation_estimated"], made["steps"]) == (15.0, False, 2)
    assert made["max_memory_bytes"] == 4_000_000_000 and record["settings"]["view_steps"] == 2
    assert len(made["cameras"]) == COUNTS[model][GENERATORS.index(name)]
    assert (made["chain"]["generator"], made["chain"]["model"]) == (name, model)
    assert "elevation" not in record["assumed"]["estimated"] and record["seconds"]["views"] > 0


def test_same_seed_same_bytes_and_another_seed_others(base: Path, tmp_path: Path) -> None:
    for out, seed in (("a", "4"), ("b", "4"), ("c", "5")):
        assert lift(base, tmp_path / out, "instantmesh", str(base / "zero123plus"), "--seed", seed) == cli.OK
    meshes = {out: (tmp_path / out / "chair" / "mesh.glb").read_bytes() for out in "abc"}
    assert meshes["a"] == meshes["b"] != meshes["c"]
    a, b = (record_of(tmp_path / out / "chair") for out in "ab")
    assert a.pop("seconds") != b.pop("seconds") and a == b
    assert a["assumed"]["estimated"][0] == "elevation" and a["views"]["elevation_estimated"] is True


@pytest.mark.parametrize("name", ["zero123", "zero123plus"])
def test_views_made_first_and_lifted_later_give_what_the_chain_gives(name: str, base: Path, tmp_path: Path) -> None:
    """Cameras and their world are the same to rounding; pictures to 8 bits."""
    words = ["views", str(base / "chair.png"), "-o", str(tmp_path / "v"), "--views", str(base / name), *FAST[4:]]
    more = ["--cameras", "instantmesh"] if name == "zero123" else []
    assert cli.main([*words, "--elevation", "15", *more]) == cli.OK
    pipe = ImageTo3D.from_pretrained(base / "instantmesh", device="cpu", dtype="fp32", on_note=lambda text: None)
    later = pipe(base / "chair.png", resolution=32, threshold="median", views_dir=tmp_path / "v" / "chair")
    pipe.generator = PhotoToViews.from_pretrained(base / name, device="cpu", dtype="fp32", on_note=lambda text: None)
    once = pipe(base / "chair.png", resolution=32, threshold="median", elevation=15.0, view_steps=2)
    assert later.views is not None and once.views is not None
    assert (later.views.cameras.c2w - once.views.cameras.c2w).abs().max() < 1e-6
    assert (later.views.images - once.views.images).abs().max() < 0.5 / 255 + 1e-6
    distance = {"zero123": 3.0, "zero123plus": 4.0}[name]
    assert later.views.cameras.positions.norm(dim=-1).tolist() == pytest.approx([distance] * 6, abs=1e-5)
    assert read_views(tmp_path / "v" / "chair").cameras.positions[0].norm() == pytest.approx(
        1.5 if name == "zero123" else 4.0
    )


def test_a_folder_of_photos_loads_the_generator_once_and_resumes(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    for name in ("a", "b"):
        draw_photo(photos / f"{name}.png", (60, 90 if name == "a" else 200, 40))
    loads: list[str] = []
    load = PhotoToViews.from_pretrained

    def counted(name: Any, **options: Any) -> PhotoToViews:
        loads.append(str(name))
        return load(name, **options)

    monkeypatch.setattr(PhotoToViews, "from_pretrained", staticmethod(counted))
    words = ["batch", str(photos), "-o", str(tmp_path / "out"), "--model", str(base / "instantmesh"), *FAST]
    for _ in range(2):
        assert cli.main([*words, "--views", str(base / "zero123plus")]) == cli.OK
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["done", "done"]  # what is skipped adds no row
    assert len(loads) == 1  # the second run found everything finished
    # Another generator is another result.
    make_small("zero123plus", tmp_path / "other", seed=9)
    assert cli.main([*words, "--views", str(tmp_path / "other")]) == cli.OK
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines[2:]] == ["done", "done"]


@pytest.mark.parametrize(
    ("model", "options", "status", "words"),
    [
        ("triposr", ["--views", "{}/zero123plus"], cli.USAGE, "triposr lifts the photo alone and would not look at"),
        ("instantmesh", ["--views", "openlrm-mix-base"], cli.USAGE, "lifts pictures to an object and makes no views"),
        ("instantmesh", ["--views", "zero123-xxl"], cli.FAILED, "Did you mean zero123-xl"),
        ("zero123plus", ["--views", "{}/zero123plus"], cli.USAGE, "makes views of a photo and no object"),
        ("instantmesh", ["--views", "{}/zero123plus", "--views-dir", "v"], cli.USAGE, "exclude each other"),
        ("instantmesh", [], cli.USAGE, "--views NAME to have views generated"),
        ("triposr", ["--guidance", "3"], cli.USAGE, "guidance: of generated views, and there are none without --views"),
        ("triposr", ["--max-memory", "10MB"], cli.USAGE, "--max-memory 0.01 GB: a lift at --resolution 16 needs about"),
        ("instantmesh", ["--views", "{}/zero123plus", "--max-memory", "10KB"], cli.USAGE, "--max-memory"),
    ],
)  # fmt: skip
def test_what_cannot_be_chained_is_refused(
    model: str, options: list[str], status: int, words: str, base: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    told = [option.format(base) for option in options]
    words_given = ["lift", str(base / "chair.png"), "-o", str(tmp_path / "out"), "--model", str(base / model)]
    assert cli.main([*words_given, "--device", "cpu", "--dtype", "fp32", *told]) == status
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_known_names_that_do_not_go_together_are_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    photo = draw_photo(tmp_path / "chair.png")
    words = ["lift", str(photo), "-o", str(tmp_path / "out"), "--model", "triposr", "--views", "syncdreamer"]
    assert cli.main(words) == cli.USAGE


def test_what_decides_the_views_is_in_the_fingerprint() -> None:
    """Another seed, steps, sum of weights or rule: another result. Another place of the same: the same."""
    tiny = ImageTo3D.from_pretrained("tiny", device="cpu", dtype="fp32")
    generator = loaded(Renderer("zero123plus", place(0.0, 0.0, 4.0, 30.0)))
    pipe = ImageTo3D(tiny.model, weights=tiny.weights, generator=generator)

    def mark(**changes: Any) -> str:
        return pipe.fingerprint("0", None, LiftSettings().replaced(**changes))

    plain = mark()
    assert plain == mark() and plain != tiny.fingerprint("0", None, LiftSettings())
    changed = [mark(seed=1), mark(view_steps=9), mark(guidance=2.0), mark(scheduler="ddim"), mark(elevation=3.0)]
    generator.weights = type(generator.weights)("zero123plus", sha256="1" * 64, architecture="zero123plus")
    changed.append(mark())
    assert len({plain, *changed}) == 7


def test_the_photos_field_of_view_moves_its_camera(tmp_path: Path) -> None:
    """For the embedded model, which is shown the photo among the views: same width at the object, another distance."""
    tiny = ImageTo3D.from_pretrained("tiny", device="cpu", dtype="fp32")
    cameras = torch.arange(16) * 22.5
    ring = type(place(0.0, 30.0, 1.5, 49.134)).cat([place(float(a), 30.0, 1.5, 49.134) for a in cameras])
    pipe = ImageTo3D(tiny.model, weights=tiny.weights, generator=loaded(Renderer("syncdreamer", ring)))
    photo = photo_of(tmp_path / "knobs.png")
    usual, told = (pipe(photo, resolution=32, elevation=20.0, fov=fov).record["views"] for fov in (None, 40.0))
    assert usual["model_cameras"][0]["distance"] == pytest.approx(1.5, abs=1e-4)
    assert told["model_cameras"][0]["fov_y_deg"] < 45 and told["model_cameras"][0]["distance"] > 1.6
    assert told["model_cameras"][1:] == usual["model_cameras"][1:]
