"""A log of an agent's own: OpenAI chats with what came of them, as `agentprm prm fit` reads it.

It is a file of JSON lines, or a directory of such files. A line is a chat and its reward: of the
outcome, at the last assistant message, or one for each assistant message.
"""

from __future__ import annotations

import codecs
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import ConfigDict, Field, ValidationError, model_validator

from agentprm.protocol import MAX_RETURN, Conversation, Message, Probability
from agentprm.validation import first_error

CHATS_FILE = "chats.json"
"""The file in a run directory that says what log of chats it is fitted on."""


class ChatsError(Exception):
    """A log cannot be read. Says which file and line, what is wrong, and what to do."""


@dataclass(frozen=True)
class Chat:
    """An attempt at a task: the messages, and the reward of each assistant message."""

    messages: tuple[Message, ...]
    rewards: tuple[float, ...]
    task: str
    source: str
    """The file and the line."""

    @property
    def outcome(self) -> float:
        """The sum of the rewards, in [0, 1]."""
        return sum(self.rewards)


def read_chats(path: Path) -> list[Chat]:
    """The chats of a file, or of all files `*.jsonl` in a directory in the order of their names.

    Raises:
        ChatsError: there is none, or a line is no chat with rewards.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not path.exists():
        raise ChatsError(f"there is no file or directory {path}")
    chats = [chat for file in files for chat in _chats(file)]
    if not chats:
        raise ChatsError(f"{path} holds no chats: give a .jsonl file, or a directory of them")
    return chats


def digest_of_chats(chats: Iterable[Chat]) -> str:
    """Names what is learned from: chats, rewards and tasks, in their order."""
    digest = hashlib.sha256()
    for chat in chats:
        said = [[message.role, message.content] for message in chat.messages]
        line = [said, chat.rewards, chat.task]
        digest.update(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    return digest.hexdigest()


class _Line(Conversation):
    """A chat as it is logged. Fields beside these are passed over, as logs have many."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    reward: Probability | None = None
    rewards: list[Probability] | None = None
    task: str | None = Field(default=None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, data: Any) -> Any:
        """As many as the log has: it is no request."""
        return data

    @model_validator(mode="after")
    def _is_rewarded(self) -> _Line:
        if (self.reward is None) == (self.rewards is None):
            raise ValueError(
                "give either `reward`, of the outcome, or `rewards`, one for each assistant message"
            )
        answers = sum(message.role == "assistant" for message in self.messages)
        if self.rewards is not None and len(self.rewards) != answers:
            raise ValueError(
                f"rewards: {len(self.rewards)} for {answers} assistant messages; give one for each"
            )
        if math.fsum(self.rewards or ()) > MAX_RETURN:
            raise ValueError(
                f"rewards: their sum is {math.fsum(self.rewards or ()):.4g}, and may be 1 at most, "
                "as Q is a probability: divide all rewards of the log by the largest sum"
            )
        return self

    def chat(self, source: str) -> Chat:
        """What is learned from it."""
        messages = tuple(self.plain())
        answers = sum(message.role == "assistant" for message in messages)
        rewards = self.rewards or [*[0.0] * (answers - 1), self.reward or 0.0]
        task = _beginning(messages) if self.task is None else self.task
        return Chat(messages, tuple(rewards), task, source)


def _chats(file: Path) -> Iterator[Chat]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            source = f"{file}, line {number}"
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)  # Windows writes it
            if not line.strip():
                continue
            try:
                yield _Line.model_validate_json(line).chat(source)
            except ValidationError as error:
                raise ChatsError(
                    f"{source}: {first_error(error)}. Mend the line, or take it out"
                ) from error


def _beginning(messages: Sequence[Message]) -> str:
    """The task of a chat that names none: a hash of what stands before the agent's first word."""
    first = next(k for k, message in enumerate(messages) if message.role == "assistant")
    said = [[message.role, message.content] for message in messages[:first]]
    return hashlib.sha256(orjson.dumps(said)).hexdigest()[:16]
