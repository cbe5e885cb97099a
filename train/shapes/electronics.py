"""Screens and other electric things, on z = 0, front +x."""

from __future__ import annotations

import numpy as np

from .blocks import Color, Part, box, cushion, cylinder, ellipsoid, extrude, lathe, mirrored, tube
from .draw import accent, chance, hue, pick, shade, uniform, whole

Rng = np.random.Generator


def screen(rng: Rng) -> list[Part]:
    """A television, monitor, laptop, phone, tablet or arcade cabinet."""
    shell, glass, kind = (
        hue(rng, "dark", "metal", "white", "plastic"),
        hue(rng, "dark", "glass", "painted"),
        whole(rng, 0, 4),
    )
    wide = uniform(rng, 0.8, 1.3)
    high = wide * uniform(rng, 0.55, 0.75)
    if kind == 0:
        return _monitor(glass, high, shell, wide)
    if kind == 1:
        return _old_television(rng, glass, high, wide)
    if kind == 2:
        return _laptop(rng, glass, high, shell, wide)
    if kind == 3:
        return _phone(rng, glass, shell, wide)
    return _arcade(rng, glass)


def _monitor(glass: Color, high: float, shell: Color, wide: float) -> list[Part]:
    """A flat screen on a foot."""
    foot = [box((0.3, wide * 0.35, 0.03), shell, bevel=0.01), box((0.05, 0.12, 0.25), shell, (-0.02, 0, 0.01))]
    return [
        *foot,
        box((0.08, wide, high), shell, (0, 0, 0.18), bevel=0.015),
        box((0.03, wide * 0.94, high * 0.9), glass, (0.035, 0, 0.18 + high * 0.05)),
    ]


def _old_television(rng: Rng, glass: Color, high: float, wide: float) -> list[Part]:
    """A television with a tube, knobs and perhaps an aerial."""
    deep, wood = uniform(rng, 0.5, 0.7), hue(rng, "wood", "plastic", "dark", "metal")
    parts = [
        box((deep, wide, high), wood, (0, 0, 0.12), bevel=0.05),
        box((0.06, wide * 0.64, high * 0.78), glass, (deep / 2 - 0.02, -wide * 0.12, 0.12 + high * 0.11), bevel=0.02),
        box((deep * 0.35, wide * 0.7, high * 0.7), shade(wood, 0.7), (-deep * 0.6, 0, 0.2)),
    ]
    parts += [
        cylinder(0.05, 0.06, hue(rng, "metal"), (deep / 2 - 0.01, wide * 0.36, 0.12 + high * t), axis="x", segments=10)
        for t in (0.7, 0.5)
    ]
    parts += (
        mirrored([tube([(0, 0, high + 0.1), (0, 0.4, high + 0.6)], 0.015, hue(rng, "metal"), segments=5)])
        if chance(rng)
        else []
    )
    return parts + mirrored(
        [box((0.08, 0.08, 0.15), shade(wood, 0.7), (x, wide * 0.38, 0)) for x in (-deep * 0.3, deep * 0.3)]
    )


def _laptop(rng: Rng, glass: Color, high: float, shell: Color, wide: float) -> list[Part]:
    """An open laptop."""
    lean = uniform(rng, 5, 35)
    lid = [
        box((0.035, wide, high), shell, bevel=0.01),
        box((0.02, wide * 0.92, high * 0.86), glass, (0.012, 0, high * 0.07)),
    ]
    base = [box((high * 0.95, wide, 0.05), shell, (high * 0.45, 0, 0), bevel=0.012)]
    base += [
        box((high * 0.1, wide * 0.85, 0.015), shade(shell, 0.6), (high * (0.18 + 0.13 * k), 0, 0.045)) for k in range(4)
    ]
    return [
        *base,
        box((high * 0.2, wide * 0.3, 0.012), shade(shell, 0.8), (high * 0.78, 0, 0.046)),
        *(p.turn("y", -lean).move(0, 0, 0.02) for p in lid),
    ]


def _phone(rng: Rng, glass: Color, shell: Color, wide: float) -> list[Part]:
    """A phone or tablet standing on its edge."""
    tall = wide * uniform(rng, 1.6, 2.0) * 0.5
    wide *= 0.5
    parts = [
        cushion((0.1, wide, tall), shell, puff=0.15),
        box((0.03, wide * 0.9, tall * 0.86), glass, (0.042, 0, tall * 0.07), bevel=0.01),
    ]
    return [
        *parts,
        *(
            cylinder(0.035, 0.03, (30, 30, 34), (-0.06, wide * 0.28, tall * (0.88 - 0.1 * k)), axis="x", segments=10)
            for k in range(2)
        ),
    ]


