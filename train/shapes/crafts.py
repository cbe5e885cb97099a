"""Boats, planes and what else floats or flies. The front faces +x, left and right are ±y."""

from __future__ import annotations

import numpy as np

from .blocks import Color, Floats, Part, box, capsule, cylinder, ellipsoid, extrude, lathe, mirrored, skin, tube
from .cars import wheel
from .draw import accent, chance, hue, pick, shade, smoothness, uniform, whole
from .outlines import curve

Rng = np.random.Generator


def hull(rng: Rng, long: float, wide: float, deep: float, color: Color, stripe: Color) -> Part:
    """A boat's hull, bow at +x, flat deck at z = ``deep``, keel at 0."""
    rings: list[Floats] = []
    square, sheer = uniform(rng, 0.3, 0.9), uniform(rng, 0.0, 0.35)
    for x in np.linspace(-1, 1, 11):
        fat = square + (1 - square) * (1 - x * x) if x < 0 else (1 - x**2.2)
        half, rise = max(wide / 2 * fat, 0.01), max(0.0, float(x)) ** 2 * deep * sheer
        z = (
            np.array([1.0, 0.75, 0.0, 0.0, 0.75, 1.0]) * deep
            + rise
            + np.array([0, 0, 1, 1, 0, 0]) * max(0.0, float(x)) ** 3 * deep * 0.6
        )
        y = np.array([1.0, 0.97, 0.35, -0.35, -0.97, -1.0]) * half
        rings.append(np.column_stack([np.full(6, x * long / 2), y, z]))
    part = skin(np.array(rings), color)
    return part.paint(stripe, part.centroids[:, 2] > deep * 0.86)


def boat(rng: Rng) -> list[Part]:
    """A sailing boat, a rowing boat, a tug, a liner or a motor boat."""
    kind = pick(rng, ("sail", "sail", "ship", "motor", "row"))
    long, wide, deep = uniform(rng, 3.0, 5.5), uniform(rng, 1.0, 1.6), uniform(rng, 0.5, 0.9)
    color = hue(rng, "painted", "wood", "white")
    parts = [hull(rng, long, wide, deep, color, accent(rng, color, "painted", "wood"))]
    if kind == "sail":
        tall, mast = long * uniform(rng, 0.8, 1.2), hue(rng, "wood", "metal")
        x, sail = long * uniform(rng, 0.0, 0.12), hue(rng, "white", "painted", "fabric")
        parts.append(tube([(x, 0, deep - 0.2), (x, 0, deep + tall)], [0.07, 0.04], mast))
        main = extrude(
            [(x - long * 0.42, deep + 0.35), (x + 0.03, deep + 0.35), (x + 0.03, deep + tall * 0.96)], 0.07, sail
        )
        parts += [main, tube([(x, 0, deep + 0.33), (x - long * 0.45, 0, deep + 0.33)], 0.05, mast)]
        if chance(rng, 0.7):
            parts.append(
                extrude(
                    [(x - 0.04, deep + tall * 0.3), (long * 0.46, deep * 1.1), (x - 0.04, deep + tall * 0.85)],
                    0.06,
                    shade(sail, 0.9),
                )
            )
        if chance(rng):
            parts.append(
                box(
                    (long * 0.25, wide * 0.5, 0.35),
                    hue(rng, "white", "wood"),
                    (-long * 0.2, 0, deep - 0.05),
                    bevel=0.08,
                )
            )
    elif kind == "row":
        wood = hue(rng, "wood")
        parts += [box((0.25, wide * 0.8, 0.08), wood, (x * long, 0, deep - 0.01)) for x in (-0.2, 0.05)]
        parts += mirrored(
            [
                tube(
                    [(-0.1 * long, wide * 0.3, deep + 0.12), (0.0, wide * 0.95, deep * 0.7)],
                    [0.035, 0.035],
                    wood,
                    segments=6,
                ),
                box((0.1, 0.08, 0.16), wood, (-0.08 * long, wide * 0.4, deep - 0.02)),
            ]
        )
    else:
        white, glass = hue(rng, "white", "painted"), hue(rng, "glass", "dark")
        z = deep - 0.05
        size = np.array([long * uniform(rng, 0.3, 0.55), wide * 0.7, uniform(rng, 0.35, 0.5)])
        x = -long * uniform(rng, 0.0, 0.12)
        for _ in range(1 if kind == "motor" else whole(rng, 2, 3)):
            parts.append(box(size, white, (x, 0, z), bevel=0.06))
            parts.append(box(size * (0.9, 1.03, 0.4), glass, (x, 0, z + size[2] * 0.4)))
            z, size = z + size[2] - 0.02, size * (0.72, 0.82, 0.95)
        if kind == "ship":
            for k in range(whole(rng, 1, 2)):
                parts.append(
                    lathe(
                        [(0.2, z - 0.1), (0.18, z + 0.5), (0.18, z + 0.5), (0.2, z + 0.7)],
                        [hue(rng, "painted")] * 2 + [(30, 30, 32)],
                        segments=12,
                    ).move(x - k * 0.5)
                )
    return parts


