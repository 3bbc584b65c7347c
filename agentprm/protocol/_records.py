"""Episodes, preferences, and the jobs that make them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from agentprm.protocol._base import MAX_STEPS, Record
from agentprm.protocol._env import Game
from agentprm.protocol._policy import Sampling
from agentprm.protocol._prm import Transcript
from agentprm.protocol._states import Action, State, Step


class Turn(Record):
    """One turn of a recorded episode."""

    observation: str
    admissible: tuple[str, ...] = ()
    action: Action
    reward: float = 0.0
    log_prob: float | None = None
    q: float | None = None
    policy_version: str
    prm_version: str | None = None


class Provenance(Record):
    """Where a sample comes from: enough to explain a run from its records."""

    engine: str
    package_version: str
    data_version: str
    template_hash: str
    sampling: Sampling | None = None
    best_of: int = 1


class Episode(Record):
    """A finished episode. `id` is `job id/index`, so that a repeated job repeats its ids.

    `turns` are all turns from the game's beginning; its job chose those from `start` on, and the
    ones before were given to it.
    """

    id: str
    job_id: str
    game: Game
    seed: int
    start: int = 0
    turns: tuple[Turn, ...]
    final_observation: str
    won: bool
    provenance: Provenance

    @property
    def outcome(self) -> float:
        """The sum of rewards, in [0, 1]."""
        return sum(turn.reward for turn in self.turns)

    def state(self, t: int) -> State:
        """s_t, as the policy saw it."""
        history = tuple(Step(observation=u.observation, action=u.action) for u in self.turns[:t])
        turn = self.turns[t]
        return State(
            task=self.game.task,
            history=history,
            observation=turn.observation,
            admissible=turn.admissible,
        )

    def transcript(self) -> Transcript:
        """The episode as the PRM takes it."""
        steps = [Step(observation=u.observation, action=u.action) for u in self.turns]
        return Transcript(task=self.game.task, steps=steps)


class Start(Record):
    """Where a rollout begins: after `turns` of an earlier episode of the same game.

    Every one of their commands was admissible; what else was admissible then may be left out. The
    first turn that is played is `action`, where it is given.
    """

    turns: tuple[Turn, ...] = Field(default=(), max_length=MAX_STEPS)
    action: Action | None = None


class RolloutJob(Record):
    """Play each game once. Games may repeat; game k of the job is sampled with `seed + k`.

    The actor is the policy (which must serve `policy_version`, and the PRM `prm_version` where
    `best_of` > 1), or the environment's expert. With `starts`, game k begins at `starts[k]`;
    `max_steps` counts from the game's beginning all the same.
    """

    kind: Literal["rollout"] = "rollout"
    id: str
    games: list[str]
    starts: list[Start] | None = None
    seed: int
    actor: Literal["policy", "expert"] = "policy"
    policy_version: str | None = None
    prm_version: str | None = None
    sampling: Sampling = Sampling()
    best_of: int = 1
    max_steps: int = 30

    @model_validator(mode="after")
    def _one_start_a_game(self) -> RolloutJob:
        if self.starts is not None and len(self.starts) != len(self.games):
            raise ValueError("give one start for each of `games`")
        return self


class PreferenceJob(Record):
    """Sample `n` candidates in each state from the policy that serves, and rank them by the PRM.

    With `ties` a state whose candidates differ in Q by less than `margin`, or are all alike, gives
    its first sample as chosen and as rejected; without, it gives nothing if they do not differ.
    """

    kind: Literal["preference"] = "preference"
    id: str
    attempt: str
    """Names the fit that asked; a restarted fit ignores what earlier ones asked for."""
    states: list[State]
    seed: int
    n: int
    sampling: Sampling = Sampling()
    prm_version: str
    ties: bool = False
    margin: float = 0.0


Job = Annotated[RolloutJob | PreferenceJob, Field(discriminator="kind")]


class Preference(Record):
    """The best and the worst of the candidates in one state, by the PRM; one action in a tie."""

    id: str
    job_id: str
    attempt: str
    state: State
    chosen: Action
    rejected: Action
    chosen_q: float
    rejected_q: float
    policy_version: str
    prm_version: str
    template_hash: str


class JobResult(Record):
    """What a job left behind; one entry of the `episodes` or the `preferences` stream."""

    job_id: str
    worker: str
    seconds: float
    episodes: list[Episode] = Field(default_factory=list)
    preferences: list[Preference] = Field(default_factory=list)
    dropped: int = 0
    """Samples given up, such as states whose candidates were all alike or could not be scored."""
