"""The image encoders of the published models: DINO, and DINOv2 with registers, in one vision transformer.

The learned table of positions belongs to one picture size and is resampled to every other. The references do that by
three different rules, and which one moves the planes by up to a percent, so the rules are written out here.

Sources: Dosovitskiy et al. 2021 (arXiv 2010.11929); DINO, Caron et al. 2021 (arXiv 2104.14294); DINOv2, Oquab et al.
2023 (arXiv 2304.07193); registers, Darcet et al. 2023 (arXiv 2309.16588); modulation, Peebles and Xie 2023
(arXiv 2212.09748).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from multiview.errors import ImageError

from .blocks import Attention, GeluMlp, Linear

Resampling = Literal["legacy", "size", "antialias"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class VitConfig:
    """Sizes of a vision transformer; the defaults are DINO ViT-B/16.

    Attributes:
        patch_size: side of a patch in pixels.
        table_side: n; the table of positions is CLS and n x n patches.
        width, layers, heads, mlp_width: of the transformer.
        norm_eps: of every layer norm.
        registers: extra tokens that take part in attention and are dropped at the end.
        layer_scale: whether each branch is scaled by a learned vector.
        resampling: rule for the table of positions, see `resample_positions`.
        condition_width: of what modulates the norms of every block, or None.
    """

    patch_size: int = 16
    table_side: int = 14
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    norm_eps: float = 1e-12
    registers: int = 0
    layer_scale: bool = False
    resampling: Resampling = "legacy"
    condition_width: int | None = None


class PatchEmbedding(nn.Conv2d):
    """Cut a picture into patches and map each to a token.

    A convolution whose stride is its kernel, written as the matrix product that it is, in fp32.
    """

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__(3, width, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, h * w, D), row-major; pixels beyond whole patches are left out."""
        size = self.kernel_size[0]
        rows, columns = images.shape[2] // size, images.shape[3] // size
        whole = images[:, :, : rows * size, : columns * size].to(self.weight.dtype)
        patches = whole.unflatten(3, (columns, size)).unflatten(2, (rows, size)).permute(0, 2, 4, 1, 3, 5)
        return nn.functional.linear(patches.flatten(3).flatten(1, 2), self.weight.flatten(1), self.bias)


class VitBlock(nn.Module):
    """x += attention(norm x), x += MLP(norm x); branches scaled and norms modulated where the config says so.

    The modulation has no gates: its linear layer gives shift and scale for the first norm, then for the second.
    """

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        c = config
        self.norm_attention = nn.LayerNorm(c.width, c.norm_eps)
        self.attention = Attention(c.width, c.heads, bias=True, out_bias=True)
        self.norm_mlp = nn.LayerNorm(c.width, c.norm_eps)
        self.mlp = GeluMlp(c.width, c.mlp_width)
        scales = [nn.Parameter(torch.ones(c.width)) if c.layer_scale else None for _ in range(2)]
        self.scale_attention, self.scale_mlp = scales
        self.modulation = None if c.condition_width is None else Linear(c.condition_width, 4 * c.width)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Tokens (B, L, D), condition (B, condition_width) or None → (B, L, D)."""
        first, second = self.norm_attention, self.norm_mlp
        if self.modulation is None or condition is None:
            x = x + _scaled(self.attention(first(x)), self.scale_attention)
            return x + _scaled(self.mlp(second(x)), self.scale_mlp)
        numbers = self.modulation(nn.functional.silu(condition)).float()
        shift1, scale1, shift2, scale2 = numbers[:, None].chunk(4, -1)
        x = x + _scaled(self.attention(first(x) * (1 + scale1) + shift1), self.scale_attention)
        return x + _scaled(self.mlp(second(x) * (1 + scale2) + shift2), self.scale_mlp)


def _scaled(branch: Tensor, scale: Tensor | None) -> Tensor:
    return branch if scale is None else branch * scale


class Vit(nn.Module):
    """Pictures → tokens; see the config for the variants."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        c = self.config = config
        self.patches = PatchEmbedding(c.patch_size, c.width)
        self.cls_token = nn.Parameter(torch.randn(1, 1, c.width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, 1 + c.table_side**2, c.width) * 0.02)
        self.registers = nn.Parameter(torch.randn(1, c.registers, c.width) * 0.02) if c.registers else None
        self.blocks = nn.ModuleList(VitBlock(c) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width, c.norm_eps)

    def forward(self, images: Tensor, condition: Tensor | None = None) -> Tensor:
        """Encode pictures.

        Args:
            images: (B, 3, H, W) float, as the model wants them (normalised or not is the caller's matter).
            condition: (B, condition_width) when the config has one.

        Returns:
            (B, 1 + h * w, D) float32 after the last norm: CLS, then patches row-major; registers are left out.

        Raises:
            ImageError: the picture is smaller than a patch.
        """
        rows, columns = (side // self.config.patch_size for side in images.shape[2:])
        if min(rows, columns) < 1:
            raise ImageError(
                f"the encoder cuts pictures into patches of {self.config.patch_size} pixels, found one of "
                f"{images.shape[3]} x {images.shape[2]}. Give a larger picture."
            )
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), self.patches(images)], 1)
        x = x + resample_positions(self.positions, rows, columns, self.config.resampling)
        count = 0
        if self.registers is not None:
            # Registers join after the positions: they have none.
            count = self.registers.shape[1]
            x = torch.cat([x[:, :1], self.registers.expand(len(x), -1, -1), x[:, 1:]], 1)
        for block in self.blocks:
            x = block(x, condition)
        x = self.norm(x)
        return torch.cat([x[:, :1], x[:, 1 + count :]], 1) if count else x


