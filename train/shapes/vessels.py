"""Table ware turned on a wheel, with handles and spouts. Spouts point to +x."""

from __future__ import annotations

import numpy as np

from .blocks import Color, Floats, Paint, Part, cylinder, ellipsoid, lathe, tube
from .draw import accent, chance, hue, shade, smoothness, uniform, whole
from .outlines import curve

Rng = np.random.Generator


def hollow(outside: Floats, wall: float, floor: float) -> Floats:
    """A vessel's profile (N, 2) of (radius, z): up the outside, over the rim and down inside to a tip on the axis."""
    outside = np.column_stack([outside[:, 0], np.maximum.accumulate(outside[:, 1])])
    inside = outside[outside[:, 1] > outside[0, 1] + floor][::-1].copy()
    inside[:, 0] = np.maximum(inside[:, 0] - wall, wall * 0.3)
    bottom = outside[0, 1] + floor
    inside = inside[inside[:, 1] > bottom + 1e-6]
    # The floor's edge stays inside the outer wall where that narrows quickly toward the foot.
    edge = min(inside[-1, 0] * 0.9, float(np.interp(bottom, outside[:, 1], outside[:, 0])) - wall)
    return np.concatenate([outside, inside, [[max(edge, wall * 0.3), bottom], [0, bottom]]])


def banded(rng: Rng, bands: int, base: Color, outer: int, *, inside: Color | None = None) -> Paint:
    """Colours for ``bands`` bands of which the first ``outer`` are outside: plain, striped, two-tone, or a belt."""
    paint = [base] * outer + [inside or base] * (bands - outer)
    second = accent(rng, base, "ceramic", "painted")
    kind = whole(rng, 0, 5)
    if kind == 0:
        for k in range(outer):
            paint[k] = second if k % 2 else base
    elif kind == 1:
        cut = whole(rng, 1, max(1, outer - 1))
        paint[:cut] = [second] * cut
    elif kind == 2:
        start = whole(rng, 1, max(1, outer - 3))
        paint[start : start + 2] = [second] * len(paint[start : start + 2])
    elif kind == 3:
        paint[outer - 1 : outer + 1] = [second] * len(paint[outer - 1 : outer + 1])
    return paint


def handle(start: Floats, end: Floats, out: float, thick: float, color: Color, flat: float = 1.0) -> Part:
    """A loop from ``start`` (x, z) up to ``end`` (x, z), bulging ``out`` toward -x."""
    (x0, z0), (x1, z1) = start, end
    rise = z1 - z0
    path = [
        (x0, 0, z0),
        (x0 - out * 0.8, 0, z0 + rise * 0.2),
        (x1 - out, 0, z0 + rise * 0.75),
        (x1 - out * 0.5, 0, z1 + rise * 0.06),
        (x1, 0, z1),
    ]
    return tube(curve(path, 11), thick, color, segments=8, flat=flat)


def vase(rng: Rng) -> list[Part]:
    """A vase or urn of any belly, sometimes with two handles."""
    n, high = smoothness(rng), uniform(rng, 0.6, 2.0)
    foot, belly, neck, lip = (
        uniform(rng, 0.2, 0.4),
        uniform(rng, 0.35, 0.6),
        uniform(rng, 0.1, 0.3),
        uniform(rng, 0.15, 0.45),
    )
    at = uniform(rng, 0.3, 0.65)
    up = curve([(foot, 0), (belly, at * high), (neck, (at + 1) / 2 * high + 0.05), (lip, high)], whole(rng, 8, 14))
    up[:, 0] = np.maximum(up[:, 0], 0.06)
    color = hue(rng, "ceramic", "clay", "glass", "painted")
    profile = hollow(up, 0.04, 0.06)
    parts = [lathe(profile, banded(rng, len(profile) - 1, color, len(up) - 1, inside=shade(color, 0.8)), segments=n)]
    if chance(rng, 0.25):
        z0, z1 = at * high, (at + 1) / 2 * high
        r0, r1 = (float(np.interp(z, up[:, 1], up[:, 0])) for z in (z0, z1))
        loop = handle(np.array([-r0, z0]), np.array([-r1, z1]), 0.15, 0.04, color)
        parts += [loop, loop.mirror("x")]
    return parts


