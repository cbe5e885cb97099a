"""What SyncDreamer has beside Zero123: volumes that the views share, and layers through which a UNet looks into them.

::

    latents (16, 4, 32, 32) ─► ViewEncoder ─► features (16, 16, 32, 32) ─► unprojected (1, 256, 32, 32, 32)
                                                                                     ▼
                 frustum points of view k ─► seen ◄─ spatial volume (1, 64, 32, 32, 32) ◄─ SpatialNetwork
                                               ▼
                     (1, 64, 48, 32, 32) ─► FrustumNetwork ─► volumes of width 32, 16, 8, 4 ─► ten DepthLayers

Volumes are stored z first: (B, C, Z, Y, X) in the world, (B, C, depth, row, column) before a view;
points are (x, y, z).

Source: Liu et al. 2023 (arXiv 2309.03453), by measured facts; see syncdreamer.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cameras import Cameras, invert_rigid, opencv_from_opengl, orbit

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

N_VIEWS = 16
AZIMUTH_STEP_DEG = 22.5
ELEVATION_DEG = 30.0
CAMERA_DISTANCE = 1.5
# The renderings' focal length: 280 px on 256 px, 49.13 degrees.
FOCAL_LENGTH = 280 / 256
FOV_DEG = 2 * math.degrees(math.atan(0.5 / FOCAL_LENGTH))
NORM_GROUPS = 8
DEPTH_HEADS = 4
MIN_DEPTH = 1e-4
# Numbers that are alive at once, at most: for each number of a frustum volume at its finest scale (in the widest depth
# layer, the view's volumes included), and for each that goes into the spatial network. Counted operation by operation
# on full-size networks; tests/unit/test_networks.py counts again.
_FRUSTUM_NUMBERS, _GRID_NUMBERS = 8.9, 2.2


@dataclass(frozen=True)
class VolumeSizes:
    """Sizes of the volume networks and depth layers; the defaults are the published model.

    Attributes:
        latent_channels, latent_size: of a view's latent.
        view_channels: features per pixel that the view encoder makes.
        view_numbers: length of a view's embedding.
        time_width: of the volume networks' own time embedding.
        widths: channels of the volumes at the four scales, finest first.
        grid_size: samples per side of the spatial volume.
        depth_planes: of a frustum volume at its finest scale.
        scene_radius: half side of the spatial volume's cube, world units.
    """

    latent_channels: int = 4
    latent_size: int = 32
    view_channels: int = 16
    view_numbers: int = 4
    time_width: int = 256
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    grid_size: int = 32
    depth_planes: int = 48
    scene_radius: float = 0.5


def ring_cameras() -> Cameras:
    """The sixteen cameras of the generated views, in the world frame: the first has the picture's azimuth."""
    return orbit([k * AZIMUTH_STEP_DEG for k in range(N_VIEWS)], ELEVATION_DEG, CAMERA_DISTANCE, FOV_DEG)


def view_embeddings(elevation_deg: float) -> Tensor:
    """What the networks are told of the sixteen views when the picture's camera stands at ``elevation_deg``.

    Returns:
        (16, 4) float32: polar angle relative to the picture's in radians (negative: seen from further above), sine and
        cosine of the azimuth relative to the picture's, and 0, the change of distance.
    """
    azimuth = torch.deg2rad(torch.arange(N_VIEWS, dtype=torch.float64) * AZIMUTH_STEP_DEG)
    polar = torch.full_like(azimuth, math.radians(elevation_deg - ELEVATION_DEG))
    return torch.stack([polar, azimuth.sin(), azimuth.cos(), torch.zeros_like(azimuth)], -1).float()


def world_to_views() -> Tensor:
    """(16, 3, 4) float32 poses of `ring_cameras`, world to camera, OpenCV axes."""
    return invert_rigid(opencv_from_opengl(ring_cameras().c2w))[:, :3]


