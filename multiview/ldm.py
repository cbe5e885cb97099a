"""The parts that Zero123 and its descendants are made of, and the names that their first publishers gave the tensors.

They are Stable Diffusion 1 with other inputs: a UNet, a VAE, and OpenAI's CLIP as image encoder. Here they are classes
of `diffusers` and `transformers`; published checkpoints are written with the names of CompVis' latent-diffusion (LDM)
and of OpenAI's CLIP. This file builds the parts from their sizes, reads such checkpoints safely, and says which tensor
is which::

    .ckpt ──► read_ldm ──► use_ema ──► ldm_tensors ──► KeyTable of unet_renames + vae_renames + clip_renames + ...
            allow-listed    EMA in      layouts of         one strict `fill_network` for all the parts
            pickle, mapped  its place   ours

Source: Rombach et al. 2022 (arXiv 2112.10752), Radford et al. 2021 (arXiv 2103.00020); the names from measured facts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoint import KeyMap, Network, fill_network, read_checkpoint, require_zip
from .devices import CPU
from .errors import WeightsError
from .keymap import KeyTable
from .weights import safetensors_keys

Renames = tuple[tuple[str, str | tuple[str, ...]], ...]
Weights = Literal["auto", "ema", "raw"]
VAE_SCALE = 0.18215
"""Target latents are the VAE's, multiplied by this; condition latents are not."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class UNetSizes:
    """Sizes of the denoising UNet; the defaults are Zero123's.

    Attributes:
        in_channels: noisy latent and condition latent.
        out_channels: predicted noise.
        channels: width of each level; all but the last have attention in them.
        layers: residual blocks per level going down, one more going up.
        heads: of attention, the same number everywhere.
        context_width: of the tokens that cross-attention reads.
        latent_size: latent pixels per side.
    """

    in_channels: int = 8
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers: int = 2
    heads: int = 8
    context_width: int = 768
    latent_size: int = 32


