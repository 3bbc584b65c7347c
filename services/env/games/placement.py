"""Where objects tend to lie, counted over the initial states of the train split.

P(o in r) is the share of receptacles of type r that hold at least one object of type o, among the
games that have such an object in some receptacle.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

UNIFORM = 0.05
"""P of everything where there is no train split to learn from."""
FLOOR = 0.002
"""P of what was never seen: unlikely, not impossible."""

_FACT = re.compile(r"\((inReceptacle|receptacleType|openable) (\S+?)(?: (\S+?))?\)")


@dataclass(frozen=True)
class Placement:
    """P(object type in receptacle type), and which receptacle types open and close."""

    probability: dict[str, dict[str, float]] = field(default_factory=dict)
    openable: frozenset[str] = frozenset()

    def p(self, thing: str, receptacle: str) -> float:
        """P that a receptacle of the type holds a `thing`; types as the text prints them."""
        if not self.probability:
            return UNIFORM
        return self.probability.get(thing, {}).get(receptacle, FLOOR)


class PlacementCounter:
    """Counts game by game."""

    def __init__(self) -> None:
        self._held: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._chances: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._openable: set[str] = set()

    def add(self, pddl_problem: str) -> None:
        """Count one game's initial state.

        Raises:
            ValueError: the problem has no `:init` before its `:goal`; nothing was counted.
        """
        init = pddl_problem[pddl_problem.index("(:init") : pddl_problem.index("(:goal")]
        receptacles: dict[str, str] = {}
        contents: list[tuple[str, str]] = []
        for fact, first, second in _FACT.findall(init):
            if fact == "receptacleType":
                receptacles[first] = _type(first)
            elif fact == "openable":
                self._openable.add(_type(first))
            else:
                contents.append((_type(first), second))
        present = Counter(receptacles.values())
        for thing in {thing for thing, _ in contents}:
            self._chances[thing].update(present)
        for thing, receptacle in set(contents):
            self._held[thing][_type(receptacle)] += 1

    def result(self) -> Placement:
        """The shares."""
        probability = {
            thing: {r: max(FLOOR, round(held[r] / n, 4)) for r, n in chances.items() if held[r]}
            for thing, chances in self._chances.items()
            for held in [self._held[thing]]
        }
        return Placement(probability, frozenset(self._openable))


def _type(identifier: str) -> str:
    """`SinkBasin` of `Sink_bar_..._bar_SinkBasin`: as the text prints it, `sinkbasin`."""
    kind = identifier.split("_bar_", 1)[0].lower()
    return kind + "basin" if "basin" in identifier.lower() else kind
