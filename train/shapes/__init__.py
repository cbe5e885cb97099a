"""Procedural objects: everyday shapes from closed blocks, for training.

``random_object(rng)`` draws a family by weight and makes one of it; ``make_object(family, rng)`` makes a given one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from multiview.errors import SettingsError

from . import (
    animals,
    buildings,
    cars,
    containers,
    crafts,
    electronics,
    food,
    furniture,
    ground,
    houses,
    people,
    plants,
    pots,
    seats,
    street,
    sweets,
    tools,
    toys,
    vehicles,
    vessels,
    yard,
)
from .blocks import Part
from .finish import MAX_FACES, MIN_FACES, Shape, finish

__all__ = ["FAMILIES", "MAX_FACES", "MIN_FACES", "Family", "Shape", "make_object", "make_parts", "random_object"]


@dataclass(frozen=True)
class Family:
    """A kind of object: the function that builds one from closed blocks, and how often it is drawn."""

    build: Callable[[np.random.Generator], list[Part]]
    weight: float = 1.0


FAMILIES: dict[str, Family] = {
    "chair": Family(seats.chair, 3.0),
    "armchair": Family(seats.armchair, 1.5),
    "office-chair": Family(seats.office_chair),
    "stool": Family(seats.stool),
    "bench": Family(seats.bench),
    "rocking-chair": Family(seats.rocking_chair, 0.5),
    "table": Family(furniture.table, 1.5),
    "desk": Family(furniture.desk, 0.7),
    "cabinet": Family(furniture.cabinet),
    "shelf": Family(furniture.shelf, 0.7),
    "bed": Family(furniture.bed),
    "lamp": Family(furniture.lamp),
    "piano": Family(furniture.piano, 0.3),
    "vase": Family(vessels.vase),
    "bottle": Family(vessels.bottle),
    "cup": Family(vessels.cup, 1.5),
    "teapot": Family(vessels.teapot, 2.5),
    "bowl": Family(vessels.bowl, 0.7),
    "jug": Family(vessels.jug),
    "cooking-pot": Family(pots.cooking_pot, 0.8),
    "barrel": Family(pots.barrel, 0.7),
    "bucket": Family(pots.bucket, 0.7),
    "goblet": Family(vessels.goblet, 0.7),
    "watering-can": Family(pots.kettle, 0.6),
    "bath": Family(pots.sink_basin, 0.4),
    "car": Family(cars.car, 3.0),
    "bus": Family(cars.bus, 2.5),
    "truck": Family(cars.truck, 1.5),
    "tractor": Family(vehicles.tractor, 0.7),
    "train": Family(vehicles.train, 0.8),
    "boat": Family(crafts.boat),
    "plane": Family(crafts.plane),
    "helicopter": Family(crafts.helicopter, 0.5),
    "cart": Family(vehicles.cart, 0.7),
    "bicycle": Family(vehicles.bicycle, 0.7),
    "tank": Family(vehicles.tank, 0.7),
    "house": Family(houses.house, 4.0),
    "tower": Family(buildings.tower),
    "castle": Family(buildings.castle, 0.8),
    "barn": Family(buildings.barn, 0.8),
    "shop": Family(buildings.shop),
    "skyscraper": Family(buildings.skyscraper, 0.8),
    "church": Family(buildings.church, 0.8),
    "broadleaf-tree": Family(plants.broadleaf, 1.5),
    "conifer": Family(plants.conifer),
    "palm": Family(plants.palm, 0.7),
    "bush": Family(plants.bush, 0.5),
    "potted-plant": Family(plants.potted_plant),
    "cactus": Family(plants.cactus, 0.5),
    "mushroom": Family(plants.mushroom),
    "flower": Family(plants.flower, 0.7),
    "grass": Family(plants.grass, 0.4),
    "stump": Family(plants.stump, 0.4),
    "burger": Family(food.burger, 2.0),
    "cake": Family(sweets.cake),
    "fruit": Family(sweets.fruit, 1.5),
    "bread": Family(food.bread, 0.7),
    "ice-cream": Family(sweets.ice_cream, 0.7),
    "pizza": Family(food.pizza, 0.5),
    "hot-dog": Family(food.hot_dog, 0.5),
    "donut": Family(sweets.donut, 0.6),
    "egg-or-cheese": Family(food.egg_or_cheese, 0.5),
    "meat": Family(food.meat, 0.4),
    "hydrant": Family(street.hydrant, 2.0),
    "lamp-post": Family(street.lamp_post, 0.6),
    "mailbox": Family(street.mailbox, 0.8),
    "bin-or-cone": Family(street.bin_or_cone),
    "sign": Family(street.sign, 0.6),
    "fence": Family(yard.fence, 0.5),
    "fountain": Family(yard.fountain, 0.6),
    "tent": Family(yard.tent, 0.6),
    "playground": Family(yard.play, 0.4),
    "machine": Family(street.machine, 0.5),
    "person": Family(people.person, 2.5),
    "quadruped": Family(animals.quadruped, 2.5),
    "bird": Family(animals.bird),
    "fish": Family(animals.fish),
    "robot": Family(people.robot),
    "teddy": Family(people.teddy),
    "snowman-or-chessman": Family(people.snowman, 0.6),
    "sea-animal": Family(animals.sea_animal, 0.6),
    "hammer-or-axe": Family(tools.hammer),
    "sword": Family(tools.sword, 0.8),
    "gun": Family(tools.gun, 0.8),
    "screwdriver-or-brush": Family(tools.screwdriver, 0.7),
    "cutlery": Family(tools.cutlery, 0.6),
    "shield-or-helmet": Family(tools.shield, 0.6),
    "crate": Family(containers.crate),
    "chest": Family(containers.chest, 0.7),
    "suitcase": Family(containers.suitcase, 0.6),
    "backpack": Family(containers.backpack),
    "basket": Family(containers.basket, 0.6),
    "screen": Family(electronics.screen),
    "gadget": Family(electronics.gadget, 1.3),
    "book": Family(containers.book, 0.5),
    "guitar": Family(toys.guitar, 0.7),
    "drum-or-horn": Family(toys.drum, 0.6),
    "ball": Family(toys.ball, 0.7),
    "toy-blocks": Family(toys.blocks_toy, 0.6),
    "rocket": Family(crafts.rocket, 0.8),
    "duck-or-pig": Family(animals.rubber_duck, 0.7),
    "shoe-or-hat": Family(toys.shoe),
    "rock": Family(ground.rock),
    "island": Family(ground.island, 0.5),
    "free-form": Family(ground.free_form, 4.0),
}


def make_parts(family: str, rng: np.random.Generator) -> list[Part]:
    """Closed blocks of one object of ``family``, front toward +x, in the family's own unit.

    Raises:
        SettingsError: no such family.
    """
    if family not in FAMILIES:
        raise SettingsError(f"shape family {family!r}: expected one of {', '.join(FAMILIES)}.")
    return FAMILIES[family].build(rng)


def make_object(family: str, rng: np.random.Generator) -> Shape:
    """Make one object of ``family``; its front faces +x, +y, -x or -y at random.

    Args:
        family: a key of ``FAMILIES``.
        rng: the only source of randomness; the same state gives the same object.

    Raises:
        SettingsError: no such family.
    """
    parts = make_parts(family, rng)
    return finish(parts, family, int(rng.integers(4)))


def random_object(rng: np.random.Generator) -> Shape:
    """Make one object of a family drawn by weight."""
    names = list(FAMILIES)
    weights = np.array([FAMILIES[name].weight for name in names])
    return make_object(names[int(rng.choice(len(names), p=weights / weights.sum()))], rng)
