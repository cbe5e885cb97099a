"""``python -m train.lrm --config train/recipes/tiny.yaml``: train the embedded reconstruction model.

The same command runs on the CPU and on GPUs (``accelerate launch -m train.lrm ...``). It writes into the run folder:
``config.json`` first, ``log.jsonl`` as it goes (the same in ``tensorboard/`` where TensorBoard is installed),
``previews/`` of unseen objects, ``checkpoint.pt`` to resume from, and ``model/``, which `trilift lift --model` and
``ImageTo3D.from_pretrained`` read. Started again, it goes on where the last checkpoint was.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
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
from lrm.tiny import (
    PLANE_PAIRS,
    TinyConfig,
    TinyLRM,
    TinyNetwork,
    decode_camera,
    photo_projection,
    project_points,
    ray_points,
)
from lrm.volume import march
from multiview.devices import CPU, pick_device
from multiview.errors import SettingsError
from multiview.files import write_json_whole, written_whole
from multiview.weights import config_from_dict, load_strict

from .batches import (
    Augment,
    Batch,
    PackedData,
    PointCounts,
    light,
    make_batch,
    object_projection,
    resized,
    transformed,
    upright_frame,
)
from .optim import Muon, parameter_groups
from .preview import write_preview


@dataclass(frozen=True)
class LossWeights:
    """What each part of the loss counts."""

    occupancy: float = 1.0
    overlap: float = 0.3
    color: float = 0.6
    camera: float = 0.1
    rendered: float = 0.5


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        data: folders of ``train.prepare``, and `data_weights` how often each is drawn from.
        val: such a folder, or empty; never trained on.
        steps, batch_size, learning_rate, warmup_steps, weight_decay, clip_norm: of AdamW with a cosine schedule.
        ema_decay: of the averaged weights, which are what is saved for use.
        counts: points per object.
        several_views: share of the steps with 2 to ``most_views`` views of fewer objects, in place of one.
        known_camera: chance that a single photo's camera is told, else it is what the camera head guesses.
        rendered_share: share of the steps, the last ones, that also render patches of another view.
        workers: processes that make batches; 0 for a thread of this one, enough beside two cores that train.
        precision: ``no``, ``bf16`` or ``fp16``, as accelerate names them.
        init: a folder of `TinyLRM.save` to start from, or empty.
        init_head: likewise, for the camera head alone.
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
    counts: PointCounts = field(default_factory=PointCounts)
    several_views: float = 0.2
    most_views: int = 4
    known_camera: float = 0.3
    rendered_share: float = 0.2
    seed: int = 0
    workers: int = 0
    precision: str = "bf16"
    init: str = ""
    init_head: str = ""
    train: Literal["all", "camera"] = "all"
    log_every: int = 25
    val_every: int = 500
    save_every: int = 250
    network: TinyConfig = field(default_factory=TinyConfig)
    augment: Augment = field(default_factory=Augment)
    loss: LossWeights = field(default_factory=LossWeights)


def plane_coordinates(config: TinyConfig, projections: Tensor, points: Tensor) -> Tensor:
    """Upright points (B, N, 3) → the (B, N, 5) of `lrm.tiny.PictureFrame`, by first-view projections (B, 3, 4)."""
    return torch.cat([points / points.new_tensor(config.extents), project_points(projections, points)], -1)


def decoded(network: TinyNetwork, planes: Tensor, projections: Tensor, points: Tensor) -> Tensor:
    """Decoder outputs (B, N, 4), raw, at upright points (B, N, 3)."""
    coordinates = plane_coordinates(network.config, projections, points)
    return network.decoder(sample_planes(planes, coordinates, pairs=PLANE_PAIRS).flatten(-2))


def told_projections(camera: Tensor, batch: Batch) -> Tensor:
    """The projections that the network sees (B, V, 3, 4): the true ones, or of what its head guessed (B, 2)."""
    if batch.images.shape[1] > 1:
        return batch.projections
    guessed = photo_projection(*decode_camera(camera.detach()))[:, None]
    return torch.where(batch.known[:, None, None, None] > 0, batch.projections, guessed)


def losses(
    network: nn.Module, inner: TinyNetwork, batch: Batch, weights: LossWeights, counts: PointCounts
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch and its parts.

    Occupancy is binary cross-entropy over points with a known label, overlap one less the soft intersection over union
    of the uniform points, colour the absolute error near the surface, the camera head a smooth absolute error,
    rendered the absolute error of colour and matte over patches of one more view.
    """
    camera = inner.camera(batch.images[:, 0])
    projections = told_projections(camera, batch)
    planes = network(batch.images, projections, batch.known)
    with torch.autocast(planes.device.type, enabled=False):
        camera = camera.float()
        raw = decoded(inner, planes, projections[:, 0], torch.cat([batch.points, batch.surface], 1))
        count = batch.points.shape[1]
        each = F.binary_cross_entropy_with_logits(raw[:, :count, 0], batch.occupancy, reduction="none")
        soft, truth = torch.sigmoid(raw[:, : counts.uniform, 0]), batch.occupancy[:, : counts.uniform]
        both = (soft * truth).sum(1)
        parts = {
            "occupancy": (each * batch.weight).sum() / batch.weight.sum(),
            "overlap": (1 - (both + 1) / (soft.sum(1) + truth.sum(1) - both + 1)).mean(),
            "color": (torch.sigmoid(raw[:, count:, 1:]) - batch.colors).abs().mean(),
            "camera": F.smooth_l1_loss(camera, batch.camera, beta=0.3),
        }
        if batch.target is not None:
            parts["rendered"] = rendered_loss(inner, planes, projections[:, 0], batch)
        total = torch.stack([getattr(weights, name) * value for name, value in parts.items()]).sum()
    return total, {name: value.detach() for name, value in parts.items()}