def _arcade(rng: Rng, glass: Color) -> list[Part]:
    """An arcade cabinet."""
    paint = hue(rng, "painted", "plastic")
    side = [
        (-0.4, 0),
        (0.3, 0),
        (0.3, 0.8),
        (0.42, 0.9),
        (0.15, 1.05),
        (0.0, 1.5),
        (0.25, 1.62),
        (0.2, 1.8),
        (-0.4, 1.8),
    ]
    parts = [
        extrude(side, 0.7, paint),
        *mirrored(
            [extrude(np.array(side) * 1.02 + (0, -0.01), 0.06, accent(rng, paint, "dark", "plastic")).move(0, 0.36)]
        ),
    ]
    return [
        *parts,
        box((0.04, 0.56, 0.42), glass).turn("y", -18).move(0.13, 0, 1.07),
        *(
            ellipsoid((0.04, 0.04, 0.05), hue(rng, "plastic"), (0.3, y, 0.98), segments=8, rings=6)
            for y in (-0.2, -0.05, 0.1, 0.2)
        ),
    ]


def gadget(rng: Rng) -> list[Part]:
    """A radio, camera, loudspeaker, keyboard, headphones, clock, microwave or washing machine."""
    shell, dark, metal, kind = (
        hue(rng, "painted", "plastic", "white", "wood"),
        hue(rng, "dark"),
        hue(rng, "metal", "brass"),
        whole(rng, 0, 6),
    )
    if kind == 0:
        return _radio(rng, dark, metal, shell)
    if kind == 1:
        return _camera(rng, dark, metal, shell)
    if kind == 2:
        return _loudspeaker(rng, dark, metal, shell)
    if kind == 3:
        return _keyboard(rng, shell)
    if kind == 4:
        return _headphones(dark, shell)
    if kind == 5:
        return _alarm_clock(rng, dark, metal, shell)
    return _kitchen_machine(rng, dark, metal, shell)


def _radio(rng: Rng, dark: Color, metal: Color, shell: Color) -> list[Part]:
    """A portable radio with two cones, and a handle or an aerial."""
    wide, high = uniform(rng, 0.8, 1.1), uniform(rng, 0.45, 0.65)
    parts = [
        box((0.3, wide, high), shell, bevel=0.05),
        *(
            cylinder(high * 0.3, 0.06, dark, (0.13, y * wide, high * 0.42), axis="x", segments=16)
            for y in (-0.28, 0.28)
        ),
        box((0.04, wide * 0.7, 0.09), metal, (0.15, 0, high * 0.8)),
    ]
    parts += [cylinder(0.04, 0.05, metal, (0.14, 0, high * t), axis="x", segments=10) for t in (0.25, 0.5)]
    arch = tube(
        [
            (0, -wide * 0.4, high - 0.02),
            (0, -wide * 0.4, high + 0.15),
            (0, wide * 0.4, high + 0.15),
            (0, wide * 0.4, high - 0.02),
        ],
        0.03,
        dark,
        segments=6,
    )
    return [
        *parts,
        arch
        if chance(rng)
        else tube([(0, wide * 0.4, high - 0.03), (0, wide * 0.1, high + 0.5)], 0.015, metal, segments=5),
    ]


def _camera(rng: Rng, dark: Color, metal: Color, shell: Color) -> list[Part]:
    """A camera with its lens toward +x."""
    r = uniform(rng, 0.17, 0.24)
    lens = lathe(
        [(r, 0), (r, 0.12), (r * 0.9, 0.12), (r * 0.9, 0.25), (r * 0.75, 0.25), (r * 0.7, 0.2), (0, 0.18)],
        [dark, metal, dark, metal, dark, (70, 90, 120)],
        segments=18,
    ).turn("y", 90)
    return [
        box((0.25, 0.9, 0.5), shell, bevel=0.04),
        box((0.26, 0.92, 0.2), dark, (0, 0, 0.14)),
        lens.move(0.11, 0, 0.24),
        box((0.2, 0.28, 0.14), shell, (0, 0, 0.48), bevel=0.03),
        cylinder(0.06, 0.07, metal, (0, 0.33, 0.48), segments=12),
    ]


