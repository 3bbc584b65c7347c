"""Plays a job: episodes with the environment and the policy, or preferences with the policy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import structlog

from agentprm.addresses import pick
from agentprm.client import EnvClient, PolicyClient, PRMClient, ServiceError
from agentprm.protocol import (
    CONTEXT_TOO_LONG,
    ActResult,
    CreateSessions,
    Episode,
    Group,
    Health,
    Lookahead,
    Preference,
    PreferenceJob,
    Provenance,
    RolloutJob,
    Session,
    Start,
    State,
    StepSession,
    StepSessions,
)
from agentprm.world import WorldModel
from services.rollout.actors import Actor, ChatActor, ExpertActor, LookAheadActor, PolicyActor
from services.rollout.game import Decision, LiveGame, PlayError
from services.rollout.halves import those_that_fit
from services.rollout.planning import LearnedModel, Model, TrueModel
from services.rollout.policy import JobPolicy, seed_for
from services.rollout.preferences import Scored, groups, preferences
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
        policy_url: needed for what a policy plays or prefers.
        prm_url: only to wait for the PRM; the policy service asks it for scores.
        world_url: a world model, for look-ahead in a learned model.
        chat: plays the jobs whose actor is a chat model.
        patience: seconds to wait for a service that is loading or serves another version.

    Raises:
        ValueError: one of the URLs is not that of a service.
    """

    def __init__(
        self,
        env_url: str,
        policy_url: str | None,
        prm_url: str | None = None,
        world_url: str | None = None,
        *,
        chat: ChatModel | None = None,
        patience: float = 60.0,
    ) -> None:
        self._env_url = self._connected = env_url
        self._env = EnvClient(env_url)
        self._closing = EnvClient(env_url, deadline=CLOSE_DEADLINE)
        self._given_policy = PolicyClient(policy_url) if policy_url else None
        self._prm = PRMClient(prm_url) if prm_url else None
        self._chat = chat
        self._world = PolicyClient(world_url) if world_url else None
        self._patience = patience

    def play(self, job: RolloutJob | PreferenceJob, run: str = "") -> Played:
        """Play the job of a run; jobs of another, on the same services, may have the same ids.

        Raises:
            PlayError: a service does not come to serve, or serves another version than the job's,
                or refuses a step; or the job needs what this worker was started without.
            ServiceError: a service fails.
        """
        if isinstance(job, PreferenceJob):
            return self._prefer(job)
        self._connect(pick(self._env_url))
        return Played(episodes=self._roll_out(job, run))

    @property
    def _policy(self) -> PolicyClient:
        """Raises `PlayError` where the worker has none."""
        if self._given_policy is None:
            raise PlayError("this worker was started with an empty --policy-url")
        return self._given_policy

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

    def _roll_out(self, job: RolloutJob, run: str) -> list[Episode]:
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
            key=blake2b(f"{run}/{job.id}".encode(), digest_size=16).hexdigest(),
        )
        sessions = self._env.create(request)
        ids = [session.id for session in sessions]
        try:
            if _asks_expert(job):
                sessions = self._env.experts(ids)
            actor = self._actor(job)
            games = self._games(job, sessions)
            self._begin(job, games)
            for turn in range(job.max_steps):
                live = [game for game in games if not game.over]
                if not live:
                    break
                self._step(job, live, actor.decide(live, turn))
        finally:
            self._close(ids)
        provenance = Provenance(
            engine=f"{env.details['engine']} {env.details['engine_version']}",
            package_version=env.package_version,
            data_version=str(env.details["data_version"]),
            template_hash=actor.template_hash,
            sampling=None if job.actor == "expert" else job.sampling,
            best_of=job.best_of,
            beta=job.beta,
            choice=job.choice,
            lookahead=job.lookahead,
        )
        return [game.episode(job, k, provenance) for k, game in enumerate(games)]

    def _actor(self, job: RolloutJob) -> Actor:
        """Who plays the job."""
        if job.actor == "expert":
            return ExpertActor()
        if job.actor == "chat":
            if self._chat is None:
                raise PlayError("this worker was started without --chat-url")
            return ChatActor(job, self._chat)
        policy = JobPolicy(self._policy, job)
        if job.lookahead is None:
            return PolicyActor(job, policy)
        return LookAheadActor(job, job.lookahead, policy, self._model(job.lookahead))

    def _model(self, plan: Lookahead) -> Model[Any]:
        """What tells what would follow an action."""
        if plan.world_version is None:
            return TrueModel(self._env)
        if self._world is None:
            raise PlayError("a learned model takes a worker with --world-url")
        return LearnedModel(WorldModel(self._world, plan.world_version))

    def _games(self, job: RolloutJob, sessions: Sequence[Session]) -> list[LiveGame]:
        """The games where the job has them begin, with what the policy reads beside the states."""
        hints = job.hints or [""] * len(sessions)
        if job.privileged:
            hints = [whereabouts(s.game.task, self._env.hidden(s.id)) for s in sessions]

        def reasons(states: Sequence[State], purpose: str) -> list[ActResult]:
            seed = seed_for(job.seed, purpose)
            return JobPolicy(self._policy, job).act([*states], SAMPLES, seed, prm=False).results

        starts = rationalised(reasons, sessions, job.starts or [Start()] * len(sessions))
        return [
            LiveGame(*each, labelled=job.labelled)
            for each in zip(sessions, starts, hints, strict=True)
        ]

    def _begin(self, job: RolloutJob, games: Sequence[LiveGame]) -> None:
        """Play the first actions that were given."""
        version = job.policy_version or job.actor
        begun = [(game, game.first) for game in games if game.first is not None]
        if begun:
            decisions = [Decision(first, policy_version=version) for _, first in begun]
            self._step(job, [game for game, _ in begun], decisions)

    def _step(
        self, job: RolloutJob, live: Sequence[LiveGame], choices: Sequence[Decision | None]
    ) -> None:
        """Carry out what was chosen; a game without a choice is given up."""
        decided = []
        for game, choice in zip(live, choices, strict=True):
            if choice is None:
                name = game.session.game.id
                _log.warning("a game is given up", game=name, reason=CONTEXT_TOO_LONG)
                game.give_up()
            else:
                decided.append((game, choice))
        if not decided:
            return
        steps = [
            StepSession(id=game.session.id, turn=game.session.turn, command=decision.action.command)
            for game, decision in decided
        ]
        results = self._env.step(StepSessions(steps=steps, expert=_asks_expert(job)))
        for (game, decision), result in zip(decided, results, strict=True):
            if result.session is None:
                problem = result.problem
                why = f"{problem.title}. {problem.detail}".strip() if problem else "no answer"
                raise PlayError(f"{game.session.game.id}: {why}")
            game.advance(decision, result.session)

    def _close(self, ids: list[str]) -> None:
        try:
            self._closing.close_sessions(ids)
        except ServiceError as error:
            _log.warning("sessions left to the environment", sessions=len(ids), error=str(error))

    # --- preferences ----------------------------------------------------------------------------

    def _prefer(self, job: PreferenceJob) -> Played:
        self._wait_for("policy", self._policy, job.policy_version)
        if self._prm:
            self._wait_for("prm", self._prm, job.prm_version)
        policy = JobPolicy(self._policy, job)

        def ask(states: Sequence[State], half: str) -> list[Scored]:
            seed = seed_for(job.seed, half) if half else job.seed
            answer = policy.act([*states], job.n, seed)
            return [Scored(result, answer) for result in answer.results]

        found = those_that_fit(job.states, ask)
        if job.groups:
            kept = groups(job, found)
            return Played(groups=kept, dropped=len(job.states) - len(kept))
        pairs = preferences(job, found)
        return Played(preferences=pairs, dropped=len(job.states) - len(pairs))

    # --- waiting --------------------------------------------------------------------------------

    def _wait_for(
        self, name: str, client: EnvClient | PolicyClient | PRMClient, version: str | None = None
    ) -> Health:
        """The health of a service, once it can serve the version asked for."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                health = client.health()
            except ServiceError as error:
                trouble = f"no health: {error}"
            else:
                if health.status == "healthy" and version in (None, health.version):
                    return health
                trouble = f"is {health.status} and serves {health.version}"
            if time.monotonic() > deadline:
                raise PlayError(f"{name} {trouble}" + (f", not {version}" if version else ""))
            time.sleep(0.2)


def _asks_expert(job: RolloutJob) -> bool:
    return job.actor == "expert" or job.labelled
