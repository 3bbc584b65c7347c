"""Best-of-N: of the candidates in a state, the one that the PRM likes best."""

from __future__ import annotations

from collections.abc import Sequence

from agentprm.client import AsyncPRMClient, ServiceError
from agentprm.protocol import ActResult, Candidate, Choice, ScoreRequest, State
from agentprm.service import ProblemError


async def choose_best(
    prm: AsyncPRMClient | None, states: Sequence[State], results: Sequence[ActResult]
) -> tuple[str, list[ActResult]]:
    """The PRM's version, and the results with every candidate's Q and the best one chosen.

    All candidates of all states are scored in one call.

    Raises:
        ProblemError: 503, there is no PRM, or it does not answer with a score for each candidate;
            422, the PRM refuses a state. A missing score is never taken for 0.
    """
    if prm is None:
        raise ProblemError(
            503, "No PRM", "this server was started without --prm-url; ask without `prm`"
        )
    choices = [
        Choice(state=state, actions=[candidate.action for candidate in result.candidates])
        for state, result in zip(states, results, strict=True)
    ]
    try:
        answer = await prm.score(ScoreRequest(choices=choices))
    except ServiceError as error:
        if error.status == 422:
            raise ProblemError(422, "Refused by the PRM", str(error)) from error
        raise _unavailable(error) from error
    except Exception as error:
        raise _unavailable(error) from error
    if [len(q) for q in answer.choices] != [len(choice.actions) for choice in choices]:
        raise ProblemError(503, "PRM unavailable", "it did not score every candidate")
    return answer.prm_version, [
        best(result, q) for result, q in zip(results, answer.choices, strict=True)
    ]


def best(result: ActResult, q: Sequence[float]) -> ActResult:
    """The candidate of highest Q is chosen; of equals the one that was drawn more often, then the
    likelier, then the earlier.
    """
    candidates = [
        candidate.model_copy(update={"q": value})
        for candidate, value in zip(result.candidates, q, strict=True)
    ]

    def rank(index: int) -> tuple[float, int, float, int]:
        candidate: Candidate = candidates[index]
        return (q[index], candidate.count, candidate.log_prob, -index)

    return ActResult(candidates=candidates, chosen=max(range(len(candidates)), key=rank))


def _unavailable(error: Exception) -> ProblemError:
    detail = f"the PRM did not answer: {error or type(error).__name__}"
    return ProblemError(503, "PRM unavailable", detail, retry_after=1)
