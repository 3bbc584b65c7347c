"""Plays a job: episodes with the environment and the policy, or preferences with the policy."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import structlog

from agentprm.addresses import pick
from agentprm.client import EnvClient, PolicyClient, PRMClient, ServiceError
from agentprm.protocol import (
    Action,
    ActRequest,
    ActResponse,
    ActResult,
    Candidate,
    ChoiceRule,
    Considered,
    CreateSessions,
    Episode,
    Group,
    Health,
    Lookahead,
    Preference,
    PreferenceJob,
    Provenance,
    RolloutJob,
    Search,
    Session,
    Start,
    State,
    StepSession,
    StepSessions,
    Turn,
    state_of,
)
from agentprm.world import WorldModel
from services.rollout.choice import by_chance, majority
from services.rollout.planning import LearnedModel, Model, TrueModel, look_ahead
from services.rollout.privileged import whereabouts
from services.rollout.reasons import SAMPLES, rationalised

if TYPE_CHECKING:
    from services.rollout.chat import ChatModel

CLOSE_DEADLINE = 5.0
"""Seconds to give sessions back; those left are reaped by the environment."""
REPLICA_GONE = 5.0
"""Seconds until one replica of several that takes no connection is given up, and its job with it:
the job is tried again, on another."""

_log = structlog.get_logger()


class PlayError(Exception):
    """A job cannot be played as it asks."""


@dataclass(frozen=True)
class Played:
    """What came of a job; `dropped` counts states that gave no preference, or no group."""

    episodes: list[Episode] = field(default_factory=list)
    preferences: list[Preference] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    dropped: int = 0


class Player:
    """Plays jobs against running services.

    Args:
        prm_url: only to wait for the PRM; the policy service asks it for scores.
        world_url: a world model, for look-ahead in a learned model.
        chat: plays the jobs whose actor is a chat model.
        patience: seconds to wait for a service that is loading or serves another version.
    """

    def __init__(
        self,
        env_url: str,
        policy_url: str,
        prm_url: str | None = None,
        world_url: str | None = None,
        *,
        chat: ChatModel | None = None,
        patience: float = 60.0,
    ) -> None:
        self._env_url = self._connected = env_url
        self._env = EnvClient(env_url)
        self._closing = EnvClient(env_url, deadline=CLOSE_DEADLINE)
        self._policy = PolicyClient(policy_url)
        self._prm = PRMClient(prm_url) if prm_url else None
        self._chat = chat
        self._world = PolicyClient(world_url) if world_url else None
        self._patience = patience

    def play(self, job: RolloutJob | PreferenceJob) -> Played:
        """Play the job.

        Raises:
            PlayError: a service serves another version than the job's, or refuses a step.
            ServiceError, httpx.HTTPError: a service fails.
        """
        if isinstance(job, PreferenceJob):
            return self._prefer(job)
        self._connect(pick(self._env_url))
        return Played(episodes=self._roll_out(job))

    def _connect(self, url: str) -> None:
        """To one replica of the environment: the sessions of a job live there alone."""
        if url == self._connected:
            return
        self._env.close()
        self._closing.close()
        self._connected = url
        unreachable = REPLICA_GONE if url != self._env_url else None
        self._env = EnvClient(url, unreachable=unreachable)
        self._closing = EnvClient(url, deadline=CLOSE_DEADLINE)

    # --- episodes -------------------------------------------------------------------------------

    def _roll_out(self, job: RolloutJob) -> list[Episode]:
        env = self._wait_for("env", self._env)
        if job.actor == "policy":
            self._wait_for("policy", self._policy, job.policy_version)
            if (job.ranked or job.lookahead) and self._prm:
                self._wait_for("prm", self._prm, job.prm_version)
        request = CreateSessions(
            games=job.games,
            prefixes=job.starts and [[turn.action.command for turn in s.turns] for s in job.starts],
            seed=job.seed,
            max_steps=job.max_steps,
            key=job.id,
        )
        starts = job.starts or [Start()] * len(job.games)
        sessions = self._env.create(request)
        ids = [session.id for session in sessions]
        try:
            if _asks_expert(job):
                sessions = self._env.experts(ids)
            hints = self._hints(job, sessions)
            starts = rationalised(partial(self._reasons, job), sessions, starts)
            games = [
                _Game(*each, labelled=job.labelled)
                for each in zip(sessions, starts, hints, strict=True)
            ]
            self._begin(job, games)
            template_hash = self._play_out(job, games)
        finally:
            self._close(ids)
        provenance = Provenance(
            engine=f"{env.details['engine']} {env.details['engine_version']}",
            package_version=env.package_version,
            data_version=str(env.details["data_version"]),
            template_hash=template_hash,
            sampling=None if job.actor == "expert" else job.sampling,
            best_of=job.best_of,
            choice=job.choice,
            lookahead=job.lookahead,
        )
        return [game.episode(job, k, provenance) for k, game in enumerate(games)]

    def _hints(self, job: RolloutJob, sessions: Sequence[Session]) -> list[str]:
        """What the policy reads beside the states of each game."""
        if job.privileged:
            return [whereabouts(s.game.task, self._env.hidden(s.id)) for s in sessions]
        return job.hints or [""] * len(sessions)

    def _begin(self, job: RolloutJob, games: Sequence[_Game]) -> None:
        """Play the first actions that were given."""
        version = job.policy_version or job.actor
        begun = [(game, game.first) for game in games if game.first is not None]
        if begun:
            decisions = [_Decision(first, policy_version=version) for _, first in begun]
            self._step(job, [game for game, _ in begun], decisions)

    def _play_out(self, job: RolloutJob, games: Sequence[_Game]) -> str:
        """Play until every game is over; the prompt template's hash, empty if none was used."""
        template_hash = ""
        for turn in range(job.max_steps):
            live = [game for game in games if not game.session.done]
            if not live:
                break
            if job.actor == "expert":
                decisions = [game.expert() for game in live]
            elif job.actor == "chat":
                chat = self._chat_model()
                template_hash = chat.template_hash
                decisions = _ask(chat, job, [game.state() for game in live], turn)
            elif job.lookahead is not None:
                decisions, template_hash = self._look_ahead(job, job.lookahead, live, turn)
            else:
                answer = self._act(job, live, turn)
                template_hash = answer.template_hash
                decisions = [
                    _decision(job, answer, result, f"{job.seed}/{turn}/{k}")
                    for k, result in enumerate(answer.results)
                ]
            self._step(job, live, decisions)
        return template_hash

    def _act(self, job: RolloutJob, games: Sequence[_Game], turn: int) -> ActResponse:
        return self._ask(
            job,
            [game.state() for game in games],
            _seed(job.seed, turn),
            n=job.best_of,
            prm=job.ranked,
            hints=[game.hint for game in games],
        )

    def _ask(
        self,
        job: RolloutJob,
        states: list[State],
        seed: int,
        *,
        n: int,
        prm: bool = False,
        hints: list[str] | None = None,
    ) -> ActResponse:
        """Answers of the job's policy, with `prm` scored by its PRM."""
        request = ActRequest(
            states=states, hints=hints, n=n, prm=prm, sampling=job.sampling, seed=seed
        )
        answer = self._policy.act(request)
        _require("policy", job.policy_version, answer.policy_version)
        if prm:
            _require("prm", job.prm_version, answer.prm_version)
        return answer

    def _reasons(self, job: RolloutJob, states: list[State], t: int) -> ActResponse:
        return self._ask(job, states, _seed(job.seed, f"reason {t}"), n=SAMPLES)

    def _chat_model(self) -> ChatModel:
        if self._chat is None:
            raise PlayError("this worker was started without --chat-url")
        return self._chat

    def _look_ahead(
        self, job: RolloutJob, plan: Lookahead, live: list[_Game], turn: int
    ) -> tuple[list[_Decision], str]:
        """The best actions by a search, and the prompt template's hash."""

        def act(states: list[State], n: int, seed: int) -> ActResponse:
            return self._ask(job, states, seed, n=n, prm=True)

        games = [(game.session, game.turns) for game in live]
        model = self._model(plan)
        choices, answer = look_ahead(games, plan, model, act, _seed(job.seed, turn))
        decisions = [
            _Decision(
                choice.candidate.action,
                answer.policy_version,
                answer.prm_version,
                choice.candidate.log_prob,
                choice.candidate.q,
                choice.search,
            )
            for choice in choices
        ]
        return decisions, answer.template_hash

    def _model(self, plan: Lookahead) -> Model[Any]:
        if plan.world_version is None:
            return TrueModel(self._env)
        if self._world is None:
            raise PlayError("a learned model takes a worker with --world-url")
        return LearnedModel(WorldModel(self._world, plan.world_version))

    def _step(self, job: RolloutJob, live: list[_Game], decisions: list[_Decision]) -> None:
        steps = [
            StepSession(id=game.session.id, turn=game.session.turn, command=decision.action.command)
            for game, decision in zip(live, decisions, strict=True)
        ]
        results = self._env.step(StepSessions(steps=steps, expert=_asks_expert(job)))
        for game, decision, result in zip(live, decisions, results, strict=True):
            if result.session is None:
                problem = result.problem
                why = f"{problem.title}. {problem.detail}".strip() if problem else "no answer"
                raise PlayError(f"{game.session.game.id}: {why}")
            game.advance(decision, result.session)

    def _close(self, ids: list[str]) -> None:
        try:
            self._closing.close_sessions(ids)
        except (ServiceError, httpx.HTTPError) as error:
            _log.warning("sessions left to the environment", sessions=len(ids), error=str(error))

    # --- preferences ----------------------------------------------------------------------------

    def _prefer(self, job: PreferenceJob) -> Played:
        self._wait_for("policy", self._policy, job.policy_version)
        if self._prm:
            self._wait_for("prm", self._prm, job.prm_version)
        request = ActRequest(
            states=job.states, n=job.n, prm=True, sampling=job.sampling, seed=job.seed
        )
        answer = self._policy.act(request)
        _require("policy", job.policy_version, answer.policy_version)
        _require("prm", job.prm_version, answer.prm_version)
        answered = list(enumerate(zip(job.states, answer.results, strict=True)))
        if job.groups:
            groups = [
                group
                for i, (state, result) in answered
                if (group := _group(job, i, state, result, answer))
            ]
            return Played(groups=groups, dropped=len(job.states) - len(groups))
        preferences = [
            preference
            for i, (state, result) in answered
            if (preference := _best_against_worst(job, i, state, result, answer))
        ]
        return Played(preferences=preferences, dropped=len(job.states) - len(preferences))

    # --- waiting --------------------------------------------------------------------------------

    def _wait_for(
        self, name: str, client: EnvClient | PolicyClient | PRMClient, version: str | None = None
    ) -> Health:
        """The health of a service, once it can serve the version asked for."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                health = client.health()
            except (httpx.HTTPError, ValueError) as error:
                trouble = f"no health: {error}"
            else:
                if health.status == "healthy" and version in (None, health.version):
                    return health
                trouble = f"is {health.status} and serves {health.version}"
            if time.monotonic() > deadline:
                raise PlayError(f"{name} {trouble}" + (f", not {version}" if version else ""))
            time.sleep(0.2)


# --- below ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Decision:
    """An action and what chose it."""

    action: Action
    policy_version: str
    prm_version: str | None = None
    log_prob: float | None = None
    q: float | None = None
    search: Search | None = None
    considered: tuple[Considered, ...] = ()


class _Game:
    """A session and the turns played in it, those before its start included."""

    def __init__(self, session: Session, start: Start, hint: str, *, labelled: bool) -> None:
        self.session = session
        self.hint = hint
        self._labelled = labelled
        self.first = start.action
        self._start = len(start.turns)
        self.turns = list(start.turns)

    def state(self) -> State:
        return state_of(self.session.game.task, self.turns, self.session)

    def expert(self) -> _Decision:
        if self.session.expert is None:
            raise PlayError("the environment gives no expert action; is it privileged?")
        return _Decision(self.session.expert, policy_version="expert")

    def advance(self, decision: _Decision, after: Session) -> None:
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


def _decision(job: RolloutJob, answer: ActResponse, result: ActResult, seed: str) -> _Decision:
    chosen = _chosen(result, job.choice, seed)
    candidates = result.candidates if job.best_of > 1 else ()
    return _Decision(
        chosen.action,
        answer.policy_version,
        answer.prm_version,
        chosen.log_prob,
        chosen.q,
        considered=tuple(Considered(action=c.action, q=c.q, count=c.count) for c in candidates),
    )


def _chosen(result: ActResult, rule: ChoiceRule, seed: str) -> Candidate:
    match rule:
        case ChoiceRule.PRM:
            return result.best
        case ChoiceRule.MAJORITY:
            return majority(result.candidates)
        case ChoiceRule.RANDOM:
            return by_chance(result.candidates, seed)


def _ask(chat: ChatModel, job: RolloutJob, states: list[State], turn: int) -> list[_Decision]:
    """What the chat model that the job names does; it is told as what its endpoint calls it."""
    if job.policy_version is None:
        raise PlayError("the job names no chat model")
    answers = chat.act(job.policy_version, states, job.sampling, _seed(job.seed, turn))
    return [_Decision(answer.action, policy_version=answer.model) for answer in answers]


def _asks_expert(job: RolloutJob) -> bool:
    return job.actor == "expert" or job.labelled


def _best_against_worst(
    job: PreferenceJob, i: int, state: State, result: ActResult, answer: ActResponse
) -> Preference | None:
    """The pair that state i gives, if its scores tell its candidates apart."""
    scored = [(c.q, c.action) for c in result.candidates if c.q is not None]
    if len(scored) < len(result.candidates):
        return None
    best = max(scored, key=lambda pair: pair[0])
    worst = min(scored, key=lambda pair: pair[0])
    if best[0] == worst[0]:
        return None
    return Preference(
        id=f"{job.id}/{i}",
        job_id=job.id,
        attempt=job.attempt,
        state=state,
        chosen=best[1],
        rejected=worst[1],
        chosen_q=best[0],
        rejected_q=worst[0],
        policy_version=answer.policy_version,
        prm_version=job.prm_version,
        template_hash=answer.template_hash,
    )


def _group(
    job: PreferenceJob, i: int, state: State, result: ActResult, answer: ActResponse
) -> Group | None:
    """All candidates of state i, if all were scored."""
    if any(candidate.q is None for candidate in result.candidates):
        return None
    return Group(
        id=f"{job.id}/{i}",
        job_id=job.id,
        attempt=job.attempt,
        state=state,
        candidates=tuple(result.candidates),
        chosen=result.chosen,
        policy_version=answer.policy_version,
        prm_version=job.prm_version,
        template_hash=answer.template_hash,
    )


def _require(name: str, wanted: str | None, got: str | None) -> None:
    if wanted is not None and wanted != got:
        raise PlayError(f"{name} answered with {got}, not {wanted}")


def _seed(seed: int, purpose: int | str) -> int:
    """A seed for every turn, so that equal draws do not recur along an episode."""
    return random.Random(f"{seed}/{purpose}").getrandbits(31)
