"""The UNet of Zero123 and SyncDreamer once more, for runs: what does not change from step to step is worked out once.

::

    tokens (V, 1, D) ─► told    (V, Σ widths)   what every cross-attention answers: one number per channel, once a run
    times (T,)       ─► rows    (T, Σ widths)   what every residual block is told of the time, once a schedule
                           ▼
    latents, one row, told ─► FastUNet ─► noise, deep features          `deep` given back: the levels below are skipped

Softmax over a single token is 1, so that a cross-attention answers ``to_out(to_v(token))`` whatever is asked: that is
exact, and saves its norm, its query and its two products in every step. The parameters have the names of diffusers'
`UNet2DConditionModel` and are the very same objects (`fast_unet`): nothing is copied, and a change of dtype or device
is seen here at once.

Source: Rombach et al. 2022 (arXiv 2112.10752) for the network; reusing deep features between steps is from Ma et al.
2023 (DeepCache, arXiv 2312.00858). tests/unit/test_fastunet.py compares with diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend, join_heads, split_heads
from .ldm import UNetSizes

Look = Callable[[str, Tensor], Tensor]
"""Given a module's name and its output, gives the output to go on with (SyncDreamer's depth layers)."""

SHALLOW = 2
"""Layers of the finest level that are run in every step, counted from the output, when deep features are reused."""
_GROUPS = 32
_TIME_PERIOD = 10000


class Residual(nn.Module):
    """Two convolutions that are told the time, beside the identity."""

    def __init__(self, channels: int, out: int, time_width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(_GROUPS, channels), nn.Conv2d(channels, out, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width, out)
        self.norm2, self.conv2 = nn.GroupNorm(_GROUPS, out), nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels, out, 1) if channels != out else None
        self.part = slice(0, 0)  # of a row of times; set by the network

    def forward(self, x: Tensor, row: Tensor) -> Tensor:
        """Features (B, C, H, W) and a row of `FastUNet.time_rows` (1 or B, Σ) → (B, out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x))) + row[:, self.part, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class Attention(nn.Module):
    """Attention over a sequence, or of it over a context."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(context_width, width, bias=False) for _ in range(2))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, L, D) asks context (B, M, C) → (B, L, D)."""
        made = (linear(y) for linear, y in ((self.to_q, x), (self.to_k, context), (self.to_v, context)))
        out: Tensor = self.to_out[0](join_heads(attend(*(split_heads(y, self.heads) for y in made))))
        return out


class Gate(nn.Module):
    """The first half of the feed-forward layers: a product of two projections, one of them through GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) → (B, L, inner)."""
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Two layers on each token; their numbers in ``net`` are diffusers', which has a dropout between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([Gate(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) → (B, L, D)."""
        out: Tensor = self.net[2](self.net[0](x))
        return out


class Block(nn.Module):
    """Self-attention, cross-attention, feed-forward."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1, self.attn2 = Attention(width, width, heads), Attention(width, context_width, heads)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, told: Tensor | None, tokens: Tensor | None) -> Tensor:
        """(B, L, D), and what the cross-attention answers (1 or B, D), or else the tokens that it reads."""
        seen = self.norm1(x)
        x = x + self.attn1(seen, seen)
        x = x + (self.attn2(self.norm2(x), tokens) if told is None else told[:, None])
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """A `Block` on the pixels of a feature map, beside the identity."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([Block(width, context_width, heads)])
        self.part = slice(0, 0)  # of what is told; set by the network

    @property
    def crossing(self) -> Attention:
        """The cross-attention."""
        found = self.transformer_blocks[0].attn2
        assert isinstance(found, Attention)
        return found

    def forward(self, x: Tensor, told: Tensor | None, tokens: Tensor | None = None) -> Tensor:
        """(B, C, H, W), see `FastUNet.forward` → (B, C, H, W)."""
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        h = self.transformer_blocks[0](h, None if told is None else told[:, self.part], tokens)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))


