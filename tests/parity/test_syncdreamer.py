"""SyncDreamer against the published model's own numbers, its file, and what a user is promised of it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multiview import networks, syncdreamer, syncdreamervolumes
from multiview.cameras import project
from multiview.checkpoint import Dropped, rename_keys
from multiview.devices import on_accelerator
from multiview.errors import ImageError, SettingsError, WeightsError
from multiview.generator import make_scheduler
from multiview.ldm import CLIP_MEAN, CLIP_STD, VAE_SCALE, ClipSizes, UNetSizes, VaeSizes, clip_pixels, ldm_tensors
from multiview.syncdreamer import KEYS, Condition, SyncDreamer, SyncDreamerNetwork, SyncDreamerSizes
from multiview.syncdreamervolumes import (
    N_VIEWS,
    Norm,
    VolumeSizes,
    feature_pixels,
    frustum_depths,
    frustum_points,
    grid_points,
    looking_along_rays,
    ring_cameras,
    view_embeddings,
    world_to_views,
)
from tests.parity.fill import figures, furthest, uniform, with_endings
from tests.parity.ldm_tables import (
    PROJECTION,
    SCHEDULE_NAMES,
    UNET,
    VAE,
    Table,
    clip_table,
    ldm_fill,
    normal,
    text_table,
    unet_table,
    vae_table,
)

SMALL = SyncDreamerSizes(
    unet=UNetSizes(channels=(32, 64, 128, 128), heads=4),
    vae=VaeSizes(channels=(32, 64, 128, 128)),
    clip=ClipSizes(width=64, layers=2, heads=4, mlp_width=256),
    volume=VolumeSizes(widths=(8, 16, 32, 64)),
)
# Even smaller and not filled by the rule: for runs of several steps.
TINY = SyncDreamerSizes(
    unet=UNetSizes(channels=(32, 32, 64, 64), layers=2, heads=2, context_width=8, latent_size=16),
    vae=VaeSizes(channels=(32, 32, 32, 32), layers=1),
    clip=ClipSizes(image_size=28, width=16, layers=1, heads=2, mlp_width=16, projection_width=8),
    volume=VolumeSizes(
        latent_size=16, view_channels=8, time_width=16, widths=(8, 8, 8, 16), grid_size=8, depth_planes=8
    ),
)
CLIP = "clip_image_encoder.model"
TIGHT, LOOSE = 1e-5, 1e-4
"""The facts' own tolerances: the first for embeddings and tokens, the second for everything else."""
TIME, ELEVATION_DEG, VIEW = 981, 10.0, 5

# The published model's own numbers; see tests/parity/fill.py for what a line holds.
EXPECTED = {
    "image embedding": (+0.002201, 0.293774, +0.146732, -0.023284, +0.153062, +0.409375),
    "input latent": (+0.055751, 0.112235, +0.017816, -0.005062, +0.007336, +0.052664),
    "view embedding": (-0.087266, 0.522347, -0.349066, +0.923880, -0.349066, +0.000000),
    "time embedding": (-0.004733, 0.397856, -0.104104, +0.597899, -0.180753, -0.335035),
    "view features": (-0.089415, 0.640715, -0.567202, -0.614640, -0.196019, -0.038200),
    "spatial volume": (+0.077140, 0.697767, -0.228246, +0.329464, +0.032345, -0.331785),
    "token": (+0.004377, 0.308943, +0.120116, -0.259268, +0.024925, +0.551226),
    "frustum volume 32": (+0.071414, 0.433632, -0.063752, +0.134494, -0.010955, +0.282778),
    "frustum volume 16": (-0.045139, 0.682971, +0.135558, -0.287236, -0.356709, -0.161849),
    "frustum volume 8": (-0.027955, 0.651885, +0.409721, -0.139775, -0.312986, -0.026670),
    "frustum volume 4": (+0.002505, 0.501523, -0.210329, -0.382743, +0.045570, -0.515565),
    "depth layer 5": (-0.088315, 0.711061, -0.239827, +0.176215, -0.065684, -0.046464),
    "depth layer 5, zeros": (-0.097671, 0.670422, -0.911429, +0.546414, -1.303352, +0.237992),
    "depth layer 5, nothing": (-0.097671, 0.670422, -0.911429, +0.546414, -1.303352, +0.237992),
    "depth layer middle": (+0.029037, 0.591179, +0.409708, +0.851604, -0.351973, +0.086263),
    "noise with": (+0.005449, 0.573093, -0.079007, +0.454960, -0.165551, +0.042371),
    "noise without": (+0.008333, 0.571043, -0.376910, +0.409150, -0.061800, -0.089167),
    "noise guided": (+0.002564, 0.898426, +0.218896, +0.500764, -0.269303, +0.173909),
    "after a step": (-0.014027, 1.243469, -0.222643, -1.476439, -0.999868, -2.077866),
}
EXACT = ("image embedding", "view embedding", "time embedding", "token")
WHOLE_STEP = (+0.005371, 1.236011, -1.080258, -1.476439, -0.067442, +0.715475)
LAST_STEP = (+0.006898, 1.002651, -0.409955, -1.058678, -0.607528, +0.836166)


