"""What `/v1/chat/completions` takes: OpenAI's request, and the options of Best-of-N beside it."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from agentprm.protocol import MAX_CANDIDATES, MAX_MESSAGES, ChatMessage, Many
from services.policy.engine import Draw

_NOT_DONE = ("top_p", "frequency_penalty", "presence_penalty", "logit_bias", "top_logprobs")
"""Options of OpenAI's that would sample otherwise, or tell more. They are refused: no answer would
say that nothing was done."""
_MAX_STOPS = 16
_BEST_OF = re.compile(r"best-of-([1-9][0-9]?)")


def best_of_named(model: str) -> int | None:
    """N, where `model` is a name `best-of-N` that is served."""
    match = _BEST_OF.fullmatch(model)
    n = int(match[1]) if match else None
    return n if n is not None and n <= MAX_CANDIDATES else None


class ChatRequest(BaseModel):
    """The options that are honoured, and those that are refused; others are ignored, and null is
    as good as nothing.

    `best_of`, or a model named `best-of-N`, draws that many samples and returns the `n` that the
    PRM likes best. `q_temperature`, `beta` and `allow_degraded` are those of `/v1/act`.
    """

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: Many[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    n: int = Field(default=1, ge=1, le=MAX_CANDIDATES)
    temperature: float = Field(default=1.0, ge=0.0, le=10.0)
    max_tokens: int | None = Field(default=None, ge=1, le=4096)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=4096)
    seed: int | None = None
    stop: str | Annotated[Many[str], Field(max_length=_MAX_STOPS)] | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    stream: bool = False
    stream_options: dict[str, Any] = {}
    top_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[str, Any] = {}
    tools: list[Any] = []
    functions: list[Any] = []
    response_format: dict[str, Any] = {"type": "text"}
    best_of: int | None = Field(default=None, ge=1, le=MAX_CANDIDATES)
    q_temperature: float = Field(default=0.0, ge=0.0, le=10.0)
    beta: float = Field(default=0.0, ge=0.0, le=10.0)
    allow_degraded: bool = False

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}

    @field_validator("stop", mode="before")
    @classmethod
    def _few_stops(cls, value: Any) -> Any:
        """In words, as pydantic would tell why the list is no text."""
        texts = [value] if isinstance(value, str) else value
        if (
            not isinstance(texts, list)
            or len(texts) > _MAX_STOPS
            or not all(isinstance(text, str) for text in texts)
        ):
            why = "give a text, or a list of at most {most} texts"
            raise PydanticCustomError("stop", why, {"most": _MAX_STOPS})
        return value

    @property
    def candidates(self) -> int | None:
        """N of Best-of-N, or None for plain samples."""
        return best_of_named(self.model) or self.best_of

    def draw(self) -> Draw:
        """How to sample."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Draw(
            n=self.candidates or self.n,
            temperature=self.temperature,
            max_tokens=self.max_completion_tokens or self.max_tokens or 256,
            stop=tuple(text for text in stop if text),
        )

    def contradiction(self) -> tuple[str, str] | None:
        """The field that contradicts another, and why; None where all is well."""
        wanted = self.candidates
        for field in ("tools", "functions"):
            if getattr(self, field):
                why = f"{field} are not supported: describe them in a message, answers are text"
                return field, why
        if self.response_format.get("type") != "text":
            return "response_format", "answers are text: no other response_format is supported"
        for field in _NOT_DONE:
            default = type(self).model_fields[field].default
            if getattr(self, field) != default:
                return field, f"{field} is not supported: leave it out, or send {default}"
        for field in ("q_temperature", "beta", "allow_degraded"):
            if wanted is None and getattr(self, field):
                return field, f"{field} has no meaning without best_of"
        if self.q_temperature > 0 and self.beta > 0:
            return "beta", "give q_temperature or beta, not both"
        if wanted is not None and self.best_of not in (None, wanted):
            return "best_of", f"best_of is {self.best_of}, but the model is {self.model}"
        if wanted is not None and self.n > wanted:
            return "n", f"n is {self.n}, but best_of only {wanted}"
        return None
