"""A game in play: its session, the turns so far, and the decisions that make the next one."""

from __future__ import annotations

from dataclasses import dataclass

from agentprm.protocol import (
    Action,
    Considered,
    Episode,
    Provenance,
    RolloutJob,
    Search,
    Session,
    Start,
    State,
    Turn,
    state_of,
)


class PlayError(Exception):
    """A job cannot be played as it asks."""


@dataclass(frozen=True)
class Decision:
    """An action and what chose it."""

    action: Action
    policy_version: str
    prm_version: str | None = None
    log_prob: float | None = None
    q: float | None = None
    considered: tuple[Considered, ...] = ()
    search: Search | None = None


class LiveGame:
    """A session and the turns played in it, those before its start included."""

    def __init__(self, session: Session, start: Start, hint: str, *, labelled: bool) -> None:
        self.session = session
        self.hint = hint
        self._labelled = labelled
        self.first = start.action
        self._start = len(start.turns)
        self.turns = list(start.turns)
        self._given_up = False

    @property
    def over(self) -> bool:
        """Whether no further turn is played."""
        return self.session.done or self._given_up

    def give_up(self) -> None:
        """No further turn is played: the game is lost, as it is where its turns run out."""
        self._given_up = True

    def state(self) -> State:
        """s_t, as the policy sees it."""
        return state_of(self.session.game.task, self.turns, self.session)

    def advance(self, decision: Decision, after: Session) -> None:
        """The decision was carried out; `after` is the session since."""
        turn = Turn(
            observation=self.session.observation,
            admissible=tuple(self.session.admissible),
            action=decision.action,
            reward=after.reward,
            log_prob=decision.log_prob,
            q=decision.q,
            considered=decision.considered,
            policy_version=decision.policy_version,
            prm_version=decision.prm_version,
            expert=self.session.expert if self._labelled else None,
            search=decision.search,
        )
        self.turns.append(turn)
        self.session = after

    def episode(self, job: RolloutJob, k: int, provenance: Provenance) -> Episode:
        """The record of game k of the job."""
        return Episode(
            id=f"{job.id}/{k}",
            job_id=job.id,
            game=self.session.game,
            seed=job.seed + k,
            start=self._start,
            turns=tuple(self.turns),
            final_observation=self.session.observation,
            won=self.session.won,
            provenance=provenance.model_copy(update={"hint": self.hint}),
        )
