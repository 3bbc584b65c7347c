import pytest
from pydantic import ValidationError

from agentprm.protocol import ActRequest, Sampling, SessionIds, State

STATE = State(task="t", observation="o")


def test_what_one_request_may_have_sampled_is_bounded() -> None:
    ActRequest(states=[STATE] * 256, n=64, sampling=Sampling(max_tokens=128))
    with pytest.raises(ValidationError, match="2113536 tokens, at most 2097152"):
        ActRequest(states=[STATE] * 256, n=64, sampling=Sampling(max_tokens=129))


@pytest.mark.parametrize("name", ["x" * 501, "\ud800"])
def test_ids_are_short_and_can_be_sent_back(name: str) -> None:
    with pytest.raises(ValidationError):
        SessionIds(ids=[name])
