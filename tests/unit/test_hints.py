"""Hints: read by the policy alone, told by the environment, and reasons without them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from agentprm.client import ServiceError
from agentprm.encoding import encode
from agentprm.prompts import load_prompt
from agentprm.protocol import (
    CONTEXT_TOO_LONG,
    Action,
    ActRequest,
    ActResult,
    Candidate,
    HiddenState,
    RolloutJob,
    Session,
    Start,
    State,
)
from services.rollout.privileged import whereabouts
from services.rollout.reasons import rationalised
from services.trainer.tiny.tokenizer import create_tokenizer
from services.trainer.training.rows import episode_rows
from tests.unit.trainer_episodes import episode

HINT = "mug 1 in cabinet 3"
PLAYED = episode(["look", "inventory", "go to cabinet 1"], [0, 0, 1])
TOKENIZER = create_tokenizer(2048)


@pytest.mark.parametrize("name", ["chat", "state"])
@pytest.mark.parametrize("t", [0, 2])
def test_a_hint_ends_the_first_message_and_changes_nothing_else(name: str, t: int) -> None:
    prompt, state = load_prompt(name), PLAYED.state(t)
    bare, hinted = prompt.messages(state), prompt.messages(state, HINT)
    assert prompt.messages(state, "") == bare
    assert [m for m in bare if HINT in m.content] == []
    first = next(k for k, message in enumerate(bare) if message.role == "user")
    ends = bare[first].model_copy(update={"content": f"{bare[first].content}\n\n{HINT}"})
    assert hinted == [*bare[:first], ends, *bare[first + 1 :]]


@pytest.mark.parametrize("name", ["chat", "state"])
def test_rows_read_a_hint_where_it_is_given_and_only_there(name: str) -> None:
    prompt = load_prompt(name)
    told = PLAYED.model_copy(
        update={"provenance": PLAYED.provenance.model_copy(update={"hint": HINT})}
    )
    for row in episode_rows(TOKENIZER, prompt, told, 2048):
        assert HINT not in TOKENIZER.decode(row.ids)
    for row in episode_rows(TOKENIZER, prompt, told, 2048, HINT):
        assert TOKENIZER.decode(row.ids).count(HINT) == 1
        for t, (start, end) in zip(row.turns, row.spans, strict=True):
            asked = encode(TOKENIZER, prompt.messages(told.state(t), HINT), generation_prompt=True)
            assert row.ids[:start] == asked.ids, "training reads what the policy is asked"
            answer = prompt.action_text(told.turns[t].action)
            assert TOKENIZER.decode(row.ids[start : end - 1]) == answer


def test_there_is_one_hint_for_each_state_and_each_game() -> None:
    state = PLAYED.state(0)
    with pytest.raises(ValueError, match="one hint for each of `states`"):
        ActRequest(states=[state], hints=["a", "b"])
    with pytest.raises(ValueError, match="one hint for each of `games`"):
        RolloutJob(id="j", games=["a", "b"], hints=["a"], seed=0)
    with pytest.raises(ValueError, match="or `privileged`"):
        RolloutJob(id="j", games=["a"], hints=["a"], privileged=True, seed=0)


def test_whereabouts_are_those_of_the_things_of_the_task() -> None:
    hidden = HiddenState(
        agent=[],
        holding=None,
        objects={"apple 1": "fridge 1", "mug 1": "cabinet 3", "mug 2": "fridge 1"},
        open=[],
        hot=[],
        cool=[],
        clean=[],
        on=[],
    )
    assert whereabouts("put a Mug in cabinet.", hidden) == f"{HINT}, mug 2 in fridge 1"
    assert whereabouts("put a bowl in cabinet.", hidden) == ""


# --- post-hoc rationalisation --------------------------------------------------------------------


def test_reasons_are_the_policys_own_and_commands_stay() -> None:
    """The third answer takes the first command; none takes the second."""
    session = Session(
        id="s",
        game=PLAYED.game,
        turn=1,
        observation="You arrive at cabinet 3.",
        admissible=["look", "open cabinet 3"],
        reward=0,
        done=False,
        won=False,
        truncated=False,
        max_steps=30,
    )
    knowing = Action(reason=HINT, command="go to cabinet 3")
    turn = PLAYED.turns[0].model_copy(update={"action": knowing})
    then = Action(reason=HINT, command="open cabinet 3")
    foreign = Start(turns=(turn,), action=then, rationalise=True)
    own = Start(turns=PLAYED.turns[:2])
    asked: list[Sequence[State]] = []

    def ask(states: Sequence[State], purpose: str) -> list[ActResult]:
        t = len(asked)
        assert purpose == f"reason {t}"
        asked.append(states)
        commands = [["look", "look", "go to cabinet 3", "go to cabinet 3"], ["look"]][t]
        candidates = [
            Candidate(text="", action=Action(reason=f"{t}.{k}", command=c), log_prob=0, tokens=1)
            for k, c in enumerate(commands)
        ]
        return [ActResult(candidates=candidates, chosen=0)]

    same, told = rationalised(ask, [session, session], [own, foreign])
    assert same == own
    assert [t.action for t in told.turns] == [Action(reason="0.2", command="go to cabinet 3")]
    assert told.action == Action(reason="1.0", command="open cabinet 3")
    [[first], [second]] = asked
    assert (first.history, first.observation) == ((), turn.observation)
    assert second.observation == session.observation
    assert [step.action.reason for step in second.history] == ["0.2"], "in the history as retold"


def test_a_state_too_long_for_the_policy_has_no_reason_and_stops_no_other() -> None:
    """Nor does it keep the other's, which may tell what the policy is not to know."""
    knowing = Action(reason=HINT, command="look")
    session = Session(
        id="s",
        game=PLAYED.game,
        turn=0,
        observation="You see a cabinet 3.",
        admissible=["look"],
        reward=0,
        done=False,
        won=False,
        truncated=False,
        max_steps=30,
    )
    long = session.model_copy(update={"observation": "You see a mug 1. " * 50})

    def ask(states: Sequence[State], purpose: str) -> list[ActResult]:
        if any(len(state.observation) > 100 for state in states):
            raise ServiceError(422, "too long", title=CONTEXT_TOO_LONG)
        own = Candidate(
            text="", action=Action(reason=purpose, command="look"), log_prob=0, tokens=1
        )
        return [ActResult(candidates=[own], chosen=0) for _ in states]

    starts = [Start(action=knowing, rationalise=True)] * 2
    told = rationalised(ask, [session, long], starts)
    assert [start.action for start in told] == [
        Action(reason="reason 0/0", command="look"),
        Action(reason="", command="look"),
    ]