def grid_points(sizes: VolumeSizes) -> Tensor:
    """World points (S, S, S, 3) of the spatial volume: element (i, j, k) is at (line[k], line[j], line[i])."""
    line = torch.linspace(-sizes.scene_radius, sizes.scene_radius, sizes.grid_size)
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    return torch.stack([x, y, z], -1)


def feature_pixels(sizes: VolumeSizes, points: Tensor, poses: Tensor) -> Tensor:
    """Where world points fall in the views' feature maps.

    Args:
        sizes: gives the maps' side S.
        points: (N, 3) world units.
        poses: (V, 3, 4) as `world_to_views` gives them.

    Returns:
        (V, N, 2) x and y in the units of ``grid_sample`` with ``align_corners``: -1 and 1 are the centres of the first
        and last pixel. The intrinsics are scaled by S / 256 without moving the principal point by half a pixel, as in
        the published model's training, so that the world's origin comes to +1 / (S - 1).
    """
    size = sizes.latent_size
    local = points @ poses[:, :, :3].transpose(1, 2) + poses[:, None, :, 3]
    pixels = FOCAL_LENGTH * size * local[..., :2] / local[..., 2:].clamp(min=MIN_DEPTH) + size / 2
    return pixels / ((size - 1) / 2) - 1


def frustum_depths(sizes: VolumeSizes) -> Tensor:
    """(D,) depths of the planes along a camera's axis, world units, from end to end of the sphere round the cube."""
    reach = sizes.scene_radius * math.sqrt(3)
    return torch.linspace(CAMERA_DISTANCE - reach, CAMERA_DISTANCE + reach, sizes.depth_planes)


def frustum_points(sizes: VolumeSizes, poses: Tensor) -> Tensor:
    """World points (V, D, H, W, 3) that the views' pixels see at the depths of `frustum_depths`.

    Pixels stand at whole numbers, as in `feature_pixels`.
    """
    size = sizes.latent_size
    line = (torch.arange(size, dtype=torch.float32) - size / 2) / (FOCAL_LENGTH * size)
    depth, y, x = torch.meshgrid(frustum_depths(sizes), line, line, indexing="ij")
    local = torch.stack([x * depth, y * depth, depth], -1)
    # The rows of a rotation are the camera's axes in the world: local @ R undoes R.
    return (local.flatten(0, 2) - poses[:, None, :, 3]).matmul(poses[:, :, :3]).unflatten(1, local.shape[:3])


@dataclass(frozen=True)
class Geometry:
    """Where the networks look things up, which no step and no picture changes.

    Attributes:
        pixels: (16, S³, 2) of `feature_pixels`, for the points of the grid.
        frustums: (16, D, H, W, 3) of `frustum_points`, in half sides of the grid's cube.
    """

    pixels: Tensor
    frustums: Tensor


def volume_geometry(sizes: VolumeSizes, device: torch.device) -> Geometry:
    """The geometry of the sixteen views, fp32 on ``device``."""
    poses = world_to_views()
    pixels = feature_pixels(sizes, grid_points(sizes).reshape(-1, 3), poses)
    return Geometry(pixels.to(device), (frustum_points(sizes, poses) / sizes.scene_radius).to(device))


class Norm(nn.GroupNorm):
    """Group norm in 8 groups that computes in float32 whatever comes in, and gives the input's dtype."""

    def __init__(self, channels: int) -> None:
        super().__init__(NORM_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


def keep_norms_fp32(network: nn.Module) -> None:
    """Give every `Norm` inside a network fp32 parameters again, after a change of dtype."""
    for module in network.modules():
        if isinstance(module, Norm):
            module.float()


class TimeEmbedding(nn.Module):
    """The volume networks' own embedding of the time step; the UNet has another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, timestep: Tensor) -> Tensor:
        """Time steps (B,) in 0..999 → (B, width): cosines, then sines, then two layers."""
        half = self.enter.in_features // 2
        rates = torch.exp(torch.arange(half, device=timestep.device) * (-math.log(10000) / half))
        angles = timestep.float()[:, None] * rates
        waves = torch.cat([angles.cos(), angles.sin()], -1).to(self.enter.weight.dtype)
        return self.leave(F.silu(self.enter(waves)))


class ViewBlock(nn.Module):
    """Two convolutions over a view's features, told the time and the view, beside the identity."""

    def __init__(self, width: int, time_width: int, view_numbers: int) -> None:
        super().__init__()
        self.time, self.view = nn.Conv2d(time_width, width, 1), nn.Conv2d(view_numbers, width, 1)
        self.norm1, self.conv1 = Norm(width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = Norm(width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, view: Tensor) -> Tensor:
        """Features (V, C, H, W), time (V, T, 1, 1), view (V, 4, 1, 1) → (V, C, H, W)."""
        told = x + self.time(time) + self.view(view)
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(told))))))


