"""The edge of a cut-out at full size: its alpha from the colours along it, and colours free of the background."""

from __future__ import annotations

import numpy as np
from PIL import Image


def soft_edge(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Bring a small mask to the size of its picture, its edge placed by the colours there.

    In a narrow band along the edge a pixel's colour lies between the object's and the background's nearby; how far
    along is its alpha. Where the two colours are too alike to tell, the smoothed mask stays.

    Args:
        rgb: (H, W, 3) float, sRGB in [0, 1].
        mask: (h, w) bool, true for the object, of the same picture at its own size or smaller.

    Returns:
        (H, W) float32 alpha in [0, 1].
    """
    from scipy import ndimage

    height, width = rgb.shape[:2]
    scale = max(1.0, height / mask.shape[0], width / mask.shape[1])
    rough = resized(ndimage.gaussian_filter(mask.astype(np.float32), 0.6), height, width)
    reach = 1.2 * scale + 1
    inside = ndimage.distance_transform_edt(rough > 0.5)
    outside = ndimage.distance_transform_edt(rough <= 0.5)
    core, clear = inside > reach, outside > reach
    front = _spread(rgb, core + 0.02 * (inside > 1), 2 * reach)
    back = _spread(rgb, clear.astype(np.float32), 2 * reach)
    across = front - back
    length2 = (across**2).sum(-1)
    along = ((rgb - back) * across).sum(-1) / np.maximum(length2, 1e-6)
    trust = length2 / (length2 + 0.08**2)
    plain = np.clip(0.5 + (inside - outside) / (2 * scale), 0, 1)
    alpha = trust * np.clip((along - 0.08) / 0.84, 0, 1) + (1 - trust) * plain
    alpha = np.where(core, 1, np.where(clear, 0, alpha)).astype(np.float32)
    labels, _ = ndimage.label(alpha > 0.3)  # colours that come near the object's by chance leave specks beside it
    specks = np.bincount(labels.ravel()) < 6 * scale**2
    specks[0] = False
    return np.where(specks[labels], 0, alpha)


def _spread(rgb: np.ndarray, weight: np.ndarray, reach: float) -> np.ndarray:
    """Mean of ``rgb`` (H, W, 3) around each pixel, weighted by ``weight`` (H, W) and a bell ``reach`` px wide.

    A bell four times as wide answers where the narrow one finds nothing. Worked out at a size at which the bell is
    2 px wide, since the result is that smooth anyway.
    """
    from scipy import ndimage

    height, width = weight.shape
    scale = min(1.0, 2 / reach)
    small = (max(4, round(height * scale)), max(4, round(width * scale)))
    stack = resized(np.dstack([rgb * weight[..., None], weight]), *small)
    total = np.zeros_like(stack)
    for sigma, share in ((reach * scale, 1.0), (4 * reach * scale, 1e-3), (16 * reach * scale, 1e-6)):
        total += share * ndimage.gaussian_filter(stack, (sigma, sigma, 0), truncate=3, mode="nearest")
    mean = total[..., :3] / np.maximum(total[..., 3:], 1e-12)
    return resized(mean, height, width)


def clean_colors(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Take the background's share out of the colours of pixels that are part object, part background.

    A pixel shows alpha * object + (1 - alpha) * background. With the background known from beside it, that is solved
    for the object where alpha is large; where it is small the object's colour from beside it is taken.

    Args:
        rgb: (H, W, 3) float32, sRGB in [0, 1], the photo as it is.
        alpha: (H, W) float32 in [0, 1].

    Returns:
        (H, W, 3) float32, sRGB in [0, 1]: the object's colours along its edge, ``rgb`` elsewhere. ``rgb`` itself when
        there is no edge, or nothing opaque to learn the object's colours from.
    """
    edge = (alpha > 0) & (alpha < 0.98)
    if not edge.any() or not (alpha >= 0.98).any():
        return rgb
    reach = max(2.0, max(alpha.shape) / 200)
    front = _spread(rgb, (alpha >= 0.98).astype(np.float32), reach)
    back = _spread(rgb, (alpha <= 0.02).astype(np.float32), reach) if (alpha <= 0.02).any() else rgb
    a = alpha[..., None]
    solved = np.clip((rgb - (1 - a) * back) / np.maximum(a, 0.1), 0, 1)
    trust = np.clip((a - 0.3) / 0.5, 0, 1)
    return np.where(edge[..., None], trust * solved + (1 - trust) * front, rgb).astype(np.float32)


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a picture of numbers, by area when it gets smaller and bilinearly when larger.

    Args:
        image: (H, W) or (H, W, C) float, any range; each channel is resized on its own.
        height: of the result, px, at least 1.
        width: of the result, px, at least 1.

    Returns:
        (height, width) or (height, width, C) float32, within the range of ``image``.
    """
    planes = image[..., None] if image.ndim == 2 else image
    kernel = Image.Resampling.BOX if height < image.shape[0] else Image.Resampling.BILINEAR
    channels = [
        Image.fromarray(np.ascontiguousarray(planes[..., c], np.float32)).resize((width, height), kernel)
        for c in range(planes.shape[2])
    ]
    stacked = np.stack([np.asarray(c) for c in channels], -1)
    return stacked[..., 0] if image.ndim == 2 else stacked
