"""Tools, weapons and cutlery. They stand upright on z = 0, or lie along y with their flat side up."""

from __future__ import annotations

import numpy as np

from .blocks import Color, Part, box, cushion, cylinder, ellipsoid, extrude, lathe, torus, tube
from .draw import accent, chance, hue, pick, shade, smoothness, uniform, whole
from .outlines import curve, outline_rect

Rng = np.random.Generator


def posed(rng: Rng, parts: list[Part]) -> list[Part]:
    """An upright tool as it is, upside down, leaning, or lying."""
    kind = whole(rng, 0, 4)
    if kind == 3:
        return [p.turn("x", 180) for p in parts]
    if kind == 4:
        return [p.turn("x", 90) for p in parts]
    lean = uniform(rng, -45, 45)
    return [p.turn("x", lean) for p in parts] if kind == 2 else parts


def hammer(rng: Rng) -> list[Part]:
    """A hammer, mallet, axe or pickaxe."""
    wood, metal = hue(rng, "wood", "plastic"), hue(rng, "metal", "dark")
    long, thick, kind = uniform(rng, 0.8, 1.3), uniform(rng, 0.035, 0.055), whole(rng, 0, 3)
    grip = hue(rng, "dark", "painted") if chance(rng, 0.4) else wood
    parts = [
        lathe(
            [(thick * 1.2, 0), (thick * 1.3, long * 0.3), (thick, long * 0.35), (thick * 0.9, long + 0.05)],
            [grip, wood, wood],
            segments=10,
        )
    ]
    if kind == 0:
        size = uniform(rng, 0.09, 0.13)
        parts += [
            cylinder(size * 0.8, 0.2, metal, (0, 0.03, long), axis="y", segments=12),
            cylinder(size, 0.08, metal, (0, 0.2, long), axis="y", segments=12),
        ]
        claw = [
            (0.1, long + 0.06),
            (-0.05, long + 0.08),
            (-0.3, long - 0.03),
            (-0.28, long - 0.07),
            (-0.05, long - 0.06),
            (0.1, long - 0.06),
        ]
        parts.append(extrude(claw, 0.1, metal, axis="x"))
    elif kind == 1:
        size = uniform(rng, 0.12, 0.2)
        parts.append(
            cylinder(
                size,
                size * 3.2,
                pick(rng, (wood, metal)),
                (0, -size * 1.6, long),
                axis="y",
                segments=pick(rng, (4, 8, 14)),
            )
        )
    elif kind == 2:
        wide, tall = uniform(rng, 0.25, 0.45), uniform(rng, 0.14, 0.24)
        blade = [
            (0.06, long + 0.08),
            (-0.06, long + 0.09),
            (-wide, long + tall),
            (-wide - 0.05, long),
            (-wide, long - tall),
            (-0.06, long - 0.09),
            (0.06, long - 0.08),
        ]
        parts.append(extrude(blade, 0.07, metal, axis="x", bevel=0.02))
        if chance(rng, 0.4):
            parts.append(extrude(blade, 0.07, metal, axis="x", bevel=0.02).mirror())
    else:
        arc = [(0, y, long - 1.2 * y * y) for y in np.linspace(-0.45, 0.45, 11)]
        parts.append(tube(arc, np.append(np.append(0.01, np.full(9, 0.05)), 0.01), metal, segments=6))
    return posed(rng, parts)


