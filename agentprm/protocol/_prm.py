"""The PRM service: Q for conversations, continuations, choices, pairs, transcripts, texts."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from agentprm.protocol._base import (
    MAX_BATCH,
    MAX_CANDIDATES,
    MAX_COMMANDS,
    MAX_MESSAGES,
    MAX_STEPS,
    Command,
    Many,
    Probability,
    Record,
    Request,
    Text,
)
from agentprm.protocol._chat import ChatMessage, Conversation, MessageText
from agentprm.protocol._states import Asked, State, Step

FORMS = ("conversations", "continuations", "choices", "pairs", "transcripts", "texts")
MAX_TEXTS = 4096
"""Most rendered texts in one request."""

Rendered = Annotated[MessageText, Field(min_length=1)]


class Pair(Request):
    """One state-action pair."""

    state: State
    action: Asked


class Choice(Request):
    """Several actions in one state; the state is paid for once."""

    state: State
    actions: Many[Asked] = Field(min_length=1, max_length=MAX_CANDIDATES)


Possible = Annotated[tuple[Command, ...], Field(max_length=MAX_COMMANDS, fail_fast=True)]


class Transcript(Request):
    """A whole episode; every turn is scored in one forward pass.

    `admissible` has the commands that were possible in each step, for prompts that list them; none
    where they are not known.
    """

    task: Text
    steps: Many[Step] = Field(min_length=1, max_length=MAX_STEPS)
    admissible: Many[Possible] = Field(default=[], max_length=MAX_STEPS)

    @model_validator(mode="after")
    def _one_list_a_step(self) -> Transcript:
        if self.admissible and len(self.admissible) != len(self.steps):
            raise ValueError("give a list of `admissible` for each of `steps`, or none")
        return self


class Continuations(Request):
    """Several answers to one conversation, read as they are; it is paid for once."""

    messages: Many[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    answers: Many[MessageText] = Field(min_length=1, max_length=MAX_CANDIDATES)


class ScoreRequest(Request):
    """Any mix of the forms. `messages` is short for `conversations` with this one alone.

    `texts` are conversations that the chat template of the checkpoint has rendered already, up to
    and including an answer; Q is that of the answer.
    """

    messages: Many[ChatMessage] | None = Field(default=None, max_length=MAX_MESSAGES)
    conversations: Many[Conversation] = Field(default=[], max_length=MAX_BATCH)
    choices: Many[Choice] = Field(default=[], max_length=MAX_BATCH)
    pairs: Many[Pair] = Field(default=[], max_length=MAX_BATCH)
    transcripts: Many[Transcript] = Field(default=[], max_length=MAX_BATCH)
    continuations: Many[Continuations] = Field(default=[], max_length=MAX_BATCH)
    texts: Many[Rendered] = Field(default=[], max_length=MAX_TEXTS)

    @model_validator(mode="before")
    @classmethod
    def _one_conversation(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("messages") is None:
            return data
        if data.get("conversations"):
            raise ValueError("`messages` is short for one of `conversations`: give either")
        rest = {name: value for name, value in data.items() if name != "messages"}
        return {**rest, "conversations": [{"messages": data["messages"]}]}

    @model_validator(mode="after")
    def _not_empty(self) -> ScoreRequest:
        if not any(getattr(self, form) for form in FORMS):
            names = ", ".join(f"`{form}`" for form in FORMS)
            raise ValueError(f"give at least one of `messages`, {names}")
        return self


class Scores(Record):
    """Numbers in [0, 1], in the shapes of a request.

    One for a pair and a text; a list for a choice (one for each action), a transcript and a
    conversation (one for each turn), and for continuations (one for each answer).
    """

    conversations: list[list[Probability]] = Field(default=[])
    choices: list[list[Probability]] = Field(default=[])
    pairs: list[Probability] = Field(default=[])
    transcripts: list[list[Probability]] = Field(default=[])
    continuations: list[list[Probability]] = Field(default=[])
    texts: list[Probability] = Field(default=[])


class ScoreResponse(Scores):
    """Q of what was asked. Of an ensemble the mean, and the standard deviation as `spread`."""

    spread: Scores | None = None
    prm_version: str
    template_hash: str
