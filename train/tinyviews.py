"""Training the embedded view generator: rows of ``train.rings``, its loss and its trainer; see ``train.multiview``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from multiview.errors import SettingsError
from multiview.files import written_whole
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
from multiview.weights import load_strict

from .config import RunConfig, read_config
from .optim import Muon, parameter_groups
from .trainer import BaseTrainer, BatchMaker, batch_length

SMALLEST_TIME = 0.02
_PROBED_TIMES = (0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class ViewsTrainConfig(RunConfig):
    """A training run of the view generator; see also `RunConfig`.

    Attributes:
        family: says that it is the embedded generator's recipe; may be left out.
        data: folders of ``train.rings``, all rows drawn alike.
        val: such a folder, or empty; never trained on.
        rehearsal: such folders of what the network shall not forget, and ``rehearsal_share`` of the rows from there.
        regress_share: share of the rows that are asked for the mean, without any noise.
        blank_share: share of the rows that get neither photo nor sketches, for guidance.
        mirror, swap: shares of the rows that are mirrored, and whose colour channels are exchanged.
        init: folder with a ``model.safetensors`` to start from, or empty.
    """

    family: Literal["tiny-views"] = "tiny-views"
    data: tuple[str, ...]
    val: str = ""
    rehearsal: tuple[str, ...] = ()
    rehearsal_share: float = 0.25
    batch_size: int = 8
    warmup_steps: int = 60
    weight_decay: float = 0.02
    ema_decay: float = 0.998
    regress_share: float = 0.3
    blank_share: float = 0.04
    mirror: float = 0.5
    swap: float = 0.3
    init: str = ""
    network: TinyViewsConfig = field(default_factory=TinyViewsConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise SettingsError("data names no folder. Give those of python -m train.rings: data=[FOLDER].")


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
    """B rows, encoded as the network takes them, and the random numbers of the step; see `TinyViewsNetwork`."""

    photo: Tensor
    sketches: Tensor
    rings: Tensor
    camera: Tensor
    noise: Tensor
    time: Tensor


@dataclass(frozen=True)
class RowChoice:
    """One row of a step's batch, and what is done to it alike in all its pictures.

    Attributes:
        source, index: which data, and which row of it.
        mirror: left and right are exchanged.
        channels: order of the colour channels, None for theirs.
    """

    source: RingData
    index: int
    mirror: bool = False
    channels: tuple[int, ...] | None = None

    def read(self) -> dict[str, Tensor]:
        """The row, see `RingData.row`."""
        row = self.source.row(self.index)
        if self.mirror:
            order = mirrored_order()
            row |= {name: row[name][order].flip(-1) for name in ("sketches", "rings")}
            row["photo"] = row["photo"].flip(-1)
        if self.channels is not None:
            colors = list(self.channels)
            row |= {"photo": row["photo"][[*colors, 3]], "rings": row["rings"][:, [*colors, 3]]}
            row["sketches"] = row["sketches"][:, [*colors, 3, 4]]
        return row


def choose_rows(
    sources: Sequence[RingData], rehearsal: Sequence[RingData], config: ViewsTrainConfig, rng: np.random.Generator
) -> list[RowChoice]:
    """The rows of a whole batch."""
    chosen = []
    for _ in range(config.batch_size):
        drawn = rehearsal if rehearsal and rng.random() < config.rehearsal_share else sources
        ends = np.cumsum([source.rows for source in drawn])
        pick = int(rng.integers(ends[-1]))
        which = int(np.searchsorted(ends, pick, side="right"))
        mirror = bool(rng.random() < config.mirror)
        channels = tuple(rng.permutation(3).tolist()) if rng.random() < config.swap else None
        chosen.append(RowChoice(drawn[which], pick - int(ends[which] - drawn[which].rows), mirror, channels))
    return chosen


def encoded_batch(rows: Sequence[RowChoice], noise: Tensor, time: Tensor, mean: Tensor, blank: Tensor) -> RingBatch:
    """Read rows and put the random numbers of a step to them.

    Args:
        rows: B of them.
        noise: (B, 6, 4, s, s) standard normal.
        time: (B,) in [0, 1].
        mean: (B,) bool, rows that are asked for the mean: no noise at all.
        blank: (B,) bool, rows that get neither photo nor sketches.
    """
    read = [row.read() for row in rows]
    joined = {key: torch.stack([row[key] for row in read]) for key in read[0]}
    time, noise, told = time.clone(), noise.clone(), torch.ones(len(rows), 2)
    rings = encode_views(joined["rings"])
    time[mean], told[mean, 0], told[blank, 1], noise[mean] = 1.0, 0.0, 0.0, 0.0
    sketches, photo = encode_sketches(joined["sketches"]), small_photo(joined["photo"], rings.shape[-1])
    sketches[blank], photo[blank] = blank_sketches(sketches[blank]), 0.0
    camera = torch.cat([joined["camera"] * told[:, 1:], told], 1)
    return RingBatch(photo, sketches, rings, camera, noise, time)


class RingBatches(BatchMaker[ViewsTrainConfig, RingBatch]):
    """Batches of rows; see `BatchMaker`. All of a step is drawn by every process, and a process reads its own rows."""

    def __init__(self, config: ViewsTrainConfig, share: tuple[int, int]) -> None:
        super().__init__(config, share)
        self.sources = [RingData(folder) for folder in config.data]
        self.rehearsal = [RingData(folder) for folder in config.rehearsal]
        self.shape = tuple(np.moveaxis(self.sources[0].arrays["rings"][0], -1, 1).shape)

    def objects(self, step: int) -> int:
        """See `BatchMaker`."""
        return self.config.batch_size

    def samples(self, step: int, retry: int, which: range) -> RingBatch:
        """See `BatchMaker`."""
        config = self.config
        rng = np.random.default_rng([config.seed, retry, step])
        rows = choose_rows(self.sources, self.rehearsal, config, rng)
        generator, count = torch.Generator().manual_seed(int(rng.integers(2**62))), len(rows)
        time = SMALLEST_TIME + (1 - SMALLEST_TIME) * torch.rand(count, generator=generator)
        mean = torch.rand(count, generator=generator) < config.regress_share
        blank = (torch.rand(count, generator=generator) < config.blank_share) & ~mean
        noise = torch.randn((count, *self.shape), generator=generator)
        part = slice(which.start, which.stop)
        return encoded_batch(rows[part], noise[part], time[part], mean[part], blank[part])

    def preflight(self) -> RingBatch:
        """See `BatchMaker`; the first row at several noise levels, the first of them without noise."""
        count = min(4, self.config.batch_size)
        return self._fixed([RowChoice(self.sources[0], 0)] * count, mean=1)

    def probe(self, rehearsal: bool) -> RingBatch | None:
        """See `BatchMaker`; rows spread over the first source, where noise hides most of the answer."""
        sources = self.rehearsal if rehearsal else self.sources
        if not sources:
            return None
        count = min(self.config.guards.probe_size, max(2, sources[0].rows))
        places = np.linspace(0, sources[0].rows - 1, count).astype(int)
        return self._fixed([RowChoice(sources[0], int(place)) for place in places], mean=0)

    def _fixed(self, rows: list[RowChoice], mean: int) -> RingBatch:
        """Rows with the same noise every time; the first ``mean`` get none."""
        count = len(rows)
        noise = torch.randn((count, *self.shape), generator=torch.Generator().manual_seed(self.config.seed))
        never = torch.zeros(count, dtype=torch.bool)
        return encoded_batch(rows, noise, torch.linspace(*_PROBED_TIMES, count), torch.arange(count) < mean, never)


def views_loss(network: nn.Module, config: TinyViewsConfig, batch: RingBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error of the preconditioned prediction, whose target has about unit size at every noise level.

    Returns:
        The mean over the batch's rows, and what the rows without noise (``regress``) and with it (``denoise``) put to
        it: the two add up to the first.
    """
    share, spread = path(batch.time)
    scale, kept, strength = preconditioning(config, batch.time)
    rough = batch.sketches[:, :, :4]
    missing = share * (batch.rings - rough) + spread * batch.noise
    target = (batch.rings - rough - kept * missing) / strength
    made = network(scale * missing, batch.sketches, batch.photo, batch.time, batch.camera)
    each = (made.float() - target).square().mean((1, 2, 3, 4))
    mean = batch.camera[:, 2] == 0
    parts = {"regress": (each * mean).mean(), "denoise": (each * ~mean).mean()}
    return each.mean(), {name: value.detach() for name, value in parts.items()}


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


