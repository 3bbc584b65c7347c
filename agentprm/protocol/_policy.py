"""The policy service: actions for states."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from agentprm.protocol._base import (
    MAX_ACTION_TOKENS,
    MAX_BATCH,
    MAX_CANDIDATES,
    Record,
    Request,
    Seed,
)
from agentprm.protocol._states import Action, State


class Decoding(StrEnum):
    """How ACTION is decoded. REASON is always sampled token by token."""

    FREE = "free"
    """Token by token, then parsed."""
    ADMISSIBLE = "admissible"
    """Drawn from the admissible commands by the probability of the whole command."""


class Sampling(Request):
    """How candidates are sampled. Temperature 0 takes the likeliest."""

    decoding: Decoding = Decoding.ADMISSIBLE
    temperature: float = Field(default=1.0, ge=0.0, le=10.0)
    max_tokens: int = Field(default=128, ge=1, le=4096)


class ActRequest(Request):
    """Choose an action in each state: a plain sample, or with `prm` the best of `n` samples.

    With `seed`, state i is sampled from the seed and i alone, whatever else is in the batch.
    """

    states: list[State] = Field(min_length=1, max_length=MAX_BATCH)
    n: int = Field(default=1, ge=1, le=MAX_CANDIDATES)
    prm: bool = False
    sampling: Sampling = Sampling()
    seed: Seed | None = None

    @model_validator(mode="after")
    def _can_be_answered(self) -> ActRequest:
        tokens = len(self.states) * self.n * self.sampling.max_tokens
        if tokens > MAX_ACTION_TOKENS:
            raise ValueError(
                f"`states` x `n` x `sampling.max_tokens` is {tokens} tokens, "
                f"at most {MAX_ACTION_TOKENS}"
            )
        return self


class Candidate(Record):
    """A distinct action among the `n` samples.

    `log_prob` is the log-probability of the whole action under the policy at temperature 1
    (natural log; with admissible decoding, that of REASON plus that of the command among the
    admissible ones). `q` is None unless the PRM was asked.
    """

    action: Action
    log_prob: float
    tokens: int
    count: int = 1
    well_formed: bool = True
    q: float | None = None


class ActResult(Record):
    """The candidates of one state, in order of first appearance, and the index of the chosen."""

    candidates: list[Candidate]
    chosen: int

    @property
    def best(self) -> Candidate:
        """The chosen candidate."""
        return self.candidates[self.chosen]


class ActResponse(Record):
    """Answers in the order of the states, and what answered."""

    results: list[ActResult]
    policy_version: str
    prm_version: str | None = None
    template_hash: str
