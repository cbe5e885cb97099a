"""Training and fine-tuning Zero123 (with its relatives) and SyncDreamer: what a run is told, and its trainers.

``python -m train.multiview`` is the command. A network learns as its publishers trained it: the noise in a view's
latent, from the picture's own latent beside it, CLIP's embedding of the picture, and the view's camera. VAE and CLIP
stay as they are; latents are encoded as they are needed.

Source: Liu et al. 2023 (arXiv 2303.11328) and Liu et al. 2023 (arXiv 2309.03453); what the published weights were
trained on and how, by measured facts (sections 5.8 and 7).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lrm.lora import LoraConfig, adapters, add_lora, merge_lora, save_adapter
from multiview.devices import CPU, DTYPES
from multiview.errors import SettingsError, WeightsError
from multiview.generator import draw_noise, make_scheduler
from multiview.ldm import VAE_SCALE, clip_pixels
from multiview.networks import NetworkGenerator
from multiview.syncdreamer import SyncDreamer, SyncDreamerNetwork, SyncDreamerSizes
from multiview.syncdreamervolumes import N_VIEWS, looking_along_rays
from multiview.weights import config_from_dict
from multiview.zero123 import TRAIN_STEPS, Zero123
from multiview.zero123weights import PoseRule, Zero123Config, Zero123Network

from .config import DataFolder, RunConfig, folder_chances
from .guards import GuardConfig, view_problem
from .optim import Muon, parameter_groups
from .preview import write_posed_preview
from .tiny import freeze
from .trainer import BaseTrainer, BatchMaker, batch_length
from .viewdata import Seen, ViewFamily, ViewSource, open_views, seen_of

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
# A probe asks where noise hides most of the answer, so that the picture must be looked at.
PROBED_TIMES = (500, 950)
_NEVER_DROPPED = 1.0
_HALFWAY = 500
_VALIDATED = 16
_SHOWN = 3  # views of an object in a preview


@dataclass(frozen=True, kw_only=True)
class ViewTuneConfig(RunConfig):
    """A run of Zero123 or SyncDreamer; see also `RunConfig`.

    Attributes:
        family: whose architecture; ``zero123`` for Zero123, Zero123-XL and Stable Zero123 alike.
        data: folders of posed pictures, and ``data_weights`` how often each is drawn from.
        inputs: SyncDreamer only: for each of ``data`` a folder of pictures from other elevations
            (``train.render --preset syncdreamer-inputs``), or none at all for the rings' own.
        val: folder that is never trained on, or empty.
        rehearsal: folders of what the model shall not forget, and ``rehearsal_share`` of the objects from there.
        init: a generator as `trilift views --views` takes it, or empty for a network with random weights.
        network: its sizes in that case, keys of the family's config.
        train: ``published`` for the parts that the publishers trained (Zero123: UNet and projection of the camera;
            SyncDreamer: volume networks and depth layers), ``all`` for the UNet and the projection as well, ``lora``
            for low-rank adapters on the UNet's attention. VAE and CLIP are never trained.
        freeze: names of parts that stay as they are, such as ``unet.down_blocks``.
        lora: the adapters.
        drop: chance of each way to leave conditions out, for guidance; None for the publishers': Zero123 0.05, of
            each of embedding, latent and both; SyncDreamer 0, of all, latent, volume and token.
        fast_factor: how much faster Zero123's projection and SyncDreamer's volume networks learn than the rest.
        optimizer: ``adamw``, as these networks were trained, or ``muon``.
        gradient_checkpointing: compute the UNet's blocks again on the way back; less memory, the same result.
        preview_steps, preview_objects: denoising steps and objects of previews.
        guidance_scale: of previews; None for the model's own.
        save_dtype: of the numbers in ``model/``.
    """

    family: ViewFamily
    data: tuple[DataFolder, ...]
    data_weights: tuple[float, ...] = ()
    inputs: tuple[DataFolder, ...] = ()
    val: str = ""
    rehearsal: tuple[DataFolder, ...] = ()
    rehearsal_share: float = 0.25
    init: str = ""
    network: dict[str, Any] = field(default_factory=dict)
    train: Literal["published", "all", "lora"] = "published"
    freeze: tuple[str, ...] = ()
    lora: LoraConfig = field(default_factory=LoraConfig)
    drop: float | None = None
    fast_factor: float = 10.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    gradient_checkpointing: bool = False
    preview_steps: int = 20
    preview_objects: int = 3
    guidance_scale: float | None = None
    save_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    steps: int = 2000
    batch_size: int = 8
    learning_rate: float = 1e-5
    warmup_steps: int = 100
    ema_decay: float = 0.995
    guards: GuardConfig = field(default_factory=lambda: GuardConfig(preflight_steps=60))

    def __post_init__(self) -> None:
        super().__post_init__()
        folder_chances(self.data, self.data_weights)  # for its errors
        if not 0 <= self.rehearsal_share <= 1 or self.preview_steps < 1 or self.preview_objects < 0:
            raise SettingsError(
                f"rehearsal_share={self.rehearsal_share:g}, preview_steps={self.preview_steps}, preview_objects="
                f"{self.preview_objects}: expected 0 to 1, 1 or more, and 0 or more."
            )
        if self.inputs and (self.family != "syncdreamer" or len(self.inputs) != len(self.data)):
            raise SettingsError(
                f"inputs names {len(self.inputs)} folders for {len(self.data)} of data and family={self.family}: "
                "expected one for each, and syncdreamer."
            )
        if self.init and self.network:
            raise SettingsError("init brings its sizes along: leave network out, or init for random weights.")
        if self.train == "lora" and not self.init:
            raise SettingsError("train=lora needs init: a network with random weights is worth training whole.")
        if not 0 <= self.dropping <= 0.25 or self.fast_factor <= 0:
            raise SettingsError(
                f"drop={self.dropping:g}, fast_factor={self.fast_factor:g}: expected 0 to 0.25, and a positive number."
            )

    @property
    def dropping(self) -> float:
        """``drop``, or the publishers'."""
        usual = 0.05 if self.family == "zero123" else 0.0
        return usual if self.drop is None else self.drop


