"""The PRM as a reward function of TRL's trainers.

GRPOTrainer(..., reward_funcs=PRMReward("http://127.0.0.1:8003"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentprm.calls import DEADLINE
from agentprm.client import PRMClient, ServiceError
from agentprm.protocol import MAX_BATCH

_TOO_LARGE = 413

Text = str | Sequence[Mapping[str, Any]]
"""A plain text, or messages."""


@dataclass(frozen=True)
class PRMReward:
    """Q of the last assistant turn of each completion.

    A conversational prompt and its completion are one conversation. A plain prompt is a user's
    message and its completion the answer; a prompt that has been through a chat template already
    would be wrapped twice: leave the template to TRL and give messages.

    A score that cannot be had ends the training with a `ServiceError`, and a completion without an
    assistant message with a `ValueError`; none is ever taken for 0.
    """

    url: str
    deadline: float = DEADLINE
    """Seconds that a request may take in all, its retries included."""

    @property
    def __name__(self) -> str:
        """What TRL's logs call the reward."""
        return "prm"

    def __call__(
        self, prompts: Sequence[Text], completions: Sequence[Text], **_: object
    ) -> list[float]:
        """A reward for each completion."""
        chats = [
            [*_messages(prompt, "user"), *_answer(completion)]
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        with PRMClient(self.url, deadline=self.deadline) as prm:
            return [
                q
                for k in range(0, len(chats), MAX_BATCH)
                for q in _last_turns(prm, chats[k : k + MAX_BATCH])
            ]


def _last_turns(prm: PRMClient, chats: Sequence[Sequence[Mapping[str, Any]]]) -> list[float]:
    """Q of the last turn of each; by halves where they are too large for one request."""
    try:
        return [q[-1] for q in prm.score_conversations(chats)]
    except ServiceError as error:
        if error.status != _TOO_LARGE or len(chats) == 1:
            raise
    half = len(chats) // 2
    return [*_last_turns(prm, chats[:half]), *_last_turns(prm, chats[half:])]


def _answer(completion: Text) -> list[Mapping[str, Any]]:
    messages = _messages(completion, "assistant")
    if not any(message.get("role") == "assistant" for message in messages):
        # The last one of the prompt would be scored in its place.
        raise ValueError(f"a completion holds no assistant message to score: {messages!r}")
    return messages


def _messages(text: Text, role: str) -> list[Mapping[str, Any]]:
    return [{"role": role, "content": text}] if isinstance(text, str) else list(text)
