"""The wire types: what travels between services over HTTP and through Redis.

A state is s_t = (task, o_0, a_0, ..., o_t); an action a_t is REASON text and an ACTION command;
the reward is the outcome in [0, 1] at the last turn (Choudhury 2025, section 2).

Requests refuse unknown fields, so that a misspelt option is a 422 and not a silent default;
answers and records ignore them, so that an older client reads a newer server.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_TEXT = 20_000
"""Longest observation or reason, in characters."""
MAX_COMMAND = 500
"""Longest command, in characters."""
MAX_BATCH = 256
"""Most states, sessions or pairs in one request."""
MAX_STEPS = 200
"""Largest step limit of a session, in turns."""
MAX_CANDIDATES = 64
"""Largest N of Best-of-N."""

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Command = Annotated[str, Field(max_length=MAX_COMMAND)]
Prefix = Annotated[list[Command], Field(max_length=MAX_STEPS)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Request(BaseModel):
    """A body that a client sends."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Record(BaseModel):
    """A body that a service answers, or a record in a stream or a file."""

    model_config = ConfigDict(extra="ignore", frozen=True)


# --- states and actions -------------------------------------------------------------------------


class Action(Request):
    """REASON and ACTION. An empty command is what a badly formatted answer becomes."""

    reason: Text = ""
    command: Command = ""


class Step(Request):
    """One past turn: what was seen, what was done."""

    observation: Text
    action: Action


class State(Request):
    """s_t. `admissible` lists the commands possible now; empty where the environment cannot say."""

    task: Text
    history: tuple[Step, ...] = Field(default=(), max_length=200)
    observation: Text
    admissible: tuple[Command, ...] = Field(default=(), max_length=1000)


class Message(Request):
    """One message of a conversation, as chat templates take it."""

    role: Literal["system", "user", "assistant"]
    content: str


# --- environment --------------------------------------------------------------------------------


class Split(StrEnum):
    """ALFWorld's splits, by the directory names that `alfworld-download` makes."""

    TRAIN = "train"
    VALID_SEEN = "valid_seen"
    VALID_UNSEEN = "valid_unseen"


class Game(Record):
    """A game of the index. `id` is `split/task directory/trial directory`."""

    id: str
    split: Split
    task_type: str
    task: str


class GameList(Record):
    """A page of the index, and how many games match in all."""

    games: list[Game]
    total: int


class CreateSessions(Request):
    """Either the games by id, or `count` games of a split in the order that `seed` shuffles.

    Sessions made before with the same `key` are closed first: a client that lost the answer, or
    took over the work of one that died, leaves none behind. Session k's expert varies with
    `seed + k`.

    `prefixes[k]` are commands to play in `games[k]` before the session is handed out, at turn
    `len(prefixes[k])`: a state that was reached before is reached again. Every one of them must be
    admissible when it is played, and none may end the game.
    """

    games: list[str] | None = Field(default=None, min_length=1, max_length=MAX_BATCH)
    prefixes: list[Prefix] | None = Field(default=None, max_length=MAX_BATCH)
    split: Split | None = None
    seed: Seed = 0
    count: int = Field(default=1, ge=1, le=MAX_BATCH)
    max_steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    key: str | None = Field(default=None, max_length=200)

    @model_validator(mode="after")
    def _one_way(self) -> CreateSessions:
        if (self.games is None) == (self.split is None):
            raise ValueError("give either `games` or `split`")
        if self.prefixes is not None and len(self.prefixes) != len(self.games or ()):
            raise ValueError("give one prefix for each of `games`")
        return self


class ForkSession(Request):
    """Make `count` copies of a session at its present turn.

    A copy repeats the recorded answers of the turns before, has the seed and the `key` of its
    original, and goes its own way from there.
    """

    id: str
    count: int = Field(default=1, ge=1, le=MAX_BATCH)


class Session(Record):
    """A session after its turn `turn`: what the agent sees, and how things stand."""

    id: str
    game: Game
    turn: int
    observation: str
    admissible: list[str]
    reward: float
    done: bool
    won: bool
    truncated: bool
    """Ended by the step limit and not by the game."""
    max_steps: int
    expert: Action | None = None
    """The expert's next action; only where the server is privileged and was asked for it."""


class SessionList(Record):
    """Answers to a batch, in its order."""

    sessions: list[Session]


class StepSession(Request):
    """Play `command` at turn `turn`. Repeating a turn returns its recorded answer."""

    id: str
    turn: int = Field(ge=0)
    command: Command


class StepSessions(Request):
    """A batch of steps; one session at most once."""

    steps: list[StepSession] = Field(min_length=1, max_length=MAX_BATCH)
    expert: bool = False


class Problem(Record):
    """RFC 9457 problem details."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = ""


class StepResult(Record):
    """One session's answer within a batch: a session or a problem, never both."""

    id: str
    session: Session | None = None
    problem: Problem | None = None


class StepResults(Record):
    """Answers to a batch of steps, in its order."""

    results: list[StepResult]


class HiddenState(Record):
    """Where everything is, by the names the agent reads; only from a privileged server."""

    agent: list[str]
    """The receptacles within reach; none in the middle of the room."""
    holding: str | None
    objects: dict[str, str]
    """The receptacle of every object that lies in or on one."""
    open: list[str]
    hot: list[str]
    cool: list[str]
    clean: list[str]
    on: list[str]


class SessionIds(Request):
    """Sessions to close or to ask about."""

    ids: list[str] = Field(min_length=1, max_length=MAX_BATCH)


# --- policy -------------------------------------------------------------------------------------


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


# --- PRM ----------------------------------------------------------------------------------------


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


# --- checkpoints and health ---------------------------------------------------------------------


class LoadCheckpoint(Request):
    """Serve the checkpoint `version` (such as `policy/1`) of the registry."""

    version: str = Field(pattern=r"^[a-z]+/[0-9]+(\.[0-9]+)?$", max_length=40)


class Loaded(Record):
    """What serves now, and how long requests had to wait for the swap."""

    version: str
    previous: str | None
    load_seconds: float
    pause_seconds: float


class Health(Record):
    """What runs, and whether it can serve. `details` are the service's own facts."""

    service: str
    status: Literal["healthy", "loading"]
    """`loading` until there is a checkpoint to serve. OpenEnv's clients wait for `healthy`."""
    package_version: str
    version: str | None = None
    """The checkpoint that serves, for the services that serve one."""
    details: dict[str, str | int | float | bool | None] = {}


# --- episodes, preferences and the jobs that make them ------------------------------------------


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
    """Sample `n` candidates in each state from the policy that serves, and rank them by the PRM."""

    kind: Literal["preference"] = "preference"
    id: str
    attempt: str
    """Names the fit that asked; a restarted fit ignores what earlier ones asked for."""
    states: list[State]
    seed: int
    n: int
    sampling: Sampling = Sampling()
    prm_version: str


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


class JobResult(Record):
    """What a job left behind; one entry of the `episodes` or the `preferences` stream."""

    job_id: str
    worker: str
    seconds: float
    episodes: list[Episode] = []
    preferences: list[Preference] = []
    dropped: int = 0
    """Samples given up, such as states whose candidates were all alike or could not be scored."""
