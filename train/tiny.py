"""Training the embedded model: what a run is told, its losses, and its trainer; ``train.lrm`` is the command."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from lrm.field import sample_planes
from lrm.lora import LoraConfig, add_lora, merge_lora, save_adapter
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
from multiview.errors import SettingsError
from multiview.weights import load_strict

from .batches import (
    Augment,
    Batch,
    Drawn,
    PackedData,
    PointCounts,
    Source,
    light,
    make_batch,
    object_projection,
    resized,
    transformed,
    upright_frame,
)
from .config import RunConfig, folder_chances
from .guards import render_problem
from .optim import Muon, parameter_groups
from .preview import write_preview
from .trainer import BaseTrainer, BatchMaker, batch_length, plain_copy
from .warped import WarpedData, WarpSettings

LORA_TARGETS = ("qkv", "self_out", "query", "key_value", "cross_out")
_PROBE_STEP = 1 << 40  # a step that no run comes to, so that its pictures are its own


@dataclass(frozen=True)
class LossWeights:
    """What each part of the loss counts."""

    occupancy: float = 1.0
    overlap: float = 0.3
    color: float = 0.6
    camera: float = 0.1
    rendered: float = 0.5


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """A run of the embedded model; see also `RunConfig`.

    Attributes:
        data: folders of ``train.prepare``, and `data_weights` how often each is drawn from.
        val: such a folder, or empty; never trained on.
        rehearsal: such folders of what the model shall not forget, and ``rehearsal_share`` of the pictures from there.
        warped: folder of the meshes that ``data[0]`` was made from, to be warped anew at every step, or empty; and
            ``warped_weight`` how often, ``warps`` how.
        rings: folders of ``train.rings`` to draw views from as well, and ``rings_weight`` how often from all of them.
        counts: points per object.
        several_views: share of the steps with 2 to ``most_views`` views of fewer objects, in place of one.
        known_camera: chance that a single photo's camera is told, else it is what the camera head guesses.
        rendered_share: share of the steps, the last ones, that also render patches of another view.
        init: a folder of `TinyLRM.save` to start from, the name of an embedded model, or empty.
        init_head: likewise, for the camera head alone.
        train: ``all``; ``camera`` or ``decoder`` for the camera head or the field's decoder alone; ``lora`` for
            low-rank adapters. All other weights stay as ``init`` has them.
        freeze: names of parts that stay as they are, such as ``head`` or ``stages.0``.
        lora: the adapters.
    """

    data: tuple[str, ...]
    data_weights: tuple[float, ...] = ()
    val: str = ""
    rehearsal: tuple[str, ...] = ()
    rehearsal_share: float = 0.25
    warped: str = ""
    warped_weight: float = 1.0
    warps: WarpSettings = field(default_factory=WarpSettings)
    rings: tuple[str, ...] = ()
    rings_weight: float = 0.5
    counts: PointCounts = field(default_factory=PointCounts)
    several_views: float = 0.2
    most_views: int = 4
    known_camera: float = 0.3
    rendered_share: float = 0.2
    init: str = ""
    init_head: str = ""
    train: Literal["all", "camera", "decoder", "lora"] = "all"
    freeze: tuple[str, ...] = ()
    lora: LoraConfig = field(default_factory=LoraConfig)
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
    rendered the absolute error of colour and matte over patches of one more view. Each is the mean over the batch's
    objects, so that a batch may be cut into pieces.
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
            "occupancy": ((each * batch.weight).sum(1) / batch.weight.sum(1)).mean(),
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
    """Absolute error of volume-rendered patches against the batch's target view, colour multiplied by the matte."""
    color, matte, wanted = rendered_patches(inner, planes, projections, batch)
    return (matte - wanted[..., 3]).abs().mean() + (color - wanted[..., :3] * wanted[..., 3:]).abs().mean()