@dataclass(frozen=True)
class ViewWorld:
    """What a maker of batches must know of the network.

    Attributes:
        family: see `ViewTuneConfig`.
        image_size: pixels per side of pictures.
        latent: (C, h, w) of a latent.
        rule: Zero123's, see `multiview.zero123.pose_numbers`.
    """

    family: ViewFamily
    image_size: int
    latent: tuple[int, int, int]
    rule: PoseRule = "distance"


@dataclass(frozen=True)
class ViewBatch:
    """One step's data: B objects, the picture that is shown of each, and V views: one for Zero123, SyncDreamer's ring.

    Attributes:
        condition: (B, 3, S, S) over white, in [0, 1].
        targets, alpha: (B, V, 3, S, S) and (B, V, 1, S, S), likewise.
        pose: (B, V, 4) what the network is told of each view.
        noise: (B, V, C, h, w) standard normal, what has to be told.
        draw: (B, V + 1, C, h, w) standard normal, by which latents are drawn from the VAE's answer, the condition's
            last.
        time: (B,) noise levels 0 to 999.
        view: (B,) which view's noise is asked for.
        dropped: (B,) in [0, 1), what chooses the conditions to leave out; 1 never leaves any out.
    """

    condition: Tensor
    targets: Tensor
    alpha: Tensor
    pose: Tensor
    noise: Tensor
    draw: Tensor
    time: Tensor
    view: Tensor
    dropped: Tensor