def bottle(rng: Rng) -> list[Part]:
    """A bottle, flask or jar with a cap or cork and often a label."""
    n, high = smoothness(rng), uniform(rng, 1.0, 2.2)
    body, neck = uniform(rng, 0.22, 0.42), uniform(rng, 0.07, 0.16)
    shoulder = uniform(rng, 0.45, 0.75) * high
    glass, label, cap = (
        hue(rng, "glass", "plastic", "leaf", "ceramic"),
        hue(rng, "painted", "white"),
        hue(rng, "wood", "metal", "painted", "dark"),
    )
    bend = curve(
        [
            (body, shoulder),
            (body * 0.85, shoulder + 0.1 * high),
            (neck, shoulder + uniform(rng, 0.14, 0.22) * high),
            (neck, high),
        ],
        9,
    )
    low = [
        (body * 0.9, 0),
        (body, 0.04),
        (body, shoulder * 0.25),
        (body * 1.015, shoulder * 0.25),
        (body * 1.015, shoulder * 0.8),
        (body, shoulder * 0.8),
    ]
    profile = np.concatenate([np.array(low), bend])
    paint = [glass] * (len(profile) - 1)
    if chance(rng, 0.6):
        paint[3] = label
    parts = [lathe(profile, paint, segments=n)]
    return [
        *parts,
        cylinder(neck * uniform(rng, 1.0, 1.3), uniform(rng, 0.08, 0.16) * high, cap, (0, 0, high * 0.96), segments=n),
    ]


def cup(rng: Rng) -> list[Part]:
    """A mug or tea cup with handle, sometimes on a saucer, filled or not."""
    n, high, top = smoothness(rng), uniform(rng, 0.5, 1.1), uniform(rng, 0.35, 0.55)
    low = top * uniform(rng, 0.5, 1.0)
    up = curve([(low, 0), (top * uniform(rng, 0.85, 1.05) if low < top * 0.8 else low, high * 0.5), (top, high)], 8)
    color = hue(rng, "ceramic", "plastic", "white", "wood", "metal")
    profile = hollow(up, 0.05, 0.07)
    parts = [lathe(profile, banded(rng, len(profile) - 1, color, len(up) - 1, inside=shade(color, 1.4)), segments=n)]
    r0, r1 = (float(np.interp(z, up[:, 1], up[:, 0])) - 0.025 for z in (high * 0.22, high * 0.82))
    if chance(rng, 0.85):
        parts.append(
            handle(
                np.array([-r0, high * 0.22]),
                np.array([-r1, high * 0.82]),
                uniform(rng, 0.18, 0.3),
                uniform(rng, 0.035, 0.06),
                color,
            )
        )
    if chance(rng, 0.4):
        parts.append(cylinder(r1 * 0.98, 0.05, hue(rng, "bark", "brick", "wood"), (0, 0, high * 0.78), segments=n))
    if chance(rng, 0.3):
        plate = [
            (low * 0.9, -0.1),
            (top * 1.6, 0.02),
            (top * 1.65, 0.05),
            (low * 1.05, -0.02),
            (low * 0.8, 0.02),
            (0, 0.02),
        ]
        parts.append(lathe(plate, color, segments=n))
    return parts


def teapot(rng: Rng) -> list[Part]:
    """A teapot, kettle or watering jug: body, spout, handle, lid with knob."""
    n, high = max(12, smoothness(rng)), uniform(rng, 0.55, 1.1)
    belly, lip = uniform(rng, 0.42, 0.6), uniform(rng, 0.18, 0.34)
    foot, at = belly * uniform(rng, 0.5, 0.95), uniform(rng, 0.35, 0.55)
    color = hue(rng, "ceramic", "ceramic", "metal", "painted", "plastic")
    trim = color if chance(rng, 0.65) else accent(rng, color, "ceramic", "wood", "dark", "brass")
    up = curve([(foot, 0), (belly, at * high), (lip, high)], 9)
    rows = [(foot * 1.02, -0.05), (foot * 1.02, 0.0), *up[1:].tolist(), (lip, high + 0.02)]
    parts = [lathe(rows, color, segments=n)]
    rise = uniform(rng, 0.05, 0.16)
    lid = curve([(lip * 1.06, high), (lip * 0.95, high + rise * 0.5), (lip * 0.35, high + rise)], 5).tolist()
    knob = uniform(rng, 0.05, 0.09)
    top = high + rise
    knob_rows = [(knob * 0.5, top + 0.03), (knob, top + knob), (knob * 0.9, top + knob * 1.5), (0, top + knob * 1.9)]
    parts.append(
        lathe([(lip * 1.06, high - 0.03), *lid, *knob_rows], [color] * (len(lid) + 1) + [trim] * 3, segments=n)
    )
    low, tip = uniform(rng, 0.2, 0.45) * high, uniform(rng, 0.8, 1.1) * high
    r = float(np.interp(low, up[:, 1], up[:, 0]))
    reach = belly + uniform(rng, 0.25, 0.5)
    path = [
        (r * 0.7, 0, low),
        (r + (reach - r) * 0.45, 0, low + (tip - low) * 0.2),
        (r + (reach - r) * 0.65, 0, low + (tip - low) * 0.65),
        (reach, 0, tip),
    ]
    thick = uniform(rng, 0.1, 0.15)
    spout = curve(path, 10)
    parts.append(tube(spout, np.linspace(thick, thick * 0.45, 10), color, segments=10))
    if chance(rng, 0.8):
        z0, z1 = high * uniform(rng, 0.15, 0.3), high * uniform(rng, 0.72, 0.85)
        r0, r1 = (float(np.interp(z, up[:, 1], up[:, 0])) - 0.04 for z in (z0, z1))
        parts.append(
            handle(np.array([-r0, z0]), np.array([-r1, z1]), uniform(rng, 0.26, 0.42), uniform(rng, 0.035, 0.06), trim)
        )
    else:
        arch = [
            (belly * 0.6 * np.cos(t), 0, high * 0.8 + np.sin(t) * belly * uniform(rng, 1.1, 1.2))
            for t in np.linspace(0, np.pi, 11)
        ]
        parts.append(tube(arch, 0.045, trim, segments=8))
    return parts


