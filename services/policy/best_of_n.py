"""Best-of-N: of the candidates that the policy drew, the one that the PRM likes best.

A missing score is never taken for 0. Whatever keeps the PRM from giving a number for every
candidate (it is down, it is busy for too long, its answer cannot be read) is `PRMUnavailableError`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from prometheus_client import Counter

from agentprm.client import AsyncPRMClient, ServiceError
from agentprm.protocol import CONTEXT_TOO_LONG, ActRequest, ActResult, Choice, ScoreRequest
from agentprm.service import ProblemError
from services.policy.engine.sampling import generator

DEGRADED = Counter(
    "agentprm_policy_degraded_total", "Requests answered with a plain sample for want of the PRM"
)

_REFUSED = (413, 422)
"""What the PRM answers where the request itself is at fault."""
_NO_PRM = "this server was started without --prm-url"


class PRMUnavailableError(ProblemError):
    """The PRM gave no score: a 503."""

    def __init__(self, detail: str) -> None:
        super().__init__(503, "PRM unavailable", detail, retry_after=1)


def require_prm(prm: AsyncPRMClient | None, *, allow_degraded: bool) -> None:
    """Refuse what nothing is there to score, before it is sampled for nothing.

    Raises:
        PRMUnavailableError: there is no PRM, and a plain sample would not do.
    """
    if prm is None and not allow_degraded:
        raise PRMUnavailableError(_NO_PRM)


async def score(prm: AsyncPRMClient | None, request: ScoreRequest) -> tuple[str, list[list[float]]]:
    """The PRM's version, and Q of every candidate: of each choice, then of each continuation.

    Raises:
        PRMUnavailableError: there is no PRM, or it does not answer with a score for each candidate.
        ProblemError: 413 or 422, it refuses what it is asked to read; `CONTEXT_TOO_LONG` where
            that is too long for it, as for the policy itself.
    """
    if prm is None:
        raise PRMUnavailableError(_NO_PRM)
    try:
        answer = await prm.score(request)
    except ServiceError as error:
        if error.status in _REFUSED:
            # Its URL, which the error names too, is nobody else's business.
            title = error.title if error.title == CONTEXT_TOO_LONG else "Refused by the PRM"
            detail = f"the PRM refused it: {error.detail}"
            raise ProblemError(error.status, title, detail) from error
        raise PRMUnavailableError(f"the PRM did not answer: {error}") from error
    asked = [len(choice.actions) for choice in request.choices]
    asked += [len(each.answers) for each in request.continuations]
    found = [*answer.choices, *answer.continuations]
    if [len(q) for q in found] != asked:
        raise PRMUnavailableError("the PRM did not score every candidate")
    return answer.prm_version, found


async def choose_best(
    prm: AsyncPRMClient | None, request: ActRequest, results: Sequence[ActResult], seed: int
) -> tuple[str, list[ActResult]]:
    """The PRM's version, and the results with every candidate's Q and the best one chosen.

    All candidates of all states are scored in one call.

    Raises:
        ProblemError: as `score`.
    """
    choices = [
        Choice(state=state, actions=[candidate.action for candidate in result.candidates])
        for state, result in zip(request.states, results, strict=True)
    ]
    version, scores = await score(prm, ScoreRequest(choices=choices))
    return version, [
        best(result, q, request.q_temperature, (seed, k), request.beta)
        for k, (result, q) in enumerate(zip(results, scores, strict=True))
    ]


def best(
    result: ActResult,
    q: Sequence[float],
    temperature: float,
    key: tuple[int, int],
    beta: float = 0.0,
) -> ActResult:
    """The result with each candidate's Q, the first by `ranking` of `regularised` Q chosen."""
    candidates = [
        candidate.model_copy(update={"q": value})
        for candidate, value in zip(result.candidates, q, strict=True)
    ]
    counts = [candidate.count for candidate in candidates]
    log_probs = [candidate.log_prob for candidate in candidates]
    chosen = ranking(regularised(q, counts, beta), counts, log_probs, temperature, key)[0]
    return ActResult(candidates=candidates, chosen=chosen)


def regularised(q: Sequence[float], counts: Sequence[int], beta: float) -> list[float]:
    """Q + β log p of each candidate, p its share of the samples: what the optimum of eq. 3, the
    policy in proportion to p exp(Q / β), finds likeliest. With β = 0 it is Q."""
    drawn = sum(counts)
    return [value + beta * math.log(n / drawn) for value, n in zip(q, counts, strict=True)]


def ranking(
    q: Sequence[float],
    counts: Sequence[int],
    log_probs: Sequence[float],
    temperature: float,
    key: tuple[int, int],
) -> list[int]:
    """All samples, the best first, each by the index of its candidate.

    A candidate appears as often as it was drawn. Samples are in the order of Q; of equals those of
    the candidate that was drawn more often come first, then the likelier, then the earlier.

    At a `temperature` above 0 they are drawn one after the other without replacement, each with a
    weight of exp(Q / temperature), from the random stream of `key`. Sorting by Q plus temperature
    times Gumbel noise is the same as those draws.
    """
    samples = [k for k, count in enumerate(counts) for _ in range(count)]
    noise = np.zeros(len(samples))
    if temperature > 0:
        noise = temperature * generator(key, 2).gumbel(size=len(samples))

    def place(sample: int) -> tuple[float, int, float, int]:
        k = samples[sample]
        return (-q[k] - float(noise[sample]), -counts[k], -log_probs[k], k)

    return [samples[sample] for sample in sorted(range(len(samples)), key=place)]
