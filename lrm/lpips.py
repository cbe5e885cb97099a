"""LPIPS, the distance of pictures as a network of features sees it, from weights that the user has.

The weights are of two parts: an image classifier's convolutions (VGG16 or AlexNet, torchvision's files) and five rows
of factors, one for each depth (``vgg.pth`` or ``alex.pth`` of the lpips package). Both may be in one file, as the
package's own state dict has them, or in two files of one folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from multiview.checkpoint import CHECKPOINT_SUFFIXES, Dropped, read_checkpoint, rename_keys
from multiview.errors import ImageError, WeightsError

# Mean and spread of ImageNet's colours in [-1, 1], as the lpips package rounds them.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_TINY = 1e-20  # below a squared length: where a network sees nothing, its gradient is 0 and no NaN
_DEPTHS = 5


@dataclass(frozen=True)
class Tower:
    """A published stack of convolutions, by the indices that torchvision gives its layers.

    Attributes:
        name: of the network.
        convolutions: index of each.
        pooled: those that are preceded by a pooling.
        read: those whose output, after ReLU, is compared.
        pool: side of the pooling window; its stride is 2.
        first: stride and padding of the first convolution.
    """

    name: str
    convolutions: tuple[int, ...]
    pooled: tuple[int, ...]
    read: tuple[int, ...]
    pool: int
    first: tuple[int, int]


VGG16 = Tower("vgg", (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (5, 10, 17, 24), (2, 7, 14, 21, 28), 2, (1, 1))
ALEXNET = Tower("alex", (0, 3, 6, 8, 10), (3, 6), (0, 3, 6, 8, 10), 3, (4, 2))
TOWERS = (VGG16, ALEXNET)


@dataclass(frozen=True, eq=False)
class Lpips:
    """The distance, ready to be asked.

    Attributes:
        tower: which network.
        weights, biases: of its convolutions, in order.
        factors: (C,) for each depth.
    """

    tower: Tower
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    factors: Sequence[Tensor]

    def __call__(self, answer: Tensor, truth: Tensor) -> Tensor:
        """Compare pictures, one pair at a time.

        Args:
            answer, truth: (V, 3, H, W) in [0, 1], sRGB; at least 32 pixels a side.

        Returns:
            (V,) distances, 0 for equal pictures; differentiable in both.

        Raises:
            ImageError: shapes that differ, or pictures that are too small.
        """
        if answer.shape != truth.shape or answer.ndim != 4 or answer.shape[1] != 3 or min(answer.shape[2:]) < 32:
            raise ImageError(
                "LPIPS wants pictures of one shape (V, 3, H, W), at least 32 pixels a side, found "
                f"{tuple(answer.shape)} and {tuple(truth.shape)}."
            )
        pairs = zip(answer.split(1), truth.split(1), strict=True)
        return torch.cat([self._distance(torch.cat(pair)) for pair in pairs])

    def _distance(self, pair: Tensor) -> Tensor:
        """(1,) distance of the two pictures (2, 3, H, W)."""
        seen = self.features(pair)
        return self.between([each[:1] for each in seen], [each[1:] for each in seen])

    def between(self, answer: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
        """(V,) distances of pictures by their `features`, of V pictures each; differentiable in both."""
        total = answer[0].new_zeros(len(answer[0]))
        for ours, theirs, factor in zip(answer, truth, self.factors, strict=True):
            difference = (_unit(ours) - _unit(theirs)).square()
            total = total + (difference * factor.to(ours)[:, None, None]).sum(1).mean((1, 2))
        return total

    def features(self, pictures: Tensor) -> list[Tensor]:
        """What the network sees in pictures (B, 3, H, W) in [0, 1], at five depths: (B, C, h, w) each."""
        shift, scale = (torch.tensor(values).to(pictures)[:, None, None] for values in (_SHIFT, _SCALE))
        x, seen = (pictures * 2 - 1 - shift) / scale, []
        for index, weight, bias in zip(self.tower.convolutions, self.weights, self.biases, strict=True):
            if index in self.tower.pooled:
                x = F.max_pool2d(x, self.tower.pool, 2)
            stride, padding = self.tower.first if index == 0 else (1, weight.shape[-1] // 2)
            x = F.relu(F.conv2d(x, weight.to(x), bias.to(x), stride, padding))
            if index in self.tower.read:
                seen.append(x)
        return seen


def _unit(features: Tensor) -> Tensor:
    """Features (V, C, h, w) with each pixel's channels of unit length."""
    return features / (features.square().sum(1, keepdim=True) + _TINY).sqrt()


