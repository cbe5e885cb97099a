"""How different two pictures look to a network that the user has: LPIPS on VGG16, or the tokens of a DINO.

The files are found at run time (``loss.feature_weights`` in a recipe); nothing is fetched. Told by their names are

* VGG16 as torchvision saves it (``features.0.weight`` ...) with LPIPS' linear layers (``lin0.model.1.weight`` ...), in
  one file or two, or both in one as the package ``lpips`` saves its module (``net.slice1.0.weight`` ...);
* DINO and DINOv2, as ``torch.hub`` or transformers save them.

Source: Zhang et al. 2018 (arXiv 1801.03924), section 3, equation 1; Caron et al. 2021 (arXiv 2104.14294).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrm.lpips import VGG16, Lpips
from lrm.vit import Vit, VitConfig, dino_renames, normalize_imagenet
from multiview.checkpoint import fill_network, read_checkpoint
from multiview.errors import SettingsError, WeightsError
from multiview.keymap import KeyTable

_SMALLEST = VGG16.pool ** len(VGG16.pooled)  # pixels that four poolings leave something of
_HEAD_WIDTH = 64  # of every DINO
_UNUSED = ("classifier.", "scaling_layer.")


class LpipsError(nn.Module):
    """`lrm.lpips.Lpips` on VGG16 as a loss: the distance of patches smaller than metrics take, in the mean.

    Args:
        convolutions: (weight, bias) of the thirteen, in order.
        linear: five weights (1, C, 1, 1), how much each channel counts.
    """

    def __init__(self, convolutions: Sequence[tuple[Tensor, Tensor]], linear: Sequence[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(weight.float()) for weight, _ in convolutions)
        self.biases = nn.ParameterList(nn.Parameter(bias.float()) for _, bias in convolutions)
        self.linear = nn.ParameterList(nn.Parameter(weight.float().flatten()) for weight in linear)
        self.requires_grad_(False)

    def forward(self, made: Tensor, truth: Tensor) -> Tensor:
        """Mean over pictures (T, 3, H, W) in [0, 1]; gradients flow into ``made``.

        Raises:
            SettingsError: pictures that are too small.
        """
        if min(made.shape[-2:]) < _SMALLEST:
            raise SettingsError(
                f"LPIPS wants pictures of {_SMALLEST} px or more, found {made.shape[-1]} x {made.shape[-2]} px. "
                "Raise sample.patch_size, or set loss.features=0."
            )
        lpips = Lpips(VGG16, list(self.weights), list(self.biases), list(self.linear))
        with torch.no_grad():
            wanted = lpips.features(truth)
        return lpips.between(lpips.features(made), wanted).mean()


class TokenError(nn.Module):
    """One less the cosine between the tokens of two pictures."""

    def __init__(self, encoder: Vit) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)

    def forward(self, made: Tensor, truth: Tensor) -> Tensor:
        """Mean over tokens of pictures (T, 3, H, W) in [0, 1]; gradients flow into ``made``."""
        with torch.no_grad():
            wanted = self.encoder(normalize_imagenet(truth))
        return 1 - F.cosine_similarity(self.encoder(normalize_imagenet(made)), wanted, dim=-1).mean()


def load_features(paths: Sequence[str]) -> nn.Module:
    """The feature error whose weights a user has.

    Args:
        paths: one or two files, see above.

    Returns:
        A module that takes ``made`` and ``truth``, (T, 3, P, P) in [0, 1], and gives one number; without gradients of
        its own.

    Raises:
        WeightsError: a file is not there or damaged; it is none of these networks; or a tensor has the wrong shape.
    """
    state: dict[str, Tensor] = {}
    for path in paths:
        state |= read_checkpoint(path)
    where = " and ".join(str(path) for path in paths)
    if any(_convolution(key) is not None for key in state):
        return _lpips(state, where)
    plain = {_without_front(key): tensor for key, tensor in state.items()}
    if {"cls_token", "embeddings.cls_token"} & plain.keys():
        return TokenError(_dino(plain, where))
    raise WeightsError(
        f"{where}: expected VGG16 with LPIPS' linear layers, or a DINO; found {len(state)} tensors of another network, "
        f"first {min(state, default='none')}."
    )


def _convolution(key: str) -> tuple[int, str] | None:
    """Number and kind of a tensor of VGG16's, by torchvision's name or that of the package lpips; None for another."""
    match = re.fullmatch(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias)", key)
    return None if match is None else (int(match[1]), match[2])


def _linear(key: str) -> int | None:
    match = re.fullmatch(r"(?:lin|lins\.)(\d)\.model\.\d\.weight", key)
    return None if match is None else int(match[1])


def _lpips(state: Mapping[str, Tensor], where: str) -> LpipsError:
    """Sort the tensors by their names, strictly."""
    found = {place: tensor for key, tensor in state.items() if (place := _convolution(key)) is not None}
    linear = {depth: tensor for key, tensor in state.items() if (depth := _linear(key)) is not None}
    known = {key for key in state if _convolution(key) or _linear(key) is not None or key.startswith(_UNUSED)}
    numbers = VGG16.convolutions
    missing = [f"features.{n}.{kind}" for n in numbers for kind in ("weight", "bias") if (n, kind) not in found]
    missing += [f"lin{k}.model.1.weight" for k in range(len(VGG16.read)) if k not in linear]
    extra = sorted(set(state) - known) + [f"features.{n}" for n, _ in found if n not in numbers]
    if missing or extra:
        raise WeightsError(
            f"{where}: expected VGG16's 13 convolutions and LPIPS' 5 linear layers, {len(missing)} tensors are missing "
            f"and {len(extra)} unknown, first {(missing or extra)[0]}. The linear layers may be a second file: "
            "loss.feature_weights=[vgg16.pth, lpips.pth]."
        )
    _check_shapes(found, linear, where)
    convolutions = [(found[n, "weight"], found[n, "bias"]) for n in numbers]
    return LpipsError(convolutions, [linear[k] for k in range(len(VGG16.read))])


def _check_shapes(found: Mapping[tuple[int, str], Tensor], linear: Mapping[int, Tensor], where: str) -> None:
    """Raise WeightsError unless every layer takes what the one before gives."""
    width = 3
    for number in VGG16.convolutions:
        weight, bias = found[number, "weight"], found[number, "bias"]
        if weight.ndim != 4 or weight.shape[1:] != (width, 3, 3) or bias.shape != weight.shape[:1]:
            raise WeightsError(
                f"{where}: features.{number}.weight has shape {tuple(weight.shape)} and its bias "
                f"{tuple(bias.shape)}, expected (N, {width}, 3, 3) and (N,)."
            )
        width = len(weight)
        if number in VGG16.read and linear[k := VGG16.read.index(number)].numel() != width:
            raise WeightsError(
                f"{where}: lin{k}.model.1.weight has shape {tuple(linear[k].shape)}, expected (1, {width}, 1, 1). It "
                "may belong to another network than VGG16."
            )


# DINO


def _without_front(key: str) -> str:
    """A name without what training programs put before it."""
    for front in ("module.", "teacher.", "model.", "backbone.", "dino.", "vit."):
        key = key.removeprefix(front)
    return key


_QKV = tuple(f"vit.blocks.*.attention.{part}" for part in ("query", "key", "value"))
_HUB: tuple[tuple[str, str | tuple[str, ...]], ...] = (
    ("cls_token", "vit.cls_token"), ("pos_embed", "vit.positions"), ("register_tokens", "vit.registers"),
    ("patch_embed.proj", "vit.patches"), ("norm", "vit.norm"),
    ("blocks.*.norm1", "vit.blocks.*.norm_attention"), ("blocks.*.norm2", "vit.blocks.*.norm_mlp"),
    ("blocks.*.attn.qkv", _QKV), ("blocks.*.attn.proj", "vit.blocks.*.attention.out"),
    ("blocks.*.ls1.gamma", "vit.blocks.*.scale_attention"), ("blocks.*.ls2.gamma", "vit.blocks.*.scale_mlp"),
    ("blocks.*.mlp.fc1", "vit.blocks.*.mlp.expand"), ("blocks.*.mlp.fc2", "vit.blocks.*.mlp.shrink"),
)  # fmt: skip
_TABLE = KeyTable(
    renames=(*_HUB, *((theirs.removeprefix("dino."), ours) for theirs, ours in dino_renames("dino", "vit"))),
    dropped={
        "mask_token": "only training masks patches", "embeddings.mask_token": "only training masks patches",
        "pooler.**": "the pooler is never read", "head.**": "of another task",
    },
)  # fmt: skip


class _Holder(nn.Module):
    """Gives the encoder the name that key tables know."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.vit = Vit(config)


