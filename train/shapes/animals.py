"""Animals. They face +x and are alike left and right (±y)."""

from __future__ import annotations

import numpy as np

from .blocks import Color, Part, box, cylinder, ellipsoid, extrude, lathe, mirrored, tube
from .draw import accent, chance, hue, mottled, pick, shade, uniform, vary, whole
from .outlines import curve
from .people import eyes
from .plants import leaf_blade

Rng = np.random.Generator
_EYE = (28, 26, 26)


def quadruped(rng: Rng) -> list[Part]:
    """A dog, cat, horse, cow, pig, sheep, elephant-like or imaginary animal on four legs."""
    fur = hue(rng, "fur", "fur", "painted")
    second = accent(rng, fur, "fur", "white")
    long, fat, leg = uniform(rng, 0.8, 1.4), uniform(rng, 0.18, 0.36), uniform(rng, 0.25, 0.8)
    thick, z = uniform(rng, 0.05, 0.09) + fat * 0.1, leg + fat * 0.7
    body = tube(
        curve([(-long / 2, 0, z), (-long * 0.25, 0, z + 0.02), (long * 0.2, 0, z), (long / 2, 0, z + 0.06)], 9),
        np.array([0.3, 0.78, 0.97, 1, 1, 1, 0.98, 0.8, 0.35]) * fat,
        fur,
        segments=12,
    )
    parts = [mottled(rng, body, 0.03) if chance(rng) else body]
    stride = uniform(rng, -0.12, 0.12)
    for x, s in ((long * 0.34, 1), (-long * 0.34, -1)):
        for y in (1, -1):
            foot = (x + stride * s * y, y * fat * 0.6, thick * 0.7)
            parts += [
                tube(
                    [(x, y * fat * 0.55, z), (x - 0.02 * s, y * fat * 0.6, leg * 0.5), foot],
                    [thick * 1.4, thick, thick * 0.85],
                    fur,
                    segments=8,
                ),
                ellipsoid((thick * 1.15, thick, thick * 0.75), second, foot, segments=8, rings=6),
            ]
    parts += _animal_head(rng, fat, fur, long, second, z)
    droop = uniform(rng, -0.4, 0.4)
    parts.append(
        tube(
            curve(
                [
                    (-long * 0.46, 0, z + 0.03),
                    (-long / 2 - 0.18, 0, z + 0.05 + droop * 0.3),
                    (-long / 2 - 0.25, 0, z + droop),
                ],
                6,
            ),
            np.linspace(0.06, 0.035, 6),
            fur,
            segments=6,
        )
    )
    if chance(rng, 0.35):
        for _ in range(whole(rng, 3, 7)):
            parts.append(
                ellipsoid(
                    (0.12, 0.05, 0.1),
                    second,
                    (uniform(rng, -0.3, 0.3) * long, pick(rng, (1, -1)) * fat * 0.93, z + uniform(rng, -0.1, 0.12)),
                    segments=8,
                    rings=5,
                )
            )
    return parts


def _animal_head(rng: Rng, fat: float, fur: Color, long: float, second: Color, z: float) -> list[Part]:
    """Neck, head, snout, eyes, ears and perhaps horns of an animal whose back is at height ``z``."""
    parts: list[Part] = []
    rise, reach, head = uniform(rng, 0.05, 0.6), uniform(rng, 0.1, 0.35), uniform(rng, 0.14, 0.24)
    top = np.array([long / 2 + reach, 0, z + rise])
    parts += [
        tube(np.array([(long * 0.36, 0, z + 0.05), top]), [fat * 0.75, head * 0.7], fur, segments=10),
        ellipsoid((head * 1.1, head * 0.9, head), fur, top, segments=12, rings=9),
    ]
    snout = uniform(rng, 0.4, 1.3) * head
    tip = np.add(top, (head * 0.7 + snout * 0.8, 0, -head * 0.3))
    parts += [
        tube(
            [np.add(top, (head * 0.3, 0, -head * 0.15)), tip],
            [head * 0.7, head * uniform(rng, 0.35, 0.55)],
            second,
            segments=10,
        ),
        ellipsoid(
            (0.04, head * 0.28, head * 0.2), shade(second, 0.4), np.add(tip, (0.01, 0, head * 0.1)), segments=8, rings=6
        ),
    ]
    parts += [p.move(*top) for p in eyes(rng, head * 0.75, head * 0.55, head * 0.35, head * 0.13)]
    ear = pick(
        rng,
        (
            ellipsoid((head * 0.15, head * 0.35, head * 0.55), fur, segments=8, rings=6),
            cylinder(head * 0.35, head * 0.8, fur, top=0.0, segments=6),
            leaf_blade(head * 1.1, head * 0.6, 0, 0.2, fur).turn("z", 90),
        ),
    )
    parts += mirrored([ear.move(*np.add(top, (-head * 0.2, head * 0.62, head * 0.6)))])
    if chance(rng, 0.3):
        horn = tube(
            curve([(0, 0, 0), (0, 0.1, 0.12), (0.08, 0.12, 0.28)], 6),
            np.linspace(0.045, 0.01, 6),
            hue(rng, "white", "bark"),
            segments=6,
        )
        parts += mirrored([horn.move(*np.add(top, (0, head * 0.4, head * 0.75)))])
    return parts


def bird(rng: Rng) -> list[Part]:
    """A bird standing: songbird, chick, duck, owl, penguin or stork."""
    plume = hue(rng, "plastic", "fur", "painted", "white")
    second, bill = (
        accent(rng, plume, "white", "fur", "light"),
        pick(rng, ((240, 160, 40), (226, 110, 40), (60, 54, 50))),
    )
    fat, tall, leg, lean = (
        uniform(rng, 0.28, 0.4),
        uniform(rng, 0.34, 0.6),
        uniform(rng, 0.08, 0.5),
        uniform(rng, 0, 60),
    )
    body = ellipsoid((fat, fat * 0.92, tall), plume, segments=14, rings=10)
    belly = ellipsoid(
        (fat * 0.85, fat * 0.75, tall * 0.82), second, (fat * 0.2, 0, -tall * 0.08), segments=14, rings=10
    )
    wing = ellipsoid(
        (fat * 0.55, 0.07, tall * 0.7), shade(plume, 0.8), (-fat * 0.1, fat * 0.9, 0), segments=10, rings=8
    )
    tail = (
        extrude([(0, -0.1), (0, 0.1), (-0.3, 0.16), (-0.3, -0.16)][::-1], 0.06, shade(plume, 0.75), axis="z")
        .turn("y", 60)
        .move(-fat * 0.7, 0, -tall * 0.62)
    )
    z = leg + tall * np.cos(np.deg2rad(lean)) * 0.95 + 0.1
    parts = [p.turn("y", lean).move(0, 0, z) for p in (body, belly, *mirrored([wing]), tail)]
    head = fat * uniform(rng, 0.5, 0.8)
    neck_from = np.array([np.sin(np.deg2rad(lean)) * tall * 0.7, 0, z + np.cos(np.deg2rad(lean)) * tall * 0.7])
    top = np.add(neck_from, (uniform(rng, 0.0, 0.12), 0, uniform(rng, 0.1, 0.45)))
    parts += [
        tube(np.array([neck_from, top]), [head * 0.8, head * 0.6], plume, segments=10),
        ellipsoid((head, head * 0.95, head), plume, top, segments=12, rings=9),
    ]
    beak = (
        cylinder(head * 0.35, head * uniform(rng, 0.6, 1.4), bill, segments=8, top=0.01).scale(0.7, 1, 1).turn("y", 95)
    )
    parts += [
        beak.move(*np.add(top, (head * 0.8, 0, -0.02))),
        *(p.move(*top) for p in eyes(rng, head * 0.75, head * 0.5, head * 0.3, head * 0.14)),
    ]
    for k in (1, -1):
        parts += [
            tube([(0, k * fat * 0.4, z - tall * 0.35), (0, k * fat * 0.4, 0.03)], 0.035, bill, segments=6),
            ellipsoid((0.13, 0.09, 0.03), bill, (0.06, k * fat * 0.4, 0.03), segments=8, rings=5),
        ]
    return parts


