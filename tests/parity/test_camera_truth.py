"""Camera truth: an object without symmetry, seen by every generator's cameras, comes out right in every model.

The angles below are those of the facts pages, written down again; cameras are placed by trigonometry of the test's own.
Two things are compared. First what a reconstruction network is *told* (its camera numbers) with what it is *shown* (its
pictures): where the cameras say that the red and the blue knob are, there they must be in the picture. Then, for the
embedded model, which is trained, where the knobs are in the mesh.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lrm.instantmesh import camera_numbers
from lrm.tiny import crop_views, project_points, view_projections
from multiview.cameras import Cameras, orbit
from multiview.views import Views
from multiview.zero123 import Targets
from tests.landmarks import (
    BLUE_AT,
    RED_AT,
    FreeRenderer,
    Renderer,
    beacons,
    blob,
    colored,
    loaded,
    photo_of,
    place,
    true_views,
)
from tests.small_generators import build_small
from trilift import ImageTo3D, chain

LENS_DEG = 2 * math.degrees(math.atan(16 / 35))


@dataclass(frozen=True)
class Fact:
    """What the facts pages say of a generator's cameras."""

    azimuths: tuple[float, ...]
    elevations: tuple[float, ...]
    distance: float
    fov_deg: float
    object_side: float

    def cameras(self) -> Cameras:
        rows = zip(self.azimuths, self.elevations, strict=True)
        return Cameras.cat([place(a, e, self.distance, self.fov_deg) for a, e in rows])


SIX = (30.0, 90.0, 150.0, 210.0, 270.0, 330.0)
FACTS = {
    "zero123": Fact(SIX, (20.0, -10.0) * 3, 1.5, LENS_DEG, 1.0),
    "stable-zero123": Fact(SIX, (20.0, -10.0) * 3, 1.5, LENS_DEG, 1.0),
    "syncdreamer": Fact(tuple(22.5 * k for k in range(16)), (30.0,) * 16, 1.5, LENS_DEG, 1.0),
    "zero123plus": Fact(SIX, (20.0, -10.0) * 3, 4.0, 30.0, 1.8),
}
FAMILY = {"zero123": "zero123", "stable-zero123": "zero123", "syncdreamer": "syncdreamer", "zero123plus": "zero123plus"}
# Middle of a small cube's visible sides against its middle, as a share of the picture's side.
BLOB_TOLERANCE = 0.018


@pytest.mark.parametrize("name", FACTS)
def test_generators_claim_the_cameras_of_the_facts(name: str) -> None:
    """The cameras that come with the views of the real pipeline (small, random weights)."""
    model = build_small(name)
    image = torch.rand(4, model.image_size, model.image_size, generator=torch.Generator().manual_seed(1))
    seed = torch.Generator().manual_seed(0)
    views = model.generate(image, elevation_deg=10.0, generator=seed, num_inference_steps=1)
    wanted = FACTS[name].cameras()
    assert (views.cameras.c2w - wanted.c2w).abs().max() < 1e-5
    assert (views.cameras.intrinsics - wanted.intrinsics).abs().max() < 1e-5
    assert wanted.intrinsics[0, 0, 0] == pytest.approx(280 / 256 if name != "zero123plus" else 1.8660254, abs=2e-5)


def handed(name: str, model: str, elevation_deg: float = 20.0, mirrored: bool = False) -> tuple[chain.Pair, Views]:
    """True pictures from the facts' cameras, as the chain hands them to a model; ``mirrored`` turns them wrongly."""
    fact, pair = FACTS[name], chain.find_pair(FAMILY[name], model)
    if pair.azimuths_deg:
        fact = Fact(pair.azimuths_deg, pair.elevations_deg, fact.distance, fact.fov_deg, fact.object_side)
    made = true_views(fact.cameras(), 192, fact.object_side, beacons())
    if mirrored:
        wrong = orbit([-a for a in fact.azimuths], fact.elevations, fact.distance, fact.fov_deg)
        made = Views(made.images, made.alpha, wrong)
    photo = true_views(place(0.0, elevation_deg, fact.distance, fact.fov_deg), 192, fact.object_side, beacons())
    claimed = chain.photo_camera(FAMILY[name], made.cameras, elevation_deg)
    if pair.photo_first:
        assert (claimed.c2w - photo.cameras.c2w).abs().max() < 1e-4  # the photo of an object of that size, framed so
    return pair, chain.handed_on(pair, made, Views(photo.images, photo.alpha, claimed))


