"""Peak memory of a 1024 mesh, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import resource, sys, torch
from lrm.field import OutputRule, PlanesDecoder, TriplaneField
from lrm.mesh import extract_mesh_with_report

samples, hidden = int(sys.argv[1]), int(sys.argv[2])
# A decoder that adds up its features exactly, behind planes that hold parts of 1 - |p|^2 / 0.9^2: a ball that fills the
# cube, in a field of TripoSR's plane size. relu(x) - relu(-x) = x carries the sum through the hidden layers.
size, channels = 64, 40
centres = (torch.arange(size) + 0.5) / size * 2 - 1
square = -6 * (centres / 0.9) ** 2
planes = torch.zeros(3, channels, size, size)
planes[0, 0] = 6 + square[None, :] + square[:, None]
planes[1, 0] = square[:, None]
decoder = PlanesDecoder(channels, 64, hidden, "relu")
with torch.no_grad():
    for layer in decoder.layers:
        layer.weight.zero_(), layer.bias.zero_()
    decoder.layers[0].weight[0, [0, channels]] = 1
    decoder.layers[0].weight[1, [0, channels]] = -1
    for layer in decoder.layers[1:-1]:
        layer.weight[0, 0] = layer.weight[1, 1] = 1
    decoder.layers[-1].weight[0, 0], decoder.layers[-1].weight[0, 1] = 1, -1
field = TriplaneField(planes, decoder, 0.87, 25.0, OutputRule("occupancy", density_scale=50.0))
mesh, report = extract_mesh_with_report(field, mesh_resolution=samples)
assert mesh.is_watertight, "open"
radius = (mesh.volume * 3 / 4 / 3.14159265) ** (1 / 3)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == "darwin" else 2 ** 10)
print(len(mesh.faces), peak, radius)
"""


def measure(samples: int, hidden_layers: int) -> tuple[int, float, float]:
    """Faces, peak MiB and radius of a ball that fills the cube."""
    command = [sys.executable, "-c", SCRIPT, str(samples), str(hidden_layers)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    faces, peak, radius = done.stdout.split()
    return int(faces), float(peak), float(radius)


def test_the_measured_ball_is_a_ball() -> None:
    faces, _, radius = measure(64, 2)
    assert faces > 30_000
    assert radius == pytest.approx(0.87 * 0.9, rel=0.01)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_1024_samples_per_axis_stay_within_4_gib() -> None:
    faces, peak, _ = measure(1024, 9)
    assert faces > 8_000_000
    assert peak < 4096
