"""Which mistake fits: what the poses of an object would mean under other flags, and which of these mends them.

What silhouettes can judge (axes of the matrices, their direction, the order of the pictures, the field of view, where
the cameras look, mirrored pictures) is tried, and measured by `train.carving.disagreement`. What they cannot (which way
is up, where the origin is, how long a unit is) is judged by the cameras' own upright and by the carved box.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from multiview.errors import CameraError

from .carving import EDGE, WORST, Carved, Eyes, Floats, Outlines, best_order, carve, disagreement, turned_alike
from .posed import CONVENTIONS, POSES, UPS, ReadFlags, cameras_from, up_rotation

ORDER_LIMIT = 40  # views: the search for an order takes memory with the fourth power
_MENDED = 0.6  # a mistake is named when its mending leaves less than this of the disagreement
_HINTED = 0.92  # the same where the carved box speaks for it, too
_PLAIN = 0.3  # of the disagreement: mending that leaves less needs no other explanation
_LEAST_PIXELS = 0.12  # and takes away more than this, in pixels of the pictures that are judged
_AGREES_PIXELS = 0.35  # what is left of a right camera's disagreement, in pixels, ...
_AGREES = 0.004  # ... and of the object's size
_HOPELESS = 0.05  # disagreement that is called wrong even if no known mistake fits
_FOV_BLUR = 0.03  # logarithm of the field of view's factor within which outlines cannot tell
_STRAY = 0.08  # of a single view against the others
_UPRIGHT = 0.03  # mean square of the cameras' right axes along the axis that is taken for up
_LEANS_DEG = 20.0
_SIDE_SLACK, _CENTER_SLACK = 0.07, 0.08  # of the object's longest side
_CUT_SHARE = 0.25  # of views in which the object is cut off, above which its box is not judged
_NICE = (1, 1.5, 2, 3, 4, 5, 8)


@dataclass(frozen=True)
class Mistake:
    """A mistake that was found.

    Attributes:
        kind: camera-convention, pose, order, fov, look-at, mirror, flip, up, center, scale, views or unknown; two that
            come together are joined by a plus.
        message: what is wrong, with numbers.
        flags: under which it is mended; None when nothing is known to mend it.
        before, after: disagreement in shares of the object's size without and with them.
    """

    kind: str
    message: str
    flags: ReadFlags | None
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of an object's views, for judging.

    Attributes:
        stored: (V, 4, 4) as `train.posed.PosedObject.stored`.
        intrinsics: (V, 3, 3).
        flags: how they are read now.
        outlines: of the pictures as they are read now.
        mattes: (V, h, w) in [0, 1].
        scene_radius: half side of the cube that the object fills, if that is known.
        carvings: what `carved_under` has carved so far.
    """

    stored: torch.Tensor
    intrinsics: torch.Tensor
    flags: ReadFlags
    outlines: Outlines
    mattes: NDArray[np.float32]
    scene_radius: float | None
    carvings: dict[ReadFlags, Carved | None] = field(default_factory=dict)

    @property
    def pixel(self) -> float:
        """A pixel in shares of the object's size."""
        return 1 / max(float(np.median(self.outlines.size)) * self.mattes.shape[1], 1)

    @property
    def agrees(self) -> float:
        """Disagreement that right cameras may have."""
        return _AGREES + _AGREES_PIXELS * self.pixel

    def eyes(self, flags: ReadFlags | None = None) -> Eyes | None:
        """Cameras under other flags, or None where these do not go with the matrices."""
        try:
            return Eyes.of(cameras_from(self.stored, self.intrinsics, flags or self.flags))
        except CameraError:
            return None

    def seen(self, flags: ReadFlags) -> Outlines:
        """The outlines under other flags; ``order`` there is relative to the pictures as they are read now."""
        turned = self.outlines
        if flags.mirror != self.flags.mirror or flags.flip != self.flags.flip:
            turned = turned.turned(mirror=flags.mirror != self.flags.mirror, flip=flags.flip != self.flags.flip)
        order = relative_order(flags, self.flags)
        return turned if order is None else turned.select(order)

    def disagreement(self, flags: ReadFlags) -> float:
        """Under other flags; `WORST` where these do not go with the matrices."""
        eyes = self.eyes(flags)
        return WORST if eyes is None else disagreement(self.seen(flags), eyes).total