@lru_cache(maxsize=2)
def load_lpips(path: str | Path) -> Lpips:
    """Read the weights of LPIPS.

    Args:
        path: a file with all of them, or a folder with the files of both parts (.pth, .pt, .bin, .ckpt, .safetensors).

    Raises:
        WeightsError: nothing there, a part is missing, or the parts do not fit each other; it says what to get.
    """
    return lpips_of([read_checkpoint(file) for file in _files(Path(path))], str(path))


def _files(path: Path) -> Iterable[Path]:
    if path.is_file():
        return [path]
    found = sorted(file for file in path.glob("*") if file.suffix in CHECKPOINT_SUFFIXES) if path.is_dir() else []
    if not found:
        raise WeightsError(
            f"{path}: expected the weights of LPIPS, a file or a folder of files, found none. Put torchvision's "
            "vgg16-397923af.pth and the lpips package's weights/v0.1/vgg.pth into one folder."
        )
    return found


def _our_key(key: str) -> str | Dropped:
    """``conv.INDEX.weight``, ``conv.INDEX.bias`` and ``factor.DEPTH`` for the keys of either publisher."""
    if match := re.fullmatch(r"(?:features|(?:net\.)?slice\d)\.(\d+)\.(weight|bias)", key):
        return f"conv.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"lin(\d)\.model\.1\.weight", key):
        return f"factor.{match[1]}"
    return Dropped("the classifier's head, constants, or the factors a second time")


def lpips_of(parts: Sequence[Mapping[str, Tensor]], where: str) -> Lpips:
    """LPIPS from tensors under their published keys.

    Args:
        parts: what each file holds; together both parts.
        where: what to call them in an error.

    Raises:
        WeightsError: as `load_lpips`.
    """
    state: dict[str, Tensor] = {}
    for part in parts:
        read = rename_keys(part, _our_key, where)
        again = sorted(set(state) & set(read.state))
        if again:
            raise WeightsError(f"{where}: {again[0]} is in two files. Keep one network and its factors.")
        state |= read.state
    return _assembled(state, where)


def _assembled(state: Mapping[str, Tensor], where: str) -> Lpips:
    tower = next((t for t in TOWERS if all(f"conv.{i}.weight" in state for i in t.convolutions)), None)
    factors = [state[f"factor.{depth}"].reshape(-1) for depth in range(_DEPTHS) if f"factor.{depth}" in state]
    if tower is None or len(factors) != _DEPTHS or any(f"conv.{i}.bias" not in state for i in tower.convolutions):
        convolutions = sum(key.startswith("conv.") and key.endswith(".weight") for key in state)
        raise WeightsError(
            f"{where}: expected 13 convolutions of VGG16 or 5 of AlexNet and 5 rows of factors, found {convolutions} "
            f"and {len(factors)}. LPIPS wants both torchvision's network and the lpips package's lin weights."
        )
    weights = [state[f"conv.{i}.weight"] for i in tower.convolutions]
    width = 3
    for index, weight in zip(tower.convolutions, weights, strict=True):
        if weight.ndim != 4 or weight.shape[1] != width:
            raise WeightsError(f"{where}: features.{index} wants (C, {width}, k, k), found {tuple(weight.shape)}.")
        width = weight.shape[0]
    read = [weights[tower.convolutions.index(i)].shape[0] for i in tower.read]
    if read != [len(factor) for factor in factors]:
        raise WeightsError(
            f"{where}: the {tower.name} network has {read} channels where it is read, the factors have "
            f"{[len(factor) for factor in factors]}. They are of two different networks."
        )
    return Lpips(tower, weights, [state[f"conv.{i}.bias"] for i in tower.convolutions], factors)
