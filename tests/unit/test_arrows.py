"""The house keeps its shape: who imports whom, where devices are named, what is declared (docs/design.md).

Every rule is a function from parsed files to complaints. It runs over the real files, and over a planted violation that
it must find: a check that cannot fail keeps nothing.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("multiview", "lrm", "trilift", "train", "demo", "benchmarks")

# Which rooms a room may import. Tests may import anything; nothing may import tests.
ARROWS = {
    "multiview": {"multiview"},
    "lrm": {"lrm", "multiview"},
    "trilift": {"trilift", "lrm", "multiview"},
    "train": {"train", "trilift", "lrm", "multiview"},
    "demo": {"demo", "trilift"},
    "benchmarks": {"benchmarks", "train", "trilift", "lrm", "multiview"},
}
# The front door reaches any room when a command asks for it.
FRONT_DOOR = "trilift/cli.py"

# GPL, compiled on install, OpenGL, or torch-version-bound: none of them on any path of ours.
BANNED = (
    "torchvision",
    "nvdiffrast",
    "torchmcubes",
    "pymeshlab",
    "cv2",
    "igl.copyleft",
    "pytorch3d",
    "kaolin",
)

# Import names whose distribution is called otherwise.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "fast_simplification": "fast-simplification",
    "gradio_client": "gradio-client",
    "huggingface_hub": "huggingface-hub",
    "igl": "libigl",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "mcubes": "pymcubes",
    "pxr": "usd-core",
    "yaml": "pyyaml",
}


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the root with forward slashes, and what it says."""

    path: str
    tree: ast.Module

    @classmethod
    def of(cls, path: str, text: str) -> Source:
        return cls(path, ast.parse(text, path))

    @property
    def room(self) -> str:
        return self.path.split("/")[0]

    def imports(self) -> Iterator[tuple[int, str]]:
        """(line, full dotted name) of everything imported anywhere in the file, relative names resolved.

        ``from a import b`` gives ``a.b``, since b may be a module; names given to ``import_module`` count too.
        """
        package = self.path.removesuffix(".py").split("/")[:-1]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                prefix = ".".join([*base, *([node.module] if node.module else [])])
                yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
                yield from ((node.lineno, a.value) for a in node.args[:1] if _is_text(a))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@functools.cache
