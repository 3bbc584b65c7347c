"""Both ALFWorld engines on the same games and commands: time to load, reset, step; memory.

    python -m benchmarks.env --games $ALFWORLD_DATA --episodes 5 --steps 30

Every time is a median of single calls on one core, a parse with its grammar known; a reset's and
a step's include the list of admissible commands. Memory is what a session adds to its parsed game
after an episode.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from benchmarks.conditions import conditions_now
from services.env.engine.check import Reference, sample
from services.env.engine.compiled import CompiledGame, CompiledState
from services.env.engine.players import choose

T = TypeVar("T")
Times = dict[str, list[float]]
Sizes = tuple[int, int]
SESSIONS = 200


def timed(times: Times, what: str, call: Callable[[], T]) -> T:
    start = time.perf_counter()
    result = call()
    times[what].append(time.perf_counter() - start)
    return result


def begin(game: CompiledGame) -> CompiledState:
    state = game.reset()
    assert state.admissible
    return state


def step(state: CompiledState, command: str) -> None:
    state.step(command)
    assert state.admissible


def measure(games: list[Path], steps: int, seed: int) -> tuple[Times, Times, list[Sizes]]:
    """Seconds of every call in TextWorld and compiled; bytes of each game and of its sessions."""
    reference = Reference()
    textworld: Times = defaultdict(list)
    compiled: Times = defaultdict(list)
    sizes = []
    for path in games:
        game = CompiledGame.parse(path)
        for _ in range(5):
            timed(compiled, "parse", lambda: CompiledGame.parse(path))  # noqa: B023
        state = timed(compiled, "reset", lambda: begin(game))  # noqa: B023
        rng = random.Random(seed)
        commands = []
        for left in range(steps, 0, -1):
            commands.append(choose(state, left, rng))
            timed(compiled, "step", lambda: step(state, commands[-1]))  # noqa: B023
            timed(compiled, "fork", state.fork)
        timed(textworld, "parse", lambda: reference.load(path))  # noqa: B023
        timed(textworld, "reset", reference.reset)
        for command in commands:
            timed(textworld, "step", lambda: reference.step(command))  # noqa: B023
        sizes.append(memory(path, steps, seed))
    return textworld, compiled, sizes


def memory(path: Path, steps: int, seed: int) -> Sizes:
    """Bytes of a parsed game that was played many times, and of one more session of it."""

    def played(number: int) -> CompiledState:
        state, rng = begin(game), random.Random(f"{seed} {number}")
        for left in range(steps, 0, -1):
            step(state, choose(state, left, rng))
        return state

    tracemalloc.start()
    game = CompiledGame.parse(path)
    for number in range(SESSIONS):
        played(number)
    parsed, _ = tracemalloc.get_traced_memory()
    sessions = [played(number) for number in range(SESSIONS)]
    both, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return parsed, (both - parsed) // len(sessions)


def report(games: list[Path], steps: int, seed: int) -> dict[str, Any]:
    textworld, compiled, sizes = measure(games, steps, seed)
    return {
        "conditions": {
            "games": len(games),
            "steps": steps,
            "seed": seed,
            **conditions_now(),
            "textworld": version("textworld"),
            "alfworld": version("alfworld"),
        },
        "textworld_seconds": {what: median(x) for what, x in textworld.items()},
        "compiled_seconds": {what: median(x) for what, x in compiled.items()},
        "speedup": {what: median(x) / median(compiled[what]) for what, x in textworld.items()},
        "game_bytes": max(game for game, _ in sizes),
        "session_bytes": max(session for _, session in sizes),
    }


def show(found: dict[str, Any]) -> None:
    print(", ".join(f"{name} {value}" for name, value in found["conditions"].items()))
    print(f"{'':8}{'TextWorld':>14}{'compiled':>14}{'ratio':>10}")
    for what, fast in found["compiled_seconds"].items():
        slow = found["textworld_seconds"].get(what)
        beside = f"{slow * 1e3:>11.2f} ms" if slow else f"{'—':>14}"
        ratio = f"{found['speedup'][what]:>10.0f}" if slow else ""
        print(f"{what:8}{beside}{fast * 1e6:>11.1f} µs{ratio}")
    game, session = (found[name] / 1024 for name in ("game_bytes", "session_bytes"))
    print(f"at most {session:.1f} KiB a session, {game:.0f} KiB a parsed game")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--games", type=Path, default=os.environ.get("ALFWORLD_DATA"))
    parser.add_argument("--split")
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.games is None:
        parser.error("give --games or set $ALFWORLD_DATA")
    games = sample(given.games, given.split, given.episodes, given.seed)
    if not games:
        parser.error(f"no games below {given.games}")
    found = report(games, given.steps, given.seed)
    if given.json:
        print(json.dumps(found))
    else:
        show(found)


if __name__ == "__main__":
    main()
