"""A world model behind an OpenAI-compatible endpoint, such as a policy service that serves one."""

from __future__ import annotations

from collections.abc import Sequence

from agentprm.client import PolicyClient, ServiceError
from agentprm.protocol import CompletionRequest, Message
from agentprm.side_by_side import side_by_side
from agentprm.world._conversation import asked

_TOO_LONG = (400, 413, 422)
"""What an endpoint answers where the conversation is longer than the model takes."""


class WorldModel:
    """Asks the model `version` behind `client` for the likeliest outcomes."""

    def __init__(self, client: PolicyClient, version: str) -> None:
        self._client = client
        self._version = version

    def answers(self, moves: Sequence[tuple[Sequence[Message], str]]) -> list[str | None]:
        """What it answers to a command in each conversation; None where it is cut off or too long.

        Raises:
            ServiceError: it does not answer.
        """
        return side_by_side(lambda move: self._answer(*move), moves)

    def _answer(self, told: Sequence[Message], command: str) -> str | None:
        request = CompletionRequest(model=self._version, messages=asked(told, command))
        try:
            return self._client.complete(request).text
        except ServiceError as error:
            if error.status in _TOO_LONG:
                return None
            raise
