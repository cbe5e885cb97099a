"""Boxes, chests, bags, baskets and books, on z = 0, front +x."""

from __future__ import annotations

import numpy as np

from .blocks import Part, box, cushion, cylinder, ellipsoid, extrude, lathe, mirrored, stack, torus, tube
from .draw import accent, chance, hue, mottled, pick, shade, smoothness, uniform, whole
from .outlines import curve

Rng = np.random.Generator


def crate(rng: Rng) -> list[Part]:
    """A wooden crate, cardboard box, gift or toolbox."""
    x, y, z = uniform(rng, 0.5, 1), uniform(rng, 0.5, 1.2), uniform(rng, 0.4, 1)
    kind = whole(rng, 0, 3)
    if kind == 0:
        wood = hue(rng, "wood", "metal")
        dark, t = shade(wood, uniform(rng, 0.6, 0.85)), uniform(rng, 0.07, 0.13)
        parts = [box((x, y, z), wood)]
        parts += [box((t, t, z + 0.06), dark, (a * x / 2, b * y / 2, -0.03)) for a in (-1, 1) for b in (-1, 1)]
        parts += [box((t, y + t, t), dark, (a * x / 2, 0, h)) for a in (-1, 1) for h in (-0.03, z - t + 0.03)]
        return parts + [box((x + t, t, t), dark, (0, b * y / 2, h)) for b in (-1, 1) for h in (-0.03, z - t + 0.03)]
    if kind == 1:
        card = hue(rng, "bread", "wood", "white")
        parts = [box((x, y, z), card, bevel=0.01), box((x + 0.012, 0.1, z + 0.01), shade(card, 1.4))]
        if chance(rng, 0.5):
            flap = box((0.03, y * 0.98, x * 0.45), card)
            parts += [flap.turn("y", s * uniform(rng, 20, 70)).move(s * x * 0.49, 0, z - 0.02) for s in (1, -1)]
        return parts
    if kind == 2:
        paper = hue(rng, "plastic", "painted")
        band = accent(rng, paper, "plastic", "white", "brass")
        parts = [
            box((x, y, z), paper, bevel=0.01),
            box((x + 0.04, y + 0.04, z * 0.18), paper, (0, 0, z * 0.84), bevel=0.01),
        ]
        parts += [box((x + 0.06, 0.1, z + 0.03), band), box((0.1, y + 0.06, z + 0.03), band)]
        loop = torus(0.13, 0.04, band, segments=12, around=6).scale(1, 0.7, 1).turn("x", 60)
        return [*parts, *mirrored([loop.move(0, 0.11, z + 0.09)])]
    paint = hue(rng, "painted", "metal")
    parts = [
        box((x * 0.6, y, z * 0.55), paint, bevel=0.03),
        stack([(z * 0.5, x * 0.31, y / 2 + 0.01), (z * 0.75, x * 0.18, y * 0.46)], shade(paint, 0.85)),
    ]
    parts.append(
        tube(
            curve(
                [(0, -y * 0.28, z * 0.7), (0, -y * 0.26, z * 0.95), (0, y * 0.26, z * 0.95), (0, y * 0.28, z * 0.7)], 9
            ),
            0.035,
            hue(rng, "dark", "metal"),
            segments=6,
        )
    )
    return parts + mirrored([box((0.05, 0.1, 0.12), hue(rng, "metal"), (x * 0.3, y * 0.3, z * 0.45))])


