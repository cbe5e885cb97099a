"""What stands in a park, yard or garden, on z = 0."""

from __future__ import annotations

import numpy as np

from .blocks import Part, box, cylinder, extrude, lathe, mirrored, skin, tube
from .draw import accent, chance, hue, mottled, pick, shade, uniform, whole
from .outlines import curve, outline_rect

Rng = np.random.Generator


def fence(rng: Rng) -> list[Part]:
    """A piece of fence, gate or wall."""
    wood, long, kind = hue(rng, "wood", "white", "painted", "metal"), uniform(rng, 1.2, 2.2), whole(rng, 0, 2)
    if kind == 0:
        count, high = whole(rng, 6, 12), uniform(rng, 0.7, 1.1)
        gap = long / count
        picket = [(-gap * 0.36, 0), (gap * 0.36, 0), (gap * 0.36, high * 0.85), (0, high), (-gap * 0.36, high * 0.85)]
        parts = [extrude(picket, 0.05, wood, axis="x").move(0, (k - (count - 1) / 2) * gap) for k in range(count)]
        return parts + [box((0.07, long, 0.08), shade(wood, 0.85), (-0.04, 0, z * high)) for z in (0.2, 0.65)]
    if kind == 1:
        posts = [
            box((0.12, 0.12, 0.95), shade(wood, 0.85), (0, y, 0), bevel=0.02)
            for y in np.linspace(-0.5, 0.5, whole(rng, 2, 4)) * long
        ]
        return posts + [
            box((0.05, long + 0.15, 0.12), wood, (0.03, 0, z)) for z in np.linspace(0.25, 0.75, whole(rng, 2, 3))
        ]
    stone, parts = hue(rng, "stone", "brick"), []
    rows, columns = whole(rng, 3, 5), whole(rng, 3, 6)
    for i in range(rows):
        for k in range(columns):
            y = (k - (columns - 1) / 2 + 0.25 * (1 if i % 2 else -1)) * long / columns
            parts.append(
                box(
                    (0.3, long / columns * 0.98, 0.24),
                    shade(stone, uniform(rng, 0.85, 1.1)),
                    (0, y, 0.23 * i),
                    bevel=0.02,
                )
            )
    return parts


def fountain(rng: Rng) -> list[Part]:
    """A fountain, well, statue plinth, or bird bath."""
    stone, water, n = hue(rng, "stone", "wall"), (98, 160, 196), pick(rng, (8, 12, 16, 20))
    if chance(rng, 0.4):
        wood, roof = hue(rng, "wood"), hue(rng, "roof")
        ring = lathe(
            [(0.55, 0), (0.55, 0.6), (0.42, 0.6), (0.42, 0.35), (0, 0.35)], [stone, stone, stone, water], segments=n
        )
        parts = [
            mottled(rng, ring),
            *mirrored([box((0.09, 0.09, 1.4), wood, (0, 0.48, 0))]),
            cylinder(0.05, 1.0, wood, (0, -0.5, 1.05), axis="y", segments=8),
        ]
        roof_side = [(-0.6, 1.3), (0.6, 1.3), (0.6, 1.36), (0, 1.8), (-0.6, 1.36)]
        return [*parts, extrude(roof_side, 1.3, roof)]
    low = [(0.8, 0), (0.8, 0.3), (0.7, 0.3), (0.68, 0.22), (0, 0.22)]
    parts = [lathe(low, [stone, stone, stone, water], segments=n)]
    z, r = 0.2, 0.42
    for _ in range(whole(rng, 1, 2)):
        rise = uniform(rng, 0.4, 0.6)
        rows = [
            (0.15, z),
            (0.08, z + rise * 0.5),
            (0.1, z + rise * 0.8),
            (r, z + rise),
            (r, z + rise + 0.06),
            (r * 0.85, z + rise + 0.03),
            (0, z + rise),
        ]
        parts.append(lathe(rows, [stone] * 5 + [water], segments=n))
        z, r = z + rise - 0.02, r * 0.6
    return [*parts, lathe([(0.08, z), (0.05, z + 0.2), (0.09, z + 0.28), (0, z + 0.4)], stone, segments=10)]


