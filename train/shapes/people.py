"""People, robots, soft toys and snowmen. They face +x, alike left and right (±y) but for the pose of their limbs."""

from __future__ import annotations

import numpy as np

from .blocks import Color, Part, box, capsule, cushion, cylinder, ellipsoid, extrude, lathe, mirrored, tube
from .draw import accent, chance, hue, pick, shade, uniform, whole
from .outlines import Floats

Rng = np.random.Generator
_EYE = (28, 26, 26)


def eyes(rng: Rng, x: float, y: float, z: float, size: float) -> list[Part]:
    """Two eyes at (x, ±y, z), plain or white with a pupil."""
    if chance(rng, 0.5):
        return mirrored([ellipsoid((size, size, size), _EYE, (x, y, z), segments=8, rings=6)])
    white = ellipsoid((size * 1.3, size * 1.3, size * 1.3), (248, 248, 246), (x, y, z), segments=10, rings=7)
    return mirrored([white, ellipsoid((size * 0.8,) * 3, _EYE, (x + size * 0.8, y, z), segments=8, rings=6)])


def _limb(
    start: Floats,
    angle: float,
    bend: float,
    lengths: tuple[float, float],
    radius: float,
    colors: tuple[Color, Color],
    out: float,
) -> tuple[list[Part], Floats]:
    """Two capsules from ``start``: hanging, swung forward by ``angle`` degrees, bent by ``bend``, ``out`` sideways."""
    tip = start
    parts: list[Part] = []
    for k, (length, color) in enumerate(zip(lengths, colors, strict=True)):
        a = np.deg2rad(angle + bend * k)
        end = tip + length * np.array([np.sin(a), out, -np.cos(a)]) / np.sqrt(1 + out * out)
        parts.append(
            capsule(tip, end, radius * (1 - 0.12 * k), color, end_radius=radius * (0.88 - 0.1 * k), segments=8)
        )
        tip = end
    return parts, tip


def person(rng: Rng) -> list[Part]:
    """A man, woman or child standing, walking, waving, sitting or with arms out; realistic or toy-like head sizes."""
    skin_color, hair, shirt = hue(rng, "skin"), hue(rng, "hair"), hue(rng, "painted", "fabric", "plastic")
    trousers, shoe = accent(rng, shirt, "fabric", "painted", "dark"), hue(rng, "dark", "wood", "white")
    pose = pick(rng, ("stand", "stand", "walk", "wave", "tee", "sit"))
    bulk, head = uniform(rng, 0.85, 1.3), uniform(rng, 0.11, 0.2)
    thigh, shin, trunk = uniform(rng, 0.32, 0.44), uniform(rng, 0.32, 0.44), uniform(rng, 0.42, 0.55)
    hip = thigh + shin + 0.05
    shoulder, wide = hip + trunk, 0.19 * bulk
    parts = [
        tube(
            [
                (0, 0, hip - 0.08),
                (0, 0, hip + 0.05),
                (0, 0, hip + trunk * 0.5),
                (0, 0, shoulder - 0.06),
                (0, 0, shoulder + 0.03),
            ],
            np.array([0.6, 0.82, 0.75, 0.95, 0.4]) * wide,
            [trousers, shirt, shirt, shirt],
            segments=12,
        ).scale(0.72, 1, 1)
    ]
    swing = {"walk": uniform(rng, 15, 35), "sit": 85}.get(pose, 0.0)
    for side in (1, -1):
        angle = swing if pose == "sit" else swing * side
        legs, foot = _limb(
            np.array([0, side * wide * 0.48, hip - 0.03]),
            angle,
            -85 if pose == "sit" else -abs(swing) * 0.5,
            (thigh, shin),
            0.082 * bulk,
            (trousers, trousers if chance(rng, 0.75) else skin_color),
            0.02 * side,
        )
        parts += [*legs, ellipsoid((0.13, 0.06, 0.05), shoe, np.add(foot, (0.05, 0, -0.02)), segments=10, rings=7)]
        lift = (
            150.0
            if pose == "wave" and side > 0
            else -swing * side
            if pose == "walk"
            else 20.0
            if pose == "sit"
            else 0.0
        )
        out = side * (3.0 if pose == "tee" else 0.5 if pose == "wave" and side > 0 else uniform(rng, 0.08, 0.3))
        arms, hand = _limb(
            np.array([0, side * wide * 0.95, shoulder - 0.05]),
            lift,
            15,
            (0.27, 0.25),
            0.055 * bulk,
            (shirt, pick(rng, (shirt, skin_color))),
            out,
        )
        parts += [*arms, ellipsoid((0.05, 0.045, 0.06), skin_color, hand, segments=8, rings=6)]
    parts += _head_and_neck(rng, bulk, head, shoulder, skin_color)
    return parts + _headgear(rng, head, shoulder + 0.03 + head * 1.15, hair)


