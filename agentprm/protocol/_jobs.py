"""The jobs that make episodes and preferences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from agentprm.protocol._base import MAX_STEPS, Record
from agentprm.protocol._planning import Lookahead
from agentprm.protocol._policy import Sampling
from agentprm.protocol._records import ChoiceRule, Turn
from agentprm.protocol._states import Action, State


class Start(Record):
    """Where a rollout begins: after `turns` of an earlier episode of the same game.

    Every one of their commands was admissible; what else was admissible then may be left out. The
    first turn that is played is `action`, where it is given.

    With `rationalise` only the commands of `turns` and `action` are kept, and the actor, a policy,
    gives its own reasons for them: those given were written by one who knew more than it does.
    """

    turns: tuple[Turn, ...] = Field(default=(), max_length=MAX_STEPS)
    action: Action | None = None
    rationalise: bool = False


class RolloutJob(Record):
    """Play each game once. Games may repeat; game k of the job has the seed `seed + k`, by which
    the expert plays it. A policy draws anew in every turn, by `seed` and the turn.

    The actor is the policy (which must serve `policy_version`, and the PRM `prm_version` where
    it chooses among `best_of` > 1 samples, or looks ahead), the environment's expert, or the chat
    model that `policy_version` names. With `starts`, game k begins at `starts[k]`; `max_steps`
    counts from the game's beginning all the same. `hints[k]` is what the policy reads beside the
    states of game k; with `privileged` that is where the things of the task are, which the
    environment must be willing to tell. With `labelled`, each turn also tells what the expert would
    do.
    """

    kind: Literal["rollout"] = "rollout"
    id: str
    games: list[str]
    starts: list[Start] | None = None
    hints: list[str] | None = None
    privileged: bool = False
    seed: int
    actor: Literal["policy", "expert", "chat"] = "policy"
    policy_version: str | None = None
    prm_version: str | None = None
    sampling: Sampling = Sampling()
    best_of: int = 1
    beta: float = 0.0
    """Of Best-of-N, as in `ActRequest`."""
    choice: ChoiceRule = ChoiceRule.PRM
    labelled: bool = False
    lookahead: Lookahead | None = None
    """In place of `best_of`."""
    max_steps: int = 30
    attempt: str = ""
    """Names the fit that asked, where one did: of a fit that is begun anew it is wanted no more."""

    @property
    def size(self) -> int:
        """Episodes to play."""
        return len(self.games)

    @property
    def ranked(self) -> bool:
        """Whether the PRM chooses."""
        return self.best_of > 1 and self.choice is ChoiceRule.PRM

    @model_validator(mode="after")
    def _one_start_a_game(self) -> RolloutJob:
        if self.starts is not None and len(self.starts) != len(self.games):
            raise ValueError("give one start for each of `games`")
        return self

    @model_validator(mode="after")
    def _one_hint_a_game(self) -> RolloutJob:
        if self.hints is not None and (self.privileged or len(self.hints) != len(self.games)):
            raise ValueError("give one hint for each of `games`, or `privileged`")
        return self


class PreferenceJob(Record):
    """Sample `n` candidates in each state from the policy that serves, and score them by the PRM.

    The answer is a preference for each state, or with `groups` all its candidates. With `ties` a
    state whose candidates differ in Q by less than `margin`, or are all alike, gives its first
    sample as chosen and as rejected; without, it gives nothing if they do not differ.
    """

    kind: Literal["preference"] = "preference"
    id: str
    attempt: str
    """Names the fit that asked; a restarted fit ignores what earlier ones asked for."""
    states: list[State]
    seed: int
    n: int
    sampling: Sampling = Sampling()
    policy_version: str | None = None
    """What the policy has to serve; None for whatever it serves."""
    prm_version: str
    groups: bool = False
    ties: bool = False
    margin: float = 0.0

    @property
    def size(self) -> int:
        """States to sample in."""
        return len(self.states)


Job = Annotated[RolloutJob | PreferenceJob, Field(discriminator="kind")]
