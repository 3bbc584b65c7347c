"""Draws games until the expert wins them, and writes them where ALFWorld would look."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import orjson
from alfworld.gen import constants

from agentprm.protocol import Split
from services.env.alfworld import GAME_FILE
from services.env.engine.compiled import CompiledGame
from services.env.games.generate.goals import Goals, task_mix
from services.env.games.generate.learned import NOWHERE, learned
from services.env.games.generate.problem import (
    domain_and_grammar,
    game_file,
    grammar,
    problem,
    trajectory_file,
)
from services.env.games.generate.rooms import rooms_of
from services.env.games.generate.scene import Scene, draw_scene
from services.env.games.index import LAYOUT
from services.env.games.placement import Placement
from services.env.games.solve import solve

STEPS = 50
"""Within so many commands the expert has to win, or another game is drawn."""
DRAWS = 100
"""So many games that the expert does not win mean that something is wrong."""


class GenerationError(Exception):
    """No game could be made that the expert wins."""


@dataclass(frozen=True)
class Written:
    """A game that was written."""

    id: str
    task_type: str
    commands: int
    """Those that the expert took."""


def generate(split: Split, count: int, seed: int, output: Path) -> Iterator[Written]:
    """Write `count` games of a split into `output`; the same arguments make the same bytes.

    The directory then has the layout that `alfworld-download` makes. Games of other seeds that are
    there stay.

    Raises:
        GenerationError: no game could be made that the expert wins.
        OSError: the directory cannot be written.
    """
    goals = Goals(rooms_of(split))
    for number, task_type in enumerate(task_mix(count, random.Random(f"{split} {seed}"))):
        yield _write_one(goals, split, task_type, seed, number, output)


def _write_one(
    goals: Goals, split: Split, task_type: str, seed: int, number: int, output: Path
) -> Written:
    trial = f"trial_T{seed:08d}_{number:06d}"
    rng = random.Random(f"{split} {seed} {number}")
    for _ in range(DRAWS):
        goal, room = goals.draw(task_type, rng)
        scene = draw_scene(room, goal, rng)
        sentence = goal.sentence(rng)
        text = problem(scene, trial)
        commands = _win(text, sentence)
        if commands:
            break
    else:
        raise GenerationError(f"{DRAWS} games of {task_type} were drawn, and the expert won none")
    name = f"{split}/{_task(scene)}/{trial}"
    directory = output / LAYOUT / name
    directory.mkdir(parents=True, exist_ok=True)
    trajectory = trajectory_file(scene, trial, sentence, seed)
    (directory / "traj_data.json").write_bytes(orjson.dumps(trajectory))
    game = game_file(text, sentence, commands)
    (directory / GAME_FILE).write_bytes(orjson.dumps(game))
    return Written(name, task_type, len(commands))


def _win(problem_text: str, sentence: str) -> list[str] | None:
    """The expert's commands; none if the game begins at its end, or the expert fails."""
    game = CompiledGame(domain_and_grammar()[0], problem_text, grammar(sentence))
    return solve(game, _placement(), seed=0, steps=STEPS)


def _task(scene: Scene) -> str:
    """The directory's name: task type, object, movable receptacle, target, room."""
    goal = scene.goal
    return f"{goal.task_type}-{goal.thing}-None-{goal.target}-{scene.room.number}"


@lru_cache(maxsize=1)
def _placement() -> Placement:
    """What the expert knows: the learned frequencies, over all kinds of rooms."""
    probability: dict[str, dict[str, float]] = {}
    for things in learned().rates.values():
        for thing, rates in things.items():
            known = probability.setdefault(thing.lower(), {})
            for receptacle, rate in rates.items():
                if receptacle != NOWHERE:
                    name = receptacle.lower()
                    known[name] = max(known.get(name, 0.0), min(1.0, rate))
    openable = frozenset(type_.lower() for type_ in constants.OPENABLE_CLASS_SET)
    return Placement(probability, openable)
