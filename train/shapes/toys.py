"""Toys, instruments and clothes, on z = 0 where they stand; fronts face +x."""

from __future__ import annotations

import numpy as np

from .blocks import Part, blob, box, capsule, cylinder, ellipsoid, extrude, lathe, mirrored, skin, stack, torus, tube
from .draw import accent, chance, hue, pick, shade, smoothness, uniform, whole
from .outlines import curve

Rng = np.random.Generator


def guitar(rng: Rng) -> list[Part]:
    """A guitar, violin or banjo, upright."""
    wood, neck, dark = hue(rng, "wood", "painted", "plastic"), hue(rng, "wood", "dark"), hue(rng, "dark")
    lower, upper, waist = uniform(rng, 0.26, 0.34), uniform(rng, 0.19, 0.27), uniform(rng, 0.14, 0.18)
    half = curve(
        [(0.0, 0.0), (lower * 0.8, 0.06), (lower, 0.26), (waist, 0.5), (upper, 0.7), (upper * 0.6, 0.86), (0.0, 0.88)],
        17,
    )
    outline = np.concatenate([half, (half * (-1, 1))[1:-1][::-1]])
    deep = uniform(rng, 0.08, 0.18)
    parts = [extrude(outline, deep, [shade(wood, 0.75), shade(wood, 0.75), wood], axis="x", bevel=0.01)]
    parts += [
        cylinder(0.08, 0.03, dark, (deep / 2 - 0.015, 0, 0.56), axis="x", segments=16),
        box((0.04, 0.2, 0.04), dark, (deep / 2, 0, 0.26)),
    ]
    long = uniform(rng, 0.6, 0.8)
    parts += [
        box((0.06, 0.08, long + 0.3), neck, (deep / 2 - 0.01, 0, 0.6)),
        box((0.06, 0.14, 0.2), neck, (deep / 2 - 0.015, 0, 0.85 + long), bevel=0.01),
    ]
    return parts + mirrored(
        [box((0.04, 0.05, 0.03), hue(rng, "metal"), (deep / 2 - 0.01, 0.08, 0.88 + long + 0.06 * k)) for k in range(3)]
    )


def drum(rng: Rng) -> list[Part]:
    """A drum with sticks, or a bell, or a trumpet-like horn."""
    n, paint, trim = (
        max(12, smoothness(rng)),
        hue(rng, "plastic", "painted", "wood"),
        hue(rng, "metal", "brass", "white"),
    )
    kind = whole(rng, 0, 2)
    if kind == 0:
        r, high = uniform(rng, 0.35, 0.5), uniform(rng, 0.3, 0.7)
        parts = [
            lathe(
                [(r, 0), (r, high), (r * 0.95, high + 0.02), (0, high + 0.02)],
                [paint, (244, 240, 228), (244, 240, 228)],
                segments=n,
            ),
            *(cylinder(r * 1.04, 0.06, trim, (0, 0, z), segments=n) for z in (-0.01, high - 0.05)),
        ]
        sticks = [
            tube([(-0.4, y, high + 0.05), (0.35, -y * 0.4, high + 0.06)], [0.025, 0.02], hue(rng, "wood"), segments=6)
            for y in (0.2, -0.2)
        ]
        zigzag = [
            (r * 1.01 * np.cos(a), r * 1.01 * np.sin(a), high * (0.1 if k % 2 else 0.9))
            for k, a in enumerate(np.linspace(0, 2 * np.pi, 17))
        ]
        return parts + sticks + [tube(zigzag, 0.012, trim, segments=5)]
    metal = hue(rng, "brass", "metal")
    if kind == 1:
        rows = curve([(0.42, 0), (0.32, 0.15), (0.25, 0.45), (0.1, 0.6)], 9)
        return [
            lathe([(0.36, 0.02), *rows.tolist()], metal, segments=n),
            ellipsoid((0.09, 0.09, 0.09), trim, (0, 0, 0.02)),
            tube([(0, 0, 0.58), (0, 0, 1.0)], [0.05, 0.06], hue(rng, "wood", "dark")),
        ]
    bell = tube(
        np.column_stack([np.linspace(-0.5, 0.6, 9), np.zeros(9), np.full(9, 0.3)]),
        np.array([0.03, 0.03, 0.035, 0.04, 0.05, 0.06, 0.09, 0.15, 0.26]),
        metal,
        segments=n,
    )
    loop = tube(
        curve([(-0.3, 0, 0.3), (-0.35, 0, 0.15), (-0.2, 0, 0.1), (0.15, 0, 0.1), (0.25, 0, 0.2), (0.15, 0, 0.3)], 13),
        0.035,
        metal,
        segments=8,
    )
    return [
        bell,
        loop,
        cylinder(0.05, 0.06, metal, (-0.55, 0, 0.3), axis="x", segments=10),
        *(cylinder(0.025, 0.28, trim, (x, 0, 0.12), segments=8) for x in (-0.1, -0.03, 0.04)),
    ]


