"""A room with its objects in it: how many of each type, and where each of them lies."""

from __future__ import annotations

import random
from dataclasses import dataclass

from services.env.games.generate.goals import Goal
from services.env.games.generate.learned import NOWHERE, learned
from services.env.games.generate.rooms import (
    Place,
    Point,
    Receptacle,
    Room,
    free_place,
    object_id,
)


@dataclass(frozen=True)
class Thing:
    """An object. Without a receptacle it stands, hangs or lies where no hand reaches it."""

    id: str
    type: str
    place: Place
    receptacle: Receptacle | None


@dataclass(frozen=True)
class Scene:
    """All that a game begins with."""

    room: Room
    goal: Goal
    things: tuple[Thing, ...]
    start: Place


def draw_scene(room: Room, goal: Goal, rng: random.Random) -> Scene:
    """Objects by the learned frequencies, with what the goal needs among them and in reach."""
    counts = learned().counts[room.kind]
    needed = {goal.thing: goal.things, goal.toggle: 1}
    taken = {receptacle.place for receptacle in room.receptacles}
    things: dict[str, Thing] = {}
    for type_ in room.objects:
        need = needed.get(type_, 0)
        for k in range(_number(counts[type_], need, rng)):
            thing = _place(type_, room, taken, rng, in_reach=k < need)
            while thing.id in things:
                thing = _place(type_, room, taken, rng, in_reach=k < need)
            things[thing.id] = thing
    start = free_place(room.floor, taken, rng)
    return Scene(room, goal, tuple(things[identifier] for identifier in sorted(things)), start)


def _number(histogram: list[int], least: int, rng: random.Random) -> int:
    numbers = range(least, len(histogram))
    weights = histogram[least:]
    return rng.choices(numbers, weights)[0] if any(weights) else least


def _place(
    type_: str, room: Room, taken: set[Place], rng: random.Random, *, in_reach: bool
) -> Thing:
    rates = learned().rates[room.kind].get(type_, {})
    choices: list[Receptacle | None] = [*room.receptacles]
    weights = [rates.get(receptacle.type, 0.0) for receptacle in room.receptacles]
    if not in_reach or not any(weights):
        choices.append(None)
        weights.append(rates.get(NOWHERE, 0.0) if any(weights) else 1.0)
    receptacle = rng.choices(choices, weights)[0]
    if receptacle is None:
        place = free_place(room.floor, taken, rng)
        return Thing(object_id(type_, place.ahead(rng.uniform(0, 2))), type_, place, None)
    position = _near(receptacle.position, rng)
    return Thing(object_id(type_, position), type_, receptacle.place, receptacle)


def _near(point: Point, rng: random.Random) -> Point:
    x, y, z = point
    return x + rng.uniform(-0.3, 0.3), y + rng.uniform(0, 0.1), z + rng.uniform(-0.3, 0.3)
