"""Tables, storage, beds and lamps. Front faces +x, left and right are ±y, feet stand on z = 0."""

from __future__ import annotations

import numpy as np

from .blocks import Color, Part, box, cushion, cylinder, extrude, lathe, mirrored
from .draw import accent, chance, hue, pick, shade, smoothness, uniform, whole
from .outlines import curve
from .seats import four_legs, turned_leg

Rng = np.random.Generator


def table(rng: Rng) -> list[Part]:
    """A dining, side or coffee table, round or rectangular."""
    wood = hue(rng, "wood", "wood", "painted", "metal")
    top = wood if chance(rng, 0.6) else accent(rng, wood, "wood", "glass", "white", "stone")
    height, thick = uniform(rng, 0.35, 0.8), uniform(rng, 0.025, 0.06)
    leg = uniform(rng, 0.022, 0.05)
    if chance(rng, 0.4):
        radius, n = uniform(rng, 0.3, 0.65), pick(rng, (12, 20, 28))
        plate = lathe(
            [(radius * 0.96, height), (radius, height + thick / 2), (radius * 0.98, height + thick)], top, segments=n
        )
        if chance(rng):
            foot = lathe(
                [
                    (radius * 0.55, 0),
                    (radius * 0.5, 0.03),
                    (0.06, 0.09),
                    (0.045, height * 0.5),
                    (0.08, height * 0.8),
                    (0.12, height + 0.01),
                ],
                wood,
            )
            return [plate, foot]
        return [plate, *four_legs(turned_leg(rng, height + 0.01, leg, wood), radius * 0.6, radius * 0.6)]
    deep, long = uniform(rng, 0.45, 0.9), uniform(rng, 0.7, 1.8)
    parts = [box((deep, long, thick), top, (0, 0, height), bevel=0.008)]
    parts += four_legs(turned_leg(rng, height + 0.005, leg, wood), deep / 2 - leg * 1.6, long / 2 - leg * 1.6)
    if chance(rng, 0.6):
        parts.append(box((deep - leg * 3, long - leg * 3, 0.09), wood, (0, 0, height - 0.085)))
    if chance(rng, 0.25):
        parts.append(box((deep - leg * 3, long - leg * 3, 0.025), wood, (0, 0, height * 0.3)))
    return parts


def desk(rng: Rng) -> list[Part]:
    """A desk with a stack of drawers on one side or both."""
    wood, knob = hue(rng, "wood", "painted", "white"), hue(rng, "metal", "brass", "dark")
    deep, long, high = uniform(rng, 0.5, 0.75), uniform(rng, 1.0, 1.6), uniform(rng, 0.7, 0.78)
    parts = [box((deep, long, 0.04), shade(wood, uniform(rng, 0.75, 1.3)), (0, 0, high - 0.04), bevel=0.006)]
    both = chance(rng, 0.3)
    for side in (1, -1):
        y = side * (long / 2 - 0.2)
        if side > 0 or both:
            parts += [
                p.move(0, y) for p in drawers(rng, deep - 0.06, 0.36, high - 0.08, wood, knob, whole(rng, 2, 4), 1)
            ]
            parts += [box((deep - 0.1, 0.3, 0.06), shade(wood, 0.7), (0, y, 0))]
        else:
            parts += [box((deep - 0.06, 0.04, high - 0.03), wood, (0, -long / 2 + 0.04, 0))]
    parts.append(box((0.02, long - 0.1, high * 0.45), wood, (-deep / 2 + 0.06, 0, high * 0.53)))
    return parts


def drawers(
    rng: Rng, deep: float, wide: float, high: float, wood: Color, knob: Color, rows: int, columns: int
) -> list[Part]:
    """A chest whose front +x carries ``rows`` x ``columns`` drawers or doors with knobs; it stands at z = 0.05."""
    parts = [box((deep, wide, high - 0.05), wood, (0, 0, 0.05), bevel=0.006)]
    front = wood if chance(rng, 0.6) else shade(wood, uniform(rng, 1.2, 1.8))
    cell_y, cell_z = wide / columns, (high - 0.08) / rows
    tall = cell_z > 1.3 * cell_y
    for i in range(rows):
        for j in range(columns):
            y, z = (j - (columns - 1) / 2) * cell_y, 0.065 + i * cell_z
            parts.append(box((0.03, cell_y * 0.92, cell_z * 0.9), front, (deep / 2, y, z + cell_z * 0.05), bevel=0.006))
            inward = (1 if j < columns / 2 else -1) * cell_y * 0.36 if tall else 0.0
            size = (0.025, 0.02, 0.1) if tall else (0.025, min(0.12, cell_y * 0.4), 0.02)
            parts.append(box(size, knob, (deep / 2 + 0.022, y + inward, z + cell_z / 2)))
    return parts


