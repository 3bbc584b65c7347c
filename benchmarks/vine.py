"""Error of Q̂(s, a) from whole rollouts and from vine rollouts, at equal numbers of env steps.

    python -m benchmarks.vine --games $ALFWORLD_DATA

A fixed policy needs no model: with a probability of --skill it plays towards the goal, else any
admissible command. It plays each game --rollouts times; these steps are given to both estimators.
At --states states of those rollouts, the recorded action and another one of the policy's make the
pairs (s, a) that are asked about. Then vine rollouts play K continuations of each pair, and the
plain estimator as many steps more from the games' beginning. Forked, a session is at its state at
once; replayed, the commands that lead there count as steps.

The truth is the mean over --truth continuations, and its own variance is subtracted from the mean
squared errors. The plain estimator says nothing of a pair that no rollout visited: its error is
over the others, and beside it stands the error of vine rollouts on the same pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count, cycle
from pathlib import Path
from statistics import fmean, stdev

from agentprm.protocol import Action, Episode, Game, Provenance, Split, Turn
from benchmarks.conditions import conditions_now
from services.env.engine.check import sample
from services.env.engine.compiled import CompiledGame, CompiledState
from services.env.engine.compiled.solver import next_command
from services.trainer.rollouts.vine import Place, sample_places
from services.trainer.targets.monte_carlo import discounted_returns, keys, monte_carlo_targets

PROVENANCE = Provenance(engine="compiled", package_version="", data_version="", template_hash="")
DRAWS = 8
"""Samples of the policy among which another action than the recorded one is looked for."""


@dataclass(frozen=True)
class Policy:
    """With a probability of `skill` a command towards the goal, else any admissible one."""

    skill: float

    def act(self, state: CompiledState, rng: random.Random) -> str:
        known = next_command(state) if rng.random() < self.skill else None
        return known or rng.choice(state.admissible)


@dataclass(frozen=True)
class Pair:
    """A state and an action: `state` is in play, `turns` led there."""

    name: bytes
    game: str
    turns: tuple[Turn, ...]
    state: CompiledState
    command: str


@dataclass
class Result:
    """Means over pairs. `plain` has an estimate of `covered` of them, `vine` of all.

    The `standard_error` is that of the difference of the squared errors on the covered pairs.
    """

    continuations: int
    count: str
    steps: int
    pairs: int
    covered: int
    plain_error: float
    vine_error: float
    vine_error_all: float
    standard_error: float
    plain_bias: float
    vine_bias: float


class Bench:
    """The games, the policy, and the generator of all that is random."""

    def __init__(self, paths: Sequence[Path], policy: Policy, args: argparse.Namespace) -> None:
        self.games = {f"train/{k}": CompiledGame.parse(path) for k, path in enumerate(paths)}
        self.policy = policy
        self.rng = random.Random(args.seed)
        self.horizon: int = args.max_steps
        self.gamma: float = args.gamma

    def episode(
        self, game: str, state: CompiledState, turns: Sequence[Turn] = (), first: str | None = None
    ) -> Episode:
        """The policy plays from `state`, which the game reached by `turns`, to the end."""
        played = list(turns)
        while not state.done and len(played) < self.horizon:
            command = first if first and len(played) == len(turns) else None
            command = command or self.policy.act(state, self.rng)
            observation, admissible = state.observation, tuple(state.admissible)
            state.step(command)
            played.append(
                Turn(
                    observation=observation,
                    admissible=admissible,
                    action=Action(command=command),
                    reward=state.reward,
                    policy_version="fixed",
                )
            )
        return Episode(
            id="",
            job_id="",
            game=Game(id=game, split=Split.TRAIN, task_type="", task=""),
            seed=0,
            start=len(turns),
            turns=tuple(played),
            final_observation=state.observation,
            won=state.won,
            provenance=PROVENANCE,
        )

    def rollout(self, game: str) -> Episode:
        return self.episode(game, self.games[game].reset())

    def continuation(self, pair: Pair) -> Episode:
        return self.episode(pair.game, pair.state.fork(), pair.turns, pair.command)

    def pairs(self, place: Place) -> list[Pair]:
        """The recorded action, and another of the policy's where it has one."""
        game = place.episode.game.id
        turns = place.episode.turns[: place.t]
        state = self.games[game].reset()
        for turn in turns:
            state.step(turn.action.command)
        recorded = place.recorded.command
        drawn = [self.policy.act(state, self.rng) for _ in range(DRAWS)]
        others = [command for command in drawn if command != recorded][:1]
        found = []
        for command in [recorded, *others]:
            after = self.episode(game, state.fork(), turns, command)
            found.append(Pair(list(keys(after))[place.t][1], game, turns, state, command))
        return found

    def estimates(self, episodes: Sequence[Episode]) -> dict[bytes, float]:
        """Q̂ of every (s, a) that was visited (eq. 1)."""
        targets = monte_carlo_targets(episodes, self.gamma)
        return {
            pair: value
            for episode, values in zip(episodes, targets, strict=True)
            for (_, pair), value in list(zip(keys(episode), values, strict=True))[episode.start :]
        }

    def truth(self, pair: Pair, number: int) -> tuple[float, float]:
        """The mean return of (s, a), and the variance of that mean."""
        returns = []
        for _ in range(number):
            rewards = [turn.reward for turn in self.continuation(pair).turns]
            returns.append(discounted_returns(rewards, self.gamma)[len(pair.turns)])
        return fmean(returns), stdev(returns) ** 2 / number


