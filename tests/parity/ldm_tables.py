"""The tensors of Zero123's relatives name by name, from the facts and not from our code, and how to fill them.

Names and shapes are those of the original checkpoints (latent-diffusion, OpenAI's CLIP).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tests.parity.fill import Shapes, fill_tensor, with_endings

Table = dict[str, tuple[int, ...]]
_MORE_TOKENS = ("class_embedding", "positional_embedding")


def ldm_fill(shapes: Shapes) -> dict[str, Tensor]:
    """A state dict by the rule of the facts, section 11: `fill_tensor`, with CLIP's embeddings as tokens (halved)."""
    return {
        key: _drawn(key, shape, 0.5) if key.endswith(_MORE_TOKENS) else fill_tensor(key, shape)
        for key, shape in shapes.items()
    }


def _drawn(key: str, shape: Sequence[int], scale: float) -> Tensor:
    r = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    return torch.from_numpy((scale * r).astype(np.float32))


def normal(seed: int, shape: Sequence[int]) -> Tensor:
    """N(seed) of the facts, float32."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32))


def _conv(name: str, out: int, into: int, side: int) -> Table:
    return with_endings([name], (out, into, side, side), (out,))


def _norm(name: str, width: int) -> Table:
    return with_endings([name], (width,), (width,))


def _resnet(name: str, into: int, out: int, time: int) -> Table:
    table = _norm(f"{name}.in_layers.0", into) | _conv(f"{name}.in_layers.2", out, into, 3)
    table |= with_endings([f"{name}.emb_layers.1"], (out, time), (out,))
    table |= _norm(f"{name}.out_layers.0", out) | _conv(f"{name}.out_layers.3", out, out, 3)
    return table | (_conv(f"{name}.skip_connection", out, into, 1) if into != out else {})


def _transformer(name: str, d: int, context: int) -> Table:
    block = f"{name}.transformer_blocks.0"
    table = _norm(f"{name}.norm", d) | _conv(f"{name}.proj_in", d, d, 1) | _conv(f"{name}.proj_out", d, d, 1)
    for attention, width in (("attn1", d), ("attn2", context)):
        table[f"{block}.{attention}.to_q.weight"] = (d, d)
        table |= with_endings([f"{block}.{attention}.to_{part}" for part in "kv"], (d, width), None)
        table |= with_endings([f"{block}.{attention}.to_out.0"], (d, d), (d,))
    for i in (1, 2, 3):
        table |= _norm(f"{block}.norm{i}", d)
    table |= with_endings([f"{block}.ff.net.0.proj"], (8 * d, d), (8 * d,))
    return table | with_endings([f"{block}.ff.net.2"], (d, 4 * d), (d,))


def unet_table(front: str, base: int, into: int = 8, out: int = 4, context: int = 768) -> Table:
    """Latent-diffusion's UNet, mult 1, 2, 4, 4, two residual blocks per level, attention at all levels but the last."""
    time, widths = 4 * base, [base * m for m in (1, 2, 4, 4)]
    table = with_endings([f"{front}.time_embed.0"], (time, base), (time,))
    table |= with_endings([f"{front}.time_embed.2"], (time, time), (time,))
    table |= _conv(f"{front}.input_blocks.0.0", base, into, 3)
    kept, width, number = [base], base, 0
    for level, wide in enumerate(widths):
        for _ in range(2):
            number += 1
            table |= _resnet(f"{front}.input_blocks.{number}.0", width, wide, time)
            width = wide
            if level < 3:
                table |= _transformer(f"{front}.input_blocks.{number}.1", width, context)
            kept.append(width)
        if level < 3:
            number += 1
            table |= _conv(f"{front}.input_blocks.{number}.0.op", width, width, 3)
            kept.append(width)
    table |= _resnet(f"{front}.middle_block.0", width, width, time)
    table |= _transformer(f"{front}.middle_block.1", width, context)
    table |= _resnet(f"{front}.middle_block.2", width, width, time)
    number = -1
    for level in (3, 2, 1, 0):
        for i in range(3):
            number += 1
            table |= _resnet(f"{front}.output_blocks.{number}.0", width + kept.pop(), widths[level], time)
            width = widths[level]
            if level < 3:
                table |= _transformer(f"{front}.output_blocks.{number}.1", width, context)
            if level and i == 2:
                table |= _conv(f"{front}.output_blocks.{number}.{2 if level < 3 else 1}.conv", width, width, 3)
    return table | _norm(f"{front}.out.0", base) | _conv(f"{front}.out.2", out, base, 3)


