"""What the README shows is run, so that it stays true."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from trilift import cli, registry

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_python_snippet_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("chair.png", "photos/car.png"):
        shutil.copy(ROOT / "trilift" / "examples" / Path(name).name, tmp_path / name)
    exec(compile(snippet, "README.md", "exec"), {})
    found = {p.name for p in (tmp_path / "out" / "chair").iterdir()}
    assert found >= {"mesh.glb", "mesh.stl", "turntable.gif", "input.png", "asset.json"}
    assert (tmp_path / "out" / "car" / "mesh.glb").stat().st_size > 10_000
    assert "car.png done" in capsys.readouterr().out


def test_every_command_of_the_readme_is_known() -> None:
    commands = set(re.findall(r"^trilift (\w+)", README, re.M))
    text = cli.build_parser().format_help()
    assert commands >= {"lift", "batch", "demo", "models", "doctor", "eval"}
    assert all(re.search(rf"^    {command} ", text, re.M) for command in commands)


def test_the_readme_names_every_published_set() -> None:
    section = README[README.index("## Large published models") : README.index("## Speed")]
    for row in registry.models():
        name, family = row.weights.name, re.sub(r"-(obj|mix)-(small|base|large)$|-(base|large)$", "", row.weights.name)
        assert row.weights.status == "ready"
        assert name == "tiny" or re.search(rf"`{re.escape(name)}`|{family}-\{{|--(model|views) {name}\b", section), name


def test_pictures_and_pages_that_the_readme_links_exist() -> None:
    targets = re.findall(r"\]\((?!http)([^)]+)\)", README) + re.findall(r"`(docs/[\w.-]+\.md)`", README)
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []
