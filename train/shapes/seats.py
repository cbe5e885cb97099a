"""Chairs, sofas, stools and benches. Front faces +x, left and right are ±y, feet stand on z = 0."""

from __future__ import annotations

import numpy as np

from .blocks import Color, Part, box, capsule, cushion, cylinder, lathe, mirrored, stack, tube
from .draw import accent, chance, hue, pick, shade, uniform, whole
from .outlines import curve

Rng = np.random.Generator


def turned_leg(rng: Rng, height: float, radius: float, color: Color) -> Part:
    """An upright leg on z = 0: square, round, tapered, or turned on a lathe with rings."""
    kind = whole(rng, 0, 3)
    if kind == 0:
        taper = uniform(rng, 0.5, 1.0)
        return stack([(0, radius * taper, radius * taper), (height, radius, radius)], color)
    if kind == 1:
        return cylinder(radius * uniform(rng, 0.5, 1.0), height, color, top=radius, segments=10)
    if kind == 2:
        return cylinder(radius * 0.8, height, color, segments=8)
    heights = np.array([0, 0.06, 0.1, 0.16, 0.2, 0.55, 0.75, 0.8, 0.84, 0.88, 1.0])
    radii = np.array([0.5, 0.6, 0.45, 0.75, 0.5, 0.62, 0.95, 0.6, 1.0, 0.8, 1.0])
    return lathe(np.column_stack([radii * radius, heights * height]), color, segments=10)


def four_legs(leg: Part, x: float, y: float, x_back: float | None = None) -> list[Part]:
    """``leg`` at the corners (x, ±y) and (-x or ``x_back``, ±y)."""
    return mirrored([leg.move(x, y), leg.move(-x if x_back is None else x_back, y)])


def _back_of_chair(rng: Rng, wide: float, seat: float, height: float, frame: Color, fill: Color) -> list[Part]:
    """A back of a chair whose seat's rear edge is x = 0 at height ``seat``; leans toward -x."""
    kind = whole(rng, 0, 4)
    thick = uniform(rng, 0.018, 0.03)
    bow = uniform(rng, 0.0, 0.05)
    posts = curve([(0, 0, -0.08), (0, 0, 0.1), (-bow, 0, height * 0.6), (-bow * 2.6, 0, height)], 7)
    posts[:, 1] += np.linspace(wide / 2 - thick, wide / 2 - thick + uniform(rng, -0.03, 0.03), 7)
    parts: list[Part] = []
    if kind < 4:
        parts += mirrored([tube(posts, thick, frame, segments=pick(rng, (4, 8)))])
        top = box((thick * 2, wide + 0.02, uniform(rng, 0.05, 0.12)), frame, (-bow * 2.5, 0, height - 0.05), bevel=0.01)
        parts.append(top)
    if kind == 0:
        for k in range(whole(rng, 1, 3)):
            z = height * (0.3 + 0.22 * k)
            parts.append(box((thick, wide - thick, 0.05), frame, (-bow * (0.4 + 0.6 * k), 0, z)))
    elif kind == 1:
        count = whole(rng, 2, 5)
        for y in np.linspace(-0.5, 0.5, count + 2)[1:-1] * wide:
            parts.append(
                tube([(0, y, -0.03), (-bow, y, height * 0.6), (-bow * 2.5, y, height - 0.02)], 0.012, frame, segments=6)
            )
    elif kind == 2:
        pad = cushion((0.06, wide - thick * 3.2, height * 0.72), fill, puff=0.1)
        parts.append(pad.turn("y", -np.rad2deg(bow * 2 / height)).move(0, 0, height * 0.2))
        parts.append(box((thick, wide - thick, 0.05), frame, (-bow * 0.3, 0, height * 0.17)))
    elif kind == 3:
        parts.append(box((thick, wide * 0.34, height), frame, (-bow, 0, -0.02)).turn("y", -np.rad2deg(bow / height)))
    else:
        pad = cushion((uniform(rng, 0.03, 0.08), wide, height + 0.06), fill, puff=0.25)
        parts.append(pad.turn("y", -uniform(rng, 2, 12)).move(0, 0, -0.06))
    return [part.move(0, 0, seat) for part in parts]


