"""The embedded reconstruction model: small enough to ship, trained by this project (``train/recipes/tiny.yaml``).

::

    views ─► convolutional stem ─► image tokens ──────────────────┐
    (B,V,6,S,S)    │   │   │                                      ▼
    cameras ─┐     │   │   │    plane tokens ─► [self, cross, MLP] x layers
             ▼     │   ▼   │                         │     │     │
         lifted volume ◄───┘   ── seeds ──────►     XY    XZ     │      from above, from the side; upright
                   │                                            YZ      the first picture's own plane, pixel-aligned
                   └──────────── skip features ─────►            └── TriplaneField

The field stands upright: XY and XZ lie along the world's axes, so that a table's top is flat in them whatever the
camera's elevation was. The third plane is the first picture itself: the field reads on a pixel's ray what the stem saw
at that pixel (`PictureFrame`). Features of all views are lifted into a coarse volume along their cameras' rays and
pressed onto the upright planes; attention adds what geometry does not say. Cameras are given as projections; for a
single photo a small head guesses elevation and focal length first.

Source: triplane transformers are LRM (Hong et al. 2023, arXiv 2311.04400); pixel-aligned features are PIFu (Saito et
al. 2019). The hybrid is ours; `docs/model-card-tiny.md` has the figures.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multiview.attention import attend, join_heads, split_heads
from multiview.cameras import Cameras, crop_intrinsics, invert_rigid, orbit, pitch_rotation, yaw_rotation
from multiview.errors import FieldError, ImageError, WeightsError
from multiview.views import Views
from multiview.weights import (
    WEIGHTS_FILE,
    config_from_dict,
    load_strict,
    read_config_json,
    read_safetensors,
    save_folder,
)

from .field import OutputRule, PlanesDecoder, TriplaneField
from .models import Reconstruction, ViewsModel
from .silhouette import silhouette_touch

ARCHITECTURE = "tiny2"
ELEVATION_UNIT_DEG = 30.0
# Planes this much larger than convolutions give them at first make a gradient step count in the field: in a toy of
# four objects, 240 steps came to a loss of 0.093 with it and of 0.153 without.
PLANE_GAIN = 10.0
USUAL_LOG_FOCAL = 1.5  # log of 4.5 half images: a 40 degree camera 2.6 longest sides away, cropped
# Planes of x and y, of x and z, and of the picture's (right, up): columns of `PictureFrame.to_plane`.
PLANE_PAIRS = ((0, 1), (0, 2), (3, 4))


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of the embedded model; the defaults are the shipped one.

    Attributes:
        image_size: pixels per side of the conditioning image, a multiple of 16.
        stem: channels of the stem at 1/2, 1/4, 1/8 and 1/16 of the picture.
        width, heads, layers: of the plane transformer.
        lift_side, lift_channels: cells per axis and channels of the lifted volume.
        seed_channels: channels of the volume once it is pressed onto a plane.
        side_channels: channels of the two upright planes while they grow from 1/16 to 1/4 of the picture's side.
        front_channels: channels of the picture's plane while it grows from 1/16 to 1/2.
        plane_channels: C of the triplane; its side is image_size / 2.
        decoder_width, decoder_layers: hidden neurons and hidden layers of the field's decoder.
        extents: half sides of the box that the upright planes and the volume cover: toward the camera, right, up;
            in half images.
        scene_radius: half side of the field's cube, in half images.
        density_scale, density_sharpness: occupancy → density, see `lrm.field.OutputRule`.
        surface_occupancy: occupancy at which the surface is taken; an unsure network needs less than one half.
        foreground_ratio: longest side of the object's box / image side in training.
    """

    image_size: int = 96
    stem: tuple[int, int, int, int] = (32, 64, 128, 224)
    width: int = 192
    heads: int = 3
    layers: int = 4
    lift_side: int = 16
    lift_channels: int = 24
    seed_channels: int = 96
    side_channels: tuple[int, int] = (96, 64)
    front_channels: tuple[int, int, int] = (112, 64, 32)
    plane_channels: int = 32
    decoder_width: int = 64
    decoder_layers: int = 2
    extents: tuple[float, float, float] = (1.6, 1.1, 1.25)
    scene_radius: float = 1.6
    density_scale: float = 80.0
    density_sharpness: float = 3.0
    surface_occupancy: float = 0.42
    foreground_ratio: float = 0.85

    @property
    def output_rule(self) -> OutputRule:
        """Decoder outputs → density and colour, where one unit is half an image."""
        return OutputRule(
            "occupancy", density_scale=self.density_scale, middle=self.surface_occupancy,
            sharpness=self.density_sharpness,
        )  # fmt: skip