def compare(
    plain: Mapping[bytes, float],
    vine: Mapping[bytes, float],
    truth: Mapping[bytes, tuple[float, float]],
    continuations: int,
    how: str,
    steps: int,
) -> Result:
    def squared(found: Mapping[bytes, float], pair: bytes) -> float:
        mean, variance = truth[pair]
        return (found[pair] - mean) ** 2 - variance

    covered = [pair for pair in truth if pair in plain]
    differences = [squared(plain, pair) - squared(vine, pair) for pair in covered]
    return Result(
        continuations=continuations,
        count=how,
        steps=steps,
        pairs=len(truth),
        covered=len(covered),
        plain_error=fmean(squared(plain, pair) for pair in covered),
        vine_error=fmean(squared(vine, pair) for pair in covered),
        vine_error_all=fmean(squared(vine, pair) for pair in truth),
        standard_error=stdev(differences) / math.sqrt(len(covered)),
        plain_bias=fmean(plain[pair] - truth[pair][0] for pair in covered),
        vine_bias=fmean(vine[pair] - truth[pair][0] for pair in truth),
    )


def measure(args: argparse.Namespace) -> tuple[dict[str, object], list[Result]]:
    started = time.perf_counter()
    paths = sample(args.games, args.split, args.episodes, args.seed)
    bench = Bench(paths, Policy(args.skill), args)
    base = [bench.rollout(game) for game in bench.games for _ in range(args.rollouts)]
    places = sample_places(base, args.states, args.seed)
    pairs = [pair for place in places for pair in bench.pairs(place)]
    truth = {pair.name: bench.truth(pair, args.truth) for pair in pairs}
    branches = [
        [bench.continuation(pair) for pair in pairs] for _ in range(max(args.continuations))
    ]
    order = cycle(bench.games)
    more: list[Episode] = []
    results = []
    for k in sorted(args.continuations):
        vine = [episode for branch in branches[:k] for episode in branch]
        played = sum(len(episode.turns) - episode.start for episode in vine)
        replayed = sum(episode.start for episode in vine)
        found = bench.estimates([*base, *vine])
        for how, steps in (("forked", played), ("replayed", played + replayed)):
            spent = 0
            for n in count():
                if spent >= steps:
                    break
                if n == len(more):
                    more.append(bench.rollout(next(order)))
                spent += len(more[n].turns)
            plain = bench.estimates([*base, *more[:n]])
            results.append(compare(plain, found, truth, k, how, steps))
    conditions = {
        "games": len(bench.games),
        "split": args.split or "all",
        "rollouts_per_game": args.rollouts,
        "base_steps": sum(len(episode.turns) for episode in base),
        "won": round(fmean(episode.won for episode in base), 3),
        "states": len(places),
        "skill": args.skill,
        "max_steps": args.max_steps,
        "gamma": args.gamma,
        "truth": args.truth,
        "seed": args.seed,
        "seconds": round(time.perf_counter() - started, 1),
        **conditions_now(),
    }
    return conditions, results


def show(conditions: Mapping[str, object], results: Sequence[Result]) -> None:
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))
    print("mean squared error of Q̂ and, in brackets, mean error")
    print(
        f"{'K':>3} {'steps':9}{'':>8}{'covered':>10}{'plain':>18}{'vine, same pairs':>18}"
        f"{'plain - vine':>18}{'vine, all':>18}"
    )
    for r in results:
        plain = f"{r.plain_error:.4f} ({r.plain_bias:+.3f})"
        every = f"{r.vine_error_all:.4f} ({r.vine_bias:+.3f})"
        gap = f"{r.plain_error - r.vine_error:.4f} ± {r.standard_error:.4f}"
        print(
            f"{r.continuations:>3} {r.count:9}{r.steps:>8}{f'{r.covered}/{r.pairs}':>10}"
            f"{plain:>18}{r.vine_error:>18.4f}{gap:>18}{every:>18}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--games", type=Path, default=os.environ.get("ALFWORLD_DATA"))
    parser.add_argument("--split", default="train")
    parser.add_argument("--episodes", type=int, default=40, help="games")
    parser.add_argument("--rollouts", type=int, default=8, help="of each game, for both")
    parser.add_argument("--states", type=int, default=200)
    parser.add_argument("--continuations", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--truth", type=int, default=300, help="continuations for the truth")
    parser.add_argument("--skill", type=float, default=0.5)
    parser.add_argument("--max-steps", type=int, default=30)
    parser.add_argument("--gamma", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.games is None:
        parser.error("give --games or set $ALFWORLD_DATA")
    conditions, results = measure(given)
    if given.json:
        print(json.dumps({"conditions": conditions, "results": [asdict(r) for r in results]}))
    else:
        show(conditions, results)


if __name__ == "__main__":
    main()
