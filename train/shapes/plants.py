"""Trees, flowers, cacti and mushrooms, standing on z = 0."""

from __future__ import annotations

import numpy as np

from .blocks import Color, Part, blob, cylinder, ellipsoid, lathe, skin, tube
from .draw import accent, chance, hue, mottled, pick, shade, smoothness, uniform, vary, whole
from .outlines import curve

Rng = np.random.Generator


def leaf_blade(long: float, wide: float, rise: float, droop: float, color: Color, *, thick: float = 0.02) -> Part:
    """A leaf from the origin along +x: rises by ``rise``, then its tip drops by ``droop`` below that."""
    t = np.linspace(0, 1, 6)
    half = np.sin(np.pi * np.clip(t * 0.9 + 0.08, 0, 1)) ** 0.8 * wide / 2
    half[-1] = 0.0
    x, z = t * long, rise * np.sin(np.pi / 2 * np.clip(t * 1.5, 0, 1)) - droop * t**2
    rings = []
    for xi, zi, hi in zip(x, z, half, strict=True):
        deep = thick * (hi > 0)
        rings.append([(xi, hi, zi), (xi, 0, zi - deep - hi * 0.35), (xi, -hi, zi), (xi, 0, zi + deep - hi * 0.2)])
    return skin(np.array(rings), color)


def trunk(rng: Rng, height: float, radius: float, color: Color, lean: float = 0.0) -> Part:
    """A tree's trunk with a flared foot, slightly bent."""
    bend = uniform(rng, -1, 1) * lean
    path = [
        (0, 0, 0),
        (bend * 0.2, bend * 0.1, height * 0.08),
        (bend * 0.6, -bend * 0.2, height * 0.5),
        (bend, 0, height),
    ]
    return tube(path, np.array([1.5, 1.05, 0.85, 0.6]) * radius, color, segments=pick(rng, (6, 7, 8, 10)))


def broadleaf(rng: Rng) -> list[Part]:
    """A tree whose crown is one lump, a cluster of lumps, or a lollipop."""
    bark, green = hue(rng, "bark"), hue(rng, "leaf", "leaf", "leaf", "autumn")
    high, thick = uniform(rng, 0.5, 1.4), uniform(rng, 0.06, 0.14)
    parts = [mottled(rng, trunk(rng, high + 0.25, thick, bark, 0.1))]
    kind, rough = whole(rng, 0, 2), uniform(rng, 0.04, 0.2)
    if kind == 0:
        size = uniform(rng, 0.5, 0.8)
        parts.append(
            mottled(
                rng,
                blob(
                    (size, size, size * uniform(rng, 0.8, 1.5)),
                    green,
                    rng,
                    (0, 0, high + size * 0.8),
                    rough=rough,
                    levels=pick(rng, (1, 2, 3)),
                ),
            )
        )
        return parts
    if kind == 1:
        for k in range(whole(rng, 3, 7)):
            size, angle = uniform(rng, 0.32, 0.5), 2.4 * k
            reach = uniform(rng, 0.2, 0.42)
            at = (reach * np.cos(angle), reach * np.sin(angle), high + uniform(rng, 0.2, 0.75))
            parts.append(blob((size, size, size * 0.85), vary(rng, green), rng, at, rough=rough, levels=2))
        return [*parts, blob((0.5, 0.5, 0.45), green, rng, (0, 0, high + 0.4), rough=rough)]
    for k in range(whole(rng, 2, 4)):
        size, angle = uniform(rng, 0.3, 0.45), 2.1 * k + uniform(rng, 0, 1)
        tip = np.array([np.cos(angle) * 0.45, np.sin(angle) * 0.45, high + uniform(rng, 0.2, 0.6)])
        parts += [
            tube(np.array([(0, 0, high * 0.75), tip]), [thick * 0.5, thick * 0.3], bark, segments=6),
            blob((size, size, size * 0.75), vary(rng, green), rng, tip, rough=rough),
        ]
    return [*parts, blob((0.45, 0.45, 0.4), green, rng, (0, 0, high + 0.55), rough=rough)]


