"""Episodes, preferences, groups of candidates, and the jobs that make them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from agentprm.protocol._base import MAX_STEPS, Record
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
        return Transcript(task=self.game.task, steps=steps)


def state_of(task: str, past: Sequence[Turn], now: Turn | Session) -> State:
    """The state in which a turn is, or is to be, played."""
    return State(
        task=task,
        history=tuple(Step(observation=u.observation, action=u.action) for u in past),
        observation=now.observation,
        admissible=tuple(now.admissible),
    )


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
    def advantages(self) -> list[float]:
        """Q of each candidate less the mean over the samples; one drawn twice counts twice."""
        counts = [candidate.count for candidate in self.candidates]
        mean = sum(c * q for c, q in zip(counts, self.q, strict=True)) / sum(counts)
        return [q - mean for q in self.q]

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
