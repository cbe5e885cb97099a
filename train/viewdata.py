"""Posed pictures as Zero123 and SyncDreamer learn from them: a picture, and where from it the other views are.

Zero123 learns pairs: any two views of an object, told apart by the second camera relative to the first. SyncDreamer
learns the ring of sixteen views that it was built for, which begins at the picture's own azimuth. Both take an object
of longest side 1 about the origin, seen by a lens of 49.13 degrees by cameras that look at the origin, upright;
``train.render --preset zero123`` and ``--preset syncdreamer`` draw it so, and other data is refused with the reason.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from multiview.cameras import orbit_angles
from multiview.errors import CameraError, SettingsError, TriliftError
from multiview.generator import over_white
from multiview.syncdreamervolumes import AZIMUTH_STEP_DEG, CAMERA_DISTANCE, ELEVATION_DEG, N_VIEWS, view_embeddings
from multiview.zero123 import FOV_DEG, Targets, pose_numbers
from multiview.zero123weights import PoseRule

from .config import DataFolder
from .layouts import find_posed, read_posed
from .posed import PosedObject

ViewFamily = Literal["zero123", "syncdreamer"]
PAIR_DISTANCES = (1.2, 3.0)  # Zero123's cameras stood 1.5 to 2.2 away
INPUT_ELEVATIONS_DEG = (-10.5, 40.5)  # of SyncDreamer's pictures, with some tolerance

_KEPT = 4096  # objects of a folder whose cameras stay in memory
_OPAQUE, _EMPTY = 0.99, 0.05
_OFF_DEG, _KEPT_DISTANCE = 3.0, 0.02
_RING_OFF_DEG, _RING_OFF_SHARE, _RING_OFF_FOV_DEG = 1.0, 0.02, 0.7


@dataclass(frozen=True)
class Stands:
    """Where the V cameras of an object stand.

    Attributes:
        azimuth_deg, elevation_deg: (V,) float64.
        distance: (V,) from the origin, in longest sides of the object.
        fov_deg: (V,) full field of view.
    """

    azimuth_deg: Tensor
    elevation_deg: Tensor
    distance: Tensor
    fov_deg: Tensor


@dataclass(frozen=True)
class Seen:
    """A picture of an object and some other views of it, all over white.

    Attributes:
        condition: (3, S, S) in [0, 1].
        targets: (V, 3, S, S) in [0, 1].
        alpha: (V, 1, S, S) of the targets.
        pose: (V, 4) what the network is told of each.
        elevation_deg: of the condition's camera.
    """

    condition: Tensor
    targets: Tensor
    alpha: Tensor
    pose: Tensor
    elevation_deg: float


def camera_stands(obj: PosedObject) -> Stands:
    """Where an object's cameras stand, when they see it as both families take it to be.

    Raises:
        CameraError: pictures are not square, or cameras do not look at the origin, upright, through the picture's
            middle; the message says by how much.
    """
    height, width = obj.image_size
    if height != width:
        raise CameraError(f"{obj.folder}: expected square pictures, found {width} x {height} px. Crop or pad them.")
    cameras, k = obj.cameras, obj.cameras.intrinsics
    azimuth, elevation, distance = orbit_angles(cameras)
    toward = -cameras.positions.double() / distance[:, None]
    axes = cameras.c2w[:, :3, :3].double()
    off = torch.rad2deg(torch.acos((-axes[..., 2] * toward).sum(-1).clamp(-1, 1)))
    roll = torch.rad2deg(torch.asin(axes[:, 2, 0].abs().clamp(max=1)))
    middle = (k[:, :2, 2].double() - 0.5).abs().amax(-1) * 100
    for values, limit, what in (
        (off, _OFF_DEG, "looks {:.1f} degrees past the origin"),
        (roll, _OFF_DEG, "is rolled by {:.1f} degrees"),
        (middle, 2.0, "has its principal point {:.1f} % of the picture off the middle"),
    ):
        worst = int(values.argmax())
        if float(values[worst]) > limit:
            raise CameraError(
                f"{obj.folder}: camera {worst} {what.format(float(values[worst]))}, expected at most {limit:g}. "
                "Views of this family look at the object's middle, upright. Check the poses with python -m train.check "
                "(center: and look_at: beside path: in data move and turn them), or render with python -m train.render."
            )
    flags = obj.flags
    radius = flags.scene_radius or (obj.scene_radius or 0.5) * flags.scene_scale
    fov = torch.rad2deg(2 * torch.atan(0.5 / k[:, 1, 1].double()))
    return Stands(azimuth, elevation.clamp(-90, 90), distance / (2 * radius), fov)


class ViewSource(ABC):
    """Objects of a folder of posed pictures, as one family sees them.

    Args:
        entry: the folder, and how its poses are meant.
        image_size: pixels per side of the network's pictures.

    Attributes:
        names: of the objects, for errors.

    Raises:
        CameraError: no posed pictures.
    """

    def __init__(self, entry: DataFolder, image_size: int) -> None:
        self.entry, self.image_size = entry, image_size
        self.found = find_posed(entry.path)
        self.names: Sequence[str] = [str(one.folder) for one in self.found]
        self._read: OrderedDict[int, PosedObject] = OrderedDict()

    @abstractmethod
    def draw(self, obj: int, rng: np.random.Generator) -> Seen:
        """What one sample of training sees of an object.

        Raises:
            CameraError: the object's cameras do not go with the family.
            SettingsError: a picture shows nothing, or has no matte.
        """

    @abstractmethod
    def shown(self, obj: int, count: int) -> Seen:
        """``count`` views of an object (or all that must be made together) for a preview; the same every time."""

    def posed(self, obj: int) -> PosedObject:
        """What is stored of an object."""
        if obj not in self._read:
            self._read[obj] = read_posed(self.found[obj], self.entry.read)
            while len(self._read) > _KEPT:
                self._read.popitem(last=False)
        self._read.move_to_end(obj)
        return self._read[obj]

    def pictures(self, one: PosedObject, views: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Some views over white (V, 3, S, S), and their alpha (V, 1, S, S), in [0, 1].

        Raises:
            SettingsError: a picture shows nothing, or its background is neither transparent nor white.
        """
        seen, size = one.views(list(views)), self.image_size
        rgba = torch.cat([seen.images, seen.alpha], 1)
        for view, picture in zip(views, rgba, strict=True):
            _check_picture(one, int(view), picture)
        white = torch.cat([over_white(picture, size) for picture in rgba])
        shape = (size, size)
        alpha = torch.nn.functional.interpolate(seen.alpha, shape, mode="bilinear", antialias=True)
        return white, alpha.clamp(0, 1)