def conifer(rng: Rng) -> list[Part]:
    """A fir, spruce or cypress of stacked cones, sometimes with snow."""
    bark, green = hue(rng, "bark"), hue(rng, "leaf")
    stem, tiers = uniform(rng, 0.15, 0.4), whole(rng, 1, 6)
    high, wide = uniform(rng, 1.2, 2.0), uniform(rng, 0.35, 0.6)
    n = pick(rng, (6, 7, 8, 10, 14))
    parts = [mottled(rng, cylinder(uniform(rng, 0.06, 0.1), stem + 0.25, bark, segments=8))]
    snow = chance(rng, 0.15)
    for k in range(tiers):
        z0, z1 = stem + high * k / tiers * 0.9, stem + high * min(1, (k + 1.5) / tiers)
        r = wide * (1 - 0.8 * k / tiers)
        droop = uniform(rng, 0, 0.12) * high / tiers
        rows = [(r * 0.3, z0 + droop), (r, z0 - droop * 0.3), (r * 0.45, z0 + (z1 - z0) * 0.45), (0, z1)]
        top = (240, 244, 248) if snow else shade(green, 1 + 0.04 * k)
        parts.append(lathe(rows, [shade(green, 0.75), shade(green, 1 + 0.04 * k), top], segments=n).turn("z", 25.0 * k))
    return parts


def palm(rng: Rng) -> list[Part]:
    """A palm with drooping fronds."""
    bark, green = hue(rng, "bark"), hue(rng, "leaf")
    high, bend = uniform(rng, 1.1, 2.0), uniform(rng, 0, 0.5)
    path = curve([(0, 0, 0), (bend * 0.2, 0, high * 0.5), (bend, 0, high)], 8)
    parts = [mottled(rng, tube(path, np.linspace(0.12, 0.06, 8), bark, segments=8))]
    count, long = whole(rng, 6, 10), uniform(rng, 0.55, 0.85)
    for k in range(count):
        frond = leaf_blade(
            long, long * uniform(rng, 0.22, 0.32), uniform(rng, 0.12, 0.3), uniform(rng, 0.25, 0.6), vary(rng, green)
        )
        parts.append(frond.turn("z", 360 * k / count + uniform(rng, -8, 8)).move(bend, 0, high - 0.02))
    nuts = hue(rng, "bark", "autumn")
    return parts + [
        ellipsoid(
            (0.08, 0.08, 0.09), nuts, (bend + 0.09 * np.cos(t), 0.09 * np.sin(t), high - 0.07), segments=8, rings=6
        )
        for t in (0, 2.1, 4.2)
    ]


def bush(rng: Rng) -> list[Part]:
    """A bush or hedge, with berries or blossoms."""
    green = hue(rng, "leaf", "leaf", "leaf", "leaf", "autumn")
    parts = []
    for k in range(whole(rng, 2, 6)):
        size = uniform(rng, 0.25, 0.42)
        at = np.array([uniform(rng, -0.25, 0.25), uniform(rng, -0.25, 0.25), size * 0.75]) * (k > 0) + np.array(
            [0, 0, 0.3 * (k == 0)]
        )
        parts.append(
            mottled(
                rng, blob((size, size, size * 0.9), vary(rng, green), rng, at, rough=uniform(rng, 0.05, 0.2), levels=2)
            )
        )
    if chance(rng, 0.5):
        berry, ball = hue(rng, "flower"), parts[0].vertices
        for i in rng.choice(len(ball), 12, replace=False):
            if ball[i, 2] > 0.15:
                parts.append(ellipsoid((0.035,) * 3, berry, ball[i], segments=6, rings=5))
    return parts


