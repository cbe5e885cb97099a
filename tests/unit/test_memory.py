"""`trilift.memory`: what is planned, what is refused, and what becomes smaller when memory runs out."""

from __future__ import annotations

import pickle
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from multiview.errors import MeshError, SettingsError
from trilift import ImageTo3D, LiftSettings, memory, pipeline
from trilift.lanes import Lanes
from trilift.memory import CHUNKS, Crowd, Memory, dtype_within, left_for_generator, memory_of, network_bytes
from trilift.settings import TooLittleMemoryError

NOWHERE = torch.device("meta")  # not the CPU, and always there
TOO_MUCH = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")


@pytest.fixture(autouse=True)
def no_collecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Going through all objects of a long test run takes a second each time, and frees nothing of these."""
    monkeypatch.setattr(memory, "empty_caches", lambda: None)


@pytest.fixture
def plain_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 bytes a point, 100 a sample of 5000, 2 a square of the resolution, 1000 for libraries."""
    for name, value in (("POINT", 10), ("SAMPLE", 100), ("SURFACE", 2), ("LIBRARIES", 1000)):
        monkeypatch.setattr(memory, f"_{name}_BYTES", value)
    monkeypatch.setattr(memory, "_SAMPLES", 5000)


@pytest.mark.usefixtures("plain_numbers")
def test_a_plan_takes_as_many_points_as_fit() -> None:
    # Held 500 and libraries 1000; at 100 samples per axis 20,000 for the surface and 10 a point; samples 500,000.
    roomy = Memory(limit=1500 + 10 * CHUNKS[0] + 20_000, held=500)
    assert roomy.plan(100) == memory.LiftPlan(CHUNKS[0], 1500 + 2_621_440 + 20_000)
    assert Memory(limit=roomy.limit - 1, held=500).plan(100).chunk_size == CHUNKS[1]  # type: ignore[operator]
    # With 4096 points the samples of the comparison decide: 409,600 bytes.
    assert Memory(limit=411_100, held=500).plan(100) == memory.LiftPlan(4096, 411_100)
    # On an accelerator the surface is not there, but the field goes through all points at once.
    assert Memory(limit=1_638_900, device=NOWHERE, held=500).plan(4096) == memory.LiftPlan(16_384, 1_638_900)


@pytest.mark.usefixtures("plain_numbers")
def test_a_baked_texture_is_planned_for() -> None:
    assert LiftSettings().texels == 0 and LiftSettings(texture="baked", texture_size=512).texels == 512**2
    # 500 held, 1000 for libraries, 40,960 and 20,000 for the surface, and 100 for each of 20,000 texels.
    room = Memory(limit=2_100_000, held=500)
    assert room.plan(100, texels=20_000) == memory.LiftPlan(4096, 2_062_460)
    with pytest.raises(SettingsError, match=r"needs about 0\.00306 GB"):
        room.begun(100, 30_000)


@pytest.mark.usefixtures("plain_numbers")
def test_too_small_a_limit_says_the_least() -> None:
    with pytest.raises(SettingsError, match=r"0\.000411 GB: .*--resolution 100 needs about 0\.000411 GB on cpu, 5e-07"):
        Memory(limit=411_099, held=500).plan(100)
    # 2 * 1024^2 = 2,097,152 and 40,960 for points is too much; 524,288 at 512 is not.
    with pytest.raises(SettingsError, match=r"--resolution 1024 needs .*; --resolution 512 would fit\. Give it more"):
        Memory(limit=600_000, held=500).plan(1024)


def test_running_out_takes_fewer_points() -> None:
    asked: list[int] = []

    def work(chunk_size: int) -> str:
        asked.append(chunk_size)
        if chunk_size > 70_000:
            raise TOO_MUCH
        return "made"

    budget = Memory().begun(256)
    assert budget.by_points("taking the surface", work) == "made"
    assert asked == [262_144, 131_072, 65_536]
    assert len(budget.warnings) == 1 and "65536 points per pass in place of 262144" in budget.warnings[0]
    assert "Memory ran out in taking the surface (DefaultCPUAllocator" in budget.warnings[0]
    assert budget.by_points("another", lambda chunk_size: chunk_size) == 65_536  # what follows begins there


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("std::bad_alloc"), torch.OutOfMemoryError("CUDA out of memory"), TOO_MUCH],
    ids=["python", "c++", "accelerator", "torch"],
)
def test_every_way_of_running_out_is_known(error: Exception) -> None:
    def work(chunk_size: int) -> int:
        if chunk_size == CHUNKS[0]:
            raise error
        return chunk_size

    assert Memory().begun(16).by_points("it", work) == CHUNKS[0] // 2


