"""`trilift.turns`: a generator and a model that do not fit together are in memory one after the other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from multiview.errors import SettingsError
from tests.fakes import draw_photo
from tests.published import published_folder
from tests.small_generators import make_small
from trilift import Asset, ImageTo3D, turns
from trilift.turns import load_beside


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo, and small copies of Zero123++ and InstantMesh."""
    folder = tmp_path_factory.mktemp("turns")
    draw_photo(folder / "chair.png")
    make_small("zero123plus", folder / "zero123plus", seed=2)
    published_folder(folder / "instantmesh", "instantmesh")
    return folder


def loaded(base: Path, max_memory: str | None) -> ImageTo3D:
    return ImageTo3D.from_pretrained(
        base / "instantmesh", views=base / "zero123plus", device="cpu", dtype="fp32", max_memory=max_memory,
        on_note=lambda text: None,
    )  # fmt: skip


def lifted(pipe: ImageTo3D, base: Path) -> Asset:
    return pipe(base / "chair.png", resolution=24, threshold="median", view_steps=1, elevation=10.0)


def in_memory(pipe: ImageTo3D) -> tuple[bool, bool]:
    """Whether the generator's and the model's networks are there."""
    assert pipe.generator is not None
    model: Any = pipe.model
    parts: Any = pipe.generator.model
    return isinstance(parts.unet, nn.Module), isinstance(model.network, nn.Module)


def test_one_at_a_time_gives_what_both_together_give(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = loaded(base, "8GB")
    assert together.turns is None and in_memory(together) == (True, True)
    # As if the usual lift were too large for both of them.
    monkeypatch.setattr(turns, "_USUAL_RESOLUTION", 3000)
    pipe = loaded(base, "8GB")
    assert pipe.turns is not None and in_memory(pipe) == (True, False)
    seen: list[tuple[str, tuple[bool, bool]]] = []
    for owner, name in ((pipe.generator, "generate"), (pipe, "_reconstruct")):
        real = getattr(owner, name)

        def told(*given: Any, name: str = name, real: Any = real, **options: Any) -> Any:
            seen.append((name, in_memory(pipe)))
            return real(*given, **options)

        monkeypatch.setattr(owner, name, told)
    expected, *found = (lifted(each, base) for each in (together, pipe, pipe))
    assert seen == [("generate", (True, False)), ("_reconstruct", (False, True))] * 2
    for asset in found:
        np.testing.assert_array_equal(asset.mesh.vertices, expected.mesh.vertices)
        assert torch.equal(asset.views.images, expected.views.images)  # type: ignore[union-attr]
        assert asset.record["memory"]["generator_in_turn"] and not expected.record["memory"]["generator_in_turn"]
    # Of a model that rests, the fields that it made keep what they need.
    pipe.turns.for_views()
    assert in_memory(pipe) == (True, False)
    points = torch.zeros(1, 3)
    assert torch.equal(found[0].field.density(points), expected.field.density(points))


def test_what_both_and_each_alone_take_decides(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries take 1 GB, the model 2 and the generator as much as its small copy says, about nothing."""
    pipe = loaded(base, None)
    assert pipe.turns is None and pipe.memory.limit is None
    generator: Any = pipe.generator
    model: Any = pipe.model
    own = iter([3 * 10**9, 10**9, 10**9] * 3)
    monkeypatch.setattr(turns, "own_bytes", lambda device: next(own))
    asked: list[int] = []

    def load(*, max_memory: int, on_note: Any = None) -> Any:
        asked.append(max_memory)
        return generator

    def begin(limit: int) -> Any:
        return load_beside(model, lambda: pytest.fail("not yet"), load, limit, torch.device("cpu"))

    # 3 GB and 0.09 for libraries, 0.46 for a surface of 512 samples and 262144 points.
    made, in_turn, held = begin(3_500_000_000)
    assert in_turn is not None and held == 3_000_000_000 and asked == [2_500_000_000]
    assert made.max_memory == 3_500_000_000 and isinstance(model.network, SimpleNamespace)
    monkeypatch.setattr(turns, "wake", lambda *_: None)
    assert begin(3_600_000_000)[1:] == (None, None)
    monkeypatch.setattr(turns, "own_bytes", lambda device: 10**9)
    with pytest.raises(SettingsError, match=r"Of the 0\.9 GB of --max-memory 1 are taken before any network is loaded"):
        begin(900_000_000)


def test_a_generator_that_does_not_fit_alone_says_what_libraries_take(base: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"needs about .* Of the 1e-05 GB|Of the 1e-05 GB of --max-memory .* are taken"
    ):
        loaded(base, "10KB")
