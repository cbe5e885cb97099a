"""The remover by colours: finds the object of a photo without learned weights, with nothing but the photo.

All but the last step sees it small, at ``WORK_SIDE`` px:

    photo ─► small Lab picture ─► background model ─► graph cut ─► pieces, holes ─► soft edge at full size
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .matting import resized, soft_edge

WORK_SIDE = 320  # px, longer side of that picture; no photo is enlarged
_SMOOTH_FLOOR = (1.0, 0.7, 0.7)  # Lab units that 8 bits and JPEG blur together; a model is never surer than this
_SURE = 12.0  # squared distance, in units of noise, below which a pixel is background


def alpha_by_colors(rgb: np.ndarray) -> np.ndarray:
    """Find the object of a picture by its colours alone; the same picture always gives the same alpha.

    Args:
        rgb: (H, W, 3) float, sRGB in [0, 1]; of any size.

    Returns:
        (H, W) float32 alpha in [0, 1]; 0 everywhere when no object is found.

    Source:
        The cut is that of Rother et al. 2004 (GrabCut); the model for a smooth background and the treatment of
        shadows are our own.
    """
    height, width = rgb.shape[:2]
    scale = min(1.0, WORK_SIDE / max(height, width))
    lab = _lab(resized(rgb, max(8, round(height * scale)), max(8, round(width * scale))))
    smooth = _smooth_background(lab)
    if smooth is None:
        mask = _filled(_kept_pieces(_grab_cut(lab)), None)
    else:
        bleed_px = 12 * scale if _has_jpeg_blocks(rgb) else 0.0
        mask = _filled(_kept_pieces(_cut_from_smooth(lab, smooth, bleed_px)), smooth.distance2(lab))
    return soft_edge(rgb, mask)


def _lab(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab (D65) of sRGB in [0, 1]; (..., 3). L in [0, 100]."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def _ring(shape: tuple[int, ...], share: float) -> np.ndarray:
    """(H, W) bool: the outermost pixels, ``share`` of the shorter side wide, at least 2 px."""
    n = max(2, round(share * min(shape)))
    ring = np.ones(shape, bool)
    ring[n:-n, n:-n] = False
    return ring


def _polynomials(height: int, width: int, degree: int) -> np.ndarray:
    """(H, W, T): all products x^i y^j with i + j <= degree; x and y run over [-1, 1]."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return np.stack([x**i * y**j for i in range(degree + 1) for j in range(degree + 1 - i)], -1)


