"""``python -m train.multiview --config train/recipes/tiny-views.yaml -o RUN``: train the embedded view generator.

The same command runs on the CPU and on GPUs (``accelerate launch -m train.multiview ...``). The run folder is that of
``train.lrm``: ``config.json``, ``log.jsonl``, ``checkpoint.pt`` to resume from, ``previews/``, and ``model/``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn

from multiview.devices import CPU, pick_device
from multiview.errors import SettingsError
from multiview.files import write_json_whole, written_whole
from multiview.ring import mirrored_order
from multiview.tinyviews import (
    TinyViewsConfig,
    TinyViewsNetwork,
    blank_sketches,
    camera_facts,
    decode_views,
    denoise,
    encode_sketches,
    encode_views,
    path,
    preconditioning,
    regress,
    save_network,
    small_photo,
)
from multiview.weights import config_from_dict, load_strict

from .optim import Muon, parameter_groups

SMALLEST_TIME = 0.02


@dataclass(frozen=True)
class ViewsTrainConfig:
    """A training run of the view generator.

    Attributes:
        data: folders of ``train.rings``, all rows drawn alike.
        val: such a folder, or empty; never trained on.
        steps, batch_size, learning_rate, warmup_steps, weight_decay, clip_norm: as `train.lrm.TrainConfig`.
        ema_decay: of the averaged weights, which are what is saved for use.
        regress_share: share of the rows that are asked for the mean, without any noise.
        blank_share: share of the rows that get neither photo nor sketches, for guidance.
        init: folder with a ``model.safetensors`` to start from, or empty.
    """

    data: tuple[str, ...]
    val: str = ""
    steps: int = 6000
    batch_size: int = 8
    learning_rate: float = 1e-3
    warmup_steps: int = 60
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    ema_decay: float = 0.998
    regress_share: float = 0.3
    blank_share: float = 0.04
    mirror: float = 0.5
    swap: float = 0.3
    seed: int = 0
    precision: str = "bf16"
    init: str = ""
    log_every: int = 25
    val_every: int = 500
    save_every: int = 250
    network: TinyViewsConfig = field(default_factory=TinyViewsConfig)


class RingData:
    """The arrays that ``train.rings`` wrote, mapped into memory.

    Raises:
        SettingsError: the folder is not finished.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        try:
            told = json.loads((folder / "rows.json").read_text("utf-8"))
            self.rows, self.data = int(told["rows"]), str(told.get("data", ""))
            names = ("photos", "sketches", "rings", "cameras", "sources")
            self.arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
        except (OSError, ValueError, KeyError) as error:
            raise SettingsError(
                f"{folder}: not packed rings ({error}). Make them with: python -m train.rings DATA -o {folder}"
            ) from error

    def row(self, index: int) -> dict[str, Tensor]:
        """``photo`` (4, S, S), ``sketches`` (6, 5, s, s), ``rings`` (6, 4, s, s) in [0, 1]; ``camera`` (2,)."""
        a = self.arrays
        pictures = {
            "photo": torch.from_numpy(a["photos"][index].copy()).permute(2, 0, 1).float() / 255,
            "sketches": torch.from_numpy(a["sketches"][index].copy()).permute(0, 3, 1, 2).float() / 255,
            "rings": torch.from_numpy(a["rings"][index].copy()).permute(0, 3, 1, 2).float() / 255,
        }
        elevation, _, focal = (float(x) for x in a["cameras"][index])
        return {**pictures, "camera": camera_facts(elevation, focal)}


@dataclass(frozen=True)
class RingBatch:
    """B rows, encoded as the network takes them, and the random numbers of the step."""

    photo: Tensor
    sketches: Tensor
    rings: Tensor
    camera: Tensor
    noise: Tensor
    time: Tensor

    def to(self, device: torch.device) -> RingBatch:
        """The same batch on another device."""
        return RingBatch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


