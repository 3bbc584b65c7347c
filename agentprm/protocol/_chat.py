"""Conversations as OpenAI's clients send them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agentprm.protocol._base import MAX_MESSAGE, MAX_MESSAGES, Many, Record, Request
from agentprm.protocol._states import Message

MAX_PARTS = 1000
"""Most parts of a message's content."""

MessageText = Annotated[str, Field(max_length=MAX_MESSAGE)]


class TextPart(BaseModel):
    """A part of a message's content; only text can be read."""

    type: Literal["text"]
    text: MessageText


class ChatMessage(BaseModel):
    """One message of a chat. Fields beside role and content are passed over, as clients send many.

    `developer` is another word for `system`. Tool calls, images and the like are refused rather
    than passed over: they would be missing from what is read.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: MessageText | Annotated[Many[TextPart], Field(max_length=MAX_PARTS)]

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, data: Any) -> Any:
        if isinstance(data, Message):
            return data.model_dump()
        if not isinstance(data, dict):
            return data
        calls = data.get("tool_calls") or data.get("function_call")
        if calls or data.get("role") in ("tool", "function"):
            raise ValueError("tool calls and their results are scored as text: put them in content")
        content = data.get("content")
        parts = content if isinstance(content, list) else []
        other = [part.get("type") for part in parts if isinstance(part, dict)]
        if content is None or any(kind != "text" for kind in other):
            raise ValueError("content is a text, or parts of the type text: nothing else is read")
        return data

    @model_validator(mode="after")
    def _not_too_long(self) -> ChatMessage:
        if len(self.text) > MAX_MESSAGE:
            raise ValueError(f"a message has {MAX_MESSAGE:,} characters at most, in all its parts")
        return self

    @property
    def text(self) -> str:
        """The content, its parts joined."""
        content = self.content
        return content if isinstance(content, str) else "".join(part.text for part in content)

    def plain(self) -> Message:
        """The message as chat templates take it."""
        return Message(role="system" if self.role == "developer" else self.role, content=self.text)


class Conversation(Request):
    """A chat. Every assistant message is an action; all are scored in one forward pass."""

    messages: Many[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)

    @model_validator(mode="after")
    def _acts(self) -> Conversation:
        if not any(message.role == "assistant" for message in self.messages):
            raise ValueError("there is no assistant message to score")
        return self

    def plain(self) -> list[Message]:
        """The messages as chat templates take them."""
        return [message.plain() for message in self.messages]


class CompletionRequest(Request):
    """What is asked of `/v1/chat/completions`, here or at any other server."""

    model: str
    messages: Many[Message]
    temperature: float = 0.0
    max_tokens: int = 512


class _Answer(Record):
    content: str


class _Choice(Record):
    message: _Answer
    finish_reason: str


class Completion(Record):
    """What `/v1/chat/completions` answers."""

    model: str
    choices: list[_Choice] = Field(min_length=1)

    @property
    def text(self) -> str | None:
        """The first answer, or None where it was cut off."""
        first = self.choices[0]
        return first.message.content if first.finish_reason == "stop" else None