def sword(rng: Rng) -> list[Part]:
    """A sword, dagger, kitchen knife, spear or staff."""
    metal, grip, gold = hue(rng, "metal"), hue(rng, "wood", "dark", "painted"), hue(rng, "brass", "metal")
    kind, long, wide = whole(rng, 0, 3), uniform(rng, 0.7, 1.3), uniform(rng, 0.06, 0.14)
    if kind <= 1:
        blade = [
            (-wide, 0.3),
            (wide, 0.3),
            (wide * uniform(rng, 0.6, 1), 0.3 + long * 0.8),
            (0, 0.3 + long),
            (-wide * 0.8, 0.3 + long * 0.8),
        ]
        parts = [
            extrude(blade, 0.06, metal, axis="x", bevel=0.025),
            cylinder(0.045, 0.3, grip, (0, 0, 0.02), segments=8),
            ellipsoid((0.065,) * 3, gold, (0, 0, 0), segments=10, rings=7),
        ]
        return posed(rng, [*parts, box((0.1, uniform(rng, 0.3, 0.5), 0.07), gold, (0, 0, 0.28), bevel=0.02)])
    if kind == 2:
        blade = [
            (-0.02, 0.3),
            (wide, 0.32),
            (wide, 0.3 + long * 0.5),
            (0, 0.3 + long * 0.75),
            (-0.02, 0.3 + long * 0.75),
        ]
        return posed(
            rng, [extrude(blade, 0.05, metal, axis="x", bevel=0.01), cushion((0.07, 0.11, 0.35), grip, (0, 0.03, 0))]
        )
    tall = uniform(rng, 1.4, 2.0)
    parts = [cylinder(0.04, tall, grip, segments=8)]
    if chance(rng):
        head = [(-0.1, tall), (0, tall - 0.15), (0.1, tall), (0, tall + 0.35)]
        return posed(
            rng,
            [
                *parts,
                extrude(head, 0.08, metal, axis="x", bevel=0.02),
                cylinder(0.06, 0.1, gold, (0, 0, tall - 0.18), segments=10),
            ],
        )
    gem = ellipsoid(
        (0.12, 0.12, 0.16),
        hue(rng, "plastic"),
        (0, 0, tall + 0.1),
        segments=pick(rng, (4, 6, 12)),
        rings=pick(rng, (3, 5, 9)),
    )
    return posed(
        rng,
        [
            *parts,
            lathe([(0.04, tall - 0.1), (0.11, tall), (0.13, tall + 0.06), (0.09, tall + 0.03)], gold, segments=10),
            gem,
        ],
    )


def gun(rng: Rng) -> list[Part]:
    """A blocky toy gun, ray gun, water pistol or blaster; it points to +x."""
    body, second = hue(rng, "metal", "dark", "plastic"), hue(rng, "dark", "painted", "plastic", "wood")
    long, high, wide = uniform(rng, 0.6, 1.2), uniform(rng, 0.14, 0.22), uniform(rng, 0.09, 0.15)
    parts = [box((long, wide, high), body, (0, 0, 0.4), bevel=0.02)]
    slant = uniform(rng, 0.05, 0.15)
    grip_x = -long * uniform(rng, 0.15, 0.4)
    parts.append(
        extrude(
            [(grip_x - slant - 0.09, 0.05), (grip_x - slant + 0.09, 0.05), (grip_x + 0.1, 0.45), (grip_x - 0.08, 0.45)],
            wide * 0.9,
            second,
            bevel=0.015,
        )
    )
    parts.append(torus(0.07, 0.014, second, segments=14, around=6).turn("x", 90).move(grip_x + 0.15, 0, 0.36))
    reach, r = uniform(rng, 0.1, 0.6), uniform(rng, 0.035, 0.065)
    parts.append(cylinder(r, reach, second, (long / 2 - 0.02, 0, 0.4 + high * 0.55), axis="x", segments=12))
    for k in range(whole(rng, 0, 3)):
        parts.append(
            cylinder(
                r * 1.5,
                0.04,
                accent(rng, body, "plastic", "brass"),
                (long / 2 + reach * (0.2 + 0.3 * k) - 0.02, 0, 0.4 + high * 0.55),
                axis="x",
                segments=12,
            )
        )
    if chance(rng, 0.5):
        parts += [
            cylinder(0.05, 0.35, second, (-0.15, 0, 0.46 + high), axis="x", segments=12),
            box((0.08, 0.05, 0.1), second, (0, 0, 0.36 + high)),
        ]
    if chance(rng, 0.5):
        parts.append(
            extrude(
                [
                    (-long / 2 - 0.4, 0.25),
                    (-long / 2 + 0.02, 0.42),
                    (-long / 2 + 0.02, 0.4 + high),
                    (-long / 2 - 0.4, 0.5),
                ],
                wide * 0.8,
                second,
                bevel=0.02,
            )
        )
    if chance(rng, 0.4):
        parts.append(box((0.12, wide * 0.7, 0.3), shade(body, 0.7), (long * 0.12, 0, 0.14), bevel=0.015).turn("y", -5))
    return parts