def tent(rng: Rng) -> list[Part]:
    """A tent, a beach umbrella or a gazebo."""
    cloth, pole = hue(rng, "painted", "plastic", "fabric"), hue(rng, "wood", "metal")
    second, kind = accent(rng, cloth, "painted", "white"), whole(rng, 0, 2)
    if kind == 0:
        wide, high, long = uniform(rng, 1.2, 1.8), uniform(rng, 0.9, 1.3), uniform(rng, 1.6, 2.4)
        side = [(-wide / 2, 0), (wide / 2, 0), (0, high)]
        flap = [(-wide * 0.2, 0), (wide * 0.2, 0), (0, high * 0.8)]
        return [
            extrude(side, long, cloth, axis="x"),
            extrude(flap, 0.04, second, axis="x").move(long / 2),
            box((0.05, 0.05, high + 0.12), pole, (long / 2 - 0.01, 0, 0)),
            box((long + 0.2, wide + 0.2, 0.04), shade(cloth, 0.6)),
        ]
    n, high, r = pick(rng, (6, 8, 12)), uniform(rng, 1.4, 1.9), uniform(rng, 0.7, 1.0)
    rows = [(r * 0.96, high - 0.33), (r, high - 0.35), (r * 0.55, high - 0.1), (0, high)]
    top = lathe(rows, cloth, segments=n)
    angle = np.arctan2(top.centroids[:, 1], top.centroids[:, 0]) % (2 * np.pi)
    top = top.paint(second, (angle / (2 * np.pi) * n).astype(int) % 2 == 0)
    if kind == 1:
        return [
            top,
            cylinder(0.035, high + 0.08, pole, segments=8),
            lathe([(0.25, 0), (0.2, 0.08), (0.05, 0.12)], hue(rng, "stone"), segments=12),
        ]
    posts = [
        cylinder(
            0.04,
            high - 0.3,
            pole,
            (r * 0.9 * np.cos(2 * np.pi * k / n), r * 0.9 * np.sin(2 * np.pi * k / n), 0),
            segments=6,
        )
        for k in range(n)
    ]
    return [top, *posts, cylinder(r, 0.1, hue(rng, "wood", "stone"), segments=n)]


def play(rng: Rng) -> list[Part]:
    """A slide, a swing or a trampoline."""
    paint, frame, kind = hue(rng, "plastic", "painted"), hue(rng, "metal", "wood", "plastic"), whole(rng, 0, 1)
    if kind == 0:
        high = uniform(rng, 1.0, 1.5)
        path = curve([(-0.1, high), (0.3, high * 0.8), (1.2, high * 0.25), (1.7, 0.12)], 8)
        rings = []
        flat = outline_rect(0.28, 0.04)
        for x, z in path:
            rings.append([(x, y, z + h) for y, h in flat])
        rails = mirrored([tube([(x, 0.28, z + 0.06) for x, z in path], 0.05, paint, segments=6)])
        ladder = mirrored(
            [tube([(-0.7, 0.22, 0), (-0.12, 0.22, high), (-0.12, 0.22, high + 0.25)], 0.035, frame, segments=6)]
        )
        rungs = [box((0.07, 0.46, 0.05), frame, (-0.7 + 0.58 * t, 0, high * t)) for t in np.linspace(0.15, 0.95, 5)]
        return [
            skin(np.array(rings), paint),
            *rails,
            *ladder,
            *rungs,
            box((0.3, 0.5, 0.05), frame, (-0.12, 0, high - 0.04)),
        ]
    high, wide = uniform(rng, 1.6, 2.0), uniform(rng, 1.0, 1.8)
    legs = [
        tube([(x, y, 0), (0, y * 0.95, high)], 0.045, frame, segments=6) for x in (-0.5, 0.5) for y in (-wide, wide)
    ]
    parts = [*legs, cylinder(0.05, wide * 2, frame, (0, -wide, high - 0.02), axis="y", segments=8)]
    for y in (-wide * 0.45, wide * 0.45) if wide > 1.2 else (0.0,):
        parts += [
            box((0.22, 0.5, 0.05), paint, (0, y, 0.45), bevel=0.015),
            *(box((0.03, 0.03, high - 0.47), hue(rng, "dark"), (0, y + s * 0.22, 0.48)) for s in (1, -1)),
        ]
    return parts
