"""A scene as ALFWorld writes it: the PDDL problem, `game.tw-pddl` and `traj_data.json`.

Sections stand in the order of the published games. What a type of receptacle can contain is stated
once here, and there once for each receptacle; to a planner that is the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files
from typing import Any

from alfworld.gen import constants

from services.env.games.generate.learned import learned
from services.env.games.generate.rooms import RECEPTACLE_TYPES
from services.env.games.generate.scene import Scene

_SIGNS = (("|", "_bar_"), ("+", "_plus_"), ("-", "_minus_"), (".", "_dot_"))
_INDENT = "\n        "


def problem(scene: Scene, trial: str) -> str:
    """The text of `pddl_problem`."""
    lines = [*_declarations(scene), ""]
    facts = [f"({' '.join(fact)})" for fact in _facts(scene)]
    return (
        f"\n(define (problem plan_{trial})\n(:domain alfred)\n(:objects\nagent1 - agent\n"
        f"{_INDENT.join(lines)})\n    \n\n(:init\n\n"
        f"{_INDENT}{_INDENT.join(facts)}{_INDENT})\n    \n{scene.goal.pddl}"
    )


def game_file(problem_text: str, sentence: str, walkthrough: list[str]) -> dict[str, Any]:
    """The content of `game.tw-pddl`."""
    domain, _ = domain_and_grammar()
    return {
        "pddl_domain": domain,
        "grammar": grammar(sentence),
        "pddl_problem": problem_text,
        "solvable": True,
        "walkthrough": walkthrough,
    }


def trajectory_file(scene: Scene, trial: str, sentence: str, seed: int) -> dict[str, Any]:
    """The content of `traj_data.json`; the one annotation is the goal sentence."""
    return {
        "task_id": trial,
        "task_type": scene.goal.task_type,
        "pddl_params": {
            "mrecep_target": "",
            "object_sliced": False,
            "object_target": scene.goal.thing,
            "parent_target": scene.goal.parent,
            "toggle_target": scene.goal.toggle,
        },
        "turk_annotations": {
            "anns": [
                {"assignment_id": "generated", "high_descs": [], "task_desc": sentence, "votes": []}
            ]
        },
        "scene": {
            "floor_plan": f"FloorPlan{scene.room.number}",
            "scene_num": scene.room.number,
            "random_seed": seed,
        },
    }


@lru_cache(maxsize=1)
def domain_and_grammar() -> tuple[str, str]:
    """Those of the installed alfworld package."""
    data = files("alfworld") / "data"
    return (data / "alfred.pddl").read_text(), (data / "alfred.twl2").read_text()


def grammar(sentence: str) -> str:
    """The package's grammar with the goal sentence in it, as its own generator writes it."""
    return domain_and_grammar()[1].replace("UNKNOWN GOAL", sentence)


def _declarations(scene: Scene) -> Iterable[str]:
    types = sorted(constants.NON_RECEPTACLES_SET)
    yield from (f"{type_} - object" for type_ in types)
    yield from (f"{type_}Type - otype" for type_ in types)
    yield from (f"{type_}Type - rtype" for type_ in sorted(RECEPTACLE_TYPES))
    yield from (f"{_spelt(thing.id)} - object" for thing in scene.things)
    receptacles = sorted(receptacle.id for receptacle in scene.room.receptacles)
    yield from (f"{_spelt(identifier)} - receptacle" for identifier in receptacles)
    places = {receptacle.place for receptacle in scene.room.receptacles}
    places |= {thing.place for thing in scene.things} | {scene.start}
    yield from sorted(f"{_spelt(place.id)} - location" for place in places)


def _facts(scene: Scene) -> Iterable[tuple[str, ...]]:
    receptacles = scene.room.receptacles
    ids = {thing: _spelt(thing.id) for thing in scene.things}
    names = {receptacle: _spelt(receptacle.id) for receptacle in receptacles}
    object_types = sorted({thing.type for thing in scene.things})
    yield from (("receptacleType", names[r], f"{r.type}Type") for r in receptacles)
    yield from (("objectType", ids[thing], f"{thing.type}Type") for thing in scene.things)
    for type_ in sorted({receptacle.type for receptacle in receptacles}):
        allowed = constants.VAL_RECEPTACLE_OBJECTS.get(type_, frozenset())
        for other in object_types:
            if other in allowed:
                yield "canContain", f"{type_}Type", f"{other}Type"

    def having(predicate: str, types: Iterable[str]) -> Iterable[tuple[str, ...]]:
        members = frozenset(types)
        return ((predicate, ids[thing]) for thing in scene.things if thing.type in members)

    able = constants.VAL_ACTION_OBJECTS
    yield from having("pickupable", learned().pickupable)
    yield from having("isReceptacleObject", constants.MOVABLE_RECEPTACLES)
    yield from (("openable", names[r]) for r in receptacles if r.openable)
    yield "atLocation", "agent1", _spelt(scene.start.id)
    yield from having("cleanable", able["Cleanable"])
    yield from having("heatable", able["Heatable"])
    yield from having("coolable", able["Coolable"])
    yield from having("toggleable", able["Toggleable"])
    yield from having("sliceable", able["Sliceable"])
    for thing in scene.things:
        if thing.receptacle is not None:
            yield "inReceptacle", ids[thing], names[thing.receptacle]
    yield from (("receptacleAtLocation", names[r], _spelt(r.place.id)) for r in receptacles)
    yield from (("objectAtLocation", ids[t], _spelt(t.place.id)) for t in scene.things)


@lru_cache(maxsize=100_000)
def _spelt(identifier: str) -> str:
    """Without the characters that PDDL names cannot have."""
    for sign, word in _SIGNS:
        identifier = identifier.replace(sign, word)
    return identifier