def _head_and_neck(rng: Rng, bulk: float, head: float, shoulder: float, skin_color: Color) -> list[Part]:
    """Neck, head, eyes and nose on shoulders at height ``shoulder``."""
    parts: list[Part] = []
    z = shoulder + 0.03 + head * 1.15
    parts += [
        cylinder(0.05 * bulk, 0.14, skin_color, (0, 0, shoulder - 0.02), segments=8),
        ellipsoid((head * 0.95, head * 0.85, head * 1.1), skin_color, (0, 0, z), segments=14, rings=10),
    ]
    parts += [
        *eyes(rng, head * 0.82, head * 0.36, z + head * 0.15, head * 0.1),
        ellipsoid(
            (head * 0.2, head * 0.13, head * 0.16),
            shade(skin_color, 0.92),
            (head * 0.9, 0, z - head * 0.08),
            segments=8,
            rings=6,
        ),
    ]
    return parts


def _headgear(rng: Rng, head: float, z: float, hair: Color) -> list[Part]:
    kind = whole(rng, 0, 4)
    crown = ellipsoid(
        (head * 1.02, head * 0.98, head * 0.98), hair, (-head * 0.16, 0, z + head * 0.24), segments=14, rings=9
    )
    if kind == 0:
        return [crown, ellipsoid((head * 0.5, head * 0.85, head * 1.3), hair, (-head * 0.7, 0, z - head * 0.3))]
    if kind == 1:
        hat = hue(rng, "fabric", "painted", "wood")
        rows = [
            (head * 1.7, z + head * 0.55),
            (head * 1.7, z + head * 0.65),
            (head * 0.95, z + head * 0.7),
            (head * 0.85, z + head * 1.4),
            (0, z + head * 1.45),
        ]
        return [crown, lathe(rows, hat, segments=14)]
    if kind == 2:
        cap = hue(rng, "painted", "plastic")
        return [
            ellipsoid((head * 1.05, head * 0.98, head * 0.8), cap, (-head * 0.05, 0, z + head * 0.45)),
            box(
                (head * 1.1, head * 1.3, head * 0.12),
                shade(cap, 0.8),
                (head * 0.9, 0, z + head * 0.42),
                bevel=head * 0.05,
            ),
        ]
    if kind == 3:
        return [
            crown,
            ellipsoid(
                (head * 0.4, head * 0.4, head * 0.4), hair, (-head * 0.8, 0, z + head * 0.9), segments=10, rings=7
            ),
        ]
    return [crown]


