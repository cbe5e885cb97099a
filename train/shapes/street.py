"""What stands in the street, on z = 0; fronts face +x."""

from __future__ import annotations

import numpy as np

from .blocks import Color, Part, box, cushion, cylinder, ellipsoid, extrude, lathe, mirrored, stack, torus, tube
from .draw import accent, chance, hue, pick, shade, smoothness, uniform, whole
from .outlines import curve, outline_round

Rng = np.random.Generator


def hydrant(rng: Rng) -> list[Part]:
    """A fire hydrant: flanged foot, column, bonnet, two side nozzles and one in front, perhaps a chain."""
    paint = hue(rng, "brick", "painted") if chance(rng, 0.5) else red_or_yellow(rng)
    cap = paint if chance(rng, 0.6) else accent(rng, paint, "metal", "painted", "white")
    n, high, r = max(12, smoothness(rng)), uniform(rng, 0.65, 1.0), uniform(rng, 0.17, 0.22)
    foot, brim = r * uniform(rng, 1.4, 1.75), r * uniform(rng, 1.25, 1.6)
    rows = [
        (foot, 0),
        (foot, 0.07),
        (r * 1.1, 0.1),
        (r, 0.16),
        (r, high * 0.45),
        (r * 1.06, high * 0.47),
        (r * 1.06, high * 0.52),
        (r, high * 0.54),
        (r, high),
    ]
    parts = [lathe(rows, paint, segments=n)]
    tall = uniform(rng, 0.16, 0.3)
    dome = curve([(brim * 0.9, high + 0.06), (r * 0.95, high + tall * 0.6), (r * 0.4, high + tall)], 6).tolist()
    parts.append(
        lathe(
            [(brim, high - 0.02), (brim, high + 0.05), *dome, (r * 0.25, high + tall), (r * 0.25, high + tall + 0.08)],
            cap,
            segments=n,
        )
    )
    z = high * uniform(rng, 0.68, 0.82)
    nozzle = lathe(
        [
            (r * 0.55, 0),
            (r * 0.55, r * 1.45),
            (r * 0.75, r * 1.45),
            (r * 0.72, r * 1.8),
            (r * 0.3, r * 1.85),
            (r * 0.22, r * 2.15),
        ],
        [paint, cap, cap, cap, cap],
        segments=max(8, n // 2),
    )
    parts += mirrored([nozzle.turn("x", -90).move(0, 0, z)])
    if chance(rng, 0.75):
        parts.append(nozzle.scale(1.25, 1.25, 0.9).turn("y", 90).move(0, 0, z - r * uniform(rng, 0, 0.5)))
    for k in range(pick(rng, (0, 6, 8))):
        a = k * 2 * np.pi / 8
        parts.append(
            cylinder(
                0.025, 0.05, shade(cap, 0.8), (foot * 0.85 * np.cos(a), foot * 0.85 * np.sin(a), 0.055), segments=6
            )
        )
    if chance(rng, 0.35):
        drop = curve(
            [(r * 0.6, r * 1.9, z), (r * 1.0, r * 1.6, z - 0.25), (r * 1.0, r * 0.8, z - 0.3), (r * 0.9, 0, z - 0.1)],
            10,
        )
        parts += mirrored(
            [
                tube(drop, 0.018, hue(rng, "dark", "metal"), segments=6),
                tube([(0, r * 1.9, z), (r * 0.6, r * 1.9, z)], 0.018, hue(rng, "dark"), segments=6),
            ]
        )
    return parts


def red_or_yellow(rng: Rng) -> Color:
    """One of the reds and yellows that hydrants and post boxes wear."""
    base = pick(rng, ((190, 36, 30), (150, 30, 36), (214, 60, 30), (232, 184, 30)))
    return shade(base, uniform(rng, 0.75, 1.15))


def lamp_post(rng: Rng) -> list[Part]:
    """A street lamp: lantern on top, or arms with lamps."""
    metal, glow = hue(rng, "dark", "metal", "painted"), hue(rng, "light")
    high, r, n = uniform(rng, 1.8, 3.2), uniform(rng, 0.05, 0.08), smoothness(rng)
    parts = [
        lathe(
            [(r * 3.2, 0), (r * 3, 0.12), (r * 1.8, 0.22), (r * 1.2, 0.5), (r, high * 0.5), (r * 0.9, high)],
            metal,
            segments=n,
        )
    ]
    if chance(rng, 0.5):
        sides, wide = pick(rng, (4, 6, 8, 12)), uniform(rng, 0.16, 0.24)
        rows = [
            (wide * 0.5, high - 0.05),
            (wide * 0.6, high),
            (wide, high + 0.35),
            (wide * 1.25, high + 0.37),
            (wide * 0.4, high + 0.55),
            (0, high + 0.65),
        ]
        return [*parts, lathe(rows, [metal, glow, metal, metal, metal], segments=sides)]
    reach = uniform(rng, 0.5, 0.9)
    arm = [
        tube(curve([(0, 0, high - 0.1), (0.1, 0, high + 0.25), (reach, 0, high + 0.3)], 7), r * 0.8, metal, segments=8),
        box((0.4, 0.2, 0.08), metal, (reach, 0, high + 0.25), bevel=0.02),
        box((0.3, 0.15, 0.06), glow, (reach, 0, high + 0.2)),
    ]
    return [*parts, *arm, *(p.mirror("x") for p in arm)] if chance(rng, 0.4) else [*parts, *arm]


def mailbox(rng: Rng) -> list[Part]:
    """A rounded box on a post, a pillar box, or a telephone box."""
    paint = red_or_yellow(rng) if chance(rng) else hue(rng, "painted", "metal")
    kind, dark = whole(rng, 0, 2), hue(rng, "dark")
    if kind == 0:
        wide, high = uniform(rng, 0.3, 0.4), uniform(rng, 0.9, 1.1)
        arc = [(wide / 2 * np.cos(t), 0.2 + wide / 2 * np.sin(t)) for t in np.linspace(0, np.pi, 9)]
        shell = extrude(
            [(-wide / 2, 0), (wide / 2, 0), *arc], uniform(rng, 0.5, 0.65), paint, axis="x", bevel=0.015
        ).move(0, 0, high)
        flag = [
            box((0.04, 0.03, 0.3), (200, 40, 35), (0.05, wide / 2 + 0.01, high + 0.1)),
            box((0.14, 0.03, 0.1), (200, 40, 35), (0.1, wide / 2 + 0.01, high + 0.35)),
        ]
        return [
            shell,
            box((0.1, 0.1, high + 0.02), hue(rng, "wood", "metal")),
            *flag,
            box((0.5, 0.5, 0.08), hue(rng, "leaf", "stone")),
        ]
    n = max(12, smoothness(rng))
    if kind == 1:
        rows = [(0.3, 0), (0.3, 0.15), (0.26, 0.18), (0.26, 1.2), (0.31, 1.22), (0.31, 1.3), (0.2, 1.4), (0, 1.44)]
        return [
            lathe(rows, [dark, dark, *[paint] * 5], segments=n),
            box((0.1, 0.26, 0.05), dark, (0.24, 0, 1.05)),
            box((0.06, 0.2, 0.3), (240, 238, 228), (0.245, 0, 0.65)),
        ]
    parts = [
        box((0.9, 0.9, 2.2), paint, bevel=0.03),
        box((1.0, 1.0, 0.15), shade(paint, 0.9), (0, 0, 2.1), bevel=0.03),
        ellipsoid((0.45, 0.45, 0.18), paint, (0, 0, 2.2)),
    ]
    for side in range(4):
        panes = [
            box((0.05, 0.28, 0.26), hue(rng, "glass"), (0.44, y, 0.45 + 0.31 * k))
            for y in (-0.16, 0.16)
            for k in range(5)
        ]
        parts += [p.turn("z", 90 * side) for p in panes]
    return parts


def bin_or_cone(rng: Rng) -> list[Part]:
    """A dustbin, a wheelie bin, a litter basket, a traffic cone, a bollard or a barrier."""
    paint, n, kind = hue(rng, "painted", "metal", "plastic", "leaf"), smoothness(rng), whole(rng, 0, 4)
    if kind == 0:
        r, high = uniform(rng, 0.26, 0.34), uniform(rng, 0.7, 0.95)
        ribs = [(r * (0.85 + 0.15 * t + 0.03 * (k % 2)), high * t) for k, t in enumerate(np.linspace(0, 1, 10))]
        cover = [(r * 1.1, high), (r * 1.1, high + 0.05), (r * 0.6, high + 0.14), (0.05, high + 0.16)]
        return [
            lathe(ribs, paint, segments=n),
            lathe(cover, shade(paint, 0.85), segments=n),
            torus(0.08, 0.02, shade(paint, 0.6), segments=10, around=6).turn("x", 90).move(0, 0, high + 0.17),
        ]
    if kind == 1:
        high, lid = uniform(rng, 0.9, 1.1), shade(paint, pick(rng, (0.7, 1.0, 1.4)))
        parts = [
            stack([(0.08, 0.24, 0.22), (high, 0.32, 0.28)], paint, corner=0.05, steps=2),
            extrude(
                [(-0.4, high - 0.02), (0.38, high - 0.02), (0.36, high + 0.06), (-0.38, high + 0.12)],
                0.62,
                lid,
                bevel=0.02,
            ),
        ]
        return parts + mirrored([cylinder(0.12, 0.07, (35, 35, 37), (-0.25, 0.19, 0.12), axis="y", segments=12)])
    if kind == 2:
        r, high = uniform(rng, 0.18, 0.26), uniform(rng, 0.6, 0.8)
        zs = np.linspace(0.05, high, 6)
        rows = [(r * (1 - 0.82 * t), z) for t, z in zip(np.linspace(0, 1, 6), zs, strict=True)]
        orange = shade((238, 104, 28), uniform(rng, 0.85, 1.15))
        white = (245, 245, 242)
        return [
            lathe(rows, [orange, orange, white, orange, white], segments=n),
            box((r * 2.6, r * 2.6, 0.06), orange, bevel=0.015),
        ]
    if kind == 3:
        r, high, band = uniform(rng, 0.1, 0.2), uniform(rng, 0.7, 1.0), accent(rng, paint, "white", "light", "painted")
        rows = [
            (r * 1.5, 0),
            (r * 1.5, 0.08),
            (r, 0.12),
            (r, high * 0.6),
            (r * 1.05, high * 0.6),
            (r * 1.05, high * 0.72),
            (r, high * 0.72),
            (r, high * 0.9),
            (r * 0.6, high),
            (0, high * 1.02),
        ]
        return [lathe(rows, [paint, paint, paint, band, band, band, paint, paint, paint], segments=n)]
    stripes = 7
    parts = [
        box((0.06, 0.2, 0.22), red_or_yellow(rng) if k % 2 else (245, 245, 242), (0, (k - 3) * 0.199, 0.6))
        for k in range(stripes)
    ]
    return parts + mirrored(
        [
            box((0.06, 0.08, 0.85), hue(rng, "metal"), (0, 0.6, 0)),
            box((0.5, 0.1, 0.06), hue(rng, "metal", "dark"), (0, 0.6, 0)),
        ]
    )


def sign(rng: Rng) -> list[Part]:
    """A road sign, a signpost, a notice board or a traffic light."""
    post, high = hue(rng, "metal", "wood"), uniform(rng, 1.2, 2.0)
    pole, kind = cylinder(0.045, high, post, segments=8), whole(rng, 0, 3)
    foot = lathe([(0.22, 0), (0.2, 0.06), (0.06, 0.1)], hue(rng, "stone", "metal"), segments=12)
    if kind == 0:
        sides = pick(rng, (3, 4, 8, 16))
        face, rim = (hue(rng, "white", "painted", "light"), red_or_yellow(rng))
        flat = outline_round(sides, 0.36) @ np.array([[0, 1], [-1, 0]]) if sides != 8 else outline_round(8, 0.36)
        return [
            pole,
            foot,
            extrude(flat, 0.06, rim, axis="x").move(0.03, 0, high),
            extrude(flat * 0.8, 0.03, face, axis="x").move(0.07, 0, high),
        ]
    if kind == 1:
        parts = [pole, foot]
        for k in range(whole(rng, 1, 4)):
            arrow = [(-0.1, 0), (0.5, 0), (0.65, 0.1), (0.5, 0.2), (-0.1, 0.2)]
            parts.append(
                extrude(arrow, 0.06, hue(rng, "wood", "painted"), bevel=0.008)
                .move(0, 0.05, high - 0.28 - 0.26 * k)
                .turn("z", 90.0 * whole(rng, 0, 3))
            )
        return parts
    if kind == 2:
        wide, tall = uniform(rng, 0.7, 1.4), uniform(rng, 0.4, 0.8)
        board = hue(rng, "wood", "white", "painted")
        legs = mirrored([box((0.07, 0.07, high), post, (0, wide * 0.4, 0))])
        return [
            *legs,
            box((0.06, wide, tall), board, (0.05, 0, high - tall)),
            box((0.04, wide * 0.8, tall * 0.7), accent(rng, board, "painted", "white"), (0.07, 0, high - tall * 0.85)),
        ]
    shell = box((0.2, 0.26, 0.75), hue(rng, "dark", "painted"), (0.06, 0, high - 0.1), bevel=0.03)
    lights = [
        ellipsoid((0.05, 0.085, 0.085), c, (0.16, 0, high + 0.52 - 0.22 * k), segments=12, rings=7)
        for k, c in enumerate(((215, 40, 35), (240, 180, 40), (50, 180, 80)))
    ]
    return [pole, foot, shell, *lights]


def machine(rng: Rng) -> list[Part]:
    """A vending machine, petrol pump, ticket machine or parking meter."""
    paint, second, dark = hue(rng, "painted", "plastic"), hue(rng, "white", "metal"), hue(rng, "dark", "glass")
    wide, deep, high = uniform(rng, 0.5, 0.9), uniform(rng, 0.4, 0.7), uniform(rng, 1.3, 1.9)
    x = deep / 2
    parts = [
        box((deep, wide, high), paint, bevel=0.03),
        box((0.05, wide * 0.62, high * 0.5), dark, (x, -wide * 0.12, high * 0.38)),
        box((0.06, wide * 0.18, high * 0.3), second, (x, wide * 0.34, high * 0.45)),
    ]
    parts += [
        box((0.06, wide * 0.6, high * 0.12), second, (x, -wide * 0.1, high * 0.12)),
        cushion((deep * 0.9, wide * 0.95, 0.18), second, (0, 0, high - 0.03), puff=0.2),
    ]
    for k in range(whole(rng, 0, 4)):
        parts.append(
            box(
                (0.1, wide * 0.55, 0.05),
                accent(rng, dark, "plastic", "light"),
                (x, -wide * 0.12, high * (0.45 + 0.1 * k)),
            )
        )
    if chance(rng, 0.5):
        hose = curve(
            [
                (0, wide / 2, high * 0.8),
                (0.05, wide / 2 + 0.2, high * 0.5),
                (0.05, wide / 2 + 0.15, high * 0.3),
                (0, wide / 2 - 0.01, high * 0.4),
            ],
            11,
        )
        parts.append(tube(hose, 0.03, (36, 36, 38), segments=6))
    return parts
