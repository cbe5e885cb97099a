"""Cooking pots, barrels, buckets and tubs."""

from __future__ import annotations

import numpy as np

from .blocks import Part, box, cushion, cylinder, lathe, torus, tube
from .draw import accent, chance, hue, pick, shade, smoothness, uniform
from .outlines import curve
from .vessels import banded, hollow

Rng = np.random.Generator


def cooking_pot(rng: Rng) -> list[Part]:
    """A saucepan, casserole or frying pan."""
    n, wide = max(12, smoothness(rng)), uniform(rng, 0.4, 0.6)
    high = uniform(rng, 0.12, 0.7)
    metal, grip = hue(rng, "metal", "painted", "dark", "brass"), hue(rng, "dark", "wood", "metal")
    up = np.array(
        [(wide * 0.9, 0), (wide, 0.05), (wide * 1.02, high * 0.5), (wide * 1.03, high), (wide * 1.07, high + 0.02)]
    )
    profile = hollow(up, 0.04, 0.04)
    parts = [lathe(profile, metal, segments=n)]
    if high < 0.3 or chance(rng, 0.4):
        parts.append(
            tube(
                [
                    (-wide, 0, high * 0.8),
                    (-wide - 0.15, 0, high * 0.85),
                    (-wide - uniform(rng, 0.5, 0.9), 0, high * 0.85 + 0.06),
                ],
                [0.035, 0.04, 0.05],
                grip,
                flat=0.6,
            )
        )
    else:
        ring = torus(0.1, 0.03, grip, segments=12, around=6).scale(1, 0.8, 1).turn("x", 20)
        parts += [ring.move(0, wide + 0.05, high * 0.75), ring.mirror().move(0, -wide - 0.05, high * 0.75)]
    if high > 0.25 and chance(rng, 0.6):
        rise = high + uniform(rng, 0.05, 0.14)
        parts.append(
            lathe(
                [
                    (wide * 1.08, high),
                    (wide * 1.08, high + 0.035),
                    (wide * 0.6, rise),
                    (0.06, rise + 0.03),
                    (0.05, rise + 0.06),
                    (0.09, rise + 0.09),
                    (0, rise + 0.13),
                ],
                [metal] * 3 + [grip] * 3,
                segments=n,
            )
        )
    return parts


def barrel(rng: Rng) -> list[Part]:
    """A wooden barrel with hoops, or an oil drum."""
    n, high = pick(rng, (10, 12, 16, 20)), uniform(rng, 0.9, 1.5)
    end, bulge = uniform(rng, 0.32, 0.45), uniform(rng, 0.0, 0.14)
    wood, hoop = hue(rng, "wood", "wood", "painted"), hue(rng, "metal", "dark", "brass")
    z = np.linspace(0, high, 9)
    r = end + bulge * (1 - (2 * z / high - 1) ** 2)
    rows = np.column_stack([r, z])
    lid = [(end * 0.9, high), (end * 0.88, high - 0.06)]
    parts = [
        lathe(
            [(end * 0.9, 0.04), (end * 0.92, 0), *rows.tolist(), *lid],
            [shade(wood, 0.8)] * 2 + [wood] * 8 + [wood, shade(wood, 0.8)],
            segments=n,
        )
    ]
    for t in pick(rng, ((0.12, 0.88), (0.1, 0.35, 0.65, 0.9), (0.06, 0.3, 0.7, 0.94))):
        radius = float(np.interp(t * high, z, r)) + 0.008
        parts.append(cylinder(radius + 0.012, high * 0.07, hoop, (0, 0, t * high - high * 0.035), segments=n))
    if chance(rng, 0.2):
        parts = [p.turn("y", 90).move(0, 0, end + bulge) for p in parts]
        parts += [box((0.12, end * 2, 0.12), shade(wood, 0.7), (x * high, 0, 0)) for x in (0.2, 0.8)]
    return parts


def bucket(rng: Rng) -> list[Part]:
    """A bucket with a bail handle, a plant tub or a waste basket."""
    n, high, top = smoothness(rng), uniform(rng, 0.7, 1.1), uniform(rng, 0.4, 0.55)
    low = top * uniform(rng, 0.65, 0.9)
    color = hue(rng, "metal", "plastic", "painted", "wood")
    up = np.array(
        [
            (low, 0),
            (low + (top - low) * 0.25, high * 0.25),
            (low + (top - low) * 0.75, high * 0.75),
            (top, high * 0.96),
            (top * 1.06, high * 0.97),
            (top * 1.06, high),
        ]
    )
    profile = hollow(up, 0.05, 0.05)
    parts = [lathe(profile, banded(rng, len(profile) - 1, color, len(up) - 1), segments=n)]
    if chance(rng, 0.75):
        up_or_side = uniform(rng, 25, 90)
        arc = [(0, top * 1.05 * np.cos(t), top * 1.05 * np.sin(t)) for t in np.linspace(0, np.pi, 13)]
        loop = tube(arc, 0.025, hue(rng, "metal", "wood"), segments=6).turn("y", 90 - up_or_side)
        parts.append(loop.move(0, 0, high * 0.94))
    return parts


def kettle(rng: Rng) -> list[Part]:
    """A watering can: a straight body, long spout with rose, and a big handle."""
    n, high, wide = max(12, smoothness(rng)), uniform(rng, 0.5, 0.75), uniform(rng, 0.3, 0.42)
    color = hue(rng, "metal", "plastic", "painted")
    second = color if chance(rng) else accent(rng, color, "plastic", "painted")
    parts = [lathe([(wide, 0), (wide * 1.03, 0.04), (wide * 0.9, high), (wide * 0.5, high + 0.06)], color, segments=n)]
    reach, top = wide + uniform(rng, 0.4, 0.6), high * uniform(rng, 0.95, 1.25)
    parts.append(tube([(wide * 0.8, 0, 0.14), (reach, 0, top)], [0.07, 0.035], second, segments=8))
    rose = cylinder(0.04, 0.09, second, top=0.12, segments=12).turn("y", 50)
    parts.append(rose.move(reach - 0.02, 0, top - 0.02))
    path = [
        (-wide * 0.9, 0, high * 0.2),
        (-wide - 0.3, 0, high * 0.6),
        (-wide * 0.6, 0, high * 1.4),
        (wide * 0.3, 0, high + 0.03),
    ]
    return [*parts, tube(curve(path, 11), 0.035, second, segments=8)]


def sink_basin(rng: Rng) -> list[Part]:
    """A bath tub or a trough on feet, sometimes with a tap."""
    color, metal = hue(rng, "white", "ceramic", "metal"), hue(rng, "metal", "brass")
    long, wide, high = uniform(rng, 0.7, 1.6), uniform(rng, 0.6, 0.75), uniform(rng, 0.45, 0.6)
    shell = lathe(
        hollow(curve([(0.32, 0), (0.43, 0.14), (0.47, 0.36), (0.52, 0.52)], 8), 0.05, 0.08), color, segments=20
    )
    parts = [shell.scale(long, wide, high / 0.52).move(0, 0, 0.08)]
    parts += [cushion((0.1, 0.1, 0.18), metal, (x * long * 0.26, y * wide * 0.24, 0)) for x in (-1, 1) for y in (-1, 1)]
    x = -long * 0.5
    tap = [(x + 0.03, 0, high), (x + 0.03, 0, high + 0.25), (x + 0.2, 0, high + 0.26), (x + 0.22, 0, high + 0.18)]
    return [*parts, tube(tap, 0.03, metal, segments=8)] if chance(rng, 0.7) else parts
