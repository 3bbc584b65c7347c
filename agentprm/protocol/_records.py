"""Episodes, preferences, groups of candidates: what jobs leave behind."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from pydantic import Field

from agentprm.protocol._base import Record
from agentprm.protocol._env import Game, Session
from agentprm.protocol._planning import Lookahead, Search
from agentprm.protocol._policy import Candidate, Sampling
from agentprm.protocol._prm import Transcript
from agentprm.protocol._states import Action, State, Step


class ChoiceRule(StrEnum):
    """Which of the `best_of` samples of a state is played."""

    PRM = "prm"
    """The one of highest Q: Best-of-N."""
    MAJORITY = "majority"
    """The command that most of them end in: self-consistency."""
    RANDOM = "random"
    """Any of the distinct actions: Best-of-N by a PRM that knows nothing."""


class Considered(Record):
    """A distinct action among the N of a Best-of-N choice, drawn `count` times."""

    action: Action
    q: float | None = None
    count: int = 1


class Turn(Record):
    """One turn of a recorded episode.

    `expert` is what the expert would have done, where the job asked for it. `considered` are the
    candidates that the action was chosen from, the chosen one among them; none where there was but
    one sample.
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
    expert: Action | None = None
    search: Search | None = None
    """Where look-ahead chose the action."""


class Provenance(Record):
    """Where a sample comes from: enough to explain a run from its records."""

    engine: str
    package_version: str
    data_version: str
    template_hash: str
    sampling: Sampling | None = None
    best_of: int = 1
    beta: float = 0.0
    """Of Best-of-N, as in `ActRequest`."""
    hint: str = ""
    """What the policy read beside the states. It tells where an episode comes from; no prompt that
    is trained on may hold it."""
    choice: ChoiceRule = ChoiceRule.PRM
    lookahead: Lookahead | None = None


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
        """s_t, as the policy saw it, without the hint."""
        return state_of(self.game.task, self.turns[:t], self.turns[t])

    def transcript(self) -> Transcript:
        """The episode as the PRM takes it."""
        steps = [Step(observation=u.observation, action=u.action) for u in self.turns]
        admissible = [u.admissible for u in self.turns]
        return Transcript(task=self.game.task, steps=steps, admissible=admissible)


def state_of(task: str, past: Sequence[Turn], now: Turn | Session) -> State:
    """The state in which a turn is, or is to be, played."""
    return State(
        task=task,
        history=tuple(Step(observation=u.observation, action=u.action) for u in past),
        observation=now.observation,
        admissible=tuple(now.admissible),
    )


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

    @property
    def tie(self) -> bool:
        """Whether it says of an action only that none is better by the PRM."""
        return self.chosen == self.rejected

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
    def samples(self) -> int:
        """How often candidates were drawn; one drawn twice counts twice."""
        return sum(candidate.count for candidate in self.candidates)

    @property
    def mean_q(self) -> float:
        """Mean Q over the samples."""
        counts = [candidate.count for candidate in self.candidates]
        return sum(c * q for c, q in zip(counts, self.q, strict=True)) / self.samples

    @property
    def advantages(self) -> list[float]:
        """Q of each candidate less the mean over the other samples of the group.

        A mean that the sample itself is in would be correlated with it: the expected gradient
        would be that of eq. 3 times 1 - 1/n, but for its KL term.
        """
        if self.samples == 1:
            return [0.0]
        mean, over_others = self.mean_q, self.samples / (self.samples - 1)
        return [(q - mean) * over_others for q in self.q]

    @property
    def gap(self) -> float:
        """How far apart best and worst are, by the PRM."""
        return max(self.q) - min(self.q)


class NextAction(Record):
    """a' ~ π(·|s_turn) of a recorded episode, drawn anew whatever the episode did there."""

    episode_id: str
    turn: int
    action: Action
    log_prob: float
    seed: int
    """The request's; the place of the state in the request is the other half of it."""
    sampling: Sampling
    policy_version: str
    template_hash: str


class JobResult(Record):
    """What a job left behind; one entry of the `episodes` or the `preferences` stream.

    Next actions travel through no stream: the trainer asks for them itself.
    """

    job_id: str
    worker: str
    seconds: float
    episodes: list[Episode] = Field(default_factory=list)
    preferences: list[Preference] = Field(default_factory=list)
    groups: list[Group] = Field(default_factory=list)
    next_actions: list[NextAction] = Field(default_factory=list)
    dropped: int = 0
    """Samples given up, such as states whose candidates were all alike or could not be scored."""