PATCH_SIDE, PATCH_STRIDE, RAY_SAMPLES = 8, 3, 40


def rendered_loss(inner: TinyNetwork, planes: Tensor, projections: Tensor, batch: Batch) -> Tensor:
    """Absolute error of volume-rendered patches against the batch's target view, colour over its mean background.

    One patch of `PATCH_SIDE` x `PATCH_SIDE` rays, every `PATCH_STRIDE`-th pixel, about a random place of the object;
    its position derives from the batch, so that a resumed run draws the same.
    """
    assert batch.target is not None
    size = batch.target.shape[-1]
    seeds = (batch.points[:, 0].abs() * 1e4).frac()  # (B, 3) as good as random
    corner = ((size - PATCH_SIDE * PATCH_STRIDE) * seeds[:, :2]).long()
    steps = torch.arange(PATCH_SIDE, device=planes.device) * PATCH_STRIDE
    rows, columns = corner[:, :1] + steps, corner[:, 1:] + steps
    index = (rows[:, :, None] * size + columns[:, None]).flatten(1)  # (B, R)
    wanted = batch.target.flatten(2).gather(2, index[:, None].expand(-1, 4, -1)).transpose(1, 2)
    right = ((columns + 0.5) / size * 2 - 1)[:, None].expand(-1, PATCH_SIDE, -1).flatten(1)
    up = (1 - (rows + 0.5) / size * 2)[:, :, None].expand(-1, -1, PATCH_SIDE).flatten(1)
    points, delta = ray_points(
        batch.target_projection, torch.stack([right, up], -1), inner.config.scene_radius, RAY_SAMPLES
    )
    raw = decoded(inner, planes, projections, points.flatten(1, 2)).unflatten(1, (-1, RAY_SAMPLES))
    density = inner.config.output_rule.to_density(raw[..., 0])
    color, matte, _ = march(density, torch.sigmoid(raw[..., 1:]), delta)
    return (matte - wanted[..., 3]).abs().mean() + (color - wanted[..., :3] * wanted[..., 3:]).abs().mean()