def test_other_errors_go_through_and_no_try_is_endless() -> None:
    def broken(chunk_size: int) -> None:
        raise MeshError("nothing there")

    def greedy(chunk_size: int) -> None:
        raise MemoryError

    with pytest.raises(MeshError, match="nothing there"):
        Memory().by_points("it", broken)
    with pytest.raises(MemoryError, match=r"memory ran out in it, with 1024 points per pass, too .*--resolution"):
        Memory().by_points("it", greedy)
    with pytest.raises(MemoryError, match="a second try, too"):
        Memory().whole("the network", lambda: greedy(1))


def test_what_cannot_be_smaller_is_tried_once_more() -> None:
    tries = iter([MemoryError("first"), None])

    def work() -> str:
        if (error := next(tries)) is not None:
            raise error
        return "made"

    budget = Memory()
    assert budget.whole("the network", work) == "made" and "after caches were emptied" in budget.warnings[0]


def test_views_are_made_fewer_at_a_time() -> None:
    asked: list[int | None] = []

    def work(batch: int | None) -> int | None:
        asked.append(batch)
        if batch is None or batch > 2:
            raise MemoryError("no room")
        return batch

    budget = Memory(device=NOWHERE)
    assert budget.by_views("making views", work, None) == 2 and asked == [None, 8, 4, 2]
    assert budget.warnings == ["Memory ran out in making views (no room): done with 2 views per pass."]
    asked.clear()
    assert budget.by_views("making views", work, 3) == 2 and asked == [3, 2]
    with pytest.raises(MemoryError, match="the fewest views per pass"):  # on the CPU they go one by one anyway
        Memory().by_views("making views", work, None)


def test_the_number_format_is_the_one_that_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "own_bytes", lambda device: 200_000_000)
    cpu, weights = torch.device("cpu"), 1_600_000_000
    assert dtype_within("auto", cpu, weights, 1_200_000_000) == "auto"  # 200 MB, a copy of 800 and libraries
    assert dtype_within("auto", cpu, weights, 1_000_000_000) == "fp32"
    assert dtype_within("bf16", cpu, weights, 1_000_000_000) == "bf16"
    assert dtype_within("auto", NOWHERE, weights, 1_000_000_000) == dtype_within("auto", cpu, weights, None) == "auto"


def test_on_an_accelerator_the_generator_is_released_where_both_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [900_000_000]
    monkeypatch.setattr(memory, "own_bytes", lambda device: held[0])

    def offload() -> None:
        held[0] = 100_000_000

    model: Any = SimpleNamespace(name="big", network=torch.nn.Linear(1000, 1000, bias=False))
    generator: Any = SimpleNamespace(model=SimpleNamespace(enable_model_cpu_offload=offload))
    assert memory_of(950_000_000, model, generator, NOWHERE).held == 900_000_000  # 5.3 MB for 4096 points and 40
    assert memory_of(930_000_000, model, generator, NOWHERE).held == 100_000_000
    assert left_for_generator(10_000_000, model, NOWHERE) == 6_000_000
    assert left_for_generator(None, model, NOWHERE) is None
    with pytest.raises(SettingsError, match=r"the weights of big alone take 0\.004 GB"):
        left_for_generator(4_000_000, model, NOWHERE)


def test_what_published_networks_keep_is_as_counted() -> None:
    from lrm.openlrm import OpenLRMConfig, OpenLRMNetwork
    from tests.unit.test_networks import counted

    config = OpenLRMConfig()  # full size, of tensors without memory

    def run(network: Any) -> None:
        network(torch.zeros(1, 3, config.image_size, config.image_size), torch.zeros(1, 16))

    found = 4 * counted(lambda: OpenLRMNetwork(config), run)
    made: Any = SimpleNamespace(architecture="openlrm", network=SimpleNamespace(config=config))
    assert found <= network_bytes(made) < 1.05 * found
    assert network_bytes(SimpleNamespace(architecture="tiny")) == 40_000_000


def test_a_lift_that_ran_out_comes_out_the_same_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = ImageTo3D.from_pretrained("tiny", dtype="fp32", on_note=lambda text: None)
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[16:48, 20:44] = (200, 80, 40, 255)
    photo = Image.fromarray(picture)
    usual = pipe(photo, resolution=24)
    real = pipeline.extract_mesh_with_report

    def tight(field: Any, **settings: Any) -> Any:
        if settings["chunk_size"] > 20_000:
            raise MemoryError("no room")
        return real(field, **settings)

    monkeypatch.setattr(pipeline, "extract_mesh_with_report", tight)
    made = pipe(photo, resolution=24)
    assert [w for w in made.record["warnings"] if w not in usual.record["warnings"]] == [
        "Memory ran out in taking the surface (no room): done with 16384 points per pass in place of 262144."
    ]
    np.testing.assert_array_equal(made.mesh.faces, usual.mesh.faces)
    np.testing.assert_allclose(made.mesh.vertices, usual.mesh.vertices, atol=1e-5)
    assert not pipe.memory.warnings  # they belong to the one lift