def real_sources(*rooms: str) -> list[Source]:
    files = sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))
    return [Source.of(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in files]


# Looked for at run time beside a declared one that does the same, and listed nowhere.
ALTERNATIVES = {"av"}

# The rules.


def wrong_arrows(source: Source) -> list[str]:
    allowed = set(ROOMS) | {"trilift_train", "trilift_demo"} if source.path == FRONT_DOOR else ARROWS[source.room]
    ours = {*ROOMS, "tests", "trilift_train", "trilift_demo"}
    return [
        f"{source.path}:{line}: {source.room} imports {name}"
        for line, name in source.imports()
        if name.split(".")[0] in ours - allowed
    ]


def named_devices(source: Source) -> list[str]:
    """Device names in code (not in docstrings or in words of a message) and ``.cuda(...)`` outside devices.py."""
    if source.path == "multiview/devices.py":
        return []
    found = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            found.append(f"{source.path}:{node.lineno}: .cuda()")
        elif (
            isinstance(node, ast.Attribute)
            and node.attr in ("cuda", "mps")
            and ast.unparse(node) in ("torch.cuda", "torch.mps", "torch.backends.mps")
        ):
            found.append(f"{source.path}:{node.lineno}: {ast.unparse(node)}")
        elif _is_text(node) and re.fullmatch(r"(cuda|mps)(:\d+)?", node.value):  # type: ignore[attr-defined]
            found.append(f"{source.path}:{node.lineno}: device literal {node.value!r}")  # type: ignore[attr-defined]
    return found


def wildcards(source: Source) -> list[str]:
    return [
        f"{source.path}:{line}: from {name[:-2]} import *" for line, name in source.imports() if name.endswith(".*")
    ]


def banned_imports(source: Source) -> list[str]:
    return [
        f"{source.path}:{line}: {name} is banned"
        for line, name in source.imports()
        if any(name == word or name.startswith(word + ".") for word in BANNED)
    ]


def work_at_import(source: Source) -> list[str]:
    """Heavy libraries imported at the top of a file, so that ``import`` of ours would pay for them."""
    heavy = {"rembg", "trimesh", "gradio", "mcubes", "scipy", "diffusers", "transformers", "igl", "onnxruntime"}
    top = Source(source.path, ast.Module([n for n in source.tree.body if not _type_checking(n)], []))
    inner = {
        id(n) for f in ast.walk(top.tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
    }
    return [
        f"{source.path}:{node.lineno}: heavy import at the top: {ast.unparse(node)}"
        for node in ast.walk(top.tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in inner
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        if not getattr(node, "level", 0) and name.split(".")[0] in heavy
    ]


def _type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def undeclared(source: Source, declared: set[str]) -> list[str]:
    own = {*ROOMS, "tests", "trilift_train", "trilift_demo"}
    found = []
    for line, name in source.imports():
        top = name.split(".")[0]
        if top in own | ALTERNATIVES or top in sys.stdlib_module_names:
            continue
        if DISTRIBUTIONS.get(top, top).lower().replace("_", "-") not in declared:
            found.append(f"{source.path}:{line}: {top} is in no list of pyproject.toml")
    return found


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def declared_distributions(*, extras: bool) -> set[str]:
    project = pyproject()["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"].values() if extras else [])]
    return {re.split(r"[\[<>=!~; ]", entry)[0].lower() for entries in lists for entry in entries}


# Over the real files.

RULES: dict[str, Callable[[Source], list[str]]] = {
    "arrows": wrong_arrows,
    "devices": named_devices,
    "wildcards": wildcards,
    "banned": banned_imports,
    "heavy": work_at_import,
}


@pytest.mark.parametrize("rule", [pytest.param(rule, id=name) for name, rule in RULES.items()])
def test_the_rooms_keep(rule: Callable[[Source], list[str]]) -> None:
    sources = real_sources(*ROOMS)
    assert len(sources) > 10, "the rooms were not found"
    assert [complaint for source in sources for complaint in rule(source)] == []


@pytest.mark.parametrize("rule", [wildcards, banned_imports])
def test_the_tests_keep(rule: Callable[[Source], list[str]]) -> None:
    assert [complaint for source in real_sources("tests") for complaint in rule(source)] == []


def test_every_import_is_declared() -> None:
    declared = declared_distributions(extras=True) | {"pytest", "hypothesis"}
    sources = real_sources(*ROOMS, "tests")
    assert [complaint for source in sources for complaint in undeclared(source, declared)] == []


# Each rule finds what it is for, and leaves alone what looks like it.


@pytest.mark.parametrize(
    ("path", "text"),
    [
        pytest.param("multiview/bad.py", "import lrm.field", id="ground imports lrm"),
        pytest.param("lrm/bad.py", "from trilift import lift", id="lrm imports trilift"),
        pytest.param("lrm/bad.py", "def f():\n    from train.shapes import x", id="inside a function"),
        pytest.param("trilift/pipeline.py", "import demo", id="trilift imports demo"),
        pytest.param("trilift/pipeline.py", "import trilift_train.losses", id="by its wheel name"),
        pytest.param("demo/app.py", "from lrm.mesh import Mesh", id="demo skips the public face"),
        pytest.param("demo/app.py", "from benchmarks import x", id="demo imports benchmarks"),
        pytest.param("train/bad.py", "import benchmarks.extraction", id="train imports benchmarks"),
        pytest.param("train/bad.py", "from tests.fakes import x", id="tests imported"),
        pytest.param("lrm/bad.py", "import importlib\nimportlib.import_module('train.run')", id="by import_module"),
        pytest.param("trilift/cli.py", "from tests import fakes", id="even the front door"),
    ],
)
def test_wrong_arrows_are_found(path: str, text: str) -> None:
    (complaint,) = wrong_arrows(Source.of(path, text))
    assert complaint.startswith(path + ":")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("trilift/cli.py", "def demo():\n    from demo.app import main"),
        ("trilift/cli.py", "def demo():\n    from trilift_demo.app import main"),
        ("trilift/asset.py", "from lrm.mesh import Mesh\nfrom multiview.views import Views\nfrom . import turntable"),
        ("train/shapes/parts.py", "from ..objects import x\nfrom . import lathe\nfrom lrm import field"),
        ("demo/app.py", "from trilift import ImageTo3D\nfrom .page import build"),
    ],
)
def test_right_arrows_are_left_alone(path: str, text: str) -> None:
    assert wrong_arrows(Source.of(path, text)) == []


