"""Which moves are possible in a state, by the preconditions of ALFWorld's PDDL domain."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from services.env.engine.compiled.state import CompiledState
    from services.env.engine.compiled.text import Binding

_AGENT, _ROOM = ("a", "agent"), ("l", "location")
_OBJECT, _RECEPTACLE = ("o", "object"), ("r", "receptacle")

PARAMETERS: dict[str, tuple[tuple[str, str], ...]] = {
    "look": (_AGENT, _ROOM),
    "inventory": (_AGENT,),
    "help": (_AGENT,),
    "examinereceptacle": (_AGENT, _RECEPTACLE),
    "examineobject": (_AGENT, _OBJECT),
    "gotolocation": (_AGENT, ("lstart", "location"), ("lend", "location"), _RECEPTACLE),
    "openobject": (_AGENT, _ROOM, _RECEPTACLE),
    "closeobject": (_AGENT, _ROOM, _RECEPTACLE),
    "pickupobject": (_AGENT, _ROOM, _OBJECT, _RECEPTACLE),
    "putobject": (_AGENT, _ROOM, _OBJECT, _RECEPTACLE),
    "cleanobject": (_AGENT, _ROOM, _RECEPTACLE, _OBJECT),
    "heatobject": (_AGENT, _ROOM, _RECEPTACLE, _OBJECT),
    "coolobject": (_AGENT, _ROOM, _RECEPTACLE, _OBJECT),
    "toggleobject": (_AGENT, _ROOM, _OBJECT, _RECEPTACLE),
    "sliceobject": (_AGENT, _ROOM, ("co", "object"), ("ko", "object")),
}
"""The parameters of each action as (name, type), by which its texts call them. Those of `PutObject`
that are types have no display name and are left out."""

APPLIANCES = {
    "sinkbasintype": ("cleanobject", "cleanable"),
    "microwavetype": ("heatobject", "heatable"),
    "fridgetype": ("coolobject", "coolable"),
}
"""By receptacle type: what can be done at it, to which objects."""

KNIVES = {"knifetype", "butterknifetype"}


class Move(NamedTuple):
    """An action with its arguments, as typed and as the grammar sees them; -1 where it has none."""

    verb: str
    command: str
    binding: Binding
    receptacle: int
    thing: int


def possible_moves(state: CompiledState) -> dict[str, Move]:
    """All moves that are possible, by command."""
    game = state.game
    here = state.location
    held = state.held
    move = game.move
    moves = game.departures(here).copy()
    for receptacle in game.receptacles_at[here]:
        accessible = True
        _add(moves, move("examinereceptacle", here, receptacle))
        if receptacle in game.static["openable"]:
            accessible = receptacle in state.opened
            _add(moves, move("closeobject" if accessible else "openobject", here, receptacle))
        if held is None and accessible:
            for thing in state.contents[receptacle]:
                if thing in game.static["pickupable"]:
                    _add(moves, move("pickupobject", here, receptacle, thing))
        for thing in state.contents[receptacle]:
            if thing in game.static["toggleable"]:
                _add(moves, move("toggleobject", here, receptacle, thing))
        if held is None:
            continue
        if accessible and held in game.fits[receptacle]:
            _add(moves, move("putobject", here, receptacle, held))
        appliance = APPLIANCES.get(game.kinds.get(receptacle, ""))
        if appliance and held in game.static[appliance[1]]:
            _add(moves, move(appliance[0], here, receptacle, held))
    if held is not None:
        _add(moves, move("examineobject", here, thing=held))
        if game.kinds.get(held) in KNIVES:
            for thing in state.objects_at[here]:
                if thing in game.static["sliceable"]:
                    _add(moves, move("sliceobject", here, thing=thing, tool=held))
    return moves


def _add(moves: dict[str, Move], move: Move) -> None:
    moves[move.command] = move
