"""Post-hoc rationalisation (section 4.1): a policy's own reasons for what another one did.

The other knew more, and may have said so in its reasons. What is to be told is the reason that the
policy would have had: a sample of p(reason | state, command), by rejection from its answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentprm.protocol import Action, ActResult, Session, Start, State, Turn, state_of
from services.rollout.halves import those_that_fit

SAMPLES = 8
"""Answers drawn in a state, in the hope that one of them takes the command."""

Ask = Callable[[Sequence[State], str], Sequence[ActResult]]
"""Draws `SAMPLES` answers in each state; takes what seeds them as well."""


def rationalised(ask: Ask, sessions: Sequence[Session], starts: Sequence[Start]) -> list[Start]:
    """The starts, `starts[k]` being where `sessions[k]` stands; where they ask for it, retold.

    Turn by turn, in a history that is retold already: of the policy's answers the first that takes
    the command lends its reason; where none takes it, the first answer. In a state that is
    too long for the policy there is no reason: that of the other is not to be told.

    Raises:
        ServiceError: what `ask` raises for another reason.
    """
    told = {
        k: _turns(start, session)
        for k, (start, session) in enumerate(zip(starts, sessions, strict=True))
        if start.rationalise
    }
    for t in range(max(map(len, told.values()), default=0)):
        live = [k for k, turns in told.items() if t < len(turns)]
        states = [state_of(sessions[k].game.task, told[k][:t], told[k][t]) for k in live]
        for k, result in zip(live, _answers(ask, states, t), strict=True):
            action = _reasoned(told[k][t].action.command, result)
            told[k][t] = told[k][t].model_copy(update={"action": action})
    return [_start(told[k], start) if k in told else start for k, start in enumerate(starts)]


def _answers(ask: Ask, states: Sequence[State], t: int) -> list[ActResult | None]:
    return those_that_fit(states, lambda some, half: ask(some, f"reason {t}{half}"))


def _turns(start: Start, session: Session) -> list[Turn]:
    """The given turns, and the one that is to be played first."""
    if start.action is None:
        return list(start.turns)
    first = Turn(
        observation=session.observation,
        admissible=tuple(session.admissible),
        action=start.action,
        policy_version="",
    )
    return [*start.turns, first]


def _start(turns: Sequence[Turn], start: Start) -> Start:
    given = len(start.turns)
    action = turns[given].action if len(turns) > given else None
    return Start(turns=tuple(turns[:given]), action=action)


def _reasoned(command: str, result: ActResult | None) -> Action:
    if result is None:
        return Action(reason="", command=command)
    actions = [candidate.action for candidate in result.candidates]
    lender = next((action for action in actions if action.command == command), actions[0])
    return Action(reason=lender.reason, command=command)