def volume_table(widths: tuple[int, int, int, int], unet: int, time: int = 256) -> Table:
    """What SyncDreamer has beside Zero123: volume networks, depth layers and the volumes' time embedding."""
    table = with_endings(["time_embed.0", "time_embed.2"], (time, time), (time,))
    front = "spatial_volume.target_encoder"
    table |= with_endings([f"{front}.init_conv"], (16, 4, 3, 3), (16,))
    for i in range(3):
        block = f"{front}.out_conv{i}"
        table |= with_endings([f"{block}.time_embed"], (16, time, 1, 1), (16,))
        table |= with_endings([f"{block}.view_embed"], (16, 4, 1, 1), (16,))
        table |= with_endings([f"{block}.conv.0", f"{block}.conv.3"], (16,), (16,))
        table |= with_endings([f"{block}.conv.2", f"{block}.conv.5"], (16, 16, 3, 3), (16,))
    table |= with_endings([f"{front}.final_out.0"], (16,), (16,))
    table |= with_endings([f"{front}.final_out.2"], (16, 16, 3, 3), (16,))
    a, b, c, d = widths
    up = ((d, c), (c, b), (b, a))
    front = "spatial_volume.spatial_volume_feats"
    table |= with_endings([f"{front}.init_conv"], (a, 256, 3, 3, 3), (a,))
    names = ("conv0", "conv1", "conv2_0", "conv2_1", "conv3", "conv4_0", "conv4_1", "conv5", "conv6_0", "conv6_1")
    pairs = ((a, a), (a, b), (b, b), (b, b), (b, c), (c, c), (c, c), (c, d), (d, d), (d, d))
    for name, (into, out) in zip(names, pairs, strict=True):
        table |= _volume_block(f"{front}.{name}", into, out, time)
    for name, (into, out) in zip(("conv7", "conv8", "conv9"), up, strict=True):
        table |= _volume_block(f"{front}.{name}", into, out, time, up=True)
    front = "spatial_volume.frustum_volume_feats"
    table |= with_endings([f"{front}.conv0"], (a, a, 3, 3, 3), (a,))
    for i, (into, out) in enumerate(((a, b), (b, b), (b, c), (c, c), (c, d), (d, d))):
        table |= _volume_block(f"{front}.conv{i + 1}", into, out, time, view=True)
    for i, (into, out) in enumerate(up):
        table |= _volume_block(f"{front}.up{i}", into, out, time, view=True, up=True)
    table |= _depth_layer(f"{UNET}.middle_conditions", 4 * unet, d)
    rows = ((4, c), (4, c), (4, b), (2, b), (2, b), (2, a), (1, a), (1, a), (1, a))
    for i, (times, volume) in enumerate(rows):
        table |= _depth_layer(f"{UNET}.output_conditions.{i}", times * unet, volume)
    return table


def _volume_block(name: str, into: int, out: int, time: int, *, view: bool = False, up: bool = False) -> Table:
    table = with_endings([f"{name}.t_conv"], (into, time, 1, 1, 1), (into,))
    if view:
        table |= with_endings([f"{name}.v_conv"], (into, 4, 1, 1, 1), (into,))
    table |= with_endings([f"{name}.norm" if up else f"{name}.bn"], (into,), (into,))
    return table | with_endings([f"{name}.conv"], (into, out, 3, 3, 3) if up else (out, into, 3, 3, 3), (out,))


def _depth_layer(name: str, width: int, volume: int) -> Table:
    inner = 2 * volume
    table = with_endings([f"{name}.proj_in.0"], (inner, width, 1, 1), (inner,))
    table |= with_endings([f"{name}.proj_in.1", f"{name}.proj_out.0", f"{name}.proj_out.3"], (inner,), (inner,))
    table[f"{name}.proj_context.0.weight"] = (volume, volume, 1, 1, 1)
    table |= with_endings([f"{name}.proj_context.1"], (volume,), (volume,))
    table |= with_endings([f"{name}.depth_attn.to_{part}" for part in ("q", "out")], (inner, inner, 1, 1), None)
    table |= with_endings([f"{name}.depth_attn.to_{part}" for part in "kv"], (inner, volume, 1, 1, 1), None)
    table[f"{name}.proj_out.2.weight"] = (inner, inner, 3, 3)
    table[f"{name}.proj_out.5.weight"] = (width, inner, 3, 3)
    return table


def sync_table(unet: int, vae: int, clip: int, clip_layers: int, widths: tuple[int, int, int, int]) -> Table:
    """All tensors of SyncDreamer that are used."""
    front = clip_table(f"{CLIP}.visual", clip, clip_layers)
    return unet_table(UNET, unet) | vae_table(VAE, vae) | front | PROJECTION | volume_table(widths, unet)


FULL_TABLE = sync_table(320, 128, 1024, 24, (64, 128, 256, 512))
SMALL_TABLE = sync_table(32, 32, 64, 2, (8, 16, 32, 64))
LEFTOVERS: Table = {
    **{name: (1000,) for name in (*SCHEDULE_NAMES, "alphas")},
    "poses": (16, 3, 4), "Ks": (16, 3, 3), "azimuth": (16,),
    **text_table(CLIP),
}  # fmt: skip


@functools.cache
def filled() -> dict[str, Tensor]:
    """The small copy's tensors; not to be changed."""
    return ldm_fill(SMALL_TABLE)


@functools.cache
def small_model() -> SyncDreamer:
    """The small copy with filled weights; not to be changed."""
    return SyncDreamer.from_state({**filled(), "poses": torch.zeros(16, 3, 4)}, SMALL)


def picture() -> Tensor:
    """The reference runs' picture (1, 3, 256, 256) in [-1, 1]."""
    return 2 * uniform(21, (1, 3, 256, 256)) - 1


def noisy_latents() -> Tensor:
    """The reference runs' sixteen latents."""
    return normal(31, (1, N_VIEWS, 4, 32, 32))[0]


@torch.no_grad()
def condition_values(model: SyncDreamer) -> tuple[dict[str, Tensor], Condition]:
    """The part of `EXPECTED` that comes from the picture and the cameras."""
    condition = model.condition(picture(), ELEVATION_DEG, sample=False)
    pixels = clip_pixels(picture())
    return {
        "image embedding": model.network.image_encoder(pixels).image_embeds,
        "input latent": condition.latent * VAE_SCALE,
        "view embedding": condition.views,
        "token": condition.tokens[VIEW],
    }, condition


