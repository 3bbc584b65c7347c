"""Plays games in the compiled engine and in TextWorld in lock step, and reports any difference.

`agentprm games check` runs it. TextWorld is the judge. The commands are a seeded mix: what leads to
the goal, possible ones with the rare verbs preferred, and nonsense; play goes on after a game is
won.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from services.env.alfworld import GAME_FILE
from services.env.engine.compiled import CompiledGame, CompiledState, GameFileError
from services.env.engine.players import choose

T = TypeVar("T")

_RECYCLE = 50
"""Games that one process plays: TextWorld keeps about a megabyte of each."""


@dataclass
class Episode:
    """One game played in both engines; times in seconds, of one reset and of each step."""

    game: str
    steps: int = 0
    won: bool = False
    mismatch: dict[str, Any] | None = None
    reset: tuple[float, float] = (0.0, 0.0)
    step: tuple[float, float] = (0.0, 0.0)


@dataclass
class Report:
    """What was compared. The speed-ups are ratios of medians, TextWorld's to the compiled."""

    games: int = 0
    steps: int = 0
    won: int = 0
    mismatches: int = 0
    first_mismatch: dict[str, Any] | None = None
    reset_speedup: float = 0.0
    step_speedup: float = 0.0


@dataclass
class Seen:
    """What an engine shows after a command."""

    observation: str
    admissible: list[str] = field(repr=False)
    reward: float
    done: bool
    won: bool


class Reference:
    """TextWorld, one game at a time."""

    def __init__(self) -> None:
        import textworld
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from textworld.envs.pddl import PddlEnv

        infos = textworld.EnvInfos(won=True, admissible_commands=True)
        self._env = AlfredDemangler(PddlEnv(infos))

    def load(self, game: Path) -> None:
        """Read a game file."""
        self._env.load(str(game))

    def reset(self) -> Seen:
        """Begin the game."""
        state = self._env.reset()
        return self._seen(state, state["won"], state["won"])

    def step(self, command: str) -> Seen:
        """Play a command."""
        return self._seen(*self._env.step(command))

    def facts(self) -> list[tuple[str, ...]]:
        """What is true now, as predicates of raw ids."""
        return [(x.name, *(y.name for y in x.arguments)) for x in self._env.state["_facts"]]

    def _seen(self, state: Any, reward: float, done: bool) -> Seen:
        return Seen(
            state["feedback"], state["admissible_commands"], float(reward), done, state["won"]
        )


def check(games: Iterable[Path], *, steps: int, seed: int, log: Path | None = None) -> Report:
    """Play `steps` commands of each game in both engines, one game at a time.

    `log` gets a line a game; games that it names already are not played again but counted.
    """
    names = [str(game) for game in games]
    known = _read(log)
    episodes = [known[name] for name in names if name in known]
    todo = [name for name in names if name not in known]
    play_one = partial(_play, steps=steps, seed=seed)
    for start in range(0, len(todo), _RECYCLE):
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            for episode in process.map(play_one, todo[start : start + _RECYCLE]):
                episodes.append(episode)
                if log is not None:
                    with log.open("a") as file:
                        file.write(json.dumps(asdict(episode)) + "\n")
    return _report(episodes)


def _play(game: str, steps: int, seed: int) -> Episode:
    path = Path(game)
    name = "/".join(path.parts[-3:-1])
    return play(_reference(), path, steps, random.Random(f"{seed} {name}"))


@cache
def _reference() -> Reference:
    return Reference()


def play(reference: Reference, game: Path, steps: int, rng: random.Random) -> Episode:
    """One episode, ended early by a mismatch. A game that is refused is one, too."""
    episode = Episode(str(game))
    try:
        compiled = CompiledGame.parse(game)
    except GameFileError as error:
        episode.mismatch = {"game": str(game), "step": 0, "field": "file", "actual": str(error)}
        return episode
    reference.load(game)
    expected, slow = _timed(reference.reset)
    (state, actual), fast = _timed(lambda: _begin(compiled))
    episode.reset = slow, fast
    command = ""
    times: list[tuple[float, float]] = []
    while (difference := _difference(expected, actual)) is None and episode.steps < steps:
        command = choose(state, steps - episode.steps, rng)
        expected, slow = _timed(lambda: reference.step(command))  # noqa: B023
        actual, fast = _timed(lambda: _step(state, command))  # noqa: B023
        times.append((slow, fast))
        episode.steps += 1
        episode.won = episode.won or expected.won
    if difference is not None:
        episode.mismatch = {
            "game": str(game),
            "step": episode.steps,
            "command": command,
            **difference,
        }
    if times:
        episode.step = median(x for x, _ in times), median(x for _, x in times)
    return episode


def _begin(game: CompiledGame) -> tuple[CompiledState, Seen]:
    state = game.reset()
    return state, _look(state)


def _step(state: CompiledState, command: str) -> Seen:
    state.step(command)
    return _look(state)


def _look(state: CompiledState) -> Seen:
    return Seen(state.observation, state.admissible, state.reward, state.done, state.won)


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def _difference(expected: Seen, actual: Seen) -> dict[str, Any] | None:
    for name, value in asdict(expected).items():
        if getattr(actual, name) != value:
            return {"field": name, "expected": value, "actual": getattr(actual, name)}
    return None


def _read(log: Path | None) -> dict[str, Episode]:
    if log is None or not log.exists():
        return {}
    episodes = (Episode(**json.loads(line)) for line in log.read_text().splitlines())
    return {episode.game: episode for episode in episodes}


def _report(episodes: Sequence[Episode]) -> Report:
    found = [episode.mismatch for episode in episodes if episode.mismatch]
    return Report(
        games=len(episodes),
        steps=sum(episode.steps for episode in episodes),
        won=sum(episode.won for episode in episodes),
        mismatches=len(found),
        first_mismatch=found[0] if found else None,
        reset_speedup=_speedup([episode.reset for episode in episodes if episode.reset[1]]),
        step_speedup=_speedup([episode.step for episode in episodes if episode.steps]),
    )


def _speedup(times: Sequence[Sequence[float]]) -> float:
    if not times:
        return 0.0
    return round(median(x for x, _ in times) / median(x for _, x in times), 1)


def sample(directory: Path, split: str | None, episodes: int | None, seed: int) -> list[Path]:
    """Games below a directory that ALFWorld would load, of a split, in an order drawn by seed."""
    found = sorted(
        path
        for path in directory.rglob(GAME_FILE)
        if (split is None or split in path.parts)
        and "movable" not in str(path)
        and "Sliced" not in str(path)
    )
    random.Random(seed).shuffle(found)
    return found[:episodes]
