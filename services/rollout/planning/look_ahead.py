"""Look-ahead for games in play: plan, do the first action, and plan anew in the next turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from agentprm.protocol import (
    MAX_BATCH,
    ActResponse,
    Candidate,
    Lookahead,
    Session,
    State,
    Turn,
)
from services.rollout.halves import those_that_fit
from services.rollout.planning.model import H, Model
from services.rollout.planning.search import Choice, search
from services.rollout.policy import seed_for

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
        ServiceError: `CONTEXT_TOO_LONG`, a root is; or what `act` and `model` raise.
        ValueError: as `search`.
    """
    answers: list[ActResponse] = []

    def ask(states: Sequence[State], half: str, *, n: int, seed: int) -> list[list[Candidate]]:
        answer = act(list(states), n, seed_for(seed, half.removeprefix("/")) if half else seed)
        answers.append(answer)
        return [result.candidates for result in answer.results]

    def expand(states: Sequence[State], n: int, level: int) -> list[list[Candidate]]:
        first = seed_for(seed, level) if level else seed
        found: list[list[Candidate]] = []
        for k in range(0, len(states), MAX_BATCH):
            some = states[k : k + MAX_BATCH]
            ask_some = partial(ask, n=n, seed=(first + k) % 2**31)
            if level:
                found += [candidates or [] for candidates in those_that_fit(some, ask_some)]
            else:  # a root that is too long is for the caller to give up
                found += ask_some(some, "")
        return found

    try:
        roots = [model.root(session, turns) for session, turns in games]
        choices = search(roots, model, expand, plan)
    finally:
        model.forget()
    return choices, answers[0]
