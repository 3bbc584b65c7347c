"""Commands that try an engine: towards the goal, into rare corners, and nonsense."""

from __future__ import annotations

import random

from services.env.engine.compiled import CompiledState
from services.env.engine.compiled.commands import KNIVES, Move
from services.env.engine.compiled.solver import next_command

_WEIGHTS = {
    "gotolocation": 3.0,
    "openobject": 6.0,
    "pickupobject": 6.0,
    "putobject": 4.0,
    "examineobject": 4.0,
    "toggleobject": 8.0,
    "heatobject": 10.0,
    "coolobject": 10.0,
    "cleanobject": 10.0,
    "sliceobject": 10.0,
    "look": 2.0,
    "help": 0.5,
}
"""How often each verb is tried, next to 1 for the others, where it is possible."""

_SOLVE_STEPS = 14
"""Steps kept for winning the game at the end of an episode."""


def choose(state: CompiledState, left: int, rng: random.Random) -> str:
    """The next command of an episode with `left` commands to go, the last of which win it."""
    if rng.random() < 0.1:
        return _nonsense(state, rng)
    if left <= _SOLVE_STEPS and (command := next_command(state)) is not None:
        return command
    moves = list(state.moves.values())
    verbs = sorted({move.verb for move in moves})
    (verb,) = rng.choices(verbs, [_WEIGHTS.get(verb, 1.0) for verb in verbs])
    moves = [move for move in moves if move.verb == verb]
    (move,) = rng.choices(moves, [_appeal(state, move) for move in moves])
    return move.command


def _appeal(state: CompiledState, move: Move) -> float:
    """More for what leads to rare texts: slicing, and receptacles that share a location."""
    game = state.game
    if move.verb == "pickupobject":
        return 8.0 if game.kinds.get(move.thing) in KNIVES else 1.0
    if move.verb == "putobject":
        here = game.receptacles_at[state.location]
        others = {(move.thing, x) for x in here if x != move.receptacle}
        return 8.0 if others & state.taken_from else 1.0
    if move.verb == "gotolocation":
        there = game.location_of[move.receptacle]
        if state.held is not None and game.kinds.get(state.held) in KNIVES:
            return 8.0 if game.static["sliceable"].intersection(state.objects_at[there]) else 0.1
        return 4.0 if len(game.receptacles_at[there]) > 1 else 1.0
    return 1.0


def _nonsense(state: CompiledState, rng: random.Random) -> str:
    """Mostly inadmissible: near misses, names that are elsewhere, white space, other alphabets."""
    possible = rng.choice(state.admissible)
    names = state.game.names
    one, other = rng.choice(names), rng.choice(names)
    return rng.choice(
        [
            "",
            "  ",
            f"  {possible}\n",
            f"{possible} please",
            possible.upper(),
            possible.replace(" ", "  "),
            possible[:-1],
            f"examine {one}",
            f"go to {one}",
            f"open {one}",
            f"close {one}",
            f"use {one}",
            f"take {one} from {other}",
            f"move {one} to {other}",
            f"put {one} in/on {other}",
            f"heat {one} with {other}",
            f"slice {one} with {other}",
            "help me",
            "看 {r.name} #look.feedback#",
        ]
    )
