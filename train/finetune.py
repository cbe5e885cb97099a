"""Training and fine-tuning TripoSR, OpenLRM and InstantMesh: what a run is told, and its trainer.

``python -m train.lrm`` is the command. A network starts from published weights, from a folder of ours, or from nothing,
and ends as a folder that inference loads.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lrm import instantmesh, openlrm, triposr
from lrm.field import PlanesDecoder, TriplaneField
from lrm.lora import LoraConfig, add_lora, merge_lora, save_adapter
from lrm.preprocess import instantmesh_input, openlrm_input, triposr_input
from lrm.published import PublishedModel
from lrm.vit import normalize_imagenet
from multiview.cameras import Cameras, intrinsics_from_fov
from multiview.errors import SettingsError
from multiview.weights import config_from_dict

from .bases import load_base
from .batches import Augment
from .config import DataFolder, RunConfig, folder_chances
from .features import load_features
from .guards import GuardConfig, render_problem
from .optim import Muon, parameter_groups
from .posed import ReadFlags
from .posedbatches import (
    PosedBatch,
    PosedSource,
    SampleSettings,
    World,
    open_source,
    sample_object,
    stack_samples,
)
from .preview import write_posed_preview
from .renderloss import RenderWeights, over, patch_losses, point_losses, ramp, render_patches
from .tiny import freeze
from .trainer import BaseTrainer, BatchMaker, batch_length, plain_copy

MODELS: dict[str, type[PublishedModel]] = {
    "triposr": triposr.TripoSR, "openlrm": openlrm.OpenLRM, "instantmesh": instantmesh.InstantMesh,
}  # fmt: skip
LORA_TARGETS = ("query", "key", "value", "out")
# InstantMesh's views are Zero123++'s.
_VIEWS_DISTANCE, _VIEWS_FOV_DEG = 4.0, 30.0
_VALIDATED = 16


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """A run of a published family; see also `RunConfig`.

    Attributes:
        family: whose architecture.
        data: folders of posed pictures or of ``train.prepare``, and `data_weights` how often each is drawn from.
        val: such a folder, or empty; never trained on.
        rehearsal: such folders of what the model shall not forget, and ``rehearsal_share`` of the objects from there.
        init: a model as `trilift lift --model` takes it, or empty for a network with random weights.
        network: its sizes in that case, keys of the family's config.
        train: ``all``, ``decoder`` for the field's decoder alone, or ``lora`` for low-rank adapters.
        freeze: names of parts that stay as they are, such as ``vit``.
        lora: the adapters.
        read: how the poses of posed pictures are meant, where that is not what their layout says and no entry of
            ``data`` says it itself (``{path: DIR, up: y}``); ``train.check`` names the flag that mends them.
        recrop: crop conditioning pictures to the object as inference crops photos; for one-photo families.
        sample: what is taken of an object. ``input_views`` is 1 for one-photo families whatever it says.
        samples_per_ray: of rendered patches.
        loss: weights of the loss's parts.
        features_ramp: shares of the run at which ``loss.features`` begins to rise and is full.
        optimizer: ``adamw``, as these networks were trained, or ``muon``.
        gradient_checkpointing: compute each transformer block again on the way back; less memory, the same result.
    """

    family: Literal["triposr", "openlrm", "instantmesh"]
    data: tuple[DataFolder, ...]
    data_weights: tuple[float, ...] = ()
    val: str = ""
    rehearsal: tuple[DataFolder, ...] = ()
    rehearsal_share: float = 0.25
    init: str = ""
    network: dict[str, Any] = field(default_factory=dict)
    train: Literal["all", "decoder", "lora"] = "all"
    freeze: tuple[str, ...] = ()
    lora: LoraConfig = field(default_factory=LoraConfig)
    read: ReadFlags = field(default_factory=ReadFlags)
    recrop: bool = True
    sample: SampleSettings = field(default_factory=SampleSettings)
    samples_per_ray: int = 64
    augment: Augment = field(default_factory=lambda: Augment(mirror=0, swap=0))
    loss: RenderWeights = field(default_factory=RenderWeights)
    features_ramp: tuple[float, float] = (0.3, 0.6)
    optimizer: Literal["adamw", "muon"] = "adamw"
    gradient_checkpointing: bool = False
    steps: int = 2000
    batch_size: int = 8
    learning_rate: float = 4e-5
    warmup_steps: int = 100
    weight_decay: float = 0.05
    ema_decay: float = 0.995
    guards: GuardConfig = field(default_factory=lambda: GuardConfig(preflight_steps=60))

    def __post_init__(self) -> None:
        super().__post_init__()
        folder_chances(self.data, self.data_weights)  # for its errors
        if self.init and self.network:
            raise SettingsError("init brings its sizes along: leave network out, or init for random weights.")
        if self.train != "all" and not self.init:
            raise SettingsError(
                f"train={self.train} needs init: a network with random weights is worth training whole."
            )
        if self.loss.features and not (self.init or self.loss.feature_weights):
            raise SettingsError(
                "loss.features compares pictures by init's own image encoder, but there is no init. Give one, or files "
                "of VGG16 with LPIPS or of a DINO: loss.feature_weights=[FILE]."
            )
        low, high = self.sample.input_views
        if not 1 <= low <= high:
            raise SettingsError(f"sample.input_views={[low, high]}: expected fewest and most, at least 1.")


def family_world(config: Any, family: str, recrop: bool) -> World:
    """The world of a family, by the config of its network."""
    if family == "instantmesh":
        focal = float(intrinsics_from_fov(_VIEWS_FOV_DEG)[0, 1, 1])
        return World(_VIEWS_DISTANCE, focal, False, None, config.image_size)
    ratio = config.foreground_ratio if recrop else None
    if family == "openlrm":
        return World(config.camera_distance, config.camera_focal, True, ratio, config.image_size)
    focal = float(intrinsics_from_fov(triposr.CAMERA_FOV_DEG)[0, 1, 1])
    return World(triposr.CAMERA_DISTANCE, focal, True, ratio, config.image_size)


def predict_planes(network: Any, family: str, batch: PosedBatch) -> Tensor:
    """Planes (B, 3, C, H, W) from a batch's conditioning views, prepared as inference prepares them."""
    size = network.config.image_size
    if family == "instantmesh":
        pictures = instantmesh_input(batch.images.flatten(0, 1), size).unflatten(0, batch.images.shape[:2])
        cameras = Cameras(batch.c2w.flatten(0, 1), batch.intrinsics.flatten(0, 1))
        numbers = instantmesh.camera_numbers(cameras).unflatten(0, batch.images.shape[:2])
        return network(pictures, numbers)
    photos = batch.images[:, 0]
    if family == "openlrm":
        numbers = openlrm.camera_numbers(network.config, len(photos)).to(photos.device)
        return network(openlrm_input(photos, size), numbers)
    return network(triposr_input(photos, size))


