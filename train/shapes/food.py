"""Cooked food, standing on z = 0."""

from __future__ import annotations

import numpy as np

from .blocks import Part, blob, box, capsule, cylinder, ellipsoid, extrude, lathe, skin, tube
from .draw import chance, hue, mottled, pick, shade, smoothness, uniform, vary, whole
from .outlines import curve, outline_round
from .plants import leaf_blade

Rng = np.random.Generator


def plate(rng: Rng, radius: float) -> list[Part]:
    """A flat plate or board whose top is z = 0."""
    if chance(rng, 0.25):
        return [box((radius * 2, radius * 2.4, 0.08), hue(rng, "wood"), (0, 0, -0.08), bevel=0.02)]
    rows = [(radius * 0.6, -0.07), (radius * 0.97, 0.03), (radius, 0.06), (radius * 0.7, 0.0), (0, 0)]
    return [lathe(rows, hue(rng, "ceramic", "white", "dark", "wood"), segments=24)]


def burger(rng: Rng) -> list[Part]:
    """A hamburger of stacked layers, with seeds, sometimes on a plate or with a stick on top."""
    bun, n, r = hue(rng, "bread"), max(12, smoothness(rng)), uniform(rng, 0.45, 0.55)
    low = uniform(rng, 0.12, 0.2)
    parts = [lathe([(r * 0.9, 0), (r, 0.05), (r, low * 0.8), (r * 0.93, low)], bun, segments=n)]
    z = low - 0.02
    for kind in _layers(rng):
        layer, z = _burger_layer(rng, kind, r, z, n)
        parts.append(layer)
    tall = uniform(rng, 0.22, 0.38)
    dome = curve([(r * 1.03, z + 0.04), (r * 0.9, z + tall * 0.62), (r * 0.5, z + tall * 0.93), (0, z + tall)], 9)
    dome[-1, 0] = 0
    parts.append(lathe([(r * 0.95, z - 0.03), *dome.tolist()], [shade(bun, 1.4)] + [bun] * 8, segments=n))
    if chance(rng, 0.65):
        for k in range(whole(rng, 8, 22)):
            (rk, zk), angle = dome[3 + k % 5], 2.4 * k
            parts.append(
                ellipsoid(
                    (0.022, 0.022, 0.014),
                    (246, 228, 178),
                    (rk * np.cos(angle), rk * np.sin(angle), zk),
                    segments=5,
                    rings=5,
                )
            )
    if chance(rng, 0.3):
        parts.append(tube([(0, 0, z), (0, 0, z + tall + 0.25)], 0.015, hue(rng, "wood"), segments=6))
        parts.append(
            pick(
                rng,
                (
                    ellipsoid((0.06, 0.06, 0.06), hue(rng, "leaf", "flower"), (0, 0, z + tall + 0.24)),
                    leaf_blade(0.2, 0.12, 0.06, 0.02, hue(rng, "leaf")).move(0, 0, z + tall + 0.22),
                ),
            )
        )
    return parts + plate(rng, r * uniform(rng, 1.25, 1.9)) if chance(rng, 0.4) else parts


def _layers(rng: Rng) -> list[str]:
    stack = [pick(rng, ("lettuce", "sauce", "tomato")), "patty", *(["cheese"] if chance(rng, 0.7) else [])]
    if chance(rng, 0.35):
        stack += ["patty", "cheese"]
    return stack + [k for k in ("tomato", "onion", "lettuce") if chance(rng, 0.55)]


def _burger_layer(rng: Rng, kind: str, r: float, z: float, n: int) -> tuple[Part, float]:
    """One layer at height z and the height of its top."""
    if kind == "cheese":
        turn = uniform(rng, 0, 90)
        slab = box((r * 1.72, r * 1.72, 0.035), vary(rng, (245, 178, 40)), (0, 0, z), bevel=0.01)
        return slab.turn("z", turn), z + 0.03
    if kind == "lettuce":
        waves, height = whole(rng, 7, 11), 0.05
        angle = np.arange(48) * 2 * np.pi / 48
        wave = np.sin(waves * angle)
        rings = [
            np.column_stack([np.cos(angle) * r * f, np.sin(angle) * r * f, z + h + 0.03 * k * wave])
            for f, h, k in ((0.7, 0, 0), (1.1, -0.005, 1), (1.1, 0.02, 1), (0.7, height, 0))
        ]
        return skin(np.array(rings), hue(rng, "leaf")), z + height - 0.01
    high = {"patty": uniform(rng, 0.1, 0.17), "tomato": 0.05, "onion": 0.04, "sauce": 0.03}[kind]
    color = {"patty": (96, 54, 32), "tomato": (206, 54, 38), "onion": (225, 200, 215), "sauce": (215, 150, 50)}[kind]
    wide = r * (1.05 if kind == "patty" else 0.98)
    disc = lathe(
        [(wide * 0.93, z), (wide, z + high * 0.3), (wide, z + high * 0.7), (wide * 0.93, z + high)],
        vary(rng, color),
        segments=n,
    )
    return mottled(rng, disc, 0.1 if kind == "patty" else 0.03), z + high - 0.005


