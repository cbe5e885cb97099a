"""Towers, castles, barns, shops and churches, on z = 0; the door faces +x."""

from __future__ import annotations

import numpy as np

from .blocks import Color, Part, box, cylinder, extrude, lathe, mirrored
from .draw import accent, chance, hue, mottled, pick, shade, uniform, whole
from .houses import door, gable_roof, hip_roof, on_side, storey_windows, window

Rng = np.random.Generator


def crenels(
    radius_x: float, radius_y: float, z: float, size: float, color: Color, *, round_count: int = 0
) -> list[Part]:
    """Battlements along a rectangle's edge, or round a circle when ``round_count`` > 0."""
    if round_count:
        return [
            box((size, size, size), color, (radius_x - size * 0.4, 0, z)).turn("z", 360 * k / round_count)
            for k in range(round_count)
        ]
    parts = []
    for half, other, turn in ((radius_x, radius_y, 0), (radius_y, radius_x, 90)):
        count = max(2, round(other / size))
        for t in np.linspace(-1, 1, count) * (other - size / 2):
            merlon = box((size, size, size), color, (half - size / 2, t, z))
            parts += [merlon.turn("z", turn), merlon.turn("z", turn + 180)]
    return parts


def tower(rng: Rng) -> list[Part]:
    """A round or square tower: castle, lighthouse, windmill or water tower."""
    kind = pick(rng, ("castle", "castle", "light", "mill", "square"))
    wall, roof = hue(rng, "stone", "wall", "brick"), hue(rng, "roof")
    high, radius, n = uniform(rng, 3.5, 6.5), uniform(rng, 0.8, 1.3), pick(rng, (8, 10, 12, 16, 20))
    leaf = hue(rng, "wood")
    top = radius * (uniform(rng, 0.6, 0.8) if kind in ("light", "mill") else uniform(rng, 0.9, 1.0))
    parts = door(0.6, 1.1, leaf, shade(wall, 0.7), arched=True)
    parts = [p.move(radius - 0.06) for p in parts]
    if kind == "square":
        parts += [
            mottled(rng, box((radius * 2, radius * 2, high), wall)),
            box((radius * 2.3, radius * 2.3, 0.3), shade(wall, 0.85), (0, 0, high - 0.1)),
        ]
    else:
        zs = np.linspace(0, high, 7)
        stripes = (
            [accent(rng, wall, "painted", "white") if k % 2 else wall for k in range(6)]
            if kind == "light"
            else [wall] * 6
        )
        if kind == "light":
            stripes = [stripes[k % 2] for k in range(6)]
        parts.append(mottled(rng, lathe(np.column_stack([np.linspace(radius, top, 7), zs]), stripes, segments=n), 0.03))
    for k in range(whole(rng, 2, 6)):
        z = high * (0.3 + 0.1 * k)
        wall_at = radius + (top - radius) * z / high if kind != "square" else radius
        parts += [
            p.move(wall_at * 0.97, 0, z).turn("z", 90.0 * k)
            for p in window(0.3, 0.5, shade(wall, 0.75), (40, 44, 52), sill=False, cross=False)
        ]
    if kind == "mill":
        return parts + _mill_sails(rng, high, top, roof)
    if kind == "light":
        parts += [
            cylinder(top * 1.35, 0.15, shade(wall, 0.6), (0, 0, high - 0.05), segments=n),
            cylinder(top * 0.7, 0.8, (250, 225, 120), (0, 0, high), segments=n),
        ]
        return [*parts, cylinder(top * 0.95, 0.6, roof, (0, 0, high + 0.75), top=0.0, segments=n)]
    rim = radius * 1.15
    if kind == "castle":
        parts.append(
            lathe(
                [(top * 0.95, high - 0.35), (rim, high - 0.1), (rim, high + 0.25), (rim * 0.8, high + 0.25)],
                shade(wall, 0.92),
                segments=n,
            )
        )
    if chance(rng):
        size = rim * 0.32
        parts += crenels(rim, rim, high + 0.18, size, wall, round_count=0 if kind == "square" else 10)
    elif kind == "castle":
        parts.append(cylinder(rim * 1.1, uniform(rng, 1.0, 2.2), roof, (0, 0, high + 0.2), top=0.0, segments=n))
    else:
        parts.append(
            hip_roof(radius * 2, radius * 2, uniform(rng, 0.9, 2.0), roof, over=0.3, tip=0.0).move(0, 0, high + 0.15)
        )
    return parts


