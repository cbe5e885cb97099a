"""Fruit, cakes and sweets, standing on z = 0."""

from __future__ import annotations

import numpy as np

from .blocks import Color, Part, blob, box, cushion, cylinder, ellipsoid, extrude, lathe, skin, torus, tube
from .draw import accent, chance, hue, pick, shade, smoothness, uniform, vary, whole
from .food import plate
from .outlines import curve
from .plants import leaf_blade

Rng = np.random.Generator


def cake(rng: Rng) -> list[Part]:
    """A round or square cake of one to three tiers with icing, fruit or candles; sometimes one slice."""
    icing, dough = hue(rng, "flower", "white", "bread", "bark"), hue(rng, "bread", "light", "bark")
    top = accent(rng, icing, "flower", "white", "bark")
    n, r, z = max(12, smoothness(rng)), uniform(rng, 0.45, 0.7), 0.0
    if chance(rng, 0.25):
        return _cake_slice(rng, icing, dough, top)
    parts: list[Part] = []
    for _ in range(pick(rng, (1, 1, 2, 3))):
        high = uniform(rng, 0.22, 0.4)
        cut = high * uniform(rng, 0.4, 0.75)
        rows = [
            (r, z),
            (r, z + cut),
            (r * 1.025, z + cut),
            (r * 1.025, z + high * 0.93),
            (r * 0.95, z + high),
            (0, z + high),
        ]
        parts.append(lathe(rows, [dough, icing, icing, icing, top if chance(rng) else icing], segments=n))
        for k in range(n if chance(rng, 0.5) else 0):
            a = 2 * np.pi * k / n
            parts.append(
                ellipsoid(
                    (0.05, 0.05, 0.05), top, (r * 0.95 * np.cos(a), r * 0.95 * np.sin(a), z + high), segments=6, rings=5
                )
            )
        z, r = z + high - 0.01, r * uniform(rng, 0.6, 0.75)
    for k in range(whole(rng, 0, 6)):
        a, reach = 2.4 * k, 0.0 if k == 0 else r * 0.7
        at = (reach * np.cos(a), reach * np.sin(a), z - 0.02)
        parts += (
            [
                cylinder(0.03, 0.2, hue(rng, "plastic", "white"), at, segments=6),
                ellipsoid((0.025, 0.025, 0.05), (250, 170, 40), (at[0], at[1], at[2] + 0.23), segments=6, rings=5),
            ]
            if k % 2
            else [ellipsoid((0.07, 0.07, 0.08), hue(rng, "flower"), (at[0], at[1], z + 0.04), segments=8, rings=6)]
        )
    return parts + plate(rng, 0.85) if chance(rng, 0.5) else parts


def _cake_slice(rng: Rng, icing: Color, dough: Color, top: Color) -> list[Part]:
    half = np.deg2rad(uniform(rng, 14, 28))
    wedge = np.array([(-0.5, 0.0), *((np.cos(t) - 0.5, np.sin(t)) for t in np.linspace(-half, half, 5))])
    parts, z = [], 0.0
    for k in range(whole(rng, 2, 5)):
        high = uniform(rng, 0.08, 0.14) if k % 2 == 0 else 0.05
        parts.append(extrude(wedge, high + 0.01, dough if k % 2 == 0 else icing, axis="z").move(0, 0, z + high / 2))
        z += high
    parts.append(extrude(wedge * 1.01, 0.05, icing, axis="z").move(0, 0, z + 0.02))
    return [*parts, ellipsoid((0.09, 0.09, 0.1), top, (0.25, 0, z + 0.1), segments=10, rings=7)]


def fruit(rng: Rng) -> list[Part]:
    """An apple, pear, orange, lemon, banana, pumpkin, strawberry, grapes, melon, carrot, aubergine or cherry."""
    kind, n = whole(rng, 0, 9), smoothness(rng)
    green, stalk = hue(rng, "leaf"), hue(rng, "bark")
    if kind <= 2:
        return _orchard_fruit(rng, n, green, stalk)
    if kind == 3:
        return _banana(rng, stalk)
    if kind == 4:
        return _pumpkin(rng, green)
    if kind == 5:
        return _strawberry(rng, green, n)
    if kind == 6:
        return _grapes(rng, green, stalk)
    if kind == 7:
        return _carrot(rng, green, n)
    if kind == 8:
        return _melon_slice(rng)
    return _cherries(rng, green, n)


def _banana(rng: Rng, stalk: Color) -> list[Part]:
    """A banana lying on its back."""
    bend = uniform(rng, 0.3, 0.6)
    path = curve(
        [(-0.5, 0, bend * 0.8), (-0.3, 0, bend * 0.25), (0, 0, 0.08), (0.3, 0, bend * 0.25), (0.5, 0, bend * 0.8)],
        11,
    )
    skin_color = vary(rng, (245, 208, 66))
    return [
        tube(
            path,
            np.array([0.03, 0.05, 0.1, 0.12, 0.13, 0.13, 0.13, 0.12, 0.1, 0.06, 0.03]),
            [stalk, *[skin_color] * 8, stalk],
            segments=7,
        )
    ]


