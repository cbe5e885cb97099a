"""A wheel built from this tree: what it carries, and that its parts find each other under their installed names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy, since setuptools writes beside its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("trilift", "lrm", "multiview", "train", "demo", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(source),
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
    ]
    built = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob("trilift-*.whl")
    return found


def test_it_installs_no_name_that_others_use(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        tops = {name.split("/")[0] for name in file.namelist() if ".dist-info/" not in name}
    assert tops == {"trilift", "lrm", "multiview", "trilift_train", "trilift_demo"}


def test_it_carries_weights_examples_and_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    data = [
        path for folder in ("weights", "examples") for path in (ROOT / "trilift" / folder).rglob("*") if path.is_file()
    ]
    assert {path.relative_to(ROOT).as_posix() for path in data if "__pycache__" not in path.parts} <= names
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_its_rooms_import_from_elsewhere(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    code = (
        "import trilift, trilift_train.shapes, trilift_demo.app as app, multiview, lrm\n"
        "from trilift.cli import main\n"
        "assert trilift.ImageTo3D is app.ImageTo3D\n"
        "print(trilift.__file__)\n"
        "main(['--version'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    assert str(tmp_path / "site") in child.stdout
    assert "trilift 0.1.0" in child.stdout