def bowl(rng: Rng) -> list[Part]:
    """A bowl, dish or plate, empty or full."""
    n, wide, high = smoothness(rng), uniform(rng, 0.5, 0.8), uniform(rng, 0.12, 0.55)
    foot = wide * uniform(rng, 0.35, 0.6)
    up = curve([(foot, 0), (foot * 1.02, 0.05), (wide * 0.85, high * 0.55 + 0.02), (wide, high + 0.05)], 9)
    color = hue(rng, "ceramic", "wood", "metal", "plastic", "clay")
    profile = hollow(up, 0.04, 0.08)
    parts = [lathe(profile, banded(rng, len(profile) - 1, color, len(up) - 1, inside=shade(color, 1.3)), segments=n)]
    level = float(np.interp(high * 0.75, up[:, 1], up[:, 0]))
    if chance(rng, 0.5):
        fill = hue(rng, "autumn", "leaf", "bread", "flower", "light")
        parts.append(
            lathe(
                [
                    (level * 0.7, 0.09),
                    (level * 0.96, high * 0.75),
                    (level * 0.5, high * uniform(rng, 0.75, 1.3) + 0.02),
                    (0, high * 0.85 + 0.08),
                ],
                fill,
                segments=n,
            )
        )
    return parts


def jug(rng: Rng) -> list[Part]:
    """A pitcher with a lip and a handle."""
    n, high = smoothness(rng), uniform(rng, 0.9, 1.6)
    belly, neck = uniform(rng, 0.32, 0.5), uniform(rng, 0.18, 0.3)
    up = curve(
        [(belly * uniform(rng, 0.6, 0.9), 0), (belly, high * 0.35), (neck, high * 0.78), (neck * 1.25, high)], 11
    )
    color = hue(rng, "ceramic", "clay", "glass", "metal")
    profile = hollow(up, 0.04, 0.06)
    body = lathe(profile, banded(rng, len(profile) - 1, color, len(up) - 1), segments=max(n, 12))
    # Pull the rim's front out into a lip.
    vertices = body.vertices.copy()
    near_rim = np.clip((vertices[:, 2] / high - 0.8) / 0.2, 0, 1) * np.clip(vertices[:, 0] / (neck * 1.2), 0, 1) ** 3
    vertices[:, 0] += near_rim * neck * 0.6
    body = Part(vertices, body.faces, body.colors)
    r0, r1 = (float(np.interp(z, up[:, 1], up[:, 0])) - 0.02 for z in (high * 0.3, high * 0.9))
    return [
        body,
        handle(np.array([-r0, high * 0.3]), np.array([-r1, high * 0.9]), uniform(rng, 0.2, 0.35), 0.05, color),
    ]


def goblet(rng: Rng) -> list[Part]:
    """A wine glass, goblet, trophy or candlestick."""
    n, stem, high = smoothness(rng), uniform(rng, 0.03, 0.07), uniform(rng, 0.5, 0.9)
    foot, bulge, rim = uniform(rng, 0.22, 0.34), uniform(rng, 0.24, 0.4), uniform(rng, 0.18, 0.36)
    tall = uniform(rng, 0.4, 0.7)
    color = hue(rng, "glass", "brass", "metal", "ceramic", "wood")
    cup_up = curve([(stem, high), (bulge, high + tall * 0.4), (rim, high + tall)], 8)
    up = np.concatenate(
        [
            [
                (foot, 0),
                (foot, 0.03),
                (foot * 0.4, 0.07),
                (stem, 0.16),
                (stem * 0.9, high * 0.5),
                (stem * 1.8, high * 0.6),
                (stem, high * 0.7),
            ],
            cup_up,
        ]
    )
    profile = np.concatenate([up, [[rim - 0.03, high + tall], [bulge * 0.85, high + tall * 0.42], [0, high + 0.09]]])
    parts = [lathe(profile, color, segments=n)]
    if chance(rng, 0.25):
        loop = handle(
            np.array([-bulge * 0.7, high + tall * 0.2]), np.array([-rim * 0.95, high + tall * 0.85]), 0.2, 0.03, color
        )
        parts += [loop, loop.mirror("x")]
    if chance(rng, 0.2):
        parts.append(ellipsoid((rim * 0.85, rim * 0.85, 0.16), hue(rng, "flower", "light"), (0, 0, high + tall)))
    return parts
