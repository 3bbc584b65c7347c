"""Which of the N samples of a state is played where no PRM says so: controls for Best-of-N."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from agentprm.protocol import Candidate


def majority(candidates: Sequence[Candidate]) -> Candidate:
    """Self-consistency (Wang et al. 2022): the command that most samples end in.

    Samples that give other reasons for one command vote for it together; an answer without a
    command is no vote. Of the candidates with as many votes, one is taken as Best-of-N does where
    Q is equal: the one drawn more often, then the likelier, then the earlier.
    """
    votes: Counter[str] = Counter()
    for candidate in candidates:
        if candidate.action.command:
            votes[candidate.action.command] += candidate.count

    def order(candidate: Candidate) -> tuple[int, int, float]:
        return (-votes[candidate.action.command], -candidate.count, -candidate.log_prob)

    return min(candidates, key=order)


def by_chance(candidates: Sequence[Candidate], seed: str) -> Candidate:
    """The best by a PRM that knows nothing: each distinct action gets its Q by chance."""
    return random.Random(seed).choice(candidates)