def _dino(state: Mapping[str, Tensor], where: str) -> Vit:
    """The encoder around tensors, its sizes read from them."""
    config = _vit_sizes(state, where)
    return fill_network(lambda: _Holder(config), _TABLE.part(state), where, key_map=_TABLE).vit


def _vit_sizes(state: Mapping[str, Tensor], where: str) -> VitConfig:
    def first(*names: str) -> Tensor:
        for name in names:
            if name in state:
                return state[name]
        raise WeightsError(f"{where}: expected a DINO with {names[0]} or {names[-1]}, found none.")

    token = first("cls_token", "embeddings.cls_token")
    table = first("pos_embed", "embeddings.position_embeddings")
    patches = first("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")
    wide = first("blocks.0.mlp.fc1.weight", "encoder.layer.0.intermediate.dense.weight", "layers.0.mlp.fc1.weight")
    blocks = {int(m[1]) for key in state if (m := re.match(r"(?:blocks|encoder\.layer|layers)\.(\d+)\.", key))}
    width, side = token.shape[-1], round((table.shape[1] - 1) ** 0.5) if table.ndim == 3 else 0
    if patches.ndim != 4 or side * side + 1 != table.shape[1] or (width % _HEAD_WIDTH and width > _HEAD_WIDTH):
        raise WeightsError(
            f"{where}: expected a class token and a square table of positions, and a width that is a multiple of "
            f"{_HEAD_WIDTH}; found positions {tuple(table.shape)}, patches {tuple(patches.shape)}, width {width}."
        )
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    return VitConfig(
        patch_size=patches.shape[-1], table_side=side, width=width, layers=len(blocks),
        heads=max(1, width // _HEAD_WIDTH), mlp_width=wide.shape[0], norm_eps=1e-6, registers=registers,
        layer_scale="blocks.0.ls1.gamma" in state, resampling="antialias" if registers else "size",
    )  # fmt: skip