class ViewBatches(BatchMaker[ViewTuneConfig, ViewBatch]):
    """Batches of objects; see `BatchMaker`.

    Args:
        config, share: see `BatchMaker`.
        world: the network's.

    Raises:
        CameraError, SettingsError: a folder does not go with the family.
    """

    def __init__(self, config: ViewTuneConfig, share: tuple[int, int], world: ViewWorld) -> None:
        super().__init__(config, share)
        self.world = world
        inputs: Sequence[DataFolder | None] = config.inputs or [None] * len(config.data)
        self.sources = [self.open(entry, other) for entry, other in zip(config.data, inputs, strict=True)]
        self.rehearsal = [self.open(entry) for entry in config.rehearsal]
        self.chances = np.array(folder_chances(config.data, config.data_weights))

    def open(self, entry: DataFolder, inputs: DataFolder | None = None) -> ViewSource:
        """A folder as the network's family sees it."""
        return open_views(self.world.family, entry, self.world.image_size, self.world.rule, inputs)

    def objects(self, step: int) -> int:
        """See `BatchMaker`."""
        return self.config.batch_size

    def samples(self, step: int, retry: int, which: range) -> ViewBatch:
        """See `BatchMaker`."""
        rows = []
        for number in which:
            rng = np.random.default_rng([self.config.seed, retry, step, number])
            if self.rehearsal and rng.random() < self.config.rehearsal_share:
                source = self.rehearsal[int(rng.integers(len(self.rehearsal)))]
            else:
                source = self.sources[int(rng.choice(len(self.sources), p=self.chances / self.chances.sum()))]
            seen = seen_of(source, int(rng.integers(len(source.names))), rng)
            rows.append(self.sample(seen, rng, int(rng.integers(TRAIN_STEPS)), float(rng.random())))
        return stacked(rows)

    def preflight(self) -> ViewBatch:
        """See `BatchMaker`; the first object at several noise levels."""
        rng, count = np.random.default_rng(self.config.seed), min(4, self.config.batch_size)
        times = np.linspace(50, PROBED_TIMES[1], count).astype(int)
        return stacked([self.sample(seen_of(self.sources[0], 0, rng), rng, int(time)) for time in times])

    def probe(self, rehearsal: bool) -> ViewBatch | None:
        """See `BatchMaker`; objects spread over the first source."""
        sources = self.rehearsal if rehearsal else self.sources
        return self.fixed(sources[0], self.config.guards.probe_size, PROBED_TIMES) if sources else None

    def fixed(self, source: ViewSource, count: int, times: tuple[int, int]) -> ViewBatch:
        """Objects spread over a source, at noise levels spread over ``times``; the same every time."""
        rng, names = np.random.default_rng(5), source.names
        count = min(count, max(2, len(names)))
        objects, levels = (np.linspace(*ends, count).astype(int) for ends in ((0, len(names) - 1), times))
        pairs = zip(objects.tolist(), levels.tolist(), strict=True)
        return stacked([self.sample(seen_of(source, obj, rng), rng, level) for obj, level in pairs])

    def sample(
        self, seen: Seen, rng: np.random.Generator, time: int, dropped: float = _NEVER_DROPPED
    ) -> dict[str, Tensor]:
        """One object of a `ViewBatch`, with random numbers of its own."""
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        views, view = len(seen.targets), int(rng.integers(len(seen.targets)))
        noise, draw = (torch.randn((n, *self.world.latent), generator=generator) for n in (views, views + 1))
        return {
            "condition": seen.condition, "targets": seen.targets, "alpha": seen.alpha, "pose": seen.pose,
            "noise": noise, "draw": draw, "time": torch.tensor(time), "view": torch.tensor(view),
            "dropped": torch.tensor(dropped),
        }  # fmt: skip


def stacked(rows: Sequence[dict[str, Tensor]]) -> ViewBatch:
    """Samples as a batch."""
    columns: dict[str, Any] = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return ViewBatch(**columns)


def load_view_base(name: str) -> tuple[Any, dict[str, Any]]:
    """Load a view generator for training, in fp32 on the CPU; its numbers may lie in a mapped file yet.

    Args:
        name: as `trilift views --views` takes it.

    Returns:
        The generator, and what the ``config.json`` of one that is made from it must say: the licence goes on.

    Raises:
        WeightsError, SettingsError: see `trilift.generators.fetch_generator` and `build_generator`.
    """
    from trilift import registry
    from trilift.generators import build_generator, fetch_generator, generator_record

    files = fetch_generator(registry.resolve(name), None)
    record = generator_record(files)
    model = build_generator(files, torch.device(CPU), torch.float32)
    base = {"name": record.name, "sha256": record.sha256, "repository": record.repository, "revision": record.revision}
    return model, {"licence": record.licence, "commercial": record.commercial, "base": base}


