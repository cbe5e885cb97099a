"""Tractors, trains, carts, bicycles and tanks. The front faces +x, left and right are ±y, wheels stand on z = 0."""

from __future__ import annotations

import numpy as np

from .blocks import Floats, Part, box, cylinder, ellipsoid, extrude, lathe, mirrored, stack, torus, tube
from .cars import axle_pair, window_row
from .draw import chance, hue, shade, uniform, whole
from .outlines import outline_rect

Rng = np.random.Generator
_LAMP, _TAIL = (250, 243, 210), (190, 30, 28)


def tractor(rng: Rng) -> list[Part]:
    """A farm tractor: large wheels behind, a bonnet, a cab or roll bar."""
    paint, rim, glass = hue(rng, "painted", "plastic"), hue(rng, "light", "metal", "painted"), hue(rng, "glass")
    big, small = uniform(rng, 0.7, 0.9), uniform(rng, 0.36, 0.5)
    parts = [
        box((1.7, 0.7, 0.7), paint, (0.75, 0, 0.65), bevel=0.1),
        box((0.5, 0.4, 0.5), hue(rng, "dark"), (1.25, 0, small - 0.05)),
        box((1.1, 1.0, 0.4), shade(paint, 0.8), (-0.4, 0, 0.6)),
    ]
    parts += axle_pair(rng, -0.5, 0.75, big, 0.42, rim) + axle_pair(rng, 1.25, 0.6, small, 0.26, rim)
    parts += [
        box((0.14, 1.3, 0.14), hue(rng, "dark"), (1.25, 0, small - 0.07)),
        box((0.14, 1.5, 0.14), hue(rng, "dark"), (-0.5, 0, big - 0.07)),
    ]
    parts += mirrored(
        [
            cylinder(0.1, 0.05, _LAMP, (1.57, 0.22, 1.05), axis="x"),
            extrude([(-1.2, big * 1.75), (-0.9, big * 2.1), (0.1, big * 2.1), (0.25, big * 1.6)], 0.4, paint).move(
                0, 0.72
            ),
        ]
    )
    parts.append(box((1.2, 1.1, 0.15), paint, (-0.4, 0, big * 1.65)))
    high = uniform(rng, 2.2, 2.6)
    if chance(rng, 0.7):
        rows = [(0.9, 0.55, 0.5, -0.4, 0), (high - 0.1, 0.48, 0.46, -0.4, 0)]
        parts += [stack(rows, glass), box((1.15, 1.1, 0.1), paint, (-0.4, 0, high - 0.1), bevel=0.03)]
        parts += [
            tube([(x * 0.53 - 0.4, y * 0.49, 0.9), (x * 0.47 - 0.4, y * 0.46, high)], 0.05, paint, segments=4)
            for x in (-1, 1)
            for y in (-1, 1)
        ]
    else:
        parts += [
            box((0.5, 0.5, 0.15), hue(rng, "dark"), (-0.5, 0, big * 1.65 + 0.1), bevel=0.04),
            box((0.1, 0.5, 0.5), hue(rng, "dark"), (-0.75, 0, big * 1.65 + 0.2), bevel=0.04),
        ]
        parts.append(torus(0.2, 0.03, hue(rng, "dark"), segments=12, around=6).turn("y", -60).move(0.02, 0, 1.55))
        parts.append(tube([(0.2, 0, 1.2), (0.02, 0, 1.55)], 0.03, hue(rng, "dark"), segments=6))
    return [*parts, cylinder(0.05, uniform(rng, 0.5, 0.9), hue(rng, "dark"), (1.0, 0.18, 1.3), segments=8)]


