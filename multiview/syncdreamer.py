"""SyncDreamer: one picture → sixteen views at once, which agree because they are denoised through a common volume.

One step, for the sixteen noisy latents (16, 4, 32, 32) that all stand at one time t::

    latents ─► ViewEncoder ─► features (16, 16, 32, 32) ─► unproject ─► 256 channels on the 32³ grid
                                                                                 ▼
                                                  SpatialNetwork ─► spatial volume (64, 32, 32, 32)      once a step
    ────────────────────────────────────────────────────────────────────────────────────────────────────────────────
    spatial volume ─► read on 48 planes before view k ─► FrustumNetwork ─► volumes of width 32, 16, 8, 4    per view
                                                                                 ▼
    [latent k | picture's latent], token k ─► UNet2DConditionModel with ten DepthLayers ─► noise of view k

The base (UNet, VAE, CLIP, pose projection) is Zero123-XL's, see zero123.py; the volumes and the depth layers that hang
on the UNet's decoder are in syncdreamervolumes.py; here stand the weights, the conditioning and the sampler.

Source: Liu et al. 2023 (arXiv 2309.03453). Written from measured facts about the published model, not from its code;
tests/parity/test_syncdreamer.py compares the numbers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .checkpoint import CHECKPOINT_SUFFIXES
from .color import bytes_from_unit
from .devices import CPU
from .errors import SettingsError, WeightsError
from .fastrun import SyncRun, guide, sync_functions
from .files import folder_written_whole, write_json_whole
from .generator import (
    LAST_TIMESTEP,
    FiniteSteps,
    OnPreview,
    OnStep,
    SchedulerName,
    check_settings,
    draw_noise,
    is_ddim,
    make_scheduler,
    matte_from_white,
    module_dtype,
    on_device,
    over_white,
    set_timesteps,
    showing_latents,
)
from .hub import hub_file, is_hub_id
from .keymap import KeyTable
from .ldm import (
    SCHEDULE_BUFFERS,
    VAE_SCALE,
    ClipSizes,
    UNetSizes,
    VaeSizes,
    clip_pixels,
    clip_renames,
    fill_parts,
    ldm_tensors,
    make_clip,
    make_unet,
    make_vae,
    read_ldm,
    text_leftovers,
    unet_renames,
    vae_renames,
)
from .networks import NetworkGenerator, Stage, require_files, unet_numbers, vae_numbers
from .syncdreamervolumes import (
    DEPTH_RENAMES,
    N_VIEWS,
    VOLUME_RENAMES,
    DepthLayers,
    VolumeNetwork,
    VolumeSizes,
    keep_norms_fp32,
    looking_along_rays,
    ring_cameras,
    view_embeddings,
    volume_numbers,
)
from .views import Views
from .weights import (
    CONFIG_FILE,
    FORMAT_VERSION,
    config_from_dict,
    read_config_json,
    read_safetensors,
    write_safetensors,
)

logger = logging.getLogger("trilift")

FOREGROUND_RATIO = 200 / 256
NUM_INFERENCE_STEPS = 50
GUIDANCE_SCALE = 2.0
ARCHITECTURE = "syncdreamer"
PUBLISHED_FILE = "syncdreamer-pretrain.ckpt"
# A folder of ours has one sub-folder per part of the network, with this file in it.
PARTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "image_encoder": "model.safetensors",
    "cc_projection": "diffusion_pytorch_model.safetensors",
    "volume": "model.safetensors",
    "depth": "model.safetensors",
}
LICENCE = "weights: not stated by their publisher (made from Zero123-XL's, MIT); code: MIT"
# The elevations of the pictures that it was trained on.
TRAINED_ELEVATIONS_DEG = (-10.0, 40.0)


@dataclass(frozen=True)
class SyncDreamerSizes:
    """Sizes of all the parts; the defaults are the published model."""

    unet: UNetSizes = field(default_factory=UNetSizes)
    vae: VaeSizes = field(default_factory=VaeSizes)
    clip: ClipSizes = field(default_factory=ClipSizes)
    volume: VolumeSizes = field(default_factory=VolumeSizes)


class SyncDreamerNetwork(nn.Module):
    """All the parts, under the names that our files have.

    Attributes:
        unet, vae, image_encoder: of `diffusers` and `transformers`, as in Zero123.
        cc_projection: picture's embedding and view embedding, joined → token.
        volume, depth: see `VolumeNetwork` and `DepthLayers`.
    """

    def __init__(self, sizes: SyncDreamerSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.unet = make_unet(sizes.unet)
        self.vae = make_vae(sizes.vae)
        self.image_encoder = make_clip(sizes.clip)
        width = sizes.clip.projection_width
        self.cc_projection = nn.Linear(width + sizes.volume.view_numbers, sizes.unet.context_width)
        self.volume = VolumeNetwork(sizes.volume)
        self.depth = DepthLayers(sizes.unet.channels, sizes.volume.widths)


def use_dtype(network: SyncDreamerNetwork, dtype: torch.dtype) -> SyncDreamerNetwork:
    """Convert a network to ``dtype``, all but the norms of the volume networks and depth layers, which stay fp32."""
    network.to(dtype)
    keep_norms_fp32(network)
    return network


_CLIP = "clip_image_encoder.model"
_CAMERAS = "the cameras of the views are computed here"
KEYS = KeyTable(
    renames=(
        *unet_renames(),
        *vae_renames(),
        *clip_renames(f"{_CLIP}.visual"),
        ("cc_projection", "cc_projection"),
        *VOLUME_RENAMES,
        *DEPTH_RENAMES,
    ),
    dropped={**SCHEDULE_BUFFERS, **text_leftovers(_CLIP), "poses": _CAMERAS, "Ks": _CAMERAS, "azimuth": _CAMERAS},
)


@dataclass(frozen=True)
class Condition:
    """What the steps are told of the picture.

    Attributes:
        latent: (1, 4, H, W) fp32, the VAE's, not scaled by `VAE_SCALE`.
        tokens: (16, 1, D) fp32, one for each view.
        views: (16, 4) fp32, see `view_embeddings`.
    """

    latent: Tensor
    tokens: Tensor
    views: Tensor


OnStepEnd = Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor] | None]
"""As in diffusers: (generator, index of the step from 0, its time, {"latents": ...}) → latents to take their place."""
OutputType = Literal["views", "pil", "np", "pt", "latent"]


class SyncDreamer(NetworkGenerator):
    """SyncDreamer as a `ViewGenerator`: sixteen views at 30 degrees of elevation, 22.5 degrees apart.

    Attributes:
        network: in evaluation mode.
        scheduler: of `diffusers`; another one that predicts noise may be put in its place.
        device: where the work is done.

    Args:
        network: its parameters on the device.
        name: see `ViewGenerator`.
        scheduler: how the noise is taken off; ``ddim`` is the published program's.
        offload: keep every network on the CPU but while it works.
        source: where the weights came from, for people.
    """

    architecture = ARCHITECTURE
    has_run_options = True
    own_files = tuple(f"{part}/{file}" for part, file in PARTS.items())
    foreground_ratio = FOREGROUND_RATIO

    def __init__(
        self,
        network: SyncDreamerNetwork,
        *,
        name: str = ARCHITECTURE,
        scheduler: SchedulerName = "ddim",
        offload: bool = False,
        source: str = "",
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name = name
        # 256 for the published sizes.
        self.image_size = network.sizes.volume.latent_size * 2 ** (len(network.sizes.vae.channels) - 1)
        self.scheduler = make_scheduler(scheduler)
        self.device: torch.device = network.cc_projection.weight.device
        self.offload = offload
        self.record = {"weights": "raw", "source": source}

    def _convert(self, dtype: torch.dtype) -> None:
        use_dtype(self.network, dtype)

    @property
    def networks(self) -> tuple[SyncDreamerNetwork]:
        """All the parts in one."""
        return (self.network,)

    @property
    def denoiser(self) -> Any:
        """The UNet."""
        return self.network.unet

    @property
    def n_views(self) -> int:
        """Sixteen."""
        return N_VIEWS

    def stages(self, view_batch_size: int) -> tuple[Stage, ...]:
        """See `NetworkGenerator.stages`."""
        net, picture = self.network, self.image_size**2
        latents = unet_numbers(net.unet, 2 * view_batch_size, net.sizes.volume.latent_size)
        # Norms and look-ups of the volume networks are in fp32 whatever the dtype.
        volumes = volume_numbers(net.sizes.volume, view_batch_size) * 4 // self.dtype.itemsize
        return (
            Stage((net.image_encoder, net.vae, net.cc_projection), vae_numbers(net.vae, encoded_pixels=picture)),
            Stage((net.unet, net.volume, net.depth), latents + volumes),
            Stage((net.vae,), vae_numbers(net.vae, decoded_pixels=view_batch_size * picture)),
        )

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
    ) -> Views:
        """See `ViewGenerator.generate`.

        ``parity`` takes the published program's list of times, which is longer than ``num_inference_steps`` where that
        does not divide 1000; with 50 steps there is no difference.
        """
        made = self(
            image, elevation_deg=elevation_deg, generator=generator, num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale, view_batch_size=view_batch_size, on_step=on_step, parity=parity,
            callback_on_step_end=showing_latents(on_preview),
        )  # fmt: skip
        assert isinstance(made, Views)
        return made

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor,
        *,
        elevation_deg: float,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        eta: float = 1.0,
        latents: Tensor | None = None,
        view_batch_size: int | None = None,
        on_step: OnStep | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        output_type: OutputType = "views",
        parity: bool = False,
    ) -> Views | Tensor | np.ndarray | list[Image.Image]:
        """`generate` with the words of a pipeline of `diffusers`.

        Args:
            eta: of DDIM: 1 adds fresh noise after every step but the last, as published; 0 adds none.
            latents: (16, 4, H, W) to start from, in the place of random ones.
            callback_on_step_end: see `OnStepEnd`; what it raises ends the run.
            output_type: ``views``; ``pil``, ``np`` (16, S, S, 3) or ``pt`` (16, 3, S, S), all over white and in [0, 1];
                or ``latent`` (16, 4, H, W).

        Raises:
            SettingsError: a setting is out of range, or an unknown ``output_type``.
        """
        steps = NUM_INFERENCE_STEPS if num_inference_steps is None else num_inference_steps
        scale = GUIDANCE_SCALE if guidance_scale is None else guidance_scale
        check_settings(
            elevation_deg=elevation_deg, num_inference_steps=steps, guidance_scale=scale,
            view_batch_size=view_batch_size,
        )  # fmt: skip
        if not 0 <= eta <= 1:
            raise SettingsError(f"eta={eta}: expected 0 (no fresh noise) to 1.")
        if output_type not in get_args(OutputType):
            raise SettingsError(f"output_type={output_type!r}: expected {', '.join(get_args(OutputType))}.")
        picture = over_white(image, self.image_size) * 2 - 1
        times = self.set_timesteps(steps, parity)

        def after_step(index: int, now: Tensor) -> Tensor:
            if callback_on_step_end is not None:
                now = (callback_on_step_end(self, index, times[index], {"latents": now}) or {}).get("latents", now)
            if on_step is not None:
                on_step(index + 1, len(times))
            return now

        condition = self.condition(picture, elevation_deg, generator)
        start = self._start(latents, generator)
        made = self.sample(start, condition, generator, scale, eta, view_batch_size, after_step)
        return made.cpu() if output_type == "latent" else _as_type(self.decode(made, view_batch_size), output_type)

    def _start(self, latents: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Noise (16, 4, H, W) fp32 to start from, or ``latents`` when they have that form."""
        sizes = self.network.sizes.volume
        shape = (N_VIEWS, sizes.latent_channels, sizes.latent_size, sizes.latent_size)
        if latents is None:
            return draw_noise(shape, generator, self.device) * float(self.scheduler.init_noise_sigma)
        if tuple(latents.shape) != shape:
            raise SettingsError(f"latents: expected {shape}, found {tuple(latents.shape)}.")
        return latents.to(self.device, torch.float32)

    def set_timesteps(self, steps: int, parity: bool = False) -> list[int]:
        """Tell the scheduler which times to visit; they are returned, latest first.

        Raises:
            SettingsError: ``parity`` with a scheduler other than DDIM.
        """
        scheduler = self.scheduler
        if parity and not is_ddim(scheduler):
            raise SettingsError(f"parity wants the scheduler ddim, found {type(scheduler).__name__}.")
        set_timesteps(scheduler, steps, self.device)
        if parity:
            times = torch.arange(0, LAST_TIMESTEP + 1, (LAST_TIMESTEP + 1) // steps).flip(0) + 1
            scheduler.timesteps = times[times <= LAST_TIMESTEP]
        listed: list[int] = scheduler.timesteps.tolist()
        return listed

    @torch.no_grad()
    def condition(
        self, picture: Tensor, elevation_deg: float, generator: torch.Generator | None = None, *, sample: bool = True
    ) -> Condition:
        """What the steps are told of a picture.

        Args:
            picture: (1, 3, S, S) in [-1, 1], over white.
            elevation_deg: of its camera.
            generator: of the noise in the latent.
            sample: draw the latent from the VAE's distribution, as in training; otherwise take the middle of it.
        """
        low, high = TRAINED_ELEVATIONS_DEG
        if not low <= elevation_deg <= high:
            logger.warning("%s was trained on elevations from %g to %g, not %g.", self.name, low, high, elevation_deg)
        net = self.network
        picture = picture.to(self.device, torch.float32)
        with on_device(self.device, net.image_encoder, net.vae, net.cc_projection, offload=self.offload):
            with FiniteSteps(net.image_encoder) as steps:
                pixels = clip_pixels(picture, net.sizes.clip.image_size)
                embedding = steps.run(lambda: self._embedding(pixels), "the picture's embedding")
            with FiniteSteps(net.vae) as steps:
                moments = steps.run(lambda: self._moments(picture), "the picture's latent")
            views = view_embeddings(elevation_deg).to(self.device)
            joined = torch.cat([embedding.expand(N_VIEWS, -1), views], -1)
            weight, bias = net.cc_projection.weight.float(), net.cc_projection.bias.float()
            tokens = F.linear(joined, weight, bias)[:, None]
        mean, log_variance = moments.chunk(2, 1)
        if sample:
            noise = draw_noise(tuple(mean.shape), generator, self.device)
            mean = mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * noise
        return Condition(mean, tokens, views)

    def _embedding(self, pixels: Tensor) -> Tensor:
        """CLIP's pixels (1, 3, P, P) → its projected embedding (1, D) fp32, not normalised."""
        encoder = self.network.image_encoder
        embedding: Tensor = encoder(pixels.to(module_dtype(encoder))).image_embeds
        return embedding.float()

    def _moments(self, picture: Tensor) -> Tensor:
        """Picture (1, 3, S, S) in [-1, 1] → mean and log variance of its latent, (1, 8, H, W) fp32."""
        vae = self.network.vae
        moments: Tensor = vae.encode(picture.to(module_dtype(vae))).latent_dist.parameters
        return moments.float()

    @torch.no_grad()
    def sample(
        self,
        latents: Tensor,
        condition: Condition,
        generator: torch.Generator | None,
        guidance_scale: float,
        eta: float,
        view_batch_size: int | None,
        after_step: Callable[[int, Tensor], Tensor],
    ) -> Tensor:
        """Take the noise off sixteen latents (16, 4, H, W), all of the scheduler's steps.

        ``after_step`` is given the step's index and the latents, and gives those to go on with.
        """
        net, times = self.network, self.scheduler.timesteps.tolist()
        run = self._run(condition, times, guidance_scale)
        working = (net.unet, net.volume, net.depth)
        with on_device(self.device, *working, offload=self.offload), FiniteSteps(*working) as steps:
            for index, time in enumerate(times):
                x = self.scheduler.scale_model_input(latents, time)
                what = f"{self.name}, step {index + 1} of {len(times)} (t = {time})"
                if run is None:
                    told = (x, time, condition, guidance_scale, view_batch_size)
                    noise = steps.run(partial(self._predict_noise, *told), what)
                else:
                    noise = steps.run(partial(self._noise_of, run, index, x, guidance_scale, view_batch_size), what)
                fresh = torch.zeros_like(latents)
                if eta > 0 and is_ddim(self.scheduler) and index + 1 < len(times):
                    fresh = draw_noise(tuple(latents.shape), generator, self.device)
                latents = after_step(index, self.advance(noise, time, latents, eta=eta, fresh_noise=fresh))
        return latents

    @torch.no_grad()
    def predict_noise(
        self,
        latents: Tensor,
        time: int,
        condition: Condition,
        guidance_scale: float = GUIDANCE_SCALE,
        view_batch_size: int | None = None,
    ) -> Tensor:
        """The noise in sixteen latents (16, 4, H, W) at a time in 0..999, guided; the same shape, fp32.

        The volume is built once, from all of them; ``view_batch_size`` views at a time then go through the UNet.
        """
        run = self._run(condition, [time], guidance_scale)
        if run is None:
            return self._predict_noise(latents, time, condition, guidance_scale, view_batch_size)
        return self._noise_of(run, 0, latents, guidance_scale, view_batch_size)

    def _run(self, condition: Condition, times: list[int], guidance_scale: float) -> SyncRun | None:
        """The networks over these times, None where the UNet has to be run by diffusers."""
        runner, net = self.runner(), self.network
        if runner is None:
            return None
        functions = None
        if self.run_options.compile:
            functions = runner.compiled(sync_functions(runner.fast, net.volume, net.depth))
        return SyncRun(
            runner.fast, net.volume, net.depth, condition.tokens, condition.views, condition.latent, times,
            guided=guidance_scale != 1, options=self.run_options, compiled=functions,
        )  # fmt: skip

    def _noise_of(
        self, run: SyncRun, step: int, latents: Tensor, guidance_scale: float, view_batch_size: int | None
    ) -> Tensor:
        """`predict_noise` in a step of a run."""
        return guide(run.predict(step, latents, self.pieces(N_VIEWS, view_batch_size)), guidance_scale)

    def _predict_noise(
        self, latents: Tensor, time: int, condition: Condition, guidance_scale: float, view_batch_size: int | None
    ) -> Tensor:
        """`predict_noise` by diffusers, whatever hangs on its UNet."""
        net = self.network
        volume_dtype = module_dtype(net.volume)
        timestep = torch.tensor([time], device=latents.device)
        views = condition.views.to(volume_dtype)
        volume = net.volume.spatial_volume(latents.to(volume_dtype), timestep, views)
        found = []
        for piece in self.pieces(N_VIEWS, view_batch_size):
            volumes = net.volume.frustum_volumes(volume, timestep, views, range(N_VIEWS)[piece])
            told = self.predict_branches(latents[piece], timestep, condition, piece, volumes, guidance_scale != 1)
            found.append(told[0] if guidance_scale == 1 else told[1] + guidance_scale * (told[0] - told[1]))
        return torch.cat(found)

    def predict_branches(
        self,
        latents: Tensor,
        timestep: Tensor,
        condition: Condition,
        piece: slice,
        volumes: dict[int, Tensor],
        unconditional: bool = True,
    ) -> Tensor:
        """The noise in some views' latents as seen with and without the picture.

        Args:
            latents: (n, 4, H, W) of those views.
            timestep: (1,).
            condition: of all sixteen.
            piece: which views these are.
            volumes: theirs, see `VolumeNetwork.frustum_volumes`.
            unconditional: give the second branch as well: zeros for the token, the latent and all the volumes.

        Returns:
            (2 or 1, n, 4, H, W) fp32, the branch with the picture first.
        """
        net, dtype = self.network, module_dtype(self.network.unet)
        tokens = condition.tokens[piece]
        beside = condition.latent.expand(len(latents), -1, -1, -1)
        if unconditional:
            latents = torch.cat([latents, latents])
            tokens = torch.cat([tokens, torch.zeros_like(tokens)])
            beside = torch.cat([beside, torch.zeros_like(beside)])
        x = torch.cat([latents, beside], 1).to(dtype)
        volumes = {width: volume.to(dtype) for width, volume in volumes.items()}
        with looking_along_rays(net.unet, net.depth, volumes) as unet:
            noise: Tensor = unet(x, timestep, encoder_hidden_states=tokens.to(dtype), return_dict=False)[0]
        return noise.float().unflatten(0, (2 if unconditional else 1, -1))

    def advance(self, noise: Tensor, time: int, latents: Tensor, *, eta: float, fresh_noise: Tensor) -> Tensor:
        """One step of the scheduler.

        Args:
            noise: (16, 4, H, W), as predicted.
            time: of this step.
            latents: (16, 4, H, W).
            eta: of DDIM; other schedulers have none.
            fresh_noise: (16, 4, H, W) standard normal for DDIM with ``eta`` > 0; zeros in the last step, whose
                direction is shortened by the noise's share all the same, as in the published program.
        """
        extra: dict[str, Any] = {"eta": eta, "variance_noise": fresh_noise} if is_ddim(self.scheduler) else {}
        advanced: Tensor = self.scheduler.step(noise, time, latents, **extra, return_dict=False)[0]
        return advanced

    @torch.no_grad()
    def decode(self, latents: Tensor, view_batch_size: int | None = None) -> Tensor:
        """Latents (V, 4, H, W), scaled by `VAE_SCALE` → pictures (V, 3, S, S) in [0, 1], fp32 on the CPU."""
        vae = self.network.vae

        def decoded(piece: slice) -> Tensor:
            x = (latents[piece] / VAE_SCALE).to(module_dtype(vae))
            pictures: Tensor = vae.decode(x, return_dict=False)[0]
            return pictures.float()

        with on_device(self.device, vae, offload=self.offload), FiniteSteps(vae) as steps:
            parts = [
                steps.run(partial(decoded, piece), f"{self.name}, decoding").cpu()
                for piece in self.pieces(len(latents), view_batch_size)
            ]
        return ((torch.cat(parts) + 1) / 2).clamp(0, 1)

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Tensor],
        sizes: SyncDreamerSizes | None = None,
        *,
        name: str = ARCHITECTURE,
        where: str = "weights",
        device: torch.device | str = CPU,
        dtype: torch.dtype = torch.float32,
        scheduler: SchedulerName = "ddim",
        offload: bool = False,
        published: bool = True,
    ) -> Self:
        """Build the model around tensors, strictly and without a second copy of those that fit as they are.

        Args:
            state: {published name: tensor}, or {our name: tensor} when ``published`` is False; not changed, but the
                network may share its memory.
            sizes: the published model's by default.
            name: see `ViewGenerator`.
            where: what to call the weights in an error, usually the file.
            device, dtype: of the networks; the 3D networks' norms are fp32.
            scheduler: see `multiview.generator.make_scheduler`.
            offload: see the class.
            published: which names ``state`` has.

        Raises:
            WeightsError: tensors missing, unknown or of another shape.
        """
        sizes = sizes or SyncDreamerSizes()
        network = fill_parts(
            lambda: use_dtype(SyncDreamerNetwork(sizes), dtype),
            ldm_tensors(state, KEYS) if published else state,
            where,
            key_map=KEYS if published else None,
            device=CPU if offload else device,
        )
        made = cls(network, name=name, scheduler=scheduler, offload=offload)
        made.device = torch.device(device)
        return made

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        scheduler: SchedulerName = "ddim",
        device: torch.device | str = CPU,
        dtype: torch.dtype = torch.float32,
        offload: bool = False,
    ) -> Self:
        """Load the published checkpoint, or a folder that `save_pretrained` wrote, strictly.

        The published file holds raw weights alone; it has no running averages.

        Args:
            source: ``syncdreamer-pretrain.ckpt`` (or the same tensors as .safetensors), a folder with it inside, our
                folder, or a repository on the hub that has the file.
            revision: commit, branch or tag on the hub.
            scheduler, device, dtype, offload: see `from_state`.

        Raises:
            WeightsError: not there, damaged, another architecture, or tensors that do not fit.
        """
        options: dict[str, Any] = {"scheduler": scheduler, "device": device, "dtype": dtype, "offload": offload}
        path = Path(source)
        if not path.exists() and is_hub_id(str(source)):
            path = hub_file(str(source), PUBLISHED_FILE, revision=revision).path
        if not (path / CONFIG_FILE).exists() and (path / PUBLISHED_FILE).exists():
            path = path / PUBLISHED_FILE
        if path.suffix in CHECKPOINT_SUFFIXES and not path.is_dir():
            return cls.from_state(read_ldm(path), where=str(path), **options)
        values = read_config_json(path)
        if values.get("architecture") != ARCHITECTURE:
            raise WeightsError(f"{path}: architecture {values.get('architecture')!r}, expected {ARCHITECTURE!r}.")
        sizes = config_from_dict(SyncDreamerSizes, values.get("network", {}), f"{path}/{CONFIG_FILE}")
        state = {
            f"{part}.{key}": tensor
            for part, file in PARTS.items()
            for key, tensor in read_safetensors(path / part / file).items()
        }
        return cls.from_state(state, sizes, name=path.name, where=str(path), published=False, **options)

    @classmethod
    def load(cls, place: Path, *, name: str, device: torch.device, dtype: torch.dtype, **options: Any) -> Self:
        """See `StoredGenerator.load`; there are no options."""
        made = cls.from_pretrained(place, device=device, dtype=dtype, **options)
        made.name = name
        return made

    @classmethod
    def weight_files(cls, place: Path, **options: Any) -> list[Path]:
        """See `StoredGenerator.weight_files`."""
        return require_files([place / part / file for part, file in PARTS.items()] if place.is_dir() else [place])

    def save_pretrained(
        self, folder: str | Path, extra: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Write a folder that `from_pretrained` reads: a sub-folder per part, those of libraries as these write them.

        See `StoredGenerator.save_pretrained`.
        """
        facts = {"weights": self.record["weights"], "licence": LICENCE, **(extra or {})}
        with folder_written_whole(folder, last=CONFIG_FILE) as aside:
            for part, file in PARTS.items():
                module = getattr(self.network, part)
                write_safetensors(aside / part / file, module.state_dict(), dtype)
                if hasattr(module, "config"):
                    write_json_whole(aside / part / CONFIG_FILE, _library_config(module))
            values = {"format": FORMAT_VERSION, "architecture": ARCHITECTURE, **facts}
            write_json_whole(aside / CONFIG_FILE, {**values, "network": asdict(self.network.sizes)})


def _library_config(module: Any) -> dict[str, Any]:
    """What the ``config.json`` of a part from diffusers or transformers says."""
    config = module.config
    values: dict[str, Any] = config.to_dict() if hasattr(config, "to_dict") else json.loads(module.to_json_string())
    return values


def _as_type(images: Tensor, output_type: OutputType) -> Views | Tensor | np.ndarray | list[Image.Image]:
    """Pictures (16, 3, S, S) in [0, 1], over white, as ``output_type`` wants them."""
    if output_type == "views":
        return Views(*matte_from_white(images), ring_cameras())
    if output_type == "pt":
        return images
    rows = images.permute(0, 2, 3, 1).numpy()
    return rows if output_type == "np" else [Image.fromarray(bytes_from_unit(row)) for row in rows]
