"""What an answer is worth, said without knowing the object."""

from __future__ import annotations

import torch

from .field import Field, TriplaneField

_SAMPLES = 40  # per axis
_CHUNK = 32768


@torch.no_grad()
def expected_overlap(field: Field, samples: int = _SAMPLES) -> float | None:
    """How much of a solid the network itself believes in: the overlap with the truth that it expects.

    A network trained on occupancy gives each point a chance p of being inside. If these chances hold, the solid that is
    cut out at a level shares with the truth, in the mean, the sum of p inside it; and the two together fill the sum of
    p outside it more than the solid. The ratio of these sums is the expected intersection over union, up to the
    difference between a mean of ratios and a ratio of means. An unsure network expects little.

    Args:
        field: any; other fields than those of occupancy networks say nothing about chances.
        samples: points per axis of a lattice in the field's cube.

    Returns:
        In [0, 1]; 0 for an empty solid; None where the field has no chances.
    """
    if not (isinstance(field, TriplaneField) and field.outputs.density == "occupancy"):
        return None
    steps = ((torch.arange(samples, device=field.device) + 0.5) / samples * 2 - 1) * field.scene_radius
    points = torch.cartesian_prod(steps, steps, steps)
    raw_density = field.folded_raw(slice(0, 1))
    raw = torch.cat([raw_density(chunk)[:, 0] for chunk in points.split(_CHUNK)]).float()
    chance, inside = torch.sigmoid(raw), raw > field.outputs.from_density(field.level)
    both, either = chance[inside].sum(), inside.sum() + chance[~inside].sum()
    return float(both / either) if bool(inside.any()) else 0.0