@torch.no_grad()
def volume_values(model: SyncDreamer, views: Tensor | None = None) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    """The part of `EXPECTED` that is about the volumes."""
    net = model.network.volume
    timestep, views = torch.tensor([TIME]), view_embeddings(ELEVATION_DEG) if views is None else views
    time = net.time(timestep)
    volume = net.spatial_volume(noisy_latents(), timestep, views)
    seen = net.frustum_volumes(volume, timestep, views, [VIEW])
    return {
        "time embedding": time,
        "view features": net.encoder(noisy_latents()[VIEW:][:1], time, views[VIEW:][:1]),
        "spatial volume": volume,
        **{f"frustum volume {width}": one for width, one in seen.items()},
    }, seen


@functools.cache
def right_condition() -> Condition:
    """What the small model is told of the picture."""
    return condition_values(small_model())[1]


@functools.cache
def right_volumes() -> dict[int, Tensor]:
    """View 5's volumes in the small model."""
    return volume_values(small_model())[1]


@torch.no_grad()
def depth_values(model: SyncDreamer, volumes: dict[int, Tensor]) -> dict[str, Tensor]:
    """The part of `EXPECTED` that is about single depth layers: what they add."""
    fine, coarse = normal(32, (1, 64, 32, 32)), normal(33, (1, 128, 4, 4))
    layer, middle = model.network.depth.output[5], model.network.depth.middle
    return {
        "depth layer 5": layer(fine, volumes[32]) - fine,
        "depth layer 5, zeros": layer(fine, torch.zeros_like(volumes[32])) - fine,
        "depth layer 5, nothing": layer(fine, volumes[32][:0]) - fine,
        "depth layer middle": middle(coarse, volumes[4]) - coarse,
    }


@torch.no_grad()
def noise_values(model: SyncDreamer, condition: Condition, volumes: dict[int, Tensor]) -> dict[str, Tensor]:
    """The part of `EXPECTED` that is about view 5's noise and its step."""
    latents, piece = noisy_latents(), slice(VIEW, VIEW + 1)
    with_picture, without = model.predict_branches(latents[piece], torch.tensor([TIME]), condition, piece, volumes)
    guided = without + 2 * (with_picture - without)
    model.set_timesteps(50)
    fresh = normal(200, (1, N_VIEWS, 4, 32, 32))[0]
    after = model.advance(guided, TIME, latents[piece], eta=1.0, fresh_noise=fresh[piece])
    return {"noise with": with_picture, "noise without": without, "noise guided": guided, "after a step": after}


@functools.cache
def values() -> dict[str, list[float]]:
    """Everything that `EXPECTED` lists, from our code."""
    model = small_model()
    first, second = condition_values(model)[0], volume_values(model)[0]
    third = noise_values(model, right_condition(), right_volumes())
    tensors = {**first, **second, **depth_values(model, right_volumes()), **third}
    return {name: figures(tensor) for name, tensor in tensors.items()}


def off(name: str, tensor: Tensor) -> float:
    """How far a tensor is from the published one, in tolerances."""
    return furthest(figures(tensor), EXPECTED[name]) / (TIGHT if name in EXACT else LOOSE)


# The published numbers


@pytest.mark.parametrize("name", EXPECTED)
def test_every_number_is_the_published_models(name: str) -> None:
    assert furthest(values()[name], EXPECTED[name]) < (TIGHT if name in EXACT else LOOSE)


def test_the_weights_are_filled_as_the_reference_runs_filled_theirs() -> None:
    spots = {
        f"{UNET}.output_conditions.5.proj_out.5.weight": (-0.060247, 0.012211, -0.059905),
        "spatial_volume.spatial_volume_feats.conv7.conv.weight": (0.058413, 0.007809, -0.001882),
        "spatial_volume.target_encoder.final_out.0.weight": (0.963988, 1.060842, 0.996877),
    }
    for key, numbers in spots.items():
        assert furthest(filled()[key].flatten()[:3], numbers) < 2e-6


@pytest.mark.slow
def test_a_whole_guided_step_and_the_last_are_the_published_models() -> None:
    model, condition = small_model(), right_condition()
    latents = noisy_latents()
    model.set_timesteps(50)
    noise = model.predict_noise(latents, TIME, condition, 2.0)
    fresh = normal(200, (1, N_VIEWS, 4, 32, 32))[0]
    assert furthest(figures(model.advance(noise, TIME, latents, eta=1.0, fresh_noise=fresh)), WHOLE_STEP) < LOOSE
    few = model.predict_noise(latents, TIME, condition, 2.0, view_batch_size=4)
    assert (few - noise).abs().max() < 1e-5
    noise = model.predict_noise(latents, 1, condition, 2.0)
    last = model.advance(noise, 1, latents, eta=1.0, fresh_noise=torch.zeros_like(latents))
    assert furthest(figures(last), LAST_STEP) < LOOSE
    # The noise that other programs add after the last step is 0.0206 of a standard normal.
    noisy = model.advance(noise, 1, latents, eta=1.0, fresh_noise=fresh)
    assert furthest(figures(noisy), LAST_STEP) > 10 * LOOSE


# What must be noticed


def test_the_volumes_axes_in_another_order_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = grid_points
    monkeypatch.setattr(syncdreamervolumes, "grid_points", lambda sizes: right(sizes).permute(2, 1, 0, 3))
    found, _ = volume_values(small_model())
    assert off("spatial volume", found["spatial volume"]) > 100
    assert off("view features", found["view features"]) < 1