def relative_order(flags: ReadFlags, now: ReadFlags) -> tuple[int, ...] | None:
    """Which of the pictures as they stand now each camera shows under ``flags``; None for the same."""
    if flags.order is None or flags.order == now.order:
        return None
    if now.order is None:
        return flags.order
    place = {picture: camera for camera, picture in enumerate(now.order)}
    return tuple(place[picture] for picture in flags.order)


def find_mistakes(evidence: Evidence) -> list[Mistake]:
    """Name what is wrong with an object's cameras; an empty list when masks and cameras agree."""
    before = evidence.disagreement(evidence.flags)
    found: list[Mistake] = []
    flags = evidence.flags
    mended = _mended_silhouettes(evidence, before)
    if mended is not None:
        found.append(mended)
        flags = mended.flags or flags
    elif evidence.outlines.framed.any(1).mean() > 0.5:
        return []  # cut off by the frame, so that nothing could be judged
    elif before > max(_HOPELESS, 2 * evidence.agrees):
        text = f"the masks contradict the cameras ({before:.1%} of the object's size), and no known mistake mends it"
        return [Mistake("unknown", text, None, before, before)]
    found += _stray_views(evidence, flags)
    up = _leaning(evidence, flags)
    if up is not None:
        found.append(up)
        flags = up.flags or flags
    boxed = _boxed(evidence, flags)
    if boxed is not None and boxed.kind == "fov" and mended is None:
        found = [boxed, *found]
    elif boxed is not None:
        found.append(boxed)
    return found


# Silhouettes


def _mended_silhouettes(evidence: Evidence, before: float) -> Mistake | None:
    """The mistake whose mending makes the silhouettes agree, if one does."""
    if before < _LEAST_PIXELS * evidence.pixel / (1 - _MENDED):
        return None
    tried = [(kind, flags, evidence.disagreement(flags), burden) for kind, flags, burden in _known(evidence)]
    least = min(after for *_, after, _ in tried)
    if least > min(evidence.agrees, _PLAIN * before):
        tried.append(("fov", *_best_fov(evidence, evidence.flags), 1.05))
    least = min(after for *_, after, _ in tried)
    if before > evidence.agrees and least > min(evidence.agrees, _PLAIN * before):
        tried += _searched(evidence)
    # Of mistakes that mend as well, the simpler is named; below a small fraction of a pixel all are as good.
    floor = 0.05 * evidence.pixel
    kind, flags, after, _ = min(tried, key=lambda one: (max(one[2], floor)) * one[3])
    if after > _MENDED * before or before - after < _LEAST_PIXELS * evidence.pixel:
        return None
    if after > _LEAST_PIXELS * evidence.pixel / (1 - _MENDED) and kind not in ("fov", "look-at"):
        wider, better = _best_fov(evidence, flags)
        if better < _MENDED * after and after - better > _LEAST_PIXELS * evidence.pixel:
            kind, flags, after = f"{kind}+fov", wider, better
    return Mistake(kind, _said(kind, evidence.flags, flags, before, after), flags, before, after)


def _known(evidence: Evidence) -> Iterator[tuple[str, ReadFlags, float]]:
    """Mistakes without a number in them: kind, flags that mend it, and how far-fetched it is."""
    now = evidence.flags
    for pose in POSES:
        for convention in CONVENTIONS[:2]:
            turned = (now.camera_convention == "opencv") != (convention == "opencv")
            kinds = ["pose"] * (pose != now.pose) + ["camera-convention"] * turned
            if kinds:
                meant = convention if turned else now.camera_convention
                yield "+".join(kinds), replace(now, pose=pose, camera_convention=meant), 1.0 + 0.02 * (len(kinds) - 1)
    yield "mirror", replace(now, mirror=not now.mirror), 1.0
    yield "flip", replace(now, flip=not now.flip), 1.0
    yield "mirror+flip", replace(now, mirror=not now.mirror, flip=not now.flip), 1.02
    for order in _usual_orders(len(evidence.outlines)):
        yield "order", replace(now, order=_composed(order, now)), 1.1


