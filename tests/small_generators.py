"""Small copies of the view generators with random weights, as folders of our own form: for runs from photo to views.

They have every part that the published models have, so small that a few steps take a second on one core. What they draw
is noise in the shape of views, with the right cameras.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from multiview.ldm import ClipSizes, UNetSizes, VaeSizes
from multiview.networks import NetworkGenerator
from multiview.syncdreamer import SyncDreamer, SyncDreamerNetwork, SyncDreamerSizes
from multiview.syncdreamervolumes import VolumeSizes
from multiview.zero123 import Zero123
from multiview.zero123plus import Zero123Plus
from multiview.zero123plusweights import PARTS, VAE_PICTURE, Parts, Zero123PlusConfig
from multiview.zero123weights import PoseRule, Zero123Config, Zero123Network

_VAE = VaeSizes(channels=(32, 32, 32), layers=1)
_CLIP = ClipSizes(image_size=28, width=16, layers=1, heads=2, mlp_width=16, projection_width=8)
# Pictures of 64 px.
ZERO123 = Zero123Config(
    unet=UNetSizes(channels=(32, 32), layers=1, heads=2, context_width=8, latent_size=16), vae=_VAE, clip=_CLIP
)
# The depth layers hang on four levels of a UNet, so that its latents have 8 pixels at least: pictures of 32 px.
SYNCDREAMER = SyncDreamerSizes(
    unet=UNetSizes(channels=(32, 32, 32, 32), layers=2, heads=2, context_width=8, latent_size=8), vae=_VAE, clip=_CLIP,
    volume=VolumeSizes(
        latent_size=8, view_channels=8, time_width=16, widths=(8, 8, 8, 16), grid_size=8, depth_planes=8
    ),
)  # fmt: skip
# Tiles of 32 px.
PLUS = Zero123PlusConfig(
    ramp=(0.1, 0.2205, 0.3, 0.4), tile_size=32, vae_picture=replace(VAE_PICTURE, size=32),
)  # fmt: skip
_PLUS_UNET = {
    "_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 4, "out_channels": 4,
    "block_out_channels": [32, 32], "attention_head_dim": [1, 2], "cross_attention_dim": 16, "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "use_linear_projection": True,
}  # fmt: skip
_PLUS_VAE = {
    "_class_name": "AutoencoderKL", "block_out_channels": [32] * 4, "layers_per_block": 1, "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.18215,
}  # fmt: skip
_PLUS_VISION = {
    "architectures": ["CLIPVisionModelWithProjection"], "hidden_size": 16, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 56, "image_size": 224, "projection_dim": 16,
    "hidden_act": "gelu",
}  # fmt: skip


def zero123(pose_rule: PoseRule = "distance") -> Zero123:
    """Zero123 (``distance``) or Stable Zero123 (``polar``)."""
    return Zero123(Zero123Network(replace(ZERO123, pose_rule=pose_rule)), "zero123-small", weights="raw")


def syncdreamer() -> SyncDreamer:
    """SyncDreamer."""
    return SyncDreamer(SyncDreamerNetwork(SYNCDREAMER), name="syncdreamer-small")


def zero123plus() -> Zero123Plus:
    """Zero123++ 1.2."""
    values = (_PLUS_UNET, _PLUS_VAE, _PLUS_VISION)
    unet, vae, vision = (part.make(said) for part, said in zip(PARTS.values(), values, strict=True))
    return Zero123Plus(Parts(unet, vae, vision, torch.randn(4, 16)), PLUS, name="zero123plus-small")


SMALL: Mapping[str, Callable[[], NetworkGenerator]] = {
    "zero123": zero123,
    "stable-zero123": lambda: zero123("polar"),
    "syncdreamer": syncdreamer,
    "zero123plus": zero123plus,
}


def build_small(name: str, seed: int = 0) -> NetworkGenerator:
    """A small generator of `SMALL` in memory; the same seed gives the same weights, whatever else is drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SMALL[name]()


def make_small(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Write a small generator of `SMALL` to ``folder`` in our own form; gives the folder."""
    build_small(name, seed).save_pretrained(folder)
    return Path(folder)
