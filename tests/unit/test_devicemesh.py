"""Surfaces taken on the field's device: the CPU's mesh, by tensors that stay where they are.

The tensors run on the CPU here, for the numbers, and on a stand-in for a card (`tests.cards`) that refuses what a real
one would: meeting tensors of the CPU, turning into numpy without a copy.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrm import devicemesh, pieces
from lrm.devicemesh import DeviceEvaluator, device_scan, works_here
from lrm.field import FunctionField, OutputRule, PlanesDecoder, TriplaneField
from lrm.lattice import Evaluator, Lattice, scan
from lrm.mesh import ExtractionReport, Mesh, extract_mesh_with_report
from multiview.errors import FieldError
from tests.cards import CARD, Seen, decoder_on_card, strict_card, to_card

CPU = torch.device("cpu")
Distance = Callable[[Tensor], Tensor]


def ball(radius: float, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Distance:
    return lambda p: (p - p.new_tensor([x, y, z])).norm(dim=-1) - radius


def united(*parts: Distance) -> Distance:
    return lambda p: torch.stack([part(p) for part in parts]).amin(0)


def torus(p: Tensor) -> Tensor:
    return ((p[:, :2].norm(dim=-1) - 0.5).square() + p[:, 2].square()).sqrt() - 0.2


def hollow(p: Tensor) -> Tensor:
    """A ball with a hole in it, and a ball in that hole, which nobody can see."""
    return torch.maximum(ball(0.7)(p), -united(ball(0.5))(p)).minimum(ball(0.2)(p))


SHAPES: dict[str, Distance] = {
    "torus": torus,
    "three pieces, one of them a crumb": united(ball(0.4, -0.4), ball(0.2, 0.5, 0.1, 0.2), ball(0.03, 0.5, -0.6)),
    "hollow": hollow,
    "cut by the cube": united(ball(0.6, 0.7, 0.2, -0.1), ball(0.2, -0.7, -0.9)),
}


class Shape(FunctionField):
    """Density 10 at the surface of a shape given by its distance, 20 more per unit inward."""

    where = CPU

    @property
    def device(self) -> torch.device:
        return self.where


class ShapeOnCard(Shape):
    where = CARD


def shape(distance: Distance, kind: type[Shape] = Shape) -> Shape:
    return kind(lambda p: 10 - 20 * distance(p), lambda p: (p / 2 + 0.5).clamp(0, 1))


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Mesh, ExtractionReport]]]:
    """Extraction by tensors on the CPU."""

    def extract(*args: Any, **settings: Any) -> tuple[Mesh, ExtractionReport]:
        with monkeypatch.context() as m:
            m.setattr(devicemesh, "works_here", lambda device: True)
            return extract_mesh_with_report(*args, **settings)

    yield extract


def assert_same(one: Mesh, other: Mesh, atol: float = 1e-6) -> None:
    np.testing.assert_array_equal(one.faces, other.faces)
    np.testing.assert_allclose(one.vertices, other.vertices, atol=atol, rtol=0)
    np.testing.assert_allclose(one.colors, other.colors, atol=10 * atol, rtol=0)


def told(report: ExtractionReport) -> ExtractionReport:
    """All of a report but what differs by the way: evaluations and time."""
    return dataclasses.replace(report, evaluations=0, seconds=0.0)


@pytest.mark.parametrize("changes", [{}, {"fit_box": False}, {"refine_steps": 0}], ids=["as usual", "cube", "rough"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_mesh_is_the_cpus(name: str, changes: dict[str, Any], there: Any) -> None:
    kwargs: dict[str, Any] = {"mesh_resolution": 60, **changes}
    field = shape(SHAPES[name])
    expected, plain = extract_mesh_with_report(field, **kwargs)
    mesh, report = there(field, **kwargs)
    assert_same(mesh, expected)
    assert told(report) == told(plain) and report.way == "followed"
    assert report.evaluations < 2.5 * plain.evaluations


def test_long_coarse_steps_and_small_passes_change_nothing(monkeypatch: pytest.MonkeyPatch, there: Any) -> None:
    field = shape(united(ball(0.1, 0.4), ball(0.05, -0.6, 0.3)))
    expected, _ = extract_mesh_with_report(field, mesh_resolution=400)  # every eighth sample is looked at
    assert_same(there(field, mesh_resolution=400)[0], expected)
    coarse, _ = extract_mesh_with_report(field, mesh_resolution=70)
    monkeypatch.setattr(devicemesh, "_SAMPLES_PER_PASS", 3 * 5**3)
    monkeypatch.setattr(devicemesh, "_FACES_PER_PASS", 100)
    assert_same(there(field, mesh_resolution=70, chunk_size=501)[0], coarse)


def test_small_pieces_are_looked_for_when_all_are_wanted(there: Any) -> None:
    small = united(ball(0.5), ball(0.02, 0.731, 0.733, 0.734), ball(0.021, -0.73, 0.71, -0.72))
    kwargs: dict[str, Any] = {"mesh_resolution": 100, "fit_box": False}
    expected, plain = extract_mesh_with_report(shape(small), keep_pieces=0.0, **kwargs)
    mesh, report = there(shape(small), keep_pieces=0.0, **kwargs)
    assert_same(mesh, expected)
    assert report.cells == plain.cells > there(shape(small), keep_pieces=0.01, **kwargs)[1].cells


def test_neither_scipy_nor_pymcubes_is_needed(monkeypatch: pytest.MonkeyPatch, there: Any) -> None:
    for name in ("scipy", "scipy.sparse", "scipy.sparse.csgraph", "mcubes"):
        monkeypatch.setitem(sys.modules, name, None)
    two = shape(united(ball(0.3, -0.5), ball(0.3, 0.5)))
    assert there(two, mesh_resolution=30)[0].is_watertight
    with pytest.raises(ImportError):
        extract_mesh_with_report(two, mesh_resolution=30)  # the CPU's way asks scipy for pieces


def test_noise_is_marched_on_the_cpu_and_is_the_same(there: Any) -> None:
    waves = FunctionField(lambda p: 10 + torch.sin(30 * p).sum(-1), torch.sigmoid)
    kwargs: dict[str, Any] = {"mesh_resolution": 30, "threshold": 10.0}
    expected, plain = extract_mesh_with_report(waves, **kwargs)
    mesh, report = there(waves, **kwargs)
    assert report.way == plain.way == "dense"
    assert_same(mesh, expected)


@pytest.mark.parametrize(("size", "step"), [((9, 14, 7), 4), ((8, 8, 8), 1), ((30, 17, 33), 8)])
def test_a_scan_is_the_cpus(size: tuple[int, int, int], step: int) -> None:
    lattice = Lattice((-0.7, -0.9, -0.4), 0.11, size)
    raw = lambda p: 0.9 - p.norm(dim=-1)  # noqa: E731
    one, two = scan(lattice, step, Evaluator(raw, CPU, 999)), device_scan(lattice, step, DeviceEvaluator(raw, CPU, 70))
    np.testing.assert_array_equal(two.values.numpy(), one.values)
    assert two.share_crossed(0.0) == one.share_crossed(0.0) > 0
    assert sorted(two.inner.tolist()) == sorted(one.inner[np.isfinite(one.inner)].tolist())


@settings(max_examples=40)
@given(st.integers(0, 2**31 - 1), st.integers(1, 60), st.integers(3, 80))
def test_pieces_are_labelled_as_scipy_labels_them(seed: int, count: int, vertices: int) -> None:
    faces = torch.randint(vertices, (count, 3), generator=torch.Generator().manual_seed(seed))
    n, mine = devicemesh.label_pieces(faces, vertices)
    _, theirs = pieces.label_pieces(faces.numpy(), vertices)
    pairs = set(zip(mine.tolist(), theirs.tolist(), strict=True))  # one to one
    assert n == len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_a_long_chain_is_one_piece() -> None:
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(3))
    faces = torch.stack([order[:-2], order[1:-1], order[2:]], 1)
    assert devicemesh.label_pieces(faces, 5000)[0] == 1
    assert devicemesh.label_pieces(torch.cat([faces[:2000], faces[2010:]]), 5000)[0] == 2


def on_card(distance: Distance, **kwargs: Any) -> tuple[Mesh, ExtractionReport, Seen]:
    with strict_card() as seen:
        mesh, report = extract_mesh_with_report(shape(distance, ShapeOnCard), **kwargs)
    return mesh, report, seen


@pytest.mark.parametrize("name", SHAPES)
def test_on_a_card_nothing_falls_back_to_the_cpu(name: str) -> None:
    expected, plain = extract_mesh_with_report(shape(SHAPES[name]), mesh_resolution=40)
    mesh, report, _ = on_card(SHAPES[name], mesh_resolution=40)
    assert_same(mesh, expected)
    assert told(report) == told(plain)


def test_a_card_is_waited_for_as_often_for_a_large_mesh_as_for_a_small_one() -> None:
    few, many = (on_card(torus, mesh_resolution=n)[2].waits for n in (30, 120))
    assert 20 < len(many) < 100 and len(many) <= len(few) + 10


def test_a_triplane_fields_mesh_on_a_card_is_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrm.field.multiplies_bf16", lambda: False)
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.randn(3, 4, 3, 3), (16, 16), mode="bicubic")
    rule = OutputRule("occupancy", density_scale=50.0)
    field = TriplaneField(2 * smooth, PlanesDecoder(4, 32, 3, "silu"), 0.8, 25.0, rule)
    with torch.no_grad():
        points = (torch.rand(3000, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1) * 0.8
        level = float(field.density(points).quantile(0.9))
    expected, _ = extract_mesh_with_report(field, mesh_resolution=48, threshold=level)
    with strict_card():
        moved = dataclasses.replace(field, planes=to_card(field.planes), decoder=decoder_on_card(field.decoder))
        assert moved.device == CARD
        mesh, _ = extract_mesh_with_report(moved, mesh_resolution=48, threshold=level)
    # Planes are looked up by grid_sample there and by embedding_bag here: densities differ in their last digits.
    assert_same(mesh, expected, atol=1e-4)  # 0.003 of a cell


def test_the_stand_in_refuses_what_a_card_refuses() -> None:
    with strict_card() as seen:
        mine = torch.arange(3, device=CARD)
        assert mine.device == CARD and (mine + 1).device == CARD and mine.cpu().device == CPU
        with pytest.raises(TypeError, match="to numpy"):
            mine.numpy()
        with pytest.raises(RuntimeError, match="on the card and on the CPU"):
            mine + torch.arange(3)
        with pytest.raises(RuntimeError, match="on the card and on the CPU"):
            torch.arange(3)[mine]
        assert (mine[mine > 0] * torch.tensor(2)).tolist() == [2, 4]
    assert seen.waits == ["cpu", "__getitem__", "tolist"]


def test_what_is_not_finite_is_told_with_its_place() -> None:
    def density(p: Tensor) -> Tensor:
        return torch.where(p[:, 0] > 0.9, math.nan, 10.0)

    evaluate = DeviceEvaluator(density, CPU, 2)
    points = torch.tensor([[0.0, 0, 0], [0.95, 0.5, -0.5], [0.1, 0, 0], [1.0, 0, 0]])
    with pytest.raises(FieldError, match=r"at 2 of 4 points, first at \(0\.95, 0\.5, -0\.5\).*--dtype fp32"):
        evaluate(points)
    assert evaluate(points[::2]).tolist() == [10, 10] and evaluate.count == 6


def test_accelerators_with_long_numbers_take_surfaces_themselves() -> None:
    with strict_card():
        assert works_here(CARD)
    assert not works_here(CPU) and not works_here(torch.device("mps"))
