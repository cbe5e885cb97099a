"""What is imported when: a program starts as quickly as its imports, and those are counted here, not timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# None of these does anything for a photo with alpha that the embedded model lifts to a GLB.
NEVER = {
    "demo", "diffusers", "fast_simplification", "gradio", "matplotlib", "networkx", "onnxruntime", "pandas",
    "pygltflib", "rembg", "skimage", "train", "transformers", "trimesh", "xatlas",
}  # fmt: skip
SCRIPT = """
import json, sys
told = {}
def look(name):
    told[name] = sorted({m for m in sys.modules if not m.startswith("_")})
from trilift.cli import build_parser
build_parser()
look("parser")
from trilift import ImageTo3D
import trilift.pipeline
look("package")
pipe = ImageTo3D.from_pretrained("tiny", device="cpu", on_note=lambda text: None)
look("model")
pipe(sys.argv[1], resolution=48).save(sys.argv[2])
look("lift")
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Modules that a fresh process has after each of four steps."""
    photo, out = ROOT / "trilift" / "examples" / "chair.png", tmp_path_factory.mktemp("imports") / "out"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(photo), str(out)], cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name: set(modules) for name, modules in json.loads(done.stdout.splitlines()[-1]).items()}


def packages(modules: set[str]) -> set[str]:
    """The first words of their names."""
    return {name.partition(".")[0] for name in modules}


def test_the_command_line_is_parsed_without_numpy_or_torch(imported: dict[str, set[str]]) -> None:
    assert not packages(imported["parser"]) & {*NEVER, "numpy", "torch", "scipy", "PIL", "lrm"}
    assert len(imported["parser"]) < 300


def test_loading_a_model_needs_no_scipy(imported: dict[str, set[str]]) -> None:
    assert not packages(imported["model"]) & {*NEVER, "scipy", "mcubes"}
    assert "torch" in packages(imported["package"])


def test_a_lift_imports_what_it_uses_alone(imported: dict[str, set[str]]) -> None:
    assert not packages(imported["lift"]) & NEVER
    for module in ("torch._dynamo", "torch._inductor", "scipy.optimize", "scipy.stats", "scipy.interpolate"):
        assert module not in imported["lift"], module
    assert {"scipy", "PIL"} <= packages(imported["lift"])  # the test can tell