def robot(rng: Rng) -> list[Part]:
    """A robot of boxes and cylinders, on legs, tracks or a wheel."""
    metal, dark = hue(rng, "metal", "painted", "plastic"), hue(rng, "dark")
    glow, trim = (
        pick(rng, ((90, 220, 240), (250, 200, 60), (240, 70, 60), (120, 240, 120))),
        accent(rng, metal, "painted", "metal", "plastic"),
    )
    wide, deep, high, leg = (
        uniform(rng, 0.5, 0.8),
        uniform(rng, 0.35, 0.55),
        uniform(rng, 0.5, 0.8),
        uniform(rng, 0.25, 0.6),
    )
    parts = [
        cushion((deep, wide, high), metal, (0, 0, leg), puff=0.15)
        if chance(rng)
        else box((deep, wide, high), metal, (0, 0, leg), bevel=0.04)
    ]
    parts += [
        box((0.06, wide * 0.55, high * 0.4), trim, (deep / 2, 0, leg + high * 0.4)),
        *(
            cylinder(0.04, 0.06, glow, (deep / 2 + 0.01, y, leg + high * 0.6), axis="x", segments=8)
            for y in (-0.1, 0, 0.1)
        ),
    ]
    head, z = uniform(rng, 0.32, 0.55), leg + high
    parts.append(cylinder(0.1, 0.14, dark, (0, 0, z - 0.03), segments=10))
    parts += _robot_head(rng, dark, glow, head, metal, z)
    arm = [
        ellipsoid((0.12, 0.1, 0.12), trim, (0, wide / 2 + 0.04, z - 0.12)),
        capsule((0, wide / 2 + 0.1, z - 0.12), (0.05, wide / 2 + 0.14, z - 0.45), 0.06, dark),
        capsule((0.05, wide / 2 + 0.14, z - 0.45), (0.28, wide / 2 + 0.12, z - 0.6), 0.07, metal),
    ]
    parts += mirrored(
        [
            *arm,
            box((0.14, 0.04, 0.05), trim, (0.38, wide / 2 + 0.16, z - 0.64)),
            box((0.14, 0.04, 0.05), trim, (0.38, wide / 2 + 0.08, z - 0.64)),
        ]
    )
    if chance(rng, 0.65):
        return parts + mirrored(
            [
                box((0.16, 0.16, leg), dark, (0, wide * 0.25, 0.05)),
                box((0.36, 0.22, 0.14), trim, (0.06, wide * 0.25, 0), bevel=0.03),
            ]
        )
    return [
        *parts,
        *mirrored(
            [
                extrude(
                    [(-0.4, 0.08), (-0.32, 0), (0.32, 0), (0.4, 0.08), (0.3, leg * 0.8), (-0.3, leg * 0.8)],
                    0.2,
                    dark,
                    bevel=0.02,
                ).move(0, wide * 0.35)
            ]
        ),
        box((0.3, wide * 0.7, leg), dark, (0, 0, 0.05)),
    ]


def _robot_head(rng: Rng, dark: Color, glow: Color, head: float, metal: Color, z: float) -> list[Part]:
    """A box or dome with two glowing eyes and perhaps an aerial, on a neck at height ``z``."""
    parts: list[Part] = []
    skull = pick(
        rng,
        (
            box((head * 0.9, head * 1.1, head * 0.85), metal, (0, 0, z + 0.06), bevel=0.03),
            lathe(
                [(head * 0.5, 0), (head * 0.5, head * 0.5), (head * 0.35, head * 0.75), (0, head * 0.85)],
                metal,
                segments=14,
            ).move(0, 0, z + 0.06),
        ),
    )
    parts += [
        skull,
        *mirrored(
            [
                ellipsoid(
                    (0.06, head * 0.16, head * 0.16),
                    glow,
                    (head * 0.44, head * 0.22, z + 0.06 + head * 0.42),
                    segments=10,
                    rings=7,
                )
            ]
        ),
    ]
    if chance(rng, 0.6):
        parts += [
            cylinder(0.02, 0.25, dark, (0, 0, z + head * 0.8), segments=6),
            ellipsoid((0.05, 0.05, 0.05), glow, (0, 0, z + head * 0.8 + 0.26), segments=8, rings=6),
        ]
    return parts


def teddy(rng: Rng) -> list[Part]:
    """A sitting soft toy: bear, rabbit, cat or panda."""
    fur = hue(rng, "fur", "fur", "fur", "flower", "white")
    pale, limb = shade(fur, uniform(rng, 1.4, 2.2)), fur if chance(rng, 0.7) else accent(rng, fur, "fur", "dark")
    fat, head, n = uniform(rng, 0.32, 0.42), uniform(rng, 0.3, 0.4), 14
    parts = [
        ellipsoid((fat * 0.9, fat, fat * 1.15), fur, (0, 0, fat), segments=n, rings=10),
        ellipsoid((fat * 0.6, fat * 0.65, fat * 0.75), pale, (fat * 0.4, 0, fat), segments=n, rings=9),
    ]
    z = fat * 2 + head * 0.7
    parts += [
        ellipsoid((head * 0.95, head * 1.05, head * 0.95), fur, (0.02, 0, z), segments=n, rings=10),
        ellipsoid((head * 0.4, head * 0.45, head * 0.35), pale, (head * 0.8, 0, z - head * 0.22), segments=10, rings=8),
    ]
    parts += [
        ellipsoid(
            (head * 0.13, head * 0.18, head * 0.12), _EYE, (head * 1.16, 0, z - head * 0.08), segments=8, rings=6
        ),
        *eyes(rng, head * 0.82, head * 0.4, z + head * 0.18, head * 0.11),
    ]
    tall = pick(rng, (0.3, 0.35, 1.1))
    parts += mirrored(
        [
            ellipsoid(
                (head * 0.18, head * 0.32, head * tall),
                limb,
                (0, head * 0.65, z + head * (0.75 + tall * 0.5)),
                segments=10,
                rings=8,
            )
        ]
    )
    leg = [
        capsule((fat * 0.3, fat * 0.55, fat * 0.35), (fat * 1.3, fat * 0.75, fat * 0.32), fat * 0.34, limb),
        ellipsoid((0.06, fat * 0.27, fat * 0.3), pale, (fat * 1.62, fat * 0.8, fat * 0.33), segments=10, rings=7),
    ]
    return parts + mirrored(
        [*leg, capsule((0, fat * 0.75, fat * 1.65), (fat * 0.7, fat * 1.15, fat * 1.0), fat * 0.25, limb)]
    )


