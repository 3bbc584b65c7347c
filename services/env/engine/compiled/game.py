"""A parsed game: what never changes while it is played, shared by all its sessions."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from services.env.engine.compiled.commands import PARAMETERS, Move
from services.env.engine.compiled.domain import known_actions
from services.env.engine.compiled.errors import GameFileError, Malformed
from services.env.engine.compiled.goal import Goal, parse_goal
from services.env.engine.compiled.names import display_names
from services.env.engine.compiled.problem import Fact, parse_problem
from services.env.engine.compiled.relations import RELATIONS, TRAITS
from services.env.engine.compiled.script import Script, read_script
from services.env.engine.compiled.state import CompiledState

_STATIC = ("openable", *TRAITS)
_INITIAL_SETS = {
    "opened": "opened",
    "isclean": "clean",
    "ishot": "hot",
    "iscool": "cool",
    "issliced": "sliced",
    "istoggled": "toggled",
}
"""Predicate to the attribute of `CompiledState` that begins with its members."""
_WHERE = ("atlocation", "receptacleatlocation", "objectatlocation", "inreceptacle")
_ENTITIES = {"agent", "location", "receptacle", "object"}
_SIGNATURES = {
    **{name: list(RELATIONS[name].types) for name in (*_STATIC, *_INITIAL_SETS, *_WHERE)},
    "inreceptacleobject": ["object", "object"],
    "receptacletype": ["receptacle", "rtype"],
    "objecttype": ["object", "otype"],
    "cancontain": ["rtype", "otype"],
    # Of these no action, text or goal takes notice.
    "isreceptacleobjectfull": ["object"],
    "ison": ["object"],
    "moveable": ["object"],
    "wasinreceptacle": ["object", "receptacle"],
    "full": ["receptacle"],
    "checked": ["receptacle"],
    "examined": ["location"],
}
"""The types of the arguments of all predicates that a game may begin with."""


class CompiledGame:
    """A game, parsed once; `reset` starts as many sessions of it as one likes.

    Entities (agent, locations, receptacles, objects) are numbered in the order of their raw ids,
    which is the order in which TextWorld lists them.
    """

    ids: tuple[str, ...]
    """Raw ids in lower case, by entity number."""
    names: tuple[str, ...]
    """Display names, by entity number."""
    kinds: dict[int, str]
    """`appletype`, `cabinettype`, ... of objects and receptacles."""
    agent: int
    receptacles: tuple[int, ...]
    location_of: dict[int, int]
    """Where a receptacle stands."""
    receptacles_at: list[tuple[int, ...]]
    """By entity number of a location."""
    inside: list[tuple[int, ...]]
    """Objects within an object such as a box, by the number of that one; nothing moves them."""
    fits: dict[int, frozenset[int]]
    """Which objects may be put into a receptacle."""
    static: dict[str, frozenset[int]]
    """Entities by unchanging predicate."""
    goal: Goal
    script: Script
    task_text: str
    """The last paragraph of the first observation."""

    def __init__(self, domain: str, problem: str, grammar: str) -> None:
        """A game from the three texts that its file holds; `parse` takes them out of it.

        Raises:
            Malformed: this is not an ALFWorld game.
        """
        parsed = parse_problem(problem)
        by_predicate: dict[str, list[list[str]]] = defaultdict(list)
        for predicate, arguments in parsed.facts:
            by_predicate[predicate].append(arguments)
        _check(by_predicate, parsed.types)
        self._number(parsed.types, parsed.facts)
        self._lay_out(by_predicate)
        self.goal = parse_goal(parsed.goal, self.kinds, self.static)
        self.script, self.task_text = read_script(grammar, known_actions(domain))
        self._moves: dict[tuple[str, int, int, int], Move] = {}
        self.everywhere = self._everywhere()
        self._start.observation = self.script.intro(self._start, {})
        self._start.won = self.goal.reached(self._start)

    @classmethod
    def parse(cls, source: Path | str) -> CompiledGame:
        """A game from a `game.tw-pddl` file, or from the content of one.

        Raises:
            GameFileError: it cannot be played; with the file's name and what is wrong with it.
            OSError: the file cannot be read.
        """
        name = str(source) if isinstance(source, Path) else "game"
        try:
            content = source.read_bytes() if isinstance(source, Path) else source
            return cls(**_sections(content))
        except Malformed as error:
            raise GameFileError(name, str(error)) from error
        except RecursionError as error:
            raise GameFileError(name, "it is nested too deeply") from error

    def reset(self) -> CompiledState:
        """A new session at the first observation."""
        return self._start.fork()

    @property
    def task(self) -> str:
        """The goal in words."""
        return self.task_text.removeprefix("Your task is to: ")

    def move(self, verb: str, receptacle: int = -1, thing: int = -1, tool: int = -1) -> Move:
        """The move with these arguments. Kept once made, and shared by the sessions."""
        key = verb, receptacle, thing, tool
        if key not in self._moves:
            move = Move(verb, "", receptacle, thing, tool)
            command = self.script.templates[verb](self._start, self.binding(move, -1))
            self._moves[key] = move._replace(command=command)
        return self._moves[key]

    def binding(self, move: Move, location: int) -> dict[str, int]:
        """A move's arguments as the grammar calls them, where the agent is at `location`."""
        values = {
            "a": self.agent,
            "l": location,
            "lstart": location,
            "lend": self.location_of.get(move.receptacle, -1),
            "r": move.receptacle,
            "o": move.thing,
            "co": move.thing,
            "ko": move.tool,
        }
        return {name: values[name] for name, _ in PARAMETERS[move.verb]}

    def _everywhere(self) -> dict[str, Move]:
        """By command, what would be possible at a place without receptacles."""
        moves = [self.move(verb) for verb in ("look", "inventory")]
        if "help" in self.script.templates:
            moves.append(self.move("help"))
        moves += [self.move("gotolocation", receptacle) for receptacle in self.receptacles]
        return {move.command: move for move in moves}

    def _number(self, types: Mapping[str, str], facts: list[Fact]) -> None:
        mentioned = {argument for _, arguments in facts for argument in arguments}
        names = display_names(mentioned)
        self.ids = tuple(sorted(x for x in mentioned if types[x] in _ENTITIES))
        self.names = tuple(names[x] for x in self.ids)
        self._numbers = {identifier: number for number, identifier in enumerate(self.ids)}

    def _lay_out(self, facts: Mapping[str, list[list[str]]]) -> None:
        number = self._numbers
        size = len(self.ids)
        agents = facts["atlocation"]
        if len(agents) != 1:
            raise Malformed("its agent is not at exactly one location")
        self.agent, start = (number[x] for x in agents[0])

        self.static = {
            predicate: frozenset(number[x] for (x,) in facts[predicate]) for predicate in _STATIC
        }
        self.location_of = {number[r]: number[at] for r, at in facts["receptacleatlocation"]}
        if len(self.location_of) != len({tuple(x) for x in facts["receptacleatlocation"]}):
            raise Malformed("a receptacle is at several locations")
        self.receptacles = tuple(sorted(self.location_of))
        self.receptacles_at = _by_second(facts["receptacleatlocation"], number, size)
        self.inside = _by_second(facts["inreceptacleobject"], number, size)

        object_type = {number[x]: kind for x, kind in facts["objecttype"]}
        receptacle_type = {number[x]: kind for x, kind in facts["receptacletype"]}
        self.kinds = {**object_type, **receptacle_type}
        fitting: dict[str, frozenset[int]] = {}
        allowed: dict[str, set[str]] = defaultdict(set)
        for receptacle_kind, object_kind in facts["cancontain"]:
            allowed[receptacle_kind].add(object_kind)
        for kind, kinds in allowed.items():
            fitting[kind] = frozenset(x for x, other in object_type.items() if other in kinds)
        self.fits = {
            x: fitting.get(receptacle_type.get(x, ""), frozenset()) for x in self.receptacles
        }

        self._start = CompiledState(self, start)
        self._start.contents = _by_second(facts["inreceptacle"], number, size)
        self._start.objects_at = _by_second(facts["objectatlocation"], number, size)
        for predicate, members in _INITIAL_SETS.items():
            setattr(self._start, members, frozenset(number[x] for (x,) in facts[predicate]))


