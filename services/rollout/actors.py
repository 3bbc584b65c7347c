"""Who decides in the games of a job: the expert, the policy, look-ahead, or a chat model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agentprm.protocol import (
    ActResponse,
    ActResult,
    Candidate,
    ChoiceRule,
    Considered,
    Lookahead,
    RolloutJob,
)
from services.rollout.choice import by_chance, majority
from services.rollout.game import Decision, LiveGame, PlayError
from services.rollout.halves import those_that_fit
from services.rollout.planning import Model, look_ahead
from services.rollout.policy import JobPolicy, seed_for

if TYPE_CHECKING:
    from services.rollout.chat import ChatModel


class Actor(ABC):
    """Decides for all games of a job that are in play.

    A game whose conversation has grown beyond a model's length is given up, and no other with it.
    """

    template_hash: str = ""
    """Of the prompt that was used last; empty if none was."""

    @abstractmethod
    def decide(self, games: Sequence[LiveGame], turn: int) -> Sequence[Decision | None]:
        """What to do in each game; None gives it up. `turn` counts from the job's beginning.

        Raises:
            PlayError: a service answers with another version than the job's, or the environment
                gives no expert's action.
            ServiceError: a service fails.
        """


class ExpertActor(Actor):
    """The environment's expert, whose advice comes with every session."""

    def decide(self, games: Sequence[LiveGame], turn: int) -> list[Decision]:
        """See `Actor`."""
        return [_advised(game) for game in games]


class AskingActor(Actor):
    """Asks the policy about all games at once."""

    def decide(self, games: Sequence[LiveGame], turn: int) -> list[Decision | None]:
        """See `Actor`."""
        return those_that_fit(games, lambda some, half: self._answer(some, f"{turn}{half}"))

    @abstractmethod
    def _answer(self, games: Sequence[LiveGame], purpose: str) -> list[Decision]:
        """The decisions of one request; `purpose` seeds it.

        Raises:
            ServiceError: `CONTEXT_TOO_LONG`, one of the games is.
        """


class PolicyActor(AskingActor):
    """The policy: a plain sample, or one of N by the job's rule."""

    def __init__(self, job: RolloutJob, policy: JobPolicy) -> None:
        self._job = job
        self._policy = policy

    def _answer(self, games: Sequence[LiveGame], purpose: str) -> list[Decision]:
        job = self._job
        answer = self._policy.act(
            [game.state() for game in games],
            job.best_of,
            seed_for(job.seed, purpose),
            prm=job.ranked,
            beta=job.beta,
            hints=[game.hint for game in games],
        )
        self.template_hash = answer.template_hash
        return [
            self._decision(answer, result, f"{job.seed}/{purpose}/{k}")
            for k, result in enumerate(answer.results)
        ]

    def _decision(self, answer: ActResponse, result: ActResult, seed: str) -> Decision:
        chosen = _chosen(result, self._job.choice, seed)
        candidates = result.candidates if self._job.best_of > 1 else ()
        return Decision(
            chosen.action,
            policy_version=answer.policy_version,
            prm_version=answer.prm_version,
            log_prob=chosen.log_prob,
            q=chosen.q,
            considered=tuple(Considered(action=c.action, q=c.q, count=c.count) for c in candidates),
        )


class LookAheadActor(AskingActor):
    """The policy and the PRM with a search over what would follow."""

    def __init__(
        self, job: RolloutJob, plan: Lookahead, policy: JobPolicy, model: Model[Any]
    ) -> None:
        self._job = job
        self._plan = plan
        self._policy = policy
        self._model = model

    def _answer(self, games: Sequence[LiveGame], purpose: str) -> list[Decision]:
        places = [(game.session, game.turns) for game in games]
        seed = seed_for(self._job.seed, purpose)
        choices, answer = look_ahead(places, self._plan, self._model, self._policy.act, seed)
        self.template_hash = answer.template_hash
        return [
            Decision(
                choice.candidate.action,
                policy_version=answer.policy_version,
                prm_version=answer.prm_version,
                log_prob=choice.candidate.log_prob,
                q=choice.candidate.q,
                search=choice.search,
            )
            for choice in choices
        ]


class ChatActor(Actor):
    """The chat model that the job names. Records tell it as what its endpoint calls it.

    Raises:
        PlayError: the job names none.
    """

    def __init__(self, job: RolloutJob, chat: ChatModel) -> None:
        if job.policy_version is None:
            raise PlayError("the job names no chat model")
        self._name = job.policy_version
        self._job = job
        self._chat = chat
        self.template_hash = chat.template_hash

    def decide(self, games: Sequence[LiveGame], turn: int) -> list[Decision | None]:
        """See `Actor`."""
        states = [game.state() for game in games]
        seed = seed_for(self._job.seed, turn)
        answers = self._chat.act(self._name, states, self._job.sampling, seed)
        return [None if a is None else Decision(a.action, a.model) for a in answers]


def _advised(game: LiveGame) -> Decision:
    if game.session.expert is None:
        raise PlayError("the environment gives no expert action; is it privileged?")
    return Decision(game.session.expert, policy_version="expert")


def _chosen(result: ActResult, rule: ChoiceRule, seed: str) -> Candidate:
    match rule:
        case ChoiceRule.PRM:
            return result.best
        case ChoiceRule.MAJORITY:
            return majority(result.candidates)
        case ChoiceRule.RANDOM:
            return by_chance(result.candidates, seed)