def pot(rng: Rng, wide: float, high: float, color: Color) -> list[Part]:
    """A flower pot with soil, its rim at height ``high``."""
    low, n = wide * uniform(rng, 0.6, 0.95), smoothness(rng)
    band = wide * 1.08 if chance(rng, 0.6) else wide
    rows = [
        (low, 0),
        (wide, high * 0.75),
        (band, high * 0.76),
        (band, high),
        (wide * 0.92, high),
        (wide * 0.88, high * 0.88),
        (0, high * 0.9),
    ]
    return [lathe(rows, [color] * 5 + [hue(rng, "bark")], segments=n)]


def potted_plant(rng: Rng) -> list[Part]:
    """A house plant: sword leaves, a little tree, a succulent or a ball."""
    wide, high = uniform(rng, 0.2, 0.35), uniform(rng, 0.25, 0.5)
    parts, green = pot(rng, wide, high, hue(rng, "clay", "ceramic", "painted", "wood")), hue(rng, "leaf")
    kind = whole(rng, 0, 3)
    if kind == 0:
        for k in range(whole(rng, 6, 12)):
            long = uniform(rng, 0.4, 0.9)
            blade = leaf_blade(long, 0.16, uniform(rng, -0.03, 0.1), uniform(rng, 0.0, 0.15), vary(rng, green))
            parts.append(blade.turn("y", -uniform(rng, 35, 85)).turn("z", 137.5 * k).move(0, 0, high * 0.85))
    elif kind == 1:
        tall = uniform(rng, 0.3, 0.7)
        parts += [
            tube([(0, 0, high * 0.8), (0.02, 0, high + tall)], 0.035, hue(rng, "bark"), segments=7),
            blob((0.32, 0.32, 0.3), green, rng, (0, 0, high + tall + 0.15), rough=0.1),
        ]
    elif kind == 2:
        for k in range(16):
            ring = k // 6
            blade = leaf_blade(wide * (1.2 - 0.25 * ring), 0.16, 0.05, 0.0, shade(green, 1 + 0.15 * ring), thick=0.03)
            parts.append(blade.turn("y", -15 - 25 * ring).turn("z", 60 * k + 30 * ring).move(0, 0, high * 0.87))
    else:
        parts.append(
            mottled(
                rng,
                blob(
                    (wide * 1.2, wide * 1.2, wide * uniform(rng, 1, 2)),
                    green,
                    rng,
                    (0, 0, high + wide * 0.7),
                    rough=0.12,
                ),
            )
        )
    return parts


def cactus(rng: Rng) -> list[Part]:
    """A cactus with arms or a ball, in a pot or on its own."""
    green, high = hue(rng, "leaf"), uniform(rng, 0.7, 1.3)
    radius, base = uniform(rng, 0.12, 0.22), 0.0
    parts: list[Part] = []
    if chance(rng, 0.4):
        base = 0.28
        parts += pot(rng, radius * 1.7, 0.32, hue(rng, "clay", "ceramic", "painted"))
    body = [
        (radius * 0.85, base),
        (radius, base + high * 0.3),
        (radius, base + high * 0.8),
        (radius * 0.75, base + high * 0.94),
        (radius * 0.3, base + high),
        (0, base + high * 1.01),
    ]
    column = lathe(body, green, segments=16)
    ribs = 1 + 0.1 * np.where(np.arange(len(column.vertices)) % 2, -1, 1)[:, None] * (1, 1, 0)
    parts.append(Part(column.vertices * ribs, column.faces, column.colors))
    for side in (1, -1)[: whole(rng, 0, 2)]:
        z, rise, reach = (
            base + high * uniform(rng, 0.3, 0.5),
            uniform(rng, 0.2, 0.45) * high,
            radius + uniform(rng, 0.15, 0.25),
        )
        path = curve(
            [
                (0, 0, z),
                (0, side * reach * 0.9, z + 0.02),
                (0, side * reach, z + rise * 0.4),
                (0, side * reach, z + rise),
            ],
            9,
        )
        parts.append(tube(path, np.append(np.full(7, radius * 0.55), [radius * 0.5, radius * 0.1]), green, segments=10))
    if chance(rng, 0.4):
        parts.append(blob((0.1, 0.1, 0.07), hue(rng, "flower"), rng, (0, 0, base + high + 0.02), rough=0.15, levels=1))
    return parts