def chair(rng: Rng) -> list[Part]:
    """A dining chair with four legs."""
    frame = hue(rng, "wood", "wood", "metal", "painted")
    fill = accent(rng, frame, "fabric", "fabric", "painted", "wood")
    wide, deep, seat = uniform(rng, 0.38, 0.55), uniform(rng, 0.38, 0.52), uniform(rng, 0.4, 0.5)
    thick = uniform(rng, 0.03, 0.06)
    padded = chance(rng, 0.6)
    parts = four_legs(turned_leg(rng, seat, uniform(rng, 0.018, 0.032), frame), deep / 2 - 0.035, wide / 2 - 0.035)
    rim = box((deep - 0.02, wide - 0.02, 0.06), frame, (0, 0, seat - 0.055), bevel=0.008)
    pad = cushion((deep, wide, thick * 2), fill, (0, 0, seat - 0.01), puff=0.4)
    parts += [rim, pad] if padded else [box((deep, wide, thick), frame, (0, 0, seat - 0.01), bevel=0.012)]
    if chance(rng, 0.35):
        z = uniform(rng, 0.1, 0.22)
        parts += mirrored([box((deep - 0.07, 0.02, 0.025), frame, (0, wide / 2 - 0.035, z))])
        parts.append(box((0.02, wide - 0.07, 0.025), frame, (0, 0, z)))
    parts += [p.move(-deep / 2 + 0.03) for p in _back_of_chair(rng, wide, seat, uniform(rng, 0.38, 0.62), frame, fill)]
    if chance(rng, 0.2):
        rise = uniform(rng, 0.18, 0.24)
        arm = tube(
            [
                (deep * 0.36, wide / 2, seat),
                (deep * 0.36, wide / 2, seat + rise),
                (-deep / 2 + 0.03, wide / 2 - 0.01, seat + rise),
            ],
            0.02,
            frame,
            segments=6,
        )
        parts += mirrored([arm])
    return parts


def armchair(rng: Rng) -> list[Part]:
    """An upholstered armchair, or a sofa of up to four seats."""
    seats = pick(rng, (1, 1, 1, 2, 2, 3, 3, 4))
    cloth, feet = hue(rng, "fabric", "fabric", "painted", "plastic"), hue(rng, "wood", "metal", "dark")
    pads = cloth if chance(rng) else accent(rng, cloth, "fabric")
    each, deep, seat = uniform(rng, 0.5, 0.66), uniform(rng, 0.62, 0.85), uniform(rng, 0.36, 0.46)
    arm, rise, back = uniform(rng, 0.1, 0.22), uniform(rng, 0.12, 0.28), uniform(rng, 0.34, 0.6)
    legs, wide = uniform(rng, 0.04, 0.15), each * seats
    puff = uniform(rng, 0.12, 0.45)
    base = cushion((deep, wide + arm, seat - legs - 0.1), cloth, (0, 0, legs), puff=0.15)
    parts = [base, cushion((0.2, wide + arm, seat + back - legs), cloth, (-deep / 2 + 0.1, 0, legs), puff=puff)]
    side = cushion((deep, arm, seat + rise - legs), cloth, (0, wide / 2 + arm / 2, legs), puff=puff)
    if chance(rng, 0.3):
        side = capsule(
            (-deep / 2 + 0.1, wide / 2 + arm / 2, seat + rise - 0.05),
            (deep / 2 - 0.05, wide / 2 + arm / 2, seat + rise - 0.05),
            arm * 0.6,
            cloth,
        )
        parts += mirrored(
            [cushion((deep - 0.05, arm, seat + rise - legs - 0.05), cloth, (0, wide / 2 + arm / 2, legs))]
        )
    parts += mirrored([side])
    for y in (np.arange(seats) - (seats - 1) / 2) * each:
        parts.append(cushion((deep - 0.15, each * 0.98, 0.17), pads, (0.08, y, seat - 0.14), puff=0.4))
        if chance(rng, 0.7):
            parts.append(
                cushion((0.16, each * 0.95, back * 0.95), pads, puff=0.4)
                .turn("y", -10)
                .move(-deep / 2 + 0.26, y, seat - 0.01)
            )
    return parts + four_legs(turned_leg(rng, legs + 0.05, 0.03, feet), deep / 2 - 0.07, wide / 2)


def office_chair(rng: Rng) -> list[Part]:
    """A swivel chair on a star of castors."""
    cloth, frame = hue(rng, "fabric", "dark", "plastic"), hue(rng, "dark", "metal")
    seat, wide = uniform(rng, 0.42, 0.55), uniform(rng, 0.44, 0.55)
    parts = [
        cylinder(0.03, seat - 0.05, frame, (0, 0, 0.06), segments=10),
        cushion((wide, wide, 0.09), cloth, (0.02, 0, seat - 0.02), puff=0.45),
    ]
    count, reach = pick(rng, (4, 5, 5, 6)), uniform(rng, 0.24, 0.33)
    for k in range(count):
        spoke = tube([(0, 0, 0.12), (reach, 0, 0.07)], [0.03, 0.018], frame, segments=6)
        wheel = cylinder(0.035, 0.04, shade(frame, 0.7), (reach, -0.02, 0.035), axis="y", segments=10)
        parts += [p.turn("z", 360 * k / count) for p in (spoke, wheel)]
    height = uniform(rng, 0.4, 0.7)
    back = cushion((0.07, wide * uniform(rng, 0.75, 1), height), cloth, puff=0.3).turn("y", -uniform(rng, 3, 12))
    parts.append(back.move(-wide / 2 + 0.03, 0, seat + 0.08))
    parts.append(
        tube(
            [(-0.05, 0, seat), (-wide / 2, 0, seat + 0.01), (-wide / 2 - 0.02, 0, seat + 0.2)], 0.025, frame, segments=6
        )
    )
    if chance(rng, 0.7):
        y = wide / 2 + 0.01
        arm = tube(
            [(0, y - 0.05, seat + 0.03), (0, y + 0.02, seat + 0.05), (0, y + 0.02, seat + 0.22)],
            0.015,
            frame,
            segments=6,
        )
        parts += mirrored([arm, box((0.26, 0.06, 0.03), frame, (0, y + 0.02, seat + 0.21), bevel=0.01)])
    return parts