def pizza(rng: Rng) -> list[Part]:
    """A pizza or pie, whole or a slice, with toppings."""
    crust, cheese = hue(rng, "bread"), vary(rng, (240, 200, 90))
    share = 1.0 if chance(rng, 0.5) else uniform(rng, 0.12, 0.85)
    high = uniform(rng, 0.06, 0.14)
    if share == 1.0:
        parts = [
            lathe(
                [(0.62, 0), (0.68, high * 0.5), (0.66, high * 1.3), (0.58, high * 1.5), (0.55, high), (0, high)],
                [crust] * 4 + [cheese],
                segments=24,
            )
        ]
    else:
        angle = np.linspace(0, 2 * np.pi * share, max(5, int(28 * share)))
        rim = np.column_stack([np.cos(angle), np.sin(angle)])
        wedge = np.concatenate([[(0, 0)], rim * 0.6])
        parts = [extrude(wedge, high, cheese, axis="z").move(0, 0, high / 2)]
        parts.append(tube(np.column_stack([rim * 0.62, np.full(len(rim), high * 0.7)]), high * 0.8, crust, segments=8))
    for k in range(whole(rng, 5, 14)):
        a, r = 2 * np.pi * share * ((k * 0.618) % 1 * 0.9 + 0.05), 0.15 + 0.36 * ((k * 0.37) % 1)
        size = 0.06 if share > 0.3 else 0.04
        parts.append(
            cylinder(
                size,
                0.03,
                hue(rng, "brick", "leaf", "dark", "flower"),
                (r * np.cos(a), r * np.sin(a), high - 0.01),
                segments=8,
            )
        )
    return parts


def hot_dog(rng: Rng) -> list[Part]:
    """A sausage in a bun with sauce; or a burrito-like roll, or sushi."""
    bun, meat = hue(rng, "bread"), vary(rng, (176, 78, 48))
    long = uniform(rng, 1.0, 1.5)
    if chance(rng, 0.25):
        n, topping = 14, hue(rng, "flower", "autumn", "leaf")
        rows = [(0.3, 0), (0.32, 0.02), (0.32, 0.34), (0.29, 0.36), (0.15, 0.36), (0.13, 0.38), (0, 0.38)]
        return [lathe(rows, [(30, 48, 38)] * 3 + [(245, 243, 236)] * 2 + [topping], segments=n)]
    half = [capsule((-long * 0.42, s * 0.15, 0.17), (long * 0.42, s * 0.15, 0.17), 0.17, bun) for s in (1, -1)]
    sausage = capsule((-long * 0.46, 0, 0.26), (long * 0.46, 0, 0.26), 0.13, meat)
    t = np.linspace(-0.42, 0.42, 22)
    sauce = tube(
        np.column_stack([t * long, 0.06 * np.sin(t * 34), 0.385 + 0 * t]),
        0.025,
        vary(rng, pick(rng, ((240, 196, 40), (190, 30, 24)))),
        segments=6,
    )
    return [*half, box((long * 0.84, 0.3, 0.12), bun, (0, 0, 0.01)), sausage, sauce]


def meat(rng: Rng) -> list[Part]:
    """A drumstick, ham on the bone, steak, or whole roast on a plate."""
    brown, bone = hue(rng, "bread", "brick"), (240, 230, 212)
    body = blob((0.42, 0.32, 0.3), brown, rng, (0, 0, 0.3), rough=0.05, levels=3, waves=2)
    parts = [
        mottled(rng, body),
        tube([(0.2, 0, 0.3), (0.85, 0, 0.32)], 0.06, bone),
        *(ellipsoid((0.08, 0.08, 0.07), bone, (0.87, y, 0.32), segments=8, rings=6) for y in (0.05, -0.05)),
    ]
    tilt = uniform(rng, 0, 80)
    return parts + plate(rng, 0.95) if chance(rng, 0.4) else [p.turn("y", -tilt) for p in parts]


