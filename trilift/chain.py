"""Which generated views a reconstruction model is handed, and in whose world: one rule for every pair, as data.

::

    generator's Views ──► select ──► world × scale ──► (photo first) ──► the model's Views
    its own cameras       indices    distances grow    with its camera

A generator states its cameras in a world of its own, in which the object has about a known size; a reconstruction model
expects the object in its own cube. Intrinsics are the generator's and stay as they are: a model is told under which
field of view it sees. What stands here is geometry alone; tests/parity/test_camera_truth.py follows a landmark through
every pair.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from multiview.cameras import Cameras, orbit
from multiview.errors import SettingsError
from multiview.views import Views

if TYPE_CHECKING:
    from . import registry


@dataclass(frozen=True)
class World:
    """In which world a generator's cameras stand.

    Attributes:
        object_side: longest side of the object's box, about, in units of that world.
        photo_distance: of the photograph's camera from the object's middle, as the generator was trained to take it.
        photo_fov_deg: full field of view of the picture that the generator is given.
        source: who says so.
    """

    object_side: float
    photo_distance: float
    photo_fov_deg: float
    source: str


_SOLID = 0.5  # alpha from which a pixel is the object's
LENS_35_ON_32_DEG = math.degrees(2 * math.atan(16 / 35))

WORLDS: dict[str, World] = {
    "zero123": World(1.0, 1.5, LENS_35_ON_32_DEG, "facts 3.7: lens 35 mm on 32, longest side 1, nearest camera at 1.5"),
    "syncdreamer": World(1.0, 1.5, LENS_35_ON_32_DEG, "facts 5.1: 280 px focal length of 256, unit cube, distance 1.5"),
    "zero123plus": World(2.0, 4.0, 30.0, "facts 4.4 and 6: InstantMesh takes 30 degrees from 4 away, cube of side 2"),
    "tiny-views": World(1.7, 4.5, 25.06, "multiview/ring.py: units of half the photo's width, object 0.85 of it"),
}


@dataclass(frozen=True)
class Pair:
    """How one family of generators is chained to one family of reconstruction models.

    Attributes:
        generator, model: the families.
        why: in a sentence.
        azimuths_deg, elevations_deg: of the views to ask for, where the generator can look from anywhere; empty else.
        select: which of the generator's views are handed on, in this order; empty for all of them.
        world_scale: lengths of the model's world in those of the generator's.
        photo_first: whether the photo itself goes in front of them, with its camera.
    """

    generator: str
    model: str
    why: str
    azimuths_deg: tuple[float, ...] = ()
    elevations_deg: tuple[float, ...] = ()
    select: tuple[int, ...] = ()
    world_scale: float = 1.0
    photo_first: bool = False

    def as_record(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


PAIRS: tuple[Pair, ...] = (
    Pair(
        "zero123", "instantmesh",
        "Asked for the six views that InstantMesh was trained on; 49 degrees from 3 away is inside its training.",
        azimuths_deg=(30.0, 90.0, 150.0, 210.0, 270.0, 330.0), elevations_deg=(20.0, -10.0) * 3, world_scale=2.0,
    ),
    Pair(
        "syncdreamer", "instantmesh",
        "The whole ring of sixteen; its unit cube is doubled into InstantMesh's, so that its cameras stand 3 away.",
        world_scale=2.0,
    ),
    Pair("zero123plus", "instantmesh", "Made for each other: six views from 4 away at 30 degrees."),
    Pair(
        "zero123", "tiny",
        "The photo counts most; with it four views, as many as in training. Of true views, two from a little below did "
        "better than all from above (overlap 0.44 against 0.40, eight objects), and six no better than three.",
        azimuths_deg=(90.0, 180.0, 270.0), elevations_deg=(-10.0, 20.0, -10.0), photo_first=True,
    ),
    Pair(
        "syncdreamer", "tiny",
        "The photo counts most; then every second view of the ring. Of true views, these seven did better than three "
        "(overlap 0.42 against 0.34, eight objects), and fifteen no better.",
        select=(2, 4, 6, 8, 10, 12, 14), photo_first=True,
    ),
    Pair(
        "tiny-views", "tiny",
        "The photo counts most; then all six, which were drawn in the photo's own world.",
        photo_first=True,
    ),
    Pair(
        "tiny-views", "instantmesh",
        "Drawn with the object 1.7 long, as the photo shows it; InstantMesh's cube has a side of 2.",
        world_scale=2 / 1.7,
    ),
    Pair(
        "zero123plus", "tiny",
        "The six alone: how large the object is beside the photo's is not known, and with true views and cameras the "
        "photo in front added nothing (overlap 0.45 either way, eight objects).",
    ),
)  # fmt: skip


def find_pair(generator: str, model: str) -> Pair:
    """The rule of a pair of families; without one the views are handed on as they are, without the photo."""
    for pair in PAIRS:
        if (pair.generator, pair.model) == (generator, model):
            return pair
    return Pair(generator, model, "No rule is known for this pair: the views are handed on as they are.")


def check_sources(model: registry.Source, views: registry.Source) -> None:
    """Raise when the table says that two things that a user named cannot be chained; nothing is read for it.

    Raises:
        SettingsError: see `refuse`.
    """
    row = model.row
    if row is not None and row.stage == "reconstruction" and row.needs_views == 1 and row.family != "tiny":
        raise refuse(views.name, row.name)


def refuse(views: str, model: str) -> SettingsError:
    """What to say of a generator in front of a model that lifts a single photo."""
    return SettingsError(
        f"--views {views}: {model} lifts the photo alone and would not look at generated views. Leave --views out, or "
        "take a model for views, such as instantmesh-base or tiny."
    )


def photo_camera(family: str, views: Cameras, elevation_deg: float, fov_deg: float | None = None) -> Cameras:
    """The camera of the photo, as it was framed for a generator, in the generator's world.

    Args:
        family: of the generator; of one without a row in `WORLDS` the views' own distance and field of view are taken.
        views: what it made, at least one.
        elevation_deg: of the photo's camera.
        fov_deg: full field of view of the framed photo where it is known. The camera then stands where it sees as much
            of the object as the generator's own would.
    """
    world = WORLDS.get(family)
    distance = world.photo_distance if world else float(views.positions.norm(dim=-1).median())
    usual_deg = world.photo_fov_deg if world else float(views.fov_y_deg.median())
    if fov_deg is not None:
        distance *= math.tan(math.radians(usual_deg) / 2) / math.tan(math.radians(fov_deg) / 2)
    return orbit(0.0, elevation_deg, distance, usual_deg if fov_deg is None else fov_deg)


def handed_on(pair: Pair, views: Views, photo: Views | None = None) -> Views:
    """The views that the model is given.

    Args:
        pair: the rule.
        views: all that the generator made, in its world.
        photo: the photo as one view in that world; needed where ``photo_first``.

    Returns:
        `Views` in the model's world, the photo first where the rule says so; all of the photo's size then.
    """
    chosen = views.select(pair.select) if pair.select else views
    if pair.photo_first:
        assert photo is not None, "the rule puts the photo first"
        chosen = Views.cat([photo, resized(chosen, photo.image_size)])
    return in_model_world(pair, chosen)


def shown(views: Views) -> tuple[Views, tuple[int, ...]]:
    """The views that show an object, and the numbers of those that do not; all of them where none does."""
    empty = tuple(i for i in range(len(views)) if float(views.alpha[i].amax()) <= _SOLID)
    if not empty or len(empty) == len(views):
        return views, ()
    return views.select([i for i in range(len(views)) if i not in empty]), empty


def in_model_world(pair: Pair, views: Views) -> Views:
    """The same views with lengths as the model has them."""
    return Views(views.images, views.alpha, views.cameras.scaled(pair.world_scale))


def resized(views: Views, image_size: tuple[int, int]) -> Views:
    """Views at another (height, width) of the same proportions, bilinear and antialiased, colours weighted by alpha."""
    if views.image_size == image_size:
        return views
    pixels = torch.cat([views.images * views.alpha, views.alpha], 1)
    pixels = F.interpolate(pixels, image_size, mode="bilinear", antialias=True).clamp(0, 1)
    alpha = pixels[:, 3:]
    return Views((pixels[:, :3] / alpha.clamp(min=1e-6)).clamp(0, 1) * (alpha > 0), alpha, views.cameras)


def photo_view(image: Tensor, camera: Cameras) -> Views:
    """A cut-out (4, S, S) with its one camera, as a view."""
    return Views(image[None, :3], image[None, 3:], camera)