def chest(rng: Rng) -> list[Part]:
    """A treasure chest or trunk with a rounded lid, closed or open with gold."""
    wood, metal = hue(rng, "wood", "painted"), hue(rng, "brass", "metal", "dark")
    deep, wide, high = uniform(rng, 0.5, 0.75), uniform(rng, 0.8, 1.2), uniform(rng, 0.35, 0.55)
    rise = uniform(rng, 0.25, 0.5) * deep
    arc = [(deep / 2 * np.cos(t), rise * np.sin(t)) for t in np.linspace(0, np.pi, 10)]
    lid = [extrude(arc, wide, wood)]
    band = [(1.04 * a, 1.05 * b) for a, b in arc]
    lid += [extrude(band, 0.09, metal).move(0, y) for y in (-wide * 0.35, wide * 0.35)]
    parts = [
        box((deep, wide, high), wood),
        *(box((deep + 0.03, 0.09, high + 0.01), metal, (0, y, 0)) for y in (-wide * 0.35, wide * 0.35)),
    ]
    parts += [
        box((deep + 0.02, wide + 0.02, 0.05), metal, (0, 0, 0)),
        box((0.06, 0.14, 0.2), metal, (deep / 2, 0, high - 0.12)),
    ]
    if chance(rng, 0.4):
        gold = ellipsoid((deep * 0.44, wide * 0.45, 0.14), (232, 186, 48), (0, 0, high), segments=12, rings=7)
        return [
            *parts,
            mottled(rng, gold, 0.15),
            *(p.move(deep / 2).turn("y", -60).move(-deep / 2, 0, high - 0.01) for p in lid),
        ]
    return parts + [p.move(0, 0, high - 0.01) for p in lid]


def suitcase(rng: Rng) -> list[Part]:
    """A suitcase, briefcase or trolley."""
    paint, trim = hue(rng, "painted", "fabric", "plastic", "bark"), hue(rng, "dark", "metal", "wood")
    deep, wide, high = uniform(rng, 0.2, 0.35), uniform(rng, 0.6, 0.9), uniform(rng, 0.45, 1.0)
    parts = [cushion((deep, wide, high), paint, (0, 0, 0.08), puff=0.2)]
    parts += [box((deep + 0.02, 0.07, high * 0.98), trim, (0, y * wide, 0.09), bevel=0.01) for y in (-0.28, 0.28)]
    grip = tube(
        curve([(0, -0.14, high + 0.05), (0, -0.12, high + 0.16), (0, 0.12, high + 0.16), (0, 0.14, high + 0.05)], 9),
        0.03,
        trim,
        segments=6,
    )
    parts.append(grip)
    if high > 0.65:
        parts += mirrored(
            [
                cylinder(0.06, 0.06, hue(rng, "rubber"), (x * deep * 0.3, wide * 0.35, 0.06), axis="y", segments=10)
                for x in (-1, 1)
            ]
        )
        if chance(rng):
            tall = high + uniform(rng, 0.25, 0.5)
            parts += mirrored([box((0.04, 0.04, tall), hue(rng, "metal"), (-deep * 0.42, 0.15, 0.1))])
            parts.append(box((0.07, 0.38, 0.06), trim, (-deep * 0.42, 0, tall + 0.06), bevel=0.015))
    return parts


def backpack(rng: Rng) -> list[Part]:
    """A backpack, school bag, handbag or sack."""
    cloth, kind = hue(rng, "fabric", "plastic", "painted"), whole(rng, 0, 2)
    trim = accent(rng, cloth, "fabric", "bark", "dark")
    if kind == 0:
        wide, high, deep = uniform(rng, 0.5, 0.65), uniform(rng, 0.7, 0.95), uniform(rng, 0.3, 0.4)
        parts = [
            cushion((deep, wide, high), cloth, puff=0.3),
            cushion((0.2, wide * 0.72, high * 0.42), trim, (deep / 2 + 0.02, 0, 0.06), puff=0.3),
        ]
        parts.append(
            cushion((deep * 1.1, wide * 1.03, high * 0.3), shade(cloth, 0.85), (0.01, 0, high * 0.75), puff=0.45)
        )
        strap = tube(
            curve(
                [
                    (-deep / 2, wide * 0.3, high * 0.9),
                    (-deep * 0.85, wide * 0.32, high * 0.6),
                    (-deep * 0.75, wide * 0.34, high * 0.25),
                    (-deep / 2 + 0.02, wide * 0.34, high * 0.12),
                ],
                9,
            ),
            0.045,
            trim,
            segments=6,
            flat=0.6,
        )
        return [
            *parts,
            *mirrored([strap]),
            torus(0.08, 0.022, trim, segments=12, around=6).turn("y", 90).move(-deep * 0.3, 0, high * 1.03),
        ]
    if kind == 1:
        wide, high, deep = uniform(rng, 0.7, 0.95), uniform(rng, 0.45, 0.6), uniform(rng, 0.25, 0.35)
        side = [(-wide / 2, 0), (wide / 2, 0), (wide * 0.4, high), (-wide * 0.4, high)]
        arch = curve(
            [
                (0, -wide * 0.25, high - 0.03),
                (0, -wide * 0.2, high + 0.3),
                (0, wide * 0.2, high + 0.3),
                (0, wide * 0.25, high - 0.03),
            ],
            11,
        )
        return [
            extrude(side, deep, cloth, axis="x", bevel=0.05),
            tube(arch, 0.028, trim, segments=6),
            box((0.04, 0.12, 0.12), hue(rng, "brass"), (deep / 2, 0, high * 0.55), bevel=0.01),
            extrude(
                np.array(side) * (0.96, 0.45) + (0, high * 0.56), deep + 0.03, shade(cloth, 0.85), axis="x", bevel=0.05
            ),
        ]
    rows = curve([(0.3, 0), (0.42, 0.2), (0.36, 0.55), (0.12, 0.75), (0.22, 0.95)], 12)
    return [
        mottled(rng, lathe(rows, cloth, segments=smoothness(rng)), 0.04),
        torus(0.13, 0.03, trim, (0, 0, 0.76), segments=14, around=6),
    ]


