"""Look-ahead for games in play: plan, do the first action, and plan anew in the next turn."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from agentprm.calls import ServiceError
from agentprm.protocol import (
    CONTEXT_TOO_LONG,
    MAX_BATCH,
    ActResponse,
    Candidate,
    Lookahead,
    Session,
    State,
    Turn,
)
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

    The root is sampled with `seed`, as Best-of-N would be: depth 1 chooses as Best-of-N does. A
    state of the tree that is too long for the policy has no candidates.

    Raises:
        ServiceError: `CONTEXT_TOO_LONG`, a root is.
    """
    answers: list[ActResponse] = []

    def ask(states: list[State], n: int, seed: int) -> list[list[Candidate]]:
        answer = act(states, n, seed)
        answers.append(answer)
        return [result.candidates for result in answer.results]

    def expand(states: Sequence[State], n: int, level: int) -> list[list[Candidate]]:
        first = random.Random(f"{seed}/{level}").getrandbits(31) if level else seed
        found: list[list[Candidate]] = []
        for k in range(0, len(states), MAX_BATCH):
            some, drawn = list(states[k : k + MAX_BATCH]), (first + k) % 2**31
            found += _expand_those_that_fit(ask, some, n, drawn) if level else ask(some, n, drawn)
        return found

    try:
        roots = [model.root(session, turns) for session, turns in games]
        choices = search(roots, model, expand, plan)
    finally:
        model.forget()
    return choices, answers[0]


def _expand_those_that_fit(
    ask: Callable[[list[State], int, int], list[list[Candidate]]],
    states: list[State],
    n: int,
    seed: int,
) -> list[list[Candidate]]:
    """The candidates in each state, asked for in halves where one of the states is too long."""
    try:
        return ask(states, n, seed)
    except ServiceError as error:
        if error.title != CONTEXT_TOO_LONG:
            raise
    if len(states) == 1:
        return [[]]
    half = len(states) // 2
    return [
        *_expand_those_that_fit(ask, states[:half], n, seed),
        *_expand_those_that_fit(ask, states[half:], n, (seed + half) % 2**31),
    ]