def _mill_sails(rng: Rng, high: float, top: float, roof: Color) -> list[Part]:
    """The cap and the four sails of a windmill; the sails turn in the plane x = const."""
    wood, cloth = hue(rng, "wood"), hue(rng, "white", "fabric")
    parts = [
        lathe([(top * 1.1, high - 0.1), (top, high + 0.4), (0, high + 0.9)], roof, segments=12),
        cylinder(0.12, top + 0.5, wood, (0, 0, high + 0.1), axis="x", segments=8),
    ]
    spin, long = uniform(rng, 0, 90), high * uniform(rng, 0.45, 0.55)
    for k in range(4):
        arm = [box((0.1, 0.12, long), wood), box((0.05, 0.55, long * 0.75), cloth, (0, 0.3, long * 0.2))]
        parts += [p.turn("x", spin + 90 * k).move(top + 0.45, 0, high + 0.1) for p in arm]
    return parts


def castle(rng: Rng) -> list[Part]:
    """A keep or gate with corner towers and battlements."""
    wall, roof, n = hue(rng, "stone", "wall"), hue(rng, "roof"), pick(rng, (8, 12, 16))
    deep, wide, high = uniform(rng, 2.5, 4.5), uniform(rng, 3.0, 5.0), uniform(rng, 1.6, 2.6)
    parts = [mottled(rng, box((deep, wide, high), wall), 0.03), *crenels(deep / 2, wide / 2, high - 0.02, 0.35, wall)]
    parts += on_side(door(1.0, high * 0.45, hue(rng, "wood"), shade(wall, 0.7), arched=True), 0, deep, wide, 0, 0)
    radius, tall, pointed = uniform(rng, 0.5, 0.75), high * uniform(rng, 1.15, 1.7), chance(rng, 0.6)
    turret = [
        cylinder(radius, tall, wall, top=radius * 0.95, segments=n),
        cylinder(radius * 1.15, 0.4, shade(wall, 0.9), (0, 0, tall - 0.1), segments=n),
    ]
    if pointed:
        turret.append(cylinder(radius * 1.3, uniform(rng, 0.9, 1.6), roof, (0, 0, tall + 0.25), top=0.0, segments=n))
    else:
        turret += crenels(radius * 1.15, radius, tall + 0.25, 0.28, wall, round_count=8)
    turret += [
        p.move(radius * 0.97, 0, tall * 0.65)
        for p in window(0.18, 0.4, shade(wall, 0.8), (40, 44, 52), sill=False, cross=False)
    ]
    for x in (1, -1):
        parts += mirrored([p.turn("z", 0 if x > 0 else 180).move(x * deep / 2, wide / 2) for p in turret])
    if chance(rng, 0.6):
        keep = min(deep, wide) * 0.5
        top = high + uniform(rng, 0.8, 2.0)
        slit = window(0.3, 0.5, shade(wall, 0.7), (40, 44, 52), sill=False, cross=False)
        parts += [
            box((keep, keep, top), shade(wall, 1.1)),
            *on_side(slit, 0, keep, keep, 0, top - 0.75),
        ]
        parts += (
            [hip_roof(keep, keep, keep * 0.9, roof, over=0.12, tip=0.0).move(0, 0, top)]
            if chance(rng)
            else crenels(keep / 2, keep / 2, top - 0.02, 0.28, wall)
        )
    return parts


