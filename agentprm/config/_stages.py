"""The stages of a run: demonstrations, rollouts, preferences, evaluations."""

from __future__ import annotations

from pydantic import Field, model_validator

from agentprm.config._algorithm import Algorithm
from agentprm.config._exploration import Exploration
from agentprm.config._settings import Settings
from agentprm.protocol import MAX_BATCH, MAX_CANDIDATES, Sampling, Split


class Demonstrations(Settings):
    """What π_0 imitates, and what InversePRM takes for the expert's."""

    games: int = Field(ge=1)
    """Train games that are played, one episode each (repeated if the split has fewer); of a file,
    the most episodes that are taken."""
    source: str = "expert"
    """`expert`, that of the environment; a JSONL file of episodes or of job results, or a directory
    of such files; or the directory of a policy checkpoint, which plays."""
    sampling: Sampling = Sampling(temperature=0.5)
    """How a checkpoint is sampled that plays."""


class Vine(Settings):
    """Vine rollouts: Q̂(s, a) from continuations of sampled states, beside whole rollouts."""

    states: int = Field(default=100, ge=1)
    """Distinct states an iteration, drawn from its rollouts."""
    before: int = Field(default=200, ge=1)
    """Only states before this turn. Later ones have little left to win, and long histories."""
    actions: int = Field(default=2, ge=0, le=16)
    """Actions tried in a state: the one of the rollout, and others sampled from the policy."""
    random: int = Field(default=0, ge=0, le=16)
    """Further actions, drawn at random from the admissible commands: faults that the policy does
    not make, and finds that it misses. A PRM knows nothing of what no rollout has tried."""
    continuations: int = Field(default=4, ge=1)
    """Rollouts that begin with each action; those of one state have to fit into a batch."""

    @property
    def size(self) -> int:
        """Rollouts from one state."""
        return (self.actions + self.random) * self.continuations

    @model_validator(mode="after")
    def _something_is_tried(self) -> Vine:
        if self.size == 0:
            raise ValueError("`actions` and `random` are both 0: nothing is tried")
        return self


class Rollouts(Settings):
    """Stage 1 of an iteration: π_{i-1} plays train games."""

    games: int = Field(ge=1)
    """Games an iteration; consecutive iterations take consecutive games of a shuffled list."""
    per_game: int = Field(ge=1)
    """Episodes a game."""
    sampling: Sampling = Sampling(temperature=1.0)
    """How the policy is sampled. The targets are of this policy."""
    vine: Vine | None = None
    """Vine rollouts as well, where it is given. They estimate outcomes, so only `agent-prm` plays
    them."""
    exploration: Exploration = Exploration()
    """How rollouts begin (section 4.1); by default at the game's beginning."""

    @property
    def size(self) -> int:
        """Episodes that Q_i is fitted on: the rollouts, and those from chosen states."""
        return self.games * self.per_game + (self.vine.states * self.vine.size if self.vine else 0)


class Preferences(Settings):
    """Stage 3 of an iteration: what is asked of the policy and of the PRM, whatever the update."""

    pairs: int = Field(ge=1)
    """States asked about in all. Not every state gives a pair."""
    per_game: int = Field(default=12, ge=1)
    """Most states of one game."""
    candidates: int = Field(default=8, ge=2, le=MAX_CANDIDATES)
    """Actions sampled in a state; the best is set against the worst."""
    margin: float = Field(default=0.05, ge=0, lt=1)
    """Least difference in Q between the two; smaller ones are noise of the PRM and are dropped."""
    inverse_margin: float = Field(default=0.01, ge=0, lt=1)
    """`margin` where the PRM is InversePRM's: its Q is σ of a mean of logits and differs less."""
    anchors: float = Field(default=0.0, ge=0)
    """Anchors for each pair: states whose candidates differ by less than `margin`, in which the
    policy's own sample is kept likely (with `dpo.chosen_weight`) and nothing set against it. Pairs
    alone say nothing of such states, and what is learned elsewhere spreads to them unopposed."""
    states_per_job: int = Field(default=16, ge=1, le=MAX_BATCH)
    """States of one job."""
    ahead: int = Field(default=4, ge=1)
    """Jobs that may be under way at once, beside the one that is trained on: how far the sampling
    may run ahead of the fit."""
    max_age: int = Field(default=2, ge=0)
    """Preferences sampled more than this many weight updates ago are dropped and counted."""
    sampling: Sampling = Sampling(temperature=1.0)
    """How candidates are sampled."""

    def under(self, algorithm: Algorithm, alpha: float) -> Preferences:
        """These settings, with the margin on the scale of that algorithm's Q.

        Shaping by `alpha` makes differences of Q smaller by the factor 1 + α, so the margin too.
        """
        if algorithm is Algorithm.INVERSE_PRM:
            return self.model_copy(update={"margin": self.inverse_margin})
        return self.model_copy(update={"margin": self.margin / (1 + alpha)})


class Evaluation(Settings):
    """How π_i and BoN(π_i, Q_{i-1}) are measured."""

    split: Split = Split.VALID_SEEN
    """The games that are played."""
    games: int = Field(default=140, ge=1)
    """How many of them; all where the split has fewer."""
    sampling: Sampling = Sampling(temperature=0.5)
    """How the policy is sampled when it acts alone."""
    best_of: int = Field(default=16, ge=2, le=MAX_CANDIDATES)
    """N of Best-of-N."""
    best_of_sampling: Sampling = Sampling(temperature=1.0)
    """How the N candidates are sampled."""
    best_of_beta: float = Field(default=0.0, ge=0, le=10)
    """β of the choice: Q + β log(share of the N) is compared, and Q alone with 0 (eq. 3). Where
    candidates hardly differ in Q, what the policy draws often is kept to."""
    inverse_best_of_beta: float = Field(default=0.0, ge=0, le=10)
    """`best_of_beta` where the PRM is InversePRM's, whose Q differs less."""

    def under(self, algorithm: str | None, alpha: float) -> Evaluation:
        """These settings, with β on the scale of that algorithm's Q; shaping as for the margin."""
        if algorithm == Algorithm.INVERSE_PRM:
            return self.model_copy(update={"best_of_beta": self.inverse_best_of_beta})
        return self.model_copy(update={"best_of_beta": self.best_of_beta / (1 + alpha)})

    @property
    def choice_in_words(self) -> str:
        """How one of N is chosen, for the conditions beside a figure."""
        words = f"Best-of-N at {self.best_of_sampling.in_words()}"
        if not (self.best_of_beta or self.inverse_best_of_beta):
            return words
        words += f" by Q + {self.best_of_beta:g} log share"
        if self.inverse_best_of_beta == self.best_of_beta:
            return words
        return f"{words} ({self.inverse_best_of_beta:g} for Q of InversePRM)"
