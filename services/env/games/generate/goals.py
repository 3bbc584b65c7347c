"""What is asked: task types in the mix of the real train split, pairs of object and target."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from alfworld.gen.goal_library import gdict

from services.env.alfworld import LIGHT, PLACE_TYPES
from services.env.games.generate.learned import learned
from services.env.games.generate.rooms import Room

_TWO = PLACE_TYPES[2, None]


@dataclass(frozen=True)
class Goal:
    """A task type with its parameters."""

    task_type: str
    thing: str
    target: str
    """A receptacle type; a lamp where one is to look at the thing in its light."""

    @property
    def things(self) -> int:
        """How many of the thing it takes."""
        return 2 if self.task_type == _TWO else 1

    @property
    def parent(self) -> str:
        """The receptacle type, if any."""
        return "" if self.task_type == LIGHT else self.target

    @property
    def toggle(self) -> str:
        """The lamp, if any."""
        return self.target if self.task_type == LIGHT else ""

    def sentence(self, rng: random.Random) -> str:
        """One of alfworld's templates, filled in as its generator does."""
        template: str = rng.choice(gdict[self.task_type]["templates"])
        return template.format(
            obj=self.thing.lower(), recep=self.parent.lower(), toggle=self.toggle.lower(), mrecep=""
        )

    @property
    def pddl(self) -> str:
        """The `:goal` section, which also ends the problem."""
        template: str = gdict[self.task_type]["pddl"]
        filled = template.format(obj=self.thing, recep=self.parent, toggle=self.toggle, mrecep="")
        return filled.replace("#", "-")


class Goals:
    """The goals that some of the rooms can pose, as often as in the real train split."""

    def __init__(self, rooms: Sequence[Room]) -> None:
        self._choices: dict[str, tuple[list[tuple[Goal, list[Room]]], list[int]]] = {}
        for task_type, by_kind in learned().goals.items():
            goals: list[tuple[Goal, list[Room]]] = []
            weights: list[int] = []
            for kind, pairs in by_kind.items():
                for pair, games in pairs.items():
                    goal = Goal(task_type, *pair.split())
                    fitting = [room for room in rooms if room.kind == kind and _poses(room, goal)]
                    if fitting:
                        goals.append((goal, fitting))
                        weights.append(games)
            self._choices[task_type] = goals, weights

    def draw(self, task_type: str, rng: random.Random) -> tuple[Goal, Room]:
        """A goal of the type, and a room for it."""
        goals, weights = self._choices[task_type]
        goal, rooms = rng.choices(goals, weights)[0]
        return goal, rng.choice(rooms)


def task_mix(count: int, rng: random.Random) -> list[str]:
    """`count` task types in random order, in the shares of the real train split."""
    table = learned()
    shares = {
        task_type: count * sum(sum(pairs.values()) for pairs in by_kind.values()) / table.games
        for task_type, by_kind in table.goals.items()
    }
    mix = [task_type for task_type, share in shares.items() for _ in range(int(share))]
    by_remainder = sorted(shares, key=lambda task_type: shares[task_type] % 1, reverse=True)
    mix += by_remainder[: count - len(mix)]
    rng.shuffle(mix)
    return mix


def _poses(room: Room, goal: Goal) -> bool:
    types = {receptacle.type for receptacle in room.receptacles} | set(room.objects)
    return {goal.thing, goal.target} <= types