def test_a_frustum_that_reads_z_y_x_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = frustum_points
    monkeypatch.setattr(syncdreamervolumes, "frustum_points", lambda sizes, poses: right(sizes, poses).flip(-1))
    found, _ = volume_values(small_model())
    assert off("frustum volume 32", found["frustum volume 32"]) > 30
    assert off("spatial volume", found["spatial volume"]) < 1


def test_depth_along_the_ray_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planes at equal distance from the camera's centre instead of equal depth along its axis."""
    right = frustum_points

    def spheres(sizes: VolumeSizes, poses: Tensor) -> Tensor:
        points = right(sizes, poses)
        centres = -(poses[:, :, :3].transpose(1, 2) @ poses[:, :, 3:])[:, None, None, None, :, 0]
        away = points - centres
        return centres + F.normalize(away, dim=-1) * frustum_depths(sizes)[None, :, None, None, None]

    monkeypatch.setattr(syncdreamervolumes, "frustum_points", spheres)
    found, _ = volume_values(small_model())
    assert off("frustum volume 32", found["frustum volume 32"]) > 30


def test_half_a_pixel_of_shift_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = feature_pixels
    monkeypatch.setattr(syncdreamervolumes, "feature_pixels", lambda *inputs: right(*inputs) - 0.5 / 15.5)
    found, _ = volume_values(small_model())
    assert off("spatial volume", found["spatial volume"]) > 100


def test_views_in_another_order_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = world_to_views
    monkeypatch.setattr(syncdreamervolumes, "world_to_views", lambda: right().flip(0))
    found, _ = volume_values(small_model())
    assert off("spatial volume", found["spatial volume"]) > 100


@pytest.mark.parametrize("change", ["sign of the polar angle", "degrees"])
def test_a_wrong_view_embedding_is_noticed(change: str) -> None:
    views = view_embeddings(ELEVATION_DEG)
    views[:, 0] = -views[:, 0] if change == "sign of the polar angle" else torch.rad2deg(views[:, 0])
    assert off("view embedding", views) > 100
    found, _ = volume_values(small_model(), views)
    assert off("view features", found["view features"]) > 10


def test_sines_before_cosines_are_noticed() -> None:
    time = copy.deepcopy(small_model().network.volume.time)
    time.enter.weight = nn.Parameter(time.enter.weight.roll(128, 1), requires_grad=False)
    with torch.no_grad():
        assert off("time embedding", time(torch.tensor([TIME]))) > 100


@torch.no_grad()
def test_a_scaled_condition_latent_is_noticed() -> None:
    model = small_model()
    scaled = dataclasses.replace(right_condition(), latent=right_condition().latent * VAE_SCALE)
    found = noise_values(model, scaled, right_volumes())
    assert off("noise with", found["noise with"]) > 100
    assert off("noise without", found["noise without"]) < 1


@torch.no_grad()
def test_a_projected_null_token_is_noticed() -> None:
    """The branch without the picture gets zeros after the projection, not the projection of zeros."""
    model = small_model()
    x = torch.cat([noisy_latents()[VIEW:][:1], torch.zeros(1, 4, 32, 32)], 1)
    nothing: dict[int, Tensor] = {32: torch.zeros(0), 16: torch.zeros(0), 8: torch.zeros(0), 4: torch.zeros(0)}
    for token, right in ((torch.zeros(1, 1, 768), True), (model.network.cc_projection.bias[None, None], False)):
        with looking_along_rays(model.network.unet, model.network.depth, nothing) as unet:
            found = unet(x, torch.tensor([TIME]), encoder_hidden_states=token, return_dict=False)[0]
        assert (off("noise without", found) < 1) is right


@torch.no_grad()
def test_a_branch_without_depth_layers_is_noticed() -> None:
    """A zero volume is not the same as no layer."""
    model = small_model()
    x = torch.cat([noisy_latents()[VIEW:][:1], torch.zeros(1, 4, 32, 32)], 1)
    bare = model.network.unet(x, torch.tensor([TIME]), torch.zeros(1, 1, 768), return_dict=False)[0]
    assert off("noise without", bare) > 100


@torch.no_grad()
def test_depth_layers_before_the_upsamplers_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers 2 and 5 work at the new resolution; one scale lower they fit as well, but for the volume's width."""
    model = small_model()
    right = type(model.network.depth).places

    def early(layers: Any, unet: Any) -> list[tuple[nn.Module, nn.Module]]:
        places = right(layers, unet)
        places[6] = (unet.up_blocks[2].attentions[2], places[6][1])
        return places

    monkeypatch.setattr(type(model.network.depth), "places", early)
    with pytest.raises(RuntimeError, match="channels"):
        noise_values(model, right_condition(), right_volumes())


@torch.no_grad()
def test_head_widths_in_place_of_counts_are_noticed() -> None:
    sizes = dataclasses.replace(SMALL, unet=dataclasses.replace(SMALL.unet, heads=8))
    model = SyncDreamer.from_state(filled(), sizes)
    assert off("noise with", noise_values(model, right_condition(), right_volumes())["noise with"]) > 100


@torch.no_grad()
def test_other_depth_heads_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    monkeypatch.setattr(syncdreamervolumes, "DEPTH_HEADS", 8)
    assert off("depth layer 5", depth_values(model, right_volumes())["depth layer 5"]) > 10


