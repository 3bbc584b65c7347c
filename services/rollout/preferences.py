"""What the candidates of a state are worth to a policy update: a preference, or a group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agentprm.protocol import (
    ActResponse,
    ActResult,
    Group,
    Preference,
    PreferenceJob,
    State,
)


@dataclass(frozen=True)
class Scored:
    """The candidates of a state, and the answer that they came in, which tells the versions."""

    result: ActResult
    answer: ActResponse


def preferences(job: PreferenceJob, found: Sequence[Scored | None]) -> list[Preference]:
    """The pairs of those states whose scores tell their candidates apart.

    `found` has the candidates of each of the job's states, None of one that gave none.
    """
    pairs = (
        _best_against_worst(job, i, state, scored.result, scored.answer)
        for i, state, scored in _with_candidates(job, found)
    )
    return [pair for pair in pairs if pair]


def groups(job: PreferenceJob, found: Sequence[Scored | None]) -> list[Group]:
    """All candidates of each state whose candidates were all scored; see `preferences`."""
    made = (
        _group(job, i, state, scored.result, scored.answer)
        for i, state, scored in _with_candidates(job, found)
    )
    return [group for group in made if group]


def _with_candidates(
    job: PreferenceJob, found: Sequence[Scored | None]
) -> Iterator[tuple[int, State, Scored]]:
    """The states that have candidates, each with its place in the job."""
    for i, (state, scored) in enumerate(zip(job.states, found, strict=True)):
        if scored is not None:
            yield i, state, scored


def _best_against_worst(
    job: PreferenceJob, i: int, state: State, result: ActResult, answer: ActResponse
) -> Preference | None:
    """The pair that state i gives, if its scores tell its candidates apart, or the tie."""
    scored = [(c.q, c.action) for c in result.candidates if c.q is not None]
    if len(scored) < len(result.candidates):
        return None
    best_q, best = max(scored, key=lambda pair: pair[0])
    worst_q, worst = min(scored, key=lambda pair: pair[0])
    if best_q == worst_q or (job.ties and best_q - worst_q < job.margin):
        if not job.ties:
            return None
        # Candidates are in the order in which they were drawn.
        best_q, best = worst_q, worst = scored[0]
    return Preference(
        id=f"{job.id}/{i}",
        job_id=job.id,
        attempt=job.attempt,
        state=state,
        chosen=best,
        rejected=worst,
        chosen_q=best_q,
        rejected_q=worst_q,
        policy_version=answer.policy_version,
        prm_version=job.prm_version,
        template_hash=answer.template_hash,
    )


def _group(
    job: PreferenceJob, i: int, state: State, result: ActResult, answer: ActResponse
) -> Group | None:
    """All candidates of state i, if all were scored."""
    if any(candidate.q is None for candidate in result.candidates):
        return None
    return Group(
        id=f"{job.id}/{i}",
        job_id=job.id,
        attempt=job.attempt,
        state=state,
        candidates=tuple(result.candidates),
        chosen=result.chosen,
        policy_version=answer.policy_version,
        prm_version=job.prm_version,
        template_hash=answer.template_hash,
    )
