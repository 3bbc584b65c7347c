"""Targets of the PRM by Monte Carlo (eq. 1), and the split of episodes by game."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Literal

from agentprm.protocol import Episode
from services.trainer.seeds import MAX_SEED, derive

By = Literal["action", "state"]
"""What is visited: an action in a state, or a state."""


def monte_carlo_targets(episodes: Sequence[Episode], gamma: float) -> list[list[float]]:
    """Q̂(s, a): the mean, over all visits of (s, a) in all episodes, of the return from there.

    `[i][t]` is that of turn t of episode i. The return counts forward from the visit:
    Σ_{k=t}^{T-1} γ^{k-t} r_k (eq. 1). Two visits are of one (s, a) when game, history, observation
    and action agree to the letter.

    The turns before an episode's start were given to it: they are no visits, and their value is
    NaN. Where several episodes begin with one (s, a), as vine rollouts do, its mean is over them
    and over whatever other episodes came by.
    """
    return averaged(episodes, episode_returns(episodes, gamma))


def averaged(
    episodes: Sequence[Episode], values: Sequence[Sequence[float]], *, by: By = "action"
) -> list[list[float]]:
    """The mean of `values[i][t]` over all visits of (s_t, a_t), or of s_t alone.

    It is NaN for the turns before an episode's start.
    """
    visited = [
        [state if by == "state" else pair for state, pair in keys(episode)][episode.start :]
        for episode in episodes
    ]
    played = [numbers[episode.start :] for episode, numbers in zip(episodes, values, strict=True)]
    return [
        [math.nan] * episode.start + means
        for episode, means in zip(episodes, mean_of_visits(visited, played), strict=True)
    ]


def mean_of_visits(
    visited: Sequence[Sequence[bytes]], values: Sequence[Sequence[float]]
) -> list[list[float]]:
    """For each visit the mean of `values` over all visits of its name, which is `visited[i][t]`."""
    found: dict[bytes, list[float]] = defaultdict(list)
    for names, numbers in zip(visited, values, strict=True):
        for name, value in zip(names, numbers, strict=True):
            found[name].append(value)
    means = {name: sum(numbers) / len(numbers) for name, numbers in found.items()}
    return [[means[name] for name in names] for names in visited]


def episode_returns(episodes: Sequence[Episode], gamma: float) -> list[list[float]]:
    """`[i][t]`: the return of episode i from turn t on."""
    rewards = ([turn.reward for turn in episode.turns] for episode in episodes)
    return [discounted_returns(each, gamma) for each in rewards]


def discounted_returns(rewards: Sequence[float], gamma: float) -> list[float]:
    """G_t = r_t + γ G_{t+1} for every turn, with G_T = 0."""
    returns = [0.0] * (len(rewards) + 1)
    for t in reversed(range(len(rewards))):
        returns[t] = rewards[t] + gamma * returns[t + 1]
    return returns[:-1]


def split_by_game(
    episodes: Sequence[Episode], validation_fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Indices of the training and of the validation episodes. No game is on both sides.

    See `split`.
    """
    return split([episode.game.id for episode in episodes], validation_fraction, seed)


def split(
    game_of: Sequence[str], validation_fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Indices of the training and of the validation side, where item i is of game `game_of[i]`.

    A game's side follows from `seed` and its id alone: whatever else is among the episodes, it is
    the same. So about `validation_fraction` of the games validate, not exactly.

    At least one game trains; with a fraction above 0 and two games or more, one validates. Only
    where chance would leave a side empty does a game change it, the one that is nearest to it.
    """
    games = sorted(set(game_of), key=lambda game: derive(seed, game))
    wanted = sum(derive(seed, game) < validation_fraction * MAX_SEED for game in games)
    count = min(max(wanted, int(validation_fraction > 0)), max(len(games) - 1, 0))
    held_out = set(games[:count])
    sides: tuple[list[int], list[int]] = ([], [])
    for i, game in enumerate(game_of):
        sides[game in held_out].append(i)
    return sides


def keys(episode: Episode) -> Iterator[tuple[bytes, bytes]]:
    """Names for each turn's s and (s, a): a running digest, so that long histories cost nothing."""
    digest = hashlib.sha256(delimited(episode.game.id) + delimited(episode.game.task))
    for turn in episode.turns:
        digest.update(delimited(turn.observation))
        state = digest.digest()
        digest.update(delimited(turn.action.reason) + delimited(turn.action.command))
        yield state, digest.digest()


def delimited(text: str) -> bytes:
    """The text with its length before it: of two in a row the border is part of what is said."""
    content = text.encode()
    return len(content).to_bytes(4) + content
