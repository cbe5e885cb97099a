"""Training Zero123 and SyncDreamer through the real command, on small random networks, and what must hold of a run."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from lrm.field import FunctionField
from lrm.volume import render
from multiview.camerafile import write_views
from multiview.cameras import Cameras, orbit
from multiview.errors import CameraError, SettingsError, WeightsError
from multiview.networks import NetworkGenerator
from multiview.syncdreamer import SyncDreamer, SyncDreamerNetwork
from multiview.syncdreamervolumes import looking_along_rays, ring_cameras
from multiview.views import Views
from multiview.zero123 import FOV_DEG, Zero123
from multiview.zero123weights import Zero123Network
from tests.posedfolders import solid_views
from tests.processes import finished, in_child, in_two_processes
from tests.small_generators import SYNCDREAMER, ZERO123, build_small
from train.config import DataFolder, read_config
from train.guards import view_problem
from train.layouts import read_posed
from train.lora import merge_folder
from train.multiview import main
from train.posed import ReadFlags
from train.viewdata import PairSource, RingSource, find_ring, pair_targets
from train.viewtuning import TUNERS, ViewBatch, ViewTuneConfig, ViewTuner

RECIPES = Path(__file__).parents[2] / "train" / "recipes"
PAIR_CAMERAS = orbit([0.0, 80.0, 190.0, 250.0], [10.0, 30.0, -5.0, 20.0], [1.6, 1.8, 2.0, 1.7], FOV_DEG)
# Two levels of 64 channels, so that norms see more than one number where a latent has a single pixel.
SYNC_SIZES = replace(SYNCDREAMER, unet=replace(SYNCDREAMER.unet, channels=(32, 32, 64, 64)))


@torch.no_grad()
def with_a_usual_vae(model: NetworkGenerator, size: int) -> NetworkGenerator:
    """A random model whose latents have the mean 0 and the size 1 that trained ones have, and hardly any spread."""
    vae: Any = model.networks[0].vae
    pictures = solid_views(0, ring_cameras().select([0, 5, 10]), size).composite() * 2 - 1
    mean = vae.encode(pictures).latent_dist.mean
    scale = 1 / 0.18215 / mean.std((0, 2, 3))
    vae.quant_conv.weight[:4] *= scale[:, None, None, None]
    vae.quant_conv.bias[:4] = (vae.quant_conv.bias[:4] - mean.mean((0, 2, 3))) * scale
    vae.quant_conv.weight[4:], vae.quant_conv.bias[4:] = 0.0, -8.0
    return model


@torch.no_grad()
def spindle_ring() -> Views:
    """The ring of a solid of revolution, red at the top and green below: one view to learn in place of sixteen."""
    half = torch.tensor([0.3, 0.3, 0.5])
    field = FunctionField(
        lambda p: 200 * torch.sigmoid(60 * (1 - (p / half).norm(dim=-1))),
        lambda p: torch.stack([0.5 + p[:, 2], 0.5 - p[:, 2], torch.full_like(p[:, 0], 0.3)], -1).clamp(0.05, 0.9),
        0.6,
    )
    seen = render(field, ring_cameras(), 32, 32, samples_per_ray=96, background=0.0)
    colors = (seen.images / seen.opacity.clamp(min=1e-3)).clamp(0, 1)
    return Views(colors, seen.opacity.clamp(0, 1), ring_cameras())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs and rings of two solids, and a small random model of each family."""
    folder = tmp_path_factory.mktemp("views")
    for kind in (0, 1):
        write_views(folder / "pairs" / f"solid{kind}", solid_views(kind, PAIR_CAMERAS, 64))
        write_views(folder / "rings" / f"solid{kind}", solid_views(kind, ring_cameras(), 32))
    write_views(folder / "one-pair" / "solid", solid_views(0, PAIR_CAMERAS.select([0, 1]), 64))
    write_views(folder / "one-ring" / "spindle", spindle_ring())
    with_a_usual_vae(build_small("zero123"), 64).save_pretrained(folder / "zero123")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Norms of two channels: those of one take all effect, and so all gradient, from the bias before them.
        wide = Zero123(Zero123Network(replace(ZERO123, unet=replace(ZERO123.unet, channels=(64, 64)))), "wide")
    with_a_usual_vae(wide, 64).save_pretrained(folder / "wide")
    build_small("stable-zero123").save_pretrained(folder / "stable-zero123")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sync = SyncDreamer(SyncDreamerNetwork(SYNC_SIZES), name="sync")
    with_a_usual_vae(sync, 32).save_pretrained(folder / "syncdreamer")
    return folder