@torch.no_grad()
def write_preview(network: TinyViewsNetwork, data: RingData, file: Path, rows: int = 8, steps: int = 10) -> np.ndarray:
    """A sheet: for each of some objects the photo, and below each other sketches, mean, drawn views and truth.

    Returns:
        The picture that was written, (H, W, 3) uint8.
    """
    from PIL import Image

    device = next(network.parameters()).device
    lines = []
    for index in np.linspace(0, data.rows - 1, rows).astype(int):
        row = data.row(int(index))
        sketches = encode_sketches(row["sketches"])[None].to(device)
        photo = small_photo(row["photo"][None], row["rings"].shape[-1]).to(device)
        camera, config = row["camera"][None].to(device), network.config
        noise = torch.randn(1, *row["rings"].shape, generator=torch.Generator().manual_seed(int(index))).to(device)
        mean = decode_views(regress(network, config, sketches, photo, camera))[0]
        drawn = decode_views(denoise(network, config, noise, sketches, photo, camera, steps))[0]
        seen = decode_views(photo)
        for views in (decode_views(sketches[0, :, :4]), mean, drawn, row["rings"].to(device)):
            strip = torch.cat([seen, views])
            white = strip[:, :3] * strip[:, 3:] + 1 - strip[:, 3:]
            lines.append(torch.cat(list(white), -1))
    sheet = torch.cat(lines, -2).permute(1, 2, 0).mul(255).round().to(torch.uint8).cpu().numpy()
    with written_whole(file) as aside:
        Image.fromarray(sheet).save(aside, format="PNG")
    return sheet


