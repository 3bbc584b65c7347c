"""Which moves are possible in a state, by the preconditions of ALFWorld's PDDL domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from services.env.engine.compiled.state import CompiledState

_AGENT, _HERE = ("a", "agent"), ("l", "location")
_OBJECT, _RECEPTACLE = ("o", "object"), ("r", "receptacle")

PARAMETERS: dict[str, tuple[tuple[str, str], ...]] = {
    "look": (_AGENT, _HERE),
    "inventory": (_AGENT,),
    "help": (_AGENT,),
    "examinereceptacle": (_AGENT, _RECEPTACLE),
    "examineobject": (_AGENT, _OBJECT),
    "gotolocation": (_AGENT, ("lstart", "location"), ("lend", "location"), _RECEPTACLE),
    "openobject": (_AGENT, _HERE, _RECEPTACLE),
    "closeobject": (_AGENT, _HERE, _RECEPTACLE),
    "pickupobject": (_AGENT, _HERE, _OBJECT, _RECEPTACLE),
    "putobject": (_AGENT, _HERE, _OBJECT, _RECEPTACLE),
    "cleanobject": (_AGENT, _HERE, _RECEPTACLE, _OBJECT),
    "heatobject": (_AGENT, _HERE, _RECEPTACLE, _OBJECT),
    "coolobject": (_AGENT, _HERE, _RECEPTACLE, _OBJECT),
    "toggleobject": (_AGENT, _HERE, _OBJECT, _RECEPTACLE),
    "sliceobject": (_AGENT, _HERE, ("co", "object"), ("ko", "object")),
}
"""The parameters of each action as (name, type), by which its texts call them. Those of `PutObject`
that are types have no name and are left out."""

PLACES = {("l", "location"), ("lstart", "location")}
"""The parameters that are the agent's location before the action."""

APPLIANCES = {
    "sinkbasintype": ("cleanobject", "cleanable"),
    "microwavetype": ("heatobject", "heatable"),
    "fridgetype": ("coolobject", "coolable"),
}
"""By receptacle type: what can be done at it, to which objects."""

KNIVES = {"knifetype", "butterknifetype"}


class Move(NamedTuple):
    """An action, how it is typed, and its arguments; -1 where it has none.

    The agent's location is no part of it: that is known when the move is played.
    """

    verb: str
    command: str
    receptacle: int
    thing: int
    tool: int


def possible_moves(state: CompiledState) -> dict[str, Move]:
    """All moves that are possible, by command."""
    game, move, held = state.game, state.game.move, state.held
    here = game.receptacles_at[state.location]
    pickupable, toggleable = game.static["pickupable"], game.static["toggleable"]
    moves = game.everywhere.copy()
    found: list[Move] = []
    for receptacle in here:
        del moves[move("gotolocation", receptacle).command]
        found.append(move("examinereceptacle", receptacle))
        accessible = True
        if receptacle in game.static["openable"]:
            accessible = receptacle in state.opened
            found.append(move("closeobject" if accessible else "openobject", receptacle))
        contents = state.contents[receptacle]
        found += [move("toggleobject", receptacle, x) for x in contents if x in toggleable]
        if held is None:
            if accessible:
                found += [move("pickupobject", receptacle, x) for x in contents if x in pickupable]
            continue
        if accessible and held in game.fits[receptacle]:
            found.append(move("putobject", receptacle, held))
        appliance = APPLIANCES.get(game.kinds.get(receptacle, ""))
        if appliance and held in game.static[appliance[1]]:
            found.append(move(appliance[0], receptacle, held))
    if held is not None:
        found.append(move("examineobject", thing=held))
        if game.kinds.get(held) in KNIVES:
            sliceable = game.static["sliceable"].intersection(state.objects_at[state.location])
            found += [move("sliceobject", thing=x, tool=held) for x in sliceable]
    for possible in found:
        moves[possible.command] = possible
    return moves
