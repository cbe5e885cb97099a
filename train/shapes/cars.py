"""Cars, buses and lorries. The front faces +x, left and right are ±y, wheels stand on z = 0."""

from __future__ import annotations

import numpy as np

from .blocks import Color, Part, box, cylinder, ellipsoid, extrude, lathe, mirrored, stack, tube
from .draw import accent, chance, hue, pick, shade, uniform, whole

Rng = np.random.Generator
_LAMP, _TAIL = (250, 243, 210), (190, 30, 28)


def wheel(rng: Rng, radius: float, width: float, rim: Color, segments: int = 16) -> Part:
    """A tyre with a lighter hub on both sides, its middle at the origin, axle along y."""
    tyre = hue(rng, "rubber")
    half = width / 2
    rows = [
        (0, -half * 0.8),
        (radius * 0.55, -half * 0.8),
        (radius * 0.6, -half),
        (radius * 0.92, -half),
        (radius, -half * 0.6),
        (radius, half * 0.6),
        (radius * 0.92, half),
        (radius * 0.6, half),
        (radius * 0.55, half * 0.8),
        (0, half * 0.8),
    ]
    return lathe(rows, [rim, *[tyre] * 7, rim], segments=segments).turn("x", 90)


def axle_pair(rng: Rng, x: float, y: float, radius: float, width: float, rim: Color) -> list[Part]:
    """Two wheels at (x, ±y) standing on the ground."""
    return mirrored([wheel(rng, radius, width, rim).move(x, y, radius)])


def _lights(x_front: float, x_back: float, y: float, z: float, size: float) -> list[Part]:
    front = cylinder(size, 0.06, _LAMP, (x_front - 0.04, y, z), axis="x", segments=10)
    back = box((0.06, size * 1.6, size * 1.2), _TAIL, (x_back + 0.01, y, z - size * 0.5))
    return mirrored([front, back])


def window_row(count: int, x0: float, x1: float, y: float, z: float, high: float, glass: Color) -> list[Part]:
    """``count`` panes on both sides of a straight wall at ±y, from x0 to x1."""
    step = (x1 - x0) / count
    return mirrored([box((step * 0.82, 0.04, high), glass, (x0 + step * (k + 0.5), y, z)) for k in range(count)])


