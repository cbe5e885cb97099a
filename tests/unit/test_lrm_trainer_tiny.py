"""The embedded model's trainer: pieces, processes and going back change nothing; adapters, parts and rehearsal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from multiview.errors import SettingsError
from train.config import read_config
from train.lrm import TrainConfig, Trainer, main
from train.trainer import batch_length, batch_pieces, spoken_time

NETWORK = {
    "image_size": 32, "stem": [8, 8, 16, 16], "width": 24, "heads": 3, "layers": 1, "lift_side": 6, "lift_channels": 8,
    "seed_channels": 16, "side_channels": [16, 8], "front_channels": [16, 8, 8], "plane_channels": 4,
    "decoder_width": 16, "decoder_layers": 1,
}  # fmt: skip


def packed(folder: Path, objects: int, seed: int) -> Path:
    """Packed data of noise, in the form that ``train.prepare`` writes."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    cameras = np.stack(
        [rng.uniform(0, 360, (objects, 3)), rng.uniform(-10, 40, (objects, 3)), np.full((objects, 3), 2.5),
         np.zeros((objects, 3)), np.zeros((objects, 3)), np.full((objects, 3), 0.25)], -1,
    )  # fmt: skip
    points = rng.uniform(-0.55, 0.55, (objects, 256, 3))
    arrays = {
        "views": rng.integers(0, 256, (objects, 3, 32, 32, 7)).astype(np.uint8), "cameras": cameras.astype(np.float32),
        "points": points.astype(np.float16), "inside": np.linalg.norm(points, axis=-1) < 0.4,
        "surface": rng.uniform(-0.4, 0.4, (objects, 64, 3)).astype(np.float16),
        "colors": rng.integers(0, 256, (objects, 64, 3)).astype(np.uint8),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "objects.json").write_text(json.dumps({"names": [f"o{i}" for i in range(objects)]}))
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("tiny")
    data, old = packed(folder / "new", 4, 0), packed(folder / "old", 3, 1)

    def write(**changes: Any) -> Path:
        values = {
            "data": [str(data)], "steps": 3, "batch_size": 4, "warmup_steps": 1, "precision": "no", "log_every": 1,
            "save_every": 100, "counts": {"uniform": 32, "near": 32, "free": 8, "surface": 16}, "network": NETWORK,
            "rendered_share": 1.0, "several_views": 0.5, "guards": {"probe_every": 0}, **changes,
        }  # fmt: skip
        if values.get("rehearsal"):
            values["rehearsal"] = [str(old)]
        (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
        return folder / "recipe.yaml"

    return write


def train(config: Path, out: Path, *words: str) -> dict[str, torch.Tensor]:
    assert main(["--config", str(config), "-o", str(out), *words]) == 0
    return load_file(out / "model" / "model.safetensors")


def rows(run: Path, key: str) -> list[dict[str, Any]]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if key in row]


def test_a_batch_in_pieces_has_the_same_gradients(recipe: Callable[..., Path], tmp_path: Path) -> None:
    made = Trainer(read_config(TrainConfig, recipe(batch_size=6)), tmp_path)
    batch = made.maker(0)
    count = batch_length(batch)
    gradients = []
    for pieces in (1, 3):
        made.pieces = pieces
        made._gradients(batch, count)
        gradients.append(torch.cat([p.grad.flatten() for p in made.trained.values() if p.grad is not None]))
        made.optimizer.zero_grad()
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5 * gradients[0].abs().max() + 1e-7
    assert [batch_length(piece) for piece in batch_pieces(batch, 100)] == [1] * count


def test_processes_share_a_batch_without_gap_or_overlap(recipe: Callable[..., Path], tmp_path: Path) -> None:
    config = read_config(TrainConfig, recipe(batch_size=5, several_views=0.0))
    whole = Trainer.maker_type(config, (0, 1))(7)
    parts = [Trainer.maker_type(config, (rank, 3))(7) for rank in range(3)]
    assert [batch_length(part) for part in parts] == [1, 2, 2]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.points for part in parts]), whole.points)
    with pytest.raises(SettingsError, match="5 objects for 6 processes"):
        Trainer.maker_type(config, (0, 6))(7)


@pytest.mark.parametrize("part", ["decoder", "lora"])
def test_parts_and_adapters_leave_the_rest_as_it_was(part: str, recipe: Callable[..., Path], tmp_path: Path) -> None:
    before = train(recipe(), tmp_path / "base")
    words = [f"init={tmp_path / 'base' / 'model'}", f"train={part}", "learning_rate=0.05", "ema_decay=0"]
    after = train(recipe(lora={"rank": 2}), tmp_path / part, *words)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    if part == "decoder":
        assert all(name.startswith("decoder.") for name in changed)
    else:
        assert changed == {f"blocks.0.{n}.weight" for n in ("qkv", "self_out", "query", "key_value", "cross_out")}
        assert (tmp_path / part / "adapter" / "adapter_model.safetensors").is_file()


def test_rehearsal_is_drawn_and_watched(recipe: Callable[..., Path], tmp_path: Path) -> None:
    config = recipe(rehearsal=True, rehearsal_share=1.0, guards={"probe_every": 3, "probe_size": 2})
    train(config, tmp_path / "run")
    assert [row["step"] for row in rows(tmp_path / "run", "probe_rehearsal")] == [0, 3]
    made = Trainer(read_config(TrainConfig, config, ["batch_size=60", "rehearsal_share=0.5"]), tmp_path / "other")
    maker: Any = made.maker
    plain, drawn = maker._one, []

    def counted(sources: Any, *words: Any) -> Any:
        drawn.append(sources is maker.rehearsal)
        return plain(sources, *words)

    maker._one = counted
    maker(0)
    assert 0.25 * len(drawn) < sum(drawn) < 0.75 * len(drawn)


def test_the_preflight_of_the_embedded_model_passes_and_leaves_the_weights(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    plain = train(recipe(), tmp_path / "plain")
    guards = {"preflight_steps": 15, "preflight_factor": 0.95, "probe_every": 0}
    checked = train(recipe(guards=guards), tmp_path / "checked")
    assert all(torch.equal(plain[name], checked[name]) for name in plain)


def test_a_bare_no_is_a_precision(recipe: Callable[..., Path]) -> None:
    assert read_config(TrainConfig, recipe(), ["precision=no"]).precision == "no"
    assert read_config(TrainConfig, recipe(), ["precision=bf16"]).precision == "bf16"


def test_init_may_name_the_embedded_model_and_says_what_it_wants(recipe: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"init=nowhere: expected a folder with model.safetensors.*or tiny"):
        main(["--config", str(recipe()), "-o", str(tmp_path), "init=nowhere"])


@pytest.mark.parametrize(("seconds", "words"), [(12.4, "12 s"), (75, "1 min 15 s"), (4000, "1 h 06 min")])
def test_time_left_is_said_in_words(seconds: float, words: str) -> None:
    assert spoken_time(seconds) == words