def train(rng: Rng) -> list[Part]:
    """A steam engine or a railway wagon."""
    paint, trim, rim = (
        hue(rng, "painted", "dark", "plastic"),
        hue(rng, "brass", "painted", "metal"),
        hue(rng, "painted", "dark", "metal"),
    )
    wide, radius = 1.6, uniform(rng, 0.32, 0.45)
    parts = [box((5.0, wide, 0.25), hue(rng, "dark", "painted"), (0, 0, radius * 1.2), bevel=0.03)]
    floor = radius * 1.2 + 0.22
    for x in np.linspace(-1.9, 1.9, whole(rng, 3, 5)):
        parts += axle_pair(rng, float(x), wide / 2 - 0.05, radius, 0.18, rim)
    if chance(rng, 0.3):
        high = uniform(rng, 1.4, 1.9)
        parts += [
            box((4.7, wide * 1.1, high), paint, (0, 0, floor - 0.03), bevel=0.08),
            box((4.9, wide * 1.2, 0.14), trim, (0, 0, floor + high - 0.06), bevel=0.05),
        ]
        return parts + window_row(
            whole(rng, 3, 7), -2.2, 2.2, wide * 0.55, floor + high * 0.45, high * 0.35, hue(rng, "glass", "light")
        )
    boiler = uniform(rng, 0.55, 0.72)
    rows = [
        (boiler * 0.98, 0),
        (boiler, 0.1),
        (boiler, 1.2),
        (boiler * 1.04, 1.2),
        (boiler * 1.04, 1.35),
        (boiler, 1.35),
        (boiler, 2.9),
        (boiler * 0.85, 3.05),
        (0.2, 3.1),
    ]
    parts.append(
        lathe(rows, [paint, paint, trim, trim, trim, paint, trim, shade(paint, 0.6)], segments=18)
        .turn("y", 90)
        .move(-0.8, 0, floor + boiler * 0.97)
    )
    cab = uniform(rng, 1.6, 2.0)
    parts += [
        box((1.5, wide, cab), paint, (-1.6, 0, floor - 0.03), bevel=0.05),
        box((1.9, wide * 1.2, 0.12), trim, (-1.6, 0, floor + cab - 0.06), bevel=0.04),
    ]
    parts += window_row(1, -2.1, -1.1, wide / 2 - 0.01, floor + cab * 0.5, cab * 0.32, hue(rng, "glass", "light"))
    top = floor + boiler * 1.9
    parts.append(
        lathe(
            [(0.17, top - 0.15), (0.17, top + 0.35), (0.3, top + 0.75), (0.3, top + 0.85), (0, top + 0.8)],
            hue(rng, "dark", "brass"),
            segments=12,
        ).move(1.8)
    )
    parts.append(ellipsoid((0.28, 0.28, 0.32), trim, (0.4, 0, top), segments=12))
    plough = [(2.4, 0.08), (3.0, 0.08), (2.4, radius * 1.2 + 0.15)]
    return [
        *parts,
        extrude(plough, wide * 0.9, trim),
        cylinder(0.15, 0.2, _LAMP, (2.2, 0, top - 0.1), axis="x", segments=10),
    ]


def cart(rng: Rng) -> list[Part]:
    """A wooden hand cart, market barrow, mine cart or wheelbarrow."""
    wood, metal = hue(rng, "wood", "wood", "metal", "painted"), hue(rng, "wood", "dark", "metal")
    long, wide, high = uniform(rng, 1.2, 2.2), uniform(rng, 0.8, 1.2), uniform(rng, 0.3, 0.7)
    radius = uniform(rng, 0.25, 0.55)
    z, flare = radius * 1.1, uniform(rng, 1.0, 1.25)
    rows = [
        (z, long / 2, wide / 2),
        (z + high, long / 2 * flare, wide / 2 * flare),
        (z + high, long / 2 * flare - 0.08, wide / 2 * flare - 0.08),
        (z + 0.08, long / 2 - 0.08, wide / 2 - 0.08),
    ]
    parts = [stack(rows, [wood, shade(wood, 0.8), shade(wood, 0.85)])]
    for x in [0.0] if chance(rng) else [-long * 0.32, long * 0.32]:
        parts += [
            *axle_pair(rng, x, wide / 2 + 0.08, radius, 0.1, wood),
            box((0.1, wide + 0.2, 0.1), metal, (x, 0, radius - 0.05)),
            box((0.14, wide * 0.8, z - radius + 0.1), metal, (x, 0, radius - 0.05)),
        ]
    parts += mirrored(
        [
            tube(
                [(-long * 0.3, wide * 0.4, z + 0.05), (-long * 0.5 - 0.8, wide * 0.36, z + 0.25)],
                0.05,
                wood,
                segments=6,
            )
        ]
    )
    if chance(rng, 0.6):
        parts.append(
            ellipsoid(
                (long * 0.45, wide * 0.42, high * 0.8),
                hue(rng, "autumn", "leaf", "stone", "light", "brass"),
                (0, 0, z + high * 0.6),
                segments=12,
                rings=7,
            )
        )
    if chance(rng, 0.25):
        roof = z + high + 0.9
        parts += [
            box((0.06, 0.06, roof - z), wood, (x * long * 0.46, y * wide * 0.46, z)) for x in (-1, 1) for y in (-1, 1)
        ]
        parts.append(
            extrude(
                [(-wide * 0.65, roof - 0.05), (wide * 0.65, roof - 0.05), (0, roof + 0.35)],
                long * 1.15,
                hue(rng, "painted", "fabric"),
                axis="x",
            )
        )
    return parts