def _check_picture(one: PosedObject, view: int, rgba: Tensor) -> None:
    where = f"{one.folder}: picture {view}"
    if float(rgba[3].max()) < _EMPTY:
        raise SettingsError(f"{where} is empty: its alpha is 0 everywhere. Leave that view out.")
    border = torch.cat([rgba[:3, 0], rgba[:3, -1], rgba[:3, :, 0], rgba[:3, :, -1]], -1)
    if float(rgba[3].min()) > _OPAQUE and float(border.amin(0).median()) < 0.9:
        raise SettingsError(
            f"{where} has no transparent background (its least alpha is {float(rgba[3].min()):.2f}) and its border is "
            "not white. Give RGBA pictures, mask_path in transforms.json, or pictures over white."
        )


class PairSource(ViewSource):
    """Pairs of views for Zero123 and its relatives.

    Args:
        entry, image_size: see `ViewSource`.
        rule: what the fourth pose number is, see `multiview.zero123.pose_numbers`.
    """

    def __init__(self, entry: DataFolder, image_size: int, rule: PoseRule = "distance") -> None:
        super().__init__(entry, image_size)
        self.rule = rule

    def draw(self, obj: int, rng: np.random.Generator) -> Seen:
        """See `ViewSource`: two different views at random."""
        count = self._views_of(obj)
        first, second = (int(view) for view in rng.choice(count, 2, replace=False))
        return self._seen(obj, first, [second])

    def shown(self, obj: int, count: int) -> Seen:
        """See `ViewSource`: the first view, and others spread over the rest."""
        others = np.unique(np.linspace(1, self._views_of(obj) - 1, count).astype(int))
        return self._seen(obj, 0, others.tolist())

    def _views_of(self, obj: int) -> int:
        count = len(self.posed(obj))
        if count < 2:
            raise CameraError(
                f"{self.names[obj]}: {count} view, expected 2 or more. Render more: {_render('zero123')}."
            )
        return count

    def _seen(self, obj: int, condition: int, targets: list[int]) -> Seen:
        one = self.posed(obj)
        relative, elevation = pair_targets(one, condition, targets, self.rule)
        white, alpha = self.pictures(one, [condition, *targets])
        return Seen(white[0], white[1:], alpha[1:], pose_numbers(self.rule, relative, elevation), elevation)