def snowman(rng: Rng) -> list[Part]:
    """A snowman or a chess-like figure."""
    if chance(rng, 0.5):
        return _chessman(rng)
    snow, hat = hue(rng, "white"), hue(rng, "dark", "painted")
    r = [uniform(rng, 0.42, 0.5), uniform(rng, 0.3, 0.36), uniform(rng, 0.21, 0.26)]
    z = [r[0] * 0.9, r[0] * 1.7 + r[1] * 0.75, r[0] * 1.7 + r[1] * 1.5 + r[2] * 0.8]
    parts = [ellipsoid((a, a, a * 0.95), snow, (0, 0, h), segments=14, rings=10) for a, h in zip(r, z, strict=True)]
    parts += [
        cylinder(0.05, 0.3, (236, 120, 40), (r[2] * 0.85, 0, z[2]), top=0.005, axis="x", segments=8),
        *mirrored([ellipsoid((0.035,) * 3, _EYE, (r[2] * 0.85, r[2] * 0.4, z[2] + 0.08), segments=8, rings=6)]),
    ]
    parts += [ellipsoid((0.035,) * 3, _EYE, (r[1] * 0.97, 0, z[1] + 0.1 * k), segments=8, rings=6) for k in (-1, 0, 1)]
    parts += mirrored(
        [tube([(0, r[1] * 0.8, z[1]), (0.05, r[1] + 0.4, z[1] + 0.25)], [0.03, 0.02], hue(rng, "bark"), segments=6)]
    )
    top = z[2] + r[2] * 0.75
    return [
        *parts,
        lathe(
            [
                (r[2] * 1.3, top),
                (r[2] * 1.3, top + 0.04),
                (r[2] * 0.8, top + 0.05),
                (r[2] * 0.8, top + 0.35),
                (0, top + 0.36),
            ],
            hat,
            segments=14,
        ),
    ]


def _chessman(rng: Rng) -> list[Part]:
    """A pawn, bishop, queen or rook: one lathe profile with one of three crowns."""
    color, n, r = hue(rng, "wood", "white", "dark", "ceramic"), pick(rng, (12, 16, 20)), uniform(rng, 0.3, 0.4)
    high = uniform(rng, 0.8, 1.6)
    rows = [
        (r, 0),
        (r, 0.08),
        (r * 0.75, 0.16),
        (r * 0.8, 0.22),
        (r * 0.4, 0.4),
        (r * 0.3, high * 0.75),
        (r * 0.65, high * 0.8),
        (r * 0.35, high * 0.84),
    ]
    crown = pick(
        rng,
        (
            [(r * 0.5, high * 0.92), (r * 0.55, high), (r * 0.4, high + 0.12), (0, high + 0.17)],
            [(r * 0.5, high), (r * 0.7, high + 0.2), (r * 0.4, high + 0.18), (0, high + 0.3)],
            [
                (r * 0.6, high * 0.9),
                (r * 0.62, high + 0.15),
                (r * 0.45, high + 0.15),
                (r * 0.42, high + 0.05),
                (0, high + 0.05),
            ],
        ),
    )
    return [lathe([*rows, *crown], color, segments=n)]
