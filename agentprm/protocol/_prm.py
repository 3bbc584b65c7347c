"""The PRM service: Q for pairs, choices and transcripts."""

from __future__ import annotations

from pydantic import Field, model_validator

from agentprm.protocol._base import MAX_BATCH, MAX_CANDIDATES, Probability, Record, Request, Text
from agentprm.protocol._states import Action, State, Step


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


class ScoreRequest(Request):
    """Any mix of pairs, choices and transcripts."""

    pairs: list[Pair] = Field(default=[], max_length=MAX_BATCH)
    choices: list[Choice] = Field(default=[], max_length=MAX_BATCH)
    transcripts: list[Transcript] = Field(default=[], max_length=MAX_BATCH)

    @model_validator(mode="after")
    def _not_empty(self) -> ScoreRequest:
        if not (self.pairs or self.choices or self.transcripts):
            raise ValueError("give at least one of `pairs`, `choices`, `transcripts`")
        return self


class ScoreResponse(Record):
    """Q in [0, 1], in the shapes of the request: a number a pair, a list a choice or transcript."""

    pairs: list[Probability]
    choices: list[list[Probability]]
    transcripts: list[list[Probability]]
    prm_version: str
    template_hash: str
