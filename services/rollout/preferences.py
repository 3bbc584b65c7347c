"""What the candidates of a state are worth to a policy update: a preference, or a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentprm.protocol import ActResponse, ActResult, Candidate, Group, Preference, PreferenceJob


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
        _best_against_worst(job, i, scored) for i, scored in enumerate(found) if scored is not None
    )
    return [pair for pair in pairs if pair is not None]


def groups(job: PreferenceJob, found: Sequence[Scored | None]) -> list[Group]:
    """All candidates of each state whose candidates were all scored; see `preferences`."""
    made = (_group(job, i, scored) for i, scored in enumerate(found) if scored is not None)
    return [group for group in made if group is not None]


def _best_against_worst(job: PreferenceJob, i: int, scored: Scored) -> Preference | None:
    """The pair that state i gives, if its scores tell its candidates apart, or the tie."""
    candidates = _in_the_format(scored.result)
    judged = [(c.q, c.action) for c in candidates if c.q is not None]
    if len(judged) < len(candidates) or not judged:
        return None
    best_q, best = max(judged, key=lambda pair: pair[0])
    worst_q, worst = min(judged, key=lambda pair: pair[0])
    if best_q == worst_q or (job.ties and best_q - worst_q < job.margin):
        if not job.ties:
            return None
        # Candidates are in the order in which they were drawn.
        best_q, best = worst_q, worst = judged[0]
    return Preference(
        id=f"{job.id}/{i}",
        job_id=job.id,
        attempt=job.attempt,
        state=job.states[i],
        chosen=best,
        rejected=worst,
        chosen_q=best_q,
        rejected_q=worst_q,
        policy_version=scored.answer.policy_version,
        prm_version=job.prm_version,
        template_hash=scored.answer.template_hash,
    )


def _group(job: PreferenceJob, i: int, scored: Scored) -> Group | None:
    """All candidates of state i, if all were scored."""
    candidates = _in_the_format(scored.result)
    q = [candidate.q for candidate in candidates if candidate.q is not None]
    if len(q) < len(candidates) or not q:
        return None
    best = scored.result.best
    return Group(
        id=f"{job.id}/{i}",
        job_id=job.id,
        attempt=job.attempt,
        state=job.states[i],
        candidates=tuple(candidates),
        chosen=candidates.index(best) if best in candidates else q.index(max(q)),
        policy_version=scored.answer.policy_version,
        prm_version=job.prm_version,
        template_hash=scored.answer.template_hash,
    )


def _in_the_format(result: ActResult) -> list[Candidate]:
    """The candidates whose text is what a fit would make of their action.

    Only free decoding draws others. A fit renders an action anew, so of them it would be of a text
    that the policy did not write.
    """
    return [candidate for candidate in result.candidates if candidate.well_formed]