def barn(rng: Rng) -> list[Part]:
    """A barn with a gambrel roof and large doors, perhaps a silo."""
    wall, trim, roof = hue(rng, "brick", "painted", "wood"), hue(rng, "white", "wood"), hue(rng, "roof", "metal")
    deep, wide, high = uniform(rng, 3.5, 5.5), uniform(rng, 2.8, 3.8), uniform(rng, 1.7, 2.4)
    half, rise = wide / 2, wide * uniform(rng, 0.4, 0.55)
    outline = [
        (-half, 0),
        (half, 0),
        (half, high),
        (half * 0.6, high + rise * 0.68),
        (0, high + rise),
        (-half * 0.6, high + rise * 0.68),
        (-half, high),
    ]
    top = np.array(outline[2:]) + np.array([(0.2, -0.1), (0.04, 0), (0, 0), (-0.04, 0), (-0.2, -0.1)])
    thick = np.array([(0.02, 0.13), (0.06, 0.13), (0, 0.17), (-0.06, 0.13), (-0.02, 0.13)])
    sheet = np.concatenate([top, (top + thick)[::-1]])
    parts = [extrude(outline, deep, wall, axis="x"), extrude(sheet, deep + 0.5, roof, axis="x")]
    x = deep / 2
    parts += [
        box((0.1, wide * 0.5, high * 0.85), trim, (x, 0, 0)),
        *mirrored([box((0.14, wide * 0.22, high * 0.78), shade(wall, 0.8), (x, wide * 0.12, 0.02))]),
    ]
    parts += [
        box((0.12, 0.6, 0.6), trim, (x, 0, high + rise * 0.3)),
        box((0.16, 0.45, 0.45), shade(wall, 0.6), (x, 0, high + rise * 0.3 + 0.07)),
    ]
    for along in (-0.25, 0.25):
        for side in (1, 3):
            parts += on_side(
                window(0.5, 0.5, trim, hue(rng, "glass", "dark"), sill=False, cross=True),
                side,
                deep,
                wide,
                along * deep,
                high * 0.4,
            )
    if chance(rng, 0.5):
        r, tall, metal = uniform(rng, 0.6, 0.9), high + rise * uniform(rng, 0.9, 1.5), hue(rng, "metal", "wall")
        rows = [(r, 0), (r, tall), (r * 0.75, tall + r * 0.5), (0, tall + r * 0.75)]
        parts.append(lathe(rows, [metal, roof, roof], segments=16).move(-deep * 0.2, half + r - 0.08))
    return parts


def shop(rng: Rng) -> list[Part]:
    """A shop or cafe with an awning, a sign and a large window; or a market stall."""
    wall, sign, cloth = (
        hue(rng, "wall", "brick", "painted"),
        hue(rng, "painted", "plastic"),
        hue(rng, "painted", "plastic"),
    )
    deep, wide, each = uniform(rng, 2.2, 3.5), uniform(rng, 2.6, 4.5), uniform(rng, 1.9, 2.3)
    stories = whole(rng, 1, 3)
    glass, frame = hue(rng, "glass"), hue(rng, "white", "wood", "dark")
    high, x = each * stories, deep / 2
    parts = [box((deep, wide, high), wall), box((deep + 0.2, wide + 0.2, 0.22), shade(wall, 0.8), (0, 0, high - 0.1))]
    parts += on_side(door(0.75, each * 0.7, frame, shade(frame, 0.8), arched=False), 0, deep, wide, -wide * 0.3, 0)
    parts += on_side(
        window(wide * 0.5, each * 0.5, frame, glass, sill=True, cross=chance(rng)), 0, deep, wide, wide * 0.16, 0.4
    )
    parts.append(box((0.15, wide * 0.9, 0.35), sign, (x, 0, each * 0.98)))
    reach, strips = uniform(rng, 0.5, 0.9), whole(rng, 5, 9)
    for k in range(strips):
        y = ((k + 0.5) / strips - 0.5) * wide
        flap = [(x - 0.05, each * 0.92), (x + reach, each * 0.72), (x + reach, each * 0.78), (x - 0.05, each)]
        parts.append(extrude(flap, wide / strips * 1.001, cloth if k % 2 else (245, 243, 238)).move(0, y))
    for k in range(1, stories):
        parts += storey_windows(rng, deep, wide, k * each, each, frame, glass, False)
    if chance(rng, 0.4):
        parts += [
            p.move(0, 0, high) for p in gable_roof(deep, wide, wide * 0.3, hue(rng, "roof"), wall, over=0.2, along="x")
        ]
    return parts