class Sample(nn.Module):
    """One convolution that halves a feature map's sides, or doubles them."""

    def __init__(self, width: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(width, width, 3, stride=1 if up else 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, 2 H, 2 W), or (B, C, H / 2, W / 2)."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else x)
        return out


class Level(nn.Module):
    """The residual blocks, transformers and the resampler of one level, under diffusers' names."""

    def __init__(self, residuals: list[Residual], transformers: list[Transformer], sample: Sample | None, up: bool):
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(residuals), nn.ModuleList(transformers)
        if sample is not None:
            setattr(self, "upsamplers" if up else "downsamplers", nn.ModuleList([sample]))

    def layer(self, index: int, x: Tensor, row: Tensor, told: Tensor | None, tokens: Tensor | None) -> Tensor:
        """One residual block, and the transformer after it where the level has them."""
        x = self.resnets[index](x, row)
        return self.attentions[index](x, told, tokens) if len(self.attentions) else x


class FastUNet(nn.Module):
    """The UNet of these sizes; see the drawing at the top of the file.

    Args:
        sizes: every level but the last has transformers, as Zero123's has.
    """

    def __init__(self, sizes: UNetSizes) -> None:
        super().__init__()
        widths, time_width = sizes.channels, 4 * sizes.channels[0]
        self.sizes = sizes
        self.time_embedding = nn.ModuleDict(
            {"linear_1": nn.Linear(widths[0], time_width), "linear_2": nn.Linear(time_width, time_width)}
        )
        self.conv_in = nn.Conv2d(sizes.in_channels, widths[0], 3, padding=1)
        self.down_blocks, self.up_blocks = nn.ModuleList(_down_levels(sizes)), nn.ModuleList(_up_levels(sizes))
        last = widths[-1]
        middle = [Residual(last, last, time_width) for _ in range(2)]
        self.mid_block = Level(middle, [Transformer(last, sizes.context_width, sizes.heads)], None, False)
        self.conv_norm_out = nn.GroupNorm(_GROUPS, widths[0])
        self.conv_out = nn.Conv2d(widths[0], sizes.out_channels, 3, padding=1)
        self._residuals = _number_parts(module for module in self.modules() if isinstance(module, Residual))
        self._transformers = _number_parts(module for module in self.modules() if isinstance(module, Transformer))

    def use_channels_last(self, on: bool = True) -> None:
        """Lay the convolutions' weights out with the channels innermost, or as usual; the same numbers."""
        wanted = torch.channels_last if on else torch.contiguous_format
        for values in self.parameters():
            if values.ndim == 4:
                values.data = values.data.contiguous(memory_format=wanted)

    # Once a run.

    def time_rows(self, times: Tensor) -> Tensor:
        """What every residual block is told of times (T,): (T, Σ widths), a row per time, in the parameters' dtype."""
        half = self.sizes.channels[0] // 2
        line = torch.arange(half, dtype=torch.float32, device=times.device)
        angles = times.float()[:, None] * torch.exp(line * (-math.log(_TIME_PERIOD) / half))
        first, second = self.time_embedding["linear_1"], self.time_embedding["linear_2"]
        waves = torch.cat([angles.cos(), angles.sin()], -1).to(self.conv_in.weight.dtype)
        embedding = F.silu(second(F.silu(first(waves))))
        return torch.cat([residual.time_emb_proj(embedding) for residual in self._residuals], -1)

    def told(self, tokens: Tensor) -> Tensor:
        """What the cross-attentions answer when there is but one token each: (V, 1, D) → (V, Σ widths)."""
        token = tokens[:, 0].to(self.conv_in.weight.dtype)
        crossings = [transformer.crossing for transformer in self._transformers]
        return torch.cat([one.to_out[0](one.to_v(token)) for one in crossings], -1)

    # Every step.

    def forward(
        self,
        x: Tensor,
        row: Tensor,
        told: Tensor | None,
        deep: Tensor | None = None,
        look: Look | None = None,
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predict noise.

        Args:
            x: (B, in_channels, H, W) in the parameters' dtype.
            row: (1 or B, Σ) of `time_rows`.
            told: (1 or B, Σ) of `told`; None works the cross-attentions out from ``tokens``.
            deep: what this gave for an earlier step, whose place it takes: all but `SHALLOW` layers of the finest level
                are left out. None runs them.
            look: see `Look`; asked after the middle, and after every transformer and resampler on the way up.
            tokens: (B, M, D), used where ``told`` is None.

        Returns:
            (B, out_channels, H, W), and the features that come from below (B, C, H, W), for ``deep``.
        """
        see = look or _as_it_is
        x = self.conv_in(x)
        finest: Any = self.up_blocks[-1]
        rest = len(finest.resnets) - SHALLOW  # layers of the finest level that count as deep
        if deep is None:
            x, kept = self._down(x, row, told, tokens)
            x = see("mid_block", self._middle(x, row, told, tokens))
            for level in range(len(self.up_blocks) - 1):
                x = self._up(level, range(len(finest.resnets)), x, kept, row, told, tokens, see)
            deep = self._up(len(self.up_blocks) - 1, range(rest), x, kept, row, told, tokens, see)
        else:
            kept = [x]
            for index in range(SHALLOW - 1):
                kept.append(self.down_blocks[0].layer(index, kept[-1], row, told, tokens))  # type: ignore[operator]
        layers = range(rest, len(finest.resnets))
        x = self._up(len(self.up_blocks) - 1, layers, deep, kept, row, told, tokens, see)
        return self.conv_out(F.silu(self.conv_norm_out(x))), deep

    def _down(self, x: Tensor, row: Tensor, told: Tensor | None, tokens: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """The way down: what comes out, and what is kept for the way up."""
        kept = [x]
        level: Any
        for level in self.down_blocks:
            for index in range(len(level.resnets)):
                x = level.layer(index, x, row, told, tokens)
                kept.append(x)
            if hasattr(level, "downsamplers"):
                x = level.downsamplers[0](x)
                kept.append(x)
        return x, kept

    def _middle(self, x: Tensor, row: Tensor, told: Tensor | None, tokens: Tensor | None) -> Tensor:
        middle: Any = self.mid_block
        return middle.resnets[1](middle.layer(0, x, row, told, tokens), row)

    def _up(
        self, level: int, layers: range, x: Tensor, kept: list[Tensor], row: Tensor, told: Tensor | None,
        tokens: Tensor | None, see: Look,
    ) -> Tensor:  # fmt: skip
        """Some layers of a level on the way up; after its last one comes the upsampler."""
        block: Any = self.up_blocks[level]
        for index in layers:
            x = block.layer(index, torch.cat([x, kept.pop()], 1), row, told, tokens)
            if len(block.attentions):
                x = see(f"up_blocks.{level}.attentions.{index}", x)
        if hasattr(block, "upsamplers") and layers.stop == len(block.resnets):
            x = see(f"up_blocks.{level}.upsamplers.0", block.upsamplers[0](x))
        return x


def _as_it_is(_: str, x: Tensor) -> Tensor:
    return x


def _number_parts(modules: Iterator[Any]) -> list[Any]:
    """Give each module its part of the rows in which their numbers lie side by side; returns the modules."""
    found, start = list(modules), 0
    for module in found:
        width = module.conv1.out_channels if isinstance(module, Residual) else module.proj_in.out_channels
        module.part = slice(start, start + width)
        start += width
    return found


def _down_levels(sizes: UNetSizes) -> Iterator[Level]:
    widths, time_width = sizes.channels, 4 * sizes.channels[0]
    for level, width in enumerate(widths):
        last = level == len(widths) - 1
        before = widths[max(level - 1, 0)]
        residuals = [Residual(before if i == 0 else width, width, time_width) for i in range(sizes.layers)]
        count = 0 if last else sizes.layers
        transformers = [Transformer(width, sizes.context_width, sizes.heads) for _ in range(count)]
        yield Level(residuals, transformers, None if last else Sample(width, False), False)


def _up_levels(sizes: UNetSizes) -> Iterator[Level]:
    widths, time_width = sizes.channels[::-1], 4 * sizes.channels[0]
    for level, width in enumerate(widths):
        last = level == len(widths) - 1
        before, below = widths[max(level - 1, 0)], widths[min(level + 1, len(widths) - 1)]
        # The last layer of a level reads what the level above it (on the way down) ended with.
        skips = [width] * sizes.layers + [below]
        inputs = [before] + [width] * sizes.layers
        residuals = [Residual(a + b, width, time_width) for a, b in zip(inputs, skips, strict=True)]
        count = 0 if level == 0 else sizes.layers + 1
        transformers = [Transformer(width, sizes.context_width, sizes.heads) for _ in range(count)]
        yield Level(residuals, transformers, None if last else Sample(width, True), True)


# From diffusers.

# What of diffusers' settings the network here is written for; the sizes are read.
_WRITTEN_FOR = {
    "act_fn": "silu", "norm_num_groups": _GROUPS, "norm_eps": 1e-5, "use_linear_projection": False,
    "flip_sin_to_cos": True, "freq_shift": 0, "transformer_layers_per_block": 1, "only_cross_attention": False,
    "resnet_time_scale_shift": "default", "class_embed_type": None, "addition_embed_type": None,
    "time_embedding_type": "positional", "center_input_sample": False, "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "num_attention_heads": None,
}  # fmt: skip
_PROCESSORS = ("AttnProcessor", "AttnProcessor2_0")


def fast_unet(unet: Any) -> FastUNet | None:
    """The same network over the same parameters, or None where that would not be the same network.

    That is: it is no plain `UNet2DConditionModel` of Zero123's kind, its attention was given other processors, or
    somebody listens in on a module or has replaced one (adapters, hooks).

    Args:
        unet: of diffusers; not changed.
    """
    if type(unet).__name__ != "UNet2DConditionModel" or "forward" in vars(unet):
        return None
    config = unet.config
    if any(config.get(key, value) != value for key, value in _WRITTEN_FOR.items()) or _watched(unet):
        return None
    if not isinstance(config.attention_head_dim, int) or config.layers_per_block + 1 < SHALLOW:
        return None
    sizes = UNetSizes(
        in_channels=config.in_channels, out_channels=config.out_channels, channels=tuple(config.block_out_channels),
        layers=config.layers_per_block, heads=config.attention_head_dim, context_width=config.cross_attention_dim,
        latent_size=config.sample_size,
    )  # fmt: skip
    with torch.device("meta"):
        made = FastUNet(sizes)
    ours = {name: tuple(tensor.shape) for name, tensor in made.named_parameters()}
    theirs = dict(unet.named_parameters())
    if ours != {name: tuple(tensor.shape) for name, tensor in theirs.items()}:
        return None
    for name, tensor in made.named_parameters():
        tensor.requires_grad_(theirs[name].requires_grad)  # else load_state_dict would set theirs by ours
    made.load_state_dict(theirs, strict=True, assign=True)  # parameters stay the objects that they are
    return made.eval()


def same_parameters(ours: FastUNet, unet: Any) -> bool:
    """Whether `fast_unet` made ``ours`` of this network as it is now."""
    theirs = dict(unet.named_parameters())
    mine = dict(ours.named_parameters())
    same = mine.keys() == theirs.keys() and all(mine[name] is theirs[name] for name in mine)
    return same and "forward" not in vars(unet) and not _watched(unet)


def _watched(unet: Any) -> bool:
    """Whether calls of a network's modules would do more, or other, than the modules say."""
    if any(type(one).__name__ not in _PROCESSORS for one in unet.attn_processors.values()):
        return True
    if any(getattr(level, name, None) for level in unet.up_blocks for name in ("s1", "s2", "b1", "b2")):  # FreeU
        return True
    return any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in unet.modules()
    )
