"""What every model that turns one picture into views is to the rest of the house, and what such models share.

::

    cut-out (4, S, S) ──► generate(elevation_deg, generator, ...) ──► Views: pictures, mattes, cameras in the world

The shared parts are plain functions: schedulers by name, the picture over white, the matte of a picture that was drawn
on white, networks that are on the device only while they work, and steps that are repeated in fp32 when half precision
overflows.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .devices import CPU
from .errors import ImageError, SettingsError, WeightsError
from .views import Views

logger = logging.getLogger("trilift")

OnStep = Callable[[int, int], None]
"""Told after every denoising step: how many are done (from 1) and how many there are. What it raises ends the run."""

OnPreview = Callable[[Tensor], None]
"""Told after every denoising step how all views look so far, roughly: (V, 3, h, w) in [0, 1] sRGB, on the CPU. What it
raises ends the run."""

SchedulerName = Literal["ddim", "dpm++", "unipc"]
SCHEDULERS: tuple[SchedulerName, ...] = ("ddim", "dpm++", "unipc")
LAST_TIMESTEP = 999
"""The noisiest that the networks were trained with."""
WHITE_TOLERANCE = 0.06
"""How far the darkest channel of a background pixel may lie under white; decoders leave 0.02 of noise there."""


class ViewGenerator(ABC):
    """One picture in, consistent views out.

    Attributes:
        name: as in the registry, or the folder's name.
        image_size: side in pixels of the picture that the model sees; others are resized.
        foreground_ratio: longest side of the object's box / image side that the model was trained with. Frame the
            cut-out so; the model itself moves nothing.
        needs_elevation: whether the networks read the input's elevation. The others need it only to say where their
            views are in the world.
    """

    name: str
    image_size: int
    foreground_ratio: float
    needs_elevation: ClassVar[bool] = True

    @abstractmethod
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
        """Make views of the object in a picture.

        Args:
            image: (4, S, S) float in [0, 1], straight-alpha sRGB: the cut-out, object centred at `foreground_ratio`.
            elevation_deg: of the camera that took it, in [-90, 90].
            generator: where all randomness comes from; the same seed, device, dtype and versions give the same bytes.
            num_inference_steps: denoising steps, None for the model's own number.
            guidance_scale: how strongly the picture is followed, None for the model's own.
            view_batch_size: views per pass through the network, None for all at once; changes memory, never results.
            on_step: see `OnStep`.
            on_preview: see `OnPreview`; it changes no result.
            parity: sample exactly as the published program does, with its quirks, in place of the sane default.

        Returns:
            `Views` on the CPU in fp32, with the model's own intrinsics, in the world frame: the input's camera at
            azimuth 0, z up. Alpha is taken from the background where the model makes none.

        Raises:
            ImageError: ``image`` has another shape, or holds no finite numbers.
            SettingsError: a setting is out of range.
            WeightsError: the networks give numbers that are not finite, in fp32 too.
        """


class StoredGenerator(ViewGenerator):
    """A `ViewGenerator` whose networks lie in files.

    Attributes:
        architecture: the word for the family in our ``config.json``.
        own_files: all files of our folder form beside ``config.json``, by which one is fetched from the hub.
        record: what is known of the weights: which they are (``weights``: ``ema``, ``raw`` or ``unknown``), ``source``.
    """

    architecture: ClassVar[str]
    own_files: ClassVar[tuple[str, ...]]
    record: dict[str, str]

    @property
    @abstractmethod
    def networks(self) -> tuple[nn.Module, ...]:
        """All networks, each in one place."""

    @classmethod
    @abstractmethod
    def load(cls, place: Path, *, name: str, device: torch.device, dtype: torch.dtype, **options: Any) -> Self:
        """Load files on this machine, strictly.

        Args:
            place: a file, or a folder of ours or of the publishers.
            name: see `ViewGenerator`.
            device, dtype: of the networks.
            options: what the files do not say themselves, as the registry has it.

        Raises:
            WeightsError: something is missing, damaged, of another model, or does not fit.
            SettingsError: an option is needed and not given, or contradicts the files.
        """

    @classmethod
    @abstractmethod
    def weight_files(cls, place: Path, **options: Any) -> list[Path]:
        """The files of weights that `load` reads.

        Raises:
            WeightsError: one is missing.
        """

    @abstractmethod
    def save_pretrained(
        self, folder: str | Path, extra: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Write our folder form: ``config.json`` and a sub-folder per part, whole or not at all.

        Args:
            folder: made when missing; a model that is there is replaced.
            extra: goes into ``config.json`` beside the architecture and its sizes.
            dtype: of the tensors in the files; None keeps theirs.

        Raises:
            OutputError: it cannot be written.
        """