@dataclass(frozen=True)
class VaeSizes:
    """Sizes of the autoencoder; the defaults are Stable Diffusion's (kl-f8).

    Attributes:
        channels: width of each level; every level but the last halves the picture.
        layers: residual blocks per level of the encoder, one more in the decoder.
        latent_channels: of the latent.
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    latent_channels: int = 4


@dataclass(frozen=True)
class ClipSizes:
    """Sizes of CLIP's image encoder; the defaults are OpenAI's ViT-L/14."""

    image_size: int = 224
    patch_size: int = 14
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_width: int = 4096
    projection_width: int = 768
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"


def make_unet(sizes: UNetSizes) -> Any:
    """A `diffusers.UNet2DConditionModel` of these sizes."""
    from diffusers import UNet2DConditionModel

    inner = len(sizes.channels) - 1
    return UNet2DConditionModel(
        sample_size=sizes.latent_size,
        in_channels=sizes.in_channels,
        out_channels=sizes.out_channels,
        block_out_channels=sizes.channels,
        layers_per_block=sizes.layers,
        down_block_types=("CrossAttnDownBlock2D",) * inner + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * inner,
        cross_attention_dim=sizes.context_width,
        # The old name for the *number* of heads; head widths given here load without a word and compute nonsense.
        attention_head_dim=sizes.heads,
    )


def make_vae(sizes: VaeSizes) -> Any:
    """A `diffusers.AutoencoderKL` of these sizes."""
    from diffusers import AutoencoderKL

    levels = len(sizes.channels)
    return AutoencoderKL(
        block_out_channels=sizes.channels,
        layers_per_block=sizes.layers,
        latent_channels=sizes.latent_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        sample_size=32 * 2 ** (levels - 1),
        scaling_factor=VAE_SCALE,
    )


def make_clip(sizes: ClipSizes) -> Any:
    """A `transformers.CLIPVisionModelWithProjection` of these sizes."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp_width,
        projection_dim=sizes.projection_width,
        hidden_act=sizes.activation,
        layer_norm_eps=1e-5,
    )
    model = CLIPVisionModelWithProjection(config)
    # The one buffer that no file holds: made for real even where the network is made without memory.
    embeddings = model.vision_model.embeddings
    count = (sizes.image_size // sizes.patch_size) ** 2 + 1
    embeddings.position_ids = torch.arange(count, device=CPU)[None]
    return model


def clip_pixels(images: Tensor, image_size: int = 224) -> Tensor:
    """What CLIP sees in Zero123 and its descendants.

    Bicubic without antialiasing, corner pixels on corner pixels, no clamping and no rounding; the networks were trained
    with exactly this. The usual CLIP processor gives numbers that differ by 0.006 in the mean.

    Args:
        images: (B, 3, S, S) in [-1, 1], at the model's own size (256 px).
        image_size: of the encoder.

    Returns:
        (B, 3, image_size, image_size), normalised with CLIP's mean and deviation.
    """
    small = F.interpolate(images, (image_size, image_size), mode="bicubic", align_corners=True)
    mean, std = (small.new_tensor(x).reshape(1, 3, 1, 1) for x in (CLIP_MEAN, CLIP_STD))
    return ((small + 1) / 2 - mean) / std


# Which name is which.

_RESNET = (
    ("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"), ("out_layers.3", "conv2"), ("skip_connection", "conv_shortcut"),
)  # fmt: skip
_BLOCK = "transformer_blocks.*"
_ATTENTION = (
    "norm", "proj_in", "proj_out",
    *(f"{_BLOCK}.norm{i}" for i in (1, 2, 3)),
    *(f"{_BLOCK}.attn{i}.{part}" for i in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")),
    f"{_BLOCK}.ff.net.0.proj", f"{_BLOCK}.ff.net.2",
)  # fmt: skip


def unet_renames(
    published: str = "model.diffusion_model", ours: str = "unet", sizes: UNetSizes | None = None
) -> Renames:
    """How LDM's names of a UNet become those of diffusers.

    Args:
        published, ours: what stands before the names, without the dot.
        sizes: of which the number of levels and of layers matter; Zero123's by default.

    Returns:
        Pairs for `multiview.keymap.KeyTable`, whose patterns they are.
    """
    sizes = sizes or UNetSizes()
    levels, down, up = len(sizes.channels), sizes.layers + 1, sizes.layers + 1
    pairs = [
        ("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"),
        ("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out"),
        *_resnet("middle_block.0", "mid_block.resnets.0"),
        *_attention("middle_block.1", "mid_block.attentions.0"),
        *_resnet("middle_block.2", "mid_block.resnets.1"),
    ]  # fmt: skip
    for i in range(1, levels * down):
        level, place = divmod(i - 1, down)
        if place == down - 1:
            pairs.append((f"input_blocks.{i}.0.op", f"down_blocks.{level}.downsamplers.0.conv"))
            continue
        pairs += _resnet(f"input_blocks.{i}.0", f"down_blocks.{level}.resnets.{place}")
        if level < levels - 1:
            pairs += _attention(f"input_blocks.{i}.1", f"down_blocks.{level}.attentions.{place}")
    for i in range(levels * up):
        level, place = divmod(i, up)
        pairs += _resnet(f"output_blocks.{i}.0", f"up_blocks.{level}.resnets.{place}")
        if level > 0:
            pairs += _attention(f"output_blocks.{i}.1", f"up_blocks.{level}.attentions.{place}")
        if place == up - 1 and level < levels - 1:
            # The level without attention has its upsampler where the others have their attention.
            number = 2 if level else 1
            pairs.append((f"output_blocks.{i}.{number}.conv", f"up_blocks.{level}.upsamplers.0.conv"))
    return tuple((f"{published}.{a}", f"{ours}.{b}") for a, b in pairs)


def _resnet(published: str, ours: str) -> list[tuple[str, str]]:
    return [(f"{published}.{a}", f"{ours}.{b}") for a, b in _RESNET]


def _attention(published: str, ours: str) -> list[tuple[str, str]]:
    """Inside, both call everything the same."""
    return [(f"{published}.{name}", f"{ours}.{name}") for name in _ATTENTION]


_VAE_RESNET = (
    *((name, name) for name in ("norm1", "conv1", "norm2", "conv2")),
    ("nin_shortcut", "conv_shortcut"),
)
_VAE_ATTENTION = (
    ("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"),
)  # fmt: skip


def vae_renames(published: str = "first_stage_model", ours: str = "vae", sizes: VaeSizes | None = None) -> Renames:
    """How LDM's names of an autoencoder become those of diffusers; arguments as in `unet_renames`."""
    levels = len((sizes or VaeSizes()).channels)
    pairs = [(name, name) for name in ("quant_conv", "post_quant_conv")]
    for side in ("encoder", "decoder"):
        pairs += [(f"{side}.{name}", f"{side}.{name}") for name in ("conv_in", "conv_out")]
        pairs += [(f"{side}.norm_out", f"{side}.conv_norm_out")]
        for i in (1, 2):
            pairs += [(f"{side}.mid.block_{i}.{a}", f"{side}.mid_block.resnets.{i - 1}.{b}") for a, b in _VAE_RESNET]
        pairs += [(f"{side}.mid.attn_1.{a}", f"{side}.mid_block.attentions.0.{b}") for a, b in _VAE_ATTENTION]
    for i in range(levels):
        # LDM counts the decoder's levels from the picture inward, diffusers as they are run.
        down, up = f"encoder.down_blocks.{i}", f"decoder.up_blocks.{levels - 1 - i}"
        pairs += [(f"encoder.down.{i}.block.*.{a}", f"{down}.resnets.*.{b}") for a, b in _VAE_RESNET]
        pairs += [(f"encoder.down.{i}.downsample.conv", f"{down}.downsamplers.0.conv")]
        pairs += [(f"decoder.up.{i}.block.*.{a}", f"{up}.resnets.*.{b}") for a, b in _VAE_RESNET]
        pairs += [(f"decoder.up.{i}.upsample.conv", f"{up}.upsamplers.0.conv")]
    return tuple((f"{published}.{a}", f"{ours}.{b}") for a, b in pairs)


def clip_renames(published: str = "cond_stage_model.model.visual", ours: str = "image_encoder") -> Renames:
    """How OpenAI's names of CLIP's image encoder become those of transformers; arguments as in `unet_renames`.

    The query, key and value that OpenAI keeps in one tensor are parted by `KeyTable.part`.
    """
    theirs, layer = "transformer.resblocks.*", "vision_model.encoder.layers.*"
    joined = {
        kind: tuple(f"{ours}.{layer}.self_attn.{part}_proj.{kind}" for part in "qkv") for kind in ("weight", "bias")
    }
    pairs: list[tuple[str, str]] = [
        ("class_embedding", "vision_model.embeddings.class_embedding"),
        ("positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("conv1", "vision_model.embeddings.patch_embedding"),
        ("ln_pre", "vision_model.pre_layrnorm"),  # sic
        ("ln_post", "vision_model.post_layernorm"),
        ("proj", "visual_projection.weight"),
        (f"{theirs}.attn.out_proj", f"{layer}.self_attn.out_proj"),
        (f"{theirs}.ln_1", f"{layer}.layer_norm1"),
        (f"{theirs}.ln_2", f"{layer}.layer_norm2"),
        (f"{theirs}.mlp.c_fc", f"{layer}.mlp.fc1"),
        (f"{theirs}.mlp.c_proj", f"{layer}.mlp.fc2"),
    ]
    return (
        *((f"{published}.{theirs}.attn.in_proj_{kind}", names) for kind, names in joined.items()),
        *((f"{published}.{a}", f"{ours}.{b}") for a, b in pairs),
    )


SCHEDULE = "the noise schedule is computed here"
SCHEDULE_BUFFERS: dict[str, str] = dict.fromkeys(
    (
        "betas", "alphas_cumprod", "alphas_cumprod_prev", "alphas", "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped",
        "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar",
    ),
    SCHEDULE,
)  # fmt: skip


def text_leftovers(front: str = "cond_stage_model.model") -> dict[str, str]:
    """Names of what is left of CLIP's text side, which is never run, for `KeyTable.dropped`."""
    names = ("token_embedding", "positional_embedding", "text_projection", "logit_scale", "ln_final")
    reason = "left of CLIP's text side, which is never run"
    # The side that reads pictures has buffers of its own outside the tower in some releases.
    return {f"{front}.{name}": reason for name in names}


def ldm_tensors(state: Mapping[str, Tensor], table: KeyTable) -> dict[str, Tensor]:
    """Bring LDM's and OpenAI's tensors into the layouts of diffusers and transformers, names unchanged but for parts.

    The VAE's attention is 1 x 1 convolutions there and matrices here; CLIP's projection is transposed; joined query,
    key and value are parted. All are views. What has another shape than expected stays as it is, and is found wrong
    when it is loaded.

    Args:
        state: {published name: tensor}.
        table: knows which tensors hold several.
    """
    changed = {}
    for key, tensor in state.items():
        if ".mid.attn_1." in key and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        elif key.endswith("visual.proj") and tensor.ndim == 2:
            tensor = tensor.t()
        changed[key] = tensor
    return table.part(changed)


# Running averages.

_EMA = "model_ema."
_RAW = "model."


def ema_name(key: str) -> str:
    """The name of a raw tensor's running average: ``model.a.b.weight`` → ``model_ema.abweight``.

    Dots are lost there, so that averages can only be found from the raw names.
    """
    return _EMA + key.removeprefix(_RAW).replace(".", "")


def has_ema(state: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint holds running averages beside its raw weights."""
    return any(key.startswith(_EMA) for key in state)


def use_ema(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The running averages in the place of the raw weights (everything below ``model.``), and nothing else of them.

    Raises:
        WeightsError: a raw tensor has no average, or an average has no raw tensor.
    """
    averages = {key for key in state if key.startswith(_EMA)} - {_EMA + "decay", _EMA + "num_updates"}
    chosen = {}
    for key, tensor in without_ema(state).items():
        if key.startswith(_RAW):
            name = ema_name(key)
            if name not in averages:
                raise WeightsError(
                    f"{where}: {key} has no running average ({name} is not among the {len(averages)} averages). "
                    "Take the raw weights instead: weights='raw'."
                )
            averages.discard(name)
            tensor = state[name]
        chosen[key] = tensor
    if averages:
        raise WeightsError(f"{where}: {len(averages)} running averages belong to no tensor, first {min(averages)}.")
    return chosen


def choose_weights(state: Mapping[str, Tensor], weights: Weights, where: str) -> tuple[dict[str, Tensor], str]:
    """Take the running averages or the raw weights of a checkpoint.

    Args:
        state: {published name: tensor}.
        weights: which; ``auto`` takes averages where there are some.
        where: what to call the weights in an error.

    Returns:
        {published name: tensor} without ``model_ema.*``, and ``ema`` or ``raw``.

    Raises:
        WeightsError: averages are wanted and there are none, or they do not match the raw weights.
    """
    if weights == "ema" and not has_ema(state):
        raise WeightsError(f"{where}: holds no running averages (model_ema.*). Take weights='raw'.")
    if weights == "raw" or not has_ema(state):
        return without_ema(state), "raw"
    return use_ema(state, where), "ema"


def without_ema(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The raw weights alone."""
    return {key: tensor for key, tensor in state.items() if not key.startswith(_EMA)}


# Pickles of training runs.


class _Ignored:
    """Stands in for an object of a training run's bookkeeping: it takes anything, keeps nothing and does nothing."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


# What training checkpoints of Lightning hold beside tensors, by the names under which they were pickled. None of the
# real objects is ever made.
BOOKKEEPING = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
)


def read_ldm(path: str | Path) -> dict[str, Tensor]:
    """Map a published checkpoint into memory: {key: tensor}, nothing is copied until it is used.

    As `read_checkpoint`, and training checkpoints too (Zero123-XL's holds the optimiser and callbacks): of the objects
    in `BOOKKEEPING` an empty one is put there; any other object is refused.

    Raises:
        WeightsError: see `read_checkpoint`.
    """
    # Tuples are (what to use, the name in the file).
    with torch.serialization.safe_globals([(_Ignored, name) for name in BOOKKEEPING]):
        return read_checkpoint(path)


def checkpoint_keys(path: str | Path) -> list[str]:
    """Names of the tensors in a checkpoint; their numbers are not read.

    Raises:
        WeightsError: see `read_ldm`; or a pickle from before torch 1.6, of which no part can be read by itself.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return safetensors_keys(path)
    require_zip(path)
    return list(read_ldm(path))


def fill_parts(
    make: Callable[[], Network], state: Mapping[str, Tensor], where: str, *, key_map: KeyMap | None,
    device: torch.device | str,
) -> Network:  # fmt: skip
    """`fill_network`, and the buffers that no file holds put on the device as well."""
    network = fill_network(make, state, where, key_map=key_map, device=device)
    return network.to(device)


def count_parameters(module: nn.Module) -> int:
    """Numbers in a network's parameters."""
    return sum(p.numel() for p in module.parameters())
