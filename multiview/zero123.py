"""Zero123, Zero123-XL and Stable Zero123: one picture and a relative camera → the object seen from there.

::

    cut-out over white ─┬─► CLIP ViT-L/14 ─► embedding (768) ─┐
    (1,3,256,256)       │            pose T (4) per view ─────┴─► cc_projection ─► one token per view (V, 1, 768)
                        │                                                                  ▼ cross-attention
                        └─► VAE encoder ─► condition latent ─► ‖ noisy latents ─► UNet ─► noise, step by step
                                           (4, 32, 32), unscaled  (V, 4, 32, 32)                 ▼
                                                                            VAE decoder ─► views (V, 3, 256, 256)

One architecture, three families of weights, two pose rules: what the fourth pose number means. Any relative cameras can
be asked for; every view is made alone, so that nothing but the picture keeps them consistent.

Source: Liu et al. 2023 (arXiv 2303.11328); Deitke et al. 2023 (arXiv 2307.05663) for XL. Written from measured facts on
top of diffusers' and transformers' classes; tests/parity/test_zero123.py compares the published numbers.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from .cameras import Cameras, orbit
from .checkpoint import CHECKPOINT_SUFFIXES
from .color import bytes_from_unit
from .devices import CPU
from .errors import SettingsError, WeightsError
from .fastrun import UNetRun, fast_forward, guide
from .generator import (
    FiniteSteps,
    OnPreview,
    OnStep,
    check_settings,
    draw_noise,
    make_scheduler,
    matte_from_white,
    module_dtype,
    on_device,
    over_white,
    set_timesteps,
    showing_latents,
)
from .hub import is_hub_id
from .ldm import VAE_SCALE, Weights, choose_weights, clip_pixels, ldm_tensors, read_ldm
from .networks import NetworkGenerator, Stage, unet_numbers, vae_numbers
from .views import Views
from .zero123weights import (
    ARCHITECTURE,
    OWN_FILES,
    PoseRule,
    Zero123Config,
    Zero123Network,
    fetch_zero123,
    fill_zero123,
    folder_key,
    ldm_keys,
    part_files,
    read_folder_config,
    read_folder_state,
    require_pose_rule,
    save_zero123,
    weights_of_file,
)

FOV_DEG = math.degrees(2 * math.atan(16 / 35))
"""Of the training pictures: a 35 mm lens on a 32 mm sensor, 49.13 degrees."""
CAMERA_DISTANCE = 1.5
"""The nearest of the training cameras (1.5 to 2.2 away from an object of longest side 1), and the one under which an
object fills as much of the picture as the published programs frame it. The model keeps the input's unknown distance."""
DEFAULT_STEPS = 50
DEFAULT_GUIDANCE = 3.0
TRAIN_STEPS = 1000


@dataclass(frozen=True)
class Targets:
    """Cameras to be generated, V of them.

    Attributes:
        azimuth_rel_deg: relative to the input's camera, toward its right (counter-clockwise seen from above).
        elevation_deg: above the horizon, absolute.
        distance_change: how much further away than the input's camera, in units of the object's longest side; empty for
            no change. The model was trained with changes up to 0.7.

    Raises:
        SettingsError: lengths differ, no view, or an elevation outside [-90, 90].
    """

    azimuth_rel_deg: tuple[float, ...]
    elevation_deg: tuple[float, ...]
    distance_change: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        counts = {len(self.azimuth_rel_deg), len(self.elevation_deg), len(self.distance_change or self.elevation_deg)}
        if len(counts) != 1 or counts == {0}:
            raise SettingsError(
                f"targets want one azimuth and one elevation per view, found {len(self.azimuth_rel_deg)} and "
                f"{len(self.elevation_deg)}, with {len(self.distance_change)} changes of distance."
            )
        numbers = (*self.azimuth_rel_deg, *self.elevation_deg, *self.distance_change)
        if not all(map(math.isfinite, numbers)) or max(map(abs, self.elevation_deg)) > 90:
            raise SettingsError(f"targets want degrees, elevations in [-90, 90], found {self.elevation_deg}.")

    def __len__(self) -> int:
        return len(self.azimuth_rel_deg)

    @property
    def changes(self) -> tuple[float, ...]:
        """The V changes of distance, zeros where none are given."""
        return self.distance_change or (0.0,) * len(self)

    def cameras(self, distance: float = CAMERA_DISTANCE) -> Cameras:
        """Where the views are in the world frame, the input's camera at azimuth 0 and ``distance`` from the origin."""
        away = [distance + change for change in self.changes]
        return orbit(self.azimuth_rel_deg, self.elevation_deg, away, FOV_DEG)


