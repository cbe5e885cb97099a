"""How other makers' mesh files lie: which axis is up, which way the photographed side looks, what is mirrored.

Files of this project are y up with the photographed side toward +z, and `lrm.meshfile.read_mesh` takes every file for
one of these. A `Frame` says what else a file is, and gives the turn from what was read into the world frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lrm.mesh import Mesh
from lrm.metrics import Floats
from multiview.cameras import gltf_from_world, pitch_rotation
from multiview.errors import SettingsError

AXES = ("+x", "-x", "+y", "-y", "+z", "-z")
_FRONTS = {"x": "+y", "y": "+z", "z": "+x"}  # of a true object of which only up is known: any front will do


@dataclass(frozen=True)
class Frame:
    """Axes of a mesh file.

    Attributes:
        up, front: of `AXES`; front is where the photographed side looks.
        pitched: the axes are those of the photograph's camera (up is the picture's up, front looks at the camera), so
            that the object leans by the camera's elevation.
        mirrored: the file holds the object's mirror image, left for right.

    Raises:
        SettingsError: no such axes, or both along one.
    """

    up: str
    front: str
    pitched: bool = False
    mirrored: bool = False

    def __post_init__(self) -> None:
        if self.up not in AXES or self.front not in AXES or self.up[1] == self.front[1]:
            raise SettingsError(
                f"a frame wants two different axes of {', '.join(AXES)} for up and front, found {self.up}, "
                f"{self.front}."
            )

    @classmethod
    def parse(cls, text: str) -> Frame:
        """A name of `FRAMES`, or ``UP,FRONT`` with ``,pitched`` and ``,mirrored`` where they hold: ``z,-y,pitched``.

        Raises:
            SettingsError: it is neither.
        """
        name = text.strip().lower()
        if name in FRAMES:
            return FRAMES[name]
        axes, flags = [], set()
        for word in filter(None, (part.strip() for part in name.split(","))):
            if word in ("pitched", "mirrored"):
                flags.add(word)
            else:
                axes.append(word if word[:1] in "+-" else f"+{word}")
        if len(axes) != 2 or not set(axes) <= set(AXES):
            raise SettingsError(
                f"frame={text!r}: expected {', '.join(FRAMES)}, or two axes, up and front, such as z,-y or "
                "y,+z,pitched."
            )
        return cls(axes[0], axes[1], "pitched" in flags, "mirrored" in flags)

    @classmethod
    def upright(cls, up: str) -> Frame:
        """The frame of a true object of which only the axis that is up is known: ``y``, ``-z`` ...

        Raises:
            SettingsError: no axis.
        """
        axis = up if up[:1] in "+-" else f"+{up}"
        if axis not in AXES:
            raise SettingsError(f"up={up!r}: expected one of x, y, z, -x, -y, -z.")
        return cls(axis, _FRONTS[axis[1]])

    def world_from_file(self, elevation_deg: float = 0.0) -> Floats:
        """(3, 3) turn (with a mirror, if it is mirrored) from the file's axes into the world: z up, front +x.

        Args:
            elevation_deg: of the photograph's camera, by which a pitched file is stood upright.
        """
        up, front = _direction(self.up), _direction(self.front)
        left = np.cross(up, front) * (-1 if self.mirrored else 1)  # world +y
        turn: Floats = np.stack([front, left, up])
        return pitch_rotation(elevation_deg).double().numpy() @ turn if self.pitched else turn

    def stand(self, mesh: Mesh, elevation_deg: float = 0.0) -> Mesh:
        """Turn a mesh that `read_mesh` took for one of our files into the world frame."""
        matrix = np.eye(4)
        as_read = gltf_from_world(torch.eye(3, dtype=torch.float64)).numpy().T  # file axes from what was read
        matrix[:3, :3] = self.world_from_file(elevation_deg) @ as_read
        return mesh.transformed(matrix)

    @property
    def words(self) -> str:
        """For reports."""
        flags = "".join(f", {name}" for name in ("pitched", "mirrored") if getattr(self, name))
        return f"{self.up} up, front {self.front}{flags}"


def _direction(axis: str) -> Floats:
    direction = np.zeros(3)
    direction["xyz".index(axis[1])] = -1.0 if axis[0] == "-" else 1.0
    return direction


FRAMES = {
    "trilift": Frame("+y", "+z"),
    "gltf": Frame("+y", "+z"),
    "blender": Frame("+z", "-y"),
    "camera": Frame("+y", "+z", pitched=True),
    "opencv": Frame("-y", "-z", pitched=True),
    "triposr": Frame("+z", "+x"),
    "syncdreamer": Frame("+z", "+x"),
    "openlrm": Frame("+z", "-y", pitched=True),
    "instantmesh": Frame("-z", "+x", mirrored=True),
}
"""How the files of well-known programs lie, as their command lines write them; ``camera`` and ``opencv`` are the axes
of the photograph's camera. InstantMesh's run.py writes (x, y, -z) with vertex colours, a mirror image; with
``--export_texmap`` its files lie as TripoSR's do."""
