"""Look-ahead for games in play: plan, do the first action, and plan anew in the next turn."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from agentprm.protocol import MAX_BATCH, ActResponse, Candidate, Lookahead, Session, State, Turn
from services.rollout.planning.model import H, Model
from services.rollout.planning.search import Choice, search

Act = Callable[[list[State], int, int], ActResponse]
"""The policy with the PRM: takes states, samples of each, and a seed."""


def look_ahead(
    games: Sequence[tuple[Session, Sequence[Turn]]],
    plan: Lookahead,
    model: Model[H],
    act: Act,
    seed: int,
) -> tuple[list[Choice], ActResponse]:
    """The best action in each game, and the answer that has the candidates, with its versions.

    The root is sampled with `seed`, as Best-of-N would be: depth 1 chooses as Best-of-N does.
    """
    answers: list[ActResponse] = []

    def expand(states: Sequence[State], n: int, level: int) -> list[list[Candidate]]:
        first = random.Random(f"{seed}/{level}").getrandbits(31) if level else seed
        batches = [
            act(list(states[k : k + MAX_BATCH]), n, (first + k) % 2**31)
            for k in range(0, len(states), MAX_BATCH)
        ]
        answers.extend(batches)
        return [result.candidates for answer in batches for result in answer.results]

    try:
        roots = [model.root(session, turns) for session, turns in games]
        choices = search(roots, model, expand, plan)
    finally:
        model.forget()
    return choices, answers[0]