class PosedBatches(BatchMaker[FinetuneConfig, PosedBatch]):
    """Batches of posed objects; see `BatchMaker`.

    Args:
        config, share: see `BatchMaker`.
        world: the network's.
    """

    def __init__(self, config: FinetuneConfig, share: tuple[int, int], world: World) -> None:
        super().__init__(config, share)
        self.world = world
        self.sources, self.rehearsal = (
            [
                open_source(one.path, config.augment, config.read if one.read == ReadFlags() else one.read)
                for one in some
            ]
            for some in (config.data, config.rehearsal)
        )
        self.chances = np.array(folder_chances(config.data, config.data_weights))

    def objects(self, step: int) -> int:
        """See `BatchMaker`."""
        return self.config.batch_size

    def views(self, step: int) -> int:
        """Conditioning views at a step; one number for the whole batch."""
        if self.world.single:
            return 1
        low, high = self.config.sample.input_views
        return int(np.random.default_rng([self.config.seed, step, 1]).integers(low, high + 1))

    def samples(self, step: int, retry: int, which: range) -> PosedBatch:
        """See `BatchMaker`."""
        rows = []
        for number in which:
            rng = np.random.default_rng([self.config.seed, retry, step, number])
            if self.rehearsal and rng.random() < self.config.rehearsal_share:
                source = self.rehearsal[int(rng.integers(len(self.rehearsal)))]
            else:
                source = self.sources[int(rng.choice(len(self.sources), p=self.chances / self.chances.sum()))]
            rows.append(self._sample(source, int(rng.integers(len(source.names))), rng, self.views(step)))
        return stack_samples(rows)

    def preflight(self) -> PosedBatch:
        """See `BatchMaker`; the first object from some sides."""
        rng = np.random.default_rng(self.config.seed)
        count = min(2, self.config.batch_size)
        return stack_samples([self._sample(self.sources[0], 0, rng, self.views(0)) for _ in range(count)])

    def probe(self, rehearsal: bool) -> PosedBatch | None:
        """See `BatchMaker`; objects spread over the first source."""
        sources = self.rehearsal if rehearsal else self.sources
        if not sources:
            return None
        rng, names = np.random.default_rng([int(rehearsal), 5]), sources[0].names
        count = min(self.config.guards.probe_size, max(2, len(names)))
        objects = np.linspace(0, len(names) - 1, count).astype(int)
        return stack_samples([self._sample(sources[0], int(obj), rng, self.views(0)) for obj in objects])

    def _sample(self, source: PosedSource, obj: int, rng: np.random.Generator, views: int) -> dict[str, Tensor]:
        return sample_object(source, obj, rng, self.world, self.config.sample, views)