def bicycle(rng: Rng) -> list[Part]:
    """A bicycle, scooter or motorbike."""
    paint, dark, metal = hue(rng, "painted", "plastic"), hue(rng, "dark"), hue(rng, "metal")
    r, base = uniform(rng, 0.32, 0.4), uniform(rng, 0.95, 1.1)
    f, b, motor = base / 2, -base / 2, chance(rng, 0.5)
    thick = 0.07 if motor else 0.03
    seat, bars = (-0.18, 0, r * 2.3), (f - 0.22, 0, r * 2.5)
    parts = []
    for x in (f, b):
        parts.append(torus(r - thick, thick, dark, segments=24).turn("x", 90).move(x, 0, r))
        parts.append(cylinder(r * (0.55 if motor else 0.12), 0.08, metal, (x, -0.04, r), axis="y"))
        parts += [
            tube([(x, 0, r), (x + (r - thick) * np.cos(t), 0, r + (r - thick) * np.sin(t))], 0.014, metal, segments=5)
            for t in np.arange(6) * np.pi / 3 + 0.3
        ]
    crank = (-0.05, 0, r * 0.85)
    pipes = [
        ((b, 0, r), crank),
        (crank, seat),
        (seat, (f - 0.15, 0, r * 2.05)),
        (crank, (f - 0.13, 0, r * 1.9)),
        ((b, 0, r), seat),
        ((f, 0, r), bars),
    ]
    parts += [tube([p, q], 0.04 if motor else 0.022, paint, segments=8) for p, q in pipes]
    parts.append(tube([(bars[0] - 0.1, -0.28, bars[2]), bars, (bars[0] - 0.1, 0.28, bars[2])], 0.022, dark, segments=6))
    parts.append(ellipsoid((0.16 + 0.1 * motor, 0.08, 0.05), dark, (seat[0], 0, seat[2] + 0.02), segments=10, rings=7))
    if motor:
        parts += [
            ellipsoid((0.26, 0.13, 0.14), paint, (0.12, 0, r * 2.15)),
            box((0.34, 0.26, 0.3), metal, (0, 0, r * 0.75), bevel=0.05),
        ]
        parts += [
            tube([(0.05, -0.12, r * 0.8), (b - 0.1, -0.16, r * 0.9)], [0.04, 0.06], metal),
            cylinder(0.09, 0.1, _LAMP, (bars[0] + 0.02, 0, bars[2] - 0.09), axis="x"),
        ]
    return parts


def outline_of_tank(rng: Rng, long: float, high: float) -> Floats:
    """The side of a tank's track as (x, z), rounded at both ends."""
    return np.add(outline_rect(long / 2, high / 2, high * uniform(rng, 0.4, 0.49), 5), (0, high / 2))


def tank(rng: Rng) -> list[Part]:
    """A tank or a digger on tracks."""
    paint, dark = hue(rng, "leaf", "painted", "stone"), hue(rng, "dark")
    long, wide, high = uniform(rng, 2.6, 3.4), uniform(rng, 1.5, 1.9), uniform(rng, 0.55, 0.75)
    track = extrude(outline_of_tank(rng, long, high), 0.4, dark, bevel=0.04).move(0, wide / 2)
    rollers = [
        cylinder(high * 0.32, 0.44, shade(paint, 0.7), (x, wide / 2 - 0.22, high * 0.48), axis="y", segments=10)
        for x in np.linspace(-0.33, 0.33, 4) * long
    ]
    parts = mirrored([track, *rollers])
    parts.append(
        extrude(
            [
                (-long * 0.45, high * 0.4),
                (long * 0.45, high * 0.4),
                (long * 0.5, high * 0.8),
                (long * 0.3, high * 1.25),
                (-long * 0.48, high * 1.25),
            ],
            wide * 0.9,
            paint,
        )
    )
    top = high * 1.22
    if chance(rng, 0.55):
        parts.append(
            stack([(top, 0.7, 0.6), (top + 0.25, 0.72, 0.62), (top + 0.5, 0.5, 0.45)], paint, corner=0.3, steps=4).move(
                -0.1
            )
        )
        parts += [
            tube([(0.3, 0, top + 0.28), (uniform(rng, 1.4, 2.2), 0, top + 0.34)], [0.1, 0.08], shade(paint, 0.85)),
            cylinder(0.2, 0.1, shade(paint, 0.8), (-0.2, 0.15, top + 0.47)),
        ]
        return parts
    cab, arm = hue(rng, "glass"), shade(paint, 0.9)
    parts += [
        box((1.4, wide * 0.85, 0.8), paint, (-0.4, 0, top - 0.02), bevel=0.08),
        box((0.7, 0.65, 1.1), cab, (0.1, 0.3, top + 0.02), bevel=0.05),
        box((0.8, 0.75, 0.1), paint, (0.1, 0.3, top + 1.08)),
    ]
    elbow, hand = (1.3, -0.25, top + 1.5), (2.2, -0.25, top + 0.5)
    parts += [tube([(0.1, -0.25, top + 0.3), elbow], 0.16, arm, segments=4), tube([elbow, hand], 0.13, arm, segments=4)]
    return [
        *parts,
        extrude([(1.9, top - 0.2), (2.5, top - 0.25), (2.5, top + 0.4), (2.1, top + 0.65)], 0.7, dark).move(0, -0.25),
    ]
