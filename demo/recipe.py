"""What a visitor has chosen: as settings of a lift, and as the command line that does the same."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trilift import LiftSettings, ViewSettings
from trilift.settings import BACKGROUNDS, LIFT_FORMATS, TEXTURES

from .intake import RefusedError

MAX_RESOLUTION = 512
MAX_BEST_OF = 8
MAX_STEPS = 200
SIDES = ("back", "left", "right")
NO_VIEWS = ""
BACKGROUND_WORDS = dict(
    zip(BACKGROUNDS, ("find it", "keep the whole picture", "remove it, even when there is an alpha"), strict=True)
)
TEXTURE_WORDS = {"vertex": "colours at the vertices", "baked": "a picture on the surface"}
# Formats that need an extra, and the package by which it is known.
_EXTRAS = {"usdz": "pxr"}


def formats_here() -> list[str]:
    """File formats that this installation can write, GLB first; GLB itself is always written."""
    missing = {name for name, package in _EXTRAS.items() if importlib.util.find_spec(package) is None}
    return [name for name in LIFT_FORMATS if name not in missing]


def textures() -> list[tuple[str, str]]:
    """What the page offers for textures: (words, value)."""
    return [(TEXTURE_WORDS.get(name, name), name) for name in TEXTURES]


@dataclass(frozen=True)
class Choices:
    """The settings of the page; the names are those of `trilift.LiftSettings`, whose defaults hold.

    Attributes:
        model: a name of `Bench.reconstruction_names`.
        views: one of `Bench.generator_names`, or `NO_VIEWS`.
        view_steps, elevation, faces: None leaves it to the model.
    """

    model: str = "tiny"
    views: str = NO_VIEWS
    view_steps: int | None = None
    seed: int = 0
    resolution: int = 256
    background: str = "auto"
    elevation: float | None = None
    texture: str = "vertex"
    faces: int | None = None
    best_of: int = 1
    formats: tuple[str, ...] = ("glb",)
    turntable: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Choices:
        """From what components or clients give; empty fields, and 0 steps or triangles, leave it to the model.

        Raises:
            RefusedError: an elevation that is no number.
        """
        known = {each.name: values[each.name] for each in fields(cls) if each.name in values}
        for name in ("view_steps", "faces"):
            known[name] = int(known[name]) if known.get(name) else None
        for name in ("seed", "resolution", "best_of"):
            if known.get(name) is not None:
                known[name] = int(known[name])
        known["elevation"] = _degrees(known.get("elevation"))
        wanted = ("glb", *(known.get("formats") or ()))
        known["formats"] = tuple(dict.fromkeys(str(name) for name in wanted))
        known["views"] = known.get("views") or NO_VIEWS
        return cls(**{name: value for name, value in known.items() if value is not None})

    @property
    def generator(self) -> str | None:
        """The view generator, None for the photo alone."""
        return self.views or None

    @property
    def kind(self) -> str:
        """Lifts of one kind take about the same time."""
        return " ".join(
            map(str, (self.model, self.views, self.view_steps, self.resolution, self.texture, self.best_of))
        )

    def settings(self, photos: Sequence[str] = ()) -> LiftSettings:
        """As settings of a lift.

        Args:
            photos: more photos of the object, each ``SIDE=FILE``.

        Raises:
            SettingsError: a value out of range.
        """
        steps = self.view_steps if self.generator else None
        return LiftSettings(
            resolution=self.resolution, background=self.background, elevation=self.elevation, view_steps=steps,  # type: ignore[arg-type]
            seed=self.seed, texture=self.texture, faces=self.faces, best_of=self.best_of, formats=self.formats,  # type: ignore[arg-type]
            turntable=self.turntable, photos=tuple(photos),
        )  # fmt: skip

    def command(
        self, photo: str, photos: Sequence[str] = (), *, model: str | None = None, views: str | None = None
    ) -> str:
        """The command line that lifts the same photo to the same mesh.

        Args:
            photo: the photo's file name.
            photos: more photos, each ``SIDE=FILE``.
            model: what ``--model`` takes; the name on the page when left out.
            views: likewise for ``--views``.
        """
        words = ["trilift", "lift", photo, "-o", "out"]
        if (model or self.model) != "tiny":
            words += ["--model", model or self.model]
        if self.generator:
            words += ["--views", views or self.views]
        for text in photos:
            words += ["--photo", text]
        words += self._options()
        return shlex.join(words)

    def _options(self) -> list[str]:
        """Those that differ from the command line's own defaults."""
        plain = Choices()
        words: list[str] = []
        for name, option in _OPTIONS.items():
            value = getattr(self, name)
            if value == getattr(plain, name) or (name == "view_steps" and not self.generator):
                continue
            # With =, since an elevation may be negative.
            words.append(f"{option}={','.join(value) if isinstance(value, tuple) else _plain(value)}")
        return [*words, "--turntable"] if self.turntable else words


_OPTIONS = {
    "view_steps": "--steps",
    "seed": "--seed",
    "resolution": "--resolution",
    "background": "--background",
    "elevation": "--elevation",
    "texture": "--texture",
    "faces": "--faces",
    "best_of": "--best-of",
    "formats": "--format",
}


def _degrees(value: Any) -> float | None:
    """A number, or text that may be empty or end in a degree sign."""
    text = "" if value is None else str(value).strip().removesuffix("°").strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise RefusedError(
            f"The camera's elevation is {text[:40]!r}; expected degrees such as 20, or nothing."
        ) from error


def _plain(value: Any) -> str:
    """A number as the command line reads it back exactly."""
    return repr(value) if isinstance(value, float) else str(value)


def side_photos(photos: Mapping[str, Path | None]) -> list[str]:
    """More photos by side → ``SIDE=FILE`` texts as settings take them."""
    return [f"{side}={path}" for side, path in photos.items() if path is not None]


def view_settings(choices: Choices) -> ViewSettings:
    """As settings of a view generator alone."""
    return ViewSettings(
        background=choices.background, elevation=choices.elevation, view_steps=choices.view_steps, seed=choices.seed  # type: ignore[arg-type]
    )  # fmt: skip