class ViewsTrainer(BaseTrainer[ViewsTrainConfig, RingBatch]):
    """One run of the embedded view generator; see `BaseTrainer`."""

    maker_type = RingBatches
    last_rate = 0.02
    inner: TinyViewsNetwork

    def __init__(self, config: ViewsTrainConfig, out: Path) -> None:
        super().__init__(config, out)
        self.val = RingData(config.val) if config.val else None

    def build(self) -> nn.Module:
        """See `BaseTrainer`."""
        network = TinyViewsNetwork(self.config.network)
        if self.config.init:
            load_strict(network, load_file(Path(self.config.init) / "model.safetensors"), self.config.init)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def choose_trained(self) -> None:
        """See `BaseTrainer`: everything."""

    def make_optimizer(self) -> torch.optim.Optimizer:
        """See `BaseTrainer`."""
        return Muon(parameter_groups(self.inner, self.config.weight_decay), self.config.learning_rate)

    def loss(self, batch: RingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `BaseTrainer`."""
        return views_loss(self.inner, self.config.network, batch)

    def exchanged(self, batch: RingBatch) -> RingBatch | None:
        """See `BaseTrainer`; photo and sketches go to the next row."""
        if min(sum(s.rows for s in self.maker.sources), batch_length(batch)) < 2:  # type: ignore[attr-defined]
            return None
        return replace(batch, photo=batch.photo.roll(1, 0), sketches=batch.sketches.roll(1, 0))

    def save_model(self) -> None:
        """Write ``model/`` with the averaged weights in fp16."""
        extra: dict[str, Any] = {"training": {"steps": self.step, "rings": self.step * self.config.batch_size}}
        with self.averaged_weights() as network:
            assert isinstance(network, TinyViewsNetwork)
            save_network(network, self.out / "model", extra, torch.float16)

    def validate(self) -> None:
        """See `BaseTrainer`: `validate` and a preview of unseen rows."""
        if self.val is None:
            return
        file = self.out / "previews" / f"{self.step:06d}.png"
        with self.averaged_weights() as network:
            assert isinstance(network, TinyViewsNetwork)
            self.log(validate(network, self.val))
            self.picture(file, write_preview(network, self.val, file))


def read_views_recipe(path_: str | Path, overrides: Sequence[str] = ()) -> ViewsTrainConfig:
    """Read a recipe of the embedded view generator; see `train.config.read_config`."""
    return read_config(ViewsTrainConfig, path_, overrides)