def fish(rng: Rng) -> list[Part]:
    """A fish, shark, whale or dolphin, level in the water."""
    scale_color = hue(rng, "plastic", "metal", "painted", "glass")
    fin, belly = accent(rng, scale_color, "plastic", "painted"), hue(rng, "white", "light")
    long, high, wide = uniform(rng, 0.9, 1.6), uniform(rng, 0.16, 0.42), uniform(rng, 0.1, 0.28)
    t = np.linspace(-0.5, 0.5, 11)
    fat = np.array([0.22, 0.3, 0.5, 0.7, 0.87, 0.97, 1.0, 0.95, 0.8, 0.52, 0.0])
    body = tube(np.column_stack([t * long, 0 * t, 0 * t]), fat, scale_color, segments=14).scale(1, wide, high)
    body = body.paint(belly, body.centroids[:, 2] < -high * 0.3)
    if chance(rng, 0.4):
        body = body.paint(fin, (np.floor((body.centroids[:, 0] / long + 0.5) * 10) % 3 == 1))
    tail_x, size = -long / 2, uniform(rng, 0.7, 1.2) * (high + 0.1)
    tail_shape = [(0.06, -0.06), (0.06, 0.06), (-size * 0.8, size), (-size * 0.45, 0), (-size * 0.8, -size)]
    flukes = chance(rng, 0.25)
    tail = extrude(tail_shape, 0.05, fin, axis="z" if flukes else "y").move(tail_x)
    parts = [body, tail]
    top = float(uniform(rng, 0.15, 0.4))
    parts.append(
        extrude(
            [
                (-long * 0.18, high * 0.6),
                (long * 0.15, high * 0.75),
                (-long * 0.05, high * 0.85 + top),
                (-long * 0.2, high * 0.8 + top * 0.7),
            ],
            0.05,
            fin,
        )
    )
    side_fin = extrude([(0.1, 0), (-0.1, 0), (-0.25, 0.3), (-0.12, 0.32)], 0.04, fin, axis="z", bevel=0.005).turn(
        "x", -uniform(rng, 10, 60)
    )
    parts += mirrored([side_fin.move(long * 0.12, wide * 0.75, -high * 0.25)])
    return parts + eyes(rng, long * 0.34, wide * 0.72, high * 0.22, 0.05)