def ring(count: int, elevation_deg: float = 0.0) -> Targets:
    """``count`` views around the object at one elevation, the first at the input's azimuth."""
    if count < 1:
        raise SettingsError(f"a ring wants 1 view or more, found {count}.")
    return Targets(tuple(360.0 * k / count for k in range(count)), (float(elevation_deg),) * count)


INSTANTMESH_TARGETS = Targets((30.0, 90.0, 150.0, 210.0, 270.0, 330.0), (20.0, -10.0) * 3)
"""The six views that InstantMesh was trained on (Zero123++ 1.2's azimuths and elevations)."""


def pose_numbers(rule: PoseRule, targets: Targets, elevation_deg: float) -> Tensor:
    """What the network is told about each target: (V, 4) float32.

    The first three are the change of the polar angle in radians (looking from further above is negative), and sine and
    cosine of the change of azimuth. The fourth is the change of distance, or, for Stable Zero123, the *absolute* polar
    angle of the input's camera in radians (pi / 2 for a level one).

    Args:
        rule: ``distance`` for Zero123 and Zero123-XL, ``polar`` for Stable Zero123.
        targets: V cameras.
        elevation_deg: of the input's camera.

    Raises:
        SettingsError: a change of distance is asked of a model that does not know distances.
    """
    if rule == "polar" and any(targets.changes):
        raise SettingsError(
            f"this model keeps the input's distance, found changes {targets.changes}. Leave distance_change out, or "
            "take Zero123-XL."
        )
    polar = torch.tensor([math.radians(elevation_deg - e) for e in targets.elevation_deg], dtype=torch.float64)
    azimuth = torch.deg2rad(torch.tensor(targets.azimuth_rel_deg, dtype=torch.float64))
    if rule == "polar":
        last = torch.full_like(polar, math.radians(90 - elevation_deg))
    else:
        last = torch.tensor(targets.changes, dtype=torch.float64)
    return torch.stack([polar, azimuth.sin(), azimuth.cos(), last], -1).float()


@dataclass(frozen=True)
class Condition:
    """What the UNet is told about the picture and the targets.

    Attributes:
        tokens: (V, 1, D) one token per view.
        latent: (1, 4, h, w) the picture's latent, not scaled.
    """

    tokens: Tensor
    latent: Tensor


@dataclass(frozen=True)
class GeneratedViews:
    """What `Zero123` gives when it is called as a pipeline.

    Attributes:
        images: (V, 3, S, S) in [0, 1] for ``pt``, (V, S, S, 3) numpy for ``np``, a list of PIL pictures for ``pil``,
            (V, 4, h, w) scaled latents for ``latent``.
        cameras: V cameras in the world frame.
    """

    images: Any
    cameras: Cameras


