"""The embedded view generator: one photo and a sketch of the object → six views that agree with each other.

::

    photo (4, S, S) ──────────────────────────────┐
    sketches (6, 5, s, s), of the reconstruction ──┤  one U-Net over seven pictures, attention across all of them
    noise (6, 4, s, s), ever less of it ───────────┘  ──► (6, 4, s, s): colour and alpha of the ring's views

All six views are denoised together; what keeps them one object is attention over the pixels of all views at 1/4 and 1/8
of their side, and the sketches: renderings of the field that the embedded reconstruction model makes of the photo, from
the ring's cameras. The photo goes through the same network as a seventh, clean view.

The network predicts what is missing from the sketch, preconditioned as in Karras et al. 2022 (arXiv 2206.00364) but
about the sketch in place of zero, on the cosine path ``x_t = cos(πt/2) x + sin(πt/2) ε`` whose end t = 1 is pure noise
(zero terminal SNR, Lin et al. 2023, arXiv 2305.08891). There, with no noise given at all, it is the regressor: the mean
of all objects that fit the photo. Joint denoising with shared features is SyncDreamer's idea (arXiv 2309.03453); the
network, its size and the sketches are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend, join_heads, split_heads
from .errors import SettingsError, WeightsError
from .generator import OnPreview, OnStep, ViewGenerator, check_cutout, check_settings, draw_noise, logger
from .ring import RING_AZIMUTHS_DEG, RING_SIZE, ring_cameras
from .views import Views
from .weights import WEIGHTS_FILE, config_from_dict, load_strict, read_config_json, read_safetensors, save_folder

ARCHITECTURE = "tiny-views"
DEFAULT_STEPS = 10
DEFAULT_GUIDANCE = 1.0
_VIEWS = len(RING_AZIMUTHS_DEG)


@dataclass(frozen=True)
class TinyViewsConfig:
    """Sizes of the embedded view generator; the defaults are the shipped one.

    Attributes:
        channels: at 1/2, 1/4 and 1/8 of a view's side.
        blocks: residual blocks at each, on the way down and again on the way up.
        head_width: channels of an attention head.
        embedding: width of what every block is told: noise level, view, camera.
        residual_rms: of what the sketches miss in training, in encoded colour and alpha.
        foreground_ratio: longest side of the object's box / image side of the photo in training.
    """

    channels: tuple[int, int, int] = (64, 128, 192)
    blocks: int = 1
    head_width: int = 64
    embedding: int = 192
    residual_rms: tuple[float, float] = (0.14, 0.47)
    foreground_ratio: float = 0.85


def encode_views(rgba: Tensor) -> Tensor:
    """Straight RGBA (..., 4, H, W) in [0, 1] → what is diffused, -1 to 1: colour about grey times alpha, and alpha."""
    alpha = rgba[..., 3:, :, :]
    return torch.cat([(rgba[..., :3, :, :] * 2 - 1) * alpha, alpha * 2 - 1], -3)


def decode_views(x: Tensor) -> Tensor:
    """The inverse of `encode_views`, clamped: straight RGBA (..., 4, H, W) in [0, 1]."""
    alpha = ((x[..., 3:, :, :] + 1) / 2).clamp(0, 1)
    color = (x[..., :3, :, :] / alpha.clamp(min=0.05) + 1) / 2
    return torch.cat([color.clamp(0, 1), alpha], -3)


def encode_sketches(sketches: Tensor) -> Tensor:
    """Sketches (..., 5, H, W) of `lrm.sketch` → as `encode_views`, depth fifth, in [-1, 1]."""
    alpha = sketches[..., 3:4, :, :]
    color = sketches[..., :3, :, :] * 2 - alpha
    return torch.cat([color, sketches[..., 3:, :, :] * 2 - 1], -3)


class Block(nn.Module):
    """Two times norm, SiLU and 3 x 3 convolution around a skip, scaled and shifted by the embedding in the middle."""

    def __init__(self, channels_in: int, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels_in), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.tell = nn.Linear(embedding, 2 * channels)
        self.skip = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(N, C, H, W) and (N, E) → (N, C', H, W)."""
        y = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.tell(told)[..., None, None].chunk(2, 1)
        y = self.norm2(y) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(y))


