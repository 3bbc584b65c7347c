"""Plays a job: episodes with the environment and the policy, or preferences with the policy."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
import structlog

from agentprm.addresses import pick
from agentprm.client import EnvClient, PolicyClient, PRMClient, ServiceError
from agentprm.protocol import (
    Action,
    ActRequest,
    ActResponse,
    ActResult,
    CreateSessions,
    Episode,
    Health,
    Preference,
    PreferenceJob,
    Provenance,
    RolloutJob,
    Session,
    Start,
    State,
    Step,
    StepSession,
    StepSessions,
    Turn,
)

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
    """What came of a job; `dropped` counts states that gave no preference."""

    episodes: list[Episode] = field(default_factory=list)
    preferences: list[Preference] = field(default_factory=list)
    dropped: int = 0


class Player:
    """Plays jobs against running services.

    Args:
        prm_url: only to wait for the PRM; the policy service asks it for scores.
        patience: seconds to wait for a service that is loading or serves another version.
    """

    def __init__(
        self, env_url: str, policy_url: str, prm_url: str | None = None, *, patience: float = 60.0
    ) -> None:
        self._env_url = self._connected = env_url
        self._env = EnvClient(env_url)
        self._closing = EnvClient(env_url, deadline=CLOSE_DEADLINE)
        self._policy = PolicyClient(policy_url)
        self._prm = PRMClient(prm_url) if prm_url else None
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
            if job.best_of > 1 and self._prm:
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
            if job.actor == "expert":
                sessions = self._env.experts(ids)
            games = [_Game(*pair) for pair in zip(sessions, starts, strict=True)]
            self._begin(job, games)
            template_hash = self._play_out(job, games)
        finally:
            self._close(ids)
        provenance = Provenance(
            engine=f"{env.details['engine']} {env.details['engine_version']}",
            package_version=env.package_version,
            data_version=str(env.details["data_version"]),
            template_hash=template_hash,
            sampling=job.sampling if job.actor == "policy" else None,
            best_of=job.best_of,
        )
        return [game.episode(job, k, provenance) for k, game in enumerate(games)]

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
            else:
                answer = self._act(job, [game.state() for game in live], turn)
                template_hash = answer.template_hash
                decisions = [_decision(answer, result) for result in answer.results]
            self._step(job, live, decisions)
        return template_hash

    def _act(self, job: RolloutJob, states: list[State], turn: int) -> ActResponse:
        answer = self._policy.act(
            ActRequest(
                states=states,
                n=job.best_of,
                prm=job.best_of > 1,
                sampling=job.sampling,
                seed=_turn_seed(job.seed, turn),
            )
        )
        _require("policy", job.policy_version, answer.policy_version)
        if job.best_of > 1:
            _require("prm", job.prm_version, answer.prm_version)
        return answer

    def _step(self, job: RolloutJob, live: list[_Game], decisions: list[_Decision]) -> None:
        steps = [
            StepSession(id=game.session.id, turn=game.session.turn, command=decision.action.command)
            for game, decision in zip(live, decisions, strict=True)
        ]
        results = self._env.step(StepSessions(steps=steps, expert=job.actor == "expert"))
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
        self._wait_for("policy", self._policy)
        if self._prm:
            self._wait_for("prm", self._prm, job.prm_version)
        request = ActRequest(
            states=job.states, n=job.n, prm=True, sampling=job.sampling, seed=job.seed
        )
        answer = self._policy.act(request)
        _require("prm", job.prm_version, answer.prm_version)
        preferences = [
            preference
            for i, (state, result) in enumerate(zip(job.states, answer.results, strict=True))
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


class _Game:
    """A session and the turns played in it, those before its start included."""

    def __init__(self, session: Session, start: Start) -> None:
        self.session = session
        self.first = start.action
        self._start = len(start.turns)
        self._turns = list(start.turns)

    def state(self) -> State:
        history = tuple(Step(observation=t.observation, action=t.action) for t in self._turns)
        return State(
            task=self.session.game.task,
            history=history,
            observation=self.session.observation,
            admissible=tuple(self.session.admissible),
        )

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
            policy_version=decision.policy_version,
            prm_version=decision.prm_version,
        )
        self._turns.append(turn)
        self.session = after

    def episode(self, job: RolloutJob, k: int, provenance: Provenance) -> Episode:
        return Episode(
            id=f"{job.id}/{k}",
            job_id=job.id,
            game=self.session.game,
            seed=job.seed + k,
            start=self._start,
            turns=tuple(self._turns),
            final_observation=self.session.observation,
            won=self.session.won,
            provenance=provenance,
        )


def _decision(answer: ActResponse, result: ActResult) -> _Decision:
    best = result.best
    return _Decision(best.action, answer.policy_version, answer.prm_version, best.log_prob, best.q)


def _best_against_worst(
    job: PreferenceJob, i: int, state: State, result: ActResult, answer: ActResponse
) -> Preference | None:
    """The pair that state i gives, if its scores tell its candidates apart, or the tie."""
    scored = [(c.q, c.action) for c in result.candidates if c.q is not None]
    if len(scored) < len(result.candidates):
        return None
    best = max(scored, key=lambda pair: pair[0])
    worst = min(scored, key=lambda pair: pair[0])
    if best[0] == worst[0] or (job.ties and best[0] - worst[0] < job.margin):
        if not job.ties:
            return None
        best = worst = scored[0]  # candidates are in the order in which they were drawn
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


def _require(name: str, wanted: str | None, got: str | None) -> None:
    if wanted is not None and wanted != got:
        raise PlayError(f"{name} answered with {got}, not {wanted}")


def _turn_seed(seed: int, turn: int) -> int:
    """A seed for every turn, so that equal draws do not recur along an episode."""
    return random.Random(f"{seed}/{turn}").getrandbits(31)
