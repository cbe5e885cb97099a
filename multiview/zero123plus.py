"""Zero123++: one picture → six fixed views, drawn on one sheet by a Stable Diffusion 2 network.

::

    cut-out over grey ─┬─ 224 px ─► CLIP ViT-H/14 ─► image embedding ─┐
                       │                     "" encoded + ramp × embedding = prompts (77, 1024) ─┐
                       └─ 512 px ─► VAE ─► condition latent (4, 64, 64), noised to the step's level ─► UNet, pass 1:
                                                                         self-attentions keep their inputs ─┐
    noise (4, 120, 80) ─► [UNet, pass 2: self-attentions also read what pass 1 kept] × steps ◄──────────────┘
                                    └─► (z / 0.75 + 0.22) / 0.18215 ─► VAE ─► × 1.6 ─► sheet of 3 × 2 tiles ─► Views

What is peculiar to the weights, and what they do not work without: images are drawn at 0.625 of their range and latents
shifted and scaled; the condition latent is a sample of the VAE's posterior that is neither; the noise schedule is truly
linear, the prediction v, and the steps are ``trailing``; the branch without the picture sees the latent of mid grey and
the prompt "" alone. Published parts: https://huggingface.co/sudo-ai/zero123plus-v1.2 (weights CC BY-NC 4.0).

Source: Shi et al. 2023 (arXiv 2310.15110). Written from measured facts about the published model, not from its code;
tests/parity/test_zero123plus.py compares with a second way of saying the same.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .attention import attend, join_heads, split_heads
from .color import bytes_from_unit
from .devices import CPU
from .errors import SettingsError, WeightsError
from .generator import (
    SCHEDULERS,
    FiniteSteps,
    OnPreview,
    OnStep,
    check_cutout,
    check_settings,
    draw_noise,
    make_scheduler,
    matte_from_white,
    module_dtype,
    on_device,
    pieces,
    rough_pictures,
    showing_latents,
)
from .networks import NetworkGenerator, Stage, require_files, vae_numbers
from .views import Views
from .zero123plusweights import (
    ARCHITECTURE,
    OWN_FILES,
    Parts,
    PictureRule,
    Version,
    Zero123PlusConfig,
    load_folder,
    save_plus_folder,
    weight_files,
)

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

LATENT_SHIFT, LATENT_SCALE = 0.22, 0.75
"""Latents are encoded as (z - shift) × scale; decoding takes both off."""
IMAGE_SCALE = 0.625
"""Sheets are encoded as [-1, 1] × this; decoding divides by it."""
NUM_INFERENCE_STEPS, GUIDANCE_SCALE = 28, 4.0
_UNET_NUMBERS = 21.0
"""Alive at once, at most, for each channel and pixel of both latents; counted as those of `multiview.networks`."""

PlusScheduler = Literal["euler-ancestral", "ddim", "dpm++", "unipc"]
PLUS_SCHEDULERS: tuple[PlusScheduler, ...] = ("euler-ancestral", *SCHEDULERS)
OutputType = Literal["views", "sheet", "pil", "latent"]


@dataclass(frozen=True)
class Condition:
    """What the UNet is told about the picture, for G guidance branches: the one without the picture, then the one with.

    Attributes:
        latents: (G, 4, h, w) fp32, condition latents before noise.
        prompts: (G, L, D) fp32, what cross-attention reads.
    """

    latents: Tensor
    prompts: Tensor


class ReferenceAttention:
    """An attention processor for `diffusers`, by which one run of a UNet can read another's self-attention inputs.

    It is told through ``cross_attention_kwargs``: with ``memory`` and ``write`` a self-attention puts its input into
    ``memory`` under its name; with ``memory`` alone its keys and values are made of its own input and what lies there.
    Cross-attentions, and calls without ``memory``, are ordinary.

    Attributes:
        name: of the layer.
        rows: queries per pass, None for all; changes memory, never results.
    """

    def __init__(self, name: str, rows: int | None = None) -> None:
        self.name = name
        self.rows = rows

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *,
        memory: dict[str, Tensor] | None = None,
        write: bool = False,
    ) -> Tensor:
        """(B, N, D) → (B, N, D); the arguments' names are those that `diffusers` calls a processor with."""
        assert attention_mask is None, "Zero123++ attends without masks"
        context = encoder_hidden_states
        if context is None:
            context = hidden_states
            if memory is not None and write:
                memory[self.name] = hidden_states
            elif memory is not None:
                context = torch.cat([hidden_states, memory[self.name]], 1)
        query, key, value = (
            split_heads(linear(x), attn.heads)
            for linear, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        rows = [attend(query[:, :, part], key, value) for part in pieces(query.shape[2], self.rows)]
        out: Tensor = attn.to_out[0](join_heads(torch.cat(rows, 2)))
        return out


def attend_to_reference(unet: UNet2DConditionModel, rows: int | None = None) -> None:
    """Put a `ReferenceAttention` into every attention layer of ``unet``; ``rows`` is its queries per pass."""
    unet.set_attn_processor({name: ReferenceAttention(name, rows) for name in unet.attn_processors})


def plus_scheduler(name: PlusScheduler = "euler-ancestral") -> Any:
    """A scheduler of `diffusers` on Zero123++'s noise: β truly linear, v-prediction, ``trailing`` steps.

    The published scheduler file says ``linspace``, and its README that this must be overridden.

    Raises:
        SettingsError: an unknown name.
    """
    import diffusers

    if name == "euler-ancestral":
        return diffusers.EulerAncestralDiscreteScheduler(
            num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="linear",
            prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=1,
        )  # fmt: skip
    if name not in PLUS_SCHEDULERS:
        raise SettingsError(f"scheduler {name!r}: expected {', '.join(PLUS_SCHEDULERS)}.")
    usual = make_scheduler(name, beta_schedule="linear", prediction_type="v_prediction")
    return type(usual).from_config(usual.config, timestep_spacing="trailing")


def set_steps(scheduler: Any, count: int, device: torch.device) -> None:
    """Have a scheduler of `diffusers` do exactly ``count`` steps.

    With ``trailing`` spacing it counts down by a fraction, and for some counts (61, 103, ...) rounding adds a step at
    t = -1.
    """
    scheduler.set_timesteps(count, device=device)
    if len(scheduler.timesteps) > count:
        scheduler.timesteps = scheduler.timesteps[:count]
        sigmas = getattr(scheduler, "sigmas", None)
        if sigmas is not None and len(sigmas) > count + 1:
            scheduler.sigmas = torch.cat([sigmas[:count], sigmas[-1:]])


# Pictures


def picture_over(image: Tensor, background: int) -> Image.Image:
    """A cut-out (4, S, S) in [0, 1] over an sRGB byte, in 8 bits as the published program has it."""
    check_cutout(image)
    rgba = Image.fromarray(bytes_from_unit(image.permute(1, 2, 0).float().cpu().numpy()))
    picture = Image.new("RGB", rgba.size, (background,) * 3)
    picture.paste(rgba, mask=rgba.getchannel("A"))
    return picture


def picture_input(picture: Image.Image, rule: PictureRule) -> Tensor:
    """An 8-bit square picture as (1, 3, size, size) fp32, by ``rule``."""
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    resized = picture.resize((rule.size, rule.size), filters[rule.resample])
    x = torch.from_numpy(np.asarray(resized, np.float32) / 255).permute(2, 0, 1)[None]
    mean, std = (torch.tensor(numbers).reshape(1, 3, 1, 1) for numbers in (rule.mean, rule.std))
    return (x - mean) / std


def rough_tiles(latents: Tensor) -> Tensor:
    """What latents (1, 4, 3 s, 2 s) of `Zero123Plus.sample` look like: (6, 3, s, s) in [0, 1], see `rough_pictures`."""
    drawn = rough_pictures(latents / LATENT_SCALE + LATENT_SHIFT)[0]
    return cut_sheet(((drawn - 0.5) / IMAGE_SCALE + 0.5).clamp(0, 1))


def cut_sheet(sheet: Tensor) -> Tensor:
    """A sheet (3, 3 S, 2 S) → its tiles (6, 3, S, S), row by row."""
    return sheet.unflatten(2, (2, -1)).unflatten(1, (3, -1)).permute(1, 3, 0, 2, 4).flatten(0, 1)


def matte_from_byte(images: Tensor, background: int) -> tuple[Tensor, Tensor]:
    """`multiview.generator.matte_from_white` for pictures that were drawn on another grey.

    Args:
        images: (V, 3, H, W) in [0, 1], sRGB.
        background: sRGB byte, 0..255.

    Returns:
        Straight colours (V, 3, H, W) and alpha (V, 1, H, W).
    """
    # How far each channel lies from the background, taken down from white: there the background is white, and a
    # mixture of object and background is the same mixture of their images.
    away = images - background / 255
    color, alpha = matte_from_white(1 - away.abs())
    return (background / 255 + away.sign() * (1 - color)).clamp(0, 1), alpha


# The model


class Zero123Plus(NetworkGenerator):
    """Zero123++ v1.1 or v1.2, with its own UNet or InstantMesh's.

    Args:
        parts: the networks, on one device, each in one dtype. The UNet's attention processors are replaced.
        config: what they do not say themselves; ``ramp`` must be as long as the prompt.
        name: see `ViewGenerator`.
        scheduler: see `plus_scheduler`.
        offload: keep every network on the CPU but while it works.

    Raises:
        WeightsError: parts that do not go together.
    """

    architecture = ARCHITECTURE
    own_files = OWN_FILES
    needs_elevation: ClassVar[bool] = False
    foreground_ratio = 0.85

    def __init__(
        self,
        parts: Parts,
        config: Zero123PlusConfig,
        *,
        name: str = ARCHITECTURE,
        scheduler: PlusScheduler = "euler-ancestral",
        offload: bool = False,
    ) -> None:
        _check_parts(parts, config, name)
        self.unet, self.vae, self.vision = (
            network.eval().requires_grad_(False) for network in (parts.unet, parts.vae, parts.vision)
        )
        self.prompt = parts.prompt.detach().float()
        self.config, self.name = config, name
        self.image_size = config.vae_picture.size
        self.set_scheduler(scheduler)  # an unknown name is found here rather than after the weights were used
        self.offload = offload
        self.device: torch.device = next(iter(self.unet.parameters())).device
        self.record = {"weights": "published", "source": name}
        attend_to_reference(self.unet)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """UNet, VAE and image encoder."""
        return (self.unet, self.vae, self.vision)

    @property
    def denoiser(self) -> Any:
        """The UNet."""
        return self.unet

    @property
    def n_views(self) -> int:
        """One: the six are one picture to the networks."""
        return 1

    def stages(self, view_batch_size: int) -> tuple[Stage, ...]:
        """See `NetworkGenerator.stages`."""
        sheet, picture = 6 * self.config.tile_size**2, self.config.vae_picture.size**2
        latents = self.unet.config.block_out_channels[0] * (sheet + picture) // 64
        return (
            Stage((self.vision,), self.vision.config.hidden_size * (self.vision.config.image_size // 8) ** 2),
            Stage((self.vae,), vae_numbers(self.vae, encoded_pixels=picture, decoded_pixels=sheet)),
            # The main pass, beside what it reads of the pass over the picture.
            Stage((self.unet,), math.ceil(_UNET_NUMBERS * latents)),
        )

    def set_scheduler(self, name: PlusScheduler) -> None:
        """Choose Euler ancestral, DDIM, DPM++ or UniPC.

        Raises:
            SettingsError: an unknown name.
        """
        self.scheduler = plus_scheduler(name)

    def enable_attention_slicing(self, slice_size: str | int = "auto") -> None:
        """Compute attention for so many queries at a time (``auto``: 1024); see `set_attention_slice`."""
        self.set_attention_slice(1024 if slice_size == "auto" else int(slice_size))

    def disable_attention_slicing(self) -> None:
        """Compute attention at once again."""
        self.set_attention_slice(None)

    def set_attention_slice(self, rows: int | None) -> None:
        """Compute attention for so many queries at a time (None: all); changes memory, never results.

        Raises:
            SettingsError: fewer than one.
        """
        if rows is not None and rows < 1:
            raise SettingsError(f"attention slice of {rows} rows: expected 1 or more, or None.")
        attend_to_reference(self.unet, rows)

    def generate(
        self,
        image: Tensor,
        *,
        elevation_deg: float = 0.0,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        view_batch_size: int | None = None,
        on_step: OnStep | None = None,
        on_preview: OnPreview | None = None,
        parity: bool = False,
    ) -> Views:
        """See `ViewGenerator.generate`; six views, as `Zero123PlusConfig.cameras` says.

        Two settings change nothing: ``view_batch_size``, since the six views are one picture to the network (see
        `set_attention_slice` for memory), and ``elevation_deg``, since their elevations count from the ground. The
        published program's way is a sane one and is the default; ``parity`` only insists on its scheduler where another
        was chosen.
        """
        result = self(
            image, elevation_deg=elevation_deg, generator=generator, num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale, view_batch_size=view_batch_size, on_step=on_step, parity=parity,
            callback_on_step_end=showing_latents(on_preview, rough_tiles),
        )  # fmt: skip
        assert isinstance(result, Views)
        return result

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor,
        *,
        elevation_deg: float = 0.0,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        view_batch_size: int | None = None,
        on_step: OnStep | None = None,
        callback_on_step_end: Callable[[Any, int, float, dict[str, Tensor]], dict[str, Tensor]] | None = None,
        output_type: OutputType = "views",
        parity: bool = False,
    ) -> Views | Tensor | Image.Image:
        """`generate` with the words of a pipeline of `diffusers`.

        Args:
            callback_on_step_end: given this object, the step's number (from 0), its timestep and ``{"latents": ...}``
                (1, 4, h, w); ``latents`` in what it returns take their place.
            output_type: ``views``; ``sheet`` (3, 3 S, 2 S) fp32 in [0, 1]; ``pil``, the same as a picture; ``latent``.

        Raises:
            SettingsError: a setting is out of range, or an unknown ``output_type``.
        """
        steps = NUM_INFERENCE_STEPS if num_inference_steps is None else num_inference_steps
        scale = GUIDANCE_SCALE if guidance_scale is None else guidance_scale
        check_settings(
            elevation_deg=elevation_deg, num_inference_steps=steps, guidance_scale=scale,
            view_batch_size=view_batch_size,
        )  # fmt: skip
        if output_type not in ("views", "sheet", "pil", "latent"):
            raise SettingsError(f"output_type={output_type!r}: expected views, sheet, pil or latent.")

        def after_step(index: int, timestep: float, latents: Tensor) -> Tensor:
            if callback_on_step_end is not None:
                changed = callback_on_step_end(self, index, timestep, {"latents": latents})
                latents = (changed or {}).get("latents", latents)
            if on_step is not None:
                on_step(index + 1, steps)
            return latents

        condition = self.condition(image, generator, guided=scale > 1)
        scheduler = plus_scheduler("euler-ancestral") if parity else self.scheduler
        latents = self.sample(condition, scheduler, generator, steps, scale, after_step)
        if output_type == "latent":
            return latents
        sheet = self.decode(latents)
        if output_type == "pil":
            return Image.fromarray(bytes_from_unit(sheet.permute(1, 2, 0).numpy()))
        return sheet if output_type == "sheet" else self.views(sheet)

    @torch.no_grad()
    def condition(self, image: Tensor, generator: torch.Generator | None, *, guided: bool = True) -> Condition:
        """What the UNet shall know of a cut-out (4, S, S): see `Condition`; G is 2 when ``guided``, else 1.

        Draws one latent's noise from ``generator`` for the picture, and then one for mid grey when ``guided``.

        Raises:
            ImageError: the cut-out has another shape, or holds no finite numbers.
        """
        picture = picture_over(image, self.config.background)
        pixels = picture_input(picture, self.config.clip_picture).to(self.device)
        with on_device(self.device, self.vision, offload=self.offload), FiniteSteps(self.vision) as steps:
            embedding = steps.run(
                lambda: self.vision(pixels.to(module_dtype(self.vision))).image_embeds.float(), "the image encoder"
            )
        prompt = self.prompt.to(self.device)[None]
        ramp = torch.tensor(self.config.ramp, dtype=torch.float32, device=self.device)
        told = prompt + ramp[None, :, None] * embedding[:, None]
        seen = picture_input(picture, self.config.vae_picture).to(self.device)
        with on_device(self.device, self.vae, offload=self.offload):
            latents = self._encode(seen, generator)
            if not guided:
                return Condition(latents, told)
            nothing = self._encode(torch.zeros_like(seen), generator)
        return Condition(torch.cat([nothing, latents]), torch.cat([prompt, told]))

    def _encode(self, pixels: Tensor, generator: torch.Generator | None) -> Tensor:
        """(1, 3, s, s) → a sample (1, 4, s / 8, s / 8) of the posterior, as it is: without the VAE's scaling factor."""

        def moments() -> Tensor:
            posterior = self.vae.encode(pixels.to(module_dtype(self.vae))).latent_dist
            return torch.stack([posterior.mean, posterior.std]).float()

        with FiniteSteps(self.vae) as steps:
            mean, std = steps.run(moments, "encoding the picture")
        return mean + std * draw_noise(tuple(mean.shape), generator, self.device)

    def predict(self, latents: Tensor, timestep: Tensor, prompts: Tensor, reference: Tensor) -> Tensor:
        """Run the UNet twice: over the condition, keeping its self-attention inputs, and over the sheet, reading them.

        Args:
            latents: (G, 4, H, W), noisy, scaled for the UNet.
            timestep: () the step.
            prompts: (G, L, D).
            reference: (G, 4, h, w) condition latents with this step's noise, scaled for the UNet.

        Returns:
            (G, 4, H, W) fp32, the predicted v.
        """
        dtype = module_dtype(self.unet)
        prompts = prompts.to(dtype)
        memory: dict[str, Tensor] = {}
        kept = {"memory": memory, "write": True}
        self.unet(reference.to(dtype), timestep, prompts, cross_attention_kwargs=kept, return_dict=False)
        out = self.unet(latents.to(dtype), timestep, prompts, cross_attention_kwargs={"memory": memory})
        return out.sample.float()

    def guided(
        self,
        latents: Tensor,
        timestep: Tensor,
        condition: Condition,
        noise: Tensor,
        scheduler: Any,
        guidance_scale: float = GUIDANCE_SCALE,
    ) -> Tensor:
        """Predict v for one sheet with guidance: v_without + scale × (v_with - v_without).

        Args:
            latents: (1, 4, H, W), as the scheduler keeps them.
            timestep: () one of the scheduler's.
            condition: with G = 1 there is no guidance.
            noise: like ``condition.latents``; puts these to the step's noise level, by the scheduler's own rule.
            scheduler: whose ``set_timesteps`` was called.
            guidance_scale: see above.

        Returns:
            (1, 4, H, W) fp32.
        """
        scaled = scheduler.scale_model_input(latents, timestep)
        noisy = scheduler.add_noise(condition.latents, noise, timestep.reshape(1))
        reference = scheduler.scale_model_input(noisy, timestep)
        # One branch after the other: a sheet has pixels enough to fill a device, and takes half the memory.
        without, *others = (
            self.predict(scaled, timestep, prompt, seen)
            for prompt, seen in zip(condition.prompts.split(1), reference.split(1), strict=True)
        )
        return without + guidance_scale * (others[0] - without) if others else without

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        scheduler: Any,
        generator: torch.Generator | None,
        num_inference_steps: int = NUM_INFERENCE_STEPS,
        guidance_scale: float = GUIDANCE_SCALE,
        after_step: Callable[[int, float, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Denoise one sheet.

        Draws from ``generator``: the first latents; then in every step the reference's noise, and what the scheduler
        draws.

        Args:
            condition: of the picture.
            scheduler: of `diffusers`, such as `plus_scheduler`.
            after_step: given the step's number (from 0), its timestep and the latents; gives the latents to go on with.

        Returns:
            (1, 4, 3 S / 8, 2 S / 8) fp32 latents in the UNet's space; see `decode`.

        Raises:
            WeightsError: the UNet gives numbers that are not finite, in fp32 too.
        """
        set_steps(scheduler, num_inference_steps, self.device)
        draws = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        side = self.config.tile_size // 8
        latents = draw_noise((1, 4, 3 * side, 2 * side), generator, self.device) * scheduler.init_noise_sigma
        with on_device(self.device, self.unet, offload=self.offload), FiniteSteps(self.unet) as steps:
            for index, timestep in enumerate(scheduler.timesteps):
                noise = draw_noise(tuple(condition.latents.shape), generator, self.device)
                what = f"step {index + 1} of {len(scheduler.timesteps)} (t = {timestep.item():.0f})"
                now = (latents, timestep, condition, noise, scheduler, guidance_scale)
                predicted = steps.run(partial(self.guided, *now), what)
                latents = scheduler.step(predicted, timestep, latents, **draws).prev_sample
                if after_step is not None:
                    latents = after_step(index, timestep.item(), latents)
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (1, 4, h, w) of `sample` → the sheet (3, 8 h, 8 w), fp32 in [0, 1], on the CPU."""
        z = (latents / LATENT_SCALE + LATENT_SHIFT) / self.vae.config.scaling_factor
        with on_device(self.device, self.vae, offload=self.offload), FiniteSteps(self.vae) as steps:
            drawn = steps.run(
                lambda: self.vae.decode(z.to(module_dtype(self.vae))).sample.float(), "decoding the sheet"
            )
        return (drawn[0] / IMAGE_SCALE / 2 + 0.5).clamp(0, 1).cpu()

    def views(self, sheet: Tensor) -> Views:
        """A sheet (3, 3 S, 2 S) in [0, 1] as six views; alpha is taken from the background's grey."""
        images, alpha = matte_from_byte(cut_sheet(sheet), self.config.background)
        return Views(images, alpha, self.config.cameras)

    # Files

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        version: Version | None = None,
        unet: str | Path | None = None,
        scheduler: PlusScheduler = "euler-ancestral",
        device: torch.device | str = CPU,
        dtype: torch.dtype = torch.float32,
        offload: bool = False,
    ) -> Self:
        """Load a published folder of `diffusers`, or what `save_pretrained` wrote, strictly.

        Args:
            source: a folder, or a repository on the hub such as ``sudo-ai/zero123plus-v1.2``.
            revision: commit, branch or tag on the hub.
            version: None finds it out from the folder.
            unet: a file with another UNet of the same sizes, whose pictures have a white background; ``instantmesh``
                takes InstantMesh's from the hub.
            scheduler: see `plus_scheduler`.
            device, dtype: of the networks.
            offload: see the class.

        Raises:
            WeightsError: something is missing, damaged, of another model, or does not fit.
        """
        parts, config, name = load_folder(
            source, revision=revision, version=version, unet=unet, device=CPU if offload else device, dtype=dtype
        )
        made = cls(parts, config, name=name, scheduler=scheduler, offload=offload)
        made.device = torch.device(device)
        return made

    @classmethod
    def load(cls, place: Path, *, name: str, device: torch.device, dtype: torch.dtype, **options: Any) -> Self:
        """See `StoredGenerator.load`; the options are ``version`` and ``unet``."""
        made = cls.from_pretrained(place, device=device, dtype=dtype, **options)
        made.name = name
        return made

    @classmethod
    def weight_files(cls, place: Path, **options: Any) -> list[Path]:
        """See `StoredGenerator.weight_files`."""
        return require_files(weight_files(place, options.get("unet")))

    def save_pretrained(
        self, folder: str | Path, extra: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Write our folder form, see `multiview.zero123plusweights` and `StoredGenerator.save_pretrained`."""
        parts = Parts(self.unet, self.vae, self.vision, self.prompt)
        save_plus_folder(folder, parts, self.config, {"weights": self.record["weights"], **(extra or {})}, dtype)


def _check_parts(parts: Parts, config: Zero123PlusConfig, where: str) -> None:
    """Raise WeightsError unless the networks go together."""
    length, width = parts.prompt.shape
    unet, vision = parts.unet.config, parts.vision.config
    checks = (
        ("numbers in the ramp", len(config.ramp), "tokens in the prompt", length),
        ("width of the UNet's cross-attention", unet.cross_attention_dim, "width of the prompt", width),
        ("width of the image embedding", vision.projection_dim, "width of the prompt", width),
        ("side of the image encoder's picture", vision.image_size, "side by its rule", config.clip_picture.size),
        ("channels into the UNet", unet.in_channels, "channels of the VAE's latents", parts.vae.config.latent_channels),
    )
    for what, found, other, wanted in checks:
        if found != wanted:
            raise WeightsError(
                f"{where}: {what}: {found}, but {other}: {wanted}. Its parts come from different models."
            )
    if config.tile_size < 8 or config.tile_size % 8:
        raise WeightsError(f"{where}: tile_size={config.tile_size}, expected a multiple of 8 pixels.")