def _vae_resnet(name: str, into: int, out: int) -> Table:
    table = _norm(f"{name}.norm1", into) | _conv(f"{name}.conv1", out, into, 3)
    table |= _norm(f"{name}.norm2", out) | _conv(f"{name}.conv2", out, out, 3)
    return table | (_conv(f"{name}.nin_shortcut", out, into, 1) if into != out else {})


def vae_table(front: str, base: int) -> Table:
    """Latent-diffusion's kl-f8 autoencoder, mult 1, 2, 4, 4, two residual blocks per level, 4 latent channels."""
    widths = [base * m for m in (1, 2, 4, 4)]
    deep = widths[-1]
    table = _conv(f"{front}.encoder.conv_in", base, 3, 3) | _conv(f"{front}.decoder.conv_in", deep, 4, 3)
    width = base
    for level, wide in enumerate(widths):
        for i in range(2):
            table |= _vae_resnet(f"{front}.encoder.down.{level}.block.{i}", width, wide)
            width = wide
        if level < 3:
            table |= _conv(f"{front}.encoder.down.{level}.downsample.conv", width, width, 3)
    for side in ("encoder", "decoder"):
        mid = f"{front}.{side}.mid"
        table |= _vae_resnet(f"{mid}.block_1", deep, deep) | _vae_resnet(f"{mid}.block_2", deep, deep)
        table |= _norm(f"{mid}.attn_1.norm", deep)
        for part in ("q", "k", "v", "proj_out"):
            table |= _conv(f"{mid}.attn_1.{part}", deep, deep, 1)
    for level in (3, 2, 1, 0):
        for i in range(3):
            table |= _vae_resnet(f"{front}.decoder.up.{level}.block.{i}", width, widths[level])
            width = widths[level]
        if level:
            table |= _conv(f"{front}.decoder.up.{level}.upsample.conv", width, width, 3)
    table |= _norm(f"{front}.encoder.norm_out", deep) | _conv(f"{front}.encoder.conv_out", 8, deep, 3)
    table |= _norm(f"{front}.decoder.norm_out", base) | _conv(f"{front}.decoder.conv_out", 3, base, 3)
    return table | _conv(f"{front}.quant_conv", 8, 8, 1) | _conv(f"{front}.post_quant_conv", 4, 4, 1)


def clip_table(front: str, width: int, layers: int, projection: int = 768, patch: int = 14, tokens: int = 257) -> Table:
    """OpenAI's CLIP image encoder."""
    table: Table = {
        f"{front}.class_embedding": (width,),
        f"{front}.positional_embedding": (tokens, width),
        f"{front}.conv1.weight": (width, 3, patch, patch),
        f"{front}.proj": (width, projection),
    }
    table |= _norm(f"{front}.ln_pre", width) | _norm(f"{front}.ln_post", width)
    for i in range(layers):
        block = f"{front}.transformer.resblocks.{i}"
        table |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        table |= with_endings([f"{block}.attn.out_proj"], (width, width), (width,))
        table |= _norm(f"{block}.ln_1", width) | _norm(f"{block}.ln_2", width)
        table |= with_endings([f"{block}.mlp.c_fc"], (4 * width, width), (4 * width,))
        table |= with_endings([f"{block}.mlp.c_proj"], (width, 4 * width), (width,))
    return table


UNET, VAE, CLIP = "model.diffusion_model", "first_stage_model", "cond_stage_model.model.visual"
PROJECTION: Table = {"cc_projection.weight": (768, 772), "cc_projection.bias": (768,)}


def zero123_table(unet: int, vae: int, clip: int, clip_layers: int) -> Table:
    """All tensors of Zero123 that are used, for base widths of its three networks."""
    return unet_table(UNET, unet) | vae_table(VAE, vae) | clip_table(CLIP, clip, clip_layers) | PROJECTION


ZERO123_FULL = zero123_table(320, 128, 1024, 24)
ZERO123_SMALL = zero123_table(32, 32, 64, 2)

SCHEDULE_NAMES = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip


def ema_copy(table: Mapping[str, tuple[int, ...]]) -> Table:
    """The names of the running averages of all tensors below ``model.``, with their two counters."""
    averages = {
        "model_ema." + key[len("model.") :].replace(".", ""): shape
        for key, shape in table.items()
        if key.startswith("model.")
    }
    return averages | {"model_ema.decay": (), "model_ema.num_updates": ()}


def text_table(front: str = "cond_stage_model.model") -> Table:
    """What is left of CLIP's text side in the checkpoints."""
    return {
        f"{front}.token_embedding.weight": (49408, 768),
        f"{front}.positional_embedding": (77, 768),
        f"{front}.text_projection": (768, 768),
        f"{front}.logit_scale": (),
        f"{front}.ln_final.weight": (768,),
        f"{front}.ln_final.bias": (768,),
    }