def _loudspeaker(rng: Rng, dark: Color, metal: Color, shell: Color) -> list[Part]:
    """A loudspeaker with three cones."""
    high = uniform(rng, 0.9, 1.4)
    parts = [
        box((0.4, 0.5, high), shell, bevel=0.02),
        *(
            lathe(
                [(r, 0), (r, 0.04), (r * 0.85, 0.04), (r * 0.3, 0.0), (0, 0.03)],
                [metal, dark, dark, metal],
                segments=16,
            )
            .turn("y", 90)
            .move(0.19, 0, high * t)
            for r, t in ((0.2, 0.27), (0.14, 0.65), (0.07, 0.88))
        ),
    ]
    return parts


def _keyboard(rng: Rng, shell: Color) -> list[Part]:
    """A computer keyboard."""
    keys, rows = whole(rng, 8, 12), whole(rng, 3, 4)
    parts = [extrude([(-0.25, 0), (0.25, 0), (0.25, 0.06), (-0.25, 0.12)], 1.2, shell, bevel=0.01)]
    for i in range(rows):
        x = -0.19 + 0.38 * (i + 0.3) / rows
        parts += [
            box(
                (0.28 / rows, 0.95 / keys, 0.06),
                shade(shell, 0.7 if (i + k) % 5 else 1.4),
                (x, ((k + 0.5) / keys - 0.5) * 1.12, 0.075 - x * 0.1),
            )
            for k in range(keys)
        ]
    return parts


def _headphones(dark: Color, shell: Color) -> list[Part]:
    """Headphones."""
    band = [(0, 0.42 * np.cos(t), 0.42 * np.sin(t) + 0.3) for t in np.linspace(-0.1, np.pi + 0.1, 14)]
    cups = [
        cylinder(0.2, 0.14, shell, (0, 0.34, 0.25), axis="y", segments=16),
        cylinder(0.19, 0.09, dark, (0, 0.28, 0.25), axis="y", segments=16),
    ]
    return [tube(band, 0.045, shell, segments=8), *mirrored(cups)]


def _alarm_clock(rng: Rng, dark: Color, metal: Color, shell: Color) -> list[Part]:
    """An alarm clock with two bells, or a plain one on them."""
    r, n = uniform(rng, 0.4, 0.5), pick(rng, (8, 16, 24))
    face = (
        lathe(
            [(r, 0), (r * 1.03, 0.12), (r * 0.9, 0.15), (r * 0.88, 0.1), (0, 0.1)],
            [shell, shell, shell, (246, 244, 236)],
            segments=n,
        )
        .turn("y", 90)
        .move(0, 0, r)
    )
    hands = [box((0.03, 0.04, r * t), dark).turn("x", uniform(rng, 0, 360)).move(0.11, 0, r) for t in (0.5, 0.75)]
    bells = mirrored(
        [
            ellipsoid((0.1, 0.16, 0.12), metal, (0.05, r * 0.6, r * 1.85)),
            cylinder(0.04, 0.2, metal, (0.06, r * 0.55, -0.05), segments=8),
        ]
    )
    return [face, *hands, *bells]


def _kitchen_machine(rng: Rng, dark: Color, metal: Color, shell: Color) -> list[Part]:
    """A washing machine or a cooker."""
    high = uniform(rng, 0.85, 1.0)
    ring = lathe(
        [(0.3, 0), (0.3, 0.05), (0.22, 0.06), (0.21, 0.02), (0, 0.05)],
        [metal, metal, metal, (96, 120, 140)],
        segments=20,
    ).turn("y", 90)
    parts = [
        box((0.75, 0.8, high), hue(rng, "white", "metal", "painted"), bevel=0.03),
        box((0.05, 0.74, high * 0.14), shade(shell, 0.9), (0.36, 0, high * 0.82)),
    ]
    if chance(rng):
        return [
            *parts,
            ring.move(0.36, 0, high * 0.42),
            *(cylinder(0.045, 0.05, dark, (0.375, y, high * 0.89), axis="x", segments=10) for y in (-0.25, 0.25)),
        ]
    rings = [cylinder(0.13, 0.03, dark, (x, y, high - 0.01), segments=14) for x in (-0.18, 0.18) for y in (-0.2, 0.2)]
    return [
        *parts,
        *rings,
        box((0.05, 0.6, high * 0.5), dark, (0.36, 0, high * 0.2)),
        box((0.08, 0.5, 0.04), metal, (0.385, 0, high * 0.73)),
    ]