class Zero123(NetworkGenerator):
    """Zero123 and its relatives as a `ViewGenerator`, with the face of a diffusers pipeline.

    Args:
        network: the four parts.
        name: as in the registry, or the folder's.
        weights: which UNet weights these are: ``ema``, ``raw`` or ``unknown`` (conversions do not say).
        source: where they came from, for people.

    Attributes:
        targets: which views `generate` makes; InstantMesh's six unless it is told otherwise.
        camera_distance: that the input's camera is taken to have, in units of the object's longest side.
        record: see `StoredGenerator`; ``pose_rule`` too.
    """

    architecture = ARCHITECTURE
    has_run_options = True
    own_files = OWN_FILES

    def __init__(self, network: Zero123Network, name: str, *, weights: str = "unknown", source: str = "") -> None:
        self.network = network.eval().requires_grad_(False)
        self.name = name
        self.config = network.config
        self.image_size = self.config.image_size
        self.foreground_ratio = self.config.foreground_ratio
        self.targets = INSTANTMESH_TARGETS
        self.camera_distance = CAMERA_DISTANCE
        self.scheduler: Any = make_scheduler("ddim")
        self.record = {"weights": weights, "source": source, "pose_rule": self.config.pose_rule}
        self.device = network.cc_projection.weight.device

    # Loading and saving.

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        pose_rule: PoseRule | None = None,
        weights: Weights = "auto",
        variant: str | None = None,
        file: str | None = None,
        revision: str | None = None,
        name: str | None = None,
        device: torch.device | str = CPU,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Load our own folder, an original checkpoint, or a folder of one of the diffusers conversions; strictly.

        Args:
            path: a folder of `save_pretrained`; a ``.ckpt`` or ``.safetensors`` with the original names; a folder
                with unet, vae, image_encoder and cc_projection (or clip_camera_projection); or ``owner/name`` on
                the hub with one of these.
            pose_rule: see `pose_numbers`. Our own folders say it; for all others it has to be given.
            weights: for original checkpoints, whether to take the running averages (``ema``, what the published
                programs sample with) or the ``raw`` weights; ``auto`` takes averages where there are some.
            variant: for conversions with several files per part, such as ``fp16`` or ``fp16_ema``.
            file, revision: on the hub, the checkpoint (none for a conversion) and the commit, branch or tag.
            name: of the generator; the file's or folder's by default.
            device, dtype: where the networks shall be, and in what format.

        Raises:
            WeightsError: not there, damaged, of another kind, or tensors that do not fit.
            SettingsError: the pose rule is needed and not given, or contradicts what the folder says.
        """
        source = str(path)
        path = Path(path)
        if not path.exists() and is_hub_id(source):
            path, name = fetch_zero123(source, file=file, variant=variant, revision=revision), name or source
        if path.suffix in CHECKPOINT_SUFFIXES and not path.is_dir():
            config = Zero123Config(pose_rule=require_pose_rule(pose_rule, path))
            state = read_ldm(path)
            return cls.from_state(
                config, state, weights=weights, name=name or path.stem, where=str(path), device=device, dtype=dtype
            )
        if not path.is_dir():
            raise WeightsError(f"{path}: expected a folder or a checkpoint ({', '.join(CHECKPOINT_SUFFIXES)}).")
        said, config = read_folder_config(path, pose_rule)
        network = fill_zero123(config, read_folder_state(path, variant), str(path), folder_key, device, dtype)
        unet, *_ = part_files(path, variant)
        record = {"weights": weights_of_file(unet), "source": name or path.name} | said
        return cls(network, name or path.name, **record)

    @classmethod
    def from_state(
        cls,
        config: Zero123Config,
        state: Mapping[str, Tensor],
        *,
        weights: Weights = "auto",
        name: str = ARCHITECTURE,
        where: str = "weights",
        device: torch.device | str = CPU,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Build the generator around tensors with the names of the original checkpoints.

        Args:
            config: sizes and pose rule.
            state: {published name: tensor}; not changed, but the networks may share its memory.
            weights: see `from_pretrained`.
            name: of the generator.
            where: what to call the weights in an error, usually the file.
            device, dtype: where the networks shall be, and in what format.

        Raises:
            WeightsError: tensors missing, unknown or of another shape; or averages are wanted and there are none.
        """
        chosen, kind = choose_weights(state, weights, where)
        table = ldm_keys(config)
        network = fill_zero123(config, ldm_tensors(chosen, table), where, table, device, dtype)
        return cls(network, name, weights=kind, source=Path(where).name)

    @classmethod
    def load(cls, place: Path, *, name: str, device: torch.device, dtype: torch.dtype, **options: Any) -> Self:
        """See `StoredGenerator.load`; the options are ``pose_rule`` and ``variant``."""
        return cls.from_pretrained(place, name=name, device=device, dtype=dtype, **options)

    @classmethod
    def weight_files(cls, place: Path, **options: Any) -> list[Path]:
        """See `StoredGenerator.weight_files`."""
        return part_files(place, options.get("variant")) if place.is_dir() else [place]

    def save_pretrained(
        self, folder: str | Path, extra: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Write the folder that `from_pretrained` reads; see `StoredGenerator.save_pretrained`."""
        facts = {"weights": self.record["weights"], "source": self.record["source"], **(extra or {})}
        save_zero123(folder, self.network, facts, dtype)

    # What it is made of.

    @property
    def networks(self) -> tuple[Zero123Network]:
        """The four parts in one."""
        return (self.network,)

    @property
    def denoiser(self) -> Any:
        """The UNet."""
        return self.network.unet

    @property
    def n_views(self) -> int:
        """As many as there are targets."""
        return len(self.targets)

    def stages(self, view_batch_size: int) -> tuple[Stage, ...]:
        """See `NetworkGenerator.stages`."""
        net, picture = self.network, self.image_size**2
        return (
            Stage((net.image_encoder, net.vae, net.cc_projection), vae_numbers(net.vae, encoded_pixels=picture)),
            # With guidance there are two latents to a view.
            Stage((net.unet,), unet_numbers(net.unet, 2 * view_batch_size, self.config.unet.latent_size)),
            Stage((net.vae,), vae_numbers(net.vae, decoded_pixels=view_batch_size * picture)),
        )

    # Running.

    def generate(
        self,
        image: Tensor,
        *,
        elevation_deg: float,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        view_batch_size: int | None = None,
        on_step: OnStep | None = None,
        on_preview: OnPreview | None = None,
        parity: bool = False,
        targets: Targets | None = None,
    ) -> Views:
        """See `ViewGenerator.generate`; ``targets`` replaces the attribute for once.

        The background of the views is white; alpha is taken from it by `matte_from_white`.
        """
        made = self(
            image, elevation_deg=elevation_deg, generator=generator, num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale, view_batch_size=view_batch_size, on_step=on_step, parity=parity,
            targets=targets, callback_on_step_end=showing_latents(on_preview),
        )  # fmt: skip
        colors, alpha = matte_from_white(made.images.to(CPU))
        return Views(colors, alpha, made.cameras)

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor,
        *,
        elevation_deg: float,
        targets: Targets | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float | None = None,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: Literal["pt", "np", "pil", "latent"] = "pt",
        callback_on_step_end: Callable[[Zero123, int, int, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
        on_step: OnStep | None = None,
        view_batch_size: int | None = None,
        parity: bool = False,
    ) -> GeneratedViews:
        """Make the target views, in the manner of a diffusers pipeline.

        Args:
            image: (4, S, S) cut-out, see `ViewGenerator.generate`.
            elevation_deg: of the input's camera.
            targets: V cameras, the attribute's when None.
            num_inference_steps: 50 when None. In parity mode one step fewer is run, the noisiest being left out, and
                numbers that do not divide 1000 give a few more, as in the published program.
            guidance_scale: 3 when None; 1 is no guidance and half the work.
            eta: how much of DDIM's noise is drawn anew in every step; None is 0, or 1 in parity mode. In parity
                mode alone the last step leaves noise in the result.
            generator: where all randomness comes from.
            latents: (V, 4, h, w) to start from, drawn when None.
            output_type: see `GeneratedViews`. In parity mode 8-bit pictures are cut off, not rounded.
            callback_on_step_end: called with (self, step from 0, t, {"latents": ...}); may give other latents back.
            on_step: see `OnStep`.
            view_batch_size: views per pass; changes memory, never results.
            parity: sample as the published program does.

        Raises:
            ImageError, SettingsError, WeightsError: see `ViewGenerator.generate`.
        """
        chosen = self.targets if targets is None else targets
        steps = DEFAULT_STEPS if num_inference_steps is None else num_inference_steps
        scale = DEFAULT_GUIDANCE if guidance_scale is None else guidance_scale
        check_settings(
            elevation_deg=elevation_deg,
            num_inference_steps=steps,
            guidance_scale=scale,
            view_batch_size=view_batch_size,
        )
        if output_type not in ("pt", "np", "pil", "latent"):
            raise SettingsError(f"output_type {output_type!r}: expected pt, np, pil or latent.")
        cameras = chosen.cameras(self.camera_distance)
        condition = self.encode(image, pose_numbers(self.config.pose_rule, chosen, elevation_deg))
        start = self._start(len(chosen), latents, generator)

        def after(i: int, t: int, x: Tensor) -> Tensor:
            if callback_on_step_end is not None:
                x = (callback_on_step_end(self, i, t, {"latents": x}) or {}).get("latents", x)
            return x

        x = self.denoise(
            start, condition, num_inference_steps=steps, guidance_scale=scale, eta=eta, parity=parity,
            step_noise=lambda _: draw_noise(tuple(start.shape), generator, self.device),
            view_batch_size=view_batch_size, after_step=after, on_step=on_step,
        )  # fmt: skip
        return GeneratedViews(self._output(x, output_type, view_batch_size, parity), cameras)

    @torch.no_grad()
    def encode(self, image: Tensor, poses: Tensor) -> Condition:
        """What the UNet is told: from the cut-out (4, S, S) and pose numbers (V, 4)."""
        return self.condition(over_white(image, self.image_size).to(self.device) * 2 - 1, poses)

    @torch.no_grad()
    def condition(self, pixels: Tensor, poses: Tensor) -> Condition:
        """What the UNet is told: from pixels (1, 3, S, S) in [-1, 1] and pose numbers (V, 4)."""
        net = self.network
        used = (net.image_encoder, net.vae, net.cc_projection)
        with on_device(self.device, *used, offload=self.offload), FiniteSteps(*used) as steps:
            embedding = steps.run(lambda: self._embedding(pixels), "encoding the picture (CLIP)")
            latent = steps.run(lambda: self._latent(pixels), "encoding the picture (VAE)")
            tokens = steps.run(lambda: self.tokens(embedding, poses.to(self.device)), "projecting the cameras")
        return Condition(tokens, latent)

    def _embedding(self, pixels: Tensor) -> Tensor:
        """(1, 768) float32: the projected, pooled embedding, not normalised."""
        encoder = self.network.image_encoder
        small = clip_pixels(pixels, self.config.clip.image_size)
        return encoder(small.to(module_dtype(encoder))).image_embeds.float()

    def _latent(self, pixels: Tensor) -> Tensor:
        """(1, 4, h, w) float32: the posterior's mode. The networks were trained without the usual factor here."""
        vae = self.network.vae
        return vae.encode(pixels.to(module_dtype(vae))).latent_dist.mode().float()

    def tokens(self, embedding: Tensor, poses: Tensor) -> Tensor:
        """Embedding (1, 768) and poses (V, 4) → one token per view (V, 1, 768) float32."""
        projection = self.network.cc_projection
        joined = torch.cat([embedding.expand(len(poses), -1), poses], -1)
        return projection(joined.to(projection.weight.dtype)).float()[:, None]

    def _start(self, count: int, latents: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """(V, 4, h, w) noise, drawn or given."""
        side = self.config.unet.latent_size
        shape = (count, self.config.unet.out_channels, side, side)
        if latents is None:
            return draw_noise(shape, generator, self.device)
        if tuple(latents.shape) != shape:
            raise SettingsError(f"latents: expected {shape}, found {tuple(latents.shape)}.")
        return latents.to(self.device, torch.float32)

    @torch.no_grad()
    def denoise(
        self,
        latents: Tensor,
        condition: Condition,
        *,
        num_inference_steps: int,
        guidance_scale: float,
        step_noise: Callable[[int], Tensor],
        eta: float | None = None,
        parity: bool = False,
        view_batch_size: int | None = None,
        after_step: Callable[[int, int, Tensor], Tensor] | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """From noise to latents, all views at the same noise level.

        Args:
            latents: (V, 4, h, w) unit normal noise.
            condition: for the same V views.
            num_inference_steps, guidance_scale, eta, parity, view_batch_size: see `__call__`.
            step_noise: noise (V, 4, h, w) of a step (counted from 0), asked for where DDIM draws some.
            after_step: called with the step, t and the latents; gives the latents to go on with.
            on_step: see `OnStep`.

        Returns:
            (V, 4, h, w) scaled latents, float32.
        """
        scheduler = self.scheduler
        with_eta = "eta" in inspect.signature(scheduler.step).parameters
        eta = (1.0 if parity else 0.0) if eta is None else eta
        if (parity or eta) and not with_eta:
            raise SettingsError(f"{type(scheduler).__name__} has no eta and no parity mode. Take the scheduler ddim.")
        set_timesteps(scheduler, num_inference_steps, self.device)
        times = list(_parity_times(num_inference_steps)) if parity else scheduler.timesteps.tolist()
        x = latents * scheduler.init_noise_sigma
        unet = self.network.unet
        run = self._run(condition, times, guidance_scale)
        with on_device(self.device, unet, offload=self.offload), FiniteSteps(unet) as steps:
            for i, t in enumerate(times):
                noise = self._predict(
                    scheduler.scale_model_input(x, t), (i, t), condition, guidance_scale, view_batch_size, steps,
                    f"step {i + 1} of {len(times)} (t = {t})", run,
                )  # fmt: skip
                extra: dict[str, Any] = {}
                if with_eta and eta and (parity or i + 1 < len(times)):
                    extra = {"eta": eta, "variance_noise": step_noise(i)}
                x = scheduler.step(noise, t, x, **extra).prev_sample
                x = x if after_step is None else after_step(i, t, x)
                if on_step is not None:
                    on_step(i + 1, len(times))
        return x

    def _run(self, condition: Condition, times: Sequence[int], scale: float) -> UNetRun | None:
        """The UNet over these times, None where it has to be run by diffusers."""
        runner = self.runner()
        if runner is None:
            return None
        functions = None
        if self.run_options.compile:
            functions = runner.compiled({"unet": fast_forward(runner.fast)})["unet"]
        return UNetRun(
            runner.fast, condition.tokens, times, guided=scale != 1, options=self.run_options, forward=functions
        )

    def _predict(
        self, x: Tensor, step: tuple[int, int], condition: Condition, scale: float, size: int | None,
        steps: FiniteSteps, what: str, run: UNetRun | None,
    ) -> Tensor:  # fmt: skip
        """The guided noise of all views, (V, 4, h, w) float32, ``size`` views per pass, in a step (index, t)."""
        found, (index, t) = [], step
        for piece in self.pieces(len(x), size):
            part = None if run is None else (run, index, piece)
            told = (x[piece], t, condition.tokens[piece], condition.latent, scale, part)
            found.append(steps.run(functools.partial(self.guided_noise, *told), what))
        return torch.cat(found)

    def guided_noise(
        self, x: Tensor, t: int, tokens: Tensor, latent: Tensor, scale: float,
        part: tuple[UNetRun, int, slice] | None = None,
    ) -> Tensor:  # fmt: skip
        """Noise with guidance (V, 4, h, w): unconditional + scale * (conditional - unconditional).

        Unconditional means a token of zeros, after the projection, and a condition latent of zeros. In a run ``part``
        says which, the index of the step, and which of its views these are; by itself it is worked out by diffusers.
        """
        if part is not None:
            run, step, piece = part
            return guide(run.predict(step, x, latent, piece), scale)
        if scale == 1:
            return self.noise(x, t, tokens, latent)
        both = torch.cat([torch.zeros_like(latent).expand(len(x), -1, -1, -1), latent.expand(len(x), -1, -1, -1)])
        both_tokens = torch.cat([torch.zeros_like(tokens), tokens])
        free, told = self.noise(torch.cat([x, x]), t, both_tokens, both).chunk(2)
        return free + scale * (told - free)

    def noise(self, x: Tensor, t: int, tokens: Tensor, latent: Tensor) -> Tensor:
        """The UNet's prediction (V, 4, h, w) float32 for latents, one t, tokens (V, 1, D) and latents (V or 1, ...)."""
        unet = self.network.unet
        dtype = module_dtype(unet)
        joined = torch.cat([x, latent.expand(len(x), -1, -1, -1)], 1)
        predicted = unet(joined.to(dtype), t, encoder_hidden_states=tokens.to(dtype), return_dict=False)[0]
        return predicted.float()

    @torch.no_grad()
    def decode(self, latents: Tensor, view_batch_size: int | None = None) -> Tensor:
        """Scaled latents (V, 4, h, w) → pictures (V, 3, S, S) float32, about [-1, 1], not clamped."""
        vae = self.network.vae
        found = []
        with on_device(self.device, vae, offload=self.offload), FiniteSteps(vae) as steps:
            for piece in self.pieces(len(latents), view_batch_size):
                call = functools.partial(self._decode, latents[piece])
                found.append(steps.run(call, f"decoding views {piece.start + 1} to {piece.stop}"))
        return torch.cat(found)

    def _decode(self, latents: Tensor) -> Tensor:
        vae = self.network.vae
        return vae.decode((latents / VAE_SCALE).to(module_dtype(vae)), return_dict=False)[0].float()

    def _output(self, latents: Tensor, output_type: str, view_batch_size: int | None, parity: bool) -> Any:
        if output_type == "latent":
            return latents
        images = (self.decode(latents, view_batch_size) / 2 + 0.5).clamp(0, 1)
        if parity:
            images = (images * 255).floor() / 255
        if output_type == "pt":
            return images
        arrays = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "np":
            return arrays
        from PIL import Image

        return [Image.fromarray(bytes_from_unit(one)) for one in arrays]


def _parity_times(count: int) -> Sequence[int]:
    """The published sampler's timesteps: uniform, + 1, from noisy to clean, without the noisiest."""
    times = range(1, TRAIN_STEPS + 1, TRAIN_STEPS // count)[:-1]
    if not times:
        raise SettingsError(f"num_inference_steps={count}: parity mode leaves one step out, so it wants 2 or more.")
    return times[::-1]