def _usual_orders(count: int) -> Iterator[tuple[int, ...]]:
    """Orders that programs make by accident: backwards, one off, and numbers sorted as words (both ways)."""
    yield tuple(range(count))[::-1]
    for step in (1, -1):
        yield tuple(int(i) for i in np.roll(range(count), step))
    if count > 10:
        words = sorted(range(count), key=str)
        yield tuple(words)
        yield tuple(int(i) for i in np.argsort(words))


def _composed(order: tuple[int, ...], now: ReadFlags) -> tuple[int, ...]:
    """An order of the pictures as they stand now, as an order of the files."""
    return order if now.order is None else tuple(now.order[i] for i in order)


def _searched(evidence: Evidence) -> Iterator[tuple[str, ReadFlags, float, float]]:
    """Mistakes that have to be searched for: where the cameras look, and any order of the pictures."""
    eyes = evidence.eyes()
    if eyes is None:
        return
    aimed = _best_aim(evidence, eyes)
    if aimed is not None:
        yield "look-at", *aimed, 1.3
    if len(evidence.outlines) <= ORDER_LIMIT:
        order = turned_alike(best_order(evidence.outlines, eyes), evidence.outlines, eyes)
        flags = replace(evidence.flags, order=_composed(order, evidence.flags))
        # So free a choice mends a little of anything.
        yield "order", flags, evidence.disagreement(flags), 2.0


def _best_fov(evidence: Evidence, flags: ReadFlags) -> tuple[ReadFlags, float]:
    """The factor of the field of view under which the silhouettes agree best."""
    factors, width = np.geomspace(0.4, 2.5, 25), 1.08
    best = (flags, evidence.disagreement(flags))
    for _ in range(3):
        for factor in factors:
            candidate = replace(flags, fov_scale=float(flags.fov_scale * factor))
            after = evidence.disagreement(candidate)
            if after < best[1]:
                best = candidate, after
        center = best[0].fov_scale / flags.fov_scale
        factors, width = center * np.geomspace(1 / width, width, 7), width**0.3
    if 0 < abs(math.log(best[0].fov_scale)) < _FOV_BLUR and best[0] is not flags:
        plain = replace(flags, fov_scale=1.0)  # what the files say, if that is as good
        after = evidence.disagreement(plain)
        return (plain, after) if after <= max(1.3 * best[1], evidence.agrees / 2) else best
    return best


def _best_aim(evidence: Evidence, eyes: Eyes) -> tuple[ReadFlags, float] | None:
    """The point at which cameras that stand where they are would have to look."""
    from scipy.optimize import minimize

    forward = -eyes.rotation[..., 2]
    across = np.eye(3) - forward[:, :, None] * forward[:, None]
    start = np.linalg.solve(across.sum(0) + 1e-9 * np.eye(3), (across @ eyes.centers[..., None])[..., 0].sum(0))
    reach = float(np.linalg.norm(eyes.centers - start, axis=1).mean())

    def aimed(point: Floats) -> ReadFlags:
        # Flags are in the stored world's units, before it is scaled.
        place = point / evidence.flags.scene_scale
        return replace(evidence.flags, look_at=(float(place[0]), float(place[1]), float(place[2])))

    simplex = start + np.concatenate([np.zeros((1, 3)), 0.08 * reach * np.eye(3)])
    options = {"maxfev": 130, "initial_simplex": simplex, "xatol": 1e-3 * reach, "fatol": 1e-5}
    found = minimize(lambda p: evidence.disagreement(aimed(p)), start, method="Nelder-Mead", options=options)
    # Cameras that do not stand upright, or look elsewhere by intention, come out worse than they were.
    return (aimed(found.x), float(found.fun)) if np.isfinite(found.fun) else None