@torch.no_grad()
def test_the_usual_clip_resize_is_noticed() -> None:
    usual = F.interpolate((picture() + 1) / 2, (224, 224), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(x)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
    embedding = small_model().network.image_encoder((usual - mean) / std).image_embeds
    assert off("image embedding", embedding) > 100


# Cameras and volumes


def test_the_cameras_are_the_published_ones() -> None:
    poses = world_to_views()
    rows = [[0, 1, 0, 0], [0.5, 0, -math.sqrt(0.75), 0], [-math.sqrt(0.75), 0, -0.5, 1.5]]
    assert furthest(poses[0], np.array(rows).ravel().tolist()) < 2e-7
    assert furthest(ring_cameras().positions[0], [1.299038, 0, 0.75]) < 1e-6
    assert furthest(ring_cameras().positions[4], [0, 1.299038, 0.75]) < 1e-6
    assert furthest(ring_cameras().intrinsics[0] * 256, [280, 0, 128, 0, 280, 128, 0, 0, 256]) < 1e-5


def test_the_ring_sees_a_landmark_where_it_is() -> None:
    """The tip of an arm along +x: in front of view 0, at the right edge's side of view 12, hidden behind in view 8."""
    uv, depth = project(ring_cameras(), torch.tensor([[0.4, 0.0, 0.0]]))
    # View 0 is 30 degrees up: the tip is 0.4 cos 30 nearer and 0.4 sin 30 lower in the picture.
    near = 1.5 - 0.4 * math.cos(math.radians(30))
    assert furthest(depth[0], [near]) < 1e-6
    assert furthest(uv[0, 0], [0.5, 0.5 + 280 / 256 * 0.2 / near]) < 1e-6
    # Seen from +y (view 4), +x points to the left; from -y (view 12) to the right.
    assert furthest(uv[4, 0], [0.5 - 280 / 256 * 0.4 / 1.5, 0.5]) < 1e-6
    assert furthest(uv[12, 0], [0.5 + 280 / 256 * 0.4 / 1.5, 0.5]) < 1e-6
    assert uv[8, 0, 1] < 0.5 and depth[8] > 1.5


def test_poses_and_cameras_say_the_same() -> None:
    points = uniform(4, (7, 3), -0.5, 0.5)
    uv, _ = project(ring_cameras(), points)
    # The feature maps' pixels are the camera's without the shift by half a pixel.
    found = (feature_pixels(VolumeSizes(), points, world_to_views()) + 1) * 15.5
    assert (found - uv * 32).abs().max() < 1e-4


def test_the_origin_falls_half_a_pixel_off_the_middle() -> None:
    found = feature_pixels(VolumeSizes(), torch.zeros(1, 3), world_to_views())
    assert (found - 1 / 31).abs().max() < 1e-6


def test_the_frustums_planes() -> None:
    depths = frustum_depths(VolumeSizes())
    assert furthest(depths[[0, 1, 47]], [0.63397, 0.67082, 2.36603]) < 1e-5
    points = frustum_points(VolumeSizes(), world_to_views())
    assert points.shape == (16, 48, 32, 32, 3)
    # A point of view 3, plane 10, row 20, column 7 falls on that pixel again, at that depth.
    camera = ring_cameras().select([3])
    uv, depth = project(camera, points[3, 10, 20, 7][None])
    assert furthest(uv * 32, [7, 20]) < 1e-4
    assert furthest(depth, [depths[10]]) < 1e-5


def test_the_grid_is_stored_z_first() -> None:
    grid = grid_points(VolumeSizes())
    assert furthest(grid[0, 0, 31], [0.5, -0.5, -0.5]) < 1e-6
    assert furthest(grid[31, 0, 0], [-0.5, -0.5, 0.5]) < 1e-6


def test_a_volume_that_encodes_x_reads_x_on_the_planes() -> None:
    """Through storage order, sampling coordinates and poses at once."""
    network = small_model().network.volume
    volume = grid_points(VolumeSizes()).permute(3, 0, 1, 2)[None]
    poses = world_to_views()[[2, 9]]
    read = network.seen(volume, poses).permute(0, 2, 3, 4, 1)
    points = frustum_points(VolumeSizes(), poses)
    inside = points.abs().amax(-1) < 0.49
    assert inside.sum() > 1000
    assert (read - points)[inside].abs().max() < 1e-5
    assert read[points.abs().amax(-1) > 0.54].abs().max() == 0


def test_features_come_from_the_view_that_sees_the_point() -> None:
    """View k's features are the number k: channels 16 k to 16 k + 15 of the grid read k wherever view k sees."""
    network = small_model().network.volume
    features = torch.arange(16.0)[:, None, None, None].expand(16, 16, 32, 32)
    volume = network.unprojected(features)
    assert volume.shape == (1, 256, 32, 32, 32)
    middle = volume[0, :, 12:20, 12:20, 12:20]
    expected = torch.arange(16.0).repeat_interleave(16)[:, None, None, None]
    assert (middle - expected).abs().max() < 1e-5


def test_view_embeddings() -> None:
    level = view_embeddings(0.0)
    assert level.shape == (16, 4)
    assert furthest(level[4], [-0.523599, 1, 0, 0]) < 1e-6
    assert view_embeddings(30.0)[:, 0].abs().max() == 0
    assert view_embeddings(40.0)[0, 0] > 0


@torch.no_grad()
def test_a_pixel_sees_no_other_pixels_depths() -> None:
    """Another volume behind one pixel changes what is read there, and nowhere else before the convolutions."""
    layer = copy.deepcopy(small_model().network.depth.output[5])
    query = normal(1, (1, 16, 4, 4))
    layer.context_norm = nn.Identity()  # its mean runs over all pixels
    volume = normal(2, (1, 8, 5, 4, 4))
    other = volume.clone()
    other[:, :, :, 1, 2] += 1
    changed = (layer._along_rays(query, volume) - layer._along_rays(query, other)).abs().amax(1)[0] > 1e-7
    assert changed.nonzero().tolist() == [[1, 2]]


@torch.no_grad()
def test_items_without_volume_see_an_all_zero_one() -> None:
    layer = small_model().network.depth.output[0]
    x, volume = normal(1, (3, 128, 8, 8)), normal(2, (2, 32, 12, 8, 8))
    whole = layer(x, torch.cat([volume, torch.zeros(1, 32, 12, 8, 8)]))
    assert (layer(x, volume) - whole).abs().max() < 1e-4


def test_the_unet_is_as_it_was_after_use() -> None:
    model = small_model()
    unet = model.network.unet
    x, token = normal(1, (1, 8, 32, 32)), torch.zeros(1, 1, 768)
    with torch.no_grad():
        before = unet(x, torch.tensor([3]), token, return_dict=False)[0]
        with pytest.raises(KeyError), looking_along_rays(unet, model.network.depth, {}):
            unet(x, torch.tensor([3]), token)
        assert torch.equal(unet(x, torch.tensor([3]), token, return_dict=False)[0], before)


# The published file


def as_published(table: Table) -> dict[str, Tensor]:
    """Tensors without memory."""
    return {key: torch.empty(shape, device="meta") for key, shape in table.items()}


def test_every_tensor_of_the_published_file_has_its_place() -> None:
    with torch.device("meta"):
        network = SyncDreamerNetwork(SyncDreamerSizes())
    renamed = rename_keys(ldm_tensors(as_published(FULL_TABLE | LEFTOVERS), KEYS), KEYS, "the table")
    assert not renamed.unknown
    assert set(renamed.dropped) == set(LEFTOVERS)
    found = {key: tuple(tensor.shape) for key, tensor in renamed.state.items()}
    assert found == {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    counts = {
        network.unet: 859_532_484, network.depth: 57_321_472, network.vae: 83_653_863,
        network.image_encoder: 303_966_208, network.cc_projection: 593_664, network.volume.time: 131_584,
        network.volume.encoder: 29_632, network.volume.spatial: 29_254_208, network.volume.frustum: 19_283_712,
    }  # fmt: skip
    assert {part: sum(p.numel() for p in part.parameters()) for part in counts} == counts


def test_the_small_copy_has_the_published_number_of_tensors() -> None:
    assert len(SMALL_TABLE) == 1338


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("time_embed.0.weight", "volume.time.enter.weight"),
        (f"{UNET}.time_embed.0.weight", "unet.time_embedding.linear_1.weight"),
        (f"{UNET}.middle_block.1.norm.bias", "unet.mid_block.attentions.0.norm.bias"),
        (f"{UNET}.middle_conditions.proj_in.1.bias", "depth.middle.enter_norm.bias"),
        (f"{UNET}.output_conditions.8.depth_attn.to_out.weight", "depth.output.8.out.weight"),
        ("spatial_volume.frustum_volume_feats.conv2.bn.weight", "volume.frustum.down.1.norm.weight"),
        ("spatial_volume.spatial_volume_feats.conv9.norm.weight", "volume.spatial.up.2.norm.weight"),
        ("spatial_volume.spatial_volume_feats.conv9.bn.weight", None),
        (f"{CLIP}.visual.proj", "image_encoder.visual_projection.weight"),
    ],
)
def test_names_that_are_easily_confused(key: str, ours: str | None) -> None:
    assert KEYS(key) == ours