def ball(rng: Rng) -> list[Part]:
    """A ball, balloon, globe, planet, egg or bauble, striped or patched."""
    color, n = hue(rng, "plastic", "painted", "ceramic"), max(12, smoothness(rng))
    second = accent(rng, color, "plastic", "white", "dark")
    sphere = ellipsoid((0.5, 0.5, 0.5 * uniform(rng, 0.85, 1.25)), color, segments=n, rings=pick(rng, (9, 13, 17)))
    kind, mid = whole(rng, 0, 4), sphere.centroids
    if kind == 0:
        sphere = sphere.paint(second, np.floor(np.arctan2(mid[:, 1], mid[:, 0]) / np.pi * 3) % 2 == 0)
    elif kind == 1:
        sphere = sphere.paint(second, np.floor((mid[:, 2] + 1) * uniform(rng, 3, 6)) % 2 == 0)
    elif kind == 2:
        sphere = blob((0.5, 0.5, 0.5), color, rng, rough=0.0, levels=3)
        wave = np.sin(sphere.centroids @ rng.normal(size=(3, 3)) * 6).sum(1)
        sphere = sphere.paint(second, wave > 0.5)
    sphere = sphere.turn("y", uniform(rng, -25, 25))
    extra = whole(rng, 0, 3)
    if extra == 0:
        stand = [
            lathe([(0.3, -0.75), (0.28, -0.68), (0.05, -0.62), (0.05, -0.45)], hue(rng, "wood", "brass"), segments=14),
            torus(0.54, 0.025, hue(rng, "brass", "metal"), segments=24, around=6).turn("x", 90),
        ]
        return [sphere, *stand, capsule((0, 0, -0.55), (0, 0, 0.55), 0.025, hue(rng, "brass"))]
    if extra == 1:
        cross = ((0.48, 0.03), (0.85, 0.02), (0.85, -0.02), (0.48, -0.03))
        turns = np.arange(24) * np.pi / 12
        rings = [[[r * np.cos(a), r * np.sin(a), z] for r, z in cross] for a in turns]
        return [sphere, skin(np.array(rings), second, closed=True).turn("y", uniform(rng, -25, 25))]
    if extra == 2:
        return [
            sphere,
            cylinder(0.09, 0.1, hue(rng, "brass", "metal"), (0, 0, 0.46), segments=10),
            torus(0.07, 0.02, hue(rng, "brass"), segments=10, around=6).turn("x", 90).move(0, 0, 0.61),
        ]
    return [sphere]


