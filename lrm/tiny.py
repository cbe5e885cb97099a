"""The embedded reconstruction model: small enough to ship, trained by this project (``train/recipes/tiny.yaml``).

::

    picture ─► convolutional stem ─► image tokens ─────────────┐
    (B,6,S,S)      │   │   │                                   ▼
                   │   │   │   plane tokens ─► [self, cross, MLP] x layers
                   │   │   │                        │     │     │
                   │   │   └── rows, columns ──►   XY    XZ     │      depth against right; depth against up
                   └───┴────── skip features ──►               YZ      the picture's own plane, pixel-aligned
                                                     └── TriplaneField

The planes live in the picture's frame (`PictureFrame`): the YZ plane is the picture, so that the field reads on a
pixel's ray what the stem saw at that pixel. Two side planes share the axis of depth; their maps are seeded with what
the stem sees on the matching row or column, and attention adds the rest. A small head gives the camera's elevation
and its focal length, so that the field can be stood upright.

Source: triplane transformers are LRM (Hong et al. 2023, arXiv 2311.04400); pixel-aligned features are PIFu (Saito et
al. 2019). The hybrid is ours; `docs/model-card-tiny.md` has the figures.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multiview.attention import attend, join_heads, split_heads
from multiview.cameras import orbit, pitch_rotation
from multiview.errors import FieldError, ImageError, WeightsError
from multiview.weights import (
    WEIGHTS_FILE,
    config_from_dict,
    load_strict,
    read_config_json,
    read_safetensors,
    save_folder,
)

from .field import OutputRule, PlanesDecoder, TriplaneField
from .models import Reconstruction, ReconstructionModel

ARCHITECTURE = "tiny"
ELEVATION_UNIT_DEG = 30.0
# Planes this much larger than convolutions give them at first make a gradient step count in the field: in a toy of
# four objects, 240 steps came to a loss of 0.093 with it and of 0.153 without.
PLANE_GAIN = 10.0
USUAL_LOG_FOCAL = 1.5  # log of 4.5 half images: a 40 degree camera 2.6 longest sides away, cropped


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of the embedded model; the defaults are the shipped one.

    Attributes:
        image_size: pixels per side of the conditioning image, a multiple of 16.
        stem: channels of the stem at 1/2, 1/4, 1/8 and 1/16 of the picture.
        width, heads, layers: of the plane transformer.
        side_channels: channels of the two side planes while they grow from 1/16 to 1/4 of the picture's side.
        front_channels: channels of the picture's plane while it grows from 1/16 to 1/2.
        plane_channels: C of the triplane; its side is image_size / 2.
        decoder_width, decoder_layers: hidden neurons and hidden layers of the field's decoder.
        depth_contraction: depth at which the contracted coordinate is 0.71, in half images.
        scene_radius: half side of the field's cube, in half images.
        density_scale: density where occupancy is 1; the field's density is density_scale * occupancy.
        surface_occupancy: occupancy at which the surface is taken; an unsure network needs less than one half.
        foreground_ratio: longest side of the object's box / image side in training.
    """

    image_size: int = 96
    stem: tuple[int, int, int, int] = (32, 64, 128, 224)
    width: int = 192
    heads: int = 3
    layers: int = 4
    side_channels: tuple[int, int] = (96, 64)
    front_channels: tuple[int, int, int] = (112, 64, 32)
    plane_channels: int = 32
    decoder_width: int = 64
    decoder_layers: int = 2
    depth_contraction: float = 1.2
    scene_radius: float = 1.8
    density_scale: float = 80.0
    surface_occupancy: float = 0.42
    foreground_ratio: float = 0.85


@dataclass(frozen=True)
class PictureFrame:
    """World → (contracted depth, right, up) of a picture; see `lrm.field.Frame`.

    Attributes:
        elevation_deg: of the camera, which sits at azimuth 0.
        focal: focal length in half images, which is also the camera's distance in world units, since one world unit
            is half an image wide at the origin.
        contraction: see `TinyConfig.depth_contraction`.
        reach: half side of the cube in which the planes still mean something; it ends short of the camera.
    """

    elevation_deg: float
    focal: float
    contraction: float
    reach: float = 0.0

    def to_plane(self, points: Tensor) -> Tensor:
        """World points (N, 3) → (N, 3): depth toward the camera contracted to (-1, 1), and image right and up."""
        local = points @ pitch_rotation(self.elevation_deg).to(points)
        shrink = self.focal / (self.focal - local[:, :1]).clamp(min=0.05 * self.focal)
        return torch.cat([contract_depth(local[:, :1], self.contraction), local[:, 1:] * shrink], -1)