def photo_projection(elevation_deg: Tensor, focal: Tensor) -> Tensor:
    """Projection of a single photo whose centre looks at the origin.

    Args:
        elevation_deg: (B,).
        focal: (B,) focal length in half images, which is also the distance of the camera in world units, since one
            world unit is half an image wide at the origin.

    Returns:
        (B, 3, 4): homogeneous (right, up, depth) of the picture from homogeneous world points; right and up are in
        [-1, 1] over the picture after division by depth, which is 1 at the origin.
    """
    sin, cos = torch.sin(torch.deg2rad(elevation_deg)), torch.cos(torch.deg2rad(elevation_deg))
    zero, one = torch.zeros_like(sin), torch.ones_like(sin)
    rows = (zero, one, zero, zero, -sin, zero, cos, zero, -cos / focal, zero, -sin / focal, one)
    return torch.stack(rows, -1).unflatten(-1, (3, 4))


def project_points(projections: Tensor, points: Tensor) -> Tensor:
    """World points (..., N, 3) → picture coordinates (..., N, 2), right and up, by projections (..., 3, 4)."""
    seen = points @ projections[..., :3].mT + projections[..., None, :, 3]
    return seen[..., :2] / seen[..., 2:].clamp(min=0.05)


def ray_points(projections: Tensor, pixels: Tensor, radius: float, samples: int) -> tuple[Tensor, Tensor]:
    """Points along the rays of pixels, at the middles of equal steps through where the object may be.

    Args:
        projections: (B, 3, 4) world → picture.
        pixels: (B, R, 2) right and up in [-1, 1].
        radius: half length of what is covered of a ray, about its point nearest to the origin.
        samples: points on each ray.

    Returns:
        (B, R, samples, 3), nearest to the camera first, and the steps' lengths (B, R, samples).
    """
    linear, offset = projections[..., :3], projections[..., 3:]
    inverse = torch.linalg.inv(linear)
    eye = -(inverse @ offset).mT  # (B, 1, 3)
    away = F.normalize(torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1) @ inverse.mT, dim=-1)
    middle = -(eye * away).sum(-1, keepdim=True)
    share = (torch.arange(samples, device=pixels.device) + 0.5) / samples * 2 - 1
    points = eye[:, :, None] + away[:, :, None] * (middle + share * radius)[..., None]
    return points, torch.full_like(points[..., 0], 2 * radius / samples)