def _robust_fit(basis: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit values (N, 3) by basis (N, T), letting a minority lie anywhere; coefficients (T, 3) and scale (3,).

    Iteratively reweighted least squares: first the weights of least absolute deviations, which a far minority cannot
    pull, then Tukey's, which forget it.
    """
    weights = np.ones(len(values))
    scale = np.array(_SMOOTH_FLOOR)
    for step in range(16):
        root = np.sqrt(weights)[:, None]
        coefficients = np.linalg.lstsq(basis * root, values * root, rcond=None)[0]
        residual = np.abs(values - basis @ coefficients)
        if step < 10:
            weights = 1 / np.maximum(np.linalg.norm(residual, axis=1), 0.5)
        else:
            scale = np.maximum(1.4826 * np.median(residual, 0), _SMOOTH_FLOOR)
            u2 = ((residual / scale) ** 2).sum(1) / 4.0**2
            weights = np.clip(1 - u2, 0, 1) ** 2 + 1e-6
    return coefficients, scale


@dataclass(frozen=True)
class _Smooth:
    """A background that is a smooth surface of colour: Lab (H, W, 3) of each pixel, and its noise (3,)."""

    surface: np.ndarray
    noise: np.ndarray

    def distance2(self, lab: np.ndarray, bleed_px: float = 0.0) -> np.ndarray:
        """(H, W) squared distance of each pixel of ``lab`` (H, W, 3) from the surface, in units of its noise.

        JPEG stores colour coarsely, so that it bleeds up to ``bleed_px`` out of the object, in proportion to the
        object's own; so much of a pixel's deviation in a and b is forgiven.
        """
        from scipy import ndimage

        deviation = np.abs(lab - self.surface)
        if bleed_px > 0:
            for c in (1, 2):
                nearby = ndimage.maximum_filter(deviation[..., c], 2 * round(bleed_px) + 1)
                deviation[..., c] = np.maximum(deviation[..., c] - 0.12 * nearby, 0)
        return ((deviation / self.noise) ** 2).sum(-1)


def _smooth_background(lab: np.ndarray) -> _Smooth | None:
    """Explain the background of ``lab`` (H, W, 3) as a smooth surface; None when it is none: a street, a wood."""
    height, width = lab.shape[:2]
    ring = _ring((height, width), 0.03)
    basis = _polynomials(height, width, 2)
    coefficients, noise = _robust_fit(basis[ring], lab[ring])
    model = _Smooth(basis @ coefficients, noise)
    if (model.distance2(lab)[ring] < 16).mean() < 0.6 or noise[0] > 6 or noise[1:].max() > 4:
        return None
    basis = _polynomials(height, width, 4)
    for _ in range(3):  # what is joined to the border and fits belongs to it, and shows more of the surface
        sure = _joined(model.distance2(lab) < _SURE, ring)
        surface = basis @ np.linalg.lstsq(basis[sure], lab[sure], rcond=None)[0]
        noise = np.maximum(1.4826 * np.median(np.abs(lab - surface)[sure], 0), _SMOOTH_FLOOR)
        model = _Smooth(surface, noise)
    return model


def _has_jpeg_blocks(rgb: np.ndarray) -> bool:
    """Whether grey values jump more from each 8th pixel to the next than elsewhere: the picture was a JPEG once."""
    grey = rgb.mean(-1) * 255
    for steps in (np.abs(np.diff(grey, axis=1)), np.abs(np.diff(grey, axis=0)).T):
        flat = steps < 8  # edges of things say nothing
        mean = [steps[:, k::8][flat[:, k::8]].mean() if flat[:, k::8].any() else 0.0 for k in range(8)]
        if mean[7] - np.median(mean[:7]) < 0.06:
            return False
    return True


def _joined(mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The pieces of ``mask`` that hold some of ``seeds``."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask)
    touched = np.unique(labels[seeds & mask])
    return np.isin(labels, touched[touched > 0])


def _shadow(lab: np.ndarray, surface: np.ndarray, sure: np.ndarray, wary: bool) -> np.ndarray:
    """Find the object's shadow on a smooth background.

    Args:
        lab: (H, W, 3).
        surface: (H, W, 3), the background without its shadow.
        sure: (H, W) bool, what is background for sure.
        wary: take less for shadow, for objects that are of the shadow's own colour.

    Returns:
        (H, W) bool: darker than the background, of its hue, and reached from it without crossing an edge.
    """
    from scipy import ndimage

    # A shadow scales linear light by k, which scales L + 16, a and b by the cube root of k.
    fall = (lab[..., 0] + 16) / (surface[..., 0] + 16)
    tint = ndimage.gaussian_filter(lab[..., 1:] - fall[..., None] * surface[..., 1:], (1, 1, 0))  # against noise
    chroma = np.hypot(tint[..., 0], tint[..., 1])
    # A penumbra is a ramp, as steep seen finely as seen coarsely; an object's edge is a step, steeper seen finely.
    step = _slope(lab[..., 0], 1.0) - _slope(lab[..., 0], 4.0)
    noise = 1.4826 * float(np.median(np.abs(step[sure])))
    deep = np.maximum(surface[..., 0] - lab[..., 0], 0)  # beside what casts it a shadow is steeper
    limit = 0.25 + noise if wary else 0.3 + 2 * noise + 0.02 * deep
    possible = (fall > 0.3) & (fall < 1.02) & (chroma < 5) & (step < limit)
    # Passages must be wide: somewhere along its edge an object is as bright as its shadow, and a shadow is no thread.
    passage = np.ones((9, 9) if wary else (7, 7))
    passable = ndimage.binary_erosion(possible | sure, passage, border_value=1)
    shadow = ndimage.binary_dilation(_joined(passable, sure), passage) & possible
    return ndimage.binary_dilation(shadow, iterations=4, mask=possible) & ~sure


def _slope(values: np.ndarray, sigma: float) -> np.ndarray:
    """(H, W) steepness per pixel of ``values`` (H, W), seen through a bell of ``sigma`` px."""
    from scipy import ndimage

    return ndimage.gaussian_gradient_magnitude(values, sigma, mode="nearest")


def _cut_from_smooth(lab: np.ndarray, smooth: _Smooth, bleed_px: float) -> np.ndarray:
    """(H, W) bool object: far from the background's surface and not its shadow, cut along the picture's edges."""
    distance2 = smooth.distance2(lab, bleed_px)
    ring = _ring(distance2.shape, 0.03)
    sure = _joined(distance2 < _SURE, ring)
    as_object = np.full(distance2.shape, 6.0)
    whole = _graph_cut(lab, np.minimum(distance2 / 2, 14), as_object, smoothness=3.0)
    for wary in (False, True):
        shadow = _shadow(lab, smooth.surface, sure, wary)
        as_background = np.where(shadow, np.minimum(distance2 / 2, 2), np.minimum(distance2 / 2, 14))
        mask = _graph_cut(lab, as_background, as_object, smoothness=3.0)
        if mask.sum() >= 0.5 * whole.sum():
            return mask
    return whole  # half of it cannot be shadow: rather an object with its shadow than half an object


def _graph_cut(lab: np.ndarray, as_background: np.ndarray, as_object: np.ndarray, smoothness: float) -> np.ndarray:
    """The labelling of least energy on the 8-neighbour grid, by maximum flow.

    Args:
        lab: (H, W, 3); a cut between two pixels costs little where their colours differ.
        as_background: (H, W) energy of calling a pixel background, >= 0.
        as_object: (H, W) energy of calling it object, >= 0.
        smoothness: energy of a cut of one pixel's length between equal colours.

    Returns:
        (H, W) bool, true for object.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    height, width = as_background.shape
    n = height * width
    index = np.arange(n).reshape(height, width)
    pairs = [
        (index[:, 1:], index[:, :-1], 1.0),
        (index[1:], index[:-1], 1.0),
        (index[1:, 1:], index[:-1, :-1], 2**0.5),
        (index[1:, :-1], index[:-1, 1:], 2**0.5),
    ]
    first = np.concatenate([a.ravel() for a, _, _ in pairs])
    second = np.concatenate([b.ravel() for _, b, _ in pairs])
    length = np.concatenate([np.full(a.size, d) for a, _, d in pairs])
    colors = lab.reshape(n, 3)
    contrast = ((colors[first] - colors[second]) ** 2).sum(1)
    link = smoothness * np.exp(-contrast / (2 * max(float(contrast.mean()), 4.0))) / length
    excess = (as_background - as_object).ravel()
    nodes = np.arange(n)
    rows = np.concatenate([first, second, np.full(n, n), nodes])
    columns = np.concatenate([second, first, nodes, np.full(n, n + 1)])
    capacity = np.concatenate([link, link, np.maximum(excess, 0), np.maximum(-excess, 0)])
    graph = csr_matrix((np.round(capacity * 256).astype(np.int32), (rows, columns)), shape=(n + 2, n + 2))
    residual = graph - maximum_flow(graph, n, n + 1).flow
    residual.data = np.maximum(residual.data, 0)
    residual.eliminate_zeros()
    reached = breadth_first_order(residual, n, return_predecessors=False)
    mask = np.zeros(n + 2, bool)
    mask[reached] = True
    return mask[:n].reshape(height, width)


def _grab_cut(lab: np.ndarray, rounds: int = 5) -> np.ndarray:
    """(H, W) bool object before any background: two colour mixtures, seeded by the border and the middle.

    Source:
        Rother et al. 2004, "GrabCut", with a prior for the middle of the frame in place of the user's box.
    """
    height, width = lab.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    radius2 = (x / 0.8) ** 2 + (y / 0.8) ** 2
    ring = _ring((height, width), 0.06)
    prior = np.clip(3 * (radius2 - 0.6), -1.5, 6)
    outside = _Mixture.fit(lab[ring])
    unlike = outside.energy(lab)
    mask = (radius2 < 1) & ((unlike > np.median(unlike[radius2 < 1])) | (radius2 < 0.15))
    for _ in range(rounds):
        if mask.sum() < 50 or (~mask).sum() < 50:
            break
        object_energy = _Mixture.fit(lab[mask]).energy(lab) + prior
        background_energy = _Mixture.fit(lab[~mask]).shaded_energy(lab)
        lowest = np.minimum(object_energy, background_energy)
        object_energy, background_energy = object_energy - lowest, background_energy - lowest
        object_energy[ring] += 3
        cut = _graph_cut(lab, background_energy, object_energy, smoothness=12.0)
        if (cut == mask).all():
            break
        mask = cut
    return mask


@dataclass(frozen=True)
class _Mixture:
    """A mixture of K Gaussians in Lab: log weights (K,), means (K, 3), inverse Cholesky factors (K, 3, 3)."""

    log_weights: np.ndarray
    means: np.ndarray
    whiteners: np.ndarray

    @staticmethod
    def fit(colors: np.ndarray, k: int = 5) -> _Mixture:
        """Fit colours (N, 3): split the widest cluster k - 1 times, then a few rounds of k-means; no chance in it."""
        colors = colors[:: max(1, len(colors) // 20000)]
        labels = np.zeros(len(colors), int)
        for new in range(1, k):
            spreads = [
                np.linalg.eigh(np.cov(colors[labels == c].T)) if (labels == c).sum() > 3 else None for c in range(new)
            ]
            sizes = [s[0][-1] * (labels == c).sum() if s is not None else 0.0 for c, s in enumerate(spreads)]
            widest = int(np.argmax(sizes))
            split = spreads[widest]
            if split is None:
                break
            along = (colors - colors[labels == widest].mean(0)) @ split[1][:, -1]
            labels[(labels == widest) & (along > 0)] = new
        for _ in range(5):
            means = np.stack([colors[labels == c].mean(0) for c in np.unique(labels)])
            labels = ((colors[:, None] - means) ** 2).sum(-1).argmin(1)
        return _Mixture.of_clusters([colors[labels == c] for c in np.unique(labels)])

    @staticmethod
    def of_clusters(clusters: list[np.ndarray]) -> _Mixture:
        """One Gaussian for each (N_k, 3) cluster, none narrower than the noise."""
        total = sum(len(c) for c in clusters)
        noise = 2.0**2 * np.eye(3)
        covariances = [(np.cov(c.T) if len(c) > 3 else 0) + noise for c in clusters]
        whiteners = np.stack([np.linalg.inv(np.linalg.cholesky(c)) for c in covariances])
        return _Mixture(np.log([len(c) / total for c in clusters]), np.stack([c.mean(0) for c in clusters]), whiteners)

    def energy(self, colors: np.ndarray) -> np.ndarray:
        """(...,) minus the log density of (..., 3) colours under the likeliest Gaussian, as GrabCut has it."""
        lowest: np.ndarray | None = None
        for log_weight, mean, whitener in zip(self.log_weights, self.means, self.whiteners, strict=True):
            z = (colors - mean) @ whitener.T
            energy = 0.5 * (z**2).sum(-1) - np.log(np.diag(whitener)).sum() - log_weight
            lowest = energy if lowest is None else np.minimum(lowest, energy)
        assert lowest is not None
        return lowest

    def shaded_energy(self, colors: np.ndarray) -> np.ndarray:
        """The same, but a colour may also be one of the mixture's in shadow, which costs a little."""
        lowest = self.energy(colors)
        for fall in (0.85, 0.7):  # of L + 16, as in `_shadow`
            lit = np.concatenate([(colors[..., :1] + 16) / fall - 16, colors[..., 1:] / fall], -1)
            lowest = np.minimum(lowest, self.energy(lit) + 2)
        return lowest


def _kept_pieces(mask: np.ndarray) -> np.ndarray:
    """The largest piece, with others that are large themselves, or near it and not mere specks."""
    from scipy import ndimage

    labels, n = ndimage.label(mask, np.ones((3, 3)))
    if n < 2:
        return mask
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    largest = int(areas.argmax())
    away = ndimage.distance_transform_edt(labels != largest)
    nearest = ndimage.minimum(away, labels, np.arange(n + 1))
    near = nearest <= max(3.0, 0.04 * max(mask.shape))
    keep = (areas >= 0.1 * areas[largest]) | (near & (areas >= max(4, 0.0005 * areas[largest])))
    keep[0] = False
    return keep[labels]


def _filled(mask: np.ndarray, distance2: np.ndarray | None) -> np.ndarray:
    """Fill pinpricks and holes that are not of the background's colour, ``distance2`` (H, W) being that from it."""
    from scipy import ndimage

    labels, n = ndimage.label(~mask)
    if n == 0:
        return mask
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    areas = np.bincount(labels.ravel())
    fill = areas < 0.002 * mask.sum()
    if distance2 is not None:
        unlike = ndimage.median(distance2, labels, np.arange(n + 1)) > _SURE
        fill = (areas < 6) | unlike
    fill[border] = False
    fill[0] = False
    return mask | fill[labels]
