"""Rocks, pieces of ground, and forms that are no known thing."""

from __future__ import annotations

import numpy as np

from .blocks import Color, Part, blob, box, capsule, cushion, cylinder, ellipsoid, lathe, torus, tube
from .draw import chance, hue, mottled, pick, shade, uniform, whole
from .outlines import curve

Rng = np.random.Generator
# Kinds of `_primitive`: all, and those that are alike on both sides of y = 0.
_ALL_KINDS, _EVEN = (0, 1, 2, 3, 4, 5, 6), (0, 1, 5, 6)


def rock(rng: Rng) -> list[Part]:
    """A rock, a heap of rocks, a cliff, or crystals."""
    stone = hue(rng, "stone")
    if chance(rng, 0.3):
        color, parts = (
            hue(rng, "plastic", "glass", "flower"),
            [mottled(rng, blob((0.5, 0.5, 0.16), stone, rng, rough=0.15))],
        )
        for k in range(whole(rng, 3, 7)):
            r, high = uniform(rng, 0.09, 0.18), uniform(rng, 0.4, 1.0)
            spike = lathe([(r * 0.8, -0.1), (r, high * 0.7), (0, high)], [color, shade(color, 1.4)], segments=6)
            parts.append(spike.turn("y", uniform(rng, 0, 38) * (k > 0)).turn("z", 137.5 * k).move(0, 0, 0.05))
        return parts
    parts = []
    for k in range(pick(rng, (1, 1, 2, 3, 4))):
        size = uniform(rng, 0.35, 0.55) * (1 if k == 0 else 0.6)
        radii = np.array([uniform(rng, 0.8, 1.3), uniform(rng, 0.8, 1.3), uniform(rng, 0.6, 1.2)]) * size
        reach = 0.0 if k == 0 else 0.5
        at = (reach * np.cos(2.3 * k), reach * np.sin(2.3 * k), radii[2] * 0.8)
        part = blob(
            radii,
            stone,
            rng,
            at,
            rough=uniform(rng, 0.12, 0.3),
            levels=pick(rng, (1, 2, 2, 3)),
            waves=uniform(rng, 1.5, 4),
        )
        parts.append(mottled(rng, part, 0.08))
    if chance(rng, 0.3):
        top = max(parts, key=lambda p: float(p.vertices[:, 2].max()))
        moss, mid = hue(rng, "leaf", "white"), top.centroids
        parts = [p if p is not top else top.paint(moss, mid[:, 2] > np.quantile(mid[:, 2], 0.7)) for p in parts]
    return parts


def island(rng: Rng) -> list[Part]:
    """A piece of ground: a hill, a floating island, a ramp or a patch with stones."""
    grass, earth, n = hue(rng, "leaf", "white", "light"), hue(rng, "bark", "stone"), pick(rng, (8, 12, 16))
    if chance(rng, 0.35):
        steps = whole(rng, 3, 7)
        return [
            box((0.2 * (steps - k), 0.8, 0.16), pick(rng, (earth, shade(earth, 1.1))), (-0.1 * k, 0, 0.155 * k))
            for k in range(steps)
        ]
    deep = uniform(rng, 0.2, 0.9)
    body = lathe(
        [
            (0.1, -deep),
            (uniform(rng, 0.4, 0.7), -deep * 0.5),
            (0.9, -0.12),
            (0.95, 0.0),
            (0.85, 0.06),
            (0, uniform(rng, 0.06, 0.4)),
        ],
        [earth, earth, earth, grass, grass],
        segments=n,
    )
    wobble = 1 + 0.06 * np.sin(np.arctan2(body.vertices[:, 1], body.vertices[:, 0]) * 3 + uniform(rng, 0, 6))[
        :, None
    ] * (1, 1, 0)
    parts = [mottled(rng, Part(body.vertices * wobble, body.faces, body.colors), 0.05)]
    for k in range(whole(rng, 1, 4)):
        a, r = 2.4 * k, 0.45
        at = (r * np.cos(a), r * np.sin(a), 0.12)
        parts.append(
            blob((0.15, 0.15, 0.14), earth, rng, at, rough=0.2, levels=1)
            if chance(rng)
            else cylinder(0.22, 0.7, grass, at, top=0.0, segments=7)
        )
    return parts


def free_form(rng: Rng) -> list[Part]:
    """No known thing: three to eight smooth primitives, each grown from the surface of an earlier one."""
    palette = [hue(rng, "plastic", "painted", "ceramic", "fabric", "metal") for _ in range(3)]
    parts = [_primitive(rng, pick(rng, palette), 0.5, _EVEN)]
    for _ in range(whole(rng, 2, 5)):
        host = pick(rng, parts)
        anchor = host.vertices[int(rng.integers(len(host.vertices)))]
        part = _primitive(rng, pick(rng, palette), uniform(rng, 0.15, 0.4), _ALL_KINDS)
        parts.append(part.turn("x", uniform(rng, 0, 360)).turn("z", uniform(rng, 0, 360)).move(*anchor))
    # The first is alike left and right, so what grew on it may be mirrored and still touches it.
    return [*parts, *(part.mirror() for part in parts[1:])] if chance(rng, 0.6) else parts


def _primitive(rng: Rng, color: Color, size: float, kinds: tuple[int, ...]) -> Part:
    """A superellipsoid, capsule, bent tube, ring, cone, soft box or lathe of about ``size``, about the origin."""
    kind = pick(rng, kinds)
    a, b, c = (size * uniform(rng, 0.5, 1.3) for _ in range(3))
    if kind == 0:
        return ellipsoid((a, b, c), color, segments=16, rings=11, power=uniform(rng, 1.6, 5))
    if kind == 1:
        return capsule((0, 0, -c), (0, 0, c), a * 0.5, color, end_radius=a * uniform(rng, 0.2, 0.6), segments=12)
    if kind == 2:
        path = curve(
            [(0, 0, -c), (a * 0.8, 0, -c * 0.2), (a * 0.4, b * 0.5, c * 0.6), (-a * 0.3, b * 0.6, c * 1.2)], 10
        )
        return tube(path, np.linspace(0.45, uniform(rng, 0.1, 0.4), 10) * size, color, segments=12)
    if kind == 3:
        return torus(max(a, 0.6 * size), size * uniform(rng, 0.12, 0.3), color, segments=20, around=10)
    if kind == 4:
        return cylinder(
            a * 0.7, c * 1.5, color, (0, 0, -c * 0.75), top=a * uniform(rng, 0, 0.7), segments=pick(rng, (3, 4, 6, 16))
        )
    if kind == 5:
        return cushion((a * 1.4, b * 1.4, c * 1.4), color, (0, 0, -c * 0.7), puff=uniform(rng, 0.05, 0.45))
    rows = curve([(a * 0.3, -c), (a, -c * 0.3), (a * uniform(rng, 0.2, 0.8), c * 0.3), (a * 0.5, c)], 10)
    return lathe(rows, color, segments=16)