@dataclass(frozen=True)
class PictureFrame:
    """World → (x, y, z over their extents, image right, image up); see `lrm.field.Frame`.

    Attributes:
        projection: (3, 4) of the picture, see `photo_projection`.
        extents: half sides of the box of the upright planes.
        turn: (3, 3) from the frame in which the field is asked to the upright one with the picture at azimuth 0 and
            one unit half an image wide; None where they are the same.
        reach: half side of the cube in which the planes still mean something; it ends short of the camera.
    """

    projection: Tensor
    extents: tuple[float, float, float]
    turn: Tensor | None = None
    reach: float = 0.0

    def to_plane(self, points: Tensor) -> Tensor:
        """World points (N, 3) → (N, 5): the planes' coordinates, then the picture's."""
        upright = points if self.turn is None else points @ self.turn.to(points).T
        scaled = upright / torch.tensor(self.extents, dtype=points.dtype, device=points.device)
        return torch.cat([scaled, project_points(self.projection.to(points), upright)], -1)


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
    """Grow a plane from 1/16 of the picture's side, twice as wide at every step, taking other maps in."""

    def __init__(self, width: int, seeds: tuple[int, ...], channels: tuple[int, ...], out: int) -> None:
        super().__init__()
        sizes = (width, *channels)
        self.up = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(sizes))
        self.seed = nn.ModuleList(nn.Conv2d(s, c, 1) for s, c in zip(seeds, channels, strict=True))
        self.block = nn.ModuleList(ResidualBlock(c) for c in channels)
        self.out = nn.Sequential(nn.GroupNorm(8, channels[-1]), nn.SiLU(), nn.Conv2d(channels[-1], out, 3, padding=1))

    def forward(self, x: Tensor, seeds: list[Tensor]) -> Tensor:
        """Map (B, width, h, h) and seeds of any size, one for each of 2h, 4h, ... → (B, out, h', h') at the last."""
        for up, seed, block, features in zip(self.up, self.seed, self.block, seeds, strict=True):
            x = F.interpolate(up(x), scale_factor=2, mode="nearest")
            taken = seed(features)
            if taken.shape[-1] != x.shape[-1]:
                taken = F.interpolate(taken, x.shape[-2:], mode="bilinear")
            x = block(x + taken)
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
    """Views and cameras → planes; see the drawing at the top of the file."""

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
        self.camera_tokens = nn.Sequential(nn.Linear(13, width), nn.SiLU(), nn.Linear(width, width))
        self.coarse_tokens, self.fine_tokens = nn.Linear(c3, width), nn.Linear(c2, width)
        self.image_norm = nn.LayerNorm(width)
        self.image_position = nn.Parameter(torch.randn(1, 5 * side * side, width) * 0.02)
        self.plane_position = nn.Parameter(torch.randn(1, 3 * side * side, width) * 0.02)
        lift, seed = config.lift_channels, config.seed_channels
        self.lift_fine, self.lift_coarse = nn.Conv2d(c1, lift, 1), nn.Conv2d(c2, lift, 1)
        self.lift_camera = nn.Linear(13, lift)
        self.press = nn.ModuleList(nn.Conv2d(2 * lift * config.lift_side, seed, 1) for _ in range(2))
        self.plane_seed = nn.ModuleList(nn.Linear(seed, width) for _ in range(2))
        self.front_seed = nn.Linear(c3, width)
        self.blocks = nn.ModuleList(PlaneBlock(width, config.heads) for _ in range(config.layers))
        self.side_planes = nn.ModuleList(
            PlaneDecoder(width, (seed, seed), config.side_channels, config.plane_channels) for _ in range(2)
        )
        self.front_plane = PlaneDecoder(width, (c2, c1, c0), config.front_channels, config.plane_channels)
        self.head = CameraHead(config.image_size)
        self.decoder = PlanesDecoder(config.plane_channels, config.decoder_width, config.decoder_layers, "relu")

    def forward(self, images: Tensor, projections: Tensor, known: Tensor) -> Tensor:
        """Conditioning images with cameras → planes.

        Args:
            images: (B, V, 4, S, S) float in [0, 1], straight-alpha sRGB; the first view's plane is kept.
            projections: (B, V, 3, 4) world → picture, see `photo_projection`.
            known: (B,) 1 where the cameras are known, 0 where `camera` guessed them.

        Returns:
            ``planes`` (B, 3, C, S / 2, S / 2) float32, read by `PLANE_PAIRS`.
        """
        b, v = images.shape[:2]
        features = self._stem(_network_input(images.flatten(0, 1)))
        cameras = torch.cat([projections.flatten(2), known[:, None, None].expand(b, v, 1)], -1)
        seeds = self._pressed(features, projections, cameras)
        first = [f.unflatten(0, (b, v))[:, 0].flip(2) for f in features]  # row 0 at the bottom, as planes have it
        tokens = self._plane_tokens(features, first[3], seeds, cameras)
        side = self.config.image_size // 16
        maps = tokens.transpose(1, 2).reshape(b, -1, 3, side, side)
        front = self.front_plane(maps[:, :, 2], [first[2], first[1], first[0]]).float()
        xy, xz = (
            F.interpolate(plane(maps[:, :, i], [seeds[i], seeds[i]]).float(), scale_factor=2, mode="bilinear")
            for i, plane in enumerate(self.side_planes)
        )
        return torch.stack([xy, xz, front], 1) * PLANE_GAIN

    def camera(self, images: Tensor) -> Tensor:
        """Guess the camera of single photos (B, 4, S, S): (B, 2), see `CameraHead`."""
        return self.head(_network_input(images)).float()

    def _stem(self, x: Tensor) -> list[Tensor]:
        """(B, 6, S, S) → features at 1/2, 1/4, 1/8 and 1/16."""
        x = self.entry(x)
        features = [self.stages[0](x)]
        for down, stage in zip(self.downs, list(self.stages)[1:], strict=True):
            features.append(stage(down(features[-1])))
        return features

    def _pressed(self, features: list[Tensor], projections: Tensor, cameras: Tensor) -> list[Tensor]:
        """Lift the features of all views along their rays and press them onto the planes XY and XZ.

        Returns:
            Two maps (B, seed_channels, lift_side, lift_side); W runs along x, H along y and along z.
        """
        (b, v), n = projections.shape[:2], self.config.lift_side
        fine, coarse = self.lift_fine(features[1]), self.lift_coarse(features[2])
        flat = fine + F.interpolate(coarse, scale_factor=2, mode="nearest")
        axis = (torch.arange(n, device=flat.device) + 0.5) * (2 / n) - 1
        grid = torch.stack(torch.meshgrid(*(axis * e for e in self.config.extents), indexing="ij"), -1).flatten(0, 2)
        seen = project_points(projections.float(), grid.expand(b, v, -1, 3)) * grid.new_tensor([1, -1])  # rows go down
        lifted = F.grid_sample(flat.float(), seen.flatten(0, 1)[:, None], align_corners=False)[:, :, 0]
        lifted = lifted.unflatten(0, (b, v)) + self.lift_camera(cameras)[..., None].float()
        lifted = F.silu(lifted.to(flat.dtype))
        volume = torch.cat([lifted.mean(1), lifted.amax(1)], 1).unflatten(-1, (n, n, n))  # (B, 2C, x, y, z)
        above = volume.permute(0, 1, 4, 3, 2).flatten(1, 2)
        beside = volume.permute(0, 1, 3, 4, 2).flatten(1, 2)
        return [press(seen) for press, seen in zip(self.press, (above, beside), strict=True)]

    def _plane_tokens(self, features: list[Tensor], first: Tensor, seeds: list[Tensor], cameras: Tensor) -> Tensor:
        """Stem features of all views, the first view's coarsest, seeds, cameras → plane tokens (B, 3 * side², D)."""
        b, v = cameras.shape[:2]
        poses = self.camera_tokens(cameras)
        coarse, fine = (f.flatten(2).transpose(1, 2) for f in (features[3], features[2]))
        image_tokens = torch.cat([self.coarse_tokens(coarse), self.fine_tokens(fine)], 1) + self.image_position
        image_tokens = image_tokens.unflatten(0, (b, v)) + poses[:, :, None]
        image_tokens = self.image_norm(image_tokens.flatten(1, 2))
        side = self.config.image_size // 16
        tokens = [
            seed(F.interpolate(pressed, (side, side), mode="area").flatten(2).transpose(1, 2))
            for seed, pressed in zip(self.plane_seed, seeds, strict=True)
        ]
        tokens.append(self.front_seed(first.flatten(2).transpose(1, 2)))
        x = torch.cat(tokens, 1) + self.plane_position + poses[:, :1]
        for block in self.blocks:
            x = block(x, image_tokens)
        return x