def check_cutout(image: Tensor) -> None:
    """Raise ImageError unless ``image`` is a square RGBA picture (4, S, S) of finite floats in [0, 1]."""
    if image.ndim != 3 or image.shape[0] != 4 or image.shape[1] != image.shape[2] or image.numel() == 0:
        raise ImageError(f"a view generator wants a cut-out (4, S, S), straight RGBA, found {tuple(image.shape)}.")
    if not image.is_floating_point():
        raise ImageError(f"a view generator wants floats in [0, 1], found {image.dtype}. Divide 8-bit pictures by 255.")
    low, high = image.amin().item(), image.amax().item()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # false for NaN as well
        raise ImageError(f"a view generator wants numbers in [0, 1], found {low:.4g} to {high:.4g}.")


def check_settings(
    *, elevation_deg: float, num_inference_steps: int, guidance_scale: float, view_batch_size: int | None
) -> None:
    """Raise SettingsError unless the settings of `ViewGenerator.generate` are in range."""
    if not (math.isfinite(elevation_deg) and abs(elevation_deg) <= 90):
        raise SettingsError(f"elevation_deg={elevation_deg}: expected degrees in [-90, 90].")
    if not 1 <= num_inference_steps <= 1000:
        raise SettingsError(f"num_inference_steps={num_inference_steps}: expected 1 to 1000.")
    if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
        raise SettingsError(f"guidance_scale={guidance_scale}: expected 0 or more; 1 is no guidance.")
    if view_batch_size is not None and view_batch_size < 1:
        raise SettingsError(f"view_batch_size={view_batch_size}: expected 1 or more views per pass.")