def _said(kind: str, now: ReadFlags, flags: ReadFlags, before: float, after: float) -> str:
    """A sentence for a mistake that silhouettes show."""
    order = relative_order(flags, now)
    moved = sum(i != j for i, j in enumerate(order or ()))
    words = {
        "pose": f"the matrices are {flags.pose}, but are read as {now.pose}",
        "camera-convention": f"the matrices have {flags.camera_convention} axes, but are read as "
        f"{now.camera_convention}",
        "mirror": "the pictures are mirrored left to right",
        "flip": "the pictures are upside down",
        "order": f"the frames are shuffled: {moved} of {len(order or ())} pictures belong to another camera",
        "fov": f"the field of view is {flags.fov_scale / now.fov_scale:.2f} times what is stored",
        "look-at": f"the cameras look at ({_listed(flags.look_at)}), not where their poses say",
    }
    text = " and ".join(words[part] for part in kind.split("+"))
    return f"{text} (outlines disagree by {before:.2%} of the object's size, mended {after:.2%})"


def _listed(point: tuple[float, ...] | None) -> str:
    return ", ".join(f"{x:.2f}" for x in point or ())


def _stray_views(evidence: Evidence, flags: ReadFlags) -> list[Mistake]:
    """Single views that contradict all the others."""
    eyes = evidence.eyes(flags)
    if eyes is None:
        return []
    judged = disagreement(evidence.seen(flags), eyes)
    usual = float(np.nanmedian(judged.of_view)) if np.isfinite(judged.of_view).any() else 0.0
    stray = np.flatnonzero(judged.of_view > max(_STRAY, 4 * usual))
    if len(stray) == 0 or len(stray) > len(evidence.outlines) / 3:
        return []
    names = ", ".join(str(i) for i in stray)
    worst = np.nanmax(judged.of_view)
    text = f"views {names} contradict all others (by {worst:.1%} of the object's size, usual {usual:.2%})"
    return [Mistake("views", text, None, judged.total, judged.total)]


# What silhouettes cannot tell


def _leaning(evidence: Evidence, flags: ReadFlags) -> Mistake | None:
    """Whether the cameras stand upright about another axis than z."""
    eyes = evidence.eyes(flags)
    if eyes is None:
        return None
    right, up = eyes.rotation[..., 0], eyes.rotation[..., 1]
    spread, axes = np.linalg.eigh(right.T @ right / len(right))
    axis = axes[:, 0] * (1.0 if (up @ axes[:, 0]).mean() >= 0 else -1.0)
    # Cameras in a row have no axis of their own; nor have those held at any roll.
    if spread[0] > _UPRIGHT or spread[1] < 3 * _UPRIGHT:
        return None
    lean = math.degrees(math.acos(np.clip(axis[2], -1, 1)))
    if lean < _LEANS_DEG:
        return None
    stored = up_rotation(flags.up).double().numpy().T @ axis
    name, near = max(((up_name, stored @ _axis(up_name)) for up_name in UPS), key=lambda one: one[1])
    error = evidence.disagreement(flags)
    text = f"the cameras stand upright about ({_listed(tuple(axis))}), {lean:.0f} degrees from z"
    if near < math.cos(math.radians(_LEANS_DEG)):
        return Mistake(
            "up", f"{text}, and no axis of the stored world is near it; turn the world upright", None, error, error
        )
    return Mistake("up", f"{text}: the stored world has {name} up", replace(flags, up=name), error, error)


def _axis(name: str) -> Floats:
    """Unit vector of a stored axis by its name."""
    return (-1.0 if name.startswith("-") else 1.0) * np.eye(3)["xyz".index(name[-1])]