def test_too_small_a_limit_is_refused_before_any_photo_is_looked_at() -> None:
    pipe = ImageTo3D.from_pretrained("tiny", dtype="fp32", on_note=lambda text: None)
    pipe.memory = Memory(limit=1000, held=500)
    with pytest.raises(SettingsError, match="--resolution 24 needs about"):
        pipe.check(LiftSettings(resolution=24))


@pytest.mark.usefixtures("plain_numbers")
def test_a_folder_has_as_many_photos_on_their_way_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 held, 1000 for libraries, 300 for the network, 20,000 a surface, 7 for each photo but the first."""
    monkeypatch.setattr(memory, "_PHOTO_BYTES", 7)
    usual = Crowd(5, 1, 2)
    assert usual.smaller() == [Crowd(5, 1, 2), Crowd(5, 1, 1), Crowd(3, 1, 1), Crowd(1, 1, 1)]

    def plan(limit: int) -> memory.LiftPlan:
        return Memory(limit=limit, held=500, network=300).plan(100, usual.smaller())

    # With 4096 points 40,960 for them in a surface, 409,600 for the comparison's samples.
    two_meshed = 1500 + 300 + 2 * (40_960 + 20_000) + 409_600 + 4 * 7
    assert plan(two_meshed) == memory.LiftPlan(4096, two_meshed, Crowd(5, 1, 2))
    one_meshed = two_meshed - 60_960
    assert plan(two_meshed - 1) == memory.LiftPlan(4096, one_meshed, Crowd(5, 1, 1))
    assert plan(one_meshed - 1) == memory.LiftPlan(4096, one_meshed - 2 * 7, Crowd(3, 1, 1))
    assert plan(one_meshed - 15).crowd == Crowd(1, 1, 1)  # alone it takes what its largest stage does
    assert plan(411_100) == memory.LiftPlan(4096, 411_100, Crowd(1, 1, 1))
    with pytest.raises(TooLittleMemoryError) as raised:
        plan(411_099)
    assert (raised.value.limit_bytes, raised.value.needs_bytes) == (411_099, 411_100)
    again = pickle.loads(pickle.dumps(raised.value))  # workers send it
    assert str(again) == str(raised.value) and (again.limit_bytes, again.needs_bytes) == (411_099, 411_100)


@pytest.mark.usefixtures("plain_numbers")
def test_on_an_accelerator_batches_are_planned() -> None:
    tries = Crowd(12, 8, 2).smaller()
    assert [c.batch for c in tries] == [8, 4, 2, 1, 1, 1, 1] and [c.photos for c in tries] == [12, 8, 6, 5, 5, 3, 1]
    # 500 held, 1,000,000 a picture in the network, 100 a point: 409,600 with 4096.
    room = Memory(limit=2_000_500 + 819_200, device=NOWHERE, held=500, network=1_000_000)
    assert room.plan(64, tries) == memory.LiftPlan(4096, 2_819_700, Crowd(6, 2, 2))


def test_folder_runs_do_as_planned() -> None:
    for limit, photos, chunk_size in ((None, 5, CHUNKS[0]), (2 * 10**9, 5, CHUNKS[0]), (450_000_000, 1, CHUNKS[0])):
        pipe: Any = SimpleNamespace(memory=Memory(limit=limit, held=200_000_000, network=40_000_000), device="cpu")
        lanes = Lanes(pipe, settings=LiftSettings(resolution=64))
        assert lanes.size == photos and (lanes.plan is None) == (limit is None)
        assert lanes.plan is None or lanes.plan.chunk_size == chunk_size
        lanes.close()
    assert lanes.plan is not None
    assert lanes.plan.told(450_000_000).startswith("--max-memory 0.45 GB: one photo at a time, 262144 points per pass")


def test_lifts_of_a_folder_plan_for_all_that_are_on_their_way() -> None:
    alone = Memory(limit=700_000_000, held=200_000_000, network=40_000_000)
    assert alone.begun(64).chunk_size == CHUNKS[0]
    together = replace(alone, crowd=Crowd(5, 1, 2)).begun(64)
    assert together.chunk_size < CHUNKS[0]
    assert together.as_record() == {
        "limit_bytes": 700_000_000, "points_per_pass": together.chunk_size, "photos_at_once": 5,
    }  # fmt: skip