class Blocks(nn.ModuleList):
    """Blocks one after the other, all told the same."""

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(N, C, H, W) and (N, E) → (N, C', H, W)."""
        for block in self:
            x = block(x, told)
        return x


class AcrossViews(nn.Module):
    """Every pixel of every view of an object attends to all others, the photo's among them."""

    def __init__(self, channels: int, head_width: int, side: int, embedding: int) -> None:
        super().__init__()
        self.heads = channels // head_width
        self.norm = nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.tell = nn.Linear(embedding, channels)
        self.position = nn.Parameter(torch.randn(1, side * side, channels) * 0.02)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """(B * (V + 1), C, h, w) and (B * (V + 1), E) → the same shape."""
        n, c, h, w = x.shape
        tokens = self.norm(x.flatten(2).transpose(1, 2)) + self.position + self.tell(told)[:, None]
        joined = tokens.reshape(n // (_VIEWS + 1), -1, c)
        q, k, v = (split_heads(t, self.heads) for t in self.qkv(joined).chunk(3, -1))
        mixed = self.out(join_heads(attend(q, k, v))).reshape(n, h * w, c)
        return x + mixed.transpose(1, 2).reshape(n, c, h, w)


class TinyViewsNetwork(nn.Module):
    """Noisy views, sketches, photo → the preconditioned prediction; see the drawing at the top of the file."""

    def __init__(self, config: TinyViewsConfig) -> None:
        super().__init__()
        self.config = config
        c0, c1, c2 = config.channels
        e, side = config.embedding, RING_SIZE
        self.entry = nn.Conv2d(4 * (4 + 5 + 2), c0, 1)
        self.told = nn.Sequential(nn.Linear(64 + _VIEWS + 1 + 4, e), nn.SiLU(), nn.Linear(e, e))
        sizes = [c0, c1, c2]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in ((c0, c1), (c1, c2)))
        self.before = nn.ModuleList(Blocks(Block(c, c, e) for _ in range(config.blocks)) for c in sizes)
        self.after = nn.ModuleList(
            Blocks(Block(2 * c if i == 0 else c, c, e) for i in range(config.blocks)) for c in sizes
        )
        self.up = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in ((c0, c1), (c1, c2)))
        places = ((c1, side // 4), (c2, side // 8))
        self.share_down, self.share_up = (
            nn.ModuleList(AcrossViews(c, config.head_width, s, e) for c, s in places) for _ in range(2)
        )
        last = nn.Conv2d(c0, 4 * 4, 3, padding=1)
        self.exit = nn.Sequential(nn.GroupNorm(8, c0), nn.SiLU(), last)
        for values in last.parameters():
            nn.init.zeros_(values)

    def forward(self, noisy: Tensor, sketches: Tensor, photo: Tensor, time: Tensor, camera: Tensor) -> Tensor:
        """One prediction.

        Args:
            noisy: (B, 6, 4, s, s), of unit scale.
            sketches: (B, 6, 5, s, s) of `encode_sketches`.
            photo: (B, 4, s, s) of `encode_views`.
            time: (B,) in [0, 1], 1 where there is noise alone.
            camera: (B, 4) the photo's elevation in 30 degrees, its log focal length less 1.5, 1 where noise is given
                (0 for the regressor), 1 where there is a photo.

        Returns:
            (B, 6, 4, s, s).
        """
        b = len(noisy)
        views = torch.cat([noisy, sketches], 2)
        clean = F.pad(photo, (0, 0, 0, 0, 0, 5))[:, None]
        x = torch.cat([views, clean], 1).flatten(0, 1)
        steps = torch.linspace(-1, 1, x.shape[-1], device=x.device, dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(-steps, steps, indexing="ij")).expand(len(x), -1, -1, -1)
        x = self.entry(F.pixel_unshuffle(torch.cat([x, grid], 1), 2))
        told = self._told(time, camera, b)
        kept = []
        for level, blocks in enumerate(self.before):
            if level:
                x = self.down[level - 1](x)
            x = blocks(x, told)
            if level:
                x = self.share_down[level - 1](x, told)
            kept.append(x)
        for level in (2, 1, 0):
            x = self.after[level](torch.cat([x, kept[level]], 1), told)
            if level:
                x = self.share_up[level - 1](x, told)
                x = F.interpolate(self.up[level - 1](x), scale_factor=2, mode="nearest")
        return F.pixel_shuffle(self.exit(x), 2).unflatten(0, (b, _VIEWS + 1))[:, :_VIEWS].float()

    def _told(self, time: Tensor, camera: Tensor, b: int) -> Tensor:
        """What every block is told of each of the B * 7 pictures: (B * 7, E)."""
        levels = torch.cat([time[:, None].expand(b, _VIEWS), torch.zeros_like(time)[:, None]], 1)
        rates = torch.exp(torch.linspace(0, math.log(200), 32, device=time.device))
        angles = levels[..., None] * rates
        which = torch.eye(_VIEWS + 1, device=time.device).expand(b, -1, -1)
        facts = camera[:, None].expand(b, _VIEWS + 1, -1)
        return F.silu(self.told(torch.cat([angles.sin(), angles.cos(), which, facts], -1).flatten(0, 1)))


def path(time: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the picture and of the noise at times (B,) in [0, 1], each (B, 1, 1, 1, 1)."""
    angle = time[:, None, None, None, None] * (math.pi / 2)
    return angle.cos(), angle.sin()


def preconditioning(config: TinyViewsConfig, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scale of the input, share of the input that is kept and scale of the output, at times (B,)."""
    share, noise = path(time)
    rms = share.new_tensor([config.residual_rms[0]] * 3 + [config.residual_rms[1]])[:, None, None]
    total = ((share * rms).square() + noise.square()).clamp(min=1e-8)
    return total.rsqrt(), share * rms.square() / total, rms * noise * total.rsqrt()


def predicted(
    network: nn.Module, config: TinyViewsConfig, noisy: Tensor, time: Tensor, sketches: Tensor, photo: Tensor,
    camera: Tensor,
) -> Tensor:  # fmt: skip
    """The clean views (B, 6, 4, s, s), encoded, that the network sees behind noisy ones; arguments as its own."""
    share, _ = path(time)
    scale, kept, strength = preconditioning(config, time)
    rough = sketches[:, :, :4]
    missing = noisy - share * rough
    return rough + kept * missing + strength * network(scale * missing, sketches, photo, time, camera)


def sampling_times(steps: int, device: torch.device | None = None) -> Tensor:
    """(steps + 1,) times from 1, where all is noise, down to 0."""
    return torch.linspace(1, 0, steps + 1, device=device)


@torch.no_grad()
def regress(network: nn.Module, config: TinyViewsConfig, sketches: Tensor, photo: Tensor, camera: Tensor) -> Tensor:
    """The mean of all views that fit, in one pass without noise: (B, 6, 4, s, s), encoded; see `TinyViewsNetwork`.

    Args:
        camera: (B, 2) elevation in 30 degrees, log focal length less 1.5.
    """
    told = torch.cat([camera, camera.new_tensor([0.0, 1.0]).expand(len(camera), 2)], 1)
    nothing = torch.zeros_like(sketches[:, :, :4])
    return predicted(network, config, nothing, torch.ones_like(camera[:, 0]), sketches, photo, told)


@torch.no_grad()
def denoise(
    network: nn.Module, config: TinyViewsConfig, noise: Tensor, sketches: Tensor, photo: Tensor, camera: Tensor,
    steps: int, guidance_scale: float = 1.0, on_step: OnStep | None = None, on_preview: OnPreview | None = None,
) -> Tensor:  # fmt: skip
    """Draw views by DDIM (Song et al. 2020, arXiv 2010.02502, eta 0): (B, 6, 4, s, s), encoded.

    Args:
        noise: (B, 6, 4, s, s) standard normal.
        camera: as `regress` takes it.
        steps: passes through the network, twice as many with guidance.
        guidance_scale: 1 is none; the other prediction knows neither photo nor sketches.
        on_step: told after each step.
        on_preview: shown the clean views that the network sees behind the noisy ones, over white.
    """
    told = torch.cat([camera, torch.ones_like(camera)], 1)
    untold = torch.cat([torch.zeros_like(camera), camera.new_tensor([1.0, 0.0]).expand(len(camera), 2)], 1)
    blank, no_photo = blank_sketches(sketches), torch.zeros_like(photo)
    times = sampling_times(steps, noise.device)
    x = noise
    for i in range(steps):
        now = times[i].expand(len(x))
        clean = predicted(network, config, x, now, sketches, photo, told)
        if guidance_scale != 1:
            free = predicted(network, config, x, now, blank, no_photo, untold)
            clean = free + guidance_scale * (clean - free)
        (share, spread), (next_share, next_spread) = path(now), path(times[i + 1].expand(len(x)))
        x = next_share * clean + next_spread * (x - share * clean) / spread
        if on_preview is not None:
            rgba = decode_views(clean)[0].float().cpu()
            on_preview(rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:])
        if on_step is not None:
            on_step(i + 1, steps)
    return x


def blank_sketches(sketches: Tensor) -> Tensor:
    """Sketches of nothing: no colour, no alpha, no depth."""
    blank = torch.full_like(sketches, -1.0)
    blank[:, :, :3] = 0
    return blank


class Sketcher(Protocol):
    """Who draws the sketches: the embedded reconstruction model, see `lrm.sketch.PhotoSketcher`."""

    @property
    def image_size(self) -> int:
        """Side in pixels of the photo that it wants."""
        ...

    def __call__(self, photo: Tensor, elevation_deg: float) -> tuple[Tensor, float]:
        """Sketch the object in a photo.

        Args:
            photo: (4, S, S) straight RGBA in [0, 1], S its ``image_size``.
            elevation_deg: of the camera that took it.

        Returns:
            (6, 5, s, s) of `lrm.sketch.sketch` from the ring, and the photo's focal length in half images.
        """
        ...


class TinyViews(ViewGenerator):
    """The embedded view generator: a ring of six views at 64 pixels, with alpha of their own.

    Args:
        network: on its device.
        sketcher: draws what the network starts from.
        name: see `ViewGenerator`.
        mean: give the regressor's answer, which takes one pass and no noise, in place of drawn views.
        dtype: of the network's matrix products.

    Attributes:
        photo_focal: of the last photo, in half images, as the sketcher took it.
        record: what is known of the weights.
    """

    def __init__(
        self,
        network: TinyViewsNetwork,
        sketcher: Sketcher,
        name: str = ARCHITECTURE,
        *,
        mean: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.sketcher, self.name, self.mean, self.dtype = sketcher, name, mean, dtype
        self.image_size = sketcher.image_size
        self.foreground_ratio = network.config.foreground_ratio
        self.photo_focal: float | None = None
        self.record: dict[str, str] = {}

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        sketcher: Sketcher,
        *,
        name: str = ARCHITECTURE,
        mean: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> TinyViews:
        """Load ``config.json`` and ``model.safetensors``, strictly.

        Raises:
            WeightsError: a file is missing or damaged, another architecture, or the tensors do not fit.
        """
        return cls(load_network(folder).to(device), sketcher, name, mean=mean, dtype=dtype)

    @property
    def photo_fov_deg(self) -> float | None:
        """Full field of view under which the last photo was taken, as the sketcher guessed; None before the first."""
        return None if self.photo_focal is None else math.degrees(2 * math.atan(1 / self.photo_focal))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def save_pretrained(
        self, folder: str | Path, extra: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Write the folder that `from_folder` reads; the sketcher is not in it."""
        answer = {"answer": "mean"} if self.mean else {}
        save_network(self.network, folder, {**(extra or {}), **answer}, dtype or self.dtype)

    @torch.no_grad()
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
        """See `ViewGenerator.generate`. The views know of each other, so all six go through the network together."""
        check_cutout(image)
        if parity:
            raise SettingsError(f"parity: {self.name} is this project's own, there is no other program to agree with.")
        steps = DEFAULT_STEPS if num_inference_steps is None else num_inference_steps
        guidance = DEFAULT_GUIDANCE if guidance_scale is None else guidance_scale
        check_settings(
            elevation_deg=elevation_deg, num_inference_steps=steps, guidance_scale=guidance,
            view_batch_size=view_batch_size,
        )  # fmt: skip
        photo = resized_cutout(image.to(self.device), self.image_size)
        drawn, focal = self.sketcher(photo, elevation_deg)
        self.photo_focal = focal
        sketches = encode_sketches(drawn.to(self.device))[None]
        clean = small_photo(photo[None], RING_SIZE)
        camera = camera_facts(elevation_deg, focal)[None].to(self.device)
        noise = None if self.mean else draw_noise(tuple(sketches[:, :, :4].shape), generator, self.device)

        def run(dtype: torch.dtype) -> Tensor:
            return self._views(sketches, clean, camera, noise, steps, guidance, on_step, on_preview, dtype)

        views, what = run(self.dtype), f"{self.name}: {steps} steps"
        if self.dtype != torch.float32 and not bool(torch.isfinite(views).all()):
            half = str(self.dtype).removeprefix("torch.")
            logger.warning("%s gave numbers that are not finite in %s: repeated in fp32.", what, half)
            views = run(torch.float32)
        if not bool(torch.isfinite(views).all()):
            raise WeightsError(f"{what} gave numbers that are not finite in fp32. The weights may be damaged.")
        rgba = decode_views(views)[0].cpu().float()
        return Views(rgba[:, :3], rgba[:, 3:], ring_cameras())

    def _views(
        self, sketches: Tensor, photo: Tensor, camera: Tensor, noise: Tensor | None, steps: int,
        guidance: float, on_step: OnStep | None, on_preview: OnPreview | None, dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        config = self.network.config
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            if noise is None:
                return regress(self.network, config, sketches, photo, camera)
            return denoise(self.network, config, noise, sketches, photo, camera, steps, guidance, on_step, on_preview)


def resized_cutout(image: Tensor, size: int) -> Tensor:
    """Straight RGBA (4, S, S) → (4, size, size), averaged where colour is premultiplied."""
    if image.shape[-1] == size:
        return image
    premultiplied = torch.cat([image[:3] * image[3:], image[3:]])
    small = F.interpolate(premultiplied[None], (size, size), mode="bilinear", antialias=True)[0]
    return torch.cat([(small[:3] / small[3:].clamp(min=1e-4)).clamp(0, 1), small[3:].clamp(0, 1)])


def camera_facts(elevation_deg: float, focal: float) -> Tensor:
    """(2,) what the network is told of the photo's camera: elevation in degrees, focal length in half images."""
    return torch.tensor([elevation_deg / 30, math.log(focal) - 1.5])


def small_photo(photo: Tensor, size: int) -> Tensor:
    """Straight RGBA (B, 4, S, S) → encoded (B, 4, size, size), averaged where colour is premultiplied."""
    return F.interpolate(encode_views(photo), (size, size), mode="bilinear", antialias=True)


def load_network(folder: str | Path) -> TinyViewsNetwork:
    """The network of a folder that `save_network` wrote, evaluating, without gradients.

    Raises:
        WeightsError: a file is missing or damaged, another architecture, or the tensors do not fit.
    """
    folder = Path(folder)
    values = read_config_json(folder)
    if values.get("architecture") != ARCHITECTURE:
        raise WeightsError(f"{folder}: architecture {values.get('architecture')!r}, expected {ARCHITECTURE!r}.")
    sizes = config_from_dict(TinyViewsConfig, values.get("network", {}), f"{folder}/config.json")
    network = TinyViewsNetwork(sizes)
    load_strict(network, read_safetensors(folder / WEIGHTS_FILE), str(folder / WEIGHTS_FILE))
    return network.eval().requires_grad_(False)


def save_network(
    network: TinyViewsNetwork, folder: str | Path, extra: dict[str, Any] | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write ``config.json`` and ``model.safetensors``; ``extra`` goes into the config beside the sizes."""
    config = {"architecture": ARCHITECTURE, "network": asdict(network.config), **(extra or {})}
    save_folder(folder, config, network.state_dict(), dtype)