def mushroom(rng: Rng) -> list[Part]:
    """One mushroom or a group of up to four, with spots."""
    stem, cap = hue(rng, "white", "bread", "skin"), hue(rng, "flower", "autumn", "brick", "fur", "plastic")
    spots = chance(rng, 0.55)
    parts: list[Part] = []
    for k in range(pick(rng, (1, 1, 2, 3, 4))):
        size = 1.0 if k == 0 else uniform(rng, 0.35, 0.7)
        parts += [
            p.scale(size).move(*((0, 0, 0) if k == 0 else (0.35 * np.cos(2.2 * k), 0.35 * np.sin(2.2 * k), 0)))
            for p in _one_mushroom(rng, stem, cap, spots)
        ]
    if len(parts) > 2 and chance(rng, 0.8):
        parts.append(
            mottled(rng, ellipsoid((0.75, 0.7, 0.09), hue(rng, "leaf", "bark"), (0, 0, 0), segments=14, rings=7))
        )
    return parts


def _one_mushroom(rng: Rng, stem: Color, cap: Color, spots: bool) -> list[Part]:
    high, thick, wide = uniform(rng, 0.4, 0.9), uniform(rng, 0.1, 0.22), uniform(rng, 0.38, 0.62)
    tall, lip, n = uniform(rng, 0.22, 0.6), uniform(rng, 0.0, 0.12), smoothness(rng)
    stalk = curve([(thick * 1.25, 0), (thick, high * 0.4), (thick * 0.8, high + 0.08)], 6)
    dome = curve(
        [(wide, high - lip), (wide * 0.85, high + tall * 0.55), (wide * 0.4, high + tall * 0.93), (0, high + tall)], 9
    )
    dome[-1, 0] = 0
    rows = [(thick * 0.7, high + 0.03), (wide * 0.6, high - lip * 0.2), *dome.tolist()]
    parts = [
        lathe(stalk, stem, segments=max(8, n // 2)),
        lathe(rows, [shade(stem, 0.9)] * 2 + [cap] * (len(dome) - 1), segments=n),
    ]
    for k in range(whole(rng, 5, 11) if spots else 0):
        i = 1 + k % 6
        angle, (r, z) = 2.4 * k, dome[i]
        size = uniform(rng, 0.05, 0.09)
        parts.append(
            ellipsoid(
                (size, size, size * 0.6),
                (248, 244, 232),
                (r * np.cos(angle), r * np.sin(angle), z),
                segments=8,
                rings=5,
            )
        )
    return parts


def flower(rng: Rng) -> list[Part]:
    """A flower on a stalk with leaves: daisy, tulip or sunflower; sometimes in a pot or a bunch."""
    green = hue(rng, "leaf")
    parts: list[Part] = []
    base = 0.0
    if chance(rng, 0.4):
        base = 0.26
        parts += pot(rng, 0.24, 0.32, hue(rng, "clay", "ceramic"))
    for k in range(pick(rng, (1, 1, 2, 3))):
        tilt, high = (uniform(rng, -4, 4) if k == 0 else uniform(rng, 10, 24)), uniform(rng, 0.6, 1.2)
        parts += [p.turn("y", tilt).turn("z", 130.0 * k).move(0, 0, base) for p in _bloom(rng, high, green)]
    return parts


def _bloom(rng: Rng, high: float, green: Color) -> list[Part]:
    petal = hue(rng, "flower")
    middle, size = accent(rng, petal, "light", "brass", "bark"), uniform(rng, 0.16, 0.3)
    parts = [tube([(0, 0, 0), (0.015, 0, high * 0.5), (0, 0, high)], 0.03, green, segments=6)]
    for k in range(whole(rng, 1, 3)):
        blade = leaf_blade(uniform(rng, 0.25, 0.4), 0.14, 0.08, 0.1, green)
        parts.append(blade.turn("y", -30).turn("z", 140.0 * k).move(0, 0, high * (0.15 + 0.15 * k)))
    if chance(rng, 0.3):
        rows = curve([(0.03, high - 0.02), (size * 0.6, high + size * 0.4), (size * 0.55, high + size * 1.3)], 6)
        return [
            *parts,
            lathe(
                [*rows.tolist(), (size * 0.3, high + size * 0.9), (0, high + size * 0.8)],
                petal,
                segments=pick(rng, (6, 8, 12)),
            ),
        ]
    count = whole(rng, 5, 11)
    lift = uniform(rng, 0, 35)
    head = [
        leaf_blade(size, 2.6 * size / count + 0.04, 0.02, -0.02, petal).turn("y", -lift).turn("z", 360 * k / count)
        for k in range(count)
    ]
    head.append(ellipsoid((size * 0.42, size * 0.42, size * 0.2), middle, segments=12, rings=7))
    face_out = uniform(rng, 0, 60)
    return parts + [p.turn("y", face_out).move(0, 0, high) for p in head]


def grass(rng: Rng) -> list[Part]:
    """A tuft of grass, reeds, a fern, or a crop such as a cabbage or a carrot top."""
    green = hue(rng, "leaf", "leaf", "leaf", "leaf", "autumn")
    parts = [mottled(rng, ellipsoid((0.22, 0.22, 0.09), hue(rng, "bark", "leaf"), segments=10, rings=7))]
    wide, long = uniform(rng, 0.08, 0.3), uniform(rng, 0.5, 1.0)
    low, high = sorted((uniform(rng, 20, 85), uniform(rng, 20, 85)))
    for k in range(whole(rng, 7, 16)):
        blade = leaf_blade(
            long * uniform(rng, 0.7, 1), wide, uniform(rng, 0, 0.1), uniform(rng, 0, 0.35), vary(rng, green)
        )
        parts.append(blade.turn("y", -uniform(rng, low, high)).turn("z", 137.5 * k))
    if chance(rng, 0.35):
        parts.append(
            blob((0.2, 0.2, 0.22), accent(rng, green, "leaf", "autumn", "flower"), rng, (0, 0, 0.18), rough=0.1)
        )
    return parts


def stump(rng: Rng) -> list[Part]:
    """A tree stump with roots, or a lying log."""
    bark, wood = hue(rng, "bark"), hue(rng, "wood", "bread")
    radius, high, n = uniform(rng, 0.3, 0.45), uniform(rng, 0.3, 0.8), pick(rng, (8, 10, 14))
    rows = [
        (radius * 1.2, 0),
        (radius, high * 0.3),
        (radius * 0.95, high),
        (radius * 0.8, high + 0.01),
        (0, high + 0.015),
    ]
    parts = [mottled(rng, lathe(rows, [bark, bark, shade(bark, 0.8), wood], segments=n))]
    if chance(rng, 0.35):
        log = lathe(
            [(radius * 0.9, 0), (radius, 0.02), (radius * 0.97, 1.5), (radius * 0.85, 1.51)],
            [wood, bark, wood],
            segments=n,
        )
        return [
            mottled(rng, log).turn("y", 90).move(0, 0, radius),
            tube([(0.7, 0, radius), (0.8, 0.25, radius * 2.2)], [0.09, 0.06], bark),
        ]
    for k in range(whole(rng, 2, 5)):
        root = tube(
            [(radius * 0.6, 0, 0.18), (radius * 1.25, 0, 0.07), (radius * 1.8, 0, 0.0)],
            [0.12, 0.09, 0.03],
            bark,
            segments=6,
        )
        parts.append(root.turn("z", 75.0 * k + uniform(rng, 0, 20)))
    return parts