def test_what_is_dropped_has_a_reason() -> None:
    for key in LEFTOVERS:
        dropped = KEYS(key)
        assert isinstance(dropped, Dropped) and len(dropped.reason) > 10


def test_tensors_that_do_not_fit_are_named() -> None:
    state = {**filled(), "model_ema.decay": torch.zeros(()), "time_embed.2.weight": torch.zeros(4)}
    del state["time_embed.2.bias"]
    missing, extra = r"1 missing, first time_embed\.2\.bias \(256,\)", r"1 unknown, first model_ema\.decay"
    with pytest.raises(WeightsError, match=rf"{missing}; {extra}; 1 of another shape, first time_embed\.2\.weight"):
        SyncDreamer.from_state(state, SMALL)


# Running it


@functools.cache
def tiny_state() -> dict[str, Tensor]:
    """Random weights of the tiny copy."""
    torch.manual_seed(1)
    return SyncDreamerNetwork(TINY).state_dict()


def tiny_model(**options: Any) -> SyncDreamer:
    """The tiny copy, its tensors its own."""
    state = {key: tensor.clone() for key, tensor in tiny_state().items()}
    return SyncDreamer.from_state(state, TINY, published=False, **options)


@pytest.fixture(autouse=True)
def batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let views go through the networks together as on a GPU: the tiny ones are hardly slower with sixteen than one."""
    monkeypatch.setattr(networks, "on_accelerator", lambda _device: True)


@functools.cache
def tiny() -> SyncDreamer:
    """The tiny copy for tests that do not change it."""
    return tiny_model()


@functools.cache
def two_steps() -> Tensor:
    """What `run` gives of the tiny copy."""
    return run(tiny())


def cutout() -> Tensor:
    """A disc of noise."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    return torch.cat([uniform(3, (3, 64, 64)), ((x**2 + y**2) < 0.6)[None].float()])


def run(model: SyncDreamer, seed: int = 0, steps: int = 2, **options: Any) -> Tensor:
    """The latents after a few steps."""
    generator = torch.Generator().manual_seed(seed)
    options = {"elevation_deg": 10.0, "num_inference_steps": steps, "output_type": "latent", **options}
    made = model(cutout(), generator=generator, **options)
    assert isinstance(made, Tensor)
    return made