def car(rng: Rng) -> list[Part]:
    """A saloon, hatchback, estate, sports car, off-roader, pick-up or taxi."""
    paint, glass, rim = (
        hue(rng, "painted", "painted", "plastic", "metal"),
        hue(rng, "glass", "dark"),
        hue(rng, "metal", "white"),
    )
    kind = pick(rng, ("saloon", "hatchback", "estate", "sports", "jeep", "pickup"))
    long = {"saloon": 4.3, "hatchback": 3.4, "estate": 4.3, "sports": 4.2, "jeep": 3.9, "pickup": 4.8}[kind] * uniform(
        rng, 0.88, 1.1
    )
    wide = uniform(rng, 1.6, 1.95)
    belt = {"sports": 0.82, "jeep": 1.15, "pickup": 1.08}.get(kind, 0.92) * uniform(rng, 0.95, 1.1)
    roof = belt + {"sports": 0.36, "jeep": 0.66, "pickup": 0.58}.get(kind, 0.52) * uniform(rng, 0.9, 1.25)
    radius = {"jeep": 0.4, "pickup": 0.39}.get(kind, 0.32) * uniform(rng, 0.95, 1.12)
    low, a = radius * uniform(rng, 0.65, 0.95), long / 2
    nose = belt * uniform(rng, 0.72, 0.95)
    cowl, tail = (
        uniform(rng, 0.15, 0.28) * long,
        {"saloon": -0.26, "sports": -0.25, "pickup": -0.08}.get(kind, -0.47) * long,
    )
    profile = [
        (-a, low),
        (a * 0.98, low),
        (a, nose * 0.75),
        (a * 0.93, nose),
        (cowl, belt),
        (-a * 0.96, belt * uniform(rng, 0.95, 1.02)),
        (-a, belt * 0.8),
    ]
    parts = [extrude(profile, wide, [paint] * 3, bevel=0.09)]
    rake, back_rake = (
        uniform(rng, 0.25, 0.75) * (0.3 if kind == "jeep" else 1),
        0.12 if kind in ("jeep", "pickup", "estate", "hatchback") else uniform(rng, 0.3, 0.7),
    )
    x_front, x_back = cowl - 0.02, tail
    rows = [(belt - 0.06, (x_front - x_back) / 2, wide / 2 - 0.07, (x_front + x_back) / 2, 0)]
    top_half = (x_front - rake - x_back - back_rake) / 2
    rows.append((roof - 0.08, top_half, wide / 2 - 0.2, (x_front - rake + x_back + back_rake) / 2, 0))
    cab = stack(rows, glass, corner=0.1, steps=3)
    lid_rows = [
        (roof - 0.1, top_half + 0.03, wide / 2 - 0.18, rows[1][3], 0),
        (roof, top_half - 0.06, wide / 2 - 0.26, rows[1][3], 0),
    ]
    parts += [cab, stack(lid_rows, paint, corner=0.1, steps=3)]
    for t in (0.02, 0.5, 0.98):
        foot, head = (
            x_back + 0.06 + t * (x_front - x_back - 0.12),
            x_back + back_rake + 0.06 + t * (2 * top_half - 0.12),
        )
        parts += mirrored(
            [
                tube(
                    [(foot, wide / 2 - 0.08, belt - 0.03), (head, wide / 2 - 0.2, roof - 0.08)],
                    0.035,
                    paint,
                    segments=4,
                )
            ]
        )
    for x in (a * uniform(rng, 0.58, 0.66), -a * uniform(rng, 0.58, 0.66)):
        parts += axle_pair(rng, x, wide / 2 - 0.09, radius, 0.22, rim)
    parts += _lights(a * 0.985, -a, wide * 0.36, nose * 0.8, 0.1)
    bumper = hue(rng, "dark", "metal")
    parts += [box((0.14, wide * 0.94, 0.14), bumper, (x, 0, low + 0.02), bevel=0.03) for x in (a, -a)]
    parts += _car_extras(rng, a, belt, kind, paint, roof, rows[1][3], top_half, wide, x_back)
    return parts


def _car_extras(
    rng: Rng,
    a: float,
    belt: float,
    kind: str,
    paint: Color,
    roof: float,
    cab_x: float,
    top_half: float,
    wide: float,
    x_back: float,
) -> list[Part]:
    """A pick-up's bed, and now and then a taxi sign, roof luggage or a spoiler."""
    parts: list[Part] = []
    if kind == "pickup":
        well = (x_back - 0.1 + a * 0.96) / 2
        parts.append(box((well * 2 - 0.1, wide - 0.3, 0.03), hue(rng, "dark"), (-a * 0.96 + well, 0, belt - 0.005)))
        parts += mirrored(
            [box((x_back + a * 0.98, 0.08, 0.2), paint, ((x_back - a * 0.98) / 2, wide / 2 - 0.1, belt - 0.04))]
        )
    extra = whole(rng, 0, 6)
    if extra == 0:
        parts.append(box((0.25, 0.6, 0.16), (250, 210, 60), (cab_x, 0, roof - 0.02), bevel=0.03))
    elif extra == 1 and kind != "sports":
        parts.append(box((top_half, wide * 0.6, 0.22), hue(rng, "dark", "wood"), (cab_x, 0, roof - 0.02), bevel=0.04))
    elif extra == 2:
        parts.append(box((0.2, wide * 0.9, 0.04), paint, (-a + 0.15, 0, belt + 0.2)))
        parts += mirrored([box((0.1, 0.05, 0.3), paint, (-a + 0.17, wide * 0.3, belt - 0.07))])
    return parts