def screwdriver(rng: Rng) -> list[Part]:
    """A screwdriver, paint brush, broom, spanner, wrench, pencil or candle."""
    kind, metal, grip = whole(rng, 0, 4), hue(rng, "metal"), hue(rng, "plastic", "wood", "painted")
    n = smoothness(rng)
    if kind == 0:
        return _screwdriver(rng, grip, metal, n)
    if kind == 1:
        return _brush(rng, grip, metal)
    if kind == 2:
        return _spanner(rng, metal)
    if kind == 3:
        return _pencil(rng, grip, metal)
    return _candle(rng, n)


def _screwdriver(rng: Rng, grip: Color, metal: Color, n: int) -> list[Part]:
    """A screwdriver, handle down."""
    rows = [
        (0.06, 0),
        (0.09, 0.05),
        (0.075, 0.2),
        (0.09, 0.32),
        (0.05, 0.4),
        (0.03, 0.42),
        (0.03, 0.95),
        (0.01, 1.0),
    ]
    return posed(rng, [lathe(rows, [grip] * 5 + [metal] * 2, segments=n)])


def _brush(rng: Rng, grip: Color, metal: Color) -> list[Part]:
    """A paint brush or a broom, bristles up."""
    hair, wide = hue(rng, "hair", "bark", "light"), uniform(rng, 0.08, 0.25)
    long = uniform(rng, 0.5, 1.4)
    parts = [
        tube([(0, 0, 0), (0, 0, long * 0.5), (0, 0, long)], [0.035, 0.055, 0.035], grip),
        box((0.12, wide * 2, 0.14), metal, (0, 0, long - 0.02), bevel=0.01),
    ]
    return posed(
        rng, [*parts, cushion((0.13, wide * 2.1, uniform(rng, 0.2, 0.4)), hair, (0, 0, long + 0.09), puff=0.15)]
    )


def _spanner(rng: Rng, metal: Color) -> list[Part]:
    """A spanner: a jaw at one end, a ring at the other."""
    jaw = [
        (-0.05, 0.75),
        (-0.16, 0.85),
        (-0.14, 1.05),
        (-0.06, 1.1),
        (-0.06, 0.95),
        (0.06, 0.95),
        (0.06, 1.1),
        (0.14, 1.05),
        (0.16, 0.85),
        (0.05, 0.75),
    ]
    ring = torus(0.11, 0.045, metal, segments=14, around=6).turn("y", 90)
    return posed(
        rng,
        [
            extrude(jaw, 0.09, metal, axis="x", bevel=0.01),
            box((0.07, 0.12, 0.72), metal, (0, 0, 0.08), bevel=0.015),
            ring,
        ],
    )


def _pencil(rng: Rng, grip: Color, metal: Color) -> list[Part]:
    """A pencil, point down."""
    lead, wood = hue(rng, "dark", "plastic"), (226, 190, 140)
    rows = [
        (0.0, 0),
        (0.03, 0.08),
        (0.08, 0.22),
        (0.08, 1.05),
        (0.085, 1.05),
        (0.085, 1.12),
        (0.075, 1.12),
        (0.07, 1.22),
    ]
    return posed(rng, [lathe(rows, [lead, wood, grip, metal, metal, metal, (230, 140, 140)], segments=6)])