def _sections(content: str | bytes) -> dict[str, str]:
    try:
        data = json.loads(content)
    except ValueError as error:
        raise Malformed(f"it is not JSON, or is cut off ({error})") from error
    parts = {"domain": "pddl_domain", "problem": "pddl_problem", "grammar": "grammar"}
    if not isinstance(data, dict):
        raise Malformed("it is not a JSON object")
    for key in parts.values():
        if not isinstance(data.get(key), str):
            raise Malformed(f"it lacks the text {key!r}, so it is no ALFWorld game")
    return {part: data[key] for part, key in parts.items()}


def _check(facts: Mapping[str, list[list[str]]], types: Mapping[str, str]) -> None:
    for predicate, rows in facts.items():
        signature = _SIGNATURES.get(predicate)
        if signature is None:
            raise Malformed(f"its :init states {predicate}, which no ALFWorld game begins with")
        for row in rows:
            if [types.get(x) for x in row] != signature:
                raise Malformed(
                    f"its :init has the fact ({predicate} {' '.join(row)}) of other types"
                )


def _by_second(
    pairs: list[list[str]], number: Mapping[str, int], size: int
) -> list[tuple[int, ...]]:
    """For each entity as second member, the first members in ascending order."""
    firsts: list[set[int]] = [set() for _ in range(size)]
    for first, second in pairs:
        firsts[number[second]].add(number[first])
    return [tuple(sorted(x)) for x in firsts]