def make_batch(sources: Sequence[RingData], config: ViewsTrainConfig, step: int, share: tuple[int, int]) -> RingBatch:
    """The batch of one step for process ``share[0]`` of ``share[1]``; config and step decide all that is in it."""
    rng = np.random.default_rng([config.seed, share[0], step])
    ends = np.cumsum([source.rows for source in sources])
    rows = []
    for _ in range(max(1, config.batch_size // share[1])):
        pick = int(rng.integers(ends[-1]))
        which = int(np.searchsorted(ends, pick, side="right"))
        rows.append(_augmented(sources[which].row(pick - (ends[which] - sources[which].rows)), config, rng))
    joined = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    count = len(rows)
    time_ = SMALLEST_TIME + (1 - SMALLEST_TIME) * torch.rand(count, generator=generator)
    told = torch.ones(count, 2)
    mean = torch.rand(count, generator=generator) < config.regress_share
    blank = (torch.rand(count, generator=generator) < config.blank_share) & ~mean
    rings = encode_views(joined["rings"])
    noise = torch.randn(rings.shape, generator=generator)
    time_[mean], told[mean, 0], told[blank, 1], noise[mean] = 1.0, 0.0, 0.0, 0.0
    sketches, photo = encode_sketches(joined["sketches"]), small_photo(joined["photo"], rings.shape[-1])
    sketches[blank], photo[blank] = blank_sketches(sketches[blank]), 0.0
    camera = torch.cat([joined["camera"] * told[:, 1:], told], 1)
    return RingBatch(photo, sketches, rings, camera, noise, time_)


def _augmented(row: dict[str, Tensor], config: ViewsTrainConfig, rng: np.random.Generator) -> dict[str, Tensor]:
    """Mirror images and exchanged colour channels, of everything alike."""
    if rng.random() < config.mirror:
        order = mirrored_order()
        row = {
            **row, "photo": row["photo"].flip(-1), "sketches": row["sketches"][order].flip(-1),
            "rings": row["rings"][order].flip(-1),
        }  # fmt: skip
    if rng.random() < config.swap:
        order = rng.permutation(3).tolist()
        row = {
            **row, "photo": row["photo"][[*order, 3]], "sketches": row["sketches"][:, [*order, 3, 4]],
            "rings": row["rings"][:, [*order, 3]],
        }  # fmt: skip
    return row


def views_loss(network: nn.Module, config: TinyViewsConfig, batch: RingBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error of the preconditioned prediction, whose target has about unit size at every noise level."""
    share, spread = path(batch.time)
    scale, kept, strength = preconditioning(config, batch.time)
    rough = batch.sketches[:, :, :4]
    missing = share * (batch.rings - rough) + spread * batch.noise
    target = (batch.rings - rough - kept * missing) / strength
    made = network(scale * missing, batch.sketches, batch.photo, batch.time, batch.camera)
    each = (made.float() - target).square().mean((1, 2, 3, 4))
    mean = batch.camera[:, 2] == 0
    parts = {"regress": each[mean].mean(), "denoise": each[~mean].mean()}
    return each.mean(), {name: value.detach() for name, value in parts.items() if torch.isfinite(value)}


def gradient_energy(images: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels of (..., C, H, W)."""
    across, down = images.diff(dim=-1).square(), images.diff(dim=-2).square()
    return across.mean((-3, -2, -1)) + down.mean((-3, -2, -1))


def view_scores(made: Tensor, truth: Tensor) -> dict[str, float]:
    """Straight RGBA views (..., 4, s, s) against the truth.

    Returns:
        ``silhouette_iou``; ``psnr`` over white in dB, the mean of the views'; ``gradient_energy``, a share of the
        truth's.
    """
    white = [v[..., :3, :, :] * v[..., 3:, :, :] + 1 - v[..., 3:, :, :] for v in (made, truth)]
    a, b = made[..., 3, :, :] > 0.5, truth[..., 3, :, :] > 0.5
    overlap = (a & b).sum((-2, -1)) / (a | b).sum((-2, -1)).clamp(min=1)
    error = (white[0] - white[1]).square().mean((-3, -2, -1)).clamp(min=1e-6)
    energy = gradient_energy(white[0]).mean() / gradient_energy(white[1]).mean()
    return {
        "silhouette_iou": float(overlap.mean()), "psnr": float((-10 * error.log10()).mean()),
        "gradient_energy": float(energy),
    }  # fmt: skip


@torch.no_grad()
def validate(network: TinyViewsNetwork, data: RingData, limit: int = 40, steps: int = 10) -> dict[str, float]:
    """Scores of the regressor and of drawn views on unseen objects, every second row of ``data``."""
    rows = [data.row(i) for i in range(0, data.rows, 2)][:limit]
    device, config = next(network.parameters()).device, network.config
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {}
    for start in range(0, len(rows), 8):
        some = {key: torch.stack([row[key] for row in rows[start : start + 8]]).to(device) for key in rows[0]}
        truth = some["rings"]
        sketches, photo = encode_sketches(some["sketches"]), small_photo(some["photo"], truth.shape[-1])
        noise = torch.randn(truth.shape, generator=generator).to(device)
        answers = {
            "mean": regress(network, config, sketches, photo, some["camera"]),
            "drawn": denoise(network, config, noise, sketches, photo, some["camera"], steps),
        }
        for name, made in answers.items():
            for key, value in view_scores(decode_views(made), truth).items():
                found.setdefault(f"val_{name}_{key}", []).append(value * len(truth))
    return {key: sum(values) / len(rows) for key, values in found.items()}


def write_preview(network: TinyViewsNetwork, data: RingData, file: Path, rows: int = 8, steps: int = 10) -> None:
    """A sheet: for each of some objects the photo, and below each other sketches, mean, drawn views and truth."""
    from PIL import Image

    lines = []
    for index in np.linspace(0, data.rows - 1, rows).astype(int):
        row = data.row(int(index))
        sketches, photo = (
            encode_sketches(row["sketches"])[None],
            small_photo(row["photo"][None], row["rings"].shape[-1]),
        )
        camera, config = row["camera"][None], network.config
        noise = torch.randn(1, *row["rings"].shape, generator=torch.Generator().manual_seed(int(index)))
        mean = decode_views(regress(network, config, sketches, photo, camera))[0]
        drawn = decode_views(denoise(network, config, noise, sketches, photo, camera, steps))[0]
        seen = decode_views(photo)
        for views in (decode_views(sketches[0, :, :4]), mean, drawn, row["rings"]):
            strip = torch.cat([seen, views])
            white = strip[:, :3] * strip[:, 3:] + 1 - strip[:, 3:]
            lines.append(torch.cat(list(white), -1))
    sheet = torch.cat(lines, -2).permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy()
    with written_whole(file) as aside:
        Image.fromarray(sheet).save(aside, format="PNG")


class ViewsTrainer:
    """One run: network, averaged copy, optimiser, schedule and where they are in time.

    Args:
        config: the run.
        out: run folder.
    """

    def __init__(self, config: ViewsTrainConfig, out: Path) -> None:
        self.config, self.out = config, out
        out.mkdir(parents=True, exist_ok=True)
        self.accelerator = Accelerator(mixed_precision=config.precision, cpu=pick_device().type == CPU.type)
        torch.manual_seed(config.seed)
        inner = TinyViewsNetwork(config.network)
        if config.init:
            load_strict(inner, load_file(Path(config.init) / "model.safetensors"), config.init)
        self.inner = inner.to(self.accelerator.device)
        self.inner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = TinyViewsNetwork(config.network).to(self.accelerator.device).eval().requires_grad_(False)
        self.average.load_state_dict(self.inner.state_dict())
        optimizer = Muon(parameter_groups(self.inner, config.weight_decay), config.learning_rate)
        self.network, self.optimizer = self.accelerator.prepare(self.inner, optimizer)
        self.sources = [RingData(folder) for folder in config.data]
        self.val = RingData(config.val) if config.val else None
        self.share = (self.accelerator.process_index, self.accelerator.num_processes)
        self.step = 0

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine to 2 % of the peak."""
        c = self.config
        if self.step < c.warmup_steps:
            return c.learning_rate * (self.step + 1) / c.warmup_steps
        share = (self.step - c.warmup_steps) / max(1, c.steps - c.warmup_steps)
        return c.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))

    def train_step(self, batch: RingBatch) -> dict[str, float]:
        """One optimiser step; returns the loss's parts. Raises `FloatingPointError` when the loss is not finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        with self.accelerator.autocast():
            total, parts = views_loss(self.network, self.config.network, batch.to(self.accelerator.device))
        if not torch.isfinite(total):
            raise FloatingPointError(f"step {self.step}: the loss is {total.item()}")
        self.accelerator.backward(total)
        norm = self.accelerator.clip_grad_norm_(self.inner.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for target, value in zip(self.average.parameters(), self.inner.parameters(), strict=True):
                target.lerp_(value, 1 - decay)
        self.step += 1
        return {name: value.item() for name, value in {**parts, "loss": total.detach(), "norm": norm}.items()}

    def save(self) -> None:
        """Write the checkpoint and the usable model, each whole."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "step": self.step, "network": self.inner.state_dict(), "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }  # fmt: skip
        # The model first: killed in between, the run goes on from the older checkpoint and writes the same model again.
        extra = {"training": {"steps": self.step, "rings": self.step * self.config.batch_size}}
        save_network(self.average, self.out / "model", extra, torch.float16)
        with written_whole(self.out / "checkpoint.pt") as aside:
            torch.save(state, aside)

    def resume(self) -> bool:
        """Load the checkpoint when there is one."""
        path_ = self.out / "checkpoint.pt"
        if not path_.exists():
            return False
        state: dict[str, Any] = torch.load(path_, map_location=self.accelerator.device, weights_only=True)
        self.step = state["step"]
        self.inner.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        return True

    def run(self) -> None:
        """Train to the last step."""
        config, started, first = self.config, time.monotonic(), self.step
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(make_batch, self.sources, config, self.step, self.share)
            while self.step < config.steps:
                batch = ahead.result()
                ahead = pool.submit(make_batch, self.sources, config, self.step + 1, self.share)
                parts = self.train_step(batch)
                last = self.step == config.steps
                if self.step % config.log_every == 0 or last:
                    rate = (self.step - first) * config.batch_size / (time.monotonic() - started)
                    left = (config.steps - self.step) * config.batch_size / rate
                    self.log({**parts, "lr": self.learning_rate(), "rings_per_s": rate, "left_s": left})
                if self.step % config.save_every == 0 or last:
                    self.save()
                if self.val is not None and (self.step % config.val_every == 0 or last):
                    self.validate(self.val)

    def validate(self, data: RingData) -> None:
        """Log `validate` of the averaged weights and write a preview."""
        if not self.accelerator.is_main_process:
            return
        self.log(validate(self.average, data))
        file = self.out / "previews" / f"{self.step:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_preview(self.average, data, file)

    def log(self, values: dict[str, float]) -> None:
        """Append a line to ``log.jsonl`` and print it."""
        if not self.accelerator.is_main_process:
            return
        row = {"step": self.step, **{name: round(value, 6) for name, value in values.items()}}
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(" ".join(f"{name} {value:g}" for name, value in row.items()), flush=True)


def read_views_recipe(path_: str | Path, overrides: Sequence[str] = ()) -> ViewsTrainConfig:
    """Read a YAML recipe; ``overrides`` are ``key=value`` or ``part.key=value`` with YAML values.

    Raises:
        SettingsError: not YAML, or an override without ``=``.
        WeightsError: an unknown key or a value of a wrong type.
    """
    try:
        values = yaml.safe_load(Path(path_).read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path_}: not a readable YAML recipe ({error}).") from error
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise SettingsError(f"{override!r}: an override is written key=value.")
        target = values
        *parents, last = name.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = yaml.safe_load(text)
    return config_from_dict(ViewsTrainConfig, values, str(path_))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.multiview", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML recipe")
    parser.add_argument("-o", "--out", required=True, type=Path, help="run folder; resumes when it has a checkpoint")
    parser.add_argument("overrides", nargs="*", help="key=value, e.g. steps=100 network.blocks=2")
    args = parser.parse_args(argv)
    config = read_views_recipe(args.config, args.overrides)
    trainer = ViewsTrainer(config, args.out)
    write_json_whole(args.out / "config.json", {"config": asdict(config), "versions": {"torch": torch.__version__}})
    resumed = trainer.resume()
    parameters = sum(p.numel() for p in trainer.inner.parameters())
    print(
        f"{'resumed' if resumed else 'starting'} at step {trainer.step}, {parameters / 1e6:.1f}M parameters", flush=True
    )
    trainer.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
