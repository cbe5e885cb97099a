"""Every choice that a lift offers, checked once."""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass
from typing import Any, Literal

from multiview.errors import SettingsError

# The same as lrm.meshfile.FORMATS (a test holds them together); repeated so that --help does not load torch.
FORMATS = ("glb", "obj", "ply", "stl", "usdz")
BACKGROUNDS = ("auto", "keep", "remove")
THRESHOLD_WORDS = ("auto", "median")
MAX_RESOLUTION = 2048


@dataclass(frozen=True)
class LiftSettings:
    """How one photo is lifted; the defaults are those of the command line.

    Attributes:
        resolution: samples per axis of the mesh's lattice, 16 to 2048.
        threshold: density at which the surface is taken, > 0; ``auto`` for the field's own level, or ``median`` for the
            median of its densities on a coarse grid, at which every field has a surface (to look into untrained ones).
        background: ``auto`` uses a mask file or a real alpha, else removes the background; ``keep`` takes the whole
            picture; ``remove`` removes the background even when the picture has an alpha.
        foreground_ratio: longest side of the object's box / side of the conditioning image, 0.2 to 1; None for what the
            model was trained with.
        elevation: elevation of the photograph's camera in degrees, -90 to 90; None lets the model estimate it.
        fov: full vertical field of view of the *photograph* in degrees, 1 to 150; None for the model's assumption.
        views_dir: folder (or file) of pictures with cameras, for models that take views; None for the photo alone.
        upright: ``auto`` stands the object upright by the elevation, ``off`` leaves it in the camera's pitch.
        faces: at most so many triangles, by quadric decimation, at least 4; None keeps all.
        texture: ``vertex``: colours sit at the vertices.
        formats: file formats to write, names of `FORMATS`.
        turntable: whether to write a turntable.
        seed: the one source of random numbers, 0 to 2^63 - 1; models that draw none only record it.
        height: height of the exported object (up axis) in file units, > 0.
        scale: file units for each world unit, > 0; not together with ``height``.

    Raises:
        SettingsError: a value out of range, or two that exclude each other.
    """

    resolution: int = 256
    threshold: float | Literal["auto", "median"] = "auto"
    background: Literal["auto", "keep", "remove"] = "auto"
    foreground_ratio: float | None = None
    elevation: float | None = None
    fov: float | None = None
    views_dir: str | None = None
    upright: Literal["auto", "off"] = "auto"
    faces: int | None = None
    texture: Literal["vertex"] = "vertex"
    formats: tuple[str, ...] = ("glb",)
    turntable: bool = False
    seed: int = 0
    height: float | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        _whole("resolution", self.resolution, 16, MAX_RESOLUTION)
        if self.threshold not in THRESHOLD_WORDS:
            _number("threshold", self.threshold, 0.0, math.inf, open_low=True, also=" or ".join(THRESHOLD_WORDS))
        _one_of("background", self.background, BACKGROUNDS)
        _one_of("upright", self.upright, ("auto", "off"))
        _one_of("texture", self.texture, ("vertex",))
        _number("foreground_ratio", self.foreground_ratio, 0.2, 1.0)
        _number("elevation", self.elevation, -90.0, 90.0)
        _number("fov", self.fov, 1.0, 150.0)
        _whole("seed", self.seed, 0, 2**63 - 1)
        _number("height", self.height, 0.0, math.inf, open_low=True)
        _number("scale", self.scale, 0.0, math.inf, open_low=True)
        if self.faces is not None:
            _whole("faces", self.faces, 4, 2**31 - 1)
        if self.height is not None and self.scale is not None:
            raise SettingsError(f"height={self.height:g} and scale={self.scale:g} exclude each other. Give one.")
        _check_formats(self.formats)

    def replaced(self, **changes: Any) -> LiftSettings:
        """The same settings with ``changes``.

        Raises:
            SettingsError: an unknown name (the nearest known one is given), or a value out of range.
        """
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1, 0.5)
                hint = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(known)}."
                raise SettingsError(f"unknown setting {name!r}. {hint}")
        if changes.get("views_dir") is not None:
            changes["views_dir"] = str(changes["views_dir"])
        if "formats" in changes and not isinstance(changes["formats"], str):
            changes["formats"] = tuple(changes["formats"])
        return dataclasses.replace(self, **changes)

    def as_record(self) -> dict[str, Any]:
        """All settings as plain JSON values, in the order of the attributes."""
        return {**dataclasses.asdict(self), "formats": list(self.formats)}


def _check_formats(formats: Any) -> None:
    if not isinstance(formats, tuple) or not formats:
        raise SettingsError(f"formats={formats!r}: expected a list of one or more of {', '.join(FORMATS)}.")
    for name in formats:
        _one_of("formats", name, FORMATS)
    if len(set(formats)) != len(formats):
        raise SettingsError(f"formats={','.join(formats)} names one format twice. Name each once.")


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SettingsError(f"{name}={value!r}: expected {' or '.join(choices)}.")


def _whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SettingsError(f"{name}={value!r}: expected a whole number from {low} to {high}.")


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = False, also: str | None = None) -> None:
    """None passes; anything else must be a finite number in [low, high] (or above ``low`` when ``open_low``)."""
    if value is None:
        return
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value > high or value < low or (open_low and value == low):
        span = f"a number above {low:g}" if math.isinf(high) else f"a number from {low:g} to {high:g}"
        raise SettingsError(f"{name}={value!r}: expected {also + ' or ' if also else ''}{span}.")