def egg_or_cheese(rng: Rng) -> list[Part]:
    """An egg in a cup, a fried egg, a wedge of cheese, or sweets."""
    kind, n = whole(rng, 0, 3), max(12, smoothness(rng))
    if kind == 0:
        rows = curve([(0.0, 0.3), (0.2, 0.36), (0.29, 0.62), (0.17, 0.95), (0, 1.02)], 11)
        rows[[0, -1], 0] = 0
        shell = hue(rng, "skin", "white")
        stand = [(0.2, 0), (0.18, 0.05), (0.08, 0.15), (0.1, 0.28), (0.28, 0.5), (0.3, 0.6), (0.26, 0.6), (0, 0.45)]
        return [lathe(np.maximum(rows, 0), shell, segments=n), lathe(stand, hue(rng, "ceramic", "wood"), segments=n)]
    if kind == 1:
        return [
            blob((0.5, 0.45, 0.07), (250, 248, 240), rng, (0, 0, 0.06), rough=0.12),
            ellipsoid((0.18, 0.18, 0.12), vary(rng, (246, 178, 38)), (0, 0, 0.1)),
            *plate(rng, 0.75),
        ]
    yellow = vary(rng, (243, 196, 62))
    if kind == 2:
        wedge = extrude([(-0.5, -0.3), (0.5, 0.0), (-0.5, 0.3)], 0.42, yellow, axis="z", bevel=0.015).move(0, 0, 0.21)
        holes = [
            ellipsoid((0.06, 0.06, 0.06), shade(yellow, 0.75), (x, y, 0.41), segments=8, rings=6)
            for x, y in ((-0.3, 0.05), (-0.05, -0.04), (0.15, 0.02))
        ]
        return [wedge, *holes]
    color = hue(rng, "flower", "plastic")
    swirl = outline_round(24)
    lolly = lathe(
        [(0.4, -0.07), (0.42, 0), (0.4, 0.07), (0.24, 0.09), (0.12, 0.08), (0, 0.09)],
        [color, color, (250, 248, 245), color, (250, 248, 245)],
        segments=len(swirl),
    )
    return [lolly.turn("y", 90).move(0, 0, 1.2), cylinder(0.03, 0.9, (245, 243, 238), segments=8)]


def bread(rng: Rng) -> list[Part]:
    """A loaf, baguette, roll, sandwich, croissant or slice of toast."""
    crust = hue(rng, "bread")
    kind = whole(rng, 0, 3)
    if kind == 0:
        long, wide = uniform(rng, 0.7, 2.2), uniform(rng, 0.32, 0.45)
        parts = [
            ellipsoid(
                (long / 2, wide / 2, wide * 0.4),
                crust,
                (0, 0, wide * 0.33),
                segments=16,
                rings=11,
                power=uniform(rng, 2, 2.8),
            )
        ]
        cuts = [
            ellipsoid((0.03, wide * 0.3, 0.03), shade(crust, 1.8), (x * long, 0, wide * 0.7), segments=8, rings=5).turn(
                "z", 0
            )
            for x in np.linspace(-0.25, 0.25, whole(rng, 2, 5))
        ]
        return parts + cuts
    if kind == 1:
        top = [(0.36 * np.cos(t), 0.42 + 0.16 * np.sin(t)) for t in np.linspace(0, np.pi, 9)]
        outline = [(-0.3, 0), (0.3, 0), (0.3, 0.38), *top, (-0.3, 0.38)]
        long = uniform(rng, 0.15, 1.1)
        return [
            extrude(outline, long, crust, axis="x", bevel=0.02),
            extrude(np.array(outline) * 0.9 + (0, 0.025), long + 0.02, shade(crust, 2.2), axis="x"),
        ]
    if kind == 2:
        t = np.linspace(-1, 1, 15)
        path = np.column_stack([0.45 * (1 - t**2) - 0.2, 0.5 * t, 0.16 + 0 * t])
        radii = np.maximum(0.2 * (1 - np.abs(t) ** 1.6) + 0.03, 0.03) * np.where(np.arange(15) % 2, 1.08, 0.94)
        return [tube(path, radii, [crust, shade(crust, 0.88)] * 7, segments=10)]
    tri = np.array([(-0.5, 0.0), (0.5, 0.0), (0, 0.55)])
    parts, x = [], 0.0
    for k, high in enumerate((0.1, *(uniform(rng, 0.04, 0.07) for _ in range(whole(rng, 1, 4))), 0.1)):
        bready = high == 0.1
        color = shade(crust, 1.7) if bready else hue(rng, "leaf", "flower", "light", "skin")
        parts.append(
            extrude(tri * (1 if bready else 1.04), high + 0.01, color, axis="x").move(x + high / 2, 0, 0.02 * (k % 2))
        )
        x += high
    return parts
