"""Episodes, preferences, groups of candidates, and the jobs that make them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from agentprm.protocol._base import MAX_STEPS, Record
from agentprm.protocol._env import Game
from agentprm.protocol._policy import Candidate, Sampling
from agentprm.protocol._prm import Transcript
from agentprm.protocol._states import Action, State, Step


class Considered(Record):
    """A distinct action among the N of a Best-of-N choice, drawn `count` times."""

    action: Action
    q: float | None = None
    count: int = 1


class Turn(Record):
    """One turn of a recorded episode.

    `considered` are the candidates that the action was chosen from, the chosen one among them;
    none where there was but one sample.
    """

    observation: str
    admissible: tuple[str, ...] = ()
    action: Action
    reward: float = 0.0
    log_prob: float | None = None
    q: float | None = None
    considered: tuple[Considered, ...] = ()
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

    @property
    def size(self) -> int:
        """Episodes to play."""
        return len(self.games)

    @model_validator(mode="after")
    def _one_start_a_game(self) -> RolloutJob:
        if self.starts is not None and len(self.starts) != len(self.games):
            raise ValueError("give one start for each of `games`")
        return self


class PreferenceJob(Record):
    """Sample `n` candidates in each state from the policy that serves, and score them by the PRM.

    The answer is a preference for each state, or with `groups` all its candidates.
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

    @property
    def size(self) -> int:
        """States to sample in."""
        return len(self.states)


Job = Annotated[RolloutJob | PreferenceJob, Field(discriminator="kind")]


class Preference(Record):
    """The best and the worst of the candidates in one state, by the PRM."""

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

    @property
    def gap(self) -> float:
        """How far apart the two are, by the PRM."""
        return self.chosen_q - self.rejected_q


class Group(Record):
    """All candidates of one state, each with its Q; `chosen` is the index of the best."""

    id: str
    job_id: str
    attempt: str
    state: State
    candidates: tuple[Candidate, ...] = Field(min_length=1)
    chosen: int
    policy_version: str
    prm_version: str
    template_hash: str

    @property
    def best(self) -> Candidate:
        """The candidate of highest Q."""
        return self.candidates[self.chosen]

    @property
    def q(self) -> list[float]:
        """Q of each candidate."""
        return [candidate.q for candidate in self.candidates if candidate.q is not None]

    @property
    def advantages(self) -> list[float]:
        """Q of each candidate less the mean over the samples; one drawn twice counts twice."""
        counts = [candidate.count for candidate in self.candidates]
        mean = sum(c * q for c, q in zip(counts, self.q, strict=True)) / sum(counts)
        return [q - mean for q in self.q]

    @property
    def gap(self) -> float:
        """How far apart best and worst are, by the PRM."""
        return max(self.q) - min(self.q)


class JobResult(Record):
    """What a job left behind; one entry of the `episodes` or the `preferences` stream."""

    job_id: str
    worker: str
    seconds: float
    episodes: list[Episode] = Field(default_factory=list)
    preferences: list[Preference] = Field(default_factory=list)
    groups: list[Group] = Field(default_factory=list)
    dropped: int = 0
    """Samples given up, such as states whose candidates were all alike or could not be scored."""
