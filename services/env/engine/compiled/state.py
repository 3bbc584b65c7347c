"""A game being played: the fluent facts, and what each action does to them.

Facts are kept as TextWorld keeps them, oddities included: an object may lie in several receptacles
at once (ALFRED lists a pot on two burners), and taking it from one leaves it in the others. Sets
and tuples are replaced, never changed, so that forks share them.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from services.env.engine.compiled.commands import Move, possible_moves

if TYPE_CHECKING:
    from services.env.engine.compiled.game import CompiledGame

NOTHING_HAPPENS = "Nothing happens."


class CompiledState:
    """A session's state. `step` plays in place; `fork` makes an independent copy."""

    __slots__ = (
        "_moves",
        "clean",
        "contents",
        "cool",
        "game",
        "held",
        "hot",
        "location",
        "objects_at",
        "observation",
        "opened",
        "sliced",
        "taken_from",
        "toggled",
        "won",
    )

    def __init__(self, game: CompiledGame, location: int) -> None:
        """An empty world of `game` with the agent at `location`."""
        self.game: CompiledGame = game
        self.location: int = location
        self.held: int | None = None
        # By entity number: the objects in a receptacle, and at a location, in ascending order.
        self.contents: list[tuple[int, ...]] = [()] * len(game.ids)
        self.objects_at: list[tuple[int, ...]] = [()] * len(game.ids)
        self.taken_from: frozenset[tuple[int, int]] = frozenset()
        self.opened: frozenset[int] = frozenset()
        self.clean: frozenset[int] = frozenset()
        self.hot: frozenset[int] = frozenset()
        self.cool: frozenset[int] = frozenset()
        self.sliced: frozenset[int] = frozenset()
        self.toggled: frozenset[int] = frozenset()
        self.observation = ""
        self.won = False
        self._moves: dict[str, Move] | None = None

    def fork(self) -> CompiledState:
        """An independent copy."""
        copy = object.__new__(CompiledState)
        for name in self.__slots__:
            setattr(copy, name, getattr(self, name))
        copy.contents = self.contents.copy()
        copy.objects_at = self.objects_at.copy()
        return copy

    @property
    def moves(self) -> dict[str, Move]:
        """What can be done now, by command."""
        if self._moves is None:
            self._moves = possible_moves(self)
        return self._moves

    @property
    def admissible(self) -> list[str]:
        """The commands that are possible now, sorted, each once."""
        return sorted(self.moves)

    @property
    def reward(self) -> float:
        """1 while the goal is satisfied, else 0."""
        return float(self.won)

    @property
    def done(self) -> bool:
        """Whether the game has ended; TextWorld lets one play on."""
        return self.won

    def step(self, command: str) -> None:
        """Play a command. One that is not admissible changes nothing but the observation."""
        move = self.moves.get(command.strip())
        if move is None:
            self.observation = NOTHING_HAPPENS
            return
        binding = self.game.binding(move, self.location)
        if effect := _EFFECTS.get(move.verb):
            effect(self, move)
            self._moves = None
            self.won = self.game.goal.reached(self)
        self.observation = self.game.script.feedback[move.verb](self, binding)

    def hidden_state(self) -> dict[str, Any]:
        """Where everything is, by display names. Privileged: the agent must not see it.

        `agent` the receptacles within reach; `holding` an object or None; `objects` the receptacle
        of each that lies in one (of several, the last by name); `open`, `hot`, `cool`, `clean`, and
        `on` for what was ever used, which is what texts and goals mean by it.
        """
        game = self.game
        names = [name.strip() for name in game.names]
        lying = ((names[x], names[at]) for at, things in enumerate(self.contents) for x in things)
        return {
            "agent": sorted(names[x] for x in game.receptacles_at[self.location]),
            "holding": None if self.held is None else names[self.held],
            "objects": dict(sorted(lying)),
            **{
                key: sorted(names[x] for x in members)
                for key, members in (
                    ("open", self.opened),
                    ("hot", self.hot),
                    ("cool", self.cool),
                    ("clean", self.clean),
                    ("on", self.toggled),
                )
            },
        }


def _go(state: CompiledState, move: Move) -> None:
    state.location = state.game.location_of[move.receptacle]


def _open(state: CompiledState, move: Move) -> None:
    state.opened |= {move.receptacle}


def _close(state: CompiledState, move: Move) -> None:
    state.opened -= {move.receptacle}


def _take(state: CompiledState, move: Move) -> None:
    thing, receptacle = move.thing, move.receptacle
    state.held = thing
    state.contents[receptacle] = _without(state.contents[receptacle], thing)
    state.objects_at[state.location] = _without(state.objects_at[state.location], thing)
    state.taken_from |= {(thing, receptacle)}


def _put(state: CompiledState, move: Move) -> None:
    thing, receptacle = move.thing, move.receptacle
    state.held = None
    state.contents[receptacle] = _with(state.contents[receptacle], thing)
    state.objects_at[state.location] = _with(state.objects_at[state.location], thing)
    state.taken_from -= {(thing, receptacle)}


def _clean(state: CompiledState, move: Move) -> None:
    state.clean |= {move.thing}


def _heat(state: CompiledState, move: Move) -> None:
    state.hot |= {move.thing}
    state.cool -= {move.thing}


def _cool(state: CompiledState, move: Move) -> None:
    state.cool |= {move.thing}
    state.hot -= {move.thing}


def _use(state: CompiledState, move: Move) -> None:
    state.toggled |= {move.thing}


def _slice(state: CompiledState, move: Move) -> None:
    state.sliced |= {move.thing}


_EFFECTS: dict[str, Callable[[CompiledState, Move], None]] = {
    "gotolocation": _go,
    "openobject": _open,
    "closeobject": _close,
    "pickupobject": _take,
    "putobject": _put,
    "cleanobject": _clean,
    "heatobject": _heat,
    "coolobject": _cool,
    "toggleobject": _use,
    "sliceobject": _slice,
}
"""The actions that change something; the others only tell."""


def _without(things: tuple[int, ...], thing: int) -> tuple[int, ...]:
    return tuple(x for x in things if x != thing)


def _with(things: tuple[int, ...], thing: int) -> tuple[int, ...]:
    if thing in things:
        return things
    longer = [*things]
    insort(longer, thing)
    return tuple(longer)