def test_generate_gives_sixteen_views_with_their_cameras() -> None:
    model, told = tiny(), []
    views = model.generate(
        cutout(), elevation_deg=10.0, num_inference_steps=2, on_step=lambda done, count: told.append((done, count))
    )
    assert told == [(1, 2), (2, 2)]
    assert views.images.shape == (16, 3, 128, 128) and views.alpha.shape == (16, 1, 128, 128)
    assert views.images.min() >= 0 and views.images.max() <= 1
    assert torch.equal(views.cameras.c2w, ring_cameras().c2w)
    assert model.image_size == 128 and small_model().image_size == 256


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert torch.equal(run(tiny_model()), two_steps())
    assert (run(tiny(), seed=1) - two_steps()).abs().max() > 0.1


def test_view_batch_size_changes_nothing() -> None:
    two_steps()
    for size in (5, 16):
        assert (run(tiny(), view_batch_size=size) - two_steps()).abs().max() < 2e-5


def test_on_the_cpu_not_even_rounding_depends_on_view_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "on_accelerator", on_accelerator)
    one, sixteen = run(tiny(), steps=1, view_batch_size=1), run(tiny(), steps=1, view_batch_size=16)
    assert torch.equal(one, sixteen)
    assert torch.equal(tiny().decode(one, 1), tiny().decode(one, 16))


@pytest.mark.parametrize("scheduler", ["dpm++", "unipc"])
def test_other_schedulers_take_its_place(scheduler: Any) -> None:
    model = copy.copy(tiny())
    model.set_scheduler(scheduler)
    made = run(model, steps=3)
    assert torch.isfinite(made).all() and made.std() > 0.1
    assert torch.equal(run(model, steps=3), made)


def test_a_view_hears_of_the_others() -> None:
    """View 0's noise depends on view 9's latent, through the volume alone."""
    model = tiny()
    condition = model.condition(torch.zeros(1, 3, 128, 128), 10.0, torch.Generator().manual_seed(0))
    latents = normal(1, (16, 4, 16, 16))
    other = latents.clone()
    other[9] += 1
    difference = (model.predict_noise(latents, 500, condition) - model.predict_noise(other, 500, condition)).abs()
    assert difference[0].max() > 1e-4
    deaf = [model.predict_noise(x, 500, condition, 0.0) for x in (latents, other)]
    assert (deaf[0] - deaf[1]).abs().amax((1, 2, 3))[:9].max() < 1e-6


def test_guidance_one_is_the_branch_with_the_picture() -> None:
    model = tiny()
    condition = model.condition(torch.zeros(1, 3, 128, 128), 10.0, torch.Generator().manual_seed(0))
    latents = normal(1, (16, 4, 16, 16))
    with_picture, twice, none = (model.predict_noise(latents, 500, condition, scale) for scale in (1.0, 2.0, 0.0))
    assert (none + 2 * (with_picture - none) - twice).abs().max() < 1e-5


def test_the_last_step_adds_no_noise() -> None:
    """Step t = 1 by hand: the direction is shortened by the noise's share, which itself is left out."""
    model = small_model()
    model.set_timesteps(50)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas = np.cumprod(1 - betas)
    a, before = alphas[1], alphas[0]
    sigma = math.sqrt((1 - before) / (1 - a) * (1 - a / before))
    assert sigma == pytest.approx(0.020648, abs=1e-6)
    x, noise = normal(1, (16, 4, 2, 2)), normal(2, (16, 4, 2, 2))
    clean = (x - math.sqrt(1 - a) * noise) / math.sqrt(a)
    expected = math.sqrt(before) * clean + math.sqrt(1 - before - sigma**2) * noise
    found = model.advance(noise, 1, x, eta=1.0, fresh_noise=torch.zeros_like(x))
    assert (found - expected).abs().max() < 1e-5
    fresh: list[float] = []
    watching = copy.copy(tiny())
    advance = watching.advance

    def watched(*inputs: Any, fresh_noise: Tensor, **options: Any) -> Tensor:
        fresh.append(fresh_noise.std().item())
        return advance(*inputs, fresh_noise=fresh_noise, **options)

    watching.advance = watched  # type: ignore[method-assign]
    run(watching)
    assert [value > 0.5 for value in fresh] == [True, False]


@pytest.mark.parametrize(
    ("steps", "parity", "count", "first"),
    [(50, False, 50, 981), (50, True, 50, 981), (75, False, 75, 963), (75, True, 77, 989), (1000, False, 999, 999)],
)
def test_the_times_that_are_visited(steps: int, parity: bool, count: int, first: int) -> None:
    times = tiny().set_timesteps(steps, parity)
    assert (len(times), times[0], times[-1]) == (count, first, 1)


def test_parity_wants_ddim() -> None:
    model = copy.copy(tiny())
    model.scheduler = make_scheduler("unipc")
    with pytest.raises(SettingsError, match="parity wants the scheduler ddim, found UniPC"):
        run(model, parity=True)


def test_a_cancelled_run_leaves_nothing_behind() -> None:
    model = tiny()

    class StopError(Exception): ...

    def stop(_model: Any, index: int, _time: int, _values: dict[str, Tensor]) -> None:
        if index == 1:
            raise StopError

    with pytest.raises(StopError):
        run(model, steps=3, view_batch_size=8, callback_on_step_end=stop)
    assert not any(module._forward_hooks for module in model.network.unet.modules())
    assert torch.equal(run(model), two_steps())


def test_a_callback_may_change_the_latents() -> None:
    def zeros(_model: Any, index: int, time: int, values: dict[str, Tensor]) -> dict[str, Tensor] | None:
        seen.append((index, time))
        return {"latents": torch.zeros_like(values["latents"])} if index == 1 else None

    seen: list[tuple[int, int]] = []
    assert run(tiny(), callback_on_step_end=zeros).abs().max() == 0
    assert seen == [(0, 501), (1, 1)]