def _pumpkin(rng: Rng, green: Color) -> list[Part]:
    """A ribbed pumpkin."""
    lobes = pick(rng, (6, 8, 10))
    angle = np.arange(lobes * 4) * 2 * np.pi / (lobes * 4)
    bulge = 1 - 0.09 * np.abs(np.cos(lobes * angle / 2)) ** 3
    flat, color = uniform(rng, 0.6, 1.0), vary(rng, (226, 120, 30))
    rings = [
        np.column_stack([np.cos(angle) * bulge * r, np.sin(angle) * bulge * r, np.full(len(angle), z * flat)])
        for r, z in curve([(0.15, 0.06), (0.42, 0.05), (0.5, 0.4), (0.36, 0.74), (0.08, 0.68)], 11)
    ]
    return [
        skin(np.array(rings), color),
        tube(
            curve([(0, 0, 0.6 * flat), (0, 0, 0.75 * flat), (0.08, 0, 0.9 * flat)], 5),
            [0.08, 0.06, 0.05, 0.05, 0.06],
            green,
        ),
    ]


def _strawberry(rng: Rng, green: Color, n: int) -> list[Part]:
    """A strawberry with seeds, tip down."""
    red = hue(rng, "flower")
    body = lathe(curve([(0.02, 0), (0.26, 0.3), (0.3, 0.55), (0.12, 0.72)], 9), red, segments=n)
    leaves = [leaf_blade(0.26, 0.14, 0.05, 0.1, green).turn("z", 72 * k).move(0, 0, 0.7) for k in range(5)]
    seeds = [
        ellipsoid(
            (0.015, 0.015, 0.02),
            (248, 226, 140),
            (0.27 * np.cos(2.4 * k), 0.27 * np.sin(2.4 * k), 0.3 + 0.03 * (k % 9)),
            segments=5,
            rings=4,
        )
        for k in range(18)
    ]
    return [body, *leaves, *seeds]


def _grapes(rng: Rng, green: Color, stalk: Color) -> list[Part]:
    """A bunch of grapes."""
    color, parts = hue(rng, "flower", "leaf"), []
    for row in range(6):
        for k in range(max(1, row + 1)):
            a, reach = 2.4 * k + row, 0.045 * row
            parts.append(
                ellipsoid(
                    (0.1, 0.1, 0.1),
                    vary(rng, color),
                    (reach * np.cos(a), reach * np.sin(a), 0.1 + row * 0.12),
                    segments=8,
                    rings=6,
                )
            )
    return [
        *parts,
        tube([(0, 0, 0.65), (0.03, 0, 0.95)], 0.025, stalk, segments=6),
        leaf_blade(0.3, 0.24, 0.05, 0.1, green).move(0, 0, 0.85),
    ]


def _carrot(rng: Rng, green: Color, n: int) -> list[Part]:
    """A carrot or radish, upright or lying."""
    long, color = uniform(rng, 0.7, 1.0), hue(rng, "autumn", "flower", "leaf")
    body = lathe(curve([(0.02, 0), (0.1, long * 0.4), (0.17, long * 0.9), (0.06, long)], 9), color, segments=n)
    tops = [
        leaf_blade(0.4, 0.12, 0.02, 0.1, green).turn("y", -70).turn("z", 90 * k).move(0, 0, long - 0.03)
        for k in range(4)
    ]
    return [p.turn("y", 90).move(0, 0, 0.17) for p in (body, *tops)] if chance(rng) else [body, *tops]


def _melon_slice(rng: Rng) -> list[Part]:
    """Half a slice of melon."""
    out, inner = hue(rng, "leaf"), hue(rng, "flower", "autumn")
    half = np.array([(0.5 * np.cos(t), 0.5 * np.sin(t)) for t in np.linspace(np.pi, 2 * np.pi, 14)])
    return [extrude(half, 0.2, out).move(0, 0, 0.5), extrude(half * 0.86 + (0, 0.006), 0.21, inner).move(0, 0, 0.5)]


def _cherries(rng: Rng, green: Color, n: int) -> list[Part]:
    """Two cherries on one stalk."""
    cherry = hue(rng, "flower")
    stems = [
        tube(curve([(0, s * 0.22, 0.3), (0, s * 0.15, 0.6), (0, 0, 0.85)], 7), 0.018, green, segments=6)
        for s in (1, -1)
    ]
    return [
        *(ellipsoid((0.2, 0.2, 0.19), cherry, (0, s * 0.22, 0.19), segments=n) for s in (1, -1)),
        *stems,
        leaf_blade(0.3, 0.16, 0.03, 0.05, green).move(0, 0, 0.83),
    ]


