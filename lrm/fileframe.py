"""Axes and unit of a mesh file: which way is up, and how long a unit is.

A mesh is first placed in the *export frame*: y up, photographed side toward +z, metres (`lrm.meshfile.file_matrix`).
That is what glTF demands and what most programs expect of OBJ, PLY and USD. A `FileFrame` says how a file differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from multiview.errors import SettingsError

UNITS = {"metre": 1.0, "centimetre": 0.01, "millimetre": 0.001, "inch": 0.0254, "foot": 0.3048}
"""Metres of each unit that a file may be in."""


@dataclass(frozen=True)
class FileFrame:
    """The axes and the unit of one file.

    Attributes:
        up: ``+y`` or ``+z``; the photographed side then looks toward +z or -y, as programs with such axes expect.
        unit: a name of `UNITS`.

    Raises:
        SettingsError: another axis or unit.
    """

    up: Literal["+y", "+z"] = "+y"
    unit: str = "metre"

    def __post_init__(self) -> None:
        if self.up not in ("+y", "+z"):
            raise SettingsError(f"up={self.up!r}: expected +y or +z.")
        if self.unit not in UNITS:
            raise SettingsError(f"unit={self.unit!r}: expected {', '.join(UNITS)}.")

    @property
    def front(self) -> str:
        """Where the photographed side looks."""
        return "+z" if self.up == "+y" else "-y"

    @property
    def words(self) -> str:
        """The axes, for comments in files."""
        return f"{self.up[1]} up, front {self.front}"

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(4, 4) from the export frame to the file: a rotation and an even scale."""
        turned = np.eye(4)
        if self.up == "+z":
            turned[:3, :3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
        turned[:3, :3] /= UNITS[self.unit]
        return turned


Y_UP = FileFrame()
PRINTED = FileFrame("+z", "millimetre")
"""What slicers take for granted: a bed in x and y, millimetres."""

DEFAULT_FRAMES = {"3mf": PRINTED}
"""Frames of formats whose own rules ask for another than `Y_UP`: 3MF is z up, and its units are stated in the file."""
FIXED_FRAMES = ("glb", "gltf", "3mf", "usdz")
"""Formats whose axes and unit are settled by their rules, or stated by us in the file: no profile changes them."""


def frame_of(name: str, wanted: FileFrame | None = None) -> FileFrame:
    """The frame of a format: the one ``wanted`` where the format leaves the choice, else its own."""
    own = DEFAULT_FRAMES.get(name, Y_UP)
    return own if wanted is None or name in FIXED_FRAMES else wanted