def cabinet(rng: Rng) -> list[Part]:
    """A chest of drawers, sideboard, wardrobe or bedside table."""
    wood, knob = hue(rng, "wood", "wood", "painted", "white"), hue(rng, "metal", "brass", "dark")
    kind = whole(rng, 0, 3)
    wide, deep, high, rows, columns = [
        (uniform(rng, 0.6, 1.1), 0.45, uniform(rng, 0.7, 1.2), whole(rng, 3, 5), whole(rng, 1, 2)),
        (uniform(rng, 1.1, 1.8), 0.45, uniform(rng, 0.5, 0.85), whole(rng, 1, 2), whole(rng, 2, 4)),
        (uniform(rng, 0.8, 1.4), 0.58, uniform(rng, 1.6, 2.1), 1, whole(rng, 2, 3)),
        (uniform(rng, 0.38, 0.55), 0.4, uniform(rng, 0.42, 0.65), whole(rng, 1, 3), 1),
    ][kind]
    lift = uniform(rng, 0.0, 0.14)
    parts = [p.move(0, 0, lift) for p in drawers(rng, deep, wide, high, wood, knob, rows, columns)]
    parts += four_legs(turned_leg(rng, lift + 0.07, 0.03, shade(wood, 0.8)), deep / 2 - 0.05, wide / 2 - 0.05)
    if chance(rng, 0.6):
        parts.append(
            box((deep + 0.06, wide + 0.06, 0.035), shade(wood, 0.85), (0, 0, high + lift - 0.005), bevel=0.008)
        )
    return parts


def shelf(rng: Rng) -> list[Part]:
    """A bookcase, usually with books in it."""
    wood = hue(rng, "wood", "painted", "white")
    wide, deep, high = uniform(rng, 0.5, 1.1), uniform(rng, 0.24, 0.36), uniform(rng, 0.8, 2.0)
    rows = max(2, round(high / uniform(rng, 0.3, 0.42)))
    parts = mirrored([box((deep, 0.03, high), wood, (0, wide / 2 - 0.015, 0))])
    parts += [box((deep, wide - 0.02, 0.03), wood, (0, 0, z)) for z in np.linspace(0.04, high - 0.03, rows + 1)]
    if chance(rng, 0.8):
        parts.append(box((0.02, wide - 0.01, high - 0.03), shade(wood, 0.8), (-deep / 2 + 0.01, 0, 0.01)))
    gap = (high - 0.07) / rows
    for z in np.linspace(0.04, high - 0.03, rows + 1)[:-1] + 0.028:
        y = -wide / 2 + 0.03
        while y < wide / 2 - 0.1 and chance(rng, 0.85):
            size = uniform(rng, 0.04, 0.09)
            tall = gap * uniform(rng, 0.5, 0.85)
            parts.append(box((deep * 0.7, size, tall), hue(rng, "painted", "fabric"), (0.01, y + size / 2, z)))
            y += size
    return parts