def pair_targets(one: PosedObject, condition: int, targets: Sequence[int], rule: PoseRule) -> tuple[Targets, float]:
    """Some views of an object relative to one of them.

    A field of view other than the family's is made up for by the distance: what counts is how large the object is in
    the picture.

    Args:
        one: the object.
        condition: which camera the network is shown.
        targets: which cameras it shall draw.
        rule: ``polar`` for weights that know no change of distance.

    Returns:
        The views, and the elevation of the condition's camera in degrees.

    Raises:
        CameraError: see `camera_stands`; or cameras are too near or far, or their distances differ where they must not.
    """
    stands = camera_stands(one)
    wide = torch.tan(torch.deg2rad(stands.fov_deg / 2)) / math.tan(math.radians(FOV_DEG / 2))
    distance = stands.distance * wide
    low, high = PAIR_DISTANCES
    if not (low <= float(distance.min()) and float(distance.max()) <= high):
        raise CameraError(
            f"{one.folder}: cameras stand {_range(distance)} longest sides from the object (as a lens of "
            f"{FOV_DEG:.1f} degrees sees it), expected 1.5 to 2.2 as Zero123 was trained on, "
            f"{low:g} to {high:g} at the most. Say scene_radius: (half the object's longest side) beside path: in "
            f"data, or render: {_render('zero123')}."
        )
    change = distance[list(targets)] - distance[condition]
    if rule == "polar":
        if float(change.abs().max()) > _KEPT_DISTANCE:
            raise CameraError(
                f"{one.folder}: cameras stand {_range(distance)} longest sides away, but Stable Zero123 (pose rule "
                "polar) is not told of distances. Render with one: "
                f"{_render('zero123')} --distance 1.8."
            )
        change = torch.zeros_like(change)
    azimuth = stands.azimuth_deg[list(targets)] - stands.azimuth_deg[condition]
    elevation = stands.elevation_deg
    found = Targets(tuple(azimuth.tolist()), tuple(elevation[list(targets)].tolist()), tuple(change.tolist()))
    return found, float(elevation[condition])


def _render(preset: str) -> str:
    return f"python -m train.render MESHES -o DATA --preset {preset}"


@dataclass(frozen=True)
class Ring:
    """The ring of an object.

    Attributes:
        views: the sixteen views in the order of their azimuths.
        start_deg: azimuth of the first.
    """

    views: tuple[int, ...]
    start_deg: float


def find_ring(one: PosedObject) -> Ring:
    """The sixteen views that SyncDreamer draws, among an object's.

    Raises:
        CameraError: see `camera_stands`; or they are not all there.
    """
    stands = camera_stands(one)
    near = (
        ((stands.elevation_deg - ELEVATION_DEG).abs() <= _RING_OFF_DEG)
        & ((stands.distance / CAMERA_DISTANCE - 1).abs() <= _RING_OFF_SHARE)
        & ((stands.fov_deg - FOV_DEG).abs() <= _RING_OFF_FOV_DEG)
    )
    candidates = torch.nonzero(near)[:, 0].tolist()
    start = float(stands.azimuth_deg[candidates[0]]) if candidates else 0.0
    places = {place: view for view in reversed(candidates) if (place := _place(stands, view, start)) is not None}
    if len(places) < N_VIEWS:
        raise CameraError(
            f"{one.folder}: {len(places)} of the {N_VIEWS} views of SyncDreamer's ring are there (elevation "
            f"{ELEVATION_DEG:g}, {AZIMUTH_STEP_DEG:g} degrees apart, {CAMERA_DISTANCE:g} longest sides away, field of "
            f"view {FOV_DEG:.1f}); found {len(one)} views at elevations {_range(stands.elevation_deg)}, distances "
            f"{_range(stands.distance)}, fields of view {_range(stands.fov_deg)}. The ring is built into the network: "
            f"render it with {_render('syncdreamer')}."
        )
    return Ring(tuple(places[place] for place in range(N_VIEWS)), start)


