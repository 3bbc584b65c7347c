"""The wire types: what travels between services over HTTP and through Redis.

A state is s_t = (task, o_0, a_0, ..., o_t); an action a_t is REASON text and an ACTION command;
the reward is the outcome in [0, 1] at the last turn (Choudhury 2025, section 2).

Requests refuse unknown fields, so that a misspelt option is a 422 and not a silent default;
answers and records ignore them, so that an older client reads a newer server.
"""

from agentprm.protocol._base import (
    MAX_BATCH,
    MAX_CANDIDATES,
    MAX_COMMAND,
    MAX_STEPS,
    MAX_TEXT,
    Command,
    Id,
    Prefix,
    Probability,
    Record,
    Request,
    Seed,
    Text,
)
from agentprm.protocol._checkpoints import Health, LoadCheckpoint, Loaded
from agentprm.protocol._env import (
    ClosedSessions,
    CreateSessions,
    ForkSession,
    Game,
    GameList,
    HiddenState,
    Session,
    SessionIds,
    SessionList,
    Split,
    StepResult,
    StepResults,
    StepSession,
    StepSessions,
)
from agentprm.protocol._policy import (
    ActRequest,
    ActResponse,
    ActResult,
    Candidate,
    Decoding,
    Sampling,
)
from agentprm.protocol._prm import Choice, Pair, ScoreRequest, ScoreResponse, Transcript
from agentprm.protocol._problem import FieldError, Problem
from agentprm.protocol._records import (
    Episode,
    Job,
    JobResult,
    Preference,
    PreferenceJob,
    Provenance,
    RolloutJob,
    Start,
    Turn,
)
from agentprm.protocol._states import Action, Message, State, Step

__all__ = [
    "MAX_BATCH",
    "MAX_CANDIDATES",
    "MAX_COMMAND",
    "MAX_STEPS",
    "MAX_TEXT",
    "ActRequest",
    "ActResponse",
    "ActResult",
    "Action",
    "Candidate",
    "Choice",
    "ClosedSessions",
    "Command",
    "CreateSessions",
    "Decoding",
    "Episode",
    "FieldError",
    "ForkSession",
    "Game",
    "GameList",
    "Health",
    "HiddenState",
    "Id",
    "Job",
    "JobResult",
    "LoadCheckpoint",
    "Loaded",
    "Message",
    "Pair",
    "Preference",
    "PreferenceJob",
    "Prefix",
    "Probability",
    "Problem",
    "Provenance",
    "Record",
    "Request",
    "RolloutJob",
    "Sampling",
    "ScoreRequest",
    "ScoreResponse",
    "Seed",
    "Session",
    "SessionIds",
    "SessionList",
    "Split",
    "Start",
    "State",
    "Step",
    "StepResult",
    "StepResults",
    "StepSession",
    "StepSessions",
    "Text",
    "Transcript",
    "Turn",
]
