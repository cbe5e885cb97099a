"""``python -m train.lrm --config train/recipes/tiny.yaml``: train the embedded reconstruction model.

The same command runs on the CPU and on GPUs (``accelerate launch -m train.lrm ...``). It writes into the run folder:
``config.json`` first, ``log.jsonl`` as it goes, ``checkpoint/`` to resume from, and ``model/``, which
`trilift lift --model` and ``ImageTo3D.from_pretrained`` read. Started again, it goes on where the last checkpoint was.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from lrm.field import sample_planes
from lrm.tiny import ELEVATION_UNIT_DEG, USUAL_LOG_FOCAL, TinyConfig, TinyLRM, TinyNetwork
from multiview.devices import CPU, pick_device
from multiview.errors import SettingsError
from multiview.files import write_json_whole, written_whole
from multiview.weights import config_from_dict, load_strict

from .batches import Augment, Batch, PackedData, light, make_batch, picture_coordinates, resized


@dataclass(frozen=True)
class LossWeights:
    """What each part of the loss counts."""

    occupancy: float = 1.0
    color: float = 0.6
    camera: float = 0.1


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        data: folders of ``train.prepare``, and `data_weights` how often each is drawn from.
        val: such a folder, or empty; never trained on.
        steps, batch_size, learning_rate, warmup_steps, weight_decay, clip_norm: of AdamW with a cosine schedule.
        ema_decay: of the averaged weights, which are what is saved for use.
        points, free_points, surface_points: per picture.
        precision: ``no``, ``bf16`` or ``fp16``, as accelerate names them.
        init: a folder of `TinyLRM.save` to start from, or empty.
        train: ``all``, or ``camera`` for the camera head alone; all other weights stay as ``init`` has them.
    """

    data: tuple[str, ...]
    data_weights: tuple[float, ...] = ()
    val: str = ""
    steps: int = 6000
    batch_size: int = 24
    learning_rate: float = 1e-3
    warmup_steps: int = 300
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.9985
    points: int = 1536
    free_points: int = 128
    surface_points: int = 256
    seed: int = 0
    precision: str = "bf16"
    init: str = ""
    train: Literal["all", "camera"] = "all"
    log_every: int = 25
    val_every: int = 500
    save_every: int = 250
    network: TinyConfig = field(default_factory=TinyConfig)
    augment: Augment = field(default_factory=Augment)
    loss: LossWeights = field(default_factory=LossWeights)


def occupancy_and_color(network: TinyNetwork, planes: Tensor, points: Tensor) -> Tensor:
    """Decoder outputs (B, N, 4), raw, at plane coordinates (B, N, 3)."""
    return network.decoder(sample_planes(planes, points).flatten(-2))


