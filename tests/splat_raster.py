"""A small reference rasteriser of 3D Gaussian splats, and a reader of their files that knows nothing of ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multiview.cameras import Cameras

_LOW_PASS = 0.3  # square pixels added to every footprint, as the published renderer does


def read_splats(path: Path) -> dict[str, np.ndarray]:
    """Properties by name, each (N,) float32, of a binary PLY whose header and byte count must agree."""
    data = path.read_bytes()
    head, mark, body = data.partition(b"end_header\n")
    lines = head.decode("ascii").splitlines()
    assert mark and lines[:2] == ["ply", "format binary_little_endian 1.0"]
    (count,) = [int(line.split()[2]) for line in lines if line.startswith("element vertex ")]
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    assert sum(line.startswith("property") for line in lines) == len(names), "all are floats"
    assert len(body) == 4 * count * len(names)
    rows = np.frombuffer(body, "<f4").reshape(count, len(names))
    return dict(zip(names, rows.T, strict=True))


def decoded(rows: dict[str, np.ndarray]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centres (N, 3), covariances (N, 3, 3), opacities (N,) and sRGB colours (N, 3), as published code reads them."""
    columns = {name: torch.tensor(values.copy(), dtype=torch.float64) for name, values in rows.items()}
    centers = torch.stack([columns[name] for name in "xyz"], -1)
    scales = torch.stack([columns[f"scale_{k}"] for k in range(3)], -1).exp()
    w, x, y, z = torch.nn.functional.normalize(torch.stack([columns[f"rot_{k}"] for k in range(4)]), dim=0)
    turn = torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ],
        -1,
    ).reshape(-1, 3, 3)  # fmt: skip
    wide = turn * scales[:, None]
    colors = torch.stack([columns[f"f_dc_{k}"] for k in range(3)], -1) * 0.28209479177387814 + 0.5
    return centers, wide @ wide.mT, columns["opacity"].sigmoid(), colors


def render_splats(
    centers: Tensor, covariances: Tensor, opacities: Tensor, colors: Tensor, camera: Cameras, size: int
) -> Tensor:
    """(3, size, size) over white, of splats in the world frame: projected (EWA), sorted by depth, composited."""
    c2w, intrinsics = camera.c2w[0].double(), camera.intrinsics[0].double()
    turn = c2w[:3, :3] * torch.tensor([1.0, -1.0, -1.0])  # x right, y down, z forward
    local = (centers - c2w[:3, 3]) @ turn
    focal_x, focal_y = intrinsics[0, 0] * size, intrinsics[1, 1] * size
    z = local[:, 2]
    middle = torch.stack([focal_x * local[:, 0] / z, focal_y * local[:, 1] / z], -1) + intrinsics[:2, 2] * size
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [focal_x / z, zero, -focal_x * local[:, 0] / z**2, zero, focal_y / z, -focal_y * local[:, 1] / z**2], -1
    ).reshape(-1, 2, 3)
    flat = jacobian @ turn.mT @ covariances @ turn @ jacobian.mT + _LOW_PASS * torch.eye(2)
    reach = int((3 * flat.diagonal(dim1=1, dim2=2).amax().sqrt()).ceil())
    steps = torch.arange(-reach, reach + 1)
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(-1, 2)
    pixels = middle.floor().long()[:, None] + offsets
    away = pixels + 0.5 - middle[:, None]
    power = -0.5 * torch.einsum("nki,nij,nkj->nk", away, torch.linalg.inv(flat), away)
    alpha = (opacities[:, None] * power.exp()).clamp(max=0.99)
    splat = torch.arange(len(z))[:, None].expand_as(alpha)
    seen = (alpha > 1 / 255) & ((pixels >= 0) & (pixels < size)).all(-1) & (z[:, None] > 0)
    alpha, splat = alpha[seen], splat[seen]
    pixel = (pixels[..., 1] * size + pixels[..., 0])[seen]
    order = torch.from_numpy(np.lexsort((z[splat].numpy(), pixel.numpy())))
    alpha, splat, pixel = alpha[order], splat[order], pixel[order]
    light = torch.log1p(-alpha)
    before = torch.cumsum(light, 0) - light
    first = torch.ones_like(pixel, dtype=torch.bool)
    first[1:] = pixel[1:] != pixel[:-1]
    start = before[first][torch.cumsum(first.long(), 0) - 1]
    weight = alpha * (before - start).exp()
    image, opacity = torch.zeros(size * size, 3, dtype=torch.float64), torch.zeros(size * size, dtype=torch.float64)
    image.index_add_(0, pixel, weight[:, None] * colors[splat])
    opacity.index_add_(0, pixel, weight)
    return (image + 1 - opacity[:, None]).clamp(0, 1).T.reshape(3, size, size)
