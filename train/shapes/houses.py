"""Dwelling houses and the pieces other buildings share, on z = 0; the door faces +x."""

from __future__ import annotations

import numpy as np

from .blocks import Color, Part, box, cylinder, extrude, mirrored, stack
from .draw import chance, hue, mottled, pick, shade, uniform

Rng = np.random.Generator


def gable_roof(
    deep: float, wide: float, rise: float, color: Color, gable: Color, *, over: float, along: str, thick: float = 0.14
) -> list[Part]:
    """A gable roof on z = 0 over a house of ``deep`` (x) by ``wide`` (y); the ridge runs ``along`` x or y."""
    span, long = (wide, deep) if along == "x" else (deep, wide)
    half, slope = span / 2, rise / (span / 2)
    low = -over * slope
    sheet = [
        (-half - over, low),
        (0, rise),
        (half + over, low),
        (half + over, low + thick),
        (0, rise + thick * 1.25),
        (-half - over, low + thick),
    ]
    triangle = [(-half, -0.05), (half, -0.05), (0, rise + 0.02)]
    # The side outlines lie across the ridge: (y, z) when it runs along x, (x, z) when along y.
    return [extrude(sheet, long + 2 * over, color, axis=along), extrude(triangle, long, gable, axis=along)]


def hip_roof(deep: float, wide: float, rise: float, color: Color, *, over: float, tip: float) -> Part:
    """A hipped or pyramid roof on z = 0; ``tip`` is the top's size over the foot's, 0 makes a point."""
    x, y = deep / 2 + over, wide / 2 + over
    shift = min(x, y) * (1 - tip)
    top = (max(x - shift, 0.0), max(y - shift, 0.0)) if tip > 0 else (0.0, 0.0)
    return stack([(-0.08, x, y), (0.06, x, y), (rise, *top)], [shade(color, 0.8), color])


def window(wide: float, high: float, frame: Color, glass: Color, *, sill: bool, cross: bool) -> list[Part]:
    """A window that faces +x, its lower edge's middle at the origin."""
    parts = [box((0.1, wide + 0.16, high + 0.16), frame, (0, 0, -0.08)), box((0.14, wide, high), glass)]
    if cross:
        parts += [box((0.18, 0.06, high), frame), box((0.18, wide, 0.06), frame, (0, 0, high / 2 - 0.03))]
    return [*parts, box((0.3, wide + 0.3, 0.08), frame, (0.05, 0, -0.12))] if sill else parts


def door(wide: float, high: float, leaf: Color, frame: Color, *, arched: bool) -> list[Part]:
    """A door that faces +x on z = 0, with a step."""
    parts = [box((0.12, wide + 0.24, high + 0.12), frame), box((0.2, wide, high), leaf)]
    if arched:
        disc = cylinder(wide / 2 + 0.12, 0.12, frame, (-0.06, 0, high), axis="x", segments=14)
        parts = [*parts, disc, cylinder(wide / 2, 0.2, leaf, (-0.1, 0, high), axis="x", segments=14)]
    knob = box((0.08, 0.08, 0.08), (200, 170, 60), (0.12, wide * 0.32, high * 0.45))
    return [*parts, knob, box((0.5, wide + 0.4, 0.12), (150, 148, 142), (0.2, 0, 0))]


def on_side(parts: list[Part], side: int, deep: float, wide: float, along: float, z: float) -> list[Part]:
    """Parts that face +x put on one of the four walls (0: +x, 1: +y, 2: -x, 3: -y), ``along`` from its middle."""
    out = deep / 2 if side % 2 == 0 else wide / 2
    return [p.move(out, along, z).turn("z", 90.0 * side) for p in parts]


def storey_windows(
    rng: Rng, deep: float, wide: float, z: float, high: float, frame: Color, glass: Color, skip_front: bool
) -> list[Part]:
    """Windows round one storey; with ``skip_front`` the middle of the front is left to the door."""
    sill, cross, size = chance(rng), chance(rng), uniform(rng, 0.6, 0.95)
    parts: list[Part] = []
    for side in range(4):
        length = wide if side % 2 == 0 else deep
        count = max(1, int(length / uniform(rng, 1.6, 2.4)))
        if side == 0 and skip_front:
            count = 2 if length > 3 else 0
        for k in range(count):
            along = ((k + 0.5) / count - 0.5) * length * (1.15 if skip_front and side == 0 else 1)
            parts += on_side(
                window(size, high * 0.45, frame, glass, sill=sill, cross=cross),
                side,
                deep,
                wide,
                along,
                z + high * 0.35,
            )
    return parts


def chimney(rng: Rng, high: float, color: Color) -> list[Part]:
    """A chimney on z = 0."""
    wide = uniform(rng, 0.35, 0.55)
    return [
        box((wide, wide, high), color),
        box((wide + 0.15, wide + 0.15, 0.15), shade(color, 0.8), (0, 0, high - 0.05)),
        box((wide * 0.5, wide * 0.5, 0.2), shade(color, 0.5), (0, 0, high)),
    ]


