"""What the candidates of a state are worth to the fit of a policy."""

from __future__ import annotations

from agentprm.protocol import Action, ActResponse, ActResult, Candidate, PreferenceJob, State
from services.rollout.preferences import Scored, groups, preferences

JOB = PreferenceJob(
    id="j",
    attempt="a",
    states=[State(task="sort", observation="o")],
    seed=0,
    n=4,
    prm_version="prm/0",
    ties=True,
)


def candidate(command: str, q: float | None, *, well_formed: bool = True) -> Candidate:
    action = Action(reason="r", command=command)
    return Candidate(
        text=command, action=action, log_prob=-1.0, tokens=1, q=q, well_formed=well_formed
    )


def scored(*candidates: Candidate) -> Scored:
    values = [each.q or 0.0 for each in candidates]
    result = ActResult(candidates=list(candidates), chosen=values.index(max(values)))
    answer = ActResponse(results=[result], policy_version="policy/0", template_hash="0")
    return Scored(result, answer)


def test_the_best_is_set_against_the_worst_and_a_group_has_all() -> None:
    found = [scored(candidate("look", 0.4), candidate("take", 0.9), candidate("open", 0.1))]
    [pair] = preferences(JOB, found)
    assert (pair.chosen.command, pair.rejected.command) == ("take", "open")
    assert (pair.chosen_q, pair.rejected_q) == (0.9, 0.1)
    [group] = groups(JOB, found)
    assert [each.action.command for each in group.candidates] == ["look", "take", "open"]
    assert group.best.action.command == "take"


def test_a_candidate_without_a_score_is_worth_nothing_and_takes_its_state_along() -> None:
    found = [scored(candidate("look", 0.4), candidate("take", None))]
    assert not preferences(JOB, found)
    assert not groups(JOB, found)
    assert not preferences(JOB, [None])
    assert not groups(JOB, [None])


def test_what_is_not_in_the_format_is_trained_on_by_nobody() -> None:
    """A fit would render it as what the policy never wrote."""
    babble = candidate("", 0.95, well_formed=False), candidate("", 0.0, well_formed=False)
    found = [scored(babble[0], candidate("look", 0.4), candidate("take", 0.6), babble[1])]
    [pair] = preferences(JOB, found)
    assert (pair.chosen.command, pair.rejected.command) == ("take", "look")
    [group] = groups(JOB, found)
    assert [each.action.command for each in group.candidates] == ["look", "take"]
    assert group.best.action.command == "take"
    assert not preferences(JOB, [scored(*babble)])
    assert not groups(JOB, [scored(*babble)])