def plane(rng: Rng) -> list[Part]:
    """An airliner, a propeller plane, a biplane or a jet."""
    kind = pick(rng, ("liner", "prop", "prop", "bi"))
    paint = hue(rng, "white", "painted", "plastic", "metal")
    trim, glass = accent(rng, paint, "painted", "plastic"), hue(rng, "glass", "dark")
    r, long = uniform(rng, 0.3, 0.5), uniform(rng, 3.6, 5.5)
    t = np.array([-0.5, -0.3, -0.05, 0.25, 0.4, 0.47, 0.5])
    fat = (
        np.array([0.18, 0.6, 1.0, 1.0, 0.8, 0.4, 0.0])
        if kind == "liner"
        else np.array([0.15, 0.45, 0.95, 1.0, 0.85, 0.65, 0.0])
    )
    rise = np.array([0.55, 0.25, 0, 0, 0, -0.05, -0.1]) * r
    parts = [tube(np.column_stack([t * long, 0 * t, rise]), fat * r, [paint] * 5 + [trim], segments=14)]
    span, root, sweep = (
        long * uniform(rng, 0.4, 0.52),
        uniform(rng, 0.7, 1.1),
        (uniform(rng, 0.5, 1.2) if kind == "liner" else uniform(rng, 0, 0.2)),
    )
    wing_z = [-r * 0.4] if kind != "bi" else [-r * 0.6, r * 1.7]
    for z in wing_z:
        tip = root * uniform(rng, 0.4, 0.9)
        outline = [
            (-root / 2, 0),
            (-sweep - tip / 2, span),
            (-sweep + tip / 2, span),
            (root / 2, 0),
            (-sweep + tip / 2, -span),
            (-sweep - tip / 2, -span),
        ]
        parts.append(
            extrude(outline[::-1], 0.12, trim if chance(rng, 0.4) else paint, axis="z", bevel=0.03).move(
                long * 0.08, 0, z
            )
        )
    if kind == "bi":
        parts += mirrored(
            [
                tube(
                    [(long * 0.08 + x, span * f, -r * 0.6), (long * 0.08 + x, span * f, r * 1.7)],
                    0.04,
                    hue(rng, "wood"),
                    segments=6,
                )
                for x in (-0.2, 0.2)
                for f in (0.25, 0.75)
            ]
        )
    tail = -long / 2 + 0.3
    parts.append(
        extrude(
            [(tail - 0.3, r * 0.4), (tail + 0.45, r * 0.4), (tail - 0.1, r + 0.75), (tail - 0.45, r + 0.75)], 0.1, trim
        )
    )
    fin = [(-0.3, 0), (-0.4, span * 0.38), (-0.05, span * 0.38), (0.35, 0), (-0.05, -span * 0.38), (-0.4, -span * 0.38)]
    parts.append(extrude(fin[::-1], 0.08, trim, axis="z").move(tail, 0, r * 0.5))
    parts.append(
        ellipsoid(
            (0.45 if kind != "liner" else 0.3, r * 0.6, r * 0.6),
            glass,
            (long * (0.12 if kind != "liner" else 0.4), 0, r * (0.75 if kind != "liner" else 0.4)),
            segments=12,
        )
    )
    parts += _plane_outfit(rng, glass, kind, long, paint, r, span, trim)
    return parts


def _plane_outfit(
    rng: Rng, glass: Color, kind: str, long: float, paint: Color, r: float, span: float, trim: Color
) -> list[Part]:
    """Engines and windows of an airliner; propeller and wheels of a small plane."""
    parts: list[Part] = []
    if kind == "liner":
        parts += mirrored(
            [capsule((long * 0.02, span * 0.4, -r * 0.8), (long * 0.16, span * 0.4, -r * 0.8), 0.16, trim)]
        )
        parts += mirrored(
            [box((0.1, 0.03, 0.11), glass, (x, r * 0.97, r * 0.15)) for x in np.linspace(-0.08, 0.3, 9) * long]
        )
    else:
        nose, blade = long * 0.5, hue(rng, "wood", "dark", "metal")
        parts.append(box((0.06, 0.16, r * 4), blade, (nose - 0.02, 0, -r * 2.1)))
        if chance(rng):
            parts.append(box((0.06, r * 4, 0.16), blade, (nose - 0.02, 0, -r * 0.2)))
        parts += mirrored(
            [
                wheel(rng, 0.22, 0.12, trim, 12).move(long * 0.15, 0.5, -r - 0.45),
                tube([(long * 0.13, 0.15, -r * 0.7), (long * 0.15, 0.5, -r - 0.45)], 0.05, paint, segments=6),
            ]
        )
    return parts