def _place(stands: Stands, view: int, start_deg: float) -> int | None:
    """Which place of a ring a view's azimuth is, None where it is between two."""
    steps = (float(stands.azimuth_deg[view]) - start_deg) / AZIMUTH_STEP_DEG
    return round(steps) % N_VIEWS if abs(steps - round(steps)) * AZIMUTH_STEP_DEG <= _RING_OFF_DEG else None


def _range(values: Tensor) -> str:
    return f"{float(values.min()):.2f} to {float(values.max()):.2f}"


class RingSource(ViewSource):
    """Rings for SyncDreamer, with the pictures that they are drawn from.

    A picture is any view at one of the ring's azimuths, from -10 to 40 degrees of elevation: of the folder of inputs
    where there is one, else the ring's own.

    Args:
        entry, image_size: see `ViewSource`.
        inputs: folder with an object of the same name for each, or None.

    Raises:
        CameraError: also where an object has no inputs.
    """

    def __init__(self, entry: DataFolder, image_size: int, inputs: DataFolder | None = None) -> None:
        super().__init__(entry, image_size)
        self.inputs = None if inputs is None else find_posed(inputs.path)
        self._input_entry = inputs
        self._by_name = {one.name: one for one in self.inputs or []}
        missing = [one.name for one in self.found if inputs is not None and one.name not in self._by_name]
        if missing and inputs is not None:
            raise CameraError(
                f"{inputs.path}: no inputs for {len(missing)} of the {len(self.found)} objects of {entry.path}, first "
                f"{missing[0]}. Render the same meshes: {_render('syncdreamer-inputs')}."
            )

    def draw(self, obj: int, rng: np.random.Generator) -> Seen:
        """See `ViewSource`: one of the object's inputs at random, and the ring from there on."""
        choices = self._choices(obj)
        return self._seen(obj, *choices[int(rng.integers(len(choices)))])

    def shown(self, obj: int, count: int) -> Seen:
        """See `ViewSource`; all sixteen, whatever ``count``."""
        return self._seen(obj, *self._choices(obj)[0])

    def _input(self, obj: int) -> PosedObject:
        if self._input_entry is None:
            return self.posed(obj)
        return read_posed(self._by_name[self.found[obj].name], self._input_entry.read)

    def _choices(self, obj: int) -> list[tuple[PosedObject, int, int, float]]:
        """(object, view, its place on the ring, its elevation) of all pictures that a ring can begin at."""
        ring, one = find_ring(self.posed(obj)), self._input(obj)
        stands, (low, high) = camera_stands(one), INPUT_ELEVATIONS_DEG
        found = []
        for view in range(len(one)):
            place, elevation = _place(stands, view, ring.start_deg), float(stands.elevation_deg[view])
            if place is not None and low <= elevation <= high:
                found.append((one, view, place, elevation))
        if not found:
            raise CameraError(
                f"{one.folder}: none of {len(one)} views is at one of the ring's azimuths and {low + 0.5:g} to "
                f"{high - 0.5:g} degrees high. Render the inputs with {_render('syncdreamer-inputs')}."
            )
        return found

    def _seen(self, obj: int, one: PosedObject, view: int, place: int, elevation: float) -> Seen:
        ring = find_ring(self.posed(obj)).views
        condition, _ = self.pictures(one, [view])
        white, alpha = self.pictures(self.posed(obj), [*ring[place:], *ring[:place]])
        return Seen(condition[0], white, alpha, view_embeddings(elevation), elevation)


def open_views(
    family: ViewFamily, entry: DataFolder, image_size: int, rule: PoseRule, inputs: DataFolder | None = None
) -> ViewSource:
    """A folder as its family sees it; the first object is looked at, so that wrong data is said at once.

    Raises:
        CameraError, SettingsError: it does not go with the family.
    """
    source: ViewSource = (
        PairSource(entry, image_size, rule) if family == "zero123" else RingSource(entry, image_size, inputs)
    )
    source.shown(0, 1)
    return source


def seen_of(source: ViewSource, obj: int, rng: np.random.Generator) -> Seen:
    """`ViewSource.draw`, its errors named after the object.

    Raises:
        CameraError, SettingsError: see there.
    """
    try:
        return source.draw(obj, rng)
    except TriliftError as error:
        if Path(source.names[obj]).name in str(error):
            raise
        raise SettingsError(f"{source.names[obj]}: {error}") from error