def basket(rng: Rng) -> list[Part]:
    """A wicker basket, shopping basket or tray with things in it."""
    wicker, n = hue(rng, "wood", "bread", "plastic"), pick(rng, (10, 14, 18))
    low, top, high, long = (
        uniform(rng, 0.32, 0.4),
        uniform(rng, 0.42, 0.52),
        uniform(rng, 0.25, 0.5),
        uniform(rng, 1, 1.5),
    )
    rows, paint = [], []
    for k, t in enumerate(np.linspace(0, 1, 7)):
        rows.append((low + (top - low) * t + 0.012 * (k % 2), high * t))
        paint.append(wicker if k % 2 else shade(wicker, 0.85))
    profile = [*rows, (top - 0.05, high), (low - 0.04, 0.05), (0, 0.05)]
    parts = [
        lathe(profile, [*paint[:6], wicker, shade(wicker, 0.7), shade(wicker, 0.7)], segments=n).scale(1, long, 1),
        torus(top, 0.04, wicker, (0, 0, high), segments=n, around=6).scale(1, long, 1),
    ]
    if chance(rng, 0.7):
        arch = [(top * np.cos(t), 0, high + top * 1.1 * np.sin(t)) for t in np.linspace(0, np.pi, 11)]
        parts.append(tube(arch, 0.04, wicker, segments=6))
    if chance(rng, 0.6):
        thing = hue(rng, "flower", "leaf", "bread", "autumn")
        for k in range(7):
            a, r = 2.4 * k, 0.0 if k == 0 else top * 0.55
            parts.append(
                ellipsoid(
                    (0.18, 0.18, 0.17),
                    shade(thing, uniform(rng, 0.85, 1.2)),
                    (r * np.cos(a), r * np.sin(a) * long, high * 0.75 + 0.06 * (k == 0)),
                    segments=10,
                    rings=7,
                )
            )
    return parts


def book(rng: Rng) -> list[Part]:
    """A book, a pile of books, or an open one."""
    parts, z = [], 0.0
    for k in range(pick(rng, (1, 2, 3, 4))):
        cover, x, y, high = (
            hue(rng, "painted", "plastic", "fabric"),
            uniform(rng, 0.45, 0.6),
            uniform(rng, 0.65, 0.85),
            uniform(rng, 0.1, 0.2),
        )
        one = [
            box((x, y, 0.025), cover),
            box((x - 0.03, y - 0.04, high), (244, 238, 222), (-0.01, 0, 0.02)),
            box((x, y, 0.025), cover, (0, 0, high + 0.01)),
            box((0.03, y, high + 0.03), cover, (-x / 2, 0, 0)),
        ]
        turn = uniform(rng, -25, 25) * (k > 0)
        parts += [p.turn("z", turn).move(0, 0, z) for p in one]
        z += high + 0.03
    return [p.turn("y", 90).turn("z", 180) for p in parts] if len(parts) == 4 and chance(rng, 0.4) else parts
