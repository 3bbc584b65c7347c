"""A player that sees the whole state: the next command towards the goal, whatever came before.

It knows where everything is, so it needs no memory, and shows that a game can be won.
"""

from __future__ import annotations

from services.env.engine.compiled.goal import LightGoal, PlaceGoal
from services.env.engine.compiled.state import CompiledState

_APPLIANCE = {
    "clean": ("cleanobject", "sinkbasintype"),
    "hot": ("heatobject", "microwavetype"),
    "cool": ("coolobject", "fridgetype"),
}


def next_command(state: CompiledState) -> str | None:
    """A command on the way to the goal; None if it is reached, or out of this player's reach."""
    goal = state.game.goal
    if state.won:
        return None
    if state.held is not None and not _wanted(state):
        return _put_away(state)
    if isinstance(goal, LightGoal):
        return _find(state, goal.objects, ()) if state.held is None else _light(state, goal)
    assert isinstance(goal, PlaceGoal)
    target = _target(state, goal)
    if target is None:
        return None
    if state.held is None:
        # What lies in the target but is not yet as wanted has to be taken out again.
        done = [x for x in state.contents[target] if _ready(state, goal, x)]
        return _find(state, goal.objects.difference(done), done)
    for change in goal.changes:
        if state.held not in getattr(state, change):
            return _change(state, change)
    return _at(state, target, "putobject", state.held)


def _wanted(state: CompiledState) -> bool:
    goal = state.game.goal
    assert isinstance(goal, LightGoal | PlaceGoal)
    return state.held in goal.objects


def _ready(state: CompiledState, goal: PlaceGoal, thing: int) -> bool:
    return thing in goal.objects and all(thing in getattr(state, x) for x in goal.changes)


def _target(state: CompiledState, goal: PlaceGoal) -> int | None:
    """The receptacle that lacks least, among those that the objects may be put into."""
    fitting = [x for x in goal.receptacles if goal.objects & state.game.fits[x]]
    return max(
        fitting,
        key=lambda x: sum(_ready(state, goal, thing) for thing in state.contents[x]),
        default=None,
    )


def _light(state: CompiledState, goal: LightGoal) -> str | None:
    for receptacle in state.game.receptacles:
        for lamp in state.contents[receptacle]:
            if lamp in goal.lamps:
                return _at(state, receptacle, "toggleobject", lamp)
    return None


def _find(
    state: CompiledState, things: frozenset[int], besides: list[int] | tuple[()]
) -> str | None:
    for receptacle in state.game.receptacles:
        for thing in state.contents[receptacle]:
            if (
                thing in things
                and thing not in besides
                and thing in state.game.static["pickupable"]
            ):
                return _at(state, receptacle, "pickupobject", thing)
    return None


def _change(state: CompiledState, change: str) -> str | None:
    verb, kind = _APPLIANCE[change]
    assert state.held is not None
    for receptacle in state.game.receptacles:
        if state.game.kinds.get(receptacle) == kind:
            return _at(state, receptacle, verb, state.held)
    return None


def _put_away(state: CompiledState) -> str | None:
    assert state.held is not None
    here = state.game.receptacles_at[state.location]
    for receptacle in (*here, *state.game.receptacles):
        if state.held in state.game.fits[receptacle]:
            return _at(state, receptacle, "putobject", state.held)
    return None


def _at(state: CompiledState, receptacle: int, verb: str, thing: int) -> str | None:
    """Do something to a thing at a receptacle: go there first, then open it if one must."""
    game = state.game
    if game.location_of[receptacle] != state.location:
        return game.move("gotolocation", receptacle).command
    move = game.move(verb, receptacle, thing)
    if move.command not in state.moves:
        move = game.move("openobject", receptacle)
    return move.command if move.command in state.moves else None
