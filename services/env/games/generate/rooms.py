"""The 120 rooms of the alfworld package, furnished.

A plan names some receptacles with coordinates, and the place to stand at each; of the others it
lists the types alone. Their number is drawn from what was learned, by the number of the room, so a
room has the same furniture in every game.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable

import numpy as np
import orjson
from alfworld.gen import constants

from agentprm.protocol import Split
from services.env.games.generate.learned import learned

UNSEEN = (10, 219, 308, 424)
"""The rooms that the benchmark keeps for valid_unseen."""

KINDS: dict[str, range] = constants.SCENE_TYPE
RECEPTACLE_TYPES = frozenset(constants.RECEPTACLES) - constants.MOVABLE_RECEPTACLES_SET

_HORIZONS = (60, 60, 45, 45, 30)
_FACING = ((0.0, 0.5), (0.5, 0.0), (0.0, -0.5), (-0.5, 0.0))
"""Half a metre ahead, in (x, z), by rotation in quarter turns."""

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Place:
    """Where one can stand: grid of 0.25 m, rotation in quarter turns, horizon in degrees."""

    x: int
    z: int
    rotation: int
    horizon: int

    @property
    def id(self) -> str:
        """Its name in game files, before `|` and signs are spelt out."""
        return f"loc|{self.x}|{self.z}|{self.rotation}|{self.horizon}"

    def ahead(self, height: float) -> Point:
        """The point half a metre ahead, in metres."""
        x, z = _FACING[self.rotation]
        return self.x / 4 + x, height, self.z / 4 + z


@dataclass(frozen=True)
class Receptacle:
    """A piece of furniture that things lie in or on."""

    id: str
    type: str
    place: Place
    position: Point
    openable: bool


@dataclass(frozen=True)
class Room:
    """A furnished room without its objects."""

    number: int
    kind: str
    receptacles: tuple[Receptacle, ...]
    objects: tuple[str, ...]
    """Object types that may be in it."""
    floor: tuple[tuple[int, int], ...]
    """Where one can stand, on the grid of 0.25 m."""


def rooms_of(split: Split) -> list[Room]:
    """The rooms that games of a split play in: valid_unseen has four, the others share the rest."""
    numbers = [number for numbers in KINDS.values() for number in numbers]
    unseen = split == Split.VALID_UNSEEN
    return [furnished(number) for number in numbers if (number in UNSEEN) == unseen]


def kind_of(number: int) -> str:
    """`Kitchen`, `LivingRoom`, `Bedroom` or `Bathroom`."""
    return next(kind for kind, numbers in KINDS.items() if number in numbers)


def plan_types(number: int) -> list[str]:
    """The types of objects and receptacles that the plan lists."""
    return sorted(orjson.loads(_plan(number, "objects.json")))


def plan_places(number: int) -> dict[str, list[float]]:
    """For each receptacle that the plan names, where to stand: x, z (metres), degrees, horizon."""
    places: dict[str, list[float]] = orjson.loads(_plan(number, "openable.json"))
    return places


def receptacle_type(identifier: str) -> str:
    """`SinkBasin` of `Sink|-00.70|+00.93|-00.65|SinkBasin`."""
    parts = identifier.split("|")
    return parts[4] if len(parts) > 4 else parts[0]


@cache
def furnished(number: int) -> Room:
    """The room, always the same."""
    rng = random.Random(f"room {number}")
    kind, types = kind_of(number), plan_types(number)
    floor = _floor(number)
    receptacles = [
        _named(identifier, place)
        for identifier, place in sorted(plan_places(number).items())
        if receptacle_type(identifier) in RECEPTACLE_TYPES
    ]
    taken = {receptacle.place for receptacle in receptacles}
    named = {receptacle.type for receptacle in receptacles}
    for type_, histograms in sorted(learned().unnamed[kind].items()):
        histogram = histograms[type_ in named]
        if type_ not in types or not any(histogram):
            continue
        for _ in range(rng.choices(range(len(histogram)), histogram)[0]):
            place = free_place(floor, taken, rng)
            position = place.ahead(rng.uniform(0.1, 1.2))
            receptacles.append(
                Receptacle(object_id(type_, position), type_, place, position, openable=False)
            )
    objects = tuple(type_ for type_ in types if type_ in learned().counts[kind])
    return Room(number, kind, tuple(receptacles), objects, floor)


def free_place(floor: tuple[tuple[int, int], ...], taken: set[Place], rng: random.Random) -> Place:
    """A place that is not taken yet; it is afterwards."""
    while True:
        place = Place(*rng.choice(floor), rng.randrange(4), rng.choice(_HORIZONS))
        if place not in taken:
            taken.add(place)
            return place


def object_id(type_: str, position: Point) -> str:
    """Such as `Apple|-00.47|+01.15|+00.48`."""
    return "|".join([type_, *(f"{coordinate:+06.2f}" for coordinate in position)])


def _named(identifier: str, plan: list[float]) -> Receptacle:
    x, z, degrees, horizon = plan
    place = Place(round(4 * x), round(4 * z), round(degrees / 90) % 4, round(horizon))
    type_ = receptacle_type(identifier)
    _, px, py, pz, *_ = identifier.split("|")
    openable = type_ in constants.OPENABLE_CLASS_SET
    return Receptacle(identifier, type_, place, (float(px), float(py), float(pz)), openable)


def _floor(number: int) -> tuple[tuple[int, int], ...]:
    with as_file(_layouts() / f"FloorPlan{number}-layout.npy") as path:
        points = np.load(path, allow_pickle=False)
    return tuple(sorted({(round(4 * x), round(4 * z)) for x, z in points.tolist()}))


def _plan(number: int, part: str) -> bytes:
    return (_layouts() / f"FloorPlan{number}-{part}").read_bytes()


def _layouts() -> Traversable:
    return files("alfworld") / "gen" / "layouts"