def wide_syncdreamer(folder: Path) -> Path:
    """A SyncDreamer whose norms see several numbers everywhere; gives its folder.

    A norm of one channel takes all effect from the bias before it, and one of two channels of a single pixel, as in the
    middle of `SYNC_SIZES`' UNet, gives plus and minus 1 whatever comes in: gradients are then rounding alone.
    """
    sizes = replace(
        SYNC_SIZES, unet=replace(SYNC_SIZES.unet, channels=(64, 64, 64, 128)),
        volume=replace(SYNC_SIZES.volume, view_channels=16, widths=(16, 16, 16, 32)),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SyncDreamer(SyncDreamerNetwork(sizes), name="wide")
    with_a_usual_vae(model, 32).save_pretrained(folder)
    return folder


DATA = {"zero123": "pairs", "syncdreamer": "rings"}


def recipe(folder: Path, place: Path, family: str = "zero123", **changes: Any) -> Path:
    """A recipe for seconds."""
    values: dict[str, Any] = {
        "family": family, "init": str(place / family), "data": [str(place / DATA[family])], "steps": 4,
        "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 2, "precision": "no", "log_every": 1,
        "val_every": 100, "save_every": 2, "preview_steps": 2, "preview_objects": 1,
        "guards": {"preflight_steps": 0, "probe_every": 0},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path


def train(config: Path, out: Path, *words: str) -> int:
    return main(["--config", str(config), "-o", str(out), *words])


def tuner(config: Path, out: Path, *words: str) -> ViewTuner:
    chosen = read_config(ViewTuneConfig, config, words)
    return TUNERS[chosen.family](chosen, out)


def log_of(run: Path, key: str = "loss") -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if key in row]


def weights(folder: Path) -> dict[str, Tensor]:
    """{part.name: tensor} of a model folder."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        found |= {f"{file.parent.name}.{name}": tensor for name, tensor in load_file(file).items()}
    assert found
    return found


def changed(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    assert a.keys() == b.keys()
    return {name for name in a if not torch.equal(a[name], b[name])}


def farthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


# They learn, and inference loads what came out.


def drawn_psnr(model: Any, place: Path, family: str) -> float:
    """How near a drawn view comes to the true one, both by the (random) decoder: dB."""
    source: Any = (PairSource if family == "zero123" else RingSource)(
        DataFolder(str(place / ("one-pair" if family == "zero123" else "one-ring"))), model.image_size
    )
    seen = source.shown(0, 1)
    picture, generator = torch.cat([seen.condition, torch.ones_like(seen.condition[:1])]), torch.Generator()
    words: dict[str, Any] = {"num_inference_steps": 20, "guidance_scale": 1.0, "output_type": "pt"}
    if family == "zero123":
        words["targets"], _ = pair_targets(source.posed(0), 0, [1], "distance")
    made = model(picture, elevation_deg=seen.elevation_deg, generator=generator.manual_seed(0), **words)
    images = made.images if family == "zero123" else made
    with torch.no_grad():
        mean = model.network.vae.encode(seen.targets * 2 - 1).latent_dist.mean
        back = model.decode(mean * 0.18215)
    back = (back / 2 + 0.5).clamp(0, 1) if family == "zero123" else back
    return float(-10 * (images - back).square().mean().log10())


def learned_by_heart(family: str, place: Path, folder: Path, **words: Any) -> tuple[float, float, float]:
    """Share of the loss that is left, and the PSNR of a drawn view before and after, through the public loader."""
    from trilift.generators import load_generator

    data = str(place / ("one-pair" if family == "zero123" else "one-ring"))
    usual = {"drop": 0.0, "fast_factor": 1.0, "ema_decay": 0.9, "log_every": 5, "save_every": 1000, "val_every": 1000}
    config = recipe(folder, place, family, data=[data], **{**usual, **words})
    before = drawn_psnr(load_generator(place / family, device="cpu", dtype="fp32").model, place, family)
    assert train(config, folder / "run") == 0
    after = drawn_psnr(load_generator(folder / "run" / "model", device="cpu", dtype="fp32").model, place, family)
    losses = [row["loss"] for row in log_of(folder / "run")]
    return float(np.mean(losses[-8:])) / losses[0], before, after


def test_zero123_learns_one_object_by_heart(place: Path, tmp_path: Path) -> None:
    left, before, after = learned_by_heart("zero123", place, tmp_path, steps=110, batch_size=4, learning_rate=0.01)
    assert left < 0.35
    assert after > before + 2.5
    from trilift import PhotoToViews
    from trilift.generators import is_generator

    assert is_generator(tmp_path / "run" / "model")
    views = PhotoToViews.from_pretrained(tmp_path / "run" / "model", device="cpu")
    assert views.family == "zero123"
    assert (tmp_path / "run" / "previews" / "000110.png").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_syncdreamer_learns_one_object_by_heart(place: Path, tmp_path: Path) -> None:
    left, before, after = learned_by_heart(
        "syncdreamer", place, tmp_path, steps=150, batch_size=2, learning_rate=0.01, train="all", optimizer="muon"
    )
    assert left < 0.35
    assert after > before + 3


def test_syncdreamers_own_parts_learn_one_view_by_heart(place: Path, tmp_path: Path) -> None:
    made = tuner(recipe(tmp_path, place, "syncdreamer", learning_rate=0.02, train="all"), tmp_path / "run")
    batch = made.maker.preflight()
    found = []
    for _ in range(12):
        found.append(made._gradients(batch, 2)["loss"])
        made._clipped()
        made._update(0.01)
    assert min(found[-3:]) < 0.6 * found[0]


# What is trained, and what stays.


def test_lora_trains_only_lora_and_the_adapter_merges_to_the_saved_model(place: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, place, train="lora", lora={"rank": 2}, learning_rate=0.05, steps=3)
    made = tuner(config, tmp_path / "run")
    assert all(".lora_A." in name or ".lora_B." in name for name in made.trained)
    assert train(config, tmp_path / "run") == 0
    before, after = weights(place / "zero123"), weights(tmp_path / "run" / "model")
    moved = changed(before, after)
    adapted = {name.replace(".lora_A", "") for name in made.trained if ".lora_A." in name}
    # One token is all that cross-attention reads, so that queries and keys there have no say.
    wanted = ("attn1.to_q.weight", "attn1.to_k.weight", "attn1.to_v.weight", "attn2.to_v.weight")
    assert {n for n in before if n.endswith(wanted)} <= adapted
    assert not any(name.endswith(("attn2.to_q.weight", "attn2.to_k.weight")) for name in adapted)
    assert moved == adapted
    assert merge_folder(tmp_path / "run" / "adapter", tmp_path / "merged") == str(place / "zero123")
    assert farthest(after, weights(tmp_path / "merged")) < 1e-6
    assert (tmp_path / "run" / "checkpoint.pt").stat().st_size < 1e6


def test_a_save_leaves_the_run_as_it_was_to_the_bit(place: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, place, train="lora", lora={"rank": 2}, learning_rate=0.05)
    made = tuner(config, tmp_path / "run")
    made.train_step(made.maker(0))
    before = {name: tensor.clone() for name, tensor in made.inner.state_dict().items()}
    made.save_model()
    after = made.inner.state_dict()
    assert list(before) == list(after)
    assert not changed(before, dict(after))


@pytest.mark.parametrize(
    ("family", "words", "parts"),
    [
        pytest.param("zero123", {}, {"unet", "cc_projection"}, id="zero123"),
        pytest.param("zero123", {"freeze": ["unet"]}, {"cc_projection"}, id="freeze"),
        pytest.param("syncdreamer", {}, {"volume", "depth"}, id="syncdreamer"),
        pytest.param(
            "syncdreamer", {"train": "all"}, {"volume", "depth", "unet", "cc_projection"}, id="syncdreamer all"
        ),
    ],
)
def test_frozen_parts_are_bit_identical_and_named(
    family: str, words: dict[str, Any], parts: set[str], place: Path, tmp_path: Path
) -> None:
    assert train(recipe(tmp_path, place, family, steps=1, **words), tmp_path / "run") == 0
    before, after = weights(place / family), weights(tmp_path / "run" / "model")
    assert {name.split(".")[0] for name in changed(before, after)} == parts
    assert {"vae", "image_encoder"} <= set(json.loads((tmp_path / "run" / "config.json").read_text())["frozen"])


def test_the_fast_part_learns_faster(place: Path, tmp_path: Path) -> None:
    made = tuner(recipe(tmp_path, place, fast_factor=7.0), tmp_path / "run")
    made.train_step(made.maker(0))
    rates = {group["lr"] for group in made.optimizer.param_groups}
    assert sorted(rates) == pytest.approx([0.5e-3, 3.5e-3])  # half way up the warm-up
    fast = {id(p) for group in made.optimizer.param_groups if group["lr_scale"] == 7 for p in group["params"]}
    assert fast == {id(p) for p in made.model.network.cc_projection.parameters()}


# What is trained is what inference runs.


def test_zero123_is_asked_as_in_sampling(place: Path, tmp_path: Path) -> None:
    made = tuner(recipe(tmp_path, place), tmp_path / "run")
    batch = made.maker.fixed(made.maker.sources[0], 2, (300, 700))  # type: ignore[attr-defined]
    noisy = made.noised(made.latents(batch), batch.noise, batch.time)
    with torch.no_grad():
        told = made.predicted(batch, noisy)
        for i in range(2):
            condition = made.model.condition(batch.condition[i : i + 1] * 2 - 1, batch.pose[i])
            usual = made.model.noise(noisy[i], int(batch.time[i]), condition.tokens, condition.latent)
            assert torch.allclose(told[i], usual[0], atol=1e-5)
    alpha = made.keep[300]
    mean, spread = made._encoded(batch.targets[0])
    latent = (mean[0] + spread[0] * batch.draw[0, 0]) * 0.18215
    assert torch.allclose(noisy[0, 0], alpha.sqrt() * latent + (1 - alpha).sqrt() * batch.noise[0, 0], atol=1e-5)


def test_syncdreamer_is_asked_as_in_sampling(place: Path, tmp_path: Path) -> None:
    made = tuner(recipe(tmp_path, place, "syncdreamer"), tmp_path / "run")
    batch = made.maker.fixed(made.maker.sources[0], 2, (300, 700))  # type: ignore[attr-defined]
    noisy = made.noised(made.latents(batch), batch.noise, batch.time)
    with torch.no_grad():
        told = made.predicted(batch, noisy)
        for i in range(2):
            view, picture = int(batch.view[i]), batch.condition[i : i + 1] * 2 - 1
            condition = made.model.condition(picture, 30.0, sample=False)
            _, spread = made._encoded(batch.condition[i : i + 1])
            condition = replace(condition, latent=condition.latent + spread * batch.draw[i, -1])
            both = made.model.predict_noise(noisy[i], int(batch.time[i]), condition, guidance_scale=2.0)
            network, time_ = made.model.network, batch.time[i : i + 1]
            volume = network.volume.spatial_volume(noisy[i], time_, condition.views)
            volumes = network.volume.frustum_volumes(volume, time_, condition.views, [view])
            cond, free = made.model.predict_branches(
                noisy[i, view : view + 1], time_, condition, slice(view, view + 1), volumes
            )
            assert torch.allclose(told[i], cond[0], atol=1e-5)
            assert torch.allclose(both[view], (free + 2 * (cond - free))[0], atol=1e-5)


def asked(made: ViewTuner, batch: ViewBatch, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """What the UNet is given: input and tokens."""
    seen: list[tuple[Tensor, Tensor]] = []

    def forward(x: Tensor, time: Tensor, encoder_hidden_states: Tensor, return_dict: bool) -> tuple[Tensor]:
        seen.append((x, encoder_hidden_states))
        return (x[:, :4],)

    monkeypatch.setattr(made.model.network.unet, "forward", forward)
    made.predicted(batch, made.noised(made.latents(batch), batch.noise, batch.time))
    return seen[0]


def test_zero123s_conditions_are_left_out_as_published(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tuner(recipe(tmp_path, place, drop=0.1), tmp_path / "run")
    one = made.maker.preflight()
    rows = torch.zeros(4, dtype=torch.long)
    batch = ViewBatch(**{name: value[rows] for name, value in vars(one).items()})
    batch = replace(batch, dropped=torch.tensor([0.05, 0.15, 0.25, 0.35]))
    with torch.no_grad():
        x, tokens = asked(made, batch, monkeypatch)
    projection = made.model.network.cc_projection
    blind = projection(torch.cat([torch.zeros(8), batch.pose[0, 0]]))
    # Below u the embedding is left out, to 2u both, to 3u the latent alone.
    assert [torch.allclose(token[0], blind) for token in tokens] == [True, True, False, False]
    assert [bool((row[4:] == 0).all()) for row in x] == [False, True, True, False]
    assert torch.equal(tokens[2], tokens[3])


def test_syncdreamers_conditions_are_left_out_one_by_one(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tuner(recipe(tmp_path, place, "syncdreamer", drop=0.1), tmp_path / "run")
    one = made.maker.preflight()
    rows = torch.zeros(5, dtype=torch.long)
    batch = ViewBatch(**{name: value[rows] for name, value in vars(one).items()})
    batch = replace(batch, dropped=torch.tensor([0.05, 0.15, 0.25, 0.35, 0.45]))
    empty: list[bool] = []
    plain = looking_along_rays

    def watched(unet: Any, layers: Any, volumes: dict[int, Tensor]) -> Any:
        empty.extend(all(bool((v[i] == 0).all()) for v in volumes.values()) for i in range(5))
        return plain(unet, layers, {})

    monkeypatch.setattr("train.viewtuning.looking_along_rays", watched)
    with torch.no_grad():
        x, tokens = asked(made, batch, monkeypatch)
    # All, latent, volumes, token, nothing.
    assert [bool((row[4:] == 0).all()) for row in x] == [True, True, False, False, False]
    assert empty == [True, False, True, False, False]
    assert [bool((token == 0).all()) for token in tokens] == [True, False, False, True, False]


# Stop and go.


def test_pieces_recomputation_and_worker_processes_change_nothing(place: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, place, init=str(place / "wide"), steps=2, batch_size=4, learning_rate=5e-5, fast_factor=1)
    for name, words in {
        "plain": [], "pieces": ["accumulate=4"], "again": ["gradient_checkpointing=true"], "workers": ["workers=1"],
    }.items():  # fmt: skip
        assert train(config, tmp_path / name, *words) == 0
    for name in ("pieces", "again", "workers"):
        assert farthest(weights(tmp_path / "plain" / "model"), weights(tmp_path / name / "model")) < 1e-5
    losses = [log_of(tmp_path / name)[0]["loss"] for name in ("plain", "pieces", "again", "workers")]
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-5)


def test_recomputation_goes_with_the_depth_layers(place: Path, tmp_path: Path) -> None:
    found = []
    for word in ("false", "true"):
        config = recipe(tmp_path, place, "syncdreamer", train="all")
        made = tuner(config, tmp_path / word, f"gradient_checkpointing={word}")
        made._gradients(made.maker(0), 2)
        found.append({name: p.grad for name, p in made.trained.items() if p.grad is not None})
    assert len(found[0]) > 100
    assert farthest(found[0], found[1]) < 1e-5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_and_started_again_it_ends_with_the_same_numbers(place: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, place, steps=5, save_every=1)
    assert finished(in_child(lambda: train(config, tmp_path / "whole"))) == 0
    child = in_child(lambda: train(config, tmp_path / "killed"))
    began = time.monotonic()
    while not (tmp_path / "killed" / "log.jsonl").exists() or len(log_of(tmp_path / "killed")) < 2:
        assert time.monotonic() - began < 300
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert finished(in_child(lambda: train(config, tmp_path / "killed"))) == 0
    whole, killed = (weights(tmp_path / name / "model") for name in ("whole", "killed"))
    assert farthest(whole, killed) < 1e-6
    assert farthest(whole, weights(place / "zero123")) > 1e-4
    a, b = (log_of(tmp_path / name)[-1]["loss"] for name in ("whole", "killed"))
    assert a == pytest.approx(b, abs=1e-6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("family", ["zero123", pytest.param("syncdreamer", marks=pytest.mark.slow)])
def test_two_processes_give_what_one_gives(family: str, place: Path, tmp_path: Path) -> None:
    init = str(place / "wide" if family == "zero123" else wide_syncdreamer(tmp_path / "wide"))
    # Two objects here, one there. AdamW steps by the learning rate where a gradient is hardly more than rounding.
    config = recipe(tmp_path, place, family, init=init, steps=2, batch_size=3, learning_rate=5e-5, fast_factor=1)
    assert finished(in_child(lambda: train(config, tmp_path / "one"))) == 0
    assert in_two_processes(lambda: train(config, tmp_path / "two")) == [0, 0]
    assert json.loads((tmp_path / "two" / "config.json").read_text())["processes"] == 2
    assert farthest(weights(tmp_path / "one" / "model"), weights(tmp_path / "two" / "model")) < 1e-5
    assert farthest(weights(tmp_path / "one" / "model"), weights(Path(init))) > 5e-5
    one, two = ([row["loss"] for row in log_of(tmp_path / name)] for name in ("one", "two"))
    assert one == pytest.approx(two, abs=1e-5)


# Guards.


def test_guards_watch_a_run(place: Path, tmp_path: Path) -> None:
    guards = {"preflight_steps": 6, "preflight_factor": 0.995, "probe_every": 2, "probe_size": 2, "input_after": 0.0,
              "input_margin": 100.0, "forget_limit": -1.0}  # fmt: skip
    pairs = str(place / "pairs")
    config = recipe(tmp_path, place, guards=guards, learning_rate=0.01, rehearsal=[pairs], val=pairs, steps=2)
    assert train(config, tmp_path / "run") == 0
    assert {row["alarm"] for row in log_of(tmp_path / "run", "alarm")} >= {"input", "forgetting"}
    assert [row["step"] for row in log_of(tmp_path / "run", "probe_rehearsal")] == [0, 2]
    assert math.isfinite(log_of(tmp_path / "run", "val_loss")[-1]["val_psnr"])
    with pytest.raises(SettingsError, match="one object could not be learned by heart"):
        train(config, tmp_path / "dull", "learning_rate=1e-12", "guards.preflight_factor=0.8")
    assert not (tmp_path / "dull" / "checkpoint.pt").exists()


def test_exchanged_pictures_are_another_objects_and_cameras_stay(place: Path, tmp_path: Path) -> None:
    made = tuner(recipe(tmp_path, place), tmp_path / "run")
    batch = made.maker.probe(False)
    assert batch is not None and int(batch.time.min()) >= 500
    other = made.exchanged(batch)
    assert other is not None
    assert torch.equal(other.condition[1], batch.condition[0]) and torch.equal(other.pose, batch.pose)
    alone = tuner(recipe(tmp_path / "alone", place, data=[str(place / "one-pair")]), tmp_path / "alone")
    assert alone.exchanged(batch) is None


def test_white_views_and_views_without_a_background_are_named() -> None:
    truth = torch.ones(1, 3, 8, 8)
    alpha = torch.zeros(1, 1, 8, 8)
    truth[..., 2:6, 2:6], alpha[..., 2:6, 2:6] = 0.4, 1.0
    assert view_problem(truth, truth, alpha) is None
    assert "views are white: their mean colour on the object is 1.000" in str(
        view_problem(torch.ones_like(truth), truth, alpha)
    )
    assert "no white background: their mean beside the object is 0.30" in str(
        view_problem(torch.full_like(truth, 0.3), truth, alpha)
    )
    assert view_problem(torch.ones_like(truth), truth, torch.zeros_like(alpha)) is None


# Data.


def posed(folder: Path, cameras: Cameras, size: int = 24, **changes: Any) -> Path:
    views = solid_views(0, cameras, size)
    write_views(folder / "thing", Views(**{**vars(views), **changes}))
    return folder


def test_pairs_are_told_apart_as_zero123_is_told(tmp_path: Path) -> None:
    posed(tmp_path, orbit([20.0, 110.0], [5.0, 35.0], [1.6, 1.9], FOV_DEG))
    seen = PairSource(DataFolder(str(tmp_path)), 32).shown(0, 1)
    # From 5 to 35 degrees: 30 degrees of polar angle less; a quarter to the right; 0.3 further away.
    assert seen.pose[0].tolist() == pytest.approx([-math.radians(30), 1.0, 0.0, 0.3], abs=1e-4)
    assert seen.elevation_deg == pytest.approx(5, abs=1e-3)
    assert seen.condition.shape == (3, 32, 32) and seen.condition[:, 0, 0].tolist() == pytest.approx([1, 1, 1])
    with pytest.raises(CameraError, match=r"1.60 to 1.90 longest sides away.*Stable Zero123.*--distance 1.8"):
        PairSource(DataFolder(str(tmp_path)), 32, "polar").shown(0, 1)
    level = posed(tmp_path / "kept", orbit([0.0, 90.0], [5.0, 35.0], 1.8, FOV_DEG))
    told = PairSource(DataFolder(str(level)), 32, "polar").shown(0, 1).pose[0]
    assert told.tolist() == pytest.approx([-math.radians(30), 1.0, 0.0, math.radians(85)], abs=1e-4)


def test_another_lens_is_made_up_for_by_the_distance(tmp_path: Path) -> None:
    posed(tmp_path, orbit([0.0, 90.0], 0.0, [2.2, 2.6], 35.0))
    targets, _ = pair_targets(read_posed(tmp_path / "thing"), 0, [1], "distance")
    ratio = math.tan(math.radians(17.5)) / (16 / 35)
    assert targets.changes[0] == pytest.approx(0.4 * ratio, abs=1e-4)


@pytest.mark.parametrize(
    ("cameras", "complaint"),
    [
        pytest.param(orbit([0.0, 90.0], 0.0, [5.0, 6.0], FOV_DEG), "5.00 to 6.00 longest sides from", id="far"),
        pytest.param(orbit([0.0], 0.0, 1.6, FOV_DEG), "1 view, expected 2 or more", id="one view"),
    ],
)
def test_data_that_zero123_cannot_learn_from_is_refused(cameras: Cameras, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(CameraError, match=complaint + r"[\s\S]*--preset zero123"):
        PairSource(DataFolder(str(posed(tmp_path, cameras))), 32).shown(0, 1)


def test_cameras_that_look_past_the_object_are_named_and_turned_by_the_recipe(tmp_path: Path) -> None:
    cameras = orbit([0.0, 90.0], 0.0, 1.8, FOV_DEG)
    moved = cameras.c2w.clone()
    moved[:, 2, 3] += 0.4
    posed(tmp_path, Cameras(moved, cameras.intrinsics))
    with pytest.raises(CameraError, match=r"looks 12.5 degrees past the origin, expected at most 3"):
        PairSource(DataFolder(str(tmp_path)), 32).shown(0, 1)
    turned = DataFolder(str(tmp_path), ReadFlags(look_at=(0.0, 0.0, 0.0)))
    assert PairSource(turned, 32).shown(0, 1).elevation_deg == pytest.approx(math.degrees(math.atan2(0.4, 1.8)))


def test_pictures_without_an_object_or_a_matte_are_named(tmp_path: Path) -> None:
    cameras = orbit([0.0, 90.0], 0.0, 1.6, FOV_DEG)
    empty = posed(tmp_path / "empty", cameras, alpha=torch.zeros(2, 1, 24, 24))
    with pytest.raises(SettingsError, match="picture 0 is empty"):
        PairSource(DataFolder(str(empty)), 32).shown(0, 1)
    dark = posed(tmp_path / "dark", cameras, alpha=torch.ones(2, 1, 24, 24), images=torch.zeros(2, 3, 24, 24))
    with pytest.raises(SettingsError, match=r"picture 0 has no transparent background.*border is not white"):
        PairSource(DataFolder(str(dark)), 32).shown(0, 1)


def test_a_ring_begins_at_the_picture_whatever_way_it_is_turned(tmp_path: Path) -> None:
    cameras = ring_cameras()
    order = [5, 0, 15, *range(1, 5), *range(6, 15)]
    posed(tmp_path, cameras.select(order), 16)
    ring = find_ring(read_posed(tmp_path / "thing"))
    assert [order[view] for view in ring.views] == [(5 + k) % 16 for k in range(16)]
    source = RingSource(DataFolder(str(tmp_path)), 16)
    for _, view, place_, elevation in source._choices(0):
        seen = source._seen(0, *source._choices(0)[view])
        assert torch.equal(seen.condition, seen.targets[0])
        assert elevation == pytest.approx(30, abs=1e-3) and order[view] == (5 + place_) % 16
        assert seen.pose[4].tolist() == pytest.approx([0, 1, 0, 0], abs=1e-4)


def test_inputs_from_other_elevations_go_with_the_ring(tmp_path: Path) -> None:
    posed(tmp_path / "rings", ring_cameras(), 16)
    inputs = orbit([45.0, 50.0, 67.5], [-10.0, 0.0, 60.0], 1.5, FOV_DEG)  # the second is between, the third too high
    posed(tmp_path / "inputs", inputs, 16)
    source = RingSource(DataFolder(str(tmp_path / "rings")), 16, DataFolder(str(tmp_path / "inputs")))
    ((_, view, place_, elevation),) = source._choices(0)
    assert (view, place_) == (0, 2) and elevation == pytest.approx(-10, abs=1e-3)
    seen = source.draw(0, np.random.default_rng(0))
    plain = RingSource(DataFolder(str(tmp_path / "rings")), 16)
    assert torch.equal(seen.targets, plain._seen(0, *plain._choices(0)[2]).targets)
    assert seen.pose[0].tolist() == pytest.approx([-math.radians(40), 0, 1, 0], abs=1e-4)
    (tmp_path / "other").mkdir()
    write_views(tmp_path / "other" / "else", solid_views(0, inputs, 16))
    with pytest.raises(CameraError, match=r"no inputs for 1 of the 1 objects.*first thing.*syncdreamer-inputs"):
        RingSource(DataFolder(str(tmp_path / "rings")), 16, DataFolder(str(tmp_path / "other")))


def test_data_without_the_ring_is_refused_and_the_preset_named(place: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, place, "syncdreamer", data=[str(place / "pairs")])
    with pytest.raises(CameraError, match=r"0 of the 16 views of SyncDreamer's ring.*--preset syncdreamer"):
        train(config, tmp_path / "run")


# Recipes.


def test_folders_of_a_recipe_may_say_how_their_poses_are_meant(place: Path, tmp_path: Path) -> None:
    entries = [str(place / "pairs"), {"path": "mine", "up": "y", "look_at": [0, 0, 0.5], "order": [1, 0]}]
    config = read_config(ViewTuneConfig, recipe(tmp_path, place, data=entries))
    assert config.data[0] == DataFolder(str(place / "pairs"))
    assert config.data[1] == DataFolder("mine", ReadFlags(up="y", look_at=(0.0, 0.0, 0.5), order=(1, 0)))
    for entry, complaint in (
        ({"path": "x", "uup": "y"}, "unknown key 'uup'.*'up'"),
        ({"path": "x", "look_at": [0, 1]}, "look_at: expected 3 values, found 2"),
        ({"up": "y"}, "expected a folder"),
        ({"path": "x", "up": "w"}, "--up w: expected one of"),
    ):
        with pytest.raises((SettingsError, WeightsError), match=complaint):
            read_config(ViewTuneConfig, recipe(tmp_path, place, data=[entry]))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        pytest.param(["init=''", "train=lora"], "train=lora needs init", id="lora from scratch"),
        pytest.param(["data=[]"], "data names 0 folders", id="no data"),
        pytest.param(["drop=0.5"], "expected 0 to 0.25", id="drop"),
        pytest.param(["inputs=[x]"], "and syncdreamer", id="inputs"),
        pytest.param(["freeze=[unett]"], "no part 'unett'", id="freeze"),
        pytest.param(["network={pose_rule: polar}"], "leave network out", id="sizes of init"),
    ],
)
def test_settings_that_contradict_each_other_are_named(
    words: list[str], complaint: str, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=complaint):
        train(recipe(tmp_path, place), tmp_path / "run", *words)


def test_weights_of_another_family_are_refused(place: Path, tmp_path: Path) -> None:
    config = recipe(tmp_path, place, init=str(place / "syncdreamer"))
    with pytest.raises(SettingsError, match="of the family syncdreamer, family says zero123"):
        train(config, tmp_path / "run")
    stable = recipe(tmp_path / "stable", place, init=str(place / "stable-zero123"))
    with pytest.raises(CameraError, match="Stable Zero123"):
        train(stable, tmp_path / "run")


def test_a_network_from_nothing_has_the_recipes_sizes(place: Path, tmp_path: Path) -> None:
    small = json.loads((place / "zero123" / "config.json").read_text())["network"]
    config = recipe(tmp_path, place, init="", network=small, steps=1, batch_size=1)
    assert train(config, tmp_path / "run") == 0
    said = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert said["network"] == small and said["weights"] == "ema" and said["training"]["steps"] == 1


@pytest.mark.parametrize("family", ["zero123", "syncdreamer"])
def test_every_recipe_that_is_shipped_can_be_read(family: str) -> None:
    recipes = sorted(RECIPES.glob(f"{family}*.yaml"))
    assert recipes
    for path in recipes:
        config = read_config(ViewTuneConfig, path)
        assert config.family == family and config.init and config.guards.preflight_steps > 0
