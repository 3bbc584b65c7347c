"""The PRM service: Q for pairs, choices, transcripts and continuations."""

from __future__ import annotations

from pydantic import Field, model_validator

from agentprm.protocol._base import MAX_BATCH, MAX_CANDIDATES, Probability, Record, Request, Text
from agentprm.protocol._states import Action, Message, State, Step


class Pair(Request):
    """One state-action pair."""

    state: State
    action: Action


class Choice(Request):
    """Several actions in one state; the state is paid for once."""

    state: State
    actions: list[Action] = Field(min_length=1, max_length=MAX_CANDIDATES)


class Transcript(Request):
    """A whole episode; every turn is scored in one forward pass."""

    task: Text
    steps: list[Step] = Field(min_length=1, max_length=200)


class Continuations(Request):
    """Several answers to one conversation, read as they are; it is paid for once."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    answers: list[str] = Field(min_length=1, max_length=MAX_CANDIDATES)


class ScoreRequest(Request):
    """Any mix of pairs, choices, transcripts and continuations."""

    pairs: list[Pair] = Field(default=[], max_length=MAX_BATCH)
    choices: list[Choice] = Field(default=[], max_length=MAX_BATCH)
    transcripts: list[Transcript] = Field(default=[], max_length=MAX_BATCH)
    continuations: list[Continuations] = Field(default=[], max_length=MAX_BATCH)

    @model_validator(mode="after")
    def _not_empty(self) -> ScoreRequest:
        if not (self.pairs or self.choices or self.transcripts or self.continuations):
            raise ValueError(
                "give at least one of `pairs`, `choices`, `transcripts`, `continuations`"
            )
        return self


class ScoreResponse(Record):
    """Q in [0, 1], in the shapes of the request: a number a pair, a list for anything else."""

    pairs: list[Probability]
    choices: list[list[Probability]]
    transcripts: list[list[Probability]]
    continuations: list[list[Probability]] = Field(default=[])
    prm_version: str
    template_hash: str