def bus(rng: Rng) -> list[Part]:
    """A school bus with a bonnet, a coach, a city bus, a double-decker or a camper van."""
    kind = pick(rng, ("school", "school", "city", "double", "van"))
    paint = (240, 178, 20) if kind == "school" and chance(rng, 0.7) else hue(rng, "painted", "plastic")
    trim, glass, rim = (
        accent(rng, paint, "painted", "white", "dark"),
        hue(rng, "glass", "dark", "light"),
        hue(rng, "metal", "white"),
    )
    wide, long = uniform(rng, 2.0, 2.5), {"van": 4.6, "double": 8.5}.get(kind, 8.0) * uniform(rng, 0.75, 1.1)
    high = {"double": 4.2, "van": 2.1}.get(kind, 2.9) * uniform(rng, 0.92, 1.08)
    radius = uniform(rng, 0.38, 0.52)
    low, a = radius * 0.85, long / 2
    hood = uniform(rng, 0.14, 0.2) * long if kind == "school" else 0.0
    b = a - hood
    shell = [
        (-a, low),
        (b, low),
        (b, high * 0.55),
        (b - 0.15 * (kind != "school"), high * 0.93),
        (b - 0.3, high),
        (-a + 0.15, high),
        (-a, high * 0.92),
    ]
    parts = [extrude(shell, wide, paint, bevel=0.12)]
    if hood:
        top = high * uniform(rng, 0.48, 0.56)
        parts.append(
            extrude(
                [(b - 0.2, low), (a, low), (a + 0.02, top * 0.8), (a - 0.15, top * 0.94), (b - 0.2, top)],
                wide * 0.86,
                paint,
                bevel=0.12,
            )
        )
        parts += mirrored(
            [ellipsoid((0.62, 0.24, 0.5), paint, (a - 0.55, wide * 0.42, radius * 1.1), segments=12, rings=7)]
        )
        parts.append(box((0.06, wide * 0.5, top * 0.3), shade(trim, 0.6), (a, 0, low + 0.25)))
    floors = [high * 0.6] if kind != "double" else [high * 0.3, high * 0.7]
    pane = 0.22 * high if kind != "double" else 0.16 * high
    count = max(3, round(long / uniform(rng, 0.8, 1.3)))
    for z in floors:
        parts += window_row(count, -a + 0.25, b - (0.7 if z == floors[0] else 0.25), wide / 2 - 0.01, z, pane, glass)
        parts.append(box((0.05, wide * 0.8, pane * 1.1), glass, (b - 0.03 * (kind == "school") - 0.005, 0, z - 0.02)))
        parts.append(box((0.05, wide * 0.7, pane), glass, (-a, 0, z)))
    parts.append(
        box((0.55, 0.06, floors[0] + pane - low), shade(glass, 0.8), (b - 0.38, -wide / 2 + 0.005, low + 0.05))
    )
    for t in np.linspace(0.35, 0.5, whole(rng, 1, 2)):
        parts += mirrored([box((long - hood - 0.3, 0.04, 0.07), trim, (-hood / 2, wide / 2 - 0.005, high * t))])
    for x in (a - 0.75 if hood else a * 0.6, -a * uniform(rng, 0.5, 0.62)):
        parts += axle_pair(rng, x, wide / 2 - 0.13, radius, 0.3, rim)
    parts += _lights(a + 0.03, -a, wide * 0.33, low + 0.45, 0.13)
    return [
        *parts,
        *(box((0.16, wide * 0.96, 0.2), hue(rng, "dark"), (x, 0, low - 0.04), bevel=0.04) for x in (a + 0.02, -a)),
    ]


