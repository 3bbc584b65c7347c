"""The goals of the six task types, read from the problem's `:goal`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.env.alfworld import LIGHT, PLACE_TYPES
from services.env.engine.compiled.errors import Malformed
from services.env.engine.compiled.problem import Expression

if TYPE_CHECKING:
    from services.env.engine.compiled.state import CompiledState


_UNKNOWN = "its goal is of none of ALFWorld's task types"
_CHANGES = {"isclean": "clean", "ishot": "hot", "iscool": "cool"}


@dataclass(frozen=True)
class PlaceGoal:
    """`count` of the objects in one of the receptacles, after a change (`clean`, ...) if any."""

    objects: frozenset[int]
    receptacles: tuple[int, ...]
    change: str | None
    count: int

    @property
    def task_type(self) -> str:
        """ALFWorld's name of the task type."""
        return PLACE_TYPES[self.count, self.change]

    def reached(self, state: CompiledState) -> bool:
        """Whether the state satisfies the goal."""
        wanted = self.objects
        if self.change is not None:
            wanted = wanted & getattr(state, self.change)
        contents = state.contents
        return any(
            sum(thing in wanted for thing in contents[receptacle]) >= self.count
            for receptacle in self.receptacles
            if contents[receptacle]
        )


@dataclass(frozen=True)
class LightGoal:
    """One of the objects in hand where one of the lamps stands and was switched on."""

    objects: frozenset[int]
    lamps: frozenset[int]

    @property
    def task_type(self) -> str:
        """ALFWorld's name of the task type."""
        return LIGHT

    def reached(self, state: CompiledState) -> bool:
        """Whether the state satisfies the goal."""
        if state.held not in self.objects:
            return False
        lit = self.lamps & state.toggled
        here = state.game.receptacles_at[state.location]
        return any(lamp in state.contents[receptacle] for lamp in lit for receptacle in here)


Goal = PlaceGoal | LightGoal


@dataclass
class _Conditions:
    """What an `exists` asks: predicates by variable, and the atoms that join variables."""

    kinds: dict[str, str] = field(default_factory=dict)
    of: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)
    joins: set[tuple[str, ...]] = field(default_factory=set)


def parse_goal(
    goal: Expression, types: Mapping[int, str], static: Mapping[str, frozenset[int]]
) -> Goal:
    """The goal that the expression of a problem's `:goal` asks for.

    `types` are the types of objects and receptacles, `static` the unchanging predicates, both of
    entity numbers.

    Raises:
        Malformed: none of ALFWorld's task types has such a goal.
    """
    parts = goal[1:] if isinstance(goal, list) and goal[:1] == ["and"] else [goal]
    asked = [_collect(part, _Conditions()) for part in parts]
    if len(asked) == 1:
        return _place(asked[0], types, static)
    if len(asked) == 2:
        return _light(asked[0], asked[1], types, static)
    raise Malformed(_UNKNOWN)


def _collect(expression: Expression, found: _Conditions) -> _Conditions:
    match expression:
        case ["and", *parts]:
            for part in parts:
                _collect(part, found)
        case ["exists", [*variables], body]:
            _declare(variables, found.kinds)
            _collect(body, found)
        case ["not", ["=", str() as one, str() as other]]:
            found.joins.add(("differ", *sorted((one, other))))
        case [str() as predicate, str() as variable]:
            found.of.setdefault(variable, set()).add((predicate,))
        case ["objecttype" | "receptacletype", str() as variable, str() as kind]:
            found.of.setdefault(variable, set()).add(("type", kind))
        case [str() as predicate, str() as one, str() as other]:
            found.joins.add((predicate, one, other))
        case _:
            raise Malformed("its goal has a condition that ALFWorld's goals have not")
    return found


def _declare(variables: list[Expression], kinds: dict[str, str]) -> None:
    match variables:
        case []:
            return
        case [str() as name, "-", str() as kind, *more]:
            kinds[name] = kind
            _declare(more, kinds)
        case _:
            raise Malformed("its goal declares variables in a way that ALFWorld's goals do not")


def _place(
    asked: _Conditions, types: Mapping[int, str], static: Mapping[str, frozenset[int]]
) -> Goal:
    things = sorted(name for name, kind in asked.kinds.items() if kind == "object")
    places = [name for name, kind in asked.kinds.items() if kind == "receptacle"]
    if len(places) != 1 or len(things) not in (1, 2):
        raise Malformed(_UNKNOWN)
    expected: set[tuple[str, ...]] = {("inreceptacle", thing, places[0]) for thing in things}
    if len(things) == 2:
        expected.add(("differ", *things))
    wanted = asked.of.get(things[0], set())
    if asked.joins != expected or any(asked.of.get(thing, set()) != wanted for thing in things):
        raise Malformed(_UNKNOWN)
    changes: list[str | None] = [x for name, x in _CHANGES.items() if (name,) in wanted] or [None]
    if len(changes) > 1 or (len(things), changes[0]) not in PLACE_TYPES:
        raise Malformed(_UNKNOWN)
    lasting = {condition for condition in wanted if condition[0] not in _CHANGES}
    return PlaceGoal(
        objects=_matching(lasting, types, static),
        receptacles=tuple(sorted(_matching(asked.of.get(places[0], set()), types, static))),
        change=changes[0],
        count=len(things),
    )


def _light(
    lamp: _Conditions,
    held: _Conditions,
    types: Mapping[int, str],
    static: Mapping[str, frozenset[int]],
) -> Goal:
    if lamp.kinds.keys() == {"?o", "?a"}:
        lamp, held = held, lamp
    if (
        lamp.joins
        != {
            ("receptacleatlocation", "?r", "?l"),
            ("atlocation", "?a", "?l"),
            ("inreceptacle", "?ot", "?r"),
        }
        or held.joins != {("holds", "?a", "?o")}
        or lamp.of.keys() != {"?ot"}
        or held.of.keys() != {"?o"}
        or ("istoggled",) not in lamp.of["?ot"]
    ):
        raise Malformed(_UNKNOWN)
    return LightGoal(
        objects=_matching(held.of["?o"], types, static),
        lamps=_matching(lamp.of["?ot"] - {("istoggled",)}, types, static),
    )


def _matching(
    conditions: Iterable[tuple[str, ...]],
    types: Mapping[int, str],
    static: Mapping[str, frozenset[int]],
) -> frozenset[int]:
    """The entities that satisfy all unchanging conditions."""
    found = frozenset(types)
    for condition in conditions:
        match condition:
            case ("type", kind):
                found &= frozenset(x for x, other in types.items() if other == kind)
            case (predicate,) if predicate in static:
                found &= static[predicate]
            case _:
                raise Malformed(f"its goal asks for {condition[0]}, which no task type has")
    return found