def bed(rng: Rng) -> list[Part]:
    """A single, double or bunk bed with pillows and a blanket; the head is at -x."""
    wood = hue(rng, "wood", "painted", "metal", "fabric")
    sheet, cover = hue(rng, "white", "fabric"), hue(rng, "fabric", "painted", "plastic")
    wide, long, high = pick(rng, (0.9, 1.0, 1.4, 1.6, 1.8)), uniform(rng, 1.9, 2.1), uniform(rng, 0.25, 0.4)
    bed_parts = [
        box((long, wide, 0.14), wood, (0, 0, high - 0.12), bevel=0.015),
        cushion((long - 0.08, wide - 0.06, 0.2), sheet, (0, 0, high), puff=0.35),
        cushion((long * uniform(rng, 0.55, 0.7), wide + 0.02, 0.2), cover, (long * 0.17, 0, high + 0.035), puff=0.3),
    ]
    count = 1 if wide < 1.2 else 2
    for y in (np.arange(count) - (count - 1) / 2) * wide * 0.46:
        bed_parts.append(cushion((0.36, wide * 0.8 / count, 0.14), sheet, (-long / 2 + 0.26, y, high + 0.17), puff=0.5))
    head = uniform(rng, 0.3, 0.6)
    post = mirrored(
        [
            box((0.07, 0.07, high + head), wood, (-long / 2, wide / 2 - 0.02, 0)),
            box((0.07, 0.07, high + 0.15), wood, (long / 2, wide / 2 - 0.02, 0)),
        ]
    )
    board = box((0.05, wide, head * 0.9), wood, (-long / 2, 0, high - 0.05), bevel=0.01)
    if wide < 1.2 and chance(rng, 0.3):
        upper = [p.move(0, 0, 0.95) for p in [*bed_parts, board]]
        posts = four_legs(box((0.07, 0.07, high + 1.4), wood, (0, 0, 0)), long / 2, wide / 2 - 0.02)
        return [*bed_parts, board, *upper, *posts]
    return [*bed_parts, board, *post]


def lamp(rng: Rng) -> list[Part]:
    """A table or standing lamp with a shade, or an arched one."""
    metal, cloth = (
        hue(rng, "metal", "brass", "wood", "dark", "ceramic"),
        hue(rng, "light", "fabric", "painted", "white"),
    )
    n = smoothness(rng)
    high = uniform(rng, 0.25, 1.5)
    base, rod = uniform(rng, 0.08, 0.16), uniform(rng, 0.01, 0.02)
    parts = [lathe([(base, 0), (base, 0.02), (base * 0.5, 0.035), (rod, 0.05), (rod, high)], metal, segments=n)]
    if high < 0.6 and chance(rng, 0.7):
        belly = curve(
            [
                (base * 0.7, 0),
                (base * uniform(rng, 0.4, 1.2), high * 0.35),
                (base * uniform(rng, 0.3, 0.8), high * 0.7),
                (rod, high),
            ],
            10,
        )
        parts = [lathe(np.maximum(belly, [rod, 0]), metal, segments=n)]
    wide, tall = uniform(rng, 0.14, 0.26), uniform(rng, 0.15, 0.3)
    narrow = wide * uniform(rng, 0.4, 1.0)
    if chance(rng, 0.2):
        parts.append(
            lathe(
                curve([(0, high - 0.03), (wide * 0.8, high + wide * 0.6), (0.001, high + wide * 1.3)], 9),
                cloth,
                segments=n,
            )
        )
        return parts
    rim = [
        (wide, high - 0.02),
        (narrow, high - 0.02 + tall),
        (narrow - 0.015, high - 0.02 + tall),
        (wide - 0.015, high - 0.005),
    ]
    loop = [(0.0, high - 0.02 + tall * 0.8), (narrow * 0.9, high - 0.02 + tall * 0.8)]
    return [
        *parts,
        lathe([*loop[::-1][:1], *rim[3:], *rim[:3], (0, high - 0.02 + tall * 0.9)], cloth, segments=n),
        cylinder(rod, tall * 0.95, metal, (0, 0, high - 0.02), segments=6),
    ]


def piano(rng: Rng) -> list[Part]:
    """An upright piano with a keyboard."""
    wood = hue(rng, "dark", "wood", "white")
    wide, high = uniform(rng, 1.3, 1.5), uniform(rng, 1.0, 1.25)
    parts = [
        box((0.3, wide, high), wood, (-0.15, 0, 0), bevel=0.01),
        box((0.3, wide, 0.16), wood, (0.12, 0, 0.58), bevel=0.01),
    ]
    parts.append(box((0.17, wide - 0.12, 0.03), (245, 243, 235), (0.17, 0, 0.73)))
    for y in np.linspace(-wide / 2 + 0.12, wide / 2 - 0.12, 18):
        parts.append(box((0.09, 0.025, 0.025), (25, 25, 27), (0.12, y, 0.755)))
    outline = [(-0.02, 0.0), (0.25, 0.0), (0.25, 0.06), (0.16, 0.58), (-0.02, 0.58)]
    parts += mirrored([extrude(outline, 0.06, wood).move(0, wide / 2 - 0.05)])
    return [*parts, box((0.03, 0.5, 0.25), shade(wood, 1.3)).turn("y", -6).move(0.02, 0, 0.73)]
