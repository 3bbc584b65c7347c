"""Sessions: games in play, each with a turn number that makes steps safe to repeat.

Everything here is synchronous and may be called from many threads. What takes time, the engine, is
called under the lock of its session; the lock of the registry is held for dictionary work alone.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import structlog

from agentprm.protocol import (
    CreateSessions,
    ForkSession,
    Game,
    HiddenState,
    Problem,
    Session,
    StepResult,
    StepSession,
)
from agentprm.service import ProblemError
from services.env.engine.base import EngineError, EngineHost, NotToldError
from services.env.games import Games
from services.env.session import ExpertMaker, LiveSession

LOCK_SECONDS = 60.0
"""Longest wait for a step of the same session that is under way."""
RETRY_SECONDS = 2.0
"""What a client is told to wait for when the server is full."""

_log = structlog.get_logger()


class Sessions:
    """The registry of sessions on one host of engines."""

    def __init__(
        self,
        host: EngineHost,
        games: Games,
        expert: ExpertMaker,
        *,
        max_steps: int = 30,
        idle_seconds: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.capacity = host.capacity
        self._host = host
        self._catalogue = games
        self._make_expert = expert
        self._max_steps = max_steps
        self.idle_seconds = idle_seconds
        self._clock = clock
        self._sessions: dict[str, LiveSession] = {}
        self._keyed: defaultdict[str, set[str]] = defaultdict(set)
        """Ids of the sessions by their key."""
        self._attempts: dict[str, object] = {}
        """The latest creation under way, by its key."""
        self._used = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Engines in use, those that are starting included."""
        return self._used

    def create(self, request: CreateSessions) -> list[Session]:
        """New sessions, at turn 0 or after their prefixes: all that were asked for, or none.

        Those of the same key are closed first; one in a step keeps its room until that ends.

        Raises:
            ProblemError: 404 for an unknown game, 422 for more than there ever is room for, more
                games than the split has, or a prefix that cannot be played, 429 where there is no
                room now, 409 where a later request had the same key, 500 where the engine fails.
        """
        games = self._games(request)
        self._check_count(len(games))
        if request.key is None:
            return self._create(games, request)
        attempt = object()
        with self._lock:
            self._attempts[request.key] = attempt
            old = list(self._keyed.get(request.key, ()))
        self.close(old)
        try:
            return self._create(games, request, attempt)
        finally:
            with self._lock:
                if self._attempts.get(request.key) is attempt:
                    del self._attempts[request.key]

    def fork(self, request: ForkSession) -> list[Session]:
        """Copies of a session at its present turn: all that were asked for, or none.

        Raises:
            ProblemError: 404 where it is unknown, 409 where it is over, 422 for more copies than
                there ever is room for, 429 where there is no room now, 503 where a step of it does
                not end.
        """
        self._check_count(request.count)
        with self._held(request.id) as session:
            if session.over(session.turn):
                raise ProblemError(409, "Session over", f"it ended at turn {session.turn}")
            copies = [session.fork(self._clock()) for _ in range(request.count)]
            self._reserve(request.count)
            with self._lock:
                known = session.id in self._sessions
                if known:
                    self._add(copies)
        if not known:  # closed meanwhile, perhaps with all sessions of its key
            for copy in copies:
                self._end(copy)
            raise _unknown(request.id)
        return [copy.answer(copy.turn) for copy in copies]

    def step(self, steps: Sequence[StepSession], *, expert: bool = False) -> list[StepResult]:
        """Step several sessions; what goes wrong with one is the problem in its own result.

        Raises:
            ProblemError: 422 where a session occurs twice.
        """
        if len({step.id for step in steps}) < len(steps):
            raise ProblemError(422, "Invalid request", "steps: a session at most once in a batch")
        return self._host.map(lambda step: self._step_or_problem(step, expert), steps)

    def get(self, session_id: str, *, expert: bool = False) -> Session:
        """The session as it stands.

        Raises:
            ProblemError: 404 where it is unknown, 409 where the expert cannot advise, 503 where a
                step of it does not end.
        """
        with self._held(session_id) as session:
            advice = session.advice(session.turn) if expert else None
            return session.answer(session.turn, advice)

    def hidden(self, session_id: str) -> HiddenState:
        """Where everything is.

        Raises:
            ProblemError: 404 where the session is unknown, 409 where the engine does not tell, 500
                where it fails, 503 where a step of it does not end.
        """
        with self._held(session_id) as session:
            try:
                return session.engine.hidden_state()
            except NotToldError as error:
                raise ProblemError(409, "No hidden state", str(error)) from error
            except EngineError as error:
                raise ProblemError(500, "The engine failed", str(error)) from error

    def close(self, ids: Sequence[str]) -> list[str]:
        """Close sessions; unknown ones are passed over. Returns those that were open.

        One whose step is under way is forgotten at once, and its room is free when the step ends.
        """
        with self._lock:
            found = [self._remove(i) for i in dict.fromkeys(ids) if i in self._sessions]
        for session in found:
            self._end_unless_held(session)
        return [session.id for session in found]

    def close_all(self) -> None:
        """Close every session."""
        with self._lock:
            ids = list(self._sessions)
        self.close(ids)

    def reap(self) -> list[str]:
        """Close the sessions that nobody has asked for in `idle_seconds`."""
        limit = self._clock() - self.idle_seconds
        with self._lock:
            idle = [s.id for s in self._sessions.values() if s.used < limit and not s.lock.locked()]
        if idle:
            _log.info("idle sessions closed", sessions=len(idle))
        return self.close(idle)

    # --- below the registry ---------------------------------------------------------------------

    def _create(
        self, games: Sequence[Game], request: CreateSessions, attempt: object = None
    ) -> list[Session]:
        self._reserve(len(games))
        made = [
            LiveSession(
                id=uuid.uuid4().hex,
                game=game,
                key=request.key,
                seed=request.seed + k,
                max_steps=request.max_steps or self._max_steps,
                engine=self._host.engine(),
                make_expert=self._make_expert,
                used=self._clock(),
            )
            for k, game in enumerate(games)
        ]
        prefixes = request.prefixes or [[] for _ in made]

        def start(k: int) -> None:
            made[k].start(self._catalogue.source(made[k].game), prefixes[k], f"prefixes.{k}")

        try:
            self._host.map(start, range(len(made)))
            self._register(made, request.key, attempt)
        except Exception as error:
            for session in made:
                self._end(session)
            if isinstance(error, EngineError):
                raise ProblemError(500, "The engine failed", str(error)) from error
            raise
        return [session.answer(session.turn) for session in made]

    def _register(self, made: Sequence[LiveSession], key: str | None, attempt: object) -> None:
        """Make the sessions known, unless a later request with the same key is under way or done:
        the client that lost patience with this one must find none of its sessions in the way.
        """
        with self._lock:
            if key is not None and self._attempts.get(key) is not attempt:
                raise ProblemError(409, "Overtaken", "a later request had the same key")
            self._add(made)

    def _add(self, made: Sequence[LiveSession]) -> None:
        """Make the sessions known, under the registry's lock."""
        for session in made:
            self._sessions[session.id] = session
            if session.key is not None:
                self._keyed[session.key].add(session.id)

    def _remove(self, session_id: str) -> LiveSession:
        """Forget the session, under the registry's lock."""
        session = self._sessions.pop(session_id)
        session.closed = True
        if session.key is not None:
            self._keyed[session.key].discard(session_id)
            if not self._keyed[session.key]:
                del self._keyed[session.key]
        return session

    def _games(self, request: CreateSessions) -> list[Game]:
        if request.games is not None:
            unknown = [name for name in request.games if name not in self._catalogue.games]
            if unknown:
                detail = f"there is no game {unknown[0][:200]!r}; GET /v1/games lists them"
                raise ProblemError(404, "Unknown game", detail)
            return [self._catalogue.games[name] for name in request.games]
        games = self._catalogue.select(request.split)
        if len(games) < request.count:
            detail = f"{request.split} has {len(games)} games, {request.count} were asked for"
            raise ProblemError(422, "Too few games", detail)
        random.Random(request.seed).shuffle(games)
        return games[: request.count]

    def _check_count(self, count: int) -> None:
        if count > self.capacity:
            detail = f"{count} sessions, and this server holds {self.capacity} at most"
            raise ProblemError(422, "Too many sessions", detail)

    def _reserve(self, count: int) -> None:
        """Take room for so many sessions, that of idle ones where there is no other."""
        if self._used + count > self.capacity:
            self.reap()
        with self._lock:
            if self._used + count > self.capacity:
                detail = f"{self._used} of {self.capacity} sessions are in use"
                raise ProblemError(429, "At capacity", detail, retry_after=RETRY_SECONDS)
            self._used += count

    def _end_unless_held(self, session: LiveSession) -> None:
        """End a closed session, or leave that to who holds it: a step may never end."""
        if not session.lock.acquire(blocking=False):
            return
        try:
            self._end(session)
        finally:
            session.lock.release()

    def _end(self, session: LiveSession) -> None:
        """Give the engine back, then the room."""
        if session.ended:
            return
        session.ended = True
        session.engine.close()
        with self._lock:
            self._used -= 1

    @contextmanager
    def _held(self, session_id: str) -> Iterator[LiveSession]:
        """The session, locked against other steps."""
        with self._lock:
            session = self._sessions.get(session_id)
        if session is None:
            raise _unknown(session_id)
        if not session.lock.acquire(timeout=LOCK_SECONDS):
            detail = f"another request steps {session_id}"
            raise ProblemError(503, "Session busy", detail, retry_after=RETRY_SECONDS)
        try:
            if session.closed:
                raise _unknown(session_id)
            session.used = self._clock()
            yield session
            session.used = self._clock()
        finally:
            session.lock.release()
            if session.closed:
                self._end_unless_held(session)

    def _step_or_problem(self, step: StepSession, expert: bool) -> StepResult:
        try:
            return StepResult(id=step.id, session=self._step(step, expert))
        except ProblemError as error:
            return StepResult(id=step.id, problem=error.problem)
        except EngineError as error:
            problem = Problem(title="The engine failed", status=500, detail=str(error))
            return StepResult(id=step.id, problem=problem)

    def _step(self, step: StepSession, expert: bool) -> Session:
        with self._held(step.id) as session:
            session.step(step)
            after = step.turn + 1
            return session.answer(after, session.advice(after) if expert else None)


def _unknown(session_id: str) -> ProblemError:
    detail = f"there is no session {session_id[:200]!r}, or it is closed"
    return ProblemError(404, "Unknown session", detail)