def normalize_imagenet(images: Tensor) -> Tensor:
    """(..., 3, H, W) in [0, 1] → the same with ImageNet's mean taken away and divided by its standard deviation."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


def resample_positions(table: Tensor, rows: int, columns: int, rule: Resampling) -> Tensor:
    """Resample a table of positions to another grid of patches, bicubically.

    Args:
        table: (1, 1 + n * n, D): CLS, then n x n patches row-major.
        rows, columns: patches of the picture, > 0.
        rule: ``legacy``: target i samples (i + 0.5) * n / (rows + 0.1) - 0.5, as transformers up to 4.44 and the
            references of TripoSR and InstantMesh do. ``size``: (i + 0.5) * n / rows - 0.5, as later versions do.
            ``antialias``: as ``size``, the kernel widened when the grid shrinks, as DINOv2 with registers does.

    Returns:
        (1, 1 + rows * columns, D); CLS is untouched, and the table itself comes back when the grid is the same.

    Source:
        Keys 1981; a = -0.75 for the plain rules and -0.5 with antialias, as torch has them (tests/parity/test_vit.py).
    """
    side = round((table.shape[1] - 1) ** 0.5)
    if rows == columns == side:
        return table
    grid = table[:, 1:].unflatten(1, (side, side)).float()
    vertical, horizontal = (_cubic_matrix(side, n, rule).float().to(grid.device) for n in (rows, columns))
    resampled = torch.einsum("ri,cj,bijd->brcd", vertical, horizontal, grid).flatten(1, 2)
    return torch.cat([table[:, :1], resampled.to(table.dtype)], 1)


def _cubic_matrix(source: int, target: int, rule: Resampling) -> Tensor:
    """(target, source) float64 weights of bicubic resampling along one axis; each row sums to 1."""
    step = source / (target + 0.1) if rule == "legacy" else source / target
    centers = (torch.arange(target, dtype=torch.float64) + 0.5) * step - 0.5
    if rule == "antialias":
        # The kernel is as wide as the step; what falls off the table is left out and the rest made to sum to 1.
        distance = torch.arange(source, dtype=torch.float64) - centers[:, None]
        weights = _cubic_kernel(distance / max(step, 1.0), -0.5)
        return weights / weights.sum(1, keepdim=True)
    taps = centers.floor()[:, None] + torch.arange(-1, 3)
    weights = _cubic_kernel(taps - centers[:, None], -0.75)
    # Taps off the table read its border.
    matrix = torch.zeros(target, source, dtype=torch.float64)
    return matrix.scatter_add_(1, taps.long().clamp(0, source - 1), weights)


def _cubic_kernel(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel, 0 from a distance of 2 on."""
    x = distance.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def dino_renames(published: str, ours: str) -> tuple[tuple[str, str], ...]:
    """DINO's names below ``published``, as transformers writes them up to 4.57, and as 5 does."""
    old, new, block = f"{published}.encoder.layer.*", f"{published}.layers.*", f"{ours}.blocks.*"
    parts = (
        ("attention.attention.query", "attention.q_proj", "attention.query"),
        ("attention.attention.key", "attention.k_proj", "attention.key"),
        ("attention.attention.value", "attention.v_proj", "attention.value"),
        ("attention.output.dense", "attention.o_proj", "attention.out"),
        ("intermediate.dense", "mlp.fc1", "mlp.expand"),
        ("output.dense", "mlp.fc2", "mlp.shrink"),
        ("layernorm_before", "layernorm_before", "norm_attention"),
        ("layernorm_after", "layernorm_after", "norm_mlp"),
    )
    return (
        (f"{published}.embeddings.cls_token", f"{ours}.cls_token"),
        (f"{published}.embeddings.position_embeddings", f"{ours}.positions"),
        (f"{published}.embeddings.patch_embeddings.projection", f"{ours}.patches"),
        (f"{published}.layernorm", f"{ours}.norm"),
        *((f"{old}.{a}", f"{block}.{c}") for a, _, c in parts),
        *((f"{new}.{b}", f"{block}.{c}") for _, b, c in parts),
    )