class ViewEncoder(nn.Module):
    """A view's noisy latent → features, which `unproject` carries into the volume; the same weights for every view."""

    def __init__(self, sizes: VolumeSizes) -> None:
        super().__init__()
        width = sizes.view_channels
        self.enter = nn.Conv2d(sizes.latent_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(ViewBlock(width, sizes.time_width, sizes.view_numbers) for _ in range(3))
        self.norm, self.leave = Norm(width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, latents: Tensor, time: Tensor, views: Tensor) -> Tensor:
        """Latents (V, 4, H, W), time (V or 1, T), view embeddings (V, 4) → (V, C, H, W)."""
        x = self.enter(latents)
        for block in self.blocks:
            x = block(x, time[..., None, None], views[..., None, None])
        return self.leave(F.silu(self.norm(x)))


class VolumeBlock(nn.Module):
    """Norm and one convolution over a volume that was told the time and, with ``view_numbers``, the view.

    Args:
        channels, out: in and out.
        stride: 2 halves the volume's sides.
        up: doubles the sides instead.
    """

    def __init__(
        self, channels: int, out: int, time_width: int, view_numbers: int = 0, stride: int = 1, up: bool = False
    ) -> None:
        super().__init__()
        self.time = nn.Conv3d(time_width, channels, 1)
        if view_numbers:
            self.view = nn.Conv3d(view_numbers, channels, 1)
        self.norm = Norm(channels)
        self.halves = stride == 2
        self.conv: nn.Module = (
            nn.ConvTranspose3d(channels, out, 3, stride=2, padding=1, output_padding=1)
            if up
            else nn.Conv3d(channels, out, 3, stride=stride, padding=1)
        )

    def forward(self, x: Tensor, time: Tensor, view: Tensor | None = None) -> Tensor:
        """Volumes (B, C, D, H, W), time (B, T, 1, 1, 1), view (B, 4, 1, 1, 1) → (B, out, ...)."""
        x = x + self.time(time)
        if view is not None:
            x = x + self.view(view)
        return self.conv(F.silu(self.norm(x)))


class SpatialNetwork(nn.Module):
    """The sixteen views' features on the grid → the spatial volume: a U of four scales."""

    def __init__(self, sizes: VolumeSizes) -> None:
        super().__init__()
        c0, c1, c2, c3 = sizes.widths
        t = sizes.time_width
        self.enter = nn.Conv3d(N_VIEWS * sizes.view_channels, c0, 3, padding=1)
        self.first = VolumeBlock(c0, c0, t)
        self.down = nn.ModuleList(
            block
            for a, b in ((c0, c1), (c1, c2), (c2, c3))
            for block in (VolumeBlock(a, b, t, stride=2), VolumeBlock(b, b, t), VolumeBlock(b, b, t))
        )
        self.up = nn.ModuleList(VolumeBlock(a, b, t, up=True) for a, b in ((c3, c2), (c2, c1), (c1, c0)))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Features (B, 16 * C, S, S, S), time (B, T) → (B, widths[0], S, S, S)."""
        time = time[..., None, None, None]
        x = self.first(self.enter(x), time)
        kept = []
        for block in self.down:
            if block.halves:
                kept.append(x)
            x = block(x, time)
        for block in self.up:
            x = kept.pop() + block(x, time)
        return x


class FrustumNetwork(nn.Module):
    """A volume as one view sees it → volumes for that view's depth layers, at four scales."""

    def __init__(self, sizes: VolumeSizes) -> None:
        super().__init__()
        c0, c1, c2, c3 = sizes.widths
        told = (sizes.time_width, sizes.view_numbers)
        self.enter = nn.Conv3d(c0, c0, 3, padding=1)
        self.down = nn.ModuleList(
            block
            for a, b in ((c0, c1), (c1, c2), (c2, c3))
            for block in (VolumeBlock(a, b, *told, stride=2), VolumeBlock(b, b, *told))
        )
        self.up = nn.ModuleList(VolumeBlock(a, b, *told, up=True) for a, b in ((c3, c2), (c2, c1), (c1, c0)))

    def forward(self, x: Tensor, time: Tensor, views: Tensor) -> dict[int, Tensor]:
        """Volumes (V, C, D, H, W), time (V or 1, T), view embeddings (V, 4) → {width W: volume (V, C', D', W, W)}."""
        time, views = time[..., None, None, None], views[..., None, None, None]
        x = self.enter(x)
        kept = []
        for block in self.down:
            if block.halves:
                kept.append(x)
            x = block(x, time, views)
        made = [x]
        for block in self.up:
            x = kept.pop() + block(x, time, views)
            made.append(x)
        return {volume.shape[-1]: volume for volume in made}


class VolumeNetwork(nn.Module):
    """Everything between the noisy latents and the depth layers; see the drawing at the top of the file."""

    def __init__(self, sizes: VolumeSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.time = TimeEmbedding(sizes.time_width)
        self.encoder = ViewEncoder(sizes)
        self.spatial = SpatialNetwork(sizes)
        self.frustum = FrustumNetwork(sizes)

    def spatial_volume(
        self, latents: Tensor, timestep: Tensor, views: Tensor, geometry: Geometry | None = None
    ) -> Tensor:
        """Build the volume that all views share.

        Args:
            latents: (16, 4, H, W), in the order of `ring_cameras`: the views' places are baked into the weights.
            timestep: (1,) in 0..999.
            views: (16, 4), see `view_embeddings`.
            geometry: of `volume_geometry`, where a run has it already; worked out here otherwise.

        Returns:
            (1, C, S, S, S), axes z, y, x.
        """
        time = self.time(timestep)
        pixels = None if geometry is None else geometry.pixels
        return self.spatial(self.unprojected(self.encoder(latents, time, views), pixels), time)

    def unprojected(self, features: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Views' features (16, C, H, W) read at the grid's points → (1, 16 * C, S, S, S), view by view."""
        size = self.sizes.grid_size
        if pixels is None:
            points = grid_points(self.sizes).reshape(-1, 3)
            pixels = feature_pixels(self.sizes, points, world_to_views()).to(features.device)
        read = F.grid_sample(features.float(), pixels[:, None], padding_mode="zeros", align_corners=True)
        return read.to(features.dtype).reshape(1, -1, size, size, size)

    def frustum_volumes(
        self, volume: Tensor, timestep: Tensor, views: Tensor, indices: Sequence[int], geometry: Geometry | None = None
    ) -> dict[int, Tensor]:
        """What the depth layers of some views read.

        Args:
            volume: (1, C, S, S, S) from `spatial_volume`.
            timestep: (1,).
            views: (16, 4).
            indices: which views, n of them.
            geometry: see `spatial_volume`.

        Returns:
            {width W: (n, C', D', W, W)}, depth from near to far.
        """
        index = list(indices)
        if geometry is None:
            seen = self.seen(volume, world_to_views()[index])
        else:
            seen = self.seen_at(volume, geometry.frustums[index[0] : index[-1] + 1])
        return self.frustum(seen, self.time(timestep), views[index])

    def seen(self, volume: Tensor, poses: Tensor) -> Tensor:
        """The volume (1, C, S, S, S) at the points of `frustum_points` of poses (n, 3, 4) → (n, C, D, H, W)."""
        where = frustum_points(self.sizes, poses) / self.sizes.scene_radius
        return self.seen_at(volume, where.to(volume.device))

    def seen_at(self, volume: Tensor, where: Tensor) -> Tensor:
        """The volume (1, C, S, S, S) at points (n, D, H, W, 3), in half sides of its cube → (n, C, D, H, W)."""
        whole = volume.float().expand(len(where), -1, -1, -1, -1)
        return F.grid_sample(whole, where, padding_mode="zeros", align_corners=True).to(volume.dtype)


def volume_numbers(sizes: VolumeSizes, views: int) -> int:
    """How many numbers are alive at once, at most, while ``views`` views look into the volume; for plans of memory."""
    frustum = sizes.widths[0] * sizes.depth_planes * sizes.latent_size**2
    grid = N_VIEWS * sizes.view_channels * sizes.grid_size**3
    return round(max(_FRUSTUM_NUMBERS * views * frustum, _GRID_NUMBERS * grid))


def read_depths(query: Tensor, context: Tensor, scale: float) -> Tensor:
    """Attention over contexts that are keys and values in one: query (R, h, c), context (R, D, c) → (R, h, c)."""
    weights = torch.softmax((query @ context.transpose(1, 2)).float() * scale, -1)
    return weights.to(context.dtype) @ context


class DepthLayer(nn.Module):
    """Lets every pixel of a UNet feature map look along its own ray through the view's volume.

    Args:
        width: channels of the feature map.
        volume_width: channels of the volume; inside, the layer is twice as wide.
    """

    def __init__(self, width: int, volume_width: int) -> None:
        super().__init__()
        inner = 2 * volume_width
        self.enter, self.enter_norm = nn.Conv2d(width, inner, 1), Norm(inner)
        self.context = nn.Conv3d(volume_width, volume_width, 1, bias=False)
        self.context_norm = Norm(volume_width)
        self.query = nn.Conv2d(inner, inner, 1, bias=False)
        self.key = nn.Conv3d(volume_width, inner, 1, bias=False)
        self.value = nn.Conv3d(volume_width, inner, 1, bias=False)
        self.out = nn.Conv2d(inner, inner, 1, bias=False)
        self.norm1, self.conv1 = Norm(inner), nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.norm2, self.conv2 = Norm(inner), nn.Conv2d(inner, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor, volume: Tensor) -> Tensor:
        """Add what the rays hold to the features.

        Args:
            x: (B, width, H, W).
            volume: (n, volume_width, D, H, W), n ≤ B, of the first n; the others see an all-zero volume, which is not
                the same as no layer.

        Returns:
            (B, width, H, W).
        """
        return self._with(x, volume, self._along_rays)

    def folded(self, x: Tensor, volume: Tensor) -> Tensor:
        """`forward` in an order of products that takes a twentieth of the work; the same but for rounding.

        Keys and values are linear in the volume, so that a query is taken through the keys' weights, and what is read
        through the values', once for each pixel in place of once for each of its depths.
        """
        return self._with(x, volume, self._along_rays_folded)

    def _with(self, x: Tensor, volume: Tensor, along_rays: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        query = self.query(F.silu(self.enter_norm(self.enter(x))))
        read = [along_rays(query[: len(volume)], volume)] if len(volume) else []
        if len(volume) < len(x):
            read.append(self._of_nothing().expand_as(query[len(volume) :]))
        x_new = self.out(torch.cat(read))
        x_new = self.conv1(F.relu(self.norm1(x_new)))
        return x + self.conv2(F.relu(self.norm2(x_new)))

    def _along_rays(self, query: Tensor, volume: Tensor) -> Tensor:
        """Attention of each pixel over its own depths: query (n, I, H, W), volume (n, c, D, H, W) → (n, I, H, W).

        No pixel sees another: thousands of sequences of 48 with one query each, for which plain products do as well as
        any kernel and stay exact where a whole volume holds one value.
        """
        context = F.relu(self.context_norm(self.context(volume)))
        q, k, v = (x.unflatten(1, (DEPTH_HEADS, -1)) for x in (query, self.key(context), self.value(context)))
        scores = torch.einsum("nhcyx,nhcdyx->nhdyx", q, k) * q.shape[2] ** -0.5
        weights = torch.softmax(scores.float(), 2).to(v.dtype)
        return torch.einsum("nhdyx,nhcdyx->nhcyx", weights, v).flatten(1, 2)

    def _along_rays_folded(self, query: Tensor, volume: Tensor) -> Tensor:
        """`_along_rays`, a pixel's heads being so many queries over the same context.

        With q a head's query, K and V its matrices and c a depth's context: q · (K c) = (Kᵀ q) · c and
        Σ w (V c) = V (Σ w c).
        """
        n, inner, height, width = query.shape
        heads, part = DEPTH_HEADS, inner // DEPTH_HEADS
        context = F.relu(self.context_norm(self.context(volume))).permute(0, 3, 4, 2, 1).flatten(0, 2)
        keys = self.key.weight.view(heads, part, -1).transpose(1, 2).reshape(-1, part, 1, 1)
        asked = F.conv2d(query, keys, groups=heads).permute(0, 2, 3, 1).reshape(-1, heads, context.shape[-1])
        read = read_depths(asked, context, part**-0.5)
        read = read.view(n, height, width, -1).permute(0, 3, 1, 2)
        return F.conv2d(read, self.value.weight.flatten(2)[..., None], groups=heads)

    def _of_nothing(self) -> Tensor:
        """(1, I, 1, 1): what every pixel reads from an all-zero volume.

        The norm leaves its bias there, the same at every depth, and so whatever a pixel asks, the answer is one value.
        """
        context = F.relu(self.context_norm.bias).to(self.value.weight.dtype)
        return self.value(context[None, :, None, None, None])[:, :, 0]


class DepthLayers(nn.Module):
    """The ten depth layers that hang on a UNet's middle and decoder, kept beside it so that its own keys stay stock.

    Args:
        unet_widths: channels of the UNet's four levels.
        volume_widths: see `VolumeSizes.widths`.
    """

    def __init__(self, unet_widths: Sequence[int], volume_widths: Sequence[int]) -> None:
        super().__init__()
        u0, u1, u2, u3 = unet_widths
        c0, c1, c2, c3 = volume_widths
        pairs = ((u2, c2), (u2, c2), (u2, c1), (u1, c1), (u1, c1), (u1, c0), (u0, c0), (u0, c0), (u0, c0))
        self.middle = DepthLayer(u3, c3)
        self.output = nn.ModuleList(DepthLayer(width, volume) for width, volume in pairs)

    def at(self) -> dict[str, DepthLayer]:
        """{name of a UNet's module: the layer that works on its output}.

        Two stand behind an upsampler, at the new resolution.
        """
        return dict(zip(_PLACES, [self.middle, *self.output], strict=True))

    def places(self, unet: UNet2DConditionModel) -> list[tuple[nn.Module, DepthLayer]]:
        """Which module's output each layer works on."""
        return [(unet.get_submodule(name), layer) for name, layer in self.at().items()]


_PLACES = (
    "mid_block",
    *(f"up_blocks.{level}.{part}" for level in (1, 2) for part in ("attentions.0", "attentions.1", "upsamplers.0")),
    *(f"up_blocks.3.attentions.{index}" for index in range(3)),
)


@contextmanager
def looking_along_rays(
    unet: UNet2DConditionModel, layers: DepthLayers, volumes: dict[int, Tensor]
) -> Iterator[UNet2DConditionModel]:
    """Give the UNet with depth layers attached, for calls inside the ``with``; afterwards it is as it was.

    Args:
        unet: any `UNet2DConditionModel` with the widths of the layers' sizes.
        layers: the ten layers, made for the UNet's widths.
        volumes: {width: (n, C, D, W, W)} for the first n items of the batch, see `DepthLayer.forward`.
    """

    def hook(layer: DepthLayer) -> Any:
        def replaced(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            # Attention blocks answer with a tuple, the middle block and the upsamplers with a tensor.
            x = output[0] if isinstance(output, tuple) else output
            x = layer(x, volumes[x.shape[-1]])
            return (x, *output[1:]) if isinstance(output, tuple) else x

        return replaced

    handles = [module.register_forward_hook(hook(layer)) for module, layer in layers.places(unet)]
    try:
        yield unet
    finally:
        for handle in handles:
            handle.remove()


# Which published name is which of ours, `VolumeNetwork` as ``volume`` and `DepthLayers` as ``depth``.


def _block_renames(published: str, ours: str, norm: str = "bn", view: bool = False) -> tuple[tuple[str, str], ...]:
    """A `VolumeBlock`'s names."""
    parts = (("t_conv", "time"), (norm, "norm"), ("conv", "conv"), *((("v_conv", "view"),) if view else ()))
    return tuple((f"{published}.{theirs}", f"{ours}.{part}") for theirs, part in parts)


_ENCODER, _SPATIAL, _FRUSTUM = (
    f"spatial_volume.{part}" for part in ("target_encoder", "spatial_volume_feats", "frustum_volume_feats")
)
_SPATIAL_DOWN = ("conv1", "conv2_0", "conv2_1", "conv3", "conv4_0", "conv4_1", "conv5", "conv6_0", "conv6_1")

VOLUME_RENAMES = (
    ("time_embed.0", "volume.time.enter"),
    ("time_embed.2", "volume.time.leave"),
    (f"{_ENCODER}.init_conv", "volume.encoder.enter"),
    *(
        (f"{_ENCODER}.out_conv{i}.{theirs}", f"volume.encoder.blocks.{i}.{ours}")
        for i in range(3)
        for theirs, ours in (
            ("time_embed", "time"), ("view_embed", "view"), ("conv.0", "norm1"), ("conv.2", "conv1"),
            ("conv.3", "norm2"), ("conv.5", "conv2"),
        )
    ),
    (f"{_ENCODER}.final_out.0", "volume.encoder.norm"),
    (f"{_ENCODER}.final_out.2", "volume.encoder.leave"),
    (f"{_SPATIAL}.init_conv", "volume.spatial.enter"),
    *_block_renames(f"{_SPATIAL}.conv0", "volume.spatial.first"),
    *(
        pair
        for i, name in enumerate(_SPATIAL_DOWN)
        for pair in _block_renames(f"{_SPATIAL}.{name}", f"volume.spatial.down.{i}")
    ),
    *(pair for i in range(3) for pair in _block_renames(f"{_SPATIAL}.conv{7 + i}", f"volume.spatial.up.{i}", "norm")),
    (f"{_FRUSTUM}.conv0", "volume.frustum.enter"),
    *(
        pair
        for i in range(6)
        for pair in _block_renames(f"{_FRUSTUM}.conv{i + 1}", f"volume.frustum.down.{i}", view=True)
    ),
    *(
        pair
        for i in range(3)
        for pair in _block_renames(f"{_FRUSTUM}.up{i}", f"volume.frustum.up.{i}", "norm", view=True)
    ),
)  # fmt: skip
DEPTH_RENAMES = tuple(
    (f"model.diffusion_model.{theirs}.{a}", f"depth.{ours}.{b}")
    for theirs, ours in (("middle_conditions", "middle"), ("output_conditions.*", "output.*"))
    for a, b in (
        ("proj_in.0", "enter"), ("proj_in.1", "enter_norm"), ("proj_context.0", "context"),
        ("proj_context.1", "context_norm"), ("depth_attn.to_q", "query"), ("depth_attn.to_k", "key"),
        ("depth_attn.to_v", "value"), ("depth_attn.to_out", "out"), ("proj_out.0", "norm1"), ("proj_out.2", "conv1"),
        ("proj_out.3", "norm2"), ("proj_out.5", "conv2"),
    )
)  # fmt: skip
