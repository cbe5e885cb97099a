"""What other programs want of a mesh, as data: ``--for blender|unity|unreal|web|print``.

A profile takes the place of settings that nobody chose, adds its formats to those asked for, and says what
`trilift.exportchecks` holds the written files to. Nothing heavy is imported, as the command line reads this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PROFILE_SETTINGS = ("faces", "texture", "watertight", "keep")
"""Settings of a lift that a profile may stand in for."""


@dataclass(frozen=True)
class Profile:
    """What one program wants.

    Attributes:
        name: as the command line has it.
        about: one sentence on what it is for.
        formats: written beside those asked for.
        up: axis of files whose format leaves the choice; see `lrm.fileframe.FileFrame`.
        unit: of those files.
        longest_side: of the object in metres when neither height nor scale is given.
        faces: triangles at most; None for no limit.
        texture: how colours are carried.
        watertight: whether the mesh must be closed, manifold, outward and of positive volume.
        megabytes: that the mesh's files of one format may take together, pictures included.
    """

    name: str
    about: str
    formats: tuple[str, ...]
    up: str = "+y"
    unit: str = "metre"
    longest_side: float = 1.0
    faces: int | None = None
    texture: str = "vertex"
    watertight: bool = False
    megabytes: float = 100.0

    def settings(self) -> dict[str, Any]:
        """The settings, by name, that stand in for defaults."""
        wanted: dict[str, Any] = {"faces": self.faces, "texture": self.texture, "watertight": self.watertight}
        if self.watertight:
            wanted["keep"] = 1.0  # one solid
        return wanted


_ALL = (
    Profile(
        "blender",
        "File > Import > glTF: upright, in metres; colours as a picture, since vertex colours stay hidden there",
        ("glb",),
        faces=20_000,
        texture="baked",
        megabytes=50.0,
    ),
    Profile(
        "unity",
        "glTFast takes the GLB, Unity itself the OBJ; few enough vertices for 16-bit indices; front along +z",
        ("glb", "obj"),
        faces=20_000,
        texture="baked",
        megabytes=20.0,
    ),
    Profile(
        "unreal",
        "Interchange takes the GLB and turns it to z up and centimetres itself",
        ("glb",),
        faces=20_000,
        texture="baked",
        megabytes=50.0,
    ),
    Profile(
        "web",
        "a GLB that model-viewer and three.js load at once",
        ("glb",),
        faces=20_000,
        texture="baked",
        megabytes=5.0,
    ),
    Profile(
        "print",
        "3MF with colours and STL for slicers: one closed solid, z up, in millimetres, 10 cm unless --height is given",
        ("3mf", "stl"),
        up="+z",
        unit="millimetre",
        longest_side=0.1,
        faces=500_000,
        watertight=True,
        megabytes=100.0,
    ),
)
PROFILES = {profile.name: profile for profile in _ALL}
