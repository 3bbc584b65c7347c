"""The facts that a grammar may ask for, read from a state in the order in which they are listed.

A relation answers with the rows that agree with its arguments, None standing for anything. Rows are
of entity numbers, which follow the raw ids; so sorted rows are in TextWorld's order.

`not_p` is in TextWorld a fact of its own, which holds only once an action has made p false.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.env.engine.compiled.state import CompiledState

Row = tuple[int, ...]
Arguments = Sequence[int | None]
Rows = Callable[["CompiledState", Arguments], Iterable[Row]]


@dataclass(frozen=True)
class Relation:
    """A predicate's argument types, and its rows in a state. Static ones are the game's alone."""

    types: tuple[str, ...]
    rows: Rows
    static: bool = False


def _members(members: Callable[[CompiledState], Iterable[int]]) -> Rows:
    def rows(state: CompiledState, arguments: Arguments) -> Iterable[Row]:
        (member,) = arguments
        if member is None:
            return [(x,) for x in sorted(members(state))]
        return ((member,),) if member in members(state) else ()

    return rows


def _by_second(firsts_of: Callable[[CompiledState], Sequence[tuple[int, ...]]]) -> Rows:
    """Pairs kept as the sorted first members of each second one."""

    def rows(state: CompiledState, arguments: Arguments) -> Iterable[Row]:
        first, second = arguments
        firsts = firsts_of(state)
        if second is not None:
            return [(x, second) for x in firsts[second] if first is None or x == first]
        return sorted((x, y) for y, xs in enumerate(firsts) for x in xs if first in (None, x))

    return rows


def _few(facts: Callable[[CompiledState], Iterable[Row]]) -> Rows:
    def rows(state: CompiledState, arguments: Arguments) -> Iterable[Row]:
        return [
            row
            for row in facts(state)
            if all(x is None or x == y for x, y in zip(arguments, row, strict=True))
        ]

    return rows


def _always(predicate: str) -> Rows:
    return _members(lambda state: state.game.static[predicate])


_AGENT, _LOCATION, _OBJECT, _RECEPTACLE = "agent", "location", "object", "receptacle"
TRAITS = (
    "pickupable",
    "cleanable",
    "heatable",
    "coolable",
    "toggleable",
    "sliceable",
    "isreceptacleobject",
)
"""Unchanging predicates of objects."""

RELATIONS: dict[str, Relation] = {
    **{trait: Relation((_OBJECT,), _always(trait), static=True) for trait in TRAITS},
    "openable": Relation((_RECEPTACLE,), _always("openable"), static=True),
    "receptacleatlocation": Relation(
        (_RECEPTACLE, _LOCATION), _by_second(lambda state: state.game.receptacles_at), static=True
    ),
    "inreceptacleobject": Relation(
        (_OBJECT, _OBJECT), _by_second(lambda state: state.game.inside), static=True
    ),
    "atlocation": Relation(
        (_AGENT, _LOCATION), _few(lambda state: ((state.game.agent, state.location),))
    ),
    "holds": Relation(
        (_AGENT, _OBJECT),
        _few(lambda state: () if state.held is None else ((state.game.agent, state.held),)),
    ),
    "holdsany": Relation(
        (_AGENT,), _few(lambda state: () if state.held is None else ((state.game.agent,),))
    ),
    "inreceptacle": Relation((_OBJECT, _RECEPTACLE), _by_second(lambda state: state.contents)),
    "not_inreceptacle": Relation(
        (_OBJECT, _RECEPTACLE), _few(lambda state: sorted(state.taken_from))
    ),
    "objectatlocation": Relation((_OBJECT, _LOCATION), _by_second(lambda state: state.objects_at)),
    "opened": Relation((_RECEPTACLE,), _members(lambda state: state.opened)),
    "isclean": Relation((_OBJECT,), _members(lambda state: state.clean)),
    "ishot": Relation((_OBJECT,), _members(lambda state: state.hot)),
    "iscool": Relation((_OBJECT,), _members(lambda state: state.cool)),
    "issliced": Relation((_OBJECT,), _members(lambda state: state.sliced)),
    "istoggled": Relation((_OBJECT,), _members(lambda state: state.toggled)),
    # No action ever makes isToggled false.
    "not_istoggled": Relation((_OBJECT,), lambda _state, _arguments: (), static=True),
}