def camera_loss(inner: TinyNetwork, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The camera's part of `losses` alone, without running the rest of the network."""
    loss = F.smooth_l1_loss(inner.camera(batch.images[:, 0]).float(), batch.camera, beta=0.3)
    return loss, {"camera": loss.detach()}


@torch.no_grad()
def val_iou(network: TinyNetwork, data: PackedData, limit: int = 100) -> dict[str, float]:
    """Mean IoU over uniform points of unseen objects, first view; and the camera head's errors.

    ``val_iou`` is that of the photo alone, ``val_iou_known`` with its camera told, ``val_iou_views`` with all packed
    views. The threshold is that of the config. It is a gauge for training: `trilift eval` is the instrument.
    """
    found: dict[str, list[float]] = {}
    rng = np.random.default_rng(0)
    plain = Augment(lit=0, mirror=0, swap=0, exposure=0, ragged=0)
    half, device = data.arrays["points"].shape[1] // 2, network.image_position.device
    logit = math.log(network.config.surface_occupancy / (1 - network.config.surface_occupancy))
    for obj in range(min(limit, len(data))):
        rows = data.arrays["cameras"][obj]
        pictures = [torch.from_numpy(data.arrays["views"][obj, v].copy()) for v in range(min(4, len(rows)))]
        images = torch.stack([resized(light(p, rng, plain), network.config.image_size) for p in pictures]).to(device)
        head = network.camera(images[:1])
        truth = torch.from_numpy(data.arrays["inside"][obj, :half].copy())
        labelled = data.arrays["points"][obj, :half].astype(np.float32)
        for name, views in (("val_iou", 1), ("val_iou_known", 1), ("val_iou_views", len(images))):
            frame = upright_frame(rows[0], centred=views == 1)
            told = np.stack([object_projection(row) @ np.linalg.inv(frame) for row in rows[:views]])
            projections = torch.from_numpy((told / told[:, 2:, 3:]).astype(np.float32)).to(device)
            if name == "val_iou":
                projections = photo_projection(*decode_camera(head))
            known = torch.full((1,), float(name != "val_iou"), device=device)
            planes = network(images[None, :views], projections[None], known)
            points = torch.from_numpy(transformed(frame, labelled)).to(device)
            guess = decoded(network, planes, projections[:1], points[None])[0, :, 0].cpu() > logit
            union = int((guess | truth).sum())
            found.setdefault(name, []).append(float((guess & truth).sum()) / union if union else 1.0)
        elevation, focal = decode_camera(head)
        found.setdefault("val_elevation_error_deg", []).append(abs(float(elevation) - float(rows[0][1])))
        found.setdefault("val_log_focal_error", []).append(abs(float(focal.log()) + math.log(float(rows[0][5]))))
    return {name: float(np.mean(values)) for name, values in found.items()}


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
        if config.init_head:
            state = load_file(Path(config.init_head) / "model.safetensors")
            head = {k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")}
            load_strict(self.inner.head, head, config.init_head)
        self.inner = self.inner.to(self.accelerator.device)
        self.inner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = TinyNetwork(config.network).to(self.accelerator.device).eval().requires_grad_(False)
        self.average.load_state_dict(self.inner.state_dict())
        if config.train == "camera":
            self.inner.requires_grad_(False).head.requires_grad_(True)
        optimizer = Muon(parameter_groups(self.inner, config.weight_decay), config.learning_rate)
        self.network, self.optimizer = self.accelerator.prepare(self.inner, optimizer)
        self.step = 0
        self.sources = _sources(config)
        self.share = (self.accelerator.process_index, self.accelerator.num_processes)
        self.val = PackedData(config.val) if config.val else None
        self.board = _tensorboard(out) if self.accelerator.is_main_process else None

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine to 1 % of the peak."""
        c = self.config
        if self.step < c.warmup_steps:
            return c.learning_rate * (self.step + 1) / c.warmup_steps
        share = (self.step - c.warmup_steps) / max(1, c.steps - c.warmup_steps)
        return c.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))

    def batch(self, step: int) -> Batch:
        """This process's share of the step's pictures."""
        return batch_of_step(self.config, self.sources, self.share, step)

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One optimiser step; returns the loss's parts. Raises `FloatingPointError` when the loss is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        batch = batch.to(self.accelerator.device)
        with self.accelerator.autocast():
            if self.config.train == "camera":
                total, parts = camera_loss(self.inner, batch)
            else:
                total, parts = losses(self.network, self.inner, batch, self.config.loss, self.config.counts)
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
        with self._batches() as batches:
            while self.step < config.steps:
                batch = next(batches)
                parts = self.train_step(batch)
                if self.step % config.log_every == 0 or self.step == config.steps:
                    rate = (self.step - first) * config.batch_size / (time.monotonic() - started)
                    left = (config.steps - self.step) * config.batch_size / rate
                    self.log({**parts, "lr": self.learning_rate(), "pictures_per_s": rate, "left_s": left})
                if self.val is not None and (self.step % config.val_every == 0 or self.step == config.steps):
                    self.validate(self.val)
                if self.step % config.save_every == 0 or self.step == config.steps:
                    self.save()

    @contextmanager
    def _batches(self) -> Iterator[Iterator[Batch]]:
        """Batches from the present step on, made ahead of time by a thread or by ``workers`` processes."""
        config = self.config
        pool: Executor
        if config.workers:
            context = torch.multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(config.workers, context, _start_worker, (config, self.share))
            make: Callable[[int], Batch] = _batch_in_worker
        else:
            pool, make = ThreadPoolExecutor(1), self.batch

        def batches() -> Iterator[Batch]:
            ahead = deque(pool.submit(make, self.step + i) for i in range(1 + 2 * config.workers))
            last = self.step + len(ahead)
            while True:
                yield ahead.popleft().result()
                ahead.append(pool.submit(make, last))
                last += 1

        try:
            yield batches()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def validate(self, data: PackedData) -> None:
        """Log `val_iou` of the averaged weights and write a preview."""
        if not self.accelerator.is_main_process:
            return
        self.log(val_iou(self.average, data))
        picture = write_preview(self.out / "previews" / f"{self.step:06d}.png", TinyLRM(self.average), data)
        if self.board is not None:
            self.board.add_image("preview", picture, self.step, dataformats="HWC")

    def log(self, values: dict[str, float]) -> None:
        """Append a line to ``log.jsonl``, print it and hand it to TensorBoard."""
        if not self.accelerator.is_main_process:
            return
        row = {"step": self.step, **{name: round(value, 6) for name, value in values.items()}}
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(" ".join(f"{name} {value:g}" for name, value in row.items()), flush=True)
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, self.step)


def batch_of_step(
    config: TrainConfig, sources: Sequence[tuple[PackedData, float]], share: tuple[int, int], step: int
) -> Batch:
    """The batch of one step for process ``share[0]`` of ``share[1]``; config and step decide all that is in it."""
    rank, ranks = share
    pictures = max(1, config.batch_size // ranks)
    rng = np.random.default_rng([config.seed, step, 1])
    views = int(rng.integers(2, config.most_views + 1)) if rng.random() < config.several_views else 1
    return make_batch(
        sources,
        seed=config.seed * 1000 + rank,
        step=step,
        batch_size=max(1, pictures // views),
        views=views,
        counts=config.counts,
        image_size=config.network.image_size,
        scene_radius=config.network.scene_radius,
        augment=config.augment,
        known=config.known_camera,
        target=step >= config.steps * (1 - config.rendered_share),
    )


_in_worker: dict[str, Any] = {}


def _start_worker(config: TrainConfig, share: tuple[int, int]) -> None:
    """Open the data in a process that makes batches; one thread each, they are many."""
    torch.set_num_threads(1)
    _in_worker.update(config=config, share=share, sources=_sources(config))


def _batch_in_worker(step: int) -> Batch:
    return batch_of_step(_in_worker["config"], _in_worker["sources"], _in_worker["share"], step)


def _tensorboard(out: Path) -> Any:
    """A writer into ``out/tensorboard``, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"))


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