def contract_depth(depth: Tensor, contraction: float) -> Tensor:
    """Depth in half images → (-1, 1): nearly linear for |depth| < ``contraction``, flat far beyond."""
    return depth * torch.rsqrt(depth * depth + contraction**2)


class ResidualBlock(nn.Module):
    """Two times norm, SiLU and 3 x 3 convolution, around a skip; shape kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        y = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(y)))


class PlaneBlock(nn.Module):
    """Plane tokens attend to each other, then to the picture, then think."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.expand, self.shrink = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor, image_tokens: Tensor) -> Tensor:
        """Tokens (B, L, D) and image tokens (B, M, D), already normalised → (B, L, D)."""
        q, k, v = (split_heads(t, self.heads) for t in self.qkv(self.norm1(tokens)).chunk(3, -1))
        tokens = tokens + self.self_out(join_heads(attend(q, k, v)))
        q = split_heads(self.query(self.norm2(tokens)), self.heads)
        k, v = (split_heads(t, self.heads) for t in self.key_value(image_tokens).chunk(2, -1))
        tokens = tokens + self.cross_out(join_heads(attend(q, k, v)))
        return tokens + self.shrink(F.gelu(self.expand(self.norm3(tokens))))


class PlaneDecoder(nn.Module):
    """Grow a plane from 1/16 of the picture's side, twice as wide at every step, taking the stem's features in."""

    def __init__(self, width: int, stem: tuple[int, ...], channels: tuple[int, ...], seeds: int, out: int) -> None:
        super().__init__()
        sizes = (width, *channels)
        self.up = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(sizes, channels, strict=False))
        self.seed = nn.ModuleList(
            nn.Conv2d(seeds * s, c, 1) for s, c in zip(reversed(stem[:3]), channels, strict=False)
        )
        self.block = nn.ModuleList(ResidualBlock(c) for c in channels)
        self.out = nn.Sequential(nn.GroupNorm(8, channels[-1]), nn.SiLU(), nn.Conv2d(channels[-1], out, 3, padding=1))

    def forward(self, x: Tensor, seeds: list[Tensor]) -> Tensor:
        """Map (B, width, h, h) and seeds at 2h, 4h, ... (or broadcast along W) → (B, out, h', h') at the last scale."""
        for up, seed, block, features in zip(self.up, self.seed, self.block, seeds, strict=False):
            x = F.interpolate(up(x), scale_factor=2, mode="nearest") + seed(features)
            x = block(x)
        return self.out(x)