def told_instantmesh(views: Views, point: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Where the sixteen numbers that InstantMesh's network is told put a world point: (u, v) per view."""
    found = []
    for row in camera_numbers(views.cameras).double().numpy():
        c2w, (fx, fy, cx, cy) = row[:12].reshape(3, 4), row[12:]
        x, y, z = c2w[:, :3].T @ (point - c2w[:, 3])  # right, up, backward
        found.append(np.array([cx + fx * x / -z, cy - fy * y / -z]))
    return found


def told_tiny(views: Views, point: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The same for the embedded model, whose network is told of crops and in units of the first one."""
    matrices, turn, unit = view_projections(views.cameras)
    upright = torch.tensor(point, dtype=torch.float32) @ turn.T / unit
    seen = project_points(matrices, upright.expand(len(views), 1, 3))[:, 0].double().numpy()
    return [np.array([(1 + right) / 2, (1 - up) / 2]) for right, up in seen]


def distances(name: str, model: str, mirrored: bool = False, world_scale: float | None = None) -> list[float]:
    """How far each beacon is in each picture from where the model is told that it is."""
    pair, views = handed(name, model, mirrored=mirrored)
    if model == "tiny":
        views = crop_views(views, 192, 0.85)
    side = FACTS[name].object_side * (pair.world_scale if world_scale is None else world_scale)
    told = told_instantmesh if model == "instantmesh" else told_tiny
    found = []
    apart = 0.12 if model == "instantmesh" else 0.4  # crops show things larger
    for index, (red, blue) in enumerate(zip(told(views, RED_AT * side), told(views, BLUE_AT * side), strict=True)):
        shown = [blob(views.images[index], views.alpha[index], color) for color in ("red", "blue")]
        if shown[0] is None or shown[1] is None or np.abs(shown[0] - shown[1]).max() < apart:
            continue  # one hides the other or a part of it
        found += [float(np.abs(shown[0] - red).max()), float(np.abs(shown[1] - blue).max())]
    assert len(found) >= len(views)  # at least in every second view
    return found


PAIRS = [(name, model) for name in FACTS for model in ("instantmesh", "tiny")]


@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_models_are_told_where_things_are(name: str, model: str) -> None:
    off = distances(name, model)
    print(f"{name} → {model}: {len(off)} beacons, off by {np.mean(off):.3f} on average, {max(off):.3f} at most")
    assert max(off) < BLOB_TOLERANCE


@pytest.mark.parametrize(("name", "model"), PAIRS)
def test_azimuths_the_wrong_way_round_are_noticed(name: str, model: str) -> None:
    assert max(distances(name, model, mirrored=True)) > 6 * BLOB_TOLERANCE


@pytest.mark.parametrize("name", ["zero123", "syncdreamer"])
def test_an_object_of_the_generators_size_in_instantmeshs_world_is_noticed(name: str) -> None:
    """Distances doubled, object not: what the doubling is for."""
    assert max(distances(name, "instantmesh", world_scale=1.0)) > 4 * BLOB_TOLERANCE


@pytest.mark.parametrize("name", FACTS)
def test_instantmesh_has_the_object_in_its_cube_and_cameras_as_trained(name: str) -> None:
    """Facts 4.4 and 4.2: a cube of half side 1; cameras from some 3 to 4 away."""
    pair, views = handed(name, "instantmesh")
    side = FACTS[name].object_side * pair.world_scale
    assert 1.5 <= side <= 2.0
    away = views.cameras.positions.norm(dim=-1)
    assert away.min() > 2.99 and away.max() < 4.01
    assert len(views) == len(FACTS[name].azimuths)
    assert views.cameras.fov_y_deg[0] == pytest.approx(FACTS[name].fov_deg, abs=1e-3)


def stand_in(name: str) -> Renderer:
    fact = FACTS[name]
    kind = FreeRenderer if FAMILY[name] == "zero123" else Renderer
    return kind(FAMILY[name], fact.cameras(), fact.object_side, size=128)


@pytest.fixture(scope="module")
def tiny() -> ImageTo3D:
    return ImageTo3D.from_pretrained("tiny", device="cpu", dtype="fp32")


@pytest.mark.parametrize("name", ["zero123", "syncdreamer", "zero123plus"])
def test_landmarks_are_in_the_mesh_where_they_belong(name: str, tiny: ImageTo3D, tmp_path: Path) -> None:
    """Photo → views → embedded model → mesh: both knobs within 0.14 of the longest side (knobs are 0.2 to 0.3 wide)."""
    photo = photo_of(tmp_path / "knobs.png")
    pipe = ImageTo3D(tiny.model, weights=tiny.weights, generator=loaded(stand_in(name)))
    asset = pipe(photo, resolution=64, elevation=20.0)
    red, blue = colored(asset.mesh, "red"), colored(asset.mesh, "blue")
    print(f"{name}: red at {red.round(2)} for {RED_AT}, blue at {blue.round(2)} for {BLUE_AT}")
    assert np.abs(red - RED_AT).max() < 0.14 and np.abs(blue - BLUE_AT).max() < 0.14
    # In the generator's own world, which is the embedded model's here, the object has about the size that it had there.
    low, high = asset.mesh.bounds
    assert float((high - low).max()) / FACTS[name].object_side == pytest.approx(1.0, abs=0.2)


def test_zero123_is_asked_for_what_the_model_wants(tiny: ImageTo3D, tmp_path: Path) -> None:
    generator = stand_in("zero123")
    pipe = ImageTo3D(tiny.model, weights=tiny.weights, generator=loaded(generator))
    pipe(photo_of(tmp_path / "knobs.png"), resolution=32, elevation=20.0)
    wanted = Targets((90.0, 180.0, 270.0), (-10.0, 20.0, -10.0)).cameras()
    assert torch.equal(generator.cameras.c2w, wanted.c2w)
