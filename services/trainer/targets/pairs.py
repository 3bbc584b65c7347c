"""Preference pairs of a relative PRM: two actions in one state whose Q̂ differ (section 2.3)."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from agentprm.protocol import Action, Episode
from services.trainer.targets.monte_carlo import keys


@dataclass(frozen=True)
class Pair:
    """Two actions in state t of an episode, of which the first has the higher Q̂.

    `state` names that state (see `monte_carlo.keys`).
    """

    state: bytes
    episode: int
    t: int
    chosen: Action
    rejected: Action


@dataclass(frozen=True)
class Pairs:
    """The pairs that tell two actions apart, and what there is beside them."""

    pairs: list[Pair]
    states: int
    """Distinct states that were visited."""
    one_action: int
    """Those in which only one action was ever taken: they leave nothing to compare."""
    no_pair: int
    """Those with several actions, all of them too close together."""
    discarded: int
    """Pairs of two actions in one state whose Q̂ differ by less than the margin."""

    @property
    def counts(self) -> dict[str, float]:
        """The numbers, for metrics and progress."""
        return {
            "states": float(self.states),
            "states_with_one_action": float(self.one_action),
            "states_without_pair": float(self.no_pair),
            "pairs": float(len(self.pairs)),
            "discarded_pairs": float(self.discarded),
        }


def preference_pairs(
    episodes: Sequence[Episode], targets: Sequence[Sequence[float]], margin: float
) -> Pairs:
    """All pairs of two actions in one state with Q̂(s, a) − Q̂(s, a') ≥ `margin`.

    `targets[i][t]` is Q̂ of turn t of episode i; states and actions are told apart as they are
    there (see `monte_carlo_targets`). Turns before an episode's start are no visits.
    """

    def q(visit: tuple[int, int]) -> float:
        """Q̂ of turn t of episode i."""
        i, t = visit
        return targets[i][t]

    visits: dict[bytes, dict[bytes, tuple[int, int]]] = defaultdict(dict)
    for i, episode in enumerate(episodes):
        for t, (state, action) in enumerate(keys(episode)):
            if t >= episode.start:
                visits[state].setdefault(action, (i, t))
    pairs: list[Pair] = []
    one_action = no_pair = discarded = 0
    for state, actions in visits.items():
        one_action += len(actions) == 1
        found = []
        for two in itertools.combinations(actions.values(), 2):
            worse, better = sorted(two, key=q)
            if q(better) - q(worse) < margin:
                discarded += 1
                continue
            (i, t), (j, u) = better, worse
            chosen, rejected = episodes[i].turns[t].action, episodes[j].turns[u].action
            found.append(Pair(state, i, t, chosen, rejected))
        no_pair += len(actions) > 1 and not found
        pairs += found
    return Pairs(pairs, len(visits), one_action, no_pair, discarded)
