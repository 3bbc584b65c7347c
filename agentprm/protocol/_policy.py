"""The policy service: actions for states."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from agentprm.protocol._base import (
    MAX_ACTION_TOKENS,
    MAX_BATCH,
    MAX_CANDIDATES,
    MAX_SCORED_COMMANDS,
    Many,
    Record,
    Request,
    Seed,
    Text,
)
from agentprm.protocol._states import Action, State


class Decoding(StrEnum):
    """How ACTION is decoded. REASON is always sampled token by token."""

    FREE = "free"
    """Token by token, then parsed."""
    ADMISSIBLE = "admissible"
    """Drawn from the admissible commands by the probability of the whole command."""


class Sampling(Request):
    """How candidates are sampled. Temperature 0 takes the likeliest.

    With `admissible` decoding REASON has the temperature `reason_temperature` where that is given.
    A low one keeps reasons as the policy means them while the commands still vary: of many reasons
    at a high temperature some are like none that the PRM was fitted on, and it may prefer those.

    With `admissible` decoding `presence_penalty`, in nats, is taken from the log-probability of a
    command that the agent has carried out before for the same reason (to the letter), before the
    temperature is applied: against walks in circles, which a policy that does not remember where it
    was cannot know for what they are. What is reported as `log_prob` is without it.
    """

    decoding: Decoding = Decoding.ADMISSIBLE
    temperature: float = Field(default=1.0, ge=0.0, le=10.0)
    reason_temperature: float | None = Field(default=None, ge=0.0, le=10.0)
    presence_penalty: float = Field(default=0.0, ge=0.0, le=100.0)
    max_tokens: int = Field(default=128, ge=1, le=4096)

    @model_validator(mode="after")
    def _of_commands(self) -> Sampling:
        if self.decoding is Decoding.FREE:
            if self.reason_temperature is not None:
                raise ValueError("`reason_temperature` has no meaning with free decoding")
            if self.presence_penalty:
                raise ValueError("`presence_penalty` has no meaning with free decoding")
        return self

    def in_words(self) -> str:
        """What it says of commands, for the conditions beside a figure."""
        words = f"temperature {self.temperature:g}"
        if self.presence_penalty:
            words += f" with a presence penalty of {self.presence_penalty:g}"
        return words


class ActRequest(Request):
    """Choose an action in each state: a plain sample, or with `prm` the best of `n` samples.

    The best is the sample of highest Q; of equals the one whose action was drawn more often, then
    the likelier, then the earlier. With `q_temperature` above 0 it is drawn instead, each of the
    `n` samples with a weight of exp(Q / q_temperature): an action counts as often as it was drawn.
    As n grows that tends to the policy that maximises Q minus q_temperature times the KL divergence
    from the sampling policy (eq. 3). With `beta` above 0 the best is what that policy, at a
    temperature of beta, finds likeliest: Q + beta log(share of the samples) takes the place of Q.

    Where the PRM gives no score the request fails with a 503, or with `allow_degraded` it is
    answered as if without `prm`, and marked.

    With `seed`, state i is sampled from the seed and i alone, whatever else is in the batch.

    `hints[i]` is text that the policy reads with state i, and nobody else: it is no part of the
    state, so neither the PRM nor anything that is trained on the answer sees it. Empty is none.
    """

    states: Many[State] = Field(min_length=1, max_length=MAX_BATCH)
    hints: Many[Text] | None = Field(default=None, max_length=MAX_BATCH)
    n: int = Field(default=1, ge=1, le=MAX_CANDIDATES)
    prm: bool = False
    q_temperature: float = Field(default=0.0, ge=0.0, le=10.0)
    beta: float = Field(default=0.0, ge=0.0, le=10.0)
    allow_degraded: bool = False
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
        if self.sampling.decoding is Decoding.ADMISSIBLE:  # each behind up to `n` reasons
            commands = self.n * sum(len(state.admissible) for state in self.states)
            if commands > MAX_SCORED_COMMANDS:
                raise ValueError(
                    f"`n` x the admissible commands of all `states` is {commands} to score, "
                    f"at most {MAX_SCORED_COMMANDS}"
                )
        if self.hints is not None and len(self.hints) != len(self.states):
            raise ValueError("give one hint for each of `states`")
        if not self.prm and (self.q_temperature > 0 or self.beta > 0 or self.allow_degraded):
            raise ValueError(
                "`q_temperature`, `beta` and `allow_degraded` have no meaning without `prm`"
            )
        if self.q_temperature > 0 and self.beta > 0:
            raise ValueError("give `q_temperature` or `beta`, not both")
        return self


class Candidate(Record):
    """A distinct action among the `n` samples, drawn `count` times.

    `text` is the answer as the policy wrote it; where it was drawn more than once, in words or
    spaces that make the same action, `text`, `log_prob` and `tokens` are those of the first.
    `log_prob` is the log-probability of the whole action under the policy at temperature 1
    (natural log; with admissible decoding, that of REASON plus that of the command among the
    admissible ones). `q` is None unless the PRM was asked.
    """

    text: str
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
    """Answers in the order of the states, and what answered.

    `degraded`: the PRM was asked and gave no score; every `chosen` is the first sample.
    """

    results: list[ActResult]
    policy_version: str
    prm_version: str | None = None
    degraded: bool = False
    template_hash: str