def house(rng: Rng) -> list[Part]:
    """A house of one to three storeys with a gable, hip or flat roof, perhaps with chimney, porch, dormer or wing."""
    wall, roof = hue(rng, "wall", "wall", "brick", "stone", "painted"), hue(rng, "roof")
    frame, leaf, glass = (
        hue(rng, "white", "wood", "painted"),
        hue(rng, "wood", "painted"),
        hue(rng, "glass", "glass", "light", "dark"),
    )
    deep, wide, storeys, each = (
        uniform(rng, 2.6, 5.0),
        uniform(rng, 2.8, 6.0),
        pick(rng, (1, 1, 2, 2, 3)),
        uniform(rng, 1.7, 2.3),
    )
    high = storeys * each
    parts = [box((deep, wide, high), wall)]
    if chance(rng, 0.5):
        parts.append(box((deep + 0.12, wide + 0.12, uniform(rng, 0.2, 0.8)), hue(rng, "stone", "brick"), (0, 0, 0)))
    for k in range(storeys):
        parts += storey_windows(rng, deep, wide, k * each, each, frame, glass, k == 0)
        if k and chance(rng, 0.4):
            parts.append(box((deep + 0.1, wide + 0.1, 0.16), frame, (0, 0, k * each - 0.08)))
    parts += on_side(door(0.85, each * 0.68, leaf, frame, arched=chance(rng, 0.3)), 0, deep, wide, 0, 0)
    parts += _house_roof(rng, deep, wide, high, roof, wall)
    if chance(rng, 0.3):
        post, reach = hue(rng, "white", "wood"), uniform(rng, 0.8, 1.3)
        parts += [
            p.move(deep / 2 + reach / 2)
            for p in (
                box((reach, 2.2, 0.15), hue(rng, "stone", "wood")),
                box((reach + 0.3, 2.5, 0.16), roof, (0, 0, each * 0.88)),
            )
        ]
        parts += mirrored([box((0.15, 0.15, each * 0.9), post, (deep / 2 + reach - 0.12, 1.0, 0))])
    if chance(rng, 0.25):
        d, w, h = deep * uniform(rng, 0.5, 0.8), uniform(rng, 1.4, 2.2), each * 0.9
        wing = [
            box((d, w, h), wall),
            *(p.move(0, 0, h) for p in gable_roof(d, w, w * 0.35, roof, wall, over=0.15, along="x")),
        ]
        wing += on_side(window(0.6, 0.8, frame, glass, sill=True, cross=True), 0, d, w, 0, 0.6)
        side = pick(rng, (1, -1))
        parts += [p.move(0, side * (wide / 2 + w / 2 - 0.1)) for p in wing]
    if chance(rng, 0.3):
        green = hue(rng, "leaf")
        parts.append(
            box((deep + uniform(rng, 0.8, 2), wide + uniform(rng, 0.8, 2), 0.15), green, (0.2, 0, -0.13), bevel=0.05)
        )
    return parts


def _house_roof(rng: Rng, deep: float, wide: float, high: float, roof: Color, wall: Color) -> list[Part]:
    kind, over = pick(rng, ("gable", "gable", "gable", "hip", "pyramid", "flat")), uniform(rng, 0.15, 0.45)
    short = min(deep, wide)
    if kind == "flat":
        lip = [(high - 0.05, deep / 2 + 0.12, wide / 2 + 0.12), (high + 0.25, deep / 2 + 0.12, wide / 2 + 0.12)]
        return [stack(lip, roof), box((0.8, 0.8, 0.4), hue(rng, "metal"), (-deep * 0.2, wide * 0.2, high + 0.2))]
    rise = short * uniform(rng, 0.3, 0.75)
    if kind != "gable":
        parts = [
            hip_roof(deep, wide, rise, roof, over=over, tip=uniform(rng, 0.1, 0.3) if kind == "hip" else 0.0).move(
                0, 0, high
            )
        ]
    else:
        along = "x" if chance(rng, 0.35) else "y"
        parts = [
            p.move(0, 0, high)
            for p in gable_roof(
                deep, wide, rise, roof, wall if chance(rng) else hue(rng, "wood", "wall"), over=over, along=along
            )
        ]
        if along == "y" and rise > 1.0 and chance(rng, 0.45):
            parts += _dormer(rng, deep, rise, high, roof, wall)
    if chance(rng, 0.6):
        stack_high = rise * 0.9 + 0.5
        side = pick(rng, (0.28, -0.28))
        parts += [
            p.move(-deep * 0.12, wide * side, high)
            for p in chimney(rng, stack_high, hue(rng, "brick", "stone", "wall"))
        ]
    return [mottled(rng, parts[0], 0.04), *parts[1:]]


def _dormer(rng: Rng, deep: float, rise: float, high: float, roof: Color, wall: Color) -> list[Part]:
    """A dormer window in the front slope of a gable roof whose ridge runs along y."""
    wide, tall, long = uniform(rng, 0.9, 1.3), rise * 0.45, deep * 0.35
    parts = [
        box((long, wide, tall), wall),
        *(p.move(0, 0, tall) for p in gable_roof(long, wide, wide * 0.45, roof, wall, over=0.1, along="x", thick=0.1)),
    ]
    parts += [
        p.move(long / 2)
        for p in window(wide * 0.5, tall * 0.6, hue(rng, "white", "wood"), hue(rng, "glass"), sill=False, cross=True)
    ]
    return [p.move(deep / 2 - long / 2 - deep * 0.08, 0, high + rise * 0.12) for p in parts]