def _network_input(images: Tensor) -> Tensor:
    """Straight RGBA (B, 4, S, S) → premultiplied colour about 0, matte, and pixel coordinates: (B, 6, S, S)."""
    b, _, h, w = images.shape
    alpha = images[:, 3:]
    y = torch.linspace(1, -1, h, device=images.device, dtype=images.dtype)[:, None].expand(b, 1, h, w)
    x = torch.linspace(-1, 1, w, device=images.device, dtype=images.dtype).expand(b, 1, h, w)
    return torch.cat([(images[:, :3] - 0.5) * alpha * 2, alpha * 2 - 1, x, y], 1)


class TinyLRM(ViewsModel):
    """The embedded model as a `ViewsModel`: one photo, or one to N views.

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
        images = images.to(self.device)
        with self._autocast():
            guess = self.network.camera(images)
        if not torch.isfinite(guess).all():
            raise FieldError(f"{self.name} guessed a camera that is not finite. Try --dtype fp32.")
        elevation, focal = decode_camera(guess)
        if elevation_deg is not None:
            elevation = torch.full_like(elevation, elevation_deg)
        if fov_deg is not None:
            focal = torch.full_like(focal, 1 / math.tan(math.radians(fov_deg) / 2))
        projections = photo_projection(elevation, focal)
        planes = self._planes(images[:, None], projections[:, None], elevation_deg is not None)
        given = {"elevation": elevation_deg, "fov": fov_deg, "distance": fov_deg}
        estimated = tuple(k for k, value in given.items() if value is None and (upright or k != "elevation"))
        return [
            Reconstruction(
                field=self._field(
                    planes[i], projections[i], images[i, 3], 1.0, None if upright else pitch_rotation(elevation[i])
                ),
                camera=_photo_camera(float(elevation[i]) if upright else 0.0, float(focal[i])),
                elevation_deg=float(elevation[i]) if upright else 0.0,
                estimated=estimated,
            )
            for i in range(len(images))
        ]

    @torch.no_grad()
    def guess_camera(self, images: Tensor) -> Tensor:
        """Elevations in degrees and focal lengths in half images (B, 2) of photos as `reconstruct` takes them."""
        with self._autocast():
            return torch.stack(decode_camera(self.network.camera(images.to(self.device))), -1)

    @torch.no_grad()
    def plain_fields(self, images: Tensor, camera: Tensor | None = None) -> tuple[list[TriplaneField], Tensor]:
        """What the network says of B photos by itself, without the touch that holds it to their silhouettes.

        Args:
            images: as in `reconstruct`.
            camera: (B, 2) elevations in degrees and focal lengths in half images; None lets the camera head guess.

        Returns:
            B upright fields with the photo at azimuth 0 and one unit half an image wide, and (B, 2) the cameras used.
        """
        images = images.to(self.device)
        known = camera is not None
        if camera is None:
            camera = self.guess_camera(images)
        projections = photo_projection(camera[:, 0].to(self.device), camera[:, 1].to(self.device))
        planes = self._planes(images[:, None], projections[:, None], known)
        fields = [self._upright_field(one, projection) for one, projection in zip(planes, projections, strict=True)]
        return fields, camera

    @torch.no_grad()
    def reconstruct_views(
        self, views: Views, *, elevation_deg: float | None = None, fov_deg: float | None = None
    ) -> Reconstruction:
        """Lift one object from V >= 1 views with known cameras that see the origin; the first one counts most.

        Every view is cropped about its matte first, as single photos are.

        Args:
            views: of any size; the field comes back in the world of their cameras.
            elevation_deg, fov_deg: not needed, the cameras say it; see `ViewsModel.reconstruct_views`.

        Returns:
            The reconstruction with the crop of the first view as its camera.

        Raises:
            FieldError: the network gave numbers that are not finite.
            ImageError: a view has an empty matte.
        """
        cropped = crop_views(views, self.image_size, self.foreground_ratio)
        matrices, turn, unit = view_projections(cropped.cameras)
        images = torch.cat([cropped.images, cropped.alpha], 1)[None].to(self.device)
        planes = self._planes(images, matrices[None].to(self.device), True)
        first = cropped.cameras.select([0])
        field = self._field(planes[0], matrices[0], images[0, 0, 3], unit, turn)
        return Reconstruction(field, first, _elevation_deg(first.positions[0]), ())

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _planes(self, images: Tensor, projections: Tensor, known: bool) -> Tensor:
        with self._autocast():
            flags = torch.full((len(images),), float(known), device=self.device)
            planes = self.network(images, projections, flags)
        if not torch.isfinite(planes).all():
            raise FieldError(f"{self.name} gave numbers that are not finite. Try --dtype fp32.")
        return planes

    def _upright_field(self, planes: Tensor, projection: Tensor) -> TriplaneField:
        """The field of planes in the frame that the network thinks in, without a bias."""
        config = self.network.config
        return TriplaneField(
            planes=planes,
            decoder=self.network.decoder,
            scene_radius=config.scene_radius,
            level=config.density_scale / 2,
            outputs=config.output_rule,
            pairs=PLANE_PAIRS,
            frame=PictureFrame(projection.to(planes), config.extents, None, config.scene_radius),
        )

    def _field(
        self, planes: Tensor, projection: Tensor, matte: Tensor, unit: float, turn: Tensor | None
    ) -> TriplaneField:
        config = self.network.config
        reach = config.scene_radius * unit
        scaled = turn if unit == 1.0 else (torch.eye(3) if turn is None else turn) / unit
        field = TriplaneField(
            planes=planes,
            decoder=self.network.decoder,
            scene_radius=reach,
            level=config.density_scale / unit / 2,
            outputs=replace(config.output_rule, density_scale=config.density_scale / unit),
            pairs=PLANE_PAIRS,
            frame=PictureFrame(projection.to(planes), config.extents, scaled, reach),
        )
        upright = self._upright_field(planes, projection)
        level = math.log(config.surface_occupancy / (1 - config.surface_occupancy))
        bias, rods = silhouette_touch(upright, matte.to(planes), projection.to(planes), config.extents, level)
        return replace(field, raw_bias=bias, touch=rods)


def decode_camera(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """What `CameraHead` says (B, 2) → elevation in degrees (B,) and focal length in half images (B,), kept sane."""
    elevation = (numbers[:, 0] * ELEVATION_UNIT_DEG).clamp(-60, 85)
    return elevation, torch.exp(numbers[:, 1].clamp(-1.0, 1.5) + USUAL_LOG_FOCAL)


def _photo_camera(elevation_deg: float, focal: float) -> Cameras:
    return orbit(0.0, elevation_deg, focal, math.degrees(2 * math.atan(1 / focal)))


def _elevation_deg(position: Tensor) -> float:
    return math.degrees(math.asin(float(position[2] / position.norm())))


def crop_views(views: Views, size: int, foreground_ratio: float) -> Views:
    """Crop every view square about its matte, so that its longer side fills ``foreground_ratio``, and resize.

    Args:
        views: (V, ...) of any size.
        size: side of the crops in pixels.
        foreground_ratio: in (0, 1].

    Raises:
        ImageError: a matte is empty.
    """
    height, width = views.image_size
    images, mattes, intrinsics = [], [], []
    for i in range(len(views)):
        rows, columns = (torch.nonzero((views.alpha[i, 0] > 0.5).any(axis)).flatten() for axis in (1, 0))
        if len(rows) == 0:
            raise ImageError(f"view {i} of {len(views)}: its matte is empty, expected an object. Look at its picture.")
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        side = float(max(bottom - top, right - left)) / foreground_ratio
        x, y = float(left + right) / 2 - side / 2, float(top + bottom) / 2 - side / 2
        steps = (torch.arange(size, device=views.images.device) + 0.5) / size * side
        grid = torch.stack(torch.meshgrid((y + steps) / height, (x + steps) / width, indexing="ij")[::-1], -1) * 2 - 1
        blur = max(side / size, 1.0)
        premultiplied = torch.cat([views.images[i] * views.alpha[i], views.alpha[i]])[None]
        smoothed = F.interpolate(premultiplied, scale_factor=1 / blur, mode="bilinear", antialias=True)
        seen = F.grid_sample(smoothed, grid[None].to(smoothed), align_corners=False)[0]
        images.append((seen[:3] / seen[3:].clamp(min=1e-4)).clamp(0, 1))
        mattes.append(seen[3:].clamp(0, 1))
        intrinsics.append(
            crop_intrinsics(views.cameras.intrinsics[i : i + 1], x / width, y / height, side / width, side / height)
        )
    return Views(torch.stack(images), torch.stack(mattes), Cameras(views.cameras.c2w, torch.cat(intrinsics)))


def view_projections(cameras: Cameras) -> tuple[Tensor, Tensor, float]:
    """Projections of views in the frame of the first one.

    Args:
        cameras: V; the first looks at about the origin from off the world's z axis.

    Returns:
        (V, 3, 4) projections from that frame, which has the first camera at azimuth 0 and one unit half its image
        wide at the origin; (3, 3) turn from the world to it; that unit's length in the world.
    """
    first = cameras.positions[0]
    turn = yaw_rotation(-torch.rad2deg(torch.atan2(first[1], first[0])))
    w2c = invert_rigid(cameras.c2w)
    depth = -w2c[:, 2, 3]  # of the origin, OpenGL cameras look along -z
    unit = float(depth[0] / (2 * cameras.intrinsics[0, 0, 0]))
    k = cameras.intrinsics
    right = 2 * k[:, :1, 0] * w2c[:, 0] - (2 * k[:, :1, 2] - 1) * w2c[:, 2]
    up = 2 * k[:, 1:2, 1] * w2c[:, 1] - (1 - 2 * k[:, 1:2, 2]) * w2c[:, 2]
    rows = torch.stack([right, up, -w2c[:, 2]], 1)
    linear = rows[:, :, :3] @ turn.T.to(rows) * unit
    return torch.cat([linear, rows[:, :, 3:]], -1) / depth[:, None, None], turn, unit
