import pytest
from pydantic import ValidationError

from agentprm.protocol import (
    Action,
    ActRequest,
    Choice,
    Decoding,
    Sampling,
    ScoreRequest,
    SessionIds,
    State,
)

STATE = State(task="t", observation="o")


def test_what_one_request_may_have_sampled_is_bounded() -> None:
    ActRequest(states=[STATE] * 256, n=64, sampling=Sampling(max_tokens=128))
    with pytest.raises(ValidationError, match="2113536 tokens, at most 2097152"):
        ActRequest(states=[STATE] * 256, n=64, sampling=Sampling(max_tokens=129))


def test_what_one_request_may_have_scored_is_bounded() -> None:
    def states(commands: int) -> list[State]:
        return [State(task="t", observation="o", admissible=("look",) * commands)] * 256

    ActRequest(states=states(100), n=16)
    ActRequest(states=states(64), n=64)
    with pytest.raises(ValidationError, match="16384000 to score, at most 1048576"):
        ActRequest(states=states(1000), n=64)
    ActRequest(states=states(1000), n=64, sampling=Sampling(decoding=Decoding.FREE))


@pytest.mark.parametrize("name", ["x" * 501, "\ud800"])
def test_ids_are_short_and_can_be_sent_back(name: str) -> None:
    with pytest.raises(ValidationError):
        SessionIds(ids=[name])


def test_a_string_is_a_command_to_score() -> None:
    past = {"observation": "before", "action": "go"}
    state = {"task": "t", "observation": "o", "history": [past]}
    asked = ScoreRequest.model_validate(
        {
            "choices": [{"state": state, "actions": ["look", {"reason": "r", "command": "go"}]}],
            "pairs": [{"state": state, "action": "look"}],
        }
    )
    look = Action(command="look")
    assert asked.choices[0].actions == [look, Action(reason="r", command="go")]
    assert asked.pairs[0].action == look
    assert asked.pairs[0].state.history[0].action == Action(command="go")
    with pytest.raises(ValidationError, match=r"actions\.0\.command"):
        Choice.model_validate({"state": state, "actions": ["x" * 501]})
