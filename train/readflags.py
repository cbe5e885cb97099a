"""The flags that say how stored poses and pictures are meant; apart from the readers, since recipes hold them, too."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from multiview.errors import SettingsError

CONVENTIONS = ("opengl", "opencv", "blender")
POSES = ("c2w", "w2c")
UPS = ("z", "-z", "y", "-y", "x", "-x")


@dataclass(frozen=True)
class ReadFlags:
    """How stored poses and pictures are meant. What is None is what the layout says.

    They act in this order: ``pose``, ``camera_convention``, ``up``, ``center``, ``look_at``, ``scene_scale``.

    Attributes:
        camera_convention: camera axes of the matrices: opengl (x right, y up, looks along -z; blender is the same, a
            scale is dropped) or opencv (y down, looks along +z).
        pose: whether the matrices are camera to world or world to camera.
        up: which axis of the stored world is up; ``y`` is read as glTF's world, whose front +z becomes +x.
        center: (x, y, z) of the stored world (after ``up``) that is moved to the origin.
        look_at: turn every camera, in its place, to look at this point, upright; None leaves them as they are.
        scene_scale: what camera positions are multiplied with.
        fov_scale: what the full angles of view are multiplied with.
        mirror, flip: exchange left and right, top and bottom of every picture.
        order: camera i shows picture ``order[i]``; None: picture i.
        scene_radius: half side of the cube that the object fills, after ``scene_scale``, where the layout is silent.
    """

    camera_convention: str | None = None
    pose: str | None = None
    up: str = "z"
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)
    look_at: tuple[float, float, float] | None = None
    scene_scale: float = 1.0
    fov_scale: float = 1.0
    mirror: bool = False
    flip: bool = False
    order: tuple[int, ...] | None = None
    scene_radius: float | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("camera-convention", self.camera_convention or CONVENTIONS[0], CONVENTIONS),
            ("pose", self.pose or POSES[0], POSES),
            ("up", self.up, UPS),
        ):
            if value not in known:
                raise SettingsError(f"--{name} {value}: expected one of {', '.join(known)}.")
        for name in ("scene_scale", "fov_scale", "scene_radius"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SettingsError(f"--{name.replace('_', '-')} {value}: expected a positive number.")

    def filled(self, camera_convention: str, pose: str) -> ReadFlags:
        """These flags with a layout's own conventions where nothing else was said."""
        return replace(self, camera_convention=self.camera_convention or camera_convention, pose=self.pose or pose)

    def difference(self, *usual: ReadFlags) -> list[str]:
        """The words on a command line for what differs from any of ``usual``."""
        words: list[str] = []
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value is None or all(value == getattr(each, entry.name) for each in usual):
                continue
            # A switch that is off has no word: it is left out where it stood.
            option = "--" + entry.name.replace("_", "-")
            words += [option] * value if isinstance(value, bool) else [f"{option}={_text(value)}"]
        return words


def _text(value: Any) -> str:
    """A flag's value as the command line takes it."""
    if isinstance(value, tuple):
        return ",".join(_text(x) for x in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
