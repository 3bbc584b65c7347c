"""What a game begins with, read from the text of its PDDL problem."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_FACT = re.compile(r"\((\w+) (\S+?)(?: (\S+?))?\)")


@dataclass
class Initial:
    """Things by id, with types as in the game files (`SinkBasin`)."""

    receptacles: dict[str, str] = field(default_factory=dict)
    objects: dict[str, str] = field(default_factory=dict)
    contents: list[tuple[str, str]] = field(default_factory=list)
    """Objects, each with the receptacle it lies in; a few lie in two."""
    places: dict[str, str] = field(default_factory=dict)
    """Where one stands at a receptacle."""
    pickupable: set[str] = field(default_factory=set)


def read_initial(problem: str) -> Initial:
    """Read the `:init` section."""
    found = Initial()
    section = problem[problem.index("(:init") : problem.index("(:goal")]
    for predicate, first, second in _FACT.findall(section):
        if predicate == "receptacleType":
            found.receptacles[first] = second.removesuffix("Type")
        elif predicate == "objectType":
            found.objects[first] = second.removesuffix("Type")
        elif predicate == "inReceptacle":
            found.contents.append((first, second))
        elif predicate == "receptacleAtLocation":
            found.places[first] = second
        elif predicate == "pickupable":
            found.pickupable.add(first)
    return found