def helicopter(rng: Rng) -> list[Part]:
    """A helicopter on skids."""
    paint, glass, metal = hue(rng, "painted", "plastic"), hue(rng, "glass", "dark"), hue(rng, "dark", "metal")
    parts = [
        ellipsoid((1.2, 0.65, 0.7), paint, (0, 0, 1.0), segments=16, rings=11, power=uniform(rng, 2, 2.8)),
        ellipsoid((0.7, 0.52, 0.5), glass, (0.6, 0, 1.1)),
    ]
    tail = uniform(rng, 2.2, 3.0)
    parts += [
        tube([(-0.6, 0, 1.2), (-tail, 0, 1.4)], [0.3, 0.1], paint),
        extrude([(-tail - 0.25, 1.3), (-tail + 0.3, 1.3), (-tail - 0.1, 2.0), (-tail - 0.35, 2.0)], 0.1, paint),
    ]
    parts += [
        cylinder(0.1, 0.5, metal, (0, 0, 1.6), segments=8),
        cylinder(0.35, 0.08, metal, (-tail - 0.15, 0.02, 1.7), axis="y", segments=10),
    ]
    span = uniform(rng, 1.8, 2.4)
    parts += [
        box((span * 2, 0.16, 0.05), metal, (0, 0, 2.05)).turn("z", angle)
        for angle in ((0, 90) if chance(rng) else (30, 90, 150))
    ]
    skid = tube(
        curve([(1.1, 0.6, 0.25), (0.9, 0.6, 0.1), (-0.9, 0.6, 0.1), (-1.0, 0.6, 0.12)], 9), 0.05, metal, segments=6
    )
    struts = [tube([(x, 0.3, 0.6), (x, 0.6, 0.1)], 0.045, metal, segments=6) for x in (0.5, -0.5)]
    return parts + mirrored([skid, *struts])


def rocket(rng: Rng) -> list[Part]:
    """A rocket, a space capsule or a flying saucer."""
    paint, trim, glass, n = (
        hue(rng, "white", "painted", "metal"),
        hue(rng, "plastic", "painted"),
        hue(rng, "glass", "dark"),
        max(12, smoothness(rng)),
    )
    if chance(rng, 0.25):
        rows = curve([(0.25, -0.12), (1.0, 0.0), (0.45, 0.16), (0.35, 0.18)], 9)
        parts = [
            lathe(rows, paint, segments=24),
            ellipsoid((0.4, 0.4, 0.32), glass, (0, 0, 0.14)),
            *(
                ellipsoid((0.07, 0.07, 0.05), trim, (0.78 * np.cos(a), 0.78 * np.sin(a), 0.06), segments=8, rings=5)
                for a in np.arange(8) * np.pi / 4
            ),
        ]
        legs = [
            tube(
                [(0.4 * np.cos(a), 0.4 * np.sin(a), -0.05), (0.65 * np.cos(a), 0.65 * np.sin(a), -0.5)],
                0.035,
                hue(rng, "metal"),
                segments=6,
            )
            for a in np.arange(3) * 2.094
        ]
        return parts + legs if chance(rng) else parts
    r, high = uniform(rng, 0.2, 0.36), uniform(rng, 1.2, 2.0)
    body = curve([(r * 0.65, 0.15), (r, high * 0.35), (r * 0.9, high * 0.65), (0.03, high)], 13)
    cut, band = whole(rng, 8, 10), whole(rng, 1, 5)
    colors = [trim if k >= cut or k == band else paint for k in range(12)]
    parts = [
        lathe(body, colors, segments=n),
        cylinder(r * 0.6, 0.2, hue(rng, "dark", "metal"), (0, 0, 0), top=r * 0.4, segments=n),
    ]
    count, reach = pick(rng, (3, 4, 4)), uniform(rng, 0.25, 0.45)
    fin = extrude([(r * 0.5, 0.2), (r + reach, -0.05), (r + reach, 0.2), (r * 0.85, high * 0.42)], 0.06, trim)
    parts += [fin.turn("z", 45 + 360 * k / count) for k in range(count)]
    port = lathe(
        [(0.13, 0), (0.13, 0.05), (0.09, 0.05), (0, 0.04)], [hue(rng, "metal"), glass, glass], segments=14
    ).turn("y", 90)
    return [*parts, *(port.scale(0.9).move(r * 0.9, 0, high * t) for t in ((0.6,) if chance(rng) else (0.42, 0.62)))]