def start_model(config: FinetuneConfig) -> tuple[Any, dict[str, Any]]:
    """The model that a run starts from, and what its descendants' ``config.json`` must say of it.

    Raises:
        SettingsError: ``init`` is of another family.
        WeightsError: ``init`` cannot be loaded, or ``network`` has an unknown key.
    """
    kind = MODELS[config.family]
    if not config.init:
        sizes: Any = config_from_dict(kind.config_type, config.network, "network")
        network: Any = kind.network_type(sizes)
        with torch.no_grad():
            awaken_decoder(network.decoder)
        return kind(network, config.family), {}
    model, origin = load_base(config.init)
    found = getattr(model, "architecture", "tiny")
    if found != config.family:
        raise SettingsError(f"init={config.init} is of the family {found}, family says {config.family}.")
    return model, origin


def awaken_decoder(decoder: PlanesDecoder) -> None:
    """Start a decoder so that it passes on differences of its input, in place.

    With torch's usual weights ten thin layers answer alike at every point, and a network stays fog for long.

    Source: He et al. 2015 (arXiv 1502.01852), equation 10.
    """
    for layer in decoder.layers:
        assert isinstance(layer, nn.Linear)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)


class FinetuneTrainer(BaseTrainer[FinetuneConfig, PosedBatch]):
    """One run of a published family; see `BaseTrainer`."""

    maker_type = PosedBatches

    def __init__(self, config: FinetuneConfig, out: Path) -> None:
        self.family = config.family
        self.encoder: nn.Module | None = None
        super().__init__(config, out)
        self.val = open_source(config.val, config.augment, config.read) if config.val else None

    def build(self) -> nn.Module:
        """See `BaseTrainer`."""
        config = self.config
        self.model, self.origin = start_model(config)
        self.world = family_world(self.model.network.config, config.family, config.recrop)
        if config.loss.features and config.loss.feature_weights:
            self.encoder = load_features(config.loss.feature_weights).to(self.accelerator.device)
        elif config.loss.features:
            self.encoder = plain_copy(self.model.network.vit).to(self.accelerator.device)
        network: nn.Module = self.model.network
        return network.requires_grad_(True)

    def maker_words(self) -> dict[str, Any]:
        """See `BaseTrainer`."""
        return {"world": self.world}

    def choose_trained(self) -> None:
        """See `BaseTrainer`."""
        config = self.config
        if config.train == "lora":
            self.lora = replace(config.lora, targets=config.lora.targets or LORA_TARGETS)
            add_lora(self.inner, self.lora)
        elif config.train == "decoder":
            self.inner.requires_grad_(False)
            self.model.network.decoder.requires_grad_(True)
        freeze(self.inner, config.freeze)
        if config.gradient_checkpointing:
            recompute_blocks(self.inner)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """AdamW unless Muon is asked for."""
        config = self.config
        muon = config.optimizer == "muon" and config.train != "lora"
        groups = [{**g, "muon": g["muon"] and muon} for g in parameter_groups(self.inner, config.weight_decay)]
        return Muon(groups, config.learning_rate)

    def largest_chunk(self) -> int:
        """See `BaseTrainer`: rays of one object."""
        return self.config.sample.target_views * self.config.sample.patch_size**2

    def field(self, planes: Tensor, elevation_deg: float) -> TriplaneField:
        """Planes (3, C, H, W) as the family's field in the world frame; gradients flow."""
        model: Any = self.model
        made: TriplaneField = model.field(planes, elevation_deg) if self.family == "openlrm" else model.field(planes)
        return made

    def loss(self, batch: PosedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `BaseTrainer`; planes under autocast, fields in fp32."""
        planes = predict_planes(self.inner, self.family, batch)
        sums: dict[str, Tensor] = {}
        with torch.autocast(planes.device.type, enabled=False):
            for index in range(len(planes)):
                for name, value in self._object_losses(planes[index].float(), batch, index).items():
                    sums[name] = sums.get(name, value.new_zeros(())) + value / len(planes)
        total = torch.stack([self._weight(name) * value for name, value in sums.items()]).sum()
        return total, {name: value.detach() for name, value in sums.items()}

    def _weight(self, name: str) -> float:
        weight = float(getattr(self.config.loss, name))
        return weight * self._ramp() if name == "features" else weight

    def _ramp(self) -> float:
        """How much of ``loss.features`` counts now."""
        return ramp(self.step, self.config.steps, self.config.features_ramp)

    def _object_losses(self, planes: Tensor, batch: PosedBatch, index: int) -> dict[str, Tensor]:
        field_ = self.field(planes, float(batch.elevation[index]))
        background, target = batch.background[index], batch.target[index]
        color, opacity = self._rendered(field_, batch, index)
        found = patch_losses(color, opacity, target, background)
        if self.encoder is not None and self._ramp() > 0:
            made = color.transpose(1, 2).unflatten(2, target.shape[2:])
            found["features"] = self._feature_error(made, over(target, background))
        if bool(batch.known[index].any()):
            found |= point_losses(
                field_, batch.points[index], batch.inside[index], batch.surface[index], batch.colors[index],
                chunk_size=self.chunk_size,
            )  # fmt: skip
        return found

    def _rendered(self, field_: TriplaneField, batch: PosedBatch, index: int) -> tuple[Tensor, Tensor]:
        return render_patches(
            field_, batch.origins[index], batch.directions[index], batch.background[index],
            samples_per_ray=self.config.samples_per_ray, chunk_size=self.chunk_size,
        )  # fmt: skip

    def _feature_error(self, made: Tensor, truth: Tensor) -> Tensor:
        """As ``loss.feature_weights`` say, or one less the cosine of the published encoder's tokens; (T, 3, P, P)."""
        assert self.encoder is not None
        if self.config.loss.feature_weights:
            found: Tensor = self.encoder(made, truth)
            return found
        prepare = (lambda x: x) if self.family == "openlrm" else normalize_imagenet
        with torch.no_grad():
            wanted = self.encoder(prepare(truth))
        return 1 - F.cosine_similarity(self.encoder(prepare(made)), wanted, dim=-1).mean()

    def exchanged(self, batch: PosedBatch) -> PosedBatch | None:
        """See `BaseTrainer`; cameras stay, pictures go to the next object."""
        names = self.maker.sources[0].names  # type: ignore[attr-defined]
        if min(len(names), batch_length(batch)) < 2:
            return None
        return replace(batch, images=batch.images.roll(1, 0))

    def render_problem(self, batch: PosedBatch) -> str | None:
        """See `BaseTrainer`."""
        with self.accelerator.autocast():
            planes = predict_planes(self.inner, self.family, batch).float()
        white = replace(batch, background=torch.ones_like(batch.background))
        made = [self._rendered(self.field(one, float(batch.elevation[i])), white, i) for i, one in enumerate(planes)]
        color, opacity = (torch.stack(column) for column in zip(*made, strict=True))
        return render_problem(color, opacity, batch.target.flatten(3).transpose(2, 3))

    def save_model(self) -> None:
        """Write ``model/`` with the averaged weights, and ``adapter/`` where adapters were trained."""
        training = {"steps": self.step, "objects": self.step * self.config.batch_size, "train": self.config.train}
        extra = {**self.origin, "name": self.out.resolve().name, "training": training}
        with self.averaged_weights() as network:
            model = self.model
            if self.config.train == "lora":
                save_adapter(self.out / "adapter", network, self.lora, self.config.init)
                merged = plain_copy(network)
                merge_lora(merged)
                model = MODELS[self.family](merged, self.out.name)
            model.save(self.out / "model", extra)

    @torch.no_grad()
    def validate(self) -> None:
        """See `BaseTrainer`: PSNR and silhouette overlap of unseen patches, and a preview."""
        source = self.val or self.maker.sources[0]  # type: ignore[attr-defined]
        with self.averaged_weights():
            if self.val is not None:
                self.log(self.scores(self.val))
            file = self.out / "previews" / f"{self.step:06d}.png"
            self.picture(file, write_posed_preview(file, *self._preview_rows(source)))

    def scores(self, source: PosedSource) -> dict[str, float]:
        """``val_psnr`` in dB over white and ``val_silhouette_iou``, of patches of some unseen objects."""
        found: dict[str, list[float]] = {"val_psnr": [], "val_silhouette_iou": []}
        for batch in self._fixed(source, min(_VALIDATED, len(source.names)), self.config.sample):
            color, opacity, target = self._white(batch)
            truth = over(target, color.new_ones(len(target), 3))
            error = (color - truth).square().mean().clamp(min=1e-8)
            a, b = opacity > 0.5, target[:, 3] > 0.5
            found["val_psnr"].append(float(-10 * error.log10()))
            found["val_silhouette_iou"].append(float((a & b).sum() / (a | b).sum().clamp(min=1)))
        return {name: float(np.mean(values)) for name, values in found.items()}

    def _preview_rows(self, source: PosedSource) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Conditioning pictures, true views and rendered views of some objects."""
        size = min(96, self.config.sample.target_size)
        settings = replace(self.config.sample, patch_size=size, target_size=size, own_view=1.0, target_views=3)
        conditioning, truth, made = [], [], []
        for batch in self._fixed(source, min(4, len(source.names)), settings):
            color, _, target = self._white(batch)
            conditioning.append(batch.images[0, 0].cpu())
            truth.append(over(target, color.new_ones(len(target), 3)).cpu())
            made.append(color.cpu())
        return conditioning, truth, made

    def _fixed(self, source: PosedSource, count: int, settings: SampleSettings) -> list[PosedBatch]:
        """Batches of one, of objects spread over a source; the same every time."""
        views = self.maker.views(0)  # type: ignore[attr-defined]
        rows = []
        for obj in np.unique(np.linspace(0, len(source.names) - 1, count).astype(int)):
            rng = np.random.default_rng([int(obj), 9])
            sample = sample_object(source, int(obj), rng, self.world, settings, views)
            batch = stack_samples([sample])
            rows.append(PosedBatch(**{n: v.to(self.device) for n, v in vars(batch).items()}))
        return rows

    @torch.no_grad()
    def _white(self, batch: PosedBatch) -> tuple[Tensor, Tensor, Tensor]:
        """A batch of one over white: colour (T, 3, P, P), opacity (T, P, P), target (T, 4, P, P)."""
        with self.accelerator.autocast():
            planes = predict_planes(self.inner, self.family, batch).float()
        white = replace(batch, background=torch.ones_like(batch.background))
        color, opacity = self._rendered(self.field(planes[0], float(batch.elevation[0])), white, 0)
        shape = batch.target.shape[3:]
        return color.transpose(1, 2).unflatten(2, shape), opacity.unflatten(1, shape), batch.target[0]


def recompute_blocks(network: nn.Module) -> None:
    """Make every block of ``blocks`` lists compute itself again in the backward pass, in place."""
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and name.split(".")[-1] == "blocks":
            for block in module:
                block.forward = partial(_recomputed, block)


def _recomputed(block: nn.Module, *inputs: Tensor | None, **words: Any) -> Any:
    plain = type(block).forward
    if not torch.is_grad_enabled():
        return plain(block, *inputs, **words)
    return checkpoint(plain, block, *inputs, use_reentrant=False, **words)
