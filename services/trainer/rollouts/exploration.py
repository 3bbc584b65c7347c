"""Exploration (section 4.1): how the rollouts of an iteration begin, and what the policy reads.

Every rollout is played to its end by π_i, and has targets from its start on; so whoever chose the
start, the targets are those of π_i. (Only steered rollouts are of another policy: π_i with a hint.)
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from agentprm.config import Exploration
from agentprm.protocol import Episode, Game, RolloutJob, Sampling, Start
from agentprm.runs import DEMONSTRATIONS, rollouts_stage
from services.trainer.rollouts.collect import Collector, NoGames
from services.trainer.rollouts.vine import Place, reachable
from services.trainer.seeds import derive, shuffled

EXPLORER = "explorer/0"
"""The policy that reads where things are."""
EXPLORER_DEMONSTRATIONS = "explorer-demonstrations"
"""The stage in which the expert plays for it."""

Way = Literal["plain", "reset", "steered", "posterior"]


_NO_START = Start()


@dataclass(frozen=True)
class Beginning:
    """How a rollout begins."""

    way: Way
    game: Game
    start: Start = _NO_START
    hint: str = ""


def begin(
    collector: Collector, plan: Exploration, i: int, games: Sequence[Game], sampling: Sampling
) -> list[Beginning]:
    """The beginnings of π_i's rollouts, one for each of `games`; the explorer plays first.

    Raises:
        JobsFailed, QueueError, ServiceError: as `Collector.collect`, of the explorer.
        NoGames: rollouts are to begin in won episodes, and there are none.
    """
    seed = derive(collector.seed, rollouts_stage(i), "exploration")
    ways = deal(plan, len(games), seed)
    resets = Resets(_earlier(collector, i) if plan.reset else [], collector.max_steps, seed)
    explored = _explored(collector, i, _of(ways, games, "posterior"), sampling)
    beginnings = []
    for n, (way, game) in enumerate(zip(ways, games, strict=True)):
        rng = random.Random(derive(seed, n))
        if way == "reset":
            beginnings.append(resets.beginning(game, rng))
        elif way == "posterior":
            beginnings.append(led(next(explored), rng))
        elif way == "steered" and plan.steered:
            hint = rng.choice(plan.steered.strategies)
            beginnings.append(Beginning(way, game, hint=hint))
        else:
            beginnings.append(Beginning(way, game))
    return beginnings


def deal(plan: Exploration, count: int, seed: int) -> list[Way]:
    """How each of `count` rollouts begins: every way has its share, and the order is random."""
    ways: list[Way] = []
    if plan.reset:
        ways += ["reset"] * round(plan.reset.fraction * count)
    if plan.steered:
        ways += ["steered"] * round(plan.steered.fraction * count)
    if plan.posterior:
        ways += ["posterior"] * round(plan.posterior.fraction * count)
    ways = ways[:count]  # several halves may have been rounded up
    ways += ["plain"] * (count - len(ways))
    return shuffled(ways, derive(seed, "ways"))


def rollout_jobs(
    collector: Collector,
    stage: str,
    beginnings: Sequence[Beginning],
    policy: str,
    sampling: Sampling,
    *,
    labelled: bool = False,
) -> list[RolloutJob]:
    """The jobs of the stage: `policy` plays each beginning to its end."""
    starts = [beginning.start for beginning in beginnings]
    hints = [beginning.hint for beginning in beginnings]
    return collector.jobs(
        stage,
        [beginning.game for beginning in beginnings],
        starts=starts if any(start != _NO_START for start in starts) else None,
        hints=hints if any(hints) else None,
        policy=policy,
        sampling=sampling,
        labelled=labelled,
    )


class Resets:
    """States of good coverage: those of the won ones among `episodes`, by their game.

    An episode from elsewhere may be longer than `max_steps`, the most turns of one played here.
    """

    def __init__(self, episodes: Sequence[Episode], max_steps: int, seed: int) -> None:
        self._seed = seed
        self._games: defaultdict[str, list[Place]] = defaultdict(list)
        for episode in episodes:
            later = [t for t in reachable(episode) if 0 < t < max_steps]
            if episode.won and later:
                self._games[episode.game.id] += [Place(episode, t) for t in later]

    def beginning(self, game: Game, rng: random.Random) -> Beginning:
        """In a state of a won episode of `game`, later than its first.

        Where there is none, another game that has one takes the place of `game`, and the same one
        in all its rollouts.

        Raises:
            NoGames: no game has one.
        """
        if not self._games:
            raise NoGames("no won episode with two turns for rollouts to begin in")
        name = game.id
        if name not in self._games:
            name = random.Random(derive(self._seed, "instead", name)).choice(sorted(self._games))
        place = rng.choice(self._games[name])
        return Beginning("reset", place.episode.game, place.start())


def led(episode: Episode, rng: random.Random) -> Beginning:
    """The turns of the explorer's episode up to a random one, which is the first with a target.

    So its target is Q^π(s, a) of the explorer's state and action: π_i goes on from there. The
    explorer's reasons may tell what it knew; the player has π_i give its own. A game that the
    explorer gave up at once is π_i's from its beginning.
    """
    if not episode.turns:
        return Beginning("posterior", episode.game)
    t = rng.choice(reachable(episode))
    start = Start(turns=episode.turns[:t], action=episode.turns[t].action, rationalise=True)
    return Beginning("posterior", episode.game, start)


def success_by_way(
    beginnings: Sequence[Beginning], episodes: Sequence[Episode]
) -> dict[str, float]:
    """Share of the rollouts that were won, for each way in which they began."""
    won: defaultdict[Way, list[bool]] = defaultdict(list)
    for beginning, episode in zip(beginnings, episodes, strict=True):
        won[beginning.way].append(episode.won)
    return {f"won_{way}": sum(results) / len(results) for way, results in sorted(won.items())}


def _earlier(collector: Collector, i: int) -> list[Episode]:
    """The demonstrations, and the rollouts before those of π_i."""
    records = collector.records
    return [*records.episodes(DEMONSTRATIONS), *records.rollouts(*range(i))]


def _explored(
    collector: Collector, i: int, games: Sequence[Game], sampling: Sampling
) -> Iterator[Episode]:
    """The explorer plays each of `games`."""
    if not games:
        return iter(())
    stage = f"pi_{i}-explorer"
    jobs = collector.jobs(stage, games, policy=EXPLORER, sampling=sampling, privileged=True)
    collector.collect(stage, jobs, f"the explorer plays {len(games)} games")
    return iter(collector.records.episodes(stage))


def _of(ways: Sequence[Way], games: Sequence[Game], wanted: Way) -> list[Game]:
    return [game for way, game in zip(ways, games, strict=True) if way == wanted]