def blocks_toy(rng: Rng) -> list[Part]:
    """Stacked building blocks, a ring pyramid, a brick with studs, or a die."""
    kind = whole(rng, 0, 3)
    if kind == 0:
        parts, z = [], 0.0
        for _ in range(whole(rng, 2, 5)):
            size = uniform(rng, 0.22, 0.34)
            parts.append(
                box((size, size * uniform(rng, 1, 2), size), hue(rng, "plastic", "wood"), bevel=0.02)
                .turn("z", uniform(rng, -20, 20))
                .move(uniform(rng, -0.05, 0.05), 0, z)
            )
            z += size - 0.003
        top = pick(
            rng,
            (
                cylinder(0.14, 0.3, hue(rng, "plastic"), (0, 0, z - 0.01), segments=14),
                cylinder(0.18, 0.3, hue(rng, "plastic"), (0, 0, z - 0.01), top=0.0, segments=14),
                extrude([(-0.2, z - 0.01), (0.2, z - 0.01), (0, z + 0.2)], 0.3, hue(rng, "plastic")),
            ),
        )
        return [*parts, top]
    if kind == 1:
        parts, z = [cylinder(0.48, 0.08, hue(rng, "wood", "plastic"), segments=20)], 0.17
        for k in range(whole(rng, 3, 6)):
            r = 0.34 - 0.045 * k
            parts.append(torus(r, 0.11, hue(rng, "plastic"), (0, 0, z), segments=20, around=10))
            z += 0.19
        return [
            *parts,
            cylinder(0.22, z - 0.1, hue(rng, "wood"), segments=10, top=0.05),
            ellipsoid((0.12, 0.12, 0.12), hue(rng, "plastic"), (0, 0, z)),
        ]
    color = hue(rng, "plastic")
    if kind == 2:
        x, y = whole(rng, 1, 2), whole(rng, 1, 4)
        high = pick(rng, (0.1, 0.3))
        studs = [
            cylinder(0.08, 0.06, color, ((i - (x - 1) / 2) * 0.25, (j - (y - 1) / 2) * 0.25, high - 0.005), segments=12)
            for i in range(x)
            for j in range(y)
        ]
        return [box((x * 0.25, y * 0.25, high), color, bevel=0.008), *studs]
    pips = accent(rng, color, "white", "dark")
    spots = {0: [(0, 0)], 1: [(-1, -1), (1, 1)], 2: [(-1, -1), (0, 0), (1, 1)], 3: [(-1, -1), (-1, 1), (1, -1), (1, 1)]}
    parts = [box((1, 1, 1), color, (0, 0, -0.5), bevel=0.09)]
    for side in range(4):
        parts += [
            ellipsoid((0.03, 0.1, 0.1), pips, (0.5, 0.27 * a, 0.27 * b), segments=10, rings=5).turn("z", 90 * side)
            for a, b in spots[side]
        ]
    return [
        *parts,
        *(
            ellipsoid((0.1, 0.1, 0.03), pips, (0.27 * a, 0.27 * b, 0.5), segments=10, rings=5)
            for a in (-1, 1)
            for b in (-1, 0, 1)
        ),
    ]


def shoe(rng: Rng) -> list[Part]:
    """A shoe or boot, toe to +x; a hat; or a pair of gloves' worth of thumb."""
    leather, sole = hue(rng, "painted", "bark", "plastic", "fabric", "dark"), hue(rng, "white", "rubber", "bark")
    if chance(rng, 0.35):
        n, trim = 20, hue(rng, "painted", "brass", "dark")
        brim, crown, high = uniform(rng, 0.5, 0.75), uniform(rng, 0.28, 0.36), uniform(rng, 0.2, 0.55)
        rows = [
            (brim, uniform(rng, -0.06, 0.01)),
            (brim, 0.05),
            (crown, 0.06),
            (crown * 0.99, 0.15),
            (crown * uniform(rng, 0.5, 1.0), high + 0.1),
            (0, high + 0.1),
        ]
        return [lathe(rows, [leather, leather, trim, leather, leather], segments=n)]
    tall = uniform(rng, 0.3, 0.9)
    rings = []
    for x, half, top in (
        (-0.38, 0.11, 0.24),
        (-0.3, 0.15, 0.3),
        (0.0, 0.15, 0.28),
        (0.25, 0.19, 0.2),
        (0.42, 0.16, 0.16),
        (0.52, 0.06, 0.1),
    ):
        rings.append(
            [
                (x, half, 0.04),
                (x, half, 0.04 + (top - 0.04) * 0.6),
                (x, half * 0.5, top),
                (x, -half * 0.5, top),
                (x, -half, 0.04 + (top - 0.04) * 0.6),
                (x, -half, 0.04),
            ]
        )
    shaft = [
        (0.2, 0.19, 0.13),
        (tall * 0.6, 0.16, 0.12),
        (tall, 0.19, 0.14),
        (tall, 0.14, 0.1),
        (tall - 0.05, 0.13, 0.1),
    ]
    parts = [
        skin(np.array(rings), leather),
        stack(
            [(z, a, b, -0.18, 0) for z, a, b in shaft],
            [leather, leather, shade(leather, 0.6), shade(leather, 0.5)],
            corner=0.09,
            steps=4,
        ),
    ]
    edge = [(x, 0.05 + y) for x, y in ((-0.4, 0.1), (0.3, 0.15), (0.5, 0.08))]
    flat = np.array([*edge, *((x, -y) for x, y in edge[::-1])])[::-1]
    parts.append(extrude(flat, 0.08, sole, axis="z").move(0, 0, 0.02))
    laces = [box((0.03, 0.18, 0.025), sole, (0.02 + 0.07 * k, 0, 0.27 - 0.03 * k)) for k in range(3)]
    return parts + laces if tall < 0.6 else [*parts, box((0.16, 0.2, 0.1), sole, (-0.3, 0, -0.03))]