class CameraHead(nn.Module):
    """Guess the camera from the picture alone, with convolutions of its own.

    Kept apart from the stem, whose pooled features had learned next to nothing about the elevation after 36,000
    pictures. On its own it can be trained on quickly; it is off by 10 degrees in the mean on validation objects.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        sizes = (6, 24, 32, 64, 128)
        stages = [self._stage(a, b) for a, b in pairwise(sizes)]
        self.body = nn.Sequential(*stages, nn.Conv2d(sizes[-1], 32, 1), nn.Flatten())
        self.out = nn.Sequential(nn.Linear(32 * (image_size // 16) ** 2, 128), nn.SiLU(), nn.Linear(128, 2))

    @staticmethod
    def _stage(a: int, b: int) -> nn.Sequential:
        """Halve the side, (B, a, H, W) → (B, b, H / 2, W / 2)."""
        layers = [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(8, b), nn.SiLU()]
        return nn.Sequential(*layers, nn.Conv2d(b, b, 3, padding=1), nn.GroupNorm(8, b), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """(B, 6, S, S) → (B, 2): elevation in units of 30 degrees, and log focal length less its usual value."""
        return self.out(self.body(x))


class TinyNetwork(nn.Module):
    """Picture → planes, elevation, focal length; see the drawing at the top of the file."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        c0, c1, c2, c3 = config.stem
        self.entry = nn.Conv2d(6, c0, 4, stride=2, padding=1)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in ((c0, c1), (c1, c2), (c2, c3)))
        counts = (1, 1, 2, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(c) for _ in range(n))) for c, n in zip(config.stem, counts, strict=True)
        )
        side, width = config.image_size // 16, config.width
        self.coarse_tokens, self.fine_tokens = nn.Linear(c3, width), nn.Linear(c2, width)
        self.image_norm = nn.LayerNorm(width)
        self.image_position = nn.Parameter(torch.randn(1, 5 * side * side, width) * 0.02)
        self.plane_position = nn.Parameter(torch.randn(1, 3 * side * side, width) * 0.02)
        self.plane_seed = nn.Linear(2 * c3, width)
        self.front_seed = nn.Linear(c3, width)
        self.blocks = nn.ModuleList(PlaneBlock(width, config.heads) for _ in range(config.layers))
        self.side_planes = nn.ModuleList(
            PlaneDecoder(width, config.stem, config.side_channels, 2, config.plane_channels) for _ in range(2)
        )
        self.front_plane = PlaneDecoder(width, config.stem, config.front_channels, 1, config.plane_channels)
        self.head = CameraHead(config.image_size)
        self.decoder = PlanesDecoder(config.plane_channels, config.decoder_width, config.decoder_layers, "relu")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Conditioning images → planes and camera numbers.

        Args:
            images: (B, 4, S, S) float in [0, 1], straight-alpha sRGB.

        Returns:
            ``planes`` (B, 3, C, S / 2, S / 2) float32 in the picture's frame, and ``camera`` (B, 2) float32:
            elevation in units of 30 degrees and log focal length less its usual value.
        """
        x = _network_input(images)
        features = self._stem(x)
        tokens = self._plane_tokens(features)
        b, side = images.shape[0], self.config.image_size // 16
        maps = tokens.transpose(1, 2).reshape(b, -1, 3, side, side)
        # Stem features with row 0 at the bottom, as planes have it; coarse to fine.
        scales = [f.flip(2) for f in (features[2], features[1], features[0])]
        columns = [torch.cat([f.mean(2), f.amax(2)], 1)[:, :, :, None] for f in scales]  # right axis runs along H of XY
        rows = [torch.cat([f.mean(3), f.amax(3)], 1)[:, :, :, None] for f in scales]  # up axis runs along H of XZ
        front = self.front_plane(maps[:, :, 2], scales).float()
        xy, xz = (
            F.interpolate(plane(maps[:, :, i], seeds).float(), scale_factor=2, mode="bilinear")
            for i, (plane, seeds) in enumerate(zip(self.side_planes, (columns, rows), strict=True))
        )
        return torch.stack([xy, xz, front], 1) * PLANE_GAIN, self.head(x).float()

    def camera(self, images: Tensor) -> Tensor:
        """The camera numbers (B, 2) of `forward` alone, for pictures (B, 4, S, S)."""
        return self.head(_network_input(images))

    def _stem(self, x: Tensor) -> list[Tensor]:
        """(B, 6, S, S) → features at 1/2, 1/4, 1/8 and 1/16."""
        x = self.entry(x)
        features = [self.stages[0](x)]
        for down, stage in zip(self.downs, list(self.stages)[1:], strict=True):
            features.append(stage(down(features[-1])))
        return features

    def _plane_tokens(self, features: list[Tensor]) -> Tensor:
        """Stem features → plane tokens (B, 3 * side * side, D), rows bottom up."""
        coarse, fine = features[3], features[2]
        image_tokens = torch.cat(
            [self.coarse_tokens(coarse.flatten(2).transpose(1, 2)), self.fine_tokens(fine.flatten(2).transpose(1, 2))],
            1,
        )
        image_tokens = self.image_norm(image_tokens + self.image_position)
        flipped = coarse.flip(2)
        side = flipped.shape[-1]
        column = torch.cat([flipped.mean(2), flipped.amax(2)], 1).transpose(1, 2)  # (B, W, 2C), left to right
        row = torch.cat([flipped.mean(3), flipped.amax(3)], 1).transpose(1, 2)  # (B, H, 2C), bottom to top
        tokens = torch.cat(
            [
                self.plane_seed(column)[:, :, None].expand(-1, -1, side, -1).flatten(1, 2),
                self.plane_seed(row)[:, :, None].expand(-1, -1, side, -1).flatten(1, 2),
                self.front_seed(flipped.flatten(2).transpose(1, 2)),
            ],
            1,
        )
        tokens = tokens + self.plane_position
        for block in self.blocks:
            tokens = block(tokens, image_tokens)
        return tokens


def _network_input(images: Tensor) -> Tensor:
    """Straight RGBA (B, 4, S, S) → premultiplied colour about 0, matte, and pixel coordinates: (B, 6, S, S)."""
    b, _, h, w = images.shape
    alpha = images[:, 3:]
    y = torch.linspace(1, -1, h, device=images.device, dtype=images.dtype)[:, None].expand(b, 1, h, w)
    x = torch.linspace(-1, 1, w, device=images.device, dtype=images.dtype).expand(b, 1, h, w)
    return torch.cat([(images[:, :3] - 0.5) * alpha * 2, alpha * 2 - 1, x, y], 1)


class TinyLRM(ReconstructionModel):
    """The embedded model as a `ReconstructionModel`.

    Args:
        network: on its device; its parameters' dtype is kept for the decoder, the rest runs in ``dtype``.
        name: see `ReconstructionModel`.
        dtype: of the network's matrix products; the field is fp32.
    """

    def __init__(self, network: TinyNetwork, name: str = "tiny", dtype: torch.dtype = torch.float32) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name, self.dtype = name, dtype
        self.image_size = network.config.image_size
        self.foreground_ratio = network.config.foreground_ratio

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.image_position.device

    @classmethod
    def from_folder(
        cls, folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> TinyLRM:
        """Load ``config.json`` and ``model.safetensors``, strictly.

        Raises:
            WeightsError: a file is missing or damaged, another architecture, or the tensors do not fit.
        """
        folder = Path(folder)
        values = read_config_json(folder)
        if values.get("architecture") != ARCHITECTURE:
            raise WeightsError(f"{folder}: architecture {values.get('architecture')!r}, expected {ARCHITECTURE!r}.")
        config = config_from_dict(TinyConfig, values.get("network", {}), f"{folder}/config.json")
        network = TinyNetwork(config)
        load_strict(network, read_safetensors(folder / WEIGHTS_FILE), str(folder / WEIGHTS_FILE))
        return cls(network.to(device), folder.name, dtype)

    @classmethod
    def random(cls, config: TinyConfig | None = None, seed: int = 0) -> TinyLRM:
        """An untrained model with weights from ``seed``, for tests; the caller's random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(TinyNetwork(config or TinyConfig()), "random")

    def save(self, folder: str | Path, extra: dict[str, Any] | None = None, dtype: torch.dtype | None = None) -> None:
        """Write the folder that `from_folder` reads; ``extra`` goes into ``config.json`` beside the sizes."""
        config = {"architecture": ARCHITECTURE, "network": asdict(self.network.config), **(extra or {})}
        save_folder(folder, config, self.network.state_dict(), dtype)

    @torch.no_grad()
    def reconstruct(
        self, images: Tensor, *, elevation_deg: float | None = None, fov_deg: float | None = None, upright: bool = True
    ) -> list[Reconstruction]:
        """See `ReconstructionModel.reconstruct`."""
        size = self.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (4, size, size):
            raise ImageError(f"{self.name} wants pictures (B, 4, {size}, {size}), found {tuple(images.shape)}.")
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            planes, camera = self.network(images.to(self.device))
        if not (torch.isfinite(planes).all() and torch.isfinite(camera).all()):
            raise FieldError(f"{self.name} gave numbers that are not finite. Try --dtype fp32.")
        return [
            self._reconstruction(p, c, elevation_deg, fov_deg, upright) for p, c in zip(planes, camera, strict=True)
        ]

    def _reconstruction(
        self, planes: Tensor, camera: Tensor, elevation_deg: float | None, fov_deg: float | None, upright: bool
    ) -> Reconstruction:
        config = self.network.config
        guess = float((camera[0] * ELEVATION_UNIT_DEG).clamp(-60, 85))
        elevation = guess if elevation_deg is None else elevation_deg
        guess_focal = math.exp(min(max(float(camera[1]), -1.0), 1.5) + USUAL_LOG_FOCAL)
        focal = guess_focal if fov_deg is None else 1 / math.tan(math.radians(fov_deg) / 2)
        pitch = elevation if upright else 0.0
        reach = min(1.25 * config.scene_radius, 0.9 * focal)
        field = TriplaneField(
            planes=planes,
            decoder=self.network.decoder,
            scene_radius=min(config.scene_radius, reach),
            level=config.surface_occupancy * config.density_scale,
            outputs=OutputRule("occupancy", density_scale=config.density_scale),
            frame=PictureFrame(pitch, focal, config.depth_contraction, reach),
        )
        given = {"elevation": elevation_deg, "fov": fov_deg, "distance": fov_deg}
        return Reconstruction(
            field=field,
            camera=orbit(0.0, pitch, focal, math.degrees(2 * math.atan(1 / focal))),
            elevation_deg=elevation,
            estimated=tuple(name for name, value in given.items() if value is None),
        )