def over_white(image: Tensor, image_size: int) -> Tensor:
    """A cut-out (4, S, S) in [0, 1] over white, as (1, 3, image_size, image_size) in [0, 1].

    It is composited first and resized afterwards (bicubic, antialiased, clamped), so that what lies under alpha = 0
    never bleeds in. A picture that has the size already goes through untouched.
    """
    check_cutout(image)
    alpha = image[3:]
    rgb = (image[:3] * alpha + (1 - alpha))[None].float().clamp(0, 1)
    if rgb.shape[-1] == image_size:
        return rgb
    return F.interpolate(rgb, (image_size, image_size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def matte_from_white(images: Tensor, tolerance: float = WHITE_TOLERANCE) -> tuple[Tensor, Tensor]:
    """Take the white background off pictures that were drawn on it.

    Background is what is near white and joined to the picture's border through near white. The object's outermost
    pixels are mixtures: there the colour is taken from solid pixels nearby (2 px) and alpha follows from how far the
    mixture lies between white and that colour. White parts of the object that touch the border's white without an edge
    between are lost; a hole that the background shines through, closed all around, is taken for the object.

    Args:
        images: (V, 3, H, W) float in [0, 1], sRGB.
        tolerance: see `WHITE_TOLERANCE`.

    Returns:
        Straight colours (V, 3, H, W) and alpha (V, 1, H, W), both in [0, 1]; over white they give about ``images``.
    """
    background = _joined_to_border(images.amin(1) >= 1 - tolerance)[:, None]
    touches = F.max_pool2d(background.float(), 3, 1, 1) > 0
    edge, solid = ~background & touches, (~background & ~touches).to(images)
    # Mean colour of the solid pixels in 5 x 5.
    count = F.avg_pool2d(solid, 5, 1, 2)
    color = F.avg_pool2d(images * solid, 5, 1, 2) / count.clamp(min=1e-6)
    toward = 1 - color
    reach = toward.square().sum(1, keepdim=True)
    mixed = ((1 - images) * toward).sum(1, keepdim=True) / reach.clamp(min=1e-6)
    known = edge & (count > 0) & (reach > 3 * tolerance**2)
    alpha = torch.where(known, mixed.clamp(0, 1), (~background).to(images))
    return torch.where(known & (alpha < 0.95), color, images), alpha


def _joined_to_border(masks: Tensor) -> Tensor:
    """The parts of masks (V, H, W) that reach the picture's border, 4-connected."""
    from scipy import ndimage

    kept = []
    for mask in masks.cpu().numpy():
        labels, _ = ndimage.label(mask)
        border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        kept.append(np.isin(labels, border[border > 0]))
    return torch.from_numpy(np.stack(kept)).to(masks.device) if kept else masks


def make_scheduler(
    name: SchedulerName,
    *,
    beta_schedule: Literal["linear", "scaled_linear"] = "scaled_linear",
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon",
) -> Any:
    """A scheduler of `diffusers` on the noise schedule that Stable Diffusion and its descendants share.

    DDIM walks the steps of the published programs: ``leading`` spacing from 981 down to 1 in 50, the last step to the
    ᾱ of step 0. DPM++ and UniPC start where the noise is pure, at 999, which they need with few steps.

    Args:
        name: ``ddim``, ``dpm++`` (DPM-Solver++ 2M) or ``unipc``.
        beta_schedule: ``scaled_linear`` is what the original programs call linear.
        prediction_type: what the network predicts.

    Raises:
        SettingsError: an unknown name.
    """
    import diffusers

    shared: dict[str, Any] = {
        "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": beta_schedule, "prediction_type": prediction_type,
    }  # fmt: skip
    if name == "ddim":
        return diffusers.DDIMScheduler(
            **shared, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
        )
    if name == "dpm++":
        return diffusers.DPMSolverMultistepScheduler(
            **shared, algorithm_type="dpmsolver++", timestep_spacing="linspace"
        )
    if name == "unipc":
        return diffusers.UniPCMultistepScheduler(**shared, timestep_spacing="linspace")
    raise SettingsError(f"scheduler {name!r}: expected {', '.join(SCHEDULERS)}.")


def set_timesteps(scheduler: Any, count: int, device: torch.device) -> None:
    """Tell a scheduler how many steps to take.

    DDIM's ``leading`` steps are counted from 1, so that 1000 of them would begin at 1000, one more than the networks
    know: that one is left out.

    Args:
        scheduler: of diffusers.
        count: 1 to 1000.
        device: of what it keeps.
    """
    scheduler.set_timesteps(count, device=device)
    if is_ddim(scheduler):
        scheduler.timesteps = scheduler.timesteps[scheduler.timesteps <= LAST_TIMESTEP]


def is_ddim(scheduler: Any) -> bool:
    """Whether a scheduler is diffusers' DDIM, the only one with an eta."""
    from diffusers import DDIMScheduler

    return isinstance(scheduler, DDIMScheduler)


# What latents of Stable Diffusion's autoencoder look like without its decoder: red, green and blue in [-1, 1] as
# weighted sums of the four channels. A linear fit by Kevin Turner ("Decoding latents to RGB without upscaling", the
# forum of Hugging Face, 2022); the releases 1 and 2 share the autoencoder.
_COLORS_OF_LATENTS = (
    (0.298, 0.207, 0.208),
    (0.187, 0.286, 0.173),
    (-0.158, 0.189, 0.264),
    (-0.184, -0.271, -0.473),
)


def rough_pictures(latents: Tensor) -> Tensor:
    """Scaled latents (V, 4, h, w) of Stable Diffusion → what they look like, (V, 3, h, w) in [0, 1] on the CPU."""
    colors = torch.einsum("vlhw,lc->vchw", latents.detach().float().cpu(), torch.tensor(_COLORS_OF_LATENTS))
    return (colors / 2 + 0.5).clamp(0, 1)


def showing_latents(
    on_preview: OnPreview | None, pictures: Callable[[Tensor], Tensor] = rough_pictures
) -> Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor]] | None:
    """A ``callback_on_step_end`` that shows the latents of every step and leaves them as they are; None for nobody.

    Args:
        on_preview: see `OnPreview`.
        pictures: what the latents look like.
    """
    if on_preview is None:
        return None

    def show(_: Any, index: int, timestep: Any, now: dict[str, Tensor]) -> dict[str, Tensor]:
        on_preview(pictures(now["latents"]))
        return {}

    return show