def skyscraper(rng: Rng) -> list[Part]:
    """An office or apartment block with rows of windows, stepped or plain."""
    wall, glass = hue(rng, "wall", "stone", "metal", "brick"), hue(rng, "glass", "dark", "light")
    x, y, z = uniform(rng, 0.9, 1.5), uniform(rng, 0.9, 1.8), 0.0
    parts: list[Part] = []
    for tier in range(whole(rng, 1, 3)):
        floors = whole(rng, 3, 6)
        step = uniform(rng, 0.45, 0.6)
        parts.append(box((2 * x, 2 * y, floors * step + 0.15), wall if tier % 2 == 0 else shade(wall, 1.1), (0, 0, z)))
        bands, columns = chance(rng, 0.5), whole(rng, 2, 4)
        for k in range(floors):
            at = z + step * (k + 0.3)
            if bands:
                parts.append(box((2 * x + 0.05, 2 * y + 0.05, step * 0.5), glass, (0, 0, at)))
                continue
            for c in range(columns):
                t = ((c + 0.5) / columns - 0.5) * 2
                parts.append(box((2 * x + 0.05, 1.3 * y / columns, step * 0.5), glass, (0, t * y, at)))
                parts.append(box((1.3 * x / columns, 2 * y + 0.05, step * 0.5), glass, (t * x, 0, at)))
        z += floors * step + 0.1
        x, y = x * uniform(rng, 0.6, 0.9), y * uniform(rng, 0.6, 0.9)
    parts.append(box((0.1, 0.6, 0.55), hue(rng, "wood", "dark"), (parts[0].vertices[:, 0].max(), 0, 0)))
    parts.append(box((x, y, 0.35), shade(wall, 0.7), (0, 0, z - 0.05)))
    return (
        [*parts, cylinder(0.04, uniform(rng, 0.5, 1.2), hue(rng, "metal"), (0, 0, z), segments=6)]
        if chance(rng)
        else parts
    )


def church(rng: Rng) -> list[Part]:
    """A church or temple: nave with a steeple, or columns under a pediment."""
    wall, roof, glass = hue(rng, "wall", "stone", "white"), hue(rng, "roof"), hue(rng, "glass", "dark", "flower")
    long, wide, high = uniform(rng, 3.5, 5.0), uniform(rng, 2.0, 2.8), uniform(rng, 1.6, 2.4)
    if chance(rng, 0.35):
        parts = [
            box((long + 0.8 - 0.3 * k, wide + 0.8 - 0.3 * k, 0.16), shade(wall, 0.9), (0, 0, 0.15 * k))
            for k in range(2)
        ]
        parts.append(box((long * 0.7, wide * 0.65, high + 0.3), shade(wall, 0.85), (0, 0, 0.3)))
        column = lathe([(0.17, 0.28), (0.13, 0.45), (0.11, high + 0.1), (0.18, high + 0.3)], wall, segments=10)
        for x in np.linspace(-0.46, 0.46, whole(rng, 4, 6)) * long:
            parts += mirrored([column.move(float(x), wide * 0.45)])
        parts += [column.move(s * long * 0.46, 0.0) for s in (1, -1)]
        return [
            *parts,
            box((long + 0.1, wide + 0.1, 0.25), wall, (0, 0, high + 0.28)),
            *(p.move(0, 0, high + 0.5) for p in gable_roof(long, wide, wide * 0.28, roof, wall, over=0.12, along="x")),
        ]
    parts = [
        box((long, wide, high), wall),
        *(
            p.move(0, 0, high)
            for p in gable_roof(long, wide, wide * uniform(rng, 0.5, 0.75), roof, wall, over=0.2, along="x")
        ),
    ]
    for along in (-0.3, 0.0, 0.3):
        for side in (1, 3):
            parts += on_side(
                window(0.35, high * 0.5, shade(wall, 0.8), glass, sill=False, cross=False),
                side,
                long,
                wide,
                along * long,
                high * 0.3,
            )
    size, tall = wide * uniform(rng, 0.42, 0.55), high * uniform(rng, 1.8, 2.4)
    steeple = [
        box((size, size, tall), wall),
        hip_roof(size, size, tall * uniform(rng, 0.35, 0.7), roof, over=0.1, tip=0.0).move(0, 0, tall),
    ]
    steeple += [p.move(size / 2) for p in door(size * 0.5, high * 0.5, hue(rng, "wood"), shade(wall, 0.7), arched=True)]
    for side in range(4):
        steeple += on_side(
            window(size * 0.3, 0.5, shade(wall, 0.8), (50, 52, 60), sill=False, cross=False),
            side,
            size,
            size,
            0,
            tall - 0.8,
        )
    return parts + [p.move(long / 2) for p in steeple]