def _boxed(evidence: Evidence, flags: ReadFlags) -> Mistake | None:
    """Whether the carved box contradicts the scene's: its size, or its middle."""
    radius, eyes, outlines = evidence.scene_radius, evidence.eyes(flags), evidence.seen(flags)
    if eyes is None or outlines.framed.any(1).mean() > _CUT_SHARE:
        return None
    carved = carved_under(evidence, flags)
    if carved is None or carved.empty or carved.share < 0.8:
        return None
    if radius is not None:
        scale = _scaled(evidence, flags, carved, 2 * radius)
        if scale is not None:
            return scale
    return _off_center(evidence, flags, carved, strict=radius is not None)


def carved_under(evidence: Evidence, flags: ReadFlags) -> Carved | None:
    """Carve with the masks and cameras as ``flags`` mean them; None where these do not go with the matrices."""
    if flags not in evidence.carvings:
        eyes = evidence.eyes(flags)
        evidence.carvings[flags] = (
            None if eyes is None else carve(masks_under(evidence, flags), eyes, evidence.seen(flags))
        )
    return evidence.carvings[flags]


def masks_under(evidence: Evidence, flags: ReadFlags) -> NDArray[np.bool_]:
    """(V, h, w) the masks of the cameras as ``flags`` mean them."""
    masks = evidence.mattes > EDGE
    if flags.mirror != evidence.flags.mirror:
        masks = masks[..., ::-1]
    if flags.flip != evidence.flags.flip:
        masks = masks[:, ::-1]
    order = relative_order(flags, evidence.flags)
    return masks if order is None else masks[list(order)]


def _scaled(evidence: Evidence, flags: ReadFlags, carved: Carved, expected: float) -> Mistake | None:
    """The object's longest side against what the scene says it is."""
    low, high = carved.longest_side
    if (1 - _SIDE_SLACK) * low <= expected <= (1 + _SIDE_SLACK) * high:
        return None
    before = evidence.disagreement(flags)
    wider, after = _best_fov(evidence, flags)
    seen = carved_under(evidence, wider)
    if seen is not None and after < _HINTED * before:
        fits_low, fits_high = seen.longest_side
        if (1 - _SIDE_SLACK) * fits_low <= expected <= (1 + _SIDE_SLACK) * fits_high:
            return Mistake("fov", _said("fov", flags, wider, before, after), wider, before, after)
    factor = nice_factor(expected / high, expected / low)
    text = f"the object's longest side is {low:.3g} to {high:.3g}, but the scene says {expected:.3g}"
    return Mistake("scale", text, replace(flags, scene_scale=flags.scene_scale * factor), before, before)


def nice_factor(low: float, high: float) -> float:
    """A round number between two positive ones, or their geometric mean."""
    best, middle = 0.0, math.sqrt(low * high)
    for power in range(-6, 7):
        for digit in _NICE:
            for factor in (digit * 10.0**power, 10.0**power / digit):
                if low <= factor <= high and abs(math.log(factor / middle)) < abs(
                    math.log(best / middle) if best else math.inf
                ):
                    best = factor
    return best or round(middle, 3 - math.ceil(math.log10(middle)))


def _off_center(evidence: Evidence, flags: ReadFlags, carved: Carved, *, strict: bool) -> Mistake | None:
    """The middle of the object's box against the origin; only far off where the scene does not say that it is there."""
    low, high = carved.center
    side = carved.longest_side[1]
    gap = np.maximum(np.maximum(low, -high), 0)
    if gap.max() < (_CENTER_SLACK if strict else 0.75) * side:
        return None
    at = (low + high) / 2
    # Only along the axes that are off: along the others the origin may be right.
    moved = np.where(gap > 0.02 * side, at, 0) / flags.scene_scale + np.array(flags.center)
    center = (round(float(moved[0]), 3), round(float(moved[1]), 3), round(float(moved[2]), 3))
    error = evidence.disagreement(flags)
    text = f"the object stands at ({_listed(tuple(at))}), {np.linalg.norm(gap) / side:.0%} of its size from the origin"
    return Mistake("center", text, replace(flags, center=center), error, error)
