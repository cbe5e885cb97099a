"""Training the published families through the real command, and what must hold of every run: guards, stop and go."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from lrm.triposr import TripoSR
from multiview.camerafile import write_views
from multiview.cameras import orbit
from multiview.errors import OutputError, SettingsError
from tests.posedfolders import posed_folder, solid_views
from tests.processes import finished, in_child, in_two_processes
from tests.published import MODELS, SMALL
from train import trainer as base
from train.config import read_config
from train.finetune import FinetuneConfig, FinetuneTrainer
from train.guards import GuardConfig
from train.lora import merge_folder
from train.lrm import main

RECIPES = Path(__file__).parents[2] / "train" / "recipes"


def as_lists(values: Any) -> Any:
    """A config as YAML can say it."""
    if isinstance(values, dict):
        return {key: as_lists(value) for key, value in values.items()}
    return list(values) if isinstance(values, tuple) else values


def sizes(family: str) -> dict[str, Any]:
    """A small network whose planes are fine enough for a solid."""
    finer = {"plane_size": 8, "plane_channels": 8, "decoder_width": 32, "decoder_layers": 2, "image_size": 42}
    if family != "openlrm":
        finer["image_size"] = 48
    return as_lists({**asdict(SMALL[family]), **finer})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two solids from eight sides."""
    return posed_folder(tmp_path_factory.mktemp("data"), (0, 1))


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small TripoSR with random weights, as a folder."""
    torch.manual_seed(5)
    config = SMALL["triposr"]
    folder = tmp_path_factory.mktemp("base") / "base"
    TripoSR(TripoSR.network_type(config), "base").save(folder, {"licence": "MIT", "commercial": "yes"})
    return folder


def recipe(folder: Path, family: str, data: Path, **changes: Any) -> Path:
    """A recipe for seconds."""
    values: dict[str, Any] = {
        "family": family, "data": [str(data)], "steps": 4, "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 2,
        "precision": "no", "log_every": 1, "val_every": 100, "save_every": 2, "samples_per_ray": 8,
        "sample": {"input_views": [2, 3], "patch_size": 12, "target_size": 24, "target_views": 1,
                   "counts": {"uniform": 24, "near": 24, "surface": 16}},
        "guards": {"preflight_steps": 0, "probe_every": 0},
    }  # fmt: skip
    if "init" not in changes:
        values["network"] = sizes(family)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{family}.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path


def train(config: Path, out: Path, *words: str) -> int:
    return main(["--config", str(config), "-o", str(out), *words])


def log_of(run: Path, key: str = "loss") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if key in row]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


# Every family learns, and inference loads what came out.


@pytest.mark.parametrize("family", ["triposr", "openlrm", "instantmesh"])
def test_each_family_learns_one_object_by_heart(family: str, tmp_path: Path) -> None:
    # A family that lifts one photo answers in that photo's frame: two pictures, two answers.
    cameras = orbit([0.0, 120.0, 240.0] if family == "instantmesh" else [0.0, 120.0], 25.0, 2.2, 35.0)
    write_views(tmp_path / "data" / "box", solid_views(0, cameras))
    config = recipe(
        tmp_path, family, tmp_path / "data", val=str(tmp_path / "data"), steps=100, learning_rate=0.01,
        optimizer="muon", ema_decay=0.9, log_every=10, val_every=100, save_every=100, samples_per_ray=24,
        sample={"input_views": [2, 3], "patch_size": 20, "target_size": 36, "target_views": 2,
                "counts": {"uniform": 8, "near": 8, "surface": 8}},
    )  # fmt: skip
    assert train(config, tmp_path / "run") == 0
    rows = log_of(tmp_path / "run")
    assert rows[-1]["loss"] < 0.4 * rows[0]["loss"]
    assert log_of(tmp_path / "run", "val_silhouette_iou")[-1]["val_silhouette_iou"] > 0.9
    assert (tmp_path / "run" / "previews" / "000100.png").is_file()
    from trilift import ImageTo3D

    assert type(ImageTo3D.from_pretrained(tmp_path / "run" / "model", device="cpu").model) is MODELS[family]


# What is trained, and what stays.


def test_lora_trains_only_lora_and_the_adapter_merges_to_the_saved_model(
    base_model: Path, data: Path, tmp_path: Path
) -> None:
    config = recipe(tmp_path, "triposr", data, init=str(base_model), train="lora", lora={"rank": 2}, steps=3)
    assert train(config, tmp_path / "run", "learning_rate=0.05") == 0
    before, after = load_file(base_model / "model.safetensors"), weights(tmp_path / "run")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    adapted = {n for n in before if n.endswith(tuple(f".{part}.weight" for part in ("query", "key", "value", "out")))}
    assert changed == adapted
    assert merge_folder(tmp_path / "run" / "adapter", tmp_path / "merged") == str(base_model)
    assert farthest(after, load_file(tmp_path / "merged" / "model.safetensors")) < 1e-6
    said = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert (said["licence"], said["commercial"], said["base"]["name"]) == ("MIT", "yes", "base")
    # A checkpoint holds what is trained, not the base.
    size = (tmp_path / "run" / "checkpoint.pt").stat().st_size
    assert size < (base_model / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("words", "trained"),
    [
        pytest.param({"train": "decoder"}, ("decoder",), id="decoder"),
        pytest.param(
            {"freeze": ["vit", "blocks", "tokens"]}, ("decoder", "upsampler", "enter", "leave", "norm"), id="freeze"
        ),
    ],
)
def test_frozen_parts_are_bit_identical_and_named(
    words: dict[str, Any], trained: tuple[str, ...], base_model: Path, data: Path, tmp_path: Path
) -> None:
    config = recipe(tmp_path, "triposr", data, init=str(base_model), steps=3, **words)
    assert train(config, tmp_path / "run") == 0
    before, after = load_file(base_model / "model.safetensors"), weights(tmp_path / "run")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(trained)
    frozen = json.loads((tmp_path / "run" / "config.json").read_text())["frozen"]
    assert "vit" in frozen
    assert not set(frozen) & set(trained)


def test_pieces_recomputation_and_worker_processes_change_nothing(data: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, "instantmesh", data, steps=2, batch_size=4)
    for name, words in {
        "plain": [], "pieces": ["accumulate=4"], "again": ["gradient_checkpointing=true"], "workers": ["workers=1"],
    }.items():  # fmt: skip
        assert train(config, tmp_path / name, *words) == 0
    for name in ("pieces", "again", "workers"):
        assert farthest(weights(tmp_path / "plain"), weights(tmp_path / name)) < 1e-5


# Stop and go.


def kill_at_random_moments(config: Path, folder: Path, kills: int) -> None:
    """A run killed so often, and one that is not, must end with the same weights."""
    began = time.monotonic()
    assert finished(in_child(lambda: train(config, folder / "whole"))) == 0
    whole = time.monotonic() - began
    draw = random.Random(kills)
    for _ in range(kills):
        child = in_child(lambda: train(config, folder / "killed"))
        time.sleep(draw.uniform(0.1, 0.9) * whole)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert finished(in_child(lambda: train(config, folder / "killed"))) == 0
    assert farthest(weights(folder / "whole"), weights(folder / "killed")) < 1e-6
    a, b = (log_of(folder / name)[-1] for name in ("whole", "killed"))
    assert a["step"] == b["step"]
    assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
    assert not list((folder / "killed").rglob(".aside-*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments_ends_with_the_same_numbers(kills: int, data: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, "triposr", data, steps=12, save_every=2)
    kill_at_random_moments(config, tmp_path, kills)


def train_and_die(config: Path, out: Path, step: int) -> None:
    """A run whose process is killed while it writes the checkpoint of a step; to be called in a child."""
    plain = torch.save

    def save(state: dict[str, Any], path: Path) -> None:
        plain(state, path)
        if state["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    base.torch.save = save  # type: ignore[assignment]
    train(config, out)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_while_it_writes_the_last_checkpoint_it_still_ends_with_the_last_model(
    data: Path, tmp_path: Path
) -> None:
    config = recipe(tmp_path, "triposr", data)
    assert finished(in_child(lambda: train(config, tmp_path / "whole"))) == 0
    assert finished(in_child(lambda: train_and_die(config, tmp_path / "killed", 4))) == -signal.SIGKILL
    assert torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["step"] == 2
    assert finished(in_child(lambda: train(config, tmp_path / "killed"))) == 0
    assert farthest(weights(tmp_path / "whole"), weights(tmp_path / "killed")) < 1e-6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_two_processes_give_what_one_gives(data: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, "triposr", data, steps=3, batch_size=3)  # two objects here, one there
    assert finished(in_child(lambda: train(config, tmp_path / "one"))) == 0
    assert in_two_processes(lambda: train(config, tmp_path / "two")) == [0, 0]
    assert json.loads((tmp_path / "two" / "config.json").read_text())["processes"] == 2
    assert farthest(weights(tmp_path / "one"), weights(tmp_path / "two")) < 1e-5
    one, two = ([row["loss"] for row in log_of(tmp_path / name)] for name in ("one", "two"))
    assert one == pytest.approx(two, abs=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_two_processes_go_on_where_one_was_killed(data: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, "triposr", data, batch_size=3)
    assert finished(in_child(lambda: train(config, tmp_path / "whole"))) == 0
    assert finished(in_child(lambda: train_and_die(config, tmp_path / "killed", 4))) == -signal.SIGKILL
    assert in_two_processes(lambda: train(config, tmp_path / "killed")) == [0, 0]
    assert farthest(weights(tmp_path / "whole"), weights(tmp_path / "killed")) < 1e-5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_no_process_takes_the_first_checkpoint_of_another_for_an_old_runs(data: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, "triposr", data, steps=1)

    def late_where_it_is_not_the_first() -> None:
        plain = FinetuneTrainer.resume

        def resume(self: FinetuneTrainer) -> bool:
            if not self.is_main:
                time.sleep(2)  # what a busy machine does
            assert not plain(self), "there was no run before"
            return False

        FinetuneTrainer.resume = resume  # type: ignore[method-assign]
        train(config, tmp_path / "run")

    assert in_two_processes(late_where_it_is_not_the_first) == [0, 0]


def test_a_full_disk_does_not_eat_the_last_good_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(tmp_path, "triposr", data, steps=5, save_every=2)
    plain = torch.save

    def full(state: dict[str, Any], path: Path) -> None:
        if state["step"] == 4:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        plain(state, path)

    monkeypatch.setattr(base.torch, "save", full)
    assert train(config, tmp_path / "run") == 0
    (alarm,) = log_of(tmp_path / "run", "alarm")
    assert alarm["alarm"] == "disk"
    assert "No space left on device" in alarm["message"]
    # When the last checkpoint cannot be written, that is an error, and the one before is still whole.
    monkeypatch.setattr(base.torch, "save", lambda state, path: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OutputError, match="No space left"):
        train(config, tmp_path / "run", "steps=6")
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 5


# Guards in a run.


def trainer(config: Path, out: Path, *words: str) -> FinetuneTrainer:
    return FinetuneTrainer(read_config(FinetuneConfig, config, words), out)


def test_out_of_memory_lowers_the_chunk_then_the_piece_and_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(tmp_path, "triposr", data, steps=2)
    assert train(config, tmp_path / "plain") == 0
    plain_loss, failures = FinetuneTrainer.loss, iter([True, True, True])

    def scarce(self: FinetuneTrainer, batch: Any) -> Any:
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return plain_loss(self, batch)

    monkeypatch.setattr(FinetuneTrainer, "loss", scarce)
    monkeypatch.setattr(FinetuneTrainer, "smallest_chunk", 50)
    made = trainer(config, tmp_path / "scarce", "log_every=1")
    base.start(made)
    assert made.chunk_size == 50  # 144 rays: 72, then 50
    assert made.pieces == 2
    assert "rays or points of one pass are now 72" in log_of(tmp_path / "scarce", "alarm")[0]["message"]
    assert farthest(weights(tmp_path / "plain"), weights(tmp_path / "scarce")) < 1e-5
    monkeypatch.setattr(FinetuneTrainer, "loss", lambda self, batch: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(SettingsError, match=r"out of memory with one object.*gradient_checkpointing=true"):
        made.train_step(made.maker(0))


def test_nan_is_left_out_counted_and_goes_back_with_other_pictures_until_it_is_hopeless(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guards = {"preflight_steps": 0, "probe_every": 0, "nonfinite_limit": 2, "retries": 1}
    config = recipe(tmp_path, "triposr", data, steps=8, guards=guards)
    plain_loss, seen = FinetuneTrainer.loss, []

    def sick(self: FinetuneTrainer, batch: Any) -> Any:
        total, parts = plain_loss(self, batch)
        seen.append((self.step, self.watch.retries))
        bad = self.step == 1 or (self.step in (4, 5) and self.watch.retries == 0)
        return (total * float("nan") if bad else total), parts

    monkeypatch.setattr(FinetuneTrainer, "loss", sick)
    assert train(config, tmp_path / "run") == 0
    # Steps 4 and 5 were bad, so that it went back to the checkpoint of step 4.
    assert seen == [(s, 0) for s in range(6)] + [(s, 1) for s in range(4, 8)]
    assert [row["alarm"] for row in log_of(tmp_path / "run", "alarm")] == ["bad step"] * 3 + ["rolled back"]
    assert "the run went back to step 4" in log_of(tmp_path / "run", "alarm")[-1]["message"]
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert (state["watch"]["skipped"], state["watch"]["retries"]) == (3, 1)
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "run").values())

    def hopeless(self: FinetuneTrainer, batch: Any) -> Any:
        total, parts = plain_loss(self, batch)
        return total * float("nan"), parts

    monkeypatch.setattr(FinetuneTrainer, "loss", hopeless)
    with pytest.raises(SettingsError, match=r"too many bad steps, and the run went back 1 times already"):
        train(config, tmp_path / "hopeless")


def test_going_back_changes_pictures_and_halves_the_rate(data: Path, tmp_path: Path) -> None:
    made = trainer(recipe(tmp_path, "triposr", data), tmp_path / "run")
    made.step = 2
    first, again = made.maker(2, 0), made.maker(2, 0)
    other = made.maker(2, 1)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.origins, other.origins)
    rate = made.learning_rate()
    made.watch.retries = 1
    assert made.learning_rate() == rate / 2


def test_the_preflight_stops_what_cannot_learn_and_leaves_no_trace_of_itself(data: Path, tmp_path: Path) -> None:
    guards = {"preflight_steps": 12, "preflight_factor": 0.9, "probe_every": 0}
    config = recipe(tmp_path, "instantmesh", data, guards=guards, optimizer="muon")
    with pytest.raises(SettingsError, match=r"preflight: one object could not be learned.*in 12 steps.*train\.check"):
        train(config, tmp_path / "dull", "learning_rate=1e-12")
    assert not (tmp_path / "dull" / "checkpoint.pt").exists()
    assert train(config, tmp_path / "with", "learning_rate=0.01") == 0
    assert train(config, tmp_path / "without", "learning_rate=0.01", "guards.preflight_steps=0") == 0
    assert farthest(weights(tmp_path / "with"), weights(tmp_path / "without")) == 0


def test_the_rehearsal_set_is_drawn_from_watched_and_its_loss_an_alarm(data: Path, tmp_path: Path) -> None:
    old = posed_folder(tmp_path / "old", (1,))
    guards = {"preflight_steps": 0, "probe_every": 2, "probe_size": 2, "forget_limit": -0.99, "input_after": 0.0,
              "input_margin": 100.0}  # fmt: skip
    config = recipe(tmp_path, "triposr", data, rehearsal=[str(old)], rehearsal_share=0.5, guards=guards)
    assert train(config, tmp_path / "run") == 0
    rows = log_of(tmp_path / "run", "probe_rehearsal")
    assert [row["step"] for row in rows] == [0, 2, 4]
    alarms = {row["alarm"]: row["message"] for row in log_of(tmp_path / "run", "alarm")}
    assert "the model forgets" in alarms["forgetting"]
    assert "does not depend on the input" in alarms["input"]
    made = trainer(config, tmp_path / "other", "batch_size=40")
    sources = made.maker.sources + made.maker.rehearsal  # type: ignore[attr-defined]
    drawn: list[int] = []
    for index, source in enumerate(sources):

        def counted(*words: Any, index: int = index, plain: Callable[..., Any] = source.shots) -> Any:
            drawn.append(index)
            return plain(*words)

        source.shots = counted
    made.maker(0)
    assert len(drawn) == 40
    assert 10 <= drawn.count(1) <= 30


# Recipes.


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        pytest.param(["train=lora"], "train=lora needs init", id="lora from scratch"),
        pytest.param(["trackers=[nothing]"], "nothing is not one that accelerate knows", id="tracker"),
        pytest.param(["steps=0"], "steps=0: expected at least 1", id="steps"),
        pytest.param(["data=[]"], "data names 0 folders", id="no data"),
        pytest.param(["loss.features=1"], "there is no init", id="features"),
        pytest.param(["sample.input_views=[3,2]"], "fewest and most", id="views"),
        pytest.param(["freeze=[vitt]"], "no part 'vitt'", id="freeze"),
    ],
)
def test_settings_that_contradict_each_other_are_named(
    words: list[str], complaint: str, data: Path, tmp_path: Path
) -> None:
    config = recipe(tmp_path, "triposr", data)
    with pytest.raises(SettingsError, match=complaint):
        train(config, tmp_path / "run", *words)


def test_weights_of_another_family_are_refused(base_model: Path, data: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, "openlrm", data, init=str(base_model))
    with pytest.raises(SettingsError, match="of the family triposr, family says openlrm"):
        train(config, tmp_path / "run")


def test_a_checkpoint_of_another_recipe_is_refused(base_model: Path, data: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, "triposr", data, init=str(base_model), steps=1)
    assert train(config, tmp_path / "run", "train=decoder") == 0
    with pytest.raises(Exception, match=r"expected the \d+ trained tensors of this recipe"):
        train(config, tmp_path / "run", "steps=2")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_that_is_shipped_can_be_read(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    if values.get("family") in MODELS:
        config = read_config(FinetuneConfig, path)
        assert config.guards.preflight_steps > 0
        assert (config.init == "") == bool(config.network)


def test_guards_of_published_families_are_on_by_default() -> None:
    assert FinetuneConfig(family="triposr", data=("x",)).guards.preflight_steps > 0
    assert GuardConfig().probe_every > 0


def test_exchanged_pictures_are_another_objects(data: Path, tmp_path: Path) -> None:
    made = trainer(recipe(tmp_path, "triposr", data), tmp_path / "run")
    batch = made.maker.probe(False)
    assert batch is not None
    other = made.exchanged(batch)
    assert other is not None
    assert torch.equal(other.images[1], batch.images[0])
    assert torch.equal(other.target, batch.target)
    assert np.isfinite(made.probe_loss(other))
