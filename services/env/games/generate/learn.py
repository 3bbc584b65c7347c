"""Learns the table that generated games are drawn from, of the real train split and nothing else.

    python -m services.env.games.generate.learn DIR

replaces `learned.json` beside this file by what the games in DIR say.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import orjson
from alfworld.gen import constants

from agentprm.protocol import Split
from services.env.games.generate.learned import NOWHERE
from services.env.games.generate.rooms import (
    RECEPTACLE_TYPES,
    kind_of,
    plan_places,
    plan_types,
    receptacle_type,
)
from services.env.games.index import DataError, GameIndex
from services.env.games.initial import Initial, read_initial

Table = defaultdict[str, defaultdict[str, Counter[Any]]]


class _Learner:
    """Sums over games."""

    def __init__(self) -> None:
        self.games = 0
        self._counts = _table()
        self._held = _table()
        self._chances = _table()
        self._unnamed = _table()
        self._goals = _table()
        self._pickupable: set[str] = set()

    def add(self, trajectory: dict[str, Any], problem: str) -> None:
        """Count one game."""
        self.games += 1
        room = trajectory["scene"]["scene_num"]
        kind, types = kind_of(room), plan_types(room)
        asked = trajectory["pddl_params"]
        target = asked["parent_target"] or asked["toggle_target"]
        self._goals[trajectory["task_type"]][kind][f"{asked['object_target']} {target}"] += 1

        initial = read_initial(problem)
        self._pickupable.update(thing.partition("_bar_")[0] for thing in initial.pickupable)
        present = Counter(initial.objects.values())
        for type_ in constants.NON_RECEPTACLES_SET.intersection(types):
            self._counts[kind][type_][present[type_]] += 1
        self._add_places(kind, initial)
        self._add_unnamed(room, Counter(initial.receptacles.values()))

    def _add_places(self, kind: str, initial: Initial) -> None:
        objects, receptacles = initial.objects, initial.receptacles
        for type_ in set(objects.values()):
            self._chances[kind][type_].update(receptacles.values())
            self._chances[kind][type_][NOWHERE] += 1
        for thing, receptacle in initial.contents:
            self._held[kind][objects[thing]][receptacles[receptacle]] += 1
        for thing in objects.keys() - {thing for thing, _ in initial.contents}:
            self._held[kind][objects[thing]][NOWHERE] += 1

    def _add_unnamed(self, room: int, present: Counter[str]) -> None:
        named = Counter(receptacle_type(identifier) for identifier in plan_places(room))
        for type_ in RECEPTACLE_TYPES.intersection(plan_types(room)):
            without = max(0, present[type_] - named[type_])
            self._unnamed[kind_of(room)][type_][bool(named[type_]), without] += 1

    def result(self, source: str) -> dict[str, Any]:
        """The content of `learned.json`."""
        return {
            "source": source,
            "games": self.games,
            "counts": _each(self._counts, _histogram),
            "rates": {
                kind: {
                    thing: {
                        place: round(n / self._chances[kind][thing][place], 4)
                        for place, n in sorted(held.items())
                    }
                    for thing, held in sorted(things.items())
                }
                for kind, things in sorted(self._held.items())
            },
            "unnamed": _each(
                self._unnamed,
                lambda counts: [
                    _histogram({n: games for (named, n), games in counts.items() if named == some})
                    for some in (False, True)
                ],
            ),
            "goals": _each(self._goals, lambda counts: dict(sorted(counts.items()))),
            "pickupable": sorted(self._pickupable),
        }


def _table() -> Table:
    return defaultdict(lambda: defaultdict(Counter))


def _each(table: Table, summary: Any) -> dict[str, dict[str, Any]]:
    return {
        first: {second: summary(counts) for second, counts in sorted(row.items())}
        for first, row in sorted(table.items())
    }


def _histogram(counts: dict[int, int]) -> list[int]:
    return [counts.get(n, 0) for n in range(max(counts, default=-1) + 1)]


def main(directory: Path, output: Path) -> None:
    """Learn from the train split in `directory`.

    Raises:
        DataError: there are no games in it.
    """
    index = GameIndex.open(directory)
    learner = _Learner()
    for game in index.select(Split.TRAIN):
        path = index.path(game)
        trajectory = orjson.loads(path.with_name("traj_data.json").read_bytes())
        learner.add(trajectory, orjson.loads(path.read_bytes())["pddl_problem"])
    if not learner.games:
        raise DataError(f"no games of the train split in {directory}")
    source = (
        "Frequencies in the train split of the published ALFWorld games (json_2.1.1, MIT licence), "
        "by python -m services.env.games.generate.learn"
    )
    output.write_bytes(orjson.dumps(learner.result(source)) + b"\n")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(__file__).with_name("learned.json"))
    except IndexError:
        sys.exit("usage: python -m services.env.games.generate.learn DIR")
    except DataError as error:
        sys.exit(str(error))
