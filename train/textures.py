"""Base colour pictures of an object, and how renderers and point samplers look them up, on any device.

A `Skin` says for every vertex which picture its surface shows and where. All pictures of an object, with their
halvings, lie in one list of texels, so that hits on any mixture of materials are looked up together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from multiview.color import linear_from_srgb, srgb_from_linear

Wrap = Literal["repeat", "mirror", "clamp"]
_WRAPS = get_args(Wrap)
_STEEPEST = (
    0.25  # cosine below which a sample's texels stop growing: blur is even, and would smear along the other axis
)


@dataclass(frozen=True, eq=False)
class Texture:
    """One picture.

    Attributes:
        pixels: (H, W, 3) uint8 sRGB, row 0 at the top.
        wrap: what lies beyond the picture along u and along v.
    """

    pixels: NDArray[np.uint8]
    wrap: tuple[Wrap, Wrap] = ("repeat", "repeat")


@dataclass(frozen=True, eq=False)
class Skin:
    """The pictures of an object and where its vertices lie in them; seams are split, so that a vertex has one place.

    A textured surface shows picture x tint, worked in linear light and opaque: alpha of texels is not looked at, be
    the material masked or see-through.

    Attributes:
        uvs: (N, 2) float32, u right, v down, (0, 0) the picture's top left corner; 0 where there is no picture.
        slots: (N,) int32 index into ``textures``, -1 where vertex colours alone are shown; the same for
            all corners of a face.
        tints: (N, 3) float32 linear light in [0, 1]: base colour factor x vertex colour.
        textures: the pictures.
    """

    uvs: NDArray[np.float32]
    slots: NDArray[np.int32]
    tints: NDArray[np.float32]
    textures: tuple[Texture, ...]

    def select(self, vertices: NDArray[np.integer]) -> Skin:
        """The skin of some of the vertices, given by their numbers, in that order."""
        return Skin(self.uvs[vertices], self.slots[vertices], self.tints[vertices], self.textures)

    def recolored(self, table: NDArray[np.uint8]) -> Skin:
        """Texels and tints through a table (3, 256) of display values.

        As a product goes through the table factor by factor, this is exact where the tint is white, and for gamma
        curves else right to a few levels of 255.
        """
        channels = range(3)
        textures = tuple(
            replace(texture, pixels=np.stack([table[c][texture.pixels[..., c]] for c in channels], -1))
            for texture in self.textures
        )
        display = srgb_from_linear(self.tints.astype(np.float64)) * 255
        moved = np.stack([np.interp(display[:, c], np.arange(256), table[c]) for c in channels], -1)
        return replace(self, textures=textures, tints=linear_from_srgb(moved / 255).astype(np.float32))


class SkinPainter:
    """Colours of hits on a skinned mesh.

    Args:
        skin: of the mesh.
        vertices: (N, 3), any unit of length; sample areas given to `paint` are in its square.
        faces: (F, 3).
        device: where hits are painted.
        halvings: make smaller versions of the pictures, for samples that cover many texels.
    """

    def __init__(
        self,
        skin: Skin,
        vertices: ArrayLike,
        faces: ArrayLike,
        device: str | torch.device = "cpu",
        *,
        halvings: bool = True,
    ) -> None:
        triangles = np.asarray(faces, np.int64)
        slots = skin.slots[triangles[:, 0]]
        self.stack = TextureStack(skin.textures, device, halvings=halvings)
        self.faces = torch.as_tensor(triangles, device=device)
        self.slots = torch.as_tensor(slots.astype(np.int64), device=device)
        self.uvs = torch.as_tensor(skin.uvs, device=device)
        self.density = torch.as_tensor(_texel_density(skin, slots, np.asarray(vertices), triangles), device=device)
        # Most skins are white, and the way through linear light and back costs more than the look-up.
        white = bool((skin.tints == 1).all())
        self.tints = None if white else torch.as_tensor(skin.tints, device=device)

    def paint(self, colors: Tensor, face: Tensor, weights: Tensor, area: Tensor | None = None) -> Tensor:
        """Colours of hits, from the pictures where the surface has one.

        Args:
            colors: (H, 3) float, sRGB 0 to 255: what the vertex colours say.
            face: (H,) which face is hit.
            weights: (H, 3) barycentric weights of its corners.
            area: (H,) of the surface that a sample stands for, see `sample_area`; unless given, the full picture is
                looked up.

        Returns:
            (H, 3) as ``colors``; rows on faces without a picture are theirs, bit for bit.
        """
        slot = self.slots[face]
        on = (slot >= 0).nonzero()[:, 0]
        corners, shares = self.faces[face[on]], weights[on, :, None].float()
        uv = (self.uvs[corners] * shares).sum(1)
        covered = None if area is None else self.density[face[on]] * area[on].float()
        found = self.stack.look_up(slot[on], uv, covered)
        if self.tints is not None:
            found = _tinted(found, (self.tints[corners] * shares).sum(1))
        painted = colors.clone()
        painted[on] = found.to(colors.dtype)
        return painted


def sample_area(step: Tensor | float, depth: Tensor, along: Tensor) -> Tensor:
    """Area (H,) of the surface that a picture's sample stands for.

    Args:
        step: area of a sample on the plane at depth 1.
        depth: (H,) along the camera's forward axis.
        along: (H,) unit normal of the surface times the ray whose forward part is 1; either sign.
    """
    return step * depth**2 / along.abs().clamp(min=_STEEPEST)


class TextureStack:
    """Pictures and their halvings as one list of texels.

    Args:
        textures: the pictures, at least one.
        device: where they are looked up.
        halvings: with smaller versions, each texel the mean of the display values that it covers.
    """

    def __init__(
        self, textures: Sequence[Texture], device: str | torch.device = "cpu", *, halvings: bool = True
    ) -> None:
        versions = [_halvings(t.pixels) if halvings else [t.pixels] for t in textures]
        depth = max(len(each) for each in versions)
        lengths = [[v.shape[0] * v.shape[1] for v in each] for each in versions]
        ends = np.cumsum([length for each in lengths for length in each])
        starts, sizes = np.zeros((len(textures), depth), np.int64), np.ones((len(textures), depth, 2), np.int64)
        begin = iter([0, *ends.tolist()])
        for index, each in enumerate(versions):
            for level, pixels in enumerate(each):
                starts[index, level], sizes[index, level] = next(begin), (pixels.shape[1], pixels.shape[0])
        codes = np.array([[_WRAPS.index(w) for w in t.wrap] for t in textures], np.int64)
        self.texels = torch.as_tensor(np.concatenate([v.reshape(-1, 3) for each in versions for v in each])).to(device)
        self.starts, self.sizes, self.wraps = (torch.as_tensor(x).to(device) for x in (starts, sizes, codes))
        self.last = torch.as_tensor([len(each) - 1 for each in versions], device=device)

    def look_up(self, slot: Tensor, uv: Tensor, covered: Tensor | None = None) -> Tensor:
        """Colours at places in pictures, bilinear, and linear between halvings.

        Args:
            slot: (H,) int64 which picture.
            uv: (H, 2) float32, u right, v down.
            covered: (H,) texels of the full picture that a sample covers; up to 1 unless given.

        Returns:
            (H, 3) float32 sRGB, 0 to 255.
        """
        if covered is None:
            return self._bilinear(slot, torch.zeros_like(slot), uv)
        last = self.last[slot]
        level = torch.minimum(covered.clamp(min=1).log2() / 2, last.float())
        full = level.long()
        fine = self._bilinear(slot, full, uv)
        coarse = self._bilinear(slot, torch.minimum(full + 1, last), uv)
        return fine + (level - full)[:, None] * (coarse - fine)

    def _bilinear(self, slot: Tensor, level: Tensor, uv: Tensor) -> Tensor:
        """(H, 3) in one version of the picture."""
        size, wrap = self.sizes[slot, level], self.wraps[slot]
        place = uv * size - 0.5
        low = place.floor()
        share = place - low
        low_index = low.long()
        near, far = _wrapped(low_index, size, wrap), _wrapped(low_index + 1, size, wrap)
        start, width = self.starts[slot, level], size[:, 0]

        def row(y: Tensor) -> Tensor:
            left, right = (self.texels[start + y * width + x[:, 0]].float() for x in (near, far))
            return left + share[:, :1] * (right - left)

        top, bottom = row(near[:, 1]), row(far[:, 1])
        return top + share[:, 1:] * (bottom - top)


def _wrapped(index: Tensor, size: Tensor, wrap: Tensor) -> Tensor:
    """Texel numbers (H, 2) brought into 0 to ``size`` - 1 by the rule of `_WRAPS` for each axis."""
    twice = index % (2 * size)
    mirrored = torch.minimum(twice, 2 * size - 1 - twice)
    clamped = torch.minimum(index.clamp(min=0), size - 1)
    return torch.where(wrap == 0, index % size, torch.where(wrap == 1, mirrored, clamped))


def _halvings(pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """A picture, and half of it, and half of that, down to one texel, each averaged from the full one."""
    from PIL import Image

    full, versions = Image.fromarray(pixels), [pixels]
    width, height = full.size
    while width > 1 or height > 1:
        width, height = max(width // 2, 1), max(height // 2, 1)
        versions.append(np.asarray(full.resize((width, height), Image.Resampling.BOX)))
    return versions


def _texel_density(
    skin: Skin, slots: NDArray[np.int32], vertices: NDArray[np.floating], faces: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(F,) texels to an area of 1 of each face; 0 where a face has no area or its picture's place has none."""
    sides = np.array([t.pixels.shape[1::-1] for t in skin.textures], np.float64)[slots.clip(0)]
    uv = skin.uvs[faces].astype(np.float64) * sides[:, None]
    a, b = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    corners = vertices[faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    texels = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
    return np.divide(texels, area, out=np.zeros_like(area), where=area > 1e-12).astype(np.float32)


def _tinted(colors: Tensor, tints: Tensor) -> Tensor:
    """sRGB colours (H, 3), 0 to 255, times linear ``tints`` (H, 3): `multiview.color`'s curve, in torch."""
    display = colors / 255
    linear = torch.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4) * tints
    curved = 1.055 * linear ** (1 / 2.4) - 0.055
    return 255 * torch.where(linear <= 0.04045 / 12.92, linear * 12.92, curved).clamp(0, 1)