def test_relative_imports_are_resolved() -> None:
    source = Source.of("train/shapes/parts.py", "from ..objects import x\nfrom . import lathe\nfrom .a.b import c")
    assert [name for _, name in source.imports()] == ["train.objects.x", "train.shapes.lathe", "train.shapes.a.b.c"]
    beyond = Source.of("train/bad.py", "from ..lrm import field")
    assert [name for _, name in beyond.imports()] == ["lrm.field"]


@pytest.mark.parametrize(
    "text",
    [
        "x.cuda()",
        "model.cuda(1)",
        "y = x.to('cuda')",
        "d = 'cuda:0'",
        "if device.type == 'mps': pass",
        "import torch\nn = torch.cuda.device_count()",
        "import torch\nok = torch.backends.mps.is_available()",
    ],
)
def test_named_devices_are_found(text: str) -> None:
    assert len(named_devices(Source.of("lrm/bad.py", text))) == 1
    assert named_devices(Source.of("multiview/devices.py", text)) == []


def test_words_about_devices_are_left_alone() -> None:
    text = '"""Runs on cuda and mps."""\nmessage = "--device auto, cuda or mps"\ncuda_hint = 1'
    assert named_devices(Source.of("lrm/good.py", text)) == []


def test_wildcards_are_found() -> None:
    assert wildcards(Source.of("lrm/bad.py", "from .field import *")) == ["lrm/bad.py:1: from lrm.field import *"]


@pytest.mark.parametrize(
    "text",
    [
        "import cv2",
        "import torchvision.transforms as T",
        "from igl import copyleft",
        "import igl.copyleft.cgal",
        "def f():\n    import pymeshlab",
        "from nvdiffrast import torch",
        "__import__('torchmcubes')",
    ],
)
def test_banned_imports_are_found(text: str) -> None:
    assert len(banned_imports(Source.of("lrm/bad.py", text))) == 1


def test_a_name_that_only_begins_like_a_banned_one_is_left_alone() -> None:
    assert banned_imports(Source.of("lrm/good.py", "import igl\nimport cv2x\nfrom . import torchvision_like")) == []


def test_heavy_imports_at_the_top_are_found() -> None:
    text = (
        "import trimesh\nfrom scipy.ndimage import label\ntry:\n    import gradio as gr\nexcept ImportError:\n    pass"
    )
    assert len(work_at_import(Source.of("lrm/bad.py", text))) == 3
    inside = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import trimesh\ndef f():\n    import trimesh"
    assert work_at_import(Source.of("lrm/good.py", inside)) == []


def test_undeclared_imports_are_found() -> None:
    source = Source.of("lrm/bad.py", "import numpy, mcubes\nimport os\nfrom seaborn import lineplot")
    complaints = undeclared(source, {"numpy", "pymcubes"})
    assert complaints == ["lrm/bad.py:3: seaborn is in no list of pyproject.toml"]


# What a wheel carries.


def test_the_wheel_carries_every_package_under_a_name_of_its_own() -> None:
    carried = set(pyproject()["tool"]["setuptools"]["packages"])
    assert {name.split(".")[0] for name in carried} == {"trilift", "lrm", "multiview", "trilift_train", "trilift_demo"}
    there = {
        path.parent.relative_to(ROOT).as_posix() for room in ROOMS[:-1] for path in (ROOT / room).rglob("__init__.py")
    }
    renamed = {re.sub(r"^(train|demo)\b", r"trilift_\1", name).replace("/", ".") for name in there}
    assert renamed == carried


@pytest.mark.parametrize("room", ["train", "demo"])
def test_rooms_that_a_wheel_renames_import_themselves_relatively(room: str) -> None:
    absolute = [
        f"{source.path}:{node.lineno}"
        for source in real_sources(room)
        for node in ast.walk(source.tree)
        if (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == room)
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == room for alias in node.names))
    ]
    assert absolute == []


def test_one_version_everywhere() -> None:
    init = Source.of("trilift/__init__.py", (ROOT / "trilift" / "__init__.py").read_text("utf-8"))
    versions = [
        node.value.value
        for node in init.tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and "__version__" in ast.unparse(node) and _is_text(node.value)  # type: ignore[arg-type]
    ]
    assert versions == [pyproject()["project"]["version"]]


def test_requirements_pin_every_dependency() -> None:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if re.fullmatch(r"[\w.-]+==[\w.]+", line)}
    assert [line for line in lines if line and not line.startswith("#") and "==" not in line] == []
    assert declared_distributions(extras=False) - pinned == set()
