"""What all wire types share: bounds, and how unknown fields are met."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

T = TypeVar("T")

MAX_TEXT = 20_000
"""Longest observation or reason, in characters."""
MAX_COMMAND = 500
"""Longest command, in characters."""
MAX_MESSAGE = 200_000
"""Longest message of a chat, in characters."""
MAX_MESSAGES = 500
"""Most messages of a chat."""
MAX_COMMANDS = 1000
"""Most commands that are possible in a state."""
MAX_RETURN = 1 + 1e-9
"""Most that the rewards of an episode add up to: 1, and what rounding makes of it."""
MAX_BATCH = 256
"""Most states, sessions or pairs in one request."""
MAX_POOL = 256
"""Most processes of TextWorld, or threads of an own environment, that a server has."""
MAX_STEPS = 200
"""Largest step limit of a session, in turns."""
MAX_CANDIDATES = 64
"""Largest N of Best-of-N."""
MAX_ACTION_TOKENS = 2**21
"""Most tokens that one request may have sampled."""
MAX_SCORED_COMMANDS = 2**20
"""Most commands that one request may have scored, those behind each of its reasons."""
MAX_KEYS = 100
"""Most keys of an object in a request, far more than any has fields."""

Many = Annotated[list[T], Field(fail_fast=True)]
"""A list in a request. It is refused at the first element that is wrong: of millions the errors
would fill the memory before the first of them is read."""
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Id = Annotated[str, Field(max_length=500)]
"""A session's or a game's."""
Command = Annotated[str, Field(max_length=MAX_COMMAND)]
Prefix = Annotated[Many[Command], Field(max_length=MAX_STEPS)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Request(BaseModel):
    """A body that a client sends."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, data: Any) -> Any:
        """Every unknown key is an error of its own, and all are collected."""
        if isinstance(data, dict) and len(data) > MAX_KEYS:
            raise ValueError(f"an object has {MAX_KEYS} keys at most")
        return data


class Record(BaseModel):
    """A body that a service answers, or a record in a stream or a file."""

    model_config = ConfigDict(extra="ignore", frozen=True)