def losses(
    network: nn.Module, inner: TinyNetwork, batch: Batch, weights: LossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch and its parts.

    Occupancy is binary cross-entropy over points with a known label, colour the absolute error near the surface, the
    camera head a smooth absolute error.
    """
    planes, camera = network(batch.images.contiguous(memory_format=torch.channels_last))
    with torch.autocast(planes.device.type, enabled=False):
        raw = occupancy_and_color(inner, planes, torch.cat([batch.points, batch.surface], 1))
        count = batch.points.shape[1]
        each = F.binary_cross_entropy_with_logits(raw[:, :count, 0], batch.occupancy, reduction="none")
        parts = {
            "occupancy": (each * batch.weight).sum() / batch.weight.sum(),
            "color": (torch.sigmoid(raw[:, count:, 1:]) - batch.colors).abs().mean(),
            "camera": F.smooth_l1_loss(camera, batch.camera, beta=0.3),
        }
        total = torch.stack([getattr(weights, name) * value for name, value in parts.items()]).sum()
    return total, {name: value.detach() for name, value in parts.items()}


def camera_loss(inner: TinyNetwork, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The camera's part of `losses` alone, without running the rest of the network."""
    loss = F.smooth_l1_loss(inner.camera(batch.images).float(), batch.camera, beta=0.3)
    return loss, {"camera": loss.detach()}


@torch.no_grad()
def val_iou(network: TinyNetwork, data: PackedData, limit: int = 100) -> dict[str, float]:
    """Mean IoU over uniform points of unseen objects, first view, true camera; and the camera head's errors.

    It is a gauge for training: `trilift eval` is the instrument.
    """
    ious, elevation_errors, focal_errors = [], [], []
    half = data.arrays["points"].shape[1] // 2
    rng = np.random.default_rng(0)
    unlit = Augment(lit=0, mirror=0, swap=0, exposure=0, ragged=0)
    for obj in range(min(limit, len(data))):
        batch_item = data.item(obj, 0, rng, 2, 1)
        camera = batch_item["camera"]
        view = torch.from_numpy(batch_item["view"])
        picture = resized(light(view, rng, unlit), network.config.image_size)
        planes, head = network(picture[None].to(network.image_position.device))
        points = data.arrays["points"][obj, :half].astype(np.float32)
        coordinates = torch.from_numpy(picture_coordinates(points, camera, network.config.depth_contraction))
        raw = occupancy_and_color(network, planes, coordinates[None].to(planes.device))[0, :, 0]
        guess, truth = raw.cpu() > 0, torch.from_numpy(data.arrays["inside"][obj, :half].copy())
        union = (guess | truth).sum()
        ious.append(float((guess & truth).sum() / union) if union else 1.0)
        elevation_errors.append(abs(float(head[0, 0]) * ELEVATION_UNIT_DEG - float(camera[1])))
        focal_errors.append(abs(float(head[0, 1]) + USUAL_LOG_FOCAL + math.log(float(camera[5]))))
    return {
        "val_iou": float(np.mean(ious)),
        "val_elevation_error_deg": float(np.mean(elevation_errors)),
        "val_log_focal_error": float(np.mean(focal_errors)),
    }


class Trainer:
    """One run: network, averaged copy, optimiser, schedule and where they are in time.

    Args:
        config: the run.
        out: run folder.
    """

    def __init__(self, config: TrainConfig, out: Path) -> None:
        self.config, self.out = config, out
        self.accelerator = Accelerator(mixed_precision=config.precision, cpu=pick_device().type == CPU.type)
        torch.manual_seed(config.seed)
        self.inner = TinyNetwork(config.network)
        if config.init:
            load_strict(self.inner, load_file(Path(config.init) / "model.safetensors"), config.init)
        self.inner = self.inner.to(self.accelerator.device)
        self.inner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = TinyNetwork(config.network).to(self.accelerator.device).eval().requires_grad_(False)
        self.average.load_state_dict(self.inner.state_dict())
        if config.train == "camera":
            self.inner.requires_grad_(False).head.requires_grad_(True)
        trained = [p for p in self.inner.parameters() if p.requires_grad]
        decayed = [p for p in trained if p.ndim > 1]
        plain = [p for p in trained if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
        self.network, self.optimizer = self.accelerator.prepare(self.inner, optimizer)
        self.step = 0
        self.sources = _sources(config)
        self.val = PackedData(config.val) if config.val else None

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine to 1 % of the peak."""
        c = self.config
        if self.step < c.warmup_steps:
            return c.learning_rate * (self.step + 1) / c.warmup_steps
        share = (self.step - c.warmup_steps) / max(1, c.steps - c.warmup_steps)
        return c.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))

    def batch(self, step: int) -> Batch:
        """This process's share of the step's pictures."""
        c, ranks = self.config, self.accelerator.num_processes
        return make_batch(
            self.sources,
            seed=c.seed * 1000 + self.accelerator.process_index,
            step=step,
            batch_size=max(1, c.batch_size // ranks),
            points=c.points,
            free=c.free_points,
            surface=c.surface_points,
            image_size=c.network.image_size,
            contraction=c.network.depth_contraction,
            augment=c.augment,
        )

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One optimiser step; returns the loss's parts. Raises `FloatingPointError` when the loss is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        batch = batch.to(self.accelerator.device)
        with self.accelerator.autocast():
            if self.config.train == "camera":
                total, parts = camera_loss(self.inner, batch)
            else:
                total, parts = losses(self.network, self.inner, batch, self.config.loss)
        if not torch.isfinite(total):
            raise FloatingPointError(f"step {self.step}: the loss is {total.item()}")
        self.accelerator.backward(total)
        norm = self.accelerator.clip_grad_norm_(self.inner.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._average()
        self.step += 1
        return {name: value.item() for name, value in {**parts, "loss": total.detach(), "norm": norm}.items()}

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for target, value in zip(self.average.parameters(), self.inner.parameters(), strict=True):
            target.lerp_(value, 1 - decay)

    def save(self) -> None:
        """Write the checkpoint and the usable model, each whole."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "step": self.step,
            "network": self.inner.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with written_whole(self.out / "checkpoint.pt") as aside:
            torch.save(state, aside)
        self.save_model()

    def save_model(self) -> None:
        """Write ``model/`` with the averaged weights in fp16."""
        extra = {"training": {"steps": self.step, "pictures": self.step * self.config.batch_size}}
        TinyLRM(self.average).save(self.out / "model", extra, torch.float16)

    def resume(self) -> bool:
        """Load the checkpoint when there is one."""
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return False
        state: dict[str, Any] = torch.load(path, map_location=self.accelerator.device, weights_only=True)
        self.step = state["step"]
        self.inner.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        return True

    def run(self) -> None:
        """Train to the last step."""
        config, started = self.config, time.monotonic()
        first = self.step
        with ThreadPoolExecutor(1) as pool:
            upcoming: Future[Batch] = pool.submit(self.batch, self.step)
            while self.step < config.steps:
                batch = upcoming.result()
                upcoming = pool.submit(self.batch, self.step + 1)
                parts = self.train_step(batch)
                if self.step % config.log_every == 0 or self.step == config.steps:
                    rate = (self.step - first) * config.batch_size / (time.monotonic() - started)
                    left = (config.steps - self.step) * config.batch_size / rate
                    self.log({**parts, "lr": self.learning_rate(), "pictures_per_s": rate, "left_s": left})
                if self.val is not None and (self.step % config.val_every == 0 or self.step == config.steps):
                    self.log(val_iou(self.average, self.val))
                if self.step % config.save_every == 0 or self.step == config.steps:
                    self.save()

    def log(self, values: dict[str, float]) -> None:
        """Append a line to ``log.jsonl`` and print it."""
        if not self.accelerator.is_main_process:
            return
        row = {"step": self.step, **{name: round(value, 6) for name, value in values.items()}}
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(" ".join(f"{name} {value:g}" for name, value in row.items()), flush=True)


def _sources(config: TrainConfig) -> list[tuple[PackedData, float]]:
    weights = config.data_weights or tuple(1.0 for _ in config.data)
    if not config.data or len(weights) != len(config.data):
        raise SettingsError(
            f"data names {len(config.data)} folders, data_weights {len(weights)}; they must be equal and not 0."
        )
    return [(PackedData(folder), float(weight)) for folder, weight in zip(config.data, weights, strict=True)]


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML recipe; ``overrides`` are ``key=value`` or ``part.key=value`` with YAML values.

    Raises:
        SettingsError: not YAML, or an override without ``=``.
        WeightsError: an unknown key or a value of a wrong type.
    """
    try:
        values = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: not a readable YAML recipe ({error}).") from error
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise SettingsError(f"{override!r}: an override is written key=value.")
        target = values
        *parents, last = name.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = yaml.safe_load(text)
    return config_from_dict(TrainConfig, values, str(path))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.lrm", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML recipe")
    parser.add_argument("-o", "--out", required=True, type=Path, help="run folder; resumes when it has a checkpoint")
    parser.add_argument("overrides", nargs="*", help="key=value, e.g. steps=100 network.width=64")
    args = parser.parse_args(argv)
    config = read_recipe(args.config, args.overrides)
    args.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, args.out)
    write_json_whole(args.out / "config.json", {"config": asdict(config), "versions": {"torch": torch.__version__}})
    resumed = trainer.resume()
    parameters = sum(p.numel() for p in trainer.inner.parameters())
    print(
        f"{'resumed at' if resumed else 'starting at'} step {trainer.step}, {parameters / 1e6:.1f}M parameters",
        flush=True,
    )
    trainer.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