@contextmanager
def adapters_merged(network: nn.Module) -> Iterator[None]:
    """Have a network's adapters merged into their layers inside the block; afterwards all is as before, to the bit."""
    found = list(adapters(network))
    kept = [module.base.weight.data for _, module in found]
    for _, module in found:
        module.base.weight.data = module.base.weight.data.clone()
    merge_lora(network)
    try:
        yield
    finally:
        for (name, module), weight in zip(found, kept, strict=True):
            module.base.weight.data = weight
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, module)


def only_asks(name: str) -> bool:
    """Whether a parameter of the UNet has a say in what cross-attention asks, and in nothing else.

    There is one token to read, so that its weight is 1 whatever is asked: such parameters have no gradient but
    rounding, which AdamW would blow up to full steps.
    """
    return ".transformer_blocks." in name and any(part in name for part in (".attn2.to_q.", ".attn2.to_k.", ".norm2."))


class ViewTuner(BaseTrainer[ViewTuneConfig, ViewBatch]):
    """One run of Zero123 or SyncDreamer; see `BaseTrainer`."""

    maker_type = ViewBatches
    trained_parts: tuple[str, ...]
    fast_part: str

    def __init__(self, config: ViewTuneConfig, out: Path) -> None:
        super().__init__(config, out)
        maker: Any = self.maker
        self.val: ViewSource | None = maker.open(DataFolder(config.val)) if config.val else None
        self.keep = make_scheduler("ddim").alphas_cumprod.to(self.device)

    # What a family brings.

    @abstractmethod
    def make_random(self) -> NetworkGenerator:
        """A generator of the config's sizes with random weights."""

    @abstractmethod
    def world(self) -> ViewWorld:
        """What makers of batches must know."""

    @abstractmethod
    def predicted(self, batch: ViewBatch, noisy: Tensor) -> Tensor:
        """The noise (B, C, h, w) that the network sees in view ``batch.view`` of noisy latents (B, V, C, h, w)."""

    @abstractmethod
    def sampled(self, seen: Seen, generator: torch.Generator) -> Tensor:
        """Views (V, 3, S, S) in [0, 1] that the model draws where ``seen`` has its targets."""

    # What a trainer brings.

    def build(self) -> nn.Module:
        """See `BaseTrainer`."""
        self.origin: dict[str, Any] = {}
        if not self.config.init:
            self.model: Any = self.make_random()
        else:
            self.model, self.origin = load_view_base(self.config.init)
            if self.model.architecture != self.config.family:
                raise SettingsError(
                    f"init={self.config.init} is of the family {self.model.architecture}, family says "
                    f"{self.config.family}."
                )
        network: nn.Module = self.model.network
        return network

    def maker_words(self) -> dict[str, Any]:
        """See `BaseTrainer`."""
        return {"world": self.world()}

    def choose_trained(self) -> None:
        """See `BaseTrainer`; what `only_asks` stays as it is.

        Trained numbers get memory of their own, since a file may be mapped.
        """
        config, network = self.config, self.model.network
        network.requires_grad_(False)
        if config.train == "lora":
            self.lora = replace(config.lora, targets=config.lora.targets or LORA_TARGETS)
            add_lora(network.unet, self.lora)
        else:
            parts = {*self.trained_parts, *(("unet", "cc_projection") if config.train == "all" else ())}
            for part in parts:
                getattr(network, part).requires_grad_(True)
        freeze(network, config.freeze)
        for name, parameter in network.unet.named_parameters():
            if only_asks(name):
                parameter.requires_grad_(False)
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.clone()
        if config.gradient_checkpointing:
            network.unet.enable_gradient_checkpointing()
        self.model.device = torch.device(self.device)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """AdamW unless Muon is asked for; one part learns faster, see ``fast_factor``."""
        config, groups = self.config, []
        muon = config.optimizer == "muon" and config.train != "lora"
        for name, part in self.inner.named_children():
            scale = config.fast_factor if name == self.fast_part else 1.0
            for group in parameter_groups(part, config.weight_decay):
                groups.append({**group, "muon": group["muon"] and muon, "lr_scale": scale})
        return Muon(groups, config.learning_rate, betas=(0.9, 0.999))

    def loss(self, batch: ViewBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `BaseTrainer`: squared error of the noise of one view of each object."""
        noisy = self.noised(self.latents(batch), batch.noise, batch.time)
        wanted = batch.noise[torch.arange(len(batch.view), device=batch.view.device), batch.view]
        return (self.predicted(batch, noisy).float() - wanted).square().mean(), {}

    def noised(self, clean: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Latents (B, V, C, h, w) with noise at times (B,)."""
        kept = self.keep[time][:, None, None, None, None]
        return kept.sqrt() * clean + (1 - kept).sqrt() * noise

    @torch.no_grad()
    def latents(self, batch: ViewBatch) -> Tensor:
        """Scaled latents (B, V, C, h, w) of the targets, drawn from the VAE's answer."""
        mean, spread = self._encoded(batch.targets.flatten(0, 1))
        drawn = mean + spread * batch.draw[:, :-1].flatten(0, 1)
        return (drawn * VAE_SCALE).unflatten(0, batch.targets.shape[:2])

    @torch.no_grad()
    def _encoded(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Middle and spread of the VAE's answer to pictures (N, 3, S, S) in [0, 1], not scaled; in fp32."""
        with torch.autocast(pictures.device.type, enabled=False):
            answer = self.model.network.vae.encode(pictures * 2 - 1).latent_dist
            return answer.mean, answer.std

    @torch.no_grad()
    def embeddings(self, condition: Tensor) -> Tensor:
        """CLIP's projected embeddings (B, D) of pictures (B, 3, S, S) in [0, 1]; in fp32."""
        encoder = self.model.network.image_encoder
        with torch.autocast(condition.device.type, enabled=False):
            pixels = clip_pixels(condition * 2 - 1, encoder.config.image_size)
            found: Tensor = encoder(pixels).image_embeds
        return found

    def exchanged(self, batch: ViewBatch) -> ViewBatch | None:
        """See `BaseTrainer`; the next object's picture with this one's cameras."""
        maker: Any = self.maker
        names = sum(len(source.names) for source in maker.sources)
        if min(names, batch_length(batch)) < 2:
            return None
        return replace(batch, condition=batch.condition.roll(1, 0))

    def render_problem(self, batch: ViewBatch) -> str | None:
        """See `BaseTrainer`; what the network sees behind half of the noise, against the truth by the same decoder."""
        at = replace(batch, time=torch.full_like(batch.time, _HALFWAY))
        clean = self.latents(at)
        noisy = self.noised(clean, at.noise, at.time)
        with self.accelerator.autocast():
            noise = self.predicted(at, noisy).float()
        index, kept = torch.arange(len(at.view), device=at.view.device), self.keep[_HALFWAY]
        seen = (noisy[index, at.view] - (1 - kept).sqrt() * noise) / kept.sqrt()
        try:
            made, truth = ((self.model.decode(x).to(seen) / 2 + 0.5) for x in (seen, clean[index, at.view]))
        except WeightsError as error:  # not finite
            return f"views could not be decoded: {error}"
        return view_problem(made.clamp(0, 1), truth.clamp(0, 1), at.alpha[index, at.view])

    def save_model(self) -> None:
        """Write ``model/`` with the averaged weights, and ``adapter/`` where adapters were trained."""
        training = {"steps": self.step, "objects": self.step * self.config.batch_size, "train": self.config.train}
        extra = {**self.origin, "name": self.out.resolve().name, "weights": "ema", "training": training}
        network = self.model.network
        with self.averaged_weights():
            if self.config.train == "lora":
                save_adapter(self.out / "adapter", network.unet, self.lora, self.config.init)
            with adapters_merged(network.unet):
                self.model.save_pretrained(self.out / "model", extra, DTYPES[self.config.save_dtype])

    @torch.no_grad()
    def validate(self) -> None:
        """See `BaseTrainer`: the loss on unseen objects, PSNR of views that are drawn, and a picture of these."""
        maker: Any = self.maker
        source = self.val or maker.sources[0]
        with self.averaged_weights():
            found: dict[str, float] = {}
            if self.val is not None:
                found["val_loss"] = self.probe_loss(maker.fixed(self.val, _VALIDATED, (0, TRAIN_STEPS - 1)))
            try:
                rows = self._preview_rows(source)
            except WeightsError as error:  # numbers that are not finite end no run here: the guards see to them
                self.alarm("preview", f"no preview: {error}")
                return
        if not rows:
            self.log(found)
            return
        found["val_psnr" if self.val else "psnr"] = float(np.mean([_psnr(a, b) for _, a, b in rows]))
        self.log(found)
        file = self.out / "previews" / f"{self.step:06d}.png"
        conditions, truth, made = (list(column) for column in zip(*rows, strict=True))
        self.picture(file, write_posed_preview(file, conditions, truth, made))

    def _preview_rows(self, source: ViewSource) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of some objects the picture (4, S, S), true views and drawn views (K, 3, S, S)."""
        rows = []
        count = min(self.config.preview_objects, len(source.names))
        for obj in np.unique(np.linspace(0, len(source.names) - 1, count).astype(int)):
            seen = source.shown(int(obj), _SHOWN)
            with self.accelerator.autocast():
                made = self.sampled(seen, torch.Generator().manual_seed(int(obj))).float().cpu()
            some = np.unique(np.linspace(0, len(made) - 1, _SHOWN + 1).astype(int)[:_SHOWN]).tolist()
            rows.append((_opaque(seen.condition), seen.targets[some], made[some]))
        return rows


def _opaque(picture: Tensor) -> Tensor:
    """(3, S, S) → (4, S, S)."""
    return torch.cat([picture, torch.ones_like(picture[:1])])


def _psnr(truth: Tensor, made: Tensor) -> float:
    """In dB, mean over views (K, 3, S, S)."""
    error = (truth - made).square().mean((1, 2, 3)).clamp(min=1e-8)
    return float((-10 * error.log10()).mean())


def _kept(condition: Tensor, keep: Tensor) -> Tensor:
    """(B, ...) with the rows where ``keep`` (B,) is false set to 0."""
    return torch.where(keep.view(-1, *[1] * (condition.ndim - 1)), condition, torch.zeros_like(condition))


class Zero123Tuner(ViewTuner):
    """One run of Zero123 or a relative; see `ViewTuner`."""

    trained_parts = ("unet", "cc_projection")
    fast_part = "cc_projection"

    def make_random(self) -> Zero123:
        """See `ViewTuner`."""
        config = config_from_dict(Zero123Config, self.config.network, "network")
        return Zero123(Zero123Network(config), self.config.family, weights="raw")

    def world(self) -> ViewWorld:
        """See `ViewTuner`."""
        config: Zero123Config = self.model.config
        side = config.unet.latent_size
        return ViewWorld("zero123", config.image_size, (config.unet.out_channels, side, side), config.pose_rule)

    def predicted(self, batch: ViewBatch, noisy: Tensor) -> Tensor:
        """See `ViewTuner`.

        Where the embedding is left out it is 0 before the projection, the camera stays; the latent beside is 0.
        """
        network, share = self.model.network, self.config.dropping
        embedding = _kept(self.embeddings(batch.condition), batch.dropped >= 2 * share)
        middle, _ = self._encoded(batch.condition)
        beside = _kept(middle, (batch.dropped < share) | (batch.dropped >= 3 * share))
        tokens = network.cc_projection(torch.cat([embedding, batch.pose[:, 0]], -1))[:, None]
        joined = torch.cat([noisy[:, 0], beside], 1)
        found: Tensor = network.unet(joined, batch.time, encoder_hidden_states=tokens, return_dict=False)[0]
        return found

    def sampled(self, seen: Seen, generator: torch.Generator) -> Tensor:
        """See `ViewTuner`."""
        model: Zero123 = self.model
        condition = model.condition(seen.condition[None].to(self.device) * 2 - 1, seen.pose)
        start = draw_noise((len(seen.pose), *self.world().latent), generator, model.device)
        scale = 3.0 if self.config.guidance_scale is None else self.config.guidance_scale
        latents = model.denoise(
            start, condition, num_inference_steps=self.config.preview_steps, guidance_scale=scale,
            step_noise=lambda _: torch.zeros_like(start),
        )  # fmt: skip
        return (model.decode(latents) / 2 + 0.5).clamp(0, 1)


class SyncDreamerTuner(ViewTuner):
    """One run of SyncDreamer; see `ViewTuner`. The volume is built of all views, and one view is asked for."""

    trained_parts = ("volume", "depth")
    fast_part = "volume"

    def make_random(self) -> SyncDreamer:
        """See `ViewTuner`."""
        sizes = config_from_dict(SyncDreamerSizes, self.config.network, "network")
        return SyncDreamer(SyncDreamerNetwork(sizes), name=self.config.family)

    def world(self) -> ViewWorld:
        """See `ViewTuner`."""
        sizes = self.model.network.sizes.volume
        latent = (sizes.latent_channels, sizes.latent_size, sizes.latent_size)
        return ViewWorld("syncdreamer", self.model.image_size, latent)

    def predicted(self, batch: ViewBatch, noisy: Tensor) -> Tensor:
        """See `ViewTuner`; what is left out is 0, as guidance has it in sampling."""
        network, share, dropped = self.model.network, self.config.dropping, batch.dropped
        index = torch.arange(len(batch.view), device=batch.view.device)

        def there(number: int) -> Tensor:
            """Whether neither everything nor condition ``number`` of three is left out."""
            low, high = number * share, (number + 1) * share
            return (dropped >= share) & ~((dropped >= low) & (dropped < high))

        middle, spread = self._encoded(batch.condition)
        beside = _kept(middle + spread * batch.draw[:, -1], there(1))
        volumes = self._volumes(batch, noisy, there(2))
        joined = torch.cat([self.embeddings(batch.condition), batch.pose[index, batch.view]], -1)
        tokens = _kept(network.cc_projection(joined)[:, None], there(3))
        x = torch.cat([noisy[index, batch.view], beside], 1)
        with looking_along_rays(network.unet, network.depth, volumes) as unet:
            found: Tensor = unet(x, batch.time, encoder_hidden_states=tokens, return_dict=False)[0]
        return found

    def _volumes(self, batch: ViewBatch, noisy: Tensor, there: Tensor) -> dict[int, Tensor]:
        """What the depth layers of each object's view read: {width W: (B, C, D, W, W)}."""
        volume, found = self.model.network.volume, []
        for i, view in enumerate(batch.view.tolist()):
            time, views = batch.time[i : i + 1], batch.pose[i]
            whole = volume.spatial_volume(noisy[i], time, views)
            found.append(volume.frustum_volumes(whole, time, views, [view]))
        return {width: _kept(torch.cat([one[width] for one in found]), there) for width in found[0]}

    def sampled(self, seen: Seen, generator: torch.Generator) -> Tensor:
        """See `ViewTuner`."""
        made: Any = self.model(
            _opaque(seen.condition), elevation_deg=seen.elevation_deg, generator=generator, output_type="pt",
            num_inference_steps=self.config.preview_steps, guidance_scale=self.config.guidance_scale,
        )  # fmt: skip
        assert len(made) == N_VIEWS
        return made


TUNERS: dict[str, Callable[[ViewTuneConfig, Path], ViewTuner]] = {
    "zero123": Zero123Tuner,
    "syncdreamer": SyncDreamerTuner,
}