def draw_noise(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Standard normal fp32 numbers on ``device``, drawn where the generator is (a CPU seed holds everywhere)."""
    place = CPU if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=place, dtype=torch.float32).to(device)


def pieces(count: int, size: int | None) -> Iterator[slice]:
    """Slices that cover ``range(count)``, ``size`` each (None for one), the last one shorter."""
    step = size or max(count, 1)
    return (slice(i, min(i + step, count)) for i in range(0, count, step))


def module_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of a network's first matrix: what its inputs should have."""
    return next(p.dtype for p in module.parameters() if p.ndim > 1)


@contextmanager
def on_device(device: torch.device, *networks: nn.Module, offload: bool) -> Iterator[None]:
    """Have networks on ``device`` inside the block; with ``offload`` they go back to the CPU afterwards."""
    try:
        for network in networks:
            network.to(device)
        yield
    finally:
        if offload:
            for network in networks:
                network.to(CPU)


class FiniteSteps:
    """Runs networks, and repeats in fp32 what overflowed in half precision.

    Use it as a context: from the first overflow to the end of the block the networks are fp32, afterwards they have
    their dtypes again (which is exact, since every half number is an fp32 number).

    Args:
        networks: whose parameters become fp32 when needed. Inputs are the caller's: cast them to `module_dtype` inside
            the call.

    Attributes:
        retried: what was repeated, in words.
    """

    def __init__(self, *networks: nn.Module) -> None:
        self._networks = networks
        self._before: list[tuple[nn.Parameter | Tensor, torch.dtype]] = []
        self.retried: list[str] = []

    def __enter__(self) -> FiniteSteps:
        return self

    def __exit__(self, *_: object) -> None:
        for tensor, dtype in self._before:
            tensor.data = tensor.data.to(dtype)
        self._before.clear()

    def run(self, call: Callable[[], Tensor], what: str) -> Tensor:
        """The result of ``call``, every number of it finite.

        Args:
            call: runs the networks; run a second time when the first gives NaN or Inf.
            what: which step it is, for the log and the error, such as "step 3 of 50 (t = 941)".

        Raises:
            WeightsError: it is not finite in fp32 either.
        """
        result = call()
        if bool(torch.isfinite(result).all()):
            return result
        if half := self._half_dtypes():
            logger.warning("%s gave numbers that are not finite in %s: repeated in fp32.", what, half)
            self.retried.append(what)
            self._to_fp32()
            result = call()
            if bool(torch.isfinite(result).all()):
                return result
        bad = int((~torch.isfinite(result)).sum())
        raise WeightsError(
            f"{what} gave numbers that are not finite in fp32 ({bad} of {result.numel()}). The weights may be damaged: "
            "check their sum or fetch them again."
        )

    def _tensors(self) -> Iterator[nn.Parameter | Tensor]:
        for network in self._networks:
            yield from network.parameters()
            yield from network.buffers()

    def _half_dtypes(self) -> str:
        """The half-precision dtypes in use, in words; empty when all is fp32."""
        found = {t.dtype for t in self._tensors() if t.is_floating_point() and t.dtype.itemsize < 4}
        return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))

    def _to_fp32(self) -> None:
        for tensor in self._tensors():
            if tensor.is_floating_point() and tensor.dtype.itemsize < 4:
                self._before.append((tensor, tensor.dtype))
                tensor.data = tensor.data.float()
