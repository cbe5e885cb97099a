"""`train.prepare` as a command: what it packs, with which renderer, and what it says when it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lrm.mesh import Mesh
from lrm.meshfile import write_mesh
from multiview.errors import SettingsError
from train.batches import PackedData
from train.prepare import build_parser, main, settings_of
from train.render import pick_renderer

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--views", "2", "--image-size", "24", "--points", "400", "--surface", "64"]
QUADS = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))

# Everything that the GPU machine lacks: an import of it fails there, so it fails here.
BLOCKED = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"trimesh", "embreex", "igl", "scipy", "mcubes", "PIL", "gradio", "transformers"}:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)
sys.meta_path.insert(0, Missing())
import importlib.util
real = importlib.util.find_spec
def find_spec(name, package=None):
    try:
        return real(name, package)
    except ModuleNotFoundError:
        return None
importlib.util.find_spec = find_spec
"""


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    """A box and a file that is none."""
    unit = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * (1, 0.5, 0.7)
    faces = np.array([t for a, b, c, d in QUADS for t in ((a, b, c), (a, c, d))])
    write_mesh(Mesh(unit, faces, np.full((8, 3), 0.5)), tmp_path / "in" / "box.glb")
    (tmp_path / "in" / "broken.glb").write_bytes(b"not a mesh")
    return tmp_path / "in"


def options(*words: str) -> list[str]:
    return ["meshes", "-o", "out", *words]


def test_it_runs_without_the_extra(meshes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = [str(meshes), "-o", str(out), *SMALL]
    # The pool's processes start with the same blocks: a site folder of our own comes first on their path.
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BLOCKED, "utf-8")
    environment = {"PYTHONPATH": f"{site}:{ROOT}", "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "train.prepare", *argv]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"packed": 1, "skipped": 1, "out": str(out)}
    assert "broken.glb" in json.loads((out / "skipped.json").read_text())["broken"]
    without = PackedData(out)
    assert without.names == ["box"]
    share = without.arrays["inside"][0, :200].mean()
    assert share == pytest.approx(0.5 * 0.7 / 1.1**3, abs=0.09)  # the box's part of the cube of uniform points
    pytest.importorskip("embreex", reason="embreex is in the extra train")
    pytest.importorskip("igl", reason="libigl is in the extra train")
    assert main([*argv[:2], str(tmp_path / "with"), *SMALL]) == 0
    both = PackedData(tmp_path / "with")
    for name in ("cameras", "points", "surface", "colors"):
        assert np.array_equal(without.arrays[name][:1], both.arrays[name][:1]), name
    assert (without.arrays["inside"][0] == both.arrays["inside"][0]).mean() > 0.99
    apart = np.abs(without.arrays["views"][0].astype(int) - both.arrays["views"][0])
    assert (apart <= 1).mean() > 0.98


def test_the_renderer_is_embree_on_a_cpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    there: dict[str, object | None] = {"embreex": object()}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: there.get(name))
    assert pick_renderer("auto", "cpu") == "embree" and pick_renderer("torch", "cpu") == "torch"
    assert pick_renderer("auto", "gpu:0") == "torch"
    with pytest.raises(SettingsError, match="not on gpu:0"):
        pick_renderer("embree", "gpu:0")
    there["embreex"] = None
    assert pick_renderer("auto", "cpu") == "torch"
    with pytest.raises(SettingsError, match=r"trilift\[train\].*--renderer torch"):
        pick_renderer("embree", "cpu")
    with pytest.raises(SettingsError, match=r"raster.*auto, embree, torch"):
        pick_renderer("raster", "cpu")


def test_options_become_settings() -> None:
    args = build_parser().parse_args(
        options(
            "--views", "3", "--usual-share", "0.25", "--distance", "2", "3", "--fov", "20", "30", "--renderer", "torch"
        )
    )
    settings = settings_of(args)
    assert settings.views == 3 and settings.renderer == "torch" and settings.device == "cpu"
    assert settings.draw.usual_share == 0.25 and settings.draw.distance == (2, 3) and settings.draw.fov_deg == (20, 30)
    assert settings.draw.usual_elevation_deg == (-5, 35) and settings.draw.elevation_deg == (-20, 50)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--fov", "40", "30"), r"fov_deg.*found 40 30"),
        (("--distance", "0.5", "3"), r"distance 0\.5.*outside the object"),
        (("--usual-share", "1.5"), r"usual share 1\.5"),
        (("--device", "nonsense"), "nonsense"),
    ],
)
def test_wrong_options_are_errors(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_of(build_parser().parse_args(options(*words)))


def test_nothing_to_prepare_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--procedural N, found neither"):
        main(["-o", str(tmp_path / "out")])
    with pytest.raises(SettingsError, match="no meshes found"):
        main([str(tmp_path), "-o", str(tmp_path / "out")])