def test_numbers_that_overflow_in_half_precision_are_made_again_in_fp32(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model(dtype=torch.bfloat16)

    def overflow(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output * math.inf if output.dtype == torch.bfloat16 else output

    handle = model.network.unet.conv_out.register_forward_hook(overflow)
    made = run(model)
    assert torch.isfinite(made).all()
    assert "syncdreamer, step 1 of 2 (t = 501)" in caplog.text and "bfloat16" in caplog.text
    assert model.dtype == torch.bfloat16
    handle.remove()
    model.network.unet.conv_out.register_forward_hook(lambda _module, _inputs, output: output * math.nan)
    with pytest.raises(WeightsError, match=r"step 1 of 2 .* not finite in fp32"):
        run(model)


def test_half_precision_keeps_the_norms() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    kinds = {module.weight.dtype for module in model.network.modules() if isinstance(module, Norm)}
    assert kinds == {torch.float32}
    assert model.network.volume.spatial.enter.weight.dtype == torch.bfloat16
    exact, half = run(tiny(), steps=1), run(model, steps=1)
    assert 0 < (exact - half).abs().mean() < 0.05 * exact.std()
    assert model.to(dtype=torch.float32).dtype == torch.float32
    # Large numbers in a norm: their squares overflow bfloat16's precision, not float32's.
    x = (1000 + normal(1, (1, 8, 4, 4, 4))).bfloat16()
    assert (Norm(8)(x).float() - Norm(8)(x.float())).abs().max() < 0.02


def test_offload_and_slices_change_nothing() -> None:
    model = tiny_model()
    model.enable_model_cpu_offload()
    model.enable_attention_slicing()
    assert (run(model) - two_steps()).abs().max() < 2e-5
    model.disable_attention_slicing()
    assert (run(model, steps=1) - run(tiny(), steps=1)).abs().max() < 2e-5
    assert model.network.unet.conv_in.weight.device.type == "cpu"


def test_a_saved_folder_comes_back(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "mine", {"note": 1})
    again = SyncDreamer.from_pretrained(tmp_path / "mine")
    assert again.name == "mine" and again.network.sizes == TINY
    assert (run(again) - two_steps()).abs().max() < 2e-5
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["weights"] == "raw" and "not stated" in config["licence"] and config["note"] == 1
    parts = ["cc_projection", "depth", "image_encoder", "unet", "vae", "volume"]
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == sorted(["config.json", *parts])
    # The libraries' own parts can be opened by the libraries.
    unet = json.loads((tmp_path / "mine" / "unet" / "config.json").read_text())
    assert unet["_class_name"] == "UNet2DConditionModel" and unet["in_channels"] == 8
    config["architecture"] = "zero123"
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="architecture 'zero123', expected 'syncdreamer'"):
        SyncDreamer.from_pretrained(tmp_path / "mine")


def test_a_checkpoint_of_other_sizes_is_refused(tmp_path: Path) -> None:
    """A .ckpt is read by the published sizes, through the allow-listed pickle."""
    path = tmp_path / syncdreamer.PUBLISHED_FILE
    torch.save({"state_dict": {"time_embed.0.weight": torch.zeros(256, 256)}}, path)
    for source in (path, tmp_path):
        with pytest.raises(WeightsError, match=r"syncdreamer-pretrain\.ckpt does not fit .* missing"):
            SyncDreamer.from_pretrained(source)
    with pytest.raises(WeightsError, match=r"config\.json: not found"):
        SyncDreamer.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"elevation_deg": 95.0}, "elevation_deg=95"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"view_batch_size": 0}, "view_batch_size=0"),
        ({"guidance_scale": math.nan}, "guidance_scale=nan"),
        ({"eta": 2.0}, "eta=2.0: expected 0"),
        ({"output_type": "jpg"}, "expected views, pil, np, pt, latent"),
        ({"latents": torch.zeros(15, 4, 16, 16)}, r"expected \(16, 4, 16, 16\), found \(15, 4, 16, 16\)"),
    ],
)
def test_settings_out_of_range_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        run(tiny(), **options)


def test_pictures_of_another_form_are_refused() -> None:
    with pytest.raises(ImageError, match=r"\(4, S, S\), straight RGBA, found \(3, 64, 64\)"):
        tiny()(torch.zeros(3, 64, 64), elevation_deg=0.0)


def test_output_types_show_the_same_pictures() -> None:
    model = copy.copy(tiny())
    model.decode = lambda latents, _size=None: uniform(5, (16, 3, 8, 8))  # type: ignore[method-assign]
    made = {
        kind: model(cutout(), elevation_deg=10.0, num_inference_steps=1, output_type=kind)  # type: ignore[arg-type]
        for kind in ("pt", "np", "pil", "views")
    }
    assert np.array_equal(made["np"], made["pt"].permute(0, 2, 3, 1).numpy())
    assert np.abs(np.asarray(made["pil"][7]) / 255 - made["np"][7]).max() <= 0.5 / 255 + 1e-6
    views = made["views"]
    # Straight colours over white are the picture again, but for what is nearly white at the border.
    assert (views.composite(1.0) - made["pt"]).abs().mean() < 0.05


def test_an_elevation_outside_the_training_is_told(caplog: pytest.LogCaptureFixture) -> None:
    tiny().condition(torch.zeros(1, 3, 64, 64), 60.0)
    assert "elevations from -10 to 40, not 60" in caplog.text


def test_the_condition_is_drawn_unless_told_otherwise() -> None:
    model, image = tiny(), torch.zeros(1, 3, 128, 128)
    middle = model.condition(image, 0.0, sample=False).latent
    drawn = [model.condition(image, 0.0, torch.Generator().manual_seed(seed)).latent for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert (drawn[0] - drawn[2]).abs().max() > 0
    assert (drawn[0] - middle).abs().max() > 0
