"""What is known of a PRM: what it was fitted on, and how far its numbers can be believed."""

from __future__ import annotations

from pydantic import Field

from agentprm.protocol._base import Probability, Record


class ReliabilityBin(Record):
    """The held-out turns whose Q lies in [low, high), or in the last bin [low, high]."""

    low: float
    high: float
    turns: int
    mean_q: Probability
    mean_target: float
    """Mean of the Monte Carlo targets Q̂: what Q should be."""
    won: Probability
    """Part of these turns whose episode was won: the target without its discount."""


class Calibration(Record):
    """Q against its targets on games that took no part in the fit.

    `ece`, the expected calibration error, is |mean Q − mean Q̂| averaged over the bins, weighted by
    their turns. Bins without turns are left out. Turns of an episode are not independent: the
    number of games says more of the certainty than that of turns.
    """

    ece: float
    turns: int
    games: int
    bins: list[ReliabilityBin]


class Ranking(Record):
    """How often a relative PRM prefers, of two actions in one state, the one of higher Q̂.

    On games that took no part in the fit, over the pairs whose Q̂ differ by at least `margin`; a
    tie counts half. The pairs of a state are not independent, nor are the states of a game.
    """

    accuracy: Probability
    margin: float
    pairs: int
    states: int
    games: int


class GameSet(Record):
    """Some games. `hash` names them: equal sets of game ids have equal hashes."""

    games: int
    episodes: int
    hash: str


class TrainingData(Record):
    """The episodes of a fit, split by game."""

    splits: list[str]
    """The splits of the index that the games are from, such as `train`; none where they are
    the tasks of a log."""
    training: GameSet
    validation: GameSet


class PRMFacts(Record):
    """What a checkpoint's `agentprm.json` says of it. All unknown where others made it."""

    template_hash: str | None = None
    """The prompt template that it was fitted with; none where that was on chats as they are."""
    algorithm: str | None = None
    """What Q tells. `agent-prm`: the discounted outcome. `inverse-prm`: how much more like the
    expert's than like the policy's the transitions from here on are, 0.5 being neither; it ranks
    actions and is no chance of winning, so there is no calibration."""
    gamma: float | None = None
    """The discount. Where Q tells the outcome, a win k turns ahead is worth γ^k."""
    data: TrainingData | None = None
    objective: str | None = None
    """What was fitted: `absolute` (Q̂ itself) or `relative` (which of two actions in a state has
    the higher Q̂). The numbers of a relative PRM order the actions of one state. They are no chance
    of winning, and those of two states cannot be compared."""
    alpha: float | None = None
    """Weight of a reference policy's advantage in the targets (eq. 13), 0 for none. With more than
    that Q orders actions and is no chance of winning."""
    calibration: Calibration | None = None
    """Of an absolute PRM with held-out games."""
    ranking: Ranking | None = None
    """Of a relative PRM with held-out games."""


class Checkpoint(PRMFacts):
    """A checkpoint that serves, and what is known of it."""

    version: str


class ModelCard(Record):
    """What answers: one checkpoint, or the members of an ensemble."""

    version: str
    template_hash: str
    """The prompt template that states are rendered with."""
    checkpoints: list[Checkpoint] = Field(min_length=1)
