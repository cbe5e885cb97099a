"""Lifting several photos at once: stages in order, batches through the network, recipes and worker processes."""

from __future__ import annotations

import errno
import json
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lrm.tiny import TinyConfig, TinyLRM
from multiview.errors import FieldError, SettingsError, WeightsError
from tests.fakes import FakeModel, draw_photo
from trilift import workers
from trilift.batch import LiftResult
from trilift.batching import BatchingModel, BatchingViewsModel, batching
from trilift.lanes import Lanes, Line, Task
from trilift.recipe import PipeRecipe, is_out_of_memory, without_networks
from trilift.settings import LiftSettings, TooLittleMemoryError
from trilift.sources import PhotoItem

# Lanes


def tasks(count: int, folder: Path) -> list[Task]:
    items = [PhotoItem(f"{n}.png", str(n), path=str(folder / f"{n}.png")) for n in range(count)]
    return [Task(n, item, folder / item.place, LiftSettings(), folder / "s") for n, item in enumerate(items)]


def test_nobody_overtakes_and_each_station_has_its_room():
    line = Line((1, 2))
    for number in range(4):
        line.join(number)
    passed: list[tuple[int, int]] = []

    def go(number: int) -> None:
        for station in (0, 1):
            line.enter(number, station)
            passed.append((number, station))
            time.sleep(0.005 * (4 - number))  # the later ones are faster
        line.leave(number)

    threads = [threading.Thread(target=go, args=(number,)) for number in (3, 1, 2, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [n for n, station in passed if station == 0] == [0, 1, 2, 3]
    begun_last = [n for n, station in passed if station == 1]
    assert set(begun_last[:2]) == {0, 1} and set(begun_last[2:]) == {2, 3}


def test_stages_overlap_and_results_come_in_order(tmp_path):
    """Four stages of 30 ms: photos in a row would have one stage going at any time."""
    going: dict[str, int] = {}
    most_at_once, most_of_one = 0, dict.fromkeys(("load", "network", "mesh", "write"), 0)
    guard = threading.Lock()

    def lift(pipe, item, folder, settings, scratch, *, halvings, on_stage, make_room):
        nonlocal most_at_once
        for stage in ("load", "network", "mesh", "write"):
            on_stage(stage)
            with guard:
                going[stage] = going.get(stage, 0) + 1
                most_at_once = max(most_at_once, sum(going.values()))
                most_of_one[stage] = max(most_of_one[stage], going[stage])
            time.sleep(0.03)
            with guard:
                going[stage] -= 1
        return LiftResult(item.source, "done", 9.0)

    lanes = Lanes(SimpleNamespace(), lift=lift)  # type: ignore[arg-type]
    for task in tasks(8, tmp_path):
        lanes.submit(task)
    outcomes = [lanes.take(10) for _ in range(8)]
    lanes.close()
    assert [outcome.task.number for outcome in outcomes if outcome] == list(range(8))
    assert most_of_one.pop("mesh") in (1, 2) and set(most_of_one.values()) == {1} and most_at_once >= 3
    assert all(o is not None and o.result is not None and 0.1 < o.result.seconds < 9 for o in outcomes)
    assert lanes.take(0) is None


def test_an_error_that_is_none_of_the_photos_comes_out(tmp_path):
    def lift(pipe, item, *rest, **named):
        if item.source == "1.png":
            raise KeyboardInterrupt
        return LiftResult(item.source, "done", 0.0)

    lanes = Lanes(SimpleNamespace(), lift=lift)  # type: ignore[arg-type]
    for task in tasks(3, tmp_path):
        lanes.submit(task)
    outcomes = {o.task.number: o for o in (lanes.take(10) for _ in range(3)) if o is not None}
    lanes.close()
    assert isinstance(outcomes[1].error, KeyboardInterrupt) and outcomes[1].result is None
    assert outcomes[2].result is not None and outcomes[2].error is None


def test_memory_is_shared_out_among_workers_and_there_are_fewer_where_it_does_not_suffice(monkeypatch):
    """A worker needs 300 bytes, and the process that hands out the tasks 10: two of them fit into 700, not three."""
    monkeypatch.setattr(workers, "_OWN_BYTES", 10)
    begun: list[tuple[int, int]] = []

    class Process:
        def __init__(self, loader, settings, slot, threads, count=1):
            self.loader, self.slot, self.count = loader, slot, count

        def begin(self):
            asked: list[int] = []
            monkeypatch.setattr(PipeRecipe, "__call__", lambda recipe: asked.append(recipe.max_memory))
            workers._load(self.loader, self.slot, 1, self.count)
            begun.append((self.count, asked[0]))
            return TooLittleMemoryError("too little", asked[0], 300) if asked[0] < 300 else None

        def kill(self):
            pass

        def finish(self):
            pass

    monkeypatch.setattr(workers, "_Worker", Process)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    for asked, fit in ((3, 2), (8, 2), (2, 2), (1, 1)):
        begun.clear()
        crew = workers.Crew(PipeRecipe(device="cpu", max_memory=700), LiftSettings(), asked)
        crew.close()
        assert crew.size == fit and (not begun or begun[-1] == (2, 345))
    crew = workers.Crew(PipeRecipe(device="cpu"), LiftSettings(), 4)
    crew.close()
    assert crew.size == 4  # without a limit none is asked
    assert workers._fewer(5, SettingsError("a generator does not fit")) == 2


def test_memory_that_runs_out_among_others_suffices_alone(tmp_path):
    """Photo 2 needs all of the memory: the others go on to their end, none begins, and it is lifted as it was asked."""
    under_way: set[str] = set()
    beside: dict[str, list[int]] = {}
    guard = threading.Lock()

    def lift(pipe, item, folder, settings, scratch, *, halvings, on_stage, make_room):
        with guard:
            under_way.add(item.source)
        for stage in ("load", "network", "mesh"):
            on_stage(stage)
            time.sleep(0.01)
        if item.source == "2.png":
            make_room()
            with guard:
                beside[item.source] = [len(under_way) - 1]
            on_stage("load")
            time.sleep(0.05)
            with guard:
                beside[item.source].append(len(under_way) - 1)
        on_stage("write")
        with guard:
            under_way.discard(item.source)
        return LiftResult(item.source, "done", 0.0)

    lanes = Lanes(SimpleNamespace(), lift=lift)  # type: ignore[arg-type]
    for task in tasks(8, tmp_path):
        lanes.submit(task)
    outcomes = [lanes.take(10) for _ in range(8)]
    lanes.close()
    assert beside == {"2.png": [0, 0]}
    assert sorted(o.task.number for o in outcomes if o is not None and o.result is not None) == list(range(8))


def test_two_that_ran_out_take_turns_and_fewer_are_under_way_afterwards():
    line, order = Line((1, 1, 2, 1), most=4), []
    for number in range(4):
        line.join(number)
    for number, station in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)):
        assert line.enter(number, station) < 1

    def ran_out(number: int) -> None:
        assert line.be_alone(number)
        order.append(number)
        time.sleep(0.02)
        order.append(number)
        line.leave(number)

    threads = [threading.Thread(target=ran_out, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    while set(line._stations) != {2, 3}:  # both have asked
        time.sleep(0.001)
    assert order == []  # number 2 is under way
    line.enter(2, 1)
    line.leave(2)
    for thread in threads:
        thread.join()
    assert order in ([0, 0, 1, 1], [1, 1, 0, 0])
    line.join(4)
    line.enter(3, 0)
    line.enter(3, 1)
    begun: list[float] = []
    waiter = threading.Thread(target=lambda: begun.append(line.enter(4, 0)))
    waiter.start()
    time.sleep(0.03)
    assert not begun  # three were under way, then one: there is room for one
    line.leave(3)
    waiter.join(5)
    assert len(begun) == 1


# Batches


class SlowModel(FakeModel):
    """Lets pictures gather while it works; takes no more than ``most`` in one pass, and none that is black."""

    def __init__(self, most: int = 99) -> None:
        super().__init__()
        self.most = most

    def reconstruct(self, images, **options):
        time.sleep(0.05)
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        if (images.sum((1, 2, 3)) == 0).any():
            raise FieldError("numbers that are not finite")
        return super().reconstruct(images, **options)


def ask(model: BatchingModel, pictures: list[torch.Tensor], **options: float) -> list[object]:
    """What ``model`` answers to as many threads as there are pictures."""
    answers: list[object] = [None] * len(pictures)

    def go(number: int) -> None:
        try:
            answers[number] = model.reconstruct(pictures[number], **options)[0]  # type: ignore[arg-type]
        except Exception as error:
            answers[number] = error

    threads = [threading.Thread(target=go, args=(number,)) for number in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def pictures(count: int) -> list[torch.Tensor]:
    return [torch.full((1, 4, 8, 8), (n + 1) / count) for n in range(count)]


def test_pictures_that_wait_go_together_and_each_gets_its_own_answer():
    model = batching(SlowModel(), 4)
    answers = ask(model, pictures(9))
    assert sum(model.passes) == 9 and max(model.passes) == 4 and len(model.passes) <= 5
    for number, answer in enumerate(answers):
        color = answer.field.color(torch.zeros(1, 3))[0, 0]  # type: ignore[attr-defined]
        assert float(color) == pytest.approx((number + 1) / 9, abs=1e-6)
    assert model.lifts_photos and model.foreground_ratio == 0.85 and model.estimated_elevation_deg == 20.0


def test_a_batch_that_does_not_fit_into_memory_is_halved_for_good():
    model = batching(SlowModel(most=2), 8)
    answers = ask(model, pictures(8))
    assert not any(isinstance(answer, Exception) for answer in answers)
    assert model.limit in (1, 2) and max(model.passes[-2:]) <= 2
    alone = ask(batching(SlowModel(most=0), 8), pictures(1))
    assert isinstance(alone[0], torch.OutOfMemoryError)


def test_one_bad_picture_does_not_spoil_its_batch():
    model = batching(SlowModel(), 4)
    given = pictures(5)
    given[3] = torch.zeros(1, 4, 8, 8)
    answers = ask(model, given)
    assert [isinstance(answer, FieldError) for answer in answers] == [False, False, False, True, False]


def test_only_equal_questions_go_together():
    inner = SlowModel()
    model = batching(inner, 8)
    threads = [
        threading.Thread(target=ask, args=(model, pictures(2)), kwargs={"fov_deg": float(fov)}) for fov in (30, 40, 30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {call[2] for call in inner.calls} == {30.0, 40.0} and sum(len(call[0]) for call in inner.calls) == 6


def test_batches_of_the_real_network_equal_single_pictures():
    config = TinyConfig(
        image_size=32, stem=(8, 8, 8, 16), width=16, heads=2, layers=1, side_channels=(8, 8), front_channels=(8, 8, 8),
        plane_channels=8, decoder_width=8, decoder_layers=1,
    )  # fmt: skip
    network = TinyLRM.random(config, seed=1)
    size = network.image_size
    given = list(torch.rand(3, 1, 4, size, size, generator=torch.Generator().manual_seed(0)))
    for picture in given:
        picture[:, 3] = 0
        picture[:, 3, 4:-4, 6:-6] = 1
    model = batching(network, 3)
    assert isinstance(model, BatchingViewsModel)
    together = model._inner.reconstruct(torch.cat(given))
    for one, other, picture in zip(together, ask(model, given), given, strict=True):
        single = network.reconstruct(picture)[0]
        planes = single.field.planes
        for made in (one, other):
            # Sums of another order, through an untrained network: 2e-5 measured; other pictures are 0.1 apart.
            assert float((made.field.planes - planes).norm() / planes.norm()) < 2e-4
            assert made.elevation_deg == pytest.approx(single.elevation_deg, abs=1e-3)


# Recipes


def test_words_for_memory():
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    words = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    assert is_out_of_memory(RuntimeError(words)) and not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"))
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not is_out_of_memory(OSError(errno.ENOENT, "No such file"))


def test_a_finished_run_is_known_without_loading_the_network(tmp_path, monkeypatch):
    from trilift.pipeline import ImageTo3D
    from trilift.runner import lift_folder

    photo = draw_photo(tmp_path / "in" / "a.png")
    settings = LiftSettings(resolution=32)
    recipe = PipeRecipe(device="cpu")
    (first,) = lift_folder(recipe, tmp_path / "in", tmp_path / "out", settings)
    assert first.status == "done" and first.checks["silhouette_iou"] > 0
    plain = ImageTo3D.from_pretrained
    loads = []
    monkeypatch.setattr(
        ImageTo3D, "from_pretrained", classmethod(lambda cls, *a, **k: loads.append(1) or plain(*a, **k))
    )
    (again,) = lift_folder(recipe, tmp_path / "in", tmp_path / "out", settings)
    assert (again.status, again.fingerprint) == ("skipped", first.fingerprint) and loads == []
    draw_photo(photo, (1, 2, 3))
    (changed,) = lift_folder(recipe, tmp_path / "in", tmp_path / "out", settings)
    assert changed.status == "done" and loads == [1]


def test_what_has_no_network_says_the_same_as_what_has(tmp_path):
    recipe = PipeRecipe(device="cpu")
    pipe = recipe()
    assert pipe.recipe == recipe
    asked = ("photo", "mask", LiftSettings(seed=3))
    record = {"dtype": pipe.dtype, "device": "cpu: 2 threads", "model": vars(pipe.weights)}
    unloaded = recipe.unloaded(record)
    assert unloaded is not None
    assert unloaded.fingerprint(*asked) == pipe.fingerprint(*asked) == without_networks(pipe).fingerprint(*asked)
    for change in ({"dtype": "float16"}, {"model": {**vars(pipe.weights), "sha256": "0"}}, {"device": "cuda: X"}):
        other = PipeRecipe(device="cpu", dtype="bf16") if "dtype" in change else recipe
        assert other.unloaded({**record, **change}) is None, change
    assert recipe.unloaded({}) is None and PipeRecipe(views="tiny-views").unloaded(record) is None


def test_a_finished_run_with_generated_views_is_known_without_loading_any_network(tmp_path, monkeypatch):
    from trilift.pipeline import ImageTo3D
    from trilift.runner import lift_folder
    from trilift.views import PhotoToViews

    draw_photo(tmp_path / "in" / "a.png")
    settings = LiftSettings(resolution=32, view_steps=1)
    recipe = PipeRecipe(views="tiny-views", device="cpu")
    (first,) = lift_folder(recipe, tmp_path / "in", tmp_path / "out", settings)
    assert first.status == "done"
    loads: list[str] = []
    for kind in (ImageTo3D, PhotoToViews):
        plain = kind.from_pretrained.__func__  # type: ignore[attr-defined]
        named = classmethod(lambda cls, *a, plain=plain, **k: loads.append(cls.__name__) or plain(cls, *a, **k))
        monkeypatch.setattr(kind, "from_pretrained", named)
    (again,) = lift_folder(recipe, tmp_path / "in", tmp_path / "out", settings)
    assert (again.status, again.fingerprint) == ("skipped", first.fingerprint) and loads == []
    # Another generator, another number format, or a record without views: only loading tells.
    record = json.loads((tmp_path / "out" / "a" / "asset.json").read_text())
    assert recipe.unloaded(record) is not None
    assert PipeRecipe(views="tiny-views-mean", device="cpu").unloaded(record) is None
    assert recipe.unloaded({**record, "views": {**record["views"], "dtype": "float16"}}) is not None
    assert replace(recipe, dtype="fp32").unloaded({**record, "views": {**record["views"], "dtype": "float16"}}) is None
    assert recipe.unloaded({key: value for key, value in record.items() if key != "views"}) is None


def no_such_weights() -> None:
    """A loader that fails as a missing file of weights does."""
    raise WeightsError("weights.safetensors: not found.")


class PickyPipe:
    """A pipeline that cannot do what settings ask."""

    def check(self, settings: LiftSettings) -> None:
        raise SettingsError(f"not with seed {settings.seed}.")


def test_workers_that_cannot_start_end_the_run_and_blame_no_photo(tmp_path):
    from trilift.runner import RunOptions, lift_folder

    for number in range(3):
        draw_photo(tmp_path / "in" / f"{number}.png", size=32)
    run = partial(lift_folder, no_such_weights, tmp_path / "in", tmp_path / "out")
    with pytest.raises(WeightsError, match=r"weights\.safetensors: not found"):
        list(run(LiftSettings(), RunOptions(workers=1)))
    run = partial(lift_folder, PickyPipe, tmp_path / "in", tmp_path / "out")
    with pytest.raises(SettingsError, match="not with seed 5"):
        list(run(LiftSettings(seed=5), RunOptions(workers=1)))
    assert not (tmp_path / "out" / "results.jsonl").exists()