def truck(rng: Rng) -> list[Part]:
    """A lorry: a cab and a box, tank, open bed, tipper, crane or fire ladder behind it."""
    paint, glass, rim = hue(rng, "painted", "plastic"), hue(rng, "glass", "dark"), hue(rng, "metal", "white")
    load = accent(rng, paint, "painted", "white", "metal", "wood")
    wide, long, radius = uniform(rng, 1.9, 2.4), uniform(rng, 5.0, 8.0), uniform(rng, 0.42, 0.58)
    low, a = radius * 1.1, long / 2
    cab_long, cab_high = uniform(rng, 1.3, 1.9), uniform(rng, 2.2, 2.9)
    bonnet = uniform(rng, 0.6, 1.1) if chance(rng, 0.4) else 0.0
    x0, x1 = a - bonnet - cab_long, a - bonnet
    lean = uniform(rng, 0.05, 0.35)
    cab = [(x0, low - 0.2), (x1, low - 0.2), (x1, cab_high * 0.55), (x1 - lean, cab_high), (x0, cab_high)]
    parts = [
        extrude(cab, wide, paint, bevel=0.1),
        box((long - 0.3, wide * 0.5, 0.25), hue(rng, "dark"), (-0.1, 0, low - 0.15)),
    ]
    if bonnet:
        parts.append(
            box(
                (bonnet + 0.3, wide * 0.8, cab_high * 0.5 - low + 0.25),
                paint,
                (x1 + bonnet / 2 - 0.15, 0, low - 0.2),
                bevel=0.12,
            )
        )
    parts.append(
        box((0.06, wide * 0.82, cab_high * 0.3), glass)
        .turn("y", -np.rad2deg(lean / (cab_high * 0.45)))
        .move(x1 - lean * 0.1 + 0.005, 0, cab_high * 0.6)
    )
    parts += mirrored(
        [box((cab_long * 0.5, 0.05, cab_high * 0.26), glass, (x1 - cab_long * 0.55, wide / 2 - 0.01, cab_high * 0.6))]
    )
    bed = x0 + a
    parts += _truck_load(
        rng,
        pick(rng, ("box", "box", "tank", "open", "mixer", "tipper", "logs")),
        -a,
        x0 - 0.06,
        wide,
        low,
        cab_high,
        load,
    )
    for x in [
        x1 - cab_long * 0.45 + bonnet * 0.6,
        -a + bed * 0.2,
        *([-a + bed * 0.2 + radius * 2.15] if chance(rng) else []),
    ]:
        parts += axle_pair(rng, x, wide / 2 - 0.12, radius, 0.34, rim)
    parts += _lights(a + 0.03, -a, wide * 0.34, low + 0.15, 0.12)
    return [*parts, box((0.16, wide, 0.22), hue(rng, "metal", "dark"), (a, 0, low - 0.28), bevel=0.04)]


def _truck_load(
    rng: Rng, kind: str, x0: float, x1: float, wide: float, low: float, high: float, color: Color
) -> list[Part]:
    """What a lorry carries, between x0 and x1, from height ``low`` up."""
    long, mid = x1 - x0, (x0 + x1) / 2
    floor = box((long, wide, 0.15), shade(color, 0.7), (mid, 0, low + 0.02))
    if kind == "box":
        return [
            box(
                (long, wide * 1.03, high * uniform(rng, 0.75, 1.1) - low + 0.4), color, (mid, 0, low + 0.05), bevel=0.06
            )
        ]
    if kind in ("tank", "mixer"):
        r = wide * 0.47
        tip = 0.45 if kind == "mixer" else 0.85
        rows = [
            (0, 0),
            (r * tip, 0.03),
            (r, long * 0.25),
            (r, long * 0.7),
            (r * (0.6 if kind == "mixer" else 0.85), long * 0.97),
            (0, long),
        ]
        drum = lathe(rows, [color, color, shade(color, 1.5) if chance(rng) else color, color, color], segments=16)
        return [floor, drum.turn("y", 90).move(x0, 0, low + 0.08 + r)]
    if kind == "logs":
        bark = hue(rng, "bark")
        places = [(y, z) for z, row in ((0.3, (-0.66, 0, 0.66)), (0.82, (-0.33, 0.33))) for y in row]
        return [
            floor,
            *(
                cylinder(0.33, long * 0.96, bark, (x0 + 0.05, y, low + z + 0.1), axis="x", segments=10)
                for y, z in places
            ),
        ]
    side = uniform(rng, 0.4, 0.8)
    walls = mirrored([box((long, 0.08, side), color, (mid, wide / 2 - 0.04, low + 0.1))])
    walls += [
        box((0.08, wide, side * (1.6 if x > mid else 1)), color, (x, 0, low + 0.1)) for x in (x0 + 0.04, x1 - 0.04)
    ]
    heap = ellipsoid(
        (long * 0.44, wide * 0.42, side * 1.1),
        hue(rng, "stone", "bark", "autumn"),
        (mid, 0, low + 0.15),
        segments=12,
        rings=7,
    )
    return [floor, *walls, heap] if chance(rng, 0.7) else [floor, *walls]