def _orchard_fruit(rng: Rng, n: int, green: Color, stalk: Color) -> list[Part]:
    """Apple, pear, orange, lemon, tomato or peach: a lathe with a stalk."""
    pear = uniform(rng, 0.0, 0.5) if chance(rng, 0.35) else 0.0
    rows = [
        (0.08, 0.06),
        (0.32, 0.02),
        (0.48, 0.32),
        (0.42 - 0.4 * pear, 0.66 + 0.1 * pear),
        (0.22 - 0.1 * pear, 0.82 + 0.35 * pear),
        (0.06, 0.76 + 0.42 * pear),
    ]
    color = hue(rng, "flower", "leaf", "autumn", "light")
    top = 0.76 + 0.42 * pear
    parts = [
        lathe(curve(rows, 13), color, segments=n),
        tube([(0, 0, top - 0.04), (0.04, 0, top + 0.18)], [0.025, 0.035], stalk, segments=6),
    ]
    return [*parts, leaf_blade(0.3, 0.16, 0.06, 0.1, green).move(0.02, 0, top + 0.06)] if chance(rng, 0.7) else parts


def ice_cream(rng: Rng) -> list[Part]:
    """A cone with scoops, a cup, or a bar on a stick."""
    n, cream = smoothness(rng), [hue(rng, "flower", "light", "bark", "skin", "leaf") for _ in range(3)]
    if chance(rng, 0.25):
        bar = cushion((0.16, 0.42, 0.8), cream[0], (0, 0, 0.3), puff=0.1)
        return [
            bar,
            box((0.05, 0.1, 0.4), hue(rng, "wood"), bevel=0.015),
            cushion((0.17, 0.43, 0.3), cream[1], (0, 0, 0.81), puff=0.1),
        ]
    wafer, scoops = hue(rng, "bread"), whole(rng, 1, 3)
    rows = (
        [(0.02, 0), (0.26, 0.75), (0.28, 0.75), (0.29, 0.84), (0.2, 0.84)]
        if chance(rng, 0.7)
        else [(0.2, 0), (0.3, 0.5), (0.34, 0.52), (0.36, 0.84), (0.25, 0.84)]
    )
    parts = [lathe(rows, [wafer, shade(wafer, 0.9), shade(wafer, 0.9), wafer], segments=n)]
    for k in range(scoops):
        size = 0.31 * 0.9**k
        parts.append(blob((size, size, size * 0.9), cream[k], rng, (0, 0, 0.95 + 0.32 * k), rough=0.06, levels=2))
    top = 0.95 + 0.32 * (scoops - 1) + 0.27
    if chance(rng, 0.5):
        parts.append(ellipsoid((0.08, 0.08, 0.08), hue(rng, "flower"), (0, 0, top + 0.03), segments=10, rings=7))
    if chance(rng, 0.3):
        parts.append(tube([(0.1, 0, top - 0.15), (0.25, 0.05, top + 0.3)], 0.04, hue(rng, "bread"), segments=8))
    return parts


def donut(rng: Rng) -> list[Part]:
    """A ring doughnut with icing and sprinkles; or a cupcake."""
    dough, icing = hue(rng, "bread"), hue(rng, "flower", "bark", "white")
    if chance(rng, 0.4):
        n = pick(rng, (12, 16, 20))
        parts = [lathe([(0.26, 0), (0.36, 0.38), (0.3, 0.42)], hue(rng, "painted", "flower"), segments=n)]
        swirl = [
            (0.42, 0.38),
            (0.45, 0.46),
            (0.38, 0.54),
            (0.36, 0.55),
            (0.36, 0.62),
            (0.26, 0.7),
            (0.24, 0.71),
            (0.22, 0.78),
            (0.08, 0.88),
            (0, 0.92),
        ]
        return [
            *parts,
            lathe(swirl, icing, segments=n),
            ellipsoid((0.08, 0.08, 0.08), hue(rng, "flower"), (0, 0, 0.94), segments=8, rings=6),
        ]
    r, thick = uniform(rng, 0.3, 0.38), uniform(rng, 0.14, 0.19)
    parts = [
        torus(r, thick, dough, (0, 0, thick), segments=24, around=12),
        torus(r, thick * 1.03, icing, (0, 0, thick * 1.12), segments=24, around=12).scale(1, 1, 0.98),
    ]
    for k in range(whole(rng, 10, 26) if chance(rng, 0.7) else 0):
        a, rr = 2.4 * k, r + thick * 0.5 * np.sin(1.7 * k)
        z = thick * 1.1 + thick * np.sqrt(1 - ((rr - r) / thick / 1.03) ** 2)
        parts.append(
            box((0.07, 0.025, 0.025), hue(rng, "plastic"), (0, 0, -0.01))
            .turn("z", 77.0 * k)
            .move(rr * np.cos(a), rr * np.sin(a), z)
        )
    return [p.turn("y", 80).move(0, 0, r) for p in parts] if chance(rng, 0.15) else parts