def sea_animal(rng: Rng) -> list[Part]:
    """A turtle, crab, snail, octopus or ladybird."""
    shell, flesh = hue(rng, "leaf", "brick", "flower", "wood"), hue(rng, "leaf", "skin", "autumn", "plastic")
    kind = whole(rng, 0, 2)
    if kind == 0:
        parts = [
            lathe([(0.5, 0.12), (0.52, 0.18), (0.42, 0.36), (0.2, 0.48), (0, 0.5)], shell, segments=12).scale(
                1.15, 1, 1
            ),
            ellipsoid((0.2, 0.14, 0.13), flesh, (0.72, 0, 0.24)),
            tube([(0.4, 0, 0.2), (0.7, 0, 0.23)], 0.1, flesh),
        ]
        parts += mirrored(
            [ellipsoid((0.17, 0.13, 0.12), flesh, (x, 0.42, 0.11), segments=10, rings=7) for x in (0.36, -0.36)]
        )
        return [
            *parts,
            *eyes(rng, 0.86, 0.08, 0.31, 0.03),
            cylinder(0.05, 0.2, flesh, (-0.75, 0, 0.15), axis="x", segments=6),
        ]
    if kind == 1:
        t = np.linspace(0, 4.5 * np.pi, 30)
        spiral = np.column_stack(
            [-0.1 + 0.35 * (1 - t / 16) * np.cos(t), 0 * t, 0.48 + 0.35 * (1 - t / 16) * np.sin(t)]
        )
        parts = [tube(spiral, np.linspace(0.22, 0.08, 30), shell, segments=10).scale(1, 1.3, 1)]
        parts.append(
            tube(
                [(-0.75, 0, 0.05), (-0.3, 0, 0.11), (0.35, 0, 0.12), (0.6, 0, 0.3)],
                [0.03, 0.13, 0.14, 0.13],
                flesh,
                segments=10,
            )
        )
        return [
            *parts,
            ellipsoid((0.14, 0.14, 0.14), flesh, (0.63, 0, 0.34)),
            *mirrored(
                [
                    tube([(0.65, 0.06, 0.42), (0.75, 0.1, 0.65)], 0.025, flesh, segments=6),
                    ellipsoid((0.045,) * 3, _EYE, (0.76, 0.1, 0.66), segments=8, rings=6),
                ]
            ),
        ]
    parts = [ellipsoid((0.36, 0.36, uniform(rng, 0.35, 0.5)), flesh, (0, 0, 0.55), segments=14, rings=10)]
    for k in range(8):
        arm = tube(
            curve([(0.2, 0, 0.3), (0.5, 0, 0.12), (0.75, 0, 0.08), (0.9, 0, uniform(rng, 0.05, 0.3))], 8),
            np.linspace(0.12, 0.03, 8),
            flesh,
            segments=7,
        )
        parts.append(arm.turn("z", 22.5 + 45 * k))
    return parts + eyes(rng, 0.3, 0.14, 0.65, 0.055)


def rubber_duck(rng: Rng) -> list[Part]:
    """A bath duck or a piggy bank."""
    if chance(rng, 0.6):
        color = vary(rng, (248, 206, 40)) if chance(rng, 0.7) else hue(rng, "plastic")
        bill = (240, 120, 36)
        parts = [
            ellipsoid((0.5, 0.38, 0.32), color, (0, 0, 0.3), segments=18, rings=12),
            ellipsoid((0.27, 0.25, 0.26), color, (0.25, 0, 0.75), segments=16, rings=11),
            tube([(-0.3, 0, 0.35), (-0.58, 0, 0.58)], [0.25, 0.04], color, segments=12),
        ]
        parts += mirrored(
            [
                ellipsoid((0.24, 0.07, 0.15), shade(color, 0.92), (-0.08, 0.36, 0.36), segments=10, rings=8),
                ellipsoid((0.035,) * 3, (26, 26, 28), (0.45, 0.12, 0.83), segments=8, rings=6),
            ]
        )
        return [*parts, ellipsoid((0.13, 0.13, 0.05), bill, (0.53, 0, 0.72), segments=12, rings=7)]
    pink = hue(rng, "flower", "skin", "plastic")
    parts = [
        ellipsoid((0.5, 0.38, 0.36), pink, (0, 0, 0.5), segments=18, rings=12),
        cylinder(0.14, 0.14, shade(pink, 0.9), (0.44, 0, 0.52), axis="x", segments=12),
        box((0.2, 0.04, 0.03), (40, 36, 36), (0, 0, 0.84)),
    ]
    legs = [cylinder(0.09, 0.28, pink, (x, 0.2, 0), segments=10) for x in (0.24, -0.24)]
    ear = cylinder(0.1, 0.16, shade(pink, 0.9), (0.28, 0.18, 0.76), top=0.01, segments=6)
    tail = tube(
        curve([(-0.48, 0, 0.55), (-0.58, 0.06, 0.62), (-0.62, 0, 0.55), (-0.66, -0.03, 0.62)], 8),
        0.025,
        pink,
        segments=6,
    )
    return [
        *parts,
        *mirrored([*legs, ear, ellipsoid((0.03,) * 3, (26, 26, 28), (0.42, 0.14, 0.68), segments=8, rings=6)]),
        tail,
    ]