def stool(rng: Rng) -> list[Part]:
    """A round or square stool, low or bar height."""
    frame = hue(rng, "wood", "metal", "painted")
    top = frame if chance(rng) else accent(rng, frame, "fabric", "wood", "plastic")
    height, radius = uniform(rng, 0.35, 0.8), uniform(rng, 0.15, 0.22)
    if chance(rng, 0.25):
        parts = [
            cylinder(0.03, height, frame, segments=10),
            lathe([(radius * 1.1, 0), (radius * 1.1, 0.02), (0.05, 0.06)], frame, segments=20),
        ]
    else:
        splay = uniform(rng, 0.0, 0.07)
        count = pick(rng, (3, 4, 4, 4))
        parts = []
        for k in range(count):
            leg = tube(
                [(radius * 0.7 + splay, 0, 0), (radius * 0.65, 0, height)],
                [0.016, 0.022],
                frame,
                segments=pick(rng, (4, 8)),
            )
            parts.append(leg.turn("z", 45 + 360 * k / count))
        if chance(rng, 0.6):
            z = height * uniform(rng, 0.25, 0.5)
            reach = radius * 0.7 + splay * (1 - z / height)
            for k in range(count):
                a, b = (np.deg2rad(45 + 360 * (k + j) / count) for j in (0, 1))
                parts.append(
                    tube([(reach * np.cos(t), reach * np.sin(t), z) for t in (a, b)], 0.012, frame, segments=6)
                )
    if chance(rng, 0.7):
        parts.append(
            lathe(
                [
                    (0, height - 0.02),
                    (radius, height - 0.02),
                    (radius * 1.02, height + 0.02),
                    (radius * 0.9, height + 0.045),
                    (0, height + 0.05),
                ],
                top,
            )
        )
    else:
        parts.append(cushion((radius * 2, radius * 2, 0.07), top, (0, 0, height - 0.02)))
    return parts


def bench(rng: Rng) -> list[Part]:
    """A garden or park bench of slats, with or without a back."""
    slat, frame = hue(rng, "wood", "painted"), hue(rng, "metal", "dark", "wood", "stone")
    long, deep, seat = uniform(rng, 1.0, 1.9), uniform(rng, 0.36, 0.5), uniform(rng, 0.38, 0.46)
    count = whole(rng, 2, 5)
    gap = deep / count
    parts = [
        box((gap * 0.86, long, 0.035), slat, (-deep / 2 + gap * (k + 0.5), 0, seat), bevel=0.006) for k in range(count)
    ]
    side = long / 2 - uniform(rng, 0.05, 0.2)
    has_back = chance(rng, 0.7)
    for y in (-side, side):
        parts.append(box((deep, 0.05, 0.05), frame, (0, y, seat - 0.045)))
        parts += [box((0.055, 0.05, seat - 0.02), frame, (x, y, 0)) for x in (deep / 2 - 0.05, -deep / 2 + 0.05)]
        if has_back:
            parts.append(
                tube([(-deep / 2 + 0.03, y, seat - 0.03), (-deep / 2 - 0.1, y, seat + 0.45)], 0.025, frame, segments=4)
            )
    if has_back:
        for t in np.linspace(0.35, 0.9, whole(rng, 2, 3)):
            plank = box((0.03, long, 0.1), slat, (0, 0, -0.05), bevel=0.006).turn("y", -15)
            parts.append(plank.move(-deep / 2 + 0.06 - 0.13 * t, 0, seat + 0.48 * t))
    return parts


def rocking_chair(rng: Rng) -> list[Part]:
    """A wooden chair on two curved runners."""
    parts = chair(rng)
    wood = hue(rng, "wood", "painted")
    # The runners lie under the chair's feet, wherever those are.
    points = np.concatenate([part.vertices for part in parts])
    feet = points[points[:, 2] < 1e-6]
    x, y = np.abs(feet[:, 0]).max() - 0.015, np.abs(feet[:, 1]).max() - 0.015
    reach = uniform(rng, 0.38, 0.48)
    path = [(reach, y, 0.12), (reach * 0.5, y, 0.035), (0, y, 0.02), (-reach * 0.5, y, 0.035), (-reach, y, 0.12)]
    runner = tube(curve(path, 11), 0.024, wood, segments=6)
    posts = [cylinder(0.02, 0.08, wood, (at, y, 0.02), segments=6) for at in (x, -x)]
    return [*(part.move(0, 0, 0.06) for part in parts), *mirrored([runner, *posts])]
