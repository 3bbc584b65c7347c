"""The environment as its own model: what follows is tried in copies of the session."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from agentprm.client import EnvClient, ServiceError
from agentprm.protocol import (
    MAX_BATCH,
    Action,
    Session,
    StepResult,
    StepSession,
    StepSessions,
    Turn,
    state_of,
)
from services.rollout.planning.model import Arrival, Model, Place, next_state


class TrueModel(Model[str]):
    """A place's handle is a session, which is copied and never stepped."""

    def __init__(self, env: EnvClient) -> None:
        self._env = env
        self._copies: list[str] = []

    def root(self, session: Session, turns: Sequence[Turn]) -> Place[str]:
        """The real session."""
        return Place(
            state_of(session.game.task, turns, session),
            session.max_steps - session.turn,
            session.id,
        )

    def step(self, moves: Sequence[tuple[Place[str], Action]]) -> list[Arrival[str] | None]:
        """What happens in a copy for each move.

        Raises:
            ServiceError: the environment does not copy or does not step.
        """
        copies = self._copy([place.handle for place, _ in moves])
        steps = [
            StepSession(id=copy.id, turn=copy.turn, command=action.command)
            for copy, (_, action) in zip(copies, moves, strict=True)
        ]
        results: list[StepResult] = []
        for first in range(0, len(steps), MAX_BATCH):
            results += self._env.step(StepSessions(steps=steps[first : first + MAX_BATCH]))
        return [
            _arrival(place, action, _session(result))
            for (place, action), result in zip(moves, results, strict=True)
        ]

    def forget(self) -> None:
        """Close the copies."""
        copies, self._copies = self._copies, []
        for first in range(0, len(copies), MAX_BATCH):
            self._env.close_sessions(copies[first : first + MAX_BATCH])

    def _copy(self, ids: Sequence[str]) -> list[Session]:
        """A copy of each session; one that is named several times has several."""
        wanted: dict[str, list[int]] = defaultdict(list)
        for k, session_id in enumerate(ids):
            wanted[session_id].append(k)
        copies: dict[int, Session] = {}
        for session_id, places in wanted.items():
            made = self._env.fork(session_id, len(places))
            self._copies += [copy.id for copy in made]
            copies.update(zip(places, made, strict=True))
        return [copies[k] for k in range(len(ids))]


def _session(result: StepResult) -> Session:
    if result.session is None:
        problem = result.problem
        raise ServiceError(
            problem.status if problem else None, f"a copy was not stepped: {problem}"
        )
    return result.session


def _arrival(place: Place[str], action: Action, after: Session) -> Arrival[str]:
    if after.done:
        return Arrival(after.reward, None)
    state = next_state(place.state, action, after.observation, after.admissible)
    return Arrival(after.reward, Place(state, place.left - 1, after.id))