def rendered_patches(
    inner: TinyNetwork, planes: Tensor, projections: Tensor, batch: Batch
) -> tuple[Tensor, Tensor, Tensor]:
    """Render patches of the batch's target view: colour (B, R, 3) over black, matte (B, R), truth (B, R, 4).

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
    return color, matte, wanted


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


class TinyBatches(BatchMaker[TrainConfig, Batch]):
    """Batches from packed data; see `BatchMaker`."""

    def __init__(self, config: TrainConfig, share: tuple[int, int]) -> None:
        super().__init__(config, share)
        self.sources = data_sources(config)
        self.rehearsal: list[tuple[Source, float]] = [(PackedData(folder), 1.0) for folder in config.rehearsal]

    def objects(self, step: int) -> int:
        """See `BatchMaker`: fewer where a step shows several views of each."""
        return max(1, self.config.batch_size // self.views(step))

    def views(self, step: int) -> int:
        """Views of each object at a step."""
        c, rng = self.config, np.random.default_rng([self.config.seed, step, 1])
        return int(rng.integers(2, c.most_views + 1)) if rng.random() < c.several_views else 1

    def samples(self, step: int, retry: int, which: range) -> Batch:
        """See `BatchMaker`."""
        c = self.config
        target = step >= c.steps * (1 - c.rendered_share)
        rows = []
        for number in which:
            rng = np.random.default_rng([c.seed, retry, step, number])
            rehearse = bool(self.rehearsal) and rng.random() < c.rehearsal_share
            rows.append(self._one(self.rehearsal if rehearse else self.sources, rng, step, self.views(step), target))
        return joined_batches(rows)

    def preflight(self) -> Batch:
        """See `BatchMaker`; some views of the first object."""
        rng = np.random.default_rng(self.config.seed)
        one: list[tuple[Source, float]] = [(OneObject(PackedData(self.config.data[0])), 1.0)]
        count = min(4, self.config.batch_size)
        return joined_batches([self._one(one, rng, _PROBE_STEP, 1, True) for _ in range(count)])

    def probe(self, rehearsal: bool) -> Batch | None:
        """See `BatchMaker`; photos alone, with a view to be rendered."""
        sources = self.rehearsal if rehearsal else self.sources
        if not sources:
            return None
        rng = np.random.default_rng([int(rehearsal), 5])
        count = self.config.guards.probe_size
        return joined_batches([self._one(sources, rng, _PROBE_STEP, 1, True) for _ in range(count)])

    def _one(
        self, sources: Sequence[tuple[Source, float]], rng: np.random.Generator, step: int, views: int, target: bool
    ) -> Batch:
        c = self.config
        return make_batch(
            sources, seed=int(rng.integers(2**62)), step=step, batch_size=1, views=views, counts=c.counts,
            image_size=c.network.image_size, scene_radius=c.network.scene_radius, augment=c.augment,
            known=c.known_camera, target=target,
        )  # fmt: skip


class OneObject(Drawn):
    """One object of packed data, as a source of batches."""

    def __init__(self, data: PackedData, obj: int = 0) -> None:
        self.data, self.obj = data, obj

    def draw(
        self, rng: np.random.Generator, views: int, counts: PointCounts
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """See `train.batches.Drawn`."""
        arrays = self.data.arrays
        packed = arrays["views"].shape[1]
        chosen = rng.choice(packed, views, replace=packed < views)
        pictures = np.stack([arrays["views"][self.obj, v] for v in chosen])
        return (
            pictures,
            np.stack([arrays["cameras"][self.obj, v] for v in chosen]),
            self.data.labels(self.obj, rng, counts),
        )


def joined_batches(rows: Sequence[Batch]) -> Batch:
    """Batches of the same make as one."""
    columns = {f.name: [getattr(row, f.name) for row in rows] for f in fields(Batch)}
    joined: dict[str, Any] = {n: None if values[0] is None else torch.cat(values) for n, values in columns.items()}
    return Batch(**joined)


def data_sources(config: TrainConfig) -> list[tuple[Source, float]]:
    """What a run draws from, and how often.

    Raises:
        SettingsError: no data, weights that do not go with it, or a folder that is not packed data.
    """
    chances = folder_chances(config.data, config.data_weights)
    found: list[tuple[Source, float]] = [
        (PackedData(folder), float(chance)) for folder, chance in zip(config.data, chances, strict=True)
    ]
    if config.warped:
        warped = WarpedData(config.data[0], config.warped, config.network.image_size, config.warps)
        found.append((warped, config.warped_weight))
    if config.rings:
        from .ringviews import RingViews

        found += [(RingViews(folder), config.rings_weight / len(config.rings)) for folder in config.rings]
    return found


class Trainer(BaseTrainer[TrainConfig, Batch]):
    """One run of the embedded model; see `BaseTrainer`."""

    maker_type = TinyBatches
    inner: TinyNetwork

    def __init__(self, config: TrainConfig, out: Path) -> None:
        super().__init__(config, out)
        self.val = PackedData(config.val) if config.val else None

    def build(self) -> nn.Module:
        """See `BaseTrainer`."""
        config = self.config
        network = TinyNetwork(config.network)
        if config.init:
            folder = init_folder(config.init)
            load_strict(network, load_file(folder / "model.safetensors"), str(folder))
        if config.init_head:
            folder = init_folder(config.init_head)
            state = load_file(folder / "model.safetensors")
            head = {k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")}
            load_strict(network.head, head, str(folder))
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def choose_trained(self) -> None:
        """See `BaseTrainer`."""
        config = self.config
        if config.train == "lora":
            self.lora = replace(config.lora, targets=config.lora.targets or LORA_TARGETS)
            add_lora(self.inner, self.lora)
        elif config.train != "all":
            part: nn.Module = self.inner.head if config.train == "camera" else self.inner.decoder
            self.inner.requires_grad_(False)
            part.requires_grad_(True)
        freeze(self.inner, config.freeze)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Muon; AdamW for adapters, whose matrices start at zero."""
        groups = parameter_groups(self.inner, self.config.weight_decay)
        if self.config.train == "lora":
            groups = [{**group, "muon": False} for group in groups]
        return Muon(groups, self.config.learning_rate)

    @property
    def average(self) -> TinyNetwork:
        """A copy of the network with the averaged weights, without adapters of its own."""
        with self.averaged_weights() as network:
            copied = plain_copy(network)
        merge_lora(copied)
        assert isinstance(copied, TinyNetwork)
        return copied

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `BaseTrainer`."""
        if self.config.train == "camera":
            return camera_loss(self.inner, batch)
        return losses(self.inner, self.inner, batch, self.config.loss, self.config.counts)

    def exchanged(self, batch: Batch) -> Batch | None:
        """See `BaseTrainer`."""
        (first, _), *others = self.maker.sources  # type: ignore[attr-defined]
        alone = not others and isinstance(first, PackedData) and len(first) < 2
        if alone or batch_length(batch) < 2:
            return None
        return replace(batch, images=batch.images.roll(1, 0))

    def render_problem(self, batch: Batch) -> str | None:
        """See `BaseTrainer`; the camera head renders nothing."""
        if self.config.train == "camera":
            return None
        planes = self.inner(batch.images, batch.projections, torch.ones_like(batch.known)).float()
        color, matte, wanted = rendered_patches(self.inner, planes, batch.projections[:, 0], batch)
        return render_problem(color + 1 - matte[..., None], matte, wanted)

    def save_model(self) -> None:
        """Write ``model/`` with the averaged weights in fp16, and ``adapter/`` where adapters were trained."""
        extra = {"training": {"steps": self.step, "pictures": self.step * self.config.batch_size}}
        TinyLRM(self.average).save(self.out / "model", extra, torch.float16)
        if self.config.train == "lora":
            with self.averaged_weights() as network:
                save_adapter(self.out / "adapter", network, self.lora, self.config.init)

    def validate(self) -> None:
        """See `BaseTrainer`: `val_iou` and a preview."""
        if self.val is None:
            return
        average = self.average
        self.log(val_iou(average, self.val))
        file = self.out / "previews" / f"{self.step:06d}.png"
        self.picture(file, write_preview(file, TinyLRM(average), self.val))


def init_folder(name: str) -> Path:
    """The folder of weights that a recipe's ``init`` names, a folder or an embedded model.

    Raises:
        SettingsError: neither.
    """
    if (Path(name) / "model.safetensors").is_file():
        return Path(name)
    from trilift.registry import EMBEDDED

    if (EMBEDDED / name / "model.safetensors").is_file():
        return EMBEDDED / name
    raise SettingsError(f"init={name}: expected a folder with model.safetensors, such as RUN/model, or tiny.")


def freeze(network: nn.Module, names: Sequence[str]) -> None:
    """Take parts out of training.

    Args:
        network: changed in place.
        names: dotted names of parts or parameters, with all below.

    Raises:
        SettingsError: there is no such part; the parts that there are, are named.
    """
    for name in names:
        found = [p for own, p in network.named_parameters() if own == name or own.startswith(name + ".")]
        if not found:
            parts = ", ".join(own for own, _ in network.named_children())
            raise SettingsError(f"freeze: there is no part {name!r}. There are {parts} and what is below them.")
        for parameter in found:
            parameter.requires_grad_(False)
