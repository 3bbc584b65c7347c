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
    if state.held is not None and state.held not in goal.objects:
        return _put_away(state)
    if isinstance(goal, LightGoal):
        return _fetch(state, goal.objects) if state.held is None else _light(state, goal)
    target = _target(state, goal)
    if target is None:
        return None
    if state.held is None:
        # What lies in the target but is not yet as wanted has to be taken out again.
        done = [x for x in state.contents[target] if _ready(state, goal, x)]
        return _fetch(state, goal.objects.difference(done))
    if not _ready(state, goal, state.held):
        return _change(state, goal)
    return _at(state, target, "putobject", state.held)


def _ready(state: CompiledState, goal: PlaceGoal, thing: int) -> bool:
    changed = goal.change is None or thing in getattr(state, goal.change)
    return changed and thing in goal.objects


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


def _fetch(state: CompiledState, things: frozenset[int]) -> str | None:
    takeable = things & state.game.static["pickupable"]
    for receptacle in state.game.receptacles:
        for thing in state.contents[receptacle]:
            if thing in takeable:
                return _at(state, receptacle, "pickupobject", thing)
    return None


def _change(state: CompiledState, goal: PlaceGoal) -> str | None:
    assert state.held is not None
    assert goal.change is not None
    verb, kind = _APPLIANCE[goal.change]
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
