"""A hand-made kitchen as ALFWorld game files, small enough that TextWorld resets it at once.

Domain and grammar are those of the installed alfworld package. Games published before 0.4.0 differ
from them by three texts and by the action `help`; those that alfworld's own patch brought up to
date have its text in the action itself.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Literal

Generation = Literal["current", "patched", "older"]

_RECEPTACLES = {
    "Cabinet_bar__plus_00_dot_10": ("loc_bar_1", True),
    "Cabinet_bar__plus_00_dot_20": ("loc_bar_1", True),
    "CounterTop_bar__minus_01_dot_00": ("loc_bar_2", False),
    "Sink_bar__plus_02_dot_00_bar_SinkBasin": ("loc_bar_2", False),
    "StoveBurner_bar__plus_03_dot_10": ("loc_bar_3", False),
    "StoveBurner_bar__plus_03_dot_20": ("loc_bar_3", False),
    "Microwave_bar__plus_04_dot_00": ("loc_bar_4", True),
    "Fridge_bar__plus_05_dot_00": ("loc_bar_5", True),
    "Drawer_bar__plus_06_dot_00": ("loc_bar_6", True),
}
_OBJECTS = {
    "Apple_bar__plus_00_dot_01": ["CounterTop_bar__minus_01_dot_00"],
    "Apple_bar__plus_00_dot_02": ["Fridge_bar__plus_05_dot_00"],
    "Box_bar__plus_00_dot_03": ["Cabinet_bar__plus_00_dot_20"],
    "DeskLamp_bar__plus_00_dot_04": ["Drawer_bar__plus_06_dot_00"],
    "Knife_bar__plus_00_dot_05": ["Sink_bar__plus_02_dot_00_bar_SinkBasin"],
    "Mug_bar__plus_00_dot_06": ["Cabinet_bar__plus_00_dot_10"],
    "Mug_bar__plus_00_dot_07": ["CounterTop_bar__minus_01_dot_00"],
    "Pot_bar__plus_00_dot_08": [
        "StoveBurner_bar__plus_03_dot_10",
        "StoveBurner_bar__plus_03_dot_20",
    ],
    "Window_bar__plus_00_dot_09": [],
}
_TRAITS = {
    "pickupable": {"Apple", "Box", "Knife", "Mug", "Pot"},
    "cleanable": {"Apple", "Knife", "Mug", "Pot"},
    "heatable": {"Apple", "Mug"},
    "coolable": {"Apple", "Mug", "Pot"},
    "sliceable": {"Apple"},
    "toggleable": {"DeskLamp"},
    "isReceptacleObject": {"Box", "Mug", "Pot"},
}

_PLACE = """(and (exists (?r - receptacle) (exists (?o - object) (and {traits}
    (objectType ?o {thing}Type) (receptacleType ?r {place}Type) (inReceptacle ?o ?r)))))"""
GOALS = {
    "pick_and_place_simple": _PLACE.format(traits="", thing="Pot", place="Cabinet"),
    "pick_clean_then_place_in_recep": _PLACE.format(
        traits="(cleanable ?o) (isClean ?o)", thing="Mug", place="Cabinet"
    ),
    "pick_heat_then_place_in_recep": _PLACE.format(
        traits="(heatable ?o) (isHot ?o)", thing="Mug", place="CounterTop"
    ),
    "pick_cool_then_place_in_recep": _PLACE.format(
        traits="(coolable ?o) (isCool ?o)", thing="Apple", place="Microwave"
    ),
    "pick_two_obj_and_place": """(and (exists (?r - receptacle) (exists (?o1 - object) (and
        (objectType ?o1 MugType) (receptacleType ?r CabinetType) (inReceptacle ?o1 ?r)
        (exists (?o2 - object) (and (not (= ?o1 ?o2)) (objectType ?o2 MugType)
        (receptacleType ?r CabinetType) (inReceptacle ?o2 ?r)))))))""",
    "look_at_obj_in_light": """(and (exists (?ot - object ?r - receptacle ?a - agent ?l - location)
        (and (objectType ?ot DeskLampType) (toggleable ?ot) (isToggled ?ot)
        (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r)))
        (exists (?o - object ?a - agent) (and (objectType ?o AppleType) (holds ?a ?o))))""",
}
"""A `:goal` for each task type."""


def tiny_game(
    task_type: str = "pick_and_place_simple",
    generation: Generation = "current",
    task: str = "put a pot in cabinet.",
) -> dict[str, str | bool]:
    """The JSON object of a `game.tw-pddl`."""
    domain = files("alfworld").joinpath("data/alfred.pddl").read_text()
    grammar = files("alfworld").joinpath("data/alfred.twl2").read_text()
    if generation != "current":
        grammar, help_text = grammar.split("action help {")
    if generation == "patched":
        text = json.loads(help_text.partition('"rhs": ')[2].splitlines()[0])
        grammar += f'action help {{ template :: "help"; feedback :: "{text}"; }}\n'
    if generation == "older":
        domain = domain.split("(:action help")[0] + ")\n"
        for current, older in (
            ("You arrive at {r.name}.", "You arrive at {lend.name}."),
            ("move {o} to {r}", "put {o} in/on {r}"),
            ("You move the {o.name} to the {r.name}.", "You put the {o.name} in/on the {r.name}."),
        ):
            grammar = grammar.replace(current, older)
    return {
        "pddl_domain": domain,
        "grammar": grammar.replace("UNKNOWN GOAL.", task),
        "pddl_problem": _problem(GOALS[task_type]),
        "solvable": True,
    }


def _problem(goal: str) -> str:
    kinds = sorted({_kind(x) for x in _OBJECTS})
    places = sorted({_kind(x) for x in _RECEPTACLES})
    locations = {f"loc_bar_{number}" for number in range(8)}
    declared = [
        "agent1 - agent",
        *(f"{x} - location" for x in sorted(locations)),
        *(f"{x} - object" for x in _OBJECTS),
        *(f"{x} - receptacle" for x in _RECEPTACLES),
        *(f"{x}Type - otype" for x in kinds),
        *(f"{x}Type - rtype" for x in places),
    ]
    facts = [
        "atLocation agent1 loc_bar_0",
        "inReceptacleObject Knife_bar__plus_00_dot_05 Box_bar__plus_00_dot_03",
        "objectAtLocation Window_bar__plus_00_dot_09 loc_bar_7",
    ]
    for name, (location, openable) in _RECEPTACLES.items():
        facts += [
            f"receptacleType {name} {_kind(name)}Type",
            f"receptacleAtLocation {name} {location}",
        ]
        facts += [f"openable {name}"] if openable else []
    for name, holders in _OBJECTS.items():
        facts.append(f"objectType {name} {_kind(name)}Type")
        facts += [f"{trait} {name}" for trait, having in _TRAITS.items() if _kind(name) in having]
        facts += [f"inReceptacle {name} {holder}" for holder in holders]
        facts += sorted({f"objectAtLocation {name} {_RECEPTACLES[x][0]}" for x in holders})
    facts += [
        f"canContain {place}Type {kind}Type"
        for place in places
        for kind in kinds
        if kind not in ("DeskLamp", "Window") and not (place == "Fridge" and kind == "Knife")
    ]
    return "(define (problem tiny) (:domain alfred)\n(:objects {})\n(:init {})\n(:goal {}))".format(
        "\n".join(declared), "\n".join(f"({fact})" for fact in facts), goal
    )


def _kind(identifier: str) -> str:
    return "SinkBasin" if "Basin" in identifier else identifier.partition("_bar_")[0]