def _candle(rng: Rng, n: int) -> list[Part]:
    """A lit candle on a dish."""
    wax, r, high = hue(rng, "white", "flower", "light"), uniform(rng, 0.1, 0.2), uniform(rng, 0.3, 0.8)
    flame = lathe(
        [(0.02, high + 0.03), (0.06, high + 0.1), (0.04, high + 0.18), (0, high + 0.26)], (250, 176, 50), segments=8
    )
    holder = lathe(
        [(0.24, 0), (0.32, 0.07), (0.3, 0.08), (0.2, 0.03)], hue(rng, "brass", "metal", "ceramic"), segments=n
    )
    return [
        holder,
        cylinder(r, high, wax, (0, 0, 0.01), segments=n),
        flame,
        cylinder(0.015, 0.06, (40, 36, 32), (0, 0, high), segments=5),
    ]


def cutlery(rng: Rng) -> list[Part]:
    """A spoon, ladle, fork, spatula or shovel."""
    metal, grip, kind = (
        hue(rng, "metal", "wood", "plastic"),
        hue(rng, "wood", "metal", "plastic", "dark"),
        whole(rng, 0, 2),
    )
    long, thick = uniform(rng, 0.7, 1.2), uniform(rng, 0.04, 0.055)
    if chance(rng, 0.5):
        grip = metal
    parts = [tube([(0, 0, 0), (0, 0, 0.1), (0, 0, long)], [thick * 1.2, thick * 1.3, thick * 0.9], grip, flat=0.7)]
    if kind == 0:
        w, t = uniform(rng, 0.13, 0.22), uniform(rng, 0.07, 0.14)
        parts.append(ellipsoid((t, w, w * 1.3), metal, (0, 0, long + w), segments=14, rings=9))
    elif kind == 1:
        parts.append(box((0.07, 0.3, 0.12), metal, (0, 0, long - 0.03), bevel=0.02))
        parts += [box((0.06, 0.05, 0.3), metal, (0, y, long + 0.06), bevel=0.012) for y in (-0.12, 0, 0.12)]
    else:
        outline = np.add(outline_rect(0.17, 0.22, 0.08, 4), (0, long + 0.15))
        parts.append(extrude(outline, 0.08, metal, axis="x", bevel=0.02))
        if chance(rng, 0.5):
            parts.append(torus(0.09, 0.03, grip, segments=12, around=6).turn("y", 90).move(0, 0, -0.06))
    return posed(rng, parts)


def shield(rng: Rng) -> list[Part]:
    """A shield, or a helmet."""
    metal, paint, trim = hue(rng, "metal"), hue(rng, "painted", "wood"), hue(rng, "brass", "metal")
    if chance(rng, 0.4):
        rows = curve([(0.42, 0), (0.46, 0.3), (0.3, 0.62), (0, 0.72)], 9)
        rows[-1, 0] = 0
        parts = [
            lathe([(0.3, 0.02), *rows.tolist()], metal, segments=16),
            torus(0.44, 0.035, trim, (0, 0, 0.03), segments=18, around=6),
            box((0.06, 0.5, 0.07), (30, 30, 32), (0.43, 0, 0.26)),
        ]
        crest = [(0.45 * np.cos(t), 0.2 + 0.62 * np.sin(t)) for t in np.linspace(0.3, np.pi - 0.2, 10)]
        return [*parts, extrude(crest, 0.07, paint)] if chance(rng) else parts
    kind = whole(rng, 0, 2)
    if kind == 0:
        disc = lathe(
            [(0.5, 0), (0.5, 0.05), (0.45, 0.06), (0.44, 0.05), (0.15, 0.09), (0.14, 0.15), (0, 0.18)],
            [trim, trim, trim, paint, metal, metal],
            segments=20,
        )
        return [disc.turn("y", 90)]
    outline = [(0, -0.6), (0.25, -0.4), (0.42, 0.0), (0.42, 0.5), (0, 0.56), (-0.42, 0.5), (-0.42, 0.0), (-0.25, -0.4)]
    front = np.array(outline) * 0.86
    return [
        extrude(outline, 0.08, trim, axis="x"),
        extrude(front, 0.12, paint, axis="x", bevel=0.03),
        box((0.14, 0.09, 0.9), metal, (0, 0, -0.42)),
        box((0.14, 0.7, 0.09), metal, (0, 0, 0.12)),
    ]
